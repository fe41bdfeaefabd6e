//! Our client is asked by the suite, which starts a server for each scenario and runs a command with its URL.
//!
//! The command is curl, which asks a [`Program`] in this process to be that client: so a scenario costs no process of ours, and what the
//! client says is in the test's own output. The suite tells the rest by its environment, which the shell puts into curl's arguments.

mod oauth;
mod user;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, Uri};
use axum::routing::post;
use horos_egress::{Egress, Options as EgressOptions, Roots, Trusted};
use horos_router::strategy::mcp::Endpoint;
use horos_supervision::Supervisor;
use horos_tools::client::{Authorize, Client, Clients, Lifecycle, Options, Times, Ways, patient};
use horos_tools::rmcp::model::{JsonObject, RequestMetaObject, Tool};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

use super::exceptions::{Over, Side, as_listed, is_left_out};
use super::front::Front;
use super::suite::Suite;

/// For a whole scenario; the suite itself gives it 30 s.
const SCENARIO: Duration = Duration::from_secs(25);
/// For what a client does in one: a server that lets nobody in is tried again and again for as long.
const PATIENCE: Duration = Duration::from_secs(10);
/// For the list of tools, once the server has been greeted: one that lets nobody see it is asked for as long.
const LISTED: Duration = Duration::from_secs(5);
/// Scenarios of OAuth that are played at once: the suite starts all of its scenarios together, and times some of the others by the
/// milliseconds that their client takes.
static LOGGING_IN: Semaphore = Semaphore::const_new(3);
/// The first revision without `initialize`.
const STATELESS: &str = "2026-07-28";

/// Every port of this machine that somebody listens at. A scenario's servers take whichever are free, and are there before its client is
/// asked; which of them lets in, the client has to find out.
fn listening() -> Result<Vec<Trusted>> {
    let mut ports = BTreeSet::new();
    for table in ["/proc/net/tcp", "/proc/net/tcp6"] {
        for line in std::fs::read_to_string(table)?.lines().skip(1) {
            let mut words = line.split_whitespace().skip(1);
            let (local, listens) = (words.next(), words.nth(1) == Some("0A"));
            if let Some((_, port)) = local.filter(|_| listens).and_then(|local| local.rsplit_once(':')) {
                ports.insert(u16::from_str_radix(port, 16)?);
            }
        }
    }
    ports.into_iter().map(|port| Ok(format!("localhost:{port}").parse()?)).collect()
}

/// A client that does what a scenario wants of it, at the suite's command; it goes with its owner.
struct Program {
    address: SocketAddr,
    serving: JoinHandle<()>,
}

impl Drop for Program {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

impl Program {
    async fn open(suite: Suite, over: Over) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let app = Router::new().route("/", post(asked)).with_state((suite, over));
        let serving = tokio::spawn(async move { axum::serve(listener, app).await.expect("a listener on loopback goes on") });
        Self { address, serving }
    }

    /// The command, to which the suite appends the URL.
    fn command(&self) -> String {
        let told = ["SCENARIO", "PROTOCOL_VERSION", "CONTEXT"].map(|name| format!("-H \"{name}: $MCP_CONFORMANCE_{name}\""));
        let limit = SCENARIO.as_secs() + 2;
        format!(
            "curl -q -sS --fail-with-body --noproxy 127.0.0.1 --max-time {limit} {} http://{}/ --data-raw",
            told.join(" "),
            self.address
        )
    }
}

/// What of a scenario its client is told.
struct Scenario {
    name: String,
    url: String,
    version: String,
    context: Value,
}

async fn asked(State((suite, over)): State<(Suite, Over)>, headers: HeaderMap, url: String) -> (StatusCode, String) {
    let word = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned();
    let name = word("scenario");
    if is_left_out(suite, Side::Client, over, &name) {
        return (StatusCode::NOT_IMPLEMENTED, format!("{name} is left out\n"));
    }
    // JSON, in whatever letters.
    let context = headers.get("context").and_then(|value| serde_json::from_slice(value.as_bytes()).ok()).unwrap_or_default();
    let _turn = if name.starts_with("auth/") { LOGGING_IN.acquire().await.ok() } else { None };
    let began = Instant::now();
    let scenario = Scenario { name: name.clone(), url, version: word("protocol_version"), context };
    let done =
        tokio::time::timeout(SCENARIO, play(&scenario, over)).await.unwrap_or_else(|_| Err(anyhow::anyhow!("not done in {SCENARIO:?}")));
    eprintln!("{name}: {} ms, {done:?}", began.elapsed().as_millis());
    match done {
        Ok(()) => (StatusCode::OK, String::new()),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{name}: {error:#}\n")),
    }
}

/// Connects, lists the tools and calls them, as any scenario wants it: who is let in by an authorization server gets itself a token.
async fn play(scenario: &Scenario, over: Over) -> Result<()> {
    let front = if over == Over::Http1 { None } else { Some(Front::open(over, &scenario.url).await?) };
    let url = front.as_ref().map_or(&scenario.url, |front| &front.url);
    let at: Uri = url.parse()?;
    let mut trusted = vec![at.authority().context("a whole URL")?.as_str().parse()?];
    if scenario.name.starts_with("auth/") {
        trusted.extend(listening()?);
    }
    let ca_files = front.iter().map(|front| front.authority.clone()).collect();
    let egress = Egress::new(patient(EgressOptions { trusted, roots: Roots::Files, ca_files, ..EgressOptions::default() }))?;
    let clients = Clients::new(Ways::new(egress.clone()));
    let supervisor = Supervisor::start(clients.supervisor(), None).await?;
    // A front is a way to the suite's server and no other server: who logs in there goes by the name that it has for itself. Over QUIC a
    // key would go in the first request.
    let authorize = (scenario.name.starts_with("auth/") && over != Over::Quic).then(|| {
        let authorize: Arc<dyn Authorize> = Arc::new(oauth::Program::new(scenario, egress));
        authorize
    });
    let options = Options {
        authorize,
        answers: Arc::new(user::User),
        lifecycle: if *scenario.version >= *STATELESS { Lifecycle::Auto } else { Lifecycle::Initialize },
        times: Times::default(),
    };
    let client = clients.client(url.parse::<Endpoint>().map_err(|error| anyhow::anyhow!("{error:?}"))?, None, options)?;
    let called = call_all(&client, &scenario.context).await;
    drop(client);
    supervisor.stop().await;
    called
}

/// Calls what the scenario names, or else each tool that is listed.
async fn call_all(client: &Client, context: &Value) -> Result<()> {
    let until = Instant::now() + PATIENCE;
    client.connected(until).await?;
    let tools = client.tools(Instant::now() + LISTED).await?;
    let named = context["toolCalls"].as_array().map(|calls| {
        let call = |call: &Value| (call["name"].as_str().unwrap_or_default().to_owned(), call["arguments"].as_object().cloned());
        calls.iter().map(call).collect::<Vec<_>>()
    });
    let calls = named.unwrap_or_else(|| tools.iter().map(|tool| (tool.name.to_string(), Some(arguments(tool, &tools)))).collect());
    for (tool, arguments) in calls {
        client.call(&tool, arguments, RequestMetaObject::new(), until).await.with_context(|| tool.clone())?;
    }
    Ok(())
}

/// Arguments of the shapes that the tool's schema says.
fn arguments(tool: &Tool, all: &[Tool]) -> JsonObject {
    let properties = tool.input_schema.get("properties").and_then(Value::as_object).cloned().unwrap_or_default();
    let value = |(name, schema): (String, Value)| {
        let value = match schema["type"].as_str() {
            Some("number" | "integer") => json!(2),
            Some("boolean") => json!(true),
            // One tool wants to see what has become of another's schema on its way.
            Some("object") => all.first().map_or(Value::Null, |first| Value::Object((*first.input_schema).clone())),
            Some("array") => json!([]),
            _ => json!("text"),
        };
        (name, value)
    };
    properties.into_iter().map(value).collect()
}

async fn satisfied(suite: Suite, over: Over) {
    let program = Program::open(suite, over).await;
    let found = suite.ask_client(&program.command()).await;
    as_listed(&found, suite, Side::Client, over);
}

macro_rules! satisfied {
    ($($name:ident: $suite:ident $over:ident;)*) => {$(
        #[tokio::test(flavor = "multi_thread")]
        async fn $name() {
            satisfied(Suite::$suite, Over::$over).await;
        }
    )*};
}

satisfied! {
    our_client_is_as_the_older_suite_wants_it_over_http_1: Old Http1;
    our_client_is_as_the_older_suite_wants_it_over_http_2: Old Http2;
    our_client_is_as_the_older_suite_wants_it_over_http_3: Old Http3;
    our_client_is_as_the_older_suite_wants_it_over_quic: Old Quic;
    our_client_keeps_sessions_of_2025_11_25_as_the_suite_wants_them_over_http_1: Sessions Http1;
    our_client_keeps_sessions_of_2025_11_25_as_the_suite_wants_them_over_http_2: Sessions Http2;
    our_client_keeps_sessions_of_2025_11_25_as_the_suite_wants_them_over_http_3: Sessions Http3;
    our_client_keeps_sessions_of_2025_11_25_as_the_suite_wants_them_over_quic: Sessions Quic;
    our_client_asks_as_2026_07_28_wants_it_over_http_1: Stateless Http1;
    our_client_asks_as_2026_07_28_wants_it_over_http_2: Stateless Http2;
    our_client_asks_as_2026_07_28_wants_it_over_http_3: Stateless Http3;
    our_client_asks_as_2026_07_28_wants_it_over_quic: Stateless Quic;
    our_client_has_the_extensions_that_it_says_it_has: Extensions Http1;
}
