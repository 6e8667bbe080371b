//! The functions that open a file: libc's, and after that a look whether it is one of those that
//! show System V objects.

use std::ffi::{c_char, c_int};

use crate::kernel::files as kernel;
use crate::sys::files::descriptor;
use crate::tables::opened;

/// open(2).
#[unsafe(no_mangle)]
pub extern "C-unwind" fn open(path: *const c_char, flags: c_int, mode: c_int) -> c_int {
    opened(kernel::open(&kernel::OPEN, path, flags, mode), path)
}

/// The same under the name that programs with large files use.
#[unsafe(no_mangle)]
pub extern "C-unwind" fn open64(path: *const c_char, flags: c_int, mode: c_int) -> c_int {
    opened(kernel::open(&kernel::OPEN64, path, flags, mode), path)
}

/// The same in programs compiled with `_FORTIFY_SOURCE`.
#[unsafe(no_mangle)]
pub extern "C-unwind" fn __open_2(path: *const c_char, flags: c_int) -> c_int {
    opened(kernel::open(&kernel::CHECKED_OPEN, path, flags, 0), path)
}

/// The same in programs with both.
#[unsafe(no_mangle)]
pub extern "C-unwind" fn __open64_2(path: *const c_char, flags: c_int) -> c_int {
    opened(kernel::open(&kernel::CHECKED_OPEN64, path, flags, 0), path)
}

/// openat(2).
#[unsafe(no_mangle)]
pub extern "C-unwind" fn openat(
    directory: c_int,
    path: *const c_char,
    flags: c_int,
    mode: c_int,
) -> c_int {
    opened(kernel::openat(&kernel::OPENAT, directory, path, flags, mode), path)
}

/// The same under the name that programs with large files use.
#[unsafe(no_mangle)]
pub extern "C-unwind" fn openat64(
    directory: c_int,
    path: *const c_char,
    flags: c_int,
    mode: c_int,
) -> c_int {
    opened(kernel::openat(&kernel::OPENAT64, directory, path, flags, mode), path)
}

/// The same in programs compiled with `_FORTIFY_SOURCE`.
#[unsafe(no_mangle)]
pub extern "C-unwind" fn __openat_2(directory: c_int, path: *const c_char, flags: c_int) -> c_int {
    opened(kernel::openat(&kernel::CHECKED_OPENAT, directory, path, flags, 0), path)
}

/// The same in programs with both.
#[unsafe(no_mangle)]
pub extern "C-unwind" fn __openat64_2(
    directory: c_int,
    path: *const c_char,
    flags: c_int,
) -> c_int {
    opened(kernel::openat(&kernel::CHECKED_OPENAT64, directory, path, flags, 0), path)
}

/// fopen(3). Nothing has been read into its buffer yet.
#[unsafe(no_mangle)]
pub extern "C-unwind" fn fopen(path: *const c_char, mode: *const c_char) -> *mut libc::FILE {
    let file = kernel::fopen(&kernel::FOPEN, path, mode);
    opened(descriptor(file), path);
    file
}

/// The same under the name that programs with large files use.
#[unsafe(no_mangle)]
pub extern "C-unwind" fn fopen64(path: *const c_char, mode: *const c_char) -> *mut libc::FILE {
    let file = kernel::fopen(&kernel::FOPEN64, path, mode);
    opened(descriptor(file), path);
    file
}
