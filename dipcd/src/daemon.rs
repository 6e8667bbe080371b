//! One running dipcd: what its roles share, and which role a frame is for.
//!
//! Locks of tables are taken one at a time and never held over I/O, except that the referee's, and
//! the clients' for a census, are held while frames are posted (posting does not wait). Those that
//! guard nothing but an order are taken before them: `serving`, then `starting` or `changing`.
#![forbid(unsafe_code)]

use crossbeam_channel::{Receiver, Sender, TrySendError};
use parking_lot::{Condvar, Mutex, RwLock};
use std::collections::HashSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use dipc_core::referee::{Event, LinkNo};
use dipc_wire::client::WireTerms;
use dipc_wire::codec::ByteOrder;
use dipc_wire::ids::{ClientId, Epoch, Incarnation, NodeId, Req, Secret, SessionId, TicketId};
use dipc_wire::keeper::{Account, Cause, Held, StandIn};
use dipc_wire::limits::NODES_MAX;
use dipc_wire::noise::{NodeKey, PublicKey};
use dipc_wire::peer::{Claimed, Member, PeerFrame};
use dipc_wire::sysv::SysvError;

use crate::addressee::{self, Addressee};
use crate::allow::AllowList;
use crate::clients::{Clients, Kept};
use crate::clock::{Deadline, now_ms};
use crate::config::{Config, QueueOnLoss, Timeouts};
use crate::disk::LibDir;
use crate::home::{Home, Verdict};
use crate::hosted::Hosted;
use crate::keep::Keep;
use crate::links::{Links, Unanswered};
use crate::memory::Memory;
use crate::metrics::{Counted, Counters};
use crate::names::Names;
use crate::pids::Pids;
use crate::proof::Proof;
use crate::refusals::Refusals;
use crate::road::Road;
use crate::settings::Settings;
use crate::stand_ins::StandIns;
use crate::sys::ipc;
use crate::undertaker::{Undertaker, Watched};
use crate::{home_work, link};

/// Stack of a thread that dials.
const STACK_BYTES: usize = 256 << 10;

/// Everything the roles share.
pub struct Daemon {
    /// Byte order of links and wires (`-n`).
    pub order: ByteOrder,
    /// This life.
    pub incarnation: Incarnation,
    /// This node's own key.
    pub node_key: NodeKey,
    /// What survives a reboot.
    pub lib: LibDir,
    /// How links and wires reach other nodes (`-u`).
    pub road: Road,
    /// Links to other nodes.
    pub links: Links,
    /// Objects that live here.
    pub home: Home,
    /// Local processes with remote sessions.
    pub clients: Clients,
    /// Remote processes with sessions here.
    pub stand_ins: StandIns,
    /// Ends that are waited for.
    pub undertaker: Undertaker,
    /// What outlives us.
    pub keep: Arc<Keep>,
    /// Segments on this node.
    pub memory: Arc<Memory>,
    /// Where the configuration comes from.
    pub settings: Settings,
    /// What has happened, in numbers.
    pub counters: Counters,
    /// The mailbox server, if this dipcd has one.
    pub hosted: Hosted,
    /// Since when.
    pub started: Instant,
    /// Who was turned away lately.
    pub refusals: Refusals,
    /// How many descriptors this process may have.
    pub(crate) descriptors: u64,
    pub(crate) config: RwLock<Arc<Config>>,
    pub(crate) allow: RwLock<AllowList>,
    pub(crate) pids: Pids,
    /// Set when this node becomes the referee, at its start or later.
    pub(crate) names: OnceLock<Names>,
    pub(crate) epoch: AtomicU64,
    /// Addresses that a thread dials.
    pub(crate) dialled: Mutex<HashSet<SocketAddr>>,
    pub(crate) stopping: Mutex<bool>,
    pub(crate) woken: Condvar,
    /// See [`Daemon::withdrawals`].
    pub(crate) withdrawn: AtomicU64,
    /// See [`Daemon::change_clients`].
    pub(crate) changing: Mutex<()>,
    /// By node: one link of it is served at a time.
    pub(crate) serving: [Mutex<()>; NODES_MAX as usize + 1],
    /// One stand-in is started at a time, so that two wires of one process share it.
    pub(crate) starting: Mutex<()>,
}

impl Daemon {
    /// The configuration as it is now.
    pub fn config(&self) -> Arc<Config> {
        self.config.read().clone()
    }

    /// Its bounds of waits.
    pub fn timeouts(&self) -> Timeouts {
        self.config.read().timeouts
    }

    /// The reign we accepted last.
    pub fn epoch(&self) -> Epoch {
        Epoch(self.epoch.load(Ordering::Acquire))
    }

    /// The referee's shell, if the referee is here.
    pub fn names(&self) -> Option<&Names> {
        self.names.get()
    }

    /// Whether an address may connect.
    pub fn permits(&self, address: IpAddr) -> bool {
        self.allow.read().permits(address)
    }

    /// Goes on with files that were read again, and ends what they withdraw. Or the entries that
    /// cannot change while dipcd runs, and then nothing changes.
    pub fn reload(&self, new: Config, allow: AllowList) -> Result<(), Vec<&'static str>> {
        let before = self.config();
        let merged = Arc::new(before.reload(new)?);
        *self.config.write() = merged;
        let allowed_before = std::mem::replace(&mut *self.allow.write(), allow);
        self.withdraw(&before.cluster_key, &allowed_before);
        Ok(())
    }

    /// What this node proves to the one at an address.
    pub fn proof_for(&self, address: IpAddr) -> Proof {
        Proof::offered(&self.config().cluster_key, &self.allow.read(), address)
    }

    /// What a peer from there may prove: any of these, at least one.
    pub fn proofs_from(&self, address: IpAddr) -> Vec<Proof> {
        Proof::accepted(&self.config().cluster_key, &self.allow.read(), address)
    }

    /// Whether the end has begun.
    pub fn is_stopping(&self) -> bool {
        *self.stopping.lock()
    }

    /// What is odd about the allow list, for the log.
    pub fn allow_notice(&self) -> Option<String> {
        self.allow.read().notice(self.config().referee.ip())
    }

    /// Begins the end: whoever pauses wakes up.
    pub fn begin_stop(&self) {
        *self.stopping.lock() = true;
        self.woken.notify_all();
    }

    /// Waits a while, or until the end begins.
    pub fn pause(&self, wait: Duration) {
        let mut stopping = self.stopping.lock();
        if !*stopping {
            self.woken.wait_for(&mut stopping, wait);
        }
    }

    /// Asks the referee, wherever it is.
    pub fn ask_referee(
        &self,
        deadline: Deadline,
        frame: impl Fn(Req) -> PeerFrame,
    ) -> Result<PeerFrame, Unanswered> {
        let referee = self.links.await_referee(deadline)?;
        match self.links.ask(referee, deadline, &frame) {
            // A referee that is silent may come back; names wait for it.
            Err(Unanswered::Lost) => {
                let is_lost =
                    || self.links.is_lost(referee) && self.links.referee() == Some(referee);
                while !deadline.is_over() && is_lost() && !self.is_stopping() {
                    self.pause(Duration::from_millis(100));
                }
                // Another may have its place.
                let referee = self.links.await_referee(deadline)?;
                self.links.ask(referee, deadline, &frame).map_err(|_| Unanswered::TimedOut)
            }
            other => other,
        }
    }

    /// Tells the referee; what it must know it hears again after the next Hello.
    pub fn tell_referee(&self, frame: PeerFrame) {
        if let Some(referee) = self.links.referee() {
            self.links.post(referee, frame);
        }
    }

    /// This node's number, or `ETIMEDOUT` if the referee gives none in time.
    pub fn await_admission(&self) -> Result<NodeId, SysvError> {
        let deadline = Deadline::after(self.timeouts().employer_referee);
        self.links.await_admission(deadline).ok_or(SysvError::ETIMEDOUT)
    }

    /// Changes the clients and tells the keeper. One change at a time: a release that overtook the
    /// hold before it would leave a descriptor that nobody knows of.
    pub fn change_clients<T>(&self, change: impl FnOnce(&Clients) -> (Kept, T)) -> T {
        let _in_order = self.changing.lock();
        let (kept, changed) = change(&self.clients);
        self.keep(kept);
        changed
    }

    /// Tells the keeper what has changed.
    pub fn keep(&self, kept: Kept) {
        for (name, fd) in &kept.hold {
            self.keep.hold(name.clone(), fd);
        }
        for name in &kept.release {
            self.undertake_no_more(name);
            self.keep.release(name);
        }
    }

    fn undertake_no_more(&self, name: &Held) {
        match name {
            Held::Client(client) => self.undertaker.forget(&Watched::Client(*client)),
            Held::Wire { client, slot, .. } => {
                self.undertaker.forget(&Watched::Wire(*client, *slot));
            }
            _ => {}
        }
    }

    /// Lets a wire of this session in, as this account: its stand-in is running when this returns.
    pub fn issue(
        &self,
        ticket: TicketId,
        secret: Secret,
        session: SessionId,
        account: Account,
    ) -> Result<WireTerms, SysvError> {
        let stand_in = StandIn { client: session.client, account };
        let one_at_a_time = self.starting.lock();
        if !self.stand_ins.find(&stand_in)? {
            self.check_share(&stand_in)?;
            let control = self.keep.stand_in(&stand_in)?;
            self.counters.add(Counted::StandInsStarted);
            self.stand_ins.add(stand_in.clone(), control.clone());
            let watched = self.undertaker.watch(Watched::StandIn(stand_in.clone()), control);
            watched.map_err(|_| SysvError::EAGAIN)?;
        }
        drop(one_at_a_time);
        let msgmax = ipc::msgmax()?;
        let terms = WireTerms { cipher: self.config().cipher, order: self.order, msgmax };
        self.stand_ins.issue(ticket, secret, session, stand_in, terms)?;
        Ok(terms)
    }

    /// How much of each thing one user may have: `user_clients_max`, and no more than an eighth of
    /// our descriptors, of which a call takes two, a process two, and a wire one.
    pub fn user_share(&self) -> usize {
        let eighth = usize::try_from(self.descriptors / 8).unwrap_or(usize::MAX);
        eighth.min(self.config().user_limits.clients as usize)
    }

    /// `ENOMEM` for a program whose account, or whose node, has its share of stand-ins already.
    fn check_share(&self, stand_in: &StandIn) -> Result<(), SysvError> {
        if self.stand_ins.has_room(stand_in, self.config().user_limits.clients as usize) {
            return Ok(());
        }
        let ClientId { node, pid, .. } = stand_in.client;
        let reason = format!("refused: node {node} or this account has too many stand-ins");
        self.refusals.of_program(pid, stand_in.account.uid, reason);
        Err(SysvError::ENOMEM)
    }

    /// What `queue_on_loss` says of a client whose node is lost.
    pub fn loss_cause(&self) -> Cause {
        match self.config().queue_on_loss {
            QueueOnLoss::Again => Cause::LostAgain,
            QueueOnLoss::Drop => Cause::LostDrop,
        }
    }

    /// Whether this node dials that address: the referee's, and those of lower numbers, if they may
    /// take part.
    pub fn wants_to_dial(&self, address: SocketAddr) -> bool {
        if self.is_stopping() || self.names().is_some() || !self.permits(address.ip()) {
            return false;
        }
        let me = self.links.me();
        let lower = |node: NodeId| me.is_admitted() && node < me;
        address == self.config().referee
            || self.links.others().iter().any(|(node, at)| *at == address && lower(*node))
    }

    /// The key by which the list, read last, knows the node at an address.
    pub(crate) fn node_key_of(&self, address: IpAddr) -> Option<PublicKey> {
        self.allow.read().node_key(address)
    }

    /// Starts a dialler for each address that needs one and has none.
    pub fn dial_all(self: &Arc<Self>) {
        let addresses = self.links.others().into_iter().map(|(_, address)| address);
        for address in addresses.chain([self.config().referee]) {
            if self.wants_to_dial(address) && self.dialled.lock().insert(address) {
                let daemon = self.clone();
                let dial = move || {
                    link::dial(&daemon, address);
                    daemon.dialled.lock().remove(&address);
                };
                let thread = thread::Builder::new().name("dialler".into());
                if let Err(error) = thread.stack_size(STACK_BYTES).spawn(dial) {
                    tracing::error!(op = "dial", peer = %address, %error);
                    self.dialled.lock().remove(&address);
                }
            }
        }
    }

    /// A link is up: whoever is home there hears what ended meanwhile, and who lives.
    pub fn linked(&self, node: NodeId) {
        self.counters.add(Counted::LinksUp);
        // The sooner it is answered, the sooner a lease runs.
        self.links.post(node, PeerFrame::Heartbeat { sent_ms: now_ms() });
        self.clients.census(node, |frame| self.links.post(node, frame));
    }

    /// A link has ended.
    pub fn unlinked(&self, link: LinkNo) {
        if let Some(names) = self.names() {
            names.unlinked(self, link);
        }
    }

    /// A node is lost to us: our wires to it break, and its clients end here.
    pub fn lost(&self, node: NodeId) {
        self.counters.add(Counted::NodesLost);
        let (wires, clients) = self.cut_off(node);
        tracing::warn!(op = "lost", peer = %node, wires, clients, "not heard of for node_timeout");
    }

    /// Ends everything with a node: how many wires to it, and how many clients of it.
    pub(crate) fn cut_off(&self, node: NodeId) -> (usize, usize) {
        self.memory.lost(node);
        let wires = self.change_clients(|clients| {
            let kept = clients.lose_home(node);
            let wires = kept.release.len();
            (kept, wires)
        });
        (wires, self.stand_ins.lose_node(node, self.loss_cause()))
    }

    /// A frame of ours to ourselves. An order by a link of ours that has ended is not obeyed: the
    /// referee gives it again by the next.
    pub fn receive_from_ourselves(
        self: &Arc<Self>,
        link: LinkNo,
        frame: PeerFrame,
        work: &Sender<PeerFrame>,
    ) {
        if !addressee::is_of_referee(&frame) || link == self.links.own_link() {
            self.receive(self.links.me(), link, frame, work);
        }
    }

    /// A frame has come from a node, perhaps ourselves. What may take a moment is given to `work`.
    pub fn receive(
        self: &Arc<Self>,
        from: NodeId,
        link: LinkNo,
        frame: PeerFrame,
        work: &Sender<PeerFrame>,
    ) {
        if addressee::is_of_referee(&frame) && !self.is_referee(from) {
            tracing::warn!(op = "frame", peer = %from, "only a referee says this; closing");
            self.links.close(from);
            return;
        }
        self.counters.add(Counted::FramesReceived);
        match addressee::of(&frame) {
            Addressee::Daemon => self.hear(from, frame),
            Addressee::Asker(req) => {
                if let Some(unasked) = self.links.questions.answer(from, req, frame) {
                    self.not_waited_for(from, unasked);
                }
            }
            Addressee::Worker => {
                // A worker that has ended has no link any more.
                if let Err(TrySendError::Full(_)) = work.try_send(frame) {
                    tracing::warn!(op = "frame", peer = %from, "too much at once; closing");
                    self.links.close(from);
                }
            }
            Addressee::Referee => match self.names() {
                Some(names) => names.step(self, Event::Frame { link, frame }),
                None => {
                    tracing::warn!(op = "frame", peer = %from, "meant for a referee; closing");
                    self.links.close(from);
                }
            },
        }
    }

    /// What takes no time.
    fn hear(self: &Arc<Self>, from: NodeId, frame: PeerFrame) {
        match frame {
            PeerFrame::Heartbeat { sent_ms } => {
                self.links.post(from, PeerFrame::HeartbeatEcho { sent_ms });
            }
            PeerFrame::HeartbeatEcho { sent_ms } => {
                self.memory.answered(from, sent_ms, self.config().liveness.lease);
            }
            PeerFrame::Admitted { node, epoch } => self.admitted(from, node, epoch),
            PeerFrame::Members(members) => self.members(&members),
            PeerFrame::Confirmed { id } => self.verdict(id, Verdict::Confirmed),
            PeerFrame::Denied { id } => self.verdict(id, Verdict::Denied),
            PeerFrame::Detached { id, client } => {
                crate::memory::ends::ended_elsewhere(self, from, id, client);
            }
            PeerFrame::Buried { client, image } => {
                self.change_clients(|clients| (clients.buried(from, client, image), ()));
            }
            _ => unreachable!("{frame:?} is for somebody else"),
        }
    }

    /// Whether a node is the referee, whose orders alone are obeyed.
    fn is_referee(&self, node: NodeId) -> bool {
        match self.names() {
            Some(_) => node == self.links.me(),
            None => self.links.referee() == Some(node),
        }
    }

    /// The referee has said who there is.
    fn members(self: &Arc<Self>, members: &[Member]) {
        let gone = self.links.set_members(members);
        // On the referee's node a new member may be linked before this comes.
        let nodes = members.iter().map(|member| member.node);
        let nodes = nodes.chain(self.links.linked()).collect();
        self.change_clients(|clients| (clients.only_members(&nodes), ()));
        if self.names().is_none() {
            self.links.close_strangers();
            for node in gone {
                let (wires, clients) = self.cut_off(node);
                tracing::warn!(op = "members", peer = %node, wires, clients, "no member any more");
            }
        }
        self.dial_all();
    }

    /// An answer that came too late. A leave to create that nobody will use is given back, or the
    /// key would stay claimed for `referee_timeout`.
    fn not_waited_for(&self, from: NodeId, answer: PeerFrame) {
        if let PeerFrame::Claimed { outcome: Claimed::Granted { claim, .. }, .. } = answer {
            self.links.post(from, PeerFrame::Abandon { claim });
        }
    }

    /// The slower frames of one link, in order. Its node is asked for each time: our own number
    /// comes by our own link, and a link that was replaced is nobody's. What it still has would
    /// come after the new one's census, so nothing of it is begun once the new one is served.
    pub fn work(self: &Arc<Self>, from: impl Fn() -> Option<NodeId>, jobs: &Receiver<PeerFrame>) {
        let mut living = HashSet::new();
        for frame in jobs {
            let Some(node) = from() else { return };
            let _in_turn = self.serving[usize::from(node.number())].lock();
            if from() == Some(node) {
                home_work::serve(self, node, frame, &mut living);
            }
        }
    }

    /// The referee has given us our number. One of an earlier reign is not to be believed.
    fn admitted(&self, from: NodeId, node: NodeId, epoch: Epoch) {
        if epoch < self.epoch() {
            tracing::error!(op = "admitted", peer = %from, theirs = epoch.0, ours = self.epoch().0,
                "a referee of an earlier reign; its link is closed");
            self.links.close(from);
            return;
        }
        let stored = self
            .lib
            .set_epoch(epoch)
            .and_then(|()| if self.lib.node()? == node { Ok(()) } else { self.lib.set_node(node) });
        if let Err(error) = stored {
            tracing::error!(op = "admitted", %error, "this node's number cannot be kept");
            self.links.close(from);
            return;
        }
        self.epoch.store(epoch.0, Ordering::Release);
        self.links.set_me(node);
        self.links.set_referee(from);
        tracing::info!(op = "admitted", %node, referee = %from, epoch = epoch.0);
    }
}
