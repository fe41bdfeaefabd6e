//! The tools that a node serves: what it makes of the rows, who called what, calls in its name, and calls that other nodes pass on to it.
//!
//! Answered under the name [`NAME`] on every node, for that node alone. Operators and viewers look; operators call. Only nodes pass calls on,
//! and only to a BO: what goes with such a call is the key or token that was shown to the first node, which the second one proves itself. No
//! node is believed who its caller is. Rows and rules are edited elsewhere ([`super::registry`]).

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::registry::{Problem, WrongTool};
use crate::{NoEffect, Unknown, protocol::keys::Secret};

/// The name of the actor that answers this protocol on every node.
pub const NAME: &str = "horos.tools";
/// Most entries of a [`ServedList`] and an [`AuditPage`].
pub const PAGE: usize = 200;
/// Bytes of texts from which on a page takes no further entry.
pub const PAGE_BYTES: usize = 256 * 1024;
/// Most wrong rows that a [`ToolsStatus`] names; of more it has the number.
pub const MAX_WRONG: usize = 100;
/// Most bytes of arguments that come with a call: what the transports take of one message.
pub const MAX_ARGUMENTS: usize = 10 * 1024 * 1024;
/// Most bytes of a result that goes from node to node, as JSON: a message may have 16 MiB, and what stands beside a result is small.
pub const MAX_RESULT: usize = 15 * 1024 * 1024;

/// Asks how the node's tools are.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ToolsStatusAsk {}

/// How the node's tools are.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ToolsStatus {
    /// How many are served.
    pub served: u32,
    /// What makes tools of rows here, by name.
    pub kinds: Vec<Box<str>>,
    /// Rises when what is listed changes; begins anew with the node.
    pub generation: u64,
    /// How many rows are wrong.
    pub wrong: u32,
    /// The first [`MAX_WRONG`] of them.
    pub wrong_rows: Vec<WrongRow>,
}

/// A row that is not in force because it is wrong.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct WrongRow {
    /// Which, and everything that is wrong with it.
    pub row: WrongTool,
    /// Whether the last of that name that was right still serves.
    pub serves: bool,
}

/// Asks for the tools that the node serves, by name.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ListServed {
    /// Those after this one: the last of the page before.
    pub after: Option<Box<str>>,
}

/// At most [`PAGE`] tools, and about [`PAGE_BYTES`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ServedList {
    /// The tools, the program's own among them.
    pub tools: Vec<ServedTool>,
    /// What to ask for next as [`ListServed::after`]; none when there are no more.
    pub next: Option<Box<str>>,
}

/// A tool that is served.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ServedTool {
    /// Its name.
    pub name: Box<str>,
    /// What it does.
    pub description: Box<str>,
    /// What it belongs to.
    pub category: Box<str>,
    /// Tools of two groups are not for one session.
    pub group: Box<str>,
    /// `readonly` or `readwrite`.
    pub mode: Box<str>,
    /// Whether it is asked for twice.
    pub destructive: bool,
    /// Longest run, in milliseconds.
    pub timeout_ms: u64,
    /// The version of its row; 0 is the program's own.
    pub version: i64,
}

/// Asks who called what on this node, the newest first.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct AuditAsk {
    /// Calls of this tool.
    pub tool: Option<Box<str>>,
    /// Calls by this caller, as the entries name them.
    pub caller: Option<Box<str>>,
    /// Calls that ended so: `ok`, `cancelled`, or the word for an error.
    pub outcome: Option<Box<str>>,
    /// Calls that came no earlier, in milliseconds since 1970.
    pub since_ms: Option<i64>,
    /// Those before this one: [`AuditPage::next`] of the page before.
    pub before: Option<i64>,
    /// Those after this one; for whoever follows.
    pub after: Option<i64>,
    /// How many at most; [`PAGE`] is never exceeded.
    pub limit: u32,
}

/// At most [`PAGE`] entries.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct AuditPage {
    /// The entries, the newest first.
    pub entries: Vec<AuditEntry>,
    /// What to ask for next as [`AuditAsk::before`]; none when there are no more.
    pub next: Option<i64>,
}

/// A call, and how it ended. No argument and no result is in it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct AuditEntry {
    /// Its number on this node.
    pub id: i64,
    /// When it came, in milliseconds since 1970.
    pub at_ms: i64,
    /// The tool that was asked for, known or not.
    pub tool: Box<str>,
    /// The tool's version; none where there is no such tool.
    pub version: Option<i64>,
    /// Who called: a key's id, a token's issuer and user, or a certificate's name.
    pub caller: Box<str>,
    /// How it came: `http`, `quic`, `link` or `command`.
    pub transport: Box<str>,
    /// The session, where it had one.
    pub session: Option<Box<str>>,
    /// From where.
    pub remote: Option<Box<str>>,
    /// How it ended: `ok`, `cancelled`, or the word for an error.
    pub outcome: Box<str>,
    /// How long it took, in microseconds.
    pub took_us: i64,
    /// The request from outside that it was part of.
    pub request: Option<Box<str>>,
    /// The trace, as 32 hexadecimal digits.
    pub trace: Option<Box<str>>,
    /// SHA-256 of its arguments, in hexadecimal digits: by it two calls can be told to be the same.
    pub arguments: Box<str>,
    /// Whether it was confirmed, as what is destructive has to be.
    pub confirmed: bool,
}

/// Calls a tool in the name of whoever shows the certificate.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct CallTool {
    /// The tool.
    pub tool: Box<str>,
    /// Its arguments: a JSON object as text, of at most [`MAX_ARGUMENTS`] bytes.
    pub arguments: Box<str>,
}

/// A call that another node was asked for and that is done here. It ends with the deadline that goes with it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct PassOn {
    /// The tool.
    pub tool: Box<str>,
    /// Its arguments: a JSON object as text, of at most [`MAX_ARGUMENTS`] bytes.
    pub arguments: Box<str>,
    /// The key or token that was shown there, to be proved again here; without one it is the node itself that calls.
    pub credential: Option<Secret>,
    /// Most bytes that the result may have, as JSON; [`MAX_RESULT`] is never exceeded.
    pub max_bytes: u32,
}

/// What came out of a tool, as JSON text: `{"structured": …, "content": […]}`, of which `structured` may be missing.
pub type ToolResult = Box<str>;

/// How a call of a tool ends without its result. Its texts go to whoever called, and name nothing inside. Appended to, never reordered: it
/// crosses nodes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema, thiserror::Error)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ToolFailure {
    /// There is none of that name, or none that the caller may know of.
    #[error("there is no tool {0:?}")]
    NoSuchTool(Box<str>),
    /// The caller may not call it, or not like this.
    #[error("denied: {0}")]
    Denied(Box<str>),
    /// The arguments are not what the tool's schema says.
    #[error("invalid arguments: {}", .0.iter().map(|it| if it.key.is_empty() { it.what.to_string() } else { it.to_string() }).collect::<Vec<_>>().join("; "))]
    Arguments(Vec<Problem>),
    /// It is done when it is asked for again with this as `confirm`. Nothing was done.
    #[error("{what} Nothing has been done: it is asked for twice.")]
    Confirm {
        /// What would be done.
        what: Box<str>,
        /// To be shown again.
        token: Box<str>,
        /// How long it holds, in milliseconds.
        within_ms: u64,
    },
    /// The tool's own error.
    #[error("{0}")]
    Failed(Box<str>),
    /// It was stopped at its deadline.
    #[error("stopped at its deadline of {after_ms} ms{}", if *.undone { "; nothing was changed" } else { "; whether it took effect is not known" })]
    Deadline {
        /// How long it had, in milliseconds.
        after_ms: u64,
        /// Whether it surely has no effect.
        undone: bool,
    },
    /// Its result is too large.
    #[error("the result is larger than {limit} bytes; ask for less, or page by page")]
    TooLarge {
        /// The limit.
        limit: u64,
    },
    /// Too many calls at once, or more than a share a minute; this one was not begun.
    #[error("too many calls; try again in {} s", (.retry_ms / 1000).max(1))]
    Busy {
        /// When to try again, in milliseconds.
        retry_ms: u64,
    },
    /// What it needs is not there now; nothing was done.
    #[error("not available now: {0}")]
    Unavailable(NoEffect),
    /// Whether it was done is not known.
    #[error("outcome unknown: {0}")]
    Unknown(Unknown),
    /// Something broke that the caller has no part in; the reference stands in the node's log.
    #[error("internal error, reference {reference}")]
    Internal {
        /// Where to look.
        reference: Box<str>,
    },
}

/// Why it is not told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema, thiserror::Error)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ToolsError {
    /// What was asked for makes no sense.
    #[error("{0}")]
    Invalid(Box<str>),
    /// The storage failed; try again.
    #[error("{0}; try again")]
    Storage(Box<str>),
}

crate::protocol! {
    /// What each node tells of its tools, and what it is asked to call.
    pub Tools = "horos.tools" v1 {
        1 status: ToolsStatusAsk => ToolsStatus, ToolsError;
        2 served: ListServed => ServedList, ToolsError;
        3 audit: AuditAsk => AuditPage, ToolsError;
        4 call: CallTool => ToolResult, ToolFailure;
        5 pass_on: PassOn => ToolResult, ToolFailure;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::{self, Format};

    #[test]
    fn a_failure_is_the_same_behind_a_hop() {
        let failures = [
            ToolFailure::NoSuchTool("a".into()),
            ToolFailure::Denied("b".into()),
            ToolFailure::Arguments(vec![Problem { key: "/n".into(), what: "not a number".into() }]),
            ToolFailure::Confirm { what: "This deletes it.".into(), token: "t".into(), within_ms: 60_000 },
            ToolFailure::Failed("c".into()),
            ToolFailure::Deadline { after_ms: 5, undone: true },
            ToolFailure::TooLarge { limit: 9 },
            ToolFailure::Busy { retry_ms: 1 },
            ToolFailure::Unavailable(NoEffect::NoRoute("bo-1".into())),
            ToolFailure::Unknown(Unknown::PeerLost("bo-1".into())),
            ToolFailure::Internal { reference: "r".into() },
        ];
        for failure in failures {
            for format in [Format::Bincode, Format::Json] {
                let mut body = Vec::new();
                codec::encode(format, &failure, &mut body).unwrap();
                assert_eq!(codec::decode::<ToolFailure>(format, &body).unwrap(), failure);
            }
        }
    }

    #[test]
    fn what_goes_with_a_call_is_in_no_debug_text() {
        let call = PassOn { tool: "t".into(), arguments: "{}".into(), credential: Some(Secret::new("hk_secret")), max_bytes: 1 };
        assert!(!format!("{call:?}").contains("hk_secret"));
    }
}
