//! What stands in a route's `config`: the policies by which its service is called, as a JSON object.
//!
//! Nothing in it is a secret: what proves this node elsewhere is named there and lies in a file of the node
//! ([`Authorization`]). Unknown keys are errors, so that a mistyped policy is not taken for none. All times are in milliseconds.

use std::{collections::BTreeMap, time::Duration};

use serde::{Deserialize, Serialize};

/// Longest a call may be given, in milliseconds: an hour. Longer work is a job, and has a status of its own to ask for.
pub const MAX_TIMEOUT_MS: u64 = 3_600_000;
/// What a call is given where its row says nothing, in milliseconds, as in the Go system.
pub const TIMEOUT_MS: u64 = 30_000;
/// Most endpoints of a route.
pub const MAX_ENDPOINTS: usize = 32;
/// Most attempts beyond the first.
pub const MAX_RETRIES: u32 = 10;
/// Most calls that one service may have in hand, and that may wait for it.
pub const MAX_CONCURRENCY: u32 = 100_000;
/// Most calls a second that a rate can name.
pub const MAX_RATE: u32 = 10_000_000;

/// A route's configuration.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// What a call is given, retries and all; 0 and less are [`TIMEOUT_MS`], as in the Go system.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<i64>,
    /// Strategy `http`: the media type of what is sent. By default what the payload is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub content_type: Option<Box<str>>,
    /// Strategy `mcp`: which tool.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tool_name: Option<Box<str>>,
    /// Refused when true: a row does not turn off verification.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub insecure_tls: bool,
    /// What its messages are.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub payload: Option<Payload>,
    /// Whether outsiders may call it, through the gateway.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gateway: Option<Gateway>,
    /// Which of its calls may be made twice.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub idempotent: Option<Idempotent>,
    /// Retries; none by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retry: Option<Retry>,
    /// When an endpoint is no longer asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub breaker: Option<Breaker>,
    /// A second attempt beside one that takes long.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hedge: Option<Hedge>,
    /// Which service is asked when this one fails. Its own policies hold then, and its own fallback does not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fallback: Option<Box<str>>,
    /// Calls in hand.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub concurrency: Option<Concurrency>,
    /// Calls a second.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate: Option<Rate>,
    /// Further endpoints, beside the row's own.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub endpoints: Vec<Endpoint>,
    /// What the row's own endpoint counts among them. Default 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weight: Option<u32>,
    /// Strategy `http`: what is sent as `Authorization`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub authorization: Option<Authorization>,
    /// Policies of the program's own, by name, with their settings. See [`crate::policy`].
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub policies: BTreeMap<Box<str>, serde_json::Value>,
    /// Strategy `noop`: what callers get. Default `null`, which is `()` to typed callers; without a payload in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reply: Option<serde_json::Value>,
}

/// What the messages of a service are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Payload {
    /// JSON of an actor's protocol: `{"method": {…}}`.
    Json,
    /// Bytes that nobody on the way looks at.
    Bytes,
}

/// How the gateway lets outsiders in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub enum Gateway {
    /// Whoever's key or token grants this scope.
    Scope(Box<str>),
    /// Everybody.
    Public,
}

/// Which calls may be made twice with the effect of one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Idempotent {
    /// All, or none but those with an idempotency key.
    All(bool),
    /// These methods.
    Methods(Vec<Box<str>>),
}

/// Retries: of what had no effect, and of what is idempotent. Spread by full jitter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Retry {
    /// Attempts beyond the first: 1 to [`MAX_RETRIES`]. Default 2.
    pub retries: u32,
    /// What one attempt is given, of calls that are idempotent: of others it is not known whether they may be made again. Default
    /// all that is left.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub attempt_ms: Option<u64>,
    /// The first wait is anything up to this; each further one up to twice the one before. Default 50.
    pub base_ms: u64,
    /// No wait is longer. Default 2,000.
    pub max_ms: u64,
    /// Retries, those that still wait included, are at most this share of the calls of the last 10 s. Default 20.
    pub budget_percent: u32,
    /// So many retries a second are always permitted, else a service that is rarely called could not retry. Default 1.
    pub budget_per_second: u32,
}

impl Default for Retry {
    fn default() -> Self {
        Self { retries: 2, attempt_ms: None, base_ms: 50, max_ms: 2_000, budget_percent: 20, budget_per_second: 1 }
    }
}

/// When an endpoint's breaker opens, and how it closes again. Whichever condition is met first opens it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Breaker {
    /// Failures in a row. 0 is never. Default 5.
    pub failures: u32,
    /// So many failures within the window, in a row or not. 0 is never. Default 0.
    pub failures_in_window: u32,
    /// Failures within the window, as a percentage of its calls. 0 is never. Default 50.
    pub failure_percent: u32,
    /// Calls that took longer than `slow_ms` within the window, as a percentage. 0 is never. Default 0.
    pub slow_percent: u32,
    /// What is slow. Default 5,000.
    pub slow_ms: u64,
    /// Percentages say nothing below so many calls. Default 20.
    pub minimum_calls: u32,
    /// The window. Default 10,000.
    pub window_ms: u64,
    /// How long it stays open before it probes. Doubled with each probe that fails, up to eight times. Default 30,000.
    pub open_ms: u64,
    /// Probes that must succeed before it closes. Default 2.
    pub successes: u32,
    /// Probes at a time. Default 1.
    pub probes: u32,
    /// Over so long after it has closed the calls let through grow from a tenth to all. 0 is at once. Default 0.
    pub ramp_ms: u64,
}

impl Default for Breaker {
    fn default() -> Self {
        Self {
            failures: 5,
            failures_in_window: 0,
            failure_percent: 50,
            slow_percent: 0,
            slow_ms: 5_000,
            minimum_calls: 20,
            window_ms: 10_000,
            open_ms: 30_000,
            successes: 2,
            probes: 1,
            ramp_ms: 0,
        }
    }
}

/// A second attempt at another endpoint, for calls that are idempotent; whichever answers first counts. Drawn from the
/// retries' budget.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hedge {
    /// After so long without an answer.
    pub after_ms: u64,
}

/// How many calls a service has in hand.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Concurrency {
    /// At once.
    pub limit: u32,
    /// That may wait for one of them to end, within their deadline. More are refused. Default 0.
    #[serde(default)]
    pub queue: u32,
}

/// How often a service is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rate {
    /// Calls a second, from this node.
    pub per_second: u32,
    /// Calls at once after a rest. Default what a second allows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub burst: Option<u32>,
}

/// One more endpoint of a service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Endpoint {
    /// By which strategy. Default the row's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub strategy: Option<Box<str>>,
    /// Where.
    #[serde(default)]
    pub endpoint: Box<str>,
    /// What it counts among the others. 0 is: only when no other is healthy. Default 1.
    #[serde(default = "one")]
    pub weight: u32,
    /// This share of the calls goes here before any other choice is made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub canary_percent: Option<u32>,
}

const fn one() -> u32 {
    1
}

/// What is sent as `Authorization`: kept out of the row, because every node is told the row.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Authorization {
    /// The name of a file in the node's `secrets/`, whose one line is the whole field.
    pub file: Box<str>,
}

/// One thing that is wrong with a route.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, thiserror::Error)]
#[error("{key}: {what}")]
pub struct Problem {
    /// Where: a column, or a path in the configuration.
    pub key: Box<str>,
    /// What.
    pub what: Box<str>,
}

impl Problem {
    /// `what` is wrong at `key`.
    pub fn new(key: impl Into<Box<str>>, what: impl Into<Box<str>>) -> Self {
        Self { key: key.into(), what: what.into() }
    }
}

impl Config {
    /// Reads what stands in a row; NULL and the empty text are the defaults.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn parse(text: Option<&str>) -> Result<Self, Vec<Problem>> {
        let text = text.unwrap_or_default().trim();
        if text.is_empty() {
            return Ok(Self::default());
        }
        // serde would take a list for the fields in their order.
        if !text.starts_with('{') {
            return Err(vec![Problem::new("config", "it is a JSON object")]);
        }
        let config: Self = serde_json::from_str(text).map_err(|error| vec![Problem::new("config", error.to_string())])?;
        let problems = config.problems();
        if problems.is_empty() { Ok(config) } else { Err(problems) }
    }

    /// What a call is given.
    pub fn timeout(&self) -> Duration {
        let given = self.timeout_ms.and_then(|ms| u64::try_from(ms).ok()).filter(|ms| *ms > 0);
        Duration::from_millis(given.unwrap_or(TIMEOUT_MS))
    }

    /// Whether a call of `method` may be made twice.
    pub fn is_idempotent(&self, method: &str) -> bool {
        match &self.idempotent {
            None => false,
            Some(Idempotent::All(all)) => *all,
            Some(Idempotent::Methods(methods)) => methods.iter().any(|one| **one == *method),
        }
    }

    fn problems(&self) -> Vec<Problem> {
        let mut found = Vec::new();
        let mut within = |key: &str, value: u64, least: u64, most: u64| {
            if value < least || value > most {
                found.push(Problem::new(key, format!("{value} is not within {least} to {most}")));
            }
        };
        if let Some(ms) = self.timeout_ms {
            within("timeout_ms", u64::try_from(ms).unwrap_or(0), 0, MAX_TIMEOUT_MS);
        }
        if let Some(Retry { retries, attempt_ms, base_ms, max_ms, budget_percent, budget_per_second }) = self.retry {
            within("retry.retries", retries.into(), 1, MAX_RETRIES.into());
            within("retry.attempt_ms", attempt_ms.unwrap_or(1), 1, MAX_TIMEOUT_MS);
            within("retry.base_ms", base_ms, 1, MAX_TIMEOUT_MS);
            within("retry.max_ms", max_ms, base_ms, MAX_TIMEOUT_MS);
            within("retry.budget_percent", budget_percent.into(), 0, 1_000);
            within("retry.budget_per_second", budget_per_second.into(), 0, MAX_RATE.into());
        }
        if let Some(breaker) = self.breaker {
            within("breaker.failure_percent", breaker.failure_percent.into(), 0, 100);
            within("breaker.slow_percent", breaker.slow_percent.into(), 0, 100);
            within("breaker.slow_ms", breaker.slow_ms, 1, MAX_TIMEOUT_MS);
            within("breaker.minimum_calls", breaker.minimum_calls.into(), 1, 1_000_000);
            within("breaker.window_ms", breaker.window_ms, 100, MAX_TIMEOUT_MS);
            within("breaker.open_ms", breaker.open_ms, 1, MAX_TIMEOUT_MS);
            within("breaker.successes", breaker.successes.into(), 1, 1_000);
            within("breaker.probes", breaker.probes.into(), 1, 1_000);
            within("breaker.ramp_ms", breaker.ramp_ms, 0, MAX_TIMEOUT_MS);
        }
        if let Some(Hedge { after_ms }) = self.hedge {
            within("hedge.after_ms", after_ms, 1, MAX_TIMEOUT_MS);
        }
        if let Some(Concurrency { limit, queue }) = self.concurrency {
            within("concurrency.limit", limit.into(), 1, MAX_CONCURRENCY.into());
            within("concurrency.queue", queue.into(), 0, MAX_CONCURRENCY.into());
        }
        if let Some(Rate { per_second, burst }) = self.rate {
            within("rate.per_second", per_second.into(), 1, MAX_RATE.into());
            within("rate.burst", burst.unwrap_or(per_second).into(), 1, MAX_RATE.into());
        }
        within("weight", self.weight.unwrap_or(1).into(), 0, 1_000);
        within("endpoints", self.endpoints.len() as u64, 0, MAX_ENDPOINTS as u64 - 1);
        let canaries = self.endpoints.iter().filter_map(|one| one.canary_percent).map(u64::from).sum();
        within("endpoints: canary_percent, all of them", canaries, 0, 100);
        for (place, endpoint) in self.endpoints.iter().enumerate() {
            within(&format!("endpoints[{place}].weight"), endpoint.weight.into(), 0, 1_000);
        }
        if self.insecure_tls {
            found.push(Problem::new("insecure_tls", "certificates are always verified; have the authority's among those trusted"));
        }
        if self.hedge.is_some() && self.idempotent.is_none() {
            found.push(Problem::new("hedge", "only what is idempotent is asked twice; say which calls are, by `idempotent`"));
        }
        if let Some(Gateway::Scope(scope)) = &self.gateway
            && let Err(error) = scope.parse::<horos_wire::principal::Scope>()
        {
            found.push(Problem::new("gateway.scope", error.to_string()));
        }
        if let Some(Authorization { file }) = &self.authorization
            && file.parse::<horos_wire::ActorName>().is_err()
        {
            found.push(Problem::new("authorization.file", "a plain file name, of letters, digits, '-', '_' and '.'"));
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_the_defaults_and_what_the_go_system_wrote_is_read() {
        for text in [None, Some(""), Some("{}"), Some(r#"{"timeout_ms": 0}"#), Some(r#"{"timeout_ms": -5}"#)] {
            assert_eq!(Config::parse(text).unwrap().timeout(), Duration::from_secs(30), "{text:?}");
        }
        let http = Config::parse(Some(r#"{"timeout_ms": 1500, "content_type": "application/json"}"#)).unwrap();
        assert_eq!((http.timeout().as_millis(), http.content_type.as_deref()), (1_500, Some("application/json")));
        assert_eq!(Config::parse(Some(r#"{"tool_name": "search", "insecure_tls": false}"#)).unwrap().tool_name.as_deref(), Some("search"));
    }

    #[test]
    fn everything_that_is_wrong_is_named_at_once() {
        let bad = r#"{"timeout_ms": 99999999, "retry": {"retries": 0}, "breaker": {"successes": 0, "failure_percent": 101},
            "rate": {"per_second": 0}, "insecure_tls": true, "hedge": {"after_ms": 5}}"#;
        let keys: Vec<_> = Config::parse(Some(bad)).unwrap_err().into_iter().map(|problem| problem.key).collect();
        let wanted = ["timeout_ms", "retry.retries", "breaker.failure_percent", "breaker.successes", "rate.per_second", "rate.burst"];
        assert_eq!(keys, [&wanted[..], &["insecure_tls", "hedge"]].concat().into_iter().map(Box::from).collect::<Vec<Box<str>>>());
    }

    #[test]
    fn what_is_mistyped_is_no_policy_and_an_error() {
        for text in [r#"{"timeout": 5}"#, r#"{"retry": {"times": 3}}"#, "[]", "{", "null", r#"{"breaker": 5}"#] {
            let problems = Config::parse(Some(text)).unwrap_err();
            assert_eq!(problems.len(), 1, "{text}");
            assert_eq!(&*problems[0].key, "config");
        }
    }
}
