//! Many nodes, many pages, time, read-ahead and every failure, drawn from a seed: what the model of
//! pages is too small for.
//!
//! The invariants are those of the model, checked after each step; at the end everything heals, and
//! nobody may be left waiting. A failing seed is named; `DIPC_SEED` runs one alone, `DIPC_LONG=1`
//! twenty times as many.
#![forbid(unsafe_code)]

mod dice;
mod segment;

use std::env;

use dice::Dice;
use dipc_core::directory::{self, LostPage};
use dipc_core::hold::Hold;
use dipc_core::read_ahead::AHEAD_MAX;
use dipc_core::replica;
use dipc_wire::limits::NODES_MAX;
use dipc_wire::memory::{Access, PageNo};
use segment::shell::dies_of;
use segment::{Bug, Move, Terms, World};

const SEEDS: u64 = 2000;
const SEEDS_LONG: u64 = 20 * SEEDS;
const STEPS: usize = 2000;
/// Bound of the loop that lets everything come to rest.
const REST_STEPS_MAX: usize = 1_000_000;

/// What may be drawn from one seed: how big the segment is, and how much it suffers.
struct Climate {
    failure_one_in: usize,
    program_one_in: usize,
    write_one_in: usize,
    jump_one_in: usize,
    tick_one_in: usize,
    /// How long a dipcd stays dead and a link down: so many draws.
    return_one_in: usize,
}

/// What came of one seed.
#[derive(Clone, Copy, Debug, Default)]
struct Outcome {
    writes: u32,
    faults: u32,
    failures: u32,
    read_ahead: u32,
}

fn simulate(seed: u64, bug: Bug) -> Result<Outcome, String> {
    let mut dice = Dice(seed);
    let most = if dice.one_in(20) { usize::from(NODES_MAX) } else { 5 };
    let nodes = 2 + dice.below(most - 1);
    let climate = Climate {
        failure_one_in: if dice.one_in(4) { usize::MAX } else { 20 + dice.below(300) },
        program_one_in: 2 + dice.below(6),
        write_one_in: 1 + dice.below(6),
        jump_one_in: 1 + dice.below(12),
        tick_one_in: 1 + dice.below(8),
        return_one_in: 1 + dice.below(100),
    };
    let mut world = World::new(terms(&mut dice, nodes, bug));
    let mut cursors = vec![0; nodes];
    let mut outcome = Outcome::default();
    for at in 0..STEPS {
        let chosen = draw(&mut dice, &climate, &mut world, &mut cursors);
        let Some(chosen) = chosen else { continue };
        let is_failure = !matches!(chosen, Move::Fault(..) | Move::Write(..))
            && world.failures().contains(&chosen);
        outcome.failures += u32::from(is_failure);
        outcome.writes += u32::from(matches!(chosen, Move::Write(..)));
        outcome.faults += u32::from(matches!(chosen, Move::Fault(..)));
        match dies_of(chosen) {
            Some(_) if dice.one_in(climate.failure_one_in.saturating_mul(10)) => {
                world.happen_cut(chosen, dice.below(6));
            }
            _ => world.happen(chosen),
        }
        if let Some(wrong) = world.wrong() {
            return Err(format!("seed {seed}, step {at}, {chosen:?}: {wrong}"));
        }
    }
    outcome.read_ahead = world.read_ahead;
    rest(&mut dice, &mut world).map_err(|wrong| format!("seed {seed}, at the end: {wrong}"))?;
    Ok(outcome)
}

fn terms(dice: &mut Dice, nodes: usize, bug: Bug) -> Terms {
    let pages = 1 + u32::try_from(dice.below(if nodes > 5 { 20 } else { 60 })).expect("few");
    let frame_pages = 1 + dice.below(16);
    let shm_timeout_ms = dice.one_in(3).then_some(2000);
    let hold = match dice.below(4) {
        0 => Hold::AtLeast(0),
        1 => Hold::AtLeast(20),
        _ => Hold::Adaptive,
    };
    let ak_timeout_ms = dice.one_in(2).then_some(1000);
    let lost_page = if dice.one_in(3) { LostPage::Stale } else { LostPage::Sigbus };
    let ahead_max = if dice.one_in(3) { 0 } else { AHEAD_MAX };
    Terms {
        nodes,
        home: directory::Config {
            pages,
            frame_pages,
            hold,
            ak_timeout_ms,
            shm_timeout_ms,
            lost_page,
        },
        replica: replica::Config { pages, frame_pages, shm_timeout_ms, ahead_max, lost_page },
        bug,
    }
}

fn draw(
    dice: &mut Dice,
    climate: &Climate,
    world: &mut World,
    cursors: &mut [u32],
) -> Option<Move> {
    world.now_ms += dice.next() % 3;
    if dice.one_in(200) {
        world.now_ms += dice.next() % 1500;
    }
    if dice.one_in(climate.failure_one_in) {
        let failures = world.failures();
        return (!failures.is_empty()).then(|| failures[dice.below(failures.len())]);
    }
    let ticks = world.ticks();
    if !ticks.is_empty() && dice.one_in(climate.tick_one_in) {
        return Some(ticks[dice.below(ticks.len())]);
    }
    let mut progress = world.progress();
    if !dice.one_in(climate.return_one_in) {
        progress.retain(|step| !matches!(step, Move::Start(_) | Move::Link(_)));
    }
    if progress.is_empty() || dice.one_in(climate.program_one_in) {
        let n = dice.below(world.terms.nodes);
        return program(dice, climate, world, n, &mut cursors[n]);
    }
    Some(progress[dice.below(progress.len())])
}

/// What the program of a node does next: it mostly goes from page to page.
fn program(
    dice: &mut Dice,
    climate: &Climate,
    world: &World,
    n: usize,
    cursor: &mut u32,
) -> Option<Move> {
    let pages = world.terms.home.pages;
    if n > 0 && !world.node(n).attached {
        return (world.runs(n) && dice.one_in(4)).then_some(Move::Attach(n));
    }
    let access = if dice.one_in(climate.write_one_in) { Access::Write } else { Access::Read };
    let page = PageNo(*cursor);
    if world.waits(n).contains_key(&page) && !dice.one_in(10) {
        return None;
    }
    let jumps = dice.one_in(climate.jump_one_in);
    let next = if jumps { dice.below(pages as usize) as u32 } else { (*cursor + 1) % pages };
    match (world.files(n).allows(page, access), access) {
        (false, _) => Some(Move::Fault(n, page, access)),
        (true, Access::Write) => {
            *cursor = next;
            Some(Move::Write(n, page))
        }
        (true, Access::Read) => {
            *cursor = next;
            None
        }
    }
}

/// No more failures, and as much time as it takes.
fn rest(dice: &mut Dice, world: &mut World) -> Result<(), String> {
    for _ in 0..REST_STEPS_MAX {
        let mut progress = world.progress();
        progress.extend(world.ticks());
        if progress.is_empty() {
            let Some(wrong) = world.wrong_at_rest() else { return Ok(()) };
            // Perhaps a clock has to be heard.
            let Some(at_ms) = world.next_tick_ms() else { return Err(wrong) };
            world.now_ms = world.now_ms.max(at_ms);
            continue;
        }
        world.happen(progress[dice.below(progress.len())]);
        if let Some(wrong) = world.wrong() {
            return Err(wrong);
        }
    }
    Err("it does not come to rest".into())
}

#[test]
fn pages_are_coherent_from_many_seeds() {
    if let Ok(seed) = env::var("DIPC_SEED") {
        let seed = seed.parse().expect("DIPC_SEED is a number");
        let outcome = simulate(seed, Bug::None).expect("this seed");
        println!("{outcome:?}");
        return;
    }
    let seeds = if env::var_os("DIPC_LONG").is_some() { SEEDS_LONG } else { SEEDS };
    let mut all = Outcome::default();
    for seed in 0..seeds {
        let one = simulate(seed, Bug::None).unwrap_or_else(|wrong| panic!("{wrong}"));
        all.writes += one.writes;
        all.faults += one.faults;
        all.failures += one.failures;
        all.read_ahead += one.read_ahead;
    }
    println!("{seeds} seeds of {STEPS} steps each: {all:?}");
    let enough = |count: u32, each: u64| u64::from(count) > each * seeds;
    assert!(enough(all.writes, 20) && enough(all.faults, 50), "so little was used: {all:?}");
    assert!(enough(all.failures, 5) && enough(all.read_ahead, 5), "so little was tried: {all:?}");
}

#[test]
fn planted_bugs_are_found() {
    let bugs = [
        Bug::GrantsWithoutNumber,
        Bug::FreesBeforeAck,
        Bug::PunchesWithoutAside,
        Bug::AcceptsOldLink,
        Bug::ServesBeforeReports,
        Bug::TakesOldCopies,
        Bug::LeaseDiesWithDipcd,
        Bug::ForgetsFaults,
        Bug::GrantsBeforeInvalidated,
    ];
    for bug in bugs {
        let found = (0..SEEDS).find_map(|seed| simulate(seed, bug).err());
        println!("{bug:?}: {}", found.as_deref().unwrap_or("not found"));
        assert!(found.is_some(), "{bug:?} is not found");
    }
}
