//! A segment's home: who holds each of its pages. Its shell holds the links, home's own copies
//! (file and aside) and the file of records.
#![forbid(unsafe_code)]

mod record;
mod replicas;

use dipc_wire::ids::NodeId;
use dipc_wire::memory::{Access, GrantNo, PageNo, Replica, ToHome, ToReplica};

use crate::copies::{CopyStep, Place, Records};
use crate::hold::Hold;
pub use record::{Holding, Left, PageRecord};
pub use replicas::ReplicaSet;

/// What is fixed for a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Config {
    /// Pages of the segment: its bytes in units, rounded up.
    pub pages: u32,
    /// How many pages with content fit into one frame: [`frame_pages`].
    pub frame_pages: usize,
    /// `shm_hold_timeout`.
    pub hold: Hold,
    /// `shm_ak_timeout`, in milliseconds; `None`: no bound but the loss of the node.
    pub ak_timeout_ms: Option<u64>,
    /// `employer_shm_timeout`, in milliseconds, for home's own programs; `None`: no bound.
    pub shm_timeout_ms: Option<u64>,
    /// What becomes of a page whose only copy was on a lost node.
    pub lost_page: LostPage,
}

/// `lost_page`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LostPage {
    /// SIGBUS for who touches it.
    Sigbus,
    /// Home's last copy of it, which home therefore never frees.
    Stale,
}

/// How many pages with content a frame takes.
pub fn frame_pages(unit_bytes: u64) -> usize {
    let content = dipc_wire::limits::PART_BYTES as u64 / unit_bytes.max(1);
    usize::try_from(content).map_or(1, |pages| pages.clamp(1, dipc_wire::limits::PAGES_MAX))
}

/// What happens to a directory.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Event {
    /// A program at home faults. Answered by `Open`, `Fill` and `Wake`, or `Fail`. May be said
    /// again, or for a page that is there. Futex looks count as well.
    Fault {
        /// Where.
        page: PageNo,
        /// What for.
        access: Access,
    },
    /// A frame of the page protocol came by the present link of its replica's node; its content,
    /// `Part`s put together, has been received and has the right length. Frames of replaced links
    /// and frames that name a replica of another node never come here (to such a `Report` the shell
    /// answers [`ToReplica::Left`]).
    Frame {
        /// Whose.
        from: Replica,
        /// What it says; never a `Part`.
        frame: ToHome,
    },
    /// A node attached for the first time with this file, under a number from
    /// [`Directory::vacant`]. Its link is up. The shell has recorded it for
    /// [`Directory::start`] before.
    Joined {
        /// Its number.
        replica: Replica,
        /// Where.
        node: NodeId,
    },
    /// The link to a node has ended, or is about to be replaced.
    Unlinked {
        /// Which.
        node: NodeId,
    },
    /// Home declares a node lost. Its replicas' numbers become free (`Effect::Gone`).
    Lost {
        /// Which.
        node: NodeId,
    },
    /// Time has passed: due at [`Effect::SetTimer`], welcome at any time.
    Tick,
    /// Goes on where the last step stopped; see [`Effect::Continue`].
    Continue,
}

/// What is to be done, in this order. A link's frames leave in the order of their effects.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Effect {
    /// Record this of the page (a store into a mapped file; [`PageRecord::stores`]) before anything
    /// that follows, and before the next step.
    Record {
        /// Which page.
        page: PageNo,
        /// What.
        record: PageRecord,
    },
    /// Do this to home's copies.
    Copy(CopyStep),
    /// Send this frame to the node of this replica. `Content::Raw` in it means: read home's copy
    /// now, from `from`; the shell may say `Zero` or send parts instead.
    Send {
        /// To whom.
        to: Replica,
        /// What.
        frame: ToReplica,
        /// Where the content lies.
        from: Place,
    },
    /// This replica is no more: it left, or its node was lost. Forget it durably; its last
    /// attachment may have been the segment's last. The number is vacant some steps later.
    Gone {
        /// Which.
        replica: Replica,
    },
    /// For the log: this page is lost with its owner.
    PageLost {
        /// Which page.
        page: PageNo,
        /// Who owned it.
        owner: Replica,
    },
    /// Say [`Event::Tick`] at this time, instead of the time set before.
    SetTimer {
        /// In milliseconds of the clock that steps are given.
        at_ms: u64,
    },
    /// Close the link to this node and log why. `Unlinked` follows.
    Break {
        /// Which.
        node: NodeId,
        /// Why.
        reason: Breach,
    },
    /// There is more to do than one step should: say [`Event::Continue`] soon, perhaps after other
    /// events. At most one is owed at a time.
    Continue,
}

/// Why a link is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Breach {
    /// A page beyond the segment.
    OutOfRange,
    /// Pages that do not grow within a frame, or a frame without a page.
    Disorder,
    /// A frame that this replica cannot have sent by the protocol.
    Impossible,
    /// More faults than a node has threads.
    TooMuch,
    /// `shm_ak_timeout` is over, of this page's transaction.
    Silent {
        /// Which page.
        page: PageNo,
        /// Which transaction.
        number: GrantNo,
    },
}

/// A segment's home.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Directory {
    config: Config,
}

impl Directory {
    /// Begins, or begins again after a restart of dipcd: `waiting_for` are the replicas that had
    /// joined and not gone; what one of them holds is not touched before it has reported or is
    /// declared lost. `each` carries out what a dipcd that was killed may have left undone.
    pub fn start(
        config: Config,
        now_ms: u64,
        records: &impl Records<PageRecord>,
        waiting_for: impl IntoIterator<Item = (Replica, NodeId)>,
        each: impl FnMut(Effect),
    ) -> Directory {
        let _ = (now_ms, records, waiting_for.into_iter().count(), each);
        Directory { config }
    }

    /// One event: what is to be done about it is added to `effects`, and must be carried out before
    /// the next step.
    pub fn step(
        &mut self,
        now_ms: u64,
        event: Event,
        records: &impl Records<PageRecord>,
        effects: &mut Vec<Effect>,
    ) {
        let _ = (now_ms, event, records, effects, self.config);
    }

    /// A number for a replica that attaches; `None` if all are taken.
    pub fn vacant(&self) -> Option<Replica> {
        None
    }
}
