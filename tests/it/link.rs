//! The network between machines that have one of their own: a bridge in a namespace, and a virtual
//! cable to each machine. A cut is a neighbour entry with an address that nobody has: frames go
//! out and arrive nowhere, as on a real network that broke, with no error for the sender.
#![forbid(unsafe_code)]

use std::net::Ipv4Addr;
use std::process::Command;

use crate::machine::{Limits, Machine, Network};

/// An address of the link layer that no machine has.
const NOWHERE: &str = "02:00:00:00:de:ad";

/// The bridge.
pub struct Switch {
    machine: Machine,
}

impl Switch {
    /// Makes one; `None` without root or ip(8).
    pub fn new() -> Option<Switch> {
        let has_ip = Command::new("ip").arg("-V").output().is_ok_and(|out| out.status.success());
        if !crate::skip::is_root() || !has_ip {
            return None;
        }
        let switch = Switch { machine: Machine::new(Limits::Usual, Network::Own) };
        ip(&switch.machine, "link add bridge type bridge");
        ip(&switch.machine, "link set bridge up");
        Some(switch)
    }

    /// Connects a machine under the number `number`.
    pub fn connect(&self, machine: &Machine, number: usize) {
        let holder = machine.holder_pid().expect("a machine with a network has a holder");
        let cable = format!("link add port{number} type veth peer name wire netns {holder}");
        ip(&self.machine, &cable);
        ip(&self.machine, &format!("link set port{number} master bridge up"));
        ip(machine, &format!("addr add {}/24 dev wire", address(number)));
        ip(machine, "link set wire up");
    }
}

/// The address of a machine on the bridge.
pub fn address(number: usize) -> Ipv4Addr {
    Ipv4Addr::new(10, 99, 0, u8::try_from(number).expect("few machines"))
}

/// From now on nothing that `machine` sends reaches machine `other`.
pub fn cut(machine: &Machine, other: usize) {
    let to = address(other);
    ip(machine, &format!("neigh replace {to} lladdr {NOWHERE} dev wire nud permanent"));
}

/// Ends [`cut`].
pub fn heal(machine: &Machine, other: usize) {
    ip(machine, &format!("neigh del {} dev wire", address(other)));
}

fn ip(machine: &Machine, arguments: &str) {
    let mut command = Command::new("ip");
    command.args(arguments.split(' '));
    machine.run(command).expect_success();
}
