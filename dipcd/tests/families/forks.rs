//! Children: they have what their parents
//! have, from the first instant, and are told apart.
#![forbid(unsafe_code)]

use dipc_wire::memory::Access;

use crate::node::{Answer, Node, node, page, pattern};

#[test]
fn a_child_from_before_anything_was_watched_is_found_by_its_sentinel() {
    let name = "a_child_from_before_anything_was_watched_is_found_by_its_sentinel";
    let Some(node) = node(name, 64) else { return };
    let (parent, mm) = node.attached();
    let child = parent.fork();
    let grandchild = child.fork();
    assert_eq!(parent.number("store 0 5"), 5);
    assert_eq!(node.take_away(0)[..8], 5u64.to_ne_bytes());
    assert_eq!(grandchild.number("load 0"), pattern(0));
    assert_eq!(child.number("load 0"), pattern(0));
    assert_eq!(node.faults(), [(0, Access::Read)]);
    assert_eq!(child.number("store 0 6"), 6);
    assert_eq!(node.faults(), [(0, Access::Write)], "a child's store is seen");

    assert_eq!(parent.number("name"), mm.0);
    let names = [child.number("name"), grandchild.number("name")];
    assert!(names[0] != mm.0 && names[1] != mm.0 && names[0] != names[1]);
    assert_eq!(node.count(), 3);
    let mut pids: Vec<u32> = node
        .mappings
        .attachments()
        .into_iter()
        .map(|attachment| attachment.process.expect("count has looked for it").pid)
        .collect();
    pids.sort_unstable();
    let mut expected = [parent.pid, child.pid, grandchild.pid];
    expected.sort_unstable();
    assert_eq!(pids, expected);
    for (program, name) in [(&child, names[0]), (&grandchild, names[1])] {
        let mm = dipc_wire::client::Mm(name);
        assert!(node.families.is_of(mm, program.pid));
        assert!(!node.families.is_of(mm, parent.pid), "a number of somebody else's");
    }
}

#[test]
fn a_child_of_a_watched_segment_keeps_what_is_protected() {
    let Some(node) = node("a_child_of_a_watched_segment_keeps_what_is_protected", 64) else {
        return;
    };
    let (parent, _) = node.attached();
    node.mappings.watch_all();
    assert_eq!(parent.number("load 0"), pattern(0));
    node.faults();
    node.answer(0, Some(Answer::None));
    let child = parent.fork();
    assert_eq!(child.number("load 0"), pattern(0));
    child.tell("store 0 5", None);
    node.wait_for_fault(0, Access::Write);
    {
        let _segment = node.segment();
        node.mappings.open(page(0));
    }
    assert_eq!(child.answer().0, "5");
    assert_eq!(parent.number("store 0 6"), 6, "opened for all");
    assert_eq!(child.number("load 0"), 6);
}

#[test]
fn pages_come_and_go_while_programs_fork_and_move_their_mappings() {
    let name = "pages_come_and_go_while_programs_fork_and_move_their_mappings";
    let Some(node) = node(name, 64) else { return };
    let (stormy, _) = node.attached();
    let (steady, _) = node.attached();
    // Once, or more often where a busy machine keeps the program from its storm.
    let stormed = (0..50).any(|_| {
        assert_eq!(stormy.ask("storm"), "done");
        assert_eq!(stormy.ask("spin 0"), "done");
        for round in 1..1000 {
            bring_anew(&node);
            assert_eq!(steady.number(&format!("store 8 {round}")), round);
        }
        let told = stormy.ask("still");
        let told: Vec<u64> = told.split(' ').map(|word| word.parse().unwrap()).collect();
        assert_eq!(stormy.number("load 0"), told[1], "a store was lost, or made twice");
        assert_eq!(stormy.number("load 8"), 999);
        told[2] > 10
    });
    assert!(stormed, "it did not storm");
}

/// Takes the first page away, and brings it again.
fn bring_anew(node: &Node) {
    let mut segment = node.segment();
    node.mappings.protect(page(0)).unwrap();
    node.mappings.file().read(0, &mut segment.buffer).unwrap();
    node.mappings.punch(page(0)).unwrap();
    node.mappings.fill(page(0), &segment.buffer).unwrap();
    node.mappings.open(page(0));
}

#[test]
fn the_dead_among_many_children_do_not_pile_up() {
    let Some(node) = node("the_dead_among_many_children_do_not_pile_up", 64) else { return };
    let (parent, _) = node.attached();
    parent.number("births 300");
    let held = node.store.all().len();
    assert!(held < 20, "{held} traps for one process");
    assert_eq!(node.count(), 1);
}
