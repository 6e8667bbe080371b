//! A link or a wire as both its ends use it: a connected stream socket, the Noise handshake on it,
//! then frames under protection. Blocking, with reused buffers.
//!
//! A frame goes out in one system call and, if it is not large, comes in by one. Memory grows as
//! bytes arrive, never because a length announces them, and is given back after a very large frame.
//! Any error is the end of the connection: record numbers are never used twice.
#![forbid(unsafe_code)]

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};
use serde::{Serialize, de::DeserializeOwned};
use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use dipc_wire::codec::{ByteOrder, WireError, decode_frame, encode_frame, frame_length};
use dipc_wire::ids::Secret;
use dipc_wire::noise::{Cipher, HANDSHAKE_BYTES, Handshake, Opener, Sealer};

use crate::clock::Deadline;
use crate::conversion;
use crate::incoming::{Incoming, LARGE_BYTES};
use crate::vigil::Watch;

/// What a buffer of one that has grown very large keeps: enough for a message of the kernel's usual
/// `msgmax`.
const KEPT_BYTES: usize = 16 << 10;

/// Why a connection is of no more use.
#[derive(Debug)]
pub enum ChannelError {
    /// The system says so.
    Io(io::Error),
    /// What came is not what may come.
    Wire(WireError),
    /// It took too long.
    Late,
    /// It was closed in the middle of a frame.
    Cut,
}

impl fmt::Display for ChannelError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ChannelError::Io(error) => error.fmt(f),
            ChannelError::Wire(error) => error.fmt(f),
            ChannelError::Late => f.write_str("no answer in time"),
            ChannelError::Cut => f.write_str("closed in the middle of a frame"),
        }
    }
}

impl std::error::Error for ChannelError {}

impl From<WireError> for ChannelError {
    fn from(error: WireError) -> ChannelError {
        ChannelError::Wire(error)
    }
}

impl From<Errno> for ChannelError {
    fn from(error: Errno) -> ChannelError {
        ChannelError::Io(error.into())
    }
}

type Result<T> = std::result::Result<T, ChannelError>;

/// Both directions of a connection, after the handshake.
pub struct Channel {
    sender: ChannelSender,
    receiver: ChannelReceiver,
}

impl Channel {
    /// The end that dialled: handshakes within a time.
    pub fn initiate(
        socket: impl Into<Arc<OwnedFd>>,
        secret: &Secret,
        cipher: Cipher,
        order: ByteOrder,
        within: Duration,
    ) -> Result<Channel> {
        Channel::initiate_by(socket, Handshake::initiator(secret), cipher, order, within)
    }

    /// The same by a handshake that knows more than a secret.
    pub fn initiate_by(
        socket: impl Into<Arc<OwnedFd>>,
        mut handshake: Handshake,
        cipher: Cipher,
        order: ByteOrder,
        within: Duration,
    ) -> Result<Channel> {
        let (socket, deadline) = (socket.into(), Deadline::after(Some(within)));
        send_message(&socket, &handshake.write())?;
        handshake.read(&receive_message(&socket, deadline)?)?;
        Ok(Channel::new(socket, handshake, cipher, order))
    }

    /// The end that was dialled: handshakes within a time.
    pub fn respond(
        socket: impl Into<Arc<OwnedFd>>,
        secret: &Secret,
        cipher: Cipher,
        order: ByteOrder,
        within: Duration,
    ) -> Result<Channel> {
        let handshakes = vec![Handshake::responder(secret)];
        let (channel, _) = Channel::respond_to_any(socket, handshakes, cipher, order, within)?;
        Ok(channel)
    }

    /// The same for a peer that may take part in any of these handshakes; and which it was.
    pub fn respond_to_any(
        socket: impl Into<Arc<OwnedFd>>,
        handshakes: Vec<Handshake>,
        cipher: Cipher,
        order: ByteOrder,
        within: Duration,
    ) -> Result<(Channel, usize)> {
        let socket = socket.into();
        let message = receive_message(&socket, Deadline::after(Some(within)))?;
        let mut offered = handshakes.into_iter().enumerate();
        let proven = offered.find_map(|(index, mut handshake)| {
            handshake.read(&message).ok().map(|()| (handshake, index))
        });
        let (mut handshake, index) = proven.ok_or(WireError::NotProven)?;
        send_message(&socket, &handshake.write())?;
        Ok((Channel::new(socket, handshake, cipher, order), index))
    }

    fn new(
        socket: Arc<OwnedFd>,
        handshake: Handshake,
        cipher: Cipher,
        order: ByteOrder,
    ) -> Channel {
        let (sealer, opener) = handshake.finish(cipher);
        let (frame, sealed) = (Vec::new(), Vec::new());
        Channel {
            sender: ChannelSender { socket: socket.clone(), order, sealer, frame, sealed },
            receiver: ChannelReceiver { socket, order, opener, incoming: Incoming::default() },
        }
    }

    /// The socket, to watch or break the connection.
    pub fn socket(&self) -> &Arc<OwnedFd> {
        &self.sender.socket
    }

    /// The two directions, for two threads.
    pub fn split(self) -> (ChannelSender, ChannelReceiver) {
        (self.sender, self.receiver)
    }

    /// See [`ChannelSender::send`].
    pub fn send(&mut self, value: &(impl Serialize + fmt::Debug), raw: &[u8]) -> Result<()> {
        self.sender.send(value, raw)
    }

    /// See [`ChannelSender::send_bytes`].
    pub fn send_bytes(&mut self, bytes: &[u8]) -> Result<()> {
        self.sender.send_bytes(bytes)
    }

    /// See [`ChannelReceiver::receive`].
    pub fn receive<T: DeserializeOwned + fmt::Debug>(&mut self) -> Result<Option<(T, &[u8])>> {
        self.receiver.receive()
    }

    /// See [`ChannelReceiver::receive_exact`].
    pub fn receive_exact(&mut self, bytes: &mut [u8], within: Duration) -> Result<()> {
        self.receiver.receive_exact(bytes, within)
    }
}

/// The outgoing direction.
pub struct ChannelSender {
    socket: Arc<OwnedFd>,
    order: ByteOrder,
    sealer: Sealer,
    frame: Vec<u8>,
    sealed: Vec<u8>,
}

impl ChannelSender {
    /// Sends one frame; waits as long as the other end does not read.
    pub fn send(&mut self, value: &(impl Serialize + fmt::Debug), raw: &[u8]) -> Result<()> {
        encode(self.order, value, raw, &mut self.frame);
        self.sealer.seal(&self.frame, &mut self.sealed);
        let sent = send_all(&self.socket, &self.sealed);
        give_back(&mut self.frame);
        give_back(&mut self.sealed);
        sent
    }

    /// Sends as much of one frame as the kernel takes at once, with encoded ones before and behind
    /// it, and hands back the rest, sealed: for [`ChannelSender::try_send`], before any other
    /// frame.
    pub fn begin_send(
        &mut self,
        before: &[u8],
        (value, raw): (&(impl Serialize + fmt::Debug), &[u8]),
        behind: &[u8],
    ) -> Result<Option<Vec<u8>>> {
        self.frame.extend_from_slice(before);
        encode(self.order, value, raw, &mut self.frame);
        self.frame.extend_from_slice(behind);
        self.begin_send_frame()
    }

    /// The same with encoded frames alone.
    pub fn begin_send_encoded(&mut self, frames: &[u8]) -> Result<Option<Vec<u8>>> {
        self.frame.extend_from_slice(frames);
        self.begin_send_frame()
    }

    fn begin_send_frame(&mut self) -> Result<Option<Vec<u8>>> {
        self.sealer.seal(&self.frame, &mut self.sealed);
        let sent = self.try_send(&self.sealed)?;
        let rest = (sent < self.sealed.len()).then(|| self.sealed[sent..].to_vec());
        give_back(&mut self.frame);
        give_back(&mut self.sealed);
        Ok(rest)
    }

    /// Appends one frame to others, for [`ChannelSender::begin_send`].
    pub fn encode_to(&self, value: &(impl Serialize + fmt::Debug), frames: &mut Vec<u8>) {
        encode(self.order, value, &[], frames);
    }

    /// One frame, for [`ChannelSender::seal_encoded`].
    pub fn encode(&self, value: &(impl Serialize + fmt::Debug), raw: &[u8]) -> Vec<u8> {
        let mut frame = Vec::new();
        encode(self.order, value, raw, &mut frame);
        frame
    }

    /// An encoded frame as it goes out, to be sent after all that were sealed before it.
    pub fn seal_encoded(&mut self, frame: &[u8]) -> Vec<u8> {
        let mut sealed = Vec::new();
        self.sealer.seal(frame, &mut sealed);
        sealed
    }

    /// Sends what the kernel takes at once of sealed bytes: how many.
    pub fn try_send(&self, sealed: &[u8]) -> Result<usize> {
        try_send(&self.socket, sealed)
    }

    /// The socket, to wait until it takes more.
    pub fn socket(&self) -> &Arc<OwnedFd> {
        &self.socket
    }

    /// Sends bytes that are no frame, such as a Hello.
    pub fn send_bytes(&mut self, bytes: &[u8]) -> Result<()> {
        self.sealer.seal(bytes, &mut self.sealed);
        let sent = send_all(&self.socket, &self.sealed);
        self.sealed.clear();
        sent
    }
}

/// The incoming direction.
pub struct ChannelReceiver {
    socket: Arc<OwnedFd>,
    order: ByteOrder,
    opener: Opener,
    incoming: Incoming,
}

/// What [`ChannelReceiver::try_receive`] found.
#[derive(Debug)]
pub enum Tried<'a, T> {
    /// A frame: its value and its raw bytes.
    Frame(T, &'a [u8]),
    /// No whole frame yet.
    Nothing,
    /// The other end has closed.
    Ended,
}

/// What the kernel had for us.
enum Came {
    Bytes,
    Nothing,
    End,
}

impl ChannelReceiver {
    /// The next frame, its value and its raw bytes, in memory that does not fault; waits for it.
    /// `None`: closed in order.
    pub fn receive<T: DeserializeOwned + fmt::Debug>(&mut self) -> Result<Option<(T, &[u8])>> {
        let length = loop {
            if let Some(length) = self.open_frame()? {
                break length;
            }
            match self.read(RecvFlags::empty())? {
                Came::Bytes => {}
                Came::Nothing => await_ready(&self.socket, PollFlags::IN, Deadline::after(None))?,
                Came::End => return self.ended().map(|()| None),
            }
        };
        self.take_frame(length).map(Some)
    }

    /// The next frame as [`ChannelReceiver::receive`] has it; waits as `watch` does.
    pub fn receive_by<T: DeserializeOwned + fmt::Debug>(
        &mut self,
        watch: &mut Watch,
    ) -> Result<Option<(T, &[u8])>> {
        let length = loop {
            if let Some(length) = self.open_frame()? {
                break length;
            }
            watch.wait(&self.socket).map_err(ChannelError::Io)?;
            match self.read(RecvFlags::DONTWAIT)? {
                Came::Bytes => watch.came(),
                Came::Nothing => {}
                Came::End => return self.ended().map(|()| None),
            }
        };
        self.take_frame(length).map(Some)
    }

    /// The next frame if it is there; does not wait.
    pub fn try_receive<T: DeserializeOwned + fmt::Debug>(&mut self) -> Result<Tried<'_, T>> {
        let length = loop {
            if let Some(length) = self.open_frame()? {
                break length;
            }
            match self.read(RecvFlags::DONTWAIT)? {
                Came::Bytes => {}
                Came::Nothing => return Ok(Tried::Nothing),
                Came::End => return self.ended().map(|()| Tried::Ended),
            }
        };
        self.take_frame(length).map(|(value, raw)| Tried::Frame(value, raw))
    }

    /// The socket, to watch the connection.
    pub fn socket(&self) -> &Arc<OwnedFd> {
        &self.socket
    }

    /// Whether bytes have come that no frame was made of yet; the socket does not show them.
    pub fn has_leftover(&self) -> bool {
        !self.incoming.is_empty()
    }

    /// Fills `bytes` with what is no frame, such as a Hello, within a time.
    pub fn receive_exact(&mut self, bytes: &mut [u8], within: Duration) -> Result<()> {
        let deadline = Deadline::after(Some(within));
        while self.incoming.plain().len() < bytes.len() {
            if self.incoming.open(&mut self.opener)? {
                continue;
            }
            match self.read(RecvFlags::DONTWAIT)? {
                Came::Bytes => {}
                Came::Nothing => await_ready(&self.socket, PollFlags::IN, deadline)?,
                Came::End => return Err(ChannelError::Cut),
            }
        }
        bytes.copy_from_slice(self.incoming.take(bytes.len()));
        Ok(())
    }

    /// Opens records until a whole frame is there; its length then.
    fn open_frame(&mut self) -> Result<Option<usize>> {
        loop {
            let plain = self.incoming.plain();
            if let Some(length) = frame_length(self.order, plain)?
                && plain.len() >= length
            {
                return Ok(Some(length));
            }
            if !self.incoming.open(&mut self.opener)? {
                return Ok(None);
            }
        }
    }

    fn take_frame<T>(&mut self, length: usize) -> Result<(T, &[u8])>
    where
        T: DeserializeOwned + fmt::Debug,
    {
        let (value, raw) = decode_frame(self.order, self.incoming.take(length))?;
        conversion::come_in(self.order, &value, raw.len());
        Ok((value, raw))
    }

    fn read(&mut self, flags: RecvFlags) -> Result<Came> {
        let room = self.incoming.room().map_err(ChannelError::Io)?;
        loop {
            match rustix::net::recv(&self.socket, &mut *room, flags) {
                Ok((0, _)) => return Ok(Came::End),
                Ok((count, _)) => {
                    self.incoming.came(count);
                    return Ok(Came::Bytes);
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(Came::Nothing),
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn ended(&self) -> Result<()> {
        if self.has_leftover() { Err(ChannelError::Cut) } else { Ok(()) }
    }
}

fn encode(
    order: ByteOrder,
    value: &(impl Serialize + fmt::Debug),
    raw: &[u8],
    frame: &mut Vec<u8>,
) {
    conversion::going_out(order, value, raw.len());
    encode_frame(order, value, raw, frame);
}

/// Empties a buffer; one that has grown very large is made small again. To give more back costs
/// who reads a segment from end to end as much as its transport.
fn give_back(buffer: &mut Vec<u8>) {
    buffer.clear();
    if buffer.capacity() > LARGE_BYTES {
        buffer.shrink_to(KEPT_BYTES);
    }
}

/// Sends bytes as they are; waits as long as the other end does not read.
pub fn send_all(socket: impl AsFd, mut bytes: &[u8]) -> Result<()> {
    while !bytes.is_empty() {
        match rustix::net::send(&socket, bytes, SendFlags::NOSIGNAL) {
            Ok(sent) => bytes = &bytes[sent..],
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => await_ready(&socket, PollFlags::OUT, Deadline::after(None))?,
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Sends what the kernel takes without a wait: how many bytes.
fn try_send(socket: impl AsFd, bytes: &[u8]) -> Result<usize> {
    let mut sent = 0;
    while sent < bytes.len() {
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        match rustix::net::send(&socket, &bytes[sent..], flags) {
            Ok(count) => sent += count,
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => break,
            Err(error) => return Err(error.into()),
        }
    }
    Ok(sent)
}

/// Waits until a socket takes bytes, or is closed.
pub fn await_writable(socket: impl AsFd) -> Result<()> {
    await_ready(socket, PollFlags::OUT, Deadline::after(None))
}

/// Waits until a socket can be read or written, or for the deadline.
fn await_ready(socket: impl AsFd, flags: PollFlags, deadline: Deadline) -> Result<()> {
    while !deadline.is_over() {
        let left = Timespec::try_from(deadline.left()).map_err(|_| ChannelError::Late)?;
        let mut watched = [PollFd::new(&socket, flags)];
        match poll(&mut watched, Some(&left)) {
            Ok(0) | Err(Errno::INTR) => {}
            Ok(_) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    }
    Err(ChannelError::Late)
}

/// A message of the handshake, its length before it.
fn send_message(socket: impl AsFd, message: &[u8; HANDSHAKE_BYTES]) -> Result<()> {
    let length = u16::try_from(HANDSHAKE_BYTES).expect("it is 48");
    let mut bytes = length.to_be_bytes().to_vec();
    bytes.extend_from_slice(message);
    send_all(socket, &bytes)
}

/// Reads no byte more than the message has: what follows is not ours to buffer.
fn receive_message(socket: impl AsFd, deadline: Deadline) -> Result<[u8; HANDSHAKE_BYTES]> {
    let length: [u8; 2] = receive_raw(socket.as_fd(), deadline)?;
    let length = usize::from(u16::from_be_bytes(length));
    if length != HANDSHAKE_BYTES {
        return Err(WireError::BadLength { length }.into());
    }
    receive_raw(socket.as_fd(), deadline)
}

/// Receives so many bytes as they are, and no byte that comes behind them.
pub fn receive_raw<const N: usize>(socket: BorrowedFd<'_>, deadline: Deadline) -> Result<[u8; N]> {
    let mut bytes = [0; N];
    let mut have = 0;
    while have < N {
        match rustix::net::recv(socket, &mut bytes[have..], RecvFlags::DONTWAIT) {
            Ok((0, _)) => return Err(ChannelError::Cut),
            Ok((count, _)) => have += count,
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => await_ready(socket, PollFlags::IN, deadline)?,
            Err(error) => return Err(error.into()),
        }
    }
    Ok(bytes)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
    use std::thread;

    const WITHIN: Duration = Duration::from_secs(10);
    const SECRET: Secret = Secret([5; 32]);

    fn sockets() -> (OwnedFd, OwnedFd) {
        socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None).unwrap()
    }

    pub(crate) fn channels(cipher: Cipher, order: ByteOrder) -> (Channel, Channel) {
        let (near, far) = sockets();
        let other = thread::spawn(move || Channel::respond(far, &SECRET, cipher, order, WITHIN));
        let near = Channel::initiate(near, &SECRET, cipher, order, WITHIN).unwrap();
        (near, other.join().unwrap().unwrap())
    }

    #[test]
    fn frames_of_every_size_arrive_whole_and_memory_is_given_back() {
        for (cipher, order) in
            [(Cipher::AesGcm, ByteOrder::Little), (Cipher::Plain, ByteOrder::Network)]
        {
            let (mut near, mut far) = channels(cipher, order);
            let sizes = [0, 1, 8192, 70_000, 3 << 20, 10];
            let sending = thread::spawn(move || {
                for size in sizes {
                    near.send(&(size as u32), &vec![size as u8; size]).unwrap();
                }
                near
            });
            for size in sizes {
                let (value, raw) = far.receive::<u32>().unwrap().unwrap();
                assert_eq!((value as usize, raw.len()), (size, size));
                assert!(raw.iter().all(|&byte| byte == size as u8));
            }
            let near = sending.join().unwrap();
            assert!(near.sender.sealed.capacity() <= LARGE_BYTES);
            drop(near);
            assert!(far.receive::<u32>().unwrap().is_none());
            assert!(far.receiver.incoming.capacity() <= LARGE_BYTES);
        }
    }

    #[test]
    fn bytes_and_frames_share_a_channel() {
        let (mut near, mut far) = channels(Cipher::AesGcm, ByteOrder::Little);
        near.send_bytes(&[7; 80]).unwrap();
        near.send(&9u8, &[]).unwrap();
        let mut hello = [0; 80];
        far.receive_exact(&mut hello, WITHIN).unwrap();
        assert_eq!(hello, [7; 80]);
        assert!(matches!(far.receiver.try_receive::<u8>(), Ok(Tried::Frame(9, []))));
        assert!(matches!(far.receiver.try_receive::<u8>(), Ok(Tried::Nothing)));
        let late = far.receive_exact(&mut hello, Duration::from_millis(1));
        assert!(matches!(late, Err(ChannelError::Late)));
        drop(near);
        assert!(matches!(far.receiver.try_receive::<u8>(), Ok(Tried::Ended)));
    }

    #[test]
    fn who_cannot_prove_the_key_in_time_is_refused() {
        let any = |far, secrets: &[&Secret], within| {
            let handshakes = secrets.iter().map(|secret| Handshake::responder(secret)).collect();
            Channel::respond_to_any(far, handshakes, Cipher::AesGcm, ByteOrder::Little, within)
        };
        let (near, far) = sockets();
        send_message(&near, &Handshake::initiator(&SECRET).write()).unwrap();
        let wrong = any(far, &[&Secret([1; 32])], WITHIN);
        assert!(matches!(wrong, Err(ChannelError::Wire(WireError::NotProven))));
        let (near, far) = sockets();
        send_message(&near, &Handshake::initiator(&SECRET).write()).unwrap();
        let second = any(far, &[&Secret([1; 32]), &SECRET], WITHIN);
        assert_eq!(second.map(|(_, index)| index).ok(), Some(1), "the second key fits");
        let (_near, far) = sockets();
        let silent = any(far, &[&SECRET], Duration::from_millis(1));
        assert!(matches!(silent, Err(ChannelError::Late)));
    }

    #[test]
    fn an_announced_length_takes_no_memory() {
        let (mut near, mut far) = channels(Cipher::Plain, ByteOrder::Little);
        near.send_bytes(&(10u32 << 20).to_le_bytes()).unwrap();
        assert!(matches!(far.receiver.try_receive::<u8>(), Ok(Tried::Nothing)));
        assert!(far.receiver.incoming.capacity() <= KEPT_BYTES);
        near.send_bytes(&u32::MAX.to_le_bytes()).unwrap();
        drop(near);
        assert!(matches!(far.receiver.try_receive::<u8>(), Err(ChannelError::Cut)));
    }
}
