//! Every operation of the wire once, and the kernel's refusals: what a stand-in answers is what
//! the kernel said.

use rustix::process::geteuid;

use dipc_wire::codec::ByteOrder;
use dipc_wire::ids::{Kind, ObjectId};
use dipc_wire::keeper::Account;
use dipc_wire::noise::Cipher;
use dipc_wire::op::{Op, Outcome, SemGet, StatCheck, Wait};
use dipc_wire::sysv::{
    Change, IPC_NOWAIT, MSG_COPY, MSG_NOERROR, Rights, SEM_UNDO, SemBuf, SysvError,
};

use crate::node::{FIRST, KEY, Node, Wire, messages_in, receive, semaphore, send};

fn stat_of_queue(wire: &mut Wire, id: ObjectId, check: StatCheck) -> Outcome {
    wire.perform(Op::QueueStat { id, check }, &[]).0
}

fn sem_op(id: ObjectId, op: i16, flags: i16) -> Op {
    Op::SemOp { id, ops: vec![SemBuf { num: 0, op, flags }], wait: Wait::Ever }
}

#[test]
fn a_queue_is_the_kernels_and_shows_key_and_pid_of_its_users() {
    let node = Node::new();
    let (queue, client) = (node.queue(), node.client());
    let mut wire = client.wire_spoken(FIRST, 0, Cipher::Plain, ByteOrder::Network);
    assert_eq!(wire.value(send(&queue, 5), b"hello"), Ok(0));
    assert_eq!(messages_in(&queue), 1);
    for check in [StatCheck::ReadPermission, StatCheck::AnyMode] {
        let Outcome::Queue(stat) = stat_of_queue(&mut wire, queue.id, check) else { panic!() };
        assert_eq!((stat.qnum, stat.cbytes, stat.perm.mode & 0o777), (1, 5, 0o600));
        assert_eq!((stat.perm.key, stat.lspid), (KEY.0, client.id.pid as i32));
        assert_eq!((stat.lrpid, stat.perm.cuid), (0, geteuid().as_raw()));
    }
    assert_eq!(wire.message(receive(&queue, 0)), Ok((5, b"hello".to_vec())));
    let change = Change { uid: 0, gid: 0, mode: 0o640, qbytes: 1000 };
    let change = Change { uid: geteuid().as_raw(), ..change };
    assert_eq!(wire.value(Op::Change { id: queue.id, change }, &[]), Ok(0));
    let stat = stat_of_queue(&mut wire, queue.id, StatCheck::AnyMode);
    let Outcome::Queue(stat) = stat else { panic!() };
    assert_eq!((stat.perm.mode & 0o777, stat.qbytes), (0o640, 1000));
    assert!(wire.value(Op::MsgMax, &[]).unwrap() >= 1);
    assert_eq!(wire.value(Op::Remove { id: queue.id }, &[]), Ok(0));
    for op in [send(&queue, 1), receive(&queue, 0), Op::Remove { id: queue.id }] {
        assert_eq!(wire.value(op, b"x"), Err(SysvError::EINVAL));
    }
}

#[test]
fn a_set_is_the_kernels() {
    let node = Node::new();
    let (set, client) = (node.set(3, 1), node.client());
    let mut wire = client.wire(0);
    let id = set.id;
    let get = |num, what| Op::SemGet { id, num, what };
    assert_eq!(wire.value(Op::SemSet { id, num: 1, value: 7 }, &[]), Ok(0));
    assert_eq!(wire.value(get(1, SemGet::Value), &[]), Ok(7));
    assert_eq!(wire.value(sem_op(id, -1, SEM_UNDO), &[]), Ok(0));
    assert_eq!(wire.value(get(0, SemGet::Pid), &[]), Ok(i64::from(client.id.pid)));
    for what in [SemGet::WaitersForMore, SemGet::WaitersForZero] {
        assert_eq!(wire.value(get(0, what), &[]), Ok(0));
    }
    let (outcome, values) = wire.perform(Op::SemGetAll { id }, &[]);
    assert_eq!((outcome, values), (Outcome::Values, vec![0, 0, 7, 0, 1, 0]));
    assert_eq!(wire.value(Op::SemSetAll { id }, &[1, 1, 2, 0, 3, 0]), Ok(0));
    assert_eq!((semaphore(&set, 0), semaphore(&set, 2)), (257, 3));
    for wrong in [&[1, 0][..], &[1, 0, 2, 0, 3]] {
        assert_eq!(wire.value(Op::SemSetAll { id }, wrong), Err(SysvError::EINVAL));
    }
    let stat = wire.perform(Op::SetStat { id, check: StatCheck::ReadPermission }, &[]).0;
    let Outcome::Set(stat) = stat else { panic!("{stat:?}") };
    assert_eq!((stat.nsems, stat.perm.key), (3, KEY.0));
    let change = Change { uid: geteuid().as_raw(), gid: 0, mode: 0o644, qbytes: 0 };
    assert_eq!(wire.value(Op::Change { id, change }, &[]), Ok(0));
    assert_eq!(wire.value(Op::Remove { id }, &[]), Ok(0));
    assert_eq!(wire.value(sem_op(id, 1, 0), &[]), Err(SysvError::EINVAL));
}

#[test]
fn what_cannot_be_is_refused_as_by_the_kernel() {
    let node = Node::new();
    let (queue, set, client) = (node.queue(), node.set(1, 0), node.client());
    let mut wire = client.wire(0);
    let nothing = ObjectId::from_number(999);
    let many = Op::SemOp {
        id: set.id,
        ops: vec![SemBuf { num: 0, op: 1, flags: 0 }; 4096],
        wait: Wait::Ever,
    };
    let no_ops = Op::SemOp { id: set.id, ops: Vec::new(), wait: Wait::Ever };
    let far =
        Op::SemOp { id: set.id, ops: vec![SemBuf { num: 1, op: 1, flags: 0 }], wait: Wait::Ever };
    let never =
        Op::SemOp { id: set.id, ops: vec![SemBuf { num: 0, op: -1, flags: 0 }], wait: Wait::Never };
    let sized = |bytes_max| Op::MsgReceive { id: queue.id, bytes_max, mtype: 0, flags: 0 };
    let cases = [
        (Op::MsgSend { id: nothing, mtype: 1, flags: 0 }, SysvError::EINVAL),
        (Op::MsgSend { id: set.id, mtype: 1, flags: 0 }, SysvError::EINVAL),
        (send(&queue, 0), SysvError::EINVAL),
        (sized(u64::MAX), SysvError::EINVAL),
        (receive(&queue, IPC_NOWAIT), SysvError::ENOMSG),
        (receive(&queue, MSG_COPY), SysvError::EINVAL),
        (many, SysvError::E2BIG),
        (no_ops, SysvError::EINVAL),
        (far, SysvError::EFBIG),
        (never, SysvError::EAGAIN),
        (sem_op(set.id, -1, IPC_NOWAIT as i16), SysvError::EAGAIN),
        (sem_op(queue.id, -1, 0), SysvError::EINVAL),
        (Op::SemSet { id: set.id, num: 0, value: 40_000 }, SysvError::ERANGE),
        (Op::SemGet { id: set.id, num: 5, what: SemGet::Value }, SysvError::EINVAL),
        (Op::SemGetAll { id: nothing }, SysvError::EINVAL),
        (Op::QueueStat { id: nothing, check: StatCheck::AnyMode }, SysvError::EINVAL),
        (Op::SetStat { id: queue.id, check: StatCheck::AnyMode }, SysvError::EINVAL),
        (Op::Remove { id: nothing }, SysvError::EINVAL),
    ];
    for (op, error) in cases {
        assert_eq!(wire.value(op.clone(), b"text"), Err(error), "{op:?}");
    }
    assert_eq!(messages_in(&queue), 0);
}

#[test]
fn a_message_is_cut_only_in_the_reply() {
    let node = Node::new();
    let (queue, client) = (node.queue(), node.client());
    let mut wire = client.wire(0);
    let small = |flags, bytes_max| Op::MsgReceive { id: queue.id, bytes_max, mtype: 0, flags };
    assert_eq!(wire.value(send(&queue, 3), b"0123456789"), Ok(0));
    assert_eq!(wire.message(small(0, 4)), Err(SysvError::E2BIG));
    let copied = wire.message(small(MSG_COPY | IPC_NOWAIT, 100));
    assert_eq!(copied, Ok((3, b"0123456789".to_vec())));
    assert_eq!(messages_in(&queue), 1, "MSG_COPY does not take");
    assert_eq!(wire.message(small(MSG_NOERROR, 4)), Ok((3, b"0123".to_vec())));
    assert_eq!(messages_in(&queue), 0);
    assert_eq!(wire.value(send(&queue, 4), b""), Ok(0));
    assert_eq!(wire.message(small(0, i64::MAX as u64)), Ok((4, Vec::new())));
    assert_eq!(wire.value(send(&queue, 4), &[7; 8192]), Ok(0));
    assert_eq!(wire.message(small(MSG_NOERROR, 0)), Ok((4, Vec::new())));
}

#[test]
fn the_account_decides_and_rights_count() {
    if !geteuid().is_root() {
        eprintln!("skipped: acting as another account needs root");
        return;
    }
    let node = Node::new();
    let queue = node.queue();
    let nobody = Account { uid: 65_534, gid: 65_534, groups: vec![], rights: Rights::default() };
    let mut wire = node.client_as(nobody.clone()).wire(0);
    assert_eq!(wire.value(send(&queue, 1), b"x"), Err(SysvError::EACCES));
    assert_eq!(wire.value(Op::Remove { id: queue.id }, &[]), Err(SysvError::EPERM));
    let any = stat_of_queue(&mut wire, queue.id, StatCheck::AnyMode);
    assert!(matches!(any, Outcome::Queue(_)), "{any:?}");
    let denied = stat_of_queue(&mut wire, queue.id, StatCheck::ReadPermission);
    assert_eq!(denied, Outcome::Refused(SysvError::EACCES));
    let rights = Rights { ipc_owner: true, ..Rights::default() };
    let mut wire = node.client_as(Account { rights, ..nobody.clone() }).wire(0);
    assert_eq!(wire.value(send(&queue, 1), b"x"), Ok(0));
    let rights = Rights { sys_admin: true, ..Rights::default() };
    let mut wire = node.client_as(Account { rights, ..nobody.clone() }).wire(0);
    assert_eq!(wire.value(send(&queue, 1), b"x"), Err(SysvError::EACCES));
    assert_eq!(wire.value(Op::Remove { id: queue.id }, &[]), Ok(0));
    let group_reads = node.object(Kind::Queue, 0, 0o040);
    let mut wire = node.client_as(Account { groups: vec![0], ..nobody }).wire(0);
    let stat = stat_of_queue(&mut wire, group_reads.id, StatCheck::ReadPermission);
    assert!(matches!(stat, Outcome::Queue(_)), "{stat:?}");
}
