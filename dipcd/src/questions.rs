//! Questions to other nodes that wait for their answers: a number goes out, a frame comes back.
//!
//! A question whose link broke is asked again on the next link, with a new number; so every
//! question must bear being asked twice.
#![forbid(unsafe_code)]

use crossbeam_channel::{Receiver, Sender, bounded};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};

use dipc_wire::ids::{NodeId, Req};
use dipc_wire::peer::PeerFrame;

/// What comes back.
pub enum Came {
    /// The answer.
    Answer(PeerFrame),
    /// The link it was asked on is gone.
    Broken,
}

/// The open questions of this node.
#[derive(Default)]
pub struct Questions {
    last: AtomicU64,
    open: Mutex<HashMap<Req, (NodeId, Sender<Came>)>>,
}

impl Questions {
    /// Opens a question to `node`.
    pub fn open(&self, node: NodeId) -> (Req, Receiver<Came>) {
        let req = Req(self.last.fetch_add(1, Ordering::Relaxed) + 1);
        let (sender, receiver) = bounded(1);
        self.open.lock().insert(req, (node, sender));
        (req, receiver)
    }

    /// Gives a question up: its answer, should it come, is dropped.
    pub fn give_up(&self, req: Req) {
        self.open.lock().remove(&req);
    }

    /// An answer has come from `node`. One that nobody waits for, or from another node than was
    /// asked, is handed back.
    pub fn answer(&self, node: NodeId, req: Req, frame: PeerFrame) -> Option<PeerFrame> {
        let asked = {
            let mut open = self.open.lock();
            match open.get(&req) {
                Some((asked, _)) if *asked == node => open.remove(&req),
                _ => None,
            }
        };
        let Some((_, sender)) = asked else { return Some(frame) };
        match sender.send(Came::Answer(frame)) {
            Err(unsent) => match unsent.0 {
                Came::Answer(frame) => Some(frame),
                Came::Broken => None,
            },
            Ok(()) => None,
        }
    }

    /// The link to `node` is gone: whoever waits for it asks again.
    pub fn broken(&self, node: NodeId) {
        self.open.lock().retain(|_, (asked, sender)| {
            let concerned = *asked == node;
            if concerned {
                // The channel has room for one, and this is the one.
                let _ = sender.send(Came::Broken);
            }
            !concerned
        });
    }
}
