//! Operations on an object at another home, each made to happen once: asked with a number, asked
//! again with the same number over another wire when one breaks, cancelled when a signal comes,
//! and acknowledged when the program has the result.
//!
//! ```text
//! open ─▶ prepare ─▶ perform                          home answers at once
//!                 └▶ begin ─▶ (parked) ─▶ resume      it may wait there, and here
//! ```
#![forbid(unsafe_code)]

use std::sync::atomic::Ordering;

use dipc_wire::client::{Answer, Call, WireTerms};
use dipc_wire::ids::{NodeId, Seq};
use dipc_wire::limits::SESSIONS_MAX;
use dipc_wire::op::{Op, Outcome, Request};
use dipc_wire::sysv::SysvError;

use crate::boundary::{Entry, Step, Wait};
use crate::identity::Seen;
use crate::socket::Broken;
use crate::sys::{self, WaitBy, Waited};
use crate::thread::{Awaited, Parked, State, Thread};
use crate::time::Moment;
use crate::wire::{OpenError, Wire};
use crate::{client, log, policy, slots};

/// How long home may take to answer when an operation is cancelled because its time is up: then it
/// is left for good, whatever became of it.
const CANCEL_NANOS: u64 = 2_000_000_000;

/// Wires that may break one after the other before an operation is given up with `EIO`.
const WIRES_MAX: u32 = 100;

/// When an operation's wait ends early, besides when a signal is handled.
#[derive(Clone, Copy, Debug)]
pub enum Patience {
    /// Never: msgsnd and msgrcv.
    Message,
    /// When the process is stopped and continued, or the time is up: semop and semtimedop.
    Semaphore(Option<Moment>),
}

/// An operation that waits for its reply.
pub struct Pending {
    wire: Wire,
    seq: Seq,
    patience: Patience,
    bound: Option<Moment>,
}

/// The calling thread's wire to one home, for one operation.
pub struct Session {
    thread: &'static Thread,
    /// Away while the call waits, and when it broke for good.
    wire: Option<Wire>,
    /// The operation in hand.
    seq: Seq,
    /// Set once it is cancelled: what the program will be told.
    stopped: Option<SysvError>,
    /// When it has taken long enough (`employer_worker_timeout`).
    bound: Option<Moment>,
}

impl Session {
    /// Takes the thread's wire to `home`, or opens one.
    pub fn open(entry: &Entry, home: NodeId) -> Result<Session, SysvError> {
        while let Some(mut wire) = take_idle(entry.thread, home) {
            if wire.identity.is_still_true() {
                return Ok(Session::on(entry.thread, wire, Seq(0)));
            }
            end(wire); // it would act as who we were
        }
        join()?;
        let (identity, slot) = (Seen::now(), slots::take()?);
        for _ in 0..WIRES_MAX {
            match Wire::open(home, slot, identity.clone()) {
                Ok(wire) => return Ok(Session::on(entry.thread, wire, Seq(0))),
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

    fn on(thread: &'static Thread, wire: Wire, seq: Seq) -> Session {
        Session { thread, wire: Some(wire), seq, stopped: None, bound: None }
    }

    /// How home wants to be spoken to.
    pub fn terms(&self) -> Option<WireTerms> {
        self.wire.as_ref().map(|wire| wire.terms)
    }

    /// Makes the request.
    pub fn prepare(&mut self, op: Op, raw: &[u8]) -> Result<(), SysvError> {
        self.seq = self.wire()?.prepare(op, raw);
        self.bound = policy::get().operation_nanos.map(Moment::after);
        Ok(())
    }

    /// Asks, and reads the reply; the program's handlers do not run meanwhile.
    pub fn perform<T>(
        mut self,
        read: impl FnOnce(Outcome, &[u8]) -> Result<T, SysvError>,
    ) -> Result<T, SysvError> {
        let sent = self.wire()?.send_operation();
        self.repaired(sent)?;
        self.settle(read)
    }

    /// Asks, and leaves the wait to the boundary.
    pub fn begin<T>(mut self, entry: &Entry, patience: Patience) -> Result<Step<T>, SysvError> {
        let sent = self.wire()?.send_operation();
        self.repaired(sent)?;
        self.park(entry, patience)
    }

    /// Goes on after the wait: `read` takes the result out to the program.
    pub fn resume<T>(
        entry: &Entry,
        waited: Waited,
        read: impl FnOnce(Outcome, &[u8]) -> Result<T, SysvError>,
    ) -> Result<Step<T>, SysvError> {
        let Some(Parked { awaited: Awaited::Reply(pending), .. }) = entry.thread.unpark() else {
            return Err(SysvError::EINTR); // a child, forked by a handler
        };
        let Pending { wire, seq, patience, bound } = pending;
        let mut session = Session::on(entry.thread, wire, seq);
        session.bound = bound;
        session.stopped = match waited {
            Waited::Ready => None,
            Waited::Interrupted => Some(SysvError::EINTR),
            Waited::TimedOut => Some(session.time_is_up(patience)),
        };
        if session.stopped.is_some() {
            let sent = session.wire()?.send(&Request::Cancel { seq });
            session.repaired(sent)?;
            return session.settle(read).map(Step::Done);
        }
        let received = session.wire()?.receive();
        session.repaired(received)?;
        match session.reply()? {
            Some(outcome) => session.finish(outcome, read).map(Step::Done),
            None => session.park(entry, patience),
        }
    }

    fn park<T>(mut self, entry: &Entry, patience: Patience) -> Result<Step<T>, SysvError> {
        let seq = self.seq;
        let mut wire = self.wire.take().ok_or(SysvError::EIO)?;
        let (by, until) = match patience {
            Patience::Message => (WaitBy::Poll, None),
            Patience::Semaphore(until) => (wire.epoll().map_or(WaitBy::Poll, WaitBy::Epoll), until),
        };
        let until = until.into_iter().chain(self.bound).min();
        let wait = Wait { fd: wire.number(), by, until };
        let (frame, cancellation) = (entry.frame, entry.cancellation);
        let awaited = Awaited::Reply(Pending { wire, seq, patience, bound: self.bound });
        entry.thread.park(Parked { frame, cancellation, awaited });
        Ok(Step::Wait(wait))
    }

    /// A wait has come to its end: the program's own, or that of `employer_worker_timeout`. The
    /// answer to the cancellation is waited for a little longer.
    fn time_is_up(&mut self, patience: Patience) -> SysvError {
        let own = matches!(patience, Patience::Semaphore(Some(until)) if until.left() == 0);
        if let Some(bound) = &mut self.bound {
            *bound = Moment::after(CANCEL_NANOS);
        }
        if own { SysvError::EAGAIN } else { SysvError::ETIMEDOUT }
    }

    /// `ETIMEDOUT` once the operation has taken long enough: what home still does with it is undone
    /// when this session's next operation comes, or its process ends.
    fn check_bound(&mut self) -> Result<(), SysvError> {
        match self.bound {
            Some(bound) if bound.left() == 0 => Err(self.lose(SysvError::ETIMEDOUT)),
            _ => Ok(()),
        }
    }

    /// Waits for the reply of an operation that home answers now.
    fn settle<T>(
        mut self,
        read: impl FnOnce(Outcome, &[u8]) -> Result<T, SysvError>,
    ) -> Result<T, SysvError> {
        loop {
            if let Some(outcome) = self.reply()? {
                return self.finish(outcome, read);
            }
            self.check_bound()?;
            let bound = self.bound;
            let received = self.wire()?.wait_and_receive(bound);
            self.repaired(received)?;
        }
    }

    /// The reply, if it is there.
    fn reply(&mut self) -> Result<Option<Outcome>, SysvError> {
        let seq = self.seq;
        match self.wire()?.reply(seq) {
            Ok(reply) => Ok(reply),
            Err(broken) => self.repaired(Err(broken)).map(|()| None),
        }
    }

    fn finish<T>(
        &mut self,
        outcome: Outcome,
        read: impl FnOnce(Outcome, &[u8]) -> Result<T, SysvError>,
    ) -> Result<T, SysvError> {
        let (seq, stopped) = (self.seq, self.stopped);
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
    fn repaired(&mut self, result: Result<(), Broken>) -> Result<(), SysvError> {
        if result.is_ok() {
            return Ok(());
        }
        for _ in 0..WIRES_MAX {
            self.check_bound()?;
            match self.wire()?.reopen() {
                Ok(()) if self.ask_again().is_ok() => return Ok(()),
                Ok(()) | Err(OpenError::Broken | OpenError::Refused(SysvError::EAGAIN)) => {
                    client::pause();
                }
                Err(OpenError::Refused(SysvError::EIDRM)) => {
                    return Err(self.lose(SysvError::EIDRM));
                }
                // Whatever the reason: to the program it would say that nothing was done.
                Err(OpenError::Refused(_)) => break,
            }
        }
        Err(self.lose(SysvError::EIO))
    }

    fn ask_again(&mut self) -> Result<(), Broken> {
        let (seq, is_stopped) = (self.seq, self.stopped.is_some());
        let wire = self.wire.as_mut().ok_or(Broken)?;
        wire.send_operation()?;
        if is_stopped { wire.send(&Request::Cancel { seq }) } else { Ok(()) }
    }

    /// There is no way to this home any more.
    fn lose(&mut self, error: SysvError) -> SysvError {
        if let Some(wire) = self.wire.take() {
            log::line(format_args!("op=wire home={} errno={error:?}", wire.home));
            slots::give_back(wire.slot);
        }
        error
    }

    /// Leaves the operation for good: home undoes it or lets it be.
    fn abandon(mut self) -> Result<(), SysvError> {
        let seq = self.seq;
        for _ in 0..WIRES_MAX {
            let asked = self.wire()?.send(&Request::Abandon { seq });
            if asked.is_ok() && self.abandoned()? {
                slots::finish(self.wire()?.slot, seq);
                return Ok(());
            }
            if let Err(OpenError::Refused(error)) = self.wire()?.reopen() {
                return Err(self.lose(error));
            }
        }
        Err(self.lose(SysvError::EIO))
    }

    /// Waits for the answer to an Abandon; false when the wire broke. The operation's own reply
    /// may come first.
    fn abandoned(&mut self) -> Result<bool, SysvError> {
        let seq = self.seq;
        let wire = self.wire()?;
        loop {
            match wire.reply(seq) {
                Ok(Some(outcome)) => {
                    wire.drop_reply();
                    if matches!(outcome, Outcome::Done(_)) {
                        return Ok(true);
                    }
                }
                Ok(None) if wire.wait_and_receive(None).is_ok() => {}
                Ok(None) | Err(Broken) => return Ok(false),
            }
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        if let Some(wire) = self.wire.take() {
            self.thread.with(|state| state.idle.push(wire));
        }
    }
}

/// The program left an operation for good: afterwards no message is missing.
pub fn abandon(thread: &'static Thread, Pending { wire, seq, .. }: Pending) {
    if let Err(error) = Session::on(thread, wire, seq).abandon() {
        log::line(format_args!("op=abandon errno={error:?}"));
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
    tell_end(&mut wire);
}

/// Ends a session whose thread was in an operation when it ended: home is to have given it up
/// before the program goes on, so that it takes no message that is sent from now on.
fn end_at_once(mut wire: Wire) {
    const PATIENCE_NANOS: u64 = 1_000_000_000;
    tell_end(&mut wire);
    let until = Moment::after(PATIENCE_NANOS);
    // Home closes it when the operation is over.
    while until.left() > 0 && wire.wait_and_receive(Some(until)).is_ok() {}
}

fn tell_end(wire: &mut Wire) {
    let done = slots::done(wire.slot);
    match wire.send(&Request::End { done }) {
        // Over a broken wire home cannot be told; what it still keeps goes back when another
        // thread takes the slot, which is the next one given out, or when the process ends.
        Ok(()) | Err(Broken) => slots::give_back(wire.slot),
    }
}

/// Ends the sessions of a thread that has ended, also of calls that it was in when it ended.
pub fn end_all(state: State) {
    let parked = state.calls.into_iter().filter_map(|call| match call.awaited {
        Awaited::Reply(pending) => Some(pending.wire),
        Awaited::Answer(_) => None,
    });
    parked.for_each(end_at_once);
    state.idle.into_iter().for_each(end);
}

const NOT_JOINED: u32 = 0;
const JOINING: u32 = 1;
const JOINED: u32 = 2;

/// Makes this process known to its dipcd, once: dipcd watches it from now on, and reads the `done`
/// page when it ends.
fn join() -> Result<(), SysvError> {
    let joined = &sys::process().joined;
    loop {
        let (order, failed) = (Ordering::AcqRel, Ordering::Acquire);
        match joined.compare_exchange(NOT_JOINED, JOINING, order, failed) {
            Ok(_) => break,
            Err(JOINED) => return Ok(()),
            Err(_) => client::pause(), // another thread is about to; its wait is bounded
        }
    }
    let result = ask_to_join();
    joined.store(if result.is_ok() { JOINED } else { NOT_JOINED }, Ordering::Release);
    result
}

fn ask_to_join() -> Result<(), SysvError> {
    let (Answer::Joined { .. }, Some(memfd)) = client::call(Call::Join)? else {
        return Err(SysvError::EIO);
    };
    let bytes = SESSIONS_MAX as usize * size_of::<u64>();
    sys::map_done_page(&memfd, bytes).map_err(|_| SysvError::ENOMEM)
}
