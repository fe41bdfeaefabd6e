//! What other crates hand in to be served.

use std::{
    convert::Infallible,
    fmt,
    sync::Arc,
    task::{Context, Poll, Waker},
    time::Duration,
};

use axum::body::Body;
use bytes::Bytes;
use futures_util::{FutureExt as _, future::BoxFuture};
use horos_wire::principal::Scope;
use tower::{Service, ServiceExt as _};

/// Whatever a body may fail with.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Who may use an endpoint. There is no default: each says it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Access {
    /// Everybody, without a key.
    Public,
    /// Whoever's key or token grants this scope.
    Scope(Scope),
    /// The service itself says, for each request: whoever shows a key or a token is proved to be somebody, or refused, before the
    /// service is asked; whoever shows none comes as nobody. Its bare 401 and 403 are told, and counted, as the port's own.
    PerRequest,
}

/// Which listener serves an endpoint, where `listen.public` is another address than `listen.cluster`. With one address
/// it serves both.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Plane {
    /// `listen.public`.
    Public,
    /// `listen.cluster`: administration.
    Cluster,
    /// Both.
    Both,
}

/// Longest that a service may have for its answer: what configuration may give all of them. A request that waits has a place among
/// those in hand.
pub const MAX_ANSWER: Duration = Duration::from_secs(3600);

/// Takes a request with a clone of the service: one allocation, where a boxed service that is cloned itself has two.
pub(crate) type Serve = Arc<dyn Fn(http::Request<Body>) -> BoxFuture<'static, http::Response<Body>> + Send + Sync>;

/// A service under a prefix of the one router.
#[derive(Clone)]
pub struct Mount {
    pub(crate) prefix: Box<str>,
    pub(crate) access: Access,
    pub(crate) plane: Plane,
    pub(crate) body_limit: Option<u64>,
    pub(crate) answer_limit: Option<Duration>,
    pub(crate) keeps_credentials: bool,
    pub(crate) described_at: Option<Box<str>>,
    pub(crate) serve: Serve,
}

impl fmt::Debug for Mount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Mount({}, {:?}, {:?})", self.prefix, self.access, self.plane)
    }
}

/// Why something cannot be mounted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MountError {
    /// The prefix is none.
    #[error("{0:?} is no prefix: write it like /shop, without a slash at its end, or / for all that is not taken")]
    Prefix(Box<str>),
    /// Two services under one prefix, or one under a path that the port itself answers.
    #[error("{0} is mounted twice")]
    Taken(Box<str>),
}

impl Mount {
    /// `service` for every path that is `prefix` or below it; it sees the path without the prefix. `/` takes every path that
    /// no other prefix does.
    ///
    /// Its requests carry extensions: [`horos_wire::CallContext`] (trace, deadline, claims) and [`crate::Client`] always,
    /// and `Arc<`[`horos_wire::principal::Principal`]`>` where a key or a token was looked at. What proved it has been
    /// taken out of the head then. A `HEAD` arrives as the `GET` that it asks about.
    ///
    /// # Errors
    /// [`MountError::Prefix`].
    pub fn new<S, B>(prefix: &str, access: Access, plane: Plane, service: S) -> Result<Self, MountError>
    where
        S: Service<http::Request<Body>, Response = http::Response<B>, Error = Infallible> + Clone + Send + Sync + 'static,
        S::Future: Send + 'static,
        B: http_body::Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        // The characters of RFC 3986 §3.3 that need no escape and mean nothing to a router.
        let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'/' | b'-' | b'.' | b'_' | b'~');
        let is_path = prefix.starts_with('/') && !prefix.ends_with('/') && !prefix.contains("//") && prefix.bytes().all(plain);
        if prefix != "/" && (!is_path || prefix.split('/').any(|part| part == "." || part == "..")) {
            return Err(MountError::Prefix(prefix.into()));
        }
        let answer = |answer: Result<http::Response<B>, Infallible>| match answer {
            Ok(response) => response.map(Body::new),
            Err(never) => match never {},
        };
        let serve = move |request| -> BoxFuture<'static, http::Response<Body>> {
            let mut service = service.clone();
            // Nearly all are ready at once, and then only what they answer with has to be kept, and not the request too.
            match service.poll_ready(&mut Context::from_waker(Waker::noop())) {
                Poll::Ready(Ok(())) => Box::pin(service.call(request).map(answer)),
                Poll::Ready(Err(never)) => match never {},
                Poll::Pending => Box::pin(service.oneshot(request).map(answer)),
            }
        };
        Ok(Self {
            prefix: prefix.into(),
            access,
            plane,
            body_limit: None,
            answer_limit: None,
            keeps_credentials: false,
            described_at: None,
            serve: Arc::new(serve),
        })
    }

    /// Takes bodies up to `bytes`, instead of up to [`crate::Limits::body`].
    #[must_use]
    pub fn with_body_limit(mut self, bytes: u64) -> Self {
        self.body_limit = Some(bytes);
        self
    }

    /// Takes up to `limit` for the head of its answer, instead of [`crate::Timeouts::answer`] where that is shorter: at most
    /// [`MAX_ANSWER`]. A request's body has to be there within the port's own limit all the same.
    #[must_use]
    pub fn with_answer_limit(mut self, limit: Duration) -> Self {
        self.answer_limit = Some(limit.min(MAX_ANSWER));
        self
    }

    /// Leaves in the head what proved who asks: for a service that passes requests on to where they are proved again.
    #[must_use]
    pub fn keeping_credentials(mut self) -> Self {
        self.keeps_credentials = true;
        self
    }

    /// Says in each 401 where it is told how to get what is missing (RFC 9728 §5.1): at `place`, a path of this port or a whole URL.
    #[must_use]
    pub fn described_at(mut self, place: &str) -> Self {
        self.described_at = Some(place.into());
        self
    }

    /// The prefix.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// Who may use it.
    pub fn access(&self) -> &Access {
        &self.access
    }
}
