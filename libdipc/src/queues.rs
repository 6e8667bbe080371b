//! Message queues: msgget, msgsnd, msgrcv, msgctl on distributed queues. What the program's
//! arguments say is checked in the kernel's order (ipc/msg.c); what the queue says, home's kernel
//! checks.
#![forbid(unsafe_code)]

use std::ffi::{c_int, c_long};

use dipc_wire::client::{Answer, Call};
use dipc_wire::ids::{KernelId, Key, Kind, NodeId, ObjectId};
use dipc_wire::limits::MESSAGE_BYTES_MAX;
use dipc_wire::op::{Op, Outcome, StatCheck};
use dipc_wire::sysv::{IPC_NOWAIT, QueueStat, SysvError};

use crate::boundary::{self, Entry, call, fail};
use crate::route::{self, Route};
use crate::session::{Patience, Session};
use crate::sys::{self, BadAddress, read_program, write_program};
use crate::{client, kernel, layout, listing, names};

/// A queue at another home.
type Remote = (ObjectId, NodeId);

/// Bytes of a message's type, before its text.
const TYPE_BYTES: usize = size_of::<c_long>();

impl From<BadAddress> for SysvError {
    fn from(_: BadAddress) -> SysvError {
        SysvError::EFAULT
    }
}

/// msgget(2).
pub fn get(key: c_int, flags: c_int) -> c_int {
    names::get(Kind::Queue, key, flags, 0).unwrap_or_else(|| kernel::msgget(key, flags))
}

/// msgsnd(2) to another home.
pub fn send(
    entry: &Entry,
    (id, home): Remote,
    message: usize,
    bytes: usize,
    flags: c_int,
) -> Result<c_int, SysvError> {
    let mut mtype = [0; TYPE_BYTES];
    read_program(message, &mut mtype)?;
    let mtype = i64::from_ne_bytes(mtype);
    if mtype < 1 || bytes > MESSAGE_BYTES_MAX {
        return Err(SysvError::EINVAL);
    }
    let mut session = Session::open(entry, home)?;
    if session.terms().is_some_and(|terms| bytes as u64 > terms.msgmax) {
        session.prepare(Op::MsgMax, &[])?;
        let msgmax = session.perform(Patience::Unbroken, done)?; // it may have been raised
        if bytes as i64 > msgmax {
            return Err(SysvError::EINVAL);
        }
        session = Session::open(entry, home)?;
    }
    prepare_send(&mut session, Op::MsgSend { id, mtype, flags }, message + TYPE_BYTES, bytes)?;
    let result = session.perform(patience(flags), done);
    settled(id, result).map(|_| 0)
}

/// The text is gone from our frames before the wait.
fn prepare_send(
    session: &mut Session<'_>,
    op: Op,
    text: usize,
    bytes: usize,
) -> Result<(), SysvError> {
    let mut copy = vec![0; bytes];
    read_program(text, &mut copy)?;
    session.prepare(op, &copy)
}

/// msgrcv(2) from another home. A message that the program's buffer cannot take is gone, as
/// natively.
pub fn receive(
    entry: &Entry,
    (id, home): Remote,
    message: usize,
    bytes: usize,
    mtype: c_long,
    flags: c_int,
) -> Result<isize, SysvError> {
    if (bytes as isize) < 0 {
        return Err(SysvError::EINVAL);
    }
    let mut session = Session::open(entry, home)?;
    session.prepare(Op::MsgReceive { id, bytes_max: bytes as u64, mtype, flags }, &[])?;
    let result = session.perform(patience(flags), |outcome, text| {
        let Outcome::Message { mtype } = outcome else { return Err(SysvError::EIO) };
        let text = &text[..text.len().min(bytes)]; // MSG_NOERROR cuts here, so home can put back
        write_program(message, &mtype.to_ne_bytes())?;
        write_program(message + TYPE_BYTES, text)?;
        Ok(text.len() as isize)
    });
    settled(id, result)
}

fn patience(flags: c_int) -> Patience {
    if flags & IPC_NOWAIT == 0 { Patience::Message } else { Patience::Unbroken }
}

fn done(outcome: Outcome, _: &[u8]) -> Result<i64, SysvError> {
    match outcome {
        Outcome::Done(value) => Ok(value),
        _ => Err(SysvError::EIO),
    }
}

/// A queue that is gone is forgotten.
fn settled<T>(id: ObjectId, result: Result<T, SysvError>) -> Result<T, SysvError> {
    if matches!(result, Err(SysvError::EIDRM)) {
        route::forget(Kind::Queue, id);
    }
    result
}

/// msgctl(2).
pub fn control(id: c_int, command: c_int, buffer: usize) -> c_int {
    match command {
        libc::IPC_INFO => return kernel::msgctl(id, command, buffer),
        listing::MSG_INFO => return listing::queues(id, buffer),
        listing::MSG_STAT => return listing::queue(id, buffer, StatCheck::ReadPermission),
        listing::MSG_STAT_ANY => return listing::queue(id, buffer, StatCheck::AnyMode),
        _ => {}
    }
    match (route::find(Kind::Queue, id), ObjectId::from_raw(id)) {
        (Route::Kernel(kernel), Some(object)) if kernel != id => {
            control_here(object, kernel, command, buffer)
        }
        (Route::Kernel(id), _) => kernel::msgctl(id, command, buffer),
        (Route::Remote(id, home), _) => {
            call(|entry| control_there(entry, (id, home), command, buffer))
        }
        (Route::Refused(error), _) => fail(error),
    }
}

/// On a queue of ours whose home is here.
fn control_here(id: ObjectId, kernel: c_int, command: c_int, buffer: usize) -> c_int {
    match command {
        libc::IPC_STAT => {
            let mut bytes = [0; layout::QUEUE_BYTES];
            let result = kernel::msgctl(kernel, command, bytes.as_mut_ptr() as usize);
            if result < 0 {
                return result;
            }
            call(|entry| {
                name(entry, id, &mut bytes);
                write_program(buffer, &bytes)?;
                Ok(result)
            })
        }
        libc::IPC_RMID => {
            let result = kernel::msgctl(kernel, command, buffer);
            if result == 0 {
                removed(Kind::Queue, id);
            }
            result
        }
        _ => kernel::msgctl(kernel, command, buffer),
    }
}

/// The state of a queue whose home is here, in a listing. The kernel lists by index.
pub fn stat_here(
    entry: &Entry,
    id: ObjectId,
    KernelId(kernel): KernelId,
    check: StatCheck,
) -> Result<[u8; layout::QUEUE_BYTES], SysvError> {
    let mut bytes = [0; layout::QUEUE_BYTES];
    let buffer = bytes.as_mut_ptr() as usize;
    let result = match check {
        StatCheck::ReadPermission => kernel::msgctl(kernel, libc::IPC_STAT, buffer),
        StatCheck::AnyMode => kernel::msgctl(kernel & 0x7fff, listing::MSG_STAT_ANY, buffer),
    };
    if result < 0 {
        return Err(SysvError::from_errno(sys::errno()));
    }
    name(entry, id, &mut bytes);
    Ok(bytes)
}

/// Puts the caller's names for key and pids in the place of the kernel's.
fn name(entry: &Entry, id: ObjectId, bytes: &mut [u8; layout::QUEUE_BYTES]) {
    if let Ok((key, pids)) = describe(entry, id, layout::queue_pids(bytes)) {
        layout::put_queue_names(bytes, key, pids);
    }
}

/// What the kernel's numbers about an object at home here mean.
pub fn describe(entry: &Entry, id: ObjectId, pids: [i32; 2]) -> Result<(Key, [i32; 2]), SysvError> {
    match client::call(entry, Call::Describe { id, pids })? {
        (Answer::Described { key, pids }, _) => Ok((key, pids)),
        _ => Err(SysvError::EIO),
    }
}

/// Says that an object at home here was removed.
pub fn removed(kind: Kind, id: ObjectId) {
    route::forget(kind, id);
    let _: Result<(), SysvError> = boundary::attempt(|_| {
        client::tell(Call::Removed { id });
        Ok(())
    });
}

/// On a queue at another home.
fn control_there(
    entry: &Entry,
    (id, home): Remote,
    command: c_int,
    buffer: usize,
) -> Result<c_int, SysvError> {
    let op = match command {
        libc::IPC_STAT => {
            let stat = stat(entry, (id, home), StatCheck::ReadPermission)?;
            write_program(buffer, &layout::queue(&stat))?;
            return Ok(0);
        }
        libc::IPC_SET => {
            let mut bytes = [0; layout::QUEUE_BYTES];
            read_program(buffer, &mut bytes)?;
            Op::Change { id, change: layout::queue_change(&bytes) }
        }
        libc::IPC_RMID => Op::Remove { id },
        _ => return Err(SysvError::EINVAL),
    };
    let mut session = Session::open(entry, home)?;
    session.prepare(op, &[])?;
    let result = settled(id, session.perform(Patience::Unbroken, done));
    if command == libc::IPC_RMID && result.is_ok() {
        route::forget(Kind::Queue, id);
    }
    result.map(|_| 0)
}

/// The state of a queue at another home.
pub fn stat(entry: &Entry, (id, home): Remote, check: StatCheck) -> Result<QueueStat, SysvError> {
    let mut session = Session::open(entry, home)?;
    session.prepare(Op::QueueStat { id, check }, &[])?;
    let result = session.perform(Patience::Unbroken, |outcome, _| match outcome {
        Outcome::Queue(stat) => Ok(stat),
        _ => Err(SysvError::EIO),
    });
    settled(id, result)
}
