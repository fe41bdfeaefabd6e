//! What is said of a call that has no answer: problem details (RFC 9457), written here and read here.
//!
//! `type` is `urn:horos:problem:` and a name that is never used for anything else. `effect` says what the caller may do: after
//! `none` try again as you like, after `unknown` only what may be done twice, and `done` comes with the callee's own error in `error`.
//! `retry_after` is in seconds, to the millisecond, and there only where it is known when; the field of that name, in whole seconds,
//! is a guess otherwise, which another gateway does not take for the service's word. `detail` is a fixed sentence for people: what the
//! inside says to itself is in no answer.
//!
//! Strategy `http` makes the same [`CallError`] of it again, so that an error survives a route over HTTP to another Horos.

use std::{borrow::Cow, time::Duration};

use bytes::Bytes;
use horos_wire::{CallContext, CallError, NoEffect, TraceId, Unknown, protocol::bytes::Refused};
use http::{
    HeaderValue, Response, StatusCode,
    header::{CACHE_CONTROL, CONTENT_TYPE, RETRY_AFTER},
};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::body::TakeError;
use crate::strategy::{Body, Failure};

/// Where all types are.
pub const TYPES: &str = "urn:horos:problem:";
/// What problem details are sent as.
pub(crate) const KIND: &str = "application/problem+json";
/// Whoever is told to come again, and not when, is told this: what is in hand ends in milliseconds or by its deadline, so who asks
/// each second learns soon, and costs little.
const AGAIN: Duration = Duration::from_secs(1);
/// No one is believed who says that it takes longer.
const LONGEST: Duration = Duration::from_secs(3600);

/// What was done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Effect {
    None,
    Unknown,
    Done,
}

/// A kind of problem.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Class {
    name: &'static str,
    status: StatusCode,
    effect: Effect,
    detail: &'static str,
}

const fn none(name: &'static str, status: StatusCode, detail: &'static str) -> Class {
    Class { name, status, effect: Effect::None, detail }
}

const fn unknown(name: &'static str, status: StatusCode, detail: &'static str) -> Class {
    Class { name, status, effect: Effect::Unknown, detail }
}

const RATE_LIMITED: Class = none("rate-limited", StatusCode::TOO_MANY_REQUESTS, "The service is called too often; nothing was done.");
const FAILED: Class =
    Class { name: "failed", status: StatusCode::UNPROCESSABLE_ENTITY, effect: Effect::Done, detail: "The service answered with an error." };

const AWAY: &str = "The service cannot be reached now; nothing was done.";
const OURS: &str = "Nothing was done; this cannot be answered here.";
const LOST: &str = "The answer was lost; what was asked may have been done.";

fn of_no_effect(why: &NoEffect) -> Class {
    let (away, fault) = (StatusCode::SERVICE_UNAVAILABLE, StatusCode::INTERNAL_SERVER_ERROR);
    match why {
        NoEffect::NoSuchActor(_) => none("no-such-actor", away, AWAY),
        NoEffect::Overloaded(_) => none("overloaded", away, "The service has more to do than it takes; nothing was done."),
        NoEffect::CircuitOpen { .. } => none("circuit-open", away, "The service has failed too often of late; nothing was done."),
        // A node that may not ask is set up wrongly; whoever asked it can do nothing about that.
        NoEffect::NotAllowed(_) => none("not-allowed", fault, OURS),
        NoEffect::VersionNotSpoken(_) => none("version-not-spoken", fault, OURS),
        NoEffect::InvalidAddress(_) => none("invalid-address", fault, OURS),
        NoEffect::TooLarge(_) => none("too-large", StatusCode::PAYLOAD_TOO_LARGE, "The request is larger than is taken here."),
        NoEffect::Malformed(_) => none("malformed", StatusCode::BAD_REQUEST, "The request has not the form that the service wants."),
        NoEffect::NoRoute(_) => none("no-route", away, AWAY),
        NoEffect::Expired => none("expired", StatusCode::GATEWAY_TIMEOUT, "The time was over before the service began; nothing was done."),
        NoEffect::ActorDied => none("died-before", away, "The service failed before it began; nothing was done."),
        NoEffect::Stopping => none("stopping", away, "The service is being stopped; nothing was done."),
        NoEffect::TooManyHops => none("too-many-hops", StatusCode::LOOP_DETECTED, "The request was passed on too often; nothing was done."),
        _ => none("refused", fault, OURS),
    }
}

fn of_unknown(why: &Unknown) -> Class {
    let lost = StatusCode::BAD_GATEWAY;
    match why {
        Unknown::DeadlinePassed => {
            unknown("deadline-passed", StatusCode::GATEWAY_TIMEOUT, "There was no answer in time; what was asked may have been done.")
        }
        Unknown::PeerLost(_) => unknown("peer-lost", lost, LOST),
        Unknown::ActorDied => unknown("died", lost, "The service failed at it; what was asked may have been done."),
        Unknown::NoReply => unknown("no-reply", lost, "The service gave no answer; what was asked may have been done."),
        Unknown::MalformedReply(_) => unknown("malformed-reply", lost, LOST),
        Unknown::ReplyTooLarge(_) => {
            unknown("reply-too-large", lost, "The answer is larger than is passed on; what was asked may have been done.")
        }
        _ => unknown("unknown", lost, LOST),
    }
}

/// The other way round. `by` is who says so.
fn error(name: &str, effect: Effect, retry_after: Option<Duration>, by: &str) -> Option<CallError<Bytes>> {
    let text = || Box::<str>::from(by);
    Some(match name {
        "no-such-actor" => NoEffect::NoSuchActor(text()).into(),
        "overloaded" | "rate-limited" => NoEffect::Overloaded(text()).into(),
        "circuit-open" => NoEffect::CircuitOpen { retry_after: retry_after.unwrap_or(AGAIN) }.into(),
        "not-allowed" => NoEffect::NotAllowed(text()).into(),
        "version-not-spoken" => NoEffect::VersionNotSpoken(text()).into(),
        "invalid-address" => NoEffect::InvalidAddress(text()).into(),
        "too-large" => NoEffect::TooLarge(text()).into(),
        "malformed" | "media-type" | "coding" => NoEffect::Malformed(text()).into(),
        "no-route" => NoEffect::NoRoute(text()).into(),
        "expired" => NoEffect::Expired.into(),
        "died-before" => NoEffect::ActorDied.into(),
        "stopping" => NoEffect::Stopping.into(),
        "too-many-hops" => NoEffect::TooManyHops.into(),
        "deadline-passed" => Unknown::DeadlinePassed.into(),
        "peer-lost" => Unknown::PeerLost(text()).into(),
        "died" => Unknown::ActorDied.into(),
        "no-reply" => Unknown::NoReply.into(),
        "malformed-reply" => Unknown::MalformedReply(text()).into(),
        "reply-too-large" => Unknown::ReplyTooLarge(text()).into(),
        // Of a later release, or a gateway's own: what may be done about it is known all the same.
        _ if effect == Effect::None => NoEffect::NoRoute(text()).into(),
        _ if effect == Effect::Unknown => Unknown::PeerLost(text()).into(),
        _ => return None,
    })
}

/// What a gateway itself has against a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Refusal(Class);

impl Refusal {
    pub(super) const METHOD: Self = Self(none("method", StatusCode::METHOD_NOT_ALLOWED, "Services are called by POST."));
    pub(super) const NAME: Self = Self(none("name", StatusCode::BAD_REQUEST, "The path names no service."));
    pub(super) const HOPS: Self =
        Self(none("too-many-hops", StatusCode::LOOP_DETECTED, "The request was passed on too often; nothing was done."));
    pub(super) const MEDIA_TYPE: Self =
        Self(none("media-type", StatusCode::UNSUPPORTED_MEDIA_TYPE, "The body must be application/json, or a type that ends in +json."));
    pub(super) const CODING: Self = Self(none("coding", StatusCode::UNSUPPORTED_MEDIA_TYPE, "The body must not be encoded."));
    pub(super) const BROKEN: Self =
        Self(unknown("broken-body", StatusCode::BAD_REQUEST, "The body did not come whole; what was asked may have been done."));
    const CUT: Self = Self(none("cut-body", StatusCode::BAD_REQUEST, "The body did not come whole; nothing was done."));
    const TOO_LARGE: Self = Self(none("too-large", StatusCode::PAYLOAD_TOO_LARGE, "The request is larger than is taken here."));
    const LATE: Self = Self(none("expired", StatusCode::REQUEST_TIMEOUT, "The body did not come in time; nothing was done."));

    pub(super) fn of(error: &TakeError) -> Self {
        match error {
            TakeError::TooLarge => Self::TOO_LARGE,
            TakeError::Broken => Self::CUT,
            TakeError::Late => Self::LATE,
        }
    }

    pub(super) fn answer(self, call: &CallContext) -> Response<Body> {
        write(self.0, self.0.status, None, None, None, call)
    }
}

/// What stands in an answer.
#[derive(Serialize)]
struct Members<'a> {
    r#type: String,
    title: &'a str,
    status: u16,
    detail: &'a str,
    effect: Effect,
    #[serde(skip_serializing_if = "Option::is_none")]
    retry_after: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<&'a RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    request_id: Option<&'a str>,
    trace_id: TraceId,
}

/// What is said of `error`; `limited` is how long a rate lets nobody through, where that is the reason.
pub(super) fn answer(error: &CallError<Bytes>, limited: Option<Duration>, call: &CallContext) -> Response<Body> {
    match error {
        CallError::NoEffect(NoEffect::Overloaded(_)) if limited.is_some() => {
            write(RATE_LIMITED, RATE_LIMITED.status, None, limited, None, call)
        }
        CallError::NoEffect(why) => {
            let class = of_no_effect(why);
            let again = if let NoEffect::CircuitOpen { retry_after } = why { Some(*retry_after) } else { None };
            write(class, class.status, None, again, None, call)
        }
        CallError::Unknown(why) => {
            let class = of_unknown(why);
            write(class, class.status, None, None, None, call)
        }
        CallError::Failed(body) => {
            let own: Option<&RawValue> = serde_json::from_slice(body).ok();
            let refused: Option<Refused> = serde_json::from_slice(body).ok();
            let status = refused.as_ref().and_then(|refused| StatusCode::from_u16(refused.status).ok()).filter(StatusCode::is_client_error);
            let reason = refused.as_ref().map(|refused| &*refused.reason).filter(|reason| !reason.is_empty());
            write(FAILED, status.unwrap_or(FAILED.status), reason, None, own, call)
        }
    }
}

fn write(
    class: Class,
    status: StatusCode,
    detail: Option<&str>,
    again: Option<Duration>,
    error: Option<&RawValue>,
    call: &CallContext,
) -> Response<Body> {
    // To the millisecond, rounded up.
    let again = again.map(|again| again.min(LONGEST).as_nanos().div_ceil(1_000_000));
    let members = Members {
        r#type: format!("{TYPES}{}", class.name),
        title: status.canonical_reason().unwrap_or_default(),
        status: status.as_u16(),
        detail: detail.unwrap_or(class.detail),
        effect: class.effect,
        retry_after: again.map(|ms| ms as f64 / 1000.0),
        error,
        request_id: call.claims.as_ref().and_then(|claims| claims.request.as_deref()),
        trace_id: call.trace,
    };
    // Texts, numbers and what has been JSON have no reason to fail.
    let body = serde_json::to_vec(&members).unwrap_or_default();
    let mut answer = Response::new(super::whole(body.into()));
    *answer.status_mut() = status;
    let headers = answer.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(KIND));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    if again.is_some() || status == StatusCode::SERVICE_UNAVAILABLE {
        let seconds = again.map_or(AGAIN.as_secs().into(), |ms| ms.div_ceil(1000).max(1));
        headers.insert(RETRY_AFTER, HeaderValue::from(u64::try_from(seconds).unwrap_or(1)));
    }
    answer
}

/// Problem details as they come; whatever else is in them is no matter.
#[derive(Deserialize)]
struct Told<'a> {
    #[serde(borrow)]
    r#type: Cow<'a, str>,
    effect: Effect,
    retry_after: Option<f64>,
    #[serde(borrow)]
    error: Option<&'a RawValue>,
}

/// The error that a gateway has put into `body`; none where it is not a gateway's. `by` is who says so.
pub(crate) fn read(body: &[u8], by: &str) -> Option<Failure> {
    let told: Told<'_> = serde_json::from_slice(body).ok()?;
    let name = told.r#type.strip_prefix(TYPES)?;
    let seconds = told.retry_after.filter(|seconds| seconds.is_finite() && *seconds >= 0.0);
    let retry_after = seconds.map(|seconds| Duration::from_millis((seconds.min(LONGEST.as_secs_f64()) * 1000.0).round() as u64));
    let error = match (told.effect, told.error) {
        (Effect::Done, Some(own)) => CallError::Failed(Bytes::copy_from_slice(own.get().as_bytes())),
        (effect, _) => error(name, effect, retry_after, by)?,
    };
    Some(Failure { error, retry_after })
}

#[cfg(test)]
mod tests;
