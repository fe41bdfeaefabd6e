//! What a key or a token has opened ends with it.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use futures_util::future::BoxFuture;
use horos_tools::{Credential, Verify, audit::Audit, http, server::View};
use horos_wire::principal::{Denied, Principal, Proof};
use http_body_util::BodyExt as _;
use hyper::{Response, body::Incoming};
use parking_lot::Mutex;
use serde_json::json;
use tokio::{sync::watch, time::timeout};

use super::{
    session,
    world::{LONG, Site, modern, modern_body},
};

/// Knows everybody, but for those of whom it says otherwise.
#[derive(Default)]
struct Keys {
    says: Mutex<HashMap<String, Denied>>,
    asked: AtomicUsize,
    changes: Option<watch::Sender<u64>>,
}

impl Keys {
    fn say(&self, shown: &str, denied: Denied) {
        self.says.lock().insert(shown.to_owned(), denied);
        if let Some(changes) = &self.changes {
            changes.send_modify(|count| *count += 1);
        }
    }
}

impl Verify for Keys {
    fn verify(&self, shown: &Credential) -> BoxFuture<'static, Result<Arc<Principal>, Denied>> {
        self.asked.fetch_add(1, SeqCst);
        let said = match self.says.lock().get(&*shown.0) {
            Some(denied) => Err(*denied),
            None => {
                let proof = Proof::Key { owner: "ana".into() };
                Ok(Arc::new(Principal { id: "ana".into(), proof, scopes: Box::default(), per_minute: None }))
            }
        };
        Box::pin(std::future::ready(said))
    }

    fn changes(&self) -> Option<watch::Receiver<u64>> {
        self.changes.as_ref().map(watch::Sender::subscribe)
    }
}

async fn site(keys: &Arc<Keys>, proof: Duration) -> Site {
    let options = http::Options { verify: Some(keys.clone()), proof, ..http::Options::default() };
    Site::with(options, View::All, Audit::in_memory()).await
}

/// The stream of a session for what is pushed.
async fn pushed(site: &Site, key: &str, id: &str) -> Response<Incoming> {
    let key = format!("Bearer {key}");
    let ready = json!({ "jsonrpc": "2.0", "method": "notifications/initialized" });
    assert_eq!(site.post(&[("authorization", &key), ("mcp-session-id", id)], &ready).await.status, 202);
    let answer = site.send("GET", &[("authorization", &key), ("mcp-session-id", id), ("accept", "text/event-stream")], "").await;
    assert_eq!(answer.status(), 200);
    answer
}

async fn asks(site: &Site, key: &str, method: &str, params: serde_json::Value, name: Option<&str>) -> Response<Incoming> {
    let key = format!("Bearer {key}");
    let usual = [("authorization", &*key), ("content-type", "application/json"), ("accept", "application/json, text/event-stream")];
    let fields: Vec<_> = usual.into_iter().chain(modern(method, name)).collect();
    site.send("POST", &fields, modern_body(method, params).to_string()).await
}

async fn listens(site: &Site, key: &str) -> Response<Incoming> {
    let answer = asks(site, key, "subscriptions/listen", json!({ "notifications": { "toolsListChanged": true } }), None).await;
    assert_eq!(answer.status(), 200);
    assert_eq!(answer.headers()["content-type"], "text/event-stream");
    answer
}

/// Waits for the end of a stream, in good order.
async fn ends(stream: Response<Incoming>) {
    timeout(LONG, stream.into_body().collect()).await.expect("the stream ends").expect("in good order");
}

/// Waits until a stream tells of a change.
async fn hears(stream: &mut Response<Incoming>) {
    let mut text = String::new();
    while !text.contains("list_changed") {
        let frame = timeout(LONG, stream.frame()).await.expect("it is told").expect("the stream goes on").unwrap();
        text.push_str(std::str::from_utf8(frame.data_ref().unwrap()).unwrap());
    }
}

#[tokio::test]
async fn what_a_key_has_opened_ends_when_it_is_revoked_and_nothing_of_anybody_elses() {
    let keys = Arc::new(Keys { changes: Some(watch::Sender::new(0)), ..Keys::default() });
    let site = site(&keys, Duration::from_secs(3_600)).await;
    let (id, others) = (session(&site, "ana").await, session(&site, "bea").await);
    let (anas, anas_new) = (pushed(&site, "ana", &id).await, listens(&site, "ana").await);
    let (mut beas, mut beas_new) = (pushed(&site, "bea", &others).await, listens(&site, "bea").await);
    let in_hand = asks(&site, "ana", "tools/call", json!({ "name": "wait", "arguments": { "a": 1 } }), Some("wait"));
    let revoking = async {
        site.eventually("the tool runs", |site| site.seen.waiting.load(SeqCst) == 1).await;
        // What cannot be told now ends nothing.
        let asked = keys.asked.load(SeqCst);
        keys.say("ana", Denied::Unavailable);
        site.eventually("it is looked at", |_| keys.asked.load(SeqCst) >= asked + 5).await;
        assert_eq!((site.service.sessions(), site.seen.waiting.load(SeqCst)), (2, 1));
        keys.say("ana", Denied::Revoked);
    };
    let (refused, ()) = tokio::join!(in_hand, revoking);
    assert_eq!(refused.status(), 401);
    ends(anas).await;
    ends(anas_new).await;
    site.eventually("the tool is dropped", |site| site.seen.dropped.load(SeqCst) == 1).await;
    site.eventually("the session is over", |site| site.service.sessions() == 1).await;
    site.registry.take(Vec::new(), Vec::new());
    hears(&mut beas).await;
    hears(&mut beas_new).await;
}

#[tokio::test]
async fn what_runs_out_ends_without_anybody_telling() {
    let keys = Arc::new(Keys::default());
    let site = site(&keys, Duration::from_millis(20)).await;
    let id = session(&site, "ana").await;
    let (stream, listening) = (pushed(&site, "ana", &id).await, listens(&site, "ana").await);
    keys.say("ana", Denied::Expired);
    ends(stream).await;
    ends(listening).await;
    site.eventually("the session is over", |site| site.service.sessions() == 0).await;
}

#[tokio::test]
async fn a_session_lives_on_what_was_shown_for_it_last() {
    let keys = Arc::new(Keys { changes: Some(watch::Sender::new(0)), ..Keys::default() });
    let site = site(&keys, Duration::from_secs(3_600)).await;
    let id = session(&site, "ana/1").await;
    let mut stream = pushed(&site, "ana/1", &id).await;
    let ping = json!({ "jsonrpc": "2.0", "id": 2, "method": "ping" });
    assert_eq!(site.post(&[("authorization", "Bearer ana/2"), ("mcp-session-id", &id)], &ping).await.status, 200);
    let asked = keys.asked.load(SeqCst);
    keys.say("ana/1", Denied::Expired);
    site.eventually("it is looked at", |_| keys.asked.load(SeqCst) > asked).await;
    site.registry.take(Vec::new(), Vec::new());
    hears(&mut stream).await;
    keys.say("ana/2", Denied::Revoked);
    ends(stream).await;
}
