//! What only unsafe code can do: raw system calls, the program's memory, threads, stacks.
//!
//! Every function here is safe to call. System calls are made directly, never through libc: other
//! preloaded libraries wrap libc's functions and might come back to us, libc's own set `errno`, and
//! some of them are cancellation points. No lock is taken and nothing is allocated, except by
//! [`on_thread_exit`] and the constructor.

#[cfg(not(all(target_os = "linux", target_arch = "x86_64")))]
compile_error!("libdipc knows the system calls and stack frames of Linux on x86-64 alone");

use std::arch::asm;
use std::ffi::{CStr, c_int, c_long, c_void};
use std::ops::Range;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::ptr;
use std::sync::atomic::{AtomicPtr, AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering};

pub mod files;
pub mod heap;
pub mod helper;
pub mod memory;
pub mod signals;
mod stack;
pub mod table;

pub use stack::on_own_stack;

unsafe extern "C" {
    fn pthread_setcancelstate(state: c_int, old: *mut c_int) -> c_int;
    fn secure_getenv(name: *const std::ffi::c_char) -> *const std::ffi::c_char;
}

unsafe extern "C-unwind" {
    fn pthread_testcancel();
}

/// Makes a system call with no wrapper around it.
///
/// # Safety
/// As the system call's own manual page demands of pointers and their lengths.
unsafe fn raw(number: c_long, arguments: [usize; 6]) -> Result<usize, i32> {
    let [a, b, c, d, e, f] = arguments;
    let result: isize;
    // SAFETY: the caller vouches for the arguments; the kernel changes rax, rcx and r11 alone.
    unsafe {
        asm!("syscall", inlateout("rax") number as isize => result,
            in("rdi") a, in("rsi") b, in("rdx") c, in("r10") d, in("r8") e, in("r9") f,
            lateout("rcx") _, lateout("r11") _, options(nostack));
    }
    if result < 0 { Err(-result as i32) } else { Ok(result as usize) }
}

/// The calling thread's `errno`.
pub fn errno() -> i32 {
    // SAFETY: libc returns the address of this thread's own variable.
    let place = unsafe { libc::__errno_location() };
    // SAFETY: it is valid as long as the thread.
    unsafe { *place }
}

/// Sets the calling thread's `errno`.
pub fn set_errno(value: i32) {
    // SAFETY: libc returns the address of this thread's own variable.
    let place = unsafe { libc::__errno_location() };
    // SAFETY: it is valid as long as the thread.
    unsafe { *place = value }
}

/// A signal mask as the kernel has it.
#[derive(Clone, Copy, Debug)]
#[repr(transparent)]
pub struct Mask(u64);

/// Blocks every signal but the one by which glibc changes the ids of all threads, which must not
/// wait for us. The one it cancels threads by is blocked too, so that it cannot come between our
/// decision to wait and the wait.
pub fn block_signals() -> Mask {
    set_mask(Mask::ALL)
}

/// Puts back what [`block_signals`] found.
pub fn restore_signals(mask: Mask) {
    set_mask(mask);
}

impl Mask {
    /// No signal comes through but the one of [`block_signals`].
    pub const ALL: Mask = Mask(!(1 << 32));
}

fn set_mask(Mask(mask): Mask) -> Mask {
    let mut old = 0u64;
    let arguments =
        [libc::SIG_SETMASK as usize, &raw const mask as usize, &raw mut old as usize, 8, 0, 0];
    // SAFETY: both pointers are to eight bytes of this frame.
    let result = unsafe { raw(libc::SYS_rt_sigprocmask, arguments) };
    assert!(result.is_ok(), "the arguments are constant");
    Mask(old)
}

/// A thread's cancellation state, as pthread_setcancelstate(3) has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cancellation(c_int);

impl Cancellation {
    const DISABLED: Cancellation = Cancellation(1);

    /// Whether a pending cancellation may be acted upon.
    pub fn is_enabled(self) -> bool {
        self != Self::DISABLED
    }
}

/// Until [`restore_cancellation`] this thread cannot be cancelled.
pub fn disable_cancellation() -> Cancellation {
    restore_cancellation(Cancellation::DISABLED)
}

/// Puts a state back; returns the one before.
pub fn restore_cancellation(state: Cancellation) -> Cancellation {
    let mut old = 0;
    // SAFETY: a valid state, and the place for the old one is of this frame.
    unsafe { pthread_setcancelstate(state.0, &mut old) };
    Cancellation(old)
}

/// Ends this thread if it has been cancelled. No value with a destructor may live in the frames
/// between here and the program.
#[inline]
pub fn test_cancellation() {
    // SAFETY: no arguments; that it may unwind is in its ABI.
    unsafe { pthread_testcancel() }
}

/// How a thread waits for a descriptor. Both are interrupted by a signal handler; only the second
/// also by SIGSTOP and SIGCONT without any, as semop(2) is and msgrcv(2) is not (signal(7)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WaitBy {
    /// ppoll(2) on the descriptor itself.
    Poll,
    /// epoll_pwait(2) on this descriptor, in which the other is registered.
    Epoll(RawFd),
}

/// How a wait ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Waited {
    /// There is something to read, or the connection ended.
    Ready,
    /// A signal was handled.
    Interrupted,
    /// The time is up.
    TimedOut,
}

/// Waits until `fd` can be read, with the program's own mask in place: from the look at pending
/// signals to sleep is one step for the kernel. `None` waits for ever.
pub fn wait(fd: RawFd, by: WaitBy, mask: Mask, nanos: Option<u64>) -> Waited {
    let result = match by {
        WaitBy::Poll => poll(fd, mask, nanos),
        WaitBy::Epoll(epoll) => match epoll_wait(libc::SYS_epoll_pwait2, epoll, mask, nanos) {
            Err(libc::ENOSYS) => epoll_wait(libc::SYS_epoll_pwait, epoll, mask, nanos),
            result => result,
        },
    };
    match result {
        Ok(0) => Waited::TimedOut,
        Err(libc::EINTR) => Waited::Interrupted,
        Ok(_) | Err(_) => Waited::Ready,
    }
}

fn time(nanos: u64) -> libc::timespec {
    const SECOND: u64 = 1_000_000_000;
    libc::timespec { tv_sec: (nanos / SECOND) as i64, tv_nsec: (nanos % SECOND) as i64 }
}

fn poll(fd: RawFd, mask: Mask, nanos: Option<u64>) -> Result<usize, i32> {
    let time = nanos.map(time);
    let time = time.as_ref().map_or(ptr::null(), ptr::from_ref) as usize;
    let mut poll = libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
    let arguments = [&raw mut poll as usize, 1, time, &raw const mask as usize, 8, 0];
    // SAFETY: all pointers are null or to values of this frame of the size the call expects.
    unsafe { raw(libc::SYS_ppoll, arguments) }
}

/// epoll_pwait2(2), or before Linux 5.11 epoll_pwait(2), whose time is in milliseconds: rounded up.
fn epoll_wait(number: c_long, epoll: RawFd, mask: Mask, nanos: Option<u64>) -> Result<usize, i32> {
    let mut event = libc::epoll_event { events: 0, u64: 0 };
    let precise = nanos.map(time);
    let time = if number == libc::SYS_epoll_pwait2 {
        precise.as_ref().map_or(ptr::null(), ptr::from_ref) as usize
    } else {
        let millis = nanos.map(|nanos| nanos.div_ceil(1_000_000).min(i32::MAX as u64));
        millis.map_or(usize::MAX, |millis| millis as usize)
    };
    let (epoll, event) = (epoll as usize, &raw mut event as usize);
    // SAFETY: all pointers are null or to values of this frame of the size the call expects.
    unsafe { raw(number, [epoll, event, 1, time, &raw const mask as usize, 8]) }
}

/// Sleeps while the word is `value`; may return earlier. Of this process alone.
pub fn futex_wait(word: &AtomicU32, value: u32) {
    let operation = (libc::FUTEX_WAIT | libc::FUTEX_PRIVATE_FLAG) as usize;
    // SAFETY: the word outlives the call; no time-out is given.
    let _ = unsafe {
        raw(libc::SYS_futex, [word.as_ptr() as usize, operation, value as usize, 0, 0, 0])
    };
}

/// Wakes one of those that sleep on the word.
pub fn futex_wake(word: &AtomicU32) {
    let operation = (libc::FUTEX_WAKE | libc::FUTEX_PRIVATE_FLAG) as usize;
    // SAFETY: the word outlives the call.
    let _ = unsafe { raw(libc::SYS_futex, [word.as_ptr() as usize, operation, 1, 0, 0, 0]) };
}

/// Sleeps while a word that processes share is `value`, for so long at most.
pub fn futex_wait_shared(word: &AtomicU32, value: u32, nanos: u64) {
    let time = time(nanos);
    let (word, value, time) = (word.as_ptr() as usize, value as usize, &raw const time as usize);
    // SAFETY: the word is in a page that is never unmapped; the time is of this frame.
    let _ = unsafe { raw(libc::SYS_futex, [word, libc::FUTEX_WAIT as usize, value, time, 0, 0]) };
}

/// Wakes all that sleep on it.
pub fn futex_wake_shared(word: &AtomicU32) {
    let arguments = [word.as_ptr() as usize, libc::FUTEX_WAKE as usize, i32::MAX as usize, 0, 0, 0];
    // SAFETY: the word is in a page that is never unmapped.
    let _ = unsafe { raw(libc::SYS_futex, arguments) };
}

/// The descriptor with a number, which the program may have closed or used again.
pub fn borrow(fd: &RawFd) -> BorrowedFd<'_> {
    // SAFETY: the borrow is used for one system call, to which a descriptor that is not open is an
    // ordinary error; whose it is has been asked by its cookie.
    unsafe { BorrowedFd::borrow_raw(*fd) }
}

/// Closes a descriptor that is ours.
pub fn close(fd: RawFd) {
    // SAFETY: no pointers; the caller's `Socket` is the only owner.
    let _ = unsafe { raw(libc::SYS_close, [fd as usize, 0, 0, 0, 0, 0]) };
}

/// The program gave an address at which it has no memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadAddress;

/// Copies from the program's memory. `Err` if it is not all readable. (A few bytes that another
/// thread unmaps in this instant end the process, as a load from them would.)
pub fn read_program(address: usize, out: &mut [u8]) -> Result<(), BadAddress> {
    read_program_pair(address, out, &mut [])
}

/// The same into two places, one after the other in the program.
pub fn read_program_pair(
    address: usize,
    first: &mut [u8],
    second: &mut [u8],
) -> Result<(), BadAddress> {
    let ours = [
        libc::iovec { iov_base: first.as_mut_ptr().cast(), iov_len: first.len() },
        libc::iovec { iov_base: second.as_mut_ptr().cast(), iov_len: second.len() },
    ];
    let plain = |ours: *mut u8, theirs: *mut u8, bytes| {
        // SAFETY: the program promised this memory in the call that brought it here.
        unsafe { ptr::copy(theirs, ours, bytes) }
    };
    if is_readable(address, first.len() + second.len()) {
        plain(first.as_mut_ptr(), ptr::with_exposed_provenance_mut(address), first.len());
        let behind = ptr::with_exposed_provenance_mut(address.wrapping_add(first.len()));
        plain(second.as_mut_ptr(), behind, second.len());
        return Ok(());
    }
    copy(libc::SYS_process_vm_readv, &ours, address, plain)
}

/// Whether up to a page of bytes can certainly be read, which lies in one page or two: the kernel
/// reads a signal mask before it refuses what is to be done with it, for a tenth of what it takes
/// to copy the bytes. Masks lie at multiples of their size here, so none reaches into another page
/// than the bytes do.
fn is_readable(address: usize, bytes: usize) -> bool {
    const MASK_BYTES: usize = 8;
    const BYTES_MAX: usize = 4096;
    let Some(last) = bytes.checked_sub(1).and_then(|last| address.checked_add(last)) else {
        return false;
    };
    let words = [address, last].map(|byte| byte / MASK_BYTES * MASK_BYTES);
    bytes <= BYTES_MAX
        && words.iter().all(|word| {
            let arguments = [usize::MAX, *word, 0, MASK_BYTES, 0, 0];
            // SAFETY: no such operation exists, so no mask is changed; nothing is written.
            let refused = unsafe { raw(libc::SYS_rt_sigprocmask, arguments) };
            refused == Err(libc::EINVAL)
        })
}

/// Copies to the program's memory. `Err` if it is not all writable.
pub fn write_program(address: usize, bytes: &[u8]) -> Result<(), BadAddress> {
    write_program_pair(address, bytes, &[])
}

/// The same from two places, to one after the other in the program.
pub fn write_program_pair(address: usize, first: &[u8], second: &[u8]) -> Result<(), BadAddress> {
    let ours = [
        libc::iovec { iov_base: first.as_ptr().cast_mut().cast(), iov_len: first.len() },
        libc::iovec { iov_base: second.as_ptr().cast_mut().cast(), iov_len: second.len() },
    ];
    let plain = |ours: *mut u8, theirs: *mut u8, bytes| {
        // SAFETY: the program promised this memory in the call that brought it here.
        unsafe { ptr::copy(ours, theirs, bytes) }
    };
    copy(libc::SYS_process_vm_writev, &ours, address, plain)
}

/// The kernel copies between two places of this process, so that a bad address is an error and
/// not a signal. Where a filter forbids that (seccomp), the copy is `plain`.
fn copy(
    number: c_long,
    ours: &[libc::iovec; 2],
    theirs: usize,
    plain: impl Fn(*mut u8, *mut u8, usize),
) -> Result<(), BadAddress> {
    let bytes = ours[0].iov_len + ours[1].iov_len;
    if bytes == 0 {
        return Ok(());
    }
    let remote = libc::iovec { iov_base: theirs as *mut c_void, iov_len: bytes };
    let (ours_at, remote) = (ours.as_ptr() as usize, &raw const remote as usize);
    // SAFETY: `ours` are slices of the caller's, mutable where they are written; the kernel checks
    // `theirs`.
    let done = match unsafe { raw(number, [pid(), ours_at, 2, remote, 1, 0]) } {
        // The first thread of this process has ended; any other names it as well.
        Err(libc::ESRCH) => {
            let tid = rustix::thread::gettid().as_raw_nonzero().get() as usize;
            // SAFETY: as above.
            unsafe { raw(number, [tid, ours_at, 2, remote, 1, 0]) }
        }
        done => done,
    };
    match done {
        Ok(copied) if copied == bytes => Ok(()),
        Ok(_) | Err(libc::EFAULT) => Err(BadAddress),
        Err(_) => {
            let [first, second] = ours;
            plain(first.iov_base.cast(), theirs as *mut u8, first.iov_len);
            plain(second.iov_base.cast(), (theirs + first.iov_len) as *mut u8, second.iov_len);
            Ok(())
        }
    }
}

/// This process's pid, asked for once.
fn pid() -> usize {
    let known = &process().pid;
    match known.load(Ordering::Relaxed) {
        0 => {
            let pid = std::process::id();
            known.store(pid, Ordering::Relaxed);
            pid as usize
        }
        pid => pid as usize,
    }
}

/// What belongs to one process and not to the child it forks: in the child all of it is 0 again,
/// by the kernel's doing (MADV_WIPEONFORK), also when no handler of ours ran.
#[derive(Default)]
pub struct Process {
    /// Which process of its line this is; 0 until the first use.
    pub birth: AtomicU64,
    /// Its pid; 0 until the first use.
    pid: AtomicU32,
    /// How far it has joined its dipcd; `session` knows the values.
    pub joined: AtomicU32,
    /// Where the `done` page is mapped.
    pub done_page: AtomicPtr<u64>,
    /// How far the helper of the mprotect trap is; `trap::helper` knows the values.
    pub helper: AtomicU32,
    /// The helper's number; the kernel puts 0 here when its stack is free again.
    helper_tid: AtomicU32,
}

/// This process's own memory.
pub fn process() -> &'static Process {
    static PROCESS: AtomicPtr<Process> = AtomicPtr::new(ptr::null_mut());
    let known = PROCESS.load(Ordering::Acquire);
    if !known.is_null() {
        // SAFETY: it was mapped below for good and holds only atomics, for which 0 is a value.
        return unsafe { &*known };
    }
    let page = map_private(size_of::<Process>());
    match PROCESS.compare_exchange(ptr::null_mut(), page, Ordering::AcqRel, Ordering::Acquire) {
        // SAFETY: mapped just now, zeroed, and never unmapped.
        Ok(_) => unsafe { &*page },
        // SAFETY: another thread was first; its page is as good. Ours, empty, stays mapped.
        Err(theirs) => unsafe { &*theirs },
    }
}

fn map_private(bytes: usize) -> *mut Process {
    let page = map_anonymous(bytes).expect("there is memory for one page");
    // SAFETY: the advice is for the page mapped above; an old kernel refuses it, harmlessly.
    let _ =
        unsafe { raw(libc::SYS_madvise, [page, 4096, libc::MADV_WIPEONFORK as usize, 0, 0, 0]) };
    page as *mut Process
}

/// New memory of this process, all 0.
fn map_anonymous(bytes: usize) -> Result<usize, i32> {
    let (place, protection) = (own_place(bytes), (libc::PROT_READ | libc::PROT_WRITE) as usize);
    let flags = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS) as usize;
    // SAFETY: a new mapping anywhere touches nothing that exists.
    unsafe { raw(libc::SYS_mmap, [place, bytes, protection, flags, usize::MAX, 0]) }
}

/// Where the next mapping of ours should lie: far from where the kernel puts the program's, which
/// may count on a hole that it has just made. Each is another one; if it is taken, the kernel finds
/// a place itself.
pub fn own_place(bytes: usize) -> usize {
    const AWAY: usize = 0x6000_0000_0000;
    const ROOM: usize = 1 << 40;
    const PAGE: usize = 4096;
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    let here = (&raw const NEXT).addr() / PAGE * PAGE; // as random as where we were loaded
    let next = NEXT.fetch_add(bytes.next_multiple_of(PAGE), Ordering::Relaxed) % ROOM;
    here.checked_sub(AWAY).map_or(0, |first| first + next)
}

/// Maps the `done` page of this process, which dipcd reads.
pub fn map_done_page(memfd: &OwnedFd, bytes: usize) -> Result<(), i32> {
    let protection = (libc::PROT_READ | libc::PROT_WRITE) as usize;
    let arguments = [
        own_place(bytes),
        bytes,
        protection,
        libc::MAP_SHARED as usize,
        memfd.as_raw_fd() as usize,
        0,
    ];
    // SAFETY: a new mapping anywhere touches nothing that exists.
    let address = unsafe { raw(libc::SYS_mmap, arguments) }?;
    process().done_page.store(address as *mut u64, Ordering::Release);
    Ok(())
}

/// Says that everything up to operation `seq` of a slot has reached the program.
pub fn store_done(slot: usize, seq: u64) {
    let page = process().done_page.load(Ordering::Acquire);
    if page.is_null() {
        return;
    }
    // SAFETY: `slot` comes from the slots of this page, which is SESSIONS_MAX numbers long.
    let place = unsafe { page.add(slot) };
    // SAFETY: aligned, mapped for good, and every access by this process is atomic.
    unsafe { AtomicU64::from_ptr(place) }.store(seq, Ordering::Release);
}

/// What runs around fork: before it, after it, and in the child.
pub type AroundFork = [extern "C" fn(); 3];

/// Registers functions of ours with the C library: what runs around fork, and when a thread ends
/// that [`on_thread_exit`] was told of. Called once, from the constructor.
pub fn register(fork: AroundFork, thread_exit: extern "C" fn(*mut c_void)) {
    let [before, after, child] = fork.map(|handler| handler as unsafe extern "C" fn());
    // SAFETY: the handlers live as long as this library, which is never unloaded.
    unsafe { libc::pthread_atfork(Some(before), Some(after), Some(child)) };
    // SAFETY: the name is a C string; the program may have a copy of the variable, found first.
    let place = unsafe { libc::dlsym(libc::RTLD_DEFAULT, c"__libc_single_threaded".as_ptr()) };
    IS_SINGLE.store(place.cast(), Ordering::Relaxed);
    let mut key = 0;
    // SAFETY: the key is written to this frame; the destructor lives as long as the library.
    let result = unsafe { libc::pthread_key_create(&mut key, Some(thread_exit)) };
    if result == 0 {
        EXIT_KEY.store(key + 1, Ordering::Release);
    }
}

/// Where the C library says whether a process has one thread (`__libc_single_threaded`); null if it
/// does not say.
static IS_SINGLE: AtomicPtr<u8> = AtomicPtr::new(ptr::null_mut());

/// Whether this is the process's only thread, as far as the C library knows. False when in doubt.
pub fn is_only_thread() -> bool {
    let place = IS_SINGLE.load(Ordering::Relaxed);
    if place.is_null() {
        return false;
    }
    // SAFETY: a byte of the C library's, which stays; it writes it while nobody else runs.
    unsafe { AtomicU8::from_ptr(place) }.load(Ordering::Relaxed) != 0
}

/// The key by which the C library calls us when a thread ends, plus one; 0 for none.
static EXIT_KEY: AtomicU32 = AtomicU32::new(0);

/// When this thread ends, the function given to [`register`] is called.
pub fn on_thread_exit() {
    let key = EXIT_KEY.load(Ordering::Acquire);
    if key != 0 {
        // SAFETY: the key was created by `register`; the value only has to be another than null.
        unsafe { libc::pthread_setspecific(key - 1, ptr::without_provenance(1)) };
    }
}

/// The C library's number of this thread.
pub fn this_thread() -> u64 {
    // SAFETY: it has no arguments and cannot fail.
    unsafe { libc::pthread_self() }
}

/// Interrupts a wait of another thread of this process, which has been cancelled, by the signal
/// that the C library uses for it: its handler does nothing in a thread that has disabled
/// cancellation. While the C library has not set its handler, the signal would kill.
pub fn wake_cancelled(tid: u32) {
    const SIGCANCEL: usize = 32;
    let mut action = [0usize; 4];
    let arguments = [SIGCANCEL, 0, action.as_mut_ptr() as usize, 8, 0, 0];
    // SAFETY: the kernel's sigaction has four words on x86-64.
    let asked = unsafe { raw(libc::SYS_rt_sigaction, arguments) };
    if asked.is_ok() && action[0] > libc::SIG_IGN {
        // SAFETY: no pointers.
        let _ = unsafe { raw(libc::SYS_tgkill, [pid(), tid as usize, SIGCANCEL, 0, 0, 0]) };
    }
}

/// Where this thread's stack is now.
#[inline(always)]
pub fn stack_pointer() -> usize {
    let pointer: usize;
    // SAFETY: reads a register.
    unsafe { asm!("mov {}, rsp", out(reg) pointer, options(nomem, nostack, preserves_flags)) };
    pointer
}

/// The stack to which a `jmp_buf` leads, as glibc keeps it on x86-64: the seventh word, rotated,
/// under the thread's pointer guard. `None` for an address that cannot be read.
pub fn jump_target(environment: *const c_void) -> Option<usize> {
    const STACK_POINTER: usize = 6;
    let mut word = [0; 8];
    read_program(environment as usize + 8 * STACK_POINTER, &mut word).ok()?;
    let mangled = usize::from_ne_bytes(word);
    let guard: usize;
    // SAFETY: reads the thread's pointer guard, at its fixed place in the thread control block.
    unsafe { asm!("mov {}, fs:[0x30]", out(reg) guard, options(nostack, readonly)) };
    Some(mangled.rotate_right(0x11) ^ guard)
}

/// The stack that this thread has set aside for signal handlers, if it runs on it now or not.
pub fn alternate_stack() -> Option<Range<usize>> {
    let mut stack = libc::stack_t { ss_sp: ptr::null_mut(), ss_flags: 0, ss_size: 0 };
    // SAFETY: the kernel writes one stack_t into this frame.
    let asked = unsafe { raw(libc::SYS_sigaltstack, [0, &raw mut stack as usize, 0, 0, 0, 0]) };
    if asked.is_err() || stack.ss_flags & libc::SS_DISABLE != 0 {
        return None;
    }
    let start = stack.ss_sp as usize;
    Some(start..start.saturating_add(stack.ss_size))
}

/// A variable of the environment as it was at the start; none for a set-user-id program, whose
/// caller must not steer it.
pub fn environment(name: &CStr) -> Option<Vec<u8>> {
    // SAFETY: a string that ends; the constructor runs before the program can change it.
    let value = unsafe { secure_getenv(name.as_ptr()) };
    if value.is_null() {
        return None;
    }
    // SAFETY: the environment's strings end, and this one is copied at once.
    Some(unsafe { CStr::from_ptr(value) }.to_bytes().to_vec())
}

/// A random number.
pub fn random() -> u64 {
    let mut number = 0u64;
    let arguments = [&raw mut number as usize, size_of::<u64>(), 0, 0, 0, 0];
    // SAFETY: the kernel fills eight bytes of this frame.
    let _ = unsafe { raw(libc::SYS_getrandom, arguments) };
    number
}

/// The effective capabilities of this thread, the first 64.
pub fn capabilities() -> u64 {
    const VERSION_3: u32 = 0x2008_0522;
    let header = [VERSION_3, 0];
    let mut data = [0u32; 6];
    let arguments = [&raw const header as usize, data.as_mut_ptr() as usize, 0, 0, 0, 0];
    // SAFETY: version 3 writes two structs of three words each.
    match unsafe { raw(libc::SYS_capget, arguments) } {
        Ok(_) => u64::from(data[0]) | u64::from(data[3]) << 32,
        Err(_) => 0,
    }
}
