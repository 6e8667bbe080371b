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

use crate::boundary::{self, Entry, Point, Step, attempt, call, fail};
use crate::route::{self, Route};
use crate::session::{Patience, Session};
use crate::sys::{
    self, BadAddress, read_program, read_program_pair, write_program, write_program_pair,
};
use crate::{client, kernel, layout, listing, names};

/// An object at another home.
pub type Remote = (ObjectId, NodeId);

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
pub fn send(remote: Remote, message: usize, bytes: usize, flags: c_int) -> c_int {
    let result = boundary::serve(
        Point::Cancellation,
        |entry| {
            let session = ask_to_send(entry, remote, message, bytes, flags)?;
            begin(session, entry, flags, done)
        },
        |entry, waited| Session::resume(entry, waited, done),
    );
    result.unwrap_or_else(fail)
}

fn ask_to_send(
    entry: &Entry,
    (id, home): Remote,
    message: usize,
    bytes: usize,
    flags: c_int,
) -> Result<Session, SysvError> {
    if bytes > MESSAGE_BYTES_MAX {
        read_program(message, &mut [0; TYPE_BYTES])?;
        return Err(SysvError::EINVAL);
    }
    let (mut mtype, mut text) = ([0; TYPE_BYTES], vec![0; bytes]);
    let whole = read_program_pair(message, &mut mtype, &mut text);
    if whole.is_err() {
        read_program(message, &mut mtype)?; // the text is looked at last
    }
    let mtype = i64::from_ne_bytes(mtype);
    if mtype < 1 {
        return Err(SysvError::EINVAL);
    }
    let mut session = Session::open(entry, home)?;
    if session.terms().is_some_and(|terms| bytes as u64 > terms.msgmax) {
        session.prepare(Op::MsgMax, &[])?;
        let msgmax = session.perform(value)?; // it may have been raised
        if bytes as i64 > msgmax {
            return Err(SysvError::EINVAL);
        }
        session = Session::open(entry, home)?;
    }
    whole?;
    session.prepare(Op::MsgSend { id, mtype, flags }, &text)?;
    Ok(session)
}

/// msgrcv(2) from another home. A message that the program's buffer cannot take is gone, as
/// natively.
pub fn receive(remote: Remote, message: usize, bytes: usize, mtype: c_long, flags: c_int) -> isize {
    let read = |outcome: Outcome, text: &[u8]| {
        let Outcome::Message { mtype } = outcome else { return Err(SysvError::EIO) };
        let text = &text[..text.len().min(bytes)]; // MSG_NOERROR cuts here, so home can put back
        write_program_pair(message, &mtype.to_ne_bytes(), text)?;
        Ok(text.len() as isize)
    };
    let result = boundary::serve(
        Point::Cancellation,
        |entry| {
            let (id, home) = remote;
            if (bytes as isize) < 0 {
                return Err(SysvError::EINVAL);
            }
            let mut session = Session::open(entry, home)?;
            session.prepare(Op::MsgReceive { id, bytes_max: bytes as u64, mtype, flags }, &[])?;
            begin(session, entry, flags, read)
        },
        |entry, waited| Session::resume(entry, waited, read),
    );
    result.unwrap_or_else(fail)
}

/// With `IPC_NOWAIT` home answers at once.
fn begin<T>(
    session: Session,
    entry: &Entry,
    flags: c_int,
    read: impl FnOnce(Outcome, &[u8]) -> Result<T, SysvError>,
) -> Result<Step<T>, SysvError> {
    if flags & IPC_NOWAIT == 0 {
        session.begin(entry, Patience::Message)
    } else {
        session.perform(read).map(Step::Done)
    }
}

/// Reads a plain result.
pub fn value(outcome: Outcome, _: &[u8]) -> Result<i64, SysvError> {
    match outcome {
        Outcome::Done(value) => Ok(value),
        _ => Err(SysvError::EIO),
    }
}

/// Reads a result that says nothing.
pub fn done(outcome: Outcome, raw: &[u8]) -> Result<c_int, SysvError> {
    value(outcome, raw).map(|_| 0)
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
            let remote = (id, home);
            call(|entry| control_there(entry, remote, command, buffer))
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
            call(|_| {
                name(id, &mut bytes);
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
    name(id, &mut bytes);
    Ok(bytes)
}

/// Puts the caller's names for key and pids in the place of the kernel's.
fn name(id: ObjectId, bytes: &mut [u8; layout::QUEUE_BYTES]) {
    if let Ok((key, pids)) = describe(id, layout::queue_pids(bytes)) {
        layout::put_queue_names(bytes, key, pids);
    }
}

/// What the kernel's numbers about an object at home here mean.
pub fn describe(id: ObjectId, pids: [i32; 2]) -> Result<(Key, [i32; 2]), SysvError> {
    match client::call(Call::Describe { id, pids })? {
        (Answer::Described { key, pids }, _) => Ok((key, pids)),
        _ => Err(SysvError::EIO),
    }
}

/// Says that an object at home here was removed.
pub fn removed(kind: Kind, id: ObjectId) {
    route::forget(kind, id);
    let told = attempt(|_| {
        client::tell(Call::Removed { id });
        Ok(())
    });
    told.unwrap_or(()) // dipcd looks at the object itself when it is next asked
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
    let result = session.perform(done)?;
    if command == libc::IPC_RMID {
        route::forget(Kind::Queue, id);
    }
    Ok(result)
}

/// The state of a queue at another home.
pub fn stat(entry: &Entry, (id, home): Remote, check: StatCheck) -> Result<QueueStat, SysvError> {
    let mut session = Session::open(entry, home)?;
    session.prepare(Op::QueueStat { id, check }, &[])?;
    session.perform(|outcome, _| match outcome {
        Outcome::Queue(stat) => Ok(stat),
        _ => Err(SysvError::EIO),
    })
}
