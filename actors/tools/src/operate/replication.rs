//! How replication is, as far as this node can ask: every publication and every replica that is known, asked at once.

use std::{
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::{StreamExt as _, future::BoxFuture, stream};
use horos_supervision::Context;
use horos_wire::{
    NodeName, Protocol, Request,
    protocol::{
        node::{Actors, Node, Offered},
        sync::{PublicationStatus, PublisherStatusAsk, REPLICA_PREFIX, Replica, ReplicaAsk, ReplicaStatus, SYNC_PREFIX, Sync},
    },
};
use schemars::JsonSchema;
use serde::Serialize;

use super::{
    Desk, Told, broken, schema,
    table::{LOOKS, Said, tool},
    told,
};
use crate::{Call, Definition, Output, Run, ToolError};

/// For one publication or replica to answer.
const ASK: Duration = Duration::from_secs(2);
/// Asked at a time.
const AT_ONCE: usize = 16;
/// Most that are asked: sixteen publications a node are published at most, and as many kept.
const MAX_ASKED: usize = 512;

/// The arguments.
#[derive(JsonSchema)]
#[expect(dead_code, reason = "it is read as JSON, and stands here for its schema")]
struct Which {
    /// Only this publication and its replicas.
    publication: Option<String>,
}

/// All that was told.
#[derive(Serialize, JsonSchema)]
struct Status {
    /// Publications: what a node publishes of one of its databases.
    publications: Vec<Asked<PublicationStatus>>,
    /// Replicas: what a node keeps of a publication.
    replicas: Vec<Asked<ReplicaStatus>>,
}

/// One of them.
#[derive(Serialize, JsonSchema)]
struct Asked<T> {
    /// Its name.
    name: Box<str>,
    /// The node that it is on.
    node: NodeName,
    /// How it is; missing where it was not told.
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<T>,
    /// Why it was not told.
    #[serde(skip_serializing_if = "Option::is_none")]
    missing: Option<Box<str>>,
}

pub(super) fn status(desk: &Desk, category: &'static str) -> Arc<Definition> {
    let said = Said {
        name: "sync_status",
        title: "Status of replication",
        category,
        about: "Tells how replication is: for each publication its subscribers with their state, lag in rows and milliseconds and last \
                error, and for each replica its source, state and how old its data may be. Use it when data on one node looks older than \
                on another. An FO is not told about other nodes' replicas: ask a BO.",
        behaviour: LOOKS,
    };
    let (input, output) = (schema::input(&schemars::schema_for!(Which)), schema::output(&schemars::schema_for!(Status), None));
    tool(said, input, output, Arc::new(Ask(desk.clone())))
}

#[derive(Debug)]
struct Ask(Desk);

impl Run for Ask {
    fn run<'a>(&'a self, call: Call<'a>) -> BoxFuture<'a, Result<Output, ToolError>> {
        Box::pin(async move {
            let only = call.arguments.get("publication").and_then(|name| name.as_str());
            let context = self.0.context(&call);
            let there = context.at::<Node>(&format!("horos.cluster@{}", context.node().name));
            let actors = there.call(Actors { cluster: true }, call.until).await.map_err(|error| told(&error))?;
            let named = |prefix: &str| -> Vec<(Box<str>, Offered)> {
                let of = |actor: Offered| {
                    let name = actor.name.as_str().strip_prefix(prefix).filter(|name| only.is_none_or(|only| only == *name))?;
                    Some((name.into(), actor))
                };
                actors.iter().cloned().filter_map(of).take(MAX_ASKED).collect()
            };
            let until = call.until.min(Instant::now() + ASK);
            let (publications, replicas) = tokio::join!(
                each::<Sync, _>(&context, named(SYNC_PREFIX), PublisherStatusAsk {}, until),
                each::<Replica, _>(&context, named(REPLICA_PREFIX), ReplicaAsk {}, until),
            );
            serde_json::to_value(Status { publications, replicas }).map(Output::json).map_err(|error| broken(&error))
        })
    }
}

/// Asks each of `named` the same.
async fn each<P, R>(context: &Context, named: Vec<(Box<str>, Offered)>, request: R, until: Instant) -> Vec<Asked<R::Reply>>
where
    P: Protocol,
    R: Request<Protocol = P> + Clone + fmt::Debug + std::marker::Sync,
    R::Error: Told,
{
    let ask = |(name, actor): (Box<str>, Offered)| {
        let request = request.clone();
        async move {
            let Offered { name: actor, node, .. } = actor;
            match context.at::<P>(&format!("{actor}@{node}")).call(request, until).await {
                Ok(status) => Asked { name, node, status: Some(status), missing: None },
                Err(error) => Asked { name, node, status: None, missing: Some(told(&error).to_string().into()) },
            }
        }
    };
    stream::iter(named).map(ask).buffered(AT_ONCE).collect().await
}
