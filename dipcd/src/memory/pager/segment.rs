//! One segment on this node: the directory if this node is its home, the replicas of this node,
//! and one lock around all of it. A step of a machine is carried out whole, in order, before the
//! lock goes: so what is posted to a node leaves in the order of the machines' decisions.
//!
//! What home and a replica of the same node say to each other goes through `local`, within the
//! lock. Lock order: this, then a family's, the timers' and a link's outbox.
#![forbid(unsafe_code)]

use parking_lot::{Condvar, Mutex, MutexGuard};
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use dipc_core::copies::{CopyStep, Place, Run, Source};
use dipc_core::directory;
use dipc_core::replica;
use dipc_wire::ids::{NodeId, ObjectId};
use dipc_wire::memory::{Access, Content, Granted, PageNo, Replica, ToHome, ToReplica};
use dipc_wire::peer::PeerFrame;

use super::content::Contents;
use super::home_side::HomeSide;
use super::node_file::{Gathered, NodeFile};
use super::replica_side::ReplicaSide;
use super::shared::{Note, Shared};
use super::timers::{Due, Machine};
use crate::clock::now_ms;
use crate::links::Link;
use crate::memory::families::Mappings;
use crate::memory::geometry::Geometry;

/// How many pages that gave SIGBUS are asked for at once when they may be had again.
pub(super) const HEALED_MAX: usize = 4096;

/// A segment on this node.
pub struct Segment {
    /// Its id.
    pub id: ObjectId,
    /// Where its directory is.
    pub home: NodeId,
    /// How it is cut.
    pub geometry: Geometry,
    pub(super) shared: Arc<Shared>,
    state: Mutex<State>,
    /// Something has become accessible, or has failed: for who waits in a call.
    pub(super) changed: Condvar,
}

/// What the lock guards.
#[derive(Default)]
pub struct State {
    /// The directory, at home.
    pub home: Option<HomeSide>,
    /// The replicas of this node; home's own file is not among them.
    pub replicas: BTreeMap<Replica, ReplicaSide>,
    /// The links by which the machines talk now.
    links: BTreeMap<NodeId, Arc<Link>>,
    local: VecDeque<Local>,
    /// It is deleted, or its home is lost: nothing here counts any more.
    pub dead: bool,
    /// The lease of its home is over, and access was taken away.
    lapsed: bool,
    /// While access is taken away: whether a machine has stopped in the middle of it.
    stopped: Option<bool>,
}

/// What is said within this node.
enum Local {
    ToHome { from: Replica, frame: ToHome, raw: Vec<u8> },
    ToReplica { to: Replica, frame: ToReplica, raw: Vec<u8> },
}

impl Segment {
    /// Without machines yet.
    pub fn new(id: ObjectId, home: NodeId, geometry: Geometry, shared: Arc<Shared>) -> Segment {
        let (state, changed) = (Mutex::default(), Condvar::new());
        Segment { id, home, geometry, shared, state, changed }
    }

    /// Works on it alone.
    pub fn lock(&self) -> Locked<'_> {
        Locked { segment: self, state: self.state.lock() }
    }

    pub(super) fn machine(&self, replica: Replica) -> Machine {
        Machine::Page(self.id, replica)
    }
}

/// A segment, locked.
pub struct Locked<'a> {
    segment: &'a Segment,
    /// Its state.
    pub state: MutexGuard<'a, State>,
}

impl Locked<'_> {
    /// The segment's id.
    pub fn id(&self) -> ObjectId {
        self.segment.id
    }

    /// One of its machines, as the timers know it.
    pub fn machine(&self, replica: Replica) -> Machine {
        self.segment.machine(replica)
    }

    /// Whoever waits for a change looks again.
    pub fn wake_all(&self) {
        self.segment.changed.notify_all();
    }

    /// A replica that has just been made talks to its home from now on.
    pub fn begin_links(&mut self, number: Replica, link: Option<&Arc<Link>>) {
        let home = self.segment.home;
        if self.state.home.is_some() || self.state.links.contains_key(&home) {
            self.step_replica(number, replica::Event::LinkUp, &Contents::none());
        } else if let Some(link) = link {
            self.use_link(home, link);
        }
    }

    /// Something happens to the directory.
    pub fn step_home(&mut self, event: directory::Event, contents: &Contents<'_>) {
        self.state.step_home(self.segment, event, contents);
        self.state.settle(self.segment);
    }

    /// Something happens to a replica of this node. When its home serves it again, what gave SIGBUS
    /// meanwhile is asked for: nobody faults there any more.
    pub fn step_replica(
        &mut self,
        replica: Replica,
        event: replica::Event,
        contents: &Contents<'_>,
    ) {
        let is_served_again = matches!(event, replica::Event::Frame(ToReplica::Resumed));
        self.state.step_replica(self.segment, replica, event, contents);
        if is_served_again {
            self.state.ask_for_poisoned(self.segment, replica);
        }
        self.state.settle(self.segment);
        // It may have been given in the last moment, or after it.
        self.look_at_lease();
    }

    /// Looks whether the lease of the segment's home is over: then nothing is written from here on,
    /// and whoever looks after leases takes the rest away.
    pub fn look_at_lease(&mut self) {
        let (home, leases) = (self.segment.home, &self.segment.shared.leases);
        if self.state.home.is_some() || self.state.lapsed || !leases.is_over(home) {
            return;
        }
        self.state.lapsed = true;
        if let Some(link) = self.state.links.get(&home) {
            link.close();
        }
        for number in self.state.replicas.keys().copied().collect::<Vec<_>>() {
            self.take_away(number, replica::Event::LeaseEnded);
        }
        self.segment.shared.timers.set(Machine::Lease(home), now_ms());
    }

    /// The lease is over: takes some of the pages away that others may have. `false` when nothing
    /// is left of them.
    pub fn close_some(&mut self) -> bool {
        if !self.state.lapsed {
            return false;
        }
        let is_open = |side: &ReplicaSide| side.machine.as_ref().is_some_and(|m| !m.is_closed());
        let replicas = self.state.replicas.iter();
        let next = replicas.filter(|(_, side)| is_open(side)).map(|(number, _)| *number).next();
        if let Some(number) = next {
            self.take_away(number, replica::Event::Continue);
        }
        next.is_some()
    }

    /// A step of the end of a lease. What has time when it is done is done later.
    fn take_away(&mut self, number: Replica, event: replica::Event) {
        self.state.stopped = Some(false);
        self.state.step_replica(self.segment, number, event, &Contents::none());
        let owes = self.state.stopped.take() == Some(true);
        let machine = self.state.replicas.get(&number).and_then(|side| side.machine.as_ref());
        if owes && machine.is_some_and(replica::Replica::is_closed) {
            self.segment.shared.timers.go_on(self.segment.machine(number));
        }
    }

    /// A replica that its home does not know, and that cannot be attached again now, begins with
    /// nothing; at the next link home says again what becomes of it.
    pub fn renew(&mut self, number: Replica, config: replica::Config, is_home_lost: bool) {
        let Some(side) = self.state.replicas.get_mut(&number) else { return };
        side.renew(config);
        if self.state.lapsed {
            self.step_replica(number, replica::Event::LeaseEnded, &Contents::none());
        }
        if is_home_lost {
            self.step_replica(number, replica::Event::HomeLost, &Contents::none());
        }
    }

    /// The lease of the segment's home runs again.
    pub fn lease_runs(&mut self) {
        if std::mem::take(&mut self.state.lapsed) {
            for number in self.state.replicas.keys().copied().collect::<Vec<_>>() {
                self.step_replica(number, replica::Event::LeaseRestored, &Contents::none());
            }
        }
    }

    /// A machine's time has come, or it goes on.
    pub fn due(&mut self, replica: Replica, due: Due) {
        if replica == Replica::HOME {
            let event = match due {
                Due::Tick => directory::Event::Tick,
                Due::Continue => directory::Event::Continue,
            };
            self.step_home(event, &Contents::none());
        } else {
            let event = match due {
                Due::Tick => replica::Event::Tick,
                Due::Continue => replica::Event::Continue,
            };
            self.step_replica(replica, event, &Contents::none());
        }
    }

    /// The machines talk by this link to its node from now on; `false` if they do already.
    pub fn use_link(&mut self, node: NodeId, link: &Arc<Link>) -> bool {
        let state = &mut *self.state;
        if state.links.get(&node).is_some_and(|known| known.number == link.number) {
            return false;
        }
        self.unlink(node, None);
        self.state.links.insert(node, link.clone());
        self.ask_for_reports(node);
        self.each_of_home(node, |locked, replica| {
            locked.step_replica(replica, replica::Event::LinkUp, &Contents::none());
        });
        true
    }

    /// A node that has lost a replica says so, and nobody waits for it; the others report anyway.
    fn ask_for_reports(&mut self, node: NodeId) {
        let Some(home) = &self.state.home else { return };
        let there = home.holders.iter().filter(|(_, holder)| holder.node == node);
        let there: Vec<Replica> = there.map(|(replica, _)| *replica).collect();
        for replica in there {
            self.answer(node, replica, ToReplica::ReportPlease);
        }
    }

    /// A link to a node has ended; `None`: whichever it is.
    pub fn unlink(&mut self, node: NodeId, link: Option<&Arc<Link>>) {
        let known = self.state.links.get(&node);
        let is_it = |known: &Arc<Link>| link.is_none_or(|link| known.number == link.number);
        if !known.is_some_and(is_it) {
            return;
        }
        self.state.links.remove(&node);
        if self.state.home.is_some() {
            self.step_home(directory::Event::Unlinked { node }, &Contents::none());
        }
        self.each_of_home(node, |locked, replica| {
            locked.step_replica(replica, replica::Event::LinkDown, &Contents::none());
        });
    }

    /// Whether the machines talk to a node by this link; if they have talked to it by none, they do
    /// from now on.
    pub fn is_by(&mut self, node: NodeId, link: &Arc<Link>) -> bool {
        match self.state.links.get(&node) {
            Some(known) => known.number == link.number,
            None => self.use_link(node, link),
        }
    }

    /// Whether that node is home to it, or has a replica of it.
    pub fn concerns(&self, node: NodeId) -> bool {
        self.segment.home == node
            || self
                .state
                .home
                .as_ref()
                .is_some_and(|home| home.holders.values().any(|holder| holder.node == node))
    }

    /// The replicas whose home is that node.
    fn each_of_home(&mut self, node: NodeId, mut each: impl FnMut(&mut Self, Replica)) {
        if self.segment.home == node && self.state.home.is_none() {
            for replica in self.state.replicas.keys().copied().collect::<Vec<_>>() {
                each(self, replica);
            }
        }
    }

    /// Which machine decides about a file; `None` if none does any more.
    pub fn whose(&self, mappings: &Arc<Mappings>) -> Option<Replica> {
        let is_it = |file: &NodeFile| Arc::ptr_eq(&file.mappings, mappings);
        if self.state.dead {
            return None;
        }
        if self.state.home.as_ref().is_some_and(|home| is_it(&home.file)) {
            return Some(Replica::HOME);
        }
        let mut replicas = self.state.replicas.iter();
        let side = replicas.find(|(_, side)| is_it(&side.file) && side.machine.is_some());
        side.map(|(number, _)| *number)
    }

    /// Whether whoever faults in a file is to wait for another machine.
    pub fn begins_again(&self, mappings: &Arc<Mappings>) -> bool {
        let is_it = |side: &&ReplicaSide| Arc::ptr_eq(&side.file.mappings, mappings);
        let side = self.state.replicas.values().find(is_it);
        !self.state.dead && side.is_some_and(ReplicaSide::begins_again)
    }

    /// A program touches a page of a file.
    pub fn fault(&mut self, number: Replica, page: PageNo, access: Access) {
        if number == Replica::HOME {
            let event = directory::Event::Fault { page, access };
            self.step_home(event, &Contents::none());
        } else {
            let event = replica::Event::Fault { page, access };
            self.step_replica(number, event, &Contents::none());
        }
    }

    /// What programs may do with a page of a file.
    pub fn holds(&self, number: Replica, page: PageNo) -> Option<Access> {
        if number == Replica::HOME {
            self.state.home.as_ref().and_then(|home| home.access(page))
        } else {
            self.state.replicas.get(&number).and_then(|side| side.access(page))
        }
    }

    /// A page and those behind it that programs may use like it, at most so many bytes.
    pub fn held_like(&self, number: Replica, first: PageNo, bytes_max: u64) -> Run {
        let geometry = &self.segment.geometry;
        let most = u32::try_from(bytes_max / geometry.unit_bytes).unwrap_or(u32::MAX).max(1);
        let end = first.0.saturating_add(most).min(geometry.pages);
        let held = self.holds(number, first);
        let like_it = |page: &u32| self.holds(number, PageNo(*page)) == held;
        let others = (first.0 + 1..end).take_while(like_it).count();
        Run { first, count: 1 + others as u32 }
    }

    /// Answers by hand what no machine here is for.
    pub fn answer(&mut self, node: NodeId, replica: Replica, frame: ToReplica) {
        if let Some(link) = self.state.links.get(&node) {
            link.post(&PeerFrame::ToReplica { id: self.segment.id, replica, frame });
        }
    }

    /// Waits until something changes, at most so long. The lock goes meanwhile.
    pub fn wait(&mut self, at_most: std::time::Duration) {
        self.segment.changed.wait_for(&mut self.state, at_most);
    }
}

impl State {
    /// Takes what home and replicas of this node have said to each other to its ears.
    fn settle(&mut self, segment: &Segment) {
        while let Some(said) = self.local.pop_front() {
            // Contents are where those lie that came by a link.
            let taken = segment.shared.buffers.take();
            let Ok(mut buffer) = taken.map_err(|error| segment.unread(error)) else { continue };
            match said {
                Local::ToHome { frame: ToHome::Part { page, offset }, raw, .. } => {
                    let file = self.home.as_mut().map(|home| &mut home.file);
                    segment.stage(file, (page, offset), &raw);
                }
                Local::ToReplica { to, frame: ToReplica::Part { page, offset }, raw } => {
                    let file = self.replicas.get_mut(&to).map(|side| &mut side.file);
                    segment.stage(file, (page, offset), &raw);
                }
                Local::ToHome { from, frame, raw } => {
                    let raw = buffer.hold(&raw);
                    let contents = Contents::to_home(&segment.geometry, &frame, raw);
                    let contents = contents.expect("it comes from our own machine");
                    let event = directory::Event::Frame { from, frame };
                    self.step_home(segment, event, &contents);
                    forget_parts(self.home.as_mut().map(|home| &mut home.file), &contents);
                }
                Local::ToReplica { to, frame, raw } => {
                    let raw = buffer.hold(&raw);
                    let contents = Contents::to_replica(&segment.geometry, &frame, raw);
                    let contents = contents.expect("it comes from our own machine");
                    self.step_replica(segment, to, replica::Event::Frame(frame), &contents);
                    let file = self.replicas.get_mut(&to).map(|side| &mut side.file);
                    forget_parts(file, &contents);
                }
            }
        }
    }

    fn step_home(&mut self, segment: &Segment, event: directory::Event, contents: &Contents<'_>) {
        let Some(home) = &mut self.home else { return };
        let (late, is_tick) = (home.late(&event), event == directory::Event::Tick);
        let mut effects = std::mem::take(&mut home.effects);
        let said = tracing::enabled!(tracing::Level::TRACE).then(|| format!("{event:?}"));
        home.machine.step(now_ms(), event, &home.records, &mut effects);
        if let Some(event) = said {
            tracing::trace!(op = "page", id = %segment.id, at = "home", event, ?effects);
        }
        for effect in effects.drain(..) {
            self.carry_out_home(segment, effect, contents);
        }
        if let Some(home) = &mut self.home {
            home.effects = effects;
            home.file.show();
            home.tell();
        }
        segment.shared.futexes.ring();
        let Some(home) = &self.home else { return };
        // Who waits for an answer hears of it in time.
        let rests = |page: &PageNo| !is_tick || home.machine.is_at_rest(*page);
        for page in late.into_iter().filter(rests).collect::<Vec<_>>() {
            let event = directory::Event::Fault { page, access: Access::Read };
            self.step_home(segment, event, &Contents::none());
        }
    }

    /// One effect of the directory.
    pub(in crate::memory) fn carry_out_home(
        &mut self,
        segment: &Segment,
        effect: directory::Effect,
        contents: &Contents<'_>,
    ) {
        let Some(home) = &mut self.home else { return };
        let shared = &segment.shared;
        match effect {
            directory::Effect::Record { page, record } => home.records.set(page, &record),
            directory::Effect::Copy(CopyStep::Open(page)) => {
                let opened = home.open(page);
                segment.check(CopyStep::Open(page), opened);
                segment.changed.notify_all();
            }
            directory::Effect::Copy(CopyStep::Wake(page)) => {
                let woken = home.wake(page, &shared.buffers);
                segment.check(CopyStep::Wake(page), woken);
            }
            directory::Effect::Copy(step) => {
                segment.carry_out(&mut home.file, &step, contents);
            }
            directory::Effect::Send { to, frame, from } => {
                self.send_to_replica(segment, to, frame, from);
            }
            directory::Effect::Gone { replica, departure } => {
                let node = home.gone(segment, replica);
                if departure == directory::Departure::Left {
                    self.say_left(segment, replica, node);
                }
            }
            directory::Effect::PageLost { page, owner } => {
                shared.note(Note::PageLost { id: segment.id, page, owner });
            }
            directory::Effect::SetTimer { at_ms } => {
                shared.timers.set(segment.machine(Replica::HOME), at_ms);
            }
            directory::Effect::Break { node, reason } => {
                if let Some(link) = self.links.get(&node) {
                    link.close();
                }
                let why = match reason {
                    directory::Breach::Silent { page, .. } => {
                        format!("shm_ak_timeout is over for page {}", page.0)
                    }
                    reason => format!("{reason:?}"),
                };
                shared.note(Note::Broken { id: segment.id, node, why });
            }
            directory::Effect::Continue => {
                shared.timers.go_on(segment.machine(Replica::HOME));
            }
        }
    }

    /// Answers the goodbye of a replica that was on that node, which is forgotten already.
    fn say_left(&mut self, segment: &Segment, to: Replica, node: Option<NodeId>) {
        let frame = ToReplica::Left;
        if node == Some(segment.shared.me()) {
            self.local.push_back(Local::ToReplica { to, frame, raw: Vec::new() });
        } else if let Some(link) = node.and_then(|node| self.links.get(&node)) {
            link.post(&PeerFrame::ToReplica { id: segment.id, replica: to, frame });
        }
    }

    fn send_to_replica(
        &mut self,
        segment: &Segment,
        to: Replica,
        mut frame: ToReplica,
        from: Place,
    ) {
        let Some(home) = &mut self.home else { return };
        let Some(node) = home.holders.get(&to).map(|holder| holder.node) else { return };
        let link = self.links.get(&node);
        if node != segment.shared.me() && link.is_none() {
            return;
        }
        let (id, replica, local) = (segment.id, to, &mut self.local);
        let mut part = |page, offset, bytes: &[u8]| {
            let frame = ToReplica::Part { page, offset };
            match link {
                Some(link) => link.post_raw(&PeerFrame::ToReplica { id, replica, frame }, bytes),
                None => local.push_back(Local::ToReplica { to, frame, raw: bytes.to_vec() }),
            }
        };
        let mut gathered = Gathered::new(&segment.shared.buffers, &mut part);
        if let ToReplica::Grant { pages, .. } = &mut frame {
            let read = home.file.gather(pages, from, &mut gathered);
            // Without the content it is not said; its bound closes the link.
            if !segment.said(read) {
                return;
            }
        }
        if let Some(link) = link {
            link.post_raw(&PeerFrame::ToReplica { id, replica, frame }, gathered.bytes());
            return;
        }
        let raw = gathered.bytes().to_vec();
        drop(gathered);
        self.local.push_back(Local::ToReplica { to, frame, raw });
    }

    fn ask_for_poisoned(&mut self, segment: &Segment, number: Replica) {
        let Some(side) = self.replicas.get(&number) else { return };
        let poisoned = side.file.mappings.poisoned();
        let pages = poisoned.iter().filter_map(|offset| segment.geometry.page_at(*offset));
        let mut pages: Vec<PageNo> = pages.collect();
        pages.dedup();
        for page in pages.into_iter().take(HEALED_MAX) {
            let event = replica::Event::Fault { page, access: Access::Read };
            self.step_replica(segment, number, event, &Contents::none());
        }
    }

    fn step_replica(
        &mut self,
        segment: &Segment,
        number: Replica,
        event: replica::Event,
        contents: &Contents<'_>,
    ) {
        let Some(side) = self.replicas.get_mut(&number) else { return };
        let Some(machine) = &mut side.machine else { return };
        let mut effects = std::mem::take(&mut side.effects);
        let before = segment.shared.leases.interventions();
        let said = tracing::enabled!(tracing::Level::TRACE).then(|| format!("{event:?}"));
        machine.step(now_ms(), event, &side.records, &mut effects);
        if let Some(event) = said {
            tracing::trace!(op = "page", id = %segment.id, replica = number.0, event, ?effects);
        }
        let mut rest = effects.drain(..).peekable();
        while let Some(effect) = rest.next() {
            segment.shared.go_on_only_if_undisturbed(before);
            let filled = |effect: &replica::Effect| filled(effect, contents);
            let Some((page, content)) = filled(&effect).filter(|_| !segment.geometry.in_parts())
            else {
                self.carry_out_replica(segment, number, effect, contents);
                continue;
            };
            let (most, mut run) = (segment.geometry.buffer_pages(), Run::one(page));
            let goes_on = |next: &replica::Effect, run: Run| {
                filled(next) == Some((PageNo(run.first.0 + run.count), content))
            };
            while run.count < most && rest.next_if(|next| goes_on(next, run)).is_some() {
                run.count += 1;
            }
            if let Some(side) = self.replicas.get_mut(&number) {
                segment.fill_run(&mut side.file, run, content, contents);
            }
        }
        drop(rest);
        if let Some(side) = self.replicas.get_mut(&number) {
            side.effects = effects;
            side.file.show();
            side.tell();
        }
        segment.shared.futexes.ring();
    }

    /// One effect of a replica.
    pub(in crate::memory) fn carry_out_replica(
        &mut self,
        segment: &Segment,
        number: Replica,
        effect: replica::Effect,
        contents: &Contents<'_>,
    ) {
        let Some(side) = self.replicas.get_mut(&number) else { return };
        let shared = &segment.shared;
        match effect {
            replica::Effect::Record { page, record } => side.records.set(page, &record),
            replica::Effect::Copy(step) => segment.carry_out(&mut side.file, &step, contents),
            replica::Effect::Send { frame, from } => {
                self.send_to_home(segment, number, frame, from);
            }
            replica::Effect::Void => {
                side.machine = None;
                let emptied = side.empty();
                segment.check(CopyStep::Punch(whole(segment)), emptied);
                shared.note(Note::Void { id: segment.id, replica: number });
            }
            replica::Effect::Left => {
                side.machine = None;
                shared.note(Note::Left { id: segment.id, replica: number });
                segment.changed.notify_all();
            }
            replica::Effect::SetTimer { at_ms } => {
                shared.timers.set(segment.machine(number), at_ms);
            }
            replica::Effect::Break { reason } => {
                if let Some(link) = self.links.get(&segment.home) {
                    link.close();
                }
                let why = format!("{reason:?}");
                shared.note(Note::Broken { id: segment.id, node: segment.home, why });
            }
            replica::Effect::Continue => match &mut self.stopped {
                Some(stopped) => *stopped = true,
                None => shared.timers.go_on(segment.machine(number)),
            },
        }
    }

    fn send_to_home(&mut self, segment: &Segment, number: Replica, mut frame: ToHome, from: Place) {
        let Some(side) = self.replicas.get_mut(&number) else { return };
        side.leaving |= frame == ToHome::Leave;
        let link = self.links.get(&segment.home);
        if self.home.is_none() && link.is_none() {
            return;
        }
        let (id, replica, local) = (segment.id, number, &mut self.local);
        let mut part = |page, offset, bytes: &[u8]| {
            let frame = ToHome::Part { page, offset };
            match link {
                Some(link) => link.post_raw(&PeerFrame::ToHome { id, replica, frame }, bytes),
                None => {
                    let raw = bytes.to_vec();
                    local.push_back(Local::ToHome { from: number, frame, raw });
                }
            }
        };
        let mut gathered = Gathered::new(&segment.shared.buffers, &mut part);
        let mut gather = |granted: &mut Granted| {
            side.file.gather(std::slice::from_mut(granted), from, &mut gathered)
        };
        let read = match &mut frame {
            ToHome::Recalled { granted, .. } | ToHome::Released { granted } => gather(granted),
            ToHome::Report { pages, .. } => {
                pages.iter_mut().try_for_each(|page| gather(&mut page.granted))
            }
            _ => Ok(()),
        };
        if !segment.said(read) {
            return;
        }
        if let Some(link) = link {
            link.post_raw(&PeerFrame::ToHome { id, replica, frame }, gathered.bytes());
            return;
        }
        let raw = gathered.bytes().to_vec();
        drop(gathered);
        self.local.push_back(Local::ToHome { from: number, frame, raw });
    }
}

/// A frame has been stepped: the parts of its contents are where they belong.
pub(in crate::memory) fn forget_parts(file: Option<&mut NodeFile>, contents: &Contents<'_>) {
    if let Some(file) = file {
        contents.in_parts().iter().for_each(|page| drop(file.staging.remove(page)));
    }
}

/// The page that an effect fills and with what, if that may be done together with its neighbours.
fn filled(effect: &replica::Effect, contents: &Contents<'_>) -> Option<(PageNo, Content)> {
    match effect {
        replica::Effect::Copy(CopyStep::Fill { page, from: Source::Frame(content) }) => {
            let is_at_hand = match content {
                Content::Raw => contents.has(*page),
                Content::Zero => true,
                Content::None | Content::Parts => false,
            };
            is_at_hand.then_some((*page, *content))
        }
        _ => None,
    }
}

fn whole(segment: &Segment) -> Run {
    Run { first: PageNo(0), count: segment.geometry.pages }
}
