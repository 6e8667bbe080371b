//! The page protocol: what a segment's home and its replicas say to each other, inside
//! [`crate::peer::PeerFrame::ToHome`] and [`crate::peer::PeerFrame::ToReplica`].
//!
//! ```text
//! replica ─ Fault ─▶ home ─ Recall ─▶ owner ─ Recalled ─▶ home ─ Confirm ─▶ owner
//!                    home ─ Invalidate ─▶ each reader ─ Invalidated ─▶ home
//!                    home ─ Grant ─▶ replica ─ Ack ─▶ home
//! replica ─ Released ─▶ home ─ Confirm ─▶ replica            it gives a page up by itself
//! replica ─ Report ─▶ home ─ Resumed | Left ─▶ replica       after each Hello
//! ```
//!
//! Every frame but a question carries the number of the grant it is about; an answer with another
//! number is ignored. Only a grant for writing is acknowledged: home keeps its copy of what
//! others read. Contents travel as raw bytes behind the frame, in the order of its pages;
//! a unit longer than [`crate::limits::PART_BYTES`] travels before it in parts.

use serde::{Deserialize, Serialize};

use crate::peer::Piece;

/// One file of a segment on one node. 0 is home's own; the others are numbered by home when they
/// attach and free again when they have left.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Replica(pub u8);

impl Replica {
    /// Home's own file.
    pub const HOME: Replica = Replica(0);
}

/// A unit of a segment: `dipc_page_size` bytes, or the whole segment; counted from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PageNo(pub u32);

/// The number of a grant: grows for each page, also over restarts of home; 0 before the first.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct GrantNo(pub u64);

/// What a program does with a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Access {
    /// It loads.
    Read,
    /// It stores, or makes a futex call.
    Write,
}

/// How the content of a page comes with a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Content {
    /// Not at all: there is none, or the receiver has the same.
    None,
    /// All bytes are zero.
    Zero,
    /// As raw bytes behind the frame, one unit long.
    Raw,
    /// In the [`ToHome::Part`]s or [`ToReplica::Part`]s before this.
    Parts,
}

/// A page and a grant of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Granted {
    /// Which page.
    pub page: PageNo,
    /// Which grant.
    pub number: GrantNo,
    /// What it holds.
    pub content: Content,
}

/// A replica to its segment's home.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum ToHome {
    /// A program waits for `first`; the `ahead` pages behind it would be welcome. Answered by
    /// `Grant` or `Refused`; repeated by `Report`.
    Fault {
        /// The page that is waited for.
        first: PageNo,
        /// How many more, which are granted only if they cost no wait.
        ahead: u16,
        /// What for.
        access: Access,
    },
    /// Answers a `Grant` for writing: installed.
    Ack {
        /// Which grants.
        pages: Vec<(PageNo, GrantNo)>,
    },
    /// Answers `Recall`: the content, and what is left here: `Read` or nothing.
    Recalled {
        /// Page, the number of the recall, content.
        granted: Granted,
        /// The newest grant this replica has installed: which copy this is.
        of: GrantNo,
        /// Whether the replica goes on as a reader.
        keeps: Option<Access>,
    },
    /// Answers `Invalidate`: no program here can read it any more.
    Invalidated {
        /// Which page.
        page: PageNo,
        /// From `Invalidate`.
        number: GrantNo,
    },
    /// The replica has given a page up by itself. Answered by `Confirm` with the same number.
    Released {
        /// Page, the newest grant installed here, and the content if this may be the only copy.
        granted: Granted,
    },
    /// After each Hello, before all else: what home may not know of this replica, in pieces.
    /// Answered by [`ToReplica::Resumed`], or by [`ToReplica::Left`] if home knows no such replica.
    Report {
        /// Pages with a copy whose content home may not have, or with a waiting fault. What else
        /// the replica holds is what home recorded before it was granted.
        pages: Vec<PageReport>,
        /// Whether more follow.
        piece: Piece,
    },
    /// A part of the content of the frame that follows.
    Part {
        /// Which page.
        page: PageNo,
        /// Where in the unit, in bytes.
        offset: u64,
    },
    /// The last attachment of this replica has ended and every page is given up. Answered by
    /// [`ToReplica::Left`].
    Leave,
    /// Read ahead: nobody waits for these pages, but they would be welcome, as far as they cost
    /// no wait. Answered by a `Grant` of some of them, or not at all.
    Ahead {
        /// The first of them.
        first: PageNo,
        /// How many.
        count: u16,
    },
}

/// A segment's home to a replica.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum ToReplica {
    /// Answers `Fault`, or `Ahead` with pages nobody here waits for. Answered by `Ack` if it is for
    /// writing; by another `Fault` if it brings no content and the replica has no copy any more.
    Grant {
        /// What may be done with them.
        access: Access,
        /// The pages.
        pages: Vec<Granted>,
    },
    /// Give the page up (`Write`: somebody will write) or go on as a reader (`Read`), and send it.
    /// Answered by `Recalled`.
    Recall {
        /// Which page.
        page: PageNo,
        /// Of the transaction that wants it.
        number: GrantNo,
        /// What somebody else wants.
        wanted: Access,
    },
    /// Read it no more. Answered by `Invalidated`.
    Invalidate {
        /// Which page.
        page: PageNo,
        /// Of the transaction that wants it.
        number: GrantNo,
    },
    /// Home has the content of this grant: the copy kept aside may go.
    Confirm {
        /// Which page.
        page: PageNo,
        /// The replica's newest grant when it sent the content.
        number: GrantNo,
    },
    /// Answers `Fault`: not to be had.
    Refused {
        /// Which page.
        page: PageNo,
        /// Why.
        refusal: Refusal,
    },
    /// A part of the content of the grant that follows.
    Part {
        /// Which page.
        page: PageNo,
        /// Where in the unit, in bytes.
        offset: u64,
    },
    /// Report what you have: home does not know it.
    ReportPlease,
    /// Answers `Leave`: this replica is forgotten. Answers a report: it was, its node having been
    /// declared lost, and whatever it has is void.
    Left,
    /// Answers the last piece of a report: what this replica holds still counts.
    Resumed,
    /// Somebody waits for a page that was granted for writing: an `Ack` that is put off, to go out
    /// with another frame, is said now.
    AckPlease {
        /// Which page.
        page: PageNo,
    },
}

/// Why a page is not to be had: SIGBUS for who touches it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Refusal {
    /// The node that had its only copy was lost.
    Lost,
    /// The segment is deleted, or this replica is none of it.
    Gone,
}

/// One page of a report.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct PageReport {
    /// Page, the newest grant installed, and the content if this may be the only copy.
    pub granted: Granted,
    /// What this replica holds.
    pub holds: Holds,
    /// What a program here waits for.
    pub fault: Option<Access>,
}

/// What a replica has of a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Holds {
    /// Nothing.
    Nothing,
    /// A copy nobody here can use, until home has its content.
    Kept,
    /// A copy for reading.
    Shared,
    /// The one copy, for writing.
    Owned,
}
