//! The functions that open a file by its name, passed on.
//!
//! Allocators open files before our constructor has run, and looking a function up might allocate:
//! until then they are system calls. All may end by cancellation.

use std::ffi::{c_char, c_int, c_void};
use std::mem::transmute;
use std::sync::atomic::Ordering;

use super::Real;
use crate::sys::{self, memory};

/// open(2), and by the names that large files and `_FORTIFY_SOURCE` give it.
pub static OPEN: Real = Real::new(c"open");
/// See [`OPEN`].
pub static OPEN64: Real = Real::new(c"open64");
/// See [`OPEN`].
pub static CHECKED_OPEN: Real = Real::new(c"__open_2");
/// See [`OPEN`].
pub static CHECKED_OPEN64: Real = Real::new(c"__open64_2");
/// openat(2), by as many names.
pub static OPENAT: Real = Real::new(c"openat");
/// See [`OPENAT`].
pub static OPENAT64: Real = Real::new(c"openat64");
/// See [`OPENAT`].
pub static CHECKED_OPENAT: Real = Real::new(c"__openat_2");
/// See [`OPENAT`].
pub static CHECKED_OPENAT64: Real = Real::new(c"__openat64_2");
/// fopen(3).
pub static FOPEN: Real = Real::new(c"fopen");
/// See [`FOPEN`].
pub static FOPEN64: Real = Real::new(c"fopen64");

/// Not every C library has all.
pub(super) static ALL: [&Real; 10] = [
    &OPEN,
    &OPEN64,
    &CHECKED_OPEN,
    &CHECKED_OPEN64,
    &OPENAT,
    &OPENAT64,
    &CHECKED_OPENAT,
    &CHECKED_OPENAT64,
    &FOPEN,
    &FOPEN64,
];

/// A function of open's kind; those without a mode find none where they look.
pub fn open(real: &Real, path: *const c_char, flags: c_int, mode: c_int) -> c_int {
    let address: *mut c_void = real.address.load(Ordering::Relaxed);
    if address.is_null() {
        let arguments = [path.addr(), flags as usize, mode as usize, 0, 0, 0];
        return system_call(libc::SYS_open, arguments);
    }
    type Function = extern "C-unwind" fn(*const c_char, c_int, c_int) -> c_int;
    // SAFETY: the type of open; a variable argument comes in the register of a fixed one.
    let function: Function = unsafe { transmute(address) };
    function(path, flags, mode)
}

/// A function of openat's kind.
pub fn openat(
    real: &Real,
    directory: c_int,
    path: *const c_char,
    flags: c_int,
    mode: c_int,
) -> c_int {
    let address: *mut c_void = real.address.load(Ordering::Relaxed);
    if address.is_null() {
        let arguments = [directory as usize, path.addr(), flags as usize, mode as usize, 0, 0];
        return system_call(libc::SYS_openat, arguments);
    }
    type Function = extern "C-unwind" fn(c_int, *const c_char, c_int, c_int) -> c_int;
    // SAFETY: the type of openat; a variable argument comes in the register of a fixed one.
    let function: Function = unsafe { transmute(address) };
    function(directory, path, flags, mode)
}

/// A function of fopen's kind.
pub fn fopen(real: &Real, path: *const c_char, mode: *const c_char) -> *mut libc::FILE {
    type Function = extern "C-unwind" fn(*const c_char, *const c_char) -> *mut libc::FILE;
    // SAFETY: the type of fopen.
    let function: Function = unsafe { transmute(real.get()) };
    function(path, mode)
}

fn system_call(number: libc::c_long, arguments: [usize; 6]) -> c_int {
    memory::pass(number, arguments).map_or_else(
        |errno| {
            sys::set_errno(errno);
            -1
        },
        |fd| fd as c_int,
    )
}
