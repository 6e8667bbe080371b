//! The listing commands of msgctl and semctl, as `ipcs` uses them: `*_INFO` tells the highest
//! index, `*_STAT` the object at one. The kernel's objects stand at the kernel's indexes, below
//! 0x8000; the distributed ones of the whole cluster follow from there, for a program that has
//! opted in.
#![forbid(unsafe_code)]

use std::ffi::c_int;

use dipc_wire::client::{Answer, Call, Row};
use dipc_wire::ids::Kind;
use dipc_wire::limits::{ID_NUMBERS, ROWS_MAX};
use dipc_wire::op::StatCheck;
use dipc_wire::sysv::SysvError;

use crate::boundary::{Entry, attempt, call};
use crate::route::Known;
use crate::sys::write_program;
use crate::{client, kernel, layout, names, queues, route, sets};

/// See msgctl(2).
pub const MSG_STAT: c_int = 11;
/// See msgctl(2).
pub const MSG_INFO: c_int = 12;
/// See msgctl(2).
pub const MSG_STAT_ANY: c_int = 13;
/// See semctl(2).
pub const SEM_STAT: c_int = 18;
/// See semctl(2).
pub const SEM_INFO: c_int = 19;
/// See semctl(2).
pub const SEM_STAT_ANY: c_int = 20;

/// The first index of a distributed object: the kernel's end below (IPCMNI).
const INDEX_FIRST: c_int = 0x8000;

/// `MSG_INFO`.
pub fn queues(id: c_int, buffer: usize) -> c_int {
    highest(Kind::Queue, kernel::msgctl(id, MSG_INFO, buffer))
}

/// `SEM_INFO`.
pub fn sets(id: c_int, number: c_int, buffer: usize) -> c_int {
    highest(Kind::Set, kernel::semctl(id, number, SEM_INFO, buffer))
}

/// The highest index, given the kernel's.
fn highest(kind: Kind, kernels: c_int) -> c_int {
    if kernels < 0 || !names::has_opted_in() {
        return kernels;
    }
    match attempt(|entry| refresh(entry, kind)) {
        Ok(count) if count > 0 => INDEX_FIRST + count as c_int - 1,
        _ => kernels,
    }
}

/// Lists anew; returns how many there are.
fn refresh(entry: &Entry, kind: Kind) -> Result<usize, SysvError> {
    let mut rows: Vec<Row> = Vec::new();
    while rows.len() < ID_NUMBERS as usize {
        let after = rows.last().map(|row| row.id);
        let (Answer::Rows(page), _) = client::call(entry, Call::List { kind, after })? else {
            return Err(SysvError::EIO);
        };
        let full = page.len() == ROWS_MAX;
        rows.extend(page);
        if !full {
            break;
        }
    }
    let count = rows.len();
    entry.thread.with(|state| state.listing = rows);
    Ok(count)
}

/// The object at an index, from the last listing of this thread, or from a new one.
fn at(entry: &Entry, kind: Kind, index: c_int) -> Result<Row, SysvError> {
    let index = usize::try_from(index - INDEX_FIRST).map_err(|_| SysvError::EINVAL)?;
    if entry.thread.with(|state| state.listing.is_empty()) {
        refresh(entry, kind)?;
    }
    let row = entry.thread.with(|state| state.listing.get(index).copied());
    row.ok_or(SysvError::EINVAL)
}

/// `MSG_STAT` and `MSG_STAT_ANY`.
pub fn queue(index: c_int, buffer: usize, check: StatCheck) -> c_int {
    let command = match check {
        StatCheck::ReadPermission => MSG_STAT,
        StatCheck::AnyMode => MSG_STAT_ANY,
    };
    if index < INDEX_FIRST || !names::has_opted_in() {
        return kernel::msgctl(index, command, buffer);
    }
    call(|entry| {
        let row = at(entry, Kind::Queue, index)?;
        let bytes = match find(entry, Kind::Queue, row)? {
            Known::There(home) => layout::queue(&queues::stat(entry, (row.id, home), check)?),
            Known::Here(kernel) => queues::stat_here(entry, row.id, kernel, check)?,
        };
        write_program(buffer, &bytes)?;
        Ok(row.id.raw())
    })
}

/// `SEM_STAT` and `SEM_STAT_ANY`.
pub fn set(index: c_int, buffer: usize, check: StatCheck) -> c_int {
    let command = match check {
        StatCheck::ReadPermission => SEM_STAT,
        StatCheck::AnyMode => SEM_STAT_ANY,
    };
    if index < INDEX_FIRST || !names::has_opted_in() {
        return kernel::semctl(index, 0, command, buffer);
    }
    call(|entry| {
        let row = at(entry, Kind::Set, index)?;
        let bytes = match find(entry, Kind::Set, row)? {
            Known::There(home) => layout::set(&sets::stat(entry, (row.id, home), check)?),
            Known::Here(kernel) => sets::stat_here(entry, row.id, kernel, check)?,
        };
        write_program(buffer, &bytes)?;
        Ok(row.id.raw())
    })
}

fn find(entry: &Entry, kind: Kind, row: Row) -> Result<Known, SysvError> {
    match client::call(entry, Call::Resolve { kind, id: row.id })? {
        (Answer::Object { place, .. }, _) => {
            let known = Known::from(place);
            route::learn(kind, row.id, known);
            Ok(known)
        }
        _ => Err(SysvError::EIO),
    }
}
