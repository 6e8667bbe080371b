//! One session at home: what makes the operations of one client thread happen once, whatever
//! becomes of its wires, and what keeps a message that was taken from its queue from being lost.
//!
//! ```text
//!          Request           Finished                 done covers it
//!  Idle ───────────▶ Running ────────▶ Kept (reply sent) ───────────▶ Idle
//!    ▲                │  ▲                │ left without it, or ended
//!    └────────────────┘  └ Request again   └───▶ PutBack
//!     interrupted while unwired
//! ```
//!
//! Exactly one last reply is kept, and only a `done` lets it go: a broken wire alone puts nothing
//! back. The machine knows no wire; frames of a replaced wire never reach it, and whatever is sent
//! while there is none is dropped by the shell: the client asks again.
#![forbid(unsafe_code)]

use dipc_wire::ids::Seq;
use dipc_wire::keeper::Cause;

/// What happens to a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Event {
    /// `Request::Do` came. The shell keeps the operation of the latest one for [`Effect::Run`].
    Request {
        /// Its number.
        seq: Seq,
        /// What the client has got.
        done: Seq,
    },
    /// `Request::Cancel` came.
    Cancel {
        /// Of which operation.
        seq: Seq,
    },
    /// `Request::Abandon` came.
    Abandon {
        /// Which operation.
        seq: Seq,
    },
    /// `Request::End` came: the thread ends in order.
    End {
        /// What the client has got.
        done: Seq,
    },
    /// The wire broke, or another is about to replace it.
    WireLost,
    /// The worker's system call returned.
    Finished(Finish),
    /// The client's node says that the image or process has ended, or that node is lost.
    Over {
        /// What its last word was; `None` when it had none for this session.
        done: Option<Seq>,
        /// Why.
        cause: Cause,
    },
}

/// How a system call ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Finish {
    /// A message was taken out of its queue (not with `MSG_COPY`).
    Took,
    /// Anything else, errors included.
    Plain,
    /// `EINTR`: it had no effect.
    Interrupted,
}

/// What is to be done, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Effect {
    /// Make the system call of the latest request, whose number is this; say [`Event::Finished`].
    Run {
        /// Which operation.
        seq: Seq,
    },
    /// Send the reply of this operation (after an interruption: `EINTR`), and keep it.
    Send {
        /// Which operation.
        seq: Seq,
    },
    /// Signal the worker until it is out of its system call.
    Interrupt,
    /// The message in this operation's reply goes back to its queue; the reply is kept no more.
    PutBack {
        /// Which operation.
        seq: Seq,
    },
    /// This operation's reply is needed no more.
    Forget {
        /// Which operation.
        seq: Seq,
    },
    /// Answer the Abandon: `Done(0)` with this number.
    AnswerAbandon {
        /// Which operation.
        seq: Seq,
    },
    /// The session is at its end: drop its wire and, once this machine is dropped, its thread.
    Close,
}

/// A frame that no client of ours would send. The wire is closed; the session stands as it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Violation {
    /// What came.
    pub event: Event,
    /// The newest operation that had taken its course.
    pub passed: Seq,
}

/// One session; made when its first ticket is admitted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Session {
    /// The newest operation that took its course.
    passed: Seq,
    state: State,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
enum State {
    /// Nothing runs and nothing is kept.
    #[default]
    Idle,
    /// An operation newer than `passed` is in its system call.
    Running { seq: Seq, purpose: Purpose },
    /// `passed` is the operation whose reply is kept.
    Kept(Kept),
    /// Over.
    Closed,
}

/// What the end of a system call is good for. All but `Reply` are being interrupted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Purpose {
    /// The client waits for the reply.
    Reply,
    /// The client wants the reply now.
    Cancelled,
    /// The wire is gone; the client will ask again.
    Unwired,
    /// The client has left this operation.
    Left(Then),
    /// The session ends.
    Ending,
}

/// What the client waits for once the operation that it has left is out of the way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Then {
    Nothing,
    Answer(Seq),
    Run(Seq),
    RunCancelled(Seq),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Kept {
    /// With a message that is in no queue now.
    Message,
    /// With nothing that could be lost.
    Plain,
}

impl Session {
    /// A session before its first operation.
    pub fn new() -> Session {
        Session::default()
    }

    /// One event: what is to be done about it.
    pub fn step(&mut self, event: Event) -> Result<Vec<Effect>, Violation> {
        let mut effects = Vec::new();
        let next = match event {
            // What was under way when the session ended.
            Event::Request { .. } | Event::Abandon { .. } if self.is_ending() => Some(self.state),
            Event::Request { seq, done } if done < seq => self.request(seq, done, &mut effects),
            Event::Request { .. } => None,
            Event::Cancel { seq } => Some(self.cancel(seq, &mut effects)),
            Event::Abandon { seq } => self.abandon(seq, &mut effects),
            Event::WireLost => Some(self.wire_lost(&mut effects)),
            Event::Finished(finish) => self.finished(finish, &mut effects),
            Event::End { done } => Some(self.end(Some(done), Cause::Reported, &mut effects)),
            Event::Over { done, cause } => Some(self.end(done, cause, &mut effects)),
        };
        match next {
            Some(state) => self.state = state,
            None => return Err(Violation { event, passed: self.passed }),
        }
        Ok(effects)
    }

    fn is_ending(&self) -> bool {
        matches!(self.state, State::Closed | State::Running { purpose: Purpose::Ending, .. })
    }

    /// A new operation, or the newest one again. Numbers may be left out: an operation can be
    /// left by its program before its request got here.
    fn request(&mut self, seq: Seq, done: Seq, effects: &mut Vec<Effect>) -> Option<State> {
        match self.state {
            State::Idle if seq > self.passed => Some(run(seq, effects)),
            State::Kept(_) if seq == self.passed => {
                effects.push(Effect::Send { seq });
                Some(self.state)
            }
            State::Kept(kept) if seq > self.passed => {
                self.let_go(kept, done, effects);
                Some(run(seq, effects))
            }
            State::Running { seq: running, purpose } if seq == running => match purpose {
                Purpose::Reply | Purpose::Cancelled => Some(self.state),
                Purpose::Unwired => Some(State::Running { seq, purpose: Purpose::Reply }),
                Purpose::Left(_) | Purpose::Ending => None,
            },
            State::Running { seq: running, purpose } if seq > running && done < running => {
                leave(running, purpose, Then::Run(seq), effects)
            }
            _ => None,
        }
    }

    /// Counts for the operation that runs; any other has been answered.
    fn cancel(&self, seq: Seq, effects: &mut Vec<Effect>) -> State {
        match self.state {
            State::Running { seq: running, purpose: Purpose::Reply } if seq == running => {
                effects.push(Effect::Interrupt);
                State::Running { seq, purpose: Purpose::Cancelled }
            }
            State::Running { seq: running, purpose: Purpose::Left(Then::Run(next)) }
                if seq == next =>
            {
                let purpose = Purpose::Left(Then::RunCancelled(next));
                State::Running { seq: running, purpose }
            }
            state => state,
        }
    }

    /// The program has left `seq`, whether or not its request ever got here. If it did not, this
    /// says nothing about an earlier reply, which the program may have.
    fn abandon(&self, seq: Seq, effects: &mut Vec<Effect>) -> Option<State> {
        let next = match self.state {
            State::Running { seq: running, purpose } if seq >= running => {
                return leave(running, purpose, Then::Answer(seq), effects);
            }
            State::Kept(kept) if seq == self.passed => {
                self.let_go(kept, Seq::default(), effects);
                State::Idle
            }
            State::Idle | State::Kept(_) if seq >= self.passed => self.state,
            _ => return None,
        };
        effects.push(Effect::AnswerAbandon { seq });
        Some(next)
    }

    /// Whoever waits must not take a message from others for a client that may not come back.
    fn wire_lost(&self, effects: &mut Vec<Effect>) -> State {
        let State::Running { seq, purpose } = self.state else { return self.state };
        let purpose = match purpose {
            Purpose::Reply => {
                effects.push(Effect::Interrupt);
                Purpose::Unwired
            }
            Purpose::Cancelled => Purpose::Unwired,
            Purpose::Left(_) => Purpose::Left(Then::Nothing),
            Purpose::Unwired | Purpose::Ending => purpose,
        };
        State::Running { seq, purpose }
    }

    fn finished(&mut self, finish: Finish, effects: &mut Vec<Effect>) -> Option<State> {
        let State::Running { seq, purpose } = self.state else { return None };
        let kept = match finish {
            Finish::Took => Kept::Message,
            Finish::Plain | Finish::Interrupted => Kept::Plain,
        };
        match (purpose, finish) {
            // Nobody asked for it now: a signal meant for an earlier wire or operation.
            (Purpose::Reply, Finish::Interrupted) => return Some(run(seq, effects)),
            (Purpose::Unwired, Finish::Interrupted) => return Some(State::Idle),
            _ => self.passed = seq,
        }
        match purpose {
            Purpose::Reply | Purpose::Cancelled => {
                effects.push(Effect::Send { seq });
                Some(State::Kept(kept))
            }
            Purpose::Unwired => Some(State::Kept(kept)),
            Purpose::Left(then) => {
                self.let_go(kept, Seq::default(), effects);
                Some(go_on(then, effects))
            }
            Purpose::Ending => {
                self.let_go(kept, Seq::default(), effects);
                effects.push(Effect::Close);
                Some(State::Closed)
            }
        }
    }

    /// The session's end, from the thread itself or from its node. What runs has answered nobody,
    /// so it goes back in any case; of a reply that was sent, `done` and `cause` decide.
    fn end(&self, done: Option<Seq>, cause: Cause, effects: &mut Vec<Effect>) -> State {
        match self.state {
            State::Running { purpose: Purpose::Ending, .. } | State::Closed => self.state,
            State::Running { seq, purpose } => {
                if purpose == Purpose::Reply {
                    effects.push(Effect::Interrupt);
                }
                State::Running { seq, purpose: Purpose::Ending }
            }
            State::Idle | State::Kept(_) => {
                if let State::Kept(kept) = self.state {
                    let covered = match cause {
                        Cause::Reported | Cause::LostAgain => done.unwrap_or_default(),
                        Cause::LostDrop => self.passed,
                    };
                    self.let_go(kept, covered, effects);
                }
                effects.push(Effect::Close);
                State::Closed
            }
        }
    }

    /// The reply of `passed` is kept no more; `done` is what the client has got.
    fn let_go(&self, kept: Kept, done: Seq, effects: &mut Vec<Effect>) {
        let seq = self.passed;
        effects.push(match kept {
            Kept::Message if done < seq => Effect::PutBack { seq },
            Kept::Message | Kept::Plain => Effect::Forget { seq },
        });
    }
}

fn run(seq: Seq, effects: &mut Vec<Effect>) -> State {
    effects.push(Effect::Run { seq });
    State::Running { seq, purpose: Purpose::Reply }
}

/// The operation that was left is out of the way.
fn go_on(then: Then, effects: &mut Vec<Effect>) -> State {
    match then {
        Then::Nothing => State::Idle,
        Then::Answer(seq) => {
            effects.push(Effect::AnswerAbandon { seq });
            State::Idle
        }
        Then::Run(seq) => run(seq, effects),
        Then::RunCancelled(seq) => {
            effects.extend([Effect::Run { seq }, Effect::Interrupt]);
            State::Running { seq, purpose: Purpose::Cancelled }
        }
    }
}

/// The client goes on to something else while `seq` runs. `None` once the session ends.
fn leave(seq: Seq, purpose: Purpose, then: Then, effects: &mut Vec<Effect>) -> Option<State> {
    match purpose {
        Purpose::Ending => return None,
        Purpose::Reply => effects.push(Effect::Interrupt),
        Purpose::Cancelled | Purpose::Unwired | Purpose::Left(_) => {}
    }
    Some(State::Running { seq, purpose: Purpose::Left(then) })
}
