//! The clock for our own bounds, read from the kernel: programs run under libraries that bend
//! libc's clock.
#![forbid(unsafe_code)]

use rustix::time::{ClockId, clock_gettime};

/// A moment, in nanoseconds of CLOCK_MONOTONIC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment(u64);

impl Moment {
    /// This one.
    pub fn now() -> Moment {
        let time = clock_gettime(ClockId::Monotonic);
        Moment(time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64)
    }

    /// So many nanoseconds from now; for ever is never.
    pub fn after(nanos: u64) -> Moment {
        Moment(Moment::now().0.saturating_add(nanos))
    }

    /// Nanoseconds from now until then, 0 when it has passed.
    pub fn left(self) -> u64 {
        self.0.saturating_sub(Moment::now().0)
    }
}
