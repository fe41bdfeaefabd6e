//! Every outcome is written down, whatever dies; and what leads to each of them.

use std::{
    sync::{Arc, atomic::Ordering::SeqCst},
    time::{Duration, Instant},
};

use horos_store::{
    open::{Access, Options as Open},
    rusqlite::{Connection, OpenFlags},
};
use horos_supervision::{Backoff, Supervisor, SupervisorHandle, SupervisorSpec, supervisor::Strategy};
use horos_tools::{
    Caller, Options, ToolError, Tools,
    audit::{Audit, FILE, Filter, LATEST},
};
use horos_wire::{CallContext, NoEffect, TraceId, protocol::tools::AuditEntry};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::sync::watch;

use super::http::{
    caller,
    world::{LONG, Seen, object, own, registry},
};

/// Tools whose audit is in a file, without a transport.
struct Desk {
    tools: Tools,
    seen: Arc<Seen>,
    root: Option<SupervisorHandle>,
    directory: TempDir,
}

impl Desk {
    async fn new() -> Self {
        let mut desk = Self::unwritten();
        let children = desk.tools.audit().children();
        let spec =
            SupervisorSpec::new("root", Strategy::OneForOne, children).intensity(1_000, Duration::from_secs(1)).backoff(Backoff::NONE);
        desk.root = Some(Supervisor::start(spec, None).await.unwrap());
        desk
    }

    /// One whose audit nobody writes.
    fn unwritten() -> Self {
        let (directory, seen) = (tempfile::tempdir().unwrap(), Arc::new(Seen::default()));
        let audit = Audit::new(Open::new(directory.path().join(FILE), Access::Owner));
        let options = Options { in_flight_per_caller: 2, max_output: 10_000, ..Options::default() };
        Self { tools: Tools::new(registry(own(&seen)), audit, options), seen, root: None, directory }
    }

    async fn call(&self, caller: &Caller, tool: &str, arguments: Value) -> Result<Value, ToolError> {
        let called = self.tools.call(caller, tool, object(arguments), CallContext::default()).await;
        called.map(|output| output.structured.unwrap_or_default())
    }

    async fn tail(&self) -> Vec<AuditEntry> {
        self.tools.audit().flush().await;
        let mut rows = self.tools.audit().tail(1_000, Filter::default()).await.unwrap();
        rows.reverse();
        rows
    }

    /// What another process sees.
    fn rows(&self, tool: &str) -> i64 {
        let connection = Connection::open_with_flags(self.directory.path().join(FILE), OpenFlags::SQLITE_OPEN_READ_ONLY).unwrap();
        connection.query_row("SELECT count(*) FROM mcp_tool_audit WHERE tool = ?1", [tool], |row| row.get(0)).unwrap()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_outcome_is_written_down_and_no_argument() {
    let desk = Desk::new().await;
    let ana = caller("ana");
    let secret = "hunter2-in-an-argument";
    let session = Caller { session: Some("session-1".into()), remote: Some("203.0.113.9:4711".parse().unwrap()), ..caller("ana") };
    let mut wanted = Vec::new();
    for (tool, arguments, outcome) in [
        ("add", json!({ "a": 1 }), "ok"),
        ("fail", json!({ "a": 1 }), "failed"),
        ("no_such_tool", json!({ "x": secret }), "no_such_tool"),
        ("hidden", json!({ "a": 1 }), "denied"),
        ("add", json!({ "a": secret }), "invalid_arguments"),
        ("destroy", json!({ "a": 1 }), "to_confirm"),
        ("destroy", json!({ "a": 1, "confirm": secret }), "denied"),
        ("destroy", json!({ "a": 1, "confirm": 5 }), "invalid_arguments"),
        ("late", json!({ "a": 1 }), "deadline"),
        ("late_write", json!({ "a": 1 }), "deadline"),
        ("huge", json!({ "a": 1 }), "too_large"),
        ("panic", json!({ "a": 1 }), "internal"),
        ("panic_at_once", json!({ "a": 1 }), "internal"),
        ("odd", json!({ "a": 1 }), "internal"),
        ("nothing", json!({ "a": 1 }), "internal"),
        ("pay", json!({ "a": 1 }), "ok"),
        ("publish", json!({ "a": 1 }), "denied"),
        ("write", json!({ "a": 1 }), "ok"),
        ("call_tool", json!({ "name": 1 }), "invalid_arguments"),
        ("search_tools", json!({ "query": secret }), "ok"),
    ] {
        let result = desk.call(&session, tool, arguments).await;
        assert_eq!(result.is_ok(), outcome == "ok", "{tool}: {result:?}");
        let text = result.as_ref().err().map(ToString::to_string).unwrap_or_default();
        assert!(!text.contains("hunter2"), "{text}");
        wanted.push((tool, outcome));
    }
    desk.call(&ana, "call_tool", json!({ "name": "add", "arguments": { "a": 1 } })).await.unwrap();
    wanted.push(("add", "ok"));

    // Two in hand are all that one has room for; both are given up.
    let waiting: Vec<_> = (0..2)
        .map(|_| {
            let (tools, ana) = (desk.tools.clone(), ana.clone());
            tokio::spawn(async move { tools.call(&ana, "wait", object(json!({ "a": 1 })), CallContext::default()).await })
        })
        .collect();
    until("both wait", || desk.seen.waiting.load(SeqCst) == 2).await;
    assert!(matches!(desk.call(&ana, "add", json!({ "a": 1 })).await, Err(ToolError::Busy(_))));
    wanted.push(("add", "busy"));
    desk.call(&caller("bea"), "add", json!({ "a": 1 })).await.unwrap();
    wanted.push(("add", "ok"));
    waiting.iter().for_each(tokio::task::JoinHandle::abort);
    until("both are gone", || desk.seen.dropped.load(SeqCst) >= 4).await;
    wanted.extend([("wait", "cancelled"); 2]);

    let late = CallContext { deadline: Some(Instant::now() + Duration::from_nanos(1)), ..CallContext::default() };
    let none = desk.tools.call(&ana, "add", object(json!({ "a": 1 })), late).await;
    assert!(matches!(none, Err(ToolError::Unavailable(NoEffect::Expired | NoEffect::Overloaded(_)))), "{none:?}");

    let rows = desk.tail().await;
    let seen: Vec<_> = rows.iter().map(|row| (&*row.tool, &*row.outcome)).take(wanted.len()).collect();
    assert_eq!(seen, wanted);
    let first = &rows[0];
    assert_eq!((&*first.caller, &*first.transport, first.session.as_deref()), ("ana", "http", Some("session-1")));
    assert_eq!((first.remote.as_deref(), first.version), (Some("203.0.113.9:4711"), Some(7)));
    // What `echo -n '{"a":1}' | sha256sum` says.
    assert_eq!(&*first.arguments, "015abd7f5cc57a2dd94b7590f04ad8084273905ee33ec5cebeae62276a97f862");
    assert_eq!(rows[2].version, None);
    for entry in std::fs::read_dir(desk.directory.path()).unwrap() {
        let bytes = std::fs::read(entry.unwrap().path()).unwrap();
        assert!(!bytes.windows(secret.len()).any(|window| window == secret.as_bytes()), "an argument is in the audit");
    }
    let found = desk.tools.audit().tail(9, Filter { outcome: Some("internal".into()), ..Filter::default() }).await.unwrap();
    assert_eq!(found.iter().map(|row| &*row.tool).collect::<Vec<_>>(), ["nothing", "odd", "panic_at_once", "panic"]);
}

async fn until(what: &str, is: impl Fn() -> bool) {
    let end = Instant::now() + LONG;
    while !is() {
        assert!(Instant::now() < end, "{what}: never");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_destructive_is_done_when_it_is_confirmed_and_then_once() {
    let desk = Desk::new().await;
    let (ana, bea) = (caller("ana"), caller("bea"));
    let ask = async || match desk.call(&ana, "destroy", json!({ "a": 1, "b": 2 })).await {
        Err(ToolError::Confirm { what, token, within }) => {
            assert!(what.contains(r#"destroy would be called with {"a":1,"b":2}: The tool destroy."#), "{what}");
            assert_eq!(within, Duration::from_secs(120));
            token
        }
        other => panic!("{other:?}"),
    };
    let token = ask().await;
    let ran = || desk.seen.ran.load(SeqCst);
    assert_eq!(ran(), 0);
    for (caller, tool, arguments) in [
        (&bea, "destroy", json!({ "a": 1, "b": 2, "confirm": token })),
        (&ana, "destroy", json!({ "a": 1, "b": 3, "confirm": token })),
        (&ana, "destroy", json!({ "a": 1, "confirm": token })),
        (&ana, "destroy_too", json!({ "a": 1, "b": 2, "confirm": token })),
    ] {
        assert!(matches!(desk.call(caller, tool, arguments).await, Err(ToolError::Denied(_))));
    }
    assert_eq!(ran(), 0);
    let confirmed = json!({ "b": 2, "a": 1, "confirm": token });
    assert_eq!(desk.call(&ana, "destroy", confirmed.clone()).await, Ok(json!({ "sum": 3 })), "the tool gets no confirmation");
    assert!(matches!(desk.call(&ana, "destroy", confirmed).await, Err(ToolError::Denied(_))));
    assert_eq!(ran(), 1);
    // By the other name as well.
    let token = ask().await;
    let inner = json!({ "name": "destroy", "arguments": { "a": 1, "b": 2, "confirm": token } });
    assert_eq!(desk.call(&ana, "call_tool", inner).await, Ok(json!({ "sum": 3 })));
    let confirmed: Vec<_> = desk.tail().await.iter().filter(|row| row.confirmed).map(|row| row.outcome.to_string()).collect();
    assert_eq!(confirmed, ["ok", "ok"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_written_is_on_disk_before_the_answer_and_what_was_read_soon_after() {
    let desk = Desk::new().await;
    let ana = caller("ana");
    for at in 1..=20 {
        desk.call(&ana, "write", json!({ "a": at })).await.unwrap();
        assert_eq!(desk.rows("write"), at);
    }
    desk.call(&ana, "add", json!({ "a": 1 })).await.unwrap();
    let answered = Instant::now();
    until("it is on disk", || desk.rows("add") == 1).await;
    // Ten times what is promised, on a machine that does other things too.
    assert!(answered.elapsed() < LATEST * 10, "{:?}", answered.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_and_nothing_is_there_twice_when_scribe_and_writer_die_again_and_again() {
    const CALLS: u128 = 3_000;
    let desk = Desk::new().await;
    let root = desk.root.clone().unwrap();
    // Counts calls as they are made, so that deaths are spread over all of them.
    let (made, mut progress) = watch::channel(0);
    let calling = {
        let tools = desk.tools.clone();
        tokio::spawn(async move {
            let mut done = tokio::task::JoinSet::new();
            for at in 1..=CALLS {
                let (tools, caller) = (tools.clone(), caller(&format!("c{at}")));
                let (tool, context) =
                    (if at % 50 == 0 { "write" } else { "add" }, CallContext { trace: TraceId(at), ..CallContext::default() });
                done.spawn(async move { tools.call(&caller, tool, object(json!({ "a": 1 })), context).await.map(drop) });
                if done.len() > 100 {
                    done.join_next().await.unwrap().unwrap().unwrap();
                }
                made.send_replace(at);
            }
            while let Some(ended) = done.join_next().await {
                ended.unwrap().unwrap();
            }
        })
    };
    const DEATHS: u128 = 30;
    for crashes in 0..DEATHS {
        progress.wait_for(|made| *made >= crashes * CALLS / DEATHS).await.unwrap();
        let child = if crashes % 3 == 2 { format!("{FILE}:writer") } else { "audit".to_owned() };
        // It may be dead already.
        let _ = root.crash_child(&child).await;
    }
    calling.await.unwrap();
    tokio::time::timeout(LONG, desk.tools.audit().flush()).await.expect("all is written");
    let rows = desk.tools.audit().tail(10_000, Filter::default()).await.unwrap();
    let mut traces: Vec<_> = rows.iter().map(|row| u128::from_str_radix(row.trace.as_deref().unwrap(), 16).unwrap()).collect();
    traces.sort_unstable();
    assert_eq!(traces, (1..=CALLS).collect::<Vec<_>>(), "after {DEATHS} deaths");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_that_cannot_be_written_down_is_not_made_and_what_waits_is_written_later() {
    let desk = Desk::unwritten();
    let ana = caller("ana");
    let mut made = 0;
    let refused = loop {
        let context = CallContext { deadline: Some(Instant::now() + Duration::from_millis(300)), ..CallContext::default() };
        match desk.tools.call(&ana, "add", object(json!({ "a": 1 })), context).await {
            Ok(_) => made += 1,
            Err(error) => break error,
        }
        assert!(made < 100_000, "the queue has no end");
    };
    assert!(matches!(refused, ToolError::Unavailable(NoEffect::Overloaded(_))), "{refused:?}");
    assert_eq!(desk.seen.ran.load(SeqCst), made, "what was refused was not begun");
    let spec = SupervisorSpec::new("root", Strategy::OneForOne, desk.tools.audit().children());
    let _root = Supervisor::start(spec, None).await.unwrap();
    desk.tools.audit().flush().await;
    assert_eq!(desk.rows("add"), made as i64);
    desk.call(&ana, "add", json!({ "a": 1 })).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_go_on_where_the_last_life_of_the_node_ended() {
    let desk = Desk::new().await;
    desk.call(&caller("ana"), "write", json!({ "a": 1 })).await.unwrap();
    desk.root.as_ref().unwrap().stop().await;
    let audit = Audit::new(Open::new(desk.directory.path().join(FILE), Access::Owner));
    let spec = SupervisorSpec::new("root", Strategy::OneForOne, audit.children());
    let _root = Supervisor::start(spec, None).await.unwrap();
    let tools = Tools::new(registry(own(&desk.seen)), audit, Options::default());
    tools.call(&caller("bea"), "write", object(json!({ "a": 1 })), CallContext::default()).await.unwrap();
    let rows = tools.audit().tail(9, Filter::default()).await.unwrap();
    assert_eq!(rows.iter().map(|row| (row.id, &*row.caller)).collect::<Vec<_>>(), [(2, "bea"), (1, "ana")]);
}
