//! Services reached over HTTP: what is said there, and what the answers of servers that are no Horos mean.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures_util::{Stream, stream};
use horos_wire::{CallContext, CallError, NoEffect, TraceId, Unknown, context::Claims};
use http::{HeaderMap, Request, Response, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Incoming;
use parking_lot::Mutex;
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
};

use super::gateway_world::{LONG, MEMORY, OutBody, Site, resident, serve, whole};

/// The calls that ask `service` for nothing.
async fn call(site: &Site, service: &str) -> Result<Value, CallError<Value>> {
    site.router.call_json(&site.context, service, r#"{"ask": {}}"#, LONG).await
}

fn effect(outcome: Result<Value, CallError<Value>>) -> String {
    let name = |text: String| text.split(['(', ' ']).next().unwrap().to_owned();
    match outcome {
        Ok(reply) => reply.to_string(),
        Err(CallError::NoEffect(why)) => name(format!("{why:?}")),
        Err(CallError::Unknown(why)) => format!("?{}", name(format!("{why:?}"))),
        Err(CallError::Failed(error)) => format!("own {error}"),
    }
}

fn secret(directory: &Path, text: &str) {
    let new = directory.join("new");
    fs::write(&new, text).unwrap();
    fs::set_permissions(&new, fs::Permissions::from_mode(0o600)).unwrap();
    fs::rename(&new, directory.join("partner")).unwrap();
}

#[tokio::test]
async fn what_goes_with_a_call_goes_with_the_request_and_a_users_token_does_not() {
    let heads: Arc<Mutex<Vec<(String, HeaderMap, Bytes)>>> = Arc::default();
    let kept = heads.clone();
    let server = serve(move |request: Request<Incoming>| {
        let kept = kept.clone();
        async move {
            let (parts, body) = request.into_parts();
            let body = body.collect().await.unwrap().to_bytes();
            kept.lock().push((format!("{} {}", parts.method, parts.uri), parts.headers, body));
            Ok(Response::new(whole("")))
        }
    })
    .await;
    let site = Site::new(&[server]).await;
    let url = format!("http://{server}/v1/stock?x=1");
    let with_secret = r#"{"authorization": {"file": "partner"}, "content_type": "application/vnd.shop+json"}"#;
    let rows = [("plain", "http", &*url, "{}"), ("secured", "http", &url, with_secret)];
    assert_eq!(site.routes(&rows).wrong, 1, "there is no such secret yet");
    secret(site.secrets.path(), "Bearer one\n");
    assert_eq!(site.routes(&rows).wrong, 0, "it is taken up when there is");

    let claims =
        Claims { idempotency_key: Some("key_1 k7".into()), user: Some("ana".into()), token: Some("a.b.c".into()), ..Claims::default() };
    let deadline = Some(Instant::now() + Duration::from_secs(5));
    let context = CallContext { trace: TraceId(0xabc), deadline, hops: 3, claims: Some(Arc::new(claims)) };
    let context = site.context.clone().with_call(context);
    let message = r#"{"ask": { "sku" :"tea"}}"#;
    assert_eq!(site.router.call_json(&context, "plain", message, LONG).await.unwrap(), Value::Null, "a server with nothing to say");
    for text in ["Bearer one", "Bearer two"] {
        secret(site.secrets.path(), text);
        site.router.call_json(&site.context, "secured", message, LONG).await.unwrap();
    }
    secret(site.secrets.path(), "Bearer 3");
    fs::set_permissions(site.secrets.path().join("partner"), fs::Permissions::from_mode(0o644)).unwrap();
    let exposed = site.router.call_json(&site.context, "secured", message, LONG).await.unwrap_err();
    assert!(
        matches!(&exposed, CallError::NoEffect(NoEffect::NoRoute(why)) if why.contains("600") && !why.contains("Bearer")),
        "{exposed:?}"
    );

    let heads = heads.lock();
    assert_eq!(heads.len(), 3);
    let (line, head, body) = &heads[0];
    assert_eq!((&**line, &**body), ("POST /v1/stock?x=1", message.as_bytes()), "the payload as it is");
    let field = |name: &str| head.get(name).map(|value| value.to_str().unwrap());
    assert_eq!(field("content-type"), Some("application/json"));
    assert!(field("traceparent").is_some_and(|text| text.starts_with("00-00000000000000000000000000000abc-") && text.ends_with("-00")));
    assert!(field("request-timeout").is_some_and(|text| text.parse::<f64>().is_ok_and(|left| left > 4.0 && left < 5.001)), "{head:?}");
    assert_eq!((field("horos-hops"), field("authorization")), (Some("4"), None));
    assert!(field("idempotency-key").is_some_and(|key| key.starts_with("sha256-")), "whose key it is, is nobody's business there");
    assert!(!format!("{head:?}").contains("a.b.c") && !format!("{head:?}").contains("ana"));
    for ((_, head, _), secret) in heads[1..].iter().zip(["Bearer one", "Bearer two"]) {
        let field = |name: &str| head[name].to_str().unwrap();
        assert_eq!((field("authorization"), field("content-type")), (secret, "application/vnd.shop+json"));
    }
}

#[tokio::test]
async fn an_answer_means_what_its_server_can_have_done() {
    // The answer is what the path says: a status, then what comes with it.
    let server = serve(|request: Request<Incoming>| async move {
        let parts: Vec<&str> = request.uri().path()[1..].split('-').collect();
        let mut answer = Response::new(whole(if parts.contains(&"json") { r#"{"left":3}"# } else { "<p>internal" }));
        *answer.status_mut() = StatusCode::from_u16(parts[0].parse().unwrap()).unwrap();
        if parts.contains(&"json") {
            answer.headers_mut().insert("content-type", "application/json".parse().unwrap());
        }
        if parts.contains(&"later") {
            answer.headers_mut().insert("retry-after", "120".parse().unwrap());
        }
        answer.headers_mut().insert("location", "/200-json".parse().unwrap());
        Ok(answer)
    })
    .await;
    let site = Site::new(&[server]).await;
    let cases = [
        ("200-json", "{\"left\":3}"),
        ("201-json", "{\"left\":3}"),
        ("200", "?MalformedReply"),
        ("429", "Overloaded"),
        ("503-later", "Overloaded"),
        ("503", "?MalformedReply"),
        ("404", "NoSuchActor"),
        ("405", "NoSuchActor"),
        ("410", "NoSuchActor"),
        ("307", "NoSuchActor"),
        ("302", "?MalformedReply"),
        ("401", "NotAllowed"),
        ("403", "NotAllowed"),
        ("413", "TooLarge"),
        ("400", "Malformed"),
        ("415", "Malformed"),
        ("422", "Malformed"),
        ("409-json", "own {\"left\":3}"),
        ("422-json", "own {\"left\":3}"),
        ("408", "?DeadlinePassed"),
        ("504", "?DeadlinePassed"),
        ("500-json", "?MalformedReply"),
        ("502", "?PeerLost"),
    ];
    let urls: Vec<String> = cases.iter().map(|(path, _)| format!("http://{server}/{path}")).collect();
    let rows: Vec<_> = cases.iter().zip(&urls).map(|((path, _), url)| (*path, "http", &**url, "{}")).collect();
    site.routes(&rows);
    for (path, wanted) in cases {
        assert_eq!(effect(call(&site, path).await), wanted, "{path}");
    }
    // What a server asks for, its breaker holds to.
    match call(&site, "503-later").await {
        Err(CallError::NoEffect(NoEffect::CircuitOpen { retry_after })) => assert!(retry_after > Duration::from_secs(100)),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn what_is_not_reached_had_no_effect_and_what_is_lost_may_have_had_one() {
    // Reads a request, and hangs up.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let rude = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            let _ = socket.read(&mut [0; 1024]).await;
        }
    });
    // Speaks something else.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let strange = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            let _ = socket.read(&mut [0; 1024]).await;
            let _ = socket.write_all(b"220 mail.example.org ESMTP\r\n").await;
        }
    });
    let closed = { TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap() };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let inside = listener.local_addr().unwrap();
    let knocked = Arc::new(AtomicUsize::new(0));
    let counted = knocked.clone();
    tokio::spawn(async move {
        while listener.accept().await.is_ok() {
            counted.fetch_add(1, Relaxed);
        }
    });

    let site = Site::new(&[rude, strange, closed]).await;
    let url = |address: &dyn std::fmt::Display| format!("http://{address}/");
    let (rude, strange, closed, inside) = (url(&rude), url(&strange), url(&closed), url(&inside));
    site.routes(&[
        ("rude", "http", &rude, "{}"),
        ("strange", "http", &strange, "{}"),
        ("closed", "http", &closed, "{}"),
        ("inside", "http", &inside, "{}"),
        ("metadata", "http", "http://169.254.169.254/", "{}"),
    ]);
    assert_eq!(effect(call(&site, "rude").await), "?PeerLost");
    assert_eq!(effect(call(&site, "strange").await), "?MalformedReply");
    for name in ["closed", "inside", "metadata"] {
        assert_eq!(effect(call(&site, name).await), "NoRoute", "{name}");
    }
    assert_eq!(knocked.load(Relaxed), 0, "what may not be reached is not even knocked at");
}

#[tokio::test]
async fn an_answer_without_end_is_cut_and_one_that_drips_has_its_deadline() {
    let _alone = MEMORY.write().await;
    static PART: [u8; 65_536] = [b' '; 65_536];
    let server = serve(|request: Request<Incoming>| async move {
        let drips = request.uri().path() == "/drips";
        let parts = stream::unfold(0_u64, move |number| async move {
            let part = if drips {
                tokio::time::sleep(Duration::from_millis(20)).await;
                Bytes::from_static(b" ")
            } else {
                Bytes::from_static(&PART)
            };
            Some((Ok::<_, Box<dyn std::error::Error + Send + Sync>>(Frame::data(part)), number + 1))
        });
        let body: OutBody = BodyExt::boxed(StreamBody::new(Box::pin(sync(parts))));
        Ok(Response::new(body))
    })
    .await;
    let site = Site::new(&[server]).await;
    let short = r#"{"timeout_ms": 400}"#;
    site.routes(&[("endless", "http", &format!("http://{server}/"), "{}"), ("drips", "http", &format!("http://{server}/drips"), short)]);
    let before = resident();
    let outcome = call(&site, "endless").await;
    assert!(matches!(outcome, Err(CallError::Unknown(Unknown::ReplyTooLarge(_)))), "{outcome:?}");
    assert!(resident() < before + 64, "16 MiB are read at most");
    let began = Instant::now();
    assert_eq!(effect(call(&site, "drips").await), "?DeadlinePassed");
    assert!(began.elapsed() < Duration::from_secs(5));
}

/// A stream that is polled by one at a time, as a body that is boxed has to be.
fn sync<S: Stream<Item: Send> + Send>(inner: S) -> impl Stream<Item = S::Item> + Send + Sync {
    struct Alone<S>(Mutex<std::pin::Pin<Box<S>>>);
    impl<S: Stream> Stream for Alone<S> {
        type Item = S::Item;
        fn poll_next(mut self: std::pin::Pin<&mut Self>, cx: &mut std::task::Context<'_>) -> std::task::Poll<Option<S::Item>> {
            self.0.get_mut().as_mut().poll_next(cx)
        }
    }
    Alone(Mutex::new(Box::pin(inner)))
}

#[tokio::test]
async fn a_typed_call_has_its_own_error_over_http_too() {
    let _much = MEMORY.read().await;
    let far = Site::new(&[]).await;
    let near = Site::new(&[far.address]).await;
    far.routes(&[("desk", "local", "", r#"{"gateway": "public"}"#)]);
    near.routes(&[("desk", "http", &far.url("/desk"), "{}")]);
    let desk = near.router.at::<super::gateway_world::Desk>(&near.context, "desk");
    let said = desk.call(super::gateway_world::Say { text: "é \"quoted\"".to_owned() }, LONG).await;
    assert_eq!(said.unwrap(), "é \"quoted\"");
    let refused = desk.call(super::gateway_world::Buy {}, LONG).await;
    assert_eq!(refused, Err(CallError::Failed(super::gateway_world::OutOf::Stock { left: 3 })));
    let fell = desk.call(super::gateway_world::Fall {}, LONG).await;
    assert_eq!(fell, Err(CallError::Unknown(Unknown::ActorDied)));
    let large = desk.call(super::gateway_world::Letters { count: 17 << 20 }, LONG).await;
    assert!(matches!(large, Err(CallError::Unknown(_))), "{large:?}");
    assert_eq!(call(&near, "desk").await.unwrap_err(), CallError::NoEffect(NoEffect::Malformed("127.0.0.1".into())));
}
