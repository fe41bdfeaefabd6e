//! Sends clients to the owner themselves: where they can reach it, its data need not come through here.

use std::{convert::Infallible, future::Ready, task::Poll};

use http::{HeaderValue, Request, Response, StatusCode, header};
use tower::Service;

use super::{Answer, Body, Origin, Prefix, empty, problem::Failure};

/// Answers 307 (RFC 9110 §15.4.8) with the owner's public address, which the configuration says and no request.
#[derive(Clone, Debug)]
pub struct RedirectToOwner {
    owner: Origin,
    to: Prefix,
    reads: Reads,
}

/// What becomes of requests that only read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reads {
    Refused,
    Sent,
}

impl RedirectToOwner {
    /// Redirects what writes to `owner`, below `to`; what only reads is answered 405. [`super::ByMethod`] keeps it here.
    pub fn new(owner: Origin, to: Prefix) -> Self {
        Self { owner, to, reads: Reads::Refused }
    }

    /// Redirects what only reads too.
    #[must_use]
    pub fn with_reads(mut self) -> Self {
        self.reads = Reads::Sent;
        self
    }

    fn answer<B>(&self, request: &Request<B>) -> Response<Body> {
        if request.method().is_safe() && self.reads == Reads::Refused {
            return Failure::ReadsHere.answer();
        }
        let asked = request.uri().path_and_query().map_or("/", |asked| asked.as_str());
        // As it was written, escapes and all. A slash before it, so that it cannot go on with the host's name.
        let path = if asked.starts_with('/') { asked.to_owned() } else { format!("/{asked}") };
        let Ok(location) = HeaderValue::try_from(format!("{}{}", self.owner, self.to.join(&path))) else {
            return Failure::Target.answer();
        };
        let mut answer = Response::new(empty());
        *answer.status_mut() = StatusCode::TEMPORARY_REDIRECT;
        answer.headers_mut().insert(header::LOCATION, location);
        answer.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        answer
    }
}

impl<B> Service<Request<B>> for RedirectToOwner {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Ready<Answer>;

    fn poll_ready(&mut self, _: &mut std::task::Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        std::future::ready(Ok(self.answer(&request)))
    }
}

#[cfg(test)]
mod tests {
    use http::Method;

    use super::*;

    fn redirected(method: Method, asked: &str, host: &str) -> Response<Body> {
        let redirect = RedirectToOwner::new("https://bo.example.org".parse().unwrap(), "/api".parse().unwrap());
        redirect.answer(&Request::builder().method(method).uri(asked).header("host", host).body(()).unwrap())
    }

    #[test]
    fn a_write_is_sent_to_the_configured_owner_and_nowhere_else() {
        for (asked, location) in [
            ("/order?a=1&b=%2F", "https://bo.example.org/api/order?a=1&b=%2F"),
            ("//evil.example/x", "https://bo.example.org/api//evil.example/x"),
            ("https://evil.example/x", "https://bo.example.org/api/x"),
            ("/@evil.example", "https://bo.example.org/api/@evil.example"),
            ("*", "https://bo.example.org/api/*"),
        ] {
            let answer = redirected(Method::POST, asked, "evil.example");
            assert_eq!((answer.status().as_u16(), answer.headers()["location"].to_str().unwrap()), (307, location));
        }
    }

    #[test]
    fn a_read_is_not_sent_away_unless_it_is_said() {
        let answer = redirected(Method::GET, "/x", "a");
        assert_eq!(answer.status(), StatusCode::METHOD_NOT_ALLOWED);
        assert!(!answer.headers().contains_key("location") && answer.headers().contains_key("allow"));
        let redirect = RedirectToOwner::new("https://bo.example.org".parse().unwrap(), Prefix::default()).with_reads();
        let answer = redirect.answer(&Request::get("/x").body(()).unwrap());
        assert_eq!(answer.headers()["location"], "https://bo.example.org/x");
    }
}
