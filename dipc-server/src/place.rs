//! The segment and the set under a port's key: made, joined, left, removed.
//!
//! The set comes first and goes last, and every step that must not be half done is one `semop`:
//!
//! ```text
//! join    { mark is there, not closed, slot is 0, slot + 1 }      undone when the server dies
//! close   { not closed, every slot is 0, closed + 1 }
//! leave   { slot - 1, every slot is 0, closed + 1 }, or if others remain { slot - 1 }
//! ```
//!
//! So the kernel itself knows which servers live, on every machine, and nobody joins what is being
//! removed. Objects are removed by id, never by key. Invariant: a set or segment without our mark
//! is left alone.
#![forbid(unsafe_code)]

use std::io;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use crate::args::Setup;
use crate::failure::Failure;
use crate::layout::{
    Geometry, HEADER_BYTES, MAGIC, MARK, SERVERS_MAX, ServerRecord, Slot, key, semaphore, word,
};
use crate::process::Process;
use crate::store::Store;
use crate::sys::{Op, Reach, Segment, SegmentId, Set};

/// How long another starter or remover may take for what it has begun.
const SETTLE_MAX: Duration = Duration::from_secs(3);
/// How often it is looked at meanwhile.
const SETTLE_STEP: Duration = Duration::from_millis(10);

/// One server's share in the mailboxes of a port.
#[derive(Debug)]
pub struct Place {
    set: Set,
    slot: Slot,
}

/// What is under a key.
#[derive(Debug)]
pub enum Found {
    /// No set.
    Nothing,
    /// A set of something else.
    Foreign,
    /// A set that its maker has not finished.
    Unfinished {
        /// The set.
        set: Set,
        /// Whether its maker must have died.
        stale: bool,
    },
    /// A set that is being removed, or whose remover died.
    Closed(Set),
    /// A set that servers use.
    Served(Set, Vec<Slot>),
    /// A set whose servers have all died.
    Remains(Set),
}

/// Makes the mailboxes, or joins them when they are shared; what a dead server left is removed
/// first.
pub fn open(setup: &Setup) -> Result<(Place, Store), Failure> {
    let until = Instant::now() + SETTLE_MAX;
    while Instant::now() < until {
        if let Some(open) = attempt(setup)? {
            return Ok(open);
        }
        thread::sleep(SETTLE_STEP);
    }
    Err(Failure::Unsettled { port: setup.port })
}

fn attempt(setup: &Setup) -> Result<Option<(Place, Store)>, Failure> {
    let port = setup.port;
    match look(port, setup.reach)? {
        Found::Nothing => make(setup),
        Found::Foreign => Err(Failure::Foreign { port }),
        Found::Unfinished { set, stale } => {
            if stale {
                remove(port, setup.reach, set)?;
            }
            Ok(None)
        }
        Found::Closed(set) => remove(port, setup.reach, set).map(|()| None),
        Found::Remains(set) => {
            if close(set).map_err(|error| refused(port, error))? {
                remove(port, setup.reach, set)?;
            }
            Ok(None)
        }
        Found::Served(set, _) if setup.reach == Reach::Shared => join_shared(setup, set),
        Found::Served(_, slots) => {
            let pid = records(port, setup.reach, &slots).first().map(|record| record.process.pid);
            Err(Failure::Served { port, pid })
        }
    }
}

/// What is under the key of `port`.
pub fn look(port: u16, reach: Reach) -> Result<Found, Failure> {
    let set = match Set::find(key(port), reach) {
        Ok(set) => set,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Found::Nothing),
        Err(error) => return Err(refused(port, error)),
    };
    match examine(set) {
        Ok(found) => Ok(found),
        Err(error) if is_gone(&error) => Ok(Found::Nothing),
        Err(error) => Err(refused(port, error)),
    }
}

fn examine(set: Set) -> io::Result<Found> {
    let status = set.status()?;
    let effective = rustix::process::geteuid();
    if status.owner_uid != effective.as_raw() && !effective.is_root() {
        return Err(io::Error::from(io::ErrorKind::PermissionDenied));
    }
    let values = set.values()?;
    let slots = usize::from(semaphore::SERVERS)..usize::from(semaphore::SERVERS + SERVERS_MAX);
    let Some(slots) = values.get(slots) else { return Ok(Found::Foreign) };
    if values.iter().all(|&value| value == 0) {
        return Ok(Found::Unfinished { set, stale: is_old(status.changed) });
    }
    if values[usize::from(semaphore::MARK)] != MARK {
        return Ok(Found::Foreign);
    }
    if values[usize::from(semaphore::CLOSED)] != 0 {
        return Ok(Found::Closed(set));
    }
    let served: Vec<Slot> =
        Slot::all().zip(slots).filter(|&(_, &alive)| alive != 0).map(|(slot, _)| slot).collect();
    Ok(if served.is_empty() { Found::Remains(set) } else { Found::Served(set, served) })
}

/// Whether a set made at `changed`, in seconds since the epoch, should long be finished.
fn is_old(changed: i64) -> bool {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    now.as_secs() as i64 - changed >= 2
}

/// A new set with its first server, and a new segment. Nothing if another one was faster.
fn make(setup: &Setup) -> Result<Option<(Place, Store)>, Failure> {
    let Setup { port, geometry, reach, .. } = *setup;
    let set = match Set::create(key(port), geometry.semaphores(), reach) {
        Ok(set) => set,
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(None),
        Err(error) => {
            let what = format!("port {port}: a set of {} semaphores", geometry.semaphores());
            return Err(Failure::system(what, error));
        }
    };
    if let Err(error) = set.set_values(&geometry.semaphores_at_rest()) {
        let _ = set.remove();
        return Err(Failure::system(format!("port {port}: the semaphores' first values"), error));
    }
    let Some(slot) = join(set).map_err(|error| refused(port, error))? else { return Ok(None) };
    let made = make_segment(setup).and_then(|segment| begin(setup, set, segment, slot));
    if made.is_err() {
        let _ = leave(port, reach, set, slot);
    }
    made.map(Some)
}

fn make_segment(setup: &Setup) -> Result<SegmentId, Failure> {
    let Setup { port, geometry, reach, .. } = *setup;
    let bytes = geometry.segment_bytes();
    let what = || format!("port {port}: a segment of {bytes} bytes");
    match SegmentId::create(key(port), bytes, reach) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        made => return made.map_err(|error| Failure::system(what(), error)),
    }
    // Somebody removed a server's set and left its segment.
    let segment = SegmentId::find(key(port), reach).map_err(|error| refused(port, error))?;
    if !is_ours(segment).map_err(|error| refused(port, error))? {
        return Err(Failure::Foreign { port });
    }
    segment.remove().map_err(|error| refused(port, error))?;
    SegmentId::create(key(port), bytes, reach).map_err(|error| Failure::system(what(), error))
}

/// Whether a segment was made by a mailbox server: our magic, or nothing yet and nobody attached.
fn is_ours(segment: SegmentId) -> io::Result<bool> {
    let status = segment.status()?;
    if status.bytes < HEADER_BYTES {
        return Ok(false);
    }
    let magic = segment.attach()?.load(word::MAGIC);
    Ok(magic == MAGIC || (magic == 0 && status.attached == 0))
}

/// Writes the header of a new segment, the magic last.
fn begin(
    setup: &Setup,
    set: Set,
    segment: SegmentId,
    slot: Slot,
) -> Result<(Place, Store), Failure> {
    let begun = || {
        let attached = segment.attach()?;
        let geometry = setup.geometry;
        attached.store(word::MAILBOXES, geometry.mailboxes().into());
        attached.store(word::MAILBOX_BYTES, geometry.mailbox_bytes() as u64);
        attached.store(word::OWNER_UID, rustix::process::geteuid().as_raw().into());
        sign(setup, &attached, slot)?;
        attached.store(word::MAGIC, MAGIC);
        Ok((Place { set, slot }, Store::new(set, attached, geometry)))
    };
    begun().map_err(|error| Failure::system(format!("port {}: the segment", setup.port), error))
}

/// Writes this server's record.
fn sign(setup: &Setup, segment: &Segment, slot: Slot) -> io::Result<()> {
    let record = ServerRecord { process: Process::this()?, address: setup.bind };
    for (at, value) in slot.words().zip(record.to_words()) {
        segment.store(at, value);
    }
    Ok(())
}

/// A share in what another server has made. Nothing if it is being removed.
fn join_shared(setup: &Setup, set: Set) -> Result<Option<(Place, Store)>, Failure> {
    let port = setup.port;
    let Some(slot) = join(set).map_err(|error| refused(port, error))? else {
        return match look(port, setup.reach)? {
            Found::Served(_, slots) if slots.len() == usize::from(SERVERS_MAX) => {
                Err(Failure::Crowded { port })
            }
            _ => Ok(None),
        };
    };
    let joined = share(setup, set, slot);
    if joined.is_err() {
        let _ = leave(port, setup.reach, set, slot);
    }
    joined.map(Some)
}

fn share(setup: &Setup, set: Set, slot: Slot) -> Result<(Place, Store), Failure> {
    let port = setup.port;
    let attached = ready_segment(port, setup.reach).ok_or(Failure::NoSegment { port })?;
    let there = Geometry::new(attached.load(word::MAILBOXES), attached.load(word::MAILBOX_BYTES))
        .filter(|there| there.segment_bytes() <= attached.bytes())
        .ok_or(Failure::Foreign { port })?;
    if there != setup.geometry {
        let kbytes = there.mailbox_bytes() / 1024;
        let there = format!("{} mailboxes of {kbytes} kbytes", there.mailboxes());
        return Err(Failure::Differs { port, there });
    }
    sign(setup, &attached, slot)
        .map_err(|error| Failure::system(format!("port {port}: its own process"), error))?;
    Ok((Place { set, slot }, Store::new(set, attached, there)))
}

/// The segment that belongs to a set, once its maker has written the header.
fn ready_segment(port: u16, reach: Reach) -> Option<Segment> {
    let until = Instant::now() + SETTLE_MAX / 3;
    while Instant::now() < until {
        if let Ok(segment) = SegmentId::find(key(port), reach)
            && let Ok(attached) = segment.attach()
            && attached.bytes() >= HEADER_BYTES
            && attached.load(word::MAGIC) == MAGIC
        {
            return Some(attached);
        }
        thread::sleep(SETTLE_STEP);
    }
    None
}

/// Takes a free slot. Nothing if there is none, or if the set is closed or gone.
fn join(set: Set) -> io::Result<Option<Slot>> {
    for slot in Slot::all() {
        let joining = [
            Op::add(semaphore::MARK, -(MARK as i16)).now(),
            Op::add(semaphore::MARK, MARK as i16),
            Op::zero(semaphore::CLOSED).now(),
            Op::zero(slot.semaphore()).now(),
            Op::add(slot.semaphore(), 1).undone(),
        ];
        match set.operate(&joining) {
            Ok(()) => return Ok(Some(slot)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) if is_gone(&error) => return Ok(None),
            Err(error) => return Err(error),
        }
    }
    Ok(None)
}

/// Closes a set that no living server uses: nobody can join any more, and who closed it removes it.
/// False if one uses it after all, or if another one was faster.
pub fn close(set: Set) -> io::Result<bool> {
    let closing: Vec<Op> = std::iter::once(Op::zero(semaphore::CLOSED).now())
        .chain(Slot::all().map(|slot| Op::zero(slot.semaphore()).now()))
        .chain([Op::add(semaphore::CLOSED, 1)])
        .collect();
    match set.operate(&closing) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock || is_gone(&error) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Gives the slot back; the last one also removes the objects.
fn leave(port: u16, reach: Reach, set: Set, slot: Slot) -> Result<(), Failure> {
    let slot = Op::add(slot.semaphore(), -1).undone();
    let last: Vec<Op> = std::iter::once(slot)
        .chain(Slot::all().map(|slot| Op::zero(slot.semaphore()).now()))
        .chain([Op::add(semaphore::CLOSED, 1)])
        .collect();
    match set.operate(&last) {
        Ok(()) => remove(port, reach, set),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
            set.operate(&[slot]).or_else(unless_gone).map_err(|e| refused(port, e))
        }
        Err(error) => unless_gone(error).map_err(|error| refused(port, error)),
    }
}

/// Removes a set that is closed or was never finished, and the segment that belongs to it. The
/// segment's id is learnt while the set still stands: a later segment under this key has another
/// one.
pub fn remove(port: u16, reach: Reach, set: Set) -> Result<(), Failure> {
    let segment = SegmentId::find(key(port), reach).ok();
    if set.status().is_err() {
        return Ok(());
    }
    if let Some(segment) = segment
        && is_ours(segment).unwrap_or(false)
    {
        segment.remove().or_else(unless_gone).map_err(|error| refused(port, error))?;
    }
    set.remove().or_else(unless_gone).map_err(|error| refused(port, error))
}

/// Removes a segment of ours that has no set.
pub fn remove_lone_segment(port: u16, reach: Reach) -> Result<(), Failure> {
    match SegmentId::find(key(port), reach) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(Failure::Nothing { port }),
        Err(error) => Err(refused(port, error)),
        Ok(segment) => {
            if !is_ours(segment).map_err(|error| refused(port, error))? {
                return Err(Failure::Nothing { port });
            }
            segment.remove().or_else(unless_gone).map_err(|error| refused(port, error))
        }
    }
}

/// What the servers in `slots` wrote about themselves. One that is just joining has not yet.
pub fn records(port: u16, reach: Reach, slots: &[Slot]) -> Vec<ServerRecord> {
    let Some(attached) = ready_segment(port, reach) else { return Vec::new() };
    let record = |slot: &Slot| {
        let mut words = [0; ServerRecord::WORDS];
        for (word, at) in words.iter_mut().zip(slot.words()) {
            *word = attached.load(at);
        }
        ServerRecord::from_words(words)
    };
    slots.iter().filter_map(record).collect()
}

impl Place {
    /// Ends this server's share; the last one removes the segment and the set.
    pub fn leave(self, setup: &Setup) -> Result<(), Failure> {
        leave(setup.port, setup.reach, self.set, self.slot)
    }
}

/// Whether the object was removed meanwhile.
fn is_gone(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EIDRM | libc::EINVAL))
}

fn unless_gone(error: io::Error) -> io::Result<()> {
    if is_gone(&error) { Ok(()) } else { Err(error) }
}

fn refused(port: u16, error: io::Error) -> Failure {
    match error.raw_os_error() {
        Some(libc::EACCES | libc::EPERM) => Failure::OtherUser { port },
        _ if error.kind() == io::ErrorKind::PermissionDenied => Failure::OtherUser { port },
        _ => Failure::system(format!("port {port}: its System V objects"), error),
    }
}
