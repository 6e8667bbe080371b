//! The tables of dipcs, laid out as those of ipcs(1): the same columns of the same widths, so that
//! what reads the one reads the other, and behind them where the object lives and who uses it.
#![forbid(unsafe_code)]

use std::fmt::Write;

use dipc_wire::ids::{Kind, NodeId};
use dipc_wire::survey::{Contact, NodeRow, NodeStatus, ObjectRow, Role, State, User};
use dipc_wire::sysv::{PERMISSIONS, Perm};

use crate::cluster::{Cluster, Node, Object};
use crate::time::{length, utc};

/// How much is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Detail {
    /// As ipcs does.
    Usual,
    /// Creators, times and the last users besides.
    Verbose,
}

/// `SHM_DEST` and `SHM_LOCKED` of linux/shm.h, as ipcs shows them.
const SEGMENT_STATES: [(u32, &str); 2] = [(0o1000, "dest"), (0o2000, "locked")];

/// What a table shows of an object whose home does not answer.
const UNKNOWN: &str = "?";

/// A column: its title, and its width as ipcs has it.
type Column = (&'static str, usize);

const QUEUE: &[Column] = &[
    ("key", 10),
    ("msqid", 10),
    ("owner", 10),
    ("perms", 10),
    ("used-bytes", 12),
    ("messages", 12),
    ("home", 6),
];
const SEGMENT: &[Column] = &[
    ("key", 10),
    ("shmid", 10),
    ("owner", 10),
    ("perms", 10),
    ("bytes", 10),
    ("nattch", 10),
    ("status", 12),
    ("home", 6),
];
const SET: &[Column] =
    &[("key", 10), ("semid", 10), ("owner", 10), ("perms", 10), ("nsems", 10), ("home", 6)];
const NODE: &[Column] = &[
    ("node", 6),
    ("address", 21),
    ("contact", 10),
    ("role", 8),
    ("queues", 8),
    ("segments", 9),
    ("sets", 8),
    ("clients", 8),
    ("stand-ins", 10),
];

const QUEUE_MORE: &[Column] =
    &[("creator", 10), ("qbytes", 10), ("sent", 19), ("received", 19), ("changed", 19)];

const SEGMENT_MORE: &[Column] =
    &[("creator", 10), ("attached-at", 19), ("detached-at", 19), ("changed", 19)];

const SET_MORE: &[Column] = &[("creator", 10), ("operated", 19), ("changed", 19)];

/// The tables of these kinds, in the order of ipcs.
pub fn objects(cluster: &Cluster, kinds: &[Kind], detail: Detail) -> String {
    let mut text = String::new();
    for (kind, title, columns, more) in [
        (Kind::Queue, "Message Queues", QUEUE, QUEUE_MORE),
        (Kind::Segment, "Shared Memory Segments", SEGMENT, SEGMENT_MORE),
        (Kind::Set, "Semaphore Arrays", SET, SET_MORE),
    ] {
        if !kinds.contains(&kind) {
            continue;
        }
        let more = if detail == Detail::Verbose { more } else { &[] };
        let last = if kind == Kind::Segment { "attached" } else { "users" };
        let columns = [columns, more, &[(last, 0)]].concat();
        let _ = writeln!(text, "\n------ {title} --------");
        line(&mut text, &columns, columns.iter().map(|(title, _)| (*title).to_owned()));
        for object in cluster.objects.iter().filter(|object| object.kind == kind) {
            line(&mut text, &columns, cells(object, detail).into_iter());
        }
    }
    text
}

/// One line of a table; what is too long for its column pushes the rest.
fn line(text: &mut String, columns: &[Column], cells: impl Iterator<Item = String>) {
    let start = text.len();
    for ((_, width), cell) in columns.iter().zip(cells) {
        let _ = write!(text, "{cell:width$} ");
    }
    text.truncate(start + text[start..].trim_end().len());
    text.push('\n');
}

fn cells(object: &Object, detail: Detail) -> Vec<String> {
    let mut cells = vec![format!("{:#010x}", object.key.0), object.id.to_string()];
    let home = object.home.to_string();
    let Some(row) = &object.row else {
        let known = match object.kind {
            Kind::Queue => QUEUE.len(),
            Kind::Segment => SEGMENT.len(),
            Kind::Set => SET.len(),
        };
        cells.resize(known - 1, UNKNOWN.to_owned());
        cells.push(home);
        return cells;
    };
    let perm = permissions(&row.state);
    let mode = perm.mode & PERMISSIONS.unsigned_abs();
    cells.extend([name(&row.owner, perm.uid), format!("{mode:o}")]);
    cells.extend(sizes(object, &row.state));
    cells.push(home);
    if detail == Detail::Verbose {
        cells.push(name(&row.creator, perm.cuid));
        cells.extend(times(&row.state));
    }
    cells.push(match object.kind {
        Kind::Segment => attached(object),
        Kind::Queue | Kind::Set => users(row),
    });
    cells
}

/// `NODE=COUNT` of each; `-` for none.
fn attached(object: &Object) -> String {
    let counts = object.attached.iter().map(|(node, count)| format!("{node}={count}"));
    let counts: Vec<_> = counts.collect();
    if counts.is_empty() { "-".to_owned() } else { counts.join(" ") }
}

/// Ownership, whatever the kind.
pub fn permissions(state: &State) -> &Perm {
    match state {
        State::Queue(stat) => &stat.perm,
        State::Set(stat) => &stat.perm,
        State::Segment(stat) => &stat.perm,
    }
}

/// The login name, or the number of an account without one.
pub fn name(name: &str, uid: u32) -> String {
    if name.is_empty() { uid.to_string() } else { name.to_owned() }
}

fn sizes(object: &Object, state: &State) -> Vec<String> {
    match state {
        State::Queue(stat) => vec![stat.cbytes.to_string(), stat.qnum.to_string()],
        State::Set(stat) => vec![stat.nsems.to_string()],
        State::Segment(stat) => {
            let (bytes, nattch) = (stat.bytes.to_string(), object.attachments().to_string());
            vec![bytes, nattch, segment_status(stat.perm.mode)]
        }
    }
}

/// What ipcs says of a segment's mode above the permissions.
pub fn segment_status(mode: u32) -> String {
    let words = SEGMENT_STATES.iter().filter(|(bit, _)| mode & bit != 0).map(|(_, word)| *word);
    words.collect::<Vec<_>>().join(" ")
}

fn times(state: &State) -> Vec<String> {
    match state {
        State::Queue(stat) => {
            let times = [stat.stime, stat.rtime, stat.ctime].map(utc);
            [vec![stat.qbytes.to_string()], times.into()].concat()
        }
        State::Set(stat) => [stat.otime, stat.ctime].map(utc).into(),
        State::Segment(stat) => [stat.atime, stat.dtime, stat.ctime].map(utc).into(),
    }
}

/// `NODE:PID` of each, once; `-` for none.
fn users(row: &ObjectRow) -> String {
    let mut users: Vec<_> = row.users.iter().map(user).collect();
    users.dedup();
    if users.is_empty() { "-".to_owned() } else { users.join(" ") }
}

/// A process of the cluster.
pub fn user(user: &User) -> String {
    format!("{}:{}", user.node, user.pid)
}

/// The table of nodes.
pub fn nodes(cluster: &Cluster, detail: Detail) -> String {
    let more: &[Column] = match detail {
        Detail::Usual => &[("up", 0)],
        Detail::Verbose => &[("up", 5), ("heard", 6), ("version", 8), ("incarnation", 0)],
    };
    let columns = [NODE, more].concat();
    let mut text = String::from("\n------ Nodes --------\n");
    line(&mut text, &columns, columns.iter().map(|(title, _)| (*title).to_owned()));
    for node in &cluster.nodes {
        line(&mut text, &columns, node_cells(node, detail).into_iter());
    }
    text
}

fn node_cells(node: &Node, detail: Detail) -> Vec<String> {
    let row = &node.row;
    let mut cells = vec![number(row.node), row.address.to_string()];
    cells.extend([contact(row.contact).to_owned(), role(row.role).to_owned()]);
    let count = |name| match &node.status {
        Some(status) => count(status, name).to_string(),
        None => UNKNOWN.to_owned(),
    };
    cells.extend(["queues", "segments", "sets", "clients", "stand_ins"].map(count));
    let status = node.status.as_ref();
    cells.push(status.map_or(UNKNOWN.to_owned(), |status| length(status.up_ms)));
    if detail == Detail::Verbose {
        cells.push(heard(row));
        cells.push(status.map_or(UNKNOWN.to_owned(), |status| status.version.clone()));
        let life = status.map_or(row.incarnation, |status| status.incarnation);
        cells.push(life.0.to_string());
    }
    cells
}

/// A node's number, or a mark for one that has none yet.
pub fn number(node: NodeId) -> String {
    if node.is_admitted() { node.to_string() } else { "-".to_owned() }
}

/// The word for how a node is reached.
pub fn contact(contact: Contact) -> &'static str {
    match contact {
        Contact::Here => "here",
        Contact::Linked => "linked",
        Contact::Silent => "silent",
        Contact::Lost => "lost",
    }
}

/// The word for what it is.
pub fn role(role: Role) -> &'static str {
    match role {
        Role::Referee => "referee",
        Role::Member => "member",
    }
}

/// How long ago a node was heard of.
pub fn heard(row: &NodeRow) -> String {
    if row.contact == Contact::Here { "-".to_owned() } else { length(row.heard_ms) }
}

/// One of a node's numbers, 0 if it does not count that.
pub fn count(status: &NodeStatus, name: &str) -> u64 {
    status.counts.iter().find(|count| count.name == name).map_or(0, |count| count.value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use dipc_wire::ids::{Key, ObjectId};
    use dipc_wire::survey::Deed;
    use dipc_wire::sysv::{QueueStat, SegmentStat};

    fn node(number: u8) -> NodeId {
        NodeId::new(number).unwrap()
    }

    fn object(number: u32, state: Option<State>) -> Object {
        let (id, key) = (ObjectId::from_number(number), Key(40));
        let kind = match state {
            Some(State::Segment(_)) => Kind::Segment,
            _ => Kind::Queue,
        };
        let users = [Deed::Sent, Deed::Received]
            .map(|deed| User { node: node(2), pid: 4711, deed })
            .to_vec();
        let row = state.map(|state| ObjectRow {
            id,
            key,
            owner: "ann".into(),
            creator: String::new(),
            state,
            users,
        });
        Object { id, kind, key, home: node(1), row, attached: vec![(node(1), 2), (node(3), 1)] }
    }

    #[test]
    fn columns_are_those_of_ipcs_and_ours_follow() {
        let perm = Perm { mode: 0o1666, cuid: 7, ..Perm::default() };
        let stat = QueueStat { perm, cbytes: 512, qnum: 1, qbytes: 16_384, ..QueueStat::default() };
        let cluster = Cluster {
            nodes: Vec::new(),
            objects: vec![object(0, Some(State::Queue(stat))), object(1, None)],
        };
        let text = objects(&cluster, &[Kind::Queue], Detail::Usual);
        let expected = "
------ Message Queues --------
key        msqid      owner      perms      used-bytes   messages     home   users
0x00000028 1073773824 ann        666        512          1            1      2:4711
0x00000028 1073773825 ?          ?          ?            ?            1
";
        assert_eq!(text, expected);
        let text = objects(&cluster, &[Kind::Queue], Detail::Verbose);
        assert!(text.contains(" 1      7          16384      -  "), "{text}");
    }

    #[test]
    fn a_segment_has_a_status() {
        let perm = Perm { mode: 0o3600, ..Perm::default() };
        let stat = SegmentStat { perm, bytes: 4096, ..SegmentStat::default() };
        let cluster =
            Cluster { nodes: Vec::new(), objects: vec![object(0, Some(State::Segment(stat)))] };
        let text = objects(&cluster, &Kind::ALL, Detail::Usual);
        let line = "600        4096       3          dest locked  1      1=2 3=1\n";
        assert!(text.contains(line), "{text}");
        assert!(text.contains("Semaphore Arrays"), "{text}");
    }
}
