//! A segment at its home and on other nodes, each with the machine under test, imaginary files, one
//! program and a link: what the model and the simulation of pages share. A dipcd may be killed
//! between any two things it does.
#![forbid(unsafe_code)]
#![allow(dead_code, reason = "each test uses its part")]

pub mod files;
pub mod shell;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use dipc_core::directory::{self, Directory, PageRecord};
use dipc_core::replica::{self, CopyRecord};
use dipc_wire::ids::NodeId;
use dipc_wire::memory::{Access, PageNo, Replica, ToHome, ToReplica};

use files::{Contents, Files, InWords, Table, Version};

/// What a shell does wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Bug {
    None,
    /// A grant and its acknowledgement carry no number: each is taken for a new one.
    GrantsWithoutNumber,
    /// Home frees its copy when it has sent a grant for writing.
    FreesBeforeAck,
    /// A replica punches what it gives up, and keeps nothing aside.
    PunchesWithoutAside,
    /// Frames of a replaced link are accepted.
    AcceptsOldLink,
    /// A restarted home waits for nobody.
    ServesBeforeReports,
    /// The number of a kept copy is not looked at.
    TakesOldCopies,
    /// Nobody ends the lease of a node whose dipcd is dead.
    LeaseDiesWithDipcd,
    /// A fault for a page in use is not queued.
    ForgetsFaults,
    /// An invalidation counts as acknowledged when it is sent.
    GrantsBeforeInvalidated,
    /// Whoever puts an acknowledgement off does not hear that it is waited for.
    AcksAtLeisure,
}

/// The terms of a world.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Terms {
    pub nodes: usize,
    pub home: directory::Config,
    pub replica: replica::Config,
    pub bug: Bug,
}

/// Everything there is.
#[derive(Clone, Debug, Hash)]
pub struct World {
    pub terms: Terms,
    pub now_ms: u64,
    pub home: Home,
    /// Node 1 is the first of them.
    pub nodes: Vec<Arc<Node>>,
    /// The latest write of each page.
    pub latest: Vec<Version>,
    /// Pages whose latest write was lost with a node.
    pub lost: Vec<bool>,
    pub losses: u32,
    writes: Version,
    /// What went wrong in a step.
    wrong: Option<String>,
    /// Nodes whose links home closes.
    closing: Vec<usize>,
    /// The dipcd at work is killed after so many of its effects.
    cut: Option<usize>,
    /// How many effects the last event had.
    pub carried: usize,
    /// Grants of pages that nobody waited for.
    pub read_ahead: u32,
}

/// The home node.
#[derive(Clone, Debug, Hash)]
pub struct Home {
    /// `None`: dipcd is dead.
    pub directory: Option<Directory>,
    pub records: Table<<PageRecord as InWords>::Words>,
    pub files: Files,
    /// Durable: which node has which replica.
    pub joined: BTreeMap<Replica, usize>,
    pub waits: BTreeMap<PageNo, Access>,
    pub timer_ms: Option<u64>,
}

/// Another node.
#[derive(Clone, Debug, Hash)]
pub struct Node {
    pub dipcd: Dipcd,
    /// Durable: the number of its replica; `None` when it has none.
    pub number: Option<Replica>,
    pub records: Table<<CopyRecord as InWords>::Words>,
    pub files: Files,
    /// Whether a program is attached.
    pub attached: bool,
    pub waits: BTreeMap<PageNo, Access>,
    /// Whether the lease is over and access was taken away.
    pub fenced: bool,
    /// Whether home has declared it lost since its last link.
    pub declared: bool,
    /// Whether it has declared home lost since its last link.
    pub home_lost: bool,
    pub timer_ms: Option<u64>,
    pub link: Option<Link>,
    /// Frames to home of the link before.
    pub old: VecDeque<Mail<ToHome>>,
}

/// A node's dipcd.
#[derive(Clone, Debug, Hash)]
pub enum Dipcd {
    Dead,
    /// With a machine if there is a replica.
    Runs(Option<replica::Replica>),
}

/// A link, with what is on its way.
#[derive(Clone, Debug, Default, Hash)]
pub struct Link {
    pub to_home: VecDeque<Mail<ToHome>>,
    pub to_node: VecDeque<Mail<ToReplica>>,
    /// Acknowledgements that the node has put off.
    pub put_off: Vec<Mail<ToHome>>,
}

/// A frame with the contents behind it.
#[derive(Clone, Debug, Hash)]
pub struct Mail<F> {
    pub replica: Replica,
    pub frame: F,
    pub contents: Contents,
}

/// One thing that happens. Node 0 is home.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Move {
    /// A program touches a page that it may not touch so.
    Fault(usize, PageNo, Access),
    /// A program writes.
    Write(usize, PageNo),
    /// The next frame arrives at home.
    ToHome(usize),
    /// The next frame from home arrives.
    ToNode(usize),
    /// A frame of the link before arrives at home; only with a bug.
    Old(usize),
    /// The link breaks, and what is on its way is gone.
    Break(usize),
    /// A node's dipcd is killed; its programs live.
    Kill(usize),
    /// It is started.
    Start(usize),
    /// The link is made.
    Link(usize),
    /// The lease of a node is over, and whoever lives there takes access away.
    EndLease(usize),
    /// Home declares a node lost.
    Lose(usize),
    /// A node declares home lost.
    LoseHome(usize),
    /// The program of a node detaches.
    Detach(usize),
    /// It attaches.
    Attach(usize),
    /// A clock says that its time has come.
    Tick(usize),
    /// What a node has put off has waited long enough.
    Flush(usize),
}

impl World {
    /// Every node but home has attached, and is at rest.
    pub fn new(terms: Terms) -> World {
        let pages = terms.home.pages as usize;
        let records = Table::new(pages);
        let directory = Directory::start(terms.home, 0, &records, [], |_| ());
        let node = Node {
            dipcd: Dipcd::Runs(None),
            number: None,
            records: Table::new(pages),
            files: Files::empty(pages),
            attached: true,
            waits: BTreeMap::new(),
            fenced: false,
            declared: false,
            home_lost: false,
            timer_ms: None,
            link: None,
            old: VecDeque::new(),
        };
        let mut world = World {
            terms,
            now_ms: 0,
            home: Home {
                directory: Some(directory),
                records,
                files: Files::of_home(pages),
                joined: BTreeMap::new(),
                waits: BTreeMap::new(),
                timer_ms: None,
            },
            nodes: (1..terms.nodes).map(|_| Arc::new(node.clone())).collect(),
            latest: vec![0; pages],
            lost: vec![false; pages],
            losses: 0,
            writes: 0,
            wrong: None,
            closing: Vec::new(),
            cut: None,
            carried: 0,
            read_ahead: 0,
        };
        for n in 1..terms.nodes {
            world.happen(Move::Link(n));
            while let Some(step) = world.arrivals().first().copied() {
                world.happen(step);
            }
        }
        world
    }

    /// The numbers of the nodes but home.
    pub fn others(&self) -> std::ops::Range<usize> {
        1..self.nodes.len() + 1
    }

    pub fn pages(&self) -> impl Iterator<Item = PageNo> + use<> {
        (0..self.terms.home.pages).map(PageNo)
    }

    pub fn node(&self, n: usize) -> &Node {
        &self.nodes[n - 1]
    }

    fn node_mut(&mut self, n: usize) -> &mut Node {
        Arc::make_mut(&mut self.nodes[n - 1])
    }

    pub fn files(&self, n: usize) -> &Files {
        if n == 0 { &self.home.files } else { &self.node(n).files }
    }

    /// What the program of a node waits for.
    pub fn waits(&self, n: usize) -> &BTreeMap<PageNo, Access> {
        if n == 0 { &self.home.waits } else { &self.node(n).waits }
    }

    /// Whether the dipcd of a node runs.
    pub fn runs(&self, n: usize) -> bool {
        match n {
            0 => self.home.directory.is_some(),
            n => matches!(self.node(n).dipcd, Dipcd::Runs(_)),
        }
    }

    /// Frames that may arrive.
    pub fn arrivals(&self) -> Vec<Move> {
        let mut moves = Vec::new();
        for n in self.others() {
            let Some(link) = &self.node(n).link else { continue };
            if !link.to_home.is_empty() {
                moves.push(Move::ToHome(n));
            }
            if !link.to_node.is_empty() {
                moves.push(Move::ToNode(n));
            }
        }
        moves
    }

    /// What brings everything to rest by itself.
    pub fn progress(&self) -> Vec<Move> {
        let mut moves = self.arrivals();
        moves.extend((0..self.terms.nodes).filter(|n| !self.runs(*n)).map(Move::Start));
        for n in self.others() {
            let node = self.node(n);
            if node.link.is_none() && self.runs(n) && self.runs(0) {
                moves.push(Move::Link(n));
            }
            if self.runs(0) && !node.old.is_empty() {
                moves.push(Move::Old(n));
            }
        }
        moves
    }

    /// Everything that may fail, or end.
    pub fn failures(&self) -> Vec<Move> {
        let mut moves = Vec::new();
        moves.extend(self.runs(0).then_some(Move::Kill(0)));
        for n in self.others() {
            let node = self.node(n);
            let fails = [
                (node.link.is_some(), Move::Break(n)),
                (self.runs(n), Move::Kill(n)),
                (node.link.is_none() && !node.fenced, Move::EndLease(n)),
                (node.fenced && !node.declared && self.runs(0), Move::Lose(n)),
                (node.fenced && !node.home_lost && self.runs(n), Move::LoseHome(n)),
                (node.attached && self.runs(n), Move::Detach(n)),
                (!node.attached && self.runs(n), Move::Attach(n)),
            ];
            moves.extend(fails.into_iter().filter(|(may, _)| *may).map(|(_, step)| step));
        }
        moves
    }

    /// Clocks that are to be heard.
    pub fn ticks(&self) -> Vec<Move> {
        let is_due = |timer_ms: Option<u64>| timer_ms.is_some_and(|at_ms| at_ms <= self.now_ms);
        let home = is_due(self.home.timer_ms).then_some(Move::Tick(0));
        let due = self.others().filter(|n| is_due(self.node(*n).timer_ms));
        home.into_iter().chain(due.map(Move::Tick)).chain(self.flushes()).collect()
    }

    /// Nodes that have put something off.
    pub fn flushes(&self) -> impl Iterator<Item = Move> {
        self.others().filter(|n| self.puts_off(*n)).map(Move::Flush)
    }

    fn puts_off(&self, n: usize) -> bool {
        self.node(n).link.as_ref().is_some_and(|link| !link.put_off.is_empty())
    }

    /// When the next clock is to be heard.
    pub fn next_tick_ms(&self) -> Option<u64> {
        let timers = self.others().filter_map(|n| self.node(n).timer_ms);
        timers.chain(self.home.timer_ms).min()
    }

    /// Everything that programs may do.
    pub fn programs(&self) -> Vec<Move> {
        let mut moves = Vec::new();
        for n in 0..self.terms.nodes {
            if n > 0 && !self.node(n).attached {
                continue;
            }
            let (files, waits) = (self.files(n), self.waits(n));
            for page in self.pages() {
                if files.is_writable(page) {
                    moves.push(Move::Write(n, page));
                }
                for access in [Access::Read, Access::Write] {
                    let waits = waits.get(&page).is_some_and(|wanted| *wanted >= access);
                    if !waits && !files.allows(page, access) {
                        moves.push(Move::Fault(n, page, access));
                    }
                }
            }
        }
        moves
    }

    /// What is wrong with this state, if anything is.
    pub fn wrong(&self) -> Option<String> {
        if self.wrong.is_some() {
            return self.wrong.clone();
        }
        for page in self.pages() {
            let all = (0..self.terms.nodes).map(|n| self.files(n));
            let readers = all.clone().filter(|files| files.read(page).is_some()).count();
            let writers = all.clone().filter(|files| files.is_writable(page)).count();
            if writers > 0 && readers > 1 {
                return Some(format!("WRITER BESIDE READER of {page:?}"));
            }
            let latest = self.latest[page.0 as usize];
            let stale = all.flat_map(|files| files.read(page)).any(|version| version != latest);
            if stale && !self.lost[page.0 as usize] {
                return Some(format!("STALE READ of {page:?}"));
            }
        }
        None
    }

    /// What is wrong with a state in which nothing is on its way.
    pub fn wrong_at_rest(&self) -> Option<String> {
        if let Some(n) = (0..self.terms.nodes).find(|n| !self.waits(*n).is_empty()) {
            return Some(format!("AT REST, and a program of node {n} waits"));
        }
        let leaves = |n: &usize| !self.node(*n).attached && self.node(*n).number.is_some();
        if let Some(n) = self.others().find(leaves) {
            return Some(format!("AT REST, and node {n} has not left"));
        }
        let waits = self.is_home_busy() && !self.others().any(|n| self.puts_off(n));
        waits.then(|| "AT REST, and home waits".into())
    }
}

/// The number of a node in the cluster.
pub fn node_id(n: usize) -> NodeId {
    u8::try_from(n).ok().and_then(NodeId::new).expect("a node's number")
}
