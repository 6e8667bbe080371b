//! The daemon's only unsafe: system calls that rustix does not wrap, as safe functions.
//!
//! Nothing here decides anything; each function is one kernel service with typed arguments and
//! results.

pub mod credentials;
pub mod ipc;
pub mod packets;
pub mod process;
