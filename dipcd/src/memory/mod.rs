//! Shared memory: the segments this node is home to, the files of segments on this node, whose
//! pages they are served to, and how pages travel. DESIGN.md section 6.
#![forbid(unsafe_code)]

pub mod segments;
