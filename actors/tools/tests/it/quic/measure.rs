//! How fast it is, both ends on this machine: `cargo test --release -p horos-tools --test it -- --ignored --nocapture measure`.

use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use horos_tools::quic;
use rmcp::{
    RoleClient,
    model::CallToolRequestParams,
    service::{Peer, RunningService},
};
use serde_json::json;

use super::world::Node;

async fn echo(client: &Peer<RoleClient>, n: u64) {
    let arguments = json!({"sku": "a-17", "n": n}).as_object().unwrap().clone();
    client.call_tool(CallToolRequestParams::new("echo").with_arguments(arguments)).await.unwrap();
}

async fn one_at_a_time(client: &RunningService<RoleClient, ()>, calls: u64) -> [Duration; 2] {
    let mut took = Vec::new();
    for n in 0..calls {
        let began = Instant::now();
        echo(client, n).await;
        took.push(began.elapsed());
    }
    took.sort();
    [took[took.len() / 2], took[took.len() * 99 / 100]]
}

async fn at_once(client: &RunningService<RoleClient, ()>, calls: u64, in_flight: usize) -> f64 {
    let began = Instant::now();
    futures_util::stream::iter(0..calls).for_each_concurrent(in_flight, |n| echo(client, n)).await;
    calls as f64 / began.elapsed().as_secs_f64()
}

/// As a node does it: one thread drives QUIC, another one MCP; and the client has a thread.
#[test]
#[ignore = "a measurement"]
fn measure_calls() {
    let thread = || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let handle = runtime.handle().clone();
        std::thread::spawn(move || runtime.block_on(std::future::pending::<()>()));
        handle
    };
    let run = |threads: usize| {
        let link = thread();
        let sessions = (threads == 2).then(thread);
        let client = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let (keep, node) = std::sync::mpsc::channel();
        link.spawn(async move {
            let _ = keep.send(Node::with(|options| options.runtime = sessions).await);
        });
        let node = node.recv().unwrap();
        client.block_on(async {
            for streams in [true, false] {
                let client = node.client_with(quic::DialOptions { streams, ..Default::default() }).await;
                one_at_a_time(&client, 2_000).await;
                let [p50, p99] = one_at_a_time(&client, 10_000).await;
                let calls = at_once(&client, 100_000, 64).await;
                eprintln!("{threads} threads, streams {streams}: p50 {p50:?}, p99 {p99:?}, {calls:.0} calls/s at 64 in flight");
                client.cancel().await.unwrap();
            }
        });
    };
    for threads in [1, 2] {
        run(threads);
    }
}
