//! A socket of ours among the program's descriptors: at a high number, closed by exec, and never
//! believed to be ours without asking, for programs close all descriptors, or dup2 over them.
#![forbid(unsafe_code)]

use std::os::fd::{AsRawFd, BorrowedFd, IntoRawFd, OwnedFd, RawFd};

use rustix::buffer::spare_capacity;
use rustix::event::epoll;
use rustix::io::{Errno, fcntl_dupfd_cloexec};
use rustix::net::{RecvFlags, SendFlags, recv, send, sockopt};
use rustix::process::{Resource, getrlimit};

use crate::sys;

/// The connection ended, or its descriptor is no longer ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Broken;

/// A connected socket.
#[derive(Debug)]
pub struct Socket {
    number: RawFd,
    /// The kernel's name for this socket, which it gives to no other.
    cookie: u64,
    /// An epoll descriptor on this socket, for waits that SIGCONT must interrupt; made when first
    /// needed.
    epoll: Option<RawFd>,
}

impl Socket {
    /// Takes a socket over at the number it has.
    pub fn adopt(fd: OwnedFd) -> Socket {
        let cookie = sockopt::socket_cookie(&fd).unwrap_or(0);
        Socket { number: fd.into_raw_fd(), cookie, epoll: None }
    }

    /// Takes a socket over and moves it to where programs seldom look.
    pub fn adopt_high(fd: OwnedFd) -> Socket {
        let moved = high_numbers().find_map(|least| fcntl_dupfd_cloexec(&fd, least).ok());
        Socket::adopt(moved.unwrap_or(fd))
    }

    /// A socket known by its number and cookie, as [`Socket::name`] gave them.
    pub fn from_name(number: RawFd, cookie: u64) -> Socket {
        Socket { number, cookie, epoll: None }
    }

    /// Its number and cookie.
    pub fn name(&self) -> (RawFd, u64) {
        (self.number, self.cookie)
    }

    /// Whether the descriptor is still this socket.
    pub fn is_ours(&self) -> bool {
        sockopt::socket_cookie(self.fd()).is_ok_and(|cookie| cookie == self.cookie)
    }

    /// The descriptor, for one system call.
    pub fn fd(&self) -> BorrowedFd<'_> {
        sys::borrow(&self.number)
    }

    /// An epoll descriptor that waits on this socket.
    pub fn epoll(&mut self) -> Result<RawFd, Broken> {
        match self.epoll {
            Some(number) if self.is_waited_by(number) => Ok(number),
            _ => {
                let made = epoll::create(epoll::CreateFlags::CLOEXEC).map_err(|_| Broken)?;
                let made = fcntl_dupfd_cloexec(&made, self.number).unwrap_or(made);
                let (data, flags) = (epoll::EventData::new_u64(0), epoll::EventFlags::IN);
                epoll::add(&made, self.fd(), data, flags).map_err(|_| Broken)?;
                Ok(*self.epoll.insert(made.into_raw_fd()))
            }
        }
    }

    /// Whether that descriptor is an epoll that has this socket: then it is ours.
    fn is_waited_by(&self, number: RawFd) -> bool {
        let (data, flags) = (epoll::EventData::new_u64(0), epoll::EventFlags::IN);
        epoll::modify(sys::borrow(&number), self.fd(), data, flags).is_ok()
    }

    /// Sends all of it, without a signal when the other end is gone.
    pub fn send_all(&self, mut bytes: &[u8]) -> Result<(), Broken> {
        if !self.is_ours() {
            return Err(Broken);
        }
        while !bytes.is_empty() {
            match send(self.fd(), bytes, SendFlags::NOSIGNAL) {
                Ok(sent) => bytes = &bytes[sent..],
                Err(Errno::INTR) => {}
                Err(_) => return Err(Broken),
            }
        }
        Ok(())
    }

    /// Appends what has arrived, if anything.
    pub fn receive(&self, into: &mut Vec<u8>) -> Result<(), Broken> {
        const PIECE: usize = 64 << 10;
        if !self.is_ours() {
            return Err(Broken);
        }
        into.reserve(PIECE);
        match recv(self.fd(), spare_capacity(into), RecvFlags::DONTWAIT) {
            Ok((0, _)) => Err(Broken),
            Ok(_) | Err(Errno::AGAIN | Errno::INTR) => Ok(()),
            Err(_) => Err(Broken),
        }
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        if self.is_ours() {
            if let Some(epoll) = self.epoll.filter(|epoll| self.is_waited_by(*epoll)) {
                sys::close(epoll);
            }
            sys::close(self.number);
        }
    }
}

impl AsRawFd for Socket {
    fn as_raw_fd(&self) -> RawFd {
        self.number
    }
}

/// Where to look for a free number, the best first.
fn high_numbers() -> impl Iterator<Item = RawFd> {
    const LOW: u64 = 64;
    let soft = getrlimit(Resource::Nofile).current.unwrap_or(1024).min(1 << 20);
    [soft * 3 / 4, LOW].into_iter().filter(|&least| least >= LOW).map(|least| least as RawFd)
}
