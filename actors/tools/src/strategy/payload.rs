//! What a call by route says to a tool, and what its answer is to the caller.
//!
//! What is asked:
//! - JSON of an actor's protocol, `{"method": {…}}`: the object is the arguments. The tool is the row's `tool_name`, or else the one that
//!   is called as the method is.
//! - With a `tool_name`, any other JSON object is the arguments themselves, and nothing is none. `"payload": "bytes"` in the row says
//!   that they always are, also where there is one argument that is an object.
//!
//! What comes back: the structured content; without any, the text, which is taken for JSON if it is an object or an array of it; and of
//! what is more than a text, all of it as MCP has it, `{"content": […]}`. A result that says `isError` is the callee's own error: its
//! structured content, or its text.

use std::time::Instant;

use bytes::Bytes;
use horos_router::{
    config::{Config, Payload},
    strategy::{Answer, Failure, Message},
};
use horos_wire::{CallContext, CallError, NoEffect, Unknown};
use rmcp::model::{CallToolResult, ContentBlock, JsonObject, RequestMetaObject};
use serde_json::Value;

const JSON: &str = "application/json";
/// Beside the arguments, for a Horos at the other end: how often the call was passed on, how long its caller waits, and what makes two of
/// it one. By MCP's rule for names of `_meta`, with a prefix of our own.
pub(crate) const HOPS: &str = "horos/hops";
const TIMEOUT: &str = "horos/timeout-ms";
const IDEMPOTENCY_KEY: &str = "horos/idempotency-key";
/// In a result that says `isError`: what a Horos means by it.
pub(crate) const OUTCOME: &str = "horos/outcome";
pub(crate) const RETRY_AFTER: &str = "horos/retry-after-ms";
/// No server is left alone for longer because it says so.
const LONGEST_MS: u64 = 3_600_000;

/// Which tool is called with what.
pub(super) fn asked(message: &Message, config: &Config) -> Result<(String, Option<JsonObject>), NoEffect> {
    let malformed = |what: &str| NoEffect::Malformed(what.into());
    let named = config.tool_name.as_deref();
    let body = message.body.trim_ascii();
    if body.is_empty() {
        let tool = named.ok_or_else(|| malformed("the route names no tool, and the message no method"))?;
        return Ok((tool.to_owned(), None));
    }
    let value: Value = serde_json::from_slice(body).map_err(|error| NoEffect::Malformed(format!("a tool takes JSON: {error}").into()))?;
    let Value::Object(mut object) = value else { return Err(malformed("a tool takes a JSON object")) };
    if config.payload != Some(Payload::Bytes) && object.len() == 1 {
        let is_method = object.values().all(|inner| inner.is_object() || inner.is_null());
        if is_method && let Some((method, inner)) = std::mem::take(&mut object).into_iter().next() {
            let arguments = match inner {
                Value::Object(arguments) => Some(arguments),
                _ => None,
            };
            return Ok((named.map_or(method, str::to_owned), arguments));
        }
    }
    let tool = named.ok_or_else(|| malformed("the route names no tool, so that a message is {\"tool\": {…}}"))?;
    Ok((tool.to_owned(), Some(object)))
}

/// What goes beside the arguments.
pub(super) fn meta(context: &CallContext, until: Instant) -> RequestMetaObject {
    let mut meta = RequestMetaObject::default();
    let object = &mut meta.0.0;
    if !context.trace.is_none() {
        // SEP-414: the names of W3C Trace Context, without a prefix.
        object.insert("traceparent".to_owned(), format!("00-{}-{:016x}-00", context.trace, rand::random::<u64>().max(1)).into());
    }
    object.insert(HOPS.to_owned(), context.hops.into());
    let left = until.saturating_duration_since(Instant::now()).as_millis().max(1);
    object.insert(TIMEOUT.to_owned(), u64::try_from(left).unwrap_or(u64::MAX).into());
    if let Some(key) = context.claims.as_ref().and_then(|claims| claims.idempotency_key.as_deref()) {
        object.insert(IDEMPOTENCY_KEY.to_owned(), key.into());
    }
    meta
}

/// What the caller is told.
pub(super) fn answer(result: CallToolResult) -> Result<Answer, Failure> {
    let is_error = result.is_error == Some(true);
    if is_error && let Some(failure) = meant(&result) {
        return Err(failure);
    }
    let text = text(&result.content);
    let value = match (result.structured_content, text) {
        (Some(structured), _) => structured,
        (None, Some(text)) => match serde_json::from_str(&text) {
            Ok(value @ (Value::Object(_) | Value::Array(_))) => value,
            _ => Value::String(text),
        },
        (None, None) if result.content.is_empty() => Value::Null,
        (None, None) => serde_json::json!({"content": result.content}),
    };
    let body = Bytes::from(value.to_string());
    if is_error {
        return Err(Failure { error: CallError::Failed(body), retry_after: None });
    }
    Ok(Answer { content_type: Some(JSON.into()), body })
}

/// All of the content, if it is text alone.
fn text(content: &[ContentBlock]) -> Option<String> {
    let texts: Option<Vec<&str>> = content.iter().map(|block| block.as_text().map(|text| &*text.text)).collect();
    texts.filter(|texts| !texts.is_empty()).map(|texts| texts.join("\n"))
}

/// What a Horos means by an error that is not the tool's own. Anybody may say such a thing, and is believed: it is about the call that
/// was sent to him.
fn meant(result: &CallToolResult) -> Option<Failure> {
    let meta = result.meta.as_ref()?;
    let outcome = meta.get(OUTCOME)?.as_str()?;
    let said = || Box::<str>::from(text(&result.content).map(|text| text.chars().take(256).collect::<String>()).unwrap_or_default());
    let error = match outcome {
        "no_such_tool" => NoEffect::NoSuchActor(said()).into(),
        "denied" => NoEffect::NotAllowed(said()).into(),
        "invalid_arguments" => NoEffect::Malformed(said()).into(),
        "busy" => NoEffect::Overloaded(said()).into(),
        "unavailable" => NoEffect::NoRoute(said()).into(),
        "deadline" => Unknown::DeadlinePassed.into(),
        "too_large" => Unknown::ReplyTooLarge(said()).into(),
        "unknown" => Unknown::PeerLost(said()).into(),
        _ => return None,
    };
    let retry_after = meta.get(RETRY_AFTER).and_then(Value::as_u64).map(|ms| std::time::Duration::from_millis(ms.min(LONGEST_MS)));
    Some(Failure { error, retry_after })
}
