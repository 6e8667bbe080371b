//! `bench`: what DIPC costs, as ratios to the native kernel and to raw TCP taken in the same run.
//!
//! An absolute time says little on a machine that others share. So each row is a number of
//! *pairs*: the baseline and the measured thing one directly after the other, on the same
//! processors (the home's side on the first, the program's on the second); the ratio of each pair
//! is taken, and the median of the ratios printed, with the fastest and the slowest quarter beside
//! it. Rows over the network are run twice: with the default cipher, and with `cipher = none`.
#![forbid(unsafe_code)]

mod flood;
mod memory;

use std::env;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use dipc_tests::{Cluster, Machine, Node, programs};
use rustix::process::Pid;
use rustix::thread::{CpuSet, sched_setaffinity};

/// `IPC_DIPC`, as an argument of the probe.
const FLAG: &str = "010000";
/// Rounds of one measurement over the network, and of pairs in one kernel.
const REMOTE_ROUNDS: &str = "8000";
const HOME_ROUNDS: &str = "200000";
/// Pairs of measurements of one row.
const PAIRS: usize = 15;
/// Where the home's side runs, and the program's.
const HOME_CPU: &str = "0";
const PROGRAM_CPU: &str = "1";

/// One row of the table. What it is based on are nanoseconds, or MiB a second in rows of speed.
struct Row {
    what: &'static str,
    against: &'static str,
    bound: f64,
    ratios: Vec<f64>,
    baseline: f64,
}

/// What to measure.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Chapter {
    All,
    Calls,
    Memory,
    Strangers,
}

/// `bench [PAIRS [CHAPTER]]`.
fn parse() -> Option<(usize, Chapter)> {
    let mut words = env::args().skip(1);
    let pairs = words.next().map_or(Some(PAIRS), |word| word.parse().ok());
    let chapter = match words.next().as_deref() {
        None => Chapter::All,
        Some("calls") => Chapter::Calls,
        Some("memory") => Chapter::Memory,
        Some("strangers") => Chapter::Strangers,
        Some(_) => return None,
    };
    pairs.filter(|pairs| *pairs > 0).map(|pairs| (pairs, chapter))
}

fn main() -> ExitCode {
    let Some((pairs, chapter)) = parse() else {
        eprintln!("usage: bench [PAIRS [calls | memory | strangers]]");
        return ExitCode::from(2);
    };
    let probe = compile_probe();
    print_head();
    if matches!(chapter, Chapter::All | Chapter::Calls) {
        calls(&probe, pairs);
    }
    if matches!(chapter, Chapter::All | Chapter::Memory) {
        memory::run(&probe, pairs);
    }
    if matches!(chapter, Chapter::All | Chapter::Strangers) {
        flood::row(&probe, pairs).print("aes-gcm");
    }
    ExitCode::SUCCESS
}

/// Queues and sets.
fn calls(probe: &Path, pairs: usize) {
    home_messages(probe, pairs).print("-");
    home_lock(probe, pairs).print("-");
    for cipher in ["aes-gcm", "none"] {
        let cluster = Cluster::of(2).entry("cipher", cipher).alone().start();
        for row in [remote_send, remote_ask, remote_lock] {
            row(&cluster, probe, pairs).print(cipher);
        }
    }
    encryption(probe, pairs).print("aes-gcm");
}

fn compile_probe() -> PathBuf {
    let source = programs::source_tree().join("bench/c/probe.c");
    programs::compile_at("probe", &[source], &["-O2"])
}

fn print_head() {
    println!(
        "{:<34} {:>8} {:>7} {:>15} {:>7} {:>9}  against",
        "row", "cipher", "ratio", "quarters", "bound", "base"
    );
}

impl Row {
    /// The ratios in order, at so many quarters of them.
    fn at(&self, quarters: usize) -> f64 {
        let mut ratios = self.ratios.clone();
        ratios.sort_by(f64::total_cmp);
        ratios[(ratios.len() - 1) * quarters / 4]
    }

    fn print(&self, cipher: &str) {
        let at = |quarters| self.at(quarters);
        let is_speed = self.what.ends_with("(speed)");
        let base = if is_speed { self.baseline } else { self.baseline / 1000.0 };
        let quarters = format!("{:.2} - {:.2}", at(1), at(3));
        println!(
            "{:<34} {:>8} {:>7.2} {:>15} {:>7.2} {:>9.2} {}  {}",
            self.what,
            cipher,
            at(2),
            quarters,
            self.bound,
            base,
            if is_speed { "MiB/s" } else { "us" },
            self.against
        );
    }
}

/// Runs `baseline` and `measured` in turn.
fn paired(
    what: &'static str,
    against: &'static str,
    bound: f64,
    pairs: usize,
    mut baseline: impl FnMut() -> f64,
    mut measured: impl FnMut() -> f64,
) -> Row {
    let mut baselines = Vec::new();
    let ratios = (0..pairs)
        .map(|_| {
            let base = baseline();
            baselines.push(base);
            measured() / base
        })
        .collect();
    baselines.sort_by(f64::total_cmp);
    let baseline = baselines[baselines.len() / 2];
    Row { what, against, bound, ratios, baseline }
}

/// msgsnd + msgrcv on the node where the queue lives.
fn home_messages(probe: &Path, pairs: usize) -> Row {
    at_home("send+receive at home, 512 B", "native send+receive", "pair", probe, pairs)
}

/// P + V on the node where the set lives.
fn home_lock(probe: &Path, pairs: usize) -> Row {
    at_home("P+V at home", "native P+V", "lock", probe, pairs)
}

/// One mode of the probe by the kernel alone, and on a distributed object at home.
fn at_home(
    what: &'static str,
    against: &'static str,
    mode: &str,
    probe: &Path,
    pairs: usize,
) -> Row {
    let cluster = Cluster::of(1).alone().start();
    let node = cluster.node(1);
    let native = || {
        let mut command = std::process::Command::new(probe);
        command.args([PROGRAM_CPU, mode, "0x6401", "0", HOME_ROUNDS]);
        median_of(node.machine().run(command).expect_success())
    };
    let ours = || {
        let arguments = [PROGRAM_CPU, mode, "0x6401", FLAG, HOME_ROUNDS];
        median_of(node.run(probe, &arguments).expect_success())
    };
    paired(what, against, 1.10, pairs, native, ours)
}

/// msgsnd to a queue on the other node.
fn remote_send(cluster: &Cluster, probe: &Path, pairs: usize) -> Row {
    let ours = || remote(cluster, probe, "drain", "send");
    let raw = || raw_tcp(cluster.node(1), probe);
    paired("remote msgsnd, 512 B", "raw TCP round trip, 512 B", 1.50, pairs, raw, ours)
}

/// What the default cipher costs.
fn encryption(probe: &Path, pairs: usize) -> Row {
    let start = |cipher| Cluster::of(2).entry("cipher", cipher).start();
    let (plain, sealed) = (start("none"), start("aes-gcm"));
    let send_in = |cluster: &Cluster| remote(cluster, probe, "drain", "send");
    let (plain, sealed) = (|| send_in(&plain), || send_in(&sealed));
    paired("remote msgsnd, encrypted", "the same with cipher = none", 1.10, pairs, plain, sealed)
}

/// A request to a program on the other node, and its answer.
fn remote_ask(cluster: &Cluster, probe: &Path, pairs: usize) -> Row {
    let ours = || remote(cluster, probe, "answer", "ask");
    let raw = || raw_tcp(cluster.node(1), probe);
    let bound = f64::INFINITY;
    paired("request and answer, 512 B each", "raw TCP round trip, 512 B", bound, pairs, raw, ours)
}

/// P + V on a set on the other node: two round trips against one.
fn remote_lock(cluster: &Cluster, probe: &Path, pairs: usize) -> Row {
    let ours = || remote(cluster, probe, "lend", "borrow");
    let raw = || raw_tcp(cluster.node(1), probe);
    paired("remote P+V", "raw TCP round trip, 512 B", 2.60, pairs, raw, ours)
}

/// `server` on the home of its objects, `client` on the other node.
fn remote(cluster: &Cluster, probe: &Path, server: &str, client: &str) -> f64 {
    let (home, other) = (cluster.node(1), cluster.node(2));
    let serving = home.spawn(probe, &[HOME_CPU, server, "0x6402", FLAG]);
    serving.wait_for("ready");
    let arguments = [PROGRAM_CPU, client, "0x6402", FLAG, REMOTE_ROUNDS];
    let measuring = other.spawn(probe, &arguments);
    pin_stand_ins(home);
    let median = median_of(measuring.wait().expect_success());
    serving.wait().expect_success();
    median
}

/// Puts the home's side of the client on the processor of the raw server: as soon as there is a
/// stand-in, well within the warm-up.
fn pin_stand_ins(home: &Node) {
    let stand_ins = dipc_tests::process::wait_until("a stand-in", || {
        let found = home.stand_ins();
        (!found.is_empty()).then_some(found)
    });
    for stand_in in stand_ins {
        pin(stand_in, HOME_CPU);
    }
}

/// Puts a process on one processor, with all its threads.
fn pin(process: Pid, cpu: &str) {
    let mut cpus = CpuSet::new();
    cpus.set(cpu.parse().expect("a number"));
    for thread in threads_of(process) {
        // A thread that has ended needs no place.
        let _ = sched_setaffinity(Some(thread), &cpus);
    }
}

fn threads_of(process: Pid) -> Vec<Pid> {
    let tasks = format!("/proc/{}/task", process.as_raw_nonzero());
    let entries = std::fs::read_dir(tasks).into_iter().flatten().flatten();
    let numbers = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    numbers.filter_map(Pid::from_raw).collect()
}

fn raw_tcp(home: &Node, probe: &Path) -> f64 {
    let port = (home.address.port() + 1).to_string();
    let address = home.address.ip().to_string();
    let run = |arguments: &[&str]| {
        let mut command = std::process::Command::new(probe);
        command.args(arguments);
        command
    };
    let machine: &Machine = home.machine();
    let serving = machine.spawn(run(&[HOME_CPU, "echo", &address, &port]));
    serving.wait_for("ready");
    let client = machine.run(run(&[PROGRAM_CPU, "tcp", &address, &port, REMOTE_ROUNDS]));
    let median = median_of(client.expect_success());
    serving.wait().expect_success();
    median
}

fn median_of(printed: String) -> f64 {
    printed.trim().parse().expect("a probe prints a number")
}
