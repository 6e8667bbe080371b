//! Servers that share the mailboxes of a port. Here all are on one machine and differ by address;
//! the kernel ignores `IPC_DIPC`, so this is the same program as under libdipc on several machines.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)] // A panic is how a test fails.

mod common;

use common::*;
use dipc_server::layout::{SERVERS_MAX, Slot, key};
use dipc_server::sys::{Op, Reach, SegmentId, Set};

const FIRST: &[&str] = &["--shared", "--bind=127.0.0.1"];
const SECOND: &[&str] = &["--shared", "--bind=127.0.0.2"];

fn pair(kbytes: u32) -> (Server, Server) {
    let first = Server::start_with(free_port(), 4, kbytes, 4, FIRST);
    let second = Server::start_with(first.port, 4, kbytes, 4, SECOND);
    (first, second)
}

#[test]
fn written_through_one_and_read_through_the_other() {
    let (first, second) = pair(8);
    let port = first.port;
    let (mut here, mut there) = (first.client(), second.client());
    for count in 0..100 {
        let body = checked_body(3, count, 5000);
        here.write(3, &body);
        assert_eq!(there.read(3), body);
        std::mem::swap(&mut here, &mut there);
    }
    drop((here, there));
    let mut first = first;
    first.signal(rustix::process::Signal::TERM);
    assert_eq!(first.ended(), Some(0));
    assert_eq!(objects(port).len(), 2, "the last one removes");
    assert!(is_whole(3, &second.client().read(3)));
    // One that comes back finds what was written meanwhile.
    second.client().write(1, b"kept");
    let again = Server::start_with(port, 4, 8, 4, FIRST);
    assert_eq!(again.client().read(1), b"kept");
    let mut again = again;
    again.signal(rustix::process::Signal::TERM);
    assert_eq!(again.ended(), Some(0));
    second.stop();
}

#[test]
fn dipcrm_stops_one_or_all() {
    let (mut first, mut second) = pair(4);
    let port = first.port.to_string();
    let only = ["--shared", "--bind", "127.0.0.2", &port];
    assert!(output(dipcrm().args(only)).status.success());
    assert_eq!(second.ended(), Some(0));
    first.client().ask(b"r 1 1\n", b"ok 0\n");
    let mut second = Server::start_with(first.port, 4, 4, 4, SECOND);
    assert!(output(dipcrm().args(["--shared", &port])).status.success());
    assert_eq!((first.ended(), second.ended()), (Some(0), Some(0)));
    assert_eq!(objects(first.port), []);
}

/// One of two is killed inside a large write. The other one sees the content before or after,
/// whole, and is kept waiting by nobody.
#[test]
fn one_killed_in_a_write() {
    const BYTES: usize = 16 << 20;
    let rounds = if is_long() { 100 } else { 4 };
    let survivor = Server::start_with(free_port(), 1, 16 << 10, 64, FIRST);
    let mut reader = survivor.client();
    let bodies = [0, 1].map(|count| checked_body(1, count, BYTES));
    for round in 0..rounds {
        let victim = Server::start_with(survivor.port, 1, 16 << 10, 64, SECOND);
        let mut client = victim.client();
        let bodies = bodies.clone();
        let writer = std::thread::spawn(move || {
            use std::io::Write;
            for body in bodies.iter().cycle() {
                let line = format!("w 1 {BYTES}\n");
                if client.0.write_all(&[line.as_bytes(), body].concat()).is_err() {
                    break;
                }
            }
        });
        wait_until_written(survivor.port);
        assert!(is_whole(1, &reader.read(1)), "torn in round {round}");
        wait_until_written(survivor.port);
        victim.kill();
        writer.join().unwrap();
        assert!(is_whole(1, &reader.read(1)), "torn after round {round}");
        reader.write(1, &checked_body(1, u64::MAX, BYTES / 2));
    }
    println!("{rounds} kills, each inside a write");
    survivor.stop();
}

#[test]
fn other_sizes_are_refused() {
    let first = Server::start_with(free_port(), 4, 8, 4, FIRST);
    let port = first.port.to_string();
    assert_eq!(
        refusal(dipc().args(SECOND).args(["4", "4", &port, "4"])),
        format!("dipc: port {port}: is shared as 4 mailboxes of 8 kbytes")
    );
    first.client().ask(b"r 4 1\n", b"ok 0\n");
    first.stop();
}

/// As on a node whose libdipc shares sets but not memory, or after somebody's ipcrm -m.
#[test]
fn a_set_without_its_segment_is_refused() {
    let first = Server::start_with(free_port(), 1, 1, 1, FIRST);
    let port = first.port.to_string();
    SegmentId::find(key(first.port), Reach::Here).unwrap().remove().unwrap();
    assert_eq!(
        refusal(dipc().args(SECOND).args(["1", "1", &port, "1"])),
        format!("dipc: port {port}: its semaphores are shared, but no segment comes with them")
    );
    assert_eq!(first.client().read(1), b"", "the first one has it still");
    first.stop();
}

#[test]
fn no_more_servers_than_there_are_places() {
    let first = Server::start_with(free_port(), 1, 1, 1, FIRST);
    let port = first.port.to_string();
    let set = Set::find(key(first.port), Reach::Here).unwrap();
    let others: Vec<Op> = Slot::all().skip(1).map(|slot| Op::add(slot.semaphore(), 1)).collect();
    set.operate(&others).unwrap();
    assert_eq!(
        refusal(dipc().args(SECOND).args(["1", "1", &port, "1"])),
        format!("dipc: port {port}: {SERVERS_MAX} servers share it, and there are no more places")
    );
    let others: Vec<Op> = Slot::all().skip(1).map(|slot| Op::add(slot.semaphore(), -1)).collect();
    set.operate(&others).unwrap();
    first.stop();
}

/// A server that is not of this machine cannot be stopped here.
#[test]
fn a_server_elsewhere_is_left_alone() {
    let first = Server::start_with(free_port(), 1, 1, 1, FIRST);
    let port = first.port;
    let set = Set::find(key(port), Reach::Here).unwrap();
    let elsewhere = Slot::all().nth(1).unwrap().semaphore();
    set.operate(&[Op::add(elsewhere, 1)]).unwrap();
    let mut first = first;
    assert!(output(dipcrm().args(["--shared", &port.to_string()])).status.success());
    assert_eq!(first.ended(), Some(0));
    assert_eq!(objects(port).len(), 2, "the other one still serves");
    assert_eq!(
        refusal(dipcrm().args(["--shared", &port.to_string()])),
        format!(
            "dipcrm: port {port}: its server runs on another machine, and is stopped only there"
        )
    );
    set.operate(&[Op::add(elsewhere, -1)]).unwrap();
    assert!(output(dipcrm().args(["--shared", &port.to_string()])).status.success());
    assert_eq!(objects(port), []);
}
