//! What an administrator has a running dipcd do: dipcctl, a node forgotten, another referee; and
//! what dipcd does besides when its configuration says so: metrics, and a mailbox server.
#![forbid(unsafe_code)]

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::time::Duration;

use dipc_tests::node::DAEMON;
use dipc_tests::process::{PATIENCE, wait_until};
use dipc_tests::skip::needs_root;
use dipc_tests::{Cluster, Node, Output, Puppet, programs};

/// What dipcctl prints when it has done it.
#[track_caller]
fn ctl(node: &Node, words: &[&str]) -> String {
    node.ask("dipcctl", words)
}

#[track_caller]
fn refused(output: &Output, why: &str) {
    let expected = format!("dipcctl: {why}\n");
    assert_eq!((output.status.code(), output.err.as_str()), (Some(1), expected.as_str()));
}

/// Every entry that a reload may change, with another value than its own.
const RELOADABLE: &[(&str, &str)] = &[
    ("inhibit_shm_signal", "no"),
    ("employer_referee_timeout", "11.5"),
    ("employer_shm_timeout", "7"),
    ("employer_worker_timeout", "3"),
    ("shm_ak_timeout", "0"),
    ("shm_hold_timeout", "0.5"),
    ("allow_file", "@allow"),
    ("cluster_key", "@key"),
    ("cluster_key_next", "@next"),
    ("keys", "0x28,0x1000-0x1fff"),
    ("ftok", "path"),
    ("shm_noreserve", "local"),
    ("home", "referee"),
    ("send", "pipelined:0x28"),
    ("queue_on_loss", "drop"),
    ("root", "10.0.0.1, 10.0.0.2"),
    ("squash", "nobody"),
    ("container_identity", "user:nobody"),
    ("user_clients_max", "77"),
    ("user_objects_max", "78"),
    ("user_segment_bytes_max", "79K"),
    ("lost_page", "stale"),
];

/// Every other entry, with a good value that dipcd must be started for.
const AT_START: &[(&str, &str)] = &[
    ("this_machine", "127.0.0.9"),
    ("referee", "127.0.0.9"),
    ("transfer_mode", "segment"),
    ("dipc_page_size", "8192"),
    ("referee_timeout", "5"),
    ("port", "4751"),
    ("socket", "/tmp/other.sock"),
    ("socket_mode", "0600"),
    ("socket_group", "daemon"),
    ("state_dir", "/tmp/other"),
    ("lib_dir", "/tmp/other"),
    ("cipher", "none"),
    ("node_timeout", "6"),
    ("lease", "2"),
    ("heartbeat", "0.4"),
    ("identity", "uid"),
    ("trap", "mprotect"),
    ("kernel_faults", "nobody"),
    ("metrics", "/tmp/metrics"),
    ("mailbox", "8 64 7777 4"),
];

#[test]
fn set_changes_every_entry_that_may_change() {
    let cluster = Cluster::start(1);
    let (node, top) = (cluster.node(1), cluster.directory());
    let file = |name: &str| top.join(name).to_string_lossy().into_owned();
    for name in ["key", "next"] {
        let made = Command::new(programs::dipcd()).arg("--make-key").arg(file(name)).status();
        assert!(made.expect("dipcd starts").success());
    }
    fs::copy(top.join("dipc.allow"), top.join("allow")).unwrap();
    let before = ctl(node, &["get"]);
    let names: Vec<_> = before.lines().filter_map(|line| line.split_once(" = ")).collect();
    for (name, value) in &names {
        let known = |(entry, _): &&(&str, &str)| entry == name;
        if let Some((_, value)) = RELOADABLE.iter().find(known) {
            let value = value.strip_prefix('@').map_or((*value).to_owned(), file);
            let output = node.tool("dipcctl", &["set", name, &value]);
            if *name == "send" {
                assert!(output.err.contains("send: not available in this version"), "{output:?}");
                continue;
            }
            output.expect_success();
            assert_eq!(ctl(node, &["get", name]), format!("{value}\n"), "{name}");
        } else {
            let (_, other) = AT_START.iter().find(known).expect("the entry is in a table");
            let output = node.tool("dipcctl", &["set", name, other]);
            // The port of addresses that name none, which none here does, is no change.
            let said = if *name == "port" { "" } else { "cannot change while dipcd runs" };
            assert!(output.err.contains(said), "{name}: {}", output.err);
            assert_eq!(ctl(node, &["get", name]), format!("{value}\n"), "{name}");
        }
    }
    assert_eq!(names.len(), RELOADABLE.len() + AT_START.len());
    let policy = fs::read_to_string(format!("{}.policy", node.socket().display())).unwrap();
    assert!(policy.starts_with("keys = 0x28,0x1000-0x1fff\nftok = path\n"), "{policy}");
    // Programs that start now go by it, and a reload takes everything back.
    assert_eq!(Puppet::on(node).must("msgget 40 1600").len(), 10, "a distributed id");
    ctl(node, &["reload"]);
    assert_eq!(ctl(node, &["get"]), before);
}

#[test]
fn a_wrong_order_is_refused_with_its_reason() {
    let cluster = Cluster::start(2);
    let node = cluster.node(1);
    node.wait_for_log("op=\"linked\" peer=2");
    cluster.node(2).wait_for_log("op=\"admitted\"");
    for (words, why) in [
        (&["set", "lost_page", "x"][..], "lost_page: expected sigbus or stale, found \"x\""),
        (&["set", "none", "x"], "\"none\": no such entry"),
        (&["set", "keys", "all # no"], "keys: a value is one line without comment"),
        (&["get", "none"], "none: no such entry"),
        (&["forget", "7"], "no node has the number 7"),
        (&["forget", "1"], "node 1 is the referee itself"),
        (&["forget", "2"], "node 2 is linked; stop its dipcd first"),
        (&["become-referee"], "this node is the referee"),
        (&["status", "9"], "no answer in time"),
        (&["dance"], "no command is called dance; see dipcctl --help"),
    ] {
        refused(&node.tool("dipcctl", words), why);
    }
    let address = node.address;
    let why = format!("only the referee forgets nodes; it is node 1 at {address}");
    refused(&cluster.node(2).tool("dipcctl", &["forget", "1"]), &why);
    let why = format!("the referee at {address} was heard of less than node_timeout ago");
    refused(&cluster.node(2).tool("dipcctl", &["become-referee"]), &why);
    let output = node.tool("dipcctl", &["set", "allow_file", "/etc/passwd"]);
    refused(&output, "allow_file: its file cannot be used; dipcd's log says why");
    assert!(!output.err.contains("root:"), "what is in a file is not shown: {}", output.err);

    fs::write(node.config(), "this_machine = here and there\n").unwrap();
    let output = node.tool("dipcctl", &["reload"]);
    assert!(output.err.contains("dipc.conf:1: this_machine: expected address"), "{}", output.err);
    assert!(ctl(node, &["status"]).contains("\nlinks 1\n"), "nothing has changed");
}

#[test]
fn orders_are_for_root_and_the_group_alone() {
    if needs_root("orders_are_for_root_and_the_group_alone") {
        return;
    }
    for (group, may) in [("bin", false), ("daemon", true)] {
        let cluster = Cluster::of(1).entry("socket_group", group).start();
        let program = cluster.install(&programs::tool("dipcctl"));
        let run = |words: &[&str]| cluster.node(1).spawn_as(DAEMON, &program, words).wait();
        run(&["status"]).expect_success();
        run(&["get", "keys"]).expect_success();
        for words in [
            &["set", "keys", "all"][..],
            &["reload"],
            &["trace", "on"],
            &["forget", "2"],
            &["become-referee"],
        ] {
            let output = run(words);
            let denied = output.err == "dipcctl: permission denied\n";
            assert_eq!(denied, !may, "{words:?} by {group}: {}", output.err);
        }
        let keys = ctl(cluster.node(1), &["get", "keys"]);
        assert_eq!(keys, "none\n", "never changed, or as in the file again");
    }
}

#[test]
fn status_and_peers_say_what_is() {
    let cluster = Cluster::start(2);
    let mut puppet = Puppet::on(cluster.node(2));
    puppet.must("msgget 40 11600");
    let status = ctl(cluster.node(1), &["status", "2"]);
    for line in ["node 2", "referee 1", "trace off", "queues 1", "links 1"] {
        assert!(status.lines().any(|found| found == line), "{line}: {status}");
    }
    let json = ctl(cluster.node(1), &["status", "--json"]);
    assert!(json.starts_with("{\"node\":1,\"address\":\"") && json.ends_with("]}\n"), "{json}");
    let peers = ctl(cluster.node(2), &["peers"]);
    let words = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    let lines: Vec<_> = peers.lines().map(words).collect();
    assert_eq!(lines[1][..4], ["1", &cluster.node(1).address.to_string(), "linked", "referee"]);
    assert_eq!(lines[2][..4], ["2", &cluster.node(2).address.to_string(), "here", "member"]);
}

#[test]
fn trace_lines_begin_and_end() {
    let cluster = Cluster::start(1);
    let node = cluster.node(1);
    let traced = || node.log().lines().filter(|line| line.contains("op=\"call\"")).count();
    ctl(node, &["status"]);
    assert_eq!(traced(), 0, "{}", node.log());
    ctl(node, &["trace", "on"]);
    assert!(ctl(node, &["status"]).contains("\ntrace on\n"));
    wait_until("a trace line", || (traced() > 0).then_some(()));
    assert!(node.log().lines().any(|line| line.starts_with('[') && line.contains("]{0:00:")));
    ctl(node, &["trace", "off"]);
    // The order itself is traced until it is obeyed; what follows is not.
    let before = traced();
    ctl(node, &["status"]);
    assert!(traced() <= before + 1, "{}", node.log());
    assert!(ctl(node, &["status"]).contains("\ntrace off\n"));
}

#[test]
fn a_node_that_is_forgotten_is_gone_at_once() {
    let cluster = Cluster::of(3).entry("node_timeout", "600").entry("lease", "30").start();
    let (mut here, mut there) = (Puppet::on(cluster.node(2)), Puppet::on(cluster.node(3)));
    let mut referees = Puppet::on(cluster.node(1));
    there.must("msgget 40 11666");
    for puppet in [&mut here, &mut referees] {
        puppet.must("msgget 40 10666");
        puppet.begin("receive 0");
        puppet.until_waiting();
    }
    drop(there);
    cluster.node(3).kill_everything();
    wait_until("the link to node 3 is down", || {
        let peers = ctl(cluster.node(1), &["peers"]);
        peers.lines().any(|line| line.starts_with("3 ") && line.contains("silent")).then_some(())
    });
    let said = ctl(cluster.node(1), &["forget", "3"]);
    assert_eq!(said, format!("node 3 at {} is forgotten\n", cluster.node(3).address));
    for puppet in [&mut here, &mut referees] {
        assert_eq!(puppet.answer(), Err("EIDRM".into()), "long before node_timeout");
    }
    wait_until("node 2 hears of it", || {
        let peers = ctl(cluster.node(2), &["peers"]);
        peers.lines().all(|line| !line.starts_with("3 ")).then_some(())
    });
    here.must("msgget 40 11666");
    // It comes back as a new node, under the number that is free.
    cluster.node(3).start();
    let mut there = Puppet::on(cluster.node(3));
    there.must("msgget 40 10666");
    there.must("send 1 again");
    here.must("receive 0");
}

#[test]
fn another_node_becomes_the_referee() {
    let cluster = Cluster::of(3)
        .entry("node_timeout", "8")
        .entry("lease", "5")
        .entry("heartbeat", "0.2")
        .start();
    let old = cluster.node(1).address;
    let (mut two, mut three) = (Puppet::on(cluster.node(2)), Puppet::on(cluster.node(3)));
    let before = two.must("msgget 40 11666");
    three.must("msgget 40 10666");
    cluster.node(1).kill_everything();
    let elect = || cluster.node(2).tool("dipcctl", &["become-referee"]);
    let refused = elect();
    assert!(refused.err.contains("was heard of less than node_timeout ago"), "{}", refused.err);
    for number in [2, 3] {
        cluster.node(number).wait_for_log("op=\"lost\" peer=1");
    }
    let said = elect().expect_success();
    assert!(said.starts_with("node 2 is the referee of reign "), "{said}");

    // What was there is there, and new names are given, of new ids.
    three.must("send 1 hello");
    two.must("receive 0");
    let after = three.must("semget 41 1 11600");
    assert_ne!(before, after);
    two.must("semget 41 1 10600");
    let mut late = Puppet::on(cluster.node(3));
    assert_eq!(late.must("msgget 40 10666"), before);
    let peers = ctl(cluster.node(3), &["peers"]);
    assert!(
        peers.lines().any(|line| line.starts_with("2 ") && line.contains(" referee ")),
        "{peers}"
    );

    // It holds over restarts, of the new referee too, and against the old one.
    for number in [2, 3] {
        cluster.node(number).kill_and_restart();
    }
    cluster.node(3).wait_for_log("dipc.conf names a referee that was replaced");
    assert_eq!(late.must("msgget 40 10666"), before);
    cluster.node(1).start();
    cluster.node(1).wait_for_log("refused: referee: here");
    late.must("msgget 42 11600");
    Puppet::on(cluster.node(2)).must("msgget 42 10600");
    cluster.node(1).stop();

    agree(&cluster, old);
    assert_eq!(late.must("msgget 40 10666"), before);
    ctl(cluster.node(2), &["forget", "1"]);
}

/// Every dipc.conf names the new referee: then nothing is left of the succession.
fn agree(cluster: &Cluster, old: SocketAddr) {
    let new = cluster.node(2).address;
    for node in &cluster.nodes()[1..] {
        let text = fs::read_to_string(node.config()).expect("the node's configuration");
        let text = text.replace(&format!("referee = {old}"), &format!("referee = {new}"));
        fs::write(node.config(), text).expect("the node's configuration");
        let kept = node.directory().join("lib/succession");
        assert!(kept.exists(), "it is kept until then");
        ctl(node, &["reload"]);
        assert!(!kept.exists(), "it has served its turn");
        assert_eq!(ctl(node, &["get", "referee"]), format!("{new}\n"));
    }
}

#[test]
fn a_referee_that_others_hear_is_not_replaced() {
    let cluster =
        Cluster::of(4).entry("node_timeout", "5").entry("lease", "3").entry("heartbeat", "0.2");
    let Some(cluster) = cluster.start_with_network() else {
        dipc_tests::skip::skip(
            "a_referee_that_others_hear_is_not_replaced",
            "needs root and ip(8)",
        );
        return;
    };
    for peer in [1, 3, 4] {
        cluster.node(2).wait_for_log(&format!("op=\"linked\" peer={peer}"));
    }
    // On a busy machine it may have been silent before.
    let lost = |peer| cluster.node(2).log().matches(&format!("op=\"lost\" peer={peer}")).count();
    let before = [0, 1, 2, 3, 4].map(lost);
    let is_lost = |peer: usize| (lost(peer) > before[peer]).then_some(());
    cluster.cut(1, 2);
    wait_until("the referee is lost to node 2", || is_lost(1));
    let output = cluster.node(2).tool("dipcctl", &["become-referee"]);
    assert!(output.err.ends_with("still hears the referee\n"), "{}", output.err);
    // Nor by who reaches too few: alone it could be one of two.
    cluster.cut(2, 3);
    cluster.cut(2, 4);
    for peer in [3, 4] {
        wait_until("it is lost to node 2", || is_lost(peer));
    }
    let output = cluster.node(2).tool("dipcctl", &["become-referee"]);
    let why = "0 of 2 other nodes agree, more than half must; no answer from 3, 4";
    refused(&output, why);
    for peer in [1, 3, 4] {
        cluster.heal(2, peer);
    }
    Puppet::on(cluster.node(2)).must("msgget 40 11600");
}

/// One request of HTTP, and all that comes back.
fn get(mut stream: impl Read + Write, line: &str) -> std::io::Result<String> {
    write!(stream, "{line}\r\nHost: here\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

#[test]
fn metrics_are_read_over_http_at_an_address_and_at_a_path() {
    for by_path in [false, true] {
        let cluster = Cluster::of(1).prepare();
        let node = cluster.node(1);
        // Nobody else has this address.
        let address = SocketAddr::new(node.address.ip(), 7_780);
        let path = cluster.directory().join("metrics");
        let place = if by_path { path.display().to_string() } else { address.to_string() };
        node.set_entry("metrics", Some(&place));
        node.start();
        Puppet::on(node).must("msgget 40 11600");
        let try_ask = |line: &str| match by_path {
            true => get(UnixStream::connect(&path).unwrap(), line),
            false => get(TcpStream::connect(address).unwrap(), line),
        };
        let ask = |line: &str| try_ask(line).unwrap();
        // What is too long is cut off, with or without a word, and the next one is served.
        let endless = try_ask(&"x".repeat(1 << 20));
        assert!(endless.is_err() || endless.is_ok_and(|said| said.starts_with("HTTP/1.1 400 ")));
        let answer = ask("GET /metrics HTTP/1.1");
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
        for line in ["# TYPE dipc_queues gauge", "dipc_queues 1", "dipc_objects_made_total 1"] {
            assert!(answer.lines().any(|found| found == line), "{line}: {answer}");
        }
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        assert!(head.contains(&format!("Content-Length: {}\r\n", body.len())), "{head}");
        assert!(ask("GET /else HTTP/1.1").starts_with("HTTP/1.1 404 "));
        assert!(ask("POST / HTTP/1.1").starts_with("HTTP/1.1 405 "));
        assert!(ask("\u{1}\u{2}").starts_with("HTTP/1.1 405 "));
        assert_eq!(body.lines().filter(|line| !line.starts_with('#')).count(), numbers(node));
        assert!(node.stop().success());
        assert!(!path.exists(), "the socket goes with dipcd");
    }
}

/// How many numbers dipcctl shows.
fn numbers(node: &Node) -> usize {
    ctl(node, &["status"]).lines().skip_while(|line| !line.starts_with("trace")).count() - 1
}

/// A port that nobody listens on, and none of those that the kernel gives to clients: one of these
/// could take it before the server does.
fn free_port() -> u16 {
    const FIRST: u32 = 10_000;
    let own = FIRST + std::process::id() % 2_000;
    let mut ports = (own..own + 1_000).map(|port| u16::try_from(port).expect("below 13,000"));
    let free = ports.find(|port| TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).is_ok());
    free.expect("one of a thousand ports is free")
}

/// A conversation with a mailbox server that has just been started.
fn mailbox(port: u16, said: &str) -> Option<String> {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(10))).expect("a time-out");
    stream.write_all(said.as_bytes()).ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    Some(answer)
}

#[test]
fn dipcd_hosts_the_mailbox_server() {
    let port = free_port();
    let cluster = Cluster::of(1).entry("mailbox", &format!("4 16 {port} 4")).start();
    let node = cluster.node(1);
    let talk = |said| wait_until("the mailbox server answers", || mailbox(port, said));
    assert_eq!(talk("w 2 5\nhellor 2 9\nq\n"), "ok 5\nok 5\nhello");
    assert_eq!(talk("r 5\nq\n"), "error: the mailboxes are 1 to 4\n");
    // Killed, it is started again; told to end, it ends with dipcd.
    let server = server_of(node);
    rustix::process::kill_process(server, rustix::process::Signal::KILL).unwrap();
    node.wait_for_log("started again");
    assert_eq!(talk("w 1 2\nhir 1 9\nq\n"), "ok 2\nok 2\nhi");
    assert!(node.stop().success());
    assert!(mailbox(port, "q\n").is_none(), "nobody listens any more");
    let left = node.machine().run(Command::new("ipcs")).expect_success();
    assert!(!left.contains("0x6469"), "{left}");

    // However dipcd ends, the server does.
    node.start();
    talk("q\n");
    let server = server_of(node);
    node.kill();
    assert!(dipc_tests::process::wait_for_end(server, PATIENCE));
    node.start();
    talk("q\n");
}

/// The mailbox server that a node's dipcd has started.
fn server_of(node: &Node) -> rustix::process::Pid {
    wait_until("dipcd has a mailbox server", || {
        let parent = node.dipcd_pid().cast_signed();
        let all = dipc_tests::process::marked(node.directory()).into_iter();
        let mut children = all.filter(|pid| dipc_tests::process::parent_of(*pid) == parent);
        children.find(|pid| {
            let line = fs::read(format!("/proc/{}/cmdline", pid.as_raw_nonzero()));
            line.unwrap_or_default().windows(13).any(|word| word == b"--foreground\0")
        })
    })
}

#[test]
fn a_mailbox_server_that_cannot_be_is_given_up() {
    let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    let port = taken.local_addr().unwrap().port();
    let cluster = Cluster::of(1).entry("mailbox", &format!("4 16 {port} 4")).start();
    let node = cluster.node(1);
    node.wait_for_log("given up");
    assert!(node.log().matches("Address already in use").count() > 1, "{}", node.log());
    Puppet::on(node).must("msgget 40 11600");
}
