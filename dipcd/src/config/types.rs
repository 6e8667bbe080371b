//! What the entries of dipc.conf become: one type for each meaning.
//!
//! A value of these types is already checked; nobody parses or bounds it again. `None` is used
//! only where the manual says that "none" is a meaning.
#![forbid(unsafe_code)]

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use dipc_wire::ids::{NodeId, Secret};
use dipc_wire::noise::Cipher;
use dipc_wire::preamble::TransferMode;

use crate::policy::{Ftok, KeySet, ShmNoreserve};

/// A value that is one of a few words.
pub trait Words: Copy + PartialEq + 'static {
    /// Each value with its word, the default first.
    const WORDS: &'static [(&'static str, Self)];

    /// The word of this value.
    fn word(self) -> &'static str {
        let found = Self::WORDS.iter().find(|(_, value)| *value == self);
        found.expect("every value has its word in the table").0
    }

    /// The value of a word.
    fn from_word(word: &str) -> Option<Self> {
        Self::WORDS.iter().find(|(name, _)| *name == word).map(|(_, value)| *value)
    }
}

/// Bounds of waits; `None` waits until what is waited for is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// A program's call, for the referee's answer.
    pub employer_referee: Option<Duration>,
    /// The referee, for a creator's report; after that the claim is given up.
    pub referee: Option<Duration>,
    /// A program's page fault, for the page.
    pub employer_shm: Option<Duration>,
    /// Home, for the acknowledgement of a page.
    pub shm_ak: Option<Duration>,
    /// A remote operation, for its reply.
    pub employer_worker: Option<Duration>,
}

/// When a node counts as lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Liveness {
    /// Silence after which a peer is declared lost.
    pub node_timeout: Duration,
    /// How long another home's pages may be used unanswered.
    pub lease: Duration,
    /// Between two heartbeats.
    pub heartbeat: Duration,
}

/// How long an owner keeps a page (`shm_hold_timeout`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HoldTime {
    /// From 1 ms up, growing for a page that bounces.
    Adaptive,
    /// At least this long, always.
    AtLeast(Duration),
}

/// How memory travels; equal on both ends of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transfer {
    /// Pages or whole segments.
    pub mode: TransferMode,
    /// The unit, a multiple of the system's page.
    pub page_bytes: u32,
}

impl Words for TransferMode {
    const WORDS: &'static [(&'static str, Self)] =
        &[("page", TransferMode::Page), ("segment", TransferMode::Segment)];
}

/// Whether programs are told that they became readers or writers (`inhibit_shm_signal`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ShmSignals {
    /// `yes`: no signal.
    Inhibited,
    /// `no`: `DIPC_SIG_READER` and `DIPC_SIG_WRITER`.
    Sent,
}

impl Words for ShmSignals {
    const WORDS: &'static [(&'static str, Self)] =
        &[("yes", ShmSignals::Inhibited), ("no", ShmSignals::Sent)];
}

/// The secret that links prove.
#[derive(Clone, PartialEq, Eq)]
pub enum ClusterKey {
    /// From files.
    Files {
        /// `cluster_key`: offered, and accepted.
        current: KeyFile,
        /// `cluster_key_next`: accepted besides, while the key is being changed.
        next: Option<KeyFile>,
    },
    /// No file, and nobody but this machine can connect: 32 zero bytes, known to everybody. The
    /// handshake still runs, so that there is one protocol.
    Loopback,
}

/// A key and where it was read.
#[derive(Clone, PartialEq, Eq)]
pub struct KeyFile {
    /// The file.
    pub path: PathBuf,
    /// What was in it.
    pub secret: Secret,
}

impl ClusterKey {
    const WELL_KNOWN: Secret = Secret([0; 32]);

    /// The key that this node offers when it dials.
    pub fn offered(&self) -> &Secret {
        match self {
            ClusterKey::Files { current, .. } => &current.secret,
            ClusterKey::Loopback => &Self::WELL_KNOWN,
        }
    }

    /// The keys that this node accepts when it is dialled, the offered one first.
    pub fn accepted(&self) -> Vec<&Secret> {
        let next = match self {
            ClusterKey::Files { next: Some(next), .. } => Some(&next.secret),
            _ => None,
        };
        std::iter::once(self.offered()).chain(next).collect()
    }
}

impl fmt::Debug for ClusterKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ClusterKey::Files { current, .. } => write!(f, "Files({})", current.path.display()),
            ClusterKey::Loopback => f.write_str("Loopback"),
        }
    }
}

impl Words for Cipher {
    const WORDS: &'static [(&'static str, Self)] =
        &[("aes-gcm", Cipher::AesGcm), ("none", Cipher::Plain)];
}

/// Where new objects live (`home`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Home {
    /// On the node of the program that creates them.
    Creator,
    /// On the referee's node.
    Referee,
    /// On this node.
    Node(NodeId),
}

/// When msgsnd returns (`send`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sending {
    /// When the message is in the queue.
    Strict,
    /// For queues of these keys, before.
    Pipelined(KeySet),
}

/// How an account of another node is found here (`identity`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Identity {
    /// By its login name.
    Name,
    /// By its number.
    Uid,
    /// Every remote program is this dipcd's own account: the only way without root.
    Own,
}

impl Words for Identity {
    const WORDS: &'static [(&'static str, Self)] =
        &[("name", Identity::Name), ("uid", Identity::Uid), ("self", Identity::Own)];
}

/// The name of an account or a group: not empty, at most 32 letters, digits, `_`, `-`, `.`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AccountName(String);

impl AccountName {
    /// Takes a name that useradd(8) would take, more or less.
    pub fn new(name: &str) -> Option<AccountName> {
        let letter = |c: char| c.is_ascii_alphanumeric() || "_-.".contains(c);
        let fits = (1..=32).contains(&name.len()) && name.chars().all(letter);
        (fits && !name.starts_with('-')).then(|| AccountName(name.to_owned()))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for AccountName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What a client from another user or pid namespace is (`container_identity`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ContainerIdentity {
    /// Refused.
    Refuse,
    /// This account, whoever it says it is.
    User(AccountName),
}

/// How page faults of programs are caught (`trap`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trap {
    /// userfaultfd where it may be used, else mprotect.
    Auto,
    /// userfaultfd or nothing.
    Userfaultfd,
    /// mprotect and SIGSEGV.
    Mprotect,
}

impl Words for Trap {
    const WORDS: &'static [(&'static str, Self)] =
        &[("auto", Trap::Auto), ("userfaultfd", Trap::Userfaultfd), ("mprotect", Trap::Mprotect)];
}

/// What a program sees of a page whose owner was lost (`lost_page`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LostPage {
    /// SIGBUS.
    Sigbus,
    /// Home's last copy.
    Stale,
}

impl Words for LostPage {
    const WORDS: &'static [(&'static str, Self)] =
        &[("sigbus", LostPage::Sigbus), ("stale", LostPage::Stale)];
}

/// What becomes of a message whose receiver's node was lost before it acknowledged
/// (`queue_on_loss`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QueueOnLoss {
    /// It goes back into the queue, and may be received twice.
    Again,
    /// It is dropped, and may never be received.
    Drop,
}

impl Words for QueueOnLoss {
    const WORDS: &'static [(&'static str, Self)] =
        &[("again", QueueOnLoss::Again), ("drop", QueueOnLoss::Drop)];
}

impl Words for Ftok {
    const WORDS: &'static [(&'static str, Self)] =
        &[("native", Ftok::Native), ("path", Ftok::Path)];
}

impl Words for ShmNoreserve {
    const WORDS: &'static [(&'static str, Self)] =
        &[("dipc", ShmNoreserve::Dipc), ("local", ShmNoreserve::Local)];
}

/// Where metrics are read (`metrics`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Metrics {
    /// By HTTP at this loopback address.
    Address(SocketAddr),
    /// By HTTP at this UNIX socket.
    Path(PathBuf),
}

/// The hosted mailbox server (`mailbox`): the arguments of `dipc`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mailbox {
    /// Number of mailboxes.
    pub count: u32,
    /// Size of a mailbox in kbytes.
    pub kbytes: u32,
    /// TCP port.
    pub port: u16,
    /// Size of a packet in kbytes.
    pub packet_kbytes: u32,
}

/// Who may connect to the socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SocketAccess {
    /// Its permission bits.
    pub mode: u32,
    /// Its group, whose members may change settings.
    pub group: Option<AccountName>,
}

/// One user's share of this dipcd.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UserLimits {
    /// Processes that use distributed objects.
    pub clients: u32,
    /// Objects at home here.
    pub objects: u32,
    /// Bytes of segments at home here.
    pub segment_bytes: u64,
}
