//! What a caller is told of what went wrong, and what the node's log is.
//!
//! The caller is a language model, and through it anybody: no statement, no name of a table, no path. What it can do something about is said
//! in general words; the rest is a reference to the log.

use std::{
    fmt,
    time::{Duration, Instant},
};

use horos_store::{Kind, StoreError, readers::ReadError, writer::WriteError};
use horos_wire::{NoEffect, Unknown};
use rmcp::model::JsonObject;
use rusqlite::ffi;
use serde_json::Value;

use super::rights::Confined;
use crate::{Call, Problem, ToolError, native::reference};

/// When it may go better, of what is busy.
const LATER: Duration = Duration::from_secs(1);

/// Why a statement did not do what it was to.
#[derive(Debug, thiserror::Error)]
pub(super) enum Trouble {
    /// SQLite said no.
    #[error("{0}")]
    Sqlite(#[from] rusqlite::Error),
    /// One row alone is more than may be given.
    #[error("one row is larger than a page may be")]
    RowTooLarge,
    /// More rows than may be given.
    #[error("more than {0} rows")]
    TooManyRows(usize),
    /// What the statement defines is called like something of the schema.
    #[error("the statement defines {0:?}, and the database has something of that name: rename it in the statement")]
    Ambiguous(Box<str>),
    /// A query that would change something.
    #[error("the statement is none that only reads")]
    Writes,
    /// The row says nothing of tables.
    #[error("handler_config lists no tables; to allow what the statements touch add {}", Value::Object(.0.clone()))]
    Unlisted(JsonObject),
}

/// What is known of a call when it goes wrong.
pub(super) struct Circumstances<'a> {
    pub(super) call: &'a Call<'a>,
    pub(super) began: Instant,
    pub(super) confined: &'a Confined,
    pub(super) value_bytes: i32,
}

impl Circumstances<'_> {
    fn internal(&self, error: &dyn fmt::Display) -> ToolError {
        let reference = reference();
        tracing::error!(tool = self.call.tool, %reference, refused = self.confined.refused(), %error, "a tool's statement failed");
        ToolError::Internal { reference }
    }

    fn failed(&self, error: &dyn fmt::Display, what: &str) -> ToolError {
        let reference = reference();
        tracing::info!(tool = self.call.tool, %reference, refused = self.confined.refused(), %error, "a tool's statement failed");
        ToolError::Failed(format!("{what} (reference {reference})").into())
    }

    pub(super) fn deadline(&self, undone: bool) -> ToolError {
        ToolError::Deadline { after: self.call.until.saturating_duration_since(self.began), undone }
    }

    pub(super) fn read(&self, error: ReadError<Trouble>) -> ToolError {
        match error {
            ReadError::Failed(trouble) => self.trouble(&trouble),
            ReadError::DeadlinePassed => self.deadline(true),
            ReadError::Overloaded => ToolError::Busy(LATER),
            ReadError::Stopped => ToolError::Unavailable(NoEffect::Stopping),
            ReadError::Open(error) => self.unavailable(&error),
            ReadError::Storage(error) => self.storage(&error),
            error => self.internal(&error),
        }
    }

    pub(super) fn write(&self, error: WriteError<Trouble>) -> ToolError {
        match error {
            WriteError::Failed(trouble) => self.trouble(&trouble),
            WriteError::DeadlinePassed => self.deadline(true),
            WriteError::Overloaded => ToolError::Busy(LATER),
            WriteError::Stopped => ToolError::Unavailable(NoEffect::Stopping),
            WriteError::RolledBack => self.failed(&error, "a rule of the database undid it; nothing was changed"),
            WriteError::Storage(error) => self.storage(&error),
            WriteError::Unknown(_) if Instant::now() >= self.call.until => self.deadline(false),
            WriteError::Unknown(_) => ToolError::Unknown(Unknown::ActorDied),
            error => self.internal(&error),
        }
    }

    pub(super) fn unavailable(&self, error: &dyn fmt::Display) -> ToolError {
        tracing::warn!(tool = self.call.tool, %error, "a tool's database cannot be opened");
        ToolError::Unavailable(NoEffect::NoRoute("the tool's database".into()))
    }

    pub(super) fn storage(&self, error: &StoreError) -> ToolError {
        match error.kind {
            kind if kind.is_transient() => ToolError::Busy(LATER),
            Kind::Constraint => self.failed(error, "a rule of the database does not permit it; nothing was changed"),
            Kind::Full => self.failed(error, "there is no room left to write; nothing was changed"),
            _ => self.internal(error),
        }
    }

    pub(super) fn trouble(&self, trouble: &Trouble) -> ToolError {
        match trouble {
            Trouble::RowTooLarge => ToolError::TooLarge { limit: self.call.max_bytes as u64 },
            Trouble::TooManyRows(most) => self.failed(trouble, &format!("more than {most} rows; nothing was changed")),
            Trouble::Unlisted(_) if self.call.caller.is("node:operator") => ToolError::Failed(trouble.to_string().into()),
            Trouble::Unlisted(_) => self.failed(trouble, "the tool is not finished: what it may touch is not listed yet"),
            Trouble::Ambiguous(_) | Trouble::Writes => self.failed(trouble, REFUSED),
            Trouble::Sqlite(error) => self.sqlite(error),
        }
    }

    fn sqlite(&self, error: &rusqlite::Error) -> ToolError {
        let Some(code) = error.sqlite_error().map(|error| error.extended_code) else { return self.internal(error) };
        let said = match code {
            ffi::SQLITE_CONSTRAINT_UNIQUE | ffi::SQLITE_CONSTRAINT_PRIMARYKEY | ffi::SQLITE_CONSTRAINT_ROWID => {
                "a value conflicts with one that is there already"
            }
            ffi::SQLITE_CONSTRAINT_NOTNULL => "a value is missing that must be there",
            ffi::SQLITE_CONSTRAINT_FOREIGNKEY => "what a value refers to is not there, or something still refers to what would go",
            ffi::SQLITE_CONSTRAINT_DATATYPE => "a value is of another type than is stored there",
            _ => match code & 0xff {
                ffi::SQLITE_CONSTRAINT => "a rule of the database does not permit it",
                ffi::SQLITE_MISMATCH => "a value is of another type than is stored there",
                ffi::SQLITE_TOOBIG => return self.failed(error, &format!("a value is longer than {} bytes", self.value_bytes)),
                // The authorizer said no, or the connection does not write.
                ffi::SQLITE_AUTH | ffi::SQLITE_READONLY | ffi::SQLITE_PERM => REFUSED,
                ffi::SQLITE_INTERRUPT if self.confined.meter().is_full() => "it took more memory than a tool may; ask for less",
                ffi::SQLITE_INTERRUPT => return self.deadline(true),
                ffi::SQLITE_BUSY | ffi::SQLITE_LOCKED => return ToolError::Busy(LATER),
                ffi::SQLITE_FULL => "there is no room left to write; nothing was changed",
                // A guard that refuses what is prepared has SQLite say no more than "error".
                _ if self.confined.refused().is_some() => REFUSED,
                _ => return self.internal(error),
            },
        };
        self.failed(error, said)
    }
}

const REFUSED: &str = "the tool is not permitted what it would do";

/// A cursor that is none.
pub(super) fn no_cursor() -> ToolError {
    ToolError::Arguments(vec![Problem::new(
        "/cursor",
        "no cursor of this tool, as it is now, with these arguments; leave it out to begin at the first page",
    )])
}
