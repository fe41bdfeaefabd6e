//! A client over HTTP/3: the same server and the same promises by another way.

use std::{
    net::{SocketAddr, UdpSocket},
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use bytes::{Buf as _, Bytes};
use h3::server::RequestStream;
use h3_quinn::BidiStream;
use horos_tools::client::{ClientError, Options, Times};
use horos_wire::{NoEffect, Unknown};
use http_body_util::{BodyExt as _, Full};
use quinn::{Endpoint, VarInt};
use serde_json::json;
use tokio::task::{JoinHandle, JoinSet};

use super::{
    client::{call, within},
    client_quic::certified,
    client_world::{Age, Book, LONG, Server, World, eventually, service, times, until},
};

/// rmcp's server over HTTP/3, at one address for as long as the test lasts; it can die there and come back.
struct Place {
    book: Book,
    json: bool,
    requests: Arc<AtomicUsize>,
    config: quinn::ServerConfig,
    authority: PathBuf,
    address: SocketAddr,
    _directory: tempfile::TempDir,
}

impl Place {
    fn new(age: Age, json: bool) -> (Self, Life) {
        let directory = tempfile::tempdir().unwrap();
        let (config, authority) = certified(directory.path(), b"h3");
        let any = "127.0.0.1:0".parse().unwrap();
        let mut place =
            Self { book: Book::new(age), json, requests: Arc::default(), config, authority, address: any, _directory: directory };
        let life = place.open();
        place.address = life.endpoint.local_addr().unwrap();
        (place, life)
    }

    fn url(&self) -> String {
        format!("h3://{}/mcp", self.address)
    }

    async fn world(&self) -> World {
        World::believing(&[self.address], std::slice::from_ref(&self.authority)).await
    }

    /// A life of the server.
    fn open(&self) -> Life {
        let endpoint = Endpoint::server(self.config.clone(), self.address).unwrap();
        let (accepting, service, requests) = (endpoint.clone(), service(&self.book, self.json), self.requests.clone());
        let serving = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Some(incoming) = accepting.accept().await {
                let (service, requests) = (service.clone(), requests.clone());
                connections.spawn(async move {
                    let Ok(connection) = incoming.await else { return };
                    let Ok(mut connection) = h3::server::Connection::new(h3_quinn::Connection::new(connection)).await else { return };
                    let mut asked = JoinSet::new();
                    while let Ok(Some(resolver)) = connection.accept().await {
                        let (service, requests) = (service.clone(), requests.clone());
                        asked.spawn(async move {
                            let Ok((request, mut stream)) = resolver.resolve_request().await else { return };
                            requests.fetch_add(1, SeqCst);
                            let Some(body) = whole(&mut stream).await else { return };
                            answer(stream, service.handle(request.map(|()| Full::new(body))).await).await;
                        });
                    }
                });
            }
        });
        Life { endpoint, serving }
    }
}

struct Life {
    endpoint: Endpoint,
    serving: JoinHandle<()>,
}

impl Life {
    /// It dies, and whoever is connected is told; its address is free.
    async fn end(self) {
        let Self { endpoint, serving } = self;
        let address = endpoint.local_addr().unwrap();
        endpoint.close(VarInt::from_u32(0x100), b"");
        endpoint.wait_idle().await;
        serving.abort();
        let _ = serving.await;
        drop(endpoint);
        eventually(|| (UdpSocket::bind(address).is_ok(), address)).await;
    }
}

async fn whole(stream: &mut RequestStream<BidiStream<Bytes>, Bytes>) -> Option<Bytes> {
    let mut whole = Vec::new();
    while let Some(mut part) = stream.recv_data().await.ok()? {
        whole.extend_from_slice(&part.copy_to_bytes(part.remaining()));
    }
    Some(whole.into())
}

async fn answer<B>(mut stream: RequestStream<BidiStream<Bytes>, Bytes>, response: http::Response<B>)
where
    B: http_body::Body<Data = Bytes, Error = std::convert::Infallible> + Send,
{
    let (parts, body) = response.into_parts();
    let mut body = std::pin::pin!(body);
    if stream.send_response(http::Response::from_parts(parts, ())).await.is_err() {
        return;
    }
    while let Some(Ok(frame)) = body.frame().await {
        if stream.send_data(frame.into_data().unwrap_or_default()).await.is_err() {
            return;
        }
    }
    let _ = stream.finish().await;
}

#[tokio::test]
async fn a_tool_is_called_over_http_3_in_both_generations_and_both_forms_of_answer() {
    for (age, version) in [(Age::Old, "2025-11-25"), (Age::New, "2026-07-28")] {
        for json in [false, true] {
            let (place, life) = Place::new(age, json);
            let world = place.world().await;
            let client = world.client(&place.url());
            let result = call(&client, "add", json!({"a": 2, "b": 3})).await.unwrap();
            assert_eq!(result.structured_content, Some(json!({"sum": 5})), "{age:?} {json}");
            assert_eq!(client.tools(until(LONG)).await.unwrap().len(), 7);
            let status = client.status();
            assert_eq!((status.state, status.version.as_deref(), &*status.endpoint), ("connected", Some(version), &*place.url()));
            // What the server tells of by itself comes by a stream that stays open.
            place.book.add_tool("new").await;
            eventually(|| (client.status().tools == Some(8), client.status())).await;
            let late = within(&client, "slow", json!({}), Duration::from_millis(200)).await.unwrap_err();
            assert_eq!(late, Unknown::DeadlinePassed.into(), "{age:?} {json}");
            if age == Age::Old {
                // Of the new age the end of the exchange says it, which this server does not look for before it has something to say.
                eventually(|| (place.book.cancelled() == 1, place.book.cancelled())).await;
            }
            assert_eq!((client.status().connections, life.endpoint.open_connections()), (1, 1));
            assert!(place.requests.load(SeqCst) >= 4);
        }
    }
}

#[tokio::test]
async fn a_server_over_http_3_that_dies_is_found_again_where_it_was() {
    for age in [Age::Old, Age::New] {
        let (place, life) = Place::new(age, false);
        let world = place.world().await;
        let client = world.client(&place.url());
        call(&client, "add", json!({"a": 1})).await.unwrap();
        let in_hand = tokio::spawn({
            let client = client.clone();
            async move { call(&client, "slow", json!({})).await }
        });
        eventually(|| (place.book.calls() == 2, place.book.calls())).await;
        life.end().await;
        let cut = in_hand.await.unwrap().unwrap_err();
        assert!(matches!(&cut, ClientError::Unknown { .. }), "{age:?}: it was written, and nobody knows: {cut:?}");
        let away = within(&client, "add", json!({}), Duration::from_millis(400)).await.unwrap_err();
        assert!(matches!(&away, ClientError::NoEffect { .. }), "{age:?}: it was never written: {away:?}");

        let _life = place.open();
        let limit = until(LONG);
        loop {
            match call(&client, "add", json!({"a": 4})).await {
                Ok(result) => break assert_eq!(result.structured_content, Some(json!({"sum": 4}))),
                Err(ClientError::NoEffect { retry_after, .. }) => {
                    assert!(std::time::Instant::now() < limit);
                    tokio::time::sleep(retry_after.unwrap_or(Duration::from_millis(20))).await;
                }
                Err(other) => panic!("{age:?} {other:?}"),
            }
        }
        assert_eq!(place.book.calls(), 3, "{age:?}: nothing was called twice");
    }
}

#[tokio::test]
async fn what_says_http_3_is_asked_by_no_other_way_and_by_the_same_rules() {
    let (place, _life) = Place::new(Age::New, false);
    let at_once = || Options { times: Times { grace: Duration::ZERO, ..times() }, ..Options::default() };
    // Neither where nobody may go, nor where nobody vouches for whoever answers.
    for world in [World::new(&[]).await, World::new(&[place.address]).await] {
        let refused = call(&world.with(&place.url(), at_once()), "add", json!({})).await.unwrap_err();
        assert!(matches!(&refused, ClientError::NoEffect { why: NoEffect::NoRoute(_) | NoEffect::NotAllowed(_), .. }), "{refused:?}");
    }
    assert_eq!(place.book.calls(), 0);
    // A server over TCP at the same port is not the one that was named, and the other way round.
    let book = Book::new(Age::New);
    let server = Server::start(&place.address.to_string(), &book, false, None).await;
    let world = place.world().await;
    let (over_quic, over_tcp) = (world.client(&place.url()), world.client(&server.url()));
    call(&over_quic, "add", json!({})).await.unwrap();
    assert_eq!((place.book.calls(), book.calls()), (1, 0));
    call(&over_tcp, "add", json!({})).await.unwrap();
    assert_eq!((place.book.calls(), book.calls()), (1, 1));
    let endpoints: Vec<_> = world.clients.list().into_iter().map(|status| status.endpoint).collect();
    assert_eq!(endpoints, [place.url().into(), server.url().into()]);
    // Where HTTP/3 is said and only TCP is there, nothing is sent.
    let alone = Book::new(Age::New);
    let server = Server::start("127.0.0.1:0", &alone, false, None).await;
    let world = World::new(&[server.address]).await;
    let url = server.url().replace("http://", "h3://");
    let refused = within(&world.with(&url, at_once()), "add", json!({}), Duration::from_millis(500)).await.unwrap_err();
    assert!(matches!(&refused, ClientError::NoEffect { .. }), "{refused:?}");
    assert_eq!(alone.calls(), 0);
}
