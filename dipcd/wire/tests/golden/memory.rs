//! One value of every variant that
//! shared memory has in the conversations.
#![forbid(unsafe_code)]

use dipc_wire::client::{Answer, AttachmentNo, Call, Mm, Trap, Traps};
use dipc_wire::keeper::{Held, SegmentFile};
use dipc_wire::memory::{
    Access, Content, GrantNo, Granted, Holds, PageNo, PageReport, Refusal, Replica, ToHome,
    ToReplica,
};
use dipc_wire::peer::{Attachment, PeerFrame, Piece};
use dipc_wire::sysv::{Change, SegmentControl, SegmentStat, SysvError};

use super::{REQ, caller, client, id, node, perm};

const MM: Mm = Mm(0x5152_5354_5556_5758);
const ADDRESS: u64 = 0x7f00_0000_1000;

fn stat() -> SegmentStat {
    let (atime, dtime, ctime) = (1_000, 2_000, 3_000);
    SegmentStat { perm: perm(), bytes: 8191, atime, dtime, ctime, cpid: 11, lpid: 12, nattch: 3 }
}

/// Every variant of `SegmentControl`.
pub fn controls() -> Vec<SegmentControl> {
    vec![
        SegmentControl::Stat,
        SegmentControl::StatAny,
        SegmentControl::Set(Change { uid: 1, gid: 2, mode: 0o600, qbytes: 0 }),
        SegmentControl::Remove,
        SegmentControl::Lock,
        SegmentControl::Unlock,
        SegmentControl::LockWithin { bytes_max: 8 << 20 },
    ]
}

pub fn calls() -> Vec<Call> {
    let mut calls = vec![
        Call::HowToTrap,
        Call::Trap { trap: Trap::Full, sentinel: ADDRESS },
        Call::Trap { trap: Trap::UserMode, sentinel: ADDRESS },
        Call::Trap { trap: Trap::Mprotect, sentinel: ADDRESS },
        Call::Attach { mm: MM, id: id(), flags: 0o10000 },
        Call::Mapped { attachment: AttachmentNo(9), address: ADDRESS },
        Call::Unmapped { mm: MM, attachment: Some(AttachmentNo(9)), address: ADDRESS, bytes: 8192 },
        Call::Moved {
            mm: MM,
            from: ADDRESS,
            from_bytes: 8192,
            to: ADDRESS + 0x10_0000,
            to_bytes: 4096,
        },
    ];
    calls.extend(controls().into_iter().map(|control| Call::Control { id: id(), control }));
    calls.push(Call::Touched { mm: MM, address: ADDRESS, access: Access::Write });
    calls
}

pub fn answers() -> Vec<Answer> {
    vec![
        Answer::Traps(Traps { userfaultfd: true, device: false, mprotect: true }),
        Answer::Attached { attachment: AttachmentNo(9), bytes: 8191, may_write: true },
        Answer::Segment(stat()),
    ]
}

pub fn held() -> Vec<Held> {
    let file = SegmentFile { id: id(), home: node(2), replica: Replica(5) };
    vec![
        Held::File(file),
        Held::Aside(file),
        Held::Trap { mm: MM, trap: Trap::Full, sentinel: ADDRESS },
    ]
}

fn granted(content: Content) -> Granted {
    Granted { page: PageNo(0x0102_0304), number: GrantNo(0x0a), content }
}

/// Every variant of `ToHome`.
pub fn to_home() -> Vec<ToHome> {
    let (page, number) = (PageNo(7), GrantNo(10));
    vec![
        ToHome::Fault { first: page, ahead: 63, access: Access::Read },
        ToHome::Ack { pages: vec![(page, number), (PageNo(8), GrantNo(1))] },
        ToHome::Recalled { granted: granted(Content::Raw), of: GrantNo(9), keeps: None },
        ToHome::Invalidated { page, number },
        ToHome::Released { granted: granted(Content::Zero) },
        ToHome::Report {
            pages: vec![PageReport {
                granted: granted(Content::None),
                holds: Holds::Shared,
                fault: Some(Access::Write),
            }],
            piece: Piece::Last,
        },
        ToHome::Part { page, offset: 1 << 20 },
        ToHome::Leave,
        ToHome::Ahead { first: page, count: 64 },
    ]
}

/// Every variant of `ToReplica`.
pub fn to_replica() -> Vec<ToReplica> {
    let (page, number) = (PageNo(7), GrantNo(10));
    vec![
        ToReplica::Grant { access: Access::Write, pages: vec![granted(Content::Parts)] },
        ToReplica::Recall { page, number, wanted: Access::Read },
        ToReplica::Invalidate { page, number },
        ToReplica::Confirm { page, number },
        ToReplica::Refused { page, refusal: Refusal::Lost },
        ToReplica::Part { page, offset: 1 << 20 },
        ToReplica::ReportPlease,
        ToReplica::Left,
        ToReplica::Resumed,
        ToReplica::AckPlease { page },
    ]
}

pub fn peer_frames() -> Vec<PeerFrame> {
    let (id, replica) = (id(), Replica(5));
    let attachment = Attachment { replica, bytes: 8191, unit_bytes: 4096, may_write: true };
    let mut frames = vec![
        PeerFrame::Attach { req: REQ, caller: caller(), id, flags: 0o10000 },
        PeerFrame::Attached { req: REQ, outcome: Ok(attachment) },
        PeerFrame::Attached { req: REQ, outcome: Err(SysvError::EACCES) },
        PeerFrame::Detached { id, client: client() },
        PeerFrame::Control { req: REQ, caller: caller(), id, control: SegmentControl::Remove },
        PeerFrame::Controlled { req: REQ, outcome: Ok(stat()) },
        PeerFrame::Count { req: REQ, id },
        PeerFrame::Counted { req: REQ, attachments: 3 },
    ];
    let to_home = to_home().into_iter().map(|frame| PeerFrame::ToHome { id, replica, frame });
    frames.extend(to_home);
    let frame = |frame| PeerFrame::ToReplica { id, replica, frame };
    frames.extend(to_replica().into_iter().map(frame));
    frames
}

pub fn detaching() -> [PeerFrame; 2] {
    let question = PeerFrame::Detach { req: REQ, id: id(), client: client() };
    [question, PeerFrame::DetachNoted { req: REQ }]
}
