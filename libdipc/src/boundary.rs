//! Between the program and us: while one of our calls runs, no signal handler of the program does
//! (except where the call waits), no cancellation, and no panic gets out. `errno` is unchanged on
//! success and set on failure; masks and cancellation state are as found.
//!
//! The frames between the program and [`sys::test_cancellation`] hold no value with a destructor:
//! a cancelled thread unwinds through them.
#![forbid(unsafe_code)]

use std::panic::{AssertUnwindSafe, catch_unwind};

use dipc_wire::sysv::SysvError;

use crate::sys::{self, Cancellation, Mask};
use crate::thread::{self, Thread};
use crate::{jump, log};

/// One call of the program on its way through this library.
#[derive(Clone, Copy)]
pub struct Entry {
    /// Who calls.
    pub thread: &'static Thread,
    /// Its signal mask, to wait with.
    pub mask: Mask,
    /// Its cancellation state.
    pub cancellation: Cancellation,
    /// Whether pthread_cancel ends its wait: the call is a cancellation point and the program has
    /// not disabled cancellation.
    pub cancellable: bool,
    /// Where the call's frame is.
    pub frame: usize,
}

/// What a C function returns when it fails.
pub trait CReturn {
    /// That value.
    const FAILED: Self;
}

impl CReturn for i32 {
    const FAILED: i32 = -1;
}

impl CReturn for isize {
    const FAILED: isize = -1;
}

/// Fails as C functions do.
#[cold]
pub fn fail<T: CReturn>(error: SysvError) -> T {
    sys::set_errno(error.errno());
    T::FAILED
}

/// One call of the program that we serve.
pub fn call<T: CReturn>(ours: impl FnOnce(&Entry) -> Result<T, SysvError>) -> T {
    attempt(ours).unwrap_or_else(fail)
}

/// As [`call`], for a function that is a cancellation point.
pub fn cancellation_point<T: CReturn>(ours: impl FnOnce(&Entry) -> Result<T, SysvError>) -> T {
    if thread::existing().is_none() {
        let _: Result<(), SysvError> = attempt(|_| Ok(())); // pthread_cancel finds us from now on
    }
    sys::test_cancellation();
    let outcome = enter(Point::Cancellation, ours);
    if matches!(outcome, Err(SysvError::EINTR)) {
        sys::test_cancellation();
    }
    outcome.unwrap_or_else(fail)
}

/// Runs a piece of ours that does not decide the call's result.
pub fn attempt<T>(ours: impl FnOnce(&Entry) -> Result<T, SysvError>) -> Result<T, SysvError> {
    enter(Point::Other, ours)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Point {
    Cancellation,
    Other,
}

fn enter<T>(
    point: Point,
    ours: impl FnOnce(&Entry) -> Result<T, SysvError>,
) -> Result<T, SysvError> {
    let errno = sys::errno();
    let mask = sys::block_signals();
    let mut cancellation = sys::disable_cancellation();
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        let thread = thread::current().ok_or(SysvError::ENOMEM)?;
        let frame = sys::stack_pointer();
        if let Some(left) = jump::sweep(thread, frame) {
            cancellation = left;
        }
        let cancellable = point == Point::Cancellation && cancellation.is_enabled();
        ours(&Entry { thread, mask, cancellation, cancellable, frame })
    }));
    sys::restore_cancellation(cancellation);
    sys::restore_signals(mask);
    sys::set_errno(errno);
    outcome.unwrap_or_else(|_panic| {
        log::line(format_args!("op=panic errno=EIO"));
        Err(SysvError::EIO)
    })
}
