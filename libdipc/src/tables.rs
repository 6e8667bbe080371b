//! `/proc/sysvipc/{msg,sem,shm}`, for programs that read the tables instead of asking the calls
//! (`ipcs`, `lsipc`, scripts). A program that has opted in finds the distributed objects of the
//! whole cluster behind the kernel's own, in the kernel's format (ipc/msg.c, ipc/sem.c, ipc/shm.c).
//!
//! The file is opened by libc. Then, under the same descriptor, a sealed memfd takes its place: the
//! program sees its own number, and the moment of opening instead of that of reading.
#![forbid(unsafe_code)]

use std::ffi::{c_char, c_int};
use std::fmt::Write;
use std::fs::File;
use std::io;
use std::os::fd::{BorrowedFd, RawFd};
use std::os::unix::fs::FileExt;

use dipc_wire::ids::{KernelId, Kind, ObjectId};
use dipc_wire::op::StatCheck;
use dipc_wire::sysv::{Perm, QueueStat, SegmentStat, SetStat, SysvError};
use rustix::fs::{MemfdFlags, OFlags, SealFlags, fcntl_add_seals, fcntl_getfl, memfd_create};
use rustix::io::{FdFlags, fcntl_getfd, pread};

use crate::boundary::{Entry, attempt};
use crate::route::Known;
use crate::sys::{self, files};
use crate::{layout, listing, names, queues, segments, sets};

const TABLES: [(&[u8], Kind); 3] = [
    (b"/proc/sysvipc/msg", Kind::Queue),
    (b"/proc/sysvipc/sem", Kind::Set),
    (b"/proc/sysvipc/shm", Kind::Segment),
];

/// The program has opened a file, or failed to: `fd`, whose content is another now if it is one of
/// the tables. Whatever hinders us leaves the kernel's.
pub fn opened(fd: c_int, path: *const c_char) -> c_int {
    if fd < 0 {
        return fd;
    }
    let path = files::opened_path(path);
    let table = TABLES.iter().find(|(name, _)| path == *name);
    if let Some((_, kind)) = table
        && names::has_opted_in()
    {
        let _ = attempt(|entry| show(entry, *kind, fd));
    }
    fd
}

fn show(entry: &Entry, kind: Kind, fd: RawFd) -> Result<(), SysvError> {
    let file = sys::borrow(&fd);
    let for_reading =
        |flags: OFlags| flags & OFlags::ACCMODE == OFlags::RDONLY && !flags.contains(OFlags::PATH);
    if !fcntl_getfl(file).is_ok_and(for_reading) {
        return Ok(());
    }
    let objects = listing::anew(entry, kind)?;
    let mut text = without(&read(file).map_err(|_| SysvError::EIO)?, &objects);
    for (id, known) in objects {
        // One that cannot be asked is gone meanwhile, or its home is silent.
        if let Ok(line) = line(entry, kind, id, known) {
            text.push_str(&line);
        }
    }
    replace(fd, &text).map_err(|_| SysvError::EIO)
}

/// The kernel's table.
fn read(file: BorrowedFd<'_>) -> io::Result<String> {
    const PIECE: usize = 1 << 16;
    let mut bytes = Vec::new();
    loop {
        let end = bytes.len();
        bytes.resize(end + PIECE, 0);
        let read = pread(file, &mut bytes[end..], end as u64)?;
        bytes.truncate(end + read);
        if read == 0 {
            return String::from_utf8(bytes).map_err(io::Error::other);
        }
    }
}

/// The kernel's table without the objects that stand behind distributed ones.
fn without(table: &str, objects: &[(ObjectId, Known)]) -> String {
    let stays = |line: &&str| {
        let id = line.split_whitespace().nth(1).and_then(|id| id.parse().ok());
        let behind = id.map(|id| Known::Here(KernelId(id)));
        !objects.iter().any(|(_, known)| Some(*known) == behind)
    };
    table.split_inclusive('\n').filter(stays).collect()
}

fn replace(fd: RawFd, text: &str) -> io::Result<()> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let table = File::from(memfd_create(c"sysvipc", flags)?);
    table.write_all_at(text.as_bytes(), 0)?;
    fcntl_add_seals(&table, SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK)?;
    let closes_on_exec = fcntl_getfd(sys::borrow(&fd))?.contains(FdFlags::CLOEXEC);
    files::replace(&table, fd, closes_on_exec)
}

fn line(entry: &Entry, kind: Kind, id: ObjectId, known: Known) -> Result<String, SysvError> {
    let any = StatCheck::AnyMode;
    Ok(match (kind, known) {
        (Kind::Queue, Known::There(home)) => queue_line(id, &queues::stat(entry, (id, home), any)?),
        (Kind::Queue, Known::Here(kernel)) => {
            queue_line(id, &layout::queue_stat(&queues::stat_here(id, kernel, any)?))
        }
        (Kind::Set, Known::There(home)) => set_line(id, &sets::stat(entry, (id, home), any)?),
        (Kind::Set, Known::Here(kernel)) => {
            set_line(id, &layout::set_stat(&sets::stat_here(id, kernel, any)?))
        }
        (Kind::Segment, _) => segment_line(id, &segments::stat(id, any)?),
    })
}

/// Key, id and mode, as each line begins.
fn head(id: ObjectId, perm: &Perm) -> String {
    format!("{:10} {:10}  {:4o}", perm.key, id.raw(), perm.mode)
}

/// The four accounts, as each line has them.
fn accounts(perm: &Perm) -> String {
    format!("{:5} {:5} {:5} {:5}", perm.uid, perm.gid, perm.cuid, perm.cgid)
}

fn queue_line(id: ObjectId, stat: &QueueStat) -> String {
    let QueueStat { perm, stime, rtime, ctime, cbytes, qnum, lspid, lrpid, .. } = stat;
    let (head, accounts) = (head(id, perm), accounts(perm));
    format!(
        "{head}  {cbytes:10} {qnum:10} {lspid:5} {lrpid:5} {accounts} {stime:10} {rtime:10} \
         {ctime:10}\n"
    )
}

fn set_line(id: ObjectId, stat: &SetStat) -> String {
    let SetStat { perm, otime, ctime, nsems } = stat;
    let (head, accounts) = (head(id, perm), accounts(perm));
    format!("{head} {nsems:10} {accounts} {otime:10} {ctime:10}\n")
}

/// What of it lies in memory is not known to anybody, so that is said to be nothing.
fn segment_line(id: ObjectId, stat: &SegmentStat) -> String {
    let SegmentStat { perm, bytes, atime, dtime, ctime, cpid, lpid, nattch } = stat;
    let mut line = head(id, perm);
    let written = write!(
        line,
        " {bytes:21} {cpid:5} {lpid:5}  {nattch:5} {} {atime:10} {dtime:10} {ctime:10} {:21} {:21}",
        accounts(perm),
        0,
        0,
    );
    written.expect("a string takes everything");
    line.push('\n');
    line
}
