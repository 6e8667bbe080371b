//! dipcd and its keeper, and dipcd and its stand-ins, over private UNIX sockets (SOCK_SEQPACKET).
//!
//! The keeper is a store of named descriptors and the parent of stand-ins. It answers nothing but
//! `Hello`, `Fetch` and `StandIn`; everything is in order on one connection.

use serde::{Deserialize, Serialize};

use crate::client::{Mm, Trap, WireTerms};
use crate::ids::{ClientId, Image, NodeId, ObjectId, Secret, Slot};
use crate::memory::Replica;
use crate::peer::{End, Piece};
use crate::sysv::Rights;

/// dipcd to keeper.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum ToKeeper {
    /// First packet. Answered by `Hello`.
    Hello,
    /// Keep the descriptor that comes with this; one of the same name is replaced. Not answered.
    Hold(Held),
    /// Close it. Not answered.
    Release(Held),
    /// Hand over copies of everything. Answered by one `Held` each and `Fetched`.
    Fetch,
    /// Fork a stand-in. Answered by `StandIn` or `NoStandIn`; the keeper holds the other copy of
    /// its control socket under `Held::StandIn`.
    StandIn(StandIn),
    /// End, and with you everything you hold (`dipcd --purge`). Answered by the socket's end.
    Quit,
}

/// Keeper to dipcd.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum FromKeeper {
    /// Answers `Hello`.
    Hello {
        /// The keeper's pid.
        pid: u32,
    },
    /// One of the descriptors held; it comes with this.
    Held(Held),
    /// That was all.
    Fetched,
    /// A stand-in runs; its control socket comes with this.
    StandIn {
        /// Its pid.
        pid: u32,
    },
    /// It could not be started.
    NoStandIn {
        /// Why: an errno of fork(2), setgroups(2) or setresuid(2).
        errno: i32,
    },
}

/// The name of a descriptor in the keeper.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Held {
    /// The UNIX socket that clients call.
    Listener,
    /// A client's pidfd.
    Client(ClientId),
    /// The `done` page of one image of a client.
    Done(ClientId, Image),
    /// The client's end of a wire, to break it when its home is lost.
    Wire {
        /// Whose.
        client: ClientId,
        /// Of which image.
        image: Image,
        /// Which session.
        slot: Slot,
        /// Where to.
        home: NodeId,
    },
    /// The control socket of a stand-in.
    StandIn(StandIn),
    /// A file of a segment: its content on this node.
    File(SegmentFile),
    /// The copies kept aside of that file's pages.
    Aside(SegmentFile),
    /// What serves the pages of one address space: a userfaultfd, or the socket of a helper.
    Trap {
        /// Whose.
        mm: Mm,
        /// Which means.
        trap: Trap,
        /// Where its sentinel page is.
        sentinel: u64,
    },
}

/// A file of a segment on this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct SegmentFile {
    /// Which segment.
    pub id: ObjectId,
    /// Its home: the keeper takes access to it away when the lease of that node ends.
    pub home: NodeId,
    /// Which replica it is.
    pub replica: Replica,
}

/// Whom a stand-in stands for, and as whom: it is one process for each pair.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct StandIn {
    /// The remote process.
    pub client: ClientId,
    /// The account at home.
    pub account: Account,
}

/// An account at home, with home's numbers.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Account {
    /// Its effective user.
    pub uid: u32,
    /// Its effective group.
    pub gid: u32,
    /// Its supplementary groups.
    pub groups: Vec<u32>,
    /// Its effective capabilities.
    pub rights: Rights,
}

/// dipcd to a stand-in.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum ToStandIn {
    /// Serve this session on the connected socket that comes with it; an older wire of the same
    /// session is dropped. Not answered.
    Wire {
        /// Which image.
        image: Image,
        /// Which session.
        slot: Slot,
        /// The key of the handshake; the stand-in is the responder.
        secret: Secret,
        /// How to speak.
        terms: WireTerms,
    },
    /// Sessions have ended. After the last piece: put back what no `done` covers, and answer
    /// `Ended` (an image), or end the process, which is the answer (`image: None`).
    End {
        /// This image and those before it; `None` for the client.
        image: Option<Image>,
        /// What the programs had got; a session that is not named has got nothing.
        ends: Vec<End>,
        /// Why, which decides about replies that nobody acknowledged.
        cause: Cause,
        /// Whether more follow.
        piece: Piece,
    },
    /// Drop the wires of every session; the sessions go on when others come. Not answered.
    HangUp,
}

/// Why sessions end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Cause {
    /// Their program's node says so, and says what it had got.
    Reported,
    /// Their node is lost: what was not acknowledged goes back (`queue_on_loss = again`).
    LostAgain,
    /// Their node is lost: what was not acknowledged is dropped (`queue_on_loss = drop`).
    LostDrop,
}

/// A stand-in to dipcd.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FromStandIn {
    /// The sessions of this image and those before it have ended.
    Ended {
        /// From `End`.
        image: Image,
    },
}
