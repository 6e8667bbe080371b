//! What clients say: bytes in, requests out. Pure: it reads no socket and no clock, so that every
//! stream, cut in every way, can be tried.
//!
//! ```text
//! request   = line [data]           lines end in LF or CRLF; empty ones are skipped
//! line      = "r" N [MAX] | "w" N [LENGTH] | "q" [N]
//! framed    = "w" N LENGTH: exactly LENGTH bytes follow.  "r" N MAX: answered "ok LENGTH"
//! plain     = "w" N: the data is one packet, the line end behind it left out
//! ```
//!
//! What one packet is, a stream of bytes does not say. Data that came with the line, or soon after
//! it, ends when the client pauses or shuts its end; data after a line that came alone ends with a
//! newline. The caller says with each call what it knows about a pause.
//!
//! ```text
//! Line ──"w N"──▶ Data ──pause, nothing came──▶ Alone ──newline──▶ Line
//!                   └───────pause, data came─────────────────────▶ Line
//! Line ──"w N LENGTH" that does not fit──▶ Skipping ──LENGTH bytes──▶ Line
//! ```
//!
//! Invariant: a step uses no more bytes than there are; it uses some, or asks to wait, or ends.
#![forbid(unsafe_code)]

use std::fmt;
use std::ops::Range;

use crate::layout::{Geometry, Mailbox};

/// Bytes of a request's line at most, its end included.
pub const LINE_BYTES_MAX: usize = 80;

/// The form of a request, and so of its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// For people and ten-line clients.
    Plain,
    /// With lengths.
    Framed,
}

/// What a client wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// The content of a mailbox, then a newline.
    ReadPlain(Mailbox),
    /// "ok" and as many bytes, at most so many.
    ReadFramed(Mailbox, usize),
    /// To replace the content by these bytes of the input.
    Write(Mailbox, Range<usize>, Form),
    /// To end the connection.
    Quit,
}

/// What is known about the bytes that have not come yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pause {
    /// More may be on its way.
    Unknown,
    /// The client has sent nothing for as long as a packet may be on its way.
    Quiet,
    /// It will send no more.
    End,
}

/// How long the caller should wait for more bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// As long as the client likes: it is between two requests.
    Idle,
    /// A bounded time: it is in the middle of one.
    Rest,
    /// Until it pauses.
    Quiet,
}

/// What to do next.
#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing can be decided without more bytes, or a pause.
    Wait(Wait),
    /// Serve this, then forget the first so many bytes of the input.
    Serve(Request, usize),
    /// Forget the first so many bytes.
    Skip(usize),
    /// Answer with an error line, forget the first so many bytes, go on.
    Refuse(Problem, usize),
    /// Answer with an error line and close: where the next request begins cannot be known.
    Close(Problem),
    /// Close: the client has said all.
    End,
}

/// What is wrong with a request. Its text follows `error: `.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Problem {
    /// Not a letter that we know.
    NoRequest,
    /// What should be a number is none.
    NoNumber,
    /// More words than the request has.
    TooManyWords,
    /// No end of line within the bound.
    LineTooLong,
    /// There are fewer mailboxes.
    NoMailbox(u32),
    /// More than a mailbox holds.
    TooLong(usize),
    /// More than a packet holds.
    PacketTooLong(usize),
    /// The client ended in the middle of a request.
    CutOff,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoRequest => f.write_str("a request is r N, r N MAX, w N, w N LENGTH or q"),
            Self::NoNumber => f.write_str("expected a number"),
            Self::TooManyWords => f.write_str("more words than the request has"),
            Self::LineTooLong => write!(f, "no line has more than {LINE_BYTES_MAX} bytes"),
            Self::NoMailbox(count) => write!(f, "the mailboxes are 1 to {count}"),
            Self::TooLong(most) => write!(f, "a mailbox holds {most} bytes"),
            Self::PacketTooLong(most) => {
                write!(f, "a packet holds {most} bytes; more with w N LENGTH")
            }
            Self::CutOff => f.write_str("the request was cut off"),
        }
    }
}

/// Where in the stream the parser is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Before a line.
    Line,
    /// Behind the line of a plain write.
    Data(Result<Mailbox, Problem>),
    /// The same, and that line came alone.
    Alone(Result<Mailbox, Problem>),
    /// Inside the data of a refused write: so many bytes are left.
    Skipping(u64),
}

/// The parser of one connection.
#[derive(Debug)]
pub struct Parser {
    geometry: Geometry,
    packet_bytes: usize,
    state: State,
}

impl Parser {
    /// At the beginning of a connection.
    pub fn new(geometry: Geometry, packet_bytes: usize) -> Self {
        Self { geometry, packet_bytes, state: State::Line }
    }

    /// Input that is never too little for a step to be taken.
    pub fn input_bytes_max(&self) -> usize {
        LINE_BYTES_MAX + self.geometry.mailbox_bytes().max(self.packet_bytes + 3)
    }

    /// One step: `input` is all that came and was not yet used.
    pub fn step(&mut self, input: &[u8], pause: Pause) -> Step {
        match self.state {
            State::Line => self.line(input, pause),
            State::Data(mailbox) => self.data(mailbox, input, pause),
            State::Alone(mailbox) => self.alone(mailbox, input, pause),
            State::Skipping(_) if input.is_empty() && pause == Pause::End => Step::End,
            State::Skipping(_) if input.is_empty() => Step::Wait(Wait::Rest),
            State::Skipping(left) => {
                let used = left.min(input.len() as u64);
                let left = left - used;
                self.state = if left == 0 { State::Line } else { State::Skipping(left) };
                Step::Skip(used as usize)
            }
        }
    }

    fn line(&mut self, input: &[u8], pause: Pause) -> Step {
        let within = &input[..input.len().min(LINE_BYTES_MAX)];
        let Some(end) = within.iter().position(|&byte| byte == b'\n') else {
            return match pause {
                _ if within.len() == LINE_BYTES_MAX => Step::Close(Problem::LineTooLong),
                Pause::End if input.is_empty() => Step::End,
                Pause::End => Step::Close(Problem::CutOff),
                _ if input.is_empty() => Step::Wait(Wait::Idle),
                _ => Step::Wait(Wait::Rest),
            };
        };
        let used = end + 1;
        let line = input[..end].strip_suffix(b"\r").unwrap_or(&input[..end]);
        let mut words = line.split(|byte| b" \t".contains(byte)).filter(|word| !word.is_empty());
        match words.next() {
            None => Step::Skip(used),
            Some(b"r") => match self.read(words) {
                Ok(request) => Step::Serve(request, used),
                Err(problem) => Step::Refuse(problem, used),
            },
            Some(b"w") => self.write(words, input, used, pause),
            Some(b"q") => match optional(words) {
                Ok(_) => Step::Serve(Request::Quit, used),
                Err(problem) => Step::Refuse(problem, used),
            },
            Some(_) => Step::Refuse(Problem::NoRequest, used),
        }
    }

    fn read<'a>(&self, mut words: impl Iterator<Item = &'a [u8]>) -> Result<Request, Problem> {
        let number = number(words.next())?;
        let most = optional(words)?;
        let mailbox = self.mailbox(number)?;
        Ok(match most {
            None => Request::ReadPlain(mailbox),
            Some(most) => Request::ReadFramed(mailbox, usize::try_from(most).unwrap_or(usize::MAX)),
        })
    }

    /// A line that begins with `w`. If it says nothing about its data, the connection must end:
    /// data must never be taken for requests.
    fn write<'a>(
        &mut self,
        mut words: impl Iterator<Item = &'a [u8]>,
        input: &[u8],
        used: usize,
        pause: Pause,
    ) -> Step {
        let parsed = number(words.next()).and_then(|number| Ok((number, optional(words)?)));
        let (number, length) = match parsed {
            Ok(parsed) => parsed,
            Err(problem) => return Step::Close(problem),
        };
        let mailbox = self.mailbox(number);
        let Some(length) = length else {
            self.state = State::Data(mailbox);
            return Step::Skip(used);
        };
        let most = self.geometry.mailbox_bytes();
        let problem = match mailbox {
            Ok(mailbox) if length <= most as u64 => {
                return self.body(mailbox, used..used + length as usize, input, pause);
            }
            Ok(_) => Problem::TooLong(most),
            Err(problem) => problem,
        };
        self.state = if length == 0 { State::Line } else { State::Skipping(length) };
        Step::Refuse(problem, used)
    }

    fn body(&self, mailbox: Mailbox, body: Range<usize>, input: &[u8], pause: Pause) -> Step {
        match pause {
            _ if input.len() >= body.end => {
                let end = body.end;
                Step::Serve(Request::Write(mailbox, body, Form::Framed), end)
            }
            Pause::End => Step::Close(Problem::CutOff),
            _ => Step::Wait(Wait::Rest),
        }
    }

    /// Data that comes with its line, or soon after it.
    fn data(&mut self, mailbox: Result<Mailbox, Problem>, input: &[u8], pause: Pause) -> Step {
        if without_line_end(input) > self.packet_bytes {
            return Step::Close(Problem::PacketTooLong(self.packet_bytes));
        }
        match pause {
            Pause::Unknown => Step::Wait(Wait::Quiet),
            Pause::Quiet if input.is_empty() => {
                self.state = State::Alone(mailbox);
                Step::Wait(Wait::Rest)
            }
            Pause::End if input.is_empty() => Step::Close(Problem::CutOff),
            Pause::Quiet | Pause::End => self.packet(mailbox, input.len(), input),
        }
    }

    /// Data after a line that came alone.
    fn alone(&mut self, mailbox: Result<Mailbox, Problem>, input: &[u8], pause: Pause) -> Step {
        let newline = input.iter().position(|&byte| byte == b'\n');
        let used = newline.map_or(input.len(), |at| at + 1);
        if without_line_end(&input[..used]) > self.packet_bytes {
            return Step::Close(Problem::PacketTooLong(self.packet_bytes));
        }
        match (newline, pause) {
            (None, Pause::End) if input.is_empty() => Step::Close(Problem::CutOff),
            (None, Pause::Unknown | Pause::Quiet) => Step::Wait(Wait::Rest),
            (Some(_), _) | (None, Pause::End) => self.packet(mailbox, used, input),
        }
    }

    /// The whole data of a plain write.
    fn packet(&mut self, mailbox: Result<Mailbox, Problem>, used: usize, input: &[u8]) -> Step {
        self.state = State::Line;
        let length = without_line_end(&input[..used]);
        let most = self.geometry.mailbox_bytes();
        match mailbox {
            Ok(_) if length > most => Step::Refuse(Problem::TooLong(most), used),
            Ok(mailbox) => Step::Serve(Request::Write(mailbox, 0..length, Form::Plain), used),
            Err(problem) => Step::Refuse(problem, used),
        }
    }

    fn mailbox(&self, number: u64) -> Result<Mailbox, Problem> {
        let none = Problem::NoMailbox(self.geometry.mailboxes());
        self.geometry.mailbox(number).ok_or(none)
    }
}

/// The length of `data` without one line end behind it.
fn without_line_end(data: &[u8]) -> usize {
    match data {
        [.., b'\r', b'\n'] => data.len() - 2,
        [.., b'\n'] => data.len() - 1,
        _ => data.len(),
    }
}

/// Decimal digits and nothing else, so that `-1` and `0x1` are no numbers.
fn number(word: Option<&[u8]>) -> Result<u64, Problem> {
    let word = word.ok_or(Problem::NoNumber)?;
    if !word.iter().all(u8::is_ascii_digit) {
        return Err(Problem::NoNumber);
    }
    let digits = str::from_utf8(word).map_err(|_| Problem::NoNumber)?;
    digits.parse().map_err(|_| Problem::NoNumber)
}

/// One more number, or the end of the line.
fn optional<'a>(mut words: impl Iterator<Item = &'a [u8]>) -> Result<Option<u64>, Problem> {
    let number = words.next().map(|word| number(Some(word))).transpose()?;
    match words.next() {
        None => Ok(number),
        Some(_) => Err(Problem::TooManyWords),
    }
}
