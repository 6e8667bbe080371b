//! The examples across nodes, with what they print: a barrier of processes that take their own
//! ranks, and a bounded buffer between two nodes. (The first program has its own chapter, hello;
//! those that compute in shared memory have memory_examples.)
#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::process::Command;

use dipc_tests::process::wait_until;
use dipc_tests::{Cluster, Limits, Machine, Puppet, Running, machine::Network, programs, skip};

const WAITING: &str = "consumer: waiting for a producer...\n";

/// Runs `count` processes of the barrier, each on the node that `place` says, and expects every
/// rank once.
#[track_caller]
fn meet(cluster: &Cluster, count: usize, place: impl Fn(usize) -> usize) {
    let barrier = programs::example("barrier");
    let argument = count.to_string();
    let start = |number: usize| cluster.node(place(number)).spawn(&barrier, &[&argument]);
    let all: Vec<Running> = (0..count).map(start).collect();
    let said: BTreeSet<String> =
        all.into_iter().map(|process| process.wait().expect_success()).collect();
    let line = |rank| format!("barrier: rank {rank} of {count}: all were there each time\n");
    assert_eq!(said, (0..count).map(line).collect());
}

#[test]
fn a_barrier_of_eight_on_three_nodes_and_again() {
    let cluster = Cluster::start(3);
    meet(&cluster, 8, |number| 1 + number % 3);
    // It has removed its sets: the same keys serve again, with other homes.
    meet(&cluster, 8, |number| 3 - number % 3);
    meet(&cluster, 1, |_| 2);
}

#[test]
fn a_barrier_has_no_rank_for_one_too_many() {
    let cluster = Cluster::start(2);
    let barrier = programs::example("barrier");
    let first = cluster.node(1).spawn(&barrier, &["2"]);
    // Its rank is the set of the first key.
    let mut other = Puppet::on(cluster.node(2));
    wait_until("the rank is taken", || other.call("semget 4200 0 010600").ok());
    // To this one the ranks are one only, and the first has it.
    let surplus = cluster.node(2).run(&barrier, &["1"]);
    assert_eq!((surplus.status.code(), surplus.out.as_str()), (Some(20), ""));
    assert_eq!(surplus.err, "barrier: all 1 ranks are taken\n");
    cluster.node(2).run(&barrier, &["2"]).expect_success();
    first.wait().expect_success();
}

/// The consumer makes the buffer, so its node is the buffer's home.
#[track_caller]
fn produce_and_consume(cluster: &Cluster, consumer: usize, producer: usize) {
    let nobody = cluster.node(producer).run(programs::example("producer"), &[]);
    assert_eq!(nobody.err, "producer: semget() failed BECAUSE No such file or directory\n");
    assert_eq!(nobody.status.code(), Some(20));
    let takes = cluster.node(consumer).spawn(programs::example("consumer"), &[]);
    takes.wait_for(WAITING);
    let puts = cluster.node(producer).run(programs::example("producer"), &["500"]);
    assert_eq!(puts.expect_success(), "producer: 500 numbers\n");
    assert_eq!(takes.wait().expect_success(), "consumer: 500 numbers in order, sum 125250\n");
}

#[test]
fn a_bounded_buffer_between_two_nodes() {
    let cluster = Cluster::start(3);
    produce_and_consume(&cluster, 1, 2);
    produce_and_consume(&cluster, 3, 2);
    produce_and_consume(&cluster, 2, 2);
}

#[test]
fn the_examples_on_one_machine_without_dipc() {
    if skip::needs_root("the_examples_on_one_machine_without_dipc") {
        return;
    }
    let machine = Machine::new(Limits::Usual, Network::Shared);
    let takes = machine.spawn(Command::new(programs::example("consumer")));
    takes.wait_for(WAITING);
    machine.run(Command::new(programs::example("producer"))).expect_success();
    assert_eq!(takes.wait().expect_success(), "consumer: 1000 numbers in order, sum 500500\n");
    let mut barrier = Command::new(programs::example("barrier"));
    barrier.arg("1");
    let said = machine.run(barrier).expect_success();
    assert_eq!(said, "barrier: rank 0 of 1: all were there each time\n");
    let rows =
        [("pi", "3.14159265"), ("matrix", "200 x 200, 0 wrong"), ("counter", "1000 of 1000")];
    for (name, words) in rows {
        let mut example = Command::new(programs::example(name));
        example.arg("1");
        let said = machine.run(example).expect_success();
        assert!(said.contains(words), "{name}: {said}");
    }
}
