//! Tools, who may call them, who edited them, and who called them.

use horos_wire::protocol::{
    registry::{RuleEdit, ToolEdit, ToolRow, ToolRule, ToolsImported},
    tools::{AuditEntry, ServedTool},
};
use jiff::Timestamp;
use serde_json::Value;

use super::{
    Style, Tint, clean, micros, paint, printable,
    routes::{or_dash, when},
    table::{cell, plain, table, written},
};
use crate::cli::ToolsOn;

/// The first words of a text, for a table.
const BRIEF: usize = 60;

fn brief(text: &str) -> String {
    let mut out: String = text.chars().take(BRIEF).collect();
    if text.chars().nth(BRIEF).is_some() {
        out.push('…');
    }
    clean(&out)
}

fn state(it: &ToolRow) -> (&'static str, Tint) {
    match (it.text.active, it.problems.is_empty()) {
        (false, _) => ("off", Tint::Dim),
        (true, true) => ("on", Tint::Good),
        (true, false) => ("wrong", Tint::Bad),
    }
}

fn mode(mode: &str, destructive: bool) -> String {
    if destructive { format!("{}, asks twice", clean(mode)) } else { clean(mode) }
}

/// Rows, a line each; below them what is wrong.
pub fn tools(rows: &[ToolRow], style: Style) -> String {
    if rows.is_empty() {
        return "(no tools)\n".into();
    }
    let mut out = table(&["NAME", "KIND", "MODE", "GROUP", "VERSION", "EDITED", "STATE"], style);
    for it in rows {
        let (state, tint) = state(it);
        out.add_row([
            plain(clean(&it.name)),
            plain(clean(&it.text.handler_type)),
            plain(mode(&it.text.mode, it.text.destructive)),
            plain(clean(&it.text.group)),
            plain(it.version.to_string()),
            plain(when(it.updated_at)),
            cell(state, tint),
        ]);
    }
    let mut out = written(&out);
    for it in rows {
        for problem in &it.problems {
            out += &paint(&clean(&format!("{}: {problem}", it.name)), Tint::Bad, style);
            out.push('\n');
        }
    }
    out
}

/// JSON, on lines of its own where it is one.
fn json(text: &str) -> String {
    let pretty = serde_json::from_str::<Value>(text).ok().and_then(|value| serde_json::to_string_pretty(&value).ok());
    let text = pretty.unwrap_or_else(|| text.to_owned());
    text.lines().map(|line| format!("\n    {}", printable(line))).collect()
}

/// One row, whole.
pub fn tool(it: &ToolRow, style: Style) -> String {
    let text = &it.text;
    let mut out = format!("{}\n", paint(&clean(&it.name), Tint::Bold, style));
    let mut line = |name: &str, text: &str| {
        // JSON begins on a line of its own.
        let gap = if text.starts_with('\n') { 0 } else { 11 };
        out += &format!("  {name:<gap$} {text}\n").replace(" \n", "\n");
    };
    line("title", &or_dash(text.title.as_deref()));
    line("category", &clean(&text.category));
    line("description", &printable(&text.description));
    line("kind", &clean(&text.handler_type));
    line("mode", &mode(&text.mode, text.destructive));
    line("idempotent", if text.idempotent { "yes" } else { "no" });
    line("group", &clean(&text.group));
    line("timeout", &text.timeout_ms.map_or_else(|| "-".to_owned(), |ms| format!("{ms} ms")));
    line("served", if text.active { "yes" } else { "no" });
    line("version", &it.version.to_string());
    line("made by", &or_dash(it.created_by.as_deref()));
    line("edited", &when(it.updated_at));
    for problem in &it.problems {
        line("wrong", &paint(&clean(&problem.to_string()), Tint::Bad, style));
    }
    line("config", &json(&text.handler_config));
    line("arguments", &json(&text.input_schema));
    if let Some(schema) = &text.output_schema {
        line("result", &json(schema));
    }
    out
}

/// What a node serves, a line each.
pub fn served(tools: &[ServedTool], style: Style) -> String {
    if tools.is_empty() {
        return "(no tools)\n".into();
    }
    let mut out = table(&["NAME", "MODE", "GROUP", "VERSION", "WHAT IT DOES"], style);
    for it in tools {
        let version = if it.version == 0 { "program's".to_owned() } else { it.version.to_string() };
        out.add_row([clean(&it.name), mode(&it.mode, it.destructive), clean(&it.group), version, brief(&it.description)]);
    }
    written(&out)
}

/// Edits of tools, a line each.
pub fn tool_edits(edits: &[ToolEdit], style: Style) -> String {
    if edits.is_empty() {
        return "(no edits)\n".into();
    }
    let mut out = table(&["TOOL", "VERSION", "WHEN", "WHO", "WHAT", "CONFIG", "WHY"], style);
    for it in edits {
        let what = if it.text.active { clean(&it.what) } else { format!("{}, off", clean(&it.what)) };
        let config = format!("{} {}", it.text.handler_type, it.text.handler_config);
        out.add_row([clean(&it.name), it.version.to_string(), when(it.at), clean(&it.who), what, brief(&config), clean(&it.why)]);
    }
    written(&out)
}

/// Rules, a line each.
pub fn rules(rules: &[ToolRule], style: Style) -> String {
    if rules.is_empty() {
        return "(no rules: operators alone may call tools)\n".into();
    }
    let mut out = table(&["TOOL", "ROLE", "EFFECT", "SINCE"], style);
    for it in rules {
        let effect = match it.effect {
            Some(effect) if effect.as_str() == "allow" => cell("allow", Tint::Good),
            Some(_) => cell("deny", Tint::Warn),
            None => cell("wrong: denies", Tint::Bad),
        };
        out.add_row([plain(clean(&it.tool)), plain(clean(&it.role)), effect, plain(when(it.created_at))]);
    }
    written(&out)
}

/// Edits of rules, a line each.
pub fn rule_edits(edits: &[RuleEdit], style: Style) -> String {
    if edits.is_empty() {
        return "(no edits)\n".into();
    }
    let mut out = table(&["EDIT", "WHEN", "WHO", "TOOL", "ROLE", "CHANGE", "WHY"], style);
    let effect = |effect: &Option<Box<str>>| effect.as_deref().map_or_else(|| "nothing".to_owned(), clean);
    for it in edits {
        let change = format!("{} -> {}", effect(&it.before), effect(&it.after));
        out.add_row([it.edit.to_string(), when(it.at), clean(&it.who), clean(&it.tool), clean(&it.role), change, clean(&it.why)]);
    }
    written(&out)
}

/// What each node makes of the rows.
pub fn tools_status(nodes: &[ToolsOn], style: Style) -> String {
    if nodes.is_empty() {
        return "(no node in reach serves tools)\n".into();
    }
    let mut out = String::new();
    for it in nodes {
        let name = paint(it.node.as_str(), Tint::Bold, style);
        let Some(status) = &it.status else {
            let why = paint(&clean(it.error.as_deref().unwrap_or_default()), Tint::Bad, style);
            out += &format!("{name}  {why}\n");
            continue;
        };
        let kinds = status.kinds.iter().map(|kind| clean(kind)).collect::<Vec<_>>().join(", ");
        out += &format!("{name}  serves {} tools; rows may be {kinds}\n", status.served);
        for wrong in &status.wrong_rows {
            let on = if wrong.serves { "serves as it was" } else { "is not served" };
            for problem in &wrong.row.problems {
                let text = clean(&format!("{} {on}: {problem}", wrong.row.name));
                out += &format!("  {}\n", paint(&text, Tint::Bad, style));
            }
        }
        let told = u32::try_from(status.wrong_rows.len()).unwrap_or(u32::MAX);
        if status.wrong > told {
            out += &format!("  and {} more rows are wrong\n", status.wrong - told);
        }
    }
    out
}

fn audited(entries: &[AuditEntry], head: &[&str], style: Style) -> String {
    let mut out = table(head, style);
    for it in entries {
        let tint = match &*it.outcome {
            "ok" => Tint::Good,
            "denied" | "unknown" | "internal" => Tint::Bad,
            _ => Tint::Warn,
        };
        let at = Timestamp::from_millisecond(it.at_ms).map_or_else(|_| it.at_ms.to_string(), |at| at.to_string());
        out.add_row([
            plain(it.id.to_string()),
            plain(at),
            plain(clean(&it.caller)),
            plain(clean(&it.transport)),
            plain(clean(&it.tool)),
            plain(it.version.map_or_else(|| "-".to_owned(), |version| version.to_string())),
            cell(&clean(&it.outcome), tint),
            plain(micros(it.took_us.try_into().unwrap_or_default())),
            plain(or_dash(it.remote.as_deref())),
        ]);
    }
    written(&out)
}

/// Calls, a line each.
pub fn audit(entries: &[AuditEntry], style: Style) -> String {
    if entries.is_empty() {
        return "(no calls)\n".into();
    }
    audited(entries, &["ID", "WHEN", "CALLER", "BY", "TOOL", "VERSION", "OUTCOME", "TOOK", "FROM"], style)
}

/// The same without the heading, for those that come after.
pub fn audit_more(entries: &[AuditEntry], style: Style) -> String {
    let out = audit(entries, style);
    out.split_once('\n').map_or_else(String::new, |(_, rest)| rest.to_owned())
}

/// What became of imported rows that somebody should look at.
pub fn tools_imported(it: &ToolsImported, style: Style) -> String {
    let mut out = String::new();
    for left in &it.left {
        out += &format!("{} was left: {}\n", clean(&left.name), clean(&left.why));
    }
    for wrong in &it.wrong {
        for problem in &wrong.problems {
            out += &paint(&clean(&format!("{}: {problem}", wrong.name)), Tint::Bad, style);
            out.push('\n');
        }
    }
    for name in &it.closed {
        out += &format!("{}: no rule lets anybody call it\n", clean(name));
    }
    out
}

#[cfg(test)]
mod tests {
    use horos_wire::protocol::{
        registry::{Effect, LeftTool, Problem, ToolText, WrongTool},
        tools::{ToolsStatus, WrongRow},
    };

    use super::*;

    fn text() -> ToolText {
        ToolText {
            category: "shop".into(),
            title: Some("Lev\u{1b}els".into()),
            description: "Tells\nall.".into(),
            input_schema: r#"{"type":"object"}"#.into(),
            output_schema: None,
            handler_type: "sql_query".into(),
            handler_config: r#"{"query":"SELECT '\u009b2J'"}"#.into(),
            mode: "readwrite".into(),
            destructive: true,
            idempotent: false,
            group: "default".into(),
            timeout_ms: Some(5),
            active: true,
        }
    }

    fn problem() -> Problem {
        Problem { key: "handler_config.query".into(), what: "two \u{9b}2Jstatements".into() }
    }

    fn row(active: bool, problems: Vec<Problem>) -> ToolRow {
        let text = ToolText { active, ..text() };
        ToolRow { name: "levels\u{202e}".into(), text, version: 7, created_by: Some("operator@ana".into()), updated_at: 0, problems }
    }

    fn is_quiet(shown: &str) {
        assert!(shown.chars().all(|c| c == '\n' || !c.is_control() && c != '\u{202e}'), "{shown:?}");
    }

    #[test]
    fn tools_are_a_table_with_what_is_wrong_below_it_and_give_the_terminal_no_orders() {
        let rows = [row(true, vec![]), row(false, vec![]), row(true, vec![problem()])];
        let shown = tools(&rows, Style::PLAIN);
        assert_eq!(shown.lines().count(), 5, "{shown}");
        for text in ["readwrite, asks twice", " on", " off", " wrong", "handler_config.query: two  2Jstatements", "1970-01-01T00:00:00Z"] {
            assert!(shown.contains(text), "{text}: {shown}");
        }
        is_quiet(&shown);
        assert_eq!(tools(&[], Style::PLAIN), "(no tools)\n");
        let whole = tool(&rows[2], Style::PLAIN);
        assert!(whole.contains("made by     operator@ana") && whole.contains("\"query\""), "{whole}");
        is_quiet(&whole);
    }

    #[test]
    fn an_edit_says_who_what_and_why() {
        let edit = ToolEdit {
            edit: 3,
            name: "levels".into(),
            version: 2,
            at: 0,
            who: "operator@ana".into(),
            why: "it\u{1b}was slow".into(),
            what: "updated".into(),
            text: ToolText { active: false, ..text() },
            cut: false,
        };
        let shown = tool_edits(&[edit], Style::PLAIN);
        assert!(shown.contains("operator@ana") && shown.contains("updated, off") && shown.contains("it was slow"), "{shown}");
        is_quiet(&shown);
        let edit = |before: Option<&str>, after: Option<&str>| RuleEdit {
            edit: 1,
            at: 0,
            who: "sql".into(),
            why: "".into(),
            tool: "*".into(),
            role: "*".into(),
            before: before.map(Into::into),
            after: after.map(Into::into),
        };
        let shown = rule_edits(&[edit(None, Some("allow")), edit(Some("allow"), None)], Style::PLAIN);
        assert!(shown.contains("nothing -> allow") && shown.contains("allow -> nothing"), "{shown}");
    }

    #[test]
    fn a_rule_that_is_neither_is_shown_to_deny() {
        let rule = |effect| ToolRule { id: 1, tool: "a*".into(), role: "scope:x".into(), effect, created_at: 0 };
        let shown = rules(&[rule(Some(Effect::Allow)), rule(Some(Effect::Deny)), rule(None)], Style::PLAIN);
        for text in ["allow", "deny", "wrong: denies"] {
            assert!(shown.contains(text), "{text}: {shown}");
        }
        assert!(rules(&[], Style::PLAIN).contains("operators alone"));
    }

    #[test]
    fn what_each_node_makes_of_the_rows_is_told_with_what_is_wrong() {
        let status = ToolsStatus {
            served: 9,
            kinds: vec!["actor".into(), "sql_query".into()],
            generation: 1,
            wrong: 3,
            wrong_rows: vec![WrongRow { row: WrongTool { name: "levels".into(), problems: vec![problem()] }, serves: true }],
        };
        let on = |node: &str, status, error: Option<&str>| ToolsOn { node: node.parse().unwrap(), status, error: error.map(Into::into) };
        let shown = tools_status(&[on("bo-1", Some(status), None), on("fo-1", None, Some("no\u{1b}route"))], Style::PLAIN);
        for text in [
            "bo-1  serves 9 tools; rows may be actor, sql_query",
            "levels serves as it was: handler_config",
            "and 2 more",
            "fo-1  no route",
        ] {
            assert!(shown.contains(text), "{text}: {shown}");
        }
        is_quiet(&shown);
    }

    #[test]
    fn calls_are_a_line_each_and_what_follows_has_no_heading() {
        let entry = AuditEntry {
            id: 5,
            at_ms: 1_500,
            tool: "lev\u{1b}els".into(),
            version: None,
            caller: "key_ana".into(),
            transport: "http".into(),
            session: None,
            remote: Some("192.0.2.7:0".into()),
            outcome: "denied".into(),
            took_us: 1_200,
            request: None,
            trace: None,
            arguments: "00".into(),
            confirmed: false,
        };
        let shown = audit(std::slice::from_ref(&entry), Style::PLAIN);
        assert!(shown.contains("CALLER") && shown.contains("1970-01-01T00:00:01.5Z") && shown.contains("1.2ms"), "{shown}");
        is_quiet(&shown);
        let more = audit_more(&[entry], Style::PLAIN);
        assert!(!more.contains("CALLER") && more.contains("key_ana") && more.lines().count() == 1, "{more}");
        let imported = ToolsImported {
            left: vec![LeftTool { name: "a".into(), why: "too\u{1b}large".into() }],
            wrong: vec![WrongTool { name: "b".into(), problems: vec![problem()] }],
            closed: vec!["c".into()],
            ..ToolsImported::default()
        };
        let shown = tools_imported(&imported, Style::PLAIN);
        assert!(shown.contains("a was left: too large") && shown.contains("b: handler_config") && shown.contains("c: no rule"), "{shown}");
        is_quiet(&shown);
    }
}
