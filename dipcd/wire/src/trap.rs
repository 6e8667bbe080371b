//! dipcd and the helper thread of a program whose pages the mprotect trap serves, over a pair of
//! UNIX sockets (SOCK_SEQPACKET) of which libdipc hands one end to dipcd with
//! [`crate::client::Call::Trap`].
//!
//! ```text
//! dipcd ─ Order ─▶ helper ─ mprotect ─▶ Obeyed ─▶ dipcd        one by one, in order
//! ```
//!
//! The helper lives in somebody else's process, without memory or thread-locals of its own, so
//! both are numbers at fixed places, not serde's. It never asks anything: a thread that touches
//! what is closed does ([`crate::client::Call::Touched`]), also when dipcd believes it open, for
//! the library closes everything by itself around fork and when mappings run out.

use crate::client::Mm;
use crate::memory::Access;

/// Bytes of an order: four numbers of eight bytes, in the machine's order.
pub const ORDER_BYTES: usize = 32;
/// Bytes of its answer: two numbers.
pub const OBEYED_BYTES: usize = 16;

/// dipcd to a helper. Answered by [`Obeyed`] with the same number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Order {
    /// Which order: a restarted dipcd begins where no answer to its predecessor can be.
    pub number: u64,
    /// What to do.
    pub what: What,
}

/// What to do. Of a range only what belongs to attachments is changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// This is your address space's number: before `Call::Trap` is answered.
    Name(Mm),
    /// No access any more. More may be closed than that.
    Close(Pages),
    /// Access for loads, or also for stores; as far as the program itself wants it.
    Open(Access, Pages),
}

/// Whole pages of the program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pages {
    /// Where they begin.
    pub address: u64,
    /// How long they are.
    pub bytes: u64,
}

/// A helper to dipcd.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Obeyed {
    /// From the order.
    pub number: u64,
    /// 0, or the errno of mprotect(2). Nothing is open that was to be closed, in any case.
    pub errno: i32,
}

const NAME: u64 = 1;
const CLOSE: u64 = 2;
const OPEN_TO_READ: u64 = 3;
const OPEN_TO_WRITE: u64 = 4;

impl Order {
    /// As it travels.
    pub fn to_bytes(self) -> [u8; ORDER_BYTES] {
        let Pages { address, bytes } = match self.what {
            What::Name(Mm(mm)) => Pages { address: mm, bytes: 0 },
            What::Close(pages) | What::Open(_, pages) => pages,
        };
        let word = match self.what {
            What::Name(_) => NAME,
            What::Close(_) => CLOSE,
            What::Open(Access::Read, _) => OPEN_TO_READ,
            What::Open(Access::Write, _) => OPEN_TO_WRITE,
        };
        put([self.number, word, address, bytes])
    }

    /// `None` for what a newer dipcd means.
    pub fn from_bytes(packet: &[u8; ORDER_BYTES]) -> Option<Order> {
        let [number, word, address, bytes] = take(packet);
        let pages = Pages { address, bytes };
        let what = match word {
            NAME => What::Name(Mm(address)),
            CLOSE => What::Close(pages),
            OPEN_TO_READ => What::Open(Access::Read, pages),
            OPEN_TO_WRITE => What::Open(Access::Write, pages),
            _ => return None,
        };
        Some(Order { number, what })
    }
}

impl Obeyed {
    /// As it travels.
    pub fn to_bytes(self) -> [u8; OBEYED_BYTES] {
        put([self.number, self.errno as u64])
    }

    /// From a packet.
    pub fn from_bytes(packet: &[u8; OBEYED_BYTES]) -> Obeyed {
        let [number, errno] = take(packet);
        Obeyed { number, errno: errno as i32 }
    }
}

fn put<const WORDS: usize, const BYTES: usize>(words: [u64; WORDS]) -> [u8; BYTES] {
    let mut packet = [0; BYTES];
    for (place, word) in packet.chunks_exact_mut(8).zip(words) {
        place.copy_from_slice(&word.to_ne_bytes());
    }
    packet
}

fn take<const WORDS: usize>(packet: &[u8]) -> [u64; WORDS] {
    let mut words = [0; WORDS];
    for (word, place) in words.iter_mut().zip(packet.chunks_exact(8)) {
        *word = u64::from_ne_bytes(place.try_into().unwrap_or_default());
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_and_answers_travel_unchanged() {
        let pages = Pages { address: 0x7fff_1234_5000, bytes: 0x2000 };
        let all = [
            What::Name(Mm(u64::MAX)),
            What::Close(pages),
            What::Open(Access::Read, pages),
            What::Open(Access::Write, pages),
        ];
        for (number, what) in (1u64 << 40..).zip(all) {
            let order = Order { number, what };
            assert_eq!(Order::from_bytes(&order.to_bytes()), Some(order));
        }
        for errno in [0, 12] {
            let obeyed = Obeyed { number: 7, errno };
            assert_eq!(Obeyed::from_bytes(&obeyed.to_bytes()), obeyed);
        }
    }

    #[test]
    fn the_places_of_the_numbers_are_fixed() {
        let pages = Pages { address: 5, bytes: 6 };
        let words: [u64; 4] =
            take(&Order { number: 9, what: What::Open(Access::Write, pages) }.to_bytes());
        assert_eq!(words, [9, 4, 5, 6]);
        assert_eq!(Order::from_bytes(&put([9, 5, 0, 0])), None, "an order nobody knows");
    }
}
