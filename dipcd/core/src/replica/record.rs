//! What a replica's file records of a page: one word, so one store. A page without a record was
//! never here; one with a record that says [`Copy::Nothing`] may be under way to or from the file.
#![forbid(unsafe_code)]

use dipc_wire::memory::GrantNo;

/// What a replica has of a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct CopyRecord {
    /// The newest grant installed here.
    pub number: GrantNo,
    /// What is left of it.
    pub copy: Copy,
}

/// The copy of a page, and what it is good for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Copy {
    /// None, and there never was one.
    Never,
    /// None that counts. The file may hold one that was under way when dipcd was killed.
    Nothing,
    /// In the file, for reading.
    Shared,
    /// In the file, for reading, and home may not have its content: it was written here.
    Sole,
    /// In the file, for writing.
    Owned,
    /// In the aside file: given up, but home may not have its content.
    Kept,
    /// In the aside file, to be read again as soon as somebody touches it.
    SharedAside,
    /// In the aside file: still this replica's own, but the lease has ended since.
    OwnedAside,
}

impl CopyRecord {
    /// What a hole stands for.
    pub const NEVER: CopyRecord = CopyRecord { number: GrantNo(0), copy: Copy::Never };

    /// Whether the file holds the page; if not, programs must find a hole there.
    pub fn is_in_file(&self) -> bool {
        matches!(self.copy, Copy::Shared | Copy::Sole | Copy::Owned)
    }

    /// Whether the aside file does.
    pub fn is_aside(&self) -> bool {
        matches!(self.copy, Copy::Kept | Copy::SharedAside | Copy::OwnedAside)
    }

    /// The word to store.
    pub fn encode(&self) -> u64 {
        let state = match self.copy {
            Copy::Never => 0,
            Copy::Nothing => 1,
            Copy::Shared => 2,
            Copy::Sole => 3,
            Copy::Owned => 4,
            Copy::Kept => 5,
            Copy::SharedAside => 6,
            Copy::OwnedAside => 7,
        };
        (self.number.0 << 16) | state
    }

    /// What the word says; `None` if this program never wrote it.
    pub fn decode(word: u64) -> Option<CopyRecord> {
        let copy = match word & 0xffff {
            0 if word == 0 => Copy::Never,
            1 => Copy::Nothing,
            2 => Copy::Shared,
            3 => Copy::Sole,
            4 => Copy::Owned,
            5 => Copy::Kept,
            6 => Copy::SharedAside,
            7 => Copy::OwnedAside,
            _ => return None,
        };
        Some(CopyRecord { number: GrantNo(word >> 16), copy })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_comes_back_as_it_was() {
        let copies = [
            Copy::Nothing,
            Copy::Shared,
            Copy::Sole,
            Copy::Owned,
            Copy::Kept,
            Copy::SharedAside,
            Copy::OwnedAside,
        ];
        for copy in copies {
            for number in [0, 0x1234_5678_9abc] {
                let record = CopyRecord { number: GrantNo(number), copy };
                assert_eq!(CopyRecord::decode(record.encode()), Some(record));
                assert_ne!(record.encode(), 0, "written, it is no hole");
            }
        }
        assert_eq!(CopyRecord::decode(0), Some(CopyRecord::NEVER));
        assert_eq!(CopyRecord::decode(99), None);
    }
}
