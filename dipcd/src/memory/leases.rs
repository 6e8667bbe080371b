//! Until when the pages of other homes may be used here, in a small mapped file that dipcd and its
//! keeper share: dipcd writes when each lease ends, and that it has ended it; where dipcd is dead
//! or stopped, the keeper does.
//!
//! ```text
//! word 0         how often the keeper has stepped in
//! word N         the end of the lease of home N, in milliseconds of CLOCK_BOOTTIME; 0: none yet
//! word 64 + N    the end of the lease that was ended: access to that home's pages is taken away
//! word 129       how long taking access away may last, in milliseconds; 0: not said yet
//! word 130       when dipcd did some of it last
//! ```
#![forbid(unsafe_code)]

use std::io;
use std::path::Path;
use std::time::Duration;

use dipc_wire::ids::NodeId;
use dipc_wire::limits::NODES_MAX;

use crate::clock::now_ms;
use crate::sys::words::Words;

const FILE_NAME: &str = "leases";
const NODES: usize = NODES_MAX as usize;
const ROOM: usize = 1 + 2 * NODES;
const WORKED: usize = ROOM + 1;
/// What is left of `node_timeout` after a lease while nobody has said it.
const ROOM_UNSAID: Duration = Duration::from_secs(1);
/// A helper thread on a busy machine has been seen to take 200 ms; and a page is not kept so long
/// that its home closes the link (`shm_ak_timeout`).
const PATIENCE_MIN: Duration = Duration::from_millis(100);
const PATIENCE_MAX: Duration = Duration::from_secs(5);
const GRACE_MIN: Duration = Duration::from_millis(60);
const GRACE_MAX: Duration = Duration::from_millis(500);

/// The leases of this node.
#[derive(Debug)]
pub struct Leases(Words);

impl Leases {
    /// Opens those in a directory, or makes them.
    pub fn open(dir: &Path) -> io::Result<Leases> {
        Words::open(&dir.join(FILE_NAME), WORKED + 1).map(Leases)
    }

    /// Home has answered a heartbeat that was sent at `sent_ms`. `true` if its lease was over.
    pub fn answered(&self, home: NodeId, sent_ms: u64, lease_ms: u64) -> bool {
        // A home that echoes what was never sent does not get a longer one.
        let sent_ms = sent_ms.min(now_ms());
        let before = self.ends_ms(home);
        let ends_ms = before.max(sent_ms.saturating_add(lease_ms));
        self.0.set(index(home), ends_ms);
        before <= now_ms() && ends_ms > now_ms()
    }

    /// When the lease of a home ends.
    pub fn ends_ms(&self, home: NodeId) -> u64 {
        self.0.get(index(home))
    }

    /// Whether it is over.
    pub fn is_over(&self, home: NodeId) -> bool {
        self.ends_ms(home) <= now_ms()
    }

    /// Access to a home's pages was taken away.
    pub fn set_ended(&self, home: NodeId, ends_ms: u64) {
        self.0.set(NODES + index(home), ends_ms);
    }

    /// Whether access to a home's pages was taken away since its lease is over.
    pub fn is_ended(&self, home: NodeId) -> bool {
        self.0.get(NODES + index(home)) == self.ends_ms(home)
    }

    /// What is left between the end of a lease and the time when its home gives the pages away.
    pub fn set_room(&self, room: Duration) {
        let room_ms = u64::try_from(room.as_millis()).unwrap_or(u64::MAX);
        self.0.set(ROOM, room_ms.max(1));
    }

    fn room(&self) -> Duration {
        match self.0.get(ROOM) {
            0 => ROOM_UNSAID,
            room_ms => Duration::from_millis(room_ms),
        }
    }

    /// How long one program may take of that: half of it. At the end of a lease all of them
    /// together may.
    pub fn patience(&self) -> Duration {
        (self.room() / 2).clamp(PATIENCE_MIN, PATIENCE_MAX)
    }

    /// For how long the keeper looks on while dipcd does nothing about a lease that is over.
    pub fn grace(&self) -> Duration {
        (self.room() / 8).clamp(GRACE_MIN, GRACE_MAX)
    }

    /// What is left for the pages themselves, if programs are given time to obey, or need none.
    pub fn room_for_pages(&self, by_helpers: bool) -> Duration {
        let obeying = if by_helpers { self.patience() } else { Duration::ZERO };
        self.room().saturating_sub(self.grace() + obeying)
    }

    /// dipcd is at it: the keeper need not step in yet.
    pub fn works(&self) {
        self.0.set(WORKED, now_ms());
    }

    /// When dipcd was at it last.
    pub fn worked_ms(&self) -> u64 {
        self.0.get(WORKED)
    }

    /// How often the keeper has stepped in. A step of a machine in which it does is worth nothing.
    pub fn interventions(&self) -> u64 {
        self.0.get(0)
    }

    /// The keeper steps in.
    pub fn intervene(&self) {
        self.0.set(0, self.interventions() + 1);
    }
}

fn index(home: NodeId) -> usize {
    usize::from(home.number())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_is_seen_by_whoever_opens_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let (leases, keeper) =
            (Leases::open(dir.path()).unwrap(), Leases::open(dir.path()).unwrap());
        let home = NodeId::new(64).unwrap();
        assert!(keeper.is_over(home) && keeper.is_ended(home), "there was none");
        assert!(leases.answered(home, now_ms(), 60_000));
        assert!(!leases.answered(home, now_ms(), 60_000), "it goes on");
        assert!(!keeper.is_over(home) && !keeper.is_ended(home));
        assert!(!leases.answered(home, u64::MAX, 60_000), "nothing is sent before its time");
        assert!(keeper.ends_ms(home) <= now_ms() + 60_000);
        keeper.set_ended(home, keeper.ends_ms(home));
        keeper.intervene();
        assert!(leases.is_ended(home));
        assert_eq!(leases.interventions(), 1);
        leases.works();
        assert!(keeper.worked_ms() <= now_ms() && keeper.worked_ms() > 0);
    }

    #[test]
    fn what_is_left_of_node_timeout_is_shared_out() {
        let dir = tempfile::tempdir().unwrap();
        let leases = Leases::open(dir.path()).unwrap();
        let ms = Duration::from_millis;
        assert_eq!(leases.patience(), ms(500), "nobody has said");
        // node_timeout and lease by default, at least, and long.
        for (room, patience, grace, pages, with_helpers) in [
            (1940, 970, 242, 1697, 727),
            (200, 100, 60, 140, 40),
            (60_000, 5000, 500, 59_500, 54_500),
        ] {
            leases.set_room(ms(room));
            assert_eq!((leases.patience(), leases.grace().as_millis()), (ms(patience), grace));
            assert_eq!(leases.room_for_pages(false).as_millis(), pages);
            assert_eq!(leases.room_for_pages(true).as_millis(), with_helpers);
        }
    }
}
