//! The functions that change who a thread is: passed on, and noted, so that a wire opened before is
//! compared with its thread before it is used again.

use std::ffi::c_int;

use redhook::hook;

use crate::identity::changed;
use crate::kernel::{Become, become_other};

hook! {
    unsafe fn setuid(uid: usize) -> c_int => dipc_setuid {
        changed(become_other(Become::Setuid, [uid, 0, 0]))
    }
}

hook! {
    unsafe fn setgid(gid: usize) -> c_int => dipc_setgid {
        changed(become_other(Become::Setgid, [gid, 0, 0]))
    }
}

hook! {
    unsafe fn seteuid(uid: usize) -> c_int => dipc_seteuid {
        changed(become_other(Become::Seteuid, [uid, 0, 0]))
    }
}

hook! {
    unsafe fn setegid(gid: usize) -> c_int => dipc_setegid {
        changed(become_other(Become::Setegid, [gid, 0, 0]))
    }
}

hook! {
    unsafe fn setreuid(real: usize, effective: usize) -> c_int => dipc_setreuid {
        changed(become_other(Become::Setreuid, [real, effective, 0]))
    }
}

hook! {
    unsafe fn setregid(real: usize, effective: usize) -> c_int => dipc_setregid {
        changed(become_other(Become::Setregid, [real, effective, 0]))
    }
}

hook! {
    unsafe fn setresuid(real: usize, effective: usize, saved: usize) -> c_int => dipc_setresuid {
        changed(become_other(Become::Setresuid, [real, effective, saved]))
    }
}

hook! {
    unsafe fn setresgid(real: usize, effective: usize, saved: usize) -> c_int => dipc_setresgid {
        changed(become_other(Become::Setresgid, [real, effective, saved]))
    }
}

hook! {
    unsafe fn setgroups(count: usize, list: usize) -> c_int => dipc_setgroups {
        changed(become_other(Become::Setgroups, [count, list, 0]))
    }
}

hook! {
    unsafe fn initgroups(user: usize, gid: usize) -> c_int => dipc_initgroups {
        changed(become_other(Become::Initgroups, [user, gid, 0]))
    }
}

hook! {
    unsafe fn capset(header: usize, data: usize) -> c_int => dipc_capset {
        changed(become_other(Become::Capset, [header, data, 0]))
    }
}
