//! The remote processes that are served here: which stand-ins run, who may have a wire, who is
//! fenced, and whose end is under way. The stand-ins themselves are processes (`stand_in.rs`).
//!
//! A ticket is good once and for ten seconds. A client whose stand-in is gone while it lives is
//! fenced: its undo was applied, so it may release nothing more until it gets its objects anew.
#![forbid(unsafe_code)]

use parking_lot::Mutex;
use rustix::net::Shutdown;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use std::collections::{HashMap, HashSet};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use dipc_wire::client::WireTerms;
use dipc_wire::ids::{ClientId, Image, NodeId, Secret, SessionId, TicketId};
use dipc_wire::keeper::{Cause, FromStandIn, StandIn, ToStandIn};
use dipc_wire::limits::TICKET_LIFE_MS;
use dipc_wire::peer::{End, PeerFrame, Piece};
use dipc_wire::sysv::SysvError;

use crate::clock::now_ms;
use crate::sys::packets;

/// Tickets of one node that may be out at once.
const TICKETS_MAX: usize = 4096;

/// Stand-ins of one node's programs.
const STAND_INS_OF_NODE: usize = 16_384;

/// How long a stand-in may leave its packets unread: its account may stop it, and others wait.
const SEND_WAIT: Duration = Duration::from_secs(2);

/// Why a client may not have a wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fence {
    /// Its stand-in has died under an operation: that one's outcome is not known.
    Broken,
    /// It was believed lost, or has been told.
    Up,
}

struct Ticket {
    secret: Secret,
    session: SessionId,
    stand_in: StandIn,
    terms: WireTerms,
    until_ms: u64,
}

/// Where the wire of a redeemed ticket goes.
pub struct Admitted {
    /// Whose stand-in serves it.
    pub stand_in: StandIn,
    /// What to tell it.
    pub wire: ToStandIn,
}

#[derive(Default)]
struct Table {
    running: HashMap<StandIn, Arc<OwnedFd>>,
    fences: HashMap<ClientId, Fence>,
    tickets: HashMap<TicketId, Ticket>,
    /// Stand-ins that have yet to end a client, or an image of it.
    burials: HashMap<(ClientId, Option<Image>), HashSet<StandIn>>,
}

/// The stand-ins of this node.
#[derive(Default)]
pub struct StandIns {
    table: Mutex<Table>,
}

impl StandIns {
    /// Whether there is one, and if not, whether there may be.
    pub fn find(&self, stand_in: &StandIn) -> Result<bool, SysvError> {
        let mut table = self.table.lock();
        match table.fences.get_mut(&stand_in.client) {
            Some(fence @ Fence::Broken) => {
                *fence = Fence::Up;
                Err(SysvError::EIO)
            }
            Some(Fence::Up) => Err(SysvError::EIDRM),
            None => Ok(table.running.contains_key(stand_in)),
        }
    }

    /// Whether one more may be started: an account has its share of this dipcd, and so has a node,
    /// whatever accounts it vouches for.
    pub fn has_room(&self, another: &StandIn, of_account: usize) -> bool {
        let table = self.table.lock();
        let running = || table.running.keys();
        let same_user = running().filter(|other| other.account.uid == another.account.uid).count();
        let same_node = running().filter(|other| other.client.node == another.client.node).count();
        same_user < of_account && same_node < STAND_INS_OF_NODE
    }

    /// One was started, or found in the keeper.
    pub fn add(&self, stand_in: StandIn, control: Arc<OwnedFd>) {
        if let Err(error) = set_socket_timeout(&control, Timeout::Send, Some(SEND_WAIT)) {
            tracing::warn!(op = "stand_in", %error, "a send to it may wait for ever");
        }
        self.table.lock().running.insert(stand_in, control);
    }

    /// Lets one wire in.
    pub fn issue(
        &self,
        id: TicketId,
        secret: Secret,
        session: SessionId,
        stand_in: StandIn,
        terms: WireTerms,
    ) -> Result<(), SysvError> {
        let now = now_ms();
        let mut table = self.table.lock();
        table.tickets.retain(|_, ticket| ticket.until_ms > now);
        let of_node = |ticket: &&Ticket| ticket.session.client.node == session.client.node;
        let many = table.tickets.values().filter(of_node).count() >= TICKETS_MAX;
        // One that is asked for again on a new link is the same.
        let known = table.tickets.get(&id);
        let same = known.is_some_and(|is| is.session == session && is.secret == secret);
        if !same && (many || known.is_some()) {
            return Err(SysvError::EAGAIN);
        }
        let until_ms = now + TICKET_LIFE_MS;
        table.tickets.insert(id, Ticket { secret, session, stand_in, terms, until_ms });
        Ok(())
    }

    /// A wire has come with a ticket, which is used up. `None`: unknown or too old.
    pub fn redeem(&self, id: TicketId) -> Option<Admitted> {
        let ticket = self.table.lock().tickets.remove(&id)?;
        if ticket.until_ms <= now_ms() {
            return None;
        }
        let Ticket { secret, session, stand_in, terms, .. } = ticket;
        let wire = ToStandIn::Wire { image: session.image, slot: session.slot, secret, terms };
        Some(Admitted { stand_in, wire })
    }

    /// Hands a wire to its stand-in. One that has just died is noticed by its control socket; one
    /// that takes nothing loses this wire, and its client opens another.
    pub fn deliver(&self, admitted: &Admitted, socket: &impl AsFd) {
        let control = self.table.lock().running.get(&admitted.stand_in).cloned();
        if let Some(control) = control
            && let Err(error) = packets::send(&control, &admitted.wire, &[socket.as_fd()])
        {
            tracing::warn!(op = "deliver", client = ?admitted.stand_in.client, %error);
        }
    }

    /// A client, or an image of it, has ended: tells its stand-ins. `true` if none is left that
    /// has to answer.
    pub fn end(
        &self,
        client: ClientId,
        image: Option<Image>,
        ends: &[End],
        cause: Cause,
        piece: Piece,
    ) -> bool {
        let mut table = self.table.lock();
        let concerned: Vec<_> = table
            .running
            .iter()
            .filter(|(stand_in, _)| stand_in.client == client)
            .map(|(stand_in, control)| (stand_in.clone(), control.clone()))
            .collect();
        if piece == Piece::Last {
            if image.is_none() {
                table.fences.remove(&client);
                table.tickets.retain(|_, ticket| ticket.session.client != client);
            }
            if concerned.is_empty() {
                return true;
            }
            let waited = concerned.iter().map(|(stand_in, _)| stand_in.clone()).collect();
            table.burials.insert((client, image), waited);
        }
        drop(table);
        let end = ToStandIn::End { image, ends: ends.to_vec(), cause, piece };
        for (_, control) in &concerned {
            if let Err(error) = packets::send(control, &end, &[]) {
                tracing::debug!(op = "end", ?client, %error);
                // It has ended, or somebody has stopped it: its control socket is to say so.
                let _ = rustix::net::shutdown(control, Shutdown::Both);
            }
        }
        false
    }

    /// Has the stand-ins of every node for which `ends` says so drop their wires, and takes their
    /// nodes' tickets back. Sessions go on over other wires.
    pub fn hang_up(&self, ends: impl Fn(NodeId) -> bool) {
        let mut table = self.table.lock();
        table.tickets.retain(|_, ticket| !ends(ticket.session.client.node));
        let running = table.running.iter().filter(|(stand_in, _)| ends(stand_in.client.node));
        let concerned: Vec<_> = running.map(|(_, control)| control.clone()).collect();
        drop(table);
        for control in &concerned {
            if packets::send(control, &ToStandIn::HangUp, &[]).is_err() {
                // It has ended, or somebody has stopped it: its control socket is to say so.
                let _ = rustix::net::shutdown(control, Shutdown::Both);
            }
        }
    }

    /// A node is lost: its clients' stand-ins end, and those clients are fenced.
    pub fn lose_node(&self, node: NodeId, cause: Cause) -> usize {
        self.table.lock().tickets.retain(|_, ticket| ticket.session.client.node != node);
        let clients = self.clients_of(node);
        for client in &clients {
            self.end(*client, None, &[], cause, Piece::Last);
            self.table.lock().fences.insert(*client, Fence::Up);
        }
        clients.len()
    }

    /// Ends the clients of a node that it does not know any more.
    pub fn keep_only(&self, node: NodeId, living: &HashSet<ClientId>, cause: Cause) -> usize {
        let clients = self.clients_of(node);
        let gone: Vec<_> = clients.into_iter().filter(|client| !living.contains(client)).collect();
        for client in &gone {
            self.end(*client, None, &[], cause, Piece::Last);
            self.table.lock().fences.insert(*client, Fence::Up);
        }
        let mut table = self.table.lock();
        table.fences.retain(|client, _| client.node != node || living.contains(client));
        gone.len()
    }

    /// A client has got an object anew.
    pub fn lift_fence(&self, client: ClientId) {
        self.table.lock().fences.remove(&client);
    }

    /// A stand-in's control socket is readable. Answers to post to client's nodes, and whether the
    /// stand-in is gone.
    pub fn heard(&self, stand_in: &StandIn, control: &OwnedFd) -> (Vec<PeerFrame>, bool) {
        match packets::receive::<FromStandIn>(control) {
            Ok(Some((FromStandIn::Ended { image }, _))) => {
                (self.ended(stand_in, |ended| ended == Some(image)), false)
            }
            Ok(None) | Err(_) => {
                let unexpected = {
                    let mut table = self.table.lock();
                    table.running.remove(stand_in);
                    let told = table.burials.contains_key(&(stand_in.client, None));
                    let fenced = table.fences.contains_key(&stand_in.client);
                    if !told && !fenced {
                        table.fences.insert(stand_in.client, Fence::Broken);
                    }
                    !told
                };
                if unexpected {
                    tracing::warn!(op = "stand_in_died", client = ?stand_in.client);
                }
                (self.ended(stand_in, |_| true), true)
            }
        }
    }

    /// How many run, for the status.
    pub fn count(&self) -> usize {
        self.table.lock().running.len()
    }

    /// The clients of a node of which anything is here: only of them it matters that they live.
    pub fn known_of(&self, node: NodeId) -> HashSet<ClientId> {
        let mut known = self.clients_of(node);
        let table = self.table.lock();
        known.extend(table.fences.keys().filter(|client| client.node == node));
        known
    }

    fn clients_of(&self, node: NodeId) -> HashSet<ClientId> {
        let table = self.table.lock();
        table.running.keys().map(|s| s.client).filter(|client| client.node == node).collect()
    }

    /// Strikes a stand-in off the burials that `concerns` names; those that are complete.
    fn ended(
        &self,
        stand_in: &StandIn,
        concerns: impl Fn(Option<Image>) -> bool,
    ) -> Vec<PeerFrame> {
        let mut table = self.table.lock();
        let mut buried = Vec::new();
        table.burials.retain(|(client, image), waited| {
            if *client == stand_in.client && concerns(*image) {
                waited.remove(stand_in);
            }
            if waited.is_empty() {
                buried.push(PeerFrame::Buried { client: *client, image: *image });
            }
            !waited.is_empty()
        });
        buried
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dipc_wire::codec::ByteOrder;
    use dipc_wire::ids::Slot;
    use dipc_wire::keeper::Account;
    use dipc_wire::noise::Cipher;
    use dipc_wire::sysv::Rights;

    fn client(node: u8, pid: u32) -> ClientId {
        ClientId { node: NodeId::new(node).unwrap(), pid, started: 1 }
    }

    fn issue(stand_ins: &StandIns, id: u64, client: ClientId, key: u8) -> Result<(), SysvError> {
        let (groups, rights) = (Vec::new(), Rights::default());
        let stand_in = StandIn { client, account: Account { uid: 1, gid: 1, groups, rights } };
        let session = SessionId { client, image: Image(0), slot: Slot(0) };
        let terms = WireTerms { cipher: Cipher::AesGcm, order: ByteOrder::Little, msgmax: 1 };
        stand_ins.issue(TicketId(id), Secret([key; 32]), session, stand_in, terms)
    }

    #[test]
    fn a_ticket_may_be_asked_for_again_by_who_has_it_and_is_good_once() {
        let stand_ins = StandIns::default();
        assert_eq!(issue(&stand_ins, 1, client(2, 7), 5), Ok(()));
        assert_eq!(issue(&stand_ins, 1, client(2, 7), 5), Ok(()), "the answer was lost");
        assert_eq!(issue(&stand_ins, 1, client(2, 8), 5), Err(SysvError::EAGAIN));
        assert_eq!(issue(&stand_ins, 1, client(2, 7), 6), Err(SysvError::EAGAIN));
        assert!(stand_ins.redeem(TicketId(1)).is_some());
        assert!(stand_ins.redeem(TicketId(1)).is_none());
    }

    #[test]
    fn a_stand_in_that_takes_nothing_holds_nobody_up() {
        let (stand_ins, (near, _far)) = (StandIns::default(), packets::pair().unwrap());
        let (groups, rights) = (Vec::new(), Rights::default());
        let account = Account { uid: 1, gid: 1, groups, rights };
        let stand_in = StandIn { client: client(2, 7), account };
        let near = Arc::new(near);
        stand_ins.add(stand_in.clone(), near.clone());
        let ends = vec![End { slot: Slot(1), done: dipc_wire::ids::Seq(1 << 40) }; 1024];
        for _ in 0..1000 {
            stand_ins.end(client(2, 7), None, &ends, Cause::Reported, Piece::More);
            let flags = rustix::event::PollFlags::IN;
            let mut watched = [rustix::event::PollFd::new(&*near, flags)];
            let at_once = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
            if rustix::event::poll(&mut watched, Some(&at_once)).unwrap() == 1 {
                assert!(stand_ins.heard(&stand_in, &near).1, "it counts as gone");
                return;
            }
        }
        panic!("it was given everything");
    }

    #[test]
    fn an_account_has_its_share_and_no_more() {
        let stand_ins = StandIns::default();
        let of = |uid, pid| {
            let (groups, rights) = (Vec::new(), Rights::default());
            let account = Account { uid, gid: 1, groups, rights };
            StandIn { client: client(2, pid), account }
        };
        let control = Arc::new(packets::pair().unwrap().0);
        for pid in 0..3 {
            assert!(stand_ins.has_room(&of(1000, pid), 3));
            stand_ins.add(of(1000, pid), control.clone());
        }
        assert!(!stand_ins.has_room(&of(1000, 3), 3));
        assert!(stand_ins.has_room(&of(1001, 3), 3), "another's share is his own");
    }

    #[test]
    fn one_nodes_tickets_are_no_other_nodes() {
        let stand_ins = StandIns::default();
        for id in 0..TICKETS_MAX as u64 {
            issue(&stand_ins, id, client(2, 7), 5).unwrap();
        }
        assert_eq!(issue(&stand_ins, 1 << 40, client(2, 7), 5), Err(SysvError::EAGAIN));
        assert_eq!(issue(&stand_ins, 1 << 40, client(3, 7), 5), Ok(()));
    }
}
