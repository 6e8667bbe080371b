//! Links and wires over UDP (`-u`): one socket a node, and a QUIC connection for each link and each
//! wire, by quinn-proto, which decides and does no I/O; the thread here does it.
//!
//! A connection is used through a local socket: whoever dials gets one end of a pair, whoever is
//! dialled too, and the driver passes the bytes on. So all that is built on a connected stream -
//! handshake, frames, passing it to a client or a stand-in - is the same as over TCP, and dipcd
//! relays what over TCP it would hand over. When dipcd ends its connections end with it; the next
//! dipcd says so to whoever still sends on one of them, and sessions go on over new wires.
#![forbid(unsafe_code)]

use crossbeam_channel::{RecvTimeoutError, Sender, bounded};
use quinn_proto::Endpoint;
use rustix::event::{EventfdFlags, eventfd};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use socket2::{Domain, Protocol, Socket, Type};
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use dipc_wire::ids::Secret;

use crate::config::Liveness;

mod driver;
mod pipe;
mod terms;

pub(crate) use driver::Door;
pub use driver::Driver;

use driver::Command;
use terms::Terms;

/// What the kernel may keep for us, each way, while we are busy.
const SOCKET_BYTES: usize = 4 << 20;
/// Commands that may wait; whoever gives one waits for its outcome.
const COMMANDS_MAX: usize = 64;
/// A peer that has not answered so soon is asked whether anybody is at home.
const PROBE_AFTER: Duration = Duration::from_millis(300);
/// How long the answer, which its kernel gives, may take.
const PROBE_WAIT: Duration = Duration::from_millis(200);
/// How long the end of all connections may take to be said.
const CLOSE_WAIT: Duration = Duration::from_secs(1);

/// What has connections made, from any thread.
pub struct Datagrams {
    own: SocketAddr,
    commands: Sender<Command>,
    bell: Arc<OwnedFd>,
}

impl Datagrams {
    /// Opens the port. `secret` is what this node's dipcds have in common. The driver must be run
    /// by a thread of its own. A port in use is an error that names the address.
    pub fn open(
        own: SocketAddr,
        liveness: &Liveness,
        secret: &Secret,
    ) -> io::Result<(Datagrams, Driver)> {
        let socket = bind(own)
            .map_err(|error| io::Error::new(error.kind(), format!("{own} (UDP): {error}")))?;
        let Terms { endpoint, server, client } = Terms::new(liveness, secret)?;
        let endpoint = Endpoint::new(endpoint, Some(server), false, None);
        let (commands, orders) = bounded(COMMANDS_MAX);
        let bell = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        let driver = Driver::new(endpoint, client, socket, bell.clone(), orders)?;
        Ok((Datagrams { own, commands, bell }, driver))
    }

    /// Connects to another node; the socket stands for the connection.
    pub fn connect(&self, to: SocketAddr, wait: Duration) -> io::Result<OwnedFd> {
        let (near, local) = socket_pair()?;
        let (asked, answer) = bounded(1);
        self.command(Command::Connect { to, local, asked })?;
        let soon = PROBE_AFTER.min(wait);
        let answered = match answer.recv_timeout(soon) {
            Err(RecvTimeoutError::Timeout) if nobody_is_at(self.own, to) => {
                return Err(io::ErrorKind::ConnectionRefused.into());
            }
            Err(RecvTimeoutError::Timeout) => answer.recv_timeout(wait.saturating_sub(soon)),
            answered => answered,
        };
        match answered {
            Ok(outcome) => outcome.map(|()| near),
            Err(RecvTimeoutError::Timeout) => Err(io::ErrorKind::TimedOut.into()),
            Err(RecvTimeoutError::Disconnected) => Err(io::Error::other("dipcd is ending")),
        }
    }

    /// Ends all connections, and tells the peers. What they have not yet acknowledged may be lost.
    pub fn close_all(&self) {
        let (done, told) = bounded(1);
        if self.command(Command::CloseAll { done }).is_ok() {
            // The peers notice without being told, later.
            let _ = told.recv_timeout(CLOSE_WAIT);
        }
    }

    fn command(&self, command: Command) -> io::Result<()> {
        self.commands.send(command).map_err(|_| io::Error::other("dipcd is ending"))?;
        rustix::io::write(&self.bell, &1u64.to_ne_bytes())?;
        Ok(())
    }
}

impl Drop for Datagrams {
    fn drop(&mut self) {
        let (closed, _) = bounded(0);
        self.commands = closed;
        // The driver looks, and finds that nobody is left.
        let _ = rustix::io::write(&self.bell, &1u64.to_ne_bytes());
    }
}

fn bind(own: SocketAddr) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::for_address(own), Type::DGRAM, Some(Protocol::UDP))?;
    // The kernel gives what it may.
    let _ = socket.set_recv_buffer_size(SOCKET_BYTES);
    let _ = socket.set_send_buffer_size(SOCKET_BYTES);
    socket.bind(&own.into())?;
    Ok(socket.into())
}

/// Whether the kernel at `to` says that nobody has that port. A UDP socket hears this only when it
/// is connected, so it takes one of its own; what it sends is empty and means nothing.
fn nobody_is_at(own: SocketAddr, to: SocketAddr) -> bool {
    let ask = || -> io::Result<usize> {
        let socket = UdpSocket::bind(SocketAddr::new(own.ip(), 0))?;
        socket.connect(to)?;
        socket.set_read_timeout(Some(PROBE_WAIT))?;
        socket.send(&[])?;
        socket.recv(&mut [0; 1])
    };
    ask().is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
}

fn socket_pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?)
}

#[cfg(test)]
mod tests;
