//! The referee on this node: the shell around `dipc_core::referee`. It holds the machine's lock,
//! carries its effects to links, and has a thread that writes the record.
//!
//! Effects are posted under the lock: posting order is the machine's order for each node. The
//! record is written without it; `Recorded` lets out what waited.
#![forbid(unsafe_code)]

use crossbeam_channel::{Receiver, Sender, bounded, unbounded};
use parking_lot::Mutex;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::thread;

use dipc_core::referee::{Config, Effect, Event, LinkNo, Record, Referee, Serial};
use dipc_wire::ids::NodeId;
use dipc_wire::preamble::Hello;

use crate::clock::now_ms;
use crate::daemon::Daemon;
use crate::disk::LibDir;
use crate::link;
use crate::links::Link;

/// Stack of the thread that writes.
const STACK_BYTES: usize = 128 << 10;

/// A link as the machine knows it, by its number.
struct Known {
    /// `None`: this node's own, which is no connection.
    link: Option<Arc<Link>>,
    /// Until it is admitted or refused.
    number: Option<Sender<Result<NodeId, String>>>,
}

struct State {
    referee: Referee,
    links: HashMap<LinkNo, Known>,
}

/// What happens first: the machine's effects, and the thread that takes records from here.
type Beginning = (Vec<Effect>, Receiver<(Serial, Record)>);

/// The referee of the cluster, on this node.
pub struct Names {
    state: Mutex<State>,
    records: Sender<(Serial, Record)>,
    /// Until [`Names::start`] takes them: what the machine wants first, and the writer's end.
    pending: Mutex<Option<Beginning>>,
}

impl Names {
    /// A referee with the record of this node. Nothing happens before [`Names::start`].
    pub fn new(record: Record, config: Config) -> Names {
        let (referee, effects) = Referee::start(record, config, now_ms());
        let (records, writer) = unbounded();
        let state = Mutex::new(State { referee, links: HashMap::new() });
        Names { state, records, pending: Mutex::new(Some((effects, writer))) }
    }

    /// Starts the writer and carries out the first effects.
    pub fn start(&self, daemon: &Arc<Daemon>) -> std::io::Result<()> {
        let Some((effects, records)) = self.pending.lock().take() else { return Ok(()) };
        let writer = daemon.clone();
        let thread = thread::Builder::new().name("referee".into()).stack_size(STACK_BYTES);
        thread.spawn(move || write_records(&writer, &records))?;
        self.carry_out(daemon, &mut self.state.lock(), effects);
        Ok(())
    }

    /// A Hello has passed; the number comes by the channel, or why there is none. `link` is `None`
    /// for this node itself.
    pub fn link_up(
        &self,
        daemon: &Daemon,
        hello: &Hello,
        link: Option<Arc<Link>>,
    ) -> Receiver<Result<NodeId, String>> {
        let (number, receiver) = bounded(1);
        let Hello { node, address, incarnation, .. } = *hello;
        let mut state = self.state.lock();
        let link_no = link.as_ref().map_or_else(|| daemon.links.own_link(), |link| link.number);
        state.links.insert(link_no, Known { link, number: Some(number) });
        let event = Event::Linked { link: link_no, node, address, incarnation };
        let effects = state.referee.step(now_ms(), event);
        self.carry_out(daemon, &mut state, effects);
        receiver
    }

    /// Anything else that happens.
    pub fn step(&self, daemon: &Daemon, event: Event) {
        let mut state = self.state.lock();
        let effects = state.referee.step(now_ms(), event);
        self.carry_out(daemon, &mut state, effects);
    }

    /// A link has ended.
    pub fn unlinked(&self, daemon: &Daemon, link: LinkNo) {
        let mut state = self.state.lock();
        if state.links.remove(&link).is_some() {
            let effects = state.referee.step(now_ms(), Event::Unlinked { link });
            self.carry_out(daemon, &mut state, effects);
        }
    }

    fn carry_out(&self, daemon: &Daemon, state: &mut State, effects: Vec<Effect>) {
        let mut effects = VecDeque::from(effects);
        while let Some(effect) = effects.pop_front() {
            match effect {
                Effect::Record { serial, record } => {
                    // The writer lives as long as the daemon.
                    let _ = self.records.send((serial, record));
                }
                Effect::Admit { link, node } => {
                    let Some(known) = state.links.get_mut(&link) else { continue };
                    match &known.link {
                        Some(link) => daemon.links.insert(node, link.clone()),
                        None => daemon.links.set_me(node),
                    }
                    known.answer(Ok(node));
                }
                Effect::Refuse { link, refusal } => {
                    if let Some(known) = state.links.get_mut(&link) {
                        known.answer(Err(format!("{refusal:?}")));
                    }
                }
                Effect::Send { link, frame } => match state.links.get(&link) {
                    Some(Known { link: Some(link), .. }) => link.post(&frame),
                    Some(Known { link: None, .. }) => daemon.links.post_by_own_link(link, frame),
                    None => {}
                },
                Effect::Break { link, node, reason } => {
                    tracing::warn!(op = "referee", peer = %node, ?reason, "its link is closed");
                    match state.links.get(&link) {
                        Some(Known { link: Some(link), .. }) => link.close(),
                        Some(_) => effects.extend(relink(daemon, state, link)),
                        None => {}
                    }
                }
                Effect::DeclaredLost { node } => {
                    tracing::warn!(op = "lost", peer = %node, "its keys are free");
                }
            }
        }
    }
}

/// This node's own link counts no more: it has asked too much, on behalf of its programs or of
/// other nodes. As any other node it links again, and says again what must be known.
fn relink(daemon: &Daemon, state: &mut State, ended: LinkNo) -> Vec<Effect> {
    state.links.remove(&ended);
    let link = daemon.links.renew_own_link();
    state.links.insert(link, Known { link: None, number: None });
    let Hello { node, address, incarnation, .. } = link::own_hello(daemon);
    state.referee.step(now_ms(), Event::Linked { link, node, address, incarnation })
}

impl Known {
    fn answer(&mut self, number: Result<NodeId, String>) {
        if let Some(waiting) = self.number.take() {
            // Whoever waited too long has closed the link.
            let _ = waiting.send(number);
        }
    }
}

/// Writes the newest record of those that wait, again and again.
fn write_records(daemon: &Arc<Daemon>, records: &Receiver<(Serial, Record)>) {
    while let Ok(first) = records.recv() {
        let (serial, record) = records.try_iter().last().unwrap_or(first);
        write_record(&daemon.lib, &record);
        if let Some(names) = daemon.names() {
            names.step(daemon, Event::Recorded { serial });
        }
    }
}

/// Without its record a referee could give a key two homes after a restart: it must not go on.
fn write_record(lib: &LibDir, record: &Record) {
    if let Err(error) = lib.set_referee_record(record) {
        tracing::error!(op = "record", %error, "the referee cannot keep its record; dipcd ends");
        std::process::exit(1);
    }
}
