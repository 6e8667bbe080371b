//! The pager: the machines of dipc-core that decide about the pages of segments, and what carries
//! their decisions out on this node.
//!
//! ```text
//! program touches a page ─▶ family's thread ┐
//! frame of the page protocol ─▶ link reader ┼─▶ segment's lock: machine steps, effects are
//! a time has come ─▶ timer's thread         ┘   carried out in order, frames are posted
//! ```
#![forbid(unsafe_code)]

pub mod bounds;
pub mod buffers;
pub mod content;
pub mod home_side;
pub mod node_file;
pub mod replica_side;
pub mod segment;
pub mod shared;
pub mod staging;
pub mod timers;
