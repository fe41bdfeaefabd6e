//! Schemas of somebody else's: whatever they say, a check ends soon and takes little.

use std::time::{Duration, Instant};

use horos_tools::{Definition, Registry, Row};
use serde_json::{Value, json};

use super::world::{kinds, row};

/// What any check of the tests below may take at most, in a debug build on a busy machine; what is not bounded takes days.
const BOUND: Duration = Duration::from_secs(20);

fn tool(schema: &Value) -> Result<std::sync::Arc<Definition>, Vec<String>> {
    let registry = Registry::new(kinds().0, Vec::new());
    registry.take(vec![Row { input_schema: schema.to_string().into(), ..row("t") }], Vec::new());
    let snapshot = registry.snapshot();
    match snapshot.tools.get("t") {
        Some(tool) => Ok(tool.clone()),
        None => Err(snapshot.wrong[0].problems.iter().map(ToString::to_string).collect()),
    }
}

fn check(tool: &Definition, arguments: Value) -> Result<Value, Vec<String>> {
    let Value::Object(arguments) = arguments else { unreachable!() };
    match tool.arguments(arguments) {
        Ok(arguments) => Ok(arguments.into()),
        Err(problems) => Err(problems.iter().map(ToString::to_string).collect()),
    }
}

#[test]
fn arguments_are_checked_whole_and_each_problem_is_told_at_its_place() {
    let schema = json!({"type": "object", "required": ["sku"], "additionalProperties": false, "properties": {
        "sku": {"type": "string", "pattern": "^[a-z]{1,8}$"},
        "count": {"type": "integer", "minimum": 1, "maximum": 10},
        "kind": {"enum": ["a", "b"]},
        "on": {"type": "string", "format": "date"},
        "tags": {"type": "array", "items": {"type": "string"}, "maxItems": 2, "uniqueItems": true},
    }});
    let tool = tool(&schema).unwrap();
    for right in [json!({"sku": "tea"}), json!({"sku": "tea", "count": 10, "kind": "b", "on": "2026-11-22", "tags": ["x", "y"]})] {
        assert_eq!(check(&tool, right.clone()), Ok(right));
    }
    for (arguments, problem) in [
        (json!({}), "lacks \"sku\""),
        (json!({"sku": "TEA"}), "/sku: does not match ^[a-z]{1,8}$"),
        (json!({"sku": 5}), "/sku: is no string"),
        (json!({"sku": "tea", "count": 0}), "/count: is less than 1"),
        (json!({"sku": "tea", "count": 11}), "/count: is more than 10"),
        (json!({"sku": "tea", "count": 1.5}), "/count: is no integer"),
        (json!({"sku": "tea", "count": "1"}), "/count: is no integer"),
        (json!({"sku": "tea", "kind": "c"}), "/kind: is not one of [\"a\",\"b\"]"),
        (json!({"sku": "tea", "on": "tomorrow"}), "/on: is no date"),
        (json!({"sku": "tea", "tags": ["x", 5]}), "/tags/1: is no string"),
        (json!({"sku": "tea", "tags": ["x", "x"]}), "/tags: has an item twice"),
        (json!({"sku": "tea", "more": 1}), "has unknown \"more\""),
    ] {
        assert_eq!(check(&tool, arguments), Err(vec![problem.to_owned()]));
    }
    let several = check(&tool, json!({"count": 0, "kind": "c"})).unwrap_err();
    assert_eq!(several.len(), 3, "{several:?}");
}

#[test]
fn what_is_wrong_is_told_in_few_words_however_much_is_wrong() {
    let tool = tool(&json!({"type": "object", "properties": {"a": {"type": "array", "items": {"enum": ["x".repeat(5_000)]}}}})).unwrap();
    for count in [3, 1_000, 200_000] {
        let told = check(&tool, json!({"a": vec!["y".repeat(10); count]})).unwrap_err();
        assert!(!told.is_empty() && told.len() <= 10 && told.iter().all(|problem| problem.len() < 500), "{count}: {}", told.len());
    }
}

#[test]
fn integers_stay_exact_and_what_cannot_be_is_refused() {
    let tool = tool(&json!({"type": "object", "properties": {"id": {"type": "integer"}, "price": {"type": "number"}}})).unwrap();
    for exact in ["9007199254740993", "-9007199254740993", "9223372036854775807", "-9223372036854775808", "18446744073709551615"] {
        let arguments: Value = serde_json::from_str(&format!("{{\"id\":{exact}}}")).unwrap();
        assert_eq!(check(&tool, arguments).unwrap().to_string(), format!("{{\"id\":{exact}}}"));
    }
    assert_eq!(check(&tool, json!({"id": 5.0, "price": 5.0})).unwrap().to_string(), r#"{"id":5,"price":5.0}"#);
    for lossy in ["9007199254740993.0", "18446744073709551616", "1e300"] {
        let arguments: Value = serde_json::from_str(&format!("{{\"id\":{lossy}}}")).unwrap();
        assert_eq!(check(&tool, arguments).unwrap_err(), ["/id: is an integer too large to be exact in that form"], "{lossy}");
    }
}

#[test]
fn a_schema_refers_to_nothing_outside_itself() {
    for (at, schema) in [
        ("/$ref", json!({"type": "object", "$ref": "https://example.org/schema.json"})),
        ("/properties/a/$ref", json!({"type": "object", "properties": {"a": {"$ref": "file:///etc/passwd"}}})),
        ("/properties/a/$ref", json!({"type": "object", "properties": {"a": {"$ref": "other.json#/a"}}})),
        ("/properties/a/$dynamicRef", json!({"type": "object", "properties": {"a": {"$dynamicRef": "http://[::1]/x"}}})),
        ("/properties/a/$ref", json!({"type": "object", "properties": {"a": {"$ref": 5}}})),
        ("/properties/a/$ref", json!({"type": "object", "properties": {"a": {"$ref": "#/$defs/none"}}})),
        ("/properties/a/$id", json!({"type": "object", "properties": {"a": {"$id": "https://example.org/x", "$ref": "#"}}})),
        ("/$schema", json!({"type": "object", "$schema": "https://example.org/meta"})),
        ("/$schema", json!({"type": "object", "$schema": "file:///etc/passwd"})),
        ("/$defs/b/$ref", json!({"type": "object", "$defs": {"b": {"$ref": "//host/share"}}})),
        ("/x-more/y/$ref", json!({"type": "object", "x-more": {"y": {"$ref": "a"}}, "$ref": "#/x-more/y"})),
    ] {
        let found = tool(&schema).unwrap_err();
        assert!(found.iter().any(|problem| problem.starts_with(&format!("input_schema{at}"))), "{schema}: {found:?}");
    }
    // What only looks like a reference is none.
    for plain in [
        json!({"type": "object", "properties": {"$ref": {"type": "string"}, "$id": {"type": "string"}}}),
        json!({"type": "object", "properties": {"a": {"const": {"$ref": "https://example.org"}}}}),
        json!({"type": "object", "properties": {"a": {"$ref": "#/$defs/x~1y%20z"}}, "$defs": {"x/y z": {"type": "integer"}}}),
        json!({"type": "object", "properties": {"a": {"$ref": "#named"}}, "$defs": {"x": {"$anchor": "named", "type": "integer"}}}),
        json!({"type": "object", "$schema": "http://json-schema.org/draft-07/schema#", "properties": {"a": {"type": "integer"}}}),
    ] {
        tool(&plain).unwrap_or_else(|error| panic!("{plain}: {error:?}"));
    }
    let within = tool(&json!({"type": "object", "properties": {"a": {"$ref": "#/$defs/n"}}, "$defs": {"n": {"type": "integer"}}})).unwrap();
    assert_eq!(check(&within, json!({"a": "x"})).unwrap_err(), ["/a: is no integer"]);
}

/// `depth` schemas of which each asks for the next one twice.
fn doubling(depth: usize) -> Value {
    let mut defs = serde_json::Map::new();
    for n in 0..depth {
        let next = json!({"$ref": format!("#/$defs/d{}", n + 1)});
        defs.insert(format!("d{n}"), json!({"allOf": [next.clone(), next]}));
    }
    defs.insert(format!("d{depth}"), json!({"type": "integer"}));
    json!({"type": "object", "properties": {"a": {"$ref": "#/$defs/d0"}}, "$defs": defs})
}

#[test]
fn a_schema_that_would_cost_without_bound_is_refused() {
    let mut deep = json!({"type": "integer"});
    for _ in 0..100 {
        deep = json!({"type": "object", "properties": {"a": deep}});
    }
    let many: serde_json::Map<String, Value> = (0..40).map(|n| (format!("p{n}"), json!({"pattern": format!("^{n}")}))).collect();
    for (what, schema) in [
        ("2^60 checks of one value", doubling(60)),
        ("itself, for the same value", json!({"type": "object", "allOf": [{"$ref": "#"}]})),
        (
            "each other, for the same value",
            json!({"type": "object", "$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"not": {"$ref": "#/$defs/a"}}}}),
        ),
        ("100 levels", deep),
        ("64 KiB", json!({"type": "object", "description": "x".repeat(65_500)})),
        ("many patterns", json!({"type": "object", "properties": many})),
        ("a huge pattern", json!({"type": "object", "properties": {"a": {"pattern": "((a{1,300}){1,300}){1,300}"}}})),
        ("a pattern that goes back", json!({"type": "object", "properties": {"a": {"pattern": "^(a+)+\\1$"}}})),
        ("a pattern that looks ahead", json!({"type": "object", "properties": {"a": {"pattern": "^(?=(a+)+$)b"}}})),
    ] {
        let begun = Instant::now();
        let found = tool(&schema);
        assert!(found.is_err(), "{what}");
        assert!(begun.elapsed() < BOUND, "{what}: {:?}", begun.elapsed());
    }
    tool(&doubling(5)).unwrap();
}

#[test]
fn a_check_ends_soon_whatever_the_schema_and_the_value() {
    let nested = |depth: usize, leaf: Value| {
        let mut value = leaf;
        for _ in 0..depth {
            value = json!({"a": value});
        }
        value
    };
    let twice = json!({"type": "object", "allOf": [{"properties": {"a": {"$ref": "#"}}}, {"properties": {"a": {"$ref": "#"}}}]});
    let either = json!({"type": "object", "anyOf": [
        {"properties": {"a": {"$ref": "#"}}, "required": ["b"]}, {"properties": {"a": {"$ref": "#"}}, "required": ["c"]}, {"required": ["a"]}]});
    let left = json!({"type": "object", "properties": {"a": {"$ref": "#"}}, "unevaluatedProperties": {"$ref": "#"}, "propertyNames": {"maxLength": 1}});
    let tree = json!({"type": "object", "properties": {"name": {"type": "string"}, "a": {"$ref": "#"}}});
    for (what, schema, value) in [
        ("two ways down", &twice, nested(100, json!(5))),
        ("two ways down, right", &twice, nested(100, json!({}))),
        ("three ways down", &either, nested(100, json!({}))),
        ("what is left", &left, nested(100, json!(5))),
        ("a tree", &tree, nested(60, json!({"name": 5}))),
    ] {
        let tool = tool(schema).unwrap_or_else(|error| panic!("{what}: {error:?}"));
        let begun = Instant::now();
        let told = check(&tool, value);
        assert!(begun.elapsed() < BOUND, "{what}: {:?}", begun.elapsed());
        if what == "a tree" {
            let at = "/a".repeat(60);
            assert_eq!(told.unwrap_err(), [format!("{at}/name: is no string")], "a schema that goes down one way is looked into");
        }
    }
    let slow = tool(&json!({"type": "object", "properties": {"a": {"pattern": "^(a+)+$"}, "r": {"format": "regex"}}})).unwrap();
    let begun = Instant::now();
    check(&slow, json!({"a": format!("{}!", "a".repeat(1_000_000))})).unwrap_err();
    check(&slow, json!({"r": "((a{1,1000}){1,1000}){1,1000}".repeat(100)})).unwrap_err();
    assert!(begun.elapsed() < BOUND, "{:?}", begun.elapsed());
}
