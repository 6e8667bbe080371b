//! A local program that speaks to dipcd's socket itself, without libdipc: what a test says there
//! packet by packet, true or not.
#![forbid(unsafe_code)]

use std::os::fd::OwnedFd;

use dipc_wire::client::{Answer, Call, ClientCall};
use dipc_wire::codec::{decode_packet, encode_packet};
use dipc_wire::limits::PACKET_BYTES_MAX;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketAddrUnix, SocketFlags, SocketType, connect, recv,
    send as send_bytes, socket_with,
};

use crate::node::Node;

/// A connection to a node's socket.
pub fn dial(node: &Node) -> OwnedFd {
    let flags = SocketFlags::CLOEXEC;
    let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None);
    let socket = socket.expect("a descriptor is left");
    let address = SocketAddrUnix::new(node.socket()).expect("a short path");
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
