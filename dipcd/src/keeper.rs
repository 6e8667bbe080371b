//! The keeper.
#![forbid(unsafe_code)]

use std::io;
use std::path::Path;

/// Where it listens, in `state_dir`.
pub const SOCKET_NAME: &str = "keeper.sock";

/// Runs the keeper of `state_dir`.
pub fn run(state_dir: &Path) -> io::Result<()> {
    let _ = state_dir;
    Ok(())
}
