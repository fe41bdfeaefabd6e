//! A database with things that tools may read and things that they may not, and tools made of rows.

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::future::BoxFuture;
use horos_store::{
    migrations::{Migration, Migrations},
    open::{Access, Options},
    readers::{Readers, ReadersConfig},
    rusqlite::Connection,
    writer::{Writer, WriterConfig},
};
use horos_supervision::{Strategy, Supervisor, SupervisorHandle, SupervisorSpec};
use horos_tools::{
    Call, Caller, Credential, Kind, Mode, Output, Problem, Row, Run, ToolError, Transport, Who,
    rmcp::model::JsonObject,
    sql::{Elsewhere, Query, Script, Shelf, THREADS},
};
use horos_wire::{
    CallContext,
    principal::{Principal, Proof},
};
use serde_json::{Value, json};
use tempfile::TempDir;

/// Long enough for a busy machine; nothing waits for it to pass.
pub(crate) const LIMIT: Duration = Duration::from_secs(20);

const SCHEMA: Migrations = Migrations::new(&[Migration { version: 1, name: "shop", sql: include_str!("sql_world.sql") }]);

/// The running database, and kinds that make tools of it.
pub(crate) struct World {
    pub(crate) directory: TempDir,
    pub(crate) path: PathBuf,
    pub(crate) shelf: Arc<OneFile>,
    pub(crate) query: Query,
    pub(crate) script: Script,
    _running: SupervisorHandle,
}

/// A shelf of one file, `app.db`.
pub(crate) struct OneFile {
    pub(crate) readers: Readers,
    pub(crate) writer: Writer,
}

impl Shelf for OneFile {
    fn readers<'a>(&'a self, file: &'a str) -> BoxFuture<'a, Result<Readers, Elsewhere>> {
        Box::pin(async move { if file == "app.db" { Ok(self.readers.clone()) } else { Err(Elsewhere) } })
    }

    fn writer<'a>(&'a self, file: &'a str) -> BoxFuture<'a, Result<Writer, Elsewhere>> {
        Box::pin(async move { if file == "app.db" { Ok(self.writer.clone()) } else { Err(Elsewhere) } })
    }
}

impl World {
    pub(crate) async fn new() -> Self {
        let directory = TempDir::new().unwrap();
        let path = directory.path().join("app.db");
        let writer = Writer::new(WriterConfig::new(Options::new(&path, Access::Owner), SCHEMA));
        let readers = ReadersConfig { threads: THREADS, ..ReadersConfig::new(Options::new(&path, Access::ReadOnly)) };
        let readers = Readers::new(readers);
        let children = vec![writer.child("writer"), readers.child("readers")];
        let running = Supervisor::start(SupervisorSpec::new("root", Strategy::RestForOne, children), None).await.unwrap();
        let shelf = Arc::new(OneFile { readers, writer });
        Self { directory, path, query: Query::new(shelf.clone()), script: Script::new(shelf.clone()), shelf, _running: running }
    }

    /// The tool that `config` makes, or what is wrong with it.
    pub(crate) fn make(&self, kind: &dyn Kind, mode: Mode, config: &Value, properties: &Value) -> Result<Tool, Vec<Problem>> {
        let object = |value: &Value| value.as_object().cloned().unwrap();
        let row = Row { name: "tool".into(), version: 1, handler_config: config.to_string().into(), ..Row::default() };
        let input = object(&json!({ "type": "object", "properties": properties }));
        let made = kind.check(&row, mode, &object(config), &input)?;
        Ok(Tool { run: made.run, output: made.output_schema })
    }

    /// A query over `app.db`.
    pub(crate) fn query(&self, config: Value, properties: Value) -> Result<Tool, Vec<Problem>> {
        let mut config = config;
        config.as_object_mut().unwrap().entry("database").or_insert("app.db".into());
        self.make(&self.query, Mode::ReadOnly, &config, &properties)
    }

    /// A script over `app.db`.
    pub(crate) fn script(&self, config: Value, properties: Value) -> Result<Tool, Vec<Problem>> {
        let mut config = config;
        config.as_object_mut().unwrap().entry("database").or_insert("app.db".into());
        self.make(&self.script, Mode::ReadWrite, &config, &properties)
    }

    /// The file beside the running node.
    pub(crate) fn aside(&self) -> Connection {
        Connection::open(&self.path).unwrap()
    }
}

/// A tool without what is around it.
pub(crate) struct Tool {
    run: Arc<dyn Run>,
    pub(crate) output: Option<JsonObject>,
}

/// How a tool is called.
pub(crate) struct Terms {
    pub(crate) caller: Caller,
    pub(crate) within: Duration,
    pub(crate) max_bytes: usize,
}

impl Default for Terms {
    fn default() -> Self {
        Self { caller: somebody(), within: LIMIT, max_bytes: 1 << 20 }
    }
}

/// A caller with a key.
pub(crate) fn somebody() -> Caller {
    let principal = Principal { id: "key_1".into(), proof: Proof::Key { owner: "alice".into() }, scopes: Box::default(), per_minute: None };
    let who = Who::Principal(Arc::new(principal));
    Caller { who, credential: Some(Credential("secret".into())), transport: Transport::Quic, session: None, remote: None }
}

impl Tool {
    pub(crate) async fn call(&self, arguments: Value) -> Result<Output, ToolError> {
        self.call_on(&Terms::default(), arguments).await
    }

    pub(crate) async fn call_on(&self, terms: &Terms, arguments: Value) -> Result<Output, ToolError> {
        let arguments = arguments.as_object().cloned().unwrap();
        let call = Call {
            tool: "tool",
            arguments: &arguments,
            caller: &terms.caller,
            context: &CallContext::default(),
            until: Instant::now() + terms.within,
            max_bytes: terms.max_bytes,
        };
        self.run.run(call).await
    }

    /// Calls it and gives the structured result.
    pub(crate) async fn json(&self, arguments: Value) -> Value {
        self.call(arguments).await.unwrap().structured.unwrap()
    }
}

/// `usual` cases, or `full` of them where all tests are asked for in full.
pub(crate) fn scale(usual: u32, full: u32) -> u32 {
    if std::env::var_os("HOROS_TEST_FULL").is_some_and(|value| value == "1") { full } else { usual }
}
