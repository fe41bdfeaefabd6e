//! Membership over real links: who is learnt, from whom, and what a liar achieves.

use std::{net::SocketAddr, time::Duration};

use horos_wire::{Role, tree::Health};

use super::{
    cluster::{Cluster, Node},
    comings::free_address,
    raw::Raw,
    world::{eventually, no_panics, says, watch},
};

const LEARN: Duration = Duration::from_secs(20);

fn health(at: &Node, of: &str) -> Option<Health> {
    at.endpoint.peers().known().into_iter().find(|known| known.node.name.as_str() == of).map(|known| known.health)
}

/// `at` knows `of` in one of these ways.
async fn sees(at: &Node, of: &str, wanted: &[Health]) {
    eventually(&format!("{of} seen from {}", at.endpoint.peers().node().name), LEARN, || match health(at, of) {
        Some(health) if wanted.contains(&health) => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await;
}

/// Two BOs that are told of each other by nobody: each knows only the seed.
#[tokio::test(flavor = "multi_thread")]
async fn nodes_that_share_a_seed_learn_of_each_other_and_link() {
    let cluster = Cluster::new();
    let seed = cluster.node(Role::Bo, "bo-1", Vec::new()).await;
    let seeds: Vec<SocketAddr> = vec![seed.address()];
    let other = cluster.node(Role::Bo, "bo-2", seeds.clone()).await;
    let fo = cluster.node(Role::Fo, "fo-1", seeds.clone()).await;
    let second = cluster.node(Role::Fo, "fo-2", seeds).await;
    for (at, of) in [(&other, "fo-1"), (&fo, "bo-2"), (&second, "bo-2"), (&fo, "fo-2"), (&second, "fo-1")] {
        sees(at, of, &[Health::Up]).await;
    }
    for node in [seed, other, fo, second] {
        node.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_takes_no_part_in_gossip_learns_of_nobody() {
    let cluster = Cluster::new();
    let seed = cluster.node(Role::Bo, "bo-1", Vec::new()).await;
    let seeds = vec![seed.address()];
    let deaf = cluster
        .node_with(Role::Fo, "fo-1", |config| {
            config.seeds = seeds.clone();
            config.gossip = false;
        })
        .await;
    let other = cluster.node(Role::Bo, "bo-2", seeds).await;
    sees(&other, "bo-1", &[Health::Up]).await;
    sees(&seed, "fo-1", &[Health::Up]).await;
    // The other would have to be told of it by itself.
    sees(&seed, "bo-2", &[Health::Up]).await;
    eventually("the seed has the other's word", LEARN, || {
        let digests = seed.endpoint.peers().digests();
        if digests.contains_key(&"bo-2".parse().unwrap()) { Ok(()) } else { Err(format!("{digests:?}")) }
    })
    .await;
    assert_eq!(health(&deaf, "bo-2"), None);
    for node in [seed, deaf, other] {
        node.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_tells_of_its_services_and_others_pass_it_on() {
    let cluster = Cluster::new();
    let seed = cluster.node(Role::Bo, "bo-1", Vec::new()).await;
    let seeds = vec![seed.address()];
    let other = cluster.node(Role::Bo, "bo-2", seeds.clone()).await;
    other.serve("tester").await;
    let fo = cluster.node(Role::Fo, "fo-1", seeds).await;
    eventually("bo-2's service, seen from fo-1", LEARN, || {
        let digests = fo.endpoint.peers().digests();
        match digests.get(&"bo-2".parse().unwrap()) {
            Some(digest) if digest.states[1] == 1 => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    for node in [seed, other, fo] {
        node.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_moved_is_found_at_its_new_address() {
    let cluster = Cluster::new();
    let seed = cluster.node(Role::Bo, "bo-1", Vec::new()).await;
    let seeds = vec![seed.address()];
    let moving = cluster.node(Role::Bo, "bo-2", seeds.clone()).await;
    let fo = cluster.node(Role::Fo, "fo-1", seeds.clone()).await;
    sees(&fo, "bo-2", &[Health::Up]).await;
    let left = moving.address();
    moving.stop().await;
    sees(&fo, "bo-2", &[Health::Down]).await;
    let moved = cluster.node(Role::Bo, "bo-2", seeds).await;
    assert_ne!(moved.address(), left);
    sees(&fo, "bo-2", &[Health::Up]).await;
    for node in [seed, moved, fo] {
        node.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_listens_on_every_address_is_dialled_where_it_says_and_without_a_word_nowhere() {
    let cluster = Cluster::new();
    let seed = cluster.node(Role::Bo, "bo-1", Vec::new()).await;
    let seeds = vec![seed.address()];
    let port = free_address().port();
    let told = SocketAddr::from(([127, 0, 0, 1], port));
    let everywhere = cluster
        .node_with(Role::Bo, "bo-2", |config| {
            config.listen = SocketAddr::from(([0, 0, 0, 0], port));
            config.advertise = vec![told];
            config.seeds = seeds.clone();
        })
        .await;
    let silent = cluster
        .node_with(Role::Bo, "bo-3", |config| {
            config.listen = SocketAddr::from(([0, 0, 0, 0], 0));
            config.seeds = seeds.clone();
        })
        .await;
    assert_eq!(silent.endpoint.peers().addresses(), []);
    // Of the two only an FO dials: it can have nothing but the seed's word.
    let fo = cluster.node(Role::Fo, "fo-1", seeds).await;
    sees(&fo, "bo-2", &[Health::Up]).await;
    let known = fo.endpoint.peers().known().into_iter().find(|known| known.node.name.as_str() == "bo-2").unwrap();
    assert_eq!(known.addresses, [told]);
    eventually("bo-3 is heard of", LEARN, || {
        let digests = fo.endpoint.peers().digests();
        if digests.contains_key(&"bo-3".parse().unwrap()) { Ok(()) } else { Err(format!("{digests:?}")) }
    })
    .await;
    assert_ne!(health(&fo, "bo-3"), Some(Health::Up));
    for node in [seed, everywhere, silent, fo] {
        node.stop().await;
    }
}

/// A gossip message that hands over `entry` as what `node` says of itself, as chitchat 0.11 writes it.
fn delta(node: &str, entry: &str, version: u64) -> Vec<u8> {
    let text = |text: &str| [&(text.len() as u16).to_le_bytes()[..], text.as_bytes()].concat();
    let life = [text(node), 9u64.to_le_bytes().to_vec(), [&[6u8][..], &[0xfd; 16], &[1, 0]].concat()].concat();
    let operations = [vec![0], life, vec![0; 16], vec![1], text("entry"), text(entry), version.to_le_bytes().to_vec(), vec![0]].concat();
    let length = (operations.len() as u16).to_le_bytes();
    [&[0x53, 0xb0, 0, 2, 2][..], &length, &operations, &[0]].concat()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_entry_that_an_fo_forges_changes_nothing() {
    watch();
    let cluster = Cluster::new();
    let seed = cluster.node(Role::Bo, "bo-1", Vec::new()).await;
    let seeds = vec![seed.address()];
    let victim = cluster.node(Role::Bo, "bo-2", seeds.clone()).await;
    sees(&seed, "bo-2", &[Health::Up]).await;
    let forger = Raw::open(&cluster, Role::Fo, "fo-66", seed.address()).await;
    let entry = |node: &str| {
        format!(
            "horos-entry 1\nnode spiffe://shop/{node}\nincarnation 0000000000000009\nissued {}\nsequence 9\nbeat 9\nready yes\n\
             addresses 127.0.0.1:9\nprotocols\ntree 0 0 0 0 0 0 0000000000000000\ncertificate 30820100\nsignature 3045\n",
            jiff::Timestamp::now().as_millisecond()
        )
    };
    for message in [delta("bo/bo-2", &entry("bo/bo-2"), 9), delta("bo/bo-9", &entry("bo/bo-9"), 9), vec![0x53, 0xb0], vec![7; 60_000]] {
        let mut stream = forger.connection.open_uni().await.unwrap();
        stream.write_all(&[6]).await.unwrap();
        stream.write_all(&message).await.unwrap();
        stream.finish().unwrap();
    }
    says(&["from=fo-66", "gossip that does not hold is ignored"]).await;
    // What comes later is heard as ever: nothing false stands in its way.
    let fo = cluster.node(Role::Fo, "fo-1", seeds).await;
    sees(&fo, "bo-2", &[Health::Up]).await;
    for node in [&seed, &fo] {
        assert_eq!(health(node, "bo-9"), None);
        let known = node.endpoint.peers().known().into_iter().find(|known| known.node.name.as_str() == "bo-2").unwrap();
        assert_eq!(known.addresses, [victim.address()]);
    }
    no_panics();
    for node in [seed, victim, fo] {
        node.stop().await;
    }
}
