//! The traps of a preloaded library: each program in `tests/c/traps` goes about one of them and
//! ends with 0 when nothing was amiss, or with 77 and a reason when it cannot tell here. Each is
//! run by the kernel, with the home here, and with the home elsewhere.
#![forbid(unsafe_code)]

use std::fs;
use std::path::PathBuf;

use dipc_tests::{Cluster, Node, Output, programs, skip};

/// Ends of a program that says it cannot run here.
const CANNOT_RUN: i32 = 77;

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

fn judge(name: &str, how: &str, output: &Output) -> Option<String> {
    match output.status.code() {
        Some(0) => None,
        Some(CANNOT_RUN) => {
            skip::skip(&format!("trap {name}"), output.out.trim());
            None
        }
        _ => Some(format!("{name} {how}: {}\n{}{}", output.status, output.out, output.err)),
    }
}

fn run(node: &Node, program: &PathBuf) -> Output {
    node.run(program, &[])
}

#[test]
fn a_preloaded_library_is_a_good_guest() {
    let sources = all();
    assert!(!sources.is_empty(), "no trap is tried");
    let cluster = Cluster::start(2);
    let mut failures = Vec::new();
    for source in sources {
        let name = source.file_stem().expect("a file has a name").to_string_lossy().into_owned();
        let program = programs::compile_at(&format!("trap-{name}"), &[source], &[]);
        let program = cluster.install(&program);
        failures.extend(judge(&name, "with dipcd", &run(cluster.node(1), &program)));
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}
