//! What a replica does when its link to
//! home comes and goes, and its lease with it.
#![forbid(unsafe_code)]

use dipc_wire::memory::{Content, Granted, Holds, PageNo, PageReport, ToHome};
use dipc_wire::peer::Piece;

use super::step::Step;
use super::{Copy, CopyRecord, Effect, Lease, Leaving, Link, Replica};
use crate::copies::{CopyStep, Failure, Place, Records, Run, Source};

impl Replica {
    pub(super) fn hang_up(&mut self) {
        if self.link != Link::Lost {
            self.link = Link::Down;
        }
        for waiting in self.waiting.values_mut() {
            waiting.asked = None;
        }
    }

    /// Nobody waits for home any more.
    pub(super) fn home_lost<R: Records<CopyRecord>>(&mut self, step: &mut Step<'_, R>) {
        self.link = Link::Lost;
        for page in std::mem::take(&mut self.waiting).into_keys() {
            step.fail(page, Failure::Gone);
        }
    }

    /// Says what home may not know, once the link is up and the lease runs.
    pub(super) fn report<R: Records<CopyRecord>>(&mut self, step: &mut Step<'_, R>) {
        if self.link != Link::Mute || matches!(self.lease, Lease::Over(_)) {
            return;
        }
        self.link = Link::Up;
        let mut pages: Vec<_> =
            self.unconfirmed.iter().chain(self.waiting.keys()).copied().collect();
        pages.sort_unstable();
        pages.dedup();
        let mut frame = Vec::new();
        let mut lies = Place::File;
        for page in pages {
            let (report, place) = self.report_page(page, step.records.get(page));
            let Some(report) = report else { continue };
            if frame.len() == self.config.frame_pages || (place != lies && !frame.is_empty()) {
                let pages = std::mem::take(&mut frame);
                step.send_content(ToHome::Report { pages, piece: Piece::More }, lies);
            }
            lies = place;
            frame.push(report);
        }
        step.send_content(ToHome::Report { pages: frame, piece: Piece::Last }, lies);
    }

    fn report_page(&mut self, page: PageNo, record: CopyRecord) -> (Option<PageReport>, Place) {
        let (holds, content, place) = match record.copy {
            Copy::Kept => (Holds::Kept, Content::Raw, Place::Aside),
            Copy::Sole => (Holds::Shared, Content::Raw, Place::File),
            // Its programs wait for home's word, not for a page.
            Copy::Owned | Copy::OwnedAside => return (None, Place::File),
            Copy::Shared | Copy::SharedAside => (Holds::Shared, Content::None, Place::File),
            Copy::Never | Copy::Nothing => (Holds::Nothing, Content::None, Place::File),
        };
        let fault = self.waiting.get_mut(&page).map(|waiting| {
            waiting.asked = Some(waiting.wanted);
            waiting.wanted
        });
        let granted = Granted { page, number: record.number, content };
        (Some(PageReport { granted, holds, fault }), place)
    }

    /// Home says that everything here still counts.
    pub(super) fn resumed<R: Records<CopyRecord>>(&mut self, step: &mut Step<'_, R>) {
        if self.lease == Lease::Doubted {
            self.lease = Lease::Runs;
        }
        if self.leaving == Leaving::Said {
            step.send(ToHome::Leave);
        }
        let unasked = self.waiting.iter().filter(|(_, waiting)| waiting.asked.is_none());
        let unasked: Vec<_> = unasked.map(|(page, waiting)| (*page, waiting.wanted)).collect();
        for (page, wanted) in unasked {
            self.fault(page, wanted, step);
        }
        self.leave(step);
    }

    /// Writing ends everywhere at once, reading in rounds.
    pub(super) fn lease_ended<R: Records<CopyRecord>>(&mut self, step: &mut Step<'_, R>) {
        self.hang_up();
        step.copy(CopyStep::Protect(Run { first: PageNo(0), count: self.config.pages }));
        self.lease = Lease::Over(Some((Round::Readable, PageNo(0))));
        self.go_on(step);
    }

    /// Goes on with a walk over all pages.
    pub(super) fn go_on<R: Records<CopyRecord>>(&mut self, step: &mut Step<'_, R>) {
        let Lease::Over(at) = self.lease else { return self.leave(step) };
        if let Some(at) = at {
            self.revoke(at, step);
        }
        if let Lease::Over(Some(_)) = self.lease {
            step.effects.push(Effect::Continue);
        }
    }

    /// Takes some pages away.
    pub(super) fn revoke<R: Records<CopyRecord>>(
        &mut self,
        (round, from): (Round, PageNo),
        step: &mut Step<'_, R>,
    ) {
        let next = revoke(round, from, self.config.pages, step.records, step.effects);
        self.lease = Lease::Over(match (round, next) {
            (round, Some(next)) => Some((round, next)),
            (Round::Readable, None) => Some((Round::Owned, PageNo(0))),
            (Round::Owned, None) => None,
        });
    }
}

/// In which order pages are taken away at the end of a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Round {
    /// What home may have given to others who write it: that must be over before this node is lost
    /// to home.
    Readable,
    /// What this node owns. It is not written any more, and nobody else has it: for others it is
    /// lost, unless home gives them its last copy. So it may be read here until it lies aside,
    /// which takes longer.
    Owned,
}

/// Pages that one step of a round looks at.
const REVOKED: usize = 4096;

/// Takes some pages away at the end of a lease, from this one on: also for the keeper, when dipcd
/// is dead or stopped. Where to go on; `None` at the end of the round. Writing was taken from the
/// whole file before.
///
/// A copy that home has as well is dropped; one that it may not have goes aside. The file is
/// punched whatever the records say: dipcd may have been killed while it filled it. That is done in
/// runs, over holes too, for it takes long page by page.
pub fn revoke(
    round: Round,
    from: PageNo,
    pages: u32,
    records: &impl Records<CopyRecord>,
    effects: &mut Vec<Effect>,
) -> Option<PageNo> {
    let (mut next, mut punched) = (from, None);
    for _ in 0..REVOKED {
        let page = records.next(next).filter(|page| page.0 < pages);
        let Some(page) = page else {
            effects.extend(punched.map(punch));
            return None;
        };
        let record = records.get(page);
        match (round, record.copy) {
            (_, Copy::Never) => {}
            (Round::Readable, Copy::Owned) => effects.extend(punched.take().map(punch)),
            (Round::Readable, _) | (Round::Owned, Copy::Owned) => {
                revoke_one(page, record, effects);
                let first = punched.map_or(page, |run: Run| run.first);
                punched = Some(Run { first, count: page.0 - first.0 + 1 });
            }
            (Round::Owned, _) => {}
        }
        next = PageNo(page.0 + 1);
    }
    effects.extend(punched.map(punch));
    Some(next)
}

fn punch(run: Run) -> Effect {
    Effect::Copy(CopyStep::Punch(run))
}

/// What becomes of one page, before it is punched.
pub(super) fn revoke_one(page: PageNo, record: CopyRecord, effects: &mut Vec<Effect>) {
    let left = match record.copy {
        Copy::Never | Copy::Nothing | Copy::Shared | Copy::SharedAside => Copy::Nothing,
        Copy::Sole | Copy::Kept => Copy::Kept,
        Copy::Owned | Copy::OwnedAside => Copy::OwnedAside,
    };
    if matches!(record.copy, Copy::Sole | Copy::Owned) {
        effects.push(Effect::Copy(CopyStep::Keep { page, from: Source::Node }));
    }
    if left != record.copy {
        effects.push(Effect::Record { page, record: CopyRecord { copy: left, ..record } });
    }
    if record.copy == Copy::SharedAside {
        effects.push(Effect::Copy(CopyStep::FreeAside(Run::one(page))));
    }
}
