//! libdipc, preloaded into programs: System V calls on distributed objects go to their home, all
//! others to libc, untouched.
//!
//! ```text
//! abi ── route ──▶ kernel        the object is here, or not ours: as without us
//!          │
//!          └─ boundary ─▶ queues, sets ─▶ session ─▶ wire        one request, one reply
//!                  │           └────────▶ client                 one call to dipcd
//!                  └─────▶ segments, mappings ─▶ attachments, trap ─▶ client
//! ```
//!
//! We are a guest in somebody else's process: no threads, no signal handlers, no output, nothing
//! taken from its memory (`dlmalloc` has its own), its `errno`, masks and descriptors as found.

mod abi;
mod attachments;
mod boundary;
mod client;
mod fork;
mod identity;
mod jump;
mod kernel;
mod key_path;
mod layout;
mod listing;
mod lock;
mod log;
mod mappings;
mod names;
mod pieces;
mod policy;
mod queues;
mod route;
mod segments;
mod session;
mod sets;
mod signals;
mod slots;
mod socket;
mod start;
mod sys;
mod tables;
mod thread;
mod time;
mod trap;
mod wire;

/// Ours alone: a signal handler that interrupts the program's malloc may call msgsnd.
#[global_allocator]
static HEAP: sys::heap::Heap = sys::heap::Heap::new();
