//! Every interleaving of small segments: a home and one or two other nodes, one page or two, a few
//! faults and writes, and failures. In every state a page has one writer or many readers, and every
//! copy that a program can read is the latest write; at rest nobody waits. A dipcd that is killed
//! is killed between any two things it does. With a bug planted each of this goes wrong.
#![forbid(unsafe_code)]

#[path = "model/explore.rs"]
mod explore;
mod segment;

use std::time::Instant;

use dipc_core::directory::{self, LostPage};
use dipc_core::hold::Hold;
use dipc_core::replica;
use dipc_wire::memory::Access;
use explore::{Explored, explore, fails, holds};
use segment::{Bug, Move, Terms, World};

const STATES_MAX: usize = 20_000_000;

/// How often each thing may happen. Faults and writes are counted per node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Budget {
    faults: u8,
    writes: u8,
    breaks: u8,
    node_kills: u8,
    home_kills: u8,
    losses: u8,
    detaches: u8,
}

const NOTHING: Budget = Budget {
    faults: 1,
    writes: 1,
    breaks: 0,
    node_kills: 0,
    home_kills: 0,
    losses: 0,
    detaches: 0,
};

/// A world, and what may still happen in it.
#[derive(Clone, Debug, Hash)]
struct Small {
    world: World,
    faults: Vec<u8>,
    writes: Vec<u8>,
    budget: Budget,
}

/// What happens, perhaps with a kill after so many effects.
#[derive(Clone, Copy, Debug)]
struct Step {
    what: Move,
    killed_after: Option<usize>,
}

impl Small {
    fn new(nodes: usize, pages: u32, budget: Budget, bug: Bug) -> Small {
        Small {
            world: World::new(terms(nodes, pages, bug)),
            faults: vec![budget.faults; nodes],
            writes: vec![budget.writes; nodes],
            budget,
        }
    }

    fn failures(&self) -> Vec<Move> {
        let (world, budget) = (&self.world, &self.budget);
        let mut moves = Vec::new();
        if budget.home_kills > 0 && world.runs(0) {
            moves.push(Move::Kill(0));
        }
        for n in world.others() {
            let node = world.node(n);
            if budget.breaks > 0 && node.link.is_some() {
                moves.push(Move::Break(n));
            }
            if budget.node_kills > 0 && world.runs(n) {
                moves.push(Move::Kill(n));
            }
            if budget.losses > 0 && node.link.is_none() && !node.fenced {
                moves.push(Move::EndLease(n));
            }
            if budget.losses > 0 && node.fenced && !node.declared && world.runs(0) {
                moves.push(Move::Lose(n));
            }
            if budget.detaches > 0 && node.attached && world.runs(n) {
                moves.push(Move::Detach(n));
            }
        }
        moves
    }

    /// Where a dipcd may be killed in the middle of this.
    fn cuts(&self, what: Move) -> usize {
        let may = match what {
            Move::ToNode(_) | Move::Detach(_) => self.budget.node_kills > 0,
            Move::Fault(n, ..) if n > 0 => self.budget.node_kills > 0,
            Move::ToHome(_) | Move::Fault(..) => self.budget.home_kills > 0,
            _ => false,
        };
        if !may {
            return 0;
        }
        let mut probe = self.world.clone();
        probe.happen(what);
        probe.carried
    }
}

impl explore::World for Small {
    type Move = Step;

    fn moves(&self) -> Vec<Step> {
        let mut moves = self.world.progress();
        moves.extend(self.world.programs().into_iter().filter(|step| match step {
            Move::Fault(n, ..) => self.faults[*n] > 0,
            Move::Write(n, _) => self.writes[*n] > 0,
            _ => false,
        }));
        moves.extend(self.failures());
        let mut steps = Vec::new();
        for what in moves {
            let cuts = (1..self.cuts(what)).map(Some);
            let step = |killed_after| Step { what, killed_after };
            steps.extend(std::iter::once(None).chain(cuts).map(step));
        }
        steps
    }

    fn apply(&mut self, step: &Step) {
        match step.what {
            Move::Fault(n, ..) => self.faults[n] -= 1,
            Move::Write(n, _) => self.writes[n] -= 1,
            Move::Break(_) => self.budget.breaks -= 1,
            Move::Kill(0) => self.budget.home_kills -= 1,
            Move::Kill(_) => self.budget.node_kills -= 1,
            Move::Lose(_) => self.budget.losses -= 1,
            Move::Detach(_) => self.budget.detaches -= 1,
            _ => {}
        }
        let Some(after) = step.killed_after else { return self.world.happen(step.what) };
        match step.what {
            Move::ToNode(_) | Move::Detach(_) => self.budget.node_kills -= 1,
            Move::Fault(n, ..) if n > 0 => self.budget.node_kills -= 1,
            _ => self.budget.home_kills -= 1,
        }
        self.world.happen_cut(step.what, after);
    }

    fn wrong(&self) -> Option<String> {
        let wrong = self.world.wrong();
        if wrong.is_some() || !self.world.progress().is_empty() {
            return wrong;
        }
        self.world.wrong_at_rest()
    }
}

fn terms(nodes: usize, pages: u32, bug: Bug) -> Terms {
    let home = directory::Config {
        pages,
        frame_pages: 1,
        hold: Hold::AtLeast(0),
        ak_timeout_ms: None,
        shm_timeout_ms: None,
        lost_page: LostPage::Sigbus,
    };
    let replica = replica::Config { pages, frame_pages: 1, shm_timeout_ms: None, ahead_max: 0 };
    Terms { nodes, home, replica, bug }
}

/// Explores one page, or two.
fn pages(nodes: usize, pages: u32, budget: Budget, bug: Bug) -> Explored {
    let began = Instant::now();
    let explored = explore(Small::new(nodes, pages, budget, bug), STATES_MAX);
    let states = match &explored {
        Explored::Holds(states) | Explored::Fails { states, .. } => *states,
    };
    println!("{nodes} nodes, {pages} pages, {budget:?}: {states} states, {:?}", began.elapsed());
    explored
}

#[test]
fn probe() {
    let two = Budget { faults: 2, ..NOTHING };
    let t3 = Budget { faults: 3, writes: 2, ..NOTHING };
    holds(pages(3, 1, two, Bug::None));
    holds(pages(2, 1, t3, Bug::None));
    holds(pages(2, 2, NOTHING, Bug::None));
    holds(pages(2, 1, Budget { losses: 1, breaks: 1, ..two }, Bug::None));
    holds(pages(2, 1, Budget { losses: 1, breaks: 1, detaches: 1, ..two }, Bug::None));
    holds(pages(2, 1, Budget { node_kills: 1, ..two }, Bug::None));
    holds(pages(2, 1, Budget { home_kills: 1, ..two }, Bug::None));
    holds(pages(2, 1, Budget { home_kills: 1, node_kills: 1, ..NOTHING }, Bug::None));
    holds(pages(2, 1, Budget { losses: 1, node_kills: 1, ..NOTHING }, Bug::None));
    holds(pages(2, 1, Budget { losses: 1, home_kills: 1, ..NOTHING }, Bug::None));
    holds(pages(3, 1, Budget { losses: 1, breaks: 1, detaches: 1, ..NOTHING }, Bug::None));
}
