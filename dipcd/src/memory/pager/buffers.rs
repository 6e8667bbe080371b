//! Locked memory for contents on their way, taken for one step and given back: a page that is
//! filled from memory that faults could be seen half filled.
#![forbid(unsafe_code)]

use parking_lot::Mutex;
use std::io;
use std::ops::{Deref, DerefMut};

use dipc_wire::limits::PART_BYTES;

use crate::sys::buffer::LockedBuffer;

/// Buffers that are kept while nobody needs them.
const KEPT: usize = 4;

/// Buffers of [`PART_BYTES`] bytes each.
#[derive(Default)]
pub struct Buffers {
    free: Mutex<Vec<LockedBuffer>>,
}

/// One of them; its owner may write what he likes into it, and finds what others left.
pub struct Buffer<'a> {
    buffers: &'a Buffers,
    buffer: Option<LockedBuffer>,
}

impl Buffers {
    /// Takes one.
    pub fn take(&self) -> io::Result<Buffer<'_>> {
        let free = self.free.lock().pop();
        let buffer = match free {
            Some(buffer) => buffer,
            None => LockedBuffer::new(PART_BYTES)?,
        };
        Ok(Buffer { buffers: self, buffer: Some(buffer) })
    }
}

impl Buffer<'_> {
    /// Puts bytes into it that came otherwise; no more than it has room for.
    pub fn hold(&mut self, bytes: &[u8]) -> &[u8] {
        self[..bytes.len()].copy_from_slice(bytes);
        &self[..bytes.len()]
    }
}

impl Deref for Buffer<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.buffer.as_ref().expect("it is given back only at the end")
    }
}

impl DerefMut for Buffer<'_> {
    fn deref_mut(&mut self) -> &mut [u8] {
        self.buffer.as_mut().expect("it is given back only at the end")
    }
}

impl Drop for Buffer<'_> {
    fn drop(&mut self) {
        let mut free = self.buffers.free.lock();
        if free.len() < KEPT {
            free.extend(self.buffer.take());
        }
    }
}
