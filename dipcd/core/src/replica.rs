//! One file of a segment at a node that is not its home: which pages it holds, and what its
//! programs wait for. Its shell holds the link to home, the file, its aside and the records.
#![forbid(unsafe_code)]

mod record;

use std::collections::{BTreeMap, BTreeSet};

use dipc_wire::memory::{
    Access, Content, GrantNo, Granted, Holds, PageNo, PageReport, Refusal, ToHome, ToReplica,
};
use dipc_wire::peer::Piece;

use crate::copies::{CopyStep, Failure, Place, Records, Run, Runs, Source};
use crate::read_ahead::ReadAhead;
pub use record::{Copy, CopyRecord};

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
    /// events; after `LeaseEnded` at once. At most one is owed at a time.
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
    /// It is over. Access is taken away from here on, unless that is done.
    Over(Option<PageNo>),
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
    /// Pages are given up from here on.
    GivesUp(PageNo),
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
        let mut unconfirmed = BTreeSet::new();
        let (mut punched, mut freed) = (Runs::default(), Runs::default());
        let mut from = PageNo(0);
        while let Some(no) = records.next(from).filter(|no| no.0 < config.pages) {
            let record = records.get(no);
            if matches!(record.copy, Copy::Kept | Copy::Sole) {
                unconfirmed.insert(no);
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
            lease: Lease::Runs,
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
            Event::LeaseEnded => self.lease_ended(&mut step),
            Event::LeaseRestored => {
                while let Lease::Over(Some(from)) = self.lease {
                    self.revoke(from, &mut step);
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
        matches!(self.leaving, Leaving::Said | Leaving::Gone)
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

    fn frame<R: Records<CopyRecord>>(&mut self, frame: ToReplica, step: &mut Step<'_, R>) {
        let is_last_word = matches!(frame, ToReplica::Left | ToReplica::Resumed);
        if self.link != Link::Up || (self.leaving == Leaving::Said && !is_last_word) {
            return;
        }
        let outcome = match frame {
            ToReplica::Grant { access, pages } => self.granted(access, &pages, step),
            ToReplica::Recall { page, number, wanted } => self.recalled(page, number, wanted, step),
            ToReplica::Invalidate { page, number } => self.invalidated(page, number, step),
            ToReplica::Confirm { page, number } => self.confirmed(page, number, step),
            ToReplica::Refused { page, refusal } => {
                if self.waiting.remove(&page).is_some() {
                    let failure = match refusal {
                        Refusal::Lost => Failure::Lost,
                        Refusal::Gone => Failure::Gone,
                    };
                    step.copy(CopyStep::Fail { page, failure });
                }
                Ok(())
            }
            ToReplica::Left => {
                let said = self.leaving == Leaving::Said;
                step.effects.push(if said { Effect::Left } else { Effect::Void });
                self.leaving = Leaving::Gone;
                Ok(())
            }
            ToReplica::Resumed => {
                self.resumed(step);
                Ok(())
            }
            // Said already: a report is the first thing on a link.
            ToReplica::ReportPlease => Ok(()),
            ToReplica::Part { .. } => Err(Breach::Impossible),
        };
        if let Err(reason) = outcome {
            step.effects.push(Effect::Break { reason });
            self.hang_up();
        }
    }

    /// Pages of one frame: growing, in the segment.
    fn check(&self, pages: &[Granted]) -> Result<(), Breach> {
        if pages.iter().any(|granted| granted.page.0 >= self.config.pages) {
            return Err(Breach::OutOfRange);
        }
        let grows = pages.is_sorted_by(|one, next| one.page < next.page);
        if grows && !pages.is_empty() { Ok(()) } else { Err(Breach::Disorder) }
    }

    /// A replica that gives everything up gives this up as well.
    fn granted<R: Records<CopyRecord>>(
        &mut self,
        access: Access,
        pages: &[Granted],
        step: &mut Step<'_, R>,
    ) -> Result<(), Breach> {
        self.check(pages)?;
        match access {
            Access::Read => self.may_read(pages, step)?,
            Access::Write => self.may_write(pages, step)?,
        }
        if let (Leaving::GivesUp(from), Some(first)) = (&mut self.leaving, pages.first()) {
            *from = first.page.min(*from);
            step.effects.push(Effect::Continue);
        }
        Ok(())
    }

    /// Grants for reading: what nobody waits for may be a trigger of read-ahead and goes aside.
    fn may_read<R: Records<CopyRecord>>(
        &mut self,
        pages: &[Granted],
        step: &mut Step<'_, R>,
    ) -> Result<(), Breach> {
        let is_new = |granted: &&Granted| granted.number > step.records.get(granted.page).number;
        let new: Vec<_> = pages.iter().filter(is_new).copied().collect();
        let may = |granted: &Granted| {
            let copy = step.records.get(granted.page).copy;
            granted.content != Content::None
                && matches!(copy, Copy::Never | Copy::Nothing | Copy::Shared | Copy::SharedAside)
        };
        if !new.iter().all(may) {
            return Err(Breach::Impossible);
        }
        // The same steps of all pages side by side, so that the shell may do them as one.
        for granted in &new {
            if step.records.get(granted.page).copy == Copy::Never {
                step.record(granted.page, CopyRecord::NEVER.number, Copy::Nothing);
            }
        }
        let is_aside = |granted: &Granted, replica: &Replica| {
            !replica.waiting.contains_key(&granted.page) && replica.ahead.is_trigger(granted.page)
        };
        for Granted { page, content, .. } in new.iter().filter(|new| !is_aside(new, self)) {
            let from = Source::Frame(*content);
            step.copy(CopyStep::Fill { page: *page, from });
        }
        for granted in &new {
            let Granted { page, number, content } = *granted;
            let was = step.records.get(page).copy;
            match (is_aside(granted, self), was) {
                (true, Copy::Shared) => step.record(page, number, Copy::Shared),
                (true, _) => {
                    step.copy(CopyStep::Keep { page, from: Source::Frame(content) });
                    step.record(page, number, Copy::SharedAside);
                }
                (false, _) => {
                    step.record(page, number, Copy::Shared);
                    if was == Copy::SharedAside {
                        step.copy(CopyStep::FreeAside(Run::one(page)));
                    }
                }
            }
        }
        for granted in &new {
            self.may_go_on(granted.page, Access::Read, step);
        }
        Ok(())
    }

    /// Grants for writing: each is acknowledged, also one that was installed before.
    fn may_write<R: Records<CopyRecord>>(
        &mut self,
        pages: &[Granted],
        step: &mut Step<'_, R>,
    ) -> Result<(), Breach> {
        let mut installed = Vec::with_capacity(pages.len());
        for &Granted { page, number, content } in pages {
            let record = step.records.get(page);
            if number > record.number && !self.install(page, number, content, record, step)? {
                // It has no copy any more, which home could not know.
                self.ask_with_content(page, step);
                continue;
            }
            installed.push((page, number));
        }
        if !installed.is_empty() {
            step.send(ToHome::Ack { pages: installed });
        }
        Ok(())
    }

    /// Makes a page this replica's own. False if that takes a content which is not here.
    fn install<R: Records<CopyRecord>>(
        &mut self,
        page: PageNo,
        number: GrantNo,
        content: Content,
        record: CopyRecord,
        step: &mut Step<'_, R>,
    ) -> Result<bool, Breach> {
        let from = match (content, record.copy) {
            (_, Copy::Sole | Copy::Owned | Copy::Kept | Copy::OwnedAside) => {
                return Err(Breach::Impossible);
            }
            (Content::None, Copy::Never | Copy::Nothing) => return Ok(false),
            (Content::None, Copy::Shared) => None,
            (Content::None, Copy::SharedAside) => Some(Source::Node),
            (content, _) => Some(Source::Frame(content)),
        };
        if record.copy == Copy::Never {
            step.record(page, record.number, Copy::Nothing);
        }
        if let Some(from) = from {
            step.copy(CopyStep::Fill { page, from });
        }
        step.record(page, number, Copy::Owned);
        if record.copy == Copy::SharedAside {
            step.copy(CopyStep::FreeAside(Run::one(page)));
        }
        step.copy(CopyStep::Open(page));
        self.may_go_on(page, Access::Write, step);
        Ok(true)
    }

    /// A page is accessible: who waits goes on, or waits for more.
    fn may_go_on<R: Records<CopyRecord>>(
        &mut self,
        page: PageNo,
        access: Access,
        step: &mut Step<'_, R>,
    ) {
        let Some(waiting) = self.waiting.get_mut(&page) else { return };
        if waiting.wanted <= access {
            self.waiting.remove(&page);
        } else if waiting.asked == Some(access) {
            waiting.asked = None;
            self.ask(page, step);
        }
        step.copy(CopyStep::Wake(page));
    }

    fn ask_with_content<R>(&mut self, page: PageNo, step: &mut Step<'_, R>) {
        let (access, since_ms) = (Access::Write, step.now_ms);
        let asked = Some(access);
        self.waiting.entry(page).or_insert(Waiting { wanted: access, asked, since_ms }).asked =
            asked;
        step.send(ToHome::Fault { first: page, ahead: 0, access });
    }

    /// `Recall`. What was sent on this link already is on its way.
    fn recalled<R: Records<CopyRecord>>(
        &mut self,
        page: PageNo,
        number: GrantNo,
        wanted: Access,
        step: &mut Step<'_, R>,
    ) -> Result<(), Breach> {
        let record = self.record_of(page, step)?;
        let of = record.number;
        let (keeps, from) = match (record.copy, wanted) {
            (Copy::Owned, Access::Read) => {
                step.copy(CopyStep::Protect(Run::one(page)));
                step.record(page, of, Copy::Sole);
                (Some(Access::Read), Place::File)
            }
            (Copy::Owned | Copy::OwnedAside, _) => {
                step.give_up(page, record);
                (None, Place::Aside)
            }
            (Copy::Sole | Copy::Kept, _) => return Ok(()),
            (Copy::Never | Copy::Nothing | Copy::Shared | Copy::SharedAside, _) => {
                return Err(Breach::Impossible);
            }
        };
        self.unconfirmed.insert(page);
        let granted = Granted { page, number, content: Content::Raw };
        step.send_content(ToHome::Recalled { granted, of, keeps }, from);
        Ok(())
    }

    /// `Invalidate`. Home may think that a reader is here when there is none any more.
    fn invalidated<R: Records<CopyRecord>>(
        &mut self,
        page: PageNo,
        number: GrantNo,
        step: &mut Step<'_, R>,
    ) -> Result<(), Breach> {
        let record = self.record_of(page, step)?;
        match record.copy {
            Copy::Never | Copy::Nothing => {}
            Copy::Shared | Copy::SharedAside => step.drop_reading(page, record),
            Copy::Sole | Copy::Owned | Copy::Kept | Copy::OwnedAside => {
                return Err(Breach::Impossible);
            }
        }
        step.send(ToHome::Invalidated { page, number });
        Ok(())
    }

    /// `Confirm`: home has the content of this copy.
    fn confirmed<R: Records<CopyRecord>>(
        &mut self,
        page: PageNo,
        number: GrantNo,
        step: &mut Step<'_, R>,
    ) -> Result<(), Breach> {
        let record = self.record_of(page, step)?;
        if record.number != number {
            return Ok(());
        }
        match record.copy {
            Copy::Sole if self.leaving == Leaving::Stays => step.record(page, number, Copy::Shared),
            Copy::Sole => step.drop_reading(page, record),
            Copy::Kept => {
                step.record(page, number, Copy::Nothing);
                step.copy(CopyStep::FreeAside(Run::one(page)));
            }
            _ => return Ok(()),
        }
        self.unconfirmed.remove(&page);
        self.leave(step);
        Ok(())
    }

    fn record_of<R: Records<CopyRecord>>(
        &self,
        page: PageNo,
        step: &Step<'_, R>,
    ) -> Result<CopyRecord, Breach> {
        if page.0 < self.config.pages {
            Ok(step.records.get(page))
        } else {
            Err(Breach::OutOfRange)
        }
    }

    fn hang_up(&mut self) {
        self.link = Link::Down;
        for waiting in self.waiting.values_mut() {
            waiting.asked = None;
        }
    }

    /// Says what home may not know, once the link is up and the lease runs.
    fn report<R: Records<CopyRecord>>(&mut self, step: &mut Step<'_, R>) {
        if self.link != Link::Mute || matches!(self.lease, Lease::Over(_)) {
            return;
        }
        self.link = Link::Up;
        let mut pages: Vec<_> =
            self.unconfirmed.iter().chain(self.waiting.keys()).copied().collect();
        pages.sort_unstable();
        pages.dedup();
        let mut frame = Vec::new();
        let mut lies = Place::File;
        for page in pages {
            let (report, place) = self.report_page(page, step.records.get(page));
            let Some(report) = report else { continue };
            if frame.len() == self.config.frame_pages || (place != lies && !frame.is_empty()) {
                let pages = std::mem::take(&mut frame);
                step.send_content(ToHome::Report { pages, piece: Piece::More }, lies);
            }
            lies = place;
            frame.push(report);
        }
        step.send_content(ToHome::Report { pages: frame, piece: Piece::Last }, lies);
    }

    fn report_page(&mut self, page: PageNo, record: CopyRecord) -> (Option<PageReport>, Place) {
        let (holds, content, place) = match record.copy {
            Copy::Kept => (Holds::Kept, Content::Raw, Place::Aside),
            Copy::Sole => (Holds::Shared, Content::Raw, Place::File),
            // Its programs wait for home's word, not for a page.
            Copy::Owned | Copy::OwnedAside => return (None, Place::File),
            Copy::Shared | Copy::SharedAside => (Holds::Shared, Content::None, Place::File),
            Copy::Never | Copy::Nothing => (Holds::Nothing, Content::None, Place::File),
        };
        let fault = self.waiting.get_mut(&page).map(|waiting| {
            waiting.asked = Some(waiting.wanted);
            waiting.wanted
        });
        let granted = Granted { page, number: record.number, content };
        (Some(PageReport { granted, holds, fault }), place)
    }

    /// Home says that everything here still counts.
    fn resumed<R: Records<CopyRecord>>(&mut self, step: &mut Step<'_, R>) {
        if self.lease == Lease::Doubted {
            self.lease = Lease::Runs;
        }
        if self.leaving == Leaving::Said {
            step.send(ToHome::Leave);
        }
        let unasked = self.waiting.iter().filter(|(_, waiting)| waiting.asked.is_none());
        let unasked: Vec<_> = unasked.map(|(page, waiting)| (*page, waiting.wanted)).collect();
        for (page, wanted) in unasked {
            self.fault(page, wanted, step);
        }
        self.leave(step);
    }

    /// Writing ends everywhere at once, reading page by page.
    fn lease_ended<R: Records<CopyRecord>>(&mut self, step: &mut Step<'_, R>) {
        self.hang_up();
        step.copy(CopyStep::Protect(Run { first: PageNo(0), count: self.config.pages }));
        self.lease = Lease::Over(Some(PageNo(0)));
        self.go_on(step);
    }

    /// Goes on with a walk over all pages.
    fn go_on<R: Records<CopyRecord>>(&mut self, step: &mut Step<'_, R>) {
        let Lease::Over(from) = self.lease else { return self.leave(step) };
        if let Some(from) = from {
            self.revoke(from, step);
        }
        if let Lease::Over(Some(_)) = self.lease {
            step.effects.push(Effect::Continue);
        }
    }

    /// Takes some pages away.
    fn revoke<R: Records<CopyRecord>>(&mut self, mut from: PageNo, step: &mut Step<'_, R>) {
        for _ in 0..WALK {
            let Some(page) = step.next(from, self.config.pages) else {
                self.lease = Lease::Over(None);
                return;
            };
            revoke(page, step.records.get(page), step.effects);
            from = PageNo(page.0 + 1);
        }
        self.lease = Lease::Over(Some(from));
    }

    fn attached(&mut self) {
        if let Leaving::GivesUp(_) = self.leaving {
            self.leaving = Leaving::Stays;
        }
    }

    fn detached<R: Records<CopyRecord>>(&mut self, step: &mut Step<'_, R>) {
        self.waiting.clear();
        if self.leaving == Leaving::Stays {
            self.leaving = Leaving::GivesUp(PageNo(0));
            self.leave(step);
        }
    }

    /// Gives everything up, then says `Leave`. What was owned travels as many pages at a time as a
    /// frame takes, each when home has confirmed an earlier one; what was only read needs no word,
    /// for `Leave` says it.
    fn leave<R: Records<CopyRecord>>(&mut self, step: &mut Step<'_, R>) {
        let Leaving::GivesUp(mut from) = self.leaving else { return };
        if self.link != Link::Up || self.lease != Lease::Runs {
            return;
        }
        for _ in 0..WALK {
            if self.unconfirmed.len() >= self.config.frame_pages {
                self.leaving = Leaving::GivesUp(from);
                return;
            }
            let Some(page) = step.next(from, self.config.pages) else {
                self.leaving = Leaving::GivesUp(from);
                if self.unconfirmed.is_empty() {
                    self.leaving = Leaving::Said;
                    step.send(ToHome::Leave);
                }
                return;
            };
            let record = step.records.get(page);
            match record.copy {
                Copy::Owned | Copy::OwnedAside => {
                    step.give_up(page, record);
                    self.unconfirmed.insert(page);
                    let granted = Granted { page, number: record.number, content: Content::Raw };
                    step.send_content(ToHome::Released { granted }, Place::Aside);
                }
                Copy::Shared | Copy::SharedAside => step.drop_reading(page, record),
                Copy::Never | Copy::Nothing | Copy::Sole | Copy::Kept => {}
            }
            from = PageNo(page.0 + 1);
        }
        self.leaving = Leaving::GivesUp(from);
        step.effects.push(Effect::Continue);
    }

    /// `employer_shm_timeout`.
    fn tick<R>(&mut self, step: &mut Step<'_, R>) {
        if self.timer_ms.is_none_or(|timer_ms| step.now_ms < timer_ms) {
            return;
        }
        self.timer_ms = None;
        let Some(timeout_ms) = self.config.shm_timeout_ms else { return };
        self.waiting.retain(|page, waiting| {
            let waits = step.now_ms < waiting.since_ms + timeout_ms;
            if !waits {
                step.copy(CopyStep::Fail { page: *page, failure: Failure::TimedOut });
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

/// What one step looks at and says.
struct Step<'a, R> {
    now_ms: u64,
    records: &'a R,
    effects: &'a mut Vec<Effect>,
}

impl<R: Records<CopyRecord>> Step<'_, R> {
    fn next(&self, from: PageNo, pages: u32) -> Option<PageNo> {
        self.records.next(from).filter(|page| page.0 < pages)
    }
}

impl<R> Step<'_, R> {
    fn copy(&mut self, step: CopyStep) {
        self.effects.push(Effect::Copy(step));
    }

    fn record(&mut self, page: PageNo, number: GrantNo, copy: Copy) {
        self.effects.push(Effect::Record { page, record: CopyRecord { number, copy } });
    }

    fn send(&mut self, frame: ToHome) {
        self.send_content(frame, Place::File);
    }

    fn send_content(&mut self, frame: ToHome, from: Place) {
        self.effects.push(Effect::Send { frame, from });
    }

    /// What lies aside is used again.
    fn bring_back(&mut self, page: PageNo, record: CopyRecord, copy: Copy) {
        self.copy(CopyStep::Fill { page, from: Source::Node });
        self.record(page, record.number, copy);
        self.copy(CopyStep::FreeAside(Run::one(page)));
    }

    /// What home has as well is dropped.
    fn drop_reading(&mut self, page: PageNo, record: CopyRecord) {
        self.record(page, record.number, Copy::Nothing);
        let run = Run::one(page);
        self.copy(match record.copy {
            Copy::SharedAside => CopyStep::FreeAside(run),
            _ => CopyStep::Punch(run),
        });
    }

    /// What is owned goes aside until home has it.
    fn give_up(&mut self, page: PageNo, record: CopyRecord) {
        if record.copy == Copy::Owned {
            self.copy(CopyStep::Protect(Run::one(page)));
            self.copy(CopyStep::Keep { page, from: Source::Node });
        }
        self.record(page, record.number, Copy::Kept);
        if record.copy == Copy::Owned {
            self.copy(CopyStep::Punch(Run::one(page)));
        }
    }
}

/// What taking access away at the end of a lease does to one page, in this order: also for the
/// keeper, when dipcd is dead or stopped. Writing was taken from the whole file before. A copy that
/// home has as well is dropped; one that it may not have goes aside. The file is punched whatever
/// the record says: dipcd may have been killed while it filled it.
pub fn revoke(page: PageNo, record: CopyRecord, effects: &mut Vec<Effect>) {
    let left = match record.copy {
        Copy::Never => return,
        Copy::Nothing | Copy::Shared | Copy::SharedAside => Copy::Nothing,
        Copy::Sole | Copy::Kept => Copy::Kept,
        Copy::Owned | Copy::OwnedAside => Copy::OwnedAside,
    };
    if matches!(record.copy, Copy::Sole | Copy::Owned) {
        effects.push(Effect::Copy(CopyStep::Keep { page, from: Source::Node }));
    }
    if left != record.copy {
        effects.push(Effect::Record { page, record: CopyRecord { copy: left, ..record } });
    }
    effects.push(Effect::Copy(CopyStep::Punch(Run::one(page))));
    if record.copy == Copy::SharedAside {
        effects.push(Effect::Copy(CopyStep::FreeAside(Run::one(page))));
    }
}
