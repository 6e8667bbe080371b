//! Whose pid the pid of a stand-in stands for: the kernel shows the stand-in in `lspid`, `lrpid`
//! and `GETPID`, and programs are to see the process on its own node.
//!
//! A file in `state_dir` with one record a pid. Each stand-in writes its own as it starts; dipcd
//! and all stand-ins read. A record is believed unless a process with another start time lives
//! under that pid; so it outlives the stand-in, as the kernel's pid does.
#![forbid(unsafe_code)]

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use dipc_wire::ids::{ClientId, NodeId};

use crate::objects::check_sum;
use crate::sys::credentials::start_time;

const RECORD_BYTES: usize = 32;
const CHECKED_BYTES: usize = RECORD_BYTES - 8;
const FILE_NAME: &str = "pids";

/// The table.
#[derive(Debug)]
pub struct Pids {
    file: File,
}

impl Pids {
    /// Opens the table in `state_dir`, or makes an empty one.
    pub fn open(state_dir: &Path) -> io::Result<Pids> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        Ok(Pids { file: options.open(state_dir.join(FILE_NAME))? })
    }

    /// The process `pid`, started at `started`, stands for `client`.
    pub fn write(&self, pid: u32, started: u64, client: ClientId) -> io::Result<()> {
        let mut bytes = [0; RECORD_BYTES];
        bytes[0] = client.node.number();
        bytes[4..8].copy_from_slice(&client.pid.to_ne_bytes());
        bytes[8..16].copy_from_slice(&client.started.to_ne_bytes());
        bytes[16..24].copy_from_slice(&started.to_ne_bytes());
        let sum = check_sum(&bytes[..CHECKED_BYTES]);
        bytes[CHECKED_BYTES..].copy_from_slice(&sum.to_ne_bytes());
        self.file.write_all_at(&bytes, offset(pid))
    }

    /// For whom the process that has, or last had, this pid stands; `None` if it is no stand-in.
    pub fn find(&self, pid: u32) -> Option<ClientId> {
        let mut bytes = [0; RECORD_BYTES];
        // Behind the end of the file there is no record.
        self.file.read_exact_at(&mut bytes, offset(pid)).ok()?;
        let sum = u64::from_ne_bytes(*bytes.last_chunk()?);
        if check_sum(&bytes[..CHECKED_BYTES]) != sum {
            return None;
        }
        let started = u64::from_ne_bytes(*bytes[16..].first_chunk()?);
        if start_time(pid).is_some_and(|living| living != started) {
            return None;
        }
        Some(ClientId {
            node: NodeId::new(bytes[0])?,
            pid: u32::from_ne_bytes(*bytes[4..].first_chunk()?),
            started: u64::from_ne_bytes(*bytes[8..].first_chunk()?),
        })
    }

    /// A pid from the kernel as programs are to see it: a stand-in's becomes its client's.
    pub fn on_its_node(&self, pid: i32) -> i32 {
        let client = u32::try_from(pid).ok().filter(|&pid| pid != 0).and_then(|p| self.find(p));
        client.and_then(|client| i32::try_from(client.pid).ok()).unwrap_or(pid)
    }
}

fn offset(pid: u32) -> u64 {
    u64::from(pid) * RECORD_BYTES as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stand_ins_pid_becomes_its_clients_unless_another_process_has_it() {
        let dir = tempfile::tempdir().unwrap();
        let pids = Pids::open(dir.path()).unwrap();
        let client = ClientId { node: NodeId::new(3).unwrap(), pid: 4711, started: 99 };
        let own = std::process::id();
        let started = start_time(own).unwrap();
        assert_eq!(pids.find(own), None);
        pids.write(own, started, client).unwrap();
        assert_eq!(pids.find(own), Some(client));
        assert_eq!(pids.on_its_node(own as i32), 4711);
        pids.write(own, started + 1, client).unwrap();
        assert_eq!(pids.find(own), None);
        assert_eq!((pids.on_its_node(own as i32), pids.on_its_node(0)), (own as i32, 0));
        let nobody = 4_194_300;
        pids.write(nobody, 5, client).unwrap();
        assert_eq!(pids.find(nobody), Some(client), "it has ended, and the kernel still shows it");
    }
}
