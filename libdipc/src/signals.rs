//! The program's SIGSEGV, while the mprotect trap needs it: our action stands in front, and the
//! program sees and sets its own as if it were the only one.
//!
//! A blocked SIGSEGV would kill who touches a closed page. So from then on it is left out of every
//! mask that the program sets, for threads and for handlers, and put in where it reads one.
//!
//! Before that, nothing here does anything.
#![forbid(unsafe_code)]

use std::cell::Cell;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use crate::lock::Lock;
use crate::sys;
use crate::sys::signals::{Action, SA_RESTORER, Signal, action, bit, change_mask, enter, restore};

const SEGV: i32 = libc::SIGSEGV;
/// The kernel's signals end here.
const SIGNALS: i32 = 64;
/// What blocks no thread in our handler but the C library's own business.
const ALL_BUT_SETXID: u64 = !(1 << 32);

static IN_USE: AtomicBool = AtomicBool::new(false);
static LOCK: Lock = Lock::new();
/// The program's own action: handler, flags, restorer, mask.
static PROGRAM: [AtomicUsize; 4] = [const { AtomicUsize::new(0) }; 4];
/// The signals in whose handlers the program wants SIGSEGV blocked.
static BLOCKING: AtomicU64 = AtomicU64::new(0);

thread_local! {
    /// Whether the program believes SIGSEGV to be blocked in this thread.
    static SHOWN_BLOCKED: Cell<bool> = const { Cell::new(false) };
}

/// Whether the trap needs SIGSEGV.
#[inline]
pub fn is_in_use() -> bool {
    IN_USE.load(Ordering::Relaxed)
}

/// Takes SIGSEGV, for good.
pub fn take() {
    if IN_USE.swap(true, Ordering::AcqRel) {
        return;
    }
    locked(|| {
        if let Ok(found) = action(SEGV, None) {
            note(&found);
            let _ = action(SEGV, Some(&in_front_of(&found)));
        }
        for signal in (1..=SIGNALS).filter(|signal| *signal != SEGV) {
            match action(signal, None) {
                Ok(found) if found.handler > libc::SIG_IGN && found.mask & bit(SEGV) != 0 => {
                    let _ = act_on_other(signal, Some(found));
                }
                _ => {}
            }
        }
    });
}

/// Unblocks SIGSEGV in the calling thread. The program goes on to believe what it did.
pub fn unblock() {
    if is_in_use() && change_mask(libc::SIG_UNBLOCK, Some(bit(SEGV))).is_ok_and(has_segv) {
        SHOWN_BLOCKED.set(true);
    }
}

fn has_segv(mask: u64) -> bool {
    mask & bit(SEGV) != 0
}

/// Runs with all signals blocked and the lock held.
fn locked<T>(work: impl FnOnce() -> T) -> T {
    let mask = sys::block_signals();
    let held = LOCK.hold();
    let result = work();
    drop(held);
    sys::restore_signals(mask);
    result
}

/// sigaction(2): sets the program's action for a signal, if one is given, and returns the one it
/// had.
pub fn act(signal: i32, new: Option<Action>) -> Result<Action, i32> {
    let new = new.map(|new| Action {
        flags: new.flags | SA_RESTORER,
        restorer: restore as extern "C" fn() as usize,
        ..new
    });
    locked(|| if signal == SEGV { act_on_segv(new) } else { act_on_other(signal, new) })
}

fn act_on_segv(new: Option<Action>) -> Result<Action, i32> {
    let old = program();
    if let Some(new) = new {
        action(SEGV, Some(&in_front_of(&new)))?;
        note(&new);
    }
    Ok(old)
}

fn act_on_other(signal: i32, new: Option<Action>) -> Result<Action, i32> {
    let own = new.map(|new| Action { mask: new.mask & !bit(SEGV), ..new });
    let mut old = action(signal, own.as_ref())?;
    if BLOCKING.load(Ordering::Relaxed) & bit(signal) != 0 {
        old.mask |= bit(SEGV);
    }
    match new {
        Some(new) if has_segv(new.mask) => BLOCKING.fetch_or(bit(signal), Ordering::Relaxed),
        Some(_) => BLOCKING.fetch_and(!bit(signal), Ordering::Relaxed),
        None => 0,
    };
    Ok(old)
}

fn program() -> Action {
    let [handler, flags, restorer, mask] =
        [0, 1, 2, 3].map(|index: usize| PROGRAM[index].load(Ordering::Relaxed));
    Action { handler, flags: flags as u64, restorer, mask: mask as u64 }
}

fn note(action: &Action) {
    let words = [action.handler, action.flags as usize, action.restorer, action.mask as usize];
    for (place, word) in PROGRAM.iter().zip(words) {
        place.store(word, Ordering::Relaxed);
    }
}

/// Ours, on the stack on which the program's would run.
fn in_front_of(program: &Action) -> Action {
    const KEPT: u64 = (libc::SA_ONSTACK | libc::SA_RESTART) as u64;
    let has_handler = program.handler > libc::SIG_IGN;
    let kept = if has_handler { program.flags & KEPT } else { KEPT };
    Action {
        handler: enter as extern "C" fn(i32, usize, usize) as usize,
        flags: kept | libc::SA_SIGINFO as u64 | SA_RESTORER,
        restorer: restore as extern "C" fn() as usize,
        mask: ALL_BUT_SETXID,
    }
}

/// What becomes of a SIGSEGV that is not ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// The program's handler runs.
    Handler(usize),
    /// The thread goes on where it came; if it was a fault, it comes again.
    Return,
}

/// Does what the kernel would do for the program's action. Called in the handler.
pub fn next(signal: Signal) -> Next {
    let program = locked(|| {
        let program = program();
        if program.flags & libc::SA_RESETHAND as u64 != 0 && program.handler > libc::SIG_IGN {
            note(&Action { handler: libc::SIG_DFL, ..program });
        }
        program
    });
    match program.handler {
        libc::SIG_IGN if !signal.is_fault() => Next::Return,
        libc::SIG_DFL | libc::SIG_IGN => {
            set_default(SEGV);
            if !signal.is_fault() {
                signal.repeat(SEGV);
            }
            Next::Return
        }
        handler => {
            // SIGSEGV itself stays open: the handler may touch attachments.
            let blocked = (signal.mask() | program.mask) & !bit(SEGV);
            let _ = change_mask(libc::SIG_SETMASK, Some(blocked));
            Next::Handler(handler)
        }
    }
}

/// Whether the program ignores a signal.
pub fn is_ignored(signal: i32) -> bool {
    action(signal, None).is_ok_and(|action| action.handler == libc::SIG_IGN)
}

/// The kernel's own action from now on: what comes next ends the program.
pub fn set_default(signal: i32) {
    let default = Action { restorer: 0, ..Action::default() };
    let _ = action(signal, Some(&default));
}

/// sigprocmask(2) and pthread_sigmask(3): `change` makes the call with the mask that we give it and
/// returns the old one.
pub fn mask(
    how: i32,
    new: Option<u64>,
    change: impl FnOnce(Option<u64>) -> Result<u64, i32>,
) -> Result<u64, i32> {
    let is_unblock = how == libc::SIG_UNBLOCK;
    let own = new.map(|new| if is_unblock { new } else { new & !bit(SEGV) });
    let old = change(own)?;
    let shown = SHOWN_BLOCKED.get();
    match new {
        Some(new) if how == libc::SIG_SETMASK => SHOWN_BLOCKED.set(has_segv(new)),
        Some(new) if has_segv(new) => SHOWN_BLOCKED.set(!is_unblock),
        _ => {}
    }
    Ok(if shown { old | bit(SEGV) } else { old })
}
