//! `cargo xtask test`: format, lints, build, every test of every package; then what ran and what
//! was skipped. A skip that tests/skips.txt does not list fails the run.
#![forbid(unsafe_code)]

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Instant;

use crate::processors;
use crate::run::{built, cargo, root, run};

/// Tells libtest how many tests it may run at once.
const THREADS: &str = "RUST_TEST_THREADS";

/// What the tests said.
#[derive(Default)]
struct Tally {
    passed: usize,
    failed: usize,
    binaries: usize,
    skips: Vec<String>,
    counts: Vec<String>,
}

impl Tally {
    fn line(&mut self, line: &str) {
        if let Some(skip) = line.strip_prefix("SKIP ") {
            self.skips.push(skip.to_owned());
        } else if let Some(count) = line.strip_prefix("COUNT ") {
            self.counts.push(count.to_owned());
        } else if let Some(result) = line.strip_prefix("test result: ") {
            self.binaries += 1;
            self.passed += number_before(result, " passed");
            self.failed += number_before(result, " failed");
        }
    }

    fn join(&mut self, other: Tally) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.binaries += other.binaries;
        self.skips.extend(other.skips);
        self.counts.extend(other.counts);
    }
}

fn number_before(text: &str, word: &str) -> usize {
    let before = text.split(word).next().unwrap_or("");
    before.rsplit(' ').next().and_then(|number| number.parse().ok()).unwrap_or(0)
}

/// Everything there is to test.
pub fn test(long: bool) -> Result<(), String> {
    step("format", &["fmt", "--all", "--check"])?;
    let strict = ["--quiet", "--workspace", "--all-targets", "--", "-D", "warnings"];
    step("lints", &[&["clippy"], &strict[..]].concat())?;
    step("build", &["build", "--quiet", "--workspace", "--all-targets"])?;
    let (mut tally, mut succeeded) = run_tests(long)?;
    let (elsewhere, well) = run_on_other_processors()?;
    tally.join(elsewhere);
    succeeded &= well;
    report(&tally);
    let listed = listed_skips()?;
    let surprises: Vec<&String> = tally
        .skips
        .iter()
        .filter(|skip| !listed.iter().any(|name| skip.starts_with(name)))
        .collect();
    if !succeeded || tally.failed > 0 {
        return Err(format!("{} tests failed", tally.failed.max(1)));
    }
    if !surprises.is_empty() {
        return Err(format!("skips that tests/skips.txt does not list: {surprises:#?}"));
    }
    Ok(())
}

/// Has cargo do something, and says how long that took.
fn step(name: &str, arguments: &[&str]) -> Result<(), String> {
    let begun = Instant::now();
    run(cargo(arguments))?;
    println!("{name}: {} s", begun.elapsed().as_secs());
    Ok(())
}

fn run_tests(long: bool) -> Result<(Tally, bool), String> {
    let mut command = cargo(&["test", "--workspace", "--no-fail-fast"]);
    command.env("DIPC_BIN", built("debug"));
    if std::env::var_os(THREADS).is_none() {
        command.env(THREADS, threads().to_string());
    }
    if long {
        command.env("DIPC_LONG", "1");
    }
    count(command)
}

/// Most tests of clusters wait rather than compute: for lost nodes to be given up, for packets that
/// are under way. Twice as many threads as processors use these best, and one more where a test
/// waits for its turn (`CLUSTERS_MAX` in tests/it/cluster.rs).
fn threads() -> usize {
    2 * thread::available_parallelism().map_or(1, usize::from) + 1
}

/// The tests that other processors are given, where they can be.
pub fn on_other_processors() -> Result<(), String> {
    let (tally, succeeded) = run_on_other_processors()?;
    report(&tally);
    if succeeded { Ok(()) } else { Err(format!("{} tests failed", tally.failed.max(1))) }
}

fn run_on_other_processors() -> Result<(Tally, bool), String> {
    let (mut tally, mut succeeded) = (Tally::default(), true);
    for other in processors::all() {
        match other {
            Ok(command) => {
                let (its, well) = count(command)?;
                tally.join(its);
                succeeded &= well;
            }
            Err(missing) => println!("not tested: {missing}"),
        }
    }
    Ok((tally, succeeded))
}

/// Runs tests, and counts what they say.
fn count(mut command: Command) -> Result<(Tally, bool), String> {
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|error| format!("cargo test: {error}"))?;
    let out = child.stdout.take().ok_or("cargo's output is no pipe")?;
    let errors = child.stderr.take().ok_or("cargo's errors are no pipe")?;
    let errors = thread::spawn(move || read(errors));
    let mut tally = read(out);
    tally.join(errors.join().map_err(|_| "the reader of cargo's errors died")?);
    let status = child.wait().map_err(|error| format!("cargo test: {error}"))?;
    Ok((tally, status.success()))
}

/// Passes everything on and counts.
fn read(stream: impl Read) -> Tally {
    let mut tally = Tally::default();
    for line in BufReader::new(stream).split(b'\n').map_while(Result::ok) {
        let line = String::from_utf8_lossy(&line);
        println!("{line}");
        // libtest may have left its "test name ... " on the line before a skip's words.
        for word in ["SKIP ", "COUNT "] {
            if let Some(at) = line.find(word).filter(|at| *at > 0 && line.starts_with("test ")) {
                tally.line(&line[at..]);
            }
        }
        tally.line(&line);
    }
    tally
}

fn report(tally: &Tally) {
    println!();
    for count in &tally.counts {
        println!("count    {count}");
    }
    for skip in &tally.skips {
        println!("skipped  {skip}");
    }
    println!(
        "ran {} tests in {} binaries: {} passed, {} failed, {} skipped",
        tally.passed + tally.failed - tally.skips.len().min(tally.passed),
        tally.binaries,
        tally.passed - tally.skips.len().min(tally.passed),
        tally.failed,
        tally.skips.len(),
    );
}

/// The names that may be skipped: one a line, then a colon and the reason.
fn listed_skips() -> Result<Vec<String>, String> {
    let file = root().join("tests/skips.txt");
    let text = fs::read_to_string(&file).map_err(|error| format!("{}: {error}", file.display()))?;
    let names = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    Ok(names.filter_map(|line| line.split_once(':')).map(|(name, _)| format!("{name}:")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_skips_and_counts_are_told_apart() {
        let text = "\
test one ... ok
SKIP two: needs root
test two ... ok
test three ... COUNT three: 5 of 10
ok
test result: FAILED. 3 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out
test result: ok. 12 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out
";
        let tally = read(text.as_bytes());
        assert_eq!((tally.passed, tally.failed, tally.binaries), (15, 1, 2));
        assert_eq!(tally.skips, ["two: needs root"]);
        assert_eq!(tally.counts, ["three: 5 of 10"]);
    }

    #[test]
    fn every_listed_skip_has_a_reason() {
        assert!(!listed_skips().unwrap().is_empty());
    }
}
