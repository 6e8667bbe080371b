//! Which pages a replica asks for before anybody needs them. Faults that follow each other open a
//! window that doubles; its first page is the *trigger*: it is received but not made accessible, so
//! that touching it faults and asks for the window after it, while the program reads this one.
//!
//! ```text
//! fault 7, fault 8 ─▶ ask 9 10; touch 9 ─▶ ask 11..14; touch 11 ─▶ ask 15..22 ...
//! ```
//!
//! A trap shows faults and nothing else, so who skips the trigger or jumps about is seen only at
//! the next fault, and begins anew. A few streams are followed at once: threads read side by side.
#![forbid(unsafe_code)]

use dipc_wire::memory::PageNo;

/// The longest window, in pages. A trigger costs as much as ten pages, so a window is to be long;
/// but home grants all of it in one step, for which others wait: half a millisecond.
pub const AHEAD_MAX: u16 = 128;
/// The first one.
const AHEAD_FIRST: u16 = 2;
/// How many sequences of faults are followed at once.
const STREAMS: usize = 8;

/// What one replica reads ahead.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ReadAhead {
    pages: u32,
    window_max: u16,
    /// The latest first.
    streams: Vec<Stream>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Stream {
    /// The page after the last one that was asked for.
    next: u32,
    /// How long the last window was; 0 before the first.
    window: u16,
    /// The first page of the last window, until it is touched.
    trigger: Option<PageNo>,
}

impl ReadAhead {
    /// For a segment of so many pages; `window_max` 0 reads nothing ahead.
    pub fn new(pages: u32, window_max: u16) -> ReadAhead {
        ReadAhead { pages, window_max: window_max.min(AHEAD_MAX), streams: Vec::new() }
    }

    /// A program waits for this page, to read: how many more are to be asked for behind it.
    pub fn fault(&mut self, page: PageNo) -> u16 {
        if self.window_max == 0 {
            return 0;
        }
        let followed = self.streams.iter().position(|stream| stream.next == page.0);
        let at = followed.unwrap_or_else(|| {
            self.streams.truncate(STREAMS - 1);
            self.streams.push(Stream { next: page.0, window: 0, trigger: None });
            self.streams.len() - 1
        });
        self.streams[..=at].rotate_right(1);
        let stream = &mut self.streams[0];
        stream.next += 1;
        if followed.is_none() {
            return 0;
        }
        stream.open(self.pages, self.window_max).map_or(0, |(_, count)| count)
    }

    /// Whether this page, which nobody waits for, is to be received and not made accessible.
    pub fn is_trigger(&self, page: PageNo) -> bool {
        self.streams.iter().any(|stream| stream.trigger == Some(page))
    }

    /// A program touches a page that was received and not made accessible: the window that is to
    /// be asked for.
    pub fn touched(&mut self, page: PageNo) -> Option<(PageNo, u16)> {
        let at = self.streams.iter().position(|stream| stream.trigger == Some(page))?;
        self.streams[..=at].rotate_right(1);
        self.streams[0].open(self.pages, self.window_max)
    }
}

impl Stream {
    /// Opens the next window, unless the segment ends.
    fn open(&mut self, pages: u32, window_max: u16) -> Option<(PageNo, u16)> {
        let longer = if self.window == 0 { AHEAD_FIRST } else { self.window.saturating_mul(2) };
        self.window = longer.min(window_max);
        let left = pages.saturating_sub(self.next);
        let count = u16::try_from(left).unwrap_or(u16::MAX).min(self.window);
        let first = PageNo(self.next);
        self.trigger = (count > 0).then_some(first);
        self.next += u32::from(count);
        (count > 0).then_some((first, count))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sequence_opens_a_window_that_doubles() {
        let mut ahead = ReadAhead::new(10_000, 64);
        assert_eq!(ahead.fault(PageNo(7)), 0, "one fault is no sequence");
        assert_eq!(ahead.fault(PageNo(8)), 2);
        assert!(ahead.is_trigger(PageNo(9)));
        assert!(!ahead.is_trigger(PageNo(10)));
        let mut windows = Vec::new();
        let mut trigger = PageNo(9);
        for _ in 0..7 {
            let (first, count) = ahead.touched(trigger).expect("a trigger");
            windows.push((first.0, count));
            assert!(!ahead.is_trigger(trigger), "touched once");
            trigger = first;
        }
        let expected = [(11, 4), (15, 8), (23, 16), (39, 32), (71, 64), (135, 64), (199, 64)];
        assert_eq!(windows, expected);
    }

    #[test]
    fn a_window_ends_with_the_segment() {
        let mut ahead = ReadAhead::new(10, 64);
        ahead.fault(PageNo(7));
        assert_eq!(ahead.fault(PageNo(8)), 1);
        assert_eq!(ahead.touched(PageNo(9)), None);
        ahead.fault(PageNo(8));
        assert_eq!(ahead.fault(PageNo(9)), 0);
    }

    #[test]
    fn streams_side_by_side_do_not_disturb_each_other() {
        let mut ahead = ReadAhead::new(100_000, 64);
        for round in 0..2 {
            let asked: Vec<_> =
                (0..8).map(|base| ahead.fault(PageNo(base * 1000 + round))).collect();
            assert_eq!(asked, [if round == 0 { 0 } else { 2 }; 8]);
        }
        for jump in 0..100 {
            assert_eq!(ahead.fault(PageNo(50_000 + jump * 7)), 0);
        }
        assert_eq!(ahead.streams.len(), STREAMS);
    }

    #[test]
    fn nothing_is_read_ahead_of_a_whole_segment() {
        let mut ahead = ReadAhead::new(1, 0);
        assert_eq!(ahead.fault(PageNo(0)), 0);
        assert_eq!(ahead.fault(PageNo(1)), 0);
    }
}
