//! The `*get` calls: from a key to an id, by dipcd's word for what opted in and by the kernel's for
//! everything else.
#![forbid(unsafe_code)]

use std::ffi::c_int;
use std::sync::atomic::{AtomicBool, Ordering};

use dipc_wire::client::{Answer, Call};
use dipc_wire::ids::{Key, Kind, Nonce, ObjectId};
use dipc_wire::sysv::{IPC_CREAT, IPC_EXCL, PERMISSIONS, SysvError};

use crate::boundary::{self, Entry, Point, Step, fail};
use crate::client::{Answered, NoAnswer};
use crate::route::Known;
use crate::{client, log, policy, route, sys};

/// Whether this program has ever got a distributed object: from then on it sees all of them.
static OPTED_IN: AtomicBool = AtomicBool::new(false);

/// Whether listings of this program show distributed objects.
pub fn has_opted_in() -> bool {
    OPTED_IN.load(Ordering::Relaxed)
        || boundary::attempt(|_| Ok(policy::get().distributes_by_key())) == Ok(true)
}

/// A `*get`; `None` if the object is the kernel's. `size` counts the semaphores of a set or the
/// bytes of a segment.
pub fn get(kind: Kind, key: c_int, flags: c_int, size: u64) -> Option<c_int> {
    let key = Key(key);
    let got = boundary::serve(
        Point::Other,
        |entry| ask(entry, kind, key, flags, size),
        |entry, waited| got(kind, key, client::resume(entry, waited)),
    );
    match got {
        Ok(Got::Object(id)) => Some(id.raw()),
        Ok(Got::Kernels) => None,
        Err(error) => Some(fail(error)),
    }
}

#[derive(Clone, Copy)]
enum Got {
    Object(ObjectId),
    Kernels,
}

fn ask(
    entry: &Entry,
    kind: Kind,
    key: Key,
    flags: c_int,
    size: u64,
) -> Result<Step<Got>, SysvError> {
    if !policy::get().is_distributed(kind, key, flags) {
        return Ok(Step::Done(Got::Kernels));
    }
    let nonce = Nonce(sys::random());
    let flags = flags & (IPC_CREAT | IPC_EXCL | PERMISSIONS);
    got(kind, key, client::begin(entry, Call::Get { kind, key, flags, size, nonce }))
}

fn got(
    kind: Kind,
    key: Key,
    answered: Result<Step<Answered>, NoAnswer>,
) -> Result<Step<Got>, SysvError> {
    let name = kind.name();
    match answered {
        Ok(Step::Wait(wait)) => Ok(Step::Wait(wait)),
        Ok(Step::Done((Answer::Object { id, place }, _))) => {
            route::learn(kind, id, Known::from(place));
            OPTED_IN.store(true, Ordering::Relaxed);
            log::line(format_args!("op=get kind={name} key={:#x} id={id} {place:?}", key.0));
            Ok(Step::Done(Got::Object(id)))
        }
        Ok(Step::Done(_)) => Err(SysvError::EIO),
        Err(NoAnswer::Absent) if policy::is_strict() => Err(SysvError::ENOSYS),
        Err(NoAnswer::Absent) => {
            log::line(format_args!("op=get kind={name} key={:#x} place=kernel", key.0));
            Ok(Step::Done(Got::Kernels))
        }
        Err(reason) => {
            let error = SysvError::from(reason);
            log::line(format_args!("op=get kind={name} key={:#x} errno={error:?}", key.0));
            Err(error)
        }
    }
}

/// After unshare and setns: in another IPC namespace nothing is here that was here before.
/// `flags` of 0 let setns take any namespace.
pub fn roamed(result: c_int, flags: c_int) -> c_int {
    if result == 0 && (flags == 0 || flags & libc::CLONE_NEWIPC != 0) {
        route::roam();
    }
    result
}
