//! Services that take bytes and give bytes, and say themselves what is in them: an image scaler, a proxy, whatever no type describes.
//!
//! Any actor may answer this protocol under its own name. The gateway passes bodies on to such services as they are, those beyond one
//! message as a stream.

use bytes::Bytes;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::Bulk;

/// A request, and a reply.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Content {
    /// The media type, where somebody said it.
    pub content_type: Option<Box<str>>,
    /// All of it, or nothing where it comes as a stream.
    pub body: Bytes,
    /// The stream that it comes as: to be claimed by the callee, of a reply by the caller.
    pub stream: Option<Bulk>,
}

/// The service's own reason not to do it. The caller is told; nothing internal belongs there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema, thiserror::Error)]
#[error("{reason}")]
pub struct Refused {
    /// As an HTTP status from 400 to 499; any other is 422.
    pub status: u16,
    /// Why.
    pub reason: Box<str>,
}

crate::protocol! {
    /// Bytes in, bytes out.
    pub ByteService = "horos.bytes" v1 {
        1 handle: Content => Content, Refused;
    }
}
