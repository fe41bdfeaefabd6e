//! Redirects that are followed, as far as they may be.

use std::sync::Arc;

use bytes::Bytes;
use horos_egress::{Egress, EgressError, Limits, RedirectError, Target};
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Empty, Full, StreamBody};
use hyper::body::Incoming;
use parking_lot::Mutex;

use super::{
    server::{Answer, full, plain},
    world::{Internet, get, limits, post, read},
};

#[derive(Clone, Debug)]
struct Seen {
    method: Method,
    host: String,
    path: String,
    headers: HeaderMap,
    body: Bytes,
}

type Log = Arc<Mutex<Vec<Seen>>>;

/// `/302?where` redirects there, anything else says what it is; both write down what came.
async fn site(log: Log, request: Request<Incoming>) -> Answer {
    let (parts, body) = request.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    let host = parts.headers["host"].to_str().unwrap().to_owned();
    let path = parts.uri.path().to_owned();
    log.lock().push(Seen { method: parts.method, host, path: path.clone(), headers: parts.headers, body });
    match path[1..].parse::<u16>() {
        Ok(status) => full(
            Response::builder()
                .status(StatusCode::from_u16(status).unwrap())
                .header("location", parts.uri.query().unwrap())
                .body("elsewhere")
                .unwrap(),
        ),
        Err(_) => full(Response::new("here")),
    }
}

async fn internet() -> (Egress, Log, Arc<Internet>) {
    let internet = Internet::new().await;
    let log = Log::default();
    let its = log.clone();
    let server = plain(move |request| site(its.clone(), request)).await;
    internet.site("a.example", "93.184.216.34", server.address);
    internet.site("b.example", "93.184.216.35", server.address);
    (internet.egress(), log, internet)
}

fn following(redirects: u8) -> Limits {
    Limits { redirects, ..limits() }
}

#[tokio::test]
async fn a_redirect_is_followed_as_far_as_the_caller_says() {
    let (egress, log, _internet) = internet().await;
    // What is behind a question mark is the next hop.
    let nested = "http://a.example/302?/301?/307?/here";
    assert_eq!(read(&egress, nested, &following(3)).await.unwrap(), "here");
    assert_eq!(log.lock().iter().map(|it| it.path.clone()).collect::<Vec<_>>(), ["/302", "/301", "/307", "/here"]);
    assert_eq!(egress.status().hosts[0].opened, 1, "one connection carries them all");
    let error = read(&egress, nested, &following(2)).await.unwrap_err();
    let EgressError::Redirect { hop: 3, source, .. } = &error else { panic!("{error}") };
    assert!(matches!(**source, RedirectError::TooMany { limit: 2 }) && error.is_permanent() && error.may_have_been_sent());
    assert_eq!(get(&egress, nested, &following(0)).await.unwrap().status(), StatusCode::FOUND);
}

#[tokio::test]
async fn keys_do_not_go_along_to_another_origin() {
    let (egress, log, _internet) = internet().await;
    let target: Target = "http://a.example/302?/302?http://b.example/here".parse().unwrap();
    let request = Request::get(target.to_uri())
        .header("authorization", "Bearer secret")
        .header("cookie", "secret")
        .header("x-api-key", "secret")
        .header("accept", "text/plain");
    egress.send(request.body(Empty::<Bytes>::new()).unwrap(), &following(2)).await.unwrap();
    let log = log.lock();
    let keys = ["authorization", "cookie", "x-api-key"];
    assert!(log[..2].iter().all(|hop| hop.host == "a.example" && keys.iter().all(|key| hop.headers.contains_key(*key))));
    assert_eq!(log[2].host, "b.example");
    assert!(keys.iter().all(|key| !log[2].headers.contains_key(*key)) && log[2].headers["accept"] == "text/plain");
}

#[tokio::test]
async fn a_post_becomes_a_get_where_the_status_says_so_and_is_sent_again_where_it_does_not() {
    let (egress, log, _internet) = internet().await;
    for (status, method, body) in
        [(301, Method::GET, ""), (302, Method::GET, ""), (303, Method::GET, ""), (307, Method::POST, "body"), (308, Method::POST, "body")]
    {
        log.lock().clear();
        let answer = post(&egress, &format!("http://a.example/{status}?/here"), "body", &following(1)).await.unwrap();
        assert_eq!(answer.status(), StatusCode::OK);
        let log = log.lock();
        assert_eq!((&log[0].method, &log[0].body[..]), (&Method::POST, &b"body"[..]));
        assert_eq!((&log[1].method, &log[1].body[..]), (&method, body.as_bytes()), "{status}");
        assert!(body.is_empty() || log[1].headers["content-length"] == "4");
    }
}

#[tokio::test]
async fn a_body_goes_to_no_origin_that_the_caller_did_not_name() {
    let (egress, log, _internet) = internet().await;
    let error = post(&egress, "http://a.example/307?http://b.example/here", "body", &following(1)).await.unwrap_err();
    let EgressError::Redirect { source, .. } = &error else { panic!("{error}") };
    assert!(matches!(**source, RedirectError::BodyElsewhere), "{error}");
    assert_eq!(log.lock().len(), 1);
}

#[tokio::test]
async fn a_body_that_cannot_be_sent_again_makes_the_redirect_the_response() {
    let (egress, log, _internet) = internet().await;
    let target: Target = "http://a.example/307?/here".parse().unwrap();
    let frames = futures_of(["bo", "dy"]);
    let answer = egress.send(Request::post(target.to_uri()).body(StreamBody::new(frames)).unwrap(), &following(1)).await.unwrap();
    assert_eq!(answer.status(), StatusCode::TEMPORARY_REDIRECT);
    assert_eq!(answer.into_body().bytes().await.unwrap(), "elsewhere");
    assert_eq!(log.lock()[0].body, "body");
    let large = Full::new(Bytes::from(vec![0; 65 * 1024]));
    let answer = egress.send(Request::post(target.to_uri()).body(large).unwrap(), &following(1)).await.unwrap();
    assert_eq!(answer.status(), StatusCode::TEMPORARY_REDIRECT);
}

fn futures_of(
    parts: [&'static str; 2],
) -> impl futures_util::Stream<Item = Result<http_body::Frame<Bytes>, std::convert::Infallible>> + Send + 'static {
    futures_util::stream::iter(parts.map(|part| Ok(http_body::Frame::data(Bytes::from_static(part.as_bytes())))))
}
