//! Samples of what the tools ask, and of a referee's succession: beside the others because they
//! are many.
#![forbid(unsafe_code)]

use std::net::{Ipv4Addr, SocketAddr};

use dipc_wire::client::{Answer, Call};
use dipc_wire::ids::{Epoch, Incarnation, Key, Kind};
use dipc_wire::peer::{Dissent, Member, PeerFrame, RecordCopy, Stage, Standing};
use dipc_wire::survey::{
    AttachedRow, Contact, Count, Deed, NodeRow, NodeStatus, ObjectRow, Order, Role, Semaphore,
    State, Survey, Tracing, User,
};
use dipc_wire::sysv::{QueueStat, SegmentStat, SetStat, SysvError};

use super::{REQ, caller, id, node, perm};

fn address() -> SocketAddr {
    SocketAddr::from((Ipv4Addr::new(10, 0, 0, 1), 4750))
}

/// Every variant of `Order`.
fn orders() -> Vec<Order> {
    vec![
        Order::Set { entry: "keys".into(), value: "all".into() },
        Order::Reload,
        Order::Trace(Tracing::On),
        Order::Trace(Tracing::Off),
        Order::Forget { node: node(3) },
        Order::BecomeReferee,
    ]
}

pub fn calls() -> Vec<Call> {
    let mut calls = vec![
        Call::Nodes,
        Call::Status { node: node(2) },
        Call::Survey { home: node(2), kind: Kind::Set, from: 0x0c0d },
        Call::Semaphores { home: node(2), id: id(), first: 1024 },
        Call::Remove { kind: Kind::Queue, id: id() },
        Call::Entry { index: 7 },
    ];
    calls.extend(orders().into_iter().map(Call::Order));
    calls.push(Call::Attachments { node: node(2), after: Some(id()) });
    calls
}

fn user(deed: Deed) -> User {
    User { node: node(2), pid: 0x1122, deed }
}

fn row(state: State, deeds: &[Deed]) -> ObjectRow {
    let users = deeds.iter().map(|deed| user(*deed)).collect();
    let (owner, creator) = ("ann".into(), String::new());
    ObjectRow { id: id(), key: Key(40), owner, creator, state, users }
}

fn survey() -> Survey {
    let queue = QueueStat { perm: perm(), qnum: 5, ..QueueStat::default() };
    let set = SetStat { perm: perm(), nsems: 3, ..SetStat::default() };
    let segment = SegmentStat { perm: perm(), bytes: 4096, nattch: 2, ..SegmentStat::default() };
    let rows = vec![
        row(State::Queue(queue), &[Deed::Sent, Deed::Received]),
        row(State::Set(set), &[Deed::Operated]),
        row(State::Segment(segment), &[Deed::Attached]),
    ];
    Survey { rows, next: Some(0x0c0d) }
}

fn status() -> NodeStatus {
    NodeStatus {
        node: node(2),
        address: address(),
        referee: node(1),
        referee_address: address(),
        epoch: Epoch(4),
        incarnation: Incarnation(5),
        version: "0.1.0".into(),
        up_ms: 0x0e0f,
        tracing: Tracing::Off,
        counts: vec![Count { name: "clients".into(), value: 6 }],
    }
}

fn semaphores() -> Vec<Semaphore> {
    let (waiting_for_more, waiting_for_zero) = (2, 3);
    let last = Some(user(Deed::Operated));
    vec![Semaphore { value: 1, waiting_for_more, waiting_for_zero, last }]
}

fn node_row(contact: Contact, role: Role) -> NodeRow {
    let (node, address, incarnation) = (node(2), address(), Incarnation(5));
    NodeRow { node, address, contact, heard_ms: 250, incarnation, role }
}

pub fn answers() -> Vec<Answer> {
    let nodes = vec![
        node_row(Contact::Here, Role::Referee),
        node_row(Contact::Linked, Role::Member),
        node_row(Contact::Silent, Role::Member),
        node_row(Contact::Lost, Role::Member),
    ];
    vec![
        Answer::Nodes(nodes),
        Answer::Status(status()),
        Answer::Survey(survey()),
        Answer::Semaphores(semaphores()),
        Answer::Entry { name: "keys".into(), value: "none".into() },
        Answer::Told(Ok("done".into())),
        Answer::Told(Err("why".into())),
        Answer::Attachments(attached()),
    ]
}

fn attached() -> Vec<AttachedRow> {
    vec![AttachedRow { id: id(), attachments: 3 }]
}

fn record() -> RecordCopy {
    let member = Member { node: node(1), address: address(), standing: Standing::Lost };
    RecordCopy { epoch: Epoch(4), members: vec![member], ids_taken: 8192 }
}

pub fn peer_frames() -> Vec<PeerFrame> {
    let (caller, id) = (caller(), id());
    let succession = |outcome| PeerFrame::Succession { req: REQ, outcome };
    vec![
        PeerFrame::Status { req: REQ },
        PeerFrame::StatusIs { req: REQ, status: status() },
        PeerFrame::Survey { req: REQ, caller: caller.clone(), kind: Kind::Set, from: 0x0c0d },
        PeerFrame::Surveyed { req: REQ, survey: survey() },
        PeerFrame::Semaphores { req: REQ, caller: caller.clone(), id, first: 1024 },
        PeerFrame::SemaphoresAre { req: REQ, outcome: Ok(semaphores()) },
        PeerFrame::RemoveFor { req: REQ, caller, kind: Kind::Queue, id },
        PeerFrame::RemovedFor { req: REQ, outcome: Err(SysvError::EPERM) },
        PeerFrame::Record(record()),
        PeerFrame::Succeed { req: REQ, epoch: Epoch(5), stage: Stage::Proposed },
        PeerFrame::Succeed { req: REQ, epoch: Epoch(5), stage: Stage::Decided },
        succession(Ok(record())),
        succession(Err(Dissent::RefereeLives)),
        succession(Err(Dissent::Accepted(Epoch(5)))),
        succession(Err(Dissent::NotKept)),
    ]
}

pub fn attachments() -> [PeerFrame; 2] {
    let question = PeerFrame::Attachments { req: REQ, after: None };
    [question, PeerFrame::AttachmentsAre { req: REQ, rows: attached() }]
}
