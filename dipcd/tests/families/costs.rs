//! What the machinery costs, printed for whoever reads the log. With DIPC_LONG the segment has
//! 4 GiB, unless the machine has less than 12.
#![forbid(unsafe_code)]

use std::io::Write;
use std::os::fd::AsFd;
use std::time::Instant;

use crate::node::{PAGE, node, page};
use crate::program::Program;

fn note(figure: &str) {
    std::io::stderr().write_all(format!("COUNT {figure}\n").as_bytes()).unwrap();
}

fn segment_bytes() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap();
    let total = text.lines().find_map(|line| line.strip_prefix("MemTotal:")).unwrap();
    let kilobytes: u64 = total.trim().trim_end_matches(" kB").parse().unwrap();
    let is_long = std::env::var_os("DIPC_LONG").is_some();
    if is_long && kilobytes >= 12 << 20 { 4 << 30 } else { 256 << 20 }
}

#[test]
fn a_fork_costs_little_while_no_page_is_shared() {
    let bytes = segment_bytes();
    let Some(node) = node("a_fork_costs_little_while_no_page_is_shared", bytes / PAGE) else {
        return;
    };
    let plain = Program::start();
    let file = node.mappings.file().for_program().unwrap();
    plain.ask_with("map", Some(file.as_fd()));
    let (served, _) = node.attached();
    for program in [&plain, &served] {
        assert_eq!(program.ask("open"), "done");
        assert_eq!(program.ask("populate"), "done");
        program.number("births 20");
    }
    let (mut native, mut ours) = (Vec::new(), Vec::new());
    for _ in 0..7 {
        native.push(plain.number("births 100"));
        ours.push(served.number("births 100"));
    }
    native.sort_unstable();
    ours.sort_unstable();
    let mebibytes = bytes >> 20;
    note(&format!("fork, {mebibytes} MiB attached: {} ns, without us {}", ours[3], native[3]));
    assert_eq!(node.faults(), [], "native access");

    node.mappings.watch();
    let watched = served.number("births 20");
    note(&format!("fork, the same with holes watched: {watched} ns"));
    node.take_away(0);
    let watched = served.number("births 20");
    note(&format!("fork, the same with a chunk of 64 MiB protected: {watched} ns"));
}

#[test]
fn taking_and_giving_a_page_is_a_matter_of_microseconds() {
    let name = "taking_and_giving_a_page_is_a_matter_of_microseconds";
    let Some(node) = node(name, 4096) else { return };
    let programs: Vec<_> = (0..4).map(|_| node.attached().0).collect();
    node.mappings.watch_all();
    for program in &programs {
        assert_eq!(program.ask("populate"), "done");
    }
    node.faults();
    let segment = node.segment();
    let rounds = 2000;
    let timed = |what: &str, work: &mut dyn FnMut(u64)| {
        let before = Instant::now();
        (0..rounds).for_each(work);
        let each = before.elapsed().as_nanos() / u128::from(rounds);
        note(&format!("{what} a page of 4 programs: {each} ns"));
    };
    timed("protecting", &mut |number| node.mappings.protect(page(number)).unwrap());
    timed("punching", &mut |number| node.mappings.punch(page(number)).unwrap());
    timed("filling", &mut |number| {
        node.mappings.fill(page(number), &segment.buffer).unwrap();
        node.mappings.wake(page(number));
    });
    timed("opening", &mut |number| node.mappings.open(page(number)));
    drop(segment);
    assert!(node.faults().is_empty(), "nobody was kept waiting");
}
