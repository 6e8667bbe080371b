//! The object table: which objects this node is home to, and what the kernel calls them. A file
//! in `state_dir`, so that stand-ins can read it and a restarted dipcd finds it again.
//!
//! dipcd alone writes; stand-ins read without a lock. One record a slot, placed by the number of
//! its id and the slots after it (open addressing); a removed record leaves its slot marked while
//! others lie behind it. A check sum shows a reader that it read while dipcd wrote. The kernel
//! decides whether an object still exists; this says only which ones are distributed.
#![forbid(unsafe_code)]

use rustix::fs::SeekFrom;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use dipc_wire::ids::{ClaimNo, KernelId, Key, Kind, Nonce, ObjectId};

/// Objects that one node can be home to.
pub const OBJECTS_MAX: u32 = 131_072;
/// Twice as many slots keep the ways short.
const SLOTS: u32 = 2 * OBJECTS_MAX;
const RECORD_BYTES: usize = 64;
/// Slots of one page of the file, which is a hole as long as none of them was used.
const PAGE_SLOTS: u32 = 64;
/// Slots that are read for one page of a survey: nobody else gets at the table meanwhile.
const LOOKS_MAX: u32 = 4096;
const CHECKED_BYTES: usize = RECORD_BYTES - 8;
/// How often a record that was being written is read again.
const READS_MAX: usize = 100;
const FILE_NAME: &str = "objects";

/// One object of this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ObjectRecord {
    /// What programs call it.
    pub id: ObjectId,
    /// What it is.
    pub kind: Kind,
    /// The key it was created by.
    pub key: Key,
    /// What the kernel here calls it.
    pub kernel: KernelId,
    /// Who created it: the kernel's `cuid`.
    pub creator_uid: u32,
    /// The kernel's `cgid`.
    pub creator_gid: u32,
    /// The call that created it.
    pub nonce: Nonce,
    /// How far its creation has come.
    pub state: ObjectState,
}

/// How far the creation of an object has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ObjectState {
    /// Made by leave of this claim; the referee has not confirmed it.
    Unconfirmed {
        /// The leave.
        claim: ClaimNo,
    },
    /// Its id has been given out.
    Published,
}

/// What a slot holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum SlotContent {
    /// Nothing, and nothing that belongs before it lies behind it.
    Empty,
    /// Nothing any more.
    Removed,
    Record(ObjectRecord),
}

/// The table as dipcd has it, the only writer.
#[derive(Debug)]
pub struct ObjectTable {
    file: File,
    count: u32,
}

impl ObjectTable {
    /// Opens the table in `state_dir`, or makes an empty one.
    pub fn open(state_dir: &Path) -> io::Result<ObjectTable> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        let file = options.open(state_dir.join(FILE_NAME))?;
        file.set_len(u64::from(SLOTS) * RECORD_BYTES as u64)?;
        let mut table = ObjectTable { file, count: 0 };
        let count = table.iter()?.len();
        table.count = u32::try_from(count).expect("no more than there are slots");
        Ok(table)
    }

    /// Adds an object whose id is not in the table, or replaces the one with that id.
    pub fn insert(&mut self, record: &ObjectRecord) -> io::Result<()> {
        let slot = match self.locate(record.id)? {
            Location::At(slot, _) => slot,
            Location::Free(_) | Location::Full if self.count >= OBJECTS_MAX => return Err(full()),
            Location::Full => return Err(full()),
            Location::Free(slot) => {
                self.count += 1;
                slot
            }
        };
        write_slot(&self.file, slot, &SlotContent::Record(*record))
    }

    /// Changes how far an object's creation has come. An unknown object is an error.
    pub fn set_state(&mut self, id: ObjectId, state: ObjectState) -> io::Result<()> {
        match self.locate(id)? {
            Location::At(slot, record) => {
                write_slot(&self.file, slot, &SlotContent::Record(ObjectRecord { state, ..record }))
            }
            _ => Err(io::Error::new(io::ErrorKind::NotFound, format!("no object {id}"))),
        }
    }

    /// Strikes an object off; `false` if it was not there.
    pub fn remove(&mut self, id: ObjectId) -> io::Result<bool> {
        let Location::At(slot, _) = self.locate(id)? else { return Ok(false) };
        self.count -= 1;
        if read_slot(&self.file, following(slot))? != SlotContent::Empty {
            write_slot(&self.file, slot, &SlotContent::Removed)?;
            return Ok(true);
        }
        // The way ends here now, so the marks before it lead nowhere.
        let mut slot = slot;
        for _ in 0..SLOTS {
            write_slot(&self.file, slot, &SlotContent::Empty)?;
            slot = preceding(slot);
            if read_slot(&self.file, slot)? != SlotContent::Removed {
                break;
            }
        }
        Ok(true)
    }

    /// The object with this id.
    pub fn find(&self, id: ObjectId) -> io::Result<Option<ObjectRecord>> {
        find(&self.file, id)
    }

    /// All of them, in no order.
    pub fn iter(&self) -> io::Result<Vec<ObjectRecord>> {
        let mut records = Vec::new();
        let end = u64::from(SLOTS) * RECORD_BYTES as u64;
        let mut at = 0;
        while at < end {
            at = match rustix::fs::seek(&self.file, SeekFrom::Data(at)) {
                Ok(data) => data - data % RECORD_BYTES as u64,
                Err(rustix::io::Errno::NXIO) => break,
                Err(error) => return Err(error.into()),
            };
            let mut page = [0; 64 * RECORD_BYTES];
            let length = page.len().min(usize::try_from(end - at).unwrap_or(page.len()));
            self.file.read_exact_at(&mut page[..length], at)?;
            let (chunks, _) = page[..length].as_chunks::<RECORD_BYTES>();
            records.extend(chunks.iter().filter_map(|bytes| match decode(bytes) {
                Some(SlotContent::Record(record)) => Some(record),
                _ => None,
            }));
            at += length as u64;
        }
        Ok(records)
    }

    /// Some of those that are `wanted`, at most `most`, from slot `from` on, and where to go on
    /// after them: `None` at the end. What is inserted meanwhile may be missed.
    pub fn page(
        &self,
        from: u32,
        most: usize,
        wanted: impl Fn(&ObjectRecord) -> bool,
    ) -> io::Result<(Vec<ObjectRecord>, Option<u32>)> {
        let (mut records, mut slot, mut looks) = (Vec::new(), from, 0);
        while slot < SLOTS {
            let data = match rustix::fs::seek(&self.file, SeekFrom::Data(offset(slot))) {
                Ok(data) => u32::try_from(data / RECORD_BYTES as u64).unwrap_or(SLOTS),
                Err(rustix::io::Errno::NXIO) => break,
                Err(error) => return Err(error.into()),
            };
            slot = data;
            while slot < SLOTS && (slot == data || !slot.is_multiple_of(PAGE_SLOTS)) {
                if records.len() == most || looks == LOOKS_MAX {
                    return Ok((records, Some(slot)));
                }
                match read_slot(&self.file, slot)? {
                    SlotContent::Record(record) if wanted(&record) => records.push(record),
                    _ => {}
                }
                (slot, looks) = (slot + 1, looks + 1);
            }
        }
        Ok((records, None))
    }

    fn locate(&self, id: ObjectId) -> io::Result<Location> {
        let mut free = None;
        let mut slot = first_slot(id);
        for _ in 0..SLOTS {
            match read_slot(&self.file, slot)? {
                SlotContent::Record(record) if record.id == id => {
                    return Ok(Location::At(slot, record));
                }
                SlotContent::Record(_) => {}
                SlotContent::Removed => free = free.or(Some(slot)),
                SlotContent::Empty => return Ok(Location::Free(free.unwrap_or(slot))),
            }
            slot = following(slot);
        }
        Ok(free.map_or(Location::Full, Location::Free))
    }
}

/// Where an id is, or would be.
enum Location {
    At(u32, ObjectRecord),
    Free(u32),
    Full,
}

/// The table as stand-ins have it.
#[derive(Debug)]
pub struct ObjectReader {
    file: File,
}

impl ObjectReader {
    /// Opens the table in `state_dir`, which dipcd has made.
    pub fn open(state_dir: &Path) -> io::Result<ObjectReader> {
        Ok(ObjectReader { file: File::open(state_dir.join(FILE_NAME))? })
    }

    /// The published object with this id.
    pub fn find(&self, id: ObjectId) -> Option<ObjectRecord> {
        match find(&self.file, id) {
            Ok(found) => found.filter(|record| record.state == ObjectState::Published),
            Err(error) => {
                tracing::warn!(op = "find", %id, %error, "the object table cannot be read");
                None
            }
        }
    }
}

fn find(file: &File, id: ObjectId) -> io::Result<Option<ObjectRecord>> {
    let mut slot = first_slot(id);
    for _ in 0..SLOTS {
        match read_slot(file, slot)? {
            SlotContent::Record(record) if record.id == id => return Ok(Some(record)),
            SlotContent::Empty => return Ok(None),
            SlotContent::Record(_) | SlotContent::Removed => slot = following(slot),
        }
    }
    Ok(None)
}

fn first_slot(id: ObjectId) -> u32 {
    id.number() % SLOTS
}

fn following(slot: u32) -> u32 {
    (slot + 1) % SLOTS
}

fn preceding(slot: u32) -> u32 {
    (slot + SLOTS - 1) % SLOTS
}

fn offset(slot: u32) -> u64 {
    u64::from(slot) * RECORD_BYTES as u64
}

/// Reads a slot, again if it is just being written. One that never makes sense is passed over.
fn read_slot(file: &File, slot: u32) -> io::Result<SlotContent> {
    let mut bytes = [0; RECORD_BYTES];
    for _ in 0..READS_MAX {
        file.read_exact_at(&mut bytes, offset(slot))?;
        if let Some(content) = decode(&bytes) {
            return Ok(content);
        }
    }
    tracing::warn!(op = "find", slot, "a damaged record of the object table is passed over");
    Ok(SlotContent::Removed)
}

fn write_slot(file: &File, slot: u32, content: &SlotContent) -> io::Result<()> {
    file.write_all_at(&encode(content), offset(slot))
}

fn encode(content: &SlotContent) -> [u8; RECORD_BYTES] {
    let mut bytes = [0; RECORD_BYTES];
    let record = match content {
        SlotContent::Empty => return bytes,
        SlotContent::Removed => {
            bytes[0] = 3;
            seal(&mut bytes);
            return bytes;
        }
        SlotContent::Record(record) => record,
    };
    let (state, claim) = match record.state {
        ObjectState::Unconfirmed { claim } => (1, claim.0),
        ObjectState::Published => (2, 0),
    };
    bytes[0] = state;
    bytes[1] = record.kind as u8;
    bytes[4..8].copy_from_slice(&record.id.raw().to_ne_bytes());
    bytes[8..12].copy_from_slice(&record.key.0.to_ne_bytes());
    bytes[12..16].copy_from_slice(&record.kernel.0.to_ne_bytes());
    bytes[16..20].copy_from_slice(&record.creator_uid.to_ne_bytes());
    bytes[20..24].copy_from_slice(&record.creator_gid.to_ne_bytes());
    bytes[24..32].copy_from_slice(&record.nonce.0.to_ne_bytes());
    bytes[32..40].copy_from_slice(&claim.to_ne_bytes());
    seal(&mut bytes);
    bytes
}

fn seal(bytes: &mut [u8; RECORD_BYTES]) {
    let sum = check_sum(&bytes[..CHECKED_BYTES]);
    bytes[CHECKED_BYTES..].copy_from_slice(&sum.to_ne_bytes());
}

/// `None`: written in part, or damaged.
fn decode(bytes: &[u8; RECORD_BYTES]) -> Option<SlotContent> {
    if bytes.iter().all(|&byte| byte == 0) {
        return Some(SlotContent::Empty);
    }
    if check_sum(&bytes[..CHECKED_BYTES]) != u64::from_ne_bytes(*bytes.last_chunk()?) {
        return None;
    }
    let claim = ClaimNo(u64::from_ne_bytes(*bytes[32..].first_chunk()?));
    let state = match bytes[0] {
        1 => ObjectState::Unconfirmed { claim },
        2 => ObjectState::Published,
        _ => return Some(SlotContent::Removed),
    };
    Some(SlotContent::Record(ObjectRecord {
        id: ObjectId::from_raw(i32::from_ne_bytes(*bytes[4..].first_chunk()?))?,
        kind: *Kind::ALL.get(usize::from(bytes[1]))?,
        key: Key(i32::from_ne_bytes(*bytes[8..].first_chunk()?)),
        kernel: KernelId(i32::from_ne_bytes(*bytes[12..].first_chunk()?)),
        creator_uid: u32::from_ne_bytes(*bytes[16..].first_chunk()?),
        creator_gid: u32::from_ne_bytes(*bytes[20..].first_chunk()?),
        nonce: Nonce(u64::from_ne_bytes(*bytes[24..].first_chunk()?)),
        state,
    }))
}

/// FNV-1a: it tells a half-written record, not an enemy.
pub(crate) fn check_sum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |sum, &byte| {
        (sum ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

fn full() -> io::Error {
    let why = format!("this node is home to {OBJECTS_MAX} objects already");
    io::Error::new(io::ErrorKind::StorageFull, why)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(number: u32) -> ObjectRecord {
        ObjectRecord {
            id: ObjectId::from_number(number),
            kind: Kind::Set,
            key: Key(-5),
            kernel: KernelId(number as i32),
            creator_uid: 1,
            creator_gid: 2,
            nonce: Nonce(3),
            state: ObjectState::Unconfirmed { claim: ClaimNo(4) },
        }
    }

    #[test]
    fn a_record_is_seen_by_readers_once_published_and_outlives_the_writer() {
        let dir = tempfile::tempdir().unwrap();
        let mut table = ObjectTable::open(dir.path()).unwrap();
        let reader = ObjectReader::open(dir.path()).unwrap();
        let made = record(9);
        table.insert(&made).unwrap();
        assert_eq!(table.find(made.id).unwrap(), Some(made));
        assert_eq!(reader.find(made.id), None);
        table.set_state(made.id, ObjectState::Published).unwrap();
        let published = ObjectRecord { state: ObjectState::Published, ..made };
        assert_eq!(reader.find(made.id), Some(published));
        drop(table);
        let mut table = ObjectTable::open(dir.path()).unwrap();
        assert_eq!((table.iter().unwrap(), table.count), (vec![published], 1));
        assert!(table.remove(made.id).unwrap());
        assert!(!table.remove(made.id).unwrap());
        assert_eq!(reader.find(made.id), None);
        assert!(table.set_state(made.id, ObjectState::Published).is_err());
    }

    #[test]
    fn records_that_share_a_slot_are_found_whichever_goes_first() {
        let dir = tempfile::tempdir().unwrap();
        let last = SLOTS - 1;
        let numbers = [last, last + SLOTS, last + 2 * SLOTS, last + 3 * SLOTS];
        for gone in numbers {
            let mut table = ObjectTable::open(dir.path()).unwrap();
            for number in numbers {
                table.insert(&record(number)).unwrap();
            }
            assert!(table.remove(record(gone).id).unwrap());
            for number in numbers {
                let found = table.find(record(number).id).unwrap();
                assert_eq!(found, (number != gone).then(|| record(number)), "{number} {gone}");
            }
            for number in numbers {
                table.remove(record(number).id).unwrap();
            }
            for number in 0..numbers.len() as u32 {
                let slot = (last + number) % SLOTS;
                assert_eq!(read_slot(&table.file, slot).unwrap(), SlotContent::Empty);
            }
        }
    }

    #[test]
    fn pages_hold_each_record_once() {
        let dir = tempfile::tempdir().unwrap();
        let mut table = ObjectTable::open(dir.path()).unwrap();
        let numbers = [0, 1, 63, 64, 5000, 9999, SLOTS - 1];
        for number in numbers {
            table.insert(&record(number)).unwrap();
        }
        for most in [1, 2, 100] {
            let (mut found, mut from) = (Vec::new(), Some(0));
            while let Some(slot) = from {
                let wanted = |record: &ObjectRecord| record.id.number() != 64;
                let (records, next) = table.page(slot, most, wanted).unwrap();
                assert!(records.len() <= most);
                found.extend(records.iter().map(|record| record.id.number()));
                from = next;
            }
            assert_eq!(found, [0, 1, 63, 5000, 9999, SLOTS - 1], "{most} at a time");
        }
        assert_eq!(table.page(SLOTS, 1, |_| true).unwrap(), (Vec::new(), None));
    }

    #[test]
    fn a_page_ends_before_it_takes_long() {
        let dir = tempfile::tempdir().unwrap();
        let mut table = ObjectTable::open(dir.path()).unwrap();
        for slot in 0..=LOOKS_MAX {
            table.insert(&record(slot)).unwrap();
        }
        assert_eq!(table.page(0, 1, |_| false).unwrap(), (Vec::new(), Some(LOOKS_MAX)));
    }

    #[test]
    fn a_damaged_record_is_passed_over() {
        let dir = tempfile::tempdir().unwrap();
        let mut table = ObjectTable::open(dir.path()).unwrap();
        let (first, second) = (record(7), record(7 + SLOTS));
        table.insert(&first).unwrap();
        table.insert(&second).unwrap();
        table.file.write_all_at(&[0xff], offset(7) + 20).unwrap();
        assert_eq!(table.find(first.id).unwrap(), None);
        assert_eq!(table.find(second.id).unwrap(), Some(second));
    }
}
