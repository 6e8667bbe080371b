//! Futexes across nodes: who sleeps on a word of a page that has left this node is woken when the
//! word may have changed, for the wake of another node does not reach him.
//!
//! A page that leaves is looked after by one thread, which asks /proc what the threads of the
//! programs are doing. One that somebody sleeps on is fetched back for reading; who believes in
//! another value than it holds is then woken, before home hears that it has come. Others sleep on:
//! woken they would ask for the page for writing, and two nodes would wake each other.
//! Who runs may have read the word and not sleep yet: he is looked at again, less and less often,
//! until he has run for a moment more. Then nothing is polled, and looks that find nobody cost a
//! tenth of a processor at most.
#![forbid(unsafe_code)]

use parking_lot::{Condvar, Mutex};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs;
use std::io;
use std::num::NonZeroU64;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::memory::families::{Attachment, Mappings, Process};
use crate::memory::files::{ReplicaFile, Span};
use crate::memory::sleepers::{Doing, WAITV_BYTES, Word, doing, words_of};
use crate::sys::credentials::open_as_its_owner;
use crate::sys::futex;

use dipc_wire::keeper::SegmentFile;

/// After a page has left, before the first look: whoever just took it for writing writes first.
const FIRST_LOOK: Duration = Duration::from_micros(200);
/// The longest pause between two looks; with it a wake-up is never later than 20 ms.
const PAUSE_MAX: Duration = Duration::from_millis(8);
/// Looks after a page while a thread waits for the processor, half a second in all.
const LOOKS_MAX: u32 = 64;
/// What a thread takes at most from reading a word to sleeping on it, and more.
const ON_THE_WAY: Duration = Duration::from_micros(50);
/// After a look that found nobody, so many times as long as it took passes before the next one.
const REST: u32 = 10;
/// The same if somebody ran.
const REST_RUNNING: u32 = 2;
/// But no more than this. If nobody ran either the pause doubles with every such look: programs
/// that wait for pages or clients lose some all the time, and the looks would be in their way.
const REST_MAX: Duration = Duration::from_millis(4);
/// What is remembered of programs that were named in the log.
const NAMED_MAX: usize = 1024;

/// Has a page fetched for reading, as if a program had touched it; for one that is here already, as
/// it came between the look and now, says [`Futexes::came`].
pub type Fetch<'a> = dyn Fn(&Arc<Mappings>, u64) + 'a;

/// A thread that was seen running, and how long it has run since it began.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Runner {
    /// Its number; 0 stands for the threads of a process that is not known yet.
    thread: u32,
    ran: Duration,
}

/// Pages side by side that have left, and when they are looked after next.
struct Look {
    end: u64,
    /// When they left last.
    since: Instant,
    due: Instant,
    pause: Duration,
    looks: u32,
    /// Who may be on the way to sleep, since the first look.
    runners: Option<Arc<[Runner]>>,
}

/// One word of a page, in bytes from the page's beginning, and what a sleeper believes it holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Belief {
    at: u32,
    value: u32,
}

/// What is looked after in one file, by the offset of the first page or of the page.
struct Watch {
    mappings: Arc<Mappings>,
    left: BTreeMap<u64, Look>,
    asleep: BTreeMap<u64, Vec<Belief>>,
    /// Nobody looks before that.
    rests_until: Instant,
    /// Looks in a row that found nobody asleep or running.
    barren: u32,
}

#[derive(Default)]
struct State {
    files: HashMap<SegmentFile, Watch>,
    /// When the thread looks without being woken.
    wakes_at: Option<Instant>,
    ending: bool,
}

/// The sleepers of this node.
#[derive(Default)]
pub struct Futexes {
    state: Mutex<State>,
    changed: Condvar,
    /// How many pages somebody is known to sleep on; mostly none, and then nothing is looked up.
    asleep: AtomicUsize,
    /// The thread is to be woken.
    must_ring: AtomicBool,
}

/// What a look at the programs of a file has found.
#[derive(Default)]
struct Found {
    /// By the offset of the page.
    beliefs: BTreeMap<u64, Vec<Belief>>,
    /// Who runs, and may be about to sleep.
    runners: Vec<Runner>,
}

impl Futexes {
    /// Pages have left this node: no program here can read them any more. Called under the
    /// segment's lock; [`Futexes::ring`] follows.
    pub fn left(&self, file: SegmentFile, mappings: &Arc<Mappings>, span: Span) {
        let mut state = self.state.lock();
        let (mut end, since) = (span.end(), Instant::now());
        let mut due = since + FIRST_LOOK;
        let watch = state.files.entry(file).or_insert_with(|| Watch {
            mappings: mappings.clone(),
            left: BTreeMap::new(),
            asleep: BTreeMap::new(),
            rests_until: since,
            barren: 0,
        });
        if let Some(before) = watch.left.get(&span.offset) {
            // A page that bounces is looked after all the same.
            (end, due) = (before.end.max(end), before.due.min(due));
        }
        // Pages that leave one after the other are looked after together.
        if let Some((_, before)) = watch.left.range_mut(..span.offset).next_back()
            && before.end == span.offset
            && before.looks == 0
        {
            (before.end, before.since) = (end, since);
            watch.left.remove(&span.offset);
            return;
        }
        let (pause, looks, runners) = (FIRST_LOOK, 0, None);
        watch.left.insert(span.offset, Look { end, since, due, pause, looks, runners });
        let due = watch.due();
        if state.wakes_at.is_none_or(|wakes_at| due.is_some_and(|due| due < wakes_at)) {
            state.wakes_at = due;
            self.must_ring.store(true, Ordering::Release);
        }
    }

    /// The end of a step in which pages may have left: only now is a thread woken for it, when
    /// those who wait for the pages have been answered.
    pub fn ring(&self) {
        if self.must_ring.load(Ordering::Acquire) && self.must_ring.swap(false, Ordering::AcqRel) {
            self.changed.notify_one();
        }
    }

    /// Pages have come, and are in the file. Wakes whoever believes in another value. Called under
    /// the segment's lock, before home hears of it.
    pub fn came(&self, file: &ReplicaFile, span: Span) {
        if self.asleep.load(Ordering::Acquire) == 0 {
            return;
        }
        let sleepers = {
            let mut state = self.state.lock();
            let Some(watch) = state.files.get_mut(&file.name()) else { return };
            let pages = pages_of(span);
            let came = pages.filter_map(|page| watch.asleep.remove(&page).map(|all| (page, all)));
            came.collect::<Vec<_>>()
        };
        self.asleep.fetch_sub(sleepers.len(), Ordering::AcqRel);
        for (page, beliefs) in sleepers {
            if let Err(error) = wake_who_errs(file, page, &beliefs) {
                tracing::error!(op = "futex", id = %file.name().id, page, %error);
            }
        }
    }

    /// Pages will never come; whoever touches them gets SIGBUS, and whoever sleeps on them is woken
    /// for that. They are holes, and no program maps what is put there for the instant of the wake.
    pub fn lost(&self, file: &ReplicaFile, span: Span) {
        if self.asleep.load(Ordering::Acquire) == 0 {
            return;
        }
        let zeros = vec![0; rustix::param::page_size()];
        for page in pages_of(span).filter(|page| self.is_slept_on(file.name(), *page)) {
            let here = Span { offset: page, bytes: zeros.len() as u64 };
            let filled = file.write(page, &zeros);
            self.came(file, here);
            if let Err(error) = filled.and_then(|()| file.punch(here)) {
                tracing::error!(op = "futex", id = %file.name().id, page, %error);
            }
        }
    }

    fn is_slept_on(&self, file: SegmentFile, page: u64) -> bool {
        self.state.lock().files.get(&file).is_some_and(|watch| watch.asleep.contains_key(&page))
    }

    /// A file is no more on this node.
    pub fn forget(&self, file: SegmentFile) {
        if let Some(watch) = self.state.lock().files.remove(&file) {
            self.asleep.fetch_sub(watch.asleep.len(), Ordering::AcqRel);
        }
    }

    /// Ends [`Futexes::run`].
    pub fn end(&self) {
        self.state.lock().ending = true;
        self.changed.notify_one();
    }

    /// Looks after pages until the end, in a thread of its own.
    pub fn run(&self, fetch: &Fetch<'_>) {
        // A look is not put together with timers of others: by default it might come 50 us late.
        let _ = rustix::thread::set_current_timer_slack(NonZeroU64::new(1));
        let mut named = HashSet::new();
        while let Some(due) = self.wait_for_due() {
            for (file, mappings) in due {
                let began = Instant::now();
                let attached = mappings.attachments();
                let found = look(&attached, &mut named);
                for page in self.sort(file, found, began, attached.is_empty()) {
                    fetch(&mappings, page);
                }
            }
        }
    }

    /// Waits until a page is to be looked after: the files of those. `None` at the end.
    fn wait_for_due(&self) -> Option<Vec<(SegmentFile, Arc<Mappings>)>> {
        let mut state = self.state.lock();
        loop {
            if state.ending {
                return None;
            }
            let now = Instant::now();
            state.files.retain(|_, watch| !watch.is_over(now));
            state.wakes_at = state.files.values().filter_map(Watch::due).min();
            match state.wakes_at {
                None => self.changed.wait(&mut state),
                Some(first) if first > now => {
                    self.changed.wait_until(&mut state, first);
                }
                Some(_) => {
                    let is_due = |watch: &Watch| watch.due().is_some_and(|due| due <= now);
                    let due = state.files.iter().filter(|(_, watch)| is_due(watch));
                    return Some(due.map(|(file, one)| (*file, one.mappings.clone())).collect());
                }
            }
        }
    }

    /// Sorts the pages of a file by what was found: those that are to be fetched, those that are
    /// looked after again, and those that are forgotten. What has left since the look began has not
    /// been looked after, whatever was found.
    fn sort(
        &self,
        file: SegmentFile,
        mut found: Found,
        began: Instant,
        is_unmapped: bool,
    ) -> Vec<u64> {
        let mut state = self.state.lock();
        let Some(watch) = state.files.get_mut(&file) else { return Vec::new() };
        let now = Instant::now();
        let mut wanted = Vec::new();
        let asleep = &mut watch.asleep;
        let running: Arc<[Runner]> = if is_unmapped { [].into() } else { found.runners.into() };
        watch.left.retain(|first, look| {
            let here: Vec<_> =
                found.beliefs.range(*first..look.end).map(|(page, _)| *page).collect();
            for page in here {
                let beliefs = found.beliefs.remove(&page).unwrap_or_default();
                if asleep.insert(page, beliefs).is_none() {
                    self.asleep.fetch_add(1, Ordering::AcqRel);
                }
                wanted.push(page);
            }
            if look.since >= began {
                look.due = now + FIRST_LOOK;
                return true;
            }
            look.looks += 1;
            look.pause = (look.pause * 2).min(PAUSE_MAX);
            look.due = now + look.pause;
            let on_the_way = still_on_the_way(look.runners.take(), &running);
            let goes_on = !on_the_way.is_empty() && look.looks < LOOKS_MAX;
            look.runners = Some(on_the_way);
            goes_on
        });
        let is_barren = wanted.is_empty() && running.is_empty();
        watch.barren = if is_barren { watch.barren.saturating_add(1) } else { 0 };
        if wanted.is_empty() {
            watch.rests_until = now + rest(now - began, watch.barren);
        }
        wanted
    }
}

impl Watch {
    /// When somebody should look, or may forget it.
    fn due(&self) -> Option<Instant> {
        let first = match self.left.values().map(|look| look.due).min() {
            None if !self.asleep.is_empty() => return None,
            first => first,
        };
        Some(first.map_or(self.rests_until, |due| due.max(self.rests_until)))
    }

    /// Whether nothing is left to look after, and nobody has to be kept from looking.
    fn is_over(&self, now: Instant) -> bool {
        self.left.is_empty() && self.asleep.is_empty() && self.rests_until <= now
    }
}

/// How long nobody looks after a look that took so long and woke nobody. `barren` is how many in a
/// row saw nobody run either, this one among them.
fn rest(took: Duration, barren: u32) -> Duration {
    let times = match barren {
        0 => REST_RUNNING,
        looks => REST << (looks - 1).min(16),
    };
    took.saturating_mul(times).min(REST_MAX)
}

/// Who of those that were seen running before has not had the processor since.
fn still_on_the_way(before: Option<Arc<[Runner]>>, now: &Arc<[Runner]>) -> Arc<[Runner]> {
    let Some(before) = before.filter(|before| before.iter().all(|one| one.thread != 0)) else {
        return now.clone();
    };
    let has_hardly_run = |one: &Runner| {
        let again = now.iter().find(|other| other.thread == one.thread);
        again.is_some_and(|again| again.ran.saturating_sub(one.ran) < ON_THE_WAY)
    };
    before.iter().copied().filter(has_hardly_run).collect()
}

fn pages_of(span: Span) -> impl Iterator<Item = u64> {
    let page = rustix::param::page_size();
    (span.offset..span.end()).step_by(page)
}

/// Wakes the sleepers of one page, which is here, whose word is not what they believe.
fn wake_who_errs(file: &ReplicaFile, page: u64, beliefs: &[Belief]) -> io::Result<()> {
    let mut changed = Vec::new();
    for belief in beliefs {
        let mut word = [0; 4];
        file.read(page + u64::from(belief.at), &mut word)?;
        if u32::from_ne_bytes(word) != belief.value && !changed.contains(&belief.at) {
            changed.push(belief.at);
        }
    }
    if !changed.is_empty() {
        let woken = futex::wake_all(file.content(), page, &changed)?;
        tracing::debug!(op = "futex", id = %file.name().id, page, woken);
    }
    Ok(())
}

/// What all threads of the programs that map a file are doing.
fn look(attached: &[Attachment], named: &mut HashSet<u32>) -> Found {
    let mut found = Found::default();
    let mut seen = HashSet::new();
    for Attachment { process, .. } in attached {
        let Some(process) = process else {
            // Who it is will be known in a moment.
            found.runners.push(Runner { thread: 0, ran: Duration::ZERO });
            continue;
        };
        if seen.insert(process.pid) {
            let ranges = attached
                .iter()
                .filter(|one| one.process.as_ref().is_some_and(|other| other.pid == process.pid));
            look_at(process, &ranges.collect::<Vec<_>>(), &mut found, named);
        }
    }
    found
}

/// The same for one program. One that has ended meanwhile has left its number to somebody else:
/// nothing is believed then.
fn look_at(process: &Process, ranges: &[&Attachment], found: &mut Found, named: &mut HashSet<u32>) {
    let Ok(threads) = fs::read_dir(format!("/proc/{}/task", process.pid)) else { return };
    let mut words = Vec::new();
    let mut runners = Vec::new();
    for thread in threads.flatten() {
        let syscall = open_as_its_owner(&thread.path().join("syscall"));
        let Ok(line) = syscall.and_then(io::read_to_string) else { continue };
        match doing(&line) {
            Doing::Running => runners.extend(runner(&thread.path())),
            Doing::Sleeping(word) => words.push(word),
            Doing::SleepingOnOne { address, count } => {
                words.extend(several(process.pid, address, count));
            }
            Doing::OutOfReach => tell_once(
                process,
                named,
                "waits by priority inheritance or requeueing: no other node can wake it",
            ),
            Doing::Other => {}
        }
    }
    if has_ended(process) {
        return;
    }
    found.runners.append(&mut runners);
    if words.iter().any(|word| word.is_robust() && is_in(ranges, *word)) {
        tell_once(
            process,
            named,
            "waits for a robust mutex: no other node hears that its owner died",
        );
    }
    for word in words {
        if let Some((page, belief)) = ranges.iter().find_map(|range| belief(range, word)) {
            found.beliefs.entry(page).or_default().push(belief);
        }
    }
}

/// A program that uses what does not work between nodes is named in the log, once.
fn tell_once(process: &Process, named: &mut HashSet<u32>, what: &str) {
    if named.len() < NAMED_MAX && named.insert(process.pid) {
        tracing::warn!(op = "futex", pid = process.pid, "{what}");
    }
}

fn is_in(ranges: &[&Attachment], word: Word) -> bool {
    ranges.iter().any(|range| belief(range, word).is_some())
}

/// A thread that runs; without the kernel's statistics it counts as one that never does.
fn runner(task: &Path) -> Option<Runner> {
    let thread = task.file_name()?.to_str()?.parse().ok()?;
    let statistics = fs::read_to_string(task.join("schedstat")).unwrap_or_default();
    let ran = statistics.split(' ').next().and_then(|number| number.parse().ok());
    Some(Runner { thread, ran: Duration::from_nanos(ran.unwrap_or(0)) })
}

/// The words of a futex_waitv(2). Memory that is absent itself tells nothing.
fn several(pid: u32, address: u64, count: usize) -> Vec<Word> {
    let mut array = vec![0; count * WAITV_BYTES];
    let memory = open_as_its_owner(Path::new(&format!("/proc/{pid}/mem")));
    match memory.and_then(|memory| memory.read_exact_at(&mut array, address)) {
        Ok(()) => words_of(&array).collect(),
        Err(_) => Vec::new(),
    }
}

/// Where in the file a word is, if this attachment has it.
fn belief(range: &Attachment, word: Word) -> Option<(u64, Belief)> {
    let into =
        word.address.checked_sub(range.pages.address).filter(|into| *into < range.span.bytes)?;
    let offset = range.span.offset + into;
    let at = offset % rustix::param::page_size() as u64;
    Some((offset - at, Belief { at: at as u32, value: word.value }))
}

fn has_ended(process: &Process) -> bool {
    let mut watched = [PollFd::new(&process.pidfd, PollFlags::IN)];
    poll(&mut watched, Some(&Timespec::default())).is_ok_and(|ended| ended != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn looks_that_find_nobody_grow_rare() {
        let took = Duration::from_micros(30);
        assert_eq!(rest(took, 0), took * REST_RUNNING);
        assert_eq!([1, 2, 3].map(|barren| rest(took, barren)), [10, 20, 40].map(|n| took * n));
        assert_eq!([100, u32::MAX].map(|barren| rest(took, barren)), [REST_MAX; 2]);
        assert_eq!(rest(Duration::from_secs(1), 0), REST_MAX, "a wake-up is in time all the same");
    }
}
