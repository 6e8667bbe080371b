//! What is done to the copies of a page on one node: in the node's *file* of the segment, which
//! programs map, and in its *aside* file, which they do not. Home and the other nodes do the same
//! things to them, so that one shell function carries all of this out.
//!
//! A copy is moved aside before it is punched, and recorded where it lies in between: a dipcd that
//! is killed anywhere leaves a content that the record leads to. Steps that may be done twice for
//! that reason (everything but `Wake`) change nothing the second time.
#![forbid(unsafe_code)]

use dipc_wire::memory::{Content, PageNo};

/// Pages that lie side by side.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Run {
    /// The first of them.
    pub first: PageNo,
    /// How many; at least one.
    pub count: u32,
}

impl Run {
    /// One page.
    pub const fn one(page: PageNo) -> Run {
        Run { first: page, count: 1 }
    }
}

/// Collects pages in growing order into runs.
#[derive(Debug, Default)]
pub(crate) struct Runs {
    open: Option<Run>,
}

impl Runs {
    /// Adds a page; the run that it does not continue is done.
    pub fn add(&mut self, page: PageNo, mut done: impl FnMut(Run)) {
        match &mut self.open {
            Some(run) if run.first.0 + run.count == page.0 => run.count += 1,
            open => {
                if let Some(run) = open.replace(Run::one(page)) {
                    done(run);
                }
            }
        }
    }

    /// The last run.
    pub fn finish(self) -> Option<Run> {
        self.open
    }
}

/// Where on a node a copy lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Place {
    /// In the file that programs map.
    File,
    /// In the file beside it.
    Aside,
}

/// Where the bytes of a copy come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Source {
    /// From the frame that this step is about, which brought it so; never `Content::None`.
    Frame(Content),
    /// From the other place on this node.
    Node,
}

/// One thing to do, for every attachment of the segment on this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CopyStep {
    /// No program writes these pages any more; whoever tries waits. Reading goes on.
    Protect(Run),
    /// The content goes into the file. From now on programs may read it, and not write.
    Fill {
        /// Which page.
        page: PageNo,
        /// Whence; `Node` is the aside file.
        from: Source,
    },
    /// The content goes into the aside file.
    Keep {
        /// Which page.
        page: PageNo,
        /// Whence; `Node` is the file, which was protected before.
        from: Source,
    },
    /// No program reads these pages any more, and what the file held is gone. They were protected
    /// before.
    Punch(Run),
    /// The aside file's copies of these pages are gone.
    FreeAside(Run),
    /// Programs may write this page, which the file holds. At home it may have been a hole until
    /// now: then it is zeros, and its neighbours may be filled with it if they were never granted.
    Open(PageNo),
    /// Whoever waits for this page tries again.
    Wake(PageNo),
    /// Whoever waits for this page gets SIGBUS, as does who touches it before it is filled again.
    Fail {
        /// Which page.
        page: PageNo,
        /// Why, for the log.
        failure: Failure,
    },
}

/// Why a page is not to be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Failure {
    /// The node that had its only copy was lost.
    Lost,
    /// The segment is deleted, or its home is lost.
    Gone,
    /// `employer_shm_timeout` is over.
    TimedOut,
}

/// What a mapped file records of each page; a page without a record is a hole of zeros in it.
pub trait Records<T> {
    /// What is recorded of this page; what a hole stands for, if nothing is.
    fn get(&self, page: PageNo) -> T;
    /// The first page from this one on that may have a record. Used only in walks over the whole
    /// segment: at a restart, at the end of a lease, when a replica has gone.
    fn next(&self, from: PageNo) -> Option<PageNo>;
}
