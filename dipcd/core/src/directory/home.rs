//! What the pages of one segment have in
//! common: who is there, who is heard, what time it is.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, VecDeque};

use dipc_wire::ids::NodeId;
use dipc_wire::memory::{Access, PageNo, Replica};

use super::{Breach, Config, ReplicaSet};
use crate::copies::Run;
use crate::hold::Holds;

/// Faults of one replica that wait at once: more than a node has threads.
pub const FAULTS_MAX: u32 = 65_536;
/// How many answers to a replica's reading ahead may cross its faults and be known to.
const CROSSING_MAX: usize = 4;

/// What is common to the pages.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Home {
    pub config: Config,
    pub now_ms: u64,
    /// Who has joined and is not gone, home among them.
    pub known: ReplicaSet,
    /// Whose link is up and who has reported on it.
    pub speaks: ReplicaSet,
    pub holds: Holds,
    pub peers: BTreeMap<Replica, Peer>,
}

/// A replica elsewhere.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Peer {
    pub node: NodeId,
    /// In how many queues it is.
    waiting: u32,
    /// Faults of the report that is coming in; they are served when it is whole.
    pub reported: Vec<(PageNo, Access)>,
    /// What it was granted ahead on this link. A replica with a live link drops no copy by itself,
    /// so a fault for reading one of these has crossed its grant.
    crossing: VecDeque<Run>,
}

impl Home {
    pub fn new(config: Config, now_ms: u64) -> Home {
        Home {
            config,
            now_ms,
            known: ReplicaSet::of(Replica::HOME),
            speaks: ReplicaSet::NONE,
            holds: Holds::new(config.hold, now_ms),
            peers: BTreeMap::new(),
        }
    }

    /// A replica that has yet to report.
    pub fn join(&mut self, replica: Replica, node: NodeId) {
        let (waiting, reported, crossing) = (0, Vec::new(), VecDeque::new());
        self.known = self.known.with(replica);
        self.peers.insert(replica, Peer { node, waiting, reported, crossing });
    }

    /// What was half said on a link ends with it, as does its place in the queues.
    pub fn hang_up(&mut self, replica: Replica) {
        self.speaks = self.speaks.without(replica);
        if let Some(peer) = self.peers.get_mut(&replica) {
            peer.waiting = 0;
            peer.reported.clear();
            peer.crossing.clear();
        }
    }

    pub fn forget(&mut self, replica: Replica) {
        self.hang_up(replica);
        self.known = self.known.without(replica);
        self.peers.remove(&replica);
    }

    /// The replicas of a node.
    pub fn replicas_of(&self, node: NodeId) -> ReplicaSet {
        let its = self.peers.iter().filter(|(_, peer)| peer.node == node);
        its.fold(ReplicaSet::NONE, |set, (replica, _)| set.with(*replica))
    }

    pub fn joins_queue(&mut self, replica: Replica) -> Result<(), Breach> {
        if let Some(peer) = self.peers.get_mut(&replica) {
            peer.waiting += 1;
            if peer.waiting > FAULTS_MAX {
                return Err(Breach::TooMuch);
            }
        }
        Ok(())
    }

    pub fn leaves_queue(&mut self, replica: Replica) {
        if let Some(peer) = self.peers.get_mut(&replica) {
            peer.waiting = peer.waiting.saturating_sub(1);
        }
    }

    /// This page was granted ahead.
    pub fn granted_ahead(&mut self, replica: Replica, page: PageNo) {
        let Some(peer) = self.peers.get_mut(&replica) else { return };
        match peer.crossing.back_mut() {
            Some(run) if run.first.0 + run.count == page.0 => run.count += 1,
            _ => {
                if peer.crossing.len() == CROSSING_MAX {
                    peer.crossing.pop_front();
                }
                peer.crossing.push_back(Run::one(page));
            }
        }
    }

    /// Whether a fault has crossed the grant of its page, if it is among the readers of a page at
    /// rest.
    pub fn was_granted_ahead(&self, replica: Replica, page: PageNo) -> bool {
        let is_in = |run: &Run| page >= run.first && page.0 - run.first.0 < run.count;
        self.peers.get(&replica).is_some_and(|peer| peer.crossing.iter().any(is_in))
    }
}
