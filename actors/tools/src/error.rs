//! Why a tool was not called, or did not do it.

use std::{fmt, time::Duration};

use horos_wire::{NoEffect, Unknown};

use crate::row::Problem;

/// How a call of a tool ends without its output. Its text goes to a language model, and so to anybody: it names nothing inside, no
/// statement, no path, no host.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum ToolError {
    /// There is none of that name, or none that the caller may know of: both look the same.
    #[error("there is no tool {0:?}")]
    NoSuchTool(Box<str>),
    /// The caller may see it, and not call it like this.
    #[error("denied: {0}")]
    Denied(Box<str>),
    /// The arguments are not what the tool's schema says.
    #[error("invalid arguments: {}", Listed(.0))]
    Arguments(Vec<Problem>),
    /// What it would do is destructive, and is done when it is asked again with this as `confirm`.
    #[error("{what} Nothing has been done. Call again with the same arguments and \"confirm\": \"{token}\" within {} s.", within.as_secs())]
    Confirm {
        /// What would be done.
        what: Box<str>,
        /// To be shown again.
        token: Box<str>,
        /// How long it holds.
        within: Duration,
    },
    /// The tool's own error.
    #[error("{0}")]
    Failed(Box<str>),
    /// It was stopped at its deadline; what reads only had no effect, and what writes was rolled back if `undone`.
    #[error("stopped at its deadline of {} ms{}", .after.as_millis(), if *.undone { "; nothing was changed" } else { "; whether it took effect is not known" })]
    Deadline {
        /// How long it had.
        after: Duration,
        /// Whether it surely has no effect.
        undone: bool,
    },
    /// Its answer is too large.
    #[error("the result is larger than {limit} bytes; ask for less, or page by page")]
    TooLarge {
        /// The limit.
        limit: u64,
    },
    /// Too many calls at once, or more than a share a minute; none was begun.
    #[error("too many calls; try again in {} s", .0.as_secs().max(1))]
    Busy(Duration),
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

impl ToolError {
    /// The word for it in the audit and in metrics.
    pub const fn outcome(&self) -> &'static str {
        match self {
            Self::NoSuchTool(_) => "no_such_tool",
            Self::Denied(_) => "denied",
            Self::Arguments(_) => "invalid_arguments",
            Self::Confirm { .. } => "to_confirm",
            Self::Failed(_) => "failed",
            Self::Deadline { .. } => "deadline",
            Self::TooLarge { .. } => "too_large",
            Self::Busy(_) => "busy",
            Self::Unavailable(_) => "unavailable",
            Self::Unknown(_) => "unknown",
            Self::Internal { .. } => "internal",
        }
    }
}

/// Problems in a line, the first few of them.
struct Listed<'a>(&'a [Problem]);

impl fmt::Display for Listed<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN: usize = 5;
        for (at, problem) in self.0.iter().take(SHOWN).enumerate() {
            write!(f, "{}{problem}", if at == 0 { "" } else { "; " })?;
        }
        if self.0.len() > SHOWN { write!(f, "; and {} more", self.0.len() - SHOWN) } else { Ok(()) }
    }
}
