//! Shared memory over the other roads between nodes: datagrams in a storm and over restarts,
//! network byte order, and a line across an ocean. Each compares what one node wrote with what
//! another reads, adds with atomic instructions on all nodes, and runs litmus tests.
#![forbid(unsafe_code)]

use dipc_tests::process::{PATIENCE, all_succeed};
use dipc_tests::{Cluster, Puppet, Weather, programs, skip};

use crate::memory::{KEY, PAGE, agree, number, owner, user};
use crate::memory_litmus::on_two_nodes;
use crate::transports::under;

/// Pages that are compared where the line is quick.
const PAGES: usize = 24;

/// How much is done: each page, each round of a litmus test and each addition may cost some round
/// trips.
struct Work {
    pages: usize,
    rounds: usize,
    additions: usize,
}

/// Three nodes or two share memory as they should.
fn share(cluster: &Cluster, work: &Work) {
    let nodes = cluster.nodes();
    let (mut home, mut away) = (owner(&nodes[0], work.pages * PAGE), user(&nodes[nodes.len() - 1]));
    agree(&mut home, &mut away, work.pages * PAGE, 1);
    agree(&mut away, &mut home, work.pages * PAGE, 2);
    home.must(&format!("fill 0 {PAGE} 0"));
    add(cluster, &mut home, work.additions);
    home.must("rmid");
    drop((home, away));
    for (test, roles) in [("MP", 2), ("SB", 2), ("CoRR", 3)] {
        on_two_nodes(cluster, test, roles, work.rounds);
    }
}

/// A process on each node adds to one word; the sum is what they added.
fn add(cluster: &Cluster, home: &mut Puppet, each: usize) {
    home.must("poke 0 0");
    let before = number(home, &format!("sum 0 {PAGE} 8"));
    let program = programs::helper("increments");
    let arguments = ["word", KEY, "1", &each.to_string()];
    let start = |node: &dipc_tests::Node| node.spawn(&program, &arguments);
    let running: Vec<_> = cluster.nodes().iter().map(start).collect();
    for said in all_succeed(running, PATIENCE) {
        assert_eq!(said, format!("added {each}\n"));
    }
    let added = number(home, &format!("sum 0 {PAGE} 8")) - before;
    assert_eq!(added, (cluster.nodes().len() * each) as i64);
}

#[test]
fn segments_over_datagrams_in_a_storm() {
    let name = "segments_over_datagrams_in_a_storm";
    let builder = Cluster::of(3).option("-u").entry("employer_shm_timeout", "0");
    if let Some(cluster) = under(name, Weather::STORM, builder) {
        let rounds = skip::amount(name, 600, 30);
        share(&cluster, &Work { pages: PAGES, rounds, additions: 10 * rounds });
    }
}

#[test]
fn segments_over_datagrams_while_every_dipcd_is_restarted() {
    let cluster = Cluster::of(3).option("-u").entry("employer_shm_timeout", "0").start();
    let (mut home, mut away) = (owner(cluster.node(1), PAGES * PAGE), user(cluster.node(3)));
    for (seed, node) in cluster.nodes().iter().enumerate() {
        agree(&mut home, &mut away, PAGES * PAGE, seed);
        node.kill_and_restart();
        agree(&mut away, &mut home, PAGES * PAGE, 10 + seed);
    }
}

#[test]
fn segments_in_network_byte_order() {
    let cluster = Cluster::of(3).option("-n").entry("employer_shm_timeout", "0").start();
    share(&cluster, &Work { pages: PAGES, rounds: 100, additions: 1_000 });
}

/// Each round takes some crossings of 150 ms.
#[test]
fn segments_across_an_ocean() {
    let name = "segments_across_an_ocean";
    for option in ["", "-u"] {
        let builder = Cluster::of(2).entry("employer_shm_timeout", "0");
        let builder = if option.is_empty() { builder } else { builder.option(option) };
        if let Some(cluster) = under(name, Weather::OCEAN, builder) {
            let rounds = skip::amount(name, 40, 2);
            share(&cluster, &Work { pages: 3, rounds, additions: 8 * rounds });
        }
    }
}
