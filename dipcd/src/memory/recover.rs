//! After a restart: the segments, files and traps that an earlier dipcd left with the keeper and on
//! tmpfs are served again, before any call and any link.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;

use dipc_wire::codec::{decode_packet, encode_packet};
use dipc_wire::keeper::{Held, SegmentFile};
use dipc_wire::memory::Replica;
use dipc_wire::peer::Caller;

use super::files::ReplicaFile;
use super::geometry::Geometry;
use super::pager::bounds::Bounds;
use super::pager::node_file::NodeFile;
use crate::daemon::Daemon;
use crate::disk::make_private_dir;
use crate::keep::Found;

/// How a segment of another home is cut, in its directory.
const GEOMETRY: &str = "geometry";

/// Goes on with what was found.
pub fn recover(daemon: &Daemon, found: &Found) -> io::Result<()> {
    let (memory, me) = (&daemon.memory, daemon.links.me());
    let mut contents: BTreeMap<SegmentFile, Arc<OwnedFd>> = BTreeMap::new();
    let mut asides = contents.clone();
    let mut traps = Vec::new();
    for (name, fd) in found {
        match name {
            Held::File(file) => drop(contents.insert(*file, fd.clone())),
            Held::Aside(file) => drop(asides.insert(*file, fd.clone())),
            Held::Trap { .. } => traps.push((name.clone(), fd.clone())),
            _ => {}
        }
    }
    // Home's own file comes first: its number is 0.
    let mut files = Vec::new();
    for (name, content) in contents {
        let adopted = asides.remove(&name).map(|aside| ReplicaFile::adopt(name, content, aside));
        let adopted =
            adopted.unwrap_or_else(|| Err(io::Error::other("the file beside it is missing")));
        match adopted.and_then(|file| watched(daemon, file)) {
            Ok(file) => files.push(file),
            Err(error) => forget(daemon, name, &error),
        }
    }
    asides.keys().for_each(|name| memory.drop_file(*name));
    memory.families().take_over(traps, || {
        for file in files {
            let name = file.file.name();
            if let Err(error) = open(daemon, file) {
                forget(daemon, name, &error);
            }
        }
    })?;
    // Some may have ended meanwhile, and whoever ended them has said so or not.
    let homes = memory.all().into_iter().map(|segment| segment.home);
    let homes: std::collections::BTreeSet<_> = homes.filter(|home| *home != me).collect();
    homes.iter().for_each(|home| memory.look_at_lease(*home));
    memory.all().iter().for_each(|segment| memory.settle(segment.id));
    Ok(())
}

fn forget(daemon: &Daemon, name: SegmentFile, error: &io::Error) {
    tracing::error!(op = "recover", id = %name.id, replica = name.replica.0, %error);
    daemon.memory.drop_file(name);
}

/// A file, and what is watched in it wherever it is mapped.
fn watched(daemon: &Daemon, file: ReplicaFile) -> io::Result<NodeFile> {
    let (memory, name, file) = (&daemon.memory, file.name(), Arc::new(file));
    let geometry = match memory.homes.geometry(name.id) {
        Some(geometry) if name.home == daemon.links.me() => geometry,
        _ if name.home == daemon.links.me() => return Err(io::Error::other("its segment is gone")),
        _ => read_geometry(&memory.homes.dir_of(name.id))?,
    };
    let mappings = memory.families().mappings(file.clone());
    if name.replica != Replica::HOME {
        mappings.watch_all();
    } else if !memory.homes.replicas(name.id).is_empty() {
        mappings.watch();
    }
    Ok(NodeFile::new(file, mappings, geometry))
}

/// Starts the machine of a file, which does what may have been left undone.
fn open(daemon: &Daemon, file: NodeFile) -> io::Result<()> {
    let (memory, name, bounds) = (&daemon.memory, file.file.name(), Bounds::of(&daemon.config()));
    let segment = memory.elsewhere(name.id, name.home, file.geometry());
    if name.replica == Replica::HOME {
        return memory.open_home(&segment, file, &bounds);
    }
    let mut locked = segment.lock();
    memory.open_replica(&mut locked, &segment, name.replica, file, &bounds)?;
    if let Some(side) = locked.state.replicas.get_mut(&name.replica) {
        side.caller = read_caller(&memory.homes.dir_of(name.id), name.replica);
    }
    locked.begin_links(name.replica, None);
    Ok(())
}

/// Keeps how a segment of another home is cut.
pub fn write_geometry(dir: &Path, geometry: &Geometry) -> io::Result<()> {
    make_private_dir(dir)?;
    let numbers = (geometry.file_bytes, geometry.unit_bytes);
    fs::write(dir.join(GEOMETRY), encode_packet(&numbers))
}

/// In whose name a replica is attached again, in the segment's directory.
pub fn caller_name(replica: Replica) -> String {
    format!("caller-{}", replica.0)
}

/// Keeps in whose name a replica is attached again when its home has forgotten it.
pub fn write_caller(dir: &Path, replica: Replica, caller: &(Caller, i32)) {
    // Without it the programs get SIGBUS, should all that ever happen.
    if let Err(error) = fs::write(dir.join(caller_name(replica)), encode_packet(caller)) {
        tracing::warn!(op = "attach", dir = %dir.display(), %error);
    }
}

fn read_caller(dir: &Path, replica: Replica) -> Option<(Caller, i32)> {
    decode_packet(&fs::read(dir.join(caller_name(replica))).ok()?).ok()
}

/// How a segment of another home is cut.
pub fn read_geometry(dir: &Path) -> io::Result<Geometry> {
    let bytes = fs::read(dir.join(GEOMETRY))?;
    let (file_bytes, unit_bytes) = decode_packet(&bytes).map_err(io::Error::other)?;
    let geometry = Geometry::of(file_bytes, unit_bytes);
    geometry.ok_or_else(|| io::Error::other("its geometry makes no sense"))
}
