//! Memory from which pages of segments are filled: buffers of the pager, and those that links
//! receive into.
//!
//! The kernel completes a copy that was cut short by a fault of its source with zeros, which a
//! program might see; so the source must never fault: it is touched and locked (mlock(2)). Where
//! the limit does not allow that it is touched only, and a machine without swap keeps it as well.

use std::io;
use std::ops::{Deref, DerefMut};
use std::ptr;

use rustix::io::Errno;
use rustix::mm::{MapFlags, MremapFlags, ProtFlags};

/// Whole pages of memory that do not fault.
#[derive(Debug)]
pub struct LockedBuffer {
    start: *mut u8,
    bytes: usize,
}

// SAFETY: it owns its memory as a boxed slice does.
unsafe impl Send for LockedBuffer {}
// SAFETY: it hands out shared references for reading only, as a boxed slice does.
unsafe impl Sync for LockedBuffer {}

impl LockedBuffer {
    /// Zeros; `bytes` is rounded up to whole pages and more than 0.
    pub fn new(bytes: usize) -> io::Result<LockedBuffer> {
        let bytes = bytes.max(1).next_multiple_of(rustix::param::page_size());
        let access = ProtFlags::READ | ProtFlags::WRITE;
        let flags = MapFlags::PRIVATE | MapFlags::POPULATE;
        // SAFETY: a new mapping at a place of the kernel's choice disturbs nothing.
        let start = unsafe { rustix::mm::mmap_anonymous(ptr::null_mut(), bytes, access, flags) }?;
        // SAFETY: it is the mapping just made.
        let _ = unsafe { rustix::mm::mlock(start, bytes) };
        Ok(LockedBuffer { start: start.cast(), bytes })
    }

    /// Makes it longer by so many bytes, rounded up to whole pages. Where the limit does not allow
    /// that, none of it is locked any more, and what is new is touched by who writes there.
    pub fn grow(&mut self, more: usize) -> io::Result<()> {
        let bytes = (self.bytes + more).next_multiple_of(rustix::param::page_size());
        let start = match self.remap(bytes) {
            Err(Errno::AGAIN) => {
                // SAFETY: it is the mapping that this one owns.
                unsafe { rustix::mm::munlock(self.start.cast(), self.bytes) }?;
                self.remap(bytes)
            }
            start => start,
        };
        (self.start, self.bytes) = (start?, bytes);
        Ok(())
    }

    fn remap(&mut self, bytes: usize) -> rustix::io::Result<*mut u8> {
        let flags = MremapFlags::MAYMOVE;
        // SAFETY: the mapping is this one's own, and `&mut self` is the only way to it.
        let start = unsafe { rustix::mm::mremap(self.start.cast(), self.bytes, bytes, flags) };
        start.map(|start| start.cast())
    }
}

impl Drop for LockedBuffer {
    fn drop(&mut self) {
        // SAFETY: the mapping is this one's own, and every reference into it has ended.
        let _ = unsafe { rustix::mm::munmap(self.start.cast(), self.bytes) };
    }
}

impl Deref for LockedBuffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: the mapping is that long, initialised by the kernel, and lives as long as this.
        unsafe { std::slice::from_raw_parts(self.start, self.bytes) }
    }
}

impl DerefMut for LockedBuffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above; `&mut self` is the only way to it.
        unsafe { std::slice::from_raw_parts_mut(self.start, self.bytes) }
    }
}
