//! The mailboxes: one read, one written, under its lock.
//!
//! A write goes into the half that holds no content and then changes one word, so that a server
//! killed in the middle leaves the old content whole. Invariant: nothing outside the mailbox that
//! was asked for is ever read or written, whatever the segment says.
#![forbid(unsafe_code)]

use std::fmt;
use std::io;

use crate::layout::{Geometry, Mailbox, State};
use crate::lock::Held;
use crate::sys::{Segment, Set};

/// Why a mailbox could not be used, though the client asked rightly.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unusable {
    /// Somebody held it for longer than anybody should.
    Busy,
    /// Somebody removed the set or the segment: this server has nothing left to serve.
    Gone,
    /// Its state word says what no server writes.
    Damaged,
}

impl fmt::Display for Unusable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Busy => "the mailbox is busy",
            Self::Gone => "the mailboxes were removed",
            Self::Damaged => "the mailbox is damaged; a write repairs it",
        })
    }
}

impl From<io::Error> for Unusable {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::WouldBlock => Self::Busy,
            _ => Self::Gone,
        }
    }
}

/// All mailboxes of a port.
#[derive(Debug)]
pub struct Store {
    set: Set,
    segment: Segment,
    geometry: Geometry,
}

impl Store {
    /// Of a set and a segment that are ready, and as large as `geometry` says.
    pub fn new(set: Set, segment: Segment, geometry: Geometry) -> Self {
        assert!(segment.bytes() >= geometry.segment_bytes(), "checked by who opened it");
        Self { set, segment, geometry }
    }

    /// How many and how large.
    pub fn geometry(&self) -> Geometry {
        self.geometry
    }

    /// Begins to read; nobody writes it until the answer is dropped.
    pub fn read(&self, mailbox: Mailbox) -> Result<Content<'_>, Unusable> {
        let held = Held::to_read(self.set, mailbox)?;
        let state = self.state(mailbox).ok_or(Unusable::Damaged)?;
        Ok(Content { store: self, mailbox, state, _held: held })
    }

    /// Replaces the content. `bytes` are at most what a mailbox holds.
    pub fn write(&self, mailbox: Mailbox, bytes: &[u8]) -> Result<(), Unusable> {
        assert!(bytes.len() <= self.geometry.mailbox_bytes(), "checked by the parser");
        let _held = Held::to_write(self.set, mailbox)?;
        let half = self.state(mailbox).map_or(crate::layout::Half::First, |s| s.half.other());
        self.segment.copy_from(self.geometry.half_at(mailbox, half), bytes);
        let state = State { half, length: bytes.len() };
        self.segment.store(self.geometry.state_at(mailbox), state.to_word());
        Ok(())
    }

    fn state(&self, mailbox: Mailbox) -> Option<State> {
        State::from_word(self.segment.load(self.geometry.state_at(mailbox)), self.geometry)
    }
}

/// The content of a mailbox, held for reading.
pub struct Content<'store> {
    store: &'store Store,
    mailbox: Mailbox,
    state: State,
    _held: Held,
}

impl Content<'_> {
    /// Bytes there are.
    pub fn length(&self) -> usize {
        self.state.length
    }

    /// Appends the first `length` bytes, or all if there are fewer.
    pub fn append_to(&self, length: usize, out: &mut Vec<u8>) {
        let at = self.store.geometry.half_at(self.mailbox, self.state.half);
        self.store.segment.append_to(at, length.min(self.state.length), out);
    }
}
