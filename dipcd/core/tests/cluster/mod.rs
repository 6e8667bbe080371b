//! A cluster to play with: the referee under test, its disk, nodes, and the links between, all of
//! it plain data. What happens is a list of moves; the explorer takes them all, the simulator
//! draws them.
//!
//! Nodes do here what the daemon's shell does. Each link is two queues and keeps order; a cut
//! loses what is in them, and each end notices in its own time. A bug can be planted.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{Ipv4Addr, SocketAddr};

use dipc_core::referee::{Breach, Config, Effect, Event, LinkNo, Record, Referee, Serial};
use dipc_wire::client::Row;
use dipc_wire::ids::{ClaimNo, Incarnation, Key, Kind, NodeId, ObjectId, Req};
use dipc_wire::peer::{Claimed, Intent, PeerFrame, Piece, Reported, Standing};

/// A mistake that somebody could make.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Bug {
    /// None.
    None,
    /// A restarted referee takes members that are not linked for members without objects.
    ServesBeforeAllReports,
    /// The void mark goes when `Void` is sent, not when `Voided` has come.
    ForgetsVoidOnSending,
    /// An object counts though its claim was given up.
    CreatesOnExpiredClaim,
    /// The referee acts on a record before it is on disk.
    TrustsUnwrittenRecord,
}

/// What a `*get` wants, and on which node a new object is to live; `NONE`: on its own.
type Asked = (Key, Intent, NodeId);

/// A node's dipcd.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Node {
    number: NodeId,
    incarnation: Incarnation,
    published: BTreeMap<ObjectId, Key>,
    /// Made and not confirmed; on its disk like the published ones.
    unconfirmed: BTreeMap<ObjectId, (ClaimNo, Key)>,
    /// Leave to make an object that is not made yet.
    granted: Vec<(ClaimNo, ObjectId, Key)>,
    /// `*get` calls without an answer.
    asking: BTreeMap<Req, Asked>,
    /// Those whose program waits no more; an answer may still come.
    given_up: BTreeSet<Req>,
    next_req: u64,
}

/// One link, as it really is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Link {
    number: LinkNo,
    state: LinkState,
    up: VecDeque<PeerFrame>,
    down: VecDeque<PeerFrame>,
    dials: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum LinkState {
    Up,
    /// Cut, and the referee has not noticed.
    Cut,
    Down,
}

/// What happens. Nodes are named by their place in the list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Move {
    Ask(usize, Key, Intent),
    /// The same for an object that another node is to make, at the third place.
    AskFor(usize, Key, usize),
    Make(usize),
    /// The kernel refuses what was granted.
    Abandon(usize),
    Remove(usize),
    /// A program waits no more.
    GiveUp(usize),
    ArriveUp(usize),
    ArriveDown(usize),
    Cut(usize),
    Notice(usize),
    Dial(usize),
    KillNode(usize),
    /// An operator retires the node.
    Forget(usize),
    Written,
    KillReferee,
    StartReferee,
    Tick,
}

/// The cluster.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Cluster {
    pub now_ms: u64,
    bug: Bug,
    config: Config,
    referee: Option<Referee>,
    disk: Record,
    writing: VecDeque<(Serial, Record)>,
    /// Whether a node was ever retired, so that one may find its number given away.
    forgot: bool,
    nodes: Vec<Node>,
    links: Vec<Link>,
    /// Every object that was ever made.
    pub made: BTreeSet<ObjectId>,
    wrong: Option<String>,
}

impl Cluster {
    /// As many nodes without a number, and a referee that never ran.
    pub fn new(nodes: u8, config: Config, bug: Bug) -> Cluster {
        let node = Node {
            number: NodeId::NONE,
            incarnation: Incarnation(1),
            published: BTreeMap::new(),
            unconfirmed: BTreeMap::new(),
            granted: Vec::new(),
            asking: BTreeMap::new(),
            given_up: BTreeSet::new(),
            next_req: 0,
        };
        let link = |place: u8| Link {
            number: LinkNo(u64::from(place) << 32),
            state: LinkState::Down,
            up: VecDeque::new(),
            down: VecDeque::new(),
            dials: 0,
        };
        Cluster {
            now_ms: 0,
            bug,
            config,
            referee: None,
            disk: Record::default(),
            writing: VecDeque::new(),
            forgot: false,
            nodes: vec![node; usize::from(nodes)],
            links: (0..nodes).map(link).collect(),
            made: BTreeSet::new(),
            wrong: None,
        }
    }

    /// How many nodes there are.
    pub fn nodes(&self) -> usize {
        self.nodes.len()
    }

    /// Everything that goes on by itself, without failure, request or time.
    pub fn progress(&self) -> Vec<Move> {
        let mut moves = Vec::new();
        for (place, link) in self.links.iter().enumerate() {
            match link.state {
                LinkState::Up if !link.up.is_empty() => moves.push(Move::ArriveUp(place)),
                LinkState::Cut => moves.push(Move::Notice(place)),
                LinkState::Up | LinkState::Down => {}
            }
            if !link.down.is_empty() {
                moves.push(Move::ArriveDown(place));
            }
            if link.state != LinkState::Up && self.referee.is_some() {
                moves.push(Move::Dial(place));
            }
            if !self.nodes[place].granted.is_empty() {
                moves.push(Move::Make(place));
            }
        }
        moves.extend((!self.writing.is_empty()).then_some(Move::Written));
        moves.extend(self.referee.is_none().then_some(Move::StartReferee));
        moves
    }

    /// Which failures are possible now.
    pub fn failures(&self) -> Vec<Move> {
        let mut moves = Vec::new();
        for (place, link) in self.links.iter().enumerate() {
            moves.extend((link.state == LinkState::Up).then_some(Move::Cut(place)));
            moves.push(Move::KillNode(place));
        }
        moves.extend(self.referee.is_some().then_some(Move::KillReferee));
        moves
    }

    /// Whether this node is between a leave and its object.
    pub fn has_leave(&self, place: usize) -> bool {
        !self.nodes[place].granted.is_empty()
    }

    /// Whether a program of this node waits for an answer.
    pub fn is_asking(&self, place: usize) -> bool {
        !self.nodes[place].asking.is_empty()
    }

    /// Whether this node is home to anything.
    pub fn has_objects(&self, place: usize) -> bool {
        !self.nodes[place].published.is_empty()
    }

    /// Lets something happen.
    pub fn happen(&mut self, step: Move) {
        match step {
            Move::Ask(place, key, intent) => self.ask(place, (key, intent, NodeId::NONE)),
            Move::AskFor(place, key, maker) => {
                self.ask(place, (key, Intent::Create, self.nodes[maker].number));
            }
            Move::Make(place) => self.make(place),
            Move::Abandon(place) => {
                let (claim, ..) = self.nodes[place].granted.remove(0);
                self.say(place, PeerFrame::Abandon { claim });
            }
            Move::Remove(place) => self.remove(place),
            Move::GiveUp(place) => {
                let node = &mut self.nodes[place];
                node.given_up.extend(node.asking.pop_first().map(|(req, _)| req));
            }
            Move::ArriveUp(place) => {
                let number = self.links[place].number;
                if let Some(frame) = self.links[place].up.pop_front() {
                    self.step(Event::Frame { link: number, frame });
                }
            }
            Move::ArriveDown(place) => {
                if let Some(frame) = self.links[place].down.pop_front() {
                    self.hear(place, frame);
                }
            }
            Move::Cut(place) => self.cut(place),
            Move::Notice(place) => {
                self.links[place].state = LinkState::Down;
                self.step(Event::Unlinked { link: self.links[place].number });
            }
            Move::Dial(place) => self.dial(place),
            Move::KillNode(place) => self.kill_node(place),
            Move::Forget(place) => {
                let node = self.nodes[place].number;
                if !self.is_void(place) {
                    self.forgot = true;
                    self.step(Event::Forget { node });
                }
            }
            Move::Written => self.write(),
            Move::KillReferee => self.kill_referee(),
            Move::StartReferee => self.start_referee(),
            Move::Tick => self.step(Event::Tick),
        }
    }

    fn ask(&mut self, place: usize, asked: Asked) {
        let node = &mut self.nodes[place];
        node.next_req += 1;
        let req = Req(node.next_req);
        node.asking.insert(req, asked);
        self.claim(place, req, asked);
    }

    fn claim(&mut self, place: usize, req: Req, (key, intent, home): Asked) {
        let kind = Kind::Queue;
        let frame = if home.is_admitted() {
            PeerFrame::ClaimFor { req, kind, key, home }
        } else {
            PeerFrame::Claim { req, kind, key, intent }
        };
        self.say(place, frame);
    }

    /// Who has this number, as the referee sees it.
    fn place_of(&self, node: NodeId) -> Option<usize> {
        let record = self.referee.as_ref().map_or(&self.disk, Referee::record);
        let at = record.member(node)?.address;
        (0..self.nodes.len()).find(|place| address(*place) == at)
    }

    fn make(&mut self, place: usize) {
        let (claim, id, key) = self.nodes[place].granted.remove(0);
        if !self.made.insert(id) {
            self.wrong = Some(format!("ID {id} IS USED FOR TWO OBJECTS"));
        }
        self.nodes[place].unconfirmed.insert(id, (claim, key));
        self.say(place, PeerFrame::Made { claim, object: reported(id, key) });
    }

    fn remove(&mut self, place: usize) {
        if let Some((id, _)) = self.nodes[place].published.pop_first() {
            self.say(place, PeerFrame::Removed { id });
        }
    }

    fn say(&mut self, place: usize, frame: PeerFrame) {
        let link = &mut self.links[place];
        if link.state == LinkState::Up {
            link.up.push_back(frame);
        }
    }

    fn cut(&mut self, place: usize) {
        let link = &mut self.links[place];
        link.up.clear();
        link.down.clear();
        link.state = LinkState::Cut;
    }

    /// A node says Hello; what it had asked it asks again.
    fn dial(&mut self, place: usize) {
        let link = &mut self.links[place];
        link.state = LinkState::Up;
        link.dials += 1;
        link.number = LinkNo((place as u64) << 32 | link.dials);
        let link = link.number;
        self.nodes[place].given_up.clear();
        let node = &self.nodes[place];
        let (incarnation, number) = (node.incarnation, node.number);
        let asking = node.asking.clone();
        self.step(Event::Linked { link, node: number, address: address(place), incarnation });
        for (req, asked) in asking {
            self.claim(place, req, asked);
        }
    }

    /// dipcd starts again: its programs' calls are repeated, its objects were in its table.
    fn kill_node(&mut self, place: usize) {
        if self.links[place].state == LinkState::Up {
            self.cut(place);
        }
        let node = &mut self.nodes[place];
        node.incarnation.0 += 1;
        node.granted.clear();
        node.given_up.clear();
    }

    fn write(&mut self) {
        let Some((serial, record)) = self.writing.pop_front() else { return };
        self.disk = record;
        self.step(Event::Recorded { serial });
    }

    fn kill_referee(&mut self) {
        self.referee = None;
        self.writing.clear();
        for place in 0..self.nodes.len() {
            self.cut(place);
            self.links[place].state = LinkState::Down;
        }
    }

    fn start_referee(&mut self) {
        let (referee, effects) = Referee::start(self.disk.clone(), self.config, self.now_ms);
        self.referee = Some(referee);
        self.carry_out(effects);
        if self.bug == Bug::ServesBeforeAllReports {
            for (no, member) in self.disk.members.clone().into_iter().enumerate() {
                let link = LinkNo(u64::MAX - no as u64);
                let (node, address) = (member.node, member.address);
                let incarnation = Incarnation(0);
                self.step(Event::Linked { link, node, address, incarnation });
                let frame = PeerFrame::Report { objects: Vec::new(), piece: Piece::Last };
                self.step(Event::Frame { link, frame });
                self.step(Event::Unlinked { link });
            }
        }
    }

    fn step(&mut self, event: Event) {
        let Some(referee) = &mut self.referee else { return };
        let effects = referee.step(self.now_ms, event);
        self.carry_out(effects);
    }

    fn carry_out(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::Record { serial, record } => {
                    self.writing.push_back((serial, record));
                    if self.bug == Bug::TrustsUnwrittenRecord {
                        self.step(Event::Recorded { serial });
                    }
                }
                Effect::Send { link, frame } => self.send(link, frame),
                Effect::Admit { .. } | Effect::DeclaredLost { .. } => {}
                Effect::Break { link, reason: Breach::Forgotten, .. } => {
                    let at = self.links.iter().position(|own| own.number == link);
                    if let Some(place) = at
                        && self.links[place].state == LinkState::Up
                    {
                        self.cut(place);
                    }
                }
                Effect::Refuse { link, .. } if self.forgot => {
                    let at = self.links.iter().position(|own| own.number == link);
                    at.into_iter().for_each(|place| self.wipe(place));
                }
                Effect::Refuse { .. } | Effect::Break { .. } => {
                    self.wrong = Some(format!("A GOOD NODE IS TURNED AWAY: {effect:?}"));
                }
            }
        }
    }

    /// Its number is another's by now: the operator clears its disk, and it starts anew.
    fn wipe(&mut self, place: usize) {
        self.cut(place);
        let node = &mut self.nodes[place];
        node.number = NodeId::NONE;
        node.published.clear();
        node.unconfirmed.clear();
        node.granted.clear();
        node.incarnation.0 += 1;
    }

    fn send(&mut self, number: LinkNo, frame: PeerFrame) {
        let at =
            self.links.iter().position(|link| link.number == number && link.state == LinkState::Up);
        let Some(place) = at else { return };
        match (frame, self.bug) {
            // Who else there is matters to nobody here.
            (PeerFrame::Members(_), _) => {}
            (PeerFrame::Denied { id }, Bug::CreatesOnExpiredClaim) => {
                self.links[place].down.push_back(PeerFrame::Confirmed { id });
            }
            (PeerFrame::Void, Bug::ForgetsVoidOnSending) => {
                self.links[place].down.push_back(PeerFrame::Void);
                self.step(Event::Frame { link: number, frame: PeerFrame::Voided });
            }
            (frame, _) => self.links[place].down.push_back(frame),
        }
    }

    /// The node's side, as the daemon has it.
    fn hear(&mut self, place: usize, frame: PeerFrame) {
        match frame {
            PeerFrame::Admitted { node, .. } => self.nodes[place].number = node,
            PeerFrame::ReportPlease => self.report(place),
            PeerFrame::Void => {
                let node = &mut self.nodes[place];
                node.published.clear();
                node.unconfirmed.clear();
                node.granted.clear();
                self.say(place, PeerFrame::Voided);
            }
            PeerFrame::Confirmed { id } => {
                let node = &mut self.nodes[place];
                if let Some((_, key)) = node.unconfirmed.remove(&id) {
                    node.published.insert(id, key);
                }
            }
            PeerFrame::Denied { id } => {
                let node = &mut self.nodes[place];
                if node.published.remove(&id).is_some() {
                    self.wrong = Some(format!("A PUBLISHED OBJECT IS DENIED: {id}"));
                }
                if let Some((_, key)) = self.nodes[place].unconfirmed.remove(&id) {
                    self.ask(place, (key, Intent::Create, NodeId::NONE));
                }
            }
            PeerFrame::Claimed { req, outcome } => self.claimed(place, req, outcome),
            _ => self.wrong = Some(format!("NOBODY ASKED FOR {frame:?}")),
        }
    }

    fn report(&mut self, place: usize) {
        let node = &self.nodes[place];
        let made: Vec<_> = node
            .unconfirmed
            .iter()
            .map(|(id, (claim, key))| PeerFrame::Made {
                claim: *claim,
                object: reported(*id, *key),
            })
            .collect();
        let objects: Vec<_> = node.published.iter().map(|(id, key)| reported(*id, *key)).collect();
        for frame in made {
            self.say(place, frame);
        }
        for objects in objects.chunks(2) {
            let objects = objects.to_vec();
            self.say(place, PeerFrame::Report { objects, piece: Piece::More });
        }
        self.say(place, PeerFrame::Report { objects: Vec::new(), piece: Piece::Last });
    }

    fn claimed(&mut self, place: usize, req: Req, outcome: Claimed) {
        let node = &mut self.nodes[place];
        let Some((key, intent, home)) = node.asking.remove(&req) else {
            if node.given_up.remove(&req) {
                if let Claimed::Granted { claim, .. } = outcome {
                    self.say(place, PeerFrame::Abandon { claim });
                }
                return;
            }
            self.wrong = Some(format!("ANSWERED TWICE: {req:?}"));
            return;
        };
        match outcome {
            Claimed::Granted { claim, id } => {
                let maker = if home.is_admitted() { self.place_of(home) } else { Some(place) };
                match maker {
                    Some(maker) => self.nodes[maker].granted.push((claim, id, key)),
                    // It was retired meanwhile.
                    None => self.ask(place, (key, intent, NodeId::NONE)),
                }
            }
            // Void may be who was to make it: then the asker does.
            Claimed::Void => self.ask(place, (key, intent, NodeId::NONE)),
            Claimed::Found { .. } | Claimed::Absent => {}
            Claimed::Full => self.wrong = Some("NO NUMBER LEFT".into()),
        }
    }

    /// What is wrong with this state, if anything is.
    pub fn wrong(&self) -> Option<String> {
        if self.wrong.is_some() {
            return self.wrong.clone();
        }
        let mut homes: BTreeMap<Key, usize> = BTreeMap::new();
        for (place, node) in self.nodes.iter().enumerate() {
            if !self.is_void(place) {
                node.published.values().for_each(|key| *homes.entry(*key).or_default() += 1);
            }
        }
        if let Some((key, _)) =
            homes.iter().find(|(key, count)| **key != Key::PRIVATE && **count > 1)
        {
            return Some(format!("TWO HOMES for {key:?}"));
        }
        if self.progress().is_empty() { self.wrong_at_rest() } else { None }
    }

    /// A node's objects are void from its loss, or from when it was retired, until it says that
    /// they are gone.
    fn is_void(&self, place: usize) -> bool {
        let record = self.referee.as_ref().map_or(&self.disk, Referee::record);
        record.member_at(address(place)).is_none_or(|member| member.standing == Standing::Lost)
    }

    /// Nothing moves any more: nobody waits, and the referee knows what there is.
    fn wrong_at_rest(&self) -> Option<String> {
        let referee = self.referee.as_ref()?;
        let waits = |node: &Node| !node.asking.is_empty() || !node.unconfirmed.is_empty();
        if referee.waiting() > 0 || self.nodes.iter().any(waits) {
            return Some("STUCK: somebody waits at rest".into());
        }
        if referee.missing().next().is_some() {
            return Some("STUCK: somebody is missing at rest".into());
        }
        let mut here: Vec<_> = self.nodes.iter().flat_map(rows_of).collect();
        here.sort_by_key(|row| row.id);
        (here != self.listed(referee.clone())).then(|| "AT REST the referee is mistaken".into())
    }

    fn listed(&self, mut referee: Referee) -> Vec<Row> {
        let mut rows: Vec<Row> = Vec::new();
        let link = self.links[0].number;
        loop {
            let after = rows.last().map(|row| row.id);
            let frame = PeerFrame::List { req: Req(0), kind: Kind::Queue, after };
            let effects = referee.step(self.now_ms, Event::Frame { link, frame });
            match effects.as_slice() {
                [Effect::Send { frame: PeerFrame::Listed { rows: page, .. }, .. }]
                    if !page.is_empty() =>
                {
                    rows.extend(page);
                }
                _ => return rows,
            }
        }
    }
}

fn rows_of(node: &Node) -> impl Iterator<Item = Row> + '_ {
    node.published.iter().map(|(id, key)| Row { id: *id, key: *key, home: node.number })
}

fn reported(id: ObjectId, key: Key) -> Reported {
    Reported { id, kind: Kind::Queue, key }
}

fn address(place: usize) -> SocketAddr {
    let port = 4750 + u16::try_from(place).expect("few nodes");
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}
