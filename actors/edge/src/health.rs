//! Whether the node is ready for requests, and what stands in the way: named conditions with their reasons.
//!
//! Whoever depends on something says here whether it holds; `/readyz` only reads. `/livez` is not asked here: that it
//! answers at all is the answer. **Reasons are public**: `/readyz` asks for no key, so they name no path, address or secret.

use std::{collections::BTreeMap, sync::Arc};

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};
use parking_lot::Mutex;
use serde::Serialize;

use crate::{Body, Drain, Phase};

/// Most conditions that are listed; one more makes the node not ready, as it could hide anything.
pub const MAX_CONDITIONS: usize = 256;
/// Longest reason in bytes; the rest is cut off.
pub const MAX_REASON: usize = 512;

/// How a condition stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Standing {
    /// It holds.
    Fine,
    /// It does not, and requests are served all the same.
    Degraded,
    /// It does not, and the node is not ready.
    Failing,
}

/// One condition, as `/readyz?verbose` lists it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Condition {
    /// Its name.
    pub name: Box<str>,
    /// How it stands.
    pub standing: Standing,
    /// Why it does not hold.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<Box<str>>,
}

/// The named conditions of a node. Cheap to clone: every clone sees the same ones.
#[derive(Clone, Debug, Default)]
pub struct Conditions(Arc<Mutex<Listed>>);

#[derive(Debug, Default)]
struct Listed {
    conditions: BTreeMap<Box<str>, (Standing, Option<Box<str>>)>,
    /// A condition had no room.
    overflowed: bool,
}

impl Conditions {
    /// The condition `name` does not hold, for `reason`: the node is not ready.
    pub fn set(&self, name: &str, reason: &str) {
        self.put(name, Standing::Failing, Some(reason));
    }

    /// The condition `name` does not hold, for `reason`, and the node serves requests all the same.
    pub fn note(&self, name: &str, reason: &str) {
        self.put(name, Standing::Degraded, Some(reason));
    }

    /// The condition `name` holds; it is listed as fine from now on.
    pub fn clear(&self, name: &str) {
        self.put(name, Standing::Fine, None);
    }

    /// Nobody asks for the condition `name` any longer.
    pub fn forget(&self, name: &str) {
        self.0.lock().conditions.remove(name);
    }

    /// Whether none is failing.
    pub fn ready(&self) -> bool {
        let listed = self.0.lock();
        !listed.overflowed && listed.conditions.values().all(|(standing, _)| *standing != Standing::Failing)
    }

    /// All of them, by name.
    pub fn list(&self) -> Vec<Condition> {
        let listed = self.0.lock();
        let conditions = listed.conditions.iter().map(|(name, (standing, reason))| Condition {
            name: name.clone(),
            standing: *standing,
            reason: reason.clone(),
        });
        let overflow = listed.overflowed.then(|| Condition {
            name: "conditions".into(),
            standing: Standing::Failing,
            reason: Some("there are more conditions than can be listed".into()),
        });
        conditions.chain(overflow).collect()
    }

    fn put(&self, name: &str, standing: Standing, reason: Option<&str>) {
        let reason = reason.map(|reason| reason[..reason.floor_char_boundary(MAX_REASON)].into());
        let mut listed = self.0.lock();
        if let Some(entry) = listed.conditions.get_mut(name) {
            *entry = (standing, reason);
        } else if listed.conditions.len() < MAX_CONDITIONS {
            listed.conditions.insert(name.into(), (standing, reason));
        } else {
            listed.overflowed = true;
        }
    }
}

/// How much `/readyz` tells, and in which form.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Detail {
    /// One word.
    Word,
    /// Every condition, a line each.
    Lines,
    /// Every condition, as JSON.
    Json,
}

#[derive(Serialize)]
struct Report {
    ready: bool,
    conditions: Vec<Condition>,
}

/// The answer of `/livez`.
pub(crate) fn alive() -> Response<Body> {
    plain(StatusCode::OK, TEXT, Bytes::from_static(b"alive\n"))
}

/// The answer of `/readyz`.
pub(crate) fn readiness(conditions: &Conditions, drain: &Drain, detail: Detail) -> Response<Body> {
    let (accepting, why) = match drain.phase() {
        Phase::Open => (Standing::Fine, None),
        Phase::NotReady => (Standing::Failing, Some("the node is about to stop".into())),
        Phase::Draining { .. } => (Standing::Failing, Some("the node is stopping".into())),
    };
    let ready = accepting == Standing::Fine && conditions.ready();
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let word = if ready { "ready\n" } else { "not ready\n" };
    if detail == Detail::Word {
        return plain(status, TEXT, Bytes::from_static(word.as_bytes()));
    }
    let mut all = conditions.list();
    all.push(Condition { name: "accepting".into(), standing: accepting, reason: why });
    if detail == Detail::Json {
        // A report of strings and words has no reason to fail.
        let json = serde_json::to_vec(&Report { ready, conditions: all }).unwrap_or_default();
        return plain(status, HeaderValue::from_static("application/json"), json.into());
    }
    let mut text = word.to_owned();
    for Condition { name, standing, reason } in &all {
        let sign = match standing {
            Standing::Fine => "+",
            Standing::Degraded => "~",
            Standing::Failing => "-",
        };
        let reason = reason.as_deref().map_or(String::new(), |reason| format!(": {reason}"));
        text.push_str(&format!("[{sign}] {name}{reason}\n"));
    }
    plain(status, TEXT, text.into())
}

const TEXT: HeaderValue = HeaderValue::from_static("text/plain; charset=utf-8");

fn plain(status: StatusCode, kind: HeaderValue, body: Bytes) -> Response<Body> {
    let mut answer = Response::new(Body::from(body));
    *answer.status_mut() = status;
    answer.headers_mut().insert(header::CONTENT_TYPE, kind);
    // A probe that is answered from a cache tells nothing.
    answer.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    answer
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_failing_condition_is_enough_not_to_be_ready_and_a_noted_one_is_not() {
        let conditions = Conditions::default();
        assert!(conditions.ready());
        conditions.note("maintenance", "its file cannot be read");
        conditions.clear("keys");
        assert!(conditions.ready());
        conditions.set("keys", "no replica yet");
        assert!(!conditions.clone().ready());
        conditions.clear("keys");
        assert!(conditions.ready());
        conditions.set("gone", "x");
        conditions.forget("gone");
        assert!(conditions.ready());
    }

    #[test]
    fn conditions_without_end_are_not_kept_and_not_ready() {
        let conditions = Conditions::default();
        for i in 0..=MAX_CONDITIONS {
            conditions.clear(&format!("condition-{i}"));
        }
        assert_eq!(conditions.list().len(), MAX_CONDITIONS + 1);
        assert!(!conditions.ready(), "one that is not listed could be failing");
        conditions.set("condition-1", &"ü".repeat(MAX_REASON));
        let listed = conditions.list();
        let one = listed.iter().find(|condition| &*condition.name == "condition-1").unwrap();
        assert_eq!(one.reason.as_ref().unwrap().len(), MAX_REASON);
    }
}
