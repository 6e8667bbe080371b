//! What DIPC decides, as pure state machines: who is home to a key ([`referee`]), what happens
//! once in a session ([`session`]), and who holds a page of a segment: [`directory`] at its home,
//! [`replica`] elsewhere.
//!
//! Nothing here blocks, reads a clock, draws a random number or performs I/O: time comes in with
//! an event, and whatever is to be done leaves as an effect. So every machine can be cloned,
//! compared, explored in every interleaving (`tests/model.rs`) and simulated (`tests/simulate.rs`).
#![forbid(unsafe_code)]

pub mod copies;
pub mod directory;
pub mod hold;
pub mod lease;
pub mod read_ahead;
pub mod referee;
pub mod replica;
pub mod session;
