//! What this dipcd has and has done, in numbers: for `dipcctl status`, for other nodes' tools, and
//! as Prometheus text over HTTP where `metrics` says.
//!
//! One table has every number. The server answers one connection at a time, each in a bounded time,
//! and understands nothing but GET.
#![forbid(unsafe_code)]

use std::fmt::Write as _;
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use dipc_wire::ids::Kind;
use dipc_wire::survey::Count;

use crate::config::Metrics;
use crate::daemon::Daemon;

/// What every name begins with.
const PREFIX: &str = "dipc_";
/// Stack of the server.
const STACK_BYTES: usize = 128 << 10;
/// How long one reader may take.
const READER_WAIT: Duration = Duration::from_secs(2);
/// The longest request.
const REQUEST_BYTES_MAX: usize = 4096;

/// What is counted from the start on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Counted {
    /// Calls of local programs and tools.
    Calls,
    /// Those of them that were refused.
    CallsRefused,
    /// Objects made here.
    ObjectsMade,
    /// Wires opened for local programs.
    WiresOpened,
    /// Stand-ins started.
    StandInsStarted,
    /// Frames from other nodes and from ourselves.
    FramesReceived,
    /// Links that came up.
    LinksUp,
    /// Nodes declared lost.
    NodesLost,
}

/// How many kinds of [`Counted`] there are.
const COUNTED: usize = Counted::NodesLost as usize + 1;

/// The numbers that grow.
#[derive(Debug, Default)]
pub struct Counters([AtomicU64; COUNTED]);

impl Counters {
    /// One more.
    pub fn add(&self, what: Counted) {
        self.0[what as usize].fetch_add(1, Ordering::Relaxed);
    }

    fn get(&self, what: Counted) -> u64 {
        self.0[what as usize].load(Ordering::Relaxed)
    }
}

/// Where a number comes from.
enum Source {
    /// What is now.
    Now(fn(&Daemon) -> u64),
    /// What has happened.
    Ever(Counted),
}

use Source::{Ever, Now};

/// Every number: its name, what it is, where it comes from.
const NUMBERS: &[(&str, &str, Source)] = &[
    ("queues", "Message queues at home here.", Now(|daemon| daemon.home.count(Kind::Queue))),
    ("segments", "Shared memory segments at home here.", Now(|it| it.home.count(Kind::Segment))),
    ("sets", "Semaphore sets at home here.", Now(|daemon| daemon.home.count(Kind::Set))),
    ("clients", "Local processes with remote sessions.", Now(|it| size(it.clients.living().len()))),
    ("stand_ins", "Remote processes served here.", Now(|daemon| size(daemon.stand_ins.count()))),
    ("links", "Nodes that are linked.", Now(|daemon| size(daemon.links.linked().len()))),
    ("calls_total", "Calls of programs and tools.", Ever(Counted::Calls)),
    ("calls_refused_total", "Calls that were refused.", Ever(Counted::CallsRefused)),
    ("objects_made_total", "Objects made here.", Ever(Counted::ObjectsMade)),
    ("wires_opened_total", "Wires opened for programs here.", Ever(Counted::WiresOpened)),
    ("stand_ins_started_total", "Stand-ins started.", Ever(Counted::StandInsStarted)),
    ("frames_received_total", "Frames received over links.", Ever(Counted::FramesReceived)),
    ("links_up_total", "Links that came up.", Ever(Counted::LinksUp)),
    ("nodes_lost_total", "Nodes declared lost.", Ever(Counted::NodesLost)),
];

fn size(count: usize) -> u64 {
    u64::try_from(count).unwrap_or(u64::MAX)
}

fn number(daemon: &Daemon, source: &Source) -> u64 {
    match source {
        Now(look) => look(daemon),
        Ever(counted) => daemon.counters.get(*counted),
    }
}

/// All numbers, for the tools.
pub fn counts(daemon: &Daemon) -> Vec<Count> {
    let count = |(name, _, source): &(&str, &str, Source)| Count {
        name: (*name).to_owned(),
        value: number(daemon, source),
    };
    NUMBERS.iter().map(count).collect()
}

/// All numbers in the text format of Prometheus.
pub fn text(daemon: &Daemon) -> String {
    let mut text = String::new();
    for (name, help, source) in NUMBERS {
        let kind = match source {
            Now(_) => "gauge",
            Ever(_) => "counter",
        };
        let value = number(daemon, source);
        let name = format!("{PREFIX}{name}");
        let _ = write!(text, "# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}\n");
    }
    text
}

/// A place to read metrics, open and not served yet.
pub enum Door {
    /// At a loopback address.
    Address(TcpListener),
    /// At a UNIX socket.
    Path(UnixListener),
}

/// Opens the place that the configuration names.
pub fn open(place: &Metrics) -> io::Result<Door> {
    let named = |what: &dyn std::fmt::Display, error: &io::Error| {
        io::Error::new(error.kind(), format!("metrics: {what}: {error}"))
    };
    match place {
        Metrics::Address(address) => {
            let opened = TcpListener::bind(address).map_err(|error| named(address, &error))?;
            Ok(Door::Address(opened))
        }
        Metrics::Path(path) => {
            let opened = open_path(path).map_err(|error| named(&path.display(), &error))?;
            Ok(Door::Path(opened))
        }
    }
}

/// A socket that an earlier dipcd left is replaced; anything else there is not ours.
fn open_path(path: &Path) -> io::Result<UnixListener> {
    use std::os::unix::fs::FileTypeExt;
    let is_socket = path.symlink_metadata().is_ok_and(|found| found.file_type().is_socket());
    if is_socket && UnixStream::connect(path).is_err() {
        std::fs::remove_file(path)?;
    }
    let listener = UnixListener::bind(path)?;
    // They are no secret: dipcctl shows them to everybody.
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o666))?;
    Ok(listener)
}

/// Takes a place away at the end.
pub fn close(place: Option<&Metrics>) {
    if let Some(Metrics::Path(path)) = place {
        // What is not there need not be removed.
        let _ = std::fs::remove_file(path);
    }
}

/// Serves until the daemon ends.
pub fn serve(daemon: &Arc<Daemon>, door: Door) -> io::Result<()> {
    let daemon = daemon.clone();
    let thread = thread::Builder::new().name("metrics".into()).stack_size(STACK_BYTES);
    let serve = move || {
        loop {
            let answered = match &door {
                Door::Address(listener) => listener.accept().and_then(|(reader, _)| {
                    bound(&reader, TcpStream::set_read_timeout, TcpStream::set_write_timeout)?;
                    answer(&daemon, reader)
                }),
                Door::Path(listener) => listener.accept().and_then(|(reader, _)| {
                    bound(&reader, UnixStream::set_read_timeout, UnixStream::set_write_timeout)?;
                    answer(&daemon, reader)
                }),
            };
            if let Err(error) = answered {
                tracing::debug!(op = "metrics", %error);
                daemon.pause(Duration::from_millis(10));
            }
            if daemon.is_stopping() {
                return;
            }
        }
    };
    thread.spawn(serve).map(|_| ())
}

type SetTimeout<S> = fn(&S, Option<Duration>) -> io::Result<()>;

fn bound<S>(stream: &S, read: SetTimeout<S>, write: SetTimeout<S>) -> io::Result<()> {
    read(stream, Some(READER_WAIT))?;
    write(stream, Some(READER_WAIT))
}

/// Reads one request and answers it.
fn answer(daemon: &Daemon, mut reader: impl Read + Write) -> io::Result<()> {
    let until = Instant::now() + READER_WAIT;
    let (mut request, mut length) = ([0; REQUEST_BYTES_MAX], 0);
    while !request[..length].windows(4).any(|end| end == b"\r\n\r\n") {
        if length == request.len() || Instant::now() >= until {
            return respond(&mut reader, "400 Bad Request", "");
        }
        match reader.read(&mut request[length..])? {
            0 => return Ok(()),
            more => length += more,
        }
    }
    let line = request[..length].split(|byte| *byte == b'\r').next().unwrap_or_default();
    let mut words = line.split(|byte| *byte == b' ');
    match (words.next(), words.next()) {
        (Some(b"GET"), Some(b"/" | b"/metrics")) => respond(&mut reader, "200 OK", &text(daemon)),
        (Some(b"GET"), Some(_)) => respond(&mut reader, "404 Not Found", ""),
        _ => respond(&mut reader, "405 Method Not Allowed", ""),
    }
}

fn respond(reader: &mut impl Write, status: &str, body: &str) -> io::Result<()> {
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: text/plain; version=0.0.4\r\n\
         Content-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    reader.write_all(head.as_bytes())?;
    reader.write_all(body.as_bytes())
}
