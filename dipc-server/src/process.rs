//! Which process: its pid, when it started, and on which machine that means something.
//!
//! A pid alone may have been given to another process since. Pids of another boot, another machine
//! or another pid namespace say nothing here, so those three go into one number that differs.
#![forbid(unsafe_code)]

use std::fs;
use std::io;

/// One process, told from every other one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Process {
    /// The machine, its boot and the pid namespace, see [`machine`].
    pub machine: u64,
    /// Its pid there.
    pub pid: u32,
    /// When it started, in clock ticks since that boot (proc_pid_stat(5), field 22).
    pub started: u64,
}

impl Process {
    /// This one.
    pub fn this() -> io::Result<Self> {
        let pid = std::process::id();
        Ok(Self { machine: machine()?, pid, started: started(pid)? })
    }

    /// Whether it runs on this machine. One that waits only to be reaped does not.
    pub fn runs_here(&self) -> bool {
        machine().is_ok_and(|machine| machine == self.machine)
            && started(self.pid).is_ok_and(|started| started == self.started)
    }
}

/// A number for this machine, this boot and this pid namespace.
pub fn machine() -> io::Result<u64> {
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    let namespace = fs::read_link("/proc/self/ns/pid")?;
    let text = format!("{} {}", boot.trim(), namespace.display());
    Ok(fnv1a(text.as_bytes()))
}

fn started(pid: u32) -> io::Result<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    start_field(&stat).ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))
}

/// Field 22 of a stat line, if its process has not ended. The name, field 2, may hold spaces and
/// parentheses: what follows the last one is regular.
fn start_field(stat: &str) -> Option<u64> {
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_ascii_whitespace();
    let state = fields.next()?;
    if matches!(state, "Z" | "X" | "x") {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

/// The Fowler-Noll-Vo hash, 64 bits.
fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, &byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_runs() {
        let this = Process::this().unwrap();
        assert!(this.runs_here());
        assert!(!Process { started: this.started + 1, ..this }.runs_here());
        assert!(!Process { machine: !this.machine, ..this }.runs_here());
    }

    #[test]
    fn a_name_with_parentheses() {
        let rest = "1 1 1 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 98765 0";
        assert_eq!(start_field(&format!("12 (a) b (c)) S {rest}")), Some(98765));
        assert_eq!(start_field(&format!("12 (gone) Z {rest}")), None);
        assert_eq!(start_field("12"), None);
    }
}
