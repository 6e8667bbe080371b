//! `dipcrm PORT`: stops the mailbox server of a port and removes what it left.
//!
//! Here are the command line, what is printed and the exit status; the work is in [`stop`].
//! Removing queues, sets and segments of the cluster (`-q`, `-s`, `-m`, by key `-Q`, `-S`, `-M`)
//! has its place in [`Request`].
#![forbid(unsafe_code)]

mod stop;

use std::ffi::OsString;
use std::io::Write;
use std::net::IpAddr;
use std::process::ExitCode;

use dipc_server::args::{address, usage};
use dipc_server::failure::Failure;
use dipc_server::sys::Reach;
use lexopt::Arg;

const HELP: &str = "\
Usage: dipcrm [OPTIONS] PORT
Stop the mailbox server of PORT on this machine and remove its mailboxes.

  --shared         the mailboxes are shared with other machines (dipc --shared):
                   the last server removes them
  --bind ADDRESS   only the server that listens on this address
  --help, --version
";

/// What the command line asks for.
#[derive(Debug, PartialEq, Eq)]
enum Request {
    Stop(Target),
    Help,
    Version,
}

/// Which server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Target {
    port: u16,
    reach: Reach,
    /// Nothing: whatever address it listens on.
    address: Option<IpAddr>,
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("dipcrm: {failure}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), Failure> {
    match parse(std::env::args_os().skip(1))? {
        Request::Help => print(HELP),
        Request::Version => print(concat!("dipcrm ", env!("CARGO_PKG_VERSION"), "\n")),
        Request::Stop(target) => stop::stop(target),
    }
}

fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Request, Failure> {
    let mut parser = lexopt::Parser::from_args(arguments);
    let mut reach = Reach::Here;
    let mut only = None;
    let mut given = None;
    while let Some(argument) = parser.next().map_err(usage)? {
        match argument {
            Arg::Long("help") | Arg::Short('h') => return Ok(Request::Help),
            Arg::Long("version") | Arg::Short('V') => return Ok(Request::Version),
            Arg::Long("shared") => reach = Reach::Shared,
            Arg::Long("bind") => only = Some(address(&parser.value().map_err(usage)?)?),
            Arg::Short(kind @ ('q' | 's' | 'm' | 'Q' | 'S' | 'M')) => {
                return Err(Failure::Usage(format!(
                    "-{kind}: this dipcrm removes mailbox servers only; use ipcrm under libdipc"
                )));
            }
            Arg::Value(value) if given.is_none() => given = Some(value),
            other => return Err(usage(other.unexpected())),
        }
    }
    let given = given.ok_or_else(|| Failure::Usage("port: missing; see --help".to_owned()))?;
    Ok(Request::Stop(Target { port: port(&given)?, reach, address: only }))
}

fn port(given: &std::ffi::OsStr) -> Result<u16, Failure> {
    let given = given.to_string_lossy();
    let digits = given.bytes().all(|byte| byte.is_ascii_digit());
    match given.parse() {
        Ok(port) if digits && port != 0 => Ok(port),
        _ => Err(Failure::Usage(format!("port: \"{given}\" is not between 1 and 65535"))),
    }
}

fn print(text: &str) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes())
        .and_then(|()| out.flush())
        .map_err(|error| Failure::system("standard output", error))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Result<Request, String> {
        parse(line.split_whitespace().map(OsString::from)).map_err(|failure| failure.to_string())
    }

    #[test]
    fn a_port() {
        let target = Target { port: 7777, reach: Reach::Here, address: None };
        assert_eq!(parsed("7777"), Ok(Request::Stop(target)));
        let address = "127.0.0.2".parse().ok();
        let target = Target { port: 7777, reach: Reach::Shared, address };
        assert_eq!(parsed("--shared 7777 --bind 127.0.0.2"), Ok(Request::Stop(target)));
    }

    #[test]
    fn refusals() {
        let rows = [
            ("", "port: missing; see --help"),
            ("0", "port: \"0\" is not between 1 and 65535"),
            ("65536", "port: \"65536\" is not between 1 and 65535"),
            ("7777 1", "unexpected argument \"1\"; see --help"),
            ("-q 3", "-q: this dipcrm removes mailbox servers only; use ipcrm under libdipc"),
        ];
        for (line, expected) in rows {
            assert_eq!(parsed(line), Err(expected.to_owned()), "{line}");
        }
    }
}
