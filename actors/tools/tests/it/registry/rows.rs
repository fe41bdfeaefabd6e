//! What becomes of a row: a tool, or everything that is wrong with it.

use std::{sync::atomic::Ordering, time::Duration};

use horos_tools::{Mode, Registry, Row, Rule, Taken};
use serde_json::json;

use super::world::{kinds, names, own, row};

fn problems(row: Row) -> Vec<String> {
    let registry = Registry::new(kinds().0, Vec::new());
    assert_eq!(registry.take(vec![row], Vec::new()).wrong, 1);
    registry.snapshot().wrong[0].problems.iter().map(ToString::to_string).collect()
}

#[track_caller]
fn wrong(row: Row, at: &str) {
    let found = problems(row);
    assert!(found.iter().any(|problem| problem.starts_with(at)), "{at}: {found:?}");
}

#[test]
fn a_row_that_is_right_is_listed_as_it_says() {
    let registry = Registry::new(kinds().0, Vec::new());
    let first = Row {
        title: Some("Finds".into()),
        input_schema: r#"{"type":"object","properties":{"id":{"type":"integer"}}}"#.into(),
        output_schema: Some(r#"{"type":"object"}"#.into()),
        timeout_ms: Some(5000),
        ..row("find")
    };
    let second = Row { mode: "readwrite".into(), destructive: 1, idempotent: 1, timeout_ms: Some(0), ..row("drop") };
    let taken = registry.take(vec![first, second], Vec::new());
    assert_eq!(taken, Taken { changed: 2, gone: 0, wrong: 0 });
    let snapshot = registry.snapshot();
    let (find, drop) = (&snapshot.tools["find"], &snapshot.tools["drop"]);
    assert_eq!((find.tool.title.as_deref(), find.tool.description.as_deref()), (Some("Finds"), Some("Says what it was given")));
    assert_eq!((find.spec.timeout, drop.spec.timeout), (Duration::from_secs(5), Duration::from_secs(600)), "0 is the longest");
    let hints = |tool: &rmcp::model::Tool| {
        let annotations = tool.annotations.clone().unwrap();
        (annotations.read_only_hint, annotations.destructive_hint, annotations.idempotent_hint)
    };
    assert_eq!(hints(&find.tool).0, Some(true));
    assert_eq!(hints(&drop.tool), (Some(false), Some(true), Some(true)));
    assert_eq!(
        serde_json::Value::from((*find.tool.input_schema).clone())["properties"]["cursor"],
        json!({"type": "string"}),
        "the kind's own"
    );
    assert!(find.tool.output_schema.is_some());
}

#[test]
fn everything_wrong_with_a_row_is_told_at_its_place() {
    let all = Row {
        name: "no name".into(),
        description: "a\u{200b}b".into(),
        title: Some("two\nlines".into()),
        category: "c".repeat(65).into(),
        input_schema: "[]".into(),
        output_schema: Some("{".into()),
        handler_type: "perl".into(),
        handler_config: "null".into(),
        mode: "rw".into(),
        destructive: 7,
        idempotent: -1,
        timeout_ms: Some(600_001),
        ..row("x")
    };
    let found = problems(all);
    for at in ["mode", "destructive", "idempotent", "timeout_ms", "input_schema", "output_schema", "handler_config", "handler_type"] {
        assert!(found.iter().any(|problem| problem.starts_with(&format!("{at}:"))), "{at}: {found:?}");
    }
    for (row, at) in [
        (Row { name: "".into(), ..row("x") }, "tool_name:"),
        (Row { name: "é".into(), ..row("x") }, "tool_name:"),
        (Row { name: "a/b".into(), ..row("x") }, "tool_name:"),
        (Row { name: "n".repeat(129).into(), ..row("x") }, "tool_name:"),
        (Row { description: " ".into(), ..row("x") }, "description:"),
        (Row { description: "d".repeat(1025).into(), ..row("x") }, "description:"),
        (Row { description: "d".repeat(70_000).into(), ..row("x") }, "description:"),
        (Row { description: "a\u{202e}b".into(), ..row("x") }, "description: has U+202E at byte 1"),
        (Row { description: "a\u{e0041}b".into(), ..row("x") }, "description: has U+E0041"),
        (Row { title: Some("a\x07".into()), ..row("x") }, "title:"),
        (Row { title: Some("t".repeat(257).into()), ..row("x") }, "title:"),
        (Row { category: "a\nb".into(), ..row("x") }, "tool_category:"),
        (Row { group: "g".repeat(65).into(), ..row("x") }, "group_tag:"),
        (Row { timeout_ms: Some(-1), ..row("x") }, "timeout_ms:"),
        (Row { timeout_ms: Some(i64::MIN), ..row("x") }, "timeout_ms:"),
        (Row { destructive: 1, ..row("x") }, "destructive:"),
        (Row { handler_config: r#"{"refuse": 1}"#.into(), ..row("x") }, "handler_config.refuse:"),
        (Row { input_schema: "{}".into(), ..row("x") }, "input_schema/type:"),
        (Row { input_schema: r#"{"type":["object"]}"#.into(), ..row("x") }, "input_schema/type:"),
        (Row { input_schema: r#"{"type":"object","properties":5}"#.into(), ..row("x") }, "input_schema/properties:"),
        (
            Row { input_schema: r#"{"type":"object","properties":{"a":{"type":"int"}}}"#.into(), ..row("x") },
            "input_schema/properties/a/type:",
        ),
        (Row { input_schema: "{\"type\":\"object\",\"title\":\"a\u{2060}\"}".into(), ..row("x") }, "input_schema/title:"),
        (
            Row { input_schema: "{\"type\":\"object\",\"properties\":{\"a\":{\"description\":\"a\u{feff}\"}}}".into(), ..row("x") },
            "input_schema/properties/a/description:",
        ),
        (Row { input_schema: "{\"type\":\"object\",\"properties\":{\"a\u{200d}\":{}}}".into(), ..row("x") }, "input_schema/properties:"),
        (Row { input_schema: r#"{"type":"object","enum":["a\u0000"]}"#.into(), ..row("x") }, "input_schema/enum/0:"),
        (Row { output_schema: Some(r#"{"type":"array"}"#.into()), ..row("x") }, "output_schema/type:"),
    ] {
        wrong(row, at);
    }
    assert!(problems(Row { handler_type: "perl".into(), ..row("x") })[0].contains("there are: echo"), "and what there is instead");
}

#[test]
fn a_wrong_row_leaves_the_last_good_one_in_force_and_is_shown_until_it_is_right_or_gone() {
    let registry = Registry::new(kinds().0, Vec::new());
    registry.take(vec![row("a"), row("b")], Vec::new());
    let generation = registry.snapshot().generation;
    let broken = Row { input_schema: "{".into(), version: 2, ..row("a") };
    let taken = registry.take(vec![broken.clone(), row("b"), Row { mode: "x".into(), ..row("c") }], Vec::new());
    assert_eq!(taken, Taken { changed: 0, gone: 0, wrong: 2 });
    let snapshot = registry.snapshot();
    assert_eq!(names(&registry), ["a", "b"]);
    assert_eq!(snapshot.tools["a"].spec.version, 1);
    let told: Vec<_> = snapshot.wrong.iter().map(|wrong| (&*wrong.name, wrong.serves)).collect();
    assert_eq!(told, [("a", true), ("c", false)]);
    assert_eq!(snapshot.generation, generation, "nothing that is listed has changed");
    assert!(snapshot.trouble().is_some_and(|trouble| trouble.starts_with("tool \"a\": input_schema: is no JSON")));
    // Another wrong edit still leaves the first.
    registry.take(vec![Row { version: 3, ..broken }, row("b")], Vec::new());
    assert_eq!(registry.snapshot().tools["a"].spec.version, 1);
    registry.take(vec![Row { version: 4, ..row("a") }, row("b")], Vec::new());
    assert_eq!(registry.snapshot().tools["a"].spec.version, 4);
    assert!(registry.snapshot().wrong.is_empty() && registry.snapshot().trouble().is_none());
    registry.take(vec![Row { mode: "x".into(), ..row("a") }, row("b")], Vec::new());
    registry.take(vec![row("b")], Vec::new());
    assert_eq!(names(&registry), ["b"], "a row that is gone serves no more, whatever it was");
}

#[test]
fn what_is_listed_changes_the_generation_and_nothing_else_does() {
    let registry = Registry::new(kinds().0, vec![own("mine", Mode::ReadOnly)]);
    let changes = registry.changes();
    let mut generation = registry.snapshot().generation;
    let allow = |role: &str| vec![Rule { tool: "*".into(), role: role.into(), allows: true }];
    for (what, listed, row, rules) in [
        ("a new tool", true, Some(row("a")), allow("x")),
        ("the same again", false, Some(row("a")), allow("x")),
        ("its configuration", false, Some(Row { handler_config: r#"{"x":1}"#.into(), ..row("a") }), allow("x")),
        ("its category and its timeout", false, Some(Row { category: "c".into(), timeout_ms: Some(5), ..row("a") }), allow("x")),
        ("its description", true, Some(Row { description: "other".into(), ..row("a") }), allow("x")),
        ("its group", true, Some(Row { description: "other".into(), group: "g".into(), ..row("a") }), allow("x")),
        ("a wrong edit of it", false, Some(Row { description: "".into(), ..row("a") }), allow("x")),
        ("who may see it", true, Some(Row { description: "other".into(), group: "g".into(), ..row("a") }), allow("y")),
        ("it is gone", true, None, allow("y")),
    ] {
        registry.take(row.into_iter().collect(), rules);
        let now = registry.snapshot().generation;
        assert_eq!(now > generation, listed, "{what}");
        assert_eq!(*changes.borrow(), now, "{what}");
        generation = now;
    }
}

#[test]
fn rows_that_stay_as_they_are_are_not_checked_again() {
    let (kinds, echo) = kinds();
    let registry = Registry::new(kinds, Vec::new());
    let rows = |changed: &str| (0..10).map(|n| Row { description: changed.into(), ..row(&format!("t{n}")) }).collect::<Vec<_>>();
    registry.take(rows("one"), Vec::new());
    assert_eq!(echo.0.load(Ordering::Relaxed), 10);
    let before = registry.snapshot();
    let mut next = rows("one");
    next[3].description = "two".into();
    assert_eq!(registry.take(next, Vec::new()), Taken { changed: 1, gone: 0, wrong: 0 });
    assert_eq!(echo.0.load(Ordering::Relaxed), 11);
    let after = registry.snapshot();
    let kept = before.tools.iter().filter(|(name, tool)| std::sync::Arc::ptr_eq(tool, &after.tools[*name])).count();
    assert_eq!(kept, 9, "and are the same tools");
    assert_eq!(&*before.tools["t3"].spec.description, "one", "whoever holds the list of before goes on with it");
}

#[test]
fn a_tool_of_the_program_is_not_replaced_by_a_row_of_its_name() {
    let registry = Registry::new(kinds().0, vec![own("mine", Mode::ReadOnly)]);
    assert_eq!(registry.take(vec![row("mine"), row("other")], Vec::new()), Taken { changed: 1, gone: 0, wrong: 1 });
    assert_eq!(&*registry.snapshot().tools["mine"].spec.category, "own");
    assert_eq!(&*registry.snapshot().wrong[0].name, "mine");
    registry.take(Vec::new(), Vec::new());
    assert_eq!(names(&registry), ["mine"]);
}

#[test]
fn of_two_rows_of_one_name_the_first_is_taken_and_the_other_shown() {
    let registry = Registry::new(kinds().0, Vec::new());
    let taken = registry.take(vec![row("a"), Row { description: "another".into(), ..row("a") }], Vec::new());
    assert_eq!((taken.changed, taken.wrong), (1, 1));
    assert_eq!(&*registry.snapshot().tools["a"].spec.description, "Says what it was given");
}
