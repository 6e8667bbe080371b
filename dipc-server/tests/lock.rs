//! The lock of a mailbox, on the kernel's semaphores: who may be in together, in which order, and
//! what becomes of it when a holder dies. Holders that die are this binary run again.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)] // A panic is how a test fails.

mod common;

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Instant;

use common::*;
use dipc_server::layout::{Geometry, Mailbox, ROOM, key};
use dipc_server::lock::{Held, WAIT_MAX};
use dipc_server::sys::{Reach, Set};

/// A set with one mailbox, removed with this value.
struct Fixture {
    set: Set,
    port: u16,
}

impl Fixture {
    fn new() -> Self {
        let port = free_port();
        let set = Set::create(key(port), geometry().semaphores(), Reach::Here).unwrap();
        set.set_values(&geometry().semaphores_at_rest()).unwrap();
        Self { set, port }
    }

    fn gate_and_room(&self) -> (u16, u16) {
        let (gate, room) = mailbox().semaphores();
        let values = self.set.values().unwrap();
        (values[usize::from(gate)], values[usize::from(room)])
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        let _ = self.set.remove();
    }
}

fn geometry() -> Geometry {
    Geometry::new(1, 1024).unwrap()
}

fn mailbox() -> Mailbox {
    geometry().mailbox(1).unwrap()
}

#[test]
fn readers_are_in_together_and_a_writer_alone() {
    let fixture = Fixture::new();
    let readers: Vec<Held> =
        (0..100).map(|_| Held::to_read(fixture.set, mailbox()).unwrap()).collect();
    assert_eq!(fixture.gate_and_room(), (0, ROOM as u16 - 100));
    drop(readers);
    let writer = Held::to_write(fixture.set, mailbox()).unwrap();
    assert_eq!(fixture.gate_and_room(), (1, 0));
    drop(writer);
    assert_eq!(fixture.gate_and_room(), (0, ROOM as u16));
}

#[test]
fn a_waiting_writer_goes_before_later_readers() {
    let fixture = Fixture::new();
    let set = fixture.set;
    let first = Held::to_read(set, mailbox()).unwrap();
    let (log, logged) = mpsc::channel();
    let writer = {
        let log = log.clone();
        thread::spawn(move || {
            let _held = Held::to_write(set, mailbox()).unwrap();
            log.send("writer").unwrap();
        })
    };
    eventually("the writer is at the gate", || fixture.gate_and_room().0 == 1);
    let later = thread::spawn(move || {
        let _held = Held::to_read(set, mailbox()).unwrap();
        log.send("reader").unwrap();
    });
    drop(first);
    writer.join().unwrap();
    later.join().unwrap();
    assert_eq!(logged.iter().collect::<Vec<_>>(), ["writer", "reader"]);
    assert_eq!(fixture.gate_and_room(), (0, ROOM as u16));
}

/// A process that holds, killed with this value.
struct Holder(Child);

impl Holder {
    fn die(self) {}
}

impl Drop for Holder {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs [`child_that_holds`] and waits until it holds, or waits for the room.
fn holder(port: u16, how: &str) -> Holder {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child_that_holds", "--nocapture"])
        .env("DIPC_TEST_HOLD", format!("{how} {port}"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut out = BufReader::new(child.stdout.take().unwrap());
    let holder = Holder(child);
    let mut line = String::new();
    while !line.contains("holding") {
        line.clear();
        assert_ne!(out.read_line(&mut line).unwrap(), 0, "it ended without holding");
    }
    holder
}

/// Not a test of its own: what a holder does until its input ends or it is killed.
#[test]
fn child_that_holds() {
    let Ok(order) = std::env::var("DIPC_TEST_HOLD") else { return };
    let (how, port) = order.split_once(' ').unwrap();
    let set = Set::find(key(port.parse().unwrap()), Reach::Here).unwrap();
    if how == "gate" {
        println!("\nholding soon");
    }
    let _held = match how {
        "read" => Held::to_read(set, mailbox()),
        _ => Held::to_write(set, mailbox()),
    };
    println!("\nholding");
    let _ = std::io::stdin().read_line(&mut String::new());
}

#[test]
fn the_death_of_a_holder_gives_back() {
    let fixture = Fixture::new();
    for how in ["read", "write"] {
        let child = holder(fixture.port, how);
        assert_ne!(fixture.gate_and_room(), (0, ROOM as u16));
        child.die();
        assert_eq!(fixture.gate_and_room(), (0, ROOM as u16), "after the death of a {how}r");
    }
}

#[test]
fn the_death_of_a_writer_at_the_gate_opens_it() {
    let fixture = Fixture::new();
    let reader = Held::to_read(fixture.set, mailbox()).unwrap();
    let child = holder(fixture.port, "gate");
    eventually("the writer is at the gate", || fixture.gate_and_room().0 == 1);
    child.die();
    assert_eq!(fixture.gate_and_room(), (0, ROOM as u16 - 1), "only the reader is left");
    drop(reader);
    drop(Held::to_write(fixture.set, mailbox()).unwrap());
}

/// A holder that lives and does nothing is waited for only so long; then the gate opens again.
#[test]
fn every_wait_is_bounded() {
    let fixture = Fixture::new();
    let child = holder(fixture.port, "read");
    let begin = Instant::now();
    let refused = Held::to_write(fixture.set, mailbox()).unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::WouldBlock);
    assert!(begin.elapsed() >= WAIT_MAX, "{:?}", begin.elapsed());
    assert_eq!(fixture.gate_and_room(), (0, ROOM as u16 - 1));
    drop(Held::to_read(fixture.set, mailbox()).unwrap());
    child.die();
}

#[test]
fn a_removed_set_ends_the_wait() {
    let fixture = Fixture::new();
    let set = fixture.set;
    let writer = Held::to_write(set, mailbox()).unwrap();
    let waiter = thread::spawn(move || Held::to_read(set, mailbox()).unwrap_err());
    set.remove().unwrap();
    let error = waiter.join().unwrap();
    assert_ne!(error.kind(), std::io::ErrorKind::WouldBlock, "{error}");
    drop(writer);
}
