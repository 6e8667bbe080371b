//! A configuration as text again, entry by entry, in the form that dipc.conf takes: for comparing
//! two, and for showing one. What is shown, parsed, is the same configuration.
#![forbid(unsafe_code)]

use std::time::Duration;

use super::entries::with_suffix;
use super::types::*;
use super::{Config, ENTRIES};

impl Config {
    /// The value of one entry of [`ENTRIES`].
    pub fn show(&self, name: &str) -> String {
        match name {
            "this_machine" => self.this_machine.to_string(),
            "referee" => self.referee.to_string(),
            "port" => self.this_machine.port().to_string(),
            "socket" => self.socket.display().to_string(),
            "socket_mode" => format!("{:04o}", self.socket_access.mode),
            "socket_group" => or_none(self.socket_access.group.as_ref()),
            "state_dir" => self.state_dir.display().to_string(),
            "lib_dir" => self.lib_dir.display().to_string(),
            "allow_file" => self.allow_file.display().to_string(),
            "cluster_key" => self.show_key(|current, _| Some(current)),
            "cluster_key_next" => self.show_key(|_, next| next),
            "cipher" => self.cipher.word().into(),
            "node_timeout" => seconds(self.liveness.node_timeout),
            "lease" => seconds(self.liveness.lease),
            "heartbeat" => seconds(self.liveness.heartbeat),
            "identity" => self.identity.word().into(),
            "squash" => self.squash.to_string(),
            "user_clients_max" => self.user_limits.clients.to_string(),
            "user_objects_max" => self.user_limits.objects.to_string(),
            "user_segment_bytes_max" => with_suffix(self.user_limits.segment_bytes),
            "keys" => self.sharing.keys.to_string(),
            "ftok" => self.sharing.ftok.word().into(),
            "shm_noreserve" => self.sharing.shm_noreserve.word().into(),
            name => self.show_memory(name).unwrap_or_else(|| self.show_rest(name)),
        }
    }

    /// Every entry with its value, in the order of the table.
    pub fn show_all(&self) -> Vec<(&'static str, String)> {
        ENTRIES.iter().map(|entry| (entry.name, self.show(entry.name))).collect()
    }

    /// The bounds of waits, and the entries that concern memory.
    fn show_memory(&self, name: &str) -> Option<String> {
        let bound = |bound: Option<Duration>| bound.map_or("0".into(), seconds);
        Some(match name {
            "employer_referee_timeout" => bound(self.timeouts.employer_referee),
            "referee_timeout" => bound(self.timeouts.referee),
            "employer_shm_timeout" => bound(self.timeouts.employer_shm),
            "shm_ak_timeout" => bound(self.timeouts.shm_ak),
            "employer_worker_timeout" => bound(self.timeouts.employer_worker),
            "transfer_mode" => self.transfer.mode.word().into(),
            "dipc_page_size" => self.transfer.page_bytes.to_string(),
            "inhibit_shm_signal" => self.shm_signals.word().into(),
            "shm_hold_timeout" => match self.shm_hold {
                HoldTime::Adaptive => "adaptive".into(),
                HoldTime::AtLeast(least) => seconds(least),
            },
            "trap" => self.trap.word().into(),
            "kernel_faults" => self.kernel_faults.to_string(),
            "lost_page" => self.lost_page.word().into(),
            _ => return None,
        })
    }

    fn show_rest(&self, name: &str) -> String {
        match name {
            "home" => match self.home {
                Home::Creator => "creator".into(),
                Home::Referee => "referee".into(),
                Home::Node(node) => node.to_string(),
            },
            "send" => match &self.send {
                Sending::Strict => "strict".into(),
                Sending::Pipelined(keys) => format!("pipelined:{keys}"),
            },
            "queue_on_loss" => self.queue_on_loss.word().into(),
            "root" if self.root.is_empty() => "none".into(),
            "root" => self.root.iter().map(|a| a.to_string()).collect::<Vec<_>>().join(", "),
            "container_identity" => match &self.container_identity {
                ContainerIdentity::Refuse => "refuse".into(),
                ContainerIdentity::User(name) => format!("user:{name}"),
            },
            "metrics" => match &self.metrics {
                None => "none".into(),
                Some(Metrics::Address(address)) => address.to_string(),
                Some(Metrics::Path(path)) => path.display().to_string(),
            },
            "mailbox" => self.mailbox.map_or("none".into(), |mailbox| {
                let Mailbox { count, kbytes, port, packet_kbytes } = mailbox;
                format!("{count} {kbytes} {port} {packet_kbytes}")
            }),
            other => unreachable!("{other} is no entry of the table"),
        }
    }

    fn show_key<'a>(
        &'a self,
        which: impl Fn(&'a KeyFile, Option<&'a KeyFile>) -> Option<&'a KeyFile>,
    ) -> String {
        let file = match &self.cluster_key {
            ClusterKey::Loopback => None,
            ClusterKey::Files { current, next } => which(current, next.as_ref()),
        };
        or_none(file.map(|file| file.path.display()))
    }
}

fn or_none(value: Option<impl std::fmt::Display>) -> String {
    value.map_or("none".into(), |value| value.to_string())
}

fn seconds(wait: Duration) -> String {
    wait.as_secs_f64().to_string()
}
