//! What must survive a reboot, in `lib_dir`: this node's number, its own key, its incarnation, the
//! epoch of the referee it last accepted; and, at the referee, the referee's record.
//!
//! Each is a small text file, replaced whole: written beside, fsynced, renamed, the directory
//! fsynced. A file that cannot be understood stops dipcd: guessing here could make a second home.
#![forbid(unsafe_code)]

use std::fs::{self, File};
use std::io::{self, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use dipc_core::referee::Record;
use dipc_wire::ids::{Epoch, Incarnation, NodeId};
use dipc_wire::noise::NodeKey;
use dipc_wire::peer::RecordCopy;

use crate::config::key;

/// The directory, open for one dipcd.
#[derive(Debug, Clone)]
pub struct LibDir {
    path: PathBuf,
}

impl LibDir {
    /// Uses `path`, made with mode 0700 if it is not there.
    pub fn open(path: &Path) -> io::Result<LibDir> {
        make_private_dir(path)?;
        Ok(LibDir { path: path.to_owned() })
    }

    /// The same without making it: what is not there is empty.
    pub fn existing(path: &Path) -> LibDir {
        LibDir { path: path.to_owned() }
    }

    /// Begins a life: one more than the last, and never less than the clock, so that a node whose
    /// directory was lost does not seem older than it was.
    pub fn next_incarnation(&self) -> io::Result<Incarnation> {
        let last = self.read("incarnation")?.unwrap_or(0);
        let clock = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let next = clock.max(last + 1);
        self.write("incarnation", next.to_string().as_bytes())?;
        Ok(Incarnation(next))
    }

    /// The number the referee gave us, [`NodeId::NONE`] before that.
    pub fn node(&self) -> io::Result<NodeId> {
        let number = self.read("node")?.unwrap_or(0);
        let node = u8::try_from(number).ok().and_then(NodeId::new);
        node.ok_or_else(|| self.bad("node", &format!("{number} is no node's number")))
    }

    /// Keeps our number.
    pub fn set_node(&self, node: NodeId) -> io::Result<()> {
        self.write("node", node.to_string().as_bytes())
    }

    /// This node's own key, made at its first start in `node.key`. What others may know of it
    /// stands
    /// beside it in `node.pub`, for their dipc.allow.
    pub fn node_key(&self) -> io::Result<NodeKey> {
        let file = self.path.join("node.key");
        match key::make(&file) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        let own = NodeKey::new(key::read(&file).map_err(io::Error::other)?);
        let public = format!("{}\n", own.public());
        if fs::read_to_string(self.path.join("node.pub")).ok().as_ref() != Some(&public) {
            self.write("node.pub", public.as_bytes())?;
        }
        Ok(own)
    }

    /// The reign we last accepted.
    pub fn epoch(&self) -> io::Result<Epoch> {
        Ok(Epoch(self.read("epoch")?.unwrap_or(0)))
    }

    /// Keeps the reign we accepted.
    pub fn set_epoch(&self, epoch: Epoch) -> io::Result<()> {
        self.write("epoch", epoch.0.to_string().as_bytes())
    }

    /// The referee's record; a new one if this node was never referee.
    pub fn referee_record(&self) -> io::Result<Record> {
        match fs::read(self.path.join("referee")) {
            Ok(bytes) => dipc_wire::codec::decode_packet(&bytes)
                .map_err(|error| self.bad("referee", &error.to_string())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Record::default()),
            Err(error) => Err(self.named("referee", &error)),
        }
    }

    /// Keeps the referee's record.
    pub fn set_referee_record(&self, record: &Record) -> io::Result<()> {
        self.write("referee", &dipc_wire::codec::encode_packet(record))
    }

    /// What the referee has told of its record; an empty one if it never did.
    pub fn record_copy(&self) -> io::Result<RecordCopy> {
        match fs::read(self.path.join("record")) {
            Ok(bytes) => dipc_wire::codec::decode_packet(&bytes)
                .map_err(|error| self.bad("record", &error.to_string())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(RecordCopy::default()),
            Err(error) => Err(self.named("record", &error)),
        }
    }

    /// Keeps what the referee has told of its record.
    pub fn set_record_copy(&self, copy: &RecordCopy) -> io::Result<()> {
        self.write("record", &dipc_wire::codec::encode_packet(copy))
    }

    /// Where the referee is that has replaced the one in dipc.conf.
    pub fn succession(&self) -> io::Result<Option<SocketAddr>> {
        match fs::read_to_string(self.path.join("succession")) {
            Ok(text) => match text.trim().parse() {
                Ok(referee) => Ok(Some(referee)),
                Err(_) => Err(self.bad("succession", "expected an address with its port")),
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(self.named("succession", &error)),
        }
    }

    /// Keeps where the new referee is.
    pub fn set_succession(&self, referee: SocketAddr) -> io::Result<()> {
        self.write("succession", format!("{referee}\n").as_bytes())
    }

    /// dipc.conf names the new referee now.
    pub fn end_succession(&self) -> io::Result<()> {
        fs::remove_file(self.path.join("succession"))
            .map_err(|error| self.named("succession", &error))
    }

    fn read(&self, name: &str) -> io::Result<Option<u64>> {
        match fs::read_to_string(self.path.join(name)) {
            Ok(text) => match text.trim().parse() {
                Ok(number) => Ok(Some(number)),
                Err(_) => Err(self.bad(name, "expected a number")),
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(self.named(name, &error)),
        }
    }

    fn write(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let beside = self.path.join(format!("{name}.new"));
        let written = File::create(&beside).and_then(|mut file| {
            file.write_all(bytes)?;
            file.sync_all()?;
            fs::rename(&beside, self.path.join(name))?;
            File::open(&self.path)?.sync_all()
        });
        written.map_err(|error| self.named(name, &error))
    }

    fn bad(&self, name: &str, what: &str) -> io::Error {
        let path = self.path.join(name);
        io::Error::new(io::ErrorKind::InvalidData, format!("{}: {what}", path.display()))
    }

    fn named(&self, name: &str, error: &io::Error) -> io::Error {
        io::Error::new(error.kind(), format!("{}: {error}", self.path.join(name).display()))
    }
}

/// Makes a directory, and those above it, that only we may enter; one that is there stays.
pub fn make_private_dir(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_again_and_incarnations_grow() {
        let dir = tempfile::tempdir().unwrap();
        let lib = LibDir::open(dir.path()).unwrap();
        assert_eq!((lib.node().unwrap(), lib.epoch().unwrap()), (NodeId::NONE, Epoch(0)));
        let first = lib.next_incarnation().unwrap();
        assert!(lib.next_incarnation().unwrap() > first);
        let node = NodeId::new(7).unwrap();
        lib.set_node(node).unwrap();
        lib.set_epoch(Epoch(3)).unwrap();
        assert_eq!((lib.node().unwrap(), lib.epoch().unwrap()), (node, Epoch(3)));
    }

    #[test]
    fn a_node_keeps_its_key_and_shows_one_half() {
        let dir = tempfile::tempdir().unwrap();
        let lib = LibDir::open(dir.path()).unwrap();
        let own = lib.node_key().unwrap();
        assert_eq!(lib.node_key().unwrap(), own);
        assert_eq!(key::read_public(&dir.path().join("node.pub")), Ok(own.public()));
        assert!(lib.node_key().unwrap().public().0 != own.private().0);
    }

    #[test]
    fn a_file_that_is_not_understood_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let lib = LibDir::open(dir.path()).unwrap();
        fs::write(dir.path().join("node"), "seven").unwrap();
        let error = lib.node().unwrap_err().to_string();
        assert!(error.contains("node: expected a number"), "{error}");
    }
}
