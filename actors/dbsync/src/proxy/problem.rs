//! What is answered where the owner's answer is not to be had: problem details (RFC 9457), and whether anything was done.
//!
//! The text is fixed: nothing of what a connection, a peer or a secret says gets into it.

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};
use http_body_util::Full;
use serde_json::json;

use super::{Body, boxed};

/// Whether a request that failed may have had an effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// It had none: trying again is safe.
    None,
    /// It may have been done. Only its author knows whether doing it twice is harmless.
    Unknown,
}

impl Effect {
    /// As the member `effect` has it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Unknown => "unknown",
        }
    }
}

/// Why the owner's answer is not to be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    /// [`super::Limits::in_flight`] requests are on their way.
    Full,
    /// As many reads as may be are asking the owner.
    ReadsFull,
    /// This client's reads have asked the owner too often.
    ReadsOften,
    /// No connection to the owner.
    Away,
    /// Whoever is at the owner's address is not the owner, or does not speak as it should.
    Stranger,
    /// The connection was lost with the request on it.
    Lost,
    /// The owner answered what is no answer.
    Nonsense,
    /// The deadline passed before the request was sent.
    TooLate,
    /// The deadline passed with the request sent.
    TimedOut,
    /// The body is too large, by what was said of it.
    BodyTooLarge,
    /// The body is too large, by what came of it.
    BodyOverran,
    /// The body did not come whole.
    BodyCut,
    /// Its length is said twice, wrongly, or not as it is.
    BodyLength,
    /// A request to turn the connection into something else.
    Upgrade,
    /// `TRACE`, or `CONNECT`.
    Method,
    /// The request has passed through here before.
    Loop,
    /// An address that nothing can be passed on to.
    Target,
    /// A redirect of what does not write.
    ReadsHere,
}

impl Failure {
    pub(super) fn effect(self) -> Effect {
        match self {
            Self::Lost | Self::Nonsense | Self::TimedOut | Self::BodyOverran | Self::BodyCut => Effect::Unknown,
            Self::Full
            | Self::ReadsFull
            | Self::ReadsOften
            | Self::Away
            | Self::Stranger
            | Self::TooLate
            | Self::BodyTooLarge
            | Self::BodyLength
            | Self::Upgrade
            | Self::Method
            | Self::Loop
            | Self::Target
            | Self::ReadsHere => Effect::None,
        }
    }

    /// Status, the member `code` (never changed once used), and the sentence for people.
    fn told(self) -> (StatusCode, &'static str, &'static str) {
        use StatusCode as S;
        match self {
            Self::Full => (S::SERVICE_UNAVAILABLE, "proxy_full", "Too many requests are being passed on; this one was not."),
            Self::ReadsFull => {
                (S::SERVICE_UNAVAILABLE, "reads_full", "What was written is not here yet, and too many readers are asking its owner.")
            }
            Self::ReadsOften => (
                S::TOO_MANY_REQUESTS,
                "reads_often",
                "What was written is not here yet, and its owner has been asked too often from this address.",
            ),
            Self::Away => (S::SERVICE_UNAVAILABLE, "owner_away", "The owner of the data cannot be reached; nothing was done."),
            Self::Stranger => (S::BAD_GATEWAY, "owner_not_known", "The owner of the data did not prove who it is; nothing was done."),
            Self::Lost => (S::BAD_GATEWAY, "answer_lost", "The answer was lost; what was asked may have been done."),
            Self::Nonsense => (S::BAD_GATEWAY, "answer_malformed", "The answer made no sense; what was asked may have been done."),
            Self::TooLate => (S::GATEWAY_TIMEOUT, "not_sent_in_time", "The owner of the data was not reached in time; nothing was done."),
            Self::TimedOut => (S::GATEWAY_TIMEOUT, "no_answer_in_time", "There was no answer in time; what was asked may have been done."),
            Self::BodyTooLarge | Self::BodyOverran => {
                (S::PAYLOAD_TOO_LARGE, "body_too_large", "The body is larger than is passed on here.")
            }
            Self::BodyCut => (S::BAD_REQUEST, "body_cut", "The body did not come whole."),
            Self::BodyLength => (S::BAD_REQUEST, "bad_length", "The length of the body must be one number, and the right one."),
            Self::Upgrade => {
                (S::NOT_IMPLEMENTED, "no_upgrade", "Connections that become another protocol, such as WebSocket, are not passed on.")
            }
            Self::Method => (S::NOT_IMPLEMENTED, "method_not_passed_on", "This method is not passed on."),
            Self::Loop => (S::LOOP_DETECTED, "loop", "The request has been here before: two nodes take each other for the owner."),
            Self::Target => (S::BAD_REQUEST, "bad_target", "The address is none that a request can be passed on to."),
            Self::ReadsHere => (S::METHOD_NOT_ALLOWED, "only_writes", "Only what writes is sent on from here."),
        }
    }

    pub(super) fn answer(self) -> Response<Body> {
        let (status, code, detail) = self.told();
        // The members of RFC 9457 §3.1; `type` is absent, which means `about:blank`, so `title` is the status's.
        let text = json!({
            "title": status.canonical_reason().unwrap_or_default(),
            "status": status.as_u16(),
            "detail": detail,
            "code": code,
            "effect": self.effect().as_str(),
        });
        let mut answer = Response::new(boxed(Full::new(Bytes::from(text.to_string()))));
        *answer.status_mut() = status;
        let headers = answer.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if matches!(status, StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS) {
            // What is in hand ends in milliseconds or in the deadline, and an owner that restarts is back in a second or two.
            headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        if self == Self::ReadsHere {
            headers.insert(header::ALLOW, HeaderValue::from_static("POST, PUT, PATCH, DELETE"));
        }
        answer
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt as _;

    use super::*;

    #[tokio::test]
    async fn whoever_may_try_again_is_told_when_and_whether_anything_was_done() {
        for (failure, status, effect, retry) in [
            (Failure::Full, 503, "none", true),
            (Failure::Away, 503, "none", true),
            (Failure::ReadsOften, 429, "none", true),
            (Failure::Stranger, 502, "none", false),
            (Failure::Lost, 502, "unknown", false),
            (Failure::TimedOut, 504, "unknown", false),
            (Failure::TooLate, 504, "none", false),
            (Failure::Upgrade, 501, "none", false),
        ] {
            let answer = failure.answer();
            assert_eq!(answer.status(), status);
            assert_eq!(answer.headers()[header::CONTENT_TYPE], "application/problem+json");
            assert_eq!(answer.headers().contains_key(header::RETRY_AFTER), retry, "{failure:?}");
            let text = answer.into_body().collect().await.unwrap().to_bytes();
            let value: serde_json::Value = serde_json::from_slice(&text).unwrap();
            assert_eq!((value["effect"].as_str(), value["status"].as_u64()), (Some(effect), Some(status.into())));
            assert!(value["code"].is_string() && value["title"].is_string());
        }
    }
}
