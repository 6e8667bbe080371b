//! The name service, on one node of the cluster: which node is home to a key, who may create it,
//! which id it gets, and who is a member. Its shell holds the links and the file.
//!
//! ```text
//! start ─▶ recovering: every member reports what it is home to, or is declared lost
//!              │ the last one
//!              ▼
//!           serving: Claim ─▶ Granted ─▶ Made ─▶ Confirmed | Denied
//!
//! a link:   Linked ─▶ Admit, Admitted, Members, then
//!               a member: ReportPlease ─▶ Made (repeated), Report ─▶ its questions are served
//!               declared lost: Void ─▶ Voided ─▶ its questions are served
//! ```
//!
//! - What a node asks is parked until its report of this link is in and no member is missing: so a
//!   report never crosses an answer, and a key is never given away that somebody may be home to.
//! - A node's report says all there is of it. An object that it does not name is gone; a claim
//!   whose `Made` it has not repeated before is given up (and a later `Made` denied).
//! - Whatever follows from a changed record leaves after [`Event::Recorded`], in order.
//! - A node declared lost stays void until it has said `Voided`: it claims nothing, its reports
//!   count as empty. So does a node with a number that was never given here, for it has a past
//!   that nobody knows.
#![forbid(unsafe_code)]

mod names;
mod record;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;

use dipc_wire::ids::{Epoch, Incarnation, NodeId};
use dipc_wire::peer::{Claimed, Intent, PeerFrame, Piece, Reported, Standing};

pub use names::WAITERS_MAX;
use names::{Grants, Names, Posts, Waiter};
pub use record::Record;

/// How many questions of one node may be parked; one more ends its link.
pub const PARKED_MAX: usize = 65_536;
/// How many objects one node may be home to: what its table holds.
pub const REPORT_OBJECTS_MAX: usize = 131_072;

/// The bounds of waiting, from dipc.conf.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Config {
    /// `referee_timeout`: after how long a claim is given up. `None`: never.
    pub claim_timeout_ms: Option<u64>,
    /// `node_timeout`: after how long without a link a member is declared lost.
    pub node_timeout_ms: u64,
}

/// The number of one change of the record; grows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Serial(pub u64);

/// One link, numbered by the shell, which never uses a number again. So nothing that was said or
/// decided on one link can be taken for part of another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LinkNo(pub u64);

/// What happens to a referee.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Event {
    /// A Hello has passed. The node's earlier link, if it has one, is replaced and counts no more.
    /// Answered by `Admit` or `Refuse`. The referee's own node links as any other.
    Linked {
        /// The new link.
        link: LinkNo,
        /// What the node calls itself, [`NodeId::NONE`] at first.
        node: NodeId,
        /// Where it listens.
        address: SocketAddr,
        /// Which life of it.
        incarnation: Incarnation,
    },
    /// This link has ended, whether or not it was admitted.
    Unlinked {
        /// Which.
        link: LinkNo,
    },
    /// A frame came by this link. Frames of a link that is not admitted or was replaced are
    /// discarded.
    Frame {
        /// Which.
        link: LinkNo,
        /// What it says.
        frame: PeerFrame,
    },
    /// Time has passed; at least once in each heartbeat.
    Tick,
    /// The record of this number, or a later one, is on disk.
    Recorded {
        /// From [`Effect::Record`].
        serial: Serial,
    },
    /// `dipcctl forget`: this node will not come back, and its number may be given to another.
    Forget {
        /// Which.
        node: NodeId,
    },
}

/// What is to be done, in this order.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Effect {
    /// Write this record in place of the last one, fsync, then say [`Event::Recorded`]. Of several
    /// that wait the last alone need be written.
    Record {
        /// Its number.
        serial: Serial,
        /// What to write.
        record: Record,
    },
    /// The link is this node's. Comes before anything is sent by it.
    Admit {
        /// From `Linked`.
        link: LinkNo,
        /// The node's number from now on.
        node: NodeId,
    },
    /// The link may not be: close it, and log why.
    Refuse {
        /// From `Linked`.
        link: LinkNo,
        /// Why.
        refusal: Refusal,
    },
    /// Send this frame by this link; drop it if the link has ended.
    Send {
        /// By which.
        link: LinkNo,
        /// What.
        frame: PeerFrame,
    },
    /// Close this link: its node has broken the protocol, or is a member no more. It counts no more
    /// here; `Unlinked` may follow or not.
    Break {
        /// Which.
        link: LinkNo,
        /// Whose.
        node: NodeId,
        /// Why.
        reason: Breach,
    },
    /// For the log: the keys of this node are free, and what it is home to is void.
    DeclaredLost {
        /// Which.
        node: NodeId,
    },
}

/// Why a link may not be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Refusal {
    /// The number belongs to another address, or the address to another number.
    NotItsNumber {
        /// What it calls itself.
        claimed: NodeId,
    },
    /// Every number is given away.
    NoNumberLeft,
}

/// Why a link is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Breach {
    /// A frame that only a referee sends, or that is for another node.
    NotForReferee,
    /// A report that nobody asked for.
    Unasked,
    /// More than [`PARKED_MAX`] questions, or [`REPORT_OBJECTS_MAX`] objects.
    TooMuch,
    /// The node was retired.
    Forgotten,
}

/// The name service.
///
/// It relies on the node's part: on `ReportPlease` a node first repeats every `Made` that is not
/// answered, then reports; it asks again what it had asked; it destroys what is denied; on `Void`
/// it destroys all it is home to, published or not, before it says `Voided`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Referee {
    config: Config,
    /// As it is to be.
    record: Record,
    /// As it was last given out to be written.
    written: Record,
    serial: Serial,
    /// What leaves once the record with the number beside it is on disk.
    held: VecDeque<(Serial, Effect)>,
    recorded: Serial,
    /// One for each member.
    links: BTreeMap<NodeId, Link>,
    /// Members of whom nothing is known since the start.
    missing: BTreeSet<NodeId>,
    names: Names,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Link {
    Down { since_ms: u64, last: Option<Incarnation> },
    Up { link: LinkNo, incarnation: Incarnation, trust: Trust, parked: VecDeque<PeerFrame> },
}

/// How far a node may be believed on its link.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Trust {
    /// Its report is under way; so much is in.
    Reporting(Vec<Reported>),
    /// Its report is in.
    Reported,
    /// It was declared lost and has not said `Voided`.
    Void,
}

impl Referee {
    /// Begins a reign with what the file holds (a default record, if there is none). The first
    /// effect records the new epoch.
    pub fn start(mut record: Record, config: Config, now_ms: u64) -> (Referee, Vec<Effect>) {
        record.begin_reign();
        let down = Link::Down { since_ms: now_ms, last: None };
        let nodes = record.members.iter().map(|member| member.node);
        let believed = nodes.clone().filter(|node| !record.is_lost(*node));
        let mut referee = Referee {
            config,
            written: Record::default(),
            serial: Serial(0),
            held: VecDeque::new(),
            recorded: Serial(0),
            links: nodes.clone().map(|node| (node, down.clone())).collect(),
            missing: believed.collect(),
            names: Names::new(record.epoch),
            record,
        };
        let effects = referee.leave(Vec::new());
        (referee, effects)
    }

    /// One event: what is to be done about it.
    pub fn step(&mut self, now_ms: u64, event: Event) -> Vec<Effect> {
        let mut effects = Vec::new();
        match event {
            Event::Linked { link, node, address, incarnation } => {
                match self.admit(node, address, &mut effects) {
                    Ok(node) => self.linked(now_ms, node, link, incarnation, &mut effects),
                    Err(refusal) => effects.push(Effect::Refuse { link, refusal }),
                }
            }
            Event::Unlinked { link } => {
                if let Some(node) = self.node_by(link) {
                    self.unlinked(now_ms, node);
                }
            }
            Event::Frame { link, frame } => {
                if let Some(node) = self.node_by(link) {
                    self.frame(now_ms, node, frame, &mut effects);
                }
            }
            Event::Tick => self.tick(now_ms, &mut effects),
            Event::Recorded { serial } => self.recorded = self.recorded.max(serial),
            Event::Forget { node } => self.forget(now_ms, node, &mut effects),
        }
        self.serve_parked(now_ms, &mut effects);
        self.leave(effects)
    }

    /// This reign.
    pub fn epoch(&self) -> Epoch {
        self.record.epoch
    }

    /// The members, as recorded or about to be.
    pub fn record(&self) -> &Record {
        &self.record
    }

    /// Members that have neither reported since the start nor been declared lost; while there are
    /// any, nothing is served.
    pub fn missing(&self) -> impl Iterator<Item = NodeId> + '_ {
        self.missing.iter().copied()
    }

    /// How many questions are parked or wait for a key.
    pub fn waiting(&self) -> usize {
        let parked = |link: &Link| match link {
            Link::Down { .. } => 0,
            Link::Up { parked, .. } => parked.len(),
        };
        self.links.values().map(parked).sum::<usize>() + self.names.waiting()
    }

    /// Asks for the record if it has changed, and lets out what waits for no record.
    fn leave(&mut self, effects: Vec<Effect>) -> Vec<Effect> {
        let mut out = Vec::new();
        if self.record != self.written {
            self.serial = Serial(self.serial.0 + 1);
            self.written.clone_from(&self.record);
            out.push(Effect::Record { serial: self.serial, record: self.record.clone() });
        }
        self.held.extend(effects.into_iter().map(|effect| (self.serial, effect)));
        while self.held.front().is_some_and(|(serial, _)| *serial <= self.recorded) {
            out.extend(self.held.pop_front().map(|(_, effect)| effect));
        }
        out
    }

    /// Whose link it is to be; a node that is new becomes a member.
    fn admit(
        &mut self,
        claimed: NodeId,
        address: SocketAddr,
        effects: &mut Vec<Effect>,
    ) -> Result<NodeId, Refusal> {
        let at = self.record.member_at(address).map(|member| member.node);
        let owner = self.record.member(claimed);
        match (at, owner) {
            (Some(node), _) if node == claimed || !claimed.is_admitted() => Ok(node),
            (None, None) => {
                let past = claimed.is_admitted();
                let standing = if past { Standing::Lost } else { Standing::Member };
                let node = self.record.add(address, standing).ok_or(Refusal::NoNumberLeft)?;
                self.tell_members(effects);
                Ok(node)
            }
            _ => Err(Refusal::NotItsNumber { claimed }),
        }
    }

    /// A new link: its node gets its number, and is asked for what it has or told to have nothing.
    fn linked(
        &mut self,
        now_ms: u64,
        node: NodeId,
        link: LinkNo,
        incarnation: Incarnation,
        effects: &mut Vec<Effect>,
    ) {
        self.unlinked(now_ms, node);
        if let Some(Link::Down { last: Some(last), .. }) = self.links.get(&node)
            && *last != incarnation
        {
            self.decide(now_ms, effects, |names, grants| names.end_claims_of(node, grants));
        }
        let (trust, first) = if self.record.is_lost(node) {
            (Trust::Void, PeerFrame::Void)
        } else {
            (Trust::Reporting(Vec::new()), PeerFrame::ReportPlease)
        };
        let parked = VecDeque::new();
        self.links.insert(node, Link::Up { link, incarnation, trust, parked });
        effects.push(Effect::Admit { link, node });
        let admitted = PeerFrame::Admitted { node, epoch: self.record.epoch };
        let members = PeerFrame::Members(self.record.members.clone());
        effects.extend([admitted, members, first].map(|frame| Effect::Send { link, frame }));
    }

    fn node_by(&self, link: LinkNo) -> Option<NodeId> {
        let is_it = |up: &Link| matches!(up, Link::Up { link: up, .. } if *up == link);
        self.links.iter().find(|(_, up)| is_it(up)).map(|(node, _)| *node)
    }

    /// What was half said on a link, and what was asked, ends with it.
    fn unlinked(&mut self, now_ms: u64, node: NodeId) {
        self.names.drop_waiters(node);
        if let Some(link) = self.links.get_mut(&node)
            && let Link::Up { incarnation, .. } = *link
        {
            *link = Link::Down { since_ms: now_ms, last: Some(incarnation) };
        }
    }

    fn frame(&mut self, now_ms: u64, from: NodeId, frame: PeerFrame, effects: &mut Vec<Effect>) {
        let Some(Link::Up { link, trust, parked, .. }) = self.links.get_mut(&from) else { return };
        match (frame, &mut *trust) {
            (PeerFrame::Report { objects, piece }, Trust::Reporting(so_far)) => {
                so_far.extend(objects);
                if so_far.len() > REPORT_OBJECTS_MAX {
                    self.break_link(now_ms, from, Breach::TooMuch, effects);
                } else if piece == Piece::Last {
                    let objects = std::mem::take(so_far);
                    *trust = Trust::Reported;
                    self.reported(now_ms, from, &objects, effects);
                }
            }
            (PeerFrame::Report { .. }, Trust::Void) => {}
            (PeerFrame::Report { .. }, Trust::Reported) => {
                self.break_link(now_ms, from, Breach::Unasked, effects);
            }
            (PeerFrame::Voided, Trust::Void) => {
                *trust = Trust::Reported;
                self.record.set_standing(from, Standing::Member);
                self.tell_members(effects);
            }
            (PeerFrame::Voided, Trust::Reporting(_) | Trust::Reported) => {}
            (frame, _) if !is_question(&frame) => {
                self.break_link(now_ms, from, Breach::NotForReferee, effects);
            }
            (question, Trust::Void) => {
                let (link, answer) = (*link, refuse_void(&question));
                effects.extend(answer.map(|frame| Effect::Send { link, frame }));
            }
            (_, _) if parked.len() >= PARKED_MAX => {
                self.break_link(now_ms, from, Breach::TooMuch, effects);
            }
            (question, Trust::Reporting(_) | Trust::Reported) => parked.push_back(question),
        }
    }

    /// A node's report is whole.
    fn reported(
        &mut self,
        now_ms: u64,
        from: NodeId,
        objects: &[Reported],
        effects: &mut Vec<Effect>,
    ) {
        let Some(Link::Up { parked, .. }) = self.links.get(&from) else { return };
        let made: Vec<_> = parked
            .iter()
            .filter_map(|question| match question {
                PeerFrame::Made { claim, object } => Some((*claim, object.id)),
                _ => None,
            })
            .collect();
        self.missing.remove(&from);
        self.decide(now_ms, effects, |names, grants| {
            names.reconcile(from, objects, &made, grants);
        });
    }

    /// What was parked is served as soon as nobody is missing, each node's questions in order.
    fn serve_parked(&mut self, now_ms: u64, effects: &mut Vec<Effect>) {
        if !self.missing.is_empty() {
            return;
        }
        let mut served = Vec::new();
        for (node, link) in &mut self.links {
            if let Link::Up { trust: Trust::Reported, parked, .. } = link {
                served.extend(parked.drain(..).map(|question| (*node, question)));
            }
        }
        for (from, question) in served {
            if let PeerFrame::ClaimFor { home, .. } = question
                && !self.may_make(home)
            {
                let answer = refuse_void(&question);
                self.decide(now_ms, effects, |_, grants| {
                    answer.into_iter().for_each(|frame| grants.post(from, frame));
                });
                continue;
            }
            self.decide(now_ms, effects, |names, grants| serve(names, from, question, grants));
        }
    }

    /// Whether a node is there and believed, so that what it makes would count.
    fn may_make(&self, node: NodeId) -> bool {
        matches!(self.links.get(&node), Some(Link::Up { trust: Trust::Reported, .. }))
    }

    /// Lets the tables decide, and posts what they say.
    fn decide(
        &mut self,
        now_ms: u64,
        effects: &mut Vec<Effect>,
        decision: impl FnOnce(&mut Names, &mut Grants<'_>),
    ) {
        let mut posts = Posts::new();
        let mut grants = Grants { now_ms, record: &mut self.record, posts: &mut posts };
        decision(&mut self.names, &mut grants);
        for (to, frame) in posts {
            if let Some(&Link::Up { link, .. }) = self.links.get(&to) {
                effects.push(Effect::Send { link, frame });
            }
        }
    }

    fn tick(&mut self, now_ms: u64, effects: &mut Vec<Effect>) {
        if let Some(timeout_ms) = self.config.claim_timeout_ms {
            self.decide(now_ms, effects, |names, grants| names.expire(timeout_ms, grants));
        }
        let timeout_ms = self.config.node_timeout_ms;
        let silent = self.links.iter().filter(|(node, link)| {
            matches!(link, Link::Down { since_ms, .. }
                if now_ms.saturating_sub(*since_ms) >= timeout_ms && !self.record.is_lost(**node))
        });
        let silent: Vec<_> = silent.map(|(node, _)| *node).collect();
        for &node in &silent {
            effects.push(Effect::DeclaredLost { node });
            self.record.set_standing(node, Standing::Lost);
            self.drop_node(now_ms, node, effects);
        }
        if !silent.is_empty() {
            self.tell_members(effects);
        }
    }

    fn forget(&mut self, now_ms: u64, node: NodeId, effects: &mut Vec<Effect>) {
        if self.record.member(node).is_none() {
            return;
        }
        self.break_link(now_ms, node, Breach::Forgotten, effects);
        self.record.members.retain(|member| member.node != node);
        self.links.remove(&node);
        self.drop_node(now_ms, node, effects);
        self.tell_members(effects);
    }

    fn drop_node(&mut self, now_ms: u64, node: NodeId, effects: &mut Vec<Effect>) {
        self.missing.remove(&node);
        self.decide(now_ms, effects, |names, grants| names.drop_node(node, grants));
    }

    fn break_link(&mut self, now_ms: u64, node: NodeId, reason: Breach, effects: &mut Vec<Effect>) {
        if let Some(&Link::Up { link, .. }) = self.links.get(&node) {
            effects.push(Effect::Break { link, node, reason });
        }
        self.unlinked(now_ms, node);
    }

    fn tell_members(&self, effects: &mut Vec<Effect>) {
        for link in self.links.values() {
            if let &Link::Up { link, .. } = link {
                let frame = PeerFrame::Members(self.record.members.clone());
                effects.push(Effect::Send { link, frame });
            }
        }
    }
}

/// Whether a node asks or tells this of a referee.
fn is_question(frame: &PeerFrame) -> bool {
    matches!(
        frame,
        PeerFrame::Claim { .. }
            | PeerFrame::ClaimFor { .. }
            | PeerFrame::Made { .. }
            | PeerFrame::Abandon { .. }
            | PeerFrame::Removed { .. }
            | PeerFrame::Unnamed { .. }
            | PeerFrame::Resolve { .. }
            | PeerFrame::List { .. }
    )
}

/// A node that is believed.
fn serve(names: &mut Names, from: NodeId, question: PeerFrame, grants: &mut Grants<'_>) {
    match question {
        PeerFrame::Claim { req, kind, key, intent } => {
            names.claim((kind, key), Waiter { node: from, req, intent, maker: from }, grants);
        }
        PeerFrame::ClaimFor { req, kind, key, home } => {
            let waiter = Waiter { node: from, req, intent: Intent::Create, maker: home };
            names.claim((kind, key), waiter, grants);
        }
        PeerFrame::Made { claim, object } => names.made(from, claim, object, grants),
        PeerFrame::Abandon { claim } => names.abandon(from, claim, grants),
        PeerFrame::Removed { id } => names.removed(from, id),
        PeerFrame::Unnamed { id } => names.unnamed(from, id),
        PeerFrame::Resolve { req, id } => {
            let found = names.resolve(id);
            grants.post(from, PeerFrame::Resolved { req, found });
        }
        PeerFrame::List { req, kind, after } => {
            let rows = names.list(kind, after);
            grants.post(from, PeerFrame::Listed { req, rows });
        }
        _ => {}
    }
}

/// A node that is void gets no name, makes nothing, and sees nothing until it has said so.
fn refuse_void(question: &PeerFrame) -> Option<PeerFrame> {
    Some(match *question {
        PeerFrame::Claim { req, .. } | PeerFrame::ClaimFor { req, .. } => {
            PeerFrame::Claimed { req, outcome: Claimed::Void }
        }
        PeerFrame::Made { object, .. } => PeerFrame::Denied { id: object.id },
        PeerFrame::Resolve { req, .. } => PeerFrame::Resolved { req, found: None },
        PeerFrame::List { req, .. } => PeerFrame::Listed { req, rows: Vec::new() },
        _ => return None,
    })
}
