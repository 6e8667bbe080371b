//! A maker (`tests/c/maker.c`): creates objects on its node for programs that run on another, so
//! that everything such a program does is remote. It ends when it is dropped.
#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};

use crate::cluster::Cluster;
use crate::process::Running;
use crate::programs;

/// A maker at work.
pub struct Maker {
    socket: PathBuf,
    _running: Running,
}

impl Maker {
    /// Starts one on the node with that number.
    pub fn on(cluster: &Cluster, number: usize) -> Maker {
        let socket = cluster.directory().join(format!("maker-{number}.sock"));
        let program = cluster.install(&programs::helper("maker"));
        let path = socket.to_str().expect("a plain path");
        let running = cluster.node(number).spawn(program, &[path]);
        running.wait_for("ready\n");
        Maker { socket, _running: running }
    }

    /// What programs find it by: the value of `DIPC_TEST_MAKER`.
    pub fn socket(&self) -> &Path {
        &self.socket
    }
}
