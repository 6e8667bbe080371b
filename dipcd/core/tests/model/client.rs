//! One session's world: a client with a wire, its stand-in at home with the machine under test, a
//! queue with messages. Wires break, dipcd at home is away, the client is killed, its node lost.
//!
//! The shells are played here in a few lines each: the client as libdipc is, the worker as the
//! stand-in's thread is. The invariant is a census of the messages.
#![forbid(unsafe_code)]

use std::collections::VecDeque;

use dipc_core::session::{Effect, Event, Finish, Session};
use dipc_wire::ids::Seq;
use dipc_wire::keeper::Cause;

use super::explore::World;

/// A message, by its number.
type Message = u8;

/// Client to stand-in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Up {
    Request { seq: Seq, done: Seq },
    Cancel { seq: Seq },
    Abandon { seq: Seq },
    End { done: Seq },
}

/// Stand-in to client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Down {
    Reply { seq: Seq, taken: Option<Message> },
    Abandoned { seq: Seq },
}

/// How often what may happen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Budget {
    /// Operations of the program.
    pub receives: u8,
    /// The wire breaks.
    pub drops: u8,
    /// dipcd at home goes away and comes back.
    pub outages: u8,
    /// The program is killed.
    pub kills: u8,
    /// The client's node is declared lost.
    pub losses: u8,
    /// A signal comes while the program waits.
    pub cancels: u8,
    /// A handler leaves the wait for good, and the library says so.
    pub leaves: u8,
    /// The same, but the next request is the first that home hears of it.
    pub deserts: u8,
    /// The thread ends in order.
    pub ends: u8,
}

/// A mistake that the shells or the machine could make.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Bug {
    /// None.
    None,
    /// A broken wire puts the kept message back.
    PutBackOnWireLoss,
    /// The report of a death says nothing of what the program had got.
    DeathWithoutDone,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Program {
    /// Between operations.
    Free,
    /// In one.
    Waiting(Seq),
    /// In one, and a signal has come: it wants to be out.
    Signalled(Seq),
    /// It has left one, and the wire does not know yet or has not answered.
    Leaving(Seq),
    /// It uses the session no more.
    Gone,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Worker {
    Resting,
    Calling { seq: Seq, signalled: bool },
}

/// What happens.
#[derive(Clone, Copy, Debug)]
pub enum Move {
    Receive,
    Signal,
    Leave,
    Desert,
    EndThread,
    ArriveUp,
    ArriveDown,
    Take,
    Interrupted,
    Drop,
    Notice,
    Reconnect,
    Outage,
    Recovery,
    Kill,
    ReportDeath,
    DeclareLost,
}

/// The world.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Client {
    session: Session,
    bug: Bug,
    budget: Budget,
    program: Program,
    /// Alive, whatever it does with the session.
    alive: bool,
    next: Seq,
    /// The `done` page, which outlives the program.
    done: Seq,
    got: Vec<Message>,
    messages: Message,
    queue: VecDeque<Message>,
    worker: Worker,
    held: Option<(Seq, Option<Message>)>,
    wire: Wire,
    up: VecDeque<Up>,
    down: VecDeque<Down>,
    /// Whether home's dipcd is there: without it no wire is opened and no death reported.
    dipcd: bool,
    over: Option<Cause>,
    closed: bool,
    violation: Option<Event>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Wire {
    Up,
    /// The client knows, the stand-in does not.
    Broken,
    Gone,
}

impl Client {
    /// A client that has done nothing yet, and a queue with `messages` in it.
    pub fn new(messages: Message, budget: Budget, bug: Bug) -> Client {
        Client {
            session: Session::new(),
            bug,
            budget,
            program: Program::Free,
            alive: true,
            next: Seq(1),
            done: Seq(0),
            got: Vec::new(),
            messages,
            queue: (1..=messages).collect(),
            worker: Worker::Resting,
            held: None,
            wire: Wire::Up,
            up: VecDeque::new(),
            down: VecDeque::new(),
            dipcd: true,
            over: None,
            closed: false,
            violation: None,
        }
    }

    fn say(&mut self, frame: Up) {
        if self.wire == Wire::Up {
            self.up.push_back(frame);
        }
    }

    fn reply(&mut self, frame: Down) {
        if self.wire == Wire::Up {
            self.down.push_back(frame);
        }
    }

    /// The program has the reply of `seq`: the page says so before the program goes on.
    fn return_to_program(&mut self, seq: Seq, taken: Option<Message>) {
        self.done = seq;
        self.got.extend(taken);
        self.program = Program::Free;
    }

    fn step(&mut self, event: Event) {
        match self.session.step(event) {
            Ok(effects) => effects.into_iter().for_each(|effect| self.carry_out(effect)),
            Err(violation) => self.violation = Some(violation.event),
        }
    }

    fn carry_out(&mut self, effect: Effect) {
        match effect {
            Effect::Run { seq } => {
                assert_eq!(self.worker, Worker::Resting, "one call at a time");
                self.worker = Worker::Calling { seq, signalled: false };
            }
            Effect::Send { seq } => {
                let (held, taken) = self.held.expect("a reply is there to be sent");
                assert_eq!(held, seq);
                self.reply(Down::Reply { seq, taken });
            }
            Effect::Interrupt => {
                if let Worker::Calling { signalled, .. } = &mut self.worker {
                    *signalled = true;
                }
            }
            Effect::PutBack { seq } => {
                let (held, taken) = self.held.take().expect("a message is there to go back");
                assert_eq!(held, seq);
                self.queue.push_back(taken.expect("only a message goes back"));
            }
            Effect::Forget { seq } => {
                let (held, _) = self.held.take().expect("a reply is there to be forgotten");
                assert_eq!(held, seq);
            }
            Effect::AnswerAbandon { seq } => self.reply(Down::Abandoned { seq }),
            Effect::Close => {
                self.closed = true;
                self.break_wire();
                self.wire = Wire::Gone;
            }
        }
    }

    fn finish(&mut self, finish: Finish, taken: Option<Message>) {
        let Worker::Calling { seq, .. } = self.worker else { return };
        self.worker = Worker::Resting;
        self.held = Some((seq, taken));
        self.step(Event::Finished(finish));
    }

    fn break_wire(&mut self) {
        self.up.clear();
        self.down.clear();
    }

    fn notice(&mut self) {
        self.wire = Wire::Gone;
        self.step(Event::WireLost);
        if self.bug == Bug::PutBackOnWireLoss
            && let Some((_, Some(message))) = self.held
        {
            self.queue.push_back(message);
            self.held = None;
            self.session = Session::new();
        }
    }

    /// After a break the client says again what is not answered.
    fn reconnect(&mut self) {
        if self.wire == Wire::Broken {
            self.notice();
        }
        self.wire = Wire::Up;
        match self.program {
            Program::Waiting(seq) => self.say(Up::Request { seq, done: self.done }),
            Program::Signalled(seq) => {
                self.say(Up::Request { seq, done: self.done });
                self.say(Up::Cancel { seq });
            }
            Program::Leaving(seq) => self.say(Up::Abandon { seq }),
            Program::Free | Program::Gone => {}
        }
    }

    fn arrive_up(&mut self) {
        let event = match self.up.pop_front() {
            Some(Up::Request { seq, done }) => Event::Request { seq, done },
            Some(Up::Cancel { seq }) => Event::Cancel { seq },
            Some(Up::Abandon { seq }) => Event::Abandon { seq },
            Some(Up::End { done }) => Event::End { done },
            None => return,
        };
        self.step(event);
    }

    fn arrive_down(&mut self) {
        match (self.down.pop_front(), self.program) {
            (
                Some(Down::Reply { seq, taken }),
                Program::Waiting(waited) | Program::Signalled(waited),
            ) if seq == waited => self.return_to_program(seq, taken),
            (Some(Down::Abandoned { seq }), Program::Leaving(left)) if seq == left => {
                self.program = Program::Free;
            }
            _ => {}
        }
    }

    fn over(&mut self, cause: Cause) {
        self.over = Some(cause);
        let done = match cause {
            Cause::Reported if self.bug != Bug::DeathWithoutDone => Some(self.done),
            _ => None,
        };
        self.step(Event::Over { done, cause });
    }

    fn program_moves(&self, moves: &mut Vec<Move>) {
        let budget = self.budget;
        match self.program {
            Program::Free if self.wire == Wire::Up => {
                moves.extend((budget.receives > 0).then_some(Move::Receive));
                moves.extend((budget.ends > 0).then_some(Move::EndThread));
            }
            Program::Waiting(_) | Program::Signalled(_) => {
                let undisturbed = matches!(self.program, Program::Waiting(_));
                moves.extend((budget.cancels > 0 && undisturbed).then_some(Move::Signal));
                moves.extend((budget.leaves > 0).then_some(Move::Leave));
                moves.extend((budget.deserts > 0).then_some(Move::Desert));
            }
            _ => {}
        }
        moves.extend((budget.kills > 0).then_some(Move::Kill));
    }
}

impl World for Client {
    type Move = Move;

    fn moves(&self) -> Vec<Move> {
        let mut moves = Vec::new();
        if self.alive && !self.closed {
            self.program_moves(&mut moves);
            let may_dial = self.wire != Wire::Up && self.dipcd && self.over.is_none();
            moves.extend(may_dial.then_some(Move::Reconnect));
        }
        if !self.up.is_empty() {
            moves.push(Move::ArriveUp);
        }
        if !self.down.is_empty() && self.alive {
            moves.push(Move::ArriveDown);
        }
        if let Worker::Calling { signalled, .. } = self.worker {
            moves.extend((!self.queue.is_empty()).then_some(Move::Take));
            moves.extend(signalled.then_some(Move::Interrupted));
        }
        match self.wire {
            Wire::Up => moves.extend((self.budget.drops > 0).then_some(Move::Drop)),
            Wire::Broken => moves.push(Move::Notice),
            Wire::Gone => {}
        }
        if !self.dipcd {
            moves.push(Move::Recovery);
        } else if self.budget.outages > 0 {
            moves.push(Move::Outage);
        }
        if self.dipcd && self.over.is_none() {
            moves.extend((!self.alive).then_some(Move::ReportDeath));
            moves.extend((self.budget.losses > 0).then_some(Move::DeclareLost));
        }
        moves
    }

    fn apply(&mut self, step: &Move) {
        match step {
            Move::Receive => {
                self.budget.receives -= 1;
                let seq = self.next;
                self.next = seq.next();
                self.program = Program::Waiting(seq);
                self.say(Up::Request { seq, done: self.done });
            }
            Move::Signal => {
                self.budget.cancels -= 1;
                if let Program::Waiting(seq) = self.program {
                    self.program = Program::Signalled(seq);
                    self.say(Up::Cancel { seq });
                }
            }
            Move::Leave => {
                self.budget.leaves -= 1;
                if let Program::Waiting(seq) | Program::Signalled(seq) = self.program {
                    self.program = Program::Leaving(seq);
                    self.say(Up::Abandon { seq });
                }
            }
            Move::Desert => {
                self.budget.deserts -= 1;
                self.program = Program::Free;
            }
            Move::EndThread => {
                self.budget.ends -= 1;
                self.program = Program::Gone;
                self.say(Up::End { done: self.done });
            }
            Move::ArriveUp => self.arrive_up(),
            Move::ArriveDown => self.arrive_down(),
            Move::Take => {
                let message = self.queue.pop_front();
                self.finish(Finish::Took, message);
            }
            Move::Interrupted => self.finish(Finish::Interrupted, None),
            Move::Drop => {
                self.budget.drops -= 1;
                self.break_wire();
                self.wire = Wire::Broken;
            }
            Move::Notice => self.notice(),
            Move::Reconnect => self.reconnect(),
            Move::Outage => {
                self.budget.outages -= 1;
                self.dipcd = false;
            }
            Move::Recovery => self.dipcd = true,
            Move::Kill => {
                self.budget.kills -= 1;
                self.alive = false;
                self.program = Program::Gone;
                self.down.clear();
            }
            Move::ReportDeath => self.over(Cause::Reported),
            Move::DeclareLost => {
                self.budget.losses -= 1;
                self.over(Cause::LostAgain);
            }
        }
    }

    fn wrong(&self) -> Option<String> {
        if let Some(event) = self.violation {
            return Some(format!("VIOLATION by {event:?}"));
        }
        let mut everywhere: Vec<_> = self.queue.iter().chain(&self.got).copied().collect();
        if let Some((_, Some(held))) = self.held
            && !self.got.contains(&held)
        {
            everywhere.push(held);
        }
        everywhere.sort_unstable();
        let again = self.over == Some(Cause::LostAgain);
        let all = everywhere.len();
        everywhere.dedup();
        if everywhere.len() < all && !again {
            return Some(format!("DUPLICATE: {everywhere:?}"));
        }
        if everywhere.len() < usize::from(self.messages) {
            return Some(format!("LOST: only {everywhere:?} are left"));
        }
        let stuck = match self.program {
            Program::Waiting(_) => !self.queue.is_empty() || self.held.is_some(),
            Program::Signalled(_) | Program::Leaving(_) => true,
            Program::Free | Program::Gone => false,
        };
        let ended = self.over.is_some() || !self.alive || self.closed;
        if self.moves().is_empty() && ((stuck && !ended) || (ended && !self.closed)) {
            return Some("STUCK: nothing happens, and somebody waits".into());
        }
        None
    }
}
