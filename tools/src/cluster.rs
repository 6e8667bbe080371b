//! The cluster as it answers now: every node is asked at once what it is doing and what it is home
//! to, and the referee what it knows. A node that does not answer costs the others no time; what
//! the referee knows to live there is shown without its state.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};
use std::thread;

use dipc_wire::client::{Answer, Call, Row};
use dipc_wire::ids::{Key, Kind, NodeId, ObjectId};
use dipc_wire::limits::{ID_NUMBERS, ROWS_MAX, SURVEY_ATTACHED_MAX, SURVEY_SEMAPHORES_MAX};
use dipc_wire::survey::{AttachedRow, Contact, NodeRow, NodeStatus, ObjectRow, Semaphore};

use crate::dipcd::{Dipcd, Trouble};

/// Pages of one kind at one home that are read.
const PAGES_MAX: usize = 16_384;

/// What the nodes said.
#[derive(Debug, Default)]
pub struct Cluster {
    /// Every node, in order of its number.
    pub nodes: Vec<Node>,
    /// Every object, in order of its id.
    pub objects: Vec<Object>,
}

/// One node.
#[derive(Debug)]
pub struct Node {
    /// As the asked node sees it.
    pub row: NodeRow,
    /// What it says of itself; `None`: it does not answer.
    pub status: Option<NodeStatus>,
}

/// One object.
#[derive(Debug)]
pub struct Object {
    /// Its id.
    pub id: ObjectId,
    /// Its kind.
    pub kind: Kind,
    /// Its key.
    pub key: Key,
    /// Where it lives.
    pub home: NodeId,
    /// What its home says of it; `None`: home does not answer.
    pub row: Option<ObjectRow>,
    /// How often each node has a segment attached.
    pub attached: Vec<(NodeId, u64)>,
}

impl Object {
    /// `nattch`, as far as the nodes have answered.
    pub fn attachments(&self) -> u64 {
        self.attached.iter().map(|(_, count)| count).sum()
    }
}

/// What one node said.
#[derive(Default)]
struct Said {
    status: Option<NodeStatus>,
    objects: Vec<Object>,
    attached: Vec<AttachedRow>,
}

impl Cluster {
    /// Asks everybody about objects of these kinds. An error is one of the dipcd that is asked.
    pub fn ask(dipcd: &Dipcd, kinds: &[Kind]) -> Result<Cluster, Trouble> {
        let mut nodes = nodes(dipcd)?;
        nodes.sort_by_key(|row| row.node);
        let (said, known) = thread::scope(|scope| {
            let asked: Vec<_> =
                nodes.iter().map(|row| scope.spawn(|| ask_node(dipcd, row, kinds))).collect();
            let listed: Vec<_> =
                kinds.iter().map(|kind| scope.spawn(|| (*kind, list(dipcd, *kind)))).collect();
            let said: Vec<_> =
                asked.into_iter().map(|asked| asked.join().expect("it does not panic")).collect();
            let known: Vec<_> =
                listed.into_iter().map(|listed| listed.join().expect("nor does it")).collect();
            (said, known)
        });
        let mut cluster = Cluster::default();
        let mut answered = BTreeSet::new();
        let mut attached: BTreeMap<ObjectId, Vec<(NodeId, u64)>> = BTreeMap::new();
        for (row, said) in nodes.into_iter().zip(said) {
            if said.status.is_some() {
                answered.insert(row.node);
            }
            cluster.objects.extend(said.objects);
            for AttachedRow { id, attachments } in said.attached {
                attached.entry(id).or_default().push((row.node, attachments));
            }
            cluster.nodes.push(Node { row, status: said.status });
        }
        for (kind, rows) in known {
            let silent = rows.into_iter().filter(|row| !answered.contains(&row.home));
            cluster.objects.extend(silent.map(|Row { id, key, home }| Object {
                id,
                kind,
                key,
                home,
                row: None,
                attached: Vec::new(),
            }));
        }
        cluster.objects.sort_by_key(|object| object.id);
        // One that a node said before it fell silent, and the referee besides.
        cluster.objects.dedup_by_key(|object| object.id);
        for object in &mut cluster.objects {
            object.attached = attached.remove(&object.id).unwrap_or_default();
        }
        Ok(cluster)
    }

    /// The nodes that did not answer.
    pub fn silent(&self) -> impl Iterator<Item = &Node> {
        self.nodes.iter().filter(|node| node.status.is_none())
    }
}

/// The nodes as this one knows them.
pub fn nodes(dipcd: &Dipcd) -> Result<Vec<NodeRow>, Trouble> {
    match dipcd.ask(Call::Nodes)? {
        Answer::Nodes(nodes) => Ok(nodes),
        _ => Err(dipcd.not_understood()),
    }
}

/// What a node is doing; [`NodeId::NONE`] is the one that is asked.
pub fn status(dipcd: &Dipcd, node: NodeId) -> Result<NodeStatus, Trouble> {
    match dipcd.ask(Call::Status { node })? {
        Answer::Status(status) => Ok(status),
        _ => Err(dipcd.not_understood()),
    }
}

/// A node that leaves one question unanswered is asked no other. One without a number that is not
/// the asked one cannot be asked at all.
fn ask_node(dipcd: &Dipcd, row: &NodeRow, kinds: &[Kind]) -> Said {
    let mut said = Said::default();
    if !row.node.is_admitted() && row.contact != Contact::Here {
        return said;
    }
    let Ok(status) = status(dipcd, row.node) else { return said };
    for kind in kinds {
        if survey(dipcd, row.node, *kind, &mut said.objects).is_none() {
            return said;
        }
    }
    if kinds.contains(&Kind::Segment) && attached(dipcd, row.node, &mut said.attached).is_none() {
        return said;
    }
    said.status = Some(status);
    said
}

/// The segments that a node has attached; `None`: it fell silent.
fn attached(dipcd: &Dipcd, node: NodeId, rows: &mut Vec<AttachedRow>) -> Option<()> {
    for _ in 0..PAGES_MAX {
        let after = rows.last().map(|row| row.id);
        let Ok(Answer::Attachments(page)) = dipcd.ask(Call::Attachments { node, after }) else {
            return None;
        };
        let full = page.len() == SURVEY_ATTACHED_MAX;
        rows.extend(page);
        if !full {
            break;
        }
    }
    Some(())
}

/// Everything of one kind that a node is home to; `None`: it fell silent.
fn survey(dipcd: &Dipcd, home: NodeId, kind: Kind, objects: &mut Vec<Object>) -> Option<()> {
    let mut from = 0;
    for _ in 0..PAGES_MAX {
        let Ok(Answer::Survey(page)) = dipcd.ask(Call::Survey { home, kind, from }) else {
            return None;
        };
        objects.extend(page.rows.into_iter().map(|row| Object {
            id: row.id,
            kind,
            key: row.key,
            home,
            row: Some(row),
            attached: Vec::new(),
        }));
        match page.next {
            // A home that leads in a circle is not to be followed.
            Some(next) if next > from => from = next,
            _ => break,
        }
    }
    Some(())
}

/// What the referee knows of one kind; nothing if it does not answer.
fn list(dipcd: &Dipcd, kind: Kind) -> Vec<Row> {
    let mut rows: Vec<Row> = Vec::new();
    while rows.len() < ID_NUMBERS as usize {
        let after = rows.last().map(|row| row.id);
        let Ok(Answer::Rows(page)) = dipcd.ask(Call::List { kind, after }) else { break };
        let full = page.len() == ROWS_MAX;
        rows.extend(page);
        if !full {
            break;
        }
    }
    rows
}

/// The semaphores of a set, if the caller may read it.
pub fn semaphores(dipcd: &Dipcd, home: NodeId, id: ObjectId) -> Result<Vec<Semaphore>, Trouble> {
    let mut semaphores = Vec::new();
    loop {
        let first = u32::try_from(semaphores.len()).unwrap_or(u32::MAX);
        let call = Call::Semaphores { home, id, first };
        let Answer::Semaphores(page) = dipcd.ask(call)? else {
            return Err(dipcd.not_understood());
        };
        let full = page.len() == SURVEY_SEMAPHORES_MAX;
        semaphores.extend(page);
        if !full || semaphores.len() > dipc_wire::limits::SEMS_MAX {
            return Ok(semaphores);
        }
    }
}
