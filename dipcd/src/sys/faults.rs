//! A userfaultfd of somebody else's address space (userfaultfd(2), ioctl_userfaultfd(2)): ranges
//! are registered, faults and forks read, pages protected and filled, all from outside.
//!
//! The descriptor came from a program, which may still hold it. So nothing here trusts its flags:
//! events are read with RWF_NOWAIT, which no `fcntl` of the program's can take away. `EAGAIN`,
//! `ENOENT` and `ESRCH` are ordinary answers and have names of their own ([`Trouble`]).

use rustix::fs::OFlags;
use rustix::io::{Errno, FdFlags, ReadWriteFlags};
use std::ffi::{c_int, c_void};
use std::io::{self, IoSliceMut};
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::Arc;
use userfaultfd::{RegisterMode, Uffd};
use userfaultfd_sys as raw;

use dipc_wire::trap::Pages;

/// What the link in /proc/self/fd says of a userfaultfd.
const LINK: &[u8] = b"anon_inode:[userfaultfd]";
/// Bytes of one event.
const EVENT_BYTES: usize = size_of::<raw::uffd_msg>();
/// Events that one read takes at most; each is one fault, fork or move.
const EVENTS_MAX: usize = 16;
/// What there must be: Linux 5.19.
const NEEDED: u64 = raw::UFFD_FEATURE_EVENT_FORK
    | raw::UFFD_FEATURE_EVENT_REMAP
    | raw::UFFD_FEATURE_MISSING_SHMEM
    | raw::UFFD_FEATURE_PAGEFAULT_FLAG_WP
    | raw::UFFD_FEATURE_THREAD_ID
    | raw::UFFD_FEATURE_WP_HUGETLBFS_SHMEM;

/// Why something could not be done to an address space.
#[derive(Debug)]
pub enum Trouble {
    /// It exists no more: its process has ended, or runs another program.
    Gone,
    /// It is being forked or a mapping of it moved: an event must be read first.
    Pending,
    /// Something else is mapped there, or nothing, or it is not registered.
    NotThere,
    /// There is a page, or a mark, already.
    AlreadyThere,
    /// Anything else.
    Failed(io::Error),
}

type Result<T> = std::result::Result<T, Trouble>;

impl From<Errno> for Trouble {
    fn from(errno: Errno) -> Trouble {
        match errno {
            Errno::SRCH => Trouble::Gone,
            Errno::AGAIN => Trouble::Pending,
            Errno::NOENT | Errno::INVAL => Trouble::NotThere,
            Errno::EXIST => Trouble::AlreadyThere,
            other => Trouble::Failed(other.into()),
        }
    }
}

impl From<userfaultfd::Error> for Trouble {
    fn from(error: userfaultfd::Error) -> Trouble {
        match error {
            userfaultfd::Error::SystemError(errno) | userfaultfd::Error::CopyFailed(errno) => {
                Errno::from_raw_os_error(errno as i32).into()
            }
            userfaultfd::Error::PartiallyCopied(_) => Trouble::Pending,
            other => Trouble::Failed(io::Error::other(other)),
        }
    }
}

/// Whether pages can be given that are lost: Linux 6.6.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CanPoison {
    /// They can.
    Yes,
    /// They cannot: a signal must do.
    No,
}

/// Which accesses to a range are reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Watched {
    /// To pages that the file does not have.
    Missing,
    /// Those, and stores to protected pages.
    MissingAndProtected,
}

/// What a userfaultfd has to say.
#[derive(Debug)]
pub enum Event {
    /// A thread waits.
    Fault {
        /// Where, the beginning of its page.
        address: u64,
        /// Whether it stores.
        stores: bool,
        /// Its number in its own pid namespace.
        thread: u32,
    },
    /// The program has forked; the child runs from now on.
    Fork(OwnedFd),
    /// A mapping has been moved.
    Moved {
        /// Where it was.
        from: u64,
        /// Where it is.
        to: u64,
        /// How long it was; 0 if it is there still and this is another one of the same.
        bytes: u64,
    },
    /// Something that was not asked for.
    Other,
}

/// The means to serve the faults of one address space.
#[derive(Debug)]
pub struct Userfaultfd {
    fd: Arc<OwnedFd>,
    /// The same descriptor, which `fd` closes and not this.
    uffd: ManuallyDrop<Uffd>,
}

impl AsFd for Userfaultfd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Userfaultfd {
    /// Takes one that a program made and nobody has used yet. Anything else is refused.
    pub fn take(fd: &OwnedFd) -> io::Result<CanPoison> {
        check(fd.as_fd())?;
        // Who asks for what the kernel does not have is refused, and may ask again.
        match handshake(fd.as_fd(), NEEDED | raw::UFFD_FEATURE_POISON) {
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                handshake(fd.as_fd(), NEEDED)?;
                Ok(CanPoison::No)
            }
            done => done.map(|()| CanPoison::Yes),
        }
    }

    /// One that has been taken, now or by a predecessor, or that of a forked child.
    pub fn adopt(fd: Arc<OwnedFd>) -> Userfaultfd {
        // SAFETY: the descriptor is open as long as `fd`, which lives as long as this, and is
        // not closed by it: it is never dropped.
        let uffd = ManuallyDrop::new(unsafe { Uffd::from_raw_fd(fd.as_raw_fd()) });
        Userfaultfd { fd, uffd }
    }

    /// Whether this process may serve others: it makes one and tries.
    pub fn try_one() -> io::Result<CanPoison> {
        let flags = libc::O_CLOEXEC | libc::O_NONBLOCK;
        // SAFETY: it takes one number and makes a descriptor.
        let made = unsafe { libc::syscall(libc::SYS_userfaultfd, flags) };
        let made = c_int::try_from(made).unwrap_or(-1);
        if made < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel has just made it for us, and nobody else knows it.
        Userfaultfd::take(&unsafe { OwnedFd::from_raw_fd(made) })
    }

    /// The descriptor, for the keeper.
    pub fn fd(&self) -> &Arc<OwnedFd> {
        &self.fd
    }

    /// Has accesses to a range reported, besides those that were.
    pub fn register(&self, pages: Pages, watched: Watched) -> Result<()> {
        let mode = match watched {
            Watched::Missing => RegisterMode::MISSING,
            Watched::MissingAndProtected => RegisterMode::MISSING | RegisterMode::WRITE_PROTECT,
        };
        let (start, bytes) = place(pages);
        self.uffd.register_with_mode(start, bytes, mode)?;
        Ok(())
    }

    /// Has none reported any more; who waits goes on.
    pub fn unregister(&self, pages: Pages) -> Result<()> {
        let (start, bytes) = place(pages);
        Ok(self.uffd.unregister(start, bytes)?)
    }

    /// From now on a store waits. The range is registered for it.
    pub fn protect(&self, pages: Pages) -> Result<()> {
        let (start, bytes) = place(pages);
        Ok(self.uffd.write_protect(start, bytes)?)
    }

    /// Stores go on, and who waits there for anything.
    pub fn unprotect(&self, pages: Pages) -> Result<()> {
        let (start, bytes) = place(pages);
        Ok(self.uffd.remove_write_protection(start, bytes, true)?)
    }

    /// Whoever waits there tries again.
    pub fn wake(&self, pages: Pages) -> Result<()> {
        let (start, bytes) = place(pages);
        Ok(self.uffd.wake(start, bytes)?)
    }

    /// Puts a page of anonymous memory in place and wakes who waits for it.
    pub fn fill(&self, address: u64, content: &[u8]) -> Result<()> {
        let (start, from) = (address as *mut c_void, content.as_ptr().cast::<c_void>());
        // SAFETY: `content` has that many bytes and outlives the call. The kernel writes into the
        // address space of the program only, and refuses what is not registered there.
        let copied = unsafe { self.uffd.copy(from, start, content.len(), true) }?;
        if copied == content.len() { Ok(()) } else { Err(Trouble::Pending) }
    }

    /// Who touches a page that is not there and not marked, or waits for it, gets SIGBUS, or
    /// EFAULT in a system call.
    pub fn poison(&self, pages: Pages) -> Result<()> {
        let range = raw::uffdio_range { start: pages.address, len: pages.bytes };
        let mut poison = raw::uffdio_poison { range, mode: 0, updated: 0 };
        self.ioctl(raw::_UFFDIO_POISON, &mut poison)
    }

    /// Maps pages of the file that are there, also over poison, and wakes who waits for them.
    pub fn map(&self, pages: Pages, protected: Protected) -> Result<()> {
        let range = raw::uffdio_range { start: pages.address, len: pages.bytes };
        let mode = match protected {
            Protected::Yes => raw::UFFDIO_CONTINUE_MODE_WP,
            Protected::No => 0,
        };
        let mut map = raw::uffdio_continue { range, mode, mapped: 0 };
        self.ioctl(raw::_UFFDIO_CONTINUE, &mut map)
    }

    /// Maps pages of the file that were just filled, over whatever marks there are, and wakes who
    /// waits for them: that saves each of them another fault. What cannot be mapped is left to
    /// that fault. Stores to pages that are mapped already wait as before.
    pub fn show(&self, pages: Pages, protected: Protected) -> Result<()> {
        let range = raw::uffdio_range { start: pages.address, len: pages.bytes };
        let mode = match protected {
            Protected::Yes => raw::UFFDIO_CONTINUE_MODE_WP,
            Protected::No => 0,
        };
        let mut show = raw::uffdio_continue { range, mode, mapped: 0 };
        loop {
            match self.ioctl(raw::_UFFDIO_CONTINUE, &mut show) {
                Ok(()) => return Ok(()),
                // Cut short: by a page that is mapped already, say.
                Err(Trouble::Pending) if show.mapped > 0 => {
                    show.range = behind(show.range, show.mapped);
                    show.mapped = 0;
                }
                Err(trouble @ (Trouble::Gone | Trouble::Pending)) => return Err(trouble),
                Err(_) => break,
            }
        }
        match protected {
            Protected::Yes => self.wake(pages),
            Protected::No => self.unprotect(pages),
        }
    }

    /// Whether the address space is still there, by asking what cannot be done.
    pub fn probe(&self, sentinel: Pages) -> Result<()> {
        match self.protect(sentinel) {
            // It is registered, but not for that.
            Err(Trouble::NotThere) => Ok(()),
            other => other,
        }
    }

    fn ioctl<T>(&self, number: u64, argument: &mut T) -> Result<()> {
        // SAFETY: `argument` is the layout that belongs to the number, as its size in the
        // request says, and outlives the call; the kernel writes no further than that.
        let rc = unsafe {
            libc::ioctl(self.fd.as_raw_fd(), request::<T>(number), std::ptr::from_mut(argument))
        };
        if rc == 0 { Ok(()) } else { Err(last_errno().into()) }
    }

    /// Undoes what a program did to the flags of its descriptor, which is the same open file.
    pub fn make_nonblocking(&self) {
        // Reading does not depend on it, waiting for it does.
        let _ = rustix::fs::fcntl_setfl(&self.fd, OFlags::NONBLOCK);
    }

    /// Reads what there is, at most [`EVENTS_MAX`] events, without waiting.
    pub fn read(&self) -> io::Result<Vec<Event>> {
        let mut bytes = [0; EVENTS_MAX * EVENT_BYTES];
        let length = match self.read_now(&mut bytes) {
            Err(Errno::AGAIN | Errno::INTR) => 0,
            length => length?,
        };
        Ok(bytes[..length].chunks_exact(EVENT_BYTES).map(decode).collect())
    }

    fn read_now(&self, bytes: &mut [u8]) -> rustix::io::Result<usize> {
        let mut parts = [IoSliceMut::new(bytes)];
        // An offset of all ones: where the file stands, as for what has no places.
        match rustix::io::preadv2(&self.fd, &mut parts, u64::MAX, ReadWriteFlags::NOWAIT) {
            // Before Linux 6.10. It is not blocking as long as its program leaves it so.
            Err(Errno::OPNOTSUPP | Errno::SPIPE) => rustix::io::read(&self.fd, bytes),
            length => length,
        }
    }
}

/// Whether stores to a page that is mapped now wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protected {
    /// They do.
    Yes,
    /// They do not.
    No,
}

/// No ioctl on anything that is not what it should be: a file of somebody's own could block.
fn check(fd: BorrowedFd<'_>) -> io::Result<()> {
    let refuse = |why| Err(io::Error::new(io::ErrorKind::InvalidInput, why));
    let link = format!("/proc/self/fd/{}", fd.as_raw_fd());
    if rustix::fs::readlink(link, Vec::new())?.as_bytes() != LINK {
        return refuse("the descriptor is no userfaultfd");
    }
    if !rustix::fs::fcntl_getfl(fd)?.contains(OFlags::NONBLOCK) {
        return refuse("the userfaultfd blocks");
    }
    Ok(())
}

fn handshake(fd: BorrowedFd<'_>, features: u64) -> io::Result<()> {
    let mut api = raw::uffdio_api { api: raw::UFFD_API, features, ioctls: 0 };
    let request = request::<raw::uffdio_api>(raw::_UFFDIO_API);
    // SAFETY: `api` is the argument of this request and outlives the call.
    let rc = unsafe { libc::ioctl(fd.as_raw_fd(), request, &raw mut api) };
    if rc == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// `_IOWR` of linux/ioctl.h: both ways, the size of the argument, the type, the number.
fn request<T>(number: u64) -> libc::Ioctl {
    let both_ways = 3;
    let request = both_ways << 30 | (size_of::<T>() as u64) << 16;
    (request | u64::from(raw::UFFDIO) << 8 | number) as libc::Ioctl
}

/// What is left of a range when so much of it is done.
fn behind(range: raw::uffdio_range, done: i64) -> raw::uffdio_range {
    let done = u64::try_from(done).unwrap_or(0).min(range.len);
    raw::uffdio_range { start: range.start + done, len: range.len - done }
}

fn last_errno() -> Errno {
    Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::IO)
}

fn place(pages: Pages) -> (*mut c_void, usize) {
    // An address of another process: a number that this one never follows.
    (pages.address as *mut c_void, pages.bytes as usize)
}

/// One event, by the layout of `uffd_msg`.
fn decode(bytes: &[u8]) -> Event {
    let word = |at: usize| {
        let word = bytes[at..at + 8].try_into().expect("eight bytes");
        u64::from_ne_bytes(word)
    };
    match bytes[0] {
        raw::UFFD_EVENT_PAGEFAULT => Event::Fault {
            stores: word(8) & raw::UFFD_PAGEFAULT_FLAG_WRITE != 0,
            address: word(16) / page_bytes() * page_bytes(),
            thread: word(24) as u32,
        },
        raw::UFFD_EVENT_FORK => {
            // SAFETY: the kernel has just made this descriptor for us, and nobody else knows it.
            let fd = unsafe { OwnedFd::from_raw_fd(word(8) as c_int) };
            let _ = rustix::io::fcntl_setfd(&fd, FdFlags::CLOEXEC);
            // It has the flags that its parent's was made with.
            let _ = rustix::fs::fcntl_setfl(&fd, OFlags::NONBLOCK);
            Event::Fork(fd)
        }
        raw::UFFD_EVENT_REMAP => Event::Moved { from: word(8), to: word(16), bytes: word(24) },
        _ => Event::Other,
    }
}

/// Sends SIGBUS to a thread that waits for a page which it will not get.
pub fn refuse(pid: u32, thread: u32) -> io::Result<()> {
    let (pid, thread) = (pid as c_int, thread as c_int);
    // SAFETY: three integers; a thread that has ended makes it fail.
    match unsafe { libc::syscall(libc::SYS_tgkill, pid, thread, libc::SIGBUS) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn page_bytes() -> u64 {
    rustix::param::page_size() as u64
}
