//! Calls to this node's dipcd: one connection each. A call whose connection ended without an
//! answer - dipcd was restarted - is repeated until its time is up.
#![forbid(unsafe_code)]

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use dipc_wire::client::{Answer, Call, ClientCall};
use dipc_wire::codec::{decode_packet, encode_packet};
use dipc_wire::limits::PACKET_BYTES_MAX;
use dipc_wire::sysv::SysvError;
use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags,
    SendAncillaryBuffer, SendFlags, SocketAddrUnix, SocketFlags, SocketType, connect, recvmsg,
    sendmsg, socket_with,
};
use rustix::thread::gettid;

use crate::boundary::Entry;
use crate::policy;
use crate::socket::Socket;
use crate::sys::{self, Mask, WaitBy, Waited};
use crate::thread::{Awaited, Parked};
use crate::time::Moment;

/// Before a call is repeated.
const PAUSE_NANOS: u64 = 20_000_000;

/// Why there is no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoAnswer {
    /// No dipcd serves this process: there is none, or it may not be called.
    Absent,
    /// None came in time.
    Late,
    /// The answer is no: the program's errno.
    Refused(SysvError),
}

impl From<NoAnswer> for SysvError {
    /// For calls about what is distributed already: a node whose dipcd is gone for good has lost
    /// everything that it shared.
    fn from(reason: NoAnswer) -> SysvError {
        match reason {
            NoAnswer::Absent => SysvError::EIDRM,
            NoAnswer::Late => SysvError::ETIMEDOUT,
            NoAnswer::Refused(error) => error,
        }
    }
}

/// One call and its answer, with the descriptor that came along. The program's signal handlers run
/// while it waits, and may leave it; it goes on afterwards otherwise.
pub fn call(entry: &Entry, call: Call) -> Result<(Answer, Option<OwnedFd>), NoAnswer> {
    let bound = policy::get().patience_nanos.map(Moment::after);
    let packet = encode_packet(&ClientCall { tid: tid(), call });
    loop {
        let mut socket = Socket::adopt(connected(bound)?);
        if send_packet(&socket, &packet) {
            socket = parked(entry, socket, bound)?;
            if let Some(answer) = receive_answer(&socket) {
                return match answer {
                    (Answer::Refused(error), _) => Err(NoAnswer::Refused(error)),
                    answered => Ok(answered),
                };
            }
        }
        drop(socket);
        if bound.is_some_and(|bound| bound.left() == 0) {
            return Err(NoAnswer::Late);
        }
        pause();
    }
}

/// One call to which no answer is awaited. One that cannot be made is noticed by dipcd some other
/// way.
pub fn tell(call: Call) {
    if let Ok(socket) = connected(Some(Moment::after(PAUSE_NANOS))) {
        send_packet(&Socket::adopt(socket), &encode_packet(&ClientCall { tid: tid(), call }));
    }
}

/// Waits a moment, undisturbed.
pub fn pause() {
    sys::wait(-1, WaitBy::Poll, Mask::ALL, Some(PAUSE_NANOS));
}

fn tid() -> u32 {
    gettid().as_raw_nonzero().get() as u32
}

fn connected(bound: Option<Moment>) -> Result<OwnedFd, NoAnswer> {
    let kind = SocketType::SEQPACKET;
    let socket = socket_with(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None)
        .map_err(|_| NoAnswer::Refused(SysvError::ENOMEM))?;
    let left = bound.map(|bound| Duration::from_nanos(bound.left().max(1_000_000)));
    let _ = set_socket_timeout(&socket, Timeout::Send, left);
    let address = SocketAddrUnix::new(policy::socket_path()).map_err(|_| NoAnswer::Absent)?;
    loop {
        match connect(&socket, &address) {
            Ok(()) => return Ok(socket),
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => return Err(NoAnswer::Late),
            Err(_) => return Err(NoAnswer::Absent),
        }
    }
}

fn send_packet(socket: &Socket, packet: &[u8]) -> bool {
    let mut nothing = SendAncillaryBuffer::default();
    let packet = [IoSlice::new(packet)];
    sendmsg(socket.fd(), &packet, &mut nothing, SendFlags::NOSIGNAL).is_ok()
}

/// Waits until there is an answer or an end to receive.
fn parked(entry: &Entry, mut socket: Socket, bound: Option<Moment>) -> Result<Socket, NoAnswer> {
    loop {
        let number = socket.as_raw_fd();
        entry.thread.park(Parked {
            frame: entry.frame,
            cancellation: entry.cancellation,
            awaited: Awaited::Answer(socket),
        });
        let waited = sys::wait(number, WaitBy::Poll, entry.mask, bound.map(Moment::left));
        socket = match entry.thread.unpark() {
            Some(Parked { awaited: Awaited::Answer(socket), .. }) => socket,
            _ => return Err(NoAnswer::Refused(SysvError::EIO)), // a forked child
        };
        match waited {
            Waited::Ready => return Ok(socket),
            Waited::TimedOut => return Err(NoAnswer::Late),
            Waited::Interrupted => {}
        }
    }
}

/// The answer, unless the connection ended without one, or speaks another protocol.
fn receive_answer(socket: &Socket) -> Option<(Answer, Option<OwnedFd>)> {
    if !socket.is_ours() {
        return None;
    }
    let mut packet = vec![0; PACKET_BYTES_MAX];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
    let mut into = [IoSliceMut::new(&mut packet)];
    let received = recvmsg(socket.fd(), &mut into, &mut control, flags).ok()?;
    if received.bytes == 0 || received.flags.contains(ReturnFlags::TRUNC) {
        return None;
    }
    let descriptor = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _ => None,
    });
    let answer = decode_packet(&packet[..received.bytes]).ok()?;
    Some((answer, descriptor))
}
