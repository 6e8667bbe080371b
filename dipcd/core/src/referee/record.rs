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
        let lost = self.members.iter().any(|member| member.standing == Standing::Lost);
        let blocks = u64::from(ID_NUMBERS / ID_BLOCK);
        let firsts = (0..blocks).map(|block| self.ids_taken + block * u64::from(ID_BLOCK));
        let mut allowed = firsts.take_while(|first| !lost || *first < u64::from(ID_NUMBERS));
        let last = |first| first + u64::from(ID_BLOCK) - 1;
        let first = allowed
            .find(|&first| objects.range(id_of(first)..=id_of(last(first))).next().is_none())?;
        self.ids_taken = last(first) + 1;
        Some(first)
    }
}

/// The id made from the number that was taken as the `count`th.
pub(super) fn id_of(count: u64) -> ObjectId {
    let number = u32::try_from(count % u64::from(ID_NUMBERS)).expect("below a u32");
    ObjectId::from_number(number)
}

#[cfg(test)]
mod tests {
    use super::*;
    use dipc_wire::ids::{Key, Kind};
    use std::net::Ipv4Addr;

    fn object_in_block(block: u32) -> BTreeMap<ObjectId, Located> {
        let home = NodeId::new(1).expect("a node's number");
        let id = ObjectId::from_number(block * ID_BLOCK + 7);
        BTreeMap::from([(id, Located { kind: Kind::Queue, key: Key(40), home })])
    }

    fn address(port: u16) -> SocketAddr {
        SocketAddr::from((Ipv4Addr::LOCALHOST, port))
    }

    #[test]
    fn numbers_begin_again_beside_living_objects() {
        let all = u64::from(ID_NUMBERS);
        let mut record = Record { ids_taken: all, ..Record::default() };
        assert_eq!(record.take_block(&object_in_block(0)), Some(all + u64::from(ID_BLOCK)));
        assert_eq!(id_of(all), ObjectId::from_number(0));
    }

    #[test]
    fn numbers_do_not_begin_again_while_a_node_is_lost() {
        let mut record = Record { ids_taken: u64::from(ID_NUMBERS), ..Record::default() };
        let node = record.add(address(1), Standing::Lost).expect("a number is free");
        assert_eq!(record.take_block(&BTreeMap::new()), None);
        record.set_standing(node, Standing::Member);
        assert!(record.take_block(&BTreeMap::new()).is_some());
    }

    #[test]
    fn no_block_is_left_when_each_has_an_object() {
        let blocks = ID_NUMBERS / ID_BLOCK;
        let objects = (0..blocks).flat_map(object_in_block).collect();
        assert_eq!(Record::default().take_block(&objects), None);
    }

    #[test]
    fn nodes_get_the_lowest_free_number_until_there_is_none() {
        let mut record = Record::default();
        for port in 1..=u16::from(NODES_MAX) {
            let node = record.add(address(port), Standing::Member).expect("a number is free");
            assert_eq!(u16::from(node.number()), port);
        }
        assert_eq!(record.add(address(100), Standing::Member), None);
        record.members.retain(|member| member.node.number() != 5);
        let node = record.add(address(101), Standing::Member).expect("one is free again");
        assert_eq!(node.number(), 5);
        assert!(record.members.is_sorted_by_key(|member| member.node));
    }

    #[test]
    fn a_reign_begins_with_numbers_of_its_own() {
        let mut record = Record { ids_taken: 5, epoch: Epoch(8), ..Record::default() };
        record.begin_reign();
        assert_eq!((record.epoch, record.ids_taken), (Epoch(9), u64::from(ID_BLOCK)));
    }
}
