//! What happens when the library is loaded, when the program forks, and when one of its threads
//! ends. At load nothing is opened, read or allocated: a script starts hundreds of programs that
//! will never use us.
#![forbid(unsafe_code)]

use std::ffi::c_void;
use std::panic::set_hook;

use crate::{boundary, fork, kernel, policy, session, slots, sys, thread, trap};

/// The constructor. Other libraries' constructors may have called us before.
pub extern "C" fn construct() {
    sys::register([fork::before, fork::after, forked], thread_ends);
    policy::read_environment();
    kernel::look_up_all();
    set_hook(Box::new(|_| ())); // a guest prints nothing; `boundary` turns panics into errno
}

/// In a forked child: the wires are its parent's. The rest is its own by the kernel's doing.
pub extern "C" fn forked() {
    fork::forked();
    undisturbed(slots::close_inherited);
    undisturbed(trap::announce);
}

/// A thread ends, in order or cancelled: so do its sessions.
extern "C" fn thread_ends(_: *mut c_void) {
    undisturbed(|| {
        if let Some(state) = thread::leave() {
            session::end_all(*state);
        }
    });
}

fn undisturbed(ours: impl FnOnce()) {
    let errno = sys::errno();
    let mask = sys::block_signals();
    let _ = boundary::fence(|| {
        ours();
        Ok(())
    });
    sys::restore_signals(mask);
    sys::set_errno(errno);
}
