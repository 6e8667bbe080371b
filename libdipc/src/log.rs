//! One line for each decision, where `DIPC_LOG` says; nothing otherwise. The file is opened for
//! each line: no descriptor is kept.
#![forbid(unsafe_code)]

use std::fmt::{Arguments, Write as _};

use rustix::fs::{CWD, Mode, OFlags, openat};

use crate::{policy, sys};

const STDERR: i32 = 2;

/// Writes a line, `key=value` by `key=value`.
pub fn line(what: Arguments<'_>) {
    let Some(path) = policy::log_path() else { return };
    let mut text = String::new();
    let _ = writeln!(text, "libdipc: pid={} {what}", std::process::id());
    if path == b"stderr" {
        let _ = rustix::io::write(sys::borrow(&STDERR), text.as_bytes());
        return;
    }
    let flags = OFlags::WRONLY | OFlags::APPEND | OFlags::CREATE | OFlags::CLOEXEC;
    if let Ok(file) = openat(CWD, path, flags, Mode::from_raw_mode(0o666)) {
        let _ = rustix::io::write(&file, text.as_bytes());
    }
}
