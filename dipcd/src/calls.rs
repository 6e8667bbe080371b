//! The calls of local programs, one function each: `*get` and what follows from it, wires, and
//! the looks at what the kernel's numbers mean.
#![forbid(unsafe_code)]

use rustix::net::{AddressFamily, SocketFlags, SocketType};
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use dipc_wire::client::{Answer, Call, ClientCall, Place, WireTerms};
use dipc_wire::ids::{
    ClaimNo, ClientId, Image, KernelId, Key, Kind, NodeId, ObjectId, Secret, SessionId, Slot,
    TicketId,
};
use dipc_wire::keeper::Held;
use dipc_wire::limits::{GROUPS_MAX, SESSIONS_MAX};
use dipc_wire::peer::{Asked, Caller, Claimed, Intent, Located, PeerFrame, Reported};
use dipc_wire::preamble::{Preamble, Purpose};
use dipc_wire::sysv::{IPC_CREAT, SysvError};

use crate::accounts::own_account;
use crate::channel;
use crate::clients::Kept;
use crate::clock::Deadline;
use crate::config::ContainerIdentity;
use crate::control;
use crate::daemon::Daemon;
use crate::home::{self, Look, Maker, Verdict, Want};
use crate::links::Unanswered;
use crate::memory;
use crate::metrics::Counted;
use crate::placing::{self, Asking};
use crate::sys::credentials::{self, Namespaces, Peer};
use crate::undertaker::Watched;

/// How long a void node waits before it claims again.
const VOID_PAUSE: Duration = Duration::from_millis(50);
/// How long a wire's connection may take.
const DIAL_WAIT: Duration = Duration::from_secs(3);
/// How often it is dialled if it is given up on the way.
const DIALS_MAX: u32 = 3;

type Reply = (Answer, Option<OwnedFd>);

/// Serves one call; `fd` came with it.
pub fn serve(daemon: &Arc<Daemon>, peer: &Peer, call: &ClientCall, fd: Option<OwnedFd>) -> Reply {
    daemon.counters.add(Counted::Calls);
    let served = identified(daemon, peer).and_then(|(contained, world)| {
        let peer = contained.as_ref().unwrap_or(peer);
        Service { daemon, peer, tid: call.tid, world }.call(&call.call, fd)
    });
    served.unwrap_or_else(|refusal| {
        daemon.counters.add(Counted::CallsRefused);
        (Answer::Refused(refusal), None)
    })
}

/// As whom a program counts. The uid and the pids of one in a container are numbers of another
/// world:
/// it is refused, or acts as the one account that `container_identity` names, through stand-ins
/// even
/// where it shares our System V objects. It is nobody's root.
fn identified(daemon: &Daemon, peer: &Peer) -> Result<(Option<Peer>, Namespaces), SysvError> {
    let world = peer.namespaces();
    if world.user_is_ours && world.pid_is_ours {
        return Ok((None, world));
    }
    let name = match &daemon.config().container_identity {
        ContainerIdentity::Refuse => None,
        ContainerIdentity::User(name) => credentials::user_by_name(name.as_str()),
    };
    let Some(user) = name.filter(|user| user.uid != 0) else {
        let reason = "refused: it is in a container (container_identity)";
        daemon.refusals.of_program(peer.pid, peer.uid, reason);
        return Err(SysvError::EACCES);
    };
    let peer = peer.contained_as(user).map_err(io_error)?;
    Ok((Some(peer), Namespaces { ipc_is_ours: false, ..world }))
}

/// One call being served.
pub(crate) struct Service<'a> {
    pub(crate) daemon: &'a Arc<Daemon>,
    pub(crate) peer: &'a Peer,
    tid: u32,
    pub(crate) world: Namespaces,
}

impl Service<'_> {
    fn call(&self, call: &Call, fd: Option<OwnedFd>) -> Result<Reply, SysvError> {
        if self.daemon.is_stopping() {
            return Err(SysvError::ENOSYS);
        }
        let own = rustix::process::geteuid();
        if !own.is_root() && self.peer.uid != own.as_raw() {
            // Without root nobody else's objects can be made or looked at.
            return Err(SysvError::EACCES);
        }
        let deadline = Deadline::after(self.daemon.timeouts().employer_referee);
        match call {
            Call::Get { kind, key, flags, size, nonce } => {
                let want = Want {
                    kind: *kind,
                    key: *key,
                    flags: *flags,
                    size: *size,
                    nonce: Some(*nonce),
                };
                self.get(&want, deadline).map(plain)
            }
            Call::Resolve { kind, id } => self.resolve(*kind, *id, deadline).map(plain),
            Call::Join => self.join(),
            Call::OpenWire { home, slot } => self.open_wire(*home, *slot, deadline),
            Call::Removed { id } => Ok(plain(self.removed(*id))),
            Call::Describe { id, pids } => self.describe(*id, *pids, deadline).map(plain),
            Call::List { kind, after } => self.list(*kind, *after, deadline).map(plain),
            Call::HowToTrap
            | Call::Trap { .. }
            | Call::Attach { .. }
            | Call::Mapped { .. }
            | Call::Unmapped { .. }
            | Call::Moved { .. }
            | Call::Control { .. }
            | Call::Touched { .. } => {
                memory::calls::serve(self.daemon, self.peer, || self.vouch(), call, fd)
            }
            Call::Nodes
            | Call::Status { .. }
            | Call::Survey { .. }
            | Call::Attachments { .. }
            | Call::Semaphores { .. }
            | Call::Remove { .. }
            | Call::Entry { .. }
            | Call::Order(_) => control::serve(self, call).map(plain),
        }
    }

    /// `*get`: found or made, by the referee's word and home's.
    fn get(&self, want: &Want, deadline: Deadline) -> Result<Answer, SysvError> {
        let caller = self.vouch()?;
        let creates = want.flags & IPC_CREAT != 0 || want.key == Key::PRIVATE;
        let intent = if creates { Intent::Create } else { Intent::Find };
        let mut place = placing::place_of(self.daemon, want, intent);
        loop {
            let frame = |req| placing::claim(want, intent, place, req);
            let outcome = match self.daemon.ask_referee(deadline, frame) {
                Ok(PeerFrame::Claimed { outcome, .. }) => outcome,
                Ok(_) => return Err(SysvError::EIO),
                Err(Unanswered::TimedOut | Unanswered::Lost) => return Err(SysvError::ETIMEDOUT),
            };
            let got = match outcome {
                // semget looks at the size before the key.
                Claimed::Absent if home::is_too_great(want.kind, want.size) => {
                    Err(SysvError::EINVAL)
                }
                Claimed::Absent => Err(SysvError::ENOENT),
                Claimed::Full => Err(SysvError::ENOSPC),
                Claimed::Void => {
                    place = None;
                    self.daemon.pause(VOID_PAUSE);
                    Ok(None)
                }
                Claimed::Found { id, home } => self.find(want, &caller, id, home, deadline),
                Claimed::Granted { claim, id } => match place {
                    None => self.make(want, &caller, claim, id, deadline),
                    Some(home) => {
                        let asked = Asking { want, caller: &caller, home, deadline };
                        self.have_made(&asked, claim, id)
                    }
                },
            };
            place = place.filter(|home| !self.daemon.links.is_lost(*home));
            match got? {
                Some(answer) => return Ok(answer),
                None if deadline.is_over() => return Err(SysvError::ETIMEDOUT),
                None => {}
            }
        }
    }

    /// Asks home about an object that the referee knows; `None`: it is gone, begin again.
    fn find(
        &self,
        want: &Want,
        caller: &Caller,
        id: ObjectId,
        home: NodeId,
        deadline: Deadline,
    ) -> Result<Option<Answer>, SysvError> {
        if home == self.daemon.links.me() {
            let look = self.daemon.home.look(id, want, &own_account(caller)).map_err(io_error)?;
            self.daemon.stand_ins.lift_fence(caller.client);
            return match look {
                Look::Is(Asked::Granted, kernel) => Ok(Some(self.object(id, home, Some(kernel)))),
                Look::Is(Asked::Refused(refusal), _) => Err(refusal),
                Look::Is(Asked::Gone, _) | Look::Gone(_) => {
                    self.daemon.tell_referee(PeerFrame::Removed { id });
                    // The referee takes its frames in order, so the next claim comes after this.
                    Ok(None)
                }
            };
        }
        let frame = |req| placing::ask(want, caller, id, req);
        match self.daemon.links.ask(home, deadline, frame) {
            Ok(PeerFrame::Asked { outcome: Asked::Granted, .. }) => {
                Ok(Some(self.object(id, home, None)))
            }
            Ok(PeerFrame::Asked { outcome: Asked::Refused(refusal), .. }) => Err(refusal),
            Ok(PeerFrame::Asked { outcome: Asked::Gone, .. }) => Ok(None),
            Ok(_) => Err(SysvError::EIO),
            Err(Unanswered::TimedOut) => Err(SysvError::ETIMEDOUT),
            Err(Unanswered::Lost) => {
                // The referee will declare it lost as well, and then the key is free.
                self.daemon.pause(VOID_PAUSE);
                Ok(None)
            }
        }
    }

    /// Makes an object by a claim; `None`: the claim was too late, begin again.
    fn make(
        &self,
        want: &Want,
        caller: &Caller,
        claim: ClaimNo,
        id: ObjectId,
        deadline: Deadline,
    ) -> Result<Option<Answer>, SysvError> {
        let daemon = self.daemon;
        if home::is_the_kernels(want.kind, id) {
            tracing::warn!(op = "create", %id, "the kernel gave this id itself; another is tried");
            daemon.tell_referee(PeerFrame::Abandon { claim });
            return Ok(None);
        }
        if !daemon.home.has_room(caller.uid, daemon.config().user_limits.objects) {
            let reason = "refused: user_objects_max is reached";
            daemon.refusals.of_program(self.peer.pid, caller.uid, reason);
            daemon.tell_referee(PeerFrame::Abandon { claim });
            return Err(SysvError::ENOSPC);
        }
        let account = own_account(caller);
        let pid = i32::try_from(caller.client.pid).unwrap_or(0);
        let config = daemon.config();
        let segment_bytes_max = config.user_limits.segment_bytes;
        let maker = Maker { account: &account, pid, segment_bytes_max, transfer: config.transfer };
        let mut made = daemon.home.create(want, &maker, claim, id);
        if want.kind == Kind::Segment && matches!(made, Err(SysvError::ENOSPC | SysvError::ENOMEM))
        {
            // Some may wait for a last detach that nobody has told us of.
            memory::control::delete_all_unused(daemon);
            made = daemon.home.create(want, &maker, claim, id);
        }
        let (kernel, verdict) = made.inspect_err(|_| {
            daemon.tell_referee(PeerFrame::Abandon { claim });
        })?;
        let object = Reported { id, kind: want.kind, key: want.key };
        daemon.tell_referee(PeerFrame::Made { claim, object });
        match verdict.recv_timeout(deadline.left()) {
            Ok(Verdict::Confirmed) => {
                daemon.counters.add(Counted::ObjectsMade);
                tracing::info!(op = "create", kind = want.kind.name(), key = want.key.0, %id,
                    uid = caller.uid);
                Ok(Some(self.object(id, daemon.links.me(), Some(kernel))))
            }
            Ok(Verdict::Denied) => Ok(None),
            Err(_) => {
                daemon.home.give_up(id).map_err(io_error)?;
                daemon.tell_referee(PeerFrame::Abandon { claim });
                daemon.tell_referee(PeerFrame::Removed { id });
                Err(SysvError::ETIMEDOUT)
            }
        }
    }

    /// How this caller reaches an object: by the kernel if they share it.
    pub(crate) fn object(&self, id: ObjectId, home: NodeId, kernel: Option<KernelId>) -> Answer {
        let place = match kernel {
            Some(kernel) if self.world.ipc_is_ours && kernel != KernelId::NONE => {
                Place::Here { kernel }
            }
            _ => Place::There { home },
        };
        Answer::Object { id, place }
    }

    fn resolve(&self, kind: Kind, id: ObjectId, deadline: Deadline) -> Result<Answer, SysvError> {
        let me = self.daemon.links.me();
        if let Some(record) = self.daemon.home.find(id).map_err(io_error)? {
            let right = record.kind == kind;
            return if right { Ok(self.object(id, me, Some(record.kernel))) } else { invalid() };
        }
        match self.daemon.ask_referee(deadline, |req| PeerFrame::Resolve { req, id }) {
            Ok(PeerFrame::Resolved { found: Some(Located { kind: is, home, .. }), .. })
                if is == kind && home != me =>
            {
                Ok(self.object(id, home, None))
            }
            Ok(_) => invalid(),
            Err(Unanswered::TimedOut | Unanswered::Lost) => Err(SysvError::ETIMEDOUT),
        }
    }

    /// A process image gets its `done` page, and is watched from now on.
    fn join(&self) -> Result<Reply, SysvError> {
        let daemon = self.daemon;
        let client = self.client(daemon.await_admission()?);
        let (joined, _) = daemon.clients.share_of(self.peer.uid);
        self.check_share(joined, daemon.clients.image(client).is_some())?;
        let pidfd = Arc::new(self.peer.pidfd.try_clone().map_err(io_error)?);
        let joined = daemon.change_clients(|clients| match clients.join(client, self.peer.uid) {
            Ok((image, done, mut kept, posts)) => {
                kept.hold.push((Held::Client(client), pidfd.clone()));
                (kept, Ok((image, done, posts)))
            }
            Err(error) => (Kept::default(), Err(error)),
        });
        let (image, done, posts) = joined.map_err(io_error)?;
        posts.into_iter().for_each(|(node, frame)| daemon.links.post(node, frame));
        daemon.undertaker.watch(Watched::Client(client), pidfd).map_err(io_error)?;
        let done = done.try_clone().map_err(io_error)?;
        Ok((Answer::Joined { client, image }, Some(done)))
    }

    /// Opens a wire: the ticket by link, then the connection, of which a copy stays here.
    fn open_wire(&self, home: NodeId, slot: Slot, deadline: Deadline) -> Result<Reply, SysvError> {
        let daemon = self.daemon;
        let caller = self.vouch()?;
        let client = caller.client;
        let image = daemon.clients.image(client).ok_or(SysvError::EINVAL)?;
        if slot.0 >= SESSIONS_MAX {
            return Err(SysvError::EINVAL);
        }
        let (_, wires) = daemon.clients.share_of(self.peer.uid);
        self.check_share(wires, daemon.clients.has_wire(client, slot))?;
        // A home that nobody knows would never bury this client.
        daemon.links.await_link(home, deadline).map_err(|unanswered| match unanswered {
            Unanswered::Lost => SysvError::EIDRM,
            Unanswered::TimedOut => SysvError::ETIMEDOUT,
        })?;
        let (ticket, secret) = draw()?;
        daemon.clients.meets(client, home);
        let withdrawals = daemon.withdrawals();
        let session = SessionId { client, image, slot };
        let (socket, terms) = if home == daemon.links.me() {
            self.own_wire(&caller, session, ticket, &secret)?
        } else {
            self.remote_wire(home, &caller, session, ticket, &secret, deadline)?
        };
        self.keep_wire(client, image, slot, home, &socket)?;
        daemon.counters.add(Counted::WiresOpened);
        if daemon.withdrawals() != withdrawals {
            // What let it in may count no more; its client opens another if that may be.
            let _ = rustix::net::shutdown(&socket, rustix::net::Shutdown::Both);
        }
        Ok((Answer::Wire { secret, terms }, Some(socket)))
    }

    /// `ENOMEM` for one more of what the caller's user has so many already; one that takes the
    /// place of another is none more.
    fn check_share(&self, has: usize, in_place: bool) -> Result<(), SysvError> {
        if in_place || has < self.daemon.user_share() {
            return Ok(());
        }
        let reason = "refused: user_clients_max is reached";
        self.daemon.refusals.of_program(self.peer.pid, self.peer.uid, reason);
        Err(SysvError::ENOMEM)
    }

    /// To a home elsewhere: over the network.
    fn remote_wire(
        &self,
        home: NodeId,
        caller: &Caller,
        session: SessionId,
        ticket: TicketId,
        secret: &Secret,
        deadline: Deadline,
    ) -> Result<(OwnedFd, WireTerms), SysvError> {
        let daemon = self.daemon;
        let frame = |req| PeerFrame::Ticket {
            req,
            ticket,
            secret: secret.clone(),
            session,
            caller: caller.clone(),
        };
        let terms = match daemon.links.ask(home, deadline, frame) {
            Ok(PeerFrame::Ticketed { outcome, .. }) => outcome?,
            Ok(_) => return Err(SysvError::EIO),
            Err(Unanswered::Lost) => return Err(SysvError::EIDRM),
            Err(Unanswered::TimedOut) => return Err(SysvError::ETIMEDOUT),
        };
        let address = daemon.links.address(home).ok_or(SysvError::EIDRM)?;
        let stream = self.dial(address).and_then(|stream| {
            let preamble = Preamble(Purpose::Wire(ticket)).encode();
            channel::send_all(&stream, &preamble).map_err(io::Error::other)?;
            Ok(stream)
        });
        let stream = stream.map_err(|error| {
            tracing::warn!(op = "wire", peer = %home, %error);
            SysvError::EAGAIN
        })?;
        Ok((stream, terms))
    }

    /// Over a line that loses packets the other end may give up a connection that is being made.
    fn dial(&self, address: SocketAddr) -> io::Result<OwnedFd> {
        let config = self.daemon.config();
        let mut dialled = self.daemon.road.dial(&config, address, DIAL_WAIT);
        for _ in 1..DIALS_MAX {
            match &dialled {
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {
                    dialled = self.daemon.road.dial(&config, address, DIAL_WAIT);
                }
                _ => break,
            }
        }
        dialled
    }

    /// To ourselves, for a client in another IPC namespace: a socket pair.
    fn own_wire(
        &self,
        caller: &Caller,
        session: SessionId,
        ticket: TicketId,
        secret: &Secret,
    ) -> Result<(OwnedFd, WireTerms), SysvError> {
        let daemon = self.daemon;
        let account = own_account(caller);
        let terms = daemon.issue(ticket, secret.clone(), session, account)?;
        let pair = rustix::net::socketpair(
            AddressFamily::UNIX,
            SocketType::STREAM,
            SocketFlags::CLOEXEC,
            None,
        );
        let (ours, theirs) = pair.map_err(|_| SysvError::ENOMEM)?;
        let admitted = daemon.stand_ins.redeem(ticket).ok_or(SysvError::EIO)?;
        daemon.stand_ins.deliver(&admitted, &theirs);
        Ok((ours, terms))
    }

    /// A copy of the wire stays here and in the keeper. A client that has ended meanwhile is
    /// reported again: home may have made its stand-in after the first report.
    fn keep_wire(
        &self,
        client: ClientId,
        image: Image,
        slot: Slot,
        home: NodeId,
        socket: &OwnedFd,
    ) -> Result<(), SysvError> {
        let daemon = self.daemon;
        let added = daemon.change_clients(|clients| {
            let added = clients.add_wire(client, image, slot, home, socket);
            let named = added.as_ref().ok().and_then(Option::clone);
            (Kept { hold: named.into_iter().collect(), ..Kept::default() }, added)
        });
        match added.map_err(io_error)? {
            Some((_, copy)) => {
                daemon.undertaker.watch(Watched::Wire(client, slot), copy).map_err(io_error)
            }
            None => {
                let posts = daemon.clients.end_again(client, home);
                posts.into_iter().for_each(|(node, frame)| daemon.links.post(node, frame));
                Err(SysvError::EINVAL)
            }
        }
    }

    fn removed(&self, id: ObjectId) -> Answer {
        match self.daemon.home.strike_if_gone(id) {
            Ok(true) => {
                tracing::info!(op = "remove", %id);
                self.daemon.tell_referee(PeerFrame::Removed { id });
            }
            Ok(false) => {}
            Err(error) => tracing::error!(op = "remove", %id, %error),
        }
        Answer::Done
    }

    fn describe(
        &self,
        id: ObjectId,
        pids: [i32; 2],
        deadline: Deadline,
    ) -> Result<Answer, SysvError> {
        let key = match self.daemon.home.find(id).map_err(io_error)? {
            Some(record) => record.key,
            None => match self.daemon.ask_referee(deadline, |req| PeerFrame::Resolve { req, id }) {
                Ok(PeerFrame::Resolved { found: Some(located), .. }) => located.key,
                _ => return invalid(),
            },
        };
        let pids = pids.map(|pid| self.daemon.pids.on_its_node(pid));
        Ok(Answer::Described { key, pids })
    }

    fn list(
        &self,
        kind: Kind,
        after: Option<ObjectId>,
        deadline: Deadline,
    ) -> Result<Answer, SysvError> {
        match self.daemon.ask_referee(deadline, |req| PeerFrame::List { req, kind, after }) {
            Ok(PeerFrame::Listed { rows, .. }) => Ok(Answer::Rows(rows)),
            Ok(_) => Err(SysvError::EIO),
            Err(Unanswered::TimedOut | Unanswered::Lost) => Err(SysvError::ETIMEDOUT),
        }
    }

    fn client(&self, node: NodeId) -> ClientId {
        ClientId { node, pid: self.peer.pid, started: self.peer.started }
    }

    /// The caller as the kernel shows it.
    pub(crate) fn vouch(&self) -> Result<Caller, SysvError> {
        Ok(self.caller_on(self.daemon.await_admission()?))
    }

    /// The same if this node is that.
    pub(crate) fn caller_on(&self, node: NodeId) -> Caller {
        let peer = self.peer;
        let groups: Vec<_> = peer.groups.iter().copied().take(GROUPS_MAX).collect();
        let name = |gid: &u32| credentials::group_name(*gid).unwrap_or_default();
        let group_names = std::iter::once(&peer.gid).chain(&groups).map(name).collect();
        Caller {
            client: self.client(node),
            uid: peer.uid,
            gid: peer.gid,
            user_name: credentials::user_name(peer.uid),
            group_names,
            groups,
            rights: peer.rights(self.tid),
        }
    }
}

fn plain(answer: Answer) -> Reply {
    (answer, None)
}

fn invalid() -> Result<Answer, SysvError> {
    Err(SysvError::EINVAL)
}

/// Our own files or descriptors fail: the program cannot know more than that.
#[allow(clippy::needless_pass_by_value)] // the shape map_err wants
fn io_error(error: io::Error) -> SysvError {
    tracing::error!(op = "call", %error);
    SysvError::EIO
}

/// A ticket nobody can guess, and its secret.
fn draw() -> Result<(TicketId, Secret), SysvError> {
    let (mut ticket, mut secret) = ([0; 8], [0; 32]);
    let drawn = getrandom::fill(&mut ticket).and_then(|()| getrandom::fill(&mut secret));
    drawn.map_err(|_| SysvError::EIO)?;
    Ok((TicketId(u64::from_ne_bytes(ticket)), Secret(secret)))
}
