//! New objects that live elsewhere than where they are asked for (`home` of dipc.conf): the
//! creator's side, and that of the node that makes them.
//!
//! ```text
//! creator ─ ClaimFor ─▶ referee ─ Granted ─▶ creator ─ Place ─▶ home ─ Made ─▶ referee
//! creator ◀── Placed ── home ◀── Confirmed | Denied ── referee
//! ```
//!
//! The leave is home's, so whatever becomes of the creator, home and referee agree. A home that is
//! not there, or not believed, makes nothing; the object then lives with its creator.
#![forbid(unsafe_code)]

use std::sync::Arc;

use dipc_wire::client::Answer;
use dipc_wire::ids::{ClaimNo, Kind, NodeId, Nonce, ObjectId, Req};
use dipc_wire::peer::{Caller, Intent, PeerFrame, Placement, Reported};
use dipc_wire::sysv::{IPC_CREAT, IPC_EXCL, SysvError};

use crate::calls::Service;
use crate::clock::Deadline;
use crate::config;
use crate::daemon::Daemon;
use crate::home::{self, Maker, Verdict, Want};
use crate::home_work;
use crate::links::Unanswered;
use crate::objects::ObjectState;

/// Another node's making of one object.
pub(crate) struct Asking<'a> {
    pub(crate) want: &'a Want,
    pub(crate) caller: &'a Caller,
    pub(crate) home: NodeId,
    pub(crate) deadline: Deadline,
}

/// Where `home` wants a new object to be; `None`: here. Segments live where they are made: their
/// creator is about to use their pages.
pub(crate) fn place_of(daemon: &Daemon, want: &Want, intent: Intent) -> Option<NodeId> {
    if intent == Intent::Find || want.kind == Kind::Segment {
        return None;
    }
    let node = match daemon.config().home {
        config::Home::Creator => None,
        config::Home::Referee => daemon.links.referee(),
        config::Home::Node(node) => Some(node),
    };
    node.filter(|node| *node != daemon.links.me() && !daemon.links.is_lost(*node))
}

/// The question to the referee.
pub(crate) fn claim(want: &Want, intent: Intent, place: Option<NodeId>, req: Req) -> PeerFrame {
    let Want { kind, key, .. } = *want;
    match place {
        None => PeerFrame::Claim { req, kind, key, intent },
        Some(home) => PeerFrame::ClaimFor { req, kind, key, home },
    }
}

/// The question to a home elsewhere. An exclusive `*get` that is repeated finds what it made.
pub(crate) fn ask(want: &Want, caller: &Caller, id: ObjectId, req: Req) -> PeerFrame {
    let (caller, flags, size) = (caller.clone(), want.flags, want.size);
    let exclusive = IPC_CREAT | IPC_EXCL;
    match want.nonce.filter(|_| flags & exclusive == exclusive) {
        None => PeerFrame::Ask { req, caller, id, flags, size },
        Some(nonce) => PeerFrame::AskByNonce { req, caller, id, flags, size, nonce },
    }
}

impl Service<'_> {
    /// Has another node make an object by its claim; `None`: begin again.
    pub(crate) fn have_made(
        &self,
        asking: &Asking<'_>,
        claim: ClaimNo,
        id: ObjectId,
    ) -> Result<Option<Answer>, SysvError> {
        let (daemon, Asking { want, caller, home, deadline }) = (self.daemon, asking);
        let frame = |req| PeerFrame::Place {
            req,
            caller: (*caller).clone(),
            claim,
            object: Reported { id, kind: want.kind, key: want.key },
            flags: want.flags,
            size: want.size,
            nonce: want.nonce.unwrap_or(Nonce(0)),
        };
        match daemon.links.ask(*home, *deadline, frame) {
            Ok(PeerFrame::Placed { outcome: Placement::Made, .. }) => {
                Ok(Some(self.object(id, *home, None)))
            }
            Ok(PeerFrame::Placed { outcome: Placement::TooLate, .. }) => Ok(None),
            Ok(PeerFrame::Placed { outcome: Placement::Refused(refusal), .. }) => Err(refusal),
            Ok(_) => Err(SysvError::EIO),
            Err(unanswered) => {
                daemon.links.post(*home, PeerFrame::Unplace { id });
                daemon.tell_referee(PeerFrame::Abandon { claim });
                match unanswered {
                    Unanswered::Lost => Ok(None),
                    Unanswered::TimedOut => Err(SysvError::ETIMEDOUT),
                }
            }
        }
    }
}

/// `Place`: makes the object. The answer follows the referee's verdict, or says at once why not.
pub(crate) fn serve(daemon: &Arc<Daemon>, from: NodeId, frame: &PeerFrame) {
    let PeerFrame::Place { req, caller, claim, object, flags, size, nonce } = frame else { return };
    let (kind, key, flags, size) = (object.kind, object.key, *flags, *size);
    let want = Want { kind, key, flags, size, nonce: Some(*nonce) };
    let at_once = match known(daemon, &want, *claim, object.id) {
        Known::No => match make(daemon, from, caller, &want, *claim, object.id) {
            Ok(()) => None,
            Err(outcome) => {
                daemon.tell_referee(PeerFrame::Abandon { claim: *claim });
                Some(outcome)
            }
        },
        Known::Unconfirmed => None,
        Known::As(outcome) => Some(outcome),
    };
    match at_once {
        Some(outcome) => daemon.links.post(from, PeerFrame::Placed { req: *req, outcome }),
        None => {
            daemon.home.answer_to(object.id, from, *req);
            let (claim, object) = (*claim, *object);
            daemon.tell_referee(PeerFrame::Made { claim, object });
        }
    }
}

/// What is known of an object that is to be made: it may have been asked for on a link that broke.
enum Known {
    No,
    Unconfirmed,
    As(Placement),
}

fn known(daemon: &Daemon, want: &Want, claim: ClaimNo, id: ObjectId) -> Known {
    match daemon.home.find(id) {
        Ok(None) => Known::No,
        Ok(Some(record)) if Some(record.nonce) == want.nonce && record.key == want.key => {
            match record.state {
                ObjectState::Published => Known::As(Placement::Made),
                ObjectState::Unconfirmed { claim: by } if by == claim => Known::Unconfirmed,
                ObjectState::Unconfirmed { .. } => Known::As(Placement::TooLate),
            }
        }
        Ok(Some(_)) => Known::As(Placement::TooLate),
        Err(error) => {
            tracing::error!(op = "place", %id, %error);
            Known::As(Placement::Refused(SysvError::EIO))
        }
    }
}

fn make(
    daemon: &Arc<Daemon>,
    from: NodeId,
    caller: &Caller,
    want: &Want,
    claim: ClaimNo,
    id: ObjectId,
) -> Result<(), Placement> {
    if want.kind == Kind::Segment || home::is_the_kernels(want.kind, id) {
        return Err(Placement::TooLate);
    }
    let account = home_work::account(daemon, from, caller).map_err(Placement::Refused)?;
    let config = daemon.config();
    if !daemon.home.has_room(account.uid, config.user_limits.objects) {
        let reason = "refused: user_objects_max is reached";
        daemon.refusals.of_program(caller.client.pid, account.uid, reason);
        return Err(Placement::Refused(SysvError::ENOSPC));
    }
    let pid = i32::try_from(caller.client.pid).unwrap_or(0);
    let (segment_bytes_max, transfer) = (config.user_limits.segment_bytes, config.transfer);
    let maker = Maker { account: &account, pid, segment_bytes_max, transfer };
    let made = daemon.home.create(want, &maker, claim, id);
    made.map(|_| ()).map_err(Placement::Refused)
}

/// `Unplace`: nobody waits for it any more.
pub(crate) fn unplace(daemon: &Daemon, from: NodeId, id: ObjectId) {
    if !daemon.home.is_awaited_by(id, from) {
        return;
    }
    if let Err(error) = daemon.home.give_up(id) {
        tracing::error!(op = "place", %id, %error);
    }
    daemon.tell_referee(PeerFrame::Removed { id });
}

impl Daemon {
    /// The referee has spoken of an object that was made here: whoever waits for it hears.
    pub(crate) fn verdict(&self, id: ObjectId, verdict: Verdict) {
        let Some((node, req)) = self.home.verdict(id, verdict) else { return };
        let outcome = match verdict {
            Verdict::Confirmed => Placement::Made,
            Verdict::Denied => Placement::TooLate,
        };
        tracing::info!(op = "place", peer = %node, %id, ?outcome);
        self.links.post(node, PeerFrame::Placed { req, outcome });
    }
}
