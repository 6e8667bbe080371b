//! What happens when a thread touches a closed page of an attachment, under the mprotect trap: it
//! asks dipcd, and does it again. Any other SIGSEGV is the program's.
//!
//! The thread may be anywhere in the program, even inside its malloc, but not inside this library:
//! here every signal is blocked whenever a lock is held or memory taken.
#![forbid(unsafe_code)]

use std::ffi::c_int;

use dipc_wire::client::{Call, Mm, Trap};
use dipc_wire::memory::Access;
use dipc_wire::sysv::SysvError;

use crate::boundary::attempt;
use crate::client::{self, NoAnswer};
use crate::pieces;
use crate::signals::{self, Next};
use crate::sys::memory::Protection;
use crate::sys::signals::{Signal, Touch, bit, send_bus_error};

/// Where [`crate::sys::signals::enter`] leads, with all signals blocked. Returns the program's
/// handler, to be called with the same arguments, or 0 to go on where the signal came.
pub extern "C" fn decide(_: c_int, info: usize, context: usize) -> usize {
    let signal = Signal::new(info, context);
    if let Some((address, touch)) = signal.touched()
        && is_ours(address, touch)
    {
        let access = if touch == Touch::Store { Access::Write } else { Access::Read };
        if attempt(|_| ask(address, access)).is_err() {
            bus_error(signal, address);
        }
        return 0;
    }
    match signals::next(signal) {
        Next::Handler(address) => address,
        Next::Return => 0,
    }
}

/// Whether the program may touch it like that, so that only its closing is in the way.
fn is_ours(address: usize, touch: Touch) -> bool {
    let needed = match touch {
        Touch::Load => Protection::READ,
        Touch::Store => Protection::WRITE,
        Touch::Execute => Protection::EXEC,
    };
    pieces::is_any()
        && super::current() == Some(Trap::Mprotect)
        && attempt(|_| Ok(pieces::table().at(address)))
            .is_ok_and(|piece| piece.is_some_and(|piece| piece.wanted.has(needed)))
}

/// Waits until dipcd has had it opened. One that it does not know may just be moved, so it is asked
/// again when no thread is at that.
fn ask(address: usize, access: Access) -> Result<(), SysvError> {
    let known = super::number().map(|mm| touched(mm, address, access));
    match known {
        Some(Ok(())) => return Ok(()),
        Some(Err(NoAnswer::Refused(SysvError::EINVAL))) | None => {}
        Some(Err(reason)) => return Err(reason.into()),
    }
    let change = pieces::change();
    let mm = super::ready(&change)?; // a child of which the C library knows nothing begins here
    if pieces::table().at(address).is_none() {
        return Ok(()); // it is gone; the program will see
    }
    Ok(touched(mm, address, access)?)
}

fn touched(mm: Mm, address: usize, access: Access) -> Result<(), NoAnswer> {
    client::call(Call::Touched { mm, address: address as u64, access }).map(|_| ())
}

/// The page is not to be had. Like the kernel's, this signal cannot be blocked or ignored.
fn bus_error(signal: Signal, address: usize) {
    let blocked = signal.mask() & bit(libc::SIGBUS) != 0;
    if blocked || signals::is_ignored(libc::SIGBUS) {
        signals::set_default(libc::SIGBUS);
        signal.set_mask(signal.mask() & !bit(libc::SIGBUS));
    }
    send_bus_error(address);
}
