//! A file that the program has just opened: its name, its descriptor, and another file in its
//! place.

use std::ffi::{CStr, c_char, c_int};
use std::io;
use std::os::fd::{AsRawFd, RawFd};

use super::raw;

/// The name by which the kernel has just opened a file.
pub fn opened_path<'a>(path: *const c_char) -> &'a [u8] {
    // SAFETY: the kernel has read it to its end, and it belongs to the call that we are in.
    unsafe { CStr::from_ptr(path) }.to_bytes()
}

/// The descriptor under a stream of libc, or -1 under none.
pub fn descriptor(file: *mut libc::FILE) -> c_int {
    if file.is_null() {
        return -1;
    }
    // SAFETY: fopen has just returned it.
    unsafe { libc::fileno(file) }
}

/// Has the descriptor `fd` name `file`.
///
/// # Errors
/// dup3(2)'s.
pub fn replace(file: &impl AsRawFd, fd: RawFd, closes_on_exec: bool) -> io::Result<()> {
    let flags = if closes_on_exec { libc::O_CLOEXEC as usize } else { 0 };
    let arguments = [file.as_raw_fd() as usize, fd as usize, flags, 0, 0, 0];
    // SAFETY: no pointers; the program, whose descriptor it is, is waiting for it in our call.
    let replaced = unsafe { raw(libc::SYS_dup3, arguments) };
    replaced.map(drop).map_err(io::Error::from_raw_os_error)
}
