//! Why the server cannot start or its remover cannot remove. Each is one line that names what and
//! where; the program's name is put before it by `main`.
//!
//! What a client does wrong is not here: see [`crate::protocol::Problem`].
#![forbid(unsafe_code)]

use std::fmt;
use std::io;

/// One reason to give up. Its text is the whole message.
#[derive(Debug)]
pub enum Failure {
    /// The command line: what was given, and what was expected.
    Usage(String),
    /// The server ended before it was ready, and this is what it said.
    Told(String),
    /// The system refused something.
    System {
        /// What was tried, and where.
        what: String,
        /// The system's answer.
        source: io::Error,
    },
    /// A server has this port's mailboxes already.
    Served {
        /// The port.
        port: u16,
        /// Its process, if it is one of this machine.
        pid: Option<u32>,
    },
    /// The objects under this port's key were made by something else.
    Foreign {
        /// The port.
        port: u16,
    },
    /// The objects, or the server, belong to another user.
    OtherUser {
        /// The port.
        port: u16,
    },
    /// Shared mailboxes exist, but not as many or not as large as asked for.
    Differs {
        /// The port.
        port: u16,
        /// What is there, in words.
        there: String,
    },
    /// As many servers as the header has places for share the mailboxes already.
    Crowded {
        /// The port.
        port: u16,
    },
    /// Other servers share the set, but their segment does not reach this machine.
    NoSegment {
        /// The port.
        port: u16,
    },
    /// Others kept making and removing the same objects for as long as was waited.
    Unsettled {
        /// The port.
        port: u16,
    },
    /// Nothing to remove.
    Nothing {
        /// The port.
        port: u16,
    },
    /// The server runs on another machine, which alone can stop it.
    Elsewhere {
        /// The port.
        port: u16,
    },
    /// The server did not end, though it was killed.
    Unending {
        /// The port.
        port: u16,
        /// Its process.
        pid: u32,
    },
}

impl Failure {
    /// A refusal of the system, with what was tried.
    pub fn system(what: impl Into<String>, source: io::Error) -> Self {
        Self::System { what: what.into(), source }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Usage(text) | Self::Told(text) => f.write_str(text),
            Self::System { what, source } => write!(f, "{what}: {source}"),
            Self::Served { port, pid: Some(pid) } => {
                write!(f, "port {port}: a mailbox server has it already (pid {pid})")
            }
            Self::Served { port, pid: None } => {
                write!(f, "port {port}: a mailbox server has it already")
            }
            Self::Foreign { port } => write!(
                f,
                "port {port}: key {:#010x} is used by something else; left alone",
                crate::layout::key(*port)
            ),
            Self::OtherUser { port } => write!(f, "port {port}: belongs to another user; refused"),
            Self::Differs { port, there } => write!(f, "port {port}: is shared as {there}"),
            Self::Crowded { port } => write!(
                f,
                "port {port}: {} servers share it, and there are no more places",
                crate::layout::SERVERS_MAX
            ),
            Self::NoSegment { port } => {
                write!(f, "port {port}: its semaphores are shared, but no segment comes with them")
            }
            Self::Unsettled { port } => {
                write!(f, "port {port}: others keep making and removing its mailboxes")
            }
            Self::Nothing { port } => {
                write!(f, "port {port}: no mailbox server, and nothing left of one")
            }
            Self::Unending { port, pid } => write!(f, "port {port}: pid {pid} does not end"),
            Self::Elsewhere { port } => write!(
                f,
                "port {port}: its server runs on another machine, and is stopped only there"
            ),
        }
    }
}

impl std::error::Error for Failure {}
