//! Many users at once, and what each costs: processes at home, processes elsewhere, and threads
//! that wait. Figures are printed with the test's name, for whoever reads the log.
#![forbid(unsafe_code)]

use std::fs;

use dipc_tests::{Cluster, Node, Puppet, programs, skip};
use rustix::process::Pid;

const KEY: &str = "117";
/// Dipcd's share in an idle local client, and home's in an idle remote one, in KiB.
const LOCAL_KIB_MAX: u64 = 64;
const REMOTE_KIB_MAX: u64 = 300;

/// The proportional memory of some processes, in KiB.
fn pss_kib(pids: &[Pid]) -> u64 {
    let of = |pid: &Pid| {
        let path = format!("/proc/{}/smaps_rollup", pid.as_raw_nonzero());
        let text = fs::read_to_string(path).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix("Pss:"));
        let figure = line.and_then(|line| line.trim().strip_suffix(" kB"));
        figure.map_or(0, |figure| figure.trim().parse().expect("a number of kB"))
    };
    pids.iter().map(of).sum()
}

fn daemons(node: &Node) -> Vec<Pid> {
    let dipcd = Pid::from_raw(node.dipcd_pid() as i32).expect("a pid is not 0");
    let mut all = node.keepers();
    all.push(dipcd);
    all
}

/// What `count` idle processes on `user` cost the daemons of `home`, each.
fn cost_each(home: &Node, user: &Node, count: usize) -> u64 {
    let before = pss_kib(&daemons(home));
    let mut crowd = user.spawn(programs::helper("crowd"), &["processes", KEY, &count.to_string()]);
    crowd.wait_for("ready");
    let cost = pss_kib(&daemons(home)).saturating_sub(before) / count as u64;
    crowd.close_input();
    let said = crowd.wait().expect_success();
    assert!(said.contains(&format!("{count} of {count}")), "{said}");
    cost
}

#[test]
fn idle_processes_cost_little() {
    if skip::needs_root("idle_processes_cost_little") {
        return;
    }
    let cluster = Cluster::of(2).alone().start();
    let mut owner = Puppet::on(cluster.node(1));
    owner.must(&format!("msgget {KEY} 011600"));
    let clients = skip::amount("idle_processes_cost_little", 1_000, 1_000);
    let local = cost_each(cluster.node(1), cluster.node(1), clients);
    let remote = cost_each(cluster.node(1), cluster.node(2), 60);
    skip::note(&format!(
        "idle client: {local} KiB at home, idle remote client: {remote} KiB at home"
    ));
    assert!(local < LOCAL_KIB_MAX, "{local} KiB for a local client");
    assert!(remote < REMOTE_KIB_MAX, "{remote} KiB for a remote client");
    owner.must("remove");
}

#[test]
fn two_hundred_threads_wait_elsewhere_at_once() {
    const THREADS: usize = 200;
    let cluster = Cluster::of(2).alone().start();
    let mut owner = Puppet::on(cluster.node(1));
    owner.must(&format!("msgget {KEY} 011600"));
    let node = cluster.node(2);
    let waiting = node.spawn(programs::helper("crowd"), &["threads", KEY, &THREADS.to_string()]);
    waiting.wait_for("ready");
    for thread in (1..=THREADS).rev() {
        owner.must(&format!("send {thread} x"));
    }
    waiting.wait().expect_success();
    assert_eq!(owner.must("count"), "0");
    owner.must("remove");
}

#[test]
fn a_thousand_clients_of_one_node() {
    let cluster = Cluster::of(2).alone().start();
    let mut owner = Puppet::on(cluster.node(2));
    owner.must(&format!("msgget {KEY} 011600"));
    let clients = skip::amount("a_thousand_clients_of_one_node", 1_000, 100);
    let node = cluster.node(1);
    let count = clients.to_string();
    let mut crowd = node.spawn(programs::helper("crowd"), &["processes", KEY, &count]);
    crowd.wait_for("ready");
    assert_eq!(cluster.node(2).stand_ins().len(), clients);
    owner.must("send 1 still");
    assert_eq!(owner.must("receive 0"), "1 still");
    crowd.close_input();
    let said = crowd.wait().expect_success();
    assert!(said.contains(&format!("{clients} of {clients}")), "{said}");
    dipc_tests::process::wait_until("the stand-ins end", || {
        cluster.node(2).stand_ins().is_empty().then_some(())
    });
    owner.must("remove");
}
