//! How the reader of a link waits. It sleeps, but it stays awake for a moment when something is
//! likely to come at once: an answer that somebody waits for ([`Vigil::expect`]; the reader gets up
//! while the question is on its way, so that costs no time), or the next question of who has just
//! asked one. To wake a sleeping processor takes longer than most of what dipcd does for a page.
//!
//! Who stays awake yields at each look, so nobody who could run waits for it. It does not try again
//! for a while, each time longer, when nothing came in time; and when others need the processor:
//! behind a busy program a thread that yields gets its turn late.
#![forbid(unsafe_code)]

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::io::Errno;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// An answer has come by then, also if home had to ask a third node, where it is worth to stay
/// awake for it.
const ANSWER: Duration = Duration::from_micros(150);
/// Who goes from page to page has asked again by then.
const QUESTION: Duration = Duration::from_micros(120);
/// So many vigils in a row may be in vain: a machine hesitates now and then.
const IN_VAIN: u32 = 3;
/// After the next one there is none for so long; after each further one twice as long.
const REST: Duration = Duration::from_millis(1);
/// How often that doubles.
const DOUBLINGS: u32 = 7;
/// A yield that took so long gave the processor to somebody busy.
const BUSY: Duration = Duration::from_millis(1);
/// That counts for so many vigils in vain at least.
const BUSY_IN_VAIN: u32 = IN_VAIN + 3;

/// What is known to who expects an answer and to who waits for it.
#[derive(Debug)]
pub struct Vigil {
    begun: Instant,
    bell: OwnedFd,
    expected: AtomicBool,
    asleep: AtomicBool,
    /// Until when nobody stays awake for an answer, in microseconds since `begun`.
    rests_until: AtomicU64,
}

impl Vigil {
    /// Nothing is expected yet.
    pub fn new() -> io::Result<Vigil> {
        Ok(Vigil {
            begun: Instant::now(),
            bell: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
            expected: AtomicBool::new(false),
            asleep: AtomicBool::new(false),
            rests_until: AtomicU64::new(0),
        })
    }

    /// A question has just been sent, and somebody waits for the answer.
    pub fn expect(&self) {
        if self.now() < self.rests_until.load(Ordering::Relaxed) {
            return;
        }
        let is_first = !self.expected.swap(true, Ordering::SeqCst);
        if is_first && self.asleep.load(Ordering::SeqCst) {
            // It cannot overflow, and who cannot be woken sleeps: that costs time only.
            let _ = rustix::io::write(&self.bell, &1u64.to_ne_bytes());
        }
    }

    fn now(&self) -> u64 {
        micros(self.begun.elapsed())
    }

    /// Sleeps until something is there to be read, or expected.
    fn sleep(&self, socket: &impl AsFd) -> io::Result<()> {
        self.asleep.store(true, Ordering::SeqCst);
        let slept = match self.expected.load(Ordering::SeqCst) {
            true => Ok(()),
            false => self.await_either(socket),
        };
        self.asleep.store(false, Ordering::SeqCst);
        slept
    }

    fn await_either(&self, socket: &impl AsFd) -> io::Result<()> {
        let by = |fd| PollFd::from_borrowed_fd(fd, PollFlags::IN);
        let mut watched = [by(socket.as_fd()), by(self.bell.as_fd())];
        match poll(&mut watched, None) {
            Err(Errno::INTR) => return Ok(()),
            polled => polled?,
        };
        if !watched[1].revents().is_empty() {
            let _ = rustix::io::read(&self.bell, &mut [0; 8]);
        }
        Ok(())
    }
}

/// What a reader is awake for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum For {
    Answer,
    Question,
}

/// How often in a row the reader was awake in vain, and until when it rests for that.
#[derive(Clone, Copy, Debug, Default)]
struct Patience {
    in_vain: u32,
    rests_until: u64,
}

impl Patience {
    /// Nothing came in time.
    fn ends(&mut self, now: u64, others_are_busy: bool) {
        if others_are_busy {
            self.in_vain = self.in_vain.max(BUSY_IN_VAIN);
        }
        self.in_vain = (self.in_vain + 1).min(IN_VAIN + 1 + DOUBLINGS);
        if let Some(doublings) = self.in_vain.checked_sub(IN_VAIN + 1) {
            self.rests_until = now + micros(REST * (1 << doublings));
        }
    }
}

/// The reader's side.
#[derive(Debug)]
pub struct Watch {
    vigil: Arc<Vigil>,
    awake: Option<(For, Instant)>,
    answers: Patience,
    questions: Patience,
}

impl Watch {
    /// Asleep.
    pub fn new(vigil: Arc<Vigil>) -> Watch {
        let (answers, questions) = Default::default();
        Watch { vigil, awake: None, answers, questions }
    }

    /// A question has come; the next one may follow at once.
    pub fn was_asked(&mut self) {
        if self.awake.is_none() && self.vigil.now() >= self.questions.rests_until {
            self.awake = Some((For::Question, Instant::now()));
        }
    }

    /// Something has come: what is waited for, mostly.
    pub fn came(&mut self) {
        if let Some((what, _)) = self.awake.take() {
            self.patience(what).in_vain = 0;
        }
    }

    /// Waits until there is something to be read, a moment only when that is expected soon. There
    /// may be nothing when it returns.
    pub fn wait(&mut self, socket: &impl AsFd) -> io::Result<()> {
        if self.vigil.expected.swap(false, Ordering::SeqCst) {
            self.awake = Some((For::Answer, Instant::now()));
        }
        match self.awake {
            Some((what, since)) => self.stay_awake(what, since),
            None => return self.vigil.sleep(socket),
        }
        Ok(())
    }

    fn stay_awake(&mut self, what: For, since: Instant) {
        let before = since.elapsed();
        thread::yield_now();
        let after = since.elapsed();
        let most = match what {
            For::Answer => ANSWER,
            For::Question => QUESTION,
        };
        if after >= most {
            self.awake = None;
            self.rest(what, after - before >= BUSY);
        }
    }

    fn rest(&mut self, from: For, others_are_busy: bool) {
        let now = self.vigil.now();
        self.patience(from).ends(now, others_are_busy);
        self.vigil.rests_until.store(self.answers.rests_until, Ordering::Relaxed);
    }

    fn patience(&mut self, what: For) -> &mut Patience {
        match what {
            For::Answer => &mut self.answers,
            For::Question => &mut self.questions,
        }
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::unix::net::UnixStream;

    fn watch() -> (Arc<Vigil>, Watch) {
        let vigil = Arc::new(Vigil::new().unwrap());
        (vigil.clone(), Watch::new(vigil))
    }

    #[test]
    fn who_sleeps_is_woken_by_bytes_and_by_a_question() {
        let (vigil, mut watch) = watch();
        let (near, mut far) = UnixStream::pair().unwrap();
        far.write_all(b"x").unwrap();
        watch.wait(&near).unwrap();
        assert!(watch.awake.is_none());
        let (near, _far) = UnixStream::pair().unwrap();
        thread::scope(|scope| {
            let sleeps = scope.spawn(|| {
                watch.wait(&near).unwrap();
                watch.wait(&near).unwrap();
                watch.awake.is_some() || watch.answers.in_vain > 0
            });
            while !vigil.asleep.load(Ordering::SeqCst) {
                thread::yield_now();
            }
            vigil.expect();
            assert!(sleeps.join().unwrap(), "it stays awake for the answer");
        });
    }

    #[test]
    fn who_was_awake_in_vain_rests_longer_each_time() {
        let (vigil, mut watch) = watch();
        let (near, _far) = UnixStream::pair().unwrap();
        for in_vain in 1..2 * IN_VAIN {
            vigil.rests_until.store(0, Ordering::Relaxed);
            vigil.expect();
            watch.wait(&near).unwrap();
            while watch.awake.is_some() {
                watch.wait(&near).unwrap();
            }
            assert!(watch.answers.in_vain >= in_vain, "more if others were busy");
            assert_eq!(
                vigil.rests_until.load(Ordering::Relaxed),
                watch.answers.rests_until,
                "who would expect an answer knows"
            );
        }
        let mut patience = Patience::default();
        let rests = [(); 14].map(|()| {
            patience.ends(0, false);
            patience.rests_until
        });
        assert_eq!(rests[..6], [0, 0, 0, 1000, 2000, 4000]);
        assert_eq!(rests[13], 128_000);
        let mut patience = Patience::default();
        patience.ends(0, true);
        assert_eq!(patience.rests_until, 8000, "behind a busy program it rests at once");
        vigil.rests_until.store(u64::MAX, Ordering::Relaxed);
        vigil.expect();
        assert!(!vigil.expected.load(Ordering::SeqCst), "it rests");
    }

    #[test]
    fn what_comes_in_time_makes_good() {
        let (_vigil, mut watch) = watch();
        watch.questions.in_vain = 5;
        watch.was_asked();
        assert!(matches!(watch.awake, Some((For::Question, _))));
        watch.came();
        assert!(watch.awake.is_none());
        assert_eq!(watch.questions.in_vain, 0);
        watch.questions.rests_until = u64::MAX;
        watch.was_asked();
        assert!(watch.awake.is_none(), "it rests");
    }
}
