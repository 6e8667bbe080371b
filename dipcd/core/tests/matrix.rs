//! What each machine does with every event in every state, one line each, in golden files that
//! are reviewed as a diff: `UPDATE_GOLDEN=1 cargo test -p dipc-core --test matrix` writes them.
//!
//! States are reached as they are in life, by events. The lines show effects and the next state.
#![forbid(unsafe_code)]

mod golden;

use std::fmt::Write as _;
use std::net::{Ipv4Addr, SocketAddr};

use dipc_core::referee::{Config, Effect, Event as Happens, LinkNo, Record, Referee, Serial};
use dipc_core::session::{Event, Finish, Session};
use dipc_wire::ids::{ClaimNo, Epoch, Incarnation, Key, Kind, NodeId, ObjectId, Req, Seq};
use dipc_wire::keeper::Cause;
use dipc_wire::peer::{Claimed, Intent, PeerFrame, Piece, Reported, Standing};

#[test]
fn a_session_does_this_in_every_state() {
    let mut text = String::new();
    for (name, way) in session_states() {
        let mut start = Session::new();
        for event in way {
            start.step(event).expect("the way to a state is legal");
        }
        writeln!(text, "# {name}").expect("a string takes it");
        for event in session_events() {
            let mut session = start.clone();
            let outcome = match session.step(event) {
                Ok(effects) => format!("{effects:?}, {session:?}"),
                Err(_) => "violation".into(),
            };
            if outcome == "violation" {
                assert_eq!(session, start, "a violation changes nothing");
            }
            writeln!(text, "{event:?} -> {outcome}").expect("a string takes it");
        }
    }
    golden::compare("session.txt", &text);
}

/// Operation 5 is the newest in each of them.
fn session_states() -> Vec<(&'static str, Vec<Event>)> {
    let request = |seq, done| Event::Request { seq: Seq(seq), done: Seq(done) };
    let five = request(5, 4);
    let cancel = Event::Cancel { seq: Seq(5) };
    let abandon = |seq| Event::Abandon { seq: Seq(seq) };
    let over = Event::Over { done: None, cause: Cause::Reported };
    let (took, plain) = (Event::Finished(Finish::Took), Event::Finished(Finish::Plain));
    vec![
        ("new", vec![]),
        ("runs", vec![five]),
        ("cancelled", vec![five, cancel]),
        ("unwired", vec![five, Event::WireLost]),
        ("left, nobody asks", vec![five, abandon(5), Event::WireLost]),
        ("left, to be answered", vec![five, abandon(5)]),
        ("left, the next waits", vec![five, request(6, 4)]),
        ("left, the next waits and is cancelled", {
            vec![five, request(6, 4), Event::Cancel { seq: Seq(6) }]
        }),
        ("ending", vec![five, over]),
        ("a message is kept", vec![five, took]),
        ("a plain reply is kept", vec![five, plain]),
        ("abandoned", vec![five, took, abandon(5)]),
        ("closed", vec![over]),
    ]
}

fn session_events() -> Vec<Event> {
    let request = |seq, done| Event::Request { seq: Seq(seq), done: Seq(done) };
    let over = |done: Option<u64>, cause| Event::Over { done: done.map(Seq), cause };
    let mut events = vec![
        request(4, 3),
        request(5, 4),
        request(5, 5),
        request(6, 4),
        request(6, 5),
        request(7, 4),
    ];
    events.extend([4, 5, 6].map(|seq| Event::Cancel { seq: Seq(seq) }));
    events.extend([4, 5, 6].map(|seq| Event::Abandon { seq: Seq(seq) }));
    events.extend([4, 5].map(|done| Event::End { done: Seq(done) }));
    events.push(Event::WireLost);
    events.extend([Finish::Took, Finish::Plain, Finish::Interrupted].map(Event::Finished));
    events.extend([
        over(None, Cause::Reported),
        over(Some(4), Cause::Reported),
        over(Some(5), Cause::Reported),
        over(None, Cause::LostAgain),
        over(None, Cause::LostDrop),
    ]);
    events
}

const CONFIG: Config = Config { claim_timeout_ms: Some(10_000), node_timeout_ms: 5000 };
const KEY: Key = Key(40);
const KIND: Kind = Kind::Queue;

fn address(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}

/// A referee with its effects applied to an imaginary disk at once.
#[derive(Clone)]
struct Named {
    referee: Referee,
    now_ms: u64,
}

impl Named {
    fn start(record: Record) -> Named {
        let (referee, _) = Referee::start(record, CONFIG, 0);
        let mut named = Named { referee, now_ms: 0 };
        named.happen(Happens::Recorded { serial: Serial(1) });
        named
    }

    fn happen(&mut self, event: Happens) -> Vec<Effect> {
        let mut effects = self.referee.step(self.now_ms, event);
        if let Some(Effect::Record { serial, .. }) = effects.first() {
            let recorded = Happens::Recorded { serial: *serial };
            effects.extend(self.referee.step(self.now_ms, recorded));
        }
        effects
    }

    fn link(&mut self, link: u64, node: u8) -> Vec<Effect> {
        let node = NodeId::new(node).expect("a node's number");
        let port = if node.is_admitted() { 4750 + u16::from(node.number()) } else { 4750 };
        let (link, address, incarnation) = (LinkNo(link), address(port), Incarnation(1));
        self.happen(Happens::Linked { link, node, address, incarnation })
    }

    fn say(&mut self, link: u64, frame: PeerFrame) -> Vec<Effect> {
        self.happen(Happens::Frame { link: LinkNo(link), frame })
    }
}

/// Members 1 and 2 at ports 4751 and 4752.
fn record_of_two() -> Record {
    let mut named = Named::start(Record::default());
    for port in [4751, 4752] {
        let (link, address) = (LinkNo(u64::from(port)), address(port));
        let incarnation = Incarnation(1);
        named.happen(Happens::Linked { link, node: NodeId::NONE, address, incarnation });
    }
    let mut record = named.referee.record().clone();
    record.epoch = Epoch(1);
    record
}

fn claim(req: u64, key: Key, intent: Intent) -> PeerFrame {
    PeerFrame::Claim { req: Req(req), kind: KIND, key, intent }
}

fn object(number: u32) -> Reported {
    Reported { id: ObjectId::from_number(number), kind: KIND, key: KEY }
}

fn report(objects: Vec<Reported>, piece: Piece) -> PeerFrame {
    PeerFrame::Report { objects, piece }
}

/// The first claim of the reign that every state is in.
const FIRST_CLAIM: ClaimNo = ClaimNo(2 << 32);

fn first_id() -> ObjectId {
    ObjectId::from_number(0)
}

/// Link 1 is node 1's, link 2 node 2's.
fn referee_states() -> Vec<(&'static str, Named)> {
    let recovering = Named::start(record_of_two());
    let mut half = recovering.clone();
    half.link(1, 1);
    half.link(2, 2);
    half.say(2, report(vec![], Piece::Last));
    let mut serving = half.clone();
    serving.say(1, report(vec![], Piece::Last));
    let mut claimed = serving.clone();
    claimed.say(1, claim(1, KEY, Intent::Create));
    let mut waited = claimed.clone();
    waited.say(2, claim(1, KEY, Intent::Find));
    waited.say(2, claim(2, KEY, Intent::Create));
    let mut homed = claimed.clone();
    let made = Reported { id: first_id(), kind: KIND, key: KEY };
    homed.say(1, PeerFrame::Made { claim: FIRST_CLAIM, object: made });
    let mut relinked = homed.clone();
    relinked.link(7, 1);
    relinked.link(1, 1);
    let mut void = homed.clone();
    void.happen(Happens::Unlinked { link: LinkNo(1) });
    void.now_ms = 5000;
    void.happen(Happens::Tick);
    void.link(1, 1);
    vec![
        ("recovering, nobody linked", recovering),
        ("recovering, 1 has not reported", half),
        ("serving", serving),
        ("1 holds a claim", claimed),
        ("1 holds a claim, 2 waits", waited),
        ("1 is home", homed),
        ("1 is home and has not reported on a new link", relinked),
        ("1 is void", void),
    ]
}

/// Everything that node 1 may say on link 1, and what else may happen.
fn referee_events() -> Vec<Happens> {
    let id = first_id();
    let made = |claim| PeerFrame::Made { claim, object: object(0) };
    let node = NodeId::new(1).expect("a node's number");
    let frames = vec![
        PeerFrame::Heartbeat { sent_ms: 0 },
        PeerFrame::Admitted { node, epoch: Epoch(1) },
        PeerFrame::Members(vec![]),
        PeerFrame::ReportPlease,
        report(vec![], Piece::More),
        report(vec![], Piece::Last),
        report(vec![object(0)], Piece::Last),
        report(vec![object(0), object(1)], Piece::Last),
        PeerFrame::Void,
        PeerFrame::Voided,
        claim(9, KEY, Intent::Create),
        claim(9, KEY, Intent::Find),
        claim(9, Key::PRIVATE, Intent::Create),
        PeerFrame::Claimed { req: Req(9), outcome: Claimed::Absent },
        made(FIRST_CLAIM),
        made(ClaimNo(7)),
        PeerFrame::Confirmed { id },
        PeerFrame::Denied { id },
        PeerFrame::Abandon { claim: FIRST_CLAIM },
        PeerFrame::Removed { id },
        PeerFrame::Unnamed { id },
        PeerFrame::Resolve { req: Req(9), id },
        PeerFrame::Resolved { req: Req(9), found: None },
        PeerFrame::List { req: Req(9), kind: KIND, after: None },
        PeerFrame::Listed { req: Req(9), rows: vec![] },
    ];
    let frame = |frame| Happens::Frame { link: LinkNo(1), frame };
    let mut events: Vec<_> = frames.into_iter().map(frame).collect();
    events.push(Happens::Frame { link: LinkNo(2), frame: PeerFrame::Removed { id } });
    for (claimed, port, incarnation) in [
        (1, 4751, 1),
        (1, 4751, 2),
        (0, 4751, 1),
        (0, 4760, 1),
        (9, 4760, 1),
        (1, 4760, 1),
        (2, 4751, 1),
    ] {
        let node = NodeId::new(claimed).expect("a node's number");
        let (address, incarnation) = (address(port), Incarnation(incarnation));
        events.push(Happens::Linked { link: LinkNo(9), node, address, incarnation });
    }
    events.push(Happens::Unlinked { link: LinkNo(1) });
    events.push(Happens::Unlinked { link: LinkNo(8) });
    events.push(Happens::Tick);
    events.push(Happens::Forget { node });
    events
}

#[test]
fn a_referee_does_this_in_every_state() {
    let mut text = String::new();
    for (name, start) in referee_states() {
        writeln!(text, "# {name}").expect("a string takes it");
        for event in referee_events() {
            let mut named = start.clone();
            if event == Happens::Tick {
                named.now_ms += 20_000;
            }
            writeln!(text, "{event:?}").expect("a string takes it");
            for effect in named.happen(event) {
                writeln!(text, "    -> {}", shown(&effect)).expect("a string takes it");
            }
            let missing: Vec<_> = named.referee.missing().map(NodeId::number).collect();
            let waiting = named.referee.waiting();
            writeln!(text, "    missing {missing:?}, {waiting} wait").expect("a string takes it");
        }
    }
    golden::compare("referee.txt", &text);
}

/// An effect in one short line.
fn shown(effect: &Effect) -> String {
    let members = |members: &[dipc_wire::peer::Member]| {
        let lost = |lost| if lost == Standing::Lost { " lost" } else { "" };
        let shown = members.iter().map(|member| {
            format!("{} at {}{}", member.node, member.address.port(), lost(member.standing))
        });
        shown.collect::<Vec<_>>().join(", ")
    };
    match effect {
        Effect::Record { serial, record } => {
            let Record { epoch, members: list, ids_taken } = record;
            format!("Record {}: {epoch:?}, {}, {ids_taken} ids", serial.0, members(list))
        }
        Effect::Send { link, frame: PeerFrame::Members(list) } => {
            format!("Send {}: Members {}", link.0, members(list))
        }
        Effect::Send { link, frame } => format!("Send {}: {frame:?}", link.0),
        other => format!("{other:?}"),
    }
}
