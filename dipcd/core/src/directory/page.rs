//! One page at its home: the
//! transaction in hand, and who waits behind it.
#![forbid(unsafe_code)]

use std::collections::VecDeque;

use dipc_wire::memory::{Access, Content, GrantNo, Granted, PageNo, Refusal, Replica, ToReplica};

use super::home::Home;
use super::{Breach, Departure, Effect, Holding, Left, LostPage, PageRecord, ReplicaSet};
use crate::copies::{CopyStep, Failure, Place, Run, Source};

/// A page that is being worked on: its record, and what it keeps in memory while it is busy.
pub(super) struct Page {
    no: PageNo,
    record: PageRecord,
    /// Whether the record has changed since it was recorded.
    unrecorded: bool,
    phase: Option<Phase>,
    /// In order of arrival. The first is being served if there is a phase, but for `Granting`.
    queue: VecDeque<Waiter>,
}

/// What a page that is not at rest keeps in memory.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Busy {
    phase: Phase,
    queue: VecDeque<Waiter>,
}

/// Who wants a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Waiter {
    pub replica: Replica,
    pub access: Access,
    pub since_ms: u64,
}

/// What a page waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Phase {
    /// Its owner may keep it until then.
    Holding { until_ms: u64 },
    /// The owner gives it up, or its writing.
    Recalling { owner: Replica, wanted: Access, since_ms: u64 },
    /// The readers give it up, all of them but home.
    Invalidating { readers: ReplicaSet, unacked: ReplicaSet, since_ms: u64 },
    /// The new owner says that it has it; home keeps its copy until then.
    Granting { to: Replica, since_ms: u64 },
}

/// What came of an attempt to serve somebody.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Begun {
    Served,
    Waits,
}

impl Busy {
    /// A grant for writing that was on its way when dipcd was killed.
    pub fn granting(to: Replica, now_ms: u64) -> Busy {
        let phase = Phase::Granting { to, since_ms: now_ms };
        Busy { phase, queue: VecDeque::new() }
    }

    /// The link to a replica is down: it will ask again.
    pub fn asks_no_more(&mut self, replica: Replica) {
        self.queue.retain(|waiter| waiter.replica != replica);
    }

    /// When something is to be done if nothing comes.
    pub fn due_ms(&self, home: &Home) -> Option<u64> {
        let phase_ms = match self.phase {
            Phase::Holding { until_ms } => Some(until_ms),
            Phase::Recalling { since_ms, .. }
            | Phase::Invalidating { since_ms, .. }
            | Phase::Granting { since_ms, .. } => {
                home.config.ak_timeout_ms.map(|timeout_ms| since_ms + timeout_ms)
            }
        };
        let waiter = self.queue.iter().find(|waiter| waiter.replica == Replica::HOME);
        let waiter_ms =
            waiter.and_then(|waiter| Some(waiter.since_ms + home.config.shm_timeout_ms?));
        phase_ms.into_iter().chain(waiter_ms).min()
    }
}

impl Page {
    /// What is known of a page. Of a replica that is no more nothing is believed.
    pub fn open(
        no: PageNo,
        record: PageRecord,
        busy: Option<Busy>,
        home: &Home,
        out: &mut Vec<Effect>,
    ) -> Page {
        let (phase, queue) = busy.map_or_else(Default::default, |busy| {
            let Busy { phase, queue } = busy;
            (Some(phase), queue)
        });
        let mut page = Page { no, record, unrecorded: false, phase, queue };
        match record.holding {
            Holding::Shared(readers) if !readers.minus(home.known).is_empty() => {
                page.set(Holding::Shared(readers.and(home.known)));
            }
            Holding::Owned { owner, .. } if !home.known.contains(owner) => page.lose(home, out),
            _ => {}
        }
        page
    }

    /// What is to be remembered of it.
    pub fn close(mut self, out: &mut Vec<Effect>) -> Option<Busy> {
        self.put_down(out);
        let phase = self.phase?;
        Some(Busy { phase, queue: self.queue })
    }

    /// Somebody wants the page.
    pub fn fault(
        &mut self,
        waiter: Waiter,
        home: &mut Home,
        out: &mut Vec<Effect>,
    ) -> Result<(), Breach> {
        let from = waiter.replica;
        match (self.phase, self.record.holding) {
            (Some(Phase::Granting { to, .. }), _) if to == from => {
                self.grant_again(home.now_ms, out);
                return Ok(());
            }
            (_, Holding::Owned { owner, .. }) if owner == from && from != Replica::HOME => {
                return Err(Breach::Impossible);
            }
            _ => {}
        }
        if let Some(known) = self.queue.iter_mut().find(|known| known.replica == from) {
            known.access = known.access.max(waiter.access);
        } else if self.phase.is_some() || self.begin(waiter, home, out) == Begun::Waits {
            home.joins_queue(from)?;
            self.queue.push_back(waiter);
            if let (Some(Phase::Granting { to, .. }), 1) = (self.phase, self.queue.len())
                && home.speaks.contains(to)
            {
                self.press(to, out);
            }
        }
        Ok(())
    }

    /// Somebody would like to read the page if that costs no wait: whether it is granted, and where
    /// its content lies. The caller sends the grant.
    pub fn grant_ahead(
        &mut self,
        to: Replica,
        home: &Home,
        out: &mut Vec<Effect>,
    ) -> Option<(Granted, Place)> {
        if self.phase.is_some() {
            return None;
        }
        let readers = match self.record.holding {
            Holding::Owned { owner: Replica::HOME, .. } if self.held_until(home).is_none() => {
                out.push(Effect::Copy(CopyStep::Protect(Run::one(self.no))));
                ReplicaSet::of(Replica::HOME)
            }
            Holding::Shared(readers) if !readers.contains(to) => readers,
            _ => return None,
        };
        self.advance(Holding::Shared(readers.with(to)));
        let granted = Granted { page: self.no, number: self.record.number, content: Content::Raw };
        Some((granted, place_of_home(readers)))
    }

    /// `Ack`: the owner has it.
    pub fn acked(
        &mut self,
        from: Replica,
        number: GrantNo,
        home: &mut Home,
        out: &mut Vec<Effect>,
    ) {
        match self.phase {
            Some(Phase::Granting { to, .. }) if to == from && number == self.record.number => {
                self.has_installed(from, home, out);
                self.serve(home, out);
            }
            _ => {}
        }
    }

    /// `Recalled`: the content, or what is left of an answer that is no longer waited for.
    pub fn recalled(
        &mut self,
        from: Replica,
        granted: Granted,
        of: GrantNo,
        keeps: Option<Access>,
        home: &mut Home,
        out: &mut Vec<Effect>,
    ) -> Result<(), Breach> {
        let keeps = match keeps {
            None => ReplicaSet::NONE,
            Some(Access::Read) => ReplicaSet::of(from),
            Some(Access::Write) => return Err(Breach::Impossible),
        };
        let Some(Phase::Recalling { owner, .. }) = self.phase else { return Ok(()) };
        if owner != from || granted.number != self.transaction() {
            return Ok(());
        }
        if of != self.record.number || granted.content == Content::None {
            return Err(Breach::Impossible);
        }
        self.take(from, granted.content, keeps, home, out);
        self.serve(home, out);
        Ok(())
    }

    /// `Invalidated`: one reader less.
    pub fn invalidated(
        &mut self,
        from: Replica,
        number: GrantNo,
        home: &mut Home,
        out: &mut Vec<Effect>,
    ) {
        if number == self.transaction() {
            self.reader_gone(from);
            self.serve(home, out);
        }
    }

    /// `Released`, or a copy in a report: the owner gives the page up by itself, all of it or only
    /// its writing. A copy that is not the recorded owner's counts for nothing.
    pub fn released(
        &mut self,
        from: Replica,
        granted: Granted,
        keeps: ReplicaSet,
        home: &mut Home,
        out: &mut Vec<Effect>,
    ) -> Result<(), Breach> {
        let is_owner = matches!(self.record.holding, Holding::Owned { owner, .. } if owner == from);
        if !is_owner || granted.number != self.record.number {
            self.confirm(from, granted.number, out);
            return Ok(());
        }
        if granted.content == Content::None {
            return Err(Breach::Impossible);
        }
        self.take(from, granted.content, keeps, home, out);
        self.serve(home, out);
        Ok(())
    }

    /// A replica has reported: it is told again what the page waits for from it. Returns whether
    /// that is a grant, which settles its fault.
    pub fn speaks(&mut self, from: Replica, now_ms: u64, out: &mut Vec<Effect>) -> bool {
        match &mut self.phase {
            Some(Phase::Granting { to, .. }) if *to == from => {
                self.grant_again(now_ms, out);
                return true;
            }
            Some(Phase::Recalling { owner, wanted, since_ms }) if *owner == from => {
                *since_ms = now_ms;
                let wanted = *wanted;
                self.recall(from, wanted, out);
            }
            Some(Phase::Invalidating { unacked, since_ms, .. }) if unacked.contains(from) => {
                *since_ms = now_ms;
                self.invalidate(from, out);
            }
            _ => {}
        }
        false
    }

    /// What is known of the page now.
    pub fn record(&self) -> PageRecord {
        self.record
    }

    /// A replica, which still counts as known, is about to be no more.
    pub fn departed(
        &mut self,
        replica: Replica,
        departure: Departure,
        home: &mut Home,
        out: &mut Vec<Effect>,
    ) {
        self.queue.retain(|waiter| waiter.replica != replica);
        match self.record.holding {
            Holding::Owned { owner, left } if owner == replica => {
                if departure == Departure::Left && left == Left::Granted {
                    // It left without having installed it.
                    self.set(Holding::Shared(ReplicaSet::NONE));
                } else {
                    self.lose(home, out);
                }
                self.phase = None;
            }
            Holding::Shared(readers) => {
                self.set(Holding::Shared(readers.without(replica)));
                self.reader_gone(replica);
            }
            Holding::Owned { .. } | Holding::Lost => {}
        }
        self.serve(home, out);
    }

    /// Time has passed. Returns who has been silent too long, and about which transaction.
    pub fn tick(&mut self, home: &mut Home, out: &mut Vec<Effect>) -> (ReplicaSet, GrantNo) {
        let number = match self.phase {
            Some(Phase::Granting { .. }) => self.record.number,
            _ => self.transaction(),
        };
        (self.silent(home, out), number)
    }

    fn silent(&mut self, home: &mut Home, out: &mut Vec<Effect>) -> ReplicaSet {
        self.fail_late_waiter(home, out);
        if let Some(Phase::Holding { until_ms }) = self.phase {
            if until_ms <= home.now_ms {
                self.phase = None;
                self.serve(home, out);
            }
            return ReplicaSet::NONE;
        }
        let Some(timeout_ms) = home.config.ak_timeout_ms else { return ReplicaSet::NONE };
        let (whom, since_ms) = match &mut self.phase {
            Some(Phase::Recalling { owner, since_ms, .. }) => (ReplicaSet::of(*owner), since_ms),
            Some(Phase::Invalidating { unacked, since_ms, .. }) => (*unacked, since_ms),
            Some(Phase::Granting { to, since_ms }) => (ReplicaSet::of(*to), since_ms),
            _ => return ReplicaSet::NONE,
        };
        if home.now_ms < *since_ms + timeout_ms {
            return ReplicaSet::NONE;
        }
        *since_ms = home.now_ms;
        whom.and(home.speaks)
    }

    /// The number of the transaction in hand, unless that is a grant, or of the next one.
    fn transaction(&self) -> GrantNo {
        GrantNo(self.record.number.0 + 1)
    }

    /// Serves the queue as far as it goes.
    fn serve(&mut self, home: &mut Home, out: &mut Vec<Effect>) {
        while self.phase.is_none() {
            let Some(&waiter) = self.queue.front() else { return };
            if self.begin(waiter, home, out) == Begun::Served {
                self.queue.pop_front();
                home.leaves_queue(waiter.replica);
            }
        }
    }

    /// Until when the owner may keep it. Nobody waits for a page that never moved.
    fn held_until(&self, home: &Home) -> Option<u64> {
        if self.record.number == GrantNo(0) {
            return None;
        }
        home.holds.until(self.no, home.now_ms)
    }

    /// Grants the page, or begins what must come before. Only of a page without a phase.
    fn begin(&mut self, waiter: Waiter, home: &mut Home, out: &mut Vec<Effect>) -> Begun {
        let Waiter { replica: to, access, .. } = waiter;
        if let Holding::Owned { owner, .. } = self.record.holding {
            if owner == to {
                self.copy(CopyStep::Open(self.no), out);
                self.copy(CopyStep::Wake(self.no), out);
                return Begun::Served;
            }
            if let Some(until_ms) = self.held_until(home) {
                self.phase = Some(Phase::Holding { until_ms });
                return Begun::Waits;
            }
            if owner != Replica::HOME {
                let since_ms = home.now_ms;
                self.phase = Some(Phase::Recalling { owner, wanted: access, since_ms });
                if home.speaks.contains(owner) {
                    self.recall(owner, access, out);
                }
                return Begun::Waits;
            }
            home.holds.ends(self.no, home.now_ms);
            self.copy(CopyStep::Protect(Run::one(self.no)), out);
            self.set(Holding::Shared(ReplicaSet::of(Replica::HOME)));
        }
        let Holding::Shared(readers) = self.record.holding else {
            self.refuse(to, out);
            return Begun::Served;
        };
        if access == Access::Read {
            self.grant_read(to, readers, out);
            return Begun::Served;
        }
        let others = readers.without(to).without(Replica::HOME);
        if others.is_empty() {
            self.grant_write(to, readers, home, out);
            return Begun::Served;
        }
        let since_ms = home.now_ms;
        self.phase = Some(Phase::Invalidating { readers: others, unacked: others, since_ms });
        for reader in others.and(home.speaks).iter() {
            self.invalidate(reader, out);
        }
        if to != Replica::HOME {
            self.stop_reading(out);
        }
        Begun::Waits
    }

    /// Home's own programs read the page no more: home's copy is aside.
    fn stop_reading(&mut self, out: &mut Vec<Effect>) {
        let Holding::Shared(readers) = self.record.holding else { return };
        if readers.contains(Replica::HOME) {
            self.copy(CopyStep::Keep { page: self.no, from: Source::Node }, out);
            self.set(Holding::Shared(readers.without(Replica::HOME)));
            self.put_down(out);
            self.copy(CopyStep::Punch(Run::one(self.no)), out);
        }
    }

    fn grant_read(&mut self, to: Replica, readers: ReplicaSet, out: &mut Vec<Effect>) {
        if to != Replica::HOME {
            self.advance(Holding::Shared(readers.with(to)));
            let place = place_of_home(readers);
            return self.send_grant(to, Access::Read, Content::Raw, place, out);
        }
        if !readers.contains(Replica::HOME) {
            self.copy(CopyStep::Fill { page: self.no, from: Source::Node }, out);
            self.set(Holding::Shared(readers.with(Replica::HOME)));
            self.put_down(out);
            self.copy(CopyStep::FreeAside(Run::one(self.no)), out);
        }
        self.copy(CopyStep::Wake(self.no), out);
    }

    /// Nobody reads any more but home and whom the page is for.
    fn grant_write(
        &mut self,
        to: Replica,
        readers: ReplicaSet,
        home: &mut Home,
        out: &mut Vec<Effect>,
    ) {
        let page = self.no;
        if to == Replica::HOME {
            let in_file = readers.contains(Replica::HOME);
            if !in_file {
                self.copy(CopyStep::Fill { page, from: Source::Node }, out);
            }
            self.advance(Holding::Owned { owner: to, left: Left::Nothing });
            self.put_down(out);
            if !in_file {
                self.copy(CopyStep::FreeAside(Run::one(page)), out);
            }
            self.copy(CopyStep::Open(page), out);
            self.copy(CopyStep::Wake(page), out);
            home.holds.begins(page, home.now_ms);
            return;
        }
        self.stop_reading(out);
        self.advance(Holding::Owned { owner: to, left: Left::Granted });
        let has_it = readers.contains(to);
        let content = if has_it { Content::None } else { Content::Raw };
        self.send_write_grant(to, content, out);
        self.phase = Some(Phase::Granting { to, since_ms: home.now_ms });
    }

    /// Whom a grant for writing is for has not got it, or has no use for one without content.
    fn grant_again(&mut self, now_ms: u64, out: &mut Vec<Effect>) {
        if let Some(Phase::Granting { to, since_ms }) = &mut self.phase {
            *since_ms = now_ms;
            let to = *to;
            self.send_write_grant(to, Content::Raw, out);
        }
    }

    /// The owner may put its `Ack` off, unless others wait for it.
    fn send_write_grant(&mut self, to: Replica, content: Content, out: &mut Vec<Effect>) {
        self.send_grant(to, Access::Write, content, Place::Aside, out);
        if self.queue.iter().any(|waiter| waiter.replica != to) {
            self.press(to, out);
        }
    }

    /// The owner has what it was granted: home's copy is worth nothing any more.
    fn has_installed(&mut self, owner: Replica, home: &mut Home, out: &mut Vec<Effect>) {
        self.phase = None;
        home.holds.begins(self.no, home.now_ms);
        match home.config.lost_page {
            LostPage::Stale => self.set(Holding::Owned { owner, left: Left::Stale }),
            LostPage::Sigbus => {
                self.set(Holding::Owned { owner, left: Left::Nothing });
                self.put_down(out);
                self.copy(CopyStep::FreeAside(Run::one(self.no)), out);
            }
        }
    }

    /// Home has the content again. It goes where it will be used.
    fn take(
        &mut self,
        from: Replica,
        content: Content,
        keeps: ReplicaSet,
        home: &mut Home,
        out: &mut Vec<Effect>,
    ) {
        let of = self.record.number;
        let had_aside = self.record.is_in_home_aside();
        let (page, source) = (self.no, Source::Frame(content));
        let for_home = self.queue.front().is_some_and(|first| first.replica == Replica::HOME);
        if for_home {
            self.copy(CopyStep::Fill { page, from: source }, out);
            self.advance(Holding::Shared(keeps.with(Replica::HOME)));
        } else {
            self.copy(CopyStep::Keep { page, from: source }, out);
            self.advance(Holding::Shared(keeps));
        }
        self.put_down(out);
        if for_home && had_aside {
            self.copy(CopyStep::FreeAside(Run::one(page)), out);
        }
        if !self.queue.is_empty() {
            home.holds.ends(page, home.now_ms);
        }
        self.phase = None;
        self.confirm(from, of, out);
    }

    /// A reader has given the page up, or is no more. The record follows when all of them have.
    fn reader_gone(&mut self, replica: Replica) {
        let Some(Phase::Invalidating { readers, unacked, .. }) = &mut self.phase else { return };
        *unacked = unacked.without(replica);
        if !unacked.is_empty() {
            return;
        }
        let gone = *readers;
        self.phase = None;
        if let Holding::Shared(readers) = self.record.holding {
            self.advance(Holding::Shared(readers.minus(gone)));
        }
    }

    /// The owner is lost, and with it the content, unless home has kept what it granted.
    fn lose(&mut self, home: &Home, out: &mut Vec<Effect>) {
        let Holding::Owned { owner, left } = self.record.holding else { return };
        out.push(Effect::PageLost { page: self.no, owner });
        if left != Left::Nothing && home.config.lost_page == LostPage::Stale {
            self.advance(Holding::Shared(ReplicaSet::NONE));
            return;
        }
        self.advance(Holding::Lost);
        self.put_down(out);
        if left != Left::Nothing {
            self.copy(CopyStep::FreeAside(Run::one(self.no)), out);
        }
    }

    fn refuse(&mut self, to: Replica, out: &mut Vec<Effect>) {
        let page = self.no;
        if to == Replica::HOME {
            self.copy(CopyStep::Fail { page, failure: Failure::Lost }, out);
        } else {
            self.send(to, ToReplica::Refused { page, refusal: Refusal::Lost }, Place::File, out);
        }
    }

    /// `employer_shm_timeout`, for home's own programs; the others' is their own dipcd's.
    fn fail_late_waiter(&mut self, home: &mut Home, out: &mut Vec<Effect>) {
        let Some(timeout_ms) = home.config.shm_timeout_ms else { return };
        let is_late = |waiter: &Waiter| {
            waiter.replica == Replica::HOME && waiter.since_ms + timeout_ms <= home.now_ms
        };
        if self.queue.iter().any(is_late) {
            self.queue.retain(|waiter| waiter.replica != Replica::HOME);
            // The page is punched: what home read of it while it waited to write goes aside first.
            self.stop_reading(out);
            self.copy(CopyStep::Fail { page: self.no, failure: Failure::TimedOut }, out);
        }
    }

    /// The same transaction goes on.
    fn set(&mut self, holding: Holding) {
        self.record.holding = holding;
        self.unrecorded = true;
    }

    /// A transaction comes to its end.
    fn advance(&mut self, holding: Holding) {
        self.record.number = self.transaction();
        self.set(holding);
    }

    /// Records what has changed, before what follows.
    fn put_down(&mut self, out: &mut Vec<Effect>) {
        if std::mem::take(&mut self.unrecorded) {
            out.push(Effect::Record { page: self.no, record: self.record });
        }
    }

    fn copy(&self, step: CopyStep, out: &mut Vec<Effect>) {
        out.push(Effect::Copy(step));
    }

    fn recall(&mut self, owner: Replica, wanted: Access, out: &mut Vec<Effect>) {
        let frame = ToReplica::Recall { page: self.no, number: self.transaction(), wanted };
        self.send(owner, frame, Place::File, out);
    }

    fn invalidate(&mut self, reader: Replica, out: &mut Vec<Effect>) {
        let frame = ToReplica::Invalidate { page: self.no, number: self.transaction() };
        self.send(reader, frame, Place::File, out);
    }

    /// Its `Ack` is waited for.
    fn press(&mut self, owner: Replica, out: &mut Vec<Effect>) {
        let frame = ToReplica::AckPlease { page: self.no };
        self.send(owner, frame, Place::File, out);
    }

    fn confirm(&mut self, replica: Replica, number: GrantNo, out: &mut Vec<Effect>) {
        let frame = ToReplica::Confirm { page: self.no, number };
        self.send(replica, frame, Place::File, out);
    }

    fn send_grant(
        &mut self,
        to: Replica,
        access: Access,
        content: Content,
        from: Place,
        out: &mut Vec<Effect>,
    ) {
        let granted = Granted { page: self.no, number: self.record.number, content };
        self.send(to, ToReplica::Grant { access, pages: vec![granted] }, from, out);
    }

    /// Whatever is sent follows what is recorded.
    fn send(&mut self, to: Replica, frame: ToReplica, from: Place, out: &mut Vec<Effect>) {
        self.put_down(out);
        out.push(Effect::Send { to, frame, from });
    }
}

/// Where home's copy lies while these read the page.
fn place_of_home(readers: ReplicaSet) -> Place {
    if readers.contains(Replica::HOME) { Place::File } else { Place::Aside }
}
