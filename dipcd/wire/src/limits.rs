//! Every bound, and the assertions between them. A limit exists for every queue, frame and loop;
//! one that an administrator may choose stands in dipc.conf instead.

/// The version of every conversation; the first thing said, and the first thing checked.
pub const VERSION: u16 = 1;

/// Nodes of a cluster.
pub const NODES_MAX: u8 = 64;

/// The low 15 bits of our ids; see [`crate::ids::ObjectId`].
pub const ID_INDEX_FIRST: i32 = 0x7d00;
/// The last of them.
pub const ID_INDEX_LAST: i32 = 0x7fff;
/// Ids there are before numbers begin again: 2^15 sequences of 768.
pub const ID_NUMBERS: u32 = (1 << 15) * (ID_INDEX_LAST - ID_INDEX_FIRST + 1) as u32;
/// Ids the referee takes from its record at a time.
pub const ID_BLOCK: u32 = 4096;

/// The text of one message. A kernel may allow more (`msgmax`); a longer one is refused with
/// `EINVAL`, as by a kernel whose `msgmax` this is.
pub const MESSAGE_BYTES_MAX: usize = 16 << 20;
/// The encoded part of any frame, without raw text behind it.
pub const BODY_BYTES_MAX: usize = 56 << 10;
/// A whole frame on a link or a wire.
pub const FRAME_BYTES_MAX: usize = 4 + BODY_BYTES_MAX + MESSAGE_BYTES_MAX;
/// A packet on a UNIX socket.
pub const PACKET_BYTES_MAX: usize = 2 + BODY_BYTES_MAX;

/// Operations of one `semop` (the kernel's SEMOPM is 500 unless changed).
pub const SEM_OPS_MAX: usize = 4096;
/// Semaphores of one set (the kernel's SEMMSL is 32,000, and its own upper bound 65,535).
pub const SEMS_MAX: usize = 65_535;
/// Supplementary groups that are vouched for; a process in more is known by the first ones.
pub const GROUPS_MAX: usize = 256;
/// Rows of one page of a listing.
pub const ROWS_MAX: usize = 256;
/// Sessions of one image: the slots of its `done` page.
pub const SESSIONS_MAX: u32 = 65_536;
/// Sessions in one report of ends; more are sent in several.
pub const ENDS_MAX: usize = 1024;

/// Replicas of one segment: files on nodes, home's own among them.
pub const REPLICAS_MAX: u8 = 128;
/// Content in one frame of the page protocol.
pub const PART_BYTES: usize = 1 << 20;
/// Pages in one report, one acknowledgement or one grant; more are sent in several.
pub const PAGES_MAX: usize = 256;
/// Bytes of one segment.
pub const SEGMENT_BYTES_MAX: u64 = 1 << 40;

/// Objects of one page of a survey.
pub const SURVEY_ROWS_MAX: usize = 128;
/// The login name of an account in a survey; a longer one is cut.
pub const SURVEY_NAME_BYTES_MAX: usize = 64;
/// Users of one object in a survey.
pub const SURVEY_USERS_MAX: usize = 8;
/// Segments of one page of what a node has attached.
pub const SURVEY_ATTACHED_MAX: usize = 1024;
/// Semaphores of one page.
pub const SURVEY_SEMAPHORES_MAX: usize = 1024;

/// How long a ticket is good, in milliseconds.
pub const TICKET_LIFE_MS: u64 = 10_000;
/// How long an unknown peer may take for its preamble and handshake, in milliseconds.
pub const ADMISSION_MS: u64 = 1_000;

/// A Noise record, its tag included (the Noise specification, section 3).
pub const RECORD_BYTES_MAX: usize = 65_535;
/// The tag of a record.
pub const TAG_BYTES: usize = 16;

const _: () = assert!(ID_NUMBERS == 25_165_824);
const _: () = assert!(SEM_OPS_MAX * 6 < BODY_BYTES_MAX);
const _: () = assert!(ENDS_MAX * 20 < BODY_BYTES_MAX);
const _: () = assert!(PAGES_MAX * 32 < BODY_BYTES_MAX);
const _: () = assert!(PART_BYTES <= MESSAGE_BYTES_MAX);
const _: () = assert!(ROWS_MAX * 64 < BODY_BYTES_MAX);
const _: () = assert!(FRAME_BYTES_MAX < u32::MAX as usize);
