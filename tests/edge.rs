//! The one port over the network: what other people's clients, load balancers, guessers and attackers make of it.

mod attacks;
mod clients;
mod guesses;
mod hostile;
mod keys;
mod load;
mod one_port;
mod ports;
mod restart;
mod tokens;

use crate::harness::http::{Ask, Session, Speaks, metric};
use crate::harness::{Cluster, Node, outside};

/// A BO of the drill program, which has pages under `/drill` (for the scope `drill`) and `/open` (for everybody), set up by
/// `prepare` before its start.
async fn served(prepare: impl FnOnce(&mut Node)) -> (Cluster, Node) {
    let cluster = Cluster::of(outside::drill().await);
    let mut bo = cluster.first("bo-1", [127, 0, 0, 1]).await;
    prepare(&mut bo);
    bo.start().await;
    (cluster, bo)
}

/// What a node's `/metrics` says.
async fn metrics(node: &Node, key: &str) -> String {
    let mut session = Session::open(&node.site(), Speaks::Http1).await.unwrap();
    let answer = session.ask(&Ask::get("/metrics").key(key)).await.unwrap();
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.body
}

/// How often a node refused something for `reason`.
async fn refused(node: &Node, key: &str, reason: &str) -> f64 {
    metric(&metrics(node, key).await, "horos_refused_total", &[&format!("reason=\"{reason}\"")])
}
