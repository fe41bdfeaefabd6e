//! What a server says, as rmcp's client has it.

use rmcp::{
    RoleClient,
    model::{CallToolResult, JsonRpcError, JsonRpcMessage, JsonRpcResponse, RequestId, ServerNotification, ServerRequest, ServerResult},
    service::RxJsonRpcMessage,
};
use serde::Deserialize;

use super::{Envelope, INVALID, Kind, Refusal, id_of};

impl Envelope<'_> {
    /// Which request of ours this answers, where it says so.
    pub(crate) fn answers(&self) -> Option<RequestId> {
        match &self.kind {
            Kind::Answer { id, .. } => id.and_then(id_of),
            Kind::Request { .. } | Kind::Notification { .. } => None,
        }
    }
}

/// The message; an answer is one to the request `id`, which is a tool's call or not.
pub(crate) fn of_server(envelope: &Envelope<'_>, id: Option<RequestId>, call: bool) -> Result<RxJsonRpcMessage<RoleClient>, Refusal> {
    match &envelope.kind {
        Kind::Answer { result: Ok(result), .. } => {
            let id = id.ok_or_else(|| Refusal::new(INVALID, "an answer without an id"))?;
            Ok(JsonRpcMessage::Response(JsonRpcResponse { jsonrpc: Default::default(), id, result: answered(result, call)? }))
        }
        Kind::Answer { result: Err(error), .. } => {
            let error = serde_json::from_str(error).map_err(|_| Refusal::new(INVALID, "an error that is none"))?;
            Ok(JsonRpcMessage::Error(JsonRpcError { jsonrpc: Default::default(), id, error }))
        }
        Kind::Notification { .. } => Ok(JsonRpcMessage::notification(envelope.whole::<ServerNotification>()?)),
        Kind::Request { id, .. } => {
            let id = id_of(id).ok_or_else(|| Refusal::new(INVALID, "an id that is none"))?;
            Ok(JsonRpcMessage::request(envelope.whole::<ServerRequest>()?, id))
        }
    }
}

/// A result. That of a tool's call is read as one at once, unless it says that it is something else.
fn answered(result: &str, call: bool) -> Result<ServerResult, Refusal> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Complete {
        result_type: Option<Box<str>>,
    }
    let wrong = |_| Refusal::new(INVALID, "a result that is none");
    if call {
        let complete: Complete = serde_json::from_str(result).map_err(wrong)?;
        if complete.result_type.is_none_or(|kind| *kind == *"complete")
            && let Ok(result) = serde_json::from_str::<CallToolResult>(result)
        {
            return Ok(ServerResult::CallToolResult(result));
        }
    }
    serde_json::from_str(result).map_err(wrong)
}
