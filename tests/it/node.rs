//! One node of a cluster: its directory, its configuration, its dipcd, and the programs that run
//! on it. Every process of the node carries the node's directory in its environment; that is how
//! keepers and stand-ins are found, and why none is left behind.
#![forbid(unsafe_code)]

use std::fs;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::machine::Machine;
use crate::process::{self, Output, PATIENCE, Running};
use crate::programs;

/// Names the node's directory in the environment of each of its processes.
const MARK: &str = "DIPC_TEST_NODE";

/// How a node's dipcd is started.
#[derive(Clone, Debug)]
pub(crate) struct Start {
    /// Its options.
    pub options: Vec<String>,
    /// What it is started by.
    pub wrapper: Option<PathBuf>,
    /// Whose it is, if not ours.
    pub user: Option<User>,
}

/// A user of every machine that tests run on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct User {
    /// Its login name.
    pub name: &'static str,
    /// Its number.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
}

/// Users that Linux systems have had from the beginning.
pub const DAEMON: User = User { name: "daemon", uid: 1, gid: 1 };
/// Another.
pub const BIN: User = User { name: "bin", uid: 2, gid: 2 };

/// A node.
pub struct Node {
    /// Its number, from 1; 1 is the referee.
    pub number: usize,
    /// Where its dipcd listens.
    pub address: SocketAddr,
    directory: PathBuf,
    library: PathBuf,
    machine: Machine,
    start: Start,
    dipcd: Mutex<Option<Child>>,
}

impl Node {
    /// A node that is not started yet.
    pub(crate) fn new(
        number: usize,
        address: SocketAddr,
        directory: PathBuf,
        library: PathBuf,
        machine: Machine,
        start: Start,
    ) -> Node {
        for part in ["state", "lib"] {
            fs::create_dir_all(directory.join(part)).expect("a new directory");
        }
        if let Some(User { uid, gid, .. }) = start.user {
            // Where cargo puts programs, others may not enter.
            programs::copy(&programs::dipcd(), &directory.join("dipcd"));
            for part in ["", "state", "lib"] {
                std::os::unix::fs::chown(directory.join(part), Some(uid), Some(gid))
                    .expect("root may");
            }
        }
        Node { number, address, directory, library, machine, start, dipcd: Mutex::new(None) }
    }

    /// The machine it runs on.
    pub fn machine(&self) -> &Machine {
        &self.machine
    }

    /// The directory with everything of this node.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The socket that its programs call.
    pub fn socket(&self) -> PathBuf {
        self.directory.join("sock")
    }

    /// Its configuration file.
    pub fn config(&self) -> PathBuf {
        self.directory.join("dipc.conf")
    }

    /// Says an entry of the configuration anew; `None` leaves it out.
    pub fn set_entry(&self, name: &str, value: Option<&str>) {
        let text = fs::read_to_string(self.config()).expect("the harness wrote it");
        let is_it = |line: &&str| line.split('=').next().is_some_and(|of| of.trim() == name);
        let others = text.lines().filter(|line| !is_it(line)).map(str::to_owned);
        let said = value.map(|value| format!("{name} = {value}"));
        let lines: Vec<String> = others.chain(said).collect();
        fs::write(self.config(), lines.join("\n") + "\n").expect("the directory is ours");
    }

    /// The library, as the node's programs load it.
    pub fn library(&self) -> &Path {
        &self.library
    }

    fn log_path(&self) -> PathBuf {
        self.directory.join("log")
    }

    /// What its dipcd has said, over all its lives.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.log_path()).unwrap_or_default()).into_owned()
    }

    /// Waits until its dipcd has said `words`.
    #[track_caller]
    pub fn wait_for_log(&self, words: &str) {
        let what = format!("{words:?} in the log of node {}", self.number);
        process::wait_until(&what, || self.log().contains(words).then_some(()));
    }

    fn daemon(&self) -> MutexGuard<'_, Option<Child>> {
        self.dipcd.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn dipcd_command(&self, arguments: &[&str]) -> Command {
        let program = match self.start.user {
            Some(_) => self.directory.join("dipcd"),
            None => programs::dipcd(),
        };
        let mut command = Command::new(self.start.wrapper.as_ref().unwrap_or(&program));
        if self.start.wrapper.is_some() {
            command.arg(&program);
        }
        if let Some(User { uid, gid, .. }) = self.start.user {
            command.uid(uid).gid(gid);
        }
        command.args(arguments).arg("--config").arg(self.config());
        // A Ctrl-C at the terminal is for us, not for the node.
        command.env(MARK, &self.directory).process_group(0);
        command
    }

    /// Runs `dipcd` with this node's configuration to its end.
    #[track_caller]
    pub fn run_dipcd(&self, arguments: &[&str]) -> Output {
        self.machine.run(self.dipcd_command(arguments))
    }

    /// Starts dipcd and waits until it says that it is ready.
    #[track_caller]
    pub fn start(&self) {
        let notify = self.directory.join("notify");
        // Left by an earlier life.
        let _ = fs::remove_file(&notify);
        let socket = UnixDatagram::bind(&notify).expect("the directory is ours");
        let log = fs::OpenOptions::new().create(true).append(true).open(self.log_path());
        let log = log.expect("the directory is ours");
        let everybody = fs::Permissions::from_mode(0o777);
        fs::set_permissions(&notify, everybody).expect("the directory is ours");
        let options: Vec<&str> = self.start.options.iter().map(String::as_str).collect();
        let mut command = self.dipcd_command(&options);
        command.env("NOTIFY_SOCKET", &notify).stdin(Stdio::null());
        command.stdout(log.try_clone().expect("a descriptor is left")).stderr(log);
        let mut child = self.machine.start(&mut command);
        let ready = wait_for_ready(&socket, &mut child);
        *self.daemon() = Some(child);
        if let Err(why) = ready {
            panic!("node {} {why}: {}", self.number, self.log());
        }
    }

    /// Whether its dipcd runs.
    pub fn is_running(&self) -> bool {
        match self.daemon().as_mut() {
            Some(child) => child.try_wait().expect("a child can be waited for").is_none(),
            None => false,
        }
    }

    /// The pid of its dipcd.
    pub fn dipcd_pid(&self) -> u32 {
        self.daemon().as_ref().expect("dipcd runs").id()
    }

    fn signal(&self, signal: Signal) {
        let daemon = self.daemon();
        let pid = Pid::from_child(daemon.as_ref().expect("dipcd runs"));
        kill_process(pid, signal).expect("a child that nobody waited for");
    }

    #[track_caller]
    fn reap(&self) -> ExitStatus {
        let mut child = self.daemon().take().expect("dipcd runs");
        let ended = process::wait_for_end(Pid::from_child(&child), PATIENCE);
        if !ended {
            *self.daemon() = Some(child);
            panic!("dipcd of node {} does not end: {}", self.number, self.log());
        }
        child.wait().expect("it has ended")
    }

    /// Ends dipcd in an orderly way.
    #[track_caller]
    pub fn stop(&self) -> ExitStatus {
        self.signal(Signal::TERM);
        self.reap()
    }

    /// Kills dipcd alone; keeper, stand-ins and programs go on.
    #[track_caller]
    pub fn kill(&self) {
        self.signal(Signal::KILL);
        self.reap();
    }

    /// Kills dipcd and starts it again.
    #[track_caller]
    pub fn kill_and_restart(&self) {
        self.kill();
        self.start();
    }

    /// Stops dipcd where it is (SIGSTOP), and waits until all its threads stand.
    #[track_caller]
    pub fn freeze(&self) {
        self.signal(Signal::STOP);
        let pid = self.dipcd_pid();
        process::wait_until("dipcd stands still", || process::stands_still(pid).then_some(()));
    }

    /// The same, and waits until it has: with success, or refusing what it read.
    #[track_caller]
    pub fn reload_and_wait(&self) {
        let log = || self.log();
        let is_it = |line: &&str| {
            line.ends_with("op=\"reload\"") || line.starts_with("ERROR") && line.contains("reload")
        };
        let said = || log().lines().filter(is_it).count();
        let before = said();
        self.reload();
        process::wait_until("the files are read again", || (said() > before).then_some(()));
    }

    /// Ends [`Node::freeze`].
    pub fn thaw(&self) {
        self.signal(Signal::CONT);
    }

    /// Asks dipcd to read its files again (SIGHUP).
    pub fn reload(&self) {
        self.signal(Signal::HUP);
    }

    /// Kills everything on the node at once, as a power cut does: dipcd, keeper, stand-ins,
    /// programs. What lies in `state_dir` is gone too, as from a tmpfs; `lib_dir` stays.
    pub fn kill_everything(&self) {
        self.kill_processes();
        let state = self.directory.join("state");
        fs::remove_dir_all(&state).expect("the directory is ours");
        fs::create_dir(&state).expect("the directory is ours");
        // The socket lies outside of state_dir here.
        let _ = fs::remove_file(self.socket());
    }

    fn kill_processes(&self) {
        if let Some(mut child) = self.daemon().take() {
            // It may have ended by itself.
            let _ = child.kill();
            let _ = child.wait();
        }
        process::kill_marked(&self.directory);
    }

    /// The keeper and the stand-ins: processes of the dipcd binary that outlive dipcd.
    pub fn keepers(&self) -> Vec<Pid> {
        let is_keeper = |pid: &Pid| {
            let line = fs::read(format!("/proc/{}/cmdline", pid.as_raw_nonzero()));
            let line = line.unwrap_or_default();
            line.split(|byte| *byte == 0).any(|word| word == b"--keeper")
        };
        process::marked(&self.directory).into_iter().filter(is_keeper).collect()
    }

    /// The keeper itself: the one of [`Node::keepers`] whose parent is none of them, and that is
    /// no stand-in whose keeper has died.
    pub fn keeper(&self) -> Option<Pid> {
        let all = self.keepers();
        let is_root = |pid: &&Pid| {
            let parent = process::parent_of(**pid);
            let name = fs::read(format!("/proc/{}/comm", pid.as_raw_nonzero()));
            all.iter().all(|other| other.as_raw_nonzero().get() != parent)
                && name.is_ok_and(|name| name != b"dipc-stand-in\n")
        };
        all.iter().find(is_root).copied()
    }

    /// The stand-ins: also one that is ending. It has no command line any more then, and what it
    /// is to undo may still be to come (do_exit in kernel/exit.c: exit_mm is before exit_sem).
    pub fn stand_ins(&self) -> Vec<Pid> {
        let Some(keeper) = self.keeper() else { return Vec::new() };
        let mut pids: Vec<_> = self.keepers().into_iter().filter(|pid| *pid != keeper).collect();
        pids.extend(process::children_of(keeper));
        pids.sort_by_key(|pid| pid.as_raw_nonzero());
        pids.dedup();
        pids
    }

    /// A program of this node: libdipc preloaded, talking to this node's dipcd.
    pub fn command(&self, program: impl AsRef<Path>, arguments: &[&str]) -> Command {
        let mut command = Command::new(program.as_ref());
        command.args(arguments).env(MARK, &self.directory);
        command.env("LD_PRELOAD", &self.library).env("DIPC_SOCKET", self.socket());
        command
    }

    /// Runs one of our tools on this node, without the library, to its end.
    #[track_caller]
    pub fn tool(&self, name: &str, arguments: &[&str]) -> Output {
        let mut command = self.command(programs::tool(name), arguments);
        command.env_remove("LD_PRELOAD");
        self.machine.run(command)
    }

    /// What a tool prints that only asks, once it is answered in time: it bounds itself to less
    /// than a second, and on a busy machine a dipcd may need more.
    #[track_caller]
    pub fn ask(&self, name: &str, arguments: &[&str]) -> String {
        let answered = || {
            let output = self.tool(name, arguments);
            let late = ["not answer", "no answer in time"];
            let is_late = late.iter().any(|words| output.err.contains(words));
            (!is_late).then_some(output)
        };
        process::wait_until(&format!("{name} {arguments:?} is answered"), answered).expect_success()
    }

    /// Starts a program on this node as another user, who is in no group but this one.
    pub fn spawn_as(&self, user: User, program: impl AsRef<Path>, arguments: &[&str]) -> Running {
        let mut command = self.command(program, arguments);
        // Without other groups: the standard library drops them with the user.
        command.uid(user.uid).gid(user.gid);
        self.machine.spawn(command)
    }

    /// Starts a program on this node.
    pub fn spawn(&self, program: impl AsRef<Path>, arguments: &[&str]) -> Running {
        self.machine.spawn(self.command(program, arguments))
    }

    /// Runs a program on this node to its end.
    #[track_caller]
    pub fn run(&self, program: impl AsRef<Path>, arguments: &[&str]) -> Output {
        self.spawn(program, arguments).wait()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("---- log of node {}\n{}", self.number, self.log());
        }
        if self.machine.holder_pid().is_none() {
            // The objects are in everybody's kernel; only the node itself knows which are its.
            if let Some(mut child) = self.daemon().take() {
                let _ = child.kill();
                let _ = child.wait();
            }
            let _ = self.dipcd_command(&["--purge"]).output();
        }
        self.kill_processes();
    }
}

fn wait_for_ready(socket: &UnixDatagram, child: &mut Child) -> Result<(), String> {
    let end = Instant::now() + PATIENCE;
    let look = Some(Duration::from_millis(50));
    socket.set_read_timeout(look).expect("a time that is not zero");
    let mut packet = [0; 512];
    while Instant::now() < end {
        match socket.recv(&mut packet) {
            Ok(length) => {
                let text = String::from_utf8_lossy(&packet[..length]);
                if text.lines().any(|line| line == "READY=1") {
                    return Ok(());
                }
            }
            Err(error)
                if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            Err(error) => return Err(format!("cannot be heard: {error}")),
        }
        if let Some(status) = child.try_wait().expect("a child can be waited for") {
            return Err(format!("ended before it was ready, {status}"));
        }
    }
    Err("was never ready".into())
}
