//! As whom a thread acts at this moment. It counts at the call and for each thread alone, so a
//! wire is compared with it before each use; programs change it in too many ways to watch them.
#![forbid(unsafe_code)]

use rustix::process::{getegid, geteuid, getgroups};

use crate::sys;

/// What the kernel's permission checks look at.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    uid: u32,
    gid: u32,
    groups: Vec<u32>,
    capabilities: u64,
}

impl Identity {
    /// The calling thread's.
    pub fn now() -> Identity {
        let groups = getgroups().unwrap_or_default();
        Identity {
            uid: geteuid().as_raw(),
            gid: getegid().as_raw(),
            groups: groups.into_iter().map(|group| group.as_raw()).collect(),
            capabilities: sys::capabilities(),
        }
    }
}
