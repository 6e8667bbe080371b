//! What the tools of the back door show: the nodes, what each is doing, and what each is home to,
//! as ipcs(1) shows the objects of one machine.
//!
//! Anybody who may call dipcd may see it, and it is no more than `/proc/sysvipc` shows to
//! everybody; what the kernel shows to readers of an object only is shown to them alone.

use serde::{Deserialize, Serialize};
use std::net::SocketAddr;

use crate::ids::{Epoch, Incarnation, Key, NodeId, ObjectId};
use crate::limits::{
    BODY_BYTES_MAX, SURVEY_ATTACHED_MAX, SURVEY_NAME_BYTES_MAX, SURVEY_ROWS_MAX,
    SURVEY_SEMAPHORES_MAX, SURVEY_USERS_MAX,
};
use crate::sysv::{QueueStat, SegmentStat, SetStat};

/// A page of what a node is home to, in no order.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Survey {
    /// At most [`SURVEY_ROWS_MAX`].
    pub rows: Vec<ObjectRow>,
    /// From where the next page goes on; `None`: this was the last.
    pub next: Option<u32>,
}

/// One object as its home sees it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ObjectRow {
    /// What programs call it.
    pub id: ObjectId,
    /// The key it was got by.
    pub key: Key,
    /// The login name of its owner at home; empty for one without a name.
    pub owner: String,
    /// The login name of its creator at home.
    pub creator: String,
    /// The rest of what the kernel says of it.
    pub state: State,
    /// Living processes that the kernel names as its last users, at most [`SURVEY_USERS_MAX`].
    pub users: Vec<User>,
}

/// A segment that programs of a node have attached, wherever it lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct AttachedRow {
    /// Which.
    pub id: ObjectId,
    /// How often.
    pub attachments: u64,
}

/// What `IPC_STAT` says, by kind. Pids are as on their own nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum State {
    /// A message queue.
    Queue(QueueStat),
    /// A semaphore set.
    Set(SetStat),
    /// A shared memory segment; `nattch` is 0, for every node knows its own part.
    Segment(SegmentStat),
}

/// A process that has used an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct User {
    /// The node it runs on.
    pub node: NodeId,
    /// Its pid there.
    pub pid: u32,
    /// What it did last.
    pub deed: Deed,
}

/// What the kernel remembers a process for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Deed {
    /// The last msgsnd.
    Sent,
    /// The last msgrcv.
    Received,
    /// The last semop on some semaphore; shown to who may read the set.
    Operated,
    /// The last shmat or shmdt.
    Attached,
}

/// One semaphore of a set, for who may read it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Semaphore {
    /// `GETVAL`.
    pub value: i32,
    /// `GETNCNT`: how many wait for it to grow.
    pub waiting_for_more: i32,
    /// `GETZCNT`: how many wait for zero.
    pub waiting_for_zero: i32,
    /// `GETPID`: who operated on it last; `None`: nobody.
    pub last: Option<User>,
}

/// A node as another sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct NodeRow {
    /// Its number; 0 for a node that was never admitted.
    pub node: NodeId,
    /// Where it listens.
    pub address: SocketAddr,
    /// How it can be reached.
    pub contact: Contact,
    /// Milliseconds since it was last heard of.
    pub heard_ms: u64,
    /// Which life of it is linked; 0 if none is.
    pub incarnation: Incarnation,
    /// What it is to the cluster.
    pub role: Role,
}

/// How a node can be reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Contact {
    /// It is the node that was asked.
    Here,
    /// A link to it is up.
    Linked,
    /// No link to it is up, and it is not given up.
    Silent,
    /// It was not heard of for `node_timeout`.
    Lost,
}

/// What a node is to the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Role {
    /// It knows which node is home to a key.
    Referee,
    /// It asks the referee.
    Member,
}

/// What a node is doing.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct NodeStatus {
    /// Its number; 0 before its first admission.
    pub node: NodeId,
    /// Where it listens.
    pub address: SocketAddr,
    /// The referee's number; 0 while it knows none.
    pub referee: NodeId,
    /// Where it looks for the referee.
    pub referee_address: SocketAddr,
    /// The reign it accepted last.
    pub epoch: Epoch,
    /// This life of it.
    pub incarnation: Incarnation,
    /// The version of its dipcd.
    pub version: String,
    /// How long this life lasts, in milliseconds.
    pub up_ms: u64,
    /// Whether it writes trace lines (`-v`).
    pub tracing: Tracing,
    /// What it has and what it has done, by the names of the metrics.
    pub counts: Vec<Count>,
}

/// Whether trace lines are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Tracing {
    /// They are.
    On,
    /// They are not.
    Off,
}

/// One of a node's numbers.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Count {
    /// Its name, without the prefix that metrics have.
    pub name: String,
    /// The number.
    pub value: u64,
}

/// What an administrator has a dipcd do; root and the members of `socket_group` may. Answered by
/// [`crate::client::Answer::Told`].
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Order {
    /// Change one entry of the configuration until the file is read again.
    Set {
        /// Its name.
        entry: String,
        /// Its value, as dipc.conf has it.
        value: String,
    },
    /// Read the files again, as on SIGHUP.
    Reload,
    /// Begin or end to write trace lines.
    Trace(Tracing),
    /// Retire a node that will not come back; only the referee can.
    Forget {
        /// Which.
        node: NodeId,
    },
    /// Take the place of a referee that is gone for good.
    BecomeReferee,
}

const NAME_BYTES: usize = 8 + SURVEY_NAME_BYTES_MAX;
const STAT_BYTES: usize = 4 + 28 + 8 * 8;
const USER_BYTES: usize = 1 + 4 + 4;
const ROW_BYTES: usize = 8 + 2 * NAME_BYTES + STAT_BYTES + 8 + SURVEY_USERS_MAX * USER_BYTES;
const _: () = assert!(SURVEY_ROWS_MAX * ROW_BYTES + 64 < BODY_BYTES_MAX);
const _: () = assert!(SURVEY_SEMAPHORES_MAX * (12 + 1 + USER_BYTES) + 64 < BODY_BYTES_MAX);
const _: () = assert!(SURVEY_ATTACHED_MAX * 12 + 64 < BODY_BYTES_MAX);
