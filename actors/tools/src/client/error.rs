//! What a call to another's server may come to, by what its caller may do about it.

use std::time::Duration;

use horos_egress::EgressError;
use horos_router::strategy::answer;
use horos_wire::{CallError, NoEffect, Unknown};
use http::StatusCode;
use rmcp::{
    ErrorData,
    model::ErrorCode,
    service::{ClientInitializeError, ServiceError},
    transport::{DynamicTransportError, streamable_http_client::StreamableHttpError},
};

use super::{authorize::AuthorizeError, program::NotSent};
use crate::quic::SendError;

/// Longest text of a server's that is passed on, in bytes: it is a stranger's, and goes into logs.
const MAX_TEXT: usize = 512;
/// What a transport here makes of an answer that it does not read. A server that says so itself is believed.
pub(super) const TOO_LARGE: ErrorCode = ErrorCode(-32098);

/// Why a server gave no answer. What a tool says of itself is none of these: that is its answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// Nothing was done: it was not sent, or the server says that it has not looked at it. Trying again is safe.
    #[error("{why}")]
    NoEffect {
        /// Why.
        why: NoEffect,
        /// How long the server asked to be left alone, or has to be.
        retry_after: Option<Duration>,
    },
    /// It was sent, and nobody knows what became of it.
    #[error("{why}")]
    Unknown {
        /// Why.
        why: Unknown,
        /// How long the server asked to be left alone.
        retry_after: Option<Duration>,
    },
}

impl From<NoEffect> for ClientError {
    fn from(why: NoEffect) -> Self {
        Self::NoEffect { why, retry_after: None }
    }
}

impl From<Unknown> for ClientError {
    fn from(why: Unknown) -> Self {
        Self::Unknown { why, retry_after: None }
    }
}

impl ClientError {
    /// How long the server is to be left alone, if that was said.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::NoEffect { retry_after, .. } | Self::Unknown { retry_after, .. } => *retry_after,
        }
    }

    /// As an error of a call, whatever the callee's own error would be.
    pub fn into_call_error<E>(self) -> CallError<E> {
        match self {
            Self::NoEffect { why, .. } => CallError::NoEffect(why),
            Self::Unknown { why, .. } => CallError::Unknown(why),
        }
    }

    /// Whether it speaks against the connection, and not against the one request.
    pub(super) fn is_the_connections(&self) -> bool {
        match self {
            Self::NoEffect { why, .. } => matches!(why, NoEffect::NoRoute(_) | NoEffect::VersionNotSpoken(_)),
            Self::Unknown { why, .. } => matches!(why, Unknown::PeerLost(_)),
        }
    }

    /// Whether nobody is there to have it: no connection comes about, or none that lasts.
    pub(super) fn is_out_of_reach(&self) -> bool {
        match self {
            Self::NoEffect { why, .. } => matches!(why, NoEffect::NoRoute(_) | NoEffect::CircuitOpen { .. }),
            Self::Unknown { why, .. } => matches!(why, Unknown::PeerLost(_)),
        }
    }
}

/// What may go wrong with a message over HTTP.
#[derive(Debug, thiserror::Error)]
pub(super) enum HttpError {
    /// Nothing of it came about, or not all.
    #[error(transparent)]
    Egress(#[from] EgressError),
    /// It was answered, and not with success.
    #[error("it answered {status}")]
    Status {
        /// What it answered.
        status: StatusCode,
        /// When it wants to be asked again.
        retry_after: Option<Duration>,
    },
    /// Nothing was sent: there is nothing to authorize it with.
    #[error("no authorization: {0}")]
    Authorize(#[from] AuthorizeError),
    /// Nothing was sent: it is larger than servers take.
    #[error("the message is larger than {limit} bytes")]
    MessageTooLarge {
        /// In bytes.
        limit: usize,
    },
    /// It was answered with what is none.
    #[error("its answer is no answer: {0}")]
    Nonsense(Box<str>),
    /// It was answered with more than is read.
    #[error("its answer is larger than {limit} bytes")]
    AnswerTooLarge {
        /// In bytes.
        limit: usize,
    },
}

/// What a failure over HTTP means; `host` is what the server is known by.
fn of_http(error: &StreamableHttpError<HttpError>, host: &str) -> ClientError {
    let text = |error: &dyn std::fmt::Display| Box::<str>::from(format!("{host}: {}", cut(&error.to_string())));
    match error {
        StreamableHttpError::Client(error) => match error {
            // Egress has its own way to say what had an effect.
            HttpError::Egress(error) => of_egress(error, host),
            HttpError::Status { status, retry_after } => {
                match answer::of_status(*status, retry_after.is_some(), None, host) {
                    CallError::NoEffect(why) => ClientError::NoEffect { why, retry_after: *retry_after },
                    CallError::Unknown(why) => ClientError::Unknown { why, retry_after: *retry_after },
                    // Only where the body is given.
                    CallError::Failed(_) => Unknown::MalformedReply(text(error)).into(),
                }
            }
            HttpError::Authorize(error) => NoEffect::NotAllowed(text(error)).into(),
            HttpError::MessageTooLarge { .. } => NoEffect::TooLarge(text(error)).into(),
            HttpError::Nonsense(_) => Unknown::MalformedReply(text(error)).into(),
            HttpError::AnswerTooLarge { .. } => Unknown::ReplyTooLarge(text(error)).into(),
        },
        // The server does not know the session, and so has not looked at what came with it (MCP 2025-11-25, "Session Management").
        StreamableHttpError::SessionExpired | StreamableHttpError::ReinitializationFailed(_) => NoEffect::NoRoute(text(error)).into(),
        StreamableHttpError::AuthRequired(_) | StreamableHttpError::InsufficientScope(_) => {
            NoEffect::NotAllowed(text(&"not allowed")).into()
        }
        // Before it was given to the worker, or the worker is gone with what it had in hand: nobody can tell.
        _ => Unknown::PeerLost(text(error)).into(),
    }
}

pub(super) fn of_egress(error: &EgressError, host: &str) -> ClientError {
    let retry_after = error.retry_after();
    match answer::meaning(error, host) {
        CallError::NoEffect(why) => ClientError::NoEffect { why, retry_after },
        CallError::Unknown(why) => ClientError::Unknown { why, retry_after },
        CallError::Failed(never) => match never {},
    }
}

/// What a transport's error means; none if it is not known to be of ours.
fn of_transport(error: &DynamicTransportError, host: &str) -> ClientError {
    if let Some(error) = error.error.downcast_ref::<StreamableHttpError<HttpError>>() {
        return of_http(error, host);
    }
    match error.error.downcast_ref::<SendError>() {
        // It was not written at all.
        Some(SendError::Message(what)) => return NoEffect::TooLarge(format!("{host}: {}", cut(what)).into()).into(),
        // Nobody has looked at what came from somebody who is not known.
        Some(SendError::Unauthenticated(what)) => return NoEffect::NotAllowed(format!("{host}: {}", cut(what)).into()).into(),
        _ => {}
    }
    match error.error.downcast_ref::<NotSent>() {
        Some(wrong @ NotSent::TooLarge) => return NoEffect::TooLarge(format!("{host}: {wrong}").into()).into(),
        Some(wrong @ NotSent::Busy) => return NoEffect::Overloaded(format!("{host}: {wrong}").into()).into(),
        // A line without its end was never a message.
        Some(wrong @ NotSent::Ended) => return NoEffect::NoRoute(format!("{host}: {wrong}").into()).into(),
        Some(NotSent::Stalled) | None => {}
    }
    // On a stream: a line may have been written in part, and then it was no request; or whole.
    Unknown::PeerLost(format!("{host}: {}", cut(&error.error.to_string())).into()).into()
}

/// What a JSON-RPC error means; `knows` says whether the server lists the tool, where that is known.
///
/// A server that finds the request wrong has not run the tool. One that reports an error of its own may have.
pub(super) fn of_rpc(error: &ErrorData, host: &str, knows: Option<bool>) -> ClientError {
    let text = || Box::<str>::from(format!("{host}: {}", cut(&error.message)));
    match error.code {
        ErrorCode::METHOD_NOT_FOUND => NoEffect::NoSuchActor(text()).into(),
        // "Unknown tools" and invalid arguments have the same code (MCP 2025-11-25, "Error Handling").
        ErrorCode::INVALID_PARAMS if knows == Some(false) => NoEffect::NoSuchActor(text()).into(),
        ErrorCode::INVALID_PARAMS | ErrorCode::INVALID_REQUEST | ErrorCode::PARSE_ERROR | ErrorCode::HEADER_MISMATCH => {
            NoEffect::Malformed(text()).into()
        }
        ErrorCode::UNSUPPORTED_PROTOCOL_VERSION | ErrorCode::MISSING_REQUIRED_CLIENT_CAPABILITY => {
            NoEffect::VersionNotSpoken(text()).into()
        }
        TOO_LARGE => Unknown::ReplyTooLarge(text()).into(),
        _ => Unknown::MalformedReply(text()).into(),
    }
}

/// What became of a request that was given to a running session.
pub(super) fn of_service(error: &ServiceError, host: &str, knows: Option<bool>) -> ClientError {
    let text = || Box::<str>::from(format!("{host}: {}", cut(&error.to_string())));
    match error {
        ServiceError::McpError(error) => of_rpc(error, host, knows),
        ServiceError::TransportSend(error) => of_transport(error, host),
        ServiceError::Timeout { .. } => Unknown::DeadlinePassed.into(),
        ServiceError::UnexpectedResponse | ServiceError::InputRequiredRoundsExceeded { .. } => Unknown::MalformedReply(text()).into(),
        _ => Unknown::PeerLost(text()).into(),
    }
}

/// Why no session came about. Whatever it was, no tool was asked.
pub(super) fn of_opening(error: &ClientInitializeError, host: &str) -> ClientError {
    let text = || Box::<str>::from(format!("{host}: {}", cut(&error.to_string())));
    let same = |error: ClientError| match error {
        known @ ClientError::NoEffect { .. } => known,
        ClientError::Unknown { why, retry_after } => {
            ClientError::NoEffect { why: NoEffect::NoRoute(format!("{host}: {why}").into()), retry_after }
        }
    };
    match error {
        ClientInitializeError::TransportError { error, .. } => same(of_transport(error, host)),
        ClientInitializeError::JsonRpcError(error) => same(of_rpc(error, host, None)),
        ClientInitializeError::LegacyFallbackFailed { fallback, .. } => of_opening(fallback, host),
        ClientInitializeError::NoCompatibleProtocolVersion { .. } => NoEffect::VersionNotSpoken(text()).into(),
        _ => NoEffect::NoRoute(text()).into(),
    }
}

/// The beginning of a stranger's text, in one line.
pub(super) fn cut(text: &str) -> String {
    let mut end = text.len().min(MAX_TEXT);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    let line: String = text[..end].chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    if end < text.len() { format!("{line}…") } else { line }
}
