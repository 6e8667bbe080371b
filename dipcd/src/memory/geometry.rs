//! How a segment is cut into pages: units of `dipc_page_size` bytes, or the segment as one unit.
//! A file of it has whole pages of the system; its last unit may be shorter than the others.
#![forbid(unsafe_code)]

use dipc_wire::limits::PART_BYTES;
use dipc_wire::memory::PageNo;
use dipc_wire::preamble::TransferMode;

use crate::config::Transfer;
use crate::memory::files::Span;

use dipc_core::copies::Run;

/// Sizes of one segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Bytes of a file of it: whole pages of the system.
    pub file_bytes: u64,
    /// Bytes of a unit.
    pub unit_bytes: u64,
    /// How many units.
    pub pages: u32,
}

impl Geometry {
    /// Of a segment of so many bytes; `None` if it has more pages than can be numbered, or a unit
    /// that is none.
    pub fn of(bytes: u64, unit_bytes: u64) -> Option<Geometry> {
        let system = rustix::param::page_size() as u64;
        let file_bytes = bytes.checked_next_multiple_of(system)?;
        if bytes == 0 || unit_bytes == 0 || !unit_bytes.is_multiple_of(system) {
            return None;
        }
        let pages = u32::try_from(file_bytes.div_ceil(unit_bytes)).ok()?;
        Some(Geometry { file_bytes, unit_bytes, pages })
    }

    /// The unit of a new segment of so many bytes.
    pub fn unit_of(bytes: u64, transfer: &Transfer) -> u64 {
        match transfer.mode {
            TransferMode::Page => u64::from(transfer.page_bytes),
            TransferMode::Segment => bytes.next_multiple_of(rustix::param::page_size() as u64),
        }
    }

    /// Where a page lies; `None` beyond the segment.
    pub fn span(&self, page: PageNo) -> Option<Span> {
        self.run(Run::one(page))
    }

    /// Where pages side by side lie, as far as they belong to the segment.
    pub fn run(&self, run: Run) -> Option<Span> {
        let offset = u64::from(run.first.0) * self.unit_bytes;
        let bytes = u64::from(run.count) * self.unit_bytes;
        Span { offset, bytes }.and(Span { offset: 0, bytes: self.file_bytes })
    }

    /// All of it.
    pub fn all(&self) -> Span {
        Span { offset: 0, bytes: self.file_bytes }
    }

    /// The page of an offset.
    pub fn page_at(&self, offset: u64) -> Option<PageNo> {
        let page = u32::try_from(offset / self.unit_bytes).ok()?;
        (offset < self.file_bytes).then_some(PageNo(page))
    }

    /// How many pages, but for parts, fit into one buffer.
    pub fn buffer_pages(&self) -> u32 {
        u32::try_from(PART_BYTES as u64 / self.unit_bytes).unwrap_or(u32::MAX).max(1)
    }

    /// Whether a page travels in parts.
    pub fn in_parts(&self) -> bool {
        self.unit_bytes > PART_BYTES as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn geometry(bytes: u64, mode: TransferMode, page_bytes: u32) -> Geometry {
        let transfer = Transfer { mode, page_bytes };
        Geometry::of(bytes, Geometry::unit_of(bytes, &transfer)).unwrap()
    }

    #[test]
    fn the_last_page_ends_with_the_file() {
        let cut = geometry(70_000, TransferMode::Page, 65_536);
        assert_eq!((cut.pages, cut.file_bytes), (2, 73_728));
        assert_eq!(cut.span(PageNo(1)), Some(Span { offset: 65_536, bytes: 8192 }));
        assert_eq!(cut.span(PageNo(2)), None);
        assert_eq!((cut.page_at(65_535), cut.page_at(73_727)), (Some(PageNo(0)), Some(PageNo(1))));
        assert_eq!(cut.page_at(73_728), None);
    }

    #[test]
    fn a_segment_may_be_one_page() {
        let whole = geometry(5 << 20, TransferMode::Segment, 4096);
        assert_eq!((whole.pages, whole.unit_bytes), (1, 5 << 20));
        assert!(whole.in_parts());
        assert_eq!(whole.span(PageNo(0)), Some(whole.all()));
        assert!(!geometry(100, TransferMode::Segment, 65_536).in_parts());
        assert_eq!(Geometry::of(4096, 100), None);
        assert_eq!(Geometry::of(u64::MAX - 1, 4096), None);
    }
}
