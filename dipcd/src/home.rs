//! The objects this node is home to: made here by the claims of our programs, looked at for
//! everyone who gets them, reported to the referee, destroyed when they are void.
//!
//! The kernel decides whether a queue or a set exists; the table only says which ones are ours. So
//! an object that somebody removed behind our back is found gone by the next who asks. Segments
//! have no kernel object: [`Segments`] decides of them.
#![forbid(unsafe_code)]

use crossbeam_channel::{Receiver, Sender, bounded};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::io;
use std::path::Path;
use std::sync::Arc;

use dipc_core::referee::REPORT_OBJECTS_MAX;
use dipc_wire::ids::{ClaimNo, KernelId, Key, Kind, NodeId, Nonce, ObjectId, Req};
use dipc_wire::keeper::Account;
use dipc_wire::peer::{Asked, PeerFrame, Reported};
use dipc_wire::sysv::{IPC_CREAT, IPC_EXCL, PERMISSIONS, Perm, Rights, SysvError, may_use};

use crate::clients::pieces;
use crate::config::Transfer;
use crate::memory::geometry::Geometry;
use crate::memory::segments::{Bounds, Segments};
use crate::objects::{OBJECTS_MAX, ObjectRecord, ObjectState, ObjectTable};
use crate::sys::{credentials, ipc};

/// Objects in one piece of a report.
const REPORT_OBJECTS: usize = 2048;

// A report that the referee finds too long would end the link, again and again.
const _: () = assert!(OBJECTS_MAX as usize <= REPORT_OBJECTS_MAX);

/// What a `*get` wants.
#[derive(Clone, Copy, Debug)]
pub struct Want {
    /// Which kind.
    pub kind: Kind,
    /// The key.
    pub key: Key,
    /// The flags of the call; 0 only asks where the object is.
    pub flags: i32,
    /// Semaphores, bytes, or 0.
    pub size: u64,
    /// Which call it is.
    pub nonce: Option<Nonce>,
}

/// Who makes an object.
#[derive(Clone, Copy, Debug)]
pub struct Maker<'a> {
    /// As whom.
    pub account: &'a Account,
    /// Its pid on its own node.
    pub pid: i32,
    /// Bytes that all segments of one user may have (`user_segment_bytes_max`).
    pub segment_bytes_max: u64,
    /// How a segment is cut into units.
    pub transfer: Transfer,
}

/// What the referee said of an object we made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Publish it.
    Confirmed,
    /// Destroy it.
    Denied,
}

/// What a look at an object found.
pub enum Look {
    /// It is there.
    Is(Asked, KernelId),
    /// It is not.
    Gone(Struck),
}

/// Whether a look was what struck an object off the table: then the referee must hear of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Struck {
    /// By this look.
    Now,
    /// It was not in the table: struck off before, by whoever tells the referee, or never there.
    Before,
}

/// The table, and how many of its objects each user has made, and how many there are of each kind.
struct Objects {
    table: ObjectTable,
    made_by: HashMap<u32, u32>,
    of_kind: [u64; Kind::ALL.len()],
}

/// The objects of this node.
pub struct Home {
    /// What the kernel would know of segments.
    pub segments: Arc<Segments>,
    objects: Mutex<Objects>,
    awaited: Mutex<HashMap<ObjectId, Awaiting>>,
}

/// Who waits for the referee's verdict on an object.
enum Awaiting {
    /// A thread of ours.
    Thread(Sender<Verdict>),
    /// A node for whose program it was made, with its question.
    Node(NodeId, Req),
}

impl Home {
    /// Opens the table in `state_dir`, and drops what the kernel no longer has.
    pub fn open(state_dir: &Path) -> io::Result<Home> {
        let mut table = ObjectTable::open(state_dir)?;
        let segments = Arc::new(Segments::open(state_dir)?);
        let (mut made_by, mut of_kind) = (HashMap::new(), [0; _]);
        for record in table.iter()? {
            if view(&segments, &record).is_some() {
                *made_by.entry(record.creator_uid).or_default() += 1;
                of_kind[record.kind as usize] += 1;
            } else {
                table.remove(record.id)?;
            }
        }
        let objects = Mutex::new(Objects { table, made_by, of_kind });
        Ok(Home { segments, objects, awaited: Mutex::default() })
    }

    /// Whether a user may make another object.
    pub fn has_room(&self, uid: u32, objects_max: u32) -> bool {
        self.objects.lock().made_by.get(&uid).is_none_or(|made| *made < objects_max)
    }

    /// Makes an object, unpublished, as its creator; the referee's verdict comes by the channel.
    pub fn create(
        &self,
        want: &Want,
        maker: &Maker<'_>,
        claim: ClaimNo,
        id: ObjectId,
    ) -> Result<(KernelId, Receiver<Verdict>), SysvError> {
        let account = maker.account;
        let kernel = match want.kind {
            Kind::Segment => self.create_segment(want, maker, id)?,
            Kind::Queue | Kind::Set => create_in_kernel(want, account)?,
        };
        let record = ObjectRecord {
            id,
            kind: want.kind,
            key: want.key,
            kernel,
            creator_uid: account.uid,
            creator_gid: account.gid,
            nonce: want.nonce.unwrap_or(Nonce(0)),
            state: ObjectState::Unconfirmed { claim },
        };
        let (sender, receiver) = bounded(1);
        self.awaited.lock().insert(id, Awaiting::Thread(sender));
        if let Err(error) = self.objects.lock().insert(&record) {
            tracing::error!(op = "create", %id, %error);
            self.awaited.lock().remove(&id);
            self.remove_object(&record);
            return Err(SysvError::ENOSPC);
        }
        Ok((kernel, receiver))
    }

    fn create_segment(
        &self,
        want: &Want,
        maker: &Maker<'_>,
        id: ObjectId,
    ) -> Result<KernelId, SysvError> {
        let bounds = Bounds::now(maker.segment_bytes_max).map_err(|error| {
            tracing::error!(op = "create", %id, %error);
            SysvError::ENOMEM
        })?;
        let Account { uid, gid, .. } = *maker.account;
        let mode = (want.flags & PERMISSIONS) as u32;
        let seq = (id.raw() >> 15) as u32;
        let perm = Perm { key: want.key.0, uid, gid, cuid: uid, cgid: gid, mode, seq };
        let sizes = (want.size, Geometry::unit_of(want.size, &maker.transfer));
        self.segments.create(id, &perm, sizes, maker.pid, &bounds)?;
        Ok(KernelId::NONE)
    }

    /// Removes what the record names, as its creator, whom nobody can be in the way of; whoever was
    /// quicker has done our work.
    fn remove_object(&self, record: &ObjectRecord) {
        match record.kind {
            Kind::Segment => {
                if let Err(error) = self.segments.destroy(record.id) {
                    tracing::error!(op = "remove", id = %record.id, %error);
                }
            }
            Kind::Queue | Kind::Set => {
                let (uid, gid) = (record.creator_uid, record.creator_gid);
                let creator = Account { uid, gid, groups: Vec::new(), rights: Rights::default() };
                let remove = || ipc::remove(record.kind, record.kernel);
                if let Err(error) = credentials::with_effective(&creator, remove) {
                    tracing::error!(op = "remove", id = %record.id, %error);
                }
            }
        }
    }

    /// A segment is marked for deletion: its key names it no more.
    pub fn unname(&self, id: ObjectId) -> io::Result<()> {
        let mut objects = self.objects.lock();
        match objects.table.find(id)? {
            Some(record) => objects.table.insert(&ObjectRecord { key: Key::PRIVATE, ..record }),
            None => Ok(()),
        }
    }

    /// Has the verdict on an object that was made for another node go there.
    pub fn answer_to(&self, id: ObjectId, node: NodeId, req: Req) {
        self.awaited.lock().insert(id, Awaiting::Node(node, req));
    }

    /// Whether a node waits for the verdict on an object.
    pub fn is_awaited_by(&self, id: ObjectId, node: NodeId) -> bool {
        matches!(self.awaited.lock().get(&id), Some(Awaiting::Node(of, _)) if *of == node)
    }

    /// The referee has said what becomes of an object. The question of another node that waits for
    /// it is handed back.
    pub fn verdict(&self, id: ObjectId, verdict: Verdict) -> Option<(NodeId, Req)> {
        let published = match verdict {
            Verdict::Confirmed => self.objects.lock().table.set_state(id, ObjectState::Published),
            Verdict::Denied => self.destroy(id),
        };
        if let Err(error) = published {
            tracing::error!(op = "verdict", %id, %error);
        }
        match self.awaited.lock().remove(&id)? {
            Awaiting::Thread(waiting) => {
                // The creator may have given up; then nobody listens.
                let _ = waiting.send(verdict);
                None
            }
            Awaiting::Node(node, req) => Some((node, req)),
        }
    }

    /// Looks at an object for a caller. The order of refusals is that of `ipcget_public` in the
    /// kernel's ipc/util.c: existence, size, permission; but semget's limit comes before them all.
    pub fn look(&self, id: ObjectId, want: &Want, account: &Account) -> io::Result<Look> {
        let Some(record) = self.objects.lock().table.find(id)? else {
            return Ok(Look::Gone(Struck::Before));
        };
        let Some((perm, size)) = view(&self.segments, &record) else {
            self.objects.lock().remove(id)?;
            return Ok(Look::Gone(Struck::Now));
        };
        // One that is not confirmed yet counts: who knows its id has it from the referee, whose
        // word to us may still be on its way.
        let outcome = if is_too_great(record.kind, want.size) {
            Asked::Refused(SysvError::EINVAL)
        } else if want.flags & (IPC_CREAT | IPC_EXCL) == (IPC_CREAT | IPC_EXCL)
            && want.nonce != Some(record.nonce)
        {
            Asked::Refused(SysvError::EEXIST)
        } else if want.size > size {
            Asked::Refused(SysvError::EINVAL)
        } else if !permits(&perm, want.flags, account) {
            Asked::Refused(SysvError::EACCES)
        } else {
            Asked::Granted
        };
        Ok(Look::Is(outcome, record.kernel))
    }

    /// The kernel's id and what was recorded, of a published object.
    pub fn find(&self, id: ObjectId) -> io::Result<Option<ObjectRecord>> {
        self.objects.lock().table.find(id)
    }

    /// Some of the published objects of one kind, for a survey; see [`ObjectTable::page`].
    pub fn page(
        &self,
        kind: Kind,
        from: u32,
        most: usize,
    ) -> io::Result<(Vec<ObjectRecord>, Option<u32>)> {
        let is_published = |record: &ObjectRecord| record.state == ObjectState::Published;
        let wanted = |record: &ObjectRecord| record.kind == kind && is_published(record);
        self.objects.lock().table.page(from, most, wanted)
    }

    /// How many objects of a kind there are.
    pub fn count(&self, kind: Kind) -> u64 {
        self.objects.lock().of_kind[kind as usize]
    }

    /// Strikes an object off if the kernel no longer has it: `true` then. One that is not in the
    /// table is nobody's, or was struck off by whoever tells the referee.
    pub fn strike_if_gone(&self, id: ObjectId) -> io::Result<bool> {
        let mut objects = self.objects.lock();
        match objects.table.find(id)? {
            Some(record) if view(&self.segments, &record).is_some() => Ok(false),
            Some(_) => objects.remove(id).map(|_| true),
            None => Ok(false),
        }
    }

    /// Strikes off every object that the kernel no longer has, removed by a stand-in or behind our
    /// back, and says which those were.
    pub fn sweep(&self) -> io::Result<Vec<ObjectId>> {
        let records = {
            let objects = self.objects.lock();
            if objects.made_by.is_empty() { Vec::new() } else { objects.table.iter()? }
        };
        let mut gone = Vec::new();
        let is_gone = |record: &&ObjectRecord| view(&self.segments, record).is_none();
        for record in records.iter().filter(is_gone) {
            if self.strike_if_gone(record.id)? {
                gone.push(record.id);
            }
        }
        Ok(gone)
    }

    /// What the referee must know after a Hello: `Made` for what it has not confirmed.
    pub fn unconfirmed(&self) -> io::Result<Vec<PeerFrame>> {
        let records = self.objects.lock().table.iter()?;
        let made = records.iter().filter_map(|record| match record.state {
            ObjectState::Unconfirmed { claim } => {
                Some(PeerFrame::Made { claim, object: reported(record) })
            }
            ObjectState::Published => None,
        });
        Ok(made.collect())
    }

    /// Everything published, for the referee.
    pub fn report(&self) -> io::Result<Vec<PeerFrame>> {
        let records = self.objects.lock().table.iter()?;
        let published: Vec<_> = records
            .iter()
            .filter(|record| record.state == ObjectState::Published)
            .map(reported)
            .collect();
        let pieces = pieces(&published, REPORT_OBJECTS);
        Ok(pieces.map(|(objects, piece)| PeerFrame::Report { objects, piece }).collect())
    }

    /// Destroys everything: the referee had declared us lost, or the node is stopped.
    pub fn destroy_all(&self) -> io::Result<usize> {
        let records = self.objects.lock().table.iter()?;
        for record in &records {
            tracing::warn!(op = "destroy", kind = record.kind.name(), key = record.key.0,
                id = %record.id, "its creators and users see EIDRM");
            self.destroy(record.id)?;
        }
        Ok(records.len())
    }

    /// Destroys an object whose verdict nobody waits for any more.
    pub fn give_up(&self, id: ObjectId) -> io::Result<()> {
        self.awaited.lock().remove(&id);
        self.destroy(id)
    }

    /// Destroys one object.
    pub fn destroy(&self, id: ObjectId) -> io::Result<()> {
        let mut objects = self.objects.lock();
        if let Some(record) = objects.table.find(id)?
            && view(&self.segments, &record).is_some()
        {
            self.remove_object(&record);
        }
        objects.remove(id)
    }
}

impl Objects {
    fn insert(&mut self, record: &ObjectRecord) -> io::Result<()> {
        self.table.insert(record)?;
        *self.made_by.entry(record.creator_uid).or_default() += 1;
        self.of_kind[record.kind as usize] += 1;
        Ok(())
    }

    fn remove(&mut self, id: ObjectId) -> io::Result<()> {
        let Some(record) = self.table.find(id)? else { return Ok(()) };
        self.table.remove(id)?;
        self.of_kind[record.kind as usize] -= 1;
        if let Some(made) = self.made_by.get_mut(&record.creator_uid) {
            *made -= 1;
            if *made == 0 {
                self.made_by.remove(&record.creator_uid);
            }
        }
        Ok(())
    }
}

/// Whether this kernel has an object of its own with the number that is to be a cluster's id:
/// then a program that never opted in may be using it.
pub fn is_the_kernels(kind: Kind, id: ObjectId) -> bool {
    !matches!(
        ipc::view(kind, KernelId(id.raw())),
        Err(SysvError::EINVAL | SysvError::EIDRM | SysvError::ENOSYS)
    )
}

fn reported(record: &ObjectRecord) -> Reported {
    Reported { id: record.id, kind: record.kind, key: record.key }
}

fn create_in_kernel(want: &Want, account: &Account) -> Result<KernelId, SysvError> {
    let mode = want.flags & PERMISSIONS;
    let made = credentials::with_effective(account, || ipc::create(want.kind, want.size, mode));
    made.map_err(|_| SysvError::EPERM)?
}

/// Ownership and size of the object as it is now; `None` if it is not there, or not the one that
/// was recorded.
fn view(segments: &Segments, record: &ObjectRecord) -> Option<(Perm, u64)> {
    if record.kind == Kind::Segment {
        return segments.view(record.id);
    }
    let (perm, size) = ipc::view(record.kind, record.kernel).ok()?;
    let same = perm.key == 0 && perm.cuid == record.creator_uid && perm.cgid == record.creator_gid;
    same.then_some((perm, size))
}

/// Whether no set of this kernel may have so many semaphores: semget's first check, before any on
/// the key.
pub fn is_too_great(kind: Kind, size: u64) -> bool {
    kind == Kind::Set && ipc::semmsl().is_ok_and(|most| size > most)
}

/// Whether an account may use an object so.
pub(crate) fn permits(perm: &Perm, flags: i32, account: &Account) -> bool {
    let in_group = |group| account.gid == group || account.groups.contains(&group);
    may_use(perm, flags, account.uid, in_group, account.rights)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_object_that_nobody_recorded_is_not_reported_as_gone() {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::open(dir.path()).unwrap();
        assert!(!home.strike_if_gone(ObjectId::from_number(7)).unwrap());
        assert!(home.sweep().unwrap().is_empty());
    }
}
