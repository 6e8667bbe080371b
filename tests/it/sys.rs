//! The tests' only unsafe: a network device whose cable ends in this process. Nothing but the one
//! ioctl that neither std nor rustix has.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

/// Makes a device `name` in the network namespace of this thread. What its machine sends is read
/// here, one packet a time, and what is written here arrives there; neither waits. The device goes
/// when this is closed.
pub fn tun(name: &str) -> io::Result<OwnedFd> {
    let device = File::options().read(true).write(true).open("/dev/net/tun")?;
    rustix::io::ioctl_fionbio(&device, true)?;
    let mut ifr_name = [0; libc::IFNAMSIZ];
    for (place, byte) in ifr_name.iter_mut().take(libc::IFNAMSIZ - 1).zip(name.bytes()) {
        *place = byte.cast_signed();
    }
    let flags = libc::IFF_TUN | libc::IFF_NO_PI;
    let ifru_flags = flags.try_into().expect("two low bits");
    let ifr_ifru = libc::__c_anonymous_ifr_ifru { ifru_flags };
    let mut request = libc::ifreq { ifr_name, ifr_ifru };
    // SAFETY: TUNSETIFF reads a struct ifreq and writes the name back into it; it keeps nothing.
    match unsafe { libc::ioctl(device.as_raw_fd(), libc::TUNSETIFF, &raw mut request) } {
        0 => Ok(device.into()),
        _ => Err(io::Error::last_os_error()),
    }
}
