//! The first program: hello1 on one node receives what hello2 sends on another. Ours, and, where
//! `DIPC_SEEDS` names the directory that holds them, the original's sources as they were published.
#![forbid(unsafe_code)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use dipc_tests::{Cluster, Limits, Machine, machine::Network, programs, skip};

const WORDS: &str = "Hello1: Received 'Hello, Distributed Programming!'\n";
const WAITING: &str = "Hello1: waiting to receive a message...\n";

fn across_two_nodes(hello1: &Path, hello2: &Path, home: usize, sender: usize) {
    between(&Cluster::of(2).start(), hello1, hello2, home, sender);
}

/// Both ways between the two nodes of a cluster.
pub fn both_ways(cluster: &Cluster) {
    let [hello1, hello2] = ["hello1", "hello2"].map(programs::example);
    between(cluster, &hello1, &hello2, 1, 2);
    between(cluster, &hello1, &hello2, 2, 1);
}

fn between(cluster: &Cluster, hello1: &Path, hello2: &Path, home: usize, sender: usize) {
    let first = cluster.node(home).spawn(hello1, &[]);
    first.wait_for(WAITING);
    let second = cluster.node(sender).run(hello2, &[]);
    assert!(second.status.success(), "{second:?}");
    let first = first.wait();
    assert_eq!((first.err.as_str(), first.status.code()), (&*format!("{WAITING}{WORDS}"), Some(0)));
    // hello1 has removed its queue; there is none to find.
    let third = cluster.node(sender).run(hello2, &[]);
    assert_eq!(third.err, "Hello2: msgget() failed BECAUSE No such file or directory\n");
    assert_eq!(third.status.code(), Some(20));
}

#[test]
fn hello_from_the_second_node_to_the_first() {
    across_two_nodes(&programs::example("hello1"), &programs::example("hello2"), 1, 2);
}

#[test]
fn hello_from_the_first_node_to_the_second() {
    across_two_nodes(&programs::example("hello1"), &programs::example("hello2"), 2, 1);
}

#[test]
fn hello_on_one_machine_without_dipc() {
    if skip::needs_root("hello_on_one_machine_without_dipc") {
        return;
    }
    let machine = Machine::new(Limits::Usual, Network::Shared);
    let first = machine.spawn(Command::new(programs::example("hello1")));
    first.wait_for(WAITING);
    machine.run(Command::new(programs::example("hello2"))).expect_success();
    assert!(first.wait().err.ends_with(WORDS));
}

#[test]
fn the_original_sources_work_unchanged() {
    let name = "the_original_sources_work_unchanged";
    let Some(seeds) = std::env::var_os("DIPC_SEEDS") else {
        skip::skip(name, "DIPC_SEEDS does not name the original sources");
        return;
    };
    let text = fs::read_to_string(PathBuf::from(seeds).join("dipc-home-and-hello.txt"));
    let text = text.expect("the seeds hold the page of the original").replace('\u{a0}', " ");
    let directory = tempfile::tempdir().expect("a temporary directory");
    let [header, hello1, hello2] = ["hello.h", "hello1.c", "hello2.c"].map(|file| {
        let path = directory.path().join(file);
        fs::write(&path, source(&text, file)).expect("the directory is ours");
        path
    });
    assert!(header.exists());
    let build = |name: &str, source: PathBuf| programs::compile_at(name, &[source], &["-w"]);
    let hello1 = build("original-hello1", hello1);
    across_two_nodes(&hello1, &build("original-hello2", hello2), 1, 2);
}

/// The text of one source: from its heading comment to the next source's, or to the end.
fn source(text: &str, file: &str) -> String {
    let heading =
        |name: &str| text.find(&format!("/*\n* {name}")).expect("the page has its heading");
    let start = heading(file);
    let ends = ["hello.h", "hello1.c", "hello2.c"].map(heading);
    let end = ends.into_iter().filter(|end| *end > start).min().unwrap_or(text.len());
    text[start..end].to_owned()
}
