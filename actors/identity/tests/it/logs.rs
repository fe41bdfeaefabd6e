//! What stands in the log: who did what to which key, and nothing that opens anything.

use std::{fmt::Write as _, sync::Arc};

use horos_wire::protocol::keys::{IssueToken, List, Revoke, RevokeToken, Which};
use parking_lot::Mutex;
use tracing::{
    Event, Metadata, Subscriber,
    field::{Field, Visit},
    span::{Attributes, Id, Record},
};

use super::world::{owner, right, until};

/// Keeps every line of the process, other tests' among them.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<String>>);

struct Line<'a>(&'a mut String);

impl Visit for Line<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        write!(self.0, "{field}={value:?} ").unwrap();
    }
}

impl Subscriber for Lines {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }
    fn new_span(&self, span: &Attributes<'_>) -> Id {
        span.record(&mut Line(&mut self.0.lock()));
        Id::from_u64(1)
    }
    fn record(&self, _: &Id, values: &Record<'_>) {
        values.record(&mut Line(&mut self.0.lock()));
    }
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn event(&self, event: &Event<'_>) {
        let mut lines = self.0.lock();
        write!(lines, "\n{} ", event.metadata().target()).unwrap();
        event.record(&mut Line(&mut lines));
    }
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}
}

#[tokio::test]
async fn the_audit_names_the_caller_and_the_key_and_no_line_holds_a_secret() {
    let lines = Lines::default();
    // For all threads: one of a single thread would leave it to the first thread that comes by whether a line is written at all.
    tracing::subscriber::set_global_default(lines.clone()).unwrap();
    let (bo, _, _) = owner().await;
    let (key, id) = bo.key("ana").await;
    let ask = IssueToken { user: "bob".into(), scopes: vec![right("stock:read")], audience: None, expires: None };
    let issued = bo.ask(ask).await.unwrap();
    let token = issued.token.reveal().to_owned();
    bo.ask(List { owner: None, all: true, after: None }).await.unwrap();
    until(|| bo.denied(&token), Option::is_none).await;
    bo.verifier.check(&key).unwrap();
    // A key found lying about is revoked by its text, once in vain.
    bo.ask(Revoke { which: Which::Key(key.as_str().into()) }).await.unwrap();
    bo.ask(Revoke { which: Which::Key(format!("hk_{}", "5".repeat(64)).into()) }).await.unwrap_err();
    bo.ask(RevokeToken { jti: issued.jti.clone(), until: None }).await.unwrap();
    until(|| bo.denied(&key).and(bo.denied(&token)), Option::is_some).await;
    let file = std::fs::read_to_string(bo.directory.path().join(horos_identity::ISSUER_FILE)).unwrap();
    let hash = horos_identity::hash(&key).unwrap();
    bo.stop().await;
    let text = lines.0.lock().clone();
    let (key_id, jti) = (format!("key={id} "), format!("jti=\"{}\"", issued.jti));
    let revoked = jti.replace('"', "");
    for (line, what) in
        [("key created", &*key_id), ("token issued", &jti), ("keys listed", ""), ("key revoked", &key_id), ("token revoked", &revoked)]
    {
        let found = text.lines().find(|found| found.contains(line) && found.contains(what));
        let found = found.unwrap_or_else(|| panic!("no {line:?} with {what:?} in {text}"));
        assert!(found.starts_with("horos_identity::audit") && found.contains("caller=ana"), "{found}");
    }
    let signature = token.rsplit('.').next().unwrap();
    for secret in [&key[11..], signature, file.trim(), &hex::encode(hash.0), &format!("{hash:?}"), &"5".repeat(20)] {
        assert!(!text.contains(secret), "{secret} in {text}");
    }
}
