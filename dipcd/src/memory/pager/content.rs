//! The contents that travel behind a frame of the page protocol: one page after the other, each
//! exactly as long as its page. What does not keep to that is not looked at any further. They lie
//! in memory that does not fault (`sys/buffer.rs`): pages are filled from where they lie.
#![forbid(unsafe_code)]

use dipc_wire::memory::{Content, Granted, PageNo, ToHome, ToReplica};

use crate::memory::geometry::Geometry;

/// Why a frame is not to be believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bad {
    /// A page beyond the segment.
    OutOfRange,
    /// Pages that do not grow within a frame.
    Disorder,
    /// Contents that are longer or shorter than their pages.
    Length,
    /// Content where none may be, or parts that did not come.
    Unexpected,
}

/// Where in the raw bytes each page lies.
#[derive(Debug, Default)]
pub struct Contents<'a> {
    raw: &'a [u8],
    pages: Vec<(PageNo, usize)>,
    in_parts: Vec<PageNo>,
}

impl<'a> Contents<'a> {
    /// Nothing.
    pub fn none() -> Contents<'a> {
        Contents::default()
    }

    /// What came behind a frame to home.
    pub fn to_home(
        geometry: &Geometry,
        frame: &ToHome,
        raw: &'a [u8],
    ) -> Result<Contents<'a>, Bad> {
        match frame {
            ToHome::Recalled { granted, .. } | ToHome::Released { granted } => {
                Contents::of(geometry, std::iter::once(granted), raw)
            }
            ToHome::Report { pages, .. } => {
                Contents::of(geometry, pages.iter().map(|page| &page.granted), raw)
            }
            _ => Contents::of(geometry, std::iter::empty(), raw),
        }
    }

    /// What came behind a frame to a replica.
    pub fn to_replica(
        geometry: &Geometry,
        frame: &ToReplica,
        raw: &'a [u8],
    ) -> Result<Contents<'a>, Bad> {
        match frame {
            ToReplica::Grant { pages, .. } => Contents::of(geometry, pages.iter(), raw),
            _ => Contents::of(geometry, std::iter::empty(), raw),
        }
    }

    fn of<'g>(
        geometry: &Geometry,
        granted: impl Iterator<Item = &'g Granted>,
        raw: &'a [u8],
    ) -> Result<Contents<'a>, Bad> {
        let mut contents = Contents { raw, ..Contents::default() };
        let (mut last, mut offset) = (None, 0);
        for Granted { page, content, .. } in granted {
            let span = geometry.span(*page).ok_or(Bad::OutOfRange)?;
            if last.is_some_and(|last| last >= *page) {
                return Err(Bad::Disorder);
            }
            last = Some(*page);
            match content {
                Content::None | Content::Zero => {}
                Content::Parts if geometry.in_parts() => contents.in_parts.push(*page),
                Content::Raw if !geometry.in_parts() => {
                    contents.pages.push((*page, offset));
                    offset += span.bytes as usize;
                }
                Content::Parts | Content::Raw => return Err(Bad::Unexpected),
            }
        }
        if offset == raw.len() { Ok(contents) } else { Err(Bad::Length) }
    }

    /// The pages whose content came in parts before.
    pub fn in_parts(&self) -> &[PageNo] {
        &self.in_parts
    }

    /// Whether a page came raw.
    pub fn has(&self, page: PageNo) -> bool {
        self.pages.binary_search_by_key(&page, |(page, _)| *page).is_ok()
    }

    /// The bytes of a page that came raw, or of pages side by side that all did: `bytes` in all.
    pub fn pages_from(&self, first: PageNo, bytes: usize) -> Option<&'a [u8]> {
        let at = self.pages.binary_search_by_key(&first, |(page, _)| *page).ok()?;
        self.raw.get(self.pages[at].1..)?.get(..bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dipc_wire::memory::{Access, GrantNo};

    fn grant(pages: &[(u32, Content)]) -> ToReplica {
        let granted =
            |&(page, content)| Granted { page: PageNo(page), number: GrantNo(1), content };
        ToReplica::Grant { access: Access::Read, pages: pages.iter().map(granted).collect() }
    }

    #[test]
    fn each_page_finds_its_bytes() {
        let geometry = Geometry::of(12_288, 8192).unwrap();
        let mut raw = vec![1; 8192];
        raw.extend([2; 4096]);
        let frame = grant(&[(0, Content::Raw), (1, Content::Raw)]);
        let contents = Contents::to_replica(&geometry, &frame, &raw).unwrap();
        assert_eq!(contents.pages_from(PageNo(0), 8192), Some(&raw[..8192]));
        assert_eq!(contents.pages_from(PageNo(1), 4096), Some(&raw[8192..]));
        assert_eq!(contents.pages_from(PageNo(0), 12_288), Some(&raw[..]));
        assert_eq!(contents.pages_from(PageNo(1), 8192), None);
        assert_eq!(contents.pages_from(PageNo(2), 4096), None);
        let zero = grant(&[(0, Content::Zero), (1, Content::Raw)]);
        let contents = Contents::to_replica(&geometry, &zero, &raw[..4096]).unwrap();
        assert_eq!(contents.pages_from(PageNo(0), 8192), None);
        assert_eq!(contents.pages_from(PageNo(1), 4096), Some(&raw[..4096]));
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let geometry = Geometry::of(8192, 4096).unwrap();
        let refused = |pages: &[(u32, Content)], raw: usize| {
            Contents::to_replica(&geometry, &grant(pages), &vec![0; raw]).unwrap_err()
        };
        assert_eq!(refused(&[(0, Content::Raw)], 4095), Bad::Length);
        assert_eq!(refused(&[(0, Content::None)], 1), Bad::Length);
        assert_eq!(refused(&[(2, Content::Zero)], 0), Bad::OutOfRange);
        assert_eq!(refused(&[(1, Content::Zero), (0, Content::Zero)], 0), Bad::Disorder);
        assert_eq!(refused(&[(0, Content::Parts)], 0), Bad::Unexpected);
        let invalidate = ToReplica::Invalidate { page: PageNo(0), number: GrantNo(1) };
        assert_eq!(Contents::to_replica(&geometry, &invalidate, &[0]).unwrap_err(), Bad::Length);
    }
}
