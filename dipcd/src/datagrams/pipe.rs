//! One connection and its one stream, joined to a local socket whose other end is used as if it
//! were the connection. Bytes are passed on as they come, either way, and no more than one piece
//! waits here: what the local side does not read stays with the peer, and the other way round.
//!
//! ```text
//! local socket ── read ──▶ outgoing ── write ──▶ stream ══▶ peer
//! local socket ◀── send ── incoming ◀── read ─── stream ◀══ peer
//! ```
//!
//! The end of either direction is passed on as well; when both have ended the connection is closed.
#![forbid(unsafe_code)]

use bytes::{Buf, Bytes};
use crossbeam_channel::Sender;
use quinn_proto::{Connection, Dir, Event, ReadError, StreamEvent, StreamId, VarInt, WriteError};
use rustix::event::epoll::EventFlags;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, Shutdown};
use std::io;
use std::os::fd::OwnedFd;
use std::time::Instant;

use crate::front_end::Unknown;

/// Bytes that are passed on at a time.
pub(super) const PIECE_BYTES: usize = 64 << 10;
/// The code of every close: nobody looks at it.
const NO_REASON: VarInt = VarInt::from_u32(0);

/// One direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flow {
    /// Bytes may come.
    Open,
    /// The last byte was passed on, and the peer has not yet said that it has it.
    Ending,
    /// Nothing comes any more.
    Over,
}

/// Who began the connection.
pub(super) enum Origin {
    /// We; who asked for it waits.
    Dialled { local: OwnedFd, asked: Sender<io::Result<()>> },
    /// The peer, who has until then to open its stream.
    Accepted { until: Instant, unknown: Unknown },
}

/// What came of an event.
pub(super) enum Came {
    /// Nothing that others must know.
    Nothing,
    /// The peer has opened its stream, which wants a local socket.
    Entered(Unknown),
}

/// A connection, its stream and its local socket.
pub(super) struct Pipe {
    pub connection: Connection,
    stream: Option<StreamId>,
    /// Our end of it; none before the peer has opened its stream, and none after the end.
    local: Option<OwnedFd>,
    asked: Option<Sender<io::Result<()>>>,
    /// The peer has not opened its stream, and until when it must.
    young: Option<(Instant, Unknown)>,
    outgoing: Bytes,
    incoming: Bytes,
    out: Flow,
    inward: Flow,
    /// The local socket is closed at its other end and not watched any more; what it still has
    /// is read.
    hung_up: bool,
    /// What the local socket is watched for.
    pub watched: EventFlags,
    /// When the connection wants to be woken, as the timers know it.
    pub timer: Option<Instant>,
}

impl Pipe {
    /// A connection that has just begun.
    pub fn new(connection: Connection, origin: Origin) -> Pipe {
        let (local, asked, young) = match origin {
            Origin::Dialled { local, asked } => (Some(local), Some(asked), None),
            Origin::Accepted { until, unknown } => (None, None, Some((until, unknown))),
        };
        Pipe {
            connection,
            stream: None,
            local,
            asked,
            young,
            outgoing: Bytes::new(),
            incoming: Bytes::new(),
            out: Flow::Open,
            inward: Flow::Open,
            hung_up: false,
            watched: EventFlags::empty(),
            timer: None,
        }
    }

    /// Whether the peer has not yet opened its stream.
    pub fn is_young(&self) -> bool {
        self.young.is_some()
    }

    /// The local socket, to watch it.
    pub fn local(&self) -> Option<&OwnedFd> {
        self.local.as_ref().filter(|_| !self.hung_up)
    }

    /// Gives it the local socket that it has asked for.
    pub fn join(&mut self, local: OwnedFd) {
        self.local = Some(local);
    }

    /// The local socket is closed at its other end.
    pub fn hang_up(&mut self) {
        self.hung_up = true;
    }

    /// What the local socket is to be watched for, besides its end.
    pub fn wants(&self) -> EventFlags {
        let mut wants = EventFlags::empty();
        if self.stream.is_some() && self.out == Flow::Open && self.outgoing.is_empty() {
            wants |= EventFlags::IN;
        }
        if !self.incoming.is_empty() {
            wants |= EventFlags::OUT;
        }
        wants
    }

    /// When it is to be woken.
    pub fn wakes_at(&mut self) -> Option<Instant> {
        let until = self.young.as_ref().map(|(until, _)| *until);
        self.connection.poll_timeout().into_iter().chain(until).min()
    }

    /// Time has passed.
    pub fn wake(&mut self, now: Instant) {
        if self.connection.poll_timeout().is_some_and(|at| at <= now) {
            self.connection.handle_timeout(now);
        }
        if self.young.as_ref().is_some_and(|(until, _)| *until <= now) {
            self.close(now);
        }
    }

    /// Takes the next event of the connection; `None` when there is none.
    pub fn next_event(&mut self) -> Option<Came> {
        let event = self.connection.poll()?;
        match event {
            Event::Connected if self.asked.is_some() => {
                self.stream = self.connection.streams().open(Dir::Bi);
                let opened = self.stream.ok_or_else(|| io::Error::other("it takes no stream"));
                self.tell(opened.map(|_| ()));
            }
            Event::Stream(StreamEvent::Opened { dir: Dir::Bi }) if self.stream.is_none() => {
                self.stream = self.connection.streams().accept(Dir::Bi);
                let (_, unknown) = self.young.take()?;
                return Some(Came::Entered(unknown));
            }
            Event::Stream(StreamEvent::Finished { .. }) => self.out = Flow::Over,
            Event::Stream(StreamEvent::Stopped { .. }) => {
                self.out = Flow::Over;
                self.outgoing.clear();
                self.shut_local(Shutdown::Read);
            }
            Event::ConnectionLost { reason } => self.lose(&reason.to_string()),
            _ => {}
        }
        Some(Came::Nothing)
    }

    fn tell(&mut self, outcome: io::Result<()>) {
        if let Some(asked) = self.asked.take() {
            // Who asked may have given up.
            let _ = asked.try_send(outcome);
        }
    }

    /// The connection has ended: so does the local socket, after what has come before.
    fn lose(&mut self, why: &str) {
        self.young = None;
        self.tell(Err(io::Error::new(io::ErrorKind::ConnectionAborted, why.to_owned())));
        self.give();
        self.local = None;
        (self.out, self.inward) = (Flow::Over, Flow::Over);
    }

    /// Passes on what there is, both ways.
    pub fn pump(&mut self, now: Instant, piece: &mut [u8]) {
        if self.local.is_none() || self.connection.is_closed() {
            return;
        }
        if self.stream.is_none() {
            // Who dialled has given up.
            if self.hung_up {
                self.close(now);
            }
            return;
        }
        self.take(piece);
        self.give();
        if self.hung_up && self.inward == Flow::Open {
            self.stop();
        }
        if self.out == Flow::Over && self.inward == Flow::Over {
            self.close(now);
        }
    }

    /// Closes the connection; the peer is told once.
    pub fn close(&mut self, now: Instant) {
        self.connection.close(now, NO_REASON, Bytes::new());
        self.lose("closed");
    }

    /// From the local socket to the peer.
    fn take(&mut self, piece: &mut [u8]) {
        let (Some(local), Some(stream)) = (&self.local, self.stream) else { return };
        while self.out == Flow::Open {
            if self.outgoing.is_empty() {
                match rustix::net::recv(local, &mut *piece, RecvFlags::DONTWAIT) {
                    Ok((0, _)) => return self.finish(stream),
                    Ok((count, _)) => self.outgoing = Bytes::copy_from_slice(&piece[..count]),
                    Err(Errno::INTR) => continue,
                    Err(Errno::AGAIN) => return,
                    Err(_) => return self.finish(stream),
                }
            }
            let mut chunks = [std::mem::take(&mut self.outgoing)];
            let written = self.connection.send_stream(stream).write_chunks(&mut chunks);
            [self.outgoing] = chunks;
            match written {
                Ok(_) => {}
                Err(WriteError::Blocked) => return,
                Err(WriteError::Stopped(_) | WriteError::ClosedStream) => self.out = Flow::Over,
            }
        }
    }

    fn finish(&mut self, stream: StreamId) {
        let finished = self.connection.send_stream(stream).finish();
        self.out = if finished.is_ok() { Flow::Ending } else { Flow::Over };
    }

    /// From the peer to the local socket.
    fn give(&mut self) {
        while self.inward == Flow::Open {
            let (Some(local), Some(stream)) = (&self.local, self.stream) else { return };
            if self.incoming.is_empty() {
                match next_piece(&mut self.connection, stream) {
                    Ok(Some(bytes)) => self.incoming = bytes,
                    Ok(None) => {
                        self.inward = Flow::Over;
                        return self.shut_local(Shutdown::Write);
                    }
                    Err(ReadError::Blocked) => return,
                    Err(ReadError::Reset(_)) => {
                        self.inward = Flow::Over;
                        return self.shut_local(Shutdown::Both);
                    }
                }
            }
            let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
            match rustix::net::send(local, &self.incoming, flags) {
                Ok(count) => self.incoming.advance(count),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return,
                Err(_) => self.stop(),
            }
        }
    }

    /// Nobody reads here any more.
    fn stop(&mut self) {
        self.inward = Flow::Over;
        self.incoming.clear();
        if let Some(stream) = self.stream {
            // Fails when the peer has just ended it itself.
            let _ = self.connection.recv_stream(stream).stop(NO_REASON);
        }
    }

    fn shut_local(&self, how: Shutdown) {
        if let Some(local) = &self.local {
            // Fails when it is closed at its other end.
            let _ = rustix::net::shutdown(local, how);
        }
    }
}

/// The next bytes in their order; `None`: there will be no more.
fn next_piece(connection: &mut Connection, stream: StreamId) -> Result<Option<Bytes>, ReadError> {
    let mut stream = connection.recv_stream(stream);
    let Ok(mut chunks) = stream.read(true) else { return Ok(None) };
    let chunk = chunks.next(PIECE_BYTES);
    // The connection is asked for what it has to send anyway.
    let _ = chunks.finalize();
    Ok(chunk?.map(|chunk| chunk.bytes))
}
