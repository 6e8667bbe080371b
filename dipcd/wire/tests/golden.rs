//! The bytes of the protocol: one value of every variant of every conversation, in a golden file
//! that is reviewed as a diff (`UPDATE_GOLDEN=1 cargo test -p dipc-wire --test golden` writes it).
//!
//! A variant without a sample fails. What is truncated, prolonged, too long or random is refused,
//! and nothing panics.
#![forbid(unsafe_code)]

#[path = "golden/samples.rs"]
mod samples;

use std::cell::RefCell;
use std::fmt::{Debug, Write as _};
use std::path::Path;
use std::{env, fs};

use dipc_wire::client::{Answer, Call, ClientCall};
use dipc_wire::codec::{
    ByteOrder, FRAME_HEADER_BYTES, WireError, decode_frame, decode_packet, encode_frame,
    encode_packet, frame_length,
};
use dipc_wire::ids::Secret;
use dipc_wire::keeper::{FromKeeper, FromStandIn, Held, ToKeeper, ToStandIn};
use dipc_wire::limits::{FRAME_BYTES_MAX, VERSION};
use dipc_wire::memory::{ToHome, ToReplica};
use dipc_wire::noise::{Cipher, Handshake, Opener};
use dipc_wire::op::{Op, Outcome, Reply, Request};
use dipc_wire::peer::{Asked, Claimed, PeerFrame};
use dipc_wire::preamble::{Hello, Preamble};
use dipc_wire::sysv::{SegmentControl, SysvError};
use dipc_wire::trap;
use proptest::prelude::*;
use samples::variants;
use serde::Serialize;
use serde::de::DeserializeOwned;

const ORDERS: [ByteOrder; 2] = [ByteOrder::Little, ByteOrder::Network];

/// Anything a conversation is made of.
trait Said: Serialize + DeserializeOwned + Debug + PartialEq {}
impl<T: Serialize + DeserializeOwned + Debug + PartialEq> Said for T {}

/// The lines of one conversation.
#[derive(Default)]
struct Book {
    lines: String,
}

impl Book {
    fn line(&mut self, what: &str, value: &impl Debug, bytes: &[u8]) {
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        writeln!(self.lines, "{what} {value:?}\n    {hex}").expect("a string takes it");
    }

    fn packets<T: Said>(&mut self, what: &str, values: &[T]) {
        for value in values {
            let packet = encode_packet(value);
            check_packet(value, &packet);
            self.line(what, value, &packet);
        }
    }

    fn frames<T: Said>(&mut self, what: &str, values: &[T]) {
        for value in values {
            for order in ORDERS {
                let mut frame = Vec::new();
                encode_frame(order, value, &[], &mut frame);
                check_frame(order, value, &frame);
                self.line(&format!("{what} {order:?}"), value, &frame);
            }
        }
    }
}

fn check_packet<T: Said>(value: &T, packet: &[u8]) {
    assert_eq!(decode_packet::<T>(packet).as_ref(), Ok(value));
    for length in 0..packet.len() {
        assert!(decode_packet::<T>(&packet[..length]).is_err(), "{value:?} cut to {length}");
    }
    let longer = [packet, &[0]].concat();
    assert_eq!(decode_packet::<T>(&longer), Err(WireError::Trailing { bytes: 1 }));
}

fn check_frame<T: Said>(order: ByteOrder, value: &T, frame: &[u8]) {
    assert_eq!(frame_length(order, frame), Ok(Some(frame.len())));
    let decoded = decode_frame::<T>(order, frame).expect("what was encoded is decoded");
    assert_eq!((&decoded.0, decoded.1), (value, &[][..]));
    for length in 0..frame.len() {
        assert!(decode_frame::<T>(order, &frame[..length]).is_err(), "{value:?} cut to {length}");
    }
    for body in 0..frame.len() - FRAME_HEADER_BYTES {
        let mut shorter = frame.to_vec();
        set_body_length(order, &mut shorter, body);
        assert!(decode_frame::<T>(order, &shorter).is_err(), "{value:?} with a body of {body}");
    }
    let with_raw = [frame, b"text"].concat();
    let decoded = decode_frame::<T>(order, &with_raw).expect("raw bytes may follow");
    assert_eq!((&decoded.0, decoded.1), (value, &b"text"[..]));
}

fn set_body_length(order: ByteOrder, frame: &mut [u8], length: usize) {
    let length = u16::try_from(length).expect("a short body");
    let field = match order {
        ByteOrder::Little => length.to_le_bytes(),
        ByteOrder::Network => length.to_be_bytes(),
    };
    frame[4..FRAME_HEADER_BYTES].copy_from_slice(&field);
}

/// Every variant has a sample, in the order of the opcodes.
fn cover<T: Said>(values: &[T]) {
    let mut names: Vec<String> = values
        .iter()
        .map(|value| {
            let shown = format!("{value:?}");
            let end = shown.find(|letter: char| !letter.is_alphanumeric());
            shown[..end.unwrap_or(shown.len())].to_owned()
        })
        .collect();
    names.dedup();
    assert_eq!(names, variants::<T>());
}

#[test]
fn every_variant_has_its_bytes() {
    let mut book = Book::default();
    cover::<Call>(&samples::calls());
    cover::<Answer>(&samples::answers());
    book.packets::<ClientCall>("ClientCall", &samples::client_calls());
    book.packets::<Answer>("Answer", &samples::answers());
    cover::<Held>(&samples::held());
    cover::<ToKeeper>(&samples::to_keeper());
    cover::<FromKeeper>(&samples::from_keeper());
    cover::<ToStandIn>(&samples::to_stand_in());
    cover::<FromStandIn>(&samples::from_stand_in());
    book.packets("Held", &samples::held());
    book.packets("ToKeeper", &samples::to_keeper());
    book.packets("FromKeeper", &samples::from_keeper());
    book.packets("ToStandIn", &samples::to_stand_in());
    book.packets("FromStandIn", &samples::from_stand_in());
    cover::<Op>(&samples::ops());
    cover::<Request>(&samples::requests());
    cover::<Outcome>(&samples::outcomes());
    book.frames("Request", &samples::requests());
    book.frames::<Reply>("Reply", &samples::replies());
    cover::<SysvError>(SysvError::ALL);
    cover::<Claimed>(&samples::claimed());
    cover::<Asked>(&samples::asked());
    cover::<PeerFrame>(&samples::peer_frames());
    cover::<SegmentControl>(&samples::memory::controls());
    cover::<ToHome>(&samples::memory::to_home());
    cover::<ToReplica>(&samples::memory::to_replica());
    book.frames("SysvError", SysvError::ALL);
    book.frames("PeerFrame", &samples::peer_frames());
    for preamble in samples::preambles() {
        assert_eq!(Preamble::decode(&preamble.encode()), Ok(preamble));
        book.line("Preamble", &preamble, &preamble.encode());
    }
    for hello in samples::hellos() {
        assert_eq!(Hello::decode(&hello.encode()), Ok(hello));
        book.line("Hello", &hello, &hello.encode());
    }
    compare("bytes.txt", &book.lines);
}

fn compare(name: &str, text: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    if env::var_os("UPDATE_GOLDEN").is_some() {
        fs::write(&path, text).expect("the golden file can be written");
        return;
    }
    let expected = fs::read_to_string(&path).unwrap_or_default();
    let differing = expected.lines().zip(text.lines()).find(|(old, new)| old != new);
    assert!(expected == text, "{name} differs, first: {differing:#?}");
}

#[test]
fn lengths_beyond_the_bounds_are_refused_unread() {
    for order in ORDERS {
        let field = |length: usize| {
            let length = u32::try_from(length).expect("four bytes");
            match order {
                ByteOrder::Little => length.to_le_bytes(),
                ByteOrder::Network => length.to_be_bytes(),
            }
        };
        let length = |length| frame_length(order, &field(length));
        assert_eq!(length(FRAME_BYTES_MAX - 4), Ok(Some(FRAME_BYTES_MAX)));
        for long in [FRAME_BYTES_MAX - 3, u32::MAX as usize] {
            assert!(matches!(length(long), Err(WireError::TooLong { .. })), "{long}");
        }
        assert!(matches!(length(1), Err(WireError::BadLength { .. })));
        assert_eq!(frame_length(order, &field(9)[..3]), Ok(None));
    }
    // A list that says it is longer than memory: opcode of Report, then the number of objects.
    let mut body = encode_packet(&PeerFrame::Report {
        objects: Vec::new(),
        piece: dipc_wire::peer::Piece::Last,
    });
    body[6..14].copy_from_slice(&u64::MAX.to_le_bytes());
    assert_eq!(decode_packet::<PeerFrame>(&body), Err(WireError::BadBody));
}

#[test]
fn numbers_that_nobody_can_have_are_refused() {
    let packet = encode_packet(&65_u8);
    assert_eq!(decode_packet::<dipc_wire::ids::NodeId>(&packet), Err(WireError::BadBody));
    let packet = encode_packet(&0x4000_0000_i32);
    assert_eq!(decode_packet::<dipc_wire::ids::ObjectId>(&packet), Err(WireError::BadBody));
}

#[test]
fn another_version_is_named() {
    let mut packet = encode_packet(&Answer::Done);
    packet[0] = packet[0].wrapping_add(1);
    let theirs = VERSION + 1;
    assert_eq!(decode_packet::<Answer>(&packet), Err(WireError::Version { theirs }));
    let mut preamble = samples::preambles()[0].encode();
    preamble[5] = preamble[5].wrapping_add(1);
    assert_eq!(Preamble::decode(&preamble), Err(WireError::Version { theirs }));
    preamble[0] = b'H';
    assert_eq!(Preamble::decode(&preamble), Err(WireError::NotDipc));
}

/// Whatever is understood is said in these bytes and no others.
fn feed_packet<T: Said>(bytes: &[u8]) {
    if let Ok(value) = decode_packet::<T>(bytes) {
        assert_eq!(encode_packet(&value), bytes, "{value:?}");
    }
}

fn feed_frame<T: Said>(bytes: &[u8]) {
    for order in ORDERS {
        // Its answer is only a bound; what follows must bear bytes that keep to none.
        let _ = frame_length(order, bytes);
        if let Ok((value, raw)) = decode_frame::<T>(order, bytes) {
            let mut frame = Vec::new();
            encode_frame(order, &value, raw, &mut frame);
            assert_eq!(frame[4..], bytes[4..], "{value:?}");
        }
    }
}

/// The messages of a handshake, and records after it, by whoever has no key.
fn feed_without_key(bytes: &[u8]) {
    thread_local!(static OPENERS: RefCell<[Opener; 2]> = {
        RefCell::new([opener(Cipher::AesGcm), opener(Cipher::Plain)])
    });
    if let Some(message) = bytes.first_chunk() {
        let read = Handshake::responder(&Secret([7; 32])).read(message);
        assert!(read.is_err(), "nobody makes one by chance");
    }
    OPENERS.with_borrow_mut(|[sealed, plain]| {
        let mut out = Vec::new();
        assert!(!matches!(sealed.open(bytes, &mut out), Ok(Some(_))), "nor one of these");
        out.clear();
        let mut rest = bytes;
        while let Ok(Some(used)) = plain.open(rest, &mut out) {
            rest = &rest[used..];
        }
        assert!(out.len() <= bytes.len(), "it holds no more than what came");
    });
}

fn opener(cipher: Cipher) -> Opener {
    let secret = Secret([7; 32]);
    let (mut near, mut far) = (Handshake::initiator(&secret), Handshake::responder(&secret));
    far.read(&near.write()).and_then(|()| near.read(&far.write())).expect("they have one secret");
    far.finish(cipher).1
}

fn feed_all(bytes: &[u8]) {
    feed_packet::<ClientCall>(bytes);
    feed_packet::<Answer>(bytes);
    feed_packet::<ToKeeper>(bytes);
    feed_packet::<FromKeeper>(bytes);
    feed_packet::<ToStandIn>(bytes);
    feed_packet::<FromStandIn>(bytes);
    feed_frame::<Request>(bytes);
    feed_frame::<Reply>(bytes);
    feed_frame::<PeerFrame>(bytes);
    if let Some(Ok(preamble)) = bytes.first_chunk().map(Preamble::decode) {
        assert_eq!(Preamble::decode(&preamble.encode()), Ok(preamble));
    }
    if let Some(Ok(hello)) = bytes.first_chunk().map(Hello::decode) {
        assert_eq!(Hello::decode(&hello.encode()), Ok(hello));
    }
    if let Some(Some(order)) = bytes.first_chunk().map(trap::Order::from_bytes) {
        assert_eq!(trap::Order::from_bytes(&order.to_bytes()), Some(order));
    }
    feed_without_key(bytes);
}

/// Good bytes of every conversation, to be spoilt.
fn good_bytes() -> Vec<Vec<u8>> {
    fn frames<T: Said>(values: &[T], out: &mut Vec<Vec<u8>>) {
        for (value, order) in values.iter().flat_map(|value| ORDERS.map(|order| (value, order))) {
            let mut frame = Vec::new();
            encode_frame(order, value, b"raw", &mut frame);
            out.push(frame);
        }
    }
    let mut good = Vec::new();
    good.extend(samples::client_calls().iter().map(encode_packet));
    good.extend(samples::answers().iter().map(encode_packet));
    good.extend(samples::to_keeper().iter().map(encode_packet));
    good.extend(samples::from_keeper().iter().map(encode_packet));
    good.extend(samples::to_stand_in().iter().map(encode_packet));
    good.extend(samples::from_stand_in().iter().map(encode_packet));
    frames(&samples::requests(), &mut good);
    frames(&samples::replies(), &mut good);
    frames(&samples::peer_frames(), &mut good);
    good.extend(samples::preambles().iter().map(|preamble| preamble.encode().to_vec()));
    good.extend(samples::hellos().iter().map(|hello| hello.encode().to_vec()));
    good
}

/// Each case is fed to every decoder.
fn config() -> ProptestConfig {
    let cases = if env::var_os("DIPC_LONG").is_some() { 10_000_000 } else { 100_000 };
    ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(cases) }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn random_bytes_are_refused_or_understood(
        random in proptest::collection::vec(any::<u8>(), 0..96),
        which in any::<prop::sample::Index>(),
        spoilt in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
    ) {
        thread_local!(static GOOD: Vec<Vec<u8>> = good_bytes());
        feed_all(&random);
        let mut bytes = GOOD.with(|good| which.get(good).clone());
        for (at, byte) in spoilt {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        feed_all(&bytes);
    }
}
