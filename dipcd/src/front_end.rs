//! What other machines see: the TCP port. Each connection says in 16 bytes what it is for; a link
//! goes on in `link.rs`, a wire is handed to its stand-in and leaves this process.
//!
//! Nobody is believed here: the address must be allowed, the bytes must come within a second, and
//! at most [`UNKNOWN_MAX`] connections may be in that second at once.
#![forbid(unsafe_code)]

use std::io::{self, Read};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use dipc_wire::limits::ADMISSION_MS;
use dipc_wire::preamble::{Preamble, Purpose};

use crate::clock::Deadline;
use crate::daemon::Daemon;
use crate::{link, sockets};

/// Connections that have not yet proven anything.
pub const UNKNOWN_MAX: usize = 256;
/// Stack of a connection's thread.
const STACK_BYTES: usize = 256 << 10;

/// Counts a connection while it is unknown.
struct Unknown(Arc<AtomicUsize>);

impl Drop for Unknown {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Accepts until the daemon stops.
pub fn run(daemon: &Arc<Daemon>, listener: &TcpListener) {
    let unknown = Arc::new(AtomicUsize::new(0));
    while !daemon.is_stopping() {
        match listener.accept() {
            Ok((stream, from)) => admit(daemon, stream, from, &unknown),
            Err(error) => {
                tracing::warn!(op = "accept", %error);
                daemon.pause(Duration::from_millis(100));
            }
        }
    }
}

fn admit(daemon: &Arc<Daemon>, stream: TcpStream, from: SocketAddr, unknown: &Arc<AtomicUsize>) {
    if !daemon.permits(from.ip()) {
        tracing::warn!(op = "accept", peer = %from, "refused: not in dipc.allow");
        return;
    }
    if unknown.fetch_add(1, Ordering::AcqRel) >= UNKNOWN_MAX {
        unknown.fetch_sub(1, Ordering::AcqRel);
        tracing::warn!(op = "accept", peer = %from, "refused: too many unknown connections");
        return;
    }
    let (daemon, counted) = (daemon.clone(), Unknown(unknown.clone()));
    let thread = thread::Builder::new().name("front_end".into()).stack_size(STACK_BYTES);
    let started = thread.spawn(move || {
        if let Err(error) = serve(&daemon, stream, from.ip(), counted) {
            tracing::warn!(op = "accept", peer = %from, %error);
        }
    });
    if let Err(error) = started {
        tracing::warn!(op = "accept", peer = %from, %error);
    }
}

fn serve(
    daemon: &Arc<Daemon>,
    stream: TcpStream,
    from: IpAddr,
    unknown: Unknown,
) -> io::Result<()> {
    sockets::accepted(&stream, &daemon.config().liveness)?;
    let deadline = Deadline::after(Some(Duration::from_millis(ADMISSION_MS)));
    match read_preamble(&stream, deadline)?.0 {
        Purpose::Wire(ticket) => {
            let admitted = daemon.stand_ins.redeem(ticket);
            let admitted = admitted.ok_or_else(|| io::Error::other("refused: no such ticket"))?;
            daemon.stand_ins.deliver(&admitted, &stream);
            Ok(())
        }
        Purpose::Link => link::accept(daemon, stream, from, deadline, move || drop(unknown)),
    }
}

/// The whole preamble within its time, however slowly it comes.
fn read_preamble(mut stream: &TcpStream, deadline: Deadline) -> io::Result<Preamble> {
    let mut bytes = [0; Preamble::BYTES];
    let mut have = 0;
    while have < bytes.len() {
        let left = deadline.left();
        if left.is_zero() {
            return Err(late());
        }
        stream.set_read_timeout(Some(left))?;
        match stream.read(&mut bytes[have..]) {
            Ok(0) => return Err(io::Error::other("it closed before it said what it wants")),
            Ok(count) => have += count,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Err(late()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    stream.set_read_timeout(None)?;
    Preamble::decode(&bytes).map_err(io::Error::other)
}

fn late() -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, "it did not say in time what it wants")
}
