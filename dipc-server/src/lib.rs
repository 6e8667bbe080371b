//! The mailbox server: numbered mailboxes in System V shared memory, for clients with a socket.
//!
//! ```text
//! args         the command line, checked
//! protocol     what clients say: a pure parser
//! layout       where things lie in the segment and in the set
//! lock         many readers or one writer, fair, ended by the kernel if its holder dies
//! store        a mailbox read and written
//! place        the segment and the set of a port: made, joined, left, removed
//! server       accepting, one thread a client; connection is that thread
//! follow       that thread goes where its client runs
//! daemon       going to the background when ready
//! process      which process, told from every other one
//! sys          the only unsafe code
//! ```
//!
//! It is an ordinary System V program: it knows nothing of dipcd, and its one concession to the
//! cluster is `IPC_DIPC` in the flags of its gets when it is started with `--shared`.
#![deny(unsafe_code)]

pub mod args;
pub mod connection;
pub mod daemon;
pub mod failure;
pub mod follow;
pub mod layout;
pub mod lock;
pub mod place;
pub mod process;
pub mod protocol;
pub mod server;
pub mod store;
pub mod sys;
