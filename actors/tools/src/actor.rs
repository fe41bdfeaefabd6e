//! Tools that are an actor's method, called in its JSON form: `{"service": "stock", "method": "reserve"}`.
//!
//! By `service` the call goes where the route of that name leads, with its breaker, retries and limits; by `address` (`stock@bo`) to that
//! actor. The arguments are the message. What the actor refuses is what the tool answers, as text of its error.

use std::{fmt, sync::Arc, time::Instant};

use futures_util::future::BoxFuture;
use horos_router::Router;
use horos_supervision::{Context, Exchange};
use horos_wire::{ActorName, Address, CallContext, CallError, Scope, Unknown, context::Claims, principal::Proof};
use rmcp::model::{ContentBlock, JsonObject};
use serde_json::Value;

use crate::{Call, Caller, Kind, Made, Mode, Output, Problem, Row, Run, ToolError, Who};

/// How names begin of the node's own actors, which no tool calls: keys, routes and tools are edited by those who may.
const OWN: &str = "horos.";
/// Longest text of an actor's own error that is passed on.
const MAX_ERROR: usize = 2_048;

/// Makes tools of actors' methods. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Actors {
    router: Router,
    exchange: Exchange,
}

impl Actors {
    /// The actors and services that `router` and `exchange` reach.
    pub fn new(router: Router, exchange: Exchange) -> Self {
        Self { router, exchange }
    }
}

/// Whom a tool calls.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Callee {
    /// By its route.
    Service(Box<str>),
    /// By its address.
    Actor(Address),
}

struct Ready {
    actors: Actors,
    callee: Callee,
    method: Box<str>,
}

impl fmt::Debug for Ready {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}.{}", self.callee, self.method)
    }
}

impl Kind for Actors {
    fn check(&self, _row: &Row, _mode: Mode, config: &JsonObject, _input: &JsonObject) -> Result<Made, Vec<Problem>> {
        let mut problems = Vec::new();
        let mut wrong = |at: &str, what: String| problems.push(Problem::new(format!("handler_config.{at}"), what));
        for key in config.keys().filter(|key| !["service", "address", "method"].contains(&key.as_str())) {
            wrong(key, "no such setting; there are service, address and method".into());
        }
        let text = |key: &str| config.get(key).map(|value| value.as_str().unwrap_or_default());
        let callee = match (text("service"), text("address")) {
            (Some(service), None) => match service.parse::<ActorName>() {
                Ok(name) => Some((name, Callee::Service(service.into()))),
                Err(error) => {
                    wrong("service", error.to_string());
                    None
                }
            },
            (None, Some(address)) => match address.parse::<Address>() {
                Ok(address) => Some((address.name.clone(), Callee::Actor(address))),
                Err(error) => {
                    wrong("address", error.to_string());
                    None
                }
            },
            (Some(_), Some(_)) => {
                wrong("address", "either a service or an address".into());
                None
            }
            (None, None) => {
                wrong("service", "the name of a service, or an actor's `address`".into());
                None
            }
        };
        if let Some((name, _)) = callee.as_ref().filter(|(name, _)| name.as_str().starts_with(OWN)) {
            wrong(if config.contains_key("service") { "service" } else { "address" }, format!("{name} is the node's own, and no tool's"));
        }
        let method = text("method").filter(|method| !method.is_empty());
        if method.is_none() {
            wrong("method", "the name of a method, such as \"reserve\"".into());
        }
        // An actor that is here says which methods it has; one elsewhere, or started later, does when it is called.
        if let (Some((name, callee)), Some(method)) = (&callee, method) {
            let here = match callee {
                Callee::Service(service) => !self.router.is_routed(service),
                Callee::Actor(address) => address.scope == Scope::Any,
            };
            if let Some(inbox) = self.exchange.find(name).filter(|_| here)
                && !inbox.methods().iter().any(|has| has.name == method)
            {
                let names: Vec<&str> = inbox.methods().iter().map(|method| method.name).collect();
                wrong("method", format!("{name} has no such method; there are {}", names.join(", ")));
            }
        }
        match (callee, method) {
            (Some((_, callee)), Some(method)) if problems.is_empty() => {
                let ready = Ready { actors: self.clone(), callee, method: method.into() };
                Ok(Made { run: Arc::new(ready), output_schema: None, arguments: Vec::new() })
            }
            _ => Err(problems),
        }
    }
}

impl Run for Ready {
    fn run<'a>(&'a self, call: Call<'a>) -> BoxFuture<'a, Result<Output, ToolError>> {
        Box::pin(self.ask(call))
    }
}

impl Ready {
    async fn ask(&self, call: Call<'_>) -> Result<Output, ToolError> {
        let began = Instant::now();
        let mut message = JsonObject::new();
        message.insert((*self.method).into(), Value::Object(call.arguments.clone()));
        let message = Value::Object(message).to_string();
        let context =
            Context::new(self.actors.exchange.clone(), "tools").with_call(on_behalf(call.caller, call.context)).with_deadline(call.until);
        let answer = match &self.callee {
            Callee::Service(service) => self.actors.router.call_json(&context, service, &message, call.until).await,
            Callee::Actor(address) => context.call_json(&address.to_string(), &message, call.until).await,
        };
        match answer {
            Ok(value @ Value::Object(_)) => Ok(Output::json(value)),
            // What has a structure is an object, in every version of MCP before 2026-07-28.
            Ok(value) => Ok(Output { structured: None, content: vec![ContentBlock::text(value.to_string())] }),
            Err(CallError::Failed(error)) => Err(ToolError::Failed(shown(&error).into())),
            Err(CallError::NoEffect(why)) => Err(ToolError::Unavailable(why)),
            Err(CallError::Unknown(Unknown::DeadlinePassed)) => {
                Err(ToolError::Deadline { after: call.until.saturating_duration_since(began), undone: false })
            }
            Err(CallError::Unknown(why)) => Err(ToolError::Unknown(why)),
        }
    }
}

/// The context with the caller's user and token, as the port does it: an actor that asks who it is for finds whom the token proves.
fn on_behalf(caller: &Caller, context: &CallContext) -> CallContext {
    let mut context = context.clone();
    if let Who::Principal(principal) = &caller.who
        && let Proof::Token { user, token } = &principal.proof
    {
        let before = context.claims.as_deref().cloned().unwrap_or_default();
        context.claims = Some(Arc::new(Claims { user: Some(user.clone()), token: Some(token.clone()), ..before }));
    }
    context
}

/// An actor's own error, as text of bounded length.
fn shown(error: &Value) -> String {
    let mut text = match error {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    if text.len() > MAX_ERROR {
        let end = (0..=MAX_ERROR).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
        text.truncate(end);
        text.push('…');
    }
    text
}
