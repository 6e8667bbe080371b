//! Protection of links and wires: Noise NNpsk0 (noiseprotocol.org), with the cluster key or a
//! ticket's secret as pre-shared key. No I/O: the caller moves the bytes.
//!
//! ```text
//! initiator ── e, psk ──▶ responder        u16 length before each message and record,
//! initiator ◀── e, ee ─── responder        most significant byte first
//! then records either way, numbered from 0 in each direction
//! ```
//!
//! The two messages carry no payload, and neither end acts on anything before the first record
//! has been opened: message 1 alone can be replayed. A record that does not open ends the
//! connection; numbers are never reused because each end counts its own.

use serde::{Deserialize, Serialize};
use snow::{Builder, HandshakeState, StatelessTransportState};
use std::sync::Arc;

use crate::codec::WireError;
use crate::ids::Secret;
use crate::limits::{RECORD_BYTES_MAX, TAG_BYTES};

const PATTERN: &str = "Noise_NNpsk0_25519_AESGCM_SHA256";
const PROLOGUE: &[u8] = b"DIPC 1";

/// Protection after the handshake (`cipher`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Cipher {
    /// Every record is encrypted and authenticated.
    #[default]
    AesGcm,
    /// None. The handshake still proves the key.
    Plain,
}

/// The most plain bytes of one record.
pub const PLAIN_BYTES_MAX: usize = RECORD_BYTES_MAX - TAG_BYTES;

/// Bytes of each of the two handshake messages: a public key and a tag.
pub const HANDSHAKE_BYTES: usize = 32 + TAG_BYTES;

/// A handshake under way at either end.
pub struct Handshake {
    state: HandshakeState,
}

impl Handshake {
    /// For who dialled.
    pub fn initiator(secret: &Secret) -> Handshake {
        let state = builder(secret).build_initiator();
        Handshake { state: state.expect("pattern and key fit") }
    }

    /// For who was dialled.
    pub fn responder(secret: &Secret) -> Handshake {
        let state = builder(secret).build_responder();
        Handshake { state: state.expect("pattern and key fit") }
    }

    /// This end's message: the initiator's first, the responder's after [`Handshake::read`].
    pub fn write(&mut self) -> [u8; HANDSHAKE_BYTES] {
        let mut out = [0; HANDSHAKE_BYTES];
        let written = self.state.write_message(&[], &mut out).expect("it is this end's turn");
        assert_eq!(written, HANDSHAKE_BYTES);
        out
    }

    /// The other end's message.
    pub fn read(&mut self, message: &[u8; HANDSHAKE_BYTES]) -> Result<(), WireError> {
        let mut payload = [0; HANDSHAKE_BYTES];
        match self.state.read_message(message, &mut payload) {
            Ok(0) => Ok(()),
            _ => Err(WireError::NotProven),
        }
    }

    /// Both messages have passed: the two directions.
    pub fn finish(self, cipher: Cipher) -> (Sealer, Opener) {
        let keys = match cipher {
            Cipher::Plain => None,
            Cipher::AesGcm => Some(Arc::new(
                self.state.into_stateless_transport_mode().expect("both messages have passed"),
            )),
        };
        (Sealer { keys: keys.clone(), number: 0 }, Opener { keys, number: 0 })
    }
}

fn builder(secret: &Secret) -> Builder<'_> {
    let pattern = PATTERN.parse().expect("a pattern of the specification");
    let builder = Builder::new(pattern);
    let builder = builder.prologue(PROLOGUE).expect("set once");
    builder.psk(0, &secret.0).expect("set once")
}

/// The outgoing direction: plain bytes to records.
pub struct Sealer {
    keys: Option<Arc<StatelessTransportState>>,
    number: u64,
}

impl Sealer {
    /// Appends `plain` to `out` as records.
    pub fn seal(&mut self, plain: &[u8], out: &mut Vec<u8>) {
        for piece in plain.chunks(PLAIN_BYTES_MAX) {
            let start = out.len();
            let length = piece.len() + if self.keys.is_some() { TAG_BYTES } else { 0 };
            out.extend_from_slice(&(length as u16).to_be_bytes());
            match &self.keys {
                None => out.extend_from_slice(piece),
                Some(keys) => {
                    out.resize(start + 2 + length, 0);
                    keys.write_message(self.number, piece, &mut out[start + 2..])
                        .expect("the piece and its place are within bounds");
                }
            }
            self.number = self.number.checked_add(1).expect("2^64 records do not happen");
        }
    }
}

/// The incoming direction: records to plain bytes.
pub struct Opener {
    keys: Option<Arc<StatelessTransportState>>,
    number: u64,
}

impl Opener {
    /// Appends what the first record of `bytes` holds to `plain`. Returns the bytes it used, or
    /// `None` if the record is not all there yet.
    pub fn open(&mut self, bytes: &[u8], plain: &mut Vec<u8>) -> Result<Option<usize>, WireError> {
        let Some((length, rest)) = bytes.split_first_chunk::<2>() else { return Ok(None) };
        let length = usize::from(u16::from_be_bytes(*length));
        let Some(record) = rest.get(..length) else { return Ok(None) };
        match &self.keys {
            None if length == 0 => return Err(WireError::BadLength { length }),
            None => plain.extend_from_slice(record),
            Some(keys) => {
                let start = plain.len();
                plain.resize(start + length, 0);
                let opened = keys.read_message(self.number, record, &mut plain[start..]);
                let written = opened.map_err(|_| WireError::NotProven)?;
                if written == 0 {
                    return Err(WireError::BadLength { length });
                }
                plain.truncate(start + written);
            }
        }
        self.number = self.number.checked_add(1).expect("2^64 records do not happen");
        Ok(Some(2 + length))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(cipher: Cipher) -> ((Sealer, Opener), (Sealer, Opener)) {
        let secret = Secret([7; 32]);
        let (mut client, mut home) = (Handshake::initiator(&secret), Handshake::responder(&secret));
        home.read(&client.write()).expect("message 1");
        client.read(&home.write()).expect("message 2");
        (client.finish(cipher), home.finish(cipher))
    }

    #[test]
    fn what_is_sealed_opens_at_the_other_end() {
        for cipher in [Cipher::AesGcm, Cipher::Plain] {
            let ((mut sealer, _), (_, mut opener)) = pair(cipher);
            let plain: Vec<u8> = (0..200_000u32).map(|i| i as u8).collect();
            let (mut bytes, mut got) = (Vec::new(), Vec::new());
            sealer.seal(&plain, &mut bytes);
            let mut at = 0;
            while let Some(used) = opener.open(&bytes[at..], &mut got).expect("opens") {
                at += used;
            }
            assert_eq!((at, got), (bytes.len(), plain));
        }
    }

    #[test]
    fn a_changed_bit_a_wrong_key_and_a_replay_do_not_open() {
        let ((mut sealer, _), (_, mut opener)) = pair(Cipher::AesGcm);
        let (mut bytes, mut plain) = (Vec::new(), Vec::new());
        sealer.seal(b"hello", &mut bytes);
        let mut changed = bytes.clone();
        changed[4] ^= 1;
        assert_eq!(opener.open(&changed, &mut plain), Err(WireError::NotProven));
        plain.clear();
        assert_eq!(opener.open(&bytes, &mut plain), Ok(Some(bytes.len())));
        assert_eq!(opener.open(&bytes, &mut plain), Err(WireError::NotProven));

        let mut client = Handshake::initiator(&Secret([1; 32]));
        let mut home = Handshake::responder(&Secret([2; 32]));
        assert_eq!(home.read(&client.write()), Err(WireError::NotProven));
    }
}
