//! The tests' only unsafe: a network device whose cable ends in this process, and what a program
//! that serves its own page faults needs of the kernel (`liar.rs`).
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::ptr;

use rustix::mm::{self, MapFlags, MprotectFlags, ProtFlags, UserfaultfdFlags};

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

/// A userfaultfd of this process.
pub fn userfaultfd(flags: UserfaultfdFlags) -> io::Result<OwnedFd> {
    // SAFETY: nothing is registered with it here, so no access of this process changes its meaning.
    Ok(unsafe { mm::userfaultfd(flags | UserfaultfdFlags::CLOEXEC) }?)
}

/// New pages, of a file from its beginning or of nothing. They stay until this process ends.
pub fn map(file: Option<BorrowedFd<'_>>, bytes: usize, access: ProtFlags) -> io::Result<u64> {
    let anywhere = ptr::null_mut();
    let address = if let Some(file) = file {
        // SAFETY: the kernel chooses a place where nothing is.
        unsafe { mm::mmap(anywhere, bytes, access, MapFlags::SHARED, file, 0) }?
    } else {
        // SAFETY: as above.
        unsafe { mm::mmap_anonymous(anywhere, bytes, access, MapFlags::PRIVATE) }?
    };
    Ok(address as u64)
}

/// Takes back pages of [`map`].
pub fn unmap(address: u64, bytes: usize) -> io::Result<()> {
    // SAFETY: they are of `map`, and nothing of this program refers to them.
    Ok(unsafe { mm::munmap(ptr::without_provenance_mut(address as usize), bytes) }?)
}

/// The first word of a page of [`map`], which is opened for reading.
pub fn word_at(address: u64) -> io::Result<u64> {
    let page = ptr::with_exposed_provenance_mut::<u64>(address as usize);
    // SAFETY: the page is of `map`, and nothing of this program refers to it.
    unsafe { mm::mprotect(page.cast(), size_of::<u64>(), MprotectFlags::READ) }?;
    // SAFETY: it is mapped and may be read now; whoever else writes it is not this program.
    Ok(unsafe { page.read_volatile() })
}
