//! JSON Schema: arguments and results are checked against it whole.
//!
//! A schema comes from a row, so it is somebody else's, and what is checked against it comes from anybody. So a schema refers to nothing
//! outside itself, is within the bounds of `arguments/bounds.rs`, its patterns are matched in linear time, and where a problem lies is only
//! looked for where that cannot take longer than finding that there is one.

mod bounds;

use std::fmt::Write as _;

use jsonschema::{PatternOptions, ValidationError, error::ValidationErrorKind};
use rmcp::model::JsonObject;
use serde_json::Value;

use crate::Problem;

/// Most bytes that one pattern may have compiled. `^[a-z0-9_-]{1,128}$` has a tenth of that.
const MAX_PATTERN: usize = 256 * 1024;
/// Most problems that are told at once.
const MAX_PROBLEMS: usize = 10;
/// In what is larger, counted in values, no place is looked for: all that is wrong is collected to find it.
const MAX_EXPLAINED: usize = 4_096;
/// Longest text of a problem, and of its place, in bytes.
const MAX_TEXT: usize = 200;
/// Longest text that is taken as a regular expression where a schema asks for one (`format: regex`).
const MAX_REGEX: usize = 256;
/// Above it not every integer is a double, so one that came as a double may have been another (2^53).
const EXACT: f64 = 9_007_199_254_740_992.0;

/// A schema, compiled. It refers to nothing outside itself.
pub(crate) struct Schema {
    validator: jsonschema::Validator,
    /// Whether a problem can be looked for in a time that is about that of finding that there is one.
    explains: bool,
    /// Properties of the root that are integers.
    integers: Box<[Box<str>]>,
}

impl Schema {
    /// # Errors
    /// What is wrong with it, as JSON Pointers into it.
    pub(crate) fn new(schema: &JsonObject) -> Result<Self, Vec<Problem>> {
        let explains = bounds::check(schema)?;
        let integers = integers(schema);
        let schema = Value::Object(schema.clone());
        let built = jsonschema::options()
            .offline()
            .should_validate_formats(true)
            // The crate's own compiles what it is given without a bound.
            .with_format("regex", |text: &str| text.len() <= MAX_REGEX)
            .with_pattern_options(PatternOptions::regex().size_limit(MAX_PATTERN).dfa_size_limit(MAX_PATTERN))
            .build(&schema);
        match built {
            Ok(validator) => Ok(Self { validator, explains, integers }),
            Err(error) => Err(vec![problem(&error)]),
        }
    }

    /// # Errors
    /// What is wrong with `value`, as JSON Pointers into it.
    pub(crate) fn check(&self, value: &Value) -> Result<(), Vec<Problem>> {
        if self.validator.is_valid(value) {
            return Ok(());
        }
        let problems: Vec<_> = if self.explains && is_small(value, &mut 0) {
            self.validator.iter_errors(value).take(MAX_PROBLEMS).map(|error| problem(&error)).collect()
        } else {
            Vec::new()
        };
        Err(if problems.is_empty() { vec![Problem::new("", "it is not what the schema says")] } else { problems })
    }

    /// Makes integers of whole numbers such as `5.0`, where an argument is one.
    ///
    /// # Errors
    /// Arguments that are integers and came as doubles beyond 2^53: they may be others than were meant.
    pub(crate) fn exact(&self, arguments: &mut JsonObject) -> Result<(), Vec<Problem>> {
        let mut problems = Vec::new();
        for name in &self.integers {
            let Some(value) = arguments.get_mut(&**name) else { continue };
            let Some(double) = value.as_number().filter(|number| number.is_f64()).and_then(serde_json::Number::as_f64) else { continue };
            if double.fract() != 0.0 {
                continue; // The schema says what is wrong with it.
            }
            if double.abs() < EXACT {
                #[expect(clippy::cast_possible_truncation, reason = "whole, and less than 2^53")]
                let whole = double as i64;
                *value = whole.into();
            } else {
                problems.push(Problem::new(format!("/{name}"), "is an integer too large to be exact in that form"));
            }
        }
        if problems.is_empty() { Ok(()) } else { Err(problems) }
    }
}

fn integers(schema: &JsonObject) -> Box<[Box<str>]> {
    let is_integer = |schema: &Value| match schema.get("type") {
        Some(Value::String(name)) => name == "integer",
        Some(Value::Array(names)) => names.iter().any(|name| name == "integer") && !names.iter().any(|name| name == "number"),
        _ => false,
    };
    let properties = schema.get("properties").and_then(Value::as_object);
    properties.into_iter().flatten().filter(|(_, schema)| is_integer(schema)).map(|(name, _)| name.as_str().into()).collect()
}

/// Whether `value` has at most [`MAX_EXPLAINED`] values in it.
fn is_small(value: &Value, counted: &mut usize) -> bool {
    *counted += 1;
    *counted <= MAX_EXPLAINED
        && match value {
            Value::Array(items) => items.iter().all(|item| is_small(item, counted)),
            Value::Object(members) => members.values().all(|member| is_small(member, counted)),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => true,
        }
}

fn problem(error: &ValidationError<'_>) -> Problem {
    Problem::new(cut(error.instance_path().to_string()), cut(what(error.kind())))
}

fn cut(mut text: String) -> String {
    if text.len() > MAX_TEXT {
        text.truncate(text.floor_char_boundary(MAX_TEXT));
        text.push('…');
    }
    text
}

/// What is wrong, without the value: that may be large, and is known to whoever sent it.
fn what(kind: &ValidationErrorKind) -> String {
    use ValidationErrorKind as Kind;
    match kind {
        Kind::AdditionalItems { limit } => format!("has more than {limit} items"),
        Kind::AdditionalProperties { unexpected } | Kind::UnevaluatedProperties { unexpected } => {
            format!("has unknown {}", names(unexpected))
        }
        Kind::AnyOf { .. } => "is none of the forms that it may have".to_owned(),
        Kind::OneOfNotValid { .. } => "is none of the forms of which it has to be one".to_owned(),
        Kind::OneOfMultipleValid { .. } => "is more than one of the forms of which it has to be one".to_owned(),
        Kind::BacktrackLimitExceeded { .. } | Kind::RegexEngineFailure { .. } => "cannot be matched with its pattern".to_owned(),
        Kind::Constant { expected_value } => format!("is not {}", json(expected_value)),
        Kind::Contains => "has no item, too few or too many, of the form that it has to contain".to_owned(),
        Kind::ContentEncoding { content_encoding } => format!("is not encoded as {content_encoding}"),
        Kind::ContentMediaType { content_media_type } => format!("is not {content_media_type}"),
        Kind::Enum { options } => format!("is not one of {}", json(options)),
        Kind::ExclusiveMaximum { limit } => format!("is not less than {limit}"),
        Kind::ExclusiveMinimum { limit } => format!("is not more than {limit}"),
        Kind::FalseSchema => "is not allowed".to_owned(),
        Kind::Format { format } => format!("is no {format}"),
        Kind::MaxItems { limit } => format!("has more than {limit} items"),
        Kind::Maximum { limit } => format!("is more than {limit}"),
        Kind::MaxLength { limit } => format!("is longer than {limit} characters"),
        Kind::MaxProperties { limit } => format!("has more than {limit} properties"),
        Kind::MinItems { limit } => format!("has less than {limit} items"),
        Kind::Minimum { limit } => format!("is less than {limit}"),
        Kind::MinLength { limit } => format!("is shorter than {limit} characters"),
        Kind::MinProperties { limit } => format!("has less than {limit} properties"),
        Kind::MultipleOf { multiple_of } => format!("is no multiple of {multiple_of}"),
        Kind::Not { .. } => "has the form that it may not have".to_owned(),
        Kind::Pattern { pattern } => format!("does not match {pattern}"),
        Kind::PropertyNames { error } => format!("has a property whose name {}", what(error.kind())),
        Kind::Required { property } => format!("lacks {}", json(property)),
        Kind::Type { kind } => match kind {
            jsonschema::error::TypeKind::Single(one) => format!("is no {one}"),
            jsonschema::error::TypeKind::Multiple(several) => {
                let mut names = String::new();
                for name in several.iter() {
                    let _ = write!(names, "{}{name}", if names.is_empty() { "" } else { ", " });
                }
                format!("is none of {names}")
            }
        },
        Kind::UnevaluatedItems { .. } => "has items that it may not have".to_owned(),
        Kind::UniqueItems => "has an item twice".to_owned(),
        Kind::Referencing(_) => "refers to what is not there".to_owned(),
        Kind::Custom { .. } | Kind::FromUtf8 { .. } => "is not what the schema says".to_owned(),
    }
}

fn json(value: &Value) -> String {
    cut(value.to_string())
}

fn names(names: &[String]) -> String {
    const SHOWN: usize = 3;
    let mut text = String::new();
    for name in names.iter().take(SHOWN) {
        let _ = write!(text, "{}{name:?}", if text.is_empty() { "" } else { ", " });
    }
    if names.len() > SHOWN {
        let _ = write!(text, " and {} more", names.len() - SHOWN);
    }
    text
}
