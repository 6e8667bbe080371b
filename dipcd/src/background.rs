//! Readiness, said to whoever waits for it: the service manager (sd_notify), and the process that
//! was started with `--background` and returns only then.
//!
//! The parent starts the same program again with one end of a socket pair as standard input; the
//! child says one byte on it when it serves, or closes it by ending.
#![forbid(unsafe_code)]

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

/// Set for the child that goes to the background.
const CHILD: &str = "DIPCD_BACKGROUND";

/// Whether this process is to serve in the background.
pub fn is_child() -> bool {
    std::env::var_os(CHILD).is_some()
}

/// Starts the child and waits until it serves.
pub fn start_child() -> io::Result<()> {
    let (mut ours, theirs) = UnixStream::pair()?;
    let mut child = Command::new("/proc/self/exe")
        .arg0("dipcd")
        .args(std::env::args_os().skip(1))
        .env(CHILD, "1")
        .stdin(Stdio::from(OwnedFd::from(theirs)))
        .spawn()?;
    let mut byte = [0];
    if ours.read(&mut byte)? == 1 {
        return Ok(());
    }
    let status = child.wait()?;
    Err(io::Error::other(format!("it did not start ({status}); what was wrong stands above")))
}

/// dipcd serves.
pub fn ready() {
    if let Err(error) = sd_notify::notify(true, &[sd_notify::NotifyState::Ready]) {
        tracing::warn!(op = "ready", %error, "the service manager could not be told");
    }
    if is_child() {
        // A session of its own: the terminal it was started from may close.
        let _ = rustix::process::setsid();
        if let Ok(mut waiting) = std::io::stdin().as_fd().try_clone_to_owned().map(UnixStream::from)
        {
            // Nobody waits any more if this fails.
            let _ = waiting.write_all(b"r");
        }
    }
}
