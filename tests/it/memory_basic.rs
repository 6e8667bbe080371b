//! Segments between nodes: what one node writes the others read, who may do what, what is counted,
//! and when a segment ends. Everything is done by both traps.
#![forbid(unsafe_code)]

use std::fs;

use dipc_tests::{Cluster, Puppet, process::wait_until, skip};

use crate::memory::{
    KEY, PAGE, agree, by_both_traps, cluster, files_held, number, owner, records_left, refused,
    user,
};

const NOBODY: u32 = 65534;
const DAEMON: u32 = 1;

#[test]
fn what_one_node_writes_the_other_reads() {
    by_both_traps(|trap| {
        let cluster = cluster(2, trap).start();
        let mut home = owner(cluster.node(1), 64 * PAGE);
        let mut away = user(cluster.node(2));
        assert_eq!(away.must("peek 0"), "0");
        home.must("poke 0 41");
        assert_eq!(away.must("peek 0"), "41");
        assert_eq!(away.must("add 0 1"), "42");
        assert_eq!(home.must("peek 0"), "42");
        away.must("poke 8 7");
        home.must("poke 16 8");
        assert_eq!((home.must("peek 8"), away.must("peek 16")), ("7".into(), "8".into()));
        for seed in 0..4 {
            agree(&mut home, &mut away, 64 * PAGE, seed);
            agree(&mut away, &mut home, 64 * PAGE, 100 + seed);
        }
        home.must("rmid");
    });
}

#[test]
fn three_nodes_see_one_memory() {
    by_both_traps(|trap| {
        let cluster = cluster(3, trap).start();
        let mut all = vec![owner(cluster.node(2), 16 * PAGE)];
        all.push(user(cluster.node(1)));
        all.push(user(cluster.node(3)));
        for turn in 0..12 {
            let writer = turn % 3;
            all[writer].must(&format!("fill 0 {} {turn}", 16 * PAGE));
            for puppet in &mut all {
                assert_eq!(puppet.must(&format!("check 0 {} {turn}", 16 * PAGE)), "0");
            }
        }
        all[0].must(&format!("poke {PAGE} 0"));
        for turn in 1..31 {
            let sum = number(&mut all[turn % 3], &format!("add {PAGE} 1"));
            assert_eq!(sum, number(&mut all[(turn + 1) % 3], &format!("peek {PAGE}")));
            assert_eq!(sum, turn as i64);
        }
    });
}

#[test]
fn a_store_comes_to_who_waits_for_it() {
    by_both_traps(|trap| {
        let cluster = cluster(3, trap).start();
        let mut home = owner(cluster.node(1), 2 * PAGE);
        let (mut second, mut third) = (user(cluster.node(2)), user(cluster.node(3)));
        for round in 1..20 {
            second.begin(&format!("await 0 {round}"));
            third.begin(&format!("await 0 {round}"));
            home.must(&format!("poke 0 {round}"));
            assert_eq!((second.answer(), third.answer()), (Ok("0".into()), Ok("0".into())));
            home.begin(&format!("await 8 {round}"));
            third.must(&format!("poke 8 {round}"));
            assert_eq!(home.answer(), Ok("0".into()));
        }
    });
}

#[test]
fn data_stays_while_nobody_is_attached() {
    by_both_traps(|trap| {
        let cluster = cluster(3, trap).start();
        let mut home = owner(cluster.node(1), 8 * PAGE);
        let (mut second, mut third) = (user(cluster.node(2)), user(cluster.node(3)));
        second.must(&format!("fill 0 {} 5", 8 * PAGE));
        assert_eq!(third.must(&format!("check 0 {} 5", 4 * PAGE)), "0");
        for puppet in [&mut home, &mut second, &mut third] {
            puppet.must("detach");
        }
        assert_eq!(third.must("nattch"), "0");
        for puppet in [&mut third, &mut home, &mut second] {
            puppet.must("attach 10000");
            assert_eq!(puppet.must(&format!("check 0 {} 5", 8 * PAGE)), "0");
            assert_eq!(refused(puppet, "poke 0 1"), "SIGSEGV");
        }
        assert_eq!(home.must("nattch"), "3");
    });
}

#[test]
fn attachments_are_counted_in_the_whole_cluster() {
    by_both_traps(|trap| {
        let cluster = cluster(3, trap).start();
        let mut home = owner(cluster.node(1), 4 * PAGE);
        let (mut second, mut third) = (user(cluster.node(2)), user(cluster.node(3)));
        assert_eq!(home.must("nattch"), "3");
        second.must("attach 0");
        assert_eq!(third.must("nattch"), "4");
        let child = second.must("fork");
        assert_eq!(home.must("nattch"), "6");
        third.must(&format!("unmap {PAGE} {PAGE}"));
        assert_eq!(second.must("nattch"), "7");
        second.must(&format!("end {child}"));
        assert_eq!(home.must("nattch"), "5");
        second.kill();
        assert_eq!(home.must("nattch"), "3");
        third.must("exec");
        assert_eq!(home.must("nattch"), "1");
        third.must("attach 0");
        assert_eq!(home.must("nattch"), "2");
        home.must("detach");
        assert_eq!(third.must("nattch"), "1");
        drop(third);
        assert_eq!(home.must("nattch"), "0");
    });
}

#[test]
fn a_removed_segment_is_deleted_at_its_last_detach() {
    by_both_traps(|trap| {
        let cluster = cluster(3, trap).start();
        let mut home = owner(cluster.node(1), 4 * PAGE);
        let (mut second, mut third) = (user(cluster.node(2)), user(cluster.node(3)));
        second.must(&format!("fill 0 {} 9", 4 * PAGE));
        third.must("rmid");
        assert_eq!(refused(&mut second, &format!("shmget {KEY} 0 010600")), "ENOENT");
        // The key is free, and another home may have it.
        let mut other = Puppet::of_pages(cluster.node(2));
        other.must(&format!("shmget {KEY} {PAGE} 013600"));
        other.must("attach 0");
        assert_eq!(other.must("peek 0"), "0");
        // By its id it can be attached as long as somebody has it.
        home.must("detach");
        third.must("attach 0");
        assert_eq!(third.must(&format!("check 0 {} 9", 4 * PAGE)), "0");
        third.must("detach");
        third.must("detach");
        home.must("attach 0");
        assert_eq!(home.must("nattch"), "2");
        home.must("detach");
        second.kill();
        assert_eq!(refused(&mut home, "nattch"), "EINVAL");
        assert_eq!(refused(&mut third, "attach 0"), "EINVAL");
        other.must("rmid");
    });
}

#[test]
fn nothing_is_left_of_killed_programs_and_removed_segments() {
    by_both_traps(|trap| {
        let cluster = cluster(3, trap).start();
        for round in 0..3 {
            let mut home = owner(cluster.node(1 + round % 3), 32 * PAGE);
            let mut others: Vec<Puppet> = cluster.nodes().iter().map(user).collect();
            for (at, other) in others.iter_mut().enumerate() {
                other.must(&format!("fill {} {} 1", at * PAGE, 16 * PAGE));
                other.must("fork");
            }
            home.must("rmid");
            for other in others {
                other.kill();
            }
            home.kill();
        }
        for node in cluster.nodes() {
            let left = || {
                let (files, records) = (files_held(node), records_left(node));
                (files.is_empty() && records.is_empty()).then_some(()).ok_or((files, records))
            };
            wait_until(&format!("node {} forgets: {:?}", node.number, left()), || left().ok());
        }
    });
}

#[test]
fn a_segment_tells_who_did_what() {
    by_both_traps(|trap| {
        let cluster = cluster(2, trap).start();
        let mut home = owner(cluster.node(1), 5000);
        let mut away = Puppet::of_pages(cluster.node(2));
        let id = away.must(&format!("shmget {KEY} 0 010600"));
        let pid = |puppet: &mut Puppet| puppet.must("pid");
        assert_eq!((away.must("bytes"), away.must("mode")), ("5000".into(), "384".into()));
        assert_eq!((away.must("creator"), away.must("last")), (pid(&mut home), pid(&mut home)));
        away.must("attach 0");
        assert_eq!((home.must("last"), home.must("atime")), (pid(&mut away), "1".into()));
        assert_eq!(home.must("dtime"), "0");
        away.must("detach");
        assert_eq!(home.must("dtime"), "1");
        away.must("chmod 640");
        assert_eq!(home.must("mode"), "416");
        away.must("lock");
        assert_eq!(home.must("locked"), "1");
        home.must("unlock");
        assert_eq!(away.must("locked"), "0");
        // An id is as good as a key.
        let mut third = Puppet::of_pages(cluster.node(2));
        third.must(&format!("segment {id}"));
        third.must("attach 0");
        home.must("poke 4096 6");
        assert_eq!(third.must("peek 4096"), "6");
    });
}

/// A puppet of another user, who has attached the segment.
#[track_caller]
fn user_as(node: &dipc_tests::Node, uid: u32, flags: &str) -> Puppet {
    let mut puppet = Puppet::of_pages(node);
    puppet.must(&format!("become {uid}"));
    puppet.must(&format!("shmget {KEY} 0 010000"));
    puppet.must(&format!("attach {flags}"));
    puppet
}

#[test]
fn users_who_may_only_read_read_and_never_write() {
    if skip::needs_root("users_who_may_only_read_read_and_never_write") {
        return;
    }
    by_both_traps(|trap| {
        let cluster = cluster(3, trap).start();
        let mut home = owner(cluster.node(1), 8 * PAGE);
        home.must("chmod 644");
        let mut writer = user(cluster.node(2));
        let mut readers: Vec<Puppet> = [(1, NOBODY), (2, NOBODY), (2, DAEMON), (3, DAEMON)]
            .map(|(node, uid)| user_as(cluster.node(node), uid, "10000"))
            .into();
        for round in 0..4 {
            let who = if round % 2 == 0 { &mut home } else { &mut writer };
            who.must(&format!("fill 0 {} {round}", 8 * PAGE));
            for reader in &mut readers {
                assert_eq!(reader.must(&format!("check 0 {} {round}", 8 * PAGE)), "0");
                assert_eq!(refused(reader, "poke 0 1"), "SIGSEGV");
                assert_eq!(refused(reader, &format!("open 0 {PAGE}")), "EACCES");
            }
        }
        assert_eq!(home.must("nattch"), "6");
        let mut reader = Puppet::of_pages(cluster.node(3));
        reader.must(&format!("become {NOBODY}"));
        reader.must(&format!("shmget {KEY} 0 010000"));
        assert_eq!(refused(&mut reader, "attach 0"), "EACCES");
        assert_eq!(refused(&mut reader, "rmid"), "EPERM");
        home.must("chmod 600");
        assert_eq!(refused(&mut reader, "attach 10000"), "EACCES");
        assert_eq!(refused(&mut reader, "nattch"), "EACCES");
        // Who has it keeps it.
        home.must("poke 0 77");
        assert_eq!(readers[3].must("peek 0"), "77");
    });
}

#[test]
fn users_who_may_write_share_with_each_other() {
    if skip::needs_root("users_who_may_write_share_with_each_other") {
        return;
    }
    by_both_traps(|trap| {
        let cluster = cluster(2, trap).start();
        let mut owner = Puppet::of_pages(cluster.node(1));
        owner.must(&format!("become {NOBODY}"));
        owner.must(&format!("shmget {KEY} {} 013666", 4 * PAGE));
        owner.must("attach 0");
        let mut others = [
            user_as(cluster.node(1), DAEMON, "0"),
            user_as(cluster.node(2), DAEMON, "0"),
            user_as(cluster.node(2), NOBODY, "0"),
            user(cluster.node(2)),
        ];
        assert_eq!(owner.must("owner"), NOBODY.to_string());
        for (seed, other) in others.iter_mut().enumerate() {
            agree(&mut owner, other, 4 * PAGE, seed);
            agree(other, &mut owner, 4 * PAGE, seed + 10);
        }
        assert_eq!(refused(&mut others[1], "rmid"), "EPERM");
        others[2].must("rmid");
    });
}

#[test]
fn several_attachments_and_children_are_one_memory() {
    by_both_traps(|trap| {
        let cluster = cluster(2, trap).start();
        let mut home = owner(cluster.node(1), 4 * PAGE);
        let mut away = user(cluster.node(2));
        away.must("attach 0");
        away.must("attach 10000");
        home.must("attach 0");
        let children = [home.must("fork"), away.must("fork")];
        for round in 0..5 {
            home.must(&format!("fill 0 {} {round}", 4 * PAGE));
            assert_eq!(away.must(&format!("check 0 {} {round}", 4 * PAGE)), "0");
        }
        away.must("detach");
        agree(&mut away, &mut home, 4 * PAGE, 50);
        home.must("detach");
        agree(&mut home, &mut away, 4 * PAGE, 60);
        assert_eq!(home.must("nattch"), "8");
        home.must(&format!("end {}", children[0]));
        away.must(&format!("end {}", children[1]));
        assert_eq!(home.must("nattch"), "3");
    });
}

#[test]
fn parts_of_an_attachment_go_their_own_ways() {
    by_both_traps(|trap| {
        let cluster = cluster(2, trap).start();
        let mut home = owner(cluster.node(1), 8 * PAGE);
        let mut away = user(cluster.node(2));
        home.must(&format!("fill 0 {} 1", 8 * PAGE));
        away.must(&format!("unmap {} {PAGE}", 2 * PAGE));
        away.must(&format!("protect {} {PAGE}", 4 * PAGE));
        assert_eq!(refused(&mut away, &format!("peek {}", 2 * PAGE)), "SIGSEGV");
        assert_eq!(refused(&mut away, &format!("poke {} 1", 4 * PAGE)), "SIGSEGV");
        assert_eq!(away.must(&format!("check 0 {} 1", 2 * PAGE)), "0");
        assert_eq!(away.must(&format!("check {} {} 1", 3 * PAGE, 5 * PAGE)), "0");
        // A hole in the segment is made everywhere.
        away.must(&format!("remove {} {PAGE}", 6 * PAGE));
        assert_eq!(home.must(&format!("zeros {} {PAGE}", 6 * PAGE)), "0");
        assert_eq!(home.must(&format!("check 0 {} 1", 6 * PAGE)), "0");
        home.must(&format!("remove 0 {PAGE}"));
        assert_eq!(away.must(&format!("zeros 0 {PAGE}")), "0");
        away.must(&format!("open {} {PAGE}", 4 * PAGE));
        away.must(&format!("poke {} 5", 4 * PAGE));
        assert_eq!(home.must(&format!("peek {}", 4 * PAGE)), "5");
    });
}

#[test]
fn the_kernel_reads_and_writes_pages_of_other_nodes() {
    let cluster = cluster(2, "userfaultfd").start();
    let mut home = owner(cluster.node(1), 16 * PAGE);
    let mut away = user(cluster.node(2));
    let (from, to) = (cluster.directory().join("from"), cluster.directory().join("to"));
    let bytes = 8 * PAGE;
    home.must(&format!("fill 0 {bytes} 3"));
    // write(2) at the other node, of pages that were never there.
    assert_eq!(number(&mut away, &format!("store {} 0 {bytes}", from.display())), bytes as i64);
    let content = fs::read(&from).expect("a puppet wrote it");
    home.must(&format!("stride 0 {bytes} 8 0"));
    assert_eq!(number(&mut away, &format!("load {} 0 {bytes}", from.display())), bytes as i64);
    assert_eq!(home.must(&format!("check 0 {bytes} 3")), "0");
    assert_eq!(number(&mut home, &format!("store {} 0 {bytes}", to.display())), bytes as i64);
    assert_eq!(fs::read(&to).expect("a puppet wrote it"), content);
    // Into the middle of pages that the other side has written meanwhile.
    home.must(&format!("fill {bytes} {bytes} 4"));
    let middle = bytes + 100;
    away.must(&format!("load {} {middle} {PAGE}", from.display()));
    assert_eq!(home.must(&format!("check {bytes} 96 4")), "0");
    assert_eq!(home.must(&format!("check {} {PAGE} 4", middle + PAGE + 4)), "0");
}

#[test]
fn many_segments_at_once() {
    by_both_traps(|trap| {
        let cluster = cluster(2, trap).start();
        let mut home = Puppet::of_pages(cluster.node(1));
        let mut away = Puppet::of_pages(cluster.node(2));
        let ids: Vec<String> = (0..24)
            .map(|at| home.must(&format!("shmget 0 {} 011600", (1 + at % 5) * PAGE)))
            .collect();
        for (at, id) in ids.iter().enumerate() {
            home.must(&format!("segment {id}"));
            home.must("attach 0");
            home.must(&format!("poke 0 {at}"));
        }
        for (at, id) in ids.iter().enumerate() {
            away.must(&format!("segment {id}"));
            away.must("attach 0");
            assert_eq!(away.must("add 0 1000"), (1000 + at).to_string());
        }
        for at in (0..ids.len()).rev() {
            assert_eq!(home.must("peek 0"), (1000 + at).to_string());
            home.must("detach");
        }
        for id in &ids {
            home.must(&format!("segment {id}"));
            home.must("rmid");
        }
    });
}

/// Under the mprotect trap each fault is a signal and many wake-ups, so one opens what the node has
/// of the pages behind it too; a fork has closed everything before.
#[test]
fn a_touch_opens_what_the_node_has_behind_it() {
    const OPENED: usize = 256 << 10;
    let cluster = cluster(2, "mprotect").start();
    let mut home = owner(cluster.node(1), 2 * OPENED);
    let mut away = user(cluster.node(2));
    agree(&mut home, &mut away, 2 * OPENED, 5);
    let child = away.must("fork");
    assert_eq!(open_bytes(&away), 0);
    away.must("peek 0");
    assert_eq!(open_bytes(&away), OPENED);
    home.must(&format!("poke {} 7", 3 * PAGE));
    assert_eq!(open_bytes(&away), OPENED - PAGE, "one is taken away");
    away.must(&format!("end {child}"));
    agree(&mut away, &mut home, 2 * OPENED, 6);
    agree(&mut home, &mut away, 2 * OPENED, 7);
}

/// How much of segments a program may touch without a fault: /proc/PID/maps.
fn open_bytes(puppet: &Puppet) -> usize {
    let maps = fs::read_to_string(format!("/proc/{}/maps", puppet.process().pid()));
    let maps = maps.expect("it runs");
    let ours = maps.lines().filter(|line| line.contains("/memfd:dipc-"));
    let open = ours.filter(|line| !line.contains(" ---"));
    let bytes = |line: &str| {
        let (start, end) = line.split_once(' ')?.0.split_once('-')?;
        let address = |hex| usize::from_str_radix(hex, 16).ok();
        Some(address(end)? - address(start)?)
    };
    open.map(|line| bytes(line).expect("a range of addresses")).sum()
}

/// Each home has to ask the other for its count; neither must be too busy waiting to give one.
#[test]
fn homes_that_count_for_each_other_do_not_wait_for_each_other() {
    const OTHER: &str = "0x5e60008";
    let cluster = cluster(2, "auto").start();
    let _owner = owner(cluster.node(1), PAGE);
    let mut other = Puppet::of_pages(cluster.node(2));
    other.must(&format!("shmget {OTHER} {PAGE} 013600"));
    let mut first = Puppet::of_pages(cluster.node(1));
    first.must(&format!("shmget {OTHER} 0 010600"));
    first.must("attach 0");
    let mut second = user(cluster.node(2));
    for _ in 0..200 {
        first.begin("nattch");
        second.begin("nattch");
        assert_eq!((first.answer(), second.answer()), (Ok("1".into()), Ok("2".into())));
    }
}

#[test]
fn a_segment_of_another_machine_needs_a_dipcd() {
    let cluster = Cluster::start(1);
    let mut puppet = owner(cluster.node(1), PAGE);
    puppet.must("poke 0 1");
    let id = puppet.must(&format!("shmget {KEY} 0 010600"));
    let mut stranger = dipc_tests::Running::new(
        "a program without libdipc",
        spawn_without_library(cluster.node(1)),
    );
    stranger.tell(&format!("segment {id}"));
    stranger.tell("attach 0");
    assert_eq!(stranger.line(1), "! EINVAL", "the kernel knows no such id");
    puppet.must("rmid");
}

fn spawn_without_library(node: &dipc_tests::Node) -> std::process::Child {
    let mut command = std::process::Command::new(crate::memory::program("page_puppet"));
    dipc_tests::Running::pipes(&mut command);
    node.machine().start(&mut command)
}
