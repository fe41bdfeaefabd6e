//! Calls that call back: what must never wait for itself.

use std::time::{Duration, Instant};

use horos_supervision::{Context, Handle, Service, ServiceSpec, service};
use horos_wire::{CallError, Never, NoEffect, Role, protocol};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::cluster::{Cluster, Echo, Test};

const SOON: Duration = Duration::from_secs(10);

/// Answers when the asker's node has answered.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
struct Ask {}

protocol! {
    Back = "back" v1 {
        1 ask: Ask => String;
    }
}

struct Asker;

impl Service for Asker {
    type Protocol = Back;
}

impl Handle<Ask> for Asker {
    async fn handle(&mut self, _: Ask, cx: &Context) -> Result<String, Never> {
        let back = cx.at::<Test>(&format!("tester@{}", cx.caller().node().name));
        Ok(match back.call(Echo { body: vec![7; 100] }, SOON).await {
            Ok(_) => "answered".to_owned(),
            Err(error) => error.to_string(),
        })
    }
}

/// When answers shared a stream with requests, the answer that the handler waited for stood behind requests that
/// waited for the handler's credit, and all of them for the deadline.
#[tokio::test]
async fn an_answer_passes_requests_that_wait_for_credit() {
    let cluster = Cluster::new();
    let bo = cluster
        .node_with(Role::Bo, "bo-1", |config| {
            config.limits.in_flight_messages = 4;
        })
        .await;
    let spec = ServiceSpec::new("asker".parse().unwrap());
    let child = service(&bo.exchange, &tokio::runtime::Handle::current(), spec, |_| async { Ok(Asker) }).unwrap();
    bo.root.add_child(child).await.unwrap();
    let fo = cluster.node(Role::Fo, "fo-1", vec![bo.address()]).await;
    fo.serve("tester").await;
    fo.linked(1).await;
    let asker = fo.context().at::<Back>("asker@bo-1");
    // Casts, because a call that finds no credit is refused and does not wait.
    for _ in 0..200 {
        asker.cast(Ask {}, SOON).await.unwrap();
    }
    let end = Instant::now() + SOON;
    loop {
        match asker.call(Ask {}, SOON).await {
            Err(CallError::NoEffect(NoEffect::Overloaded(_))) if Instant::now() < end => {}
            answer => break assert_eq!(answer, Ok("answered".to_owned())),
        }
    }
    assert!(Instant::now() < end, "one handler waited for the answer until its deadline");
    fo.stop().await;
    bo.stop().await;
}
