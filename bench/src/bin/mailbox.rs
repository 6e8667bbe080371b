//! `bench-mailbox`: a mailbox of 4 KiB written and read, against memcached's set and get.
//!
//! Two figures, each of five paired runs: the round trip of one client, and the rate of fifty. Both
//! servers are started here, on loopback, and speak to the same client code; which one goes first
//! changes from run to run. The ratio is of the medians, ours to theirs, in time for a request: at
//! most 1.0 means that a mailbox is at least as fast. Exit status 1 if it is not.
#![forbid(unsafe_code)]

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

const BODY_BYTES: usize = 4096;
const CLIENTS: usize = 50;
const RUNS: usize = 5;
const TURNS: usize = 100;
const TURN: Duration = Duration::from_millis(20);
const RATE_SECONDS: f64 = 3.0;
const WARM_UP: Duration = Duration::from_millis(300);
const START_MAX: Duration = Duration::from_secs(10);

/// A server, how to start it and how to speak to it.
struct Rival {
    name: &'static str,
    port: u16,
    exchanges: fn(usize) -> [Exchange; 2],
}

/// A request and the answer it must have.
struct Exchange {
    request: Vec<u8>,
    answer: Vec<u8>,
}

const OURS: Rival = Rival { name: "dipc", port: 17_801, exchanges: mailbox_exchanges };
const THEIRS: Rival = Rival { name: "memcached", port: 17_802, exchanges: memcached_exchanges };

fn body(client: usize) -> Vec<u8> {
    (0..BODY_BYTES).map(|at| b'a' + ((at + client) % 26) as u8).collect()
}

fn joined(parts: &[&[u8]]) -> Vec<u8> {
    parts.concat()
}

fn mailbox_exchanges(client: usize) -> [Exchange; 2] {
    let (body, number) = (body(client), client + 1);
    let ok = format!("ok {BODY_BYTES}\n").into_bytes();
    let write = format!("w {number} {BODY_BYTES}\n").into_bytes();
    let read = format!("r {number} {BODY_BYTES}\n").into_bytes();
    [
        Exchange { request: joined(&[&write, &body]), answer: ok.clone() },
        Exchange { request: read, answer: joined(&[&ok, &body]) },
    ]
}

fn memcached_exchanges(client: usize) -> [Exchange; 2] {
    let body = body(client);
    let set = format!("set k{client} 0 0 {BODY_BYTES}\r\n").into_bytes();
    let get = format!("get k{client}\r\n").into_bytes();
    let value = format!("VALUE k{client} 0 {BODY_BYTES}\r\n").into_bytes();
    [
        Exchange { request: joined(&[&set, &body, b"\r\n"]), answer: b"STORED\r\n".to_vec() },
        Exchange { request: get, answer: joined(&[&value, &body, b"\r\nEND\r\n"]) },
    ]
}

/// A server that runs, and is ended with this value.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        if let Ok(pid) = i32::try_from(self.0.id()) {
            // A mailbox server that is killed leaves its segment: it is asked to stop.
            let _ = Command::new("kill").arg(pid.to_string()).status();
        }
        let _ = self.0.wait();
    }
}

fn start(rival: &Rival) -> io::Result<Running> {
    let port = rival.port.to_string();
    let mut command = match rival.name {
        "dipc" => {
            let mut command = Command::new(beside("dipc")?);
            command.args(["--foreground", &CLIENTS.to_string(), "4", &port, "4"]);
            command
        }
        _ => {
            let mut command = Command::new("memcached");
            command.args(["-l", "127.0.0.1", "-p", &port, "-U", "0", "-u", "nobody"]);
            command
        }
    };
    let child = Running(command.stdin(Stdio::null()).stdout(Stdio::null()).spawn()?);
    let until = Instant::now() + START_MAX;
    while TcpStream::connect(("127.0.0.1", rival.port)).is_err() {
        if Instant::now() >= until {
            return Err(io::Error::other(format!("{} does not listen", rival.name)));
        }
        thread::sleep(Duration::from_millis(10));
    }
    Ok(child)
}

/// A program of ours: in the directory of this one.
fn beside(name: &str) -> io::Result<PathBuf> {
    Ok(std::env::current_exe()?.with_file_name(name))
}

struct Client {
    stream: TcpStream,
    exchanges: [Exchange; 2],
    answer: Vec<u8>,
}

impl Client {
    fn connect(rival: &Rival, number: usize) -> io::Result<Self> {
        let stream = TcpStream::connect(("127.0.0.1", rival.port))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(START_MAX))?;
        let answer = vec![0; BODY_BYTES + 256];
        Ok(Self { stream, exchanges: (rival.exchanges)(number), answer })
    }

    /// Writes, then reads back; both answers must be right.
    fn pair(&mut self) -> io::Result<()> {
        for exchange in &self.exchanges {
            self.stream.write_all(&exchange.request)?;
            let answer = &mut self.answer[..exchange.answer.len()];
            self.stream.read_exact(answer)?;
            if answer != exchange.answer {
                return Err(io::Error::other("a wrong answer"));
            }
        }
        Ok(())
    }

    fn pairs_for(&mut self, time: Duration) -> io::Result<u64> {
        let until = Instant::now() + time;
        let mut pairs = 0;
        while Instant::now() < until {
            self.pair()?;
            pairs += 1;
        }
        Ok(pairs)
    }
}

/// Microseconds of one request, one client alone: (ours, theirs). The two take turns of a few
/// milliseconds, so that whatever else the machine does meets both; the median turn counts.
fn round_trips(_run: usize) -> io::Result<(f64, f64)> {
    let mut clients = [Client::connect(&OURS, 0)?, Client::connect(&THEIRS, 0)?];
    let mut turns = [Vec::new(), Vec::new()];
    for turn in 0..TURNS {
        let first = turn % 2;
        for rival in [first, 1 - first] {
            let begin = Instant::now();
            let pairs = clients[rival].pairs_for(TURN)?;
            let microseconds = begin.elapsed().as_secs_f64() * 1e6 / (2 * pairs) as f64;
            turns[rival].push(microseconds);
        }
    }
    let [ours, theirs] = turns;
    Ok((median(ours), median(theirs)))
}

/// The same for fifty clients: the inverse of their rate.
fn rates(run: usize) -> io::Result<(f64, f64)> {
    if run.is_multiple_of(2) {
        let ours = at_rate(&OURS)?;
        Ok((ours, at_rate(&THEIRS)?))
    } else {
        let theirs = at_rate(&THEIRS)?;
        Ok((at_rate(&OURS)?, theirs))
    }
}

/// Microseconds of one request, fifty clients together: the inverse of their rate.
fn at_rate(rival: &Rival) -> io::Result<f64> {
    let (count, over) = (AtomicU64::new(0), AtomicBool::new(false));
    let begin = Barrier::new(CLIENTS + 1);
    thread::scope(|scope| {
        let threads: Vec<_> = (0..CLIENTS)
            .map(|number| {
                let (count, over, begin) = (&count, &over, &begin);
                scope.spawn(move || {
                    let client = Client::connect(rival, number);
                    begin.wait();
                    let mut client = client?;
                    while !over.load(Ordering::Relaxed) {
                        client.pair()?;
                        count.fetch_add(2, Ordering::Relaxed);
                    }
                    Ok::<_, io::Error>(())
                })
            })
            .collect();
        begin.wait();
        thread::sleep(WARM_UP);
        let (first, at) = (count.load(Ordering::Relaxed), Instant::now());
        thread::sleep(Duration::from_secs_f64(RATE_SECONDS));
        let done = count.load(Ordering::Relaxed) - first;
        let microseconds = at.elapsed().as_secs_f64() * 1e6 / done as f64;
        over.store(true, Ordering::Relaxed);
        for thread in threads {
            thread.join().map_err(|_| io::Error::other("a client panicked"))??;
        }
        Ok(microseconds)
    })
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Five paired runs; prints each and gives the ratio of the medians.
fn compare(what: &str, measure: fn(usize) -> io::Result<(f64, f64)>) -> io::Result<f64> {
    let mut runs = Vec::new();
    for run in 0..RUNS {
        let (ours, theirs) = measure(run)?;
        println!("{what}, run {}: dipc {ours:.2} us, memcached {theirs:.2} us", run + 1);
        runs.push((ours, theirs));
    }
    let (ours, theirs): (Vec<f64>, Vec<f64>) = runs.into_iter().unzip();
    let (ours, theirs) = (median(ours), median(theirs));
    let ratio = ours / theirs;
    println!("{what}, median: dipc {ours:.2} us, memcached {theirs:.2} us, ratio {ratio:.3}");
    Ok(ratio)
}

fn run() -> io::Result<bool> {
    let _ours = start(&OURS)?;
    let _theirs = start(&THEIRS)?;
    let round_trip = compare("round trip of 1 client", round_trips)?;
    let rate = compare("request of 50 clients", rates)?;
    Ok(round_trip <= 1.0 && rate <= 1.0)
}

fn main() -> ExitCode {
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("bench-mailbox: {error}");
            ExitCode::FAILURE
        }
    }
}
