//! What we know of each thread of the program: its wires, and the calls it is in the middle of.
//!
//! A thread has several calls under way when a signal handler that runs inside one makes another.
//! While a thread waits, everything its call owns is parked here and nothing in its stack frames,
//! so that a handler may leave by siglongjmp, or fork, and nothing is lost. The table is static and
//! needs no lock: an entry belongs to one thread, and one left by the parent of a forked child has
//! another birth number.
#![forbid(unsafe_code)]

use std::cell::Cell;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};

use rustix::thread::gettid;

use crate::client::Question;
use crate::listing::Listing;
use crate::session::Pending;
use crate::sys::table::{Empty, Table};
use crate::sys::{self, Cancellation};
use crate::wire::Wire;

/// Threads of one process that can be in remote calls at the same time.
const THREADS_MAX: usize = 16_384;

static THREADS: Table<Thread, THREADS_MAX> = Table::new();

/// How many entries were ever used; the others need no look.
static USED: AtomicU32 = AtomicU32::new(0);

thread_local! {
    static CURRENT: Cell<Option<&'static Thread>> = const { Cell::new(None) };
}

/// One thread of the program.
pub struct Thread {
    /// The process it belongs to, 0 when free.
    birth: AtomicU64,
    /// Its pthread_t.
    pthread: AtomicU64,
    tid: AtomicU32,
    /// How many calls are parked; for a quick look by longjmp.
    parked: AtomicU32,
    /// Whether it waits in a cancellation point.
    waits: AtomicBool,
    /// Whether pthread_cancel was called for it.
    cancelled: AtomicBool,
    state: Mutex<Option<Box<State>>>,
}

/// What a thread owns.
#[derive(Default)]
pub struct State {
    /// Wires that no call uses.
    pub idle: Vec<Wire>,
    /// Calls that wait, the outermost first.
    pub calls: Vec<Parked>,
    /// The objects last listed, for `MSG_STAT` and `SEM_STAT`.
    pub listing: Option<Listing>,
}

/// A call that waits.
pub struct Parked {
    /// Where its frame is: a jump to above it leaves the call.
    pub frame: usize,
    /// What the program's cancellation state was.
    pub cancellation: Cancellation,
    /// What it waits for, and owns.
    pub awaited: Awaited,
}

/// What a call waits for.
pub enum Awaited {
    /// The reply to an operation.
    Reply(Pending),
    /// dipcd's answer.
    Answer(Question),
}

impl Empty for Thread {
    const EMPTY: Thread = Thread {
        birth: AtomicU64::new(0),
        pthread: AtomicU64::new(0),
        tid: AtomicU32::new(0),
        parked: AtomicU32::new(0),
        waits: AtomicBool::new(false),
        cancelled: AtomicBool::new(false),
        state: Mutex::new(None),
    };
}

impl Thread {
    /// Whether the entry is of this process, not of the parent it was forked from.
    pub fn is_current(&self) -> bool {
        self.birth.load(Ordering::Acquire) == birth()
    }

    /// The thread's own things. Never held across a wait.
    pub fn with<T>(&self, look: impl FnOnce(&mut State) -> T) -> T {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        look(state.get_or_insert_default())
    }

    /// How many of its calls wait.
    pub fn parked(&self) -> u32 {
        self.parked.load(Ordering::Relaxed)
    }

    /// Parks a call before it waits.
    pub fn park(&self, call: Parked) {
        self.with(|state| state.calls.push(call));
        self.parked.fetch_add(1, Ordering::Relaxed);
    }

    /// Takes the innermost parked call. `None` in a forked child, which owns none.
    pub fn unpark(&self) -> Option<Parked> {
        let call = if self.is_current() { self.with(|state| state.calls.pop()) } else { None };
        if call.is_some() {
            self.parked.fetch_sub(1, Ordering::Relaxed);
        }
        call
    }

    /// From now on pthread_cancel wakes this thread. False if it was cancelled already.
    pub fn begin_cancellable_wait(&self) -> bool {
        self.waits.store(true, Ordering::SeqCst);
        !self.cancelled.load(Ordering::SeqCst)
    }

    /// Ends what [`Thread::begin_cancellable_wait`] began.
    pub fn end_cancellable_wait(&self) {
        self.waits.store(false, Ordering::SeqCst);
    }

    /// Makes a free entry this thread's.
    fn claim(&self, found: u64) -> bool {
        let Some(mut state) = self.free_state() else { return false };
        let (order, birth) = (Ordering::AcqRel, birth());
        if self.birth.compare_exchange(found, birth, order, Ordering::Relaxed).is_err() {
            return false;
        }
        *state = None; // closes what a forked child inherited
        self.cancelled.store(false, Ordering::SeqCst);
        self.waits.store(false, Ordering::SeqCst);
        self.parked.store(0, Ordering::Relaxed);
        self.tid.store(gettid().as_raw_nonzero().get() as u32, Ordering::Relaxed);
        self.pthread.store(sys::this_thread(), Ordering::SeqCst);
        true
    }

    /// The place for the state, unless some thread of the parent held it at the fork.
    fn free_state(&self) -> Option<MutexGuard<'_, Option<Box<State>>>> {
        match self.state.try_lock() {
            Ok(state) => Some(state),
            Err(TryLockError::Poisoned(state)) => Some(state.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }
}

/// This process's number in its line of forks, never 0.
pub fn birth() -> u64 {
    static LINE: AtomicU64 = AtomicU64::new(0);
    let place = &sys::process().birth;
    match place.load(Ordering::Acquire) {
        0 => {
            let number = LINE.fetch_add(1, Ordering::AcqRel) + 1;
            match place.compare_exchange(0, number, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => number,
                Err(first) => first,
            }
        }
        number => number,
    }
}

/// The calling thread, if it was here before.
pub fn existing() -> Option<&'static Thread> {
    CURRENT.get().filter(|thread| thread.is_current())
}

/// The calling thread. `None` when [`THREADS_MAX`] others are known.
pub fn current() -> Option<&'static Thread> {
    if let Some(thread) = existing() {
        return Some(thread);
    }
    let mine = birth();
    let thread = THREADS.iter().enumerate().find(|(index, thread)| {
        let found = thread.birth.load(Ordering::Acquire);
        let taken = found != mine && thread.claim(found);
        if taken {
            USED.fetch_max(*index as u32 + 1, Ordering::AcqRel);
        }
        taken
    });
    let (_, thread) = thread?;
    CURRENT.set(Some(thread));
    sys::on_thread_exit();
    Some(thread)
}

/// Takes away what the calling thread owned, when it ends.
pub fn leave() -> Option<Box<State>> {
    let thread = CURRENT.take().filter(|thread| thread.is_current())?;
    let state = thread.free_state().and_then(|mut state| state.take());
    thread.pthread.store(0, Ordering::SeqCst);
    thread.birth.store(0, Ordering::Release);
    state
}

/// The thread with this pthread_t has been cancelled: if it waits in one of our calls, its wait
/// ends.
pub fn cancelled(pthread: u64) {
    let used = USED.load(Ordering::Acquire) as usize;
    for thread in THREADS.iter().take(used) {
        if thread.is_current() && thread.pthread.load(Ordering::SeqCst) == pthread {
            thread.cancelled.store(true, Ordering::SeqCst);
            if thread.waits.load(Ordering::SeqCst) {
                sys::wake_cancelled(thread.tid.load(Ordering::Relaxed));
            }
        }
    }
}
