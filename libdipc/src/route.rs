//! Where a call goes, by the id it names. The table is what makes the home path as fast as the
//! kernel: one load of static memory, no lock, nothing allocated, good in signal handlers and after
//! fork.
#![forbid(unsafe_code)]

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use dipc_wire::client::{Answer, Call, Place};
use dipc_wire::ids::{KernelId, Kind, NodeId, ObjectId};
use dipc_wire::sysv::SysvError;

use crate::boundary;
use crate::client::{self, NoAnswer};

/// Where one call goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    /// To libc, with this id.
    Kernel(i32),
    /// To the stand-in at home.
    Remote(ObjectId, NodeId),
    /// Nowhere.
    Refused(SysvError),
}

/// A place that the table remembers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Known {
    /// In this kernel.
    Here(KernelId),
    /// At another home.
    There(NodeId),
}

const PLACES: usize = 1 << 14;

/// Direct-mapped: objects are numbered one after the other, so few meet in one place. One that was
/// pushed out is asked for again.
static TABLE: [AtomicU64; PLACES] = [const { AtomicU64::new(0) }; PLACES];

/// Set once a thread of this process has changed its IPC namespace: what is here for one thread is
/// not for another, so nothing is believed to be here without asking.
static ROAMING: AtomicBool = AtomicBool::new(false);

/// One place of the table: from the lowest bit the kernel's id or the node (31 bits), which of the
/// two (1), the kind and that there is something (2), the object's number (25).
fn pack(kind: Kind, id: ObjectId, known: Known) -> u64 {
    let (there, value) = match known {
        Known::Here(KernelId(id)) => (0, u64::from(id as u32 & 0x7fff_ffff)),
        Known::There(node) => (1, u64::from(node.number())),
    };
    value | there << 31 | tag(kind, id)
}

fn tag(kind: Kind, id: ObjectId) -> u64 {
    (kind as u64 + 1) << 32 | u64::from(id.number()) << 34
}

fn unpack(packed: u64) -> Known {
    let value = (packed & 0x7fff_ffff) as u32;
    match packed >> 31 & 1 {
        0 => Known::Here(KernelId(value as i32)),
        _ => Known::There(NodeId::new(value as u8).unwrap_or(NodeId::NONE)),
    }
}

fn place(id: ObjectId) -> &'static AtomicU64 {
    &TABLE[id.number() as usize % PLACES]
}

/// Remembers where an object is.
pub fn learn(kind: Kind, id: ObjectId, known: Known) {
    if matches!(known, Known::Here(_)) && ROAMING.load(Ordering::Relaxed) {
        return;
    }
    place(id).store(pack(kind, id, known), Ordering::Relaxed);
}

/// Forgets an object that is gone.
pub fn forget(kind: Kind, id: ObjectId) {
    let place = place(id);
    let packed = place.load(Ordering::Relaxed);
    if recall(kind, id).is_some() {
        let _ = place.compare_exchange(packed, 0, Ordering::Relaxed, Ordering::Relaxed);
    }
}

#[inline]
fn recall(kind: Kind, id: ObjectId) -> Option<Known> {
    let packed = place(id).load(Ordering::Relaxed);
    (packed >> 32 == tag(kind, id) >> 32).then(|| unpack(packed))
}

/// A thread of this process is in another IPC namespace now.
pub fn roam() {
    ROAMING.store(true, Ordering::Relaxed);
    for place in &TABLE {
        if place.load(Ordering::Relaxed) != 0 {
            place.store(0, Ordering::Relaxed);
        }
    }
}

/// Where a call about `id` goes. Asks dipcd about a distributed id that this process did not get
/// from us.
#[inline]
pub fn find(kind: Kind, id: i32) -> Route {
    let Some(object) = ObjectId::from_raw(id) else { return Route::Kernel(id) };
    match recall(kind, object) {
        Some(Known::Here(KernelId(id))) => Route::Kernel(id),
        Some(Known::There(home)) => Route::Remote(object, home),
        None => ask(kind, object),
    }
}

#[cold]
fn ask(kind: Kind, id: ObjectId) -> Route {
    match boundary::attempt(|_| resolve(kind, id)) {
        Ok(Known::Here(KernelId(id))) => Route::Kernel(id),
        Ok(Known::There(home)) => Route::Remote(id, home),
        Err(SysvError::EINVAL) => Route::Kernel(id.raw()), // nobody's, so the kernel's
        Err(error) => Route::Refused(error),
    }
}

/// Where an object is, from the table or from dipcd.
pub fn resolve(kind: Kind, id: ObjectId) -> Result<Known, SysvError> {
    if let Some(known) = recall(kind, id) {
        return Ok(known);
    }
    match client::call(Call::Resolve { kind, id }) {
        Ok((Answer::Object { place, .. }, _)) => {
            let known = Known::from(place);
            learn(kind, id, known);
            Ok(known)
        }
        Ok(_) => Err(SysvError::EIO),
        Err(NoAnswer::Absent) => Err(SysvError::EINVAL),
        Err(reason) => Err(reason.into()),
    }
}

impl From<Place> for Known {
    fn from(place: Place) -> Known {
        match place {
            Place::Here { kernel } => Known::Here(kernel),
            Place::There { home } => Known::There(home),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dipc_wire::limits::ID_NUMBERS;

    #[test]
    fn what_is_learned_is_found_until_forgotten() {
        let home = NodeId::new(64).expect("a node");
        let cases = [
            (Kind::Queue, 1, Known::Here(KernelId(0))),
            (Kind::Set, 2, Known::Here(KernelId(i32::MAX))),
            (Kind::Segment, ID_NUMBERS - 1, Known::There(home)),
        ];
        for (kind, number, known) in cases {
            let id = ObjectId::from_number(number);
            learn(kind, id, known);
            assert_eq!(recall(kind, id), Some(known));
            let other = if kind == Kind::Queue { Kind::Set } else { Kind::Queue };
            assert_eq!(recall(other, id), None, "another kind's id");
            forget(other, id);
            assert_eq!(recall(kind, id), Some(known));
            forget(kind, id);
            assert_eq!(recall(kind, id), None);
        }
    }

    #[test]
    fn two_objects_in_one_place_are_not_taken_for_each_other() {
        let (first, second) = (ObjectId::from_number(7), ObjectId::from_number(7 + PLACES as u32));
        learn(Kind::Set, first, Known::Here(KernelId(1)));
        learn(Kind::Set, second, Known::Here(KernelId(2)));
        assert_eq!(recall(Kind::Set, first), None);
        assert_eq!(find(Kind::Set, second.raw()), Route::Kernel(2));
        assert_eq!(find(Kind::Set, 2), Route::Kernel(2), "the kernel's ids pass through");
    }
}
