//! Real users: what one may not do to another's objects, from any node and by any road; who
//! somebody is elsewhere; and how much of a dipcd one of them may take.
#![forbid(unsafe_code)]

use std::fs;
use std::io::Write;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

use dipc_tests::node::{BIN, DAEMON};
use dipc_tests::process::wait_until;
use dipc_tests::{Cluster, Puppet, User, local, programs, skip};
use dipc_wire::client::{Answer, Call};
use dipc_wire::ids::{Key, Kind, NodeId, Nonce, Slot};
use dipc_wire::sysv::{IPC_CREAT, SysvError};
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};

/// Calls on another's queue, and what each says to who may do nothing with it.
const ON_A_QUEUE: [(&str, &str); 5] = [
    ("send 1 x", "EACCES"),
    ("receive? 0", "EACCES"),
    ("receive 0", "EACCES"),
    ("count", "EACCES"),
    ("remove", "EPERM"),
];

/// The same for a set.
const ON_A_SET: [(&str, &str); 7] = [
    ("op 0 1", "EACCES"),
    ("op 0 -1 undo", "EACCES"),
    ("value 0", "EACCES"),
    ("setval 0 7", "EACCES"),
    ("waiters 0", "EACCES"),
    ("last 0", "EACCES"),
    ("remove", "EPERM"),
];

fn refused(puppet: &mut Puppet, calls: &[(&str, &str)]) {
    for (call, errno) in calls {
        assert_eq!(puppet.call(call), Err((*errno).into()), "{call}");
    }
}

#[test]
fn who_may_not_use_an_object_cannot_by_any_call_from_any_node() {
    if skip::needs_root("who_may_not_use_an_object_cannot_by_any_call_from_any_node") {
        return;
    }
    let cluster = Cluster::start(2);
    let mut owner = Puppet::of(&cluster, 1, DAEMON);
    let set: i32 = owner.must("semget 0x61 1 011600").parse().expect("an id");
    let mut sender = Puppet::of(&cluster, 1, DAEMON);
    let queue: i32 = sender.must("msgget 0x61 011600").parse().expect("an id");
    sender.must("send 1 secret");
    for number in [1, 2] {
        let mut other = Puppet::of(&cluster, number, BIN);
        assert_eq!(other.call("semget 0x61 1 010400"), Err("EACCES".into()));
        assert_eq!(other.call("msgget 0x61 010600"), Err("EACCES".into()));
        // By an id that it was told, or has guessed: those before and behind it are no way in.
        for id in queue - 2..=queue + 2 {
            other.must(&format!("queue {id}"));
            let calls = if id == queue { &ON_A_QUEUE[..] } else { &[("send 1 x", "EINVAL")] };
            refused(&mut other, calls);
        }
        other.must(&format!("set {set}"));
        // "remove" means the kind that was got last.
        other.must("semget 0 1 011600");
        other.must("remove");
        other.must(&format!("set {set}"));
        refused(&mut other, &ON_A_SET);
    }
    assert_eq!(sender.must("receive 0"), "1 secret", "nothing has happened to it");
    assert_eq!(owner.must("value 0"), "0");
    // The same account elsewhere is the same user.
    let mut same = Puppet::of(&cluster, 2, DAEMON);
    same.must("msgget 0x61 010600");
    same.must("send 1 mine");
    assert_eq!(sender.must("receive 0"), "1 mine");
}

#[test]
fn a_stolen_socket_is_of_no_use() {
    if skip::needs_root("a_stolen_socket_is_of_no_use") {
        return;
    }
    let cluster = Cluster::start(2);
    let mut near = Puppet::on(cluster.node(1));
    near.must("msgget 0x62 011600");
    let mut far = Puppet::on(cluster.node(2));
    far.must("msgget 0x62 010600");
    far.must("send 1 first");
    let pid = Pid::from_raw(far.process().pid() as i32).expect("a pid");
    let wires = connected_sockets(pid);
    assert!(!wires.is_empty(), "its wire is found");
    let pidfd = pidfd_open(pid, PidfdFlags::empty()).expect("it runs");
    for number in wires {
        let stolen = pidfd_getfd(pidfd.as_fd(), number, PidfdGetfdFlags::empty());
        let mut stolen = UnixStream::from(stolen.expect("root may"));
        // What it was is secret; whatever is written is no operation, and ends the wire.
        let _ = stolen.write_all(&[0, 40]).and_then(|()| stolen.write_all(&[7; 40]));
    }
    far.must("send 1 second");
    assert_eq!(near.must("count"), "2");
    assert_eq!(near.must("receive 0"), "1 first");
    assert_eq!(near.must("receive 0"), "1 second");
}

/// The numbers of a process's stream sockets: its wires.
fn connected_sockets(pid: Pid) -> Vec<i32> {
    let directory = format!("/proc/{}/fd", pid.as_raw_nonzero());
    let entries = fs::read_dir(directory).expect("root may look");
    let is_socket = |entry: &fs::DirEntry| {
        fs::read_link(entry.path()).is_ok_and(|to| to.to_string_lossy().starts_with("socket:"))
    };
    let sockets = entries.filter_map(Result::ok).filter(is_socket);
    sockets.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

/// A process of the account may do to its stand-in what it may do to root's processes: nothing.
#[test]
fn a_stand_in_is_out_of_its_accounts_reach() {
    if skip::needs_root("a_stand_in_is_out_of_its_accounts_reach") {
        return;
    }
    let cluster = Cluster::start(2);
    let mut near = Puppet::on(cluster.node(1));
    near.must("semget 0x6a 1 011666");
    near.must("op 0 1");
    let mut far = Puppet::of(&cluster, 2, DAEMON);
    far.must("semget 0x6a 1 010600");
    far.must("op 0 -1 undo");
    let [stand_in] = cluster.node(1).stand_ins()[..] else { panic!("one client has one") };
    let pid = stand_in.as_raw_nonzero();
    for attempt in [
        format!("kill -KILL {pid}"),
        format!("kill -STOP {pid}"),
        format!("ls /proc/{pid}/fd/"),
        format!("cat /proc/{pid}/environ"),
        format!("cat /proc/{pid}/maps"),
        format!("head -c 1 /proc/{pid}/mem"),
    ] {
        let output = cluster.node(1).spawn_as(DAEMON, "sh", &["-c", &attempt]).wait();
        assert!(!output.status.success(), "{attempt}: {output:?}");
    }
    assert_eq!(near.must("value 0"), "0", "nothing is undone");
    far.must("op 0 1");
    assert_eq!(near.must("value 0"), "1");
}

#[test]
fn what_a_program_says_of_itself_counts_for_nothing() {
    let cluster = Cluster::start(1);
    let node = cluster.node(1);
    let home = NodeId::new(1).expect("a number of a node");
    // A wire without having joined, to a home that is not, for a slot that is none.
    for (home, slot) in [(home, 0), (NodeId::new(9).expect("a number"), 0), (home, u32::MAX)] {
        let answer = local::call(node, Call::OpenWire { home, slot: Slot(slot) });
        assert!(matches!(answer, Some(Answer::Refused(SysvError::EINVAL))), "{answer:?}");
    }
    // An object that is not gone, said to be.
    let get = |nonce| Call::Get {
        kind: Kind::Queue,
        key: Key(0x63),
        flags: IPC_CREAT | 0o600,
        size: 0,
        nonce: Nonce(nonce),
    };
    let Some(Answer::Object { id, .. }) = local::call(node, get(1)) else {
        panic!("a queue can be made")
    };
    local::call(node, Call::Removed { id });
    let again = local::call(node, get(2));
    assert!(matches!(again, Some(Answer::Object { id: same, .. }) if same == id), "{again:?}");
    let mut puppet = Puppet::on(node);
    puppet.must("msgget 0x63 010600");
    puppet.must("remove");
}

#[test]
fn changed_credentials_are_another_wire_with_other_rights() {
    if skip::needs_root("changed_credentials_are_another_wire_with_other_rights") {
        return;
    }
    let cluster = Cluster::start(2);
    let mut near = Puppet::on(cluster.node(1));
    near.must("msgget 0x64 011600");
    let mut far = Puppet::of(&cluster, 2, ROOT);
    far.must("msgget 0x64 010600");
    far.must("send 1 root");
    assert_eq!(cluster.node(1).stand_ins().len(), 1);
    far.must(&format!("become {}", DAEMON.uid));
    assert_eq!(far.call("send 1 daemon"), Err("EACCES".into()));
    assert_eq!(far.call("remove"), Err("EPERM".into()));
    assert_eq!(cluster.node(1).stand_ins().len(), 2, "one for each account");
    assert_eq!(near.must("count"), "1");
}

/// Two nodes; what home's dipc.conf says besides, in place of what the harness says.
fn with_entries(entries: &[(&str, Option<&str>)]) -> Cluster {
    let cluster = Cluster::of(2).prepare();
    for (name, value) in entries {
        cluster.node(1).set_entry(name, *value);
    }
    for node in cluster.nodes() {
        node.start();
    }
    cluster
}

const ROOT: User = User { name: "root", uid: 0, gid: 0 };
/// A number that no login name has.
const NAMELESS: User = User { name: "", uid: 54_321, gid: 54_321 };

#[test]
fn root_of_another_node_is_squashed_unless_its_node_is_named() {
    if skip::needs_root("root_of_another_node_is_squashed_unless_its_node_is_named") {
        return;
    }
    let eacces = || Err("EACCES".to_owned());
    let rows = [
        (None, "no-such-account", ROOT, eacces()),
        (None, DAEMON.name, ROOT, eacces()),
        (None, DAEMON.name, DAEMON, Ok(())),
        (None, "root", ROOT, eacces()),
        (Some("192.0.2.9"), DAEMON.name, ROOT, eacces()),
        (Some("all"), DAEMON.name, ROOT, Ok(())),
    ];
    for (root, squash, owner, expected) in rows {
        let cluster = Cluster::of(2).prepare();
        let home = cluster.node(1);
        let named = cluster.node(2).address.ip().to_string();
        home.set_entry("root", root.map(|root| if root == "all" { named.as_str() } else { root }));
        home.set_entry("squash", Some(squash));
        cluster.nodes().iter().for_each(|node| node.start());
        let mut near = Puppet::of(&cluster, 1, owner);
        near.must("msgget 0x65 011600");
        let got = use_from_afar(&cluster, &mut near, ROOT);
        assert_eq!(got, expected, "root = {root:?}, squash = {squash}, owner {}", owner.name);
    }
}

#[test]
fn accounts_are_found_by_name_or_by_number() {
    if skip::needs_root("accounts_are_found_by_name_or_by_number") {
        return;
    }
    let rows = [
        ("name", DAEMON, DAEMON, Ok(())),
        ("name", DAEMON, BIN, Err("EACCES".to_owned())),
        ("name", NAMELESS, NAMELESS, Err("EACCES".into())),
        ("uid", NAMELESS, NAMELESS, Ok(())),
        ("uid", DAEMON, NAMELESS, Err("EACCES".into())),
    ];
    for (identity, owner, user, expected) in rows {
        let cluster = with_entries(&[("identity", Some(identity))]);
        let mut near = Puppet::of(&cluster, 1, owner);
        near.must("msgget 0x65 011600");
        let got = use_from_afar(&cluster, &mut near, user);
        assert_eq!(got, expected, "identity = {identity}, {owner:?}, {user:?}");
    }
}

/// What a user of node 2 is told who gets and uses the queue that `near` has made.
fn use_from_afar(cluster: &Cluster, near: &mut Puppet, user: User) -> Result<(), String> {
    let mut far = Puppet::of(cluster, 2, user);
    far.call("msgget 0x65 010600")?;
    far.call("send 1 x")?;
    assert_eq!(near.must("receive 0"), "1 x");
    Ok(())
}

/// A puppet in a pid namespace of its own, as in a container.
fn contained(cluster: &Cluster, number: usize) -> Puppet {
    let program = cluster.install(&programs::helper("puppet"));
    let program = program.to_str().expect("a plain path");
    Puppet::from(cluster.node(number).spawn("unshare", &["--pid", "--fork", program]))
}

#[test]
fn a_program_in_a_container_is_refused_or_one_account() {
    if skip::needs_root("a_program_in_a_container_is_refused_or_one_account") {
        return;
    }
    let cluster = with_entries(&[]);
    let mut puppet = contained(&cluster, 1);
    assert_eq!(puppet.call("msgget 0x66 011666"), Err("EACCES".into()));
    cluster.node(1).wait_for_log("container_identity");
    cluster.node(1).set_entry("container_identity", Some("user:daemon"));
    cluster.node(1).reload_and_wait();
    // What it makes is daemon's, whom it counts as; root outside it is not.
    puppet.must("msgget 0x66 011600");
    puppet.must("send 1 inside");
    let mut same = Puppet::of(&cluster, 2, DAEMON);
    same.must("msgget 0x66 010600");
    assert_eq!(same.must("receive 0"), "1 inside");
    let mut other = Puppet::of(&cluster, 2, BIN);
    assert_eq!(other.call("msgget 0x66 010600"), Err("EACCES".into()));
    // It gets at nothing of root's, though it is root where it lives.
    let mut root = Puppet::on(cluster.node(1));
    root.must("msgget 0x67 011600");
    assert_eq!(puppet.call("msgget 0x67 010600"), Err("EACCES".into()));
    // And no such account, or root's, is none.
    for account in ["user:no-such-account", "user:root"] {
        cluster.node(1).set_entry("container_identity", Some(account));
        cluster.node(1).reload_and_wait();
        assert_eq!(puppet.call("msgget 0x68 011600"), Err("EACCES".into()), "{account}");
    }
}

#[test]
fn one_user_has_a_share_and_no_more() {
    if skip::needs_root("one_user_has_a_share_and_no_more") {
        return;
    }
    let cluster =
        Cluster::of(2).entry("user_clients_max", "2").entry("user_objects_max", "3").start();
    let mut maker = Puppet::of(&cluster, 1, DAEMON);
    for key in 1..=3 {
        maker.must(&format!("msgget {key} 011666"));
    }
    assert_eq!(maker.call("msgget 4 011666"), Err("ENOSPC".into()), "objects at one home");
    maker.must("msgget 3 010600");
    maker.must("remove");
    wait_until("there is room again", || maker.call("msgget 4 011666").ok());
    let mut joined: Vec<Puppet> = (0..3).map(|_| Puppet::of(&cluster, 2, DAEMON)).collect();
    for puppet in &mut joined {
        puppet.must("msgget 1 010600");
    }
    joined[0].must("send 1 x");
    joined[1].must("send 1 x");
    assert_eq!(joined[2].call("send 1 x"), Err("ENOMEM".into()), "processes that have joined");
    Puppet::of(&cluster, 2, BIN).must("msgget 1 010600");
    let mut other = Puppet::of(&cluster, 2, BIN);
    other.must("msgget 1 010600");
    other.must("send 1 x");
    // When one ends, the next may.
    joined.remove(0).kill();
    wait_until("there is room again", || joined[1].call("send 1 x").ok());
}
