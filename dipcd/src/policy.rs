//! Which keys are distributed, and how programs learn it: a client reads `<socket>.policy` at its
//! first `*get` or `ftok`, before it has anything to do with dipcd.
//!
//! The file is replaced whole, never changed in place, so that a reader sees one policy:
//!
//! ```text
//! keys = 0x28,0x1000-0x1fff
//! ftok = native
//! shm_noreserve = dipc
//! get_timeout_ms = 15000          (0: none)
//! worker_timeout_ms = 0           (0: none)
//! [program /usr/bin/fakeroot]     (the same three entries as above, for one program)
//! keys = all
//! ...
//! ```
#![forbid(unsafe_code)]

use std::fmt::{self, Write as _};
use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use dipc_wire::ids::Key;

use crate::config::{Config, Words};

/// Ranges of one key set.
pub const RANGES_MAX: usize = 1024;

/// What is distributed without `IPC_DIPC`, for the node or for one program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sharing {
    /// Keys that are distributed always.
    pub keys: KeySet,
    /// How ftok makes keys.
    pub ftok: Ftok,
    /// What bit 00010000 means to shmget.
    pub shm_noreserve: ShmNoreserve,
}

/// A `[program PATH]` section: what it does not say is as outside it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Program {
    /// The program's file, absolute.
    pub path: PathBuf,
    /// Its policy.
    pub sharing: Sharing,
}

/// How `ftok` makes keys (`ftok`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ftok {
    /// As libc: from inode and device, which differ between machines.
    Native,
    /// From the canonical path.
    Path,
}

/// What bit 00010000 means to shmget (`shm_noreserve`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ShmNoreserve {
    /// `IPC_DIPC`.
    Dipc,
    /// `SHM_NORESERVE`, as for the kernel.
    Local,
}

/// A set of keys: `none`, `all`, `all,private`, or keys and ranges such as `0x28,0x1000-0x1fff`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeySet {
    /// No key.
    None,
    /// Every key but `IPC_PRIVATE`.
    All,
    /// Every key.
    AllAndPrivate,
    /// Those in one of these ranges, none of which holds `IPC_PRIVATE`.
    Listed(Vec<KeyRange>),
}

/// Keys from `first` to `last`, both included, compared as unsigned numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyRange {
    /// The lowest, not 0.
    pub first: u32,
    /// The highest.
    pub last: u32,
}

impl KeySet {
    /// Whether an object of this key is distributed.
    pub fn contains(&self, key: Key) -> bool {
        let number = key.0 as u32;
        match self {
            KeySet::None => false,
            KeySet::All => key != Key::PRIVATE,
            KeySet::AllAndPrivate => true,
            KeySet::Listed(ranges) => {
                ranges.iter().any(|range| (range.first..=range.last).contains(&number))
            }
        }
    }
}

/// A text is no key set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotKeys;

impl FromStr for KeySet {
    type Err = NotKeys;

    fn from_str(text: &str) -> Result<KeySet, NotKeys> {
        let mut parts = text.split(',').map(str::trim);
        match (parts.next(), parts.next(), parts.next()) {
            (Some("none"), None, _) => return Ok(KeySet::None),
            (Some("all"), None, _) => return Ok(KeySet::All),
            (Some("all"), Some("private"), None) => return Ok(KeySet::AllAndPrivate),
            _ => {}
        }
        let ranges: Vec<_> =
            text.split(',').take(RANGES_MAX + 1).map(key_range).collect::<Result<_, _>>()?;
        if ranges.len() <= RANGES_MAX { Ok(KeySet::Listed(ranges)) } else { Err(NotKeys) }
    }
}

fn key_range(text: &str) -> Result<KeyRange, NotKeys> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last) = (key_number(first.trim())?, key_number(last.trim())?);
    if first > 0 && first <= last { Ok(KeyRange { first, last }) } else { Err(NotKeys) }
}

/// Decimal, or hexadecimal after `0x`.
fn key_number(text: &str) -> Result<u32, NotKeys> {
    let (digits, radix) = match text.strip_prefix("0x") {
        Some(digits) => (digits, 16),
        None => (text, 10),
    };
    if digits.starts_with('+') {
        return Err(NotKeys);
    }
    u32::from_str_radix(digits, radix).map_err(|_| NotKeys)
}

impl fmt::Display for KeySet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            KeySet::None => f.write_str("none"),
            KeySet::All => f.write_str("all"),
            KeySet::AllAndPrivate => f.write_str("all,private"),
            KeySet::Listed(ranges) => {
                for (index, range) in ranges.iter().enumerate() {
                    let comma = if index == 0 { "" } else { "," };
                    write!(f, "{comma}{:#x}", range.first)?;
                    if range.last != range.first {
                        write!(f, "-{:#x}", range.last)?;
                    }
                }
                Ok(())
            }
        }
    }
}

/// Where the policy of the dipcd at this socket is published.
pub fn file_beside(socket: &Path) -> PathBuf {
    let mut name = socket.as_os_str().to_owned();
    name.push(".policy");
    PathBuf::from(name)
}

/// The text of the policy file.
pub fn render(config: &Config) -> String {
    let mut text = render_sharing(&config.sharing);
    let bound_ms = config.timeouts.employer_referee.map_or(0, |bound| bound.as_millis());
    writeln!(text, "get_timeout_ms = {bound_ms}").expect("strings take everything");
    let bound_ms = config.timeouts.employer_worker.map_or(0, |bound| bound.as_millis());
    writeln!(text, "worker_timeout_ms = {bound_ms}").expect("strings take everything");
    for program in &config.programs {
        writeln!(text, "[program {}]", program.path.display()).expect("strings take everything");
        text.push_str(&render_sharing(&program.sharing));
    }
    text
}

fn render_sharing(sharing: &Sharing) -> String {
    format!(
        "keys = {}\nftok = {}\nshm_noreserve = {}\n",
        sharing.keys,
        sharing.ftok.word(),
        sharing.shm_noreserve.word()
    )
}

/// Writes the policy file, whole or not at all, readable by everybody.
pub fn publish(config: &Config) -> io::Result<()> {
    let file = file_beside(&config.socket);
    let mut name = file.as_os_str().to_owned();
    name.push(format!(".{}", std::process::id()));
    let temporary = PathBuf::from(name);
    let written =
        write_new(&temporary, &render(config)).and_then(|()| fs::rename(&temporary, &file));
    if written.is_err() {
        // The error that matters is the one above; a leftover is replaced by the next attempt.
        let _ = fs::remove_file(&temporary);
    }
    written
}

fn write_new(file: &Path, text: &str) -> io::Result<()> {
    match fs::remove_file(file) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut opened = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(file)?;
    opened.write_all(text.as_bytes())?;
    // The umask has no say in who reads it.
    opened.set_permissions(std::os::unix::fs::PermissionsExt::from_mode(0o644))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn key_sets_by_example() {
        let rows: &[(&str, &[i32], &[i32])] = &[
            ("none", &[], &[0, 1, 40, -1]),
            ("all", &[1, 40, -1, i32::MIN], &[0]),
            ("all,private", &[0, 1, -1], &[]),
            ("0x28", &[40], &[0, 39, 41]),
            ("40, 0x1000-0x1fff", &[40, 0x1000, 0x1fff], &[0, 0xfff, 0x2000]),
            ("0x80000000-0xffffffff", &[-1, i32::MIN], &[0, 1, i32::MAX]),
        ];
        for &(text, inside, outside) in rows {
            let keys: KeySet = text.parse().unwrap();
            for &key in inside {
                assert!(keys.contains(Key(key)), "{text}: {key} is missing");
            }
            for &key in outside {
                assert!(!keys.contains(Key(key)), "{text}: {key} should not be in it");
            }
            assert_eq!(keys.to_string().parse(), Ok(keys), "{text} as printed");
        }
    }

    #[test]
    fn what_is_no_key_set() {
        for text in [
            "",
            ",",
            "0",
            "0x",
            "x",
            "5-",
            "-5",
            "9-8",
            "0-7",
            "all,none",
            "private",
            "+3",
            "0x+3",
            "4294967296",
            "none,none",
            "1,,2",
        ] {
            assert_eq!(text.parse::<KeySet>(), Err(NotKeys), "{text:?}");
        }
        let many = vec!["1"; RANGES_MAX + 1].join(",");
        assert_eq!(many.parse::<KeySet>(), Err(NotKeys));
    }

    #[test]
    fn the_file_is_replaced_whole_and_readable_by_all() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let mut config = Config::single_in(dir.path(), dir.path());
        config.sharing.keys = "0x28,0x1000-0x1fff".parse().unwrap();
        config.programs.push(Program {
            path: "/usr/bin/fakeroot".into(),
            sharing: Sharing {
                keys: KeySet::All,
                ftok: Ftok::Path,
                shm_noreserve: ShmNoreserve::Local,
            },
        });
        for round in 0..2 {
            publish(&config).unwrap();
            let file = file_beside(&config.socket);
            assert_eq!(file, dir.path().join("dipcd.sock.policy"));
            assert_eq!(
                fs::read_to_string(&file).unwrap(),
                "keys = 0x28,0x1000-0x1fff\nftok = native\nshm_noreserve = dipc\n\
                 get_timeout_ms = 15000\nworker_timeout_ms = 0\n[program /usr/bin/fakeroot]\n\
                 keys = all\nftok = path\nshm_noreserve = local\n"
            );
            assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o644);
            assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "round {round}");
        }
        let endless = config.without_timeouts();
        assert!(render(&endless).contains("get_timeout_ms = 0\n"));
    }
}
