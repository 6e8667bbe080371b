//! Packets with descriptors between processes of one machine: UNIX sockets of type SOCK_SEQPACKET,
//! one value a packet, at most [`FDS_MAX`] descriptors with it.
//!
//! A packet is never longer than [`PACKET_BYTES_MAX`], and memory is taken only for what came.
#![forbid(unsafe_code)]

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags,
    SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
};
use serde::{Serialize, de::DeserializeOwned};
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use dipc_wire::codec::{decode_packet, encode_packet};
use dipc_wire::limits::PACKET_BYTES_MAX;

/// Descriptors that may come with one packet.
pub const FDS_MAX: usize = 2;

/// Listens at `path`, where nothing may be yet; `mode` says who may connect.
pub fn listen(path: &Path, mode: u32, backlog: i32) -> io::Result<OwnedFd> {
    let socket = new_socket()?;
    rustix::net::bind(&socket, &SocketAddrUnix::new(path)?)?;
    rustix::fs::chmod(path, rustix::fs::Mode::from_raw_mode(mode))?;
    rustix::net::listen(&socket, backlog)?;
    Ok(socket)
}

/// Connects to who listens at `path`.
pub fn connect(path: &Path) -> io::Result<OwnedFd> {
    let socket = new_socket()?;
    rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(socket)
}

/// The next connection.
pub fn accept(listener: impl AsFd) -> io::Result<OwnedFd> {
    loop {
        match rustix::net::accept_with(&listener, SocketFlags::CLOEXEC) {
            Err(Errno::INTR | Errno::CONNABORTED) => {}
            accepted => return Ok(accepted?),
        }
    }
}

/// Two connected ends.
pub fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let kind = SocketType::SEQPACKET;
    Ok(rustix::net::socketpair(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None)?)
}

fn new_socket() -> io::Result<OwnedFd> {
    let kind = SocketType::SEQPACKET;
    Ok(rustix::net::socket_with(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None)?)
}

/// Sends one value and copies of descriptors. A reader that is gone is an error, never a signal.
pub fn send(socket: impl AsFd, value: &impl Serialize, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    assert!(fds.len() <= FDS_MAX, "no packet has that many descriptors");
    let packet = encode_packet(value);
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() {
        let pushed = control.push(SendAncillaryMessage::ScmRights(fds));
        assert!(pushed, "the space was made for them");
    }
    let parts = [IoSlice::new(&packet)];
    loop {
        match rustix::net::sendmsg(&socket, &parts, &mut control, SendFlags::NOSIGNAL) {
            Err(Errno::INTR) => {}
            Ok(_) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    }
}

/// Receives one value and the descriptors that came with it; `None` when the other end is closed.
pub fn receive<T: DeserializeOwned>(socket: impl AsFd) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
    let length = next_length(socket.as_fd())?;
    if length > PACKET_BYTES_MAX {
        let why = format!("a packet of {length} bytes, at most {PACKET_BYTES_MAX} are allowed");
        return Err(io::Error::new(io::ErrorKind::InvalidData, why));
    }
    let mut packet = vec![0; length];
    let (length, fds) = receive_bytes(socket.as_fd(), &mut packet)?;
    if length == 0 {
        return Ok(None);
    }
    let value = decode_packet(&packet[..length]);
    let value = value.map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
    Ok(Some((value, fds)))
}

/// How long the next packet is, which stays where it is; 0 at the end.
fn next_length(socket: BorrowedFd<'_>) -> io::Result<usize> {
    let flags = RecvFlags::PEEK | RecvFlags::TRUNC;
    loop {
        let mut nothing = [0u8; 0];
        match rustix::net::recv(socket, &mut nothing, flags) {
            Err(Errno::INTR) => {}
            Err(Errno::CONNRESET) => return Ok(0),
            Ok((_, length)) => return Ok(length),
            Err(error) => return Err(error.into()),
        }
    }
}

fn receive_bytes(socket: BorrowedFd<'_>, packet: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut parts = [IoSliceMut::new(packet)];
    let received = loop {
        let flags = RecvFlags::CMSG_CLOEXEC;
        match rustix::net::recvmsg(socket, &mut parts, &mut control, flags) {
            Err(Errno::INTR) => {}
            Err(Errno::CONNRESET) => return Ok((0, Vec::new())),
            received => break received?,
        }
    };
    let mut fds = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(came) = message {
            fds.extend(came);
        }
    }
    if received.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC) {
        let why = "a packet or its descriptors were cut";
        return Err(io::Error::new(io::ErrorKind::InvalidData, why));
    }
    Ok((received.bytes, fds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_and_its_descriptors_arrive_and_the_end_is_seen() {
        let (near, far) = pair().unwrap();
        let (given, other) = pair().unwrap();
        send(&near, &(7u32, "text".to_owned()), &[given.as_fd()]).unwrap();
        let (value, mut fds) = receive::<(u32, String)>(&far).unwrap().unwrap();
        assert_eq!((value.0, value.1.as_str(), fds.len()), (7, "text", 1));
        send(fds.pop().unwrap(), &1u8, &[]).unwrap();
        assert_eq!(receive::<u8>(&other).unwrap().unwrap().0, 1);
        drop(near);
        assert!(receive::<u8>(&far).unwrap().is_none());
    }

    #[test]
    fn bytes_that_are_no_packet_are_refused() {
        let (near, far) = pair().unwrap();
        rustix::net::send(&near, &[1, 0, 9, 9], SendFlags::NOSIGNAL).unwrap();
        assert!(receive::<u8>(&far).is_err());
        rustix::net::send(&near, &vec![0; PACKET_BYTES_MAX + 1], SendFlags::NOSIGNAL).unwrap();
        assert!(receive::<u8>(&far).is_err());
    }
}
