//! What this node is home to, for the tools of any node: each object as the kernel has it now, with
//! its owner's name here and the processes that used it last as they are on their own nodes.
//!
//! It shows no more than /proc/sysvipc shows to everybody. What the kernel tells readers of a set
//! alone - the values of its semaphores, and who operated on them - is told who may read it.
#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::io;

use dipc_wire::ids::{KernelId, Kind, ObjectId};
use dipc_wire::keeper::Account;
use dipc_wire::limits::{
    SURVEY_ATTACHED_MAX, SURVEY_NAME_BYTES_MAX, SURVEY_ROWS_MAX, SURVEY_SEMAPHORES_MAX,
    SURVEY_USERS_MAX,
};
use dipc_wire::op::SemGet;
use dipc_wire::survey::{AttachedRow, Deed, ObjectRow, Semaphore, State, Survey, User};
use dipc_wire::sysv::{QueueStat, Rights, SegmentControl, SegmentStat, SysvError};

use crate::daemon::Daemon;
use crate::home;
use crate::memory;
use crate::objects::ObjectRecord;
use crate::sys::credentials::{self, start_time};
use crate::sys::ipc;

/// Read permission, as `GETVAL` and `GETPID` want it.
const READ: i32 = 0o444;
/// Semaphores of a set that are looked at for its users.
const SEMAPHORES_LOOKED_AT: u64 = 64;

/// A page of the objects of one kind. `reader` is who asks, if it is anybody here.
pub fn page(
    daemon: &Daemon,
    kind: Kind,
    from: u32,
    reader: Option<&Account>,
) -> io::Result<Survey> {
    let (records, next) = daemon.home.page(kind, from, SURVEY_ROWS_MAX)?;
    let mut names = Names::default();
    let row = |record| row(daemon, &record, reader, &mut names);
    Ok(Survey { rows: records.into_iter().filter_map(row).collect(), next })
}

/// One object; `None`: it is gone.
fn row(
    daemon: &Daemon,
    record: &ObjectRecord,
    reader: Option<&Account>,
    names: &mut Names,
) -> Option<ObjectRow> {
    let pid = |pid| daemon.pids.on_its_node(pid);
    let (state, perm, users) = match record.kind {
        Kind::Queue => {
            let stat = ipc::queue_stat_any(record.kernel).ok()?;
            let deeds = [(stat.lspid, Deed::Sent), (stat.lrpid, Deed::Received)];
            let users = users(daemon, deeds);
            let (lspid, lrpid) = (pid(stat.lspid), pid(stat.lrpid));
            let state = State::Queue(QueueStat { lspid, lrpid, ..stat });
            (state, stat.perm, users)
        }
        Kind::Set => {
            let stat = ipc::set_stat_any(record.kernel).ok()?;
            let may_read = reader.is_some_and(|reader| home::permits(&stat.perm, READ, reader));
            let users =
                if may_read { operators(daemon, record.kernel, stat.nsems) } else { Vec::new() };
            (State::Set(stat), stat.perm, users)
        }
        Kind::Segment => {
            let stat = segment(daemon, record.id)?;
            (State::Segment(stat), stat.perm, Vec::new())
        }
    };
    let (owner, creator) = (names.of(perm.uid), names.of(perm.cuid));
    Some(ObjectRow { id: record.id, key: record.key, owner, creator, state, users })
}

/// A segment's state.
fn segment(daemon: &Daemon, id: ObjectId) -> Option<SegmentStat> {
    let anybody =
        Account { uid: u32::MAX, gid: u32::MAX, groups: Vec::new(), rights: Rights::default() };
    let looked = daemon.home.segments.control(id, SegmentControl::StatAny, &anybody);
    looked.ok().map(|controlled| controlled.stat)
}

/// The segments that programs of this node have attached, wherever they live. Each node says only
/// its own part, so that nobody who is asked must ask others.
pub fn attachments(daemon: &Daemon, after: Option<ObjectId>) -> Vec<AttachedRow> {
    let mut ids: Vec<_> = daemon.memory.all().iter().map(|segment| segment.id).collect();
    ids.retain(|id| after.is_none_or(|after| *id > after));
    ids.sort_unstable();
    let row = |id| AttachedRow { id, attachments: memory::count::count_here(daemon, id) };
    let rows = ids.into_iter().map(row).filter(|row| row.attachments > 0);
    rows.take(SURVEY_ATTACHED_MAX).collect()
}

/// The living ones of these processes, as the kernel here numbers them.
fn users<const MANY: usize>(daemon: &Daemon, deeds: [(i32, Deed); MANY]) -> Vec<User> {
    let living = |(pid, deed): (i32, Deed)| {
        let number = u32::try_from(pid).ok().filter(|pid| *pid != 0)?;
        start_time(number)?;
        user(daemon, pid, deed)
    };
    deeds.into_iter().filter_map(living).collect()
}

/// A process that the kernel names: a stand-in is its client.
fn user(daemon: &Daemon, pid: i32, deed: Deed) -> Option<User> {
    let pid = u32::try_from(pid).ok().filter(|pid| *pid != 0)?;
    let user = match daemon.pids.find(pid) {
        Some(client) => User { node: client.node, pid: client.pid, deed },
        None => User { node: daemon.links.me(), pid, deed },
    };
    Some(user)
}

/// Who operated last on the first semaphores of a set.
fn operators(daemon: &Daemon, kernel: KernelId, nsems: u64) -> Vec<User> {
    let mut operators = Vec::new();
    for number in 0..nsems.min(SEMAPHORES_LOOKED_AT) as i32 {
        let Ok(pid) = ipc::sem_get(kernel, number, SemGet::Pid) else { break };
        for user in users(daemon, [(pid, Deed::Operated)]) {
            if operators.len() < SURVEY_USERS_MAX && !operators.contains(&user) {
                operators.push(user);
            }
        }
    }
    operators
}

/// The semaphores of a set from `first` on, for who may read it.
pub fn semaphores(
    daemon: &Daemon,
    id: ObjectId,
    first: u32,
    reader: &Account,
) -> Result<Vec<Semaphore>, SysvError> {
    let found = daemon.home.find(id).map_err(|error| {
        tracing::error!(op = "survey", %id, %error);
        SysvError::EIO
    })?;
    let record = found.filter(|record| record.kind == Kind::Set).ok_or(SysvError::EINVAL)?;
    let stat = ipc::set_stat_any(record.kernel)?;
    if !home::permits(&stat.perm, READ, reader) {
        return Err(SysvError::EACCES);
    }
    let end = stat.nsems.min(u64::from(first) + SURVEY_SEMAPHORES_MAX as u64);
    let numbers = i32::try_from(first).unwrap_or(i32::MAX)..i32::try_from(end).unwrap_or(0);
    numbers.map(|number| semaphore(daemon, record.kernel, number)).collect()
}

fn semaphore(daemon: &Daemon, kernel: KernelId, number: i32) -> Result<Semaphore, SysvError> {
    let get = |what| ipc::sem_get(kernel, number, what);
    Ok(Semaphore {
        value: get(SemGet::Value)?,
        waiting_for_more: get(SemGet::WaitersForMore)?,
        waiting_for_zero: get(SemGet::WaitersForZero)?,
        last: user(daemon, get(SemGet::Pid)?, Deed::Operated),
    })
}

/// Login names, each asked for once a page.
#[derive(Default)]
struct Names {
    known: HashMap<u32, String>,
}

impl Names {
    fn of(&mut self, uid: u32) -> String {
        let ask = || {
            let mut name = credentials::user_name(uid).unwrap_or_default();
            while name.len() > SURVEY_NAME_BYTES_MAX {
                name.pop();
            }
            name
        };
        self.known.entry(uid).or_insert_with(ask).clone()
    }
}
