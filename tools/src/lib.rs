//! The back door's tools: `dipcs` shows the objects and nodes of a cluster, `dipcctl` shows and
//! changes one dipcd, `dipcrun` starts a program under libdipc; `dipcrm` uses what is here too.
//!
//! They know what dipcd is told (dipc-wire) and nothing of how it works. Every question to it is
//! bounded, so that a node that is down makes nobody wait for more than a second.
#![forbid(unsafe_code)]

pub mod cluster;
pub mod detail;
pub mod dipcd;
pub mod help;
pub mod json;
pub mod listing;
pub mod program;
pub mod report;
pub mod time;

use std::fmt;
use std::io::{self, Write};
use std::process::ExitCode;

/// Prints to standard output; a reader that has gone away is no error of ours.
pub fn print(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        written => written,
    }
}

/// One line on standard error, as every tool here writes it.
pub fn complain(tool: &str, what: &dyn fmt::Display) {
    eprintln!("{tool}: {what}");
}

/// The status of a tool that prints `text`, its help or version.
pub fn printed(tool: &str, text: &str) -> ExitCode {
    match print(text) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(tool, &format_args!("standard output: {error}"));
            ExitCode::FAILURE
        }
    }
}

/// The status of a tool whose command line is wrong, which is said.
pub fn misused(tool: &str, error: &dyn fmt::Display) -> ExitCode {
    complain(tool, &format_args!("{error}; see {tool} --help"));
    ExitCode::FAILURE
}
