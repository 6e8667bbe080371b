//! Where our segments are mapped in this process: the kernel's mappings, as far as they are ours.
//!
//! The table is static and inherited over fork like the mappings themselves. Two locks guard it:
//! [`Change`] is held from the first step of an attach or detach to dipcd's last word about it,
//! [`Table`] only over a change of the mappings and its note here, never while dipcd is asked.
//! The hooks of functions that malloc uses take neither unless [`may_overlap`]. Nothing is
//! allocated under them.
#![forbid(unsafe_code)]

use std::ops::Range;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering, fence};

use dipc_wire::client::AttachmentNo;

use crate::lock::{Held, Lock};
use crate::sys::memory::Protection;
use crate::sys::table::{self, Empty};
use crate::thread::birth;

/// Pieces of one process; each is a mapping of the kernel's, of which there are 65,530 by default.
const PIECES_MAX: usize = 16_384;

/// Some pages of one attachment, mapped one after the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Which shmat made it.
    pub attachment: AttachmentNo,
    /// Where it begins in memory.
    pub start: usize,
    /// Where it ends.
    pub end: usize,
    /// Where it begins in the segment.
    pub offset: usize,
    /// How long the whole segment is, in whole pages.
    pub whole: usize,
    /// What the program wants to do with it.
    pub wanted: Protection,
    /// Whether it may ever be made writable (not with `SHM_RDONLY`).
    pub may_write: bool,
    /// Whether a child has it too (not with `MADV_DONTFORK`).
    pub is_inherited: bool,
}

impl Piece {
    /// Its addresses.
    pub fn range(&self) -> Range<usize> {
        self.start..self.end
    }

    /// What of it lies in a range.
    pub fn within(&self, range: &Range<usize>) -> Option<Piece> {
        let (start, end) = (self.start.max(range.start), self.end.min(range.end));
        let offset = self.offset + start.saturating_sub(self.start);
        (start < end).then_some(Piece { start, end, offset, ..*self })
    }

    /// What of it lies before and behind a range that overlaps it.
    fn around(&self, range: &Range<usize>) -> [Option<Piece>; 2] {
        [self.within(&(0..range.start)), self.within(&(range.end..usize::MAX))]
    }

    /// The same pages elsewhere.
    pub fn moved_to(self, start: usize) -> Piece {
        Piece { start, end: start + (self.end - self.start), ..self }
    }

    /// Whether shmdt of `address` means it: it lies where an attachment there would have it.
    pub fn is_attached_at(&self, address: usize) -> bool {
        self.start >= address && self.start - address == self.offset
    }

    /// Both in one, if `next` goes on where this ends.
    fn joined(self, next: Piece) -> Option<Piece> {
        let rest =
            Piece { start: self.end, end: next.end, offset: self.offset_of(self.end), ..self };
        (next == rest).then_some(Piece { end: next.end, ..self })
    }

    /// Where in the segment an address of it is.
    pub fn offset_of(&self, address: usize) -> usize {
        self.offset + (address - self.start)
    }
}

/// Room for one piece, free when it ends at 0.
struct Place {
    start: AtomicUsize,
    end: AtomicUsize,
    offset: AtomicUsize,
    whole: AtomicUsize,
    attachment: AtomicU64,
    /// `wanted`, and above it `may_write` and `is_inherited`.
    rights: AtomicU32,
}

const MAY_WRITE: u32 = 1 << 30;
const IS_INHERITED: u32 = 1 << 31;

static PLACES: table::Table<Place, PIECES_MAX> = table::Table::new();
/// How many places were ever used; the others need no look.
static USED: AtomicUsize = AtomicUsize::new(0);
/// How many pieces there are: what a hook costs a program that has none.
static COUNT: AtomicUsize = AtomicUsize::new(0);
/// Grows with each edit, and is odd during one.
static EDITS: AtomicUsize = AtomicUsize::new(0);
static CHANGES: Lock = Lock::new();
static TABLE: Lock = Lock::new();
/// The process whose pieces these are.
static OWNER: AtomicU64 = AtomicU64::new(0);

impl Empty for Place {
    const EMPTY: Place = Place {
        start: AtomicUsize::new(0),
        end: AtomicUsize::new(0),
        offset: AtomicUsize::new(0),
        whole: AtomicUsize::new(0),
        attachment: AtomicU64::new(0),
        rights: AtomicU32::new(0),
    };
}

impl Place {
    fn get(&self) -> Option<Piece> {
        let end = self.end.load(Ordering::Relaxed);
        let rights = self.rights.load(Ordering::Relaxed);
        (end != 0).then(|| Piece {
            attachment: AttachmentNo(self.attachment.load(Ordering::Relaxed)),
            start: self.start.load(Ordering::Relaxed),
            end,
            offset: self.offset.load(Ordering::Relaxed),
            whole: self.whole.load(Ordering::Relaxed),
            wanted: Protection(rights & !(MAY_WRITE | IS_INHERITED)),
            may_write: rights & MAY_WRITE != 0,
            is_inherited: rights & IS_INHERITED != 0,
        })
    }

    fn set(&self, piece: Option<Piece>) {
        let Some(piece) = piece else { return self.end.store(0, Ordering::Relaxed) };
        let may_write = if piece.may_write { MAY_WRITE } else { 0 };
        let is_inherited = if piece.is_inherited { IS_INHERITED } else { 0 };
        self.start.store(piece.start, Ordering::Relaxed);
        self.end.store(piece.end, Ordering::Relaxed);
        self.offset.store(piece.offset, Ordering::Relaxed);
        self.whole.store(piece.whole, Ordering::Relaxed);
        self.attachment.store(piece.attachment.0, Ordering::Relaxed);
        self.rights.store(piece.wanted.0 | may_write | is_inherited, Ordering::Relaxed);
    }
}

fn used() -> impl Iterator<Item = &'static Place> {
    PLACES.iter().take(USED.load(Ordering::Acquire))
}

/// Whether this process has anything of ours mapped.
#[inline]
pub fn is_any() -> bool {
    COUNT.load(Ordering::Relaxed) != 0
}

/// Whether any of `bytes` from `address` may be ours. Takes no lock; yes when it cannot tell.
#[inline]
pub fn may_overlap(address: usize, bytes: usize) -> bool {
    is_any() && look(&(address..address.saturating_add(bytes)))
}

#[cold]
fn look(range: &Range<usize>) -> bool {
    let before = EDITS.load(Ordering::Acquire);
    let is_ours = |place: &Place| place.get().is_some_and(|piece| piece.within(range).is_some());
    let found = used().any(is_ours);
    fence(Ordering::Acquire);
    found || before % 2 == 1 || EDITS.load(Ordering::Relaxed) != before
}

/// The right to attach and detach, one thread at a time, over the calls to dipcd.
pub struct Change {
    _held: Held<'static>,
}

/// The right to change the mappings and this table, together.
pub struct Table {
    _held: Held<'static>,
}

/// Waits for its turn.
pub fn change() -> Change {
    Change { _held: CHANGES.hold() }
}

/// The table itself.
pub fn table() -> Table {
    let table = Table { _held: TABLE.hold() };
    if OWNER.swap(birth(), Ordering::Relaxed) != birth() {
        if EDITS.load(Ordering::Relaxed) % 2 == 1 {
            EDITS.fetch_add(1, Ordering::Release); // the parent's thread that edited is not here
        }
        table.drop_others();
    }
    table
}

impl Change {
    /// Keeps both rights over fork, until [`end_table`] and [`end_change`].
    pub fn keep(self, table: Table) {
        std::mem::forget((self, table));
    }
}

/// Gives the table back, in parent and child.
pub fn end_table() {
    TABLE.release();
}

/// Gives the right to change back, in parent and child.
pub fn end_change() {
    CHANGES.release();
}

impl Table {
    /// All pieces.
    pub fn pieces(&self) -> impl Iterator<Item = Piece> {
        used().filter_map(Place::get)
    }

    /// What of all pieces lies in a range.
    pub fn within(&self, range: &Range<usize>) -> impl Iterator<Item = Piece> {
        self.pieces().filter_map(move |piece| piece.within(range))
    }

    /// The lowest of those.
    pub fn first_within(&self, range: &Range<usize>) -> Option<Piece> {
        self.within(range).min_by_key(|piece| piece.start)
    }

    /// The piece in which an address is.
    pub fn at(&self, address: usize) -> Option<Piece> {
        self.pieces().find(|piece| piece.range().contains(&address))
    }

    /// What shmdt of `address` means: the lowest piece that lies as if attached there.
    pub fn attached_at(&self, address: usize) -> Option<Piece> {
        let meant = self.pieces().filter(|piece| piece.is_attached_at(address));
        meant.min_by_key(|piece| piece.start)
    }

    /// Whether so many more pieces find room.
    pub fn has_room(&self, count: usize) -> bool {
        PLACES.has((COUNT.load(Ordering::Relaxed) + count).saturating_sub(1))
    }

    /// Adds a piece. The caller has asked for room.
    pub fn add(&self, piece: Piece) {
        let _edit = Edit::begin();
        put(piece);
    }

    /// Forgets what lies in a range. A piece around it becomes two.
    pub fn cut(&self, range: &Range<usize>) {
        let _edit = Edit::begin();
        for place in used() {
            let Some(piece) = place.get().filter(|piece| piece.within(range).is_some()) else {
                continue;
            };
            place.set(None);
            COUNT.fetch_sub(1, Ordering::Relaxed);
            piece.around(range).into_iter().flatten().for_each(put);
        }
    }

    /// Changes what lies in a range; pieces that reach out of it are divided, at most two.
    pub fn revise(&self, range: &Range<usize>, revise: impl Fn(&mut Piece)) {
        let _edit = Edit::begin();
        for place in used() {
            let Some(piece) = place.get() else { continue };
            let Some(mut inside) = piece.within(range) else { continue };
            revise(&mut inside);
            place.set(Some(inside));
            piece.around(range).into_iter().flatten().for_each(put);
        }
        let around = range.start.saturating_sub(1)..range.end.saturating_add(1);
        for place in used() {
            join(place, &around);
        }
    }

    /// In a child: forgets what it did not inherit.
    fn drop_others(&self) {
        let _edit = Edit::begin();
        for place in used() {
            if place.get().is_some_and(|piece| !piece.is_inherited) {
                place.set(None);
                COUNT.fetch_sub(1, Ordering::Relaxed);
            }
        }
    }
}

/// Finds room for a piece.
fn put(piece: Piece) {
    let free = PLACES.iter().position(|place| place.get().is_none());
    let index = free.expect("the caller has asked for room");
    PLACES.at(index).set(Some(piece));
    USED.fetch_max(index + 1, Ordering::Release);
    COUNT.fetch_add(1, Ordering::Relaxed);
}

/// Lets the piece in a place grow over all that go on where it ends, as far as they touch `around`.
fn join(place: &Place, around: &Range<usize>) {
    let Some(mut piece) = place.get().filter(|piece| piece.within(around).is_some()) else {
        return;
    };
    loop {
        let next = used().find_map(|next| Some((next, piece.joined(next.get()?)?)));
        let Some((next, joined)) = next else { break };
        next.set(None);
        COUNT.fetch_sub(1, Ordering::Relaxed);
        place.set(Some(joined));
        piece = joined;
    }
}

/// An edit: readers without a lock look again.
struct Edit;

impl Edit {
    fn begin() -> Edit {
        EDITS.fetch_add(1, Ordering::AcqRel);
        Edit
    }
}

impl Drop for Edit {
    fn drop(&mut self) {
        EDITS.fetch_add(1, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WHOLE: usize = 0x8000;

    fn piece(attachment: u64, start: usize) -> Piece {
        Piece {
            attachment: AttachmentNo(attachment),
            start,
            end: start + WHOLE,
            offset: 0,
            whole: WHOLE,
            wanted: Protection(3),
            may_write: true,
            is_inherited: true,
        }
    }

    /// One after the other: the table is the process's.
    fn with_table(test: impl FnOnce(&Table)) {
        let _change = change();
        let table = table();
        test(&table);
        table.cut(&(0..usize::MAX));
        assert!(!is_any());
    }

    fn starts(table: &Table) -> Vec<(usize, usize, usize)> {
        let mut all: Vec<_> =
            table.pieces().map(|piece| (piece.start, piece.end, piece.offset)).collect();
        all.sort_unstable();
        all
    }

    #[test]
    fn cutting_leaves_what_is_around() {
        with_table(|table| {
            table.add(piece(1, 0x10000));
            table.add(piece(2, 0x20000));
            assert!(may_overlap(0x10000, 1) && may_overlap(0x17fff, 1));
            assert!(!may_overlap(0x18000, 0x8000) && !may_overlap(0xf000, 0x1000));
            table.cut(&(0x12000..0x14000));
            let expected =
                [(0x10000, 0x12000, 0), (0x14000, 0x18000, 0x4000), (0x20000, 0x28000, 0)];
            assert_eq!(starts(table), expected);
            assert!(!may_overlap(0x12000, 0x2000));
            table.cut(&(0x17000..0x21000));
            let expected =
                [(0x10000, 0x12000, 0), (0x14000, 0x17000, 0x4000), (0x21000, 0x28000, 0x1000)];
            assert_eq!(starts(table), expected);
        });
    }

    #[test]
    fn shmdt_means_pieces_that_lie_as_attached() {
        with_table(|table| {
            table.add(piece(1, 0x10000));
            table.cut(&(0x10000..0x11000));
            let meant = table.attached_at(0x10000).expect("the rest of it");
            assert_eq!((meant.start, meant.offset), (0x11000, 0x1000));
            assert_eq!(table.attached_at(0x11000), None, "it is not attached there");
            table.add(piece(2, 0x40000).moved_to(0x80000));
            assert_eq!(table.attached_at(0x40000), None, "moved away");
            assert_eq!(table.attached_at(0x80000).map(|piece| piece.attachment.0), Some(2));
        });
    }

    #[test]
    fn revising_divides_and_joins_again() {
        with_table(|table| {
            table.add(piece(1, 0x10000));
            let all = starts(table);
            let (middle, read, write) = (0x12000..0x14000, Protection(1), Protection(3));
            table.revise(&middle, |piece| piece.wanted = read);
            let expected = [(0x10000, 0x12000, 0), (0x12000, 0x14000, 0x2000)];
            assert_eq!(starts(table)[..2], expected);
            assert_eq!(table.first_within(&middle).map(|piece| piece.wanted), Some(read));
            assert_eq!(starts(table).len(), 3);
            table.revise(&(0x11000..0x13000), |piece| piece.wanted = read);
            assert_eq!(starts(table).len(), 3, "neighbours with equal rights are one");
            table.revise(&(0x10000..0x18000), |piece| piece.wanted = write);
            assert_eq!(starts(table), all);
        });
    }

    #[test]
    fn different_attachments_stay_apart() {
        with_table(|table| {
            table.add(piece(1, 0x10000));
            table.add(piece(2, 0x18000));
            table.revise(&(0x10000..0x20000), |piece| piece.is_inherited = false);
            assert_eq!(starts(table).len(), 2);
            table.drop_others();
            assert_eq!(starts(table).len(), 0, "a child has none of them");
        });
    }
}
