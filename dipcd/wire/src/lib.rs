//! What DIPC's programs say to each other: identifiers, bounds, frames and their bytes.
//!
//! Nothing here opens a socket, reads a clock or decides anything. The conversations:
//!
//! | who | file | over |
//! |---|---|---|
//! | libdipc - its dipcd | [`client`] | UNIX socket, one packet each way per call |
//! | libdipc - its stand-in at home | [`op`] | a wire: TCP and Noise |
//! | dipcd - a program's helper thread | [`trap`] | a pair of UNIX sockets |
//! | dipcd - dipcd | [`peer`], pages: [`memory`] | a link: TCP and Noise |
//! | dipcd - its keeper, dipcd - a stand-in | [`keeper`] | private UNIX sockets |
//!
//! A variant's position is its opcode: append only; a removed variant stays as `RetiredN`.
#![forbid(unsafe_code)]

pub mod client;
pub mod codec;
pub mod ids;
pub mod keeper;
pub mod limits;
pub mod memory;
pub mod noise;
pub mod op;
pub mod peer;
pub mod preamble;
pub mod survey;
pub mod sysv;
pub mod trap;
