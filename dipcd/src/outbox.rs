//! What one link has to send. Whoever posts a frame seals and writes it himself, without waiting,
//! when nothing is queued: no thread is woken for it. What the socket does not take at once is
//! queued, and the link's writer thread sends it when it can.
//!
//! So posting never waits, and frames go out in the order in which they were posted; only
//! heartbeats go before what is queued, so that a long transfer does not look like silence. The
//! queue is bounded; a peer that lets it overflow takes nothing, and loses the link.
#![forbid(unsafe_code)]

use parking_lot::{Condvar, Mutex};
use std::collections::VecDeque;

use dipc_wire::memory::{ToHome, ToReplica};
use dipc_wire::peer::PeerFrame;

use crate::channel::{self, ChannelSender};

/// Frames that may wait for one peer.
pub const OUTBOX_FRAMES: usize = 8192;
/// Bytes that may wait for one peer, besides parts of units that are longer than a frame.
pub const OUTBOX_BYTES: usize = 64 << 20;

/// Nothing more can be sent: the connection has failed, or its peer takes nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Closed;

struct State {
    sender: ChannelSender,
    /// What the socket has not taken of the frame that is being sent, sealed.
    begun: Option<(Vec<u8>, usize)>,
    /// Frames that wait for the writer, and whether they count.
    queue: VecDeque<(Vec<u8>, Weight)>,
    /// Bytes in `queue` that count.
    queued_bytes: usize,
    closed: bool,
}

/// Whether a frame counts among the bytes that may wait.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Weight {
    Counts,
    /// A part of a long unit: there are only as many as the unit has.
    Part,
}

/// The outgoing side of a link.
pub struct Outbox {
    state: Mutex<State>,
    changed: Condvar,
}

impl Outbox {
    /// An empty one.
    pub fn new(sender: ChannelSender) -> Outbox {
        let (begun, queue) = (None, VecDeque::new());
        let state = State { sender, begun, queue, queued_bytes: 0, closed: false };
        Outbox { state: Mutex::new(state), changed: Condvar::new() }
    }

    /// Sends a frame, or queues it. `raw` is what follows its body.
    pub fn post(&self, frame: &PeerFrame, raw: &[u8]) -> Result<(), Closed> {
        let mut state = self.state.lock();
        if state.closed {
            return Err(Closed);
        }
        if state.is_idle() {
            match state.sender.begin_send(frame, raw) {
                Ok(None) => return Ok(()),
                Ok(Some(rest)) => state.begun = Some((rest, 0)),
                Err(_) => return Err(self.end(&mut state)),
            }
            self.changed.notify_all();
            return Ok(());
        }
        if state.queue.len() >= OUTBOX_FRAMES || state.queued_bytes >= OUTBOX_BYTES {
            return Err(self.end(&mut state));
        }
        let encoded = state.sender.encode(frame, raw);
        match frame {
            PeerFrame::Heartbeat { .. } | PeerFrame::HeartbeatEcho { .. } => {
                state.queue.push_front((encoded, Weight::Part));
            }
            frame if is_part(frame) => state.queue.push_back((encoded, Weight::Part)),
            _ => {
                state.queued_bytes += encoded.len();
                state.queue.push_back((encoded, Weight::Counts));
            }
        }
        Ok(())
    }

    /// Bytes that wait now.
    pub fn queued_bytes(&self) -> usize {
        let state = self.state.lock();
        state.queued_bytes + state.begun.as_ref().map_or(0, |(rest, sent)| rest.len() - sent)
    }

    /// The writer's work: sends what is queued, until [`Outbox::close`] or an error.
    pub fn write(&self) {
        let mut state = self.state.lock();
        loop {
            if state.closed {
                return;
            }
            if state.is_idle() {
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
        state.begun = None;
        state.queue.clear();
        state.queued_bytes = 0;
        self.changed.notify_all();
        Closed
    }
}

impl State {
    fn is_idle(&self) -> bool {
        self.begun.is_none() && self.queue.is_empty()
    }

    /// Sends what the socket takes now.
    fn send_queued(&mut self) -> Result<(), channel::ChannelError> {
        loop {
            let (rest, sent) = match self.begun.take() {
                Some(begun) => begun,
                None => {
                    let Some((frame, weight)) = self.queue.pop_front() else { return Ok(()) };
                    if weight == Weight::Counts {
                        self.queued_bytes -= frame.len();
                    }
                    (self.sender.seal_encoded(&frame), 0)
                }
            };
            let sent = sent + self.sender.try_send(&rest[sent..])?;
            if sent < rest.len() {
                self.begun = Some((rest, sent));
                return Ok(());
            }
        }
    }
}

/// Whether a frame is a part of a unit that is longer than a frame.
fn is_part(frame: &PeerFrame) -> bool {
    matches!(
        frame,
        PeerFrame::ToHome { frame: ToHome::Part { .. }, .. }
            | PeerFrame::ToReplica { frame: ToReplica::Part { .. }, .. }
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::channel::tests::channels;
    use dipc_wire::codec::ByteOrder;
    use dipc_wire::ids::Req;
    use dipc_wire::noise::Cipher;
    use std::thread;

    fn frame(number: usize) -> PeerFrame {
        PeerFrame::Counted { req: Req(0), attachments: number as u64 }
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
