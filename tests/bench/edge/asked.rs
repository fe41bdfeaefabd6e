//! What is asked and what is answered: the same for both servers, and known to the byte, so that every answer
//! is checked and neither side spends time on finding out.

use axum::{
    http::{HeaderName, HeaderValue, header::CONTENT_TYPE},
    response::IntoResponse,
};

/// Where the answer is mounted, and under which path it is there.
pub(crate) const PREFIX: &str = "/bench";
pub(crate) const PATH: &str = "/bench/answer";
/// How it is asked for, and what is sent along, which another benchmark has some of.
pub(crate) const METHOD: &str = "GET";
pub(crate) const UPLOAD_FIELDS: &str = "";
pub(crate) const UPLOAD: &[u8] = b"";
/// The scope that it wants.
pub(crate) const SCOPE: &str = "bench";
/// The name that the certificate is for.
pub(crate) const HOST: &str = "localhost";
/// The header that a key comes in.
pub(crate) const KEY_HEADER: &str = "x-api-key";
/// What the load calls itself.
pub(crate) const AGENT: &str = "horos-bench";

/// 128 bytes of JSON.
pub(crate) const BODY: &[u8; 128] =
    br#"{"sku":"A-1042","name":"hinge, brass, 40 mm","on_hand":137,"reserved":12,"warehouse":"north-2","updated":"2026-11-21T12:00:00Z"}"#;
const JSON: (HeaderName, HeaderValue) = (CONTENT_TYPE, HeaderValue::from_static("application/json"));

/// The handler, ours and the floor's.
pub(crate) async fn answer() -> impl IntoResponse {
    ([JSON], &BODY[..])
}
