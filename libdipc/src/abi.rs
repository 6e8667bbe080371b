//! The functions that take libc's place: they convert and delegate.
//!
//! Those that redhook makes cannot be left but by returning: it fences panics, and so do we, with
//! an errno. The others are written by hand, with an ABI that unwinds: a thread may be cancelled in
//! libc's function behind them, or a handler may jump out of it. On the way to the kernel none
//! holds a value with a destructor.

use std::arch::naked_asm;
use std::ffi::{c_char, c_int, c_long, c_void};

use dipc_wire::ids::{Kind, ObjectId};
use redhook::hook;

use crate::boundary::fail;
use crate::route::{self, Route};
use crate::{fork, identity, jump, kernel, key_path, names, queues, sets, start, sys, thread};

mod becoming;
mod files;
mod memory;
mod signals;

#[used]
#[unsafe(link_section = ".init_array")]
static CONSTRUCTOR: extern "C" fn() = start::construct;

hook! {
    unsafe fn msgget(key: c_int, flags: c_int) -> c_int => dipc_msgget {
        queues::get(key, flags)
    }
}

hook! {
    unsafe fn msgctl(id: c_int, command: c_int, buffer: usize) -> c_int => dipc_msgctl {
        queues::control(id, command, buffer)
    }
}

hook! {
    unsafe fn semget(key: c_int, count: c_int, flags: c_int) -> c_int => dipc_semget {
        sets::get(key, count, flags)
    }
}

hook! {
    unsafe fn semctl(id: c_int, number: c_int, command: c_int, argument: usize) -> c_int
        => dipc_semctl {
        sets::control(id, number, command, argument)
    }
}

hook! {
    unsafe fn ftok(path: *const c_char, project: c_int) -> c_int => dipc_ftok {
        key_path::ftok(path as usize, project).unwrap_or_else(|| kernel::ftok(path, project))
    }
}

hook! {
    unsafe fn unshare(flags: c_int) -> c_int => dipc_unshare {
        names::roamed(kernel::unshare(flags), flags)
    }
}

hook! {
    unsafe fn setns(fd: c_int, kind: c_int) -> c_int => dipc_setns {
        names::roamed(kernel::setns(fd, kind), kind)
    }
}

/// msgsnd(2).
#[unsafe(no_mangle)]
pub extern "C-unwind" fn msgsnd(id: c_int, message: usize, bytes: usize, flags: c_int) -> c_int {
    match route::find(Kind::Queue, id) {
        Route::Kernel(id) => kernel::msgsnd(id, message, bytes, flags),
        Route::Remote(id, home) => queues::send((id, home), message, bytes, flags),
        Route::Refused(error) => fail(error),
    }
}

/// msgrcv(2).
#[unsafe(no_mangle)]
pub extern "C-unwind" fn msgrcv(
    id: c_int,
    message: usize,
    bytes: usize,
    mtype: c_long,
    flags: c_int,
) -> isize {
    match route::find(Kind::Queue, id) {
        Route::Kernel(id) => kernel::msgrcv(id, message, bytes, mtype, flags),
        Route::Remote(id, home) => queues::receive((id, home), message, bytes, mtype, flags),
        Route::Refused(error) => fail(error),
    }
}

/// semop(2). glibc's own goes to its semtimedop without asking us.
#[unsafe(no_mangle)]
pub extern "C-unwind" fn semop(id: c_int, ops: usize, count: usize) -> c_int {
    match route::find(Kind::Set, id) {
        Route::Kernel(id) => kernel::semop(id, ops, count),
        Route::Remote(id, home) => sets::operate((id, home), ops, count, 0),
        Route::Refused(error) => fail(error),
    }
}

/// semtimedop(2).
#[unsafe(no_mangle)]
pub extern "C-unwind" fn semtimedop(id: c_int, ops: usize, count: usize, timeout: usize) -> c_int {
    match route::find(Kind::Set, id) {
        Route::Kernel(id) => kernel::semtimedop(id, ops, count, timeout),
        Route::Remote(id, home) => sets::operate((id, home), ops, count, timeout),
        Route::Refused(error) => fail(error),
    }
}

/// pthread_cancel(3). A thread may cancel itself, and end here.
#[unsafe(no_mangle)]
pub extern "C-unwind" fn pthread_cancel(target: u64) -> c_int {
    let result = kernel::pthread_cancel(target);
    thread::cancelled(target);
    result
}

/// longjmp(3).
#[unsafe(no_mangle)]
pub extern "C-unwind" fn longjmp(environment: *const c_void, value: c_int) -> ! {
    jump::before(environment);
    kernel::jump(&kernel::LONGJMP, environment, value)
}

/// The same under the name that macros give it.
#[unsafe(no_mangle)]
pub extern "C-unwind" fn _longjmp(environment: *const c_void, value: c_int) -> ! {
    jump::before(environment);
    kernel::jump(&kernel::BSD_LONGJMP, environment, value)
}

/// siglongjmp(3).
#[unsafe(no_mangle)]
pub extern "C-unwind" fn siglongjmp(environment: *const c_void, value: c_int) -> ! {
    jump::before(environment);
    kernel::jump(&kernel::SIGLONGJMP, environment, value)
}

/// All three in programs compiled with `_FORTIFY_SOURCE`.
#[unsafe(no_mangle)]
pub extern "C-unwind" fn __longjmp_chk(environment: *const c_void, value: c_int) -> ! {
    jump::before(environment);
    kernel::jump(&kernel::CHECKED_LONGJMP, environment, value)
}

/// dlopen(3) without `RTLD_DEEPBIND`, under which a library would find libc before us. It is
/// jumped to, not called: it looks at its return address to know its caller's search path.
#[unsafe(naked)]
#[unsafe(no_mangle)]
pub extern "C" fn dlopen(file: *const c_char, flags: c_int) -> *mut c_void {
    naked_asm!(
        "endbr64",
        "push rdi",
        "push rsi",
        "sub rsp, 8",
        "call {address}",
        "add rsp, 8",
        "pop rsi",
        "pop rdi",
        "and esi, {keep}",
        "jmp rax",
        address = sym kernel::dlopen_address,
        keep = const !libc::RTLD_DEEPBIND,
    )
}

/// syscall(2): the calls that have a function here go to [`system_call`], all others to libc with
/// every register as it came.
#[unsafe(naked)]
#[unsafe(no_mangle)]
pub extern "C" fn syscall(number: c_long) -> c_long {
    naked_asm!(
        "endbr64",
        "lea rax, [rdi - {first}]",
        "cmp rax, {count}",
        "jb {ours}",
        "lea rax, [rdi - {becoming}]",
        "cmp rax, {becoming_count}",
        "jb {ours}",
        "lea rax, [rdi - {mapping}]",
        "cmp rax, {mapping_count}",
        "jb {ours}",
        "lea rax, [rdi - {remapping}]",
        "cmp rax, {remapping_count}",
        "jb {ours}",
        "cmp rdi, {remap_file_pages}",
        "je {ours}",
        "cmp rdi, {pkey_mprotect}",
        "je {ours}",
        "cmp rdi, {semtimedop}",
        "je {ours}",
        "cmp rdi, {unshare}",
        "je {ours}",
        "cmp rdi, {setns}",
        "je {ours}",
        "push rdi; push rsi; push rdx; push rcx; push r8; push r9",
        "sub rsp, 8",
        "cmp rdi, {clone}",
        "je 2f",
        "cmp rdi, {fork}",
        "je 2f",
        "cmp rdi, {clone3}",
        "jne 3f",
        "2:",
        "call {before_fork}",
        "3:",
        "call {address}",
        "add rsp, 8",
        "pop r9; pop r8; pop rcx; pop rdx; pop rsi; pop rdi",
        "jmp rax",
        first = const libc::SYS_semget,
        count = const libc::SYS_msgctl - libc::SYS_semget + 1,
        becoming = const libc::SYS_setuid,
        becoming_count = const libc::SYS_capset - libc::SYS_setuid + 1,
        mapping = const libc::SYS_mmap,
        mapping_count = const libc::SYS_rt_sigprocmask - libc::SYS_mmap + 1,
        remapping = const libc::SYS_mremap,
        remapping_count = const libc::SYS_shmctl - libc::SYS_mremap + 1,
        remap_file_pages = const libc::SYS_remap_file_pages,
        pkey_mprotect = const libc::SYS_pkey_mprotect,
        semtimedop = const libc::SYS_semtimedop,
        unshare = const libc::SYS_unshare,
        setns = const libc::SYS_setns,
        clone = const libc::SYS_clone,
        fork = const libc::SYS_fork,
        clone3 = const libc::SYS_clone3,
        before_fork = sym before_raw_fork,
        address = sym kernel::syscall_address,
        ours = sym system_call,
    )
}

/// A fork by syscall(2), which is jumped to: the child may return on another stack.
extern "C" fn before_raw_fork(number: c_long, first: usize) {
    let flags = match number {
        libc::SYS_clone => first,
        libc::SYS_clone3 => {
            let mut flags = [0; size_of::<usize>()];
            let _ = sys::read_program(first, &mut flags); // the kernel will say what is wrong
            usize::from_ne_bytes(flags)
        }
        _ => 0,
    };
    if flags & libc::CLONE_VM as usize == 0 {
        fork::before_raw();
    }
}

const _: () = assert!(libc::SYS_msgctl - libc::SYS_semget == 7, "with shmdt between");
const _: () = assert!(libc::SYS_capset - libc::SYS_setuid == 21, "with setsid and others between");
const _: () =
    assert!(libc::SYS_rt_sigprocmask - libc::SYS_mmap == 5, "with brk and others between");
const _: () = assert!(libc::SYS_shmctl - libc::SYS_mremap == 6, "with madvise and others between");

/// The calls of `syscall` that have a function here. What is the kernel's goes there untouched.
extern "C-unwind" fn system_call(
    number: c_long,
    a: usize,
    b: usize,
    c: usize,
    d: usize,
    e: usize,
    f: usize,
) -> c_long {
    let int = |word: usize| word as c_int;
    let is_ours = ObjectId::from_raw(int(a)).is_some();
    match number {
        libc::SYS_msgget => queues::get(int(a), int(b)).into(),
        libc::SYS_msgctl => queues::control(int(a), int(b), c).into(),
        libc::SYS_semget => sets::get(int(a), int(b), int(c)).into(),
        libc::SYS_semctl => sets::control(int(a), int(b), int(c), d).into(),
        libc::SYS_unshare => names::roamed(kernel::unshare(int(a)), int(a)).into(),
        libc::SYS_setns => names::roamed(kernel::setns(int(a), int(b)), int(b)).into(),
        libc::SYS_msgsnd if is_ours => msgsnd(int(a), b, c, int(d)).into(),
        libc::SYS_msgrcv if is_ours => msgrcv(int(a), b, c, d as c_long, int(e)) as c_long,
        libc::SYS_semop if is_ours => semop(int(a), b, c).into(),
        libc::SYS_semtimedop if is_ours => semtimedop(int(a), b, c, d).into(),
        libc::SYS_setuid..=libc::SYS_capset => {
            identity::changed(kernel::syscall(number, [a, b, c, d, e, f]))
        }
        libc::SYS_rt_sigaction | libc::SYS_rt_sigprocmask => {
            let arguments = [a, b, c, d, e, f];
            let ours = signals::system_call(number, arguments);
            ours.unwrap_or_else(|| kernel::syscall(number, arguments))
        }
        _ => memory::system_call(number, [a, b, c, d, e, f]),
    }
}
