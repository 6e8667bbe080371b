//! One step of a replica: what it
//! looks at, and the words for what it says.
#![forbid(unsafe_code)]

use dipc_wire::memory::{GrantNo, PageNo, ToHome};

use super::links::revoke_one;
use super::{Copy, CopyRecord, Effect};
use crate::copies::{CopyStep, Failure, Place, Records, Run, Source};

/// What one step looks at and says.
pub(super) struct Step<'a, R> {
    pub now_ms: u64,
    pub records: &'a R,
    pub effects: &'a mut Vec<Effect>,
}

impl<R: Records<CopyRecord>> Step<'_, R> {
    pub fn next(&self, from: PageNo, pages: u32) -> Option<PageNo> {
        self.records.next(from).filter(|page| page.0 < pages)
    }

    /// Whoever waits for a page gets SIGBUS, and the page is punched. What is here goes aside
    /// first: one that is read is waited for by who would write it, one that is owned when the
    /// lease is over.
    pub fn fail(&mut self, page: PageNo, failure: Failure) {
        let record = self.records.get(page);
        match record.copy {
            Copy::Shared => {
                self.copy(CopyStep::Keep { page, from: Source::Node });
                self.record(page, record.number, Copy::SharedAside);
            }
            Copy::Sole | Copy::Owned => revoke_one(page, record, self.effects),
            _ => {}
        }
        self.copy(CopyStep::Fail { page, failure });
    }
}

impl<R> Step<'_, R> {
    pub fn copy(&mut self, step: CopyStep) {
        self.effects.push(Effect::Copy(step));
    }

    pub fn record(&mut self, page: PageNo, number: GrantNo, copy: Copy) {
        self.effects.push(Effect::Record { page, record: CopyRecord { number, copy } });
    }

    pub fn send(&mut self, frame: ToHome) {
        self.send_content(frame, Place::File);
    }

    pub fn send_content(&mut self, frame: ToHome, from: Place) {
        self.effects.push(Effect::Send { frame, from });
    }

    /// What lies aside is used again.
    pub fn bring_back(&mut self, page: PageNo, record: CopyRecord, copy: Copy) {
        self.copy(CopyStep::Fill { page, from: Source::Node });
        self.record(page, record.number, copy);
        self.copy(CopyStep::FreeAside(Run::one(page)));
    }

    /// What home has as well is dropped.
    pub fn drop_reading(&mut self, page: PageNo, record: CopyRecord) {
        self.record(page, record.number, Copy::Nothing);
        let run = Run::one(page);
        self.copy(match record.copy {
            Copy::SharedAside => CopyStep::FreeAside(run),
            _ => CopyStep::Punch(run),
        });
    }

    /// What is owned goes aside until home has it.
    pub fn give_up(&mut self, page: PageNo, record: CopyRecord) {
        if record.copy == Copy::Owned {
            self.copy(CopyStep::Protect(Run::one(page)));
            self.copy(CopyStep::Keep { page, from: Source::Node });
        }
        self.record(page, record.number, Copy::Kept);
        if record.copy == Copy::Owned {
            self.copy(CopyStep::Punch(Run::one(page)));
        }
    }
}
