//! Futexes across nodes: the C library's process-shared locks work between them, a sleeper wakes
//! when its word may have changed, wherever that was, and sleepers of unchanged words stay asleep.
//! Only a full userfaultfd serves them. How soon a wake-up comes is measured by the bench.
#![forbid(unsafe_code)]

use std::fs;
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use dipc_tests::process::{all_succeed, wait_until};
use dipc_tests::{Cluster, Puppet, Running, programs, skip};

use crate::memory::{KEY, PAGE, cluster, number, owner, user};

/// What a test of locks may take.
const PATIENCE: Duration = Duration::from_secs(600);

fn by_userfaultfd(nodes: usize) -> Cluster {
    cluster(nodes, "userfaultfd").entry("employer_shm_timeout", "120").start()
}

/// Processes in turn on all nodes do rounds with one kind of lock.
fn together(kind: &str, count: usize, long: usize) {
    let rounds = skip::amount(&format!("locks {kind}"), long, long / 20);
    for nodes in [2, 3] {
        let cluster = by_userfaultfd(nodes);
        let program = programs::helper("sync");
        let arguments = [kind, KEY, &count.to_string(), &rounds.to_string()];
        let start = |at: usize| cluster.node(1 + at % nodes).spawn(&program, &arguments);
        let running: Vec<Running> = (0..count).map(start).collect();
        for said in all_succeed(running, PATIENCE) {
            assert_eq!(said, format!("{kind}: {rounds} rounds, 0 wrong\n"), "{nodes} nodes");
        }
    }
}

#[test]
fn mutexes() {
    together("mutex", 6, 10_000);
}

#[test]
fn condition_variables() {
    together("cond", 4, 4_000);
}

#[test]
fn read_write_locks() {
    together("rwlock", 6, 10_000);
}

#[test]
fn barriers() {
    together("barrier", 4, 4_000);
}

#[test]
fn semaphores_of_posix() {
    together("sem", 6, 6_000);
}

#[test]
fn spin_locks() {
    together("spin", 4, 10_000);
}

/// A puppet that sleeps on a word that is 0.
#[track_caller]
fn sleeper(node: &dipc_tests::Node, at: usize) -> Puppet {
    let mut puppet = user(node);
    puppet.begin(&format!("wait {at} 0"));
    puppet.until_waiting();
    puppet
}

/// The end of a sleep. Whoever comes so late, on a busy machine, that the word has changed already
/// is told so (EAGAIN of futex(2)); to the C library that is the same.
#[track_caller]
fn wakes(puppet: &mut Puppet) {
    let answer = puppet.answer();
    assert!(answer.is_ok() || answer.as_ref().is_err_and(|errno| errno == "EAGAIN"), "{answer:?}");
}

#[test]
fn a_sleeper_wakes_wherever_the_word_is_changed() {
    let cluster = by_userfaultfd(3);
    let mut home = owner(cluster.node(1), 4 * PAGE);
    let mut away = user(cluster.node(3));
    for round in 0..6 {
        let at = 64 * round;
        let mut sleepers = [1, 2, 2, 3].map(|node| sleeper(cluster.node(node), at));
        let waker = if round % 2 == 0 { &mut home } else { &mut away };
        waker.must(&format!("poke {at} 1"));
        waker.must(&format!("wake {at} 100"));
        for puppet in &mut sleepers {
            wakes(puppet);
        }
    }
}

#[test]
fn a_sleeper_that_was_there_first_is_found_after_dipcd_restarts() {
    let cluster = by_userfaultfd(2);
    let mut home = owner(cluster.node(1), PAGE);
    let mut asleep = sleeper(cluster.node(2), 128);
    cluster.node(2).kill_and_restart();
    cluster.node(1).kill_and_restart();
    home.must("poke 128 1");
    home.must("wake 128 1");
    wakes(&mut asleep);
}

/// How often a process has given up the processor by itself.
fn sleeps(puppet: &Puppet) -> u64 {
    let path = format!("/proc/{}/status", puppet.process().pid());
    let text = fs::read_to_string(path).expect("it runs");
    let line = text.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
    line.expect("a process has one").trim().parse().expect("a number")
}

/// Whether a process is still in the system call futex.
fn is_in_futex(puppet: &Puppet) -> bool {
    let path = format!("/proc/{}/syscall", puppet.process().pid());
    let text = fs::read_to_string(path).expect("it runs");
    text.starts_with(&format!("{} ", libc::SYS_futex))
}

#[test]
fn sleepers_of_an_unchanged_word_do_not_wake_each_other() {
    let cluster = by_userfaultfd(3);
    let mut home = owner(cluster.node(1), PAGE);
    let mut sleepers = [2, 3].map(|node| sleeper(cluster.node(node), 0));
    // Other words of their page change all the time.
    let before: u64 = sleepers.iter().map(sleeps).sum();
    let mut away = user(cluster.node(2));
    for round in 1..200 {
        home.must(&format!("poke 512 {round}"));
        assert_eq!(number(&mut away, "add 1024 1"), round);
    }
    let woken = sleepers.iter().map(sleeps).sum::<u64>() - before;
    assert!(woken < 50, "{woken} wake-ups of nobody");
    for puppet in &sleepers {
        assert!(is_in_futex(puppet), "it was woken for nothing");
    }
    home.must("poke 0 1");
    home.must("wake 0 10");
    for puppet in &mut sleepers {
        wakes(puppet);
    }
}

/// How often the thread of a dipcd that looks after sleepers has been awake.
fn looks(node: &dipc_tests::Node) -> u64 {
    let tasks = fs::read_dir(format!("/proc/{}/task", node.dipcd_pid())).expect("it runs");
    let mut tasks = tasks.map(|task| task.expect("an entry").path());
    let is_it = |task: &PathBuf| {
        fs::read_to_string(task.join("comm")).is_ok_and(|name| name == "sleepers\n")
    };
    let task = tasks.find(is_it).expect("dipcd has such a thread");
    let text = fs::read_to_string(task.join("status")).expect("it runs");
    let line = text.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
    line.expect("a thread has one").trim().parse().expect("a number")
}

/// Over a second of the test in which nothing happens.
fn looks_in_a_second(node: &dipc_tests::Node) -> u64 {
    let before = looks(node);
    thread::sleep(Duration::from_secs(1));
    looks(node) - before
}

#[test]
fn nothing_is_polled_while_nobody_sleeps() {
    let cluster = by_userfaultfd(2);
    let mut home = owner(cluster.node(1), PAGE);
    let mut away = user(cluster.node(2));
    for round in 0..100 {
        assert_eq!(number(&mut home, "add 0 1"), 2 * round + 1);
        assert_eq!(number(&mut away, "add 0 1"), 2 * round + 2);
    }
    // A program that only runs is no reason to look for long either.
    away.begin("spin");
    home.must("poke 0 1");
    for number in [1, 2] {
        // Twice: on a busy machine a thread may stand still for one of them.
        wait_until(&format!("the looks of node {number} cease"), || {
            let is_over = || looks_in_a_second(cluster.node(number)) == 0;
            (is_over() && is_over()).then_some(())
        });
    }
}

#[test]
fn who_uses_what_does_not_work_between_nodes_is_named_once() {
    let cluster = by_userfaultfd(2);
    let mut home = owner(cluster.node(1), PAGE);
    // As the C library writes it into a robust mutex: somebody waits, and whose it is.
    let word = 0x8000_0000_u32 + 4711;
    home.must(&format!("poke 0 {word}"));
    let mut robust = user(cluster.node(2));
    robust.begin(&format!("wait 0 {word}"));
    robust.until_waiting();
    let mut inheriting = user(cluster.node(2));
    // Its owner must be somebody: this very puppet waits for itself, and is told so.
    home.must(&format!("poke 512 {}", robust.process().pid()));
    inheriting.begin("inherit 512");
    inheriting.until_waiting();
    for round in 1..=20 {
        home.must(&format!("poke 1024 {round}"));
        cluster.node(2).wait_for_log("robust mutex");
        cluster.node(2).wait_for_log("priority inheritance");
    }
    let log = cluster.node(2).log();
    for words in ["robust mutex", "priority inheritance"] {
        assert_eq!(log.matches(words).count(), 1, "{words}\n{log}");
    }
}
