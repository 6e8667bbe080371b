//! Signals as the kernel has them: actions, what a SIGSEGV says, and where it enters.
//!
//! The kernel's own structures are used, not the C library's, so that one action can stand in front
//! of another without either noticing.

use std::arch::naked_asm;
use std::mem::offset_of;
use std::ptr;

use super::raw;

/// `struct kernel_sigaction` of x86-64.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Action {
    /// A function, `SIG_DFL` or `SIG_IGN`.
    pub handler: usize,
    /// `SA_SIGINFO` and others.
    pub flags: u64,
    /// Where a handler returns to.
    pub restorer: usize,
    /// What is blocked while it runs.
    pub mask: u64,
}

/// `SA_RESTORER`: every action has one here.
pub const SA_RESTORER: u64 = 0x0400_0000;

/// The bit of a signal in a mask.
pub const fn bit(signal: i32) -> u64 {
    1 << (signal - 1)
}

/// Sets an action, if one is given; returns the one before.
pub fn action(signal: i32, new: Option<&Action>) -> Result<Action, i32> {
    let mut old = Action::default();
    let new = new.map_or(ptr::null(), ptr::from_ref) as usize;
    let arguments = [signal as usize, new, &raw mut old as usize, 8, 0, 0];
    // SAFETY: both structures are the kernel's own, and outlive the call.
    unsafe { raw(libc::SYS_rt_sigaction, arguments) }.map(|_| old)
}

/// Changes the calling thread's mask, as sigprocmask(2) does; returns the one before.
pub fn change_mask(how: i32, mask: Option<u64>) -> Result<u64, i32> {
    let mut old = 0u64;
    let new = mask.as_ref().map_or(ptr::null(), ptr::from_ref) as usize;
    let arguments = [how as usize, new, &raw mut old as usize, 8, 0, 0];
    // SAFETY: both pointers are null or to eight bytes that outlive the call.
    unsafe { raw(libc::SYS_rt_sigprocmask, arguments) }.map(|_| old)
}

/// What came with a SIGSEGV, by the addresses that a handler is given.
#[derive(Clone, Copy)]
pub struct Signal {
    info: usize,
    context: usize,
}

/// What a thread was about to do when it touched memory that it may not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Touch {
    /// Load.
    Load,
    /// Store.
    Store,
    /// Go on there.
    Execute,
}

impl Signal {
    /// From a handler's second and third argument.
    pub fn new(info: usize, context: usize) -> Signal {
        Signal { info, context }
    }

    fn code(self) -> i32 {
        const CODE: usize = 8;
        let place = ptr::with_exposed_provenance::<i32>(self.info + CODE);
        // SAFETY: the kernel gave the handler a whole siginfo_t.
        unsafe { place.read() }
    }

    /// Whether an instruction of this thread caused it, and not kill(2).
    pub fn is_fault(self) -> bool {
        self.code() > 0
    }

    /// Where a mapped page was touched that does not allow it, and how; none for anything else.
    pub fn touched(self) -> Option<(usize, Touch)> {
        const SEGV_ACCERR: i32 = 2;
        const ADDRESS: usize = 16;
        const WRITE: i64 = 1 << 1;
        const FETCH: i64 = 1 << 4;
        if self.code() != SEGV_ACCERR {
            return None;
        }
        let place = ptr::with_exposed_provenance::<usize>(self.info + ADDRESS);
        // SAFETY: as for the code; of this code the address is a part.
        let address = unsafe { place.read() };
        let registers = offset_of!(libc::ucontext_t, uc_mcontext.gregs);
        let error = registers + libc::REG_ERR as usize * size_of::<i64>();
        let place = ptr::with_exposed_provenance::<i64>(self.context + error);
        // SAFETY: the kernel gave the handler a whole ucontext_t; the processor's error code is
        // among its registers.
        let error = unsafe { place.read() };
        let touch = match (error & WRITE != 0, error & FETCH != 0) {
            (true, _) => Touch::Store,
            (_, true) => Touch::Execute,
            _ => Touch::Load,
        };
        Some((address, touch))
    }

    /// What was blocked when it came, and is again when the handler returns.
    pub fn mask(self) -> u64 {
        // SAFETY: the kernel gave the handler a whole ucontext_t.
        unsafe { self.mask_place().read() }
    }

    /// Changes that.
    pub fn set_mask(self, mask: u64) {
        // SAFETY: the context lies in the handler's own frame.
        unsafe { self.mask_place().write(mask) };
    }

    fn mask_place(self) -> *mut u64 {
        let offset = offset_of!(libc::ucontext_t, uc_sigmask);
        ptr::with_exposed_provenance_mut(self.context + offset)
    }

    /// Sends the same signal again, to this thread.
    pub fn repeat(self, signal: i32) {
        queue(signal, self.info);
    }
}

/// Sends this thread a SIGBUS as the kernel does for an address of which there is no memory. It
/// comes as soon as it is not blocked.
pub fn send_bus_error(address: usize) {
    const WORDS: usize = 128 / size_of::<usize>();
    const BUS_ADRERR: usize = 2;
    let mut info = [0usize; WORDS];
    info[0] = libc::SIGBUS as usize; // and no errno above it
    info[1] = BUS_ADRERR;
    info[2] = address;
    queue(libc::SIGBUS, info.as_ptr() as usize);
}

fn queue(signal: i32, info: usize) {
    // SAFETY: no pointers.
    let pid = unsafe { raw(libc::SYS_getpid, [0; 6]) }.unwrap_or(0);
    // SAFETY: no pointers.
    let tid = unsafe { raw(libc::SYS_gettid, [0; 6]) }.unwrap_or(0);
    // SAFETY: `info` is a whole siginfo_t, of the caller or of the kernel's making.
    let _ = unsafe { raw(libc::SYS_rt_tgsigqueueinfo, [pid, tid, signal as usize, info, 0, 0]) };
}

/// Where a SIGSEGV enters: `decide` says whether the program's own handler runs, which then is
/// jumped to and finds everything as if the kernel had called it.
#[unsafe(naked)]
pub extern "C" fn enter(signal: i32, info: usize, context: usize) {
    naked_asm!(
        "endbr64",
        "push rdi",
        "push rsi",
        "push rdx",
        "call {decide}",
        "pop rdx",
        "pop rsi",
        "pop rdi",
        "test rax, rax",
        "jz 2f",
        "jmp rax",
        "2:",
        "ret",
        decide = sym crate::trap::handler::decide,
    )
}

/// Where a handler returns to: rt_sigreturn(2), in the very bytes by which debuggers and unwinders
/// know a signal's frame.
#[unsafe(naked)]
pub extern "C" fn restore() {
    naked_asm!(
        ".byte 0x48, 0xc7, 0xc0, 0x0f, 0x00, 0x00, 0x00", // mov rax, 15
        ".byte 0x0f, 0x05",                               // syscall
    )
}
