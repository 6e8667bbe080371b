//! The first bytes of a connection between machines. Fixed layouts, the same in both byte orders,
//! so that two ends that would not understand each other can still say why.
//!
//! In the clear: [`Preamble`]. Then the Noise handshake. Then, on a link, [`Hello`] both ways as
//! the first bytes under protection (on a wire the first request comes at once).

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use crate::codec::{ByteOrder, WireError};
use crate::ids::{Epoch, Incarnation, NodeId, TicketId};
use crate::limits::VERSION;

const MAGIC: [u8; 4] = *b"DIPC";

/// What a connection is for, said by who dials, in the clear.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// A link between two dipcd; the handshake proves the cluster key.
    Link,
    /// A wire; the handshake proves the ticket's secret.
    Wire(TicketId),
}

/// The first 16 bytes: magic, version, purpose, ticket; integers most significant byte first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Preamble(pub Purpose);

impl Preamble {
    /// How long it is.
    pub const BYTES: usize = 16;

    /// As bytes.
    pub fn encode(self) -> [u8; Self::BYTES] {
        let (purpose, ticket) = match self.0 {
            Purpose::Link => (1, 0),
            Purpose::Wire(TicketId(ticket)) => (2, ticket),
        };
        let mut out = [0; Self::BYTES];
        out[..4].copy_from_slice(&MAGIC);
        out[4..6].copy_from_slice(&VERSION.to_be_bytes());
        out[6] = purpose;
        out[8..].copy_from_slice(&ticket.to_be_bytes());
        out
    }

    /// From bytes.
    pub fn decode(bytes: &[u8; Self::BYTES]) -> Result<Preamble, WireError> {
        if bytes[..4] != MAGIC {
            return Err(WireError::NotDipc);
        }
        check_version([bytes[4], bytes[5]])?;
        let ticket = u64::from_be_bytes(*bytes[8..].first_chunk().expect("8 bytes are left"));
        // What says nothing is zero: so no bit can be another on the way and nobody sees it.
        match (bytes[6], bytes[7], ticket) {
            (1, 0, 0) => Ok(Preamble(Purpose::Link)),
            (2, 0, _) => Ok(Preamble(Purpose::Wire(TicketId(ticket)))),
            _ => Err(WireError::NotDipc),
        }
    }
}

fn check_version(field: [u8; 2]) -> Result<(), WireError> {
    match u16::from_be_bytes(field) {
        VERSION => Ok(()),
        theirs => Err(WireError::Version { theirs }),
    }
}

/// How pages travel (`transfer_mode`); equal in a cluster.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TransferMode {
    /// Units of `dipc_page_size`.
    #[default]
    Page,
    /// Whole segments.
    Segment,
}

/// How links travel (`-u`); equal in a cluster.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Transport {
    /// TCP.
    #[default]
    Tcp,
    /// Reliable datagrams over UDP.
    Udp,
}

/// The first thing each end of a link says; each checks it before anything else is believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hello {
    /// The speaker, [`NodeId::NONE`] before its first admission.
    pub node: NodeId,
    /// Which life of it.
    pub incarnation: Incarnation,
    /// The reign of the referee it last accepted.
    pub epoch: Epoch,
    /// Where it listens.
    pub address: SocketAddr,
    /// Whom it calls referee.
    pub referee: SocketAddr,
    /// Order of integers in the frames that follow.
    pub order: ByteOrder,
    /// How it speaks.
    pub transport: Transport,
    /// How it moves memory.
    pub transfer_mode: TransferMode,
    /// The unit of memory, in bytes.
    pub page_bytes: u32,
    /// How long it uses another home's pages unanswered, in milliseconds.
    pub lease_ms: u32,
    /// After how long it declares a silent node lost, in milliseconds.
    pub node_timeout_ms: u32,
}

impl Hello {
    /// How long it is.
    pub const BYTES: usize = 80;

    /// As bytes.
    pub fn encode(&self) -> [u8; Self::BYTES] {
        let mut out = [0; Self::BYTES];
        out[..4].copy_from_slice(&MAGIC);
        out[4..6].copy_from_slice(&VERSION.to_be_bytes());
        out[6] = self.node.number();
        out[7] = u8::from(self.order == ByteOrder::Network);
        out[8] = u8::from(self.transport == Transport::Udp);
        out[9] = u8::from(self.transfer_mode == TransferMode::Segment);
        out[12..20].copy_from_slice(&self.incarnation.0.to_be_bytes());
        out[20..28].copy_from_slice(&self.epoch.0.to_be_bytes());
        out[28..46].copy_from_slice(&encode_address(self.address));
        out[46..64].copy_from_slice(&encode_address(self.referee));
        out[64..68].copy_from_slice(&self.page_bytes.to_be_bytes());
        out[68..72].copy_from_slice(&self.lease_ms.to_be_bytes());
        out[72..76].copy_from_slice(&self.node_timeout_ms.to_be_bytes());
        out
    }

    /// From bytes.
    pub fn decode(bytes: &[u8; Self::BYTES]) -> Result<Hello, WireError> {
        if bytes[..4] != MAGIC {
            return Err(WireError::NotDipc);
        }
        check_version([bytes[4], bytes[5]])?;
        let flag = |at: usize| match bytes[at] {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(WireError::BadBody),
        };
        Ok(Hello {
            node: NodeId::new(bytes[6]).ok_or(WireError::BadBody)?,
            incarnation: Incarnation(u64::from_be_bytes(field(bytes, 12))),
            epoch: Epoch(u64::from_be_bytes(field(bytes, 20))),
            address: decode_address(field(bytes, 28)),
            referee: decode_address(field(bytes, 46)),
            order: if flag(7)? { ByteOrder::Network } else { ByteOrder::Little },
            transport: if flag(8)? { Transport::Udp } else { Transport::Tcp },
            transfer_mode: if flag(9)? { TransferMode::Segment } else { TransferMode::Page },
            page_bytes: u32::from_be_bytes(field(bytes, 64)),
            lease_ms: u32::from_be_bytes(field(bytes, 68)),
            node_timeout_ms: u32::from_be_bytes(field(bytes, 72)),
        })
    }
}

fn field<const N: usize>(bytes: &[u8; Hello::BYTES], at: usize) -> [u8; N] {
    *bytes[at..].first_chunk().expect("the layout ends before the array does")
}

/// 16 bytes of IPv6 (IPv4 mapped) and the port.
fn encode_address(address: SocketAddr) -> [u8; 18] {
    let ip = match address.ip() {
        IpAddr::V4(ip) => ip.to_ipv6_mapped(),
        IpAddr::V6(ip) => ip,
    };
    let mut out = [0; 18];
    out[..16].copy_from_slice(&ip.octets());
    out[16..].copy_from_slice(&address.port().to_be_bytes());
    out
}

fn decode_address(bytes: [u8; 18]) -> SocketAddr {
    let (ip, port) = bytes.split_first_chunk::<16>().expect("18 bytes");
    let ip = Ipv6Addr::from(*ip).to_canonical();
    SocketAddr::new(ip, u16::from_be_bytes([port[0], port[1]]))
}
