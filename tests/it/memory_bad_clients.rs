//! Programs gone bad, and their pages: a program that hands over what is no userfaultfd, lies about
//! where its attachments are, or whose helper says nothing (`liar.rs`). It is refused or killed,
//! which is said once; nobody else notices, and nothing of it is counted or kept.
#![forbid(unsafe_code)]

use dipc_tests::stranger::serves;
use dipc_tests::{process::wait_until, programs, skip};

use crate::memory::{KEY, PAGE, agree, cluster, owner, user};

/// Ways of `dipc-liar`; and whether dipcd may kill it.
const WAYS: [(&str, bool); 9] = [
    ("descriptors", false),
    ("sentinels", false),
    ("numbers", false),
    ("places", false),
    ("ranges", false),
    ("silent", false),
    ("pulled", true),
    ("mute", true),
    ("babbling", true),
];
/// Lines that a liar may cost the log: a line for a kind of refusal, not for each.
const LINES_MAX: usize = 12;

#[test]
fn a_program_that_lies_is_refused_and_nobody_else_notices() {
    if skip::needs_root("a_program_that_lies_is_refused_and_nobody_else_notices") {
        return;
    }
    let cluster = cluster(2, "auto").start();
    let mut home = owner(cluster.node(1), 8 * PAGE);
    let mut away = user(cluster.node(2));
    for node in cluster.nodes() {
        for (way, may_die) in WAYS {
            eprintln!("---- {way} on node {}", node.number);
            let before = node.log().lines().count();
            let mut command = node.command(programs::tool("dipc-liar"), &[way, KEY]);
            command.env_remove("LD_PRELOAD");
            let liar = node.machine().spawn(command);
            if !may_die {
                liar.wait_for("ok\n");
            }
            agree(&mut home, &mut away, 8 * PAGE, 1);
            agree(&mut away, &mut home, 8 * PAGE, 2);
            let output = liar.wait();
            let was_killed = output.status.code().is_none();
            assert!(output.status.success() || may_die && was_killed, "{way}: {output:?}");
            serves(node);
            let lines = node.log().lines().count() - before;
            assert!(lines <= LINES_MAX, "{way}: {lines} lines: {}", node.log());
            wait_until("it is counted no more", || {
                (home.call("nattch") == Ok("2".into())).then_some(())
            });
        }
    }
    home.must("rmid");
}
