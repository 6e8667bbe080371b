//! From a configuration to a running dipcd: what is checked, opened and started, in which order.
//!
//! Whatever can be refused is refused before anything of an earlier dipcd is touched: the state
//! directory must be ours alone, the socket nobody else's, the port free.
#![forbid(unsafe_code)]

use parking_lot::{Condvar, Mutex, RwLock};
use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::process::{Resource, getrlimit, setrlimit};
use std::collections::{BTreeSet, HashSet};
use std::io;
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use dipc_core::referee::{self, LinkNo};
use dipc_wire::keeper::Held;
use dipc_wire::peer::PeerFrame;

use crate::allow::AllowList;
use crate::clients::Clients;
use crate::config::{Config, Mailbox, SocketAccess};
use crate::daemon::Daemon;
use crate::datagrams::Driver;
use crate::disk::{LibDir, make_private_dir};
use crate::home::Home;
use crate::hosted::{self, Hosted};
use crate::keep::{Found, Keep};
use crate::links::Links;
use crate::memory::{self, Memory};
use crate::metrics::{self, Counters};
use crate::names::Names;
use crate::pids::Pids;
use crate::refusals::Refusals;
use crate::road::Road;
use crate::settings::Settings;
use crate::stand_ins::StandIns;
use crate::sys::{credentials, packets};
use crate::undertaker::{Undertaker, Watch, Watched};
use crate::{back_end, front_end, link, policy, privileges, sockets, succession};

/// Calls that may wait while no dipcd accepts them.
const BACKLOG: i32 = 4096;
/// Between two looks for objects that are gone.
const SWEEP: Duration = Duration::from_secs(2);
/// Stack of the threads that are started once.
const STACK_BYTES: usize = 256 << 10;

/// What must stay open as long as dipcd runs.
pub struct Lock {
    _file: OwnedFd,
}

/// Starts everything; dipcd serves when this returns.
pub fn start(settings: Settings, config: Config) -> io::Result<(Arc<Daemon>, Lock)> {
    let options = settings.options.clone();
    let missing = missing(&config);
    if !missing.is_empty() {
        return Err(io::Error::other(missing.join("\n")));
    }
    raise_descriptor_limit();
    make_state_dir(&config)?;
    let lock = lock_state_dir(&config.state_dir)?;
    let lib = LibDir::open(&config.lib_dir)?;
    succession::notice(&lib)?;
    let allow = AllowList::of_node(&config, options.admission).map_err(|errors| joined(&errors))?;
    let port = sockets::listen(config.this_machine)?;
    let node_key = lib.node_key()?;
    let (road, driver) = Road::open(options.transport, &config, node_key.private())?;
    refuse_used_socket(&config)?;
    let extras = Extras::open(&config)?;
    let (keep, found) = Keep::open(&config.state_dir)?;
    let listener = listener(&config, &keep, &found)?;
    // Every thread comes after this.
    privileges::keep_needed()?;
    privileges::say_what_is_missing()?;
    let incarnation = lib.next_incarnation()?;
    let (own, own_frames) = crossbeam_channel::unbounded();
    let links = Links::new(own);
    links.set_me(lib.node()?);
    let keep = Arc::new(keep);
    let home = Home::open(&config.state_dir)?;
    let memory = Memory::new(keep.clone(), home.segments.clone(), links.own_number())?;
    memory.open_families(&config.liveness)?;
    let daemon = Arc::new(Daemon {
        order: options.order,
        incarnation,
        node_key,
        road,
        links,
        home,
        clients: Clients::default(),
        stand_ins: StandIns::default(),
        undertaker: Undertaker::new()?,
        keep,
        memory,
        refusals: Refusals::default(),
        descriptors: getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX),
        allow: RwLock::new(allow),
        pids: Pids::open(&config.state_dir)?,
        names: OnceLock::new(),
        settings,
        counters: Counters::default(),
        hosted: Hosted::default(),
        started: Instant::now(),
        epoch: AtomicU64::new(lib.epoch()?.0),
        dialled: Mutex::new(HashSet::new()),
        stopping: Mutex::new(false),
        woken: Condvar::new(),
        withdrawn: AtomicU64::new(0),
        changing: Mutex::new(()),
        serving: [const { Mutex::new(()) }; _],
        starting: Mutex::new(()),
        lib,
        config: RwLock::new(Arc::new(config)),
    });
    recover(&daemon, found)?;
    start_threads(&daemon, own_frames, port, driver)?;
    back_end::start(&daemon, listener)?;
    extras.start(&daemon)?;
    policy::publish(&daemon.config())?;
    Ok((daemon, lock))
}

/// What the configuration names and this machine does not have.
pub fn missing(config: &Config) -> Vec<String> {
    let mut missing = Vec::new();
    if let Some(group) = &config.socket_access.group
        && credentials::group_by_name(group.as_str()).is_none()
    {
        missing.push(format!("socket_group: there is no group {group}"));
    }
    if config.mailbox.is_some()
        && let Err(error) = hosted::find()
    {
        missing.push(error.to_string());
    }
    missing
}

/// Wires and calls take descriptors; the hard limit is what the administrator allows.
fn raise_descriptor_limit() {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        tracing::warn!(op = "start", %error, "the limit on descriptors stays as it is");
    }
}

/// The directory of a socket must be open to its users; what is ours in it is not. So others may
/// pass a state directory that the socket stands in, and not look.
fn make_state_dir(config: &Config) -> io::Result<()> {
    if !config.state_dir.exists() {
        make_directory_of(&config.state_dir)?;
        make_private_dir(&config.state_dir)?;
        if config.socket.starts_with(&config.state_dir) {
            let passable = std::fs::Permissions::from_mode(0o711);
            std::fs::set_permissions(&config.state_dir, passable)?;
        }
    }
    make_directory_of(&config.socket)
}

fn make_directory_of(path: &Path) -> io::Result<()> {
    let Some(parent) = path.parent() else { return Ok(()) };
    std::fs::create_dir_all(parent).map_err(|error| named(parent, &error))
}

/// Refuses to be the second dipcd of a state directory.
pub fn lock_state_dir(state_dir: &Path) -> io::Result<Lock> {
    let path = state_dir.join("lock");
    let flags = OFlags::CREATE | OFlags::RDWR | OFlags::CLOEXEC;
    let file = rustix::fs::open(&path, flags, Mode::from_raw_mode(0o600))
        .map_err(|error| named(&path, &error.into()))?;
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Lock { _file: file }),
        Err(_) => {
            let what = format!("{}: another dipcd is running here", state_dir.display());
            Err(io::Error::new(io::ErrorKind::AddrInUse, what))
        }
    }
}

/// Somebody answers on the socket, and it is not our own keeper's.
fn refuse_used_socket(config: &Config) -> io::Result<()> {
    let ours = packets::connect(&config.state_dir.join("keeper.sock")).is_ok();
    if !ours && packets::connect(&config.socket).is_ok() {
        let what = format!("{}: another dipcd listens here", config.socket.display());
        return Err(io::Error::new(io::ErrorKind::AddrInUse, what));
    }
    Ok(())
}

/// The socket that the keeper has held, or a new one.
fn listener(config: &Config, keep: &Keep, found: &Found) -> io::Result<Arc<OwnedFd>> {
    let held = found.iter().find(|(name, _)| *name == Held::Listener);
    if let Some((_, listener)) = held
        && config.socket.exists()
    {
        return Ok(listener.clone());
    }
    match std::fs::remove_file(&config.socket) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(named(&config.socket, &error));
        }
        _ => {}
    }
    let SocketAccess { mode, ref group } = config.socket_access;
    let listener = packets::listen(&config.socket, mode, BACKLOG)
        .map_err(|error| named(&config.socket, &error))?;
    if let Some(group) = group {
        let gid = credentials::group_by_name(group.as_str());
        let what = || io::Error::other(format!("socket_group: there is no group {group}"));
        std::os::unix::fs::chown(&config.socket, None, Some(gid.ok_or_else(what)?))?;
    }
    let listener = Arc::new(listener);
    keep.hold(Held::Listener, &listener);
    Ok(listener)
}

/// What an administrator may have besides: opened before rights are dropped, started at the end.
struct Extras {
    metrics: Option<metrics::Door>,
    mailbox: Option<(Mailbox, PathBuf)>,
}

impl Extras {
    fn open(config: &Config) -> io::Result<Extras> {
        let metrics = config.metrics.as_ref().map(metrics::open).transpose()?;
        let with_program = |mailbox| Ok::<_, io::Error>((mailbox, hosted::find()?));
        Ok(Extras { metrics, mailbox: config.mailbox.map(with_program).transpose()? })
    }

    fn start(self, daemon: &Arc<Daemon>) -> io::Result<()> {
        if let Some(door) = self.metrics {
            metrics::serve(daemon, door)?;
        }
        if let Some((mailbox, program)) = self.mailbox {
            hosted::start(daemon, mailbox, program)?;
        }
        Ok(())
    }
}

/// Makes this node the referee, with the record in its `lib_dir`.
pub(crate) fn start_names(daemon: &Arc<Daemon>) -> io::Result<()> {
    let names = new_names(&daemon.lib, &daemon.config())?;
    let names = daemon.names.get_or_init(|| names);
    names.start(daemon)?;
    let number = names.link_up(daemon, &link::own_hello(daemon), None);
    let node = number.recv().map_err(io::Error::other)?.map_err(io::Error::other)?;
    daemon.links.set_referee(node);
    Ok(())
}

fn new_names(lib: &LibDir, config: &Config) -> io::Result<Names> {
    let millis = |wait: Duration| u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
    let bounds = referee::Config {
        claim_timeout_ms: config.timeouts.referee.map(millis),
        node_timeout_ms: millis(config.liveness.node_timeout),
    };
    Ok(Names::new(lib.referee_record()?, bounds))
}

/// Takes over what an earlier dipcd left with the keeper.
fn recover(daemon: &Daemon, found: Found) -> io::Result<()> {
    // Any member may hold something of them; those that do not say so at once.
    let everyone: BTreeSet<_> =
        (1..=dipc_wire::limits::NODES_MAX).filter_map(dipc_wire::ids::NodeId::new).collect();
    let kept = daemon.clients.recover(&found, &everyone);
    memory::recover::recover(daemon, &found)?;
    for (name, fd) in found {
        let watched = match name {
            Held::Client(client) => Watched::Client(client),
            Held::Wire { client, slot, .. } => Watched::Wire(client, slot),
            Held::StandIn(stand_in) => {
                daemon.stand_ins.add(stand_in.clone(), fd.clone());
                Watched::StandIn(stand_in)
            }
            Held::Listener
            | Held::Done(..)
            | Held::File(_)
            | Held::Aside(_)
            | Held::Trap { .. } => continue,
        };
        daemon.undertaker.watch(watched, fd)?;
    }
    daemon.keep(kept);
    Ok(())
}

fn start_threads(
    daemon: &Arc<Daemon>,
    own_frames: crossbeam_channel::Receiver<(LinkNo, PeerFrame)>,
    port: TcpListener,
    driver: Option<Driver>,
) -> io::Result<()> {
    let (work, jobs) = crossbeam_channel::unbounded();
    spawn(daemon, "own-worker", move |daemon| daemon.work(|| Some(daemon.links.me()), &jobs))?;
    spawn(daemon, "own-link", move |daemon| {
        for (link, frame) in own_frames {
            daemon.receive_from_ourselves(link, frame, &work);
        }
    })?;
    spawn(daemon, "undertaker", undertake)?;
    if daemon.config().is_referee() {
        start_names(daemon)?;
    } else {
        daemon.links.remember(&daemon.lib.record_copy()?.members);
    }
    report_to_ourselves(daemon);
    spawn(daemon, "pages", |daemon| daemon.memory.keep_time())?;
    spawn(daemon, "sleepers", |daemon| daemon.memory.look_after_sleepers())?;
    spawn(daemon, "segments", memory::errands::run)?;
    spawn(daemon, "ticker", tick)?;
    spawn(daemon, "sweeper", sweep)?;
    spawn(daemon, "front_end", move |daemon| front_end::run(daemon, &port))?;
    if let Some(driver) = driver {
        spawn(daemon, "datagrams", move |daemon| front_end::run_datagrams(daemon, driver))?;
    }
    daemon.dial_all();
    Ok(())
}

/// No link to ourselves comes up, so what an earlier dipcd had not buried here is said now. Who
/// lives is not: by the time it is heard, others may.
fn report_to_ourselves(daemon: &Daemon) {
    daemon.clients.census(daemon.links.me(), |frame| {
        if matches!(frame, PeerFrame::Ended { .. }) {
            daemon.links.post_to_ourselves(frame);
        }
    });
}

fn spawn(
    daemon: &Arc<Daemon>,
    name: &str,
    run: impl FnOnce(&Arc<Daemon>) + Send + 'static,
) -> io::Result<()> {
    let daemon = daemon.clone();
    let thread = thread::Builder::new().name(name.into()).stack_size(STACK_BYTES);
    thread.spawn(move || run(&daemon)).map(|_| ())
}

/// Each heartbeat: tell everyone that we live, and see who does not.
fn tick(daemon: &Arc<Daemon>) {
    while !daemon.is_stopping() {
        let liveness = daemon.config().liveness;
        for node in daemon.links.linked() {
            daemon.links.post(node, PeerFrame::Heartbeat { sent_ms: crate::clock::now_ms() });
        }
        for node in daemon.links.declare_lost(liveness.node_timeout) {
            daemon.lost(node);
        }
        if let Some(names) = daemon.names() {
            names.step(daemon, referee::Event::Tick);
        }
        daemon.dial_all();
        daemon.refusals.settle();
        daemon.memory.nudge(liveness.node_timeout);
        daemon.keep.look();
        daemon.pause(liveness.heartbeat);
    }
}

/// Now and then, tells the referee which objects are gone. Nobody waits for it: a `*get` of such
/// a key asks home first.
fn sweep(daemon: &Arc<Daemon>) {
    while !daemon.is_stopping() {
        daemon.pause(SWEEP);
        match daemon.home.sweep() {
            Ok(gone) => {
                for id in gone {
                    tracing::info!(op = "remove", %id, "found gone");
                    daemon.tell_referee(PeerFrame::Removed { id });
                }
            }
            Err(error) => tracing::error!(op = "sweep", %error),
        }
    }
}

/// Acts on each end.
fn undertake(daemon: &Arc<Daemon>) {
    loop {
        if let Err(error) = daemon.undertaker.wait(|what, fd| undertake_one(daemon, what, fd)) {
            tracing::error!(op = "undertaker", %error);
            daemon.pause(Duration::from_millis(100));
        }
    }
}

fn undertake_one(daemon: &Arc<Daemon>, what: &Watched, fd: &Arc<OwnedFd>) -> Watch {
    match what {
        Watched::Client(client) => {
            let posts = daemon.change_clients(|clients| clients.process_ended(*client));
            posts.into_iter().for_each(|(node, frame)| daemon.links.post(node, frame));
            Watch::Ends
        }
        Watched::StandIn(stand_in) => {
            let (answers, gone) = daemon.stand_ins.heard(stand_in, fd);
            for answer in answers {
                daemon.links.post(stand_in.client.node, answer);
            }
            if !gone {
                return Watch::GoesOn;
            }
            daemon.keep.release(&Held::StandIn(stand_in.clone()));
            Watch::Ends
        }
        Watched::Wire(client, slot) => {
            daemon.change_clients(|clients| (clients.drop_wire(*client, *slot, fd), ()));
            Watch::Ends
        }
    }
}

fn joined(errors: &[crate::config::Error]) -> io::Error {
    let lines: Vec<_> = errors.iter().map(ToString::to_string).collect();
    io::Error::other(lines.join("\n"))
}

fn named(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}
