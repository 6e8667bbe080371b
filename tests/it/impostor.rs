//! A socket like dipcd's at which a test answers the calls of a program, a connection each: for
//! what a dipcd says only when it is killed in the middle of something.
#![forbid(unsafe_code)]

use std::os::fd::OwnedFd;
use std::path::Path;

use dipc_wire::client::{Answer, Call, ClientCall};
use dipc_wire::codec::{decode_packet, encode_packet};
use dipc_wire::limits::PACKET_BYTES_MAX;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketAddrUnix, SocketFlags, SocketType, accept, bind,
    listen, recv, send, socket_with,
};

use crate::process::PATIENCE;

/// The socket.
pub struct Impostor(OwnedFd);

/// A call that is not answered yet; dropped, it never is.
pub struct Asked {
    /// What the program wants.
    pub call: Call,
    connection: OwnedFd,
}

impl Impostor {
    /// One that programs find at `path`.
    pub fn at(path: &Path) -> Impostor {
        let (family, kind) = (AddressFamily::UNIX, SocketType::SEQPACKET);
        let socket = socket_with(family, kind, SocketFlags::CLOEXEC, None);
        let socket = socket.expect("a descriptor is left");
        let address = SocketAddrUnix::new(path).expect("a short path");
        bind(&socket, &address).expect("the directory is ours");
        listen(&socket, 16).expect("it is bound");
        Impostor(socket)
    }

    /// Waits for the next call. A descriptor that comes along is closed.
    #[track_caller]
    pub fn next(&self) -> Asked {
        let patience = Timespec::try_from(PATIENCE).expect("a few minutes fit");
        let mut watched = [PollFd::new(&self.0, PollFlags::IN)];
        let called = poll(&mut watched, Some(&patience)).expect("a descriptor");
        assert_eq!(called, 1, "no program calls");
        let connection = accept(&self.0).expect("somebody is there");
        let mut packet = vec![0; PACKET_BYTES_MAX];
        let came = recv(&connection, &mut packet[..], RecvFlags::empty());
        let (length, _) = came.expect("a program says what it wants");
        let said = decode_packet::<ClientCall>(&packet[..length]);
        Asked { call: said.expect("libdipc speaks our language").call, connection }
    }
}

impl Asked {
    /// Answers.
    pub fn answer(self, answer: &Answer) {
        // The program may have ended, as its test will see.
        let _ = send(&self.connection, &encode_packet(answer), SendFlags::NOSIGNAL);
    }
}
