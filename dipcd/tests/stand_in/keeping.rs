//! The keeper: what it holds outlives dipcd, what dipcd has outlives the keeper, and nobody else
//! gets anything from it.

use rustix::process::{Pid, Signal, kill_process};
use std::os::fd::AsFd;
use std::time::Duration;

use dipc_wire::ids::{ClientId, NodeId};
use dipc_wire::keeper::{FromKeeper, Held, ToKeeper};
use dipc_wire::op::Op;
use dipcd::keeper::SOCKET_NAME;
use dipcd::keeper_handle::{KeeperError, KeeperHandle};
use dipcd::sys::packets;

use crate::node::{Node, PATIENCE, becomes_ready, connect, pidfd, until};

fn name(pid: u32) -> Held {
    Held::Client(ClientId { node: NodeId::NONE, pid, started: 1 })
}

/// The keeper's pid, as it says itself, by a connection that takes the place of dipcd's.
fn keeper_pid(node: &Node) -> u32 {
    let connection = packets::connect(&node.dir.path().join(SOCKET_NAME)).unwrap();
    packets::send(&connection, &ToKeeper::Hello, &[]).unwrap();
    match packets::receive(&connection).unwrap() {
        Some((FromKeeper::Hello { pid }, _)) => pid,
        other => panic!("{other:?}"),
    }
}

#[test]
fn another_dipcd_finds_everything_again() {
    let node = Node::new();
    let client = node.client();
    let mut wire = client.wire(0);
    let (near, far) = packets::pair().unwrap();
    for pid in 1..=3 {
        node.keeper.hold(&name(pid), far.as_fd()).unwrap();
    }
    node.keeper.release(&name(2)).unwrap();
    assert!(wire.value(Op::MsgMax, &[]).is_ok());
    let (next, fetched) = connect(node.dir.path());
    let names: Vec<_> = fetched.iter().map(|(name, _)| name.clone()).collect();
    assert_eq!(names, [name(1), name(3), Held::StandIn(client.who.clone())]);
    packets::send(&fetched[0].1, &5u8, &[]).unwrap();
    assert_eq!(packets::receive::<u8>(&near).unwrap().unwrap().0, 5);
    assert!(wire.value(Op::MsgMax, &[]).is_ok(), "a stand-in serves on meanwhile");
    assert!(becomes_ready(node.keeper.watch().unwrap(), PATIENCE), "the older is replaced");
    assert!(matches!(node.keeper.stand_in(&client.who), Err(KeeperError::Gone(_))));
    drop(far);
    next.quit().unwrap();
    drop(fetched);
    assert!(becomes_ready(&near, PATIENCE), "nobody holds it any more");
}

#[test]
fn the_keeper_ends_when_nothing_is_left_to_keep() {
    let node = Node::new();
    let (near, _far) = packets::pair().unwrap();
    node.keeper.hold(&name(1), near.as_fd()).unwrap();
    let ended = pidfd(keeper_pid(&node));
    assert!(!becomes_ready(&ended, Duration::ZERO), "it still holds something");
    let (keeper, fetched) = connect(node.dir.path());
    assert_eq!(fetched.len(), 1);
    keeper.release(&name(1)).unwrap();
    drop(keeper);
    assert!(becomes_ready(&ended, PATIENCE));
    assert!(!node.dir.path().join(SOCKET_NAME).exists());
    KeeperHandle::quit_if_running(node.dir.path()).unwrap();
}

#[test]
fn a_stand_in_that_dies_is_forgotten() {
    let node = Node::new();
    let client = node.client();
    kill_process(Pid::from_raw(client.pid as i32).unwrap(), Signal::KILL).unwrap();
    client.await_end();
    assert_eq!(client.hear(), None);
    until("the keeper forgets it", || connect(node.dir.path()).1.is_empty());
    until("it is reaped", || !std::path::Path::new(&format!("/proc/{}", client.pid)).exists());
}

#[test]
fn a_keeper_that_dies_alone_is_replaced_and_stand_ins_go_on() {
    let node = Node::new();
    let client = node.client();
    let mut wire = client.wire(0);
    let pid = keeper_pid(&node);
    let (keeper, _) = connect(node.dir.path());
    let ended = pidfd(pid);
    kill_process(Pid::from_raw(pid as i32).unwrap(), Signal::KILL).unwrap();
    assert!(becomes_ready(&ended, PATIENCE));
    until("dipcd sees it", || keeper.hold(&name(1), ended.as_fd()).is_err());
    assert!(wire.value(Op::MsgMax, &[]).is_ok());
    let (keeper, fetched) = connect(node.dir.path());
    assert!(fetched.is_empty());
    keeper.hold(&Held::StandIn(client.who.clone()), client.control.as_fd()).unwrap();
    let (keeper, fetched) = connect(node.dir.path());
    assert_eq!(fetched.len(), 1);
    keeper.quit().unwrap();
}

#[test]
fn signals_for_everybody_end_neither_keeper_nor_stand_in() {
    let node = Node::new();
    let client = node.client();
    let mut wire = client.wire(0);
    let keeper = keeper_pid(&node);
    for pid in [keeper, client.pid] {
        for signal in [Signal::HUP, Signal::INT, Signal::TERM, Signal::PIPE] {
            kill_process(Pid::from_raw(pid as i32).unwrap(), signal).unwrap();
        }
    }
    assert!(wire.value(Op::MsgMax, &[]).is_ok());
    let (handle, fetched) = connect(node.dir.path());
    assert_eq!((keeper_pid(&node), fetched.len()), (keeper, 1));
    drop(handle);
}

#[test]
fn what_is_not_understood_ends_nothing() {
    let node = Node::new();
    let client = node.client();
    let mut wire = client.wire(0);
    packets::send(&client.control, &u64::MAX, &[]).unwrap();
    assert!(wire.value(Op::MsgMax, &[]).is_ok());
    assert!(client.wire(1).value(Op::MsgMax, &[]).is_ok(), "it hears what follows");
    let connection = packets::connect(&node.dir.path().join(SOCKET_NAME)).unwrap();
    packets::send(&connection, &u64::MAX, &[]).unwrap();
    assert!(becomes_ready(&connection, PATIENCE), "the keeper closes the connection");
    let (_, fetched) = connect(node.dir.path());
    assert_eq!(fetched.len(), 1);
}
