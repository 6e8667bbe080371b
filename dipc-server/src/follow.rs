//! A client's thread goes where its client is.
//!
//! On one machine a request and its answer pass through one processor's cache if client and thread
//! run on the same one, and between two if they do not, which costs half as much again. Where a
//! busy system starts two threads is chance, and there it leaves them. So a thread looks, now and
//! then, where its client's packets come from. It moves, and is not bound: the scheduler may take
//! it elsewhere at once. With fewer clients than processors nobody moves: then another one is idle,
//! and to be woken there is as good.
#![forbid(unsafe_code)]

use std::io;
use std::net::TcpStream;
use std::sync::atomic::{AtomicUsize, Ordering};

use rustix::net::sockopt::socket_incoming_cpu;
use rustix::thread::{CpuSet, sched_getaffinity, sched_getcpu, sched_setaffinity};

/// Requests from one look to the next: a move costs as much as one or two.
const EVERY: u32 = 64;

/// Follows one client.
pub struct Follower<'a> {
    /// Nothing for a client on another machine, whose packets come from a network card.
    stream: Option<&'a TcpStream>,
    clients: &'a AtomicUsize,
    requests: u32,
}

impl<'a> Follower<'a> {
    /// Of the client at the other end, one of so many.
    pub fn new(stream: &'a TcpStream, clients: &'a AtomicUsize) -> Self {
        let is_here = stream.peer_addr().is_ok_and(|peer| peer.ip().to_canonical().is_loopback());
        Self { stream: is_here.then_some(stream), clients, requests: 0 }
    }

    /// Counts a request, and follows if it is time to. A failure leaves the thread where it is.
    pub fn step(&mut self) {
        self.requests = (self.requests + 1) % EVERY;
        if self.requests == 0
            && let Some(stream) = self.stream
        {
            let _ = go_to(stream, self.clients.load(Ordering::Relaxed));
        }
    }
}

/// Moves the calling thread to the processor that sent the last packet of `stream`.
fn go_to(stream: &TcpStream, clients: usize) -> io::Result<()> {
    let there = socket_incoming_cpu(stream)? as usize;
    if there == sched_getcpu() {
        return Ok(());
    }
    let allowed = sched_getaffinity(None)?;
    let is_allowed = there < CpuSet::MAX_CPU && allowed.is_set(there);
    if !is_allowed || clients < allowed.count() as usize {
        return Ok(());
    }
    let mut only = CpuSet::new();
    only.set(there);
    sched_setaffinity(None, &only)?;
    Ok(sched_setaffinity(None, &allowed)?)
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpListener;

    use super::*;

    const ROUNDS: usize = 40;

    fn only(processor: usize) -> CpuSet {
        let mut set = CpuSet::new();
        set.set(processor);
        set
    }

    /// In how many rounds a thread that runs elsewhere comes to where its client sends from.
    fn followed(clients: usize, there: usize, elsewhere: usize) -> usize {
        let allowed = sched_getaffinity(None).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut stream, _) = listener.accept().unwrap();
        let own = stream.try_clone().unwrap();
        let clients = AtomicUsize::new(clients);
        let mut follower = Follower::new(&own, &clients);
        let mut rounds = 0;
        for _ in 0..ROUNDS {
            sched_setaffinity(None, &only(there)).unwrap();
            client.write_all(b"x").unwrap();
            sched_setaffinity(None, &only(elsewhere)).unwrap();
            stream.read_exact(&mut [0]).unwrap();
            sched_setaffinity(None, &allowed).unwrap();
            (0..EVERY).for_each(|_| follower.step());
            rounds += usize::from(sched_getcpu() == there);
        }
        assert!(sched_getaffinity(None).unwrap() == allowed, "it is not bound");
        rounds
    }

    #[test]
    fn a_thread_follows_when_processors_are_scarce() {
        let allowed = sched_getaffinity(None).unwrap();
        let mut processors = (0..CpuSet::MAX_CPU).filter(|&one| allowed.is_set(one));
        let (Some(one), Some(other)) = (processors.next(), processors.next()) else {
            println!("skip: there is one processor, and nowhere to follow to");
            return;
        };
        // In some rounds the scheduler may move it too.
        for (there, elsewhere) in [(one, other), (other, one)] {
            assert!(followed(allowed.count() as usize, there, elsewhere) > ROUNDS / 2);
            assert!(followed(1, there, elsewhere) < ROUNDS / 2);
        }
    }
}
