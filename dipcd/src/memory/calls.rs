//! The calls of local programs that are about memory, and what other nodes ask of a segment's home
//! besides pages.
#![forbid(unsafe_code)]

use rustix::fs::{Mode, OFlags};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use dipc_wire::client::{Answer, Call, Mm, Trap, Traps};
use dipc_wire::ids::{NodeId, ObjectId};
use dipc_wire::memory::Access;
use dipc_wire::peer::{Caller, PeerFrame};
use dipc_wire::sysv::SysvError;

use super::attach::{self, Program};
use super::families::{Families, Process};
use super::{control, count, ends};
use crate::clock::Deadline;
use crate::config::Trap as TrapEntry;
use crate::daemon::Daemon;
use crate::home_work;
use crate::sys::credentials::{Peer, group_by_name};

/// What a process with rights makes userfaultfds by.
const DEVICE: &str = "/dev/userfaultfd";
/// How many questions of other nodes are served beside their workers at a time.
const BESIDE_MAX: usize = 64;

type Reply = (Answer, Option<OwnedFd>);

/// Serves a call; `fd` came with it.
pub fn serve(
    daemon: &Arc<Daemon>,
    peer: &Peer,
    caller: impl FnOnce() -> Result<Caller, SysvError>,
    call: &Call,
    fd: Option<OwnedFd>,
) -> Result<Reply, SysvError> {
    let deadline = Deadline::after(daemon.timeouts().employer_referee);
    let plain = |answer| Ok((answer, None));
    match *call {
        Call::HowToTrap => Ok(how_to_trap(daemon, peer)),
        Call::Trap { trap, sentinel } => take(daemon, peer, trap, sentinel, fd).and_then(plain),
        Call::Attach { mm, id, flags } => {
            let caller = caller()?;
            let program = Program { pid: peer.pid, caller: &caller };
            attach::attach(daemon, &program, mm, id, flags, deadline)
        }
        Call::Mapped { attachment, address } => {
            attach::mapped(daemon, peer.pid, attachment, address).and_then(plain)
        }
        Call::Unmapped { mm, attachment, .. } => {
            attach::changed(daemon, &caller()?, mm, attachment).and_then(plain)
        }
        Call::Moved { mm, .. } => attach::changed(daemon, &caller()?, mm, None).and_then(plain),
        Call::Control { id, control } => {
            let stat = control::control(daemon, &caller()?, id, control, deadline)?;
            plain(Answer::Segment(stat))
        }
        Call::Touched { mm, address, access } => {
            touched(daemon, peer, mm, address, access).and_then(plain)
        }
        _ => Err(SysvError::ENOSYS),
    }
}

/// Which traps a program may use: a userfaultfd by its own right, or by the device, which root and
/// the members of `kernel_faults` get from us.
fn how_to_trap(daemon: &Daemon, peer: &Peer) -> Reply {
    let config = daemon.config();
    let userfaultfd = config.trap != TrapEntry::Mprotect && Families::usable().is_ok();
    let group = group_by_name(config.kernel_faults.as_str());
    let is_member = |gid: u32| peer.gid == gid || peer.groups.contains(&gid);
    let may = userfaultfd && (peer.uid == 0 || group.is_some_and(is_member));
    let flags = OFlags::RDWR | OFlags::CLOEXEC;
    let device = if may { rustix::fs::open(DEVICE, flags, Mode::empty()).ok() } else { None };
    let mprotect = config.trap != TrapEntry::Userfaultfd;
    (Answer::Traps(Traps { userfaultfd, device: device.is_some(), mprotect }), device)
}

/// Takes a program's trap over.
fn take(
    daemon: &Daemon,
    peer: &Peer,
    trap: Trap,
    sentinel: u64,
    fd: Option<OwnedFd>,
) -> Result<Answer, SysvError> {
    let refused = |error: std::io::Error| {
        daemon.refusals.of_program(peer.pid, peer.uid, format!("no trap: {error}"));
        SysvError::EINVAL
    };
    let fd = fd.ok_or(SysvError::EINVAL)?;
    let pidfd = peer.pidfd.try_clone().map_err(refused)?;
    let process = Process { pid: peer.pid, pidfd: Arc::new(pidfd) };
    daemon.memory.families().take(process, trap, sentinel, fd).map_err(refused)?;
    if trap == Trap::UserMode {
        tracing::warn!(
            op = "trap",
            pid = peer.pid,
            uid = peer.uid,
            "user mode only: its system calls on absent pages give EFAULT (kernel_faults)"
        );
    }
    Ok(Answer::Done)
}

/// A program of the mprotect trap waits for a page.
fn touched(
    daemon: &Daemon,
    peer: &Peer,
    mm: Mm,
    address: u64,
    access: Access,
) -> Result<Answer, SysvError> {
    let memory = &daemon.memory;
    if !memory.families().may_touch(mm, peer.pid) {
        return Err(SysvError::EINVAL);
    }
    let (mappings, offset) = memory.families().locate(mm, address).ok_or(SysvError::EINVAL)?;
    memory.touched(mm, &mappings, offset, access).map(|()| Answer::Done)
}

/// What another node asks of this home, or a home of this node.
pub fn serve_peer(daemon: &Arc<Daemon>, from: NodeId, frame: PeerFrame) {
    match frame {
        PeerFrame::Attach { req, caller, id, flags } if caller.client.node == from => {
            beside_if_removed(daemon, id, move |daemon| {
                // One whose last detach is not known yet is gone already.
                control::delete_if_unused(daemon, id);
                let account = home_work::account(daemon, from, &caller);
                let outcome =
                    account.and_then(|account| attach::admit(daemon, &caller, &account, id, flags));
                daemon.links.post(from, PeerFrame::Attached { req, outcome });
            });
        }
        PeerFrame::Detach { req, id, client } if client.node == from => {
            beside_if_removed(daemon, id, move |daemon| {
                ends::detached_at_home(daemon, id, client);
                daemon.links.post(from, PeerFrame::DetachNoted { req });
            });
        }
        PeerFrame::Control { req, caller, id, control } if caller.client.node == from => {
            beside(daemon, move |daemon| {
                let account = home_work::account(daemon, from, &caller);
                let outcome =
                    account.and_then(|account| control::at_home(daemon, &account, id, control));
                daemon.links.post(from, PeerFrame::Controlled { req, outcome });
            });
        }
        PeerFrame::Count { req, id } => {
            let attachments = count::count_here(daemon, id);
            daemon.links.post(from, PeerFrame::Counted { req, attachments });
        }
        _ => tracing::warn!(op = "frame", peer = %from, "about another node's client; dropped"),
    }
}

/// Only the last detach of a removed segment needs a count.
fn beside_if_removed(
    daemon: &Arc<Daemon>,
    id: ObjectId,
    work: impl FnOnce(&Arc<Daemon>) + Send + 'static,
) {
    match daemon.home.segments.is_removed(id) {
        true => beside(daemon, work),
        false => work(daemon),
    }
}

/// Serves a question beside the worker of its link, if other nodes may have to count for it: two
/// workers that waited for each other's counts would wait in vain. Whoever asks waits for the
/// answer, so nothing of his overtakes it.
fn beside(daemon: &Arc<Daemon>, work: impl FnOnce(&Arc<Daemon>) + Send + 'static) {
    let under_way = &daemon.memory.beside;
    if under_way.load(Ordering::Relaxed) >= BESIDE_MAX {
        return work(daemon);
    }
    under_way.fetch_add(1, Ordering::Relaxed);
    let (give, take) = crossbeam_channel::bounded::<Box<dyn FnOnce() + Send>>(1);
    let daemon = daemon.clone();
    let job: Box<dyn FnOnce() + Send> = Box::new(move || {
        work(&daemon);
        daemon.memory.beside.fetch_sub(1, Ordering::Relaxed);
    });
    let thread = std::thread::Builder::new().name("question".into());
    match thread.spawn(move || take.into_iter().for_each(|job| job())) {
        // It takes one and ends.
        Ok(_) => drop(give.send(job)),
        Err(_) => job(),
    }
}
