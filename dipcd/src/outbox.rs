//! What one link has to send. Whoever posts a frame seals and writes it himself, without waiting,
//! when nothing is queued: no thread is woken for it. What the socket does not take at once is
//! queued, and the link's writer thread sends it when it can.
//!
//! So posting never waits, and frames go out in the order in which they were posted, but for two
//! kinds. Heartbeats go before what is queued, so that a long transfer does not look like silence.
//! An `Ack` that nobody waits for is put off: it goes out with the next frame, behind a question
//! (about another page, for who owns a page asks for nothing), or after a moment by itself. Sent at
//! once it would cost the program that has just got its page a send and a wake-up elsewhere.
//!
//! The queue is bounded; a peer that lets it overflow takes nothing, and loses the link.
#![forbid(unsafe_code)]

use parking_lot::{Condvar, Mutex, MutexGuard};
use std::collections::VecDeque;
use std::time::Duration;

use dipc_wire::memory::{ToHome, ToReplica};
use dipc_wire::peer::PeerFrame;

use crate::channel::{self, ChannelSender};
use crate::links::is_question;

/// Frames that may wait for one peer.
pub const OUTBOX_FRAMES: usize = 8192;
/// Bytes that may wait for one peer, besides parts of units that are longer than a frame.
pub const OUTBOX_BYTES: usize = 64 << 20;

/// How long a frame is put off at most.
const PUT_OFF: Duration = Duration::from_millis(5);
/// Bytes that are put off at most.
const PUT_OFF_BYTES: usize = 4096;

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
    /// Frames that are put off, encoded; nothing is queued then.
    put_off: Vec<u8>,
    /// Whether some were put off since the writer looked last.
    puts_off: bool,
    /// The writer waits to be told.
    writer_sleeps: bool,
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
        let state = State {
            sender,
            begun: None,
            queue: VecDeque::new(),
            queued_bytes: 0,
            put_off: Vec::new(),
            puts_off: false,
            writer_sleeps: false,
            closed: false,
        };
        Outbox { state: Mutex::new(state), changed: Condvar::new() }
    }

    /// Sends a frame, or queues it. `raw` is what follows its body.
    pub fn post(&self, frame: &PeerFrame, raw: &[u8]) -> Result<(), Closed> {
        let mut state = self.state.lock();
        if state.closed {
            return Err(Closed);
        }
        if state.is_idle() {
            if can_wait(frame) && state.put_off.len() < PUT_OFF_BYTES {
                state.put_off(frame);
                if state.writer_sleeps {
                    self.changed.notify_all();
                }
                return Ok(());
            }
            let begun = state.begin_send(frame, raw);
            return self.go_on(&mut state, begun);
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

    /// Sends what was put off.
    pub fn flush(&self) -> Result<(), Closed> {
        let mut state = self.state.lock();
        if state.put_off.is_empty() {
            return Ok(());
        }
        let begun = state.begin_send_put_off();
        self.go_on(&mut state, begun)
    }

    /// The writer goes on with what the socket has not taken.
    fn go_on(&self, state: &mut State, begun: Begun) -> Result<(), Closed> {
        match begun {
            Ok(None) => Ok(()),
            Ok(Some(rest)) => {
                state.begun = Some((rest, 0));
                self.changed.notify_all();
                Ok(())
            }
            Err(_) => Err(self.end(state)),
        }
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
                self.rest(&mut state);
                continue;
            }
            let socket = state.sender.socket().clone();
            let ready = MutexGuard::unlocked(&mut state, || channel::await_writable(&socket));
            if ready.and_then(|()| state.send_queued()).is_err() {
                self.end(&mut state);
            }
        }
    }

    /// Nothing is queued: the writer waits until something is, and sees to what is put off.
    fn rest(&self, state: &mut MutexGuard<'_, State>) {
        if !std::mem::take(&mut state.puts_off) {
            state.writer_sleeps = true;
            self.changed.wait(state);
            state.writer_sleeps = false;
            return;
        }
        self.changed.wait_for(state, PUT_OFF);
        if !state.put_off.is_empty() && state.is_idle() && !state.closed {
            let begun = state.begin_send_put_off();
            // Who posts next is told that it is closed.
            let _ = self.go_on(state, begun);
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
        state.put_off.clear();
        self.changed.notify_all();
        Closed
    }
}

/// What the socket has not taken, sealed.
type Begun = Result<Option<Vec<u8>>, channel::ChannelError>;

impl State {
    fn put_off(&mut self, frame: &PeerFrame) {
        self.sender.encode_to(frame, &mut self.put_off);
        self.puts_off = true;
    }

    /// Sends a frame with those that were put off.
    fn begin_send(&mut self, frame: &PeerFrame, raw: &[u8]) -> Begun {
        let (before, behind): (&[u8], &[u8]) = match is_question(frame) {
            true => (&[], &self.put_off),
            false => (&self.put_off, &[]),
        };
        let begun = self.sender.begin_send(before, (frame, raw), behind);
        self.put_off.clear();
        begun
    }

    fn begin_send_put_off(&mut self) -> Begun {
        let begun = self.sender.begin_send_encoded(&self.put_off);
        self.put_off.clear();
        begun
    }

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

/// Whether nobody waits for a frame: home asks for it otherwise (`AckPlease`).
fn can_wait(frame: &PeerFrame) -> bool {
    matches!(frame, PeerFrame::ToHome { frame: ToHome::Ack { .. }, .. })
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
    use dipc_wire::ids::{ObjectId, Req};
    use dipc_wire::memory::{Access, GrantNo, PageNo, Replica};
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

    fn ack(page: u32) -> PeerFrame {
        let frame = ToHome::Ack { pages: vec![(PageNo(page), GrantNo(1))] };
        PeerFrame::ToHome { id: ObjectId::from_number(5), replica: Replica(1), frame }
    }

    fn fault(page: u32) -> PeerFrame {
        let (first, ahead, access) = (PageNo(page), 0, Access::Write);
        let frame = ToHome::Fault { first, ahead, access };
        PeerFrame::ToHome { id: ObjectId::from_number(5), replica: Replica(1), frame }
    }

    #[test]
    fn an_acknowledgement_goes_out_with_another_frame_or_when_it_is_waited_for() {
        let (near, mut far) = channels(Cipher::AesGcm, ByteOrder::Little);
        let outbox = Outbox::new(near.split().0);
        let mut is_sent = |expected: &[PeerFrame]| {
            for frame in expected {
                let (got, _) = far.receive::<PeerFrame>().unwrap().unwrap();
                assert_eq!(got, *frame);
            }
        };
        outbox.post(&ack(1), &[]).unwrap();
        outbox.post(&ack(2), &[]).unwrap();
        outbox.post(&fault(3), &[]).unwrap();
        is_sent(&[fault(3), ack(1), ack(2)]);
        outbox.post(&ack(4), &[]).unwrap();
        outbox.post(&frame(5), &[5; 7000]).unwrap();
        is_sent(&[ack(4), frame(5)]);
        outbox.flush().unwrap();
        outbox.post(&ack(6), &[]).unwrap();
        outbox.flush().unwrap();
        is_sent(&[ack(6)]);
        (0..1000).for_each(|page| outbox.post(&ack(page), &[]).unwrap());
        is_sent(&[ack(0), ack(1)]);
        let left = outbox.state.lock().put_off.len();
        assert!(left <= PUT_OFF_BYTES + 100, "{left} bytes are put off");
    }

    #[test]
    fn an_acknowledgement_goes_out_by_itself() {
        let (near, mut far) = channels(Cipher::Plain, ByteOrder::Little);
        let outbox = Outbox::new(near.split().0);
        thread::scope(|scope| {
            scope.spawn(|| outbox.write());
            for page in 0..20 {
                outbox.post(&ack(page), &[]).unwrap();
                if page % 3 != 0 {
                    outbox.flush().unwrap();
                }
                assert_eq!(far.receive::<PeerFrame>().unwrap().unwrap().0, ack(page));
            }
            outbox.post(&ack(0), &[]).unwrap();
            outbox.close();
        });
        drop(outbox);
        let left = far.receive::<PeerFrame>().unwrap();
        assert_eq!(left.map(|(frame, _)| frame), None, "what is put off goes with the link");
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
