//! A cluster: nodes that know each other, in one temporary directory. Dropping it ends every
//! process it started and removes every file. At most four clusters run at a time, so that
//! tests on a small machine do not make each other late.
#![forbid(unsafe_code)]

use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Condvar, Mutex, PoisonError};

use tempfile::TempDir;

use crate::link::{self, Switch};
use crate::machine::{Limits, Machine, Network};
use crate::node::{Node, Start, User};
use crate::programs;
use crate::proxy::{Proxy, Toll, Weather};

/// The port of every dipcd of the tests.
const PORT: u16 = 4750;

/// Clusters that may run at once: most of them wait for something most of the time.
const CLUSTERS_MAX: usize = 4;

/// What a cluster shall be.
#[derive(Clone, Debug)]
pub struct Builder {
    nodes: usize,
    entries: Vec<(String, String)>,
    options: Vec<String>,
    options_of: Vec<(usize, String)>,
    wrapper: Option<PathBuf>,
    user: Option<User>,
    allowed: Vec<String>,
    limits: Vec<(usize, Limits)>,
    network: Network,
    share: usize,
}

impl Builder {
    /// An entry of every node's dipc.conf.
    #[must_use]
    pub fn entry(mut self, name: &str, value: &str) -> Builder {
        self.entries.push((name.to_owned(), value.to_owned()));
        self
    }

    /// An option for every dipcd.
    #[must_use]
    pub fn option(mut self, option: &str) -> Builder {
        self.options.push(option.to_owned());
        self
    }

    /// An option for the dipcd of node `number`.
    #[must_use]
    pub fn option_of(mut self, number: usize, option: &str) -> Builder {
        self.options_of.push((number, option.to_owned()));
        self
    }

    /// A program that starts every dipcd: it is given dipcd's command line as its own arguments,
    /// and becomes it.
    #[must_use]
    pub fn wrapper(mut self, program: PathBuf) -> Builder {
        self.wrapper = Some(program);
        self
    }

    /// Whose every dipcd is, instead of ours.
    #[must_use]
    pub fn user(mut self, user: User) -> Builder {
        self.user = Some(user);
        self
    }

    /// A machine besides the nodes that may connect to the referee.
    #[must_use]
    pub fn allow(mut self, address: &str) -> Builder {
        self.allowed.push(address.to_owned());
        self
    }

    /// How many queues and sets the kernel of node `number` allows.
    #[must_use]
    pub fn objects(mut self, number: usize, count: u32) -> Builder {
        self.limits.push((number, Limits::Objects(count)));
        self
    }

    /// Nodes on a network of their own, which can be cut. `None` where that is not possible.
    pub fn start_with_network(mut self) -> Option<Cluster> {
        self.network = Network::Own;
        let switch = Switch::new()?;
        Some(self.start_on(Between::Switch(switch)))
    }

    /// Nodes on a network with that weather. `None` where that is not possible.
    pub fn start_in(mut self, weather: Weather) -> Option<Cluster> {
        self.network = Network::Own;
        let proxy = Proxy::new(weather)?;
        Some(self.start_on(Between::Proxy(proxy)))
    }

    /// No other cluster meanwhile.
    #[must_use]
    pub fn alone(mut self) -> Builder {
        self.share = CLUSTERS_MAX;
        self
    }

    /// Starts it.
    pub fn start(self) -> Cluster {
        self.start_on(Between::Loopback)
    }

    /// Makes the nodes without starting any dipcd.
    pub fn prepare(self) -> Cluster {
        self.prepare_on(Between::Loopback)
    }

    fn start_on(self, between: Between) -> Cluster {
        let cluster = self.prepare_on(between);
        for node in cluster.nodes() {
            node.start();
        }
        cluster
    }

    fn prepare_on(self, between: Between) -> Cluster {
        let turn = Turn::wait(self.share);
        let directory = tempfile::Builder::new().prefix("dipc-").tempdir();
        let directory = directory.expect("a temporary directory can be made");
        let open = fs::Permissions::from_mode(0o755);
        fs::set_permissions(directory.path(), open).expect("the directory is ours");
        let library = directory.path().join("libdipc.so");
        fs::copy(programs::libdipc(), &library).expect("libdipc can be copied");
        let subnet = Subnet::reserve();
        let address = |number: usize| match self.network {
            Network::Shared => subnet.address(number),
            Network::Own => SocketAddr::new(IpAddr::V4(link::address(number)), PORT),
        };
        let addresses: Vec<SocketAddr> = (1..=self.nodes).map(address).collect();
        let new_node = |index: usize| {
            let number = index + 1;
            let home = directory.path().join(number.to_string());
            let machine = Machine::new(self.limits_of(number), self.network);
            match &between {
                Between::Loopback => {}
                Between::Switch(switch) => switch.connect(&machine, number),
                Between::Proxy(proxy) => proxy.connect(&machine, number),
            }
            let (wrapper, user) = (self.wrapper.clone(), self.user);
            let start = Start { options: self.options_of(number), wrapper, user };
            let node = Node::new(number, addresses[index], home, library.clone(), machine, start);
            fs::write(node.config(), self.config(&node, &addresses))
                .expect("the directory is ours");
            node
        };
        let nodes: Vec<Node> = (0..self.nodes).map(new_node).collect();
        Cluster { nodes, between, _subnet: subnet, directory, _turn: turn }
    }

    fn options_of(&self, number: usize) -> Vec<String> {
        let own = self.options_of.iter().filter(|(of, _)| *of == number);
        self.options.iter().chain(own.map(|(_, option)| option)).cloned().collect()
    }

    fn limits_of(&self, number: usize) -> Limits {
        let given = self.limits.iter().find(|(of, _)| *of == number);
        given.map_or(Limits::Usual, |(_, limits)| *limits)
    }

    fn config(&self, node: &Node, addresses: &[SocketAddr]) -> String {
        let here = node.directory().display();
        let all: Vec<String> = addresses.iter().map(|address| address.ip().to_string()).collect();
        let mut text = format!("this_machine = {}\nreferee = {}\n", node.address, addresses[0]);
        text += &format!("socket = {here}/sock\nstate_dir = {here}/state\nlib_dir = {here}/lib\n");
        text += &format!("allow_file = {here}/../dipc.allow\n");
        if crate::skip::is_root() {
            text += &format!("root = {}\n", all.join(", "));
        }
        let top = node.directory().parent().expect("the cluster's directory");
        let allowed = [&all[..], &self.allowed].concat().join("\n");
        fs::write(top.join("dipc.allow"), allowed + "\n").expect("the directory is ours");
        if self.network == Network::Own {
            text += &format!("cluster_key = {}\n", key_file(top).display());
        }
        for (name, value) in &self.entries {
            text += &format!("{name} = {value}\n");
        }
        text
    }
}

fn key_file(directory: &Path) -> PathBuf {
    let file = directory.join("cluster.key");
    if !file.exists() {
        let made = Command::new(programs::dipcd()).arg("--make-key").arg(&file).status();
        assert!(made.expect("dipcd starts").success(), "dipcd --make-key failed");
    }
    file
}

/// What lies between the nodes.
enum Between {
    Loopback,
    Switch(Switch),
    Proxy(Proxy),
}

/// Nodes that know each other.
pub struct Cluster {
    nodes: Vec<Node>,
    between: Between,
    _subnet: Subnet,
    directory: TempDir,
    _turn: Turn,
}

impl Cluster {
    /// A cluster of that many nodes, to be described further.
    pub fn of(nodes: usize) -> Builder {
        Builder {
            nodes,
            entries: Vec::new(),
            options: Vec::new(),
            options_of: Vec::new(),
            wrapper: None,
            user: None,
            allowed: Vec::new(),
            limits: Vec::new(),
            network: Network::Shared,
            share: 1,
        }
    }

    /// Starts that many nodes as they come.
    pub fn start(nodes: usize) -> Cluster {
        Cluster::of(nodes).start()
    }

    /// The node with that number, from 1; the first is the referee.
    pub fn node(&self, number: usize) -> &Node {
        &self.nodes[number - 1]
    }

    /// All of them.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// The directory of the cluster, which goes with it.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// A copy of a program that every user may run.
    pub fn install(&self, program: &Path) -> PathBuf {
        let name = program.file_name().expect("a program has a name");
        let copy = self.directory().join(name);
        if !copy.exists() {
            programs::copy(program, &copy);
        }
        copy
    }

    /// What has happened to packets, in a cluster with weather.
    pub fn toll(&self) -> &Toll {
        match &self.between {
            Between::Proxy(proxy) => proxy.toll(),
            _ => panic!("there is no weather here"),
        }
    }

    /// Cuts the network between two nodes, both ways.
    pub fn cut(&self, one: usize, other: usize) {
        link::cut(self.node(one).machine(), other);
        link::cut(self.node(other).machine(), one);
    }

    /// Ends [`Cluster::cut`].
    pub fn heal(&self, one: usize, other: usize) {
        link::heal(self.node(one).machine(), other);
        link::heal(self.node(other).machine(), one);
    }
}

/// 254 loopback addresses of our own: a listener on the last one keeps others away.
struct Subnet {
    prefix: [u8; 3],
    _listener: TcpListener,
}

impl Subnet {
    fn reserve() -> Subnet {
        static NEXT: Mutex<u32> = Mutex::new(0);
        let mut next = NEXT.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            *next += 1;
            let number = (std::process::id().wrapping_mul(61) + *next) % 60_000;
            let prefix = [127, 1 + (number / 256) as u8, (number % 256) as u8];
            let last = Ipv4Addr::new(prefix[0], prefix[1], prefix[2], 254);
            if let Ok(listener) = TcpListener::bind((last, PORT)) {
                return Subnet { prefix, _listener: listener };
            }
            assert!(*next < 1000, "no loopback address is free");
        }
    }

    fn address(&self, number: usize) -> SocketAddr {
        let last = u8::try_from(number).expect("few nodes");
        let [a, b, c] = self.prefix;
        SocketAddr::new(IpAddr::V4(Ipv4Addr::new(a, b, c, last)), PORT)
    }
}

/// Who may run clusters. Turns are given in the order in which they were asked for: who wants to
/// be alone would otherwise be passed over until everything else is done.
struct Turns {
    asked: u64,
    given: u64,
    running: usize,
}

static TURNS: Mutex<Turns> = Mutex::new(Turns { asked: 0, given: 0, running: 0 });
static CHANGED: Condvar = Condvar::new();

/// Leave to run a cluster. A test has one at a time: for a second one it could wait for itself.
struct Turn {
    share: usize,
}

impl Turn {
    fn wait(share: usize) -> Turn {
        let mut turns = TURNS.lock().unwrap_or_else(PoisonError::into_inner);
        let own = turns.asked;
        turns.asked += 1;
        while turns.given != own || turns.running + share > CLUSTERS_MAX {
            turns = CHANGED.wait(turns).unwrap_or_else(PoisonError::into_inner);
        }
        turns.given += 1;
        turns.running += share;
        // There may be room for the next as well.
        CHANGED.notify_all();
        Turn { share }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        TURNS.lock().unwrap_or_else(PoisonError::into_inner).running -= self.share;
        CHANGED.notify_all();
    }
}
