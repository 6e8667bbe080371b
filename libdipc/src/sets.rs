//! Semaphore sets: semget, semop, semtimedop, semctl on distributed sets. What the program's
//! arguments say is checked in the kernel's order (ipc/sem.c); what the set says, home's kernel
//! checks.
#![forbid(unsafe_code)]

use std::ffi::c_int;

use dipc_wire::ids::{KernelId, Kind, ObjectId};
use dipc_wire::limits::SEM_OPS_MAX;
use dipc_wire::op::{Op, Outcome, SemGet, StatCheck, Wait};
use dipc_wire::sysv::{SemBuf, SetStat, SysvError};

use crate::boundary::{self, Entry, Point, Step, call, fail};
use crate::queues::{Remote, describe, done, removed, value};
use crate::route::{self, Route};
use crate::session::{Patience, Session};
use crate::sys::{self, read_program, write_program};
use crate::time::Moment;
use crate::{kernel, layout, listing, names};

const GETPID: c_int = 11;
const GETVAL: c_int = 12;
const GETALL: c_int = 13;
const GETNCNT: c_int = 14;
const GETZCNT: c_int = 15;
const SETVAL: c_int = 16;
const SETALL: c_int = 17;

/// semget(2).
pub fn get(key: c_int, count: c_int, flags: c_int) -> c_int {
    let natively = || kernel::semget(key, count, flags);
    match u64::try_from(count) {
        Ok(size) => names::get(Kind::Set, key, flags, size).unwrap_or_else(natively),
        Err(_) => natively(), // EINVAL, whatever the key
    }
}

/// semop(2) and semtimedop(2) on a set at another home; `timeout` is the address of a timespec, or
/// 0 for none. The time is measured here, from the call on.
pub fn operate(remote: Remote, ops: usize, count: usize, timeout: usize) -> c_int {
    let result = boundary::serve(
        Point::Other,
        |entry| begin(entry, remote, ops, count, timeout),
        |entry, waited| Session::resume(entry, waited, done),
    );
    result.unwrap_or_else(fail)
}

fn begin(
    entry: &Entry,
    (id, home): Remote,
    ops: usize,
    count: usize,
    timeout: usize,
) -> Result<Step<c_int>, SysvError> {
    let timeout = read_timeout(timeout)?;
    if count > SEM_OPS_MAX {
        return Err(SysvError::E2BIG);
    }
    if count < 1 {
        return Err(SysvError::EINVAL);
    }
    let ops = read_ops(ops, count)?;
    let nanos = timeout.map(time_nanos).transpose()?;
    let wait = if nanos == Some(0) { Wait::Never } else { Wait::Ever };
    let until = nanos.map(Moment::after);
    let mut session = Session::open(entry, home)?;
    session.prepare(Op::SemOp { id, ops, wait }, &[])?;
    match wait {
        Wait::Never => session.perform(done).map(Step::Done),
        Wait::Ever => session.begin(entry, Patience::Semaphore(until)),
    }
}

/// Seconds and nanoseconds, as the program has them.
fn read_timeout(address: usize) -> Result<Option<[i64; 2]>, SysvError> {
    if address == 0 {
        return Ok(None);
    }
    let (mut seconds, mut nanos) = ([0; 8], [0; 8]);
    read_program(address, &mut seconds)?;
    read_program(address + 8, &mut nanos)?;
    Ok(Some([i64::from_ne_bytes(seconds), i64::from_ne_bytes(nanos)]))
}

fn time_nanos([seconds, nanos]: [i64; 2]) -> Result<u64, SysvError> {
    let (Ok(seconds), Ok(nanos)) = (u64::try_from(seconds), u64::try_from(nanos)) else {
        return Err(SysvError::EINVAL);
    };
    if nanos >= 1_000_000_000 {
        return Err(SysvError::EINVAL);
    }
    Ok(seconds.saturating_mul(1_000_000_000).saturating_add(nanos))
}

fn read_ops(address: usize, count: usize) -> Result<Vec<SemBuf>, SysvError> {
    const SEMBUF_BYTES: usize = size_of::<libc::sembuf>();
    let mut bytes = vec![0; count * SEMBUF_BYTES];
    read_program(address, &mut bytes)?;
    let fields = |op: &[u8]| {
        let half = |at: usize| i16::from_ne_bytes([op[at], op[at + 1]]);
        SemBuf { num: half(0) as u16, op: half(2), flags: half(4) }
    };
    Ok(bytes.chunks_exact(SEMBUF_BYTES).map(fields).collect())
}

/// semctl(2). `argument` is whatever the register held for a command that takes none.
pub fn control(id: c_int, number: c_int, command: c_int, argument: usize) -> c_int {
    match command {
        libc::IPC_INFO => return kernel::semctl(id, number, command, argument),
        listing::SEM_INFO => return listing::sets(id, number, argument),
        listing::SEM_STAT => return listing::set(id, argument, StatCheck::ReadPermission),
        listing::SEM_STAT_ANY => return listing::set(id, argument, StatCheck::AnyMode),
        _ => {}
    }
    match (route::find(Kind::Set, id), ObjectId::from_raw(id)) {
        (Route::Kernel(kernel), Some(object)) if kernel != id => {
            control_here(object, kernel, number, command, argument)
        }
        (Route::Kernel(id), _) => kernel::semctl(id, number, command, argument),
        (Route::Remote(id, home), _) => {
            let remote = (id, home);
            call(|entry| control_there(entry, remote, number, command, argument))
        }
        (Route::Refused(error), _) => fail(error),
    }
}

/// On a set of ours whose home is here.
fn control_here(
    id: ObjectId,
    kernel: c_int,
    number: c_int,
    command: c_int,
    argument: usize,
) -> c_int {
    match command {
        libc::IPC_STAT => {
            let mut bytes = [0; layout::SET_BYTES];
            let result = kernel::semctl(kernel, number, command, bytes.as_mut_ptr() as usize);
            if result < 0 {
                return result;
            }
            call(|_| {
                name(id, &mut bytes);
                write_program(argument, &bytes)?;
                Ok(result)
            })
        }
        GETPID => match kernel::semctl(kernel, number, command, argument) {
            pid if pid <= 0 => pid,
            pid => call(|_| Ok(describe(id, [pid, 0]).map_or(pid, |(_, pids)| pids[0]))),
        },
        libc::IPC_RMID => {
            let result = kernel::semctl(kernel, number, command, argument);
            if result == 0 {
                removed(Kind::Set, id);
            }
            result
        }
        _ => kernel::semctl(kernel, number, command, argument),
    }
}

/// The state of a set whose home is here, in a listing. The kernel lists by index.
pub fn stat_here(
    id: ObjectId,
    KernelId(kernel): KernelId,
    check: StatCheck,
) -> Result<[u8; layout::SET_BYTES], SysvError> {
    let mut bytes = [0; layout::SET_BYTES];
    let buffer = bytes.as_mut_ptr() as usize;
    let result = match check {
        StatCheck::ReadPermission => kernel::semctl(kernel, 0, libc::IPC_STAT, buffer),
        StatCheck::AnyMode => kernel::semctl(kernel & 0x7fff, 0, listing::SEM_STAT_ANY, buffer),
    };
    if result < 0 {
        return Err(SysvError::from_errno(sys::errno()));
    }
    name(id, &mut bytes);
    Ok(bytes)
}

/// Puts the caller's key in the place of the kernel's.
fn name(id: ObjectId, bytes: &mut [u8; layout::SET_BYTES]) {
    if let Ok((key, _)) = describe(id, [0, 0]) {
        layout::put_key(bytes, key);
    }
}

/// On a set at another home.
fn control_there(
    entry: &Entry,
    (id, home): Remote,
    num: c_int,
    command: c_int,
    argument: usize,
) -> Result<c_int, SysvError> {
    let what = |what| Op::SemGet { id, num, what };
    let op = match command {
        libc::IPC_STAT => {
            let stat = stat(entry, (id, home), StatCheck::ReadPermission)?;
            write_program(argument, &layout::set(&stat))?;
            return Ok(0);
        }
        libc::IPC_SET => {
            let mut bytes = [0; layout::SET_BYTES];
            read_program(argument, &mut bytes)?;
            Op::Change { id, change: layout::set_change(&bytes) }
        }
        libc::IPC_RMID => Op::Remove { id },
        GETVAL => what(SemGet::Value),
        GETPID => what(SemGet::Pid),
        GETNCNT => what(SemGet::WaitersForMore),
        GETZCNT => what(SemGet::WaitersForZero),
        SETVAL => Op::SemSet { id, num, value: argument as i32 },
        GETALL => return get_all(entry, (id, home), argument),
        SETALL => return set_all(entry, (id, home), argument),
        _ => return Err(SysvError::EINVAL),
    };
    let mut session = Session::open(entry, home)?;
    session.prepare(op, &[])?;
    let result = session.perform(value)?;
    if command == libc::IPC_RMID {
        route::forget(Kind::Set, id);
    }
    Ok(result as c_int)
}

fn get_all(entry: &Entry, (id, home): Remote, values: usize) -> Result<c_int, SysvError> {
    let mut session = Session::open(entry, home)?;
    session.prepare(Op::SemGetAll { id }, &[])?;
    session.perform(|outcome, raw| {
        let Outcome::Values = outcome else { return Err(SysvError::EIO) };
        write_program(values, raw)?;
        Ok(0)
    })
}

/// How many values there are, the set says; the program's array is as long as it believes.
fn set_all(entry: &Entry, (id, home): Remote, values: usize) -> Result<c_int, SysvError> {
    let count = stat(entry, (id, home), StatCheck::AnyMode)?.nsems as usize;
    let mut raw = vec![0; 2 * count.min(dipc_wire::limits::SEMS_MAX)];
    read_program(values, &mut raw)?;
    let mut session = Session::open(entry, home)?;
    session.prepare(Op::SemSetAll { id }, &raw)?;
    session.perform(done)
}

/// The state of a set at another home.
pub fn stat(entry: &Entry, (id, home): Remote, check: StatCheck) -> Result<SetStat, SysvError> {
    let mut session = Session::open(entry, home)?;
    session.prepare(Op::SetStat { id, check }, &[])?;
    session.perform(|outcome, _| match outcome {
        Outcome::Set(stat) => Ok(stat),
        _ => Err(SysvError::EIO),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_are_checked_as_the_kernel_does() {
        assert_eq!(time_nanos([0, 0]), Ok(0));
        assert_eq!(time_nanos([1, 999_999_999]), Ok(1_999_999_999));
        assert_eq!(time_nanos([i64::MAX, 0]), Ok(u64::MAX));
        for wrong in [[-1, 0], [0, -1], [0, 1_000_000_000]] {
            assert_eq!(time_nanos(wrong), Err(SysvError::EINVAL));
        }
    }
}
