//! Other processors: what nodes say to each other and what is decided must not depend on word
//! length or byte order, so the tests of dipc-wire and dipc-core are run under qemu-user where
//! Rust's standard library for the processor, a C compiler and qemu are installed (`.ci/run
//! --processors` installs them). Not the models, which would take hours and look at nothing of the
//! kind.
#![forbid(unsafe_code)]

use std::ffi::OsString;
use std::path::Path;
use std::process::Command;

use crate::run::cargo;

/// As in the names of Rust's targets, Debian's compilers and qemu's programs. The second has the
/// most significant byte first.
const PROCESSORS: [&str; 2] = ["aarch64", "s390x"];

/// The tests that are run.
const TESTS: [&str; 4] = ["--lib", "--test=golden", "--test=matrix", "--test=pages_matrix"];

/// What these tests need of others' crates runs for a second; to optimise these takes minutes.
const UNOPTIMISED: &str = r#"profile.dev.package."*".opt-level = 0"#;

/// For each processor: the command that tests it, or what is missing.
pub fn all() -> Vec<Result<Command, String>> {
    PROCESSORS.iter().map(|processor| command(processor)).collect()
}

fn command(processor: &str) -> Result<Command, String> {
    if let Some(missing) = missing(processor) {
        return Err(format!("{processor}: {missing} is not installed"));
    }
    let target = target(processor);
    let variable = |what: &str| {
        let name = target.to_uppercase().replace('-', "_");
        format!("CARGO_TARGET_{name}_{what}")
    };
    let mut command = cargo(&["test", "--target", &target, "-p", "dipc-wire", "-p", "dipc-core"]);
    command.args(["--config", UNOPTIMISED]);
    // Random input is the same on every processor, and slow here.
    command.args(TESTS).args(["--no-fail-fast", "--", "--skip", "random_bytes"]);
    command.env(variable("LINKER"), compiler(processor));
    let runner = format!("{} -L /usr/{processor}-linux-gnu", emulator(processor));
    command.env(variable("RUNNER"), runner);
    Ok(command)
}

fn target(processor: &str) -> String {
    format!("{processor}-unknown-linux-gnu")
}

fn compiler(processor: &str) -> String {
    format!("{processor}-linux-gnu-gcc")
}

fn emulator(processor: &str) -> String {
    format!("qemu-{processor}")
}

/// What is not there.
fn missing(processor: &str) -> Option<String> {
    let programs = [compiler(processor), emulator(processor)];
    programs
        .into_iter()
        .find(|program| !is_program(program))
        .or_else(|| (!has_std(processor)).then(|| format!("Rust's std for {processor}")))
}

fn is_program(name: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|directory| directory.join(name).is_file())
}

fn has_std(processor: &str) -> bool {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| OsString::from("rustc"));
    let mut command = Command::new(rustc);
    command.args(["--print", "target-libdir", "--target", &target(processor)]);
    let said = command.output().map(|output| output.stdout).unwrap_or_default();
    let directory = String::from_utf8_lossy(&said).trim().to_owned();
    !directory.is_empty() && Path::new(&directory).is_dir()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_processor_misses_is_named() {
        let missing = command("pdp11").expect_err("nobody has it");
        assert_eq!(missing, "pdp11: pdp11-linux-gnu-gcc is not installed");
        assert_eq!(all().len(), PROCESSORS.len());
    }
}
