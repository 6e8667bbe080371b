//! Programs that guard their data with semaphores, on several nodes: a lock is never held twice,
//! never lost with its holder, and barriers and ranks work.
#![forbid(unsafe_code)]

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use dipc_tests::process::wait_until;
use dipc_tests::{Cluster, Puppet, Running, programs, skip};
use rustix::process::Signal;

const KEY: &str = "115";
const NODES: usize = 3;
const PROCESSES: usize = 12;
/// How long all rounds of one test may take.
const TOTAL_TIME: Duration = Duration::from_secs(900);

fn lock_at_home_on_the_second_node(cluster: &Cluster) -> Puppet {
    let mut owner = Puppet::on(cluster.node(2));
    owner.must(&format!("semget {KEY} 2 011600"));
    owner.must("setval 0 1");
    owner
}

/// Neither left locked nor released too often; what is still to be undone takes a moment.
#[track_caller]
fn assert_free(owner: &mut Puppet) {
    let values = |owner: &mut Puppet| [0, 1].map(|number| owner.must(&format!("value {number}")));
    wait_until("the lock is free", || (values(owner)[0] != "0").then_some(()));
    assert_eq!(values(owner), ["1", "0"]);
    owner.must("remove");
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
    let rounds = skip::amount("one_holder_at_a_time", 50_000, 10_000).div_ceil(PROCESSES);
    let file = cluster.directory().join("counter");
    let all: Vec<Running> =
        (0..PROCESSES).map(|number| counter(&cluster, number, &file, rounds)).collect();
    for process in all {
        process.wait_within(TOTAL_TIME).expect_success();
    }
    assert_eq!(value(&file), rounds * PROCESSES);
    assert_free(&mut owner);
}

#[test]
fn one_holder_at_a_time_while_every_dipcd_is_killed() {
    let name = "one_holder_at_a_time_while_every_dipcd_is_killed";
    let cluster = Cluster::of(NODES).alone().start();
    let mut owner = lock_at_home_on_the_second_node(&cluster);
    let rounds = skip::amount(name, 50_000, 10_000).div_ceil(PROCESSES);
    let file = cluster.directory().join("counter");
    let mut all: Vec<Running> =
        (0..PROCESSES).map(|number| counter(&cluster, number, &file, rounds)).collect();
    let (mut restarts, end) = (0, Instant::now() + TOTAL_TIME);
    while restarts < 2 || all.iter_mut().any(Running::is_running) && Instant::now() < end {
        let next = Instant::now() + Duration::from_secs(1);
        for node in cluster.nodes() {
            node.kill_and_restart();
        }
        restarts += 1;
        std::thread::sleep(next.saturating_duration_since(Instant::now()));
    }
    for process in all {
        process.wait().expect_success();
    }
    skip::note(&format!("{name}: {restarts} restarts of {NODES} dipcds"));
    assert_eq!(value(&file), rounds * PROCESSES, "after {restarts} restarts");
    assert_free(&mut owner);
}

/// Processes that add records to a file, each under the lock; the file's length is the counter.
struct Crew<'a> {
    cluster: &'a Cluster,
    file: PathBuf,
    total: usize,
    /// Each with its number, which no other ever has.
    members: HashMap<usize, Running>,
    hired: usize,
}

impl Crew<'_> {
    fn hire(&mut self) {
        self.hired += 1;
        let (number, total) = (self.hired.to_string(), self.total.to_string());
        let path = self.file.to_str().expect("a plain path");
        let arguments = ["record", KEY, path, &number, &total];
        let node = self.cluster.node(1 + self.hired % NODES);
        let member = node.spawn(programs::helper("sets"), &arguments);
        self.members.insert(self.hired, member);
    }

    /// Who says that it holds the lock; 0 for nobody.
    fn holder(&self) -> usize {
        let text = fs::read_to_string(&self.file).unwrap_or_default();
        text.get(..7).and_then(|number| number.parse().ok()).unwrap_or(0)
    }

    /// Kills a process that certainly holds the lock: one that still does once it is stopped.
    fn kill_the_holder(&mut self) -> bool {
        let number = self.holder();
        let Some(member) = self.members.get(&number) else { return false };
        member.signal(Signal::STOP);
        wait_until("it stops", || has_stopped(member).then_some(()));
        if self.holder() != number {
            member.signal(Signal::CONT);
            return false;
        }
        member.signal(Signal::KILL);
        self.members.remove(&number);
        true
    }
}

/// Stopped or ended: in any case it does nothing now.
fn has_stopped(process: &Running) -> bool {
    let stat = fs::read_to_string(format!("/proc/{}/stat", process.pid())).unwrap_or_default();
    stat.rsplit_once(") ").is_none_or(|(_, rest)| rest.starts_with(['T', 'Z']))
}

#[test]
fn a_holder_that_is_killed_gives_its_lock_back() {
    let name = "a_holder_that_is_killed_gives_its_lock_back";
    let cluster = Cluster::of(NODES).alone().start();
    let mut owner = lock_at_home_on_the_second_node(&cluster);
    let total = skip::amount(name, 50_000, 10_000);
    let file = cluster.directory().join("records");
    let members = HashMap::new();
    let mut crew = Crew { cluster: &cluster, file: file.clone(), total, members, hired: 0 };
    for _ in 0..PROCESSES {
        crew.hire();
    }
    let (mut kills, end) = (0, Instant::now() + TOTAL_TIME);
    while crew.members.values_mut().all(Running::is_running) && Instant::now() < end {
        let next = Instant::now() + Duration::from_millis(100);
        while Instant::now() < next {
            if crew.kill_the_holder() {
                kills += 1;
                crew.hire();
                break;
            }
        }
        std::thread::sleep(next.saturating_duration_since(Instant::now()));
    }
    let own: Vec<(usize, String)> = crew
        .members
        .drain()
        .map(|(number, member)| (number, member.wait().expect_success()))
        .collect();
    skip::note(&format!("{name}: {kills} holders killed"));
    assert!(kills > 0, "nobody was killed");
    let records = records(&file);
    let counted: usize = records.values().sum();
    assert_eq!(counted, total, "after {kills} kills");
    for (number, rounds) in own {
        let found = records.get(&number).copied().unwrap_or(0);
        assert_eq!(found.to_string(), rounds.trim(), "of process {number}");
    }
    assert_free(&mut owner);
}

/// How many records each process has; they must be its rounds, in order and without a gap.
fn records(file: &Path) -> HashMap<usize, usize> {
    let text = fs::read_to_string(file).expect("there is a first record");
    let mut records = HashMap::new();
    for line in text.lines().skip(1) {
        let (number, round) = line.split_once(' ').expect("two numbers");
        let [number, round] = [number, round].map(|text| text.parse().expect("a number"));
        let count: &mut usize = records.entry(number).or_default();
        assert_eq!(*count, round, "process {number} lost a record");
        *count += 1;
    }
    records
}

#[test]
fn threads_of_one_process_keep_each_other_out() {
    let cluster = Cluster::start(NODES);
    let mut owner = lock_at_home_on_the_second_node(&cluster);
    let start =
        |node| cluster.node(node).spawn(programs::helper("sets"), &["threads", KEY, "4", "60"]);
    for process in [1, 2, 3].map(start) {
        assert_eq!(process.wait().expect_success(), "240\n");
    }
    assert_free(&mut owner);
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
