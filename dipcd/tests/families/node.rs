//! A node whose segment has one file: faults are
//! answered here, with a pattern or as a test wants.
#![forbid(unsafe_code)]

use parking_lot::{Condvar, Mutex, MutexGuard};
use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use dipc_wire::client::{Mm, Trap};
use dipc_wire::ids::{NodeId, ObjectId};
use dipc_wire::keeper::{Held, SegmentFile};
use dipc_wire::memory::{Access, Replica};
use dipcd::memory::families::{
    Ended, Families, Fault, Faults, Mappings, Patience, Process, TrapStore,
};
use dipcd::memory::files::{ReplicaFile, Span};
use dipcd::sys::buffer::LockedBuffer;

use crate::program::Program;

pub const PAGE: u64 = 4096;
const DEADLINE: Duration = Duration::from_secs(60);
/// How long a program may stand still that has a page to give.
pub const PATIENCE: Duration = Duration::from_secs(5);

/// What is done about faults of a page; served if nothing is said.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// Nothing: the thread waits.
    None,
    /// It is lost.
    Lost,
}

/// The keeper.
#[derive(Default)]
pub struct Store(Mutex<BTreeMap<Held, Arc<OwnedFd>>>);

impl TrapStore for Store {
    fn hold(&self, name: &Held, fd: &Arc<OwnedFd>) {
        self.0.lock().insert(name.clone(), fd.clone());
    }

    fn release(&self, name: &Held) {
        self.0.lock().remove(name);
    }
}

impl Store {
    pub fn all(&self) -> Vec<(Held, Arc<OwnedFd>)> {
        self.0.lock().iter().map(|(name, fd)| (name.clone(), fd.clone())).collect()
    }
}

/// The segment, behind its lock.
pub struct Segment {
    pub buffer: LockedBuffer,
    answers: BTreeMap<u64, Answer>,
    faults: Vec<(u64, Access)>,
    ended: Vec<Mm>,
}

/// Who answers faults.
pub struct Pager {
    segment: Mutex<Segment>,
    news: Condvar,
}

impl Faults for Pager {
    fn fault(&self, fault: Fault) {
        let mut segment = self.segment.lock();
        let page = fault.offset / PAGE;
        segment.faults.push((page, fault.access));
        self.news.notify_all();
        let span = Span { offset: fault.offset, bytes: PAGE };
        match segment.answers.get(&page) {
            Some(Answer::None) => return,
            Some(Answer::Lost) => return fault.mappings.poison(span).unwrap(),
            None => {}
        }
        if fault.mappings.file().present(span).unwrap().is_empty() {
            segment.buffer.fill(0);
            segment.buffer[..8].copy_from_slice(&pattern(page).to_ne_bytes());
            fault.mappings.fill(span, &segment.buffer).unwrap();
        }
        match fault.access {
            Access::Read => fault.mappings.wake(span),
            Access::Write => fault.mappings.open(span),
        }
    }

    fn ended(&self, ended: Ended) {
        self.segment.lock().ended.push(ended.mm);
        self.news.notify_all();
    }
}

/// What the first word of a page is when it is brought.
pub fn pattern(page: u64) -> u64 {
    1000 + page
}

pub fn page(number: u64) -> Span {
    pages(number, 1)
}

pub fn pages(first: u64, count: u64) -> Span {
    Span { offset: first * PAGE, bytes: count * PAGE }
}

/// A node.
pub struct Node {
    pub families: Families,
    pub mappings: Arc<Mappings>,
    pub store: Arc<Store>,
    pager: Arc<Pager>,
}

/// Says that a test does not run here, past libtest's capture.
pub fn skip(test: &str, why: &str) {
    let line = format!("SKIP {test}: {why}\n");
    std::io::Write::write_all(&mut std::io::stderr(), line.as_bytes()).unwrap();
}

/// A node with a file of so many pages, unless this kernel does not let us.
pub fn node(test: &str, pages: u64) -> Option<Node> {
    if let Err(error) = Families::usable() {
        skip(test, &format!("no userfaultfd of others can be served here: {error}"));
        return None;
    }
    let name = SegmentFile {
        id: ObjectId::from_number(7),
        home: NodeId::new(1).unwrap(),
        replica: Replica::HOME,
    };
    let file = Arc::new(ReplicaFile::create(name, pages * PAGE).unwrap());
    Some(Node::with(Arc::new(Store::default()), file))
}

impl Node {
    fn with(store: Arc<Store>, file: Arc<ReplicaFile>) -> Node {
        let segment = Segment {
            buffer: LockedBuffer::new(PAGE as usize).unwrap(),
            answers: BTreeMap::new(),
            faults: Vec::new(),
            ended: Vec::new(),
        };
        let pager = Arc::new(Pager { segment: Mutex::new(segment), news: Condvar::new() });
        let patience = Arc::new(Patience::new(PATIENCE));
        let families = Families::new(store.clone(), pager.clone(), patience).unwrap();
        let mappings = families.mappings(file);
        Node { families, mappings, store, pager }
    }

    /// This dipcd ends and another begins, with the keeper's descriptors.
    pub fn restart(self) -> Node {
        let (store, file) = (self.store.clone(), self.mappings.file().clone());
        drop(self);
        let name = file.name();
        let (content, aside) = (file.content().clone(), file.aside().clone());
        let file = Arc::new(ReplicaFile::adopt(name, content, aside).unwrap());
        let node = Node::with(store, file);
        node.mappings.watch();
        node.families.take_over(node.store.all(), || ()).unwrap();
        node
    }

    pub fn segment(&self) -> MutexGuard<'_, Segment> {
        self.pager.segment.lock()
    }

    pub fn answer(&self, page: u64, answer: Option<Answer>) {
        let mut segment = self.segment();
        match answer {
            Some(answer) => segment.answers.insert(page, answer),
            None => segment.answers.remove(&page),
        };
    }

    /// Hands over the program's trap: the number of its address space.
    pub fn trap(&self, program: &Program) -> Mm {
        self.trap_by(program, "trap", Trap::Full)
    }

    pub fn trap_by(&self, program: &Program, word: &str, trap: Trap) -> Mm {
        let (sentinel, fd) = program.ask_with(word, None);
        let process = Process::of(program.pid).unwrap();
        self.families.take(process, trap, sentinel.parse().unwrap(), fd.unwrap()).unwrap()
    }

    /// Has it attach the segment, of which everything is here.
    pub fn attach(&self, program: &Program, mm: Mm) -> u64 {
        self.attach_holding(program, mm, &[(self.mappings.file().span(), Access::Write)])
    }

    pub fn attach_holding(&self, program: &Program, mm: Mm, held: &[(Span, Access)]) -> u64 {
        let file = self.mappings.file().for_program().unwrap();
        let (address, _) = program.ask_with("map", Some(std::os::fd::AsFd::as_fd(&file)));
        let address = address.parse().unwrap();
        let placed = self.families.place(mm, program.pid, &self.mappings, address).unwrap();
        let _segment = self.segment();
        self.families.attach(placed, held).unwrap();
        address
    }

    /// A program that has attached, and may use it.
    pub fn attached(&self) -> (Program, Mm) {
        let program = Program::start();
        let mm = self.trap(&program);
        self.attach(&program, mm);
        assert_eq!(program.ask("open"), "done");
        (program, mm)
    }

    /// Takes a page away from everybody; what it held.
    pub fn take_away(&self, number: u64) -> Vec<u8> {
        let _segment = self.segment();
        let mut content = vec![0; PAGE as usize];
        self.mappings.protect(page(number)).unwrap();
        self.mappings.file().read(number * PAGE, &mut content).unwrap();
        self.mappings.punch(page(number)).unwrap();
        content
    }

    /// Waits until something is so.
    #[track_caller]
    pub fn wait_until<T>(&self, what: &str, mut is_so: impl FnMut(&Segment) -> Option<T>) -> T {
        let deadline = Instant::now() + DEADLINE;
        let mut segment = self.pager.segment.lock();
        loop {
            if let Some(found) = is_so(&segment) {
                return found;
            }
            assert!(Instant::now() < deadline, "it never comes: {what}");
            self.pager.news.wait_for(&mut segment, Duration::from_millis(20));
        }
    }

    #[track_caller]
    pub fn wait_for_fault(&self, page: u64, access: Access) {
        self.wait_until("a fault", |segment| {
            segment.faults.contains(&(page, access)).then_some(())
        });
    }

    #[track_caller]
    pub fn wait_for_end(&self, mm: Mm) {
        self.wait_until("an end", |segment| segment.ended.contains(&mm).then_some(()));
    }

    pub fn faults(&self) -> Vec<(u64, Access)> {
        std::mem::take(&mut self.segment().faults)
    }

    pub fn count(&self) -> u64 {
        self.families.count(&self.mappings).unwrap()
    }
}
