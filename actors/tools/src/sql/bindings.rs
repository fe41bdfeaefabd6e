//! What goes into a statement's parameters: arguments, values made once a call, literals.

use std::collections::{BTreeMap, BTreeSet};

use rmcp::model::JsonObject;
use rusqlite::{Statement, types::Value as Sql};
use serde_json::Value;

use super::{
    statement::Parameters,
    values::{self, Wanted},
};
use crate::Problem;

/// Where a parameter's value comes from.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Source {
    /// An argument of the call; NULL where it was left out.
    Argument(Box<str>, Wanted),
    /// A value that the call has made before.
    Let(Box<str>),
    /// A new UUID, of version 7.
    Uuid,
    /// Seconds since 1970, the same in the whole call.
    Now,
    /// What the row says.
    Literal(Sql),
}

/// What parameters may be called in a tool.
#[derive(Clone, Debug)]
pub(super) struct Scope<'a> {
    /// The properties of its schema.
    pub(super) input: &'a JsonObject,
    /// Values made before.
    pub(super) lets: BTreeSet<Box<str>>,
}

impl Scope<'_> {
    /// What `entry` of `params` or `let` stands for.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(super) fn source(&self, entry: &Value) -> Result<Source, String> {
        let literal = |value: &Value| values::sql(value, Wanted::Any).map(Source::Literal).map_err(str::to_owned);
        match entry {
            Value::String(text) => {
                let name = match text.trim().strip_prefix("{{").and_then(|rest| rest.strip_suffix("}}")) {
                    Some(template) => template.trim(),
                    None => text,
                };
                match name {
                    "uuid()" => Ok(Source::Uuid),
                    "now()" => Ok(Source::Now),
                    _ => self.name(name).ok_or_else(|| {
                        format!("{name:?} is no argument of input_schema, no `let` value before it, and neither uuid() nor now(); a literal is {{\"value\": …}}")
                    }),
                }
            }
            Value::Null | Value::Bool(_) | Value::Number(_) => literal(entry),
            Value::Object(object) => match object.get("value") {
                Some(value) if object.len() == 1 => literal(value),
                _ => Err("a literal is {\"value\": …}".into()),
            },
            Value::Array(_) => Err("a name, or a literal".into()),
        }
    }

    fn name(&self, name: &str) -> Option<Source> {
        if self.lets.contains(name) {
            return Some(Source::Let(name.into()));
        }
        let property = self.input.get("properties")?.get(name)?;
        let integer = property.get("type").is_some_and(|kind| {
            kind == "integer" || kind.as_array().is_some_and(|kinds| kinds.contains(&"integer".into()) && !kinds.contains(&"number".into()))
        });
        Some(Source::Argument(name.into(), if integer { Wanted::Integer } else { Wanted::Any }))
    }
}

/// The parameters of one statement.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Bindings {
    /// By their numbers, from 1.
    Positional(Vec<Source>),
    /// By their names as they stand in the statement, sign and all.
    Named(Vec<(Box<str>, Source)>),
}

impl Bindings {
    /// The bindings of a statement with `parameters`, given `params` of its row.
    ///
    /// # Errors
    /// Everything wrong, `at` the statement's place.
    pub(super) fn new(parameters: &Parameters, params: Option<&Value>, scope: &Scope<'_>, at: &str) -> Result<Self, Vec<Problem>> {
        let mut problems = Vec::new();
        let mut wrong = |place: String, what: String| problems.push(Problem::new(place, what));
        let given = match params {
            None | Some(Value::Null) => None,
            Some(Value::Array(given)) => Some(given),
            Some(_) => {
                wrong(format!("{at}params"), "a list of names, one a `?`".into());
                None
            }
        };
        let bindings = match parameters {
            Parameters::Named(names) => {
                if given.is_some_and(|given| !given.is_empty()) {
                    wrong(
                        format!("{at}params"),
                        "the statement names its parameters itself: leave `params` out, or write `?` for each".into(),
                    );
                }
                let mut named = Vec::new();
                for parameter in names {
                    match scope.name(&parameter[1..]) {
                        Some(source) => named.push((parameter.clone(), source)),
                        None => wrong(
                            at.trim_end_matches('.').to_owned(),
                            format!("{parameter} is no argument of input_schema and no `let` value before it"),
                        ),
                    }
                }
                Self::Named(named)
            }
            Parameters::Positional(count) => {
                let given = given.map_or(&[][..], Vec::as_slice);
                if given.len() != *count {
                    wrong(format!("{at}params"), format!("the statement has {count} parameters, and {} are named here", given.len()));
                }
                let mut sources = Vec::new();
                for (number, entry) in given.iter().enumerate() {
                    match scope.source(entry) {
                        Ok(source) => sources.push(source),
                        Err(what) => wrong(format!("{at}params[{number}]"), what),
                    }
                }
                Self::Positional(sources)
            }
        };
        if problems.is_empty() { Ok(bindings) } else { Err(problems) }
    }

    pub(super) fn sources(&self) -> impl Iterator<Item = &Source> {
        let (positional, named) = match self {
            Self::Positional(sources) => (sources.as_slice(), [].as_slice()),
            Self::Named(sources) => ([].as_slice(), sources.as_slice()),
        };
        positional.iter().chain(named.iter().map(|(_, source)| source))
    }

    /// Binds all parameters, with what `made` has for those that are not arguments.
    pub(super) fn bind(&self, statement: &mut Statement<'_>, made: &Made) -> rusqlite::Result<()> {
        match self {
            Self::Positional(sources) => {
                for (at, source) in sources.iter().enumerate() {
                    statement.raw_bind_parameter(at + 1, made.value(source))?;
                }
                // SQLite counts differently than we do: nothing is bound then, rather than something wrong.
                if statement.parameter_count() != sources.len() {
                    return Err(rusqlite::Error::InvalidParameterCount(statement.parameter_count(), sources.len()));
                }
            }
            Self::Named(sources) => {
                for at in 1..=statement.parameter_count() {
                    let name = statement.parameter_name(at).unwrap_or_default();
                    let Some((_, source)) = sources.iter().find(|(known, _)| **known == *name) else {
                        return Err(rusqlite::Error::InvalidParameterName(name.to_owned()));
                    };
                    statement.raw_bind_parameter(at, made.value(source))?;
                }
            }
        }
        Ok(())
    }
}

/// The values of one call, made before its statements run: a job of the writer may run twice, and has the same ids then.
#[derive(Clone, Debug, Default)]
pub(super) struct Made {
    arguments: BTreeMap<Box<str>, Sql>,
    pub(super) lets: BTreeMap<Box<str>, Sql>,
    now: i64,
}

impl Made {
    /// The arguments that `sources` ask for.
    ///
    /// # Errors
    /// Arguments that SQLite cannot store, at their JSON Pointers.
    pub(super) fn new<'a>(sources: impl Iterator<Item = &'a Source>, arguments: &JsonObject) -> Result<Self, Vec<Problem>> {
        let mut made = Self { now: jiff::Timestamp::now().as_second(), ..Self::default() };
        let mut problems = Vec::new();
        for source in sources {
            let Source::Argument(name, wanted) = source else { continue };
            match values::sql(arguments.get(&**name).unwrap_or(&Value::Null), *wanted) {
                Ok(value) => drop(made.arguments.insert(name.clone(), value)),
                Err(what) => problems.push(Problem::new(format!("/{name}"), what)),
            }
        }
        if problems.is_empty() { Ok(made) } else { Err(problems) }
    }

    /// The value of a source; a UUID is another each time.
    pub(super) fn value(&self, source: &Source) -> Sql {
        match source {
            Source::Argument(name, _) => self.arguments.get(name).cloned().unwrap_or(Sql::Null),
            Source::Let(name) => self.lets.get(name).cloned().unwrap_or(Sql::Null),
            Source::Uuid => Sql::Text(uuid::Uuid::now_v7().to_string()),
            Source::Now => Sql::Integer(self.now),
            Source::Literal(value) => value.clone(),
        }
    }
}
