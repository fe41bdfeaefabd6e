//! A front office that somebody else has taken over, and how it is shut out.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use horos_link::{
    identity::{authority::Revoke, certificate::Validity, request},
    tls::Expected,
};
use horos_wire::{
    CallError, NoEffect, Role,
    control::{Close, Control},
};
use jiff::Timestamp;
use tokio::task::JoinSet;

use super::{
    cluster::{Cluster, Echo, Node, Test},
    raw::{Raw, encoded},
    world::{eventually, no_panics, says, watch},
};

const SOON: Duration = Duration::from_secs(5);

async fn bo(cluster: &Cluster, name: &str, seeds: Vec<std::net::SocketAddr>) -> Node {
    let node = cluster
        .node_with(Role::Bo, name, |config| {
            config.seeds = seeds;
            config.gossip = false;
        })
        .await;
    node.serve("tester").await;
    node
}

#[tokio::test]
async fn a_compromised_fo_gets_no_further_than_its_role() {
    watch();
    let cluster = Cluster::new();
    let one = bo(&cluster, "bo-1", vec![]).await;
    let two = bo(&cluster, "bo-2", vec![one.address()]).await;
    one.linked(1).await;
    let mut fo = Raw::open(&cluster, Role::Fo, "fo-1", one.address()).await;
    one.linked(2).await;
    // Methods that its role may not call, by number, and protocols that it may not name.
    let target = fo.bind("tester").await.unwrap();
    fo.call(target, 7, 1, &[]).await;
    let secret = fo.answer(1).await;
    assert!(matches!(secret, Err(CallError::NoEffect(NoEffect::NotAllowed(_)))), "{secret:?}");
    // Names and protocols that its role may not offer: nobody is sent to it.
    fo.offer("stock", "back").await;
    says(&["offers what its role may not", "stock"]).await;
    let nobody = one.context().at::<Test>("stock").call(Echo { body: vec![] }, Duration::from_secs(1)).await;
    assert!(matches!(nobody, Err(CallError::NoEffect(NoEffect::NoSuchActor(_)))), "{nobody:?}");
    // A name of the other BO's, of a protocol that it may offer: calls to the role do not go there.
    fo.offer("tester", "test").await;
    for _ in 0..20 {
        let answered = one.context().at::<Test>("tester@bo").call(Echo { body: vec![3] }, SOON).await.unwrap();
        assert_eq!(answered.body, vec![3]);
    }
    // Deny lists: unsigned, altered, signed by another authority, and older than the one in force.
    let other = Cluster::new();
    let two_id = two.exchange.node().as_ref().clone();
    other.tls(Role::Bo, "bo-2");
    let foreign = other.authority.revoke(&[Revoke::Identity(two_id.clone())], Timestamp::now()).unwrap();
    cluster.tls(Role::Fo, "fo-8");
    cluster.tls(Role::Fo, "fo-9");
    let revoke = |name: &str| {
        let id = cluster.tls(Role::Fo, name).credentials().id().clone();
        cluster.authority.revoke(&[Revoke::Identity(id)], Timestamp::now()).unwrap()
    };
    let (older, newer) = (revoke("fo-8"), revoke("fo-9"));
    one.endpoint.peers().revoke(newer.clone().into()).await.unwrap();
    let altered = newer.replacen("fo-9", "bo-2", 1);
    for forged in ["", "horos-deny-list 1\n", &foreign, &altered, &older] {
        fo.say(&Control::DenyList(forged.into())).await;
    }
    fo.say(&Control::GoAway).await;
    fo.call(target, 1, 2, &encoded(&Echo { body: vec![1] })).await;
    assert!(fo.answer(2).await.is_ok(), "its own session goes on");
    assert_eq!(one.endpoint.peers().known().len(), 2);
    // Nothing has changed for the others.
    let text = format!("{:?}", newer.lines().nth(2));
    eventually("the other BO has the newer list, from the authority's hand", SOON, || {
        if two.endpoint.peers().known().iter().any(|known| known.node.name.as_str() == "bo-1") { Ok(()) } else { Err(text.clone()) }
    })
    .await;
    for (from, to) in [(&one, "tester@bo-2"), (&two, "tester@bo-1")] {
        from.context().at::<Test>(to).call(Echo { body: vec![1] }, SOON).await.unwrap();
    }
    no_panics();
    two.stop().await;
    one.stop().await;
}

#[tokio::test]
async fn an_fo_that_says_it_lives_at_anothers_address_keeps_nobody_from_dialling_it() {
    watch();
    let cluster = Cluster::new();
    // The seed is claimed by somebody else while nobody is there, which is when it is being dialled.
    let address = std::net::UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let one = bo(&cluster, "bo-1", vec![address]).await;
    let mut fo = Raw::mute(&cluster, Role::Fo, "fo-1", one.address()).await;
    let claim = horos_wire::control::Hello { addresses: vec![address], ..super::raw::hello(&fo.id) };
    fo.say(&Control::Hello(claim)).await;
    one.linked(1).await;
    // Two dials' time and more: the dialler has looked at what is linked.
    fo.hear(|frame| matches!(frame, Control::Heartbeat { sequence: 2 }).then_some(())).await;
    let fo = fo.stay();
    let two = cluster
        .node_with(Role::Bo, "bo-2", |config| {
            config.listen = address;
            config.gossip = false;
        })
        .await;
    two.serve("tester").await;
    two.linked(1).await;
    eventually("the seed is linked", SOON, || {
        let known = one.endpoint.peers().known();
        if known.iter().any(|known| known.node.name.as_str() == "bo-2") { Ok(()) } else { Err(format!("{known:?}")) }
    })
    .await;
    one.context().at::<Test>("tester@bo-2").call(Echo { body: vec![] }, SOON).await.unwrap();
    no_panics();
    fo.abort();
    one.stop().await;
    two.stop().await;
}

#[tokio::test]
async fn a_revoked_node_is_shut_out_everywhere_within_a_second_and_stays_out() {
    watch();
    let cluster = Cluster::new();
    let one = bo(&cluster, "bo-1", vec![]).await;
    let two = bo(&cluster, "bo-2", vec![one.address()]).await;
    let three = bo(&cluster, "bo-3", vec![two.address()]).await;
    two.linked(2).await;
    // Linked to the last one only, which learns of the list at second hand.
    let stolen = Raw::open(&cluster, Role::Fo, "fo-1", three.address()).await;
    let mut bystander = Raw::open(&cluster, Role::Fo, "fo-2", three.address()).await;
    three.linked(3).await;
    let list = cluster.authority.revoke(&[Revoke::Identity(stolen.id.clone())], Timestamp::now()).unwrap();
    let began = Instant::now();
    one.endpoint.peers().revoke(list.into()).await.unwrap();
    assert_eq!(stolen.closed().await, Close::Revoked);
    println!("closed two nodes away after {:?}", began.elapsed());
    assert!(began.elapsed() < Duration::from_secs(1));
    for node in [&one, &two, &three] {
        let endpoint = super::raw::dialer("127.0.0.1");
        let tls = cluster.tls(Role::Fo, "fo-1");
        let client = tls.client(&[horos_link::ALPN], Expected::AnyNode);
        let again = endpoint.connect_with(client, node.address(), horos_link::tls::SERVER_NAME).unwrap().await;
        // TLS 1.3 tells the client only after it believes the handshake done.
        let refused = match again {
            Ok(connection) => connection.closed().await,
            Err(error) => error,
        };
        let told = horos_link::tls::RefusedByPeer::of(&refused);
        assert_eq!(told, Some(horos_link::tls::RefusedByPeer::Revoked), "{refused}");
    }
    let target = bystander.bind("tester").await.unwrap();
    bystander.call(target, 1, 2, &encoded(&Echo { body: vec![1] })).await;
    assert!(bystander.answer(2).await.is_ok());
    for node in [three, two, one] {
        node.stop().await;
    }
}

#[tokio::test]
async fn certificates_reload_under_traffic_without_a_lost_call() {
    watch();
    let cluster = Cluster::new();
    let bo = bo(&cluster, "bo-1", vec![]).await;
    let fo = cluster.node(Role::Fo, "fo-1", vec![bo.address()]).await;
    fo.linked(1).await;
    let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let mut callers = JoinSet::new();
    for _ in 0..8 {
        let (tester, stop, done) = (fo.context().at::<Test>("tester@bo-1"), stop.clone(), done.clone());
        callers.spawn(async move {
            while !stop.load(Ordering::Relaxed) {
                tester.call(Echo { body: vec![1; 64] }, SOON).await.unwrap();
                done.fetch_add(1, Ordering::Relaxed);
            }
        });
    }
    for node in [&bo, &fo] {
        let id = node.exchange.node().as_ref().clone();
        let directory = cluster.directory.path().join(id.name.as_str());
        let before = node.tls.credentials().identity().serial;
        let csr = std::fs::read_to_string(request::renew(&directory, &id).unwrap()).unwrap();
        let (certificate, _) = cluster.authority.sign(&csr, &id, Validity::usual(Timestamp::now(), &id)).unwrap();
        request::install(&directory, &certificate, cluster.authority.certificate_pem(), Timestamp::now()).unwrap();
        let reloaded = node.tls.reload(Timestamp::now()).unwrap();
        assert_ne!(reloaded.identity().serial, before);
        let seen = done.load(Ordering::Relaxed);
        eventually("calls go on", SOON, || if done.load(Ordering::Relaxed) > seen + 50 { Ok(()) } else { Err("few".into()) }).await;
    }
    // The new certificates serve the next link.
    let late = cluster.node(Role::Fo, "fo-2", vec![bo.address()]).await;
    late.linked(1).await;
    stop.store(true, Ordering::Relaxed);
    callers.join_all().await;
    late.stop().await;
    fo.stop().await;
    bo.stop().await;
}
