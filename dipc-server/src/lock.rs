//! The lock of a mailbox: many readers or one writer, in the order they came, made of two System V
//! semaphores.
//!
//! ```text
//! room  begins at 30,000: a reader takes one, a writer all
//! gate  0, or 1 while a writer waits for the room or has it
//!
//! reader   { gate is 0, room - 1 }            one operation, both or none
//! writer   { gate is 0, gate + 1 }, then { room - 30,000 }
//! ```
//!
//! A writer at the gate lets no further reader in, so readers cannot starve it. When it leaves, the
//! kernel goes through those that wait in the order they came and lets in whom it can: all readers
//! up to the next writer. So nobody is overtaken by one who came later. Each step is a single
//! `semop` with SEM_UNDO: whenever a server dies, in whichever step, the kernel puts back exactly
//! what it had taken. The undo list belongs to the process, not to the thread, so a thread must not
//! end holding: the guard gives back, also when it unwinds. Every wait is bounded.
#![forbid(unsafe_code)]

use std::io;
use std::time::Duration;

use crate::layout::{Mailbox, ROOM};
use crate::sys::{Op, Set};

/// How long anybody waits for a mailbox. Copies under a lock take microseconds; only a server that
/// was stopped in the middle of one, perhaps on another machine, is waited for that long.
pub const WAIT_MAX: Duration = Duration::from_secs(10);

/// What a holder took, and gives back.
#[derive(Clone, Copy, Debug)]
enum Part {
    /// A reader's permit.
    Permit,
    /// The gate, by a writer who still waits for the room.
    Gate,
    /// Gate and room.
    Whole,
}

/// A mailbox held. Dropping it gives it back.
#[derive(Debug)]
pub struct Held {
    set: Set,
    mailbox: Mailbox,
    part: Part,
}

impl Held {
    /// With other readers.
    pub fn to_read(set: Set, mailbox: Mailbox) -> io::Result<Self> {
        let (gate, room) = mailbox.semaphores();
        let open = Op::zero(gate);
        let enter = Op::add(room, -1).undone();
        if !at_once(set.operate(&[open.now(), enter.now()]))? {
            set.operate_within(&[open, enter], WAIT_MAX)?;
        }
        Ok(Self { set, mailbox, part: Part::Permit })
    }

    /// Alone.
    pub fn to_write(set: Set, mailbox: Mailbox) -> io::Result<Self> {
        let (gate, room) = mailbox.semaphores();
        let open = Op::zero(gate);
        let close = Op::add(gate, 1).undone();
        let empty = Op::add(room, -ROOM).undone();
        if at_once(set.operate(&[open.now(), close, empty.now()]))? {
            return Ok(Self { set, mailbox, part: Part::Whole });
        }
        set.operate_within(&[open, close], WAIT_MAX)?;
        let mut held = Self { set, mailbox, part: Part::Gate };
        set.operate_within(&[empty], WAIT_MAX)?;
        held.part = Part::Whole;
        Ok(held)
    }
}

/// Whether a first try succeeded. It overtakes nobody: with the gate open, and room enough, whoever
/// waited would have been let in already.
fn at_once(tried: io::Result<()>) -> io::Result<bool> {
    match tried {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
        Err(error) => Err(error),
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let (gate, room) = self.mailbox.semaphores();
        let open = Op::add(gate, -1).undone().now();
        // Giving back never waits. It fails only when the set is gone, and then nothing is held.
        let _ = match self.part {
            Part::Permit => self.set.operate(&[Op::add(room, 1).undone()]),
            Part::Gate => self.set.operate(&[open]),
            Part::Whole => self.set.operate(&[Op::add(room, ROOM).undone(), open]),
        };
    }
}
