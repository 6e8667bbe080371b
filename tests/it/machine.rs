//! A machine, as far as System V IPC and (on request) the network go: a holder process in
//! namespaces of its own. It is `cat` on a pipe of ours, so it ends when this process does, however
//! that ends, and the namespaces with it. Without root there are no namespaces, and every machine
//! is this one.
#![forbid(unsafe_code)]

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::thread;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::process::{Output, Running};
use crate::skip::is_root;

/// What a machine's kernel allows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Limits {
    /// As kernels do.
    #[default]
    Usual,
    /// This many queues and sets; with 0, a call that slips past libdipc fails with ENOSPC.
    Objects(u32),
}

/// Whether a machine has a network of its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Network {
    /// This machine's loopback.
    #[default]
    Shared,
    /// A namespace, connected by [`crate::link`].
    Own,
}

/// The namespaces of one machine.
pub struct Machine {
    holder: Option<Holder>,
}

struct Holder {
    child: Child,
    ipc: File,
    net: Option<File>,
}

impl Machine {
    /// Makes one.
    pub fn new(limits: Limits, network: Network) -> Machine {
        if !is_root() {
            assert_eq!(network, Network::Shared, "a network namespace needs root");
            return Machine { holder: None };
        }
        let mut command = Command::new("unshare");
        command.arg("--ipc");
        if network == Network::Own {
            command.arg("--net");
        }
        command.args(["sh", "-c", &setup(limits, network)]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).process_group(0);
        let mut child = command.spawn().expect("unshare(1) of util-linux is there");
        let mut line = String::new();
        let out = child.stdout.take().expect("a pipe");
        BufReader::new(out).read_line(&mut line).expect("the holder speaks");
        assert_eq!(line, "ready\n", "the namespaces could not be made");
        let open = |name: &str| {
            let path = format!("/proc/{}/ns/{name}", child.id());
            File::open(path).expect("the holder's namespaces can be opened")
        };
        let (ipc, net) = (open("ipc"), (network == Network::Own).then(|| open("net")));
        Machine { holder: Some(Holder { child, ipc, net }) }
    }

    /// The pid of the process that holds the namespaces.
    pub fn holder_pid(&self) -> Option<u32> {
        self.holder.as_ref().map(|holder| holder.child.id())
    }

    /// Starts a command on this machine: a thread enters the namespaces, and the child is born
    /// there.
    pub fn start(&self, command: &mut Command) -> Child {
        let name = command.get_program().to_string_lossy().into_owned();
        self.inside(|| command.spawn().unwrap_or_else(|error| panic!("{name}: {error}")))
    }

    /// Does something on this machine, in a thread of its own.
    pub fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let enter_and_work = || {
            self.enter();
            work()
        };
        thread::scope(|scope| scope.spawn(enter_and_work).join()).expect("it panics on its own")
    }

    fn enter(&self) {
        let Some(holder) = &self.holder else { return };
        let ipc = LinkNameSpaceType::InterProcessCommunication;
        move_into_link_name_space(holder.ipc.as_fd(), Some(ipc)).expect("root may enter");
        if let Some(net) = &holder.net {
            let network = LinkNameSpaceType::Network;
            move_into_link_name_space(net.as_fd(), Some(network)).expect("root may enter");
        }
    }

    /// Starts a command with its streams in pipes.
    pub fn spawn(&self, mut command: Command) -> Running {
        Running::pipes(&mut command);
        let name = command.get_program().to_string_lossy().into_owned();
        Running::new(&name, self.start(&mut command))
    }

    /// Runs a command to its end.
    #[track_caller]
    pub fn run(&self, command: Command) -> Output {
        self.spawn(command).wait()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if let Some(holder) = &mut self.holder {
            // Fails only when it has ended already.
            let _ = holder.child.kill();
            let _ = holder.child.wait();
        }
    }
}

fn setup(limits: Limits, network: Network) -> String {
    let mut script = String::from("set -e\n");
    if let Limits::Objects(count) = limits {
        script += &format!("echo {count} > /proc/sys/kernel/msgmni\n");
        script += &format!("echo {count} > /proc/sys/kernel/shmmni\n");
        script += &format!("echo 32000 1024000000 500 {count} > /proc/sys/kernel/sem\n");
    }
    if network == Network::Own {
        script += "ip link set lo up\n";
    }
    script + "echo ready\nexec cat > /dev/null"
}
