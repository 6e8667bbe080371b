//! One wire: the connection to a stand-in at home, its handshake, and frames both ways. What the
//! frames mean, and what happens when the wire breaks, is `session`'s.
#![forbid(unsafe_code)]

use std::os::fd::{AsRawFd, RawFd};

use dipc_wire::client::{Answer, Call, WireTerms};
use dipc_wire::codec::{decode_frame, encode_frame, frame_length};
use dipc_wire::ids::{NodeId, Secret, Seq, Slot};
use dipc_wire::noise::{HANDSHAKE_BYTES, Handshake, Opener, Sealer};
use dipc_wire::op::{Op, Outcome, Reply, Request};
use dipc_wire::sysv::SysvError;

use crate::identity::Seen;
use crate::socket::{Broken, Socket};
use crate::sys::{self, Mask, WaitBy, Waited};
use crate::time::Moment;
use crate::{client, slots};

/// How long home may take for its part of the handshake; its host is alive and answered just now.
const HANDSHAKE_NANOS: u64 = 5_000_000_000;

/// A buffer larger than this is not kept for the next operation.
const KEPT_BYTES_MAX: usize = 256 << 10;

/// A connection to a stand-in.
pub struct Wire {
    /// Where it leads.
    pub home: NodeId,
    /// Its session.
    pub slot: Slot,
    /// As whom it was opened.
    pub identity: Seen,
    /// How it is spoken.
    pub terms: WireTerms,
    connection: Connection,
    /// The frame of the operation in hand, to be sent again over another connection.
    request: Vec<u8>,
}

/// What a break takes away.
struct Connection {
    socket: Socket,
    sealer: Sealer,
    opener: Opener,
    /// Records to send.
    records: Vec<u8>,
    /// Records as they came.
    sealed: Vec<u8>,
    /// Frames out of them.
    plain: Vec<u8>,
}

impl Wire {
    /// A wire for a session.
    pub fn open(home: NodeId, slot: Slot, identity: Seen) -> Result<Wire, OpenError> {
        let (connection, terms) = Connection::open(home, slot)?;
        Ok(Wire { home, slot, identity, terms, connection, request: Vec::new() })
    }

    /// Another connection in place of a broken one.
    pub fn reopen(&mut self) -> Result<(), OpenError> {
        (self.connection, self.terms) = Connection::open(self.home, self.slot)?;
        Ok(())
    }

    /// Makes the frame of an operation; returns its number.
    pub fn prepare(&mut self, op: Op, raw: &[u8]) -> Seq {
        let (done, seq) = (slots::done(self.slot), slots::next(self.slot));
        self.request.clear();
        let request = Request::Do { seq, done, op };
        encode_frame(self.terms.order, &request, raw, &mut self.request);
        seq
    }

    /// Sends the operation in hand.
    pub fn send_operation(&mut self) -> Result<(), Broken> {
        self.connection.send(&self.request)
    }

    /// Sends a frame without raw bytes.
    pub fn send(&mut self, request: &Request) -> Result<(), Broken> {
        let mut frame = Vec::new();
        encode_frame(self.terms.order, request, &[], &mut frame);
        self.connection.send(&frame)
    }

    /// Takes what has arrived from the socket.
    pub fn receive(&mut self) -> Result<(), Broken> {
        self.connection.receive()
    }

    /// Waits until something arrives, undisturbed by signals, and takes it; or until the bound,
    /// and takes nothing.
    pub fn wait_and_receive(&mut self, bound: Option<Moment>) -> Result<(), Broken> {
        let left = bound.map(Moment::left);
        match sys::wait(self.number(), WaitBy::Poll, Mask::ALL, left) {
            Waited::TimedOut => Ok(()),
            Waited::Ready | Waited::Interrupted => self.receive(),
        }
    }

    /// The reply to operation `seq`, if it is all there; replies to others are dropped.
    pub fn reply(&mut self, seq: Seq) -> Result<Option<Outcome>, Broken> {
        let order = self.terms.order;
        let plain = &mut self.connection.plain;
        while let Some(length) = frame_length(order, plain).map_err(|_| Broken)? {
            let Some(frame) = plain.get(..length) else { return Ok(None) };
            let (reply, _): (Reply, _) = decode_frame(order, frame).map_err(|_| Broken)?;
            if reply.seq == seq {
                return Ok(Some(reply.outcome));
            }
            plain.drain(..length);
        }
        Ok(None)
    }

    /// The raw bytes behind the reply that [`Wire::reply`] found.
    pub fn reply_raw(&self) -> &[u8] {
        let plain = self.connection.plain.as_slice();
        let frame = match frame_length(self.terms.order, plain) {
            Ok(Some(length)) => plain.get(..length).unwrap_or_default(),
            _ => &[],
        };
        decode_frame::<Reply>(self.terms.order, frame).map_or(&[], |(_, raw)| raw)
    }

    /// The reply has been read: makes room for the next.
    pub fn drop_reply(&mut self) {
        let connection = &mut self.connection;
        if let Ok(Some(length)) = frame_length(self.terms.order, &connection.plain) {
            connection.plain.drain(..length.min(connection.plain.len()));
        }
        let Connection { records, sealed, plain, .. } = connection;
        for buffer in [&mut self.request, records, sealed, plain] {
            if buffer.capacity() > KEPT_BYTES_MAX {
                buffer.shrink_to(KEPT_BYTES_MAX);
            }
        }
    }

    /// The socket's number, to wait on.
    pub fn number(&self) -> RawFd {
        self.connection.socket.as_raw_fd()
    }

    /// An epoll descriptor that waits on the socket.
    pub fn epoll(&mut self) -> Result<RawFd, Broken> {
        self.connection.socket.epoll()
    }
}

/// Why there is no wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenError {
    /// The program's errno.
    Refused(SysvError),
    /// The new connection broke too; another may not.
    Broken,
}

impl From<Broken> for OpenError {
    fn from(_: Broken) -> OpenError {
        OpenError::Broken
    }
}

impl Connection {
    fn open(home: NodeId, slot: Slot) -> Result<(Connection, WireTerms), OpenError> {
        let answered = client::call(Call::OpenWire { home, slot });
        let answered = answered.map_err(|reason| OpenError::Refused(reason.into()))?;
        let (Answer::Wire { secret, terms }, Some(fd)) = answered else {
            return Err(OpenError::Refused(SysvError::EIO));
        };
        let socket = Socket::adopt_high(fd);
        slots::note_wire(slot, &socket);
        let (sealer, opener) = shake_hands(&socket, &secret, terms)?;
        let (records, sealed, plain) = (Vec::new(), Vec::new(), Vec::new());
        Ok((Connection { socket, sealer, opener, records, sealed, plain }, terms))
    }

    fn send(&mut self, frame: &[u8]) -> Result<(), Broken> {
        self.records.clear();
        self.sealer.seal(frame, &mut self.records);
        self.socket.send_all(&self.records)
    }

    fn receive(&mut self) -> Result<(), Broken> {
        self.socket.receive(&mut self.sealed)?;
        let mut used = 0;
        while let Some(bytes) =
            self.opener.open(&self.sealed[used..], &mut self.plain).map_err(|_| Broken)?
        {
            used += bytes;
        }
        self.sealed.drain(..used);
        Ok(())
    }
}

/// The initiator's side of the handshake: each message with its length before it.
fn shake_hands(
    socket: &Socket,
    secret: &Secret,
    terms: WireTerms,
) -> Result<(Sealer, Opener), Broken> {
    const LENGTH: [u8; 2] = (HANDSHAKE_BYTES as u16).to_be_bytes();
    let mut handshake = Handshake::initiator(secret);
    let message = [&LENGTH[..], &handshake.write()].concat();
    socket.send_all(&message)?;
    let (bound, mut bytes) = (Moment::after(HANDSHAKE_NANOS), Vec::new());
    while bytes.len() < LENGTH.len() + HANDSHAKE_BYTES {
        let waited = sys::wait(socket.as_raw_fd(), WaitBy::Poll, Mask::ALL, Some(bound.left()));
        if waited == Waited::TimedOut {
            return Err(Broken);
        }
        socket.receive(&mut bytes)?;
    }
    let message = bytes.strip_prefix(&LENGTH).and_then(|rest| rest.try_into().ok());
    handshake.read(message.ok_or(Broken)?).map_err(|_| Broken)?;
    Ok(handshake.finish(terms.cipher))
}
