//! What a node tells of its tools, and calls that nodes pass on to each other: proved again where they are done.

use std::time::{Duration, Instant};

use horos_tools::{Call, Caller, Credential, PassOn as _, Rule, ToolError, Transport, Who, audit::Filter, rmcp::model::JsonObject};
use horos_wire::{
    CallContext, CallError, NoEffect, NodeId, Unknown,
    context::MAX_HOPS,
    principal::Denied,
    protocol::{
        keys::Secret,
        tools::{AuditAsk, CallTool, ListServed, PAGE, PassOn, ToolFailure, ToolsStatusAsk},
    },
};
use tokio::sync::watch;

use super::admin_world::{Keys, LONG, Node, Ways, row, unknown};

/// A BO that owns the data and an FO that passes on to it.
struct World {
    bo: Node,
    fo: Node,
    keys: Keys,
}

impl World {
    async fn new(rows: &[(&str, &str)]) -> Self {
        let (ways, keys) = (Ways::default(), Keys::default());
        let (bo, fo) = (Node::start("bo-1", &ways, &keys).await, Node::start("fo-1", &ways, &keys).await);
        keys.make("hk_ana", "ana", &["shop"]);
        keys.make("hk_eve", "eve", &[]);
        let rules = || vec![rule("*", "shop"), rule("nodes.*", "node:fo")];
        bo.registry.take(rows.iter().map(|(name, config)| row(name, config)).collect(), rules());
        // What is the BO's to do the FO passes on.
        fo.registry.take(rows.iter().map(|(name, _)| row(name, r#"{"passed_on":true}"#)).collect(), rules());
        Self { bo, fo, keys }
    }

    fn caller(&self, key: &str) -> Caller {
        Caller {
            who: Who::Principal(self.keys.who(key).unwrap()),
            credential: Some(Credential(key.into())),
            transport: Transport::Http,
            session: None,
            remote: None,
        }
    }

    /// As a client of the FO's.
    async fn call(&self, key: &str, tool: &str, within: Duration) -> Result<serde_json::Value, ToolError> {
        let context = CallContext { deadline: Some(Instant::now() + within), ..CallContext::default() };
        let output = self.fo.tools.call(&self.caller(key), tool, JsonObject::new(), context).await?;
        Ok(output.structured.unwrap())
    }

    /// As the FO's very own program, good or bad.
    async fn pass_on(&self, ask: PassOn) -> Result<Box<str>, CallError<ToolFailure>> {
        self.bo.ask_tools("fo/fo-1", ask).await
    }
}

fn rule(tool: &str, role: &str) -> Rule {
    Rule { tool: tool.into(), role: role.into(), allows: true }
}

fn ask(tool: &str, credential: Option<&str>) -> PassOn {
    PassOn { tool: tool.into(), arguments: "{}".into(), credential: credential.map(Secret::new), max_bytes: u32::MAX }
}

#[tokio::test]
async fn a_call_is_done_where_its_data_is_by_whoever_the_key_proves_there() {
    let world = World::new(&[("levels", r#"{"answer":7}"#)]).await;
    let answer = world.call("hk_ana", "levels", LONG).await.unwrap();
    assert_eq!(answer, serde_json::json!({ "answer": 7, "arguments": {} }));
    assert_eq!(*world.bo.seen.callers.lock(), ["key_ana by link"]);
    assert_eq!(*world.fo.seen.begun.borrow(), 0);
    // Both nodes have written it down, each as it came to it.
    for (node, transport) in [(&world.fo, "http"), (&world.bo, "link")] {
        let rows = node.audit.tail(10, Filter::default()).await.unwrap();
        let seen: Vec<_> = rows.iter().map(|it| (&*it.caller, &*it.tool, &*it.transport, &*it.outcome)).collect();
        assert_eq!(seen, [("key_ana", "levels", transport, "ok")]);
    }
}

#[tokio::test]
async fn a_key_that_was_revoked_is_refused_by_the_node_that_does_it_whatever_the_first_one_thinks() {
    let world = World::new(&[("levels", "{}")]).await;
    let believed = world.caller("hk_ana");
    world.keys.deny("hk_ana", Denied::Revoked);
    // The FO has not heard of it yet.
    let context = CallContext { deadline: Some(Instant::now() + LONG), ..CallContext::default() };
    let refused = world.fo.tools.call(&believed, "levels", JsonObject::new(), context).await;
    assert_eq!(refused, Err(ToolError::Denied("the key or token does not hold".into())));
    for why in [Denied::Malformed, Denied::Unknown, Denied::Expired, Denied::NotYetValid, Denied::OtherAudience] {
        world.keys.deny("hk_ana", why);
        let told = world.pass_on(ask("levels", Some("hk_ana"))).await;
        assert_eq!(told, Err(CallError::Failed(ToolFailure::Denied("the key or token does not hold".into()))), "one word for all: {why}");
    }
    world.keys.deny("hk_ana", Denied::Unavailable);
    let told = world.pass_on(ask("levels", Some("hk_ana"))).await;
    assert!(matches!(told, Err(CallError::Failed(ToolFailure::Unavailable(_)))), "{told:?}");
    assert_eq!(*world.bo.seen.begun.borrow(), 0);
    let denied = world.bo.audit.tail(100, Filter { outcome: Some("denied".into()), ..Filter::default() }).await.unwrap();
    assert_eq!(denied.len(), 6);
    assert!(denied.iter().all(|it| &*it.caller == "spiffe://shop/fo/fo-1"), "what is proved of it is who passed it on");
}

#[tokio::test]
async fn an_fo_is_believed_nothing_about_who_its_caller_is() {
    let world = World::new(&[("levels", "{}"), ("nodes.levels", "{}")]).await;
    // Without a credential it is the FO itself, which may call what rows allow to FOs, and nothing else there is.
    assert!(matches!(world.pass_on(ask("levels", None)).await, Err(CallError::Failed(ToolFailure::NoSuchTool(_)))));
    assert!(world.pass_on(ask("nodes.levels", None)).await.is_ok());
    // A key that exists and may nothing stays what it is; so does one that is an id or a name, or none at all.
    for shown in ["hk_eve", "key_ana", "ana", "", "spiffe://shop/operator/ana"] {
        let told = world.pass_on(ask("levels", Some(shown))).await;
        assert!(matches!(told, Err(CallError::Failed(ToolFailure::NoSuchTool(_) | ToolFailure::Denied(_)))), "{shown:?}: {told:?}");
    }
    assert_eq!(*world.bo.seen.callers.lock(), ["spiffe://shop/fo/fo-1 by link"]);
    // Claims that go with a message name users at will, and are nobody's proof.
    let claims = horos_wire::context::Claims { user: Some("ana".into()), ..Default::default() };
    let caller = Caller {
        who: Who::Node(std::sync::Arc::new(NodeId::from_uri("spiffe://shop/fo/fo-1").unwrap())),
        credential: None,
        transport: Transport::Quic,
        session: None,
        remote: None,
    };
    let context =
        CallContext { deadline: Some(Instant::now() + LONG), claims: Some(std::sync::Arc::new(claims)), ..CallContext::default() };
    let call = Call {
        tool: "levels",
        arguments: &JsonObject::new(),
        caller: &caller,
        context: &context,
        until: Instant::now() + LONG,
        max_bytes: 1 << 20,
    };
    assert!(matches!(world.fo.pass_on.pass_on(call).await, Err(ToolError::NoSuchTool(_))));
    // A person's certificate cannot be passed on, and the person is told so.
    let ana = Caller { who: Who::Node(std::sync::Arc::new(NodeId::from_uri("spiffe://shop/operator/ana").unwrap())), ..caller };
    let call = Call {
        tool: "levels",
        arguments: &JsonObject::new(),
        caller: &ana,
        context: &context,
        until: Instant::now() + LONG,
        max_bytes: 1 << 20,
    };
    let told = world.fo.pass_on.pass_on(call).await.unwrap_err().to_string();
    assert!(told.contains("no certificate can be passed on"), "{told}");
}

#[tokio::test]
async fn people_pass_nothing_on_and_what_was_passed_on_once_is_not_passed_on_again() {
    let world = World::new(&[("levels", "{}"), ("again", r#"{"passed_on":true}"#)]).await;
    // The policy of links does not let it come so far; in here it is looked at once more.
    for who in ["operator/ana", "viewer/ben"] {
        let told = world.bo.ask_tools(who, ask("levels", Some("hk_ana"))).await;
        assert!(matches!(told, Err(CallError::Failed(ToolFailure::Denied(_)))), "{told:?}");
    }
    let told = world.call("hk_ana", "again", LONG).await;
    assert_eq!(told, Err(ToolError::Unavailable(NoEffect::TooManyHops)));
    // On the owner itself there is nowhere to pass on to.
    let arguments = JsonObject::new();
    let (caller, context) = (world.caller("hk_ana"), CallContext::default());
    let call = Call {
        tool: "levels",
        arguments: &arguments,
        caller: &caller,
        context: &context,
        until: Instant::now() + LONG,
        max_bytes: 1 << 20,
    };
    assert!(matches!(world.bo.pass_on.pass_on(call.clone()).await, Err(ToolError::Unavailable(NoEffect::NoRoute(_)))));
    let far = CallContext { hops: MAX_HOPS, ..CallContext::default() };
    let call = Call { context: &far, ..call };
    assert_eq!(world.fo.pass_on.pass_on(call).await, Err(ToolError::Unavailable(NoEffect::TooManyHops)));
    assert_eq!(*world.bo.seen.begun.borrow(), 0);
}

#[tokio::test]
async fn what_the_tool_said_of_its_end_is_told_word_for_word() {
    let rows = [("fails", r#"{"fail":"out of tea"}"#), ("panics", r#"{"panic":true}"#), ("large", r#"{"bytes":2000000}"#), ("fine", "{}")];
    let world = World::new(&rows).await;
    assert_eq!(world.call("hk_ana", "fails", LONG).await, Err(ToolError::Failed("out of tea".into())));
    assert!(matches!(world.call("hk_ana", "panics", LONG).await, Err(ToolError::Internal { .. })));
    assert_eq!(world.call("hk_ana", "large", LONG).await, Err(ToolError::TooLarge { limit: 1 << 20 }));
    // The smaller of both nodes' bounds counts.
    let told = world.pass_on(PassOn { max_bytes: 30, ..ask("fine", Some("hk_ana")) }).await;
    assert_eq!(told, Err(CallError::Failed(ToolFailure::TooLarge { limit: 30 })));
    for arguments in ["", "[]", "{", "null", r#"{"n":"seven"}"#, r#"{"m":1}"#] {
        let told = world.pass_on(PassOn { arguments: arguments.into(), ..ask("fine", Some("hk_ana")) }).await;
        assert!(matches!(told, Err(CallError::Failed(ToolFailure::Arguments(_)))), "{arguments}: {told:?}");
    }
    assert!(matches!(world.pass_on(ask("nothing", Some("hk_ana"))).await, Err(CallError::Failed(ToolFailure::NoSuchTool(_)))));
    // A node that is away had no effect; none of its names is told.
    world.bo.cut_off();
    match world.call("hk_ana", "fine", LONG).await {
        Err(ToolError::Unavailable(why @ NoEffect::NoRoute(_))) => assert!(!why.to_string().contains("bo-1"), "{why}"),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_deadline_goes_with_the_call_and_what_it_undid_is_told_in_time() {
    let world = World::new(&[("hangs", r#"{"hang":true}"#)]).await;
    let begun = Instant::now();
    let told = world.call("hk_ana", "hangs", Duration::from_millis(1_500)).await;
    assert!(begun.elapsed() < LONG / 2);
    assert_eq!(told, Err(ToolError::Deadline { after: Duration::from_millis(7), undone: true }), "the tool's own word came back in time");
}

/// Returns once there have been so many.
async fn reaches(count: &watch::Sender<u64>, least: u64) {
    let mut counted = count.subscribe();
    let reached = tokio::time::timeout(LONG, counted.wait_for(|count| *count >= least)).await;
    assert!(reached.is_ok(), "{} of {least}", *count.borrow());
}

#[tokio::test]
async fn whoever_gives_up_has_the_other_node_give_up_too() {
    let world = World::new(&[("hangs", r#"{"hang":true}"#)]).await;
    let given_up = tokio::time::timeout(Duration::from_millis(300), world.call("hk_ana", "hangs", LONG)).await;
    assert!(given_up.is_err());
    reaches(&world.bo.seen.dropped, 1).await;
    let rows = world.bo.audit.tail(1, Filter::default()).await.unwrap();
    assert_eq!(&*rows[0].outcome, "cancelled");
}

#[tokio::test]
async fn calls_run_beside_each_other_and_one_node_has_no_more_than_its_share() {
    let world = World::new(&[("hangs", r#"{"hang":true}"#), ("fine", "{}")]).await;
    let mut hanging = Vec::new();
    for _ in 0..64 {
        let (bo, ways) = (&world.bo, ask("hangs", Some("hk_ana")));
        hanging.push(Box::pin(bo.asked_by("fo/fo-1", "horos.tools", ways, LONG)));
    }
    let all = futures_util::future::join_all(hanging);
    tokio::pin!(all);
    let full = async {
        reaches(&world.bo.seen.begun, 64).await;
        // One more of the same node is refused at once, without effect; another's and a person's are answered at once.
        let told = world.pass_on(ask("fine", Some("hk_ana"))).await;
        assert!(matches!(told, Err(CallError::NoEffect(NoEffect::Overloaded(_)))), "{told:?}");
        assert!(world.bo.asked_by("fo/fo-2", "horos.tools", ask("fine", Some("hk_ana")), LONG).await.is_ok());
        assert!(world.bo.ask_tools("operator/ana", ToolsStatusAsk {}).await.is_ok());
    };
    tokio::select! {
        () = full => {}
        done = &mut all => panic!("{done:?}"),
    }
}

#[tokio::test]
async fn a_crash_midway_is_an_unknown_outcome_and_leaves_nobody_waiting() {
    let world = World::new(&[("hangs", r#"{"hang":true}"#)]).await;
    let call = world.call("hk_ana", "hangs", LONG);
    let crash = async {
        reaches(&world.bo.seen.begun, 1).await;
        world.bo.root.crash_child("horos.tools").await.unwrap();
    };
    let (told, ()) = tokio::join!(call, crash);
    assert_eq!(unknown(told), Unknown::ActorDied);
    // It is back for the next.
    assert!(world.bo.ask_tools("operator/ana", ToolsStatusAsk {}).await.is_ok());
}

#[tokio::test]
async fn an_operator_calls_in_the_operators_name_and_is_asked_twice_for_what_cannot_be_undone() {
    let world = World::new(&[("levels", r#"{"answer":7}"#)]).await;
    let call = |tool: &str, arguments: &str| CallTool { tool: tool.into(), arguments: arguments.into() };
    let answer = world.bo.ask_tools("operator/ana", call("levels", r#"{"n":3}"#)).await.unwrap();
    assert_eq!(&*answer, r#"{"structured":{"answer":7,"arguments":{"n":3}}}"#);
    assert_eq!(*world.bo.seen.callers.lock(), ["spiffe://shop/operator/ana by command"]);
    let mut drop = row("drop", "{}");
    drop.destructive = 1;
    world.bo.registry.take(vec![drop], vec![]);
    let asked = world.bo.ask_tools("operator/ana", call("drop", "{}")).await;
    let Err(CallError::Failed(ToolFailure::Confirm { token, .. })) = asked else { panic!("{asked:?}") };
    assert!(world.bo.ask_tools("operator/ben", call("drop", &format!("{{\"confirm\":\"{token}\"}}"))).await.is_err());
    assert_eq!(*world.bo.seen.begun.borrow(), 1);
    world.bo.ask_tools("operator/ana", call("drop", &format!("{{\"confirm\":\"{token}\"}}"))).await.unwrap();
    assert_eq!(*world.bo.seen.begun.borrow(), 2);
}

#[tokio::test]
async fn a_node_tells_what_it_serves_what_is_wrong_and_who_called_what() {
    let world = World::new(&[("levels", "{}")]).await;
    let mut rows: Vec<_> = (0..PAGE + 5).map(|n| row(&format!("t{n:04}"), "{}")).collect();
    rows.push(row("odd", r#"{"colour":1}"#));
    world.bo.registry.take(rows, vec![rule("*", "shop")]);
    let status = world.bo.ask_tools("viewer/ben", ToolsStatusAsk {}).await.unwrap();
    assert_eq!((status.served, status.wrong, status.kinds.len()), (PAGE as u32 + 5, 1, 1));
    let wrong = &status.wrong_rows[0];
    assert_eq!((&*wrong.row.name, wrong.serves, &*wrong.row.problems[0].key), ("odd", false, "handler_config.colour"));
    let first = world.bo.ask_tools("viewer/ben", ListServed { after: None }).await.unwrap();
    assert_eq!((first.tools.len(), first.next.as_deref()), (PAGE, Some("t0199")));
    let rest = world.bo.ask_tools("viewer/ben", ListServed { after: first.next }).await.unwrap();
    assert_eq!((rest.tools.len(), rest.next, &*rest.tools[0].mode), (5, None, "readwrite"));

    for tool in ["t0000", "t0001", "nothing"] {
        let _ = world.pass_on(ask(tool, Some("hk_ana"))).await;
        let _ = world.pass_on(ask(tool, Some("hk_eve"))).await;
    }
    let look = |ask: AuditAsk| async { world.bo.ask_tools("viewer/ben", ask).await.unwrap() };
    let all = look(AuditAsk { limit: 4, ..AuditAsk::default() }).await;
    assert_eq!((all.entries.len(), all.next, all.entries[0].id), (4, Some(3), 6));
    let older = look(AuditAsk { limit: 4, before: all.next, ..AuditAsk::default() }).await;
    assert_eq!((older.entries.iter().map(|it| it.id).collect::<Vec<_>>(), older.next), (vec![2, 1], None));
    let newer = look(AuditAsk { limit: 200, after: Some(4), ..AuditAsk::default() }).await;
    assert_eq!(newer.entries.iter().map(|it| it.id).collect::<Vec<_>>(), [6, 5]);
    let of = |tool: Option<&str>, caller: Option<&str>, outcome: Option<&str>| {
        let text = |it: Option<&str>| it.map(Into::into);
        look(AuditAsk { tool: text(tool), caller: text(caller), outcome: text(outcome), limit: 200, ..AuditAsk::default() })
    };
    assert_eq!(of(Some("t0001"), None, None).await.entries.len(), 2);
    assert_eq!(of(None, Some("key_eve"), None).await.entries.len(), 3);
    assert_eq!(of(None, Some("key_eve"), Some("denied")).await.entries.len(), 2);
    assert_eq!(of(None, None, Some("ok")).await.entries.len(), 2);
    assert_eq!(of(Some("nothing"), None, Some("no_such_tool")).await.entries.len(), 2);
}
