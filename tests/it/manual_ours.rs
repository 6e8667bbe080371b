//! Our own entries and options of the manual that no other chapter shows: where dipcd keeps what
//! and who may reach it, what is distributed without a word of the program, and the errands that
//! dipcd is started for.
#![forbid(unsafe_code)]

use std::fs::{self, File};
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use dipc_tests::node::{BIN, DAEMON};
use dipc_tests::process::{self, wait_until};
use dipc_tests::stranger::{self, Peer, with_known_key};
use dipc_tests::{Cluster, Node, Output, Puppet, programs, skip};
use dipc_wire::peer::PeerFrame;
use rustix::io::Errno;
use rustix::net::{AddressFamily, Protocol, RecvFlags, SocketType};
use rustix::process::{Pid, Signal, kill_process};

const CREATE: &str = "msgget 0xa1 011600";
const GET: &str = "msgget 0xa1 010600";

/// Whether an id is one of the cluster's.
fn is_distributed(id: &str) -> bool {
    id.parse::<u32>().expect("an id") & 1 << 30 != 0
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).expect("it is there").permissions().mode() & 0o7777
}

#[test]
fn the_socket_is_for_whom_its_mode_and_group_say() {
    if skip::needs_root("the_socket_is_for_whom_its_mode_and_group_say") {
        return;
    }
    let cluster =
        Cluster::of(1).entry("socket_mode", "0660").entry("socket_group", "daemon").start();
    let node = cluster.node(1);
    let socket = fs::metadata(node.socket()).expect("it is there");
    assert_eq!((mode(&node.socket()), socket.uid(), socket.gid()), (0o660, 0, DAEMON.gid));
    let mut member = Puppet::of(&cluster, 1, DAEMON);
    assert!(is_distributed(&member.must(CREATE)));
    // To others it is as if no dipcd were there: the kernel's own.
    let mut other = Puppet::of(&cluster, 1, BIN);
    let id = other.must("msgget 0xa2 011600");
    assert!(!is_distributed(&id), "{id}");
    other.must("remove");
    member.must("remove");
}

#[test]
fn what_dipcd_keeps_is_its_owners_alone_and_in_its_place() {
    let cluster = Cluster::of(2).prepare();
    let top = cluster.directory().join("kept");
    let [state, lib, socket] = ["run", "lib", "run/sock"].map(|name| top.join(name));
    let node = cluster.node(2);
    for (entry, path) in [("state_dir", &state), ("lib_dir", &lib), ("socket", &socket)] {
        node.set_entry(entry, path.to_str());
    }
    cluster.nodes().iter().for_each(|node| node.start());
    assert_eq!((mode(&state), mode(&lib)), (0o711, 0o700), "others may reach the socket");
    assert_eq!(mode(&socket), 0o666);
    let policy = top.join("run/sock.policy");
    // Whoever may open a file may read it, or lock it.
    for entry in fs::read_dir(&state).expect("it is there").flatten() {
        let (path, others) = (entry.path(), mode(&entry.path()) & 0o077);
        let is_open = path == socket || path == policy;
        assert!(others == 0 || is_open, "{}: {others:o}", path.display());
    }
    // Its number is kept in one of them; the other one does not outlive a reboot.
    let number = || {
        let peers = cluster.node(1).ask("dipcctl", &["peers"]);
        let line = peers.lines().find(|line| line.contains(&node.address.to_string()));
        line.and_then(|line| line.split_whitespace().next()).map(str::to_owned)
    };
    let before = wait_until("it is admitted", number);
    node.kill_everything();
    fs::remove_dir_all(&state).expect("it is ours");
    node.start();
    assert_eq!(number(), Some(before));
    assert!(node.stop().success());
}

#[test]
fn an_address_without_a_port_has_that_of_the_entry() {
    let cluster = Cluster::of(2).entry("port", "4793").prepare();
    let referee = cluster.node(1).address.ip().to_string();
    for node in cluster.nodes() {
        node.set_entry("this_machine", Some(&node.address.ip().to_string()));
        node.set_entry("referee", Some(&referee));
        node.start();
    }
    let (mut near, mut far) = (Puppet::on(cluster.node(1)), Puppet::on(cluster.node(2)));
    near.must(CREATE);
    far.must(GET);
    far.must("send 1 there");
    assert_eq!(near.must("receive 0"), "1 there");
    let address = SocketAddr::new(cluster.node(2).address.ip(), 4793);
    let peers = cluster.node(1).ask("dipcctl", &["peers"]);
    assert!(peers.contains(&address.to_string()), "{peers}");
}

/// What goes over this machine's loopback while something is done.
fn overheard(what: impl FnOnce()) -> Result<Vec<u8>, Errno> {
    // Every protocol (ETH_P_ALL).
    let all = NonZeroU32::new(u32::from(3u16.to_be())).map(Protocol::from_raw);
    let socket = rustix::net::socket(AddressFamily::PACKET, SocketType::RAW, all)?;
    rustix::net::sockopt::set_socket_recv_buffer_size_force(&socket, 16 << 20)
        .or_else(|_| rustix::net::sockopt::set_socket_recv_buffer_size(&socket, 16 << 20))?;
    let over = AtomicBool::new(false);
    Ok(thread::scope(|scope| {
        let listener = scope.spawn(|| {
            let (mut heard, mut packet) = (Vec::new(), vec![0; 1 << 16]);
            loop {
                match rustix::net::recv(&socket, &mut packet[..], RecvFlags::DONTWAIT) {
                    Ok((length, _)) => heard.extend_from_slice(&packet[..length]),
                    Err(_) if over.load(Ordering::Acquire) => return heard,
                    Err(_) => thread::sleep(Duration::from_millis(1)),
                }
            }
        });
        what();
        over.store(true, Ordering::Release);
        listener.join().expect("it only listens")
    }))
}

#[test]
fn who_listens_on_the_way_reads_messages_only_without_a_cipher() {
    let name = "who_listens_on_the_way_reads_messages_only_without_a_cipher";
    for (cipher, is_read) in [("none", true), ("aes-gcm", false)] {
        let cluster = Cluster::of(2).entry("cipher", cipher).start();
        let (mut near, mut far) = (Puppet::on(cluster.node(1)), Puppet::on(cluster.node(2)));
        near.must(CREATE);
        far.must(GET);
        let words = format!("words-for-{}-alone", std::process::id());
        // What others send at the same time may be too much for who listens: not every time.
        let mut found = false;
        for _ in 0..10 {
            let heard = match overheard(|| drop(far.must(&format!("send 1 {words}")))) {
                Ok(heard) => heard,
                Err(error) => {
                    return skip::skip(name, &format!("no socket hears packets: {error}"));
                }
            };
            assert_eq!(near.must("receive 0"), format!("1 {words}"));
            found |= heard.windows(words.len()).any(|bytes| bytes == words.as_bytes());
            if found || !is_read {
                break;
            }
        }
        assert_eq!(found, is_read, "cipher = {cipher}");
        let warned = cluster.node(1).log().contains("nothing is protected after the handshake");
        assert_eq!(warned, is_read, "it is warned of");
    }
}

#[test]
fn a_sign_of_life_comes_each_heartbeat() {
    let keys = tempfile::tempdir().expect("a temporary directory");
    let beats = |heartbeat: &str, lease: &str, count: u32| {
        let builder = with_known_key(Cluster::of(1), keys.path());
        let builder = builder.entry("heartbeat", heartbeat).entry("lease", lease);
        let cluster = builder.entry("node_timeout", "120").start();
        let begun = Instant::now();
        let mut peer = Peer::admitted(cluster.node(1));
        let mut heard = 0;
        while heard < count {
            heard += u32::from(matches!(peer.hear(), PeerFrame::Heartbeat { .. }));
        }
        begun.elapsed()
    };
    // No sooner; later it may be on a busy machine. Without the entry the second would take 40 s.
    let (few, many) = (beats("0.5", "3", 4), beats("0.05", "3", 80));
    assert!(few >= Duration::from_millis(1_000), "{few:?}");
    assert!(many < Duration::from_secs(30), "{many:?}");
}

#[test]
fn keys_are_distributed_as_the_file_says_for_all_or_one_program() {
    let cluster = Cluster::of(1).entry("keys", "0xa3").prepare();
    let node = cluster.node(1);
    let program = cluster.install(&programs::helper("puppet"));
    let text = fs::read_to_string(node.config()).expect("the harness wrote it");
    let section = format!("[program {}]\nkeys = 0xa4-0xa5\n", program.display());
    fs::write(node.config(), text + &section).expect("the directory is ours");
    node.start();
    let mut named = Puppet::from(node.spawn(&program, &[]));
    let mut other = Puppet::on(node);
    let is_distributed = |puppet: &mut Puppet, key: &str| {
        let id = puppet.must(&format!("msgget {key} 01600"));
        puppet.must("remove");
        is_distributed(&id)
    };
    assert!(is_distributed(&mut other, "0xa3"));
    for (key, expected) in [("0xa4", true), ("0xa5", true), ("0xa3", false)] {
        assert_eq!(is_distributed(&mut named, key), expected, "{key} of the program named");
    }
    assert!(!is_distributed(&mut other, "0xa4"), "the section is for another program");
}

/// A file that is replaced has another inode, as it has on another machine.
#[test]
fn ftok_goes_by_the_path_if_it_is_told_to() {
    for (ftok, stays) in [("path", true), ("native", false)] {
        let cluster = Cluster::of(1).entry("ftok", ftok).start();
        let [file, next] = ["file", "next"].map(|name| cluster.directory().join(name));
        let mut keys = Vec::new();
        for _ in 0..2 {
            fs::write(&next, "").expect("the directory is ours");
            keys.push(Puppet::on(cluster.node(1)).must(&format!("ftok {}", {
                if keys.is_empty() {
                    fs::write(&file, "").expect("the directory is ours");
                } else {
                    fs::rename(&next, &file).expect("the directory is ours");
                }
                file.display()
            })));
        }
        assert_eq!(keys[0] == keys[1], stays, "ftok = {ftok}: {keys:?}");
    }
}

/// The reply was on its way when the receiver's node ended: home cannot know that it came.
#[test]
fn a_message_that_was_being_received_goes_back_or_not() {
    for (on_loss, left) in [("again", "1"), ("drop", "0")] {
        let cluster = Cluster::of(2)
            .entry("queue_on_loss", on_loss)
            .entry("node_timeout", "4")
            .entry("lease", "2")
            .entry("heartbeat", "0.2")
            .start();
        let (mut near, mut far) = (Puppet::on(cluster.node(1)), Puppet::on(cluster.node(2)));
        near.must(CREATE);
        far.must(GET);
        near.must("send 1 last");
        assert_eq!(far.must("receive 0"), "1 last");
        cluster.node(2).kill_everything();
        cluster.node(1).wait_for_log("op=\"lost\" peer=2");
        wait_until("its stand-in ends", || cluster.node(1).stand_ins().is_empty().then_some(()));
        assert_eq!(near.must("count"), left, "queue_on_loss = {on_loss}");
    }
}

/// The helper thread of one trap, and its absence with the other.
#[test]
fn faults_are_caught_as_the_entry_says() {
    for (trap, threads) in [("userfaultfd", 1), ("mprotect", 2)] {
        let cluster = Cluster::of(1).entry("trap", trap).start();
        let mut puppet = Puppet::of_pages(cluster.node(1));
        puppet.must("shmget 0xa6 4096 011600");
        puppet.must("attach 0");
        let tasks = fs::read_dir(format!("/proc/{}/task", puppet.process().pid()));
        assert_eq!(tasks.expect("it runs").count(), threads, "trap = {trap}");
        puppet.must("rmid");
    }
}

#[test]
fn a_node_by_itself_needs_no_file() {
    if skip::needs_root("a_node_by_itself_needs_no_file") {
        return;
    }
    let cluster = Cluster::of(1).prepare();
    let (node, home) = (cluster.node(1), cluster.directory().join("home"));
    fs::create_dir(&home).expect("the directory is ours");
    std::os::unix::fs::chown(&home, Some(DAEMON.uid), Some(DAEMON.gid)).expect("root may");
    let mut command = node.command(cluster.install(&programs::dipcd()), &["--single"]);
    command.env_remove("LD_PRELOAD").uid(DAEMON.uid).gid(DAEMON.gid);
    command.env("XDG_RUNTIME_DIR", &home).env("HOME", &home);
    let dipcd = node.machine().spawn(command);
    dipcd.wait_for("op=\"start\" node=1");
    dipcd.wait_for("without root: it serves the programs of its own user alone");
    let puppet = cluster.install(&programs::helper("puppet"));
    let mut command = node.command(puppet, &[]);
    command.env("DIPC_SOCKET", home.join("dipc/dipcd.sock")).uid(DAEMON.uid).gid(DAEMON.gid);
    let mut puppet = Puppet::from(node.machine().spawn(command));
    assert!(is_distributed(&puppet.must(CREATE)));
    puppet.must("remove");
    dipcd.signal(Signal::TERM);
    dipcd.wait().expect_success();
    assert!(home.join(".local/state/dipc/incarnation").exists(), "it will know itself again");
}

/// The dipcd of a node that the harness did not start itself.
fn found_dipcd(node: &Node) -> Option<Pid> {
    let keepers = node.keepers();
    let is_dipcd = |pid: &Pid| {
        let line = fs::read(format!("/proc/{}/cmdline", pid.as_raw_nonzero()));
        line.is_ok_and(|line| line.starts_with(b"dipcd\0")) && !keepers.contains(pid)
    };
    process::marked(node.directory()).into_iter().find(is_dipcd)
}

#[test]
fn in_the_background_it_returns_when_it_is_ready() {
    let cluster = Cluster::of(1).prepare();
    let node = cluster.node(1);
    let said = cluster.directory().join("said");
    let start = || {
        let config = node.config();
        let arguments = ["--background", "--config", config.to_str().expect("a plain path")];
        let mut command = node.command(programs::dipcd(), &arguments);
        let file = File::create(&said).expect("the directory is ours");
        command.env_remove("LD_PRELOAD").stdin(Stdio::null());
        command.stdout(file.try_clone().expect("a descriptor is left")).stderr(file);
        node.machine().start(&mut command).wait().expect("a child can be waited for")
    };
    assert!(start().success(), "{}", fs::read_to_string(&said).unwrap_or_default());
    stranger::serves(node);
    let dipcd = found_dipcd(node).expect("it runs");
    kill_process(dipcd, Signal::TERM).expect("it is ours");
    wait_until("it ends", || process::marked(node.directory()).is_empty().then_some(()));
    node.set_entry("lease", Some("often"));
    assert_eq!(start().code(), Some(1));
    let said = fs::read_to_string(&said).expect("it was made");
    assert!(said.contains("lease") && said.contains("it did not start"), "{said}");
}

#[test]
fn what_is_left_of_a_dipcd_is_purged_and_never_under_one_that_runs() {
    let cluster = Cluster::start(2);
    let node = cluster.node(1);
    let (mut near, mut far) = (Puppet::on(node), Puppet::on(cluster.node(2)));
    near.must(CREATE);
    far.must(GET);
    for puppet in [&mut near, &mut far] {
        puppet.begin("receive 0");
        puppet.until_waiting();
    }
    let refused = node.run_dipcd(&["--purge"]);
    assert_eq!(refused.status.code(), Some(1), "{refused:?}");
    assert!(refused.err.contains("another dipcd is running here"), "{refused:?}");
    node.kill();
    let purged = node.run_dipcd(&["--purge"]).expect_success();
    assert!(purged.ends_with(": 1 objects removed\n"), "{purged}");
    assert_eq!(near.answer(), Err("EIDRM".into()));
    wait_until("nothing runs any more", || node.keepers().is_empty().then_some(()));
    assert!(!node.socket().exists(), "the socket is left");
}

fn dipcd(arguments: &[&str]) -> Output {
    let mut command = Command::new(programs::dipcd());
    command.args(arguments);
    process::Running::pipes(&mut command);
    process::Running::new("dipcd", command.spawn().expect("dipcd starts")).wait()
}

#[test]
fn a_key_is_made_once_and_for_its_owner() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let [one, two] = ["one", "two"].map(|name| directory.path().join(name));
    for file in [&one, &two] {
        let path = file.to_str().expect("a plain path");
        dipcd(&["--make-key", path]).expect_success();
        let text = fs::read_to_string(file).expect("it is made");
        let digits = text.trim_end().bytes().filter(u8::is_ascii_hexdigit).count();
        assert_eq!((digits, text.trim_end().len(), mode(file)), (64, 64, 0o600));
    }
    let before = fs::read(&one).expect("it is ours");
    assert_ne!(before, fs::read(&two).expect("it is ours"), "two are never alike");
    let again = dipcd(&["--make-key", one.to_str().expect("a plain path")]);
    assert_eq!(again.status.code(), Some(1), "{again:?}");
    assert!(again.err.contains("one"), "{again:?}");
    assert_eq!(fs::read(&one).expect("it is ours"), before, "it is not touched");
}

#[test]
fn usage_and_version_are_printed_and_wrong_arguments_end_with_two() {
    let usage = dipcd(&["--help"]).expect_success();
    for option in ["-tunsvcd", "--config FILE", "--single", "--check", "--make-key", "--purge"] {
        assert!(usage.contains(option), "{option}: {usage}");
    }
    let version = dipcd(&["--version"]).expect_success();
    assert!(version.starts_with("dipcd ") && version.lines().count() == 1, "{version}");
    for wrong in ["-x", "--chek", "now"] {
        let output = dipcd(&[wrong]);
        assert_eq!((output.status.code(), output.out.as_str()), (Some(2), ""), "{output:?}");
        assert_eq!(output.err.lines().count(), 1, "{output:?}");
    }
}
