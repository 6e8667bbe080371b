//! Calls to this node's dipcd: one connection each. A call whose connection ended without an
//! answer - dipcd was restarted - is repeated until its time is up.
#![forbid(unsafe_code)]

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::Duration;

use dipc_wire::client::{Answer, Call, ClientCall};
use dipc_wire::codec::{decode_packet, encode_packet};
use dipc_wire::limits::PACKET_BYTES_MAX;
use dipc_wire::sysv::SysvError;
use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags,
    SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
    connect, recv, recvmsg, sendmsg, socket_with,
};
use rustix::thread::gettid;

use crate::boundary::{Entry, Step, Wait};
use crate::policy;
use crate::socket::Socket;
use crate::sys::{self, Mask, WaitBy, Waited};
use crate::thread::{Awaited, Parked};
use crate::time::Moment;

/// How many restarts of dipcd outlives who makes several calls for one thing, such as shmat.
pub const RESTARTS_MAX: u32 = 5;

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

/// An answer, with the descriptor that came along.
pub type Answered = (Answer, Option<OwnedFd>);

/// A call to dipcd, unanswered yet.
pub struct Question {
    packet: Vec<u8>,
    /// What goes with it.
    descriptor: Option<OwnedFd>,
    bound: Option<Moment>,
    socket: Socket,
}

/// One call and its answer. The program's handlers do not run meanwhile.
pub fn call(call: Call) -> Result<Answered, NoAnswer> {
    call_with(call, None)
}

/// The same with a descriptor to hand over.
pub fn call_with(call: Call, descriptor: Option<OwnedFd>) -> Result<Answered, NoAnswer> {
    let mut question = Question::ask(call, descriptor)?;
    loop {
        let left = question.bound.map(Moment::left);
        let waited = sys::wait(question.socket.as_raw_fd(), WaitBy::Poll, Mask::ALL, left);
        match question.look(waited)? {
            Ok(answered) => return Ok(answered),
            Err(unanswered) => question = unanswered,
        }
    }
}

/// The same for a call that may take long: begins it.
pub fn begin<T>(entry: &Entry, call: Call) -> Result<Step<T>, NoAnswer> {
    Ok(Question::ask(call, None)?.park(entry))
}

/// Goes on with it after a wait.
pub fn resume(entry: &Entry, waited: Waited) -> Result<Step<Answered>, NoAnswer> {
    let Some(Parked { awaited: Awaited::Answer(question), .. }) = entry.thread.unpark() else {
        return Err(NoAnswer::Refused(SysvError::EIO)); // a child, forked by a handler
    };
    Ok(match question.look(waited)? {
        Ok(answered) => Step::Done(answered),
        Err(unanswered) => unanswered.park(entry),
    })
}

impl Question {
    fn ask(call: Call, descriptor: Option<OwnedFd>) -> Result<Question, NoAnswer> {
        let bound = policy::get().patience_nanos.map(Moment::after);
        let packet = encode_packet(&ClientCall { tid: tid(), call });
        let socket = sent(&packet, descriptor.as_ref(), bound)?;
        Ok(Question { packet, descriptor, bound, socket })
    }

    fn park<T>(self, entry: &Entry) -> Step<T> {
        let wait = Wait { fd: self.socket.as_raw_fd(), by: WaitBy::Poll, until: self.bound };
        let (frame, cancellation) = (entry.frame, entry.cancellation);
        entry.thread.park(Parked { frame, cancellation, awaited: Awaited::Answer(self) });
        Step::Wait(wait)
    }

    /// After a wait: the answer, or the question again.
    fn look(mut self, waited: Waited) -> Result<Result<Answered, Question>, NoAnswer> {
        match waited {
            Waited::Interrupted => return Ok(Err(self)), // these calls know no EINTR
            Waited::TimedOut => return Err(NoAnswer::Late),
            Waited::Ready => {}
        }
        match receive_answer(&self.socket) {
            // It is being stopped, or knows no such call.
            Some((Answer::Refused(SysvError::ENOSYS), _)) => Err(NoAnswer::Absent),
            Some((Answer::Refused(error), _)) => Err(NoAnswer::Refused(error)),
            Some(answered) => Ok(Ok(answered)),
            None => {
                pause();
                self.socket = sent(&self.packet, self.descriptor.as_ref(), self.bound)?;
                Ok(Err(self))
            }
        }
    }
}

/// A connection over which the packet has gone.
fn sent(
    packet: &[u8],
    descriptor: Option<&OwnedFd>,
    bound: Option<Moment>,
) -> Result<Socket, NoAnswer> {
    loop {
        let socket = Socket::adopt(connected(bound)?);
        if send_packet(&socket, packet, descriptor) {
            return Ok(socket);
        }
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
        let packet = encode_packet(&ClientCall { tid: tid(), call });
        send_packet(&Socket::adopt(socket), &packet, None);
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

fn send_packet(socket: &Socket, packet: &[u8], descriptor: Option<&OwnedFd>) -> bool {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let descriptors = descriptor.map(AsFd::as_fd);
    if !control.push(SendAncillaryMessage::ScmRights(descriptors.as_slice())) {
        return false;
    }
    let packet = [IoSlice::new(packet)];
    sendmsg(socket.fd(), &packet, &mut control, SendFlags::NOSIGNAL).is_ok()
}

/// The answer, unless the connection ended without one, or speaks another protocol.
fn receive_answer(socket: &Socket) -> Option<Answered> {
    if !socket.is_ours() {
        return None;
    }
    // No more is written than came: each page that was written once is copied by every fork.
    let look = RecvFlags::PEEK | RecvFlags::TRUNC | RecvFlags::DONTWAIT;
    let (_, length) = recv(socket.fd(), &mut [0u8; 0], look).ok()?;
    if length > PACKET_BYTES_MAX {
        return None;
    }
    let mut packet = vec![0; length];
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
