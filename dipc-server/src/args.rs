//! The command line of `dipc`, checked into one structure. Pure: nothing is opened here.
//!
//! A refusal names the argument, what was given and what was expected.
#![forbid(unsafe_code)]

use std::ffi::OsString;
use std::net::{IpAddr, Ipv4Addr};

use lexopt::Arg;

use crate::failure::Failure;
use crate::layout::{Geometry, KBYTES_MAX, MAILBOXES_MAX};
use crate::sys::Reach;

/// What `--help` prints.
pub const HELP: &str = "\
Usage: dipc [OPTIONS] MAILBOXES MAILBOX-KBYTES PORT PACKET-KBYTES
Serve numbered mailboxes in shared memory to socket clients, in the background.

  MAILBOXES        number of mailboxes, 1 to 4096
  MAILBOX-KBYTES   size of a mailbox in kbytes, 1 to 65536
  PORT             TCP port, 1 to 65535
  PACKET-KBYTES    size of a packet in kbytes, 1 to 65536

  --bind ADDRESS   listen on this address (127.0.0.1)
  --foreground     stay in the foreground and say when ready
  --shared         share the mailboxes with servers of the same port on other
                   machines; needs libdipc (see dipcrun)
  --help, --version

`dipcrm PORT` stops it. Clients say `r N`, `w N`, `q`; see dipc(1).
";

/// Where it runs once it is ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ground {
    /// Where it was started.
    Foreground,
    /// In a session of its own.
    Background,
}

/// A server as it was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Setup {
    /// How many mailboxes, how large.
    pub geometry: Geometry,
    /// The TCP port, from which the key is made.
    pub port: u16,
    /// Bytes that are moved at a time, and that a plain write may have.
    pub packet_bytes: usize,
    /// The address to listen on.
    pub bind: IpAddr,
    /// Whether servers on other machines share the mailboxes.
    pub reach: Reach,
    /// Foreground or background.
    pub ground: Ground,
}

/// What the command line asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// A server.
    Serve(Setup),
    /// The help text.
    Help,
    /// The version.
    Version,
}

const NAMES: [&str; 4] =
    ["number of mailboxes", "size of mailbox in kbytes", "port", "size of packet in kbytes"];

/// Parses the arguments behind the program's name.
pub fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Request, Failure> {
    let mut parser = lexopt::Parser::from_args(arguments);
    let mut bind = IpAddr::V4(Ipv4Addr::LOCALHOST);
    let mut reach = Reach::Here;
    let mut ground = Ground::Background;
    let mut numbers = Vec::new();
    while let Some(argument) = parser.next().map_err(usage)? {
        match argument {
            Arg::Long("help") | Arg::Short('h') => return Ok(Request::Help),
            Arg::Long("version") | Arg::Short('V') => return Ok(Request::Version),
            Arg::Long("foreground") => ground = Ground::Foreground,
            Arg::Long("shared") => reach = Reach::Shared,
            Arg::Long("bind") => bind = address(&parser.value().map_err(usage)?)?,
            Arg::Value(value) if numbers.len() < NAMES.len() => {
                numbers.push(value.to_string_lossy().into_owned());
            }
            other => return Err(usage(other.unexpected())),
        }
    }
    let numbers: [String; 4] = numbers.try_into().map_err(|given: Vec<String>| {
        Failure::Usage(format!("{}: missing; see dipc --help", NAMES[given.len()]))
    })?;
    let mailboxes = number(0, &numbers, MAILBOXES_MAX)?;
    let kbytes = number(1, &numbers, KBYTES_MAX)?;
    let port = number(2, &numbers, u16::MAX.into())? as u16;
    let packet_bytes = number(3, &numbers, KBYTES_MAX)? as usize * 1024;
    let geometry = Geometry::new(mailboxes.into(), u64::from(kbytes) * 1024)
        .expect("both numbers are within the bounds that it checks");
    Ok(Request::Serve(Setup { geometry, port, packet_bytes, bind, reach, ground }))
}

fn number(index: usize, numbers: &[String; 4], most: u32) -> Result<u32, Failure> {
    let given = &numbers[index];
    let digits = given.bytes().all(|byte| byte.is_ascii_digit());
    match given.parse() {
        Ok(number) if digits && (1..=most).contains(&number) => Ok(number),
        _ => {
            let name = NAMES[index];
            Err(Failure::Usage(format!("{name}: \"{given}\" is not between 1 and {most}")))
        }
    }
}

/// An address in numbers: names would make the start wait for a name server.
pub fn address(given: &std::ffi::OsStr) -> Result<IpAddr, Failure> {
    let given = given.to_string_lossy();
    given.parse().map_err(|_| Failure::Usage(format!("--bind: \"{given}\" is not an IP address")))
}

/// The failure for what the command line's parser refuses.
pub fn usage(error: lexopt::Error) -> Failure {
    Failure::Usage(format!("{error}; see --help"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Result<Request, String> {
        parse(line.split_whitespace().map(OsString::from)).map_err(|failure| failure.to_string())
    }

    #[test]
    fn the_usual_line() {
        let Ok(Request::Serve(setup)) = parsed("8 64 7777 4") else { panic!("it is well-formed") };
        assert_eq!(setup.geometry, Geometry::new(8, 65_536).unwrap());
        assert_eq!((setup.port, setup.packet_bytes), (7777, 4096));
        assert_eq!(setup.bind, IpAddr::V4(Ipv4Addr::LOCALHOST));
        assert_eq!((setup.reach, setup.ground), (Reach::Here, Ground::Background));
    }

    #[test]
    fn options_stand_anywhere() {
        let line = "--shared 8 64 --bind=::1 7777 4 --foreground";
        let Ok(Request::Serve(setup)) = parsed(line) else { panic!("it is well-formed") };
        assert_eq!(setup.bind, "::1".parse::<IpAddr>().unwrap());
        assert_eq!((setup.reach, setup.ground), (Reach::Shared, Ground::Foreground));
    }

    #[test]
    fn refusals_name_what_and_where() {
        let rows = [
            ("0 64 7777 4", "number of mailboxes: \"0\" is not between 1 and 4096"),
            ("4097 64 7777 4", "number of mailboxes: \"4097\" is not between 1 and 4096"),
            ("8 x 7777 4", "size of mailbox in kbytes: \"x\" is not between 1 and 65536"),
            ("8 64 65536 4", "port: \"65536\" is not between 1 and 65535"),
            ("8 64 7777 +4", "size of packet in kbytes: \"+4\" is not between 1 and 65536"),
            ("8 64 99999999999 4", "port: \"99999999999\" is not between 1 and 65535"),
            ("8 64 7777", "size of packet in kbytes: missing; see dipc --help"),
            ("", "number of mailboxes: missing; see dipc --help"),
            ("8 64 7777 4 5", "unexpected argument \"5\"; see --help"),
            ("--bind here 8 64 7777 4", "--bind: \"here\" is not an IP address"),
            ("--what", "invalid option '--what'; see --help"),
        ];
        for (line, expected) in rows {
            assert_eq!(parsed(line), Err(expected.to_owned()), "{line}");
        }
    }
}
