//! The cluster harness: starts real dipcds, runs programs on their nodes, breaks things, and leaves
//! nothing behind. The chapters of `main.rs` and `cargo xtask cluster` use it; it tests nothing
//! itself.
//!
//! With root each node has an IPC namespace of its own (another machine, as far as System V IPC
//! goes), and on request a network namespace. Without root the nodes share the machine's.
#![deny(unsafe_code)]

pub mod cluster;
pub mod impostor;
pub mod link;
pub mod local;
pub mod machine;
pub mod maker;
pub mod node;
pub mod process;
pub mod programs;
pub mod proxy;
pub mod puppet;
pub mod skip;
pub mod stranger;
pub mod sys;

pub use cluster::{Builder, Cluster};
pub use machine::{Limits, Machine};
pub use maker::Maker;
pub use node::{Node, User};
pub use process::{Output, Running};
pub use proxy::Weather;
pub use puppet::Puppet;
