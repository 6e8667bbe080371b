//! Too much of everything: a node or a program that asks without end must not stop a dipcd, fill
//! its memory or its log, or keep others from their work.
#![forbid(unsafe_code)]

use std::path::Path;

use dipc_tests::Cluster;
use dipc_tests::stranger::{Peer, serves, with_known_key};
use dipc_wire::ids::{ClientId, NodeId, ObjectId, Req};
use dipc_wire::peer::{Asked, Caller, PeerFrame};
use dipc_wire::sysv::Rights;

/// More questions than a referee parks for one node (`PARKED_MAX` of dipc-core).
const TOO_MANY: u32 = 70_000;
/// Those that one link may bring at once.
const AT_ONCE: usize = 1_000;

/// A referee that waits for the report of a node that is not there: it parks what it is asked.
fn referee_that_parks(keys: &Path) -> Cluster {
    let mut builder = with_known_key(Cluster::of(2), keys);
    for (name, value) in [("node_timeout", "120"), ("lease", "60")] {
        builder = builder.entry(name, value);
    }
    let cluster = builder.start();
    serves(cluster.node(2));
    cluster.node(2).kill_everything();
    cluster.node(1).kill_and_restart();
    cluster
}

fn caller(node: NodeId) -> Caller {
    Caller {
        client: ClientId { node, pid: 1, started: 1 },
        uid: 1,
        gid: 1,
        groups: Vec::new(),
        user_name: Some("daemon".into()),
        group_names: vec!["daemon".into()],
        rights: Rights::default(),
    }
}

#[track_caller]
fn goes_on(cluster: &Cluster) {
    assert!(cluster.node(1).is_running(), "{}", cluster.node(1).log());
    cluster.node(2).start();
    serves(cluster.node(1));
    serves(cluster.node(2));
}

#[test]
fn a_node_that_guesses_ids_does_not_stop_the_referee() {
    let keys = tempfile::tempdir().expect("a temporary directory");
    let cluster = referee_that_parks(keys.path());
    let mut peer = Peer::admitted(cluster.node(1));
    let node = loop {
        if let PeerFrame::Admitted { node, .. } = peer.hear() {
            break node;
        }
    };
    for start in (0..TOO_MANY).step_by(AT_ONCE) {
        for number in start..start + AT_ONCE as u32 {
            let (id, req) = (ObjectId::from_number(number), Req(u64::from(number)));
            peer.say(&PeerFrame::Ask { req, caller: caller(node), id, flags: 0, size: 0 });
        }
        let mut answered = 0;
        while answered < AT_ONCE {
            if let PeerFrame::Asked { outcome, .. } = peer.hear() {
                assert_eq!(outcome, Asked::Gone);
                answered += 1;
            }
        }
    }
    goes_on(&cluster);
}
