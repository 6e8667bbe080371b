//! Lines about who is turned away: each with who it was and why, but so many and no more. A flood
//! of strangers, or a program that asks for ever, must not fill a disk.
//!
//! In ten seconds each address or user gets some lines, and all together more, and a program none
//! twice; of the rest one line tells, when the ten seconds are over, how many there were.
#![forbid(unsafe_code)]

use parking_lot::Mutex;
use std::collections::{HashMap, HashSet};
use std::fmt;
use std::net::IpAddr;

use crate::clock::now_ms;

/// How long lines are counted.
const WINDOW_MS: u64 = 10_000;
/// Lines about one address or user in that time.
const LINES_OF_ONE: u32 = 20;
/// Lines about all.
const LINES_OF_ALL: u32 = 200;

/// Who is turned away.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Who {
    /// Somebody at this address.
    Address(IpAddr),
    /// A program of this user.
    User(u32),
}

#[derive(Default)]
struct Window {
    began_ms: u64,
    shown: HashMap<Who, u32>,
    /// Of which programs, and why; what is hidden is not in it.
    said: HashSet<(u32, String)>,
    shown_in_all: u32,
    hidden: u64,
}

/// Who was turned away lately.
#[derive(Default)]
pub struct Refusals {
    window: Mutex<Window>,
}

impl Refusals {
    /// Somebody at this address is turned away; `peer` is the address as the line shows it.
    pub fn of_peer(&self, address: IpAddr, peer: impl fmt::Display, reason: impl fmt::Display) {
        if self.shows(Who::Address(address)) {
            tracing::warn!(op = "accept", %peer, %reason);
        }
    }

    /// A local program is turned away.
    pub fn of_program(&self, pid: u32, uid: u32, reason: impl fmt::Display) {
        let reason = reason.to_string();
        self.settle();
        let mut window = self.window.lock();
        if window.was_said(pid, &reason) {
            window.hidden += 1;
        } else if window.shows(Who::User(uid), now_ms()) {
            window.said.insert((pid, reason.clone()));
            drop(window);
            tracing::warn!(op = "call", pid, uid, %reason);
        }
    }

    /// Says how many lines were kept back, once their time is over.
    pub fn settle(&self) {
        if let Some(hidden) = self.window.lock().over(now_ms()) {
            tracing::warn!(op = "refused", hidden, "so many more in ten seconds");
        }
    }

    fn shows(&self, who: Who) -> bool {
        self.settle();
        self.window.lock().shows(who, now_ms())
    }
}

impl Window {
    fn was_said(&self, pid: u32, reason: &str) -> bool {
        self.said.contains(&(pid, reason.to_owned()))
    }

    fn shows(&mut self, who: Who, now_ms: u64) -> bool {
        if self.shown_in_all == 0 && self.hidden == 0 {
            self.began_ms = now_ms;
        }
        let of_one = self.shown.get(&who).copied().unwrap_or(0);
        if of_one >= LINES_OF_ONE || self.shown_in_all >= LINES_OF_ALL {
            self.hidden += 1;
            return false;
        }
        self.shown.insert(who, of_one + 1);
        self.shown_in_all += 1;
        true
    }

    /// Ends a window whose time is over: how many were hidden in it, if any.
    fn over(&mut self, now_ms: u64) -> Option<u64> {
        if now_ms.saturating_sub(self.began_ms) < WINDOW_MS {
            return None;
        }
        let hidden = std::mem::take(self).hidden;
        (hidden > 0).then_some(hidden)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_counted_and_others_are_still_named() {
        let mut window = Window::default();
        let shown = |window: &mut Window, who, times| {
            (0..times).filter(|_| window.shows(who, 1_000)).count()
        };
        assert_eq!(shown(&mut window, Who::User(7), 1_000), LINES_OF_ONE as usize);
        assert_eq!(shown(&mut window, Who::User(8), 3), 3);
        for last in 0..=255 {
            shown(&mut window, Who::Address(IpAddr::from([10, 0, 0, last])), 5);
        }
        assert_eq!(window.shown_in_all, LINES_OF_ALL);
        assert!(window.shown.len() <= LINES_OF_ALL as usize, "what is hidden takes no memory");
        assert_eq!(window.over(10_999), None);
        let all = 1_000 + 3 + 256 * 5;
        assert_eq!(window.over(11_000), Some(all - u64::from(LINES_OF_ALL)));
        assert_eq!(window.over(30_000), None, "said once");
        assert!(window.shows(Who::User(7), 31_000), "a new window");
    }
}
