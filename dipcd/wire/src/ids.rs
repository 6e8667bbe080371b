//! Every number that crosses a boundary has a type of its own; its doc says who creates it and
//! when it dies.

use serde::{Deserialize, Serialize};
use std::fmt;

use crate::limits::{ID_INDEX_FIRST, ID_INDEX_LAST, ID_NUMBERS, NODES_MAX};

/// What a program passes to `*get`. Chosen by programs; never dies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Key(pub i32);

impl Key {
    /// `IPC_PRIVATE`: an object without a name.
    pub const PRIVATE: Key = Key(0);
}

/// The three kinds of System V object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Kind {
    /// A message queue.
    Queue,
    /// A semaphore set.
    Set,
    /// A shared memory segment.
    Segment,
}

impl Kind {
    /// All kinds, for loops.
    pub const ALL: [Kind; 3] = [Kind::Queue, Kind::Set, Kind::Segment];

    /// The word for logs and listings.
    pub const fn name(self) -> &'static str {
        match self {
            Kind::Queue => "queue",
            Kind::Set => "set",
            Kind::Segment => "segment",
        }
    }
}

/// A machine running dipcd, 1 to 64. Given by the referee at the first admission and kept in the
/// node's `lib_dir`; freed only by `dipcctl forget`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "u8")]
pub struct NodeId(u8);

impl NodeId {
    /// What a node that was never admitted calls itself in its first Hello.
    pub const NONE: NodeId = NodeId(0);

    /// A number from outside; `None` when no node can have it.
    pub const fn new(number: u8) -> Option<NodeId> {
        if number <= NODES_MAX { Some(NodeId(number)) } else { None }
    }

    /// The number, 0 for [`NodeId::NONE`].
    pub const fn number(self) -> u8 {
        self.0
    }

    /// Whether the referee has given this number to somebody.
    pub const fn is_admitted(self) -> bool {
        self.0 != 0
    }
}

impl TryFrom<u8> for NodeId {
    type Error = &'static str;

    fn try_from(number: u8) -> Result<NodeId, Self::Error> {
        NodeId::new(number).ok_or("a number that no node can have")
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// One life of a dipcd. Grows at each start, kept on disk in `lib_dir`.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct Incarnation(pub u64);

/// One reign of a referee. Grows at each start of the referee and when another node takes over.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct Epoch(pub u64);

/// The cluster-wide id of an object, as `*get` returns it. Made by the referee from a growing
/// number; dies with the object.
///
/// Bit 30 is set and the low 15 bits lie in 0x7d00..=0x7fff, where the kernel's own ids never
/// are while fewer than 21,333 objects of a kind live.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "i32")]
pub struct ObjectId(i32);

impl ObjectId {
    const MARK: i32 = 1 << 30;
    const INDEXES: u32 = (ID_INDEX_LAST - ID_INDEX_FIRST + 1) as u32;

    /// The id with this number; numbers begin again after [`ID_NUMBERS`].
    pub const fn from_number(number: u32) -> ObjectId {
        let number = number % ID_NUMBERS;
        let sequence = (number / Self::INDEXES) as i32;
        let index = (number % Self::INDEXES) as i32 + ID_INDEX_FIRST;
        ObjectId(Self::MARK | (sequence << 15) | index)
    }

    /// Takes an id from a program; `None` for one that can only be the kernel's.
    pub const fn from_raw(raw: i32) -> Option<ObjectId> {
        let index = raw & 0x7fff;
        if raw > 0 && raw & Self::MARK != 0 && index >= ID_INDEX_FIRST && index <= ID_INDEX_LAST {
            Some(ObjectId(raw))
        } else {
            None
        }
    }

    /// What the program sees.
    pub const fn raw(self) -> i32 {
        self.0
    }

    /// The number it was made from, below [`ID_NUMBERS`].
    pub const fn number(self) -> u32 {
        let sequence = ((self.0 & !Self::MARK) >> 15) as u32;
        sequence * Self::INDEXES + ((self.0 & 0x7fff) - ID_INDEX_FIRST) as u32
    }
}

impl TryFrom<i32> for ObjectId {
    type Error = &'static str;

    fn try_from(raw: i32) -> Result<ObjectId, Self::Error> {
        ObjectId::from_raw(raw).ok_or("an id that can only be the kernel's")
    }
}

impl fmt::Display for ObjectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// The id under which home's kernel knows an object. Never leaves the home node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct KernelId(pub i32);

impl KernelId {
    /// What the kernel knows no object by: a segment has none behind it.
    pub const NONE: KernelId = KernelId(-1);
}

/// Leave of the referee to create one object. Given by the referee, growing; dies when the
/// object is confirmed, refused or abandoned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ClaimNo(pub u64);

/// One question on a link. Chosen by the asker, unique within its incarnation; dies with the
/// answer or the link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Req(pub u64);

/// One `*get` call of one program, random: a repeated call after a crash of dipcd is recognised
/// by it, so that `IPC_EXCL` does not refuse a program its own object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Nonce(pub u64);

/// A process that uses libdipc: where it runs, its pid there and its start time (field 22 of
/// /proc/PID/stat, clock ticks since boot), which together no two processes share.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ClientId {
    /// The node it runs on.
    pub node: NodeId,
    /// Its pid on that node.
    pub pid: u32,
    /// Its start time there, in clock ticks.
    pub started: u64,
}

/// One program image of a client: exec begins the next. Counted by the client's dipcd.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Image(pub u32);

/// The place of one session in its client's `done` page. A slot that a thread gave back serves
/// another later, with growing sequence numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Slot(pub u32);

/// One session: what makes the operations of one client thread at one home happen once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct SessionId {
    /// Whose it is.
    pub client: ClientId,
    /// Of which image of that client.
    pub image: Image,
    /// Where its `done` number stands.
    pub slot: Slot,
}

/// The number of one operation in its session; grows by one, 0 is before the first.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct Seq(pub u64);

impl Seq {
    /// The following operation's number.
    #[must_use]
    pub const fn next(self) -> Seq {
        Seq(self.0 + 1)
    }
}

/// Admission of one wire, random; good once, for [`crate::limits::TICKET_LIFE_MS`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct TicketId(pub u64);

/// The pre-shared key of one wire. Not printed.
#[derive(Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Secret(pub [u8; 32]);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_ids_map_one_to_one() {
        for number in [0, 1, 767, 768, 12_345_678, ID_NUMBERS - 1] {
            let id = ObjectId::from_number(number);
            assert_eq!(id.number(), number);
            assert_eq!(ObjectId::from_raw(id.raw()), Some(id));
        }
        assert_eq!(ObjectId::from_number(ID_NUMBERS), ObjectId::from_number(0));
    }

    #[test]
    fn the_kernels_ids_are_not_ours() {
        for raw in [0, -1, 1, 0x7d00, 0x4000_0000, 0x4000_7cff, 0x7fff_003f, i32::MIN] {
            assert_eq!(ObjectId::from_raw(raw), None, "{raw:#x}");
        }
    }
}
