//! The tests of DIPC on real processes: one binary, a chapter a file. `cargo xtask test` builds
//! what they need and runs them; `--long` asks for the full counts.
#![forbid(unsafe_code)]

mod admission;
mod bad_input;
mod differential_queues;
mod differential_segments;
mod differential_sets;
mod exactly_once;
mod examples;
mod failures;
mod floods;
mod hello;
mod logs;
mod mailboxes;
mod manual;
mod manual_ours;
mod manual_rows;
mod many;
mod memory;
mod memory_bad_clients;
mod memory_bad_peers;
mod memory_basic;
mod memory_examples;
mod memory_failures;
mod memory_futexes;
mod memory_litmus;
mod memory_options;
mod memory_sizes;
mod orders;
mod placing;
mod refusals;
mod sandbox;
mod semaphores;
mod tables;
mod tidy;
mod tools;
mod transports;
mod transports_memory;
mod traps;
mod undo;
mod users;

mod differential;
