//! The clock of heartbeats, leases and time-outs: CLOCK_BOOTTIME, which goes on in suspend, so
//! that a machine that slept knows how long it was away.
#![forbid(unsafe_code)]

use rustix::time::{ClockId, clock_gettime};
use std::time::Duration;

/// Milliseconds since the machine was started.
pub fn now_ms() -> u64 {
    let now = clock_gettime(ClockId::Boottime);
    let seconds = u64::try_from(now.tv_sec).expect("the clock began at 0");
    let nanoseconds = u64::try_from(now.tv_nsec).expect("a part of a second");
    seconds * 1000 + nanoseconds / 1_000_000
}

/// A bound on a wait; `None` waits for ever.
#[derive(Clone, Copy, Debug)]
pub struct Deadline(Option<u64>);

impl Deadline {
    /// So long from now; `None` is never.
    pub fn after(wait: Option<Duration>) -> Deadline {
        Deadline(wait.map(|wait| {
            let wait_ms = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
            now_ms().saturating_add(wait_ms)
        }))
    }

    /// The earlier of two.
    #[must_use]
    pub fn or_after(self, wait: Duration) -> Deadline {
        let Deadline(Some(other)) = Deadline::after(Some(wait)) else { return self };
        Deadline(Some(self.0.map_or(other, |own| own.min(other))))
    }

    /// What is left: zero when it has passed, a long time when it never will.
    pub fn left(self) -> Duration {
        match self.0 {
            None => Duration::from_secs(3600),
            Some(at) => Duration::from_millis(at.saturating_sub(now_ms())),
        }
    }

    /// Whether it has passed.
    pub fn is_over(self) -> bool {
        self.0.is_some_and(|at| at <= now_ms())
    }
}
