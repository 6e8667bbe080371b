//! libdipc and its dipcd: one connection to the UNIX socket (SOCK_SEQPACKET) is one call. libdipc
//! connects, sends one [`Call`], receives one [`Answer`], and closes.
//!
//! So there is no connection to keep over fork, exec, closed descriptors or changed credentials:
//! the kernel says with each call who calls (SO_PEERCRED, SO_PEERGROUPS, SO_PEERPIDFD). While
//! dipcd is being restarted, calls wait in the backlog of the socket, which the keeper holds.

use serde::{Deserialize, Serialize};

use crate::codec::ByteOrder;
use crate::ids::{ClientId, Image, KernelId, Key, Kind, NodeId, Nonce, ObjectId, Secret, Slot};
use crate::memory::Access;
use crate::noise::Cipher;
use crate::survey::{AttachedRow, NodeRow, NodeStatus, Order, Semaphore, Survey};
use crate::sysv::{SegmentControl, SegmentStat, SysvError};

/// A call and the thread that makes it, whose capabilities count (/proc/PID/task/TID/status).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ClientCall {
    /// The calling thread, by its number in its own pid namespace.
    pub tid: u32,
    /// What it wants.
    pub call: Call,
}

/// libdipc to its dipcd.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Call {
    /// `msgget`, `semget`, `shmget` of a distributed key. Answered by `Object` or `Refused`;
    /// waits while another node is creating the key.
    Get {
        /// Which of the three calls.
        kind: Kind,
        /// The key, possibly `IPC_PRIVATE`.
        key: Key,
        /// `IPC_CREAT`, `IPC_EXCL` and the mode.
        flags: i32,
        /// Semaphores of a set, bytes of a segment, 0 for a queue.
        size: u64,
        /// The same in every repetition of this call.
        nonce: Nonce,
    },
    /// Where is the object with this id, which the program did not get from us in this process
    /// (inherited, printed, guessed)? Answered by `Object`, or `Refused(EINVAL)`, also when it is
    /// of another kind: home's kernel counts each kind by itself.
    Resolve {
        /// Of which kind it must be.
        kind: Kind,
        /// The id.
        id: ObjectId,
    },
    /// The first remote operation of a process image. Answered by `Joined` with the `done` page.
    Join,
    /// A wire for one thread. Answered by `Wire` with a connected socket, or `Refused`:
    /// `EIDRM` when the home is lost or this process is fenced there, `EACCES` when home does not
    /// know the account. Repeated for the same slot after a break.
    OpenWire {
        /// Where to.
        home: NodeId,
        /// The session it belongs to.
        slot: Slot,
    },
    /// The program removed an object at home by the fast path. Answered by `Done`; libdipc does
    /// not wait for it.
    Removed {
        /// Which.
        id: ObjectId,
    },
    /// `IPC_STAT` by the fast path: what the kernel's numbers mean. Answered by `Described`.
    Describe {
        /// Which object.
        id: ObjectId,
        /// Pids that the kernel named, 0 for none.
        pids: [i32; 2],
    },
    /// The objects of one kind in the whole cluster, in order of id, a page at a time. Answered by
    /// `Rows`.
    List {
        /// Which kind.
        kind: Kind,
        /// The last id of the previous page.
        after: Option<ObjectId>,
    },
    /// How are the pages of this process served? The first question of an image that attaches.
    /// Answered by `Traps`.
    HowToTrap,
    /// The image's means to serve its pages: a userfaultfd comes with this, or (mprotect) one end
    /// of a pair of sockets at whose other end its helper thread waits ([`crate::trap`]); then the
    /// process may have attachments already, all closed, which it inherited over fork and which
    /// stand in /proc/PID/maps. Answered by `Done`.
    Trap {
        /// Which means.
        trap: Trap,
        /// The address of its sentinel page, which no child inherits: the image's number ([`Mm`])
        /// is written there by dipcd, or by the helper that dipcd tells it.
        sentinel: u64,
    },
    /// `shmat`, before the mapping. Answered by `Attached` with a descriptor of the file.
    Attach {
        /// Whose address space: what stands in its sentinel page.
        mm: Mm,
        /// Which segment.
        id: ObjectId,
        /// The flags of shmat(2).
        flags: i32,
    },
    /// `shmat`, after it: the file is mapped with `PROT_NONE` at this address, from its first
    /// byte, in whole pages. Answered by `Done`; then the program's access may be opened.
    Mapped {
        /// From `Attached`.
        attachment: AttachmentNo,
        /// Where.
        address: u64,
    },
    /// A range of this address space has been unmapped, or mapped over, of which attachments are a
    /// part; `bytes` 0 with an attachment's number: it could not be mapped. Answered by `Done`.
    Unmapped {
        /// Whose address space.
        mm: Mm,
        /// The attachment, of shmdt and of a mapping that failed.
        attachment: Option<AttachmentNo>,
        /// Where.
        address: u64,
        /// How much.
        bytes: u64,
    },
    /// `mremap` has moved or resized a mapping of an attachment. Answered by `Done`.
    Moved {
        /// Whose address space.
        mm: Mm,
        /// Where it was.
        from: u64,
        /// How long it was.
        from_bytes: u64,
        /// Where it is.
        to: u64,
        /// How long it is.
        to_bytes: u64,
    },
    /// `shmctl` on one segment. Answered by `Segment`.
    Control {
        /// Which segment.
        id: ObjectId,
        /// What.
        control: SegmentControl,
    },
    /// mprotect trap: a thread has touched a page that it may not. Answered by `Done` when it may,
    /// or `Refused`: SIGBUS.
    Touched {
        /// Whose address space.
        mm: Mm,
        /// Where.
        address: u64,
        /// What for.
        access: Access,
    },
    /// The tools: the nodes as this one knows them. Answered by `Nodes`.
    Nodes,
    /// The tools: what a node is doing. Answered by `Status`, or `Refused(ETIMEDOUT)` when it says
    /// nothing in less than a second.
    Status {
        /// Which; [`NodeId::NONE`] is the one that is asked.
        node: NodeId,
    },
    /// The tools: what a node is home to. Answered by `Survey`, or as `Status`.
    Survey {
        /// Which.
        home: NodeId,
        /// Objects of this kind.
        kind: Kind,
        /// Where the last page went on; 0 for the first.
        from: u32,
    },
    /// The tools: the semaphores of a set that the caller may read. Answered by `Semaphores`; fewer
    /// than [`crate::limits::SURVEY_SEMAPHORES_MAX`] end it.
    Semaphores {
        /// Where the set lives.
        home: NodeId,
        /// Which.
        id: ObjectId,
        /// The first one of this page.
        first: u32,
    },
    /// `IPC_RMID` by the caller's rights, wherever the object lives. Answered by `Done`.
    Remove {
        /// Of which kind it must be.
        kind: Kind,
        /// Which.
        id: ObjectId,
    },
    /// The tools: one entry of the configuration as it is now. Answered by `Entry`, or
    /// `Refused(EINVAL)` behind the last.
    Entry {
        /// Which, in the order of the manual.
        index: u32,
    },
    /// An administrator's order. Answered by `Told`, or `Refused(EPERM)`.
    Order(Order),
    /// The tools: which segments a node has attached, in order of id. Answered by `Attachments`, or
    /// as `Status`; fewer than [`crate::limits::SURVEY_ATTACHED_MAX`] end it.
    Attachments {
        /// Which node.
        node: NodeId,
        /// The last id of the previous page.
        after: Option<ObjectId>,
    },
}

/// The number of one address space, drawn by dipcd at random when its trap is handed over or its
/// fork is seen; 0 before that. It stands in the sentinel page, so only the process itself and
/// dipcd know it; dipcd looks there before it believes it.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct Mm(pub u64);

/// One shmat, between its two calls and for shmdt. Made by dipcd, growing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct AttachmentNo(pub u64);

/// How a process's touching of absent and protected pages becomes known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Trap {
    /// A userfaultfd that also sees the kernel's own accesses.
    Full,
    /// A userfaultfd that sees user mode only: system calls on absent pages give EFAULT.
    UserMode,
    /// SIGSEGV and mprotect, by a helper thread.
    Mprotect,
}

/// What `HowToTrap` answers: which means this process may use, best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Traps {
    /// Whether to try a userfaultfd at all (`trap`).
    pub userfaultfd: bool,
    /// Whether /dev/userfaultfd comes with this answer (`kernel_faults`).
    pub device: bool,
    /// Whether the mprotect trap may be used.
    pub mprotect: bool,
}

/// dipcd to libdipc.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Answer {
    /// The program's errno.
    Refused(SysvError),
    /// `Get` and `Resolve`.
    Object {
        /// The cluster-wide id.
        id: ObjectId,
        /// How to reach it from this process.
        place: Place,
    },
    /// `Join`. One descriptor comes with it: the `done` page, [`crate::limits::SESSIONS_MAX`]
    /// numbers of eight bytes in the machine's order.
    Joined {
        /// Who dipcd says you are.
        client: ClientId,
        /// This program image.
        image: Image,
    },
    /// `OpenWire`. One descriptor comes with it: a stream socket, connected to home, on which the
    /// client now begins the Noise handshake as initiator.
    Wire {
        /// The key of the handshake.
        secret: Secret,
        /// How the wire is spoken.
        terms: WireTerms,
    },
    /// `Describe`: the same, as the program should see it.
    Described {
        /// The key it was got by.
        key: Key,
        /// The pids on their own nodes.
        pids: [i32; 2],
    },
    /// `List`; fewer than [`crate::limits::ROWS_MAX`] end the listing.
    Rows(Vec<Row>),
    /// Nothing to say.
    Done,
    /// `HowToTrap`; a descriptor of /dev/userfaultfd may come with it.
    Traps(Traps),
    /// `Attach`. A descriptor of the file comes with it.
    Attached {
        /// For the calls that follow.
        attachment: AttachmentNo,
        /// The segment's size in bytes; the file has it in whole pages and units.
        bytes: u64,
        /// Whether mprotect to writable is allowed later (not with `SHM_RDONLY`).
        may_write: bool,
    },
    /// `Control`: the state afterwards.
    Segment(SegmentStat),
    /// `Nodes`.
    Nodes(Vec<NodeRow>),
    /// `Status`.
    Status(NodeStatus),
    /// `Survey`.
    Survey(Survey),
    /// `Semaphores`.
    Semaphores(Vec<Semaphore>),
    /// `Entry`.
    Entry {
        /// Its name.
        name: String,
        /// Its value, as dipc.conf has it.
        value: String,
    },
    /// `Order`: what was done, or why not, in words.
    Told(Result<String, String>),
    /// `Attachments`.
    Attachments(Vec<AttachedRow>),
}

/// How a process reaches an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Place {
    /// In this kernel and this IPC namespace.
    Here {
        /// Its id there.
        kernel: KernelId,
    },
    /// By a wire to this node, which may be our own (from another IPC namespace).
    There {
        /// The home.
        home: NodeId,
    },
}

/// How both ends of a wire speak, decided by home.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct WireTerms {
    /// Protection after the handshake.
    pub cipher: Cipher,
    /// Order of the bytes of integers.
    pub order: ByteOrder,
    /// Home's `msgmax` when the wire was opened.
    pub msgmax: u64,
}

/// One object of a listing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Row {
    /// Its id.
    pub id: ObjectId,
    /// Its key.
    pub key: Key,
    /// Its home.
    pub home: NodeId,
}
