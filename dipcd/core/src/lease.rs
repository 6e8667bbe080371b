//! For how long the pages of a home may be used, and when a node is lost: two clocks that never
//! meet, kept apart by `node_timeout` being longer than a lease and what it takes to end it.
//!
//! A node counts from when it *sent* the heartbeat that home answered last; home counts from when
//! it last *heard* of the node, which is later. Times are milliseconds of CLOCK_BOOTTIME, which
//! goes on while a machine sleeps; clocks may differ in rate by one in a hundred.
#![forbid(unsafe_code)]

/// Leave to use the pages of one home.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Lease {
    lease_ms: u64,
    ends_ms: u64,
}

impl Lease {
    /// Over, until a heartbeat is answered. `lease_ms` is what this node told home in its Hello.
    pub const fn new(lease_ms: u64) -> Lease {
        Lease { lease_ms, ends_ms: 0 }
    }

    /// Home has answered the heartbeat that was sent at this time. Answers that overtake each other
    /// do no harm.
    pub fn answered(&mut self, sent_ms: u64) {
        self.ends_ms = self.ends_ms.max(sent_ms.saturating_add(self.lease_ms));
    }

    /// When it ends: what the keeper is told, which ends it when dipcd cannot.
    pub const fn ends_ms(&self) -> u64 {
        self.ends_ms
    }

    /// Whether it is over. Nobody asks the machine whether it lives: only the clock counts.
    pub const fn is_over(&self, now_ms: u64) -> bool {
        now_ms >= self.ends_ms
    }
}

/// Whether a home that declares nodes lost after `node_timeout_ms` may grant pages to a node with
/// this lease, which takes `revoke_ms` to take all access away.
pub const fn fits(node_timeout_ms: u64, lease_ms: u64, revoke_ms: u64) -> bool {
    let lease_ms = lease_ms.saturating_add(lease_ms.div_ceil(50));
    node_timeout_ms >= lease_ms.saturating_add(revoke_ms)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_counts_from_sending() {
        let mut lease = Lease::new(3000);
        assert!(lease.is_over(0), "nobody has answered yet");
        lease.answered(1000);
        lease.answered(500);
        assert_eq!(lease.ends_ms(), 4000);
        assert!(!lease.is_over(3999));
        assert!(lease.is_over(4000));
    }

    #[test]
    fn a_lease_ends_before_its_node_is_lost() {
        assert!(fits(5000, 3000, 1940));
        assert!(!fits(5000, 3000, 1941), "clocks differ");
        assert!(!fits(3000, 3000, 0));
        assert!(!fits(5000, u64::MAX, 0));
    }
}
