//! The functions by which a program sets what SIGSEGV does and whether it is blocked.
//!
//! While the mprotect trap is not in use, which is nearly always, each is one look at a flag, and
//! then libc's.

use std::ffi::{c_int, c_long};
use std::ptr;

use crate::kernel::signals as kernel;
use crate::signals::{self, is_in_use};
use crate::sys::signals::{Action, bit, change_mask};
use crate::sys::{self, read_program, write_program};

const SEGV: c_int = libc::SIGSEGV;

/// Signals of which the C library lets nobody set the action are left to it.
fn is_ours(signal: c_int) -> bool {
    const THE_LIBRARYS: [c_int; 2] = [32, 33];
    is_in_use() && (1..=64).contains(&signal) && !THE_LIBRARYS.contains(&signal)
}

fn failed(errno: i32) -> c_int {
    sys::set_errno(errno);
    -1
}

/// sigaction(2).
#[unsafe(no_mangle)]
pub extern "C" fn sigaction(
    signal: c_int,
    new: *const libc::sigaction,
    old: *mut libc::sigaction,
) -> c_int {
    if !is_ours(signal) {
        return kernel::sigaction(signal, new as usize, old as usize);
    }
    // SAFETY: null, or a structure that the program gave to read.
    let new = unsafe { new.as_ref() }.map(|new| Action {
        handler: new.sa_sigaction,
        flags: new.sa_flags as u32 as u64,
        restorer: 0,
        mask: word(&new.sa_mask),
    });
    match signals::act(signal, new) {
        Ok(found) => {
            // SAFETY: null, or a structure that the program gave to be written.
            if let Some(old) = unsafe { old.as_mut() } {
                old.sa_sigaction = found.handler;
                old.sa_flags = found.flags as c_int;
                set_word(&mut old.sa_mask, found.mask);
            }
            0
        }
        Err(errno) => failed(errno),
    }
}

/// The kernel's part of a `sigset_t`, which is its beginning.
fn word(set: &libc::sigset_t) -> u64 {
    // SAFETY: a sigset_t is longer than that, and aligned for it.
    unsafe { ptr::from_ref(set).cast::<u64>().read() }
}

fn set_word(set: &mut libc::sigset_t, mask: u64) {
    // SAFETY: a sigset_t is longer than that, and aligned for it.
    unsafe { ptr::from_mut(set).cast::<u64>().write(mask) };
}

/// signal(2), with the semantics of BSD.
#[unsafe(no_mangle)]
pub extern "C" fn signal(signal: c_int, handler: usize) -> usize {
    if signal != SEGV || !is_in_use() {
        return kernel::signal(signal, handler);
    }
    set_handler(handler, libc::SA_RESTART, bit(SEGV))
}

/// The same by another name.
#[unsafe(no_mangle)]
pub extern "C" fn bsd_signal(number: c_int, handler: usize) -> usize {
    signal(number, handler)
}

/// The same by another name.
#[unsafe(no_mangle)]
pub extern "C" fn ssignal(number: c_int, handler: usize) -> usize {
    signal(number, handler)
}

/// sysv_signal(3), what signal is to programs made for System V.
#[unsafe(no_mangle)]
pub extern "C" fn sysv_signal(signal: c_int, handler: usize) -> usize {
    if signal != SEGV || !is_in_use() {
        return kernel::sysv_signal(signal, handler);
    }
    set_handler(handler, libc::SA_RESETHAND | libc::SA_NODEFER, 0)
}

/// The same by another name.
#[unsafe(no_mangle)]
pub extern "C" fn __sysv_signal(signal: c_int, handler: usize) -> usize {
    sysv_signal(signal, handler)
}

fn set_handler(handler: usize, flags: c_int, mask: u64) -> usize {
    let new = Action { handler, flags: flags as u32 as u64, restorer: 0, mask };
    match signals::act(SEGV, Some(new)) {
        Ok(old) => old.handler,
        Err(errno) => {
            sys::set_errno(errno);
            libc::SIG_ERR
        }
    }
}

/// sigset(3).
#[unsafe(no_mangle)]
pub extern "C" fn sigset(signal: c_int, handler: usize) -> usize {
    const SIG_HOLD: usize = 2;
    if signal != SEGV || !is_in_use() {
        return kernel::sigset(signal, handler);
    }
    let how = if handler == SIG_HOLD { libc::SIG_BLOCK } else { libc::SIG_UNBLOCK };
    let before = signals::mask(how, Some(bit(SEGV)), |mask| change_mask(how, mask));
    let found = match handler {
        SIG_HOLD => signals::act(SEGV, None).map_or(libc::SIG_ERR, |action| action.handler),
        _ => set_handler(handler, 0, 0),
    };
    if before.is_ok_and(|mask| mask & bit(SEGV) != 0) { SIG_HOLD } else { found }
}

/// sigignore(3).
#[unsafe(no_mangle)]
pub extern "C" fn sigignore(signal: c_int) -> c_int {
    if signal != SEGV || !is_in_use() {
        return kernel::sigignore(signal);
    }
    if set_handler(libc::SIG_IGN, 0, 0) == libc::SIG_ERR { -1 } else { 0 }
}

/// A function that changes the mask.
type Change = fn(c_int, usize, usize) -> c_int;

/// Makes the call with another mask in the place of the program's. `Err` is what it returned.
fn change_by(real: Change, how: c_int, new: usize, old: usize) -> c_int {
    let (given, wanted): (*const libc::sigset_t, *mut libc::sigset_t) =
        (ptr::with_exposed_provenance(new), ptr::with_exposed_provenance_mut(old));
    // SAFETY: null, or a set that the program gave to read.
    let given = unsafe { given.as_ref() }.map(word);
    let changed = signals::mask(how, given, |mask| {
        let words = mask.map(|mask| [mask, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        let mut found = [0u64; size_of::<libc::sigset_t>() / size_of::<u64>()];
        let new = words.as_ref().map_or(0, |words| words.as_ptr() as usize);
        match real(how, new, found.as_mut_ptr() as usize) {
            0 => Ok(found[0]),
            failure => Err(failure),
        }
    });
    match changed {
        Ok(found) => {
            // SAFETY: null, or a set that the program gave to be written.
            if let Some(wanted) = unsafe { wanted.as_mut() } {
                set_word(wanted, found);
            }
            0
        }
        Err(failure) => failure,
    }
}

/// sigprocmask(2).
#[unsafe(no_mangle)]
pub extern "C" fn sigprocmask(how: c_int, new: usize, old: usize) -> c_int {
    if !is_in_use() {
        return kernel::sigprocmask(how, new, old);
    }
    change_by(kernel::sigprocmask, how, new, old)
}

/// pthread_sigmask(3).
#[unsafe(no_mangle)]
pub extern "C" fn pthread_sigmask(how: c_int, new: usize, old: usize) -> c_int {
    if !is_in_use() {
        return kernel::pthread_sigmask(how, new, old);
    }
    change_by(kernel::pthread_sigmask, how, new, old)
}

/// The same by syscall(2); none if the kernel is to see the call as it came.
pub fn system_call(number: c_long, [a, new, old, bytes, ..]: [usize; 6]) -> Option<c_long> {
    const MASK_BYTES: usize = size_of::<u64>();
    let first = a as c_int;
    if !is_in_use() || bytes != MASK_BYTES {
        return None;
    }
    let result = match number {
        libc::SYS_rt_sigaction if is_ours(first) => raw_action(first, new, old),
        libc::SYS_rt_sigprocmask => raw_mask(first, new, old),
        _ => return None,
    };
    Some(match result {
        Ok(()) => 0,
        Err(errno) => failed(errno).into(),
    })
}

fn raw_action(signal: c_int, new: usize, old: usize) -> Result<(), i32> {
    let new = match new {
        0 => None,
        new => {
            let mut words = [0; 4];
            for (index, word) in words.iter_mut().enumerate() {
                *word = read_word(new + index * size_of::<u64>())?;
            }
            let [handler, flags, restorer, mask] = words;
            let (handler, restorer) = (handler as usize, restorer as usize);
            Some(Action { handler, flags, restorer, mask })
        }
    };
    let Action { handler, flags, restorer, mask } = signals::act(signal, new)?;
    let words = [handler as u64, flags, restorer as u64, mask];
    let places = (old..).step_by(size_of::<u64>());
    places.zip(words).filter(|_| old != 0).try_for_each(|(place, word)| write_word(place, word))
}

fn raw_mask(how: c_int, new: usize, old: usize) -> Result<(), i32> {
    let new = if new == 0 { None } else { Some(read_word(new)?) };
    let found = signals::mask(how, new, |mask| change_mask(how, mask))?;
    if old == 0 { Ok(()) } else { write_word(old, found) }
}

fn read_word(address: usize) -> Result<u64, i32> {
    let mut bytes = [0; size_of::<u64>()];
    read_program(address, &mut bytes).map_err(|_| libc::EFAULT)?;
    Ok(u64::from_ne_bytes(bytes))
}

fn write_word(address: usize, word: u64) -> Result<(), i32> {
    write_program(address, &word.to_ne_bytes()).map_err(|_| libc::EFAULT)
}
