//! The table of dipc.conf's entries: default, bounds, and whether a change counts at once. What
//! an entry means stands in conf/dipc.conf and dipc.conf(5); tests hold both to this table.
#![forbid(unsafe_code)]

use std::fmt;

/// The TCP port of links and wires.
pub const PORT: u16 = 4750;

/// One entry.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    /// Its name.
    pub name: &'static str,
    /// What it is when it is not given; empty for one that must be given.
    pub default: &'static str,
    /// What may be given.
    pub bounds: Bounds,
    /// When a new value counts.
    pub change: Change,
}

/// What may be given; shown in errors and in the manual.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bounds {
    /// Seconds with a fraction, bounds in milliseconds.
    Seconds(u64, u64),
    /// The same, and 0 or less means none.
    SecondsOrNone(u64, u64),
    /// A whole number.
    Number(u64, u64),
    /// A number of bytes, perhaps with K, M, G or T behind it.
    Bytes(u64, u64),
    /// One of these words.
    OneOf(&'static [&'static str]),
    /// What these words say.
    Described(&'static str),
}

/// When a new value counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// At once, on SIGHUP.
    OnReload,
    /// At the next start; a reload that changes it is refused.
    AtStart,
}

impl fmt::Display for Bounds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = |ms: u64| ms as f64 / 1000.0;
        match *self {
            Bounds::Seconds(min, max) => {
                write!(f, "seconds from {} to {}", seconds(min), seconds(max))
            }
            Bounds::SecondsOrNone(min, max) => write!(
                f,
                "seconds from {} to {}, or 0 or less for none",
                seconds(min),
                seconds(max)
            ),
            Bounds::Number(min, max) => write!(f, "a number from {min} to {max}"),
            Bounds::Bytes(min, max) => {
                write!(f, "bytes from {} to {}", with_suffix(min), with_suffix(max))
            }
            Bounds::OneOf(words) => match words {
                [most @ .., last] if !most.is_empty() => {
                    write!(f, "{} or {last}", most.join(", "))
                }
                words => f.write_str(&words.join(", ")),
            },
            Bounds::Described(words) => f.write_str(words),
        }
    }
}

/// The suffixes of bytes, the largest first.
pub(super) const SUFFIXES: [(&str, u64); 4] =
    [("T", 1 << 40), ("G", 1 << 30), ("M", 1 << 20), ("K", 1 << 10)];

/// Bytes with the largest suffix that leaves a whole number.
pub(super) fn with_suffix(bytes: u64) -> String {
    let fits = |(_, unit): &&(&str, u64)| bytes > 0 && bytes.is_multiple_of(*unit);
    match SUFFIXES.iter().find(fits) {
        Some((suffix, unit)) => format!("{}{suffix}", bytes / unit),
        None => bytes.to_string(),
    }
}

const fn at_start(name: &'static str, default: &'static str, bounds: Bounds) -> Entry {
    Entry { name, default, bounds, change: Change::AtStart }
}

const fn on_reload(name: &'static str, default: &'static str, bounds: Bounds) -> Entry {
    Entry { name, default, bounds, change: Change::OnReload }
}

const A_DAY_MS: u64 = 86_400_000;
const WAIT: Bounds = Bounds::SecondsOrNone(50, A_DAY_MS);
const PATH: Bounds = Bounds::Described("an absolute path");
const ACCOUNT: Bounds = Bounds::Described("the name of an account");
const GROUP: Bounds = Bounds::Described("the name of a group");
const KEY_FILE: Bounds = Bounds::Described("none, or a key file that only its owner may read");
const KEYS: Bounds =
    Bounds::Described("none, all, or all,private, or keys and ranges such as 0x28,0x1000-0x1fff");

/// Every entry, in the order of the manual: first the eleven of the original.
pub const ENTRIES: &[Entry] = &[
    at_start("this_machine", "", Bounds::Described("address[:port], or dipc_auto_find")),
    at_start("referee", "", Bounds::Described("address[:port], not dipc_auto_find")),
    at_start("transfer_mode", "page", Bounds::OneOf(&["page", "segment"])),
    at_start(
        "dipc_page_size",
        "system",
        Bounds::Described("system, or a multiple of the system's page size up to 16M"),
    ),
    on_reload("inhibit_shm_signal", "yes", Bounds::OneOf(&["yes", "no"])),
    on_reload("employer_referee_timeout", "15", WAIT),
    on_reload("employer_shm_timeout", "30", WAIT),
    on_reload("employer_worker_timeout", "0", WAIT),
    on_reload("shm_ak_timeout", "10", WAIT),
    at_start("referee_timeout", "10", WAIT),
    on_reload(
        "shm_hold_timeout",
        "adaptive",
        Bounds::Described("adaptive, or seconds from 0.001 to 10"),
    ),
    at_start("port", "4750", Bounds::Number(1, 65_535)),
    at_start(
        "socket",
        "/run/dipc/dipcd.sock",
        Bounds::Described("an absolute path of at most 107 bytes"),
    ),
    at_start("socket_mode", "0666", Bounds::Described("octal permission bits from 0 to 0777")),
    at_start("socket_group", "none", Bounds::Described("none, or the name of a group")),
    at_start("state_dir", "/run/dipc", PATH),
    at_start("lib_dir", "/var/lib/dipc", PATH),
    on_reload("allow_file", "/etc/dipc.allow", PATH),
    on_reload("cluster_key", "none", KEY_FILE),
    on_reload("cluster_key_next", "none", KEY_FILE),
    at_start("cipher", "aes-gcm", Bounds::OneOf(&["aes-gcm", "none"])),
    at_start("node_timeout", "5", Bounds::Seconds(200, 3_600_000)),
    at_start("lease", "3", Bounds::Seconds(100, 3_600_000)),
    at_start("heartbeat", "0.5", Bounds::Seconds(50, 60_000)),
    on_reload("keys", "none", KEYS),
    on_reload("ftok", "native", Bounds::OneOf(&["native", "path"])),
    on_reload("shm_noreserve", "dipc", Bounds::OneOf(&["dipc", "local"])),
    on_reload(
        "home",
        "creator",
        Bounds::Described("creator, referee, or the number of a node from 1 to 64"),
    ),
    on_reload("send", "strict", Bounds::Described("strict, or pipelined:KEYS")),
    on_reload("queue_on_loss", "again", Bounds::OneOf(&["again", "drop"])),
    at_start("identity", "name", Bounds::OneOf(&["name", "uid", "self"])),
    on_reload(
        "root",
        "none",
        Bounds::Described("none, or at most 64 addresses separated by commas"),
    ),
    on_reload("squash", "dipcd", ACCOUNT),
    on_reload("container_identity", "refuse", Bounds::Described("refuse, or user:NAME")),
    on_reload("user_clients_max", "16384", Bounds::Number(1, 1_000_000)),
    on_reload("user_objects_max", "65536", Bounds::Number(1, 25_165_824)),
    on_reload("user_segment_bytes_max", "1T", Bounds::Bytes(4096, 1 << 50)),
    at_start("trap", "auto", Bounds::OneOf(&["auto", "userfaultfd", "mprotect"])),
    at_start("kernel_faults", "dipc-faults", GROUP),
    on_reload("lost_page", "sigbus", Bounds::OneOf(&["sigbus", "stale"])),
    at_start(
        "metrics",
        "none",
        Bounds::Described("none, a loopback address:port, or an absolute path"),
    ),
    at_start(
        "mailbox",
        "none",
        Bounds::Described("none, or NUMBER KBYTES PORT PACKET_KBYTES, such as 8 64 7777 4"),
    ),
];

/// Entries that a `[program PATH]` section may hold.
pub const PROGRAM_ENTRIES: [&str; 3] = ["keys", "ftok", "shm_noreserve"];

/// The entry of a name.
pub fn find(name: &str) -> Option<&'static Entry> {
    ENTRIES.iter().find(|entry| entry.name == name)
}
