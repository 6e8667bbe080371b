//! The tools that look and remove: dipcs, dipcrm, dipcrun; what they print, what they refuse, and
//! what they say of a node that does not answer.
#![forbid(unsafe_code)]

use dipc_tests::node::{BIN, DAEMON};
use dipc_tests::process::wait_until;
use dipc_tests::skip::needs_root;
use dipc_tests::{Cluster, Output, Puppet, User, programs};

/// Nodes that nobody declares lost, however long they are silent.
const PATIENT: [(&str, &str); 2] = [("node_timeout", "600"), ("lease", "300")];

fn patient(nodes: usize) -> Cluster {
    let builder = Cluster::of(nodes);
    PATIENT.iter().fold(builder, |builder, (name, value)| builder.entry(name, value)).start()
}

/// The line of dipcs in which an id stands.
#[track_caller]
fn row(out: &str, id: &str) -> String {
    let found = out.lines().find(|line| line.split_whitespace().nth(1) == Some(id));
    let line = found.unwrap_or_else(|| panic!("no row of {id}: {out}"));
    line.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// A tool as another user, who needs a copy that he may run.
fn tool_as(cluster: &Cluster, number: usize, user: User, words: &[&str]) -> Output {
    let program = cluster.install(&programs::tool(words[0]));
    cluster.node(number).spawn_as(user, program, &words[1..]).wait()
}

#[track_caller]
fn refused(output: &Output, line: &str) {
    assert_eq!(
        (output.status.code(), output.err.as_str()),
        (Some(1), format!("{line}\n").as_str())
    );
}

#[test]
fn dipcs_shows_what_lives_on_every_node() {
    let cluster = Cluster::start(3);
    let (mut here, mut there) = (Puppet::on(cluster.node(1)), Puppet::on(cluster.node(2)));
    let queue = here.must("msgget 40 11640");
    let set = there.must("semget 41 3 11600");
    there.must("msgget 40 10640");
    there.must("send 1 hello");
    here.must("semget 41 3 10600");
    here.must("op 2 5");
    let users = format!("1:{} 2:{}", here.process().pid(), there.process().pid());
    for node in cluster.nodes() {
        let out = node.ask("dipcs", &[]);
        let (_, sender) = users.split_once(' ').unwrap();
        assert_eq!(row(&out, &queue), format!("0x00000028 {queue} {} 640 5 1 1 {sender}", me()));
        assert_eq!(
            row(&out, &set),
            format!("0x00000029 {set} {} 600 3 2 1:{}", me(), here.process().pid())
        );
        assert!(!out.contains("Nodes"), "{out}");
    }
    here.must("receive 0");
    let out = cluster.node(3).ask("dipcs", &["-q", "-v"]);
    let line = row(&out, &queue);
    assert!(line.ends_with(&users[..]) || line.ends_with(&reversed(&users)), "{line}");
    assert!(!out.contains("Semaphore Arrays"), "{out}");

    let out = cluster.node(3).ask("dipcs", &["-n"]);
    let roles: Vec<_> =
        out.lines().skip(3).map(|line| line.split_whitespace().collect::<Vec<_>>()).collect();
    let of = |number: usize| {
        roles.iter().find(|words| words.first() == Some(&number.to_string().as_str()))
    };
    assert_eq!(of(1).unwrap()[2..5], ["linked", "referee", "1"], "{out}");
    assert_eq!(of(2).unwrap()[2..7], ["linked", "member", "0", "0", "1"], "{out}");
    assert_eq!(of(3).unwrap()[2], "here", "{out}");
}

fn reversed(users: &str) -> String {
    users.split(' ').rev().collect::<Vec<_>>().join(" ")
}

/// The login name under which these tests run.
fn me() -> String {
    let uid = rustix::process::geteuid().as_raw();
    let passwd = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    let name = passwd.lines().find_map(|line| {
        let mut words = line.split(':');
        let name = words.next()?;
        (words.nth(1)? == uid.to_string()).then(|| name.to_owned())
    });
    name.unwrap_or(uid.to_string())
}

#[test]
fn dipcs_has_the_columns_of_ipcs() {
    let cluster = Cluster::start(1);
    let ours = cluster.node(1).ask("dipcs", &[]);
    let theirs = std::process::Command::new("ipcs").output().expect("ipcs is there");
    let theirs = String::from_utf8(theirs.stdout).expect("it prints text");
    for line in theirs.lines().filter(|line| line.starts_with("---") || line.starts_with("key")) {
        let found = ours.lines().any(|own| own.starts_with(line.trim_end()));
        assert!(found, "{line:?} is not in {ours}");
    }
}

#[test]
fn one_object_is_shown_whole_to_who_may_read_it() {
    let cluster = Cluster::start(2);
    let mut puppet = Puppet::on(cluster.node(1));
    let set = puppet.must("semget 41 2 11600");
    puppet.must("op 1 7");
    let waiter = {
        let mut waiter = Puppet::on(cluster.node(2));
        waiter.must("semget 41 2 10600");
        waiter.begin("op 0 -1");
        wait_until("it waits", || (puppet.must("waiters 0") == "1").then_some(()));
        waiter
    };
    let out = cluster.node(2).ask("dipcs", &["-s", "-i", &set]);
    assert!(
        out.contains(&format!("Semaphore Array semid={set}\nkey=0x00000029\thome=1\n")),
        "{out}"
    );
    assert!(out.contains("nsems=2\n") && out.contains("access_perms=0600"), "{out}");
    assert!(
        out.contains(&format!(
            "1          7          0          0          1:{}",
            puppet.process().pid()
        )),
        "{out}"
    );
    assert!(out.contains("0          0          1          0          0\n"), "{out}");
    drop(waiter);
    if !needs_root("one_object_is_shown_whole_to_who_may_read_it") {
        let other = tool_as(&cluster, 2, DAEMON, &["dipcs", "-i", &set]).expect_success();
        assert!(
            other.contains("nsems=2\n") && other.contains("semaphores: permission denied"),
            "{other}"
        );
        let other = tool_as(&cluster, 2, DAEMON, &["dipcs", "-s"]).expect_success();
        assert!(row(&other, &set).ends_with("2 1 -"), "its users are not shown: {other}");
    }
    let unknown = cluster.node(1).tool("dipcs", &["-i", "5"]);
    refused(&unknown, "dipcs: id 5 not found");
    let bad = cluster.node(1).tool("dipcs", &["-i", "x"]);
    refused(&bad, "dipcs: invalid id (x); see dipcs --help");
}

#[test]
fn a_segment_is_shown_with_who_has_it_and_removed_with_its_last_detach() {
    let cluster = Cluster::start(3);
    let (one, two) = (cluster.node(1), cluster.node(2));
    let (mut here, mut there) = (Puppet::of_pages(one), Puppet::of_pages(two));
    let id = here.must("shmget 42 5000 013640");
    here.must("attach 0");
    there.must("shmget 42 0 010000");
    for _ in 0..2 {
        there.must("attach 0");
    }
    let look = || cluster.node(3).ask("dipcs", &["-m"]);
    assert_eq!(row(&look(), &id), format!("0x0000002a {id} {} 640 5000 3 1 1=1 2=2", me()));
    let out = cluster.node(3).ask("dipcs", &["-i", &id]);
    for line in ["bytes=5000\tnattch=3\tstatus=", "attached=2\tnode=2"] {
        assert!(out.lines().any(|found| found == line), "{line}: {out}");
    }
    cluster.node(3).tool("dipcrm", &["-M", "42"]).expect_success();
    let gone = cluster.node(3).tool("dipcrm", &["-M", "42"]);
    refused(&gone, "dipcrm: invalid key (42)");
    let dead = format!("0x00000000 {id} {} 640 5000 3 dest 1 1=1 2=2", me());
    assert_eq!(row(&look(), &id), dead, "it stays until its last detach");
    here.must("detach");
    drop((here, there));
    wait_until("it is deleted", || (!look().contains(&id)).then_some(()));
    let gone = cluster.node(2).tool("dipcrm", &["-m", &id]);
    refused(&gone, &format!("dipcrm: invalid id ({id})"));
}

#[test]
fn json_says_the_same_and_who_did_not_answer() {
    let cluster = patient(2);
    let mut puppet = Puppet::on(cluster.node(2));
    let queue = puppet.must("msgget 40 11600");
    let out = cluster.node(1).ask("dipcs", &["--json"]);
    let start = format!(
        "{{\"kind\":\"queue\",\"id\":{queue},\"key\":40,\"home\":2,\"state\":{{\"owner\":\"{}\"",
        me()
    );
    assert!(out.contains(&start) && out.ends_with("],\"unanswered\":[]}\n"), "{out}");
    cluster.node(2).freeze();
    let output = cluster.node(1).tool("dipcs", &["--json"]);
    cluster.node(2).thaw();
    let gone =
        format!("{{\"kind\":\"queue\",\"id\":{queue},\"key\":40,\"home\":2,\"state\":null}}");
    assert!(
        output.out.contains(&gone) && output.out.ends_with("\"unanswered\":[2]}\n"),
        "{}",
        output.out
    );
}

/// What dipcs prints when node 3 alone does not answer.
#[track_caller]
fn without_node_3(cluster: &Cluster, from: usize) -> String {
    let silent = format!("dipcs: node 3 ({}) did not answer\n", cluster.node(3).address);
    wait_until(&silent, || {
        let output = cluster.node(from).tool("dipcs", &["-a"]);
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        // On a busy machine another one may be too late as well.
        (output.err == silent).then_some(output.out)
    })
}

#[test]
fn a_node_that_is_silent_is_named_and_keeps_nobody() {
    let cluster = patient(3);
    let queue = Puppet::on(cluster.node(3)).must("msgget 40 11600");
    cluster.node(3).freeze();
    for from in [1, 2] {
        let out = without_node_3(&cluster, from);
        assert_eq!(row(&out, &queue), format!("0x00000028 {queue} ? ? ? ? 3"), "{out}");
    }
    cluster.node(3).thaw();
}

#[test]
fn a_node_that_is_down_is_named_and_keeps_nobody() {
    let cluster = Cluster::start(3);
    let queue = Puppet::on(cluster.node(3)).must("msgget 40 11600");
    cluster.node(3).kill_everything();
    cluster.node(1).wait_for_log("its keys are free");
    cluster.node(2).wait_for_log("op=\"lost\" peer=3");
    let out = without_node_3(&cluster, 2);
    assert!(!out.contains(&queue), "the referee has declared it lost: {out}");
    assert!(out.contains(" lost "), "{out}");

    // Without the referee everything else is shown.
    let mut here = Puppet::on(cluster.node(2));
    let set = here.must("semget 41 1 11600");
    cluster.node(1).kill_everything();
    let output = cluster.node(2).tool("dipcs", &[]);
    assert!(output.err.contains("dipcs: node 1 ("), "{}", output.err);
    assert_eq!(row(&output.out, &set), format!("0x00000029 {set} {} 600 1 2 -", me()));
}

#[test]
fn a_node_that_was_never_admitted_shows_itself() {
    let cluster = Cluster::of(2).prepare();
    cluster.node(2).start();
    let output = cluster.node(2).tool("dipcs", &["-n"]);
    let referee = cluster.node(1).address;
    refused(&output, &format!("dipcs: the referee ({referee}) did not answer"));
    let line = |contact| output.out.lines().find(|line| line.contains(contact)).unwrap();
    assert!(line(" here ").starts_with("-      "), "{}", output.out);
    assert!(line(" silent ").contains(&referee.to_string()), "{}", output.out);
}

#[test]
fn without_dipcd_the_tools_say_so() {
    let cluster = Cluster::of(1).prepare();
    let socket = cluster.node(1).socket();
    let why = format!(
        "{}: no dipcd can be reached: No such file or directory (os error 2)",
        socket.display()
    );
    refused(&cluster.node(1).tool("dipcs", &[]), &format!("dipcs: {why}"));
    refused(&cluster.node(1).tool("dipcctl", &["status"]), &format!("dipcctl: {why}"));
    refused(
        &cluster.node(1).tool("dipcrm", &["-q", "1073773824"]),
        &format!("dipcrm: id (1073773824): {why}"),
    );
}

#[test]
fn dipcrm_removes_by_id_and_key_wherever_it_is() {
    let cluster = Cluster::start(2);
    let (mut here, mut there) = (Puppet::on(cluster.node(1)), Puppet::on(cluster.node(2)));
    let queue = here.must("msgget 40 11600");
    there.must("msgget 40 10600");
    there.begin("receive 0");
    there.until_waiting();
    let out = cluster.node(2).tool("dipcrm", &["-v", "-q", &queue]).expect_success();
    assert_eq!(out, format!("removing message queue id `{queue}'\n"));
    assert_eq!(there.answer(), Err("EIDRM".into()));
    assert_eq!(there.call("msgget 40 10600"), Err("ENOENT".into()));

    here.must("semget 41 1 11600");
    cluster.node(1).tool("dipcrm", &["-S", "0x29"]).expect_success();
    there.must("semget 42 1 11600");
    cluster.node(1).tool("dipcrm", &["--semaphore-key", "42"]).expect_success();

    let output = cluster.node(1).tool("dipcrm", &["-q", &queue, "-Q", "0x28", "-s", "5"]);
    let expected =
        format!("dipcrm: invalid id ({queue})\ndipcrm: invalid key (0x28)\ndipcrm: invalid id (5)");
    refused(&output, &expected);
    let kind = here.must("semget 43 1 11600");
    refused(
        &cluster.node(2).tool("dipcrm", &["-q", &kind]),
        &format!("dipcrm: invalid id ({kind})"),
    );
    refused(&cluster.node(1).tool("dipcrm", &["-Q", "0"]), "dipcrm: illegal key (0)");
}

#[test]
fn only_who_may_remove_removes() {
    if needs_root("only_who_may_remove_removes") {
        return;
    }
    let cluster = Cluster::start(2);
    let mut owner = Puppet::of(&cluster, 1, DAEMON);
    let queue = owner.must("msgget 40 11666");
    for number in [1, 2] {
        let output = tool_as(&cluster, number, BIN, &["dipcrm", "-q", &queue]);
        refused(&output, &format!("dipcrm: permission denied for id ({queue})"));
        let output = tool_as(&cluster, number, BIN, &["dipcrm", "-Q", "40"]);
        refused(&output, "dipcrm: permission denied for key (40)");
    }
    tool_as(&cluster, 2, DAEMON, &["dipcrm", "-q", &queue]).expect_success();
    // Root of a node that `root` names.
    let queue = owner.must("msgget 40 11600");
    cluster.node(2).tool("dipcrm", &["-q", &queue]).expect_success();
}

#[test]
fn dipcrun_becomes_the_program_under_the_library() {
    let cluster = Cluster::start(2);
    let node = cluster.node(1);
    let run = |arguments: &[&str]| node.tool("dipcrun", arguments);
    let made = run(&["--keys", "all,private", "--strict", "ipcmk", "-Q"]).expect_success();
    let id = made.trim().rsplit(' ').next().expect("ipcmk prints an id").to_owned();
    let out = cluster.node(2).ask("dipcs", &["-q"]);
    assert!(row(&out, &id).contains(" 644 0 0 1 "), "{out}");

    let shown = run(&[
        "--ftok",
        "path",
        "--log",
        "stderr",
        "sh",
        "-c",
        "echo $DIPC_FTOK $DIPC_LOG $LD_PRELOAD",
    ]);
    let library = programs::libdipc();
    assert_eq!(shown.expect_success(), format!("path stderr {}\n", library.display()));

    for (arguments, status, why) in [
        (
            &["no-such-program"][..],
            127,
            "dipcrun: no-such-program: No such file or directory (os error 2)\n",
        ),
        (&["/"], 126, "dipcrun: /: Permission denied (os error 13)\n"),
        (
            &["--library", "/none", "ls"],
            125,
            "dipcrun: /none: No such file or directory (os error 2)\n",
        ),
        (
            &["--keys", "x", "ls"],
            125,
            "dipcrun: --keys: \"x\" is none of none, all, all,private, or keys and ranges such as \
             0x28,0x1000-0x1fff; see dipcrun --help\n",
        ),
        (&["sh", "-c", "exit 9"], 9, ""),
    ] {
        let output = run(arguments);
        assert_eq!((output.status.code(), output.err.as_str()), (Some(status), why));
    }
}

#[test]
fn each_tool_has_its_help_from_its_page() {
    let cluster = Cluster::of(1).prepare();
    for (tool, option) in [
        ("dipcs", "--json"),
        ("dipcctl", "become-referee"),
        ("dipcrun", "--keys"),
        ("dipcrm", "--queue-key"),
    ] {
        let help = cluster.node(1).tool(tool, &["--help"]).expect_success();
        assert!(help.starts_with(&format!("usage: {tool} ")) && help.contains(option), "{help}");
        assert!(help.lines().all(|line| line.len() <= 80), "{help}");
        let version = cluster.node(1).tool(tool, &["--version"]).expect_success();
        assert_eq!(version, format!("{tool} {}\n", env!("CARGO_PKG_VERSION")));
    }
}
