//! The segments this node is home to, as System V sees them: whose they are, how large, who came
//! last. What is in them is the pager's business.
//!
//! No kernel object stands behind a segment, so its state is a file here, in `state_dir/segments`,
//! replaced whole at each change: a restarted dipcd goes on with it. The order of checks and the
//! errno values are those of the kernel's ipc/shm.c.
#![forbid(unsafe_code)]

use parking_lot::Mutex;
use rustix::param::page_size;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use dipc_wire::codec::{decode_packet, encode_packet};
use dipc_wire::ids::{Key, NodeId, ObjectId};
use dipc_wire::keeper::Account;
use dipc_wire::limits::SEGMENT_BYTES_MAX;
use dipc_wire::memory::Replica;
use dipc_wire::sysv::{
    Change, PERMISSIONS, Perm, SHM_DEST, SHM_EXEC, SHM_LOCKED, SHM_RDONLY, SegmentControl,
    SegmentStat, SysvError, may_use,
};

use crate::disk::make_private_dir;
use crate::memory::geometry::Geometry;

/// Where everything about segments stands, in `state_dir`.
pub const DIRECTORY: &str = "segments";
/// The file of one segment's state, in its own directory.
const STATE: &str = "state";

/// What a new segment must not pass, besides `SEGMENT_BYTES_MAX`.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// `kernel.shmmax`: bytes of one segment.
    pub bytes_max: u64,
    /// `kernel.shmall`: pages of all.
    pub pages_max: u64,
    /// `kernel.shmmni`: segments.
    pub segments_max: u64,
    /// `user_segment_bytes_max`: bytes of all segments of one user.
    pub user_bytes_max: u64,
    /// Memory that is free now.
    pub free_bytes: u64,
}

/// One segment.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Segment {
    /// As `IPC_STAT` shows it, but for `nattch`, which is counted when somebody asks.
    stat: SegmentStat,
    /// Bytes of a unit of transfer, by the configuration under which it was made.
    unit_bytes: u64,
    /// Its files but home's own, and whose they are.
    replicas: BTreeMap<Replica, Holder>,
    /// Which user's the pages are that it has locked.
    locked_by: Option<u32>,
}

/// Whose a file of a segment is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Holder {
    /// On which node it is.
    pub node: NodeId,
    /// Who maps it.
    pub users: Users,
}

/// Who maps a file of a segment. Whoever may only read has one of his own: the kernel fills a hole
/// for a mere reader too, and so he could spoil what others read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Users {
    /// All who may write.
    Writers,
    /// One user who may not, by his number on that node.
    Reader(u32),
}

/// What a `shmctl` has led to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Controlled {
    /// The state afterwards.
    pub stat: SegmentStat,
    /// Whether its key names it no more, and its last detach deletes it.
    pub removed: bool,
}

/// The segments of this home.
pub struct Segments {
    dir: PathBuf,
    table: Mutex<HashMap<ObjectId, Segment>>,
    /// How often somebody was admitted to each, in this life.
    admitted: Mutex<HashMap<ObjectId, u64>>,
}

impl Segments {
    /// Opens those in `state_dir`.
    pub fn open(state_dir: &Path) -> io::Result<Segments> {
        let dir = state_dir.join(DIRECTORY);
        make_private_dir(&dir)?;
        let mut table = HashMap::new();
        for entry in fs::read_dir(&dir)? {
            let entry = entry?;
            let id = entry.file_name().to_str().and_then(|name| name.parse().ok());
            if let Some(id) = id.and_then(ObjectId::from_raw)
                && let Some(segment) = read(&entry.path().join(STATE))?
            {
                table.insert(id, segment);
            }
        }
        Ok(Segments { dir, table: Mutex::new(table), admitted: Mutex::default() })
    }

    /// Makes one, as newseg of ipc/shm.c does. `cpid` is its creator's pid on its own node.
    pub fn create(
        &self,
        id: ObjectId,
        perm: &Perm,
        (bytes, unit_bytes): (u64, u64),
        cpid: i32,
        bounds: &Bounds,
    ) -> Result<(), SysvError> {
        let mut table = self.table.lock();
        check_bounds(&table, perm.cuid, bytes, bounds)?;
        let ctime = now();
        let stat = SegmentStat { perm: *perm, bytes, ctime, cpid, ..SegmentStat::default() };
        let segment = Segment { stat, unit_bytes, replicas: BTreeMap::new(), locked_by: None };
        self.write(id, &segment)?;
        table.insert(id, segment);
        Ok(())
    }

    /// Ownership and size, if it is there.
    pub fn view(&self, id: ObjectId) -> Option<(Perm, u64)> {
        self.table.lock().get(&id).map(|segment| (segment.stat.perm, segment.stat.bytes))
    }

    /// Whether its last detach deletes it.
    pub fn is_removed(&self, id: ObjectId) -> bool {
        self.table.lock().get(&id).is_none_or(|segment| segment.is_removed())
    }

    /// Admits an attachment, as do_shmat does: the segment's size in bytes, and whether its
    /// program may ever write.
    pub fn attach(
        &self,
        id: ObjectId,
        flags: i32,
        account: &Account,
        pid: i32,
    ) -> Result<(u64, bool), SysvError> {
        self.change(id, |segment| {
            let perm = &segment.stat.perm;
            let write = if flags & SHM_RDONLY == 0 { 0o222 } else { 0 };
            let execute = if flags & SHM_EXEC != 0 { 0o111 } else { 0 };
            if !permits(perm, 0o444 | write | execute, account) {
                return Err(SysvError::EACCES);
            }
            let may_write = permits(perm, 0o222, account);
            segment.stat.atime = now();
            segment.stat.lpid = pid;
            *self.admitted.lock().entry(id).or_default() += 1;
            Ok((segment.stat.bytes, may_write))
        })
    }

    /// How often somebody was admitted to it: whoever deletes it knows by this whether somebody
    /// came while he counted.
    pub fn admissions(&self, id: ObjectId) -> u64 {
        self.admitted.lock().get(&id).copied().unwrap_or(0)
    }

    /// An attachment has ended, of this process if that is known.
    pub fn detach(&self, id: ObjectId, pid: Option<i32>) {
        // One that is deleted has nobody who could look at its times.
        let _ = self.change(id, |segment| {
            segment.stat.dtime = now();
            segment.stat.lpid = pid.unwrap_or(segment.stat.lpid);
            Ok(())
        });
    }

    /// What `shmctl` does, in the order of checks of ipc/shm.c; `nattch` is left at 0.
    pub fn control(
        &self,
        id: ObjectId,
        control: SegmentControl,
        account: &Account,
    ) -> Result<Controlled, SysvError> {
        let locked_pages = self.locked_pages(account.uid);
        self.change(id, |segment| {
            match control {
                SegmentControl::Stat if !permits(&segment.stat.perm, 0o444, account) => {
                    return Err(SysvError::EACCES);
                }
                SegmentControl::Stat | SegmentControl::StatAny => {}
                SegmentControl::Set(change) => {
                    owner_only(&segment.stat.perm, account, account.rights.sys_admin)?;
                    segment.set(&change)?;
                }
                SegmentControl::Remove => {
                    owner_only(&segment.stat.perm, account, account.rights.sys_admin)?;
                    segment.stat.perm.mode |= SHM_DEST;
                    segment.stat.perm.key = Key::PRIVATE.0;
                }
                SegmentControl::Lock => segment.lock(account, u64::MAX, locked_pages)?,
                SegmentControl::LockWithin { bytes_max } => {
                    segment.lock(account, bytes_max, locked_pages)?;
                }
                SegmentControl::Unlock => {
                    owner_only(&segment.stat.perm, account, account.rights.ipc_lock)?;
                    segment.stat.perm.mode &= !SHM_LOCKED;
                    segment.locked_by = None;
                }
            }
            Ok(Controlled { stat: segment.stat, removed: segment.is_removed() })
        })
    }

    /// Pages of segments that a user has locked.
    fn locked_pages(&self, uid: u32) -> u64 {
        let table = self.table.lock();
        let locked = table.values().filter(|segment| segment.locked_by == Some(uid));
        locked.map(|segment| pages(segment.stat.bytes)).sum()
    }

    /// A file but home's own is there from now on.
    pub fn add_replica(
        &self,
        id: ObjectId,
        replica: Replica,
        holder: Holder,
    ) -> Result<(), SysvError> {
        self.change(id, |segment| {
            segment.replicas.insert(replica, holder);
            Ok(())
        })
    }

    /// It is no more.
    pub fn remove_replica(&self, id: ObjectId, replica: Replica) {
        // One that is deleted has none left.
        let _ = self.change(id, |segment| Ok(segment.replicas.remove(&replica)));
    }

    /// Its files but home's own, and whose they are.
    pub fn replicas(&self, id: ObjectId) -> BTreeMap<Replica, Holder> {
        let table = self.table.lock();
        table.get(&id).map(|segment| segment.replicas.clone()).unwrap_or_default()
    }

    /// How it is cut into pages.
    pub fn geometry(&self, id: ObjectId) -> Option<Geometry> {
        let table = self.table.lock();
        let segment = table.get(&id)?;
        Geometry::of(segment.stat.bytes, segment.unit_bytes)
    }

    /// All of this home.
    pub fn ids(&self) -> Vec<ObjectId> {
        self.table.lock().keys().copied().collect()
    }

    /// Forgets a segment, and what stands in its directory.
    pub fn destroy(&self, id: ObjectId) -> io::Result<()> {
        if self.table.lock().remove(&id).is_none() {
            return Ok(());
        }
        self.admitted.lock().remove(&id);
        match fs::remove_dir_all(self.dir_of(id)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// Where all of it stands.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Where what must survive dipcd stands, of a segment of this home or another.
    pub fn dir_of(&self, id: ObjectId) -> PathBuf {
        dir_of(&self.dir, id)
    }

    /// Changes one segment and keeps the change; a refusal changes nothing. `EINVAL`: it is not
    /// there.
    fn change<T>(
        &self,
        id: ObjectId,
        change: impl FnOnce(&mut Segment) -> Result<T, SysvError>,
    ) -> Result<T, SysvError> {
        let mut table = self.table.lock();
        let segment = table.get_mut(&id).ok_or(SysvError::EINVAL)?;
        let mut changed = segment.clone();
        let said = change(&mut changed)?;
        if changed != *segment {
            self.write(id, &changed)?;
            *segment = changed;
        }
        Ok(said)
    }

    fn write(&self, id: ObjectId, segment: &Segment) -> Result<(), SysvError> {
        let dir = self.dir_of(id);
        let written = make_private_dir(&dir).and_then(|()| {
            let beside = dir.join("state.new");
            fs::write(&beside, encode_packet(segment))?;
            fs::rename(&beside, dir.join(STATE))
        });
        written.map_err(|error| {
            tracing::error!(op = "segment", %id, %error, "its state cannot be kept");
            SysvError::ENOMEM
        })
    }
}

impl Segment {
    fn is_removed(&self) -> bool {
        self.stat.perm.mode & SHM_DEST != 0
    }

    /// shmctl_do_lock of ipc/shm.c and user_shm_lock of mm/mlock.c. Nothing is held in memory by
    /// it; who may do it, and how much, is as the kernel has it.
    fn lock(
        &mut self,
        account: &Account,
        bytes_max: u64,
        locked_pages: u64,
    ) -> Result<(), SysvError> {
        owner_only(&self.stat.perm, account, account.rights.ipc_lock)?;
        if bytes_max == 0 && !account.rights.ipc_lock {
            return Err(SysvError::EPERM);
        }
        if self.stat.perm.mode & SHM_LOCKED != 0 {
            return Ok(());
        }
        let pages_max = bytes_max / page_size() as u64;
        if locked_pages + pages(self.stat.bytes) > pages_max && !account.rights.ipc_lock {
            return Err(SysvError::ENOMEM);
        }
        self.stat.perm.mode |= SHM_LOCKED;
        self.locked_by = Some(account.uid);
        Ok(())
    }

    /// `ipc_update_perm` of ipc/util.c.
    fn set(&mut self, change: &Change) -> Result<(), SysvError> {
        if change.uid == u32::MAX || change.gid == u32::MAX {
            return Err(SysvError::EINVAL);
        }
        let perm = &mut self.stat.perm;
        (perm.uid, perm.gid) = (change.uid, change.gid);
        perm.mode = (perm.mode & !PERMISSION_BITS) | (change.mode & PERMISSION_BITS);
        self.stat.ctime = now();
        Ok(())
    }
}

const PERMISSION_BITS: u32 = PERMISSIONS as u32;

/// Where a segment's files stand under `segments`.
pub fn dir_of(segments: &Path, id: ObjectId) -> PathBuf {
    segments.join(id.raw().to_string())
}

fn pages(bytes: u64) -> u64 {
    bytes.div_ceil(page_size() as u64)
}

fn check_bounds(
    table: &HashMap<ObjectId, Segment>,
    uid: u32,
    bytes: u64,
    bounds: &Bounds,
) -> Result<(), SysvError> {
    if bytes == 0 || bytes > bounds.bytes_max {
        return Err(SysvError::EINVAL);
    }
    let used: u64 = table.values().map(|segment| pages(segment.stat.bytes)).sum();
    if used + pages(bytes) > bounds.pages_max {
        return Err(SysvError::ENOSPC);
    }
    let of_user = table.values().filter(|segment| segment.stat.perm.cuid == uid);
    let of_user: u64 = of_user.map(|segment| segment.stat.bytes).sum();
    let memory_max = bounds.free_bytes.min(SEGMENT_BYTES_MAX);
    if of_user.saturating_add(bytes) > bounds.user_bytes_max || bytes > memory_max {
        return Err(SysvError::ENOMEM);
    }
    // The kernel makes the file before it looks for a free number.
    if table.len() as u64 >= bounds.segments_max {
        return Err(SysvError::ENOSPC);
    }
    Ok(())
}

impl Bounds {
    /// As they are now.
    pub fn now(user_bytes_max: u64) -> io::Result<Bounds> {
        Ok(Bounds {
            bytes_max: number_in("/proc/sys/kernel/shmmax")?,
            pages_max: number_in("/proc/sys/kernel/shmall")?,
            segments_max: number_in("/proc/sys/kernel/shmmni")?,
            user_bytes_max,
            free_bytes: free_bytes()?,
        })
    }
}

fn number_in(file: &str) -> io::Result<u64> {
    let text = fs::read_to_string(file)?;
    text.trim().parse().map_err(|_| io::Error::other(format!("{file}: expected a number")))
}

/// `MemAvailable` and `SwapFree` of /proc/meminfo.
fn free_bytes() -> io::Result<u64> {
    let text = fs::read_to_string("/proc/meminfo")?;
    let kilobytes = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        line.and_then(|rest| rest.split_ascii_whitespace().next()?.parse::<u64>().ok())
    };
    Ok((kilobytes("MemAvailable:").unwrap_or(0) + kilobytes("SwapFree:").unwrap_or(0)) << 10)
}

/// `None`: nothing there; a file that is not understood is logged, and its segment is gone.
fn read(path: &Path) -> io::Result<Option<Segment>> {
    let bytes = match fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        bytes => bytes?,
    };
    let segment = decode_packet(&bytes);
    let complain = |error: &_| tracing::error!(op = "segment", file = %path.display(), %error);
    Ok(segment.inspect_err(complain).ok())
}

fn permits(perm: &Perm, flags: i32, account: &Account) -> bool {
    let in_group = |group| account.gid == group || account.groups.contains(&group);
    may_use(perm, flags, account.uid, in_group, account.rights)
}

fn owner_only(perm: &Perm, account: &Account, right: bool) -> Result<(), SysvError> {
    if account.uid == perm.uid || account.uid == perm.cuid || right {
        Ok(())
    } else {
        Err(SysvError::EPERM)
    }
}

/// Seconds since 1970.
fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| i64::try_from(since.as_secs()).unwrap_or(i64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUNDS: Bounds = Bounds {
        bytes_max: 1 << 20,
        pages_max: 1 << 10,
        segments_max: 2,
        user_bytes_max: 1 << 20,
        free_bytes: 1 << 30,
    };

    fn id(number: u32) -> ObjectId {
        ObjectId::from_number(number)
    }

    fn perm(mode: u32) -> Perm {
        Perm { key: 5, uid: 1, gid: 1, cuid: 2, cgid: 2, mode, seq: 0 }
    }

    fn account(uid: u32) -> Account {
        Account { uid, gid: uid, groups: Vec::new(), rights: dipc_wire::sysv::Rights::default() }
    }

    #[test]
    fn what_a_segment_is_outlives_dipcd() {
        let dir = tempfile::tempdir().unwrap();
        let segments = Segments::open(dir.path()).unwrap();
        segments.create(id(1), &perm(0o600), (100, 4096), 77, &BOUNDS).unwrap();
        let holder = Holder { node: NodeId::new(2).unwrap(), users: Users::Reader(1000) };
        segments.add_replica(id(1), Replica(3), holder).unwrap();
        assert_eq!(segments.attach(id(1), 0, &account(1), 78), Ok((100, true)));
        let removed = segments.control(id(1), SegmentControl::Remove, &account(2)).unwrap();
        let segments = Segments::open(dir.path()).unwrap();
        let found = segments.control(id(1), SegmentControl::StatAny, &account(9)).unwrap();
        assert_eq!(found, removed);
        assert_eq!((found.stat.perm.key, found.removed), (0, true));
        assert_eq!((found.stat.cpid, found.stat.lpid), (77, 78));
        assert_eq!(segments.replicas(id(1)), BTreeMap::from([(Replica(3), holder)]));
        segments.destroy(id(1)).unwrap();
        assert_eq!(Segments::open(dir.path()).unwrap().view(id(1)), None);
    }

    #[test]
    fn a_segment_that_passes_a_bound_is_refused_as_by_the_kernel() {
        let dir = tempfile::tempdir().unwrap();
        let segments = Segments::open(dir.path()).unwrap();
        let create = |number, bytes, bounds: &Bounds| {
            segments.create(id(number), &perm(0o600), (bytes, 4096), 1, bounds)
        };
        assert_eq!(create(1, 0, &BOUNDS), Err(SysvError::EINVAL));
        assert_eq!(create(1, (1 << 20) + 1, &BOUNDS), Err(SysvError::EINVAL));
        let few_pages = Bounds { pages_max: 1, ..BOUNDS };
        assert_eq!(create(1, 4097, &few_pages), Err(SysvError::ENOSPC));
        let little_memory = Bounds { free_bytes: 4096, ..BOUNDS };
        assert_eq!(create(1, 8192, &little_memory), Err(SysvError::ENOMEM));
        create(1, 1 << 19, &BOUNDS).unwrap();
        assert_eq!(create(2, (1 << 19) + 1, &BOUNDS), Err(SysvError::ENOMEM), "the user's share");
        create(2, 1, &BOUNDS).unwrap();
        assert_eq!(create(3, 1, &BOUNDS), Err(SysvError::ENOSPC), "shmmni");
    }

    #[test]
    fn who_may_do_what_is_as_the_kernel_has_it() {
        let dir = tempfile::tempdir().unwrap();
        let segments = Segments::open(dir.path()).unwrap();
        segments.create(id(1), &perm(0o644), (100, 4096), 1, &BOUNDS).unwrap();
        let control = |control, uid| segments.control(id(1), control, &account(uid));
        assert_eq!(segments.attach(id(1), 0, &account(3), 1), Err(SysvError::EACCES));
        assert_eq!(segments.attach(id(1), SHM_RDONLY, &account(3), 1), Ok((100, false)));
        assert_eq!(segments.attach(id(1), SHM_RDONLY, &account(2), 1), Ok((100, true)));
        let executes = segments.attach(id(1), SHM_RDONLY | SHM_EXEC, &account(2), 1);
        assert_eq!(executes, Err(SysvError::EACCES));
        for denied in [SegmentControl::Lock, SegmentControl::Unlock, SegmentControl::Remove] {
            assert_eq!(control(denied, 3).unwrap_err(), SysvError::EPERM);
        }
        assert_eq!(control(SegmentControl::Lock, 1).unwrap().stat.perm.mode, 0o644 | SHM_LOCKED);
        let within = |bytes_max| SegmentControl::LockWithin { bytes_max };
        assert!(control(within(4096), 1).is_ok(), "it is locked already");
        assert_eq!(control(within(0), 1), Err(SysvError::EPERM));
        control(SegmentControl::Unlock, 1).unwrap();
        assert_eq!(control(within(4095), 1), Err(SysvError::ENOMEM));
        assert!(control(within(4096), 1).is_ok());
        let change = Change { uid: 3, gid: 3, mode: 0o7400, qbytes: 0 };
        let changed = control(SegmentControl::Set(change), 2).unwrap().stat.perm;
        assert_eq!((changed.mode, changed.uid, changed.cuid), (0o400 | SHM_LOCKED, 3, 2));
        let nobody = Change { uid: u32::MAX, ..change };
        assert_eq!(control(SegmentControl::Set(nobody), 2), Err(SysvError::EINVAL));
        assert_eq!(control(SegmentControl::Stat, 9), Err(SysvError::EACCES));
        assert!(control(SegmentControl::StatAny, 9).is_ok());
        let gone = segments.control(id(2), SegmentControl::Stat, &account(0));
        assert_eq!(gone, Err(SysvError::EINVAL));
    }
}
