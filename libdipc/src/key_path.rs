//! ftok by path: the same key on every machine that has a file of that name, for a cluster whose
//! files have other inode numbers on each.
#![forbid(unsafe_code)]

use std::ffi::c_int;

use rustix::fs::{CWD, Mode, OFlags, openat, readlinkat};
use std::os::fd::AsRawFd;

use dipc_wire::sysv::SysvError;

use crate::policy::Ftok;
use crate::sys::read_program;
use crate::{boundary, policy};

/// Bytes of a path, its end included.
const PATH_BYTES_MAX: usize = 4096;

/// ftok(3) if keys are made of paths here; `None` if they are made as libc does.
pub fn ftok(path: usize, project: c_int) -> Option<c_int> {
    let key = boundary::attempt(|_| match policy::get().ftok {
        Ftok::Native => Ok(None),
        Ftok::Path => {
            let path = canonical(&read_string(path)?)?;
            Ok(Some(from_path(&path, project)))
        }
    });
    key.unwrap_or(None) // an unreadable path is libc's to refuse
}

/// The project in the top byte, as libc has it; the path in the others. Never `IPC_PRIVATE`.
fn from_path(path: &[u8], project: c_int) -> c_int {
    let fold = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3);
    let hash = path.iter().fold(0xcbf2_9ce4_8422_2325, fold);
    let folded = (hash ^ hash >> 24 ^ hash >> 48) as u32 & 0x00ff_ffff;
    ((project as u32 & 0xff) << 24 | folded.max(1)) as c_int
}

/// The kernel's own name for the file.
fn canonical(path: &[u8]) -> Result<Vec<u8>, SysvError> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let file = openat(CWD, path, flags, Mode::empty()).map_err(|_| SysvError::ENOENT)?;
    let link = format!("/proc/self/fd/{}", file.as_raw_fd());
    let name = readlinkat(CWD, link, Vec::new()).map_err(|_| SysvError::ENOENT)?;
    Ok(name.into_bytes())
}

/// A string of the program, read page by page: where it ends, memory may end too.
fn read_string(address: usize) -> Result<Vec<u8>, SysvError> {
    const PAGE: usize = 4096;
    let mut string = Vec::new();
    while string.len() < PATH_BYTES_MAX {
        let from = address + string.len();
        let mut piece = vec![0; PAGE - from % PAGE];
        read_program(from, &mut piece)?;
        if let Some(end) = piece.iter().position(|byte| *byte == 0) {
            string.extend_from_slice(&piece[..end]);
            return Ok(string);
        }
        string.extend(piece);
    }
    Err(SysvError::EINVAL)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_of_path_and_project() {
        let key = from_path(b"/etc/passwd", 'D' as i32);
        assert_eq!(key >> 24, 'D' as i32);
        assert_eq!(key, from_path(b"/etc/passwd", 'D' as i32));
        assert_ne!(key, from_path(b"/etc/group", 'D' as i32));
        assert_ne!(from_path(b"", 0), 0);
    }

    #[test]
    fn a_string_is_read_to_its_end() {
        let string = c"/usr/lib/../lib";
        let read = read_string(string.as_ptr() as usize).expect("readable");
        assert_eq!(read, string.to_bytes());
        assert_eq!(read_string(8), Err(SysvError::EFAULT));
    }
}
