//! Who maps the files of segments on this node, and how their pages are served: every program that
//! attaches hands over the means to serve its address space, and keeps it over fork.
//!
//! Here is what the rest of dipcd calls; [`Mappings`] is one file with all who map it. Locks are
//! taken in this order: a segment's (the caller's), a family's, and then those of lists, which are
//! held for a line or two. Whoever calls [`Faults`] holds none of them.
#![forbid(unsafe_code)]

use crossbeam_channel::Sender;
use parking_lot::Mutex;
use std::cell::Cell;
use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;

use dipc_wire::client::{Mm, Trap};
use dipc_wire::keeper::Held;
use dipc_wire::memory::Access;
use dipc_wire::trap::Pages;

use crate::keep::Keep;
use crate::memory::files::{FileId, ReplicaFile, Span};
use crate::memory::process_maps::{self, Maps, Permissions};
use crate::sys::faults::{self, CanPoison, Trouble, Userfaultfd};

mod family;
mod housekeeper;
mod mappings;
pub mod means;
mod patience;
mod space;
mod take_over;

pub use mappings::{Attachment, Mappings};
pub use patience::Patience;
pub use space::Process;

use family::Family;
use housekeeper::Errand;
use means::Means;
use space::{AddressSpace, Range};

/// A thread waits for a page.
#[derive(Clone, Debug)]
pub struct Fault {
    /// Of which file.
    pub mappings: Arc<Mappings>,
    /// Where in it: the beginning of a page of the system.
    pub offset: u64,
    /// What for.
    pub access: Access,
    /// In which address space.
    pub mm: Mm,
    /// The thread, by its number in its own pid namespace.
    pub thread: u32,
}

impl Fault {
    fn is_same(&self, other: &Fault) -> bool {
        self.mm == other.mm
            && (self.thread, self.offset) == (other.thread, other.offset)
            && self.access == other.access
            && Arc::ptr_eq(&self.mappings, &other.mappings)
    }
}

/// An address space is no more: its process has ended or runs another program.
#[derive(Clone, Debug)]
pub struct Ended {
    /// Which.
    pub mm: Mm,
    /// Whose it was, if that was known.
    pub process: Option<Process>,
    /// What it had attached, each file once.
    pub mappings: Vec<Arc<Mappings>>,
}

/// Who answers faults.
pub trait Faults: Send + Sync {
    /// A thread waits for a page, until [`Mappings::wake`] or [`Mappings::open`]. The same fault
    /// may come many times. Called by the thread of a family, so that one which waits here keeps
    /// its relatives waiting.
    fn fault(&self, fault: Fault);

    /// An address space has ended. Called by the housekeeper, or by whoever looks for ends.
    fn ended(&self, ended: Ended);
}

/// Who keeps the descriptors of traps beyond this dipcd.
pub trait TrapStore: Send + Sync {
    /// Keeps one.
    fn hold(&self, name: &Held, fd: &Arc<OwnedFd>);
    /// Keeps it no longer.
    fn release(&self, name: &Held);
}

impl TrapStore for Keep {
    fn hold(&self, name: &Held, fd: &Arc<OwnedFd>) {
        Keep::hold(self, name.clone(), fd);
    }

    fn release(&self, name: &Held) {
        Keep::release(self, name);
    }
}

/// What all families share.
struct Registry {
    store: Arc<dyn TrapStore>,
    faults: Arc<dyn Faults>,
    patience: Arc<Patience>,
    families: Mutex<HashMap<Mm, Arc<Family>>>,
    files: Mutex<HashMap<FileId, Weak<Mappings>>>,
    /// Without a bound of its own: there is at most one for each address space and each notice of
    /// a living one.
    errands: Sender<Errand>,
    /// Who has ended, until that is said; and the right to say it.
    ends: Mutex<VecDeque<Ended>>,
    saying: Mutex<()>,
    stopped: AtomicBool,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl std::fmt::Debug for Registry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Registry").finish_non_exhaustive()
    }
}

impl Registry {
    /// A number for an address space: nobody can guess it, and it is never 0.
    fn new_mm(&self) -> Mm {
        loop {
            let mut number = [0; 8];
            getrandom::fill(&mut number).expect("the kernel always has random numbers");
            let mm = Mm(u64::from_ne_bytes(number));
            if mm != Mm::default() && !self.families.lock().contains_key(&mm) {
                return mm;
            }
        }
    }

    fn tell(&self, errand: Errand) {
        // Nobody listens when everything ends.
        let _ = self.errands.send(errand);
    }

    /// Says who has ended. When it returns all are said who were buried before it was called.
    fn say_ends(&self) {
        let _one_at_a_time = self.saying.lock();
        loop {
            let next = self.ends.lock().pop_front();
            let Some(ended) = next else { return };
            self.faults.ended(ended);
        }
    }

    fn family_of(&self, mm: Mm) -> Option<Arc<Family>> {
        self.families.lock().get(&mm).cloned()
    }

    fn mappings_of(&self, file: FileId) -> Option<Arc<Mappings>> {
        self.files.lock().get(&file)?.upgrade()
    }

    /// Each once.
    fn all_families(&self) -> Vec<Arc<Family>> {
        let mut families: Vec<Arc<Family>> = self.families.lock().values().cloned().collect();
        families.sort_by_key(Arc::as_ptr);
        families.dedup_by(|one, other| Arc::ptr_eq(one, other));
        families
    }

    /// A thread whose end is waited for at the end.
    fn remember(&self, thread: JoinHandle<()>) {
        let mut threads = self.threads.lock();
        threads.retain(|known| !known.is_finished());
        threads.push(thread);
    }

    fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Acquire)
    }
}

/// An attachment that has been looked at: the file is mapped there whole and closed.
#[derive(Debug)]
pub struct Placed {
    mm: Mm,
    mappings: Arc<Mappings>,
    address: u64,
}

/// All families of this node. Dropped, it waits for its threads; the keeper's descriptors stay.
pub struct Families {
    registry: Arc<Registry>,
    can_poison: CanPoison,
}

impl Drop for Families {
    fn drop(&mut self) {
        self.registry.stopped.store(true, Ordering::Release);
        self.registry.tell(Errand::Stop);
        for family in self.registry.all_families() {
            family.ring();
        }
        for thread in std::mem::take(&mut *self.registry.threads.lock()) {
            // It logged why, if it panicked.
            let _ = thread.join();
        }
        // Families and their registry hold each other.
        self.registry.families.lock().clear();
    }
}

impl Families {
    /// Starts with nobody. `patience` is how long a program may keep a page from being taken away
    /// (a stopped one with the mprotect trap does) before it is ended.
    pub fn new(
        store: Arc<dyn TrapStore>,
        faults: Arc<dyn Faults>,
        patience: Arc<Patience>,
    ) -> io::Result<Families> {
        let (errands, to_do) = crossbeam_channel::unbounded();
        let registry = Arc::new(Registry {
            store,
            faults,
            patience,
            families: Mutex::default(),
            files: Mutex::default(),
            errands,
            ends: Mutex::default(),
            saying: Mutex::default(),
            stopped: AtomicBool::new(false),
            threads: Mutex::default(),
        });
        housekeeper::start(&registry, to_do)?;
        let can_poison = Userfaultfd::try_one().unwrap_or(CanPoison::No);
        Ok(Families { registry, can_poison })
    }

    /// At start: whether this dipcd can serve userfaultfds at all. That takes Linux 5.19 and, to
    /// see forks, CAP_SYS_PTRACE.
    pub fn usable() -> io::Result<()> {
        Userfaultfd::try_one().map(drop)
    }

    /// How long programs may keep pages from being taken away.
    pub fn patience(&self) -> &Patience {
        &self.registry.patience
    }

    /// A file that is about to be mapped, or is already after a restart.
    pub fn mappings(&self, file: Arc<ReplicaFile>) -> Arc<Mappings> {
        let id = file.id();
        let mappings = Arc::new(Mappings::new(file, self.can_poison));
        let mut files = self.registry.files.lock();
        files.retain(|_, known| known.strong_count() > 0);
        files.insert(id, Arc::downgrade(&mappings));
        mappings
    }

    /// Takes the trap of a program image: `Call::Trap`. A descriptor that is none is refused, and
    /// so is a sentinel page that is none.
    pub fn take(&self, process: Process, trap: Trap, sentinel: u64, fd: OwnedFd) -> io::Result<Mm> {
        if trap != Trap::Mprotect {
            Userfaultfd::take(&fd)?;
        }
        let (fd, mm) = (Arc::new(fd), self.registry.new_mm());
        let means = Means::adopt(trap, fd.clone(), &self.registry.patience);
        introduce(&means, mm, sentinel)?;
        let space =
            AddressSpace { process: Some(process), ..AddressSpace::new(mm, means, sentinel) };
        let family = Family::new(&self.registry)?;
        self.registry.store.hold(&space.held(), &fd);
        family.with(|state| {
            let ready = family.add(state, space).and_then(|()| family.start());
            if ready.is_err() {
                // Nobody would serve it. Its descriptors are closed again.
                family.bury(state, 0);
            } else if trap == Trap::Mprotect {
                // A forked child has attachments already, all closed.
                family.look_again(state, 0);
            }
            ready.map(|()| mm)
        })
    }

    /// Whether a process lives in this address space: its sentinel page says so. Nobody is
    /// believed who only says it.
    pub fn is_of(&self, mm: Mm, pid: u32) -> bool {
        self.space_of(mm).is_some_and(|(sentinel, _)| space::lives_in(pid, mm, sentinel))
    }

    /// Whether this is the process that brought the trap of this address space, or lives in it: as
    /// far as who touches pages must be known, without a look at its mappings each time.
    pub fn may_touch(&self, mm: Mm, pid: u32) -> bool {
        let Some((sentinel, process)) = self.space_of(mm) else { return false };
        process.is_some_and(|process| process.is(pid)) || space::lives_in(pid, mm, sentinel)
    }

    /// Where the sentinel page of an address space is, and whose it is if that is known.
    fn space_of(&self, mm: Mm) -> Option<(u64, Option<Process>)> {
        self.registry.family_of(mm)?.with(|state| {
            let space = &state.spaces[state.place_of(mm)?];
            Some((space.sentinel, space.process.clone()))
        })
    }

    /// Looks whether a file is mapped as was said (`Call::Mapped`): whole, from its first byte,
    /// closed to any access. Before the segment is locked.
    pub fn place(
        &self,
        mm: Mm,
        pid: u32,
        mappings: &Arc<Mappings>,
        address: u64,
    ) -> io::Result<Placed> {
        let (file, bytes) = (mappings.file().id(), mappings.file().span().bytes);
        let found = Maps::of(pid)?.ours;
        if process_maps::is_closed_whole(&found, file, address, bytes) {
            return Ok(Placed { mm, mappings: mappings.clone(), address });
        }
        let why = format!("the segment is not mapped at {address:#x}, closed and whole");
        Err(io::Error::new(io::ErrorKind::InvalidInput, why))
    }

    /// Serves an attachment from now on; `held` is what this replica has, and for what. Under the
    /// lock of the segment. Then the program may open it.
    pub fn attach(&self, placed: Placed, held: &[(Span, Access)]) -> io::Result<()> {
        let Placed { mm, mappings, address } = placed;
        let gone = || io::Error::from_raw_os_error(libc::ESRCH);
        let family = self.registry.family_of(mm).ok_or_else(gone)?;
        mappings.prepare(held);
        family.with(|state| {
            let at = state.place_of(mm).ok_or_else(gone)?;
            mappings.join(&family);
            let range = Range { mappings: mappings.clone(), address, span: mappings.file().span() };
            let space = &mut state.spaces[at];
            // The call may have been made before, and its answer lost.
            space.ranges.retain(|known| !range.covers(known));
            space.ranges.push(range.clone());
            let failure = Cell::new(None);
            let work = |space: &AddressSpace| match mappings.give(&space.means, &range, held) {
                // The program has done no wrong: it cannot attach, that is all.
                Err(Trouble::Failed(error)) => {
                    failure.set(Some(error));
                    Ok(())
                }
                done => done,
            };
            family.insist(state, at, &work).map_err(|family::Gone| gone())?;
            let Some(error) = failure.take() else { return Ok(()) };
            state.spaces[at].ranges.retain(|known| !range.covers(known));
            family.leave_unmapped(state, std::slice::from_ref(&mappings));
            Err(error)
        })
    }

    /// Something has been unmapped, mapped over, moved or resized, and this is where the program
    /// says so: it is looked at. The files of which something is gone.
    pub fn changed(&self, mm: Mm) -> Vec<Arc<Mappings>> {
        let Some(family) = self.registry.family_of(mm) else { return Vec::new() };
        family.with(|state| {
            let Some(at) = state.place_of(mm) else { return Vec::new() };
            // A child that is being forked has what was there before.
            family.read_events(state, at);
            let before = state.spaces[at].ranges.clone();
            family.look_again(state, at);
            let now = &state.spaces[at].ranges;
            let is_there = |range: &Range| now.iter().any(|known| known.covers(range));
            let mut lost: Vec<Arc<Mappings>> = Vec::new();
            for range in before.iter().filter(|range| !is_there(range)) {
                if !lost.iter().any(|known| Arc::ptr_eq(known, &range.mappings)) {
                    lost.push(range.mappings.clone());
                }
            }
            lost
        })
    }

    /// By which trap the pages of an address space are served.
    pub fn trap_of(&self, mm: Mm) -> Option<Trap> {
        let family = self.registry.family_of(mm)?;
        family.with(|state| state.place_of(mm).map(|at| state.spaces[at].means.trap()))
    }

    /// Which file is at an address, and where in it: `Call::Touched`.
    pub fn locate(&self, mm: Mm, address: u64) -> Option<(Arc<Mappings>, u64)> {
        let family = self.registry.family_of(mm)?;
        family.with(|state| {
            let at = state.place_of(mm)?;
            if state.spaces[at].locate(address).is_none() {
                family.look_again(state, at);
            }
            state.spaces[at].locate(address)
        })
    }

    /// Opens pages in one address space whose program has touched one (`Call::Touched`), as far
    /// as the replica holds them. Under the lock of the segment.
    pub fn open_for(
        &self,
        mm: Mm,
        mappings: &Arc<Mappings>,
        span: Span,
        access: Access,
    ) -> io::Result<()> {
        let gone = || io::Error::from_raw_os_error(libc::ESRCH);
        let family = self.registry.family_of(mm).ok_or_else(gone)?;
        family.with(|state| {
            let at = state.place_of(mm).ok_or_else(gone)?;
            let open = |means: &Means, pages: Pages, _| match means {
                Means::Helper(helper) => helper.open(access, pages),
                _ => means.wake(pages),
            };
            match state.spaces[at].each(mappings, span, &open) {
                Ok(()) => Ok(()),
                // The map count has run out, say: nothing is open that should not be.
                Err(Trouble::Failed(error)) if error.raw_os_error().is_some() => Err(error),
                Err(_) => family
                    .insist(state, at, &|space| space.each(mappings, span, &open))
                    .map_err(|family::Gone| gone()),
            }
        })
    }

    /// Looks whether everybody is still there who maps a file. Whoever is not is said to have
    /// ended when this returns. Not under a lock.
    pub fn look_for_ends(&self, mappings: &Arc<Mappings>) {
        mappings.families().iter().for_each(housekeeper::look_for_ends);
        self.registry.say_ends();
    }

    /// How many attachments of a file there are, as the kernel would count its own. It looks
    /// through /proc: not under a lock.
    pub fn count(&self, mappings: &Arc<Mappings>) -> io::Result<u64> {
        let families = mappings.families();
        for family in &families {
            housekeeper::find_processes(family);
        }
        let attachments = mappings.attachments();
        let file = mappings.file().id();
        let all_are_known = attachments.iter().all(|attachment| attachment.process.is_some())
            && families.iter().all(|family| !family.has_helper());
        if all_are_known {
            let mut pids: Vec<u32> =
                attachments.iter().flat_map(|a| &a.process).map(|process| process.pid).collect();
            pids.sort_unstable();
            pids.dedup();
            return count_in(&pids, file, Permissions::Count);
        }
        let permissions = match families.iter().any(|family| family.has_helper()) {
            true => Permissions::Ignore,
            false => Permissions::Count,
        };
        count_in(&process_maps::processes()?, file, permissions)
    }

    /// Whether some process that is known is seen to map a file.
    pub fn is_seen_mapped(&self, mappings: &Arc<Mappings>) -> bool {
        let file = mappings.file().id();
        let maps_it = |process: &Process| {
            Maps::of(process.pid).is_ok_and(|maps| maps.ours.iter().any(|one| one.file == file))
        };
        mappings.attachments().iter().filter_map(|a| a.process.as_ref()).any(maps_it)
    }

    /// SIGBUS for a thread whose page is not to be had, where poison cannot be used.
    pub fn refuse(&self, fault: &Fault) {
        let Some(family) = self.registry.family_of(fault.mm) else { return };
        housekeeper::find_processes(&family);
        let pid = family.with(|state| {
            let at = state.place_of(fault.mm)?;
            Some(state.spaces[at].process.as_ref()?.pid)
        });
        if let Some(pid) = pid {
            // It may have ended.
            let _ = faults::refuse(pid, fault.thread);
        }
    }
}

/// Tells a program's sentinel page, or its helper, which number it has.
fn introduce(means: &Means, mm: Mm, sentinel: u64) -> io::Result<()> {
    let refuse = |trouble| {
        let why = format!("the trap does not serve its sentinel page {sentinel:#x}: {trouble:?}");
        io::Error::new(io::ErrorKind::InvalidInput, why)
    };
    let page = Pages { address: sentinel, bytes: rustix::param::page_size() as u64 };
    match means {
        Means::Helper(helper) => helper.name(mm).map_err(refuse),
        Means::Userfaultfd(_, uffd) => {
            uffd.register(page, faults::Watched::Missing).map_err(refuse)?;
            let mut name = vec![0; rustix::param::page_size()];
            name[..8].copy_from_slice(&mm.0.to_ne_bytes());
            uffd.fill(sentinel, &name).map_err(refuse)
        }
        Means::Gone(_) => Err(refuse(Trouble::Gone)),
    }
}

fn count_in(pids: &[u32], file: FileId, permissions: Permissions) -> io::Result<u64> {
    let mut count = 0;
    for &pid in pids {
        match Maps::of(pid) {
            Ok(maps) => count += process_maps::count(&maps.ours, file, permissions),
            // A process that dipcd may not look at has none of its files.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {}
            Err(error) => return Err(error),
        }
    }
    Ok(count)
}
