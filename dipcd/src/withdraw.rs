//! What SIGHUP takes away: links and wires of addresses that may take part no more, and those that
//! a key let in which is accepted no more. At once, not when they next break.
//!
//! A node whose address is withdrawn is treated as lost, and forgotten by the referee, so that all
//! nodes part from it. One whose key was replaced links again with the new one; its sessions go on
//! over new wires, and no operation is lost or done twice.
#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::atomic::Ordering;

use dipc_core::referee::Event;
use dipc_wire::ids::NodeId;

use crate::allow::AllowList;
use crate::config::ClusterKey;
use crate::daemon::Daemon;

impl Daemon {
    /// How often something was withdrawn: a wire that was being opened meanwhile may be of it.
    pub fn withdrawals(&self) -> u64 {
        self.withdrawn.load(Ordering::Acquire)
    }

    /// Ends what these allowed and the present ones do not.
    pub(crate) fn withdraw(&self, key_before: &ClusterKey, allowed_before: &AllowList) {
        self.withdrawn.fetch_add(1, Ordering::AcqRel);
        let others = self.links.others();
        for (node, address) in &others {
            if !self.permits(address.ip()) {
                self.expel(*node, *address);
            }
        }
        let is_dropped =
            |link: &crate::links::Link| !self.proofs_from(link.address.ip()).contains(&link.proof);
        let mut concerned: BTreeSet<_> = self.links.close_those(is_dropped).into_iter().collect();
        let config = self.config();
        let accepted = config.cluster_key.accepted();
        let key_is_dropped = key_before.accepted().iter().any(|key| !accepted.contains(key));
        concerned.extend(others.iter().filter_map(|(node, address)| {
            let before = allowed_before.node_key(address.ip());
            let changed = before.is_some() && before != self.node_key_of(address.ip());
            (changed || key_is_dropped).then_some(*node)
        }));
        if !concerned.is_empty() {
            self.break_wires(&concerned);
        }
    }

    fn expel(&self, node: NodeId, address: SocketAddr) {
        self.links.expel(node);
        let (wires, clients) = self.cut_off(node);
        tracing::warn!(op = "reload", peer = %node, %address, wires, clients,
            "not in dipc.allow any more; its link and wires are closed");
        if let Some(names) = self.names() {
            names.step(self, Event::Forget { node });
        }
    }

    /// Wires that a dropped key let in are not known from others, so all with these nodes go.
    fn break_wires(&self, nodes: &BTreeSet<NodeId>) {
        let wires = self.change_clients(|clients| {
            let kept = clients.break_wires(|home| nodes.contains(&home));
            let wires = kept.release.len();
            (kept, wires)
        });
        self.stand_ins.hang_up(|node| nodes.contains(&node));
        let nodes: Vec<_> = nodes.iter().map(|node| node.number()).collect();
        tracing::warn!(
            op = "reload",
            ?nodes,
            wires,
            "a key is accepted no more; links and wires that it let in are closed"
        );
    }
}
