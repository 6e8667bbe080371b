//! One value of every variant, with numbers that show which byte is which. A new variant gets its
//! line here; the old lines, and their bytes, stay.
#![forbid(unsafe_code)]

pub mod memory;
mod survey;

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use dipc_wire::client::{Answer, Call, ClientCall, Place, Row, WireTerms};
use dipc_wire::codec::ByteOrder;
use dipc_wire::ids::{
    ClaimNo, ClientId, Epoch, Image, Incarnation, KernelId, Key, Kind, NodeId, Nonce, ObjectId,
    Req, Secret, Seq, SessionId, Slot, TicketId,
};
use dipc_wire::keeper::{
    Account, Cause, FromKeeper, FromStandIn, Held, StandIn, ToKeeper, ToStandIn,
};
use dipc_wire::noise::Cipher;
use dipc_wire::op::{Op, Outcome, Reply, Request, SemGet, StatCheck, Wait};
use dipc_wire::peer::{
    Asked, Caller, Claimed, End, Intent, Located, Member, PeerFrame, Piece, Placement, Reported,
    Standing,
};
use dipc_wire::preamble::{Hello, Preamble, Purpose, TransferMode, Transport};
use dipc_wire::sysv::{Change, Perm, QueueStat, Rights, SemBuf, SetStat, SysvError};
use serde::Deserialize;
use serde::de::{Deserializer, Error, Visitor};

/// The names of an enum's variants, in the order of their opcodes.
pub fn variants<'de, T: Deserialize<'de>>() -> &'static [&'static str] {
    let mut names: &'static [&'static str] = &[];
    // It always fails, after it has said what it would accept.
    let _ = T::deserialize(Probe(&mut names));
    names
}

/// Asks a type what it is made of, and has nothing to offer.
struct Probe<'a>(&'a mut &'static [&'static str]);

#[derive(Debug)]
struct Nothing;

impl fmt::Display for Nothing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("nothing to decode")
    }
}

impl std::error::Error for Nothing {}

impl Error for Nothing {
    fn custom<T: fmt::Display>(_: T) -> Nothing {
        Nothing
    }
}

impl<'de> Deserializer<'de> for Probe<'_> {
    type Error = Nothing;

    fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Nothing> {
        Err(Nothing)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        variants: &'static [&'static str],
        _: V,
    ) -> Result<V::Value, Nothing> {
        *self.0 = variants;
        Err(Nothing)
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option
        unit unit_struct newtype_struct seq tuple tuple_struct map struct identifier ignored_any
    }
}

fn node(number: u8) -> NodeId {
    NodeId::new(number).expect("a node's number")
}

fn id() -> ObjectId {
    ObjectId::from_number(769)
}

fn client() -> ClientId {
    ClientId { node: node(3), pid: 0x0102_0304, started: 0x1112_1314_1516_1718 }
}

fn session() -> SessionId {
    SessionId { client: client(), image: Image(2), slot: Slot(7) }
}

fn secret() -> Secret {
    Secret(std::array::from_fn(|at| u8::try_from(at).expect("32 bytes")))
}

fn terms() -> WireTerms {
    WireTerms { cipher: Cipher::Plain, order: ByteOrder::Network, msgmax: 8192 }
}

fn rights() -> Rights {
    Rights { ipc_owner: true, sys_admin: false, sys_resource: true, ipc_lock: false }
}

fn perm() -> Perm {
    Perm { key: 40, uid: 1, gid: 2, cuid: 3, cgid: 4, mode: 0o640, seq: 5 }
}

fn reported() -> Reported {
    Reported { id: id(), kind: Kind::Set, key: Key(40) }
}

fn row() -> Row {
    Row { id: id(), key: Key(-2), home: node(64) }
}

fn caller() -> Caller {
    Caller {
        client: client(),
        uid: 1000,
        gid: 100,
        groups: vec![4, 5],
        user_name: Some("anna".into()),
        group_names: vec!["users".into(), String::new()],
        rights: rights(),
    }
}

fn account() -> Account {
    Account { uid: 1000, gid: 100, groups: vec![4, 5], rights: rights() }
}

fn stand_in() -> StandIn {
    StandIn { client: client(), account: account() }
}

fn end() -> End {
    End { slot: Slot(7), done: Seq(9) }
}

const REQ: Req = Req(0x0a0b);

/// Every variant of `Call`.
pub fn calls() -> Vec<Call> {
    let mut calls = vec![
        Call::Get { kind: Kind::Queue, key: Key(40), flags: 0o11777, size: 512, nonce: Nonce(6) },
        Call::Resolve { kind: Kind::Queue, id: id() },
        Call::Join,
        Call::OpenWire { home: node(2), slot: Slot(7) },
        Call::Removed { id: id() },
        Call::Describe { id: id(), pids: [12, 0] },
        Call::List { kind: Kind::Segment, after: Some(id()) },
    ];
    calls.extend(memory::calls());
    calls.extend(survey::calls());
    calls
}

/// Each call, as it is sent.
pub fn client_calls() -> Vec<ClientCall> {
    calls().into_iter().map(|call| ClientCall { tid: 0x2122, call }).collect()
}

/// Every variant of `Answer`.
pub fn answers() -> Vec<Answer> {
    let mut answers = vec![
        Answer::Refused(SysvError::EEXIST),
        Answer::Object { id: id(), place: Place::Here { kernel: KernelId(32_769) } },
        Answer::Object { id: id(), place: Place::There { home: node(2) } },
        Answer::Joined { client: client(), image: Image(2) },
        Answer::Wire { secret: secret(), terms: terms() },
        Answer::Described { key: Key(40), pids: [12, 0] },
        Answer::Rows(vec![row()]),
        Answer::Done,
    ];
    answers.extend(memory::answers());
    answers.extend(survey::answers());
    answers
}

/// Every variant of `Held`.
pub fn held() -> Vec<Held> {
    let mut held = vec![
        Held::Listener,
        Held::Client(client()),
        Held::Done(client(), Image(2)),
        Held::Wire { client: client(), image: Image(2), slot: Slot(7), home: node(2) },
        Held::StandIn(stand_in()),
    ];
    held.extend(memory::held());
    held
}

/// Every variant of `ToKeeper`.
pub fn to_keeper() -> Vec<ToKeeper> {
    vec![
        ToKeeper::Hello,
        ToKeeper::Hold(Held::Listener),
        ToKeeper::Release(Held::Client(client())),
        ToKeeper::Fetch,
        ToKeeper::StandIn(stand_in()),
        ToKeeper::Quit,
    ]
}

/// Every variant of `FromKeeper`.
pub fn from_keeper() -> Vec<FromKeeper> {
    vec![
        FromKeeper::Hello { pid: 77 },
        FromKeeper::Held(Held::Listener),
        FromKeeper::Fetched,
        FromKeeper::StandIn { pid: 78 },
        FromKeeper::NoStandIn { errno: 11 },
    ]
}

/// Every variant of `ToStandIn`, and every cause.
pub fn to_stand_in() -> Vec<ToStandIn> {
    let end = |image, cause, piece| ToStandIn::End { image, ends: vec![end()], cause, piece };
    vec![
        ToStandIn::Wire { image: Image(2), slot: Slot(7), secret: secret(), terms: terms() },
        end(Some(Image(2)), Cause::Reported, Piece::More),
        end(None, Cause::LostAgain, Piece::Last),
        end(None, Cause::LostDrop, Piece::Last),
        ToStandIn::HangUp,
    ]
}

/// Every variant of `FromStandIn`.
pub fn from_stand_in() -> Vec<FromStandIn> {
    vec![FromStandIn::Ended { image: Image(2) }]
}

/// Every variant of `Op`.
pub fn ops() -> Vec<Op> {
    let change = Change { uid: 1, gid: 2, mode: 0o600, qbytes: 16_384 };
    let ops = vec![SemBuf { num: 1, op: -2, flags: 0x1000 }];
    vec![
        Op::MsgSend { id: id(), mtype: 10, flags: 0o4000 },
        Op::MsgReceive { id: id(), bytes_max: 512, mtype: -3, flags: 0o10000 },
        Op::QueueStat { id: id(), check: StatCheck::ReadPermission },
        Op::SemOp { id: id(), ops, wait: Wait::Ever },
        Op::SetStat { id: id(), check: StatCheck::AnyMode },
        Op::SemGet { id: id(), num: 3, what: SemGet::WaitersForZero },
        Op::SemSet { id: id(), num: 3, value: 32_767 },
        Op::SemGetAll { id: id() },
        Op::SemSetAll { id: id() },
        Op::Change { id: id(), change },
        Op::Remove { id: id() },
        Op::MsgMax,
    ]
}

/// Every variant of `Request`, with every operation.
pub fn requests() -> Vec<Request> {
    let mut requests: Vec<_> =
        ops().into_iter().map(|op| Request::Do { seq: Seq(9), done: Seq(8), op }).collect();
    requests.extend([
        Request::Cancel { seq: Seq(9) },
        Request::Abandon { seq: Seq(9) },
        Request::End { done: Seq(9) },
    ]);
    requests
}

/// Every variant of `Outcome`.
pub fn outcomes() -> Vec<Outcome> {
    let queue = QueueStat {
        perm: perm(),
        stime: 1,
        rtime: 2,
        ctime: 3,
        cbytes: 4,
        qnum: 5,
        qbytes: 6,
        lspid: 7,
        lrpid: 8,
    };
    vec![
        Outcome::Refused(SysvError::EINTR),
        Outcome::Done(-1),
        Outcome::Message { mtype: 10 },
        Outcome::Queue(queue),
        Outcome::Set(SetStat { perm: perm(), otime: 1, ctime: 2, nsems: 3 }),
        Outcome::Values,
    ]
}

/// Each outcome, as it is sent.
pub fn replies() -> Vec<Reply> {
    outcomes().into_iter().map(|outcome| Reply { seq: Seq(9), outcome }).collect()
}

/// Every variant of `Claimed`.
pub fn claimed() -> Vec<Claimed> {
    vec![
        Claimed::Found { id: id(), home: node(2) },
        Claimed::Granted { claim: ClaimNo(5), id: id() },
        Claimed::Absent,
        Claimed::Void,
        Claimed::Full,
    ]
}

/// Every variant of `Asked`.
pub fn asked() -> Vec<Asked> {
    vec![Asked::Granted, Asked::Refused(SysvError::EACCES), Asked::Gone]
}

/// Every variant of `PeerFrame`.
pub fn peer_frames() -> Vec<PeerFrame> {
    let mut frames = membership();
    frames.extend(names());
    frames.extend(sessions());
    frames.extend(memory::peer_frames());
    frames.extend(survey::peer_frames());
    frames.push(PeerFrame::Unnamed { id: id() });
    frames.extend(placing());
    frames.extend(survey::attachments());
    frames.extend(memory::detaching());
    frames
}

fn placing() -> Vec<PeerFrame> {
    let (req, nonce) = (REQ, Nonce(0x0a0b));
    let (flags, size, claim, object) = (0o1600, 3, ClaimNo(5), reported());
    let mut frames = vec![
        PeerFrame::ClaimFor { req, kind: Kind::Set, key: Key(40), home: node(2) },
        PeerFrame::Place { req, caller: caller(), claim, object, flags, size, nonce },
    ];
    let outcomes =
        [Placement::Made, Placement::TooLate, Placement::Refused(SysvError::ENOSPC)].into_iter();
    frames.extend(outcomes.map(|outcome| PeerFrame::Placed { req, outcome }));
    frames.push(PeerFrame::Unplace { id: id() });
    frames.push(PeerFrame::AskByNonce { req, caller: caller(), id: id(), flags, size, nonce });
    frames
}

fn membership() -> Vec<PeerFrame> {
    let address = SocketAddr::from((Ipv4Addr::new(10, 0, 0, 1), 4750));
    let other = SocketAddr::from((Ipv6Addr::LOCALHOST, 4751));
    vec![
        PeerFrame::Heartbeat { sent_ms: 0x0102 },
        PeerFrame::HeartbeatEcho { sent_ms: 0x0102 },
        PeerFrame::Admitted { node: node(3), epoch: Epoch(4) },
        PeerFrame::Members(vec![
            Member { node: node(1), address, standing: Standing::Member },
            Member { node: node(3), address: other, standing: Standing::Lost },
        ]),
        PeerFrame::ReportPlease,
        PeerFrame::Report { objects: vec![reported()], piece: Piece::Last },
        PeerFrame::Void,
        PeerFrame::Voided,
    ]
}

fn names() -> Vec<PeerFrame> {
    let found = Located { kind: Kind::Queue, key: Key(40), home: node(2) };
    let mut frames =
        vec![PeerFrame::Claim { req: REQ, kind: Kind::Set, key: Key(40), intent: Intent::Find }];
    frames.extend(claimed().into_iter().map(|outcome| PeerFrame::Claimed { req: REQ, outcome }));
    frames.extend([
        PeerFrame::Made { claim: ClaimNo(5), object: reported() },
        PeerFrame::Confirmed { id: id() },
        PeerFrame::Denied { id: id() },
        PeerFrame::Abandon { claim: ClaimNo(5) },
        PeerFrame::Removed { id: id() },
        PeerFrame::Resolve { req: REQ, id: id() },
        PeerFrame::Resolved { req: REQ, found: Some(found) },
        PeerFrame::List { req: REQ, kind: Kind::Queue, after: None },
        PeerFrame::Listed { req: REQ, rows: vec![row()] },
        PeerFrame::Ask { req: REQ, caller: caller(), id: id(), flags: 0o600, size: 3 },
    ]);
    frames.extend(asked().into_iter().map(|outcome| PeerFrame::Asked { req: REQ, outcome }));
    frames
}

fn sessions() -> Vec<PeerFrame> {
    let (client, image) = (client(), Some(Image(2)));
    vec![
        PeerFrame::Ticket {
            req: REQ,
            ticket: TicketId(0x3132),
            secret: secret(),
            session: session(),
            caller: caller(),
        },
        PeerFrame::Ticketed { req: REQ, outcome: Ok(terms()) },
        PeerFrame::Ticketed { req: REQ, outcome: Err(SysvError::EIDRM) },
        PeerFrame::Ended { client, image, ends: vec![end()], piece: Piece::Last },
        PeerFrame::Buried { client, image: None },
        PeerFrame::Census { clients: vec![client], piece: Piece::More },
    ]
}

/// Both purposes.
pub fn preambles() -> Vec<Preamble> {
    vec![Preamble(Purpose::Link), Preamble(Purpose::Wire(TicketId(0x4142_4344_4546_4748)))]
}

/// One of each family and order.
pub fn hellos() -> Vec<Hello> {
    let four = SocketAddr::from((Ipv4Addr::new(10, 0, 0, 1), 4750));
    let six = SocketAddr::from((Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 2), 4751));
    let hello = Hello {
        node: NodeId::NONE,
        incarnation: Incarnation(5),
        epoch: Epoch(6),
        address: four,
        referee: six,
        order: ByteOrder::Little,
        transport: Transport::Tcp,
        transfer_mode: TransferMode::Page,
        page_bytes: 4096,
        lease_ms: 3000,
        node_timeout_ms: 5000,
    };
    let other = Hello {
        node: node(64),
        address: six,
        referee: four,
        order: ByteOrder::Network,
        transport: Transport::Udp,
        transfer_mode: TransferMode::Segment,
        ..hello
    };
    vec![hello, other]
}
