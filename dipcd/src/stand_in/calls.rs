//! Operations as system calls: an operation names the cluster's id, the object table says what the
//! kernel calls it, and what the kernel answers becomes the outcome.
//!
//! An id that is not in the table is passed on as one that no kernel object has, so that the
//! kernel's order of checks stays the program's. Pids of stand-ins become those of their clients.
#![forbid(unsafe_code)]

use dipc_wire::ids::{KernelId, Key, Kind, ObjectId};
use dipc_wire::limits::MESSAGE_BYTES_MAX;
use dipc_wire::op::{Op, Outcome, SemGet, StatCheck, Wait};
use dipc_wire::sysv::{IPC_NOWAIT, MSG_COPY, MSG_NOERROR, QueueStat, SemBuf, SetStat, SysvError};

use super::Tables;
use super::session::{Asked, Body};
use crate::objects::ObjectRecord;
use crate::sys::credentials;
use crate::sys::ipc::{self, MessageBuffer};

/// No kernel object has it: its index is beyond the last (ipc/util.h, IPCMNI).
const NOBODYS: KernelId = KernelId(i32::MAX);
/// Room for a text at first, the kernel's usual `msgmax`; it grows when a message needs more.
const ROOM: usize = 8192;
/// What is kept of it.
const ROOM_KEPT: usize = 64 << 10;

/// Whether a call may wait.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Patience {
    /// It is only tried.
    None,
    /// Until it is possible or a signal comes.
    Endless,
}

/// How a call ended.
pub(super) enum Called {
    /// With this for the program.
    Returned(Outcome, Body),
    /// It would have to wait, and the program wants that.
    WouldWait,
    /// By a signal, without effect.
    Interrupted,
}

type Returned = Result<(Outcome, Body), SysvError>;

/// Makes the calls of one session; it has the room for a message.
#[derive(Default)]
pub(super) struct Caller {
    buffer: MessageBuffer,
}

impl Caller {
    /// Makes the call for one operation.
    pub(super) fn call(&mut self, tables: &Tables, asked: &Asked, patience: Patience) -> Called {
        let (returned, waits_on) = match &asked.op {
            Op::MsgSend { id, mtype, flags } => {
                let kernel = tables.kernel(*id, Kind::Queue);
                self.buffer.set(*mtype, &asked.raw);
                let sent = ipc::msg_send(kernel, &self.buffer, patience.flags(*flags));
                (sent.map(|()| plain(0)), flags_wait(*flags, SysvError::EAGAIN))
            }
            Op::MsgReceive { id, bytes_max, mtype, flags } => {
                let kernel = tables.kernel(*id, Kind::Queue);
                // The kernel takes MSG_COPY with IPC_NOWAIT only, and must see if it is missing.
                let copies = flags & MSG_COPY != 0;
                let tried = if copies { *flags } else { patience.flags(*flags) };
                let received = self.receive(kernel, *bytes_max, *mtype, tried);
                (received, flags_wait(*flags, SysvError::ENOMSG).filter(|_| !copies))
            }
            Op::SemOp { id, ops, wait } => {
                let kernel = tables.kernel(*id, Kind::Set);
                let waits_on = (*wait == Wait::Ever).then_some(SysvError::EAGAIN);
                let patience = if *wait == Wait::Never { Patience::None } else { patience };
                (sem_op(kernel, ops, patience).map(|()| plain(0)), waits_on)
            }
            op => (tables.call_at_once(op, &asked.raw), None),
        };
        self.buffer.shrink_to(ROOM_KEPT);
        match returned {
            Ok((outcome, body)) => Called::Returned(outcome, body),
            Err(error) if patience == Patience::None && Some(error) == waits_on => {
                Called::WouldWait
            }
            Err(SysvError::EINTR) => Called::Interrupted,
            Err(error) => Called::Returned(Outcome::Refused(error), Body::Empty),
        }
    }

    /// msgrcv(2). With `MSG_NOERROR` the message is taken whole and cut in the reply, so that it
    /// can go back whole. However large the program's buffer, ours grows only for a message.
    fn receive(&mut self, kernel: KernelId, bytes_max: u64, mtype: i64, flags: i32) -> Returned {
        if i64::try_from(bytes_max).is_err() {
            return Err(SysvError::EINVAL);
        }
        let wanted = usize::try_from(bytes_max).unwrap_or(usize::MAX);
        let copies = flags & MSG_COPY != 0;
        let cuts = flags & MSG_NOERROR != 0 && !copies;
        let flags = if cuts { flags & !MSG_NOERROR } else { flags };
        let limit = if cuts { MESSAGE_BYTES_MAX } else { wanted.min(MESSAGE_BYTES_MAX) };
        let mut room = if copies { copy_room()? } else { ROOM };
        let length = loop {
            self.buffer.make_room(room.min(limit));
            match ipc::msg_receive(kernel, &mut self.buffer, room.min(limit), mtype, flags) {
                Err(SysvError::E2BIG) if room < limit => room *= 2,
                received => break received?,
            }
        };
        let (mtype, text) = (self.buffer.mtype(), &self.buffer.text()[..length]);
        let body = if copies {
            Body::Bytes(text.to_vec())
        } else {
            let message = MessageBuffer::message(mtype, text);
            Body::Taken { queue: kernel, message, shown: length.min(wanted) }
        };
        Ok((Outcome::Message { mtype }, body))
    }
}

impl Patience {
    fn flags(self, flags: i32) -> i32 {
        match self {
            Patience::None => flags | IPC_NOWAIT,
            Patience::Endless => flags,
        }
    }
}

/// The errno that says that a queue operation with these flags would wait.
fn flags_wait(flags: i32, error: SysvError) -> Option<SysvError> {
    (flags & IPC_NOWAIT == 0).then_some(error)
}

/// The kernel copies a message only into room for any that may be sent now.
fn copy_room() -> Result<usize, SysvError> {
    Ok(usize::try_from(ipc::msgmax()?).unwrap_or(usize::MAX).max(ROOM))
}

/// semop(2), tried by giving every operation `IPC_NOWAIT`.
fn sem_op(kernel: KernelId, ops: &[SemBuf], patience: Patience) -> Result<(), SysvError> {
    let no_wait = i16::try_from(IPC_NOWAIT).expect("a flag of sem_flg");
    match patience {
        Patience::Endless => ipc::sem_op(kernel, ops),
        Patience::None => {
            let tried: Vec<_> =
                ops.iter().map(|op| SemBuf { flags: op.flags | no_wait, ..*op }).collect();
            ipc::sem_op(kernel, &tried)
        }
    }
}

fn plain(value: i64) -> (Outcome, Body) {
    (Outcome::Done(value), Body::Empty)
}

impl Tables {
    fn kernel(&self, id: ObjectId, kind: Kind) -> KernelId {
        self.object(id, kind).map_or(NOBODYS, |record| record.kernel)
    }

    fn object(&self, id: ObjectId, kind: Kind) -> Option<ObjectRecord> {
        self.objects.find(id).filter(|record| record.kind == kind)
    }

    /// The operations that never wait.
    fn call_at_once(&self, op: &Op, raw: &[u8]) -> Returned {
        match op {
            Op::QueueStat { id, check } => self.queue_stat(*id, *check),
            Op::SetStat { id, check } => self.set_stat(*id, *check),
            Op::SemGet { id, num, what } => {
                let value = ipc::sem_get(self.kernel(*id, Kind::Set), *num, *what)?;
                let is_pid = *what == SemGet::Pid;
                let value = if is_pid { self.pids.on_its_node(value) } else { value };
                Ok(plain(i64::from(value)))
            }
            Op::SemSet { id, num, value } => {
                let set = self.kernel(*id, Kind::Set);
                ipc::sem_set(set, *num, *value).map(|()| plain(0))
            }
            Op::SemGetAll { id } => {
                let values = ipc::sem_get_all(self.kernel(*id, Kind::Set))?;
                Ok((Outcome::Values, Body::Bytes(bytes_of(&values))))
            }
            Op::SemSetAll { id } => {
                let values = values_of(raw)?;
                ipc::sem_set_all(self.kernel(*id, Kind::Set), &values).map(|()| plain(0))
            }
            Op::Change { id, change } => {
                let (kind, kernel) = self.queue_or_set(*id);
                self.administer(kind, kernel, || ipc::change(kind, kernel, change))
                    .map(|()| plain(0))
            }
            Op::Remove { id } => {
                let (kind, kernel) = self.queue_or_set(*id);
                self.administer(kind, kernel, || ipc::remove(kind, kernel)).map(|()| plain(0))
            }
            Op::MsgMax => Ok(plain(i64::try_from(ipc::msgmax()?).unwrap_or(i64::MAX))),
            Op::MsgSend { .. } | Op::MsgReceive { .. } | Op::SemOp { .. } => {
                unreachable!("those that may wait are called elsewhere")
            }
        }
    }

    /// `IPC_SET` or `IPC_RMID`. To an administrator the kernel allows them on anybody's object;
    /// this
    /// process has no such right and acts as the object's creator instead, who may do the same.
    fn administer(
        &self,
        kind: Kind,
        kernel: KernelId,
        call: impl Fn() -> Result<(), SysvError>,
    ) -> Result<(), SysvError> {
        match call() {
            Err(SysvError::EPERM) if self.rights.sys_admin => {
                let (perm, _) = ipc::view(kind, kernel)?;
                credentials::with_user(perm.cuid, call).map_err(|_| SysvError::EPERM)?
            }
            called => called,
        }
    }

    fn queue_or_set(&self, id: ObjectId) -> (Kind, KernelId) {
        let found = self.objects.find(id).filter(|record| record.kind != Kind::Segment);
        found.map_or((Kind::Queue, NOBODYS), |record| (record.kind, record.kernel))
    }

    fn queue_stat(&self, id: ObjectId, check: StatCheck) -> Returned {
        let (kernel, key) = self.kernel_and_key(id, Kind::Queue);
        let stat = match check {
            StatCheck::ReadPermission => ipc::queue_stat(kernel)?,
            StatCheck::AnyMode => ipc::queue_stat_any(kernel)?,
        };
        let mut perm = stat.perm;
        perm.key = key.0;
        let lspid = self.pids.on_its_node(stat.lspid);
        let lrpid = self.pids.on_its_node(stat.lrpid);
        Ok((Outcome::Queue(QueueStat { perm, lspid, lrpid, ..stat }), Body::Empty))
    }

    fn set_stat(&self, id: ObjectId, check: StatCheck) -> Returned {
        let (kernel, key) = self.kernel_and_key(id, Kind::Set);
        let stat = match check {
            StatCheck::ReadPermission => ipc::set_stat(kernel)?,
            StatCheck::AnyMode => ipc::set_stat_any(kernel)?,
        };
        let mut perm = stat.perm;
        perm.key = key.0;
        Ok((Outcome::Set(SetStat { perm, ..stat }), Body::Empty))
    }

    fn kernel_and_key(&self, id: ObjectId, kind: Kind) -> (KernelId, Key) {
        self.object(id, kind).map_or((NOBODYS, Key(0)), |record| (record.kernel, record.key))
    }
}

/// Semaphore values as raw bytes: two each, the least significant first, whatever the order of
/// the wire's own integers. Programs' arrays look so on the machines this runs on.
fn bytes_of(values: &[u16]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

fn values_of(raw: &[u8]) -> Result<Vec<u16>, SysvError> {
    let (values, rest) = raw.as_chunks::<2>();
    if !rest.is_empty() {
        return Err(SysvError::EINVAL);
    }
    Ok(values.iter().map(|bytes| u16::from_le_bytes(*bytes)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::process::enter_private_ipc;
    use dipc_wire::sysv::MSG_EXCEPT;

    const LONG: usize = 50_000;

    fn long_queue() -> KernelId {
        for limit in ["msgmax", "msgmnb"] {
            std::fs::write(format!("/proc/sys/kernel/{limit}"), "200000").unwrap();
        }
        let queue = ipc::create(Kind::Queue, 0, 0o600).unwrap();
        ipc::msg_send(queue, &MessageBuffer::message(1, &[7; LONG]), 0).unwrap();
        queue
    }

    #[test]
    fn a_long_message_finds_room_and_a_large_buffer_takes_none() {
        if let Err(error) = enter_private_ipc() {
            eprintln!("skipped: a private IPC namespace: {error}");
            return;
        }
        let queue = long_queue();
        let mut caller = Caller::default();
        let nowait = |flags| flags | IPC_NOWAIT;
        let mut receive = |bytes_max, flags| match caller.receive(queue, bytes_max, 0, flags) {
            Ok((_, body)) => Ok((body.raw().len(), caller.buffer.room())),
            Err(error) => Err(error),
        };
        let short = LONG as u64 - 1;
        assert_eq!(receive(short, nowait(0)), Err(SysvError::E2BIG));
        assert_eq!(receive(short, nowait(MSG_COPY)), Err(SysvError::E2BIG));
        assert_eq!(receive(1 << 40, nowait(MSG_COPY)).map(|(length, _)| length), Ok(LONG));
        assert_eq!(receive(1 << 40, nowait(0)), Ok((LONG, 8 * ROOM)));
        assert_eq!(receive(1 << 40, nowait(MSG_EXCEPT)), Err(SysvError::ENOMSG));
        ipc::msg_send(queue, &MessageBuffer::message(1, &[7; LONG]), 0).unwrap();
        assert_eq!(receive(9, nowait(MSG_NOERROR)), Ok((9, 8 * ROOM)));
    }
}
