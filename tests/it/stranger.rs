//! A stranger on the network, or a node gone bad: what a test says to a dipcd byte by byte, with
//! the cluster's key or without it.
#![forbid(unsafe_code)]

use std::fs;
use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use dipc_wire::codec::{ByteOrder, decode_frame, encode_frame, frame_length};
use dipc_wire::ids::{Epoch, Incarnation, NodeId, Secret};
use dipc_wire::noise::{Cipher, HANDSHAKE_BYTES, Handshake, Opener, Sealer};
use dipc_wire::peer::PeerFrame;
use dipc_wire::preamble::{Hello, Preamble, Purpose, TransferMode, Transport};

use crate::cluster::{Builder, Cluster};
use crate::node::Node;
use crate::process::{PATIENCE, wait_until};
use crate::puppet::Puppet;

/// The cluster's secret, where a test must know it.
pub const SECRET: [u8; 32] = [0x5a; 32];

/// A cluster whose key we know, which lets us in from 127.0.0.1.
pub fn cluster_with_known_key(nodes: usize) -> Cluster {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let cluster = with_known_key(Cluster::of(nodes), directory.path()).start();
    drop(directory);
    cluster
}

/// The same, to be described further. The key lies in `directory`.
#[must_use]
pub fn with_known_key(builder: Builder, directory: &Path) -> Builder {
    let key = directory.join("known-key");
    write_key(&key, &SECRET);
    builder.entry("cluster_key", key.to_str().expect("a plain path")).allow("127.0.0.1")
}

/// A key file as dipcd takes it.
pub fn write_key(file: &Path, key: &[u8; 32]) {
    fs::write(file, key).expect("the directory is ours");
    fs::set_permissions(file, fs::Permissions::from_mode(0o600)).expect("the file is ours");
}

/// A connection to a node.
pub fn dial(node: &Node) -> TcpStream {
    let stream = TcpStream::connect(node.address).expect("dipcd listens");
    stream.set_read_timeout(Some(PATIENCE)).expect("not zero");
    stream.set_write_timeout(Some(PATIENCE)).expect("not zero");
    stream
}

/// The other end closes the connection; what it says before is read and forgotten.
#[track_caller]
pub fn is_closed(mut stream: TcpStream, what: &str) {
    let mut buffer = [0; 4096];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return,
            Ok(_) => {}
            Err(error) => match error.kind() {
                ErrorKind::ConnectionReset => return,
                ErrorKind::Interrupted => {}
                _ => panic!("{what}: not closed: {error}"),
            },
        }
    }
}

/// Bytes behind their length, as the messages of a handshake are sent.
pub fn record(bytes: &[u8]) -> Vec<u8> {
    let length = u16::try_from(bytes.len()).expect("a short message");
    [&length.to_be_bytes(), bytes].concat()
}

/// A link up to the end of the handshake, which proves the key.
pub fn shake_hands(node: &Node) -> (TcpStream, Sealer) {
    let Peer { stream, sealer, .. } = Peer::shake_hands(node);
    (stream, sealer)
}

/// How a link begins with a key: the preamble, and the first message of the handshake.
pub fn greeting(key: &[u8; 32]) -> Vec<u8> {
    let mut bytes = Preamble(Purpose::Link).encode().to_vec();
    bytes.extend(record(&Handshake::initiator(&Secret(*key)).write()));
    bytes
}

/// Begins a link with a key.
pub fn begin_with(stream: &mut TcpStream, key: &[u8; 32]) {
    stream.write_all(&greeting(key)).expect("dipcd reads");
}

/// Shakes hands by the cluster's key. dipcd gives a second for that, and closes the connection to
/// whoever was too slow, as on a busy machine anybody may be.
pub fn prove(stream: &mut TcpStream) -> io::Result<(Sealer, Opener)> {
    let mut handshake = Handshake::initiator(&Secret(SECRET));
    stream.write_all(&Preamble(Purpose::Link).encode())?;
    stream.write_all(&record(&handshake.write()))?;
    let mut answer = [0; 2 + HANDSHAKE_BYTES];
    stream.read_exact(&mut answer)?;
    handshake.read(answer.last_chunk().expect("it is longer")).expect("dipcd proves its key");
    Ok(handshake.finish(Cipher::AesGcm))
}

/// A connection whose handshake has proven the key: the beginning of a link.
pub struct Peer {
    /// The connection.
    pub stream: TcpStream,
    /// Protects what we say.
    pub sealer: Sealer,
    opener: Opener,
    /// As it came, and out of its protection.
    came: Vec<u8>,
    plain: Vec<u8>,
    greeted: bool,
}

impl Peer {
    /// Dials, and shakes hands. Whoever was too slow for that begins again.
    pub fn shake_hands(node: &Node) -> Peer {
        wait_until("dipcd answers a proven peer", || {
            let mut stream = dial(node);
            let (sealer, opener) = prove(&mut stream).ok()?;
            let (came, plain) = (Vec::new(), Vec::new());
            Some(Peer { stream, sealer, opener, came, plain, greeted: false })
        })
    }

    /// A peer that the referee has let in: a new node of the cluster at 127.0.0.1.
    pub fn admitted(referee: &Node) -> Peer {
        wait_until("dipcd lets an honest peer in", || {
            let mut peer = Peer::shake_hands(referee);
            let mut sealed = Vec::new();
            peer.sealer.seal(&honest_hello(referee).encode(), &mut sealed);
            peer.stream.write_all(&sealed).ok()?;
            // Its own Hello is for whom it has heard in time.
            while !peer.greeted {
                peer.take_more().ok()?;
            }
            Some(peer)
        })
    }

    /// Says what is no frame.
    pub fn say_bytes(&mut self, bytes: &[u8]) {
        let mut sealed = Vec::new();
        self.sealer.seal(bytes, &mut sealed);
        self.stream.write_all(&sealed).expect("dipcd reads");
    }

    /// Says a frame.
    pub fn say(&mut self, frame: &PeerFrame) {
        self.say_with(frame, &[]);
    }

    /// Says a frame with raw bytes behind it.
    pub fn say_with(&mut self, frame: &PeerFrame, raw: &[u8]) {
        let mut bytes = Vec::new();
        encode_frame(ByteOrder::Little, frame, raw, &mut bytes);
        self.say_bytes(&bytes);
    }

    /// The next frame that dipcd says. Its Hello is passed over.
    pub fn hear(&mut self) -> PeerFrame {
        loop {
            if self.greeted
                && let Ok(Some(length)) = frame_length(ByteOrder::Little, &self.plain)
                && self.plain.len() >= length
            {
                let frame: Vec<u8> = self.plain.drain(..length).collect();
                return decode_frame(ByteOrder::Little, &frame).expect("dipcd says frames").0;
            }
            self.take_more().expect("dipcd speaks");
        }
    }

    /// Takes what has come, or comes next; an error when the link is closed.
    fn take_more(&mut self) -> io::Result<()> {
        let mut buffer = [0; 4096];
        let length = self.stream.read(&mut buffer)?;
        if length == 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        self.came.extend_from_slice(&buffer[..length]);
        while let Some(used) = self.opener.open(&self.came, &mut self.plain).expect("sealed") {
            self.came.drain(..used);
        }
        if !self.greeted && self.plain.len() >= Hello::BYTES {
            self.plain.drain(..Hello::BYTES);
            self.greeted = true;
        }
        Ok(())
    }
}

/// What an honest node would say of itself.
pub fn honest_hello(node: &Node) -> Hello {
    Hello {
        node: NodeId::NONE,
        incarnation: Incarnation(1),
        epoch: Epoch(0),
        address: "127.0.0.1:4751".parse().expect("an address"),
        referee: node.address,
        order: ByteOrder::Little,
        transport: Transport::Tcp,
        transfer_mode: TransferMode::Page,
        page_bytes: u32::try_from(rustix::param::page_size()).expect("a small number"),
        lease_ms: 3_000,
        node_timeout_ms: 5_000,
    }
}

/// A node still does what it is for.
#[track_caller]
pub fn serves(node: &Node) {
    let mut puppet = Puppet::on(node);
    puppet.must("msgget 0x73 011600");
    puppet.must("send 1 x");
    puppet.must("remove");
}
