//! The road to other nodes: TCP, or datagrams (`-u`). Either gives a connected stream socket, and
//! nobody above asks which.
#![forbid(unsafe_code)]

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::time::Duration;

use dipc_wire::ids::Secret;
use dipc_wire::preamble::Transport;

use crate::config::Config;
use crate::datagrams::{Datagrams, Driver};
use crate::sockets;

/// How this node reaches others.
pub enum Road {
    /// Each link and each wire is a TCP connection.
    Tcp,
    /// Each is a connection over UDP, which dipcd relays.
    Datagrams(Datagrams),
}

impl Road {
    /// Opens it. With datagrams there is a driver, which a thread of its own must run; `secret` is
    /// what the lives of this node's dipcd have in common.
    pub fn open(
        transport: Transport,
        config: &Config,
        secret: &Secret,
    ) -> io::Result<(Road, Option<Driver>)> {
        match transport {
            Transport::Tcp => Ok((Road::Tcp, None)),
            Transport::Udp => {
                let own = config.this_machine;
                let (datagrams, driver) = Datagrams::open(own, &config.liveness, secret)?;
                Ok((Road::Datagrams(datagrams), Some(driver)))
            }
        }
    }

    /// What it is called in a Hello.
    pub fn transport(&self) -> Transport {
        match self {
            Road::Tcp => Transport::Tcp,
            Road::Datagrams(_) => Transport::Udp,
        }
    }

    /// Connects to another node. Errors: those of connect(2); nobody there is
    /// [`io::ErrorKind::ConnectionRefused`] or [`io::ErrorKind::TimedOut`] on either road.
    pub fn dial(&self, config: &Config, to: SocketAddr, wait: Duration) -> io::Result<OwnedFd> {
        match self {
            Road::Tcp => {
                let own = config.this_machine.ip();
                sockets::dial(own, to, &config.liveness, wait).map(OwnedFd::from)
            }
            Road::Datagrams(datagrams) => datagrams.connect(to, wait),
        }
    }

    /// Ends what would otherwise end unsaid with this process.
    pub fn close(&self) {
        match self {
            // The kernel says it for us.
            Road::Tcp => {}
            Road::Datagrams(datagrams) => datagrams.close_all(),
        }
    }
}
