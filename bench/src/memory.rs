//! Rows of shared memory: what a page fault costs against a raw TCP round trip, a stream of pages
//! against a TCP stream, and a segment that nobody else uses against the kernel's own. Everything
//! of the home's side runs on the first processor, dipcd included, all else on the second.
#![forbid(unsafe_code)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use dipc_tests::{Cluster, Machine, Node, Running, programs};
use rustix::process::Pid;

use crate::{FLAG, HOME_CPU, PROGRAM_CPU, Row, paired, pin, raw_tcp};

/// Pages of the rows of single faults: the median of so many.
const PAGES: &str = "2048";
/// 64 MiB, in pages.
const SCANNED: &str = "16384";
const TURNS: &str = "2000";
const WAKE_UPS: &str = "300";
/// MiB of a segment that is used alone, and of one over which a process forks.
const ALONE: &str = "512";
const FORKED: &str = "4096";

/// The probe of calls, for raw TCP, the one of pages, and what a fault costs without dipcd.
struct Probes {
    calls: PathBuf,
    pages: PathBuf,
    floor: PathBuf,
}

/// Prints every row.
pub fn run(calls: &Path, pairs: usize) {
    let compile = |name, source, options: &[&str]| {
        programs::compile_at(name, &[programs::source_tree().join(source)], options)
    };
    let pages = compile("pages", "bench/c/pages.c", &["-O2"]);
    let floor = compile("floor", "bench/c/floor.c", &["-O2", "-pthread"]);
    let probes = Probes { calls: calls.to_owned(), pages, floor };
    for row in floors(&probes, pairs) {
        row.print("-");
    }
    for cipher in ["aes-gcm", "none"] {
        let cluster = Cluster::of(3).entry("cipher", cipher).alone().start();
        pin_all(&cluster);
        for row in [read_fault, upgrade, upgrade_with_another_reader, turn, scan] {
            row(&cluster, &probes, pairs).print(cipher);
        }
        wake_ups(&cluster, &probes, pairs, cipher);
    }
    encryption(&probes, pairs).print("-");
    for row in [first_touch, stream, fork] {
        row(&probes, pairs).print("-");
    }
}

/// The rows of single faults by the shortest programs that can do the same: what no dipcd is
/// below, on this machine and now.
fn floors(probes: &Probes, pairs: usize) -> [Row; 2] {
    let cluster = Cluster::of(1).alone().start();
    let node = cluster.node(1);
    let address = node.address.ip().to_string();
    let port = (node.address.port() + 1).to_string();
    let run = |cpu: &str, mode: &str| {
        let mut command = Command::new(&probes.floor);
        command.args([cpu, mode, &address, &port, PAGES]);
        node.machine().spawn(command)
    };
    let fault = |mode: &str| {
        let home = run(HOME_CPU, "home");
        home.wait_for("ready");
        let took = number(run(PROGRAM_CPU, mode));
        home.wait().expect_success();
        took
    };
    [("read fault, without dipcd", "read"), ("write upgrade, without dipcd", "upgrade")].map(
        |(what, mode)| {
            let (raw, bare) = (|| raw(&cluster, probes), || fault(mode));
            paired(what, AGAINST_TCP, f64::INFINITY, pairs, raw, bare)
        },
    )
}

/// Home's dipcd on the first processor, the others on the second.
fn pin_all(cluster: &Cluster) {
    for node in cluster.nodes() {
        let dipcd = Pid::from_raw(node.dipcd_pid() as i32).expect("a pid is not 0");
        pin(dipcd, if node.number == 1 { HOME_CPU } else { PROGRAM_CPU });
    }
}

/// A new key for each run, so that no run finds what another has left.
fn next_key() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0x6500);
    NEXT.fetch_add(1, Ordering::Relaxed).to_string()
}

/// A probe on a node, with the opt-in flag.
fn on(node: &Node, probes: &Probes, cpu: &str, mode: &str, key: &str, more: &[&str]) -> Running {
    node.spawn(&probes.pages, &[&[cpu, mode, key, FLAG], more].concat())
}

/// The number that a probe prints.
fn number(running: Running) -> f64 {
    last_line(running)[0]
}

fn last_line(running: Running) -> Vec<f64> {
    let said = running.wait().expect_success();
    let line = said.lines().last().expect("a probe prints a line").to_owned();
    line.split(' ').map(|word| word.parse().expect("a probe prints numbers")).collect()
}

/// The segment of a run, held at home.
fn hold(cluster: &Cluster, probes: &Probes, key: &str, pages: &str) -> Running {
    let holding = on(cluster.node(1), probes, HOME_CPU, "hold", key, &[pages]);
    holding.wait_for("ready");
    holding
}

fn raw(cluster: &Cluster, probes: &Probes) -> f64 {
    raw_tcp(cluster.node(1), &probes.calls)
}

const AGAINST_TCP: &str = "raw TCP round trip, 512 B";

/// ns to read a page that home has.
fn read_once(cluster: &Cluster, probes: &Probes) -> f64 {
    let key = next_key();
    let holding = hold(cluster, probes, &key, PAGES);
    let took = number(on(cluster.node(2), probes, PROGRAM_CPU, "read", &key, &[PAGES]));
    holding.wait().expect_success();
    took
}

fn read_fault(cluster: &Cluster, probes: &Probes, pairs: usize) -> Row {
    let ours = || read_once(cluster, probes);
    paired("read fault, page at home", AGAINST_TCP, 2.0, pairs, || raw(cluster, probes), ours)
}

/// ns to write a page that was read, which home and perhaps a third node read too.
fn upgrade_once(cluster: &Cluster, probes: &Probes, with_third: bool) -> f64 {
    let key = next_key();
    let holding = hold(cluster, probes, &key, PAGES);
    let third = with_third.then(|| {
        let looking = on(cluster.node(3), probes, PROGRAM_CPU, "look", &key, &[PAGES]);
        looking.wait_for("ready");
        looking
    });
    let mut writing = on(cluster.node(2), probes, PROGRAM_CPU, "upgrade", &key, &[PAGES]);
    writing.wait_for("ready");
    writing.tell("go");
    let took = number(writing);
    drop(third);
    holding.wait().expect_success();
    took
}

fn upgrade(cluster: &Cluster, probes: &Probes, pairs: usize) -> Row {
    let ours = || upgrade_once(cluster, probes, false);
    let raw = || raw(cluster, probes);
    paired("write upgrade, home reads", AGAINST_TCP, 1.6, pairs, raw, ours)
}

fn upgrade_with_another_reader(cluster: &Cluster, probes: &Probes, pairs: usize) -> Row {
    let ours = || upgrade_once(cluster, probes, true);
    let raw = || raw(cluster, probes);
    paired("write upgrade, a third node reads", AGAINST_TCP, 3.2, pairs, raw, ours)
}

/// One page from node to node and back, at full speed.
fn turn(cluster: &Cluster, probes: &Probes, pairs: usize) -> Row {
    let ours = || {
        let key = next_key();
        let holding = hold(cluster, probes, &key, "1");
        let first = on(cluster.node(1), probes, HOME_CPU, "pong", &key, &[TURNS, "0"]);
        let took = number(on(cluster.node(2), probes, PROGRAM_CPU, "pong", &key, &[TURNS, "1"]));
        first.wait().expect_success();
        holding.wait().expect_success();
        took
    };
    let raw = || raw(cluster, probes);
    let row = paired("hand-over of one page", AGAINST_TCP, f64::INFINITY, pairs, raw, ours);
    println!("{:<34} {:>8.0} a second", "hand-overs of one page", 1e9 / (row.at(2) * row.baseline));
    row
}

/// MiB a second of pages read one after the other, against a stream over TCP.
fn scan(cluster: &Cluster, probes: &Probes, pairs: usize) -> Row {
    let ours = || {
        let key = next_key();
        let holding = hold(cluster, probes, &key, SCANNED);
        let speed = number(on(cluster.node(2), probes, PROGRAM_CPU, "scan", &key, &[SCANNED]));
        holding.wait().expect_success();
        speed
    };
    let raw = || raw_stream(cluster.node(1), probes);
    paired("64 MiB in order (speed)", "raw TCP stream; at least", 0.3, pairs, raw, ours)
}

fn raw_stream(home: &Node, probes: &Probes) -> f64 {
    let (address, port) = (home.address.ip().to_string(), (home.address.port() + 1).to_string());
    let run = |arguments: &[&str]| {
        let mut command = Command::new(&probes.pages);
        command.args(arguments);
        home.machine().spawn(command)
    };
    let sinking = run(&[HOME_CPU, "sink", &address, &port]);
    sinking.wait_for("ready");
    let speed = number(run(&[PROGRAM_CPU, "pour", &address, &port, "64"]));
    sinking.wait().expect_success();
    speed
}

/// From a store on one node to the return of who slept on the word on another: printed as it is,
/// for the bounds are times (1 ms at the median, 20 ms always).
fn wake_ups(cluster: &Cluster, probes: &Probes, pairs: usize, cipher: &str) {
    let (mut middle, mut longest) = (Vec::new(), 0.0_f64);
    let before = stolen_ms();
    for _ in 0..pairs.min(5) {
        let key = next_key();
        let holding = hold(cluster, probes, &key, "2");
        let sleeping = on(cluster.node(2), probes, PROGRAM_CPU, "sleep", &key, &[WAKE_UPS]);
        let waking = on(cluster.node(1), probes, HOME_CPU, "wake", &key, &[WAKE_UPS]);
        let took = last_line(sleeping);
        waking.wait().expect_success();
        holding.wait().expect_success();
        middle.push(took[0] / 1000.0);
        longest = longest.max(took[1] / 1000.0);
    }
    middle.sort_by(f64::total_cmp);
    let middle = middle[middle.len() / 2];
    println!(
        "{:<34} {cipher:>8} median {middle:.0} us (bound 1000), longest {longest:.0} us (20000); \
         {} ms stolen by the host",
        "futex wake-up on another node",
        stolen_ms() - before
    );
}

/// Time in which a processor of this virtual machine could have run and the host let it not, in
/// all, in steps of 10 ms (proc_stat(5)). A wake-up that falls into it is late, whosever it is.
fn stolen_ms() -> u64 {
    let statistics = fs::read_to_string("/proc/stat").expect("/proc is mounted");
    let steal = statistics.split_ascii_whitespace().nth(8).and_then(|ticks| ticks.parse().ok());
    10 * steal.unwrap_or(0_u64)
}

/// The same fault encrypted and not, in two clusters.
fn encryption(probes: &Probes, pairs: usize) -> Row {
    let start = |cipher| {
        let cluster = Cluster::of(2).entry("cipher", cipher).start();
        pin_all(&cluster);
        cluster
    };
    let (plain, sealed) = (start("none"), start("aes-gcm"));
    let plain = || read_once(&plain, probes);
    let sealed = || read_once(&sealed, probes);
    paired("read fault, encrypted", "the same with cipher = none", 1.15, pairs, plain, sealed)
}

/// A mode of the probe by the kernel alone, and on a distributed segment that nobody else uses.
fn alone(
    what: &'static str,
    against: &'static str,
    bound: f64,
    (mode, mib): (&str, &str),
    probes: &Probes,
    pairs: usize,
) -> Row {
    let cluster = Cluster::of(1).alone().start();
    let node = cluster.node(1);
    let machine: &Machine = node.machine();
    let native = || {
        let mut command = Command::new(&probes.pages);
        command.args([PROGRAM_CPU, mode, &next_key(), "0", mib]);
        number(machine.spawn(command))
    };
    let ours = || number(on(node, probes, PROGRAM_CPU, mode, &next_key(), &[mib]));
    paired(what, against, bound, pairs, native, ours)
}

fn first_touch(probes: &Probes, pairs: usize) -> Row {
    let mode = ("touch", ALONE);
    alone("first touch, alone (speed)", "the kernel's; at least", 0.9, mode, probes, pairs)
}

fn stream(probes: &Probes, pairs: usize) -> Row {
    let mode = ("stream", ALONE);
    alone("streaming, alone (speed)", "the kernel's; at least", 0.9, mode, probes, pairs)
}

fn fork(probes: &Probes, pairs: usize) -> Row {
    let mode = ("fork", FORKED);
    alone("fork with 4 GiB attached, alone", "native fork", 2.0, mode, probes, pairs.min(5))
}
