//! JSON-RPC messages as they stand in lines: read without a detour over values, and refused in words where rmcp would pass over them.
//!
//! The id is kept as it was written and comes back byte by byte. Nothing of a message's contents is in a refusal: a key may be there.

mod of_server;

use std::borrow::Cow;

use rmcp::{
    ErrorData,
    model::{
        CallToolRequest, CallToolRequestParams, ClientNotification, ClientRequest, ClientResult, ErrorCode, GetExtensions as _,
        GetMeta as _, ProtocolVersion, RequestId,
    },
};
use serde::{
    Deserialize, Deserializer, Serialize,
    de::{DeserializeOwned, IgnoredAny},
};
use serde_json::{error::Category, value::RawValue};

pub(crate) use self::of_server::of_server;

/// Longest id that is taken, in bytes: it is kept for as long as its request is in hand.
pub(crate) const MAX_ID: usize = 1024;

/// The peer's fault: the line is not JSON.
pub(crate) const PARSE: i32 = -32700;
/// The message is none.
pub(crate) const INVALID: i32 = -32600;
/// Its parameters are not those of its method.
pub(crate) const PARAMS: i32 = -32602;
/// Not now; nothing was done.
pub(crate) const BUSY: i32 = -32000;
/// The answer was lost; whether something was done is not known.
pub(crate) const LOST: i32 = -32603;
/// Nobody was proved.
pub(crate) const UNAUTHENTICATED: i32 = -32001;

/// The requests of the protocol, of either generation. What has the name of one and not its parameters is told so; everything else is for
/// the handler to say that it does not know it.
const REQUESTS: [&str; 21] = [
    "initialize",
    "server/discover",
    "ping",
    "completion/complete",
    "logging/setLevel",
    "prompts/get",
    "prompts/list",
    "resources/list",
    "resources/templates/list",
    "resources/read",
    "resources/subscribe",
    "resources/unsubscribe",
    "subscriptions/listen",
    "tools/call",
    "tools/list",
    "tasks/get",
    "tasks/update",
    "tasks/cancel",
    "roots/list",
    "sampling/createMessage",
    "elicitation/create",
];
/// The notifications that a client sends and this side acts on.
const NOTIFICATIONS: [&str; 4] =
    ["notifications/cancelled", "notifications/progress", "notifications/initialized", "notifications/roots/list_changed"];

/// Why a message is not taken, as the peer is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    /// The id as it was written; none where there is none that can be told.
    pub(crate) id: Option<Box<str>>,
    pub(crate) code: i32,
    pub(crate) message: Cow<'static, str>,
}

impl Refusal {
    pub(crate) fn new(code: i32, message: impl Into<Cow<'static, str>>) -> Self {
        Self { id: None, code, message: message.into() }
    }

    pub(crate) fn of(self, id: &str) -> Self {
        Self { id: Some(id.into()), ..self }
    }

    /// Whether the peer does not speak the protocol, rather than asks for what it cannot have.
    pub(crate) fn is_strike(&self) -> bool {
        matches!(self.code, PARSE | INVALID)
    }

    pub(crate) fn line(&self) -> Vec<u8> {
        error_line(self.id.as_deref(), &ErrorData::new(ErrorCode(self.code), self.message.clone(), None))
    }
}

/// A line that is a message in form.
#[derive(Debug)]
pub(crate) struct Envelope<'a> {
    line: &'a str,
    params: Option<&'a str>,
    pub(crate) kind: Kind<'a>,
}

#[derive(Debug)]
pub(crate) enum Kind<'a> {
    Request { id: &'a str, method: Cow<'a, str> },
    Notification { method: Cow<'a, str> },
    Answer { id: Option<&'a str>, result: Result<&'a str, &'a str> },
}

/// The parts of a message, none of them looked into.
#[derive(Deserialize)]
struct Parts<'a> {
    #[serde(borrow, default, deserialize_with = "present")]
    jsonrpc: Option<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "present")]
    id: Option<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "present")]
    method: Option<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "present")]
    params: Option<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "present")]
    result: Option<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "present")]
    error: Option<&'a RawValue>,
}

/// `null` is something.
fn present<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<&'de RawValue>, D::Error> {
    <&RawValue>::deserialize(deserializer).map(Some)
}

impl<'a> Envelope<'a> {
    /// # Errors
    /// [`Refusal`], with the id if the message has one that can be told.
    pub(crate) fn read(line: &'a [u8]) -> Result<Self, Refusal> {
        let line = std::str::from_utf8(line).map_err(|_| Refusal::new(PARSE, "parse error: not UTF-8"))?;
        // What serde makes of a struct may be an array too.
        if !line.trim_start_matches([' ', '\t', '\r', '\n']).starts_with('{') {
            return Err(match serde_json::from_str::<IgnoredAny>(line) {
                Ok(_) if line.trim_start().starts_with('[') => Refusal::new(INVALID, "invalid request: batches are not taken"),
                Ok(_) => Refusal::new(INVALID, "invalid request: not an object"),
                Err(error) => parse_error(&error),
            });
        }
        let parts: Parts<'_> = serde_json::from_str(line).map_err(|error| match error.classify() {
            Category::Data => Refusal::new(INVALID, "invalid request: a member is there twice"),
            Category::Syntax | Category::Eof | Category::Io => parse_error(&error),
        })?;
        let id = parts.id.map(RawValue::get);
        let told = id.filter(|id| is_id(id));
        let refuse = |what: &'static str| Refusal { id: told.map(Into::into), code: INVALID, message: what.into() };
        if parts.jsonrpc.map(RawValue::get) != Some("\"2.0\"") {
            return Err(refuse("invalid request: jsonrpc must be \"2.0\""));
        }
        let params = parts.params.map(RawValue::get).filter(|params| *params != "null");
        let kind = match (parts.method, id, parts.result, parts.error) {
            (Some(method), id, None, None) => {
                let method = text(method.get()).ok_or_else(|| refuse("invalid request: method must be a string"))?;
                if params.is_some_and(|params| !params.starts_with('{')) {
                    return Err(refuse("invalid request: params must be an object"));
                }
                match (id, told) {
                    (None, _) => Kind::Notification { method },
                    (Some(_), Some(id)) => Kind::Request { id, method },
                    (Some(_), None) => {
                        return Err(refuse("invalid request: id must be a string or a number, and not longer than 1024 bytes"));
                    }
                }
            }
            (None, _, Some(result), None) => Kind::Answer { id: told, result: Ok(result.get()) },
            (None, _, None, Some(error)) => Kind::Answer { id: told, result: Err(error.get()) },
            _ => return Err(refuse("invalid request: a message has a method, or a result, or an error")),
        };
        Ok(Self { line, params, kind })
    }

    /// The request, as rmcp has it. Its id is not in it.
    pub(crate) fn request(&self, method: &str) -> Result<ClientRequest, Refusal> {
        let wrong = || Refusal::new(PARAMS, format!("invalid params of {method}"));
        if method == "tools/call" {
            // The most frequent one, and the one whose arguments are large: not by rmcp's way, which tries some twenty shapes on values.
            let mut params: CallToolRequestParams = serde_json::from_str(self.params.ok_or_else(wrong)?).map_err(|_| wrong())?;
            let meta = params.meta.take();
            let mut request = CallToolRequest::new(params);
            if let Some(meta) = meta {
                request.extensions.insert(meta);
            }
            return Ok(ClientRequest::CallToolRequest(request));
        }
        let known = REQUESTS.contains(&method);
        match serde_json::from_str(self.line) {
            Ok(request @ ClientRequest::CustomRequest(_)) if known && !is_gone(method, &request) => Err(wrong()),
            Ok(request) => Ok(request),
            // Nothing else can be wrong with it than that it is nested too deeply.
            Err(_) if known => Err(wrong()),
            Err(_) => Err(Refusal::new(INVALID, "invalid request: nested too deeply")),
        }
    }

    pub(crate) fn notification(&self, method: &str) -> Result<ClientNotification, Refusal> {
        let wrong = || Refusal::new(PARAMS, "invalid params of a notification");
        match serde_json::from_str(self.line) {
            Ok(ClientNotification::CustomNotification(_)) if NOTIFICATIONS.contains(&method) => Err(wrong()),
            Ok(notification) => Ok(notification),
            Err(_) => Err(wrong()),
        }
    }

    /// The whole message, as rmcp has it. Its id is not in it.
    pub(crate) fn whole<T: DeserializeOwned>(&self) -> Result<T, Refusal> {
        serde_json::from_str(self.line).map_err(|_| Refusal::new(INVALID, "invalid request"))
    }

    /// Which request a `notifications/cancelled` means, as it was written.
    pub(crate) fn cancelled(&self) -> Option<&'a str> {
        #[derive(Deserialize)]
        struct Params<'a> {
            #[serde(borrow, rename = "requestId")]
            request_id: &'a RawValue,
        }
        serde_json::from_str::<Params<'_>>(self.params?).ok().map(|params| params.request_id.get())
    }
}

/// What the peer answered to a request of ours.
pub(crate) fn answer(result: Result<&str, &str>) -> Result<Result<ClientResult, ErrorData>, Refusal> {
    let wrong = |_| Refusal::new(INVALID, "invalid response: neither a result nor an error of the protocol");
    Ok(match result {
        Ok(result) => Ok(serde_json::from_str(result).map_err(wrong)?),
        Err(error) => Err(serde_json::from_str(error).map_err(wrong)?),
    })
}

/// An id as it was written, as rmcp has it.
pub(crate) fn id_of(written: &str) -> Option<RequestId> {
    serde_json::from_str(written).ok()
}

fn parse_error(error: &serde_json::Error) -> Refusal {
    Refusal::new(PARSE, format!("parse error: not JSON, at byte {} of the line", error.column()))
}

fn is_id(written: &str) -> bool {
    written.len() <= MAX_ID && written.starts_with(|first: char| first == '"' || first == '-' || first.is_ascii_digit())
}

/// The string that `written` is.
fn text(written: &str) -> Option<Cow<'_, str>> {
    let inner = written.strip_prefix('"')?.strip_suffix('"')?;
    if inner.contains('\\') { serde_json::from_str(written).ok().map(Cow::Owned) } else { Some(Cow::Borrowed(inner)) }
}

/// A message as a line.
pub(crate) fn line<T: Serialize>(message: &T) -> Result<Vec<u8>, serde_json::Error> {
    line_after(&[], message)
}

/// A message as a line, behind what else goes with it.
pub(crate) fn line_after<T: Serialize>(before: &[u8], message: &T) -> Result<Vec<u8>, serde_json::Error> {
    let mut line = Vec::with_capacity(256);
    line.extend_from_slice(before);
    serde_json::to_writer(&mut line, message)?;
    line.push(b'\n');
    Ok(line)
}

/// The answer to the request `id`.
pub(crate) fn result_line<T: Serialize>(id: &str, result: &T) -> Result<Vec<u8>, serde_json::Error> {
    let mut line = Vec::with_capacity(256);
    line.extend_from_slice(b"{\"jsonrpc\":\"2.0\",\"id\":");
    line.extend_from_slice(id.as_bytes());
    line.extend_from_slice(b",\"result\":");
    serde_json::to_writer(&mut line, result)?;
    line.extend_from_slice(b"}\n");
    Ok(line)
}

/// An error for the request `id`, or for what had none.
pub(crate) fn error_line(id: Option<&str>, error: &ErrorData) -> Vec<u8> {
    let mut line = Vec::with_capacity(256);
    line.extend_from_slice(b"{\"jsonrpc\":\"2.0\",\"id\":");
    line.extend_from_slice(id.unwrap_or("null").as_bytes());
    line.extend_from_slice(b",\"error\":");
    serde_json::to_writer(&mut line, error).expect("a code, a text and a value are JSON");
    line.extend_from_slice(b"}\n");
    line
}

/// Takes the key out of a request, so that neither handler nor log sees it.
pub(crate) fn take_key(request: &mut ClientRequest) -> Option<Box<str>> {
    let meta = request.extensions_mut().get_mut::<rmcp::model::RequestMetaObject>()?;
    // Something that is no string is shown, and proves nobody.
    Some(match meta.remove(super::KEY)? {
        serde_json::Value::String(key) => key.into_boxed_str(),
        _ => "".into(),
    })
}

/// Whether `method` is none any more in the revision that the request names: whatever its params are, it is not found.
fn is_gone(method: &str, request: &ClientRequest) -> bool {
    let is_of_late =
        request.get_meta().protocol_version().is_some_and(|version| version.as_str() >= ProtocolVersion::V_2026_07_28.as_str());
    is_of_late && matches!(method, "initialize" | "ping" | "logging/setLevel" | "resources/subscribe" | "resources/unsubscribe")
}

#[cfg(test)]
mod tests;
