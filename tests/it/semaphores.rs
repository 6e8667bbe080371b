//! Programs that guard their data with semaphores, on several nodes: a lock is never held twice,
//! never lost with its holder, and barriers and ranks work.
#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use dipc_tests::process::PATIENCE;
use dipc_tests::{Cluster, Puppet, Running, programs, skip};
use rustix::process::Signal;

const KEY: &str = "115";
const NODES: usize = 3;
const PROCESSES: usize = 12;

fn lock_at_home_on_the_second_node(cluster: &Cluster) -> Puppet {
    let mut owner = Puppet::on(cluster.node(2));
    owner.must(&format!("semget {KEY} 2 011600"));
    owner.must("setval 0 1");
    owner
}

fn counter(cluster: &Cluster, number: usize, file: &Path, rounds: usize) -> Running {
    let path = file.to_str().expect("a plain path");
    let arguments = ["count", KEY, path, &rounds.to_string()];
    cluster.node(1 + number % NODES).spawn(programs::helper("sets"), &arguments)
}

fn value(file: &Path) -> usize {
    let text = fs::read_to_string(file).expect("the counters made the file");
    text.trim().parse().expect("a number")
}

#[test]
fn one_holder_at_a_time() {
    let cluster = Cluster::of(NODES).alone().start();
    let mut owner = lock_at_home_on_the_second_node(&cluster);
    let rounds = skip::amount("one_holder_at_a_time", 50_000, 2_520) / PROCESSES;
    let file = cluster.directory().join("counter");
    let all: Vec<Running> =
        (0..PROCESSES).map(|number| counter(&cluster, number, &file, rounds)).collect();
    for process in all {
        process.wait().expect_success();
    }
    assert_eq!(value(&file), rounds * PROCESSES);
    assert_eq!((owner.must("value 0"), owner.must("value 1")), ("1".into(), "0".into()));
    owner.must("remove");
}

#[test]
fn a_holder_that_is_killed_gives_its_lock_back() {
    let cluster = Cluster::of(NODES).alone().start();
    let mut owner = lock_at_home_on_the_second_node(&cluster);
    let name = "a_holder_that_is_killed_gives_its_lock_back";
    let rounds = skip::amount(name, 50_000, 2_520) / PROCESSES;
    let file = cluster.directory().join("counter");
    // Two are killed again and again; the others must be able to finish.
    let survivors: Vec<Running> =
        (2..PROCESSES).map(|number| counter(&cluster, number, &file, rounds)).collect();
    let mut victims = [0, 1].map(|number| counter(&cluster, number, &file, usize::MAX >> 40));
    let mut kills = 0;
    let mut survivors_run = survivors;
    let end = Instant::now() + PATIENCE;
    while survivors_run.iter_mut().any(Running::is_running) && Instant::now() < end {
        std::thread::sleep(Duration::from_millis(100));
        let number = kills % 2;
        victims[number].signal(Signal::KILL);
        victims[number] = counter(&cluster, number, &file, usize::MAX >> 40);
        kills += 1;
    }
    drop(victims);
    let finished = survivors_run.len();
    for process in survivors_run {
        process.wait().expect_success();
    }
    assert!(value(&file) >= rounds * finished, "lost updates after {kills} kills");
    dipc_tests::process::wait_until("the lock is free", || {
        (owner.must("value 0") == "1" && owner.must("value 1") == "0").then_some(())
    });
    owner.must("remove");
}

#[test]
fn a_barrier_of_eight_processes_on_three_nodes() {
    const COUNT: usize = 8;
    let cluster = Cluster::start(NODES);
    let mut owner = Puppet::on(cluster.node(1));
    owner.must(&format!("semget {KEY} 3 011600"));
    for gate in 0..3 {
        owner.must(&format!("setval {gate} {COUNT}"));
    }
    let arguments = ["barrier", KEY, &COUNT.to_string()];
    let start = |number: usize| {
        cluster.node(1 + number % NODES).spawn(programs::helper("sets"), &arguments)
    };
    let mut all: Vec<Running> = (1..COUNT).map(start).collect();
    for process in &all {
        process.wait_for("arrived 0");
    }
    assert_eq!(owner.must("value 0"), "1");
    all.push(start(0));
    for process in all {
        let out = process.wait().expect_success();
        assert_eq!(out.matches("passed").count(), 3, "{out}");
    }
    owner.must("remove");
}

#[test]
fn ranks_are_given_out_once() {
    const COUNT: usize = 8;
    let cluster = Cluster::start(NODES);
    let arguments = ["rank", "1150", &COUNT.to_string()];
    let start = |number: usize| {
        cluster.node(1 + number % NODES).spawn(programs::helper("sets"), &arguments)
    };
    let all: Vec<Running> = (0..COUNT).map(start).collect();
    let ranks: BTreeSet<String> =
        all.into_iter().map(|process| process.wait().expect_success()).collect();
    assert_eq!(ranks.len(), COUNT, "{ranks:?}");
    let mut owner = Puppet::on(cluster.node(2));
    for rank in 0..COUNT {
        owner.must(&format!("semget {} 1 010600", 1150 + rank));
        owner.must("remove");
    }
}

#[test]
fn waiters_are_counted_and_uncounted() {
    let cluster = Cluster::start(2);
    let mut owner = Puppet::on(cluster.node(1));
    owner.must(&format!("semget {KEY} 1 011600"));
    let mut waiters: Vec<Puppet> = (0..3).map(|_| Puppet::on(cluster.node(2))).collect();
    for (index, waiter) in waiters.iter_mut().enumerate() {
        waiter.must(&format!("semget {KEY} 1 010600"));
        waiter.begin("op 0 -1");
        dipc_tests::process::wait_until("a waiter is counted", || {
            (owner.must("waiters 0") == (index + 1).to_string()).then_some(())
        });
    }
    waiters.remove(1).kill();
    dipc_tests::process::wait_until("the killed one is not counted", || {
        (owner.must("waiters 0") == "2").then_some(())
    });
    for mut waiter in waiters {
        owner.must("op 0 1");
        assert_eq!(waiter.answer(), Ok("0".into()));
    }
    owner.must("remove");
}
