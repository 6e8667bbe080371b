//! `cargo xtask demo | test | cluster | processors | bench`: what people and `.ci/run` type. It
//! builds and runs things and counts what ran; whatever knows clusters is the harness's
//! (`tests/it`), started from here as a program of its own, so that this one builds in a second.
#![forbid(unsafe_code)]

mod processors;
mod run;
mod test;

use std::process::ExitCode;

use lexopt::Arg::{Long, Value};
use lexopt::ValueExt;

const HELP: &str = "\
usage: cargo xtask demo           two nodes on this machine, and hello from one to the other
       cargo xtask test [--long]  format, lints, build, every test; --long: the full counts
       cargo xtask cluster [N]    N nodes (2) on this machine to play with, until Ctrl-C
       cargo xtask processors     what can be tested on other processors, by emulation
       cargo xtask bench          ratios to the native kernel and to raw TCP
";

enum Task {
    Demo,
    Test { long: bool },
    Cluster { nodes: String },
    Processors,
    Bench,
    Help,
}

fn parse() -> Result<Task, lexopt::Error> {
    let mut parser = lexopt::Parser::from_env();
    let mut task = match parser.next()? {
        None | Some(Long("help")) => return Ok(Task::Help),
        Some(Value(name)) => named(&name.to_string_lossy())?,
        Some(other) => return Err(other.unexpected()),
    };
    while let Some(argument) = parser.next()? {
        match (&mut task, argument) {
            (Task::Test { long }, Long("long")) => *long = true,
            (Task::Cluster { nodes }, Value(count)) => *nodes = count.string()?,
            (_, other) => return Err(other.unexpected()),
        }
    }
    Ok(task)
}

fn named(name: &str) -> Result<Task, lexopt::Error> {
    match name {
        "demo" => Ok(Task::Demo),
        "test" => Ok(Task::Test { long: false }),
        "cluster" => Ok(Task::Cluster { nodes: "2".into() }),
        "processors" => Ok(Task::Processors),
        "bench" => Ok(Task::Bench),
        _ => Err(format!("no task is called {name:?}").into()),
    }
}

fn main() -> ExitCode {
    let done = match parse() {
        Ok(Task::Demo) => run::play(&["demo"]),
        Ok(Task::Test { long }) => test::test(long),
        Ok(Task::Cluster { nodes }) => run::play(&["cluster", &nodes]),
        Ok(Task::Processors) => test::on_other_processors(),
        Ok(Task::Bench) => run::bench(),
        Ok(Task::Help) => {
            print!("{HELP}");
            Ok(())
        }
        Err(error) => Err(format!("{error}\n{HELP}")),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("xtask: {why}");
            ExitCode::FAILURE
        }
    }
}
