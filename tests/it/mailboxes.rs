//! The mailbox server across nodes: `dipc --shared` under libdipc on two of them serves the same
//! mailboxes, also while many clients write and read and one server is killed. (The server by
//! itself is tested in its own package.)
#![forbid(unsafe_code)]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::thread;

use dipc_tests::{Cluster, Node, Puppet, Running, process::PATIENCE, programs, skip};
use rustix::process::Signal;

use crate::memory::{cluster, refused};

/// The port, on every node's own address.
const PORT: u16 = 7_777;
const MAILBOXES: u32 = 4;
const KBYTES: u32 = 64;

/// Starts a server on a node and waits until it is ready.
fn serve(node: &Node) -> Running {
    let bind = format!("--bind={}", node.address.ip());
    let numbers = [MAILBOXES.to_string(), KBYTES.to_string(), PORT.to_string(), "4".into()];
    let mut arguments = vec!["--foreground", "--shared", &bind];
    arguments.extend(numbers.iter().map(String::as_str));
    let server = node.spawn(programs::tool("dipc"), &arguments);
    server.wait_for("dipc: ready");
    server
}

/// Stops the server of a node, by dipcrm.
#[track_caller]
fn remove(node: &Node) {
    let bind = node.address.ip().to_string();
    let arguments = ["--bind", &bind, &PORT.to_string()];
    node.run(programs::tool("dipcrm"), &arguments).expect_success();
}

/// A client with a deadline on every answer.
struct Client(BufReader<TcpStream>);

impl Client {
    fn of(node: &Node) -> Client {
        let stream = TcpStream::connect((node.address.ip(), PORT)).expect("the server listens");
        stream.set_read_timeout(Some(PATIENCE)).expect("not zero");
        stream.set_nodelay(true).expect("a TCP socket");
        Client(BufReader::new(stream))
    }

    fn line(&mut self) -> Option<String> {
        let mut line = String::new();
        self.0.read_line(&mut line).ok().filter(|length| *length > 0)?;
        Some(line)
    }

    /// False when the server has ended.
    fn write(&mut self, mailbox: u32, body: &[u8]) -> bool {
        let request = [format!("w {mailbox} {}\n", body.len()).as_bytes(), body].concat();
        self.0.get_mut().write_all(&request).is_ok()
            && self.line().is_some_and(|line| line == format!("ok {}\n", body.len()))
    }

    /// `None` when the server has ended.
    fn read(&mut self, mailbox: u32) -> Option<Vec<u8>> {
        self.0.get_mut().write_all(format!("r {mailbox} 999999999\n").as_bytes()).ok()?;
        let line = self.line()?;
        let length = line.trim().strip_prefix("ok ")?.parse().ok()?;
        let mut body = vec![0; length];
        self.0.read_exact(&mut body).ok()?;
        Some(body)
    }
}

/// A body that shows whether it is whole: a letter, over and over, as often as it stands for.
fn body(number: usize) -> Vec<u8> {
    vec![b'a' + (number % 26) as u8; 1000 + number % 26 * 2000]
}

/// Whether it is one of [`body`], or of a new mailbox.
fn is_whole(content: &[u8]) -> bool {
    let Some(first) = content.first() else { return true };
    content == body(usize::from(first - b'a'))
}

/// The key of the server's set and segment, as its manual says.
fn key() -> String {
    format!("{:#x}", 0x6469_0000 + u32::from(PORT))
}

/// No object is left on any node.
#[track_caller]
fn nothing_is_left(cluster: &Cluster) {
    for node in cluster.nodes() {
        let mut pages = Puppet::of_pages(node);
        assert_eq!(refused(&mut pages, &format!("shmget {} 0 010600", key())), "ENOENT");
        let mut calls = Puppet::on(node);
        assert_eq!(calls.call(&format!("semget {} 0 010600", key())), Err("ENOENT".into()));
    }
}

#[test]
fn written_through_one_node_and_read_through_the_other() {
    let cluster = cluster(2, "auto").start();
    let (first, second) = (serve(cluster.node(1)), serve(cluster.node(2)));
    let mut clients = [1, 2].map(|node| Client::of(cluster.node(node)));
    for number in 0..60 {
        let (writer, mailbox) = (number % 2, 1 + number as u32 % MAILBOXES);
        assert!(clients[writer].write(mailbox, &body(number)));
        assert_eq!(clients[1 - writer].read(mailbox), Some(body(number)));
        assert_eq!(clients[writer].read(mailbox), Some(body(number)));
    }
    drop(clients);
    // The first one goes; what it has taken stays.
    remove(cluster.node(1));
    first.wait().expect_success();
    assert_eq!(Client::of(cluster.node(2)).read(1), Some(body(56)));
    // It comes back, and finds it.
    let first = serve(cluster.node(1));
    assert_eq!(Client::of(cluster.node(1)).read(1), Some(body(56)));
    remove(cluster.node(2));
    second.wait().expect_success();
    remove(cluster.node(1));
    first.wait().expect_success();
    nothing_is_left(&cluster);
}

#[test]
fn many_clients_of_two_nodes_see_whole_mailboxes() {
    let cluster = cluster(2, "auto").start();
    let _servers = [serve(cluster.node(1)), serve(cluster.node(2))];
    let rounds = skip::amount("many_clients_of_two_nodes_see_whole_mailboxes", 400, 20);
    thread::scope(|scope| {
        for at in 0..16 {
            let node = cluster.node(1 + at % 2);
            scope.spawn(move || {
                let mut client = Client::of(node);
                for round in 0..rounds {
                    let mailbox = 1 + (at / 4 + round) as u32 % 2;
                    if at % 4 == 0 {
                        assert!(client.write(mailbox, &body(at + round)));
                    } else {
                        let content = client.read(mailbox).expect("the server answers");
                        assert!(is_whole(&content), "{} bytes", content.len());
                    }
                }
            });
        }
    });
    remove(cluster.node(1));
    remove(cluster.node(2));
    nothing_is_left(&cluster);
}

#[test]
fn a_server_that_is_killed_in_a_write_holds_up_no_other_node() {
    let cluster = cluster(2, "auto").start();
    let _survivor = serve(cluster.node(1));
    let mut reader = Client::of(cluster.node(1));
    assert!(reader.write(1, &body(3)));
    let rounds = skip::amount("a_server_that_is_killed_in_a_write", 40, 4);
    for round in 0..rounds {
        let victim = serve(cluster.node(2));
        let mut client = Client::of(cluster.node(2));
        let writer =
            thread::spawn(move || (0..).take_while(|n| client.write(1, &body(*n))).count());
        for _ in 0..3 {
            assert!(is_whole(&reader.read(1).expect("it serves")), "round {round}");
        }
        victim.signal(Signal::KILL);
        drop(victim);
        writer.join().expect("it ends with its server");
        assert!(is_whole(&reader.read(1).expect("it serves")), "round {round}");
        assert!(reader.write(1, &body(round)), "round {round}");
        assert_eq!(reader.read(1), Some(body(round)));
    }
    remove(cluster.node(1));
    nothing_is_left(&cluster);
}
