//! The traps of a preloaded library: each program in `tests/c/traps` goes about one of them and
//! ends with 0 when nothing was amiss, or with 77 and a reason when it cannot tell here. Each is
//! run by the kernel, with the home here, and with the home elsewhere.
#![forbid(unsafe_code)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

use dipc_tests::machine::{Limits, Machine, Network};
use dipc_tests::{Builder, Cluster, Maker, Output, programs, skip};

/// The exit status of a program that cannot tell here.
const CANNOT_TELL: i32 = 77;

fn all() -> Vec<PathBuf> {
    let directory = programs::source_tree().join("tests/c/traps");
    let entries = fs::read_dir(directory).expect("the directory is there");
    let mut sources: Vec<PathBuf> = entries
        .map(|entry| entry.expect("a directory can be read").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "c"))
        .collect();
    sources.sort();
    sources
}

/// One of the three: its name, its machine, and how a program is started there.
type Way<'a> = (&'a str, &'a Machine, &'a (dyn Fn(&Path) -> Command + Sync));

/// What was amiss with one program.
fn judge(name: &str, how: &str, output: &Output) -> Option<String> {
    match output.status.code() {
        Some(0) => None,
        Some(CANNOT_TELL) => {
            skip::skip(&format!("trap {name}"), output.out.trim());
            None
        }
        _ => Some(format!("{name}, {how}: {}\n{}{}", output.status, output.out, output.err)),
    }
}

fn run_all(programs: &[PathBuf], (how, machine, command): Way<'_>) -> Vec<String> {
    let run = |program: &PathBuf| {
        let name = program.file_name().expect("a file has a name").to_string_lossy();
        judge(&name, how, &machine.run(command(program)))
    };
    programs.iter().filter_map(run).collect()
}

#[test]
fn a_preloaded_library_is_a_good_guest() {
    run_three_ways("a_preloaded_library_is_a_good_guest", Cluster::of(2), |_| true);
}

#[test]
fn and_where_it_serves_pages_by_sigsegv() {
    let nodes = Cluster::of(2).entry("trap", "mprotect");
    run_three_ways("and_where_it_serves_pages_by_sigsegv", nodes, is_about_segments);
}

fn is_about_segments(source: &Path) -> bool {
    let name = source.file_name().expect("a file has a name");
    name.to_string_lossy().starts_with("segments_")
}

fn run_three_ways(test: &str, nodes: Builder, wanted: impl Fn(&Path) -> bool) {
    if skip::needs_root(test) {
        return;
    }
    let cluster = nodes.objects(2, 0).alone().start();
    let sources = all().into_iter().filter(|source| wanted(source));
    let programs: Vec<PathBuf> = sources.map(|source| build(&cluster, &source)).collect();
    assert!(!programs.is_empty(), "no trap is tried");
    let alone = Machine::new(Limits::Usual, Network::Shared);
    let maker = Maker::on(&cluster, 1);
    let natively = |program: &Path| {
        let mut command = Command::new(program);
        command.env("DIPC_TEST_FLAG", "0");
        command
    };
    let here = |program: &Path| cluster.node(1).command(program, &[]);
    let elsewhere = |program: &Path| {
        let mut command = cluster.node(2).command(program, &[]);
        command.env("DIPC_TEST_MAKER", maker.socket());
        command
    };
    let ways: [Way<'_>; 3] = [
        ("by the kernel", &alone, &natively),
        ("with the home here", cluster.node(1).machine(), &here),
        ("with the home elsewhere", cluster.node(2).machine(), &elsewhere),
    ];
    let programs = &programs;
    let failures: Vec<String> = thread::scope(|scope| {
        let threads = ways.map(|way| scope.spawn(move || run_all(programs, way)));
        threads.into_iter().flat_map(|thread| thread.join().expect("it judges")).collect()
    });
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

fn build(cluster: &Cluster, source: &Path) -> PathBuf {
    let name = source.file_stem().expect("a file has a name").to_string_lossy();
    let program = programs::compile_at(&format!("trap-{name}"), &[source.to_owned()], &[]);
    cluster.install(&program)
}
