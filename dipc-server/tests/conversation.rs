//! Conversations with a running server: what people and programs send, whole, in pieces, and wrong.
//! What the parser alone promises is in `protocol.rs`; here the bytes cross a socket.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)] // A panic is how a test fails.

mod common;

use std::io::Write;
use std::net::Shutdown;
use std::thread;
use std::time::Duration;

use common::*;

/// Longer than the server waits for the rest of a packet.
const PAUSE: Duration = Duration::from_millis(150);

/// A plain write has no answer: wait until it can be seen.
fn plain_write(client: &mut Client, reader: &mut Client, mailbox: u32, sent: &[u8], seen: &[u8]) {
    client.send(sent);
    eventually("the write is seen", || reader.read(mailbox) == seen);
}

/// Where a plain packet ends is a matter of when its bytes come. On a busy machine they may come
/// late, or together: then another client says the same again.
fn until_in_time(server: &Server, mut says: impl FnMut(&mut Client) -> bool) {
    eventually("it is understood", || says(&mut server.client()));
}

#[test]
fn plain_forms() {
    let server = Server::start(8, 4, 4);
    let (mut client, mut reader) = (server.client(), server.client());
    client.ask(b"r 1\n", b"\n");
    plain_write(&mut client, &mut reader, 1, b"w 1\nhello\n", b"hello");
    client.ask(b"r 1\n", b"hello\n");
    client.ask(b"r 1\r\n", b"hello\n");
    plain_write(&mut client, &mut reader, 1, b"w 1\r\nbonjour\r\n", b"bonjour");
    plain_write(&mut client, &mut reader, 2, b"w 2\ntwo\nlines\n", b"two\nlines");
    plain_write(&mut client, &mut reader, 3, b"w 3\nno end", b"no end");
    plain_write(&mut client, &mut reader, 3, b"w 3\n\n", b"");
    plain_write(&mut client, &mut reader, 4, b"w 4\none end only\n\n", b"one end only\n");
    client.ask(b"r 1\nr 2\n", b"bonjour\ntwo\nlines\n");
    client.send(b"q\n");
    client.expect_end();
    reader.send(b"q 3\r\n");
    reader.expect_end();
    server.stop();
}

#[test]
fn a_line_that_comes_alone() {
    let server = Server::start(8, 4, 4);
    let (mut client, mut reader) = (server.client(), server.client());
    client.send(b"w 1\n");
    thread::sleep(PAUSE);
    plain_write(&mut client, &mut reader, 1, b"later\n", b"later");
    // A newline ends that packet: what follows is the next request.
    until_in_time(&server, |client| {
        client.send(b"w 1\r\n");
        thread::sleep(PAUSE);
        client.send(b"crlf\r\nr 1\n");
        client.0.shutdown(Shutdown::Write).unwrap();
        client.rest() == b"crlf\n"
    });
    until_in_time(&server, |client| {
        client.send(b"w 2\n");
        thread::sleep(PAUSE);
        client.send(b"in two ");
        thread::sleep(PAUSE);
        client.send(b"parts\nr 2\n");
        client.0.shutdown(Shutdown::Write).unwrap();
        client.rest() == b"in two parts\n"
    });
    assert_eq!(reader.read(2), b"in two parts");
    server.stop();
}

#[test]
fn data_soon_after_its_line() {
    let server = Server::start(8, 4, 4);
    let mut reader = server.client();
    until_in_time(&server, |client| {
        client.send(b"w 1\n");
        thread::sleep(Duration::from_millis(10));
        client.send(b"first ");
        thread::sleep(Duration::from_millis(10));
        client.send(b"second");
        client.0.shutdown(Shutdown::Write).unwrap();
        client.rest().is_empty() && reader.read(1) == b"first second"
    });
    server.stop();
}

#[test]
fn a_byte_at_a_time() {
    let server = Server::start(8, 4, 4);
    let (mut client, mut reader) = (server.client(), server.client());
    until_in_time(&server, |client| {
        for byte in b"w 1\r\nslow but whole\r\n" {
            client.send(&[*byte]);
            thread::sleep(Duration::from_millis(2));
        }
        client.0.shutdown(Shutdown::Write).unwrap();
        client.rest().is_empty() && reader.read(1) == b"slow but whole"
    });
    for byte in b"w 2 6\nbinaryr 2 9\nq\n" {
        client.send(&[*byte]);
        thread::sleep(Duration::from_millis(1));
    }
    client.expect(b"ok 6\nok 6\nbinary");
    client.expect_end();
    server.stop();
}

#[test]
fn many_requests_in_one_packet() {
    let server = Server::start(8, 4, 4);
    let mut client = server.client();
    client.ask(
        b"w 1 3\nonew 2 3\ntwor 1 9\nr 2\nr 3 9\n\n\r\nw 1 0\nr 1 9\nr 1\nr 2 2\n",
        b"ok 3\nok 3\nok 3\nonetwo\nok 0\nok 0\nok 0\n\nok 2\ntw",
    );
    // A plain write takes the rest of its packet, requests and all.
    let mut reader = server.client();
    plain_write(&mut client, &mut reader, 4, b"r 2\nw 4\nr 1\nq\n", b"r 1\nq");
    client.expect(b"two\n");
    client.ask(b"r 2\nq\nr 1\n", b"two\n");
    client.expect_end();
    server.stop();
}

#[test]
fn pieces_of_a_stream_make_no_difference() {
    let server = Server::start(4, 4, 4);
    let stream = b"w 1 5\nhellor 1 9\nw 2 0\nr 2 9\nr 1\nw 3 4\n\n\r\n\nr 3 4\nq\n";
    let expected = b"ok 5\nok 5\nhellook 0\nok 0\nhello\nok 4\nok 4\n\n\r\n\n";
    for cut in 1..stream.len() {
        let mut client = server.client();
        client.send(&stream[..cut]);
        client.send(&stream[cut..]);
        assert_eq!(client.rest(), expected, "cut at {cut}");
    }
    server.stop();
}

#[test]
fn bodies_of_every_kind() {
    let server = Server::start(4, 8, 4);
    let mut client = server.client();
    let every_byte: Vec<u8> = (0..=255).cycle().take(1000).collect();
    for body in [&every_byte[..], b"", b"\n", b"\r\n", b"r 1\n", &[0; 8192], &[255; 8191]] {
        client.write(1, body);
        assert_eq!(client.read(1), body);
    }
    client.ask(b"w 1 5\nhellor 1 3\nr 1 0\n", b"ok 5\nok 3\nhelok 0\n");
    server.stop();
}

#[test]
fn the_limit_and_one_more() {
    let server = Server::start(4, 8, 4);
    let (mut client, mut reader) = (server.client(), server.client());
    let one_more = vec![b'x'; 8193];
    client.write(1, &one_more[..8192]);
    client.send(b"w 1 8193\n");
    client.send(&one_more);
    client.expect(b"error: a mailbox holds 8192 bytes\n");
    assert_eq!(client.read(1).len(), 8192, "in step, and unchanged");
    // Plain: a packet is 4096 bytes, its line end not counted.
    let packet = [b"w 2\n", &one_more[..4096], b"\r\n"].concat();
    plain_write(&mut client, &mut reader, 2, &packet, &one_more[..4096]);
    client.send(&[b"w 3\n", &one_more[..4097]].concat());
    assert_eq!(client.line(), "error: a packet holds 4096 bytes; more with w N LENGTH");
    client.expect_end();
    assert_eq!(reader.read(3), b"");
    server.stop();
}

#[test]
fn a_packet_may_be_larger_than_a_mailbox() {
    let server = Server::start(4, 1, 4);
    let mut client = server.client();
    client.send(&[&b"w 1\n"[..], &[b'y'; 1025]].concat());
    assert_eq!(client.line(), "error: a mailbox holds 1024 bytes");
    client.ask(b"r 1 9\n", b"ok 0\n");
    server.stop();
}

#[test]
fn errors_keep_the_connection_in_step() {
    let server = Server::start(4, 4, 4);
    let mut client = server.client();
    let rows: [(&[u8], &str); 12] = [
        (b"x 1\n", "error: a request is r N, r N MAX, w N, w N LENGTH or q"),
        (b"R 1\n", "error: a request is r N, r N MAX, w N, w N LENGTH or q"),
        (b"\0\xff\n", "error: a request is r N, r N MAX, w N, w N LENGTH or q"),
        (b"r\n", "error: expected a number"),
        (b"r -1\n", "error: expected a number"),
        (b"r 99999999999999999999\n", "error: expected a number"),
        (b"r 1 2 3\n", "error: more words than the request has"),
        (b"r 0\n", "error: the mailboxes are 1 to 4"),
        (b"r 5 100\n", "error: the mailboxes are 1 to 4"),
        (b"q now\n", "error: expected a number"),
        (b"w 5 4\nr 1\n", "error: the mailboxes are 1 to 4"),
        (b"w 0 0\n", "error: the mailboxes are 1 to 4"),
    ];
    for (sent, expected) in rows {
        client.send(sent);
        assert_eq!(client.line(), expected, "{sent:?}");
        client.ask(b"r 1 9\n", b"ok 0\n");
    }
    // A plain write to no mailbox: its data is not taken for requests.
    client.send(b"w 9\nr 1\n");
    assert_eq!(client.line(), "error: the mailboxes are 1 to 4");
    client.ask(b"r 1 9\n", b"ok 0\n");
    server.stop();
}

#[test]
fn what_cannot_be_in_step_is_closed() {
    let server = Server::start(4, 4, 4);
    let long = [b'r'; 81];
    let rows: [(&[u8], &str); 5] = [
        (b"w\nr 1\n", "error: expected a number"),
        (b"w one\nr 1\n", "error: expected a number"),
        (b"w 1 -5\nr 1\n", "error: expected a number"),
        (b"w 1 2 3\nr 1\n", "error: more words than the request has"),
        (&long, "error: no line has more than 80 bytes"),
    ];
    for (sent, expected) in rows {
        let mut client = server.client();
        client.send(sent);
        assert_eq!(client.line(), expected);
        client.expect_end();
    }
    server.stop();
}

#[test]
fn an_end_in_the_middle() {
    let server = Server::start(4, 4, 4);
    let mut reader = server.client();
    reader.write(1, b"before");
    for sent in [&b"w 1"[..], b"w 1\n", b"w 1 10\nhalf", b"r 1"] {
        let mut client = server.client();
        client.send(sent);
        client.0.shutdown(Shutdown::Write).unwrap();
        assert_eq!(client.line(), "error: the request was cut off", "{sent:?}");
        client.expect_end();
        // And one that vanishes without a word.
        let mut client = server.client();
        client.send(sent);
        drop(client);
    }
    assert_eq!(reader.read(1), b"before");
    // An end after data is the end of its packet.
    let mut client = server.client();
    client.send(b"w 1\nafter");
    client.0.shutdown(Shutdown::Write).unwrap();
    client.expect_end();
    assert_eq!(reader.read(1), b"after");
    eventually("their threads end", || server.threads() <= 2);
    server.stop();
}

/// A client that asks and never reads fills its socket. The mailbox stays free for others.
#[test]
fn one_that_never_reads_keeps_nobody_waiting() {
    let server = Server::start(2, 4096, 64);
    let body = checked_body(1, 1, 4 << 20);
    server.client().write(1, &body);
    let mut lazy = server.client();
    for _ in 0..100 {
        lazy.send(b"r 1 99999999\n");
    }
    let mut other = server.client();
    for count in 2..5 {
        other.write(1, &checked_body(1, count, 4 << 20));
        assert!(is_whole(1, &other.read(1)));
    }
    assert!(server.resident_bytes() < 100 << 20, "{}", server.resident_bytes());
    drop(lazy);
    server.stop();
}

/// Bytes that mean nothing, and bytes that almost mean something. Each stream is followed by an
/// end, and must be answered by a close, having said nothing of a mailbox that it did not name.
#[test]
fn fuzzed_streams_never_hang_and_never_show_another_mailbox() {
    const SECRET: &[u8] = b"SECRETSECRETSECRET";
    let server = Server::start(4, 4, 1);
    let mut owner = server.client();
    owner.write(4, &SECRET.repeat(200));
    let streams = if is_long() { 20_000 } else { 1000 };
    for seed in 0..streams {
        let stream = fuzzed_stream(seed);
        let mut client = server.client();
        // The server may close before all is sent.
        let _ = client.0.write_all(&stream);
        let _ = client.0.shutdown(Shutdown::Write);
        let answer = client.rest();
        let shown = answer.windows(SECRET.len()).any(|window| window == SECRET);
        assert!(!shown, "seed {seed}: {:?}", String::from_utf8_lossy(&stream));
    }
    assert_eq!(owner.read(4), SECRET.repeat(200));
    println!("{streams} streams");
    server.stop();
}

/// Words of the protocol and noise, in any order; never the number of the owner's mailbox.
fn fuzzed_stream(seed: u64) -> Vec<u8> {
    const WORDS: [&[u8]; 20] = [
        b"r",
        b"w",
        b"q",
        b" ",
        b" ",
        b" ",
        b"\n",
        b"\n",
        b"\r\n",
        b"1",
        b"2",
        b"3",
        b"0",
        b"-1",
        b"99999999999999999999",
        b"\0",
        b"\xff\xfe",
        b"\t",
        b"2000",
        b"hello",
    ];
    let mut random = Random::new(seed + 1);
    let mut stream = Vec::new();
    for _ in 0..random.below(60) {
        stream.extend_from_slice(WORDS[random.below(WORDS.len())]);
        if random.below(40) == 0 {
            stream.extend((0..random.below(3000)).map(|at| (at % 251) as u8));
        }
    }
    stream
}

#[test]
fn no_more_clients_than_there_are_places() {
    let server = Server::start(1, 1, 1);
    let mut clients: Vec<Client> = Vec::new();
    for _ in 0..dipc_server::server::CLIENTS_MAX {
        clients.push(server.client());
    }
    for client in &mut clients {
        client.ask(b"r 1\n", b"\n");
    }
    let mut refused = server.client();
    assert_eq!(refused.line(), "error: all 512 places are taken");
    refused.expect_end();
    clients.pop();
    eventually("a place is free", || {
        let mut next = server.client();
        next.send(b"r 1\n");
        next.line().is_empty()
    });
    drop(clients);
    server.stop();
}
