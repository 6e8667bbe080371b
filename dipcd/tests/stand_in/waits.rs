//! Waits: how they end, by what they wait for, by a cancel or with their wire, and what becomes
//! of the operation then.

use std::time::Duration;

use dipc_wire::ids::{ObjectId, Seq};
use dipc_wire::op::{Op, Outcome, Request, Wait};
use dipc_wire::sysv::{SemBuf, SysvError};
use dipcd::sys::ipc;

use crate::node::{
    Node, await_waiters, becomes_ready, messages_in, receive, semaphore, send, until,
};

const SOON: Duration = Duration::from_millis(20);

fn step(id: ObjectId, num: u16, op: i16) -> Op {
    Op::SemOp { id, ops: vec![SemBuf { num, op, flags: 0 }], wait: Wait::Ever }
}

#[test]
fn one_thread_waits_for_what_another_does() {
    let node = Node::new();
    let (set, queue, client) = (node.set(1, 0), node.queue(), node.client());
    let (mut waiting, mut other) = (client.wire(0), client.wire(1));
    waiting.ask(step(set.id, 0, -1), &[]);
    await_waiters(&set, 0, 1);
    assert_eq!(other.value(step(set.id, 0, 1), &[]), Ok(0));
    assert_eq!(waiting.reply().0, Outcome::Done(0));
    waiting.done = waiting.seq;
    waiting.ask(receive(&queue, 0), &[]);
    assert!(!waiting.has_reply(SOON));
    assert_eq!(other.value(send(&queue, 9), b"here"), Ok(0));
    assert_eq!(waiting.reply(), (Outcome::Message { mtype: 9 }, b"here".to_vec()));
}

#[test]
fn a_cancelled_wait_has_no_effect() {
    let node = Node::new();
    let (set, queue, client) = (node.set(1, 0), node.queue(), node.client());
    let mut wire = client.wire(0);
    for round in 0..50 {
        let op = if round % 2 == 0 { step(set.id, 0, -1) } else { receive(&queue, 0) };
        wire.ask(op, &[]);
        let seq = wire.seq;
        wire.say(&Request::Cancel { seq: Seq(seq.0 - 1) }, &[]);
        wire.say(&Request::Cancel { seq }, &[]);
        assert_eq!(wire.reply().0, Outcome::Refused(SysvError::EINTR));
        wire.say(&Request::Cancel { seq }, &[]);
        wire.done = seq;
    }
    ipc::sem_set(set.kernel, 0, 1).unwrap();
    assert_eq!(wire.value(send(&queue, 1), b"kept"), Ok(0));
    assert_eq!((semaphore(&set, 0), messages_in(&queue)), (1, 1));
}

#[test]
fn a_cancel_that_comes_late_changes_nothing() {
    let node = Node::new();
    let (queue, client) = (node.queue(), node.client());
    let (mut taker, mut giver) = (client.wire(0), client.wire(1));
    let (mut taken, mut interrupted) = (0u64, 0u64);
    let rounds = 300;
    for _ in 0..rounds {
        taker.ask(receive(&queue, 0), &[]);
        giver.ask(send(&queue, 1), b"x");
        let seq = taker.seq;
        taker.say(&Request::Cancel { seq }, &[]);
        match taker.reply().0 {
            Outcome::Message { .. } => taken += 1,
            Outcome::Refused(SysvError::EINTR) => interrupted += 1,
            other => panic!("{other:?}"),
        }
        taker.done = seq;
        assert_eq!(giver.reply().0, Outcome::Done(0));
        giver.done = giver.seq;
    }
    assert_eq!((taken + interrupted, messages_in(&queue)), (rounds, interrupted));
}

#[test]
fn removal_ends_a_wait() {
    let node = Node::new();
    let (set, client) = (node.set(1, 0), node.client());
    let (mut waiting, mut other) = (client.wire(0), client.wire(1));
    waiting.ask(step(set.id, 0, -1), &[]);
    await_waiters(&set, 0, 1);
    assert_eq!(other.value(Op::Remove { id: set.id }, &[]), Ok(0));
    assert_eq!(waiting.reply().0, Outcome::Refused(SysvError::EIDRM));
}

#[test]
fn a_reply_is_repeated_and_the_operation_is_not() {
    let node = Node::new();
    let (queue, client) = (node.queue(), node.client());
    let mut wire = client.wire(0);
    for text in [b"first", b"other"] {
        assert_eq!(wire.value(send(&queue, 1), text), Ok(0));
    }
    wire.ask(receive(&queue, 0), &[]);
    let reply = wire.reply();
    for _ in 0..3 {
        let mut again = client.wire(0).go_on(&wire);
        again.ask_again(receive(&queue, 0), &[]);
        assert_eq!(again.reply(), reply);
        assert_eq!(messages_in(&queue), 1);
        assert!(wire.hear().is_none(), "the wire that was replaced ends");
        wire = again;
    }
    wire.done = wire.seq;
    assert_eq!(wire.message(receive(&queue, 0)), Ok((1, b"other".to_vec())));
}

#[test]
fn a_wait_goes_on_by_another_wire() {
    let node = Node::new();
    let (set, client) = (node.set(2, 0), node.client());
    let mut wire = client.wire(0);
    wire.ask(step(set.id, 0, -1), &[]);
    await_waiters(&set, 0, 1);
    // By a new wire while the old one seems well, and after the old one broke.
    for _ in 0..2 {
        let mut again = client.wire(0).go_on(&wire);
        again.ask_again(step(set.id, 0, -1), &[]);
        await_waiters(&set, 0, 1);
        let (seq, done) = (again.seq, again.done);
        drop(again);
        await_waiters(&set, 0, 0);
        wire = client.wire(0);
        (wire.seq, wire.done) = (seq, done);
        wire.ask_again(step(set.id, 0, -1), &[]);
        await_waiters(&set, 0, 1);
    }
    ipc::sem_set(set.kernel, 0, 5).unwrap();
    assert_eq!(wire.reply().0, Outcome::Done(0));
    assert_eq!(semaphore(&set, 0), 4);
}

#[test]
fn what_no_client_would_say_closes_the_wire_and_nothing_else() {
    let node = Node::new();
    let (set, client) = (node.set(1, 0), node.client());
    let mut wire = client.wire(0);
    assert_eq!(wire.value(step(set.id, 0, 1), &[]), Ok(0));
    let seq = Seq(0);
    wire.say(&Request::Do { seq, done: seq, op: Op::MsgMax }, &[]);
    assert!(wire.hear().is_none());
    let mut wire = client.wire(0).go_on(&wire);
    wire.ask(step(set.id, 0, -5), &[]);
    await_waiters(&set, 0, 1);
    wire.say(&Request::Do { seq, done: seq, op: Op::MsgMax }, &[]);
    assert!(wire.hear().is_none(), "the watcher closes it as well");
    let mut wire = client.wire(0).go_on(&wire);
    ipc::sem_set(set.kernel, 0, 5).unwrap();
    wire.ask_again(step(set.id, 0, -5), &[]);
    assert_eq!(wire.reply().0, Outcome::Done(0));
    assert!(!becomes_ready(&client.pidfd, Duration::ZERO), "the stand-in lives");
}

#[test]
fn two_hundred_threads_wait_in_one_small_process() {
    let node = Node::new();
    let (set, client) = (node.set(1, 0), node.client());
    let threads = 200;
    let mut wires: Vec<_> = (0..threads).map(|slot| client.wire(slot)).collect();
    for wire in &mut wires {
        wire.ask(step(set.id, 0, -1), &[]);
    }
    await_waiters(&set, 0, threads as i32);
    ipc::sem_set(set.kernel, 0, threads as i32).unwrap();
    for wire in &mut wires {
        assert_eq!(wire.reply().0, Outcome::Done(0));
        wire.done = wire.seq;
        let done = wire.done;
        wire.say(&Request::End { done }, &[]);
    }
    assert_eq!(semaphore(&set, 0), 0);
    for wire in &mut wires {
        assert!(wire.hear().is_none(), "a session that ends closes its wire");
    }
    let tasks = format!("/proc/{}/task", client.pid);
    let count = || std::fs::read_dir(&tasks).unwrap().count();
    until("the threads end", || count() <= 2);
}
