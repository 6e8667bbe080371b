//! What other nodes want of this one as a home: looks at objects, tickets, the ends of their
//! clients; and the referee's two orders, to report and to destroy.
//!
//! One thread a link serves these in order, so that a ticket never overtakes the end of its client.
//! A node speaks only for its own clients; a frame that names another's is dropped.
#![forbid(unsafe_code)]

use std::collections::HashSet;
use std::sync::Arc;

use dipc_wire::ids::{ClientId, Key, Kind, NodeId, Nonce, ObjectId};
use dipc_wire::keeper::{Account, Cause};
use dipc_wire::peer::{Asked, Caller, PeerFrame, Piece};
use dipc_wire::sysv::SysvError;

use crate::accounts::{account_of, own_account};
use crate::daemon::Daemon;
use crate::home::{Look, Struck, Want};
use crate::{control, memory, placing, succession};

/// Serves one frame from `from`. `living` gathers the pieces of its census.
pub fn serve(daemon: &Arc<Daemon>, from: NodeId, frame: PeerFrame, living: &mut HashSet<ClientId>) {
    match frame {
        PeerFrame::ReportPlease => report(daemon, from),
        PeerFrame::Void => void(daemon, from),
        PeerFrame::Ask { req, caller, id, flags, size } if caller.client.node == from => {
            let outcome = ask(daemon, from, &caller, id, (flags, size, None));
            daemon.links.post(from, PeerFrame::Asked { req, outcome });
        }
        PeerFrame::AskByNonce { req, caller, id, flags, size, nonce }
            if caller.client.node == from =>
        {
            let outcome = ask(daemon, from, &caller, id, (flags, size, Some(nonce)));
            daemon.links.post(from, PeerFrame::Asked { req, outcome });
        }
        PeerFrame::Place { ref caller, .. } if caller.client.node == from => {
            placing::serve(daemon, from, &frame);
        }
        PeerFrame::Unplace { id } => placing::unplace(daemon, from, id),
        PeerFrame::Ticket { req, ticket, secret, session, caller }
            if caller.client.node == from && session.client == caller.client =>
        {
            let account = account(daemon, from, &caller);
            let outcome =
                account.and_then(|account| daemon.issue(ticket, secret, session, account));
            daemon.links.post(from, PeerFrame::Ticketed { req, outcome });
        }
        PeerFrame::Ended { client, image, ends, piece } if client.node == from => {
            if daemon.stand_ins.end(client, image, &ends, Cause::Reported, piece) {
                daemon.links.post(from, PeerFrame::Buried { client, image });
            }
        }
        PeerFrame::Census { clients, piece } => {
            // However many it names, it takes no more memory than what we have of them.
            let known = daemon.stand_ins.known_of(from);
            living.extend(clients.into_iter().filter(|client| known.contains(client)));
            if piece == Piece::Last {
                let living = std::mem::take(living);
                let ended = daemon.stand_ins.keep_only(from, &living, daemon.loss_cause());
                if ended > 0 {
                    tracing::info!(op = "census", peer = %from, ended, "clients it knows no more");
                }
            }
        }
        PeerFrame::Attach { .. }
        | PeerFrame::Detach { .. }
        | PeerFrame::Control { .. }
        | PeerFrame::Count { .. } => memory::calls::serve_peer(daemon, from, frame),
        PeerFrame::Status { .. } | PeerFrame::Attachments { .. } => {
            control::serve_peer(daemon, from, frame);
        }
        PeerFrame::Survey { ref caller, .. }
        | PeerFrame::Semaphores { ref caller, .. }
        | PeerFrame::RemoveFor { ref caller, .. }
            if caller.client.node == from =>
        {
            control::serve_peer(daemon, from, frame);
        }
        PeerFrame::Record(_) | PeerFrame::Succeed { .. } => succession::serve(daemon, from, frame),
        _ => tracing::warn!(op = "frame", peer = %from, "about another node's client; dropped"),
    }
}

/// Whom a caller of another node acts as here.
pub(crate) fn account(
    daemon: &Daemon,
    from: NodeId,
    caller: &Caller,
) -> Result<Account, SysvError> {
    if from == daemon.links.me() {
        return Ok(own_account(caller));
    }
    let address = daemon.links.address(from).map(|address| address.ip());
    account_of(&daemon.config(), address, caller)
}

fn ask(
    daemon: &Daemon,
    from: NodeId,
    caller: &Caller,
    id: ObjectId,
    (flags, size, nonce): (i32, u64, Option<Nonce>),
) -> Asked {
    let account = match account(daemon, from, caller) {
        Ok(account) => account,
        Err(refusal) => return Asked::Refused(refusal),
    };
    // Kind and key are the referee's business: it named this id for them.
    let want = Want { kind: Kind::Queue, key: Key::PRIVATE, flags, size, nonce };
    match daemon.home.look(id, &want, &account) {
        Ok(Look::Is(outcome, _)) => {
            if outcome == Asked::Granted {
                daemon.stand_ins.lift_fence(caller.client);
            }
            outcome
        }
        // What never was here, the referee is not told of: whoever guesses ids must not fill its
        // queue with them.
        Ok(Look::Gone(struck)) => {
            if struck == Struck::Now {
                daemon.tell_referee(PeerFrame::Removed { id });
            }
            Asked::Gone
        }
        Err(error) => {
            tracing::error!(op = "ask", peer = %from, %id, %error);
            Asked::Refused(SysvError::EIO)
        }
    }
}

/// What was made and not confirmed comes first: a claim that the report finds unrepeated is given
/// up by the referee.
fn report(daemon: &Daemon, from: NodeId) {
    let frames = daemon.home.unconfirmed().and_then(|mut frames| {
        frames.extend(daemon.home.report()?);
        Ok(frames)
    });
    match frames {
        Ok(frames) => frames.into_iter().for_each(|frame| daemon.links.post(from, frame)),
        Err(error) => {
            tracing::error!(op = "report", %error, "the referee is not told what lives here");
            daemon.links.close(from);
        }
    }
}

/// We were believed lost: what lives here is void.
fn void(daemon: &Arc<Daemon>, from: NodeId) {
    memory::control::delete_all(daemon);
    match daemon.home.destroy_all() {
        Ok(count) => {
            tracing::warn!(op = "void", peer = %from, count, "the referee had declared us lost");
            daemon.links.post(from, PeerFrame::Voided);
        }
        Err(error) => {
            tracing::error!(op = "void", %error);
            daemon.links.close(from);
        }
    }
}
