//! When the machines of segments, and leases, want to hear of the time: one thread for all of them.
//!
//! Who sets a time that lies far ahead wakes nobody; the ticker's [`Timers::nudge`] makes the
//! thread look in time. So a fault, whose bounds are seconds, costs no wake-up here.
#![forbid(unsafe_code)]

use parking_lot::{Condvar, Mutex};
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::time::Duration;

use dipc_wire::ids::{NodeId, ObjectId};
use dipc_wire::memory::Replica;

use crate::clock::now_ms;

/// A time so near is not left to the ticker: more than a heartbeat.
const NEAR_MS: u64 = 5_000;

/// Who wants to hear of the time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Machine {
    /// A file's machine; that of [`Replica::HOME`] is the directory.
    Page(ObjectId, Replica),
    /// The lease of a home.
    Lease(NodeId),
}

/// What a machine is to be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Due {
    /// Its time has come.
    Tick,
    /// It has stopped in the middle of something.
    Continue,
}

#[derive(Default)]
struct State {
    by_time: BTreeSet<(u64, Machine)>,
    by_machine: HashMap<Machine, u64>,
    stopped: VecDeque<Machine>,
    /// When the thread looks again by itself; 0 while it does not wait.
    looks_ms: u64,
    ended: bool,
}

/// The times that are set.
#[derive(Default)]
pub struct Timers {
    state: Mutex<State>,
    changed: Condvar,
}

impl Timers {
    /// A machine wants to hear at this time, and not at the one set before.
    pub fn set(&self, machine: Machine, at_ms: u64) {
        let mut state = self.state.lock();
        if let Some(before) = state.by_machine.insert(machine, at_ms) {
            state.by_time.remove(&(before, machine));
        }
        state.by_time.insert((at_ms, machine));
        if at_ms < state.looks_ms && at_ms < now_ms() + NEAR_MS {
            self.changed.notify_one();
        }
    }

    /// A machine has more to do.
    pub fn go_on(&self, machine: Machine) {
        self.state.lock().stopped.push_back(machine);
        self.changed.notify_one();
    }

    /// A machine is no more.
    pub fn forget(&self, machine: Machine) {
        let mut state = self.state.lock();
        if let Some(before) = state.by_machine.remove(&machine) {
            state.by_time.remove(&(before, machine));
        }
    }

    /// Now and then, at least twice within what counts as near.
    pub fn nudge(&self) {
        let state = self.state.lock();
        if state.by_time.first().is_some_and(|(at_ms, _)| *at_ms < state.looks_ms) {
            self.changed.notify_one();
        }
    }

    /// The end: [`Timers::next`] says `None`.
    pub fn end(&self) {
        self.state.lock().ended = true;
        self.changed.notify_all();
    }

    /// Waits for the next machine that must hear something; `None` at the end.
    pub fn next(&self) -> Option<(Machine, Due)> {
        let mut state = self.state.lock();
        while !state.ended {
            let first = state.by_time.first().copied();
            let now = now_ms();
            if let Some((at_ms, machine)) = first
                && at_ms <= now
            {
                state.by_time.pop_first();
                state.by_machine.remove(&machine);
                return Some((machine, Due::Tick));
            }
            // What has stopped has time: a long walk must not keep a lease from ending.
            if let Some(machine) = state.stopped.pop_front() {
                return Some((machine, Due::Continue));
            }
            state.looks_ms = first.map_or(u64::MAX, |(at_ms, _)| at_ms);
            match first {
                None => self.changed.wait(&mut state),
                Some((at_ms, _)) => {
                    self.changed.wait_for(&mut state, Duration::from_millis(at_ms - now));
                }
            }
            state.looks_ms = 0;
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine(replica: u8) -> Machine {
        Machine::Page(ObjectId::from_number(1), Replica(replica))
    }

    #[test]
    fn machines_hear_in_the_order_of_their_times_and_of_the_last_one_only() {
        let timers = Timers::default();
        timers.set(machine(1), 5);
        timers.set(machine(2), 3);
        timers.set(machine(1), 1);
        timers.set(machine(3), 2);
        timers.forget(machine(3));
        timers.go_on(machine(4));
        let next = || timers.next().unwrap();
        assert_eq!(next(), (machine(1), Due::Tick));
        assert_eq!(next(), (machine(2), Due::Tick));
        assert_eq!(next(), (machine(4), Due::Continue));
        timers.end();
        assert_eq!(timers.next(), None);
    }

    #[test]
    fn the_thread_is_woken_for_what_is_near() {
        let timers = Timers::default();
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| timers.next());
            timers.set(machine(1), now_ms() + 1);
            assert_eq!(waiting.join().unwrap(), Some((machine(1), Due::Tick)));
            let waiting = scope.spawn(|| timers.next());
            timers.end();
            assert_eq!(waiting.join().unwrap(), None);
        });
    }
}
