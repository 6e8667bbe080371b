//! Going to the background when, and only when, the server is ready.
//!
//! ```text
//! parent ──fork──▶ child: session of its own, opens everything
//! parent ◀─ pipe ── "ready", or the one line that says why not
//! ```
//!
//! The parent prints that line and exits with 1; it exits with 0 only for "ready". If the child
//! ends without a word the pipe ends too, so the parent never waits for nobody.
#![forbid(unsafe_code)]

use std::fs::File;
use std::io::{self, Read, Write};

use rustix::stdio::{dup2_stderr, dup2_stdin, dup2_stdout};

use crate::failure::Failure;
use crate::sys::{self, Forked};

const READY: &[u8] = b"ready";
/// A failure is one line; no more than this of it is read.
const REPORT_BYTES_MAX: u64 = 4096;

/// Which process this is after [`split`].
pub enum Side {
    /// The parent, with what it heard.
    Parent(Result<(), Failure>),
    /// The child, with where to tell.
    Child(Report),
}

/// The child's end of the pipe.
pub struct Report(File);

/// Forks. The parent comes back when the child has reported or ended.
pub fn split() -> Result<Side, Failure> {
    let failure = |source: io::Error| Failure::system("going to the background", source);
    let (reader, writer) = io::pipe().map_err(failure)?;
    match sys::fork().map_err(failure)? {
        Forked::Child => {
            drop(reader);
            Ok(Side::Child(Report(File::from(std::os::fd::OwnedFd::from(writer)))))
        }
        Forked::Parent => {
            drop(writer);
            let mut report = Vec::new();
            reader.take(REPORT_BYTES_MAX).read_to_end(&mut report).map_err(failure)?;
            Ok(Side::Parent(match report.as_slice() {
                READY => Ok(()),
                [] => Err(Failure::Told("the server ended before it was ready".to_owned())),
                line => Err(Failure::Told(String::from_utf8_lossy(line).into_owned())),
            }))
        }
    }
}

/// Leaves the terminal, the session and the directory it was started in.
pub fn detach() -> Result<(), Failure> {
    let failure = |source: io::Error| Failure::system("going to the background", source);
    rustix::process::setsid().map_err(|error| failure(error.into()))?;
    std::env::set_current_dir("/").map_err(failure)?;
    let null = File::options().read(true).write(true).open("/dev/null").map_err(failure)?;
    dup2_stdin(&null)
        .and_then(|()| dup2_stdout(&null))
        .and_then(|()| dup2_stderr(&null))
        .map_err(|error| failure(error.into()))
}

impl Report {
    /// Lets the parent exit with 0.
    pub fn ready(mut self) {
        // A parent that was killed meanwhile reads nothing; the server is ready all the same.
        let _ = self.0.write_all(READY);
    }

    /// Lets the parent exit with 1, and say why.
    pub fn failed(mut self, failure: &Failure) {
        let _ = write!(self.0, "{failure}");
    }
}
