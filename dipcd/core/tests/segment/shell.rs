//! The shells of the imaginary nodes: they carry out what the machines say, or are killed in the
//! middle of it.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::sync::Arc;

use dipc_core::copies::{CopyStep, Failure, Place, Records, Source};
use dipc_core::directory::{self, Departure, Directory, Holding, LostPage, PageRecord};
use dipc_core::replica::{self, Copy, CopyRecord};
use dipc_wire::memory::{Access, Content, GrantNo, Granted, PageNo, Replica, ToHome, ToReplica};
use dipc_wire::peer::Piece;

use super::files::{Contents, Files, InWords, Table};
use super::{Bug, Dipcd, Link, Mail, Move, World, node_id};

/// Whose dipcd is at work when this happens.
pub fn dies_of(step: Move) -> Option<usize> {
    match step {
        Move::ToHome(_) | Move::Old(_) | Move::Lose(_) => Some(0),
        Move::Fault(n, ..)
        | Move::ToNode(n)
        | Move::Start(n)
        | Move::EndLease(n)
        | Move::LoseHome(n)
        | Move::Detach(n)
        | Move::Tick(n) => Some(n),
        Move::Write(..)
        | Move::Break(_)
        | Move::Kill(_)
        | Move::Link(_)
        | Move::Attach(_)
        | Move::Flush(_) => None,
    }
}

impl World {
    /// Lets something happen.
    pub fn happen(&mut self, step: Move) {
        self.carried = 0;
        match step {
            Move::Fault(n, page, access) => self.fault(n, page, access),
            Move::Write(n, page) => {
                self.writes += 1;
                let version = self.writes;
                self.latest[page.0 as usize] = version;
                let files = if n == 0 { &mut self.home.files } else { &mut self.node_mut(n).files };
                files.write(page, version);
            }
            Move::ToHome(n) => {
                let link = self.node_mut(n).link.as_mut();
                if let Some(mail) = link.and_then(|link| link.to_home.pop_front()) {
                    self.arrives_at_home(n, mail);
                }
            }
            Move::Old(n) => {
                if let Some(mail) = self.node_mut(n).old.pop_front() {
                    self.arrives_at_home(n, mail);
                }
            }
            Move::ToNode(n) => {
                let link = self.node_mut(n).link.as_mut();
                if let Some(mail) = link.and_then(|link| link.to_node.pop_front()) {
                    self.arrives_at_node(n, mail);
                }
            }
            Move::Break(n) => self.unlink(n),
            Move::Kill(0) => self.kill_home(),
            Move::Kill(n) => self.kill_node(n),
            Move::Start(0) => self.start_home(),
            Move::Start(n) => self.start_node(n),
            Move::Link(n) => self.link(n),
            Move::EndLease(n) => self.end_lease(n),
            Move::Lose(n) => {
                self.losses += 1;
                self.node_mut(n).declared = true;
                self.tell_home(directory::Event::Lost { node: node_id(n) }, &vec![]);
            }
            Move::LoseHome(n) => {
                self.node_mut(n).home_lost = true;
                self.tell_node(n, replica::Event::HomeLost, &vec![]);
            }
            Move::Detach(n) => {
                self.node_mut(n).attached = false;
                self.node_mut(n).waits.clear();
                self.tell_node(n, replica::Event::Detached, &vec![]);
            }
            Move::Attach(n) => {
                self.node_mut(n).attached = true;
                match self.node(n).number {
                    Some(_) => self.tell_node(n, replica::Event::Attached, &vec![]),
                    None => self.join(n),
                }
            }
            Move::Tick(0) => {
                self.home.timer_ms = None;
                self.tell_home(directory::Event::Tick, &vec![]);
            }
            Move::Tick(n) => {
                self.node_mut(n).timer_ms = None;
                self.tell_node(n, replica::Event::Tick, &vec![]);
            }
            Move::Flush(n) => self.flush(n),
        }
        self.finish(step);
    }

    /// What follows of it by itself: a dipcd that was to die has died, and links are closed.
    fn finish(&mut self, step: Move) {
        if self.cut.take().is_some() {
            match dies_of(step) {
                Some(0) | None => self.kill_home(),
                Some(n) => self.kill_node(n),
            }
            if let Move::EndLease(n) = step {
                self.end_lease(n);
            }
        }
        for n in std::mem::take(&mut self.closing) {
            self.unlink(n);
        }
    }

    /// Lets something happen, and kills the dipcd that it happens to after so many effects.
    pub fn happen_cut(&mut self, step: Move, after: usize) {
        self.cut = Some(after);
        self.happen(step);
    }

    fn fault(&mut self, n: usize, page: PageNo, access: Access) {
        let waits = if n == 0 { &mut self.home.waits } else { &mut self.node_mut(n).waits };
        let wanted = waits.get(&page).map_or(access, |wanted| access.max(*wanted));
        waits.insert(page, wanted);
        self.fault_again(n, page);
    }

    /// The kernel says so again: a thread that was woken found no page.
    fn fault_again(&mut self, n: usize, page: PageNo) {
        if n == 0 {
            if let Some(&access) = self.home.waits.get(&page) {
                self.tell_home(directory::Event::Fault { page, access }, &vec![]);
            }
        } else if let Some(&access) = self.node(n).waits.get(&page) {
            self.tell_node(n, replica::Event::Fault { page, access }, &vec![]);
        }
    }

    fn fail(&mut self, what: impl Into<String>) {
        self.wrong.get_or_insert(what.into());
    }

    /// Whether the dipcd at work is killed now, with an effect in its hand.
    fn is_cut(&mut self) -> bool {
        self.carried += 1;
        self.cut.is_some_and(|after| self.carried > after)
    }

    fn arrives_at_home(&mut self, n: usize, mut mail: Mail<ToHome>) {
        let replica = mail.replica;
        if self.home.joined.get(&replica) != Some(&n) {
            if let ToHome::Report { piece: Piece::Last, .. } = mail.frame {
                self.post_to_node(n, replica, ToReplica::Left, vec![]);
            }
            return;
        }
        match (self.terms.bug, &mut mail.frame) {
            (Bug::GrantsWithoutNumber, ToHome::Ack { pages }) => {
                for (page, number) in pages {
                    *number = self.recorded(*page).number;
                }
            }
            (Bug::TakesOldCopies, ToHome::Released { granted }) => self.trust(granted, replica),
            (Bug::TakesOldCopies, ToHome::Report { pages, .. }) => {
                pages.iter_mut().for_each(|report| self.trust(&mut report.granted, replica));
            }
            (Bug::ForgetsFaults, ToHome::Fault { .. }) if self.is_home_busy() => return,
            _ => {}
        }
        let event = directory::Event::Frame { from: replica, frame: mail.frame };
        self.tell_home(event, &mail.contents);
    }

    pub(super) fn is_home_busy(&self) -> bool {
        self.home.directory.as_ref().is_some_and(|directory| directory.busy() > 0)
    }

    fn recorded(&self, page: PageNo) -> PageRecord {
        self.home.records.get(page)
    }

    /// A planted bug: a copy is taken for that of the latest grant, and its sender for the owner.
    fn trust(&mut self, granted: &mut Granted, replica: Replica) {
        let mut record = self.recorded(granted.page);
        if granted.content == Content::None {
            return;
        }
        granted.number = record.number;
        if let Holding::Owned { owner, .. } = &mut record.holding {
            *owner = replica;
            self.home.records.set(granted.page, record);
        }
    }

    fn arrives_at_node(&mut self, n: usize, mut mail: Mail<ToReplica>) {
        let Mail { replica, .. } = mail;
        if self.node(n).number != Some(replica) {
            if mail.frame == ToReplica::ReportPlease {
                let report = ToHome::Report { pages: vec![], piece: Piece::Last };
                self.post_to_home(n, replica, report, vec![]);
                self.post_to_home(n, replica, ToHome::Leave, vec![]);
            }
            return;
        }
        if let (Bug::GrantsWithoutNumber, ToReplica::Grant { pages, .. }) =
            (self.terms.bug, &mut mail.frame)
        {
            for granted in pages {
                self.forget_grant(n, granted);
            }
        }
        if let ToReplica::AckPlease { .. } = mail.frame
            && self.terms.bug != Bug::AcksAtLeisure
        {
            self.flush(n);
        }
        if let ToReplica::Grant { pages, access: Access::Read } = &mail.frame {
            let unasked = pages.iter().filter(|one| !self.node(n).waits.contains_key(&one.page));
            self.read_ahead += u32::try_from(unasked.count()).expect("few pages");
        }
        self.tell_node(n, replica::Event::Frame(mail.frame), &mail.contents);
    }

    /// A planted bug: a grant is taken for a new one, of a page that was only read here.
    fn forget_grant(&mut self, n: usize, granted: &mut Granted) {
        let mut newest: CopyRecord = self.node(n).records.get(granted.page);
        granted.number = GrantNo(newest.number.0 + 1);
        if newest.copy == Copy::Owned {
            newest.copy = Copy::Shared;
            self.node_mut(n).records.set(granted.page, newest);
        }
    }

    fn post_to_home(&mut self, n: usize, replica: Replica, frame: ToHome, contents: Contents) {
        let Some(link) = &mut self.node_mut(n).link else { return };
        let (is_ack, is_question) =
            (matches!(frame, ToHome::Ack { .. }), matches!(frame, ToHome::Fault { .. }));
        let mail = Mail { replica, frame, contents };
        if is_ack {
            return link.put_off.push(mail);
        }
        if is_question {
            link.to_home.push_back(mail);
            return self.flush(n);
        }
        link.to_home.extend(link.put_off.drain(..));
        link.to_home.push_back(mail);
    }

    /// What was put off is on its way.
    fn flush(&mut self, n: usize) {
        if let Some(link) = &mut self.node_mut(n).link {
            link.to_home.extend(link.put_off.drain(..));
        }
    }

    fn post_to_node(&mut self, n: usize, replica: Replica, frame: ToReplica, contents: Contents) {
        if let Some(link) = &mut self.node_mut(n).link {
            link.to_node.push_back(Mail { replica, frame, contents });
        }
    }

    /// An event at home, and what follows from it there.
    fn tell_home(&mut self, event: directory::Event, arrived: &Contents) {
        let mut events = vec![event];
        while let Some(event) = events.pop() {
            let Some(directory) = &mut self.home.directory else { return };
            let mut effects = Vec::new();
            directory.step(self.now_ms, event, &self.home.records, &mut effects);
            for effect in effects {
                if self.is_cut() {
                    return;
                }
                match effect {
                    directory::Effect::Continue => events.push(directory::Event::Continue),
                    effect => self.at_home(effect, arrived, &mut events),
                }
            }
        }
    }

    fn at_home(
        &mut self,
        effect: directory::Effect,
        arrived: &Contents,
        events: &mut Vec<directory::Event>,
    ) {
        match effect {
            directory::Effect::Record { page, record } => self.home.records.set(page, record),
            directory::Effect::Copy(step) => {
                if let Err(what) = self.home.files.carry_out(step, arrived) {
                    self.fail(format!("{what}, at home: {step:?}"));
                }
                if let Some(page) = self.woken(0, step) {
                    let access = self.home.waits[&page];
                    events.push(directory::Event::Fault { page, access });
                }
            }
            directory::Effect::Send { to, frame, from } => self.home_sends(to, frame, from, events),
            directory::Effect::Gone { replica, departure } => {
                if let Some(n) = self.home.joined.remove(&replica)
                    && departure == Departure::Left
                {
                    self.post_to_node(n, replica, ToReplica::Left, vec![]);
                }
            }
            directory::Effect::PageLost { page, .. } => self.page_lost(page),
            directory::Effect::SetTimer { at_ms } => self.home.timer_ms = Some(at_ms),
            directory::Effect::Break { node, reason } => {
                if !matches!(reason, directory::Breach::Silent { .. }) {
                    self.fail(format!("home breaks the link of {node}: {reason:?}"));
                }
                self.closing.push(usize::from(node.number()));
            }
            directory::Effect::Continue => {}
        }
    }

    fn home_sends(
        &mut self,
        to: Replica,
        frame: ToReplica,
        from: Place,
        events: &mut Vec<directory::Event>,
    ) {
        let Some(&n) = self.home.joined.get(&to) else { return };
        let mut contents = Vec::new();
        if let ToReplica::Grant { pages, access } = &frame {
            for Granted { page, content, .. } in pages {
                if *content == Content::None {
                    continue;
                }
                match self.home.files.at(*page, from) {
                    Some(version) => contents.push((*page, version)),
                    None => self.fail("LOST WRITE: home has nothing to grant"),
                }
                if self.terms.bug == Bug::FreesBeforeAck && *access == Access::Write {
                    self.home.files.drop_aside(*page);
                }
            }
        }
        if let (Bug::GrantsBeforeInvalidated, ToReplica::Invalidate { page, number }) =
            (self.terms.bug, &frame)
        {
            let frame = ToHome::Invalidated { page: *page, number: *number };
            events.push(directory::Event::Frame { from: to, frame });
        }
        self.post_to_node(n, to, frame, contents);
    }

    /// What a dead node had is gone, or what home had kept is true again.
    fn page_lost(&mut self, page: PageNo) {
        if self.losses == 0 {
            self.fail(format!("{page:?} is lost, and no node was"));
        }
        let at = page.0 as usize;
        match (self.terms.home.lost_page, self.home.files.at(page, Place::Aside)) {
            (LostPage::Stale, Some(version)) => self.latest[at] = version,
            _ => self.lost[at] = true,
        }
    }

    /// A thread is woken: the page it still waits for, if it does.
    fn woken(&mut self, n: usize, step: CopyStep) -> Option<PageNo> {
        let lost = &self.lost;
        let home_lost = n > 0 && self.node(n).home_lost;
        let (files, waits) = match n {
            0 => (&self.home.files, &mut self.home.waits),
            n => {
                let node = Arc::make_mut(&mut self.nodes[n - 1]);
                (&node.files, &mut node.waits)
            }
        };
        match step {
            CopyStep::Wake(page) => {
                let wanted = *waits.get(&page)?;
                if files.allows(page, wanted) {
                    waits.remove(&page);
                    return None;
                }
                Some(page)
            }
            CopyStep::Fail { page, failure } => {
                let is_due = match failure {
                    Failure::TimedOut => true,
                    Failure::Gone if home_lost => true,
                    Failure::Gone | Failure::Lost => lost[page.0 as usize],
                };
                if !is_due {
                    self.wrong = Some(format!("SIGBUS on {page:?}, which is not lost"));
                }
                waits.remove(&page);
                None
            }
            _ => None,
        }
    }

    /// An event at a node, and what follows from it there.
    fn tell_node(&mut self, n: usize, event: replica::Event, arrived: &Contents) {
        let mut events = vec![event];
        // What a shell with a bug has in its hand instead of the aside file.
        let mut hand = Contents::new();
        while let Some(event) = events.pop() {
            let now_ms = self.now_ms;
            let node = self.node_mut(n);
            let Dipcd::Runs(Some(machine)) = &mut node.dipcd else { return };
            let mut effects = Vec::new();
            machine.step(now_ms, event, &node.records, &mut effects);
            for effect in effects {
                if self.is_cut() {
                    return;
                }
                match effect {
                    replica::Effect::Continue => events.push(replica::Event::Continue),
                    effect => self.at_node(n, effect, arrived, &mut hand, &mut events),
                }
            }
        }
    }

    fn at_node(
        &mut self,
        n: usize,
        effect: replica::Effect,
        arrived: &Contents,
        hand: &mut Contents,
        events: &mut Vec<replica::Event>,
    ) {
        match effect {
            replica::Effect::Record { page, record } => {
                self.node_mut(n).records.set(page, record);
            }
            replica::Effect::Copy(step) => {
                self.copy_at_node(n, step, arrived, hand);
                if let Some(page) = self.woken(n, step) {
                    let access = self.node(n).waits[&page];
                    events.push(replica::Event::Fault { page, access });
                }
            }
            replica::Effect::Send { frame, from } => self.node_sends(n, frame, from, hand),
            replica::Effect::Void => {
                self.forget_replica(n);
                if self.node(n).attached {
                    self.join(n);
                }
            }
            replica::Effect::Left => {
                self.forget_replica(n);
                if self.node(n).attached {
                    self.join(n);
                }
            }
            replica::Effect::SetTimer { at_ms } => self.node_mut(n).timer_ms = Some(at_ms),
            replica::Effect::Break { reason } => {
                self.fail(format!("node {n} breaks its link: {reason:?}"));
            }
            replica::Effect::Continue => {}
        }
    }

    fn copy_at_node(&mut self, n: usize, step: CopyStep, arrived: &Contents, hand: &mut Contents) {
        if let (Bug::PunchesWithoutAside, CopyStep::Keep { page, from: Source::Node }) =
            (self.terms.bug, step)
        {
            hand.extend(self.node(n).files.read(page).map(|version| (page, version)));
            return;
        }
        if let Err(what) = self.node_mut(n).files.carry_out(step, arrived) {
            self.fail(format!("{what}, at node {n}: {step:?}"));
        }
    }

    fn node_sends(&mut self, n: usize, frame: ToHome, from: Place, hand: &Contents) {
        let raw: Vec<PageNo> = match &frame {
            ToHome::Recalled { granted, .. } | ToHome::Released { granted } => vec![granted.page],
            ToHome::Report { pages, .. } => {
                let raw = pages.iter().filter(|report| report.granted.content == Content::Raw);
                raw.map(|report| report.granted.page).collect()
            }
            _ => vec![],
        };
        let mut contents = Vec::new();
        for page in raw {
            let held = hand.iter().find(|(at, _)| *at == page).map(|(_, version)| *version);
            match held.or(self.node(n).files.at(page, from)) {
                Some(version) => contents.push((page, version)),
                None => self.fail("LOST WRITE: a replica has nothing to send"),
            }
        }
        if let Some(replica) = self.node(n).number {
            self.post_to_home(n, replica, frame, contents);
        }
    }

    fn forget_replica(&mut self, n: usize) {
        let pages = self.terms.home.pages as usize;
        let node = self.node_mut(n);
        node.number = None;
        node.dipcd = Dipcd::Runs(None);
        node.records = Table::new(pages);
        node.files = Files::empty(pages);
        node.timer_ms = None;
    }

    /// A node attaches under a new number. In life that is an exchange on the link.
    fn join(&mut self, n: usize) {
        let Some(directory) = &self.home.directory else { return };
        if self.node(n).link.is_none() {
            return;
        }
        let replica = directory.vacant().expect("few replicas");
        let cut = self.cut.take();
        self.home.joined.insert(replica, n);
        self.tell_home(directory::Event::Joined { replica, node: node_id(n) }, &vec![]);
        self.cut = cut;
        self.node_mut(n).number = Some(replica);
        self.start_machine(n);
        self.tell_node(n, replica::Event::LinkUp, &vec![]);
    }

    /// The machine of a node begins, and its programs fault again.
    fn start_machine(&mut self, n: usize) {
        let mut undone = Vec::new();
        let machine =
            replica::Replica::start(self.terms.replica, &self.node(n).records, |effect| {
                undone.push(effect)
            });
        self.node_mut(n).dipcd = Dipcd::Runs(Some(machine));
        for effect in undone {
            if self.is_cut() {
                return;
            }
            self.at_node(n, effect, &vec![], &mut vec![], &mut vec![]);
        }
        if self.node(n).fenced {
            self.tell_node(n, replica::Event::LeaseEnded, &vec![]);
        }
        let waits: Vec<_> = self.node(n).waits.keys().copied().collect();
        waits.into_iter().for_each(|page| self.fault_again(n, page));
    }

    fn start_node(&mut self, n: usize) {
        self.node_mut(n).dipcd = Dipcd::Runs(None);
        if self.node(n).number.is_some() {
            self.start_machine(n);
            if !self.node(n).attached {
                self.tell_node(n, replica::Event::Detached, &vec![]);
            }
        }
    }

    fn start_home(&mut self) {
        let joined = match self.terms.bug {
            Bug::ServesBeforeReports => BTreeMap::new(),
            _ => self.home.joined.clone(),
        };
        let waiting_for = joined.into_iter().map(|(replica, n)| (replica, node_id(n)));
        let mut undone = Vec::new();
        let directory = Directory::start(
            self.terms.home,
            self.now_ms,
            &self.home.records,
            waiting_for,
            |effect| undone.push(effect),
        );
        self.home.directory = Some(directory);
        for effect in undone {
            if self.is_cut() {
                return;
            }
            self.at_home(effect, &vec![], &mut vec![]);
        }
        let waits: Vec<_> = self.home.waits.keys().copied().collect();
        waits.into_iter().for_each(|page| self.fault_again(0, page));
    }

    fn kill_home(&mut self) {
        self.home.directory = None;
        self.home.timer_ms = None;
        for n in self.others() {
            self.unlink(n);
        }
    }

    fn kill_node(&mut self, n: usize) {
        self.node_mut(n).dipcd = Dipcd::Dead;
        self.node_mut(n).timer_ms = None;
        self.unlink(n);
    }

    fn unlink(&mut self, n: usize) {
        let accepts_old = self.terms.bug == Bug::AcceptsOldLink;
        let node = self.node_mut(n);
        let Some(link) = node.link.take() else { return };
        if accepts_old {
            node.old = link.to_home;
        }
        self.tell_home(directory::Event::Unlinked { node: node_id(n) }, &vec![]);
        self.tell_node(n, replica::Event::LinkDown, &vec![]);
    }

    /// A new link: home asks for what it thinks is there, the node reports what it has.
    fn link(&mut self, n: usize) {
        self.node_mut(n).link = Some(Link::default());
        self.node_mut(n).declared = false;
        self.node_mut(n).home_lost = false;
        let joined = self.home.joined.iter().filter(|(_, at)| **at == n);
        let joined: Vec<_> = joined.map(|(replica, _)| *replica).collect();
        for replica in joined {
            if self.node(n).number != Some(replica) {
                self.post_to_node(n, replica, ToReplica::ReportPlease, vec![]);
            }
        }
        let fenced = std::mem::take(&mut self.node_mut(n).fenced);
        if self.node(n).number.is_none() {
            if self.node(n).attached {
                self.join(n);
            }
            return;
        }
        self.tell_node(n, replica::Event::LinkUp, &vec![]);
        if fenced {
            self.tell_node(n, replica::Event::LeaseRestored, &vec![]);
        }
    }

    /// dipcd ends the lease, or the keeper if that is dead.
    fn end_lease(&mut self, n: usize) {
        self.node_mut(n).fenced = true;
        if self.runs(n) {
            return self.tell_node(n, replica::Event::LeaseEnded, &vec![]);
        }
        if self.terms.bug == Bug::LeaseDiesWithDipcd {
            return;
        }
        let mut effects = Vec::new();
        let whole = dipc_core::copies::Run { first: PageNo(0), count: self.terms.home.pages };
        effects.push(replica::Effect::Copy(CopyStep::Protect(whole)));
        for round in [replica::Round::Readable, replica::Round::Owned] {
            let (pages, records) = (self.terms.home.pages, &self.node(n).records);
            replica::revoke(round, PageNo(0), pages, records, &mut effects);
        }
        for effect in effects {
            self.at_node(n, effect, &vec![], &mut vec![], &mut vec![]);
        }
    }
}

/// Whether a node's record says that it owns a page.
pub fn owns(records: &Table<<CopyRecord as InWords>::Words>, page: PageNo) -> bool {
    let record: CopyRecord = records.get(page);
    matches!(record.copy, Copy::Owned | Copy::OwnedAside)
}
