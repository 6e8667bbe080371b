//! From values to bytes and back: the only module that knows bincode.
//!
//! A *packet* (UNIX sockets) is a version and a body. A *frame* (links and wires) is
//!
//! ```text
//! u32 length of the rest │ u16 length of the body │ body │ raw bytes (text, values, pages)
//! ```
//!
//! Both lengths are checked before anything is allocated; a body must be consumed whole.

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::fmt;

use crate::limits::{BODY_BYTES_MAX, FRAME_BYTES_MAX, VERSION};

/// The order of the bytes of an integer on links and wires (`-n`: network). Equal on both ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum ByteOrder {
    /// As this machine and most others have it.
    #[default]
    Little,
    /// Most significant byte first.
    Network,
}

/// What is wrong with bytes that came in. The connection they came by is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WireError {
    /// The length field names more than may come.
    TooLong {
        /// Bytes it names.
        length: usize,
        /// Bytes allowed.
        max: usize,
    },
    /// The length field names less than there must be, or a body longer than its frame.
    BadLength {
        /// Bytes it names.
        length: usize,
    },
    /// Another version of the protocol.
    Version {
        /// Theirs.
        theirs: u16,
    },
    /// The body is no value of the expected type.
    BadBody,
    /// The body is followed by bytes that belong to nothing.
    Trailing {
        /// How many.
        bytes: usize,
    },
    /// The peer does not begin as a dipcd does.
    NotDipc,
    /// A record or handshake that does not prove the key.
    NotProven,
}

impl fmt::Display for WireError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            WireError::TooLong { length, max } => {
                write!(f, "a frame of {length} bytes, at most {max} are allowed")
            }
            WireError::BadLength { length } => {
                write!(f, "a frame with the impossible length {length}")
            }
            WireError::Version { theirs } => {
                write!(f, "protocol version {theirs}, this is version {VERSION}")
            }
            WireError::BadBody => f.write_str("a frame that is none of the protocol's"),
            WireError::Trailing { bytes } => write!(f, "a frame with {bytes} bytes too many"),
            WireError::NotDipc => f.write_str("not a DIPC peer"),
            WireError::NotProven => f.write_str("wrong key, or bytes changed on the way"),
        }
    }
}

impl std::error::Error for WireError {}

/// Bytes of the two length fields.
pub const FRAME_HEADER_BYTES: usize = 6;

fn encode_body(order: ByteOrder, value: &impl Serialize, out: &mut Vec<u8>) {
    let config = bincode::config::standard().with_fixed_int_encoding();
    let encoded = match order {
        ByteOrder::Little => {
            bincode::serde::encode_into_std_write(value, out, config.with_little_endian())
        }
        ByteOrder::Network => {
            bincode::serde::encode_into_std_write(value, out, config.with_big_endian())
        }
    };
    encoded.expect("writing into memory cannot fail, and our types have no unsupported part");
}

fn decode_body<T: DeserializeOwned>(order: ByteOrder, body: &[u8]) -> Result<T, WireError> {
    let config =
        bincode::config::standard().with_fixed_int_encoding().with_limit::<BODY_BYTES_MAX>();
    let decoded = match order {
        ByteOrder::Little => bincode::serde::decode_from_slice(body, config.with_little_endian()),
        ByteOrder::Network => bincode::serde::decode_from_slice(body, config.with_big_endian()),
    };
    let (value, used) = decoded.map_err(|_| WireError::BadBody)?;
    match body.len() - used {
        0 => Ok(value),
        bytes => Err(WireError::Trailing { bytes }),
    }
}

/// Appends one frame to `out`. `raw` is what follows the body.
pub fn encode_frame(order: ByteOrder, value: &impl Serialize, raw: &[u8], out: &mut Vec<u8>) {
    let start = out.len();
    out.extend_from_slice(&[0; FRAME_HEADER_BYTES]);
    encode_body(order, value, out);
    let body = out.len() - start - FRAME_HEADER_BYTES;
    out.extend_from_slice(raw);
    let length = out.len() - start - 4;
    assert!(body <= BODY_BYTES_MAX && length + 4 <= FRAME_BYTES_MAX, "a frame beyond its bound");
    let (length, body) = (length as u32, body as u16);
    let (length, body) = match order {
        ByteOrder::Little => (length.to_le_bytes(), body.to_le_bytes()),
        ByteOrder::Network => (length.to_be_bytes(), body.to_be_bytes()),
    };
    out[start..start + 4].copy_from_slice(&length);
    out[start + 4..start + FRAME_HEADER_BYTES].copy_from_slice(&body);
}

/// How many bytes the whole frame has that begins with `bytes`: `None` until four are there.
pub fn frame_length(order: ByteOrder, bytes: &[u8]) -> Result<Option<usize>, WireError> {
    let Some(field) = bytes.first_chunk::<4>() else { return Ok(None) };
    let length = match order {
        ByteOrder::Little => u32::from_le_bytes(*field),
        ByteOrder::Network => u32::from_be_bytes(*field),
    } as usize;
    if length < FRAME_HEADER_BYTES - 4 {
        return Err(WireError::BadLength { length });
    }
    if length + 4 > FRAME_BYTES_MAX {
        return Err(WireError::TooLong { length: length + 4, max: FRAME_BYTES_MAX });
    }
    Ok(Some(length + 4))
}

/// Takes a whole frame apart, as long as [`frame_length`] said: the value and the raw bytes.
pub fn decode_frame<T: DeserializeOwned>(
    order: ByteOrder,
    frame: &[u8],
) -> Result<(T, &[u8]), WireError> {
    let bad = WireError::BadLength { length: frame.len() };
    let field = frame.get(4..FRAME_HEADER_BYTES).ok_or(bad)?;
    let field = [field[0], field[1]];
    let body = match order {
        ByteOrder::Little => u16::from_le_bytes(field),
        ByteOrder::Network => u16::from_be_bytes(field),
    } as usize;
    let rest = &frame[FRAME_HEADER_BYTES..];
    let (body, raw) = rest.split_at_checked(body).ok_or(bad)?;
    Ok((decode_body(order, body)?, raw))
}

/// One packet for a UNIX socket.
pub fn encode_packet(value: &impl Serialize) -> Vec<u8> {
    let mut out = VERSION.to_le_bytes().to_vec();
    encode_body(ByteOrder::Little, value, &mut out);
    assert!(out.len() <= crate::limits::PACKET_BYTES_MAX, "a packet beyond its bound");
    out
}

/// Takes a packet apart.
pub fn decode_packet<T: DeserializeOwned>(packet: &[u8]) -> Result<T, WireError> {
    let Some((version, body)) = packet.split_first_chunk::<2>() else {
        return Err(WireError::BadLength { length: packet.len() });
    };
    let theirs = u16::from_le_bytes(*version);
    if theirs != VERSION {
        return Err(WireError::Version { theirs });
    }
    decode_body(ByteOrder::Little, body)
}
