//! What home's file records of a page: 24 bytes, three words. A dipcd may be killed between any
//! two stores, so each word is one store and the last one decides: it says the state, and whether
//! the two before it, the copyset, count. Of two copysets any mixture will do: one reader is added,
//! or those are left out who have answered.
#![forbid(unsafe_code)]

use dipc_wire::memory::{GrantNo, Replica};

use super::ReplicaSet;

/// Where a page is, and the number of its newest transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PageRecord {
    /// The newest grant, or the newest transaction that ended without one; 0: never granted.
    pub number: GrantNo,
    /// Where it is.
    pub holding: Holding,
}

/// Who holds a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Holding {
    /// Home's copy is good, and these may read theirs. It lies in home's file if home is one of
    /// them, else in its aside.
    Shared(ReplicaSet),
    /// This one alone may use the page. Of home's own the copy lies in its file.
    Owned {
        /// Who.
        owner: Replica,
        /// What is left at home, in its aside.
        left: Left,
    },
    /// Its only copy was on a node that was lost.
    Lost,
}

/// What home has of a page that another owns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Left {
    /// Nothing.
    Nothing,
    /// What it granted: the owner may not have got it.
    Granted,
    /// What it granted once, for `lost_page = stale`.
    Stale,
}

impl PageRecord {
    /// What a hole stands for: never granted, so home's alone; zeros unless home's file says more.
    pub const NEVER: PageRecord = PageRecord {
        number: GrantNo(0),
        holding: Holding::Owned { owner: Replica::HOME, left: Left::Nothing },
    };

    /// Whether home's file holds the page; if not, its programs must find a hole there.
    pub fn is_in_home_file(&self) -> bool {
        match self.holding {
            Holding::Shared(readers) => readers.contains(Replica::HOME),
            Holding::Owned { owner, .. } => owner == Replica::HOME,
            Holding::Lost => false,
        }
    }

    /// Whether home's aside file holds a copy that is needed.
    pub fn is_in_home_aside(&self) -> bool {
        match self.holding {
            Holding::Shared(readers) => !readers.contains(Replica::HOME),
            Holding::Owned { left, .. } => left != Left::Nothing,
            Holding::Lost => false,
        }
    }

    /// Which word gets which value, to be stored in this order. The copyset of a page that had one
    /// stays until there is another: the record may be read between two stores.
    pub fn stores(&self) -> impl Iterator<Item = (usize, u64)> {
        let (state, owner, set) = match self.holding {
            Holding::Shared(readers) => (SHARED, Replica::HOME, Some(readers.words())),
            Holding::Owned { owner, left: Left::Nothing } => (OWNED, owner, None),
            Holding::Owned { owner, left: Left::Granted } => (GRANTED, owner, None),
            Holding::Owned { owner, left: Left::Stale } => (STALE, owner, None),
            Holding::Lost => (LOST, Replica::HOME, None),
        };
        let word = (self.number.0 << 16) | (u64::from(owner.0) << 8) | state;
        let set = set.into_iter().flat_map(|[low, high]| [(0, low), (1, high)]);
        set.chain([(2, word)])
    }

    /// What the words say; `None` if this program never wrote them.
    pub fn decode([low, high, word]: [u64; 3]) -> Option<PageRecord> {
        let number = GrantNo(word >> 16);
        let owner = Replica((word >> 8) as u8);
        let owned = |left| Holding::Owned { owner, left };
        let holding = match word & 0xff {
            0 if word == 0 => return Some(PageRecord::NEVER),
            SHARED => Holding::Shared(ReplicaSet::from_words([low, high])),
            OWNED => owned(Left::Nothing),
            GRANTED => owned(Left::Granted),
            STALE => owned(Left::Stale),
            LOST => Holding::Lost,
            _ => return None,
        };
        Some(PageRecord { number, holding })
    }
}

const SHARED: u64 = 1;
const OWNED: u64 = 2;
const GRANTED: u64 = 3;
const STALE: u64 = 4;
const LOST: u64 = 5;

#[cfg(test)]
mod tests {
    use super::*;

    fn record(number: u64, holding: Holding) -> PageRecord {
        PageRecord { number: GrantNo(number), holding }
    }

    fn shared(replicas: &[u8]) -> Holding {
        let set = |set: ReplicaSet, replica: &u8| set.with(Replica(*replica));
        Holding::Shared(replicas.iter().fold(ReplicaSet::NONE, set))
    }

    fn owned(owner: u8, left: Left) -> Holding {
        Holding::Owned { owner: Replica(owner), left }
    }

    fn stored(record: PageRecord, mut words: [u64; 3]) -> [u64; 3] {
        record.stores().for_each(|(at, word)| words[at] = word);
        words
    }

    #[test]
    fn a_record_comes_back_as_it_was() {
        let holdings = [
            shared(&[]),
            shared(&[0, 1, 63, 64, 127]),
            owned(0, Left::Nothing),
            owned(127, Left::Granted),
            owned(3, Left::Stale),
            Holding::Lost,
        ];
        for holding in holdings {
            let record = record(0x1234_5678_9abc, holding);
            assert_eq!(PageRecord::decode(stored(record, [7, 7, 7])), Some(record));
        }
        assert_eq!(PageRecord::decode([0; 3]), Some(PageRecord::NEVER));
        assert_ne!(stored(PageRecord::NEVER, [0; 3]), [0; 3], "written, it is no hole");
        assert_eq!(PageRecord::decode([0, 0, 99]), None);
    }

    /// Killed between two stores, a dipcd leaves the old record, or a copyset that is too large.
    #[test]
    fn a_half_stored_record_forgets_nobody() {
        let turns = [
            (owned(1, Left::Nothing), shared(&[1, 70]), owned(1, Left::Nothing)),
            (shared(&[0, 1]), shared(&[0, 1, 70]), shared(&[0, 1, 70])),
            (shared(&[0, 1, 2]), owned(2, Left::Granted), shared(&[0, 1, 2])),
            (owned(70, Left::Granted), Holding::Lost, owned(70, Left::Granted)),
        ];
        for (before, after, half) in turns {
            let mut words = stored(record(4, before), stored(record(3, shared(&[9])), [0; 3]));
            let stores: Vec<_> = record(5, after).stores().collect();
            for (at, word) in &stores[..stores.len() - 1] {
                words[*at] = *word;
            }
            assert_eq!(PageRecord::decode(words), Some(record(4, half)), "to {after:?}");
        }
    }
}
