//! How long an owner keeps a page at least, before home takes it for somebody else.
#![forbid(unsafe_code)]

/// `shm_hold_timeout`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Hold {
    /// It was given: always so long, in milliseconds.
    AtLeast(u64),
    /// It was omitted: nothing for a page that stays, more for one that bounces.
    Adaptive,
}
