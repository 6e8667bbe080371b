//! What is recorded of the pages of a segment, in mapped files on tmpfs: a dipcd that was killed
//! leaves its successor, and the keeper, what the machines of dipc-core had decided.
#![forbid(unsafe_code)]

use std::io;
use std::path::Path;

use dipc_core::copies::Records;
use dipc_core::directory::PageRecord;
use dipc_core::replica::CopyRecord;
use dipc_wire::memory::{PageNo, Replica};

use crate::sys::words::Words;

/// Words of one page's record at home.
const PAGE_WORDS: usize = 3;
const DIRECTORY: &str = "directory";

/// The directory's records, at home.
#[derive(Debug)]
pub struct HomeRecords(Words);

impl HomeRecords {
    /// Opens those in a segment's directory, or makes them.
    pub fn open(dir: &Path, pages: u32) -> io::Result<HomeRecords> {
        Words::open(&dir.join(DIRECTORY), pages as usize * PAGE_WORDS).map(HomeRecords)
    }

    /// Records this of a page.
    pub fn set(&self, page: PageNo, record: &PageRecord) {
        for (word, value) in record.stores() {
            self.0.set(page.0 as usize * PAGE_WORDS + word, value);
        }
    }
}

impl Records<PageRecord> for HomeRecords {
    fn get(&self, page: PageNo) -> PageRecord {
        let words = std::array::from_fn(|word| self.0.get(page.0 as usize * PAGE_WORDS + word));
        // One that nobody wrote: better no page than a wrong one.
        let lost = PageRecord { holding: dipc_core::directory::Holding::Lost, ..PageRecord::NEVER };
        PageRecord::decode(words).unwrap_or(lost)
    }

    fn next(&self, from: PageNo) -> Option<PageNo> {
        let word = self.0.next(from.0 as usize * PAGE_WORDS)?;
        u32::try_from(word / PAGE_WORDS).ok().map(PageNo)
    }
}

/// A replica's records.
#[derive(Debug)]
pub struct CopyRecords(Words);

impl CopyRecords {
    /// Opens those of a replica in a segment's directory, or makes them.
    pub fn open(dir: &Path, replica: Replica, pages: u32) -> io::Result<CopyRecords> {
        Words::open(&dir.join(CopyRecords::file_name(replica)), pages as usize).map(CopyRecords)
    }

    /// What the file of a replica's records is called.
    pub fn file_name(replica: Replica) -> String {
        format!("replica-{}", replica.0)
    }

    /// Records this of a page.
    pub fn set(&self, page: PageNo, record: &CopyRecord) {
        self.0.set(page.0 as usize, record.encode());
    }

    /// Records nothing any more.
    pub fn clear(&self) -> io::Result<()> {
        self.0.clear()
    }
}

impl Records<CopyRecord> for CopyRecords {
    fn get(&self, page: PageNo) -> CopyRecord {
        CopyRecord::decode(self.0.get(page.0 as usize)).unwrap_or(CopyRecord::NEVER)
    }

    fn next(&self, from: PageNo) -> Option<PageNo> {
        u32::try_from(self.0.next(from.0 as usize)?).ok().map(PageNo)
    }
}
