//! One thread that does for all families what must not keep a fault waiting: it logs, says who has
//! ended, looks for the processes of forked children, and once a second looks whether everybody is
//! still there, for exec(2) is told by nobody.
#![forbid(unsafe_code)]

use crossbeam_channel::{Receiver, RecvTimeoutError};
use std::io;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::thread;
use std::time::{Duration, Instant};

use dipc_wire::client::Mm;

use crate::memory::families::Registry;
use crate::memory::families::family::Family;
use crate::memory::families::space::{Process, find_anywhere, find_child};

/// How often everybody is looked at.
const ROUND: Duration = Duration::from_secs(1);

/// How long a fork may go on after its event has been read, until its child is seen in /proc.
const BIRTH: Duration = Duration::from_millis(1);

/// How often, a millisecond apart, the memory of an ended process is looked at until it is gone.
const LOOKS_AFTER_ENDS: u32 = 50;

/// Something to be done.
#[derive(Debug)]
pub(super) enum Errand {
    /// Say who has ended.
    SayEnds,
    /// Look for the process of a child that was forked just now: when it has ended, nobody can say
    /// any more which it was.
    Find(Weak<Family>),
    /// Write a line in the log.
    Notice(String),
    /// End.
    Stop,
}

/// Starts the thread. It ends with the registry.
pub(super) fn start(registry: &Arc<Registry>, errands: Receiver<Errand>) -> io::Result<()> {
    let (name, weak) = ("housekeeper".to_owned(), Arc::downgrade(registry));
    let thread = thread::Builder::new().name(name).spawn(move || keep_house(&weak, &errands))?;
    registry.remember(thread);
    Ok(())
}

fn keep_house(registry: &Weak<Registry>, errands: &Receiver<Errand>) {
    let mut next_round = Instant::now() + ROUND;
    loop {
        let errand = errands.recv_deadline(next_round);
        let Some(registry) = registry.upgrade() else { return };
        match errand {
            Ok(Errand::SayEnds) => registry.say_ends(),
            Ok(Errand::Find(family)) => {
                thread::sleep(BIRTH);
                if let Some(family) = family.upgrade() {
                    family.is_sought.store(false, Ordering::Release);
                    find_by(&family, find_child);
                }
            }
            Ok(Errand::Notice(text)) => tracing::warn!(op = "memory", "{text}"),
            Err(RecvTimeoutError::Timeout) => {
                make_round(&registry);
                next_round = Instant::now() + ROUND;
            }
            Ok(Errand::Stop) | Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}

fn make_round(registry: &Registry) {
    for family in registry.all_families() {
        look_at_all(&family);
        find_processes(&family);
    }
}

/// Looks until nothing is left of processes that have ended. Whoever reads about one in /proc keeps
/// its memory for a moment. One that shares its memory with a living one (vfork(2)) is looked at in
/// vain, until the other is found.
pub(super) fn look_for_ends(family: &Arc<Family>) {
    look_at_all(family);
    let has_ended = |process: &Process| process.has_ended_within(Duration::ZERO);
    for _ in 0..LOOKS_AFTER_ENDS {
        let left = family.with(|state| {
            state.spaces.iter().any(|space| space.process.as_ref().is_some_and(has_ended))
        });
        if !left {
            return;
        }
        thread::sleep(BIRTH);
        look_at_all(family);
    }
}

/// Looks whether everybody of a family is still there.
pub(super) fn look_at_all(family: &Arc<Family>) {
    family.with(|state| {
        for at in 0..state.spaces.len() {
            family.look_alive(state, at);
        }
    });
}

/// Looks for the processes of forked children, without the family's lock.
pub(super) fn find_processes(family: &Arc<Family>) {
    find_by(family, find_anywhere);
}

/// The same in one way: to look at every process of the machine at each fork is too much.
fn find_by(family: &Arc<Family>, look: impl Fn(Mm, u64, Option<u32>) -> Option<Process>) {
    let unknown = family.with(|state| {
        // One that has ended may leave its memory to another, by vfork(2) say.
        let is_known = |process: &Process| !process.has_ended_within(Duration::ZERO);
        let unknown =
            state.spaces.iter().filter(|space| !space.process.as_ref().is_some_and(is_known));
        unknown.map(|space| (space.mm, space.sentinel, space.parent)).collect::<Vec<_>>()
    });
    for (mm, sentinel, parent) in unknown {
        let Some(process) = look(mm, sentinel, parent) else { continue };
        family.with(|state| {
            if let Some(at) = state.place_of(mm) {
                state.spaces[at].process = Some(process);
            }
        });
    }
}
