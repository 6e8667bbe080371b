//! Where things lie: the words of the segment and the numbers of the semaphores. Pure arithmetic.
//!
//! ```text
//! segment:  header | server 0 .. 15 | page | mailbox 0 | mailbox 1 | ...
//! mailbox:  state word, half 0, half 1, up to whole pages
//! set:      mark, closed, server 0 .. 15, then two for each mailbox: gate, room
//! ```
//!
//! A mailbox has two halves; its state word says which one holds the content, and how much of it.
//! A write fills the other half and then changes the word, so that a writer killed in the middle
//! leaves the old content. Invariant: no offset computed here reaches into another mailbox.
#![forbid(unsafe_code)]

use std::net::{IpAddr, Ipv6Addr};

/// Mailboxes of one server.
pub const MAILBOXES_MAX: u32 = 4096;
/// Kilobytes of one mailbox, and of one packet.
pub const KBYTES_MAX: u32 = 65_536;
/// Servers that may share the same mailboxes: one a node, and some for several on one node.
pub const SERVERS_MAX: u16 = 80;

/// First word of a segment that is ready: "DIPCmbx1".
pub const MAGIC: u64 = u64::from_be_bytes(*b"DIPCmbx1");
/// Value of the first semaphore of a set that is ready: the key's first half, "di".
pub const MARK: u16 = 0x6469;

/// The words of the header, each at eight times its number.
pub mod word {
    /// [`super::MAGIC`], stored last.
    pub const MAGIC: usize = 0;
    /// How many mailboxes.
    pub const MAILBOXES: usize = 8;
    /// Bytes of each.
    pub const MAILBOX_BYTES: usize = 16;
    /// User id of the server that made the segment.
    pub const OWNER_UID: usize = 24;
}

/// The semaphores before those of the mailboxes.
pub mod semaphore {
    /// Holds [`super::MARK`] in a set that is ready.
    pub const MARK: u16 = 0;
    /// 1 when the set is about to be removed and nobody may join.
    pub const CLOSED: u16 = 1;
    /// The first server's: 1 while it lives, put back by the kernel when it does not.
    pub const SERVERS: u16 = 2;
}

/// Permits of one mailbox's room: a reader takes one, a writer all of them.
pub const ROOM: i16 = 30_000;

const SERVERS_AT: usize = 64;
const SERVER_BYTES: usize = 64;
const PAGE_BYTES: usize = 4096;
/// Bytes before the first mailbox; also the least a segment of ours can have.
pub const HEADER_BYTES: usize =
    (SERVERS_AT + SERVERS_MAX as usize * SERVER_BYTES).next_multiple_of(PAGE_BYTES);
const STATE_BYTES: usize = 64;

const _: () = assert!(semaphores(MAILBOXES_MAX) <= 32_000); // SEMMSL, semget(2)
const _: () = assert!(SERVERS_MAX as usize + 2 <= 500); // SEMOPM: leaving is one operation

/// The key of a port's segment and set.
pub const fn key(port: u16) -> i32 {
    0x6469_0000 + port as i32
}

const fn semaphores(mailboxes: u32) -> u32 {
    semaphore::SERVERS as u32 + SERVERS_MAX as u32 + 2 * mailboxes
}

/// How many mailboxes, and how large. Made from the command line, or from a checked header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    mailboxes: u32,
    mailbox_bytes: usize,
}

/// One mailbox of a server, counted from 0; made only by [`Geometry::mailbox`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mailbox(u32);

impl Mailbox {
    /// The semaphores of its lock: (gate, room).
    pub fn semaphores(self) -> (u16, u16) {
        let gate = semaphore::SERVERS + SERVERS_MAX + 2 * self.0 as u16;
        (gate, gate + 1)
    }
}

impl Geometry {
    /// Within the bounds, or nothing.
    pub fn new(mailboxes: u64, mailbox_bytes: u64) -> Option<Self> {
        let mailboxes = u32::try_from(mailboxes).ok()?;
        let within = (1..=MAILBOXES_MAX).contains(&mailboxes)
            && (1024..=u64::from(KBYTES_MAX) * 1024).contains(&mailbox_bytes)
            && mailbox_bytes.is_multiple_of(1024);
        within.then_some(Self { mailboxes, mailbox_bytes: mailbox_bytes as usize })
    }

    /// How many mailboxes.
    pub fn mailboxes(self) -> u32 {
        self.mailboxes
    }

    /// Bytes each of them holds at most.
    pub fn mailbox_bytes(self) -> usize {
        self.mailbox_bytes
    }

    /// The mailbox a client calls `number`, if there is one.
    pub fn mailbox(self, number: u64) -> Option<Mailbox> {
        let index = number.checked_sub(1)?;
        (index < u64::from(self.mailboxes)).then_some(Mailbox(index as u32))
    }

    /// Bytes of the whole segment.
    pub fn segment_bytes(self) -> usize {
        HEADER_BYTES + self.mailboxes as usize * self.stride()
    }

    /// Semaphores of the whole set.
    pub fn semaphores(self) -> usize {
        semaphores(self.mailboxes) as usize
    }

    /// What the semaphores are when nobody holds anything.
    pub fn semaphores_at_rest(self) -> Vec<u16> {
        let mut values = vec![0; self.semaphores()];
        values[usize::from(semaphore::MARK)] = MARK;
        for index in 0..self.mailboxes {
            let (_, room) = Mailbox(index).semaphores();
            values[usize::from(room)] = ROOM as u16;
        }
        values
    }

    /// Where the state word of a mailbox lies.
    pub fn state_at(self, mailbox: Mailbox) -> usize {
        HEADER_BYTES + mailbox.0 as usize * self.stride()
    }

    /// Where one half of a mailbox begins.
    pub fn half_at(self, mailbox: Mailbox, half: Half) -> usize {
        let first = self.state_at(mailbox) + STATE_BYTES;
        match half {
            Half::First => first,
            Half::Second => first + self.mailbox_bytes,
        }
    }

    fn stride(self) -> usize {
        (STATE_BYTES + 2 * self.mailbox_bytes).next_multiple_of(PAGE_BYTES)
    }
}

/// Which half of a mailbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Half {
    /// The one that holds the content of a new mailbox: nothing.
    First,
    /// The other.
    Second,
}

impl Half {
    /// The half a writer fills.
    pub fn other(self) -> Self {
        match self {
            Self::First => Self::Second,
            Self::Second => Self::First,
        }
    }
}

/// What the state word of a mailbox says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct State {
    /// The half with the content.
    pub half: Half,
    /// Bytes of content in it.
    pub length: usize,
}

impl State {
    const SECOND: u64 = 1 << 63;

    /// As it is stored.
    pub fn to_word(self) -> u64 {
        let half = match self.half {
            Half::First => 0,
            Half::Second => Self::SECOND,
        };
        half | self.length as u64
    }

    /// As it was read. A length that no mailbox of this geometry can have is refused, whoever wrote
    /// it: it would show a client what lies behind.
    pub fn from_word(word: u64, geometry: Geometry) -> Option<Self> {
        let half = if word & Self::SECOND == 0 { Half::First } else { Half::Second };
        let length = usize::try_from(word & !Self::SECOND).ok()?;
        (length <= geometry.mailbox_bytes).then_some(Self { half, length })
    }
}

/// The place of one server in the header and in the set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot(u16);

impl Slot {
    /// All of them.
    pub fn all() -> impl Iterator<Item = Self> {
        (0..SERVERS_MAX).map(Self)
    }

    /// Its semaphore: 1 while the server lives.
    pub fn semaphore(self) -> u16 {
        semaphore::SERVERS + self.0
    }

    /// Where the words of its record lie.
    pub fn words(self) -> impl Iterator<Item = usize> {
        let first = SERVERS_AT + usize::from(self.0) * SERVER_BYTES;
        (0..ServerRecord::WORDS).map(move |word| first + 8 * word)
    }
}

/// Who serves: what `dipcrm` needs to find the process and to be sure that it is the right one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServerRecord {
    /// See [`crate::process::Process`].
    pub process: crate::process::Process,
    /// The address it listens on.
    pub address: IpAddr,
}

impl ServerRecord {
    /// Words of a record.
    pub const WORDS: usize = 5;

    /// As it is stored.
    pub fn to_words(self) -> [u64; Self::WORDS] {
        let address = match self.address {
            IpAddr::V4(address) => address.to_ipv6_mapped(),
            IpAddr::V6(address) => address,
        };
        let bits = address.to_bits();
        let process = self.process;
        [process.machine, u64::from(process.pid), process.started, (bits >> 64) as u64, bits as u64]
    }

    /// As it was read.
    pub fn from_words(words: [u64; Self::WORDS]) -> Option<Self> {
        let [machine, pid, started, high, low] = words;
        let pid = u32::try_from(pid).ok().filter(|&pid| pid != 0)?;
        let bits = u128::from(high) << 64 | u128::from(low);
        let address = IpAddr::V6(Ipv6Addr::from_bits(bits)).to_canonical();
        Some(Self { process: crate::process::Process { machine, pid, started }, address })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn geometry(mailboxes: u64, kbytes: u64) -> Geometry {
        Geometry::new(mailboxes, kbytes * 1024).expect("within the bounds")
    }

    #[test]
    fn mailboxes_do_not_overlap() {
        for kbytes in [1, 3, 4, 64] {
            let geometry = geometry(5, kbytes);
            let mut end = HEADER_BYTES;
            for number in 1..=5 {
                let mailbox = geometry.mailbox(number).unwrap();
                assert!(geometry.state_at(mailbox) >= end);
                let first = geometry.half_at(mailbox, Half::First);
                let second = geometry.half_at(mailbox, Half::Second);
                assert!(first >= geometry.state_at(mailbox) + 8);
                assert!(second >= first + geometry.mailbox_bytes());
                end = second + geometry.mailbox_bytes();
            }
            assert!(end <= geometry.segment_bytes());
        }
    }

    #[test]
    fn numbers_begin_at_one() {
        let geometry = geometry(8, 1);
        assert_eq!(geometry.mailbox(0), None);
        assert_eq!(geometry.mailbox(9), None);
        assert_eq!(geometry.mailbox(u64::MAX), None);
        assert!(geometry.mailbox(1).is_some() && geometry.mailbox(8).is_some());
    }

    #[test]
    fn semaphores_of_the_last_mailbox_are_in_the_set() {
        let geometry = geometry(4096, 1);
        let (gate, room) = geometry.mailbox(4096).unwrap().semaphores();
        assert_eq!(usize::from(room) + 1, geometry.semaphores());
        assert_eq!(geometry.semaphores_at_rest()[usize::from(gate)], 0);
        assert_eq!(geometry.semaphores_at_rest()[usize::from(room)], ROOM as u16);
    }

    #[test]
    fn a_state_too_long_is_refused() {
        let geometry = geometry(1, 1);
        for (half, length) in [(Half::First, 0), (Half::Second, 1024)] {
            let state = State { half, length };
            assert_eq!(State::from_word(state.to_word(), geometry), Some(state));
        }
        assert_eq!(State::from_word(1025, geometry), None);
        assert_eq!(State::from_word(u64::MAX, geometry), None);
    }

    #[test]
    fn a_record_comes_back() {
        let process = crate::process::Process { machine: 7, pid: 42, started: 1 << 40 };
        for address in ["127.0.0.2", "::1", "2001:db8::5"] {
            let record = ServerRecord { process, address: address.parse().unwrap() };
            assert_eq!(ServerRecord::from_words(record.to_words()), Some(record));
        }
        assert_eq!(ServerRecord::from_words([0; 5]), None);
    }
}
