//! The system calls that have no safe wrapper: System V sets and segments, fork, signals as a
//! descriptor. Everything unsafe of the mailbox server is in this file, one operation a block.
//!
//! A segment is written by other processes, so no reference and no slice is ever made to it: words
//! are read and written as volatile, contents copied by raw pointer. Every offset is checked.
#![allow(unsafe_code)]

use std::ffi::c_int;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{FromRawFd, OwnedFd};
use std::ptr::{self, NonNull};
use std::sync::atomic::{Ordering, fence};
use std::time::{Duration, Instant};

/// Who else may find an object by its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// Processes of this machine.
    Here,
    /// Programs of the cluster, under libdipc: `IPC_DIPC` in the flags of the get.
    Shared,
}

impl Reach {
    /// The bit by which a program opts in; see `linux/dipc.h`.
    const IPC_DIPC: c_int = 0o10000;

    fn flag(self) -> c_int {
        match self {
            Self::Here => 0,
            Self::Shared => Self::IPC_DIPC,
        }
    }
}

const CREATE: c_int = libc::IPC_CREAT | libc::IPC_EXCL | 0o600;

unsafe extern "C" {
    fn semtimedop(
        id: c_int,
        operations: *mut libc::sembuf,
        count: usize,
        bound: *const libc::timespec,
    ) -> c_int;
}

/// A result of a C call: -1 and errno, or a value.
fn checked(result: c_int) -> io::Result<c_int> {
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// One operation of a `semop`.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub struct Op(libc::sembuf);

impl Op {
    /// Adds `change`; waits while the value is less than what is to be taken.
    pub const fn add(semaphore: u16, change: i16) -> Self {
        Self(libc::sembuf { sem_num: semaphore, sem_op: change, sem_flg: 0 })
    }

    /// Waits until the value is zero.
    pub const fn zero(semaphore: u16) -> Self {
        Self::add(semaphore, 0)
    }

    /// To be put back by the kernel when this process ends (SEM_UNDO).
    pub const fn undone(mut self) -> Self {
        self.0.sem_flg |= libc::SEM_UNDO as i16;
        self
    }

    /// Not to be waited for (IPC_NOWAIT).
    pub const fn now(mut self) -> Self {
        self.0.sem_flg |= libc::IPC_NOWAIT as i16;
        self
    }
}

/// What the kernel says of a set.
#[derive(Clone, Copy, Debug)]
pub struct SetStatus {
    /// User id of its owner.
    pub owner_uid: u32,
    /// How many semaphores.
    pub semaphores: usize,
    /// When it was made or changed by semctl, in seconds since the epoch.
    pub changed: i64,
}

/// A semaphore set, by id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Set(c_int);

impl Set {
    /// A new one; `AlreadyExists` if the key has one.
    pub fn create(key: i32, semaphores: usize, reach: Reach) -> io::Result<Self> {
        // SAFETY: semget takes no pointer.
        checked(unsafe { libc::semget(key, semaphores as c_int, CREATE | reach.flag()) }).map(Self)
    }

    /// The one under this key; `NotFound` if there is none.
    pub fn find(key: i32, reach: Reach) -> io::Result<Self> {
        // SAFETY: semget takes no pointer.
        checked(unsafe { libc::semget(key, 0, reach.flag()) }).map(Self)
    }

    /// What the kernel says of it.
    pub fn status(self) -> io::Result<SetStatus> {
        let mut status = MaybeUninit::<libc::semid_ds>::zeroed();
        // SAFETY: IPC_STAT takes a semid_ds to fill as its fourth argument, and this is one.
        checked(unsafe { libc::semctl(self.0, 0, libc::IPC_STAT, status.as_mut_ptr()) })?;
        // SAFETY: it was zeroed, and then filled by the kernel; every pattern is a semid_ds.
        let status = unsafe { status.assume_init() };
        Ok(SetStatus {
            owner_uid: status.sem_perm.uid,
            semaphores: status.sem_nsems as usize,
            changed: status.sem_ctime,
        })
    }

    /// All values.
    pub fn values(self) -> io::Result<Vec<u16>> {
        let mut values = vec![0_u16; self.status()?.semaphores];
        // SAFETY: GETALL fills one unsigned short a semaphore; a set never changes their number.
        checked(unsafe { libc::semctl(self.0, 0, libc::GETALL, values.as_mut_ptr()) })?;
        Ok(values)
    }

    /// Sets all values, as many as it has semaphores.
    pub fn set_values(self, values: &[u16]) -> io::Result<()> {
        if values.len() != self.status()?.semaphores {
            return Err(io::Error::from(io::ErrorKind::InvalidInput));
        }
        // SAFETY: SETALL reads one unsigned short a semaphore, and there are as many: just checked.
        checked(unsafe { libc::semctl(self.0, 0, libc::SETALL, values.as_ptr()) }).map(drop)
    }

    /// Does all operations at once, or none and `WouldBlock`: for operations that are not to be
    /// waited for, and for those that never wait.
    pub fn operate(self, operations: &[Op]) -> io::Result<()> {
        loop {
            match self.operate_once(operations, ptr::null()) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                done => return done,
            }
        }
    }

    /// Does all operations at once, or none. Waits for that at most `bound`, however many signals
    /// come; then `WouldBlock`.
    pub fn operate_within(self, operations: &[Op], bound: Duration) -> io::Result<()> {
        let until = Instant::now() + bound;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let left = libc::timespec {
                tv_sec: left.as_secs() as libc::time_t,
                tv_nsec: left.subsec_nanos().into(),
            };
            match self.operate_once(operations, &left) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                done => return done,
            }
        }
    }

    fn operate_once(self, operations: &[Op], bound: *const libc::timespec) -> io::Result<()> {
        let first = operations.as_ptr().cast::<libc::sembuf>().cast_mut();
        // SAFETY: `first` is `operations.len()` sembufs, which an Op is (transparent), and `bound`
        // is null or a caller's timespec; semtimedop only reads them.
        checked(unsafe { semtimedop(self.0, first, operations.len(), bound) }).map(drop)
    }

    /// Removes it; whoever waits gets `EIDRM`.
    pub fn remove(self) -> io::Result<()> {
        // SAFETY: IPC_RMID takes no fourth argument.
        checked(unsafe { libc::semctl(self.0, 0, libc::IPC_RMID) }).map(drop)
    }
}

/// What the kernel says of a segment.
#[derive(Clone, Copy, Debug)]
pub struct SegmentStatus {
    /// User id of its owner.
    pub owner_uid: u32,
    /// Its size.
    pub bytes: usize,
    /// How many attachments it has.
    pub attached: u64,
}

/// A segment, by id; not attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentId(c_int);

impl SegmentId {
    /// A new one; `AlreadyExists` if the key has one.
    pub fn create(key: i32, bytes: usize, reach: Reach) -> io::Result<Self> {
        // SAFETY: shmget takes no pointer.
        checked(unsafe { libc::shmget(key, bytes, CREATE | reach.flag()) }).map(Self)
    }

    /// The one under this key; `NotFound` if there is none.
    pub fn find(key: i32, reach: Reach) -> io::Result<Self> {
        // SAFETY: shmget takes no pointer.
        checked(unsafe { libc::shmget(key, 0, reach.flag()) }).map(Self)
    }

    /// What the kernel says of it.
    pub fn status(self) -> io::Result<SegmentStatus> {
        let mut status = MaybeUninit::<libc::shmid_ds>::zeroed();
        // SAFETY: IPC_STAT fills the shmid_ds it is given.
        checked(unsafe { libc::shmctl(self.0, libc::IPC_STAT, status.as_mut_ptr()) })?;
        // SAFETY: it was zeroed, and then filled by the kernel; every pattern is a shmid_ds.
        let status = unsafe { status.assume_init() };
        Ok(SegmentStatus {
            owner_uid: status.shm_perm.uid,
            bytes: status.shm_segsz,
            attached: status.shm_nattch,
        })
    }

    /// Maps it, to read and write.
    pub fn attach(self) -> io::Result<Segment> {
        let bytes = self.status()?.bytes;
        // SAFETY: with no address asked for, the kernel picks one that is free.
        let address = unsafe { libc::shmat(self.0, ptr::null(), 0) };
        if address.addr() == usize::MAX {
            return Err(io::Error::last_os_error());
        }
        let address = NonNull::new(address.cast())
            .ok_or_else(|| io::Error::from(io::ErrorKind::AddrNotAvailable))?;
        Ok(Segment { address, bytes })
    }

    /// Removes it; it is deleted with its last detach.
    pub fn remove(self) -> io::Result<()> {
        // SAFETY: IPC_RMID takes no structure.
        checked(unsafe { libc::shmctl(self.0, libc::IPC_RMID, ptr::null_mut()) }).map(drop)
    }
}

/// An attached segment. Other processes write it at any time.
#[derive(Debug)]
pub struct Segment {
    address: NonNull<u8>,
    bytes: usize,
}

// SAFETY: the mapping belongs to the process, not to a thread.
unsafe impl Send for Segment {}
// SAFETY: its methods copy bytes and words and make no reference; who may write when is decided by
// locks of the set, which threads and processes share alike.
unsafe impl Sync for Segment {}

impl Segment {
    /// Its size.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The word at `at`, a multiple of 8. What was written before it was stored is seen after.
    pub fn load(&self, at: usize) -> u64 {
        let word = self.at(at, 8).cast::<u64>();
        assert!(word.is_aligned(), "a word lies at a multiple of 8");
        // SAFETY: inside the mapping and aligned, both checked; every pattern is a u64.
        let value = unsafe { word.read_volatile() };
        fence(Ordering::Acquire);
        value
    }

    /// Stores the word at `at`, a multiple of 8. What was written before is seen before it.
    pub fn store(&self, at: usize, value: u64) {
        let word = self.at(at, 8).cast::<u64>();
        assert!(word.is_aligned(), "a word lies at a multiple of 8");
        fence(Ordering::Release);
        // SAFETY: inside the mapping and aligned, both checked.
        unsafe { word.write_volatile(value) };
    }

    /// Appends `length` bytes from `at` on to `out`.
    pub fn append_to(&self, at: usize, length: usize, out: &mut Vec<u8>) {
        let from = self.at(at, length);
        out.reserve(length);
        let to = out.spare_capacity_mut().as_mut_ptr().cast::<u8>();
        // SAFETY: `from` is `length` bytes of the mapping, `to` as many of room just reserved in
        // memory of our own; a lock of the set keeps writers away.
        unsafe { ptr::copy_nonoverlapping(from, to, length) };
        // SAFETY: that many bytes behind the old length were reserved and are now written.
        unsafe { out.set_len(out.len() + length) };
    }

    /// Copies `bytes` to `at` and on.
    pub fn copy_from(&self, at: usize, bytes: &[u8]) {
        let to = self.at(at, bytes.len());
        // SAFETY: `to` is as many bytes of the mapping; `bytes` is memory of our own, so they do
        // not overlap; a lock of the set keeps others away.
        unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len()) };
    }

    fn at(&self, at: usize, length: usize) -> *mut u8 {
        let end = at.checked_add(length).expect("offsets come from the layout");
        assert!(end <= self.bytes, "inside the segment");
        // SAFETY: `at` is within the mapping of `bytes` bytes: just checked.
        unsafe { self.address.as_ptr().add(at) }
    }
}

impl Drop for Segment {
    fn drop(&mut self) {
        // SAFETY: it was mapped by shmat at this address, and is unmapped once, here.
        unsafe { libc::shmdt(self.address.as_ptr().cast()) };
    }
}

/// Which side of a fork.
pub enum Forked {
    /// The old process.
    Parent,
    /// The new one.
    Child,
}

/// fork(2). Only for a process that has a single thread, as `main` has before it serves.
pub fn fork() -> io::Result<Forked> {
    // SAFETY: with one thread there is no lock that another one could hold in the child.
    let pid = checked(unsafe { libc::fork() })?;
    Ok(if pid == 0 { Forked::Child } else { Forked::Parent })
}

/// Closes every descriptor but standard input, output and error, which a daemon would
/// otherwise keep open for whoever started it. Called before any is opened.
pub fn close_inherited() -> io::Result<()> {
    // SAFETY: nothing in this process owns a descriptor above 2 yet: it is called first in main.
    checked(unsafe { libc::close_range(3, u32::MAX, 0) }).map(drop)
}

/// A descriptor that becomes readable when SIGTERM, SIGINT or SIGHUP arrives. They are blocked from
/// now on in this thread and in every one it starts, so that none is interrupted by them.
pub fn stop_signals() -> io::Result<OwnedFd> {
    let mut set = MaybeUninit::<libc::sigset_t>::zeroed();
    // SAFETY: sigemptyset initialises the set it is given.
    checked(unsafe { libc::sigemptyset(set.as_mut_ptr()) })?;
    // SAFETY: initialised by the line above.
    let mut set = unsafe { set.assume_init() };
    for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP] {
        // SAFETY: `set` is an initialised set.
        checked(unsafe { libc::sigaddset(&mut set, signal) })?;
    }
    // SAFETY: `set` is an initialised set; the old one is not asked for.
    let refused = unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &set, ptr::null_mut()) };
    if refused != 0 {
        return Err(io::Error::from_raw_os_error(refused));
    }
    // SAFETY: `set` is an initialised set, and -1 asks for a new descriptor.
    let descriptor = checked(unsafe { libc::signalfd(-1, &set, libc::SFD_CLOEXEC) })?;
    // SAFETY: just made, and owned by nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}
