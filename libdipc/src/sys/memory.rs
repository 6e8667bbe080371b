//! The address space of the program: mappings of ours in it, and its own calls on its memory.
//!
//! All are system calls without wrappers around them, so that nothing comes back to our hooks and
//! other preloaded libraries have no part in it.

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::ptr;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use super::{own_place, raw};

/// Bytes of a page, also SHMLBA here.
pub const PAGE_BYTES: usize = 4096;

/// What may be done with memory, as mmap(2) has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Protection(pub u32);

impl Protection {
    /// Nothing.
    pub const NONE: Protection = Protection(0);
    /// Loads.
    pub const READ: Protection = Protection(libc::PROT_READ as u32);
    /// Stores.
    pub const WRITE: Protection = Protection(libc::PROT_WRITE as u32);
    /// Execution.
    pub const EXEC: Protection = Protection(libc::PROT_EXEC as u32);

    /// Whether mprotect(2) of an attachment knows all of it; it refuses what is for stacks.
    pub const fn is_known(self) -> bool {
        const PROT_SEM: u32 = 8;
        self.0 & !(Self::READ.0 | Self::WRITE.0 | Self::EXEC.0 | PROT_SEM) == 0
    }

    /// Both.
    pub const fn and(self, other: Protection) -> Protection {
        Protection(self.0 | other.0)
    }

    /// The first without the second.
    pub const fn without(self, other: Protection) -> Protection {
        Protection(self.0 & !other.0)
    }

    /// Whether all of the other is in it.
    pub const fn has(self, other: Protection) -> bool {
        self.0 & other.0 == other.0
    }
}

/// Whole pages for so many bytes; none for more than there can be.
pub fn whole_pages(bytes: usize) -> Option<usize> {
    bytes.checked_next_multiple_of(PAGE_BYTES)
}

/// One of the program's own calls on its memory (mmap and its relatives), as it came.
pub fn pass(number: libc::c_long, arguments: [usize; 6]) -> Result<usize, i32> {
    // SAFETY: the program makes this call; what becomes of its memory is its own wish.
    unsafe { raw(number, arguments) }
}

/// Maps a segment's file from its first byte, closed to all access. `flags` besides `MAP_SHARED`.
pub fn map_closed(address: usize, bytes: usize, flags: i32, file: &OwnedFd) -> Result<usize, i32> {
    let (none, flags) = (libc::PROT_NONE as usize, (libc::MAP_SHARED | flags) as usize);
    // SAFETY: a mapping replaces another one only with MAP_FIXED, which the program asked for.
    unsafe { raw(libc::SYS_mmap, [address, bytes, none, flags, file.as_raw_fd() as usize, 0]) }
}

/// Unmaps what the program no longer wants.
pub fn unmap(address: usize, bytes: usize) -> Result<(), i32> {
    pass(libc::SYS_munmap, [address, bytes, 0, 0, 0, 0]).map(|_| ())
}

/// Changes the protection of attachments, or of a page of ours.
pub fn protect(address: usize, bytes: usize, protection: Protection) -> Result<(), i32> {
    pass(libc::SYS_mprotect, [address, bytes, protection.0 as usize, 0, 0, 0]).map(|_| ())
}

/// A page of ours that no child inherits. It is closed, for under mlockall(MCL_FUTURE) an open one
/// would be filled, and whoever registers it could not.
pub fn map_sentinel() -> Result<usize, i32> {
    let flags = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS) as usize;
    let (place, none) = (own_place(PAGE_BYTES), libc::PROT_NONE as usize);
    // SAFETY: a new mapping anywhere touches nothing that exists.
    let page = unsafe { raw(libc::SYS_mmap, [place, PAGE_BYTES, none, flags, usize::MAX, 0]) }?;
    for advice in [libc::MADV_WIPEONFORK, libc::MADV_DONTDUMP] {
        pass(libc::SYS_madvise, [page, PAGE_BYTES, advice as usize, 0, 0, 0]).inspect_err(
            |_| {
                let _ = unmap(page, PAGE_BYTES);
            },
        )?;
    }
    Ok(page)
}

/// The number in an open sentinel page. Waits while the page is absent, as in a child it is.
pub fn read_sentinel(page: usize) -> u64 {
    sentinel(page).load(Ordering::Acquire)
}

/// Puts the number there.
pub fn write_sentinel(page: usize, number: u64) {
    sentinel(page).store(number, Ordering::Release);
}

fn sentinel<'a>(page: usize) -> &'a AtomicU64 {
    let page = ptr::with_exposed_provenance_mut(page);
    // SAFETY: the page of `map_sentinel`, aligned and never unmapped; whoever else writes it writes
    // the whole number at once.
    unsafe { AtomicU64::from_ptr(page) }
}

/// A number that this process shares with those it forks, 0 at first.
pub fn map_shared_number() -> Result<usize, i32> {
    let protection = Protection::READ.and(Protection::WRITE).0 as usize;
    let flags = (libc::MAP_SHARED | libc::MAP_ANONYMOUS) as usize;
    let place = own_place(PAGE_BYTES);
    // SAFETY: a new mapping anywhere touches nothing that exists.
    unsafe { raw(libc::SYS_mmap, [place, PAGE_BYTES, protection, flags, usize::MAX, 0]) }
}

/// The number in that page.
pub fn shared_number<'a>(page: usize) -> &'a AtomicU32 {
    let page = ptr::with_exposed_provenance_mut(page);
    // SAFETY: the page of `map_shared_number`, aligned and never unmapped.
    unsafe { AtomicU32::from_ptr(page) }
}

/// Stores zeros over whole pages that the program may write. It waits for absent ones.
pub fn zero(address: usize, bytes: usize) {
    let pages: *mut u8 = ptr::with_exposed_provenance_mut(address);
    // SAFETY: the program has the range attached, writable, and asked for this.
    unsafe { ptr::write_bytes(pages, 0, bytes) };
}

/// `UFFD_USER_MODE_ONLY`: it sees faults of the program alone, not the kernel's own.
pub const USER_MODE_ONLY: i32 = 1;
/// `USERFAULTFD_IOC_NEW` of the device.
const NEW: usize = 0xaa00;

/// A userfaultfd of this process, by the system call.
pub fn userfaultfd(flags: i32) -> Result<OwnedFd, i32> {
    let flags = flags | libc::O_CLOEXEC | libc::O_NONBLOCK;
    // SAFETY: no pointers.
    let fd = unsafe { raw(libc::SYS_userfaultfd, [flags as usize, 0, 0, 0, 0, 0]) }?;
    // SAFETY: the kernel has just made this descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// A userfaultfd of this process, from /dev/userfaultfd.
pub fn userfaultfd_of(device: &OwnedFd) -> Result<OwnedFd, i32> {
    let flags = (libc::O_CLOEXEC | libc::O_NONBLOCK) as usize;
    let arguments = [device.as_raw_fd() as usize, NEW, flags, 0, 0, 0];
    // SAFETY: the command takes a number, no pointer.
    let fd = unsafe { raw(libc::SYS_ioctl, arguments) }?;
    // SAFETY: the kernel has just made this descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}
