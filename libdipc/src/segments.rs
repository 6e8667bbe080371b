//! Shared memory: shmget, shmat, shmdt, shmctl on distributed segments. No segment of ours is ever
//! the kernel's, wherever its home is: dipcd is asked. The order of checks is that of ipc/shm.c.
#![forbid(unsafe_code)]

use std::ffi::c_int;

use dipc_wire::client::{Answer, Call};
use dipc_wire::ids::{Kind, ObjectId};
use dipc_wire::op::StatCheck;
use dipc_wire::sysv::{SHM_REMAP, SegmentControl, SegmentStat, SysvError};

use crate::attachments::{self, Where};
use crate::boundary::{attempt, fail};
use crate::client::NoAnswer;
use crate::kernel::memory as kernel;
use crate::sys::memory::PAGE_BYTES;
use crate::sys::{read_program, write_program};
use crate::{client, layout, listing, mappings, names, pieces, route, signals};

/// See shmctl(2).
const SHM_LOCK: c_int = 11;
/// See shmctl(2).
const SHM_UNLOCK: c_int = 12;

/// shmget(2).
pub fn get(key: c_int, bytes: usize, flags: c_int) -> c_int {
    let natively = || kernel::shmget(key, bytes, flags);
    names::get(Kind::Segment, key, flags, bytes as u64).unwrap_or_else(natively)
}

/// shmat(2).
pub fn attach(id: c_int, address: usize, flags: c_int) -> usize {
    let Some(object) = ObjectId::from_raw(id) else { return attach_kernels(id, address, flags) };
    let place = match Where::new(address, flags) {
        Ok(place) => place,
        Err(error) => return fail(error),
    };
    let attached = attempt(|_| match route::resolve(Kind::Segment, object) {
        Ok(_) => attachments::attach(object, place, flags).map(Some),
        Err(SysvError::EINVAL) => Ok(None), // nobody's, so the kernel's
        Err(error) => Err(error),
    });
    match attached {
        Ok(Some(address)) => {
            signals::unblock();
            address
        }
        Ok(None) => attach_kernels(id, address, flags),
        Err(error) => fail(error),
    }
}

/// A segment of the kernel's, perhaps over attachments of ours.
fn attach_kernels(id: c_int, address: usize, flags: c_int) -> usize {
    if flags & SHM_REMAP == 0 || !pieces::is_any() {
        return kernel::shmat(id, address, flags);
    }
    let mut bytes = [0; layout::SEGMENT_BYTES];
    let told = kernel::shmctl(id, libc::IPC_STAT, bytes.as_mut_ptr() as usize);
    match Where::new(address, flags) {
        Ok(Where::Over(over)) if told == 0 => {
            mappings::attach_over(id, over, layout::segment_size(&bytes), flags)
        }
        _ => kernel::shmat(id, address, flags), // which fails
    }
}

/// shmdt(2).
pub fn detach(address: usize) -> c_int {
    if !pieces::is_any() || !address.is_multiple_of(PAGE_BYTES) {
        return kernel::shmdt(address);
    }
    match attempt(|_| Ok(attachments::detach(address))) {
        Ok(Some(result)) => result,
        Ok(None) => kernel::shmdt(address),
        Err(error) => fail(error),
    }
}

/// shmctl(2).
pub fn control(id: c_int, command: c_int, buffer: usize) -> c_int {
    match command {
        libc::IPC_INFO => return kernel::shmctl(id, command, buffer),
        listing::SHM_INFO => return listing::segments(id, buffer),
        listing::SHM_STAT => return listing::segment(id, buffer, StatCheck::ReadPermission),
        listing::SHM_STAT_ANY => return listing::segment(id, buffer, StatCheck::AnyMode),
        _ => {}
    }
    let Some(object) = ObjectId::from_raw(id) else { return kernel::shmctl(id, command, buffer) };
    match attempt(|_| control_ours(object, command, buffer)) {
        Ok(Some(result)) => result,
        Ok(None) => kernel::shmctl(id, command, buffer),
        Err(error) => fail(error),
    }
}

/// `None` for a segment that dipcd does not know: it can only be the kernel's.
fn control_ours(id: ObjectId, command: c_int, buffer: usize) -> Result<Option<c_int>, SysvError> {
    let what = match command {
        libc::IPC_STAT => SegmentControl::Stat,
        libc::IPC_RMID => SegmentControl::Remove,
        SHM_LOCK => SegmentControl::Lock,
        SHM_UNLOCK => SegmentControl::Unlock,
        libc::IPC_SET => {
            let mut bytes = [0; layout::SEGMENT_BYTES];
            read_program(buffer, &mut bytes)?;
            SegmentControl::Set(layout::set_change(&bytes))
        }
        _ => return Err(SysvError::EINVAL),
    };
    let stat = match ask(id, what) {
        Err(NoAnswer::Absent | NoAnswer::Refused(SysvError::EINVAL)) => return Ok(None),
        stat => stat?,
    };
    if command == libc::IPC_STAT {
        write_program(buffer, &layout::segment(&stat))?;
    }
    Ok(Some(0))
}

/// The state of a segment, in a listing.
pub fn stat(id: ObjectId, check: StatCheck) -> Result<SegmentStat, SysvError> {
    let what = match check {
        StatCheck::ReadPermission => SegmentControl::Stat,
        StatCheck::AnyMode => SegmentControl::StatAny,
    };
    Ok(ask(id, what)?)
}

fn ask(id: ObjectId, control: SegmentControl) -> Result<SegmentStat, NoAnswer> {
    match client::call(Call::Control { id, control })? {
        (Answer::Segment(stat), _) => Ok(stat),
        _ => Err(NoAnswer::Refused(SysvError::EIO)),
    }
}
