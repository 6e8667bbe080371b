//! A home without dipcd: keeper, tables, objects; and a client without libdipc: its side of a
//! wire.

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use rustix::process::{Pid, PidfdFlags, getegid, geteuid, pidfd_open};
use std::cell::RefCell;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use dipc_wire::client::WireTerms;
use dipc_wire::codec::ByteOrder;
use dipc_wire::ids::{
    ClientId, Image, KernelId, Key, Kind, NodeId, Nonce, ObjectId, Secret, Seq, Slot,
};
use dipc_wire::keeper::{Account, FromStandIn, StandIn, ToStandIn};
use dipc_wire::noise::Cipher;
use dipc_wire::op::{Op, Outcome, Reply, Request, SemGet};
use dipc_wire::sysv::{Rights, SysvError};
use dipcd::channel::{Channel, ChannelReceiver, ChannelSender, Tried};
use dipcd::keeper_handle::{Fetched, KeeperHandle};
use dipcd::objects::{ObjectRecord, ObjectState, ObjectTable};
use dipcd::sys::{ipc, packets};

/// No test waits longer for anything.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// The program that is tested.
pub const PROGRAM: &str = env!("CARGO_BIN_EXE_dipcd");
/// The key that all objects here have.
pub const KEY: Key = Key(0x2838);
/// The first image of a client.
pub const FIRST: Image = Image(0);

/// A home.
pub struct Node {
    pub keeper: KeeperHandle,
    objects: RefCell<ObjectTable>,
    clients: RefCell<u32>,
    pub dir: tempfile::TempDir,
}

/// An object that is removed in the end.
pub struct Object {
    pub id: ObjectId,
    pub kernel: KernelId,
    kind: Kind,
}

impl Drop for Object {
    fn drop(&mut self) {
        // A test may have removed it.
        let _ = ipc::remove(self.kind, self.kernel);
    }
}

impl Node {
    pub fn new() -> Node {
        let dir = tempfile::tempdir().unwrap();
        let objects = RefCell::new(ObjectTable::open(dir.path()).unwrap());
        let (keeper, fetched) = connect(dir.path());
        assert!(fetched.is_empty());
        Node { keeper, objects, clients: RefCell::new(1000), dir }
    }

    pub fn queue(&self) -> Object {
        self.object(Kind::Queue, 0, 0o600)
    }

    pub fn set(&self, count: u64, value: u16) -> Object {
        let set = self.object(Kind::Set, count, 0o600);
        ipc::sem_set_all(set.kernel, &vec![value; count as usize]).unwrap();
        set
    }

    pub fn object(&self, kind: Kind, size: u64, mode: i32) -> Object {
        let kernel = ipc::create(kind, size, mode).unwrap();
        let mut objects = self.objects.borrow_mut();
        let id = ObjectId::from_number(objects.iter().unwrap().len() as u32 + 1);
        let object = Object { id, kernel, kind };
        let (creator_uid, creator_gid) = (geteuid().as_raw(), getegid().as_raw());
        let (nonce, state) = (Nonce(1), ObjectState::Published);
        objects
            .insert(&ObjectRecord {
                id,
                kind,
                key: KEY,
                kernel,
                creator_uid,
                creator_gid,
                nonce,
                state,
            })
            .unwrap();
        object
    }

    /// A client of another node, under our own account.
    pub fn client(&self) -> Client {
        let (uid, gid) = (geteuid().as_raw(), getegid().as_raw());
        self.client_as(Account { uid, gid, groups: Vec::new(), rights: Rights::default() })
    }

    pub fn client_as(&self, account: Account) -> Client {
        *self.clients.borrow_mut() += 1;
        let id =
            ClientId { node: NodeId::new(2).unwrap(), pid: *self.clients.borrow(), started: 7 };
        let who = StandIn { client: id, account };
        let (pid, control) = self.keeper.stand_in(&who).unwrap();
        Client { id, who, pid, pidfd: pidfd(pid), control }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        KeeperHandle::quit_if_running(self.dir.path()).expect("the keeper ends");
    }
}

pub fn connect(state_dir: &Path) -> (KeeperHandle, Fetched) {
    KeeperHandle::connect_or_start_from(state_dir, Path::new(PROGRAM)).unwrap()
}

pub fn pidfd(pid: u32) -> OwnedFd {
    pidfd_open(Pid::from_raw(pid as i32).unwrap(), PidfdFlags::empty()).unwrap()
}

/// Whether a descriptor becomes readable, or hangs up, in time.
pub fn becomes_ready(fd: impl AsFd, within: Duration) -> bool {
    let mut watched = [PollFd::new(&fd, PollFlags::IN)];
    poll(&mut watched, Some(&Timespec::try_from(within).unwrap())).unwrap() != 0
}

/// Looks until something is so.
pub fn until(what: &str, is_so: impl Fn() -> bool) {
    let begun = Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < PATIENCE, "{what} does not happen");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// A remote process, and its stand-in.
pub struct Client {
    pub id: ClientId,
    pub who: StandIn,
    pub pid: u32,
    pub pidfd: OwnedFd,
    pub control: OwnedFd,
}

impl Client {
    /// A wire for a session of the first image.
    pub fn wire(&self, slot: u32) -> Wire {
        self.wire_of(FIRST, slot)
    }

    pub fn wire_of(&self, image: Image, slot: u32) -> Wire {
        self.wire_spoken(image, slot, Cipher::AesGcm, ByteOrder::Little)
    }

    pub fn wire_spoken(&self, image: Image, slot: u32, cipher: Cipher, order: ByteOrder) -> Wire {
        let (near, far) =
            socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)
                .unwrap();
        let secret = Secret([slot as u8; 32]);
        let terms = WireTerms { cipher, order, msgmax: 8192 };
        let wire = ToStandIn::Wire { image, slot: Slot(slot), secret: secret.clone(), terms };
        packets::send(&self.control, &wire, &[far.as_fd()]).unwrap();
        let channel = Channel::initiate(near, &secret, cipher, order, PATIENCE).unwrap();
        let (sender, receiver) = channel.split();
        Wire { sender, receiver, seq: Seq(0), done: Seq(0) }
    }

    pub fn tell(&self, what: &ToStandIn) {
        packets::send(&self.control, what, &[]).unwrap();
    }

    /// The next word of the stand-in; `None` when it has ended.
    pub fn hear(&self) -> Option<FromStandIn> {
        assert!(becomes_ready(&self.control, PATIENCE), "the stand-in says nothing");
        packets::receive(&self.control).unwrap().map(|(said, _)| said)
    }

    pub fn await_end(&self) {
        assert!(becomes_ready(&self.pidfd, PATIENCE), "the stand-in does not end");
    }
}

/// A client thread's side of a wire.
pub struct Wire {
    sender: ChannelSender,
    receiver: ChannelReceiver,
    /// The last operation asked.
    pub seq: Seq,
    /// The last one whose reply we have.
    pub done: Seq,
}

impl Wire {
    /// Goes on where an earlier wire of this session stopped.
    pub fn go_on(mut self, earlier: &Wire) -> Wire {
        (self.seq, self.done) = (earlier.seq, earlier.done);
        self
    }

    pub fn ask(&mut self, op: Op, raw: &[u8]) {
        self.seq = self.seq.next();
        self.ask_again(op, raw);
    }

    /// The same operation by another wire.
    pub fn ask_again(&mut self, op: Op, raw: &[u8]) {
        self.say(&Request::Do { seq: self.seq, done: self.done, op }, raw);
    }

    pub fn say(&mut self, request: &Request, raw: &[u8]) {
        self.sender.send(request, raw).unwrap();
    }

    /// The reply to the last operation; it is not acknowledged before the next one.
    pub fn reply(&mut self) -> (Outcome, Vec<u8>) {
        let (reply, raw) = self.hear().expect("a reply, not the end of the wire");
        assert_eq!(reply.seq, self.seq);
        (reply.outcome, raw)
    }

    /// The next reply; `None` at the end of the wire.
    pub fn hear(&mut self) -> Option<(Reply, Vec<u8>)> {
        let begun = Instant::now();
        loop {
            match self.receiver.try_receive::<Reply>() {
                Ok(Tried::Frame(reply, raw)) => return Some((reply, raw.to_vec())),
                Ok(Tried::Nothing) => {}
                Ok(Tried::Ended) | Err(_) => return None,
            }
            assert!(begun.elapsed() < PATIENCE, "no reply");
            becomes_ready(self.receiver.socket(), Duration::from_secs(1));
        }
    }

    pub fn has_reply(&self, within: Duration) -> bool {
        becomes_ready(self.receiver.socket(), within)
    }

    /// Asks, and acknowledges the reply with the next operation.
    pub fn perform(&mut self, op: Op, raw: &[u8]) -> (Outcome, Vec<u8>) {
        self.ask(op, raw);
        let reply = self.reply();
        self.done = self.seq;
        reply
    }

    /// An operation that gives a number.
    pub fn value(&mut self, op: Op, raw: &[u8]) -> Result<i64, SysvError> {
        match self.perform(op, raw).0 {
            Outcome::Done(value) => Ok(value),
            Outcome::Refused(error) => Err(error),
            other => panic!("neither a number nor a refusal: {other:?}"),
        }
    }

    /// An operation that gives a message.
    pub fn message(&mut self, op: Op) -> Result<(i64, Vec<u8>), SysvError> {
        match self.perform(op, &[]) {
            (Outcome::Message { mtype }, text) => Ok((mtype, text)),
            (Outcome::Refused(error), _) => Err(error),
            (other, _) => panic!("neither a message nor a refusal: {other:?}"),
        }
    }
}

/// msgsnd without flags.
pub fn send(queue: &Object, mtype: i64) -> Op {
    Op::MsgSend { id: queue.id, mtype, flags: 0 }
}

/// msgrcv of anything, with flags.
pub fn receive(queue: &Object, flags: i32) -> Op {
    Op::MsgReceive { id: queue.id, bytes_max: 8192, mtype: 0, flags }
}

pub fn messages_in(queue: &Object) -> u64 {
    ipc::queue_stat_any(queue.kernel).unwrap().qnum
}

pub fn semaphore(set: &Object, num: i32) -> i32 {
    ipc::sem_get(set.kernel, num, SemGet::Value).unwrap()
}

/// Waits until so many wait for a semaphore to grow.
pub fn await_waiters(set: &Object, num: i32, count: i32) {
    let waiters = || ipc::sem_get(set.kernel, num, SemGet::WaitersForMore).unwrap();
    until("waiting for a semaphore", || waiters() == count);
}
