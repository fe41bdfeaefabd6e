//! Handshakes that nobody means to finish, by the thousand: memory stays bounded, everybody else is served, all are counted.

use std::{
    collections::HashMap,
    net::{Ipv4Addr, SocketAddr, UdpSocket},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use horos_link::{ALPN, tls::SERVER_NAME};
use horos_wire::Role;
use quinn::EndpointConfig;
use rand::RngExt;

use super::{
    cluster::{Cluster, Echo, Test},
    strangers::client,
    world::{dice, eventually, no_panics, quantile, resident, scale, seed, watch},
};

const SOON: Duration = Duration::from_secs(5);
/// Handshakes at once of such as have not shown their address: a sixteenth of the default.
const UNSHOWN: usize = 64;

/// What a flood consists of.
#[derive(Clone, Copy, PartialEq)]
enum Flight {
    /// The first packets of a handshake, and then nothing.
    HalfOpen,
    /// A connection that is given up with its very first packet.
    GivenUp,
}

/// The datagrams of a client's first flight, as any QUIC stack would send them.
fn flight(config: &quinn::ClientConfig, to: SocketAddr, kind: Flight) -> Vec<Vec<u8>> {
    let mut endpoint = quinn_proto::Endpoint::new(Arc::new(EndpointConfig::default()), None, true, None);
    let (_, mut connection) = endpoint.connect(Instant::now(), config.clone(), to, SERVER_NAME).unwrap();
    let mut datagrams = Vec::new();
    loop {
        let mut datagram = Vec::new();
        match connection.poll_transmit(Instant::now(), 1, &mut datagram) {
            Some(_) => datagrams.push(datagram),
            None if kind == Flight::GivenUp && !connection.is_closed() => {
                datagrams.clear();
                connection.close(Instant::now(), 0u32.into(), bytes::Bytes::new());
            }
            None => return datagrams,
        }
    }
}

/// Sends `count` flights from as many addresses of this machine as it takes, each from at most `each`.
fn flood(to: SocketAddr, kind: Flight, count: usize, each: usize, seed: u64) {
    let config = client(ALPN, None);
    let mut dice = dice(seed);
    for _ in 0..count / each {
        let from = Ipv4Addr::new(127, dice.random_range(1..=255), dice.random(), dice.random_range(1..255));
        let socket = UdpSocket::bind((from, 0)).unwrap();
        for _ in 0..each {
            for datagram in flight(&config, to, kind) {
                // A full buffer of the kernel's is a lost packet.
                let _ = socket.send_to(&datagram, to);
            }
        }
    }
}

async fn withstands(kind: Flight, count: usize) -> HashMap<&'static str, u64> {
    watch();
    let cluster = Cluster::new();
    let bo = cluster
        .node_with(Role::Bo, "bo-1", |config| {
            config.gossip = false;
            // Shorter than by default, so that places are given up and taken again within the test.
            config.admission.handshake_timeout = Duration::from_secs(1);
        })
        .await;
    bo.serve("tester").await;
    let seeds = vec![bo.address()];
    let dialling = |config: &mut horos_link::Config| {
        config.gossip = false;
        config.seeds.clone_from(&seeds);
    };
    let fo = cluster.node_with(Role::Fo, "fo-1", dialling).await;
    fo.linked(1).await;
    let before = resident();
    let (to, seed) = (bo.address(), seed());
    let flooding = thread::spawn(move || flood(to, kind, count, 16, seed));
    let tester = fo.context().at::<Test>("tester@bo-1");
    let (mut took, mut most, mut grown, mut newcomers) = (Vec::new(), 0, 0, 0);
    // At least a newcomer in the midst of it and one after it.
    while !flooding.is_finished() || newcomers < 2 {
        let began = Instant::now();
        tester.call(Echo { body: vec![1] }, SOON).await.expect("who is linked is served");
        took.push(began.elapsed());
        if took.len() % 50 == 10 {
            let began = Instant::now();
            let newcomer = cluster.node_with(Role::Fo, "fo-2", dialling).await;
            newcomer.linked(1).await;
            assert!(began.elapsed() < Duration::from_secs(2), "a newcomer took {:?}", began.elapsed());
            newcomer.stop().await;
            newcomers += 1;
        }
        most = most.max(bo.endpoint.open_connections());
        grown = grown.max(resident().saturating_sub(before));
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    flooding.join().unwrap();
    eprintln!("{count}: {most} connections at most, {grown} KiB, calls within {:?} (p99)", quantile(&mut took, 0.99));
    // The links, and those of newcomers that close.
    assert!(most <= UNSHOWN + 16, "{most} connections");
    // Some 60 KiB each; 2,000 without bound would be beyond it.
    assert!(grown < 64 * 1024, "{grown} KiB");
    // Another linked node's session is the same as before.
    assert!(took.iter().max().unwrap() < &Duration::from_secs(1));
    if kind == Flight::HalfOpen {
        eventually("they are given up", SOON, || match bo.endpoint.counters().outcomes()[5] {
            ("timed_out", some) if some > 0 => Ok(()),
            other => Err(format!("{other:?}")),
        })
        .await;
    }
    let counters = bo.endpoint.counters().outcomes().into_iter().collect();
    eprintln!("{counters:?}");
    no_panics();
    fo.stop().await;
    bo.stop().await;
    counters
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn half_open_handshakes_hold_bounded_memory_and_delay_nobody() {
    let counters = withstands(Flight::HalfOpen, scale(2_000, 100_000)).await;
    assert!(counters["retried"] > 0 && counters["timed_out"] > 0, "{counters:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_given_up_with_their_first_packet_hold_bounded_memory_and_delay_nobody() {
    let counters = withstands(Flight::GivenUp, scale(2_000, 100_000)).await;
    // Their places are taken until QUIC forgets them; the rest were asked to come again, and do not.
    assert!(counters["failed"] >= UNSHOWN as u64 && counters["retried"] > 0, "{counters:?}");
}

#[tokio::test]
async fn clients_that_fail_all_the_time_keep_nobody_from_their_address() {
    watch();
    let cluster = Cluster::new();
    let bo = cluster.node_with(Role::Bo, "bo-1", |config| config.gossip = false).await;
    bo.serve("tester").await;
    let endpoint = super::raw::dialer("127.0.0.1");
    let fails = |count: usize| {
        let (endpoint, to) = (endpoint.clone(), bo.address());
        async move {
            for _ in 0..count {
                // Each is remembered for three seconds, and an address has 64 handshakes at once.
                endpoint.connect_with(client(b"unknown", None), to, SERVER_NAME).unwrap().await.unwrap_err();
            }
        }
    };
    let began = Instant::now();
    fails(scale(300, 5_000)).await;
    let seeds = vec![bo.address()];
    let fo = cluster.node_with(Role::Fo, "fo-1", |config| config.seeds = seeds).await;
    fo.linked(1).await;
    fo.context().at::<Test>("tester@bo-1").call(Echo { body: vec![1] }, SOON).await.unwrap();
    eprintln!("after {:?}: {} connections", began.elapsed(), bo.endpoint.open_connections());
    let counters: HashMap<_, _> = bo.endpoint.counters().outcomes().into_iter().collect();
    assert_eq!((counters["unknown_protocol"], counters["full"], counters["address_full"]), (scale(300, 5_000), 0, 0), "{counters:?}");
    no_panics();
    fo.stop().await;
    bo.stop().await;
}
