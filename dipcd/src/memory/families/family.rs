//! A family: an address space and those that were forked from it, behind one lock.
//!
//! A child runs as soon as the event of its fork has been read. So events are read only under this
//! lock, and whoever changes access does it to every address space of the family under the lock:
//! an ioctl that is refused because an event is pending reads it and tries again, and the child is
//! at the end of the list by then. What was done to the others before, their children inherit.
//!
//! Each family has a thread that waits for events; faults that others read in passing are left
//! to it. Logging, looking through /proc and saying who has ended is the housekeeper's.
#![forbid(unsafe_code)]

use parking_lot::Mutex;
use rustix::event::{EventfdFlags, epoll};
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::thread;
use std::time::{Duration, Instant};

use dipc_wire::client::Mm;
use dipc_wire::memory::Access;
use dipc_wire::trap::Pages;

use crate::memory::families::housekeeper::Errand;
use crate::memory::families::mappings::{Attachment, Mappings};
use crate::memory::families::means::Means;
use crate::memory::families::space::{AddressSpace, Work};
use crate::memory::families::{Ended, Fault, Registry};
use crate::memory::files::Span;
use crate::sys::faults::Trouble;

mod events;

/// What the bell is called among the numbers of address spaces, which are never 0.
const BELL: u64 = 0;
/// How often a program may make its descriptor blocking before it is ended.
const TAMPERING_MAX: u32 = 100;

/// The address spaces of a family, and what is to be done about them.
#[derive(Debug, Default)]
pub(super) struct State {
    /// Their places do not change while something is done; the dead are removed after it.
    pub(super) spaces: Vec<AddressSpace>,
    /// Those whose sentinel page or ranges are new.
    unsettled: Vec<Mm>,
    /// Those that map something else than was said.
    doubtful: Vec<Mm>,
    /// Faults where nothing was known to be mapped.
    unplaced: Vec<Unplaced>,
    /// For the thread.
    faults: Vec<Fault>,
    /// Who is looked at next.
    next_look: usize,
    /// When something may be said about it in the log again.
    next_complaint: Option<Instant>,
}

impl State {
    /// Where an address space is.
    pub(super) fn place_of(&self, mm: Mm) -> Option<usize> {
        self.spaces.iter().position(|space| space.mm == mm && !space.is_gone())
    }
}

/// A fault as it was read.
#[derive(Debug)]
struct Unplaced {
    mm: Mm,
    address: u64,
    access: Access,
    thread: u32,
}

/// A family.
#[derive(Debug)]
pub struct Family {
    registry: Arc<Registry>,
    state: Mutex<State>,
    /// Waits for all descriptors of the family.
    poller: OwnedFd,
    /// Rung when there is something for the thread to do.
    bell: OwnedFd,
    /// Whether the housekeeper is to look for the process of a child.
    pub(super) is_sought: AtomicBool,
}

/// The address space is no more.
#[derive(Debug)]
pub(super) struct Gone;

/// What is being done to an address space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Purpose {
    /// It is named and registered.
    Settle,
    /// Access to its pages is changed.
    Change,
}

/// What has been tried for one address space.
struct Effort {
    purpose: Purpose,
    until: Instant,
}

impl Family {
    /// A family without members yet.
    pub(super) fn new(registry: &Arc<Registry>) -> io::Result<Arc<Family>> {
        let poller = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let bell = rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        epoll::add(&poller, &bell, epoll::EventData::new_u64(BELL), epoll::EventFlags::IN)?;
        let (registry, state) = (registry.clone(), Mutex::default());
        let is_sought = AtomicBool::new(false);
        Ok(Arc::new(Family { registry, state, poller, bell, is_sought }))
    }

    /// Starts the thread that waits for events. It ends with the last address space.
    pub(super) fn start(self: &Arc<Self>) -> io::Result<()> {
        let family = self.clone();
        let name = "family".to_owned();
        let thread = thread::Builder::new().name(name).spawn(move || family.serve())?;
        self.registry.remember(thread);
        Ok(())
    }

    /// Has the thread look.
    pub(super) fn ring(&self) {
        // A full counter rings as well.
        let _ = rustix::io::write(&self.bell, &1u64.to_ne_bytes());
    }

    /// Does something under the lock, and what follows from it.
    pub(super) fn with<T>(self: &Arc<Self>, work: impl FnOnce(&mut State) -> T) -> T {
        let mut state = self.state.lock();
        let done = work(&mut state);
        self.settle(&mut state);
        state.spaces.retain(|space| !space.is_gone());
        if !state.faults.is_empty() || state.spaces.is_empty() {
            self.ring();
        }
        done
    }

    fn serve(self: Arc<Self>) {
        let mut ready = Vec::with_capacity(16);
        let mut faults = Vec::new();
        loop {
            ready.clear();
            let room = rustix::buffer::spare_capacity(&mut ready);
            if epoll::wait(&self.poller, room, None).is_err() {
                // EINTR, or nothing that waiting less would mend.
                thread::sleep(Duration::from_millis(1));
            }
            let is_over = self.with(|state| {
                for event in &ready {
                    self.look_at(state, event.data.u64(), event.flags);
                }
                faults.append(&mut state.faults);
                state.spaces.iter().all(AddressSpace::is_gone) || self.registry.is_stopped()
            });
            for fault in faults.drain(..) {
                self.registry.faults.fault(fault);
            }
            if is_over {
                return;
            }
        }
    }

    fn look_at(self: &Arc<Self>, state: &mut State, number: u64, flags: epoll::EventFlags) {
        if number == BELL {
            let _ = rustix::io::read(&self.bell, &mut [0; 8]);
            return;
        }
        let Some(at) = state.place_of(Mm(number)) else { return };
        if flags.contains(epoll::EventFlags::ERR) {
            let space = &mut state.spaces[at];
            space.tampered += 1;
            if space.tampered > TAMPERING_MAX {
                return self.kill(state, at, "it makes its userfaultfd blocking");
            }
            if let Means::Userfaultfd(_, uffd) = &space.means {
                uffd.make_nonblocking();
            }
        }
        self.read_events(state, at);
    }

    /// Has an address space named and registered.
    pub(super) fn unsettle(&self, state: &mut State, at: usize) {
        state.unsettled.push(state.spaces[at].mm);
    }

    /// Adds an address space, whose trap the keeper has already.
    pub(super) fn add(self: &Arc<Self>, state: &mut State, space: AddressSpace) -> io::Result<()> {
        let mm = space.mm;
        self.registry.families.lock().insert(mm, self.clone());
        state.unsettled.push(mm);
        state.spaces.push(space);
        match state.spaces.last().map(|space| &space.means) {
            Some(Means::Userfaultfd(_, uffd)) => {
                let data = epoll::EventData::new_u64(mm.0);
                Ok(epoll::add(&self.poller, uffd, data, epoll::EventFlags::IN)?)
            }
            _ => Ok(()),
        }
    }

    /// Forgets an address space that is no more.
    pub(super) fn bury(self: &Arc<Self>, state: &mut State, at: usize) {
        let space = &mut state.spaces[at];
        if let Means::Userfaultfd(_, uffd) = &space.means {
            // The keeper has the same open file still, so it must be said.
            let _ = epoll::delete(&self.poller, uffd);
        }
        self.registry.store.release(&space.held());
        self.registry.families.lock().remove(&space.mm);
        space.means = Means::Gone(space.means.trap());
        let (mm, process, mappings) = (space.mm, space.process.take(), space.files());
        space.ranges.clear();
        self.leave_unmapped(state, &mappings);
        self.registry.ends.lock().push_back(Ended { mm, process, mappings });
        self.registry.tell(Errand::SayEnds);
    }

    /// Has nothing more to do with files that nobody in the family maps any more.
    pub(super) fn leave_unmapped(self: &Arc<Self>, state: &State, files: &[Arc<Mappings>]) {
        let is_unmapped =
            |file: &&Arc<Mappings>| !state.spaces.iter().any(|space| space.maps(file));
        for file in files.iter().filter(is_unmapped) {
            file.leave(self);
        }
    }

    /// Has everybody who waits in an address space try again.
    pub(super) fn wake_all(self: &Arc<Self>) {
        self.with(|state| {
            for space in &state.spaces {
                let ranges = space.ranges.iter().map(|range| range.pages());
                for pages in ranges.chain([space.sentinel_page()]) {
                    // Whoever is not there any more does not wait.
                    let _ = space.means.wake(pages);
                }
            }
        });
    }

    /// Whether some of it are served by the mprotect trap.
    pub(super) fn has_helper(&self) -> bool {
        let state = self.state.lock();
        state.spaces.iter().any(|space| matches!(space.means, Means::Helper(_)))
    }

    /// Does something to every place where a part of a file is.
    pub(super) fn each(self: &Arc<Self>, mappings: &Arc<Mappings>, part: Span, work: &Work<'_>) {
        self.with(|state| {
            let mut at = 0;
            // Children join at the end.
            while at < state.spaces.len() {
                let _ = self.insist(state, at, &|space| space.each(mappings, part, work));
                self.settle(state);
                at += 1;
            }
        });
    }

    /// Does something to one address space until it is done or the address space is no more.
    pub(super) fn insist(
        self: &Arc<Self>,
        state: &mut State,
        at: usize,
        work: &dyn Fn(&AddressSpace) -> Result<(), Trouble>,
    ) -> Result<(), Gone> {
        self.insist_on(Purpose::Change, state, at, work)
    }

    fn insist_on(
        self: &Arc<Self>,
        purpose: Purpose,
        state: &mut State,
        at: usize,
        work: &dyn Fn(&AddressSpace) -> Result<(), Trouble>,
    ) -> Result<(), Gone> {
        let effort = Effort { purpose, until: Instant::now() + self.registry.patience.left() };
        while !state.spaces[at].is_gone() {
            match work(&state.spaces[at]) {
                Ok(()) => return Ok(()),
                Err(trouble) => self.mend(state, at, trouble, &effort),
            }
        }
        Err(Gone)
    }

    /// Deals with what kept something from being done: then it can be tried again, or the address
    /// space is gone.
    fn mend(self: &Arc<Self>, state: &mut State, at: usize, trouble: Trouble, effort: &Effort) {
        let is_late = Instant::now() > effort.until;
        match trouble {
            Trouble::Gone => self.bury(state, at),
            Trouble::Pending if !is_late => self.read_or_wait(state, at),
            Trouble::NotThere if !is_late => {
                self.look_again(state, at);
                if state.spaces[at].has_lost_its_sentinel() {
                    return self.kill(state, at, "its sentinel page is gone");
                }
                if effort.purpose == Purpose::Change {
                    self.settle_one(state, at);
                }
                state.spaces[at].means.wait_a_moment();
            }
            // Registering says ENOMEM of an address space that is about to go.
            Trouble::Failed(_) if matches!(state.spaces[at].probe(), Err(Trouble::Gone)) => {
                self.bury(state, at);
            }
            Trouble::Failed(error) => {
                self.kill(state, at, &format!("its pages cannot be controlled: {error}"));
            }
            trouble => {
                self.kill(state, at, &format!("its pages cannot be controlled: {trouble:?}"));
            }
        }
    }

    /// Ends the process of an address space: rather that than let it go on with pages that are
    /// not its node's any more.
    fn kill(self: &Arc<Self>, state: &mut State, at: usize, why: &str) {
        self.identify_patiently(state, at);
        let process = state.spaces[at].process.clone();
        let mut is_over = false;
        if let Some(process) = &process {
            process.kill();
            is_over = process.has_ended_within(self.registry.patience.left());
        }
        let pid = process.map_or(0, |process| process.pid);
        let so = if is_over { "it is killed" } else { "and it cannot be killed" };
        self.registry.tell(Errand::Notice(format!("process {pid}: {why}; {so}")));
        self.bury(state, at);
    }

    /// Where a file is mapped.
    pub(super) fn attachments(&self, mappings: &Arc<Mappings>) -> Vec<Attachment> {
        let state = self.state.lock();
        let of_space = |space: &AddressSpace| {
            let ranges = space.ranges.iter();
            let ranges = ranges.filter(|range| Arc::ptr_eq(&range.mappings, mappings));
            let (mm, trap, process) = (space.mm, space.means.trap(), space.process.clone());
            let attachment = |range: &super::space::Range| Attachment {
                mm,
                trap,
                process: process.clone(),
                pages: range.pages(),
                span: range.span,
            };
            ranges.map(attachment).collect::<Vec<_>>()
        };
        state.spaces.iter().flat_map(of_space).collect()
    }
}

fn page_at(address: u64) -> Pages {
    Pages { address, bytes: rustix::param::page_size() as u64 }
}
