//! What /proc/PID/task/TID/syscall says of a thread: whether it sleeps on a futex, on which word,
//! and which value it believes to be there.
//!
//! The line is the number of the system call and its six arguments, `running`, or `-1` for a
//! thread that waits outside of a call (a page fault, say). A wait that was stopped and goes on is
//! `restart_syscall`, with the arguments of the call it restarts (tried on Linux 6.18).
#![forbid(unsafe_code)]

/// What a thread is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Doing {
    /// It runs, and may be on its way to sleep.
    Running,
    /// It sleeps while this word has this value.
    Sleeping(Word),
    /// It sleeps on one of several words: an array of `struct futex_waitv` in its memory.
    SleepingOnOne {
        /// Where the array is.
        address: u64,
        /// How many there are.
        count: usize,
    },
    /// It sleeps in a way that another node cannot end: a mutex with priority inheritance, or a
    /// wait that is to be requeued to one.
    OutOfReach,
    /// Something else.
    Other,
}

/// A word of the program, and what a sleeper believes it to hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Word {
    /// Its address.
    pub address: u64,
    /// The value; as soon as it has another, the sleeper must look again.
    pub value: u32,
}

impl Word {
    /// Whether it looks like the word of a robust mutex whose owner is known: a thread's number
    /// under the mark that somebody waits (linux/futex.h). Other locks of the C library that are
    /// slept on hold small numbers.
    pub fn is_robust(self) -> bool {
        self.value & FUTEX_WAITERS != 0 && self.value & FUTEX_TID_MASK != 0
    }
}

/// Bytes of one `struct futex_waitv`: value (8), address (8), flags (4), nothing (4).
pub const WAITV_BYTES: usize = 24;
/// How many words one call may wait for (FUTEX_WAITV_MAX).
pub const WAITV_MAX: usize = 128;

/// futex_wait(2) of Linux 6.7, which the libc crate does not know yet.
const FUTEX_WAIT_CALL: i64 = 455;

const FUTEX_WAITERS: u32 = 0x8000_0000;
const FUTEX_TID_MASK: u32 = 0x3fff_ffff;
const PRIVATE: u64 = 128;
const CLOCK_REALTIME: u64 = 256;
const WAIT: u64 = 0;
const LOCK_PI: u64 = 6;
const WAIT_BITSET: u64 = 9;
const WAIT_REQUEUE_PI: u64 = 11;
const LOCK_PI2: u64 = 13;

/// Reads one line. A futex that is private to its process is nobody else's business.
pub fn doing(line: &str) -> Doing {
    let mut words = line.split_ascii_whitespace();
    let Some(call) = words.next() else { return Doing::Other };
    if call == "running" {
        return Doing::Running;
    }
    let mut arguments = [0; 4];
    for argument in &mut arguments {
        let hexadecimal = words.next().and_then(|word| word.strip_prefix("0x"));
        match hexadecimal.and_then(|digits| u64::from_str_radix(digits, 16).ok()) {
            Some(number) => *argument = number,
            None => return Doing::Other,
        }
    }
    match call.parse() {
        Ok(libc::SYS_futex | libc::SYS_restart_syscall) => futex(arguments),
        Ok(FUTEX_WAIT_CALL) if arguments[3] & PRIVATE == 0 => {
            Doing::Sleeping(Word { address: arguments[0], value: arguments[1] as u32 })
        }
        Ok(libc::SYS_futex_waitv) => {
            let count = usize::try_from(arguments[1]).unwrap_or(usize::MAX).min(WAITV_MAX);
            Doing::SleepingOnOne { address: arguments[0], count }
        }
        _ => Doing::Other,
    }
}

fn futex([address, operation, value, _]: [u64; 4]) -> Doing {
    if operation & PRIVATE != 0 {
        return Doing::Other;
    }
    match operation & !CLOCK_REALTIME {
        WAIT | WAIT_BITSET => Doing::Sleeping(Word { address, value: value as u32 }),
        LOCK_PI | LOCK_PI2 | WAIT_REQUEUE_PI => Doing::OutOfReach,
        _ => Doing::Other,
    }
}

/// The shared words of an array of `struct futex_waitv`.
pub fn words_of(array: &[u8]) -> impl Iterator<Item = Word> {
    let (entries, _) = array.as_chunks::<WAITV_BYTES>();
    entries.iter().filter_map(|entry| {
        let number = |at: usize| entry[at..].first_chunk().map(|bytes| u64::from_ne_bytes(*bytes));
        let flags = entry[16..].first_chunk().map(|bytes| u32::from_ne_bytes(*bytes))?;
        let shared = u64::from(flags) & PRIVATE == 0;
        shared.then_some(Word { address: number(8)?, value: number(0)? as u32 })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sleeping(address: u64, value: u32) -> Doing {
        Doing::Sleeping(Word { address, value })
    }

    #[test]
    fn sleepers_on_shared_words_are_known_by_every_call_that_waits() {
        let tail = "0x0 0x0 0x0 0x7ffd 0x7f00";
        assert_eq!(doing(&format!("202 0x7f10 0x0 0x2 {tail}")), sleeping(0x7f10, 2), "WAIT");
        let timed = doing(&format!("202 0x7f10 0x109 0xffffffff {tail}"));
        assert_eq!(timed, sleeping(0x7f10, u32::MAX), "WAIT_BITSET by the wall clock");
        assert_eq!(doing(&format!("219 0x7f10 0x0 0x1 {tail}")), sleeping(0x7f10, 1), "restarted");
        assert_eq!(doing(&format!("455 0x7f10 0x3 0xf 0x2 {tail}")), sleeping(0x7f10, 3));
        let several = doing(&format!("449 0x7f20 0x2 0x0 0x0 {tail}"));
        assert_eq!(several, Doing::SleepingOnOne { address: 0x7f20, count: 2 });
    }

    #[test]
    fn what_is_no_sleep_of_ours_is_told_apart() {
        let tail = "0x0 0x0 0x0 0x7ffd 0x7f00";
        assert_eq!(doing("running\n"), Doing::Running);
        assert_eq!(doing("-1 0x7ffd0000 0x401000"), Doing::Other, "in a page fault");
        assert_eq!(doing(&format!("202 0x7f10 0x80 0x2 {tail}")), Doing::Other, "private");
        assert_eq!(doing(&format!("202 0x7f10 0x1 0x2 {tail}")), Doing::Other, "a wake");
        assert_eq!(doing(&format!("202 0x7f10 0x6 0x0 {tail}")), Doing::OutOfReach);
        assert_eq!(doing(&format!("0 0x3 0x7f10 0x10 {tail}")), Doing::Other, "read");
        assert_eq!(doing(""), Doing::Other);
        assert_eq!(doing("202 0x7f10 zero"), Doing::Other);
    }

    #[test]
    fn a_robust_mutex_shows_in_its_word() {
        let is_robust = |value| Word { address: 0x1000, value }.is_robust();
        assert!(is_robust(FUTEX_WAITERS | 4711));
        assert!(!is_robust(2) && !is_robust(4711) && !is_robust(FUTEX_WAITERS));
        assert!(!is_robust(u32::MAX - 0x3fff_ffff), "the owner has died: who waits looks again");
    }

    #[test]
    fn an_array_of_words_gives_the_shared_ones() {
        let mut array = Vec::new();
        for (value, address, flags) in [(7u64, 0x1000u64, 2u32), (8, 0x2000, 2 | 128)] {
            array.extend(value.to_ne_bytes());
            array.extend(address.to_ne_bytes());
            array.extend(flags.to_ne_bytes());
            array.extend([0; 4]);
        }
        let words: Vec<_> = words_of(&array).collect();
        assert_eq!(words, vec![Word { address: 0x1000, value: 7 }]);
    }
}
