//! What local programs see: the UNIX socket, one call a connection. A few threads accept; each
//! serves its call to the end, and another takes its place while it waits.
//!
//! Who calls is what the kernel says of the connection. A call says nothing about its caller but
//! the thread, whose capabilities are looked up among that process's threads.
#![forbid(unsafe_code)]

use parking_lot::Mutex;
use rustix::net::SocketFlags;
use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use dipc_wire::client::{Answer, ClientCall};
use dipc_wire::sysv::SysvError;

use crate::calls;
use crate::daemon::Daemon;
use crate::sys::credentials::Peer;
use crate::sys::packets;

/// Stack of a thread that serves calls.
const STACK_BYTES: usize = 256 << 10;
/// Threads that wait for calls: at least one, so that a call finds somebody, at most so many.
const IDLE_MAX: usize = 4;
/// How long a connection may take to say what it wants.
const CALL_WAIT: Duration = Duration::from_secs(2);
/// How long one that is refused in any case may take.
const REFUSAL_WAIT: Duration = Duration::from_millis(100);

/// Calls of each user that are being served.
#[derive(Default)]
struct Shares {
    calls: Mutex<HashMap<u32, usize>>,
}

/// One call's place in its user's share.
struct Share<'a> {
    shares: &'a Shares,
    uid: u32,
}

impl Shares {
    fn take(&self, uid: u32, most: usize) -> Option<Share<'_>> {
        let mut calls = self.calls.lock();
        let count = calls.entry(uid).or_default();
        if *count >= most {
            return None;
        }
        *count += 1;
        Some(Share { shares: self, uid })
    }
}

impl Drop for Share<'_> {
    fn drop(&mut self) {
        let mut calls = self.shares.calls.lock();
        if let Some(count) = calls.get_mut(&self.uid) {
            *count -= 1;
            if *count == 0 {
                calls.remove(&self.uid);
            }
        }
    }
}

/// The threads of the UNIX socket.
struct BackEnd {
    daemon: Arc<Daemon>,
    listener: Arc<OwnedFd>,
    idle: AtomicUsize,
    shares: Shares,
}

/// Serves calls until the daemon ends.
pub fn start(daemon: &Arc<Daemon>, listener: Arc<OwnedFd>) -> io::Result<()> {
    let (idle, shares) = (AtomicUsize::new(0), Shares::default());
    let back_end = BackEnd { daemon: daemon.clone(), listener, idle, shares };
    Arc::new(back_end).add_thread()
}

impl BackEnd {
    fn add_thread(self: Arc<Self>) -> io::Result<()> {
        self.idle.fetch_add(1, Ordering::AcqRel);
        let thread = thread::Builder::new().name("back_end".into()).stack_size(STACK_BYTES);
        let back_end = self.clone();
        thread.spawn(move || back_end.accept()).map(|_| ()).inspect_err(|_| {
            self.idle.fetch_sub(1, Ordering::AcqRel);
        })
    }

    /// Serves calls until enough others wait for them.
    fn accept(self: &Arc<Self>) {
        loop {
            let connection = match rustix::net::accept_with(&self.listener, SocketFlags::CLOEXEC) {
                Ok(connection) => connection,
                Err(error) => {
                    if self.daemon.is_stopping() {
                        return;
                    }
                    let own = rustix::process::geteuid().as_raw();
                    self.daemon.refusals.of_program(std::process::id(), own, error);
                    self.daemon.pause(Duration::from_millis(100));
                    continue;
                }
            };
            if self.idle.fetch_sub(1, Ordering::AcqRel) == 1
                && let Err(error) = self.clone().add_thread()
            {
                tracing::warn!(op = "accept", %error);
            }
            self.serve(&connection);
            drop(connection);
            if self.idle.fetch_add(1, Ordering::AcqRel) >= IDLE_MAX {
                self.idle.fetch_sub(1, Ordering::AcqRel);
                return;
            }
        }
    }

    fn serve(&self, connection: &OwnedFd) {
        let peer = match Peer::of(connection) {
            Ok(peer) => peer,
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                return refuse(connection, SysvError::EACCES);
            }
            Err(error) => {
                tracing::debug!(op = "call", %error, "the caller is gone");
                return;
            }
        };
        let Some(_share) = self.shares.take(peer.uid, self.daemon.user_share()) else {
            let reason = "refused: user_clients_max is reached";
            self.daemon.refusals.of_program(peer.pid, peer.uid, reason);
            return refuse(connection, SysvError::ENOSPC);
        };
        let wait = rustix::net::sockopt::Timeout::Recv;
        let bounded = rustix::net::sockopt::set_socket_timeout(connection, wait, Some(CALL_WAIT));
        if bounded.is_err() {
            return;
        }
        match packets::receive::<ClientCall>(connection) {
            Ok(Some((call, fds))) => {
                let (said, fd) = calls::serve(&self.daemon, &peer, &call, fds.into_iter().next());
                tracing::debug!(op = "call", pid = peer.pid, call = ?call.call, answer = ?said);
                answer(connection, &said, fd.as_ref());
            }
            Ok(None) => {}
            Err(error) => {
                let is_late = error.kind() == io::ErrorKind::WouldBlock;
                let reason = format!("not a call: {error}");
                self.daemon.refusals.of_program(peer.pid, peer.uid, reason);
                // Who is late, as on a busy machine, asks again when it is closed. That we know no
                // such call would send it to the kernel.
                if !is_late {
                    answer(connection, &Answer::Refused(SysvError::ENOSYS), None);
                }
            }
        }
    }
}

/// Refuses a call whatever it is. It is read first, for closing a connection with something unread
/// takes the answer away.
fn refuse(connection: &OwnedFd, errno: SysvError) {
    let wait = rustix::net::sockopt::Timeout::Recv;
    if rustix::net::sockopt::set_socket_timeout(connection, wait, Some(REFUSAL_WAIT)).is_ok() {
        let _ = packets::receive::<ClientCall>(connection);
        answer(connection, &Answer::Refused(errno), None);
    }
}

fn answer(connection: &OwnedFd, said: &Answer, fd: Option<&OwnedFd>) {
    let fds: Vec<_> = fd.iter().map(|fd| fd.as_fd()).collect();
    // A caller that is gone needs no answer.
    let _ = packets::send(connection, said, &fds);
}
