//! What an HTTP endpoint is written with; [`crate::On::http`] mounts one.
//!
//! ```no_run
//! use horos_nodes::{Opening, http::{self, Access, Body, Request, Response, StatusCode}, supervision::OpenError, wire::Role};
//!
//! horos_nodes::main(|n| {
//!     n.on(Role::Fo).http("/hello", Access::Scope("hello".parse().expect("a scope")), |_: Opening| async {
//!         Ok::<_, OpenError>(http::service_fn(|_: Request<Body>| async { http::reply(StatusCode::OK, &"hello") }))
//!     });
//! });
//! ```
//!
//! A service sees the path without its prefix. Its requests carry extensions: [`CallContext`] (trace, deadline, user), which
//! [`call_of`] takes for [`Context::with_call`](crate::supervision::Context::with_call), and `Arc<`[`Principal`]`>` where a
//! key or a token was shown. Size of body and head, times, rates and scope are seen to before it is asked.

use std::convert::Infallible;

use horos_wire::{CallContext, CallError, NoEffect, Unknown};
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use serde::{Serialize, de::DeserializeOwned};

pub use ::http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri, header};
pub use horos_edge::{Access, Body, BoxError};
pub use horos_wire::principal::{Principal, Proof, Scope};
pub use tower::{Service, service_fn};

/// What a service's `call` comes to: it never fails, it answers.
pub type Reply = Result<Response<Body>, Infallible>;

/// Trace, deadline and user of a request, for what it has called.
pub fn call_of<B>(request: &Request<B>) -> CallContext {
    request.extensions().get::<CallContext>().cloned().unwrap_or_default()
}

/// Reads a JSON body of at most `most` bytes.
///
/// # Errors
/// The answer that says what is wrong with it: 400, 408, 413, 415 or 422.
pub async fn read_json<T: DeserializeOwned>(request: Request<Body>, most: usize) -> Result<T, Response<Body>> {
    let kind = request.headers().get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    let essence = kind.split(';').next().unwrap_or_default().trim();
    if !essence.eq_ignore_ascii_case("application/json") {
        return Err(problem(StatusCode::UNSUPPORTED_MEDIA_TYPE, "The body must be application/json."));
    }
    let body = match Limited::new(request.into_body(), most).collect().await {
        Ok(body) => body.to_bytes(),
        Err(error) if error.is::<LengthLimitError>() => {
            return Err(problem(StatusCode::PAYLOAD_TOO_LARGE, "The body is larger than is taken here."));
        }
        // The port has its own answer for a body that is too large or too slow, and sends it in place of this one.
        Err(_) => return Err(problem(StatusCode::BAD_REQUEST, "The body did not come whole.")),
    };
    // What serde says names the field, and repeats what the client wrote to the client alone.
    serde_json::from_slice(&body).map_err(|error| {
        let status = if error.is_data() { StatusCode::UNPROCESSABLE_ENTITY } else { StatusCode::BAD_REQUEST };
        problem(status, &error.to_string())
    })
}

/// Answers with `value` as JSON.
pub fn reply<T: Serialize + ?Sized>(status: StatusCode, value: &T) -> Reply {
    Ok(json(status, "application/json", value))
}

/// An answer in problem details (RFC 9457). `detail` is read by whoever asked: nothing internal belongs there.
pub fn problem(status: StatusCode, detail: &str) -> Response<Body> {
    let title = status.canonical_reason().unwrap_or_default();
    json(status, "application/problem+json", &serde_json::json!({ "title": title, "status": status.as_u16(), "detail": detail }))
}

fn json<T: Serialize + ?Sized>(status: StatusCode, kind: &'static str, value: &T) -> Response<Body> {
    match serde_json::to_vec(value) {
        Ok(text) => {
            let mut response = Response::new(Body::from(text));
            *response.status_mut() = status;
            response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
            response
        }
        // A map whose keys are no strings: a mistake in the program.
        Err(error) => {
            tracing::error!(%error, "an answer has no JSON form");
            let mut response = Response::new(Body::empty());
            *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
            response
        }
    }
}

/// The answer for a call that had no answer of its own: whether to try again, and nothing of what is behind.
///
/// `failed` makes the answer for the callee's own error.
pub fn unanswered<E>(error: &CallError<E>, failed: impl FnOnce(&E) -> Response<Body>) -> Response<Body> {
    let (status, detail) = match error {
        CallError::Failed(error) => return failed(error),
        CallError::NoEffect(NoEffect::Malformed(_)) => (StatusCode::BAD_REQUEST, "The request has not the form that is wanted."),
        CallError::NoEffect(NoEffect::TooLarge(_)) => (StatusCode::PAYLOAD_TOO_LARGE, "The request is too large."),
        // A node that may not ask is set up wrongly; whoever asked it can do nothing about that.
        CallError::NoEffect(
            NoEffect::NotAllowed(_) | NoEffect::InvalidAddress(_) | NoEffect::VersionNotSpoken(_) | NoEffect::TooManyHops,
        ) => (StatusCode::INTERNAL_SERVER_ERROR, "Nothing was done; this cannot be answered here."),
        CallError::NoEffect(_) => (StatusCode::SERVICE_UNAVAILABLE, "Nothing was done; try again."),
        CallError::Unknown(Unknown::DeadlinePassed) => {
            (StatusCode::GATEWAY_TIMEOUT, "There was no answer in time; what was asked may have been done.")
        }
        CallError::Unknown(_) => (StatusCode::BAD_GATEWAY, "The answer was lost; what was asked may have been done."),
    };
    let mut response = problem(status, detail);
    if status == StatusCode::SERVICE_UNAVAILABLE {
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq, serde::Deserialize)]
    struct Order {
        quantity: u32,
    }

    fn post(kind: &str, body: &str) -> Request<Body> {
        Request::post("/").header(header::CONTENT_TYPE, kind).body(Body::from(body.to_owned())).unwrap()
    }

    #[tokio::test]
    async fn a_json_body_is_read_and_what_is_none_is_answered() {
        let read = read_json::<Order>(post("Application/JSON; charset=utf-8", r#"{"quantity":2}"#), 100).await;
        assert_eq!(read.unwrap(), Order { quantity: 2 });
        for (request, status) in [
            (post("text/plain", r#"{"quantity":2}"#), 415),
            (post("application/json", "{"), 400),
            (post("application/json", r#"{"quantity":-2}"#), 422),
            (post("application/json", &format!(r#"{{"quantity":2{}}}"#, " ".repeat(100))), 413),
        ] {
            let answer = read_json::<Order>(request, 100).await.unwrap_err();
            assert_eq!(answer.status(), status);
            assert_eq!(answer.headers()[header::CONTENT_TYPE], "application/problem+json");
        }
    }

    #[tokio::test]
    async fn a_call_that_was_not_answered_says_whether_to_try_again_and_nothing_else() {
        let cases: [(CallError<()>, u16); 5] = [
            (NoEffect::NoRoute("bo-1".into()).into(), 503),
            (NoEffect::NotAllowed("fo".into()).into(), 500),
            (Unknown::DeadlinePassed.into(), 504),
            (Unknown::PeerLost("bo-1".into()).into(), 502),
            (CallError::Failed(()), 409),
        ];
        for (error, status) in cases {
            let answer = unanswered(&error, |()| problem(StatusCode::CONFLICT, "no"));
            assert_eq!(answer.status(), status, "{error:?}");
            assert_eq!(answer.headers().contains_key(header::RETRY_AFTER), status == 503);
            let body = answer.into_body().collect().await.unwrap().to_bytes();
            assert!(!String::from_utf8_lossy(&body).contains("bo-1"));
        }
    }
}
