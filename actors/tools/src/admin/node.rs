//! The actor `horos.tools`: what this node serves, who called what, calls by people, and calls that other nodes pass on.
//!
//! Runs on every node, for that node alone. Who may ask for what is the policy's, by certificates; in here it is looked at once more that
//! only nodes pass calls on. Such a call is done for whoever the *credential* proves by this node's own look at it, never for whom the other
//! node names; without a credential it is the other node itself that calls. All of it goes through [`Tools::call`], as everything does.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::future::BoxFuture;
use horos_supervision::{
    ChildSpec, Exchange,
    exchange::{Answerer, RegisterError},
    mailbox::{Post, Work},
};
use horos_wire::{
    CallContext, NoEffect, Request, Unknown, codec,
    principal::Denied,
    protocol::registry,
    protocol::tools::{
        AuditAsk, AuditPage, CallTool, ListServed, MAX_ARGUMENTS, MAX_RESULT, MAX_WRONG, NAME, PAGE, PAGE_BYTES, PassOn, ServedList,
        ServedTool, ToolFailure, ToolResult, Tools as Protocol, ToolsError, ToolsStatus, ToolsStatusAsk, WrongRow,
    },
};
use rmcp::model::JsonObject;

use super::inbox::{self, Answers, abandoned};
use crate::{Caller, Credential, Definition, Mode, Tools, Transport, Verify, Who, pass_on::failure};

/// What the log is filtered by that is kept of calls.
const AUDIT: &str = "horos_tools::audit";
/// For a question about the node itself when its asker sets no sooner deadline.
const LOOK: Duration = Duration::from_secs(5);

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
        inbox::child::<Protocol>(exchange, NAME, Arc::new(self))
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
        let (who, credential) = match &ask.credential {
            None => (Who::Node(from.clone()), None),
            Some(shown) => {
                let credential = Credential(shown.reveal().into());
                let proved = self.verify.verify(&credential).await.map_err(|why| {
                    tracing::warn!(target: AUDIT, tool = &*ask.tool, from = %from.name, %why, "a call was passed on with a key or token that proves nobody");
                    match why {
                        Denied::Unavailable => ToolFailure::Unavailable(NoEffect::Overloaded("the look at keys and tokens".into())),
                        // Which of the others it is helps only who guesses.
                        _ => ToolFailure::Denied("the key or token does not hold".into()),
                    }
                })?;
                (Who::Principal(proved), Some(credential))
            }
        };
        let arguments = arguments(&ask.arguments)?;
        let caller = Caller { who, credential, transport: Transport::Link, session: None, remote: None };
        let output = self.tools.call(&caller, &ask.tool, arguments, in_time(context)).await?;
        Ok(failure::write(&output, MAX_RESULT.min(ask.max_bytes as usize))?)
    }

    async fn audit(&self, ask: AuditAsk) -> Result<AuditPage, ToolsError> {
        let _ = ask;
        tokio::task::yield_now().await;
        Err(ToolsError::Storage("not yet".into()))
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

/// The same with the deadline a little sooner, so that how it ended is told while the other node still waits: a tenth of what is left, and
/// no more than a journey between continents and back takes.
fn in_time(mut context: CallContext) -> CallContext {
    const JOURNEY: Duration = Duration::from_millis(300);
    if let Some(deadline) = &mut context.deadline {
        let left = deadline.saturating_duration_since(Instant::now());
        *deadline -= (left / 10).min(JOURNEY);
    }
    context
}

impl Answers for Node {
    fn answer(self: Arc<Self>, post: Box<Post>) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            let caller = Arc::new(post.caller.node().clone());
            match post.method {
                ToolsStatusAsk::METHOD => answer(post, async |_: ToolsStatusAsk, _| Ok(self.status())).await,
                ListServed::METHOD => answer(post, async |ask: ListServed, _| Ok(self.served(&ask))).await,
                AuditAsk::METHOD => answer(post, async |ask, _| self.audit(ask).await).await,
                CallTool::METHOD => {
                    let caller =
                        Caller { who: Who::Node(caller), credential: None, transport: Transport::Command, session: None, remote: None };
                    answer(post, async |ask, context| self.called(ask, caller, context).await).await;
                }
                PassOn::METHOD => answer(post, async |ask, context| self.passed_on(ask, caller, context).await).await,
                other => post.refuse(NoEffect::VersionNotSpoken(format!("{NAME} has no method {other}").into())),
            }
        })
    }
}

/// Reads a request, has it done, and answers, unless nobody waits for it any more.
async fn answer<R: Request>(post: Box<Post>, work: impl AsyncFnOnce(R, CallContext) -> Result<R::Reply, R::Error>) {
    let Post { work: Work::Encoded { format, body, answer: Some(mut answer) }, context, .. } = *post else { return };
    if answer.is_abandoned() || context.deadline.is_some_and(|deadline| deadline <= Instant::now()) {
        return answer.refuse(NoEffect::Expired);
    }
    let ask = match codec::decode::<R>(format, &body) {
        Ok(ask) => ask,
        Err(error) => return answer.refuse(NoEffect::Malformed(error.to_string().into())),
    };
    // The request has been read: what it takes need not be kept twice.
    drop(body);
    // Given up from here on, by a stop or a crash of this actor, it may have been done.
    answer.begin(Unknown::ActorDied);
    let done = tokio::select! {
        done = work(ask, context) => done,
        () = abandoned(&answer) => return,
    };
    told(answer, &done);
}

fn told<T: serde::Serialize, E: serde::Serialize>(answer: Answerer, done: &Result<T, E>) {
    match done {
        Ok(reply) => answer.reply(reply),
        Err(error) => answer.fail(error),
    }
}
