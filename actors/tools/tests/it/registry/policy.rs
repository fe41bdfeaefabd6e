//! Who may list and call what.

use horos_tools::{Mode, Policy, Registry, Rule, reload};

use super::world::{File, key, kinds, node, own};

fn rule(tool: &str, role: &str, allows: bool) -> Rule {
    Rule { tool: tool.into(), role: role.into(), allows }
}

#[test]
fn without_a_rule_nobody_may_but_operators_and_viewers_what_only_reads() {
    let policy = Policy::default();
    let (reads, writes) = (own("look", Mode::ReadOnly), own("change", Mode::ReadWrite));
    for (caller, may_look, may_change) in [
        (node("spiffe://shop/operator/ana"), true, true),
        (node("spiffe://shop/viewer/vic"), true, false),
        (node("spiffe://shop/bo/bo-1"), false, false),
        (node("spiffe://shop/fo/fo-1"), false, false),
        (key("ana", &["shop", "admin"]), false, false),
    ] {
        let of = policy.of(&caller);
        assert_eq!((of.permits(&reads), of.permits(&writes)), (may_look, may_change), "{caller:?}");
        assert_eq!((policy.permits(&caller, &reads), policy.permits(&caller, &writes)), (may_look, may_change), "{caller:?}");
    }
}

#[test]
fn a_rule_allows_by_name_or_beginning_and_role_and_any_that_denies_beats_all_that_allow() {
    let tools = ["stock.find", "stock.order", "mail.send"].map(|name| own(name, Mode::ReadWrite));
    let shop = key("ana", &["shop"]);
    for (rules, may) in [
        (vec![rule("stock.find", "shop", true)], [true, false, false]),
        (vec![rule("stock.*", "scope:shop", true)], [true, true, false]),
        (vec![rule("*", "*", true)], [true, true, true]),
        (vec![rule("*", "key:ana", true)], [true, true, true]),
        (vec![rule("*", "key:ben", true)], [false, false, false]),
        (vec![rule("*", "user:ana", true)], [false, false, false]),
        (vec![rule("*", "node:operator", true)], [false, false, false]),
        (vec![rule("*", "shop", true), rule("stock.*", "*", false)], [false, false, true]),
        (vec![rule("stock.order", "shop", false), rule("stock.*", "shop", true)], [true, false, false]),
        (vec![rule("stock.order", "shop", true), rule("stock.order", "shop", false), rule("stock.order", "shop", true)], [false; 3]),
        (vec![rule("stock", "shop", true)], [false, false, false]),
        (vec![rule("Stock.find", "shop", true)], [false, false, false]),
        (vec![rule("stock.find*", "shop", true)], [true, false, false]),
        (vec![rule("*", "", true)], [false, false, false]),
    ] {
        let policy = Policy::new(rules.clone());
        let of = policy.of(&shop);
        assert_eq!([0, 1, 2].map(|at| of.permits(&tools[at])), may, "{rules:?}");
        assert_eq!([0, 1, 2].map(|at| policy.allows(&shop, &tools[at].spec.name)), may, "{rules:?}");
    }
    // No row is for operators; for viewers one may deny and allow.
    let policy = Policy::new(vec![rule("stock.*", "*", false), rule("mail.send", "node:viewer", true)]);
    let viewer = node("spiffe://shop/viewer/vic");
    assert!(policy.permits(&node("spiffe://shop/operator/ana"), &tools[0]));
    assert!(!policy.permits(&viewer, &own("stock.see", Mode::ReadOnly)) && policy.permits(&viewer, &tools[2]));
}

/// A row that cannot be understood denies what it may have meant, and allows nothing.
#[test]
fn a_row_that_cannot_be_read_fails_closed_and_is_shown() {
    let caller = key("ana", &["shop"]);
    let all = "INSERT INTO mcp_tool_policy (tool_name, role, effect) VALUES ('*', '*', 'allow');";
    for (row, may, at) in [
        ("('a', 'shop', 'perhaps')", [false, true], "effect"),
        ("('a', 'shop', 'ALLOW')", [false, true], "effect"),
        ("('a', 'shop', '')", [false, true], "effect"),
        ("('a', 'shop', x'64656e79')", [false, true], "effect"),
        ("('a', x'ff', 'deny')", [false, true], "role"),
        ("('a', x'73686f70', 'deny')", [false, true], "role"),
        ("(x'61', 'shop', 'deny')", [false, false], "tool_name"),
        ("(CAST(x'ff' AS TEXT), 'shop', 'deny')", [false, false], "tool_name"),
        ("('a*x', 'shop', 'deny')", [false, true], "tool_name"),
        ("('*x', 'shop', 'deny')", [false, false], "tool_name"),
        ("(printf('%.*c', 2000, 'a'), 'shop', 'deny')", [false, false], "tool_name"),
        ("('a', printf('%.*c', 2000, 'a'), 'deny')", [false, true], "role"),
    ] {
        let file = File::new();
        let registry = Registry::new(kinds().0, vec![own("a", Mode::ReadOnly), own("b", Mode::ReadOnly)]);
        file.write(&format!("{all} INSERT INTO mcp_tool_policy (tool_name, role, effect) VALUES {row}"));
        reload::load(&registry, &file.path).unwrap();
        let snapshot = registry.snapshot();
        let of = snapshot.policy.of(&caller);
        assert_eq!(["a", "b"].map(|name| of.permits(&snapshot.tools[name])), may, "{row}");
        let problems = snapshot.policy.problems();
        assert!(problems.len() == 1 && problems[0].at.ends_with(at), "{row}: {problems:?}");
        assert!(snapshot.trouble().unwrap().contains("mcp_tool_policy 2"), "{row}");
        // The same row, where it would allow, allows nothing.
        if at != "effect" {
            file.write(&format!(
                "DELETE FROM mcp_tool_policy; INSERT INTO mcp_tool_policy (tool_name, role, effect) VALUES {}",
                row.replace("'deny'", "'allow'")
            ));
            reload::load(&registry, &file.path).unwrap();
            let snapshot = registry.snapshot();
            assert!(!snapshot.tools.values().any(|tool| snapshot.policy.permits(&caller, tool)), "{row}");
        }
    }
}

#[test]
fn with_too_many_rules_nobody_may_for_any_of_them_may_deny() {
    let file = File::new();
    let registry = Registry::new(kinds().0, vec![own("a", Mode::ReadOnly)]);
    file.write("INSERT INTO mcp_tool_policy (tool_name) VALUES ('a')");
    reload::load(&registry, &file.path).unwrap();
    let may = || registry.snapshot().policy.permits(&key("ana", &[]), &registry.snapshot().tools["a"]);
    assert!(may());
    file.write(
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 10000)
         INSERT INTO mcp_tool_policy (tool_name, role) SELECT 'x' || i, 'y' FROM n",
    );
    assert!(matches!(reload::load(&registry, &file.path), Err(reload::ReloadError::TooManyRules)));
    assert!(!may());
    let viewer = node("spiffe://shop/viewer/vic");
    assert!(
        !registry.snapshot().policy.permits(&viewer, &registry.snapshot().tools["a"]),
        "who needs no rule to be allowed may be denied by one"
    );
    file.write("DELETE FROM mcp_tool_policy WHERE tool_name = 'x10000'");
    reload::load(&registry, &file.path).unwrap();
    assert!(may());
}
