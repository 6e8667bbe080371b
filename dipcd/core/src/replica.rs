//! One file of a segment at a node that is not its home: which pages it holds, and what its
//! programs wait for. Its shell holds the link to home, the file, its aside and the records.
#![forbid(unsafe_code)]

mod record;

use dipc_wire::memory::{Access, PageNo, ToHome, ToReplica};

use crate::copies::{CopyStep, Place, Records};
pub use record::{Copy, CopyRecord};

/// What is fixed for a replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Config {
    /// Pages of the segment.
    pub pages: u32,
    /// How many pages with content fit into one frame: [`crate::directory::frame_pages`].
    pub frame_pages: usize,
    /// `employer_shm_timeout`, in milliseconds; `None`: no bound.
    pub shm_timeout_ms: Option<u64>,
    /// The longest window of read-ahead, in pages; 0 for none (`transfer_mode = segment`).
    pub ahead_max: u16,
}

/// What happens to a replica.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Event {
    /// A program faults. Answered by `Fill`, `Open` and `Wake`, or `Fail`. May be said again, or
    /// for a page that is there. Futex looks count as well.
    Fault {
        /// Where.
        page: PageNo,
        /// What for.
        access: Access,
    },
    /// Home says this by the present link; its content has been received and has the right length.
    Frame(ToReplica),
    /// A program attached: if the replica was about to leave and has not said so, it stays.
    Attached,
    /// The last attachment has ended: everything is given up, then [`ToHome::Leave`] said.
    Detached,
    /// A link to home is up, Hello both ways. The first frame of this replica on it will be its
    /// report. The first link, after Attach, counts as well.
    LinkUp,
    /// The link has ended, or is about to be replaced.
    LinkDown,
    /// The lease is over: access is taken away. Every node closes a link whose lease has ended, so
    /// `LinkDown` follows.
    LeaseEnded,
    /// The lease runs again.
    LeaseRestored,
    /// Time has passed: due at [`Effect::SetTimer`], welcome at any time.
    Tick,
    /// Goes on where the last step stopped; see [`Effect::Continue`].
    Continue,
}

/// What is to be done, in this order.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Effect {
    /// Record this of the page (one store into a mapped file) before anything that follows, and
    /// before the next step.
    Record {
        /// Which page.
        page: PageNo,
        /// What.
        record: CopyRecord,
    },
    /// Do this to this node's copies.
    Copy(CopyStep),
    /// Send this frame to home. `Content::Raw` in it means: read the copy now, from `from`; the
    /// shell may say `Zero` or send parts instead.
    Send {
        /// What.
        frame: ToHome,
        /// Where the content lies.
        from: Place,
    },
    /// Home knows this replica no more: protect and punch the whole file, empty the aside and the
    /// records, then wake all waiters. The shell drops this machine, and attaches again (a new
    /// machine) if programs still do.
    Void,
    /// Home has said goodbye: the shell drops this machine and its files.
    Left,
    /// Say [`Event::Tick`] at this time, instead of the time set before.
    SetTimer {
        /// In milliseconds of the clock that steps are given.
        at_ms: u64,
    },
    /// Close the link to home and log why. `LinkDown` follows.
    Break {
        /// Why.
        reason: Breach,
    },
    /// There is more to do than one step should: say [`Event::Continue`] soon, perhaps after other
    /// events; after `LeaseEnded` at once. At most one is owed at a time.
    Continue,
}

/// Why a link is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Breach {
    /// A page beyond the segment.
    OutOfRange,
    /// Pages that do not grow within a frame, or a frame without a page.
    Disorder,
    /// A frame that home cannot have sent by the protocol.
    Impossible,
}

/// One file of a segment at a node.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Replica {
    config: Config,
}

impl Replica {
    /// Begins with what the records say: an empty file at the first attachment, or what a dipcd
    /// left that was killed. The link is down. `each` carries out what it may have left undone;
    /// afterwards the shell wakes every waiter, so that faults are said again.
    pub fn start(
        config: Config,
        records: &impl Records<CopyRecord>,
        each: impl FnMut(Effect),
    ) -> Replica {
        let _ = (records, each);
        Replica { config }
    }

    /// One event: what is to be done about it is added to `effects`, and must be carried out before
    /// the next step.
    pub fn step(
        &mut self,
        now_ms: u64,
        event: Event,
        records: &impl Records<CopyRecord>,
        effects: &mut Vec<Effect>,
    ) {
        let _ = (now_ms, event, records, effects, self.config);
    }
}

/// What taking access away at the end of a lease does to one page, in this order: also for the
/// keeper, when dipcd is dead or stopped. Writing was taken from the whole file before.
pub fn revoke(page: PageNo, record: CopyRecord, effects: &mut Vec<Effect>) {
    let _ = (page, record, effects);
}
