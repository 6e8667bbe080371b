//! The mprotect trap: pages are closed
//! and opened by a thread of the program.
#![forbid(unsafe_code)]

use dipc_wire::client::{Mm, Trap};
use dipc_wire::memory::Access;
use dipcd::memory::files::Span;

use crate::node::{Node, PAGE, node, page, pages};
use crate::program::Program;

fn attached(node: &Node, held: &[(Span, Access)]) -> (Program, Mm) {
    let program = Program::start();
    let mm = node.trap_by(&program, "helper", Trap::Mprotect);
    node.attach_holding(&program, mm, held);
    (program, mm)
}

#[test]
fn pages_are_open_as_far_as_they_are_held() {
    let Some(node) = node("pages_are_open_as_far_as_they_are_held", 8) else { return };
    let (program, mm) = attached(&node, &[(pages(0, 2), Access::Write), (page(2), Access::Read)]);
    assert_eq!(program.number("name"), mm.0);
    assert_eq!(program.number("store 4096 5"), 5);
    assert_eq!(program.number("load 8192"), 0);
    assert_eq!(program.ask("store 8192 5"), "! SIGSEGV");
    assert_eq!(program.ask("load 12288"), "! SIGSEGV");

    assert_eq!(node.take_away(1)[..8], 5u64.to_ne_bytes());
    assert_eq!(program.ask("load 4096"), "! SIGSEGV");
    {
        let mut segment = node.segment();
        segment.buffer.fill(1);
        node.mappings.fill(page(1), &segment.buffer).unwrap();
        node.families.open_for(mm, &node.mappings, page(1), Access::Read).unwrap();
    }
    assert_eq!(program.number("load 4096"), u64::from_ne_bytes([1; 8]));
    assert_eq!(program.ask("store 4096 5"), "! SIGSEGV");
    node.families.open_for(mm, &node.mappings, page(1), Access::Write).unwrap();
    assert_eq!(program.number("store 4096 6"), 6);
    {
        let _segment = node.segment();
        node.mappings.protect(page(1)).unwrap();
    }
    assert_eq!(program.ask("store 4096 7"), "! SIGSEGV", "closed, until it asks again");
    assert_eq!(node.count(), 1, "one attachment, whatever is open of it");
}

#[test]
fn both_traps_share_a_segment() {
    let Some(node) = node("both_traps_share_a_segment", 8) else { return };
    let (other, _) = node.attached();
    let (program, mm) = attached(&node, &[(pages(0, 8), Access::Write)]);
    assert_eq!(program.number("store 0 5"), 5);
    assert_eq!(other.number("load 0"), 5);
    node.take_away(0);
    assert_eq!(program.ask("load 0"), "! SIGSEGV");
    assert_eq!(other.number("store 0 6"), 6);
    node.families.open_for(mm, &node.mappings, page(0), Access::Write).unwrap();
    assert_eq!(program.number("load 0"), 6);
    assert_eq!(node.families.locate(mm, 0).map(|(_, offset)| offset), None);
    assert_eq!(node.count(), 2);
}

#[test]
fn a_stopped_program_is_ended_when_a_page_must_go() {
    let Some(node) = node("a_stopped_program_is_ended_when_a_page_must_go", 8) else { return };
    let (program, mm) = attached(&node, &[(pages(0, 8), Access::Write)]);
    let (other, _) = node.attached();
    program.stop();
    node.take_away(0);
    assert_eq!(program.answer().0, "", "it has ended");
    node.wait_for_end(mm);
    assert_eq!(other.number("store 0 1"), 1);
}

#[test]
fn exec_and_sigkill_are_seen_and_a_restart_is_not() {
    let Some(node) = node("exec_and_sigkill_are_seen_and_a_restart_is_not", 8) else { return };
    let (one, one_mm) = attached(&node, &[(pages(0, 8), Access::Write)]);
    let (mut other, other_mm) = attached(&node, &[]);
    let node = node.restart();
    assert_eq!(one.number("store 0 1"), 1);
    node.take_away(0);
    assert_eq!(one.ask("load 0"), "! SIGSEGV");
    node.families.open_for(one_mm, &node.mappings, page(0), Access::Read).unwrap();
    assert_eq!(one.number("load 0"), 0);
    let address = node.mappings.attachments().iter().map(|one| one.pages.address).min().unwrap();
    assert!([one_mm, other_mm].into_iter().any(|mm| {
        node.families.locate(mm, address + PAGE).is_some_and(|(_, offset)| offset == PAGE)
    }));
    assert_eq!(one.ask("exec"), "done");
    other.kill();
    node.wait_for_end(one_mm);
    node.wait_for_end(other_mm);
    assert_eq!(node.count(), 0);
}
