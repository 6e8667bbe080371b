//! dipcd: reads its command line and is a daemon, a keeper, or a short errand. What a daemon does
//! stands in the library; here it is started, told to read its files again, and stopped.
#![forbid(unsafe_code)]

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR2};
use signal_hook::iterator::Signals;
use std::io::{self, Write};
use std::process::ExitCode;

use dipcd::cli::{self, Command, RunOptions};
use dipcd::config::{Config, key};
use dipcd::daemon::Daemon;
use dipcd::settings::Settings;
use dipcd::{background, errands, keeper, log, start, stop};

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
        Command::Keeper(state_dir, verbosity) => finish(keeper::run(&state_dir, verbosity)),
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
    let (settings, config) = match Settings::open(options) {
        Ok(opened) => opened,
        Err(errors) => {
            errors.iter().for_each(|error| eprintln!("dipcd: {error}"));
            return ExitCode::FAILURE;
        }
    };
    log::start(options.verbosity);
    abort_on_panic();
    finish(serve(settings, config))
}

/// A bug must not go on as a wrong answer: the keeper outlives us, and another dipcd takes over.
fn abort_on_panic() {
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        usual(panic);
        std::process::abort();
    }));
}

fn serve(settings: Settings, config: Config) -> io::Result<()> {
    // Before any thread, so that a signal that comes early is not lost.
    let mut signals = Signals::new([SIGHUP, SIGINT, SIGTERM, SIGUSR2])?;
    for notice in config.notices() {
        tracing::warn!(op = "start", notice);
    }
    let (daemon, _lock) = start::start(settings, config)?;
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
            SIGHUP => reload(&daemon),
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
fn reload(daemon: &Daemon) {
    match daemon.settings.reload(daemon) {
        Ok(()) => tracing::info!(op = "reload"),
        Err(errors) => errors.iter().for_each(|error| tracing::error!(op = "reload", %error)),
    }
}
