//! Each message is received once (invariants 4 and 5): 8 senders and 8 receivers on 3 nodes and one
//! queue; undisturbed, while receivers are killed, and while every dipcd is killed and restarted.
#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use dipc_tests::process::PATIENCE;
use dipc_tests::{Builder, Cluster, Puppet, Running, programs, skip};
use rustix::process::Signal;

const SENDERS: usize = 8;
const RECEIVERS: usize = 8;
const NODES: usize = 3;
const KEY: &str = "113";
const TYPES: usize = 3;
/// A sender's pause before each message, so that restarts fall among the messages: 10,000 of them
/// take 20 seconds.
const SLOWLY: Duration = Duration::from_millis(16);

/// One message that was received: sender, type, number.
type Record = (usize, usize, usize);

/// A queue at home on node 1, and what its users leave.
struct Traffic {
    cluster: Cluster,
    program: PathBuf,
    owner: Puppet,
    messages_each: usize,
    receivers_ever: usize,
}

impl Traffic {
    fn begin(name: &str, long: usize, plain: usize) -> Traffic {
        Traffic::begin_in(Cluster::of(NODES).alone().start(), name, long, plain)
    }

    fn begin_in(cluster: Cluster, name: &str, long: usize, plain: usize) -> Traffic {
        let mut owner = Puppet::on(cluster.node(1));
        owner.must(&format!("msgget {KEY} 011600"));
        let messages_each = skip::amount(name, long, plain) / SENDERS;
        let program = programs::helper("traffic");
        Traffic { cluster, program, owner, messages_each, receivers_ever: 0 }
    }

    fn file(&self, receiver: usize) -> PathBuf {
        self.cluster.directory().join(format!("received-{receiver}"))
    }

    fn receiver(&mut self) -> Running {
        let number = self.receivers_ever;
        self.receivers_ever += 1;
        let file = self.file(number);
        let node = self.cluster.node(1 + number % NODES);
        let path = file.to_str().expect("a plain path");
        let receiver = node.spawn(&self.program, &["receive", KEY, path]);
        receiver.wait_for("ready");
        receiver
    }

    /// Senders that pause before each message.
    fn senders(&self, pause: Duration) -> Vec<Running> {
        let (count, pause) = (self.messages_each.to_string(), pause.as_micros().to_string());
        let sender = |number: usize| {
            let node = self.cluster.node(1 + number % NODES);
            node.spawn(&self.program, &["send", KEY, &number.to_string(), &count, &pause])
        };
        (0..SENDERS).map(sender).collect()
    }

    /// Lets the receivers end, and takes what is left in the queue as one more receiver's.
    fn end(&mut self, receivers: Vec<Running>) -> Vec<Vec<Record>> {
        let node = self.cluster.node(2);
        let count = receivers.len().to_string();
        node.run(&self.program, &["stop", KEY, &count]).expect_success();
        for receiver in receivers {
            receiver.wait().expect_success();
        }
        let rest = self.file(self.receivers_ever);
        let path = rest.to_str().expect("a plain path");
        node.run(&self.program, &["drain", KEY, path]).expect_success();
        self.owner.must("remove");
        (0..=self.receivers_ever).map(|number| records(&self.file(number))).collect()
    }
}

fn records(file: &PathBuf) -> Vec<Record> {
    let text = fs::read_to_string(file).expect("every receiver opens its file");
    let record = |line: &str| {
        let mut numbers = line.split(' ').map(|number| number.parse().expect("a number"));
        let mut next = || numbers.next().expect("three numbers");
        (next(), next(), next())
    };
    text.lines().map(record).collect()
}

/// How often each message was received; every one that was sent is there.
fn tally(all: &[Vec<Record>], messages_each: usize) -> HashMap<Record, usize> {
    let mut tally = HashMap::new();
    for sender in 0..SENDERS {
        for index in 0..messages_each {
            tally.insert((sender, 1 + index % TYPES, index / TYPES), 0);
        }
    }
    for record in all.iter().flatten() {
        let times = tally.get_mut(record);
        *times.unwrap_or_else(|| panic!("nobody sent {record:?}")) += 1;
    }
    tally
}

fn missing_and_doubled(tally: &HashMap<Record, usize>) -> (Vec<&Record>, Vec<&Record>) {
    let with = |wanted: fn(usize) -> bool| {
        tally.iter().filter(|(_, times)| wanted(**times)).map(|(record, _)| record).collect()
    };
    (with(|times| times == 0), with(|times| times > 1))
}

#[track_caller]
fn assert_in_order(received: &[Record]) {
    let mut last: HashMap<(usize, usize), usize> = HashMap::new();
    for (sender, mtype, number) in received {
        let before = last.insert((*sender, *mtype), *number);
        assert!(before < Some(*number), "{number} of {sender}/{mtype} after {before:?}");
    }
}

/// The nodes that the messages of [`arrive_once`] need, to be described further.
pub fn nodes() -> Builder {
    Cluster::of(NODES).alone()
}

/// Each message arrives once and in order in this cluster of [`nodes`].
#[track_caller]
pub fn arrive_once(cluster: Cluster, name: &str, long: usize, plain: usize) {
    undisturbed(Traffic::begin_in(cluster, name, long, plain));
}

/// Each message arrives once in this cluster of [`nodes`] while every dipcd is restarted.
#[track_caller]
pub fn arrive_once_over_restarts(cluster: Cluster, name: &str, long: usize, plain: usize) {
    with_restarts(name, Traffic::begin_in(cluster, name, long, plain));
}

#[test]
fn each_message_arrives_once_and_in_order() {
    undisturbed(Traffic::begin("each_message_arrives_once_and_in_order", 10_000, 1_000));
}

#[track_caller]
fn undisturbed(mut traffic: Traffic) {
    let receivers: Vec<Running> = (0..RECEIVERS).map(|_| traffic.receiver()).collect();
    for sender in traffic.senders(Duration::ZERO) {
        sender.wait().expect_success();
    }
    let all = traffic.end(receivers);
    all.iter().for_each(|received| assert_in_order(received));
    let tally = tally(&all, traffic.messages_each);
    assert_eq!(missing_and_doubled(&tally), (vec![], vec![]));
}

#[test]
fn each_message_arrives_once_while_receivers_are_killed() {
    let name = "each_message_arrives_once_while_receivers_are_killed";
    let mut traffic = Traffic::begin(name, 10_000, 1_000);
    let mut receivers: Vec<Running> = (0..RECEIVERS).map(|_| traffic.receiver()).collect();
    let mut senders = traffic.senders(Duration::ZERO);
    let (mut kills, end) = (0, Instant::now() + PATIENCE);
    while kills == 0 || senders.iter_mut().any(Running::is_running) && Instant::now() < end {
        let victim = (kills * 5 + 3) % RECEIVERS;
        receivers[victim].signal(Signal::KILL);
        receivers[victim] = traffic.receiver();
        kills += 1;
    }
    for sender in senders {
        sender.wait().expect_success();
    }
    let all = traffic.end(receivers);
    let tally = tally(&all, traffic.messages_each);
    let (missing, doubled) = missing_and_doubled(&tally);
    skip::note(&format!("{name}: {kills} kills, {} messages unrecorded", missing.len()));
    assert!(doubled.is_empty(), "received twice: {doubled:?}");
    // A message that its receiver got before it died, but had not recorded yet.
    assert!(missing.len() <= kills, "{} kills lost {missing:?}", kills);
}

#[test]
fn each_message_arrives_once_while_every_dipcd_is_restarted() {
    let name = "each_message_arrives_once_while_every_dipcd_is_restarted";
    with_restarts(name, Traffic::begin(name, 10_000, 1_000));
}

#[track_caller]
fn with_restarts(name: &str, mut traffic: Traffic) {
    let receivers: Vec<Running> = (0..RECEIVERS).map(|_| traffic.receiver()).collect();
    let mut senders = traffic.senders(SLOWLY);
    let (mut restarts, end) = (0, Instant::now() + PATIENCE);
    while restarts < 2 || senders.iter_mut().any(Running::is_running) && Instant::now() < end {
        let next = Instant::now() + Duration::from_secs(1);
        for node in traffic.cluster.nodes() {
            node.kill_and_restart();
        }
        restarts += 1;
        std::thread::sleep(next.saturating_duration_since(Instant::now()));
    }
    for sender in senders {
        sender.wait().expect_success();
    }
    let all = traffic.end(receivers);
    let tally = tally(&all, traffic.messages_each);
    skip::note(&format!("{name}: {restarts} restarts of {NODES} dipcds"));
    assert_eq!(missing_and_doubled(&tally), (vec![], vec![]), "after {restarts} restarts");
}
