//! The ends of attachments, said to their segment's home: `shm_dtime`, `shm_lpid`, and deletion at
//! the last one.
//!
//! What the kernel shows of its own segments holds here too: whoever has detached goes on when home
//! has noted it, and a process that was waited for has left nothing behind. Nobody says that he is
//! about to exit, exec or be killed; so whoever counts looks first who is still there, and what he
//! finds is noted, or on its way, before he answers.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::sync::Arc;

use dipc_wire::ids::{ClientId, NodeId, ObjectId};
use dipc_wire::peer::PeerFrame;

use super::control;
use super::families::{Ended, Mappings};
use super::pager::shared::Note;
use crate::clock::Deadline;
use crate::daemon::Daemon;

/// These files have lost an attachment, as their program wanted: it goes on when their homes know,
/// and who has none left leaves.
pub(super) fn detached(daemon: &Arc<Daemon>, client: ClientId, lost: &[Arc<Mappings>]) {
    for (id, home) in segments_of(lost) {
        if home == daemon.links.me() {
            detached_at_home(daemon, id, client);
        } else {
            tell(daemon, home, id, client);
        }
        daemon.memory.settle(id);
    }
}

/// At home: a program of some node has detached.
pub(super) fn detached_at_home(daemon: &Arc<Daemon>, id: ObjectId, client: ClientId) {
    daemon.home.segments.detach(id, pid_of(client));
    control::delete_if_unused(daemon, id);
}

/// At home: a program of some node has ended. Others wait for the thread that brings this.
pub fn ended_elsewhere(daemon: &Daemon, from: NodeId, id: ObjectId, client: ClientId) {
    if client.node != from {
        return tracing::warn!(op = "frame", peer = %from, "about another node's client; dropped");
    }
    daemon.home.segments.detach(id, pid_of(client));
    daemon.memory.note(Note::Unused { id });
}

/// A home that is not linked hears nothing, and counts by itself when it is asked; one that is
/// silent is lost before this has waited longer.
fn tell(daemon: &Daemon, home: NodeId, id: ObjectId, client: ClientId) {
    if daemon.links.link(home).is_none() {
        return;
    }
    let deadline = Deadline::after(Some(daemon.config().liveness.node_timeout));
    let told = daemon.links.ask(home, deadline, |req| PeerFrame::Detach { req, id, client });
    if let Err(unanswered) = told {
        tracing::debug!(op = "detach", peer = %home, %id, ?unanswered);
    }
}

/// Notes who has ended on this node; when it returns, all are noted whose end was said before.
/// Other homes are told of theirs, before whatever is posted to them next.
pub(super) fn note_ends(daemon: &Daemon) {
    let memory = &daemon.memory;
    let _one_at_a_time = memory.noting.lock();
    let ends = std::mem::take(&mut *memory.ends.lock());
    for ended in &ends {
        note_end(daemon, ended);
    }
}

fn note_end(daemon: &Daemon, ended: &Ended) {
    let memory = &daemon.memory;
    let me = daemon.links.me();
    let given_up: Vec<_> =
        memory.pending.lock().extract_if(|_, pending| pending.is_of(ended.mm)).collect();
    drop(given_up);
    let pid = ended.process.as_ref().map_or(0, |process| process.pid);
    let client = ClientId { node: me, pid, started: 0 };
    for (id, home) in segments_of(&ended.mappings) {
        if home == me {
            memory.homes.detach(id, pid_of(client));
        } else {
            daemon.links.post(home, PeerFrame::Detached { id, client });
        }
        memory.note(Note::Unused { id });
    }
}

/// The segments of some files, each once, and their homes.
fn segments_of(files: &[Arc<Mappings>]) -> BTreeMap<ObjectId, NodeId> {
    let names = files.iter().map(|mappings| mappings.file().name());
    names.map(|name| (name.id, name.home)).collect()
}

/// As System V shows it; nothing of a child that ended before anybody saw it.
fn pid_of(client: ClientId) -> Option<i32> {
    i32::try_from(client.pid).ok().filter(|pid| *pid != 0)
}
