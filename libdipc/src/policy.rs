//! Which keys are distributed without `IPC_DIPC`, and how this program was told to behave: from
//! the environment at the start, and from the file that dipcd publishes beside its socket, read at
//! the first `*get` or `ftok`.
//!
//! dipcd has checked that file; a line that we do not know is one of a newer dipcd and means
//! nothing to us.
#![forbid(unsafe_code)]

use std::ops::RangeInclusive;
use std::sync::OnceLock;

use dipc_wire::ids::{Key, Kind};
use dipc_wire::sysv::IPC_DIPC;
use rustix::fs::{CWD, Mode, OFlags, openat, readlinkat};

use crate::sys;

/// Where dipcd listens, if nobody says otherwise.
const SOCKET: &[u8] = b"/run/dipc/dipcd.sock";

/// Bytes of a policy file; what is behind them is not read.
const FILE_BYTES_MAX: usize = 1 << 20;

/// How long a `*get` waits for an answer, unless dipcd's file says otherwise; besides what dipcd
/// itself needs to give up.
const GET_TIMEOUT_MS: u64 = 15_000;
const GRACE_MS: u64 = 2_000;

/// What the environment said.
#[derive(Debug, Default)]
pub struct Environment {
    socket: Option<Vec<u8>>,
    keys: Option<Vec<u8>>,
    ftok: Option<Vec<u8>>,
    strict: bool,
    log: Option<Vec<u8>>,
}

static ENVIRONMENT: OnceLock<Environment> = OnceLock::new();
static POLICY: OnceLock<Policy> = OnceLock::new();

/// Reads the environment, before the program can change it.
pub fn read_environment() {
    let _ = ENVIRONMENT.set(Environment {
        socket: sys::environment(c"DIPC_SOCKET"),
        keys: sys::environment(c"DIPC_KEYS"),
        ftok: sys::environment(c"DIPC_FTOK"),
        strict: sys::environment(c"DIPC_STRICT").is_some_and(|value| value == b"1"),
        log: sys::environment(c"DIPC_LOG"),
    });
}

fn environment() -> &'static Environment {
    if ENVIRONMENT.get().is_none() {
        read_environment(); // another library's constructor calls before ours ran
    }
    ENVIRONMENT.get_or_init(Environment::default)
}

/// The path of dipcd's socket.
pub fn socket_path() -> &'static [u8] {
    environment().socket.as_deref().unwrap_or(SOCKET)
}

/// Whether a distributed key without dipcd is an error, not the kernel's.
pub fn is_strict() -> bool {
    environment().strict
}

/// Where log lines go: a path, or `stderr`.
pub fn log_path() -> Option<&'static [u8]> {
    ENVIRONMENT.get().and_then(|environment| environment.log.as_deref())
}

/// How keys are made of paths.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Ftok {
    /// As libc does: from inode and device.
    #[default]
    Native,
    /// From the canonical path, the same on every machine.
    Path,
}

/// What bit 00010000 of shmget's flags means, which is `SHM_NORESERVE` to today's kernels.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Noreserve {
    /// `IPC_DIPC`, as for the other kinds.
    #[default]
    Dipc,
    /// What the kernel says.
    Local,
}

/// What holds for this program.
#[derive(Debug, PartialEq, Eq)]
pub struct Policy {
    /// Keys that are distributed without the flag.
    keys: Keys,
    /// How ftok works.
    pub ftok: Ftok,
    /// What the bit of `IPC_DIPC` means to shmget.
    noreserve: Noreserve,
    /// How long a call to dipcd may take; `None` has no bound.
    pub patience_nanos: Option<u64>,
    /// How long an operation at another home may take, its waiting included; `None` has no bound.
    pub operation_nanos: Option<u64>,
}

impl Default for Policy {
    fn default() -> Policy {
        Policy {
            keys: Keys::default(),
            ftok: Ftok::Native,
            noreserve: Noreserve::Dipc,
            patience_nanos: patience(GET_TIMEOUT_MS),
            operation_nanos: None,
        }
    }
}

/// The policy, read when it is first asked for.
pub fn get() -> &'static Policy {
    if POLICY.get().is_none() {
        let _ = POLICY.set(read());
    }
    POLICY.get_or_init(Policy::default)
}

impl Policy {
    /// Whether a `*get` with these arguments means a distributed object.
    pub fn is_distributed(&self, kind: Kind, key: Key, flags: i32) -> bool {
        let is_noreserve = kind == Kind::Segment && self.noreserve == Noreserve::Local;
        flags & IPC_DIPC != 0 && !is_noreserve || self.keys.contains(key)
    }

    /// Whether any key is distributed without the flag.
    pub fn distributes_by_key(&self) -> bool {
        self.keys != Keys::default()
    }

    fn apply(&mut self, name: &str, value: &str) {
        match (name, value) {
            ("keys", list) => self.keys = Keys::parse(list).unwrap_or_default(),
            ("ftok", "path") => self.ftok = Ftok::Path,
            ("ftok", _) => self.ftok = Ftok::Native,
            ("shm_noreserve", "local") => self.noreserve = Noreserve::Local,
            ("shm_noreserve", _) => self.noreserve = Noreserve::Dipc,
            ("get_timeout_ms", number) => {
                self.patience_nanos = patience(number.parse().unwrap_or(GET_TIMEOUT_MS));
            }
            ("worker_timeout_ms", number) => {
                let bound = number.parse().ok().filter(|bound: &u64| *bound > 0);
                self.operation_nanos = bound.map(|bound| bound.saturating_mul(1_000_000));
            }
            _ => {}
        }
    }

    /// From the text of dipcd's file, for the program with this path.
    fn parse(text: &str, program: &str) -> Policy {
        let (mut policy, mut ours) = (Policy::default(), true);
        for line in text.lines().map(|line| line.split('#').next().unwrap_or_default().trim()) {
            if let Some(section) = line.strip_prefix('[') {
                let section = section.trim_end_matches(']').trim();
                ours = section.strip_prefix("program").is_some_and(|path| path.trim() == program);
            } else if let Some((name, value)) = line.split_once('=').filter(|_| ours) {
                policy.apply(name.trim(), value.trim());
            }
        }
        policy
    }
}

fn patience(get_timeout_ms: u64) -> Option<u64> {
    (get_timeout_ms != 0).then(|| get_timeout_ms.saturating_add(GRACE_MS).saturating_mul(1_000_000))
}

/// Reads dipcd's file and lets the environment override it.
fn read() -> Policy {
    let environment = environment();
    let file = [socket_path(), b".policy"].concat();
    let program = readlinkat(CWD, "/proc/self/exe", Vec::new()).unwrap_or_default();
    let text = read_file(&file).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let mut policy = Policy::parse(&text, &program.to_string_lossy());
    for (name, value) in [("keys", &environment.keys), ("ftok", &environment.ftok)] {
        if let Some(value) = value {
            policy.apply(name, String::from_utf8_lossy(value).trim());
        }
    }
    policy
}

fn read_file(path: &[u8]) -> Option<Vec<u8>> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let file = openat(CWD, path, flags, Mode::empty()).ok()?;
    let mut text = Vec::new();
    while text.len() < FILE_BYTES_MAX {
        text.reserve(4096);
        match rustix::io::read(&file, rustix::buffer::spare_capacity(&mut text)) {
            Ok(0) | Err(_) => break,
            Ok(_) => {}
        }
    }
    Some(text)
}

/// A set of keys, as `keys` and `DIPC_KEYS` write it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Keys {
    /// Without `IPC_PRIVATE`, whatever they include.
    ranges: Vec<RangeInclusive<u32>>,
    private: bool,
}

impl Keys {
    /// `none`, `all`, `all,private`, or keys and ranges, hexadecimal or decimal. `None` if it is
    /// none of these.
    fn parse(list: &str) -> Option<Keys> {
        let mut keys = Keys::default();
        for item in list.split(',').map(str::trim).filter(|item| !item.is_empty()) {
            match item {
                "none" => {}
                "all" => keys.ranges.push(0..=u32::MAX),
                "private" => keys.private = true,
                _ => {
                    let (first, last) = match item.split_once('-').filter(|(a, _)| !a.is_empty()) {
                        Some((first, last)) => (number(first)?, number(last)?),
                        None => (number(item)?, number(item)?),
                    };
                    keys.ranges.push(first..=last);
                }
            }
        }
        Some(keys)
    }

    fn contains(&self, key: Key) -> bool {
        match key {
            Key::PRIVATE => self.private,
            Key(key) => self.ranges.iter().any(|range| range.contains(&(key as u32))),
        }
    }
}

/// A key: 32 bits, hexadecimal or decimal, negative as C prints it or not.
fn number(text: &str) -> Option<u32> {
    let text = text.trim();
    match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(digits) => u32::from_str_radix(digits, 16).ok(),
        None => text.parse().ok().or_else(|| text.parse::<i32>().ok().map(|key| key as u32)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn key_lists() {
        let contains = |list: &str, key: i32| Keys::parse(list).expect(list).contains(Key(key));
        assert!(!contains("none", 40) && !contains("", 40));
        assert!(contains("all", 40) && contains("all", -1) && !contains("all", 0));
        assert!(contains("all,private", 0) && contains("private", 0) && !contains("private", 1));
        assert!(contains("0x28,0x1000-0x1fff", 40) && contains("0x28, 0x1000-0x1fff", 0x1fff));
        assert!(!contains("0x28,0x1000-0x1fff", 41) && !contains("0x28,0x1000-0x1fff", 0x2000));
        assert!(contains("40-50", 50) && contains("-1", -1) && contains("0xffffffff", -1));
        assert!(!contains("0-5", 0), "IPC_PRIVATE is not a key");
        for wrong in ["some", "1-", "0x", "1;2", "4294967296"] {
            assert_eq!(Keys::parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn sections_hold_for_their_program() {
        let text = "keys = 1 # one\nnew = thing\nget_timeout_ms = 0\n\
                    [program /bin/a]\nkeys = 2\nftok = path\n[program /bin/b]\nkeys = none\n\
                    shm_noreserve = local\n";
        let (a, b) = (Policy::parse(text, "/bin/a"), Policy::parse(text, "/bin/b"));
        let (queue, segment) = (Kind::Queue, Kind::Segment);
        assert!(a.is_distributed(queue, Key(2), 0) && !a.is_distributed(queue, Key(1), 0));
        assert!(a.is_distributed(segment, Key(9), IPC_DIPC));
        assert!(!b.is_distributed(segment, Key(9), IPC_DIPC), "SHM_NORESERVE");
        assert_eq!((a.ftok, a.patience_nanos), (Ftok::Path, None));
        assert!(!b.distributes_by_key() && b.is_distributed(queue, Key(9), IPC_DIPC));
        let other = Policy::parse(text, "/bin/c");
        assert!(other.is_distributed(queue, Key(1), 0) && other.ftok == Ftok::Native);
    }
}
