//! The two traps behind one interface: what can be done to the pages of one address space.
//!
//! A userfaultfd acts at once. The helper thread of the mprotect trap is asked over its socket and
//! answers; it only ever closes pages here, and each is opened when its own program touches it or
//! one before it. So what it has open is never more than what the node holds.
#![forbid(unsafe_code)]

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use dipc_wire::client::{Mm, Trap};
use dipc_wire::memory::Access;
use dipc_wire::trap::{OBEYED_BYTES, Obeyed, Order, Pages, What};

use crate::clock::now_ms;
use crate::memory::families::patience::Patience;
use crate::sys::faults::{Trouble, Userfaultfd, Watched};

/// What a thread in the kernel takes to go on once its event has been read, and more.
const MOMENT: Timespec = Timespec { tv_sec: 0, tv_nsec: 50_000 };

/// The trap of one address space.
#[derive(Debug)]
pub enum Means {
    /// [`Trap::Full`] or [`Trap::UserMode`].
    Userfaultfd(Trap, Userfaultfd),
    /// [`Trap::Mprotect`].
    Helper(Helper),
    /// The address space is no more.
    Gone(Trap),
}

type Result<T> = std::result::Result<T, Trouble>;

impl Means {
    /// By a descriptor that has been checked, or that a predecessor took.
    pub fn adopt(trap: Trap, fd: Arc<OwnedFd>, patience: &Arc<Patience>) -> Means {
        match trap {
            Trap::Full | Trap::UserMode => Means::Userfaultfd(trap, Userfaultfd::adopt(fd)),
            Trap::Mprotect => Means::Helper(Helper::new(fd, patience.clone())),
        }
    }

    /// Which of the three it is.
    pub fn trap(&self) -> Trap {
        match self {
            Means::Userfaultfd(trap, _) => *trap,
            Means::Helper(_) => Trap::Mprotect,
            Means::Gone(trap) => *trap,
        }
    }

    /// Has accesses reported that the program makes by itself.
    pub fn register(&self, pages: Pages, watched: Watched) -> Result<()> {
        match self {
            Means::Userfaultfd(_, uffd) => uffd.register(pages, watched),
            Means::Helper(_) => Ok(()),
            Means::Gone(_) => Err(Trouble::Gone),
        }
    }

    /// Nobody stores there any more.
    pub fn protect(&self, pages: Pages) -> Result<()> {
        match self {
            Means::Userfaultfd(_, uffd) => uffd.protect(pages),
            Means::Helper(helper) => helper.order(What::Close(pages)),
            Means::Gone(_) => Err(Trouble::Gone),
        }
    }

    /// Nobody reads there any more either, or soon, when the file has a hole there: a reader whose
    /// page it is then waits.
    pub fn close(&self, pages: Pages) -> Result<()> {
        match self {
            Means::Userfaultfd(..) => Ok(()),
            Means::Helper(helper) => helper.order(What::Close(pages)),
            Means::Gone(_) => Err(Trouble::Gone),
        }
    }

    /// Whoever waits there tries again.
    pub fn wake(&self, pages: Pages) -> Result<()> {
        match self {
            Means::Userfaultfd(_, uffd) => uffd.wake(pages),
            Means::Helper(_) => Ok(()),
            Means::Gone(_) => Err(Trouble::Gone),
        }
    }

    /// Waits a moment for an event to come, or for a thread in the kernel to go on after one.
    pub fn wait_a_moment(&self) {
        let Means::Userfaultfd(_, uffd) = self else { return };
        let mut watched = [PollFd::new(uffd, PollFlags::IN)];
        let _ = rustix::event::poll(&mut watched, Some(&MOMENT));
    }
}

/// A thread of ours in the program, at the other end of a socket.
#[derive(Debug)]
pub struct Helper {
    socket: Arc<OwnedFd>,
    /// Grows, also from one dipcd to the next.
    number: AtomicU64,
    patience: Arc<Patience>,
}

impl Helper {
    fn new(socket: Arc<OwnedFd>, patience: Arc<Patience>) -> Helper {
        // Fewer than a million orders come in a millisecond.
        Helper { socket, number: (now_ms() << 20).into(), patience }
    }

    /// Tells it who it is; it writes that into its sentinel page.
    pub fn name(&self, mm: Mm) -> Result<()> {
        self.order(What::Name(mm))
    }

    /// Opens pages, as far as the program itself wants it.
    pub fn open(&self, access: Access, pages: Pages) -> Result<()> {
        self.order(What::Open(access, pages))
    }

    /// Whether somebody may still be at the other end.
    pub fn probe(&self) -> Result<()> {
        let mut watched = [PollFd::new(&self.socket, PollFlags::RDHUP)];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        match rustix::event::poll(&mut watched, Some(&now)) {
            Ok(0) | Err(_) => Ok(()),
            Ok(_) => Err(Trouble::Gone),
        }
    }

    /// One order and its answer. No answer in time is [`Trouble::Failed`].
    fn order(&self, what: What) -> Result<()> {
        let number = self.number.fetch_add(1, Ordering::Relaxed);
        let packet = Order { number, what }.to_bytes();
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        match rustix::net::send(&self.socket, &packet, flags) {
            Ok(_) => {}
            Err(Errno::PIPE | Errno::CONNRESET | Errno::NOTCONN) => return Err(Trouble::Gone),
            Err(error) => return Err(Trouble::Failed(error.into())),
        }
        let deadline = Instant::now() + self.patience.left();
        loop {
            self.wait_until(deadline)?;
            let mut answer = [0; OBEYED_BYTES];
            match rustix::net::recv(&self.socket, &mut answer, RecvFlags::DONTWAIT) {
                Ok((0, _)) | Err(Errno::CONNRESET) => return Err(Trouble::Gone),
                Err(Errno::AGAIN | Errno::INTR) => {}
                Err(error) => return Err(Trouble::Failed(error.into())),
                Ok(_) => match Obeyed::from_bytes(&answer) {
                    // An answer to somebody before us, or to an order we gave up.
                    Obeyed { number: other, .. } if other != number => {}
                    Obeyed { errno: 0, .. } => return Ok(()),
                    // What was to be closed is closed all the same.
                    Obeyed { errno, .. } => match what {
                        What::Close(_) => return Ok(()),
                        _ => return Err(Trouble::Failed(io::Error::from_raw_os_error(errno))),
                    },
                },
            }
        }
    }

    fn wait_until(&self, deadline: Instant) -> Result<()> {
        let left = deadline.saturating_duration_since(Instant::now());
        let left = Timespec::try_from(left).expect("a time-out is a few seconds");
        let mut watched = [PollFd::from_borrowed_fd(self.socket.as_fd(), PollFlags::IN)];
        match rustix::event::poll(&mut watched, Some(&left)) {
            Ok(0) => Err(Trouble::Failed(io::ErrorKind::TimedOut.into())),
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(error) => Err(Trouble::Failed(error.into())),
        }
    }
}
