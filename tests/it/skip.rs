//! Skips: a test that cannot run here says so, with its reason, past libtest's capture. `cargo
//! xtask test` counts these lines and fails on one that tests/skips.txt does not list.
#![forbid(unsafe_code)]

use std::io::Write;

/// Whether this process may make namespaces, serve several users, and so on.
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Says that the test `name` does not run here.
pub fn skip(name: &str, reason: &str) {
    let line = format!("SKIP {name}: {reason}\n");
    std::io::stderr().write_all(line.as_bytes()).expect("standard error takes a line");
}

/// Says it when this process is not root's; true then.
pub fn needs_root(name: &str) -> bool {
    if !is_root() {
        skip(name, "needs root");
    }
    !is_root()
}

/// Whether the full counts are asked for: `cargo xtask test --long`.
pub fn is_long() -> bool {
    std::env::var_os("DIPC_LONG").is_some()
}

/// How much a test does: everything with `cargo xtask test --long`, else at least a twentieth,
/// and says how much.
pub fn amount(name: &str, long: usize, plain: usize) -> usize {
    let chosen = if is_long() { long } else { plain };
    assert!(plain * 20 >= long, "the plain run of {name} does too little");
    note(&format!("{name}: {chosen} of {long}"));
    chosen
}

/// Prints a figure for whoever reads the log, past libtest's capture.
pub fn note(figure: &str) {
    let line = format!("COUNT {figure}\n");
    std::io::stderr().write_all(line.as_bytes()).expect("standard error takes a line");
}
