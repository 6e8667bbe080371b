//! The terms of QUIC between nodes: how long, how much, and with which keys.
//!
//! Who the peer is, is not asked here: that is proven inside the stream, by Noise with the cluster
//! key or a ticket's secret. So each dipcd makes itself a key pair at its start, shows the public
//! half as it is (RFC 7250, no certificate), and any will do. What a dipcd signs with must be the
//! same in its next life: only then can it tell its peers that their connections are of the past.
#![forbid(unsafe_code)]

use quinn_proto::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn_proto::{
    ClientConfig, EndpointConfig, IdleTimeout, RandomConnectionIdGenerator, ServerConfig,
    TransportConfig, VarInt,
};
use ring::hmac;
use ring::rand::SystemRandom;
use ring::signature::Ed25519KeyPair;
use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring as provider, verify_tls13_signature_with_raw_key};
use rustls::pki_types::{
    CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, SubjectPublicKeyInfoDer,
    UnixTime,
};
use rustls::server::{AlwaysResolvesServerRawPublicKeys, NoServerSessionStorage};
use rustls::sign::CertifiedKey;
use rustls::version::TLS13;
use rustls::{DigitallySignedStruct, SignatureScheme};
use std::io;
use std::sync::Arc;
use std::time::Duration;

use dipc_wire::ids::Secret;

use crate::config::Liveness;

/// What QUIC calls the protocol inside; a peer that speaks another is refused in the handshake.
const PROTOCOL: &[u8] = b"dipc";
/// Bytes of one connection that may be on their way, and that may wait at the end where nobody
/// reads: 100 Mbit/s over 80 ms.
const WINDOW_BYTES: u32 = 1 << 20;
/// The first guess of a round trip; a lost first datagram is repeated after three of them.
const FIRST_ROUND_TRIP: Duration = Duration::from_millis(100);
/// Between two datagrams on a connection with nothing to say, as TCP's keepalive has it here.
const KEEP_ALIVE: Duration = Duration::from_secs(1);
/// Between two answers to datagrams of connections that nobody knows. Each is shorter than what
/// it answers.
const RESET_PAUSE: Duration = Duration::from_millis(2);
/// Handshakes that may wait for our word, which is given at once.
const INCOMING_MAX: usize = 16;

/// What the endpoint needs.
pub(super) struct Terms {
    pub endpoint: Arc<EndpointConfig>,
    pub server: Arc<ServerConfig>,
    pub client: ClientConfig,
}

impl Terms {
    /// `secret` is what this node and its next life share.
    pub fn new(liveness: &Liveness, secret: &Secret) -> io::Result<Terms> {
        let mut endpoint = EndpointConfig::new(Arc::new(reset_key(secret)));
        endpoint.cid_generator(|| Box::<RandomConnectionIdGenerator>::default());
        endpoint.min_reset_interval(RESET_PAUSE);
        let provider = Arc::new(provider::default_provider());
        let server_tls = QuicServerConfig::try_from(server_tls(&provider)?);
        let mut server = ServerConfig::with_crypto(Arc::new(server_tls.map_err(io::Error::other)?));
        server.transport_config(Arc::new(transport(liveness, 1)?));
        // A peer is known by its address.
        server.migration(false);
        server.max_incoming(INCOMING_MAX);
        let client_tls = QuicClientConfig::try_from(client_tls(&provider)?);
        let mut client = ClientConfig::new(Arc::new(client_tls.map_err(io::Error::other)?));
        client.transport_config(Arc::new(transport(liveness, 0)?));
        Ok(Terms { endpoint: Arc::new(endpoint), server: Arc::new(server), client })
    }
}

/// A key of its own purpose, made from one of another.
fn reset_key(secret: &Secret) -> hmac::Key {
    let secret = hmac::Key::new(hmac::HMAC_SHA256, &secret.0);
    let derived = hmac::sign(&secret, b"DIPC datagrams: stateless reset");
    hmac::Key::new(hmac::HMAC_SHA256, derived.as_ref())
}

/// `streams`: how many the peer may open.
fn transport(liveness: &Liveness, streams: u32) -> io::Result<TransportConfig> {
    let idle = IdleTimeout::try_from(liveness.node_timeout).map_err(io::Error::other)?;
    let mut transport = TransportConfig::default();
    transport
        .max_idle_timeout(Some(idle))
        .keep_alive_interval(Some(KEEP_ALIVE.min(liveness.node_timeout / 3)))
        .max_concurrent_bidi_streams(VarInt::from_u32(streams))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .datagram_receive_buffer_size(None)
        .stream_receive_window(VarInt::from_u32(WINDOW_BYTES))
        .receive_window(VarInt::from_u32(WINDOW_BYTES))
        .send_window(u64::from(WINDOW_BYTES))
        .initial_rtt(FIRST_ROUND_TRIP);
    Ok(transport)
}

fn server_tls(provider: &Arc<CryptoProvider>) -> io::Result<rustls::ServerConfig> {
    let pkcs8 = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new());
    let pkcs8 = pkcs8.map_err(|_| io::Error::other("no random numbers for a key"))?;
    let private = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(pkcs8.as_ref().to_vec()));
    let key = provider.key_provider.load_private_key(private).map_err(io::Error::other)?;
    let public = key.public_key().ok_or_else(|| io::Error::other("a key without a public half"))?;
    let shown = CertificateDer::from(public.as_ref().to_vec());
    let shown = Arc::new(CertifiedKey::new(vec![shown], key));
    let mut tls = rustls::ServerConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&TLS13])
        .map_err(io::Error::other)?
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(AlwaysResolvesServerRawPublicKeys::new(shown)));
    tls.alpn_protocols = vec![PROTOCOL.to_vec()];
    // No connection is resumed, so none is remembered.
    tls.session_storage = Arc::new(NoServerSessionStorage {});
    tls.send_tls13_tickets = 0;
    Ok(tls)
}

fn client_tls(provider: &Arc<CryptoProvider>) -> io::Result<rustls::ClientConfig> {
    let mut tls = rustls::ClientConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&TLS13])
        .map_err(io::Error::other)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyKey(provider.clone())))
        .with_no_client_auth();
    tls.alpn_protocols = vec![PROTOCOL.to_vec()];
    tls.resumption = Resumption::disabled();
    Ok(tls)
}

/// Takes any public key, if the peer has the private one.
#[derive(Debug)]
struct AnyKey(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyKey {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("QUIC has TLS 1.3".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let key = SubjectPublicKeyInfoDer::from(cert.as_ref());
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls13_signature_with_raw_key(message, &key, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}
