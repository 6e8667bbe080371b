//! One session as its threads share it: the machine that decides, the operation that was asked
//! last, the reply that is kept, and the wire. No system calls of System V here.
//!
//! Whoever has an event steps the machine under the lock and then, without it, does the tasks
//! that come of it. While a worker is in a system call its watcher and the main thread step too,
//! and nothing but interruptions can come of that.
#![forbid(unsafe_code)]

use parking_lot::{Condvar, Mutex};
use rustix::net::Shutdown;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use dipc_core::session::{self as core, Effect, Event, Finish, Violation};
use dipc_wire::client::WireTerms;
use dipc_wire::ids::{KernelId, Secret, Seq};
use dipc_wire::op::{Op, Outcome, Request};

use super::put_back::put_back;
use super::watcher::{Lease, Watcher};
use crate::sys::ipc::MessageBuffer;

/// A connected socket on which a session goes on.
pub(super) struct Wire {
    pub(super) socket: Arc<OwnedFd>,
    pub(super) secret: Secret,
    pub(super) terms: WireTerms,
}

/// An operation as it was asked.
pub(super) struct Asked {
    pub(super) seq: Seq,
    pub(super) op: Op,
    pub(super) raw: Vec<u8>,
}

/// What came of an operation, until a `done` covers it.
pub(super) struct Kept {
    pub(super) seq: Seq,
    pub(super) outcome: Outcome,
    pub(super) body: Body,
}

/// What follows an outcome as raw bytes.
pub(super) enum Body {
    /// Nothing.
    Empty,
    /// These.
    Bytes(Vec<u8>),
    /// The first bytes of a message that was taken out of a queue.
    Taken {
        /// Where it goes back to.
        queue: KernelId,
        /// All of it.
        message: MessageBuffer,
        /// How much of it the program wants.
        shown: usize,
    },
}

impl Body {
    pub(super) fn raw(&self) -> &[u8] {
        match self {
            Body::Empty => &[],
            Body::Bytes(bytes) => bytes,
            Body::Taken { message, shown, .. } => &message.text()[..*shown],
        }
    }
}

/// What is to be done without the lock, in order.
pub(super) enum Task {
    /// Make the system call.
    Run(Arc<Asked>),
    /// Send the reply.
    Send(Arc<Kept>),
    /// Say that an operation was abandoned.
    AnswerAbandon(Seq),
    /// Signal the worker, if it waits already.
    Interrupt(Option<Lease>),
    /// Return the message to its queue.
    PutBack(Arc<Kept>),
}

struct State {
    machine: core::Session,
    latest: Option<Arc<Asked>>,
    kept: Option<Arc<Kept>>,
    /// The running operation shall not wait, or no longer.
    interrupted: bool,
    /// Where the watcher has the wire of the running operation.
    lease: Option<Lease>,
    /// The wire in use, to break it.
    socket: Option<Arc<OwnedFd>>,
    /// The wire that takes its place.
    offered: Option<Wire>,
    standing: Standing,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Standing {
    Open,
    /// Its node has spoken: it ends.
    Over,
    Closed,
}

/// One session.
pub(super) struct Session {
    state: Mutex<State>,
    changed: Condvar,
}

impl Session {
    /// A session before its first operation, with its first wire.
    pub(super) fn new(wire: Wire) -> Session {
        let state = State {
            machine: core::Session::new(),
            latest: None,
            kept: None,
            interrupted: false,
            lease: None,
            socket: None,
            offered: Some(wire),
            standing: Standing::Open,
        };
        Session { state: Mutex::new(state), changed: Condvar::new() }
    }

    /// Another wire for this session: the one in use is broken, and the worker takes this one.
    /// Gives it back if the session has ended.
    pub(super) fn offer(&self, wire: Wire) -> Option<Wire> {
        let mut state = self.state.lock();
        if state.standing != Standing::Open {
            return Some(wire);
        }
        state.break_wire();
        state.offered = Some(wire);
        self.changed.notify_all();
        None
    }

    /// Breaks the wire in use, and forgets one that waits.
    pub(super) fn hang_up(&self) {
        let mut state = self.state.lock();
        state.break_wire();
        state.offered = None;
    }

    /// The next wire to serve; waits for it. `None`: the session has ended.
    pub(super) fn next_wire(&self) -> Option<Wire> {
        let mut state = self.state.lock();
        state.socket = None;
        loop {
            if state.standing == Standing::Closed {
                return None;
            }
            if let Some(wire) = state.offered.take() {
                state.socket = Some(wire.socket.clone());
                return Some(wire);
            }
            self.changed.wait(&mut state);
        }
    }

    /// Whether it has ended.
    pub(super) fn is_closed(&self) -> bool {
        self.state.lock().standing == Standing::Closed
    }

    /// A frame has come by the wire.
    pub(super) fn heard(&self, request: Request, raw: &[u8]) -> Result<Vec<Task>, Violation> {
        let mut state = self.state.lock();
        let event = match request {
            Request::Do { seq, done, op } => {
                let event = Event::Request { seq, done };
                let effects = state.machine.step(event)?;
                state.latest = Some(Arc::new(Asked { seq, op, raw: raw.to_vec() }));
                return Ok(self.tasks(&mut state, effects));
            }
            Request::Cancel { seq } => Event::Cancel { seq },
            Request::Abandon { seq } => Event::Abandon { seq },
            Request::End { done } => Event::End { done },
        };
        let effects = state.machine.step(event)?;
        Ok(self.tasks(&mut state, effects))
    }

    /// The wire is of no more use.
    pub(super) fn wire_lost(&self) -> Vec<Task> {
        let mut state = self.state.lock();
        let effects = state.machine.step(Event::WireLost).expect("a wire may be lost at any time");
        self.tasks(&mut state, effects)
    }

    /// The watcher has the wire of the running operation, and can signal it from now on. `false`
    /// if it is not to wait any more.
    pub(super) fn may_wait(&self, lease: Lease) -> bool {
        let mut state = self.state.lock();
        state.lease = Some(lease);
        !state.interrupted
    }

    /// The system call has returned and the wire is the worker's again.
    pub(super) fn finished(&self, kept: Kept, finish: Finish) -> Vec<Task> {
        let mut state = self.state.lock();
        state.lease = None;
        let event = Event::Finished(finish);
        let effects = state.machine.step(event).expect("an operation was running");
        if !effects.iter().any(|effect| matches!(effect, Effect::Run { .. })) {
            state.latest = None;
        }
        state.kept = Some(Arc::new(kept));
        self.tasks(&mut state, effects)
    }

    /// Its image or process has ended, or its node is lost.
    pub(super) fn over(&self, watcher: &Watcher, event: Event) {
        let tasks = {
            let mut state = self.state.lock();
            if state.standing == Standing::Open {
                state.standing = Standing::Over;
            }
            let effects = state.machine.step(event).expect("a session may be over at any time");
            self.tasks(&mut state, effects)
        };
        for task in tasks {
            match task {
                Task::Interrupt(Some(lease)) => watcher.interrupt(lease),
                Task::PutBack(kept) => put_back(&kept),
                _ => {}
            }
        }
    }

    /// Does what effects do to the state, and says what is left to do.
    fn tasks(&self, state: &mut State, effects: Vec<Effect>) -> Vec<Task> {
        let mut tasks = Vec::with_capacity(effects.len());
        for effect in effects {
            tasks.extend(match effect {
                Effect::Run { seq } => {
                    state.interrupted = false;
                    let asked = state.latest.clone().expect("what runs was asked");
                    assert_eq!(asked.seq, seq, "the latest request is the one to run");
                    Some(Task::Run(asked))
                }
                Effect::Send { .. } => state.kept.clone().map(Task::Send),
                Effect::AnswerAbandon { seq } => Some(Task::AnswerAbandon(seq)),
                Effect::Interrupt => {
                    state.interrupted = true;
                    Some(Task::Interrupt(state.lease))
                }
                Effect::PutBack { .. } => state.kept.take().map(Task::PutBack),
                Effect::Forget { .. } => {
                    state.kept = None;
                    None
                }
                Effect::Close => {
                    self.close(state);
                    None
                }
            });
        }
        tasks
    }

    /// The session is at its end. If its thread said so and another thread of the client has
    /// taken the slot already, the next session begins in its place.
    fn close(&self, state: &mut State) {
        state.break_wire();
        if state.standing == Standing::Open && state.offered.is_some() {
            state.machine = core::Session::new();
            return;
        }
        state.standing = Standing::Closed;
        state.offered = None;
        self.changed.notify_all();
    }
}

impl State {
    fn break_wire(&mut self) {
        if let Some(socket) = self.socket.take() {
            // An error says that it is broken already.
            let _ = rustix::net::shutdown(&socket, Shutdown::Both);
        }
    }
}
