//! What the tests of the mailbox server share: starting and stopping it, speaking to it, and seeing
//! what it left. Everything that a test starts ends with a value of this file, also when it fails.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)] // A panic is how a test fails.
#![allow(dead_code)] // Each test binary uses its part.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use dipc_server::layout::{Geometry, key};
use dipc_server::sys::Reach;

/// The longest any single answer or end is waited for.
pub const PATIENCE: Duration = Duration::from_secs(180);

/// Whether the long counts were asked for.
pub fn is_long() -> bool {
    std::env::var_os("DIPC_LONG").is_some_and(|value| value == "1")
}

/// The program under test.
pub fn dipc() -> Command {
    Command::new(env!("CARGO_BIN_EXE_dipc"))
}

/// Its remover, of another package: where `cargo xtask test` has built everything (`DIPC_BIN`), or
/// built here, into the same directory.
pub fn dipcrm() -> Command {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    Command::new(BUILT.get_or_init(|| {
        if let Some(directory) = std::env::var_os("DIPC_BIN") {
            return PathBuf::from(directory).join("dipcrm");
        }
        let directory = PathBuf::from(env!("CARGO_BIN_EXE_dipc")).with_file_name("");
        let mut cargo = Command::new(env!("CARGO"));
        cargo.args(["build", "--quiet", "--package", "dipcrm"]);
        cargo.arg("--target-dir").arg(directory.parent().unwrap());
        if directory.ends_with("release") {
            cargo.arg("--release");
        }
        assert!(cargo.status().unwrap().success(), "dipcrm does not build");
        directory.join("dipcrm")
    }))
}

/// A port that nobody listens on and whose key nobody uses. Each is given once, and none of those
/// that the kernel gives to clients: one of these could take it before the server does.
pub fn free_port() -> u16 {
    const FIRST: u32 = 12_000;
    const COUNT: u32 = 20_000;
    static GIVEN: AtomicU32 = AtomicU32::new(0);
    for _ in 0..COUNT {
        let number =
            std::process::id().wrapping_mul(64).wrapping_add(GIVEN.fetch_add(1, Ordering::Relaxed));
        let port = (FIRST + number % COUNT) as u16;
        let is_free = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).is_ok();
        if is_free && objects(port).is_empty() {
            return port;
        }
    }
    panic!("no port is free");
}

/// The System V objects under a port's key: which kind, and the kernel's id.
pub fn objects(port: u16) -> Vec<(&'static str, i32)> {
    let key = key(port).to_string();
    let mut found = Vec::new();
    for kind in ["sem", "shm"] {
        let table = std::fs::read_to_string(format!("/proc/sysvipc/{kind}")).unwrap();
        for line in table.lines() {
            let mut fields = line.split_whitespace();
            if fields.next() == Some(&key) {
                found.push((kind, fields.next().unwrap().parse().unwrap()));
            }
        }
    }
    found
}

/// Removes what a test may have left under a port's key, through ipcrm(1).
pub fn remove_objects(port: u16) {
    for (kind, id) in objects(port) {
        let option = if kind == "sem" { "-s" } else { "-m" };
        let _ = Command::new("ipcrm").args([option, &id.to_string()]).status();
    }
}

/// Waits until `condition` holds.
pub fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let until = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < until, "{what}: not within {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Waits until some server of a port is inside a write of its first mailbox.
pub fn wait_until_written(port: u16) {
    let set = dipc_server::sys::Set::find(key(port), Reach::Here).unwrap();
    let mailbox = Geometry::new(1, 1024).and_then(|geometry| geometry.mailbox(1)).unwrap();
    let (gate, room) = mailbox.semaphores();
    let until = Instant::now() + PATIENCE;
    loop {
        let values = set.values().unwrap();
        if (values[usize::from(gate)], values[usize::from(room)]) == (1, 0) {
            return;
        }
        assert!(Instant::now() < until, "nobody writes");
    }
}

/// Runs a command that ends by itself, and whose output is short.
pub fn output(command: &mut Command) -> Output {
    command.stdin(Stdio::null()).output().unwrap()
}

/// What a command said on standard error; it must have failed with status 1.
pub fn refusal(command: &mut Command) -> String {
    let output = output(command);
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert_eq!(text.lines().count(), 1, "one line: {text:?}");
    text.trim_end().to_owned()
}

/// A server in the foreground, stopped and cleaned up with this value.
pub struct Server {
    child: Child,
    /// Its port.
    pub port: u16,
    /// The address it listens on.
    pub address: IpAddr,
}

impl Server {
    /// On a free port: so many mailboxes, their size and the packet's in kbytes.
    pub fn start(mailboxes: u32, kbytes: u32, packet: u32) -> Self {
        Self::start_with(free_port(), mailboxes, kbytes, packet, &[])
    }

    /// The same on this port, with options.
    pub fn start_with(
        port: u16,
        mailboxes: u32,
        kbytes: u32,
        packet: u32,
        options: &[&str],
    ) -> Self {
        let mut command = dipc();
        command.arg("--foreground").args(options);
        command.args([mailboxes, kbytes, port.into(), packet].map(|number| number.to_string()));
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut ready = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut ready).unwrap();
        let bind = options.iter().find_map(|option| option.strip_prefix("--bind="));
        let address = bind.unwrap_or("127.0.0.1").parse().unwrap();
        let server = Self { child, port, address };
        assert!(ready.starts_with("dipc: ready: "), "{ready:?}");
        server
    }

    /// Its pid.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// A new client of it.
    pub fn client(&self) -> Client {
        Client::connect(SocketAddr::new(self.address, self.port))
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_raw(self.child.id() as i32).unwrap();
        rustix::process::kill_process(pid, signal).unwrap();
    }

    /// Waits for its end and gives its exit status, or nothing if a signal ended it.
    pub fn ended(&mut self) -> Option<i32> {
        let until = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code();
            }
            assert!(Instant::now() < until, "the server does not end");
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Kills it as a crash would.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        self.port = 0; // What it left is the test's subject now.
    }

    /// Stops it as an init system would; it must leave nothing.
    pub fn stop(mut self) {
        self.signal(rustix::process::Signal::TERM);
        assert_eq!(self.ended(), Some(0));
        assert_eq!(objects(self.port), []);
    }

    /// Bytes of memory it has now.
    pub fn resident_bytes(&self) -> usize {
        let text = std::fs::read_to_string(format!("/proc/{}/statm", self.pid())).unwrap();
        let pages: usize = text.split_whitespace().nth(1).unwrap().parse().unwrap();
        pages * 4096
    }

    /// Its threads now.
    pub fn threads(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/task", self.pid())).unwrap().count()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if self.port == 0 {
            return;
        }
        if let Ok(None) = self.child.try_wait() {
            self.signal(rustix::process::Signal::TERM);
            let until = Instant::now() + PATIENCE;
            while self.child.try_wait().is_ok_and(|ended| ended.is_none()) && Instant::now() < until
            {
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            remove_objects(self.port);
        }
    }
}

/// A client with a deadline on every answer.
pub struct Client(pub TcpStream);

impl Client {
    pub fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect_timeout(&address, PATIENCE).unwrap();
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        Self(stream)
    }

    pub fn send(&mut self, bytes: &[u8]) {
        self.0.write_all(bytes).unwrap();
    }

    /// The next answer must be exactly this.
    pub fn expect(&mut self, expected: &[u8]) {
        let mut answer = vec![0; expected.len()];
        self.0.read_exact(&mut answer).unwrap();
        let text =
            |bytes: &[u8]| String::from_utf8_lossy(bytes).chars().take(200).collect::<String>();
        assert!(answer == expected, "{:?}, expected {:?}", text(&answer), text(expected));
    }

    pub fn ask(&mut self, bytes: &[u8], expected: &[u8]) {
        self.send(bytes);
        self.expect(expected);
    }

    /// The next line, without its end.
    pub fn line(&mut self) -> String {
        let mut line = Vec::new();
        let mut byte = [0];
        while line.len() < 4096 {
            self.0.read_exact(&mut byte).unwrap();
            if byte[0] == b'\n' {
                break;
            }
            line.push(byte[0]);
        }
        String::from_utf8(line).unwrap()
    }

    /// The server must close, having said nothing more.
    pub fn expect_end(&mut self) {
        assert_eq!(self.rest(), b"");
    }

    /// All that comes until the server closes.
    pub fn rest(&mut self) -> Vec<u8> {
        let mut rest = Vec::new();
        match self.0.read_to_end(&mut rest) {
            Ok(_) => rest,
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => rest,
            Err(error) => panic!("the server does not close: {error}"),
        }
    }

    pub fn write(&mut self, mailbox: u32, body: &[u8]) {
        self.send(format!("w {mailbox} {}\n", body.len()).as_bytes());
        self.send(body);
        self.expect(format!("ok {}\n", body.len()).as_bytes());
    }

    pub fn read(&mut self, mailbox: u32) -> Vec<u8> {
        self.send(format!("r {mailbox} 999999999\n").as_bytes());
        let line = self.line();
        let length = line.strip_prefix("ok ").unwrap_or_else(|| panic!("{line}")).parse().unwrap();
        let mut body = vec![0; length];
        self.0.read_exact(&mut body).unwrap();
        body
    }
}

/// Numbers that look random and come again with the same seed (xorshift64*).
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub fn below(&mut self, bound: usize) -> usize {
        (self.next() >> 33) as usize % bound
    }
}

/// A body that shows by itself whether it is whole, and for which mailbox it was written: eight
/// bytes of checksum, the mailbox, a counter, then bytes that follow from these.
pub fn checked_body(mailbox: u32, count: u64, length: usize) -> Vec<u8> {
    assert!(length >= 24);
    let mut body = vec![0; 8];
    body.extend(u64::from(mailbox).to_le_bytes());
    body.extend(count.to_le_bytes());
    let mut random = Random::new(count ^ u64::from(mailbox) << 48);
    while body.len() < length {
        body.extend(random.next().to_le_bytes());
    }
    body.truncate(length);
    let sum = checksum(&body[8..]);
    body[..8].copy_from_slice(&sum.to_le_bytes());
    body
}

/// Whether a body is one of [`checked_body`] for this mailbox; an empty one is of a new mailbox.
pub fn is_whole(mailbox: u32, body: &[u8]) -> bool {
    body.is_empty()
        || (body.len() >= 24
            && body[..8] == checksum(&body[8..]).to_le_bytes()
            && body[8..16] == u64::from(mailbox).to_le_bytes())
}

fn checksum(bytes: &[u8]) -> u64 {
    let mix = |sum: u64, word: u64| (sum.rotate_left(5) ^ word).wrapping_mul(0x517c_c1b7_2722_0a95);
    bytes.chunks(8).fold(bytes.len() as u64, |sum, chunk| {
        let mut word = [0; 8];
        word[..chunk.len()].copy_from_slice(chunk);
        mix(sum, u64::from_le_bytes(word))
    })
}
