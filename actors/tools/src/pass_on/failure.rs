//! Errors and results on their way from node to node: the same behind the hop as before it.

use std::time::Duration;

use horos_wire::{
    Unknown,
    protocol::{registry, tools::ToolFailure},
};
use rmcp::model::ContentBlock;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{Output, Problem, ToolError};

impl From<Problem> for registry::Problem {
    fn from(Problem { at, what }: Problem) -> Self {
        Self { key: at, what }
    }
}

impl From<registry::Problem> for Problem {
    fn from(registry::Problem { key, what }: registry::Problem) -> Self {
        Self { at: key, what }
    }
}

fn millis(span: Duration) -> u64 {
    span.as_millis().try_into().unwrap_or(u64::MAX)
}

impl From<ToolError> for ToolFailure {
    fn from(error: ToolError) -> Self {
        match error {
            ToolError::NoSuchTool(name) => Self::NoSuchTool(name),
            ToolError::Denied(why) => Self::Denied(why),
            ToolError::Arguments(problems) => Self::Arguments(problems.into_iter().map(Into::into).collect()),
            ToolError::Confirm { what, token, within } => Self::Confirm { what, token, within_ms: millis(within) },
            ToolError::Failed(text) => Self::Failed(text),
            ToolError::Deadline { after, undone } => Self::Deadline { after_ms: millis(after), undone },
            ToolError::TooLarge { limit } => Self::TooLarge { limit },
            ToolError::Busy(after) => Self::Busy { retry_ms: millis(after) },
            ToolError::Unavailable(why) => Self::Unavailable(why),
            ToolError::Unknown(why) => Self::Unknown(why),
            ToolError::Internal { reference } => Self::Internal { reference },
        }
    }
}

impl From<ToolFailure> for ToolError {
    fn from(failure: ToolFailure) -> Self {
        match failure {
            ToolFailure::NoSuchTool(name) => Self::NoSuchTool(name),
            ToolFailure::Denied(why) => Self::Denied(why),
            ToolFailure::Arguments(problems) => Self::Arguments(problems.into_iter().map(Into::into).collect()),
            ToolFailure::Confirm { what, token, within_ms } => Self::Confirm { what, token, within: Duration::from_millis(within_ms) },
            ToolFailure::Failed(text) => Self::Failed(text),
            ToolFailure::Deadline { after_ms, undone } => Self::Deadline { after: Duration::from_millis(after_ms), undone },
            ToolFailure::TooLarge { limit } => Self::TooLarge { limit },
            ToolFailure::Busy { retry_ms } => Self::Busy(Duration::from_millis(retry_ms)),
            ToolFailure::Unavailable(why) => Self::Unavailable(why),
            ToolFailure::Unknown(why) => Self::Unknown(why),
            ToolFailure::Internal { reference } => Self::Internal { reference },
            // Of a later release: what it says of effects is not known here.
            later => Self::Unknown(Unknown::MalformedReply(later.to_string().into())),
        }
    }
}

/// An [`Output`] as it is written between nodes, [`horos_wire::protocol::tools::ToolResult`].
#[derive(Deserialize)]
struct Read {
    /// A result that is JSON's null is one: only what is missing is none.
    #[serde(default, deserialize_with = "present")]
    structured: Option<Value>,
    #[serde(default)]
    content: Vec<ContentBlock>,
}

#[derive(Serialize)]
struct Written<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    structured: Option<&'a Value>,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    content: &'a [ContentBlock],
}

fn present<'de, D: serde::Deserializer<'de>>(value: D) -> Result<Option<Value>, D::Error> {
    Value::deserialize(value).map(Some)
}

/// What came out, as it goes to another node.
///
/// # Errors
/// [`ToolError::TooLarge`]: more than `limit` bytes.
pub(crate) fn write(output: &Output, limit: usize) -> Result<Box<str>, ToolError> {
    let Output { structured, content } = output;
    let text = serde_json::to_string(&Written { structured: structured.as_ref(), content }).map_err(|error| {
        tracing::error!(%error, "a tool's result is no JSON");
        ToolError::Internal { reference: "result".into() }
    })?;
    if text.len() > limit { Err(ToolError::TooLarge { limit: limit as u64 }) } else { Ok(text.into()) }
}

/// What another node has sent.
///
/// # Errors
/// [`ToolError::Unknown`]: it has been done there, and what came out is none.
pub(crate) fn read(text: &str) -> Result<Output, ToolError> {
    let unread = |error: serde_json::Error| ToolError::Unknown(Unknown::MalformedReply(error.to_string().into()));
    let Read { structured, content } = serde_json::from_str(text).map_err(unread)?;
    Ok(Output { structured, content })
}

#[cfg(test)]
mod tests {
    use horos_wire::NoEffect;
    use serde_json::json;

    use super::*;

    #[test]
    fn an_error_is_the_same_behind_a_hop() {
        let errors = [
            ToolError::NoSuchTool("a".into()),
            ToolError::Denied("b".into()),
            ToolError::Arguments(vec![Problem::new("/n", "not a number"), Problem::new("", "more")]),
            ToolError::Confirm { what: "This deletes it.".into(), token: "t".into(), within: Duration::from_secs(60) },
            ToolError::Failed("c".into()),
            ToolError::Deadline { after: Duration::from_millis(5), undone: true },
            ToolError::Deadline { after: Duration::from_millis(5), undone: false },
            ToolError::TooLarge { limit: 9 },
            ToolError::Busy(Duration::from_millis(1_500)),
            ToolError::Unavailable(NoEffect::NoRoute("bo-1".into())),
            ToolError::Unknown(Unknown::PeerLost("bo-1".into())),
            ToolError::Internal { reference: "r".into() },
        ];
        for error in errors {
            let failure = ToolFailure::from(error.clone());
            assert_eq!(ToolError::from(failure.clone()), error);
            let same_words = matches!(error, ToolError::Confirm { .. }) || failure.to_string() == error.to_string();
            assert!(same_words, "{failure} is not {error}");
        }
    }

    #[test]
    fn a_result_is_the_same_behind_a_hop_whatever_it_holds() {
        let outputs = [
            Output::default(),
            Output::json(Value::Null),
            Output::json(json!({ "n": 9_007_199_254_740_993_i64, "u": u64::MAX, "f": 5.0, "t": "a\u{0}b\u{2028}" })),
            Output { structured: None, content: vec![ContentBlock::text("as text")] },
            Output { structured: Some(json!([])), content: vec![ContentBlock::text("a"), ContentBlock::text("b")] },
        ];
        for output in outputs {
            assert_eq!(read(&write(&output, usize::MAX).unwrap()).unwrap(), output);
        }
    }

    #[test]
    fn a_result_beyond_its_limit_is_not_sent_and_none_at_all_is_an_unknown_outcome() {
        let output = Output::json(json!("x".repeat(100)));
        let length = write(&output, usize::MAX).unwrap().len();
        assert!(write(&output, length).is_ok());
        assert_eq!(write(&output, length - 1), Err(ToolError::TooLarge { limit: length as u64 - 1 }));
        for bad in ["", "null", "{\"content\": 7}", "{} {}"] {
            assert!(matches!(read(bad), Err(ToolError::Unknown(Unknown::MalformedReply(_)))), "{bad}");
        }
    }
}
