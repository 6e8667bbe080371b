//! Running cargo and what it built, in the source tree, with the streams that we were given. Every
//! function says on failure what failed.
#![forbid(unsafe_code)]

use std::path::PathBuf;
use std::process::Command;

/// The root of the source tree.
pub fn root() -> PathBuf {
    let here = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    here.parent().expect("the package lies in the workspace").to_owned()
}

/// cargo, in the source tree, without what cargo told us about our package: build scripts are run
/// again where that differs, and all that hangs on them is built again.
pub fn cargo(arguments: &[&str]) -> Command {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.args(arguments).current_dir(root());
    let about_us = ["CARGO_MANIFEST_", "CARGO_PKG_"];
    let names = std::env::vars_os().filter_map(|(name, _)| name.into_string().ok());
    for name in names.filter(|name| about_us.iter().any(|start| name.starts_with(start))) {
        command.env_remove(name);
    }
    command
}

/// Runs a command to its end, with our own streams.
pub fn run(mut command: Command) -> Result<(), String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let status = command.status().map_err(|error| format!("{name}: {error}"))?;
    if status.success() { Ok(()) } else { Err(format!("{name} failed ({status})")) }
}

/// Where cargo puts what it builds.
pub fn built(profile: &str) -> PathBuf {
    let target = std::env::var_os("CARGO_TARGET_DIR").map(PathBuf::from);
    target.unwrap_or_else(|| root().join("target")).join(profile)
}

/// Builds what a cluster needs and starts the harness's program for people.
pub fn play(arguments: &[&str]) -> Result<(), String> {
    println!("building ...");
    let packages = ["dipcd", "libdipc", "dipc-tests", "dipc-tools", "dipcrm", "dipc-server"];
    let named = packages.iter().flat_map(|package| ["-p", package]);
    run(cargo(&["build", "--quiet"].into_iter().chain(named).collect::<Vec<_>>()))?;
    let mut command = Command::new(built("debug").join("dipc-play"));
    command.args(arguments).env("DIPC_BIN", built("debug"));
    run(command)
}

/// Builds everything as it would be installed, and measures it.
pub fn bench() -> Result<(), String> {
    run(cargo(&["build", "--release", "--workspace"]))?;
    let mut command = Command::new(built("release").join("dipc-bench"));
    command.env("DIPC_BIN", built("release"));
    run(command)
}
