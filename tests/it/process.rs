//! One running program: its output as it comes, its end with a deadline, and its death when
//! dropped. Nothing here waits without a bound.
#![forbid(unsafe_code)]

use std::fs;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, pidfd_open, pidfd_send_signal, waitid,
};
use rustix::time::Timespec;

/// How long anything may take that the tests do not bound themselves: many times what the longest
/// takes on a slow machine. No test that passes waits for this to be over.
pub const PATIENCE: Duration = Duration::from_secs(180);

/// Between two looks at what no descriptor announces.
const LOOK: Duration = Duration::from_millis(5);
/// How long what a program said last may be under way when it has ended, or its end when it has
/// closed its streams.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// What became of a program.
#[derive(Clone, Debug)]
pub struct Output {
    /// How it ended.
    pub status: ExitStatus,
    /// Its standard output.
    pub out: String,
    /// Its standard error.
    pub err: String,
}

impl Output {
    /// The standard output of a program that ended well; panics with everything it said otherwise.
    #[track_caller]
    pub fn expect_success(self) -> String {
        assert!(self.status.success(), "{}: {}{}", self.status, self.out, self.err);
        self.out
    }
}

#[derive(Default)]
struct Streams {
    text: Mutex<Text>,
    came: Condvar,
}

#[derive(Default)]
struct Text {
    out: Vec<u8>,
    err: Vec<u8>,
    open: usize,
}

/// A program that was started and is killed when this is dropped.
pub struct Running {
    name: String,
    child: Child,
    input: Option<ChildStdin>,
    streams: Arc<Streams>,
}

impl Running {
    /// Takes over a child whose three streams are pipes.
    pub fn new(name: &str, mut child: Child) -> Running {
        let streams = Arc::new(Streams::default());
        let out = child.stdout.take().expect("standard output is a pipe");
        let err = child.stderr.take().expect("standard error is a pipe");
        streams.text.lock().unwrap_or_else(PoisonError::into_inner).open = 2;
        collect(out, Arc::clone(&streams), |text| &mut text.out);
        collect(err, Arc::clone(&streams), |text| &mut text.err);
        let input = child.stdin.take();
        Running { name: name.to_owned(), child, input, streams }
    }

    /// Makes the streams of a command pipes.
    pub fn pipes(command: &mut Command) {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    }

    /// Its pid.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends it a signal; it may have ended already.
    pub fn signal(&self, signal: Signal) {
        let sent = rustix::process::kill_process(Pid::from_child(&self.child), signal);
        assert!(matches!(sent, Ok(()) | Err(rustix::io::Errno::SRCH)), "{}: {sent:?}", self.name);
    }

    /// Writes a line to its standard input.
    pub fn tell(&mut self, line: &str) {
        let input = self.input.as_mut().expect("its standard input is open");
        writeln!(input, "{line}").expect("it reads its standard input");
    }

    /// Closes its standard input.
    pub fn close_input(&mut self) {
        self.input = None;
    }

    /// Waits until it has printed `words` (on either stream).
    #[track_caller]
    pub fn wait_for(&self, words: &str) {
        self.wait_for_many(words, 1);
    }

    /// Waits until it has printed `words` that often.
    #[track_caller]
    pub fn wait_for_many(&self, words: &str, times: usize) {
        self.hear(&format!("{words:?}"), |out, err| {
            let said = out.matches(words).count() + err.matches(words).count();
            (said >= times).then_some(())
        });
    }

    /// Waits for its standard output's line `index`, counted from 0.
    #[track_caller]
    pub fn line(&self, index: usize) -> String {
        self.hear(&format!("a line {index}"), |out, _| {
            let is_whole = out.matches('\n').count() > index;
            is_whole.then(|| out.lines().nth(index).unwrap_or_default().to_owned())
        })
    }

    /// Waits until `look` finds `what` in its two streams. Panics when that can come no more, and
    /// when it does not within [`PATIENCE`]; how the program is then is said as well.
    #[track_caller]
    fn hear<T>(&self, what: &str, look: impl Fn(&str, &str) -> Option<T>) -> T {
        let end = Instant::now() + PATIENCE;
        let mut text = self.streams.text.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let (out, err) = (lossy(&text.out), lossy(&text.err));
            if let Some(found) = look(&out, &err) {
                return found;
            }
            let left = end.saturating_duration_since(Instant::now());
            if text.open == 0 {
                let fate = self.fate();
                panic!(
                    "{} closed its streams without saying {what}, and {fate}: {out}{err}",
                    self.name
                );
            }
            if left.is_zero() {
                let fate = self.fate();
                panic!("{} did not say {what} in {PATIENCE:?}, and {fate}: {out}{err}", self.name);
            }
            let waited = self.streams.came.wait_timeout(text, left);
            text = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Whether it has ended, and how: for whoever reads why a test failed. A program that has
    /// closed its streams is given a moment to end.
    fn fate(&self) -> String {
        let pid = Pid::from_child(&self.child);
        wait_for_end(pid, LAST_WORDS);
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        let status = match waitid(WaitId::Pid(pid), options) {
            Ok(None) => return "still runs".into(),
            Ok(Some(status)) => status,
            Err(_) => return "has ended".into(),
        };
        match (status.exit_status(), status.terminating_signal()) {
            (Some(code), _) => format!("has ended with status {code}"),
            (_, Some(signal)) => format!("was killed by signal {signal}"),
            _ => "has ended".into(),
        }
    }

    /// Waits until it sleeps and goes on sleeping: it waits inside the call it last made.
    #[track_caller]
    pub fn wait_until_asleep(&self) {
        let status = format!("/proc/{}/status", self.pid());
        let (mut before, mut same) = (String::new(), 0);
        wait_until(&format!("{} waits", self.name), || {
            let now = fs::read_to_string(&status).unwrap_or_default();
            let field = |name| now.lines().find(|line| line.starts_with(name)).unwrap_or_default();
            let asleep = field("State:").contains('S');
            let switches = field("voluntary_ctxt_switches").to_owned();
            same = if asleep && switches == before { same + 1 } else { 0 };
            before = switches;
            (same > 20).then_some(())
        });
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().expect("a child can be waited for").is_none()
    }

    /// Panics with what it said when it has ended otherwise than well.
    #[track_caller]
    pub fn assert_well(&mut self) {
        let Some(status) = self.child.try_wait().expect("a child can be waited for") else {
            return;
        };
        if !status.success() {
            let (out, err) = self.said(Instant::now() + LAST_WORDS);
            panic!("{}, {status}: {out}{err}", self.name);
        }
    }

    /// Waits for its end.
    #[track_caller]
    pub fn wait(self) -> Output {
        self.wait_within(PATIENCE)
    }

    /// Waits for its end, and panics with what it said when that is not before `limit`.
    #[track_caller]
    pub fn wait_within(mut self, limit: Duration) -> Output {
        self.input = None;
        let end = Instant::now() + limit;
        let pid = Pid::from_child(&self.child);
        let ended = wait_for_end(pid, limit);
        if !ended {
            let (out, err) = self.said(Instant::now());
            panic!("{} still runs after {limit:?}: {out}{err}", self.name);
        }
        let status = self.child.wait().expect("it has ended");
        let (out, err) = self.said(end.max(Instant::now() + LAST_WORDS));
        Output { status, out, err }
    }

    /// What it has said when its streams are closed, or at `end`.
    fn said(&self, end: Instant) -> (String, String) {
        let mut text = self.streams.text.lock().unwrap_or_else(PoisonError::into_inner);
        while text.open > 0 && Instant::now() < end {
            let left = end.saturating_duration_since(Instant::now());
            let waited = self.streams.came.wait_timeout(text, left);
            text = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        (lossy(&text.out), lossy(&text.err))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Both fail only when it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Reads a stream to its end in a thread that ends with it.
fn collect(
    mut from: impl Read + Send + 'static,
    streams: Arc<Streams>,
    into: impl Fn(&mut Text) -> &mut Vec<u8> + Send + 'static,
) {
    thread::spawn(move || {
        let mut buffer = [0; 4096];
        loop {
            let length = from.read(&mut buffer).unwrap_or(0);
            let mut text = streams.text.lock().unwrap_or_else(PoisonError::into_inner);
            into(&mut text).extend_from_slice(&buffer[..length]);
            if length == 0 {
                text.open -= 1;
            }
            streams.came.notify_all();
            if length == 0 {
                return;
            }
        }
    });
}

/// Waits for the end of programs that need each other: when one of them fails, the others are not
/// waited for. What each said.
#[track_caller]
pub fn all_succeed(mut all: Vec<Running>, limit: Duration) -> Vec<String> {
    let end = Instant::now() + limit;
    while let Some(one) = all.iter_mut().find_map(|one| one.is_running().then_some(one)) {
        if Instant::now() >= end {
            let (out, err) = one.said(end);
            panic!("{} still runs after {limit:?}: {out}{err}", one.name);
        }
        all.iter_mut().for_each(Running::assert_well);
        thread::sleep(LOOK);
    }
    all.into_iter().map(|one| one.wait().expect_success()).collect()
}

/// Waits until a process has ended; false when it has not within `limit`.
pub fn wait_for_end(pid: Pid, limit: Duration) -> bool {
    let Ok(pidfd) = pidfd_open(pid, PidfdFlags::empty()) else { return true };
    let end = Instant::now() + limit;
    loop {
        let left = end.saturating_duration_since(Instant::now());
        let left = Timespec::try_from(left).expect("a test's patience fits");
        let mut watched = [PollFd::new(&pidfd, PollFlags::IN)];
        match poll(&mut watched, Some(&left)) {
            Ok(0) => return false,
            Ok(_) => return true,
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => panic!("poll on a pidfd: {error}"),
        }
    }
}

/// Repeats `look` until it gives something; panics when it does not within [`PATIENCE`]. For what
/// no descriptor announces.
#[track_caller]
pub fn wait_until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < end, "did not come about in {PATIENCE:?}: {what}");
        thread::sleep(LOOK);
    }
}

/// Whether every thread of a process is stopped: the state in /proc/PID/task/TID/stat.
pub fn stands_still(pid: u32) -> bool {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    tasks.into_iter().all(|task| {
        let stat = fs::read_to_string(task.path().join("stat")).unwrap_or_default();
        stat.rsplit_once(") ").is_none_or(|(_, rest)| rest.starts_with('T'))
    })
}

/// The processes that carry `mark` in their command line or environment, without this one.
pub fn marked(mark: &Path) -> Vec<Pid> {
    let mark = mark.as_os_str().as_encoded_bytes();
    let carries = |directory: &Path| {
        ["cmdline", "environ"].iter().any(|file| {
            let bytes = fs::read(directory.join(file)).unwrap_or_default();
            bytes.windows(mark.len()).any(|window| window == mark)
        })
    };
    let own = std::process::id();
    let is_marked = |pid: &Pid| {
        let number = pid.as_raw_nonzero().get();
        number.unsigned_abs() != own && carries(&Path::new("/proc").join(number.to_string()))
    };
    all().filter(is_marked).collect()
}

/// Every process there is.
fn all() -> impl Iterator<Item = Pid> {
    let entries = fs::read_dir("/proc").expect("/proc is there");
    entries.filter_map(|entry| Pid::from_raw(entry.ok()?.file_name().to_str()?.parse().ok()?))
}

/// The processes whose parent this is; one that is ending is among them until it has ended.
pub fn children_of(parent: Pid) -> impl Iterator<Item = Pid> {
    let number = parent.as_raw_nonzero().get();
    all().filter(move |pid| parent_of(*pid) == number)
}

/// Kills every process that carries `mark`, and waits until none is left.
pub fn kill_marked(mark: &Path) {
    for _ in 0..100 {
        let pids = marked(mark);
        if pids.is_empty() {
            return;
        }
        for pid in pids {
            if let Ok(pidfd) = pidfd_open(pid, PidfdFlags::empty()) {
                // It may have ended in this moment, which is what is wanted.
                let _ = pidfd_send_signal(pidfd.as_fd(), Signal::KILL);
                wait_for_end(pid, Duration::from_secs(2));
            }
        }
    }
    assert!(thread::panicking(), "processes that do not die: {:?}", marked(mark));
}

/// The parent of a process, 0 when it is gone.
pub fn parent_of(pid: Pid) -> i32 {
    let stat = fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero()));
    let stat = stat.unwrap_or_default();
    let after_name = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    after_name.split_whitespace().nth(1).and_then(|text| text.parse().ok()).unwrap_or(0)
}
