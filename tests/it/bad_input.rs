//! Bad input, from people and from the network: a message that names what is wrong, a closed
//! connection, and never a crash, a hang, or memory without bound.
#![forbid(unsafe_code)]

use std::fs;
use std::io::Write;
use std::net::{TcpListener, TcpStream};

use dipc_tests::stranger::{
    cluster_with_known_key, dial, honest_hello, is_closed, record, serves, shake_hands,
};
use dipc_tests::{Cluster, Node, Puppet, process::PATIENCE, programs};
use dipc_wire::codec::{ByteOrder, encode_frame};
use dipc_wire::ids::{NodeId, Secret};
use dipc_wire::limits::{FRAME_BYTES_MAX, VERSION};
use dipc_wire::noise::{HANDSHAKE_BYTES, Handshake};
use dipc_wire::peer::PeerFrame;
use dipc_wire::preamble::{Hello, Preamble, Purpose, TransferMode, Transport};

/// Memory that a dipcd may gain from what a stranger sends, in KiB.
const GAIN_KIB_MAX: u64 = 16 << 10;

/// A dipc.conf with these lines behind the usual ones, and what the message must name.
const CONFIGURATIONS: &[(&str, &[&str])] = &[
    ("no_such_entry = 1", &["dipc.conf:7", "no_such_entry"]),
    ("heartbeat = often", &["dipc.conf:7", "heartbeat", "often"]),
    ("heartbeat = -1", &["dipc.conf:7", "heartbeat"]),
    ("node_timeout = 1\nlease = 5", &["dipc.conf", "lease"]),
    ("transfer_mode = word", &["dipc.conf:7", "transfer_mode", "word"]),
    ("dipc_page_size = 1000", &["dipc.conf:7", "dipc_page_size"]),
    ("cluster_key = /no/such/key", &["dipc.conf:7", "cluster_key", "/no/such/key"]),
    ("port = 70000", &["dipc.conf:7", "port", "70000"]),
    ("keys = forty", &["dipc.conf:7", "keys", "forty"]),
    ("socket_mode = 0999", &["dipc.conf:7", "socket_mode"]),
    ("cipher = rot13", &["dipc.conf:7", "cipher", "rot13"]),
    ("home = nowhere", &["dipc.conf:7", "home", "nowhere"]),
    ("heartbeat", &["dipc.conf:7"]),
    ("= 5", &["dipc.conf:7"]),
    ("socket = /tmp/x\nsocket = /tmp/y", &["dipc.conf:7", "socket"]),
];

#[test]
fn a_bad_configuration_is_named_by_line() {
    let cluster = Cluster::of(1).prepare();
    let node = cluster.node(1);
    let usual: String = fs::read_to_string(node.config()).expect("the harness wrote it");
    let usual: Vec<&str> = usual.lines().take(6).collect();
    for (lines, names) in CONFIGURATIONS {
        let text = format!("{}\n{lines}\n", usual.join("\n"));
        fs::write(node.config(), text).expect("the directory is ours");
        for arguments in [&["--check"][..], &[]] {
            let output = node.run_dipcd(arguments);
            let said = format!("{}{}", output.out, output.err);
            assert!(!output.status.success(), "{lines:?} was accepted: {said}");
            for name in *names {
                assert!(said.contains(name), "{lines:?} gave {said:?}, which lacks {name:?}");
            }
        }
    }
}

#[test]
fn a_missing_configuration_is_named() {
    let cluster = Cluster::of(1).prepare();
    let node = cluster.node(1);
    fs::remove_file(node.config()).expect("the harness wrote it");
    let output = node.run_dipcd(&[]);
    assert!(!output.status.success());
    assert!(output.err.contains("dipc.conf"), "{output:?}");
}

#[test]
fn mandatory_entries_are_asked_for() {
    let cluster = Cluster::of(1).prepare();
    let node = cluster.node(1);
    let usual = fs::read_to_string(node.config()).expect("the harness wrote it");
    for entry in ["this_machine", "referee"] {
        let without: Vec<&str> = usual.lines().filter(|line| !line.starts_with(entry)).collect();
        fs::write(node.config(), without.join("\n")).expect("the directory is ours");
        let output = node.run_dipcd(&[]);
        assert!(!output.status.success() && output.err.contains(entry), "{entry}: {output:?}");
    }
}

#[test]
fn wrong_arguments_are_named() {
    let cluster = Cluster::of(1).prepare();
    for argument in ["--no-such-option", "-z", "left-over"] {
        let output = cluster.node(1).run_dipcd(&[argument]);
        let said = &output.err;
        assert!(
            !output.status.success() && said.contains(argument.trim_matches('-')),
            "{output:?}"
        );
    }
}

#[test]
fn a_port_in_use_is_named() {
    let cluster = Cluster::of(1).prepare();
    let node = cluster.node(1);
    let _other = TcpListener::bind(node.address).expect("a free address");
    let output = node.run_dipcd(&[]);
    assert!(!output.status.success(), "{output:?}");
    assert!(output.err.contains(&node.address.to_string()), "{output:?}");
    assert!(node.keepers().is_empty(), "a keeper is left");
}

#[test]
fn a_second_dipcd_on_one_socket_is_refused() {
    let cluster = Cluster::start(1);
    let node = cluster.node(1);
    let output = node.run_dipcd(&[]);
    assert!(!output.status.success(), "{output:?}");
    let text = fs::read_to_string(node.config()).expect("the harness wrote it");
    let other = std::net::SocketAddr::new(node.address.ip(), node.address.port() + 1);
    let moved = text.replace(&node.address.to_string(), &other.to_string());
    let moved = moved.replace("/state\n", "/state2\n").replace("/lib\n", "/lib2\n");
    fs::write(node.config(), moved).expect("the directory is ours");
    let output = node.run_dipcd(&[]);
    assert!(!output.status.success(), "{output:?}");
    let socket = node.socket().display().to_string();
    assert!(output.err.contains(&socket), "{socket} is not named: {output:?}");
    serves(node);
}

#[test]
fn a_referee_that_is_not_there_is_named() {
    let cluster = Cluster::of(2)
        .entry("employer_referee_timeout", "4")
        .entry("referee_timeout", "3")
        .prepare();
    let node = cluster.node(2);
    node.start();
    let mut puppet = Puppet::on(node);
    assert_eq!(puppet.call("msgget 0x71 011600"), Err("ETIMEDOUT".into()));
    node.wait_for_log(&cluster.node(1).address.to_string());
    cluster.node(1).start();
    let mut puppet = Puppet::on(node);
    dipc_tests::process::wait_until("the node finds its referee", || {
        puppet.call("msgget 0x71 011600").ok()
    });
    puppet.must("remove");
}

fn resident_kib(node: &Node) -> u64 {
    let path = format!("/proc/{}/status", node.dipcd_pid());
    let text = fs::read_to_string(path).expect("dipcd runs");
    let line =
        text.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a process has one");
    line.trim().trim_end_matches(" kB").parse().expect("a number of kB")
}

#[test]
fn strangers_are_turned_away() {
    let cluster = cluster_with_known_key(1);
    let node = cluster.node(1);
    let before = resident_kib(node);
    let mut other_version = Preamble(Purpose::Link).encode();
    other_version[4..6].copy_from_slice(&(VERSION + 7).to_be_bytes());
    let wrong_key = {
        let mut bytes = Preamble(Purpose::Link).encode().to_vec();
        bytes.extend(record(&Handshake::initiator(&Secret([1; 32])).write()));
        bytes
    };
    let rows: [(&str, Vec<u8>); 6] = [
        ("a web browser", b"GET / HTTP/1.1\r\nHost: here\r\n\r\n".to_vec()),
        ("zeros", vec![0; 1 << 16]),
        ("ones", vec![0xff; 1 << 16]),
        ("another version", other_version.to_vec()),
        ("another key", wrong_key),
        ("a ticket that nobody gave", {
            let ticket = dipc_wire::ids::TicketId(77);
            let mut bytes = Preamble(Purpose::Wire(ticket)).encode().to_vec();
            bytes.extend(record(&[7; HANDSHAKE_BYTES]));
            bytes
        }),
    ];
    for (what, bytes) in rows {
        let mut stream = dial(node);
        // It may be closed before we have written everything.
        let _ = stream.write_all(&bytes);
        is_closed(stream, what);
        serves(node);
    }
    for words in [&format!("version {}", VERSION + 7), "not a DIPC peer", "wrong key"] {
        node.wait_for_log(words);
    }
    assert!(resident_kib(node) < before + GAIN_KIB_MAX, "it keeps what strangers send");
}

#[test]
fn a_machine_that_is_not_on_the_list_is_named() {
    let cluster = Cluster::start(1);
    let node = cluster.node(1);
    let mut stream = dial(node);
    // It may be closed before we have written anything.
    let _ = stream.write_all(&Preamble(Purpose::Link).encode());
    is_closed(stream, "a machine that is not on the list");
    node.wait_for_log("127.0.0.1");
    serves(node);
}

#[test]
fn half_a_greeting_and_silence_is_not_waited_for() {
    let cluster = cluster_with_known_key(1);
    let node = cluster.node(1);
    let preamble = Preamble(Purpose::Link).encode();
    for length in [0, 1, Preamble::BYTES - 1, Preamble::BYTES] {
        let mut stream = dial(node);
        stream.write_all(&preamble[..length]).expect("dipcd reads");
        serves(node);
        is_closed(stream, &format!("{length} bytes and silence"));
    }
    // Many at once hold up nobody else.
    let silent: Vec<TcpStream> = (0..200).map(|_| dial(node)).collect();
    serves(node);
    drop(silent);
}

#[test]
fn a_peer_with_the_key_that_talks_nonsense_is_turned_away() {
    let cluster = cluster_with_known_key(1);
    let node = cluster.node(1);
    let before = resident_kib(node);
    let rows: [(&str, &[u8]); 3] = [
        ("no Hello", &[0x33; 80]),
        ("a long one", &[0x44; 60_000]),
        ("half of one", b"DIPC\0\x01"),
    ];
    for (what, bytes) in rows {
        let (mut stream, mut sealer) = shake_hands(node);
        let mut sealed = Vec::new();
        sealer.seal(bytes, &mut sealed);
        stream.write_all(&sealed).expect("dipcd reads");
        // A record whose bytes were changed on the way.
        stream.write_all(&[0, 40]).and_then(|()| stream.write_all(&[9; 40])).ok();
        is_closed(stream, what);
        serves(node);
    }
    assert!(resident_kib(node) < before + GAIN_KIB_MAX, "it allocates what a peer announces");
}

#[test]
fn an_admitted_peer_that_talks_nonsense_is_cut_off() {
    let cluster = cluster_with_known_key(1);
    let node = cluster.node(1);
    let before = resident_kib(node);
    let rows: [(&str, &[u8]); 4] = [
        ("a frame of 4 GiB", &[0xff; 6]),
        ("a frame of no bytes", &[0; 6]),
        ("a frame that is none", &[8, 0, 0, 0, 6, 0, 99, 99, 99, 99, 99, 99]),
        ("a frame with too much", &[12, 0, 0, 0, 8, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1]),
    ];
    for (what, bytes) in rows {
        let (mut stream, mut sealer) = shake_hands(node);
        let mut sealed = Vec::new();
        sealer.seal(&honest_hello(node).encode(), &mut sealed);
        sealer.seal(bytes, &mut sealed);
        stream.write_all(&sealed).expect("dipcd reads");
        is_closed(stream, what);
        serves(node);
    }
    node.wait_for_log(&FRAME_BYTES_MAX.to_string());
    assert!(resident_kib(node) < before + GAIN_KIB_MAX, "it allocates what a peer announces");
}

#[test]
fn a_peer_that_calls_itself_another_node_is_refused() {
    let cluster = cluster_with_known_key(2);
    let node = cluster.node(2);
    serves(node);
    let honest = Hello { referee: cluster.node(1).address, ..honest_hello(node) };
    for (what, number) in [("the referee", 1), ("the node itself", 2), ("nobody", 9)] {
        let (mut stream, mut sealer) = shake_hands(node);
        let number = NodeId::new(number).expect("a number of a node");
        let mut sealed = Vec::new();
        sealer.seal(&Hello { node: number, ..honest }.encode(), &mut sealed);
        stream.write_all(&sealed).expect("dipcd reads");
        is_closed(stream, what);
        node.wait_for_log(&format!("it is not node {number} at 127.0.0.1"));
        serves(node);
    }
}

#[test]
fn orders_of_a_peer_that_is_not_the_referee_are_not_obeyed() {
    let cluster = cluster_with_known_key(1);
    let node = cluster.node(1);
    let mut puppet = Puppet::on(node);
    let id = puppet.must("msgget 0x70 011600");
    let (mut stream, mut sealer) = shake_hands(node);
    let mut sealed = Vec::new();
    sealer.seal(&honest_hello(node).encode(), &mut sealed);
    let mut order = Vec::new();
    encode_frame(ByteOrder::Little, &PeerFrame::Void, &[], &mut order);
    sealer.seal(&order, &mut sealed);
    stream.write_all(&sealed).expect("dipcd reads");
    is_closed(stream, "an order to destroy everything");
    node.wait_for_log("only a referee says this");
    assert_eq!(puppet.must("msgget 0x70 010600"), id, "the queue is still there");
}

#[test]
fn peers_that_do_not_fit_are_refused_by_name() {
    let cluster = cluster_with_known_key(1);
    let node = cluster.node(1);
    let honest = honest_hello(node);
    let elsewhere = "127.0.0.9:4750".parse().expect("an address");
    let rows = [
        ("byte order", Hello { order: ByteOrder::Network, ..honest }),
        ("transport", Hello { transport: Transport::Udp, ..honest }),
        ("transfer_mode", Hello { transfer_mode: TransferMode::Segment, ..honest }),
        ("dipc_page_size", Hello { page_bytes: 12_288, ..honest }),
        ("referee", Hello { referee: elsewhere, ..honest }),
        ("lease", Hello { lease_ms: 60_000, ..honest }),
    ];
    for (name, hello) in rows {
        let (mut stream, mut sealer) = shake_hands(node);
        let mut sealed = Vec::new();
        sealer.seal(&hello.encode(), &mut sealed);
        stream.write_all(&sealed).expect("dipcd reads");
        is_closed(stream, name);
        node.wait_for_log(name);
        serves(node);
    }
}

#[test]
fn a_program_that_talks_nonsense_is_turned_away() {
    use rustix::net::{AddressFamily, SendFlags, SocketAddrUnix, SocketFlags, SocketType};
    let cluster = Cluster::start(1);
    let node = cluster.node(1);
    for bytes in [&[][..], &[1], &[0xff; 64], &[0; 50_000], &VERSION.to_le_bytes()] {
        let family = AddressFamily::UNIX;
        let flags = SocketFlags::CLOEXEC;
        let socket = rustix::net::socket_with(family, SocketType::SEQPACKET, flags, None);
        let socket = socket.expect("a descriptor is left");
        let address = SocketAddrUnix::new(node.socket()).expect("a short path");
        rustix::net::connect(&socket, &address).expect("dipcd listens");
        rustix::net::send(&socket, bytes, SendFlags::NOSIGNAL).expect("a packet is taken");
        let mut watched = [rustix::event::PollFd::new(&socket, rustix::event::PollFlags::IN)];
        let patience = rustix::time::Timespec::try_from(PATIENCE).expect("a few minutes fit");
        let closed = rustix::event::poll(&mut watched, Some(&patience)).expect("a descriptor");
        assert_eq!(closed, 1, "{} bytes of nonsense are not answered", bytes.len());
        serves(node);
    }
}

#[test]
fn without_dipcd_the_kernel_serves() {
    let cluster = Cluster::of(1).prepare();
    let node = cluster.node(1);
    serves(node);
    let mut strict = node.command(programs::helper("puppet"), &[]);
    strict.env("DIPC_STRICT", "1");
    let mut strict = node.machine().spawn(strict);
    strict.tell("msgget 0x71 011600");
    assert_eq!(strict.line(0), "! ENOSYS");
    strict.tell("msgget 0x71 01600");
    assert!(strict.line(1).starts_with('='));
    strict.tell("remove");
    assert_eq!(strict.line(2), "= 0");
}
