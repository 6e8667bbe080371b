//! The lines of `-v`, `-c` and `-d`, in the form of the original: from them one can read how a
//! message got from a program to the queue on another node, and what was converted on its way.
#![forbid(unsafe_code)]

use dipc_tests::{Cluster, Node, Puppet};

/// The lines of a node in the original's form, without task, line number and time.
fn traces(node: &Node) -> Vec<String> {
    node.log().lines().filter_map(trace).collect()
}

/// `[<task>@<file>:<line>]{<hours>:<minutes>:<seconds>:<hundredths>} text` as `<file> text`.
fn trace(line: &str) -> Option<String> {
    let (place, rest) = line.strip_prefix('[')?.split_once("]{")?;
    let (time, text) = rest.split_once("} ")?;
    let (task, place) = place.split_once('@')?;
    let (file, at) = place.split_once(':')?;
    let is_number = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    let clock: Vec<&str> = time.split(':').collect();
    let in_form = is_number(task) && is_number(at) && clock.len() == 4;
    assert!(in_form && clock.into_iter().all(is_number), "{line:?}");
    Some(format!("{file} {text}"))
}

/// Whether there are lines that hold these words, in this order.
#[track_caller]
fn assert_in_order(lines: &[String], steps: &[&[&str]]) {
    let mut rest = lines.iter();
    for step in steps {
        let found = rest.any(|line| step.iter().all(|word| line.contains(word)));
        assert!(found, "no line (in its place) with {step:?}:\n{}", lines.join("\n"));
    }
}

/// A cluster with these options after one message went from node 2 to node 1, where its queue is.
fn after_a_message(options: &str) -> Cluster {
    let cluster = Cluster::of(2).option(options).start();
    let (mut home, mut away) = (Puppet::on(cluster.node(1)), Puppet::on(cluster.node(2)));
    home.must("msgget 77 011600");
    away.must("msgget 77 010600");
    away.must("send 5 words");
    assert_eq!(home.must("receive 0"), "5 words");
    cluster
}

#[test]
fn the_journey_of_a_message_can_be_read() {
    let cluster = after_a_message("-v");
    let away: &[&[&str]] = &[
        &["links.rs", "op=\"send\"", "Claim {", "key: Key(77)"],
        &["link.rs", "op=\"received\"", "from=1", "Found {", "home: NodeId(1)"],
        &["links.rs", "op=\"send\"", "Ask {"],
        &["link.rs", "op=\"received\"", "Asked {", "Granted"],
        &["back_end.rs", "op=\"call\"", "Get {", "key: Key(77)", "There { home: NodeId(1) }"],
        &["links.rs", "op=\"send\"", "Ticket {", "secret: Secret(..)"],
        &["link.rs", "op=\"received\"", "Ticketed {"],
        &["back_end.rs", "op=\"call\"", "OpenWire { home: NodeId(1)"],
    ];
    assert_in_order(&traces(cluster.node(2)), away);
    let home: &[&[&str]] = &[
        &["link.rs", "op=\"received\"", "from=2", "Claim {", "key: Key(77)"],
        &["link.rs", "op=\"received\"", "from=2", "Ticket {"],
        &["worker.rs", "op=\"request\"", "MsgSend {", "mtype: 5", "raw_bytes=5"],
        &["worker.rs", "op=\"reply\"", "Done(0)"],
    ];
    assert_in_order(&traces(cluster.node(1)), home);
}

#[test]
fn what_is_converted_is_said_and_shown() {
    let cluster = after_a_message("-ncd");
    let out = "op=\"to the order of the network\"";
    let back = "op=\"to the order of this machine\"";
    let (home, away) = (traces(cluster.node(1)), traces(cluster.node(2)));
    assert_in_order(&away, &[&[out, "what=\"Claim\""], &[back, "what=\"Claimed\""]]);
    assert_in_order(&away, &[&[out, "value=Claim {", "key: Key(77)"]]);
    assert_in_order(&home, &[&[back, "what=\"Do\"", "raw_bytes=5"], &[out, "what=\"Reply\""]]);
    assert_in_order(&home, &[&[back, "value=Do {", "MsgSend {", "mtype: 5"]]);
    let all = [home, away].concat();
    assert!(all.iter().all(|line| line.starts_with("conversion.rs")), "-v was not given");
}

#[test]
fn nothing_is_converted_where_nothing_must_be() {
    let cluster = after_a_message("-cd");
    for node in cluster.nodes() {
        assert_eq!(traces(node), [""; 0], "node {}", node.number);
    }
}

#[test]
fn without_these_options_there_is_none_of_it() {
    let cluster = after_a_message("-n");
    for node in cluster.nodes() {
        assert_eq!(traces(node), [""; 0], "node {}", node.number);
    }
}
