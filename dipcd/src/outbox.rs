//! What one link has to send. Whoever posts a frame seals and writes it himself, without waiting,
//! when nothing is queued: no thread is woken for it. What the socket does not take at once is
//! queued, sealed, and the link's writer thread sends it when it can.
//!
//! So posting never waits, and frames go out in the order in which they were sealed. The queue is
//! bounded; a peer that lets it overflow takes nothing, and loses the link.
#![forbid(unsafe_code)]

use parking_lot::{Condvar, Mutex};
use std::collections::VecDeque;

use dipc_wire::peer::PeerFrame;

use crate::channel::{self, ChannelSender};

/// Frames that may wait for one peer.
pub const OUTBOX_FRAMES: usize = 8192;
/// Bytes that may wait for one peer.
pub const OUTBOX_BYTES: usize = 64 << 20;

/// Nothing more can be sent: the connection has failed, or its peer takes nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Closed;

struct State {
    sender: ChannelSender,
    /// Sealed frames that wait for the writer.
    queue: VecDeque<Vec<u8>>,
    /// Bytes in `queue`, less those that were sent of its first frame.
    queued_bytes: usize,
    /// How much of the first frame was sent.
    sent: usize,
    closed: bool,
}

/// The outgoing side of a link.
pub struct Outbox {
    state: Mutex<State>,
    changed: Condvar,
}

impl Outbox {
    /// An empty one.
    pub fn new(sender: ChannelSender) -> Outbox {
        let queue = VecDeque::new();
        let state = State { sender, queue, queued_bytes: 0, sent: 0, closed: false };
        Outbox { state: Mutex::new(state), changed: Condvar::new() }
    }

    /// Sends a frame, or queues it. `raw` is what follows its body.
    pub fn post(&self, frame: &PeerFrame, raw: &[u8]) -> Result<(), Closed> {
        let mut state = self.state.lock();
        if state.closed {
            return Err(Closed);
        }
        if state.queue.is_empty() {
            match state.sender.begin_send(frame, raw) {
                Ok(None) => return Ok(()),
                Ok(Some(rest)) => state.queue(rest),
                Err(_) => return Err(self.end(&mut state)),
            }
            self.changed.notify_all();
            return Ok(());
        }
        if state.queue.len() >= OUTBOX_FRAMES || state.queued_bytes >= OUTBOX_BYTES {
            return Err(self.end(&mut state));
        }
        let sealed = state.sender.seal(frame, raw);
        state.queue(sealed);
        Ok(())
    }

    /// Bytes that wait now.
    pub fn queued_bytes(&self) -> usize {
        self.state.lock().queued_bytes
    }

    /// The writer's work: sends what is queued, until [`Outbox::close`] or an error.
    pub fn write(&self) {
        let mut state = self.state.lock();
        loop {
            if state.closed {
                return;
            }
            if state.queue.is_empty() {
                self.changed.wait(&mut state);
                continue;
            }
            let socket = state.sender.socket().clone();
            let ready =
                parking_lot::MutexGuard::unlocked(&mut state, || channel::await_writable(&socket));
            if ready.and_then(|()| state.send_queued()).is_err() {
                self.end(&mut state);
            }
        }
    }

    /// Ends it; the writer returns.
    pub fn close(&self) {
        self.end(&mut self.state.lock());
    }

    fn end(&self, state: &mut State) -> Closed {
        state.closed = true;
        state.queue.clear();
        state.queued_bytes = 0;
        self.changed.notify_all();
        Closed
    }
}

impl State {
    fn queue(&mut self, sealed: Vec<u8>) {
        self.queued_bytes += sealed.len();
        self.queue.push_back(sealed);
    }

    /// Sends what the socket takes now.
    fn send_queued(&mut self) -> Result<(), channel::ChannelError> {
        while let Some(first) = self.queue.front() {
            let count = self.sender.try_send(&first[self.sent..])?;
            self.sent += count;
            self.queued_bytes -= count;
            if self.sent < first.len() {
                return Ok(());
            }
            self.sent = 0;
            self.queue.pop_front();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::channel::tests::channels;
    use dipc_wire::codec::ByteOrder;
    use dipc_wire::noise::Cipher;
    use std::thread;

    fn frame(number: usize) -> PeerFrame {
        PeerFrame::Heartbeat { sent_ms: number as u64 }
    }

    #[test]
    fn what_the_socket_does_not_take_at_once_arrives_in_order_behind_it() {
        let (near, mut far) = channels(Cipher::AesGcm, ByteOrder::Little);
        let outbox = Outbox::new(near.split().0);
        let sizes = [0, 4096, 1 << 20, 10, 2 << 20, 0, 70_000];
        thread::scope(|scope| {
            scope.spawn(|| outbox.write());
            for (number, size) in sizes.into_iter().enumerate() {
                outbox.post(&frame(number), &vec![number as u8; size]).unwrap();
            }
            assert!(outbox.queued_bytes() > 0, "nobody reads yet");
            for (number, size) in sizes.into_iter().enumerate() {
                let (got, raw) = far.receive::<PeerFrame>().unwrap().unwrap();
                assert_eq!((got, raw.len()), (frame(number), size));
                assert!(raw.iter().all(|&byte| byte == number as u8));
            }
            outbox.post(&frame(9), &[]).unwrap();
            assert_eq!(far.receive::<PeerFrame>().unwrap().unwrap().0, frame(9));
            outbox.close();
        });
        assert_eq!(outbox.post(&frame(0), &[]), Err(Closed));
    }

    #[test]
    fn a_peer_that_takes_nothing_is_given_up_and_nobody_waits_for_it() {
        let (near, _far) = channels(Cipher::Plain, ByteOrder::Little);
        let outbox = Outbox::new(near.split().0);
        let part = vec![0; 1 << 20];
        let posted = (0..1000).take_while(|&number| outbox.post(&frame(number), &part).is_ok());
        let posted = posted.count();
        assert!(posted * part.len() >= OUTBOX_BYTES && posted < 1000, "{posted}");
        assert_eq!(outbox.queued_bytes(), 0, "what was queued is dropped");
        outbox.write();
    }
}
