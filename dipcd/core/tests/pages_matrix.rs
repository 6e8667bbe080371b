//! What home and a replica do with every event in every state of a page, in golden files that are
//! reviewed as a diff: `UPDATE_GOLDEN=1 cargo test -p dipc-core --test pages_matrix` writes them.
//! Then what they do with frames that nobody would send.
//!
//! States are reached as they are in life, by events. Numbers, records and effects are shown.
#![forbid(unsafe_code)]

mod golden;
mod segment;

use std::fmt::Write as _;

use dipc_core::copies::Records;
use dipc_core::directory::{self, Breach, Directory, Effect, Event, LostPage, PageRecord};
use dipc_core::hold::Hold;
use dipc_core::replica::{self, CopyRecord};
use dipc_wire::memory::{
    Access, Content, GrantNo, Granted, Holds, PageNo, PageReport, Refusal, Replica, ToHome,
    ToReplica,
};
use dipc_wire::peer::Piece;
use segment::files::{InWords, Table};
use segment::node_id;

const PAGE: PageNo = PageNo(0);
const BEYOND: PageNo = PageNo(3);
const ONE: Replica = Replica(1);
const TWO: Replica = Replica(2);

/// One event and its effects; where they leave the page, if its record has changed.
fn row(text: &mut String, event: &str, effects: &[String], now: Option<String>) {
    let mut line = |line: String| writeln!(text, "{}", short(&line)).expect("a string takes it");
    match (effects, &now) {
        ([], None) => line(format!("{event} -> nothing")),
        _ => line(event.into()),
    }
    effects.iter().for_each(|effect| line(format!("    {effect}")));
    now.into_iter().for_each(|now| line(format!("    = {now}")));
}

/// Without the names of types that hold one number.
fn short(text: &str) -> String {
    let mut text = text.to_string();
    for name in ["PageNo", "GrantNo", "Replica", "NodeId"] {
        let bare = text.split(&format!("{name}(")).collect::<Vec<_>>();
        let inner = bare.iter().enumerate().map(|(at, part)| match part.split_once(')') {
            Some((number, rest)) if at > 0 => format!("{number}{rest}"),
            _ => (*part).to_string(),
        });
        text = inner.collect();
    }
    text
}

const HOME: directory::Config = directory::Config {
    pages: 3,
    frame_pages: 2,
    hold: Hold::AtLeast(0),
    ak_timeout_ms: Some(10_000),
    shm_timeout_ms: Some(30_000),
    lost_page: LostPage::Sigbus,
};

/// A home of three pages with its records; replicas 1 and 2 are on nodes 1 and 2.
#[derive(Clone)]
struct Home {
    directory: Directory,
    records: Table<<PageRecord as InWords>::Words>,
    now_ms: u64,
}

impl Home {
    fn new(config: directory::Config) -> Home {
        let records = Table::new(3);
        let directory = Directory::start(config, 0, &records, [], |_| ());
        let mut home = Home { directory, records, now_ms: 1000 };
        for n in [1, 2] {
            let replica = home.directory.vacant().expect("few replicas");
            home.happen(Event::Joined { replica, node: node_id(n) });
            home.say(replica, report(vec![]));
        }
        home
    }

    /// The same after a restart of its dipcd.
    fn restarted(mut self) -> Home {
        let waiting_for = [(ONE, node_id(1)), (TWO, node_id(2))];
        self.directory = Directory::start(HOME, self.now_ms, &self.records, waiting_for, |_| ());
        self
    }

    fn happen(&mut self, event: Event) -> Vec<Effect> {
        let mut effects = Vec::new();
        self.directory.step(self.now_ms, event, &self.records, &mut effects);
        for effect in &effects {
            if let Effect::Record { page, record } = effect {
                self.records.set(*page, *record);
            }
        }
        effects
    }

    fn say(&mut self, from: Replica, frame: ToHome) -> Vec<Effect> {
        self.happen(Event::Frame { from, frame })
    }

    fn and(mut self, event: Event) -> Home {
        self.happen(event);
        self
    }

    fn and_says(mut self, from: Replica, frame: ToHome) -> Home {
        self.say(from, frame);
        self
    }

    fn record(&self) -> PageRecord {
        self.records.get(PAGE)
    }
}

fn fault(access: Access) -> ToHome {
    ToHome::Fault { first: PAGE, ahead: 0, access }
}

fn home_fault(access: Access) -> Event {
    Event::Fault { page: PAGE, access }
}

fn report(pages: Vec<PageReport>) -> ToHome {
    ToHome::Report { pages, piece: Piece::Last }
}

fn reported(number: u64, content: Content, holds: Holds, fault: Option<Access>) -> PageReport {
    PageReport { granted: granted(number, content), holds, fault }
}

fn granted(number: u64, content: Content) -> Granted {
    Granted { page: PAGE, number: GrantNo(number), content }
}

fn ack(number: u64) -> ToHome {
    ToHome::Ack { pages: vec![(PAGE, GrantNo(number))] }
}

fn recalled(number: u64, of: u64, keeps: Option<Access>) -> ToHome {
    ToHome::Recalled { granted: granted(number, Content::Raw), of: GrantNo(of), keeps }
}

/// Every state of page 0. Replica 1's grants have the numbers that the events below name.
fn home_states() -> Vec<(&'static str, Home)> {
    use Access::{Read, Write};
    let never = Home::new(HOME);
    let read = never.clone().and_says(ONE, fault(Read));
    let granting = never.clone().and_says(ONE, fault(Write));
    let owned = granting.clone().and_says(ONE, ack(1));
    let held = Home::new(directory::Config { hold: Hold::AtLeast(50), ..HOME })
        .and_says(ONE, fault(Write))
        .and_says(ONE, ack(1))
        .and_says(TWO, fault(Write));
    let stale = Home::new(directory::Config { lost_page: LostPage::Stale, ..HOME })
        .and_says(ONE, fault(Write))
        .and_says(ONE, ack(1));
    let recalling = owned.clone().and_says(TWO, fault(Read));
    let aside = recalling.clone().and_says(ONE, recalled(2, 1, Some(Read)));
    let lost = Event::Lost { node: node_id(1) };
    let joined = Event::Joined { replica: ONE, node: node_id(1) };
    let back = |home: Home| {
        let home = home.and(Event::Continue).and(joined.clone());
        home.and_says(ONE, report(vec![]))
    };
    vec![
        ("never granted", never.clone()),
        ("1 reads", read.clone()),
        ("1 and 2 read", read.clone().and_says(TWO, fault(Read))),
        ("1 and 2 read what lies aside", aside),
        ("1 reads, and is to stop for home", read.clone().and(home_fault(Write))),
        ("1 reads, and is to stop for 2", read.and_says(TWO, fault(Write))),
        ("granted to 1 for writing", granting.clone()),
        ("granted to 1 for writing, 2 waits", granting.clone().and_says(TWO, fault(Write))),
        ("1 owns", owned.clone()),
        ("1 owns, home has kept its last copy", stale),
        ("1 owns, and may keep it for a while", held),
        ("1 owns, recalled for reading", recalling),
        ("1 owns, recalled for home's writing", owned.clone().and(home_fault(Write))),
        ("lost with the former 1", back(owned.clone().and(lost))),
        ("1 owns, and its link is down", owned.clone().and(Event::Unlinked { node: node_id(1) })),
        ("1 owns, home restarted", owned.restarted()),
        ("granted to 1 for writing, home restarted", granting.restarted()),
    ]
}

fn home_events() -> Vec<Event> {
    use Access::{Read, Write};
    let one = |frame| Event::Frame { from: ONE, frame };
    let two = |frame| Event::Frame { from: TWO, frame };
    let mut events = vec![home_fault(Read), home_fault(Write)];
    events.extend([
        one(fault(Read)),
        one(fault(Write)),
        one(ToHome::Fault { first: PAGE, ahead: 9, access: Read }),
        two(fault(Read)),
        two(fault(Write)),
        two(ToHome::Ahead { first: PAGE, count: 3 }),
        one(ack(1)),
        one(ack(7)),
        two(ack(1)),
        one(recalled(2, 1, None)),
        one(recalled(2, 1, Some(Read))),
        one(recalled(2, 0, None)),
        one(recalled(7, 1, None)),
        one(recalled(2, 1, Some(Write))),
        one(ToHome::Recalled { granted: granted(2, Content::None), of: GrantNo(1), keeps: None }),
        one(ToHome::Invalidated { page: PAGE, number: GrantNo(2) }),
        one(ToHome::Invalidated { page: PAGE, number: GrantNo(7) }),
        one(ToHome::Released { granted: granted(1, Content::Raw) }),
        one(ToHome::Released { granted: granted(7, Content::Raw) }),
        one(ToHome::Released { granted: granted(1, Content::None) }),
        one(report(vec![])),
        one(report(vec![reported(1, Content::Raw, Holds::Kept, Some(Read))])),
        one(report(vec![reported(7, Content::Raw, Holds::Kept, None)])),
        one(report(vec![reported(1, Content::Raw, Holds::Shared, Some(Write))])),
        one(report(vec![reported(0, Content::None, Holds::Nothing, Some(Write))])),
        one(ToHome::Leave),
        one(ToHome::Part { page: PAGE, offset: 0 }),
        one(ToHome::Fault { first: BEYOND, ahead: 0, access: Read }),
        one(ToHome::Ack { pages: vec![] }),
        one(ToHome::Ack { pages: vec![(PAGE, GrantNo(1)), (PAGE, GrantNo(1))] }),
        Event::Frame { from: Replica(9), frame: fault(Write) },
        Event::Unlinked { node: node_id(1) },
        Event::Lost { node: node_id(1) },
        Event::Lost { node: node_id(2) },
        Event::Tick,
    ]);
    events
}

#[test]
fn home_does_this_in_every_state() {
    let mut text = String::new();
    for (name, start) in home_states() {
        writeln!(text, "# {name}: {}", short(&format!("{:?}", start.record())))
            .expect("a string takes it");
        for event in home_events() {
            let mut home = start.clone();
            if event == Event::Tick {
                home.now_ms += 60_000;
            }
            let said = format!("{event:?}");
            let effects: Vec<_> = home.happen(event).iter().map(|one| format!("{one:?}")).collect();
            let left = if home.directory.busy() > 0 { "busy" } else { "at rest" };
            let now = format!("{left}, {:?}", home.record());
            row(&mut text, &said, &effects, (home.record() != start.record()).then_some(now));
        }
    }
    golden::compare("directory.txt", &text);
}

/// A replica of three pages with its records.
#[derive(Clone)]
struct Node {
    machine: replica::Replica,
    records: Table<<CopyRecord as InWords>::Words>,
    now_ms: u64,
}

impl Node {
    fn new() -> Node {
        let config = replica::Config {
            pages: 3,
            frame_pages: 2,
            shm_timeout_ms: Some(30_000),
            ahead_max: 64,
            lost_page: LostPage::Sigbus,
        };
        let records = Table::new(3);
        let machine = replica::Replica::start(config, &records, |_| ());
        let node = Node { machine, records, now_ms: 1000 };
        node.and(replica::Event::LinkUp).and_hears(ToReplica::Resumed)
    }

    fn happen(&mut self, event: replica::Event) -> Vec<replica::Effect> {
        let mut effects = Vec::new();
        self.machine.step(self.now_ms, event, &self.records, &mut effects);
        for effect in &effects {
            if let replica::Effect::Record { page, record } = effect {
                self.records.set(*page, *record);
            }
        }
        effects
    }

    fn and(mut self, event: replica::Event) -> Node {
        self.happen(event);
        self
    }

    fn and_hears(self, frame: ToReplica) -> Node {
        self.and(replica::Event::Frame(frame))
    }

    fn faults(self, access: Access) -> Node {
        self.and(replica::Event::Fault { page: PAGE, access })
    }

    fn record(&self) -> CopyRecord {
        self.records.get(PAGE)
    }
}

fn grant(access: Access, number: u64, content: Content) -> ToReplica {
    ToReplica::Grant { access, pages: vec![granted(number, content)] }
}

fn recall(number: u64, wanted: Access) -> ToReplica {
    ToReplica::Recall { page: PAGE, number: GrantNo(number), wanted }
}

/// Every state of page 0; what is here came with grant 5.
fn replica_states() -> Vec<(&'static str, Node)> {
    use Access::{Read, Write};
    use replica::Event::{Detached, HomeLost, LeaseEnded, LeaseRestored, LinkDown, LinkUp};
    let never = Node::new();
    let shared = never.clone().and_hears(grant(Read, 5, Content::Raw));
    let owned = never.clone().and_hears(grant(Write, 5, Content::Raw));
    let sole = owned.clone().and_hears(recall(6, Read));
    let kept = owned.clone().and_hears(recall(6, Write));
    let nothing =
        shared.clone().and_hears(ToReplica::Invalidate { page: PAGE, number: GrantNo(6) });
    let ending = owned.clone().and(LeaseEnded);
    let fenced = ending.clone().and(replica::Event::Continue).and(replica::Event::Continue);
    let doubted = fenced.clone().and(LinkUp).and(LeaseRestored);
    vec![
        ("never here", never.clone()),
        ("never here, awaited for reading", never.clone().faults(Read)),
        ("never here, awaited for writing", never.clone().faults(Write)),
        ("not here any more", nothing),
        ("read", shared.clone()),
        ("read, awaited for writing", shared.clone().faults(Write)),
        ("owned", owned.clone()),
        ("read, home may not have it", sole.clone()),
        ("kept aside", kept.clone()),
        ("kept aside, awaited for reading", kept.clone().faults(Read)),
        ("kept aside, and the link is down", kept.clone().and(LinkDown)),
        ("read, home may not have it, and the link is down", sole.and(LinkDown)),
        ("owned, and the lease has just ended", ending.clone()),
        ("owned, and the lease has just ended, awaited", ending.faults(Write)),
        ("owned, and the lease is over", fenced.clone()),
        ("owned, and the lease is over, awaited", fenced.faults(Read)),
        ("owned, and home has not said that it counts", doubted.clone()),
        ("owned, and home has not said so, awaited", doubted.faults(Read)),
        ("owned, and leaving", owned.and(Detached)),
        ("read, and leaving", shared.and(Detached)),
        ("never here, and home is lost", never.clone().and(LinkDown).and(HomeLost)),
        ("left", never.and(Detached).and(replica::Event::Continue)),
    ]
}

fn replica_events() -> Vec<replica::Event> {
    use Access::{Read, Write};
    use replica::Event;
    let (page, five) = (PAGE, GrantNo(5));
    let mut events = vec![
        Event::Fault { page, access: Read },
        Event::Fault { page, access: Write },
        Event::Attached,
        Event::Detached,
        Event::LinkDown,
        Event::LinkUp,
        Event::HomeLost,
        Event::LeaseEnded,
        Event::LeaseRestored,
        Event::Tick,
        Event::Continue,
    ];
    let twice = vec![granted(6, Content::Raw), granted(6, Content::Raw)];
    let beyond = Granted { page: BEYOND, ..granted(6, Content::Raw) };
    let frames = [
        grant(Read, 6, Content::Raw),
        grant(Read, 5, Content::Raw),
        grant(Read, 6, Content::None),
        grant(Write, 6, Content::Zero),
        grant(Write, 6, Content::None),
        grant(Write, 5, Content::Raw),
        ToReplica::Grant { access: Read, pages: vec![] },
        ToReplica::Grant { access: Read, pages: twice },
        ToReplica::Grant { access: Write, pages: vec![beyond] },
        recall(6, Read),
        recall(6, Write),
        ToReplica::Recall { page: BEYOND, number: five, wanted: Read },
        ToReplica::Invalidate { page, number: GrantNo(6) },
        ToReplica::Confirm { page, number: five },
        ToReplica::Confirm { page, number: GrantNo(4) },
        ToReplica::Refused { page, refusal: Refusal::Lost },
        ToReplica::Refused { page, refusal: Refusal::Gone },
        ToReplica::Part { page, offset: 0 },
        ToReplica::ReportPlease,
        ToReplica::Left,
        ToReplica::Resumed,
        ToReplica::AckPlease { page },
    ];
    events.extend(frames.map(Event::Frame));
    events
}

#[test]
fn a_replica_does_this_in_every_state() {
    let mut text = String::new();
    for (name, start) in replica_states() {
        writeln!(text, "# {name}: {}", short(&format!("{:?}", start.record())))
            .expect("a string takes it");
        for event in replica_events() {
            let mut node = start.clone();
            if event == replica::Event::Tick {
                node.now_ms += 60_000;
            }
            let said = format!("{event:?}");
            let effects: Vec<_> = node.happen(event).iter().map(|one| format!("{one:?}")).collect();
            let left = if node.machine.waiting() > 0 { "awaited" } else { "at rest" };
            let now = format!("{left}, {:?}", node.record());
            row(&mut text, &said, &effects, (node.record() != start.record()).then_some(now));
        }
    }
    golden::compare("replica.txt", &text);
}

/// Why home closed the link of a node, if it did.
fn breach_of(effects: &[Effect], n: usize) -> Option<Breach> {
    effects.iter().find_map(|effect| match effect {
        Effect::Break { node, reason } if *node == node_id(n) => Some(*reason),
        _ => None,
    })
}

/// A liar's link is closed, and everybody else is served as before.
#[test]
fn home_closes_the_link_of_who_breaks_the_protocol() {
    let beyond = ToHome::Fault { first: BEYOND, ahead: 0, access: Access::Write };
    let unordered = ToHome::Ack { pages: vec![(PageNo(1), GrantNo(1)), (PAGE, GrantNo(1))] };
    let rows = [
        (beyond, Breach::OutOfRange),
        (ToHome::Ahead { first: BEYOND, count: 1 }, Breach::OutOfRange),
        (ToHome::Ack { pages: vec![(BEYOND, GrantNo(1))] }, Breach::OutOfRange),
        (ToHome::Invalidated { page: BEYOND, number: GrantNo(1) }, Breach::OutOfRange),
        (unordered, Breach::Disorder),
        (ToHome::Ack { pages: vec![] }, Breach::Disorder),
        (ToHome::Part { page: PAGE, offset: 0 }, Breach::Impossible),
        (report(vec![]), Breach::Impossible),
        (fault(Access::Read), Breach::Impossible),
        (ToHome::Released { granted: granted(1, Content::None) }, Breach::Impossible),
    ];
    for (frame, breach) in rows {
        let mut home = Home::new(HOME).and_says(ONE, fault(Access::Write)).and_says(ONE, ack(1));
        let owned = home.record();
        let effects = home.say(ONE, frame.clone());
        assert_eq!(breach_of(&effects, 1), Some(breach), "{frame:?}");
        assert_eq!(home.record(), owned, "{frame:?} changes nothing");
        assert!(home.say(ONE, fault(Access::Read)).is_empty(), "heard after {frame:?}");
        let second = ToHome::Fault { first: PageNo(1), ahead: 0, access: Access::Read };
        let served = home.say(TWO, second);
        let is_grant = |effect: &Effect| matches!(effect, Effect::Send { to: TWO, .. });
        assert!(served.iter().any(is_grant), "2 is not served after {frame:?}");
    }
}

#[test]
fn answers_that_nobody_waits_for_change_nothing() {
    let mut home = Home::new(HOME).and_says(ONE, fault(Access::Write)).and_says(ONE, ack(1));
    let owned = home.record();
    let late = [
        ack(1),
        ack(2),
        recalled(2, 1, None),
        ToHome::Invalidated { page: PAGE, number: GrantNo(2) },
    ];
    for frame in late {
        assert_eq!(home.say(ONE, frame.clone()), [], "{frame:?}");
        assert_eq!(home.record(), owned, "{frame:?}");
    }
    assert_eq!(home.say(Replica(9), fault(Access::Write)), [], "of a replica that is none");
}

#[test]
fn a_node_has_no_more_faults_than_threads() {
    let config = directory::Config { pages: 1 << 20, ..HOME };
    let records: Table<[u64; 3]> = Table::new(1 << 20);
    let mut directory = Directory::start(config, 0, &records, [], |_| ());
    let mut effects = Vec::new();
    let (replica, node) = (ONE, node_id(1));
    directory.step(0, Event::Joined { replica, node }, &records, &mut effects);
    let unbounded = (0..=directory::FAULTS_MAX).map(|page| {
        let page = PageNo(page);
        let granted = Granted { page, number: GrantNo(0), content: Content::None };
        PageReport { granted, holds: Holds::Nothing, fault: Some(Access::Read) }
    });
    let frame = ToHome::Report { pages: unbounded.collect(), piece: Piece::More };
    directory.step(0, Event::Frame { from: ONE, frame }, &records, &mut effects);
    assert_eq!(breach_of(&effects, 1), Some(Breach::TooMuch));
}

/// What nobody here asked for is an ordinary copy, or it cannot be and the link is closed.
#[test]
fn a_replica_closes_the_link_of_a_home_that_breaks_the_protocol() {
    let unasked = Node::new().and_hears(grant(Access::Write, 1, Content::Zero));
    assert_eq!(unasked.record().copy, replica::Copy::Owned);
    let rows = [
        grant(Access::Read, 2, Content::Zero),
        grant(Access::Write, 2, Content::Zero),
        ToReplica::Invalidate { page: PAGE, number: GrantNo(2) },
        ToReplica::Recall { page: BEYOND, number: GrantNo(2), wanted: Access::Read },
        ToReplica::Grant { access: Access::Read, pages: vec![] },
        ToReplica::Part { page: PAGE, offset: 0 },
    ];
    for frame in rows {
        let mut node = unasked.clone();
        let effects = node.happen(replica::Event::Frame(frame.clone()));
        assert!(matches!(effects[..], [replica::Effect::Break { .. }]), "{frame:?}: {effects:?}");
        assert_eq!(node.record(), unasked.record(), "{frame:?} changes nothing");
        let later = node.happen(replica::Event::Frame(recall(2, Access::Write)));
        assert_eq!(later, [], "heard after {frame:?}");
    }
}
