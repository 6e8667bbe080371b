//! The functions of the program's own memory, passed on: shared memory's, and mmap's relatives.
//!
//! The latter are called inside other libraries' allocators, also before our constructor has run:
//! looking a function up might allocate, so until then they are system calls.

use std::ffi::{c_int, c_long, c_void};
use std::mem::transmute;
use std::sync::atomic::Ordering;

use super::Real;
use crate::sys::{self, memory};

/// Not every C library has it; who calls it has one that does.
static RAW_FORK: Real = Real::new(c"_Fork");
pub(super) static SHMGET: Real = Real::new(c"shmget");
pub(super) static SHMAT: Real = Real::new(c"shmat");
pub(super) static SHMDT: Real = Real::new(c"shmdt");
pub(super) static SHMCTL: Real = Real::new(c"shmctl");
pub(super) static MMAP: Real = Real::new(c"mmap");
pub(super) static MUNMAP: Real = Real::new(c"munmap");
pub(super) static MREMAP: Real = Real::new(c"mremap");
pub(super) static MPROTECT: Real = Real::new(c"mprotect");
pub(super) static MADVISE: Real = Real::new(c"madvise");

/// shmget(2).
pub fn shmget(key: c_int, bytes: usize, flags: c_int) -> c_int {
    type Function = extern "C" fn(c_int, usize, c_int) -> c_int;
    // SAFETY: the type of shmget.
    let function: Function = unsafe { transmute(SHMGET.get()) };
    function(key, bytes, flags)
}

/// shmat(2).
pub fn shmat(id: c_int, address: usize, flags: c_int) -> usize {
    type Function = extern "C" fn(c_int, usize, c_int) -> usize;
    // SAFETY: the type of shmat, a pointer being one word.
    let function: Function = unsafe { transmute(SHMAT.get()) };
    function(id, address, flags)
}

/// shmdt(2).
pub fn shmdt(address: usize) -> c_int {
    // SAFETY: the type of shmdt, a pointer being one word.
    let function: extern "C" fn(usize) -> c_int = unsafe { transmute(SHMDT.get()) };
    function(address)
}

/// shmctl(2).
pub fn shmctl(id: c_int, command: c_int, buffer: usize) -> c_int {
    type Function = extern "C" fn(c_int, c_int, usize) -> c_int;
    // SAFETY: the type of shmctl, a pointer being one word.
    let function: Function = unsafe { transmute(SHMCTL.get()) };
    function(id, command, buffer)
}

/// `_Fork`.
pub fn fork() -> c_int {
    // SAFETY: the type of _Fork.
    let function: extern "C" fn() -> c_int = unsafe { transmute(RAW_FORK.get()) };
    function()
}

/// A function of mmap's kind, or the system call of that number.
fn pass(real: &Real, number: c_long, arguments: [usize; 6]) -> usize {
    let address: *mut c_void = real.address.load(Ordering::Relaxed);
    if address.is_null() {
        return system_call(number, arguments);
    }
    type Function = extern "C" fn(usize, usize, usize, usize, usize, usize) -> usize;
    // SAFETY: all take up to six arguments of at most one word each, in the same registers.
    let function: Function = unsafe { transmute(address) };
    let [a, b, c, d, e, f] = arguments;
    function(a, b, c, d, e, f)
}

fn system_call(number: c_long, arguments: [usize; 6]) -> usize {
    memory::pass(number, arguments).unwrap_or_else(|errno| {
        sys::set_errno(errno);
        usize::MAX
    })
}

/// mmap(2).
#[inline]
pub fn mmap(arguments: [usize; 6]) -> usize {
    pass(&MMAP, libc::SYS_mmap, arguments)
}

/// munmap(2).
#[inline]
pub fn munmap(address: usize, bytes: usize) -> c_int {
    pass(&MUNMAP, libc::SYS_munmap, [address, bytes, 0, 0, 0, 0]) as c_int
}

/// mremap(2), variadic in C.
#[inline]
pub fn mremap(arguments: [usize; 5]) -> usize {
    let [from, from_bytes, to_bytes, flags, to] = arguments;
    pass(&MREMAP, libc::SYS_mremap, [from, from_bytes, to_bytes, flags, to, 0])
}

/// mprotect(2).
#[inline]
pub fn mprotect(address: usize, bytes: usize, protection: c_int) -> c_int {
    let arguments = [address, bytes, protection as usize, 0, 0, 0];
    pass(&MPROTECT, libc::SYS_mprotect, arguments) as c_int
}

/// pkey_mprotect(2). Not every C library has it.
pub fn pkey_mprotect(address: usize, bytes: usize, protection: c_int, key: c_int) -> c_int {
    let arguments = [address, bytes, protection as usize, key as usize, 0, 0];
    system_call(libc::SYS_pkey_mprotect, arguments) as c_int
}

/// madvise(2).
#[inline]
pub fn madvise(address: usize, bytes: usize, advice: c_int) -> c_int {
    pass(&MADVISE, libc::SYS_madvise, [address, bytes, advice as usize, 0, 0, 0]) as c_int
}

/// remap_file_pages(2). Not every C library has it.
pub fn remap_file_pages(arguments: [usize; 5]) -> c_int {
    let [address, bytes, protection, page, flags] = arguments;
    let arguments = [address, bytes, protection, page, flags, 0];
    system_call(libc::SYS_remap_file_pages, arguments) as c_int
}
