//! What programs see when something fails: DESIGN.md section 7, row by row, for queues and sets.
//! Every wait here ends, with the errno that the table names or with success.
#![forbid(unsafe_code)]

use dipc_tests::{Cluster, Puppet, process::wait_until, skip};

/// Creates the queue of these tests.
const CREATE: &str = "msgget 0x71 011600";
/// Gets it.
const GET: &str = "msgget 0x71 010600";

/// Nodes that are declared lost soon, but not when a busy machine makes one late.
fn impatient(nodes: usize) -> dipc_tests::Builder {
    Cluster::of(nodes)
        .entry("node_timeout", "4")
        .entry("lease", "2")
        .entry("heartbeat", "0.2")
        .entry("employer_referee_timeout", "9")
        .entry("referee_timeout", "6")
}

#[test]
fn a_receiver_killed_while_it_waits_takes_nothing_with_it() {
    let cluster = Cluster::start(2);
    let mut here = Puppet::on(cluster.node(1));
    here.must(CREATE);
    let mut there = Puppet::on(cluster.node(2));
    there.must(GET);
    there.begin("receive 0");
    there.until_waiting();
    wait_until("its stand-in", || (cluster.node(1).stand_ins().len() == 1).then_some(()));
    there.kill();
    wait_until("the stand-in ends", || cluster.node(1).stand_ins().is_empty().then_some(()));
    here.must("send 5 word");
    assert_eq!(here.must("count"), "1");
    assert_eq!(here.must("receive 0"), "5 word");
    here.must("remove");
}

#[test]
fn dipcd_restarts_at_home_and_nobody_notices() {
    let cluster = Cluster::start(2);
    let (mut here, mut there) = (Puppet::on(cluster.node(1)), Puppet::on(cluster.node(2)));
    let id = here.must(CREATE);
    there.must(GET);
    // It has its wire then, and needs no dipcd to begin its wait.
    there.must("count");
    there.begin("receive 0");
    there.until_waiting();
    cluster.node(1).kill();
    here.must("send 5 during");
    assert_eq!(there.answer(), Ok("5 during".into()));
    there.must("send 6 back");
    assert_eq!(here.must("receive 6"), "6 back");
    cluster.node(1).start();
    assert_eq!(Puppet::on(cluster.node(2)).must(GET), id);
    assert_eq!(Puppet::on(cluster.node(1)).must(GET), id);
    there.must("remove");
    assert_eq!(here.call("count"), Err("EINVAL".into()));
}

#[test]
fn dipcd_restarts_at_the_client_and_nobody_notices() {
    let cluster = Cluster::start(2);
    let (mut here, mut there) = (Puppet::on(cluster.node(1)), Puppet::on(cluster.node(2)));
    here.must(CREATE);
    there.must(GET);
    there.begin("receive 0");
    there.until_waiting();
    cluster.node(2).kill_and_restart();
    here.must("send 5 after");
    assert_eq!(there.answer(), Ok("5 after".into()));
    // Its death is still noticed, by the dipcd that never saw its birth.
    there.begin("receive 0");
    there.until_waiting();
    there.kill();
    wait_until("the stand-in ends", || cluster.node(1).stand_ins().is_empty().then_some(()));
    here.must("send 6 mine");
    assert_eq!(here.must("receive 0"), "6 mine");
    here.must("remove");
}

#[test]
fn calls_wait_while_dipcd_is_away() {
    let cluster = Cluster::start(2);
    let mut here = Puppet::on(cluster.node(1));
    here.must(CREATE);
    cluster.node(2).kill();
    let mut there = Puppet::on(cluster.node(2));
    there.begin(GET);
    there.until_waiting();
    cluster.node(2).start();
    assert!(there.answer().is_ok());
    there.must("send 1 late");
    assert_eq!(here.must("receive 0"), "1 late");
    here.must("remove");
}

#[test]
fn the_keeper_dies_and_nobody_notices() {
    let cluster = Cluster::start(2);
    let (mut here, mut there) = (Puppet::on(cluster.node(1)), Puppet::on(cluster.node(2)));
    here.must(CREATE);
    there.must(GET);
    there.begin("receive 0");
    there.until_waiting();
    let keeper = cluster.node(1).keeper().expect("a keeper runs");
    rustix::process::kill_process(keeper, rustix::process::Signal::KILL).expect("it runs");
    here.must("send 5 word");
    assert_eq!(there.answer(), Ok("5 word".into()));
    wait_until("another keeper", || {
        cluster.node(1).keeper().filter(|new| *new != keeper).map(drop)
    });
    let mut third = Puppet::on(cluster.node(2));
    third.must(GET);
    third.must("send 6 again");
    assert_eq!(there.must("receive 0"), "6 again");
    // What the new keeper was given is enough to restart dipcd on.
    cluster.node(1).kill_and_restart();
    there.must("send 7 after");
    assert_eq!(here.must("receive 0"), "7 after");
    here.must("remove");
}

#[test]
fn a_stand_in_killed_gives_eio_and_fences_its_process() {
    let cluster = Cluster::start(2);
    let (mut here, mut there) = (Puppet::on(cluster.node(1)), Puppet::on(cluster.node(2)));
    here.must(CREATE);
    there.must(GET);
    // Its stand-in is there then.
    there.must("count");
    there.begin("receive 0");
    there.until_waiting();
    for stand_in in cluster.node(1).stand_ins() {
        rustix::process::kill_process(stand_in, rustix::process::Signal::KILL).expect("it runs");
    }
    assert_eq!(there.answer(), Err("EIO".into()));
    assert_eq!(there.call("count"), Err("EIDRM".into()));
    there.must(GET);
    there.must("send 5 again");
    assert_eq!(here.must("receive 0"), "5 again");
    here.must("remove");
}

#[test]
fn the_home_dies_and_its_objects_with_it() {
    let cluster = impatient(3).start();
    let (mut home, mut there) = (Puppet::on(cluster.node(2)), Puppet::on(cluster.node(3)));
    home.must(CREATE);
    there.must(GET);
    there.begin("receive 0");
    there.until_waiting();
    cluster.node(2).kill_everything();
    assert_eq!(there.answer(), Err("EIDRM".into()));
    assert_eq!(there.call("send 1 x"), Err("EIDRM".into()));
    // The key can be created anew, and the old home finds the new object when it is back.
    let created = wait_until("the key is free", || there.call("msgget 0x71 013600").ok());
    there.must("send 3 anew");
    cluster.node(2).start();
    let mut back = Puppet::on(cluster.node(2));
    assert_eq!(back.must(CREATE), created);
    assert_eq!(back.must("receive 0"), "3 anew");
    there.must("remove");
}

#[test]
fn the_referee_is_away() {
    let cluster = impatient(3).start();
    let (mut home, mut there) = (Puppet::on(cluster.node(2)), Puppet::on(cluster.node(3)));
    let id = home.must(CREATE);
    there.must(GET);
    cluster.node(1).kill();
    there.must("send 5 word");
    assert_eq!(home.must("receive 0"), "5 word");
    let mut new = Puppet::on(cluster.node(3));
    assert_eq!(new.call("msgget 0x72 011600"), Err("ETIMEDOUT".into()));
    cluster.node(1).start();
    assert_eq!(wait_until("the referee is found", || new.call(GET).ok()), id);
    new.must("msgget 0x72 013600");
    new.must("remove");
    // Its new reign gives out no id twice, and knows what there was.
    assert_eq!(new.call("msgget 0x71 013600"), Err("EEXIST".into()));
    home.must("remove");
}

#[test]
fn a_call_waits_for_a_referee_that_comes_back() {
    let cluster = Cluster::start(2);
    cluster.node(1).kill();
    let mut there = Puppet::on(cluster.node(2));
    there.begin(CREATE);
    there.until_waiting();
    cluster.node(1).start();
    assert!(there.answer().is_ok());
    there.must("remove");
}

#[test]
fn a_frozen_dipcd_holds_up_no_message() {
    let cluster = Cluster::start(2);
    let (mut here, mut there) = (Puppet::on(cluster.node(1)), Puppet::on(cluster.node(2)));
    here.must(CREATE);
    there.must(GET);
    there.must("send 1 open");
    cluster.node(1).freeze();
    cluster.node(2).freeze();
    there.must("send 2 frozen");
    assert_eq!(here.must("receive 2"), "2 frozen");
    cluster.node(1).thaw();
    cluster.node(2).thaw();
    here.must("remove");
}

#[test]
fn an_orderly_end_leaves_no_process() {
    let cluster = Cluster::start(2);
    let mut here = Puppet::on(cluster.node(1));
    here.must(CREATE);
    {
        let mut there = Puppet::on(cluster.node(2));
        there.must(GET);
        there.must("send 1 x");
    }
    here.must("remove");
    here.kill();
    for node in cluster.nodes() {
        assert!(node.stop().success(), "{}", node.log());
        wait_until("the keeper ends", || node.keepers().is_empty().then_some(()));
        assert!(!node.socket().exists(), "the socket is left");
    }
}

#[test]
fn a_restart_of_everything_but_the_kernels_keeps_the_objects() {
    let cluster = Cluster::start(2);
    let mut here = Puppet::on(cluster.node(1));
    let id = here.must(CREATE);
    here.must("send 4 kept");
    for node in [2, 1] {
        cluster.node(node).kill();
    }
    for node in [1, 2] {
        cluster.node(node).start();
    }
    let mut there = Puppet::on(cluster.node(2));
    assert_eq!(there.must(GET), id);
    assert_eq!(there.must("receive 0"), "4 kept");
    there.must("remove");
}

#[test]
fn a_short_cut_is_waited_for() {
    let name = "a_short_cut_is_waited_for";
    // After a cut it may be some time before TCP tries again.
    let patient = Cluster::of(2).entry("node_timeout", "60").entry("lease", "30");
    let Some(cluster) = patient.start_with_network() else {
        return skip::skip(name, "needs root and ip(8)");
    };
    let (mut here, mut there) = (Puppet::on(cluster.node(1)), Puppet::on(cluster.node(2)));
    here.must(CREATE);
    there.must(GET);
    there.must("send 1 before");
    cluster.cut(1, 2);
    there.begin("send 2 during");
    there.until_waiting();
    cluster.heal(1, 2);
    assert!(there.answer().is_ok());
    assert_eq!(here.must("count"), "2");
    assert_eq!(here.must("receive 0"), "1 before");
    assert_eq!(here.must("receive 0"), "2 during");
    here.must("remove");
}

#[test]
fn a_node_cut_off_is_lost_and_comes_back() {
    let name = "a_node_cut_off_is_lost_and_comes_back";
    let Some(cluster) = impatient(3).start_with_network() else {
        return skip::skip(name, "needs root and ip(8)");
    };
    let (mut home, mut there) = (Puppet::on(cluster.node(2)), Puppet::on(cluster.node(3)));
    home.must(CREATE);
    there.must(GET);
    there.begin("receive 0");
    there.until_waiting();
    cluster.cut(1, 2);
    cluster.cut(2, 3);
    assert_eq!(there.answer(), Err("EIDRM".into()));
    let created = wait_until("the key is free", || there.call("msgget 0x71 013600").ok());
    cluster.heal(1, 2);
    cluster.heal(2, 3);
    // The old home was void: its programs are told, and it believes the new one.
    wait_until("the old object goes", || home.call("count").is_err().then_some(()));
    assert_eq!(
        home.call("count").map_err(|errno| errno == "EIDRM" || errno == "EINVAL"),
        Err(true)
    );
    let again = wait_until("the node is back", || home.call(GET).ok());
    assert_eq!(again, created);
    there.must("remove");
}

#[test]
fn a_lost_client_is_undone_once_and_fenced() {
    let name = "a_lost_client_is_undone_once_and_fenced";
    let Some(cluster) = impatient(2).start_with_network() else {
        return skip::skip(name, "needs root and ip(8)");
    };
    let (mut here, mut there) = (Puppet::on(cluster.node(1)), Puppet::on(cluster.node(2)));
    here.must("semget 0x71 1 011600");
    here.must("setval 0 1");
    there.must("semget 0x71 1 010600");
    there.must("op 0 -1 undo");
    assert_eq!(here.must("value 0"), "0");
    cluster.cut(1, 2);
    wait_until("the lock is free again", || (here.must("value 0") == "1").then_some(()));
    cluster.heal(1, 2);
    // It believes that it holds the lock; were it not fenced, this would release it twice.
    wait_until("the client is told", || {
        (there.call("op 0 1 undo") == Err("EIDRM".into())).then_some(())
    });
    assert_eq!(here.must("value 0"), "1");
    wait_until("the node is back", || there.call("semget 0x71 1 010600").ok());
    there.must("op 0 -1 undo");
    here.must("remove");
}
