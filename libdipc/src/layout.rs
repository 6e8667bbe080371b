//! `struct msqid_ds`, `struct semid_ds` and `struct shmid_ds` as the kernel and the C libraries of
//! x86-64 lay them out, byte by byte: they are read from and written to a program's memory.
#![forbid(unsafe_code)]

use dipc_wire::ids::Key;
use dipc_wire::sysv::{Change, Perm, QueueStat, SegmentStat, SetStat};

/// Bytes of `struct msqid_ds`.
pub const QUEUE_BYTES: usize = 120;
/// Bytes of `struct semid_ds`.
pub const SET_BYTES: usize = 104;
/// Bytes of `struct shmid_ds`.
pub const SEGMENT_BYTES: usize = 112;

/// Where the last sender's pid is in a queue's; the last receiver's follows.
const QUEUE_PIDS: usize = 96;
const QUEUE_BYTES_ALLOWED: usize = 88;
const SEGMENT_SIZE: usize = 48;
const SEGMENT_PIDS: usize = 80;
const SEGMENT_ATTACHED: usize = 88;
const OWNER: usize = 4;
const GROUP: usize = 8;
const MODE: usize = 20;

const _: () = assert!(size_of::<libc::msqid_ds>() == QUEUE_BYTES);
const _: () = assert!(size_of::<libc::semid_ds>() == SET_BYTES);
const _: () = assert!(size_of::<libc::shmid_ds>() == SEGMENT_BYTES);

fn put<const N: usize>(out: &mut [u8], at: usize, bytes: [u8; N]) {
    out[at..at + N].copy_from_slice(&bytes);
}

fn word(bytes: &[u8], at: usize) -> u32 {
    let field = bytes[at..].first_chunk();
    u32::from_ne_bytes(*field.expect("the structs end behind their fields"))
}

fn long(bytes: &[u8], at: usize) -> u64 {
    let field = bytes[at..].first_chunk();
    u64::from_ne_bytes(*field.expect("the structs end behind their fields"))
}

fn perm(bytes: &[u8]) -> Perm {
    let [key, uid, gid, cuid, cgid, mode] = [0, OWNER, GROUP, 12, 16, MODE];
    Perm {
        key: word(bytes, key) as i32,
        uid: word(bytes, uid),
        gid: word(bytes, gid),
        cuid: word(bytes, cuid),
        cgid: word(bytes, cgid),
        mode: word(bytes, mode),
        seq: word(bytes, 24) & 0xffff,
    }
}

fn put_perm(out: &mut [u8], perm: &Perm) {
    let words = [perm.key as u32, perm.uid, perm.gid, perm.cuid, perm.cgid, perm.mode];
    for (index, word) in words.into_iter().enumerate() {
        put(out, 4 * index, word.to_ne_bytes());
    }
    put(out, 24, (perm.seq as u16).to_ne_bytes());
}

/// A queue's state as `IPC_STAT` gives it.
pub fn queue(stat: &QueueStat) -> [u8; QUEUE_BYTES] {
    let mut out = [0; QUEUE_BYTES];
    put_perm(&mut out, &stat.perm);
    for (index, time) in [stat.stime, stat.rtime, stat.ctime].into_iter().enumerate() {
        put(&mut out, 48 + 8 * index, time.to_ne_bytes());
    }
    for (index, count) in [stat.cbytes, stat.qnum, stat.qbytes].into_iter().enumerate() {
        put(&mut out, 72 + 8 * index, count.to_ne_bytes());
    }
    put_queue_names(&mut out, Key(stat.perm.key), [stat.lspid, stat.lrpid]);
    out
}

/// A set's state as `IPC_STAT` gives it.
pub fn set(stat: &SetStat) -> [u8; SET_BYTES] {
    let mut out = [0; SET_BYTES];
    put_perm(&mut out, &stat.perm);
    put(&mut out, 48, stat.otime.to_ne_bytes());
    put(&mut out, 64, stat.ctime.to_ne_bytes());
    put(&mut out, 80, stat.nsems.to_ne_bytes());
    out
}

/// A segment's state as `IPC_STAT` gives it.
pub fn segment(stat: &SegmentStat) -> [u8; SEGMENT_BYTES] {
    let mut out = [0; SEGMENT_BYTES];
    put_perm(&mut out, &stat.perm);
    put(&mut out, SEGMENT_SIZE, stat.bytes.to_ne_bytes());
    for (index, time) in [stat.atime, stat.dtime, stat.ctime].into_iter().enumerate() {
        put(&mut out, 56 + 8 * index, time.to_ne_bytes());
    }
    put(&mut out, SEGMENT_PIDS, stat.cpid.to_ne_bytes());
    put(&mut out, SEGMENT_PIDS + 4, stat.lpid.to_ne_bytes());
    put(&mut out, SEGMENT_ATTACHED, stat.nattch.to_ne_bytes());
    out
}

/// The opposite of [`queue`].
pub fn queue_stat(bytes: &[u8; QUEUE_BYTES]) -> QueueStat {
    let [stime, rtime, ctime] = [48, 56, 64].map(|at| long(bytes, at) as i64);
    let [cbytes, qnum, qbytes] = [72, 80, QUEUE_BYTES_ALLOWED].map(|at| long(bytes, at));
    let [lspid, lrpid] = queue_pids(bytes);
    QueueStat { perm: perm(bytes), stime, rtime, ctime, cbytes, qnum, qbytes, lspid, lrpid }
}

/// The opposite of [`set`].
pub fn set_stat(bytes: &[u8; SET_BYTES]) -> SetStat {
    let [otime, ctime] = [48, 64].map(|at| long(bytes, at) as i64);
    SetStat { perm: perm(bytes), otime, ctime, nsems: long(bytes, 80) }
}

/// A segment's size.
pub fn segment_size(bytes: &[u8; SEGMENT_BYTES]) -> usize {
    long(bytes, SEGMENT_SIZE) as usize
}

/// Replaces an object's key.
pub fn put_key(out: &mut [u8], key: Key) {
    put(out, 0, key.0.to_ne_bytes());
}

/// Replaces a queue's key and its two pids.
pub fn put_queue_names(out: &mut [u8; QUEUE_BYTES], key: Key, pids: [i32; 2]) {
    put_key(out, key);
    put(out, QUEUE_PIDS, pids[0].to_ne_bytes());
    put(out, QUEUE_PIDS + 4, pids[1].to_ne_bytes());
}

/// A queue's two pids.
pub fn queue_pids(bytes: &[u8; QUEUE_BYTES]) -> [i32; 2] {
    [word(bytes, QUEUE_PIDS) as i32, word(bytes, QUEUE_PIDS + 4) as i32]
}

/// What `IPC_SET` takes from a queue's.
pub fn queue_change(bytes: &[u8; QUEUE_BYTES]) -> Change {
    Change { qbytes: long(bytes, QUEUE_BYTES_ALLOWED), ..set_change(bytes) }
}

/// What `IPC_SET` takes from a set's or a segment's.
pub fn set_change(bytes: &[u8]) -> Change {
    let (uid, gid, mode) = (word(bytes, OWNER), word(bytes, GROUP), word(bytes, MODE));
    Change { uid, gid, mode, qbytes: 0 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::mem::offset_of;

    #[test]
    fn fields_are_where_libc_has_them() {
        assert_eq!(offset_of!(libc::ipc_perm, uid), OWNER);
        assert_eq!(offset_of!(libc::ipc_perm, gid), GROUP);
        assert_eq!(offset_of!(libc::ipc_perm, cuid), 12);
        assert_eq!(offset_of!(libc::ipc_perm, cgid), 16);
        assert_eq!(offset_of!(libc::ipc_perm, mode), MODE);
        assert_eq!(offset_of!(libc::ipc_perm, __seq), 24);
        assert_eq!(offset_of!(libc::msqid_ds, msg_stime), 48);
        assert_eq!(offset_of!(libc::msqid_ds, msg_rtime), 56);
        assert_eq!(offset_of!(libc::msqid_ds, msg_ctime), 64);
        assert_eq!(offset_of!(libc::msqid_ds, __msg_cbytes), 72);
        assert_eq!(offset_of!(libc::msqid_ds, msg_qnum), 80);
        assert_eq!(offset_of!(libc::msqid_ds, msg_qbytes), QUEUE_BYTES_ALLOWED);
        assert_eq!(offset_of!(libc::msqid_ds, msg_lspid), QUEUE_PIDS);
        assert_eq!(offset_of!(libc::semid_ds, sem_otime), 48);
        assert_eq!(offset_of!(libc::semid_ds, sem_ctime), 64);
        assert_eq!(offset_of!(libc::semid_ds, sem_nsems), 80);
        assert_eq!(offset_of!(libc::shmid_ds, shm_segsz), SEGMENT_SIZE);
        assert_eq!(offset_of!(libc::shmid_ds, shm_atime), 56);
        assert_eq!(offset_of!(libc::shmid_ds, shm_dtime), 64);
        assert_eq!(offset_of!(libc::shmid_ds, shm_ctime), 72);
        assert_eq!(offset_of!(libc::shmid_ds, shm_cpid), SEGMENT_PIDS);
        assert_eq!(offset_of!(libc::shmid_ds, shm_lpid), SEGMENT_PIDS + 4);
        assert_eq!(offset_of!(libc::shmid_ds, shm_nattch), SEGMENT_ATTACHED);
    }

    #[test]
    fn a_state_is_read_as_it_was_written() {
        let perm = Perm { key: -1, uid: 2, gid: 3, cuid: 4, cgid: 5, mode: 0o640, seq: 7 };
        let (stime, rtime, ctime, cbytes, qnum, qbytes) = (10, 11, 12, 13, 14, 15);
        let (lspid, lrpid) = (8, 9);
        let stat = QueueStat { perm, stime, rtime, ctime, cbytes, qnum, qbytes, lspid, lrpid };
        assert_eq!(queue_stat(&queue(&stat)), stat);
        let stat = SetStat { perm, otime: 10, ctime, nsems: 3 };
        assert_eq!(set_stat(&set(&stat)), stat);
    }

    #[test]
    fn a_change_reads_what_a_state_writes() {
        let perm = Perm { key: 1, uid: 2, gid: 3, cuid: 4, cgid: 5, mode: 0o640, seq: 7 };
        let stat = QueueStat { perm, qbytes: 99, lspid: 8, lrpid: 9, ..QueueStat::default() };
        let mut bytes = queue(&stat);
        assert_eq!(queue_change(&bytes), Change { uid: 2, gid: 3, mode: 0o640, qbytes: 99 });
        assert_eq!(queue_pids(&bytes), [8, 9]);
        put_queue_names(&mut bytes, Key(-5), [10, 11]);
        assert_eq!((word(&bytes, 0) as i32, queue_pids(&bytes)), (-5, [10, 11]));
        let stat = SetStat { perm, nsems: 3, ..SetStat::default() };
        assert_eq!(set_change(&set(&stat)), Change { uid: 2, gid: 3, mode: 0o640, qbytes: 0 });
        let stat = SegmentStat { perm, bytes: 4097, ..SegmentStat::default() };
        assert_eq!(segment_size(&segment(&stat)), 4097);
    }
}
