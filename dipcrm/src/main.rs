//! `dipcrm PORT`: stops the mailbox server of a port and removes what it left. `dipcrm -q ID` and
//! its like: removes queues, sets and segments of the cluster.
//!
//! Here are the command line, what is printed and the exit status; the work is in [`stop`] and
//! [`remove`].
#![forbid(unsafe_code)]

mod remove;
mod stop;

use std::ffi::OsString;
use std::io::Write;
use std::net::IpAddr;
use std::process::ExitCode;

use dipc_server::args::{address, usage};
use dipc_server::failure::Failure;
use dipc_server::sys::Reach;
use dipc_wire::ids::Kind;
use lexopt::Arg;
use remove::{Announce, Removal, Which};

const PAGE: &str = include_str!("../../conf/man/dipcrm.1");

/// What the command line asks for.
#[derive(Debug, PartialEq, Eq)]
enum Request {
    Stop(Target),
    Remove { removals: Vec<Removal>, announce: Announce, socket: Option<OsString> },
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
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(failure) => {
            eprintln!("dipcrm: {failure}");
            ExitCode::FAILURE
        }
    }
}

/// `false`: what was wrong has been said.
fn run() -> Result<bool, Failure> {
    match parse(std::env::args_os().skip(1))? {
        Request::Help => print(&dipc_tools::help::help(PAGE))?,
        Request::Version => print(concat!("dipcrm ", env!("CARGO_PKG_VERSION"), "\n"))?,
        Request::Stop(target) => stop::stop(target)?,
        Request::Remove { removals, announce, socket } => {
            return Ok(remove::remove(socket, &removals, announce));
        }
    }
    Ok(true)
}

fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Request, Failure> {
    let mut parser = lexopt::Parser::from_args(arguments);
    let (mut reach, mut only, mut given) = (Reach::Here, None, None);
    let (mut removals, mut announce, mut socket) = (Vec::new(), Announce::No, None);
    while let Some(argument) = parser.next().map_err(usage)? {
        match argument {
            Arg::Long("help") | Arg::Short('h') => return Ok(Request::Help),
            Arg::Long("version") | Arg::Short('V') => return Ok(Request::Version),
            Arg::Long("shared") => reach = Reach::Shared,
            Arg::Long("bind") => only = Some(address(&parser.value().map_err(usage)?)?),
            Arg::Long("verbose") | Arg::Short('v') => announce = Announce::Each,
            Arg::Long("socket") => socket = Some(parser.value().map_err(usage)?),
            Arg::Value(value) if given.is_none() => given = Some(value),
            argument => match object_option(&argument) {
                Some((kind, read)) => {
                    let value = parser.value().map_err(usage)?;
                    let which = read(&value.to_string_lossy()).map_err(Failure::Usage)?;
                    removals.push(Removal { kind, which });
                }
                None => return Err(usage(argument.unexpected())),
            },
        }
    }
    match given {
        None if removals.is_empty() => Err(Failure::Usage("port: missing; see --help".to_owned())),
        None => Ok(Request::Remove { removals, announce, socket }),
        Some(_) if !removals.is_empty() => {
            let both = "a port and an object do not go together; see --help";
            Err(Failure::Usage(both.to_owned()))
        }
        Some(given) => Ok(Request::Stop(Target { port: port(&given)?, reach, address: only })),
    }
}

/// How the value of an option is read.
type ReadValue = fn(&str) -> Result<Which, String>;

/// The kind that an option of ipcrm(1) is about, and how its value is read.
fn object_option(argument: &Arg<'_>) -> Option<(Kind, ReadValue)> {
    Some(match argument {
        Arg::Short('q') | Arg::Long("queue-id") => (Kind::Queue, Which::id),
        Arg::Short('Q') | Arg::Long("queue-key") => (Kind::Queue, Which::key),
        Arg::Short('s') | Arg::Long("semaphore-id") => (Kind::Set, Which::id),
        Arg::Short('S') | Arg::Long("semaphore-key") => (Kind::Set, Which::key),
        Arg::Short('m') | Arg::Long("shmem-id") => (Kind::Segment, Which::id),
        Arg::Short('M') | Arg::Long("shmem-key") => (Kind::Segment, Which::key),
        _ => return None,
    })
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
    fn objects_by_id_and_key() {
        let removal = |kind, which| Removal { kind, which };
        let key = Which::Key(dipc_wire::ids::Key(40), "0x28".to_owned());
        let removals = vec![removal(Kind::Queue, Which::Id(3)), removal(Kind::Set, key)];
        let expected = Request::Remove { removals, announce: Announce::Each, socket: None };
        assert_eq!(parsed("-q 3 --semaphore-key 0x28 -v"), Ok(expected));
    }

    #[test]
    fn refusals() {
        let rows = [
            ("", "port: missing; see --help"),
            ("0", "port: \"0\" is not between 1 and 65535"),
            ("65536", "port: \"65536\" is not between 1 and 65535"),
            ("7777 1", "unexpected argument \"1\"; see --help"),
            ("-q abc", "failed to parse argument: 'abc'"),
            ("-Q 0", "illegal key (0)"),
            ("-q", "missing argument for option '-q'; see --help"),
            ("7777 -q 3", "a port and an object do not go together; see --help"),
        ];
        for (line, expected) in rows {
            assert_eq!(parsed(line), Err(expected.to_owned()), "{line}");
        }
    }
}
