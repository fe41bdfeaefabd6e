//! Schemas as MCP's clients take them: one plain object, with nothing to look up elsewhere in it.
//!
//! What the protocols' types say in Rust's own way is said plainly: definitions stand where they are referred to, an argument that may be
//! left out has one type and not also null, and a comment's links into code are words.

use rmcp::model::JsonObject;
use serde_json::Value;

const DEFINITIONS: &str = "#/$defs/";

/// The schema of a request, as of a tool's arguments.
pub(super) fn input(schema: &schemars::Schema) -> JsonObject {
    let mut plain = object(schema);
    plain.remove("description");
    plain.entry("properties").or_insert_with(|| Value::Object(JsonObject::new()));
    let required: Vec<String> = plain.get("required").map(names).unwrap_or_default();
    if let Some(Value::Object(properties)) = plain.get_mut("properties") {
        for (_, schema) in properties.iter_mut().filter(|(name, _)| !required.contains(name)) {
            without_null(schema);
        }
    }
    plain.insert("additionalProperties".into(), Value::Bool(false));
    plain
}

/// The schema of a reply, which is `wrapped` under that name where it is no object itself.
pub(super) fn output(schema: &schemars::Schema, wrapped: Option<&str>) -> JsonObject {
    let mut plain = object(schema);
    plain.remove("description");
    let Some(name) = wrapped else { return plain };
    let properties = JsonObject::from_iter([(name.to_owned(), Value::Object(plain))]);
    JsonObject::from_iter([
        ("type".to_owned(), "object".into()),
        ("properties".to_owned(), Value::Object(properties)),
        ("required".to_owned(), vec![name].into()),
    ])
}

fn names(list: &Value) -> Vec<String> {
    list.as_array().into_iter().flatten().filter_map(|name| name.as_str().map(str::to_owned)).collect()
}

fn object(schema: &schemars::Schema) -> JsonObject {
    let mut root = schema.as_object().cloned().unwrap_or_default();
    let definitions = match root.remove("$defs") {
        Some(Value::Object(definitions)) => definitions,
        _ => JsonObject::new(),
    };
    let mut plain = Value::Object(root);
    inline(&mut plain, &definitions, &mut Vec::new());
    match plain {
        Value::Object(plain) => plain,
        _ => JsonObject::new(),
    }
}

/// Puts definitions where they are referred to. One that refers to itself is anything of its type the second time.
fn inline(schema: &mut Value, definitions: &JsonObject, within: &mut Vec<String>) {
    match schema {
        Value::Object(fields) => {
            fields.remove("$schema");
            fields.remove("title");
            // What is called so in an object of names to schemas is a name.
            if let Some(Value::String(text)) = fields.get_mut("description") {
                *text = words(text);
            }
            let referred = fields.get("$ref").and_then(Value::as_str).and_then(|it| it.strip_prefix(DEFINITIONS)).map(str::to_owned);
            if let Some(name) = referred {
                fields.remove("$ref");
                let found = definitions.get(&name).and_then(Value::as_object);
                if within.contains(&name) {
                    if let Some(kind) = found.and_then(|found| found.get("type")) {
                        fields.insert("type".into(), kind.clone());
                    }
                    return;
                }
                for (key, value) in found.into_iter().flatten() {
                    fields.entry(key.clone()).or_insert_with(|| value.clone());
                }
                within.push(name);
                inline(schema, definitions, within);
                within.pop();
                return;
            }
            for (key, value) in fields.iter_mut() {
                match (key.as_str(), value) {
                    ("properties" | "patternProperties", Value::Object(named)) => {
                        named.values_mut().for_each(|schema| inline(schema, definitions, within));
                    }
                    ("enum" | "const" | "default" | "required" | "examples", _) => {}
                    (_, value) => inline(value, definitions, within),
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|schema| inline(schema, definitions, within)),
        _ => {}
    }
}

/// Takes null away from what may be left out instead.
fn without_null(schema: &mut Value) {
    let Some(fields) = schema.as_object_mut() else { return };
    if let Some(Value::Array(types)) = fields.get_mut("type") {
        types.retain(|kind| kind != "null");
        if let [only] = types.as_slice() {
            let only = only.clone();
            fields.insert("type".into(), only);
        }
    }
    for choice in ["anyOf", "oneOf"] {
        let Some(Value::Array(choices)) = fields.get_mut(choice) else { continue };
        choices.retain(|schema| schema.get("type").is_none_or(|kind| kind != "null"));
        if let [Value::Object(only)] = choices.as_slice() {
            let only = only.clone();
            fields.remove(choice);
            for (key, value) in only {
                fields.entry(key).or_insert(value);
            }
        }
    }
}

/// A comment without its links: `[`Page`]` is `Page`, and so is `[page](Page)`.
fn words(comment: &str) -> String {
    let mut words = String::with_capacity(comment.len());
    let mut rest = comment;
    while let Some((before, after)) = rest.split_once('[') {
        words.push_str(before);
        let Some((link, behind)) = after.split_once(']') else {
            words.push('[');
            rest = after;
            continue;
        };
        let name = link.trim_matches('`');
        words.push_str(name.rsplit("::").next().unwrap_or(name));
        rest = match behind.strip_prefix('(').and_then(|target| target.split_once(')')) {
            Some((_, behind)) => behind,
            None => behind,
        };
    }
    words.push_str(rest);
    words.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use horos_wire::{
        Protocol,
        protocol::{control::Control, node::Node, router::Router, sync},
    };
    use serde_json::json;

    use super::*;

    fn everything(schema: &Value, look: &mut impl FnMut(&str, &Value)) {
        match schema {
            Value::Object(fields) => {
                for (key, value) in fields {
                    look(key, value);
                    everything(value, look);
                }
            }
            Value::Array(items) => items.iter().for_each(|item| everything(item, look)),
            _ => {}
        }
    }

    #[test]
    fn every_method_has_a_schema_that_is_one_plain_object_and_refers_to_nothing() {
        let methods = [Node::methods(), Control::methods(), Router::methods(), sync::Sync::methods(), sync::Replica::methods()].concat();
        assert!(methods.len() > 30);
        for method in methods {
            let arguments = input(&(method.request)());
            assert_eq!(arguments["type"], "object", "{}", method.name);
            let reply = (method.reply)();
            let wrapped = (reply.as_object().unwrap()["type"] != "object").then_some("all");
            let result = output(&reply, wrapped);
            assert_eq!(result["type"], "object", "{}", method.name);
            for schema in [arguments, result] {
                everything(&Value::Object(schema), &mut |key, value| {
                    assert!(!matches!(key, "$ref" | "$defs" | "$schema"), "{}: {key}", method.name);
                    let text = value.as_str().unwrap_or_default();
                    assert!(key != "description" || !text.contains('[') && !text.contains('\n'), "{}: {text}", method.name);
                });
            }
        }
    }

    #[test]
    fn what_may_be_left_out_is_not_also_null() {
        let schema = schemars::json_schema!({
            "type": "object",
            "properties": {
                "name": { "type": ["string", "null"] },
                "how": { "anyOf": [{ "$ref": "#/$defs/How" }, { "type": "null" }], "description": "How, as [`a::How`] says." },
                "must": { "type": ["string", "null"] },
            },
            "required": ["must"],
            "$defs": { "How": { "type": "string", "enum": ["so", "otherwise"], "description": "Ways." } },
        });
        let plain = Value::Object(input(&schema));
        assert_eq!(plain["properties"]["name"], json!({ "type": "string" }));
        assert_eq!(
            plain["properties"]["how"],
            json!({ "type": "string", "enum": ["so", "otherwise"], "description": "How, as How says." })
        );
        assert_eq!(plain["properties"]["must"], json!({ "type": ["string", "null"] }));
        assert_eq!(plain["additionalProperties"], json!(false));
    }

    #[test]
    fn what_refers_to_itself_ends() {
        let schema = schemars::json_schema!({
            "$ref": "#/$defs/Tree",
            "$defs": { "Tree": { "type": "object", "properties": { "below": { "type": "array", "items": { "$ref": "#/$defs/Tree" } } } } },
        });
        let plain = Value::Object(output(&schema, None));
        assert_eq!(plain["properties"]["below"]["items"], json!({ "type": "object" }));
    }

    #[test]
    fn links_into_code_are_words() {
        assert_eq!(words("At most [`super::PAGE`] of\n[these](Self::these), see [x"), "At most PAGE of these, see [x");
    }
}
