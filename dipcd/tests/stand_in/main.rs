//! The keeper and the stand-in as real processes, spoken to as dipcd and libdipc would: every
//! operation, waits and their interruption, broken wires, ends, and the keeper's death.
//!
//! Each test has a node of its own in a temporary directory, and System V objects that are
//! removed however it ends.
#![forbid(unsafe_code)]
// Clippy takes only the functions marked as tests for tests, not their helpers.
#![allow(clippy::unwrap_used)]

mod ends;
mod keeping;
mod node;
mod operations;
mod waits;
