//! Shared memory on this node: the segments it is home to, the files of segments and the address
//! spaces that map them, how access to their pages is given and taken away, and how pages travel.
#![forbid(unsafe_code)]

pub mod alone;
pub mod attach;
pub mod calls;
pub mod control;
pub mod count;
pub mod ends;
pub mod errands;
pub mod families;
pub mod files;
pub mod frames;
pub mod futexes;
pub mod geometry;
pub mod leases;
pub mod node;
pub mod pager;
pub mod process_maps;
pub mod records;
pub mod recover;
pub mod revocation;
pub mod revoke;
pub mod segments;
pub mod sleepers;

pub use node::Memory;
