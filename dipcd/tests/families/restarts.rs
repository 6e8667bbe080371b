//! dipcd ends at any moment and
//! another goes on with what the keeper held.
#![forbid(unsafe_code)]

use dipc_wire::memory::Access;

use crate::node::{Answer, node, page, pattern};
use crate::program::Program;

#[test]
fn a_successor_serves_what_was_read_and_not_answered() {
    let Some(node) = node("a_successor_serves_what_was_read_and_not_answered", 64) else { return };
    let (program, mm) = node.attached();
    let child = program.fork();
    node.mappings.watch();
    node.take_away(0);
    assert_eq!(program.number("load 0"), pattern(0));
    node.answer(5, Some(Answer::None));
    program.tell("load 20480", None);
    node.wait_for_fault(5, Access::Read);
    let node = node.restart();
    assert_eq!(program.answer().0, pattern(5).to_string());
    assert_eq!(node.count(), 2);
    assert!(node.families.is_of(mm, program.pid));
    node.faults();
    assert_eq!(child.number("store 0 3"), 3);
    assert_eq!(node.faults(), [(0, Access::Write)], "what was protected is so still");
    assert_eq!(program.number("store 0 4"), 4);
    assert_eq!(node.faults(), []);
    let grandchild = child.fork();
    node.take_away(0);
    assert_eq!(grandchild.number("load 0"), pattern(0));
    assert_eq!(node.count(), 3);
}

#[test]
fn forks_and_moves_wait_for_a_successor() {
    let Some(node) = node("forks_and_moves_wait_for_a_successor", 64) else { return };
    let (program, _) = node.attached();
    node.mappings.watch();
    assert_eq!(program.ask("storm"), "done");
    let mut node = node;
    for number in 0..5 {
        node = node.restart();
        node.take_away(number);
        assert_eq!(program.number(&format!("load {}", page(number).offset)), pattern(number));
    }
    assert_eq!(program.ask("still").split(' ').count(), 3);
    assert_eq!(node.count(), 1);
}

#[test]
fn who_maps_a_segment_and_is_served_by_nobody_is_ended() {
    let Some(node) = node("who_maps_a_segment_and_is_served_by_nobody_is_ended", 64) else {
        return;
    };
    let (program, _) = node.attached();
    let (stranger, _) = node.attached();
    let closed = Program::start();
    let file = node.mappings.file().for_program().unwrap();
    closed.ask_with("map", Some(std::os::fd::AsFd::as_fd(&file)));
    let name = stranger.number("name");
    let held = node.store.all();
    let lost = held
        .iter()
        .find(|(held, _)| matches!(held, dipc_wire::keeper::Held::Trap { mm, .. } if mm.0 == name));
    dipcd::memory::families::TrapStore::release(&*node.store, &lost.unwrap().0);
    drop(held);
    let node = node.restart();
    assert_eq!(stranger.answer().0, "", "it has ended");
    assert_eq!(program.number("load 4096"), pattern(1));
    assert_eq!(closed.ask("open"), "done", "who has it closed does no harm");
    drop(closed);
    assert_eq!(node.count(), 1);
}
