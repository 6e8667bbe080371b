//! The slots of this process's `done` page: one for each session, with what a session needs to go
//! on after its wire, and what a forked child needs to close the wires it inherited.
//!
//! The table is static and needs no lock: a slot belongs to one session, and a slot taken by the
//! parent of a forked child has another birth number.
#![forbid(unsafe_code)]

use std::sync::atomic::{AtomicI32, AtomicU32, AtomicU64, Ordering};

use dipc_wire::ids::{Seq, Slot};
use dipc_wire::limits::SESSIONS_MAX;
use dipc_wire::sysv::SysvError;

use crate::socket::Socket;
use crate::sys;
use crate::sys::table::{Empty, Table};
use crate::thread::birth;

static SLOTS: Table<Place, { SESSIONS_MAX as usize }> = Table::new();

/// How many slots were ever used; the others need no look.
static USED: AtomicU32 = AtomicU32::new(0);

struct Place {
    /// The process that took it, 0 when free.
    birth: AtomicU64,
    /// The process whose numbers the next two are.
    counts: AtomicU64,
    /// The newest operation.
    last: AtomicU64,
    /// The newest operation whose reply the program has.
    done: AtomicU64,
    /// Its wire's descriptor plus one, 0 for none.
    descriptor: AtomicI32,
    cookie: AtomicU64,
}

impl Empty for Place {
    const EMPTY: Place = Place {
        birth: AtomicU64::new(0),
        counts: AtomicU64::new(0),
        last: AtomicU64::new(0),
        done: AtomicU64::new(0),
        descriptor: AtomicI32::new(0),
        cookie: AtomicU64::new(0),
    };
}

fn place(slot: Slot) -> &'static Place {
    SLOTS.at(slot.0 as usize)
}

/// A free slot, now the caller's. `ENOMEM` when there is none.
pub fn take() -> Result<Slot, SysvError> {
    let mine = birth();
    let index = SLOTS.iter().position(|place| {
        let found = place.birth.load(Ordering::Acquire);
        let (success, failure) = (Ordering::AcqRel, Ordering::Relaxed);
        found != mine && place.birth.compare_exchange(found, mine, success, failure).is_ok()
    });
    let index = index.ok_or(SysvError::ENOMEM)?;
    USED.fetch_max(index as u32 + 1, Ordering::AcqRel);
    let place = SLOTS.at(index);
    if place.counts.swap(mine, Ordering::AcqRel) != mine {
        place.last.store(0, Ordering::Release); // a new page begins at 0
        place.done.store(0, Ordering::Release);
    }
    Ok(Slot(index as u32))
}

/// Gives a slot back, after its session has ended.
pub fn give_back(slot: Slot) {
    let place = place(slot);
    place.descriptor.store(0, Ordering::Release);
    place.birth.store(0, Ordering::Release);
}

/// The number of a session's next operation.
pub fn next(slot: Slot) -> Seq {
    Seq(place(slot).last.fetch_add(1, Ordering::AcqRel) + 1)
}

/// The newest operation whose reply the program has.
pub fn done(slot: Slot) -> Seq {
    Seq(place(slot).done.load(Ordering::Acquire))
}

/// The program has the reply to this operation, or never will want it: told to dipcd through the
/// page, before the call returns.
pub fn finish(slot: Slot, seq: Seq) {
    place(slot).done.store(seq.0, Ordering::Release);
    sys::store_done(slot.0 as usize, seq.0);
}

/// Notes the socket of a session's wire.
pub fn note_wire(slot: Slot, socket: &Socket) {
    let (number, cookie) = socket.name();
    let place = place(slot);
    place.cookie.store(cookie, Ordering::Release);
    place.descriptor.store(number + 1, Ordering::Release);
}

/// In a forked child: closes the wires it inherited. They are its parent's.
pub fn close_inherited() {
    let used = USED.load(Ordering::Acquire) as usize;
    for place in SLOTS.iter().take(used) {
        let number = place.descriptor.swap(0, Ordering::AcqRel);
        if number != 0 {
            drop(Socket::from_name(number - 1, place.cookie.load(Ordering::Acquire)));
        }
    }
}
