//! One file of a segment at a node that is not its home: which pages it holds, and what its
//! programs wait for. Its shell holds the link to home, the file, its aside and the records.
//!
//! ```text
//! of a page here   a program reads   writes     Grant to read  to write  Recall: read  write
//! Never, Nothing   Fault             Fault      Shared         Owned     !             !
//! Shared           wake              Fault      Shared         Owned     !             !
//! SharedAside      Shared, Ahead     Fault      Shared         Owned     !             !
//! Sole             wake              Fault      !              !         -             -
//! Owned            open              open       !              Ack       Sole          Kept
//! OwnedAside       Owned             Owned      !              Ack       Kept          Kept
//! Kept             Fault             Fault      !              !         -             -
//!
//!                  Invalidate        Confirm    the lease ends    in a report   leaving
//! Never, Nothing   Invalidated       -          -                 -             -
//! Shared           Nothing           -          Nothing           -             Nothing
//! SharedAside      Nothing           -          Nothing           -             Nothing
//! Sole             !                 Shared     Kept              with content  waits
//! Owned            !                 -          OwnedAside        -             Kept, Released
//! OwnedAside       !                 -          -                 -             Kept, Released
//! Kept             !                 Nothing    -                 with content  waits
//!
//! !  home cannot say so: the link is closed      -  nothing      Ack  it was installed before
//! ```
//!
//! One question a page is under way at a time. A grant without content for a replica that has no
//! copy any more is answered by asking again. A copy that home may not have (`Sole`, `Kept`) is
//! dropped only when home has confirmed its number.
#![forbid(unsafe_code)]

mod frames;
mod leaving;
mod links;
mod record;
mod step;

use std::collections::{BTreeMap, BTreeSet};

use dipc_wire::memory::{Access, PageNo, ToHome, ToReplica};

use crate::copies::{CopyStep, Failure, Place, Records, Runs};
use crate::directory::LostPage;
use crate::read_ahead::ReadAhead;
pub use links::{Round, revoke};
pub use record::{Copy, CopyRecord};
use step::Step;

/// What is fixed for a replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Config {
    /// Pages of the segment.
    pub pages: u32,
    /// How many pages with content fit into one frame: [`crate::directory::frame_pages`].
    pub frame_pages: usize,
    /// `employer_shm_timeout`, in milliseconds; `None`: no bound.
    pub shm_timeout_ms: Option<u64>,
    /// The longest window of read-ahead, in pages; 0 for none (`transfer_mode = segment`).
    pub ahead_max: u16,
    /// What home gives others of a page that this node owns, when it is lost.
    pub lost_page: LostPage,
}

/// What happens to a replica.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Event {
    /// A program faults. Answered by `Fill`, `Open` and `Wake`, or `Fail`. May be said again, or
    /// for a page that is there. Futex looks count as well.
    Fault {
        /// Where.
        page: PageNo,
        /// What for.
        access: Access,
    },
    /// Home says this by the present link; its content has been received and has the right length.
    Frame(ToReplica),
    /// A program attached: if the replica was about to leave and has not said so, it stays.
    Attached,
    /// The last attachment has ended: everything is given up, then [`ToHome::Leave`] said.
    Detached,
    /// A link to home is up, Hello both ways. The first frame of this replica on it will be its
    /// report. The first link, after Attach, counts as well.
    LinkUp,
    /// The link has ended, or is about to be replaced.
    LinkDown,
    /// Home is lost to this node: whoever waits, or faults before a link is up again, gets SIGBUS.
    /// What is here stays: home may come back and know it still. `LinkDown` came before.
    HomeLost,
    /// The lease is over: access is taken away. Every node closes a link whose lease has ended, so
    /// `LinkDown` follows.
    LeaseEnded,
    /// The lease runs again.
    LeaseRestored,
    /// Time has passed: due at [`Effect::SetTimer`], welcome at any time.
    Tick,
    /// Goes on where the last step stopped; see [`Effect::Continue`].
    Continue,
}

/// What is to be done, in this order.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Effect {
    /// Record this of the page (one store into a mapped file) before anything that follows, and
    /// before the next step.
    Record {
        /// Which page.
        page: PageNo,
        /// What.
        record: CopyRecord,
    },
    /// Do this to this node's copies.
    Copy(CopyStep),
    /// Send this frame to home. `Content::Raw` in it means: read the copy now, from `from`; the
    /// shell may say `Zero` or send parts instead.
    Send {
        /// What.
        frame: ToHome,
        /// Where the content lies.
        from: Place,
    },
    /// Home knows this replica no more: protect and punch the whole file, empty the aside and the
    /// records, then wake all waiters. The shell drops this machine, and attaches again (a new
    /// machine) if programs still do.
    Void,
    /// Home has said goodbye: the shell drops this machine and its files.
    Left,
    /// Say [`Event::Tick`] at this time, instead of the time set before.
    SetTimer {
        /// In milliseconds of the clock that steps are given.
        at_ms: u64,
    },
    /// Close the link to home and log why. `LinkDown` follows.
    Break {
        /// Why.
        reason: Breach,
    },
    /// There is more to do than one step should: say [`Event::Continue`] soon, perhaps after other
    /// events; after `LeaseEnded` at once until [`Replica::is_closed`]. At most one is owed at a
    /// time.
    Continue,
}

/// Why a link is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Breach {
    /// A page beyond the segment.
    OutOfRange,
    /// Pages that do not grow within a frame, or a frame without a page.
    Disorder,
    /// A frame that home cannot have sent by the protocol.
    Impossible,
}

/// Pages that a walk over all of them looks at in one step.
const WALK: usize = 256;

/// One file of a segment at a node.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Replica {
    config: Config,
    link: Link,
    lease: Lease,
    /// Pages that programs wait for.
    waiting: BTreeMap<PageNo, Waiting>,
    /// Pages whose content home may not have: copies that are `Kept` or `Sole`.
    unconfirmed: BTreeSet<PageNo>,
    ahead: ReadAhead,
    leaving: Leaving,
    /// The earliest time that was asked for.
    timer_ms: Option<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Link {
    Down,
    /// It is down, and nobody waits for another one.
    Lost,
    /// It is up, but the lease does not run: nothing is said.
    Mute,
    /// The report was sent.
    Up,
}

/// Whether the copies may be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Lease {
    Runs,
    /// It runs again, but what was owned before is not to be used until home has said that it
    /// still counts.
    Doubted,
    /// It is over. Access is taken away in this round, from here on, unless that is done.
    Over(Option<(Round, PageNo)>),
}

/// What programs wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Waiting {
    wanted: Access,
    /// What home was asked for on this link.
    asked: Option<Access>,
    since_ms: u64,
}

/// How far a replica that nobody uses any more has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Leaving {
    /// It is used.
    Stays,
    /// What is owned is given up, from here on.
    GivesUp(PageNo),
    /// What was only read is dropped, from here on. Home is not told of each page, so there is no
    /// way back.
    Drops(PageNo),
    /// `Leave` was said.
    Said,
    /// Home has forgotten it.
    Gone,
}

impl Replica {
    /// Begins with what the records say: an empty file at the first attachment, or what a dipcd
    /// left that was killed. The link is down; if the lease is over, say so first. `each` carries
    /// out what may have been left undone; afterwards the shell wakes every waiter, so that faults
    /// are said again.
    pub fn start(
        config: Config,
        records: &impl Records<CopyRecord>,
        mut each: impl FnMut(Effect),
    ) -> Replica {
        let (mut unconfirmed, mut lease) = (BTreeSet::new(), Lease::Runs);
        let (mut punched, mut freed) = (Runs::default(), Runs::default());
        let mut from = PageNo(0);
        while let Some(no) = records.next(from).filter(|no| no.0 < config.pages) {
            let record = records.get(no);
            if matches!(record.copy, Copy::Kept | Copy::Sole) {
                unconfirmed.insert(no);
            }
            if record.copy == Copy::OwnedAside {
                // A lease was over. Whether home said since that it counts is in no record.
                lease = Lease::Doubted;
            }
            if !record.is_in_file() {
                punched.add(no, |run| each(Effect::Copy(CopyStep::Punch(run))));
            }
            if !record.is_aside() {
                freed.add(no, |run| each(Effect::Copy(CopyStep::FreeAside(run))));
            }
            from = PageNo(no.0 + 1);
        }
        punched.finish().into_iter().for_each(|run| each(Effect::Copy(CopyStep::Punch(run))));
        freed.finish().into_iter().for_each(|run| each(Effect::Copy(CopyStep::FreeAside(run))));
        Replica {
            config,
            link: Link::Down,
            lease,
            waiting: BTreeMap::new(),
            unconfirmed,
            ahead: ReadAhead::new(config.pages, config.ahead_max),
            leaving: Leaving::Stays,
            timer_ms: None,
        }
    }

    /// One event: what is to be done about it is added to `effects`, and must be carried out before
    /// the next step.
    pub fn step(
        &mut self,
        now_ms: u64,
        event: Event,
        records: &impl Records<CopyRecord>,
        effects: &mut Vec<Effect>,
    ) {
        if self.leaving == Leaving::Gone {
            return;
        }
        let mut step = Step { now_ms, records, effects };
        match event {
            Event::Fault { page, access } if page.0 < self.config.pages => {
                self.fault(page, access, &mut step);
            }
            Event::Fault { .. } => {}
            Event::Frame(frame) => self.frame(frame, &mut step),
            Event::Attached => self.attached(),
            Event::Detached => self.detached(&mut step),
            Event::LinkUp => {
                self.hang_up();
                self.link = Link::Mute;
                self.report(&mut step);
            }
            Event::LinkDown => self.hang_up(),
            Event::HomeLost => self.home_lost(&mut step),
            Event::LeaseEnded => self.lease_ended(&mut step),
            Event::LeaseRestored => {
                while let Lease::Over(Some(at)) = self.lease {
                    self.revoke(at, &mut step);
                }
                if let Lease::Over(None) = self.lease {
                    self.lease = Lease::Doubted;
                    self.report(&mut step);
                }
            }
            Event::Tick => self.tick(&mut step),
            Event::Continue => self.go_on(&mut step),
        }
    }

    /// Whether it has begun to leave for good: who attaches now has to wait until it has left.
    pub fn has_said_goodbye(&self) -> bool {
        matches!(self.leaving, Leaving::Drops(_) | Leaving::Said | Leaving::Gone)
    }

    /// Whether the lease is over and nothing can be read here any more that home may have given to
    /// others: the rest of [`Effect::Continue`] has time.
    pub fn is_closed(&self) -> bool {
        match self.lease {
            Lease::Over(None) => true,
            Lease::Over(Some((Round::Owned, _))) => self.config.lost_page == LostPage::Sigbus,
            _ => false,
        }
    }

    /// Whether what is owned may be written: the lease runs.
    pub fn lease_runs(&self) -> bool {
        self.lease == Lease::Runs
    }

    /// For how many pages programs wait.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// A program wants a page. What is here and counts is made accessible, anything else is asked
    /// for.
    fn fault<R: Records<CopyRecord>>(
        &mut self,
        page: PageNo,
        access: Access,
        step: &mut Step<'_, R>,
    ) {
        let record = step.records.get(page);
        let here = match record.copy {
            _ if self.lease != Lease::Runs => None,
            Copy::Owned | Copy::OwnedAside => Some(Access::Write),
            Copy::Shared | Copy::Sole | Copy::SharedAside => Some(Access::Read),
            Copy::Never | Copy::Nothing | Copy::Kept => None,
        };
        if record.copy == Copy::SharedAside && self.lease == Lease::Runs {
            step.bring_back(page, record, Copy::Shared);
            if let Some((first, count)) = self.ahead.touched(page) {
                self.ask_ahead(first, count, step);
            }
        }
        if here >= Some(access) {
            if record.copy == Copy::OwnedAside {
                step.bring_back(page, record, Copy::Owned);
            }
            if here == Some(Access::Write) {
                step.copy(CopyStep::Open(page));
            }
            self.waiting.remove(&page);
            step.copy(CopyStep::Wake(page));
            return;
        }
        if self.link == Link::Lost {
            return step.fail(page, Failure::Gone);
        }
        let since_ms = step.now_ms;
        let new = Waiting { wanted: access, asked: None, since_ms };
        let waiting = self.waiting.entry(page).or_insert(new);
        waiting.wanted = waiting.wanted.max(access);
        if let Some(timeout_ms) = self.config.shm_timeout_ms {
            self.arm(since_ms + timeout_ms, step);
        }
        if self.lease == Lease::Runs || !matches!(record.copy, Copy::Owned | Copy::OwnedAside) {
            self.ask(page, step);
        }
    }

    /// Asks home for what programs wait for, unless that was done. One question a page is under
    /// way; the next one waits for its answer.
    fn ask<R: Records<CopyRecord>>(&mut self, page: PageNo, step: &mut Step<'_, R>) {
        let Some(waiting) = self.waiting.get_mut(&page) else { return };
        if self.link != Link::Up || waiting.asked.is_some() {
            return;
        }
        let access = waiting.wanted;
        waiting.asked = Some(access);
        let mut ahead = 0;
        if access == Access::Read {
            match self.ahead.touched(page) {
                Some((first, count)) => self.ask_ahead(first, count, step),
                None => ahead = self.ahead.fault(page),
            }
        }
        step.send(ToHome::Fault { first: page, ahead, access });
    }

    fn ask_ahead<R>(&mut self, first: PageNo, count: u16, step: &mut Step<'_, R>) {
        if self.link == Link::Up {
            step.send(ToHome::Ahead { first, count });
        }
    }

    /// `employer_shm_timeout`.
    fn tick<R: Records<CopyRecord>>(&mut self, step: &mut Step<'_, R>) {
        if self.timer_ms.is_none_or(|timer_ms| step.now_ms < timer_ms) {
            return;
        }
        self.timer_ms = None;
        let Some(timeout_ms) = self.config.shm_timeout_ms else { return };
        self.waiting.retain(|page, waiting| {
            let waits = step.now_ms < waiting.since_ms + timeout_ms;
            if !waits {
                step.fail(*page, Failure::TimedOut);
            }
            waits
        });
        let next_ms = self.waiting.values().map(|waiting| waiting.since_ms + timeout_ms).min();
        if let Some(at_ms) = next_ms {
            self.arm(at_ms, step);
        }
    }

    fn arm<R>(&mut self, at_ms: u64, step: &mut Step<'_, R>) {
        if self.timer_ms.is_none_or(|timer_ms| at_ms < timer_ms) {
            self.timer_ms = Some(at_ms);
            step.effects.push(Effect::SetTimer { at_ms });
        }
    }
}
