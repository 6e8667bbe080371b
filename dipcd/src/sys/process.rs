//! Processes, threads and signals: fork, the signal that ends a wait, and the signals that are
//! meant for others.

use rustix::process::Signal;
use rustix::thread::Pid;
use std::ffi::c_int;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

/// The signal that brings a worker out of a waiting system call.
const INTERRUPTION: c_int = libc::SIGUSR1;

/// Which side of a fork this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Forked {
    /// The parent, with the child's pid.
    Parent(u32),
    /// The child.
    Child,
}

/// fork(2). In a process with several threads the child may only make system calls and end.
pub fn fork() -> io::Result<Forked> {
    // SAFETY: it has no arguments; the rule for the child is the caller's, said above.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(Forked::Child),
        pid => Ok(Forked::Parent(pid.unsigned_abs())),
    }
}

/// Sends a process a signal that is about an address in it (`si_addr` for its handler), as it were
/// queued (sigqueue(3)). One that has ended needs none.
pub fn send_signal_about(pidfd: &OwnedFd, signal: c_int, address: u64) {
    // SAFETY: a siginfo_t is plain integers and pointers, for which zeros are values.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    info.si_signo = signal;
    info.si_code = libc::SI_QUEUE;
    let place = (&raw mut info).cast::<u8>().wrapping_add(SI_ADDR).cast::<u64>();
    // SAFETY: `si_addr` lies within the structure, at a multiple of eight.
    unsafe { place.write(address) };
    // SAFETY: the structure outlives the call, which only reads it.
    let _ = unsafe {
        libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), signal, &raw const info, 0)
    };
}

/// Where `si_addr` stands in a siginfo_t of a 64-bit Linux.
const SI_ADDR: usize = 16;

/// Ends this process at once, without its destructors and exit handlers.
pub fn exit_now(code: i32) -> ! {
    // SAFETY: it has no preconditions and does not return.
    unsafe { libc::_exit(code) }
}

/// Closes every descriptor above the three standard ones: for a process that was just started by
/// exec and has opened nothing yet, or a child that ends before anybody uses one again.
pub fn close_inherited() -> io::Result<()> {
    // SAFETY: by this function's rule nothing uses one of them from here on.
    match unsafe { libc::close_range(3, u32::MAX, 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Closes every descriptor above the three standard ones but one: for a child whose parent's
/// owners of descriptors were forgotten.
pub fn close_all_but(kept: &OwnedFd) -> io::Result<()> {
    let kept = kept.as_raw_fd().unsigned_abs();
    for (first, last) in [(3, kept - 1), (kept + 1, u32::MAX)] {
        // SAFETY: by this function's rule nothing uses one of them from here on.
        if first <= last && unsafe { libc::close_range(first, last, 0) } != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// Has the command's process get SIGTERM when the thread that starts it ends (prctl(2)), and not
/// begin at all when it has ended already.
pub fn end_with_parent(command: &mut Command) {
    let parent = rustix::process::getpid();
    let before_exec = move || {
        rustix::process::set_parent_process_death_signal(Some(Signal::TERM))?;
        match rustix::process::getppid() {
            Some(now) if now == parent => Ok(()),
            _ => Err(io::Error::from_raw_os_error(libc::ESRCH)),
        }
    };
    // SAFETY: between fork and exec the closure makes two system calls and allocates nothing.
    unsafe { command.pre_exec(before_exec) };
}

/// Ignores the signals that a terminal or a service manager sends to everybody, and those of
/// broken connections and ended children: children are then reaped by the kernel.
pub fn ignore_signals() {
    let ignored = [libc::SIGHUP, libc::SIGINT, libc::SIGTERM, libc::SIGPIPE, libc::SIGCHLD];
    for signal in ignored {
        set_handler(signal, libc::SIG_IGN);
    }
}

/// Makes [`interrupt`] end waiting system calls with `EINTR`.
pub fn accept_interruptions() {
    extern "C" fn nothing(_signal: c_int) {}
    let nothing: extern "C" fn(c_int) = nothing;
    set_handler(INTERRUPTION, nothing as libc::sighandler_t);
}

fn set_handler(signal: c_int, handler: libc::sighandler_t) {
    // SAFETY: all bytes zero is a valid sigaction: an empty mask and no flags, so that waits are
    // not restarted.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = handler;
    // SAFETY: `action` outlives the call; its handler is SIG_IGN or does nothing.
    let rc = unsafe { libc::sigaction(signal, &raw const action, std::ptr::null_mut()) };
    assert_eq!(rc, 0, "signal {signal} is one that can be handled");
}

/// Signals one thread of this process.
pub fn interrupt(thread: Pid) {
    let own = rustix::process::getpid().as_raw_nonzero().get();
    let thread = thread.as_raw_nonzero().get();
    // SAFETY: three integers; a thread that has ended makes it fail, which is as good.
    unsafe { libc::syscall(libc::SYS_tgkill, own, thread, INTERRUPTION) };
}

/// Takes this thread into an IPC namespace of its own, which ends with it.
#[cfg(test)]
pub fn enter_private_ipc() -> io::Result<()> {
    // SAFETY: it takes flags alone; NEWIPC concerns no memory and no descriptor.
    match unsafe { libc::unshare(libc::CLONE_NEWIPC) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
