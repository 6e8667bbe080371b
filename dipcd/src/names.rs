//! The referee on this node: the shell around `dipc_core::referee`. It holds the machine's lock,
//! carries its effects to links, and has a thread that writes the record.
//!
//! Effects are posted under the lock: posting order is the machine's order for each node. The
//! record is written without it; `Recorded` lets out what waited.
#![forbid(unsafe_code)]

use crossbeam_channel::{Receiver, Sender, bounded, unbounded};
use parking_lot::Mutex;
use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::thread;

use dipc_core::referee::{Config, Effect, Event, LinkNo, Record, Referee, Serial};
use dipc_wire::ids::NodeId;
use dipc_wire::peer::{PeerFrame, RecordCopy};
use dipc_wire::preamble::Hello;

use crate::clock::now_ms;
use crate::daemon::Daemon;
use crate::disk::LibDir;
use crate::link;
use crate::links::{Link, Links};

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
    /// As it was written last.
    copy: Mutex<RecordCopy>,
    /// Until [`Names::start`] takes them: what the machine wants first, and the writer's end.
    pending: Mutex<Option<Beginning>>,
}

impl Names {
    /// A referee with the record of this node. Nothing happens before [`Names::start`].
    pub fn new(record: Record, config: Config) -> Names {
        let (referee, effects) = Referee::start(record, config, now_ms());
        let (records, writer) = unbounded();
        let state = Mutex::new(State { referee, links: HashMap::new() });
        let (copy, pending) = (Mutex::default(), Mutex::new(Some((effects, writer))));
        Names { state, records, copy, pending }
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

    /// Every node keeps a copy of the record, should this one be gone for good one day. It is told
    /// before anything that follows from the record.
    fn tell_copy(&self, daemon: &Daemon, record: Record) {
        let Record { epoch, members, ids_taken } = record;
        let copy = RecordCopy { epoch, members, ids_taken };
        // Locked while it is posted, so that no node hears an older one after it.
        let mut last = self.copy.lock();
        last.clone_from(&copy);
        for node in daemon.links.linked() {
            daemon.links.post(node, PeerFrame::Record(copy.clone()));
        }
    }

    /// A link has ended.
    pub fn unlinked(&self, daemon: &Daemon, link: LinkNo) {
        let mut state = self.state.lock();
        if state.links.remove(&link).is_some() {
            let effects = state.referee.step(now_ms(), Event::Unlinked { link });
            self.carry_out(daemon, &mut state, effects);
        }
    }

    /// Where a member listens.
    pub fn address_of(&self, node: NodeId) -> Option<SocketAddr> {
        let state = self.state.lock();
        state.referee.record().member(node).map(|member| member.address)
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
                        Some(link) => {
                            daemon.links.insert(node, link.clone());
                            let copy = self.copy.lock();
                            link.post(&PeerFrame::Record(copy.clone()));
                        }
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
                        Some(_) => {
                            let hello = link::own_hello(daemon);
                            effects.extend(relink(&daemon.links, hello, state, link));
                        }
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
fn relink(links: &Links, hello: Hello, state: &mut State, ended: LinkNo) -> Vec<Effect> {
    state.links.remove(&ended);
    let link = links.renew_own_link();
    state.links.insert(link, Known { link: None, number: None });
    let Hello { node, address, incarnation, .. } = hello;
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
            names.tell_copy(daemon, record);
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

#[cfg(test)]
mod tests {
    use super::*;
    use dipc_core::referee::PARKED_MAX;
    use dipc_wire::codec::ByteOrder;
    use dipc_wire::ids::{Epoch, Incarnation, ObjectId, Req};
    use dipc_wire::peer::{Member, PeerFrame, Standing};
    use dipc_wire::preamble::{TransferMode, Transport};

    fn hello(node: NodeId) -> Hello {
        let address = "192.0.2.1:4750".parse().unwrap();
        Hello {
            node,
            incarnation: Incarnation(1),
            epoch: Epoch(1),
            address,
            referee: address,
            order: ByteOrder::Little,
            transport: Transport::Tcp,
            transfer_mode: TransferMode::Page,
            page_bytes: 4096,
            lease_ms: 1,
            node_timeout_ms: 1,
        }
    }

    #[test]
    fn this_node_links_again_when_it_has_asked_too_much() {
        let links = Links::new(unbounded().0);
        let bounds = Config { claim_timeout_ms: None, node_timeout_ms: 5_000 };
        let (own, other) = (NodeId::new(1).unwrap(), NodeId::new(2).unwrap());
        let member = |node, address| Member { node, address, standing: Standing::Member };
        let elsewhere = "192.0.2.2:4750".parse().unwrap();
        let members = vec![member(own, hello(own).address), member(other, elsewhere)];
        let record = Record { members, ..Record::default() };
        // The other node has not reported yet, so everything is parked.
        let (referee, _) = Referee::start(record, bounds, 0);
        let mut state = State { referee, links: HashMap::new() };
        let first = links.own_link();
        let Hello { address, incarnation, .. } = hello(own);
        let linked = Event::Linked { link: first, node: own, address, incarnation };
        state.referee.step(0, linked);
        // Nothing leaves a referee, the end of a link neither, before its reign is on disk.
        state.referee.step(0, Event::Recorded { serial: Serial(9) });
        let mut breaks = Vec::new();
        for number in 0..=u32::try_from(PARKED_MAX).unwrap() {
            let (req, id) = (Req(u64::from(number)), ObjectId::from_number(number));
            let frame = PeerFrame::Resolve { req, id };
            let effects = state.referee.step(0, Event::Frame { link: first, frame });
            breaks.extend(effects.into_iter().filter(|e| matches!(e, Effect::Break { .. })));
        }
        let broken = |link, node| link == first && node == own;
        assert!(matches!(breaks[..], [Effect::Break { link, node, .. }] if broken(link, node)));
        let effects = relink(&links, hello(own), &mut state, first);
        let second = links.own_link();
        assert!(second != first && state.links.contains_key(&second));
        let admitted = |effect: &Effect| *effect == Effect::Admit { link: second, node: own };
        let asked = |effect: &Effect| {
            *effect == Effect::Send { link: second, frame: PeerFrame::ReportPlease }
        };
        assert!(effects.iter().any(admitted) && effects.iter().any(asked), "{effects:?}");
    }
}
