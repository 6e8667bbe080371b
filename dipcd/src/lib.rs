//! The daemon of DIPC as a library, so that its roles can be tested apart: one module a role.
//!
//! `main.rs` only chooses between dipcd and its keeper. What is decided stands in dipc-core, what
//! is said in dipc-wire; here bytes are moved and system calls made.

pub mod channel;
pub mod clock;
pub mod conversion;
pub mod incoming;
pub mod keeper;
pub mod keeper_handle;
pub mod objects;
pub mod pids;
pub mod stand_in;
pub mod sys;

pub mod allow;
pub mod cli;
pub mod config;
pub mod log;
pub mod placing;
pub mod policy;
pub mod privileges;
pub mod proof;

pub mod accounts;
pub mod addressee;
pub mod back_end;
pub mod background;
pub mod calls;
pub mod clients;
pub mod control;
pub mod daemon;
pub mod datagrams;
pub mod disk;
pub mod errands;
pub mod front_end;
pub mod home;
pub mod home_work;
pub mod hosted;
pub mod keep;
pub mod link;
pub mod links;
pub mod memory;
pub mod metrics;
pub mod names;
pub mod outbox;
pub mod questions;
pub mod refusals;
pub mod road;
pub mod settings;
pub mod sockets;
pub mod stand_ins;
pub mod start;
pub mod stop;
pub mod succession;
pub mod survey;
pub mod undertaker;
pub mod vigil;
pub mod withdraw;
