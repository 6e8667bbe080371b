//! As whom a thread acts at this moment. It counts at the call and for each thread alone, so a
//! wire is compared with it before each use.
//!
//! Asking the kernel for all of it takes five system calls. The effective user is asked for each
//! time; the rest when one of the functions that change it has been called, in any thread, since
//! the wire was last compared.
#![forbid(unsafe_code)]

use std::sync::atomic::{AtomicU64, Ordering};

use rustix::process::{getegid, geteuid, getgroups};

use crate::sys;

/// How often this process has changed who a thread of it is.
static CHANGES: AtomicU64 = AtomicU64::new(0);

/// What the kernel's permission checks look at.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    uid: u32,
    gid: u32,
    groups: Vec<u32>,
    capabilities: u64,
}

/// An identity, and when it was seen.
#[derive(Clone, Debug)]
pub struct Seen {
    identity: Identity,
    changes: u64,
}

impl Identity {
    /// The calling thread's.
    fn now() -> Identity {
        let groups = getgroups().unwrap_or_default();
        Identity {
            uid: geteuid().as_raw(),
            gid: getegid().as_raw(),
            groups: groups.into_iter().map(|group| group.as_raw()).collect(),
            capabilities: sys::capabilities(),
        }
    }
}

impl Seen {
    /// The calling thread's identity.
    pub fn now() -> Seen {
        let changes = CHANGES.load(Ordering::Acquire);
        Seen { identity: Identity::now(), changes }
    }

    /// Whether the calling thread is still who it was.
    pub fn is_still_true(&mut self) -> bool {
        let changes = CHANGES.load(Ordering::Acquire);
        if changes == self.changes {
            return geteuid().as_raw() == self.identity.uid;
        }
        let is_same = Identity::now() == self.identity;
        if is_same {
            self.changes = changes;
        }
        is_same
    }
}

/// After a call that may have changed who this thread, or each thread, is.
pub fn changed<T>(result: T) -> T {
    CHANGES.fetch_add(1, Ordering::AcqRel);
    result
}
