//! dipcd's command line: the original's options -t -u -n -s -v -c -d, alone or bundled (`-vs`),
//! and ours, which have long names. What they mean takes effect elsewhere.
#![forbid(unsafe_code)]

use std::ffi::OsString;
use std::fmt;
use std::path::PathBuf;

use dipc_wire::codec::ByteOrder;
use dipc_wire::preamble::Transport;

use crate::allow::Admission;
use crate::config::{Config, DEFAULT_FILE, Error, SINGLE};
use crate::log::Verbosity;

mod check;

pub use check::check;

/// What `--help` prints.
pub const HELP: &str = "\
usage: dipcd [-tunsvcd] [--config FILE | --single] [--background]
       dipcd --check | --purge [--config FILE | --single]
       dipcd --make-key FILE

  -t              no time-outs (shm_hold_timeout excepted)
  -u              links over UDP instead of TCP
  -n              integers between machines in network byte order
  -s              refuse machines that are not in dipc.allow, also where not the referee
  -v              trace lines on standard output
  -c              log conversions of byte order
  -d              log what was converted

  --config FILE   instead of /etc/dipc.conf
  --single        one node by itself on the loopback address, without a file
  --background    return when ready
  --check         check the configuration and the system, and end
  --make-key FILE make a cluster_key, and end
  --purge         end the keeper of a dipcd that is gone, and all it holds
  --help --version
";

/// What `--version` prints.
pub const VERSION: &str = concat!("dipcd ", env!("CARGO_PKG_VERSION"), "\n");

/// What dipcd was started to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Serve.
    Run(RunOptions),
    /// Say what is wrong with the configuration.
    Check(RunOptions),
    /// Make a cluster key in this new file.
    MakeKey(PathBuf),
    /// End the keeper, and all it holds.
    Purge(Source),
    /// Be the keeper of a dipcd with this `state_dir`, and write its lines; dipcd itself starts it.
    Keeper(PathBuf, Verbosity),
    /// Print [`HELP`].
    Help,
    /// Print [`VERSION`].
    Version,
}

/// Where the configuration comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// This file.
    File(PathBuf),
    /// Nowhere: `--single`.
    Single,
}

/// How to serve.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunOptions {
    /// `--config`, `--single`.
    pub source: Source,
    /// `-t`: see [`Config::without_timeouts`].
    pub lift_timeouts: bool,
    /// `-u`.
    pub transport: Transport,
    /// `-n`.
    pub order: ByteOrder,
    /// `-s`.
    pub admission: Admission,
    /// `-v`, `-c`, `-d`.
    pub verbosity: Verbosity,
    /// `--background`.
    pub background: bool,
}

impl Default for RunOptions {
    fn default() -> RunOptions {
        RunOptions {
            source: Source::File(DEFAULT_FILE.into()),
            lift_timeouts: false,
            transport: Transport::default(),
            order: ByteOrder::default(),
            admission: Admission::default(),
            verbosity: Verbosity::default(),
            background: false,
        }
    }
}

impl Source {
    /// The text of the configuration, unchecked, and the name of its file for messages.
    pub fn text(&self) -> Result<(PathBuf, String), Vec<Error>> {
        match self {
            Source::File(file) => Ok((file.clone(), Config::text_of(file)?)),
            Source::Single => Ok((SINGLE.into(), Config::single_text())),
        }
    }

    /// Reads and checks the configuration.
    pub fn load(&self) -> Result<Config, Vec<Error>> {
        match self {
            Source::File(file) => Config::load(file),
            Source::Single => Ok(Config::single()),
        }
    }
}

impl RunOptions {
    /// Reads the configuration, and lifts its time-outs if so told.
    pub fn load(&self) -> Result<Config, Vec<Error>> {
        let config = self.source.load()?;
        Ok(if self.lift_timeouts { config.without_timeouts() } else { config })
    }
}

/// A command line that is none; one line, for standard error. dipcd then ends with 2.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Misuse(String);

impl fmt::Display for Misuse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "dipcd: {} (dipcd --help lists the options)", self.0)
    }
}

impl std::error::Error for Misuse {}

/// What a command line asks for, besides options for serving.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Task {
    Run,
    Check,
    Purge,
}

/// Takes the arguments, without the program's own name.
pub fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Command, Misuse> {
    use lexopt::Arg::{Long, Short, Value};
    let mut parser = lexopt::Parser::from_args(arguments);
    let (mut options, mut task, mut source) = (RunOptions::default(), Task::Run, None);
    while let Some(argument) = parser.next().map_err(misuse)? {
        match argument {
            Short('t') => options.lift_timeouts = true,
            Short('u') => options.transport = Transport::Udp,
            Short('n') => options.order = ByteOrder::Network,
            Short('s') => options.admission = Admission::Secure,
            Short('v') => options.verbosity.trace = true,
            Short('c') => options.verbosity.conversions = true,
            Short('d') => options.verbosity.converted = true,
            Long("background") => options.background = true,
            Long("config") => {
                let file = parser.value().map_err(misuse)?;
                choose(&mut source, Source::File(file.into()))?;
            }
            Long("single") => choose(&mut source, Source::Single)?,
            Long("check") => set_task(&mut task, Task::Check)?,
            Long("purge") => set_task(&mut task, Task::Purge)?,
            Long("make-key") => return Ok(Command::MakeKey(only_value(parser)?)),
            Long("keeper") => {
                return Ok(Command::Keeper(only_value(parser)?, options.verbosity));
            }
            Short('h') | Long("help") => return Ok(Command::Help),
            Short('V') | Long("version") => return Ok(Command::Version),
            Short(_) | Long(_) | Value(_) => return Err(misuse(argument.unexpected())),
        }
    }
    if let Some(source) = source {
        options.source = source;
    }
    Ok(match task {
        Task::Run => Command::Run(options),
        Task::Check => Command::Check(options),
        Task::Purge => Command::Purge(options.source),
    })
}

fn misuse(error: lexopt::Error) -> Misuse {
    // A control character in an argument must not make two lines of one.
    Misuse(error.to_string().escape_debug().to_string().replace("\\\"", "\"").replace("\\'", "'"))
}

fn choose(source: &mut Option<Source>, chosen: Source) -> Result<(), Misuse> {
    match source.replace(chosen) {
        None => Ok(()),
        Some(_) => Err(Misuse("--config and --single may be given once, and not together".into())),
    }
}

fn set_task(task: &mut Task, wanted: Task) -> Result<(), Misuse> {
    match std::mem::replace(task, wanted) {
        Task::Run => Ok(()),
        before if before == wanted => Ok(()),
        _ => Err(Misuse("--check and --purge do not go together".into())),
    }
}

/// The value of an option that takes no other beside it.
fn only_value(mut parser: lexopt::Parser) -> Result<PathBuf, Misuse> {
    let value = parser.value().map_err(misuse)?;
    match parser.next().map_err(misuse)? {
        None => Ok(value.into()),
        Some(other) => Err(misuse(other.unexpected())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(arguments: &str) -> Result<Command, String> {
        let parsed = parse(arguments.split_whitespace().map(OsString::from));
        parsed.map_err(|misuse| misuse.to_string())
    }

    fn run(change: impl Fn(&mut RunOptions)) -> Result<Command, String> {
        let mut options = RunOptions::default();
        change(&mut options);
        Ok(Command::Run(options))
    }

    #[test]
    fn options_alone_and_bundled() {
        assert_eq!(line(""), run(|_| {}));
        assert_eq!(line("-t"), run(|o| o.lift_timeouts = true));
        assert_eq!(line("-u"), run(|o| o.transport = Transport::Udp));
        assert_eq!(line("-n"), run(|o| o.order = ByteOrder::Network));
        assert_eq!(line("-c"), run(|o| o.verbosity.conversions = true));
        assert_eq!(line("-d"), run(|o| o.verbosity.converted = true));
        let both = run(|o| {
            o.verbosity.trace = true;
            o.admission = Admission::Secure;
        });
        for arguments in ["-v -s", "-s -v", "-vs", "-sv", "-vsv"] {
            assert_eq!(line(arguments), both, "{arguments}");
        }
        let every = run(|o| {
            *o = RunOptions {
                source: Source::File(DEFAULT_FILE.into()),
                lift_timeouts: true,
                transport: Transport::Udp,
                order: ByteOrder::Network,
                admission: Admission::Secure,
                verbosity: Verbosity { trace: true, conversions: true, converted: true },
                background: true,
            }
        });
        assert_eq!(line("-tunsvcd --background"), every);
    }

    #[test]
    fn commands() {
        let file = Source::File("/x".into());
        let from = |source: &Source| RunOptions { source: source.clone(), ..Default::default() };
        let loud = Verbosity { trace: true, conversions: false, converted: true };
        let rows = [
            ("--config /x", Command::Run(from(&file))),
            ("--config=/x", Command::Run(from(&file))),
            ("--single", Command::Run(from(&Source::Single))),
            ("--check", Command::Check(RunOptions::default())),
            ("--check --config /x", Command::Check(from(&file))),
            ("--config /x --check --check", Command::Check(from(&file))),
            ("--purge --config /x", Command::Purge(file.clone())),
            ("--purge --single", Command::Purge(Source::Single)),
            ("--make-key /k", Command::MakeKey("/k".into())),
            ("--keeper /run/dipc", Command::Keeper("/run/dipc".into(), Verbosity::default())),
            ("-vd --keeper /run/dipc", Command::Keeper("/run/dipc".into(), loud)),
            ("--help", Command::Help),
            ("-h", Command::Help),
            ("-v --version", Command::Version),
        ];
        for (arguments, command) in rows {
            assert_eq!(line(arguments), Ok(command), "{arguments}");
        }
    }

    #[test]
    fn a_wrong_argument_is_named_in_one_line() {
        let rows = [
            ("-x", "invalid option '-x'"),
            ("-vx", "invalid option '-x'"),
            ("--chek", "invalid option '--chek'"),
            ("now", "unexpected argument \"now\""),
            ("--config", "missing argument for option '--config'"),
            ("--make-key", "missing argument for option '--make-key'"),
            ("--make-key /k /l", "unexpected argument \"/l\""),
            ("--config /x --single", "--config and --single"),
            ("--config /x --config /y", "--config and --single"),
            ("--check --purge", "--check and --purge"),
            ("--single=1", "unexpected argument for option '--single'"),
        ];
        for (arguments, named) in rows {
            let message = line(arguments).unwrap_err();
            assert!(message.contains(named), "{arguments}: {message}");
            assert!(!message.contains('\n'), "{arguments}: {message}");
        }
        let message = parse(["a\nb".into()]).unwrap_err().to_string();
        assert!(!message.contains('\n'), "{message}");
    }
}
