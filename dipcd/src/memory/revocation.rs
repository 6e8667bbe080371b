//! What it takes to take pages away at the end of a lease: measured once, on a small file, before
//! the first segment of another node is attached. An attachment that does not fit into what is left
//! of `node_timeout` is refused ([`check`]), so that nobody's pages are used here after their home
//! has given them away.
//!
//! What must be over in time is that nobody writes or reads what others may have. It takes longest
//! to punch that (tried: 0.5 s for 4 GiB, 0.8 s by the rate of the sample); to protect pages takes
//! an eighth of that in each place where they are mapped. What this node owns is copied aside after
//! that, unless home gives others its last copy of it (`lost_page = stale`). If every other page of
//! 4 GiB is owned here and stays, punching the rest takes 1.5 s, more than is reckoned, but less
//! than the defaults leave.
#![forbid(unsafe_code)]

use std::io;
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use dipc_wire::client::{Mm, Trap};
use dipc_wire::ids::{NodeId, ObjectId};
use dipc_wire::keeper::SegmentFile;
use dipc_wire::memory::Replica;
use dipc_wire::sysv::SysvError;

use super::files::{ReplicaFile, Span};
use super::node::{Memory, mappings_of};
use crate::config::LostPage;
use crate::sys::words::Words;

/// What is measured with, and how often: what counts is the time in which nothing else ran.
const SAMPLE_BYTES: u64 = 4 << 20;
const SAMPLES: usize = 8;
/// A place where pages are mapped takes this part of what they take themselves.
const PART_OF_A_PLACE: u64 = 8;

/// What a sample took.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Rates {
    /// To punch it.
    punched: Duration,
    /// To copy it aside.
    kept: Duration,
}

/// A file of a segment of another home, on this node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Burden {
    bytes: u64,
    /// Places where it is mapped, by trap: a helper closes pages at once.
    by_userfaultfd: u64,
    by_helper: u64,
}

impl Rates {
    fn measure() -> io::Result<Rates> {
        let name = SegmentFile {
            id: ObjectId::from_number(0),
            home: NodeId::NONE,
            replica: Replica::HOME,
        };
        let file = ReplicaFile::create(name, SAMPLE_BYTES)?;
        let path = PathBuf::from(format!("/proc/self/fd/{}", file.content().as_raw_fd()));
        let words = Words::open(&path, SAMPLE_BYTES as usize / size_of::<u64>())?;
        let least = Rates { punched: Duration::MAX, kept: Duration::MAX };
        (0..SAMPLES).try_fold(least, |least, _| {
            let Rates { punched, kept } = sample(&file, &words)?;
            Ok(Rates { punched: punched.min(least.punched), kept: kept.min(least.kept) })
        })
    }

    /// How long it takes to take so much away.
    fn takes(&self, burdens: &[Burden], lost_page: LostPage) -> Duration {
        let mut bytes = 0;
        let mut kept = 0;
        for burden in burdens {
            let places = burden.by_userfaultfd + burden.by_helper;
            bytes += burden.bytes * places / PART_OF_A_PLACE;
            if burden.by_userfaultfd > 0 {
                bytes += burden.bytes;
                kept += burden.bytes;
            }
        }
        let punched = times(self.punched, bytes);
        match lost_page {
            LostPage::Sigbus => punched,
            LostPage::Stale => punched + times(self.kept, kept),
        }
    }
}

/// What so many bytes take if a sample takes this.
fn times(sample: Duration, bytes: u64) -> Duration {
    let nanoseconds = sample.as_nanos() * u128::from(bytes) / u128::from(SAMPLE_BYTES);
    Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(u64::MAX))
}

/// Pages that are there and mapped are kept aside and punched.
fn sample(file: &ReplicaFile, words: &Words) -> io::Result<Rates> {
    let whole: Span = file.span();
    let page_words = rustix::param::page_size() / size_of::<u64>();
    for word in (0..words.count()).step_by(page_words) {
        words.set(word, 1);
    }
    let began = Instant::now();
    file.keep_aside(whole)?;
    let kept = began.elapsed();
    file.drop_aside(whole)?;
    let began = Instant::now();
    file.punch(whole)?;
    Ok(Rates { punched: began.elapsed(), kept })
}

/// Whether all that is attached here from other homes, with this segment, can be taken away in
/// time. `ENOMEM` if not, and a line in the log.
pub fn check(memory: &Memory, id: ObjectId, mm: Mm, lost_page: LostPage) -> Result<(), SysvError> {
    static RATES: OnceLock<Rates> = OnceLock::new();
    let refused = |why: io::Error| {
        tracing::error!(op = "attach", %id, %why, "no rate can be measured");
        SysvError::ENOMEM
    };
    let rates = match RATES.get() {
        Some(rates) => rates,
        None => {
            let measured = Rates::measure().map_err(refused)?;
            tracing::debug!(op = "attach", ?measured, "what 4 MiB take");
            RATES.get_or_init(|| measured)
        }
    };
    let burdens = burdens(memory, id, memory.families().trap_of(mm));
    let takes = rates.takes(&burdens, lost_page);
    let by_helpers = burdens.iter().any(|burden| burden.by_helper > 0);
    let room = memory.shared.leases.room_for_pages(by_helpers);
    if takes <= room {
        return Ok(());
    }
    let bytes = memory.find(id).map_or(0, |segment| segment.geometry.file_bytes);
    let all: u64 = burdens.iter().map(|burden| burden.bytes).sum();
    tracing::warn!(op = "attach", %id, bytes, all, ?takes, ?room,
        "refused: what is attached from other homes could not be taken away in time; \
         node_timeout - 1.02 x lease is what there is for it");
    Err(SysvError::ENOMEM)
}

/// What is attached here from other homes, and is about to be.
fn burdens(memory: &Memory, attaching: ObjectId, trap: Option<Trap>) -> Vec<Burden> {
    let me = memory.shared.me();
    let mut burdens = Vec::new();
    for segment in memory.all().iter().filter(|segment| segment.home != me) {
        for mappings in mappings_of(segment).values() {
            let mut traps: Vec<Trap> =
                mappings.attachments().iter().map(|attachment| attachment.trap).collect();
            traps.extend(trap.filter(|_| segment.id == attaching));
            let is_helper = |trap: &&Trap| **trap == Trap::Mprotect;
            let by_helper = traps.iter().filter(is_helper).count() as u64;
            let by_userfaultfd = traps.len() as u64 - by_helper;
            let bytes = segment.geometry.file_bytes;
            burdens.push(Burden { bytes, by_userfaultfd, by_helper });
        }
    }
    burdens
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn what_is_attached_adds_up() {
        let ms = Duration::from_millis;
        let rates = Rates { punched: ms(4), kept: ms(8) };
        let burden =
            |by_userfaultfd, by_helper| Burden { bytes: 16 * MIB, by_userfaultfd, by_helper };
        for (burdens, sigbus, stale) in [
            (vec![], 0, 0),
            (vec![burden(0, 0)], 0, 0),
            (vec![burden(1, 0)], 18, 50),
            (vec![burden(5, 0)], 26, 58),
            (vec![burden(0, 1)], 2, 2),
            (vec![burden(1, 1), burden(0, 4)], 28, 60),
        ] {
            assert_eq!(rates.takes(&burdens, LostPage::Sigbus), ms(sigbus), "{burdens:?}");
            assert_eq!(rates.takes(&burdens, LostPage::Stale), ms(stale), "{burdens:?}");
        }
    }

    #[test]
    fn a_sample_takes_some_time() {
        let rates = Rates::measure().unwrap();
        let some = Duration::from_micros(1)..Duration::from_mins(1);
        assert!(some.contains(&rates.punched) && some.contains(&rates.kept), "{rates:?}");
    }
}
