//! A segment whose last other replica has gone: home takes back what still lies aside, and then its
//! programs use the segment as the kernel's own again, with nothing watched.
//!
//! The pages are taken back as if home's programs touched them, some at a time, so that nobody
//! waits long behind it; a page that is lost keeps the segment watched.
#![forbid(unsafe_code)]

use dipc_core::copies::Records;
use dipc_core::directory::{Event, Holding};
use dipc_wire::ids::ObjectId;
use dipc_wire::memory::{Access, PageNo};

use super::node::Memory;
use super::pager::content::Contents;
use super::pager::segment::{Locked, Segment};

/// Pages that are taken back at a time.
const PAGES: usize = 512;

/// Goes back to native access, if nobody else has the segment.
pub fn go_native(memory: &Memory, id: ObjectId) {
    let Some(segment) = memory.find(id) else { return };
    let mut from = PageNo(0);
    while let Some(next) = take_back(&segment, from) {
        from = next;
    }
    let locked = segment.lock();
    // Somebody may have attached meanwhile.
    if has_everything(&locked) {
        stop_watching(locked, id);
    }
}

/// Takes some pages back; where to go on.
fn take_back(segment: &Segment, mut from: PageNo) -> Option<PageNo> {
    let mut locked = segment.lock();
    for _ in 0..PAGES {
        let home = locked.state.home.as_ref().filter(|home| home.is_alone())?;
        let page = home.records.next(from).filter(|page| page.0 < segment.geometry.pages)?;
        if home.records.get(page).holding == Holding::Lost {
            return None;
        }
        if home.access(page) != Some(Access::Write) {
            let event = Event::Fault { page, access: Access::Write };
            locked.step_home(event, &Contents::none());
        }
        from = PageNo(page.0 + 1);
    }
    Some(from)
}

fn has_everything(locked: &Locked<'_>) -> bool {
    let Some(home) = locked.state.home.as_ref().filter(|home| home.is_alone()) else {
        return false;
    };
    let is_ours = |(_, access): &(_, Access)| *access == Access::Write;
    let held = home.held();
    held.len() == 1 && held.iter().all(is_ours) && held[0].0 == home.file.file.span()
}

fn stop_watching(mut locked: Locked<'_>, id: ObjectId) {
    if let Some(home) = &mut locked.state.home {
        home.shared = false;
        home.file.mappings.unwatch();
        tracing::debug!(op = "alone", %id, "nothing is watched any more");
    }
}
