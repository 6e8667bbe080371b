//! A file of 64-bit numbers, mapped: each is read and written by one load or store, so whoever is
//! killed leaves the old one or the new one. The file is sparse; a hole is zeros.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::ptr;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::SeekFrom;
use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags};

const WORD_BYTES: usize = size_of::<u64>();

/// Numbers in a mapped file, of which this process has the only writer, or another one that it
/// takes turns with.
#[derive(Debug)]
pub struct Words {
    file: File,
    start: *mut AtomicU64,
    count: usize,
}

// SAFETY: everything behind the pointer is atomic.
unsafe impl Send for Words {}
// SAFETY: as above.
unsafe impl Sync for Words {}

impl Words {
    /// Opens a file of so many numbers, or makes one of zeros.
    pub fn open(path: &Path, count: usize) -> io::Result<Words> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        let file = options.open(path)?;
        let bytes = count.max(1) * WORD_BYTES;
        file.set_len(bytes as u64)?;
        let access = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping at a place of the kernel's choice disturbs nothing.
        let start = unsafe {
            rustix::mm::mmap(ptr::null_mut(), bytes, access, MapFlags::SHARED, &file, 0)
        }?;
        Ok(Words { file, start: start.cast(), count })
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.count
    }

    /// One of them. A number beyond the last is a bug.
    pub fn get(&self, index: usize) -> u64 {
        self.word(index).load(Ordering::Acquire)
    }

    /// Replaces one of them.
    pub fn set(&self, index: usize, word: u64) {
        self.word(index).store(word, Ordering::Release);
    }

    /// The first index from this one on that does not lie in a hole of the file.
    pub fn next(&self, index: usize) -> Option<usize> {
        if index >= self.count {
            return None;
        }
        match rustix::fs::seek(&self.file, SeekFrom::Data((index * WORD_BYTES) as u64)) {
            Ok(data) => Some(index.max(data as usize / WORD_BYTES)).filter(|at| *at < self.count),
            Err(Errno::NXIO) => None,
            // The mapping is there whatever the file says: nothing is passed over.
            Err(_) => Some(index),
        }
    }

    /// Makes all of them zeros again.
    pub fn clear(&self) -> io::Result<()> {
        let bytes = (self.count.max(1) * WORD_BYTES) as u64;
        let flags = rustix::fs::FallocateFlags::PUNCH_HOLE | rustix::fs::FallocateFlags::KEEP_SIZE;
        Ok(rustix::fs::fallocate(&self.file, flags, 0, bytes)?)
    }

    fn word(&self, index: usize) -> &AtomicU64 {
        assert!(index < self.count, "word {index} of {}", self.count);
        // SAFETY: the index is within the mapping.
        let word = unsafe { self.start.add(index) };
        // SAFETY: the mapping is aligned, initialised by the kernel, and lives as long as this; it
        // is written by atomic stores only.
        unsafe { &*word }
    }
}

impl Drop for Words {
    fn drop(&mut self) {
        let bytes = self.count.max(1) * WORD_BYTES;
        // SAFETY: the mapping is this one's own, and every reference into it has ended.
        let _ = unsafe { rustix::mm::munmap(self.start.cast(), bytes) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_outlive_their_writer_and_holes_are_passed_over() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("words");
        let words = Words::open(&path, 10_000).unwrap();
        assert_eq!(words.next(0), None);
        words.set(9_000, 7);
        drop(words);
        let words = Words::open(&path, 10_000).unwrap();
        let first = words.next(0).unwrap();
        assert!((8_000..=9_000).contains(&first), "{first}");
        assert_eq!((words.get(9_000), words.get(3)), (7, 0));
        assert_eq!(words.next(9_001), Some(9_001), "in the same page of the file");
        words.clear().unwrap();
        assert_eq!((words.get(9_000), words.next(0)), (0, None));
    }
}
