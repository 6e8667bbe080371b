//! Families with real processes: faults in user and kernel mode, forks at any moment, ends that
//! nobody reports, mappings cut and moved, descriptors and ranges that lie, restarts, both traps.
//!
//! What a program does is in program.c; a node is a `Families` in this process whose faults are
//! answered with a pattern. Where the kernel does not let us serve userfaultfds a test says so.
#![forbid(unsafe_code)]
// Clippy takes only the functions marked as tests for tests, not their helpers.
#![allow(clippy::unwrap_used)]

mod bad;
mod costs;
mod ends;
mod forks;
mod helper;
mod node;
mod program;
mod restarts;
mod serving;
