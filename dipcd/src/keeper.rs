//! The keeper: a store of named descriptors and the parent of stand-ins, in a process of its own
//! (`dipcd --keeper STATE_DIR`) that outlives dipcd. No configuration, no network, one thread.
//!
//! It serves one dipcd at a time, of its own user; a newer connection replaces an older. It ends
//! when no dipcd is connected and it holds nothing, or when it is told to. It reads nothing of
//! what it holds; it only notices that a stand-in has ended, and forgets it then. And it watches
//! the leases: where dipcd does not end one in time, it takes the pages away itself.
#![forbid(unsafe_code)]

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::FlockOperation;
use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::process::{Pid, Resource, getrlimit, setrlimit};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use dipc_wire::ids::NodeId;
use dipc_wire::keeper::{FromKeeper, Held, StandIn, ToKeeper};

use crate::clock::now_ms;
use crate::log::{self, Verbosity};
use crate::memory::families::Patience;
use crate::memory::leases::Leases;
use crate::memory::revoke::{self, Holdings, Left, Stopped};
use crate::privileges;
use crate::stand_in::{self, Start, Started};
use crate::sys::packets;
use crate::sys::process::{self, Forked};

/// Where it listens, in `state_dir`.
pub const SOCKET_NAME: &str = "keeper.sock";
/// What it locks as long as it runs, in `state_dir`.
const LOCK_NAME: &str = "keeper.lock";
/// How long it waits for the dipcd that started it.
const FIRST_WAIT: Timespec = Timespec { tv_sec: 10, tv_nsec: 0 };
const NO_WAIT: Timespec = Timespec { tv_sec: 0, tv_nsec: 0 };
/// How long a dipcd may leave an answer unread.
const SEND_WAIT: Duration = Duration::from_secs(5);
const BACKLOG: i32 = 16;
/// How long after its end a lease is left to a dipcd that is about to start.
const GRACE_MS: u64 = 60;
/// After an attempt to end one that failed, before the next.
const AGAIN: Duration = Duration::from_millis(20);

/// Becomes the keeper of `state_dir`: returns once a keeper runs in the background, which may be
/// another one.
pub fn run(state_dir: &Path, verbosity: Verbosity) -> io::Result<()> {
    process::close_inherited()?;
    let Some(mut keeper) = Keeper::open(&fs::canonicalize(state_dir)?)? else { return Ok(()) };
    if let Forked::Parent(_) = process::fork()? {
        return Ok(());
    }
    detach(verbosity)?;
    match keeper.serve() {
        Ok(Next::End) => process::exit_now(0),
        Ok(Next::StandIn(start)) => {
            // Closed all at once; one by one would take long in a large keeper.
            std::mem::forget(keeper);
            process::close_all_but(&start.control)?;
            stand_in::run(start)
        }
        Err(error) => {
            tracing::error!(op = "keep", %error);
            process::exit_now(1)
        }
    }
}

/// What one step of the keeper leads to.
enum Next {
    /// It has nothing more to do.
    End,
    /// This is the child of a fork now, and becomes a stand-in.
    StandIn(Start),
}

/// Leaves the terminal, the directory and the signals of whoever started it.
fn detach(verbosity: Verbosity) -> io::Result<()> {
    rustix::process::setsid()?;
    rustix::process::chdir("/")?;
    privileges::keep_needed()?;
    process::ignore_signals();
    log::start(verbosity);
    std::panic::set_hook(Box::new(|panic| {
        eprintln!("dipcd: keeper or stand-in: {panic}");
        std::process::abort();
    }));
    // What stand-ins leave running becomes our child, and is reaped with them.
    rustix::process::set_child_subreaper(Some(rustix::process::getpid()))?;
    let mut files = getrlimit(Resource::Nofile);
    files.current = files.maximum;
    Ok(setrlimit(Resource::Nofile, files)?)
}

struct Keeper {
    state_dir: PathBuf,
    /// Locked as long as we run; a stand-in closes its copy.
    _lock: File,
    listener: OwnedFd,
    dipcd: Dipcd,
    held: Holdings,
    /// Once there is a file of a segment.
    leases: Option<Leases>,
}

/// The dipcd that is served.
enum Dipcd {
    /// None has come yet.
    Awaited,
    /// With its pid.
    Connected(OwnedFd, Pid),
    /// The last one has gone.
    Gone,
}

/// What poll found.
enum Ready {
    /// Nothing within the time.
    Nothing,
    /// These stand-ins have ended.
    Ended(Vec<Held>),
    /// A packet of dipcd, or its end.
    Packet,
    /// A new connection, and no packet of the one before is unread.
    Connection,
}

impl Keeper {
    /// Listens in `state_dir`. `None` if another keeper does.
    fn open(state_dir: &Path) -> io::Result<Option<Keeper>> {
        // For its owner alone: whoever may open a file may lock it.
        let mut options = File::options();
        options.write(true).create(true).truncate(false).mode(0o600);
        let lock = options.open(state_dir.join(LOCK_NAME))?;
        match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::WOULDBLOCK) => return Ok(None),
            locked => locked?,
        }
        let socket = state_dir.join(SOCKET_NAME);
        remove_if_there(&socket)?;
        let listener = packets::listen(&socket, 0o600, BACKLOG)?;
        Ok(Some(Keeper {
            state_dir: state_dir.to_owned(),
            _lock: lock,
            listener,
            dipcd: Dipcd::Awaited,
            held: BTreeMap::new(),
            leases: None,
        }))
    }

    /// Serves until nothing is left to do.
    fn serve(&mut self) -> io::Result<Next> {
        loop {
            match self.wait()? {
                Ready::Nothing if self.is_idle() => break,
                Ready::Nothing => self.end_leases(),
                Ready::Ended(names) => names.iter().for_each(|name| drop(self.held.remove(name))),
                Ready::Connection => self.admit(),
                Ready::Packet => match self.obey() {
                    Ok(None) => {}
                    Ok(Some(Next::End)) => break,
                    Ok(Some(next)) => return Ok(next),
                    Err(error) => {
                        tracing::warn!(op = "keep", %error, "the connection of dipcd is closed");
                        self.dipcd = Dipcd::Gone;
                    }
                },
            }
        }
        remove_if_there(&self.state_dir.join(SOCKET_NAME))?;
        Ok(Next::End)
    }

    /// How long to wait: until a lease is over, unless nobody is served and nothing is held.
    fn patience(&self) -> Option<Timespec> {
        match self.dipcd {
            Dipcd::Awaited => Some(FIRST_WAIT),
            Dipcd::Gone if self.held.is_empty() => Some(NO_WAIT),
            Dipcd::Gone | Dipcd::Connected(..) => {
                let left_ms = self.first_lease_ms()?.saturating_sub(now_ms());
                Timespec::try_from(Duration::from_millis(left_ms)).ok()
            }
        }
    }

    /// Whether there is nothing to do, now that nothing has happened.
    fn is_idle(&self) -> bool {
        match self.dipcd {
            Dipcd::Awaited => true,
            Dipcd::Gone => self.held.is_empty(),
            Dipcd::Connected(..) => false,
        }
    }

    /// When the first lease is over that nobody has ended.
    fn first_lease_ms(&self) -> Option<u64> {
        let leases = self.leases.as_ref()?;
        let homes = revoke::homes(&self.held).filter(|home| !leases.is_ended(*home));
        homes.map(|home| self.due_ms(leases, home)).min()
    }

    /// When we end a lease. A dipcd that is at it is given time.
    fn due_ms(&self, leases: &Leases, home: NodeId) -> u64 {
        let ends_ms = leases.ends_ms(home);
        match self.dipcd {
            Dipcd::Connected(..) => {
                let grace_ms = u64::try_from(leases.grace().as_millis()).unwrap_or(GRACE_MS);
                ends_ms.max(leases.worked_ms()) + grace_ms
            }
            Dipcd::Awaited | Dipcd::Gone => ends_ms + GRACE_MS,
        }
    }

    /// Ends the leases that dipcd should have ended. It stands still meanwhile: two at it would
    /// spoil what is recorded.
    fn end_leases(&self) {
        let Some(leases) = &self.leases else { return };
        let mut tried = BTreeSet::new();
        let mut due = self.due(leases, &tried);
        if due.is_empty() {
            return;
        }
        let stopped = match &self.dipcd {
            Dipcd::Connected(_, pid) => Some(Stopped::of(*pid)),
            Dipcd::Awaited | Dipcd::Gone => None,
        };
        leases.intervene();
        let patience = Arc::new(Patience::new(leases.patience()));
        patience.hurry();
        let mut left = Vec::new();
        loop {
            for home in &due {
                left.extend(self.end_lease(leases, *home, &patience));
            }
            tried.append(&mut due);
            // What has time comes after what has none.
            let Some(file) = left.last_mut() else { break };
            if !file.put_some_aside() {
                left.pop();
            }
            due = self.due(leases, &tried);
        }
        drop(stopped);
    }

    /// Whose leases are to be ended now.
    fn due(&self, leases: &Leases, but_for: &BTreeSet<NodeId>) -> BTreeSet<NodeId> {
        let is_due = |home: &NodeId| {
            !leases.is_ended(*home)
                && !but_for.contains(home)
                && self.due_ms(leases, *home) <= now_ms()
        };
        revoke::homes(&self.held).filter(is_due).collect()
    }

    fn end_lease(&self, leases: &Leases, home: NodeId, patience: &Arc<Patience>) -> Vec<Left> {
        let ends_ms = leases.ends_ms(home);
        tracing::warn!(op = "lease", peer = %home, "over; its pages are taken away");
        match revoke::end_lease(&self.state_dir, &self.held, home, patience) {
            Ok(left) => {
                leases.set_ended(home, ends_ms);
                left
            }
            Err(error) => {
                tracing::error!(op = "lease", peer = %home, %error);
                std::thread::sleep(AGAIN);
                Vec::new()
            }
        }
    }

    /// Waits for something to do. What an earlier dipcd has sent counts before a new connection,
    /// so that nothing it gave us to hold is lost.
    fn wait(&self) -> io::Result<Ready> {
        let stand_ins: Vec<_> =
            self.held.iter().filter(|(name, _)| matches!(name, Held::StandIn(_))).collect();
        // The listener first: whatever was sent before a connection was made is then seen.
        let mut watched = vec![PollFd::new(&self.listener, PollFlags::IN)];
        if let Dipcd::Connected(connection, _) = &self.dipcd {
            watched.push(PollFd::new(connection, PollFlags::IN));
        }
        let served = watched.len();
        watched.extend(stand_ins.iter().map(|(_, fd)| PollFd::new(*fd, PollFlags::empty())));
        loop {
            match poll(&mut watched, self.patience().as_ref()) {
                Err(Errno::INTR) => {}
                Ok(0) => return Ok(Ready::Nothing),
                Ok(_) => break,
                Err(error) => return Err(error.into()),
            }
        }
        let happened = |fd: &PollFd<'_>| !fd.revents().is_empty();
        let stand_ins = stand_ins.iter().zip(&watched[served..]);
        let ended = stand_ins.filter(|(_, fd)| happened(fd)).map(|((name, _), _)| (*name).clone());
        let ended: Vec<_> = ended.collect();
        Ok(match &watched[..served] {
            _ if !ended.is_empty() => Ready::Ended(ended),
            [_, connection] if happened(connection) => Ready::Packet,
            _ => Ready::Connection,
        })
    }

    /// Takes a new connection in the place of the one before, if it is our own user's.
    fn admit(&mut self) {
        let admitted = packets::accept(&self.listener).and_then(|connection| {
            let peer = rustix::net::sockopt::socket_peercred(&connection)?;
            if peer.uid != rustix::process::geteuid() {
                return Err(io::ErrorKind::PermissionDenied.into());
            }
            set_socket_timeout(&connection, Timeout::Send, Some(SEND_WAIT))?;
            Ok((connection, peer.pid))
        });
        match admitted {
            Ok((connection, pid)) => self.dipcd = Dipcd::Connected(connection, pid),
            Err(error) => tracing::warn!(op = "keep", %error, "a connection is refused"),
        }
    }

    /// Does what one packet of dipcd wants.
    fn obey(&mut self) -> io::Result<Option<Next>> {
        let Dipcd::Connected(connection, _) = &self.dipcd else { return Ok(None) };
        let Some((wanted, fds)) = packets::receive(connection)? else {
            self.dipcd = Dipcd::Gone;
            return Ok(None);
        };
        match wanted {
            ToKeeper::Hello => {
                answer(connection, &FromKeeper::Hello { pid: std::process::id() }, None)?;
            }
            ToKeeper::Hold(name) => {
                let fd = fds.into_iter().next().ok_or(io::ErrorKind::InvalidData)?;
                if matches!(name, Held::File(_)) && self.leases.is_none() {
                    self.leases = Some(revoke::leases(&self.state_dir)?);
                }
                self.held.insert(name, fd);
            }
            ToKeeper::Release(name) => {
                self.held.remove(&name);
            }
            ToKeeper::Fetch => {
                for (name, fd) in &self.held {
                    answer(connection, &FromKeeper::Held(name.clone()), Some(fd.as_fd()))?;
                }
                answer(connection, &FromKeeper::Fetched, None)?;
            }
            ToKeeper::StandIn(who) => return self.start(who),
            ToKeeper::Quit => return Ok(Some(Next::End)),
        }
        Ok(None)
    }

    /// Forks a stand-in and waits until it is in its role, which takes it a few system calls.
    fn start(&mut self, who: StandIn) -> io::Result<Option<Next>> {
        let Dipcd::Connected(connection, _) = &self.dipcd else { return Ok(None) };
        let (near, far) = packets::pair()?;
        let forked = match process::fork() {
            Ok(Forked::Child) => {
                let state_dir = self.state_dir.clone();
                return Ok(Some(Next::StandIn(Start { who, state_dir, control: far })));
            }
            forked => forked,
        };
        drop(far);
        let started = match forked {
            Ok(Forked::Parent(pid)) => match packets::receive::<Started>(&near) {
                Ok(Some((Ok(()), _))) => Ok(pid),
                Ok(Some((Err(errno), _))) => Err(errno),
                Ok(None) | Err(_) => Err(Errno::IO.raw_os_error()),
            },
            Ok(Forked::Child) => unreachable!("returned above"),
            Err(error) => Err(error.raw_os_error().unwrap_or(Errno::IO.raw_os_error())),
        };
        match started {
            Ok(pid) => {
                answer(connection, &FromKeeper::StandIn { pid }, Some(near.as_fd()))?;
                self.held.insert(Held::StandIn(who), near);
            }
            Err(errno) => answer(connection, &FromKeeper::NoStandIn { errno }, None)?,
        }
        Ok(None)
    }
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn answer(connection: &OwnedFd, what: &FromKeeper, fd: Option<BorrowedFd<'_>>) -> io::Result<()> {
    packets::send(connection, what, fd.as_slice())
}
