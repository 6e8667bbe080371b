//! Stopping the server of a port, then removing what is left.
//!
//! ```text
//! look ──served──▶ its process here: SIGTERM, grace, SIGKILL, end ──▶ look again
//!   ├──remains────▶ close the set, remove both objects
//!   ├──closed─────▶ its remover may have died: remove both objects
//!   └──nothing────▶ done, or there never was anything
//! ```
//!
//! A process is signalled through a pidfd that was opened before pid and start time were compared,
//! so the signal cannot reach another one. Whether a server lives the kernel knows: its semaphore
//! is put back when it ends, however it ends.
#![forbid(unsafe_code)]

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::thread;
use std::time::{Duration, Instant};

use dipc_server::failure::Failure;
use dipc_server::layout::ServerRecord;
use dipc_server::place::{self, Found};
use dipc_server::process::{Process, machine};
use dipc_server::sys::Reach;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::{AsFd, BorrowedFd};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::Target;

/// The server ends its clients within a second; then it is killed.
const GRACE: Duration = Duration::from_secs(5);
/// How long a killed process may take to end.
const KILL_MAX: Duration = Duration::from_secs(10);
/// How long somebody else may take for a set that is not finished, or a server to sign.
const SETTLE_MAX: Duration = Duration::from_secs(4);
const SETTLE_STEP: Duration = Duration::from_millis(10);

/// Stops and removes. Where this machine has nothing under the port's key, the servers are looked
/// for that share it under libdipc.
pub fn stop(target: Target) -> Result<(), Failure> {
    match stop_one(target) {
        Err(Failure::Nothing { .. }) if target.reach == Reach::Here => {
            stop_one(Target { reach: Reach::Shared, ..target })
        }
        stopped => stopped,
    }
}

/// An error says that something else is the case now.
fn stop_one(target: Target) -> Result<(), Failure> {
    let Target { port, reach, .. } = target;
    let mut did = Did::Nothing;
    let until = Instant::now() + GRACE + KILL_MAX + SETTLE_MAX;
    let mut signed_until = None;
    while Instant::now() < until {
        match place::look(port, reach)? {
            Found::Foreign => return Err(Failure::Foreign { port }),
            Found::Nothing => return nothing_there(target, did),
            Found::Closed(set) | Found::Unfinished { set, stale: true } => {
                place::remove(port, reach, set)?;
                did = Did::Remove;
            }
            Found::Remains(set) => {
                if place::close(set).map_err(|error| Failure::system("closing", error))? {
                    place::remove(port, reach, set)?;
                    did = Did::Remove;
                }
            }
            Found::Unfinished { stale: false, .. } => thread::sleep(SETTLE_STEP),
            Found::Served(set, slots) => {
                let records = place::records(port, reach, &slots);
                let Ok(owner_uid) = set.status().map(|status| status.owner_uid) else { continue };
                let here = servers_here(target, &records)?;
                let settled = *signed_until.get_or_insert_with(|| Instant::now() + SETTLE_MAX / 4);
                match here.as_slice() {
                    [] if did == Did::Stop => return Ok(()),
                    [] if Instant::now() >= settled => return Err(Failure::Elsewhere { port }),
                    [] => thread::sleep(SETTLE_STEP),
                    servers => {
                        for server in servers {
                            end(port, server, owner_uid)?;
                        }
                        did = Did::Stop;
                    }
                }
            }
        }
    }
    Err(Failure::Unsettled { port })
}

/// What has been done so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Did {
    Nothing,
    Stop,
    Remove,
}

/// Without a set there may still be a segment, if somebody removed the set by hand.
fn nothing_there(target: Target, did: Did) -> Result<(), Failure> {
    match place::remove_lone_segment(target.port, target.reach) {
        Err(Failure::Nothing { .. }) if did != Did::Nothing => Ok(()),
        removed => removed,
    }
}

/// The servers that run on this machine, as far as this command is about them.
fn servers_here(target: Target, records: &[ServerRecord]) -> Result<Vec<Process>, Failure> {
    let here = machine().map_err(|error| Failure::system("this machine's boot id", error))?;
    let meant = |record: &&ServerRecord| {
        record.process.machine == here
            && target.address.is_none_or(|address| address == record.address)
            && record.process.runs_here()
    };
    Ok(records.iter().filter(meant).map(|record| record.process).collect())
}

/// Ends one server: asks, waits, kills, waits.
fn end(port: u16, server: &Process, owner_uid: u32) -> Result<(), Failure> {
    let pid = server.pid;
    let failed = |error: rustix::io::Errno| match error {
        rustix::io::Errno::PERM => Failure::OtherUser { port },
        error => Failure::system(format!("port {port}: ending pid {pid}"), error.into()),
    };
    let Some(raw) = i32::try_from(pid).ok().and_then(Pid::from_raw) else { return Ok(()) };
    let pidfd = match pidfd_open(raw, PidfdFlags::empty()) {
        Err(rustix::io::Errno::SRCH) => return Ok(()),
        opened => opened.map_err(failed)?,
    };
    if !server.runs_here() {
        return Ok(());
    }
    if !belongs_to(pid, owner_uid) {
        return Err(Failure::OtherUser { port });
    }
    for (signal, bound) in [(Signal::TERM, GRACE), (Signal::KILL, KILL_MAX)] {
        match pidfd_send_signal(&pidfd, signal) {
            Err(rustix::io::Errno::SRCH) => return Ok(()),
            sent => sent.map_err(failed)?,
        }
        if ends_within(pidfd.as_fd(), bound).map_err(failed)? {
            return Ok(());
        }
    }
    Err(Failure::Unending { port, pid })
}

/// Whether a process is the objects' owner's. Who owns them can write any pid into them, and must
/// not get root to end another one's process by it. Others than root only end their own.
fn belongs_to(pid: u32, owner_uid: u32) -> bool {
    let own = rustix::process::geteuid();
    let uid = if own.is_root() { owner_uid } else { own.as_raw() };
    fs::metadata(format!("/proc/{pid}")).is_ok_and(|of| of.uid() == uid)
}

fn ends_within(pidfd: BorrowedFd<'_>, bound: Duration) -> rustix::io::Result<bool> {
    let until = Instant::now() + bound;
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let left = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() };
        let mut polled = [PollFd::from_borrowed_fd(pidfd, PollFlags::IN)];
        match poll(&mut polled, Some(&left)) {
            Ok(ready) => return Ok(ready > 0),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error),
        }
    }
}
