//! A program that makes one System V call at a time, as it is told (`tests/c/puppet.c`, and
//! `tests/c/page_puppet.c` for segments). The answer is the result, or the name of the errno.
#![forbid(unsafe_code)]

use rustix::process::Signal;

use crate::cluster::Cluster;
use crate::node::{Node, User};
use crate::process::Running;
use crate::programs;

/// What a call gave: its result, or its errno's name.
pub type Answer = Result<String, String>;

/// A process that does as it is told.
pub struct Puppet {
    running: Running,
    answers: usize,
}

impl Puppet {
    /// Starts one on a node.
    pub fn on(node: &Node) -> Puppet {
        Puppet { running: node.spawn(programs::helper("puppet"), &[]), answers: 0 }
    }

    /// Starts one for segments.
    pub fn of_pages(node: &Node) -> Puppet {
        Puppet { running: node.spawn(programs::helper("page_puppet"), &[]), answers: 0 }
    }

    /// Starts one that runs as another user.
    pub fn of(cluster: &Cluster, number: usize, user: User) -> Puppet {
        // Where cargo puts programs, others may not enter.
        let program = cluster.install(&programs::helper("puppet"));
        Puppet { running: cluster.node(number).spawn_as(user, program, &[]), answers: 0 }
    }

    /// One that runs already.
    pub fn from(running: Running) -> Puppet {
        Puppet { running, answers: 0 }
    }

    /// Tells it to make a call that may wait.
    pub fn begin(&mut self, call: &str) {
        self.running.tell(call);
    }

    /// Waits until the call it was told to make waits for something.
    #[track_caller]
    pub fn until_waiting(&self) {
        self.running.wait_until_asleep();
    }

    /// The result of the call it was told to make.
    #[track_caller]
    pub fn answer(&mut self) -> Answer {
        let line = self.running.line(self.answers);
        self.answers += 1;
        match line.split_once(' ') {
            Some(("=", result)) => Ok(result.to_owned()),
            Some(("!", errno)) => Err(errno.to_owned()),
            _ => panic!("a puppet said {line:?}"),
        }
    }

    /// Makes a call.
    #[track_caller]
    pub fn call(&mut self, call: &str) -> Answer {
        self.begin(call);
        self.answer()
    }

    /// Makes a call that must succeed.
    #[track_caller]
    pub fn must(&mut self, call: &str) -> String {
        match self.call(call) {
            Ok(result) => result,
            Err(errno) => panic!("{call}: {errno}"),
        }
    }

    /// Kills it.
    pub fn kill(self) {
        self.running.signal(Signal::KILL);
        drop(self);
    }

    /// The process.
    pub fn process(&self) -> &Running {
        &self.running
    }
}
