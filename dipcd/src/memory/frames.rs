//! The page protocol as it comes in: the link's reader thread hands each frame to the machine it
//! is for, if the sender may speak of it and its content is as long as it must be.
#![forbid(unsafe_code)]

use std::sync::Arc;

use dipc_core::{directory, replica};
use dipc_wire::ids::{NodeId, ObjectId};
use dipc_wire::memory::{PageNo, Refusal, Replica, ToHome, ToReplica};
use dipc_wire::peer::{PeerFrame, Piece};

use super::node::Memory;
use super::pager::content::{Bad, Contents};
use super::pager::node_file::NodeFile;
use super::pager::segment::{Segment, forget_parts};
use crate::links::Link;

impl Memory {
    /// A replica of node `from` says something to a segment of this home.
    pub fn to_home(
        &self,
        from: NodeId,
        link: &Arc<Link>,
        (id, replica): (ObjectId, Replica),
        frame: ToHome,
        raw: &[u8],
    ) {
        let Some(segment) = self.find(id) else {
            return stranger(link, id, replica, &frame);
        };
        let mut locked = segment.lock();
        if !locked.is_by(from, link) {
            return;
        }
        let Some(home) = &locked.state.home else {
            return stranger(link, id, replica, &frame);
        };
        if home.holders.get(&replica).is_none_or(|holder| holder.node != from) {
            return stranger(link, id, replica, &frame);
        }
        if let ToHome::Part { page, offset } = frame {
            let file = locked.state.home.as_mut().map(|home| &mut home.file);
            return part(&segment, file, link, from, (page, offset), raw);
        }
        match Contents::to_home(&segment.geometry, &frame, raw) {
            Ok(contents) => {
                locked.step_home(directory::Event::Frame { from: replica, frame }, &contents);
                let file = locked.state.home.as_mut().map(|home| &mut home.file);
                forget_parts(file, &contents);
            }
            Err(bad) => broken(link, from, id, bad),
        }
    }

    /// The home of a segment says something to a replica of this node.
    pub fn to_replica(
        &self,
        from: NodeId,
        link: &Arc<Link>,
        (id, number): (ObjectId, Replica),
        frame: ToReplica,
        raw: &[u8],
    ) {
        let segment = self.find(id).filter(|segment| segment.home == from);
        let Some(segment) = segment else {
            return farewell(link, id, number, &frame);
        };
        let mut locked = segment.lock();
        if !locked.is_by(from, link) {
            return;
        }
        let Some(side) = locked.state.replicas.get_mut(&number) else {
            return farewell(link, id, number, &frame);
        };
        if let ToReplica::AckPlease { .. } = frame {
            return link.flush();
        }
        if let ToReplica::Part { page, offset } = frame {
            return part(&segment, Some(&mut side.file), link, from, (page, offset), raw);
        }
        match Contents::to_replica(&segment.geometry, &frame, raw) {
            Ok(contents) => {
                locked.step_replica(number, replica::Event::Frame(frame), &contents);
                let file = locked.state.replicas.get_mut(&number).map(|side| &mut side.file);
                forget_parts(file, &contents);
            }
            Err(bad) => broken(link, from, id, bad),
        }
    }

    /// A link is up: it is the machines' from now on.
    pub fn linked(&self, node: NodeId, link: &Arc<Link>) {
        for segment in self.all() {
            let mut locked = segment.lock();
            if locked.concerns(node) {
                locked.use_link(node, link);
            }
        }
    }

    /// A link has ended.
    pub fn unlinked(&self, node: NodeId, link: &Arc<Link>) {
        for segment in self.all() {
            segment.lock().unlink(node, Some(link));
        }
    }
}

/// What a replica says that this home does not know: it is to forget what it has.
fn stranger(link: &Link, id: ObjectId, replica: Replica, frame: &ToHome) {
    let answer = match frame {
        ToHome::Report { piece: Piece::Last, .. } | ToHome::Leave => ToReplica::Left,
        ToHome::Fault { first, .. } => ToReplica::Refused { page: *first, refusal: Refusal::Gone },
        _ => return,
    };
    link.post(&PeerFrame::ToReplica { id, replica, frame: answer });
}

/// What a home says to a replica that is none of ours: it need not count on it.
fn farewell(link: &Link, id: ObjectId, replica: Replica, frame: &ToReplica) {
    if matches!(frame, ToReplica::ReportPlease) {
        let report = ToHome::Report { pages: Vec::new(), piece: Piece::Last };
        link.post(&PeerFrame::ToHome { id, replica, frame: report });
        link.post(&PeerFrame::ToHome { id, replica, frame: ToHome::Leave });
    }
}

/// A part of a unit that is too long for one frame.
fn part(
    segment: &Segment,
    file: Option<&mut NodeFile>,
    link: &Link,
    from: NodeId,
    part: (PageNo, u64),
    raw: &[u8],
) {
    if let Some(bad) = segment.stage(file, part, raw) {
        broken(link, from, segment.id, bad);
    }
}

/// A frame that no dipcd of ours sends. The link is closed, so it is said once.
fn broken(link: &Link, from: NodeId, id: ObjectId, bad: Bad) {
    tracing::warn!(op = "page", peer = %from, %id, ?bad, "its link is closed");
    link.close();
}
