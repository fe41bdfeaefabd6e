//! What the tests of the registry share: a kind that runs nothing, rows, callers, and a `control.db`.

use std::{
    io::Write as _,
    path::PathBuf,
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures_util::future::BoxFuture;
use horos_store::{migrations::Migrations, rusqlite::Connection};
use horos_tools::{
    Behaviour, Call, Caller, Definition, Kind, Kinds, Made, Mode, Output, Problem, Registry, Row, Run, Spec, TOOLS_MIGRATIONS, ToolError,
    Transport, Who,
};
use horos_wire::{
    NodeId,
    principal::{Principal, Proof},
};
use rmcp::model::JsonObject;
use serde_json::{Value, json};

/// A time that is not waited for, but given up after.
pub(super) const SOON: Duration = Duration::from_secs(30);

/// `full` with `HOROS_TEST_FULL=1`.
pub(super) fn scale<T>(normal: T, full: T) -> T {
    if std::env::var_os("HOROS_TEST_FULL").is_some_and(|value| value == "1") { full } else { normal }
}

/// Says what it was given; counts how often it was asked to check a row, and refuses those whose configuration says so.
#[derive(Default)]
pub(super) struct Echo(pub(super) AtomicUsize);

impl Kind for Echo {
    fn check(&self, _: &Row, _: Mode, config: &JsonObject, _: &JsonObject) -> Result<Made, Vec<Problem>> {
        self.0.fetch_add(1, Ordering::Relaxed);
        match config.get("refuse") {
            Some(_) => Err(vec![Problem::new("handler_config.refuse", "is refused")]),
            None => Ok(Made { run: Arc::new(Says), output_schema: None, arguments: vec![("cursor".into(), json!({"type": "string"}))] }),
        }
    }
}

pub(super) struct Says;

impl Run for Says {
    fn run<'a>(&'a self, call: Call<'a>) -> BoxFuture<'a, Result<Output, ToolError>> {
        let said = Value::Object(call.arguments.clone());
        Box::pin(async move { Ok(Output::json(said)) })
    }
}

pub(super) fn kinds() -> (Kinds, Arc<Echo>) {
    let echo = Arc::new(Echo::default());
    (Kinds::default().with("echo", echo.clone()), echo)
}

pub(super) fn row(name: &str) -> Row {
    Row {
        name: name.into(),
        category: "shop".into(),
        description: "Says what it was given".into(),
        input_schema: r#"{"type": "object"}"#.into(),
        handler_type: "echo".into(),
        handler_config: "{}".into(),
        mode: "readonly".into(),
        group: "default".into(),
        version: 1,
        ..Row::default()
    }
}

/// A tool of the program's own.
pub(super) fn own(name: &str, mode: Mode) -> Arc<Definition> {
    let Value::Object(input) = json!({"type": "object"}) else { unreachable!() };
    let behaviour = Behaviour { mode, destructive: false, idempotent: false };
    let (title, output, timeout, version) = (None, None, Duration::from_secs(1), 0);
    let (category, group) = ("own".into(), "default".into());
    let spec = Spec { name: name.into(), title, description: "x".into(), category, input, output, behaviour, group, timeout, version };
    Arc::new(Definition::new(spec, Arc::new(Says)).unwrap())
}

pub(super) fn node(uri: &str) -> Caller {
    let who = Who::Node(Arc::new(NodeId::from_uri(uri).unwrap()));
    Caller { who, credential: None, transport: Transport::Quic, session: None, remote: None }
}

pub(super) fn key(owner: &str, scopes: &[&str]) -> Caller {
    let scopes = scopes.iter().map(|scope| scope.parse().unwrap()).collect();
    let principal = Principal { id: format!("key-{owner}").into(), proof: Proof::Key { owner: owner.into() }, scopes, per_minute: None };
    Caller { who: Who::Principal(Arc::new(principal)), ..node("spiffe://shop/operator/ana") }
}

/// A `control.db` as its owner has it.
pub(super) struct File {
    pub(super) directory: tempfile::TempDir,
    pub(super) path: PathBuf,
}

impl File {
    pub(super) fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("control.db");
        let file = Self { directory, path };
        let mut tables = file.open();
        tables.pragma_update(None, "journal_mode", "WAL").unwrap();
        Migrations::new(TOOLS_MIGRATIONS).apply(&mut tables).unwrap();
        file
    }

    pub(super) fn open(&self) -> Connection {
        let file = Connection::open(&self.path).unwrap();
        file.busy_timeout(SOON).unwrap();
        file
    }

    pub(super) fn write(&self, sql: &str) {
        self.open().execute_batch(sql).unwrap();
    }

    /// By a program of somebody else's.
    pub(super) fn shell(&self, sql: &str) {
        let mut shell = Command::new("sqlite3").arg(&self.path).stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let told = format!(".timeout 30000\n{sql}");
        shell.stdin.take().unwrap().write_all(told.as_bytes()).unwrap();
        let output = shell.wait_with_output().unwrap();
        assert!(output.status.success() && output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
    }
}

pub(super) fn names(registry: &Registry) -> Vec<String> {
    registry.snapshot().tools.keys().map(|name| name.to_string()).collect()
}

/// An insert of a tool that is right.
pub(super) fn insert(name: &str, description: &str) -> String {
    format!("INSERT INTO mcp_tools_registry (tool_name, description, handler_type) VALUES ('{name}', '{description}', 'echo');")
}
