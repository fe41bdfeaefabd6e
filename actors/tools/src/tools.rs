//! The one way by which tools are listed and called.
//!
//! A call goes through, in this order, and each step can only refuse:
//!
//! 1. a place in the audit, which every later outcome fills, so that none passes unwritten;
//! 2. the calls in hand, of the node and of the caller;
//! 3. who may call it: operators everything, viewers what only reads, others what the policy allows. What is not allowed does not exist;
//! 4. its group, and that of the session;
//! 5. its arguments, against its schema;
//! 6. a confirmation, where it is destructive;
//! 7. its deadline, the tool itself, its panics;
//! 8. its output: size and schema.
//!
//! Requests a minute are counted by the port, for all that it serves, and not here again.

mod builtin;
mod confirm;
mod counters;
mod groups;
mod in_flight;
mod page;

use std::{
    fmt,
    panic::AssertUnwindSafe,
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::FutureExt as _;
use horos_wire::{CallContext, NoEffect, Unknown};
use rmcp::model::{JsonObject, Tool};
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use tokio::{sync::watch, time::timeout_at};

use crate::{
    Call, Caller, Definition, Mode, Output, Problem, Registry, ToolError, Transport,
    audit::{self, Audit, Ticket, Waits},
    definition::MAX_TIMEOUT,
};
use builtin::Builtin;
pub(crate) use builtin::taken;
pub(crate) use confirm::confirmable;
use confirm::{Asked, Confirms, Unconfirmed};
pub use counters::{Counters, Durations};
use groups::{Apart, Groups};
use in_flight::InFlight;

/// How tools are called.
#[derive(Clone, Debug)]
pub struct Options {
    /// Most calls in hand. Default 512: with results of [`Options::max_output`] half a GiB.
    pub in_flight: usize,
    /// Most calls in hand of one caller. Default 128, so that four callers are needed to fill the node.
    pub in_flight_per_caller: usize,
    /// Largest result, in bytes of JSON. Default 1 MiB: more than a language model reads.
    pub max_output: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self { in_flight: 512, in_flight_per_caller: 128, max_output: 1 << 20 }
    }
}

/// What a tool has beyond its deadline to say that it stopped, and what it undid.
const GRACE: Duration = Duration::from_millis(200);
/// What of a request's time is left for the answer, at most: a tool that used all of it would be cut off by the port in the same instant.
const HEADWAY: Duration = Duration::from_millis(300);
/// How long a call waits for its place in the audit.
const ADMISSION: Duration = Duration::from_secs(10);
/// How long the answer of a tool that writes waits for the disk.
const WRITTEN: Duration = Duration::from_secs(10);
/// When to try again where there was no room.
const AGAIN: Duration = Duration::from_secs(1);
/// Longest that a call takes from its request to its answer, for whoever has to say how long that is waited for.
pub const LONGEST: Duration = MAX_TIMEOUT.saturating_add(GRACE).saturating_add(HEADWAY).saturating_add(ADMISSION).saturating_add(WRITTEN);
/// Most of the arguments that a question back repeats, in bytes.
const REPEATED: usize = 500;

/// The tools of a node, for whoever may use them. Cheap to clone.
#[derive(Clone)]
pub struct Tools(Arc<Inner>);

struct Inner {
    registry: Registry,
    audit: Audit,
    options: Options,
    in_flight: InFlight,
    groups: Groups,
    confirms: Confirms,
    counters: Arc<Counters>,
}

/// A page of a list.
#[derive(Clone, Debug)]
pub struct Listed {
    /// In the order of their names.
    pub tools: Vec<Tool>,
    /// Where the next page begins, to be given back as it is; none after the last.
    pub next: Option<String>,
}

impl fmt::Debug for Tools {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.registry.fmt(f)
    }
}

impl Tools {
    /// The tools of `registry`, whose calls are written down by `audit`.
    pub fn new(registry: Registry, audit: Audit, options: Options) -> Self {
        let in_flight = InFlight::new(options.in_flight, options.in_flight_per_caller);
        let (groups, confirms) = (Groups::default(), Confirms::new());
        Self(Arc::new(Inner { registry, audit, options, in_flight, groups, confirms, counters: Arc::default() }))
    }

    /// The registry.
    pub fn registry(&self) -> &Registry {
        &self.0.registry
    }

    /// What calls came to.
    pub fn counters(&self) -> &Arc<Counters> {
        &self.0.counters
    }

    /// Where calls are written down.
    pub fn audit(&self) -> &Audit {
        &self.0.audit
    }

    /// The same tools when nothing but `search_tools` and `call_tool` is to be listed.
    pub fn list_builtin(&self) -> Listed {
        Listed { tools: Builtin::ALL.iter().map(|builtin| builtin.tool()).collect(), next: None }
    }

    /// What `caller` may call, from `cursor` on: a page of it.
    ///
    /// # Errors
    /// [`ToolError::Arguments`]: a cursor that is none.
    pub fn list(&self, caller: &Caller, cursor: Option<&str>) -> Result<Listed, ToolError> {
        page::list(&self.0.registry.snapshot(), caller, cursor)
    }

    /// Calls a tool.
    ///
    /// # Errors
    /// [`ToolError`].
    ///
    /// # Cancel safety
    /// Dropped, the call is given up; what became of it is written down all the same.
    pub async fn call(&self, caller: &Caller, tool: &str, arguments: JsonObject, context: CallContext) -> Result<Output, ToolError> {
        let counting = self.0.counters.begin(caller.transport);
        let admission = Instant::now() + ADMISSION;
        let admission = context.deadline.map_or(admission, |deadline| deadline.min(admission));
        let Ok(mut ticket) = timeout_at(admission.into(), self.0.audit.ticket(caller)).await else {
            tracing::error!(trace = %context.trace, "a call is refused, since it cannot be written down");
            counting.end("unavailable");
            return Err(ToolError::Unavailable(NoEffect::Overloaded("audit".into())));
        };
        let record = ticket.record();
        record.trace = context.trace;
        record.request = context.claims.as_ref().and_then(|claims| claims.request.clone());
        let mut asked = Attempt { caller, arguments, context: &context, ran: None, denied: false };
        let result = self.attempt(tool, &mut asked, &mut ticket).await;
        let outcome = match &result {
            Ok(_) => audit::DONE,
            // The caller is not told that there is such a tool; whoever reads the audit is.
            Err(_) if asked.denied => "denied",
            Err(error) => error.outcome(),
        };
        counting.end(outcome);
        let waits = if asked.ran == Some(Mode::ReadWrite) { Waits::Yes } else { Waits::No };
        if let Some(written) = ticket.end(outcome, waits)
            && !matches!(tokio::time::timeout(WRITTEN, written).await, Ok(Ok(())))
        {
            // It stays in the queue and is written when that is possible. Until then nobody is told that all is well.
            tracing::error!(trace = %context.trace, tool, "a tool has run, and that is not on disk yet");
            return Err(ToolError::Unknown(Unknown::DeadlinePassed));
        }
        result
    }

    /// The tool called `name`, for what is the same for all callers: the schema that HTTP heads are checked against.
    pub(crate) fn find(&self, name: &str) -> Option<Tool> {
        match Builtin::named(name) {
            Some(builtin) => Some(builtin.tool()),
            None => Some(self.0.registry.snapshot().tools.get(name)?.tool.clone()),
        }
    }

    /// Changes whenever what is listed may have.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.0.registry.changes()
    }

    async fn attempt(&self, name: &str, attempt: &mut Attempt<'_>, ticket: &mut Ticket) -> Result<Output, ToolError> {
        ticket.record().tool = audit::cut(name).into();
        ticket.record().arguments = digest(&attempt.arguments);
        let id = attempt.caller.id();
        let _place = self.0.in_flight.take(&id).ok_or(ToolError::Busy(AGAIN))?;
        let snapshot = self.0.registry.snapshot();
        let inner = match Builtin::named(name) {
            None => None,
            Some(Builtin::Search) => return builtin::search(&snapshot, attempt.caller, &attempt.arguments),
            Some(Builtin::Call) => Some(builtin::unwrap(&mut attempt.arguments)?),
        };
        let name = inner.as_deref().unwrap_or(name);
        ticket.record().tool = audit::cut(name).into();

        let found = snapshot.tools.get(name);
        let definition = found.filter(|found| snapshot.policy.permits(attempt.caller, found));
        let Some(definition) = definition else {
            attempt.denied = found.is_some();
            return Err(ToolError::NoSuchTool(audit::cut(name).into()));
        };
        let spec = &definition.spec;
        ticket.record().version = Some(spec.version);
        self.0.groups.enter(attempt.caller, &spec.group).map_err(|apart| match apart {
            Apart::Other => ToolError::Denied(
                "this session has used tools of another group, and groups are kept apart: use another session for this one".into(),
            ),
            Apart::Full => ToolError::Busy(AGAIN),
        })?;
        let token = if spec.behaviour.destructive { attempt.arguments.remove(confirm::ARGUMENT) } else { None };
        let digest = digest(&attempt.arguments);
        ticket.record().arguments = digest;
        let arguments = definition.arguments(std::mem::take(&mut attempt.arguments)).map_err(ToolError::Arguments)?;
        // It guards against a slip and grants nothing, so the node that was asked first is believed to have asked.
        if spec.behaviour.destructive && attempt.caller.transport != Transport::Link {
            self.confirmed(&Asked { definition, caller: attempt.caller, arguments: &digest }, token, &arguments)?;
            ticket.record().confirmed = true;
        }
        self.run(definition, arguments, attempt).await
    }

    fn confirmed(&self, asked: &Asked<'_>, token: Option<Value>, arguments: &JsonObject) -> Result<(), ToolError> {
        let denied = |why: &str| Err(ToolError::Denied(format!("{why}; call without \"confirm\" for another").into()));
        match token {
            None => {
                let spec = &asked.definition.spec;
                let arguments = Value::Object(arguments.clone()).to_string();
                let shown = &arguments[..arguments.floor_char_boundary(REPEATED)];
                let more = if shown.len() < arguments.len() { "…" } else { "" };
                let what =
                    format!("{} would be called with {shown}{more}: {} This cannot be undone.", spec.name, sentence(&spec.description));
                Err(ToolError::Confirm { what: what.into(), token: self.0.confirms.token(asked), within: confirm::HOLDS })
            }
            Some(Value::String(token)) => match self.0.confirms.confirm(asked, &token) {
                Ok(()) => Ok(()),
                Err(Unconfirmed::Other) => denied("the confirmation is not of this call by this caller"),
                Err(Unconfirmed::Expired) => denied("the confirmation has run out"),
                Err(Unconfirmed::Used) => denied("the confirmation was used before"),
                Err(Unconfirmed::Full) => Err(ToolError::Busy(AGAIN)),
            },
            Some(_) => Err(ToolError::Arguments(vec![Problem::new(format!("/{}", confirm::ARGUMENT), "it is a string")])),
        }
    }

    async fn run(&self, definition: &Definition, arguments: JsonObject, attempt: &mut Attempt<'_>) -> Result<Output, ToolError> {
        let (spec, context) = (&definition.spec, attempt.context);
        let now = Instant::now();
        let own = now + spec.timeout;
        let until = match context.deadline {
            Some(deadline) => own.min(deadline - (deadline.saturating_duration_since(now) / 10).min(HEADWAY)),
            None => own,
        };
        if until <= now {
            return Err(ToolError::Unavailable(NoEffect::Expired));
        }
        attempt.ran = Some(spec.behaviour.mode);
        let limit = self.0.options.max_output;
        let call = Call { tool: &spec.name, arguments: &arguments, caller: attempt.caller, context, until, max_bytes: limit };
        // In a block, since what makes the future may panic as well as the future.
        let running = AssertUnwindSafe(async { definition.run.run(call).await }).catch_unwind();
        let ends = context.sooner(Some(until + GRACE)).unwrap_or(until);
        let output = match timeout_at(ends.into(), running).await {
            Ok(Ok(result)) => result?,
            // The panic's own text is the panic hook's to print: it may hold anything.
            Ok(Err(_panic)) => return Err(internal(spec.name.as_ref(), context, "panicked")),
            Err(_) => return Err(ToolError::Deadline { after: until - now, undone: spec.behaviour.mode == Mode::ReadOnly }),
        };
        if is_larger(&output, limit) {
            return Err(ToolError::TooLarge { limit: limit as u64 });
        }
        let Some(value) = &output.structured else {
            let promised = spec.output.is_some();
            return if promised {
                Err(internal(&spec.name, context, "returned nothing where its output schema wants something"))
            } else {
                Ok(output)
            };
        };
        match definition.result(value) {
            Ok(()) => Ok(output),
            Err(problems) => {
                let at: Vec<&str> = problems.iter().take(5).map(|problem| &*problem.at).collect();
                Err(internal(&spec.name, context, &format!("returned what is not of its output schema, at {at:?}")))
            }
        }
    }
}

/// A call on its way.
struct Attempt<'a> {
    caller: &'a Caller,
    arguments: JsonObject,
    context: &'a CallContext,
    /// What a tool that was begun may have done.
    ran: Option<Mode>,
    /// There is such a tool, and the caller is not told so.
    denied: bool,
}

fn internal(tool: &str, context: &CallContext, what: &str) -> ToolError {
    let reference: Box<str> = format!("{:016x}", rand::random::<u64>()).into();
    tracing::error!(tool, trace = %context.trace, %reference, "a tool {what}");
    ToolError::Internal { reference }
}

/// SHA-256 of `arguments` as JSON: its names are sorted, so that equal arguments have one.
fn digest(arguments: &JsonObject) -> [u8; 32] {
    struct Hashing(Sha256);
    impl std::io::Write for Hashing {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.update(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let mut hashing = Hashing(Sha256::new());
    serde_json::to_writer(&mut hashing, arguments).expect("a value is JSON, and a hash takes all of it");
    hashing.0.finalize().into()
}

/// Whether `output` has more than `limit` bytes of JSON; looks no further than that.
fn is_larger(output: &Output, limit: usize) -> bool {
    struct Left(usize);
    impl std::io::Write for Left {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0 = self.0.checked_sub(bytes.len()).ok_or(std::io::ErrorKind::WriteZero)?;
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let mut left = Left(limit);
    let structured = output.structured.as_ref().is_some_and(|value| serde_json::to_writer(&mut left, value).is_err());
    structured || output.content.iter().any(|content| serde_json::to_writer(&mut left, content).is_err())
}

/// A description as a sentence among others.
fn sentence(description: &str) -> String {
    let text = description.trim();
    if text.ends_with(['.', '!', '?']) { text.to_owned() } else { format!("{text}.") }
}

#[cfg(test)]
mod tests;
