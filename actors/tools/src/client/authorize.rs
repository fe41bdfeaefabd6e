//! What proves this node to a server: a line in a file, or whatever a program has for it.

use std::{fmt, path::Path, sync::Arc};

use futures_util::future::BoxFuture;
use horos_router::strategy::secret::Secret;
use http::{HeaderValue, StatusCode};

/// Knows what is sent as `Authorization` to one server. Shared by all of its requests.
pub trait Authorize: fmt::Debug + Send + Sync + 'static {
    /// What is sent now; nothing where there is nothing yet.
    ///
    /// # Errors
    /// [`AuthorizeError`]: then the request is not sent.
    fn authorization(&self) -> BoxFuture<'_, Result<Option<HeaderValue>, AuthorizeError>>;

    /// The server refused a request, by 401 or by 403 with a challenge: what it is to be sent again with, or nothing where there is
    /// no more to show, and the refusal holds. Asked at most [`MAX_CHALLENGES`] times for one request, by several at once perhaps.
    ///
    /// # Errors
    /// [`AuthorizeError`]: then the request is given up, without an effect.
    fn challenged(&self, challenge: Challenge) -> BoxFuture<'_, Result<Option<HeaderValue>, AuthorizeError>>;
}

/// Challenges that one request may meet: no token, one of another audience or expired, and one with too few scopes.
pub const MAX_CHALLENGES: usize = 3;

/// How a server refused.
#[derive(Clone, Debug)]
pub struct Challenge {
    /// Whom was asked.
    pub url: Arc<str>,
    /// 401 or 403.
    pub status: StatusCode,
    /// Its `WWW-Authenticate` fields, in their order.
    pub www_authenticate: Vec<String>,
    /// What it refused, so that who has got something new meanwhile is not asked to get it again.
    pub shown: Option<HeaderValue>,
}

/// Why there is nothing to show. The text names no secret.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct AuthorizeError(pub Box<str>);

impl AuthorizeError {
    /// An error with this text.
    pub fn new(text: impl Into<Box<str>>) -> Self {
        Self(text.into())
    }
}

/// The line of a file in `secrets/`, as the strategy `http` has it. Read anew when the file changes, and never got otherwise.
pub struct FromFile(Secret);

impl FromFile {
    /// The file `name` in `directory`.
    pub fn new(directory: &Path, name: &str) -> Self {
        Self(Secret::new(directory, name))
    }

    fn read(&self) -> Result<HeaderValue, AuthorizeError> {
        self.0.read().map_err(|error| AuthorizeError::new(error.to_string()))
    }
}

impl fmt::Debug for FromFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Authorize for FromFile {
    fn authorization(&self) -> BoxFuture<'_, Result<Option<HeaderValue>, AuthorizeError>> {
        let read = self.read().map(Some);
        Box::pin(std::future::ready(read))
    }

    /// Another line than the refused one, if the file was replaced while the request was on its way.
    fn challenged(&self, challenge: Challenge) -> BoxFuture<'_, Result<Option<HeaderValue>, AuthorizeError>> {
        let read = self.read().map(|line| Some(line).filter(|line| challenge.shown.as_ref() != Some(line)));
        Box::pin(std::future::ready(read))
    }
}
