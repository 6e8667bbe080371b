//! The end of a lease where dipcd is dead or stopped: its keeper takes access to that home's pages
//! away from the programs, by what the page records say, and keeps the contents aside. Nothing is
//! decided here: [`dipc_core::replica::revoke`] says what happens to each page, as in dipcd.
//!
//! A process whose pages cannot be taken away in time is ended: it must not go on with memory that
//! may be another's.
#![forbid(unsafe_code)]

use rustix::process::{Pid, Signal, kill_process};
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use dipc_core::copies::{CopyStep, Source};
use dipc_core::replica::{Effect, Round, revoke};
use dipc_wire::ids::NodeId;
use dipc_wire::keeper::{Held, SegmentFile};
use dipc_wire::memory::PageNo;

use super::families::means::Means;
use super::families::{Patience, Process};
use super::files::{FileId, ReplicaFile};
use super::geometry::Geometry;
use super::leases::Leases;
use super::process_maps::{self, Mapping, Maps, Permission};
use super::records::CopyRecords;
use super::recover::read_geometry;
use super::segments::{DIRECTORY, dir_of};

/// How long dipcd may take to stand still.
const STANDSTILL: Duration = Duration::from_millis(50);

/// What a keeper holds.
pub type Holdings = BTreeMap<Held, OwnedFd>;

/// The homes of other nodes whose pages are here.
pub fn homes(held: &Holdings) -> impl Iterator<Item = NodeId> + '_ {
    held.keys().filter_map(|name| match name {
        Held::File(SegmentFile { home, .. }) => Some(*home),
        _ => None,
    })
}

/// A process that stands still as long as this lives.
pub struct Stopped {
    pid: Pid,
    /// Whether somebody else had stopped it before.
    before: bool,
}

impl Stopped {
    /// Stops it, and waits until it stands.
    pub fn of(pid: Pid) -> Stopped {
        let before = stands_still(pid);
        if !before {
            // An error says that it has ended, which is as good.
            let _ = kill_process(pid, Signal::STOP);
            let deadline = Instant::now() + STANDSTILL;
            while !stands_still(pid) && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        Stopped { pid, before }
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        if !self.before {
            let _ = kill_process(self.pid, Signal::CONT);
        }
    }
}

/// Whether every thread of a process is stopped, or it is no more: the third field of
/// /proc/PID/task/TID/stat.
fn stands_still(pid: Pid) -> bool {
    let Ok(tasks) = fs::read_dir(format!("/proc/{}/task", pid.as_raw_nonzero())) else {
        return true;
    };
    tasks.flatten().all(|task| {
        let stat = fs::read_to_string(task.path().join("stat")).unwrap_or_default();
        // The name in parentheses may contain anything.
        let state = stat.rsplit_once(") ").map(|(_, rest)| rest.as_bytes().first().copied());
        matches!(state, None | Some(None | Some(b'T' | b'Z' | b'X')))
    })
}

/// Opens the leases of a state directory.
pub fn leases(state_dir: &Path) -> io::Result<Leases> {
    Leases::open(state_dir)
}

/// Takes away what programs may not use any more of a home's pages. What is left of them has time.
pub fn end_lease(
    state_dir: &Path,
    held: &Holdings,
    home: NodeId,
    patience: &Arc<Patience>,
) -> io::Result<Vec<Left>> {
    let files = files_of(held, home)?;
    protect(held, &files, patience)?;
    Ok(files.into_iter().filter_map(|file| closed(state_dir, file)).collect())
}

/// A file of which nobody reads any more what others may have. Where the records cannot be read it
/// is emptied: rather nothing than what is another's.
fn closed(state_dir: &Path, file: ReplicaFile) -> Option<Left> {
    let (name, whole) = (file.name(), file.span());
    let closed = Left::of(state_dir, &file).and_then(|mut left| {
        while left.take_some(Round::Readable)? {}
        left.from = PageNo(0);
        Ok(left)
    });
    closed
        .map_err(|error| {
            let punched = file.punch(whole).is_ok();
            tracing::error!(op = "lease", id = %name.id, replica = name.replica.0, %error, punched);
        })
        .ok()
}

/// What a node owns of a file when the lease is over: nobody writes it, and it is to lie aside.
pub struct Left {
    file: ReplicaFile,
    geometry: Geometry,
    records: CopyRecords,
    from: PageNo,
}

impl Left {
    fn of(state_dir: &Path, file: &ReplicaFile) -> io::Result<Left> {
        let name = file.name();
        let dir = dir_of(&state_dir.join(DIRECTORY), name.id);
        let geometry = read_geometry(&dir)?;
        let records = CopyRecords::open(&dir, name.replica, geometry.pages)?;
        let file = ReplicaFile::adopt(name, file.content().clone(), file.aside().clone())?;
        Ok(Left { file, geometry, records, from: PageNo(0) })
    }

    /// Puts some of it aside; `false` when nothing is left.
    pub fn put_some_aside(&mut self) -> bool {
        self.take_some(Round::Owned).unwrap_or_else(|error| {
            let name = self.file.name();
            tracing::error!(op = "lease", id = %name.id, replica = name.replica.0, %error);
            false
        })
    }

    /// What was there lies aside afterwards, or is no more, and whoever touches it waits. Whether
    /// there is more to do.
    fn take_some(&mut self, round: Round) -> io::Result<bool> {
        let mut effects = Vec::new();
        let pages = self.geometry.pages;
        let next = revoke(round, self.from, pages, &self.records, &mut effects);
        for effect in effects {
            match effect {
                Effect::Record { page, record } => self.records.set(page, &record),
                Effect::Copy(step) => carry_out(&self.file, &self.geometry, &step)?,
                _ => {}
            }
        }
        self.from = next.unwrap_or(self.from);
        Ok(next.is_some())
    }
}

fn files_of(held: &Holdings, home: NodeId) -> io::Result<Vec<ReplicaFile>> {
    let mut files = Vec::new();
    for (name, content) in held {
        let Held::File(name) = name else { continue };
        let Some(aside) = held.get(&Held::Aside(*name)).filter(|_| name.home == home) else {
            continue;
        };
        let [content, aside] = [content, aside].map(|fd| fd.try_clone().map(Arc::new));
        files.push(ReplicaFile::adopt(*name, content?, aside?)?);
    }
    Ok(files)
}

/// Nobody writes to these files any more.
fn protect(held: &Holdings, files: &[ReplicaFile], patience: &Arc<Patience>) -> io::Result<()> {
    let ids: Vec<FileId> = files.iter().map(ReplicaFile::id).collect();
    let traps = traps(held, patience)?;
    for pid in process_maps::processes()? {
        let Ok(maps) = Maps::of(pid) else { continue };
        let mut mapped = maps.ours.clone();
        mapped.retain(|mapping| ids.contains(&mapping.file));
        if !mapped.is_empty() && !protect_in(pid, &maps, &mapped, &traps) {
            tracing::warn!(op = "lease", pid, "its pages cannot be taken away: killed");
            // It may have ended by itself.
            let _ = Process::of(pid).map(|process| process.kill());
        }
    }
    Ok(())
}

/// A trap, and where the number of its address space stands.
struct Known {
    number: u64,
    sentinel: u64,
    means: Means,
}

fn traps(held: &Holdings, patience: &Arc<Patience>) -> io::Result<Vec<Known>> {
    let mut traps = Vec::new();
    for (name, fd) in held {
        let Held::Trap { mm, trap, sentinel } = name else { continue };
        let means = Means::adopt(*trap, Arc::new(fd.try_clone()?), patience);
        traps.push(Known { number: mm.0, sentinel: *sentinel, means });
    }
    Ok(traps)
}

/// Whether it could be done.
fn protect_in(pid: u32, maps: &Maps, mapped: &[Mapping], traps: &[Known]) -> bool {
    let is_its = |trap: &&Known| {
        maps.is_anonymous(trap.sentinel)
            && process_maps::word_at(pid, trap.sentinel).is_ok_and(|word| word == trap.number)
    };
    match traps.iter().find(is_its) {
        Some(trap) => mapped.iter().all(|mapping| trap.means.protect(mapping.pages).is_ok()),
        None => mapped.iter().all(|mapping| mapping.permission == Permission::CLOSED),
    }
}

fn carry_out(file: &ReplicaFile, geometry: &Geometry, step: &CopyStep) -> io::Result<()> {
    let beyond = || io::Error::other("a page beyond the segment");
    match *step {
        CopyStep::Keep { page, from: Source::Node } => {
            file.keep_aside(geometry.span(page).ok_or_else(beyond)?)
        }
        CopyStep::Punch(run) => file.punch(geometry.run(run).ok_or_else(beyond)?),
        CopyStep::FreeAside(run) => file.drop_aside(geometry.run(run).ok_or_else(beyond)?),
        // Everything is protected, and nobody is given anything.
        _ => Ok(()),
    }
}
