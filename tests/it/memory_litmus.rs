//! Litmus tests (`tests/c/litmus.c`) and atomic additions (`tests/c/increments.c`) on real nodes:
//! no outcome that one memory forbids, and no addition lost. 100,000 rounds of each with `--long`.
#![forbid(unsafe_code)]

use std::fs;
use std::time::{Duration, Instant};

use dipc_tests::process::all_succeed;
use dipc_tests::{Cluster, Puppet, Running, programs, skip};

use crate::memory::{KEY, PAGE, TRAPS, by_both_traps, cluster, number, owner};

const ROUNDS: usize = 100_000;
const ROUNDS_PLAIN: usize = 5_000;
/// A page for each of the two variables.
const BYTES: usize = 2 * PAGE;
/// Rounds that take longer than this are stuck: many times what they need.
fn patience() -> Duration {
    Duration::from_secs(if skip::is_long() { 3_600 } else { 600 })
}

/// Where the roles of a test run: the processes, each a node and its roles. Home is node 1.
struct Placement {
    name: &'static str,
    processes: fn(usize) -> Vec<(usize, Vec<String>)>,
}

const PLACEMENTS: [Placement; 3] = [
    Placement { name: "two nodes", processes: |roles| spread(roles, &[1, 2]) },
    Placement { name: "two nodes, home a third", processes: with_home_apart },
    Placement { name: "two threads on one node", processes: with_two_on_one },
];

/// The roles in turn on these nodes.
fn spread(roles: usize, nodes: &[usize]) -> Vec<(usize, Vec<String>)> {
    let on = |at: usize| (at..roles).step_by(nodes.len()).map(|role| role.to_string()).collect();
    nodes.iter().enumerate().map(|(at, node)| (*node, on(at))).collect()
}

fn with_home_apart(roles: usize) -> Vec<(usize, Vec<String>)> {
    let intruder = (1, vec!["intruder".to_owned()]);
    [vec![intruder], spread(roles, &[2, 3])].concat()
}

/// The first two roles as threads of one process, the others elsewhere.
fn with_two_on_one(roles: usize) -> Vec<(usize, Vec<String>)> {
    let pair = (2, vec!["0".to_owned(), "1".to_owned()]);
    let rest = (2..roles).map(|role| role.to_string()).collect::<Vec<_>>();
    let rest = if rest.is_empty() { vec!["intruder".to_owned()] } else { rest };
    vec![(3, rest), pair, (1, vec!["intruder".to_owned()])]
}

/// Runs one test everywhere, without fences and with them.
fn litmus((test, roles): (&str, usize)) {
    for trap in TRAPS {
        let cluster = cluster(3, trap).entry("employer_shm_timeout", "120").start();
        let name = format!("litmus {test} {trap}");
        let rounds = skip::amount(&name, ROUNDS, ROUNDS_PLAIN);
        for fence in ["0", "1"] {
            for placement in &PLACEMENTS {
                let said = run(&cluster, test, rounds, fence, (placement.processes)(roles));
                skip::note(&format!("{trap}, {}: {said}", placement.name));
            }
        }
    }
}

/// One test on two nodes of a cluster whose line allows only so many rounds.
pub fn on_two_nodes(cluster: &Cluster, test: &str, roles: usize, rounds: usize) {
    let said = run(cluster, test, rounds, "0", spread(roles, &[1, 2]));
    skip::note(&format!("{test} on another line: {said}"));
}

/// What the process with role 0 said.
#[track_caller]
fn run(
    cluster: &Cluster,
    test: &str,
    rounds: usize,
    fence: &str,
    processes: Vec<(usize, Vec<String>)>,
) -> String {
    said(start(cluster, test, rounds, fence, &processes))
}

/// Waits for all of them.
#[track_caller]
fn said(running: Vec<Running>) -> String {
    all_succeed(running, patience()).concat().trim().to_owned()
}

fn start(
    cluster: &Cluster,
    test: &str,
    rounds: usize,
    fence: &str,
    processes: &[(usize, Vec<String>)],
) -> Vec<Running> {
    let program = programs::helper("litmus");
    Puppet::of_pages(cluster.node(1)).must(&format!("shmget {KEY} {BYTES} 013600"));
    let (rounds, meeting) = (rounds.to_string(), cluster.directory().join("meeting"));
    // Of the run before.
    let _ = fs::remove_file(&meeting);
    let meeting = meeting.to_str().expect("a plain path");
    let start = |(node, roles): &(usize, Vec<String>)| {
        let mut arguments = vec![test, KEY, &rounds, fence, meeting];
        arguments.extend(roles.iter().map(String::as_str));
        cluster.node(*node).spawn(&program, &arguments)
    };
    processes.iter().map(start).collect()
}

/// Kills one dipcd after the other, and starts it again, as long as one of these runs. How often.
fn kill_dipcds(cluster: &Cluster, running: &mut [Running]) -> usize {
    let (mut kills, end) = (0, Instant::now() + patience());
    while running.iter_mut().any(Running::is_running) && Instant::now() < end {
        // The others would wait for it for ever.
        running.iter_mut().for_each(Running::assert_well);
        kills += 1;
        cluster.node(1 + kills % cluster.nodes().len()).kill_and_restart();
        // Something is to happen in between.
        std::thread::sleep(Duration::from_millis(300));
    }
    kills
}

/// Bounds are wide: a referee that is killed again and again keeps new names waiting.
fn three(trap: &str) -> Cluster {
    let cluster = cluster(3, trap).entry("employer_shm_timeout", "120");
    let cluster = cluster.entry("employer_referee_timeout", "50").entry("referee_timeout", "40");
    cluster.entry("node_timeout", "20").entry("lease", "10").start()
}

#[test]
fn what_is_forbidden_stays_so_while_dipcds_are_killed() {
    by_both_traps(|trap| {
        let cluster = three(trap);
        for (test, roles) in TESTS {
            let rounds = skip::amount(&format!("litmus {test} {trap} killed"), 20_000, 1_000);
            let processes = with_home_apart(roles);
            let mut running = start(&cluster, test, rounds, "0", &processes);
            let kills = kill_dipcds(&cluster, &mut running);
            skip::note(&format!("{trap}, {kills} kills: {}", said(running)));
        }
    });
}

#[test]
fn no_addition_is_lost_while_dipcds_are_killed() {
    by_both_traps(|trap| {
        let cluster = three(trap);
        let mut home = owner(cluster.node(1), 40 * PAGE);
        let mut sum = 0;
        for kind in ["lock", "word", "pages", "swap"] {
            let each = skip::amount(&format!("additions {kind} {trap} killed"), 20_000, 1_000);
            let mut running = start_adding(&cluster, kind, 40, each);
            let kills = kill_dipcds(&cluster, &mut running);
            said(running);
            sum += 6 * each as i64;
            // The lock, which is first, is free afterwards and counts for nothing.
            assert_eq!(number(&mut home, &format!("sum 0 {} 8", 40 * PAGE)), sum, "{kind}");
            skip::note(&format!("{trap}, {kills} kills: {kind}"));
        }
    });
}

/// What is tested, and how many roles each has.
const TESTS: [(&str, usize); 6] =
    [("MP", 2), ("SB", 2), ("LB", 2), ("IRIW", 4), ("CoRR", 3), ("2+2W", 2)];

#[test]
fn message_passing() {
    litmus(TESTS[0]);
}

#[test]
fn store_buffering() {
    litmus(TESTS[1]);
}

#[test]
fn load_buffering() {
    litmus(TESTS[2]);
}

#[test]
fn independent_reads_of_independent_writes() {
    litmus(TESTS[3]);
}

#[test]
fn coherence_of_reads() {
    litmus(TESTS[4]);
}

#[test]
fn two_writes_each() {
    litmus(TESTS[5]);
}

fn start_adding(cluster: &Cluster, kind: &str, pages: usize, each: usize) -> Vec<Running> {
    let program = programs::helper("increments");
    let arguments = [kind, KEY, &pages.to_string(), &each.to_string()];
    let start = |at: usize| cluster.node(1 + at % 3).spawn(&program, &arguments);
    (0..6).map(start).collect()
}

/// Three nodes with two processes each add; the sum of everything must be what they added.
fn additions(kind: &str, pages: usize, long: usize) {
    by_both_traps(|trap| {
        let each = skip::amount(&format!("additions {kind} {trap}"), long, long / 20);
        let cluster = cluster(3, trap).start();
        let bytes = pages * PAGE;
        let mut home = owner(cluster.node(1), bytes);
        let added = said(start_adding(&cluster, kind, pages, each));
        assert_eq!(added.lines().count(), 6, "{added}");
        assert_eq!(number(&mut home, &format!("sum 0 {bytes} 8")), 6 * each as i64);
        home.must("rmid");
    });
}

#[test]
fn additions_to_one_word() {
    additions("word", 1, 200_000);
}

#[test]
fn additions_to_one_page() {
    additions("page", 1, 200_000);
}

#[test]
fn additions_to_many_pages() {
    additions("pages", 40, 40_000);
}

#[test]
fn additions_by_compare_and_swap() {
    additions("swap", 8, 40_000);
}

#[test]
fn additions_with_a_spin_lock() {
    additions("lock", 8, 20_000);
}
