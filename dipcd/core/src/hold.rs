//! How long an owner keeps a page at least, before home takes it for somebody else.
//!
//! Given `shm_hold_timeout`, always so long. Omitted, nobody waits for a page that changes hands
//! now and then. Of a page that bounces, each time wanted again within a millisecond, every fifth
//! owner keeps it for a while: more gets done in that turn than the carriage of five costs, and who
//! is woken late, his processor being busy, gets to use it. The others pass it on at once, for who
//! hands a lock over, or waits for an answer in the page, has no use for it until it comes back:
//!
//! ```text
//! changes in a row                  1 to 8    9 to 16    more
//! every fifth owner keeps it for      0         1 ms     2 ms
//! ```
//!
//! Each quiet millisecond takes one change off the row. The bound is low because a futex's waker
//! may wait for it: many turns must fit into 20 ms. Only pages that moved lately are known here; a
//! page that a dipcd knew before its restart counts as taken at the restart.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;

use dipc_wire::memory::PageNo;

/// `shm_hold_timeout`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Hold {
    /// It was given: always so long, in milliseconds.
    AtLeast(u64),
    /// It was omitted: nothing for a page that stays, more for one that bounces.
    Adaptive,
}

/// The longest adaptive hold, in milliseconds.
pub const HOLD_MS_MAX: u64 = 2;
/// Changes in a row that lengthen the hold by one stage.
const STAGE: u8 = 8;
/// Where the row stops to count.
const ROW_MAX: u8 = 3 * STAGE - 1;
/// Of so many owners of a page that bounces one keeps it. Odd, so that two take turns at that.
const TURNS: u8 = 5;
/// An adaptive hold has forgotten a page after so much quiet.
const FORGET_MS: u64 = ROW_MAX as u64 + HOLD_MS_MAX + 1;
/// The table is swept when it has grown to this, or to twice what the last sweep left.
const SWEEP_AT: usize = 1024;

/// The pages of one segment that have an owner and moved lately.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Holds {
    hold: Hold,
    started_ms: u64,
    pages: BTreeMap<PageNo, Tenure>,
    sweep_at: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Tenure {
    since_ms: u64,
    row: u8,
    /// Counts owners up to [`TURNS`], the last of whom keeps the page.
    turn: u8,
}

impl Holds {
    /// No page has moved yet.
    pub fn new(hold: Hold, now_ms: u64) -> Holds {
        Holds { hold, started_ms: now_ms, pages: BTreeMap::new(), sweep_at: SWEEP_AT }
    }

    /// The page has an owner now.
    pub fn begins(&mut self, page: PageNo, now_ms: u64) {
        if self.hold == Hold::AtLeast(0) {
            return;
        }
        if self.pages.len() >= self.sweep_at {
            self.sweep(now_ms);
        }
        let tenure = self.pages.entry(page).or_insert(Tenure { since_ms: now_ms, row: 0, turn: 0 });
        tenure.since_ms = now_ms;
    }

    /// Somebody else wants the page: when may it be taken, if not at once?
    pub fn until(&self, page: PageNo, now_ms: u64) -> Option<u64> {
        let tenure = self.pages.get(&page);
        let until_ms = match self.hold {
            // A clock's millisecond may have begun just before it was read.
            Hold::AtLeast(0) => return None,
            Hold::AtLeast(hold_ms) => {
                tenure.map_or(self.started_ms, |tenure| tenure.since_ms) + hold_ms + 1
            }
            Hold::Adaptive => match (tenure?, tenure?.hold_ms()) {
                (_, 0) => return None,
                (tenure, hold_ms) => tenure.since_ms + hold_ms + 1,
            },
        };
        (now_ms < until_ms).then_some(until_ms)
    }

    /// The page is taken from its owner for somebody who wants it.
    pub fn ends(&mut self, page: PageNo, now_ms: u64) {
        let Some(tenure) = self.pages.get_mut(&page) else { return };
        let lasted_ms = now_ms.saturating_sub(tenure.since_ms);
        let quiet_ms = lasted_ms.saturating_sub(tenure.hold_ms() + 1);
        tenure.row = match u8::try_from(quiet_ms) {
            Ok(0) => (tenure.row + 1).min(ROW_MAX),
            Ok(quiet) => tenure.row.saturating_sub(quiet),
            Err(_) => 0,
        };
        tenure.turn = (tenure.turn + 1) % TURNS;
        tenure.since_ms = now_ms;
    }

    fn sweep(&mut self, now_ms: u64) {
        let remember_ms = match self.hold {
            Hold::AtLeast(hold_ms) => hold_ms + 1,
            Hold::Adaptive => FORGET_MS,
        };
        self.pages.retain(|_, tenure| now_ms.saturating_sub(tenure.since_ms) < remember_ms);
        self.sweep_at = (2 * self.pages.len()).max(SWEEP_AT);
    }
}

impl Tenure {
    fn hold_ms(&self) -> u64 {
        if self.turn + 1 == TURNS { u64::from(self.row / STAGE).min(HOLD_MS_MAX) } else { 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: PageNo = PageNo(3);

    /// Hand-overs as fast as they are allowed; the waits before each.
    fn bounce(holds: &mut Holds, now_ms: &mut u64, times: usize) -> Vec<u64> {
        let mut waits = Vec::new();
        for _ in 0..times {
            holds.begins(PAGE, *now_ms);
            let until_ms = holds.until(PAGE, *now_ms).unwrap_or(*now_ms);
            waits.push(until_ms - *now_ms);
            *now_ms = until_ms;
            holds.ends(PAGE, *now_ms);
        }
        waits
    }

    #[test]
    fn every_fifth_owner_of_a_page_that_bounces_keeps_it_up_to_a_bound() {
        let mut holds = Holds::new(Hold::Adaptive, 0);
        let waits = bounce(&mut holds, &mut 1000, 60);
        assert_eq!(waits[..9], [0; 9], "the first hand-overs wait for nothing");
        assert_eq!(waits[9..15], [2, 0, 0, 0, 0, 2], "at least one whole millisecond");
        let kept: Vec<_> = waits.iter().copied().filter(|wait| *wait > 0).collect();
        assert!(kept.is_sorted());
        assert_eq!(kept.len(), 60 / usize::from(TURNS) - 1);
        assert_eq!(waits[59], HOLD_MS_MAX + 1);
    }

    #[test]
    fn quiet_shortens_it() {
        let (mut holds, mut now_ms) = (Holds::new(Hold::Adaptive, 0), 1000);
        bounce(&mut holds, &mut now_ms, 59);
        holds.begins(PAGE, now_ms);
        now_ms += 20;
        assert_eq!(holds.until(PAGE, now_ms), None, "it was kept long enough");
        holds.ends(PAGE, now_ms);
        let waits = bounce(&mut holds, &mut now_ms, 10);
        assert_eq!(waits, [0, 0, 0, 0, 2, 0, 0, 0, 0, 2], "less, when it bounces again");
        holds.begins(PAGE, now_ms);
        holds.ends(PAGE, now_ms + 500);
        assert_eq!(bounce(&mut holds, &mut now_ms, 5), [0; 5], "all is forgotten");
    }

    #[test]
    fn a_given_hold_is_always_kept_also_over_a_restart() {
        let mut holds = Holds::new(Hold::AtLeast(50), 1000);
        assert_eq!(holds.until(PAGE, 1010), Some(1051), "who had it before the restart");
        assert_eq!(holds.until(PAGE, 1051), None);
        holds.begins(PAGE, 2000);
        assert_eq!(holds.until(PAGE, 2050), Some(2051));
        assert_eq!(holds.until(PAGE, 2051), None);
        assert_eq!(Holds::new(Hold::AtLeast(0), 0).until(PAGE, 0), None);
    }

    #[test]
    fn pages_that_stay_are_forgotten() {
        let mut holds = Holds::new(Hold::Adaptive, 0);
        for page in 0..100_000 {
            holds.begins(PageNo(page), u64::from(page));
        }
        assert!(holds.pages.len() <= SWEEP_AT, "{} pages", holds.pages.len());
    }
}
