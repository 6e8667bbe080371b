//! The entries of dipc.conf that are about shared memory: each has the effect that its description
//! says. Which pages came with one is seen while home's dipcd stands still: then only what is here
//! can be touched.
#![forbid(unsafe_code)]

use std::time::{Duration, Instant};

use dipc_tests::{Cluster, Node, Puppet, process::wait_until, skip};

use crate::memory::{
    KEY, PAGE, agree, by_both_traps, cluster, owner, patient, refused, soon_refused, user,
};

const NOBODY: u32 = 65534;
const DAEMON: u32 = 1;

/// With home's dipcd standing still, the first page is here and the other one is not.
#[track_caller]
fn is_here_without_home(home: &Node, puppet: &mut Puppet, here: usize, not_here: Option<usize>) {
    home.freeze();
    puppet.must(&format!("peek {}", here * PAGE));
    if let Some(page) = not_here {
        puppet.begin(&format!("peek {}", page * PAGE));
        puppet.until_waiting();
    }
    home.thaw();
    if not_here.is_some() {
        assert_eq!(puppet.answer(), Ok("0".into()));
    }
}

#[test]
fn a_page_comes_alone() {
    by_both_traps(|trap| {
        let cluster = patient(2, trap).entry("transfer_mode", "PAGE").start();
        let _home = owner(cluster.node(1), 64 * PAGE);
        let mut away = user(cluster.node(2));
        away.must(&format!("poke {} 1", 5 * PAGE));
        is_here_without_home(cluster.node(1), &mut away, 5, Some(40));
    });
}

#[test]
fn a_whole_segment_comes_at_once() {
    by_both_traps(|trap| {
        let cluster = patient(3, trap).entry("transfer_mode", "segment").start();
        let mut home = owner(cluster.node(1), 64 * PAGE);
        let mut away = user(cluster.node(2));
        let mut third = user(cluster.node(3));
        home.must(&format!("fill 0 {} 4", 64 * PAGE));
        home.must("poke 0 1");
        away.must("peek 0");
        cluster.node(1).freeze();
        assert_eq!(away.must(&format!("check 8 {} 4", 64 * PAGE - 8)), "0");
        cluster.node(1).thaw();
        for seed in 0..3 {
            agree(&mut third, &mut away, 64 * PAGE, seed);
            agree(&mut away, &mut home, 64 * PAGE, 10 + seed);
        }
    });
}

/// More than a frame takes at once.
#[test]
fn a_whole_segment_may_be_long() {
    by_both_traps(|trap| {
        let cluster = patient(2, trap).entry("transfer_mode", "segment").start();
        let bytes = 9 << 20;
        let mut home = owner(cluster.node(1), bytes);
        let mut away = user(cluster.node(2));
        agree(&mut home, &mut away, bytes, 1);
        agree(&mut away, &mut home, bytes, 2);
    });
}

#[test]
fn a_page_may_be_longer_than_the_system_s() {
    by_both_traps(|trap| {
        let size = 4 * PAGE;
        let cluster = patient(2, trap).entry("dipc_page_size", &size.to_string()).start();
        let mut home = owner(cluster.node(1), 63 * PAGE);
        let mut away = user(cluster.node(2));
        away.must(&format!("poke {} 0", 9 * PAGE));
        is_here_without_home(cluster.node(1), &mut away, 11, Some(40));
        is_here_without_home(cluster.node(1), &mut away, 8, None);
        // The last one is not whole.
        agree(&mut home, &mut away, 63 * PAGE, 1);
        agree(&mut away, &mut home, 63 * PAGE, 2);
    });
}

#[test]
fn a_page_may_be_longer_than_a_frame() {
    by_both_traps(|trap| {
        let cluster = patient(2, trap).entry("dipc_page_size", "4M").start();
        let bytes = (10 << 20) + PAGE;
        let mut home = owner(cluster.node(1), bytes);
        let mut away = user(cluster.node(2));
        agree(&mut home, &mut away, bytes, 1);
        agree(&mut away, &mut home, bytes, 2);
    });
}

#[test]
fn an_owner_keeps_a_page_for_the_hold_time() {
    by_both_traps(|trap| {
        let cluster = cluster(2, trap).entry("shm_hold_timeout", "0.7").start();
        let mut home = owner(cluster.node(1), PAGE);
        let mut away = user(cluster.node(2));
        for round in 0..3 {
            let before = Instant::now();
            away.must(&format!("poke 0 {round}"));
            assert_eq!(home.must("peek 0"), round.to_string());
            assert!(before.elapsed() >= Duration::from_millis(700), "{:?}", before.elapsed());
            home.must("poke 0 100");
        }
    });
}

#[test]
fn programs_hear_that_they_became_readers_and_writers() {
    by_both_traps(|trap| {
        let cluster = cluster(2, trap).entry("inhibit_shm_signal", "no").start();
        let mut home = owner(cluster.node(1), 4 * PAGE);
        let mut away = user(cluster.node(2));
        away.must(&format!("poke {} 1", 2 * PAGE));
        let heard = |puppet: &mut Puppet, what: &str| {
            wait_until(what, || (puppet.must(what) != "0").then_some(()));
        };
        heard(&mut away, "writers");
        assert_eq!(away.must("where"), (2 * PAGE).to_string());
        home.must(&format!("peek {}", 2 * PAGE));
        heard(&mut home, "readers");
        heard(&mut away, "readers");
        home.must(&format!("poke {} 1", 2 * PAGE));
        heard(&mut home, "writers");
    });
}

#[test]
fn programs_are_spared_the_signals() {
    by_both_traps(|trap| {
        let cluster = cluster(2, trap).start();
        let mut home = owner(cluster.node(1), 4 * PAGE);
        let mut away = user(cluster.node(2));
        for round in 0..5 {
            agree(&mut home, &mut away, 4 * PAGE, round);
            agree(&mut away, &mut home, 4 * PAGE, round);
        }
        for puppet in [&mut home, &mut away] {
            assert_eq!((puppet.must("readers"), puppet.must("writers")), ("0".into(), "0".into()));
        }
    });
}

#[test]
fn a_fault_that_waits_too_long_is_sigbus_and_nothing_else() {
    by_both_traps(|trap| {
        let cluster = soon_refused(trap);
        let mut home = owner(cluster.node(1), 4 * PAGE);
        let mut away = user(cluster.node(2));
        home.must(&format!("fill 0 {} 3", 4 * PAGE));
        cluster.node(1).freeze();
        let before = Instant::now();
        assert_eq!(refused(&mut away, "peek 0"), "SIGBUS");
        assert!(before.elapsed() >= Duration::from_millis(2_700), "{:?}", before.elapsed());
        cluster.node(1).thaw();
        wait_until("the page comes", || away.call("peek 0").ok());
        assert_eq!(away.must(&format!("check 0 {} 3", 4 * PAGE)), "0");
        agree(&mut away, &mut home, 4 * PAGE, 4);
    });
}

/// Waits until a node has sent a frame: its line of `-v` comes first, and the thread that wrote it
/// then sends.
#[track_caller]
fn has_sent(node: &Node, words: &str) {
    node.wait_for_log(words);
    let log = node.log();
    let line = log.lines().find(|line| line.contains(words)).expect("it was found");
    let task = line.trim_start_matches('[').split('@').next().expect("split gives something");
    let status = format!("/proc/{}/task/{task}/status", node.dipcd_pid());
    wait_until("the thread that sends waits again", || {
        let status = std::fs::read_to_string(&status).expect("it runs");
        status.contains("\nState:\tS").then_some(())
    });
}

#[test]
fn a_grant_that_is_not_acknowledged_ends_the_link() {
    by_both_traps(|trap| {
        let cluster = patient(2, trap).entry("shm_ak_timeout", "0.5").option("-v").start();
        let mut home = owner(cluster.node(1), 4 * PAGE);
        let mut away = user(cluster.node(2));
        home.must(&format!("fill 0 {} 3", 4 * PAGE));
        cluster.node(1).freeze();
        away.begin("add 0 1");
        // The question goes to home; the grant will find nobody.
        has_sent(cluster.node(2), ", frame: Fault {");
        cluster.node(2).freeze();
        cluster.node(1).thaw();
        cluster.node(1).wait_for_log("shm_ak_timeout");
        cluster.node(2).thaw();
        assert!(away.answer().is_ok());
        assert_eq!(home.must(&format!("check 8 {} 3", 4 * PAGE - 8)), "0");
        assert_eq!(home.must("peek 0"), away.must("peek 0"));
    });
}

#[test]
fn a_user_has_a_share_of_memory() {
    let share = (20 * PAGE).to_string();
    let cluster = Cluster::of(2).entry("user_segment_bytes_max", &share).start();
    let mut puppet = Puppet::of_pages(cluster.node(1));
    let too_much = format!("shmget 0 {} 011600", 21 * PAGE);
    assert_eq!(refused(&mut puppet, &too_much), "ENOMEM");
    puppet.must(&format!("shmget 1 {} 011600", 12 * PAGE));
    assert_eq!(refused(&mut puppet, &format!("shmget 2 {} 011600", 9 * PAGE)), "ENOMEM");
    puppet.must(&format!("shmget 2 {} 011600", 8 * PAGE));
    assert_eq!(refused(&mut puppet, &format!("shmget 3 {PAGE} 011600")), "ENOMEM");
    puppet.must("shmget 2 0 010600");
    puppet.must("rmid");
    puppet.must(&format!("shmget 3 {PAGE} 011600"));
    // Another node has a share of its own.
    Puppet::of_pages(cluster.node(2)).must(&format!("shmget 4 {} 011600", 20 * PAGE));
}

#[test]
fn huge_pages_are_ordinary_ones() {
    let cluster = Cluster::start(2);
    let mut home = Puppet::of_pages(cluster.node(1));
    // SHM_HUGETLB
    home.must(&format!("shmget {KEY} {} 017600", 5 * PAGE));
    home.must("attach 0");
    let mut away = user(cluster.node(2));
    agree(&mut home, &mut away, 5 * PAGE, 1);
    assert_eq!(away.must("bytes"), (5 * PAGE).to_string());
}

#[test]
fn the_flag_may_have_its_new_meaning() {
    let cluster = Cluster::of(2).entry("shm_noreserve", "local").start();
    let mut here = Puppet::of_pages(cluster.node(1));
    let id: u32 = here.must(&format!("shmget {KEY} {PAGE} 011600")).parse().expect("an id");
    assert_eq!(id & 1 << 30, 0, "an id of the kernel");
    let mut there = Puppet::of_pages(cluster.node(2));
    if skip::is_root() {
        assert_eq!(refused(&mut there, &format!("shmget {KEY} 0 010600")), "ENOENT");
    }
    here.must("rmid");
}

/// Of users without rights, those of one group are given the device.
#[test]
fn system_calls_of_who_may_not_pass_absent_pages_fail() {
    if skip::needs_root("system_calls_of_who_may_not_pass_absent_pages_fail") {
        return;
    }
    let cluster = cluster(2, "userfaultfd").entry("kernel_faults", "nogroup").start();
    let mut home = owner(cluster.node(1), 4 * PAGE);
    home.must("chmod 666");
    home.must(&format!("fill 0 {} 3", 4 * PAGE));
    let file = cluster.directory().join("file");
    std::fs::write(&file, vec![7; PAGE]).expect("the directory is ours");
    for (uid, outcome) in [(NOBODY, Ok(PAGE.to_string())), (DAEMON, Err("EFAULT".into()))] {
        let mut puppet = Puppet::of_pages(cluster.node(2));
        puppet.must(&format!("become {uid}"));
        puppet.must(&format!("shmget {KEY} 0 010600"));
        puppet.must("attach 0");
        let line = format!("load {} {} {PAGE}", file.display(), 2 * PAGE);
        assert_eq!(puppet.call(&line), outcome, "user {uid}");
        // Its own accesses are served in any case.
        assert_eq!(puppet.must(&format!("check 0 {PAGE} 3")), "0");
        home.must(&format!("fill 0 {} 3", 4 * PAGE));
    }
    cluster.node(2).wait_for_log("user mode");
}
