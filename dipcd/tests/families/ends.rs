//! Ends that nobody reports, and mappings that
//! are cut, moved, and given up while a thread waits.
#![forbid(unsafe_code)]

use dipc_wire::memory::Access;

use crate::node::{Answer, PAGE, node, page, pattern};

#[test]
fn exec_and_sigkill_are_seen() {
    let Some(node) = node("exec_and_sigkill_are_seen", 64) else { return };
    let (one, one_mm) = node.attached();
    let (mut other, other_mm) = node.attached();
    node.mappings.watch_all();
    assert_eq!(node.count(), 2);
    assert_eq!(one.ask("exec"), "done");
    node.wait_for_end(one_mm);
    assert_eq!(node.count(), 1);
    other.kill();
    assert_eq!(node.count(), 0, "also before it has been noticed");
    node.wait_for_end(other_mm);
    assert!(node.mappings.attachments().is_empty());
    assert!(node.store.all().is_empty(), "nothing is kept of them");
    node.mappings.protect(page(0)).unwrap();
}

#[test]
fn a_hole_in_the_middle_makes_two_attachments() {
    let Some(node) = node("a_hole_in_the_middle_makes_two_attachments", 64) else { return };
    let (program, mm) = node.attached();
    node.mappings.watch_all();
    assert_eq!(program.number("store 40960 1"), 1);
    assert_eq!(program.ask("unmap 8192 4096"), "done");
    assert_eq!(node.count(), 2, "also before it was said");
    assert!(node.families.changed(mm).is_empty() || node.mappings.attachments().len() == 2);
    assert_eq!(node.mappings.attachments().len(), 2);
    node.take_away(10);
    node.take_away(2);
    assert_eq!(program.number("load 40960"), pattern(10));
    assert_eq!(program.ask("load 8192"), "! SIGSEGV");
    assert_eq!(program.ask(&format!("unmap 0 {}", 64 * PAGE)), "done");
    let gone = node.families.changed(mm);
    assert_eq!(gone.len(), 1);
    assert!(node.mappings.attachments().is_empty());
    assert_eq!(node.count(), 0);
    assert_eq!(program.number("name"), mm.0, "it goes on");
}

#[test]
fn a_moved_mapping_keeps_what_is_protected() {
    let Some(node) = node("a_moved_mapping_keeps_what_is_protected", 64) else { return };
    let (program, mm) = node.attached();
    node.mappings.watch_all();
    assert_eq!(program.number("load 4096"), pattern(1));
    let address = program.number(&format!("move 0 {}", 64 * PAGE));
    assert_eq!(program.number("load 4096"), pattern(1));
    node.faults();
    assert_eq!(program.number("store 4096 2"), 2);
    assert_eq!(node.faults(), [(1, Access::Write)]);
    let (_, offset) = node.families.locate(mm, address + 3 * PAGE).expect("it is known there");
    assert_eq!(offset, 3 * PAGE);
    assert_eq!(node.count(), 1);
    // A part of it, so that it is in two places.
    program.number(&format!("move {} {}", 8 * PAGE, 8 * PAGE));
    assert_eq!(program.number(&format!("load {}", 9 * PAGE)), pattern(9));
    assert_eq!(node.families.changed(mm).len(), 0, "nothing is gone");
    assert_eq!(node.mappings.attachments().len(), 3);
}

#[test]
fn a_thread_may_wait_for_what_is_unmapped_meanwhile() {
    let Some(node) = node("a_thread_may_wait_for_what_is_unmapped_meanwhile", 64) else { return };
    let (program, mm) = node.attached();
    node.mappings.watch_all();
    node.answer(1, Some(Answer::None));
    assert_eq!(program.ask("touch 4096"), "done");
    node.wait_for_fault(1, Access::Read);
    assert_eq!(program.ask("unmap 4096 4096"), "done");
    assert_eq!(node.families.changed(mm).len(), 1);
    assert_eq!(program.ask("touched"), "! SIGSEGV");
    assert_eq!(program.number("load 8192"), pattern(2));
}

#[test]
fn what_registering_cuts_into_pieces_is_one_attachment() {
    let name = "what_registering_cuts_into_pieces_is_one_attachment";
    // Chunks of 64 MiB are watched apart.
    let Some(node) = node(name, 3 * 64 * 256) else { return };
    let (program, mm) = node.attached();
    node.mappings.watch();
    let middle = 64 * 256 + 5;
    node.take_away(middle);
    assert_eq!(node.count(), 1);
    assert!(node.families.changed(mm).is_empty(), "nothing is gone");
    assert_eq!(node.mappings.attachments().len(), 1);
    let child = program.fork();
    assert_eq!(child.number(&format!("load {}", middle * PAGE)), pattern(middle));
    assert_eq!(node.count(), 2);
}
