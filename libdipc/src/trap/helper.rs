//! The helper of the mprotect trap: closes and opens pages of attachments when dipcd says so.
//!
//! It is a thread with nothing of its own ([`crate::sys::helper`]). It takes the table's lock,
//! which nobody holds while dipcd is asked, so it always answers soon; a program that is stopped
//! stops it too. When the connection ends, nobody can take pages away any more, so all are closed:
//! who touches one then starts anew.
#![forbid(unsafe_code)]

use std::ops::Range;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicU32, Ordering};

use dipc_wire::memory::Access;
use dipc_wire::trap::{Obeyed, Order, Pages, What};

use crate::pieces::{self, Table};
use crate::sys::helper::{self, end_process, receive, send, withdraw};
use crate::sys::memory::{Protection, protect, write_sentinel};
use crate::{client, sys};

const GONE: u32 = 0;
const STARTING: u32 = 1;
const RUNNING: u32 = 2;

fn state() -> &'static AtomicU32 {
    &sys::process().helper
}

/// Whether this process has one.
pub fn is_running() -> bool {
    state().load(Ordering::Acquire) == RUNNING
}

/// Starts it at one end of a connection, of which it makes a copy of its own. Called under the
/// right to change, and while none runs.
pub fn start(socket: &OwnedFd) -> Result<(), i32> {
    while helper::exists() {
        client::pause(); // the one before is about to end
    }
    state().store(STARTING, Ordering::Release);
    let started = helper::start(run, socket.as_raw_fd() as usize);
    if started.is_err() {
        state().store(GONE, Ordering::Release);
        return started;
    }
    while state().load(Ordering::Acquire) == STARTING {
        sys::futex_wait(state(), STARTING);
    }
    Ok(())
}

extern "C" fn run(socket: usize) {
    let socket = socket as RawFd;
    withdraw(socket);
    state().store(RUNNING, Ordering::Release);
    sys::futex_wake(state());
    while let Some(packet) = receive(socket) {
        let Some(order) = Order::from_bytes(&packet) else { break };
        let errno = obey(order.what).err().unwrap_or(0);
        send(socket, &Obeyed { number: order.number, errno }.to_bytes());
    }
    close_all(&pieces::table());
    state().store(GONE, Ordering::Release);
}

fn obey(what: What) -> Result<(), i32> {
    match what {
        What::Name(mm) => write_sentinel(super::sentinel(), mm.0),
        What::Close(pages) => close(&pieces::table(), &range(pages)),
        What::Open(access, pages) => return open(&pieces::table(), access, &range(pages)),
    }
    Ok(())
}

fn range(Pages { address, bytes }: Pages) -> Range<usize> {
    let start = address as usize;
    start..start.saturating_add(bytes as usize)
}

/// Lets nobody touch what lies in a range: the next who does asks dipcd. When there are too many
/// mappings for such a hole, everything is closed.
pub fn close(table: &Table, range: &Range<usize>) {
    let is_closed = |piece: pieces::Piece| {
        protect(piece.start, piece.end - piece.start, Protection::NONE).is_ok()
    };
    if !table.within(range).all(is_closed) {
        close_all(table);
    }
}

/// Closes every attachment, which takes mappings together and needs none.
pub fn close_all(table: &Table) {
    for piece in table.pieces() {
        if protect(piece.start, piece.end - piece.start, Protection::NONE).is_err() {
            end_process(); // it would go on with what others change
        }
    }
}

/// Opens a range as far as the program wants. When there are too many mappings, the others are
/// closed: whoever needs one asks again.
fn open(table: &Table, access: Access, range: &Range<usize>) -> Result<(), i32> {
    let open = || {
        table.within(range).try_for_each(|piece| {
            let wanted = match access {
                Access::Write => piece.wanted,
                Access::Read => piece.wanted.without(Protection::WRITE),
            };
            protect(piece.start, piece.end - piece.start, wanted)
        })
    };
    open().or_else(|_| {
        close_all(table);
        open().inspect_err(|_| close_all(table))
    })
}
