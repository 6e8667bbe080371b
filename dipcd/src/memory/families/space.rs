//! One address space: its number, its trap, the process it belongs to, and where it maps which
//! file of a segment.
#![forbid(unsafe_code)]

use rustix::process::{Pid, PidfdFlags, Signal};
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use dipc_wire::client::Mm;
use dipc_wire::keeper::Held;
use dipc_wire::trap::Pages;

use crate::memory::families::mappings::Mappings;
use crate::memory::families::means::Means;
use crate::memory::files::Span;
use crate::memory::process_maps::{self, Maps};
use crate::sys::faults::Trouble;

/// A process that runs in an address space.
#[derive(Clone, Debug)]
pub struct Process {
    /// Its pid.
    pub pid: u32,
    /// Readable when it has ended.
    pub pidfd: Arc<OwnedFd>,
}

impl Process {
    /// The process that has this number now.
    pub fn of(pid: u32) -> io::Result<Process> {
        let raw = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or(rustix::io::Errno::SRCH)?;
        let pidfd = rustix::process::pidfd_open(raw, PidfdFlags::empty())?;
        Ok(Process { pid, pidfd: Arc::new(pidfd) })
    }

    /// Whether the process that has this number now is still this one.
    pub fn is(&self, pid: u32) -> bool {
        self.pid == pid && !self.has_ended_within(Duration::ZERO)
    }

    /// Waits until it has ended, at most so long: whether it has.
    pub fn has_ended_within(&self, wait: Duration) -> bool {
        let mut watched = [rustix::event::PollFd::new(&self.pidfd, rustix::event::PollFlags::IN)];
        let wait = wait.try_into().expect("a time-out is a few seconds");
        rustix::event::poll(&mut watched, Some(&wait)).is_ok_and(|ended| ended != 0)
    }

    /// SIGKILL.
    pub fn kill(&self) {
        // It may have ended already, which is as good.
        let _ = rustix::process::pidfd_send_signal(&self.pidfd, Signal::KILL);
    }
}

/// A part of a file in an address space.
#[derive(Clone, Debug)]
pub struct Range {
    /// Which file.
    pub mappings: Arc<Mappings>,
    /// Where it begins.
    pub address: u64,
    /// Which part.
    pub span: Span,
}

impl Range {
    /// Where a part of the file is, if this range has it or some of it.
    pub fn pages_of(&self, part: Span) -> Option<(Pages, Span)> {
        let both = self.span.and(part)?;
        let address = self.address + (both.offset - self.span.offset);
        Some((Pages { address, bytes: both.bytes }, both))
    }

    /// Whether another range is a part of this one.
    pub fn covers(&self, other: &Range) -> bool {
        let part = self.pages_of(other.span);
        let theirs = (other.pages(), other.span);
        Arc::ptr_eq(&self.mappings, &other.mappings) && part == Some(theirs)
    }

    /// Becomes longer by a range that goes on where this one ends: whether it does.
    pub fn extend_by(&mut self, next: &Range) -> bool {
        let goes_on = Arc::ptr_eq(&self.mappings, &next.mappings)
            && self.address + self.span.bytes == next.address
            && self.span.end() == next.span.offset;
        if goes_on {
            self.span.bytes += next.span.bytes;
        }
        goes_on
    }

    /// All of it.
    pub fn pages(&self) -> Pages {
        Pages { address: self.address, bytes: self.span.bytes }
    }
}

/// What is done to each place of an address space where a part of a file is.
pub type Work<'a> = dyn Fn(&Means, Pages, Span) -> Result<(), Trouble> + 'a;

/// An address space.
#[derive(Debug)]
pub struct AddressSpace {
    /// Its number.
    pub mm: Mm,
    /// Its trap.
    pub means: Means,
    /// Where its sentinel page is, in which its number stands.
    pub sentinel: u64,
    /// Its process; that of a forked child is looked for when it is needed.
    pub process: Option<Process>,
    /// The process it was forked by, if that is known.
    pub parent: Option<u32>,
    /// What it maps.
    pub ranges: Vec<Range>,
    /// What of that was found open without having been announced.
    pub unsure: Vec<Range>,
    /// How often its program has tampered with its descriptor.
    pub tampered: u32,
}

impl AddressSpace {
    /// One of which nothing else is known yet.
    pub fn new(mm: Mm, means: Means, sentinel: u64) -> AddressSpace {
        AddressSpace {
            mm,
            means,
            sentinel,
            process: None,
            parent: None,
            ranges: Vec::new(),
            unsure: Vec::new(),
            tampered: 0,
        }
    }

    /// Whether it is no more.
    pub fn is_gone(&self) -> bool {
        matches!(self.means, Means::Gone(_))
    }

    /// What its trap is called in the keeper.
    pub fn held(&self) -> Held {
        Held::Trap { mm: self.mm, trap: self.means.trap(), sentinel: self.sentinel }
    }

    /// The sentinel page.
    pub fn sentinel_page(&self) -> Pages {
        Pages { address: self.sentinel, bytes: rustix::param::page_size() as u64 }
    }

    /// Whether it maps some of a file.
    pub fn maps(&self, mappings: &Arc<Mappings>) -> bool {
        self.ranges.iter().any(|range| Arc::ptr_eq(&range.mappings, mappings))
    }

    /// Does something wherever it maps a part of a file.
    pub fn each(
        &self,
        mappings: &Arc<Mappings>,
        part: Span,
        work: &Work<'_>,
    ) -> Result<(), Trouble> {
        let ranges = self.ranges.iter().filter(|range| Arc::ptr_eq(&range.mappings, mappings));
        for (pages, span) in ranges.filter_map(|range| range.pages_of(part)) {
            work(&self.means, pages, span)?;
        }
        Ok(())
    }

    /// Which file is at an address, and where in it.
    pub fn locate(&self, address: u64) -> Option<(Arc<Mappings>, u64)> {
        let range = self
            .ranges
            .iter()
            .find(|range| range.address <= address && address - range.address < range.span.bytes)?;
        Some((range.mappings.clone(), range.span.offset + (address - range.address)))
    }

    /// A mapping has moved, and what was at its new place is no more.
    pub fn moved(&mut self, from: u64, to: u64, bytes: u64) {
        let cut_by = |ranges: Vec<Range>, address: u64| -> (Vec<Range>, Vec<Range>) {
            let pages = Pages { address, bytes };
            let pieces = ranges.iter().flat_map(|range| cut(range, pages));
            let (within, outside): (Vec<_>, Vec<_>) = pieces.partition(|(_, within)| *within);
            let ranges = |pieces: Vec<(Range, bool)>| pieces.into_iter().map(|piece| piece.0);
            (ranges(within).collect(), ranges(outside).collect())
        };
        let (moving, rest) = cut_by(std::mem::take(&mut self.ranges), from);
        let (_, rest) = cut_by(rest, to);
        let there = |range: Range| Range { address: to + (range.address - from), ..range };
        self.ranges = rest.into_iter().chain(moving.into_iter().map(there)).collect();
    }

    /// Whether it is still there, and nothing is pending.
    pub fn probe(&self) -> Result<(), Trouble> {
        match &self.means {
            Means::Gone(_) => Err(Trouble::Gone),
            Means::Userfaultfd(_, uffd) => uffd.probe(self.sentinel_page()),
            Means::Helper(helper) => {
                helper.probe()?;
                // Its socket may live on in a child.
                match &self.process {
                    Some(process) if !self.is_of(process.pid) => Err(Trouble::Gone),
                    _ => Ok(()),
                }
            }
        }
    }

    /// Whether a process lives in it: its sentinel page says so.
    pub fn is_of(&self, pid: u32) -> bool {
        lives_in(pid, self.mm, self.sentinel)
    }

    /// Whether its program has unmapped the sentinel page, without which nobody can say who it is.
    pub fn has_lost_its_sentinel(&self) -> bool {
        let Some(process) = &self.process else { return false };
        let is_lost = Maps::of(process.pid)
            .is_ok_and(|maps| !maps.is_of_nobody() && !maps.is_anonymous(self.sentinel));
        is_lost && !matches!(self.probe(), Err(Trouble::Gone))
    }

    /// The files it maps, each once.
    pub fn files(&self) -> Vec<Arc<Mappings>> {
        let mut files: Vec<Arc<Mappings>> = Vec::new();
        for range in &self.ranges {
            if !files.iter().any(|known| Arc::ptr_eq(known, &range.mappings)) {
                files.push(range.mappings.clone());
            }
        }
        files
    }
}

/// Whether the sentinel page of a process holds a number. Its memory is read only where it is
/// private and anonymous: whatever else it may have mapped there might keep the reader waiting.
pub fn lives_in(pid: u32, mm: Mm, sentinel: u64) -> bool {
    Maps::of(pid).is_ok_and(|maps| maps.is_anonymous(sentinel))
        && process_maps::word_at(pid, sentinel).is_ok_and(|word| word == mm.0)
}

/// Looks for the process of an address space among some.
pub fn find(mm: Mm, sentinel: u64, pids: &[u32]) -> Option<Process> {
    let candidate = |pid: u32| {
        lives_in(pid, mm, sentinel).then_some(())?;
        let process = Process::of(pid).ok()?;
        // The number may have become another's in between.
        lives_in(pid, mm, sentinel).then_some(process)
    };
    pids.iter().find_map(|&pid| candidate(pid))
}

/// Looks for it among the children of its parent.
pub fn find_child(mm: Mm, sentinel: u64, parent: Option<u32>) -> Option<Process> {
    find(mm, sentinel, &parent.map(process_maps::children).unwrap_or_default())
}

/// Looks for it among the children of its parent, and then everywhere.
pub fn find_anywhere(mm: Mm, sentinel: u64, parent: Option<u32>) -> Option<Process> {
    find_child(mm, sentinel, parent)
        .or_else(|| find(mm, sentinel, &process_maps::processes().unwrap_or_default()))
}

/// The parts of a range before, within and behind some pages, and whether it is the one within.
fn cut(range: &Range, pages: Pages) -> Vec<(Range, bool)> {
    let (start, end) = (range.address, range.address + range.span.bytes);
    let low = pages.address.clamp(start, end);
    let high = (pages.address + pages.bytes).clamp(start, end);
    let part = |from: u64, to: u64, within: bool| {
        let span = Span { offset: range.span.offset + (from - start), bytes: to - from };
        (Range { mappings: range.mappings.clone(), address: from, span }, within)
    };
    let parts = [part(start, low, false), part(low, high, true), part(high, end, false)];
    parts.into_iter().filter(|(part, _)| part.span.bytes > 0).collect()
}
