//! What semaphores keep about processes on other nodes: who waits, in which order, and what is to
//! be undone (SEM_UNDO): once, at a process's end, and at nothing else. What one process can see by
//! itself is in the differential rows; a lost node is in failures.
#![forbid(unsafe_code)]

use dipc_tests::process::wait_until;
use dipc_tests::{Cluster, Node, Puppet};
use rustix::process::Signal;

const CREATE: &str = "semget 0x5e 2 011600";
const GET: &str = "semget 0x5e 2 010600";
/// Longer than any test waits: nobody is found out by silence.
const PATIENT: [(&str, &str); 2] = [("node_timeout", "600"), ("lease", "300")];

fn maker(node: &Node) -> Puppet {
    let mut puppet = Puppet::on(node);
    puppet.must(CREATE);
    puppet
}

fn user(node: &Node) -> Puppet {
    let mut puppet = Puppet::on(node);
    puppet.must(GET);
    puppet
}

/// Waits until the owner's `question` has `answer`.
#[track_caller]
fn until(owner: &mut Puppet, question: &str, answer: impl ToString) {
    let answer = answer.to_string();
    wait_until(&format!("{question} is {answer}"), || {
        (owner.must(question) == answer).then_some(())
    });
}

/// The stand-ins at home end once they have undone everything.
#[track_caller]
fn until_no_stand_in(home: &Node) {
    wait_until("the stand-ins end", || home.stand_ins().is_empty().then_some(()));
}

/// Three wait for `operation`; one is killed, one gets a signal. `question` asks how many wait.
fn counted_and_uncounted(operation: &str, question: &str) {
    let builder = PATIENT.iter().fold(Cluster::of(2), |all, (name, value)| all.entry(name, value));
    let cluster = builder.start();
    let mut owner = maker(cluster.node(1));
    owner.must("setval 0 1");
    let mut waiters: Vec<Puppet> = (0..3).map(|_| user(cluster.node(2))).collect();
    for (index, waiter) in waiters.iter_mut().enumerate() {
        waiter.begin(operation);
        until(&mut owner, question, index + 1);
    }
    waiters.remove(1).kill();
    until(&mut owner, question, 2);
    waiters[1].process().signal(Signal::USR1);
    assert_eq!(waiters[1].answer(), Err("EINTR".into()));
    assert_eq!(owner.must(question), "1");
    assert_eq!([owner.must("waiters 0"), owner.must("zeros 0")].concat().matches('1').count(), 1);
    owner.must("setval 0 2");
    owner.must("setval 0 0");
    assert_eq!(waiters[0].answer(), Ok("0".into()));
    assert_eq!(owner.must(question), "0");
    owner.must("remove");
}

#[test]
fn waiters_for_more_are_counted_and_uncounted() {
    counted_and_uncounted("op 0 -2", "waiters 0");
}

#[test]
fn waiters_for_zero_are_counted_and_uncounted() {
    counted_and_uncounted("op 0 0", "zeros 0");
}

#[test]
fn equal_operations_go_on_in_order_of_arrival() {
    const WAITERS: usize = 6;
    let cluster = Cluster::start(3);
    let mut owner = maker(cluster.node(1));
    // From all nodes in turn, home among them.
    let place = |index: usize| cluster.node(1 + (index + 1) % 3);
    let mut waiters: Vec<Puppet> = (0..WAITERS).map(|index| user(place(index))).collect();
    for (index, waiter) in waiters.iter_mut().enumerate() {
        waiter.begin("op 0 -1");
        until(&mut owner, "waiters 0", index + 1);
    }
    for (index, waiter) in waiters.iter_mut().enumerate() {
        owner.must("op 0 1");
        assert_eq!(waiter.answer(), Ok("0".into()), "waiter {index}");
        assert_eq!(owner.must("waiters 0"), (WAITERS - 1 - index).to_string());
    }
    owner.must("remove");
}

#[test]
fn nothing_is_undone_before_the_process_ends() {
    let cluster = Cluster::start(2);
    let mut owner = maker(cluster.node(1));
    owner.must("setval 0 5");
    let mut holder = user(cluster.node(2));
    holder.must("op 0 -1 undo");
    // A child begins with nothing to undo, and undoes its own.
    holder.must("child value 0");
    holder.must("child op 0 -1 undo");
    until(&mut owner, "value 0", 4);
    // A new image goes on with the old one's list.
    holder.must("exec");
    holder.must("op 0 -1 undo");
    assert_eq!(owner.must("value 0"), "3");
    for node in [1, 2] {
        cluster.node(node).kill_and_restart();
        assert_eq!(owner.must("value 0"), "3", "dipcd of node {node} was killed");
    }
    holder.must("op 0 -1 undo");
    assert_eq!(owner.must("value 0"), "2");
    holder.kill();
    until_no_stand_in(cluster.node(1));
    assert_eq!(owner.must("value 0"), "5");
    owner.must("remove");
}

#[test]
fn the_end_of_a_holder_that_nobody_saw_is_undone_once() {
    let cluster = Cluster::start(2);
    let mut owner = maker(cluster.node(1));
    owner.must("setval 0 1");
    let mut holder = user(cluster.node(2));
    holder.must("op 0 -1 undo");
    // Neither daemon runs when it dies.
    cluster.node(1).kill();
    cluster.node(2).kill();
    holder.kill();
    assert_eq!(owner.must("value 0"), "0");
    cluster.node(2).start();
    cluster.node(1).start();
    until_no_stand_in(cluster.node(1));
    assert_eq!(owner.must("value 0"), "1");
    cluster.node(1).kill_and_restart();
    cluster.node(2).kill_and_restart();
    assert_eq!(owner.must("value 0"), "1");
    owner.must("remove");
}

#[test]
fn setting_a_value_clears_what_was_to_be_undone() {
    let cluster = Cluster::start(3);
    let mut owner = maker(cluster.node(1));
    owner.must("setval 0 3");
    owner.must("setval 1 3");
    let mut holder = user(cluster.node(2));
    holder.must("op 0 -1 undo");
    holder.must("op 1 -1 undo");
    // By a third process, on a third node: the kernel clears it for everybody, in that semaphore.
    user(cluster.node(3)).must("setval 0 9");
    holder.kill();
    until_no_stand_in(cluster.node(1));
    assert_eq!((owner.must("value 0"), owner.must("value 1")), ("9".into(), "3".into()));
    owner.must("remove");
}

#[test]
fn a_set_lives_on_a_node_that_nobody_else_is_on() {
    let cluster = Cluster::start(3);
    maker(cluster.node(2)).kill();
    let (mut one, mut three) = (user(cluster.node(1)), user(cluster.node(3)));
    one.begin("op 0 -1 undo");
    until(&mut three, "waiters 0", 1);
    three.must("op 0 1");
    assert_eq!(one.answer(), Ok("0".into()));
    three.begin("op 0 -1");
    until(&mut one, "waiters 0", 1);
    one.kill();
    assert_eq!(three.answer(), Ok("0".into()));
    until_no_process_of(cluster.node(2), 1);
    three.must("remove");
}

#[track_caller]
fn until_no_process_of(home: &Node, left: usize) {
    wait_until("only the living have stand-ins", || (home.stand_ins().len() == left).then_some(()));
}

#[test]
fn a_process_with_locks_at_two_homes_gives_both_back() {
    const OTHER: &str = "semget 0x5f 1 010600";
    let cluster = Cluster::start(3);
    let mut first = maker(cluster.node(1));
    let mut third = Puppet::on(cluster.node(3));
    third.must("semget 0x5f 1 011600");
    first.must("setval 0 1");
    third.must("setval 0 1");
    for _ in 0..2 {
        let mut holder = user(cluster.node(2));
        holder.must("op 0 -1 undo");
        holder.must(OTHER);
        holder.must("op 0 -1 undo");
        assert_eq!((first.must("value 0"), third.must("value 0")), ("0".into(), "0".into()));
        let mut waiter = user(cluster.node(3));
        waiter.begin("op 0 -1");
        until(&mut first, "waiters 0", 1);
        holder.kill();
        assert_eq!(waiter.answer(), Ok("0".into()));
        waiter.must("op 0 1");
        until(&mut third, "value 0", 1);
        assert_eq!(first.must("value 0"), "1");
    }
    first.must("remove");
    third.must("remove");
}

#[test]
fn the_locks_of_a_node_that_dies_are_given_back_once() {
    let cluster = Cluster::of(3)
        .entry("node_timeout", "4")
        .entry("lease", "2")
        .entry("heartbeat", "0.2")
        .start();
    let mut owner = maker(cluster.node(1));
    owner.must("setval 0 2");
    let mut dying = [user(cluster.node(2)), user(cluster.node(2))];
    dying.iter_mut().for_each(|holder| drop(holder.must("op 0 -1 undo")));
    let mut waiter = user(cluster.node(3));
    waiter.begin("op 0 -2 undo");
    until(&mut owner, "waiters 0", 1);
    cluster.node(2).kill_everything();
    assert_eq!(waiter.answer(), Ok("0".into()));
    until_no_process_of(cluster.node(1), 1);
    // Nor is anything undone when it comes back and says that it knows no such process.
    cluster.node(2).start();
    user(cluster.node(2));
    assert_eq!(owner.must("value 0"), "0");
    waiter.must("op 0 2 undo");
    assert_eq!(owner.must("value 0"), "2");
    owner.must("remove");
}

#[test]
fn the_last_pid_is_that_of_the_caller_on_its_own_node() {
    let cluster = Cluster::start(3);
    let mut owner = maker(cluster.node(1));
    let mut callers = [user(cluster.node(2)), user(cluster.node(3)), user(cluster.node(1))];
    for index in 0..callers.len() {
        callers[index].must("op 0 1");
        let pid = callers[index].process().pid().to_string();
        assert_eq!(owner.must("last 0"), pid);
        for caller in &mut callers {
            assert_eq!(caller.must("last 0"), pid);
        }
    }
    owner.must("remove");
}
