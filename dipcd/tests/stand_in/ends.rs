//! Ends: of an operation that was left, of a session, of an image, of the client. Messages that
//! no program got go back, undo is applied once.

use dipc_wire::ids::{Image, Kind, ObjectId, Seq, Slot};
use dipc_wire::keeper::{Account, Cause, FromStandIn, ToStandIn};
use dipc_wire::op::{Op, Outcome, Request, Wait};
use dipc_wire::peer::{End, Piece};
use dipc_wire::sysv::{IPC_NOWAIT, MSG_NOERROR, Rights, SEM_UNDO, SemBuf, SysvError};
use dipcd::sys::ipc;
use dipcd::sys::ipc::MessageBuffer;

use crate::node::{
    Client, FIRST, Node, Object, PATIENCE, await_waiters, becomes_ready, messages_in, receive,
    semaphore, send, until,
};

fn undoable(id: ObjectId, op: i16) -> Op {
    Op::SemOp { id, ops: vec![SemBuf { num: 0, op, flags: SEM_UNDO }], wait: Wait::Ever }
}

fn end(image: Option<Image>, ends: &[(u32, Seq)], cause: Cause) -> ToStandIn {
    let ends = ends.iter().map(|(slot, done)| End { slot: Slot(*slot), done: *done }).collect();
    ToStandIn::End { image, ends, cause, piece: Piece::Last }
}

fn put(queue: &Object, text: &[u8]) {
    ipc::msg_send(queue.kernel, &MessageBuffer::message(1, text), IPC_NOWAIT).unwrap();
}

fn take(queue: &Object) -> Vec<u8> {
    let mut buffer = MessageBuffer::default();
    buffer.make_room(8192);
    let length = ipc::msg_receive(queue.kernel, &mut buffer, 8192, 0, IPC_NOWAIT).unwrap();
    buffer.text()[..length].to_vec()
}

fn end_client(client: &Client) {
    client.tell(&end(None, &[], Cause::Reported));
    assert_eq!(client.hear(), None);
    client.await_end();
}

#[test]
fn what_was_left_goes_back_whole() {
    let node = Node::new();
    let (queue, client) = (node.queue(), node.client());
    let mut wire = client.wire(0);
    put(&queue, b"0123456789");
    let small = Op::MsgReceive { id: queue.id, bytes_max: 4, mtype: 0, flags: MSG_NOERROR };
    wire.ask(small, &[]);
    assert_eq!(wire.reply().1, b"0123");
    let seq = wire.seq;
    wire.say(&Request::Abandon { seq }, &[]);
    assert_eq!(wire.reply().0, Outcome::Done(0));
    assert_eq!(take(&queue), b"0123456789");
    // And while it waits: nothing that comes later is swallowed.
    wire.ask(receive(&queue, 0), &[]);
    let seq = wire.seq;
    wire.say(&Request::Abandon { seq }, &[]);
    assert_eq!(wire.reply().0, Outcome::Done(0));
    put(&queue, b"later");
    assert_eq!(take(&queue), b"later");
    // A program that just goes on has left it, too.
    wire.ask(receive(&queue, 0), &[]);
    wire.ask(Op::MsgMax, &[]);
    assert!(matches!(wire.reply().0, Outcome::Done(_)));
    put(&queue, b"last");
    assert_eq!(take(&queue), b"last");
}

#[test]
fn who_may_only_read_loses_nothing() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: acting as another account needs root");
        return;
    }
    let node = Node::new();
    let queue = node.object(Kind::Queue, 0, 0o604);
    let rights = Rights::default();
    let client = node.client_as(Account { uid: 65_534, gid: 65_534, groups: vec![], rights });
    let mut wire = client.wire(0);
    put(&queue, b"text");
    wire.ask(receive(&queue, 0), &[]);
    assert_eq!(wire.reply().1, b"text");
    let seq = wire.seq;
    wire.say(&Request::Abandon { seq }, &[]);
    assert_eq!((wire.reply().0, take(&queue)), (Outcome::Done(0), b"text".to_vec()));
    let back = wire.value(send(&queue, 1), b"no right is left");
    assert_eq!(back, Err(SysvError::EACCES));
}

#[test]
fn a_sessions_last_word_decides_about_its_last_message() {
    let node = Node::new();
    let (queue, client) = (node.queue(), node.client());
    for (slot, got) in [(0, true), (1, false)] {
        put(&queue, b"text");
        let mut wire = client.wire(slot);
        wire.ask(receive(&queue, 0), &[]);
        wire.reply();
        let done = if got { wire.seq } else { Seq(0) };
        wire.say(&Request::End { done }, &[]);
        assert!(wire.hear().is_none());
        if !got {
            until("the message is back", || messages_in(&queue) == 1);
        }
        assert_eq!(messages_in(&queue), u64::from(!got));
    }
}

#[test]
fn a_slot_serves_another_thread() {
    let node = Node::new();
    let (queue, client) = (node.queue(), node.client());
    let mut wire = client.wire(0);
    for _ in 0..20 {
        put(&queue, b"text");
        wire.ask(receive(&queue, 0), &[]);
        wire.reply();
        wire.done = wire.seq;
        let done = wire.done;
        wire.say(&Request::End { done }, &[]);
        wire = client.wire(0).go_on(&wire);
    }
    assert_eq!(messages_in(&queue), 0);
}

#[test]
fn a_report_of_an_image_returns_what_its_programs_had_not_got() {
    let node = Node::new();
    let (queue, set, client) = (node.queue(), node.set(1, 1), node.client());
    let mut wires: Vec<_> = (0..3).map(|slot| client.wire(slot)).collect();
    for (slot, wire) in wires.iter_mut().enumerate() {
        put(&queue, &[slot as u8]);
        wire.ask(receive(&queue, 0), &[]);
        wire.reply();
    }
    let mut next = client.wire_of(Image(1), 0);
    assert_eq!(next.value(undoable(set.id, -1), &[]), Ok(0));
    let mut waiting = client.wire(3);
    waiting.ask(undoable(set.id, -1), &[]);
    await_waiters(&set, 0, 1);
    let first = End { slot: Slot(0), done: Seq(1) };
    let (image, cause) = (Some(FIRST), Cause::Reported);
    client.tell(&ToStandIn::End { image, ends: vec![first], cause, piece: Piece::More });
    client.tell(&end(image, &[(1, Seq(0))], cause));
    assert_eq!(client.hear(), Some(FromStandIn::Ended { image: FIRST }));
    let mut back = [take(&queue), take(&queue)];
    back.sort();
    assert_eq!((back, messages_in(&queue)), ([vec![1], vec![2]], 0));
    assert!(wires[0].hear().is_none() && waiting.hear().is_none());
    await_waiters(&set, 0, 0);
    assert_eq!(semaphore(&set, 0), 0, "undo is kept over exec");
    assert_eq!(next.value(Op::MsgMax, &[]).map(|_| ()), Ok(()), "the next image goes on");
    client.tell(&end(image, &[], cause));
    assert_eq!(client.hear(), Some(FromStandIn::Ended { image: FIRST }), "once more, no harm");
    end_client(&client);
    assert_eq!(semaphore(&set, 0), 1);
}

#[test]
fn undo_belongs_to_the_process_and_is_applied_once() {
    let node = Node::new();
    let (set, client) = (node.set(1, 3), node.client());
    let (mut first, mut second) = (client.wire(0), client.wire(1));
    assert_eq!(first.value(undoable(set.id, -1), &[]), Ok(0));
    assert_eq!(second.value(undoable(set.id, 1), &[]), Ok(0));
    assert_eq!(first.value(undoable(set.id, -2), &[]), Ok(0));
    let done = first.done;
    first.say(&Request::End { done }, &[]);
    assert!(first.hear().is_none());
    let tasks = format!("/proc/{}/task", client.pid);
    until("the thread ends", || std::fs::read_dir(&tasks).unwrap().count() == 2);
    assert_eq!(semaphore(&set, 0), 1, "the end of a thread undoes nothing");
    end_client(&client);
    assert_eq!(semaphore(&set, 0), 3, "P here and V there cancel out");
}

#[test]
fn the_end_of_the_client_returns_messages_and_interrupts_waits() {
    for (cause, got, back) in [
        (Cause::Reported, Seq(1), 0),
        (Cause::Reported, Seq(0), 1),
        (Cause::LostAgain, Seq(0), 1),
        (Cause::LostDrop, Seq(0), 0),
    ] {
        let node = Node::new();
        let (queue, set, client) = (node.queue(), node.set(1, 0), node.client());
        put(&queue, b"text");
        let (mut wire, mut waiting) = (client.wire(0), client.wire(1));
        wire.ask(receive(&queue, 0), &[]);
        wire.reply();
        waiting.ask(undoable(set.id, -1), &[]);
        await_waiters(&set, 0, 1);
        client.tell(&end(None, &[(0, got)], cause));
        assert_eq!(client.hear(), None);
        client.await_end();
        assert_eq!(messages_in(&queue), back, "{cause:?} {got:?}");
        await_waiters(&set, 0, 0);
    }
}

#[test]
fn a_message_waits_for_room_and_delays_nothing() {
    let node = Node::new();
    let (queue, set, client) = (node.queue(), node.set(1, 1), node.client());
    put(&queue, b"mine");
    let mut wire = client.wire(0);
    assert_eq!(wire.value(undoable(set.id, -1), &[]), Ok(0));
    wire.ask(receive(&queue, 0), &[]);
    wire.reply();
    let full = || {
        let message = MessageBuffer::message(1, &[0; 1024]);
        ipc::msg_send(queue.kernel, &message, IPC_NOWAIT) == Err(SysvError::EAGAIN)
    };
    assert!((0..1000).any(|_| full()), "the queue is full");
    let before = messages_in(&queue);
    end_client(&client);
    assert_eq!((semaphore(&set, 0), messages_in(&queue)), (1, before));
    for _ in 0..before {
        assert_eq!(take(&queue).len(), 1024);
        if messages_in(&queue) == before {
            break;
        }
    }
    until("the message is back", || ipc::queue_stat_any(queue.kernel).unwrap().qnum >= 1);
    let found = (0..=before).any(|_| messages_in(&queue) > 0 && take(&queue) == b"mine");
    assert!(found);
}

#[test]
fn without_dipcd_and_keeper_a_stand_in_ends_as_its_client() {
    let node = Node::new();
    let (queue, set, client) = (node.queue(), node.set(1, 1), node.client());
    put(&queue, b"text");
    let mut wire = client.wire(0);
    assert_eq!(wire.value(undoable(set.id, -1), &[]), Ok(0));
    wire.ask(receive(&queue, 0), &[]);
    wire.reply();
    node.keeper.quit().unwrap();
    assert!(!becomes_ready(&client.pidfd, std::time::Duration::ZERO));
    let Client { pidfd, control, .. } = client;
    drop(control);
    assert!(becomes_ready(&pidfd, PATIENCE));
    assert_eq!((semaphore(&set, 0), messages_in(&queue)), (1, 1));
}
