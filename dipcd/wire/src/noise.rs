//! Protection of links and wires: Noise NNpsk0 (noiseprotocol.org), with the cluster key or a
//! ticket's secret as pre-shared key; KKpsk0 on a link whose ends know each other's node keys. No
//! I/O: the caller moves the bytes.
//!
//! ```text
//! initiator ── e, psk ──▶ responder        u16 length before each message and record,
//! initiator ◀── e, ee ─── responder        most significant byte first
//! then records either way, numbered from 0 in each direction
//! ```
//!
//! KKpsk0 adds es, ss to the first message and se to the second; both stay as long.
//! The two messages carry no payload, and neither end acts on anything before the first record
//! has been opened: message 1 alone can be replayed. A record that does not open ends the
//! connection; numbers are never reused because each end counts its own.
//!
//! The handshake is snow's; records are sealed and opened by its two keys here, as the
//! specification has it (AES-GCM, no associated data), because snow copies what it opens.

use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use serde::{Deserialize, Serialize};
use snow::params::DHChoice;
use snow::resolvers::{CryptoResolver, DefaultResolver};
use snow::{Builder, HandshakeState};
use std::fmt;
use std::ops::Range;

use crate::codec::WireError;
use crate::ids::Secret;
use crate::limits::{RECORD_BYTES_MAX, TAG_BYTES};

const PATTERN: &str = "Noise_NNpsk0_25519_AESGCM_SHA256";
const PATTERN_OF_NODES: &str = "Noise_KKpsk0_25519_AESGCM_SHA256";
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

/// What everybody may know of a node key. Printed as 64 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct PublicKey(pub [u8; 32]);

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({self})")
    }
}

/// A node's own key: by it the node is known to those whose list names its public half.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeKey {
    private: Secret,
    public: PublicKey,
}

impl NodeKey {
    /// The key with this private half, which any 32 random bytes are.
    pub fn new(private: Secret) -> NodeKey {
        let mut curve =
            DefaultResolver.resolve_dh(&DHChoice::Curve25519).expect("the pattern's own curve");
        curve.set(&private.0);
        let public = curve.pubkey().try_into().expect("a public key is 32 bytes");
        NodeKey { private, public: PublicKey(public) }
    }

    /// The half that others know.
    pub fn public(&self) -> PublicKey {
        self.public
    }

    /// The half that nobody else knows.
    pub fn private(&self) -> &Secret {
        &self.private
    }
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
        let state = builder(PATTERN, secret).build_initiator();
        Handshake { state: state.expect("pattern and key fit") }
    }

    /// For who was dialled.
    pub fn responder(secret: &Secret) -> Handshake {
        let state = builder(PATTERN, secret).build_responder();
        Handshake { state: state.expect("pattern and key fit") }
    }

    /// For the node that dialled another one whose key it knows.
    pub fn initiator_of_nodes(secret: &Secret, own: &NodeKey, peer: &PublicKey) -> Handshake {
        let state = builder_of_nodes(secret, own, peer).build_initiator();
        Handshake { state: state.expect("pattern and keys fit") }
    }

    /// For the node that was dialled by one whose key it knows.
    pub fn responder_of_nodes(secret: &Secret, own: &NodeKey, peer: &PublicKey) -> Handshake {
        let state = builder_of_nodes(secret, own, peer).build_responder();
        Handshake { state: state.expect("pattern and keys fit") }
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
    pub fn finish(mut self, cipher: Cipher) -> (Sealer, Opener) {
        assert!(self.state.is_handshake_finished(), "both messages have passed");
        let (initiators, responders) = self.state.dangerously_get_raw_split();
        let (out, back) = match self.state.is_initiator() {
            true => (initiators, responders),
            false => (responders, initiators),
        };
        let key = |bytes: [u8; 32]| match cipher {
            Cipher::Plain => None,
            Cipher::AesGcm => {
                let key = UnboundKey::new(&AES_256_GCM, &bytes).expect("a key of its length");
                Some(Box::new(LessSafeKey::new(key)))
            }
        };
        (Sealer { key: key(out), number: 0 }, Opener { key: key(back), number: 0 })
    }
}

/// What makes each record of a direction another one (the Noise specification, section 12).
fn nonce(number: u64) -> Nonce {
    let mut bytes = [0; NONCE_LEN];
    bytes[NONCE_LEN - 8..].copy_from_slice(&number.to_be_bytes());
    Nonce::assume_unique_for_key(bytes)
}

fn builder_of_nodes<'a>(secret: &'a Secret, own: &'a NodeKey, peer: &'a PublicKey) -> Builder<'a> {
    let builder = builder(PATTERN_OF_NODES, secret);
    let builder = builder.local_private_key(&own.private.0).expect("set once");
    builder.remote_public_key(&peer.0).expect("set once")
}

fn builder<'a>(pattern: &str, secret: &'a Secret) -> Builder<'a> {
    let pattern = pattern.parse().expect("a pattern of the specification");
    let builder = Builder::new(pattern);
    let builder = builder.prologue(PROLOGUE).expect("set once");
    builder.psk(0, &secret.0).expect("set once")
}

/// The outgoing direction: plain bytes to records.
pub struct Sealer {
    key: Option<Box<LessSafeKey>>,
    number: u64,
}

impl Sealer {
    /// Appends `plain` to `out` as records.
    pub fn seal(&mut self, plain: &[u8], out: &mut Vec<u8>) {
        for piece in plain.chunks(PLAIN_BYTES_MAX) {
            let length = piece.len() + if self.key.is_some() { TAG_BYTES } else { 0 };
            out.extend_from_slice(&(length as u16).to_be_bytes());
            let start = out.len();
            out.extend_from_slice(piece);
            if let Some(key) = &self.key {
                let (nonce, none) = (nonce(self.number), Aad::empty());
                let tag = key.seal_in_place_separate_tag(nonce, none, &mut out[start..]);
                out.extend_from_slice(tag.expect("a piece is within bounds").as_ref());
            }
            self.number = self.number.checked_add(1).expect("2^64 records do not happen");
        }
    }
}

/// The incoming direction: records to plain bytes.
pub struct Opener {
    key: Option<Box<LessSafeKey>>,
    number: u64,
}

/// A record that was opened where it lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Opened {
    /// Where its plain bytes are.
    pub plain: Range<usize>,
    /// How long it was, its length field included.
    pub used: usize,
}

impl Opener {
    /// Appends what the first record of `bytes` holds to `plain`. Returns the bytes it used, or
    /// `None` if the record is not all there yet.
    pub fn open(&mut self, bytes: &[u8], plain: &mut Vec<u8>) -> Result<Option<usize>, WireError> {
        let Some(record) = first_record(bytes) else { return Ok(None) };
        let start = plain.len();
        plain.extend_from_slice(&bytes[record.clone()]);
        let length = self.decrypt(&mut plain[start..])?;
        plain.truncate(start + length);
        Ok(Some(record.end))
    }

    /// The same without a copy: the plain bytes take the place of the record's.
    pub fn open_in_place(&mut self, bytes: &mut [u8]) -> Result<Option<Opened>, WireError> {
        let Some(record) = first_record(bytes) else { return Ok(None) };
        let length = self.decrypt(&mut bytes[record.clone()])?;
        Ok(Some(Opened { plain: record.start..record.start + length, used: record.end }))
    }

    /// How many plain bytes there are at the beginning of the record then.
    fn decrypt(&mut self, record: &mut [u8]) -> Result<usize, WireError> {
        let length = record.len();
        let plain = match &self.key {
            None => length,
            Some(key) => {
                let opened = key.open_in_place(nonce(self.number), Aad::empty(), record);
                opened.map_err(|_| WireError::NotProven)?.len()
            }
        };
        if plain == 0 {
            return Err(WireError::BadLength { length });
        }
        self.number = self.number.checked_add(1).expect("2^64 records do not happen");
        Ok(plain)
    }
}

/// Where behind its length the first record of `bytes` lies, if it is there whole.
fn first_record(bytes: &[u8]) -> Option<Range<usize>> {
    let (length, rest) = bytes.split_first_chunk::<2>()?;
    let length = usize::from(u16::from_be_bytes(*length));
    (length <= rest.len()).then_some(2..2 + length)
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
            assert_eq!((at, &got), (bytes.len(), &plain));

            let ((mut sealer, _), (_, mut opener)) = pair(cipher);
            (bytes, got) = (Vec::new(), Vec::new());
            sealer.seal(&plain, &mut bytes);
            let mut rest = bytes.as_mut_slice();
            while let Some(opened) = opener.open_in_place(rest).expect("opens") {
                got.extend_from_slice(&rest[opened.plain]);
                rest = &mut rest[opened.used..];
            }
            assert_eq!((rest.len(), got), (0, plain), "in place");
        }
    }

    /// Whoever speaks Noise understands what follows our handshake.
    #[test]
    fn records_are_those_of_noise() {
        let secret = Secret([7; 32]);
        let mut near = Handshake::initiator(&secret);
        let mut far = Handshake::responder(&secret);
        far.read(&near.write()).expect("message 1");
        near.read(&far.write()).expect("message 2");
        let theirs = far.state.into_stateless_transport_mode().expect("both messages have passed");
        let (mut sealer, mut opener) = near.finish(Cipher::AesGcm);
        for number in 0..3 {
            let (mut ours, mut plain) = (Vec::new(), [0; 64]);
            sealer.seal(b"there", &mut ours);
            let length = theirs.read_message(number, &ours[2..], &mut plain).expect("opens");
            assert_eq!(&plain[..length], b"there");
            let mut sealed = vec![0, 5 + TAG_BYTES as u8];
            sealed.resize(2 + 5 + TAG_BYTES, 0);
            theirs.write_message(number, b"again", &mut sealed[2..]).expect("seals");
            let mut back = Vec::new();
            assert_eq!(opener.open(&sealed, &mut back), Ok(Some(sealed.len())));
            assert_eq!(back, b"again");
        }
    }

    #[test]
    fn nodes_that_know_each_other_prove_it_and_nobody_else_does() {
        let secret = Secret([7; 32]);
        let [one, two, other] = [1, 2, 3].map(|byte| NodeKey::new(Secret([byte; 32])));
        assert_eq!(one, NodeKey::new(one.private().clone()));
        let begin = |from: &NodeKey, to: &NodeKey| {
            Handshake::initiator_of_nodes(&secret, from, &to.public())
        };
        let answer = |at: &NodeKey, from: &NodeKey| {
            Handshake::responder_of_nodes(&secret, at, &from.public())
        };
        let (mut near, mut far) = (begin(&one, &two), answer(&two, &one));
        assert_eq!(far.read(&near.write()), Ok(()));
        assert_eq!(near.read(&far.write()), Ok(()));
        // Another key than the one that the list names, to another node, or by the cluster key
        // alone; and the other way round.
        assert_eq!(
            answer(&two, &one).read(&begin(&other, &two).write()),
            Err(WireError::NotProven)
        );
        assert_eq!(
            answer(&two, &one).read(&begin(&one, &other).write()),
            Err(WireError::NotProven)
        );
        let plain = Handshake::initiator(&secret).write();
        assert_eq!(answer(&two, &one).read(&plain), Err(WireError::NotProven));
        let keyed = begin(&one, &two).write();
        assert_eq!(Handshake::responder(&secret).read(&keyed), Err(WireError::NotProven));
        // Who has the keys of nodes and not the cluster's.
        let unkeyed = Handshake::initiator_of_nodes(&Secret([8; 32]), &one, &two.public()).write();
        assert_eq!(answer(&two, &one).read(&unkeyed), Err(WireError::NotProven));
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
