//! Calls that a signal handler left by siglongjmp: the alarm idiom. The operation must not go on
//! without its program, or a receive would swallow the next message.
//!
//! longjmp and its relatives come here before they jump; a call that was left some other way is
//! found by the thread's next call.
#![forbid(unsafe_code)]

use std::ffi::c_void;
use std::ops::Range;

use crate::boundary::fence;
use crate::session;
use crate::sys::{self, Cancellation};
use crate::thread::{self, Awaited, Parked, Thread};

/// Two frames farther apart than this are on different stacks.
const STACK_BYTES_MAX: usize = 1 << 30;

/// The program is about to jump to a `jmp_buf`: leaves the calls it jumps over.
pub fn before(environment: *const c_void) {
    let Some(thread) = thread::existing().filter(|thread| thread.parked() > 0) else { return };
    let Some(target) = sys::jump_target(environment) else { return };
    let mask = sys::block_signals();
    if let Ok(Some(cancellation)) = fence(|| Ok(sweep(thread, target))) {
        sys::restore_cancellation(cancellation);
    }
    sys::restore_signals(mask);
}

/// Leaves the calls whose frames are gone when the stack pointer is `now`. Each ran with
/// cancellation disabled: returns the state in which the program had called the outermost one.
pub fn sweep(thread: &'static Thread, now: usize) -> Option<Cancellation> {
    if thread.parked() == 0 {
        return None;
    }
    let alternate = sys::alternate_stack();
    let is_left = |call: &Parked| is_left(call.frame, now, alternate.as_ref());
    let mut outermost = None;
    while thread.with(|state| state.calls.last().is_some_and(is_left)) {
        if let Some(call) = thread.unpark() {
            outermost = Some(call.cancellation);
            match call.awaited {
                Awaited::Answer(question) => drop(question),
                Awaited::Reply(pending) => session::abandon(thread, pending),
            }
        }
    }
    outermost
}

/// Whether a call whose frame is at `frame` is over when the stack pointer is `now`. Stacks grow
/// downwards; handlers may run on an alternate stack, above or below.
fn is_left(frame: usize, now: usize, alternate: Option<&Range<usize>>) -> bool {
    let on_alternate = |place| alternate.is_some_and(|stack| stack.contains(&place));
    match (on_alternate(frame), on_alternate(now)) {
        (false, true) => false,
        (true, false) => true,
        _ => now > frame && now - frame < STACK_BYTES_MAX,
    }
}

#[cfg(test)]
mod tests {
    use super::is_left;

    #[test]
    fn a_frame_is_left_when_the_stack_is_above_it() {
        assert!(is_left(1000, 1500, None), "back in a caller");
        assert!(!is_left(1000, 500, None), "in a handler inside the wait");
        assert!(!is_left(1000, 1000, None));
    }

    #[test]
    fn the_alternate_stack_lies_on_top_of_the_other_wherever_it_is() {
        for stack in [5000..6000, 100..200] {
            let inside = stack.start + 50;
            assert!(!is_left(1000, inside, Some(&stack)), "a handler on it, over the wait");
            assert!(is_left(inside, 1000, Some(&stack)), "back from it");
            assert!(is_left(inside, inside + 10, Some(&stack)));
            assert!(!is_left(inside, inside - 10, Some(&stack)));
        }
    }

    #[test]
    fn another_coroutine_is_not_a_caller() {
        assert!(!is_left(1000, 1000 + (1 << 40), None));
    }
}
