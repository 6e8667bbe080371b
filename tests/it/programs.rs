//! Where the programs are: dipcd and libdipc as cargo built them, and the C programs of `tests/c`
//! and `examples`, which are compiled here when their sources are newer.
#![forbid(unsafe_code)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, Once, PoisonError};
use std::time::SystemTime;

/// The root of the source tree.
pub fn source_tree() -> PathBuf {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    tests.parent().expect("the package lies in the workspace").to_owned()
}

/// Where cargo puts programs: `DIPC_BIN`, or beside this executable. Builds dipcd and libdipc when
/// cargo started us, so that a plain `cargo test` tests what the sources say.
pub fn directory() -> PathBuf {
    if let Some(directory) = std::env::var_os("DIPC_BIN") {
        return directory.into();
    }
    let executable = std::env::current_exe().expect("this process has an executable");
    let directory = executable.parent().expect("a file lies in a directory");
    let directory = if directory.ends_with("deps") {
        directory.parent().expect("deps lies in the profile's directory")
    } else {
        directory
    };
    build_once(directory);
    directory.to_owned()
}

fn build_once(directory: &Path) {
    static BUILT: Once = Once::new();
    let Some(cargo) = std::env::var_os("CARGO") else { return };
    BUILT.call_once(|| {
        let mut command = Command::new(cargo);
        command.current_dir(source_tree()).args(["build", "--quiet"]);
        command.args(["--package", "dipcd", "--package", "libdipc", "--package", "dipc-tools"]);
        command.args(["--package", "dipcrm", "--package", "dipc-server"]);
        if directory.ends_with("release") {
            command.arg("--release");
        }
        // What cargo told us about our package: build scripts are run again where it differs.
        let about_us = ["CARGO_MANIFEST_", "CARGO_PKG_"];
        let names = std::env::vars_os().filter_map(|(name, _)| name.into_string().ok());
        for name in names.filter(|name| about_us.iter().any(|start| name.starts_with(start))) {
            command.env_remove(name);
        }
        let built = command.status().expect("cargo starts");
        assert!(built.success(), "what the tests need does not build");
    });
}

/// The daemon.
pub fn dipcd() -> PathBuf {
    existing(directory().join("dipcd"))
}

/// The library.
pub fn libdipc() -> PathBuf {
    existing(directory().join("libdipc.so"))
}

/// One of the tools, or the mailbox server.
pub fn tool(name: &str) -> PathBuf {
    existing(directory().join(name))
}

fn existing(path: PathBuf) -> PathBuf {
    assert!(path.exists(), "{} is not there: run cargo build first", path.display());
    path
}

/// Copies a program that is run from there. Not by ourselves: a child that another thread starts
/// meanwhile would have the copy open for writing, and then nobody may run it.
pub fn copy(program: &Path, to: &Path) {
    let copied =
        Command::new("cp").arg("-p").arg(program).arg(to).status().expect("cp(1) is there");
    assert!(copied.success(), "{} cannot be copied to {}", program.display(), to.display());
}

/// Compiles `sources` (paths in the source tree) into one program, unless that is newer.
pub fn compile(name: &str, sources: &[&str]) -> PathBuf {
    let paths: Vec<PathBuf> = sources.iter().map(|source| source_tree().join(source)).collect();
    compile_at(name, &paths, &[])
}

/// The same for sources anywhere, with further arguments for the compiler.
pub fn compile_at(name: &str, sources: &[PathBuf], arguments: &[&str]) -> PathBuf {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _guard = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let directory = directory().join("c-programs");
    fs::create_dir_all(&directory).expect("the target directory can be written");
    let program = directory.join(name);
    let headers: Vec<PathBuf> = sources.iter().flat_map(|source| headers_beside(source)).collect();
    let newest = sources.iter().chain(&headers).map(|path| changed(path)).max();
    if program.exists() && Some(changed(&program)) > newest {
        return program;
    }
    let fresh = directory.join(format!("{name}.{}", std::process::id()));
    let mut command = Command::new("cc");
    command.args(["-O1", "-g", "-Wall", "-Wextra", "-pthread", "-I"]);
    command.arg(source_tree().join("libdipc/include"));
    command.args(arguments).args(sources).arg("-o").arg(&fresh).args(["-ldl", "-lm"]);
    let compiled = command.output().expect("a C compiler (cc) is there");
    let errors = String::from_utf8_lossy(&compiled.stderr);
    assert!(compiled.status.success(), "{name} does not compile:\n{errors}");
    fs::rename(&fresh, &program).expect("both names are in one directory");
    program
}

/// What a source may include besides the system's headers and the library's.
fn headers_beside(source: &Path) -> Vec<PathBuf> {
    let directory = source.parent().expect("a source lies in a directory");
    let entries = fs::read_dir(directory).expect("a directory of sources can be read");
    let paths = entries.map(|entry| entry.expect("and so can its entries").path());
    paths.filter(|path| path.extension().is_some_and(|extension| extension == "h")).collect()
}

fn changed(path: &Path) -> SystemTime {
    let metadata = fs::metadata(path);
    let metadata = metadata.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    metadata.modified().expect("this system keeps times")
}

/// One of the programs of differential cases, by the name of its file.
pub fn cases(name: &str) -> PathBuf {
    compile(name, &[&format!("tests/c/{name}.c"), "tests/c/cases.c"])
}

/// A program of one file in `tests/c`.
pub fn helper(name: &str) -> PathBuf {
    compile(name, &[&format!("tests/c/{name}.c")])
}

/// One of the examples.
pub fn example(name: &str) -> PathBuf {
    compile(name, &[&format!("examples/{name}.c")])
}
