//! Every interleaving of small segments: a home and one or two other nodes, one page or two, a few
//! faults and writes, and failures. In every state a page has one writer or many readers, and every
//! copy that a program can read is the latest write; at rest nobody waits. A dipcd that is killed
//! is killed between any two things it does. The number of states moves only when the protocol
//! does.
//! With a bug planted each of this goes wrong.
#![forbid(unsafe_code)]

#[path = "model/explore.rs"]
mod explore;
mod segment;

use std::env;
use std::time::Instant;

use dipc_core::directory::{self, LostPage};
use dipc_core::hold::Hold;
use dipc_core::read_ahead::AHEAD_MAX;
use dipc_core::replica;
use explore::{Explored, explore, fails, holds};
use segment::shell::dies_of;
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
    home_losses: u8,
    detaches: u8,
    attaches: u8,
}

const NOTHING: Budget = Budget {
    faults: 1,
    writes: 1,
    breaks: 0,
    node_kills: 0,
    home_kills: 0,
    losses: 0,
    home_losses: 0,
    detaches: 0,
    attaches: 0,
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
    fn new(terms: Terms, budget: Budget) -> Small {
        let (faults, writes) = (vec![budget.faults; terms.nodes], vec![budget.writes; terms.nodes]);
        Small { world: World::new(terms), faults, writes, budget }
    }

    fn failures(&self) -> Vec<Move> {
        let budget = &self.budget;
        let mut moves = self.world.failures();
        moves.retain(|step| match step {
            Move::Break(_) => budget.breaks > 0,
            Move::Kill(0) => budget.home_kills > 0,
            Move::Kill(_) => budget.node_kills > 0,
            Move::EndLease(_) | Move::Lose(_) => budget.losses > 0,
            Move::LoseHome(_) => budget.home_losses > 0,
            Move::Detach(_) => budget.detaches > 0,
            Move::Attach(_) => budget.attaches > 0,
            _ => false,
        });
        moves
    }

    /// Where a dipcd may be killed in the middle of this.
    fn cuts(&self, what: Move) -> usize {
        let kills = match dies_of(what) {
            Some(0) => self.budget.home_kills,
            Some(_) => self.budget.node_kills,
            None => 0,
        };
        if kills == 0 {
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
        moves.extend(self.world.flushes());
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
            Move::LoseHome(_) => self.budget.home_losses -= 1,
            Move::Detach(_) => self.budget.detaches -= 1,
            Move::Attach(_) => self.budget.attaches -= 1,
            _ => {}
        }
        let Some(after) = step.killed_after else { return self.world.happen(step.what) };
        match dies_of(step.what) {
            Some(0) => self.budget.home_kills -= 1,
            _ => self.budget.node_kills -= 1,
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
    let replica = replica::Config {
        pages,
        frame_pages: 1,
        shm_timeout_ms: None,
        ahead_max: 0,
        lost_page: home.lost_page,
    };
    Terms { nodes, home, replica, bug }
}

/// Explores a segment.
fn segment(nodes: usize, pages: u32, budget: Budget, bug: Bug) -> Explored {
    explore(Small::new(terms(nodes, pages, bug), budget), STATES_MAX)
}

/// What there is, what may happen, and how many states that has.
type Row = (&'static str, usize, u32, Budget, usize);

#[track_caller]
fn hold_all<const N: usize>(rows: [Row; N]) {
    let found = rows.map(|(name, nodes, pages, budget, _)| {
        let began = Instant::now();
        let states = holds(segment(nodes, pages, budget, Bug::None));
        println!("{name}: {states} states in {:.1} s", began.elapsed().as_secs_f32());
        (name, states)
    });
    assert_eq!(found, rows.map(|(name, _, _, _, states)| (name, states)));
}

/// All that can fail in a world of two nodes.
const ALL: Budget = Budget {
    breaks: 1,
    node_kills: 1,
    home_kills: 1,
    losses: 1,
    detaches: 1,
    attaches: 1,
    ..NOTHING
};

#[test]
fn one_writer_or_many_readers() {
    let two = Budget { faults: 2, ..NOTHING };
    hold_all([
        ("nothing fails", 3, 1, NOTHING, 4382),
        ("two pages", 2, 2, two, 31_888),
        ("two pages, three nodes", 3, 2, NOTHING, 33_923),
        ("three faults", 2, 1, Budget { faults: 3, writes: 2, ..NOTHING }, 11_794),
        ("a replica killed", 2, 1, Budget { node_kills: 1, ..two }, 8963),
        ("home killed", 2, 1, Budget { home_kills: 1, ..two }, 10_015),
        (
            "home killed twice, a node lost",
            2,
            1,
            Budget { home_kills: 2, losses: 1, ..NOTHING },
            9312,
        ),
        ("killed twice, lost", 2, 1, Budget { node_kills: 2, losses: 1, ..NOTHING }, 8488),
        (
            "cut, lost to each other",
            2,
            1,
            Budget { breaks: 1, losses: 1, home_losses: 1, ..two },
            32_318,
        ),
        ("cut, lost, left", 2, 1, Budget { breaks: 1, losses: 1, detaches: 1, ..two }, 68_610),
    ]);
}

#[test]
fn one_writer_or_many_readers_on_two_nodes_whatever_fails() {
    hold_all([("all", 2, 1, ALL, 470_095)]);
}

#[test]
fn one_writer_or_many_readers_on_three_nodes_cut_left_and_lost() {
    let budget = Budget { breaks: 1, losses: 1, detaches: 1, ..NOTHING };
    hold_all([("cut, left, lost", 3, 1, budget, 1_087_960)]);
}

/// With `lost_page = stale` a page that was lost is what home had last.
#[test]
fn a_lost_page_may_be_what_home_had_last() {
    let budget = Budget { faults: 2, breaks: 1, home_kills: 1, losses: 1, ..NOTHING };
    let mut terms = terms(2, 1, Bug::None);
    terms.home.lost_page = LostPage::Stale;
    terms.replica.lost_page = LostPage::Stale;
    let states = holds(explore(Small::new(terms, budget), STATES_MAX));
    assert_eq!(states, 153_009);
    // The node's dipcd dies as well: what it owned counts only when home has said so.
    let budget = Budget { node_kills: 1, home_kills: 0, ..budget };
    let states = holds(explore(Small::new(terms, budget), STATES_MAX));
    assert_eq!(states, 139_533);
}

/// Three pages, so that the first two faults of the node bring the third page, which is a trigger.
fn read_ahead(home_faults: u8, budget: Budget) -> usize {
    let mut terms = terms(2, 3, Bug::None);
    terms.replica.ahead_max = AHEAD_MAX;
    let mut small = Small::new(terms, budget);
    small.faults[0] = home_faults;
    holds(explore(small, STATES_MAX))
}

#[test]
fn what_is_read_ahead_is_the_latest_write() {
    assert_eq!(read_ahead(1, Budget { faults: 3, ..NOTHING }), 422_064);
}

/// The same with more at once: minutes, so only in the long mode.
#[test]
fn one_writer_or_many_readers_in_larger_worlds() {
    if env::var_os("DIPC_LONG").is_none() {
        println!("skip: minutes, wants DIPC_LONG=1");
        return;
    }
    let two = Budget { faults: 2, ..NOTHING };
    assert_eq!(read_ahead(2, Budget { breaks: 1, ..two }), 590_258);
    let lost = Budget { breaks: 1, home_kills: 1, losses: 1, ..NOTHING };
    hold_all([
        ("nothing fails, three nodes", 3, 1, two, 347_778),
        ("cut twice, lost", 2, 1, Budget { breaks: 2, losses: 1, detaches: 1, ..two }, 220_873),
        (
            "a replica killed, three nodes",
            3,
            1,
            Budget { node_kills: 1, breaks: 1, ..NOTHING },
            300_018,
        ),
        ("home killed, a node lost, three nodes", 3, 1, lost, 2_334_091),
        ("all, two faults", 2, 1, Budget { attaches: 0, faults: 2, ..ALL }, 2_147_775),
    ]);
}

/// What a planted bug does to a world with this budget.
fn planted(bug: Bug, nodes: usize, budget: Budget, signs: &[&str]) {
    let what = fails(segment(nodes, 1, budget, bug));
    println!("{bug:?}: {what}");
    assert!(signs.iter().any(|sign| what.starts_with(sign)), "{bug:?} shows as: {what}");
}

#[test]
fn planted_bugs_are_found() {
    let cut = Budget { breaks: 1, ..NOTHING };
    let home_killed = Budget { home_kills: 1, ..NOTHING };
    let (lost, twice) = ("LOST WRITE", "WRITER BESIDE READER");
    planted(Bug::GrantsWithoutNumber, 2, cut, &["STALE READ"]);
    planted(Bug::FreesBeforeAck, 2, cut, &[lost]);
    planted(Bug::PunchesWithoutAside, 2, cut, &[lost]);
    let two = Budget { faults: 2, ..cut };
    planted(Bug::AcceptsOldLink, 2, two, &["home breaks the link"]);
    planted(Bug::ServesBeforeReports, 2, home_killed, &["PageNo(0) is lost, and no node was"]);
    planted(Bug::TakesOldCopies, 3, home_killed, &[twice, "STALE READ"]);
    let killed_and_lost = Budget { node_kills: 1, losses: 1, ..NOTHING };
    planted(Bug::LeaseDiesWithDipcd, 2, killed_and_lost, &[twice]);
    planted(Bug::ForgetsFaults, 3, NOTHING, &["AT REST"]);
    planted(Bug::GrantsBeforeInvalidated, 3, NOTHING, &[twice]);
    planted(Bug::AcksAtLeisure, 3, NOTHING, &["AT REST, and a program"]);
}
