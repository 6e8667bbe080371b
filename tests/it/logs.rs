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

/// Page 2 of a segment, from the fault of one program to the grant, and back when it is wanted.
#[test]
fn the_journey_of_a_page_can_be_read() {
    let cluster = Cluster::of(2).option("-v").start();
    let (mut home, mut away) =
        (Puppet::of_pages(cluster.node(1)), Puppet::of_pages(cluster.node(2)));
    home.must("shmget 78 16384 011600");
    away.must("shmget 78 0 010600");
    home.must("attach 0");
    away.must("attach 0");
    home.must("poke 8192 5");
    away.must("poke 8192 6");
    // It says so when the program goes on already.
    cluster.node(1).wait_for_log(", frame: Ack {");
    assert_eq!(home.must("peek 8192"), "6");
    // The last that is said of it, when the program goes on already.
    cluster.node(2).wait_for_log("frame: Confirm { page: PageNo(2)");
    let away: &[&[&str]] = &[
        &["back_end.rs", "op=\"call\"", "Get {", "kind: Segment", "key: Key(78)"],
        &["segment.rs", "op=\"page\"", "replica=1", "Fault { page: PageNo(2), access: Write"],
        &["links.rs", "op=\"send\"", "frame: Fault { first: PageNo(2)", "raw_bytes=0"],
        &["link.rs", "op=\"received\"", "Grant { access: Write", "PageNo(2)", "raw_bytes=4096"],
        &["segment.rs", "op=\"page\"", "Grant {", "Fill { page: PageNo(2)"],
        &["links.rs", "op=\"send\"", "frame: Ack { pages: [(PageNo(2)"],
        &["link.rs", "op=\"received\"", "frame: Recall { page: PageNo(2)", "wanted: Read"],
        &["segment.rs", "op=\"page\"", "Recall {", "Protect(Run { first: PageNo(2)"],
        &["links.rs", "op=\"send\"", "frame: Recalled {", "PageNo(2)", "raw_bytes=4096"],
        &["link.rs", "op=\"received\"", "frame: Confirm { page: PageNo(2)"],
    ];
    assert_in_order(&traces(cluster.node(2)), away);
    let home: &[&[&str]] = &[
        &["link.rs", "op=\"received\"", "from=2", "frame: Fault { first: PageNo(2)"],
        &["segment.rs", "op=\"page\"", "at=\"home\"", "Fault {", "Record { page: PageNo(2)"],
        &["links.rs", "op=\"send\"", "Grant { access: Write", "PageNo(2)"],
        &["link.rs", "op=\"received\"", "frame: Ack { pages: [(PageNo(2)"],
        &["segment.rs", "op=\"page\"", "at=\"home\"", "Fault { page: PageNo(2), access: Read"],
        &["links.rs", "op=\"send\"", "frame: Recall { page: PageNo(2)"],
        &["link.rs", "op=\"received\"", "frame: Recalled {", "PageNo(2)"],
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
