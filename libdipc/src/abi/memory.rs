//! Shared memory, and what a program does to the memory where it is attached.
//!
//! The relatives of mmap are called by allocators, in signal handlers and in children of vfork, at
//! any time: without attachments each is one look at a number, and then libc's.

use std::ffi::{c_int, c_long};

use dipc_wire::ids::ObjectId;
use redhook::hook;

use crate::kernel::memory as kernel;
use crate::{fork, mappings, pieces, segments, start};

hook! {
    unsafe fn shmget(key: c_int, bytes: usize, flags: c_int) -> c_int => dipc_shmget {
        segments::get(key, bytes, flags)
    }
}

hook! {
    unsafe fn shmat(id: c_int, address: usize, flags: c_int) -> usize => dipc_shmat {
        segments::attach(id, address, flags)
    }
}

hook! {
    unsafe fn shmdt(address: usize) -> c_int => dipc_shmdt {
        segments::detach(address)
    }
}

hook! {
    unsafe fn shmctl(id: c_int, command: c_int, buffer: usize) -> c_int => dipc_shmctl {
        segments::control(id, command, buffer)
    }
}

/// mmap(2).
#[unsafe(no_mangle)]
pub extern "C" fn mmap(
    address: usize,
    bytes: usize,
    protection: c_int,
    flags: c_int,
    fd: c_int,
    offset: usize,
) -> usize {
    let arguments = [address, bytes, protection as usize, flags as usize, fd as usize, offset];
    if flags & libc::MAP_FIXED != 0 && pieces::may_overlap(address, bytes) {
        return mappings::map_over(arguments);
    }
    kernel::mmap(arguments)
}

/// The same under the name that programs with large files use.
#[unsafe(no_mangle)]
pub extern "C" fn mmap64(
    address: usize,
    bytes: usize,
    protection: c_int,
    flags: c_int,
    fd: c_int,
    offset: usize,
) -> usize {
    mmap(address, bytes, protection, flags, fd, offset)
}

/// munmap(2).
#[unsafe(no_mangle)]
pub extern "C" fn munmap(address: usize, bytes: usize) -> c_int {
    if pieces::may_overlap(address, bytes) {
        return mappings::unmap(address, bytes);
    }
    kernel::munmap(address, bytes)
}

/// mremap(2). In C its fifth argument is variadic: a register that may hold anything if the flags
/// do not ask for it.
#[unsafe(no_mangle)]
pub extern "C" fn mremap(
    from: usize,
    from_bytes: usize,
    to_bytes: usize,
    flags: c_int,
    to: usize,
) -> usize {
    let arguments = [from, from_bytes, to_bytes, flags as usize, to];
    let is_fixed = flags & libc::MREMAP_FIXED != 0;
    let may_be_ours = pieces::may_overlap(from, from_bytes.max(1))
        || is_fixed && pieces::may_overlap(to, to_bytes);
    if may_be_ours {
        return mappings::remap(arguments);
    }
    kernel::mremap(arguments)
}

/// mprotect(2).
#[unsafe(no_mangle)]
pub extern "C" fn mprotect(address: usize, bytes: usize, protection: c_int) -> c_int {
    if pieces::may_overlap(address, bytes) {
        return mappings::protect(address, bytes, protection, None);
    }
    kernel::mprotect(address, bytes, protection)
}

/// pkey_mprotect(2).
#[unsafe(no_mangle)]
pub extern "C" fn pkey_mprotect(
    address: usize,
    bytes: usize,
    protection: c_int,
    key: c_int,
) -> c_int {
    if pieces::may_overlap(address, bytes) {
        return mappings::protect(address, bytes, protection, Some(key));
    }
    kernel::pkey_mprotect(address, bytes, protection, key)
}

/// madvise(2).
#[unsafe(no_mangle)]
pub extern "C" fn madvise(address: usize, bytes: usize, advice: c_int) -> c_int {
    if pieces::may_overlap(address, bytes) {
        return mappings::advise(address, bytes, advice);
    }
    kernel::madvise(address, bytes, advice)
}

/// remap_file_pages(2), which tells nobody where pages went: not for attachments.
#[unsafe(no_mangle)]
pub extern "C" fn remap_file_pages(
    address: usize,
    bytes: usize,
    protection: c_int,
    page: usize,
    flags: c_int,
) -> c_int {
    if pieces::may_overlap(address, bytes) {
        return mappings::refuse();
    }
    kernel::remap_file_pages([address, bytes, protection as usize, page, flags as usize])
}

/// `_Fork`, which is fork without what the C library does around it, also for us.
#[unsafe(no_mangle)]
pub extern "C" fn _Fork() -> c_int {
    fork::before();
    let child = kernel::fork();
    if child == 0 {
        start::forked();
    } else {
        fork::after();
    }
    child
}

/// The same by syscall(2). What is not about attachments goes there untouched.
pub fn system_call(number: c_long, arguments: [usize; 6]) -> c_long {
    let [a, b, c, d, e, _] = arguments;
    let int = |word: usize| word as c_int;
    let is_ours = || pieces::may_overlap(a, b.max(1));
    match number {
        libc::SYS_shmget => segments::get(int(a), b, int(c)).into(),
        libc::SYS_shmctl => segments::control(int(a), int(b), c).into(),
        libc::SYS_shmdt if pieces::is_any() => segments::detach(a).into(),
        libc::SYS_shmat if pieces::is_any() || ObjectId::from_raw(int(a)).is_some() => {
            segments::attach(int(a), b, int(c)) as c_long
        }
        libc::SYS_mmap => mmap(a, b, int(c), int(d), int(e), arguments[5]) as c_long,
        libc::SYS_mremap => mremap(a, b, c, int(d), e) as c_long,
        libc::SYS_munmap if is_ours() => mappings::unmap(a, b).into(),
        libc::SYS_mprotect if is_ours() => mappings::protect(a, b, int(c), None).into(),
        libc::SYS_pkey_mprotect if is_ours() => {
            mappings::protect(a, b, int(c), Some(int(d))).into()
        }
        libc::SYS_madvise if is_ours() => mappings::advise(a, b, int(c)).into(),
        libc::SYS_remap_file_pages if is_ours() => mappings::refuse().into(),
        _ => crate::kernel::syscall(number, arguments),
    }
}
