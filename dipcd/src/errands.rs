//! `dipcd --purge`: what is left of a dipcd that will not come back, ended and removed. Never
//! while one runs: it would take from it what it holds.
#![forbid(unsafe_code)]

use std::io;
use std::process::ExitCode;

use crate::cli::Source;
use crate::config::Config;
use crate::home::Home;
use crate::keeper_handle::KeeperHandle;
use crate::{policy, start};

/// Ends the keeper and what it holds, destroys this node's objects, removes its socket. Refused
/// while a dipcd runs.
pub fn purge(source: &Source) -> ExitCode {
    let config = match source.load() {
        Ok(config) => config,
        Err(errors) => {
            errors.iter().for_each(|error| eprintln!("dipcd: {error}"));
            return ExitCode::FAILURE;
        }
    };
    match purge_state(&config) {
        Ok(objects) => {
            println!("purged {}: {objects} objects removed", config.state_dir.display());
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("dipcd: {error}");
            ExitCode::FAILURE
        }
    }
}

fn purge_state(config: &Config) -> io::Result<usize> {
    if !config.state_dir.exists() {
        return Ok(0);
    }
    let _lock = start::lock_state_dir(&config.state_dir)?;
    KeeperHandle::quit_if_running(&config.state_dir)?;
    let objects = Home::open(&config.state_dir)?.destroy_all()?;
    for name in ["objects", "pids", "keeper.sock"] {
        remove(&config.state_dir.join(name))?;
    }
    remove(&config.socket)?;
    remove(&policy::file_beside(&config.socket))?;
    Ok(objects)
}

fn remove(path: &std::path::Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(io::Error::new(error.kind(), format!("{}: {error}", path.display())))
        }
        _ => Ok(()),
    }
}
