//! Accepting clients, one thread each, and ending all of them.
//!
//! The main thread waits for a client or for a signal to stop. Stopping: no more clients; those
//! that are served end after the request in hand; after a grace their connections are shut, which
//! ends whoever waits in a send; then the mailboxes are left. Nothing waits without a bound.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::net::sockopt;
use rustix::process::{Signal, getpid, kill_process};

use crate::args::Setup;
use crate::connection::{self, Ended, SEND_MAX};
use crate::failure::Failure;
use crate::place::{self, Place};
use crate::store::Store;
use crate::sys;

/// Clients at once.
pub const CLIENTS_MAX: usize = 512;
/// Connections that may wait to be accepted.
const BACKLOG: i32 = 1024;
/// A client's thread calls little and recurses never.
const STACK_BYTES: usize = 128 << 10;
/// How long clients may take to end by themselves, and then to be ended.
const GRACE: Duration = Duration::from_millis(500);
/// How long not to accept when the system has no descriptors or memory for another client.
const EXHAUSTED_PAUSE: Duration = Duration::from_millis(50);

/// A server that is ready: clients can connect, though none is accepted yet.
pub struct Server {
    setup: Setup,
    listener: TcpListener,
    signals: OwnedFd,
    place: Place,
    clients: Arc<Clients>,
}

/// What the threads share.
struct Clients {
    store: Store,
    packet_bytes: usize,
    streams: Mutex<BTreeMap<u64, Arc<TcpStream>>>,
    /// As many as there are streams.
    count: AtomicUsize,
    one_ended: Condvar,
}

impl Server {
    /// Takes the port, then makes or joins the mailboxes. A failure leaves nothing behind.
    pub fn open(setup: Setup) -> Result<Self, Failure> {
        let system = |source| {
            let address = SocketAddr::new(setup.bind, setup.port);
            Failure::system(format!("port {} on {}", address.port(), address.ip()), source)
        };
        let listener = TcpListener::bind((setup.bind, setup.port)).map_err(system)?;
        rustix::net::listen(&listener, BACKLOG).map_err(|error| system(error.into()))?;
        listener.set_nonblocking(true).map_err(system)?;
        let signals = sys::stop_signals().map_err(system)?;
        let (place, store) = place::open(&setup)?;
        let clients = Arc::new(Clients {
            store,
            packet_bytes: setup.packet_bytes,
            streams: Mutex::new(BTreeMap::new()),
            count: AtomicUsize::new(0),
            one_ended: Condvar::new(),
        });
        Ok(Self { setup, listener, signals, place, clients })
    }

    /// Serves until a signal says to stop, then removes what it made.
    pub fn run(self) -> Result<(), Failure> {
        let mut number = 0;
        while let Ok(Event::Client) = self.wait() {
            match self.listener.accept() {
                Ok((stream, _)) => {
                    number += 1;
                    self.admit(number, stream);
                }
                Err(error) if is_exhausted(&error) => thread::sleep(EXHAUSTED_PAUSE),
                Err(_) => {} // The client went away before it was accepted.
            }
        }
        drop(self.listener);
        self.clients.end_all();
        self.place.leave(&self.setup)
    }

    fn wait(&self) -> io::Result<Event> {
        loop {
            let mut polled = [
                PollFd::from_borrowed_fd(self.signals.as_fd(), PollFlags::IN),
                PollFd::from_borrowed_fd(self.listener.as_fd(), PollFlags::IN),
            ];
            match poll(&mut polled, None) {
                Ok(_) if !polled[0].revents().is_empty() => return Ok(Event::Stop),
                Ok(_) => return Ok(Event::Client),
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// A thread for the client, or a refusal that says why.
    fn admit(&self, number: u64, stream: TcpStream) {
        if prepare(&stream).is_err() {
            return;
        }
        let stream = Arc::new(stream);
        if !self.clients.enter(number, &stream) {
            refuse(&stream, format_args!("all {CLIENTS_MAX} places are taken"));
            return;
        }
        let seat = Seat { clients: Arc::clone(&self.clients), number };
        let own = Arc::clone(&stream);
        let served = thread::Builder::new().stack_size(STACK_BYTES).spawn(move || {
            let clients = &seat.clients;
            let ended =
                connection::serve(&own, &clients.store, clients.packet_bytes, &clients.count);
            let _ = own.shutdown(Shutdown::Both);
            if ended == Ended::Gone {
                let _ = kill_process(getpid(), Signal::TERM);
            }
        });
        if served.is_err() {
            refuse(&stream, format_args!("no thread for another client"));
        }
    }
}

enum Event {
    Client,
    Stop,
}

/// The place a client's thread has among the clients, given back when the thread ends.
struct Seat {
    clients: Arc<Clients>,
    number: u64,
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut streams = self.clients.streams.lock();
        streams.remove(&self.number);
        self.clients.count.store(streams.len(), Ordering::Relaxed);
        drop(streams);
        self.clients.one_ended.notify_all();
    }
}

impl Clients {
    fn enter(&self, number: u64, stream: &Arc<TcpStream>) -> bool {
        let mut streams = self.streams.lock();
        if streams.len() >= CLIENTS_MAX {
            return false;
        }
        streams.insert(number, Arc::clone(stream));
        self.count.store(streams.len(), Ordering::Relaxed);
        true
    }

    /// First no more requests, then no more answers.
    fn end_all(&self) {
        for how in [Shutdown::Read, Shutdown::Both] {
            let mut streams = self.streams.lock();
            for stream in streams.values() {
                let _ = stream.shutdown(how);
            }
            let until = Instant::now() + GRACE;
            while !streams.is_empty() && !self.one_ended.wait_until(&mut streams, until).timed_out()
            {
            }
        }
    }
}

/// Answers at once, notices a client that vanished, and one that never reads.
fn prepare(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    stream.set_write_timeout(Some(SEND_MAX))?;
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, Duration::from_secs(60))?;
    sockopt::set_tcp_keepintvl(stream, Duration::from_secs(10))?;
    sockopt::set_tcp_keepcnt(stream, 6)?;
    Ok(())
}

fn refuse(mut stream: &TcpStream, why: std::fmt::Arguments<'_>) {
    let _ = writeln!(stream, "error: {why}");
    let _ = stream.shutdown(Shutdown::Write);
}

fn is_exhausted(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE | libc::ENOMEM | libc::ENOBUFS))
}
