//! `shmat`, `shmdt` and what comes with them: the calls of local programs, and at home the
//! admission of attachments of every node.
//!
//! ```text
//! Attach: who may it? (home) ─ the replica, new or known ─▶ file, number of the attachment
//! Mapped: the file is where the program says ─▶ what the replica holds may be used there
//! Unmapped, Moved, the end of an address space ─▶ home hears of it ([`super::ends`])
//! ```
#![forbid(unsafe_code)]

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use dipc_core::{directory, replica};
use dipc_wire::client::{Answer, AttachmentNo, Mm};
use dipc_wire::ids::{Kind, NodeId, ObjectId};
use dipc_wire::keeper::{Account, SegmentFile};
use dipc_wire::limits::REPLICAS_MAX;
use dipc_wire::memory::Replica;
use dipc_wire::peer::{Attachment, Caller, Located, PeerFrame};
use dipc_wire::sysv::{SHM_RDONLY, SegmentControl, SysvError};

use super::control;
use super::ends;
use super::families::Mappings;
use super::geometry::Geometry;
use super::node::{Attaching, Memory, mappings_of};
use super::pager::bounds::Bounds;
use super::pager::content::Contents;
use super::pager::replica_side::ReplicaSide;
use super::pager::segment::{Locked, Segment};
use super::revocation;
use super::segments::{Holder, Users};
use crate::accounts::own_account;
use crate::clock::Deadline;
use crate::daemon::Daemon;
use crate::links::{Links, Unanswered};

/// Why a program is refused that names the address space of another.
const NOT_ITS_OWN: &str = "the address space is not its own";
/// Between two looks at whether a replica has left.
const LOOK: Duration = Duration::from_millis(100);

/// An attachment between its two calls.
pub struct Pending {
    mm: Mm,
    pid: u32,
    mappings: Arc<Mappings>,
    segment: Arc<Segment>,
    _attaching: Attaching,
}

impl Pending {
    /// Whether it is of this address space.
    pub fn is_of(&self, mm: Mm) -> bool {
        self.mm == mm
    }
}

/// Who calls.
pub struct Program<'a> {
    /// Its pid.
    pub pid: u32,
    /// As its node vouches for it.
    pub caller: &'a Caller,
}

/// `Call::Attach`.
pub fn attach(
    daemon: &Arc<Daemon>,
    program: &Program<'_>,
    mm: Mm,
    id: ObjectId,
    flags: i32,
    deadline: Deadline,
) -> Result<(Answer, Option<OwnedFd>), SysvError> {
    let memory = &daemon.memory;
    if !memory.families().is_of(mm, program.pid) {
        // Its program begins anew, as after a dipcd that was stopped for good.
        daemon.refusals.of_program(program.pid, program.caller.uid, NOT_ITS_OWN);
        return Err(SysvError::EPERM);
    }
    let home = home_of(daemon, id, deadline)?;
    await_its_end(daemon, program.caller, home, id, deadline)?;
    let attaching = memory.begin_attach(id);
    await_the_leaving(daemon, id, deadline)?;
    let caller = program.caller;
    let attachment = ask(daemon, home, caller, id, flags, deadline)?;
    let (segment, mappings) = memory.enter(daemon, home, id, &attachment, (caller, flags))?;
    if home != daemon.links.me() {
        revocation::check(memory, id, mm, daemon.config().lost_page)?;
    }
    let fd = mappings.file().for_program().map_err(|_| SysvError::ENOMEM)?;
    let number = AttachmentNo(memory.last_attachment.fetch_add(1, Ordering::Relaxed) + 1);
    let pid = program.pid;
    let pending = Pending { mm, pid, mappings, segment, _attaching: attaching };
    memory.pending.lock().insert(number, pending);
    let may_write = attachment.may_write && flags & SHM_RDONLY == 0;
    let answer = Answer::Attached { attachment: number, bytes: attachment.bytes, may_write };
    Ok((answer, Some(fd)))
}

/// One that is to be deleted at a last detach which home does not know of yet is gone already. From
/// here on this node counts with an attachment, so that is to be known before.
fn await_its_end(
    daemon: &Arc<Daemon>,
    caller: &Caller,
    home: NodeId,
    id: ObjectId,
    deadline: Deadline,
) -> Result<(), SysvError> {
    if home == daemon.links.me() {
        control::delete_if_unused(daemon, id);
        return Ok(());
    }
    let Some(segment) = daemon.memory.find(id) else { return Ok(()) };
    let files = mappings_of(&segment);
    files.values().for_each(|mappings| daemon.memory.families().look_for_ends(mappings));
    ends::note_ends(daemon);
    if files.values().any(|mappings| !mappings.attachments().is_empty()) {
        return Ok(());
    }
    control::control(daemon, caller, id, SegmentControl::StatAny, deadline).map(|_| ())
}

/// Which node is home to a segment.
pub(super) fn home_of(
    daemon: &Daemon,
    id: ObjectId,
    deadline: Deadline,
) -> Result<NodeId, SysvError> {
    if let Some(segment) = daemon.memory.find(id) {
        return Ok(segment.home);
    }
    match daemon.home.find(id) {
        Ok(Some(record)) if record.kind == Kind::Segment => return daemon.await_admission(),
        Ok(Some(_)) => return Err(SysvError::EINVAL),
        Ok(None) => {}
        Err(error) => {
            tracing::error!(op = "attach", %id, %error);
            return Err(SysvError::EIO);
        }
    }
    match daemon.ask_referee(deadline, |req| PeerFrame::Resolve { req, id }) {
        Ok(PeerFrame::Resolved { found: Some(Located { kind, home, .. }), .. })
            if kind == Kind::Segment && home != daemon.links.me() =>
        {
            Ok(home)
        }
        Ok(_) => Err(SysvError::EINVAL),
        Err(Unanswered::TimedOut | Unanswered::Lost) => Err(SysvError::ETIMEDOUT),
    }
}

/// Nobody attaches while a replica says goodbye: home could take the goodbye for the new one's.
fn await_the_leaving(daemon: &Daemon, id: ObjectId, deadline: Deadline) -> Result<(), SysvError> {
    let Some(segment) = daemon.memory.find(id) else { return Ok(()) };
    let mut locked = segment.lock();
    let numbers: Vec<_> = locked.state.replicas.keys().copied().collect();
    for number in numbers {
        locked.step_replica(number, replica::Event::Attached, &Contents::none());
    }
    while locked.state.replicas.values().any(ReplicaSide::leaves) {
        if deadline.is_over() || locked.state.dead {
            return Err(SysvError::ETIMEDOUT);
        }
        locked.wait(deadline.left().min(LOOK));
    }
    Ok(())
}

/// What home says to an attachment.
fn ask(
    daemon: &Daemon,
    home: NodeId,
    caller: &Caller,
    id: ObjectId,
    flags: i32,
    deadline: Deadline,
) -> Result<Attachment, SysvError> {
    if home == daemon.links.me() {
        return admit(daemon, caller, &own_account(caller), id, flags);
    }
    let frame = |req| PeerFrame::Attach { req, caller: caller.clone(), id, flags };
    match daemon.links.ask(home, deadline, frame) {
        Ok(PeerFrame::Attached { outcome, .. }) if outcome.is_ok() => {
            if daemon.memory.await_lease(home, deadline) {
                outcome
            } else {
                Err(SysvError::ETIMEDOUT)
            }
        }
        Ok(PeerFrame::Attached { outcome, .. }) => outcome,
        Ok(_) => Err(SysvError::EIO),
        Err(Unanswered::Lost) => Err(SysvError::EIDRM),
        Err(Unanswered::TimedOut) => Err(SysvError::ETIMEDOUT),
    }
}

/// At home: may this program attach, and which file does it map?
pub fn admit(
    daemon: &Daemon,
    caller: &Caller,
    account: &Account,
    id: ObjectId,
    flags: i32,
) -> Result<Attachment, SysvError> {
    let memory = &daemon.memory;
    let pid = i32::try_from(caller.client.pid).unwrap_or(0);
    let (bytes, may_write) = memory.homes.attach(id, flags, account, pid)?;
    let segment = memory.at_home(id, &Bounds::of(&daemon.config()))?;
    let node = caller.client.node;
    let users = if may_write { Users::Writers } else { Users::Reader(caller.uid) };
    let mut locked = segment.lock();
    if locked.state.dead {
        return Err(SysvError::EIDRM);
    }
    let replica = if node == daemon.links.me() && may_write {
        Replica::HOME
    } else {
        join(&mut locked, &daemon.links, Holder { node, users })?
    };
    let unit_bytes = segment.geometry.unit_bytes;
    Ok(Attachment { replica, bytes, unit_bytes, may_write })
}

/// The number of a node's file, new or known.
fn join(locked: &mut Locked<'_>, links: &Links, holder: Holder) -> Result<Replica, SysvError> {
    let (id, link) = (locked.id(), links.link(holder.node));
    if let Some(link) = &link {
        locked.is_by(holder.node, link);
    }
    let home = locked.state.home.as_mut().ok_or(SysvError::EIDRM)?;
    let known = home.holders.iter().find(|(_, known)| **known == holder);
    if let Some((replica, _)) = known {
        return Ok(*replica);
    }
    let replica = home.machine.vacant().ok_or(SysvError::ENOMEM)?;
    home.segments.add_replica(id, replica, holder)?;
    home.holders.insert(replica, holder);
    if !home.shared {
        home.shared = true;
        home.file.mappings.watch();
    }
    let Holder { node, .. } = holder;
    locked.step_home(directory::Event::Joined { replica, node }, &Contents::none());
    if node != links.me() && link.is_none() {
        locked.step_home(directory::Event::Unlinked { node }, &Contents::none());
    }
    Ok(replica)
}

impl Memory {
    /// The file that an admitted program maps, made ready if it is new here.
    fn enter(
        self: &Arc<Self>,
        daemon: &Daemon,
        home: NodeId,
        id: ObjectId,
        attachment: &Attachment,
        caller: (&Caller, i32),
    ) -> Result<(Arc<Segment>, Arc<Mappings>), SysvError> {
        let geometry = Geometry::of(attachment.bytes, attachment.unit_bytes);
        let geometry = geometry.ok_or(SysvError::EIO)?;
        let segment = self.elsewhere(id, home, geometry);
        let mut locked = segment.lock();
        let number = attachment.replica;
        if number.0 >= REPLICAS_MAX {
            return Err(SysvError::EIO);
        }
        if number == Replica::HOME {
            let home = locked.state.home.as_ref().ok_or(SysvError::EIDRM)?;
            let mappings = home.file.mappings.clone();
            drop(locked);
            return Ok((segment, mappings));
        }
        if !locked.state.replicas.contains_key(&number) {
            let bounds = Bounds::of(&daemon.config());
            let name = SegmentFile { id, home, replica: number };
            let dir = self.homes.dir_of(id);
            let opened = super::recover::write_geometry(&dir, &geometry)
                .and_then(|()| self.new_file(name, geometry))
                .and_then(|file| self.open_replica(&mut locked, &segment, number, file, &bounds));
            opened.map_err(|error| {
                tracing::error!(op = "attach", %id, %error);
                SysvError::ENOMEM
            })?;
            locked.begin_links(number, daemon.links.link(home).as_ref());
        }
        let side = locked.state.replicas.get_mut(&number).ok_or(SysvError::EIO)?;
        let caller = (caller.0.clone(), caller.1);
        if side.caller.as_ref() != Some(&caller) {
            super::recover::write_caller(&self.homes.dir_of(id), number, &caller);
            side.caller = Some(caller);
        }
        let mappings = side.file.mappings.clone();
        drop(locked);
        Ok((segment, mappings))
    }
}

/// `Call::Mapped`.
pub fn mapped(
    daemon: &Arc<Daemon>,
    pid: u32,
    attachment: AttachmentNo,
    address: u64,
) -> Result<Answer, SysvError> {
    let memory = &daemon.memory;
    let pending = {
        let mut pending = memory.pending.lock();
        match pending.get(&attachment) {
            Some(known) if known.pid == pid => pending.remove(&attachment),
            _ => None,
        }
    };
    // A dipcd that was restarted meanwhile knows nothing of it: its program begins again.
    let pending = pending.ok_or(SysvError::EPERM)?;
    let Pending { mm, mappings, segment, .. } = &pending;
    let refused = |error: std::io::Error| {
        tracing::warn!(op = "mapped", pid, %error);
        SysvError::EINVAL
    };
    let placed = memory.families().place(*mm, pid, mappings, address).map_err(refused)?;
    let locked = segment.lock();
    let held = locked.held(mappings).ok_or(SysvError::EIDRM)?;
    let attached = memory.families().attach(placed, &held).map_err(refused);
    drop(locked);
    attached.map(|()| Answer::Done)
}

/// `Call::Unmapped` and `Call::Moved`: the address space is looked at.
pub fn changed(
    daemon: &Arc<Daemon>,
    caller: &Caller,
    mm: Mm,
    attachment: Option<AttachmentNo>,
) -> Result<Answer, SysvError> {
    let (memory, client) = (&daemon.memory, caller.client);
    if let Some(number) = attachment {
        let mut pending = memory.pending.lock();
        if pending.get(&number).is_some_and(|known| known.pid == client.pid) {
            let cancelled = pending.remove(&number);
            // It settles the segment when it goes, which takes other locks.
            drop(pending);
            drop(cancelled);
            return Ok(Answer::Done);
        }
    }
    if !memory.families().is_of(mm, client.pid) {
        daemon.refusals.of_program(client.pid, caller.uid, NOT_ITS_OWN);
        return Err(SysvError::EINVAL);
    }
    let lost = memory.families().changed(mm);
    ends::detached(daemon, client, &lost);
    Ok(Answer::Done)
}

/// Home has forgotten a replica whose programs live: it begins anew, empty, under the number that
/// home gives it now. Where that cannot be, whoever touches it gets SIGBUS.
pub(super) fn again(daemon: &Arc<Daemon>, id: ObjectId, number: Replica) {
    let memory = &daemon.memory;
    let Some(segment) = memory.find(id) else { return };
    let _attaching = memory.begin_attach(id);
    let Some(mappings) = mappings_of(&segment).remove(&number) else { return };
    // Home may know already that its last program has ended.
    memory.families().look_for_ends(&mappings);
    let (caller, unused) = {
        let locked = segment.lock();
        let Some(side) = locked.state.replicas.get(&number) else { return };
        (side.caller.clone(), side.leaving || mappings.attachments().is_empty())
    };
    if unused {
        // It was about to leave, and home was quicker.
        return super::errands::forget_replica(daemon, id, number);
    }
    tracing::warn!(op = "attach", %id, replica = number.0, "its home knows it no more");
    let deadline = Deadline::after(daemon.timeouts().employer_referee);
    let caller = caller.ok_or(SysvError::EIDRM);
    let attachment =
        caller.and_then(|(caller, flags)| ask(daemon, segment.home, &caller, id, flags, deadline));
    let bounds = Bounds::of(&daemon.config());
    let begun = attachment
        .and_then(|attachment| begin_again(daemon, &segment, number, attachment.replica, &bounds));
    let Err(refusal) = begun else { return };
    let is_home_lost = daemon.links.is_lost(segment.home);
    if is_home_lost || refusal == SysvError::ETIMEDOUT {
        tracing::warn!(op = "attach", %id, ?refusal, "its home cannot be reached");
        let mut locked = segment.lock();
        locked.renew(number, bounds.of_replica(&segment.geometry), is_home_lost);
        locked.begin_links(number, daemon.links.link(segment.home).as_ref());
        locked.wake_all();
    } else {
        tracing::warn!(op = "attach", %id, ?refusal, "its programs get SIGBUS");
        control::fail_replica(daemon, id, number);
    }
    mappings.wake(mappings.file().span());
}

fn begin_again(
    daemon: &Daemon,
    segment: &Segment,
    from: Replica,
    to: Replica,
    bounds: &Bounds,
) -> Result<(), SysvError> {
    let memory = &daemon.memory;
    let mut locked = segment.lock();
    let side = locked.state.replicas.remove(&from).ok_or(SysvError::EIDRM)?;
    let (id, home) = (segment.id, segment.home);
    if from != to {
        let name = |replica| SegmentFile { id, home, replica };
        super::errands::rename_file(daemon, name(from), name(to), &side.file.file);
    }
    let caller = side.caller;
    memory.open_replica(&mut locked, segment, to, side.file, bounds).map_err(|error| {
        tracing::error!(op = "attach", %id, %error);
        SysvError::ENOMEM
    })?;
    if let Some(side) = locked.state.replicas.get_mut(&to) {
        if let Some(caller) = &caller {
            super::recover::write_caller(&memory.homes.dir_of(id), to, caller);
        }
        side.caller = caller;
    }
    locked.begin_links(to, daemon.links.link(home).as_ref());
    if let Some(side) = locked.state.replicas.get(&to) {
        side.file.mappings.wake(side.file.file.span());
    }
    locked.wake_all();
    Ok(())
}

impl Locked<'_> {
    /// What programs may do where in a file.
    fn held(
        &self,
        mappings: &Arc<Mappings>,
    ) -> Option<Vec<(super::files::Span, dipc_wire::memory::Access)>> {
        match self.whose(mappings)? {
            Replica::HOME => self.state.home.as_ref().map(|home| home.held()),
            number => self.state.replicas.get(&number).map(|side| side.held()),
        }
    }
}
