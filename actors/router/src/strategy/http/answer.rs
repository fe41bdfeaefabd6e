//! What an answer, or none, from a server elsewhere means for whoever called.
//!
//! A gateway's problem details say it themselves. Of any other server the status is all there is to go by:
//!
//! | status | here |
//! |---|---|
//! | 429 | overloaded: RFC 6585 §4, the request was not served |
//! | 503 with `Retry-After` | overloaded: "currently unable to handle the request" (RFC 9110 §15.6.4), and the server, not something that lost it on the way, bids the client come back with it |
//! | 404, 405, 410, 307, 308, 421 | no such actor: it is not there |
//! | 401, 403, 407, 402, 451 | not allowed |
//! | 413, 414, 431 | too large |
//! | any other 4xx | malformed; with a body of JSON the callee's own error, as 409 and 422 often have |
//! | 408, 504 | unknown, the deadline passed |
//! | any other, 503 without `Retry-After` among them: proxies say that of a server which died at the request | unknown |

use std::time::Duration;

use bytes::Bytes;
use horos_egress::{BodyError, EgressError, RequestBodyError, ResponseBody};
use horos_wire::{CallError, Never, NoEffect, Unknown};
use http::{
    HeaderMap, Response, StatusCode,
    header::{CONTENT_TYPE, RETRY_AFTER},
};
use http_body_util::{BodyExt as _, Limited};

use super::Failure;
use crate::gateway::problem;

/// Longest body of an error that is read; of a longer one the status is heard.
const MAX_ERROR: usize = 1 << 20;
/// No server is left alone for longer because it says so.
const LONGEST: Duration = Duration::from_secs(3600);

/// What a response that is no success means.
pub(super) async fn of_response(response: Response<ResponseBody>, host: &str) -> Failure {
    let (parts, body) = response.into_parts();
    let retry_after = retry_after(&parts.headers, jiff::Timestamp::now());
    let kind = parts.headers.get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    let essence = kind.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    let is_json = essence == "application/json" || essence.ends_with("+json");
    let told = match Limited::new(body, MAX_ERROR).collect().await {
        Ok(body) if is_json => body.to_bytes(),
        _ => Bytes::new(),
    };
    if essence == problem::KIND
        && let Some(failure) = problem::read(&told, host)
    {
        // Its field `Retry-After` is for people, and often a guess: an endpoint is not left alone for that.
        return failure;
    }
    let own = (is_json && essence != problem::KIND && serde_json::from_slice::<serde::de::IgnoredAny>(&told).is_ok()).then_some(told);
    Failure { error: of_status(parts.status, retry_after.is_some(), own, host), retry_after }
}

/// What the status of a server that is no Horos means; `own` is its body where that is JSON, and `bids_come_back` whether it said when.
pub fn of_status(status: StatusCode, bids_come_back: bool, own: Option<Bytes>, host: &str) -> CallError<Bytes> {
    let text = || Box::<str>::from(format!("{host} answered {}", status.as_u16()));
    match status.as_u16() {
        429 => NoEffect::Overloaded(text()).into(),
        503 if bids_come_back => NoEffect::Overloaded(text()).into(),
        307 | 308 | 404 | 405 | 410 | 421 => NoEffect::NoSuchActor(text()).into(),
        401 | 402 | 403 | 407 | 451 => NoEffect::NotAllowed(text()).into(),
        413 | 414 | 431 => NoEffect::TooLarge(text()).into(),
        408 | 504 => Unknown::DeadlinePassed.into(),
        400 | 415 => NoEffect::Malformed(text()).into(),
        400..500 => own.map_or_else(|| NoEffect::Malformed(text()).into(), CallError::Failed),
        502 => Unknown::PeerLost(text()).into(),
        _ => Unknown::MalformedReply(text()).into(),
    }
}

/// What it means that there is no response, or not all of it.
pub(super) fn of_error(error: EgressError, host: &str) -> Failure {
    let retry_after = error.retry_after();
    Failure { error: meaning(&error, host).map(|never: Never| match never {}), retry_after }
}

/// The same, as an error of whatever call it was for.
pub fn meaning(error: &EgressError, host: &str) -> CallError<Never> {
    let text = || Box::<str>::from(format!("{host}: {error}"));
    match error {
        EgressError::CircuitOpen { retry_after, .. } => NoEffect::CircuitOpen { retry_after: *retry_after }.into(),
        EgressError::RateLimited { .. } | EgressError::Overloaded(_) => NoEffect::Overloaded(text()).into(),
        EgressError::TooLate { .. } => NoEffect::Expired.into(),
        EgressError::RequestTooLarge { .. } => NoEffect::TooLarge(text()).into(),
        EgressError::Url(_) | EgressError::Request(_) => NoEffect::InvalidAddress(text()).into(),
        EgressError::TimedOut { .. } | EgressError::Response(BodyError::TooLate | BodyError::Stalled) => Unknown::DeadlinePassed.into(),
        EgressError::Response(BodyError::TooLarge { .. }) => Unknown::ReplyTooLarge(text()).into(),
        EgressError::RequestBody(RequestBodyError::TooLarge) => Unknown::ReplyTooLarge(text()).into(),
        EgressError::Nonsense { .. } => Unknown::MalformedReply(text()).into(),
        other if other.may_have_been_sent() => Unknown::PeerLost(text()).into(),
        // Refused, without an address, not reached, not who it should be, or not taken: whatever it was, nobody has seen the request.
        _ => NoEffect::NoRoute(text()).into(),
    }
}

/// When a server wants to be asked again (RFC 9110 §10.2.3): in so many seconds, or at a time of day.
pub fn retry_after(headers: &HeaderMap, now: jiff::Timestamp) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    let wait = if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) {
        // More digits than a number has are as good as forever.
        text.parse().map_or(LONGEST, Duration::from_secs)
    } else {
        let then = jiff::fmt::rfc2822::DateTimeParser::new().parse_timestamp(text).ok()?;
        then.duration_since(now).try_into().unwrap_or(Duration::ZERO)
    };
    Some(wait.min(LONGEST))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_means_what_its_server_can_have_done() {
        let effect = |status: u16, bids: bool, own: Option<&'static str>| {
            let own = own.map(|own| Bytes::from_static(own.as_bytes()));
            match of_status(StatusCode::from_u16(status).unwrap(), bids, own, "h") {
                CallError::NoEffect(why) => format!("{why:?}").split(['(', ' ']).next().unwrap().to_owned(),
                CallError::Unknown(why) => format!("?{why:?}").split(['(', ' ']).next().unwrap().to_owned(),
                CallError::Failed(_) => "own".to_owned(),
            }
        };
        for (status, wanted) in [
            (429, "Overloaded"),
            (404, "NoSuchActor"),
            (405, "NoSuchActor"),
            (410, "NoSuchActor"),
            (308, "NoSuchActor"),
            (401, "NotAllowed"),
            (403, "NotAllowed"),
            (413, "TooLarge"),
            (400, "Malformed"),
            (415, "Malformed"),
            (422, "Malformed"),
            (409, "Malformed"),
            (408, "?DeadlinePassed"),
            (504, "?DeadlinePassed"),
            (500, "?MalformedReply"),
            (501, "?MalformedReply"),
            (502, "?PeerLost"),
            (503, "?MalformedReply"),
            (301, "?MalformedReply"),
            (303, "?MalformedReply"),
            (599, "?MalformedReply"),
        ] {
            assert_eq!(effect(status, false, None), wanted, "{status}");
        }
        assert_eq!(effect(503, true, None), "Overloaded");
        assert_eq!([effect(409, false, Some("{}")), effect(422, false, Some("{}"))], ["own", "own"]);
        assert_eq!([effect(404, false, Some("{}")), effect(500, false, Some("{}"))], ["NoSuchActor", "?MalformedReply"]);
    }

    #[test]
    fn a_server_says_when_in_seconds_or_by_the_clock_and_is_not_believed_beyond_an_hour() {
        let now: jiff::Timestamp = "2026-11-21T10:00:00Z".parse().unwrap();
        for (text, wait) in [
            ("0", Some(0)),
            ("120", Some(120)),
            ("99999999999999999999999", Some(3600)),
            ("Sat, 21 Nov 2026 10:00:30 GMT", Some(30)),
            ("Sat, 21 Nov 2026 09:00:00 GMT", Some(0)),
            ("Sun, 22 Nov 2026 10:00:00 GMT", Some(3600)),
            ("soon", None),
            ("-1", None),
            ("1.5", None),
            ("", None),
        ] {
            let headers = HeaderMap::from_iter([(RETRY_AFTER, text.parse().unwrap())]);
            assert_eq!(retry_after(&headers, now), wait.map(Duration::from_secs), "{text}");
        }
    }
}
