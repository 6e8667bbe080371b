//! Two ends on the loopback address, with a perfect road between them or one that loses, doubles
//! and reorders.
#![forbid(unsafe_code)]

use super::*;
use crate::front_end::Unknown;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

const WAIT: Duration = Duration::from_secs(30);
const LIVENESS: Liveness = Liveness {
    node_timeout: Duration::from_secs(5),
    lease: Duration::from_secs(3),
    heartbeat: Duration::from_millis(500),
};

/// A node: its port and the streams that come in.
struct End {
    datagrams: Option<Datagrams>,
    entered: crossbeam_channel::Receiver<UnixStream>,
    thread: Option<JoinHandle<()>>,
    permits: Arc<AtomicBool>,
}

impl End {
    fn new() -> End {
        End::at(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), &LIVENESS)
    }

    fn at(own: SocketAddr, liveness: &Liveness) -> End {
        let (mut datagrams, driver) = Datagrams::open(own, liveness, &Secret([7; 32])).unwrap();
        datagrams.own = driver.address();
        let (enter, entered) = crossbeam_channel::unbounded();
        let permits = Arc::new(AtomicBool::new(true));
        let allowed = permits.clone();
        let thread = thread::spawn(move || {
            let waiting = Arc::default();
            let permits = |_| allowed.load(Ordering::Acquire);
            let ended = driver.run(&Door {
                permits: &permits,
                admit: &|from| permits(from.ip()).then(|| Unknown::count(&waiting, None)).flatten(),
                enter: &|stream, _, _| drop(enter.send(UnixStream::from(stream))),
                refuse: &|_, why| panic!("{why}"),
            });
            ended.unwrap();
        });
        End { datagrams: Some(datagrams), entered, thread: Some(thread), permits }
    }

    fn address(&self) -> SocketAddr {
        self.datagrams.as_ref().unwrap().own
    }

    fn connect(&self, to: SocketAddr) -> io::Result<UnixStream> {
        let stream = self.datagrams.as_ref().unwrap().connect(to, WAIT).map(UnixStream::from)?;
        stream.set_read_timeout(Some(WAIT)).unwrap();
        Ok(stream)
    }

    /// The stream that a peer has opened by saying something.
    fn entered(&self) -> UnixStream {
        let stream = self.entered.recv_timeout(WAIT).unwrap();
        stream.set_read_timeout(Some(WAIT)).unwrap();
        stream
    }
}

impl Drop for End {
    fn drop(&mut self) {
        drop(self.datagrams.take());
        self.thread.take().unwrap().join().unwrap();
    }
}

/// Passes datagrams between whoever sends to it and `to`: of a hundred it loses five, doubles two
/// and holds ten back behind the next.
struct BadRoad {
    address: SocketAddr,
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<usize>>,
}

impl BadRoad {
    fn to(to: SocketAddr) -> BadRoad {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let (address, over) = (socket.local_addr().unwrap(), Arc::new(AtomicBool::new(false)));
        socket.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        let stop = over.clone();
        let thread = thread::spawn(move || {
            let (mut random, mut lost, mut dialler) = (12345u32, 0, None);
            let (mut piece, mut held) = ([0; 2048], None::<(Vec<u8>, SocketAddr)>);
            while !stop.load(Ordering::Acquire) {
                let came = socket.recv_from(&mut piece).ok();
                let before = held.take();
                if let Some((count, from)) = came {
                    if from != to {
                        dialler = Some(from);
                    }
                    let there = if from == to { dialler.unwrap() } else { to };
                    random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    match random >> 16 & 0xff {
                        0..13 => lost += 1,
                        13..39 => held = Some((piece[..count].to_vec(), there)),
                        chance => {
                            for _ in 0..if chance < 44 { 2 } else { 1 } {
                                socket.send_to(&piece[..count], there).unwrap();
                            }
                        }
                    }
                }
                if let Some((bytes, there)) = before {
                    socket.send_to(&bytes, there).unwrap();
                }
            }
            lost
        });
        BadRoad { address, over, thread: Some(thread) }
    }

    /// How many datagrams were lost.
    fn end(mut self) -> usize {
        self.over.store(true, Ordering::Release);
        self.thread.take().unwrap().join().unwrap()
    }
}

fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|at| (at * 31 + at / 251) as u8).collect()
}

/// Sends much both ways at once, and compares.
fn exchange(mut near: UnixStream, mut far: UnixStream, length: usize) {
    let sent = pattern(length);
    let receive = |mut stream: UnixStream, length: usize| {
        thread::spawn(move || {
            let mut received = vec![0; length];
            stream.read_exact(&mut received).unwrap();
            received
        })
    };
    let at_far = receive(far.try_clone().unwrap(), length);
    let at_near = receive(near.try_clone().unwrap(), length);
    let copy = sent.clone();
    let sending = thread::spawn(move || {
        far.write_all(&copy).unwrap();
        far
    });
    near.write_all(&sent).unwrap();
    assert!(at_far.join().unwrap() == sent, "what arrived there is something else");
    assert!(at_near.join().unwrap() == sent, "what arrived here is something else");
    // The end of each direction arrives by itself.
    let mut far = sending.join().unwrap();
    near.shutdown(Shutdown::Write).unwrap();
    assert_eq!(far.read(&mut [0; 1]).unwrap(), 0);
    far.write_all(b"last").unwrap();
    drop(far);
    let mut last = Vec::new();
    near.read_to_end(&mut last).unwrap();
    assert_eq!(last, b"last");
}

#[test]
fn bytes_arrive_whole_and_so_does_their_end() {
    let (one, other) = (End::new(), End::new());
    let mut near = one.connect(other.address()).unwrap();
    near.write_all(b"x").unwrap();
    let mut far = other.entered();
    far.read_exact(&mut [0; 1]).unwrap();
    exchange(near, far, 5 << 20);
}

#[test]
fn bytes_arrive_whole_on_a_bad_road() {
    let (one, other) = (End::new(), End::new());
    let road = BadRoad::to(other.address());
    let mut near = one.connect(road.address).unwrap();
    near.write_all(b"x").unwrap();
    let mut far = other.entered();
    far.read_exact(&mut [0; 1]).unwrap();
    exchange(near, far, 1 << 20);
    assert!(road.end() > 10, "the road was not bad");
}

#[test]
fn who_reads_nothing_holds_nobody_else_up() {
    let (one, other) = (End::new(), End::new());
    let mut silent = one.connect(other.address()).unwrap();
    silent.set_write_timeout(Some(Duration::from_millis(500))).unwrap();
    let mut written = 0;
    let full = loop {
        match silent.write(&[1; 65536]) {
            Ok(count) => written += count,
            Err(error) => break error,
        }
    };
    assert_eq!(full.kind(), io::ErrorKind::WouldBlock);
    // Two windows and the buffers of two socket pairs.
    assert!(written < 4 << 20, "{written} bytes wait somewhere");
    let _unread = other.entered();
    let mut near = one.connect(other.address()).unwrap();
    near.write_all(b"x").unwrap();
    let mut far = other.entered();
    far.read_exact(&mut [0; 1]).unwrap();
    exchange(near, far, 100_000);
}

#[test]
fn where_nobody_listens_is_said_at_once_and_where_one_may_not_come_too() {
    let (one, other) = (End::new(), End::new());
    // An address that no test listens at.
    let nobody = SocketAddr::from(([127, 0, 77, 1], 4750));
    let refused = one.connect(nobody).unwrap_err();
    assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused, "or else by waiting");
    other.permits.store(false, Ordering::Release);
    let refused = one.connect(other.address()).unwrap_err().to_string();
    assert!(refused.contains("refused"), "{refused}");
}

#[test]
fn a_silent_connection_is_closed_and_leaves_room_for_others() {
    let (one, other) = (End::new(), End::new());
    let mut silent = one.connect(other.address()).unwrap();
    assert_eq!(silent.read(&mut [0; 1]).unwrap(), 0, "it was closed");
    let mut near = one.connect(other.address()).unwrap();
    near.write_all(b"x").unwrap();
    other.entered().read_exact(&mut [0; 1]).unwrap();
}

#[test]
fn many_at_once_must_prove_their_address_and_get_in() {
    let (one, other) = (End::new(), End::new());
    let silent: Vec<_> = (0..100).map(|_| one.connect(other.address()).unwrap()).collect();
    let mut near = one.connect(other.address()).unwrap();
    near.write_all(b"x").unwrap();
    other.entered().read_exact(&mut [0; 1]).unwrap();
    drop(silent);
}

#[test]
fn the_next_life_says_that_old_connections_are_gone() {
    let patient = Liveness { node_timeout: Duration::from_secs(600), ..LIVENESS };
    let one = End::at(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), &patient);
    // An address of its own: nobody takes the port between two lives.
    let other = End::at(SocketAddr::from(([127, 0, 78, 1], 0)), &patient);
    let address = other.address();
    let mut near = one.connect(address).unwrap();
    near.write_all(b"x").unwrap();
    let far = other.entered();
    // It ends as a killed process does: its peer hears nothing.
    drop(other);
    drop(far);
    let _next = End::at(address, &patient);
    near.write_all(b"y").unwrap();
    assert_eq!(near.read(&mut [0; 1]).unwrap(), 0, "the connection has ended");
}

#[test]
fn an_orderly_end_is_told() {
    let patient = Liveness { node_timeout: Duration::from_secs(600), ..LIVENESS };
    let one = End::at(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), &patient);
    let other = End::at(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), &patient);
    let mut near = one.connect(other.address()).unwrap();
    near.write_all(b"x").unwrap();
    let mut far = other.entered();
    far.write_all(b"farewell").unwrap();
    other.datagrams.as_ref().unwrap().close_all();
    let mut said = Vec::new();
    near.read_to_end(&mut said).unwrap();
    assert_eq!(said, b"farewell");
}

#[test]
fn random_datagrams_are_passed_over() {
    let (one, other) = (End::new(), End::new());
    let stranger = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let mut random = 1u64;
    for length in (0..1500).step_by(7) {
        let bytes: Vec<u8> = (0..length)
            .map(|_| {
                random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                (random >> 56) as u8
            })
            .collect();
        stranger.send_to(&bytes, other.address()).unwrap();
    }
    let mut near = one.connect(other.address()).unwrap();
    near.write_all(b"x").unwrap();
    other.entered().read_exact(&mut [0; 1]).unwrap();
}
