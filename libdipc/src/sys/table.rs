//! Tables of which most programs use the first places alone: those lie in the library, the others
//! are mapped when they are reached, in blocks of twice the size each, and stay.
//!
//! Whole they would be megabytes, which tear a program's libraries apart in its address space; and
//! each 2 MiB in which a page was written cost a fork a page table.

use std::ptr;
use std::sync::atomic::{AtomicPtr, Ordering};

use super::{map_anonymous, raw};

/// What a table may hold. Nothing of it is ever dropped.
pub trait Empty: 'static {
    /// A place that nobody uses.
    const EMPTY: Self;
}

/// Places in the library.
const FIRST: usize = 64;
/// Blocks besides.
const BLOCKS: usize = 10;

/// A table of so many places. It needs no lock, and a forked child inherits it.
pub struct Table<T, const PLACES: usize> {
    first: [T; FIRST],
    blocks: [AtomicPtr<T>; BLOCKS],
}

impl<T: Empty, const PLACES: usize> Table<T, PLACES> {
    /// An empty one.
    pub const fn new() -> Self {
        const { assert!(PLACES <= start_of(BLOCKS + 1), "the blocks have room for them") };
        let blocks = [const { AtomicPtr::new(ptr::null_mut()) }; BLOCKS];
        Table { first: [const { T::EMPTY }; FIRST], blocks }
    }

    /// All places from the first on, as far as there is memory for them.
    pub fn iter(&self) -> impl Iterator<Item = &T> {
        (0..PLACES).map_while(|index| self.get(index))
    }

    /// Whether there is a place with this index, and memory for it.
    pub fn has(&self, index: usize) -> bool {
        index < PLACES && self.get(index).is_some()
    }

    /// A place that was reached before.
    pub fn at(&self, index: usize) -> &T {
        self.get(index).expect("what was mapped once stays")
    }

    fn get(&self, index: usize) -> Option<&T> {
        assert!(index < PLACES, "there is no place {index}");
        let number = (index / FIRST + 1).ilog2() as usize;
        if number == 0 {
            return Some(&self.first[index]);
        }
        let place = self.block(number)?.wrapping_add(index - start_of(number));
        // SAFETY: block `number` has places up to where the next one starts, all of them written
        // before it was published, and is never unmapped.
        Some(unsafe { &*place })
    }

    fn block(&self, number: usize) -> Option<*mut T> {
        let known = &self.blocks[number - 1];
        let block = known.load(Ordering::Acquire);
        if !block.is_null() {
            return Some(block);
        }
        let block = map_block::<T>(FIRST << number)?;
        let (done, failed) = (Ordering::AcqRel, Ordering::Acquire);
        match known.compare_exchange(ptr::null_mut(), block, done, failed) {
            Ok(_) => Some(block),
            Err(theirs) => {
                let bytes = size_of::<T>() * (FIRST << number);
                // SAFETY: another thread was first; nobody else knows of ours.
                let _ = unsafe { raw(libc::SYS_munmap, [block as usize, bytes, 0, 0, 0, 0]) };
                Some(theirs)
            }
        }
    }
}

/// The index with which a block starts; block 0 lies in the library.
const fn start_of(block: usize) -> usize {
    FIRST * ((1 << block) - 1)
}

fn map_block<T: Empty>(count: usize) -> Option<*mut T> {
    let block = map_anonymous(count * size_of::<T>()).ok()? as *mut T;
    for index in 0..count {
        // SAFETY: within the new mapping, and aligned: a mapping begins with a page.
        unsafe { block.wrapping_add(index).write(T::EMPTY) };
    }
    Some(block)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicUsize;

    struct Number(AtomicUsize);

    impl Empty for Number {
        const EMPTY: Number = Number(AtomicUsize::new(7));
    }

    #[test]
    fn every_place_is_another_one_and_stays() {
        const PLACES: usize = 3 * FIRST + 5;
        let table: Table<Number, PLACES> = Table::new();
        for (index, place) in table.iter().enumerate() {
            assert_eq!(place.0.swap(100 + index, Ordering::Relaxed), 7, "place {index} is new");
        }
        assert_eq!(table.iter().count(), PLACES);
        for index in 0..PLACES {
            assert_eq!(table.at(index).0.load(Ordering::Relaxed), 100 + index);
        }
    }

    #[test]
    fn nothing_is_mapped_before_it_is_reached() {
        let table: Table<Number, 1000> = Table::new();
        assert_eq!(table.iter().take(FIRST).count(), FIRST);
        assert!(table.blocks.iter().all(|block| block.load(Ordering::Relaxed).is_null()));
    }
}
