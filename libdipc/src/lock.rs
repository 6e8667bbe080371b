//! A lock for tables that a forked child inherits in whatever state they are: one that a thread of
//! the parent held is nobody's in the child, and taken over.
//!
//! Its threads sleep in the kernel. Who takes it has all signals blocked, so that no handler finds
//! its own thread holding it. Nothing here touches a thread-local: the helper of the mprotect trap
//! has none.
#![forbid(unsafe_code)]

use std::sync::atomic::{AtomicU32, Ordering};

use crate::sys;
use crate::thread::birth;

/// The lock: 0 when free, else the holder's process number above whether somebody waits.
pub struct Lock(AtomicU32);

/// It is held as long as this lives.
pub struct Held<'a>(&'a Lock);

const AWAITED: u32 = 1;

impl Lock {
    /// A free one.
    pub const fn new() -> Lock {
        Lock(AtomicU32::new(0))
    }

    /// Waits for it.
    pub fn hold(&self) -> Held<'_> {
        let mine = (birth() as u32) << 1;
        let mut wanted = mine;
        loop {
            let found = self.0.load(Ordering::Relaxed);
            if found & !AWAITED != mine {
                let (order, failed) = (Ordering::Acquire, Ordering::Relaxed);
                if self.0.compare_exchange(found, wanted, order, failed).is_ok() {
                    return Held(self);
                }
                continue;
            }
            if self.0.fetch_or(AWAITED, Ordering::Relaxed) & !AWAITED == mine {
                sys::futex_wait(&self.0, mine | AWAITED);
            }
            wanted = mine | AWAITED; // others may still wait
        }
    }

    /// Gives it back for a holder whose [`Held`] was forgotten.
    pub fn release(&self) {
        if self.0.swap(0, Ordering::Release) & AWAITED != 0 {
            sys::futex_wake(&self.0);
        }
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.0.release();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;

    #[test]
    fn one_at_a_time() {
        static LOCK: Lock = Lock::new();
        static INSIDE: AtomicU32 = AtomicU32::new(0);
        static ROUNDS: AtomicU32 = AtomicU32::new(0);
        let work = || {
            for _ in 0..10_000 {
                let _held = LOCK.hold();
                assert_eq!(INSIDE.fetch_add(1, Ordering::Relaxed), 0);
                ROUNDS.fetch_add(1, Ordering::Relaxed);
                INSIDE.fetch_sub(1, Ordering::Relaxed);
            }
        };
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(work);
            }
        });
        assert_eq!(ROUNDS.load(Ordering::Relaxed), 40_000);
        assert_eq!(LOCK.0.load(Ordering::Relaxed), 0, "nobody holds it");
    }

    #[test]
    fn what_another_process_held_is_taken_over() {
        let lock = Lock(AtomicU32::new((birth() as u32 + 7) << 1 | AWAITED));
        drop(lock.hold());
        assert_eq!(lock.0.load(Ordering::Relaxed), 0);
    }
}
