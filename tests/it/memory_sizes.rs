//! Segments of all sizes, and what their pages cost the daemons: an untouched page under a byte, a
//! page that another node holds at most 32 bytes at home. Figures are printed with the test's name.
#![forbid(unsafe_code)]

use std::fs;
use std::os::unix::fs::MetadataExt;

use dipc_tests::{Builder, Node, Puppet, process::wait_until, skip};

use crate::memory::{
    KEY, PAGE, by_both_traps, cluster, daemons, files_held, number, owner, records_left, refused,
    user,
};

const MIB: usize = 1 << 20;
const GIB: usize = 1 << 30;
/// What a puppet goes through for one line, so that no answer takes long on a slow machine.
const PIECE: usize = 4 * MIB;
/// Bytes that a page may cost dipcd: one that nobody touched, one that another node holds.
const UNTOUCHED_MAX: usize = 1;
const HELD_MAX: usize = 32;
/// What a figure of the kernel may be wrong by: pages touched meanwhile for other reasons.
const NOISE: usize = 512 << 10;

/// Memory of this machine in GiB.
fn memory_gib() -> usize {
    let text = fs::read_to_string("/proc/meminfo").expect("/proc is there");
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:")).expect("a total");
    let kib: usize = line.trim().trim_end_matches(" kB").parse().expect("a number of kB");
    kib >> 20
}

/// Says that a machine is too small for 4 GiB; true then.
fn is_too_small(name: &str) -> bool {
    let gib = memory_gib();
    if gib < 11 {
        skip::skip(name, &format!("4 GiB segments need 12 GiB of memory, and here are {gib}"));
    }
    gib < 11
}

/// Two nodes that have the time to take 4 GiB away, on a slow machine as well.
fn roomy(trap: &str) -> Builder {
    cluster(2, trap).entry("node_timeout", "10")
}

/// Words all over it, written on either node and read on the other.
fn both_ways(trap: &str, bytes: usize) {
    let cluster = roomy(trap).start();
    let mut home = owner(cluster.node(1), bytes);
    let mut away = user(cluster.node(2));
    let step = bytes / 64;
    home.must(&format!("stride 0 {bytes} {step} 3"));
    assert_eq!(number(&mut away, &format!("sum 0 {bytes} {step}")), 3 * 64, "{bytes} bytes");
    away.must(&format!("stride 8 {} {step} 5", bytes - 8));
    assert_eq!(number(&mut home, &format!("sum 8 {} {step}", bytes - 8)), 5 * 64);
    let last = bytes - 8;
    away.must(&format!("poke {last} 77"));
    assert_eq!(number(&mut home, &format!("peek {last}")), 77);
    assert_eq!(number(&mut home, &format!("peek {}", last - PAGE)), 0);
    home.must("rmid");
}

/// What is attached from other homes must fit into what `node_timeout` leaves after a lease.
#[test]
fn a_segment_that_cannot_be_taken_away_in_time_is_not_attached() {
    if is_too_small("a_segment_that_cannot_be_taken_away_in_time_is_not_attached") {
        return;
    }
    by_both_traps(|trap| {
        // 0.2 s.
        let cluster = cluster(2, trap).entry("node_timeout", "2.24").entry("lease", "2").start();
        let mut home = owner(cluster.node(1), 4 * GIB);
        let mut away = Puppet::of_pages(cluster.node(2));
        away.must(&format!("shmget {KEY} 0 010600"));
        for _ in 0..2 {
            assert_eq!(refused(&mut away, "attach 0"), "ENOMEM", "{trap}");
        }
        cluster.node(2).wait_for_log("could not be taken away in time");
        wait_until("nothing is left of it", || {
            (files_held(cluster.node(2)).is_empty() && records_left(cluster.node(2)).is_empty())
                .then_some(())
        });
        assert_eq!(home.must("nattch"), "1");
        home.must("poke 0 3");
        // A small one fits.
        home.must("detach");
        home.must("rmid");
        let mut home = owner(cluster.node(1), 4 * PAGE);
        home.must("poke 0 4");
        assert_eq!(user(cluster.node(2)).must("peek 0"), "4");
    });
}

#[test]
fn segments_from_64_kib_to_1_gib() {
    by_both_traps(|trap| {
        for bytes in [64 << 10, MIB, 16 * MIB, 256 * MIB, GIB] {
            both_ways(trap, bytes);
        }
    });
}

#[test]
fn a_segment_of_4_gib() {
    if is_too_small("a_segment_of_4_gib") {
        return;
    }
    by_both_traps(|trap| both_ways(trap, 4 * GIB));
}

/// Every page, written by one and then read by the other.
#[track_caller]
fn pass_on(writer: &mut Puppet, reader: &mut Puppet, bytes: usize, seed: usize) {
    for at in (0..bytes).step_by(PIECE) {
        writer.must(&format!("fill {at} {PIECE} {seed}"));
    }
    for at in (0..bytes).step_by(PIECE) {
        assert_eq!(reader.must(&format!("check {at} {PIECE} {seed}")), "0", "from {at}");
    }
}

#[test]
fn every_page_of_64_mib_there_and_back() {
    by_both_traps(|trap| {
        let cluster = roomy(trap).start();
        let mut home = owner(cluster.node(1), 64 * MIB);
        let mut away = user(cluster.node(2));
        pass_on(&mut home, &mut away, 64 * MIB, 1);
        pass_on(&mut away, &mut home, 64 * MIB, 2);
        home.must("rmid");
    });
}

/// Bytes of the daemons' own memory, and of their records in files.
fn cost(node: &Node) -> usize {
    let of = |pid: rustix::process::Pid| {
        let path = format!("/proc/{}/smaps_rollup", pid.as_raw_nonzero());
        let text = fs::read_to_string(path).unwrap_or_default();
        let figures = text.lines().filter_map(|line| line.strip_prefix("Pss_Anon:"));
        let kib = |line: &str| line.trim().strip_suffix(" kB")?.parse::<usize>().ok();
        figures.filter_map(kib).sum::<usize>() << 10
    };
    let files = records_left(node).into_iter().filter_map(|path| fs::metadata(path).ok());
    let files: u64 = files.map(|file| file.blocks() * 512).sum();
    daemons(node).into_iter().map(of).sum::<usize>() + files as usize
}

#[test]
fn pages_cost_little() {
    if is_too_small("pages_cost_little") {
        return;
    }
    let cluster = cluster(2, "userfaultfd").alone().start();
    let costs = || [cost(cluster.node(1)), cost(cluster.node(2))];
    // Once before: what is loaded and allocated at the first segment is not its pages' cost.
    let mut home = owner(cluster.node(1), MIB);
    let mut away = user(cluster.node(2));
    away.must(&format!("stride 0 {MIB} {PAGE} 1"));
    home.must("rmid");
    drop((home, away));
    let before = costs();
    let mut home = owner(cluster.node(1), 4 * GIB);
    let mut away = user(cluster.node(2));
    away.must("peek 0");
    let attached = costs();
    let pages = 4 * GIB / PAGE;
    for (node, (was, is)) in before.iter().zip(attached).enumerate() {
        let gain = is.saturating_sub(*was);
        skip::note(&format!("pages_cost_little: {gain} bytes for {pages} untouched pages"));
        assert!(gain < UNTOUCHED_MAX * pages + NOISE, "node {}: {gain} bytes", node + 1);
    }
    let held = 256 * MIB;
    for at in (0..held).step_by(PIECE) {
        away.must(&format!("stride {at} {PIECE} {PAGE} 1"));
    }
    let gain = costs()[0].saturating_sub(attached[0]);
    let pages = held / PAGE;
    skip::note(&format!("pages_cost_little: {gain} bytes at home for {pages} pages held away"));
    assert!(gain < HELD_MAX * pages + NOISE, "{gain} bytes for {pages} pages");
    assert_eq!(number(&mut home, &format!("sum 0 {MIB} {PAGE}")), (MIB / PAGE) as i64);
    home.must("rmid");
}
