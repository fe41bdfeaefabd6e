//! One outcome: as a call fills it in, and as it is read again.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use horos_wire::{TraceId, protocol::tools::AuditEntry};
use tokio::sync::oneshot;

use crate::{Caller, Transport};

/// Which rows; each field that is set lets only those through that have it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// Of this tool.
    pub tool: Option<Box<str>>,
    /// Of this caller.
    pub caller: Option<Box<str>>,
    /// With this outcome.
    pub outcome: Option<Box<str>>,
    /// Not older, in milliseconds since 1970.
    pub since: Option<i64>,
    /// Before the one with this number.
    pub before: Option<i64>,
    /// After the one with this number.
    pub after: Option<i64>,
}

impl Filter {
    pub(super) fn lets(&self, entry: &AuditEntry) -> bool {
        let is = |wanted: &Option<Box<str>>, value: &str| wanted.as_deref().is_none_or(|wanted| wanted == value);
        is(&self.tool, &entry.tool)
            && is(&self.caller, &entry.caller)
            && is(&self.outcome, &entry.outcome)
            && self.since.is_none_or(|since| entry.at_ms >= since)
            && self.before.is_none_or(|before| entry.id < before)
            && self.after.is_none_or(|after| entry.id > after)
    }
}

/// Longest text of a caller's that is written down: a name of a tool is no longer, and neither is a session's.
pub(super) const LONGEST: usize = 128;

/// An outcome on its way to the table.
#[derive(Debug, Default)]
pub(crate) struct Record {
    pub(super) at: i64,
    pub(crate) tool: Box<str>,
    pub(crate) version: Option<i64>,
    pub(super) caller: Box<str>,
    pub(super) transport: &'static str,
    pub(super) session: Option<Arc<str>>,
    pub(super) remote: Option<SocketAddr>,
    pub(super) outcome: &'static str,
    pub(super) duration: Duration,
    pub(crate) request: Option<Box<str>>,
    pub(crate) trace: TraceId,
    pub(crate) arguments: [u8; 32],
    pub(crate) confirmed: bool,
    pub(super) told: Option<oneshot::Sender<()>>,
}

impl Record {
    pub(super) fn new(caller: &Caller, at: i64) -> Self {
        let Caller { who: _, credential: _, transport, session, remote } = caller;
        let transport: &Transport = transport;
        Self { at, caller: caller.id().into(), transport: transport.as_str(), session: session.clone(), remote: *remote, ..Self::default() }
    }

    pub(super) fn micros(&self) -> i64 {
        i64::try_from(self.duration.as_micros()).unwrap_or(i64::MAX)
    }

    pub(super) fn entry(self, id: i64) -> AuditEntry {
        AuditEntry {
            id,
            took_us: self.micros(),
            at_ms: self.at,
            tool: self.tool,
            version: self.version,
            caller: self.caller,
            transport: self.transport.into(),
            session: self.session.as_deref().map(|session| cut(session).into()),
            remote: self.remote.map(|remote| remote.to_string().into()),
            outcome: self.outcome.into(),
            request: self.request,
            trace: (!self.trace.is_none()).then(|| self.trace.to_string().into()),
            arguments: hex(&self.arguments),
            confirmed: self.confirmed,
        }
    }
}

/// As much of `text` as is written down.
pub(crate) fn cut(text: &str) -> &str {
    &text[..text.floor_char_boundary(LONGEST)]
}

pub(super) fn hex(bytes: &[u8]) -> Box<str> {
    use std::fmt::Write as _;
    let digits = bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut digits, byte| {
        // Writing to a string does not fail.
        let _ = write!(digits, "{byte:02x}");
        digits
    });
    digits.into()
}
