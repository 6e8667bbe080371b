//! The one thread that we ever put into a program, and what little it can do.
//!
//! The C library does not know it: a program whose threads have all ended ends, and none finds it
//! among its own. It has no thread-locals, so nothing that runs in it may touch one, panic or
//! allocate. It shares memory with the program and nothing else: a table of descriptors of its own
//! holds its socket, which so outlives a program's closing of everything, and it keeps no rights,
//! or it would be what a program has left of those it drops.

use std::arch::asm;
use std::os::fd::RawFd;
use std::ptr;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::{map_anonymous, process, raw};

/// Its stack, above a guard page; its thread control block is in the last page.
const STACK_BYTES: usize = 64 << 10;
const PAGE_BYTES: usize = 4096;
/// Where in that page the block is. Below it is room for thread-locals that nobody should touch.
const BLOCK: usize = 3072;

/// The stack of this process's helper, or of its parent's: a forked child has no use for that.
static STACK: AtomicUsize = AtomicUsize::new(0);

/// Whether one is there, or is about to end.
pub fn exists() -> bool {
    process().helper_tid.load(Ordering::Acquire) != 0
}

/// Starts it; it ends when `body` returns. No other may exist in this process. All signals are
/// blocked in it if they are in the caller.
pub fn start(body: extern "C" fn(usize), argument: usize) -> Result<(), i32> {
    let block = stack()? + STACK_BYTES - PAGE_BYTES + BLOCK;
    // The first and third word of the block are its own address, by the ABI of thread-locals.
    for place in [block, block + 16] {
        // SAFETY: within the last page of the stack, which nobody uses now.
        unsafe { ptr::with_exposed_provenance_mut::<usize>(place).write(block) };
    }
    let top = block & !(PAGE_BYTES - 1);
    let words = ptr::with_exposed_provenance_mut::<[usize; 2]>(top - 16);
    // SAFETY: the top of the stack, which nobody uses now.
    unsafe { words.write([argument, body as usize]) };
    // SAFETY: stack and block were made for it, and `body` takes one word.
    let result = unsafe { clone(top - 16, block) };
    if result < 0 { Err(-result as i32) } else { Ok(()) }
}

fn stack() -> Result<usize, i32> {
    let known = STACK.load(Ordering::Acquire);
    if known != 0 {
        return Ok(known);
    }
    let stack = map_anonymous(STACK_BYTES)?;
    // SAFETY: the page was mapped just now.
    unsafe { raw(libc::SYS_mprotect, [stack, PAGE_BYTES, libc::PROT_NONE as usize, 0, 0, 0]) }?;
    STACK.store(stack, Ordering::Release);
    Ok(stack)
}

/// clone(2). The new thread takes an argument and a function from its stack, and ends after it.
///
/// # Safety
/// `stack` points to those two words at the top of memory that is the new thread's; `block` is a
/// thread control block.
unsafe fn clone(stack: usize, block: usize) -> isize {
    let flags = libc::CLONE_VM
        | libc::CLONE_SIGHAND
        | libc::CLONE_THREAD
        | libc::CLONE_SETTLS
        | libc::CLONE_PARENT_SETTID
        | libc::CLONE_CHILD_CLEARTID;
    let tid = process().helper_tid.as_ptr() as usize;
    let result: isize;
    // SAFETY: the caller vouches for stack and block. The old thread goes on behind the call; the
    // new one never returns here.
    unsafe {
        asm!(
            "syscall",
            "test rax, rax",
            "jnz 2f",
            "xor ebp, ebp",
            "pop rdi",
            "pop rax",
            "call rax",
            "mov eax, {exit}",
            "xor edi, edi",
            "syscall",
            "ud2",
            "2:",
            exit = const libc::SYS_exit,
            inlateout("rax") libc::SYS_clone as isize => result,
            in("rdi") flags as usize, in("rsi") stack, in("rdx") tid, in("r10") tid, in("r8") block,
            lateout("rcx") _, lateout("r11") _,
        );
    }
    result
}

/// Closes every descriptor of the calling thread's table but one, and gives up its rights.
pub fn withdraw(socket: RawFd) {
    let socket = socket as usize;
    let ranges = [(0, socket.wrapping_sub(1)), (socket + 1, u32::MAX as usize)];
    for (first, last) in ranges.into_iter().filter(|(first, last)| first <= last) {
        // SAFETY: no pointers; the table is the helper's own.
        if unsafe { raw(libc::SYS_close_range, [first, last, 0, 0, 0, 0]) }.is_err() {
            close_all(first, last);
        }
    }
    drop_rights();
}

/// The same before Linux 5.9.
fn close_all(first: usize, last: usize) {
    let mut limit = [0u64; 2];
    let arguments = [0, libc::RLIMIT_NOFILE as usize, 0, limit.as_mut_ptr() as usize, 0, 0];
    // SAFETY: the kernel writes two words into this frame.
    let asked = unsafe { raw(libc::SYS_prlimit64, arguments) };
    let end = if asked.is_ok() { (limit[1] as usize).min(1 << 20) } else { 1 << 16 };
    for fd in first..=last.min(end) {
        // SAFETY: no pointers; the table is the helper's own.
        let _ = unsafe { raw(libc::SYS_close, [fd, 0, 0, 0, 0, 0]) };
    }
}

/// Becomes nobody, as far as this thread may. That the process can be dumped and looked at, which
/// the kernel forbids after such a change, is put back.
fn drop_rights() {
    const NOBODY: usize = 65_534;
    const VERSION_3: u32 = 0x2008_0522;
    let prctl = |option: i32, value| {
        // SAFETY: these two options take no pointer.
        unsafe { raw(libc::SYS_prctl, [option as usize, value, 0, 0, 0, 0]) }
    };
    let dumpable = prctl(libc::PR_GET_DUMPABLE, 0);
    let (header, nothing) = ([VERSION_3, 0], [0u32; 6]);
    let calls = [
        (libc::SYS_setgroups, [0, 0, 0]),
        (libc::SYS_setresgid, [NOBODY; 3]),
        (libc::SYS_setresuid, [NOBODY; 3]),
        (libc::SYS_capset, [header.as_ptr() as usize, nothing.as_ptr() as usize, 0]),
    ];
    for (number, [a, b, c]) in calls {
        // SAFETY: capset's pointers are to values of this frame, as long as version 3 has them; the
        // others take none. They change this thread alone.
        let _ = unsafe { raw(number, [a, b, c, 0, 0, 0]) };
    }
    if dumpable == Ok(1) {
        let _ = prctl(libc::PR_SET_DUMPABLE, 1);
    }
}

/// Waits for a packet of just this length. `None` at the end of the connection.
pub fn receive<const BYTES: usize>(socket: RawFd) -> Option<[u8; BYTES]> {
    let mut packet = [0; BYTES];
    loop {
        let arguments = [socket as usize, packet.as_mut_ptr() as usize, BYTES, 0, 0, 0];
        // SAFETY: the kernel writes at most so many bytes into this frame.
        match unsafe { raw(libc::SYS_recvfrom, arguments) } {
            Ok(received) => return (received == BYTES).then_some(packet),
            Err(libc::EINTR) => {}
            Err(_) => return None,
        }
    }
}

/// Sends a packet, without a signal when the other end is gone.
pub fn send(socket: RawFd, packet: &[u8]) {
    let (bytes, flags) = (packet.len(), libc::MSG_NOSIGNAL as usize);
    let arguments = [socket as usize, packet.as_ptr() as usize, bytes, flags, 0, 0];
    // SAFETY: the packet is the caller's, read only.
    let _ = unsafe { raw(libc::SYS_sendto, arguments) };
}

/// Ends the process at once: it holds memory that is no longer true.
pub fn end_process() -> ! {
    loop {
        // SAFETY: no pointers.
        let pid = unsafe { raw(libc::SYS_getpid, [0; 6]) };
        let arguments = [pid.unwrap_or(0), libc::SIGKILL as usize, 0, 0, 0, 0];
        // SAFETY: no pointers; pid 0 would be the process group, and getpid cannot fail.
        let _ = unsafe { raw(libc::SYS_kill, arguments) };
    }
}
