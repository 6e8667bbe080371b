//! One thread that waits for ends: of clients (pidfds), of stand-ins (their control sockets), of
//! wires (the other side of our copies), and for the few words stand-ins say.
#![forbid(unsafe_code)]

use parking_lot::Mutex;
use rustix::event::epoll::{self, EventData, EventFlags};
use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use dipc_wire::ids::{ClientId, Slot};
use dipc_wire::keeper::StandIn;

/// What is watched.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Watched {
    /// A client's pidfd: readable when the process has ended.
    Client(ClientId),
    /// A stand-in's control socket: readable when it says something, hung up when it has ended.
    StandIn(StandIn),
    /// The copy of a client's wire: hung up when the client or home has closed it.
    Wire(ClientId, Slot),
}

/// What becomes of a watch after an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Watch {
    /// More may come.
    GoesOn,
    /// That was all.
    Ends,
}

struct Entry {
    what: Watched,
    fd: Arc<OwnedFd>,
}

#[derive(Default)]
struct Table {
    last: u64,
    entries: HashMap<u64, Entry>,
    tokens: HashMap<Watched, u64>,
}

/// What is watched now.
pub struct Undertaker {
    epoll: OwnedFd,
    table: Mutex<Table>,
}

impl Undertaker {
    /// Watches nothing yet.
    pub fn new() -> io::Result<Undertaker> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        Ok(Undertaker { epoll, table: Mutex::default() })
    }

    /// Begins to watch; what was watched under the same name is forgotten.
    pub fn watch(&self, what: Watched, fd: Arc<OwnedFd>) -> io::Result<()> {
        self.forget(&what);
        let mut table = self.table.lock();
        table.last += 1;
        let token = table.last;
        let flags = match what {
            Watched::Client(_) | Watched::StandIn(_) => EventFlags::IN | EventFlags::RDHUP,
            Watched::Wire(..) => EventFlags::RDHUP,
        };
        epoll::add(&self.epoll, &fd, EventData::new_u64(token), flags)?;
        table.tokens.insert(what.clone(), token);
        table.entries.insert(token, Entry { what, fd });
        Ok(())
    }

    /// Watches no longer.
    pub fn forget(&self, what: &Watched) {
        let token = self.table.lock().tokens.get(what).copied();
        if let Some(token) = token {
            self.end(token);
        }
    }

    /// Waits for the next events and hands each to `act`, which says whether the watch goes on.
    pub fn wait(&self, act: impl Fn(&Watched, &Arc<OwnedFd>) -> Watch) -> io::Result<()> {
        let mut events = Vec::with_capacity(64);
        match epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut events), None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        for event in events {
            let token = event.data.u64();
            let entry =
                self.table.lock().entries.get(&token).map(|e| (e.what.clone(), e.fd.clone()));
            if let Some((what, fd)) = entry
                && act(&what, &fd) == Watch::Ends
            {
                self.end(token);
            }
        }
        Ok(())
    }

    /// Ends one watch, and not a newer one of the same name.
    fn end(&self, token: u64) {
        let mut table = self.table.lock();
        let Some(entry) = table.entries.remove(&token) else { return };
        if table.tokens.get(&entry.what) == Some(&token) {
            table.tokens.remove(&entry.what);
        }
        // Copies of it live elsewhere, so closing ours would not end the watch.
        let _ = epoll::delete(&self.epoll, entry.fd.as_fd());
    }
}
