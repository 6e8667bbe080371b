//! Pages of zeros where a memfd has holes, made as a program's own access would make them: what
//! programs store there at the same time stays, as it would not if zeros were written.

use std::io;
use std::os::fd::BorrowedFd;
use std::ptr;

use rustix::mm::{Advice, MapFlags, ProtFlags};

/// Makes every page of this part of a file, which is whole pages of the system (madvise(2),
/// `MADV_POPULATE_READ`; fallocate(2) would make pages that lseek(2) takes for holes).
pub fn populate(file: BorrowedFd<'_>, offset: u64, bytes: u64) -> io::Result<()> {
    let bytes = usize::try_from(bytes).map_err(io::Error::other)?;
    // SAFETY: a new mapping at a place of the kernel's choice disturbs nothing.
    let start = unsafe {
        rustix::mm::mmap(ptr::null_mut(), bytes, ProtFlags::READ, MapFlags::SHARED, file, offset)
    }?;
    // SAFETY: the mapping just made, of which nobody has a reference; it is read by the kernel.
    let populated = unsafe { rustix::mm::madvise(start, bytes, Advice::LinuxPopulateRead) };
    // SAFETY: the same mapping.
    unsafe { rustix::mm::munmap(start, bytes) }?;
    Ok(populated?)
}
