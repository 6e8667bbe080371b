//! What dipcd, its keeper and its stand-ins may do: six capabilities; nothing but their user's
//! where they run without root; and everything still works under the restrictions of the systemd
//! unit, which are taken on here without systemd.
#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use dipc_tests::node::{BIN, DAEMON};
use dipc_tests::process::wait_until;
use dipc_tests::{Cluster, Node, Puppet, programs, skip};
use rustix::process::Pid;

/// What may be kept, as capability(7) numbers them.
const NEEDED: [(&str, u32); 6] = [
    ("CAP_KILL", 5),
    ("CAP_SETGID", 6),
    ("CAP_SETUID", 7),
    ("CAP_IPC_OWNER", 15),
    ("CAP_SYS_PTRACE", 19),
    ("CAP_SYS_RESOURCE", 24),
];

fn bits(numbers: impl IntoIterator<Item = u32>) -> u64 {
    numbers.into_iter().fold(0, |bits, number| bits | 1 << number)
}

/// A field of every thread of a process.
fn of_all_threads(pid: u32, field: &str) -> BTreeSet<String> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).expect("it runs");
    let status = |task: fs::DirEntry| fs::read_to_string(task.path().join("status")).ok();
    let statuses: Vec<String> = tasks.filter_map(Result::ok).filter_map(status).collect();
    let lines = statuses.iter().flat_map(|status| status.lines());
    lines.filter_map(|line| Some(line.strip_prefix(field)?.trim().to_owned())).collect()
}

fn number(pid: Pid) -> u32 {
    u32::try_from(pid.as_raw_nonzero().get()).expect("a pid")
}

/// Every capability set of every thread is within these.
#[track_caller]
fn has_at_most(pid: u32, most: u64) {
    for field in ["CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"] {
        for set in of_all_threads(pid, field) {
            let set = u64::from_str_radix(&set, 16).expect("hexadecimal digits");
            assert_eq!(set & !most, 0, "process {pid}: {field} {set:x}");
        }
    }
    assert_eq!(of_all_threads(pid, "NoNewPrivs:"), ["1".to_owned()].into(), "process {pid}");
}

/// A wire from node 2 to node 1, whose stand-in then runs.
fn exchange(cluster: &Cluster, key: i32) -> (Puppet, Puppet) {
    let (mut near, mut far) = (Puppet::on(cluster.node(1)), Puppet::on(cluster.node(2)));
    near.must(&format!("msgget {key} 011600"));
    far.must(&format!("msgget {key} 010600"));
    far.must("send 1 there");
    assert_eq!(near.must("receive 1"), "1 there");
    near.must("send 2 back");
    assert_eq!(far.must("receive 2"), "2 back");
    (near, far)
}

#[test]
fn only_six_capabilities_are_kept() {
    if skip::needs_root("only_six_capabilities_are_kept") {
        return;
    }
    let cluster = Cluster::start(2);
    let node = cluster.node(1);
    let (_near, _far) = exchange(&cluster, 0x81);
    let needed = bits(NEEDED.map(|(_, number)| number));
    has_at_most(node.dipcd_pid(), needed);
    has_at_most(number(node.keeper().expect("it runs")), needed);
    for stand_in in node.stand_ins() {
        has_at_most(number(stand_in), needed);
    }
    // One that was started anew by a dipcd that has dropped the rest, too.
    let before = node.keeper().expect("it runs");
    rustix::process::kill_process(before, rustix::process::Signal::KILL).expect("it runs");
    let (_near, _far) = exchange(&cluster, 0x82);
    let after = wait_until("another keeper", || node.keeper().filter(|keeper| *keeper != before));
    has_at_most(number(after), needed);
}

#[test]
fn root_of_a_trusted_node_administers_without_those_rights() {
    if skip::needs_root("root_of_a_trusted_node_administers_without_those_rights") {
        return;
    }
    let cluster = Cluster::start(2);
    let mut owner = Puppet::of(&cluster, 1, DAEMON);
    owner.must("msgget 0x83 011600");
    let mut root = Puppet::on(cluster.node(2));
    root.must("msgget 0x83 010600");
    root.must("send 1 x");
    // The kernel would ask for CAP_SYS_ADMIN.
    root.must("remove");
    assert_eq!(owner.call("receive? 0"), Err("EINVAL".into()), "it is gone");
}

#[test]
fn without_root_a_dipcd_serves_its_own_user() {
    if skip::needs_root("without_root_a_dipcd_serves_its_own_user") {
        return;
    }
    let cluster = Cluster::of(2).user(DAEMON).start();
    for node in cluster.nodes() {
        node.wait_for_log("without root: it serves the programs of its own user alone");
        assert_eq!(of_all_threads(node.dipcd_pid(), "CapPrm:"), ["0".repeat(16)].into());
    }
    let (mut near, mut far) = (Puppet::of(&cluster, 1, DAEMON), Puppet::of(&cluster, 2, DAEMON));
    near.must("semget 0x84 1 011600");
    far.must("semget 0x84 1 010600");
    near.must("op 0 1");
    far.must("op 0 -1 undo");
    assert_eq!(near.must("value 0"), "0");
    far.kill();
    wait_until("its undo is applied", || (near.must("value 0") == "1").then_some(()));
    // Nobody else's programs, root's neither.
    let mut other = Puppet::of(&cluster, 1, BIN);
    assert_eq!(other.call("msgget 0x85 011600"), Err("EACCES".into()));
    let mut root = Puppet::on(cluster.node(1));
    assert_eq!(root.call("msgget 0x85 011600"), Err("EACCES".into()));
    // It is replaced as any other.
    cluster.node(1).kill_and_restart();
    assert_eq!(near.must("value 0"), "1");
    near.must("remove");
}

/// The value of a line of the unit.
fn unit_says(name: &str) -> String {
    let unit = programs::source_tree().join("conf/dipcd.service");
    let unit = fs::read_to_string(unit).expect("it is part of the source tree");
    let line = unit.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
    line.unwrap_or_else(|| panic!("the unit says nothing of {name}")).to_owned()
}

/// The calls of a filter, its groups taken apart by systemd itself; `None` without it.
fn calls_of(words: &str) -> Option<BTreeSet<String>> {
    let mut calls = BTreeSet::new();
    for word in words.split_whitespace() {
        if !word.starts_with('@') {
            calls.insert(word.to_owned());
            continue;
        }
        let out = Command::new("systemd-analyze").args(["syscall-filter", word]).output().ok()?;
        let text = String::from_utf8(out.stdout).ok()?;
        let lines: Vec<&str> = text.lines().skip(1).map(str::trim).collect();
        let inner = lines.iter().filter(|line| !line.is_empty() && !line.starts_with('#'));
        for line in inner {
            calls.extend(calls_of(line)?);
        }
    }
    Some(calls)
}

/// The helper that takes the unit's restrictions on; `None` where systemd's tools are not.
fn sandbox(directory: &Path) -> Option<PathBuf> {
    let calls = calls_of(&unit_says("SystemCallFilter"))?;
    assert!(calls.len() > 100, "systemd knows its own groups: {calls:?}");
    let capabilities = unit_says("CapabilityBoundingSet");
    let mut source = String::from("#include <linux/capability.h>\n#include <sys/syscall.h>\n");
    source += "const int allowed_calls[] = {\n";
    for call in calls {
        source += &format!("#ifdef SYS_{call}\nSYS_{call},\n#endif\n");
    }
    let list: Vec<&str> = capabilities.split_whitespace().collect();
    source += &format!("-1 }};\nconst int kept_capabilities[] = {{ {}, -1 }};\n", list.join(", "));
    let allowed = directory.join("allowed.c");
    fs::write(&allowed, source).expect("the directory is ours");
    let sources = [programs::source_tree().join("tests/c/sandbox.c"), allowed];
    Some(programs::compile_at("sandbox", &sources, &[]))
}

#[test]
fn everything_works_under_the_restrictions_of_the_unit() {
    let name = "everything_works_under_the_restrictions_of_the_unit";
    if skip::needs_root(name) {
        return;
    }
    let directory = tempfile::tempdir().expect("a temporary directory");
    let Some(sandbox) = sandbox(directory.path()) else {
        skip::skip(name, "systemd-analyze is not there to say what the unit's groups are");
        return;
    };
    let cluster = Cluster::of(2).wrapper(sandbox).start();
    for node in cluster.nodes() {
        assert_eq!(of_all_threads(node.dipcd_pid(), "Seccomp:"), ["2".to_owned()].into());
    }
    let (mut near, mut far) = exchange(&cluster, 0x86);
    near.must("semget 0x86 1 011600");
    far.must("semget 0x86 1 010600");
    near.must("op 0 1");
    far.must("op 0 -1 undo");
    let mut other = Puppet::of(&cluster, 2, DAEMON);
    assert_eq!(other.call("semget 0x86 1 010600"), Err("EACCES".into()));
    cluster.node(1).reload_and_wait();
    assert!(!cluster.node(1).log().contains("ERROR"), "{}", cluster.node(1).log());
    cluster.node(1).kill_and_restart();
    far.kill();
    wait_until("its undo is applied", || (near.must("value 0") == "1").then_some(()));
    segments_work(&cluster);
    let stopped = cluster.node(2).stop();
    assert!(stopped.success(), "{stopped}");
}

/// A value that one node writes is read on the other.
fn segments_work(cluster: &Cluster) {
    let program = cluster.install(&programs::helper("page_puppet"));
    let on = |node: &Node| Puppet::from(node.spawn(&program, &[]));
    let (mut one, mut two) = (on(cluster.node(1)), on(cluster.node(2)));
    one.must("shmget 0x86 8192 011600");
    one.must("attach 0");
    one.must("poke 4096 77");
    two.must("shmget 0x86 8192 010600");
    two.must("attach 0");
    assert_eq!(two.must("peek 4096"), "77");
    two.must("poke 4096 78");
    assert_eq!(one.must("peek 4096"), "78");
    one.must("rmid");
}
