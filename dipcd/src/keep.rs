//! What this dipcd has in its keeper, and the keeper's replacement should it die alone: dipcd has
//! a copy of every descriptor, starts another keeper and hands them over.
#![forbid(unsafe_code)]

use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use dipc_wire::keeper::{Held, StandIn};
use dipc_wire::sysv::SysvError;

use crate::keeper_handle::{KeeperError, KeeperHandle};

/// What a keeper was found to hold.
pub type Found = Vec<(Held, Arc<OwnedFd>)>;

struct State {
    keeper: KeeperHandle,
    held: BTreeMap<Held, Arc<OwnedFd>>,
}

/// The keeper, and copies of all that it holds.
pub struct Keep {
    state_dir: PathBuf,
    state: Mutex<State>,
}

impl Keep {
    /// Finds the keeper of `state_dir` or starts one. What it holds comes with it.
    pub fn open(state_dir: &Path) -> io::Result<(Keep, Found)> {
        let (keeper, found) = KeeperHandle::connect_or_start(state_dir)?;
        let held: BTreeMap<_, _> =
            found.into_iter().map(|(name, fd)| (name, Arc::new(fd))).collect();
        let found = held.iter().map(|(name, fd)| (name.clone(), fd.clone())).collect();
        let state = Mutex::new(State { keeper, held });
        Ok((Keep { state_dir: state_dir.to_owned(), state }, found))
    }

    /// Keeps a descriptor.
    pub fn hold(&self, name: Held, fd: &Arc<OwnedFd>) {
        let mut state = self.state.lock();
        state.held.insert(name.clone(), fd.clone());
        if state.keeper.hold(&name, fd.as_fd()).is_err() {
            self.replace(&mut state);
        }
    }

    /// Keeps it no longer.
    pub fn release(&self, name: &Held) {
        let mut state = self.state.lock();
        if state.held.remove(name).is_some() && state.keeper.release(name).is_err() {
            self.replace(&mut state);
        }
    }

    /// Now and then: a keeper that has died is replaced before it is needed.
    pub fn look(&self) {
        let mut state = self.state.lock();
        if state.keeper.is_gone() {
            self.replace(&mut state);
        }
    }

    /// Starts a stand-in: its control socket.
    pub fn stand_in(&self, stand_in: &StandIn) -> Result<Arc<OwnedFd>, SysvError> {
        let mut state = self.state.lock();
        let started = match state.keeper.stand_in(stand_in) {
            Err(KeeperError::Gone(_)) => {
                self.replace(&mut state);
                state.keeper.stand_in(stand_in)
            }
            other => other,
        };
        match started {
            Ok((pid, control)) => {
                tracing::debug!(op = "stand_in", pid, client = ?stand_in.client);
                let control = Arc::new(control);
                state.held.insert(Held::StandIn(stand_in.clone()), control.clone());
                Ok(control)
            }
            Err(error) => {
                tracing::warn!(op = "stand_in", %error, client = ?stand_in.client);
                Err(SysvError::EAGAIN)
            }
        }
    }

    /// Ends the keeper and everything it holds.
    pub fn quit(&self) {
        if let Err(error) = self.state.lock().keeper.quit() {
            tracing::debug!(op = "quit", %error, "the keeper was gone already");
        }
    }

    fn replace(&self, state: &mut State) {
        tracing::warn!(op = "keeper", "it has died; another takes its place");
        let replaced = KeeperHandle::connect_or_start(&self.state_dir).and_then(|(keeper, _)| {
            let mut held = state.held.iter();
            held.try_for_each(|(name, fd)| keeper.hold(name, fd.as_fd()))
                .map_err(io::Error::other)?;
            state.keeper = keeper;
            Ok(())
        });
        if let Err(error) = replaced {
            tracing::error!(op = "keeper", %error);
        }
    }
}
