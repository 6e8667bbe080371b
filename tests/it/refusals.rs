//! Who is not let in, one by one: without the key, with another, with what was recorded or changed
//! on the way, from another place, or speaking of other things. Each is refused at once, with one
//! line that names the address and the reason, and changes nothing.
#![forbid(unsafe_code)]

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::thread;

use dipc_tests::process::{PATIENCE, wait_until};
use dipc_tests::stranger::{
    Peer, SECRET, dial, honest_hello, is_closed, prove, record, serves, shake_hands, with_known_key,
};
use dipc_tests::{Cluster, Node, skip};
use dipc_wire::codec::ByteOrder;
use dipc_wire::ids::{ClientId, Image, NodeId, Req, Secret, SessionId, Slot, TicketId};
use dipc_wire::limits::{ADMISSION_MS, VERSION};
use dipc_wire::noise::{Cipher, HANDSHAKE_BYTES, Handshake, Sealer};
use dipc_wire::peer::{Caller, PeerFrame};
use dipc_wire::preamble::{Hello, Preamble, Purpose, TransferMode, Transport};
use dipc_wire::sysv::Rights;
use rustix::net::{AddressFamily, SocketType};

/// However slow somebody is: he has a second for his greeting.
const _: () = assert!(ADMISSION_MS <= 1_000);

/// Strangers have an address each, so that none of their lines is one too many.
fn stranger(number: usize) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(127, 0, 0, 100 + u8::try_from(number).expect("few")))
}

fn cluster(strangers: usize) -> (Cluster, tempfile::TempDir) {
    let keys = tempfile::tempdir().expect("a temporary directory");
    let mut builder = with_known_key(Cluster::of(1), keys.path());
    for number in 0..strangers {
        builder = builder.allow(&stranger(number).to_string());
    }
    (builder.start(), keys)
}

/// A connection from one of our addresses.
fn dial_from(address: IpAddr, node: &Node) -> TcpStream {
    let socket = rustix::net::socket(AddressFamily::INET, SocketType::STREAM, None);
    let socket = socket.expect("a descriptor is left");
    rustix::net::bind(&socket, &SocketAddr::new(address, 0)).expect("the address is loopback's");
    rustix::net::connect(&socket, &node.address).expect("dipcd listens");
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(PATIENCE)).expect("not zero");
    stream
}

/// What comes after the handshake, sealed.
type Sealed = Box<dyn Fn(&mut Sealer) -> Vec<u8>>;

/// What somebody says who dials, up to his Hello.
enum Says {
    /// These bytes.
    Bytes(Vec<u8>),
    /// What needs a handshake first, by the cluster's key.
    Hello(Sealed),
}

fn begin(key: [u8; 32]) -> Vec<u8> {
    let mut bytes = Preamble(Purpose::Link).encode().to_vec();
    bytes.extend(record(&Handshake::initiator(&Secret(key)).write()));
    bytes
}

fn sealed(hello: Hello) -> Says {
    Says::Hello(Box::new(move |sealer| {
        let mut bytes = Vec::new();
        sealer.seal(&hello.encode(), &mut bytes);
        bytes
    }))
}

/// A greeting as it went over the wire once, from the preamble to the Hello.
fn recorded(node: &Node) -> Vec<u8> {
    wait_until("dipcd answers a proven peer", || {
        let mut stream = dial(node);
        let mut handshake = Handshake::initiator(&Secret(SECRET));
        let mut said = Preamble(Purpose::Link).encode().to_vec();
        said.extend(record(&handshake.write()));
        stream.write_all(&said).ok()?;
        let mut answer = [0; 2 + HANDSHAKE_BYTES];
        stream.read_exact(&mut answer).ok()?;
        handshake.read(answer.last_chunk().expect("it is longer")).expect("dipcd proves its key");
        handshake.finish(Cipher::AesGcm).0.seal(&honest_hello(node).encode(), &mut said);
        Some(said)
    })
}

/// Who tries, with what, and the reason in the log.
fn rows(node: &Node) -> Vec<(&'static str, Says, &'static str)> {
    let honest = honest_hello(node);
    let version = |at: usize| {
        let mut bytes = begin(SECRET);
        bytes[at..at + 2].copy_from_slice(&(VERSION + 1).to_be_bytes());
        Says::Bytes(bytes)
    };
    let elsewhere = "127.0.0.9:4750".parse().expect("an address");
    let not_there = Hello { address: elsewhere, ..honest };
    let changed = Says::Hello(Box::new(move |sealer| {
        let mut bytes = Vec::new();
        sealer.seal(&honest.encode(), &mut bytes);
        bytes[40] ^= 0x10;
        bytes
    }));
    vec![
        ("no key", Says::Bytes(begin([0; 32])), "wrong key"),
        ("another key", Says::Bytes(begin([1; 32])), "wrong key"),
        ("a recorded handshake", Says::Bytes(begin(SECRET)), "no answer in time"),
        ("a recorded greeting", Says::Bytes(recorded(node)), "wrong key"),
        ("a changed bit", changed, "wrong key"),
        ("another version", version(4), "version"),
        ("another machine's address", sealed(not_there), "it says that it listens at"),
        ("another page size", sealed(Hello { page_bytes: 12_288, ..honest }), "dipc_page_size"),
        ("another transport", sealed(Hello { transport: Transport::Udp, ..honest }), "-u"),
        ("another order", sealed(Hello { order: ByteOrder::Network, ..honest }), "-n"),
        (
            "another transfer mode",
            sealed(Hello { transfer_mode: TransferMode::Segment, ..honest }),
            "transfer_mode",
        ),
        ("another referee", sealed(Hello { referee: elsewhere, ..honest }), "referee"),
        ("half a preamble", Says::Bytes(b"DIPC".to_vec()), "did not say in time"),
        ("nothing", Says::Bytes(Vec::new()), "did not say in time"),
        ("not DIPC", Says::Bytes(vec![7; 200]), "not a DIPC peer"),
    ]
}

/// Says it from this address; the lines of the log about that.
fn lines_about(node: &Node, from: IpAddr, what: &str, says: &Says) -> Vec<String> {
    let mut stream = dial_from(from, node);
    let own = stream.local_addr().expect("it is connected");
    // It may be closed before we have written everything, or are through with the handshake.
    match says {
        Says::Bytes(bytes) => drop(stream.write_all(bytes)),
        Says::Hello(say) => {
            drop(prove(&mut stream).and_then(|(mut sealer, _)| stream.write_all(&say(&mut sealer))))
        }
    }
    is_closed(stream, what);
    let peer = format!("peer={own} ");
    node.wait_for_log(&peer);
    node.log().lines().filter(|line| line.contains(&peer)).map(str::to_owned).collect()
}

#[test]
fn each_is_refused_with_one_line_and_no_effect() {
    // On a busy machine somebody may be too slow for his second; then another one says the same.
    const TIMES: usize = 5;
    let (cluster, _keys) = cluster(20 * TIMES);
    let node = cluster.node(1);
    let rows = rows(node);
    let links = || node.log().matches("op=\"linked\"").count();
    let before = links();
    for (number, (what, says, reason)) in rows.into_iter().enumerate() {
        let as_expected = (0..TIMES).any(|time| {
            let lines = lines_about(node, stranger(number + 20 * time), what, &says);
            let [line] = &lines[..] else { panic!("{what}: {lines:?}") };
            assert!(line.contains(reason) || line.contains("in time"), "{what}: {line}");
            line.contains(reason)
        });
        assert!(as_expected, "{what}: never {reason:?}");
    }
    assert_eq!(links(), before, "somebody was let in");
    serves(node);
}

#[test]
fn who_is_not_on_the_list_is_not_heard() {
    let (cluster, _keys) = cluster(0);
    let node = cluster.node(1);
    let mut stream = dial_from(stranger(0), node);
    let own = stream.local_addr().expect("it is connected");
    let _ = stream.write_all(&recorded(node));
    is_closed(stream, "a stranger with the key");
    node.wait_for_log(&format!("peer={own} reason=refused: not in dipc.allow"));
    serves(node);
}

#[test]
fn no_bit_of_a_greeting_can_be_changed() {
    let (cluster, _keys) = cluster(0);
    let node = cluster.node(1);
    let (first, record_bytes) = (Preamble::BYTES + 2 + HANDSHAKE_BYTES, 2 + Hello::BYTES + 16);
    let bits = (first + record_bytes) * 8;
    let every = if skip::is_long() { 1 } else { 5 };
    skip::note(&format!("no_bit_of_a_greeting_can_be_changed: every {every} of {bits}"));
    let links = || node.log().matches("op=\"linked\"").count();
    let before = links();
    thread::scope(|scope| {
        for part in 0..16 {
            scope.spawn(move || {
                for bit in (part * every..bits).step_by(16 * every) {
                    let (byte, mask) = (bit / 8, 1 << (bit % 8));
                    let (mut stream, bytes) = if byte < first {
                        let mut bytes = begin(SECRET);
                        bytes[byte] ^= mask;
                        (dial(node), bytes)
                    } else {
                        let (stream, mut sealer) = shake_hands(node);
                        let mut bytes = Vec::new();
                        sealer.seal(&honest_hello(node).encode(), &mut bytes);
                        bytes[byte - first] ^= mask;
                        (stream, bytes)
                    };
                    let _ = stream.write_all(&bytes);
                    is_closed(stream, &format!("bit {bit}"));
                }
            });
        }
    });
    assert_eq!(links(), before, "somebody was let in");
    serves(node);
}

#[test]
fn a_ticket_is_good_once_and_for_who_has_its_secret() {
    let (cluster, _keys) = cluster(0);
    let node = cluster.node(1);
    let mut peer = Peer::admitted(node);
    let own = loop {
        if let PeerFrame::Admitted { node, .. } = peer.hear() {
            break node;
        }
    };
    let tickets = [(TicketId(1), [9; 32]), (TicketId(2), [8; 32])];
    for (ticket, secret) in tickets {
        let client = ClientId { node: own, pid: 1, started: 1 };
        let session = SessionId { client, image: Image(0), slot: Slot(0) };
        let (req, caller) = (Req(ticket.0), caller(own));
        peer.say(&PeerFrame::Ticket { req, ticket, secret: Secret(secret), session, caller });
        while !matches!(peer.hear(), PeerFrame::Ticketed { outcome: Ok(_), .. }) {}
    }
    let [(first, _), (second, secret)] = tickets;
    // Who has seen its number, and not its secret.
    assert!(!opens(node, first, [7; 32]));
    // It is used up by that; and the other by whom it was for.
    assert!(!opens(node, first, [9; 32]));
    assert!(opens(node, second, secret));
    assert!(!opens(node, second, secret));
    node.wait_for_log("no such ticket");
}

fn caller(node: NodeId) -> Caller {
    Caller {
        client: ClientId { node, pid: 1, started: 1 },
        uid: rustix::process::geteuid().as_raw().max(1),
        gid: 1,
        groups: Vec::new(),
        user_name: Some("daemon".into()),
        group_names: vec!["daemon".into()],
        rights: Rights::default(),
    }
}

/// Whether a wire opens by this ticket.
fn opens(node: &Node, ticket: TicketId, secret: [u8; 32]) -> bool {
    let mut stream = dial(node);
    let mut handshake = Handshake::initiator(&Secret(secret));
    let mut bytes = Preamble(Purpose::Wire(ticket)).encode().to_vec();
    bytes.extend(record(&handshake.write()));
    let _ = stream.write_all(&bytes);
    let mut answer = [0; 2 + HANDSHAKE_BYTES];
    stream.read_exact(&mut answer).is_ok()
        && handshake.read(answer.last_chunk().expect("it is longer")).is_ok()
}
