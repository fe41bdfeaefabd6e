//! Tools that are functions of the program: `native`, and `go_function` as the Go system called them.
//!
//! A program registers them by name, once, before rows are taken up; a row gives one a description, a schema and a policy, under its own name
//! or, with `{"function": "…"}`, under another. What is registered as only reading is what tools that only read may call.

use std::{collections::BTreeMap, fmt, future::Future, panic::AssertUnwindSafe, sync::Arc, time::Instant};

use futures_util::{FutureExt as _, future::BoxFuture};
use horos_wire::{CallContext, Unknown};
use parking_lot::RwLock;
use rmcp::model::JsonObject;
use serde_json::Value;
use tokio_util::task::AbortOnDropHandle;

use crate::{Call, Caller, Kind, Made, Mode, Output, Problem, Row, Run, ToolError};

/// What a function may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ability {
    /// It only looks. Given up, it had no effect.
    Reads,
    /// It changes things.
    Writes,
}

/// A call as a function is given it.
#[derive(Clone, Debug)]
pub struct Invocation {
    /// The tool it was called as.
    pub tool: Box<str>,
    /// The arguments, checked.
    pub arguments: JsonObject,
    /// Who asks.
    pub caller: Caller,
    /// Trace, deadline, hops and claims, for what it calls in turn.
    pub context: CallContext,
    /// When it is dropped.
    pub until: Instant,
    /// Most bytes of JSON that its output may have.
    pub max_bytes: usize,
}

/// There is a function of that name already.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a function called {0:?} is registered already")]
pub struct NameTaken(pub Box<str>);

type Body = dyn Fn(Invocation) -> BoxFuture<'static, Result<Output, ToolError>> + Send + Sync;

#[derive(Clone)]
struct Native {
    ability: Ability,
    body: Arc<Body>,
}

/// The functions of a program, and the kind that makes tools of them. Cheap to clone.
#[derive(Clone, Default)]
pub struct Natives(Arc<RwLock<BTreeMap<Box<str>, Native>>>);

impl fmt::Debug for Natives {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.read().keys()).finish()
    }
}

impl Natives {
    /// None yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Registers `function` as `name`.
    ///
    /// It runs as a task of its own: it is dropped at its deadline or when nobody waits, at its next `await`, and when it panics the caller
    /// is told of an internal error.
    ///
    /// # Errors
    /// [`NameTaken`].
    pub fn register<F, T>(&self, name: &str, ability: Ability, function: F) -> Result<(), NameTaken>
    where
        F: Fn(Invocation) -> T + Send + Sync + 'static,
        T: Future<Output = Result<Output, ToolError>> + Send + 'static,
    {
        let mut all = self.0.write();
        if all.contains_key(name) {
            return Err(NameTaken(name.into()));
        }
        all.insert(name.into(), Native { ability, body: Arc::new(move |call| function(call).boxed()) });
        Ok(())
    }
}

impl Kind for Natives {
    fn check(&self, row: &Row, mode: Mode, config: &JsonObject, _input: &JsonObject) -> Result<Made, Vec<Problem>> {
        let mut problems = Vec::new();
        let mut wrong = |at: &str, what: String| problems.push(Problem::new(at, what));
        for key in config.keys().filter(|key| *key != "function") {
            wrong(&format!("handler_config.{key}"), "no such setting; there is function".into());
        }
        let name = match config.get("function") {
            None => &*row.name,
            Some(Value::String(name)) => name,
            Some(_) => {
                wrong("handler_config.function", "the name of a function".into());
                ""
            }
        };
        let all = self.0.read();
        let native = all.get(name);
        match native {
            None if name.is_empty() => {}
            None => {
                let names: Vec<&str> = all.keys().map(|name| &**name).collect();
                let there = if names.is_empty() { "none is".into() } else { format!("there are {}", names.join(", ")) };
                wrong("handler_config.function", format!("no function {name:?} is registered on this node; {there}"));
            }
            Some(native) if mode == Mode::ReadOnly && native.ability == Ability::Writes => {
                wrong("mode", format!("{name} changes things: the mode is readwrite"));
            }
            Some(_) => {}
        }
        match native {
            Some(native) if problems.is_empty() => Ok(Made { run: Arc::new(native.clone()), output_schema: None, arguments: Vec::new() }),
            _ => Err(problems),
        }
    }
}

impl Run for Native {
    fn run<'a>(&'a self, call: Call<'a>) -> BoxFuture<'a, Result<Output, ToolError>> {
        Box::pin(self.invoke(call))
    }
}

impl Native {
    async fn invoke(&self, call: Call<'_>) -> Result<Output, ToolError> {
        let began = Instant::now();
        let invocation = Invocation {
            tool: call.tool.into(),
            arguments: call.arguments.clone(),
            caller: call.caller.clone(),
            context: call.context.clone(),
            until: call.until,
            max_bytes: call.max_bytes,
        };
        let body = self.body.clone();
        // In the task, so that what panics before its first `await` is caught as well, and what never awaits keeps nobody from the deadline.
        let task = async move { AssertUnwindSafe(async { body(invocation).await }).catch_unwind().await };
        let task = AbortOnDropHandle::new(tokio::spawn(task));
        match tokio::time::timeout_at(call.until.into(), task).await {
            Ok(Ok(Ok(result))) => result,
            Ok(Ok(Err(panic))) => {
                let text = panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
                let reference = reference();
                tracing::error!(tool = call.tool, %reference, panic = text.unwrap_or("without text"), "a function panicked");
                Err(ToolError::Internal { reference })
            }
            // The runtime is stopping.
            Ok(Err(_)) => Err(ToolError::Unknown(Unknown::ActorDied)),
            Err(_) => {
                Err(ToolError::Deadline { after: call.until.saturating_duration_since(began), undone: self.ability == Ability::Reads })
            }
        }
    }
}

/// A name for an entry of the log, which a caller is told.
pub(crate) fn reference() -> Box<str> {
    format!("{:016x}", rand::random::<u64>()).into()
}
