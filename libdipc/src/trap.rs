//! How the pages of this program are served: which means its dipcd was given, and the page where
//! its number stands.
//!
//! The best that may be had is taken, at the first attach of each program image: a userfaultfd by
//! the process's own right, by the device that dipcd passes, one that sees user mode only, or the
//! mprotect trap. No descriptor stays here. A forked child is served by what its parent has: it
//! finds its own number in the sentinel page, which is wiped at fork and filled by dipcd.
#![forbid(unsafe_code)]

use std::ops::Range;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

use dipc_wire::client::{Answer, Call, Mm, Trap};
use dipc_wire::sysv::SysvError;
use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

use crate::pieces::{self, Change, Table};
use crate::sys::memory::{self, PAGE_BYTES, Protection, USER_MODE_ONLY};
use crate::time::Moment;
use crate::{client, log, signals, sys};

pub mod handler;
mod helper;

/// Which means this image has, 0 for none yet.
static TRAP: AtomicU32 = AtomicU32::new(0);
/// Where its sentinel page is.
static SENTINEL: AtomicUsize = AtomicUsize::new(0);

/// Where parents and children count those who have announced themselves.
static ANNOUNCED: AtomicUsize = AtomicUsize::new(0);

/// The means of this image.
pub fn current() -> Option<Trap> {
    [Trap::Full, Trap::UserMode, Trap::Mprotect]
        .into_iter()
        .find(|trap| code(*trap) == TRAP.load(Ordering::Acquire))
}

fn code(trap: Trap) -> u32 {
    trap as u32 + 1
}

/// The number of this address space, once it is served.
pub fn number() -> Option<Mm> {
    current()?;
    let number = memory::read_sentinel(SENTINEL.load(Ordering::Acquire));
    (number != 0).then_some(Mm(number))
}

/// Where its sentinel page is.
fn sentinel() -> usize {
    SENTINEL.load(Ordering::Acquire)
}

/// Sees to it that this process's pages can be served.
pub fn ready(change: &Change) -> Result<Mm, SysvError> {
    match current() {
        None => set_up(change)?,
        Some(Trap::Mprotect) if !helper::is_running() => begin_helper()?,
        Some(_) => {}
    }
    number().ok_or(SysvError::EIO)
}

/// Begins as if nothing had been attached before.
pub fn begin_anew(change: &Change) -> Result<Mm, SysvError> {
    TRAP.store(0, Ordering::Release);
    SENTINEL.store(0, Ordering::Release); // the old page may still be registered; it stays
    ready(change)
}

fn set_up(_: &Change) -> Result<(), SysvError> {
    let (Answer::Traps(traps), device) = client::call(Call::HowToTrap)? else {
        return Err(SysvError::EIO);
    };
    let served = if traps.userfaultfd { by_userfaultfd(device.as_ref()) } else { None };
    let result = match served {
        Some(Ok(trap)) => Ok(trap),
        _ if traps.mprotect => begin_mprotect().map(|()| Trap::Mprotect),
        served => served.unwrap_or(Err(SysvError::ENOSYS)),
    };
    match result {
        Ok(trap) => {
            TRAP.store(code(trap), Ordering::Release);
            report(trap);
            Ok(())
        }
        Err(error) => {
            log::line(format_args!("op=trap errno={error:?}"));
            Err(error)
        }
    }
}

/// Has dipcd serve the best userfaultfd that this process may make; `None` if it may make none.
///
/// A dipcd that was killed before it answered may have initialised the descriptor, and registered
/// the sentinel page with it. Its successor, to which the call is repeated, cannot do that again
/// (`EINVAL`), so both are made anew.
fn by_userfaultfd(passed: Option<&OwnedFd>) -> Option<Result<Trap, SysvError>> {
    for _ in 0..client::RESTARTS_MAX {
        let (trap, fd) = userfaultfd(passed)?;
        match hand_over(trap, fd) {
            Err(SysvError::EINVAL) => SENTINEL.store(0, Ordering::Release), // the old one stays
            done => return Some(done.map(|()| trap)),
        }
    }
    Some(Err(SysvError::EINVAL))
}

/// Makes the best userfaultfd that this process may.
fn userfaultfd(passed: Option<&OwnedFd>) -> Option<(Trap, OwnedFd)> {
    let own = || {
        let flags = OFlags::RDWR | OFlags::CLOEXEC;
        openat(CWD, "/dev/userfaultfd", flags, Mode::empty()).ok()
    };
    let full = memory::userfaultfd(0).ok();
    let full = full.or_else(|| memory::userfaultfd_of(&own()?).ok());
    let full = full.or_else(|| memory::userfaultfd_of(passed?).ok());
    let made = full.map(|fd| (Trap::Full, fd));
    made.or_else(|| Some((Trap::UserMode, memory::userfaultfd(USER_MODE_ONLY).ok()?)))
}

/// Gives dipcd a userfaultfd, and keeps none of it here.
fn hand_over(trap: Trap, fd: OwnedFd) -> Result<(), SysvError> {
    need_sentinel()?;
    tell(trap, fd)?;
    protect_sentinel(Protection::READ)
}

fn need_sentinel() -> Result<(), SysvError> {
    if sentinel() == 0 {
        let page = memory::map_sentinel().map_err(|_| SysvError::ENOMEM)?;
        SENTINEL.store(page, Ordering::Release);
    }
    Ok(())
}

fn tell(trap: Trap, fd: OwnedFd) -> Result<(), SysvError> {
    let sentinel = sentinel() as u64;
    match client::call_with(Call::Trap { trap, sentinel }, Some(fd))? {
        (Answer::Done, _) => Ok(()),
        _ => Err(SysvError::EIO),
    }
}

fn protect_sentinel(protection: Protection) -> Result<(), SysvError> {
    memory::protect(sentinel(), PAGE_BYTES, protection).map_err(SysvError::from_errno)
}

fn begin_mprotect() -> Result<(), SysvError> {
    need_sentinel()?;
    protect_sentinel(Protection::READ.and(Protection::WRITE))?;
    if ANNOUNCED.load(Ordering::Acquire) == 0 {
        let page = memory::map_shared_number().map_err(|_| SysvError::ENOMEM)?;
        ANNOUNCED.store(page, Ordering::Release);
    }
    signals::take();
    begin_helper()
}

/// Starts this process's helper and gives dipcd the other end of its connection; then dipcd knows
/// of everything that is mapped here, all of it closed.
fn begin_helper() -> Result<(), SysvError> {
    memory::write_sentinel(sentinel(), 0);
    let (kind, flags) = (SocketType::SEQPACKET, SocketFlags::CLOEXEC);
    let (ours, theirs) =
        socketpair(AddressFamily::UNIX, kind, flags, None).map_err(|_| SysvError::ENOMEM)?;
    helper::start(&ours).map_err(|_| SysvError::ENOMEM)?;
    drop(ours);
    tell(Trap::Mprotect, theirs) // if that fails, the helper is left alone, and ends
}

/// Under the mprotect trap: how many children have announced themselves, to whom they share this
/// page with.
fn announced() -> Option<&'static AtomicU32> {
    let page = ANNOUNCED.load(Ordering::Acquire);
    (page != 0).then(|| memory::shared_number(page))
}

/// Whether fork must close the attachments ([`close_all`]).
pub fn closes_at_fork() -> bool {
    current() == Some(Trap::Mprotect)
}

/// Before fork: under the mprotect trap the child has nobody yet who could take pages away from it,
/// so it begins with none, and so does the parent again.
pub fn close_all(table: &Table) {
    if current() == Some(Trap::Mprotect) {
        helper::close_all(table);
    }
}

/// Before fork: what [`await_child`] is to be given.
pub fn children() -> u32 {
    announced().map_or(0, |announced| announced.load(Ordering::Acquire))
}

/// After fork, in the parent: under the mprotect trap dipcd does not see a fork, so the parent
/// waits until its child has said that it is there. It could otherwise detach what it takes for the
/// last attachment. There may be no child, when fork has failed.
pub fn await_child(before: u32) {
    const PATIENCE_NANOS: u64 = 1_000_000_000;
    let Some(announced) = announced().filter(|_| current() == Some(Trap::Mprotect)) else { return };
    let until = Moment::after(PATIENCE_NANOS);
    while announced.load(Ordering::Acquire) == before && until.left() > 0 {
        sys::futex_wait_shared(announced, before, until.left());
    }
}

/// In a forked child: under the mprotect trap dipcd has not seen it, and does not count it.
pub fn announce() {
    if current() != Some(Trap::Mprotect) {
        return;
    }
    if pieces::is_any() {
        let change = pieces::change();
        let _ = ready(&change); // or else at the first touch
    }
    if let Some(announced) = announced() {
        announced.fetch_add(1, Ordering::AcqRel);
        sys::futex_wake_shared(announced);
    }
}

/// Under the mprotect trap: closes a range, which everybody may touch again when dipcd has said so.
/// False under the others, which need no closing.
pub fn close(table: &Table, range: &Range<usize>) -> bool {
    let closes = current() == Some(Trap::Mprotect);
    if closes {
        helper::close(table, range);
    }
    closes
}

fn report(trap: Trap) {
    let note = match trap {
        Trap::Full => "",
        Trap::UserMode => " note=\"system calls on pages that are not here give EFAULT\"",
        Trap::Mprotect => " note=\"system calls on pages that are closed give EFAULT\"",
    };
    log::line(format_args!("op=trap trap={trap:?}{note}"));
}
