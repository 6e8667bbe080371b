//! Starting, stopping, and what is left: never anything, however the server ended. Who may stop it,
//! and what is refused with which words.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)] // A panic is how a test fails.

mod common;

use std::fs::Permissions;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::*;
use dipc_server::layout::{Geometry, key};
use dipc_server::sys::{Reach, SegmentId, Set};
use rustix::process::Signal;

/// Starts a server in the background. It must be ready when the command returns.
fn start_in_background(port: u16) {
    let output = output(dipc().args(["8", "64", &port.to_string(), "4"]));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!((output.stdout.len(), output.stderr.len()), (0, 0));
}

fn client_of(port: u16) -> Client {
    Client::connect(SocketAddr::from((Ipv4Addr::LOCALHOST, port)))
}

fn remove(port: u16) {
    let output = output(dipcrm().arg(port.to_string()));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn from_start_to_removal() {
    let port = free_port();
    start_in_background(port);
    client_of(port).ask(b"w 1 2\nhir 1 9\n", b"ok 2\nok 2\nhi");
    assert_eq!(objects(port).len(), 2);
    remove(port);
    assert_eq!(objects(port), []);
    let expected = format!("dipcrm: port {port}: no mailbox server, and nothing left of one");
    assert_eq!(refusal(dipcrm().arg(port.to_string())), expected);
}

#[test]
fn a_daemon_has_left_its_terminal() {
    let port = free_port();
    start_in_background(port);
    let (_, pid) = server_in_proc(port);
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    assert_eq!(fields[3], pid.to_string(), "it leads a session");
    for descriptor in 0..3 {
        let target = std::fs::read_link(format!("/proc/{pid}/fd/{descriptor}")).unwrap();
        assert_eq!(target.to_str(), Some("/dev/null"));
    }
    assert_eq!(std::fs::read_link(format!("/proc/{pid}/cwd")).unwrap().to_str(), Some("/"));
    remove(port);
}

/// The shared memory table's line of a port: (segment, creator's pid).
fn server_in_proc(port: u16) -> (i32, u32) {
    let table = std::fs::read_to_string("/proc/sysvipc/shm").unwrap();
    let key = key(port).to_string();
    let line = table.lines().find(|line| line.split_whitespace().next() == Some(&key)).unwrap();
    let fields: Vec<&str> = line.split_whitespace().collect();
    (fields[1].parse().unwrap(), fields[4].parse().unwrap())
}

#[test]
fn failures_are_one_line_and_leave_nothing() {
    let port = free_port();
    let number = port.to_string();
    let rows: [(&[&str], String); 5] = [
        (
            &["0", "64", &number, "4"],
            "dipc: number of mailboxes: \"0\" is not between 1 and 4096".to_owned(),
        ),
        (&["8", "64", &number], "dipc: size of packet in kbytes: missing; see dipc --help".into()),
        (&["8", "64", "65536", "4"], "dipc: port: \"65536\" is not between 1 and 65535".to_owned()),
        (
            &["--bind", "192.0.2.1", "8", "64", &number, "4"],
            format!(
                "dipc: port {port} on 192.0.2.1: Cannot assign requested address (os error 99)"
            ),
        ),
        (
            &["4096", "65536", &number, "4"],
            format!(
                "dipc: port {port}: a segment of 549772599296 bytes: \
                 Cannot allocate memory (os error 12)"
            ),
        ),
    ];
    for (arguments, expected) in rows {
        assert_eq!(refusal(dipc().args(arguments)), expected);
        assert_eq!(refusal(dipc().arg("--foreground").args(arguments)), expected);
        assert_eq!(objects(port), []);
    }
}

#[test]
fn a_port_in_use_is_refused() {
    let port = free_port();
    let _listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).unwrap();
    assert_eq!(
        refusal(dipc().args(["8", "64", &port.to_string(), "4"])),
        format!("dipc: port {port} on 127.0.0.1: Address already in use (os error 98)")
    );
    assert_eq!(objects(port), []);
}

#[test]
fn one_port_has_one_server_whatever_its_address() {
    let server = Server::start(8, 4, 4);
    let port = server.port.to_string();
    let arguments = ["--bind=127.0.0.2", "8", "4", &port, "4"];
    let expected =
        format!("dipc: port {port}: a mailbox server has it already (pid {})", server.pid());
    assert_eq!(refusal(dipc().args(arguments)), expected);
    server.client().ask(b"w 1 1\nx", b"ok 1\n");
    server.stop();
}

#[test]
fn help_and_version() {
    for mut program in [dipc(), dipcrm()] {
        let help = output(program.arg("--help"));
        let begins = help.stdout[..11].to_ascii_lowercase();
        assert!(help.status.success() && begins == b"usage: dipc");
    }
    for mut program in [dipc(), dipcrm()] {
        assert!(output(program.arg("--version")).stdout.starts_with(b"dipc"));
    }
}

#[test]
fn remains_of_a_killed_server_are_removed_by_dipcrm() {
    let server = Server::start(8, 64, 4);
    let port = server.port;
    server.client().write(1, b"old");
    server.kill();
    assert_eq!(objects(port).len(), 2, "a killed server leaves both");
    remove(port);
    assert_eq!(objects(port), []);
}

#[test]
fn remains_of_a_killed_server_are_removed_by_the_next_one() {
    let server = Server::start(8, 64, 4);
    let port = server.port;
    server.client().write(1, b"old");
    server.kill();
    let next = Server::start_with(port, 4, 4, 4, &[]);
    assert_eq!(next.client().read(1), b"", "the next server begins anew");
    next.stop();
}

/// Killed inside a write, again and again; every other time the next server finds the remains.
#[test]
fn killed_while_it_writes() {
    const BYTES: usize = 16 << 20;
    let port = free_port();
    for round in 0..if is_long() { 100 } else { 4 } {
        let server = Server::start_with(port, 1, 16 << 10, 64, &[]);
        assert_eq!(server.client().read(1), b"", "it begins anew");
        let mut client = server.client();
        let writer = std::thread::spawn(move || {
            use std::io::Write;
            let request = [format!("w 1 {BYTES}\n").into_bytes(), vec![7; BYTES]].concat();
            while client.0.write_all(&request).is_ok() {}
        });
        wait_until_written(port);
        server.kill();
        writer.join().unwrap();
        if round % 2 == 0 {
            remove(port);
            assert_eq!(objects(port), []);
        }
    }
    remove(port);
    assert_eq!(objects(port), []);
}

#[test]
fn unfinished_remains_are_removed() {
    let geometry = Geometry::new(2, 4096).unwrap();
    let port = free_port();
    // Killed before the set had its first values.
    Set::create(key(port), geometry.semaphores(), Reach::Here).unwrap();
    Server::start_with(port, 2, 4, 4, &[]).stop();
    // Killed before there was a segment.
    let set = Set::create(key(port), geometry.semaphores(), Reach::Here).unwrap();
    set.set_values(&geometry.semaphores_at_rest()).unwrap();
    remove(port);
    assert_eq!(objects(port), []);
    // Somebody removed the set by hand: the segment has no mark yet, but the right size.
    SegmentId::create(key(port), geometry.segment_bytes(), Reach::Here).unwrap();
    remove(port);
    assert_eq!(objects(port), []);
}

#[test]
fn objects_of_others_are_left_alone() {
    let port = free_port();
    let set = Set::create(key(port), 3, Reach::Here).unwrap();
    set.set_values(&[1, 2, 3]).unwrap();
    let expected =
        format!("port {port}: key {:#010x} is used by something else; left alone", key(port));
    let arguments = ["2", "4", &port.to_string(), "4"];
    assert_eq!(refusal(dipc().args(arguments)), format!("dipc: {expected}"));
    assert_eq!(refusal(dipcrm().arg(port.to_string())), format!("dipcrm: {expected}"));
    assert_eq!(set.values().unwrap(), [1, 2, 3]);
    set.remove().unwrap();
    let segment = SegmentId::create(key(port), 100, Reach::Here).unwrap();
    assert_eq!(refusal(dipc().args(arguments)), format!("dipc: {expected}"));
    assert_eq!(segment.status().unwrap().bytes, 100);
    assert_eq!(objects(port), [("shm", objects(port)[0].1)], "no set was left");
    segment.remove().unwrap();
}

#[test]
fn another_users_server_is_refused() {
    if !rustix::process::geteuid().is_root() {
        println!("skip: becoming another user needs root");
        return;
    }
    let nobody = Nobody::new("refused");
    let server = Server::start(2, 4, 4);
    let port = server.port.to_string();
    let expected = format!("dipcrm: port {port}: belongs to another user; refused");
    assert_eq!(refusal(&mut nobody.command(dipcrm().arg(&port))), expected);
    server.client().ask(b"w 1 1\nx", b"ok 1\n");
    server.stop();
}

/// Who owns the objects can write any pid into them. Root must not end that process by it.
#[test]
fn a_forged_record_ends_nobody() {
    if !rustix::process::geteuid().is_root() {
        println!("skip: becoming another user needs root");
        return;
    }
    let nobody = Nobody::new("forged");
    let port = free_port();
    let output = output(&mut nobody.command(dipc().args(["2", "4", &port.to_string(), "4"])));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let (_, real) = server_in_proc(port);
    let mut victim = Command::new("sleep").arg("600").spawn().unwrap();
    let segment = SegmentId::find(key(port), Reach::Here).unwrap().attach().unwrap();
    let slot = dipc_server::layout::Slot::all().next().unwrap();
    let machine = dipc_server::process::machine().unwrap();
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", victim.id())).unwrap();
    let started = stat.rsplit_once(')').unwrap().1.split_whitespace().nth(19).unwrap();
    let words = [machine, victim.id().into(), started.parse().unwrap(), 0, 0];
    for (at, word) in slot.words().zip(words) {
        segment.store(at, word);
    }
    let expected = format!("dipcrm: port {port}: belongs to another user; refused");
    assert_eq!(refusal(dipcrm().arg(port.to_string())), expected);
    assert!(victim.try_wait().unwrap().is_none(), "it lives");
    victim.kill().unwrap();
    victim.wait().unwrap();
    let pid = rustix::process::Pid::from_raw(real as i32).unwrap();
    rustix::process::kill_process(pid, Signal::TERM).unwrap();
    drop(segment);
    eventually("the server leaves nothing", || objects(port).is_empty());
}

/// A directory with copies of programs that the user nobody may execute, removed with this value.
struct Nobody(PathBuf);

impl Nobody {
    fn new(test: &str) -> Self {
        let name = format!("dipc-{test}-{}", std::process::id());
        let directory = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&directory).unwrap();
        std::fs::set_permissions(&directory, Permissions::from_mode(0o755)).unwrap();
        Self(directory)
    }

    /// The same command as that user.
    fn command(&self, command: &Command) -> Command {
        const NOBODY: u32 = 65_534;
        let program = Path::new(command.get_program());
        let copy = self.0.join(program.file_name().unwrap());
        // Not by this process: a child of another test could hold the copy open for writing, and
        // then it cannot be executed.
        assert!(Command::new("cp").arg(program).arg(&copy).status().unwrap().success());
        let mut as_nobody = Command::new(copy);
        as_nobody.args(command.get_args()).uid(NOBODY).gid(NOBODY).current_dir("/");
        as_nobody
    }
}

impl Drop for Nobody {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[test]
fn stopping_does_not_wait_for_clients() {
    let server = Server::start(2, 4096, 64);
    let body = vec![7; 4 << 20];
    server.client().write(1, &body);
    let idle = server.client();
    let mut in_the_middle = server.client();
    in_the_middle.send(b"w 2 1000\nnot all of it");
    let mut never_reads = server.client();
    for _ in 0..8 {
        never_reads.send(b"r 1 99999999\n");
    }
    let port = server.port;
    remove(port);
    assert_eq!(objects(port), []);
    drop((idle, in_the_middle, never_reads, server));
}

#[test]
fn a_stopped_server_is_killed_after_the_grace() {
    let mut server = Server::start(2, 4, 4);
    server.signal(Signal::STOP);
    let port = server.port;
    remove(port);
    assert_eq!(server.ended(), None, "SIGKILL ended it");
    assert_eq!(objects(port), []);
}

#[test]
fn a_server_whose_mailboxes_were_removed_ends() {
    let mut server = Server::start(2, 4, 4);
    let mut client = server.client();
    remove_objects(server.port);
    client.send(b"r 1\n");
    client.expect_end();
    assert_eq!(server.ended(), Some(0));
}

#[test]
fn signals_stop_it() {
    for signal in [Signal::TERM, Signal::INT, Signal::HUP] {
        let mut server = Server::start(2, 4, 4);
        server.signal(signal);
        assert_eq!(server.ended(), Some(0));
        assert_eq!(objects(server.port), []);
    }
}

/// Starts and stops on one port, with a client now and then.
#[test]
fn many_starts_and_stops_leave_nothing() {
    let rounds = if is_long() { 10_000 } else { 500 };
    let port = free_port();
    for round in 0..rounds {
        start_in_background(port);
        if round % 10 == 0 {
            client_of(port).ask(b"r 1\n", b"\n");
        }
        remove(port);
        assert_eq!(objects(port), [], "after round {round}");
    }
    println!("{rounds} starts and stops");
}
