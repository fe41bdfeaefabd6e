//! A client over QUIC: to a node of its cluster by name and certificate, and to others by name and key.

use std::{path::PathBuf, sync::Arc, time::Duration};

use horos_tools::client::{ClientError, FromFile, Options, Times};
use horos_wire::{NoEffect, Role, Unknown};
use quinn::crypto::rustls::QuicServerConfig;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use serde_json::json;

use super::{
    client::{call, within},
    client_world::{LONG, World, eventually, times, until},
    quic::world::{KEY, Node, text},
};

#[tokio::test]
async fn a_node_is_called_by_its_name_and_knows_who_calls() {
    let node = Node::new().await;
    let world = World::new(&[]).await;
    let early = world.with("node:bo-1", Options { times: Times { grace: Duration::ZERO, ..times() }, ..Options::default() });
    let refused = call(&early, "echo", json!({})).await.unwrap_err();
    assert!(matches!(&refused, ClientError::NoEffect { why: NoEffect::NoRoute(_), .. }), "{refused:?}");
    drop(early);
    world.clients.reach_nodes(node.cluster.tls(Role::Bo, "bo-1"), node.endpoint.peers().clone());
    let client = world.client("node:bo-1");
    let who = call(&client, "who", json!({})).await.unwrap();
    assert!(text(&who).ends_with("/bo/bo-1"), "{}", text(&who));
    let status = client.status();
    assert_eq!((status.state, status.version.as_deref()), ("connected", Some("2026-07-28")));
    assert_eq!(client.tools(until(LONG)).await.unwrap().len(), 6);

    let late = within(&client, "gate", json!({}), Duration::from_millis(200)).await.unwrap_err();
    assert_eq!(late, Unknown::DeadlinePassed.into());
    super::quic::world::counts(&node.hand.cancelled, 1).await;
    assert_eq!(call(&client, "echo", json!({"a": 1})).await.unwrap().structured_content, Some(json!({"a": 1})));
    assert_eq!(client.status().connections, 1);

    let unknown = world.with("node:bo-9", Options { times: Times { grace: Duration::ZERO, ..times() }, ..Options::default() });
    let refused = call(&unknown, "echo", json!({})).await.unwrap_err();
    assert!(matches!(&refused, ClientError::NoEffect { why: NoEffect::NoRoute(_), .. }), "{refused:?}");
    drop(client);
    eventually(|| (node.door.sessions() == 0, node.door.sessions())).await;
    node.stop().await;
}

#[tokio::test]
async fn a_connection_that_is_lost_with_a_call_in_hand_leaves_it_unknown() {
    let node = Node::new().await;
    let world = World::new(&[]).await;
    world.clients.reach_nodes(node.cluster.tls(Role::Bo, "bo-1"), node.endpoint.peers().clone());
    let client = world.client("node:bo-1");
    client.connected(until(LONG)).await.unwrap();
    let in_hand = tokio::spawn({
        let client = client.clone();
        async move { call(&client, "gate", json!({})).await }
    });
    super::quic::world::counts(&node.hand.waiting, 1).await;
    node.endpoint.close(Duration::from_secs(1)).await;
    let cut = in_hand.await.unwrap().unwrap_err();
    assert!(matches!(&cut, ClientError::Unknown { .. }), "{cut:?}");
    let away = within(&client, "echo", json!({}), Duration::from_millis(300)).await.unwrap_err();
    assert!(matches!(&away, ClientError::NoEffect { .. }), "{away:?}");
}

/// What makes a server for 127.0.0.1 that some authority vouches for, whose certificate is in the file, and that speaks `protocol`.
pub(crate) fn certified(directory: &std::path::Path, protocol: &[u8]) -> (quinn::ServerConfig, PathBuf) {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let certificate = params.self_signed(&key).unwrap();
    let file = directory.join("ca.pem");
    std::fs::write(&file, certificate.pem()).unwrap();
    let issuer = Issuer::new(params, key);
    let key = KeyPair::generate().unwrap();
    let leaf = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap().signed_by(&key, &issuer).unwrap();
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let mut tls = rustls::ServerConfig::builder_with_provider(horos_link::tls::provider().clone())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![leaf.der().clone()], key)
        .unwrap();
    tls.alpn_protocols = vec![protocol.to_vec()];
    (quinn::ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(tls).unwrap())), file)
}

/// Such a server in front of `node`'s door.
fn vouched(node: &Node, directory: &std::path::Path) -> (quinn::Endpoint, PathBuf) {
    let (config, file) = certified(directory, b"mcp-quic-v1");
    let endpoint = quinn::Endpoint::server(config, "127.0.0.1:0".parse().unwrap()).unwrap();
    let (accepting, door) = (endpoint.clone(), node.door.handler());
    tokio::spawn(async move {
        while let Some(incoming) = accepting.accept().await {
            let Ok(connection) = incoming.await else { continue };
            tokio::spawn(door.serve(connection));
        }
    });
    (endpoint, file)
}

#[tokio::test]
async fn a_stranger_proves_its_name_and_is_shown_a_key() {
    use std::os::unix::fs::PermissionsExt as _;

    let node = Node::new().await;
    let directory = tempfile::tempdir().unwrap();
    let (server, authority) = vouched(&node, directory.path());
    let address = server.local_addr().unwrap();
    let secret = directory.path().join("key");
    std::fs::write(&secret, format!("Bearer {KEY}\n")).unwrap();
    std::fs::set_permissions(&secret, std::fs::Permissions::from_mode(0o600)).unwrap();
    let options = || Options {
        authorize: Some(Arc::new(FromFile::new(directory.path(), "key"))),
        times: Times { grace: Duration::ZERO, ..times() },
        ..Options::default()
    };
    let url = format!("quic://{address}");

    let world = World::believing(&[address], &[authority]).await;
    let client = world.with(&url, options());
    let who = call(&client, "who", json!({})).await.unwrap();
    assert_eq!(text(&who), "hk_good");
    let nobody = world.clients.client(url.parse().unwrap(), Some("none"), Options { authorize: None, ..options() }).unwrap();
    let refused = call(&nobody, "who", json!({})).await.unwrap_err();
    assert!(matches!(&refused, ClientError::NoEffect { .. }), "{refused:?}");

    // Without an authority that vouches, and where nobody may go, not a word is said.
    for world in [World::new(&[address]).await, World::new(&[]).await] {
        let refused = call(&world.with(&url, options()), "who", json!({})).await.unwrap_err();
        assert!(matches!(&refused, ClientError::NoEffect { why: NoEffect::NoRoute(_), .. }), "{refused:?}");
    }
    node.stop().await;
}
