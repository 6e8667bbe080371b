//! What follows from the machines' decisions and must not be done under a segment's lock: lines in
//! the log, goodbyes and new beginnings, questions to other nodes. One thread does it, in order.
#![forbid(unsafe_code)]

use std::fs;
use std::io;
use std::sync::Arc;

use dipc_wire::ids::ObjectId;
use dipc_wire::keeper::{Held, SegmentFile};
use dipc_wire::memory::Replica;

use super::pager::shared::Note;
use super::records::CopyRecords;
use super::recover::caller_name;
use super::{alone, attach, control, ends};
use crate::daemon::Daemon;

/// Does errands until the daemon ends.
pub fn run(daemon: &Arc<Daemon>) {
    let Some(notes) = daemon.memory.notes.lock().take() else { return };
    for note in notes {
        do_one(daemon, note);
    }
}

fn do_one(daemon: &Arc<Daemon>, note: Note) {
    match note {
        Note::PageLost { id, page, owner } => {
            tracing::warn!(op = "lost", %id, page = page.0, replica = owner.0,
                "its only copy was there");
        }
        Note::Broken { id, node, why } => {
            tracing::warn!(op = "page", peer = %node, %id, why, "its link is closed");
        }
        Note::Failed { id, step, error } => {
            tracing::error!(op = "page", %id, ?step, %error);
        }
        Note::Unread { id, error } => tracing::error!(op = "page", %id, %error),
        Note::Gone { id, .. } => {
            control::delete_if_unused(daemon, id);
            alone::go_native(&daemon.memory, id);
        }
        Note::Void { id, replica } => attach::again(daemon, id, replica),
        Note::Left { id, replica } => forget_replica(daemon, id, replica),
        Note::GivenUp { id, replica } => {
            tracing::warn!(op = "leave", %id, replica = replica.0,
                "its home does not come back: what it alone had is given up");
            forget_replica(daemon, id, replica);
        }
        Note::Ended => ends::note_ends(daemon),
        Note::Unused { id } => {
            control::delete_if_unused(daemon, id);
            daemon.memory.settle(id);
        }
        Note::Orphan { fault } => daemon.memory.families().refuse(&fault),
    }
}

/// Home knows the replica no more, and nobody needs it.
pub(super) fn forget_replica(daemon: &Daemon, id: ObjectId, number: Replica) {
    if let Err(error) = left(daemon, id, number) {
        tracing::error!(op = "leave", %id, %error);
    }
}

/// Nothing of the replica is kept.
fn left(daemon: &Daemon, id: ObjectId, number: Replica) -> io::Result<()> {
    let memory = &daemon.memory;
    let Some(segment) = memory.find(id) else { return Ok(()) };
    memory.shared.timers.forget(segment.lock().machine(number));
    memory.drop_file(SegmentFile { id, home: segment.home, replica: number });
    let dir = memory.homes.dir_of(id);
    let removed = remove_if_there(&dir.join(CopyRecords::file_name(number)))
        .and(remove_if_there(&dir.join(caller_name(number))));
    let mut locked = segment.lock();
    let failed = match locked.state.replicas.remove(&number) {
        // Nobody will serve them any more: a hole must not be taken for zeros.
        Some(mut side) if !side.file.mappings.attachments().is_empty() => side.file.fail_all(),
        _ => Ok(()),
    };
    let unused = locked.state.replicas.is_empty() && locked.state.home.is_none();
    if unused && memory.homes.view(id).is_none() {
        // Under the lock: who attaches just now waits until it is gone, and makes it anew.
        let _ = fs::remove_dir_all(dir);
    }
    locked.wake_all();
    drop(locked);
    memory.forget(id);
    removed.and(failed)
}

/// The same file under the number of another replica.
pub(super) fn rename_file(
    daemon: &Daemon,
    from: SegmentFile,
    to: SegmentFile,
    file: &super::files::ReplicaFile,
) {
    let keep = &daemon.memory.keep;
    keep.hold(Held::File(to), file.content());
    keep.hold(Held::Aside(to), file.aside());
    daemon.memory.drop_file(from);
}

fn remove_if_there(path: &std::path::Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
