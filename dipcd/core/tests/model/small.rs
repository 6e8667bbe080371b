//! The cluster of the simulator, made small enough to see all of it: one key, and a number for how
//! often each thing may happen.
//!
//! Time does not pass here: everything happens at [`NOW`], and the two timeouts are moves. A tick
//! at a later time loses all nodes without a link, or gives all claims up.
#![forbid(unsafe_code)]

use dipc_core::referee::Config;
use dipc_wire::ids::Key;
use dipc_wire::peer::Intent;

use super::cluster::{Bug, Cluster, Move};
use super::explore::World;

const NOW: u64 = 1000;
const KEY: Key = Key(40);

/// How often what may happen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Budget {
    /// `*get` with IPC_CREAT.
    pub creates: u8,
    /// The same, for an object that the other node is to make.
    pub places: u8,
    /// `*get` without.
    pub finds: u8,
    /// Removals.
    pub removes: u8,
    /// The kernel refuses what was granted, or the program waits no more.
    pub abandons: u8,
    /// Links cut.
    pub cuts: u8,
    /// The referee killed.
    pub referee_kills: u8,
    /// A node retired.
    pub retirements: u8,
    /// A node's dipcd killed.
    pub node_kills: u8,
    /// The shorter of the two timeouts passes.
    pub short_timeouts: u8,
    /// Both pass.
    pub long_timeouts: u8,
}

/// Which timeout is the shorter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Shorter {
    Claim,
    Node,
}

/// What happens.
#[derive(Clone, Copy, Debug)]
pub enum Step {
    /// Something at the present time.
    Now(Move),
    /// A tick, so much later.
    Later(u64),
}

/// The world.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Small {
    cluster: Cluster,
    budget: Budget,
}

const SHORT_MS: u64 = 10;
const LONG_MS: u64 = 20;

impl Small {
    /// Two nodes that are linked and have their numbers, or three.
    pub fn new(nodes: u8, budget: Budget, shorter: Shorter, bug: Bug) -> Small {
        let (claim, node_timeout_ms) = match shorter {
            Shorter::Claim => (SHORT_MS, LONG_MS),
            Shorter::Node => (LONG_MS, SHORT_MS),
        };
        let config = Config { claim_timeout_ms: Some(claim), node_timeout_ms };
        let mut cluster = Cluster::new(nodes, config, bug);
        cluster.now_ms = NOW;
        while let Some(step) = cluster.progress().first() {
            cluster.happen(*step);
        }
        Small { cluster, budget }
    }
}

impl World for Small {
    type Move = Step;

    fn moves(&self) -> Vec<Step> {
        let Small { cluster, budget } = self;
        let mut moves = cluster.progress();
        for place in 0..cluster.nodes() {
            let mut may = |left: u8, step| moves.extend((left > 0).then_some(step));
            may(budget.creates, Move::Ask(place, KEY, Intent::Create));
            let other = (place + 1) % cluster.nodes();
            may(budget.places, Move::AskFor(place, KEY, other));
            may(budget.finds, Move::Ask(place, KEY, Intent::Find));
            let removes = if cluster.has_objects(place) { budget.removes } else { 0 };
            may(removes, Move::Remove(place));
            let leaves = if cluster.has_leave(place) { budget.abandons } else { 0 };
            may(leaves, Move::Abandon(place));
            may(budget.retirements, Move::Forget(place));
            let asked = if cluster.is_asking(place) { budget.abandons } else { 0 };
            may(asked, Move::GiveUp(place));
        }
        let failures = cluster.failures().into_iter().filter(|failure| match failure {
            Move::Cut(_) => budget.cuts > 0,
            Move::KillNode(_) => budget.node_kills > 0,
            _ => budget.referee_kills > 0,
        });
        moves.extend(failures);
        let mut steps: Vec<_> = moves.into_iter().map(Step::Now).collect();
        if !cluster.progress().contains(&Move::StartReferee) {
            steps.extend((budget.short_timeouts > 0).then_some(Step::Later(SHORT_MS)));
            steps.extend((budget.long_timeouts > 0).then_some(Step::Later(LONG_MS)));
        }
        steps
    }

    fn apply(&mut self, step: &Step) {
        let budget = &mut self.budget;
        match *step {
            Step::Now(step) => {
                match step {
                    Move::Ask(_, _, Intent::Create) => budget.creates -= 1,
                    Move::AskFor(..) => budget.places -= 1,
                    Move::Ask(_, _, Intent::Find) => budget.finds -= 1,
                    Move::Remove(_) => budget.removes -= 1,
                    Move::Abandon(_) | Move::GiveUp(_) => budget.abandons -= 1,
                    Move::Forget(_) => budget.retirements -= 1,
                    Move::Cut(_) => budget.cuts -= 1,
                    Move::KillNode(_) => budget.node_kills -= 1,
                    Move::KillReferee => budget.referee_kills -= 1,
                    _ => {}
                }
                self.cluster.happen(step);
            }
            Step::Later(later_ms) => {
                match later_ms {
                    SHORT_MS => budget.short_timeouts -= 1,
                    _ => budget.long_timeouts -= 1,
                }
                self.cluster.now_ms = NOW + later_ms;
                self.cluster.happen(Move::Tick);
                self.cluster.now_ms = NOW;
            }
        }
    }

    fn wrong(&self) -> Option<String> {
        self.cluster.wrong()
    }
}
