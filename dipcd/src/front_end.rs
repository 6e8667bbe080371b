//! What other machines see: the TCP port, and with -u the UDP port. Each connection says in 16
//! bytes what it is for; a link goes on in `link.rs`, a wire is handed to its stand-in, and with
//! TCP leaves this process.
//!
//! Nobody is believed here: the address must be allowed, the bytes must come within a second, and
//! only so many connections may be in that second at once. Strangers have a share of their own, and
//! each address a part of it, so that however many knock, members get in.
#![forbid(unsafe_code)]

use parking_lot::Mutex;
use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use dipc_wire::limits::ADMISSION_MS;
use dipc_wire::preamble::{Preamble, Purpose, Transport};

use crate::channel::{self, ChannelError};
use crate::clock::Deadline;
use crate::daemon::Daemon;
use crate::datagrams::{Door, Driver};
use crate::{link, sockets};

/// Connections of strangers that have not yet proven anything, and as many of members.
const UNKNOWN_MAX: usize = 256;
/// Those of one stranger's address.
const UNKNOWN_OF_ONE: usize = 64;
/// Stack of a connection's thread.
const STACK_BYTES: usize = 256 << 10;

/// The connections that have not yet proven anything.
#[derive(Default)]
pub(crate) struct Waiting {
    members: usize,
    strangers: usize,
    /// Of `strangers`.
    by_address: HashMap<IpAddr, usize>,
}

/// One of them; counted until it is dropped.
pub(crate) struct Unknown {
    waiting: Arc<Mutex<Waiting>>,
    /// `None`: a member's.
    stranger: Option<IpAddr>,
}

impl Unknown {
    pub(crate) fn count(
        waiting: &Arc<Mutex<Waiting>>,
        stranger: Option<IpAddr>,
    ) -> Option<Unknown> {
        let mut counts = waiting.lock();
        let Waiting { members, strangers, by_address } = &mut *counts;
        match stranger {
            None if *members >= UNKNOWN_MAX => return None,
            None => *members += 1,
            Some(_) if *strangers >= UNKNOWN_MAX => return None,
            Some(address) => {
                let of_one = by_address.entry(address).or_default();
                if *of_one >= UNKNOWN_OF_ONE {
                    return None;
                }
                *of_one += 1;
                *strangers += 1;
            }
        }
        Some(Unknown { waiting: waiting.clone(), stranger })
    }
}

impl Drop for Unknown {
    fn drop(&mut self) {
        let mut counts = self.waiting.lock();
        let Some(address) = self.stranger else {
            counts.members -= 1;
            return;
        };
        counts.strangers -= 1;
        if let Some(of_one) = counts.by_address.get_mut(&address) {
            *of_one -= 1;
            if *of_one == 0 {
                counts.by_address.remove(&address);
            }
        }
    }
}

/// Accepts until the daemon stops.
pub fn run(daemon: &Arc<Daemon>, listener: &TcpListener) {
    let waiting = Arc::default();
    while !daemon.is_stopping() {
        match listener.accept() {
            Ok((stream, from)) => {
                let Some(unknown) = admit(daemon, from, &waiting) else { continue };
                match sockets::accepted(&stream, &daemon.config().liveness) {
                    Ok(()) => begin(daemon, stream.into(), Transport::Tcp, from, unknown),
                    Err(error) => daemon.refusals.of_peer(from.ip(), from, error),
                }
            }
            Err(error) => {
                let own = daemon.config().this_machine;
                daemon.refusals.of_peer(own.ip(), own, error);
                daemon.pause(Duration::from_millis(100));
            }
        }
    }
}

/// The same for those who come by datagrams.
pub fn run_datagrams(daemon: &Arc<Daemon>, driver: Driver) {
    let waiting = Arc::default();
    let ended = driver.run(&Door {
        permits: &|address| daemon.permits(address),
        admit: &|from| admit(daemon, from, &waiting),
        enter: &|stream, from, unknown| begin(daemon, stream, Transport::Udp, from, unknown),
        refuse: &|from, why| daemon.refusals.of_peer(from.ip(), from, why),
    });
    if let Err(error) = ended {
        panic!("datagrams cannot be waited for: {error}");
    }
}

/// Whether somebody who connects may say what he wants.
fn admit(daemon: &Arc<Daemon>, from: SocketAddr, waiting: &Arc<Mutex<Waiting>>) -> Option<Unknown> {
    let refuse = |why| daemon.refusals.of_peer(from.ip(), from, why);
    if !daemon.permits(from.ip()) {
        refuse("refused: not in dipc.allow");
        return None;
    }
    let stranger = (!daemon.links.knows(from.ip())).then_some(from.ip());
    let unknown = Unknown::count(waiting, stranger);
    if unknown.is_none() {
        refuse("refused: too many unknown connections");
    }
    unknown
}

/// Serves a connection, in a thread of its own.
fn begin(
    daemon: &Arc<Daemon>,
    stream: OwnedFd,
    came_by: Transport,
    from: SocketAddr,
    unknown: Unknown,
) {
    let thread = thread::Builder::new().name("front_end".into()).stack_size(STACK_BYTES);
    let served = daemon.clone();
    let started = thread.spawn(move || {
        if let Err(error) = serve(&served, stream, came_by, from.ip(), unknown) {
            served.refusals.of_peer(from.ip(), from, error);
        }
    });
    if let Err(error) = started {
        daemon.refusals.of_peer(from.ip(), from, error);
    }
}

fn serve(
    daemon: &Arc<Daemon>,
    stream: OwnedFd,
    came_by: Transport,
    from: IpAddr,
    unknown: Unknown,
) -> io::Result<()> {
    let deadline = Deadline::after(Some(Duration::from_millis(ADMISSION_MS)));
    match read_preamble(&stream, deadline)?.0 {
        Purpose::Wire(ticket) => {
            let admitted = daemon.stand_ins.redeem(ticket);
            let admitted = admitted.ok_or_else(|| io::Error::other("refused: no such ticket"))?;
            daemon.stand_ins.deliver(&admitted, &stream);
            Ok(())
        }
        Purpose::Link => {
            link::accept(daemon, stream, came_by, from, deadline, move || drop(unknown))
        }
    }
}

/// The whole preamble within its time, however slowly it comes.
fn read_preamble(stream: &OwnedFd, deadline: Deadline) -> io::Result<Preamble> {
    let bytes = channel::receive_raw(stream.as_fd(), deadline).map_err(|error| match error {
        ChannelError::Late => late(),
        ChannelError::Cut => io::Error::other("it closed before it said what it wants"),
        other => io::Error::other(other),
    })?;
    Preamble::decode(&bytes).map_err(io::Error::other)
}

fn late() -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, "it did not say in time what it wants")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strangers_take_no_place_of_members_nor_one_of_them_all() {
        let waiting = Arc::default();
        let stranger = |last: u8| Some(IpAddr::from([192, 0, 2, last]));
        let mut held: Vec<_> =
            (0..UNKNOWN_MAX).map(|_| Unknown::count(&waiting, stranger(1))).collect();
        assert_eq!(held.iter().flatten().count(), UNKNOWN_OF_ONE);
        for last in 2..=255 {
            held.extend((0..4).map(|_| Unknown::count(&waiting, stranger(last))));
        }
        assert_eq!(held.iter().flatten().count(), UNKNOWN_MAX);
        let members: Vec<_> = (0..=UNKNOWN_MAX).map(|_| Unknown::count(&waiting, None)).collect();
        assert_eq!(members.iter().flatten().count(), UNKNOWN_MAX);
        drop((held, members));
        let counts = waiting.lock();
        assert_eq!((counts.members, counts.strangers, counts.by_address.len()), (0, 0, 0));
    }
}
