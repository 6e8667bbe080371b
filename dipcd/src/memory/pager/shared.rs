//! What all segments of this node share: the timers, the buffers, and the notes that are written
//! into the log, or acted on, without any segment's lock.
#![forbid(unsafe_code)]

use crossbeam_channel::Sender;
use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use dipc_core::copies::{CopyStep, Run, Source};
use dipc_wire::ids::{NodeId, ObjectId};
use dipc_wire::memory::{Content, PageNo, Replica};

use super::buffers::Buffers;
use super::content::{Bad, Contents};
use super::node_file::NodeFile;
use super::segment::Segment;
use super::staging::Staging;
use super::timers::Timers;
use crate::memory::families::Fault;
use crate::memory::futexes::Futexes;
use crate::memory::leases::Leases;

/// Units of one file whose parts may be under way at once: a node sends one after the other.
const STAGED_MAX: usize = dipc_wire::limits::REPLICAS_MAX as usize;

/// What somebody must hear of, or do, who holds no lock.
#[derive(Debug)]
pub enum Note {
    /// A page's only copy was on a node that was lost.
    PageLost {
        /// Of which segment.
        id: ObjectId,
        /// Which page.
        page: PageNo,
        /// Who had it.
        owner: Replica,
    },
    /// A link was closed.
    Broken {
        /// About which segment.
        id: ObjectId,
        /// To whom.
        node: NodeId,
        /// Why.
        why: String,
    },
    /// A step could not be done: memory or descriptors are missing.
    Failed {
        /// Of which segment.
        id: ObjectId,
        /// What.
        step: CopyStep,
        /// Why.
        error: io::Error,
    },
    /// The content of a page could not be read.
    Unread {
        /// Of which segment.
        id: ObjectId,
        /// Why.
        error: io::Error,
    },
    /// Home: a file of another node is no more.
    Gone {
        /// Of which segment.
        id: ObjectId,
        /// Which.
        replica: Replica,
    },
    /// Home knows this replica of ours no more: it is to be attached again.
    Void {
        /// Of which segment.
        id: ObjectId,
        /// Which.
        replica: Replica,
    },
    /// Home has said goodbye to this replica of ours.
    Left {
        /// Of which segment.
        id: ObjectId,
        /// Which.
        replica: Replica,
    },
    /// Nobody uses this replica of ours, and its home has been silent for very long.
    GivenUp {
        /// Of which segment.
        id: ObjectId,
        /// Which.
        replica: Replica,
    },
    /// An address space is no more: [`crate::memory::ends::note_ends`].
    Ended,
    /// An attachment has ended; perhaps it was the last.
    Unused {
        /// Of which segment.
        id: ObjectId,
    },
    /// A program touches a page of a segment that is nobody's any more.
    Orphan {
        /// Where.
        fault: Fault,
    },
}

/// What all segments share.
pub struct Shared {
    /// Times that machines have set.
    pub timers: Timers,
    /// Locked memory.
    pub buffers: Buffers,
    /// Until when the pages of other homes may be used.
    pub leases: Leases,
    /// Who sleeps on words of pages that have left.
    pub futexes: Futexes,
    notes: Sender<Note>,
    me: Arc<AtomicU8>,
}

impl Shared {
    /// Notes go to `notes`; this node's number stands in `me` as soon as it is known.
    pub fn new(leases: Leases, notes: Sender<Note>, me: Arc<AtomicU8>) -> Shared {
        Shared {
            timers: Timers::default(),
            buffers: Buffers::default(),
            leases,
            futexes: Futexes::default(),
            notes,
            me,
        }
    }

    /// This node's number, as far as it is known.
    pub fn me(&self) -> NodeId {
        NodeId::new(self.me.load(Ordering::Acquire)).unwrap_or(NodeId::NONE)
    }

    /// Begins this dipcd anew if the keeper has taken pages away in the middle of a step: what the
    /// step still has to do was decided before, and what is recorded is what counts.
    pub fn go_on_only_if_undisturbed(&self, interventions: u64) {
        if self.leases.interventions() != interventions {
            tracing::error!(op = "lease", "it ended in the middle of a step: dipcd begins anew");
            begin_anew();
        }
    }

    /// Leaves a note.
    pub fn note(&self, note: Note) {
        // Its reader lives as long as we do.
        let _ = self.notes.send(note);
    }
}

/// The same program with the same arguments in this process: to all others a dipcd that was killed
/// and started again. Everything it has open is closed, and what must stay is the keeper's.
fn begin_anew() -> ! {
    let mut arguments = std::env::args_os();
    let mut command = Command::new("/proc/self/exe");
    command.arg0(arguments.next().unwrap_or_else(|| "dipcd".into())).args(arguments);
    let error = command.exec();
    tracing::error!(op = "lease", %error, "it cannot begin anew");
    std::process::abort()
}

impl Segment {
    /// Does a step to the copies of one file.
    pub(super) fn carry_out(&self, file: &mut NodeFile, step: &CopyStep, contents: &Contents<'_>) {
        let done = file.carry_out(step, contents, &self.shared.buffers);
        self.check(*step, done);
        self.tell_sleepers(file, step);
        if matches!(step, CopyStep::Fill { .. } | CopyStep::Open(_) | CopyStep::Fail { .. }) {
            self.changed.notify_all();
        }
    }

    /// Fills pages side by side, whose contents are at hand, as one.
    pub(super) fn fill_run(
        &self,
        file: &mut NodeFile,
        run: Run,
        content: Content,
        contents: &Contents<'_>,
    ) {
        let done = file.fill_run(run, content, contents, &self.shared.buffers);
        let step = CopyStep::Fill { page: run.first, from: Source::Frame(content) };
        self.check(step, done);
        if let Some(span) = self.geometry.run(run) {
            self.shared.futexes.came(&file.file, span);
        }
        self.changed.notify_all();
    }

    /// Who sleeps on a word of these pages is looked after. `Open` follows `Fill`, or says that a
    /// page is writable that was readable before.
    fn tell_sleepers(&self, file: &NodeFile, step: &CopyStep) {
        let futexes = &self.shared.futexes;
        let span = |run| self.geometry.run(run);
        match *step {
            CopyStep::Punch(run) => {
                if let Some(span) = span(run) {
                    futexes.left(file.file.name(), &file.mappings, span);
                }
            }
            CopyStep::Fill { page, .. } => {
                if let Some(span) = span(Run::one(page)) {
                    futexes.came(&file.file, span);
                }
            }
            CopyStep::Fail { page, .. } => {
                if let Some(span) = span(Run::one(page)) {
                    futexes.lost(&file.file, span);
                }
            }
            _ => {}
        }
    }

    /// Keeps a part of a unit that is too long for one frame, or says what is wrong with it.
    pub(in crate::memory) fn stage(
        &self,
        file: Option<&mut NodeFile>,
        (page, offset): (PageNo, u64),
        raw: &[u8],
    ) -> Option<Bad> {
        let file = file?;
        let Some(span) = self.geometry.span(page).filter(|_| self.geometry.in_parts()) else {
            return Some(Bad::Unexpected);
        };
        if !file.staging.contains_key(&page) {
            if file.staging.len() >= STAGED_MAX {
                return Some(Bad::Unexpected);
            }
            match Staging::new(span.bytes) {
                Ok(staging) => drop(file.staging.insert(page, staging)),
                Err(error) => {
                    self.unread(error);
                    return Some(Bad::Length);
                }
            }
        }
        match file.staging.get(&page)?.put(offset, raw) {
            Ok(true) => None,
            Ok(false) => Some(Bad::Length),
            Err(error) => {
                self.unread(error);
                Some(Bad::Length)
            }
        }
    }

    /// Whether the content of a frame could be read; if not, that is said.
    pub(super) fn said(&self, read: io::Result<()>) -> bool {
        read.map_err(|error| self.unread(error)).is_ok()
    }

    pub(super) fn unread(&self, error: io::Error) {
        self.shared.note(Note::Unread { id: self.id, error });
    }

    /// A step that failed is said.
    pub(super) fn check(&self, step: CopyStep, done: io::Result<()>) {
        if let Err(error) = done {
            self.shared.note(Note::Failed { id: self.id, step, error });
        }
    }
}
