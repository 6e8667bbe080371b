//! The thread that moves datagrams: one UDP socket, the connections on it, their local sockets,
//! and their timers. It waits in one place, does what is due, and never waits for a peer.
//!
//! Strangers cost little: an address that may not connect gets one short refusal; when many have
//! not yet shown what they want, the next must first prove that it can be reached where it says.
#![forbid(unsafe_code)]

use bytes::BytesMut;
use crossbeam_channel::{Receiver, Sender};
use quinn_proto::{
    ClientConfig, Connection, ConnectionEvent, ConnectionHandle, DatagramEvent, Endpoint, Incoming,
    Transmit,
};
use rustix::buffer::spare_capacity;
use rustix::event::Timespec;
use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};
use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use dipc_wire::limits::ADMISSION_MS;

use super::pipe::{Came, Origin, PIECE_BYTES, Pipe};
use super::socket_pair;
use crate::front_end::Unknown;

/// When more connections have not yet shown what they want, an address must be proven first, which
/// takes a round trip.
const YOUNG_UNPROVEN_MAX: usize = 64;
/// Datagrams that are taken before their connections are looked at.
const BATCH: usize = 64;
/// Room for any datagram.
const DATAGRAM_BYTES: usize = 64 << 10;
/// The name that dialled peers are called by; they are known by other means.
const SERVER_NAME: &str = "dipc";

/// What the UDP socket and the bell are called in the epoll; a local socket is called by the
/// number of its connection.
const SOCKET: u64 = u64::MAX;
const BELL: u64 = u64::MAX - 1;

/// What others want of the driver.
pub(super) enum Command {
    /// A connection to `to`, joined to `local`.
    Connect { to: SocketAddr, local: OwnedFd, asked: Sender<io::Result<()>> },
    /// All connections are closed and their peers told.
    CloseAll { done: Sender<()> },
}

/// Who may come in, and what becomes of them.
pub(crate) struct Door<'a> {
    /// Whether an address may connect.
    pub permits: &'a dyn Fn(IpAddr) -> bool,
    /// Whether one more may say what he wants; counted until then.
    pub admit: &'a dyn Fn(SocketAddr) -> Option<Unknown>,
    /// He has begun to: here is the socket that stands for him.
    pub enter: &'a dyn Fn(OwnedFd, SocketAddr, Unknown),
    /// Somebody is turned away.
    pub refuse: &'a dyn Fn(SocketAddr, &dyn fmt::Display),
}

/// The connections and what moves them.
pub struct Driver {
    endpoint: Endpoint,
    client: ClientConfig,
    socket: UdpSocket,
    epoll: OwnedFd,
    bell: Arc<OwnedFd>,
    commands: Receiver<Command>,
    pipes: HashMap<ConnectionHandle, Pipe>,
    timers: BTreeSet<(Instant, ConnectionHandle)>,
    /// A datagram to be sent.
    outgoing: Vec<u8>,
    /// What came by the socket or from a local one.
    piece: Vec<u8>,
}

impl Driver {
    pub(super) fn new(
        endpoint: Endpoint,
        client: ClientConfig,
        socket: UdpSocket,
        bell: Arc<OwnedFd>,
        commands: Receiver<Command>,
    ) -> io::Result<Driver> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        epoll::add(&epoll, &socket, EventData::new_u64(SOCKET), EventFlags::IN)?;
        epoll::add(&epoll, &bell, EventData::new_u64(BELL), EventFlags::IN)?;
        Ok(Driver {
            endpoint,
            client,
            socket,
            epoll,
            bell,
            commands,
            pipes: HashMap::new(),
            timers: BTreeSet::new(),
            outgoing: Vec::new(),
            piece: vec![0; PIECE_BYTES.max(DATAGRAM_BYTES)],
        })
    }

    /// Where the socket is bound.
    #[cfg(test)]
    pub(super) fn address(&self) -> SocketAddr {
        self.socket.local_addr().expect("it is bound")
    }

    /// Moves datagrams until nobody can ask for connections any more.
    pub(crate) fn run(mut self, door: &Door<'_>) -> io::Result<()> {
        let mut events = Vec::with_capacity(BATCH);
        loop {
            let wait = self.timers.first().map(|(at, _)| at.duration_since(Instant::now()));
            events.clear();
            match epoll::wait(&self.epoll, spare_capacity(&mut events), timespec(wait).as_ref()) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            for event in &events {
                match event.data.u64() {
                    SOCKET => self.receive(door),
                    BELL if !self.obey(door) => return Ok(()),
                    BELL => {}
                    number => self.local_event(number, event.flags, door),
                }
            }
            self.wake(door);
        }
    }

    /// Takes datagrams, then looks at each connection that they were for.
    fn receive(&mut self, door: &Door<'_>) {
        let mut concerned = Vec::new();
        for _ in 0..BATCH {
            let came = rustix::net::recvfrom(&self.socket, &mut self.piece, RecvFlags::DONTWAIT);
            let (count, from) = match came {
                Ok((count, _, Some(from))) => (count, from),
                Ok(_) | Err(Errno::INTR) => continue,
                Err(Errno::AGAIN) => break,
                // What an earlier datagram met at another machine: not this one's matter.
                Err(_) => continue,
            };
            let Ok(from) = SocketAddr::try_from(from) else { continue };
            let data = BytesMut::from(&self.piece[..count]);
            concerned.extend(self.datagram(from, data, door));
        }
        concerned.sort_unstable();
        concerned.dedup();
        for handle in concerned {
            self.attend(handle, door);
        }
    }

    /// One datagram; the connection that it was for.
    fn datagram(
        &mut self,
        from: SocketAddr,
        data: BytesMut,
        door: &Door<'_>,
    ) -> Option<ConnectionHandle> {
        self.outgoing.clear();
        let now = Instant::now();
        match self.endpoint.handle(now, from, None, None, data, &mut self.outgoing)? {
            DatagramEvent::ConnectionEvent(handle, event) => {
                self.pipes.get_mut(&handle)?.connection.handle_event(event);
                Some(handle)
            }
            DatagramEvent::NewConnection(incoming) => self.admit(now, incoming, door),
            DatagramEvent::Response(answer) => {
                if (door.permits)(from.ip()) {
                    self.send(&answer);
                }
                None
            }
        }
    }

    /// Somebody wants to connect.
    fn admit(
        &mut self,
        now: Instant,
        incoming: Incoming,
        door: &Door<'_>,
    ) -> Option<ConnectionHandle> {
        let from = incoming.remote_address();
        let young = self.pipes.values().filter(|pipe| pipe.is_young()).count();
        let unproven = young >= YOUNG_UNPROVEN_MAX && incoming.may_retry();
        if unproven && (door.permits)(from.ip()) {
            let answer = self.endpoint.retry(incoming, &mut self.outgoing);
            self.send(&answer.expect("it may be told to come again"));
            return None;
        }
        let Some(unknown) = (door.admit)(from) else {
            let answer = self.endpoint.refuse(incoming, &mut self.outgoing);
            self.send(&answer);
            return None;
        };
        match self.endpoint.accept(incoming, now, &mut self.outgoing, None) {
            Ok((handle, connection)) => {
                let until = now + Duration::from_millis(ADMISSION_MS);
                self.insert(handle, connection, Origin::Accepted { until, unknown });
                Some(handle)
            }
            Err(refused) => {
                (door.refuse)(from, &refused.cause);
                refused.response.inspect(|answer| self.send(answer));
                None
            }
        }
    }

    fn insert(&mut self, handle: ConnectionHandle, connection: Connection, origin: Origin) {
        let peer = connection.remote_address();
        tracing::trace!(op = "connection", number = handle.0, %peer, side = ?connection.side());
        self.pipes.insert(handle, Pipe::new(connection, origin));
    }

    /// Waits, if it must, for the network card, never for a peer. What is lost is sent again by
    /// the connection.
    fn send(&self, transmit: &Transmit) {
        let bytes = &self.outgoing[..transmit.size];
        while let Err(Errno::INTR) =
            rustix::net::sendto(&self.socket, bytes, SendFlags::NOSIGNAL, &transmit.destination)
        {
        }
    }

    /// Does what others want; `false` when there are no others any more.
    fn obey(&mut self, door: &Door<'_>) -> bool {
        // It only says that there is something to do.
        let _ = rustix::io::read(&self.bell, &mut [0u8; 8]);
        loop {
            match self.commands.try_recv() {
                Ok(Command::Connect { to, local, asked }) => self.connect(to, local, asked, door),
                Ok(Command::CloseAll { done }) => self.close_all(door, &done),
                Err(error) => return error.is_empty(),
            }
        }
    }

    fn connect(
        &mut self,
        to: SocketAddr,
        local: OwnedFd,
        asked: Sender<io::Result<()>>,
        door: &Door<'_>,
    ) {
        match self.endpoint.connect(Instant::now(), self.client.clone(), to, SERVER_NAME) {
            Ok((handle, connection)) => {
                self.insert(handle, connection, Origin::Dialled { local, asked });
                self.watch(handle);
                self.attend(handle, door);
            }
            Err(error) => {
                // Who asked may have given up.
                let _ = asked.try_send(Err(io::Error::other(error)));
            }
        }
    }

    fn close_all(&mut self, door: &Door<'_>, done: &Sender<()>) {
        let handles: Vec<_> = self.pipes.keys().copied().collect();
        for handle in handles {
            self.attend(handle, door);
            if let Some(pipe) = self.pipes.get_mut(&handle) {
                pipe.close(Instant::now());
                self.attend(handle, door);
            }
        }
        // Who asked may have given up.
        let _ = done.try_send(());
    }

    /// Something has happened at a local socket.
    fn local_event(&mut self, number: u64, flags: EventFlags, door: &Door<'_>) {
        let handle = usize::try_from(number).map(ConnectionHandle);
        let handle = handle.expect("we gave the number, from a usize");
        let Some(pipe) = self.pipes.get_mut(&handle) else { return };
        if flags.intersects(EventFlags::HUP | EventFlags::ERR)
            && let Some(local) = pipe.local()
        {
            // The end is reported whatever one watches for, and would be for ever.
            let _ = epoll::delete(&self.epoll, local);
            pipe.hang_up();
        }
        self.attend(handle, door);
    }

    /// Wakes the connections whose time has come.
    fn wake(&mut self, door: &Door<'_>) {
        let now = Instant::now();
        while let Some((at, handle)) = self.timers.first().copied()
            && at <= now
        {
            self.timers.pop_first();
            if let Some(pipe) = self.pipes.get_mut(&handle) {
                pipe.timer = None;
                pipe.wake(now);
                self.attend(handle, door);
            }
        }
    }

    /// Does all there is to do for a connection.
    fn attend(&mut self, handle: ConnectionHandle, door: &Door<'_>) {
        let now = Instant::now();
        let Some(pipe) = self.pipes.get_mut(&handle) else { return };
        let mut entered = None;
        while let Some(came) = pipe.next_event() {
            if let Came::Entered(unknown) = came {
                let from = pipe.connection.remote_address();
                match socket_pair() {
                    Ok((ours, theirs)) => {
                        pipe.join(ours);
                        entered = Some((theirs, from, unknown));
                    }
                    Err(error) => {
                        (door.refuse)(from, &error);
                        pipe.close(now);
                    }
                }
            }
        }
        pipe.pump(now, &mut self.piece);
        if let Some((theirs, from, unknown)) = entered {
            self.watch(handle);
            (door.enter)(theirs, from, unknown);
        }
        self.transmit(handle, now);
        self.rewatch(handle);
        self.settle(handle);
    }

    fn transmit(&mut self, handle: ConnectionHandle, now: Instant) {
        loop {
            self.outgoing.clear();
            let Some(pipe) = self.pipes.get_mut(&handle) else { return };
            match pipe.connection.poll_transmit(now, 1, &mut self.outgoing) {
                Some(transmit) => self.send(&transmit),
                None => return,
            }
        }
    }

    /// Begins to watch a connection's local socket, at first for its end alone.
    fn watch(&mut self, handle: ConnectionHandle) {
        let Some(pipe) = self.pipes.get_mut(&handle) else { return };
        pipe.watched = EventFlags::empty();
        if let Some(local) = pipe.local()
            && let Err(error) =
                epoll::add(&self.epoll, local, EventData::new_u64(handle.0 as u64), pipe.watched)
        {
            tracing::error!(op = "datagrams", %error, "a connection cannot be watched");
            pipe.close(Instant::now());
        }
    }

    /// Watches a connection's local socket for what can be done with it now.
    fn rewatch(&mut self, handle: ConnectionHandle) {
        let Some(pipe) = self.pipes.get_mut(&handle) else { return };
        let wants = pipe.wants();
        if let Some(local) = pipe.local()
            && wants != pipe.watched
            && epoll::modify(&self.epoll, local, EventData::new_u64(handle.0 as u64), wants).is_ok()
        {
            pipe.watched = wants;
        }
    }

    /// Passes on what endpoint and connection have for each other, and sets the connection's
    /// timer; one that has ended is forgotten.
    fn settle(&mut self, handle: ConnectionHandle) {
        let Some(pipe) = self.pipes.get_mut(&handle) else { return };
        let mut is_over = false;
        while let Some(event) = pipe.connection.poll_endpoint_events() {
            is_over |= event.is_drained();
            let answer: Option<ConnectionEvent> = self.endpoint.handle_event(handle, event);
            if let Some(answer) = answer {
                pipe.connection.handle_event(answer);
            }
        }
        let timer = if is_over { None } else { pipe.wakes_at() };
        if timer != pipe.timer {
            pipe.timer.map(|old| self.timers.remove(&(old, handle)));
            timer.map(|new| self.timers.insert((new, handle)));
            pipe.timer = timer;
        }
        if is_over {
            tracing::trace!(op = "connection", number = handle.0, "over");
            self.pipes.remove(&handle);
        }
    }
}

/// Rounded up to the next millisecond, so that a timer is not looked at before its time.
fn timespec(wait: Option<Duration>) -> Option<Timespec> {
    let wait = Duration::from_millis(u64::try_from(wait?.as_micros()).ok()?.div_ceil(1000));
    Timespec::try_from(wait).ok()
}
