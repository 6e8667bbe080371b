//! What dipc.conf says of pages, as the machines of dipc-core want it: read once, when a segment is
//! first used on this node.
#![forbid(unsafe_code)]

use std::time::Duration;

use dipc_core::hold::Hold;
use dipc_core::read_ahead::AHEAD_MAX;
use dipc_core::{directory, replica};

use crate::config::{Config, HoldTime, LostPage, ShmSignals};
use crate::memory::geometry::Geometry;

/// The entries that are for pages.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    hold: Hold,
    ak_timeout_ms: Option<u64>,
    shm_timeout_ms: Option<u64>,
    lost_page: directory::LostPage,
    /// Whether programs hear that they became readers and writers.
    pub signals: ShmSignals,
}

impl Bounds {
    /// As they are now.
    pub fn of(config: &Config) -> Bounds {
        let millis = |wait: Duration| u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
        Bounds {
            hold: match config.shm_hold {
                HoldTime::Adaptive => Hold::Adaptive,
                HoldTime::AtLeast(least) => Hold::AtLeast(millis(least)),
            },
            ak_timeout_ms: config.timeouts.shm_ak.map(millis),
            shm_timeout_ms: config.timeouts.employer_shm.map(millis),
            signals: config.shm_signals,
            lost_page: match config.lost_page {
                LostPage::Sigbus => directory::LostPage::Sigbus,
                LostPage::Stale => directory::LostPage::Stale,
            },
        }
    }

    /// For a directory.
    pub fn of_home(&self, geometry: &Geometry) -> directory::Config {
        directory::Config {
            pages: geometry.pages,
            frame_pages: directory::frame_pages(geometry.unit_bytes),
            hold: self.hold,
            ak_timeout_ms: self.ak_timeout_ms,
            shm_timeout_ms: self.shm_timeout_ms,
            lost_page: self.lost_page,
        }
    }

    /// For a replica.
    pub fn of_replica(&self, geometry: &Geometry) -> replica::Config {
        replica::Config {
            pages: geometry.pages,
            frame_pages: directory::frame_pages(geometry.unit_bytes),
            shm_timeout_ms: self.shm_timeout_ms,
            ahead_max: if geometry.pages == 1 { 0 } else { AHEAD_MAX },
            lost_page: self.lost_page,
        }
    }
}
