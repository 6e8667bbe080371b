//! The same calls, passed on to whoever comes after us: libc, or the next preloaded library.
//!
//! Addresses of the program are passed on as they came: the kernel checks them. The functions are
//! looked up in the constructor; one that is called before, by another library's constructor, is
//! looked up then.

use std::ffi::{CStr, c_char, c_int, c_long, c_void};
use std::mem::transmute;
use std::ptr;
use std::sync::atomic::{AtomicPtr, Ordering};

pub mod files;
pub mod memory;
pub mod signals;

/// A function of libc, behind ours of the same name.
pub struct Real {
    address: AtomicPtr<c_void>,
    name: &'static CStr,
}

impl Real {
    const fn new(name: &'static CStr) -> Real {
        Real { address: AtomicPtr::new(ptr::null_mut()), name }
    }

    #[inline]
    fn get(&self) -> *mut c_void {
        let address = self.address.load(Ordering::Relaxed);
        if address.is_null() { self.look_up() } else { address }
    }

    #[cold]
    fn look_up(&self) -> *mut c_void {
        let address = self.find();
        if address.is_null() {
            std::process::abort(); // a C library without its own function
        }
        address
    }

    /// Null if this C library has no such function.
    fn find(&self) -> *mut c_void {
        // SAFETY: the name is a C string; the next definition after this library's is asked for.
        let address = unsafe { libc::dlsym(libc::RTLD_NEXT, self.name.as_ptr()) };
        self.address.store(address, Ordering::Relaxed);
        address
    }
}

static MSGGET: Real = Real::new(c"msgget");
static MSGSND: Real = Real::new(c"msgsnd");
static MSGRCV: Real = Real::new(c"msgrcv");
static MSGCTL: Real = Real::new(c"msgctl");
static SEMGET: Real = Real::new(c"semget");
static SEMOP: Real = Real::new(c"semop");
static SEMTIMEDOP: Real = Real::new(c"semtimedop");
static SEMCTL: Real = Real::new(c"semctl");
static FTOK: Real = Real::new(c"ftok");
static UNSHARE: Real = Real::new(c"unshare");
static SETNS: Real = Real::new(c"setns");
static SETUID: Real = Real::new(c"setuid");
static SETGID: Real = Real::new(c"setgid");
static SETEUID: Real = Real::new(c"seteuid");
static SETEGID: Real = Real::new(c"setegid");
static SETREUID: Real = Real::new(c"setreuid");
static SETREGID: Real = Real::new(c"setregid");
static SETRESUID: Real = Real::new(c"setresuid");
static SETRESGID: Real = Real::new(c"setresgid");
static SETGROUPS: Real = Real::new(c"setgroups");
static INITGROUPS: Real = Real::new(c"initgroups");
static CAPSET: Real = Real::new(c"capset");
static PTHREAD_CANCEL: Real = Real::new(c"pthread_cancel");
/// `dlopen`, which `abi` jumps to.
pub static DLOPEN: Real = Real::new(c"dlopen");
/// `syscall`, which `abi` jumps to.
pub static SYSCALL: Real = Real::new(c"syscall");
/// The four names of longjmp.
pub static LONGJMP: Real = Real::new(c"longjmp");
/// See [`LONGJMP`].
pub static BSD_LONGJMP: Real = Real::new(c"_longjmp");
/// See [`LONGJMP`].
pub static SIGLONGJMP: Real = Real::new(c"siglongjmp");
/// See [`LONGJMP`].
pub static CHECKED_LONGJMP: Real = Real::new(c"__longjmp_chk");

/// Looks all of them up.
pub fn look_up_all() {
    let all = [
        &MSGGET,
        &MSGSND,
        &MSGRCV,
        &MSGCTL,
        &SEMGET,
        &SEMOP,
        &SEMTIMEDOP,
        &SEMCTL,
        &memory::SHMGET,
        &memory::SHMAT,
        &memory::SHMDT,
        &memory::SHMCTL,
        &memory::MMAP,
        &memory::MUNMAP,
        &memory::MREMAP,
        &memory::MPROTECT,
        &memory::MADVISE,
        &signals::SIGACTION,
        &signals::SIGPROCMASK,
        &signals::PTHREAD_SIGMASK,
        &signals::SIGNAL,
        &FTOK,
        &UNSHARE,
        &SETNS,
        &PTHREAD_CANCEL,
        &DLOPEN,
        &SYSCALL,
        &LONGJMP,
        &BSD_LONGJMP,
        &SIGLONGJMP,
        &CHECKED_LONGJMP,
    ];
    for real in all {
        real.get();
    }
    for real in files::ALL {
        real.find();
    }
}

/// Where `dlopen` is, for a jump.
pub extern "C" fn dlopen_address() -> *mut c_void {
    DLOPEN.get()
}

/// Where `syscall` is, for a jump.
pub extern "C" fn syscall_address() -> *mut c_void {
    SYSCALL.get()
}

/// msgget(2).
pub fn msgget(key: c_int, flags: c_int) -> c_int {
    // SAFETY: the type of msgget.
    let function: extern "C" fn(c_int, c_int) -> c_int = unsafe { transmute(MSGGET.get()) };
    function(key, flags)
}

/// msgsnd(2).
#[inline]
pub fn msgsnd(id: c_int, message: usize, bytes: usize, flags: c_int) -> c_int {
    type Function = extern "C-unwind" fn(c_int, usize, usize, c_int) -> c_int;
    // SAFETY: the type of msgsnd, a pointer being one word.
    let function: Function = unsafe { transmute(MSGSND.get()) };
    function(id, message, bytes, flags)
}

/// msgrcv(2).
#[inline]
pub fn msgrcv(id: c_int, message: usize, bytes: usize, mtype: c_long, flags: c_int) -> isize {
    type Function = extern "C-unwind" fn(c_int, usize, usize, c_long, c_int) -> isize;
    // SAFETY: the type of msgrcv, a pointer being one word.
    let function: Function = unsafe { transmute(MSGRCV.get()) };
    function(id, message, bytes, mtype, flags)
}

/// msgctl(2).
pub fn msgctl(id: c_int, command: c_int, buffer: usize) -> c_int {
    type Function = extern "C" fn(c_int, c_int, usize) -> c_int;
    // SAFETY: the type of msgctl, a pointer being one word.
    let function: Function = unsafe { transmute(MSGCTL.get()) };
    function(id, command, buffer)
}

/// semget(2).
pub fn semget(key: c_int, count: c_int, flags: c_int) -> c_int {
    type Function = extern "C" fn(c_int, c_int, c_int) -> c_int;
    // SAFETY: the type of semget.
    let function: Function = unsafe { transmute(SEMGET.get()) };
    function(key, count, flags)
}

/// semop(2).
#[inline]
pub fn semop(id: c_int, ops: usize, count: usize) -> c_int {
    type Function = extern "C-unwind" fn(c_int, usize, usize) -> c_int;
    // SAFETY: the type of semop, a pointer being one word.
    let function: Function = unsafe { transmute(SEMOP.get()) };
    function(id, ops, count)
}

/// semtimedop(2).
#[inline]
pub fn semtimedop(id: c_int, ops: usize, count: usize, timeout: usize) -> c_int {
    type Function = extern "C-unwind" fn(c_int, usize, usize, usize) -> c_int;
    // SAFETY: the type of semtimedop, a pointer being one word.
    let function: Function = unsafe { transmute(SEMTIMEDOP.get()) };
    function(id, ops, count, timeout)
}

/// semctl(2). Its fourth argument is variadic in C and one word by the calling convention, which
/// lets more registers be set than a variadic function looks at.
pub fn semctl(id: c_int, number: c_int, command: c_int, argument: usize) -> c_int {
    type Function = extern "C" fn(c_int, c_int, c_int, usize) -> c_int;
    // SAFETY: the type of semctl when it is given its fourth argument.
    let function: Function = unsafe { transmute(SEMCTL.get()) };
    function(id, number, command, argument)
}

/// ftok(3).
pub fn ftok(path: *const c_char, project: c_int) -> c_int {
    type Function = extern "C" fn(*const c_char, c_int) -> c_int;
    // SAFETY: the type of ftok.
    let function: Function = unsafe { transmute(FTOK.get()) };
    function(path, project)
}

/// unshare(2).
pub fn unshare(flags: c_int) -> c_int {
    // SAFETY: the type of unshare.
    let function: extern "C" fn(c_int) -> c_int = unsafe { transmute(UNSHARE.get()) };
    function(flags)
}

/// setns(2).
pub fn setns(fd: c_int, kind: c_int) -> c_int {
    // SAFETY: the type of setns.
    let function: extern "C" fn(c_int, c_int) -> c_int = unsafe { transmute(SETNS.get()) };
    function(fd, kind)
}

/// One of the functions that change who a thread is.
#[derive(Clone, Copy)]
pub enum Become {
    /// setuid(2).
    Setuid,
    /// setgid(2).
    Setgid,
    /// seteuid(2).
    Seteuid,
    /// setegid(2).
    Setegid,
    /// setreuid(2).
    Setreuid,
    /// setregid(2).
    Setregid,
    /// setresuid(2).
    Setresuid,
    /// setresgid(2).
    Setresgid,
    /// setgroups(2).
    Setgroups,
    /// initgroups(3).
    Initgroups,
    /// capset(2).
    Capset,
}

/// Any of them: each takes at most three words.
pub fn become_other(function: Become, [a, b, c]: [usize; 3]) -> c_int {
    let real = match function {
        Become::Setuid => &SETUID,
        Become::Setgid => &SETGID,
        Become::Seteuid => &SETEUID,
        Become::Setegid => &SETEGID,
        Become::Setreuid => &SETREUID,
        Become::Setregid => &SETREGID,
        Become::Setresuid => &SETRESUID,
        Become::Setresgid => &SETRESGID,
        Become::Setgroups => &SETGROUPS,
        Become::Initgroups => &INITGROUPS,
        Become::Capset => &CAPSET,
    };
    // SAFETY: all take up to three arguments of at most one word each, in the same registers.
    let function: extern "C" fn(usize, usize, usize) -> c_int = unsafe { transmute(real.get()) };
    function(a, b, c)
}

/// pthread_cancel(3).
pub fn pthread_cancel(thread: u64) -> c_int {
    // SAFETY: the type of pthread_cancel.
    let function: extern "C-unwind" fn(u64) -> c_int = unsafe { transmute(PTHREAD_CANCEL.get()) };
    function(thread)
}

/// One of the longjmp family.
pub fn jump(real: &Real, environment: *const c_void, value: c_int) -> ! {
    // SAFETY: the type that all four have.
    let function: extern "C-unwind" fn(*const c_void, c_int) -> ! =
        unsafe { transmute(real.get()) };
    function(environment, value)
}

/// syscall(2), with as many arguments as there can be.
pub fn syscall(number: c_long, arguments: [usize; 6]) -> c_long {
    type Function =
        extern "C-unwind" fn(c_long, usize, usize, usize, usize, usize, usize) -> c_long;
    // SAFETY: the type of syscall when it is given all its arguments.
    let function: Function = unsafe { transmute(SYSCALL.get()) };
    let [a, b, c, d, e, f] = arguments;
    function(number, a, b, c, d, e, f)
}
