//! What an actor takes, in a person's words, from the JSON Schemas that its node tells.

use horos_wire::protocol::node::Description;
use serde_json::{Map, Value, json};

use crate::render::clean;

/// Most methods and most fields shown; what is more is counted.
const MAX_LINES: usize = 40;

/// What should have been sent.
#[derive(Clone, Debug, PartialEq)]
pub struct Usage {
    /// For people, a few lines.
    pub text: String,
    /// For programs: the schema of the method meant, or of each when it is none of them.
    pub schema: Value,
}

/// What the actor takes in place of `message`, which is `{"method": {…}}`.
pub(crate) fn usage(description: &Description, message: &str) -> Usage {
    let meant: Option<String> =
        serde_json::from_str::<Map<String, Value>>(message).ok().and_then(|map| map.into_iter().next()).map(|(name, _)| name);
    let schema = |text: &str| serde_json::from_str::<Value>(text).unwrap_or(Value::Null);
    if let Some(method) = description.methods.iter().find(|method| meant.as_deref() == Some(&*method.name)) {
        let schema = schema(&method.request);
        let fields = fields(&schema);
        let text = if fields.is_empty() {
            format!("{} takes no fields: {{\"{0}\": {{}}}}", clean(&method.name))
        } else {
            let width = fields.iter().map(|field| field.name.chars().count()).max().unwrap_or(0);
            let lines = fields.iter().map(|field| format!("\n    {:<width$}  {}", field.name, field.what()));
            format!("{} takes{}{}", clean(&method.name), lines.take(MAX_LINES).collect::<String>(), more(fields.len()))
        };
        return Usage { text, schema };
    }
    let lines = description.methods.iter().take(MAX_LINES).map(|method| {
        let names: Vec<_> = fields(&schema(&method.request)).into_iter().map(|field| format!("\"{}\": …", field.name)).collect();
        format!("\n    {{\"{}\": {{{}}}}}", clean(&method.name), names.join(", "))
    });
    let text = format!("{} takes one of{}{}", clean(&description.protocol), lines.collect::<String>(), more(description.methods.len()));
    let schemas = description.methods.iter().map(|method| (method.name.to_string(), schema(&method.request)));
    Usage { text, schema: json!({ "methods": schemas.collect::<Map<_, _>>() }) }
}

fn more(count: usize) -> String {
    if count > MAX_LINES { format!("\n    and {} more", count - MAX_LINES) } else { String::new() }
}

struct Field {
    name: String,
    kind: String,
    required: bool,
    about: Option<String>,
}

impl Field {
    fn what(&self) -> String {
        let optional = if self.required { "" } else { ", may be left out" };
        let about = self.about.as_ref().map_or_else(String::new, |about| format!(": {about}"));
        format!("{}{optional}{about}", self.kind)
    }
}

fn fields(schema: &Value) -> Vec<Field> {
    let required: Vec<&str> = schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let properties = schema["properties"].as_object().into_iter().flatten();
    properties
        .map(|(name, property)| Field {
            name: clean(name),
            kind: clean(&kind(property)),
            required: required.contains(&name.as_str()),
            about: property["description"].as_str().and_then(|text| text.lines().next()).map(clean),
        })
        .collect()
}

/// A schema in a few words (JSON Schema 2020-12, as schemars writes it).
fn kind(schema: &Value) -> String {
    let words = |of: &Vec<Value>, with: fn(&Value) -> String| of.iter().map(with).collect::<Vec<_>>().join(" or ");
    if let Some(reference) = schema["$ref"].as_str() {
        return reference.rsplit('/').next().unwrap_or(reference).to_owned();
    }
    if let Some(values) = schema["enum"].as_array() {
        return words(values, Value::to_string);
    }
    if let Some(value) = schema.get("const") {
        return value.to_string();
    }
    for any in ["anyOf", "oneOf"] {
        if let Some(schemas) = schema[any].as_array() {
            return words(schemas, kind);
        }
    }
    let plain = match &schema["type"] {
        Value::String(kind) => kind.clone(),
        Value::Array(kinds) => words(kinds, |kind| kind.as_str().unwrap_or("anything").to_owned()),
        _ => "anything".to_owned(),
    };
    match (&schema["minimum"], &schema["maximum"], &schema["items"]) {
        (Value::Number(least), Value::Number(most), _) => format!("{plain} from {least} to {most}"),
        (Value::Number(least), ..) => format!("{plain} from {least}"),
        (.., items @ Value::Object(_)) => format!("{plain} of {}", kind(items)),
        _ => plain,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use horos_wire::protocol::node::MethodDescription;

    fn stock() -> Description {
        #[derive(schemars::JsonSchema)]
        #[expect(dead_code, reason = "only its schema is looked at")]
        struct Reserve {
            /// What is wanted.
            sku: String,
            quantity: u8,
            note: Option<String>,
        }
        let method = |name: &str, request: String| MethodDescription {
            name: name.into(),
            request: request.into(),
            reply: "{}".into(),
            error: "{}".into(),
        };
        let reserve = schemars::schema_for!(Reserve).as_value().to_string();
        let levels = r#"{"type": "object", "properties": {}}"#.to_owned();
        Description { protocol: "stock".into(), version: 1, methods: vec![method("levels", levels), method("reserve", reserve)] }
    }

    #[test]
    fn a_malformed_message_is_answered_with_the_methods_fields() {
        let usage = usage(&stock(), r#"{"reserve": {"sk": "tea"}}"#);
        assert_eq!(
            usage.text,
            "reserve takes\n    \
             note      string or null, may be left out\n    \
             quantity  integer from 0 to 255\n    \
             sku       string: What is wanted."
        );
        assert_eq!(usage.schema["properties"]["quantity"]["maximum"], 255);
        assert_eq!(super::usage(&stock(), r#"{"levels": 1}"#).text, r#"levels takes no fields: {"levels": {}}"#);
    }

    #[test]
    fn an_unknown_method_is_answered_with_those_there_are() {
        let usage = usage(&stock(), r#"{"reserv": {}}"#);
        assert_eq!(usage.text, "stock takes one of\n    {\"levels\": {}}\n    {\"reserve\": {\"note\": …, \"quantity\": …, \"sku\": …}}");
        assert!(usage.schema["methods"]["reserve"].is_object());
    }

    #[test]
    fn a_hostile_schema_is_a_few_clean_lines() {
        let properties: Map<String, Value> =
            (0..5_000).map(|i| (format!("\u{9b}2J{i}"), json!({ "type": "\u{1b}[2J", "description": "\u{202e}" }))).collect();
        let mut hostile = stock();
        hostile.methods[0].request = json!({ "properties": properties, "required": 7 }).to_string().into();
        hostile.methods[1].request = "no JSON".into();
        let text = usage(&hostile, r#"{"levels": {}}"#).text;
        assert!(text.lines().count() <= MAX_LINES + 2 && text.lines().all(|line| !line.contains(char::is_control)), "{text:?}");
        assert!(usage(&hostile, r#"{"reserve": {}}"#).text.contains("no fields"));
    }
}
