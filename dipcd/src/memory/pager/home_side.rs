//! A segment at its home: the directory of dipc-core, its records, and home's own file. Pages that
//! nobody ever touched are holes of that file, made in runs when a program needs one.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use dipc_core::copies::{CopyStep, Records, Run};
use dipc_core::directory::{Directory, Effect, Event, Holding, PageRecord};
use dipc_wire::ids::NodeId;
use dipc_wire::memory::{Access, PageNo, Replica, ToHome};
use dipc_wire::peer::Piece;

use super::buffers::Buffers;
use super::content::Contents;
use super::node_file::NodeFile;
use super::segment::{HEALED_MAX, Segment};
use super::shared::Note;
use crate::memory::files::Span;
use crate::memory::geometry::Geometry;
use crate::memory::records::HomeRecords;
use crate::memory::segments::{Holder, Segments};

/// Bytes of pages never touched that one fault fills at once.
const FILL_BYTES: u64 = 256 << 10;

/// The directory and what belongs to it.
pub struct HomeSide {
    /// Who decides.
    pub machine: Directory,
    /// What it has recorded.
    pub records: HomeRecords,
    /// Home's own file.
    pub file: NodeFile,
    /// The other files of the segment, and whose they are.
    pub holders: BTreeMap<Replica, Holder>,
    /// Where that is kept.
    pub segments: Arc<Segments>,
    /// Whether another file than home's was ever there: until then the kernel serves its programs.
    pub shared: bool,
    pub(super) effects: Vec<Effect>,
    geometry: Geometry,
}

impl HomeSide {
    /// Whether the last other file is gone, and access is still watched.
    pub fn is_alone(&self) -> bool {
        self.shared && self.holders.is_empty()
    }

    /// Puts one together.
    pub fn new(
        machine: Directory,
        records: HomeRecords,
        file: NodeFile,
        holders: BTreeMap<Replica, Holder>,
        segments: Arc<Segments>,
        geometry: Geometry,
    ) -> HomeSide {
        let (shared, effects) = (!holders.is_empty(), Vec::new());
        HomeSide { machine, records, file, holders, segments, shared, effects, geometry }
    }

    /// Gives a page to home's programs for writing. One that nobody ever touched comes with those
    /// behind it that nobody touched either.
    pub(super) fn open(&mut self, page: PageNo) -> io::Result<()> {
        if self.records.get(page) != PageRecord::NEVER {
            // It may have been granted to others as zeros before anybody touched it here.
            self.file.fill_holes(Run::one(page))?;
            self.file.open(Run::one(page));
            return Ok(());
        }
        let most = u32::try_from(FILL_BYTES / self.geometry.unit_bytes).unwrap_or(1).max(1);
        let end = page.0.saturating_add(most).min(self.geometry.pages);
        let untouched = |page: &u32| self.records.get(PageNo(*page)) == PageRecord::NEVER;
        let count = (page.0..end).take_while(untouched).count() as u32;
        let run = Run { first: page, count: count.max(1) };
        self.file.fill_holes(run)?;
        self.file.open(run);
        Ok(())
    }

    /// Wakes home's readers of a page. One that was granted as zeros before anybody touched it here
    /// is made first, or they would fault for ever.
    pub(super) fn wake(&mut self, page: PageNo, buffers: &Buffers) -> io::Result<()> {
        let (run, none) = (Run::one(page), Contents::none());
        let record = self.records.get(page);
        if record.is_in_home_file() && matches!(record.holding, Holding::Shared(_)) {
            self.file.carry_out(&CopyStep::Protect(run), &none, buffers)?;
            self.file.fill_holes(run)?;
        }
        self.file.carry_out(&CopyStep::Wake(page), &none, buffers)
    }

    /// Pages that gave SIGBUS to home's programs because they came too late, and may come by this
    /// frame, or now that their owner has held them long enough. Nobody faults there any more, so
    /// they are to be asked for.
    pub(super) fn late(&self, event: &Event) -> Vec<PageNo> {
        let mappings = &self.file.mappings;
        let frame = match event {
            Event::Frame { frame, .. } => frame,
            Event::Tick => return self.poisoned(),
            _ => return Vec::new(),
        };
        let is_late = |page: &PageNo| {
            self.geometry.span(*page).is_some_and(|span| mappings.is_poisoned(span))
        };
        match frame {
            ToHome::Recalled { granted, .. } | ToHome::Released { granted } => {
                Some(granted.page).filter(is_late).into_iter().collect()
            }
            // It could not be recalled before.
            ToHome::Ack { pages } => pages.iter().map(|(page, _)| *page).filter(is_late).collect(),
            ToHome::Invalidated { page, .. } => Some(*page).filter(is_late).into_iter().collect(),
            ToHome::Report { piece: Piece::Last, .. } => self.poisoned(),
            _ => Vec::new(),
        }
    }

    /// Pages that give SIGBUS to home's programs and are not lost for good.
    fn poisoned(&self) -> Vec<PageNo> {
        let poisoned = self.file.mappings.poisoned();
        let pages = poisoned.iter().filter_map(|offset| self.geometry.page_at(*offset));
        let is_lost = |page: &PageNo| self.records.get(*page).holding == Holding::Lost;
        let mut pages: Vec<PageNo> = pages.filter(|page| !is_lost(page)).collect();
        pages.dedup();
        pages.truncate(HEALED_MAX);
        pages
    }

    /// A file of the segment is no more; the node it was on.
    pub(super) fn gone(&mut self, segment: &Segment, replica: Replica) -> Option<NodeId> {
        let holder = self.holders.remove(&replica);
        self.segments.remove_replica(segment.id, replica);
        segment.shared.note(Note::Gone { id: segment.id, replica });
        holder.map(|holder| holder.node)
    }

    /// Tells home's programs what they have become.
    pub(super) fn tell(&mut self) {
        let records = &self.records;
        self.file.tell(|page| access_by(&records.get(page)));
    }

    /// What a program that attaches home's file may do where.
    pub fn held(&self) -> Vec<(Span, Access)> {
        let all = self.geometry.all();
        if !self.shared {
            return vec![(all, Access::Write)];
        }
        let (next, access) = (|from| self.records.next(from), |page| self.access(page));
        held_runs(&self.geometry, next, access, Some(Access::Write))
    }

    /// What home's programs may do with a page.
    pub fn access(&self, page: PageNo) -> Option<Access> {
        access_by(&self.records.get(page))
    }
}

fn access_by(record: &PageRecord) -> Option<Access> {
    match record.holding {
        _ if !record.is_in_home_file() => None,
        Holding::Owned { .. } => Some(Access::Write),
        _ => Some(Access::Read),
    }
}

/// Runs of equal access; what has no record is `other`.
pub(super) fn held_runs(
    geometry: &Geometry,
    next: impl Fn(PageNo) -> Option<PageNo>,
    access: impl Fn(PageNo) -> Option<Access>,
    other: Option<Access>,
) -> Vec<(Span, Access)> {
    let mut runs: Vec<(Span, Access)> = Vec::new();
    let mut add = |first: u32, end: u32, access: Option<Access>| {
        let run = Run { first: PageNo(first), count: end.saturating_sub(first) };
        let (Some(access), Some(span)) = (access, geometry.run(run)) else { return };
        match runs.last_mut() {
            Some((last, of)) if *of == access && last.end() == span.offset => {
                last.bytes += span.bytes;
            }
            _ => runs.push((span, access)),
        }
    };
    let mut at = 0;
    while at < geometry.pages {
        let recorded = next(PageNo(at)).map_or(geometry.pages, |page| page.0);
        add(at, recorded, other);
        if recorded < geometry.pages {
            add(recorded, recorded + 1, access(PageNo(recorded)));
        }
        at = recorded + 1;
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_access_makes_one_run() {
        let geometry = Geometry::of(8 * 4096, 4096).unwrap();
        let next = |from: PageNo| (from.0..6).find(|page| (2..6).contains(page)).map(PageNo);
        let access = |page: PageNo| match page.0 {
            2 => Some(Access::Write),
            3 => None,
            _ => Some(Access::Read),
        };
        let runs = held_runs(&geometry, next, access, Some(Access::Write));
        let pages = |span: &Span| (span.offset / 4096, span.bytes / 4096);
        let runs: Vec<_> = runs.iter().map(|(span, access)| (pages(span), *access)).collect();
        let (read, write) = (Access::Read, Access::Write);
        assert_eq!(runs, vec![((0, 3), write), ((4, 2), read), ((6, 2), write)]);
    }
}
