//! The orderly end of a dipcd (SIGTERM): "DIPC can be turned off any time".
//!
//! The socket goes first, so that new programs fall back to the kernel. Programs that still share
//! are named in the log and treated as on a node that was lost, at once; objects that live here are
//! destroyed. A dipcd that is to be replaced (an upgrade) is ended by SIGUSR2 instead, or killed:
//! then everything stays with the keeper.
#![forbid(unsafe_code)]

use std::sync::Arc;
use std::time::Duration;

use crate::clock::Deadline;
use crate::daemon::Daemon;
use crate::{memory, metrics, policy};

/// How long other nodes may take to bury our clients, and our stand-ins to end.
const FAREWELL: Duration = Duration::from_secs(2);
/// Between two looks at whether they have.
const LOOK: Duration = Duration::from_millis(10);

/// Ends everything of this node.
pub fn stop(daemon: &Arc<Daemon>) {
    let config = daemon.config();
    for path in [config.socket.clone(), policy::file_beside(&config.socket)] {
        // What is not there need not be removed.
        let _ = std::fs::remove_file(path);
    }
    daemon.begin_stop();
    daemon.hosted.stop();
    metrics::close(config.metrics.as_ref());
    end_clients(daemon);
    end_stand_ins(daemon);
    memory::control::stop(daemon);
    match daemon.home.destroy_all() {
        Ok(0) => {}
        Ok(count) => tracing::warn!(op = "stop", count, "objects that lived here are gone"),
        Err(error) => tracing::error!(op = "stop", %error),
    }
    daemon.keep.quit();
    daemon.links.close_all();
    daemon.road.close();
}

fn end_clients(daemon: &Arc<Daemon>) {
    for client in daemon.clients.living() {
        tracing::warn!(op = "stop", pid = client.pid, "still shares; it is cut off");
        let posts = daemon.change_clients(|clients| clients.process_ended(client));
        posts.into_iter().for_each(|(node, frame)| daemon.links.post(node, frame));
    }
    wait_until(|| !daemon.clients.has_unburied());
}

fn end_stand_ins(daemon: &Arc<Daemon>) {
    let nodes = daemon.links.others().into_iter().map(|(node, _)| node);
    for node in nodes.chain([daemon.links.me()]) {
        daemon.stand_ins.lose_node(node, daemon.loss_cause());
    }
    wait_until(|| daemon.stand_ins.count() == 0);
}

fn wait_until(done: impl Fn() -> bool) {
    let deadline = Deadline::after(Some(FAREWELL));
    while !done() && !deadline.is_over() {
        std::thread::sleep(LOOK);
    }
}
