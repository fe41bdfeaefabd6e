//! What is asked over HTTP and what is answered: a kibibyte there and back, known to the byte, the same for every server.

use axum::Json;
use serde::Deserialize;

use crate::placed::Say;

/// Under which path it is answered, and what is mounted there.
pub(crate) const PREFIX: &str = "/services";
pub(crate) const PATH: &str = "/services/echo";
/// The service, and the scope that its route wants.
pub(crate) const SERVICE: &str = "echo";
pub(crate) const SCOPE: &str = "bench";
/// The name that the certificate is for.
pub(crate) const HOST: &str = "localhost";
/// The header that a key comes in.
pub(crate) const KEY_HEADER: &str = "x-api-key";
/// What the load calls itself.
pub(crate) const AGENT: &str = "horos-bench";

/// Of a kibibyte that is sent, what is not around it.
const TEXT: usize = 1024 - BEFORE.len() - AFTER.len();
const BEFORE: &[u8] = br#"{"echo":{"text":""#;
const AFTER: &[u8] = br#""}}"#;

/// What is sent, and how: a message in JSON as a typed actor takes it.
pub(crate) const METHOD: &str = "POST";
pub(crate) const UPLOAD_FIELDS: &str = "content-type: application/json\r\ncontent-length: 1024\r\n";
pub(crate) const UPLOAD: &[u8] = &around::<1024>(BEFORE, AFTER);
/// What comes back.
pub(crate) const BODY: &[u8; TEXT + 2] = &around(b"\"", b"\"");

/// A text between two others.
const fn around<const LENGTH: usize>(before: &[u8], after: &[u8]) -> [u8; LENGTH] {
    let mut bytes = [b'e'; LENGTH];
    let mut at = 0;
    while at < before.len() {
        bytes[at] = before[at];
        at += 1;
    }
    at = 0;
    while at < after.len() {
        bytes[LENGTH - after.len() + at] = after[at];
        at += 1;
    }
    bytes
}

/// What the handlers of axum read.
#[derive(Deserialize)]
pub(crate) struct Message {
    echo: Say,
}

/// The handler of axum, ours and the floor's: read, and written again.
pub(crate) async fn answer(Json(message): Json<Message>) -> Json<String> {
    Json(message.echo.text)
}
