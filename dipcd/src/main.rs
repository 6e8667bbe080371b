//! dipcd: reads its command line and is a daemon, a keeper, or a short errand. What a daemon does
//! stands in the library; here it is started, told to read its files again, and stopped.
#![forbid(unsafe_code)]

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR2};
use signal_hook::iterator::Signals;
use std::io::{self, Write};
use std::process::ExitCode;
use std::sync::Arc;

use dipcd::allow::AllowList;
use dipcd::cli::{self, Command, RunOptions};
use dipcd::config::{Config, key, not_yet};
use dipcd::daemon::Daemon;
use dipcd::{background, errands, keeper, log, policy, start, stop};

fn main() -> ExitCode {
    let command = match cli::parse(std::env::args_os().skip(1)) {
        Ok(command) => command,
        Err(misuse) => {
            eprintln!("{misuse}");
            return ExitCode::from(2);
        }
    };
    match command {
        Command::Run(options) if options.background && !background::is_child() => {
            finish(background::start_child())
        }
        Command::Run(options) => run(&options),
        Command::Check(options) => match cli::check(&options, &mut io::stdout()) {
            Ok(true) => ExitCode::SUCCESS,
            Ok(false) => ExitCode::FAILURE,
            Err(error) => finish(Err(error)),
        },
        Command::MakeKey(file) => finish(key::make(&file)),
        Command::Purge(source) => errands::purge(&source),
        Command::Keeper(state_dir) => finish(keeper::run(&state_dir)),
        Command::Help => finish(io::stdout().write_all(cli::HELP.as_bytes())),
        Command::Version => finish(io::stdout().write_all(cli::VERSION.as_bytes())),
    }
}

fn finish(done: io::Result<()>) -> ExitCode {
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("dipcd: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &RunOptions) -> ExitCode {
    let config = match load(options) {
        Ok(config) => config,
        Err(errors) => {
            errors.iter().for_each(|error| eprintln!("dipcd: {error}"));
            return ExitCode::FAILURE;
        }
    };
    log::start(options.verbosity);
    abort_on_panic();
    finish(serve(options, config))
}

/// The configuration, or everything that is wrong with it.
fn load(options: &RunOptions) -> Result<Config, Vec<String>> {
    let config = options
        .load()
        .map_err(|errors| errors.iter().map(ToString::to_string).collect::<Vec<_>>())?;
    let missing: Vec<_> = not_yet(&config)
        .iter()
        .map(|name| format!("{name}: not available in this version"))
        .collect();
    if missing.is_empty() { Ok(config) } else { Err(missing) }
}

/// A bug must not go on as a wrong answer: the keeper outlives us, and another dipcd takes over.
fn abort_on_panic() {
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        usual(panic);
        std::process::abort();
    }));
}

fn serve(options: &RunOptions, config: Config) -> io::Result<()> {
    // Before any thread, so that a signal that comes early is not lost.
    let mut signals = Signals::new([SIGHUP, SIGINT, SIGTERM, SIGUSR2])?;
    for notice in config.notices() {
        tracing::warn!(op = "start", notice);
    }
    let (daemon, _lock) = start::start(options, config)?;
    let config = daemon.config();
    tracing::info!(op = "start", node = %daemon.links.me(), incarnation = daemon.incarnation.0,
        address = %config.this_machine, referee = %config.referee,
        socket = %config.socket.display());
    if let Some(notice) = daemon.allow_notice() {
        tracing::warn!(op = "start", file = %config.allow_file.display(), notice);
    }
    background::ready();
    for signal in &mut signals {
        match signal {
            SIGHUP => reload(&daemon, options),
            SIGUSR2 => {
                tracing::info!(op = "leave", "the keeper keeps everything for the next dipcd");
                daemon.road.close();
                return Ok(());
            }
            _ => break,
        }
    }
    tracing::info!(op = "stop");
    stop::stop(&daemon);
    Ok(())
}

/// Both files are read again; what is wrong is said, and then nothing changes.
fn reload(daemon: &Arc<Daemon>, options: &RunOptions) {
    let new = match load(options) {
        Ok(new) => new,
        Err(errors) => {
            errors.iter().for_each(|error| tracing::error!(op = "reload", %error));
            return;
        }
    };
    let allow = match AllowList::of_node(&new, options.admission) {
        Ok(allow) => allow,
        Err(errors) => {
            errors.iter().for_each(|error| tracing::error!(op = "reload", %error));
            return;
        }
    };
    match daemon.reload(new, allow) {
        Ok(()) => tracing::info!(op = "reload"),
        Err(entries) => {
            tracing::error!(op = "reload", ?entries, "cannot change while dipcd runs");
        }
    }
    if let Err(error) = policy::publish(&daemon.config()) {
        tracing::error!(op = "reload", %error);
    }
}
