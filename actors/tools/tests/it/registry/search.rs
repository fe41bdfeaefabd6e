//! A handful of tools out of many, by words.

use horos_tools::{Registry, Row};

use super::world::{kinds, row};

fn tool(name: &str, title: &str, description: &str, arguments: &str) -> Row {
    let arguments: Vec<_> = arguments.split_whitespace().map(|name| format!(r#""{name}":{{"description":"the {name}"}}"#)).collect();
    let input_schema = format!(r#"{{"type":"object","properties":{{{}}}}}"#, arguments.join(",")).into();
    Row { title: Some(title.into()), description: description.into(), input_schema, ..row(name) }
}

fn shop() -> Vec<Row> {
    vec![
        tool("invoice_create", "Create an invoice", "Writes an invoice for a customer and numbers it", "customer lines due"),
        tool("invoice_find", "Find invoices", "Finds invoices by customer, date or state", "customer from until"),
        tool("invoice_void", "Void an invoice", "Takes an invoice back", "number reason"),
        tool("customerMerge", "Merge customers", "Makes one customer of two that are the same", "keep drop"),
        tool("stock.level", "Stock level", "How much of an article there is in each warehouse", "sku warehouse"),
        tool("stock.reserve", "Reserve stock", "Reserves some of an article for an order", "sku quantity order"),
        tool("mail_send", "Send mail", "Sends a letter by mail to a customer", "to subject body"),
        tool("commande_réserver", "Réserver", "Réserve des marchandises pour une commande", "référence quantité"),
        tool("zaiko", "在庫", "在庫を引き当てる", "sku"),
    ]
}

fn found(registry: &Registry, query: &str, limit: usize) -> Vec<String> {
    registry.snapshot().search(query, limit, |_| true).iter().map(|tool| tool.spec.name.to_string()).collect()
}

#[test]
fn the_tool_that_is_meant_comes_first() {
    let registry = Registry::new(kinds().0, Vec::new());
    registry.take(shop(), Vec::new());
    for (query, best) in [
        ("create invoice", "invoice_create"),
        ("Create INVOICES!", "invoice_create"),
        ("find the invoices of a customer", "invoice_find"),
        ("void", "invoice_void"),
        ("customerMerge", "customerMerge"),
        ("customermerge", "customerMerge"),
        ("merge two customers", "customerMerge"),
        ("warehouse", "stock.level"),
        ("reserve article", "stock.reserve"),
        ("stock.level", "stock.level"),
        ("STOCK.LEVEL", "stock.level"),
        ("subject body", "mail_send"),
        ("send lett", "mail_send"),
        ("reserver marchandise", "commande_réserver"),
        ("quantité référence", "commande_réserver"),
        ("在庫", "zaiko"),
        ("inv vo", "invoice_void"),
    ] {
        // One row has a name that no tool may have, and is not found.
        let expected = if best == "commande_réserver" { None } else { Some(best) };
        assert_eq!(found(&registry, query, 1).first().map(String::as_str).filter(|_| expected.is_some()), expected, "{query}");
    }
    assert!(found(&registry, "", 5).is_empty() && found(&registry, "!!! --", 5).is_empty());
    assert!(found(&registry, "submarine", 5).is_empty());
    assert_eq!(found(&registry, "invoice", 2).len(), 2, "no more than was asked for");
    assert!(found(&registry, "invoice", 0).is_empty());
}

#[test]
fn only_what_may_be_seen_is_found_and_it_takes_no_place_of_another() {
    let registry = Registry::new(kinds().0, Vec::new());
    registry.take(shop(), Vec::new());
    let may = |tool: &horos_tools::Definition| !tool.spec.name.starts_with("invoice_c");
    let found: Vec<_> = registry.snapshot().search("create invoice", 2, may).iter().map(|tool| tool.spec.name.to_string()).collect();
    assert_eq!(found.len(), 2);
    assert!(!found.contains(&"invoice_create".to_owned()));
}

/// Whatever edits led to it, an index finds what one made anew would.
#[test]
fn after_any_edits_the_index_finds_what_there_is_and_nothing_else() {
    let registry = Registry::new(kinds().0, Vec::new());
    let many = |edited: usize| -> Vec<Row> {
        (0..600)
            .filter(|n| *n >= edited / 3)
            .map(|n| {
                let words = if n < edited { "entirely otherwise" } else { "as it was" };
                tool(&format!("tool_{n:03}"), "", &format!("{words} number{n}"), "")
            })
            .collect()
    };
    for edited in [0, 1, 2, 30, 31, 60, 61, 200, 400, 30, 0] {
        registry.take(many(edited), Vec::new());
        let gone = edited / 3;
        assert_eq!(found(&registry, "otherwise", 1_000).len(), edited - gone, "{edited}");
        assert_eq!(found(&registry, "was", 1_000).len(), 600 - edited, "{edited}");
        assert_eq!(found(&registry, "tool", 1_000).len(), 600 - gone, "{edited}");
        assert_eq!(found(&registry, "number0", 1).len(), usize::from(gone == 0), "{edited}");
        assert_eq!(found(&registry, "number599", 1), ["tool_599"]);
        for tool in registry.snapshot().search("tool", 1_000, |_| true) {
            assert!(std::sync::Arc::ptr_eq(&tool, &registry.snapshot().tools[&tool.spec.name]), "{edited}: an old one");
        }
    }
    registry.take(Vec::new(), Vec::new());
    assert!(found(&registry, "tool", 10).is_empty());
}

#[test]
fn a_query_of_any_length_is_answered() {
    let registry = Registry::new(kinds().0, Vec::new());
    registry.take(shop(), Vec::new());
    for query in
        ["invoice ".repeat(10_000), "é".repeat(10_000), "a b c d e f g h i j k l m n o p q r s t u v w x y z".repeat(40), "\0".into()]
    {
        found(&registry, &query, 5);
    }
    assert!(found(&registry, &format!("{} void", "x ".repeat(5)), 5).contains(&"invoice_void".to_owned()));
}
