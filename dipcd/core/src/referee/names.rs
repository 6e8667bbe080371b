//! The referee's tables: objects, keys, open claims, and who waits for a key. Who may be believed
//! is decided before anything gets here.
//!
//! A key is free, or claimed by one node, or the name of one object. Whoever asks for a claimed key
//! waits, and the queue moves when the claim ends: in order of arrival, whoever only wanted to find
//! is told `Absent`, up to the first who would create, who holds the key from then on.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use dipc_wire::client::Row;
use dipc_wire::ids::{ClaimNo, Epoch, Key, Kind, NodeId, ObjectId, Req};
use dipc_wire::limits::{ID_BLOCK, ROWS_MAX};
use dipc_wire::peer::{Claimed, Intent, Located, PeerFrame, Reported};

use super::record::{Record, id_of};

/// How many may wait for one key; more are refused as if no number were left.
pub const WAITERS_MAX: usize = 16_384;

/// How many claims may be open, and how many may wait for claimed keys, in all.
pub const CLAIMS_MAX: usize = 262_144;

/// Keys of different kinds are different.
type Name = (Kind, Key);

/// Frames to be sent, in order.
pub(super) type Posts = Vec<(NodeId, PeerFrame)>;

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Names {
    objects: BTreeMap<ObjectId, Located>,
    /// `IPC_PRIVATE` is never here.
    keys: BTreeMap<Name, Holder>,
    claims: BTreeMap<ClaimNo, Claim>,
    next_claim: ClaimNo,
    /// Numbers of the block that may be given out: the next one, and the end.
    numbers: std::ops::Range<u64>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Holder {
    Object(ObjectId),
    Claimed { claim: ClaimNo, waiting: VecDeque<Waiter> },
}

/// Leave to make one object, until it is made, abandoned, too old, or its node another one.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Claim {
    /// Who is to make it.
    node: NodeId,
    /// Who asked for the leave: that node itself, or another.
    asker: NodeId,
    name: Name,
    id: ObjectId,
    granted_ms: u64,
}

/// Somebody who asked for a claimed key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Waiter {
    pub node: NodeId,
    pub req: Req,
    pub intent: Intent,
    /// Who would make the object.
    pub maker: NodeId,
}

impl Claim {
    /// Whether it ends with this node.
    fn concerns(&self, node: NodeId) -> bool {
        self.node == node || self.asker == node
    }
}

/// What granting a claim takes: the time, and the record of numbers.
pub(super) struct Grants<'a> {
    pub now_ms: u64,
    pub record: &'a mut Record,
    /// What is to be sent, in order.
    pub posts: &'a mut Posts,
}

impl Grants<'_> {
    pub fn post(&mut self, to: NodeId, frame: PeerFrame) {
        self.posts.push((to, frame));
    }

    fn answer(&mut self, to: Waiter, outcome: Claimed) {
        self.post(to.node, PeerFrame::Claimed { req: to.req, outcome });
    }
}

impl Names {
    /// No names. A claim of an earlier reign must not be taken for one of this.
    pub fn new(epoch: Epoch) -> Names {
        Names {
            objects: BTreeMap::new(),
            keys: BTreeMap::new(),
            claims: BTreeMap::new(),
            next_claim: ClaimNo(epoch.0 << 32),
            numbers: 0..0,
        }
    }

    pub fn claim(&mut self, name: Name, asker: Waiter, grants: &mut Grants<'_>) {
        if name.1 == Key::PRIVATE {
            self.grant(name, asker, grants);
            return;
        }
        let is_claimed = matches!(self.keys.get(&name), Some(Holder::Claimed { .. }));
        let is_crowded = is_claimed && self.waiting() >= CLAIMS_MAX;
        match self.keys.get_mut(&name) {
            Some(&mut Holder::Object(id)) => {
                let home = self.objects[&id].home;
                grants.answer(asker, Claimed::Found { id, home });
            }
            Some(Holder::Claimed { waiting, .. }) => {
                if waiting.len() < WAITERS_MAX && !is_crowded {
                    waiting.push_back(asker);
                } else {
                    grants.answer(asker, Claimed::Full);
                }
            }
            None => self.pass_on(name, VecDeque::from([asker]), grants),
        }
    }

    /// Gives the leave to make an object, if there is a number for it.
    fn grant(&mut self, name: Name, to: Waiter, grants: &mut Grants<'_>) -> Option<ClaimNo> {
        let room = self.claims.len() < CLAIMS_MAX;
        let Some(id) = room.then(|| self.take_id(grants.record)).flatten() else {
            grants.answer(to, Claimed::Full);
            return None;
        };
        let claim = self.next_claim;
        self.next_claim = ClaimNo(claim.0 + 1);
        let granted_ms = grants.now_ms;
        let (node, asker) = (to.maker, to.node);
        self.claims.insert(claim, Claim { node, asker, name, id, granted_ms });
        grants.answer(to, Claimed::Granted { claim, id });
        Some(claim)
    }

    fn take_id(&mut self, record: &mut Record) -> Option<ObjectId> {
        if self.numbers.is_empty() {
            let first = record.take_block(&self.objects)?;
            self.numbers = first..first + u64::from(ID_BLOCK);
        }
        self.numbers.next().map(id_of)
    }

    /// A key that nobody holds goes through its queue.
    fn pass_on(&mut self, name: Name, mut waiting: VecDeque<Waiter>, grants: &mut Grants<'_>) {
        self.keys.remove(&name);
        while let Some(waiter) = waiting.pop_front() {
            match waiter.intent {
                Intent::Find => grants.answer(waiter, Claimed::Absent),
                Intent::Create => {
                    if let Some(claim) = self.grant(name, waiter, grants) {
                        self.keys.insert(name, Holder::Claimed { claim, waiting });
                        return;
                    }
                }
            }
        }
    }

    /// The object of a claim is made: it counts from now on, unless the claim does not. Its home
    /// hears of it before those who wait, and will soon ask there.
    pub fn made(
        &mut self,
        from: NodeId,
        claim: ClaimNo,
        object: Reported,
        grants: &mut Grants<'_>,
    ) {
        let (id, located) = (object.id, located(object, from));
        let granted = self.claims.get(&claim).is_some_and(|granted| {
            granted.node == from && granted.id == id && granted.name == (object.kind, object.key)
        });
        match self.objects.get(&id) {
            Some(known) if *known == located => grants.post(from, PeerFrame::Confirmed { id }),
            None if granted => {
                self.claims.remove(&claim);
                grants.post(from, PeerFrame::Confirmed { id });
                self.insert(id, located, grants);
            }
            _ => grants.post(from, PeerFrame::Denied { id }),
        }
    }

    /// An object counts, and whoever waits for its key has found it.
    fn insert(&mut self, id: ObjectId, located: Located, grants: &mut Grants<'_>) {
        self.objects.insert(id, located);
        if located.key == Key::PRIVATE {
            return;
        }
        let holder = self.keys.insert((located.kind, located.key), Holder::Object(id));
        if let Some(Holder::Claimed { claim, waiting }) = holder {
            self.claims.remove(&claim);
            for waiter in waiting {
                grants.answer(waiter, Claimed::Found { id, home: located.home });
            }
        }
    }

    /// The claim will not be used.
    pub fn abandon(&mut self, from: NodeId, claim: ClaimNo, grants: &mut Grants<'_>) {
        self.end_claims(|no, held| *no == claim && held.concerns(from), grants);
    }

    /// Claims older than `timeout_ms` are given up.
    pub fn expire(&mut self, timeout_ms: u64, grants: &mut Grants<'_>) {
        let now_ms = grants.now_ms;
        let is_old = |claim: &Claim| now_ms.saturating_sub(claim.granted_ms) >= timeout_ms;
        self.end_claims(|_, claim| is_old(claim), grants);
    }

    /// All claims of a node that is another now.
    pub fn end_claims_of(&mut self, node: NodeId, grants: &mut Grants<'_>) {
        self.end_claims(|_, claim| claim.concerns(node), grants);
    }

    fn end_claims(&mut self, ends: impl Fn(&ClaimNo, &Claim) -> bool, grants: &mut Grants<'_>) {
        let ended = self.claims.iter().filter(|(no, claim)| ends(no, claim));
        let ended: Vec<_> = ended.map(|(no, claim)| (*no, claim.name)).collect();
        for (no, name) in ended {
            self.claims.remove(&no);
            if let Some(Holder::Claimed { claim, waiting }) = self.keys.get_mut(&name)
                && *claim == no
            {
                let waiting = std::mem::take(waiting);
                self.pass_on(name, waiting, grants);
            }
        }
    }

    /// The object is gone; only its home may say so.
    pub fn removed(&mut self, from: NodeId, id: ObjectId) {
        if self.objects.get(&id).is_some_and(|located| located.home == from) {
            self.remove(id);
        }
    }

    /// The object goes on without its key; only its home may say so.
    pub fn unnamed(&mut self, from: NodeId, id: ObjectId) {
        if let Some(located) = self.objects.get_mut(&id)
            && located.home == from
            && located.key != Key::PRIVATE
        {
            self.keys.remove(&(located.kind, located.key));
            located.key = Key::PRIVATE;
        }
    }

    fn remove(&mut self, id: ObjectId) {
        if let Some(Located { kind, key, .. }) = self.objects.remove(&id)
            && key != Key::PRIVATE
        {
            self.keys.remove(&(kind, key));
        }
    }

    /// What a node has said on a new link: the objects it is home to, and before that the claims
    /// whose object it has made (`made`). Nothing else of it counts any more. An object that cannot
    /// be beside what is known already is denied: its home destroys it.
    pub fn reconcile(
        &mut self,
        node: NodeId,
        reported: &[Reported],
        made: &[(ClaimNo, ObjectId)],
        grants: &mut Grants<'_>,
    ) {
        let said = reported.iter().map(|object| object.id);
        let said: BTreeSet<_> = said.chain(made.iter().map(|(_, id)| *id)).collect();
        let of_node = self.objects.iter().filter(|(_, located)| located.home == node);
        let gone = of_node.map(|(id, _)| *id).filter(|id| !said.contains(id));
        for id in gone.collect::<Vec<_>>() {
            self.remove(id);
        }
        self.end_claims(
            |no, claim| claim.concerns(node) && !made.iter().any(|(made, _)| made == no),
            grants,
        );
        // Keys first, which may be others' names by now.
        for object in reported.iter().filter(|object| object.key == Key::PRIVATE) {
            self.unnamed(node, object.id);
        }
        for object in reported {
            self.believe(node, *object, grants);
        }
    }

    fn believe(&mut self, node: NodeId, object: Reported, grants: &mut Grants<'_>) {
        let located = located(object, node);
        let name = (object.kind, object.key);
        let by_id = self.objects.get(&object.id);
        let by_key = match self.keys.get(&name) {
            Some(Holder::Object(id)) => Some(*id),
            Some(Holder::Claimed { .. }) | None => None,
        };
        if by_id.is_some_and(|known| *known != located)
            || by_key.is_some_and(|known| known != object.id)
        {
            grants.post(node, PeerFrame::Denied { id: object.id });
        } else if by_id.is_none() {
            self.insert(object.id, located, grants);
        }
    }

    /// Forgets a node that is lost or retired: its keys are free, and who waits for leave that it
    /// make something is told that it cannot.
    pub fn drop_node(&mut self, node: NodeId, grants: &mut Grants<'_>) {
        self.drop_waiters(node);
        for holder in self.keys.values_mut() {
            if let Holder::Claimed { waiting, .. } = holder {
                waiting.iter().filter(|waiter| waiter.maker == node).for_each(|waiter| {
                    grants.answer(*waiter, Claimed::Void);
                });
                waiting.retain(|waiter| waiter.maker != node);
            }
        }
        self.reconcile(node, &[], &[], grants);
    }

    /// A node asks again on its next link; until then it does not wait here.
    pub fn drop_waiters(&mut self, node: NodeId) {
        for holder in self.keys.values_mut() {
            if let Holder::Claimed { waiting, .. } = holder {
                waiting.retain(|waiter| waiter.node != node);
            }
        }
    }

    pub fn resolve(&self, id: ObjectId) -> Option<Located> {
        self.objects.get(&id).copied()
    }

    pub fn list(&self, kind: Kind, after: Option<ObjectId>) -> Vec<Row> {
        let first = after.map_or(std::ops::Bound::Unbounded, std::ops::Bound::Excluded);
        let objects = self.objects.range((first, std::ops::Bound::Unbounded));
        let rows = objects.filter(|(_, located)| located.kind == kind);
        let row = |(id, located): (&ObjectId, &Located)| Row {
            id: *id,
            key: located.key,
            home: located.home,
        };
        rows.map(row).take(ROWS_MAX).collect()
    }

    /// How many wait for a key.
    pub fn waiting(&self) -> usize {
        let waiting = |claim: &Claim| match self.keys.get(&claim.name) {
            Some(Holder::Claimed { waiting, .. }) => waiting.len(),
            Some(Holder::Object(_)) | None => 0,
        };
        self.claims.values().map(waiting).sum()
    }
}

fn located(object: Reported, home: NodeId) -> Located {
    Located { kind: object.kind, key: object.key, home }
}
