//! Programs that lie or tamper: they are
//! refused or ended, and nobody else notices.
#![forbid(unsafe_code)]

use rustix::fs::{Mode, OFlags};
use std::io::ErrorKind;
use std::os::fd::{AsFd, OwnedFd};

use dipc_wire::client::{Mm, Trap};
use dipcd::memory::families::Process;

use crate::node::{PAGE, node, pattern};
use crate::program::Program;

#[test]
fn what_is_no_fresh_userfaultfd_is_refused() {
    let Some(node) = node("what_is_no_fresh_userfaultfd_is_refused", 8) else { return };
    let program = Program::start();
    let (pipe, _other) = rustix::pipe::pipe().unwrap();
    let open = |path: &str| rustix::fs::open(path, OFlags::RDWR, Mode::empty()).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let fifo = directory.path().join("anon_inode:[userfaultfd]");
    let fifo = fifo.to_str().unwrap();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        fifo,
        rustix::fs::FileType::Fifo,
        Mode::from_raw_mode(0o600),
        0,
    )
    .unwrap();
    let file = rustix::fs::memfd_create("x", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    let event = rustix::event::eventfd(0, rustix::event::EventfdFlags::NONBLOCK).unwrap();
    let (sentinel, used) = program.ask_with("trap", None);
    let sentinel = sentinel.parse().unwrap();
    let used = used.unwrap();
    let process = || Process::of(program.pid).unwrap();
    let others: Vec<OwnedFd> = vec![pipe, open("/dev/null"), open(fifo), file, event];
    for fd in others {
        let refused = node.families.take(process(), Trap::Full, sentinel, fd).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::InvalidInput, "{refused}");
    }
    rustix::fs::fcntl_setfl(&used, OFlags::empty()).unwrap();
    let blocking = used.try_clone().unwrap();
    let refused = node.families.take(process(), Trap::Full, sentinel, blocking).unwrap_err();
    assert_eq!(refused.to_string(), "the userfaultfd blocks");
    rustix::fs::fcntl_setfl(&used, OFlags::NONBLOCK).unwrap();
    let copy = used.try_clone().unwrap();
    let refused = node.families.take(process(), Trap::Full, sentinel + 1, copy).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::InvalidInput, "no page there: {refused}");
    let again = node.families.take(process(), Trap::Full, sentinel, used).unwrap_err();
    assert_eq!(again.kind(), ErrorKind::InvalidInput, "it has been used before: {again}");
    assert!(node.store.all().is_empty());
    node.trap(&program);
}

#[test]
fn who_lies_about_his_range_is_refused() {
    let Some(node) = node("who_lies_about_his_range_is_refused", 8) else { return };
    let (program, mm) = node.attached();
    let address = node.mappings.attachments()[0].pages.address;
    let place = |address, mm, pid| node.families.place(mm, pid, &node.mappings, address);
    for wrong in [address, address + PAGE, 0, 0x1000, !(PAGE - 1)] {
        let refused = place(wrong, mm, program.pid).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::InvalidInput, "{wrong:x}");
    }
    let file = node.mappings.file().for_program().unwrap();
    let (closed, _) = program.ask_with("map", Some(file.as_fd()));
    let closed: u64 = closed.parse().unwrap();
    assert!(place(closed + PAGE, mm, program.pid).is_err(), "not from its beginning");
    assert!(place(closed, mm, std::process::id()).is_err(), "another process");
    let _segment = node.segment();
    let placed = place(closed, mm, program.pid).unwrap();
    node.families.attach(placed, &[]).unwrap();
    let placed = place(closed, Mm(5), program.pid).unwrap();
    assert!(node.families.attach(placed, &[]).is_err(), "no such address space");
}

#[test]
fn who_keeps_tampering_keeps_nobody_waiting() {
    let Some(node) = node("who_keeps_tampering_keeps_nobody_waiting", 64) else { return };
    let (bad, _) = node.attached();
    let (good, _) = node.attached();
    node.mappings.watch_all();
    assert_eq!(bad.ask("tamper"), "done");
    for number in 0..32 {
        // It is served, or it has been ended.
        let word = bad.ask(&format!("load {}", number * PAGE));
        assert!(word.is_empty() || word == pattern(number).to_string(), "{word}");
        if word.is_empty() {
            break;
        }
    }
    for number in 0..32 {
        assert_eq!(good.number(&format!("load {}", number * PAGE)), pattern(number));
        node.take_away(number);
    }
}

#[test]
fn who_unregisters_what_is_watched_is_watched_again() {
    let Some(node) = node("who_unregisters_what_is_watched_is_watched_again", 64) else { return };
    let (program, _) = node.attached();
    node.mappings.watch_all();
    assert_eq!(program.number("load 0"), pattern(0));
    assert_eq!(program.ask("unregister 0 262144"), "done");
    node.take_away(0);
    assert_eq!(program.number("load 0"), pattern(0), "and not zeros");
}
