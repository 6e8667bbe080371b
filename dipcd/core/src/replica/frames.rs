//! What a replica does with
//! each frame from its home.
#![forbid(unsafe_code)]

use dipc_wire::memory::{Access, Content, GrantNo, Granted, PageNo, Refusal, ToHome, ToReplica};

use super::step::Step;
use super::{Breach, Copy, CopyRecord, Effect, Leaving, Link, Replica, Waiting};
use crate::copies::{CopyStep, Failure, Place, Records, Run, Source};

impl Replica {
    pub(super) fn frame<R: Records<CopyRecord>>(
        &mut self,
        frame: ToReplica,
        step: &mut Step<'_, R>,
    ) {
        let is_last_word = matches!(frame, ToReplica::Left | ToReplica::Resumed);
        if self.link != Link::Up || (self.has_said_goodbye() && !is_last_word) {
            return;
        }
        let outcome = match frame {
            ToReplica::Grant { access, pages } => self.granted(access, &pages, step),
            ToReplica::Recall { page, number, wanted } => self.recalled(page, number, wanted, step),
            ToReplica::Invalidate { page, number } => self.invalidated(page, number, step),
            ToReplica::Confirm { page, number } => self.confirmed(page, number, step),
            ToReplica::Refused { page, refusal } => {
                if self.waiting.remove(&page).is_some() {
                    let failure = match refusal {
                        Refusal::Lost => Failure::Lost,
                        Refusal::Gone => Failure::Gone,
                    };
                    step.copy(CopyStep::Fail { page, failure });
                }
                Ok(())
            }
            ToReplica::Left => {
                let said = self.leaving == Leaving::Said;
                step.effects.push(if said { Effect::Left } else { Effect::Void });
                self.leaving = Leaving::Gone;
                Ok(())
            }
            ToReplica::Resumed => {
                self.resumed(step);
                Ok(())
            }
            // Said already: a report is the first thing on a link.
            ToReplica::ReportPlease => Ok(()),
            // Said already: it was its shell that put it off.
            ToReplica::AckPlease { .. } => Ok(()),
            ToReplica::Part { .. } => Err(Breach::Impossible),
        };
        if let Err(reason) = outcome {
            step.effects.push(Effect::Break { reason });
            self.hang_up();
        }
    }

    /// Pages of one frame: growing, in the segment.
    fn check(&self, pages: &[Granted]) -> Result<(), Breach> {
        if pages.iter().any(|granted| granted.page.0 >= self.config.pages) {
            return Err(Breach::OutOfRange);
        }
        let grows = pages.is_sorted_by(|one, next| one.page < next.page);
        if grows && !pages.is_empty() { Ok(()) } else { Err(Breach::Disorder) }
    }

    /// A replica that gives everything up gives this up as well.
    fn granted<R: Records<CopyRecord>>(
        &mut self,
        access: Access,
        pages: &[Granted],
        step: &mut Step<'_, R>,
    ) -> Result<(), Breach> {
        self.check(pages)?;
        match access {
            Access::Read => self.may_read(pages, step)?,
            Access::Write => self.may_write(pages, step)?,
        }
        if let (Leaving::GivesUp(from), Some(first)) = (&mut self.leaving, pages.first()) {
            *from = first.page.min(*from);
            step.effects.push(Effect::Continue);
        }
        Ok(())
    }

    /// Grants for reading: what nobody waits for may be a trigger of read-ahead and goes aside.
    fn may_read<R: Records<CopyRecord>>(
        &mut self,
        pages: &[Granted],
        step: &mut Step<'_, R>,
    ) -> Result<(), Breach> {
        let is_new = |granted: &&Granted| granted.number > step.records.get(granted.page).number;
        let new: Vec<_> = pages.iter().filter(is_new).copied().collect();
        let may = |granted: &Granted| {
            let copy = step.records.get(granted.page).copy;
            granted.content != Content::None
                && matches!(copy, Copy::Never | Copy::Nothing | Copy::Shared | Copy::SharedAside)
        };
        if !new.iter().all(may) {
            return Err(Breach::Impossible);
        }
        // The same steps of all pages side by side, so that the shell may do them as one.
        for granted in &new {
            if step.records.get(granted.page).copy == Copy::Never {
                step.record(granted.page, CopyRecord::NEVER.number, Copy::Nothing);
            }
        }
        let is_aside = |granted: &Granted, replica: &Replica| {
            !replica.waiting.contains_key(&granted.page) && replica.ahead.is_trigger(granted.page)
        };
        for Granted { page, content, .. } in new.iter().filter(|new| !is_aside(new, self)) {
            let from = Source::Frame(*content);
            step.copy(CopyStep::Fill { page: *page, from });
        }
        for granted in &new {
            let Granted { page, number, content } = *granted;
            let was = step.records.get(page).copy;
            match (is_aside(granted, self), was) {
                (true, Copy::Shared) => step.record(page, number, Copy::Shared),
                (true, _) => {
                    step.copy(CopyStep::Keep { page, from: Source::Frame(content) });
                    step.record(page, number, Copy::SharedAside);
                }
                (false, _) => {
                    step.record(page, number, Copy::Shared);
                    if was == Copy::SharedAside {
                        step.copy(CopyStep::FreeAside(Run::one(page)));
                    }
                }
            }
        }
        for granted in &new {
            self.may_go_on(granted.page, Access::Read, step);
        }
        Ok(())
    }

    /// Grants for writing: each is acknowledged, also one that was installed before.
    fn may_write<R: Records<CopyRecord>>(
        &mut self,
        pages: &[Granted],
        step: &mut Step<'_, R>,
    ) -> Result<(), Breach> {
        let mut installed = Vec::with_capacity(pages.len());
        for &Granted { page, number, content } in pages {
            let record = step.records.get(page);
            if number > record.number && !self.install(page, number, content, record, step)? {
                // It has no copy any more, which home could not know.
                self.ask_with_content(page, step);
                continue;
            }
            installed.push((page, number));
        }
        if !installed.is_empty() {
            step.send(ToHome::Ack { pages: installed });
        }
        Ok(())
    }

    /// Makes a page this replica's own. False if that takes a content which is not here.
    fn install<R: Records<CopyRecord>>(
        &mut self,
        page: PageNo,
        number: GrantNo,
        content: Content,
        record: CopyRecord,
        step: &mut Step<'_, R>,
    ) -> Result<bool, Breach> {
        let from = match (content, record.copy) {
            (_, Copy::Sole | Copy::Owned | Copy::Kept | Copy::OwnedAside) => {
                return Err(Breach::Impossible);
            }
            (Content::None, Copy::Never | Copy::Nothing) => return Ok(false),
            (Content::None, Copy::Shared) => None,
            (Content::None, Copy::SharedAside) => Some(Source::Node),
            (content, _) => Some(Source::Frame(content)),
        };
        if record.copy == Copy::Never {
            step.record(page, record.number, Copy::Nothing);
        }
        if let Some(from) = from {
            step.copy(CopyStep::Fill { page, from });
        }
        step.record(page, number, Copy::Owned);
        if record.copy == Copy::SharedAside {
            step.copy(CopyStep::FreeAside(Run::one(page)));
        }
        step.copy(CopyStep::Open(page));
        self.may_go_on(page, Access::Write, step);
        Ok(true)
    }

    /// A page is accessible: who waits goes on, or waits for more.
    fn may_go_on<R: Records<CopyRecord>>(
        &mut self,
        page: PageNo,
        access: Access,
        step: &mut Step<'_, R>,
    ) {
        let Some(waiting) = self.waiting.get_mut(&page) else { return };
        if waiting.wanted <= access {
            self.waiting.remove(&page);
        } else if waiting.asked == Some(access) {
            waiting.asked = None;
            self.ask(page, step);
        }
        step.copy(CopyStep::Wake(page));
    }

    fn ask_with_content<R>(&mut self, page: PageNo, step: &mut Step<'_, R>) {
        let (access, since_ms) = (Access::Write, step.now_ms);
        let asked = Some(access);
        self.waiting.entry(page).or_insert(Waiting { wanted: access, asked, since_ms }).asked =
            asked;
        step.send(ToHome::Fault { first: page, ahead: 0, access });
    }

    /// `Recall`. What was sent on this link already is on its way.
    fn recalled<R: Records<CopyRecord>>(
        &mut self,
        page: PageNo,
        number: GrantNo,
        wanted: Access,
        step: &mut Step<'_, R>,
    ) -> Result<(), Breach> {
        let record = self.record_of(page, step)?;
        let of = record.number;
        let (keeps, from) = match (record.copy, wanted) {
            (Copy::Owned, Access::Read) => {
                step.copy(CopyStep::Protect(Run::one(page)));
                step.record(page, of, Copy::Sole);
                (Some(Access::Read), Place::File)
            }
            (Copy::Owned | Copy::OwnedAside, _) => {
                step.give_up(page, record);
                (None, Place::Aside)
            }
            (Copy::Sole | Copy::Kept, _) => return Ok(()),
            (Copy::Never | Copy::Nothing | Copy::Shared | Copy::SharedAside, _) => {
                return Err(Breach::Impossible);
            }
        };
        self.unconfirmed.insert(page);
        let granted = Granted { page, number, content: Content::Raw };
        step.send_content(ToHome::Recalled { granted, of, keeps }, from);
        Ok(())
    }

    /// `Invalidate`. Home may think that a reader is here when there is none any more.
    fn invalidated<R: Records<CopyRecord>>(
        &mut self,
        page: PageNo,
        number: GrantNo,
        step: &mut Step<'_, R>,
    ) -> Result<(), Breach> {
        let record = self.record_of(page, step)?;
        match record.copy {
            Copy::Never | Copy::Nothing => {}
            Copy::Shared | Copy::SharedAside => step.drop_reading(page, record),
            Copy::Sole | Copy::Owned | Copy::Kept | Copy::OwnedAside => {
                return Err(Breach::Impossible);
            }
        }
        step.send(ToHome::Invalidated { page, number });
        Ok(())
    }

    /// `Confirm`: home has the content of this copy.
    fn confirmed<R: Records<CopyRecord>>(
        &mut self,
        page: PageNo,
        number: GrantNo,
        step: &mut Step<'_, R>,
    ) -> Result<(), Breach> {
        let record = self.record_of(page, step)?;
        if record.number != number {
            return Ok(());
        }
        match record.copy {
            Copy::Sole => step.record(page, number, Copy::Shared),
            Copy::Kept => {
                step.record(page, number, Copy::Nothing);
                step.copy(CopyStep::FreeAside(Run::one(page)));
            }
            _ => return Ok(()),
        }
        self.unconfirmed.remove(&page);
        self.leave(step);
        Ok(())
    }

    fn record_of<R: Records<CopyRecord>>(
        &self,
        page: PageNo,
        step: &Step<'_, R>,
    ) -> Result<CopyRecord, Breach> {
        if page.0 < self.config.pages {
            Ok(step.records.get(page))
        } else {
            Err(Breach::OutOfRange)
        }
    }
}
