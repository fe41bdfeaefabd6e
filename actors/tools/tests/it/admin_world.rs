//! Nodes that reach each other in memory: what is sent is encoded and decoded as on a link, and comes with the sender's identity.

use std::{
    collections::HashMap,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use horos_store::{
    migrations::Migrations,
    open::{Access, Options as Open},
    readers::{Readers, ReadersConfig},
    rusqlite::{Connection, types::Value},
    writer::{Writer, WriterConfig},
};
use horos_supervision::{
    Caller as LinkCaller, Context, Exchange, ServiceSpec, Strategy, Supervisor, SupervisorHandle, SupervisorSpec,
    exchange::{Answer, AnswerSink, Answerer, Answering, Cancel, Cancels, Carrier, Inbox, Outgoing, Outlet, Route, Sent, read_answer},
    mailbox::{Post, Returned, Work},
    service,
};
use horos_tools::{
    Call, Credential, Kind, Kinds, Made, Mode, Options, Output, PassOn, Problem, Registry, Row, Run, TOOLS_MIGRATIONS, ToNode, ToolError,
    Tools, Verify,
    admin::{Administration, Node as ToolsNode},
    audit::Audit,
    rmcp::model::JsonObject,
};
use horos_wire::{
    Address, Bulk, CallContext, CallError, Format, Incarnation, NoEffect, NodeId, NodeName, Request, Scope, Unknown,
    codec::CodecError,
    control::DownReason,
    error::Fault,
    frame::Kind as Frame,
    principal::{Denied, Principal, Proof},
    protocol::{Method, registry, tools},
};
use parking_lot::Mutex;
use serde_json::json;
use tokio::sync::{oneshot, watch};
use tokio_util::sync::CancellationToken;

pub(crate) const LONG: Duration = Duration::from_secs(20);

// --- a link in memory ---

/// The nodes that there are, by name.
#[derive(Clone, Default)]
pub(crate) struct Ways(Arc<Mutex<HashMap<NodeName, Exchange>>>);

/// One node's side of [`Ways`].
struct Side {
    ways: Ways,
    me: Arc<NodeId>,
}

impl Carrier for Side {
    fn route(&self, address: Address, _: Option<(&'static str, u16)>, _: Instant) -> BoxFuture<'_, Result<Route, NoEffect>> {
        Box::pin(async move {
            let Scope::Node(node) = &address.scope else { return Err(NoEffect::NoRoute("nobody in particular".into())) };
            let exchange = self.ways.0.lock().get(node).cloned().ok_or_else(|| NoEffect::NoRoute(node.as_str().into()))?;
            let inbox = exchange.find(&address.name).ok_or_else(|| NoEffect::NoSuchActor(address.to_string().into()))?;
            let methods = inbox.methods().iter().map(|it: &Method| (it.number, it.name.into())).collect();
            let (node, me) = (node.clone(), self.me.clone());
            Ok(Route::Remote(Arc::new(Wire { inbox, methods, node, me, ways: self.ways.clone() })))
        })
    }

    fn bulk(&self, _: NodeName, _: Bulk) -> BoxFuture<'_, Result<horos_supervision::bulk::BulkWriter, NoEffect>> {
        Box::pin(async { Err(NoEffect::NoRoute("no bulk here".into())) })
    }
}

struct Wire {
    inbox: Arc<dyn Inbox>,
    methods: Vec<(u16, Box<str>)>,
    node: NodeName,
    me: Arc<NodeId>,
    ways: Ways,
}

/// The waiting side of a call.
#[derive(Default)]
struct Waits {
    answer: Mutex<Option<oneshot::Sender<Result<Answer, Fault>>>>,
    gone: CancellationToken,
}

impl AnswerSink for Waits {
    fn answer(&self, _: u64, kind: Frame, format: Format, body: &mut dyn FnMut(&mut Vec<u8>) -> Result<(), CodecError>) {
        let mut bytes = Vec::new();
        body(&mut bytes).unwrap();
        if let Some(answer) = self.answer.lock().take() {
            let _ = answer.send(read_answer(kind, format, bytes.into()));
        }
    }
    fn is_abandoned(&self, _: u64) -> bool {
        self.gone.is_cancelled()
    }
    fn abandoned(&self, _: u64) -> BoxFuture<'_, ()> {
        Box::pin(self.gone.cancelled())
    }
}

impl Cancels for Waits {
    fn cancel(&self, _: u64) {
        self.gone.cancel();
    }
}

impl Outlet for Wire {
    fn node(&self) -> &NodeName {
        &self.node
    }
    fn is_open(&self) -> bool {
        self.ways.0.lock().contains_key(&self.node)
    }
    fn methods(&self) -> &[(u16, Box<str>)] {
        &self.methods
    }
    fn call(&self, message: Outgoing<'_>) -> Result<Sent<Answering>, NoEffect> {
        let mut body = Vec::new();
        (message.encode)(&mut body).unwrap();
        let (sender, answer) = oneshot::channel();
        let waits = Arc::new(Waits { answer: Mutex::new(Some(sender)), gone: CancellationToken::new() });
        let answerer = Answerer::new(waits.clone(), 1, message.format);
        post(&*self.inbox, message.method, message.format, body.into(), message.context.clone(), &self.me, answerer)?;
        Ok(Sent::Now(Answering { answer, cancel: Cancel::new(waits, 1) }))
    }
    fn cast(&self, _: Outgoing<'_>) -> Result<Sent<()>, NoEffect> {
        unreachable!("nothing here is cast")
    }
    fn watch(&self) -> Result<BoxFuture<'static, DownReason>, NoEffect> {
        Ok(Box::pin(std::future::pending()))
    }
}

fn post(
    inbox: &dyn Inbox,
    method: u16,
    format: Format,
    body: Bytes,
    context: CallContext,
    from: &Arc<NodeId>,
    answer: Answerer,
) -> Result<(), NoEffect> {
    let work = Work::Encoded { format, body, answer: Some(answer) };
    let caller = LinkCaller::remote(from.clone());
    let post = Box::new(Post { method, work, context, caller, size: 0, received: Instant::now(), hold: None });
    inbox.post(post).map_err(|returned| {
        let Returned { post, why } = *returned;
        post.refuse(why.clone());
        why
    })
}

// --- what proves people ---

/// What a key proves.
type Proved = Result<Arc<Principal>, Denied>;

/// Keys by their text, and those of them that were revoked.
#[derive(Clone, Default)]
pub(crate) struct Keys(Arc<Mutex<HashMap<String, Proved>>>);

impl Keys {
    pub(crate) fn make(&self, text: &str, owner: &str, scopes: &[&str]) {
        let scopes = scopes.iter().map(|scope| scope.parse().unwrap()).collect();
        let principal =
            Principal { id: format!("key_{owner}").into(), proof: Proof::Key { owner: owner.into() }, scopes, per_minute: None };
        self.0.lock().insert(text.to_owned(), Ok(Arc::new(principal)));
    }
    pub(crate) fn deny(&self, text: &str, why: Denied) {
        self.0.lock().insert(text.to_owned(), Err(why));
    }
    pub(crate) fn who(&self, text: &str) -> Result<Arc<Principal>, Denied> {
        self.0.lock().get(text).cloned().unwrap_or(Err(Denied::Unknown))
    }
}

impl Verify for Keys {
    fn verify(&self, credential: &Credential) -> BoxFuture<'static, Result<Arc<Principal>, Denied>> {
        let found = self.who(&credential.0);
        Box::pin(async move { found })
    }
}

// --- tools to be called ---

/// The kind `fixed`: answers what `handler_config.answer` says, or does what it is told to. `handler_config.passed_on` has the call done
/// elsewhere.
pub(crate) struct Fixed {
    pass_on: Option<Arc<dyn PassOn>>,
    pub(crate) seen: Arc<Seen>,
}

/// What tools have been up to.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    pub(crate) begun: watch::Sender<u64>,
    pub(crate) dropped: watch::Sender<u64>,
    pub(crate) callers: Mutex<Vec<String>>,
}

struct Does {
    config: JsonObject,
    pass_on: Option<Arc<dyn PassOn>>,
    seen: Arc<Seen>,
}

impl Kind for Fixed {
    fn check(&self, _: &Row, _: Mode, config: &JsonObject, _: &JsonObject) -> Result<Made, Vec<Problem>> {
        let known = ["answer", "passed_on", "hang", "fail", "bytes", "panic"];
        let wrong: Vec<_> = config
            .keys()
            .filter(|key| !known.contains(&key.as_str()))
            .map(|key| Problem::new(format!("handler_config.{key}"), "there is nothing of that name"))
            .collect();
        if !wrong.is_empty() {
            return Err(wrong);
        }
        let run = Arc::new(Does { config: config.clone(), pass_on: self.pass_on.clone(), seen: self.seen.clone() });
        Ok(Made { run, output_schema: None, arguments: Vec::new() })
    }
}

/// Counts what was given up midway.
struct Midway(Arc<Seen>, bool);

impl Drop for Midway {
    fn drop(&mut self) {
        if !self.1 {
            self.0.dropped.send_modify(|dropped| *dropped += 1);
        }
    }
}

impl Run for Does {
    fn run<'a>(&'a self, call: Call<'a>) -> BoxFuture<'a, Result<Output, ToolError>> {
        Box::pin(async move {
            if let (true, Some(pass_on)) = (self.config.contains_key("passed_on"), &self.pass_on) {
                return pass_on.pass_on(call).await;
            }
            self.seen.callers.lock().push(format!("{} by {}", call.caller.id(), call.caller.transport.as_str()));
            self.seen.begun.send_modify(|begun| *begun += 1);
            let mut midway = Midway(self.seen.clone(), false);
            if self.config.contains_key("hang") {
                // As what reads does: it stops at its deadline by itself, and says so.
                tokio::time::sleep_until(call.until.into()).await;
                midway.1 = true;
                return Err(ToolError::Deadline { after: Duration::from_millis(7), undone: true });
            }
            midway.1 = true;
            if let Some(text) = self.config.get("fail").and_then(|it| it.as_str()) {
                return Err(ToolError::Failed(text.into()));
            }
            if let Some(bytes) = self.config.get("bytes").and_then(|it| it.as_u64()) {
                return Ok(Output::json(json!({ "text": "x".repeat(bytes as usize) })));
            }
            assert!(!self.config.contains_key("panic"), "as a test wants it");
            Ok(Output::json(json!({ "answer": self.config.get("answer"), "arguments": call.arguments })))
        })
    }
}

// --- a node ---

pub(crate) struct Node {
    pub(crate) context: Context,
    pub(crate) tools: Tools,
    pub(crate) registry: Registry,
    pub(crate) audit: Audit,
    pub(crate) pass_on: Arc<ToNode>,
    pub(crate) keys: Keys,
    pub(crate) seen: Arc<Seen>,
    ways: Ways,
    pub(crate) file: PathBuf,
    pub(crate) root: SupervisorHandle,
    _directory: tempfile::TempDir,
}

impl Node {
    /// `bo-1` is the owner; others are what their names begin with.
    pub(crate) async fn start(name: &str, ways: &Ways, keys: &Keys) -> Self {
        let id = NodeId::from_uri(&format!("spiffe://shop/{}/{name}", &name[..2])).unwrap();
        let exchange = Exchange::new(id.clone(), Incarnation(1));
        exchange.connect(Arc::new(Side { ways: ways.clone(), me: Arc::new(id.clone()) }));
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("control.db");
        let open = Open::new(&file, Access::Owner);
        let (writer, readers) =
            (Writer::new(WriterConfig::new(open.clone(), Migrations::new(TOOLS_MIGRATIONS))), Readers::new(ReadersConfig::new(open)));
        let seen = Arc::<Seen>::default();
        let pass_on = Arc::new(ToNode::new(Context::new(exchange.clone(), "tools"), "bo-1".parse().unwrap()));
        let kinds = Kinds::default().with("fixed", Arc::new(Fixed { pass_on: Some(pass_on.clone()), seen: seen.clone() }));
        let registry = Registry::new(kinds, Vec::new());
        let audit = Audit::in_memory();
        let tools = Tools::new(registry.clone(), audit.clone(), Options::default());
        let mut children = vec![writer.child("control:writer"), readers.child("control:readers")];
        let open = {
            let registry = registry.clone();
            move |_: Context| {
                let (writer, readers, registry) = (writer.clone(), readers.clone(), registry.clone());
                async move { Ok(Administration::new(writer, readers, registry)) }
            }
        };
        let runtime = tokio::runtime::Handle::current();
        children.push(service(&exchange, &runtime, ServiceSpec::new(registry::NAME.parse().unwrap()), open).unwrap());
        children.push(ToolsNode::new(tools.clone(), Arc::new(keys.clone())).child(&exchange).unwrap());
        let root = Supervisor::start(SupervisorSpec::new("root", Strategy::OneForOne, children), None).await.unwrap();
        ways.0.lock().insert(id.name.clone(), exchange.clone());
        let (keys, ways) = (keys.clone(), ways.clone());
        let context = Context::new(exchange, "ana");
        Self { context, tools, registry, audit, pass_on, keys, seen, ways, file, root, _directory: directory }
    }

    /// Asks this node as `who` (`operator/ana`, `fo/fo-1`) would over a link.
    pub(crate) async fn asked_by<R: Request>(
        &self,
        who: &str,
        at: &str,
        request: R,
        within: Duration,
    ) -> Result<R::Reply, CallError<R::Error>> {
        let id = Arc::new(NodeId::from_uri(&format!("spiffe://shop/{who}")).unwrap());
        let exchange = Exchange::new((*id).clone(), Incarnation(2));
        exchange.connect(Arc::new(Side { ways: self.ways.clone(), me: id }));
        let address: Address = format!("{at}@{}", self.context.node().name).parse().unwrap();
        Context::new(exchange, "test").reach::<R::Protocol>(address).call(request, within).await
    }

    /// An operator's edit.
    pub(crate) async fn edit<R>(&self, request: R) -> Result<R::Reply, registry::RegistryError>
    where
        R: Request<Protocol = registry::Registry, Error = registry::RegistryError>,
    {
        match self.asked_by("operator/ana", registry::NAME, request, LONG).await {
            Ok(done) => Ok(done),
            Err(CallError::Failed(error)) => Err(error),
            Err(other) => panic!("{other}"),
        }
    }

    pub(crate) async fn ask_tools<R>(&self, who: &str, request: R) -> Result<R::Reply, CallError<R::Error>>
    where
        R: Request<Protocol = tools::Tools>,
    {
        self.asked_by(who, tools::NAME, request, LONG).await
    }

    /// What any other program does to the file.
    pub(crate) fn shell(&self, sql: &str) {
        let connection = Connection::open(&self.file).unwrap();
        connection.busy_timeout(LONG).unwrap();
        connection.execute_batch(sql).unwrap();
    }

    /// The same, and what comes out.
    pub(crate) fn query(&self, sql: &str) -> Vec<Vec<Value>> {
        let connection = Connection::open(&self.file).unwrap();
        connection.busy_timeout(LONG).unwrap();
        let mut statement = connection.prepare(sql).unwrap();
        let columns = statement.column_count();
        let rows = statement.query_map([], |row| (0..columns).map(|column| row.get(column)).collect()).unwrap();
        rows.map(Result::unwrap).collect()
    }

    /// Out of every other's reach.
    pub(crate) fn cut_off(&self) {
        self.ways.0.lock().remove(&self.context.node().name);
    }
}

pub(crate) fn unknown<T: std::fmt::Debug>(outcome: Result<T, ToolError>) -> Unknown {
    match outcome {
        Err(ToolError::Unknown(why)) => why,
        other => panic!("{other:?}"),
    }
}

/// A tool as somebody sets it.
pub(crate) fn text(config: &str) -> registry::ToolText {
    registry::ToolText {
        category: "shop".into(),
        title: None,
        description: "Answers what it was told to.".into(),
        input_schema: r#"{"type":"object","properties":{"n":{"type":"integer"}},"additionalProperties":false}"#.into(),
        output_schema: None,
        handler_type: "fixed".into(),
        handler_config: config.into(),
        mode: "readwrite".into(),
        destructive: false,
        idempotent: false,
        group: "default".into(),
        timeout_ms: Some(30_000),
        active: true,
    }
}

/// The row of such a tool.
pub(crate) fn row(name: &str, config: &str) -> Row {
    let text = text(config);
    Row {
        name: name.into(),
        category: text.category,
        description: text.description,
        input_schema: text.input_schema,
        handler_type: text.handler_type,
        handler_config: text.handler_config,
        mode: text.mode,
        group: text.group,
        timeout_ms: text.timeout_ms,
        version: 1,
        ..Row::default()
    }
}
