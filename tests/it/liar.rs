//! `dipc-liar WAY KEY`: a program that speaks to dipcd by itself, has its pages served as libdipc's
//! programs have, and lies about where its attachments are or what it hands over. Each way ends
//! with "ok" when dipcd has refused what it must. The chapter memory_bad_clients runs it.
#![forbid(unsafe_code)]

use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::process::ExitCode;

use dipc_tests::{local, sys};
use dipc_wire::client::{Answer, AttachmentNo, Call, Mm, Trap};
use dipc_wire::ids::{Key, Kind, Nonce, ObjectId};
use dipc_wire::memory::Access;
use dipc_wire::sysv::SysvError;
use dipc_wire::trap::{OBEYED_BYTES, ORDER_BYTES, Obeyed, Order, What};
use rustix::mm::{ProtFlags, UserfaultfdFlags};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

const PAGE: usize = 4096;
/// An address of no program.
const IN_THE_KERNEL: u64 = 0xffff_8000_0000_0000;

type Way = fn(&Liar);

/// What each way does.
const WAYS: [(&str, Way); 9] = [
    ("descriptors", wrong_descriptors),
    ("sentinels", wrong_sentinels),
    ("numbers", wrong_numbers),
    ("places", wrong_places),
    ("ranges", wrong_ranges),
    ("silent", silent),
    ("pulled", sentinel_pulled),
    ("mute", mute_helper),
    ("babbling", babbling_helper),
];

struct Liar {
    socket: PathBuf,
    key: Key,
}

impl Liar {
    fn call(&self, call: Call) -> Answer {
        self.call_with(call, None).0
    }

    fn call_with(&self, call: Call, fd: Option<BorrowedFd<'_>>) -> (Answer, Option<OwnedFd>) {
        let said = format!("{call:?}");
        let answer = local::call_with(&self.socket, call, fd);
        answer.unwrap_or_else(|| panic!("{said} is not answered"))
    }

    fn segment(&self) -> ObjectId {
        let (key, kind, nonce) = (self.key, Kind::Segment, Nonce(1));
        match self.call(Call::Get { kind, key, flags: 0, size: 0, nonce }) {
            Answer::Object { id, .. } => id,
            other => panic!("Get: {other:?}"),
        }
    }

    /// Hands a userfaultfd over, as libdipc does.
    fn served(&self) -> (Mm, u64) {
        let faults = sys::userfaultfd(UserfaultfdFlags::NONBLOCK).expect("root may have one");
        let sentinel = sys::map(None, PAGE, ProtFlags::empty()).expect("a page");
        let trap = Call::Trap { trap: Trap::Full, sentinel };
        assert_eq!(self.call_with(trap, Some(faults.as_fd())).0, Answer::Done);
        let mm = Mm(sys::word_at(sentinel).expect("dipcd wrote it"));
        assert_ne!(mm, Mm(0));
        (mm, sentinel)
    }

    fn attach(&self, mm: Mm, id: ObjectId) -> (AttachmentNo, usize, OwnedFd) {
        match self.call_with(Call::Attach { mm, id, flags: 0 }, None) {
            (Answer::Attached { attachment, bytes, .. }, Some(file)) => {
                (attachment, bytes as usize, file)
            }
            other => panic!("Attach: {other:?}"),
        }
    }

    #[track_caller]
    fn is_refused(&self, call: Call) {
        let said = format!("{call:?}");
        match self.call(call) {
            Answer::Refused(SysvError::EINVAL | SysvError::EPERM) => {}
            other => panic!("{said} gave {other:?}"),
        }
    }
}

/// What is no userfaultfd, or one that would block dipcd.
fn wrong_descriptors(liar: &Liar) {
    let sentinel = sys::map(None, PAGE, ProtFlags::empty()).expect("a page");
    let (fifo, _writer) = rustix::pipe::pipe().expect("a pipe");
    let file = OwnedFd::from(std::fs::File::open("/dev/null").expect("it is there"));
    let blocking = sys::userfaultfd(UserfaultfdFlags::empty()).expect("root may have one");
    let stream = std::os::unix::net::UnixStream::pair().expect("a pair");
    let stream = OwnedFd::from(stream.0);
    for trap in [Trap::Full, Trap::UserMode, Trap::Mprotect] {
        liar.is_refused(Call::Trap { trap, sentinel });
        for fd in [&fifo, &file, &blocking, &stream] {
            let call = Call::Trap { trap, sentinel };
            let (answer, _) = liar.call_with(call, Some(fd.as_fd()));
            assert_eq!(answer, Answer::Refused(SysvError::EINVAL), "{trap:?}");
        }
    }
}

/// Sentinels that are no page of this process.
fn wrong_sentinels(liar: &Liar) {
    let file = std::fs::File::open("/proc/self/exe").expect("it is there");
    let of_a_file = sys::map(Some(file.as_fd()), PAGE, ProtFlags::empty()).expect("a page");
    let gone = sys::map(None, PAGE, ProtFlags::empty()).expect("a page");
    sys::unmap(gone, PAGE).expect("it was mapped");
    for sentinel in [0, 1, gone, gone + 8, of_a_file, IN_THE_KERNEL, u64::MAX, u64::MAX - 4095] {
        let faults = sys::userfaultfd(UserfaultfdFlags::NONBLOCK).expect("root may have one");
        let call = Call::Trap { trap: Trap::Full, sentinel };
        let (answer, _) = liar.call_with(call, Some(faults.as_fd()));
        assert_eq!(answer, Answer::Refused(SysvError::EINVAL), "{sentinel:#x}");
    }
}

/// Numbers of address spaces and attachments that are not ours.
fn wrong_numbers(liar: &Liar) {
    let id = liar.segment();
    let (mm, _) = liar.served();
    for number in [0, 1, mm.0 + 1, !mm.0, u64::MAX] {
        let mm = Mm(number);
        liar.is_refused(Call::Attach { mm, id, flags: 0 });
        liar.is_refused(Call::Touched { mm, address: 0, access: Access::Write });
        liar.is_refused(Call::Unmapped { mm, attachment: None, address: 0, bytes: u64::MAX });
    }
    let (attachment, bytes, file) = liar.attach(mm, id);
    let address = sys::map(Some(file.as_fd()), bytes, ProtFlags::empty()).expect("pages");
    for number in [0, attachment.0 - 1, attachment.0 + 1, u64::MAX] {
        liar.is_refused(Call::Mapped { attachment: AttachmentNo(number), address });
    }
    assert_eq!(liar.call(Call::Mapped { attachment, address }), Answer::Done);
    liar.is_refused(Call::Mapped { attachment, address });
}

/// Places where the file is not, or not as it was said.
fn wrong_places(liar: &Liar) {
    let id = liar.segment();
    let (mm, sentinel) = liar.served();
    let nothing = ProtFlags::empty();
    let open = ProtFlags::READ | ProtFlags::WRITE;
    let place = |number: usize, file: &OwnedFd, bytes: usize| match number {
        0 => 0,
        1 => IN_THE_KERNEL,
        2 => sentinel,
        3 => u64::MAX - 4095,
        4 => sys::map(None, bytes, nothing).expect("pages"),
        5 => sys::map(Some(file.as_fd()), bytes, open).expect("pages"),
        6 => sys::map(Some(file.as_fd()), PAGE, nothing).expect("a page"),
        _ => sys::map(Some(file.as_fd()), bytes, nothing).expect("pages") + 8,
    };
    for number in 0..8 {
        let (attachment, bytes, file) = liar.attach(mm, id);
        let address = place(number, &file, bytes);
        liar.is_refused(Call::Mapped { attachment, address });
        // What was refused is over.
        liar.is_refused(Call::Mapped { attachment, address });
    }
}

/// Ranges that wrap, or that nothing was in.
fn wrong_ranges(liar: &Liar) {
    let id = liar.segment();
    let (mm, _) = liar.served();
    let (attachment, bytes, file) = liar.attach(mm, id);
    let address = sys::map(Some(file.as_fd()), bytes, ProtFlags::empty()).expect("pages");
    assert_eq!(liar.call(Call::Mapped { attachment, address }), Answer::Done);
    let far = [(0, 0), (0, u64::MAX), (u64::MAX, u64::MAX), (IN_THE_KERNEL, 4096)];
    // What is still mapped is still attached, whatever is said of it.
    let near = [(address, bytes as u64), (address + 1, 7)];
    for (from, from_bytes) in far.into_iter().chain(near) {
        for number in [None, Some(attachment), Some(AttachmentNo(u64::MAX))] {
            liar.call(Call::Unmapped { mm, attachment: number, address: from, bytes: from_bytes });
        }
        liar.call(Call::Moved { mm, from, from_bytes, to: !from, to_bytes: u64::MAX });
        let touched = Call::Touched { mm, address: from, access: Access::Write };
        if near.contains(&(from, from_bytes)) {
            assert_eq!(liar.call(touched), Answer::Done);
        } else {
            liar.is_refused(touched);
        }
    }
}

/// Many attachments that are never mapped.
fn silent(liar: &Liar) {
    let id = liar.segment();
    let (mm, _) = liar.served();
    for _ in 0..100 {
        drop(liar.attach(mm, id));
    }
}

/// The sentinel goes while attachments live.
fn sentinel_pulled(liar: &Liar) {
    let id = liar.segment();
    let (mm, sentinel) = liar.served();
    let (attachment, bytes, file) = liar.attach(mm, id);
    let address = sys::map(Some(file.as_fd()), bytes, ProtFlags::empty()).expect("pages");
    assert_eq!(liar.call(Call::Mapped { attachment, address }), Answer::Done);
    sys::unmap(sentinel, PAGE).expect("it was mapped");
    liar.is_refused(Call::Attach { mm, id, flags: 0 });
    sys::unmap(address, bytes).expect("it was mapped");
}

/// One end of a helper's sockets for dipcd, and ours.
fn helper() -> (OwnedFd, OwnedFd) {
    let (family, flags) = (AddressFamily::UNIX, SocketFlags::CLOEXEC);
    rustix::net::socketpair(family, SocketType::SEQPACKET, flags, None).expect("a pair")
}

/// A helper that never answers: it is given up in time, which may cost us our life.
fn mute_helper(liar: &Liar) {
    let (theirs, _ours) = helper();
    let sentinel = sys::map(None, PAGE, ProtFlags::empty()).expect("a page");
    let call = Call::Trap { trap: Trap::Mprotect, sentinel };
    let (answer, _) = liar.call_with(call, Some(theirs.as_fd()));
    assert!(matches!(answer, Answer::Refused(_)), "{answer:?}");
}

/// A helper that answers what nobody ordered.
fn babbling_helper(liar: &Liar) {
    let (theirs, ours) = helper();
    let sentinel = sys::map(None, PAGE, ProtFlags::READ | ProtFlags::WRITE).expect("a page");
    let babble = std::thread::spawn(move || {
        let mut packet = [0; ORDER_BYTES];
        while let Ok((length @ 1.., _)) = rustix::net::recv(&ours, &mut packet, RecvFlags::empty())
        {
            assert_eq!(length, ORDER_BYTES);
            let order = Order::from_bytes(&packet).expect("an order");
            assert!(matches!(order.what, What::Name(_)), "{order:?}");
            let wrong = Obeyed { number: order.number ^ 1, errno: 0 }.to_bytes();
            for bytes in [&wrong[..], &wrong[..3], &[7; OBEYED_BYTES * 4]] {
                // dipcd may have given up.
                let _ = rustix::net::send(&ours, bytes, SendFlags::NOSIGNAL);
            }
        }
    });
    let call = Call::Trap { trap: Trap::Mprotect, sentinel };
    let (answer, _) = liar.call_with(call, Some(theirs.as_fd()));
    assert!(matches!(answer, Answer::Refused(_)), "{answer:?}");
    drop(theirs);
    babble.join().expect("it ends with the sockets");
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [way, key] = arguments.as_slice() else { return ExitCode::from(2) };
    let Some((_, lie)) = WAYS.iter().find(|(name, _)| name == way) else {
        return ExitCode::from(2);
    };
    let digits = key.trim_start_matches("0x");
    let key = Key(i32::from_str_radix(digits, 16).expect("a key in hexadecimal"));
    let socket = PathBuf::from(std::env::var_os("DIPC_SOCKET").expect("a node's environment"));
    lie(&Liar { socket, key });
    println!("ok");
    // It lives on until it is told to end, so that others see that it lives.
    let told = std::io::stdin().read(&mut [0]);
    ExitCode::from(u8::from(told.is_err()))
}
