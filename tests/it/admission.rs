//! Admission, and what ends it: keys of the cluster and of nodes, the allow list, and what SIGHUP
//! takes away from those who were let in. What strangers try stands in `refusals.rs`.
#![forbid(unsafe_code)]

use std::fs;
use std::path::{Path, PathBuf};

use dipc_tests::process::wait_until;
use dipc_tests::stranger::{self, with_known_key, write_key};
use dipc_tests::{Cluster, Node, Puppet};

/// Much longer than a test: what ends sooner has not ended by being silent.
const PATIENT: [(&str, &str); 2] = [("node_timeout", "120"), ("lease", "60")];

fn patient(mut builder: dipc_tests::Builder) -> dipc_tests::Builder {
    for (name, value) in PATIENT {
        builder = builder.entry(name, value);
    }
    builder
}

fn allow_file(cluster: &Cluster) -> PathBuf {
    cluster.directory().join("dipc.allow")
}

/// Writes the allow list and has a node read it.
fn allow(cluster: &Cluster, lines: &[String], reader: &Node) {
    fs::write(allow_file(cluster), lines.join("\n") + "\n").expect("the directory is ours");
    reader.reload_and_wait();
}

fn line_of(node: &Node) -> String {
    node.address.ip().to_string()
}

/// A queue at home on one node, and a puppet on another that has used it.
fn remote_queue(home: &Node, away: &Node, key: &str) -> (Puppet, Puppet) {
    let (mut near, mut far) = (Puppet::on(home), Puppet::on(away));
    near.must(&format!("msgget {key} 011600"));
    far.must(&format!("msgget {key} 010600"));
    far.must("send 1 before");
    assert_eq!(near.must("receive 0"), "1 before");
    (near, far)
}

#[test]
fn a_withdrawn_address_loses_its_link_and_wires_at_once() {
    let cluster = patient(Cluster::of(3)).start();
    let [referee, other, withdrawn] = [1, 2, 3].map(|number| cluster.node(number));
    let (mut near, mut far) = remote_queue(referee, withdrawn, "0x51");
    let (_elsewhere, mut far_too) = remote_queue(other, withdrawn, "0x52");
    far.begin("receive 7");
    far.until_waiting();
    allow(&cluster, &[line_of(referee), line_of(other)], referee);
    referee.wait_for_log("not in dipc.allow any more");
    wait_until("its stand-ins end", || referee.stand_ins().is_empty().then_some(()));
    near.must("send 7 unread");
    assert_eq!(near.must("count"), "1", "nobody has taken it");
    // The other node parts from it too, though it keeps no list of its own.
    other.wait_for_log("no member any more");
    wait_until("its stand-ins end", || other.stand_ins().is_empty().then_some(()));
    referee.wait_for_log("refused: not in dipc.allow");
    // Its programs wait for a referee that is not heard any more; the call they are in ends when
    // their own node gives up, or here when they are let in again.
    allow(&cluster, &[line_of(referee), line_of(other), line_of(withdrawn)], referee);
    assert_eq!(far.answer(), Err("EIDRM".into()), "it was cut off while it waited");
    assert_eq!(far_too.call("send 1 late"), Err("EIDRM".into()));
    far.must("msgget 0x51 010600");
    assert_eq!(far.must("receive 7"), "7 unread");
}

#[test]
fn a_node_dials_nobody_who_may_not_take_part() {
    let cluster = patient(Cluster::of(2)).option("-s").start();
    let [referee, node] = [1, 2].map(|number| cluster.node(number));
    let (_near, mut far) = remote_queue(referee, node, "0x53");
    allow(&cluster, &[line_of(node)], node);
    node.wait_for_log("not in dipc.allow any more");
    assert_eq!(far.call("send 1 x"), Err("EIDRM".into()), "its wire is closed");
    wait_until("its link ends", || referee.log().contains("op=\"unlinked\"").then_some(()));
    let links = |node: &Node| node.log().matches("op=\"linked\"").count();
    let (before, refused) = (links(referee), referee.log().matches("op=\"accept\"").count());
    // It was the one who dials, twice a second. That it does not is seen by what comes meanwhile.
    allow(&cluster, &[line_of(node)], node);
    for _ in 0..3 {
        stranger::serves(referee);
    }
    assert_eq!(links(referee), before);
    assert_eq!(referee.log().matches("op=\"accept\"").count(), refused);
    allow(&cluster, &[line_of(node), line_of(referee)], node);
    wait_until("it dials again", || (links(referee) > before).then_some(()));
    far.must("msgget 0x53 010600");
}

/// Says `cluster_key` and `cluster_key_next` anew, and has the node read it.
fn set_keys(node: &Node, current: &Path, next: Option<&Path>) {
    node.set_entry("cluster_key", current.to_str());
    node.set_entry("cluster_key_next", next.and_then(Path::to_str));
    node.reload_and_wait();
}

#[test]
fn the_key_is_replaced_without_a_stop() {
    let keys = tempfile::tempdir().expect("a temporary directory");
    let cluster = patient(with_known_key(Cluster::of(3), keys.path())).start();
    let (old, new) = (keys.path().join("known-key"), keys.path().join("new"));
    write_key(&new, &[0x77; 32]);
    let (mut near, mut far) = remote_queue(cluster.node(2), cluster.node(3), "0x54");
    // One waits all the while; another works between the steps.
    let mut waiting = Puppet::on(cluster.node(3));
    waiting.must("msgget 0x54 010600");
    waiting.begin("receive 9");
    waiting.until_waiting();
    let steps = [(&old, Some(&new)), (&new, Some(&old)), (&new, None)];
    for (step, (current, next)) in steps.into_iter().enumerate() {
        for node in cluster.nodes() {
            set_keys(node, current, next.map(PathBuf::as_path));
            far.must(&format!("send 1 step-{step}-{}", node.number));
            assert_eq!(near.must("receive 1"), format!("1 step-{step}-{}", node.number));
        }
    }
    for node in cluster.nodes() {
        node.wait_for_log("a key is accepted no more");
    }
    let newcomer = || {
        let mut puppet = Puppet::on(cluster.node(3));
        puppet.must("msgget 0x55 011600");
        puppet.must("remove");
    };
    newcomer();
    near.must("send 9 once");
    assert_eq!(waiting.answer(), Ok("9 once".into()));
    assert_eq!(near.must("count"), "0", "it came once");
    for node in cluster.nodes() {
        assert!(!node.log().contains("op=\"lost\""), "nobody was lost: {}", node.log());
    }
    // Whoever has only the key that was dropped is a stranger now.
    let mut stream = stranger::dial(cluster.node(2));
    stranger::begin_with(&mut stream, &stranger::SECRET);
    stranger::is_closed(stream, "the old key");
    cluster.node(2).wait_for_log("wrong key");
}

/// The line of a node with its key behind it.
fn keyed_line(node: &Node, key: &Path) -> String {
    format!("{} {}", node.address.ip(), key.display())
}

fn public_key(node: &Node) -> PathBuf {
    node.directory().join("lib/node.pub")
}

#[test]
fn nodes_prove_their_own_keys_where_the_list_names_them() {
    let cluster = patient(Cluster::of(2)).option("-s").start();
    let [referee, node] = [1, 2].map(|number| cluster.node(number));
    let (mut near, mut far) = remote_queue(referee, node, "0x56");
    let keyed: Vec<String> =
        cluster.nodes().iter().map(|node| keyed_line(node, &public_key(node))).collect();
    // Both read it; between the two readings they do not agree, and link again after the second.
    allow(&cluster, &keyed, referee);
    allow(&cluster, &keyed, node);
    far.must("send 1 keyed");
    assert_eq!(near.must("receive 1"), "1 keyed");
    // A key that is not the node's: it stays outside, whatever else it can show.
    let stolen = cluster.directory().join("other.pub");
    fs::write(&stolen, "ab".repeat(32)).expect("the directory is ours");
    let wrong = [keyed_line(referee, &public_key(referee)), keyed_line(node, &stolen)];
    allow(&cluster, &wrong, referee);
    referee.wait_for_log("it does not prove the node key that dipc.allow names");
    let linked = node.log().matches("op=\"linked\"").count();
    allow(&cluster, &keyed, referee);
    wait_until("it links again", || {
        (node.log().matches("op=\"linked\"").count() > linked).then_some(())
    });
    far.must("send 1 again");
    assert_eq!(near.must("receive 1"), "1 again");
}
