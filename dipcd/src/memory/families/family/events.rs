//! What a family's userfaultfds have to say, and what is done about it under the lock: faults are
//! noted, children born and named, mappings moved or looked for again.
#![forbid(unsafe_code)]

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use dipc_wire::memory::Access;
use dipc_wire::trap::Pages;

use super::{Family, Purpose, State, Unplaced, page_at};
use crate::memory::families::Fault;
use crate::memory::families::housekeeper::Errand;
use crate::memory::families::means::Means;
use crate::memory::families::space::{AddressSpace, Process, Range, find_anywhere};
use crate::memory::process_maps::{Maps, Permission};
use crate::sys::faults::{Event, Trouble, Userfaultfd};

/// At each birth so many relatives are looked at, so that the dead do not outnumber the living.
const LOOKS_A_BIRTH: usize = 2;
/// How often the same is said of a family at most.
const BETWEEN_COMPLAINTS: Duration = Duration::from_secs(10);

impl Family {
    /// Reads what a userfaultfd has to say: how many events.
    pub(in super::super) fn read_events(self: &Arc<Self>, state: &mut State, at: usize) -> usize {
        let Means::Userfaultfd(_, uffd) = &state.spaces[at].means else { return 0 };
        let events = match uffd.read() {
            Ok(events) => events,
            Err(error) => {
                self.complain(state, &format!("page faults cannot be read: {error}"));
                return 0;
            }
        };
        let count = events.len();
        for event in events {
            match event {
                Event::Fault { address, stores, thread } => {
                    let access = if stores { Access::Write } else { Access::Read };
                    let mm = state.spaces[at].mm;
                    self.note_fault(state, at, Unplaced { mm, address, access, thread });
                }
                Event::Fork(fd) => self.bear(state, at, Arc::new(fd)),
                Event::Moved { bytes: 0, .. } => state.doubtful.push(state.spaces[at].mm),
                Event::Moved { from, to, bytes } => {
                    let space = &mut state.spaces[at];
                    space.moved(from, to, bytes);
                    // Whoever waits where it was finds out by himself that it is gone.
                    let _ = space.means.wake(Pages { address: from, bytes });
                }
                Event::Other => {}
            }
        }
        count
    }

    /// No descriptor may be left for a child, say. The dead have some.
    fn complain(self: &Arc<Self>, state: &mut State, why: &str) {
        for at in 0..state.spaces.len() {
            self.look_alive(state, at);
        }
        let now = Instant::now();
        if state.next_complaint.is_none_or(|next| next < now) {
            state.next_complaint = Some(now + BETWEEN_COMPLAINTS);
            self.registry.tell(Errand::Notice(why.to_owned()));
        }
        // The event is there still and would be read at once.
        thread::sleep(Duration::from_millis(1));
    }

    /// The same, or a moment for the thread in the kernel whose event was read before.
    pub(super) fn read_or_wait(self: &Arc<Self>, state: &mut State, at: usize) {
        if self.read_events(state, at) == 0 {
            state.spaces[at].means.wait_a_moment();
        }
    }

    fn note_fault(self: &Arc<Self>, state: &mut State, at: usize, fault: Unplaced) {
        let space = &state.spaces[at];
        if fault.address == space.sentinel {
            return state.unsettled.push(fault.mm);
        }
        let Some((mappings, offset)) = space.locate(fault.address) else {
            state.doubtful.push(fault.mm);
            return state.unplaced.push(fault);
        };
        let Unplaced { mm, access, thread, .. } = fault;
        let fault = Fault { mappings, offset, access, mm, thread };
        // A thread in a system call that has a signal pending faults again and again.
        if !state.faults.iter().any(|known| known.is_same(&fault)) {
            state.faults.push(fault);
        }
    }

    /// A child has been forked. From here on it runs.
    fn bear(self: &Arc<Self>, state: &mut State, parent: usize, fd: Arc<OwnedFd>) {
        let parent = &state.spaces[parent];
        let uffd = Userfaultfd::adopt(fd.clone());
        let means = Means::Userfaultfd(parent.means.trap(), uffd);
        let child = AddressSpace {
            parent: parent.process.as_ref().map(|process| process.pid),
            ranges: parent.ranges.clone(),
            ..AddressSpace::new(self.registry.new_mm(), means, parent.sentinel)
        };
        // Before anything else: this is the only descriptor there is.
        self.registry.store.hold(&child.held(), &fd);
        let mm = child.mm;
        if let Err(error) = self.add(state, child)
            && let Some(at) = state.place_of(mm)
        {
            return self.kill(state, at, &format!("its faults cannot be waited for: {error}"));
        }
        if !self.is_sought.swap(true, Ordering::AcqRel) {
            self.registry.tell(Errand::Find(Arc::downgrade(self)));
        }
        for _ in 0..LOOKS_A_BIRTH {
            state.next_look = (state.next_look + 1) % state.spaces.len();
            self.look_alive(state, state.next_look);
        }
    }

    /// Whether an address space is still there. A newborn is: its trap was read just now.
    pub(in super::super) fn look_alive(self: &Arc<Self>, state: &mut State, at: usize) {
        let space = &state.spaces[at];
        if !space.is_gone() && matches!(space.probe(), Err(Trouble::Gone)) {
            self.bury(state, at);
        }
    }

    /// Looks for what is in doubt, names whoever is new and has him report what his files want,
    /// until nothing of that is left.
    pub(super) fn settle(self: &Arc<Self>, state: &mut State) {
        loop {
            if let Some(mm) = state.doubtful.pop() {
                state.doubtful.retain(|other| *other != mm);
                if let Some(at) = state.place_of(mm) {
                    self.look_again(state, at);
                }
            } else if let Some(mm) = state.unsettled.pop() {
                state.unsettled.retain(|other| *other != mm);
                if let Some(at) = state.place_of(mm) {
                    self.settle_one(state, at);
                }
            } else if let Some(fault) = state.unplaced.pop() {
                self.place(state, fault);
            } else {
                return;
            }
        }
    }

    /// A fault where nothing was known, after another look.
    fn place(self: &Arc<Self>, state: &mut State, fault: Unplaced) {
        let Some(at) = state.place_of(fault.mm) else { return };
        let space = &state.spaces[at];
        if space.locate(fault.address).is_some() {
            return self.note_fault(state, at, fault);
        }
        // It is not there any more, which the program finds out by itself.
        let _ = space.means.wake(page_at(fault.address));
    }

    pub(super) fn settle_one(self: &Arc<Self>, state: &mut State, at: usize) {
        let mut name = vec![0; rustix::param::page_size()];
        name[..8].copy_from_slice(&state.spaces[at].mm.0.to_ne_bytes());
        let done = self.insist_on(Purpose::Settle, state, at, &|space| settle_space(space, &name));
        if done.is_ok() {
            state.spaces[at].unsure.clear();
        }
    }

    /// Reads again what an address space maps, where that may be something else than was said.
    pub(in super::super) fn look_again(self: &Arc<Self>, state: &mut State, at: usize) {
        self.identify_patiently(state, at);
        let Some(maps) = self.maps_at_rest(state, at) else { return };
        let space = &mut state.spaces[at];
        let mut found = Vec::new();
        for mapping in &maps.ours {
            let Some(mappings) = self.registry.mappings_of(mapping.file) else { continue };
            let range = Range { mappings, address: mapping.pages.address, span: mapping.span };
            let is_known = space.ranges.iter().any(|known| known.covers(&range));
            if !is_known && mapping.permission != Permission::CLOSED {
                space.unsure.push(range.clone());
            }
            range.mappings.join(self);
            // Registering has cut it into pieces.
            match found.last_mut().is_some_and(|before: &mut Range| before.extend_by(&range)) {
                true => {}
                false => found.push(range),
            }
        }
        let before = space.files();
        for range in &space.ranges {
            if !found.iter().any(|now| now.covers(range)) {
                // Whoever waits there finds out by himself that it is gone.
                let _ = space.means.wake(range.pages());
            }
        }
        space.ranges = found;
        self.unsettle(state, at);
        self.leave_unmapped(state, &before);
    }

    /// What is mapped, read while no move was under way: one that is under way, or whose event has
    /// not been read, shows in the answer to a probe.
    fn maps_at_rest(self: &Arc<Self>, state: &mut State, at: usize) -> Option<Maps> {
        let until = Instant::now() + self.registry.patience.left();
        loop {
            let space = &state.spaces[at];
            let pid = space.process.as_ref()?.pid;
            let before = space.probe();
            let maps = Maps::of(pid).ok()?;
            match before.and_then(|()| space.probe()) {
                Err(Trouble::Pending) if Instant::now() < until => self.read_or_wait(state, at),
                Err(Trouble::Gone) => return None,
                _ => return Some(maps),
            }
        }
    }

    /// The same for a child whose fork is still under way: its process appears at the end of it.
    pub(super) fn identify_patiently(self: &Arc<Self>, state: &mut State, at: usize) {
        let until = Instant::now() + self.registry.patience.left();
        self.identify(state, at);
        while state.spaces[at].process.is_none() && Instant::now() < until {
            self.look_alive(state, at);
            if state.spaces[at].is_gone() {
                return;
            }
            state.spaces[at].means.wait_a_moment();
            self.identify(state, at);
        }
    }

    /// Finds the process of a forked child, if it is not known. One that lives is not given up
    /// because its sentinel page is gone: then nobody is found.
    pub(in super::super) fn identify(self: &Arc<Self>, state: &mut State, at: usize) {
        let space = &mut state.spaces[at];
        if space.process.as_ref().is_some_and(|process| space.is_of(process.pid)) {
            return;
        }
        let found = find_anywhere(space.mm, space.sentinel, space.parent);
        let lives = |process: &Process| !process.has_ended_within(Duration::ZERO);
        space.process = found.or_else(|| space.process.take().filter(lives));
    }
}

/// Names an address space and registers what it maps.
fn settle_space(space: &AddressSpace, name: &[u8]) -> Result<(), Trouble> {
    let Means::Userfaultfd(_, uffd) = &space.means else { return Ok(()) };
    match uffd.fill(space.sentinel, name) {
        // By a predecessor, or it is named already.
        Err(Trouble::AlreadyThere) => uffd.wake(space.sentinel_page())?,
        done => done?,
    }
    for range in &space.ranges {
        range.mappings.register(&space.means, range.pages(), range.span)?;
    }
    for range in &space.unsure {
        range.mappings.protect_again(&space.means, range.pages(), range.span)?;
    }
    Ok(())
}
