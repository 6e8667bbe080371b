//! Between the program and us: while one of our calls runs, no signal handler of the program does,
//! no cancellation, and no panic gets out. `errno` is unchanged on success and set on failure;
//! masks and cancellation state are as found.
//!
//! A call that may have to wait is served in steps, each behind a fence against panics. In between,
//! when the program's handlers do run, whatever the call owns is parked with its thread, and no
//! frame between the program and the wait holds a value with a destructor: a handler may leave by
//! siglongjmp or pthread_exit, a cancelled thread unwinds, and nothing of ours is in the way. The
//! steps run on a stack of ours: the program's may be as small as a signal handler's.
#![forbid(unsafe_code)]

use std::os::fd::RawFd;
use std::panic::{AssertUnwindSafe, catch_unwind};

use dipc_wire::sysv::SysvError;

use crate::sys::{self, Cancellation, Mask, WaitBy, Waited};
use crate::thread::{self, Thread};
use crate::time::Moment;
use crate::{jump, log};

/// One call of the program on its way through this library.
#[derive(Clone, Copy)]
pub struct Entry {
    /// Who calls.
    pub thread: &'static Thread,
    /// Its signal mask, to wait with.
    mask: Mask,
    /// Its cancellation state.
    pub cancellation: Cancellation,
    /// Where the call's frame is.
    pub frame: usize,
}

/// Whether a function is a cancellation point (pthreads(7)).
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Point {
    /// It is, and a wait in it ends when the thread is cancelled.
    Cancellation,
    /// It is not.
    Other,
}

/// How far a call has come.
pub enum Step<T> {
    /// It is served; this is its result.
    Done(T),
    /// It is parked, and goes on after this.
    Wait(Wait),
}

/// What a parked call waits for.
#[derive(Clone, Copy)]
pub struct Wait {
    /// A descriptor to be read.
    pub fd: RawFd,
    /// How.
    pub by: WaitBy,
    /// Not longer than this.
    pub until: Option<Moment>,
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

impl CReturn for usize {
    /// `(void *) -1` of shmat, and `MAP_FAILED`.
    const FAILED: usize = usize::MAX;
}

/// Fails as C functions do.
#[cold]
pub fn fail<T: CReturn>(error: SysvError) -> T {
    sys::set_errno(error.errno());
    T::FAILED
}

/// One call of the program that we serve without its handlers coming in between.
pub fn call<T: CReturn + Copy>(ours: impl FnOnce(&Entry) -> Result<T, SysvError>) -> T {
    attempt(ours).unwrap_or_else(fail)
}

/// The same for a piece of ours that does not decide the call's result.
pub fn attempt<T: Copy>(ours: impl FnOnce(&Entry) -> Result<T, SysvError>) -> Result<T, SysvError> {
    pass(Point::Other, |entry| ours(entry).map(Step::Done), |_, _| Err(SysvError::EIO))
}

/// One call of the program that may wait: `begin` it, and `resume` it after each wait.
pub fn serve<T: Copy>(
    point: Point,
    begin: impl FnOnce(&Entry) -> Result<Step<T>, SysvError>,
    resume: impl FnMut(&Entry, Waited) -> Result<Step<T>, SysvError>,
) -> Result<T, SysvError> {
    if point == Point::Other {
        return pass(point, begin, resume);
    }
    if thread::existing().is_none() {
        attempt(|_| Ok(()))?; // from now on pthread_cancel finds us
    }
    sys::test_cancellation();
    let result = pass(point, begin, resume);
    if matches!(result, Err(SysvError::EINTR)) {
        sys::test_cancellation();
    }
    result
}

fn pass<T: Copy>(
    point: Point,
    begin: impl FnOnce(&Entry) -> Result<Step<T>, SysvError>,
    mut resume: impl FnMut(&Entry, Waited) -> Result<Step<T>, SysvError>,
) -> Result<T, SysvError> {
    let errno = sys::errno();
    let mask = sys::block_signals();
    let mut cancellation = sys::disable_cancellation();
    let frame = sys::stack_pointer();
    let entry = fence(|| {
        let thread = thread::current().ok_or(SysvError::ENOMEM)?;
        cancellation = jump::sweep(thread, frame).unwrap_or(cancellation);
        Ok(Entry { thread, mask, cancellation, frame })
    });
    let result = entry.and_then(|entry| {
        let mut step = fence(|| begin(&entry));
        loop {
            match step? {
                Step::Done(result) => return Ok(result),
                Step::Wait(wait) => {
                    let waited = entry.wait(point, wait);
                    step = fence(|| resume(&entry, waited));
                }
            }
        }
    });
    sys::restore_cancellation(cancellation);
    sys::restore_signals(mask);
    sys::set_errno(errno);
    result
}

impl Entry {
    /// Waits under the program's own mask.
    fn wait(&self, point: Point, Wait { fd, by, until }: Wait) -> Waited {
        let nanos = until.map(Moment::left);
        if point == Point::Other || !self.cancellation.is_enabled() {
            return sys::wait(fd, by, self.mask, nanos);
        }
        let waited = match self.thread.begin_cancellable_wait() {
            true => sys::wait(fd, by, self.mask, nanos),
            false => Waited::Interrupted,
        };
        self.thread.end_cancellable_wait();
        waited
    }
}

/// Runs a piece of ours on a stack of ours; a panic in it is the program's `EIO`.
pub fn fence<T>(ours: impl FnOnce() -> Result<T, SysvError>) -> Result<T, SysvError> {
    let caught = sys::on_own_stack(|| catch_unwind(AssertUnwindSafe(ours)));
    caught.unwrap_or_else(|_panic| {
        log::line(format_args!("op=panic errno=EIO"));
        Err(SysvError::EIO)
    })
}
