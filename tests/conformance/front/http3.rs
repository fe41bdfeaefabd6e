//! A front that speaks HTTP/3.

use std::sync::Arc;

use anyhow::{Context as _, Result};
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{Response, Uri};
use bytes::Buf as _;
use futures_util::StreamExt as _;
use h3::server::{self, RequestResolver};
use quinn::{Endpoint, Incoming};
use tokio::task::JoinSet;

/// Passes everything on to the suite's server at `target`, until it is dropped.
pub(super) async fn serve(endpoint: Endpoint, target: Arc<Uri>) {
    let mut connections = JoinSet::new();
    while let Some(incoming) = endpoint.accept().await {
        connections.spawn(requests(incoming, target.clone()));
    }
}

async fn requests(incoming: Incoming, target: Arc<Uri>) -> Result<()> {
    let mut connection = server::Connection::new(h3_quinn::Connection::new(incoming.await?)).await?;
    let mut asked = JoinSet::new();
    while let Some(resolver) = connection.accept().await? {
        asked.spawn(answer(resolver, target.clone()));
    }
    Ok(())
}

async fn answer(resolver: RequestResolver<h3_quinn::Connection, Bytes>, target: Arc<Uri>) -> Result<()> {
    let (head, stream) = resolver.resolve_request().await?;
    let (mut send, receive) = stream.split();
    let read = futures_util::stream::unfold(receive, |mut stream: server::RequestStream<_, Bytes>| async {
        let part = match stream.recv_data().await {
            Ok(Some(mut part)) => Ok(part.copy_to_bytes(part.remaining())),
            Ok(None) => return None,
            Err(error) => Err(std::io::Error::other(error)),
        };
        Some((part, stream))
    });
    let answer = super::pass(State(target), head.map(|()| Body::from_stream(read))).await;
    let (head, body) = answer.into_parts();
    send.send_response(Response::from_parts(head, ())).await?;
    let mut parts = body.into_data_stream();
    while let Some(part) = parts.next().await {
        send.send_data(part?).await?;
    }
    send.finish().await.context("the end")
}
