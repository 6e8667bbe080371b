//! The System V system calls by kernel id, with typed arguments and results. Bad flags, types and
//! numbers are passed on: the kernel's own order of checks is what a program is to see.
//!
//! Segments are only made, looked at and removed here; what is in them is another matter.

use std::ffi::{c_int, c_void};
use std::io;
use std::mem::MaybeUninit;
use std::ptr;

use dipc_wire::ids::{KernelId, Kind};
use dipc_wire::op::SemGet;
use dipc_wire::sysv::{Change, Perm, QueueStat, SemBuf, SetStat, SysvError};

/// Of linux/msg.h; crate libc lacks it.
const MSG_STAT_ANY: c_int = 13;
/// An id's low bits are its index; more of them with the boot option `ipcmni_extend`.
const INDEX_MASKS: [i32; 2] = [0x7fff, 0xff_ffff];
/// Bytes of a message's type, which the kernel wants before the text.
const MTYPE_BYTES: usize = size_of::<i64>();

type Result<T> = std::result::Result<T, SysvError>;

fn last_error() -> SysvError {
    SysvError::from_errno(io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO))
}

fn check(rc: c_int) -> Result<c_int> {
    if rc < 0 { Err(last_error()) } else { Ok(rc) }
}

/// Makes an object without a key. `size` is that of `*get`; for a queue it means nothing.
pub fn create(kind: Kind, size: u64, mode: i32) -> Result<KernelId> {
    let flags = libc::IPC_CREAT | (mode & 0o777);
    let made = match kind {
        // SAFETY: msgget takes no pointers.
        Kind::Queue => unsafe { libc::msgget(libc::IPC_PRIVATE, flags) },
        Kind::Set => {
            let count = c_int::try_from(size).map_err(|_| SysvError::EINVAL)?;
            // SAFETY: semget takes no pointers.
            unsafe { libc::semget(libc::IPC_PRIVATE, count, flags) }
        }
        Kind::Segment => {
            let bytes = usize::try_from(size).map_err(|_| SysvError::EINVAL)?;
            // SAFETY: shmget takes no pointers.
            unsafe { libc::shmget(libc::IPC_PRIVATE, bytes, flags) }
        }
    };
    check(made).map(KernelId)
}

/// `IPC_RMID`.
pub fn remove(kind: Kind, kernel: KernelId) -> Result<()> {
    let rc = match kind {
        // SAFETY: IPC_RMID looks at no buffer.
        Kind::Queue => unsafe { libc::msgctl(kernel.0, libc::IPC_RMID, ptr::null_mut()) },
        // SAFETY: IPC_RMID has no fourth argument.
        Kind::Set => unsafe { libc::semctl(kernel.0, 0, libc::IPC_RMID) },
        // SAFETY: IPC_RMID looks at no buffer.
        Kind::Segment => unsafe { libc::shmctl(kernel.0, libc::IPC_RMID, ptr::null_mut()) },
    };
    check(rc).map(|_| ())
}

/// Ownership of an object and its size by `*get`'s measure (semaphores, bytes, 0 for a queue),
/// whatever its mode says.
pub fn view(kind: Kind, kernel: KernelId) -> Result<(Perm, u64)> {
    match kind {
        Kind::Queue => queue_stat_any(kernel).map(|stat| (stat.perm, 0)),
        Kind::Set => set_stat_any(kernel).map(|stat| (stat.perm, stat.nsems)),
        Kind::Segment => segment_view(kernel),
    }
}

/// A message with room around it: type and text as the kernel wants them.
#[derive(Debug, Default)]
pub struct MessageBuffer {
    bytes: Vec<u8>,
}

impl MessageBuffer {
    /// A message to be sent.
    pub fn message(mtype: i64, text: &[u8]) -> MessageBuffer {
        let mut buffer = MessageBuffer::default();
        buffer.set(mtype, text);
        buffer
    }

    /// Replaces what is in it by a message.
    pub fn set(&mut self, mtype: i64, text: &[u8]) {
        self.bytes.clear();
        self.bytes.extend_from_slice(&mtype.to_ne_bytes());
        self.bytes.extend_from_slice(text);
    }

    /// Makes room for a text of so many bytes.
    pub fn make_room(&mut self, text_bytes: usize) {
        self.bytes.resize(MTYPE_BYTES + text_bytes, 0);
    }

    /// Gives memory back beyond so many bytes of text, and what was in it.
    pub fn shrink_to(&mut self, text_bytes: usize) {
        if self.room() > text_bytes {
            self.bytes.clear();
            self.bytes.shrink_to(MTYPE_BYTES + text_bytes);
        }
    }

    /// The longest text that fits.
    pub fn room(&self) -> usize {
        self.bytes.len().saturating_sub(MTYPE_BYTES)
    }

    /// The message's type.
    pub fn mtype(&self) -> i64 {
        self.bytes.first_chunk().map_or(0, |bytes| i64::from_ne_bytes(*bytes))
    }

    /// The text, or the room for it.
    pub fn text(&self) -> &[u8] {
        self.bytes.get(MTYPE_BYTES..).unwrap_or_default()
    }
}

/// msgsnd(2).
pub fn msg_send(kernel: KernelId, message: &MessageBuffer, flags: i32) -> Result<()> {
    let (buffer, length) = (message.bytes.as_ptr(), message.room());
    // SAFETY: the buffer holds the type and `length` bytes of text, and outlives the call.
    let rc = unsafe { libc::msgsnd(kernel.0, buffer.cast::<c_void>(), length, flags) };
    check(rc).map(|_| ())
}

/// msgrcv(2) with at most `bytes_max` bytes of text, which must fit. Returns the text's length.
pub fn msg_receive(
    kernel: KernelId,
    message: &mut MessageBuffer,
    bytes_max: usize,
    mtype: i64,
    flags: i32,
) -> Result<usize> {
    assert!(message.bytes.len() >= MTYPE_BYTES && bytes_max <= message.room());
    let buffer = message.bytes.as_mut_ptr().cast::<c_void>();
    // SAFETY: behind the type the buffer has room for `bytes_max` bytes, checked above.
    let received = unsafe { libc::msgrcv(kernel.0, buffer, bytes_max, mtype, flags) };
    usize::try_from(received).map_err(|_| last_error())
}

/// `IPC_STAT` of a queue.
pub fn queue_stat(kernel: KernelId) -> Result<QueueStat> {
    Ok(queue_stat_from(&msgctl(kernel.0, libc::IPC_STAT)?.1))
}

/// `MSG_STAT_ANY` of the queue with this id.
pub fn queue_stat_any(kernel: KernelId) -> Result<QueueStat> {
    by_index(kernel, |index| msgctl(index, MSG_STAT_ANY)).map(|stat| queue_stat_from(&stat))
}

/// `IPC_STAT` of a set.
pub fn set_stat(kernel: KernelId) -> Result<SetStat> {
    Ok(set_stat_from(&semctl_stat(kernel.0, libc::IPC_STAT)?.1))
}

/// `SEM_STAT_ANY` of the set with this id.
pub fn set_stat_any(kernel: KernelId) -> Result<SetStat> {
    let stat = by_index(kernel, |index| semctl_stat(index, libc::SEM_STAT_ANY))?;
    Ok(set_stat_from(&stat))
}

/// The `*_STAT_ANY` commands take an index and return the id of what is there.
fn by_index<T>(kernel: KernelId, stat: impl Fn(i32) -> Result<(i32, T)>) -> Result<T> {
    for mask in INDEX_MASKS {
        if let Ok((id, found)) = stat(kernel.0 & mask)
            && id == kernel.0
        {
            return Ok(found);
        }
    }
    Err(SysvError::EINVAL)
}

fn msgctl(id: i32, command: c_int) -> Result<(i32, libc::msqid_ds)> {
    let mut stat = MaybeUninit::<libc::msqid_ds>::zeroed();
    // SAFETY: both commands fill one msqid_ds, which outlives the call.
    let id = check(unsafe { libc::msgctl(id, command, stat.as_mut_ptr()) })?;
    // SAFETY: it is plain integers, and all of them were initialised by `zeroed`.
    Ok((id, unsafe { stat.assume_init() }))
}

fn semctl_stat(id: i32, command: c_int) -> Result<(i32, libc::semid_ds)> {
    let mut stat = MaybeUninit::<libc::semid_ds>::zeroed();
    // SAFETY: both commands fill the one semid_ds that their fourth argument points to.
    let id = check(unsafe { libc::semctl(id, 0, command, stat.as_mut_ptr()) })?;
    // SAFETY: it is plain integers, and all of them were initialised by `zeroed`.
    Ok((id, unsafe { stat.assume_init() }))
}

fn segment_view(kernel: KernelId) -> Result<(Perm, u64)> {
    /// `SHM_STAT_ANY` of linux/shm.h; crate libc lacks it.
    const SHM_STAT_ANY: c_int = 15;
    let stat = by_index(kernel, |index| {
        let mut stat = MaybeUninit::<libc::shmid_ds>::zeroed();
        // SAFETY: the command fills one shmid_ds, which outlives the call.
        let id = check(unsafe { libc::shmctl(index, SHM_STAT_ANY, stat.as_mut_ptr()) })?;
        // SAFETY: it is plain integers, and all of them were initialised by `zeroed`.
        Ok((id, unsafe { stat.assume_init() }))
    })?;
    Ok((perm_from(&stat.shm_perm), stat.shm_segsz as u64))
}

/// The key is the object table's to say: our objects have none here.
fn perm_from(perm: &libc::ipc_perm) -> Perm {
    Perm {
        key: perm.__key,
        uid: perm.uid,
        gid: perm.gid,
        cuid: perm.cuid,
        cgid: perm.cgid,
        mode: u32::from(perm.mode),
        seq: u32::from(perm.__seq),
    }
}

fn queue_stat_from(stat: &libc::msqid_ds) -> QueueStat {
    QueueStat {
        perm: perm_from(&stat.msg_perm),
        stime: stat.msg_stime,
        rtime: stat.msg_rtime,
        ctime: stat.msg_ctime,
        cbytes: stat.__msg_cbytes,
        qnum: stat.msg_qnum,
        qbytes: stat.msg_qbytes,
        lspid: stat.msg_lspid,
        lrpid: stat.msg_lrpid,
    }
}

fn set_stat_from(stat: &libc::semid_ds) -> SetStat {
    SetStat {
        perm: perm_from(&stat.sem_perm),
        otime: stat.sem_otime,
        ctime: stat.sem_ctime,
        nsems: stat.sem_nsems,
    }
}

/// `IPC_SET` of a queue or a set.
pub fn change(kind: Kind, kernel: KernelId, change: &Change) -> Result<()> {
    let rc = match kind {
        Kind::Queue => change_queue(kernel, change),
        Kind::Set => change_set(kernel, change),
        Kind::Segment => return Err(SysvError::EINVAL),
    };
    check(rc).map(|_| ())
}

fn change_queue(kernel: KernelId, change: &Change) -> c_int {
    let mut stat = MaybeUninit::<libc::msqid_ds>::zeroed();
    // SAFETY: it is plain integers, and all of them were initialised by `zeroed`.
    let stat = unsafe { stat.assume_init_mut() };
    change_perm(&mut stat.msg_perm, change);
    stat.msg_qbytes = change.qbytes;
    // SAFETY: IPC_SET reads one msqid_ds, which outlives the call.
    unsafe { libc::msgctl(kernel.0, libc::IPC_SET, stat) }
}

fn change_set(kernel: KernelId, change: &Change) -> c_int {
    let mut stat = MaybeUninit::<libc::semid_ds>::zeroed();
    // SAFETY: it is plain integers, and all of them were initialised by `zeroed`.
    let stat = unsafe { stat.assume_init_mut() };
    change_perm(&mut stat.sem_perm, change);
    // SAFETY: IPC_SET reads the one semid_ds that its fourth argument points to.
    unsafe { libc::semctl(kernel.0, 0, libc::IPC_SET, ptr::from_mut(stat)) }
}

fn change_perm(perm: &mut libc::ipc_perm, change: &Change) {
    perm.uid = change.uid;
    perm.gid = change.gid;
    // The kernel takes the nine permission bits and nothing above them.
    perm.mode = (change.mode & 0o777) as _; // of another width elsewhere
}

/// semop(2).
pub fn sem_op(kernel: KernelId, ops: &[SemBuf]) -> Result<()> {
    let mut buffers: Vec<_> = ops
        .iter()
        .map(|op| libc::sembuf { sem_num: op.num, sem_op: op.op, sem_flg: op.flags })
        .collect();
    // SAFETY: the kernel reads as many operations as the vector has, which outlives the call.
    let rc = unsafe { libc::semop(kernel.0, buffers.as_mut_ptr(), buffers.len()) };
    check(rc).map(|_| ())
}

/// `GETVAL`, `GETPID`, `GETNCNT`, `GETZCNT`.
pub fn sem_get(kernel: KernelId, num: i32, what: SemGet) -> Result<i32> {
    let command = match what {
        SemGet::Value => libc::GETVAL,
        SemGet::Pid => libc::GETPID,
        SemGet::WaitersForMore => libc::GETNCNT,
        SemGet::WaitersForZero => libc::GETZCNT,
    };
    // SAFETY: these commands have no fourth argument.
    check(unsafe { libc::semctl(kernel.0, num, command) })
}

/// `SETVAL`.
pub fn sem_set(kernel: KernelId, num: i32, value: i32) -> Result<()> {
    // SAFETY: the fourth argument of SETVAL is an int, passed in the place of the union.
    check(unsafe { libc::semctl(kernel.0, num, libc::SETVAL, value) }).map(|_| ())
}

/// `GETALL`.
pub fn sem_get_all(kernel: KernelId) -> Result<Vec<u16>> {
    // The number of semaphores never changes; read permission is GETALL's own condition too.
    let count = usize::try_from(set_stat(kernel)?.nsems).map_err(|_| SysvError::EINVAL)?;
    let mut values = vec![0; count];
    // SAFETY: GETALL writes one value for each semaphore of the set, and so many there are.
    check(unsafe { libc::semctl(kernel.0, 0, libc::GETALL, values.as_mut_ptr()) })?;
    Ok(values)
}

/// `SETALL`. Another number of values than the set has semaphores is `EINVAL`.
pub fn sem_set_all(kernel: KernelId, values: &[u16]) -> Result<()> {
    if set_stat_any(kernel)?.nsems != values.len() as u64 {
        return Err(SysvError::EINVAL);
    }
    // SAFETY: SETALL reads one value for each semaphore of the set, and so many there are.
    check(unsafe { libc::semctl(kernel.0, 0, libc::SETALL, values.as_ptr()) }).map(|_| ())
}

/// The longest text that a queue takes now (`kernel.msgmax`).
pub fn msgmax() -> Result<u64> {
    let mut info = MaybeUninit::<libc::msginfo>::zeroed();
    // SAFETY: IPC_INFO fills one msginfo instead of a msqid_ds, and it outlives the call.
    check(unsafe { libc::msgctl(0, libc::IPC_INFO, info.as_mut_ptr().cast()) })?;
    // SAFETY: it is plain integers, and all of them were initialised by `zeroed`.
    let info = unsafe { info.assume_init() };
    Ok(u64::try_from(info.msgmax).unwrap_or(0))
}

/// The most semaphores that a set may have now (the first of `kernel.sem`).
pub fn semmsl() -> Result<u64> {
    let mut info = MaybeUninit::<libc::seminfo>::zeroed();
    // SAFETY: IPC_INFO fills the one seminfo that its fourth argument points to.
    check(unsafe { libc::semctl(0, 0, libc::IPC_INFO, info.as_mut_ptr()) })?;
    // SAFETY: it is plain integers, and all of them were initialised by `zeroed`.
    let info = unsafe { info.assume_init() };
    Ok(u64::try_from(info.semmsl).unwrap_or(0))
}
