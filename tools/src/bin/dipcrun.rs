//! `dipcrun PROGRAM ARGS`: starts a program under libdipc. It finds the library, sets the
//! environment, and becomes the program, so that nothing stands between it and whoever started it.
#![forbid(unsafe_code)]

use std::ffi::{OsStr, OsString};
use std::io::ErrorKind;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

use dipc_tools::program::{self, Unreached};
use dipc_tools::{complain, printed};
use lexopt::Arg::{Long, Short, Value};

const TOOL: &str = "dipcrun";
const PAGE: &str = include_str!("../../../conf/man/dipcrun.1");
const VERSION: &str = concat!("dipcrun ", env!("CARGO_PKG_VERSION"), "\n");

/// As env(1) and nohup(1) have it.
const FAILED: u8 = 125;
const NOT_STARTED: u8 = 126;
const NOT_FOUND: u8 = 127;

/// What the command line asks for.
#[derive(Debug)]
enum Request {
    Run(Plan),
    Help,
    Version,
}

/// How to run what.
#[derive(Debug, Default)]
struct Plan {
    variables: Vec<(&'static str, OsString)>,
    strict: bool,
    library: Option<OsString>,
    program: OsString,
    arguments: Vec<OsString>,
}

fn main() -> ExitCode {
    match parse(std::env::args_os().skip(1)) {
        Ok(Request::Run(plan)) => run(&plan),
        Ok(Request::Help) => printed(TOOL, &dipc_tools::help::help(PAGE)),
        Ok(Request::Version) => printed(TOOL, VERSION),
        Err(error) => {
            complain(TOOL, &format_args!("{error}; see {TOOL} --help"));
            ExitCode::from(FAILED)
        }
    }
}

fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Request, lexopt::Error> {
    let mut parser = lexopt::Parser::from_args(arguments);
    let mut plan = Plan::default();
    while let Some(argument) = parser.next()? {
        match argument {
            Short('k') | Long("keys") => {
                let keys = parser.value()?;
                program::check_keys(&keys.to_string_lossy())?;
                plan.variables.push(("DIPC_KEYS", keys));
            }
            Long("ftok") => {
                let ftok = parser.value()?;
                if ftok != "native" && ftok != "path" {
                    return Err(format!("--ftok: {ftok:?} is neither native nor path").into());
                }
                plan.variables.push(("DIPC_FTOK", ftok));
            }
            Long("strict") => {
                plan.strict = true;
                plan.variables.push(("DIPC_STRICT", "1".into()));
            }
            Long("log") => plan.variables.push(("DIPC_LOG", parser.value()?)),
            Long("socket") => plan.variables.push(("DIPC_SOCKET", parser.value()?)),
            Long("library") => plan.library = Some(parser.value()?),
            Short('h') | Long("help") => return Ok(Request::Help),
            Short('V') | Long("version") => return Ok(Request::Version),
            Value(program) => {
                plan.program = program;
                plan.arguments = parser.raw_args()?.collect();
                return Ok(Request::Run(plan));
            }
            Short(_) | Long(_) => return Err(argument.unexpected()),
        }
    }
    Err("a program is missing".into())
}

fn run(plan: &Plan) -> ExitCode {
    let library = match program::library(plan.library.as_deref()) {
        Ok(library) => library,
        Err(why) => {
            complain(TOOL, &why);
            return ExitCode::from(FAILED);
        }
    };
    if let Some(unreached) = program::unreached(&plan.program) {
        complain(TOOL, &about(&plan.program, unreached));
        if plan.strict {
            return ExitCode::from(NOT_STARTED);
        }
    }
    let mut command = Command::new(&plan.program);
    command.args(&plan.arguments);
    command
        .env("LD_PRELOAD", program::preload(library.as_os_str(), std::env::var_os("LD_PRELOAD")));
    for (name, value) in &plan.variables {
        command.env(name, value);
    }
    let error = command.exec();
    complain(TOOL, &format_args!("{}: {error}", plan.program.to_string_lossy()));
    ExitCode::from(if error.kind() == ErrorKind::NotFound { NOT_FOUND } else { NOT_STARTED })
}

fn about(program: &OsStr, unreached: Unreached) -> String {
    let why = match unreached {
        Unreached::Static => "it is statically linked",
        Unreached::SetId => "it changes its user or group, and the loader then preloads nothing",
    };
    format!("{}: libdipc does not reach it: {why}", program.to_string_lossy())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stands_behind_the_program_is_the_programs() {
        let words = ["--keys", "0x28", "--strict", "ls", "--keys", "-l"].map(OsString::from);
        let Ok(Request::Run(plan)) = parse(words) else { panic!("it is well-formed") };
        assert_eq!(plan.program, "ls");
        assert_eq!(plan.arguments, ["--keys", "-l"]);
        let keys = OsString::from("0x28");
        assert_eq!(plan.variables, [("DIPC_KEYS", keys), ("DIPC_STRICT", "1".into())]);
    }

    #[test]
    fn refusals() {
        for (words, why) in [
            (&[][..], "a program is missing"),
            (&["--keys", "0x"], "--keys: \"0x\" is none of none, all"),
            (&["--ftok", "x", "ls"], "--ftok: \"x\" is neither native nor path"),
            (&["--what"], "invalid option '--what'"),
        ] {
            let error = parse(words.iter().map(OsString::from)).unwrap_err().to_string();
            assert!(error.starts_with(why), "{error}");
        }
    }
}
