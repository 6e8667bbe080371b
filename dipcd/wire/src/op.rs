//! libdipc and its stand-in at home, over a wire. The client sends one [`Request`] and receives
//! one [`Reply`]; in between it may send one `Cancel`.
//!
//! ```text
//! client                          stand-in
//!   Request{seq, done, op} ─────▶  tries the system call; may block in it
//!   Cancel{seq}            ─────▶  (only while it blocks) interrupts it
//!                          ◀─────  Reply{seq, result}, kept until a `done` covers it
//! ```
//!
//! A wire begins with the Noise handshake (client: initiator). After a break the client opens
//! another wire for the same session and repeats the request; a known seq gets the kept reply.

use serde::{Deserialize, Serialize};

use crate::ids::{ObjectId, Seq};
use crate::sysv::{Change, QueueStat, SemBuf, SetStat, SysvError};

/// Client to stand-in.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Request {
    /// One operation. Raw bytes may follow, as the operation says.
    Do {
        /// Its number: one above the last, or the last again after a break.
        seq: Seq,
        /// The last operation whose reply the program has.
        done: Seq,
        /// What to do.
        op: Op,
    },
    /// Interrupt operation `seq` if it still waits; its reply says what became of it. Ignored for
    /// any other seq.
    Cancel {
        /// Which.
        seq: Seq,
    },
    /// The thread has left operation `seq` for good (siglongjmp): interrupt it, and put back what
    /// it took. Answered by `Done(0)` with that seq.
    Abandon {
        /// Which.
        seq: Seq,
    },
    /// The thread ends; so does its session, once `done` has been looked at. Not answered.
    End {
        /// The last operation whose reply the program has.
        done: Seq,
    },
}

/// An operation on an object at home.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Op {
    /// msgsnd(2); the text follows as raw bytes. `Done(0)`.
    MsgSend {
        /// The queue.
        id: ObjectId,
        /// The message's type.
        mtype: i64,
        /// `IPC_NOWAIT`.
        flags: i32,
    },
    /// msgrcv(2). `Message`.
    MsgReceive {
        /// The queue.
        id: ObjectId,
        /// The size of the program's buffer.
        bytes_max: u64,
        /// The wanted type, by msgrcv's rules.
        mtype: i64,
        /// `IPC_NOWAIT`, `MSG_NOERROR`, `MSG_EXCEPT`, `MSG_COPY`.
        flags: i32,
    },
    /// `IPC_STAT` or, with `AnyMode`, `MSG_STAT_ANY` of a queue. `Queue`.
    QueueStat {
        /// The queue.
        id: ObjectId,
        /// Whether read permission is needed.
        check: StatCheck,
    },
    /// semtimedop(2) without its timeout, which is measured at the caller. `Done(0)`.
    SemOp {
        /// The set.
        id: ObjectId,
        /// The operations, at most [`crate::limits::SEM_OPS_MAX`].
        ops: Vec<SemBuf>,
        /// Whether it may wait.
        wait: Wait,
    },
    /// `IPC_STAT` or `SEM_STAT_ANY` of a set. `Set`.
    SetStat {
        /// The set.
        id: ObjectId,
        /// Whether read permission is needed.
        check: StatCheck,
    },
    /// `GETVAL GETPID GETNCNT GETZCNT`. `Done(value)`.
    SemGet {
        /// The set.
        id: ObjectId,
        /// Which semaphore.
        num: i32,
        /// Which of the four.
        what: SemGet,
    },
    /// `SETVAL`. `Done(0)`.
    SemSet {
        /// The set.
        id: ObjectId,
        /// Which semaphore.
        num: i32,
        /// Its new value.
        value: i32,
    },
    /// `GETALL`. `Values`.
    SemGetAll {
        /// The set.
        id: ObjectId,
    },
    /// `SETALL`; the values follow as raw bytes, two each. `Done(0)`.
    SemSetAll {
        /// The set.
        id: ObjectId,
    },
    /// `IPC_SET` of a queue or a set. `Done(0)`.
    Change {
        /// The object.
        id: ObjectId,
        /// The new values.
        change: Change,
    },
    /// `IPC_RMID`. `Done(0)`.
    Remove {
        /// The object.
        id: ObjectId,
    },
    /// Home's `msgmax` as it is now. `Done(bytes)`.
    MsgMax,
}

/// Whether `*_STAT` checks for read permission.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum StatCheck {
    /// As `IPC_STAT` does.
    ReadPermission,
    /// As `MSG_STAT_ANY` and `SEM_STAT_ANY` do.
    AnyMode,
}

/// Whether an operation may wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Wait {
    /// `EAGAIN` at once (a timeout of zero).
    Never,
    /// Until it is possible, cancelled, or the object is gone.
    Ever,
}

/// The four single values of a semaphore.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SemGet {
    /// `GETVAL`.
    Value,
    /// `GETPID`, as the pid is on its own node.
    Pid,
    /// `GETNCNT`.
    WaitersForMore,
    /// `GETZCNT`.
    WaitersForZero,
}

/// Stand-in to client: the reply to operation `seq`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Reply {
    /// Which.
    pub seq: Seq,
    /// What came of it.
    pub outcome: Outcome,
}

/// What came of an operation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Outcome {
    /// The errno for the program; for a cancelled wait `EINTR`.
    Refused(SysvError),
    /// A plain result.
    Done(i64),
    /// A message; its text follows as raw bytes.
    Message {
        /// Its type.
        mtype: i64,
    },
    /// State of a queue.
    Queue(QueueStat),
    /// State of a set.
    Set(SetStat),
    /// Values of a set; they follow as raw bytes, two each.
    Values,
}
