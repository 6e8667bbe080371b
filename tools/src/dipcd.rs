//! Calls to a dipcd: one connection, one question, one answer, as programs do it, but with a bound
//! of our own and with words for a person when there is no answer.
#![forbid(unsafe_code)]

use std::ffi::OsString;
use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::Duration;

use dipc_wire::client::{Answer, Call, ClientCall};
use dipc_wire::codec::{decode_packet, encode_packet};
use dipc_wire::limits::PACKET_BYTES_MAX;
use dipc_wire::survey::Order;
use dipc_wire::sysv::SysvError;
use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketAddrUnix, SocketFlags, SocketType, connect, recv,
    send, socket_with,
};

/// Where dipcd listens, if nobody says otherwise.
pub const SOCKET: &str = "/run/dipc/dipcd.sock";
/// The environment variable that says otherwise.
pub const SOCKET_VARIABLE: &str = "DIPC_SOCKET";

/// How long a question may take: dipcd gives other nodes less than that.
pub const QUESTION_WAIT: Duration = Duration::from_millis(900);
/// How long an order may take: files may name machines, and nodes may have to agree.
const ORDER_WAIT: Duration = Duration::from_secs(30);

/// Where a dipcd listens.
#[derive(Clone, Debug)]
pub struct Dipcd {
    socket: PathBuf,
}

/// Why there is no answer that says what was asked.
#[derive(Debug)]
pub enum Trouble {
    /// Nobody listens, or we may not connect.
    NoDipcd {
        /// Where.
        socket: PathBuf,
        /// What the system says.
        error: io::Error,
    },
    /// Somebody listens and says nothing.
    Silent {
        /// Where.
        socket: PathBuf,
    },
    /// The answer is no.
    Refused(SysvError),
    /// The answer is none to this question: another version listens.
    NotUnderstood {
        /// Where.
        socket: PathBuf,
    },
    /// An order was not carried out, for this reason.
    Told(String),
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Trouble::NoDipcd { socket, error } => {
                write!(f, "{}: no dipcd can be reached: {error}", socket.display())
            }
            Trouble::Silent { socket } => write!(f, "{}: dipcd does not answer", socket.display()),
            Trouble::Refused(SysvError::EPERM | SysvError::EACCES) => {
                f.write_str("permission denied")
            }
            Trouble::Refused(SysvError::ENOSPC) => {
                f.write_str("user_clients_max of this dipcd is reached")
            }
            Trouble::Refused(SysvError::ENOSYS) => f.write_str("dipcd is being stopped"),
            Trouble::Refused(SysvError::ETIMEDOUT) => f.write_str("no answer in time"),
            Trouble::Refused(refusal) => {
                write!(f, "{}", io::Error::from_raw_os_error(refusal.errno()))
            }
            Trouble::NotUnderstood { socket } => {
                write!(f, "{}: another version of dipcd listens there", socket.display())
            }
            Trouble::Told(why) => f.write_str(why),
        }
    }
}

impl std::error::Error for Trouble {}

impl Dipcd {
    /// At `given` (`--socket`), or where the environment says, or where it always is.
    pub fn at(given: Option<OsString>) -> Dipcd {
        let said = || std::env::var_os(SOCKET_VARIABLE).filter(|path| !path.is_empty());
        Dipcd { socket: given.or_else(said).unwrap_or_else(|| SOCKET.into()).into() }
    }

    /// Asks; `Refused` is trouble.
    pub fn ask(&self, call: Call) -> Result<Answer, Trouble> {
        self.call(call, QUESTION_WAIT)
    }

    /// Gives an order: what dipcd says when it has carried it out.
    pub fn order(&self, order: Order) -> Result<String, Trouble> {
        match self.call(Call::Order(order), ORDER_WAIT)? {
            Answer::Told(Ok(done)) => Ok(done),
            Answer::Told(Err(why)) => Err(Trouble::Told(why)),
            _ => Err(self.not_understood()),
        }
    }

    /// The trouble with an answer that is none.
    pub fn not_understood(&self) -> Trouble {
        Trouble::NotUnderstood { socket: self.socket.clone() }
    }

    fn silent(&self) -> Trouble {
        Trouble::Silent { socket: self.socket.clone() }
    }

    /// One call, bounded.
    pub fn call(&self, call: Call, wait: Duration) -> Result<Answer, Trouble> {
        let connection = self.connected(wait).map_err(|error| match error {
            Errno::AGAIN => self.silent(),
            error => Trouble::NoDipcd { socket: self.socket.clone(), error: error.into() },
        })?;
        let tid = rustix::thread::gettid().as_raw_nonzero().get().unsigned_abs();
        let packet = encode_packet(&ClientCall { tid, call });
        if send(&connection, &packet, SendFlags::NOSIGNAL).is_err() {
            return Err(self.silent());
        }
        let mut packet = vec![0; PACKET_BYTES_MAX];
        let length = loop {
            match recv(&connection, &mut packet[..], RecvFlags::empty()) {
                Err(Errno::INTR) => {}
                Err(_) | Ok((0, _)) => return Err(self.silent()),
                Ok((length, _)) => break length,
            }
        };
        match decode_packet(&packet[..length]) {
            Ok(Answer::Refused(refusal)) => Err(Trouble::Refused(refusal)),
            Ok(answer) => Ok(answer),
            Err(_) => Err(self.not_understood()),
        }
    }

    fn connected(&self, wait: Duration) -> Result<OwnedFd, Errno> {
        let kind = SocketType::SEQPACKET;
        let socket = socket_with(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None)?;
        for end in [Timeout::Send, Timeout::Recv] {
            set_socket_timeout(&socket, end, Some(wait))?;
        }
        let address = SocketAddrUnix::new(self.socket.as_path())?;
        while let Err(error) = connect(&socket, &address) {
            if error != Errno::INTR {
                return Err(error);
            }
        }
        Ok(socket)
    }
}
