//! One file of a segment and everybody who maps it here: access to its pages is given to all of
//! them and taken from all of them.
//!
//! The caller holds the lock of the segment, so for one file one thing is done at a time, and
//! nobody attaches meanwhile. Programs fork and move mappings whenever they like; that the families
//! keep in order, each behind its own lock.
//!
//! A program is not bothered before it must be. While no other replica exists nothing is watched.
//! Then accesses to holes are, which costs nothing, and stores only in chunks of which a page has
//! been protected: a fork copies the page tables of those (35 ms for 4 GiB, tried).
#![forbid(unsafe_code)]

use parking_lot::Mutex;
use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;

use dipc_wire::client::{Mm, Trap};
use dipc_wire::memory::Access;
use dipc_wire::trap::Pages;

use crate::memory::families::family::Family;
use crate::memory::families::means::Means;
use crate::memory::families::space::{Process, Range, Work};
use crate::memory::files::{ReplicaFile, Span};
use crate::sys::faults::{CanPoison, Protected, Trouble, Userfaultfd, Watched};

/// How much of a file is watched for stores at a time.
const CHUNK_BYTES: u64 = 64 << 20;
/// More than that is protected only where there are pages, in pieces of that size: a page table
/// each. Run by run it takes 0.7 s for 4 GiB of which every other page is there, and 0.1 s so.
const WHOLE_BYTES_MAX: u64 = 2 << 20;

/// Which accesses are watched.
#[derive(Clone, Debug)]
enum Watch {
    /// None: the node has every page, and nobody else has the segment.
    Native,
    /// To holes, and stores in the chunks that begin there.
    Missing(BTreeSet<u64>),
    /// All.
    All,
}

/// One place where a file is mapped.
#[derive(Clone, Debug)]
pub struct Attachment {
    /// In which address space.
    pub mm: Mm,
    /// By which trap its pages are taken away.
    pub trap: Trap,
    /// Of which process, if it is known.
    pub process: Option<Process>,
    /// Where.
    pub pages: Pages,
    /// Which part of the file.
    pub span: Span,
}

/// A file and who maps it.
#[derive(Debug)]
pub struct Mappings {
    file: Arc<ReplicaFile>,
    watch: Mutex<Watch>,
    families: Mutex<Vec<Arc<Family>>>,
    can_poison: CanPoison,
    /// Pages that give SIGBUS.
    poisoned: Mutex<BTreeSet<u64>>,
}

impl Mappings {
    /// Of a file that nobody maps.
    pub(super) fn new(file: Arc<ReplicaFile>, can_poison: CanPoison) -> Mappings {
        Mappings {
            file,
            can_poison,
            watch: Mutex::new(Watch::Native),
            families: Mutex::default(),
            poisoned: Mutex::default(),
        }
    }

    /// The file.
    pub fn file(&self) -> &Arc<ReplicaFile> {
        &self.file
    }

    /// From now on accesses to pages that are not here wait: another replica is about to attach.
    pub fn watch(self: &Arc<Self>) {
        {
            let mut watch = self.watch.lock();
            if !matches!(*watch, Watch::Native) {
                return;
            }
            *watch = Watch::Missing(BTreeSet::new());
        }
        let whole = self.file.span();
        self.each(whole, &|means, pages, _| means.register(pages, Watched::Missing));
    }

    /// Stores to protected pages are watched everywhere too, from the first attachment on: a file
    /// whose home is elsewhere.
    pub fn watch_all(self: &Arc<Self>) {
        *self.watch.lock() = Watch::All;
        let whole = self.file.span();
        self.each(whole, &|means, pages, _| means.register(pages, Watched::MissingAndProtected));
    }

    /// Nothing waits any more: every page is here and no other replica is left.
    pub fn unwatch(self: &Arc<Self>) {
        *self.watch.lock() = Watch::Native;
        self.each(self.file.span(), &|means, pages, _| match means {
            Means::Userfaultfd(_, uffd) => {
                match uffd.unregister(pages) {
                    // It was not.
                    Err(Trouble::NotThere) => {}
                    done => done?,
                }
                // A child being forked has copied what was: it must be seen.
                uffd.probe(pages)
            }
            Means::Helper(helper) => helper.open(Access::Write, pages),
            Means::Gone(_) => Err(Trouble::Gone),
        });
    }

    /// Has new places report what is watched.
    pub(super) fn register(&self, means: &Means, pages: Pages, span: Span) -> Result<(), Trouble> {
        let watch = self.watch.lock().clone();
        let chunks = match watch {
            Watch::Native => return Ok(()),
            Watch::All => return means.register(pages, Watched::MissingAndProtected),
            Watch::Missing(chunks) => chunks,
        };
        means.register(pages, Watched::Missing)?;
        for offset in chunks {
            let Some(both) = span.and(Span { offset, bytes: CHUNK_BYTES }) else { continue };
            let address = pages.address + (both.offset - span.offset);
            let pages = Pages { address, bytes: both.bytes };
            means.register(pages, Watched::MissingAndProtected)?;
        }
        Ok(())
    }

    /// Makes what this replica has ready for what is held of it, before a new attachment.
    pub(super) fn prepare(self: &Arc<Self>, held: &[(Span, Access)]) {
        for (span, _) in held.iter().filter(|(_, access)| *access == Access::Read) {
            self.make_protectable(*span);
        }
    }

    /// Gives a new attachment what the replica has.
    pub(super) fn give(
        &self,
        means: &Means,
        range: &Range,
        held: &[(Span, Access)],
    ) -> Result<(), Trouble> {
        self.register(means, range.pages(), range.span)?;
        let parts = held.iter().filter_map(|(span, access)| Some((range.pages_of(*span)?, access)));
        for ((pages, _), access) in parts {
            match (means, access) {
                (Means::Helper(helper), access) => helper.open(*access, pages)?,
                (means, Access::Read) => means.protect(pages)?,
                (_, Access::Write) => {}
            }
        }
        Ok(())
    }

    /// Has a place that was not announced report every store, whatever may be done there: who
    /// stores is then allowed to.
    pub(super) fn protect_again(
        &self,
        means: &Means,
        pages: Pages,
        span: Span,
    ) -> Result<(), Trouble> {
        for piece in span.pieces(CHUNK_BYTES).filter(|piece| self.is_protectable(*piece)) {
            let address = pages.address + (piece.offset - span.offset);
            means.protect(Pages { address, bytes: piece.bytes })?;
        }
        Ok(())
    }

    /// Nobody stores into these pages any more; what is there is still read.
    pub fn protect(self: &Arc<Self>, span: Span) -> io::Result<()> {
        self.watch();
        self.make_protectable(span);
        if span.bytes <= WHOLE_BYTES_MAX {
            self.each(span, &|means, pages, _| means.protect(pages));
            return Ok(());
        }
        // The helpers first: their programs may still fill holes.
        self.each(span, &|means, pages, _| means.close(pages));
        for piece in self.file.used(span, WHOLE_BYTES_MAX)? {
            self.mark_protected(piece);
        }
        Ok(())
    }

    /// Where a userfaultfd serves these pages stores are reported, also into one that is a hole.
    fn mark_protected(self: &Arc<Self>, span: Span) {
        self.each(span, &|means, pages, _| match means {
            Means::Userfaultfd(_, uffd) => uffd.protect(pages),
            Means::Helper(_) | Means::Gone(_) => Ok(()),
        });
    }

    /// Puts content into pages that are holes here, or that nobody may store into: afterwards they
    /// are read, by whoever is woken. `content` is a part of a locked buffer, as long as the span.
    /// Helpers are not told: what is a hole, or may not be stored into, they have closed.
    pub fn fill(self: &Arc<Self>, span: Span, content: &[u8]) -> io::Result<()> {
        assert_eq!(span.bytes, content.len() as u64, "content of another length");
        self.watch();
        self.make_protectable(span);
        self.mark_protected(span);
        self.file.write(span.offset, content)?;
        self.heal(span, Protected::Yes);
        Ok(())
    }

    /// Gives pages up that nobody stores into any more: they are holes, and whoever touches one
    /// waits.
    pub fn punch(self: &Arc<Self>, span: Span) -> io::Result<()> {
        self.watch();
        self.each(span, &|means, pages, _| means.close(pages));
        self.file.punch(span)
    }

    /// Stores go on, and whoever waits there. The pages are there.
    pub fn open(self: &Arc<Self>, span: Span) {
        self.heal(span, Protected::No);
        for piece in span.pieces(CHUNK_BYTES) {
            let is_protectable = self.is_protectable(piece);
            self.each(piece, &|means, pages, _| match means {
                Means::Helper(_) | Means::Gone(_) => Ok(()),
                Means::Userfaultfd(_, uffd) => match uffd.unprotect(pages) {
                    // A predecessor may have protected what we know nothing of.
                    Err(Trouble::NotThere) if !is_protectable => open_one_by_one(uffd, pages),
                    done => done,
                },
            });
        }
    }

    /// Maps pages that were just filled wherever the file is, for reading, and wakes who waits
    /// there: that saves them a fault each.
    pub fn show(self: &Arc<Self>, span: Span) {
        self.each(span, &|means, pages, _| match means {
            Means::Userfaultfd(_, uffd) => uffd.show(pages, Protected::Yes),
            Means::Helper(_) | Means::Gone(_) => Ok(()),
        });
    }

    /// The same for writing.
    pub fn show_open(self: &Arc<Self>, span: Span) {
        self.heal(span, Protected::No);
        for piece in span.pieces(CHUNK_BYTES) {
            let is_protectable = self.is_protectable(piece);
            self.each(piece, &|means, pages, _| match means {
                Means::Helper(_) | Means::Gone(_) => Ok(()),
                Means::Userfaultfd(_, uffd) => match uffd.show(pages, Protected::No) {
                    Err(Trouble::NotThere) if !is_protectable => open_one_by_one(uffd, pages),
                    done => done,
                },
            });
        }
    }

    /// Whoever waits there tries again.
    pub fn wake(self: &Arc<Self>, span: Span) {
        self.each(span, &|means, pages, _| means.wake(pages));
    }

    /// The pages are lost: whoever touches one, or waits for it, gets SIGBUS, or EFAULT in a system
    /// call. Where the kernel cannot do that, the error is `Unsupported`.
    pub fn poison(self: &Arc<Self>, span: Span) -> io::Result<()> {
        self.punch(span)?;
        if self.can_poison == CanPoison::No {
            return Err(io::ErrorKind::Unsupported.into());
        }
        self.poisoned.lock().extend(each_page(span));
        self.each(span, &|means, pages, _| match means {
            Means::Helper(_) | Means::Gone(_) => Ok(()),
            Means::Userfaultfd(_, uffd) => one_by_one(pages, |page| {
                // A mark of protection would be in its way.
                match uffd.unprotect(page) {
                    Err(Trouble::NotThere) => {}
                    done => done?,
                }
                // Poisoned already.
                harmless_if_there(uffd.poison(page))
            }),
        });
        Ok(())
    }

    /// Whether some of it gives SIGBUS.
    pub fn is_poisoned(&self, span: Span) -> bool {
        self.poisoned.lock().range(span.offset..span.end()).next().is_some()
    }

    /// Where it gives SIGBUS.
    pub fn poisoned(&self) -> Vec<u64> {
        self.poisoned.lock().iter().copied().collect()
    }

    /// Maps pages that were poisoned and are there now.
    fn heal(self: &Arc<Self>, span: Span, protected: Protected) {
        let poisoned: Vec<u64> =
            self.poisoned.lock().range(span.offset..span.end()).copied().collect();
        for offset in poisoned {
            let page = page_at(offset);
            if !self.file.present(page).is_ok_and(|there| !there.is_empty()) {
                continue;
            }
            self.each(page, &|means, pages, _| match means {
                Means::Helper(_) | Means::Gone(_) => Ok(()),
                // One that attached later has no poison there.
                Means::Userfaultfd(_, uffd) => harmless_if_there(uffd.map(pages, protected)),
            });
            self.poisoned.lock().remove(&offset);
        }
    }

    /// Who maps it where, as far as we were told.
    pub fn attachments(self: &Arc<Self>) -> Vec<Attachment> {
        self.families().iter().flat_map(|family| family.attachments(self)).collect()
    }

    /// A family that maps it from now on. Under the lock of the family.
    pub(super) fn join(&self, family: &Arc<Family>) {
        let mut families = self.families.lock();
        if !families.iter().any(|known| Arc::ptr_eq(known, family)) {
            families.push(family.clone());
        }
    }

    /// A family that maps it no more. Under the lock of the family.
    pub(super) fn leave(&self, family: &Arc<Family>) {
        self.families.lock().retain(|known| !Arc::ptr_eq(known, family));
    }

    pub(super) fn families(&self) -> Vec<Arc<Family>> {
        self.families.lock().clone()
    }

    fn is_protectable(&self, span: Span) -> bool {
        match &*self.watch.lock() {
            Watch::Native => false,
            Watch::All => true,
            Watch::Missing(chunks) => chunks.contains(&(span.offset / CHUNK_BYTES * CHUNK_BYTES)),
        }
    }

    /// Has stores watched in the chunks of which this is a part.
    fn make_protectable(self: &Arc<Self>, span: Span) {
        for piece in span.pieces(CHUNK_BYTES) {
            let offset = piece.offset / CHUNK_BYTES * CHUNK_BYTES;
            let is_new = match &mut *self.watch.lock() {
                Watch::Missing(chunks) => chunks.insert(offset),
                Watch::Native | Watch::All => false,
            };
            if is_new {
                let chunk = Span { offset, bytes: CHUNK_BYTES };
                let watched = Watched::MissingAndProtected;
                self.each(chunk, &|means, pages, _| means.register(pages, watched));
            }
        }
    }

    /// Does something at every place where a part of the file is mapped.
    fn each(self: &Arc<Self>, part: Span, work: &Work<'_>) {
        for family in self.families() {
            family.each(self, part, work);
        }
    }
}

fn page_bytes() -> u64 {
    rustix::param::page_size() as u64
}

fn page_at(offset: u64) -> Span {
    Span { offset, bytes: page_bytes() }
}

fn each_page(span: Span) -> impl Iterator<Item = u64> {
    (span.offset..span.end()).step_by(rustix::param::page_size())
}

fn one_by_one(
    pages: Pages,
    mut work: impl FnMut(Pages) -> Result<(), Trouble>,
) -> Result<(), Trouble> {
    let bytes = page_bytes();
    let mut addresses =
        (pages.address..pages.address + pages.bytes).step_by(rustix::param::page_size());
    addresses.try_for_each(|address| work(Pages { address, bytes }))
}

fn open_one_by_one(uffd: &Userfaultfd, pages: Pages) -> Result<(), Trouble> {
    one_by_one(pages, |page| match uffd.unprotect(page) {
        Err(Trouble::NotThere) => uffd.wake(page),
        done => done,
    })
}

fn harmless_if_there(done: Result<(), Trouble>) -> Result<(), Trouble> {
    match done {
        Err(Trouble::AlreadyThere) => Ok(()),
        done => done,
    }
}
