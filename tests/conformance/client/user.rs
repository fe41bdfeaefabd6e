//! Who is at the client: takes whatever is offered, and has a model and a directory.

use futures_util::future::{BoxFuture, ready};
use horos_tools::client::Answers;
use horos_tools::rmcp::ErrorData;
use horos_tools::rmcp::model::{
    ClientCapabilities, CreateMessageRequestParams, CreateMessageResult, ElicitRequestParams, ElicitResult, ListRootsResult,
};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

pub(super) struct User;

fn answer<T: DeserializeOwned + Send + 'static>(json: Value) -> BoxFuture<'static, Result<T, ErrorData>> {
    Box::pin(ready(serde_json::from_value(json).map_err(|error| ErrorData::internal_error(error.to_string(), None))))
}

impl Answers for User {
    fn capabilities(&self) -> ClientCapabilities {
        let all = json!({ "elicitation": { "form": { "applyDefaults": true } }, "sampling": {}, "roots": {} });
        serde_json::from_value(all).expect("of the protocol's shape")
    }

    /// Sends the form off as it is: its defaults, and something where there is none.
    fn elicit(&self, asked: ElicitRequestParams) -> BoxFuture<'_, Result<ElicitResult, ErrorData>> {
        let asked = json!(asked);
        let fields = asked["requestedSchema"]["properties"].as_object().cloned().unwrap_or_default();
        let filled = |(name, schema): (String, Value)| {
            let filled = match (schema.get("default"), schema["type"].as_str()) {
                (Some(value), _) => value.clone(),
                (None, Some("boolean")) => json!(true),
                (None, Some("number" | "integer")) => json!(1),
                (None, _) => json!("text"),
            };
            (name, filled)
        };
        let content: serde_json::Map<_, _> = fields.into_iter().map(filled).collect();
        answer(json!({ "action": "accept", "content": content }))
    }

    fn sample(&self, _: CreateMessageRequestParams) -> BoxFuture<'_, Result<CreateMessageResult, ErrorData>> {
        answer(json!({ "role": "assistant", "content": { "type": "text", "text": "yes" }, "model": "none" }))
    }

    fn roots(&self) -> BoxFuture<'_, Result<ListRootsResult, ErrorData>> {
        answer(json!({ "roots": [{ "uri": "file:///somewhere", "name": "somewhere" }] }))
    }
}
