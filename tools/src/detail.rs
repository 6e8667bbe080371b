//! `dipcs -i ID`: everything about one object, in the words of `ipcs -i`, which scripts may look
//! for; what the cluster adds (home, names, users) has words of its own.
#![forbid(unsafe_code)]

use std::fmt::Write;

use dipc_wire::survey::{Deed, ObjectRow, Semaphore, State};
use dipc_wire::sysv::{PERMISSIONS, Perm};

use crate::cluster::Object;
use crate::dipcd::Trouble;
use crate::listing::{name, permissions, segment_status, user};
use crate::time::utc;

/// The object as its home has it; `semaphores` are those of a set, or why they are not shown.
pub fn show(
    object: &Object,
    row: &ObjectRow,
    semaphores: Result<Vec<Semaphore>, Trouble>,
) -> String {
    let mut text = String::new();
    let perm = permissions(&row.state);
    let (title, id) = match row.state {
        State::Queue(_) => ("Message Queue", "msqid"),
        State::Set(_) => ("Semaphore Array", "semid"),
        State::Segment(_) => ("Shared memory Segment", "shmid"),
    };
    let mut put = |line: String| {
        let _ = writeln!(text, "{line}");
    };
    put(format!("\n{title} {id}={}", object.id));
    put(format!("key={:#010x}\thome={}", object.key.0, object.home));
    put(ownership(row, perm));
    match row.state {
        State::Queue(stat) => {
            put(format!("cbytes={}\tqbytes={}\tqnum={}", stat.cbytes, stat.qbytes, stat.qnum));
            put(format!("lspid={}\tlrpid={}", stat.lspid, stat.lrpid));
            put(format!("send_time={}", utc(stat.stime)));
            put(format!("rcv_time={}", utc(stat.rtime)));
            put(format!("change_time={}", utc(stat.ctime)));
        }
        State::Segment(stat) => {
            let status = segment_status(perm.mode);
            let nattch = object.attachments();
            put(format!("bytes={}\tnattch={nattch}\tstatus={status}", stat.bytes));
            put(format!("cpid={}\tlpid={}", stat.cpid, stat.lpid));
            put(format!("att_time={}", utc(stat.atime)));
            put(format!("det_time={}", utc(stat.dtime)));
            put(format!("change_time={}", utc(stat.ctime)));
        }
        State::Set(stat) => {
            put(format!("nsems={}", stat.nsems));
            put(format!("otime={}", utc(stat.otime)));
            put(format!("ctime={}", utc(stat.ctime)));
        }
    }
    for (node, count) in &object.attached {
        put(format!("attached={count}\tnode={node}"));
    }
    for used in &row.users {
        put(format!("{}={}", deed(used.deed), user(used)));
    }
    if matches!(row.state, State::Set(_)) {
        match semaphores {
            Ok(semaphores) => text += &table(&semaphores),
            Err(trouble) => put(format!("semaphores: {trouble}")),
        }
    }
    text
}

fn ownership(row: &ObjectRow, perm: &Perm) -> String {
    let Perm { uid, gid, cuid, cgid, mode, .. } = perm;
    let (owner, creator) = (name(&row.owner, *uid), name(&row.creator, *cuid));
    let access = mode & PERMISSIONS.unsigned_abs();
    format!(
        "owner={owner}\tuid={uid}\tgid={gid}\tcreator={creator}\tcuid={cuid}\tcgid={cgid}\n\
         mode=0{mode:o}\taccess_perms=0{access:o}"
    )
}

/// The word for what the kernel remembers a process for.
pub fn deed(deed: Deed) -> &'static str {
    match deed {
        Deed::Sent => "sent",
        Deed::Received => "received",
        Deed::Operated => "operated",
        Deed::Attached => "attached",
    }
}

fn table(semaphores: &[Semaphore]) -> String {
    let mut text = format!("{:10} {:10} {:10} {:10} pid\n", "semnum", "value", "ncount", "zcount");
    for (number, semaphore) in semaphores.iter().enumerate() {
        let Semaphore { value, waiting_for_more, waiting_for_zero, last } = semaphore;
        let last = last.as_ref().map_or("0".to_owned(), user);
        let _ = writeln!(
            text,
            "{number:<10} {value:<10} {waiting_for_more:<10} {waiting_for_zero:<10} {last}"
        );
    }
    text
}
