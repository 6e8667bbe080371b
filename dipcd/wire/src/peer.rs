//! dipcd and dipcd, over a link. Each pair of nodes has one link: the node with the higher number
//! dials, and every node dials the referee. Frames from one node to another arrive in order; a
//! frame of a replaced link is discarded unread.
//!
//! ```text
//! preamble, Noise handshake, Hello both ways, then PeerFrames:
//!   node ─ Claim ─▶ referee ─ Claimed ─▶ node          names
//!   node ─ Made ─▶ referee ─ Confirmed | Denied ─▶ node
//!   node ─ Ask ─▶ home ─ Asked ─▶ node                 every *get of an existing key
//!   node ─ Ticket ─▶ home ─ Ticketed ─▶ node           then the wire is dialled
//!   node ─ Ended ─▶ home ─ Buried ─▶ node              repeated until answered
//!   node ─ Attach ─▶ home ─ Attached ─▶ node           then pages, see [`crate::memory`]
//! ```

use serde::{Deserialize, Serialize};
use std::net::SocketAddr;

use crate::client::{Row, WireTerms};
use crate::ids::{
    ClaimNo, ClientId, Epoch, Image, Key, Kind, NodeId, Nonce, ObjectId, Req, Secret, Seq,
    SessionId, Slot, TicketId,
};
use crate::memory::{Replica, ToHome, ToReplica};
use crate::survey::{AttachedRow, NodeStatus, Semaphore, Survey};
use crate::sysv::{Rights, SegmentControl, SegmentStat, SysvError};

/// dipcd to dipcd, both ways over one link, after [`crate::preamble::Hello`].
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum PeerFrame {
    /// Both ways, each heartbeat: the link lives. `sent_ms` is the sender's clock and comes back
    /// in `HeartbeatEcho`, so that a lease counts from sending.
    Heartbeat {
        /// Milliseconds of the sender's CLOCK_BOOTTIME.
        sent_ms: u64,
    },
    /// Answers `Heartbeat`.
    HeartbeatEcho {
        /// As it came.
        sent_ms: u64,
    },

    /// Referee to node, after Hello: your number from now on, and who else there is.
    Admitted {
        /// The node's number, to be kept in its `lib_dir`.
        node: NodeId,
        /// The referee's reign; a lower one than seen before is refused.
        epoch: Epoch,
    },
    /// Referee to every node, at each change.
    Members(Vec<Member>),
    /// Referee to a node that just linked: say what you are home to. Answered by `Report`.
    ReportPlease,
    /// Node to referee: what it is home to, in pieces, the last one marked.
    Report {
        /// Published objects.
        objects: Vec<Reported>,
        /// Whether more follow.
        piece: Piece,
    },
    /// Referee to a node it had declared lost: remove every object of that time and say so.
    /// Answered by `Voided`; repeated at each link until then.
    Void,
    /// Node to referee: nothing of what was void is left.
    Voided,

    /// Node to referee: who is home to `key`, or may I be? Answered by `Claimed`, perhaps after a
    /// wait; asked again after a break.
    Claim {
        /// Comes back.
        req: Req,
        /// Keys of different kinds are different.
        kind: Kind,
        /// `IPC_PRIVATE` is always granted.
        key: Key,
        /// Whether the program gave `IPC_CREAT`.
        intent: Intent,
    },
    /// Answers `Claim`.
    Claimed {
        /// From the question.
        req: Req,
        /// What is.
        outcome: Claimed,
    },
    /// Node to referee: the claimed object is made, unpublished. Answered by `Confirmed` or
    /// `Denied`; repeated after a break, and it may be.
    Made {
        /// The leave it was made by.
        claim: ClaimNo,
        /// The object.
        object: Reported,
    },
    /// Referee to node: publish it.
    Confirmed {
        /// From `Made`.
        id: ObjectId,
    },
    /// Referee to node: too late; destroy it and claim again.
    Denied {
        /// From `Made`.
        id: ObjectId,
    },
    /// Node to referee: the claim will not be used (the kernel refused, say).
    Abandon {
        /// Which.
        claim: ClaimNo,
    },
    /// Home to referee: the object is gone. Idempotent; only from its home.
    Removed {
        /// Which.
        id: ObjectId,
    },
    /// Node to referee: where is this id? Answered by `Resolved`.
    Resolve {
        /// Comes back.
        req: Req,
        /// The id.
        id: ObjectId,
    },
    /// Answers `Resolve`.
    Resolved {
        /// From the question.
        req: Req,
        /// `None`: no such object.
        found: Option<Located>,
    },
    /// Node to referee: a page of the listing. Answered by `Listed`.
    List {
        /// Comes back.
        req: Req,
        /// Which kind.
        kind: Kind,
        /// The last id of the previous page.
        after: Option<ObjectId>,
    },
    /// Answers `List`.
    Listed {
        /// From the question.
        req: Req,
        /// At most [`crate::limits::ROWS_MAX`].
        rows: Vec<Row>,
    },

    /// Node to home: a program wants to use this object; look at the real one. Answered by
    /// `Asked`. Lifts the fence of that client.
    Ask {
        /// Comes back.
        req: Req,
        /// Who wants.
        caller: Caller,
        /// Which object.
        id: ObjectId,
        /// The flags of `*get`; 0 for a mere resolve.
        flags: i32,
        /// The size of `*get`.
        size: u64,
    },
    /// Answers `Ask`.
    Asked {
        /// From the question.
        req: Req,
        /// What is.
        outcome: Asked,
    },
    /// Node to home: admit one wire of this client. Answered by `Ticketed`.
    Ticket {
        /// Comes back.
        req: Req,
        /// Good once.
        ticket: TicketId,
        /// The key of the wire's handshake.
        secret: Secret,
        /// The session, new or known.
        session: SessionId,
        /// For whom.
        caller: Caller,
    },
    /// Answers `Ticket`.
    Ticketed {
        /// From the question.
        req: Req,
        /// How the wire is spoken, or why not: `EACCES` (unknown account), `EIDRM` (fenced),
        /// `EAGAIN` (no more processes).
        outcome: Result<WireTerms, SysvError>,
    },
    /// Client's node to home: this client, or this image of it, has ended. Answered by `Buried`
    /// after the last piece; repeated until then.
    Ended {
        /// Who.
        client: ClientId,
        /// `None`: the process; else this image and those before it.
        image: Option<Image>,
        /// What its programs had got.
        ends: Vec<End>,
        /// Whether more follow.
        piece: Piece,
    },
    /// Answers `Ended`.
    Buried {
        /// From `Ended`.
        client: ClientId,
        /// From `Ended`.
        image: Option<Image>,
    },
    /// Client's node to home after each Hello: the clients that live, whatever home still holds
    /// of others ended with an earlier keeper and is buried.
    Census {
        /// Living clients with a session at this home, and those whose `Ended` is under way.
        clients: Vec<ClientId>,
        /// Whether more follow.
        piece: Piece,
    },

    /// Node to home: a program here wants to attach a segment. Answered by `Attached`. Sets
    /// `shm_atime` and `shm_lpid`.
    Attach {
        /// Comes back.
        req: Req,
        /// Who wants.
        caller: Caller,
        /// Which segment.
        id: ObjectId,
        /// The flags of shmat(2): `SHM_RDONLY`, `SHM_EXEC`.
        flags: i32,
    },
    /// Answers `Attach`.
    Attached {
        /// From the question.
        req: Req,
        /// The attachment, or EACCES, EIDRM, EINVAL, ENOMEM (no replica number is left).
        outcome: Result<Attachment, SysvError>,
    },
    /// Node to home: a program has detached by its end. Sets `shm_dtime`, `shm_lpid`. Not answered:
    /// it comes before any `Counted` that knows of it.
    Detached {
        /// Which segment.
        id: ObjectId,
        /// Who.
        client: ClientId,
    },
    /// Node to home: `shmctl`. Answered by `Controlled`.
    Control {
        /// Comes back.
        req: Req,
        /// Who wants.
        caller: Caller,
        /// Which segment.
        id: ObjectId,
        /// What.
        control: SegmentControl,
    },
    /// Answers `Control`.
    Controlled {
        /// From the question.
        req: Req,
        /// The state afterwards, or the errno of shmctl(2).
        outcome: Result<SegmentStat, SysvError>,
    },
    /// Home to a node with a replica: how many attachments are there now? Answered by `Counted`.
    Count {
        /// Comes back.
        req: Req,
        /// Of which segment.
        id: ObjectId,
    },
    /// Answers `Count`, after a look at every process.
    Counted {
        /// From the question.
        req: Req,
        /// Attachments on this node.
        attachments: u64,
    },
    /// The page protocol, replica to home.
    ToHome {
        /// Which segment.
        id: ObjectId,
        /// Which replica; one of the sender's node.
        replica: Replica,
        /// What it says.
        frame: ToHome,
    },
    /// The page protocol, home to replica.
    ToReplica {
        /// Which segment.
        id: ObjectId,
        /// Which replica; one of the receiver's node.
        replica: Replica,
        /// What home says.
        frame: ToReplica,
    },

    /// For a tool: what are you doing? Answered by `StatusIs`.
    Status {
        /// Comes back.
        req: Req,
    },
    /// Answers `Status`.
    StatusIs {
        /// From the question.
        req: Req,
        /// What it is doing.
        status: NodeStatus,
    },
    /// For a tool: what are you home to? Answered by `Surveyed`.
    Survey {
        /// Comes back.
        req: Req,
        /// Who wants to know.
        caller: Caller,
        /// Objects of this kind.
        kind: Kind,
        /// Where the last page went on; 0 for the first.
        from: u32,
    },
    /// Answers `Survey`.
    Surveyed {
        /// From the question.
        req: Req,
        /// The page.
        survey: Survey,
    },
    /// For a tool: the semaphores of a set. Answered by `SemaphoresAre`.
    Semaphores {
        /// Comes back.
        req: Req,
        /// Who wants to know.
        caller: Caller,
        /// Which set.
        id: ObjectId,
        /// The first one of this page.
        first: u32,
    },
    /// Answers `Semaphores`.
    SemaphoresAre {
        /// From the question.
        req: Req,
        /// At most [`crate::limits::SURVEY_SEMAPHORES_MAX`], or EACCES, EINVAL.
        outcome: Result<Vec<Semaphore>, SysvError>,
    },
    /// For a tool: `IPC_RMID` by the caller's rights. Answered by `RemovedFor`.
    RemoveFor {
        /// Comes back.
        req: Req,
        /// Who wants it removed.
        caller: Caller,
        /// Of which kind it must be.
        kind: Kind,
        /// Which.
        id: ObjectId,
    },
    /// Answers `RemoveFor`.
    RemovedFor {
        /// From the question.
        req: Req,
        /// Done, or EPERM, EACCES, EINVAL.
        outcome: Result<(), SysvError>,
    },
    /// Referee to node, after each Hello and at each change: its record, to be kept in `lib_dir`
    /// by who may one day take its place.
    Record(RecordCopy),
    /// From a node that is to take the place of a referee that is gone. Answered by `Succession`.
    Succeed {
        /// Comes back.
        req: Req,
        /// Its reign; greater than every one before.
        epoch: Epoch,
        /// How far it has come.
        stage: Stage,
    },
    /// Answers `Succeed`.
    Succession {
        /// From the question.
        req: Req,
        /// What the node knows of the old referee's record, or why it does not agree.
        outcome: Result<RecordCopy, Dissent>,
    },
    /// Home to referee: a segment is to be deleted at its last detach; its key is free, its id
    /// goes on. Idempotent; only from its home.
    Unnamed {
        /// Which.
        id: ObjectId,
    },
    /// Node to referee: as `Claim` of who may create, but another node (`home` of dipc.conf) is to
    /// make the object, and the leave is its. Answered by `Claimed`; `Void` if that node can make
    /// nothing now.
    ClaimFor {
        /// Comes back.
        req: Req,
        /// Keys of different kinds are different.
        kind: Kind,
        /// `IPC_PRIVATE` is always granted.
        key: Key,
        /// Who is to make it.
        home: NodeId,
    },
    /// Node to home: make the object that this leave of yours is for. Answered by `Placed`, once
    /// the
    /// referee has spoken; asked again after a break, and it may be.
    Place {
        /// Comes back.
        req: Req,
        /// As whom.
        caller: Caller,
        /// The leave.
        claim: ClaimNo,
        /// The object.
        object: Reported,
        /// The flags of `*get`.
        flags: i32,
        /// The size of `*get`.
        size: u64,
        /// Which `*get` it is.
        nonce: Nonce,
    },
    /// Answers `Place`.
    Placed {
        /// From the question.
        req: Req,
        /// What became of it.
        outcome: Placement,
    },
    /// Node to home: nobody waits any more for an object that it was to make; if the referee has
    /// not
    /// confirmed it, it goes.
    Unplace {
        /// Which.
        id: ObjectId,
    },
    /// Node to home: as `Ask`, for a `*get` that may be a repetition of the one that made the
    /// object, and then finds its own. Answered by `Asked`.
    AskByNonce {
        /// Comes back.
        req: Req,
        /// Who wants.
        caller: Caller,
        /// Which object.
        id: ObjectId,
        /// The flags of `*get`.
        flags: i32,
        /// The size of `*get`.
        size: u64,
        /// Which `*get` it is.
        nonce: Nonce,
    },

    /// For a tool: which segments has your node attached? Answered by `AttachmentsAre`.
    Attachments {
        /// Comes back.
        req: Req,
        /// The last id of the previous page.
        after: Option<ObjectId>,
    },
    /// Answers `Attachments`.
    AttachmentsAre {
        /// From the question.
        req: Req,
        /// At most [`crate::limits::SURVEY_ATTACHED_MAX`].
        rows: Vec<AttachedRow>,
    },

    /// Node to home: a program has detached by itself, and goes on when home has noted it. Sets
    /// `shm_dtime`, `shm_lpid`. Answered by `DetachNoted`.
    Detach {
        /// Comes back.
        req: Req,
        /// Which segment.
        id: ObjectId,
        /// Who.
        client: ClientId,
    },
    /// Answers `Detach`: whoever asks home now is told so.
    DetachNoted {
        /// From the question.
        req: Req,
    },
}

/// What became of an object that another node was to make.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Placement {
    /// It is made, and the referee knows it.
    Made,
    /// The leave counts no more; claim again.
    TooLate,
    /// It cannot be made for this caller: EACCES, EINVAL, ENOSPC.
    Refused(SysvError),
}

/// A granted attachment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Attachment {
    /// The file of the node it maps.
    pub replica: Replica,
    /// The segment's size in bytes, as it was asked for.
    pub bytes: u64,
    /// The unit of transfer in bytes: `dipc_page_size`, or the whole segment.
    pub unit_bytes: u64,
    /// Whether this program may write at all, now or after another shmat. One that may not maps a
    /// file of its own.
    pub may_write: bool,
}

/// What the referee has on disk, as it told every node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct RecordCopy {
    /// Its reign.
    pub epoch: Epoch,
    /// Who has a number.
    pub members: Vec<Member>,
    /// How many numbers for ids were taken.
    pub ids_taken: u64,
}

/// How far a succession has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Stage {
    /// Would you agree? Nothing follows from the answer here.
    Proposed,
    /// Most agree: this is your referee from now on.
    Decided,
}

/// Why a node does not agree to a succession.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Dissent {
    /// It is linked to the old referee, or is it.
    RefereeLives,
    /// It has accepted a reign as high as this from another.
    Accepted(Epoch),
    /// It cannot keep what it was told.
    NotKept,
}

/// Whether a list goes on in the next frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Piece {
    /// More follow.
    More,
    /// This was the last.
    Last,
}

/// A node as the referee knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Member {
    /// Its number.
    pub node: NodeId,
    /// Where it listens.
    pub address: SocketAddr,
    /// Whether the referee believes in it.
    pub standing: Standing,
}

/// Whether the referee believes in a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Standing {
    /// It is, or may come back with what it is home to.
    Member,
    /// It was declared lost; what it was home to is void.
    Lost,
}

/// One object in a report.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Reported {
    /// Its id.
    pub id: ObjectId,
    /// Its kind.
    pub kind: Kind,
    /// Its key.
    pub key: Key,
}

/// Whether a `*get` may create.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Intent {
    /// `IPC_CREAT` was given.
    Create,
    /// Only an existing object will do.
    Find,
}

/// What the referee says to a claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Claimed {
    /// It exists.
    Found {
        /// Its id.
        id: ObjectId,
        /// Where.
        home: NodeId,
    },
    /// It does not, and you may make it.
    Granted {
        /// Your leave.
        claim: ClaimNo,
        /// Its id.
        id: ObjectId,
    },
    /// It does not, and you did not want to make it.
    Absent,
    /// Not now: you are void until you have said `Voided`. Claim again after that.
    Void,
    /// No number is left for another object: ENOSPC.
    Full,
}

/// Where an object is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Located {
    /// Its kind.
    pub kind: Kind,
    /// Its key.
    pub key: Key,
    /// Its home.
    pub home: NodeId,
}

/// What home says to an `Ask`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Asked {
    /// It is there, and the caller may use it.
    Granted,
    /// It is there, and the caller may not: EACCES, EINVAL, EEXIST.
    Refused(SysvError),
    /// It is not there any more; home has told the referee. Begin again.
    Gone,
}

/// For whom a node vouches: a program as the kernel showed it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Caller {
    /// Which process.
    pub client: ClientId,
    /// Its effective user.
    pub uid: u32,
    /// Its effective group.
    pub gid: u32,
    /// Its supplementary groups, at most [`crate::limits::GROUPS_MAX`].
    pub groups: Vec<u32>,
    /// The login name of `uid` on its node, if it has one.
    pub user_name: Option<String>,
    /// The names of `gid` and `groups` there; empty for one without a name.
    pub group_names: Vec<String>,
    /// Rights beyond the account's.
    pub rights: Rights,
}

/// One session's last word: the last operation whose reply the program has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct End {
    /// Which session.
    pub slot: Slot,
    /// Up to where.
    pub done: Seq,
}
