//! How long programs may keep pages from being taken away. What is asked of one program ends when
//! its own time is over; at the end of a lease all of them together have the time of one.
#![forbid(unsafe_code)]

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::clock::now_ms;

/// What a program that runs is given in any case.
const LEAST: Duration = Duration::from_millis(20);

/// How long a program may keep pages from being taken away.
#[derive(Debug)]
pub struct Patience {
    each: Duration,
    /// When all of them must have obeyed, in milliseconds of CLOCK_BOOTTIME; 0: no such time.
    until_ms: AtomicU64,
}

impl Patience {
    /// So long each.
    pub fn new(each: Duration) -> Patience {
        Patience { each, until_ms: AtomicU64::new(0) }
    }

    /// From now on, what all of them have together.
    pub fn hurry(&self) {
        let each_ms = u64::try_from(self.each.as_millis()).unwrap_or(u64::MAX);
        self.until_ms.store(now_ms().saturating_add(each_ms), Ordering::Release);
    }

    /// Each has its own time again.
    pub fn relax(&self) {
        self.until_ms.store(0, Ordering::Release);
    }

    /// What a program has that is asked now.
    pub fn left(&self) -> Duration {
        match self.until_ms.load(Ordering::Acquire) {
            0 => self.each,
            until_ms => {
                let left = Duration::from_millis(until_ms.saturating_sub(now_ms()));
                left.clamp(LEAST.min(self.each), self.each)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn in_a_hurry_all_have_the_time_of_one() {
        let patience = Patience::new(Duration::from_mins(1));
        assert_eq!(patience.left(), Duration::from_mins(1));
        patience.hurry();
        patience.until_ms.fetch_sub(59_900, Ordering::AcqRel);
        assert!((LEAST..=Duration::from_millis(100)).contains(&patience.left()));
        patience.until_ms.fetch_sub(100, Ordering::AcqRel);
        assert_eq!(patience.left(), LEAST, "one that runs obeys at once");
        patience.relax();
        assert_eq!(patience.left(), Duration::from_mins(1));
    }
}
