//! How a replica leaves when nobody uses it any more: first what it owns goes home, as many pages
//! at
//! a time as fit into a frame, then what it reads is dropped, then it says so.
#![forbid(unsafe_code)]

use dipc_wire::memory::{Content, Granted, PageNo, ToHome};

use super::step::Step;
use super::{Copy, CopyRecord, Effect, Lease, Leaving, Link, Replica, WALK};
use crate::copies::{Place, Records};

impl Replica {
    pub(super) fn attached(&mut self) {
        if let Leaving::GivesUp(_) = self.leaving {
            self.leaving = Leaving::Stays;
        }
    }

    pub(super) fn detached<R: Records<CopyRecord>>(&mut self, step: &mut Step<'_, R>) {
        self.waiting.clear();
        if self.leaving == Leaving::Stays {
            self.leaving = Leaving::GivesUp(PageNo(0));
            self.leave(step);
        }
    }

    /// Goes on leaving, if it does.
    pub(super) fn leave<R: Records<CopyRecord>>(&mut self, step: &mut Step<'_, R>) {
        let may_talk = self.link == Link::Up && self.lease == Lease::Runs;
        match self.leaving {
            Leaving::GivesUp(from) if may_talk => self.give_up(from, step),
            Leaving::Drops(from) => self.drop_reading(from, step),
            _ => {}
        }
    }

    /// What was owned travels as many pages at a time as a frame takes, each when home has
    /// confirmed an earlier one.
    fn give_up<R: Records<CopyRecord>>(&mut self, mut from: PageNo, step: &mut Step<'_, R>) {
        for _ in 0..WALK {
            self.leaving = Leaving::GivesUp(from);
            if self.unconfirmed.len() >= self.config.frame_pages {
                return;
            }
            let Some(page) = step.next(from, self.config.pages) else {
                if self.unconfirmed.is_empty() {
                    self.leaving = Leaving::Drops(PageNo(0));
                    step.effects.push(Effect::Continue);
                }
                return;
            };
            let record = step.records.get(page);
            if matches!(record.copy, Copy::Owned | Copy::OwnedAside) {
                step.give_up(page, record);
                self.unconfirmed.insert(page);
                let granted = Granted { page, number: record.number, content: Content::Raw };
                step.send_content(ToHome::Released { granted }, Place::Aside);
            }
            from = PageNo(page.0 + 1);
        }
        self.leaving = Leaving::GivesUp(from);
        step.effects.push(Effect::Continue);
    }

    /// What was only read needs no word: `Leave` says it, once all of it is gone.
    fn drop_reading<R: Records<CopyRecord>>(&mut self, mut from: PageNo, step: &mut Step<'_, R>) {
        for _ in 0..WALK {
            let Some(page) = step.next(from, self.config.pages) else {
                self.leaving = Leaving::Said;
                if self.link == Link::Up {
                    step.send(ToHome::Leave);
                }
                return;
            };
            let record = step.records.get(page);
            if matches!(record.copy, Copy::Shared | Copy::SharedAside) {
                step.drop_reading(page, record);
            }
            from = PageNo(page.0 + 1);
        }
        self.leaving = Leaving::Drops(from);
        step.effects.push(Effect::Continue);
    }
}
