//! The examples that compute in shared memory, on two nodes at once: each checks its own result,
//! and leaves neither segment nor set.
#![forbid(unsafe_code)]

use std::collections::BTreeSet;

use dipc_tests::{Cluster, Running, programs};

/// Runs `count` processes of a parallel program, in turn on both nodes, and gives what each said.
#[track_caller]
fn together(cluster: &Cluster, name: &str, count: usize, more: &[&str]) -> BTreeSet<String> {
    let program = programs::example(name);
    let number = count.to_string();
    let arguments = [&[number.as_str()], more].concat();
    let start = |at: usize| cluster.node(1 + at % 2).spawn(&program, &arguments);
    let all: Vec<Running> = (0..count).map(start).collect();
    all.into_iter().map(|process| process.wait().expect_success()).collect()
}

#[test]
fn pi_by_workers_on_two_nodes() {
    let cluster = Cluster::start(2);
    let said = together(&cluster, "pi", 4, &["1000000"]);
    let line = |rank| format!("pi: rank {rank} of 4: 3.14159265\n");
    assert_eq!(said, (0..4).map(line).collect());
    // It has removed its segment and its set: the same keys serve again.
    assert_eq!(together(&cluster, "pi", 2, &["100000"]).len(), 2);
}

#[test]
fn a_matrix_product_on_two_nodes() {
    let cluster = Cluster::start(2);
    let said = together(&cluster, "matrix", 4, &["100"]);
    let line = |rank| format!("matrix: rank {rank} of 4: 100 x 100, 0 wrong\n");
    assert_eq!(said, (0..4).map(line).collect());
}

#[test]
fn heat_flows_over_two_nodes() {
    let cluster = Cluster::start(2);
    let picture = cluster.directory().join("heat.ppm");
    let said = together(&cluster, "heat", 4, &[picture.to_str().expect("a plain path")]);
    let line = |rank| format!("heat: rank {rank} of 4: rows {} to {}\n", 32 * rank, 32 * rank + 31);
    assert_eq!(said, (0..4).map(line).collect());
    let picture = std::fs::read(picture).expect("rank 0 has drawn it");
    assert!(picture.starts_with(b"P6\n128 128\n255\n"), "it is no picture");
    assert_eq!(picture.len(), 15 + 3 * 128 * 128);
    // The edge above is white, the one below black.
    assert_eq!((&picture[15..18], &picture[picture.len() - 3..]), (&[255; 3][..], &[0; 3][..]));
}

#[test]
fn a_counter_with_a_mutex_on_two_nodes() {
    let cluster = Cluster::start(2);
    let said = together(&cluster, "counter", 4, &["300"]);
    assert_eq!(said, BTreeSet::from(["counter: 1200 of 1200\n".to_owned()]));
}
