//! Segments when something fails: DESIGN.md section 7, row by row. While programs, dipcds and links
//! are killed, every value that is read is held against a journal (`tests/c/journal.c`); what is
//! lost for good gives SIGBUS, and nobody waits for ever.
#![forbid(unsafe_code)]

use std::fs;
use std::path::PathBuf;

use dipc_tests::impostor::Impostor;
use dipc_tests::{Builder, Cluster, Node, Puppet, Running, process::wait_until, programs, skip};
use dipc_wire::client::{Answer, Call, Place, Traps};
use dipc_wire::ids::NodeId;
use dipc_wire::sysv::SysvError;
use rustix::process::Signal;

use crate::memory::{
    KEY, PAGE, TRAPS, by_both_traps, cluster, files_held, impatient, number, owner, patient,
    records_left, refused, soon_refused, user,
};

/// Bytes of the journal's segment: a group of words a page, and pages between them.
const BYTES: usize = 1 << 20;
/// What each program must do between two disturbances: nobody is stuck.
const PROGRESS: u64 = 20;
/// Disturbances of a run.
const LONG: usize = 120;
const PLAIN: usize = 6;
/// Words of the journal before those that count what each program does.
const WORDS: usize = 512;

/// Programs at work on one segment, and their journal.
struct Work<'a> {
    cluster: &'a Cluster,
    journal: PathBuf,
    workers: Vec<Running>,
    random: u64,
}

impl<'a> Work<'a> {
    /// Two programs on each node. Home is node 1.
    fn start(cluster: &'a Cluster, seed: u64) -> Work<'a> {
        let journal = cluster.directory().join("journal");
        owner(cluster.node(1), BYTES).must("detach");
        let workers = Vec::new();
        let random = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let mut work = Work { cluster, journal, workers, random };
        work.workers =
            (0..2 * cluster.nodes().len()).map(|at| work.worker(1 + at / 2, at)).collect();
        work
    }

    fn worker(&self, node: usize, slot: usize) -> Running {
        let file = self.journal.to_str().expect("a plain path");
        let arguments = [KEY, &BYTES.to_string(), file, &slot.to_string()];
        self.cluster.node(node).spawn(programs::helper("journal"), &arguments)
    }

    fn below(&mut self, bound: usize) -> usize {
        self.random ^= self.random >> 12;
        self.random ^= self.random << 25;
        self.random ^= self.random >> 27;
        (self.random.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % bound
    }

    fn any_node(&mut self) -> usize {
        1 + self.below(self.cluster.nodes().len())
    }

    /// Kills a program; another one begins, perhaps elsewhere.
    fn replace_a_worker(&mut self) {
        let (at, node) = (self.below(self.workers.len()), self.any_node());
        self.workers[at].signal(Signal::KILL);
        self.workers[at] = self.worker(node, at);
    }

    /// The journal's words.
    fn words(&self) -> Vec<u64> {
        let bytes = fs::read(&self.journal).unwrap_or_default();
        let words = bytes.chunks_exact(8);
        words.map(|word| u64::from_le_bytes(word.try_into().expect("eight bytes"))).collect()
    }

    /// What each program has done so far; those before it in its place count too.
    fn steps(&self) -> Vec<u64> {
        let mut steps = self.words().split_off(self.words().len().min(2 * WORDS));
        steps.resize(self.workers.len(), 0);
        steps
    }

    #[track_caller]
    fn until_progress(&mut self) {
        let before = self.steps();
        wait_until("the programs go on", || {
            let now = self.steps();
            let goes_on = |(now, before): (&u64, &u64)| *now >= before + PROGRESS;
            (now.iter().zip(&before).all(goes_on) || !self.all_well()).then_some(())
        });
        assert!(self.all_well(), "a program has ended: {}", self.complaints());
    }

    fn all_well(&mut self) -> bool {
        self.workers.iter_mut().all(Running::is_running)
    }

    /// What those said that have ended by themselves.
    fn complaints(&mut self) -> String {
        let ended = self.workers.extract_if(.., |worker| !worker.is_running());
        ended.map(|worker| format!("{:?}\n", worker.wait())).collect()
    }

    /// Ends the programs, and looks at every word on every node. How much was done.
    #[track_caller]
    fn finish(mut self) -> String {
        for worker in std::mem::take(&mut self.workers) {
            let said = worker.wait().expect_success();
            assert!(said.contains("read "), "{said}");
        }
        let file = self.journal.to_str().expect("a plain path");
        for node in self.cluster.nodes() {
            let arguments = [KEY, &BYTES.to_string(), file, "check"];
            node.run(programs::helper("journal"), &arguments).expect_success();
        }
        let words = self.words();
        let done: u64 = words[WORDS..2 * WORDS].iter().sum();
        format!("{done} additions")
    }
}

/// Programs work while `disturb` happens again and again; every value they see must be right.
#[track_caller]
fn work_while(name: &str, nodes: &Cluster, trap: &str, disturb: impl Fn(&mut Work<'_>)) {
    let name = format!("{name} {trap}");
    let count = skip::amount(&name, LONG, PLAIN);
    let seed = u64::from(std::process::id());
    let mut work = Work::start(nodes, seed);
    work.until_progress();
    for _ in 0..count {
        disturb(&mut work);
        work.until_progress();
    }
    let said = work.finish();
    skip::note(&format!("{name}: {said}, seed {seed}"));
}

/// Bounds are wide: a referee that is killed again and again keeps new names waiting.
fn three(trap: &str) -> Builder {
    cluster(3, trap)
        .entry("employer_shm_timeout", "120")
        .entry("employer_referee_timeout", "50")
        .entry("referee_timeout", "40")
        .entry("node_timeout", "20")
        .entry("lease", "10")
}

#[test]
fn programs_are_killed_and_others_go_on() {
    by_both_traps(|trap| {
        let nodes = three(trap).start();
        let name = "programs_are_killed_and_others_go_on";
        work_while(name, &nodes, trap, |work| work.replace_a_worker());
    });
}

#[test]
fn the_dipcd_of_home_is_killed_again_and_again() {
    by_both_traps(|trap| {
        let nodes = three(trap).start();
        let name = "the_dipcd_of_home_is_killed_again_and_again";
        work_while(name, &nodes, trap, |work| work.cluster.node(1).kill_and_restart());
    });
}

#[test]
fn the_dipcd_of_a_replica_is_killed_again_and_again() {
    by_both_traps(|trap| {
        let nodes = three(trap).start();
        let name = "the_dipcd_of_a_replica_is_killed_again_and_again";
        work_while(name, &nodes, trap, |work| work.cluster.node(2).kill_and_restart());
    });
}

#[test]
fn any_dipcd_and_any_program_is_killed() {
    by_both_traps(|trap| {
        let nodes = three(trap).start();
        let name = "any_dipcd_and_any_program_is_killed";
        work_while(name, &nodes, trap, |work| match work.below(4) {
            0 => work.replace_a_worker(),
            1 => {
                // Two at once.
                let (one, other) = (work.any_node(), work.any_node());
                work.cluster.node(one).kill();
                if other != one {
                    work.cluster.node(other).kill();
                    work.cluster.node(other).start();
                }
                work.cluster.node(one).start();
            }
            _ => {
                let node = work.any_node();
                work.cluster.node(node).kill_and_restart();
            }
        });
    });
}

#[test]
fn links_break_and_come_back() {
    for trap in TRAPS {
        let Some(nodes) = three(trap).start_with_network() else {
            return skip::skip("links_break_and_come_back", "needs root and ip(8)");
        };
        work_while("links_break_and_come_back", &nodes, trap, |work| {
            let (one, other) = [(1, 2), (1, 3), (2, 3)][work.below(3)];
            work.cluster.cut(one, other);
            work.cluster.heal(one, other);
        });
    }
}

#[test]
fn keepers_are_killed() {
    by_both_traps(|trap| {
        let nodes = three(trap).start();
        work_while("keepers_are_killed", &nodes, trap, |work| {
            let node = work.any_node();
            let node = work.cluster.node(node);
            let keeper = node.keeper().expect("a keeper runs");
            rustix::process::kill_process(keeper, Signal::KILL).expect("it runs");
            wait_until("another keeper", || node.keeper().filter(|new| *new != keeper));
        });
    });
}

#[test]
fn a_fault_waits_while_a_dipcd_is_away() {
    by_both_traps(|trap| {
        let cluster = patient(2, trap).start();
        let mut home = owner(cluster.node(1), 8 * PAGE);
        let mut away = user(cluster.node(2));
        home.must(&format!("fill 0 {} 6", 8 * PAGE));
        for (round, node) in [1, 2, 1, 2].into_iter().enumerate() {
            let at = round * PAGE;
            cluster.node(node).kill();
            away.begin(&format!("check {at} {PAGE} 6"));
            away.until_waiting();
            cluster.node(node).start();
            assert_eq!(away.answer(), Ok("0".into()), "dipcd of node {node}");
        }
        // Home's own program waits for a page that the other node has.
        away.must(&format!("fill 0 {} 7", 8 * PAGE));
        for (round, node) in [2, 1, 2].into_iter().enumerate() {
            let at = round * PAGE;
            cluster.node(node).kill();
            home.begin(&format!("check {at} {PAGE} 7"));
            home.until_waiting();
            cluster.node(node).start();
            assert_eq!(home.answer(), Ok("0".into()), "dipcd of node {node}");
        }
    });
}

#[test]
fn a_program_that_dies_in_a_fault_takes_nothing_with_it() {
    by_both_traps(|trap| {
        let cluster = patient(3, trap).start();
        let mut home = owner(cluster.node(1), 8 * PAGE);
        home.must(&format!("fill 0 {} 6", 8 * PAGE));
        let (mut second, mut third) = (user(cluster.node(2)), user(cluster.node(3)));
        cluster.node(1).freeze();
        second.begin("poke 0 1");
        second.until_waiting();
        third.begin(&format!("check {PAGE} {PAGE} 6"));
        third.until_waiting();
        second.kill();
        cluster.node(1).thaw();
        assert_eq!(third.answer(), Ok("0".into()));
        assert_eq!(third.must(&format!("check 0 {} 6", 8 * PAGE)), "0");
        assert_eq!(home.must("nattch"), "2");
    });
}

/// A program that pulls its attachment from under a waiting thread harms nobody but itself.
fn rude(trap: &str, way: &str) {
    eprintln!("---- {trap}: {way}");
    let cluster = patient(2, trap).start();
    let mut home = owner(cluster.node(1), 8 * PAGE);
    home.must(&format!("fill 0 {} 6", 8 * PAGE));
    let mut polite = user(cluster.node(2));
    let arguments = [way, KEY, &(5 * PAGE).to_string()];
    let mut rude = cluster.node(2).spawn(programs::helper("rude"), &arguments);
    rude.wait_for("attached");
    if way == "descriptors" {
        rude.tell("go");
        assert!(rude.wait().expect_success().contains("read it"));
    } else {
        cluster.node(1).freeze();
        rude.tell("go");
        rude.wait_for("waits");
        cluster.node(1).thaw();
        let output = rude.wait();
        let killed = way == "kill" && !output.status.success();
        assert!(killed || output.status.success(), "{trap}, {way}: {output:?}");
    }
    assert_eq!(polite.must(&format!("check 0 {} 6", 8 * PAGE)), "0", "{trap}, {way}");
    polite.must(&format!("fill 0 {} 8", 8 * PAGE));
    assert_eq!(home.must(&format!("check 0 {} 8", 8 * PAGE)), "0", "{trap}, {way}");
    assert_eq!(home.must("nattch"), "2", "{trap}, {way}");
}

#[test]
fn attachments_are_pulled_from_under_waiting_threads() {
    for way in ["unmap", "map", "move", "protect", "dontneed", "fork", "shmdt", "kill", "exit"] {
        rude("userfaultfd", way);
    }
    for way in ["exec", "descriptors"] {
        by_both_traps(|trap| rude(trap, way));
    }
    // What the mprotect trap's library does not see it cannot serve; what it sees it does.
    for way in ["fork", "shmdt", "kill", "exit"] {
        rude("mprotect", way);
    }
}

#[test]
fn pages_of_a_lost_node_are_lost_and_others_are_not() {
    by_both_traps(|trap| {
        let cluster = impatient(3, trap).start();
        let mut home = owner(cluster.node(1), 4 * PAGE);
        let (mut second, mut third) = (user(cluster.node(2)), user(cluster.node(3)));
        home.must(&format!("fill 0 {} 6", 4 * PAGE));
        second.must("poke 0 1");
        assert_eq!(second.must(&format!("check {PAGE} {PAGE} 6")), "0");
        assert_eq!(third.must("peek 0"), "1");
        second.must("poke 0 2");
        cluster.node(2).kill_everything();
        assert_eq!(refused(&mut home, "peek 0"), "SIGBUS");
        assert_eq!(refused(&mut third, "peek 0"), "SIGBUS");
        assert_eq!(refused(&mut third, "poke 0 1"), "SIGBUS");
        for puppet in [&mut home, &mut third] {
            assert_eq!(puppet.must(&format!("check {PAGE} {} 6", 3 * PAGE)), "0");
        }
        third.must(&format!("fill {PAGE} {} 9", 3 * PAGE));
        assert_eq!(home.must(&format!("check {PAGE} {} 9", 3 * PAGE)), "0");
        assert_eq!(home.must("nattch"), "2");
        cluster.node(1).wait_for_log("lost");
    });
}

/// After a power cut a node may be back before anybody has noticed that it was gone.
#[test]
fn a_node_that_comes_back_with_nothing_is_not_waited_for() {
    by_both_traps(|trap| {
        let cluster = cluster(2, trap).entry("node_timeout", "100").entry("lease", "60").start();
        let mut home = owner(cluster.node(1), 4 * PAGE);
        let mut away = user(cluster.node(2));
        home.must(&format!("fill 0 {} 6", 4 * PAGE));
        away.must("poke 0 1");
        assert_eq!(away.must(&format!("check {PAGE} {PAGE} 6")), "0");
        cluster.node(2).kill_everything();
        cluster.node(2).start();
        assert_eq!(refused(&mut home, "peek 0"), "SIGBUS");
        home.must(&format!("fill {PAGE} {} 7", 3 * PAGE));
        assert_eq!(home.must("nattch"), "1");
        let mut away = user(cluster.node(2));
        assert_eq!(away.must(&format!("check {PAGE} {} 7", 3 * PAGE)), "0");
    });
}

/// A dipcd that is killed while it is given a userfaultfd has perhaps initialised it, so that its
/// successor can only refuse it: the program makes another one.
#[test]
fn a_trap_that_a_killed_dipcd_had_taken_is_made_anew() {
    let cluster = Cluster::start(1);
    let node = cluster.node(1);
    let path = node.directory().join("impostor");
    let dipcd = Impostor::at(&path);
    let mut command = node.command(programs::helper("page_puppet"), &[]);
    command.env("DIPC_SOCKET", &path);
    let mut puppet = Puppet::from(node.machine().spawn(command));
    puppet.must("segment 1073773824");
    puppet.begin("attach 0");
    let resolve = dipcd.next();
    let Call::Resolve { id, .. } = resolve.call else { panic!("it wants {:?}", resolve.call) };
    let place = Place::There { home: NodeId::new(1).expect("a number") };
    resolve.answer(&Answer::Object { id, place });
    let asked = dipcd.next();
    assert_eq!(asked.call, Call::HowToTrap);
    let traps = Traps { userfaultfd: true, device: false, mprotect: false };
    asked.answer(&Answer::Traps(traps));
    let next = || {
        let asked = dipcd.next();
        let Call::Trap { sentinel, .. } = asked.call else { panic!("it wants {:?}", asked.call) };
        (sentinel, asked)
    };
    let (first, killed) = next();
    drop(killed);
    let (again, successor) = next();
    assert_eq!(again, first, "the call is repeated");
    successor.answer(&Answer::Refused(SysvError::EINVAL));
    let (another, asked) = next();
    assert_ne!(another, first, "the page may be registered with the one before");
    asked.answer(&Answer::Refused(SysvError::ENOMEM));
    assert_eq!(puppet.answer(), Err("ENOMEM".into()));
}

/// Whether the kernel has accesses of a program to the segment reported: /proc/PID/smaps.
fn is_watched(puppet: &Puppet) -> bool {
    let smaps = fs::read_to_string(format!("/proc/{}/smaps", puppet.process().pid()));
    let smaps = smaps.expect("it runs");
    let ours = smaps.split("VmFlags:").collect::<Vec<_>>();
    let is_ours = |pair: &&[&str]| pair[0].contains("/memfd:dipc-");
    let flags = |pair: &[&str]| pair[1].lines().next().unwrap_or_default().to_owned();
    let watched = ours.windows(2).filter(is_ours).map(flags);
    watched.into_iter().any(|flags| flags.split_ascii_whitespace().any(|flag| flag == "um"))
}

#[test]
fn access_is_the_kernels_own_again_when_nobody_else_is_left() {
    let cluster = impatient(3, "userfaultfd").start();
    let mut home = owner(cluster.node(1), 64 * PAGE);
    assert!(!is_watched(&home), "nobody else has it yet");
    for how in ["detached", "lost"] {
        home.must(&format!("fill 0 {} 6", 64 * PAGE));
        let mut second = user(cluster.node(2));
        assert!(is_watched(&home));
        assert_eq!(second.must(&format!("check 0 {} 6", 64 * PAGE)), "0");
        second.must(&format!("fill {} {} 7", 8 * PAGE, 8 * PAGE));
        if how == "detached" {
            second.must("detach");
        } else {
            // What it alone has is lost, and stays watched: so it gives that back first.
            assert_eq!(home.must(&format!("check {} {} 7", 8 * PAGE, 8 * PAGE)), "0");
            cluster.node(2).kill_everything();
        }
        wait_until(&format!("nothing is watched, {how}"), || (!is_watched(&home)).then_some(()));
        assert_eq!(home.must(&format!("check 0 {} 6", 8 * PAGE)), "0", "{how}");
        assert_eq!(home.must(&format!("check {} {} 7", 8 * PAGE, 8 * PAGE)), "0", "{how}");
        assert_eq!(home.must(&format!("check {} {} 6", 16 * PAGE, 48 * PAGE)), "0", "{how}");
        assert_eq!(home.must("nattch"), "1");
    }
    let mut third = user(cluster.node(3));
    home.must(&format!("fill 0 {} 8", 64 * PAGE));
    assert_eq!(third.must(&format!("check 0 {} 8", 64 * PAGE)), "0");
}

#[test]
fn a_lost_page_may_be_served_stale() {
    by_both_traps(|trap| {
        let cluster = impatient(2, trap).entry("lost_page", "stale").start();
        let mut home = owner(cluster.node(1), 4 * PAGE);
        let mut away = user(cluster.node(2));
        home.must("poke 0 4");
        away.must("poke 0 5");
        assert_eq!(away.must("peek 0"), "5");
        cluster.node(2).kill_everything();
        assert_eq!(home.must("peek 0"), "4", "home's last copy");
        home.must("poke 0 6");
        assert_eq!(home.must("peek 0"), "6");
    });
}

#[test]
fn a_lost_home_gives_sigbus_and_its_key_is_free() {
    by_both_traps(|trap| {
        let cluster = impatient(3, trap).start();
        let mut home = owner(cluster.node(2), 4 * PAGE);
        let (mut first, mut third) = (user(cluster.node(1)), user(cluster.node(3)));
        home.must(&format!("fill 0 {} 6", 4 * PAGE));
        assert_eq!(third.must(&format!("check 0 {PAGE} 6")), "0");
        cluster.node(2).kill_everything();
        assert_eq!(refused(&mut first, &format!("peek {}", 2 * PAGE)), "SIGBUS");
        assert_eq!(refused(&mut third, &format!("poke {} 1", 3 * PAGE)), "SIGBUS");
        wait_until("the lease ends", || third.call("peek 0").err());
        assert!(["EIDRM", "EINVAL"].contains(&refused(&mut first, "nattch").as_str()));
        first.must("detach");
        let mut again = Puppet::of_pages(cluster.node(3));
        wait_until("the key is free", || again.call(&format!("shmget {KEY} {PAGE} 011600")).ok());
        again.must("attach 0");
        assert_eq!(again.must("peek 0"), "0");
        again.must("poke 0 1");
        first.must(&format!("shmget {KEY} 0 010600"));
        first.must("attach 0");
        assert_eq!(first.must("peek 0"), "1");
    });
}

/// What a node has of the pages of a home that does not come back is kept for it for a while, and
/// as long as a program has them attached.
#[test]
fn nothing_is_kept_for_ever_for_a_lost_home() {
    by_both_traps(|trap| {
        // Ten times as long is waited; whether the others lose each other is of no account.
        let hasty = [("node_timeout", "1.5"), ("lease", "0.8"), ("heartbeat", "0.2")];
        let builder = cluster(3, trap);
        let cluster =
            hasty.iter().fold(builder, |all, (name, value)| all.entry(name, value)).start();
        let home = owner(cluster.node(2), 4 * PAGE);
        let (mut first, mut third) = (user(cluster.node(1)), user(cluster.node(3)));
        first.must("poke 0 5");
        third.must(&format!("poke {PAGE} 6"));
        drop(home);
        cluster.node(2).kill_everything();
        assert_eq!(refused(&mut first, &format!("peek {}", 2 * PAGE)), "SIGBUS");
        first.must("detach");
        assert!(!files_held(cluster.node(1)).is_empty(), "it may come back");
        let is_bare = |node: &Node| files_held(node).is_empty() && records_left(node).is_empty();
        wait_until("nothing is left", || is_bare(cluster.node(1)).then_some(()));
        assert!(!is_bare(cluster.node(3)), "a program has it attached");
        third.kill();
        wait_until("nothing is left there", || is_bare(cluster.node(3)).then_some(()));
    });
}

#[test]
fn a_node_that_is_cut_off_uses_no_page_that_others_have_given_up_on() {
    for trap in TRAPS {
        let Some(cluster) = impatient(2, trap).start_with_network() else {
            return skip::skip("a_node_that_is_cut_off", "needs root and ip(8)");
        };
        let mut home = owner(cluster.node(1), 4 * PAGE);
        let mut away = user(cluster.node(2));
        home.must(&format!("fill 0 {} 6", 4 * PAGE));
        away.must("poke 0 5");
        assert_eq!(away.must(&format!("check {PAGE} {PAGE} 6")), "0");
        cluster.cut(1, 2);
        // Home gives the page up, and goes on with what was only read elsewhere.
        assert_eq!(refused(&mut home, "peek 0"), "SIGBUS");
        home.must(&format!("poke {PAGE} 9"));
        // From then on the other node neither reads nor writes what it had.
        away.begin(&format!("peek {PAGE}"));
        away.until_waiting();
        cluster.heal(1, 2);
        let seen = away.answer();
        assert!(seen == Ok("9".into()) || seen == Err("SIGBUS".into()), "{trap}: {seen:?}");
        assert_eq!(refused(&mut away, "peek 0"), "SIGBUS");
        wait_until("it may read again", || away.call(&format!("peek {}", 3 * PAGE)).ok());
        assert_eq!(away.must(&format!("peek {PAGE}")), "9");
        away.must(&format!("poke {} 3", 2 * PAGE));
        assert_eq!(number(&mut home, &format!("peek {}", 2 * PAGE)), 3);
    }
}

#[test]
fn a_short_silence_loses_nothing() {
    for trap in TRAPS {
        let Some(cluster) = patient(2, trap).start_with_network() else {
            return skip::skip("a_short_silence_loses_nothing", "needs root and ip(8)");
        };
        let mut home = owner(cluster.node(1), 4 * PAGE);
        let mut away = user(cluster.node(2));
        for round in 0..4 {
            away.must(&format!("fill 0 {PAGE} {round}"));
            home.must(&format!("fill {PAGE} {PAGE} {round}"));
            cluster.cut(1, 2);
            home.begin(&format!("check 0 {PAGE} {round}"));
            home.until_waiting();
            away.begin(&format!("check {PAGE} {PAGE} {round}"));
            away.until_waiting();
            cluster.heal(1, 2);
            assert_eq!(home.answer(), Ok("0".into()));
            assert_eq!(away.answer(), Ok("0".into()));
        }
    }
}

#[test]
fn a_dipcd_that_stands_still_cannot_keep_its_programs_writing() {
    by_both_traps(|trap| {
        let cluster = impatient(2, trap).start();
        let mut home = owner(cluster.node(1), 4 * PAGE);
        let mut away = user(cluster.node(2));
        away.must("poke 0 5");
        cluster.node(2).freeze();
        // The keeper ends the lease; home declares the loss after that.
        assert_eq!(refused(&mut home, "peek 0"), "SIGBUS");
        away.begin("poke 0 6");
        away.until_waiting();
        cluster.node(2).thaw();
        assert_eq!(away.answer(), Err("SIGBUS".into()), "{trap}");
        wait_until("it may write again", || away.call(&format!("poke {PAGE} 7")).ok());
        assert_eq!(home.must(&format!("peek {PAGE}")), "7");
    });
}

#[test]
fn an_orderly_stop_gives_everything_back_at_once() {
    by_both_traps(|trap| {
        let cluster = cluster(3, trap).entry("node_timeout", "40").entry("lease", "30").start();
        let mut home = owner(cluster.node(1), 4 * PAGE);
        let (mut second, mut third) = (user(cluster.node(2)), user(cluster.node(3)));
        home.must(&format!("fill 0 {} 6", 4 * PAGE));
        second.must("poke 0 5");
        assert_eq!(third.must(&format!("check {PAGE} {PAGE} 6")), "0");
        cluster.node(2).stop();
        cluster.node(2).wait_for_log("share");
        // Nobody waits for node_timeout, and what it alone had it has given back.
        assert_eq!(home.must("peek 0"), "5");
        assert_eq!(third.must(&format!("check {PAGE} {} 6", 3 * PAGE)), "0");
        assert_eq!(home.must("nattch"), "2");
        assert_eq!(refused(&mut second, "poke 0 6"), "SIGBUS");
    });
}

/// `employer_shm_timeout`: SIGBUS for who waits, and the segment is as before.
#[test]
fn a_page_that_came_too_late_is_there_the_next_time() {
    by_both_traps(|trap| {
        let cluster = soon_refused(trap);
        let mut home = owner(cluster.node(1), 4 * PAGE);
        let mut away = user(cluster.node(2));
        home.must("poke 0 4");
        away.must(&format!("poke {PAGE} 5"));
        cluster.node(2).freeze();
        assert_eq!(refused(&mut home, &format!("peek {PAGE}")), "SIGBUS");
        cluster.node(2).thaw();
        wait_until("home has it", || home.call(&format!("peek {PAGE}")).ok());
        assert_eq!(home.must(&format!("peek {PAGE}")), "5");
        cluster.node(1).freeze();
        assert_eq!(refused(&mut away, "peek 0"), "SIGBUS");
        cluster.node(1).thaw();
        wait_until("the other node has it", || away.call("peek 0").ok());
        assert_eq!(away.must("peek 0"), "4");
    });
}

/// The same while the other node may keep the page (`shm_hold_timeout`): nobody says anything when
/// that is over, and nobody faults where there was a SIGBUS.
#[test]
fn a_page_that_was_held_too_long_is_there_the_next_time() {
    by_both_traps(|trap| {
        let cluster = cluster(2, trap).entry("employer_shm_timeout", "0.5");
        let cluster = cluster.entry("shm_hold_timeout", "1.5").start();
        let mut home = owner(cluster.node(1), 4 * PAGE);
        let mut away = user(cluster.node(2));
        away.must("poke 0 5");
        assert_eq!(refused(&mut home, "peek 0"), "SIGBUS");
        wait_until("home has it", || home.call("peek 0").ok());
        assert_eq!(home.must("peek 0"), "5");
    });
}

/// Who waits to write a page that is read here gets SIGBUS too late, and what was read is not lost.
#[test]
fn a_page_that_could_not_be_written_in_time_has_its_content_still() {
    by_both_traps(|trap| {
        let cluster = cluster(2, trap).entry("employer_shm_timeout", "0.5").start();
        let mut home = owner(cluster.node(1), 4 * PAGE);
        let mut away = user(cluster.node(2));
        home.must("poke 0 4");
        home.must(&format!("poke {PAGE} 5"));
        assert_eq!(away.must("peek 0"), "4");
        assert_eq!(away.must(&format!("peek {PAGE}")), "5");
        cluster.node(2).freeze();
        assert_eq!(refused(&mut home, "poke 0 6"), "SIGBUS");
        cluster.node(2).thaw();
        wait_until("home has it", || home.call("peek 0").ok());
        assert_eq!(home.must("peek 0"), "4");
        assert_eq!(away.must("peek 0"), "4");
        cluster.node(1).freeze();
        assert_eq!(refused(&mut away, &format!("poke {PAGE} 7")), "SIGBUS");
        cluster.node(1).thaw();
        wait_until("the other node has it", || away.call(&format!("peek {PAGE}")).ok());
        assert_eq!(away.must(&format!("peek {PAGE}")), "5");
        assert_eq!(home.must(&format!("peek {PAGE}")), "5");
    });
}

#[test]
fn a_stopped_program_holds_up_nobody() {
    by_both_traps(|trap| {
        let cluster = cluster(2, trap).start();
        let mut home = owner(cluster.node(1), 4 * PAGE);
        let mut away = user(cluster.node(2));
        away.must("poke 0 5");
        away.process().signal(Signal::STOP);
        assert_eq!(home.must("peek 0"), "5");
        home.must("poke 0 6");
        away.process().signal(Signal::CONT);
        if trap == "mprotect" {
            // Its helper did not answer: it is dead, rather than stale.
            wait_until("it is counted no more", || {
                (home.call("nattch") == Ok("1".into())).then_some(())
            });
            cluster.node(2).wait_for_log("killed");
        } else {
            assert_eq!(away.must("peek 0"), "6");
        }
    });
}
