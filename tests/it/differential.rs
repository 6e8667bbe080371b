//! What the differential chapters share: a program of cases (`tests/c/*_cases.c`) is run by the
//! kernel, under libdipc with the objects at home here, under libdipc with the objects at home on
//! another node, and under libdipc without opting in. The four must print the same lines.
//!
//! The programs run in IPC namespaces. On the node where nothing may be made the kernel allows no
//! object at all, so a call that slipped past libdipc would show as ENOSPC.
#![forbid(unsafe_code)]

use std::path::Path;
use std::process::Command;

use dipc_tests::machine::{Limits, Machine, Network};
use dipc_tests::{Builder, Cluster, Maker, Node, programs, skip};

/// Objects that a kernel allows where objects are made; the cases use them up.
const OBJECTS: u32 = 24;
/// `IPC_DIPC`, in octal.
const OPT_IN: &str = "010000";
/// The first key of the cases.
const KEY: &str = "0x5ca50000";

/// Runs one program of cases in all four ways; `name` is the test's.
#[track_caller]
pub fn compare(name: &str, program: &str) {
    compare_with(name, program, &[], &[]);
}

/// The same on nodes with these entries in their dipc.conf; rows named in `exceptions` may differ,
/// which the entries' documentation says.
#[track_caller]
pub fn compare_with(name: &str, program: &str, entries: &[(&str, &str)], exceptions: &[&str]) {
    if skip::needs_root(name) {
        return;
    }
    let native = kernel_lines(program);
    let nodes = entries.iter().fold(two_nodes(), |nodes, (entry, value)| nodes.entry(entry, value));
    let cluster = nodes.start();
    let cases = cluster.install(&programs::cases(program));
    let differences = [
        ("without opting in", not_opted_in(&cluster, &cases)),
        ("with the home here", home_here(&cluster, &cases)),
        ("with the home elsewhere", home_elsewhere(&cluster, &cases)),
    ];
    let report: String = differences
        .iter()
        .map(|(how, lines)| compare_lines(how, &native, lines, exceptions))
        .collect();
    assert!(report.is_empty(), "{program} under libdipc differs from the kernel:\n{report}");
}

/// The same with the home elsewhere alone, in a cluster that `start` makes of what it is given.
#[track_caller]
pub fn compare_across(program: &str, start: impl FnOnce(Builder) -> Option<Cluster>) {
    let Some(cluster) = start(two_nodes()) else { return };
    let native = kernel_lines(program);
    let cases = cluster.install(&programs::cases(program));
    let report = compare_lines("across", &native, &home_elsewhere(&cluster, &cases), &[]);
    assert!(report.is_empty(), "{program} under libdipc differs from the kernel:\n{report}");
}

/// The same with a few rows of each program: where a call takes long, all of them take too long.
#[track_caller]
pub fn compare_rows_across(
    programs: &[(&str, &[&str])],
    start: impl FnOnce(Builder) -> Option<Cluster>,
) {
    let Some(cluster) = start(two_nodes()) else { return };
    let (maker, mut report) = (Maker::on(&cluster, 1), String::new());
    for (program, rows) in programs {
        let native = kernel_lines(program);
        let cases = cluster.install(&programs::cases(program));
        for row in *rows {
            let expected = native.lines().find(|line| line.starts_with(&format!("{row}:")));
            let expected = expected.unwrap_or_else(|| panic!("{program} has no row {row}"));
            report += &compare_lines(
                "across",
                expected,
                &rows_elsewhere(&cluster, &maker, &cases, &[row]),
                &[],
            );
        }
    }
    assert!(report.is_empty(), "libdipc differs from the kernel:\n{report}");
}

fn two_nodes() -> Builder {
    Cluster::of(2).objects(1, OBJECTS).objects(2, 0)
}

#[track_caller]
fn kernel_lines(program: &str) -> String {
    let native = by_the_kernel(&programs::cases(program));
    let rows = native.lines().count();
    assert!(rows > 9, "only {rows} rows:\n{native}");
    assert!(!native.contains("killed by signal 14"), "a case never ended:\n{native}");
    native
}

fn by_the_kernel(cases: &Path) -> String {
    let machine = Machine::new(Limits::Objects(OBJECTS), Network::Shared);
    let mut command = Command::new(cases);
    prepare(&mut command);
    machine.run(command).expect_success()
}

fn prepare(command: &mut Command) {
    command.env("DIPC_TEST_KEY", KEY).env("DIPC_TEST_LIMIT", OBJECTS.to_string());
}

fn not_opted_in(cluster: &Cluster, cases: &Path) -> String {
    let mut command = cluster.node(1).command(cases, &[]);
    prepare(&mut command);
    command.env("DIPC_KEYS", "none");
    run(cluster.node(1), command)
}

fn home_here(cluster: &Cluster, cases: &Path) -> String {
    let mut command = cluster.node(1).command(cases, &[]);
    prepare(&mut command);
    command.env("DIPC_TEST_FLAG", OPT_IN);
    run(cluster.node(1), command)
}

fn home_elsewhere(cluster: &Cluster, cases: &Path) -> String {
    rows_elsewhere(cluster, &Maker::on(cluster, 1), cases, &[])
}

/// All rows, or the one that is named.
fn rows_elsewhere(cluster: &Cluster, maker: &Maker, cases: &Path, named: &[&str]) -> String {
    let mut command = cluster.node(2).command(cases, named);
    prepare(&mut command);
    command.env("DIPC_TEST_FLAG", OPT_IN).env("DIPC_TEST_MAKER", maker.socket());
    run(cluster.node(2), command)
}

/// What it printed; what it complained about goes to the test's output.
#[track_caller]
fn run(node: &Node, command: Command) -> String {
    let output = node.machine().run(command);
    eprint!("{}", output.err);
    output.expect_success()
}

/// Every line of `native` that `other` has not at the same place, with what it has there.
fn compare_lines(how: &str, native: &str, other: &str, exceptions: &[&str]) -> String {
    let excepted = |line: Option<&str>| {
        let row = line.and_then(|line| line.split_once(':')).map(|(row, _)| row);
        row.is_some_and(|row| exceptions.contains(&row))
    };
    let mut report = String::new();
    let (mut expected, mut found) = (native.lines(), other.lines());
    loop {
        match (expected.next(), found.next()) {
            (None, None) => return report,
            (one, two) if one == two || excepted(one) => {}
            (one, two) => {
                let [one, two] = [one, two].map(|line| line.unwrap_or("(no line)"));
                report += &format!("{how}:\n  kernel {one}\n  here   {two}\n");
            }
        }
    }
}
