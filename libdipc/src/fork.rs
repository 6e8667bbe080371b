//! fork: a child inherits our tables, our heap and the attachments, all at rest.
//!
//! What is written around a fork costs its page another copy, a microsecond or two. So a process of
//! one thread, in which nothing of ours can be under way, writes nothing here.
#![forbid(unsafe_code)]

use std::cell::Cell;

use crate::boundary::attempt;
use crate::sys::{self, Mask};
use crate::{HEAP, pieces, trap};

/// A thread that is in fork.
#[derive(Clone, Copy)]
struct Forking {
    /// Its mask.
    mask: Mask,
    /// Whether it holds the table of attachments, and how many children there were before.
    attached: Option<u32>,
}

thread_local! {
    static FORKING: Cell<Option<Forking>> = const { Cell::new(None) };
}

/// Before it.
pub extern "C" fn before() {
    if sys::is_only_thread() && !trap::closes_at_fork() {
        return;
    }
    let mask = sys::block_signals();
    let attached = pieces::is_any().then(|| {
        let change = pieces::change();
        let table = pieces::table();
        trap::close_all(&table);
        change.keep(table);
        trap::children()
    });
    HEAP.keep();
    FORKING.set(Some(Forking { mask, attached }));
}

/// After it, in the parent.
pub extern "C" fn after() {
    finish(trap::await_child);
}

/// After it, in the child.
pub fn forked() {
    finish(|_| ());
}

/// Gives back what [`before`] took; `settle` is called while attachments stay as they are.
fn finish(settle: impl FnOnce(u32)) {
    let Some(Forking { mask, attached }) = FORKING.get() else { return };
    FORKING.set(None);
    HEAP.release();
    if let Some(children) = attached {
        pieces::end_table();
        settle(children);
        pieces::end_change();
    }
    sys::restore_signals(mask);
}

/// Before a fork of which the C library knows nothing; what other threads open until it happens, a
/// child may keep.
pub fn before_raw() {
    if pieces::is_any() {
        let _ = attempt(|_| {
            trap::close_all(&pieces::table());
            Ok(())
        });
    }
}
