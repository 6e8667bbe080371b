//! One client: its bytes through the parser, its requests to the store, the answers back.
//!
//! One receive and one send for a request that came whole, and no copy but from the socket to the
//! input, and from there to the mailbox, or from the mailbox to the answer and from there to the
//! socket. No lock is held while the socket is waited for: a client that never reads keeps nobody
//! waiting. Every wait is bounded but the one between two requests.
#![forbid(unsafe_code)]

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::AsFd;
use std::sync::atomic::AtomicUsize;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::follow::Follower;
use crate::protocol::{Form, LINE_BYTES_MAX, Parser, Pause, Request, Step, Wait};
use crate::store::{Store, Unusable};

/// A packet is whole when nothing came for so long.
pub const QUIET: Duration = Duration::from_millis(50);
/// The longest pause in the middle of a request.
pub const REST_MAX: Duration = Duration::from_secs(60);
/// The longest time a client may take nothing of an answer.
pub const SEND_MAX: Duration = Duration::from_secs(30);
/// How long, and for how many bytes, a connection that is closed early is still emptied, so that
/// the reset for what is unread does not overtake the error line.
const LINGER: Duration = Duration::from_millis(500);
const LINGER_READS: usize = 256;
/// Larger buffers are given back after the request that needed them.
const KEPT_BYTES: usize = 256 << 10;

/// How a connection ended, as far as the server is concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// By the client, or by its mistakes.
    Closed,
    /// The mailboxes are gone: there is nothing left to serve.
    Gone,
}

/// Serves one client, of so many, until it ends. Its mistakes are answered; a broken connection is
/// its end.
pub fn serve(
    stream: &TcpStream,
    store: &Store,
    packet_bytes: usize,
    clients: &AtomicUsize,
) -> Ended {
    let parser = Parser::new(store.geometry(), packet_bytes);
    let mut connection = Connection {
        input: Input::new(stream, packet_bytes, parser.input_bytes_max()),
        output: Output { stream, packet_bytes, bytes: Vec::new() },
        follower: Follower::new(stream, clients),
        store,
    };
    connection.run(parser).unwrap_or(Ended::Closed)
}

struct Connection<'a> {
    input: Input<'a>,
    output: Output<'a>,
    follower: Follower<'a>,
    store: &'a Store,
}

impl Connection<'_> {
    fn run(&mut self, mut parser: Parser) -> io::Result<Ended> {
        let mut pause = Pause::Unknown;
        loop {
            let used = match parser.step(self.input.bytes(), pause) {
                Step::Wait(wait) => {
                    pause = self.input.receive(wait)?;
                    continue;
                }
                Step::Serve(Request::Quit, _) | Step::End => return Ok(Ended::Closed),
                Step::Serve(request, used) => match self.answer(request)? {
                    None => {
                        self.follower.step();
                        used
                    }
                    Some(Unusable::Gone) => return Ok(Ended::Gone),
                    Some(unusable) => {
                        self.output.error(&unusable)?;
                        used
                    }
                },
                Step::Skip(used) => used,
                Step::Refuse(problem, used) => {
                    self.output.error(&problem)?;
                    used
                }
                Step::Close(problem) => {
                    self.output.error(&problem)?;
                    return self.input.linger().map(|()| Ended::Closed);
                }
            };
            self.input.forget(used);
            if pause == Pause::Quiet {
                pause = Pause::Unknown;
            }
        }
    }

    /// Does what was asked for. What the store refuses is not the connection's error.
    fn answer(&mut self, request: Request) -> io::Result<Option<Unusable>> {
        let done = match request {
            Request::Quit => Ok(()),
            Request::ReadPlain(mailbox) => self.read(mailbox, usize::MAX, Form::Plain),
            Request::ReadFramed(mailbox, most) => self.read(mailbox, most, Form::Framed),
            Request::Write(mailbox, range, form) => {
                let bytes = &self.input.bytes()[range];
                let written = self.store.write(mailbox, bytes);
                if written.is_ok() && form == Form::Framed {
                    self.output.begin(format_args!("ok {}\n", bytes.len()))?;
                }
                written
            }
        };
        match done {
            Ok(()) => self.output.send().map(|()| None),
            Err(unusable) => Ok(Some(unusable)),
        }
    }

    /// Copies the content into the output; the mailbox is given back before anything is sent.
    fn read(
        &mut self,
        mailbox: crate::layout::Mailbox,
        most: usize,
        form: Form,
    ) -> Result<(), Unusable> {
        let content = self.store.read(mailbox)?;
        let length = content.length().min(most);
        let out = &mut self.output.bytes;
        if form == Form::Framed {
            out.extend_from_slice(format!("ok {length}\n").as_bytes());
        }
        content.append_to(length, out);
        drop(content);
        if form == Form::Plain {
            out.push(b'\n');
        }
        Ok(())
    }
}

/// What came and was not yet used.
struct Input<'a> {
    stream: &'a TcpStream,
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    packet_bytes: usize,
    most: usize,
}

impl<'a> Input<'a> {
    fn new(stream: &'a TcpStream, packet_bytes: usize, most: usize) -> Self {
        let buffer = vec![0; Self::first_bytes(packet_bytes)];
        Self { stream, buffer, start: 0, end: 0, packet_bytes, most }
    }

    /// Room for a line and a packet, so that a request comes in one receive.
    fn first_bytes(packet_bytes: usize) -> usize {
        LINE_BYTES_MAX + packet_bytes.min(KEPT_BYTES / 2)
    }

    fn bytes(&self) -> &[u8] {
        &self.buffer[self.start..self.end]
    }

    fn forget(&mut self, used: usize) {
        self.start += used;
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
            if self.buffer.len() > KEPT_BYTES {
                self.buffer = vec![0; Self::first_bytes(self.packet_bytes)];
            }
        }
    }

    /// Waits for more bytes and says what is known about a pause.
    fn receive(&mut self, wait: Wait) -> io::Result<Pause> {
        let bound = match wait {
            Wait::Idle => None,
            Wait::Rest => Some(REST_MAX),
            Wait::Quiet => Some(QUIET),
        };
        if let Some(bound) = bound
            && !readable(self.stream, bound)?
        {
            return match wait {
                Wait::Quiet => Ok(Pause::Quiet),
                _ => Err(io::Error::from(io::ErrorKind::TimedOut)),
            };
        }
        self.make_room();
        let end = self.buffer.len().min(self.end + LINE_BYTES_MAX + self.packet_bytes);
        match self.stream.read(&mut self.buffer[self.end..end]) {
            Ok(0) => Ok(Pause::End),
            Ok(received) => {
                self.end += received;
                Ok(Pause::Unknown)
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(Pause::Unknown),
            Err(error) => Err(error),
        }
    }

    fn make_room(&mut self) {
        if self.end < self.buffer.len() {
            return;
        }
        if self.start > 0 {
            self.buffer.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        } else {
            assert!(self.end < self.most, "the parser decides before there is so much input");
            self.buffer.resize((2 * self.end).min(self.most), 0);
        }
    }

    fn linger(&mut self) -> io::Result<()> {
        self.stream.shutdown(Shutdown::Write)?;
        let until = Instant::now() + LINGER;
        for _ in 0..LINGER_READS {
            let left = until.saturating_duration_since(Instant::now());
            if !readable(self.stream, left)? || self.stream.read(&mut self.buffer)? == 0 {
                break;
            }
        }
        Ok(())
    }
}

/// Whether there is something to receive, an end included, within `bound`.
fn readable(stream: &TcpStream, bound: Duration) -> io::Result<bool> {
    let until = Instant::now() + bound;
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let left = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() };
        let mut polled = [PollFd::from_borrowed_fd(stream.as_fd(), PollFlags::IN)];
        match poll(&mut polled, Some(&left)) {
            Ok(ready) => return Ok(ready > 0),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// The answer that is being made.
struct Output<'a> {
    stream: &'a TcpStream,
    packet_bytes: usize,
    bytes: Vec<u8>,
}

impl Output<'_> {
    fn begin(&mut self, line: std::fmt::Arguments<'_>) -> io::Result<()> {
        self.bytes.write_fmt(line)
    }

    fn error(&mut self, what: &dyn std::fmt::Display) -> io::Result<()> {
        self.begin(format_args!("error: {what}\n"))?;
        self.send()
    }

    /// Sends it in packets; the first also has the line before the content.
    fn send(&mut self) -> io::Result<()> {
        let mut stream = self.stream;
        for packet in self.bytes.chunks(LINE_BYTES_MAX + self.packet_bytes) {
            stream.write_all(packet)?;
        }
        self.bytes.clear();
        if self.bytes.capacity() > KEPT_BYTES {
            self.bytes = Vec::new();
        }
        Ok(())
    }
}
