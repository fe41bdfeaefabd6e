//! What may become of a request, by what its caller may do about it.

use std::{sync::Arc, time::Duration};

use super::{
    policy::Refusal,
    target::{Origin, UrlError},
};

/// Error of a caller's body.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Why there is no response.
///
/// [`Self::may_have_been_sent`] divides them: those that had no effect, and those after which nobody knows. The texts name hosts and
/// addresses: for the log, and not for whoever chose the URL.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EgressError {
    /// No effect, permanent: the URL is none that is followed.
    #[error("the URL is refused: {0}")]
    Url(UrlError),
    /// No effect, permanent: the request's head is none that is sent.
    #[error("the request is refused: {0}")]
    Request(RequestError),
    /// No effect, permanent: nobody is reached there.
    #[error("{origin} is refused: {why}")]
    Refused {
        /// Where the request was to go.
        origin: Origin,
        /// Which rule forbids it.
        why: Refusal,
    },
    /// No effect: the name was not resolved. Trying again later may help.
    #[error("{origin} has no address: {why}")]
    Unresolved {
        /// Where the request was to go.
        origin: Origin,
        /// What the resolver said.
        why: Arc<str>,
    },
    /// No effect: no connection came about. Trying again later may help.
    #[error("{origin} cannot be reached: {why}")]
    Unreachable {
        /// Where the request was to go.
        origin: Origin,
        /// What stood in the way.
        why: Arc<str>,
    },
    /// No effect: somebody answers there who cannot prove to be that host.
    #[error("{origin} is not who it should be: {why}")]
    Untrusted {
        /// Where the request was to go.
        origin: Origin,
        /// What TLS found wrong.
        why: Arc<str>,
    },
    /// No effect: the host said that it did not look at the request, and never will (RFC 9113 §8.7, RFC 9114 §4.1.1), or the connection
    /// was closed before it was written. Trying again may help.
    #[error("{origin} did not take the request")]
    NotTaken {
        /// Where the request was to go.
        origin: Origin,
    },
    /// No effect: the host failed too often of late.
    #[error("the circuit of {origin} is open")]
    CircuitOpen {
        /// Where the request was to go.
        origin: Origin,
        /// When it will be tried again.
        retry_after: Duration,
    },
    /// No effect: more requests to this host than are sent in a second.
    #[error("requests to {origin} exceed their rate")]
    RateLimited {
        /// Where the request was to go.
        origin: Origin,
        /// When there will be room for one.
        retry_after: Duration,
    },
    /// No effect: as many requests, connections or hosts as there may be.
    #[error("there are as many {0} as there may be")]
    Overloaded(Bound),
    /// No effect: the deadline passed before the request was sent.
    #[error("the deadline passed before anything was sent to {origin}")]
    TooLate {
        /// Where the request was to go.
        origin: Origin,
    },
    /// No effect, permanent: the request's body is known to be larger than the limit.
    #[error("the request's body is larger than {limit} bytes")]
    RequestTooLarge {
        /// In bytes.
        limit: u64,
    },
    /// Unknown: the request's body turned out larger than the limit, or failed, when a part of it had been sent. The host sees a
    /// request that breaks off.
    #[error("the request's body broke off: {0}")]
    RequestBody(RequestBodyError),
    /// Unknown: no response in time. The request may have taken effect.
    #[error("{origin} did not answer in time")]
    TimedOut {
        /// Where the request went.
        origin: Origin,
    },
    /// Unknown: the connection was lost before the response came.
    #[error("the connection to {origin} was lost: {why}")]
    Lost {
        /// Where the request went.
        origin: Origin,
        /// What became of it.
        why: Arc<str>,
    },
    /// Unknown: what came back is not HTTP, or its head is larger than is read.
    #[error("{origin} did not answer with HTTP: {why}")]
    Nonsense {
        /// Where the request went.
        origin: Origin,
        /// What is wrong with it.
        why: Arc<str>,
    },
    /// The request was answered, with a body larger than the limit. Nothing of it is to be used.
    #[error("the response's body: {0}")]
    Response(BodyError),
    /// The request was sent and answered with a redirect, and following that failed. What the first host did with the request is
    /// done; whether its answer can be had another way is the caller's affair.
    #[error("redirect {hop}, by {by}, leads to no response")]
    Redirect {
        /// How many redirects were followed before, and this one.
        hop: u8,
        /// Who redirected.
        by: Origin,
        /// What stood in the way.
        source: Box<RedirectError>,
    },
}

/// What there are enough of already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Bound {
    /// Requests in flight altogether.
    Requests,
    /// Requests in flight to one host.
    RequestsToHost,
    /// Open connections altogether.
    Connections,
    /// Hosts that are remembered, each with something in flight.
    Hosts,
    /// Names being looked up.
    Lookups,
}

impl std::fmt::Display for Bound {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Requests => "requests in flight",
            Self::RequestsToHost => "requests to that host in flight",
            Self::Connections => "connections",
            Self::Hosts => "hosts",
            Self::Lookups => "names being looked up",
        })
    }
}

/// What is wrong with a request's head.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RequestError {
    /// CONNECT would make a tunnel behind the checks, TRACE gives credentials back.
    #[error("the method is not sent")]
    Method,
    /// Said by whoever drives the connection (RFC 9110 §7.6.1), or decided by the URL (`Host`).
    #[error("the field {0} is not the caller's to set")]
    Field(http::HeaderName),
    /// More fields, or larger ones, than are sent, or than the host says that it takes.
    #[error("the head is larger than is sent")]
    TooLarge,
    /// `Content-Length` is not the body's.
    #[error("the length that is said is not the body's")]
    Length,
    /// The body's source failed before anything was sent.
    #[error("the source of the body failed")]
    Body,
    /// HTTP/3 was asked for where there is no TLS.
    #[error("HTTP/3 is spoken over https alone")]
    PlainHttp3,
}

/// What became of a request's body while it was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RequestBodyError {
    /// It went on beyond the limit.
    #[error("it is larger than the limit")]
    TooLarge,
    /// Its source failed.
    #[error("its source failed")]
    Failed,
    /// Its source gave nothing for as long as a host may take for an answer, or until the deadline.
    #[error("its source stalled")]
    Stalled,
}

/// Why a response's body ended early. What was read of it is not the whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BodyError {
    /// It is larger than the limit.
    #[error("it is larger than {limit} bytes")]
    TooLarge {
        /// In bytes.
        limit: u64,
    },
    /// Nothing came for as long as there may be between two parts.
    #[error("it stopped coming")]
    Stalled,
    /// The deadline passed.
    #[error("the deadline passed before its end")]
    TooLate,
    /// The connection was lost, or what came was not HTTP.
    #[error("it broke off")]
    Broken,
}

/// Why a redirect was not followed to its end.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RedirectError {
    /// One more than the limit.
    #[error("there are more than {limit} redirects")]
    TooMany {
        /// As the caller said.
        limit: u8,
    },
    /// Without a `Location`, or with several, or one that is no text.
    #[error("it does not say where to")]
    Nowhere,
    /// From `https` to `http`.
    #[error("it leads from https to http")]
    Downgrade,
    /// The body would go to another origin than the caller has named.
    #[error("it would take the body to another origin")]
    BodyElsewhere,
    /// Where it leads, the request failed.
    #[error(transparent)]
    Hop(EgressError),
}

impl EgressError {
    /// Whether a host may have seen the request, or a part of it. If not, it had no effect and may be sent again, whatever it asks.
    pub fn may_have_been_sent(&self) -> bool {
        match self {
            Self::Url(_)
            | Self::Request(_)
            | Self::Refused { .. }
            | Self::Unresolved { .. }
            | Self::Unreachable { .. }
            | Self::Untrusted { .. }
            | Self::NotTaken { .. }
            | Self::CircuitOpen { .. }
            | Self::RateLimited { .. }
            | Self::Overloaded(_)
            | Self::TooLate { .. }
            | Self::RequestTooLarge { .. } => false,
            Self::RequestBody(_)
            | Self::TimedOut { .. }
            | Self::Lost { .. }
            | Self::Nonsense { .. }
            | Self::Response(_)
            | Self::Redirect { .. } => true,
        }
    }

    /// Whether the same request will fail the same way until somebody changes it or the configuration.
    pub fn is_permanent(&self) -> bool {
        match self {
            Self::Url(_) | Self::Request(_) | Self::Refused { .. } | Self::RequestTooLarge { .. } => true,
            Self::Response(BodyError::TooLarge { .. }) | Self::RequestBody(RequestBodyError::TooLarge) => true,
            Self::Redirect { source, .. } => match &**source {
                RedirectError::Hop(error) => error.is_permanent(),
                _ => true,
            },
            _ => false,
        }
    }

    /// When trying again makes sense at the earliest, where that is known.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::CircuitOpen { retry_after, .. } | Self::RateLimited { retry_after, .. } => Some(*retry_after),
            Self::Redirect { source, .. } => match &**source {
                RedirectError::Hop(error) => error.retry_after(),
                _ => None,
            },
            _ => None,
        }
    }

    /// The rule that forbids it, here or behind a redirect.
    pub fn refusal(&self) -> Option<&Refusal> {
        match self {
            Self::Refused { why, .. } => Some(why),
            Self::Redirect { source, .. } => match &**source {
                RedirectError::Hop(error) => error.refusal(),
                _ => None,
            },
            _ => None,
        }
    }
}
