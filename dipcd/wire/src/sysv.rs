//! System V words: flags, permission bits, states of objects, and the errno values a call can end
//! with. They are the manual pages'; what distribution adds stands elsewhere.

use serde::{Deserialize, Serialize};

/// The flag that makes an object distributed (octal 00010000).
pub const IPC_DIPC: i32 = 0o10000;
/// `IPC_CREAT` of ipc(2).
pub const IPC_CREAT: i32 = 0o1000;
/// `IPC_EXCL` of ipc(2).
pub const IPC_EXCL: i32 = 0o2000;
/// `IPC_NOWAIT` of ipc(2).
pub const IPC_NOWAIT: i32 = 0o4000;
/// `MSG_NOERROR` of msgrcv(2).
pub const MSG_NOERROR: i32 = 0o10000;
/// `MSG_EXCEPT` of msgrcv(2).
pub const MSG_EXCEPT: i32 = 0o20000;
/// `MSG_COPY` of msgrcv(2).
pub const MSG_COPY: i32 = 0o40000;
/// `SEM_UNDO` of semop(2).
pub const SEM_UNDO: i16 = 0x1000;
/// `SHM_RDONLY` of shmat(2).
pub const SHM_RDONLY: i32 = 0o10000;
/// `SHM_RND` of shmat(2).
pub const SHM_RND: i32 = 0o20000;
/// `SHM_REMAP` of shmat(2).
pub const SHM_REMAP: i32 = 0o40000;
/// `SHM_EXEC` of shmat(2).
pub const SHM_EXEC: i32 = 0o100000;
/// `SHM_DEST` in a mode: the segment is deleted at its last detach.
pub const SHM_DEST: u32 = 0o1000;
/// `SHM_LOCKED` in a mode.
pub const SHM_LOCKED: u32 = 0o2000;

/// The nine permission bits of a mode or of get flags.
pub const PERMISSIONS: i32 = 0o777;

macro_rules! errors {
    ($($(#[$doc:meta])* $name:ident = $number:literal),* $(,)?) => {
        /// A refusal: the errno a program gets, as its manual page says. A closed list; a value
        /// that is not on it becomes [`SysvError::EIO`].
        #[allow(clippy::upper_case_acronyms)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
        pub enum SysvError { $($(#[$doc])* $name),* }

        impl SysvError {
            /// All of them, in the order of the enum.
            pub const ALL: &[SysvError] = &[$(SysvError::$name),*];

            /// The number of Linux.
            pub const fn errno(self) -> i32 {
                match self { $(SysvError::$name => $number),* }
            }

            /// The value with that number.
            pub const fn from_errno(errno: i32) -> SysvError {
                match errno { $($number => SysvError::$name,)* _ => SysvError::EIO }
            }
        }
    };
}

errors! {
    /// Not owner nor privileged.
    EPERM = 1,
    /// No object with that key.
    ENOENT = 2,
    /// A signal came while waiting.
    EINTR = 4,
    /// The outcome is not known, or DIPC itself failed.
    EIO = 5,
    /// Too long for the receiver, or too many operations.
    E2BIG = 7,
    /// It would have to wait.
    EAGAIN = 11,
    /// No memory.
    ENOMEM = 12,
    /// No permission.
    EACCES = 13,
    /// A bad address.
    EFAULT = 14,
    /// The key exists.
    EEXIST = 17,
    /// A bad argument or an unknown id.
    EINVAL = 22,
    /// A semaphore number beyond the set.
    EFBIG = 27,
    /// A limit on objects is reached.
    ENOSPC = 28,
    /// A semaphore value out of range.
    ERANGE = 34,
    /// Not available here.
    ENOSYS = 38,
    /// No message of that type.
    ENOMSG = 42,
    /// The object was removed, or its home is lost.
    EIDRM = 43,
    /// A value does not fit.
    EOVERFLOW = 75,
    /// A bound of the configuration passed without an answer.
    ETIMEDOUT = 110,
}

/// Who an object belongs to and who may use it: `struct ipc_perm`. The ids are home's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Perm {
    /// The key; 0 for a private object.
    pub key: i32,
    /// The owner's user and group.
    pub uid: u32,
    /// See `uid`.
    pub gid: u32,
    /// The creator's user and group.
    pub cuid: u32,
    /// See `cuid`.
    pub cgid: u32,
    /// Permission bits (and the kernel's own flags above them).
    pub mode: u32,
    /// The kernel's sequence number.
    pub seq: u32,
}

/// `struct msqid_ds`, times in seconds since 1970.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct QueueStat {
    /// Ownership and mode.
    pub perm: Perm,
    /// Time of the last msgsnd.
    pub stime: i64,
    /// Time of the last msgrcv.
    pub rtime: i64,
    /// Time of creation or of the last change.
    pub ctime: i64,
    /// Bytes in the queue.
    pub cbytes: u64,
    /// Messages in the queue.
    pub qnum: u64,
    /// Bytes allowed.
    pub qbytes: u64,
    /// Pid of the last msgsnd, as on its own node.
    pub lspid: i32,
    /// Pid of the last msgrcv, as on its own node.
    pub lrpid: i32,
}

/// `struct semid_ds`, times in seconds since 1970.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct SetStat {
    /// Ownership and mode.
    pub perm: Perm,
    /// Time of the last semop.
    pub otime: i64,
    /// Time of creation or of the last change.
    pub ctime: i64,
    /// Semaphores in the set.
    pub nsems: u64,
}

/// `struct shmid_ds`, times in seconds since 1970.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct SegmentStat {
    /// Ownership and mode, with `SHM_DEST` and `SHM_LOCKED`.
    pub perm: Perm,
    /// Its size in bytes, as it was asked for.
    pub bytes: u64,
    /// Time of the last shmat.
    pub atime: i64,
    /// Time of the last shmdt.
    pub dtime: i64,
    /// Time of creation or of the last change.
    pub ctime: i64,
    /// Pid of the creator, as on its own node.
    pub cpid: i32,
    /// Pid of the last shmat or shmdt, as on its own node.
    pub lpid: i32,
    /// Attachments in the whole cluster.
    pub nattch: u64,
}

/// What `shmctl` does to one segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum SegmentControl {
    /// `IPC_STAT`, `SHM_STAT`: needs read permission.
    Stat,
    /// `SHM_STAT_ANY`: needs none.
    StatAny,
    /// `IPC_SET`; `qbytes` says nothing.
    Set(Change),
    /// `IPC_RMID`: it is deleted at its last detach in the cluster.
    Remove,
    /// `SHM_LOCK`.
    Lock,
    /// `SHM_UNLOCK`.
    Unlock,
    /// `SHM_LOCK`, as a node says it to home.
    LockWithin {
        /// The caller's `RLIMIT_MEMLOCK`, as its node has read it: bytes of all segments that its
        /// account has locked at this home. An account with `ipc_lock` may pass it.
        bytes_max: u64,
    },
}

/// What `IPC_SET` changes; `qbytes` is for queues alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Change {
    /// The new owner, home's number.
    pub uid: u32,
    /// The new group, home's number.
    pub gid: u32,
    /// The new permission bits.
    pub mode: u32,
    /// The new bound on bytes.
    pub qbytes: u64,
}

/// One operation of `semop`: `struct sembuf`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SemBuf {
    /// Which semaphore.
    pub num: u16,
    /// What to add; 0 waits for zero.
    pub op: i16,
    /// `IPC_NOWAIT`, `SEM_UNDO`.
    pub flags: i16,
}

/// Rights beyond those of an account, which a program's thread holds (capabilities(7)).
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct Rights {
    /// `CAP_IPC_OWNER`: permission checks are passed over.
    pub ipc_owner: bool,
    /// `CAP_SYS_ADMIN`: others' objects may be changed and removed.
    pub sys_admin: bool,
    /// `CAP_SYS_RESOURCE`: `msg_qbytes` may exceed `msgmnb`.
    pub sys_resource: bool,
    /// `CAP_IPC_LOCK`: others' segments may be locked.
    pub ipc_lock: bool,
}

/// Whether `ipcperms` of the kernel (ipc/util.c) would grant `flags` on an object to somebody.
///
/// `flags` are those of a `*get`: any of the three positions of a wanted bit counts.
pub fn may_use(
    perm: &Perm,
    flags: i32,
    uid: u32,
    groups: impl Fn(u32) -> bool,
    rights: Rights,
) -> bool {
    let wanted = (flags >> 6) | (flags >> 3) | flags;
    let granted = if uid == perm.cuid || uid == perm.uid {
        perm.mode >> 6
    } else if groups(perm.cgid) || groups(perm.gid) {
        perm.mode >> 3
    } else {
        perm.mode
    };
    wanted & !(granted as i32) & 0o7 == 0 || rights.ipc_owner
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errno_and_value_agree() {
        for &error in SysvError::ALL {
            assert_eq!(SysvError::from_errno(error.errno()), error);
        }
        assert_eq!(SysvError::from_errno(9999), SysvError::EIO);
    }

    #[test]
    fn permission_follows_the_first_class_that_matches() {
        let perm = Perm { uid: 1, cuid: 2, gid: 3, cgid: 4, mode: 0o046, ..Perm::default() };
        let check = |flags, uid, gid: u32| {
            may_use(&perm, flags, uid, |group| group == gid, Rights::default())
        };
        assert!(!check(0o400, 1, 9), "the owner's class is empty, though others may");
        assert!(!check(0o400, 2, 9), "so is the creator's, who is the same class");
        assert!(check(0o400, 5, 3) && !check(0o600, 5, 4), "the group reads");
        assert!(check(0o600, 5, 9) && check(0, 1, 9), "others write; nothing asked is granted");
        assert!(may_use(
            &perm,
            0o600,
            1,
            |_| false,
            Rights { ipc_owner: true, ..Rights::default() }
        ));
    }
}
