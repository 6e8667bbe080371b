//! One link, from the connection to its end: preamble, handshake, Hello, then a reader (the thread
//! that runs it), a writer for what could not be sent at once, and a worker for what may take a
//! moment.
//!
//! ```text
//! dialler: connect ─ preamble ─ handshake ─ Hello ─▶ ◀─ Hello ─ check ─ frames
//! dialled:  accept ─ preamble ─ handshake ─▶ Hello ─ check ─ Hello ─ (referee: admission) ─ frames
//! ```
//!
//! Both ends check the other's Hello and log a mismatch by name. A link that fails is closed;
//! whoever dials tries again.
#![forbid(unsafe_code)]

use crossbeam_channel::{Receiver, bounded};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use dipc_wire::codec::WireError;
use dipc_wire::ids::NodeId;
use dipc_wire::limits::ADMISSION_MS;
use dipc_wire::peer::PeerFrame;
use dipc_wire::preamble::{Hello, Preamble, Purpose, Transport};

use crate::channel::{self, Channel, ChannelError, ChannelReceiver};
use crate::clock::Deadline;
use crate::daemon::Daemon;
use crate::links::{Link, is_heartbeat, is_question};
use crate::outbox::{OUTBOX_FRAMES, Outbox};
use crate::proof::Proof;
use crate::sockets;
use crate::vigil::{Vigil, Watch};

/// Stack of the three threads of a link.
const STACK_BYTES: usize = 256 << 10;
/// How long a dialler waits for a connection.
const CONNECT_WAIT: Duration = Duration::from_secs(2);
/// How long the referee may take to admit a node: it may have to wait for its disk.
const ADMISSION_WAIT: Duration = Duration::from_secs(10);

/// What this node says of itself.
pub fn own_hello(daemon: &Daemon) -> Hello {
    let config = daemon.config();
    let millis = |wait: Duration| u32::try_from(wait.as_millis()).unwrap_or(u32::MAX);
    Hello {
        node: daemon.links.me(),
        incarnation: daemon.incarnation,
        epoch: daemon.epoch(),
        address: config.this_machine,
        referee: config.referee,
        order: daemon.order,
        transport: daemon.road.transport(),
        transfer_mode: config.transfer.mode,
        page_bytes: config.transfer.page_bytes,
        lease_ms: millis(config.liveness.lease),
        node_timeout_ms: millis(config.liveness.node_timeout),
    }
}

/// Why two nodes do not link: each thing that must be equal, by its name in dipc.conf.
fn mismatch(ours: &Hello, theirs: &Hello) -> Option<String> {
    let differ = |entry: &str, here: &dyn std::fmt::Debug, there: &dyn std::fmt::Debug| {
        Some(format!("{entry}: here {here:?}, there {there:?}"))
    };
    if ours.transport != theirs.transport {
        differ("-u (transport)", &ours.transport, &theirs.transport)
    } else if ours.order != theirs.order {
        differ("-n (byte order)", &ours.order, &theirs.order)
    } else if ours.transfer_mode != theirs.transfer_mode {
        differ("transfer_mode", &ours.transfer_mode, &theirs.transfer_mode)
    } else if ours.page_bytes != theirs.page_bytes {
        differ("dipc_page_size", &ours.page_bytes, &theirs.page_bytes)
    } else if ours.referee != theirs.referee {
        differ("referee", &ours.referee, &theirs.referee)
    } else if ours.node_timeout_ms < theirs.lease_ms.saturating_add(theirs.lease_ms / 50) {
        differ("node_timeout here, lease there (ms)", &ours.node_timeout_ms, &theirs.lease_ms)
    } else {
        None
    }
}

/// Keeps a link to `address` up while the daemon wants one.
pub fn dial(daemon: &Arc<Daemon>, address: SocketAddr) {
    let mut said = String::new();
    while daemon.wants_to_dial(address) {
        let ended = connect(daemon, address)
            .and_then(|(channel, proof)| greet(daemon, channel, proof, address));
        match ended {
            Ok(()) => said.clear(),
            Err(error) => {
                let error = error.to_string();
                if error != said {
                    let role = if address == daemon.config().referee { "referee" } else { "peer" };
                    tracing::warn!(op = "dial", peer = %address, role, %error, "trying again");
                    said = error;
                }
            }
        }
        daemon.pause(daemon.config().liveness.heartbeat.min(Duration::from_millis(500)));
    }
}

fn connect(daemon: &Daemon, address: SocketAddr) -> io::Result<(Channel, Proof)> {
    let dialled = daemon.road.dial(&daemon.config(), address, CONNECT_WAIT);
    let stream = dialled.map_err(|error| explain(daemon, address, error))?;
    introduce(daemon, address, stream)
}

/// Preamble and handshake of who dials.
fn introduce(
    daemon: &Daemon,
    address: SocketAddr,
    socket: OwnedFd,
) -> io::Result<(Channel, Proof)> {
    let config = daemon.config();
    let deadline = Duration::from_millis(ADMISSION_MS);
    channel::send_all(&socket, &Preamble(Purpose::Link).encode()).map_err(io::Error::other)?;
    let proof = daemon.proof_for(address.ip());
    let handshake = proof.initiate(&daemon.node_key);
    let channel = Channel::initiate_by(socket, handshake, config.cipher, daemon.order, deadline);
    Ok((channel.map_err(io::Error::other)?, proof))
}

/// Why nobody answers to datagrams: perhaps dipcd there speaks TCP. Then it is told over TCP that
/// we do not, so that both ends can name what is wrong.
fn explain(daemon: &Daemon, address: SocketAddr, error: io::Error) -> io::Error {
    let silence = [io::ErrorKind::ConnectionRefused, io::ErrorKind::TimedOut];
    if daemon.road.transport() == Transport::Tcp || !silence.contains(&error.kind()) {
        return error;
    }
    let config = daemon.config();
    let own = config.this_machine.ip();
    let Ok(stream) = sockets::dial(own, address, &config.liveness, CONNECT_WAIT) else {
        return error;
    };
    let greeted = introduce(daemon, address, stream.into())
        .and_then(|(mut channel, _)| hellos(daemon, &mut channel, admission_deadline()));
    let but = "it answers over TCP, but no datagram comes back: is its port open for UDP?";
    greeted.err().unwrap_or_else(|| io::Error::other(but))
}

/// The dialler's side of Hello, then the link until it ends.
fn greet(
    daemon: &Arc<Daemon>,
    mut channel: Channel,
    proof: Proof,
    address: SocketAddr,
) -> io::Result<()> {
    let deadline = admission_deadline();
    let theirs = hellos(daemon, &mut channel, deadline)?;
    if theirs.address != address || !theirs.node.is_admitted() {
        let why = format!("refused: it calls itself node {} at {}", theirs.node, theirs.address);
        return Err(io::Error::other(why));
    }
    let is_referee = address == daemon.config().referee;
    if theirs.node == daemon.links.me() || !is_referee && !is_member(daemon, &theirs, deadline) {
        return Err(not_a_member(&theirs));
    }
    let running = Running::start(daemon, channel, proof, &theirs)?;
    // The link first: nobody else's may count as the referee's.
    daemon.links.insert(theirs.node, running.link.clone());
    if is_referee {
        daemon.links.set_referee(theirs.node);
    }
    running.run(daemon, theirs.node);
    Ok(())
}

/// Hello both ways, ours first: what the peer says, if it goes with what we say.
fn hellos(daemon: &Daemon, channel: &mut Channel, deadline: Deadline) -> io::Result<Hello> {
    let ours = own_hello(daemon);
    channel.send_bytes(&ours.encode()).map_err(io::Error::other)?;
    let theirs = read_hello(channel, deadline)?;
    match mismatch(&ours, &theirs) {
        Some(why) => Err(io::Error::other(format!("refused: {why}"))),
        None => Ok(theirs),
    }
}

fn admission_deadline() -> Deadline {
    Deadline::after(Some(Duration::from_millis(ADMISSION_MS)))
}

/// The dialled side, after the preamble. `admitted` is called when the peer is one of us.
pub fn accept(
    daemon: &Arc<Daemon>,
    stream: OwnedFd,
    came_by: Transport,
    from: IpAddr,
    deadline: Deadline,
    admitted: impl FnOnce(),
) -> io::Result<()> {
    let (mut channel, proof) = prove(daemon, stream, from, deadline)?;
    let theirs = read_hello(&mut channel, deadline)?;
    let ours = own_hello(daemon);
    channel.send_bytes(&ours.encode()).map_err(io::Error::other)?;
    if let Some(why) = mismatch(&ours, &theirs) {
        return Err(io::Error::other(format!("refused: {why}")));
    }
    if came_by != ours.transport {
        let why =
            format!("refused: -u (transport): here {:?}, it came by {came_by:?}", ours.transport);
        return Err(io::Error::other(why));
    }
    if theirs.address.ip() != from {
        let why = format!("refused: it says that it listens at {}", theirs.address);
        return Err(io::Error::other(why));
    }
    let running = Running::start(daemon, channel, proof, &theirs)?;
    let node = match daemon.names() {
        Some(names) => {
            let number = names.link_up(daemon, &theirs, Some(running.link.clone()));
            admission(&number).inspect_err(|_| daemon.unlinked(running.link.number))?
        }
        None if theirs.node.is_admitted() => {
            if !is_member(daemon, &theirs, deadline) {
                return Err(not_a_member(&theirs));
            }
            daemon.links.insert(theirs.node, running.link.clone());
            theirs.node
        }
        None => {
            let why = "refused: it has no number yet and must go to the referee first";
            return Err(io::Error::other(why));
        }
    };
    admitted();
    running.run(daemon, node);
    Ok(())
}

/// The handshake of who was dialled, by one of the proofs that are accepted from there.
fn prove(
    daemon: &Daemon,
    stream: OwnedFd,
    from: IpAddr,
    deadline: Deadline,
) -> io::Result<(Channel, Proof)> {
    let (cipher, order) = (daemon.config().cipher, daemon.order);
    let mut proofs = daemon.proofs_from(from);
    let handshakes = proofs.iter().map(|proof| proof.respond(&daemon.node_key)).collect();
    match Channel::respond_to_any(stream, handshakes, cipher, order, deadline.left()) {
        Ok((channel, index)) => Ok((channel, proofs.swap_remove(index))),
        Err(ChannelError::Wire(WireError::NotProven)) if proofs[0].is_of_node() => {
            let why = "refused: it does not prove the node key that dipc.allow names, \
                       or has a wrong key of the cluster";
            Err(io::Error::other(why))
        }
        Err(error) => Err(io::Error::other(error)),
    }
}

/// Whether the referee knows the peer by this number and address. Its word may still be on its way.
fn is_member(daemon: &Daemon, theirs: &Hello, deadline: Deadline) -> bool {
    daemon.links.await_member(theirs.node, theirs.address, deadline)
}

fn not_a_member(theirs: &Hello) -> io::Error {
    let Hello { node, address, .. } = theirs;
    io::Error::other(format!("refused: it is not node {node} at {address}, as it says"))
}

fn admission(number: &Receiver<Result<NodeId, String>>) -> io::Result<NodeId> {
    match number.recv_timeout(ADMISSION_WAIT) {
        Ok(Ok(node)) => Ok(node),
        Ok(Err(why)) => Err(io::Error::other(format!("refused: {why}"))),
        Err(_) => Err(io::Error::other("the referee's record could not be written in time")),
    }
}

fn read_hello(channel: &mut Channel, deadline: Deadline) -> io::Result<Hello> {
    let mut bytes = [0; Hello::BYTES];
    channel.receive_exact(&mut bytes, deadline.left()).map_err(io::Error::other)?;
    Hello::decode(&bytes).map_err(io::Error::other)
}

/// A link whose Hellos have passed.
struct Running {
    link: Arc<Link>,
    receiver: ChannelReceiver,
    watch: Watch,
}

impl Drop for Running {
    /// Its writer waits until it is closed, also if it was never run.
    fn drop(&mut self) {
        self.link.close();
    }
}

impl Running {
    fn start(
        daemon: &Daemon,
        channel: Channel,
        proof: Proof,
        theirs: &Hello,
    ) -> io::Result<Running> {
        let socket = channel.socket().try_clone()?;
        let (sender, receiver) = channel.split();
        let (number, outbox) = (daemon.links.next_number(), Outbox::new(sender));
        let (vigil, address) = (Arc::new(Vigil::new()?), theirs.address);
        let watch = Watch::new(vigil.clone());
        let link = Link::new(number, address, theirs.incarnation, proof, outbox, vigil, socket);
        let link = Arc::new(link);
        let written = link.clone();
        let writer = thread::Builder::new().name("link-writer".into()).stack_size(STACK_BYTES);
        writer.spawn(move || written.write())?;
        Ok(Running { link, receiver, watch })
    }

    /// Reads until the link ends.
    fn run(mut self, daemon: &Arc<Daemon>, node: NodeId) {
        tracing::info!(op = "linked", peer = %node, address = %self.link.address,
            incarnation = self.link.incarnation.0);
        // As many as may have waited at the other end.
        let (work, jobs) = bounded(OUTBOX_FRAMES);
        let worker = {
            let (daemon, link) = (daemon.clone(), self.link.clone());
            let from = move |daemon: &Daemon| daemon.links.is_current(node, &link).then_some(node);
            let work = move || daemon.work(|| from(&daemon), &jobs);
            thread::Builder::new().name("link-worker".into()).stack_size(STACK_BYTES).spawn(work)
        };
        daemon.memory.linked(node, &self.link);
        daemon.linked(node);
        let ended = match &worker {
            Ok(_) => self.read(daemon, node, &work),
            Err(error) => error.to_string(),
        };
        self.link.close();
        drop(work);
        if daemon.links.remove(node, &self.link) {
            tracing::info!(op = "unlinked", peer = %node, reason = %ended);
        }
        daemon.memory.unlinked(node, &self.link);
        daemon.unlinked(self.link.number);
        // A worker that panicked has ended the whole daemon.
        let _ = worker.map(|worker| worker.join());
    }

    fn read(
        &mut self,
        daemon: &Arc<Daemon>,
        node: NodeId,
        work: &crossbeam_channel::Sender<PeerFrame>,
    ) -> String {
        loop {
            match self.receiver.receive_by::<PeerFrame>(&mut self.watch) {
                Ok(Some((frame, raw))) if daemon.links.is_current(node, &self.link) => {
                    daemon.links.heard(node);
                    if !is_heartbeat(&frame) {
                        let raw_bytes = raw.len();
                        tracing::trace!(op = "received", from = %node, ?frame, raw_bytes);
                    }
                    if is_question(&frame) {
                        self.watch.was_asked();
                    }
                    let (memory, link) = (&daemon.memory, &self.link);
                    match frame {
                        PeerFrame::ToHome { id, replica, frame } => {
                            memory.to_home(node, link, (id, replica), frame, raw);
                        }
                        PeerFrame::ToReplica { id, replica, frame } => {
                            memory.to_replica(node, link, (id, replica), frame, raw);
                        }
                        frame => daemon.receive(node, link.number, frame, work),
                    }
                }
                Ok(Some(_)) => return "replaced by a newer link".into(),
                Ok(None) => return "closed".into(),
                Err(error) => return error.to_string(),
            }
        }
    }
}
