//! Membership over real links: who is learnt, from whom, and what a liar achieves.

use std::{net::SocketAddr, time::Duration};

use horos_wire::{Role, tree::Health};

use super::{
    cluster::{Cluster, Node},
    world::eventually,
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
