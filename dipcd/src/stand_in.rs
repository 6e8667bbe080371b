//! A stand-in: the process that makes one remote process's system calls at home, under its
//! account, with one undo list for all its threads, so that SEM_UNDO ends when the client's
//! process ends and not with a thread. It outlives dipcd.
//!
//! ```text
//! main thread     control socket of dipcd: wires for sessions, ends of images and of the client
//! workers         one thread a session: requests, system calls, replies
//! watcher         listens to the wires of workers that wait in a system call
//! ```
//!
//! What happens once and what goes back is decided by `dipc_core::session`.
#![forbid(unsafe_code)]

use parking_lot::{Condvar, Mutex};
use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use dipc_core::session::Event;
use dipc_wire::ids::{Image, Seq, Slot};
use dipc_wire::keeper::{Cause, FromStandIn, StandIn, ToStandIn};
use dipc_wire::limits::SESSIONS_MAX;
use dipc_wire::peer::{End, Piece};
use dipc_wire::sysv::Rights;

use crate::objects::ObjectReader;
use crate::pids::Pids;
use crate::sys::{credentials, packets, process};

mod calls;
mod put_back;
mod session;
mod watcher;
mod worker;

use session::{Session, Wire};
use watcher::Watcher;

/// Stack of every thread but the main one; only what is used takes memory.
const STACK_BYTES: usize = 128 << 10;
/// How long a session may take to come out of its system call when it ends: the signals are
/// repeated, so this is not reached unless the kernel holds a thread.
const END_WAIT: Duration = Duration::from_secs(10);

/// Images whose reports may be under way at once.
const IMAGES_MAX: usize = 16;

/// What the keeper gives to a stand-in.
#[derive(Debug)]
pub struct Start {
    /// Whom it stands for, and as whom.
    pub who: StandIn,
    /// Where the tables are.
    pub state_dir: PathBuf,
    /// Its end of the control socket.
    pub control: OwnedFd,
}

/// The first packet on the control socket, for the keeper: whether the process is in its role, or
/// the errno that kept it from it.
pub type Started = Result<(), i32>;

/// Makes this process a stand-in, until its client ends.
pub fn run(start: Start) -> ! {
    let control = start.control;
    let tables = assume_role(&start.who, &start.state_dir);
    let started: Started = match &tables {
        Ok(_) => Ok(()),
        Err(error) => Err(error.raw_os_error().unwrap_or(libc::EIO)),
    };
    let told = packets::send(&control, &started, &[]);
    let (Ok(tables), Ok(())) = (tables, told) else { process::exit_now(1) };
    match Watcher::new() {
        Ok(watcher) => StandingIn::new(tables, watcher).serve(&control),
        Err(error) => tracing::error!(client = ?start.who.client, %error, "a stand-in ends"),
    }
    process::exit_now(0)
}

/// What the calls of all sessions look up.
struct Tables {
    objects: ObjectReader,
    pids: Pids,
    /// Of the account.
    rights: Rights,
}

/// Opens what root alone may open, says whose pid this is, and becomes the account.
fn assume_role(who: &StandIn, state_dir: &Path) -> io::Result<Tables> {
    rustix::thread::set_name(c"dipc-stand-in")?;
    process::accept_interruptions();
    let (objects, pids) = (ObjectReader::open(state_dir)?, Pids::open(state_dir)?);
    let tables = Tables { objects, pids, rights: who.account.rights };
    let own = std::process::id();
    let started = credentials::start_time(own).ok_or(io::ErrorKind::NotFound)?;
    tables.pids.write(own, started, who.client)?;
    credentials::become_account(&who.account)?;
    Ok(tables)
}

/// What all threads of the stand-in share.
struct Shared {
    tables: Tables,
    watcher: Watcher,
    sessions: Mutex<HashMap<(Image, Slot), Arc<Session>>>,
    /// A session has left the table.
    left: Condvar,
}

/// Whether the client lives.
#[derive(PartialEq, Eq)]
enum Life {
    GoesOn,
    Ended,
}

/// The main thread.
struct StandingIn {
    shared: Arc<Shared>,
    /// Images up to this one have ended; a wire that comes late for one is dropped.
    ended: Option<Image>,
    /// Pieces of reports that are not complete.
    pieces: HashMap<Option<Image>, Vec<End>>,
}

impl StandingIn {
    fn new(tables: Tables, watcher: Watcher) -> StandingIn {
        let (sessions, left) = (Mutex::default(), Condvar::new());
        let shared = Arc::new(Shared { tables, watcher, sessions, left });
        StandingIn { shared, ended: None, pieces: HashMap::new() }
    }

    /// Obeys dipcd until the client has ended. If dipcd and keeper are both gone, nobody will
    /// ever report the end: what nobody acknowledged goes back now.
    fn serve(mut self, control: &OwnedFd) {
        loop {
            match packets::receive(control) {
                Ok(Some((wanted, fds))) => {
                    if self.obey(control, wanted, fds) == Life::Ended {
                        return;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                    tracing::warn!(%error, "dipcd says what is not understood here");
                }
                Ok(None) | Err(_) => {
                    self.end(None, &[], Cause::LostAgain);
                    return;
                }
            }
        }
    }

    fn obey(&mut self, control: &OwnedFd, wanted: ToStandIn, fds: Vec<OwnedFd>) -> Life {
        match wanted {
            ToStandIn::Wire { image, slot, secret, terms } => {
                if let Some(socket) = fds.into_iter().next() {
                    let socket = Arc::new(socket);
                    self.take_wire((image, slot), Wire { socket, secret, terms });
                }
            }
            ToStandIn::HangUp => {
                self.shared.sessions.lock().values().for_each(|session| session.hang_up());
            }
            ToStandIn::End { image, ends, piece: Piece::More, .. } => {
                self.gather(image, ends);
            }
            ToStandIn::End { image, ends: last, cause, piece: Piece::Last } => {
                let mut ends = self.pieces.remove(&image).unwrap_or_default();
                ends.extend(last);
                self.end(image, &ends, cause);
                let Some(image) = image else { return Life::Ended };
                self.ended = self.ended.max(Some(image));
                if let Err(error) = packets::send(control, &FromStandIn::Ended { image }, &[]) {
                    tracing::warn!(%error, "dipcd cannot be told that an image has ended");
                }
            }
        }
        Life::GoesOn
    }

    /// Keeps a piece of a report until the last one comes. A node that never sends the last one
    /// does not fill our memory: there are no more ends than sessions.
    fn gather(&mut self, image: Option<Image>, ends: Vec<End>) {
        let gathered: usize = self.pieces.values().map(Vec::len).sum();
        if gathered + ends.len() > 2 * SESSIONS_MAX as usize || self.pieces.len() > IMAGES_MAX {
            tracing::warn!(op = "end", ?image, "a report without an end is dropped");
            self.pieces.clear();
        }
        self.pieces.entry(image).or_default().extend(ends);
    }

    /// A wire for a session: to its worker, or to a new one.
    fn take_wire(&mut self, id: (Image, Slot), wire: Wire) {
        if self.ended.is_some_and(|ended| id.0 <= ended) {
            return;
        }
        let mut sessions = self.shared.sessions.lock();
        let wire = match sessions.get(&id) {
            Some(session) => session.offer(wire),
            None => Some(wire),
        };
        let Some(wire) = wire else { return };
        let session = Arc::new(Session::new(wire));
        match worker::start(id, session.clone(), self.shared.clone()) {
            Ok(()) => {
                sessions.insert(id, session);
            }
            Err(error) => tracing::warn!(op = "wire", %error, "no thread for another session"),
        }
    }

    /// Ends the sessions of an image and those before it, or all, and waits until they have.
    fn end(&mut self, image: Option<Image>, ends: &[End], cause: Cause) {
        let concerned: Vec<_> = {
            let sessions = self.shared.sessions.lock();
            let concerned = sessions.iter().filter(|(id, _)| image.is_none_or(|last| id.0 <= last));
            concerned.map(|(id, session)| (*id, session.clone())).collect()
        };
        // The report speaks of the latest image; earlier ones have had theirs.
        let latest = image.or(concerned.iter().map(|(id, _)| id.0).max());
        let done: HashMap<Slot, Seq> = ends.iter().map(|end| (end.slot, end.done)).collect();
        for ((image, slot), session) in &concerned {
            let done = done.get(slot).copied().filter(|_| Some(*image) == latest);
            session.over(&self.shared.watcher, Event::Over { done, cause });
        }
        let is_left = |sessions: &HashMap<_, Arc<Session>>| {
            concerned
                .iter()
                .any(|(id, ended)| sessions.get(id).is_some_and(|now| Arc::ptr_eq(now, ended)))
        };
        let mut sessions = self.shared.sessions.lock();
        let wait = self.shared.left.wait_while_for(&mut sessions, |now| is_left(now), END_WAIT);
        if wait.timed_out() {
            tracing::error!(op = "end", "a session does not come out of its system call");
        }
    }
}
