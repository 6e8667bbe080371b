//! `shmctl` on one segment, and its end: attachments are counted on every node when somebody wants
//! to know, and the last detach in the cluster deletes what `IPC_RMID` has marked.
#![forbid(unsafe_code)]

use std::fs;
use std::sync::Arc;
use std::time::Duration;

use dipc_core::{directory, replica};
use dipc_wire::ids::{NodeId, ObjectId};
use dipc_wire::keeper::{Account, SegmentFile};
use dipc_wire::memory::{Replica, ToReplica};
use dipc_wire::peer::{Caller, PeerFrame};
use dipc_wire::sysv::{SegmentControl, SegmentStat, SysvError};

use super::attach::home_of;
use super::count::{count_all, is_attached_here};
use super::node::Memory;
use super::pager::bounds::Bounds;
use super::pager::content::Contents;
use crate::accounts::own_account;
use crate::clock::Deadline;
use crate::daemon::Daemon;
use crate::links::Unanswered;

/// How long homes may take to say goodbye when this dipcd ends.
const FAREWELL: Duration = Duration::from_secs(2);
/// Between two looks at whether they have.
const LOOK: Duration = Duration::from_millis(10);

/// `Call::Control`.
pub fn control(
    daemon: &Arc<Daemon>,
    caller: &Caller,
    id: ObjectId,
    control: SegmentControl,
    deadline: Deadline,
) -> Result<SegmentStat, SysvError> {
    let home = home_of(daemon, id, deadline)?;
    let control = match control {
        SegmentControl::Lock | SegmentControl::LockWithin { .. } => {
            SegmentControl::LockWithin { bytes_max: may_lock(caller) }
        }
        control => control,
    };
    if home == daemon.links.me() {
        return at_home(daemon, &own_account(caller), id, control);
    }
    let frame = |req| PeerFrame::Control { req, caller: caller.clone(), id, control };
    match daemon.links.ask(home, deadline, frame) {
        Ok(PeerFrame::Controlled { outcome, .. }) => outcome,
        Ok(_) => Err(SysvError::EIO),
        Err(Unanswered::Lost) => Err(SysvError::EIDRM),
        Err(Unanswered::TimedOut) => Err(SysvError::ETIMEDOUT),
    }
}

/// How much a caller of this node may lock: no program is believed about that.
fn may_lock(caller: &Caller) -> u64 {
    if caller.rights.ipc_lock {
        return u64::MAX;
    }
    let limits = fs::read_to_string(format!("/proc/{}/limits", caller.client.pid));
    limits.ok().and_then(|text| lockable(&text)).unwrap_or(0)
}

/// `Max locked memory        8388608              8388608              bytes`
fn lockable(limits: &str) -> Option<u64> {
    let line = limits.lines().find_map(|line| line.strip_prefix("Max locked memory"))?;
    match line.split_ascii_whitespace().next()? {
        "unlimited" => Some(u64::MAX),
        bytes => bytes.parse().ok(),
    }
}

/// At home: for an account here.
pub fn at_home(
    daemon: &Arc<Daemon>,
    account: &Account,
    id: ObjectId,
    control: SegmentControl,
) -> Result<SegmentStat, SysvError> {
    let homes = &daemon.home.segments;
    // One whose last detach is not known yet is gone already.
    let counted = delete_if_unused(daemon, id);
    let mut controlled = homes.control(id, control, account)?;
    match control {
        SegmentControl::Stat | SegmentControl::StatAny => {
            let nattch = counted.map_or_else(|| count_all(daemon, id), Ok)?;
            // Whoever counts notes who has ended.
            controlled = homes.control(id, control, account)?;
            controlled.stat.nattch = nattch;
        }
        SegmentControl::Remove => {
            if let Err(error) = daemon.home.unname(id) {
                tracing::error!(op = "remove", %id, %error);
            }
            tracing::info!(op = "remove", %id, uid = account.uid);
            daemon.tell_referee(PeerFrame::Unnamed { id });
            delete_if_unused(daemon, id);
        }
        SegmentControl::Set(_)
        | SegmentControl::Lock
        | SegmentControl::LockWithin { .. }
        | SegmentControl::Unlock => {}
    }
    Ok(controlled.stat)
}

/// Deletes a segment that is marked for it and that nobody has attached. How many attachments it
/// has, if they had to be counted for that and there are some: not if one is seen at once.
pub fn delete_if_unused(daemon: &Arc<Daemon>, id: ObjectId) -> Option<u64> {
    let homes = &daemon.home.segments;
    if homes.view(id).is_none() || !homes.is_removed(id) {
        return None;
    }
    if is_attached_here(daemon, id) {
        return None;
    }
    let admitted = homes.admissions(id);
    let count = count_all(daemon, id).ok()?;
    if count > 0 {
        return Some(count);
    }
    if let Some(segment) = daemon.memory.find(id) {
        let mut locked = segment.lock();
        // Who is admitted later finds it dead.
        if homes.admissions(id) != admitted {
            return None;
        }
        locked.state.dead = true;
    }
    delete(daemon, id);
    if let Err(error) = daemon.home.destroy(id) {
        tracing::error!(op = "delete", %id, %error);
    }
    tracing::info!(op = "delete", %id, "its last detach");
    daemon.tell_referee(PeerFrame::Removed { id });
    None
}

/// Deletes all that are marked for it and that nobody has attached: there may be room again.
pub fn delete_all_unused(daemon: &Arc<Daemon>) {
    for id in daemon.home.segments.ids() {
        delete_if_unused(daemon, id);
    }
}

/// What a segment of this home has here and on other nodes, ended: whoever still has it attached
/// gets SIGBUS.
pub fn delete(daemon: &Arc<Daemon>, id: ObjectId) {
    let memory = &daemon.memory;
    let Some(segment) = memory.find(id) else { return };
    let me = daemon.links.me();
    let mut locked = segment.lock();
    let Some(mut home) = locked.state.home.take() else { return };
    locked.state.dead = true;
    for (replica, holder) in &home.holders {
        if holder.node != me {
            locked.answer(holder.node, *replica, ToReplica::Left);
        }
    }
    let readers = std::mem::take(&mut locked.state.replicas);
    let mut files = vec![(Replica::HOME, &mut home.file)];
    let mut readers: Vec<_> = readers.into_iter().collect();
    files.extend(readers.iter_mut().map(|(number, side)| (*number, &mut side.file)));
    for (replica, file) in files {
        memory.shared.timers.forget(locked.machine(replica));
        let failed = if file.mappings.attachments().is_empty() { Ok(()) } else { file.fail_all() };
        if let Err(error) = failed {
            tracing::error!(op = "delete", %id, %error);
        }
        memory.drop_file(SegmentFile { id, home: me, replica });
    }
    locked.wake_all();
    drop(locked);
    memory.forget(id);
}

/// A replica of ours that is nothing any more: whoever has it attached gets SIGBUS. It says goodbye
/// when its home can be reached.
pub fn fail_replica(daemon: &Daemon, id: ObjectId, number: Replica) {
    let Some(segment) = daemon.memory.find(id) else { return };
    let bounds = Bounds::of(&daemon.config());
    let mut locked = segment.lock();
    let Some(side) = locked.state.replicas.get_mut(&number) else { return };
    if let Err(error) = side.fail(bounds.of_replica(&segment.geometry)) {
        tracing::error!(op = "lost", %id, %error);
    }
    locked.step_replica(number, replica::Event::Detached, &Contents::none());
    locked.wake_all();
}

/// Everything this node is home to, ended.
pub fn delete_all(daemon: &Arc<Daemon>) {
    for id in daemon.home.segments.ids() {
        delete(daemon, id);
    }
}

/// The end of this dipcd: segments of this home are deleted; replicas of others give back what they
/// have, and whoever still has them attached is as on a node that was lost.
pub fn stop(daemon: &Arc<Daemon>) {
    delete_all(daemon);
    let memory = &daemon.memory;
    for segment in memory.all() {
        let mut locked = segment.lock();
        for number in locked.state.replicas.keys().copied().collect::<Vec<_>>() {
            let side = locked.state.replicas.get(&number);
            let attached = side.map_or(0, |side| side.file.mappings.attachments().len());
            if attached > 0 {
                tracing::warn!(op = "stop", id = %segment.id, attached, "still shared: cut off");
            }
            locked.step_replica(number, replica::Event::Detached, &Contents::none());
        }
    }
    let deadline = Deadline::after(Some(FAREWELL));
    let lives = |segment: &Arc<super::pager::segment::Segment>| {
        segment.lock().state.replicas.values().any(|side| side.machine.is_some())
    };
    while memory.all().iter().any(lives) && !deadline.is_over() {
        std::thread::sleep(LOOK);
    }
    for segment in memory.all() {
        let mut locked = segment.lock();
        locked.state.dead = true;
        for side in locked.state.replicas.values_mut() {
            if let Err(error) = side.file.fail_all() {
                tracing::error!(op = "stop", id = %segment.id, %error);
            }
        }
    }
}

impl Memory {
    /// A node is lost to us: home takes back what it can of what that node had; what it was home to
    /// gives SIGBUS until it is heard of again.
    pub fn lost(&self, node: NodeId) {
        for segment in self.all() {
            let mut locked = segment.lock();
            if !locked.concerns(node) {
                continue;
            }
            locked.unlink(node, None);
            if locked.state.home.is_some() {
                locked.step_home(directory::Event::Lost { node }, &Contents::none());
                continue;
            }
            for number in locked.state.replicas.keys().copied().collect::<Vec<_>>() {
                locked.step_replica(number, replica::Event::HomeLost, &Contents::none());
            }
            locked.wake_all();
            drop(locked);
            tracing::warn!(op = "lost", peer = %node, id = %segment.id, "its home is lost");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_is_read_as_the_kernel_shows_it() {
        let line = "Max locked memory         8388608              unlimited            bytes     ";
        let text = format!("Max open files            1024   4096   files\n{line}\n");
        assert_eq!(lockable(&text), Some(8_388_608));
        assert_eq!(lockable(&text.replace("8388608", "unlimited")), Some(u64::MAX));
        assert_eq!(lockable("Max open files 1024 4096 files\n"), None);
    }
}
