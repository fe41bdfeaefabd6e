//! The actor `horos.tools`: what this node serves, who called what, calls by people, and calls that other nodes pass on.
//!
//! Runs on every node, for that node alone. Who may ask for what is the policy's, by certificates; in here it is looked at once more that
//! only nodes pass calls on. Such a call is done for whoever the *credential* proves by this node's own look at it, never for whom the other
//! node names; without a credential it is the other node itself that calls. All of it goes through [`Tools::call`], as everything does.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use horos_supervision::{
    ChildSpec, Concurrent, Exchange, Places,
    concurrent::{answer, concurrent},
    exchange::RegisterError,
    mailbox::Post,
};
use horos_wire::{
    CallContext, CallError, NoEffect, Request as _,
    principal::Denied,
    protocol::registry,
    protocol::tools::{
        AuditAsk, AuditPage, CallTool, ListServed, MAX_ARGUMENTS, MAX_RESULT, MAX_WRONG, NAME, PAGE, PAGE_BYTES, PassOn, ServedList,
        ServedTool, ToolFailure, ToolResult, Tools as Protocol, ToolsError, ToolsStatus, ToolsStatusAsk, WrongRow,
    },
};
use rmcp::model::JsonObject;

use crate::{
    Caller, Credential, Definition, Mode, Tools, Transport, Verify, Who,
    audit::{Filter, Waits, cut},
    pass_on::failure,
};

/// Each call holds a result of a few megabytes at most; a node has a quarter of the places.
const PLACES: Places = Places { at_once: 256, per_node: 64 };
/// What the log is filtered by that is kept of calls.
const AUDIT: &str = "horos_tools::audit";

/// The node's tools, as other nodes and people ask for them. Cheap to clone.
#[derive(Clone)]
pub struct Node {
    tools: Tools,
    verify: Arc<dyn Verify>,
}

impl std::fmt::Debug for Node {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Node").field("tools", &self.tools).finish_non_exhaustive()
    }
}

impl Node {
    /// Of `tools`; what a key or token proves that comes with a call, `verify` tells.
    pub fn new(tools: Tools, verify: Arc<dyn Verify>) -> Self {
        Self { tools, verify }
    }

    /// The child that answers, and its name on the node.
    ///
    /// # Errors
    /// [`RegisterError`] when a service has taken the name.
    pub fn child(self, exchange: &Exchange) -> Result<ChildSpec, RegisterError> {
        concurrent(exchange, NAME, PLACES, self)
    }

    fn status(&self) -> ToolsStatus {
        let (registry, snapshot) = (self.tools.registry(), self.tools.registry().snapshot());
        let wrong = |it: &crate::Wrong| {
            let problems = it.problems.iter().cloned().map(Into::into).collect();
            WrongRow { row: registry::WrongTool { name: it.name.clone(), problems }, serves: it.serves }
        };
        let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        ToolsStatus {
            served: count(snapshot.tools.len()),
            kinds: registry.kinds().names().map(Into::into).collect(),
            generation: snapshot.generation,
            wrong: count(snapshot.wrong.len()),
            wrong_rows: snapshot.wrong.iter().take(MAX_WRONG).map(wrong).collect(),
        }
    }

    fn served(&self, ask: &ListServed) -> ServedList {
        use std::ops::Bound::{Excluded, Unbounded};
        let snapshot = self.tools.registry().snapshot();
        let from = ask.after.as_deref().map_or(Unbounded, Excluded);
        let (mut tools, mut bytes) = (Vec::<ServedTool>::new(), 0);
        for tool in snapshot.tools.range::<str, _>((from, Unbounded)).map(|(_, tool)| tool) {
            if tools.len() == PAGE || bytes >= PAGE_BYTES {
                let next = tools.last().map(|last| last.name.clone());
                return ServedList { tools, next };
            }
            let it = served(tool);
            bytes += it.name.len() + it.description.len() + it.category.len() + it.group.len();
            tools.push(it);
        }
        ServedList { tools, next: None }
    }

    async fn called(&self, ask: CallTool, caller: Caller, context: CallContext) -> Result<ToolResult, ToolFailure> {
        let arguments = arguments(&ask.arguments)?;
        let output = self.tools.call(&caller, &ask.tool, arguments, context).await?;
        Ok(failure::write(&output, MAX_RESULT)?)
    }

    async fn passed_on(&self, ask: PassOn, from: Arc<horos_wire::NodeId>, context: CallContext) -> Result<ToolResult, ToolFailure> {
        if !from.role.is_node() {
            return Err(ToolFailure::Denied("only nodes pass calls on".into()));
        }
        let by = |who, credential| Caller { who, credential, transport: Transport::Link, session: None, remote: None };
        let caller = match &ask.credential {
            None => by(Who::Node(from), None),
            Some(shown) => {
                let credential = Credential(shown.reveal().into());
                match self.verify.verify(&credential).await {
                    Ok(proved) => by(Who::Principal(proved), Some(credential)),
                    Err(why) => return Err(self.unproved(&by(Who::Node(from), None), &ask.tool, why, &context).await),
                }
            }
        };
        let arguments = arguments(&ask.arguments)?;
        let output = self.tools.call(&caller, &ask.tool, arguments, context).await?;
        Ok(failure::write(&output, MAX_RESULT.min(ask.max_bytes as usize))?)
    }

    /// Written down as the other node's doing, which is all that is proved of it.
    async fn unproved(&self, node: &Caller, tool: &str, why: Denied, context: &CallContext) -> ToolFailure {
        tracing::warn!(target: AUDIT, tool, from = &*node.id(), %why, "a call was passed on with a key or token that proves nobody");
        let mut ticket = self.tools.audit().ticket(node).await;
        let record = ticket.record();
        (record.tool, record.trace) = (cut(tool).into(), context.trace);
        match why {
            Denied::Unavailable => {
                ticket.end("unavailable", Waits::No);
                ToolFailure::Unavailable(NoEffect::Overloaded("the look at keys and tokens".into()))
            }
            // Which of the others it is helps only who guesses.
            _ => {
                ticket.end("denied", Waits::No);
                ToolFailure::Denied("the key or token does not hold".into())
            }
        }
    }

    async fn audit(&self, ask: AuditAsk) -> Result<AuditPage, ToolsError> {
        let AuditAsk { tool, caller, outcome, since_ms: since, before, after, limit } = ask;
        let limit = usize::try_from(limit).unwrap_or(PAGE).clamp(1, PAGE);
        let filter = Filter { tool, caller, outcome, since, before, after };
        // One more, to know whether there is another page.
        let mut found = self.tools.audit().tail(limit + 1, filter).await.map_err(|error| {
            tracing::error!(error = &error as &dyn std::error::Error, "the audit cannot be read");
            ToolsError::Storage("the audit cannot be read now".into())
        })?;
        let more = found.len() > limit;
        found.truncate(limit);
        let next = found.last().filter(|_| more).map(|last| last.id);
        Ok(AuditPage { entries: found, next })
    }
}

fn served(tool: &Definition) -> ServedTool {
    let spec = &tool.spec;
    let mode = match spec.behaviour.mode {
        Mode::ReadOnly => "readonly",
        Mode::ReadWrite => "readwrite",
    };
    ServedTool {
        name: spec.name.clone(),
        description: spec.description.clone(),
        category: spec.category.clone(),
        group: spec.group.clone(),
        mode: mode.into(),
        destructive: spec.behaviour.destructive,
        timeout_ms: spec.timeout.as_millis().try_into().unwrap_or(u64::MAX),
        version: spec.version,
    }
}

fn arguments(text: &str) -> Result<JsonObject, ToolFailure> {
    let wrong = |what: String| ToolFailure::Arguments(vec![registry::Problem { key: "".into(), what: what.into() }]);
    if text.len() > MAX_ARGUMENTS {
        return Err(wrong(format!("they are larger than {MAX_ARGUMENTS} bytes")));
    }
    serde_json::from_str(text).map_err(|error| wrong(format!("they are no JSON object: {error}")))
}

impl Concurrent for Node {
    type Protocol = Protocol;

    fn answer(self: Arc<Self>, post: Box<Post>) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            let caller = Arc::new(post.caller.node().clone());
            match post.method {
                ToolsStatusAsk::METHOD => answer(post, async |_: ToolsStatusAsk, _| Ok(self.status())).await,
                ListServed::METHOD => answer(post, async |ask: ListServed, _| Ok(self.served(&ask))).await,
                AuditAsk::METHOD => answer(post, async |ask, _| self.audit(ask).await.map_err(CallError::Failed)).await,
                CallTool::METHOD => {
                    let caller =
                        Caller { who: Who::Node(caller), credential: None, transport: Transport::Command, session: None, remote: None };
                    answer(post, async |ask, context| self.called(ask, caller, context).await.map_err(CallError::Failed)).await;
                }
                PassOn::METHOD => {
                    answer(post, async |ask, context| self.passed_on(ask, caller, context).await.map_err(CallError::Failed)).await
                }
                other => post.refuse(NoEffect::VersionNotSpoken(format!("{NAME} has no method {other}").into())),
            }
        })
    }
}
