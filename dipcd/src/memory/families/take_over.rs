//! After a restart: who is served by which trap, and what maps what, found again from the keeper's
//! descriptors, the sentinel pages and /proc/PID/maps.
//!
//! What a predecessor left undone is done between finding them and serving them: a page that is
//! punched must first be closed to everybody who has it open.
//!
//! Faults that a dead predecessor read are not reported again; waking a whole range makes them. A
//! process that maps one of our files open to access, and that no trap serves, could read zeros in
//! silence: it is ended.
#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use dipc_wire::client::Mm;
use dipc_wire::keeper::Held;

use super::family::Family;
use super::means::Means;
use super::space::{AddressSpace, Process};
use super::{Families, Registry};
use crate::memory::process_maps::{self, Maps, Permission};

impl Families {
    /// Goes on with what a predecessor held. Every file that may be mapped has its mappings, and
    /// what is watched there is said already ([`super::Mappings::watch`]). `before_serving` is
    /// called when everybody is known who maps one, and before any fault is heard of.
    pub fn take_over(
        &self,
        traps: Vec<(Held, Arc<OwnedFd>)>,
        before_serving: impl FnOnce(),
    ) -> io::Result<()> {
        for (held, fd) in traps {
            let Held::Trap { mm, trap, sentinel } = held else { continue };
            let means = Means::adopt(trap, fd, &self.registry.patience);
            let family = Family::new(&self.registry)?;
            // A child that its predecessor had no time to name is named at the end of this.
            family.with(|state| family.add(state, AddressSpace::new(mm, means, sentinel)))?;
        }
        for pid in process_maps::processes()? {
            self.registry.settle_in(pid);
        }
        before_serving();
        for family in self.registry.all_families() {
            family.wake_all();
            family.start()?;
        }
        Ok(())
    }
}

impl Registry {
    /// Gives a process its address space, or ends it.
    fn settle_in(&self, pid: u32) {
        let Ok(maps) = Maps::of(pid) else { return };
        if let Some((mm, family)) = self.space_of(pid, &maps) {
            let Ok(process) = Process::of(pid) else { return };
            return family.with(|state| {
                let Some(at) = state.place_of(mm) else { return };
                state.spaces[at].process = Some(process);
                family.look_again(state, at);
                // What was protected there is so still.
                state.spaces[at].unsure.clear();
            });
        }
        let is_open = |mapping: &process_maps::Mapping| {
            mapping.permission != Permission::CLOSED && self.mappings_of(mapping.file).is_some()
        };
        if !maps.ours.iter().any(is_open) {
            return;
        }
        // A child may have been seen being forked since.
        if self.space_of(pid, &maps).is_none()
            && let Ok(process) = Process::of(pid)
        {
            tracing::warn!(op = "take_over", pid, "it maps a segment that nobody serves: killed");
            process.kill();
        }
    }

    /// The address space whose number stands in a process.
    fn space_of(&self, pid: u32, maps: &Maps) -> Option<(Mm, Arc<Family>)> {
        let mut by_sentinel: HashMap<u64, Vec<(Mm, Arc<Family>)>> = HashMap::new();
        for family in self.all_families() {
            family.with(|state| {
                for space in &state.spaces {
                    let same = by_sentinel.entry(space.sentinel).or_default();
                    same.push((space.mm, family.clone()));
                }
            });
        }
        by_sentinel.into_iter().find_map(|(sentinel, spaces)| {
            let word = maps.is_anonymous(sentinel).then(|| process_maps::word_at(pid, sentinel));
            let word = word?.ok()?;
            spaces.into_iter().find(|(mm, _)| mm.0 == word)
        })
    }
}
