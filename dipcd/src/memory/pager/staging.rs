//! Where the parts of a large unit wait until they are all there: a file of its own, of holes
//! where nothing came. It goes when the frame has been stepped, or with the link.
#![forbid(unsafe_code)]

use rustix::fs::MemfdFlags;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// The parts of one unit.
#[derive(Debug)]
pub struct Staging {
    file: File,
    bytes: u64,
}

impl Staging {
    /// For a unit of so many bytes.
    pub fn new(bytes: u64) -> io::Result<Staging> {
        let file = rustix::fs::memfd_create("dipc-parts", MemfdFlags::CLOEXEC)?;
        rustix::fs::ftruncate(&file, bytes)?;
        Ok(Staging { file: file.into(), bytes })
    }

    /// A part has come; `false` if it is none of this unit.
    pub fn put(&self, offset: u64, part: &[u8]) -> io::Result<bool> {
        let end = offset.checked_add(part.len() as u64);
        if part.is_empty() || end.is_none_or(|end| end > self.bytes) {
            return Ok(false);
        }
        self.file.write_all_at(part, offset)?;
        Ok(true)
    }

    /// Reads what has come.
    pub fn read(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(into, offset)
    }
}
