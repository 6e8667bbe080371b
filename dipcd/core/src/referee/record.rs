//! What the referee must not forget: its epoch, who is a member, who was declared lost, and which
//! numbers for ids may be in use. On disk before anything that follows from it is said.
//!
//! Which key belongs to whom is not here: the homes know that, and report it.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::net::SocketAddr;

use dipc_wire::ids::{Epoch, NodeId, ObjectId};
use dipc_wire::limits::{ID_BLOCK, ID_NUMBERS, NODES_MAX};
use dipc_wire::peer::{Located, Member, Standing};
use serde::{Deserialize, Serialize};

const _: () = assert!(ID_NUMBERS.is_multiple_of(ID_BLOCK));

/// The referee's file. The default is that of a referee which has never run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Record {
    /// The last reign that was begun.
    pub epoch: Epoch,
    /// The nodes that have a number, in its order.
    pub members: Vec<Member>,
    /// How many numbers for ids were taken, in blocks; it never shrinks. The number of an id is
    /// this modulo [`ID_NUMBERS`].
    pub ids_taken: u64,
}

impl Record {
    /// The member with this number.
    pub fn member(&self, node: NodeId) -> Option<&Member> {
        self.members.iter().find(|member| member.node == node)
    }

    /// The member that listens there.
    pub fn member_at(&self, address: SocketAddr) -> Option<&Member> {
        self.members.iter().find(|member| member.address == address)
    }

    /// The next epoch, and a block of numbers of its own: the rest of the last one may be in use.
    pub(super) fn begin_reign(&mut self) {
        self.epoch = Epoch(self.epoch.0 + 1);
        self.ids_taken = self.ids_taken.next_multiple_of(u64::from(ID_BLOCK));
    }

    pub(super) fn is_lost(&self, node: NodeId) -> bool {
        self.member(node).is_some_and(|member| member.standing == Standing::Lost)
    }

    pub(super) fn set_standing(&mut self, node: NodeId, standing: Standing) {
        for member in self.members.iter_mut().filter(|member| member.node == node) {
            member.standing = standing;
        }
    }

    /// Writes a new member down under the lowest free number; `None` if there is none.
    pub(super) fn add(&mut self, address: SocketAddr, standing: Standing) -> Option<NodeId> {
        let free = |node: &NodeId| node.is_admitted() && self.member(*node).is_none();
        let node = (1..=NODES_MAX).filter_map(NodeId::new).find(free)?;
        let at = self.members.partition_point(|member| member.node < node);
        self.members.insert(at, Member { node, address, standing });
        Some(node)
    }

    /// Takes the next block of numbers in which no living object is. Numbers are used again only
    /// while nobody is lost, for a lost home may still have objects that are not known here.
    pub(super) fn take_block(&mut self, objects: &BTreeMap<ObjectId, Located>) -> Option<u64> {
        let blocks = u64::from(ID_NUMBERS / ID_BLOCK);
        for _ in 0..blocks {
            let again = self.ids_taken >= u64::from(ID_NUMBERS);
            if again && self.members.iter().any(|member| member.standing == Standing::Lost) {
                return None;
            }
            let first = self.ids_taken;
            self.ids_taken += u64::from(ID_BLOCK);
            let last = id_of(self.ids_taken - 1);
            if objects.range(id_of(first)..=last).next().is_none() {
                return Some(first);
            }
        }
        None
    }
}

/// The id made from the number that was taken as the `count`th.
pub(super) fn id_of(count: u64) -> ObjectId {
    let number = u32::try_from(count % u64::from(ID_NUMBERS)).expect("below a u32");
    ObjectId::from_number(number)
}
