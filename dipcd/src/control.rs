//! The back door: what the tools ask of this dipcd, and of other nodes through it. Looking is for
//! everybody who may call; orders are for root, for who runs dipcd, and for `socket_group`.
//!
//! A question to another node is bounded to less than a second, so that a tool can ask all of them
//! at once and show what those say that answer.
#![forbid(unsafe_code)]

use std::cell::Cell;
use std::sync::Arc;
use std::time::Duration;

use dipc_core::referee::Event;
use dipc_wire::client::{Answer, Call};
use dipc_wire::ids::{Kind, NodeId, ObjectId, Req};
use dipc_wire::keeper::Account;
use dipc_wire::peer::{Located, PeerFrame};
use dipc_wire::survey::{NodeStatus, Order, Tracing};
use dipc_wire::sysv::{Rights, SysvError};

use crate::accounts::own_account;
use crate::calls::Service;
use crate::clock::Deadline;
use crate::config::ENTRIES;
use crate::daemon::Daemon;
use crate::home_work::account;
use crate::links::Unanswered;
use crate::objects::ObjectState;
use crate::sys::credentials;
use crate::sys::ipc;
use crate::{log, metrics, succession, survey};

/// How long another node has to answer a tool.
const ANSWER_WAIT: Duration = Duration::from_millis(700);

/// Serves a call of a tool.
pub(crate) fn serve(service: &Service<'_>, call: &Call) -> Result<Answer, SysvError> {
    let daemon = service.daemon;
    match call {
        Call::Nodes => Ok(Answer::Nodes(daemon.links.survey(&daemon.config()))),
        Call::Status { node } => status_of(daemon, *node).map(Answer::Status),
        Call::Survey { home, kind, from } => survey(service, *home, *kind, *from),
        Call::Attachments { node, after } => attachments(daemon, *node, *after),
        Call::Semaphores { home, id, first } => semaphores(service, *home, *id, *first),
        Call::Remove { kind, id } => remove(service, *kind, *id).map(|()| Answer::Done),
        Call::Entry { index } => {
            let entry = ENTRIES.get(*index as usize).ok_or(SysvError::EINVAL)?;
            let value = daemon.config().show(entry.name);
            Ok(Answer::Entry { name: entry.name.to_owned(), value })
        }
        Call::Order(order) => {
            if !may_order(service) {
                tracing::warn!(op = "order", uid = service.peer.uid, ?order, "refused");
                return Err(SysvError::EPERM);
            }
            tracing::info!(op = "order", uid = service.peer.uid, pid = service.peer.pid, ?order);
            Ok(Answer::Told(obey(daemon, order)))
        }
        _ => Err(SysvError::ENOSYS),
    }
}

/// Serves a question of another node's tool.
pub fn serve_peer(daemon: &Arc<Daemon>, from: NodeId, frame: PeerFrame) {
    let answer = match frame {
        PeerFrame::Status { req } => PeerFrame::StatusIs { req, status: status(daemon) },
        PeerFrame::Survey { req, caller, kind, from: first } => {
            // Who has no account here still sees what everybody sees.
            let reader = account(daemon, from, &caller).ok();
            match survey::page(daemon, kind, first, reader.as_ref()) {
                Ok(survey) => PeerFrame::Surveyed { req, survey },
                Err(error) => {
                    tracing::error!(op = "survey", peer = %from, %error);
                    return;
                }
            }
        }
        PeerFrame::Attachments { req, after } => {
            PeerFrame::AttachmentsAre { req, rows: survey::attachments(daemon, after) }
        }
        PeerFrame::Semaphores { req, caller, id, first } => {
            let outcome = account(daemon, from, &caller)
                .and_then(|reader| survey::semaphores(daemon, id, first, &reader));
            PeerFrame::SemaphoresAre { req, outcome }
        }
        PeerFrame::RemoveFor { req, caller, kind, id } => {
            let outcome = account(daemon, from, &caller)
                .and_then(|account| remove_here(daemon, kind, id, &account));
            PeerFrame::RemovedFor { req, outcome }
        }
        _ => return,
    };
    daemon.links.post(from, answer);
}

fn bound() -> Deadline {
    Deadline::after(Some(ANSWER_WAIT))
}

/// Asks a node on behalf of a tool.
fn ask(
    daemon: &Daemon,
    node: NodeId,
    frame: impl Fn(Req) -> PeerFrame,
) -> Result<PeerFrame, SysvError> {
    let answer = daemon.links.ask(node, bound(), frame);
    answer.map_err(|_: Unanswered| SysvError::ETIMEDOUT)
}

/// Whether it is about this node.
fn is_here(daemon: &Daemon, node: NodeId) -> bool {
    !node.is_admitted() || node == daemon.links.me()
}

fn status_of(daemon: &Daemon, node: NodeId) -> Result<NodeStatus, SysvError> {
    if is_here(daemon, node) {
        return Ok(status(daemon));
    }
    match ask(daemon, node, |req| PeerFrame::Status { req })? {
        PeerFrame::StatusIs { status, .. } => Ok(status),
        _ => Err(SysvError::EIO),
    }
}

/// What this node is doing.
fn status(daemon: &Daemon) -> NodeStatus {
    let config = daemon.config();
    NodeStatus {
        node: daemon.links.me(),
        address: config.this_machine,
        referee: daemon.links.referee().unwrap_or(NodeId::NONE),
        referee_address: config.referee,
        epoch: daemon.epoch(),
        incarnation: daemon.incarnation,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        up_ms: u64::try_from(daemon.started.elapsed().as_millis()).unwrap_or(u64::MAX),
        tracing: if log::is_tracing() { Tracing::On } else { Tracing::Off },
        counts: metrics::counts(daemon),
    }
}

fn survey(service: &Service<'_>, home: NodeId, kind: Kind, from: u32) -> Result<Answer, SysvError> {
    let daemon = service.daemon;
    let caller = service.caller_on(daemon.links.me());
    if is_here(daemon, home) {
        let page = survey::page(daemon, kind, from, Some(&own_account(&caller)));
        return page.map(Answer::Survey).map_err(|error| {
            tracing::error!(op = "survey", %error);
            SysvError::EIO
        });
    }
    let frame = |req| PeerFrame::Survey { req, caller: caller.clone(), kind, from };
    match ask(daemon, home, frame)? {
        PeerFrame::Surveyed { survey, .. } => Ok(Answer::Survey(survey)),
        _ => Err(SysvError::EIO),
    }
}

fn attachments(
    daemon: &Daemon,
    node: NodeId,
    after: Option<ObjectId>,
) -> Result<Answer, SysvError> {
    if is_here(daemon, node) {
        return Ok(Answer::Attachments(survey::attachments(daemon, after)));
    }
    match ask(daemon, node, |req| PeerFrame::Attachments { req, after })? {
        PeerFrame::AttachmentsAre { rows, .. } => Ok(Answer::Attachments(rows)),
        _ => Err(SysvError::EIO),
    }
}

fn semaphores(
    service: &Service<'_>,
    home: NodeId,
    id: ObjectId,
    first: u32,
) -> Result<Answer, SysvError> {
    let daemon = service.daemon;
    let caller = service.caller_on(daemon.links.me());
    if is_here(daemon, home) {
        return survey::semaphores(daemon, id, first, &own_account(&caller))
            .map(Answer::Semaphores);
    }
    let frame = |req| PeerFrame::Semaphores { req, caller: caller.clone(), id, first };
    match ask(daemon, home, frame)? {
        PeerFrame::SemaphoresAre { outcome, .. } => outcome.map(Answer::Semaphores),
        _ => Err(SysvError::EIO),
    }
}

/// `IPC_RMID` wherever the object lives. Segments are removed by [`Call::Control`].
fn remove(service: &Service<'_>, kind: Kind, id: ObjectId) -> Result<(), SysvError> {
    let daemon = service.daemon;
    let caller = service.vouch()?;
    let home = match daemon.home.find(id) {
        Ok(Some(_)) => daemon.links.me(),
        Ok(None) => locate(daemon, kind, id)?,
        Err(error) => {
            tracing::error!(op = "remove", %id, %error);
            return Err(SysvError::EIO);
        }
    };
    if is_here(daemon, home) {
        return remove_here(daemon, kind, id, &own_account(&caller));
    }
    let asked = Cell::new(0);
    let frame = |req| {
        asked.set(asked.get() + 1);
        PeerFrame::RemoveFor { req, caller: caller.clone(), kind, id }
    };
    let deadline = Deadline::after(daemon.timeouts().employer_referee);
    match daemon.links.ask(home, deadline, frame) {
        // It was there when we asked first, and that answer was lost with its link.
        Ok(PeerFrame::RemovedFor { outcome: Err(SysvError::EINVAL), .. }) if asked.get() > 1 => {
            Ok(())
        }
        Ok(PeerFrame::RemovedFor { outcome, .. }) => outcome,
        Ok(_) => Err(SysvError::EIO),
        Err(Unanswered::Lost) => Err(SysvError::EIDRM),
        Err(Unanswered::TimedOut) => Err(SysvError::ETIMEDOUT),
    }
}

/// Where the referee says an object of this kind lives.
fn locate(daemon: &Daemon, kind: Kind, id: ObjectId) -> Result<NodeId, SysvError> {
    let deadline = Deadline::after(daemon.timeouts().employer_referee);
    match daemon.ask_referee(deadline, |req| PeerFrame::Resolve { req, id }) {
        Ok(PeerFrame::Resolved { found: Some(Located { kind: is, home, .. }), .. })
            if is == kind && home != daemon.links.me() =>
        {
            Ok(home)
        }
        Ok(_) => Err(SysvError::EINVAL),
        Err(Unanswered::TimedOut | Unanswered::Lost) => Err(SysvError::ETIMEDOUT),
    }
}

/// Removes a queue or a set of this home as `ipcctl_obtain_check` of the kernel's ipc/util.c
/// allows: for its owner, its creator, and `CAP_SYS_ADMIN`.
fn remove_here(
    daemon: &Daemon,
    kind: Kind,
    id: ObjectId,
    account: &Account,
) -> Result<(), SysvError> {
    let failed = |error: std::io::Error| {
        tracing::error!(op = "remove", %id, %error);
        SysvError::EIO
    };
    let found = daemon.home.find(id).map_err(failed)?;
    let is_it = |record: &crate::objects::ObjectRecord| {
        record.kind == kind && record.state == ObjectState::Published
    };
    let record = found.filter(is_it).filter(|_| kind != Kind::Segment).ok_or(SysvError::EINVAL)?;
    let (perm, _) = ipc::view(kind, record.kernel)?;
    let is_its = account.uid == perm.uid || account.uid == perm.cuid;
    if !is_its && !account.rights.sys_admin {
        return Err(SysvError::EPERM);
    }
    // dipcd itself has not that right; the creator may always.
    let (groups, rights) = (Vec::new(), Rights::default());
    let creator = Account { uid: perm.cuid, gid: perm.cgid, groups, rights };
    let remove = || ipc::remove(kind, record.kernel);
    credentials::with_effective(&creator, remove).map_err(|_| SysvError::EPERM)??;
    if daemon.home.strike_if_gone(id).map_err(failed)? {
        tracing::info!(op = "remove", %id, uid = account.uid);
        daemon.tell_referee(PeerFrame::Removed { id });
    }
    Ok(())
}

/// Whether a caller may change this dipcd. Numbers of another user or pid namespace are nobody's.
fn may_order(service: &Service<'_>) -> bool {
    let (peer, config) = (service.peer, service.daemon.config());
    if !service.world.user_is_ours || !service.world.pid_is_ours {
        return false;
    }
    let group = config.socket_access.group.as_ref();
    let group = group.and_then(|group| credentials::group_by_name(group.as_str()));
    let in_group = |gid| peer.gid == gid || peer.groups.contains(&gid);
    let own = rustix::process::geteuid().as_raw();
    peer.uid == 0 || peer.uid == own || group.is_some_and(in_group)
}

/// Carries out an order: what was done, or why not.
fn obey(daemon: &Arc<Daemon>, order: &Order) -> Result<String, String> {
    let lines = |wrong: Vec<String>| wrong.join("\n");
    match order {
        Order::Set { entry, value } => {
            daemon.settings.set(daemon, entry, value).map_err(lines)?;
            Ok(String::new())
        }
        Order::Reload => daemon.settings.reload(daemon).map(|()| String::new()).map_err(lines),
        Order::Trace(tracing) => {
            log::trace(*tracing == Tracing::On)?;
            Ok(String::new())
        }
        Order::Forget { node } => forget(daemon, *node),
        Order::BecomeReferee => succession::become_referee(daemon).map_err(|why| why.to_string()),
    }
}

fn forget(daemon: &Daemon, node: NodeId) -> Result<String, String> {
    let Some(names) = daemon.names() else {
        let referee = daemon.links.referee().unwrap_or(NodeId::NONE);
        let address = daemon.config().referee;
        return Err(format!("only the referee forgets nodes; it is node {referee} at {address}"));
    };
    if node == daemon.links.me() {
        return Err(format!("node {node} is the referee itself"));
    }
    let Some(address) = names.address_of(node) else {
        return Err(format!("no node has the number {node}"));
    };
    if daemon.links.linked().contains(&node) {
        return Err(format!("node {node} is linked; stop its dipcd first"));
    }
    names.step(daemon, Event::Forget { node });
    // The others do the same when they hear who is a member.
    let (wires, clients) = daemon.cut_off(node);
    tracing::warn!(op = "forget", peer = %node, %address, wires, clients);
    Ok(format!("node {node} at {address} is forgotten"))
}
