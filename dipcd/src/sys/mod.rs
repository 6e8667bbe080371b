//! The daemon's only unsafe: system calls that rustix does not wrap, as safe functions.
//!
//! Nothing here decides anything; each function is one kernel service with typed arguments and
//! results.

pub mod buffer;
pub mod credentials;
pub mod faults;
pub mod futex;
pub mod ipc;
pub mod packets;
pub mod populate;
pub mod process;
pub mod words;
