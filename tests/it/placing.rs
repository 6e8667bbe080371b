//! Where new objects live (`home`): with their creator, on the referee, or on a node that is named;
//! and what becomes of that when the node is not there.
#![forbid(unsafe_code)]

use dipc_tests::node::{BIN, DAEMON};
use dipc_tests::process::wait_until;
use dipc_tests::{Cluster, Puppet, local, skip};
use dipc_wire::client::{Answer, Call, Place};
use dipc_wire::ids::{Key, Kind, NodeId, Nonce};
use dipc_wire::sysv::{IPC_CREAT, IPC_EXCL, SysvError};

/// On which node a new queue of a program on this node lives. The program is in no node's IPC
/// namespace, so that it is told.
fn home_of_new_queue(cluster: &Cluster, number: usize, key: i32) -> NodeId {
    let call = get(key, IPC_CREAT | 0o600, u64::try_from(key).expect("a key above 0"));
    match local::call(cluster.node(number), call) {
        Some(Answer::Object { place: Place::There { home }, .. }) => home,
        other => panic!("no queue elsewhere: {other:?}"),
    }
}

/// The number that the referee gave to a node, which need not be the order of their start.
fn number_of(cluster: &Cluster, number: usize) -> NodeId {
    let log = cluster.node(number).log();
    let line = log.lines().rfind(|line| line.contains("op=\"admitted\"")).expect("it is a member");
    let word = line.split_whitespace().find_map(|word| word.strip_prefix("node="));
    let given = word.and_then(|word| word.parse().ok()).and_then(NodeId::new);
    given.expect("the line names the number")
}

fn get(key: i32, flags: i32, nonce: u64) -> Call {
    Call::Get { kind: Kind::Queue, key: Key(key), flags, size: 0, nonce: Nonce(nonce) }
}

fn set_home(cluster: &Cluster, number: usize, value: &str) {
    cluster.node(number).set_entry("home", Some(value));
    cluster.node(number).reload_and_wait();
}

#[test]
fn new_objects_live_where_home_says() {
    if skip::needs_root("new_objects_live_where_home_says") {
        return;
    }
    let cluster = Cluster::start(3);
    for node in cluster.nodes() {
        Puppet::on(node).must("msgget 0x3000 011600");
    }
    let [first, second, third] = [1, 2, 3].map(|number| number_of(&cluster, number));
    assert_eq!(home_of_new_queue(&cluster, 2, 1), second);
    set_home(&cluster, 2, "referee");
    assert_eq!(home_of_new_queue(&cluster, 2, 2), first);
    set_home(&cluster, 2, &third.to_string());
    assert_eq!(home_of_new_queue(&cluster, 2, 3), third);
    set_home(&cluster, 2, &second.to_string());
    assert_eq!(home_of_new_queue(&cluster, 2, 4), second);
    // It is a queue like any other, from all sides.
    set_home(&cluster, 2, &third.to_string());
    let mut maker = Puppet::on(cluster.node(2));
    let id = maker.must("msgget 5 011600");
    maker.must("send 1 x");
    for number in [1, 3] {
        let mut other = Puppet::on(cluster.node(number));
        assert_eq!(other.must("msgget 5 010600"), id);
        assert_eq!(other.must("count"), "1");
    }
    let mut set = Puppet::on(cluster.node(2));
    set.must("semget 5 2 011600");
    set.must("op 1 1");
    assert_eq!(set.must("value 1"), "1");
    // A private one is made there too, and found by its id.
    let private = maker.must("msgget 0 011600");
    let mut other = Puppet::on(cluster.node(1));
    other.must(&format!("queue {private}"));
    other.must("send 1 y");
}

#[test]
fn the_home_of_a_new_object_asks_what_any_home_asks() {
    if skip::needs_root("the_home_of_a_new_object_asks_what_any_home_asks") {
        return;
    }
    let cluster = Cluster::of(2).entry("home", "referee").entry("user_objects_max", "2").start();
    let away = cluster.node(2);
    // Made once, however often the call is repeated; and somebody else's is not made again.
    let first = local::call(away, get(1, IPC_CREAT | IPC_EXCL | 0o600, 7));
    let again = local::call(away, get(1, IPC_CREAT | IPC_EXCL | 0o600, 7));
    assert!(
        matches!((&first, &again), (Some(Answer::Object { id: one, .. }),
        Some(Answer::Object { id: other, .. })) if one == other),
        "{first:?}, {again:?}"
    );
    let others = local::call(away, get(1, IPC_CREAT | IPC_EXCL | 0o600, 8));
    assert!(matches!(others, Some(Answer::Refused(SysvError::EEXIST))), "{others:?}");
    // It is its creator's, by name, on the other machine too.
    let mut owner = Puppet::of(&cluster, 2, DAEMON);
    owner.must("msgget 2 011600");
    owner.must("send 1 x");
    let mut same = Puppet::of(&cluster, 1, DAEMON);
    same.must("msgget 2 010600");
    assert_eq!(same.must("receive 1"), "1 x");
    let mut other = Puppet::of(&cluster, 1, BIN);
    assert_eq!(other.call("msgget 2 010600"), Err("EACCES".into()));
    // Its bounds are home's.
    owner.must("msgget 3 011600");
    assert_eq!(owner.call("msgget 4 011600"), Err("ENOSPC".into()));
    // And whom it does not know gets nothing made.
    let nameless = dipc_tests::User { name: "", uid: 54_321, gid: 54_321 };
    let mut nobody = Puppet::of(&cluster, 2, nameless);
    assert_eq!(nobody.call("msgget 5 011600"), Err("EACCES".into()));
    assert_eq!(nobody.call("msgget 5 010600"), Err("ENOENT".into()), "the key is free again");
}

#[test]
fn an_object_lives_with_its_creator_when_its_home_is_lost() {
    if skip::needs_root("an_object_lives_with_its_creator_when_its_home_is_lost") {
        return;
    }
    let cluster = Cluster::of(3)
        .entry("node_timeout", "4")
        .entry("lease", "2")
        .entry("heartbeat", "0.2")
        .start();
    for node in cluster.nodes() {
        Puppet::on(node).must("msgget 0x3000 011600");
    }
    let [second, third] = [2, 3].map(|number| number_of(&cluster, number));
    set_home(&cluster, 2, &third.to_string());
    assert_eq!(home_of_new_queue(&cluster, 2, 1), third);
    cluster.node(3).kill_everything();
    // At first it is waited for; once it is lost, nobody waits.
    assert_eq!(home_of_new_queue(&cluster, 2, 2), second);
    cluster.node(3).start();
    let mut key = 2;
    wait_until("it is believed again", || {
        key += 1;
        (home_of_new_queue(&cluster, 2, key) == third).then_some(())
    });
    set_home(&cluster, 2, "17");
    assert_eq!(home_of_new_queue(&cluster, 2, 100_000), second, "no such node");
}
