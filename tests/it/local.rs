//! A local program that speaks to dipcd's socket itself, without libdipc: what a test says there
//! packet by packet, true or not.
#![forbid(unsafe_code)]

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;

use dipc_wire::client::{Answer, Call, ClientCall};
use dipc_wire::codec::{decode_packet, encode_packet};
use dipc_wire::limits::PACKET_BYTES_MAX;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType, connect, recv,
    recvmsg, send as send_bytes, sendmsg, socket_with,
};

use crate::node::Node;

/// A connection to a node's socket.
pub fn dial(node: &Node) -> OwnedFd {
    dial_at(&node.socket())
}

/// A connection to that socket.
pub fn dial_at(path: &Path) -> OwnedFd {
    let flags = SocketFlags::CLOEXEC;
    let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None);
    let socket = socket.expect("a descriptor is left");
    let address = SocketAddrUnix::new(path).expect("a short path");
    connect(&socket, &address).expect("dipcd listens");
    socket
}

/// Makes a call, and leaves before it is answered.
pub fn send(node: &Node, call: Call) {
    begin(&dial(node), call);
}

fn begin(socket: &OwnedFd, call: Call) {
    let tid = rustix::thread::gettid().as_raw_nonzero().get().unsigned_abs();
    let packet = encode_packet(&ClientCall { tid, call });
    // dipcd may have closed the connection already, which an answer would show.
    let _ = send_bytes(socket, &packet, SendFlags::NOSIGNAL);
}

/// Makes a call; `None`: it is not answered.
pub fn call(node: &Node, call: Call) -> Option<Answer> {
    let socket = dial(node);
    begin(&socket, call);
    let mut packet = vec![0; PACKET_BYTES_MAX];
    let (length, _) = recv(&socket, &mut packet[..], RecvFlags::empty()).ok()?;
    (length > 0).then(|| decode_packet(&packet[..length]).expect("dipcd speaks our language"))
}

/// Makes a call that a descriptor may come with, and takes the one that may come with the answer.
/// `None`: it is not answered.
pub fn call_with(
    socket: &Path,
    call: Call,
    fd: Option<BorrowedFd<'_>>,
) -> Option<(Answer, Option<OwnedFd>)> {
    let socket = dial_at(socket);
    let tid = rustix::thread::gettid().as_raw_nonzero().get().unsigned_abs();
    let packet = encode_packet(&ClientCall { tid, call });
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fds: Vec<BorrowedFd<'_>> = fd.into_iter().collect();
    if !fds.is_empty() {
        assert!(control.push(SendAncillaryMessage::ScmRights(&fds)), "there is room for one");
    }
    let bytes = [IoSlice::new(&packet)];
    sendmsg(&socket, &bytes, &mut control, SendFlags::NOSIGNAL).ok()?;
    receive(&socket)
}

fn receive(socket: &OwnedFd) -> Option<(Answer, Option<OwnedFd>)> {
    let mut packet = vec![0; PACKET_BYTES_MAX];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut bytes = [IoSliceMut::new(&mut packet)];
    let came = recvmsg(socket, &mut bytes, &mut control, RecvFlags::CMSG_CLOEXEC).ok()?;
    let fds = control.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(fds) => Some(fds),
        _ => None,
    });
    let fd = fds.flatten().next();
    let answer = packet.get(..came.bytes).filter(|packet| !packet.is_empty())?;
    Some((decode_packet(answer).expect("dipcd speaks our language"), fd))
}
