//! All segments of this node: which there are, their files, and who is attaching.
//!
//! Lock order: the table of segments, then a segment's own lock, then the count of attaches.
#![forbid(unsafe_code)]

use crossbeam_channel::{Receiver, Sender, unbounded};
use parking_lot::{Condvar, Mutex, RwLock};
use std::collections::{BTreeMap, HashMap};
use std::io;
use std::sync::atomic::{AtomicU8, AtomicU64, AtomicUsize};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use dipc_core::directory::Directory;
use dipc_core::replica;
use dipc_wire::client::{AttachmentNo, Mm};
use dipc_wire::ids::{NodeId, ObjectId};
use dipc_wire::keeper::{Held, SegmentFile};
use dipc_wire::memory::{Access, Replica};
use dipc_wire::sysv::SysvError;

use super::attach::Pending;
use super::families::{Ended, Families, Fault, Faults, Mappings, Patience};
use super::files::ReplicaFile;
use super::geometry::Geometry;
use super::leases::Leases;
use super::pager::bounds::Bounds;
use super::pager::content::Contents;
use super::pager::home_side::HomeSide;
use super::pager::node_file::NodeFile;
use super::pager::replica_side::ReplicaSide;
use super::pager::segment::{Locked, Segment};
use super::pager::shared::{Note, Shared};
use super::pager::timers::Machine;
use super::records::{CopyRecords, HomeRecords};
use super::segments::Segments;
use crate::clock::{Deadline, now_ms};
use crate::config::{Liveness, ShmSignals};
use crate::keep::Keep;

/// After so many times `node_timeout` without a lease its home is not waited for any more.
const GIVEN_UP: u32 = 10;

/// How much is opened at a touch, if the replica has it.
const OPENED_BYTES_MAX: u64 = 256 << 10;
/// Between two looks of a call that waits for a page.
const WAIT: Duration = Duration::from_secs(1);

/// Shared memory on this node.
pub struct Memory {
    pub(super) shared: Arc<Shared>,
    pub(super) keep: Arc<Keep>,
    /// What this node is home to.
    pub(super) homes: Arc<Segments>,
    families: OnceLock<Families>,
    table: RwLock<HashMap<ObjectId, Arc<Segment>>>,
    /// Attaches under way, by segment: as long as there is one, nothing leaves.
    attaching: Mutex<HashMap<ObjectId, u32>>,
    pub(super) pending: Mutex<HashMap<AttachmentNo, Pending>>,
    pub(super) last_attachment: AtomicU64,
    /// For who waits for a lease.
    waiting: Mutex<()>,
    answered: Condvar,
    /// For the thread of errands, until it takes it.
    pub(super) notes: Mutex<Option<Receiver<Note>>>,
    note: Sender<Note>,
    /// Whose end is not noted yet, and the right to note it.
    pub(super) ends: Mutex<Vec<Ended>>,
    pub(super) noting: Mutex<()>,
    /// Questions of other nodes that are served beside their worker.
    pub(super) beside: AtomicUsize,
}

impl Memory {
    /// No segment yet.
    pub fn new(
        keep: Arc<Keep>,
        homes: Arc<Segments>,
        me: Arc<AtomicU8>,
    ) -> io::Result<Arc<Memory>> {
        let (note, notes) = unbounded();
        let leases = Leases::open(homes.dir().parent().unwrap_or(homes.dir()))?;
        Ok(Arc::new(Memory {
            shared: Arc::new(Shared::new(leases, note.clone(), me)),
            keep,
            homes,
            families: OnceLock::new(),
            table: RwLock::default(),
            attaching: Mutex::default(),
            pending: Mutex::default(),
            // Numbers of an earlier dipcd are not used again.
            last_attachment: AtomicU64::new(now_ms() << 20),
            waiting: Mutex::default(),
            answered: Condvar::new(),
            notes: Mutex::new(Some(notes)),
            note,
            ends: Mutex::default(),
            noting: Mutex::default(),
            beside: AtomicUsize::new(0),
        }))
    }

    /// Begins to serve programs. The keeper hears how long it may take to end a lease.
    pub fn open_families(self: &Arc<Self>, liveness: &Liveness) -> io::Result<()> {
        let lease = liveness.lease + liveness.lease / 50;
        let leases = &self.shared.leases;
        leases.set_room(liveness.node_timeout.saturating_sub(lease));
        let patience = Arc::new(Patience::new(leases.patience()));
        let families = Families::new(self.keep.clone(), self.clone(), patience)?;
        self.families.get_or_init(|| families);
        Ok(())
    }

    /// Who maps what.
    pub fn families(&self) -> &Families {
        self.families.get().expect("opened before the first call is served")
    }

    /// Something to be done by the thread of errands.
    pub(super) fn note(&self, note: Note) {
        // It lives as long as we do.
        let _ = self.note.send(note);
    }

    /// A segment that is in use on this node.
    pub fn find(&self, id: ObjectId) -> Option<Arc<Segment>> {
        self.table.read().get(&id).cloned()
    }

    /// All of them.
    pub fn all(&self) -> Vec<Arc<Segment>> {
        self.table.read().values().cloned().collect()
    }

    /// A segment of this home, ready to be used by nodes.
    pub(super) fn at_home(&self, id: ObjectId, bounds: &Bounds) -> Result<Arc<Segment>, SysvError> {
        if let Some(segment) = self.find(id) {
            return Ok(segment);
        }
        let mut table = self.table.write();
        if let Some(segment) = table.get(&id) {
            return Ok(segment.clone());
        }
        let geometry = self.homes.geometry(id).ok_or(SysvError::EINVAL)?;
        let home = self.shared.me();
        let segment = Segment::new(id, home, geometry, self.shared.clone());
        let name = SegmentFile { id, home, replica: Replica::HOME };
        let opened =
            self.new_file(name, geometry).and_then(|file| self.open_home(&segment, file, bounds));
        opened.map_err(|error| {
            tracing::error!(op = "attach", %id, %error);
            SysvError::ENOMEM
        })?;
        let segment = Arc::new(segment);
        table.insert(id, segment.clone());
        Ok(segment)
    }

    /// Starts the directory of a segment, new or left by an earlier dipcd.
    pub(super) fn open_home(
        &self,
        segment: &Segment,
        mut file: NodeFile,
        bounds: &Bounds,
    ) -> io::Result<()> {
        file.became = (bounds.signals == ShmSignals::Sent).then(Vec::new);
        let (id, geometry) = (segment.id, segment.geometry);
        let dir = self.homes.dir_of(id);
        let records = HomeRecords::open(&dir, geometry.pages)?;
        let holders = self.homes.replicas(id);
        if !holders.is_empty() {
            file.mappings.watch();
        }
        let config = bounds.of_home(&geometry);
        let mut effects = Vec::new();
        let waiting: Vec<_> =
            holders.iter().map(|(replica, holder)| (*replica, holder.node)).collect();
        let machine = Directory::start(config, now_ms(), &records, waiting, |effect| {
            effects.push(effect);
        });
        let segments = self.homes.clone();
        let side = HomeSide::new(machine, records, file, holders, segments, geometry);
        let mut locked = segment.lock();
        locked.state.home = Some(side);
        for effect in effects {
            locked.state.carry_out_home(segment, effect, &Contents::none());
        }
        self.shared.futexes.ring();
        Ok(())
    }

    /// A segment of another home, or whose readers' files on this node are meant.
    pub(super) fn elsewhere(&self, id: ObjectId, home: NodeId, geometry: Geometry) -> Arc<Segment> {
        let mut table = self.table.write();
        let fresh = || Arc::new(Segment::new(id, home, geometry, self.shared.clone()));
        table.entry(id).or_insert_with(fresh).clone()
    }

    /// Starts a replica of this node, new or left by an earlier dipcd.
    pub(super) fn open_replica(
        &self,
        locked: &mut Locked<'_>,
        segment: &Segment,
        number: Replica,
        mut file: NodeFile,
        bounds: &Bounds,
    ) -> io::Result<()> {
        file.became = (bounds.signals == ShmSignals::Sent).then(Vec::new);
        let geometry = segment.geometry;
        let dir = self.homes.dir_of(segment.id);
        crate::disk::make_private_dir(&dir)?;
        let records = CopyRecords::open(&dir, number, geometry.pages)?;
        file.mappings.watch_all();
        let mut effects: Vec<replica::Effect> = Vec::new();
        let config = bounds.of_replica(&geometry);
        let machine = replica::Replica::start(config, &records, |effect| effects.push(effect));
        let side = ReplicaSide::new(machine, records, file, geometry);
        locked.state.replicas.insert(number, side);
        for effect in effects {
            locked.state.carry_out_replica(segment, number, effect, &Contents::none());
        }
        self.shared.futexes.ring();
        Ok(())
    }

    /// A file of holes, kept from now on.
    pub(super) fn new_file(&self, name: SegmentFile, geometry: Geometry) -> io::Result<NodeFile> {
        let file = Arc::new(ReplicaFile::create(name, geometry.file_bytes)?);
        self.keep.hold(Held::File(name), file.content());
        self.keep.hold(Held::Aside(name), file.aside());
        let mappings = self.families().mappings(file.clone());
        Ok(NodeFile::new(file, mappings, geometry))
    }

    /// Lets go of a file.
    pub(super) fn drop_file(&self, name: SegmentFile) {
        self.shared.futexes.forget(name);
        self.keep.release(&Held::File(name));
        self.keep.release(&Held::Aside(name));
    }

    /// A segment is used here no more, unless somebody attaches.
    pub(super) fn forget(&self, id: ObjectId) {
        let mut table = self.table.write();
        let Some(segment) = table.get(&id) else { return };
        let locked = segment.lock();
        let unused = locked.state.home.is_none() && locked.state.replicas.is_empty();
        if unused && self.is_quiet(id) {
            drop(locked);
            table.remove(&id);
        }
    }

    /// Whether nobody attaches just now.
    pub(super) fn is_quiet(&self, id: ObjectId) -> bool {
        !self.attaching.lock().contains_key(&id)
    }

    /// How many attach just now.
    pub(super) fn attaches(&self, id: ObjectId) -> u32 {
        self.attaching.lock().get(&id).copied().unwrap_or(0)
    }

    /// Somebody begins to attach; until this is dropped no replica of the segment leaves.
    pub(super) fn begin_attach(self: &Arc<Self>, id: ObjectId) -> Attaching {
        *self.attaching.lock().entry(id).or_default() += 1;
        Attaching { memory: self.clone(), id }
    }

    /// A replica without an attachment says goodbye to its home.
    pub(super) fn settle(&self, id: ObjectId) {
        let Some(segment) = self.find(id) else { return };
        let mut locked = segment.lock();
        if !self.is_quiet(id) {
            return;
        }
        let unused: Vec<_> = locked
            .state
            .replicas
            .iter()
            .filter(|(_, side)| !side.leaving && side.file.mappings.attachments().is_empty())
            .map(|(number, _)| *number)
            .collect();
        for number in unused {
            locked.step_replica(number, replica::Event::Detached, &Contents::none());
        }
    }

    /// Does what the machines' times want, until the end.
    pub fn keep_time(&self) {
        while let Some((machine, due)) = self.shared.timers.next() {
            match machine {
                Machine::Page(id, replica) => {
                    if let Some(segment) = self.find(id) {
                        segment.lock().due(replica, due);
                    }
                }
                Machine::Lease(home) => self.look_at_lease(home),
            }
        }
    }

    /// Looks after who sleeps on words of pages that have left, until the end.
    pub fn look_after_sleepers(&self) {
        self.shared.futexes.run(&|mappings, offset| {
            self.fetch_for_sleepers(mappings, offset);
        });
    }

    fn fetch_for_sleepers(&self, mappings: &Arc<Mappings>, offset: u64) {
        let Some(segment) = self.find(mappings.file().name().id) else { return };
        let Some(page) = segment.geometry.page_at(offset) else { return };
        let mut locked = segment.lock();
        let Some(number) = locked.whose(mappings) else { return };
        if locked.holds(number, page).is_none() {
            return locked.fault(number, page, Access::Read);
        }
        if let Some(span) = segment.geometry.span(page) {
            self.shared.futexes.came(mappings.file(), span);
        }
    }

    /// A home has answered the heartbeat that was sent at this time.
    pub fn answered(&self, home: NodeId, sent_ms: u64, lease: Duration) {
        let lease_ms = u64::try_from(lease.as_millis()).unwrap_or(u64::MAX);
        let leases = &self.shared.leases;
        let runs_again = leases.answered(home, sent_ms, lease_ms);
        self.shared.timers.set(Machine::Lease(home), leases.ends_ms(home));
        if runs_again {
            self.all_of(home).iter().for_each(|segment| segment.lock().lease_runs());
            self.answered.notify_all();
        }
    }

    /// A lease may be over: access to the pages of that home is taken away.
    pub(super) fn look_at_lease(&self, home: NodeId) {
        let leases = &self.shared.leases;
        let ends_ms = leases.ends_ms(home);
        if !leases.is_over(home) {
            return self.shared.timers.set(Machine::Lease(home), ends_ms);
        }
        let began = Instant::now();
        let patience = self.families().patience();
        patience.hurry();
        leases.works();
        let all = self.all_of(home);
        // Writing ends everywhere first: that is soon done.
        for segment in &all {
            segment.lock().look_at_lease();
            leases.works();
        }
        for segment in &all {
            // Its lock goes in between.
            while segment.lock().close_some() {
                leases.works();
            }
        }
        patience.relax();
        leases.set_ended(home, ends_ms);
        if !all.is_empty() {
            tracing::info!(op = "lease", peer = %home, took = ?began.elapsed(),
                "over; its pages are taken away");
        }
    }

    /// Waits until the pages of a home may be used; `false` at the deadline.
    pub(super) fn await_lease(&self, home: NodeId, deadline: Deadline) -> bool {
        let mut waiting = self.waiting.lock();
        while self.shared.leases.is_over(home) && !deadline.is_over() {
            self.answered.wait_for(&mut waiting, deadline.left().min(WAIT));
        }
        !self.shared.leases.is_over(home)
    }

    fn all_of(&self, home: NodeId) -> Vec<Arc<Segment>> {
        let mut all = self.all();
        all.retain(|segment| segment.home == home);
        all
    }

    /// Now and then: see [`super::pager::timers::Timers::nudge`]; and homes are given up.
    pub fn nudge(&self, node_timeout: Duration) {
        self.shared.timers.nudge();
        let patience_ms = u64::try_from((node_timeout * GIVEN_UP).as_millis()).unwrap_or(u64::MAX);
        let me = self.shared.me();
        for segment in self.all().iter().filter(|segment| segment.home != me) {
            let ends_ms = self.shared.leases.ends_ms(segment.home);
            if ends_ms.saturating_add(patience_ms) < now_ms() && self.is_quiet(segment.id) {
                self.give_up(segment);
            }
        }
    }

    /// Its home will not come back: what is kept for it ends with the last attachment here.
    fn give_up(&self, segment: &Segment) {
        let locked = segment.lock();
        for (number, side) in &locked.state.replicas {
            if side.file.mappings.attachments().is_empty() {
                self.note(Note::GivenUp { id: segment.id, replica: *number });
            }
        }
    }

    /// Has a page opened to one program of the mprotect trap; waits until the replica holds it.
    pub fn touched(
        &self,
        mm: Mm,
        mappings: &Arc<Mappings>,
        offset: u64,
        access: Access,
    ) -> Result<(), SysvError> {
        let segment = self.find(mappings.file().name().id).ok_or(SysvError::EIDRM)?;
        let page = segment.geometry.page_at(offset).ok_or(SysvError::EINVAL)?;
        let span = segment.geometry.span(page).ok_or(SysvError::EINVAL)?;
        let mut locked = segment.lock();
        let (number, held) = loop {
            let Some(number) = locked.whose(mappings) else {
                if !locked.begins_again(mappings) {
                    return Err(SysvError::EIDRM);
                }
                locked.wait(WAIT);
                continue;
            };
            match locked.holds(number, page) {
                Some(held) if held >= access => break (number, held),
                _ => locked.fault(number, page, access),
            }
            match locked.holds(number, page) {
                Some(held) if held >= access => break (number, held),
                _ if mappings.is_poisoned(span) => return Err(SysvError::EIDRM),
                _ => locked.wait(WAIT),
            }
        };
        // What it has besides: each further page would take a signal and four wake-ups.
        let run = locked.held_like(number, page, OPENED_BYTES_MAX);
        let span = segment.geometry.run(run).ok_or(SysvError::EINVAL)?;
        let opened = self.families().open_for(mm, mappings, span, held);
        opened.map_err(|_| SysvError::ENOMEM)
    }
}

impl Faults for Memory {
    fn fault(&self, fault: Fault) {
        let Some(segment) = self.find(fault.mappings.file().name().id) else { return };
        let Some(page) = segment.geometry.page_at(fault.offset) else { return };
        let mut locked = segment.lock();
        match locked.whose(&fault.mappings) {
            Some(number) => locked.fault(number, page, fault.access),
            None if locked.begins_again(&fault.mappings) => {}
            // Nobody will ever have it.
            None => {
                drop(locked);
                self.note(Note::Orphan { fault });
            }
        }
    }

    fn ended(&self, ended: Ended) {
        self.ends.lock().push(ended);
        self.note(Note::Ended);
    }
}

/// An attach under way.
pub struct Attaching {
    memory: Arc<Memory>,
    id: ObjectId,
}

impl Drop for Attaching {
    fn drop(&mut self) {
        {
            let mut attaching = self.memory.attaching.lock();
            if let Some(count) = attaching.get_mut(&self.id) {
                *count -= 1;
                if *count == 0 {
                    attaching.remove(&self.id);
                }
            }
        }
        self.memory.settle(self.id);
    }
}

/// The files of a segment on this node, for who looks at their attachments.
pub(super) fn mappings_of(segment: &Segment) -> BTreeMap<Replica, Arc<Mappings>> {
    let locked = segment.lock();
    let home = locked.state.home.iter().map(|home| (Replica::HOME, &home.file));
    let replicas = locked.state.replicas.iter().map(|(number, side)| (*number, &side.file));
    home.chain(replicas).map(|(number, file)| (number, file.mappings.clone())).collect()
}
