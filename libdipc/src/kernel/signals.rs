//! The functions of the program's signals, passed on. Those of System V are looked up when they are
//! first called: not every C library has them.

use std::ffi::c_int;
use std::mem::transmute;

use super::Real;

pub(super) static SIGACTION: Real = Real::new(c"sigaction");
pub(super) static SIGPROCMASK: Real = Real::new(c"sigprocmask");
pub(super) static PTHREAD_SIGMASK: Real = Real::new(c"pthread_sigmask");
pub(super) static SIGNAL: Real = Real::new(c"signal");
/// The same with the semantics of System V, where the C library has it.
static SYSV_SIGNAL: Real = Real::new(c"sysv_signal");
static SIGSET: Real = Real::new(c"sigset");
static SIGIGNORE: Real = Real::new(c"sigignore");

/// sigaction(2).
pub fn sigaction(signal: c_int, new: usize, old: usize) -> c_int {
    type Function = extern "C" fn(c_int, usize, usize) -> c_int;
    // SAFETY: the type of sigaction, a pointer being one word.
    let function: Function = unsafe { transmute(SIGACTION.get()) };
    function(signal, new, old)
}

/// sigprocmask(2).
pub fn sigprocmask(how: c_int, new: usize, old: usize) -> c_int {
    type Function = extern "C" fn(c_int, usize, usize) -> c_int;
    // SAFETY: the type of sigprocmask, a pointer being one word.
    let function: Function = unsafe { transmute(SIGPROCMASK.get()) };
    function(how, new, old)
}

/// pthread_sigmask(3).
pub fn pthread_sigmask(how: c_int, new: usize, old: usize) -> c_int {
    type Function = extern "C" fn(c_int, usize, usize) -> c_int;
    // SAFETY: the type of pthread_sigmask, a pointer being one word.
    let function: Function = unsafe { transmute(PTHREAD_SIGMASK.get()) };
    function(how, new, old)
}

/// signal(2).
pub fn signal(signal: c_int, handler: usize) -> usize {
    set_handler(&SIGNAL, signal, handler)
}

/// sysv_signal(3).
pub fn sysv_signal(signal: c_int, handler: usize) -> usize {
    set_handler(&SYSV_SIGNAL, signal, handler)
}

/// sigset(3).
pub fn sigset(signal: c_int, handler: usize) -> usize {
    set_handler(&SIGSET, signal, handler)
}

fn set_handler(real: &Real, signal: c_int, handler: usize) -> usize {
    // SAFETY: the type of the three, a pointer being one word.
    let function: extern "C" fn(c_int, usize) -> usize = unsafe { transmute(real.get()) };
    function(signal, handler)
}

/// sigignore(3).
pub fn sigignore(signal: c_int) -> c_int {
    // SAFETY: the type of sigignore.
    let function: extern "C" fn(c_int) -> c_int = unsafe { transmute(SIGIGNORE.get()) };
    function(signal)
}
