//! The other side of program.c: starts
//! it, tells it what to do, and ends it.
#![forbid(unsafe_code)]

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
};
use rustix::process::{Pid, Signal};
use std::fs::Permissions;
use std::io::{ErrorKind, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;

/// A process that does what it is told.
pub struct Program {
    pub pid: u32,
    socket: OwnedFd,
    /// `None` for one that was forked by another.
    child: Option<Child>,
}

impl Program {
    pub fn start() -> Program {
        Program::run(&mut Command::new(compiled()))
    }

    /// As an ordinary user, from a copy in a directory that he may enter.
    pub fn start_as_nobody(directory: &Path) -> Program {
        let copy = directory.join("program");
        std::fs::copy(compiled(), &copy).unwrap();
        std::fs::set_permissions(directory, Permissions::from_mode(0o755)).unwrap();
        Program::run(Command::new(copy).uid(65_534).gid(65_534))
    }

    fn run(command: &mut Command) -> Program {
        let (socket, theirs) = pair();
        command.stdin(Stdio::from(theirs));
        let child = loop {
            match command.spawn() {
                // Another test has just forked while the copy was being written.
                Err(error) if error.kind() == ErrorKind::ExecutableFileBusy => {}
                child => break child.unwrap(),
            }
        };
        Program { pid: child.id(), socket, child: Some(child) }
    }

    /// A child of it.
    pub fn fork(&self) -> Program {
        let (socket, theirs) = pair();
        let pid = number(&self.ask_with("fork", Some(theirs.as_fd())).0);
        Program { pid: u32::try_from(pid).unwrap(), socket, child: None }
    }

    /// Tells it something; what it answers: nothing if it has ended.
    pub fn ask(&self, words: &str) -> String {
        self.ask_with(words, None).0
    }

    /// The same for an answer that is a number.
    #[track_caller]
    pub fn number(&self, words: &str) -> u64 {
        number(&self.ask(words))
    }

    /// The same with descriptors.
    pub fn ask_with(&self, words: &str, fd: Option<BorrowedFd<'_>>) -> (String, Option<OwnedFd>) {
        self.tell(words, fd);
        self.answer()
    }

    /// Only tells it.
    pub fn tell(&self, words: &str, fd: Option<BorrowedFd<'_>>) {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !fd.as_slice().is_empty() {
            assert!(control.push(SendAncillaryMessage::ScmRights(fd.as_slice())));
        }
        let parts = [IoSlice::new(words.as_bytes())];
        // One that has ended has an empty answer.
        let _ = rustix::net::sendmsg(&self.socket, &parts, &mut control, SendFlags::NOSIGNAL);
    }

    /// What it answers to what it was told; empty when it has ended.
    pub fn answer(&self) -> (String, Option<OwnedFd>) {
        let mut text = [0; 256];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut parts = [IoSliceMut::new(&mut text)];
        let flags = RecvFlags::CMSG_CLOEXEC;
        let received = rustix::net::recvmsg(&self.socket, &mut parts, &mut control, flags);
        let length = received.map_or(0, |received| received.bytes);
        let mut fds = control.drain().filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
            _ => None,
        });
        let fd = fds.next();
        (String::from_utf8(text[..length].to_vec()).unwrap(), fd)
    }

    fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(self.pid).unwrap()).unwrap();
        // It may have ended.
        let _ = rustix::process::kill_process(pid, signal);
    }

    /// SIGSTOP, and waits until every thread of it has stopped.
    pub fn stop(&self) {
        self.signal(Signal::STOP);
        let pid = Pid::from_raw(i32::try_from(self.pid).unwrap());
        rustix::process::waitpid(pid, rustix::process::WaitOptions::UNTRACED).unwrap();
    }

    /// SIGKILL, and waits until it is gone.
    pub fn kill(&mut self) {
        self.signal(Signal::KILL);
        match &mut self.child {
            Some(child) => drop(child.wait()),
            None => while !self.answer().0.is_empty() {},
        }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        self.kill();
    }
}

#[track_caller]
fn number(text: &str) -> u64 {
    text.parse().unwrap_or_else(|_| panic!("{text:?} is no number"))
}

fn pair() -> (OwnedFd, OwnedFd) {
    let kind = SocketType::SEQPACKET;
    rustix::net::socketpair(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None).unwrap()
}

/// The program, compiled once a run.
fn compiled() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        let directory = Path::new(env!("CARGO_TARGET_TMPDIR"));
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/families/program.c");
        let (fresh, program) =
            (directory.join(std::process::id().to_string()), directory.join("families-program"));
        let mut command = Command::new("cc");
        command.args(["-O1", "-g", "-Wall", "-Wextra", "-pthread"]).arg(source);
        assert!(command.arg("-o").arg(&fresh).status().unwrap().success(), "it does not compile");
        // Another run may be using the old one.
        std::fs::rename(fresh, &program).unwrap();
        program
    })
}
