//! Stacks of our own: a program calls us from signal handlers on stacks of eight kilobytes, and
//! from threads with sixteen.

use std::arch::asm;
use std::ffi::c_void;
use std::ptr;
use std::sync::atomic::{AtomicPtr, Ordering};

use super::{map_anonymous, raw};

/// Bytes of a stack of ours, its guard page included. Only what is used takes memory.
const STACK_BYTES: usize = 256 << 10;

/// Stacks that nobody uses.
static STACKS: [AtomicPtr<c_void>; 64] = [const { AtomicPtr::new(ptr::null_mut()) }; 64];

/// Runs `work`, which must not unwind, on a stack of ours; a handshake needs ten kilobytes.
pub fn on_own_stack<T>(work: impl FnOnce() -> T) -> T {
    let Some(stack) = take_stack() else { return work() };
    let mut job = Job { work: Some(work), result: None };
    let argument = (&raw mut job).cast::<c_void>();
    // SAFETY: the stack is ours alone and aligned; `run` is told the type of `job`, which outlives
    // the call, and neither returns by unwinding nor keeps anything of that stack.
    unsafe { call_on(stack.wrapping_byte_add(STACK_BYTES), run_for(&job), argument) };
    give_stack(stack);
    job.result.expect("run has run")
}

struct Job<W, T> {
    work: Option<W>,
    result: Option<T>,
}

fn run_for<W: FnOnce() -> T, T>(_: &Job<W, T>) -> extern "C" fn(*mut c_void) {
    run::<W, T>
}

extern "C" fn run<W: FnOnce() -> T, T>(job: *mut c_void) {
    // SAFETY: `on_own_stack` gives a job of this type, and looks at it only after the call.
    let job = unsafe { &mut *job.cast::<Job<W, T>>() };
    job.result = job.work.take().map(|work| work());
}

/// Calls a function on another stack, which begins below `top`.
///
/// # Safety
/// There is a stack, in use by nobody; the function may be called with that argument and returns.
unsafe fn call_on(top: *mut c_void, function: extern "C" fn(*mut c_void), argument: *mut c_void) {
    // SAFETY: the caller vouches for the stack and the function; r12 is kept by functions in C.
    unsafe {
        asm!("mov r12, rsp", "mov rsp, {top}", "call {function}", "mov rsp, r12",
            top = in(reg) top, function = in(reg) function, in("rdi") argument,
            out("r12") _, clobber_abi("C"));
    }
}

fn take_stack() -> Option<*mut c_void> {
    let take = |place: &AtomicPtr<c_void>| {
        if place.load(Ordering::Relaxed).is_null() {
            return None;
        }
        let stack = place.swap(ptr::null_mut(), Ordering::AcqRel);
        (!stack.is_null()).then_some(stack)
    };
    STACKS.iter().find_map(take).or_else(map_stack)
}

fn give_stack(stack: *mut c_void) {
    let give = |place: &AtomicPtr<c_void>| {
        let (order, failed) = (Ordering::AcqRel, Ordering::Relaxed);
        place.compare_exchange(ptr::null_mut(), stack, order, failed).is_ok()
    };
    if !STACKS.iter().any(give) {
        // SAFETY: the mapping is ours and no longer used.
        let _ = unsafe { raw(libc::SYS_munmap, [stack as usize, STACK_BYTES, 0, 0, 0, 0]) };
    }
}

fn map_stack() -> Option<*mut c_void> {
    const GUARD_BYTES: usize = 4096;
    let stack = map_anonymous(STACK_BYTES).ok()?;
    // Nobody forks on one: a child needs the place alone. Before Linux 4.14 it gets a copy.
    let advice = [stack, STACK_BYTES, libc::MADV_WIPEONFORK as usize, 0, 0, 0];
    // SAFETY: the advice is for what was mapped just now.
    let _ = unsafe { raw(libc::SYS_madvise, advice) };
    // SAFETY: the page was mapped just now.
    let guarded =
        unsafe { raw(libc::SYS_mprotect, [stack, GUARD_BYTES, libc::PROT_NONE as usize, 0, 0, 0]) };
    guarded.ok().map(|_| stack as *mut c_void)
}
