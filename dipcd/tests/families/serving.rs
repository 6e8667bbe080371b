//! Pages are brought, protected, taken away and lost, for programs that load, store and make
//! system calls, alone and with others.
#![forbid(unsafe_code)]

use dipc_wire::client::Trap;
use dipc_wire::memory::Access;

use crate::node::{Answer, PAGE, node, page, pages, pattern, skip};
use crate::program::Program;

#[test]
fn a_segment_nobody_else_has_is_not_watched() {
    let Some(node) = node("a_segment_nobody_else_has_is_not_watched", 64) else { return };
    let (program, _) = node.attached();
    assert_eq!(program.number("load 4096"), 0);
    assert_eq!(program.number("store 4096 5"), 5);
    assert_eq!(program.number("read 8192"), 77);
    assert_eq!(node.faults(), []);
    assert_eq!(node.mappings.file().present(pages(0, 64)).unwrap(), [pages(1, 2)]);
}

#[test]
fn absent_and_protected_pages_are_served_in_user_and_kernel_mode() {
    let name = "absent_and_protected_pages_are_served_in_user_and_kernel_mode";
    let Some(node) = node(name, 64) else { return };
    let (program, _) = node.attached();
    node.mappings.watch_all();
    assert_eq!(program.number("load 8192"), pattern(2));
    assert_eq!(node.faults(), [(2, Access::Read)]);
    assert_eq!(program.number("store 8192 5"), 5);
    assert_eq!(node.faults(), [(2, Access::Write)]);
    assert_eq!(program.number("store 8200 6"), 6);
    assert_eq!(node.faults(), []);

    assert_eq!(program.number("read 12288"), 77);
    assert!(node.faults().contains(&(3, Access::Write)), "an absent page");
    assert_eq!(program.number("load 16384"), pattern(4));
    assert_eq!(program.number("read 16384"), 77);
    assert!(node.faults().contains(&(4, Access::Write)), "a protected page");
}

#[test]
fn what_was_native_is_watched_when_another_replica_comes() {
    let Some(node) = node("what_was_native_is_watched_when_another_replica_comes", 64) else {
        return;
    };
    let (program, _) = node.attached();
    let (other, _) = node.attached();
    assert_eq!(program.number("store 0 5"), 5);
    node.mappings.watch();
    assert_eq!(node.take_away(0)[..8], 5u64.to_ne_bytes());
    assert_eq!(other.number("load 0"), pattern(0));
    assert_eq!(program.number("load 0"), pattern(0));
    assert_eq!(node.faults(), [(0, Access::Read)], "the page is there for both");
    assert_eq!(program.number("store 0 6"), 6);
    assert_eq!(node.faults(), [(0, Access::Write)]);
    assert_eq!(other.number("store 0 7"), 7);
    assert_eq!(node.faults(), [], "both may store");
    // A page that was never anybody else's.
    assert_eq!(other.number("load 4096"), pattern(1));

    node.faults();
    node.mappings.unwatch();
    assert_eq!(program.number("load 8192"), 0, "a hole is the kernel's again");
    assert_eq!(program.number("store 0 8"), 8);
    assert_eq!(node.faults(), []);
}

#[test]
fn nothing_is_stored_after_a_page_was_protected_and_nothing_stored_before_is_lost() {
    let name = "nothing_is_stored_after_a_page_was_protected_and_nothing_stored_before_is_lost";
    let Some(node) = node(name, 8) else { return };
    let (programs, rounds) = ([node.attached().0, node.attached().0], 3000);
    let content = |node: &crate::node::Node| {
        let mut content = vec![0; PAGE as usize];
        node.mappings.file().read(0, &mut content).unwrap();
        content
    };
    for (program, word) in programs.iter().zip(["spin 0", "spin 64"]) {
        assert_eq!(program.ask(word), "done");
    }
    let word = |at: usize| u64::from_ne_bytes(content(&node)[at..at + 8].try_into().unwrap());
    // On a busy machine a program may stand still for a while.
    let have_run = || word(0) > rounds && word(64) > rounds;
    let goes_on = |round: &u64| *round < rounds || *round < 500 * rounds && !have_run();
    for round in (0..).take_while(goes_on) {
        {
            let mut segment = node.segment();
            node.mappings.protect(page(0)).unwrap();
            let first = content(&node);
            segment.buffer.copy_from_slice(&content(&node));
            node.mappings.punch(page(0)).unwrap();
            assert_eq!(first, segment.buffer[..], "stored into a protected page");
            if round % 2 == 0 {
                // As if it had been somewhere else.
                node.mappings.fill(page(0), &segment.buffer).unwrap();
                node.mappings.wake(page(0));
            } else {
                node.mappings.file().write(0, &segment.buffer).unwrap();
                node.mappings.open(page(0));
            }
        }
        std::thread::yield_now();
    }
    let spun = programs.iter().map(|program| program.ask("still"));
    let spun: Vec<u64> =
        spun.map(|text| text.split(' ').next().unwrap().parse().unwrap()).collect();
    assert_eq!(spun, [word(0), word(64)]);
    assert!(have_run(), "they did not run: {spun:?}");
}

#[test]
fn a_lost_page_is_a_bus_error_until_it_is_healed() {
    let Some(node) = node("a_lost_page_is_a_bus_error_until_it_is_healed", 64) else { return };
    let (program, _) = node.attached();
    node.mappings.watch_all();
    node.answer(1, Some(Answer::Lost));
    assert_eq!(program.ask("load 4096"), "! SIGBUS");
    assert_eq!(program.ask("read 4096"), "! Bad address");
    assert_eq!(program.ask("load 4096"), "! SIGBUS", "without another fault");
    let (other, _) = node.attached();
    assert_eq!(other.ask("store 4096 1"), "! SIGBUS");
    node.answer(1, None);
    {
        let mut segment = node.segment();
        segment.buffer.fill(3);
        node.mappings.fill(page(1), &segment.buffer).unwrap();
        node.mappings.wake(page(1));
    }
    node.faults();
    let healed = u64::from_ne_bytes([3; 8]);
    assert_eq!(program.number("load 4096"), healed);
    assert_eq!(other.number("load 4096"), healed);
    assert_eq!(node.faults(), []);
    assert_eq!(other.number("store 4096 4"), 4);
    assert_eq!(node.faults(), [(1, Access::Write)], "healed, but protected");
    assert_eq!(program.number("store 4096 5"), 5);
    assert_eq!(node.faults(), []);
}

#[test]
fn a_thread_that_is_refused_gets_a_signal_and_may_come_again() {
    let Some(node) = node("a_thread_that_is_refused_gets_a_signal_and_may_come_again", 8) else {
        return;
    };
    let (program, mm) = node.attached();
    node.mappings.watch_all();
    node.answer(1, Some(Answer::None));
    program.tell("load 4096", None);
    node.wait_for_fault(1, Access::Read);
    let mappings = node.mappings.clone();
    let thread = program.pid;
    let (offset, access) = (PAGE, Access::Read);
    node.families.refuse(&dipcd::memory::families::Fault { mappings, offset, access, mm, thread });
    assert_eq!(program.answer().0, "! SIGBUS");
    node.answer(1, None);
    assert_eq!(program.number("load 4096"), pattern(1), "the segment is unchanged");
}

#[test]
fn a_large_run_is_protected_where_there_are_pages() {
    let Some(node) = node("a_large_run_is_protected_where_there_are_pages", 40_000) else {
        return;
    };
    let (program, _) = node.attached();
    let far = 39_000 * PAGE;
    for place in [0, 5 * PAGE, far] {
        assert_eq!(program.number(&format!("store {place} 9")), 9);
    }
    {
        let _segment = node.segment();
        node.mappings.protect(pages(0, 40_000)).unwrap();
    }
    for number in [0, 5, 39_000] {
        assert_eq!(program.number(&format!("load {}", number * PAGE)), 9);
        assert_eq!(program.number(&format!("store {} 10", number * PAGE)), 10);
        assert_eq!(node.faults(), [(number, Access::Write)]);
    }
    assert_eq!(program.number(&format!("load {}", 7 * PAGE)), pattern(7));
}

#[test]
fn an_ordinary_user_is_served_in_user_mode() {
    let name = "an_ordinary_user_is_served_in_user_mode";
    let Some(node) = node(name, 64) else { return };
    if !rustix::process::geteuid().is_root() {
        return skip(name, "needs root");
    }
    let directory = tempfile::tempdir().unwrap();
    let program = Program::start_as_nobody(directory.path());
    let mm = node.trap_by(&program, "lesser", Trap::UserMode);
    node.attach(&program, mm);
    assert_eq!(program.ask("open"), "done");
    node.mappings.watch_all();
    assert_eq!(program.number("name"), mm.0);
    assert_eq!(program.ask("read 4096"), "! Bad address", "a system call is not");
    assert_eq!(program.number("load 4096"), pattern(1));
    assert_eq!(program.number("store 4096 5"), 5);
    assert_eq!(program.number("read 4096"), 77, "a page that is there");
    let child = program.fork();
    node.take_away(1);
    assert_eq!(child.number("load 4096"), pattern(1), "dipcd sees his forks all the same");
    assert_eq!(node.count(), 2);
}
