//! linux/userfaultfd.h by hand: constants and layouts, and nothing that does anything.
//!
//! The userfaultfd crate takes them from a crate of this name that generates them with libclang,
//! which a machine with Rust and a C compiler need not have; `[patch.crates-io]` puts this one in
//! its place. The names are the kernel's. Sizes are asserted at the end.
#![forbid(unsafe_code)]
#![allow(non_camel_case_types, non_upper_case_globals)]

/// The version of the interface, for `UFFDIO_API`.
pub const UFFD_API: u64 = 0xaa;
/// `userfaultfd(2)`: no faults in kernel mode.
pub const UFFD_USER_MODE_ONLY: u64 = 1;

/// The type of the ioctls of a userfaultfd.
pub const UFFDIO: u8 = 0xaa;
/// The type of those of /dev/userfaultfd.
pub const USERFAULTFD_IOC: u8 = 0xaa;

pub const _UFFDIO_REGISTER: u64 = 0x00;
pub const _UFFDIO_UNREGISTER: u64 = 0x01;
pub const _UFFDIO_WAKE: u64 = 0x02;
pub const _UFFDIO_COPY: u64 = 0x03;
pub const _UFFDIO_ZEROPAGE: u64 = 0x04;
pub const _UFFDIO_WRITEPROTECT: u64 = 0x06;
pub const _UFFDIO_CONTINUE: u64 = 0x07;
pub const _UFFDIO_POISON: u64 = 0x08;
pub const _UFFDIO_API: u64 = 0x3f;

pub const UFFDIO_REGISTER_MODE_MISSING: u64 = 1 << 0;
pub const UFFDIO_REGISTER_MODE_WP: u64 = 1 << 1;
pub const UFFDIO_REGISTER_MODE_MINOR: u64 = 1 << 2;
pub const UFFDIO_COPY_MODE_DONTWAKE: u64 = 1 << 0;
pub const UFFDIO_COPY_MODE_WP: u64 = 1 << 1;
pub const UFFDIO_ZEROPAGE_MODE_DONTWAKE: u64 = 1 << 0;
pub const UFFDIO_WRITEPROTECT_MODE_WP: u64 = 1 << 0;
pub const UFFDIO_WRITEPROTECT_MODE_DONTWAKE: u64 = 1 << 1;
pub const UFFDIO_CONTINUE_MODE_DONTWAKE: u64 = 1 << 0;
pub const UFFDIO_CONTINUE_MODE_WP: u64 = 1 << 1;
pub const UFFDIO_POISON_MODE_DONTWAKE: u64 = 1 << 0;

pub const UFFD_EVENT_PAGEFAULT: u8 = 0x12;
pub const UFFD_EVENT_FORK: u8 = 0x13;
pub const UFFD_EVENT_REMAP: u8 = 0x14;
pub const UFFD_EVENT_REMOVE: u8 = 0x15;
pub const UFFD_EVENT_UNMAP: u8 = 0x16;

pub const UFFD_PAGEFAULT_FLAG_WRITE: u64 = 1 << 0;
pub const UFFD_PAGEFAULT_FLAG_WP: u64 = 1 << 1;
pub const UFFD_PAGEFAULT_FLAG_MINOR: u64 = 1 << 2;

pub const UFFD_FEATURE_PAGEFAULT_FLAG_WP: u64 = 1 << 0;
pub const UFFD_FEATURE_EVENT_FORK: u64 = 1 << 1;
pub const UFFD_FEATURE_EVENT_REMAP: u64 = 1 << 2;
pub const UFFD_FEATURE_EVENT_REMOVE: u64 = 1 << 3;
pub const UFFD_FEATURE_MISSING_HUGETLBFS: u64 = 1 << 4;
pub const UFFD_FEATURE_MISSING_SHMEM: u64 = 1 << 5;
pub const UFFD_FEATURE_EVENT_UNMAP: u64 = 1 << 6;
pub const UFFD_FEATURE_SIGBUS: u64 = 1 << 7;
pub const UFFD_FEATURE_THREAD_ID: u64 = 1 << 8;
pub const UFFD_FEATURE_WP_HUGETLBFS_SHMEM: u64 = 1 << 12;
pub const UFFD_FEATURE_POISON: u64 = 1 << 14;

/// `UFFDIO_API`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct uffdio_api {
    pub api: u64,
    pub features: u64,
    pub ioctls: u64,
}

/// `UFFDIO_UNREGISTER`, `UFFDIO_WAKE`, and a part of most others.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct uffdio_range {
    pub start: u64,
    pub len: u64,
}

/// `UFFDIO_REGISTER`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct uffdio_register {
    pub range: uffdio_range,
    pub mode: u64,
    pub ioctls: u64,
}

/// `UFFDIO_COPY`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct uffdio_copy {
    pub dst: u64,
    pub src: u64,
    pub len: u64,
    pub mode: u64,
    pub copy: i64,
}

/// `UFFDIO_ZEROPAGE`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct uffdio_zeropage {
    pub range: uffdio_range,
    pub mode: u64,
    pub zeropage: i64,
}

/// `UFFDIO_WRITEPROTECT`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct uffdio_writeprotect {
    pub range: uffdio_range,
    pub mode: u64,
}

/// `UFFDIO_CONTINUE`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct uffdio_continue {
    pub range: uffdio_range,
    pub mode: u64,
    pub mapped: i64,
}

/// `UFFDIO_POISON`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct uffdio_poison {
    pub range: uffdio_range,
    pub mode: u64,
    pub updated: i64,
}

/// What read(2) gives.
#[repr(C, packed)]
#[derive(Clone, Copy)]
pub struct uffd_msg {
    pub event: u8,
    pub reserved1: u8,
    pub reserved2: u16,
    pub reserved3: u32,
    pub arg: uffd_msg_arg,
}

/// What comes with an event.
#[repr(C)]
#[derive(Clone, Copy)]
pub union uffd_msg_arg {
    pub pagefault: uffd_msg_pagefault,
    pub fork: uffd_msg_fork,
    pub remap: uffd_msg_remap,
    pub remove: uffd_msg_remove,
}

/// `UFFD_EVENT_PAGEFAULT`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct uffd_msg_pagefault {
    pub flags: u64,
    pub address: u64,
    pub feat: uffd_msg_pagefault_feat,
}

/// The thread, with `UFFD_FEATURE_THREAD_ID`.
#[repr(C)]
#[derive(Clone, Copy)]
pub union uffd_msg_pagefault_feat {
    pub ptid: u32,
}

/// `UFFD_EVENT_FORK`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct uffd_msg_fork {
    pub ufd: u32,
}

/// `UFFD_EVENT_REMAP`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct uffd_msg_remap {
    pub from: u64,
    pub to: u64,
    pub len: u64,
}

/// `UFFD_EVENT_REMOVE` and `UFFD_EVENT_UNMAP`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct uffd_msg_remove {
    pub start: u64,
    pub end: u64,
}

const _: () = assert!(size_of::<uffd_msg>() == 32);
const _: () = assert!(size_of::<uffdio_api>() == 24 && size_of::<uffdio_register>() == 32);
const _: () = assert!(size_of::<uffdio_copy>() == 40 && size_of::<uffdio_poison>() == 32);
