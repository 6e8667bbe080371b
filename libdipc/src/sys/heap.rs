//! Memory of our own: the program's malloc may be what a signal handler interrupted that calls us.
//!
//! It is dlmalloc's, behind a lock that fork holds, so that a child finds it at rest. What it takes
//! from the kernel lies where the program's own memory does not.

use std::alloc::{GlobalAlloc, Layout};
use std::cell::UnsafeCell;
use std::ptr;
use std::sync::atomic::{AtomicBool, Ordering};

use dlmalloc::{Allocator, Dlmalloc};

use super::memory::PAGE_BYTES;
use super::{map_anonymous, raw};
use crate::lock::Lock;

/// Ours alone.
pub struct Heap {
    lock: Lock,
    blocks: UnsafeCell<Dlmalloc<Pages>>,
}

// SAFETY: the blocks are touched under the lock alone.
unsafe impl Sync for Heap {}

impl Heap {
    /// An empty one.
    pub const fn new() -> Heap {
        let blocks = UnsafeCell::new(Dlmalloc::new_with_allocator(Pages));
        Heap { lock: Lock::new(), blocks }
    }

    /// Waits until it is at rest, and keeps it so until [`Heap::release`].
    pub fn keep(&self) {
        std::mem::forget(self.lock.hold());
    }

    /// Gives it back, in parent and child.
    pub fn release(&self) {
        self.lock.release();
    }

    fn with<T>(&self, work: impl FnOnce(&mut Dlmalloc<Pages>) -> T) -> T {
        let _held = self.lock.hold();
        // SAFETY: whoever holds the lock has it alone, and `work` does not come back here.
        work(unsafe { &mut *self.blocks.get() })
    }
}

// SAFETY: dlmalloc keeps these rules; it is passed what the callers vouch for.
unsafe impl GlobalAlloc for Heap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: no rules but a layout's own.
        self.with(|blocks| unsafe { blocks.malloc(layout.size(), layout.align()) })
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: the caller vouches for the block and its layout.
        self.with(|blocks| unsafe { blocks.free(block, layout.size(), layout.align()) });
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: no rules but a layout's own.
        self.with(|blocks| unsafe { blocks.calloc(layout.size(), layout.align()) })
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        let (before, align) = (layout.size(), layout.align());
        // SAFETY: the caller vouches for the block and its layout.
        self.with(|blocks| unsafe { blocks.realloc(block, before, align, bytes) })
    }
}

/// Where the heap has its memory from.
struct Pages;

/// What it has first: most programs need no more, and fork copies one mapping less.
const FIRST_BYTES: usize = 64 << 10;
/// What dlmalloc calls memory that is not to be given back.
const NEVER_RELEASED: u32 = 1;

#[repr(align(4096))]
struct Room(UnsafeCell<[u8; FIRST_BYTES]>);

static FIRST: Room = Room(UnsafeCell::new([0; FIRST_BYTES]));

// SAFETY: it is given to the heap, once, and only the heap touches it.
unsafe impl Sync for Room {}

// SAFETY: each mapping is new, and stays until the heap gives it back.
unsafe impl Allocator for Pages {
    fn alloc(&self, bytes: usize) -> (*mut u8, usize, u32) {
        static TAKEN: AtomicBool = AtomicBool::new(false);
        if bytes <= FIRST_BYTES && !TAKEN.swap(true, Ordering::Relaxed) {
            return (FIRST.0.get().cast(), FIRST_BYTES, NEVER_RELEASED);
        }
        let mapped = map_anonymous(bytes).map_or(ptr::null_mut(), |address| address as *mut u8);
        (mapped, bytes, 0)
    }

    /// Never where it is: the next mapping lies right behind it.
    fn remap(&self, _: *mut u8, _: usize, _: usize, _: bool) -> *mut u8 {
        ptr::null_mut()
    }

    fn free_part(&self, start: *mut u8, before: usize, bytes: usize) -> bool {
        self.free(start.wrapping_add(bytes), before - bytes)
    }

    fn free(&self, start: *mut u8, bytes: usize) -> bool {
        // SAFETY: the heap has this range from `alloc`, and no longer uses it.
        unsafe { raw(libc::SYS_munmap, [start as usize, bytes, 0, 0, 0, 0]) }.is_ok()
    }

    fn can_release_part(&self, _: u32) -> bool {
        true
    }

    fn allocates_zeros(&self) -> bool {
        true
    }

    fn page_size(&self) -> usize {
        PAGE_BYTES
    }
}
