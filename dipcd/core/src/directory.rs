//! A segment's home: who holds each of its pages. Its shell holds the links, home's own copies
//! (file and aside) and the file of records.
//!
//! ```text
//! recorded        somebody wants to read              somebody wants to write
//! Owned by home   protect ─▶ Shared {home, it}        as Shared {home}
//! Shared          ─▶ Shared {.., it}, Grant           Invalidate the others ─▶ Owned by it, Grant
//! Owned           Recall ─▶ Shared {owner, it}        Recall ─▶ Shared {} ─▶ Owned by it, Grant
//! Lost            Refused                             Refused
//!
//! in memory only, for a page that is not at rest; who wants it meanwhile waits in a queue:
//! Holding         its owner may keep it until a time
//! Recalling       until Recalled or Released          lost owner: Lost, or home's last copy
//! Invalidating    until Invalidated by all of them    lost reader: counts as one
//! Granting        for writing, until Ack              lost owner: as above; left: home's copy
//!                 (AckPlease, when somebody waits)
//! ```
//!
//! - Home's own programs are a replica like the others, number 0, to whom nothing is sent: what the
//!   table grants to it or takes from it is done to home's copies at once.
//! - Home's copy is in its file while home reads or owns, else aside, as long as others only read
//!   it, wait to write it, or have not acknowledged it as its owner. Grants for reading are not
//!   acknowledged: home has the content, and links keep order.
//! - Whoever is sent a page was recorded before, and is recorded until it has answered, is lost or
//!   has left. So after a restart the records alone say whom to ask, and nobody's page is touched
//!   before the node has reported on its new link.
#![forbid(unsafe_code)]

mod home;
mod page;
mod record;
mod replicas;

use std::collections::{BTreeMap, BTreeSet};

use dipc_wire::ids::NodeId;
use dipc_wire::limits::{PAGES_MAX, PART_BYTES, REPLICAS_MAX};
use dipc_wire::memory::{
    Access, Content, GrantNo, Granted, Holds, PageNo, PageReport, Replica, ToHome, ToReplica,
};
use dipc_wire::peer::Piece;

use crate::copies::{CopyStep, Place, Records, Run, Runs};
use crate::hold::Hold;
use crate::read_ahead::AHEAD_MAX;
pub use home::FAULTS_MAX;
use home::Home;
use page::{Busy, Page, Waiter};
pub use record::{Holding, Left, PageRecord};
pub use replicas::ReplicaSet;

/// What is fixed for a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Config {
    /// Pages of the segment: its bytes in units, rounded up.
    pub pages: u32,
    /// How many pages with content fit into one frame: [`frame_pages`].
    pub frame_pages: usize,
    /// `shm_hold_timeout`.
    pub hold: Hold,
    /// `shm_ak_timeout`, in milliseconds; `None`: no bound but the loss of the node.
    pub ak_timeout_ms: Option<u64>,
    /// `employer_shm_timeout`, in milliseconds, for home's own programs; `None`: no bound.
    pub shm_timeout_ms: Option<u64>,
    /// What becomes of a page whose only copy was on a lost node.
    pub lost_page: LostPage,
}

/// `lost_page`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LostPage {
    /// SIGBUS for who touches it.
    Sigbus,
    /// Home's last copy of it, which home therefore never frees.
    Stale,
}

/// How many pages with content a frame takes.
pub fn frame_pages(unit_bytes: u64) -> usize {
    let pages = PART_BYTES as u64 / unit_bytes.max(1);
    usize::try_from(pages).map_or(PAGES_MAX, |pages| pages.clamp(1, PAGES_MAX))
}

/// What happens to a directory.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Event {
    /// A program at home faults. Answered by `Open`, `Fill` and `Wake`, or `Fail`. May be said
    /// again, or for a page that is there. Futex looks count as well.
    Fault {
        /// Where.
        page: PageNo,
        /// What for.
        access: Access,
    },
    /// A frame of the page protocol came by the present link of its replica's node; its content,
    /// `Part`s put together, has been received and has the right length. Frames of replaced links
    /// and frames that name a replica of another node never come here (to such a `Report` the shell
    /// answers [`ToReplica::Left`]).
    Frame {
        /// Whose.
        from: Replica,
        /// What it says; never a `Part`.
        frame: ToHome,
    },
    /// A node attached for the first time with this file, under a number from
    /// [`Directory::vacant`]. The shell has recorded it for [`Directory::start`] before. Nothing is
    /// granted to it before its report.
    Joined {
        /// Its number.
        replica: Replica,
        /// Where.
        node: NodeId,
    },
    /// The link to a node has ended, or is about to be replaced. (That a new one is up is seen by
    /// the reports. The shell asks for them, [`ToReplica::ReportPlease`], and the node's shell
    /// reports nothing and says `Leave` for a replica that it has not got.)
    Unlinked {
        /// Which.
        node: NodeId,
    },
    /// Home declares a node lost. Its replicas' numbers become free (`Effect::Gone`).
    Lost {
        /// Which.
        node: NodeId,
    },
    /// Time has passed: due at [`Effect::SetTimer`], welcome at any time.
    Tick,
    /// Goes on where the last step stopped; see [`Effect::Continue`].
    Continue,
}

/// What is to be done, in this order. A link's frames leave in the order of their effects.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Effect {
    /// Record this of the page (a store into a mapped file; [`PageRecord::stores`]) before anything
    /// that follows, and before the next step.
    Record {
        /// Which page.
        page: PageNo,
        /// What.
        record: PageRecord,
    },
    /// Do this to home's copies.
    Copy(CopyStep),
    /// Send this frame to the node of this replica. `Content::Raw` in it means: read home's copy
    /// now, from `from`; the shell may say `Zero` or send parts instead.
    Send {
        /// To whom.
        to: Replica,
        /// What.
        frame: ToReplica,
        /// Where the content lies.
        from: Place,
    },
    /// This replica is no more. Forget it durably, and only then, if it left, send it
    /// [`ToReplica::Left`]. Its attachment may have been the segment's last. The number is vacant
    /// some steps later.
    Gone {
        /// Which.
        replica: Replica,
        /// How it went.
        departure: Departure,
    },
    /// For the log: this page is lost with its owner.
    PageLost {
        /// Which page.
        page: PageNo,
        /// Who owned it.
        owner: Replica,
    },
    /// Say [`Event::Tick`] at this time, instead of the time set before.
    SetTimer {
        /// In milliseconds of the clock that steps are given.
        at_ms: u64,
    },
    /// Close the link to this node and log why. `Unlinked` follows.
    Break {
        /// Which.
        node: NodeId,
        /// Why.
        reason: Breach,
    },
    /// There is more to do than one step should: say [`Event::Continue`] soon, perhaps after other
    /// events. At most one is owed at a time.
    Continue,
}

/// How a replica went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Departure {
    /// It gave everything up and said so.
    Left,
    /// Its node was declared lost.
    Lost,
}

/// Why a link is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Breach {
    /// A page beyond the segment.
    OutOfRange,
    /// Pages that do not grow within a frame, or a frame without a page.
    Disorder,
    /// A frame that this replica cannot have sent by the protocol.
    Impossible,
    /// More faults than a node has threads.
    TooMuch,
    /// `shm_ak_timeout` is over, of this page's transaction.
    Silent {
        /// Which page.
        page: PageNo,
        /// Which transaction.
        number: GrantNo,
    },
}

/// Pages that one frame of reading ahead carries at most: while home reads the next ones, the
/// replica installs these. Of 4 KiB each they fit into one record of the cipher.
const AHEAD_FRAME_PAGES: usize = 15;
/// Records that a walk over all of them looks at in one step.
const WALK: usize = 512;

/// A segment's home.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Directory {
    home: Home,
    /// Pages that are not at rest; for the others the record says all.
    busy: BTreeMap<PageNo, Busy>,
    /// The earliest time that was asked for.
    timer_ms: Option<u64>,
    sweep: Option<Sweep>,
}

/// A walk that takes replicas which are no more out of the records.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Sweep {
    gone: ReplicaSet,
    from: PageNo,
}

impl Directory {
    /// Begins, or begins again after a restart of dipcd: `waiting_for` are the replicas that had
    /// joined and not gone; what one of them holds is not touched before it has reported or is
    /// declared lost. `each` carries out what a dipcd that was killed may have left undone.
    pub fn start(
        config: Config,
        now_ms: u64,
        records: &impl Records<PageRecord>,
        waiting_for: impl IntoIterator<Item = (Replica, NodeId)>,
        mut each: impl FnMut(Effect),
    ) -> Directory {
        let mut home = Home::new(config, now_ms);
        for (replica, node) in waiting_for {
            home.join(replica, node);
        }
        let mut directory = Directory { home, busy: BTreeMap::new(), timer_ms: None, sweep: None };
        let (mut punched, mut freed) = (Runs::default(), Runs::default());
        let mut effects = Vec::new();
        let mut from = PageNo(0);
        while let Some(no) = records.next(from).filter(|no| no.0 < config.pages) {
            let record = directory.recover(no, records.get(no), &mut effects);
            effects.drain(..).for_each(&mut each);
            if !record.is_in_home_file() {
                punched.add(no, |run| each(Effect::Copy(CopyStep::Punch(run))));
            }
            if !record.is_in_home_aside() {
                freed.add(no, |run| each(Effect::Copy(CopyStep::FreeAside(run))));
            }
            from = PageNo(no.0 + 1);
        }
        punched.finish().into_iter().for_each(|run| each(Effect::Copy(CopyStep::Punch(run))));
        freed.finish().into_iter().for_each(|run| each(Effect::Copy(CopyStep::FreeAside(run))));
        directory
    }

    /// One event: what is to be done about it is added to `effects`, and must be carried out before
    /// the next step.
    pub fn step(
        &mut self,
        now_ms: u64,
        event: Event,
        records: &impl Records<PageRecord>,
        effects: &mut Vec<Effect>,
    ) {
        self.home.now_ms = now_ms;
        match event {
            Event::Fault { page, access } if page.0 < self.home.config.pages => {
                let waiter = Waiter { replica: Replica::HOME, access, since_ms: now_ms };
                let fault = |page: &mut Page, home: &mut Home, out: &mut Vec<Effect>| {
                    page.fault(waiter, home, out)
                };
                let outcome = self.on(page, records.get(page), effects, fault);
                debug_assert!(outcome.is_ok(), "home breaks no rule");
            }
            Event::Fault { .. } => {}
            Event::Frame { from, frame } => self.frame(from, frame, records, effects),
            Event::Joined { replica, node } => self.home.join(replica, node),
            Event::Unlinked { node } => self.unlinked(node),
            Event::Lost { node } => {
                for replica in self.home.replicas_of(node).iter() {
                    self.depart(replica, Departure::Lost, records, effects);
                }
            }
            Event::Tick => self.tick(records, effects),
            Event::Continue => self.sweep(records, effects),
        }
    }

    /// A number for a replica that attaches; `None` if all are taken.
    pub fn vacant(&self) -> Option<Replica> {
        let gone = self.sweep.map_or(ReplicaSet::NONE, |sweep| sweep.gone);
        let is_vacant =
            |replica: &Replica| !self.home.known.contains(*replica) && !gone.contains(*replica);
        (1..REPLICAS_MAX).map(Replica).find(is_vacant)
    }

    /// Replicas that have joined and have not reported on a link that is up: for what they hold,
    /// others wait.
    pub fn silent(&self) -> ReplicaSet {
        self.home.known.minus(self.home.speaks).without(Replica::HOME)
    }

    /// How many pages are not at rest.
    pub fn busy(&self) -> usize {
        self.busy.len()
    }

    /// Works on one page.
    fn on<T>(
        &mut self,
        no: PageNo,
        record: PageRecord,
        effects: &mut Vec<Effect>,
        work: impl FnOnce(&mut Page, &mut Home, &mut Vec<Effect>) -> T,
    ) -> T {
        let mut page = Page::open(no, record, self.busy.remove(&no), &self.home, effects);
        let outcome = work(&mut page, &mut self.home, effects);
        if let Some(busy) = page.close(effects) {
            let due_ms = busy.due_ms(&self.home);
            self.busy.insert(no, busy);
            self.arm(due_ms, effects);
        }
        outcome
    }

    fn arm(&mut self, due_ms: Option<u64>, effects: &mut Vec<Effect>) {
        if let Some(at_ms) = due_ms
            && self.timer_ms.is_none_or(|timer_ms| at_ms < timer_ms)
        {
            self.timer_ms = Some(at_ms);
            effects.push(Effect::SetTimer { at_ms });
        }
    }

    /// What is true of one page after a restart. A grant for writing that nobody acknowledged is
    /// under way again.
    fn recover(&mut self, no: PageNo, record: PageRecord, effects: &mut Vec<Effect>) -> PageRecord {
        let record = self.on(no, record, effects, |page, _, _| page.record());
        if let Holding::Owned { owner, left: Left::Granted } = record.holding {
            self.busy.insert(no, Busy::granting(owner, self.home.now_ms));
        }
        record
    }

    fn frame(
        &mut self,
        from: Replica,
        frame: ToHome,
        records: &impl Records<PageRecord>,
        effects: &mut Vec<Effect>,
    ) {
        let speaks = self.home.speaks.contains(from);
        let Some(node) = self.home.peers.get(&from).map(|peer| peer.node) else { return };
        let outcome = match frame {
            ToHome::Report { pages, piece } if !speaks => {
                self.report(from, &pages, piece, records, effects)
            }
            // The report comes first; what comes before it is of a link that was given up.
            _ if !speaks => Ok(()),
            ToHome::Leave => {
                self.depart(from, Departure::Left, records, effects);
                Ok(())
            }
            frame => self.about_pages(from, frame, records, effects),
        };
        if let Err(reason) = outcome {
            effects.push(Effect::Break { node, reason });
            self.unlinked(node);
        }
    }

    /// What a replica that speaks says about pages.
    fn about_pages(
        &mut self,
        from: Replica,
        frame: ToHome,
        records: &impl Records<PageRecord>,
        effects: &mut Vec<Effect>,
    ) -> Result<(), Breach> {
        match frame {
            ToHome::Fault { first, ahead, access } => {
                self.check([first])?;
                self.fault(from, first, access, records.get(first), effects)?;
                self.grant_ahead(from, PageNo(first.0 + 1), ahead, records, effects);
            }
            ToHome::Ahead { first, count } => {
                self.check([first])?;
                self.grant_ahead(from, first, count, records, effects);
            }
            ToHome::Ack { pages } => {
                self.check(pages.iter().map(|(page, _)| *page))?;
                for (no, number) in pages {
                    self.on(no, records.get(no), effects, |page, home, out| {
                        page.acked(from, number, home, out);
                    });
                }
            }
            ToHome::Recalled { granted, of, keeps } => {
                self.check([granted.page])?;
                self.on(granted.page, records.get(granted.page), effects, |page, home, out| {
                    page.recalled(from, granted, of, keeps, home, out)
                })?;
            }
            ToHome::Invalidated { page: no, number } => {
                self.check([no])?;
                self.on(no, records.get(no), effects, |page, home, out| {
                    page.invalidated(from, number, home, out);
                });
            }
            ToHome::Released { granted } => {
                self.check([granted.page])?;
                self.on(granted.page, records.get(granted.page), effects, |page, home, out| {
                    page.released(from, granted, ReplicaSet::NONE, home, out)
                })?;
            }
            ToHome::Report { .. } | ToHome::Part { .. } | ToHome::Leave => {
                return Err(Breach::Impossible);
            }
        }
        Ok(())
    }

    /// Pages of one frame: at least one, growing, in the segment.
    fn check(&self, pages: impl IntoIterator<Item = PageNo>) -> Result<(), Breach> {
        let mut last = None;
        for page in pages {
            if page.0 >= self.home.config.pages {
                return Err(Breach::OutOfRange);
            }
            if last.is_some_and(|last| last >= page) {
                return Err(Breach::Disorder);
            }
            last = Some(page);
        }
        last.map(|_| ()).ok_or(Breach::Disorder)
    }

    /// Whether nothing is under way about a page.
    pub fn is_at_rest(&self, page: PageNo) -> bool {
        !self.busy.contains_key(&page)
    }

    fn fault(
        &mut self,
        from: Replica,
        no: PageNo,
        access: Access,
        record: PageRecord,
        effects: &mut Vec<Effect>,
    ) -> Result<(), Breach> {
        let reads = matches!(record.holding, Holding::Shared(readers) if readers.contains(from));
        let rests = !self.busy.contains_key(&no);
        if access == Access::Read && reads && rests && self.home.was_granted_ahead(from, no) {
            return Ok(());
        }
        let waiter = Waiter { replica: from, access, since_ms: self.home.now_ms };
        self.on(no, record, effects, |page, home, out| page.fault(waiter, home, out))
    }

    /// Grants what costs no wait. Home is protected from writing in runs, before anything is
    /// recorded, and the grants leave after all that.
    fn grant_ahead(
        &mut self,
        to: Replica,
        first: PageNo,
        count: u16,
        records: &impl Records<PageRecord>,
        effects: &mut Vec<Effect>,
    ) {
        let end = first.0.saturating_add(u32::from(count.min(AHEAD_MAX)));
        let mut protected = Runs::default();
        let mut others = Vec::new();
        let mut grants: Vec<(Place, Vec<Granted>)> = Vec::new();
        let most = self.home.config.frame_pages.min(AHEAD_FRAME_PAGES);
        let mut staged = Vec::new();
        for no in (first.0..end.min(self.home.config.pages)).map(PageNo) {
            let granted = self.on(no, records.get(no), &mut staged, |page, home, out| {
                page.grant_ahead(to, home, out)
            });
            for effect in staged.drain(..) {
                if let Effect::Copy(CopyStep::Protect(Run { first, .. })) = effect {
                    protected.add(first, |run| effects.push(Effect::Copy(CopyStep::Protect(run))));
                } else {
                    others.push(effect);
                }
            }
            let Some((granted, place)) = granted else { continue };
            self.home.granted_ahead(to, no);
            match grants.last_mut() {
                Some((at, pages)) if *at == place && pages.len() < most => pages.push(granted),
                _ => grants.push((place, vec![granted])),
            }
        }
        effects.extend(protected.finish().map(|run| Effect::Copy(CopyStep::Protect(run))));
        effects.append(&mut others);
        effects.extend(grants.into_iter().map(|(from, pages)| Effect::Send {
            to,
            frame: ToReplica::Grant { access: Access::Read, pages },
            from,
        }));
    }

    /// What a replica has that home may not know of; its faults are served when all of it is in.
    fn report(
        &mut self,
        from: Replica,
        pages: &[PageReport],
        piece: Piece,
        records: &impl Records<PageRecord>,
        effects: &mut Vec<Effect>,
    ) -> Result<(), Breach> {
        if !pages.is_empty() {
            self.check(pages.iter().map(|report| report.granted.page))?;
        }
        for PageReport { granted, holds, fault } in pages {
            let keeps = match holds {
                Holds::Kept => Some(ReplicaSet::NONE),
                Holds::Shared if granted.content != Content::None => Some(ReplicaSet::of(from)),
                Holds::Nothing | Holds::Shared | Holds::Owned => None,
            };
            if let Some(keeps) = keeps {
                let no = granted.page;
                self.on(no, records.get(no), effects, |page, home, out| {
                    page.released(from, *granted, keeps, home, out)
                })?;
            }
            if let (Some(access), Some(peer)) = (*fault, self.home.peers.get_mut(&from)) {
                if peer.reported.len() as u32 >= FAULTS_MAX {
                    return Err(Breach::TooMuch);
                }
                peer.reported.push((granted.page, access));
            }
        }
        if piece == Piece::Last { self.reported(from, records, effects) } else { Ok(()) }
    }

    /// The report is whole: whatever waits for this replica is said again, and its faults count.
    fn reported(
        &mut self,
        from: Replica,
        records: &impl Records<PageRecord>,
        effects: &mut Vec<Effect>,
    ) -> Result<(), Breach> {
        let Some(peer) = self.home.peers.get_mut(&from) else { return Ok(()) };
        let faults = std::mem::take(&mut peer.reported);
        self.home.speaks = self.home.speaks.with(from);
        effects.push(Effect::Send { to: from, frame: ToReplica::Resumed, from: Place::File });
        let now_ms = self.home.now_ms;
        let mut granting = BTreeSet::new();
        let busy: Vec<_> = self.busy.keys().copied().collect();
        for no in busy {
            let record = latest(no, records, effects);
            if self.on(no, record, effects, |page, _, out| page.speaks(from, now_ms, out)) {
                granting.insert(no);
            }
        }
        for (no, access) in faults {
            if !granting.contains(&no) {
                let record = latest(no, records, effects);
                self.fault(from, no, access, record, effects)?;
            }
        }
        Ok(())
    }

    fn unlinked(&mut self, node: NodeId) {
        for replica in self.home.replicas_of(node).iter() {
            for busy in self.busy.values_mut() {
                busy.asks_no_more(replica);
            }
            self.home.hang_up(replica);
        }
    }

    /// A replica is no more. Pages at rest are opened as if its marks in their records were not
    /// there; a walk takes them out before its number is given away again. One that is lost is
    /// forgotten before anybody gets its pages, so that it cannot come back with them after a
    /// restart; one that left is forgotten when nothing is left of it, for it can say so again.
    fn depart(
        &mut self,
        replica: Replica,
        departure: Departure,
        records: &impl Records<PageRecord>,
        effects: &mut Vec<Effect>,
    ) {
        let gone = Effect::Gone { replica, departure };
        self.home.hang_up(replica);
        if departure == Departure::Lost {
            effects.push(gone.clone());
        }
        let busy: Vec<_> = self.busy.keys().copied().collect();
        for no in busy {
            let record = latest(no, records, effects);
            self.on(no, record, effects, |page, home, out| {
                page.departed(replica, departure, home, out);
            });
        }
        self.home.forget(replica);
        if departure == Departure::Left {
            effects.push(gone);
        }
        let gone = match self.sweep {
            Some(sweep) => sweep.gone,
            None => {
                effects.push(Effect::Continue);
                ReplicaSet::NONE
            }
        };
        self.sweep = Some(Sweep { gone: gone.with(replica), from: PageNo(0) });
    }

    /// Goes on with the walk. Opening a page is enough to take out who is no more.
    fn sweep(&mut self, records: &impl Records<PageRecord>, effects: &mut Vec<Effect>) {
        let Some(Sweep { gone, mut from }) = self.sweep.take() else { return };
        for _ in 0..WALK {
            let Some(no) = records.next(from).filter(|no| no.0 < self.home.config.pages) else {
                return;
            };
            self.on(no, records.get(no), effects, |_, _, _| ());
            from = PageNo(no.0 + 1);
        }
        self.sweep = Some(Sweep { gone, from });
        effects.push(Effect::Continue);
    }

    fn tick(&mut self, records: &impl Records<PageRecord>, effects: &mut Vec<Effect>) {
        let now_ms = self.home.now_ms;
        if self.timer_ms.is_none_or(|timer_ms| now_ms < timer_ms) {
            return;
        }
        self.timer_ms = None;
        let is_due = |busy: &Busy| busy.due_ms(&self.home).is_some_and(|due_ms| due_ms <= now_ms);
        let due: Vec<_> =
            self.busy.iter().filter(|(_, busy)| is_due(busy)).map(|(no, _)| *no).collect();
        for no in due {
            let (silent, number) =
                self.on(no, records.get(no), effects, |page, home, out| page.tick(home, out));
            for replica in silent.iter() {
                let Some(peer) = self.home.peers.get(&replica) else { continue };
                let (node, reason) = (peer.node, Breach::Silent { page: no, number });
                effects.push(Effect::Break { node, reason });
                self.unlinked(node);
            }
        }
        let next_ms = self.busy.values().filter_map(|busy| busy.due_ms(&self.home)).min();
        self.arm(next_ms, effects);
    }
}

/// What is recorded of a page, or about to be by this step.
fn latest(no: PageNo, records: &impl Records<PageRecord>, effects: &[Effect]) -> PageRecord {
    let recorded = effects.iter().rev().find_map(|effect| match effect {
        Effect::Record { page, record } if *page == no => Some(*record),
        _ => None,
    });
    recorded.unwrap_or_else(|| records.get(no))
}
