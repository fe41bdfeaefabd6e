//! Real handshakes between two quinn endpoints on loopback.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use horos_wire::Role;
use jiff::{SignedDuration, Timestamp};
use quinn::{ConnectionError, Endpoint};
use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, Issuer, KeyPair, KeyUsagePurpose, SanType, string::Ia5String};
use rustls_pki_types::ServerName;

use super::{verifier::verify_holder, *};
use crate::identity::{
    CERTIFICATE, Validity,
    authority::Revoke,
    certificate::NameError,
    fixture::{Cluster, Shown, days, id},
    request,
};

const ALPN: &[&[u8]] = &[b"horos/1"];
const LIMIT: Duration = Duration::from_secs(20);

fn loopback() -> SocketAddr {
    (Ipv4Addr::LOCALHOST, 0).into()
}

/// What became of a handshake, seen from each side. A client that is refused hears of it only after it
/// believes the handshake done (TLS 1.3), so its side is what it learns next.
struct Met {
    server: Result<quinn::Connection, ConnectionError>,
    client: Result<quinn::Connection, ConnectionError>,
    _endpoints: (Endpoint, Endpoint),
}

async fn meet(server: quinn::ServerConfig, client: quinn::ClientConfig) -> Met {
    tokio::time::timeout(LIMIT, async {
        let accepting = Endpoint::server(server, loopback()).unwrap();
        let dialing = Endpoint::client(loopback()).unwrap();
        let connecting = dialing.connect_with(client, accepting.local_addr().unwrap(), SERVER_NAME).unwrap();
        let (client, server) = tokio::join!(connecting, async { accepting.accept().await.unwrap().await });
        let client = match (client, &server) {
            (Ok(connection), Err(_)) => Err(connection.closed().await),
            (other, _) => other,
        };
        Met { server, client, _endpoints: (accepting, dialing) }
    })
    .await
    .expect("a handshake ends")
}

fn now() -> Timestamp {
    Timestamp::now()
}

fn open(cluster: &Cluster, role: Role, name: &str) -> Tls {
    let (directory, _) = cluster.enrol(&cluster.id(role, name));
    Tls::open(&directory, now()).unwrap()
}

/// A server that believes whatever it is shown: for testing what *clients* refuse.
fn rogue_server(shown: &Shown) -> quinn::ServerConfig {
    let mut config = ServerConfig::builder_with_provider(provider().clone())
        .with_protocol_versions(&[&TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(shown.chain.clone(), shown.private())
        .unwrap();
    config.alpn_protocols = owned(ALPN);
    quinn::ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(config).unwrap()))
}

/// A client that believes whatever it is shown: for testing what *servers* refuse.
fn rogue_client(shown: Option<&Shown>) -> quinn::ClientConfig {
    quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(eager_client(shown)).unwrap()))
}

/// It would also resume and send early data, if it were given a ticket.
fn eager_client(shown: Option<&Shown>) -> ClientConfig {
    let builder = ClientConfig::builder_with_provider(provider().clone())
        .with_protocol_versions(&[&TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Gullible));
    let mut config = match shown {
        Some(shown) => builder.with_client_auth_cert(shown.chain.clone(), shown.private()).unwrap(),
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = owned(ALPN);
    config.enable_early_data = true;
    config
}

#[derive(Debug)]
struct Gullible;

impl rustls::client::danger::ServerCertVerifier for Gullible {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: rustls_pki_types::UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        Ok(rustls::client::danger::ServerCertVerified::assertion())
    }
    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        unreachable!()
    }
    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }
    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}

fn uri(text: &str) -> SanType {
    SanType::URI(Ia5String::try_from(text).unwrap())
}

fn dns(text: &str) -> SanType {
    SanType::DnsName(Ia5String::try_from(text).unwrap())
}

/// What the authority would put into a node's certificate, with these names.
fn params(names: Vec<SanType>) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.not_before = rcgen::date_time_ymd(2020, 1, 1);
    params.not_after = rcgen::date_time_ymd(2200, 1, 1);
    params.serial_number = Some(7.into());
    params.subject_alt_names = names;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params
}

struct Case {
    what: &'static str,
    shown: Shown,
    expected: fn(&PeerRefused) -> bool,
    told: RefusedByPeer,
    logged: &'static str,
}

/// Every certificate that must not open a door, and the reason that must be given.
fn refused_certificates(cluster: &Cluster) -> Vec<Case> {
    let good = "spiffe://shop/bo/bo-1";
    let self_signed = {
        let key = KeyPair::generate().unwrap();
        Shown { chain: vec![params(vec![uri(good)]).self_signed(&key).unwrap().der().clone()], key }
    };
    let twin = Cluster::new("shop").forge(&params(vec![uri(good)]));
    let foreign = Cluster::new("other").forge(&params(vec![uri("spiffe://other/bo/bo-1")]));
    let expired = {
        let mut params = params(vec![uri(good)]);
        params.not_after = rcgen::date_time_ymd(2021, 1, 1);
        cluster.forge(&params)
    };
    let early = {
        let mut params = params(vec![uri(good)]);
        params.not_before = rcgen::date_time_ymd(2199, 1, 1);
        cluster.forge(&params)
    };
    let below_a_node = {
        let mut node = params(vec![uri(good)]);
        node.distinguished_name.push(rcgen::DnType::CommonName, "bo-1");
        let node = cluster.forge(&node);
        let key = KeyPair::generate().unwrap();
        let issuer = Issuer::from_ca_cert_der(&node.chain[0], &node.key).unwrap();
        let leaf = params(vec![uri("spiffe://shop/bo/bo-9")]).signed_by(&key, &issuer).unwrap();
        Shown { chain: vec![leaf.der().clone(), node.chain[0].clone()], key }
    };
    let below_a_second_authority = {
        let mut second = params(vec![uri("spiffe://shop")]);
        second.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        second.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        second.distinguished_name.push(rcgen::DnType::CommonName, "second");
        let second = cluster.forge(&second);
        let key = KeyPair::generate().unwrap();
        let issuer = Issuer::from_ca_cert_der(&second.chain[0], &second.key).unwrap();
        let leaf = params(vec![uri("spiffe://shop/bo/bo-9")]).signed_by(&key, &issuer).unwrap();
        Shown { chain: vec![leaf.der().clone(), second.chain[0].clone()], key }
    };
    let no_use = {
        let mut params = params(vec![uri(good)]);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::CodeSigning];
        cluster.forge(&params)
    };
    use RefusedByPeer::{NotAccepted, OutOfDate, UnknownAuthority};
    let named = |names: Vec<SanType>| cluster.forge(&params(names));
    vec![
        Case {
            what: "self-signed",
            shown: self_signed,
            expected: |r| matches!(r, PeerRefused::SelfSigned { .. }),
            told: UnknownAuthority,
            logged: "UnknownIssuer",
        },
        Case {
            what: "of an authority of the same name",
            shown: twin,
            expected: |r| matches!(r, PeerRefused::UnknownIssuer { .. }),
            told: UnknownAuthority,
            logged: "UnknownIssuer",
        },
        Case {
            what: "of another cluster",
            shown: foreign,
            expected: |r| matches!(r, PeerRefused::OtherCluster { .. }),
            told: NotAccepted,
            logged: "certificate of another cluster: it names spiffe://other/bo/bo-1",
        },
        Case {
            what: "expired",
            shown: expired,
            expected: |r| matches!(r, PeerRefused::Expired { .. }),
            told: OutOfDate,
            logged: "certificate expired",
        },
        Case {
            what: "not yet valid",
            shown: early,
            expected: |r| matches!(r, PeerRefused::NotYetValid { .. }),
            told: OutOfDate,
            logged: "certificate not valid yet",
        },
        Case {
            what: "signed by a node",
            shown: below_a_node,
            expected: |r| matches!(r, PeerRefused::UnknownIssuer { .. }),
            told: UnknownAuthority,
            logged: "UnknownIssuer",
        },
        Case {
            what: "signed by an authority that ours signed",
            shown: below_a_second_authority,
            expected: |r| matches!(r, PeerRefused::UnknownIssuer { .. }),
            told: UnknownAuthority,
            logged: "UnknownIssuer",
        },
        Case {
            what: "for another use",
            shown: no_use,
            expected: |r| matches!(r, PeerRefused::Purpose { .. }),
            told: NotAccepted,
            logged: "not meant for this use",
        },
        Case {
            what: "naming two",
            shown: named(vec![uri(good), uri("spiffe://shop/operator/root")]),
            expected: |r| *r == PeerRefused::Name(NameError::Several(2)),
            told: NotAccepted,
            logged: "names 2 identities",
        },
        Case {
            what: "naming by another scheme",
            shown: named(vec![uri("https://shop/bo/bo-1")]),
            expected: |r| matches!(r, PeerRefused::Name(NameError::Uri(_))),
            told: NotAccepted,
            logged: "no node identity",
        },
        Case {
            what: "naming no URI",
            shown: named(vec![dns("bo-1.bo.shop.horos.invalid")]),
            expected: |r| *r == PeerRefused::Name(NameError::None),
            told: NotAccepted,
            logged: "names no spiffe:// identity",
        },
        Case {
            what: "of an unknown role",
            shown: named(vec![uri("spiffe://shop/root/bo-1")]),
            expected: |r| matches!(r, PeerRefused::Name(NameError::Uri(_))),
            told: NotAccepted,
            logged: "no role",
        },
        Case {
            what: "of our authority for another cluster",
            shown: named(vec![uri("spiffe://other/bo/bo-1")]),
            expected: |r| matches!(r, PeerRefused::OtherCluster { .. }),
            told: NotAccepted,
            logged: "certificate of another cluster",
        },
        Case {
            what: "for a public web site",
            shown: named(vec![uri(good), dns("bank.example")]),
            expected: |r| matches!(r, PeerRefused::Invalid(_)),
            told: NotAccepted,
            logged: "NameConstraintViolation",
        },
        Case {
            what: "naming one and something that is no text",
            shown: {
                let mut names = vec![0x86, good.len() as u8]; // [6] URI, twice (RFC 5280 §4.2.1.6)
                names.extend(good.bytes());
                names.extend([0x86, 2, 0xff, 0xfe]);
                names.splice(0..0, [0x30, names.len() as u8]);
                let mut params = params(vec![]);
                params.custom_extensions = vec![rcgen::CustomExtension::from_oid_content(&[2, 5, 29, 17], names)];
                cluster.forge(&params)
            },
            expected: |r| *r == PeerRefused::Name(NameError::Malformed),
            told: NotAccepted,
            logged: "alternative names are malformed",
        },
        Case {
            what: "with a serial number not ours",
            shown: {
                let mut params = params(vec![uri(good)]);
                params.serial_number = Some(vec![1; 20].into());
                cluster.forge(&params)
            },
            expected: |r| *r == PeerRefused::Name(NameError::Serial),
            told: NotAccepted,
            logged: "serial number",
        },
    ]
}

#[tokio::test]
async fn two_nodes_of_a_cluster_know_each_other_by_their_certificates() {
    let cluster = Cluster::new("shop");
    let (bo, fo) = (open(&cluster, Role::Bo, "bo-1"), open(&cluster, Role::Fo, "fo-1"));
    let met = meet(bo.server(ALPN), fo.client(ALPN, Expected::Role(Role::Bo))).await;
    let (server, client) = (met.server.unwrap(), met.client.unwrap());
    let seen = bo.admit(&server, now()).unwrap();
    assert_eq!(&seen, fo.credentials().identity());
    assert_eq!(seen.id.to_uri(), "spiffe://shop/fo/fo-1");
    assert_eq!(&fo.admit(&client, now()).unwrap(), bo.credentials().identity());
    assert_eq!(protocol(&server).as_deref(), Some(ALPN[0]));
    assert_eq!(protocol(&client).as_deref(), Some(ALPN[0]));
    let name = server.handshake_data().unwrap().downcast::<HandshakeData>().unwrap().server_name;
    assert_eq!(name, None, "the name dialed is not sent in clear");
}

#[tokio::test]
async fn an_operator_is_known_as_one_and_cannot_pose_as_a_node() {
    let cluster = Cluster::new("shop");
    let (bo, person) = (open(&cluster, Role::Bo, "bo-1"), open(&cluster, Role::Operator, "ann"));
    let met = meet(bo.server(ALPN), person.client(ALPN, Expected::AnyNode)).await;
    assert_eq!(bo.admit(&met.server.unwrap(), now()).unwrap().id.role, Role::Operator);
    let met = meet(person.server(ALPN), bo.client(ALPN, Expected::AnyNode)).await;
    let error = met.client.unwrap_err().to_string();
    assert!(error.contains("not meant for this use"), "{error}");
}

#[tokio::test]
async fn an_operators_certificate_does_not_serve_even_where_its_uses_would_allow_it() {
    let cluster = Cluster::new("shop");
    let fo = open(&cluster, Role::Fo, "fo-1");
    let shown = cluster.forge(&params(vec![uri("spiffe://shop/operator/ann")]));
    for expected in [Expected::AnyNode, Expected::Role(Role::Operator), Expected::Node(cluster.id(Role::Operator, "ann"))] {
        let met = meet(rogue_server(&shown), fo.client(ALPN, expected)).await;
        let error = met.client.unwrap_err().to_string();
        assert!(error.contains("spiffe://shop/operator/ann answered where"), "{error}");
    }
}

#[tokio::test]
async fn a_client_without_a_certificate_gets_a_connection_and_no_identity() {
    let cluster = Cluster::new("shop");
    let bo = open(&cluster, Role::Bo, "bo-1");
    let met = meet(bo.server(ALPN), rogue_client(None)).await;
    assert_eq!(bo.admit(&met.server.unwrap(), now()), Err(PeerRefused::NoCertificate));
}

#[tokio::test]
async fn a_certificate_that_does_not_hold_is_refused_by_servers_with_its_reason() {
    let cluster = Cluster::new("shop");
    let bo = open(&cluster, Role::Bo, "bo-1");
    for Case { what, shown, expected, told, logged } in refused_certificates(&cluster) {
        let verdict = verify_holder(&shown.chain[0], bo.credentials().trust(), now()).unwrap_err();
        assert!(expected(&verdict), "{what}: {verdict:?}");
        let met = meet(bo.server(ALPN), rogue_client(Some(&shown))).await;
        let error = met.server.expect_err(what).to_string();
        assert!(error.contains(logged), "{what}: {error}");
        let heard = met.client.expect_err(what);
        assert_eq!(RefusedByPeer::of(&heard), Some(told), "{what}: {heard}");
    }
}

#[tokio::test]
async fn a_certificate_that_does_not_hold_is_refused_by_clients_with_its_reason() {
    let cluster = Cluster::new("shop");
    let fo = open(&cluster, Role::Fo, "fo-1");
    for Case { what, shown, told, logged, .. } in refused_certificates(&cluster) {
        let met = meet(rogue_server(&shown), fo.client(ALPN, Expected::AnyNode)).await;
        let error = met.client.expect_err(what).to_string();
        assert!(error.contains(logged), "{what}: {error}");
        let heard = met.server.expect_err(what);
        assert_eq!(RefusedByPeer::of(&heard), Some(told), "{what}: {heard}");
    }
}

#[tokio::test]
async fn a_dialer_reaches_whom_it_meant_or_nobody() {
    let cluster = Cluster::new("shop");
    let (bo, fo) = (open(&cluster, Role::Bo, "bo-1"), open(&cluster, Role::Fo, "fo-1"));
    let meant = [Expected::AnyNode, Expected::Role(Role::Bo), Expected::Node(cluster.id(Role::Bo, "bo-1"))];
    for expected in meant {
        let met = meet(bo.server(ALPN), fo.client(ALPN, expected.clone())).await;
        assert!(met.client.is_ok(), "{expected:?}");
    }
    let not_meant = [Expected::Role(Role::Fo), Expected::Node(cluster.id(Role::Bo, "bo-2")), Expected::Node(id("shop", Role::Fo, "bo-1"))];
    for expected in not_meant {
        let met = meet(bo.server(ALPN), fo.client(ALPN, expected.clone())).await;
        let error = met.client.unwrap_err().to_string();
        assert!(error.contains("spiffe://shop/bo/bo-1 answered where"), "{expected:?}: {error}");
        assert_eq!(RefusedByPeer::of(&met.server.unwrap_err()), Some(RefusedByPeer::NotAccepted));
    }
}

#[tokio::test]
async fn a_peer_of_no_common_protocol_is_refused() {
    let cluster = Cluster::new("shop");
    let (bo, fo) = (open(&cluster, Role::Bo, "bo-1"), open(&cluster, Role::Fo, "fo-1"));
    let met = meet(bo.server(ALPN), fo.client(&[b"horos/9"], Expected::AnyNode)).await;
    assert_eq!(RefusedByPeer::of(&met.client.unwrap_err()), Some(RefusedByPeer::NoProtocol));
}

#[tokio::test]
async fn a_revocation_counts_for_live_sessions_at_once_and_for_every_later_handshake() {
    let cluster = Cluster::new("shop");
    let (bo, fo) = (open(&cluster, Role::Bo, "bo-1"), open(&cluster, Role::Fo, "fo-1"));
    let server = bo.server(ALPN);
    let met = meet(server.clone(), fo.client(ALPN, Expected::AnyNode)).await;
    let live = met.server.unwrap();
    let peer = bo.admit(&live, now()).unwrap();

    let mut changed = bo.denied().subscribe();
    let text = cluster.authority.revoke(&[Revoke::Identity(peer.id.clone())], now()).unwrap();
    assert_eq!(bo.deny(&text).unwrap(), Adopted::Newer);
    tokio::time::timeout(LIMIT, changed.changed()).await.expect("sessions are woken").unwrap();
    assert!(matches!(bo.still_admits(&peer, now()), Err(PeerRefused::Revoked { .. })));
    assert!(matches!(bo.admit(&live, now()), Err(PeerRefused::Revoked { .. })));

    let again = meet(server, fo.client(ALPN, Expected::AnyNode)).await;
    assert!(again.server.unwrap_err().to_string().contains("Revoked"));
    assert_eq!(RefusedByPeer::of(&again.client.unwrap_err()), Some(RefusedByPeer::Revoked));
    // The other way round: the revoked node answers, and a dialer that knows the list hangs up.
    let dialed = meet(fo.server(ALPN), bo.client(ALPN, Expected::AnyNode)).await;
    assert!(dialed.client.unwrap_err().to_string().contains("Revoked"));

    let reopened = Tls::open(&cluster.directory("bo-1"), now()).unwrap();
    assert!(matches!(reopened.still_admits(&peer, now()), Err(PeerRefused::Revoked { .. })), "a restart forgets nothing");
}

#[test]
fn a_deny_list_put_there_by_hand_counts_from_the_next_reload() {
    let cluster = Cluster::new("shop");
    let (bo, fo) = (open(&cluster, Role::Bo, "bo-1"), open(&cluster, Role::Fo, "fo-1"));
    let peer = fo.credentials().identity().clone();
    let text = cluster.authority.revoke(&[Revoke::Identity(peer.id.clone())], now()).unwrap();
    let path = cluster.directory("bo-1").join(crate::identity::DENIED);
    fs::write(&path, text.replace("fo-1", "fo-2")).unwrap();
    assert!(matches!(bo.reload(now()), Err(CredentialsError::Denied { .. })));
    assert!(bo.still_admits(&peer, now()).is_ok());
    fs::write(&path, text).unwrap();
    bo.reload(now()).unwrap();
    assert!(matches!(bo.still_admits(&peer, now()), Err(PeerRefused::Revoked { .. })));
}

#[test]
fn a_node_that_was_revoked_is_told_so_when_it_starts() {
    let cluster = Cluster::new("shop");
    let fo = open(&cluster, Role::Fo, "fo-1");
    let text = cluster.authority.revoke(&[Revoke::Identity(fo.credentials().id().clone())], now()).unwrap();
    fo.deny(&text).unwrap();
    let refused = Tls::open(&cluster.directory("fo-1"), now());
    assert!(matches!(refused, Err(CredentialsError::Refused { reason: PeerRefused::Revoked { .. }, .. })), "{refused:?}");
    // Signed again, it belongs again: what was revoked is the certificate.
    cluster.enrol(&cluster.id(Role::Fo, "fo-1"));
    Tls::open(&cluster.directory("fo-1"), now()).unwrap();
}

#[tokio::test]
async fn a_session_outlives_its_certificate_only_until_somebody_looks() {
    let cluster = Cluster::new("shop");
    let (bo, fo) = (open(&cluster, Role::Bo, "bo-1"), open(&cluster, Role::Fo, "fo-1"));
    let peer = fo.credentials().identity().clone();
    let second = SignedDuration::from_secs(1);
    assert!(bo.still_admits(&peer, peer.not_after).is_ok());
    assert!(matches!(bo.still_admits(&peer, peer.not_after + second), Err(PeerRefused::Expired { .. })));
}

#[tokio::test]
async fn a_reload_shows_the_new_certificate_to_the_next_handshake() {
    let cluster = Cluster::new("shop");
    let (bo, fo) = (open(&cluster, Role::Bo, "bo-1"), open(&cluster, Role::Fo, "fo-1"));
    let (server, client) = (bo.server(ALPN), fo.client(ALPN, Expected::AnyNode));
    let met = meet(server.clone(), client.clone()).await;
    let before = (bo.admit(met.server.as_ref().unwrap(), now()).unwrap(), fo.admit(met.client.as_ref().unwrap(), now()).unwrap());
    cluster.enrol(&cluster.id(Role::Bo, "bo-1"));
    cluster.enrol(&cluster.id(Role::Fo, "fo-1"));
    bo.reload(now()).unwrap();
    fo.reload(now()).unwrap();
    let again = meet(server, client).await;
    let after = (bo.admit(&again.server.unwrap(), now()).unwrap(), fo.admit(&again.client.unwrap(), now()).unwrap());
    assert_eq!((&before.0.id, &before.1.id), (&after.0.id, &after.1.id));
    assert!(before.0.serial != after.0.serial && before.1.serial != after.1.serial);
    assert_eq!(bo.admit(&met.server.unwrap(), now()).unwrap(), before.0, "the connection that was up still is");
}

#[tokio::test]
async fn a_reload_that_fails_keeps_what_worked() {
    let cluster = Cluster::new("shop");
    let (bo, fo) = (open(&cluster, Role::Bo, "bo-1"), open(&cluster, Role::Fo, "fo-1"));
    let serial = bo.credentials().serial();
    let directory = cluster.directory("bo-1");
    let other = fs::read_to_string(cluster.directory("fo-1").join(CERTIFICATE)).unwrap();
    for broken in ["", "garbage", &other] {
        fs::write(directory.join(CERTIFICATE), broken).unwrap();
        bo.reload(now()).unwrap_err();
        assert_eq!(bo.credentials().serial(), serial);
    }
    // A certificate that holds, for this key, but of somebody else.
    let renamed = cluster.id(Role::Bo, "bo-2");
    let request = fs::read_to_string(request::renew(&directory, &renamed).unwrap()).unwrap();
    let (certificate, _) = cluster.authority.sign(&request, &renamed, days(Validity::NODE_DAYS)).unwrap();
    fs::write(directory.join(CERTIFICATE), certificate).unwrap();
    assert!(matches!(bo.reload(now()), Err(CredentialsError::OtherHolder { .. })));
    let met = meet(bo.server(ALPN), fo.client(ALPN, Expected::Node(cluster.id(Role::Bo, "bo-1")))).await;
    assert!(met.client.is_ok() && met.server.is_ok());
}

/// Carries a handshake between two TLS sides without a network, tickets included.
fn carry(client: &mut rustls::quic::ClientConnection, server: &mut rustls::quic::ServerConnection) {
    loop {
        let (mut to_server, mut to_client) = (Vec::new(), Vec::new());
        client.write_hs(&mut to_server);
        server.read_hs(&to_server).unwrap();
        let keys = server.write_hs(&mut to_client);
        client.read_hs(&to_client).unwrap();
        if to_server.is_empty() && to_client.is_empty() && keys.is_none() {
            return;
        }
    }
}

#[test]
fn a_second_connection_is_never_a_resumed_one() {
    use rustls::{
        HandshakeKind,
        quic::{ClientConnection, ServerConnection, Version},
    };
    let cluster = Cluster::new("shop");
    let bo = open(&cluster, Role::Bo, "bo-1");
    let second = |server: ServerConfig| {
        let (client, server) = (Arc::new(eager_client(None)), Arc::new(server));
        let mut kind = None;
        for _ in 0..2 {
            let name = ServerName::try_from(SERVER_NAME).unwrap();
            let mut client = ClientConnection::new(client.clone(), Version::V1, name, vec![]).unwrap();
            let mut server = ServerConnection::new(server.clone(), Version::V1, vec![]).unwrap();
            carry(&mut client, &mut server);
            kind = client.handshake_kind();
        }
        kind
    };
    let accepting = || bo.accepting(ALPN, Arc::new(Own(bo.live.clone())));
    assert_eq!(second(accepting()), Some(HandshakeKind::Full));
    // The test can tell: a server that hands out tickets is resumed.
    let mut careless = accepting();
    careless.session_storage = rustls::server::ServerSessionMemoryCache::new(8);
    careless.send_tls13_tickets = 2;
    assert_eq!(second(careless), Some(HandshakeKind::Resumed));
}

#[test]
fn the_provider_prefers_a_key_exchange_that_stays_closed() {
    assert_eq!(provider().kx_groups[0].name(), rustls::NamedGroup::X25519MLKEM768);
    install_default_provider();
    install_default_provider(); // a second time changes nothing and is no error
}
