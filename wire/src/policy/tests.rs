use proptest::prelude::*;

use super::*;

/// The whole policy of `horos.node`, as a person would check it: one line a method, and in it whether a
/// bo, fo, operator and viewer may call it. Any node answers alike.
const EXPECTED: &[(&str, [bool; 4])] = &[
    ("tree", [true, true, true, true]),
    ("actors", [true, true, true, true]),
    ("describe", [true, true, true, true]),
    ("recorder", [false, false, true, true]),
    ("restart", [false, false, true, false]),
    ("crash", [false, false, true, false]),
    ("status", [true, true, true, true]),
    ("revoke", [false, false, true, false]),
    ("serving", [false, false, true, true]),
    ("maintain", [false, false, true, false]),
    ("control_owner", [false, false, true, true]),
];

#[test]
fn every_pair_of_roles_may_call_exactly_what_the_matrix_says() {
    let policy = Policy::builtin();
    assert_eq!(Node::methods().len(), EXPECTED.len(), "a new method needs a line above");
    for (method, (name, by_caller)) in Node::methods().iter().zip(EXPECTED) {
        assert_eq!(method.name, *name);
        for (caller, expected) in Role::ALL.into_iter().zip(by_caller) {
            for callee in Role::ALL {
                let expected = *expected && matches!(callee, Role::Bo | Role::Fo);
                let pair = format!("{caller} calls {name} on {callee}");
                assert_eq!(policy.may_call(caller, callee, Node::NAME, method.number), expected, "{pair}");
                let set = policy.permitted(caller, callee, Node::NAME, Node::methods());
                assert_eq!(set.contains(method.number), expected, "{pair}");
            }
        }
    }
}

/// The same for `horos.keys`, which only a bo answers.
const EXPECTED_KEYS: &[(&str, [bool; 4])] = &[
    ("create", [false, false, true, false]),
    ("list", [false, false, true, true]),
    ("revoke", [false, false, true, false]),
    ("trust_issuer", [false, false, true, false]),
    ("distrust_issuer", [false, false, true, false]),
    ("issuers", [false, false, true, false]),
    ("issue_token", [false, false, true, false]),
    ("revoke_token", [false, false, true, false]),
    ("refused", [false, false, true, false]),
    ("changes", [true, true, true, false]),
    ("report", [true, true, true, false]),
];

#[test]
fn keys_are_made_by_operators_alone_and_answered_for_by_a_bo_alone() {
    let policy = Policy::builtin();
    assert_eq!(Keys::methods().len(), EXPECTED_KEYS.len(), "a new method needs a line above");
    for (method, (name, by_caller)) in Keys::methods().iter().zip(EXPECTED_KEYS) {
        assert_eq!(method.name, *name);
        for (caller, expected) in Role::ALL.into_iter().zip(by_caller) {
            for callee in Role::ALL {
                let expected = *expected && callee == Role::Bo;
                let pair = format!("{caller} calls {name} on {callee}");
                assert_eq!(policy.may_call(caller, callee, Keys::NAME, method.number), expected, "{pair}");
                let set = policy.permitted(caller, callee, Keys::NAME, Keys::methods());
                assert_eq!(set.contains(method.number), expected, "{pair}");
            }
        }
    }
    assert_eq!(Role::ALL.map(|role| policy.may_offer(role, Keys::NAME)), [true, false, false, false]);
}

/// The same for `horos.control`, which only a bo answers.
const EXPECTED_CONTROL: &[(&str, [bool; 4])] = &[
    ("set_route", [false, false, true, false]),
    ("delete_route", [false, false, true, false]),
    ("list", [true, true, true, true]),
    ("get", [true, true, true, true]),
    ("set_strategy", [false, false, true, false]),
    ("history", [false, false, true, true]),
    ("rollback", [false, false, true, false]),
    ("force_breaker", [false, false, true, false]),
    ("reset_breaker", [false, false, true, false]),
    ("forced", [true, true, true, true]),
    ("import", [false, false, true, false]),
];

#[test]
fn routes_are_edited_by_operators_alone_and_kept_by_a_bo_alone() {
    let policy = Policy::builtin();
    assert_eq!(Control::methods().len(), EXPECTED_CONTROL.len(), "a new method needs a line above");
    for (method, (name, by_caller)) in Control::methods().iter().zip(EXPECTED_CONTROL) {
        assert_eq!(method.name, *name);
        for (caller, expected) in Role::ALL.into_iter().zip(by_caller) {
            for callee in Role::ALL {
                let expected = *expected && callee == Role::Bo;
                assert_eq!(policy.may_call(caller, callee, Control::NAME, method.number), expected, "{caller} calls {name} on {callee}");
            }
        }
    }
    assert_eq!(Role::ALL.map(|role| policy.may_offer(role, Control::NAME)), [true, false, false, false]);
}

/// The same for `horos.router`, which any node answers for itself.
const EXPECTED_ROUTER: &[(&str, [bool; 4])] =
    &[("list", [true, true, true, true]), ("get", [false, false, true, true]), ("breakers", [true, true, true, true])];

#[test]
fn what_a_router_does_is_seen_by_everybody_of_the_cluster_and_changed_by_nobody() {
    let policy = Policy::builtin();
    assert_eq!(Router::methods().len(), EXPECTED_ROUTER.len(), "a new method needs a line above");
    for (method, (name, by_caller)) in Router::methods().iter().zip(EXPECTED_ROUTER) {
        assert_eq!(method.name, *name);
        for (caller, expected) in Role::ALL.into_iter().zip(by_caller) {
            for callee in Role::ALL {
                let expected = *expected && callee.is_node();
                let pair = format!("{caller} calls {name} on {callee}");
                assert_eq!(policy.may_call(caller, callee, Router::NAME, method.number), expected, "{pair}");
                assert_eq!(policy.permitted(caller, callee, Router::NAME, Router::methods()).contains(method.number), expected, "{pair}");
            }
        }
    }
    assert_eq!(Role::ALL.map(|role| policy.may_offer(role, Router::NAME)), [true, true, false, false]);
}

/// The same for `horos.registry`, which only a bo answers.
const EXPECTED_REGISTRY: &[(&str, [bool; 4])] = &[
    ("set", [false, false, true, false]),
    ("delete", [false, false, true, false]),
    ("turn", [false, false, true, false]),
    ("rollback", [false, false, true, false]),
    ("list", [false, false, true, true]),
    ("get", [false, false, true, true]),
    ("history", [false, false, true, true]),
    ("set_rule", [false, false, true, false]),
    ("drop_rule", [false, false, true, false]),
    ("rules", [false, false, true, true]),
    ("rule_history", [false, false, true, true]),
    ("import", [false, false, true, false]),
];
/// And for `horos.tools`, which any node answers; what nodes pass on goes to a bo alone.
const EXPECTED_TOOLS: &[(&str, [bool; 4])] = &[
    ("status", [false, false, true, true]),
    ("served", [false, false, true, true]),
    ("audit", [false, false, true, true]),
    ("call", [false, false, true, false]),
    ("pass_on", [true, true, false, false]),
];

#[test]
fn tools_are_edited_and_called_by_operators_alone_and_passed_on_by_nodes_to_a_bo_alone() {
    let policy = Policy::builtin();
    for (protocol, methods, expected) in
        [(Registry::NAME, Registry::methods(), EXPECTED_REGISTRY), (Tools::NAME, Tools::methods(), EXPECTED_TOOLS)]
    {
        assert_eq!(methods.len(), expected.len(), "a new method needs a line above");
        for (method, (name, by_caller)) in methods.iter().zip(expected) {
            assert_eq!(method.name, *name);
            for (caller, expected) in Role::ALL.into_iter().zip(by_caller) {
                for callee in Role::ALL {
                    let answers = callee == Role::Bo || callee == Role::Fo && protocol == Tools::NAME && *name != "pass_on";
                    let expected = *expected && answers;
                    let pair = format!("{caller} calls {protocol}.{name} on {callee}");
                    assert_eq!(policy.may_call(caller, callee, protocol, method.number), expected, "{pair}");
                    assert_eq!(policy.permitted(caller, callee, protocol, methods).contains(method.number), expected, "{pair}");
                }
            }
        }
    }
    assert_eq!(Role::ALL.map(|role| policy.may_offer(role, Registry::NAME)), [true, false, false, false]);
    assert_eq!(Role::ALL.map(|role| policy.may_offer(role, Tools::NAME)), [true, true, false, false]);
}

/// The same for `horos.sync`, which only a bo answers, and `horos.replica`, which any node does.
const EXPECTED_SYNC: &[(&str, [bool; 4])] = &[
    ("subscribe", [true, true, true, false]),
    ("status", [true, true, true, true]),
    ("verify", [false, false, true, false]),
    ("head", [true, true, true, false]),
];
const EXPECTED_REPLICA: &[(&str, [bool; 4])] = &[
    ("apply", [true, false, true, false]),
    ("status", [true, false, true, true]),
    ("have", [true, false, true, false]),
    ("rollback", [false, false, true, false]),
    ("resume", [false, false, true, false]),
];

#[test]
fn a_bo_feeds_replicas_and_an_fo_only_asks_to_be_fed() {
    let policy = Policy::builtin();
    for (protocol, methods, expected) in
        [(Sync::NAME, Sync::methods(), EXPECTED_SYNC), (Replica::NAME, Replica::methods(), EXPECTED_REPLICA)]
    {
        assert_eq!(methods.len(), expected.len(), "a new method needs a line above");
        for (method, (name, by_caller)) in methods.iter().zip(expected) {
            assert_eq!(method.name, *name);
            for (caller, expected) in Role::ALL.into_iter().zip(by_caller) {
                for callee in Role::ALL {
                    let expected = *expected && (callee == Role::Bo || callee == Role::Fo && protocol == Replica::NAME);
                    let pair = format!("{caller} calls {name} on {callee}");
                    assert_eq!(policy.may_call(caller, callee, protocol, method.number), expected, "{pair}");
                    assert_eq!(policy.permitted(caller, callee, protocol, methods).contains(method.number), expected, "{pair}");
                }
            }
        }
    }
    assert_eq!(Role::ALL.map(|role| policy.may_offer(role, Sync::NAME)), [true, false, false, false]);
    assert_eq!(Role::ALL.map(|role| policy.may_offer(role, Replica::NAME)), [true, true, false, false]);
}

#[test]
fn what_no_rule_names_is_denied() {
    let policy = Policy::builtin();
    for caller in Role::ALL {
        for callee in Role::ALL {
            for protocol in ["stock", "horos.nod", "horos.node ", "HOROS.NODE", ""] {
                assert!(!policy.may_call(caller, callee, protocol, 1));
                assert!(policy.permitted(caller, callee, protocol, Node::methods()).is_empty());
                assert!(!policy.may_offer(caller, protocol));
            }
            if caller != Role::Operator {
                for method in (0..=u16::MAX).filter(|number| !Node::methods().iter().any(|method| method.number == *number)) {
                    assert!(!policy.may_call(caller, callee, Node::NAME, method), "a method of a later release");
                }
            }
        }
    }
}

#[test]
fn only_nodes_offer_and_only_what_the_policy_lists_for_them() {
    let mut policy = Policy::builtin();
    for role in Role::ALL {
        assert_eq!(policy.may_offer(role, Node::NAME), role.is_node());
    }
    policy.offer(Role::Bo, "stock").unwrap();
    assert!(policy.may_offer(Role::Bo, "stock") && !policy.may_offer(Role::Fo, "stock"));
    assert_eq!(policy.offer(Role::Viewer, "stock"), Err(PolicyError::NoNode(Role::Viewer)));
    assert_eq!(policy.offer(Role::Fo, "horos.store"), Err(PolicyError::Reserved("horos.store".into())));
}

#[test]
fn a_rule_allows_its_pair_and_no_other() {
    let rule = Rule { caller: Role::Fo, callee: Role::Bo, protocol: "stock".into(), methods: Allowed::List([1, 300].into()) };
    let mut policy = Policy::builtin();
    policy.allow(rule.clone()).unwrap();
    for caller in Role::ALL {
        for callee in Role::ALL {
            for method in [0, 1, 2, 128, 300, u16::MAX] {
                let expected = (caller, callee) == (Role::Fo, Role::Bo) && [1, 300].contains(&method);
                assert_eq!(policy.may_call(caller, callee, "stock", method), expected);
            }
        }
    }
    policy.allow(Rule { methods: Allowed::All, ..rule }).unwrap();
    assert!(policy.may_call(Role::Fo, Role::Bo, "stock", 2), "rules add up");
}

#[test]
fn no_rule_loosens_what_is_horos_own() {
    let mut policy = Policy::builtin();
    let rule = |protocol: &str, callee| Rule { caller: Role::Fo, callee, protocol: protocol.into(), methods: Allowed::All };
    assert_eq!(policy.allow(rule(Node::NAME, Role::Bo)), Err(PolicyError::Reserved(Node::NAME.into())));
    assert_eq!(policy.allow(rule("stock", Role::Operator)), Err(PolicyError::NoNode(Role::Operator)));
    assert!(!policy.may_call(Role::Fo, Role::Bo, Node::NAME, 6));
    while policy.allow(rule("stock", Role::Bo)).is_ok() {}
    assert_eq!(policy.rules.len(), MAX_RULES);
}

#[test]
fn the_rows_say_what_the_policy_does() {
    let mut policy = Policy::builtin();
    policy.allow(Rule { caller: Role::Fo, callee: Role::Bo, protocol: "stock".into(), methods: Allowed::All }).unwrap();
    let rows = policy.rows();
    let known = [
        (Node::NAME, Node::methods()),
        (Control::NAME, Control::methods()),
        (Keys::NAME, Keys::methods()),
        (RoutedCalls::NAME, RoutedCalls::methods()),
        (Router::NAME, Router::methods()),
        (Sync::NAME, Sync::methods()),
        (Replica::NAME, Replica::methods()),
        (Registry::NAME, Registry::methods()),
        (Tools::NAME, Tools::methods()),
    ];
    assert_eq!(rows.len(), (known.iter().map(|(_, methods)| methods.len()).sum::<usize>() + 1) * 2 * 4);
    for row in &rows {
        let methods = known.into_iter().find(|(name, _)| **name == *row.protocol).map_or(&[][..], |(_, methods)| methods);
        let number = methods.iter().find(|method| *method.name == *row.method).map_or(1, |method| method.number);
        assert_eq!(row.allowed, policy.may_call(row.caller, row.callee, &row.protocol, number), "{row}");
    }
    assert!(rows.iter().any(|row| row.to_string() == "fo may call stock.* on bo"));
    let json = serde_json::to_string(&rows[0]).unwrap();
    assert_eq!(json, r#"{"caller":"bo","callee":"bo","protocol":"horos.control","method":"set_route","allowed":false}"#);
}

#[test]
fn only_an_fo_sees_no_error_texts() {
    assert_eq!(Role::ALL.map(sees_errors), [true, false, true, true]);
}

proptest! {
    #[test]
    fn a_method_set_holds_what_was_put_in_and_nothing_else(put in prop::collection::btree_set(any::<u16>(), 0..40), asked: u16) {
        let set: MethodSet = put.iter().rev().copied().collect();
        prop_assert_eq!(set.len(), put.len());
        prop_assert_eq!(set.is_empty(), put.is_empty());
        prop_assert_eq!(set.contains(asked), put.contains(&asked));
        for method in put { prop_assert!(set.contains(method)) }
    }
}
