//! Many clients at once: no torn read, nobody starves, no deadlock, memory flat. Bodies carry a
//! checksum and the number of their mailbox. `DIPC_LONG=1` runs a minute instead of three seconds.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)] // A panic is how a test fails.

mod common;

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use common::*;

/// How often a client must be served whose mailbox a hundred others use: who starves never is.
const OFTEN: u64 = 30;
/// The servers of these tests would otherwise measure each other.
static ALONE: Mutex<()> = Mutex::new(());

fn duration() -> Duration {
    Duration::from_secs(if is_long() { 60 } else { 3 })
}

/// Ends the clients of a test also when its own thread panics: the scope waits for them.
struct Over(AtomicBool);

impl Over {
    fn guard(&self) -> impl Drop + '_ {
        struct Guard<'a>(&'a AtomicBool);
        impl Drop for Guard<'_> {
            fn drop(&mut self) {
                self.0.store(true, Ordering::Relaxed);
            }
        }
        Guard(&self.0)
    }

    fn is_over(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// What clients of one kind saw.
#[derive(Default)]
struct Tally {
    requests: AtomicU64,
    longest_us: AtomicU64,
}

impl Tally {
    fn timed(&self, request: impl FnOnce()) {
        let begin = Instant::now();
        request();
        self.requests.fetch_add(1, Ordering::Relaxed);
        self.longest_us.fetch_max(begin.elapsed().as_micros() as u64, Ordering::Relaxed);
    }

    fn longest(&self) -> Duration {
        Duration::from_micros(self.longest_us.load(Ordering::Relaxed))
    }

    fn report(&self, kind: &str) {
        let requests = self.requests.load(Ordering::Relaxed);
        println!("{kind}: {requests} requests, longest wait {:?}", self.longest());
        assert!(requests > 0, "{kind}: not one");
    }
}

fn read(client: &mut Client, mailbox: u32, tally: &Tally) {
    let mut body = Vec::new();
    tally.timed(|| body = client.read(mailbox));
    assert!(is_whole(mailbox, &body), "a torn read of mailbox {mailbox}, {} bytes", body.len());
}

fn write(client: &mut Client, mailbox: u32, body: &[u8], tally: &Tally) {
    tally.timed(|| client.write(mailbox, body));
}

#[test]
fn two_hundred_clients() {
    let _alone = ALONE.lock().unwrap();
    const MAILBOXES: u32 = 8;
    let server = Server::start(MAILBOXES, 16, 4);
    let (readers, writers, over) =
        (Tally::default(), Tally::default(), Over(AtomicBool::new(false)));
    thread::scope(|scope| {
        for number in 0..200_u32 {
            let (server, readers, writers, over) = (&server, &readers, &writers, &over);
            scope.spawn(move || {
                let mut client = server.client();
                let mut random = Random::new(number.into());
                let mut count = u64::from(number) << 32;
                while !over.is_over() {
                    // Half of them meet on one mailbox.
                    let any = 1 + random.below(MAILBOXES as usize) as u32;
                    let mailbox = if number % 2 == 0 { 1 } else { any };
                    if number % 4 < 2 {
                        count += 1;
                        let body = checked_body(mailbox, count, 24 + random.below(16_000));
                        write(&mut client, mailbox, &body, writers);
                    } else {
                        read(&mut client, mailbox, readers);
                    }
                }
            });
        }
        let _guard = over.guard();
        let begin = Instant::now();
        eventually("every client is served", || server.threads() >= 200);
        thread::sleep(duration() / 3);
        let early = server.resident_bytes();
        thread::sleep(duration().saturating_sub(begin.elapsed()));
        let late = server.resident_bytes();
        println!("two hundred clients; memory: {} KiB, later {} KiB", early / 1024, late / 1024);
        assert!(late <= early + (4 << 20), "memory grows: {early}, then {late}");
    });
    readers.report("readers");
    writers.report("writers");
    server.stop();
}

/// One client of one kind among a hundred of the other, all on one mailbox.
fn one_among_a_hundred(one_writes: bool) {
    let _alone = ALONE.lock().unwrap();
    let server = Server::start(1, 4, 4);
    let (one, others, over) = (Tally::default(), Tally::default(), Over(AtomicBool::new(false)));
    thread::scope(|scope| {
        for number in 0..=100 {
            let (server, over) = (&server, &over);
            let tally = if number == 0 { &one } else { &others };
            scope.spawn(move || {
                let mut client = server.client();
                let mut count = number << 32;
                while !over.is_over() {
                    count += 1;
                    if (number == 0) == one_writes {
                        write(&mut client, 1, &checked_body(1, count, 4096), tally);
                    } else {
                        read(&mut client, 1, tally);
                    }
                }
            });
        }
        let _guard = over.guard();
        thread::sleep(duration());
        eventually("the one is served", || one.requests.load(Ordering::Relaxed) >= OFTEN);
    });
    one.report(if one_writes { "one writer" } else { "one reader" });
    others.report(if one_writes { "a hundred readers" } else { "a hundred writers" });
    server.stop();
}

#[test]
fn a_writer_among_a_hundred_readers() {
    one_among_a_hundred(true);
}

#[test]
fn a_reader_among_a_hundred_writers() {
    one_among_a_hundred(false);
}

/// Clients that come and go leave nothing in the server.
#[test]
fn clients_that_come_and_go() {
    let _alone = ALONE.lock().unwrap();
    let server = Server::start(1, 4, 4);
    let rounds = if is_long() { 50_000 } else { 3000 };
    let mut early = 0;
    for round in 0..rounds {
        server.client().ask(b"w 1 1\nxr 1 9\n", b"ok 1\nok 1\nx");
        if round == rounds / 3 {
            early = server.resident_bytes();
        }
    }
    eventually("their threads end", || server.threads() == 1);
    let late = server.resident_bytes();
    println!("{rounds} clients; memory: {} KiB, later {} KiB", early / 1024, late / 1024);
    assert!(late <= early + (4 << 20), "memory grows: {early}, then {late}");
    let open = std::fs::read_dir(format!("/proc/{}/fd", server.pid())).unwrap().count();
    assert!(open < 12, "{open} descriptors");
    server.stop();
}
