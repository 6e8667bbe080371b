//! `dipcd --check`: everything that is wrong with the configuration, and settings of the system
//! that hurt. It changes nothing and opens no socket.
#![forbid(unsafe_code)]

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use super::RunOptions;
use crate::allow::AllowList;
use crate::config::{Config, not_yet};
use crate::start;

/// Prints `ok`, or a line for each error. Lines that begin with `warning:` or `note:` are no
/// errors. Returns whether a dipcd with these options would start.
pub fn check(options: &RunOptions, out: &mut impl Write) -> io::Result<bool> {
    let errors = match options.load() {
        Err(errors) => errors.iter().map(ToString::to_string).collect(),
        Ok(config) => {
            let errors = errors_of(&config, options);
            for warning in warnings(&config, Path::new("/")) {
                writeln!(out, "warning: {warning}")?;
            }
            for notice in config.notices() {
                writeln!(out, "note: {notice}")?;
            }
            errors
        }
    };
    for error in &errors {
        writeln!(out, "{error}")?;
    }
    if errors.is_empty() {
        writeln!(out, "ok")?;
    }
    Ok(errors.is_empty())
}

fn errors_of(config: &Config, options: &RunOptions) -> Vec<String> {
    let unavailable = not_yet(config).into_iter();
    let mut errors: Vec<_> =
        unavailable.map(|name| format!("{name}: not available in this version")).collect();
    errors.extend(start::missing(config));
    if let Err(found) = AllowList::of_node(config, options.admission) {
        errors.extend(found.iter().map(ToString::to_string));
    }
    errors
}

fn warnings(config: &Config, root: &Path) -> Vec<String> {
    let mut warnings: Vec<_> = remove_ipc(root).into_iter().collect();
    if !is_on_tmpfs(&config.state_dir) {
        let dir = config.state_dir.display();
        warnings.push(format!("state_dir: {dir} is not on a tmpfs; after a reboot it is stale"));
    }
    warnings
}

/// Whether systemd-logind removes the System V objects of users that log out, which is its
/// default (logind.conf(5)): distributed objects at home here would go with them.
fn remove_ipc(root: &Path) -> Option<String> {
    if !root.join("usr/lib/systemd/systemd-logind").exists() {
        return None;
    }
    let (mut removes, mut set_in) = (true, None);
    for file in logind_files(root) {
        let text = fs::read_to_string(&file).unwrap_or_default();
        let values = text.lines().filter_map(|line| line.trim().strip_prefix("RemoveIPC"));
        for value in values.filter_map(|rest| rest.trim_start().strip_prefix('=')) {
            let value = value.trim().to_ascii_lowercase();
            removes = !["no", "false", "off", "0", "n", "f"].contains(&value.as_str());
            set_in = Some(file.clone());
        }
    }
    let where_set = match set_in {
        Some(file) => format!("in {}", file.display()),
        None => "(the default)".into(),
    };
    removes.then(|| {
        format!(
            "systemd-logind has RemoveIPC=yes {where_set}: it removes the objects of users that \
             log out; set RemoveIPC=no in /etc/systemd/logind.conf"
        )
    })
}

/// The files of logind.conf(5) in the order in which they count, the last one most.
fn logind_files(root: &Path) -> Vec<PathBuf> {
    let mut pieces: Vec<PathBuf> = ["usr/lib/systemd", "run/systemd", "etc/systemd"]
        .iter()
        .filter_map(|dir| fs::read_dir(root.join(dir).join("logind.conf.d")).ok())
        .flat_map(|entries| entries.flatten().map(|entry| entry.path()))
        .filter(|path| path.extension().is_some_and(|extension| extension == "conf"))
        .collect();
    pieces.sort_by(|a, b| a.file_name().cmp(&b.file_name()));
    pieces.insert(0, root.join("etc/systemd/logind.conf"));
    pieces
}

/// Whether a directory is on a tmpfs, or would be if it were made.
fn is_on_tmpfs(dir: &Path) -> bool {
    const TMPFS_MAGIC: u64 = 0x0102_1994;
    let existing = dir.ancestors().find(|ancestor| ancestor.exists());
    let found = existing.and_then(|existing| rustix::fs::statfs(existing).ok());
    found.is_some_and(|found| found.f_type as u64 == TMPFS_MAGIC)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::Source;

    #[test]
    fn remove_ipc_is_found_where_it_counts() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        assert_eq!(remove_ipc(root), None, "no logind");
        let write = |path: &str, text: &str| {
            let file = root.join(path);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, text).unwrap();
        };
        write("usr/lib/systemd/systemd-logind", "");
        assert!(remove_ipc(root).unwrap().contains("(the default)"));
        write("etc/systemd/logind.conf", "[Login]\n#RemoveIPC=no\n");
        assert!(remove_ipc(root).is_some(), "a comment sets nothing");
        write("etc/systemd/logind.conf", "[Login]\nRemoveIPC = No\n");
        assert_eq!(remove_ipc(root), None);
        write("run/systemd/logind.conf.d/20-b.conf", "[Login]\nRemoveIPC=yes\n");
        assert!(remove_ipc(root).unwrap().contains("20-b.conf"));
        write("etc/systemd/logind.conf.d/10-a.conf", "RemoveIPC=no");
        assert!(remove_ipc(root).is_some(), "an earlier name does not count");
        write("etc/systemd/logind.conf.d/30-c.conf", "RemoveIPC=no");
        assert_eq!(remove_ipc(root), None);
    }

    #[test]
    fn check_prints_ok_or_every_error() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("dipc.conf");
        let options = RunOptions { source: Source::File(file.clone()), ..RunOptions::default() };
        let run = |text: &str| {
            fs::write(&file, text).unwrap();
            let mut out = Vec::new();
            let good = check(&options, &mut out).unwrap();
            (good, String::from_utf8(out).unwrap())
        };
        let base = "this_machine = 127.0.0.1\nreferee = 127.0.0.1\nallow_file = /nonexistent/a\n";
        let (good, text) = run(base);
        assert!(good && text.ends_with("ok\n") && text.contains("note: no cluster_key"), "{text}");

        let (good, text) = run(&format!("{base}send = pipelined:40\n"));
        assert!(!good && text.contains("send: not available in this version\n"), "{text}");

        let (good, text) = run(&format!("{base}socket_group = no-such-group\n"));
        let said = "socket_group: there is no group no-such-group\n";
        assert!(!good && text.ends_with(said), "{text}");

        let (good, text) = run("this_machine = 127.0.0.1\nport = x\nlease = y\n");
        assert!(!good && text.lines().count() == 3 && !text.contains("ok\n"), "{text}");
    }
}
