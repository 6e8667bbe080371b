//! The mailbox server that dipcd hosts (`mailbox = 8 64 7777 4`): the program `dipc`, in the
//! foreground as our child. It is started again when it dies, with a growing pause and not for
//! ever; it ends when dipcd does, however that ends.
//!
//! It needs no rights of ours, so it runs as the account `squash` where there is one.
#![forbid(unsafe_code)]

use parking_lot::Mutex;
use rustix::process::{Pid, Signal, kill_process};
use std::io::{self, Read};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use crate::clock::Deadline;
use crate::config::{Config, Mailbox};
use crate::daemon::Daemon;
use crate::sys::{credentials, process};

const PROGRAM: &str = "dipc";
/// Stack of the thread that waits for it.
const STACK_BYTES: usize = 128 << 10;
/// How often in a row it is started again.
const DEATHS_MAX: u32 = 6;
/// Before it is started again the first time; doubles each time.
const PAUSE: Duration = Duration::from_millis(250);
/// A server that lived so long has begun well.
const LIVED: Duration = Duration::from_secs(60);
/// How long it may take to end: it gives its clients a second.
const GRACE: Duration = Duration::from_secs(5);

/// The server, if there is one.
#[derive(Debug, Default)]
pub struct Hosted {
    running: Mutex<Option<Child>>,
}

/// Finds the program: beside dipcd, or on the path.
pub fn find() -> io::Result<PathBuf> {
    let own = std::env::current_exe()?;
    let beside = own.parent().map(Path::to_owned);
    let path = std::env::var_os("PATH").unwrap_or_default();
    let places = beside.into_iter().chain(std::env::split_paths(&path));
    let found = places.map(|place| place.join(PROGRAM)).find(|file| file.is_file());
    found.ok_or_else(|| {
        let why = "mailbox: the program dipc is neither beside dipcd nor on the path";
        io::Error::new(io::ErrorKind::NotFound, why)
    })
}

/// Hosts a server until the daemon ends.
pub fn start(daemon: &Arc<Daemon>, mailbox: Mailbox, program: PathBuf) -> io::Result<()> {
    let daemon = daemon.clone();
    let thread = thread::Builder::new().name("mailbox".into()).stack_size(STACK_BYTES);
    thread.spawn(move || host(&daemon, mailbox, &program)).map(|_| ())
}

/// Starts it again and again. The thread that starts it lives as long as dipcd: the server is told
/// to end when it does.
fn host(daemon: &Daemon, mailbox: Mailbox, program: &Path) {
    let mut deaths = 0;
    while !daemon.is_stopping() {
        let began = Instant::now();
        let ended = run(daemon, mailbox, program);
        if daemon.is_stopping() {
            return;
        }
        deaths = if began.elapsed() < LIVED { deaths + 1 } else { 1 };
        if deaths > DEATHS_MAX {
            tracing::error!(op = "mailbox", port = mailbox.port, %ended, "given up");
            return;
        }
        tracing::warn!(op = "mailbox", port = mailbox.port, %ended, "started again");
        daemon.pause(PAUSE * 2u32.pow(deaths - 1));
    }
}

/// One life of the server: how it ended.
fn run(daemon: &Daemon, mailbox: Mailbox, program: &Path) -> String {
    match begin(&daemon.config(), mailbox, program) {
        Ok((child, said)) => {
            *daemon.hosted.running.lock() = Some(child);
            if daemon.is_stopping() {
                // Whoever stops us may have looked before there was a child.
                daemon.hosted.signal(Signal::TERM);
            }
            log(said);
            let child = daemon.hosted.running.lock().take();
            match child.map(|mut child| child.wait()) {
                Some(Ok(status)) => status.to_string(),
                Some(Err(error)) => error.to_string(),
                None => "it was ended".to_owned(),
            }
        }
        Err(error) => format!("{}: {error}", program.display()),
    }
}

fn begin(config: &Config, mailbox: Mailbox, program: &Path) -> io::Result<(Child, io::PipeReader)> {
    let Mailbox { count, kbytes, port, packet_kbytes } = mailbox;
    let (said, out) = io::pipe()?;
    let mut command = Command::new(program);
    command.arg("--foreground");
    command.args([count, kbytes, u32::from(port), packet_kbytes].map(|number| number.to_string()));
    command.stdin(Stdio::null()).stdout(out.try_clone()?).stderr(out).current_dir("/");
    if rustix::process::geteuid().is_root()
        && let Some(user) = credentials::user_by_name(config.squash.as_str())
    {
        command.uid(user.uid).gid(user.gid);
    }
    process::end_with_parent(&mut command);
    Ok((command.spawn()?, said))
}

/// Passes on what it says, until it ends.
fn log(mut said: impl Read) {
    let mut piece = [0; 1024];
    while let Ok(length @ 1..) = said.read(&mut piece) {
        for line in String::from_utf8_lossy(&piece[..length]).lines() {
            tracing::info!(op = "mailbox", said = line);
        }
    }
}

impl Hosted {
    /// Ends the server, at the latest by force.
    pub fn stop(&self) {
        self.signal(Signal::TERM);
        let deadline = Deadline::after(Some(GRACE));
        while self.running.lock().is_some() && !deadline.is_over() {
            thread::sleep(Duration::from_millis(10));
        }
        self.signal(Signal::KILL);
    }

    /// Nobody has waited for a child that is in here, so its pid is its own.
    fn signal(&self, signal: Signal) {
        if let Some(child) = &*self.running.lock() {
            // An error says that it has ended.
            let _ = kill_process(Pid::from_child(child), signal);
        }
    }
}
