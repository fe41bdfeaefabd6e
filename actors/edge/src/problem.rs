//! Answers that say what is wrong, in one form: problem details (RFC 9457).
//!
//! What is told is fixed text of this crate with the request's id and trace: nothing that a service, a peer or a secret
//! says gets into it. `code` is the stable name for programs, `detail` the one sentence for people.

use bytes::Bytes;
use horos_wire::TraceId;
use http::{HeaderName, HeaderValue, Response, StatusCode, header};

use crate::{Body, Reason};

/// What is wrong with a request, or with its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Problem {
    pub(crate) status: StatusCode,
    /// The member `code`: lower case and underscores, never changed once used.
    pub(crate) code: &'static str,
    pub(crate) detail: &'static str,
    /// What it is counted as, where it is a refusal.
    pub(crate) reason: Option<Reason>,
}

const fn refusal(status: StatusCode, reason: Reason, detail: &'static str) -> Problem {
    Problem { status, code: reason.as_str(), detail, reason: Some(reason) }
}

const fn fault(status: StatusCode, code: &'static str, detail: &'static str) -> Problem {
    Problem { status, code, detail, reason: None }
}

impl Problem {
    pub(crate) const BODY_TOO_LARGE: Self =
        refusal(StatusCode::PAYLOAD_TOO_LARGE, Reason::BodyTooLarge, "The body is larger than is taken here.");
    pub(crate) const SLOW_BODY: Self = refusal(StatusCode::REQUEST_TIMEOUT, Reason::SlowBody, "The body stopped coming.");
    pub(crate) const FIELDS: Self = refusal(
        StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
        Reason::HeadTooLarge,
        "The head has more or longer fields than are taken here.",
    );
    pub(crate) const URI_TOO_LONG: Self =
        refusal(StatusCode::URI_TOO_LONG, Reason::HeadTooLarge, "The address is longer than is taken here.");
    pub(crate) const RATE_ADDRESS: Self =
        refusal(StatusCode::TOO_MANY_REQUESTS, Reason::RateAddress, "Too many requests from this address.");
    pub(crate) const RATE_IDENTITY: Self =
        refusal(StatusCode::TOO_MANY_REQUESTS, Reason::RateIdentity, "Too many requests by this key or user.");
    pub(crate) const RATE_GUESSES: Self =
        refusal(StatusCode::TOO_MANY_REQUESTS, Reason::RateGuesses, "Too many wrong credentials from this address.");
    pub(crate) const UNAUTHENTICATED: Self =
        refusal(StatusCode::UNAUTHORIZED, Reason::Unauthenticated, "A valid key or token is required.");
    pub(crate) const FORBIDDEN: Self =
        refusal(StatusCode::FORBIDDEN, Reason::Forbidden, "The key or token does not grant what this needs.");
    pub(crate) const MAINTENANCE: Self = refusal(StatusCode::SERVICE_UNAVAILABLE, Reason::Maintenance, "Maintenance is in progress.");
    pub(crate) const OVERLOADED: Self =
        refusal(StatusCode::SERVICE_UNAVAILABLE, Reason::Overloaded, "Too many requests are in hand here; this one was not begun.");
    pub(crate) const ADDRESS_OVERLOADED: Self = refusal(
        StatusCode::SERVICE_UNAVAILABLE,
        Reason::AddressOverloaded,
        "Too many requests from this address are in hand here; this one was not begun.",
    );
    pub(crate) const DEADLINE: Self =
        refusal(StatusCode::GATEWAY_TIMEOUT, Reason::Deadline, "There was no answer in time; what was asked may have been done.");
    pub(crate) const PANIC: Self =
        refusal(StatusCode::INTERNAL_SERVER_ERROR, Reason::Panic, "Something went wrong here; what was asked may have been done.");

    pub(crate) const NO_HOST: Self = refusal(StatusCode::BAD_REQUEST, Reason::BadHost, "Exactly one valid host must be named.");
    pub(crate) const PATH: Self =
        refusal(StatusCode::BAD_REQUEST, Reason::BadPath, "The path must be plain: no dot segments, no control characters.");
    pub(crate) const LENGTH: Self = refusal(StatusCode::BAD_REQUEST, Reason::BadLength, "The length of the body must be one number.");
    pub(crate) const IDEMPOTENCY_KEY: Self =
        refusal(StatusCode::BAD_REQUEST, Reason::BadIdempotencyKey, "An idempotency key is given once, as 1 to 255 visible characters.");

    pub(crate) const UNCHECKED: Self =
        fault(StatusCode::SERVICE_UNAVAILABLE, "credentials_unchecked", "Credentials cannot be checked now.");
    pub(crate) const NOT_FOUND: Self = fault(StatusCode::NOT_FOUND, "not_found", "There is nothing at this address.");
    pub(crate) const METHOD: Self = fault(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", "This address does not take this method.");

    /// For a service's error without a body of its own.
    pub(crate) fn of_status(status: StatusCode) -> Self {
        match status {
            StatusCode::NOT_FOUND => Self::NOT_FOUND,
            StatusCode::METHOD_NOT_ALLOWED => Self::METHOD,
            status if status.is_client_error() => fault(status, "request_refused", ""),
            status => fault(status, "service_failed", ""),
        }
    }

    /// The answer; `request` and `trace` are what its reader can ask about.
    pub(crate) fn answer(&self, request: &str, trace: TraceId) -> Response<Body> {
        let mut answer = Response::new(Body::from(self.body(request, trace, None)));
        *answer.status_mut() = self.status;
        answer.headers_mut().insert(header::CONTENT_TYPE, KIND);
        answer.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if let Some((name, value)) = self.field() {
            answer.headers_mut().insert(name, value);
        }
        answer
    }

    /// The field that its status asks for.
    fn field(&self) -> Option<(HeaderName, HeaderValue)> {
        let field = |name, value| Some((name, HeaderValue::from_static(value)));
        match *self {
            // RFC 9110 §15.5.2, RFC 6750 §3. The same for every cause: whether a key is unknown, revoked or expired is nobody's
            // business who has not a valid one.
            Self::UNAUTHENTICATED => field(header::WWW_AUTHENTICATE, "Bearer realm=\"horos\""),
            Self::FORBIDDEN => field(header::WWW_AUTHENTICATE, "Bearer realm=\"horos\", error=\"insufficient_scope\""),
            // What is in hand ends in milliseconds or in `timeouts.answer`: who asks again each second learns soon, and costs little.
            Self::UNCHECKED | Self::OVERLOADED | Self::ADDRESS_OVERLOADED => field(header::RETRY_AFTER, "1"),
            // RFC 9110 §15.5.6.
            Self::METHOD => field(header::ALLOW, "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"),
            _ => None,
        }
    }

    /// The members in the order of RFC 9457 §3.1; `type` is absent, which means `about:blank`, so `title` is the status's.
    /// `detail` replaces the fixed one with a text that an operator wrote for the public.
    pub(crate) fn body(&self, request: &str, trace: TraceId, detail: Option<&str>) -> Bytes {
        #[derive(serde::Serialize)]
        struct Members<'a> {
            #[serde(skip_serializing_if = "str::is_empty")]
            title: &'a str,
            status: u16,
            #[serde(skip_serializing_if = "str::is_empty")]
            detail: &'a str,
            code: &'a str,
            request_id: &'a str,
            trace_id: TraceId,
        }
        let members = Members {
            title: self.status.canonical_reason().unwrap_or_default(),
            status: self.status.as_u16(),
            detail: detail.unwrap_or(self.detail),
            code: self.code,
            request_id: request,
            trace_id: trace,
        };
        // Strings and a number have no reason to fail.
        serde_json::to_vec(&members).unwrap_or_default().into()
    }
}

/// What problem details are sent as.
pub(crate) const KIND: HeaderValue = HeaderValue::from_static("application/problem+json");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_says_what_is_wrong_and_what_to_ask_about() {
        let answer = Problem::FORBIDDEN.answer("req_1\"", TraceId(0xabc));
        assert_eq!(answer.status(), 403);
        assert_eq!(answer.headers()[header::CONTENT_TYPE], "application/problem+json");
        let body = Problem::FORBIDDEN.body("req_1\"", TraceId(0xabc), None);
        let json: serde_json::Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(json["title"], "Forbidden");
        assert_eq!(json["status"], 403);
        assert_eq!(json["code"], "forbidden");
        assert_eq!(json["request_id"], "req_1\"");
        assert_eq!(json["trace_id"], "00000000000000000000000000000abc");
    }
}
