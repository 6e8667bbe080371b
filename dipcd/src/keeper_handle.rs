//! dipcd's side of its keeper: finds it or starts it, fetches what it holds, and has it hold more.
//!
//! One mutex, so that each question gets its own answer. A keeper that is gone is said so by
//! [`KeeperError::Gone`]; the caller then calls [`KeeperHandle::restart`] and hands over copies of
//! everything again. Stand-ins go on without it.
#![forbid(unsafe_code)]

use parking_lot::Mutex;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use dipc_wire::keeper::{FromKeeper, Held, StandIn, ToKeeper};

use crate::keeper::SOCKET_NAME;
use crate::sys::packets;

/// How often a keeper that ends just as we come is looked for again.
const ATTEMPTS_MAX: usize = 10;

/// Why the keeper did not do it.
#[derive(Debug)]
pub enum KeeperError {
    /// It has ended: restart it.
    Gone,
    /// It cannot: an errno of fork(2) and the like.
    Refused(io::Error),
}

impl fmt::Display for KeeperError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            KeeperError::Gone => f.write_str("the keeper has ended"),
            KeeperError::Refused(error) => write!(f, "the keeper could not: {error}"),
        }
    }
}

impl std::error::Error for KeeperError {}

/// What a keeper held when we came.
pub type Fetched = Vec<(Held, OwnedFd)>;

/// The connection to the keeper.
#[derive(Debug)]
pub struct KeeperHandle {
    state_dir: PathBuf,
    exe: PathBuf,
    connection: Mutex<OwnedFd>,
}

impl KeeperHandle {
    /// Connects to the keeper of `state_dir`, or starts one from the program `exe` (of dipcd:
    /// /proc/self/exe), and fetches what it holds.
    pub fn connect_or_start(state_dir: &Path, exe: &Path) -> io::Result<(KeeperHandle, Fetched)> {
        let (state_dir, exe) = (state_dir.to_owned(), exe.to_owned());
        let (connection, fetched) = open(&state_dir, &exe)?;
        Ok((KeeperHandle { state_dir, exe, connection: Mutex::new(connection) }, fetched))
    }

    /// After [`KeeperError::Gone`]: connects to another one. What is fetched then is what it got
    /// from somebody else meanwhile, usually nothing.
    pub fn restart(&self) -> io::Result<Fetched> {
        let mut connection = self.connection.lock();
        let (fresh, fetched) = open(&self.state_dir, &self.exe)?;
        *connection = fresh;
        Ok(fetched)
    }

    /// A copy of the connection: hung up when the keeper has ended.
    pub fn watch(&self) -> io::Result<OwnedFd> {
        self.connection.lock().try_clone()
    }

    /// Has it hold a copy of a descriptor; one of the same name is replaced.
    pub fn hold(&self, held: Held, fd: BorrowedFd<'_>) -> Result<(), KeeperError> {
        tell(&self.connection.lock(), &ToKeeper::Hold(held), &[fd])
    }

    /// Has it close one.
    pub fn release(&self, held: Held) -> Result<(), KeeperError> {
        tell(&self.connection.lock(), &ToKeeper::Release(held), &[])
    }

    /// Starts a stand-in: its pid and control socket.
    pub fn stand_in(&self, stand_in: StandIn) -> Result<(u32, OwnedFd), KeeperError> {
        let connection = self.connection.lock();
        tell(&connection, &ToKeeper::StandIn(stand_in), &[])?;
        match packets::receive(&*connection) {
            Ok(Some((FromKeeper::StandIn { pid }, mut fds))) if fds.len() == 1 => {
                Ok((pid, fds.remove(0)))
            }
            Ok(Some((FromKeeper::NoStandIn { errno }, _))) => {
                Err(KeeperError::Refused(io::Error::from_raw_os_error(errno)))
            }
            Ok(_) | Err(_) => Err(KeeperError::Gone),
        }
    }

    /// Ends it and everything it holds; stand-ins see the end of their control sockets when dipcd
    /// closes its copies.
    pub fn quit(&self) {
        let connection = self.connection.lock();
        if tell(&connection, &ToKeeper::Quit, &[]).is_ok() {
            // The end of the connection is the answer; an error is as good.
            let _ = packets::receive::<FromKeeper>(&*connection);
        }
    }
}

fn tell(
    connection: &OwnedFd,
    what: &ToKeeper,
    fds: &[BorrowedFd<'_>],
) -> Result<(), KeeperError> {
    packets::send(connection, what, fds).map_err(|_| KeeperError::Gone)
}

/// A keeper may end just as we come, when it holds nothing: then another is started.
fn open(state_dir: &Path, exe: &Path) -> io::Result<(OwnedFd, Fetched)> {
    let mut last = io::Error::from(io::ErrorKind::NotConnected);
    for _ in 0..ATTEMPTS_MAX {
        let connection = match packets::connect(&state_dir.join(SOCKET_NAME)) {
            Ok(connection) => connection,
            Err(error) => {
                last = error;
                start(state_dir, exe)?;
                continue;
            }
        };
        match fetch(&connection) {
            Ok(fetched) => return Ok((connection, fetched)),
            Err(error) => last = error,
        }
    }
    Err(io::Error::new(last.kind(), format!("the keeper of {}: {last}", state_dir.display())))
}

/// Runs `dipcd --keeper STATE_DIR`, which goes to the background once it listens.
fn start(state_dir: &Path, exe: &Path) -> io::Result<()> {
    let mut command = Command::new(exe);
    command.arg("--keeper").arg(state_dir).stdin(Stdio::null()).stdout(Stdio::null());
    let status = command.status()?;
    if status.success() {
        Ok(())
    } else {
        Err(io::Error::other(format!("the keeper of {} ended: {status}", state_dir.display())))
    }
}

fn fetch(connection: &OwnedFd) -> io::Result<Fetched> {
    packets::send(connection, &ToKeeper::Hello, &[])?;
    match packets::receive(connection)? {
        Some((FromKeeper::Hello { .. }, _)) => {}
        _ => return Err(io::ErrorKind::ConnectionAborted.into()),
    }
    packets::send(connection, &ToKeeper::Fetch, &[])?;
    let mut fetched = Fetched::new();
    loop {
        match packets::receive(connection)? {
            Some((FromKeeper::Held(held), mut fds)) if fds.len() == 1 => {
                fetched.push((held, fds.remove(0)));
            }
            Some((FromKeeper::Fetched, _)) => return Ok(fetched),
            _ => return Err(io::ErrorKind::ConnectionAborted.into()),
        }
    }
}
