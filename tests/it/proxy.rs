//! A bad network between machines: it delays, loses, reorders and doubles packets. Each machine has
//! a network device whose cable ends here, so that addresses and ports are what they are on a good
//! network, and TCP and UDP alike have to cope.
//!
//! All chance comes from one seed. The devices go with this process, however it ends.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

use crate::link;
use crate::machine::Machine;
use crate::sys;

/// The device of a machine.
const DEVICE: &str = "wire";
/// Room for any packet: the devices have Ethernet's MTU.
const PACKET_BYTES: usize = 2048;
/// How much later a packet comes that others shall overtake.
const LATE: Duration = Duration::from_millis(4);
/// Packets that may be on their way: more are lost, as in any router.
const PACKETS_MAX: usize = 20_000;

/// What the network does to packets.
#[derive(Clone, Copy, Debug, Default)]
pub struct Weather {
    /// How long each is on its way, at least.
    pub delay: Duration,
    /// Of a thousand, how many are lost.
    pub lost: u32,
    /// Of a thousand, how many come late.
    pub late: u32,
    /// Of a thousand, how many come twice.
    pub doubled: u32,
}

impl Weather {
    /// A line across an ocean: 150 ms each way, and one packet of a hundred lost.
    pub const OCEAN: Weather =
        Weather { delay: Duration::from_millis(150), lost: 10, late: 0, doubled: 0 };
    /// A bad line: of a hundred packets five are lost, ten come late and two twice.
    pub const STORM: Weather = Weather { delay: Duration::ZERO, lost: 50, late: 100, doubled: 20 };
}

/// What has happened to packets.
#[derive(Debug, Default)]
pub struct Toll {
    /// Passed on.
    pub passed: AtomicUsize,
    /// Lost.
    pub lost: AtomicUsize,
}

/// The cables, by the last number of their machines' addresses.
type Ports = Arc<Mutex<BTreeMap<u8, Arc<OwnedFd>>>>;

/// The network. It ends when it is dropped.
pub struct Proxy {
    ports: Ports,
    toll: Arc<Toll>,
    bell: Arc<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

impl Proxy {
    /// Makes one; `None` without root, ip(8) or /dev/net/tun.
    pub fn new(weather: Weather) -> Option<Proxy> {
        let has_ip = Command::new("ip").arg("-V").output().is_ok_and(|out| out.status.success());
        if !crate::skip::is_root() || !has_ip || !std::path::Path::new("/dev/net/tun").exists() {
            return None;
        }
        let bell = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK);
        let bell = Arc::new(bell.expect("a descriptor is left"));
        let (ports, toll) = (Arc::default(), Arc::default());
        let mut road = Road {
            ports: Arc::clone(&ports),
            toll: Arc::clone(&toll),
            bell: Arc::clone(&bell),
            weather,
            under_way: BTreeMap::new(),
            count: 0,
            random: 0x9e37_79b9_7f4a_7c15,
        };
        let thread = Some(thread::spawn(move || road.run()));
        Some(Proxy { ports, toll, bell, thread })
    }

    /// Connects a machine under the number `number`.
    pub fn connect(&self, machine: &Machine, number: usize) {
        let device = machine.inside(|| sys::tun(DEVICE)).expect("root may make a device");
        for arguments in [
            format!("addr add {}/24 dev {DEVICE}", link::address(number)),
            format!("link set {DEVICE} up"),
        ] {
            let mut command = Command::new("ip");
            command.args(arguments.split(' '));
            machine.run(command).expect_success();
        }
        let port = link::address(number).octets()[3];
        self.ports.lock().unwrap_or_else(PoisonError::into_inner).insert(port, Arc::new(device));
        self.ring();
    }

    /// What has happened to packets so far.
    pub fn toll(&self) -> &Toll {
        &self.toll
    }

    fn ring(&self) {
        rustix::io::write(&self.bell, &1u64.to_ne_bytes()).expect("it counts far");
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.ports.lock().unwrap_or_else(PoisonError::into_inner).clear();
        self.ring();
        // It has said so if it panicked.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// The thread's own.
struct Road {
    ports: Ports,
    toll: Arc<Toll>,
    bell: Arc<OwnedFd>,
    weather: Weather,
    /// By the time at which they arrive, and their number: where to, and what.
    under_way: BTreeMap<(Instant, u64), (u8, Vec<u8>)>,
    count: u64,
    random: u64,
}

impl Road {
    /// Passes packets on until nobody is connected any more.
    fn run(&mut self) {
        let mut was_connected = false;
        loop {
            self.wait();
            let ports = Arc::clone(&self.ports);
            let ports = ports.lock().unwrap_or_else(PoisonError::into_inner);
            if ports.is_empty() && was_connected {
                return;
            }
            was_connected |= !ports.is_empty();
            // It only says that something has changed.
            let _ = rustix::io::read(&self.bell, &mut [0u8; 8]);
            for port in ports.values() {
                self.take(port);
            }
            self.deliver(&ports);
        }
    }

    /// Until a packet comes, is due, or something changes.
    fn wait(&self) {
        let ports = self.ports.lock().unwrap_or_else(PoisonError::into_inner);
        let cables: Vec<Arc<OwnedFd>> = ports.values().cloned().collect();
        drop(ports);
        let mut watched: Vec<PollFd<'_>> =
            cables.iter().map(|cable| PollFd::new(cable, PollFlags::IN)).collect();
        watched.push(PollFd::new(&self.bell, PollFlags::IN));
        let due = self.under_way.first_key_value().map(|((at, _), _)| *at);
        let left = due.map(|at| at.saturating_duration_since(Instant::now()));
        let left = left.map(|left| Timespec::try_from(left).expect("a short time"));
        // An interrupted wait is a short one.
        let _ = poll(&mut watched, left.as_ref());
    }

    /// Takes what a machine has sent, up to a share.
    fn take(&mut self, port: &OwnedFd) {
        let mut packet = [0; PACKET_BYTES];
        for _ in 0..64 {
            let Ok(count) = rustix::io::read(port, &mut packet) else { return };
            self.send(&packet[..count]);
        }
    }

    /// Sends a packet on its way, or loses it.
    fn send(&mut self, packet: &[u8]) {
        // IPv4 between machines of ours (RFC 791, section 3.1).
        let is_ours = packet.len() >= 20 && packet[0] >> 4 == 4;
        if !is_ours || packet[16..19] != link::address(1).octets()[..3] {
            return;
        }
        if self.chance(self.weather.lost) || self.under_way.len() >= PACKETS_MAX {
            self.toll.lost.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let copies = if self.chance(self.weather.doubled) { 2 } else { 1 };
        for _ in 0..copies {
            let late = if self.chance(self.weather.late) { LATE } else { Duration::ZERO };
            self.count += 1;
            let at = Instant::now() + self.weather.delay + late;
            self.under_way.insert((at, self.count), (packet[19], packet.to_vec()));
        }
    }

    fn deliver(&mut self, ports: &BTreeMap<u8, Arc<OwnedFd>>) {
        let now = Instant::now();
        while let Some(first) = self.under_way.first_entry()
            && first.key().0 <= now
        {
            let (port, packet) = first.remove();
            let Some(device) = ports.get(&port) else { continue };
            // A machine that takes nothing loses it.
            let _ = rustix::io::write(device, &packet);
            self.toll.passed.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Whether it happens, of a thousand times so many.
    fn chance(&mut self, of_thousand: u32) -> bool {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        (self.random >> 32) % 1000 < u64::from(of_thousand)
    }
}
