//! How many attachments a segment has: counted on every node when somebody wants to know, for what
//! was said of them before may be wrong by now.
#![forbid(unsafe_code)]

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use dipc_wire::ids::{NodeId, ObjectId};
use dipc_wire::peer::PeerFrame;
use dipc_wire::sysv::SysvError;

use super::ends;
use super::families::Mappings;
use super::node::mappings_of;
use crate::clock::Deadline;
use crate::daemon::Daemon;
use crate::links::Unanswered;

/// How long a node may take to count.
const WAIT: Duration = Duration::from_secs(10);

/// Attachments on this node. One that is under way counts when there is no other. Whoever has ended
/// is noted before.
pub fn count_here(daemon: &Daemon, id: ObjectId) -> u64 {
    let memory = &daemon.memory;
    let Some(segment) = memory.find(id) else { return u64::from(memory.attaches(id)) };
    let files = mappings_of(&segment);
    for mappings in files.values() {
        memory.families().look_for_ends(mappings);
    }
    ends::note_ends(daemon);
    let count = |mappings: &Arc<Mappings>| {
        memory.families().count(mappings).unwrap_or_else(|error| {
            tracing::error!(op = "count", %id, %error);
            // As many as we were told of.
            mappings.attachments().len() as u64
        })
    };
    let count: u64 = files.values().map(count).sum();
    if count == 0 { u64::from(memory.attaches(id)) } else { count }
}

/// Whether a program of this node is seen to have a segment attached. To know that nobody has is
/// much more work: every end of a forked child that shares a removed segment would count the
/// cluster.
pub(super) fn is_attached_here(daemon: &Daemon, id: ObjectId) -> bool {
    let memory = &daemon.memory;
    let Some(segment) = memory.find(id) else { return false };
    mappings_of(&segment).values().any(|mappings| memory.families().is_seen_mapped(mappings))
}

/// At home: attachments in the cluster; those of a lost node count no more. All nodes are asked at
/// once.
pub(super) fn count_all(daemon: &Daemon, id: ObjectId) -> Result<u64, SysvError> {
    let me = daemon.links.me();
    let holders = daemon.home.segments.replicas(id);
    let mut nodes: Vec<NodeId> = holders.values().map(|holder| holder.node).collect();
    nodes.sort_unstable();
    nodes.dedup();
    nodes.retain(|node| *node != me);
    let deadline = Deadline::after(Some(WAIT));
    let ask = |node: NodeId| count_there(daemon, node, id, deadline);
    thread::scope(|scope| {
        let start = |node: &NodeId| {
            let node = *node;
            // One that cannot be asked beside the others is asked after them.
            thread::Builder::new().spawn_scoped(scope, move || ask(node)).map_err(|_| node)
        };
        let asked: Vec<_> = nodes.iter().map(start).collect();
        let counts = asked.into_iter().map(|asked| match asked {
            Ok(thread) => thread.join().unwrap_or(Err(SysvError::EIO)),
            Err(node) => ask(node),
        });
        counts.sum::<Result<u64, SysvError>>().map(|there| there + count_here(daemon, id))
    })
}

fn count_there(
    daemon: &Daemon,
    node: NodeId,
    id: ObjectId,
    deadline: Deadline,
) -> Result<u64, SysvError> {
    match daemon.links.ask(node, deadline, |req| PeerFrame::Count { req, id }) {
        Ok(PeerFrame::Counted { attachments, .. }) => Ok(attachments),
        Ok(_) => Err(SysvError::EIO),
        Err(Unanswered::Lost) => Ok(0),
        Err(Unanswered::TimedOut) => Err(SysvError::ETIMEDOUT),
    }
}
