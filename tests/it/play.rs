//! dipc-play: the harness for people. `demo` sends hello from one node to another and says what
//! happens; `cluster N` starts nodes to play with and prints the line to paste for each. Both
//! leave nothing behind. `cargo xtask demo` and `cargo xtask cluster` start it.
#![forbid(unsafe_code)]

use std::io::{self, Read};
use std::os::unix::net::UnixStream;
use std::process::ExitCode;

use dipc_tests::{Cluster, Node, programs};
use rustix::event::{PollFd, PollFlags, poll};
use signal_hook::consts::{SIGINT, SIGTERM};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let nodes = match words[..] {
        ["demo"] => return demo(),
        ["cluster", number] => number.parse().ok().filter(|count| (1..=64).contains(count)),
        _ => None,
    };
    match nodes {
        Some(count) => cluster(count),
        None => {
            eprintln!("usage: dipc-play demo | dipc-play cluster N (1 to 64)");
            ExitCode::FAILURE
        }
    }
}

fn demo() -> ExitCode {
    const WORDS: &str = "Hello1: Received 'Hello, Distributed Programming!'";
    let cluster = Cluster::start(2);
    for node in cluster.nodes() {
        println!("node {}: dipcd listens on {}", node.number, node.address);
    }
    let [receiver, sender] = [cluster.node(1), cluster.node(2)];
    println!("node 1$ LD_PRELOAD=libdipc.so ./hello1");
    let hello1 = receiver.spawn(programs::example("hello1"), &[]);
    hello1.wait_for("waiting");
    println!("node 2$ dipcs -q");
    print!("{}", sender.tool("dipcs", &["-q"]).out);
    println!("node 2$ LD_PRELOAD=libdipc.so ./hello2");
    let hello2 = sender.run(programs::example("hello2"), &[]);
    print!("{}{}", hello2.out, hello2.err);
    if !hello2.status.success() {
        return ExitCode::FAILURE;
    }
    let hello1 = hello1.wait();
    print!("{}{}", hello1.out, hello1.err);
    let arrived = hello1.status.success() && hello1.err.contains(WORDS);
    println!(
        "{}",
        if arrived { "The message crossed from node 2 to node 1." } else { "It did not arrive." }
    );
    if arrived { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// What a shell needs in front of a command to be on a node.
fn line(node: &Node) -> String {
    let enter = node.machine().holder_pid().map(|pid| format!("nsenter --ipc --target {pid} "));
    let (library, socket) = (node.library().display(), node.socket());
    let enter = enter.unwrap_or_default();
    format!("{enter}env LD_PRELOAD={library} DIPC_SOCKET={} COMMAND", socket.display())
}

fn cluster(count: usize) -> ExitCode {
    let cluster = Cluster::start(count);
    println!("{count} nodes. To run COMMAND on one of them, paste its line into a shell:\n");
    for node in cluster.nodes() {
        println!("node {}   {}", node.number, line(node));
    }
    println!("\nexamples: {}", programs::example("hello1").display());
    println!("          {}", programs::example("hello2").display());
    println!("tools:    {} -a", programs::tool("dipcs").display());
    println!("          {} status", programs::tool("dipcctl").display());
    println!("logs:     {}/N/log", cluster.directory().display());
    println!("\nCtrl-C or the end of input stops everything.");
    match wait_for_the_end() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("dipc-play: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Until a signal, or the end of standard input.
fn wait_for_the_end() -> io::Result<()> {
    let (signalled, signal) = UnixStream::pair()?;
    signal_hook::low_level::pipe::register(SIGINT, signal.try_clone()?)?;
    signal_hook::low_level::pipe::register(SIGTERM, signal)?;
    let mut input = io::stdin();
    loop {
        let mut watched =
            [PollFd::new(&signalled, PollFlags::IN), PollFd::new(&input, PollFlags::IN)];
        match poll(&mut watched, None) {
            Err(rustix::io::Errno::INTR) => continue,
            other => other?,
        };
        let [signalled, typed] = watched.map(|fd| !fd.revents().is_empty());
        if signalled || typed && input.read(&mut [0; 512])? == 0 {
            return Ok(());
        }
    }
}
