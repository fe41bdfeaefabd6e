//! What a request's body may be.

use std::{convert::Infallible, time::Duration};

use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use horos_edge::{Body, Config, Limits, Reason};
use http::Method;

use super::guard_world::{Keys, Site, calm, method, with};

fn site() -> Site {
    Site::with(Config { limits: Limits { body: 1_000, ..calm().limits }, ..calm() }, Keys::usual())
}

fn streamed(parts: usize, each: usize) -> Body {
    let part = Bytes::from(vec![b'x'; each]);
    Body::from_stream(stream::iter(0..parts).map(move |_| Ok::<_, Infallible>(part.clone())))
}

async fn post(site: &Site, path: &str, body: Body) -> super::guard_world::Answer {
    site.ask(method(Method::POST, path).body(body).unwrap()).await
}

#[tokio::test]
async fn a_body_that_says_it_is_too_large_is_refused_before_any_of_it_is_read() {
    let site = site();
    for length in ["1001", "99999999999999999999"] {
        let request = with(method(Method::POST, "/open/length"), &[("content-length", length)]).body(streamed(1, 1)).unwrap();
        let answer = site.ask(request).await;
        let expected = if length.len() > 4 { (400, "bad_length") } else { (413, "body_too_large") };
        assert_eq!((answer.status.as_u16(), answer.code().as_str()), expected);
    }
    for bad in ["-1", "1x", "0x10", "1, 1", "+5", ""] {
        let request = with(method(Method::POST, "/open/length"), &[("content-length", bad)]).body(streamed(1, 1)).unwrap();
        assert_eq!(site.ask(request).await.code(), "bad_length", "{bad}");
    }
    assert_eq!(post(&site, "/open/length", Body::from(vec![0; 1_001])).await.status, 413);
    assert_eq!(site.served(), 0);
    assert_eq!(post(&site, "/open/length", Body::from(vec![0; 1_000])).await.text(), "1000");
}

#[tokio::test]
async fn a_body_that_turns_out_too_large_is_refused_whatever_the_service_makes_of_it() {
    let site = site();
    assert_eq!(post(&site, "/open/length", streamed(10, 100)).await.text(), "1000");
    for path in ["/open/length", "/open/fine"] {
        let answer = post(&site, path, streamed(11, 100)).await;
        assert_eq!((answer.status.as_u16(), answer.code().as_str()), (413, "body_too_large"), "{path}");
        assert!(!answer.text().contains("it broke"));
    }
    assert_eq!(site.metrics.count(Reason::BodyTooLarge), 2);
    // A mounted service may have a limit of its own.
    assert_eq!(post(&site, "/upload/length", streamed(10, 10)).await.text(), "100");
    assert_eq!(post(&site, "/upload/length", streamed(11, 10)).await.status, 413);
}

#[tokio::test(start_paused = true)]
async fn a_body_that_stops_coming_is_not_waited_for() {
    let site = site();
    let started = tokio::time::Instant::now();
    let one = stream::iter([Ok::<_, Infallible>("x")]);
    let answer = post(&site, "/open/length", Body::from_stream(one.clone().chain(stream::pending()))).await;
    assert_eq!((answer.status.as_u16(), answer.code().as_str()), (408, "slow_body"));
    assert_eq!(started.elapsed(), Duration::from_secs(15));
    assert_eq!(site.metrics.count(Reason::SlowBody), 1);
    // A byte a second is not stopping; the deadline of the answer ends it all the same.
    let answer = post(&site, "/open/length", drip()).await;
    assert_eq!(answer.status, 504);
    assert_eq!(started.elapsed(), Duration::from_secs(45));
}

/// A byte a second, for ever.
fn drip() -> Body {
    let drip = stream::iter(0..).then(|_| async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        Ok::<_, Infallible>("x")
    });
    Body::from_stream(drip.boxed())
}

#[tokio::test(start_paused = true)]
async fn a_body_that_drips_has_no_longer_where_the_service_has() {
    let site = site();
    let started = tokio::time::Instant::now();
    let answer = post(&site, "/slow/length", drip()).await;
    assert_eq!((answer.status.as_u16(), answer.code().as_str()), (408, "slow_body"));
    assert_eq!(started.elapsed(), Duration::from_secs(30));
    assert_eq!(post(&site, "/slow/length", streamed(10, 100)).await.text(), "1000");
}
