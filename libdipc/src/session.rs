//! Operations on an object at another home, each made to happen once: asked with a number, asked
//! again with the same number over another wire when one breaks, cancelled when a signal comes,
//! and acknowledged when the program has the result.
#![forbid(unsafe_code)]

use std::sync::atomic::Ordering;

use dipc_wire::client::{Answer, Call, WireTerms};
use dipc_wire::ids::{NodeId, Seq};
use dipc_wire::limits::SESSIONS_MAX;
use dipc_wire::op::{Op, Outcome, Request};
use dipc_wire::sysv::SysvError;

use crate::boundary::Entry;
use crate::identity::Identity;
use crate::socket::Broken;
use crate::sys::{self, Mask, WaitBy, Waited};
use crate::thread::{Awaited, Parked, State, Thread};
use crate::time::Moment;
use crate::wire::{OpenError, Wire};
use crate::{client, log, slots};

/// Wires that may break one after the other before an operation is given up with `EIO`.
const WIRES_MAX: u32 = 100;

/// When an operation's wait ends early.
#[derive(Clone, Copy, Debug)]
pub enum Patience {
    /// Never: home answers at once.
    Unbroken,
    /// When a signal is handled: msgsnd and msgrcv.
    Message,
    /// When a signal is handled, the process is stopped and continued, or the time is up: semop
    /// and semtimedop.
    Semaphore(Option<Moment>),
}

/// The calling thread's wire to one home, for one operation.
pub struct Session<'a> {
    entry: &'a Entry,
    /// Away while the call waits, and when it broke for good.
    wire: Option<Wire>,
    /// The operation in hand.
    seq: Seq,
}

impl<'a> Session<'a> {
    /// Takes the thread's wire to `home`, or opens one.
    pub fn open(entry: &'a Entry, home: NodeId) -> Result<Session<'a>, SysvError> {
        let identity = Identity::now();
        while let Some(wire) = take_idle(entry.thread, home) {
            if wire.identity == identity {
                return Ok(Session { entry, wire: Some(wire), seq: Seq(0) });
            }
            end(wire); // it would act as who we were
        }
        join(entry)?;
        let slot = slots::take()?;
        for _ in 0..WIRES_MAX {
            match Wire::open(entry, home, slot, identity.clone()) {
                Ok(wire) => return Ok(Session { entry, wire: Some(wire), seq: Seq(0) }),
                Err(OpenError::Broken) => client::pause(),
                Err(OpenError::Refused(error)) => {
                    log::line(format_args!("op=wire home={home} errno={error:?}"));
                    slots::give_back(slot);
                    return Err(error);
                }
            }
        }
        slots::give_back(slot);
        Err(SysvError::EIO)
    }

    /// How home wants to be spoken to.
    pub fn terms(&self) -> Option<WireTerms> {
        self.wire.as_ref().map(|wire| wire.terms)
    }

    /// Makes the request, so that its parts can be dropped before the wait.
    pub fn prepare(&mut self, op: Op, raw: &[u8]) -> Result<(), SysvError> {
        self.seq = self.wire()?.prepare(op, raw);
        Ok(())
    }

    /// Asks, waits and reads: `read` takes the result out to the program.
    pub fn perform<T>(
        mut self,
        patience: Patience,
        read: impl FnOnce(Outcome, &[u8]) -> Result<T, SysvError>,
    ) -> Result<T, SysvError> {
        let (seq, mut stopped) = (self.seq, None);
        let sent = self.wire()?.send_operation();
        self.repaired(sent, stopped)?;
        let outcome = loop {
            match self.wire()?.reply(seq) {
                Ok(Some(outcome)) => break outcome,
                Ok(None) => {}
                Err(broken) => self.repaired(Err(broken), stopped)?,
            }
            match (self.wait(patience, stopped)?, stopped) {
                (Some(reason), None) => {
                    stopped = Some(reason);
                    let sent = self.wire()?.send(&Request::Cancel { seq });
                    self.repaired(sent, stopped)?;
                }
                _ => {
                    let received = self.wire()?.receive();
                    self.repaired(received, stopped)?;
                }
            }
        };
        self.finish(outcome, stopped, read)
    }

    fn finish<T>(
        &mut self,
        outcome: Outcome,
        stopped: Option<SysvError>,
        read: impl FnOnce(Outcome, &[u8]) -> Result<T, SysvError>,
    ) -> Result<T, SysvError> {
        let seq = self.seq;
        let wire = self.wire()?;
        let result = match (outcome, stopped) {
            (Outcome::Refused(SysvError::EINTR), Some(reason)) => Err(reason),
            (Outcome::Refused(error), _) => Err(error),
            (outcome, _) => read(outcome, wire.reply_raw()),
        };
        slots::finish(wire.slot, seq);
        wire.drop_reply();
        result
    }

    fn wire(&mut self) -> Result<&mut Wire, SysvError> {
        self.wire.as_mut().ok_or(SysvError::EIO)
    }

    /// After a break: another wire, and the request again.
    fn repaired(
        &mut self,
        result: Result<(), Broken>,
        stopped: Option<SysvError>,
    ) -> Result<(), SysvError> {
        if result.is_ok() {
            return Ok(());
        }
        let (entry, seq) = (self.entry, self.seq);
        for _ in 0..WIRES_MAX {
            let wire = self.wire()?;
            match wire.reopen(entry) {
                Ok(()) => {
                    let cancel = stopped.map(|_| Request::Cancel { seq });
                    let again = wire.send_operation();
                    if again.and_then(|()| cancel.map_or(Ok(()), |c| wire.send(&c))).is_ok() {
                        return Ok(());
                    }
                }
                Err(OpenError::Broken) => {}
                Err(OpenError::Refused(error)) => return Err(self.lose(error)),
            }
            client::pause();
        }
        Err(self.lose(SysvError::EIO))
    }

    /// There is no way to this home any more. The slot stays taken by a session that its node ends
    /// with the process, unless dipcd can be told now.
    fn lose(&mut self, error: SysvError) -> SysvError {
        if let Some(wire) = self.wire.take() {
            log::line(format_args!("op=wire home={} errno={error:?}", wire.home));
            close(wire);
        }
        error
    }

    /// Waits for something to read. `Some`: the wait ended early, and for this reason.
    fn wait(
        &mut self,
        patience: Patience,
        stopped: Option<SysvError>,
    ) -> Result<Option<SysvError>, SysvError> {
        let wire = self.wire()?;
        let (by, until) = match patience {
            Patience::Semaphore(until) if stopped.is_none() => match wire.epoll() {
                Ok(epoll) => (WaitBy::Epoll(epoll), until),
                Err(Broken) => (WaitBy::Poll, until),
            },
            _ => (WaitBy::Poll, None),
        };
        let cancellable = self.entry.cancellable && stopped.is_none();
        let waited = self.sleep(by, until, cancellable)?;
        Ok(match (waited, patience) {
            (Waited::Ready, _) | (_, Patience::Unbroken) => None,
            (Waited::Interrupted, _) => Some(SysvError::EINTR),
            (Waited::TimedOut, _) => Some(SysvError::EAGAIN),
        })
    }

    /// Sleeps with everything parked, so that a handler may leave for good.
    fn sleep(
        &mut self,
        by: WaitBy,
        until: Option<Moment>,
        cancellable: bool,
    ) -> Result<Waited, SysvError> {
        let Entry { thread, mask, cancellation, frame, .. } = *self.entry;
        let wire = self.wire.take().ok_or(SysvError::EIO)?;
        let number = wire.number();
        thread.park(Parked { frame, cancellation, awaited: Awaited::Reply(wire, self.seq) });
        let waited = if cancellable && !thread.begin_cancellable_wait() {
            Waited::Interrupted
        } else {
            sys::wait(number, by, mask, until.map(Moment::left))
        };
        thread.end_cancellable_wait();
        match thread.unpark() {
            Some(Parked { awaited: Awaited::Reply(wire, _), .. }) => self.wire = Some(wire),
            _ => return Err(SysvError::EINTR), // a child, forked by a handler
        }
        Ok(waited)
    }
}

impl Drop for Session<'_> {
    fn drop(&mut self) {
        if let Some(wire) = self.wire.take() {
            self.entry.thread.with(|state| state.idle.push(wire));
        }
    }
}

/// A program left operation `seq` for good: waits until home has undone it or let it be.
pub fn abandon(thread: &'static Thread, wire: Wire, seq: Seq) {
    let frame = sys::stack_pointer();
    let cancellation = sys::disable_cancellation();
    let entry = Entry { thread, mask: Mask::ALL, cancellation, cancellable: false, frame };
    let session = Session { entry: &entry, wire: Some(wire), seq };
    let _ = session.leave();
    sys::restore_cancellation(cancellation);
}

impl Session<'_> {
    fn leave(mut self) -> Result<(), SysvError> {
        let seq = self.seq;
        for _ in 0..WIRES_MAX {
            if self.wire()?.send(&Request::Abandon { seq }).is_ok() && self.left()? {
                slots::finish(self.wire()?.slot, seq);
                return Ok(());
            }
            let entry = self.entry;
            if let Err(OpenError::Refused(error)) = self.wire()?.reopen(entry) {
                return Err(self.lose(error));
            }
        }
        Err(self.lose(SysvError::EIO))
    }

    /// Waits for the answer to an Abandon; false when the wire broke. The operation's own reply
    /// may come first.
    fn left(&mut self) -> Result<bool, SysvError> {
        let seq = self.seq;
        loop {
            match self.wire()?.reply(seq) {
                Ok(Some(outcome)) => {
                    self.wire()?.drop_reply();
                    if matches!(outcome, Outcome::Done(_)) {
                        return Ok(true);
                    }
                }
                Ok(None) => {
                    self.sleep(WaitBy::Poll, None, false)?;
                    if self.wire()?.receive().is_err() {
                        return Ok(false);
                    }
                }
                Err(Broken) => return Ok(false),
            }
        }
    }
}

fn take_idle(thread: &Thread, home: NodeId) -> Option<Wire> {
    thread.with(|state| {
        let index = state.idle.iter().position(|wire| wire.home == home)?;
        Some(state.idle.swap_remove(index))
    })
}

/// Ends a session in order, over its wire.
fn end(mut wire: Wire) {
    let done = slots::done(wire.slot);
    match wire.send(&Request::End { done }) {
        Ok(()) => slots::give_back(wire.slot),
        Err(Broken) => close(wire),
    }
}

/// Ends a session whose wire is broken.
fn close(wire: Wire) {
    client::tell(Call::EndSession { slot: wire.slot });
    slots::give_back(wire.slot);
}

/// Ends the sessions of a thread that has ended, also of calls that it was in when it ended.
pub fn end_all(state: State) {
    let parked = state.calls.into_iter().filter_map(|call| match call.awaited {
        Awaited::Reply(wire, _) => Some(wire),
        Awaited::Answer(_) => None,
    });
    state.idle.into_iter().chain(parked).for_each(end);
}

const NOT_JOINED: u32 = 0;
const JOINING: u32 = 1;
const JOINED: u32 = 2;

/// Makes this process known to its dipcd, once: dipcd watches it from now on, and reads the `done`
/// page when it ends.
fn join(entry: &Entry) -> Result<(), SysvError> {
    let joined = &sys::process().joined;
    loop {
        let (order, failed) = (Ordering::AcqRel, Ordering::Acquire);
        match joined.compare_exchange(NOT_JOINED, JOINING, order, failed) {
            Ok(_) => break,
            Err(JOINED) => return Ok(()),
            Err(_) => client::pause(), // another thread is about to; its wait is bounded
        }
    }
    let result = ask_to_join(entry);
    joined.store(if result.is_ok() { JOINED } else { NOT_JOINED }, Ordering::Release);
    result
}

fn ask_to_join(entry: &Entry) -> Result<(), SysvError> {
    let undisturbed = Entry { mask: Mask::ALL, ..*entry };
    let (Answer::Joined { .. }, Some(memfd)) = client::call(&undisturbed, Call::Join)? else {
        return Err(SysvError::EIO);
    };
    let bytes = SESSIONS_MAX as usize * size_of::<u64>();
    sys::map_done_page(&memfd, bytes).map_err(|_| SysvError::ENOMEM)
}
