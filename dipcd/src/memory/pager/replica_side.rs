//! A replica of this node: the machine of dipc-core, its records, and its file. It outlives its
//! last attachment until home has said goodbye.
#![forbid(unsafe_code)]

use std::io;

use dipc_core::copies::Records;
use dipc_core::replica::{self, Copy, CopyRecord, Effect};
use dipc_wire::memory::{Access, PageNo};
use dipc_wire::peer::Caller;

use super::home_side::held_runs;
use super::node_file::NodeFile;
use crate::memory::files::Span;
use crate::memory::geometry::Geometry;
use crate::memory::records::CopyRecords;
use crate::memory::segments::Users;

/// A replica and what belongs to it.
pub struct ReplicaSide {
    /// Who decides; `None` when home knows the replica no more.
    pub machine: Option<replica::Replica>,
    /// What it has recorded.
    pub records: CopyRecords,
    /// Its file.
    pub file: NodeFile,
    /// Who maps it; not known after a restart of dipcd.
    pub users: Option<Users>,
    /// Who attached last, and with which flags: in his name it is attached again.
    pub caller: Option<(Caller, i32)>,
    /// It has said Leave.
    pub leaving: bool,
    pub(super) effects: Vec<Effect>,
    geometry: Geometry,
}

impl ReplicaSide {
    /// Whether it leaves for good, said or not yet: who attaches has to wait until it has left.
    pub fn leaves(&self) -> bool {
        self.leaving || self.machine.as_ref().is_some_and(replica::Replica::has_said_goodbye)
    }

    /// Whether home knows it no more and it is being attached again: who faults meanwhile waits,
    /// and is woken at the end of that.
    pub fn begins_again(&self) -> bool {
        self.machine.is_none() && !self.leaving
    }

    /// Puts one together.
    pub fn new(
        machine: replica::Replica,
        records: CopyRecords,
        file: NodeFile,
        geometry: Geometry,
    ) -> ReplicaSide {
        let (machine, effects) = (Some(machine), Vec::new());
        let (users, caller, leaving) = (None, None, false);
        ReplicaSide { machine, records, file, users, caller, leaving, effects, geometry }
    }

    /// Nothing is here any more.
    pub(super) fn empty(&mut self) -> io::Result<()> {
        self.file.empty()?;
        self.records.clear()
    }

    /// Nothing is here any more, and whoever touches it gets SIGBUS. The machine begins anew.
    pub fn fail(&mut self, config: replica::Config) -> io::Result<()> {
        self.records.clear()?;
        self.machine = Some(replica::Replica::start(config, &self.records, |_| {}));
        self.file.fail_all()
    }

    /// Nothing is here any more, but home may know it again by a later link.
    pub fn renew(&mut self, config: replica::Config) {
        self.machine = Some(replica::Replica::start(config, &self.records, |_| {}));
    }

    /// Tells its programs what they have become.
    pub(super) fn tell(&mut self) {
        let records = &self.records;
        self.file.tell(|page| access_by(&records.get(page)));
    }

    /// What a program that attaches the file may do where.
    pub fn held(&self) -> Vec<(Span, Access)> {
        let access = |page: PageNo| self.access(page);
        held_runs(&self.geometry, |from| self.records.next(from), access, None)
    }

    /// What programs may do with a page. What is owned is not written when the lease is over.
    pub fn access(&self, page: PageNo) -> Option<Access> {
        let access = access_by(&self.records.get(page))?;
        let may_write = self.machine.as_ref().is_some_and(replica::Replica::lease_runs);
        Some(if may_write { access } else { Access::Read })
    }
}

fn access_by(record: &CopyRecord) -> Option<Access> {
    match record.copy {
        Copy::Shared | Copy::Sole => Some(Access::Read),
        Copy::Owned => Some(Access::Write),
        _ => None,
    }
}
