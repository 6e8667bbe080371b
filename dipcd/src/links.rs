//! The links of this node: who is linked, who was heard when, and how a frame gets to a node.
//!
//! Posting never waits: an outbox is bounded, and a full one means a peer that takes nothing, so
//! its link is closed ([`crate::outbox`]). A frame to a node without a link is dropped; every
//! exchange repeats itself after the next Hello. Frames from one thread to one node arrive in the
//! order they were posted.
#![forbid(unsafe_code)]

use crossbeam_channel::{RecvTimeoutError, Sender};
use parking_lot::{Condvar, Mutex};
use rustix::net::Shutdown;
use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::time::Duration;

use dipc_core::referee::LinkNo;
use dipc_wire::ids::{Incarnation, NodeId, Req};
use dipc_wire::memory::{ToHome, ToReplica};
use dipc_wire::peer::{Member, PeerFrame, Standing};
use dipc_wire::survey::{Contact, NodeRow, Role};

use crate::clock::{Deadline, now_ms};
use crate::config::Config;
use crate::outbox::Outbox;
use crate::proof::Proof;
use crate::questions::{Came, Questions};
use crate::vigil::Vigil;

/// One link, as those who post to it see it.
pub struct Link {
    /// Its number, which no other link of this dipcd has.
    pub number: LinkNo,
    /// Where the peer listens.
    pub address: SocketAddr,
    /// Which life of the peer it is with.
    pub incarnation: Incarnation,
    /// What its peer has proven.
    pub proof: Proof,
    outbox: Outbox,
    vigil: Arc<Vigil>,
    socket: OwnedFd,
    closed: AtomicBool,
}

impl Link {
    /// A link that sends by `outbox`; somebody must do [`Link::write`].
    pub fn new(
        number: LinkNo,
        address: SocketAddr,
        incarnation: Incarnation,
        proof: Proof,
        outbox: Outbox,
        vigil: Arc<Vigil>,
        socket: OwnedFd,
    ) -> Link {
        let closed = AtomicBool::new(false);
        Link { number, address, incarnation, proof, outbox, vigil, socket, closed }
    }

    /// Sends a frame; a peer that takes none loses the link.
    pub fn post(&self, frame: &PeerFrame) {
        self.post_raw(frame, &[]);
    }

    /// The same with bytes behind the frame.
    pub fn post_raw(&self, frame: &PeerFrame, raw: &[u8]) {
        if !is_heartbeat(frame) {
            tracing::trace!(op = "send", to = %self.address, ?frame, raw_bytes = raw.len());
        }
        if self.outbox.post(frame, raw).is_err() {
            self.close();
        } else if is_question(frame) {
            self.vigil.expect();
        }
    }

    /// Sends what was put off: the peer waits for it.
    pub fn flush(&self) {
        if self.outbox.flush().is_err() {
            self.close();
        }
    }

    /// Sends what could not be sent at once, until the link is closed.
    pub fn write(&self) {
        self.outbox.write();
        self.close();
    }

    /// Ends it: its reader and writer notice. What it has brought and nobody has read is not
    /// believed any more.
    pub fn close(&self) {
        self.closed.store(true, Ordering::Release);
        self.outbox.close();
        // An error says that it is closed already.
        let _ = rustix::net::shutdown(&self.socket, Shutdown::Both);
    }
}

/// Frames that say nothing but that there is somebody: a trace of them would be of nothing else.
pub fn is_heartbeat(frame: &PeerFrame) -> bool {
    matches!(frame, PeerFrame::Heartbeat { .. } | PeerFrame::HeartbeatEcho { .. })
}

/// Frames for whose answer a program waits, and that may be answered at once.
pub fn is_question(frame: &PeerFrame) -> bool {
    match frame {
        PeerFrame::ToHome { frame, .. } => matches!(frame, ToHome::Fault { .. }),
        PeerFrame::ToReplica { frame, .. } => {
            matches!(frame, ToReplica::Recall { .. } | ToReplica::Invalidate { .. })
        }
        _ => false,
    }
}

/// Why a question has no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unanswered {
    /// The node was declared lost, or nobody knows it.
    Lost,
    /// The bound of the asker passed.
    TimedOut,
}

/// A node we know of.
struct Peer {
    address: SocketAddr,
    /// When a frame of it last came, or since when we know it.
    heard_ms: u64,
    lost: bool,
}

#[derive(Default)]
struct Table {
    links: HashMap<NodeId, Arc<Link>>,
    peers: BTreeMap<NodeId, Peer>,
    /// Whether the referee has said who there is.
    listed: bool,
}

impl Table {
    /// Whether a node may have this number and address, as far as is known; `None`: the number is
    /// of nobody, or not yet.
    fn is_of(&self, node: NodeId, address: SocketAddr) -> Option<bool> {
        match self.peers.get(&node) {
            Some(peer) => Some(peer.address == address),
            // Without a referee those who knew each other link again.
            None => (!self.listed).then_some(true),
        }
    }
}

/// The links of this node.
pub struct Links {
    me: Arc<AtomicU8>,
    referee: AtomicU8,
    last_number: AtomicU64,
    /// Frames of this node to itself, each with the number that our own link had when it was
    /// said; drained by a thread like any link's.
    own: Sender<(LinkNo, PeerFrame)>,
    own_number: AtomicU64,
    table: Mutex<Table>,
    changed: Condvar,
    /// The open questions.
    pub questions: Questions,
}

impl Links {
    /// No link yet. `own` takes what this node says to itself.
    pub fn new(own: Sender<(LinkNo, PeerFrame)>) -> Links {
        Links {
            me: Arc::default(),
            referee: AtomicU8::new(0),
            last_number: AtomicU64::new(1),
            own,
            own_number: AtomicU64::new(1),
            table: Mutex::default(),
            changed: Condvar::new(),
            questions: Questions::default(),
        }
    }

    /// A number for a new link.
    pub fn next_number(&self) -> LinkNo {
        LinkNo(self.last_number.fetch_add(1, Ordering::Relaxed) + 1)
    }

    /// Where this node's number will stand, for who must not ask.
    pub fn own_number(&self) -> Arc<AtomicU8> {
        self.me.clone()
    }

    /// The link to a node, if there is one.
    pub fn link(&self, node: NodeId) -> Option<Arc<Link>> {
        self.table.lock().links.get(&node).cloned()
    }

    /// This node's number, [`NodeId::NONE`] before its first admission.
    pub fn me(&self) -> NodeId {
        NodeId::new(self.me.load(Ordering::Acquire)).unwrap_or(NodeId::NONE)
    }

    /// Takes the number the referee gave.
    pub fn set_me(&self, node: NodeId) {
        let _table = self.table.lock();
        self.me.store(node.number(), Ordering::Release);
        self.changed.notify_all();
    }

    /// A link is up. An older one of the same node is closed: its frames are not to be believed.
    pub fn insert(&self, node: NodeId, link: Arc<Link>) {
        let mut table = self.table.lock();
        let peer = Peer { address: link.address, heard_ms: now_ms(), lost: false };
        table.peers.insert(node, peer);
        let replaced = table.links.insert(node, link);
        self.changed.notify_all();
        drop(table);
        if let Some(old) = replaced {
            old.close();
            self.questions.broken(node);
        }
    }

    /// A link has ended: `false` if another took its place before.
    pub fn remove(&self, node: NodeId, link: &Arc<Link>) -> bool {
        let mut table = self.table.lock();
        let ours = table.links.get(&node).is_some_and(|current| Arc::ptr_eq(current, link));
        if ours {
            table.links.remove(&node);
            self.changed.notify_all();
        }
        drop(table);
        if ours {
            self.questions.broken(node);
        }
        ours
    }

    /// Whether this link is still the node's: a frame of a replaced or closed one is discarded.
    pub fn is_current(&self, node: NodeId, link: &Arc<Link>) -> bool {
        let closed = link.closed.load(Ordering::Acquire);
        let table = self.table.lock();
        !closed && table.links.get(&node).is_some_and(|current| Arc::ptr_eq(current, link))
    }

    /// Whether a peer may call itself this node at this address: as the referee says, whose word
    /// about a new node may still be on its way.
    pub fn await_member(&self, node: NodeId, address: SocketAddr, deadline: Deadline) -> bool {
        let mut table = self.table.lock();
        loop {
            match table.is_of(node, address) {
                _ if !node.is_admitted() || node == self.me() => return false,
                Some(is_of) => return is_of,
                None if deadline.is_over() => return false,
                None => self.changed.wait_for(&mut table, deadline.left()),
            };
        }
    }

    /// Sends a frame to a node, perhaps ourselves.
    pub fn post(&self, node: NodeId, frame: PeerFrame) {
        self.try_post(node, frame);
    }

    /// The same; `false` if there is no link.
    fn try_post(&self, node: NodeId, frame: PeerFrame) -> bool {
        if node == self.me() && node.is_admitted() {
            self.post_to_ourselves(frame);
            return true;
        }
        let link = self.table.lock().links.get(&node).cloned();
        link.inspect(|link| link.post(&frame)).is_some()
    }

    /// Says something to ourselves, by the road of all other frames.
    pub fn post_to_ourselves(&self, frame: PeerFrame) {
        self.post_by_own_link(self.own_link(), frame);
    }

    /// The same for the referee on this node, which answers the link that it heard.
    pub fn post_by_own_link(&self, link: LinkNo, frame: PeerFrame) {
        // The queue is unbounded and its reader lives as long as we do.
        let _ = self.own.send((link, frame));
    }

    /// The number by which the referee on this node knows us now.
    pub fn own_link(&self) -> LinkNo {
        LinkNo(self.own_number.load(Ordering::Acquire))
    }

    /// Ends our own link to the referee on this node and begins another: what was asked on the old
    /// one is asked again.
    pub fn renew_own_link(&self) -> LinkNo {
        let number = self.next_number();
        self.own_number.store(number.0, Ordering::Release);
        self.questions.broken(self.me());
        number
    }

    /// Asks a node and waits for the answer; asks again on each new link.
    pub fn ask(
        &self,
        node: NodeId,
        deadline: Deadline,
        frame: impl Fn(Req) -> PeerFrame,
    ) -> Result<PeerFrame, Unanswered> {
        loop {
            self.await_link(node, deadline)?;
            let (req, answer) = self.questions.open(node);
            if !self.try_post(node, frame(req)) {
                // The link went before the question was open, so nobody will say that it broke.
                self.questions.give_up(req);
                continue;
            }
            let came = self.await_answer(node, &answer, deadline);
            if let Ok(Some(Came::Answer(frame))) = came {
                return Ok(frame);
            }
            self.questions.give_up(req);
            if let Ok(Came::Answer(frame)) = answer.try_recv() {
                // It came in the instant in which we gave up.
                return Ok(frame);
            }
            came?;
        }
    }

    /// Waits for an answer; `None` when it must be asked again.
    fn await_answer(
        &self,
        node: NodeId,
        answer: &crossbeam_channel::Receiver<Came>,
        deadline: Deadline,
    ) -> Result<Option<Came>, Unanswered> {
        match answer.recv_timeout(deadline.left()) {
            Ok(Came::Broken) if self.is_lost(node) => Err(Unanswered::Lost),
            Ok(came) => Ok(Some(came)),
            Err(RecvTimeoutError::Timeout) if deadline.is_over() => Err(Unanswered::TimedOut),
            Err(_) => Ok(None),
        }
    }

    /// Waits until `node` can be posted to.
    pub fn await_link(&self, node: NodeId, deadline: Deadline) -> Result<(), Unanswered> {
        let mut table = self.table.lock();
        loop {
            if (node == self.me() && node.is_admitted()) || table.links.contains_key(&node) {
                return Ok(());
            }
            match table.peers.get(&node) {
                Some(peer) if peer.lost => return Err(Unanswered::Lost),
                // The referee names a member before it names what lives there.
                None if table.listed => return Err(Unanswered::Lost),
                _ if deadline.is_over() => return Err(Unanswered::TimedOut),
                _ => {}
            }
            self.changed.wait_for(&mut table, deadline.left());
        }
    }

    /// Who is referee, once a link to it was up.
    pub fn await_referee(&self, deadline: Deadline) -> Result<NodeId, Unanswered> {
        let mut table = self.table.lock();
        loop {
            let referee = NodeId::new(self.referee.load(Ordering::Acquire));
            match referee.filter(|referee| referee.is_admitted()) {
                Some(referee) if self.me().is_admitted() => return Ok(referee),
                _ if deadline.is_over() => return Err(Unanswered::TimedOut),
                _ => self.changed.wait_for(&mut table, deadline.left()),
            };
        }
    }

    /// The referee, if it is known.
    pub fn referee(&self) -> Option<NodeId> {
        NodeId::new(self.referee.load(Ordering::Acquire)).filter(|node| node.is_admitted())
    }

    /// A link to the referee is up, or we are it.
    pub fn set_referee(&self, node: NodeId) {
        let _table = self.table.lock();
        self.referee.store(node.number(), Ordering::Release);
        self.changed.notify_all();
    }

    /// Waits until this node has a number.
    pub fn await_admission(&self, deadline: Deadline) -> Option<NodeId> {
        let mut table = self.table.lock();
        loop {
            if self.me().is_admitted() {
                return Some(self.me());
            }
            if deadline.is_over() {
                return None;
            }
            self.changed.wait_for(&mut table, deadline.left());
        }
    }

    /// The referee has said who there is. Who was a member and is none any more.
    pub fn set_members(&self, members: &[Member]) -> Vec<NodeId> {
        let mut table = self.table.lock();
        table.listed = true;
        let mut gone = Vec::new();
        table.peers.retain(|node, _| {
            let stays = members.iter().any(|member| member.node == *node);
            if !stays {
                gone.push(*node);
            }
            stays
        });
        for member in members {
            let fresh = Peer { address: member.address, heard_ms: now_ms(), lost: false };
            table.peers.entry(member.node).or_insert(fresh).address = member.address;
        }
        self.changed.notify_all();
        gone
    }

    /// Where a node listens.
    pub fn address(&self, node: NodeId) -> Option<SocketAddr> {
        self.table.lock().peers.get(&node).map(|peer| peer.address)
    }

    /// Whether a node that we know of listens there.
    pub fn knows(&self, address: IpAddr) -> bool {
        self.table.lock().peers.values().any(|peer| peer.address.ip() == address)
    }

    /// Every node we know of but ourselves, and where it listens.
    pub fn others(&self) -> Vec<(NodeId, SocketAddr)> {
        let me = self.me();
        let table = self.table.lock();
        let others = table.peers.iter().filter(|(node, _)| **node != me);
        others.map(|(node, peer)| (*node, peer.address)).collect()
    }

    /// Every node as this one sees it, for the tools.
    pub fn survey(&self, config: &Config) -> Vec<NodeRow> {
        let (me, now) = (self.me(), now_ms());
        let role = |at| if at == config.referee { Role::Referee } else { Role::Member };
        let row = |node, address, contact, heard_ms, incarnation| NodeRow {
            node,
            address,
            contact,
            heard_ms,
            incarnation,
            role: role(address),
        };
        let none = Incarnation(0);
        let mut rows = vec![row(me, config.this_machine, Contact::Here, 0, none)];
        let table = self.table.lock();
        for (node, peer) in table.peers.iter().filter(|(node, _)| **node != me) {
            let (contact, incarnation) = match table.links.get(node) {
                _ if peer.lost => (Contact::Lost, none),
                Some(link) => (Contact::Linked, link.incarnation),
                None => (Contact::Silent, none),
            };
            let heard_ms = now.saturating_sub(peer.heard_ms);
            rows.push(row(*node, peer.address, contact, heard_ms, incarnation));
        }
        if rows.iter().all(|row| row.address != config.referee) {
            rows.push(row(NodeId::NONE, config.referee, Contact::Silent, 0, none));
        }
        rows
    }

    /// Whether the node there is not given up.
    pub fn hears(&self, address: SocketAddr) -> bool {
        self.table.lock().peers.values().any(|peer| peer.address == address && !peer.lost)
    }

    /// Members that an earlier life has known: who is there may link before the referee has said
    /// who there is.
    pub fn remember(&self, members: &[Member]) {
        let mut table = self.table.lock();
        for member in members.iter().filter(|member| member.standing == Standing::Member) {
            let peer = Peer { address: member.address, heard_ms: now_ms(), lost: false };
            table.peers.entry(member.node).or_insert(peer);
        }
    }

    /// The nodes that are linked now.
    pub fn linked(&self) -> Vec<NodeId> {
        self.table.lock().links.keys().copied().collect()
    }

    /// A frame of a node has come.
    pub fn heard(&self, node: NodeId) {
        if let Some(peer) = self.table.lock().peers.get_mut(&node) {
            peer.heard_ms = now_ms();
        }
    }

    /// Whether a node is lost to us; one that nobody knows is.
    pub fn is_lost(&self, node: NodeId) -> bool {
        if node == self.me() {
            return false;
        }
        self.table.lock().peers.get(&node).is_none_or(|peer| peer.lost)
    }

    /// Declares lost whoever was not heard of for `node_timeout`, closes their links, and says who
    /// they are, each once.
    pub fn declare_lost(&self, node_timeout: Duration) -> Vec<NodeId> {
        let (me, now) = (self.me(), now_ms());
        let timeout_ms = u64::try_from(node_timeout.as_millis()).unwrap_or(u64::MAX);
        let mut table = self.table.lock();
        let mut lost = Vec::new();
        for (node, peer) in &mut table.peers {
            if *node != me && !peer.lost && now.saturating_sub(peer.heard_ms) > timeout_ms {
                peer.lost = true;
                lost.push(*node);
            }
        }
        let links: Vec<_> = lost.iter().filter_map(|node| table.links.remove(node)).collect();
        self.changed.notify_all();
        drop(table);
        links.iter().for_each(|link| link.close());
        lost.iter().for_each(|node| self.questions.broken(*node));
        lost
    }

    /// A node may take part no more: it is lost, at once.
    pub fn expel(&self, node: NodeId) {
        let mut table = self.table.lock();
        if let Some(peer) = table.peers.get_mut(&node) {
            peer.lost = true;
        }
        let link = table.links.remove(&node);
        self.changed.notify_all();
        drop(table);
        if let Some(link) = link {
            link.close();
        }
        self.questions.broken(node);
    }

    /// Closes every link for which `ends` says so, and says of which nodes.
    pub fn close_those(&self, ends: impl Fn(&Link) -> bool) -> Vec<NodeId> {
        let table = self.table.lock();
        let ended: Vec<_> = table.links.iter().filter(|(_, link)| ends(link)).collect();
        ended.iter().for_each(|(_, link)| link.close());
        ended.into_iter().map(|(node, _)| *node).collect()
    }

    /// Closes the link of a node; its reader notices.
    pub fn close(&self, node: NodeId) {
        if let Some(link) = self.table.lock().links.get(&node) {
            link.close();
        }
    }

    /// Closes the links of those who turn out to be no members, or to be others than they said.
    pub fn close_strangers(&self) {
        let table = self.table.lock();
        for (node, link) in &table.links {
            if *node == self.me() || table.is_of(*node, link.address) != Some(true) {
                tracing::warn!(op = "members", peer = %node, address = %link.address,
                    "not a member; its link is closed");
                link.close();
            }
        }
    }

    /// Closes every link, for the end.
    pub fn close_all(&self) {
        let links: Vec<_> = self.table.lock().links.drain().collect();
        links.iter().for_each(|(_, link)| link.close());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dipc_wire::codec::ByteOrder;
    use dipc_wire::noise::Cipher;
    use dipc_wire::peer::Standing;

    fn links() -> Links {
        Links::new(crossbeam_channel::unbounded().0)
    }

    fn at(last: u8) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, last], 7))
    }

    fn node(number: u8) -> NodeId {
        NodeId::new(number).unwrap()
    }

    fn member(number: u8) -> Member {
        Member { node: node(number), address: at(number), standing: Standing::Member }
    }

    #[test]
    fn a_peer_is_the_member_it_says_it_is_or_nobody() {
        let (links, now) = (links(), Deadline::after(Some(Duration::ZERO)));
        links.set_me(node(1));
        assert!(links.await_member(node(2), at(2), now), "nobody has said who there is");
        assert!(!links.await_member(node(1), at(2), now), "the number is ours");
        links.set_members(&[member(1), member(2)]);
        assert!(links.await_member(node(2), at(2), now));
        assert!(!links.await_member(node(2), at(3), now), "another's number");
        assert!(!links.await_member(node(3), at(3), now), "nobody's number");
    }

    #[test]
    fn what_a_closed_link_has_brought_is_not_believed() {
        let (near, _far) = crate::channel::tests::channels(Cipher::Plain, ByteOrder::Little);
        let socket = near.socket().try_clone().unwrap();
        let (links, outbox) = (links(), Outbox::new(near.split().0));
        let allow = crate::allow::AllowList::Loopback;
        let proof = Proof::offered(&crate::config::ClusterKey::Loopback, &allow, at(2).ip());
        let number = links.next_number();
        let vigil = Arc::new(Vigil::new().unwrap());
        let link = Link::new(number, at(2), Incarnation(1), proof, outbox, vigil, socket);
        let link = Arc::new(link);
        links.insert(node(2), link.clone());
        assert!(links.is_current(node(2), &link));
        links.set_members(&[member(1), member(2)]);
        links.close_strangers();
        assert!(links.is_current(node(2), &link), "it is who it said");
        links.set_members(&[member(1)]);
        links.close_strangers();
        assert!(!links.is_current(node(2), &link));
    }
}
