//! The watcher: one thread that listens to the wires of workers while they wait in a system call,
//! and signals a worker until it is out of it.
//!
//! A signal that comes before the system call begins is lost (one in 2,000), so it is repeated,
//! at growing intervals, as long as the worker has not taken its wire back. Signals are sent under
//! the lock under which wires are taken back: none reaches a worker later.
//! Order of locks: this table, then a session.
#![forbid(unsafe_code)]

use parking_lot::Mutex;
use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::event::{EventfdFlags, Timespec, eventfd};
use rustix::io::Errno;
use rustix::thread::Pid;
use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use dipc_wire::op::Request;

use super::session::{Session, Task};
use super::{STACK_BYTES, Shared};
use crate::channel::{ChannelReceiver, Tried};
use crate::sys::process;

/// The first pause between signals; it doubles.
const PAUSE_MIN: Duration = Duration::from_micros(200);
/// The longest.
const PAUSE_MAX: Duration = Duration::from_millis(20);
/// The token of our own event descriptor; leases begin above it.
const WAKE: u64 = 0;

/// A wire that is lent to the watcher.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Lease(u64);

struct Lent {
    session: Arc<Session>,
    receiver: ChannelReceiver,
    worker: Pid,
    interrupting: bool,
    broken: bool,
}

#[derive(Default)]
struct Table {
    started: bool,
    last: u64,
    lent: HashMap<u64, Lent>,
    /// Somebody is to be signalled who was not when the thread looked last.
    fresh: bool,
}

/// The watcher and what is lent to it.
pub(super) struct Watcher {
    epoll: OwnedFd,
    wake: OwnedFd,
    table: Mutex<Table>,
}

impl Watcher {
    /// Watches nothing, and has no thread, before somebody waits.
    pub(super) fn new() -> io::Result<Watcher> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        epoll::add(&epoll, &wake, EventData::new_u64(WAKE), EventFlags::IN)?;
        Ok(Watcher { epoll, wake, table: Mutex::default() })
    }

    /// Takes a worker's wire while it waits. What came with the last request already is heard at
    /// once. Without memory for it the wire comes back.
    pub(super) fn lend(
        shared: &Arc<Shared>,
        session: &Arc<Session>,
        receiver: ChannelReceiver,
    ) -> Result<Lease, ChannelReceiver> {
        let watcher = &shared.watcher;
        let mut table = watcher.table.lock();
        if !table.started {
            let shared = shared.clone();
            let thread = thread::Builder::new().name("watcher".into()).stack_size(STACK_BYTES);
            if thread.spawn(move || shared.watcher.run()).is_err() {
                return Err(receiver);
            }
            table.started = true;
        }
        table.last += 1;
        let token = table.last;
        let data = EventData::new_u64(token);
        if epoll::add(&watcher.epoll, receiver.socket(), data, EventFlags::IN).is_err() {
            return Err(receiver);
        }
        let has_leftover = receiver.has_leftover();
        let worker = rustix::thread::gettid();
        let session = session.clone();
        let lent = Lent { session, receiver, worker, interrupting: false, broken: false };
        table.lent.insert(token, lent);
        if has_leftover {
            watcher.hear(&mut table, token);
        }
        Ok(Lease(token))
    }

    /// Gives a worker its wire back; `None` if it broke meanwhile, which the session knows.
    pub(super) fn take_back(&self, lease: Lease) -> Option<ChannelReceiver> {
        let lent = self.table.lock().lent.remove(&lease.0).expect("a worker has lent it");
        if lent.broken {
            return None;
        }
        self.forget(&lent.receiver);
        Some(lent.receiver)
    }

    /// Signals a worker until it takes its wire back; if it has already, there is no need.
    pub(super) fn interrupt(&self, lease: Lease) {
        let mut table = self.table.lock();
        let Some(lent) = table.lent.get_mut(&lease.0) else { return };
        lent.interrupting = true;
        process::interrupt(lent.worker);
        table.fresh = true;
        // It fails only if the thread has yet to see 2^64 - 1 earlier ones.
        let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
    }

    /// The thread: as long as the process lives.
    fn run(&self) {
        let mut events = Vec::with_capacity(16);
        let mut pause = PAUSE_MIN;
        let mut interrupting = false;
        loop {
            events.clear();
            let wait = Timespec::try_from(pause).expect("a part of a second");
            let wait = interrupting.then_some(&wait);
            match epoll::wait(&self.epoll, spare_capacity(&mut events), wait) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => panic!("epoll_wait cannot fail otherwise: {error}"),
            }
            let mut table = self.table.lock();
            for event in &events {
                match event.data.u64() {
                    WAKE => drop(rustix::io::read(&self.wake, &mut [0; 8])),
                    token => self.hear(&mut table, token),
                }
            }
            pause = if std::mem::take(&mut table.fresh) { PAUSE_MIN } else { pause * 2 };
            pause = pause.min(PAUSE_MAX);
            interrupting = false;
            for lent in table.lent.values().filter(|lent| lent.interrupting) {
                process::interrupt(lent.worker);
                interrupting = true;
            }
        }
    }

    /// Hears everything that has come by a lent wire: a worker that waits reads nothing itself.
    fn hear(&self, table: &mut Table, token: u64) {
        let Some(lent) = table.lent.get_mut(&token) else { return };
        while !lent.broken {
            let tasks = match lent.receiver.try_receive::<Request>() {
                Ok(Tried::Nothing) => return,
                Ok(Tried::Frame(request, raw)) => lent.session.heard(request, raw),
                Ok(Tried::Ended) => {
                    lent.broken = true;
                    Ok(lent.session.wire_lost())
                }
                Err(error) => {
                    tracing::debug!(op = "wire", %error);
                    lent.broken = true;
                    Ok(lent.session.wire_lost())
                }
            };
            let tasks = tasks.unwrap_or_else(|violation| {
                tracing::warn!(op = "wire", ?violation, "the wire is closed");
                lent.broken = true;
                lent.session.wire_lost()
            });
            if lent.broken {
                self.forget(&lent.receiver);
            }
            for task in tasks {
                assert!(matches!(task, Task::Interrupt(_)), "the operation is still running");
                lent.interrupting = true;
                table.fresh = true;
            }
        }
    }

    fn forget(&self, receiver: &ChannelReceiver) {
        // Main may hold a copy of the socket, so closing it later would not end the watch.
        let _ = epoll::delete(&self.epoll, receiver.socket());
    }
}
