//! What a node has of a segment when its dipcd is dead: the file, the aside, the records. Contents
//! are version numbers.
#![forbid(unsafe_code)]

use std::fmt::Debug;

use dipc_core::copies::{CopyStep, Place, Records, Run, Source};
use dipc_core::directory::PageRecord;
use dipc_core::replica::CopyRecord;
use dipc_wire::memory::{Access, Content, PageNo};

/// A content: the number of the write that made it.
pub type Version = u32;

/// The contents behind one frame, by page.
pub type Contents = Vec<(PageNo, Version)>;

/// A node's file and aside of one segment.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Files {
    file: Vec<Option<Version>>,
    writable: Vec<bool>,
    aside: Vec<Option<Version>>,
}

impl Files {
    /// Home's: zeros, for everyone to write.
    pub fn of_home(pages: usize) -> Files {
        Files { file: vec![Some(0); pages], writable: vec![true; pages], aside: vec![None; pages] }
    }

    /// Another node's: holes.
    pub fn empty(pages: usize) -> Files {
        Files { file: vec![None; pages], writable: vec![false; pages], aside: vec![None; pages] }
    }

    /// What a program reads here, if it can.
    pub fn read(&self, page: PageNo) -> Option<Version> {
        self.file[at(page)]
    }

    /// Whether a program can write here.
    pub fn is_writable(&self, page: PageNo) -> bool {
        self.writable[at(page)]
    }

    /// Whether a program that does this need not wait.
    pub fn allows(&self, page: PageNo, access: Access) -> bool {
        match access {
            Access::Read => self.read(page).is_some(),
            Access::Write => self.read(page).is_some() && self.is_writable(page),
        }
    }

    /// A program writes.
    pub fn write(&mut self, page: PageNo, version: Version) {
        self.file[at(page)] = Some(version);
    }

    /// The content in one of the places.
    pub fn at(&self, page: PageNo, place: Place) -> Option<Version> {
        match place {
            Place::File => self.file[at(page)],
            Place::Aside => self.aside[at(page)],
        }
    }

    /// A planted bug: the aside copy is gone.
    pub fn drop_aside(&mut self, page: PageNo) {
        self.aside[at(page)] = None;
    }

    /// Does what a machine said. `Err` if there is nothing to do it with.
    pub fn carry_out(&mut self, step: CopyStep, arrived: &Contents) -> Result<(), String> {
        let source = |from, other: Option<Version>, page| match from {
            Source::Frame(Content::None) => None,
            Source::Frame(Content::Zero) => Some(0),
            Source::Frame(_) => arrived.iter().find(|(at, _)| *at == page).map(|(_, v)| *v),
            Source::Node => other,
        };
        match step {
            CopyStep::Protect(run) => pages(run).for_each(|page| self.writable[page] = false),
            CopyStep::Fill { page, from } => {
                let version = source(from, self.aside[at(page)], page);
                self.writable[at(page)] = false;
                self.file[at(page)] = Some(version.ok_or("LOST WRITE: nothing to fill with")?);
            }
            CopyStep::Keep { page, from } => {
                if from == Source::Node && self.writable[at(page)] {
                    return Err("an unprotected page is copied".into());
                }
                let version = source(from, self.file[at(page)], page);
                self.aside[at(page)] = Some(version.ok_or("LOST WRITE: nothing to keep")?);
            }
            CopyStep::Punch(run) => pages(run).for_each(|page| {
                self.writable[page] = false;
                self.file[page] = None;
            }),
            CopyStep::FreeAside(run) => pages(run).for_each(|page| self.aside[page] = None),
            CopyStep::Open(page) => {
                self.file[at(page)].ok_or("LOST WRITE: a hole is opened")?;
                self.writable[at(page)] = true;
            }
            CopyStep::Wake(_) => {}
            CopyStep::Fail { page, .. } => {
                self.writable[at(page)] = false;
                self.file[at(page)] = None;
            }
        }
        Ok(())
    }
}

fn at(page: PageNo) -> usize {
    page.0 as usize
}

fn pages(run: Run) -> impl Iterator<Item = usize> {
    (run.first.0..run.first.0 + run.count).map(|page| page as usize)
}

/// A record as the mapped file holds it: words, a hole being zeros.
pub trait InWords: Copy + Debug {
    type Words: Copy + Default + PartialEq + Debug;
    fn from_words(words: Self::Words) -> Self;
    fn store(self, words: &mut Self::Words);
}

impl InWords for PageRecord {
    type Words = [u64; 3];

    fn from_words(words: [u64; 3]) -> PageRecord {
        PageRecord::decode(words).expect("a record of ours")
    }

    fn store(self, words: &mut [u64; 3]) {
        self.stores().for_each(|(at, word)| words[at] = word);
    }
}

impl InWords for CopyRecord {
    type Words = u64;

    fn from_words(word: u64) -> CopyRecord {
        CopyRecord::decode(word).expect("a record of ours")
    }

    fn store(self, word: &mut u64) {
        *word = self.encode();
    }
}

/// A file of records.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Table<W>(Vec<W>);

impl<W: Copy + Default> Table<W> {
    /// All holes.
    pub fn new(pages: usize) -> Table<W> {
        Table(vec![W::default(); pages])
    }

    /// Records something.
    pub fn set<T: InWords<Words = W>>(&mut self, page: PageNo, record: T) {
        record.store(&mut self.0[at(page)]);
    }
}

impl<T: InWords> Records<T> for Table<T::Words> {
    fn get(&self, page: PageNo) -> T {
        T::from_words(self.0[at(page)])
    }

    fn next(&self, from: PageNo) -> Option<PageNo> {
        let is_there = |(_, words): &(usize, &T::Words)| **words != T::Words::default();
        let mut rest = self.0.iter().enumerate().skip(at(from));
        rest.find(is_there).map(|(page, _)| PageNo(u32::try_from(page).expect("few pages")))
    }
}
