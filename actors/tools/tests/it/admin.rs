//! Rows and rules as operators edit them, on a real file that other programs write to as well.

use horos_tools::reload;
use horos_wire::{
    CallError,
    protocol::registry::{
        DeleteTool, DropRule, Effect, Expected, GetTool, ImportTools, ImportedRule, ImportedTool, ListRules, ListTools, MAX_JSON, MAX_WHY,
        PAGE, RegistryError, RollbackTool, RuleHistory, SetRule, SetTool, ToolEdit, ToolHistory, ToolText, TurnTool,
    },
};

use super::admin_world::{Keys, Node, Ways, text};

async fn owner() -> Node {
    Node::start("bo-1", &Ways::default(), &Keys::default()).await
}

fn set(name: &str, config: &str, expected: Option<Expected>) -> SetTool {
    SetTool { name: name.into(), text: text(config), expected, why: Some("because".into()) }
}

fn rollback(name: &str, to: i64) -> RollbackTool {
    RollbackTool { name: name.into(), to, expected: None, why: Some("it was better".into()) }
}

async fn history(node: &Node, name: &str) -> Vec<ToolEdit> {
    node.edit(ToolHistory { name: Some(name.into()), before: None, limit: 100 }).await.unwrap().edits
}

#[tokio::test]
async fn an_edit_meets_what_it_expects_or_has_no_effect() {
    let node = owner().await;
    let first = node.edit(set("levels", r#"{"answer":1}"#, Some(Expected::Absent))).await.unwrap();
    assert_eq!((first.version, first.tool.as_ref().unwrap().version), (1, 1));
    assert_eq!(
        node.edit(set("levels", "{}", Some(Expected::Absent))).await,
        Err(RegistryError::Conflict { name: "levels".into(), found: Some(1) })
    );
    let second = node.edit(set("levels", r#"{"answer":2}"#, Some(Expected::Version(1)))).await.unwrap();
    assert_eq!(second.version, 2);
    let late = Err(RegistryError::Conflict { name: "levels".into(), found: Some(2) });
    assert_eq!(node.edit(set("levels", r#"{"answer":3}"#, Some(Expected::Version(1)))).await, late);
    let drop = |expected| DeleteTool { name: "levels".into(), expected, why: None };
    assert_eq!(node.edit(drop(Some(1))).await, late);
    assert_eq!(node.edit(TurnTool { name: "levels".into(), active: false, expected: Some(1), why: None }).await, late);
    assert_eq!(node.edit(RollbackTool { expected: Some(Expected::Version(1)), ..rollback("levels", 1) }).await, late);
    // What any other program does counts as well.
    node.shell("UPDATE mcp_tools_registry SET description = 'Another.' WHERE tool_name = 'levels'");
    let theirs = Err(RegistryError::Conflict { name: "levels".into(), found: Some(3) });
    assert_eq!(node.edit(set("levels", "{}", Some(Expected::Version(2)))).await, theirs);
    assert_eq!(node.edit(drop(Some(3))).await.unwrap().version, 4);
    assert_eq!(node.edit(drop(None)).await, Err(RegistryError::NoSuchTool("levels".into())));
    assert_eq!(node.edit(GetTool { name: "levels".into() }).await, Err(RegistryError::NoSuchTool("levels".into())));
    // Made anew it is no older version of itself.
    assert_eq!(node.edit(set("levels", "{}", None)).await.unwrap().version, 5);
}

#[tokio::test]
async fn of_a_hundred_edits_at_once_that_expect_the_same_one_is_made() {
    let node = owner().await;
    node.edit(set("levels", "{}", None)).await.unwrap();
    let edits = (0..100).map(|n| node.edit(set("levels", &format!("{{\"answer\":{n}}}"), Some(Expected::Version(1)))));
    let done = futures_util::future::join_all(edits).await;
    assert_eq!(done.iter().filter(|it| it.is_ok()).count(), 1);
    assert!(done.iter().filter_map(|it| it.as_ref().err()).all(|it| matches!(it, RegistryError::Conflict { found: Some(2), .. })));
    assert_eq!(history(&node, "levels").await.len(), 2);
}

#[tokio::test]
async fn a_wrong_tool_is_refused_with_everything_that_is_wrong_and_its_place_and_nothing_is_written() {
    let node = owner().await;
    node.edit(set("levels", "{}", None)).await.unwrap();
    let places = |error: RegistryError| match error {
        RegistryError::Wrong(problems) => problems.into_iter().map(|it| it.key.to_string()).collect::<Vec<_>>(),
        other => panic!("{other}"),
    };
    let many = SetTool {
        text: ToolText { handler_config: r#"{"colour":1,"size":2}"#.into(), mode: "sometimes".into(), timeout_ms: Some(-1), ..text("{}") },
        ..set("levels", "{}", None)
    };
    let found = places(node.edit(many).await.unwrap_err());
    for place in ["handler_config.colour", "handler_config.size", "mode", "timeout_ms"] {
        assert!(found.iter().any(|it| it == place), "{place} is not in {found:?}");
    }
    let one = |change: fn(&mut SetTool)| {
        let mut ask = set("levels", "{}", None);
        change(&mut ask);
        ask
    };
    for (at, ask) in [
        ("tool_name", one(|it| it.name = "two words".into())),
        ("tool_name", one(|it| it.name = "".into())),
        ("description", one(|it| it.text.description = "x".repeat(1_025).into())),
        ("description", one(|it| it.text.description = "hid\u{200b}den".into())),
        ("handler_type", one(|it| it.text.handler_type = "shell".into())),
        ("handler_config", one(|it| it.text.handler_config = "{".into())),
        ("handler_config", one(|it| it.text.handler_config = format!("{{\"answer\":\"{}\"}}", "x".repeat(MAX_JSON)).into())),
        ("input_schema", one(|it| it.text.input_schema = "null".into())),
        ("input_schema", one(|it| it.text.input_schema = "7".into())),
        ("output_schema", one(|it| it.text.output_schema = Some("[]".into()))),
        ("destructive", one(|it| (it.text.mode, it.text.destructive) = ("readonly".into(), true))),
    ] {
        let found = places(node.edit(ask).await.unwrap_err());
        assert!(found.iter().any(|it| it.starts_with(at)), "{at} is not in {found:?}");
    }
    for why in ["two\nlines", &"x".repeat(MAX_WHY + 1), "\u{1b}[2J"] {
        let ask = SetTool { why: Some(why.into()), ..set("levels", "{}", None) };
        assert!(matches!(node.edit(ask).await, Err(RegistryError::Invalid(_))), "{why:?}");
    }
    assert_eq!(node.query("SELECT tool_name, version FROM mcp_tools_registry"), [["levels".to_owned().into(), 1.into()]]);
    assert_eq!(history(&node, "levels").await.len(), 1);
}

#[tokio::test]
async fn who_edited_what_and_why_is_written_down_with_the_edit_whoever_it_was() {
    let node = owner().await;
    node.edit(set("levels", r#"{"answer":1}"#, None)).await.unwrap();
    node.edit(TurnTool { name: "levels".into(), active: false, expected: None, why: Some("not now".into()) }).await.unwrap();
    node.shell("UPDATE mcp_tools_registry SET handler_config = '{\"answer\":2}' WHERE tool_name = 'levels'");
    node.edit(TurnTool { name: "levels".into(), active: true, expected: None, why: None }).await.unwrap();
    node.edit(DeleteTool { name: "levels".into(), expected: None, why: Some("nobody uses it".into()) }).await.unwrap();
    node.edit(set("other", "{}", None)).await.unwrap();
    let told: Vec<_> = history(&node, "levels")
        .await
        .iter()
        .map(|it| {
            format!(
                "{} {} {} {}: {}{}",
                it.version,
                it.what,
                it.who,
                it.why,
                it.text.handler_config,
                if it.text.active { "" } else { " off" }
            )
        })
        .collect();
    assert_eq!(
        told,
        [
            r#"5 deleted operator@ana nobody uses it: {"answer":2}"#,
            r#"4 updated operator@ana : {"answer":2}"#,
            r#"3 updated sql : {"answer":2} off"#,
            r#"2 updated operator@ana not now: {"answer":1} off"#,
            r#"1 created operator@ana because: {"answer":1}"#,
        ]
    );
    let all = node.edit(ToolHistory { name: None, before: None, limit: 2 }).await.unwrap();
    assert_eq!((all.edits.len(), &*all.edits[0].name, all.edits[1].version), (2, "other", 5));
    let rest = node.edit(ToolHistory { name: None, before: all.next, limit: 100 }).await.unwrap();
    assert_eq!((rest.edits.len(), rest.next), (4, None));
}

/// Every column that is a tool's text, with its type.
const EXACT: &str = "SELECT hex(tool_category), hex(title), hex(description), hex(input_schema), hex(output_schema), hex(handler_type),
    hex(handler_config), hex(mode), typeof(title), typeof(output_schema), typeof(handler_config), destructive, idempotent, group_tag,
    timeout_ms, typeof(timeout_ms), is_active, created_by FROM mcp_tools_registry WHERE tool_name = 'levels'";

#[tokio::test]
async fn a_rollback_is_exact_to_the_byte_and_can_be_taken_back() {
    let node = owner().await;
    let rich = SetTool {
        text: ToolText {
            title: Some("Levels".into()),
            output_schema: Some(r#"{ "type" : "object" }"#.into()),
            timeout_ms: None,
            idempotent: true,
            group: "stock".into(),
            description: "Tells the levels\tof “goods”.\r\nAll of them.".into(),
            ..text("{ \"answer\" : 1.0 }")
        },
        ..set("levels", "{}", None)
    };
    node.edit(rich).await.unwrap();
    let was = node.query(EXACT);
    node.edit(set("levels", r#"{"answer":2}"#, None)).await.unwrap();
    let then = node.query(EXACT);
    assert_ne!(was, then);
    assert_eq!(node.edit(rollback("levels", 1)).await.unwrap().version, 3);
    assert_eq!(node.query(EXACT), was);
    assert_eq!(node.edit(rollback("levels", 2)).await.unwrap().version, 4);
    assert_eq!(node.query(EXACT), then);
    // Also what was deleted, and what another program wrote as bytes.
    node.shell("UPDATE mcp_tools_registry SET handler_config = x'7b7d', title = NULL WHERE tool_name = 'levels'");
    let bytes = node.query(EXACT);
    node.edit(DeleteTool { name: "levels".into(), expected: None, why: None }).await.unwrap();
    assert_eq!(node.edit(rollback("levels", 5)).await.unwrap().version, 7);
    assert_eq!(node.query(EXACT), bytes);
    let newest = history(&node, "levels").await.swap_remove(0);
    assert_eq!((&*newest.what, &*newest.who, &*newest.why), ("created", "operator@ana", "it was better"));
    for (to, refused) in [(6, "deletion"), (99, "no version 99"), (-1, "no version -1")] {
        let error = node.edit(rollback("levels", to)).await.unwrap_err().to_string();
        assert!(error.contains(refused), "{error}");
    }
    assert!(matches!(node.edit(rollback("nothing", 1)).await, Err(RegistryError::NoSuchVersion { .. })));
}

#[tokio::test]
async fn nothing_that_is_wrong_is_brought_back_or_turned_on_in_place_of_what_serves() {
    let node = owner().await;
    node.edit(set("levels", r#"{"answer":1}"#, None)).await.unwrap();
    node.shell("UPDATE mcp_tools_registry SET handler_config = '{\"colour\":1}' WHERE tool_name = 'levels'");
    node.edit(set("levels", r#"{"answer":3}"#, None)).await.unwrap();
    assert!(matches!(node.edit(rollback("levels", 2)).await, Err(RegistryError::Wrong(_))));
    node.shell("UPDATE mcp_tools_registry SET handler_config = '{\"colour\":1}', is_active = 0 WHERE tool_name = 'levels'");
    let on = TurnTool { name: "levels".into(), active: true, expected: None, why: None };
    assert!(matches!(node.edit(on).await, Err(RegistryError::Wrong(_))));
    // What cannot be kept whole is not brought back in part.
    node.shell(
        "UPDATE mcp_tools_registry SET handler_config = '{\"answer\":\"' || hex(zeroblob(40000)) || '\"}' WHERE tool_name = 'levels'",
    );
    node.edit(set("levels", "{}", None)).await.unwrap();
    let edits = history(&node, "levels").await;
    assert_eq!(edits.iter().map(|it| it.cut).collect::<Vec<_>>(), [false, true, false, false, false, false][..edits.len()]);
    let error = node.edit(rollback("levels", edits[1].version)).await.unwrap_err();
    assert!(error.to_string().contains("too large"), "{error}");
}

#[tokio::test]
async fn what_other_programs_wrote_is_listed_with_what_is_wrong_page_by_page_and_can_be_deleted() {
    let node = owner().await;
    node.shell(
        "INSERT INTO mcp_tools_registry (tool_name, description, handler_type) VALUES ('a b', x'ff', 7), ('fine', 'Is fine.', 'fixed');
         INSERT INTO mcp_tools_registry (tool_name, description, handler_type, is_active, timeout_ms) VALUES ('odd', 'x', 'fixed', 'yes', 'long');
         INSERT INTO mcp_tools_registry (tool_name, description, handler_type) VALUES (x'00ff', 'x', 'fixed'), (CAST(x'61ff' AS TEXT), 'x', 'fixed')",
    );
    let page = node.edit(ListTools { after: None }).await.unwrap();
    let seen: Vec<_> = page.tools.iter().map(|it| (&*it.name, it.text.active, it.problems.is_empty())).collect();
    assert_eq!(seen, [("a b", true, false), ("fine", true, true), ("odd", false, false)]);
    assert_eq!(page.next, None);
    node.edit(DeleteTool { name: "a b".into(), expected: None, why: None }).await.unwrap();
    node.shell(&format!(
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {})
         INSERT INTO mcp_tools_registry (tool_name, description, handler_type) SELECT 't' || i, 'x', 'fixed' FROM n",
        2 * PAGE
    ));
    let (mut names, mut after, mut pages) = (Vec::new(), None, 0);
    loop {
        let page = node.edit(ListTools { after }).await.unwrap();
        assert!(page.tools.len() <= PAGE);
        names.extend(page.tools.into_iter().map(|it| it.name));
        (after, pages) = (page.next, pages + 1);
        if after.is_none() {
            break;
        }
    }
    assert!(names.is_sorted() && names.len() == 2 * PAGE + 2 && pages == 3, "{} in {pages}", names.len());
}

fn rule(tool: &str, role: &str, effect: Effect) -> SetRule {
    SetRule { tool: tool.into(), role: role.into(), effect, why: Some("asked for".into()) }
}

#[tokio::test]
async fn there_is_one_rule_for_a_tool_and_a_role_and_it_is_in_force_once_it_is_read() {
    let node = owner().await;
    node.edit(set("stock.levels", "{}", None)).await.unwrap();
    let made = node.edit(rule("stock.*", "scope:shop", Effect::Allow)).await.unwrap();
    assert_eq!((made.rule.unwrap().effect, made.matches), (Some(Effect::Allow), 1));
    assert_eq!(node.edit(rule("stock_*", "shop", Effect::Allow)).await.unwrap().matches, 0, "no letter stands for another");
    node.edit(DropRule { tool: "stock_*".into(), role: "shop".into(), why: None }).await.unwrap();
    reload::load(&node.registry, &node.file).unwrap();
    node.keys.make("hk_ana", "ana", &["shop"]);
    let ana = || horos_tools::Caller {
        who: horos_tools::Who::Principal(node.keys.who("hk_ana").unwrap()),
        credential: None,
        transport: horos_tools::Transport::Http,
        session: None,
        remote: None,
    };
    assert!(node.registry.snapshot().policy.allows(&ana(), "stock.levels"));
    // A program wrote others of the same: they are one again.
    node.shell("INSERT INTO mcp_tool_policy (tool_name, role, effect) VALUES ('stock.*', 'scope:shop', 'deny'), ('stock.*', 'scope:shop', 'allow')");
    reload::load(&node.registry, &node.file).unwrap();
    assert!(!node.registry.snapshot().policy.allows(&ana(), "stock.levels"));
    node.edit(rule("stock.*", "scope:shop", Effect::Allow)).await.unwrap();
    assert_eq!(node.edit(ListRules { after: None }).await.unwrap().rules.len(), 1);
    reload::load(&node.registry, &node.file).unwrap();
    assert!(node.registry.snapshot().policy.allows(&ana(), "stock.levels"));
    node.edit(rule("stock.*", "scope:shop", Effect::Deny)).await.unwrap();
    node.edit(rule("stock.*", "scope:shop", Effect::Deny)).await.unwrap();
    node.edit(DropRule { tool: "stock.*".into(), role: "scope:shop".into(), why: Some("gone".into()) }).await.unwrap();
    let gone = DropRule { tool: "stock.*".into(), role: "scope:shop".into(), why: None };
    assert!(matches!(node.edit(gone).await, Err(RegistryError::NoSuchRule { .. })));
    let told: Vec<_> = node
        .edit(RuleHistory { before: None, limit: 100 })
        .await
        .unwrap()
        .edits
        .iter()
        .map(|it| format!("{} {}: {:?} -> {:?}", it.who, it.why, it.before.as_deref(), it.after.as_deref()))
        .collect();
    assert_eq!(
        told,
        [
            r#"operator@ana gone: Some("deny") -> None"#,
            r#"operator@ana asked for: Some("deny") -> Some("deny")"#,
            r#"operator@ana asked for: Some("allow") -> Some("deny")"#,
            r#"operator@ana asked for: Some("allow") -> None"#,
            r#"operator@ana asked for: Some("deny") -> None"#,
            r#"sql : None -> Some("allow")"#,
            r#"sql : None -> Some("deny")"#,
            r#"operator@ana : Some("allow") -> None"#,
            r#"operator@ana asked for: None -> Some("allow")"#,
            r#"operator@ana asked for: None -> Some("allow")"#,
        ]
    );
}

#[tokio::test]
async fn a_rule_that_means_nothing_or_nobody_is_refused() {
    let node = owner().await;
    for (tool, role) in [
        ("", "shop"),
        ("a b", "shop"),
        ("a*b", "shop"),
        ("**", "shop"),
        ("stock", ""),
        ("stock", "node:operatr"),
        ("stock", "key:"),
        ("stock", "user:"),
        ("stock", "two\nlines"),
    ] {
        let error = node.edit(rule(tool, role, Effect::Deny)).await;
        assert!(matches!(error, Err(RegistryError::Invalid(_))), "{tool:?} {role:?}: {error:?}");
    }
    for (tool, role) in [("*", "*"), ("a", "node:fo"), ("a.b-c_D*", "user:Ana María"), ("a", "key:ops"), ("a", "stock:read")] {
        node.edit(rule(tool, role, Effect::Allow)).await.unwrap();
    }
}

#[tokio::test]
async fn an_import_loses_nothing_and_puts_nothing_wrong_in_place_of_what_serves() {
    let node = owner().await;
    node.edit(set("mine", r#"{"answer":1}"#, None)).await.unwrap();
    node.edit(set("same", r#"{"answer":1}"#, None)).await.unwrap();
    let tool = |name: &str, config: &str| ImportedTool { name: name.into(), text: text(config) };
    let rule = |tool: &str, role: &str| ImportedRule { tool: tool.into(), role: role.into(), effect: Effect::Allow };
    let rules = vec![rule("n*", "shop"), rule("n*", ""), rule("two words", "shop")];
    let ask = ImportTools {
        tools: vec![
            tool("mine", r#"{"answer":2}"#),
            tool("same", r#"{"answer":1}"#),
            tool("new", "{}"),
            tool("odd", r#"{"colour":1}"#),
            tool("", "{}"),
        ],
        rules,
        replace: false,
        why: None,
    };
    let done = node.edit(ask.clone()).await.unwrap();
    let names = |names: &[Box<str>]| names.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
    assert_eq!(
        (names(&done.added), names(&done.replaced), names(&done.same), done.rules),
        ("new odd".into(), String::new(), "same".into(), 1)
    );
    assert_eq!(
        done.left.iter().map(|it| &*it.name).collect::<Vec<_>>(),
        ["mine", "", "the rule allow n* ", "the rule allow two words shop"]
    );
    assert_eq!((done.wrong.len(), &*done.wrong[0].name, &*done.wrong[0].problems[0].key), (1, "odd", "handler_config.colour"));
    assert_eq!(names(&done.closed), "odd same", "of `new` a rule speaks");
    let wrong = ImportTools {
        tools: vec![tool("mine", r#"{"colour":1}"#), tool("new", r#"{"answer":3}"#)],
        rules: vec![],
        replace: true,
        why: None,
    };
    let done = node.edit(wrong).await.unwrap();
    assert_eq!((names(&done.replaced), done.left.len(), done.wrong.len()), ("new".into(), 1, 1));
    assert_eq!(node.edit(GetTool { name: "mine".into() }).await.unwrap().text, text(r#"{"answer":1}"#));
    let too_many = ImportTools { tools: vec![tool("x", "{}"); PAGE + 1], ..ask };
    assert!(matches!(node.edit(too_many).await, Err(RegistryError::Invalid(_))));
}

#[tokio::test]
async fn what_was_answered_is_on_disk() {
    let node = owner().await;
    node.edit(set("levels", "{}", None)).await.unwrap();
    // Another connection, as another process's, sees it at once: there is nothing of it in this one alone.
    assert_eq!(node.query("SELECT tool_name, version FROM mcp_tools_registry"), [["levels".to_owned().into(), 1.into()]]);
    // A writer that dies takes nothing back, and what is asked meanwhile is made or refused, never both.
    node.root.crash_child("control:writer").await.unwrap();
    let outcome = node.asked_by("operator/ana", "horos.registry", set("other", "{}", None), super::admin_world::LONG).await;
    let there = node.edit(GetTool { name: "other".into() }).await.is_ok();
    match outcome {
        Ok(_) => assert!(there),
        Err(CallError::Failed(RegistryError::Storage(_)) | CallError::NoEffect(_)) => assert!(!there),
        Err(CallError::Failed(RegistryError::Unknown) | CallError::Unknown(_)) => {}
        Err(other) => panic!("{other}"),
    }
}
