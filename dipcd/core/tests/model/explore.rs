//! Breadth first through every interleaving of a small world. A world is plain data: what may
//! happen in it is a list of moves, and each state is checked as it is found.
//!
//! Seen states are told apart by 64 bits of hash: among a million states two are taken for one
//! with a probability of 3 in 100 million. The way to a bad state is kept as parents.
#![forbid(unsafe_code)]

use std::collections::{HashSet, VecDeque};
use std::fmt::Debug;
use std::hash::{Hash, Hasher};

/// Something to explore.
pub trait World: Clone + Hash {
    /// One thing that happens.
    type Move: Clone + Debug;
    /// Everything that may happen next.
    fn moves(&self) -> Vec<Self::Move>;
    /// Lets it happen.
    fn apply(&mut self, step: &Self::Move);
    /// What is wrong with this state, if anything is.
    fn wrong(&self) -> Option<String>;
}

/// How an exploration ended.
#[derive(Debug, PartialEq, Eq)]
pub enum Explored {
    /// Every state is right; there are so many.
    Holds(usize),
    /// One is wrong: what, after how many states, and the shortest way to it.
    Fails { what: String, states: usize, way: Vec<String> },
}

/// Explores from `start`; `states_max` is the bound of the loop, and passing it a failure.
pub fn explore<W: World>(start: W, states_max: usize) -> Explored {
    let mut seen = HashSet::from([fingerprint(&start)]);
    let mut parents: Vec<(usize, Option<W::Move>)> = vec![(0, None)];
    let mut queue = VecDeque::from([(0, start)]);
    while let Some((at, world)) = queue.pop_front() {
        if let Some(what) = world.wrong() {
            return Explored::Fails { what, states: seen.len(), way: way(&parents, at) };
        }
        for step in world.moves() {
            let mut next = world.clone();
            next.apply(&step);
            if seen.insert(fingerprint(&next)) {
                parents.push((at, Some(step)));
                queue.push_back((parents.len() - 1, next));
            }
        }
        assert!(seen.len() <= states_max, "more than {states_max} states");
    }
    Explored::Holds(seen.len())
}

fn way<M: Debug>(parents: &[(usize, Option<M>)], mut at: usize) -> Vec<String> {
    let mut way = Vec::new();
    while let (parent, Some(step)) = &parents[at] {
        way.push(format!("{step:?}"));
        at = *parent;
    }
    way.reverse();
    way
}

fn fingerprint(world: &impl Hash) -> u64 {
    let mut hasher = Folded(FOLD);
    world.hash(&mut hasher);
    hasher.finish()
}

/// A multiplication to 128 bits for each number, its halves folded together, as wyhash has it: good
/// enough to tell states apart, and half of the time of a hash that withstands an enemy.
struct Folded(u64);

const FOLD: u64 = 0x9e37_79b9_7f4a_7c15;

impl Hasher for Folded {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.write_u64(u64::from_le_bytes(word));
        }
    }

    fn write_u64(&mut self, number: u64) {
        let product = u128::from(self.0 ^ number) * u128::from(FOLD ^ number.rotate_left(32));
        self.0 = (product as u64 ^ (product >> 64) as u64).wrapping_add(FOLD);
    }

    fn write_u8(&mut self, number: u8) {
        self.write_u64(u64::from(number));
    }

    fn write_u32(&mut self, number: u32) {
        self.write_u64(u64::from(number));
    }

    fn write_usize(&mut self, number: usize) {
        self.write_u64(number as u64);
    }
}

/// The number of states, or the test fails with the way to the bad one.
#[track_caller]
pub fn holds(explored: Explored) -> usize {
    match explored {
        Explored::Holds(states) => states,
        Explored::Fails { what, states, way } => {
            panic!("{what}, after {states} states:\n  {}", way.join("\n  "))
        }
    }
}

/// What went wrong, or the test fails because nothing did.
#[track_caller]
pub fn fails(explored: Explored) -> String {
    match explored {
        Explored::Holds(states) => panic!("nothing is wrong in {states} states"),
        Explored::Fails { what, .. } => what,
    }
}
