//! Whoever does not belong is refused with a reason in the log, and delays nobody who does.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use horos_link::{
    ALPN,
    tls::{SERVER_NAME, provider},
};
use horos_wire::{
    CallError, NoEffect, Role,
    control::{Close, Control, Hello},
};
use quinn::{ConnectionError, crypto::rustls::QuicClientConfig};
use rand::RngExt;
use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, Issuer, KeyPair, KeyUsagePurpose, SanType};
use rustls::{
    DigitallySignedStruct, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName, UnixTime},
};

use super::{
    cluster::{Cluster, Echo, Node, Test},
    raw::{Raw, connect, dialer, hello},
    world::{dice, no_panics, says, seed, watch},
};

const SOON: Duration = Duration::from_secs(5);

async fn bo(cluster: &Cluster) -> Node {
    watch();
    let node = cluster.node_with(Role::Bo, "bo-1", |config| config.gossip = false).await;
    node.serve("tester").await;
    node
}

/// Believes any server: it is the client that is wrong here.
#[derive(Debug)]
struct Anyone;

impl ServerCertVerifier for Anyone {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }
    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.2".into()))
    }
    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }
    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}

/// Certificates, and the key of the first.
pub(crate) type Shown = (Vec<CertificateDer<'static>>, KeyPair);

/// A client that shows `shown`, or nothing.
pub(crate) fn client(alpn: &[u8], shown: Option<Shown>) -> quinn::ClientConfig {
    client_offering(&[alpn], shown)
}

/// The same for several protocols, or none.
pub(crate) fn client_offering(alpn: &[&[u8]], shown: Option<Shown>) -> quinn::ClientConfig {
    let config = rustls::ClientConfig::builder_with_provider(provider().clone())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anyone));
    let mut config = match shown {
        Some((chain, key)) => config.with_client_auth_cert(chain, PrivatePkcs8KeyDer::from(key.serialize_der()).into()).unwrap(),
        None => config.with_no_client_auth(),
    };
    config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
    quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(config).unwrap()))
}

pub(crate) fn params(uri: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.not_before = rcgen::date_time_ymd(2020, 1, 1);
    params.not_after = rcgen::date_time_ymd(2200, 1, 1);
    params.serial_number = Some(7.into());
    params.subject_alt_names = vec![SanType::URI(uri.try_into().unwrap())];
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params
}

/// What a thief of the authority's key could sign.
pub(crate) fn forged(cluster: &Cluster, params: &CertificateParams) -> Shown {
    let key = std::fs::read_to_string(cluster.directory.path().join("ca").join(horos_link::identity::CA_KEY)).unwrap();
    let issuer = Issuer::from_ca_cert_pem(cluster.authority.certificate_pem(), KeyPair::from_pem(&key).unwrap()).unwrap();
    let own = KeyPair::generate().unwrap();
    (vec![params.signed_by(&own, &issuer).unwrap().der().clone()], own)
}

#[tokio::test]
async fn wrong_certificates_and_wrong_protocols_are_refused_with_a_reason() {
    let cluster = Cluster::new();
    let bo = bo(&cluster).await;
    let uri = "spiffe://shop/fo/fo-1";
    let self_signed = {
        let key = KeyPair::generate().unwrap();
        (vec![params(uri).self_signed(&key).unwrap().der().clone()], key)
    };
    let expired = {
        let mut params = params(uri);
        params.not_after = rcgen::date_time_ymd(2021, 1, 1);
        forged(&cluster, &params)
    };
    let twin = forged(&Cluster::new(), &params(uri));
    let elsewhere = forged(&cluster, &params("spiffe://elsewhere/fo/fo-1"));
    let good = forged(&cluster, &params(uri));
    let cases = [
        ("no certificate", ALPN, None, "no certificate was presented"),
        ("self-signed", ALPN, Some(self_signed), "UnknownIssuer"),
        ("expired", ALPN, Some(expired), "expired"),
        ("another authority of the same name", ALPN, Some(twin), "UnknownIssuer"),
        ("another cluster", ALPN, Some(elsewhere), "elsewhere"),
        ("another protocol", b"h3".as_slice(), Some(good), "handshake failed"),
    ];
    for (what, alpn, shown, reason) in cases {
        let endpoint = dialer("127.0.0.1");
        let from = format!("from={}", endpoint.local_addr().unwrap());
        let connected = endpoint.connect_with(client(alpn, shown), bo.address(), SERVER_NAME).unwrap().await;
        let ended = match connected {
            Ok(connection) => tokio::time::timeout(SOON, connection.closed()).await.unwrap(),
            Err(error) => error,
        };
        assert!(!matches!(ended, ConnectionError::TimedOut), "{what}: {ended}");
        println!("{what}: {}", says(&[&from, reason]).await);
    }
    assert!(bo.endpoint.peers().known().is_empty());
    no_panics();
    bo.stop().await;
}

#[tokio::test]
async fn people_are_people_and_no_nodes() {
    let cluster = Cluster::new();
    let bo = bo(&cluster).await;
    // As a node of another name.
    let mut operator = Raw::mute(&cluster, Role::Operator, "ann", bo.address()).await;
    let node = cluster.tls(Role::Bo, "bo-2").credentials().id().clone();
    operator.say(&Control::Hello(Hello { node, ..hello(&operator.id) })).await;
    assert_eq!(operator.closed().await, Close::Identity);
    // As itself, offering what only nodes offer: it stands nowhere and is not asked.
    let mut operator = Raw::open(&cluster, Role::Operator, "ann", bo.address()).await;
    operator.offer("stock", "test").await;
    let refused = operator.bind("tester").await;
    assert!(matches!(refused, Err(NoEffect::NotAllowed(_))), "nobody let operators call it: {refused:?}");
    assert!(bo.endpoint.peers().known().is_empty());
    for address in ["stock", "stock@ann", "stock@bo"] {
        let nobody = bo.context().at::<Test>(address).call(Echo { body: vec![] }, SOON).await;
        assert!(matches!(nobody, Err(CallError::NoEffect(_))), "{address}: {nobody:?}");
    }
    let mut viewer = Raw::open(&cluster, Role::Viewer, "vic", bo.address()).await;
    assert!(matches!(viewer.bind("tester").await, Err(NoEffect::NotAllowed(_))));
    no_panics();
    bo.stop().await;
}

/// Passes datagrams on to `to` from another address of this machine, and nothing back.
fn one_way(from: &str, to: SocketAddr) -> SocketAddr {
    let sink = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = sink.local_addr().unwrap();
    let out = std::net::UdpSocket::bind((from, 0)).unwrap();
    sink.set_read_timeout(Some(Duration::from_secs(3))).unwrap();
    std::thread::spawn(move || {
        let mut buffer = [0; 65_536];
        while let Ok((size, _)) = sink.recv_from(&mut buffer) {
            let _ = out.send_to(&buffer[..size], to);
        }
    });
    address
}

#[tokio::test]
async fn two_hundred_bad_clients_do_not_delay_a_good_one() {
    let cluster = Cluster::new();
    let bo = bo(&cluster).await;
    let mut kept = Vec::new();
    // Half-open: their first packets arrive, and no answer ever reaches them.
    let nowhere = one_way("127.0.0.2", bo.address());
    let half_open = dialer("127.0.0.1");
    for _ in 0..150 {
        kept.push(half_open.connect_with(client(ALPN, None), nowhere, SERVER_NAME).unwrap());
    }
    // Silent after the handshake.
    let mut silent = Vec::new();
    for n in 0..20 {
        let endpoint = dialer("127.0.0.3");
        let tls = cluster.tls(Role::Fo, &format!("mute-{n}"));
        silent.push((connect(&endpoint, &tls, ALPN, bo.address()).await.unwrap(), endpoint));
    }
    // Garbage, some of it with the look of a first packet.
    let seed = seed();
    let garbage = std::net::UdpSocket::bind("127.0.0.4:0").unwrap();
    let mut dice = dice(seed);
    for n in 0..2000 {
        let mut bytes: Vec<u8> = (0..dice.random_range(1..1400)).map(|_| dice.random()).collect();
        if n % 2 == 0 && bytes.len() > 5 {
            bytes.resize(1200, 0);
            bytes[0] = 0xC0 | (bytes[0] & 0x0F);
            bytes[1..5].copy_from_slice(&[0, 0, 0, 1]);
        }
        garbage.send_to(&bytes, bo.address()).unwrap();
    }
    tokio::task::yield_now().await;
    let began = Instant::now();
    let fo = cluster
        .node_with(Role::Fo, "fo-1", |config| {
            config.seeds = vec![bo.address()];
            config.gossip = false;
        })
        .await;
    fo.linked(1).await;
    let took = began.elapsed();
    fo.context().at::<Test>("tester@bo-1").call(Echo { body: vec![1] }, SOON).await.unwrap();
    println!("linked beside 170 bad clients and garbage after {took:?}");
    assert!(took < Duration::from_secs(1), "{took:?}");
    says(&["from=127.0.0.2", "handshake not finished in time"]).await;
    for (connection, _) in &silent {
        assert_eq!(super::raw::closed(connection).await, Close::Silent);
    }
    drop(kept);
    no_panics();
    fo.stop().await;
    bo.stop().await;
}

#[tokio::test]
async fn one_certificate_does_not_take_every_place() {
    let cluster = Cluster::new();
    let bo = bo(&cluster).await;
    let tls = cluster.tls(Role::Fo, "greedy");
    let endpoint = dialer("127.0.0.2");
    let mut connections = Vec::new();
    for _ in 0..30 {
        connections.push(connect(&endpoint, &tls, ALPN, bo.address()).await.unwrap());
    }
    let mut refused = 0;
    for connection in &connections {
        match super::raw::closed(connection).await {
            Close::Limit => refused += 1,
            close => assert_eq!(close, Close::Silent),
        }
    }
    assert!(refused >= 20, "{refused} of 30");
    no_panics();
    bo.stop().await;
}
