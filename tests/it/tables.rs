//! `/proc/sysvipc` under libdipc: the tables of the whole cluster for who has opted in, the
//! kernel's for everybody else.
#![forbid(unsafe_code)]

use std::process::Command;

use dipc_tests::process::wait_until;
use dipc_tests::skip::is_root;
use dipc_tests::{Cluster, Node, Puppet};

/// What a program reads there.
fn read(node: &Node, program: &str, arguments: &[&str], keys: Option<&str>) -> String {
    let mut command = node.command(program, arguments);
    if let Some(keys) = keys {
        command.env("DIPC_KEYS", keys);
    }
    node.machine().run(command).expect_success()
}

/// A table of the cluster with an object of another node in it. Who does not answer in time, as on
/// a busy machine, has no lines there.
fn read_with(id: &str, node: &Node, program: &str, arguments: &[&str], keys: &str) -> String {
    wait_until(&format!("{program} shows {id}"), || {
        let table = read(node, program, arguments, Some(keys));
        table.split_whitespace().any(|word| word == id).then_some(table)
    })
}

/// The kernel's own table.
fn natively(node: &Node, table: &str) -> String {
    let mut command = Command::new("cat");
    command.arg(table);
    node.machine().run(command).expect_success()
}

/// The words of the line about an id.
#[track_caller]
fn words<'a>(table: &'a str, id: &str) -> Vec<&'a str> {
    let mut lines = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let found = lines.find(|words| words.get(1) == Some(&id));
    found.unwrap_or_else(|| panic!("no line of {id}:\n{table}"))
}

/// Lines end where those of the kernel end: a program may take its fields by their places.
#[track_caller]
fn is_aligned(table: &str, by_kernel: &str) {
    let of_kernel = by_kernel.lines().nth(1).expect("the kernel has an object").len();
    assert!(table.lines().skip(1).all(|line| line.len() == of_kernel), "{table}");
}

#[test]
fn tables_show_the_whole_cluster_to_who_has_opted_in() {
    let cluster = Cluster::start(2);
    let (mut here, mut there) = (Puppet::on(cluster.node(1)), Puppet::on(cluster.node(2)));
    let near = here.must("msgget 40 11640");
    here.must("send 1 hello");
    let far = there.must("msgget 41 11600");
    let kernels = here.must("msgget 0 1600"); // private, so not distributed
    let pid = here.process().pid().to_string();
    let node = cluster.node(1);
    let table = read_with(&far, node, "cat", &["/proc/sysvipc/msg"], "all");
    let by_kernel = natively(node, "/proc/sysvipc/msg");
    assert_eq!(table.lines().next(), by_kernel.lines().next(), "the head");
    assert_eq!(words(&table, &kernels), words(&by_kernel, &kernels));
    let line = words(&table, &near);
    assert_eq!(line[..6], ["40", near.as_str(), "640", "5", "1", pid.as_str()], "{table}");
    assert_eq!(words(&table, &far)[..5], ["41", far.as_str(), "600", "0", "0"], "{table}");
    is_aligned(&table, &by_kernel);
    if is_root() {
        // What stands behind a distributed queue is not shown a second time.
        assert_eq!((by_kernel.lines().count(), table.lines().count()), (3, 4), "{table}");
    }
    // Who has not opted in, and who opens another file, finds what is there.
    assert_eq!(read(node, "cat", &["/proc/sysvipc/msg"], None), by_kernel);
    let config = node.config();
    let config = config.to_str().expect("a test's directory has a plain name");
    assert_eq!(read(node, "cat", &[config], Some("all")), natively(node, config));
    here.must("remove");
}

#[test]
fn sets_and_segments_have_lines_too() {
    let cluster = Cluster::start(2);
    let (mut sets, mut pages) = (Puppet::on(cluster.node(2)), Puppet::of_pages(cluster.node(2)));
    let set = sets.must("semget 42 3 11600");
    let segment = pages.must("shmget 43 5000 011600");
    pages.must("attach 0");
    let pid = pages.process().pid().to_string();
    let node = cluster.node(1);
    let mut kernels = Puppet::on(node);
    let kernels_set = kernels.must("semget 0 1 1600");
    let table = read_with(&set, node, "cat", &["/proc/sysvipc/sem"], "all");
    assert_eq!(words(&table, &set)[..4], ["42", set.as_str(), "600", "3"], "{table}");
    words(&table, &kernels_set);
    is_aligned(&table, &natively(node, "/proc/sysvipc/sem"));
    let table = read_with(&segment, node, "cat", &["/proc/sysvipc/shm"], "all");
    let line = words(&table, &segment);
    assert_eq!(line[..4], ["43", segment.as_str(), "600", "5000"], "{table}");
    assert_eq!(line[4..7], [pid.as_str(), pid.as_str(), "1"], "{table}");
    assert_eq!(line.len(), table.lines().next().expect("a head").split_whitespace().count());
    kernels.must("remove");
}

#[test]
fn programs_read_them_by_every_way_of_opening() {
    let cluster = Cluster::start(2);
    let queue = Puppet::on(cluster.node(2)).must("msgget 44 11600");
    let node = cluster.node(1);
    let by_ipcs = read_with(&queue, node, "ipcs", &["-q"], "44");
    assert!(by_ipcs.contains(&format!("0x0000002c {queue} ")), "{by_ipcs}");
    let by_shell = "while read line; do echo \"$line\"; done < /proc/sysvipc/msg";
    words(&read_with(&queue, node, "bash", &["-c", by_shell], "44"), &queue);
    let by_perl = "open(F, '<', '/proc/sysvipc/msg') or die; print while <F>";
    words(&read_with(&queue, node, "perl", &["-e", by_perl], "44"), &queue);
    // Its descriptor is as the program asked for it, and cannot be written.
    let descriptor = "open(F, '<', '/proc/sysvipc/msg') or die; print fileno(F), ' ', \
                      (defined syswrite(F, 'x')) ? 'written' : 'refused'";
    let mut by_the_kernel = Command::new("perl");
    by_the_kernel.args(["-e", descriptor]);
    let by_the_kernel = node.machine().run(by_the_kernel).expect_success();
    assert!(by_the_kernel.ends_with(" refused"), "{by_the_kernel}");
    assert_eq!(read(node, "perl", &["-e", descriptor], Some("44")), by_the_kernel);
    let no_dipcd = node.command("cat", &["/proc/sysvipc/msg"]);
    node.stop();
    let left = node.machine().run(no_dipcd).expect_success();
    assert!(!left.contains(&queue), "{left}");
}
