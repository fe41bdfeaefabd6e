//! How many requests may be in hand, whatever they come by.

use std::net::IpAddr;

use horos_edge::{Body, Config, Limits, Reason, Timeouts};
use http::{Method, Response};
use http_body_util::BodyExt as _;
use tokio::{io::AsyncWriteExt as _, task::JoinHandle};

use super::{
    guard_world::{KEY, Keys, OTHER_KEY, Site, calm, get, peer_at, with},
    h3_world::{Door, answer},
    world::{Counting as _, HEADERS, Port, ask, body_of, eventually, frame_of, get as get_http1, quick, read_answer},
};

fn site(in_flight: usize, in_flight_per_address: usize) -> Site {
    let limits = Limits { in_flight, in_flight_per_address, ..calm().limits };
    Site::with(Config { limits, trusted_proxies: vec![("10.0.0.0".parse().unwrap(), 8)], ..calm() }, Keys::usual())
}

/// A request that a service has and does not answer.
async fn hold(site: &Site, from: &str, client: Option<&str>) -> JoinHandle<()> {
    let request = with(get("/open/wait"), &client.map(|client| ("x-forwarded-for", client)).into_iter().collect::<Vec<_>>());
    let (before, from) = (site.served(), peer_at(from));
    let answer = site.app.handle(request.body(Body::empty()).unwrap(), from);
    let held = tokio::spawn(async move { drop(answer.await) });
    eventually("the service has it", || if site.served() > before { Ok(()) } else { Err("not yet".to_owned()) }).await;
    held
}

async fn status(site: &Site, path: &str, from: &str) -> u16 {
    site.ask_from(with(get(path), &[("x-api-key", OTHER_KEY)]).body(Body::empty()).unwrap(), peer_at(from)).await.status.as_u16()
}

#[tokio::test]
async fn beyond_the_limit_a_request_is_told_to_come_back_and_who_looks_after_the_node_is_served() {
    let site = site(2, 2);
    let held = [hold(&site, "192.0.2.1", None).await, hold(&site, "192.0.2.2", None).await];
    let refused = site.ask_from(with(get("/stock/x"), &[("x-api-key", KEY)]).body(Body::empty()).unwrap(), peer_at("192.0.2.3")).await;
    assert_eq!((refused.status.as_u16(), refused.code().as_str(), refused.header("retry-after")), (503, "overloaded", Some("1")));
    assert_eq!(status(&site, "/open/x", "127.0.0.1").await, 503, "this machine's requests take room too");
    for path in ["/livez", "/readyz", "/metrics", "/admin/x"] {
        assert_eq!(status(&site, path, "192.0.2.3").await, 200, "{path}");
    }
    assert_eq!(site.metrics.count(Reason::Overloaded), 2);
    // Whose client goes away gives up its place.
    for request in held {
        request.abort();
        assert!(request.await.unwrap_err().is_cancelled());
        assert_eq!(status(&site, "/open/x", "192.0.2.3").await, 200);
    }
}

#[tokio::test]
async fn an_address_is_refused_before_it_has_all_places() {
    let site = site(100, 2);
    let of_one = [hold(&site, "2001:db8::1", None).await, hold(&site, "2001:db8::2", None).await];
    let refused = site.ask_from(get("/open/x").body(Body::empty()).unwrap(), peer_at("2001:db8::ffff")).await;
    assert_eq!((refused.status.as_u16(), refused.code().as_str(), refused.header("retry-after")), (503, "address_overloaded", Some("1")));
    assert_eq!(status(&site, "/open/x", "192.0.2.1").await, 200, "others are served");
    // A trusted proxy's clients have places of their own, and this machine has as many as there are.
    let proxied = [hold(&site, "10.0.0.1", Some("203.0.113.9")).await, hold(&site, "10.0.0.2", Some("203.0.113.9")).await];
    let from = async |client: &str| {
        let request = with(get("/open/x"), &[("x-forwarded-for", client)]).body(Body::empty()).unwrap();
        site.ask_from(request, peer_at("10.0.0.3")).await.status.as_u16()
    };
    assert_eq!((from("203.0.113.9").await, from("203.0.113.10").await), (503, 200));
    let own = [(); 5].map(|()| "127.0.0.1".parse::<IpAddr>().unwrap());
    for address in own {
        hold(&site, &address.to_string(), None).await;
    }
    assert_eq!(site.metrics.count(Reason::AddressOverloaded), 2);
    for request in of_one.into_iter().chain(proxied) {
        request.abort();
        let _ = request.await;
    }
    assert_eq!(status(&site, "/open/x", "2001:db8::1").await, 200);
}

#[tokio::test]
async fn a_request_is_in_hand_until_its_answer_has_ended_or_is_dropped() {
    let site = site(1, 1);
    let ask = async |path: &str| site.app.handle(get(path).body(Body::empty()).unwrap(), peer_at("192.0.2.1")).await;
    for path in ["/open/stream", "/open/x", "/open/text", "/open/nothing"] {
        let mut answer = ask(path).await;
        assert_eq!(ask("/open/x").await.status(), 503, "{path}");
        while let Some(part) = answer.body_mut().frame().await {
            assert!(part.is_ok());
        }
        let second: Response<_> = ask(path).await;
        assert_ne!(second.status(), 503, "{path}: it has ended, though somebody still has it");
        drop(answer);
        assert_eq!(ask("/open/x").await.status(), 503, "and is given back once: {path}");
    }
}

/// One request at a time, and patience with who takes no answer.
fn one_at_a_time() -> Config {
    let limits = Limits { in_flight: 1, in_flight_per_address: 1, ..quick().limits };
    Config { limits, timeouts: Timeouts { stalled: super::world::LONG, ..quick().timeouts }, ..quick() }
}

#[tokio::test]
async fn over_tcp_what_a_client_has_not_taken_is_in_hand() {
    let port = Port::open(one_at_a_time()).await;
    let (mut http1, mut http2) = (port.http1().await, port.http2_with(&[(4, 1000)]).await);
    // In the service, over HTTP/1.1.
    http1.write_all(b"GET /t/wait HTTP/1.1\r\nhost: localhost\r\n\r\n").await.unwrap();
    port.waiting(1).await;
    http2.write_all(&ask(1, "/t/hello")).await.unwrap();
    let refused = String::from_utf8(body_of(&mut http2, 1).await).unwrap();
    assert!(refused.contains("\"code\":\"overloaded\""), "{refused}");
    port.gate.add_permits(1);
    assert!(read_answer(&mut http1).await.ends_with("waited"));
    // In an answer of which the client takes a part, over HTTP/2.
    http2.write_all(&ask(3, "/t/bytes/5000")).await.unwrap();
    assert!(frame_of(&mut http2, HEADERS).await.is_some());
    let answer = get_http1(&mut http1, "/t/hello").await;
    assert!(answer.starts_with("HTTP/1.1 503 ") && answer.contains("\r\nretry-after: 1\r\n"), "{answer}");
    port.counted(Reason::Overloaded, 2).await;
    drop(http2);
    port.connections(1).await;
    assert!(get_http1(&mut http1, "/t/hello").await.starts_with("HTTP/1.1 200 "), "whoever goes away gives up its place");
}

#[tokio::test]
async fn over_http3_what_a_client_has_not_taken_is_in_hand() {
    let door = Door::open(one_at_a_time());
    let (mut one, mut other) = (door.client().await, door.client().await);
    let mut asked = one.ask(Method::GET, "/t/wait").await;
    asked.finish().await.unwrap();
    door.waiting(1).await;
    let (response, body) = other.get("/t/hello").await;
    assert_eq!((response.status().as_u16(), &response.headers()["retry-after"]), (503, &"1".parse().unwrap()));
    assert!(String::from_utf8_lossy(&body).contains("\"code\":\"overloaded\""));
    door.told.gate.add_permits(1);
    assert_eq!(answer(&mut asked).await.1, "waited");
    let mut endless = one.ask(Method::GET, "/t/endless").await;
    endless.finish().await.unwrap();
    assert_eq!(endless.recv_response().await.unwrap().status(), 200);
    assert_eq!(other.get("/t/hello").await.0.status(), 503);
    endless.stop_sending(h3::error::Code::H3_REQUEST_CANCELLED);
    door.dropped(1).await;
    assert_eq!(other.get("/t/hello").await.0.status(), 200);
    assert_eq!(door.counts(), [("overloaded", 2)]);
}
