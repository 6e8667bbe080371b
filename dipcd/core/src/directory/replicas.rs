//! Sets of
//! replicas, one bit each.
#![forbid(unsafe_code)]

use std::fmt;

use dipc_wire::limits::REPLICAS_MAX;
use dipc_wire::memory::Replica;

/// Replicas of one segment.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct ReplicaSet(u128);

const _: () = assert!(REPLICAS_MAX as u32 == u128::BITS);

impl ReplicaSet {
    /// Nobody.
    pub const NONE: ReplicaSet = ReplicaSet(0);

    /// This one alone.
    pub const fn of(replica: Replica) -> ReplicaSet {
        ReplicaSet(1 << (replica.0 % REPLICAS_MAX))
    }

    /// Whether this one is among them.
    pub const fn contains(self, replica: Replica) -> bool {
        self.0 & ReplicaSet::of(replica).0 != 0
    }

    /// These and this one.
    #[must_use]
    pub const fn with(self, replica: Replica) -> ReplicaSet {
        ReplicaSet(self.0 | ReplicaSet::of(replica).0)
    }

    /// These without that one.
    #[must_use]
    pub const fn without(self, replica: Replica) -> ReplicaSet {
        ReplicaSet(self.0 & !ReplicaSet::of(replica).0)
    }

    /// Those that are in both.
    #[must_use]
    pub const fn and(self, others: ReplicaSet) -> ReplicaSet {
        ReplicaSet(self.0 & others.0)
    }

    /// Those that are not among the others.
    #[must_use]
    pub const fn minus(self, others: ReplicaSet) -> ReplicaSet {
        ReplicaSet(self.0 & !others.0)
    }

    /// Whether there is nobody.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Everyone, lowest number first.
    pub fn iter(self) -> impl Iterator<Item = Replica> {
        let mut left = self.0;
        std::iter::from_fn(move || {
            let lowest = left.trailing_zeros();
            left &= left.checked_sub(1)?;
            u8::try_from(lowest).ok().map(Replica)
        })
    }

    /// As two words, the low one first.
    pub const fn words(self) -> [u64; 2] {
        [self.0 as u64, (self.0 >> 64) as u64]
    }

    /// The set of these words.
    pub const fn from_words([low, high]: [u64; 2]) -> ReplicaSet {
        ReplicaSet(low as u128 | (high as u128) << 64)
    }
}

impl fmt::Debug for ReplicaSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter().map(|replica| replica.0)).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_holds_every_replica() {
        let all = (0..REPLICAS_MAX).fold(ReplicaSet::NONE, |set, n| set.with(Replica(n)));
        assert_eq!(all.iter().count(), usize::from(REPLICAS_MAX));
        assert!(all.iter().eq((0..REPLICAS_MAX).map(Replica)));
        assert_eq!(ReplicaSet::from_words(all.words()), all);
        let ends = ReplicaSet::of(Replica(0)).with(Replica(127));
        assert_eq!(ReplicaSet::from_words(ends.words()), ends);
        assert_eq!(format!("{ends:?}"), "{0, 127}");
        assert!(all.minus(ends).and(ends).is_empty());
        assert!(ends.without(Replica(127)).without(Replica(0)).is_empty());
    }
}
