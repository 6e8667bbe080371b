//! `dipcctl`: shows and changes a running dipcd. Looking is for everybody who may call it; what
//! changes it is for root and the members of `socket_group`, as dipcd itself sees to.
#![forbid(unsafe_code)]

use std::ffi::OsString;
use std::fmt::Write;
use std::process::ExitCode;

use dipc_tools::cluster::{self};
use dipc_tools::dipcd::{Dipcd, Trouble};
use dipc_tools::listing::{contact, heard, number, role};
use dipc_tools::time::length;
use dipc_tools::{complain, misused, print, printed, report};
use dipc_wire::client::{Answer, Call};
use dipc_wire::ids::NodeId;
use dipc_wire::survey::{NodeStatus, Order, Tracing};
use dipc_wire::sysv::SysvError;
use lexopt::Arg::{Long, Short, Value};

const TOOL: &str = "dipcctl";
const PAGE: &str = include_str!("../../../conf/man/dipcctl.8");
const VERSION: &str = concat!("dipcctl ", env!("CARGO_PKG_VERSION"), "\n");
/// More entries than any dipcd has.
const ENTRIES_MAX: u32 = 1000;

/// What the command line asks for.
enum Request {
    Do(Command, Option<OsString>),
    Help,
    Version,
}

/// What is to be done.
#[derive(Debug, PartialEq, Eq)]
enum Command {
    Status { node: NodeId, form: Form },
    Peers,
    Get { entry: Option<String> },
    Give(Order),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    Lines,
    Json,
}

fn main() -> ExitCode {
    let request = match parse(std::env::args_os().skip(1)) {
        Ok(request) => request,
        Err(error) => return misused(TOOL, &error),
    };
    let (command, socket) = match request {
        Request::Do(command, socket) => (command, socket),
        Request::Help => return printed(TOOL, &dipc_tools::help::help(PAGE)),
        Request::Version => return printed(TOOL, VERSION),
    };
    match run(&Dipcd::at(socket), command) {
        Ok(text) => match print(&text) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => failed(&format_args!("standard output: {error}")),
        },
        Err(trouble) => failed(&trouble),
    }
}

fn failed(why: &dyn std::fmt::Display) -> ExitCode {
    complain(TOOL, why);
    ExitCode::FAILURE
}

fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Request, lexopt::Error> {
    let mut parser = lexopt::Parser::from_args(arguments);
    let (mut words, mut form, mut socket) = (Vec::new(), Form::Lines, None);
    while let Some(argument) = parser.next()? {
        match argument {
            Short('h') | Long("help") => return Ok(Request::Help),
            Short('V') | Long("version") => return Ok(Request::Version),
            Long("json") => form = Form::Json,
            Long("socket") => socket = Some(parser.value()?),
            Value(word) => words.push(word.to_string_lossy().into_owned()),
            Short(_) | Long(_) => return Err(argument.unexpected()),
        }
    }
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let command = command(&words, form)?;
    if form == Form::Json && !matches!(command, Command::Status { .. }) {
        return Err("--json goes with status alone".into());
    }
    Ok(Request::Do(command, socket))
}

fn command(words: &[&str], form: Form) -> Result<Command, lexopt::Error> {
    Ok(match *words {
        ["status"] => Command::Status { node: NodeId::NONE, form },
        ["status", text] => Command::Status { node: node(text)?, form },
        ["peers"] => Command::Peers,
        ["get"] => Command::Get { entry: None },
        ["get", entry] => Command::Get { entry: Some(entry.to_owned()) },
        ["set", entry, value] => {
            Command::Give(Order::Set { entry: entry.to_owned(), value: value.to_owned() })
        }
        ["reload"] => Command::Give(Order::Reload),
        ["trace", "on"] => Command::Give(Order::Trace(Tracing::On)),
        ["trace", "off"] => Command::Give(Order::Trace(Tracing::Off)),
        ["forget", text] => Command::Give(Order::Forget { node: node(text)? }),
        ["become-referee"] => Command::Give(Order::BecomeReferee),
        [] => return Err("a command is missing".into()),
        [first, ..] => {
            const COMMANDS: [&str; 8] =
                ["status", "peers", "get", "set", "reload", "trace", "forget", "become-referee"];
            let known = COMMANDS.contains(&first);
            let what = if known { "wrong arguments for" } else { "no command is called" };
            return Err(format!("{what} {first}").into());
        }
    })
}

fn node(text: &str) -> Result<NodeId, lexopt::Error> {
    let node = text.parse().ok().and_then(NodeId::new).filter(|node| node.is_admitted());
    node.ok_or_else(|| format!("{text:?} is not the number of a node").into())
}

fn run(dipcd: &Dipcd, command: Command) -> Result<String, Trouble> {
    match command {
        Command::Status { node, form } => {
            let status = cluster::status(dipcd, node)?;
            Ok(match form {
                Form::Lines => lines(&status),
                Form::Json => format!("{}\n", report::status(&status)),
            })
        }
        Command::Peers => peers(dipcd),
        Command::Get { entry } => get(dipcd, entry.as_deref()),
        Command::Give(order) => {
            let done = dipcd.order(order)?;
            Ok(if done.is_empty() { done } else { done + "\n" })
        }
    }
}

fn lines(status: &NodeStatus) -> String {
    let tracing = match status.tracing {
        Tracing::On => "on",
        Tracing::Off => "off",
    };
    let mut text = format!(
        "node {}\naddress {}\nreferee {}\nreferee_address {}\nepoch {}\nincarnation {}\n\
         version {}\nup {}\ntrace {tracing}\n",
        number(status.node),
        status.address,
        number(status.referee),
        status.referee_address,
        status.epoch.0,
        status.incarnation.0,
        status.version,
        length(status.up_ms),
    );
    for count in &status.counts {
        let _ = writeln!(text, "{} {}", count.name, count.value);
    }
    text
}

fn peers(dipcd: &Dipcd) -> Result<String, Trouble> {
    let mut nodes = cluster::nodes(dipcd)?;
    nodes.sort_by_key(|row| row.node);
    let mut text = format!("{:5} {:22} {:8} {:8} heard\n", "node", "address", "contact", "role");
    for row in nodes {
        let (node, address) = (number(row.node), row.address.to_string());
        let (contact, role, heard) = (contact(row.contact), role(row.role), heard(&row));
        let _ = writeln!(text, "{node:5} {address:22} {contact:8} {role:8} {heard}");
    }
    Ok(text)
}

/// All entries as dipc.conf has them, or the value of one.
fn get(dipcd: &Dipcd, wanted: Option<&str>) -> Result<String, Trouble> {
    let mut text = String::new();
    for index in 0..ENTRIES_MAX {
        match dipcd.ask(Call::Entry { index }) {
            Ok(Answer::Entry { name, value }) => match wanted {
                None => {
                    let _ = writeln!(text, "{name} = {value}");
                }
                Some(wanted) if wanted == name => return Ok(value + "\n"),
                Some(_) => {}
            },
            Err(Trouble::Refused(SysvError::EINVAL)) => break,
            Ok(_) => return Err(dipcd.not_understood()),
            Err(trouble) => return Err(trouble),
        }
    }
    match wanted {
        None => Ok(text),
        Some(wanted) => Err(Trouble::Told(format!("{wanted}: no such entry"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Result<Command, String> {
        match parse(line.split_whitespace().map(OsString::from)) {
            Ok(Request::Do(command, _)) => Ok(command),
            Ok(_) => Err("help or version".into()),
            Err(error) => Err(error.to_string()),
        }
    }

    #[test]
    fn commands_and_what_is_none() {
        let three = NodeId::new(3).unwrap();
        let rows = [
            ("status", Command::Status { node: NodeId::NONE, form: Form::Lines }),
            ("status 3 --json", Command::Status { node: three, form: Form::Json }),
            ("trace off", Command::Give(Order::Trace(Tracing::Off))),
            ("forget 3", Command::Give(Order::Forget { node: three })),
            (
                "set lost_page stale",
                Command::Give(Order::Set { entry: "lost_page".into(), value: "stale".into() }),
            ),
        ];
        for (line, command) in rows {
            assert_eq!(parsed(line), Ok(command), "{line}");
        }
        let rows = [
            ("", "a command is missing"),
            ("trace", "wrong arguments for trace"),
            ("forget 0", "\"0\" is not the number of a node"),
            ("forget 65", "\"65\" is not the number of a node"),
            ("dance", "no command is called dance"),
            ("peers --json", "--json goes with status alone"),
        ];
        for (line, why) in rows {
            assert_eq!(parsed(line), Err(why.to_owned()), "{line}");
        }
    }
}
