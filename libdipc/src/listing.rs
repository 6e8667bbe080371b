//! The listing commands of the `*ctl` calls, as `ipcs` uses them: `*_INFO` tells the highest
//! index, `*_STAT` the object at one. The kernel's objects stand at the kernel's indexes, below
//! 0x8000; for a program that has opted in the distributed ones of the whole cluster follow from
//! there, and the kernel's own objects behind those whose home is here are not shown.
#![forbid(unsafe_code)]

use std::ffi::c_int;

use dipc_wire::client::{Answer, Call, Row};
use dipc_wire::ids::{KernelId, Kind, NodeId, ObjectId};
use dipc_wire::limits::{ID_NUMBERS, ROWS_MAX};
use dipc_wire::op::StatCheck;
use dipc_wire::sysv::SysvError;

use crate::boundary::{Entry, attempt, call, fail};
use crate::route::Known;
use crate::sys::memory::PAGE_BYTES;
use crate::sys::{read_program, write_program};
use crate::{client, kernel, layout, names, queues, route, segments, sets};

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
/// See shmctl(2).
pub const SHM_STAT: c_int = 13;
/// See shmctl(2).
pub const SHM_INFO: c_int = 14;
/// See shmctl(2).
pub const SHM_STAT_ANY: c_int = 15;

/// The first index of a distributed object: the kernel's end below (IPCMNI).
const INDEX_FIRST: c_int = 0x8000;

/// The distributed objects of one kind.
pub struct Listing {
    kind: Kind,
    objects: Vec<(ObjectId, Known)>,
}

/// `MSG_INFO`: of what is used it counts queues, messages and bytes.
pub fn queues(id: c_int, buffer: usize) -> c_int {
    const MSGPOOL: usize = 0;
    const MSGMAP: usize = 1;
    const MSGTQL: usize = 6;
    highest(Kind::Queue, kernel::msgctl(id, MSG_INFO, buffer), buffer, |entry, remote| {
        let stat = queues::stat(entry, remote, StatCheck::AnyMode)?;
        Ok([(MSGPOOL, 1), (MSGMAP, stat.qnum), (MSGTQL, stat.cbytes)])
    })
}

/// `SEM_INFO`: of what is used it counts sets and semaphores.
pub fn sets(id: c_int, number: c_int, buffer: usize) -> c_int {
    const SEMUSZ: usize = 7;
    const SEMAEM: usize = 9;
    highest(Kind::Set, kernel::semctl(id, number, SEM_INFO, buffer), buffer, |entry, remote| {
        let stat = sets::stat(entry, remote, StatCheck::AnyMode)?;
        Ok([(SEMUSZ, 1), (SEMAEM, stat.nsems)])
    })
}

/// `SHM_INFO`: of what is used it counts segments and their pages.
pub fn segments(id: c_int, buffer: usize) -> c_int {
    const USED_IDS: usize = 0;
    const SHM_TOT: usize = 2;
    let kernels = kernel::memory::shmctl(id, SHM_INFO, buffer);
    highest(Kind::Segment, kernels, buffer, |_, (id, _)| {
        let stat = segments::stat(id, StatCheck::AnyMode)?;
        Ok([(USED_IDS, 1), (SHM_TOT, stat.bytes.div_ceil(PAGE_BYTES as u64))])
    })
}

/// The highest index, given the kernel's. What objects elsewhere use is added to the program's
/// structure of ints, which the kernel has filled in: `used` tells the fields and how much.
fn highest<const FIELDS: usize>(
    kind: Kind,
    kernels: c_int,
    buffer: usize,
    used: impl Fn(&Entry, queues::Remote) -> Result<[(usize, u64); FIELDS], SysvError>,
) -> c_int {
    if kernels < 0 || !names::has_opted_in() {
        return kernels;
    }
    let refreshed = attempt(|entry| {
        let objects = anew(entry, kind)?;
        for (id, known) in &objects {
            let Known::There(home) = known else { continue };
            match used(entry, (*id, *home)) {
                Ok(used) => used.iter().try_for_each(|more| add(buffer, *more))?,
                Err(SysvError::EINVAL | SysvError::EIDRM) => {} // gone meanwhile
                Err(_) => break,
            }
        }
        Ok(objects.len())
    });
    match refreshed {
        Ok(count) if count > 0 => INDEX_FIRST + count as c_int - 1,
        _ => kernels,
    }
}

/// Adds to one of the ints at `buffer`.
fn add(buffer: usize, (field, more): (usize, u64)) -> Result<(), SysvError> {
    let (address, mut bytes) = (buffer + field * size_of::<c_int>(), [0; size_of::<c_int>()]);
    read_program(address, &mut bytes)?;
    let sum = c_int::from_ne_bytes(bytes).wrapping_add(more as c_int);
    Ok(write_program(address, &sum.to_ne_bytes())?)
}

/// The distributed objects of one kind as they are now, and where.
pub fn anew(entry: &Entry, kind: Kind) -> Result<Vec<(ObjectId, Known)>, SysvError> {
    refresh(entry, kind)?;
    with_objects(entry, kind, <[_]>::to_vec)
}

/// Looks at the last listing of this thread, or at a new one.
fn with_objects<T>(
    entry: &Entry,
    kind: Kind,
    look: impl FnOnce(&[(ObjectId, Known)]) -> T,
) -> Result<T, SysvError> {
    let is_there = |listing: &Listing| listing.kind == kind;
    if !entry.thread.with(|state| state.listing.as_ref().is_some_and(is_there)) {
        refresh(entry, kind)?;
    }
    let objects =
        entry.thread.with(|state| state.listing.as_ref().map(|listing| look(&listing.objects)));
    objects.ok_or(SysvError::EIO)
}

/// Lists anew.
fn refresh(entry: &Entry, kind: Kind) -> Result<(), SysvError> {
    let mut rows: Vec<Row> = Vec::new();
    while rows.len() < ID_NUMBERS as usize {
        let after = rows.last().map(|row| row.id);
        let (Answer::Rows(page), _) = client::call(Call::List { kind, after })? else {
            return Err(SysvError::EIO);
        };
        let full = page.len() == ROWS_MAX;
        rows.extend(page);
        if !full {
            break;
        }
    }
    let objects = places(kind, &rows);
    entry.thread.with(|state| state.listing = Some(Listing { kind, objects }));
    Ok(())
}

/// Where the objects are. One object of a home that is reached by wires tells it for all of that
/// home's. One that is gone meanwhile is left out.
fn places(kind: Kind, rows: &[Row]) -> Vec<(ObjectId, Known)> {
    let mut elsewhere: Vec<NodeId> = Vec::new();
    let mut objects = Vec::with_capacity(rows.len());
    for row in rows {
        let known = if elsewhere.contains(&row.home) {
            Ok(Known::There(row.home))
        } else {
            route::resolve(kind, row.id)
        };
        if let Ok(known) = known {
            if matches!(known, Known::There(_)) && !elsewhere.contains(&row.home) {
                elsewhere.push(row.home);
            }
            objects.push((row.id, known));
        }
    }
    objects
}

/// The distributed object at an index.
fn at(entry: &Entry, kind: Kind, index: c_int) -> Result<(ObjectId, Known), SysvError> {
    let index = usize::try_from(index - INDEX_FIRST).map_err(|_| SysvError::EINVAL)?;
    let object = with_objects(entry, kind, |objects| objects.get(index).copied())?;
    object.ok_or(SysvError::EINVAL)
}

/// Whether the kernel's object with this id is one behind a distributed one.
fn is_behind(kind: Kind, kernel: c_int) -> bool {
    let behind = Known::Here(KernelId(kernel));
    let found = attempt(|entry| {
        with_objects(entry, kind, |objects| objects.iter().any(|(_, known)| *known == behind))
    });
    found == Ok(true)
}

/// `MSG_STAT` and `MSG_STAT_ANY`.
pub fn queue(index: c_int, buffer: usize, check: StatCheck) -> c_int {
    let command = match check {
        StatCheck::ReadPermission => MSG_STAT,
        StatCheck::AnyMode => MSG_STAT_ANY,
    };
    if !names::has_opted_in() {
        return kernel::msgctl(index, command, buffer);
    }
    if index < INDEX_FIRST {
        let mut unused = [0; layout::QUEUE_BYTES];
        let id = kernel::msgctl(index, MSG_STAT_ANY, unused.as_mut_ptr() as usize);
        return match id >= 0 && is_behind(Kind::Queue, id) {
            true => fail(SysvError::EINVAL),
            false => kernel::msgctl(index, command, buffer),
        };
    }
    call(|entry| {
        let (id, known) = at(entry, Kind::Queue, index)?;
        let bytes = match known {
            Known::There(home) => layout::queue(&queues::stat(entry, (id, home), check)?),
            Known::Here(kernel) => queues::stat_here(id, kernel, check)?,
        };
        write_program(buffer, &bytes)?;
        Ok(id.raw())
    })
}

/// `SHM_STAT` and `SHM_STAT_ANY`. No segment of the kernel's stands behind one of ours.
pub fn segment(index: c_int, buffer: usize, check: StatCheck) -> c_int {
    let command = match check {
        StatCheck::ReadPermission => SHM_STAT,
        StatCheck::AnyMode => SHM_STAT_ANY,
    };
    if index < INDEX_FIRST || !names::has_opted_in() {
        return kernel::memory::shmctl(index, command, buffer);
    }
    call(|entry| {
        let (id, _) = at(entry, Kind::Segment, index)?;
        write_program(buffer, &layout::segment(&segments::stat(id, check)?))?;
        Ok(id.raw())
    })
}

/// `SEM_STAT` and `SEM_STAT_ANY`.
pub fn set(index: c_int, buffer: usize, check: StatCheck) -> c_int {
    let command = match check {
        StatCheck::ReadPermission => SEM_STAT,
        StatCheck::AnyMode => SEM_STAT_ANY,
    };
    if !names::has_opted_in() {
        return kernel::semctl(index, 0, command, buffer);
    }
    if index < INDEX_FIRST {
        let mut unused = [0; layout::SET_BYTES];
        let id = kernel::semctl(index, 0, SEM_STAT_ANY, unused.as_mut_ptr() as usize);
        return match id >= 0 && is_behind(Kind::Set, id) {
            true => fail(SysvError::EINVAL),
            false => kernel::semctl(index, 0, command, buffer),
        };
    }
    call(|entry| {
        let (id, known) = at(entry, Kind::Set, index)?;
        let bytes = match known {
            Known::There(home) => layout::set(&sets::stat(entry, (id, home), check)?),
            Known::Here(kernel) => sets::stat_here(id, kernel, check)?,
        };
        write_program(buffer, &bytes)?;
        Ok(id.raw())
    })
}
