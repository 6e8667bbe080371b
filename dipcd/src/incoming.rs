//! What has come in by one connection: records as they came, and what was in them, in one buffer.
//! A record is opened where it lies; only what follows the beginning of a frame in an earlier
//! record is moved up to it, so that each frame is handed out as one slice.
//!
//! ```text
//! handed out ─▶ plain bytes of records that were opened ─▶ gap ─▶ records as they came ─▶ room
//! ```
//!
//! The buffer does not fault ([`LockedBuffer`]), so pages of segments are filled from it as they
//! lie. It grows as bytes arrive, and is given back after a very large frame.
#![forbid(unsafe_code)]

use std::io;
use std::ops::Range;

use dipc_wire::codec::WireError;
use dipc_wire::noise::Opener;

use crate::sys::buffer::LockedBuffer;

/// What a buffer has at first: enough for a message of the kernel's usual `msgmax`.
const FIRST_BYTES: usize = 16 << 10;
/// What it keeps if frames have been as large: enough for pages that are read ahead.
pub const LARGE_BYTES: usize = 256 << 10;
/// Where the first record begins: what follows its length is aligned, as the cipher likes it.
const FIRST_RECORD: usize = 64 - 2;
/// The most that is asked of the kernel at a time.
const ROOM_BYTES_MAX: usize = 128 << 10;

/// Bytes that have come in and were not handed out.
#[derive(Debug, Default)]
pub struct Incoming {
    /// None yet if nothing has come.
    buffer: Option<LockedBuffer>,
    plain: Range<usize>,
    sealed: Range<usize>,
}

impl Incoming {
    /// Where the next bytes are to be put, or the first of them; [`Incoming::came`] follows.
    pub fn room(&mut self) -> io::Result<&mut [u8]> {
        if self.is_empty() {
            (self.plain, self.sealed) = (0..0, FIRST_RECORD..FIRST_RECORD);
            self.buffer.take_if(|buffer| buffer.len() > LARGE_BYTES);
        }
        if self.plain.is_empty() || self.sealed.end == self.capacity() {
            self.move_up();
        }
        // A quarter, lest the kernel is asked for a few bytes at a time.
        if self.sealed.end >= self.capacity() / 4 * 3 {
            self.grow()?;
        }
        let most = self.missing().unwrap_or(ROOM_BYTES_MAX);
        let room = self.buffer.as_mut().map_or(&mut [][..], |it| &mut it[self.sealed.end..]);
        let most = room.len().min(most);
        Ok(&mut room[..most])
    }

    /// What the record that has come in part lacks. No more is asked for then: behind it another
    /// one would begin anywhere.
    fn missing(&self) -> Option<usize> {
        let begun = &self.buffer.as_ref()?[self.sealed.clone()];
        let length = u16::from_be_bytes(*begun.first_chunk()?);
        Some(2 + usize::from(length) - begun.len())
    }

    /// So many bytes were put there.
    pub fn came(&mut self, count: usize) {
        self.sealed.end += count;
    }

    /// Opens one record, if it is there whole.
    pub fn open(&mut self, opener: &mut Opener) -> Result<bool, WireError> {
        let Some(buffer) = &mut self.buffer else { return Ok(false) };
        let start = self.sealed.start;
        let opened = opener.open_in_place(&mut buffer[self.sealed.clone()])?;
        let Some(opened) = opened else { return Ok(false) };
        let plain = start + opened.plain.start..start + opened.plain.end;
        self.sealed.start += opened.used;
        if self.plain.is_empty() {
            self.plain = plain;
        } else {
            let length = plain.len();
            buffer.copy_within(plain, self.plain.end);
            self.plain.end += length;
        }
        Ok(true)
    }

    /// What is opened and was not handed out.
    pub fn plain(&self) -> &[u8] {
        self.buffer.as_ref().map_or(&[], |buffer| &buffer[self.plain.clone()])
    }

    /// Hands out the first bytes of it.
    pub fn take(&mut self, count: usize) -> &[u8] {
        let taken = self.plain.start..self.plain.start + count;
        self.plain.start = taken.end;
        self.buffer.as_ref().map_or(&[], |buffer| &buffer[taken])
    }

    /// Whether nothing is left.
    pub fn is_empty(&self) -> bool {
        self.plain.is_empty() && self.sealed.is_empty()
    }

    /// Bytes that the buffer has.
    pub fn capacity(&self) -> usize {
        self.buffer.as_ref().map_or(0, |buffer| buffer.len())
    }

    /// Makes room behind what is there. A record that begins now begins where it is opened fastest.
    fn move_up(&mut self) {
        let (plain, sealed) = (self.plain.clone(), self.sealed.clone());
        let start = if plain.is_empty() { FIRST_RECORD } else { plain.len() };
        if start >= sealed.start && !sealed.is_empty() {
            return;
        }
        self.plain = 0..plain.len();
        self.sealed = start..start + sealed.len();
        if let Some(buffer) = &mut self.buffer {
            buffer.copy_within(plain, 0);
            buffer.copy_within(sealed, start);
        }
    }

    /// Twice as large, or a little larger.
    fn grow(&mut self) -> io::Result<()> {
        let more = self.capacity().clamp(FIRST_BYTES, ROOM_BYTES_MAX);
        match &mut self.buffer {
            Some(buffer) => buffer.grow(more)?,
            None => self.buffer = Some(LockedBuffer::new(more)?),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dipc_wire::ids::Secret;
    use dipc_wire::noise::{Cipher, Handshake, Sealer};

    fn pair(cipher: Cipher) -> (Sealer, Opener) {
        let secret = Secret([7; 32]);
        let (mut near, mut far) = (Handshake::initiator(&secret), Handshake::responder(&secret));
        far.read(&near.write()).unwrap();
        near.read(&far.write()).unwrap();
        (near.finish(cipher).0, far.finish(cipher).1)
    }

    /// However the records arrive, and however much of them is taken at a time.
    #[test]
    fn bytes_come_out_in_order() {
        let sent: Vec<u8> = (0..400_000u32).map(|number| (number / 7) as u8).collect();
        for (cipher, step, most) in [
            (Cipher::AesGcm, 1000, 100),
            (Cipher::Plain, 100_000, 70_000),
            (Cipher::AesGcm, 400_000, 1),
            (Cipher::Plain, 7, 400_000),
        ] {
            let (mut sealer, mut opener) = pair(cipher);
            let (mut records, mut got) = (Vec::new(), Vec::new());
            sent.chunks(30_000).for_each(|piece| sealer.seal(piece, &mut records));
            let mut incoming = Incoming::default();
            let mut rest = records.as_slice();
            while !rest.is_empty() {
                let room = incoming.room().unwrap();
                let count = room.len().min(step).min(rest.len());
                room[..count].copy_from_slice(&rest[..count]);
                incoming.came(count);
                rest = &rest[count..];
                while incoming.open(&mut opener).unwrap() {}
                let taken = incoming.plain().len().min(most);
                got.extend_from_slice(incoming.take(taken));
            }
            got.extend_from_slice(incoming.plain());
            assert!(got == sent, "{cipher:?}, {step} bytes at a time");
        }
    }
}
