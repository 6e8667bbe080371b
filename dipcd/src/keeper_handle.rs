//! dipcd's side of its keeper: finds it or starts it, fetches what it holds, and has it hold more.
//!
//! One mutex, so that each question gets its own answer. A keeper that is gone is said so by
//! [`KeeperError::Gone`]; the caller then connects to another and hands over copies of everything
//! again. Stand-ins go on without it.
#![forbid(unsafe_code)]

use parking_lot::Mutex;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::fmt;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use dipc_wire::keeper::{FromKeeper, Held, StandIn, ToKeeper};

use crate::keeper::SOCKET_NAME;
use crate::log;
use crate::sys::packets;

/// How often a keeper that ends just as we come is looked for again.
const ATTEMPTS_MAX: usize = 10;
/// This program: it is its own keeper.
const OWN_PROGRAM: &str = "/proc/self/exe";

/// Why the keeper did not do it.
#[derive(Debug)]
pub enum KeeperError {
    /// It has ended, or does not speak as a keeper.
    Gone(io::Error),
    /// No stand-in could be started: an errno of fork(2), setgroups(2) or setresuid(2).
    NoStandIn(i32),
}

impl fmt::Display for KeeperError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            KeeperError::Gone(error) => write!(f, "the keeper is gone: {error}"),
            KeeperError::NoStandIn(errno) => {
                write!(f, "no stand-in: {}", io::Error::from_raw_os_error(*errno))
            }
        }
    }
}

impl std::error::Error for KeeperError {}

/// What a keeper held when we came.
pub type Fetched = Vec<(Held, OwnedFd)>;

/// The connection to the keeper.
#[derive(Debug)]
pub struct KeeperHandle {
    connection: Mutex<OwnedFd>,
}

impl KeeperHandle {
    /// Connects to the keeper of `state_dir`, or starts one, and fetches what it holds.
    pub fn connect_or_start(state_dir: &Path) -> io::Result<(KeeperHandle, Fetched)> {
        KeeperHandle::connect_or_start_from(state_dir, Path::new(OWN_PROGRAM))
    }

    /// The same with another program to start as `PROGRAM --keeper STATE_DIR`.
    pub fn connect_or_start_from(
        state_dir: &Path,
        program: &Path,
    ) -> io::Result<(KeeperHandle, Fetched)> {
        let mut last = io::Error::from(io::ErrorKind::NotConnected);
        for _ in 0..ATTEMPTS_MAX {
            match packets::connect(&state_dir.join(SOCKET_NAME)) {
                Err(_) => start(state_dir, program)?,
                Ok(connection) => match fetch(&connection) {
                    Ok(fetched) => {
                        return Ok((KeeperHandle { connection: Mutex::new(connection) }, fetched));
                    }
                    // It may have held nothing and ended just as we came.
                    Err(error) => last = error,
                },
            }
        }
        let why = format!("the keeper of {}: {last}", state_dir.display());
        Err(io::Error::new(last.kind(), why))
    }

    /// Ends the keeper of `state_dir`, if there is one.
    pub fn quit_if_running(state_dir: &Path) -> io::Result<()> {
        let mut last = io::Error::from(io::ErrorKind::NotConnected);
        for _ in 0..ATTEMPTS_MAX {
            let connection = match packets::connect(&state_dir.join(SOCKET_NAME)) {
                Ok(connection) => connection,
                Err(error) => match error.kind() {
                    io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => return Ok(()),
                    _ => return Err(error),
                },
            };
            let keeper = KeeperHandle { connection: Mutex::new(connection) };
            match keeper.quit() {
                Ok(()) => return Ok(()),
                // It may have ended just as we came, or serve somebody else now.
                Err(error) => last = io::Error::other(error),
            }
        }
        Err(last)
    }

    /// A copy of the connection: hung up when the keeper has ended.
    pub fn watch(&self) -> io::Result<OwnedFd> {
        self.connection.lock().try_clone()
    }

    /// Whether it has ended.
    pub fn is_gone(&self) -> bool {
        let connection = self.connection.lock();
        let mut watched = [PollFd::new(&*connection, PollFlags::empty())];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        poll(&mut watched, Some(&now)).is_ok_and(|ended| ended != 0)
    }

    /// Has it hold a copy of a descriptor; one of the same name is replaced.
    pub fn hold(&self, name: &Held, fd: BorrowedFd<'_>) -> Result<(), KeeperError> {
        tell(&self.connection.lock(), &ToKeeper::Hold(name.clone()), &[fd])
    }

    /// Has it close one.
    pub fn release(&self, name: &Held) -> Result<(), KeeperError> {
        tell(&self.connection.lock(), &ToKeeper::Release(name.clone()), &[])
    }

    /// Starts a stand-in, whose control socket the keeper holds too: its pid and that socket.
    pub fn stand_in(&self, stand_in: &StandIn) -> Result<(u32, OwnedFd), KeeperError> {
        let connection = self.connection.lock();
        tell(&connection, &ToKeeper::StandIn(stand_in.clone()), &[])?;
        match packets::receive(&*connection).map_err(KeeperError::Gone)? {
            Some((FromKeeper::StandIn { pid }, fds)) => {
                let control = fds.into_iter().next().ok_or_else(no_keeper)?;
                Ok((pid, control))
            }
            Some((FromKeeper::NoStandIn { errno }, _)) => Err(KeeperError::NoStandIn(errno)),
            _ => Err(no_keeper()),
        }
    }

    /// Ends it and everything it holds. Stand-ins see the end of their control sockets once dipcd
    /// closes its copies too.
    pub fn quit(&self) -> Result<(), KeeperError> {
        let connection = self.connection.lock();
        tell(&connection, &ToKeeper::Quit, &[])?;
        // The end of the connection is the answer.
        match packets::receive::<FromKeeper>(&*connection).map_err(KeeperError::Gone)? {
            None => Ok(()),
            Some(_) => Err(no_keeper()),
        }
    }
}

fn no_keeper() -> KeeperError {
    KeeperError::Gone(io::ErrorKind::ConnectionAborted.into())
}

fn tell(connection: &OwnedFd, what: &ToKeeper, fds: &[BorrowedFd<'_>]) -> Result<(), KeeperError> {
    packets::send(connection, what, fds).map_err(KeeperError::Gone)
}

/// Runs `dipcd --keeper STATE_DIR`, which goes to the background once it listens.
fn start(state_dir: &Path, program: &Path) -> io::Result<()> {
    let mut command = Command::new(program);
    // The name by which ps(1) shows it, whatever path it was started by.
    command.arg0("dipcd");
    // What stand-ins do is traced with the rest.
    let traces = log::verbosity().option();
    let out = if traces.is_some() { Stdio::inherit() } else { Stdio::null() };
    command.args(traces).arg("--keeper").arg(state_dir).stdin(Stdio::null()).stdout(out);
    let status = command.status()?;
    if status.success() {
        Ok(())
    } else {
        Err(io::Error::other(format!("the keeper of {} ended: {status}", state_dir.display())))
    }
}

fn greet(connection: &OwnedFd) -> io::Result<()> {
    packets::send(connection, &ToKeeper::Hello, &[])?;
    match packets::receive(connection)? {
        Some((FromKeeper::Hello { .. }, _)) => Ok(()),
        _ => Err(io::ErrorKind::ConnectionAborted.into()),
    }
}

fn fetch(connection: &OwnedFd) -> io::Result<Fetched> {
    greet(connection)?;
    packets::send(connection, &ToKeeper::Fetch, &[])?;
    let mut fetched = Fetched::new();
    loop {
        match packets::receive(connection)? {
            Some((FromKeeper::Held(name), fds)) => {
                let fd = fds.into_iter().next().ok_or(io::ErrorKind::ConnectionAborted)?;
                fetched.push((name, fd));
            }
            Some((FromKeeper::Fetched, _)) => return Ok(fetched),
            _ => return Err(io::ErrorKind::ConnectionAborted.into()),
        }
    }
}
