//! The thread of one session: takes requests from its wire, makes the system calls, replies. When
//! a call would have to wait, the watcher has the wire until it returns.
//!
//! It lives until the session ends; between two wires it waits for the next.
#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use dipc_core::session::Finish;
use dipc_wire::ids::{Image, Seq, Slot};
use dipc_wire::limits::TICKET_LIFE_MS;
use dipc_wire::op::{Outcome, Reply, Request};
use dipc_wire::sysv::SysvError;

use super::calls::{Called, Caller, Patience};
use super::put_back::put_back;
use super::session::{Asked, Body, Kept, Session, Task, Wire};
use super::watcher::Watcher;
use super::{STACK_BYTES, Shared};
use crate::channel::{Channel, ChannelError, ChannelReceiver, ChannelSender};

/// Starts the thread of a session, which is in the table until it ends.
pub(super) fn start(
    id: (Image, Slot),
    session: Arc<Session>,
    shared: Arc<Shared>,
) -> io::Result<()> {
    let thread = thread::Builder::new().name("session".into()).stack_size(STACK_BYTES);
    thread.spawn(move || {
        let mut worker = Worker { caller: Caller::default(), session, shared };
        worker.run();
        let Worker { session, shared, .. } = worker;
        let mut sessions = shared.sessions.lock();
        if sessions.get(&id).is_some_and(|now| Arc::ptr_eq(now, &session)) {
            sessions.remove(&id);
        }
        shared.left.notify_all();
    })?;
    Ok(())
}

struct Worker {
    caller: Caller,
    session: Arc<Session>,
    shared: Arc<Shared>,
}

/// A wire in use.
struct Serving {
    sender: ChannelSender,
    /// The watcher's while the worker waits; not there once the wire is broken.
    receiver: Option<ChannelReceiver>,
}

impl Worker {
    fn run(&mut self) {
        while let Some(wire) = self.session.next_wire() {
            match admit(wire) {
                Ok(serving) => self.serve(serving),
                Err(error) => tracing::warn!(op = "wire", %error, "a client does not get in"),
            }
        }
    }

    /// Serves one wire until it ends.
    fn serve(&mut self, mut serving: Serving) {
        while let Some(receiver) = &mut serving.receiver {
            let tasks = match receiver.receive::<Request>() {
                Ok(Some((request, raw))) => {
                    tracing::trace!(op = "request", ?request, raw_bytes = raw.len());
                    self.session.heard(request, raw)
                }
                Ok(None) => break,
                Err(error) => {
                    tracing::debug!(op = "wire", %error);
                    break;
                }
            };
            match tasks {
                Ok(tasks) => self.perform(&mut serving, tasks),
                Err(violation) => {
                    tracing::warn!(op = "wire", ?violation, "the wire is closed");
                    break;
                }
            }
            if self.session.is_closed() {
                return;
            }
        }
        let tasks = self.session.wire_lost();
        assert!(tasks.is_empty(), "nothing runs here that could be interrupted");
    }

    /// Does what is to be done, in order, and what comes of it.
    fn perform(&mut self, serving: &mut Serving, tasks: Vec<Task>) {
        let mut tasks = VecDeque::from(tasks);
        while let Some(task) = tasks.pop_front() {
            match task {
                Task::Run(asked) => tasks.extend(self.call(serving, &asked)),
                Task::Send(kept) => {
                    let reply = Reply { seq: kept.seq, outcome: kept.outcome.clone() };
                    serving.send(&reply, kept.body.raw());
                }
                Task::AnswerAbandon(seq) => {
                    serving.send(&Reply { seq, outcome: Outcome::Done(0) }, &[]);
                }
                Task::PutBack(kept) => put_back(&kept),
                // The operation that was to be interrupted is not to wait: it will see that.
                Task::Interrupt(_) => {}
            }
        }
    }

    /// Makes the system call, at first without waiting.
    fn call(&mut self, serving: &mut Serving, asked: &Asked) -> Vec<Task> {
        let called = self.caller.call(&self.shared.tables, asked, Patience::None);
        let called = match called {
            Called::WouldWait => self.wait(serving, asked),
            called => called,
        };
        let seq = asked.seq;
        let (kept, finish) = match called {
            Called::Returned(outcome, body) => {
                let finish = match body {
                    Body::Taken { .. } => Finish::Took,
                    Body::Empty | Body::Bytes(_) => Finish::Plain,
                };
                (Kept { seq, outcome, body }, finish)
            }
            Called::Interrupted | Called::WouldWait => {
                (refused(seq, SysvError::EINTR), Finish::Interrupted)
            }
        };
        self.session.finished(kept, finish)
    }

    /// Makes the system call and waits in it, while the watcher listens to the wire.
    fn wait(&mut self, serving: &mut Serving, asked: &Asked) -> Called {
        let receiver = serving.receiver.take().expect("requests come by it");
        let lease = match Watcher::lend(&self.shared, &self.session, receiver) {
            Ok(lease) => lease,
            Err(receiver) => {
                serving.receiver = Some(receiver);
                return Called::Returned(Outcome::Refused(SysvError::ENOMEM), Body::Empty);
            }
        };
        let called = if self.session.may_wait(lease) {
            self.caller.call(&self.shared.tables, asked, Patience::Endless)
        } else {
            Called::Interrupted
        };
        serving.receiver = self.shared.watcher.take_back(lease);
        called
    }
}

impl Serving {
    /// What cannot be sent is kept; the client asks again by another wire.
    fn send(&mut self, reply: &Reply, raw: &[u8]) {
        tracing::trace!(op = "reply", ?reply, raw_bytes = raw.len());
        if let Err(error) = self.sender.send(reply, raw) {
            tracing::debug!(op = "wire", %error);
            self.receiver = None;
        }
    }
}

fn refused(seq: Seq, error: SysvError) -> Kept {
    Kept { seq, outcome: Outcome::Refused(error), body: Body::Empty }
}

fn admit(wire: Wire) -> Result<Serving, ChannelError> {
    let within = Duration::from_millis(TICKET_LIFE_MS);
    let order = wire.terms.order;
    let channel = Channel::respond(wire.socket, &wire.secret, wire.terms.cipher, order, within)?;
    let (sender, receiver) = channel.split();
    Ok(Serving { sender, receiver: Some(receiver) })
}
