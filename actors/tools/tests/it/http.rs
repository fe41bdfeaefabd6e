//! MCP over HTTP: rmcp's client of both generations, requests by hand, and whoever means no good.

mod proof;
pub(crate) mod world;

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};

use horos_tools::{audit::Audit, http, server::View};
use http_body_util::BodyExt as _;
use rmcp::{
    ClientHandler, RoleClient, ServiceExt as _,
    model::{
        CallToolRequest, CallToolRequestParams, ClientConfig, ClientRequest, PaginatedRequestParams, ProtocolVersion, SubscriptionFilter,
    },
    service::{ClientLifecycleMode, ClientServiceExt as _, NotificationContext, PeerRequestOptions, RunningService, ServiceError},
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use tokio_util::sync::CancellationToken;
use world::{Answer, LONG, Site, modern, modern_body, own, spec};

/// Counts how often it is told that the list has changed.
#[derive(Clone, Default)]
struct Counts(Arc<AtomicUsize>);

impl ClientHandler for Counts {
    fn get_info(&self) -> ClientConfig {
        ClientConfig::default()
    }

    async fn on_tool_list_changed(&self, _: NotificationContext<RoleClient>) {
        self.0.fetch_add(1, SeqCst);
    }
}

fn new_lifecycle() -> ClientLifecycleMode {
    ClientLifecycleMode::Discover { preferred_versions: vec![ProtocolVersion::V_2026_07_28] }
}

async fn both(site: &Site, key: &str) -> [RunningService<RoleClient, Counts>; 2] {
    let old = Counts::default().serve(site.client(key)).await.unwrap();
    let new = Counts::default().serve_with_lifecycle(site.client(key), new_lifecycle()).await.unwrap();
    [old, new]
}

fn call(tool: &str, arguments: Value) -> CallToolRequestParams {
    CallToolRequestParams::new(tool.to_owned()).with_arguments(world::object(arguments))
}

#[tokio::test]
async fn clients_of_both_generations_list_and_call() {
    let site = Site::new().await;
    for client in both(&site, "ana").await {
        let info = client.peer_info().unwrap();
        let info = serde_json::to_value(&*info).unwrap().to_string();
        assert!(info.contains("horos") && info.contains("listChanged"), "{info}");
        let listed = client.list_all_tools().await.unwrap();
        let names: Vec<&str> = listed.iter().map(|tool| &*tool.name).collect();
        assert!(names.is_sorted() && names.contains(&"add") && names.contains(&"search_tools"), "{names:?}");
        assert!(!names.contains(&"hidden") && !names.contains(&"call_tool"), "{names:?}");

        let told = client.call_tool(call("add", json!({ "a": 2, "b": 40 }))).await.unwrap();
        assert_eq!(told.structured_content, Some(json!({ "sum": 42 })));
        assert_eq!(told.content[0].as_text().unwrap().text, r#"{"sum":42}"#);
        assert_eq!(told.is_error, Some(false));

        let failed = client.call_tool(call("fail", json!({ "a": 1 }))).await.unwrap();
        assert_eq!((failed.is_error, &*failed.content[0].as_text().unwrap().text), (Some(true), "there is none left"));
        assert_eq!(failed.structured_content, None);

        for unknown in ["no_such_tool", "hidden"] {
            let error = client.call_tool(call(unknown, json!({}))).await.unwrap_err();
            let ServiceError::McpError(error) = error else { panic!("{error:?}") };
            assert_eq!((error.code.0, &*error.message), (-32602, &*format!("there is no tool {unknown:?}")));
        }
        client.cancel().await.unwrap();
    }
}

#[tokio::test]
async fn the_short_list_has_two_tools_by_which_all_can_be_found_and_called() {
    let site = Site::with(http::Options::default(), View::Search, Audit::in_memory()).await;
    for client in both(&site, "ana").await {
        let listed = client.list_all_tools().await.unwrap();
        assert_eq!(listed.iter().map(|tool| &*tool.name).collect::<Vec<_>>(), ["call_tool", "search_tools"]);
        let found = client.call_tool(call("search_tools", json!({ "query": "add", "limit": 2 }))).await.unwrap();
        let found = found.structured_content.unwrap();
        assert_eq!(found["tools"][0]["name"], "add");
        assert_eq!(found["tools"][0]["inputSchema"]["required"], json!(["a"]));
        let hidden = client.call_tool(call("search_tools", json!({ "query": "hidden" }))).await.unwrap().structured_content.unwrap();
        assert!(!hidden.to_string().contains("\"hidden\""), "{hidden}");

        let told = client.call_tool(call("call_tool", json!({ "name": "add", "arguments": { "a": 1 } }))).await.unwrap();
        assert_eq!(told.structured_content, Some(json!({ "sum": 1 })));
        let wrong = [
            json!({}),
            json!({ "name": 1 }),
            json!({ "name": "add", "arguments": [] }),
            json!({ "name": "add", "arguments": { "a": "x" } }),
            json!({ "name": "add", "more": 1 }),
            json!({ "name": "call_tool", "arguments": { "name": "add" } }),
        ];
        for wrong in wrong {
            let told = client.call_tool(call("call_tool", wrong.clone())).await.unwrap();
            assert!(told.is_error == Some(true), "{wrong}: {told:?}");
        }
        let denied = client.call_tool(call("call_tool", json!({ "name": "hidden", "arguments": { "a": 1 } }))).await;
        assert!(matches!(denied, Err(ServiceError::McpError(error)) if error.code.0 == -32602));
    }
}

#[tokio::test]
async fn changes_of_the_list_reach_clients_of_both_generations_and_many_are_told_as_few() {
    let site = Site::new().await;
    let [old, new] = both(&site, "ana").await;
    let mut subscription = new.peer().listen(SubscriptionFilter::builder().tools_list_changed().build()).await.unwrap();
    // The client opens its stream for what is pushed beside its first requests; what comes before is kept for it.
    old.list_all_tools().await.unwrap();
    let change = || site.registry.take(Vec::new(), Vec::new());
    change();
    let told = tokio::time::timeout(LONG, subscription.next()).await.unwrap().unwrap();
    assert!(format!("{told:?}").contains("ToolListChanged"), "{told:?}");
    let counted = &old.service().0;
    let end = Instant::now() + LONG;
    while counted.load(SeqCst) == 0 {
        assert!(Instant::now() < end, "the old client is told nothing");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    // Whoever is told asks again, and gets what there is now.
    assert!(new.list_all_tools().await.unwrap().is_empty(), "nobody may use anything any more");

    let (before, started) = (counted.load(SeqCst), Instant::now());
    for at in 0..200 {
        site.registry.take(Vec::new(), if at % 2 == 0 { world::rules() } else { Vec::new() });
        tokio::task::yield_now().await;
    }
    let _last = tokio::time::timeout(LONG, subscription.next()).await.unwrap().unwrap();
    let most = started.elapsed().as_millis() as usize / 100 + 2;
    let told = counted.load(SeqCst) - before;
    assert!(told <= most, "told {told} times in {:?}", started.elapsed());
}

#[tokio::test]
async fn who_shows_nothing_or_something_wrong_is_told_where_to_look_and_reaches_nothing() {
    let site = Site::new().await;
    let body = modern_body("tools/list", json!({})).to_string();
    for fields in [&[][..], &[("authorization", "Bearer nobody")]] {
        for method in ["POST", "GET", "DELETE", "PUT", "OPTIONS"] {
            let answer = Answer::of(site.send(method, fields, body.clone()).await).await;
            assert_eq!(answer.status, 401, "{method}");
            let wanted =
                format!("Bearer realm=\"horos\", resource_metadata=\"https://{}/.well-known/oauth-protected-resource/mcp\"", site.address);
            assert_eq!(answer.header("www-authenticate"), Some(&*wanted));
            assert!(answer.body.is_empty());
        }
    }
    assert_eq!(site.tools.audit().tail(9, Default::default()).await.unwrap(), []);
}

#[tokio::test]
async fn what_proved_the_caller_reaches_the_tool_and_is_in_no_debug_text() {
    let site = Site::new().await;
    let told = site.call("add", json!({ "a": 1 })).await;
    assert_eq!(told.told(), (r#"{"sum":1}"#.to_owned(), false), "{told:?}");
    assert_eq!(told.header("content-type"), Some("application/json"), "what needs no stream is none");
    let last = site.seen.last.lock().clone();
    assert!(last.contains("Credential(…)") && last.contains("req_1") && !last.contains("Bearer"), "{last}");
}

/// Opens a session by hand.
pub(crate) async fn session(site: &Site, key: &str) -> String {
    let params = json!({ "protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": { "name": "by hand", "version": "1" } });
    let key = format!("Bearer {key}");
    let opening = json!({ "jsonrpc": "2.0", "id": 0, "method": "initialize", "params": params });
    let answer = site.post(&[("authorization", &key)], &opening).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.header("mcp-session-id").unwrap().to_owned()
}

#[tokio::test]
async fn a_session_is_nobodys_but_its_principals() {
    let site = Site::new().await;
    let id = session(&site, "ana").await;
    let ping = json!({ "jsonrpc": "2.0", "id": 2, "method": "ping" });
    let with = |key: &'static str, id: &str| [("authorization", key), ("mcp-session-id", id)].map(|(name, value)| (name, value.to_owned()));
    for (key, id, status) in
        [("Bearer ana", &*id, 200), ("Bearer bea", &id, 404), ("Bearer ana", "no-such-session", 404), ("Bearer ana", "", 404)]
    {
        let fields = with(key, id);
        let fields: Vec<_> = fields.iter().map(|(name, value)| (*name, &**value)).collect();
        assert_eq!(site.post(&fields, &ping).await.status, status, "{key} {id}");
    }
    // Neither heard nor ended.
    let theirs = [("authorization", "Bearer bea"), ("mcp-session-id", &*id), ("accept", "text/event-stream")];
    for method in ["GET", "DELETE"] {
        assert_eq!(site.send(method, &theirs, "").await.status(), 404, "{method}");
    }
    assert_eq!(site.service.sessions(), 1);
    let own = [("authorization", "Bearer ana"), ("mcp-session-id", &*id)];
    assert_eq!(site.send("DELETE", &own, "").await.status(), 202);
    assert_eq!(site.post(&own, &ping).await.status, 404);
    assert_eq!(site.service.sessions(), 0);
    // What is left of a session means nothing to the new protocol.
    let mut fields = modern("tools/list", None);
    fields.push(("mcp-session-id", &id));
    assert_eq!(site.post(&fields, &modern_body("tools/list", json!({}))).await.status, 200);
}

#[tokio::test]
async fn idle_sessions_are_bounded_in_number_and_memory_and_end() {
    const MANY: usize = 1_000;
    let options =
        http::Options { sessions: MANY, sessions_of_one: 40, session_idle: Duration::from_secs(3600), ..http::Options::default() };
    let site = Site::with(options, View::All, Audit::in_memory()).await;
    let first = session(&site, "p0").await;
    let before = resident();
    for at in 1..MANY {
        session(&site, &format!("p{}", at / 40)).await;
    }
    assert_eq!(site.service.sessions(), MANY);
    let grown = resident().saturating_sub(before);
    assert!(grown < 100 << 20, "{MANY} sessions take {} KiB", grown >> 10);

    // There is no room for somebody new; who has sessions gets one for that left alone longest.
    let opening = json!({ "jsonrpc": "2.0", "id": 0, "method": "initialize", "params": {
        "protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": { "name": "by hand", "version": "1" } } });
    let refused = site.post(&[("authorization", "Bearer zoe")], &opening).await;
    assert_eq!((refused.status, refused.header("retry-after")), (503, Some("10")), "{refused:?}");
    session(&site, "p0").await;
    assert_eq!(site.service.sessions(), MANY);
    let ping = json!({ "jsonrpc": "2.0", "id": 2, "method": "ping" });
    assert_eq!(site.post(&[("authorization", "Bearer p0"), ("mcp-session-id", &first)], &ping).await.status, 404);
}

#[tokio::test]
async fn a_session_that_nobody_uses_is_over() {
    let options = http::Options { session_idle: Duration::from_millis(50), ..http::Options::default() };
    let site = Site::with(options, View::All, Audit::in_memory()).await;
    session(&site, "ana").await;
    site.eventually("the session ends", |site| site.service.sessions() == 0).await;
}

/// The memory of this process that is in use, in bytes.
fn resident() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    statm.split(' ').nth(1).and_then(|pages| pages.parse::<usize>().ok()).unwrap() * 4096
}

#[tokio::test]
async fn draining_ends_streams_and_sessions_and_begins_none() {
    let drain = CancellationToken::new();
    let site = Site::with(http::Options { drain: drain.clone(), ..http::Options::default() }, View::All, Audit::in_memory()).await;
    let id = session(&site, "ana").await;
    let fields = [("authorization", "Bearer ana"), ("mcp-session-id", &*id), ("accept", "text/event-stream")];
    let stream = site.send("GET", &fields, "").await;
    assert_eq!(stream.status(), 200);
    drain.cancel();
    tokio::time::timeout(LONG, stream.into_body().collect()).await.expect("the stream ends").unwrap();
    site.eventually("the session ends", |site| site.service.sessions() == 0).await;
}

#[tokio::test]
async fn bodies_past_the_limit_and_of_no_shape_are_refused_and_others_go_on() {
    let site = Site::new().await;
    let usual = [("authorization", "Bearer ana"), ("content-type", "application/json"), ("accept", "application/json, text/event-stream")];
    let large = format!("{{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"ping\",\"params\":{{\"x\":\"{}\"}}}}", "x".repeat(11 << 20));
    assert_eq!(site.send("POST", &usual, large).await.status(), 413);
    let shapes: [&[u8]; 12] = [
        b"",
        b"{",
        b"null",
        b"[]",
        b"1",
        b"\"tools/list\"",
        b"\xff\xfe\xfd",
        b"{\"jsonrpc\":\"2.0\"}",
        b"{\"jsonrpc\":\"1.0\",\"id\":1,\"method\":\"ping\"}",
        b"{\"jsonrpc\":\"2.0\",\"id\":{},\"method\":\"tools/list\"}",
        b"{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"tools/call\",\"params\":[1,2]}",
        b"[{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"ping\"},{\"jsonrpc\":\"2.0\",\"id\":2,\"method\":\"ping\"}]",
    ];
    for shape in shapes {
        let answer = Answer::of(site.send("POST", &usual, shape).await).await;
        assert!((400..500).contains(&answer.status), "{:?}: {answer:?}", String::from_utf8_lossy(shape));
    }
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    let answer = site.send("POST", &usual, modern_body("tools/call", json!({ "name": "add" })).to_string().replace("\"add\"", &deep)).await;
    assert!(answer.status().is_client_error());
    let wrong = [json!({ "a": "one" }), json!({}), json!({ "a": 1, "c": 2 }), json!({ "a": 1.5 }), json!({ "a": null })];
    for wrong in wrong {
        let (text, failed) = site.call("add", wrong.clone()).await.told();
        assert!(failed && text.starts_with("invalid arguments"), "{wrong}: {text}");
    }
    assert_eq!(site.seen.ran.load(SeqCst), 0);
    assert!(!site.call("add", json!({ "a": 1 })).await.told().1);
}

/// Begins a request that does not say how long it is and asks whether to go on: what the server says, and the connection.
async fn unsent(site: &Site, key: &str) -> (String, TcpStream) {
    let mut socket = TcpStream::connect(site.address).await.unwrap();
    let head = format!(
        "POST /mcp HTTP/1.1\r\nhost: {}\r\nauthorization: Bearer {key}\r\ncontent-type: application/json\r\n\
         accept: application/json, text/event-stream\r\ntransfer-encoding: chunked\r\nexpect: 100-continue\r\n\r\n",
        site.address
    );
    socket.write_all(head.as_bytes()).await.unwrap();
    let mut said = Vec::new();
    while !said.ends_with(b"\r\n\r\n") {
        let byte = tokio::time::timeout(LONG, socket.read_u8()).await.expect("an answer in time");
        said.push(byte.unwrap());
    }
    (String::from_utf8(said).unwrap(), socket)
}

#[tokio::test]
async fn large_requests_of_one_principal_have_a_bound_and_others_are_served_meanwhile() {
    let site = Site::new().await;
    // Whoever is told to go on has a place: sixteen of the largest.
    let mut held = Vec::new();
    for at in 0..16 {
        let (said, socket) = unsent(&site, "ana").await;
        assert!(said.starts_with("HTTP/1.1 100 "), "{at}: {said}");
        held.push(socket);
    }
    let (said, _) = unsent(&site, "ana").await;
    assert!(said.starts_with("HTTP/1.1 503 ") && said.contains("retry-after: 1"), "{said}");
    assert!(!site.call("add", json!({ "a": 1 })).await.told().1, "what is small needs no place");
    let (said, _others) = unsent(&site, "ben").await;
    assert!(said.starts_with("HTTP/1.1 100 "), "another's share is its own: {said}");
    // A client that goes leaves its place.
    held.clear();
    let end = Instant::now() + LONG;
    while !unsent(&site, "ana").await.0.starts_with("HTTP/1.1 100 ") {
        assert!(Instant::now() < end, "no place was given back");
    }
}

#[tokio::test]
async fn a_page_of_another_origin_is_refused_whatever_it_shows() {
    let site = Site::new().await;
    let body = modern_body("tools/list", json!({}));
    let home = format!("http://{}", site.address);
    for (origin, host, status) in [
        (None, None, 200),
        (Some(&*home), None, 200),
        (Some("https://evil.example"), None, 403),
        (Some("null"), None, 403),
        (Some("http://evil.example"), Some("evil.example"), 403),
    ] {
        let mut fields = modern("tools/list", None);
        fields.extend(origin.map(|origin| ("origin", origin)));
        fields.extend(host.map(|host| ("host", host)));
        assert_eq!(site.post(&fields, &body).await.status, status, "{origin:?} {host:?}");
    }
}

#[tokio::test]
async fn a_call_ends_when_its_client_goes() {
    let site = Site::new().await;
    let body = modern_body("tools/call", json!({ "name": "wait", "arguments": { "a": 1 } })).to_string();
    let fields = modern("tools/call", Some("wait"));
    let usual = [("authorization", "Bearer ana"), ("content-type", "application/json"), ("accept", "application/json, text/event-stream")];
    let fields: Vec<_> = usual.into_iter().chain(fields).collect();
    {
        let sending = site.send("POST", &fields, body);
        let begun = site.eventually("the tool runs", |site| site.seen.waiting.load(SeqCst) == 1);
        tokio::select! {
            _ = sending => panic!("it never answers"),
            () = begun => {}
        }
    }
    site.eventually("the tool is dropped", |site| site.seen.dropped.load(SeqCst) == 1).await;
    let end = Instant::now() + LONG;
    loop {
        let rows = site.tools.audit().tail(1, Default::default()).await.unwrap();
        if rows.first().is_some_and(|row| &*row.outcome == "cancelled" && &*row.tool == "wait") {
            break;
        }
        assert!(Instant::now() < end, "{rows:?}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

#[tokio::test]
async fn a_call_is_given_up_when_its_client_says_so() {
    let site = Site::new().await;
    for client in both(&site, "ana").await {
        let before = site.seen.dropped.load(SeqCst);
        let request = ClientRequest::CallToolRequest(CallToolRequest::new(call("wait", json!({ "a": 1 }))));
        let handle = client.send_cancellable_request(request, PeerRequestOptions::no_options()).await.unwrap();
        site.eventually("the tool runs", |site| site.seen.waiting.load(SeqCst) == 1).await;
        handle.cancel(None).await.unwrap();
        site.eventually("the tool is dropped", |site| site.seen.dropped.load(SeqCst) > before).await;
        assert!(!client.call_tool(call("add", json!({ "a": 1 }))).await.unwrap().is_error.unwrap());
    }
}

#[tokio::test]
async fn pages_are_in_order_and_a_cursor_outlives_changes() {
    let site = Site::new().await;
    let seen = Arc::default();
    let many = |from: usize, to: usize| (from..to).map(|at| spec(&format!("t{at:05}")));
    let run = own(&seen)[0].run.clone();
    let define = |spec| Arc::new(horos_tools::Definition::new(spec, run.clone()).unwrap());
    let registry = world::registry(many(0, 600).map(define).collect());
    let tools = horos_tools::Tools::new(registry, Audit::in_memory(), Default::default());
    let less = horos_tools::Tools::new(world::registry(many(300, 600).map(define).collect()), Audit::in_memory(), Default::default());
    let caller = caller("ana");
    let first = tools.list(&caller, None).unwrap();
    assert_eq!(first.tools.len(), 250);
    // All that the cursor names is gone; what is behind it is not.
    let rest = less.list(&caller, first.next.as_deref()).unwrap();
    assert_eq!(&*rest.tools[0].name, "t00300");
    let (mut cursor, mut names) = (None, Vec::new());
    loop {
        let page = tools.list(&caller, cursor.as_deref()).unwrap();
        names.extend(page.tools.iter().map(|tool| tool.name.to_string()));
        cursor = page.next;
        if cursor.is_none() {
            break;
        }
    }
    assert_eq!(names.len(), 601);
    assert!(names.is_sorted());
    let client = Counts::default().serve(site.client("ana")).await.unwrap();
    for wrong in ["!", "AAAA AAAA", "_w", &"A".repeat(1_000_000)] {
        let asked = client.list_tools(Some(PaginatedRequestParams::default().with_cursor(Some(wrong.to_owned())))).await;
        assert!(matches!(asked, Err(ServiceError::McpError(error)) if error.code.0 == -32602), "{wrong:.10}");
    }
}

pub(crate) fn caller(id: &str) -> horos_tools::Caller {
    use horos_wire::principal::{Principal, Proof};
    let scopes = ["use".parse().unwrap()].into();
    let principal = Principal { id: id.into(), proof: Proof::Key { owner: id.into() }, scopes, per_minute: None };
    let who = horos_tools::Who::Principal(Arc::new(principal));
    horos_tools::Caller { who, credential: None, transport: horos_tools::Transport::Http, session: None, remote: None }
}

#[tokio::test]
async fn the_way_to_a_token_is_told_to_everybody() {
    use tower::Service as _;
    let issuers = vec!["https://id.example".into()];
    let mut told = http::well_known(http::Resource::default(), issuers);
    let asked = |path: &str| hyper::Request::get(path).header("host", "shop.example:8443").body(()).unwrap();
    for (path, resource) in [("/", ""), ("/mcp", "/mcp"), ("/mcp/search", "/mcp/search")] {
        let answer = told.call(asked(path)).await.unwrap();
        let body = answer.into_body().collect().await.unwrap().to_bytes();
        let said: Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(said["resource"], json!(format!("https://shop.example:8443{resource}")));
        assert_eq!(said["authorization_servers"], json!(["https://id.example"]));
    }
    assert_eq!(told.call(asked("/other")).await.unwrap().status(), 404);
    let based = http::Resource { base: Some("https://shop.example/".into()), path: "/mcp".into() };
    let answer = http::well_known(based, Vec::new()).call(hyper::Request::get("/mcp").body(()).unwrap()).await.unwrap();
    let body = answer.into_body().collect().await.unwrap().to_bytes();
    let said: Value = serde_json::from_slice(&body).unwrap();
    assert_eq!((&said["resource"], said.get("authorization_servers")), (&json!("https://shop.example/mcp"), None));
}
