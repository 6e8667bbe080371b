//! dipc.conf, as one checked value. [`Config`] is made here and nowhere else; whoever has one
//! need not check anything again.
//!
//! ```text
//! text ── Reader (config/reader.rs) ──▶ typed values, by the table (config/entries.rs)
//!      ── cross checks ──▶ Config, or every error of the file
//! ```
//!
//! This is not the place where a setting takes effect, and it watches nothing: main reads again
//! on SIGHUP and asks [`Config::reload`] what may change.
#![forbid(unsafe_code)]

use std::fs;
use std::io::Read;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::time::Duration;

use dipc_wire::noise::Cipher;

use crate::policy::{Program, Sharing};

pub mod address;
pub mod entries;
mod error;
pub mod key;
mod reader;
mod show;
pub mod types;

pub use entries::{ENTRIES, Entry};
pub use error::Error;
pub(crate) use error::quoted;
pub use types::*;

use reader::Reader;

/// What stands in messages for the file of `--single`.
pub const SINGLE: &str = "--single";
/// Where dipc.conf is unless `--config` says otherwise.
pub const DEFAULT_FILE: &str = "/etc/dipc.conf";
/// The most bytes of a configuration file.
pub const FILE_BYTES_MAX: u64 = 1 << 20;

/// Rates of two clocks differ by less than this part of a hundred (DESIGN.md section 7).
const CLOCK_DRIFT_PERCENT: u32 = 2;
/// What `node_timeout` must leave after the lease, for taking pages away.
pub const REVOKE_MARGIN: Duration = Duration::from_millis(200);

/// Everything that dipc.conf says.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Where this node listens for links and wires.
    pub this_machine: SocketAddr,
    /// Where the referee listens; may be this machine.
    pub referee: SocketAddr,
    /// The UNIX socket for clients.
    pub socket: PathBuf,
    /// Who may connect to it.
    pub socket_access: SocketAccess,
    /// Runtime state, on a tmpfs.
    pub state_dir: PathBuf,
    /// What must survive a reboot.
    pub lib_dir: PathBuf,
    /// The allow list.
    pub allow_file: PathBuf,
    /// What links prove.
    pub cluster_key: ClusterKey,
    /// Protection after the handshake.
    pub cipher: Cipher,
    /// Bounds of waits.
    pub timeouts: Timeouts,
    /// When a node counts as lost.
    pub liveness: Liveness,
    /// What is distributed, unless a program's section says otherwise.
    pub sharing: Sharing,
    /// The `[program PATH]` sections.
    pub programs: Vec<Program>,
    /// Where new objects live.
    pub home: Home,
    /// When msgsnd returns.
    pub send: Sending,
    /// What becomes of messages in the hands of a lost node.
    pub queue_on_loss: QueueOnLoss,
    /// How accounts are matched.
    pub identity: Identity,
    /// Nodes whose root is root here.
    pub root: Vec<IpAddr>,
    /// The account that other remote roots act as; `EACCES` if it does not exist.
    pub squash: AccountName,
    /// What a client in a container is.
    pub container_identity: ContainerIdentity,
    /// One user's share.
    pub user_limits: UserLimits,
    /// How memory travels.
    pub transfer: Transfer,
    /// Whether programs get signals about pages.
    pub shm_signals: ShmSignals,
    /// How long an owner keeps a page.
    pub shm_hold: HoldTime,
    /// How faults are caught.
    pub trap: Trap,
    /// The group whose programs get a full userfaultfd.
    pub kernel_faults: AccountName,
    /// What is seen of a lost page.
    pub lost_page: LostPage,
    /// Where metrics are read.
    pub metrics: Option<Metrics>,
    /// The hosted mailbox server.
    pub mailbox: Option<Mailbox>,
}

impl Config {
    /// Reads and checks a file.
    pub fn load(file: &Path) -> Result<Config, Vec<Error>> {
        Config::parse(file, &Config::text_of(file)?)
    }

    /// The text of a file, unchecked.
    pub fn text_of(file: &Path) -> Result<String, Vec<Error>> {
        read_text(file).map_err(|error| {
            let expected = "a readable file of at most 1 MiB of UTF-8 text";
            vec![Error::of_file(file, expected, error.to_string())]
        })
    }

    /// Checks the text of a file; `file` is only for messages.
    pub fn parse(file: &Path, text: &str) -> Result<Config, Vec<Error>> {
        let mut reader = Reader::new(file, text);
        let config = read(&mut reader);
        check_addresses(&mut reader, &config);
        check_liveness(&mut reader, &config.liveness);
        check_timeouts(&mut reader, &config.timeouts);
        let errors = reader.finish();
        if errors.is_empty() { Ok(config) } else { Err(errors) }
    }

    /// A node by itself, for `--single`: loopback, its own referee, no file.
    pub fn single() -> Config {
        Config::parse(Path::new(SINGLE), &Config::single_text())
            .expect("addresses and directories are good")
    }

    /// What a file for it would say. Without root it keeps its state where its user may write.
    pub fn single_text() -> String {
        if rustix::process::geteuid().is_root() {
            return single_text_in(Path::new("/run/dipc"), Path::new("/var/lib/dipc"));
        }
        let variable = |name: &str| std::env::var_os(name).map(PathBuf::from);
        let uid = rustix::process::getuid().as_raw();
        let runtime = variable("XDG_RUNTIME_DIR").map(|dir| dir.join("dipc"));
        let runtime = runtime.unwrap_or_else(|| std::env::temp_dir().join(format!("dipc-{uid}")));
        let lasting = variable("HOME").map(|home| home.join(".local/state/dipc"));
        let lasting = lasting.unwrap_or_else(|| runtime.join("lib"));
        single_text_in(&runtime, &lasting)
    }

    /// A node by itself with its state in these directories.
    pub fn single_in(state_dir: &Path, lib_dir: &Path) -> Config {
        Config::parse(Path::new(SINGLE), &single_text_in(state_dir, lib_dir))
            .expect("addresses and directories are good")
    }

    /// Whether this node is the referee.
    pub fn is_referee(&self) -> bool {
        self.this_machine == self.referee
    }

    /// `-t`: no bound but a node's loss.
    #[must_use]
    pub fn without_timeouts(self) -> Config {
        let timeouts = Timeouts {
            employer_referee: None,
            referee: None,
            employer_shm: None,
            shm_ak: None,
            employer_worker: None,
        };
        Config { timeouts, ..self }
    }

    /// What this dipcd should go on with after the file was read again: `new`, or the names of the
    /// entries that differ and cannot change while it runs.
    pub fn reload(&self, new: Config) -> Result<Config, Vec<&'static str>> {
        let fixed = |entry: &&Entry| entry.change == entries::Change::AtStart;
        let differs = |entry: &&Entry| self.show(entry.name) != new.show(entry.name);
        let refused: Vec<_> =
            ENTRIES.iter().filter(fixed).filter(differs).map(|entry| entry.name).collect();
        if refused.is_empty() { Ok(new) } else { Err(refused) }
    }

    /// What whoever starts this node should know; one line each, for the log.
    pub fn notices(&self) -> Vec<&'static str> {
        let mut notices = Vec::new();
        if self.cluster_key == ClusterKey::Loopback {
            notices.push("no cluster_key: every address is loopback, the well-known key is used");
        }
        if self.cipher == Cipher::Plain {
            notices.push("cipher = none: nothing is protected after the handshake");
        }
        if self.identity == Identity::Own {
            notices.push("identity = self: every remote program acts as this dipcd's own account");
        }
        notices
    }
}

/// What is asked for and this version does not have. dipcd refuses to start with it, by name,
/// rather than pass it over in silence.
pub fn not_yet(config: &Config) -> Vec<&'static str> {
    [("send", config.send != Sending::Strict)]
        .into_iter()
        .filter_map(|(name, asked)| asked.then_some(name))
        .collect()
}

/// The text of a bounded file.
pub(crate) fn read_text(file: &Path) -> std::io::Result<String> {
    let mut text = String::new();
    let mut opened = fs::File::open(file)?.take(FILE_BYTES_MAX + 1);
    opened.read_to_string(&mut text)?;
    if text.len() as u64 > FILE_BYTES_MAX {
        return Err(std::io::Error::other("longer than 1 MiB"));
    }
    Ok(text)
}

fn single_text_in(state_dir: &Path, lib_dir: &Path) -> String {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()));
    format!(
        "this_machine = {address}\nreferee = {address}\nallow_file = {lib}/dipc.allow\n\
         state_dir = {state}\nlib_dir = {lib}\nsocket = {state}/dipcd.sock\n",
        state = state_dir.display(),
        lib = lib_dir.display(),
    )
}

/// The default port if nobody has it on loopback, else a free one.
fn free_port() -> u16 {
    let port_of = |port: u16| {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port))?;
        listener.local_addr().map(|address| address.port())
    };
    port_of(entries::PORT).or_else(|_| port_of(0)).unwrap_or(entries::PORT)
}

/// Every entry in its place. Bad ones leave an error in the reader and their default here.
fn read(r: &mut Reader<'_>) -> Config {
    let port = r.number("port") as u16;
    let this_machine = r.this_machine("this_machine", port);
    let referee = r.node("referee", port);
    let cluster_key = r.cluster_key(this_machine.ip().is_loopback() && referee.ip().is_loopback());
    let sharing = r.sharing();
    Config {
        this_machine,
        referee,
        cluster_key,
        socket: r.socket("socket"),
        socket_access: SocketAccess {
            mode: r.octal("socket_mode"),
            group: r.account_or_none("socket_group"),
        },
        state_dir: r.path("state_dir"),
        lib_dir: r.path("lib_dir"),
        allow_file: r.path("allow_file"),
        cipher: r.word("cipher"),
        timeouts: read_timeouts(r),
        liveness: Liveness {
            node_timeout: r.seconds("node_timeout"),
            lease: r.seconds("lease"),
            heartbeat: r.seconds("heartbeat"),
        },
        programs: r.programs(&sharing),
        sharing,
        home: r.home("home"),
        send: r.send("send"),
        queue_on_loss: r.word("queue_on_loss"),
        identity: r.identity("identity"),
        root: r.addresses("root"),
        squash: r.account("squash"),
        container_identity: r.container_identity("container_identity"),
        user_limits: UserLimits {
            clients: r.number("user_clients_max") as u32,
            objects: r.number("user_objects_max") as u32,
            segment_bytes: r.number("user_segment_bytes_max"),
        },
        transfer: Transfer {
            mode: r.word_any_case("transfer_mode"),
            page_bytes: r.page_bytes("dipc_page_size"),
        },
        shm_signals: r.word("inhibit_shm_signal"),
        shm_hold: r.hold("shm_hold_timeout"),
        trap: r.word("trap"),
        kernel_faults: r.account("kernel_faults"),
        lost_page: r.word("lost_page"),
        metrics: r.metrics("metrics"),
        mailbox: r.mailbox("mailbox"),
    }
}

fn read_timeouts(r: &mut Reader<'_>) -> Timeouts {
    Timeouts {
        employer_referee: r.seconds_or_none("employer_referee_timeout"),
        referee: r.seconds_or_none("referee_timeout"),
        employer_shm: r.seconds_or_none("employer_shm_timeout"),
        shm_ak: r.seconds_or_none("shm_ak_timeout"),
        employer_worker: r.seconds_or_none("employer_worker_timeout"),
    }
}

/// A node on loopback and a referee off it cannot reach each other, nor the other way round.
fn check_addresses(r: &mut Reader<'_>, config: &Config) {
    let loopback = |address: SocketAddr| address.ip().is_loopback();
    if r.is_good() && loopback(config.this_machine) != loopback(config.referee) {
        r.refuse(
            "this_machine",
            format!("both loopback or neither, for referee is {}", config.referee),
        );
    }
}

/// A home must not declare a node lost while that node may still use its pages.
fn check_liveness(r: &mut Reader<'_>, liveness: &Liveness) {
    let least = liveness.lease * (100 + CLOCK_DRIFT_PERCENT) / 100 + REVOKE_MARGIN;
    if liveness.node_timeout < least {
        let expected = format!("at least 1.02 x lease + 0.2 s = {} s", least.as_secs_f64());
        r.refuse("node_timeout", expected);
    }
    if liveness.lease < liveness.heartbeat * 2 {
        let expected =
            format!("at least 2 x heartbeat = {} s", liveness.heartbeat.as_secs_f64() * 2.);
        r.refuse("lease", expected);
    }
}

/// A program must still wait when the referee gives a claim up, or it is told nothing.
fn check_timeouts(r: &mut Reader<'_>, timeouts: &Timeouts) {
    if let (Some(employer), Some(referee)) = (timeouts.employer_referee, timeouts.referee)
        && employer <= referee
    {
        let expected = format!("more than referee_timeout = {} s", referee.as_secs_f64());
        r.refuse("employer_referee_timeout", expected);
    }
}

#[cfg(test)]
pub(crate) mod tests;
