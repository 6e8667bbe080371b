//! What the chapters of shared memory share: clusters by either trap, puppets that hold a segment,
//! and what is left of segments on a node.
#![forbid(unsafe_code)]
#![allow(dead_code)] // Each chapter uses its part.

use std::fs;
use std::path::PathBuf;

use dipc_tests::{Builder, Cluster, Node, Puppet, programs};
use rustix::process::Pid;

/// Both ways in which a program's touching of an absent page becomes known.
pub const TRAPS: [&str; 2] = ["userfaultfd", "mprotect"];
/// The key of the tests' segment.
pub const KEY: &str = "0x5e60000";
/// The system's page.
pub const PAGE: usize = 4096;

/// Runs a test with each trap.
pub fn by_both_traps(test: impl Fn(&str)) {
    for trap in TRAPS {
        eprintln!("---- trap = {trap}");
        test(trap);
    }
}

/// Nodes whose programs' pages are served by that trap.
pub fn cluster(nodes: usize, trap: &str) -> Builder {
    Cluster::of(nodes).entry("trap", trap)
}

/// The same, and a node that says nothing is soon lost, but not one that a busy machine makes late.
pub fn impatient(nodes: usize, trap: &str) -> Builder {
    cluster(nodes, trap)
        .entry("node_timeout", "4")
        .entry("lease", "2")
        .entry("heartbeat", "0.2")
        .entry("employer_referee_timeout", "9")
        .entry("referee_timeout", "6")
}

/// Nodes that have all the time that anything may take on a busy machine.
pub fn patient(nodes: usize, trap: &str) -> Builder {
    let entries = [("node_timeout", "120"), ("lease", "60"), ("employer_shm_timeout", "0")];
    let builder = cluster(nodes, trap);
    entries.into_iter().fold(builder, |builder, (name, value)| builder.entry(name, value))
}

/// Two nodes on which a fault waits three seconds, which is enough for any that is answered.
pub fn soon_refused(trap: &str) -> Cluster {
    let builder = cluster(2, trap).entry("node_timeout", "120").entry("lease", "60");
    builder.entry("employer_shm_timeout", "3").start()
}

/// A puppet that has made the tests' segment on its node, and attached it.
#[track_caller]
pub fn owner(node: &Node, bytes: usize) -> Puppet {
    let mut puppet = Puppet::of_pages(node);
    puppet.must(&format!("shmget {KEY} {bytes} 013600"));
    puppet.must("attach 0");
    puppet
}

/// A puppet that has attached it.
#[track_caller]
pub fn user(node: &Node) -> Puppet {
    let mut puppet = Puppet::of_pages(node);
    puppet.must(&format!("shmget {KEY} 0 010600"));
    puppet.must("attach 0");
    puppet
}

/// A number that a puppet gives.
#[track_caller]
pub fn number(puppet: &mut Puppet, line: &str) -> i64 {
    puppet.must(line).parse().expect("a puppet gives numbers")
}

/// What a puppet got: a signal or an errno; panics when the line succeeded.
#[track_caller]
pub fn refused(puppet: &mut Puppet, line: &str) -> String {
    match puppet.call(line) {
        Ok(result) => panic!("{line} gave {result}"),
        Err(why) => why,
    }
}

/// Both see the same numbers in these pages, wherever they were written.
#[track_caller]
pub fn agree(writer: &mut Puppet, reader: &mut Puppet, bytes: usize, seed: usize) {
    writer.must(&format!("fill 0 {bytes} {seed}"));
    assert_eq!(reader.must(&format!("check 0 {bytes} {seed}")), "0");
}

/// The daemons of a node: dipcd, its keeper and stand-ins.
pub fn daemons(node: &Node) -> Vec<Pid> {
    let mut all = node.keepers();
    all.extend(Pid::from_raw(node.dipcd_pid() as i32));
    all
}

/// Files of segments that daemons of a node still hold: the names of their memfds.
pub fn files_held(node: &Node) -> Vec<String> {
    let of = |pid: Pid| {
        let directory = format!("/proc/{}/fd", pid.as_raw_nonzero());
        let entries = fs::read_dir(directory).into_iter().flatten().flatten();
        let links = entries.filter_map(|entry| fs::read_link(entry.path()).ok());
        links.map(|link| link.to_string_lossy().into_owned()).collect::<Vec<_>>()
    };
    let held = daemons(node).into_iter().flat_map(of);
    held.filter(|link| link.starts_with("/memfd:dipc-")).collect()
}

/// Files in the node's `state_dir/segments`.
pub fn records_left(node: &Node) -> Vec<PathBuf> {
    let directory = node.directory().join("state/segments");
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).collect()
}

/// One of the C programs of shared memory.
pub fn program(name: &str) -> PathBuf {
    programs::helper(name)
}
