//! What the two ends of a link prove to each other: the cluster key, and besides, where dipc.allow
//! names a node key behind the peer's address, that they are the nodes with these keys.
//!
//! The cluster key says "one of us" and no more: who has it can pose as any node whose address it
//! can use. A node key is a pair (Noise KKpsk0): the public halves may lie in the one dipc.allow
//! that all nodes share, a stolen one serves nobody to pose as the others, and n nodes need n of
//! them. A secret for each pair of nodes would do the same with n squared files.
#![forbid(unsafe_code)]

use std::net::IpAddr;

use dipc_wire::ids::Secret;
use dipc_wire::noise::{Handshake, NodeKey, PublicKey};

use crate::allow::AllowList;
use crate::config::ClusterKey;

/// What was, or is to be, proven on one link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proof {
    /// By both ends.
    secret: Secret,
    /// By the peer; we prove ours then.
    node: Option<PublicKey>,
}

impl Proof {
    /// What this node proves when it dials.
    pub fn offered(cluster: &ClusterKey, allow: &AllowList, to: IpAddr) -> Proof {
        Proof { secret: cluster.offered().clone(), node: allow.node_key(to) }
    }

    /// What a peer that dials from there may prove: any of these.
    pub fn accepted(cluster: &ClusterKey, allow: &AllowList, from: IpAddr) -> Vec<Proof> {
        let node = allow.node_key(from);
        let secrets = cluster.accepted().into_iter();
        secrets.map(|secret| Proof { secret: secret.clone(), node }).collect()
    }

    /// The handshake of the end that dials.
    pub fn initiate(&self, own: &NodeKey) -> Handshake {
        match &self.node {
            None => Handshake::initiator(&self.secret),
            Some(peer) => Handshake::initiator_of_nodes(&self.secret, own, peer),
        }
    }

    /// The handshake of the end that was dialled.
    pub fn respond(&self, own: &NodeKey) -> Handshake {
        match &self.node {
            None => Handshake::responder(&self.secret),
            Some(peer) => Handshake::responder_of_nodes(&self.secret, own, peer),
        }
    }

    /// Whether it is of a node, not of the cluster alone.
    pub fn is_of_node(&self) -> bool {
        self.node.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::KeyFile;

    fn files(current: u8, next: Option<u8>) -> ClusterKey {
        let file = |byte| KeyFile { path: "/k".into(), secret: Secret([byte; 32]) };
        ClusterKey::Files { current: file(current), next: next.map(file) }
    }

    #[test]
    fn what_was_proven_is_compared_with_what_would_be_accepted_now() {
        let at: IpAddr = "192.0.2.2".parse().unwrap();
        let plain = AllowList::Listed([(at, None)].into());
        let keyed = AllowList::Listed([(at, Some(PublicKey([9; 32])))].into());
        let proven = Proof::offered(&files(1, None), &plain, at);
        let accepts = |cluster: &ClusterKey, allow: &AllowList| {
            Proof::accepted(cluster, allow, at).contains(&proven)
        };
        assert!(accepts(&files(1, None), &plain));
        assert!(accepts(&files(1, Some(2)), &plain));
        assert!(accepts(&files(2, Some(1)), &plain), "the key is being replaced");
        assert!(!accepts(&files(2, None), &plain), "and now it was");
        assert!(!accepts(&files(1, None), &keyed), "a key of the node is asked for");
        assert!(Proof::offered(&files(1, None), &keyed, at).is_of_node());
        assert!(!proven.is_of_node());
    }
}
