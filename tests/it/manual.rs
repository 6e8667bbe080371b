//! The manual, sentence by sentence: what of the original's entries and options no other chapter
//! shows. Names instead of addresses, what is warned of and refused at the start, which stream what
//! is said on, and the bounds of waits.
//!
//! That every row of the manual's comparison has a test is checked in `manual_rows.rs`.
#![forbid(unsafe_code)]

use std::fs;
use std::net::{IpAddr, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use dipc_tests::stranger::{Peer, serves, with_known_key};
use dipc_tests::{Cluster, Node, Puppet, programs, skip};
use dipc_wire::ids::{ClaimNo, Key, Kind, NodeId, ObjectId, Req};
use dipc_wire::peer::{Claimed, Intent, PeerFrame, Piece, Reported};

const CREATE: &str = "msgget 0x91 011600";
const GET: &str = "msgget 0x91 010600";

/// Makes a program that starts another one.
fn script(directory: &Path, text: &str) -> PathBuf {
    let [written, path] = ["written", "wrapper"].map(|name| directory.join(name));
    fs::write(&written, format!("#!/bin/sh\n{text}\n")).expect("the directory is ours");
    fs::set_permissions(&written, fs::Permissions::from_mode(0o755)).expect("the file is ours");
    programs::copy(&written, &path);
    path
}

/// A program that starts another one on a machine of that name, which finds names in the file
/// `hosts` of the directory, and by the `resolv.conf` that is there.
fn named_machine(directory: &Path, name: &str) -> PathBuf {
    let here = directory.display();
    fs::write(directory.join("nsswitch.conf"), "hosts: files dns\n").expect("it is ours");
    let steps = [
        format!("echo {name} > /proc/sys/kernel/hostname"),
        format!("mount --bind {here}/hosts /etc/hosts"),
        format!("mount --bind {here}/resolv.conf /etc/resolv.conf"),
        format!(
            "{{ [ ! -e /etc/nsswitch.conf ] || \
                 mount --bind {here}/nsswitch.conf /etc/nsswitch.conf; }}"
        ),
        "exec \"$0\" \"$@\"".to_owned(),
    ];
    script(directory, &format!("exec unshare --uts --mount sh -c '{}' \"$@\"", steps.join(" && ")))
}

fn exchange(cluster: &Cluster) {
    let (mut near, mut far) = (Puppet::on(cluster.node(1)), Puppet::on(cluster.node(2)));
    near.must(CREATE);
    far.must(GET);
    far.must("send 1 there");
    assert_eq!(near.must("receive 1"), "1 there");
}

#[test]
fn names_stand_for_addresses_everywhere() {
    let name = "names_stand_for_addresses_everywhere";
    if skip::needs_root(name) {
        return;
    }
    let files = tempfile::tempdir().expect("a temporary directory");
    let cluster = Cluster::of(2).wrapper(named_machine(files.path(), "moon")).prepare();
    let [sun, moon] = [1, 2].map(|number| cluster.node(number));
    let hosts = format!(
        "127.0.0.1 localhost\n{} sun.iust.ac.ir sun\n{} moon\n",
        sun.address.ip(),
        moon.address.ip()
    );
    fs::write(files.path().join("hosts"), hosts).expect("the directory is ours");
    fs::write(files.path().join("resolv.conf"), "").expect("the directory is ours");
    fs::write(cluster.directory().join("dipc.allow"), "sun # the referee\n\n# and\n moon\n")
        .expect("the directory is ours");
    sun.set_entry("this_machine", Some("sun.iust.ac.ir # by its name"));
    moon.set_entry("this_machine", Some(&moon.address.to_string()));
    for node in cluster.nodes() {
        node.set_entry("referee", Some("sun"));
        node.start();
    }
    exchange(&cluster);
    for (node, entry, address) in
        [(sun, "this_machine", sun.address), (moon, "referee", sun.address)]
    {
        let shown = node.ask("dipcctl", &["get", entry]);
        assert_eq!(shown, format!("{address}\n"), "{entry} of node {}", node.number);
    }
}

/// The name of the machine has two addresses; the one that others can reach is taken.
#[test]
fn dipc_auto_find_asks_for_the_name_of_the_machine() {
    if skip::needs_root("dipc_auto_find_asks_for_the_name_of_the_machine") {
        return;
    }
    let files = tempfile::tempdir().expect("a temporary directory");
    let cluster = Cluster::of(1).wrapper(named_machine(files.path(), "moon")).prepare();
    let node = cluster.node(1);
    let hosts = "127.0.1.1 moon\n192.0.2.7 moon\n";
    fs::write(files.path().join("hosts"), hosts).expect("the directory is ours");
    fs::write(files.path().join("resolv.conf"), "").expect("the directory is ours");
    node.set_entry("this_machine", Some("dipc_auto_find"));
    node.set_entry("referee", Some("192.0.2.1"));
    // It has found that address, or it would not want a key; no machine here has it.
    let output = node.run_dipcd(&["--check"]);
    assert!(!output.status.success() && output.out.contains("cluster_key"), "{output:?}");
    node.set_entry("referee", Some("dipc_auto_find"));
    let output = node.run_dipcd(&["--check"]);
    assert!(output.out.contains("referee: expected address[:port], not dipc_auto_find"));
    // Where nobody else is, that of this machine alone will do.
    fs::write(files.path().join("hosts"), format!("{} moon\n", node.address.ip()))
        .expect("the directory is ours");
    node.set_entry("referee", Some(&node.address.to_string()));
    node.start();
    let shown = node.ask("dipcctl", &["get", "this_machine"]);
    assert_eq!(shown, format!("{}\n", node.address));
}

/// A server of names that takes questions and does not answer.
#[test]
fn names_that_are_not_found_in_time_are_given_up() {
    if skip::needs_root("names_that_are_not_found_in_time_are_given_up") {
        return;
    }
    let files = tempfile::tempdir().expect("a temporary directory");
    let cluster = Cluster::of(1).wrapper(named_machine(files.path(), "moon")).prepare();
    let node = cluster.node(1);
    let server: IpAddr = match node.address.ip() {
        IpAddr::V4(own) => {
            let [a, b, c, _] = own.octets();
            [a, b, c, 253].into()
        }
        IpAddr::V6(_) => unreachable!("nodes of the tests have addresses of IPv4"),
    };
    let _silent = UdpSocket::bind((server, 53)).expect("root may");
    let resolver = format!("nameserver {server}\noptions timeout:30 attempts:5\n");
    fs::write(files.path().join("resolv.conf"), resolver).expect("the directory is ours");
    fs::write(files.path().join("hosts"), "127.0.0.1 localhost\n").expect("it is ours");
    for entry in ["this_machine", "referee"] {
        node.set_entry(entry, Some(&format!("slow-{}.example.org", entry.len())));
    }
    let output = node.run_dipcd(&[]);
    assert!(!output.status.success(), "{output:?}");
    let late = output.err.matches("it took too long to find").count();
    assert_eq!(late, 2, "{output:?}");
}

#[test]
fn a_list_is_needed_where_it_is_asked_for() {
    let cluster = Cluster::of(1).option("-s").prepare();
    let node = cluster.node(1);
    let list = cluster.directory().join("dipc.allow");
    fs::remove_file(&list).expect("the harness wrote it");
    let output = node.run_dipcd(&["-s"]);
    assert!(!output.status.success() && output.err.contains("dipc.allow"), "{output:?}");
    let output = node.run_dipcd(&["-s", "--check"]);
    assert!(!output.status.success() && output.out.contains("dipc.allow"), "{output:?}");
    // One that does not name the referee itself is used, and warned of.
    fs::write(&list, "127.0.0.9\n").expect("the directory is ours");
    node.start();
    node.wait_for_log(&format!("the referee's own address {} is missing", node.address.ip()));
}

/// A dipcd whose standard output is a file of its own.
#[test]
fn messages_are_on_standard_error_and_traces_on_standard_output() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let out = directory.path().join("out");
    let wrapper = script(directory.path(), &format!("exec \"$@\" > {}", out.display()));
    let cluster = Cluster::of(1).wrapper(wrapper).option("-vs").start();
    let node = cluster.node(1);
    let mut puppet = Puppet::on(node);
    puppet.must(CREATE);
    puppet.must("remove");
    assert!(node.stop().success());
    let traces = fs::read_to_string(out).expect("it was made");
    assert!(traces.contains("op=\"call\""), "{traces}");
    assert!(traces.lines().all(|line| line.starts_with('[')), "only traces: {traces}");
    let messages = node.log();
    assert!(messages.contains("INFO op=\"start\"") && messages.contains("op=\"stop\""));
    assert!(!messages.lines().any(|line| line.starts_with('[')), "no traces: {messages}");
}

/// Node 2 waits without bound, node 3 does not, with the same entries.
#[test]
fn without_time_outs_a_call_waits_as_long_as_it_takes() {
    let cluster = Cluster::of(3)
        .entry("employer_referee_timeout", "0.4")
        .entry("referee_timeout", "0.2")
        .option_of(2, "-t")
        .prepare();
    for number in [2, 3] {
        cluster.node(number).start();
    }
    let (mut patient, mut other) = (Puppet::on(cluster.node(2)), Puppet::on(cluster.node(3)));
    patient.begin(CREATE);
    for _ in 0..3 {
        assert_eq!(other.call("msgget 0x92 011600"), Err("ETIMEDOUT".into()));
    }
    patient.until_waiting();
    cluster.node(1).start();
    assert!(patient.answer().is_ok());
    patient.must("remove");
}

/// The hold time is the exception that the original names.
#[test]
fn without_time_outs_the_hold_time_stays() {
    let hold = Duration::from_millis(600);
    let cluster = Cluster::of(2).entry("shm_hold_timeout", "0.6").option("-t").start();
    let (mut home, mut away) =
        (Puppet::of_pages(cluster.node(1)), Puppet::of_pages(cluster.node(2)));
    home.must("shmget 0x93 4096 011600");
    away.must("shmget 0x93 0 010600");
    home.must("attach 0");
    away.must("attach 0");
    let before = Instant::now();
    away.must("poke 0 7");
    assert_eq!(home.must("peek 0"), "7");
    assert!(before.elapsed() >= hold, "{:?}", before.elapsed());
    home.must("rmid");
}

#[test]
fn operations_elsewhere_are_bounded_and_those_at_home_are_not() {
    // What need not wait has that long as well, on a machine that may be busy.
    let bound = Duration::from_secs(4);
    let cluster = Cluster::of(2).entry("employer_worker_timeout", "4").start();
    let (mut near, mut far) = (Puppet::on(cluster.node(1)), Puppet::on(cluster.node(2)));
    near.must("semget 0x94 1 011600");
    far.must("semget 0x94 1 010600");
    near.begin("op 0 -1");
    let before = Instant::now();
    assert_eq!(far.call("op 0 -1"), Err("ETIMEDOUT".into()));
    assert!(before.elapsed() >= bound * 9 / 10, "{:?}", before.elapsed());
    near.until_waiting();
    far.must("op 0 1");
    near.answer().expect("it has waited longer than any bound");
    // What came too late for one is not lost.
    near.must(CREATE);
    far.must(GET);
    assert_eq!(far.call("receive 0"), Err("ETIMEDOUT".into()));
    near.must("send 5 kept");
    assert_eq!(far.must("receive 0"), "5 kept");
}

/// What the referee answers to a claim of a peer that has reported.
fn claim(peer: &mut Peer, key: Key) -> (ClaimNo, ObjectId) {
    while peer.hear() != PeerFrame::ReportPlease {}
    peer.say(&PeerFrame::Report { objects: Vec::new(), piece: Piece::Last });
    let (req, kind, intent) = (Req(1), Kind::Queue, Intent::Create);
    peer.say(&PeerFrame::Claim { req, kind, key, intent });
    loop {
        if let PeerFrame::Claimed { outcome: Claimed::Granted { claim, id }, .. } = peer.hear() {
            return (claim, id);
        }
    }
}

/// A node that got leave to create does not say that it did: another one may, after the bound, and
/// the first is told to begin again.
#[test]
fn leave_to_create_ends_with_the_time_of_the_referee() {
    let keys = tempfile::tempdir().expect("a temporary directory");
    let builder = with_known_key(Cluster::of(1), keys.path());
    let cluster = builder.entry("referee_timeout", "3").start();
    let mut peer = Peer::admitted(cluster.node(1));
    let key = Key(0x95);
    let before = Instant::now();
    let (claim, id) = claim(&mut peer, key);
    let mut puppet = Puppet::on(cluster.node(1));
    let made = puppet.must("msgget 0x95 011600");
    assert!(before.elapsed() >= Duration::from_millis(2_700), "{:?}", before.elapsed());
    assert_ne!(made, id.raw().to_string());
    let object = Reported { id, kind: Kind::Queue, key };
    peer.say(&PeerFrame::Made { claim, object });
    let denied = loop {
        match peer.hear() {
            PeerFrame::Denied { id } => break id,
            PeerFrame::Confirmed { .. } => panic!("the key has two homes"),
            _ => {}
        }
    };
    assert_eq!(denied, id);
    puppet.must("remove");
}

/// What dipcd is told to do while it runs is done by the tools over its socket, the back door.
#[test]
fn the_back_door_shows_and_changes_what_is_important() {
    let cluster = Cluster::start(2);
    let ctl = |node: &Node, words: &[&str]| node.ask("dipcctl", words);
    let node = cluster.node(2);
    // It has its number when it serves.
    serves(node);
    assert_eq!(ctl(node, &["get", "employer_referee_timeout"]), "15\n");
    ctl(node, &["set", "employer_referee_timeout", "12"]);
    assert_eq!(ctl(node, &["get", "employer_referee_timeout"]), "12\n");
    let status = ctl(node, &["status"]);
    let own = NodeId::new(2).expect("a number of a node");
    assert!(status.lines().any(|line| line == format!("node {own}")), "{status}");
}
