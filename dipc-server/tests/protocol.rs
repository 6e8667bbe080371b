//! The parser alone: every stream in every cut, well-formed, almost, and not at all. No server, no
//! socket, no clock; each step is checked for what it must keep.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)] // A panic is how a test fails.

use dipc_server::layout::{Geometry, Mailbox};
use dipc_server::protocol::{Form, Parser, Pause, Problem, Request, Step, Wait};
use proptest::prelude::*;

const PACKET_BYTES: usize = 1024;

fn geometry() -> Geometry {
    Geometry::new(4, 2048).unwrap()
}

fn mailbox(number: u64) -> Mailbox {
    geometry().mailbox(number).unwrap()
}

/// What came out of a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Said {
    ReadPlain(Mailbox),
    ReadFramed(Mailbox, usize),
    Write(Mailbox, Vec<u8>, Form),
    Quit,
    Refused(Problem),
    Closed(Problem),
    Ended,
}

/// Something that happens to a connection.
#[derive(Clone, Debug)]
enum Event {
    Bytes(Vec<u8>),
    Quiet,
}

/// Plays events, then the end of the stream, and checks what every step must keep.
fn play(events: &[Event]) -> Vec<Said> {
    let mut parser = Parser::new(geometry(), PACKET_BYTES);
    let mut input = Vec::new();
    let mut said = Vec::new();
    for event in events {
        let pause = match event {
            Event::Bytes(bytes) => {
                input.extend_from_slice(bytes);
                Pause::Unknown
            }
            Event::Quiet => Pause::Quiet,
        };
        if drain(&mut parser, &mut input, pause, &mut said) {
            return said;
        }
    }
    assert!(drain(&mut parser, &mut input, Pause::End, &mut said), "an end ends it");
    said
}

/// Steps until the parser waits (false) or the connection ends (true).
fn drain(parser: &mut Parser, input: &mut Vec<u8>, mut pause: Pause, said: &mut Vec<Said>) -> bool {
    // Each step uses a byte, or changes the state without one at most twice before it waits.
    for _ in 0..2 * input.len() + 4 {
        let (what, used) = match parser.step(input, pause) {
            Step::Wait(wait) => {
                assert_ne!(pause, Pause::End, "nothing to wait for");
                assert!(wait != Wait::Idle || input.is_empty(), "idle only between requests");
                return false;
            }
            Step::End => {
                assert!(input.is_empty());
                said.push(Said::Ended);
                return true;
            }
            Step::Close(problem) => {
                said.push(Said::Closed(problem));
                return true;
            }
            Step::Skip(used) => (None, used),
            Step::Refuse(problem, used) => (Some(Said::Refused(problem)), used),
            Step::Serve(request, used) => {
                let what = match request {
                    Request::ReadPlain(mailbox) => Said::ReadPlain(mailbox),
                    Request::ReadFramed(mailbox, most) => Said::ReadFramed(mailbox, most),
                    Request::Write(mailbox, range, form) => {
                        assert!(range.end <= used, "its own bytes");
                        let body = input[range].to_vec();
                        assert!(body.len() <= geometry().mailbox_bytes());
                        Said::Write(mailbox, body, form)
                    }
                    Request::Quit => {
                        said.push(Said::Quit);
                        return true;
                    }
                };
                (Some(what), used)
            }
        };
        assert!(used <= input.len(), "no more than there is");
        said.extend(what);
        input.drain(..used);
        if pause == Pause::Quiet {
            pause = Pause::Unknown;
        }
    }
    panic!("the parser makes no progress");
}

fn whole(bytes: &[u8]) -> Vec<Said> {
    play(&[Event::Bytes(bytes.to_vec())])
}

/// A request in framed form, or a plain one that needs no pause: its bytes, and what it says.
fn framed() -> impl Strategy<Value = (Vec<u8>, Said)> {
    let body = prop::collection::vec(any::<u8>(), 0..100);
    let end = prop_oneof![Just("\n"), Just("\r\n")];
    let numbers = (1_u64..=4, any::<u32>());
    prop_oneof![
        (numbers.clone(), body, end.clone()).prop_map(|((number, _), body, end)| {
            let line = format!("w {number} {}{end}", body.len());
            let said = Said::Write(mailbox(number), body.clone(), Form::Framed);
            ([line.into_bytes(), body].concat(), said)
        }),
        (numbers.clone(), end.clone()).prop_map(|((number, most), end)| {
            let line = format!(" r\t{number}  {most} {end}");
            (line.into_bytes(), Said::ReadFramed(mailbox(number), most as usize))
        }),
        (numbers.clone(), end.clone()).prop_map(|((number, _), end)| {
            (format!("r {number}{end}").into_bytes(), Said::ReadPlain(mailbox(number)))
        }),
        (numbers, end).prop_map(|((_, length), end)| {
            let length = length as usize % 3000;
            let stream = [format!("w 5 {length}{end}").into_bytes(), vec![b'\n'; length]].concat();
            (stream, Said::Refused(Problem::NoMailbox(4)))
        }),
    ]
}

/// Cuts a stream at these places.
fn cut(stream: &[u8], mut places: Vec<usize>) -> Vec<Event> {
    places.iter_mut().for_each(|place| *place %= stream.len() + 1);
    places.extend([0, stream.len()]);
    places.sort_unstable();
    places.windows(2).map(|pair| Event::Bytes(stream[pair[0]..pair[1]].to_vec())).collect()
}

fn event() -> impl Strategy<Value = Event> {
    let words = prop::sample::select(vec![
        &b"r"[..],
        b"w",
        b"q",
        b" ",
        b"\n",
        b"\r\n",
        b"1",
        b"4",
        b"5",
        b"17",
        b"2048",
        b"2049",
        b"-",
        b"\0",
        b"w 1\n",
        b"w 2 3\n",
        b"r 1 5\n",
        b"w 3\nr 1\n",
        b"99999999999999999999999",
    ]);
    prop_oneof![
        6 => prop::collection::vec(words, 0..12).prop_map(|words| Event::Bytes(words.concat())),
        2 => prop::collection::vec(any::<u8>(), 0..200).prop_map(Event::Bytes),
        1 => (0_usize..3000).prop_map(|length| Event::Bytes(vec![b'x'; length])),
        2 => Just(Event::Quiet),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: if std::env::var_os("DIPC_LONG").is_some() { 200_000 } else { 10_000 },
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    /// Whatever comes, in whatever pieces: each step keeps its promises and the stream has an end.
    #[test]
    fn any_stream_is_taken(events in prop::collection::vec(event(), 0..20)) {
        play(&events);
    }

    /// Framed requests say the same in any cut, with pauses in any place.
    #[test]
    fn cuts_and_pauses_make_no_difference(
        requests in prop::collection::vec(framed(), 0..8),
        places in prop::collection::vec(any::<usize>(), 0..12),
        pauses in prop::collection::vec(any::<bool>(), 14),
    ) {
        let stream: Vec<u8> = requests.iter().flat_map(|(bytes, _)| bytes.clone()).collect();
        let mut expected: Vec<Said> = requests.into_iter().map(|(_, said)| said).collect();
        expected.push(Said::Ended);
        prop_assert_eq!(&whole(&stream), &expected);
        let mut events = Vec::new();
        for (piece, pause) in cut(&stream, places).into_iter().zip(pauses) {
            events.push(piece);
            if pause {
                events.push(Event::Quiet);
            }
        }
        prop_assert_eq!(&play(&events), &expected);
    }

    /// The data of a plain write is data, whatever it looks like.
    #[test]
    fn plain_data_is_never_a_request(data in prop::collection::vec(any::<u8>(), 1..PACKET_BYTES)) {
        let stream = [b"w 2\n", &data[..]].concat();
        let trimmed = match data.strip_suffix(b"\n") {
            Some(rest) => rest.strip_suffix(b"\r").unwrap_or(rest),
            None => &data[..],
        };
        let written = Said::Write(mailbox(2), trimmed.to_vec(), Form::Plain);
        prop_assert_eq!(whole(&stream), vec![written, Said::Ended]);
    }
}

#[test]
fn a_plain_write_in_its_forms() {
    let bytes = |bytes: &[u8]| Event::Bytes(bytes.to_vec());
    let write = |body: &[u8]| Said::Write(mailbox(1), body.to_vec(), Form::Plain);
    let read = || Said::ReadPlain(mailbox(1));
    let rows: [(&str, Vec<Event>, Vec<Said>); 7] = [
        ("with its line", vec![bytes(b"w 1\nhi\n"), Event::Quiet], vec![write(b"hi"), Said::Ended]),
        (
            "soon after it",
            vec![bytes(b"w 1\n"), bytes(b"h"), bytes(b"i"), Event::Quiet, bytes(b"r 1\n")],
            vec![write(b"hi"), read(), Said::Ended],
        ),
        (
            "alone, then with a newline",
            vec![bytes(b"w 1\n"), Event::Quiet, bytes(b"h"), Event::Quiet, bytes(b"i\r\nr 1\n")],
            vec![write(b"hi"), read(), Said::Ended],
        ),
        (
            "alone, then cut off by the end",
            vec![bytes(b"w 1\n"), Event::Quiet, bytes(b"hi")],
            vec![write(b"hi"), Said::Ended],
        ),
        ("without any", vec![bytes(b"w 1\n")], vec![Said::Closed(Problem::CutOff)]),
        ("empty", vec![bytes(b"w 1\n\n")], vec![write(b""), Said::Ended]),
        (
            "to no mailbox",
            vec![bytes(b"w 9\nr 1\n"), Event::Quiet, bytes(b"r 1\n")],
            vec![Said::Refused(Problem::NoMailbox(4)), read(), Said::Ended],
        ),
    ];
    for (name, events, expected) in rows {
        assert_eq!(play(&events), expected, "{name}");
    }
}

#[test]
fn lengths_at_their_bounds() {
    let body = vec![b'x'; 2049];
    let stream = |length: usize| [format!("w 1 {length}\n").as_bytes(), &body[..length]].concat();
    let written = Said::Write(mailbox(1), body[..2048].to_vec(), Form::Framed);
    assert_eq!(whole(&stream(2048)), [written, Said::Ended]);
    assert_eq!(whole(&stream(2049)), [Said::Refused(Problem::TooLong(2048)), Said::Ended]);
    let plain = |length: usize| [b"w 1\n", &body[..length]].concat();
    let written = Said::Write(mailbox(1), body[..1024].to_vec(), Form::Plain);
    assert_eq!(whole(&plain(1024)), [written, Said::Ended]);
    assert_eq!(whole(&plain(1025)), [Said::Closed(Problem::PacketTooLong(1024))]);
    let line = [b" ".repeat(79), b"\n".to_vec()].concat();
    assert_eq!(whole(&line), [Said::Ended]);
    assert_eq!(whole(&b" ".repeat(80)), [Said::Closed(Problem::LineTooLong)]);
}
