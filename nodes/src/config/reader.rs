//! From plain values to types, going on after each problem so that all are told at once.

use std::{fmt, net::SocketAddr, ops::RangeInclusive, path::PathBuf, str::FromStr, time::Duration};

use horos_wire::{ClusterName, NodeName, Role};
use serde_json::{Map, Value};

use super::{
    layers::{Layers, parse_text},
    problem::{Origin, Problem, Problems, nearest},
    units::{self, ByteSize},
};

/// A type that stands at the end of a path in the configuration.
pub(crate) trait Leaf: Sized {
    /// Reads it; the error says what was expected.
    fn read(value: &Value) -> Result<Self, String>;
    /// Writes it as [`Leaf::read`] takes it.
    fn show(&self) -> Value;
}

/// Longest value that is repeated in a problem, in characters.
const MAX_SHOWN: usize = 60;

/// Most entries of one list: trusted networks, origins, domains.
pub const MAX_LISTED: usize = 64;

fn expected(what: &str, value: &Value) -> String {
    let text = match value {
        Value::Null => return format!("has no value, expected {what}"),
        Value::Object(_) => return format!("expected {what}, not a section"),
        Value::Array(_) => return format!("expected {what}, not a list"),
        other => other.to_string(),
    };
    if text.chars().count() > MAX_SHOWN {
        return format!("expected {what}, not {}…", text.chars().take(MAX_SHOWN).collect::<String>());
    }
    format!("expected {what}, not {text}")
}

fn parsed<T: FromStr<Err: fmt::Display>>(what: &str, value: &Value) -> Result<T, String> {
    let Value::String(text) = value else { return Err(expected(what, value)) };
    text.parse().map_err(|error: T::Err| error.to_string())
}

macro_rules! numbers {
    ($($type:ty),*) => {$(impl Leaf for $type {
        fn read(value: &Value) -> Result<Self, String> {
            value.as_u64().and_then(|n| n.try_into().ok()).ok_or_else(|| expected("a whole number", value))
        }
        fn show(&self) -> Value { (*self).into() }
    })*};
}
numbers!(u16, u32, u64, usize);

macro_rules! texts {
    ($($type:ty: $what:literal),*) => {$(impl Leaf for $type {
        fn read(value: &Value) -> Result<Self, String> { parsed($what, value) }
        fn show(&self) -> Value { self.to_string().into() }
    })*};
}
texts!(ByteSize: "a size such as \"8MiB\"", ClusterName: "a name", NodeName: "a name", Role: "bo or fo", super::Endpoint: "host:port",
    super::Advertised: "an address", super::Network: "a network", super::WebOrigin: "an origin", super::WebHost: "a host", super::WebServer: "an address of https",
    horos_egress::Trusted: "an endpoint such as \"stock.internal:8080\"");

impl Leaf for Duration {
    fn read(value: &Value) -> Result<Self, String> {
        match value {
            Value::String(text) => units::span(text).map_err(|error| error.to_string()),
            Value::Number(number) => units::span(&number.to_string()).map_err(|error| error.to_string()),
            other => Err(expected("a span of time such as \"500ms\"", other)),
        }
    }
    fn show(&self) -> Value {
        units::show_span(*self).into()
    }
}

impl Leaf for bool {
    fn read(value: &Value) -> Result<Self, String> {
        value.as_bool().ok_or_else(|| expected("true or false", value))
    }
    fn show(&self) -> Value {
        (*self).into()
    }
}

impl Leaf for SocketAddr {
    fn read(value: &Value) -> Result<Self, String> {
        let Value::String(text) = value else { return Err(expected("an address such as \"127.0.0.1:7400\"", value)) };
        text.parse().map_err(|_| expected("an IP address and a port such as \"127.0.0.1:7400\" or \"[::]:7400\"", value))
    }
    fn show(&self) -> Value {
        self.to_string().into()
    }
}

impl Leaf for PathBuf {
    fn read(value: &Value) -> Result<Self, String> {
        match value {
            Value::String(text) if !text.is_empty() && !text.contains('\0') => Ok(text.into()),
            other => Err(expected("a path", other)),
        }
    }
    fn show(&self) -> Value {
        self.display().to_string().into()
    }
}

impl Leaf for String {
    fn read(value: &Value) -> Result<Self, String> {
        value.as_str().map(str::to_owned).ok_or_else(|| expected("a text", value))
    }
    fn show(&self) -> Value {
        self.as_str().into()
    }
}

impl<T: Leaf> Leaf for Option<T> {
    fn read(value: &Value) -> Result<Self, String> {
        if value.is_null() { Ok(None) } else { T::read(value).map(Some) }
    }
    fn show(&self) -> Value {
        self.as_ref().map_or(Value::Null, T::show)
    }
}

/// A list; one text between commas is one, too, so that a variable can hold it.
impl<T: Leaf> Leaf for Vec<T> {
    fn read(value: &Value) -> Result<Self, String> {
        let items = match value {
            Value::Null => Vec::new(),
            Value::Array(items) => items.clone(),
            // What begins so is YAML, and read as such.
            Value::String(text) if text.trim_start().starts_with('[') => return Err("expected a list".into()),
            Value::String(text) => {
                text.split(',').map(str::trim).filter(|item| !item.is_empty()).map(|item| Value::String(item.to_owned())).collect()
            }
            other => return Err(format!("expected a list, not {other}")),
        };
        if items.len() > MAX_LISTED {
            return Err(format!("{} are too many, {MAX_LISTED} at most", items.len()));
        }
        items.iter().map(T::read).collect()
    }
    fn show(&self) -> Value {
        Value::Array(self.iter().map(T::show).collect())
    }
}

/// Whether a map has none but these keys.
pub(crate) fn nothing_else(map: &Map<String, Value>, known: &[&str]) -> Result<(), String> {
    let Some(key) = map.keys().find(|key| !known.contains(&key.as_str())) else { return Ok(()) };
    let key: String = key.chars().take(MAX_SHOWN).collect();
    match nearest(&key, known.iter().copied()) {
        Some(near) => Err(format!("{key}: unknown key; did you mean {near}?")),
        None => Err(format!("{key}: unknown key; known here: {}", known.join(", "))),
    }
}

/// Makes an enum without fields a [`Leaf`] of its kebab-case words.
macro_rules! choice {
    ($(#[$about:meta])* $vis:vis enum $name:ident { $($(#[$doc:meta])* $variant:ident = $word:literal),* $(,)? }) => {
        $(#[$about])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        $vis enum $name { $($(#[$doc])* $variant),* }

        impl $crate::config::reader::Leaf for $name {
            fn read(value: &serde_json::Value) -> Result<Self, String> {
                const WORDS: &[&str] = &[$($word),*];
                match value.as_str() {
                    $(Some($word) => Ok(Self::$variant),)*
                    _ => Err(format!("expected {}, not {value}", WORDS.join(" or "))),
                }
            }
            fn show(&self) -> serde_json::Value {
                match self { $(Self::$variant => $word.into()),* }
            }
        }
    };
}
pub(crate) use choice;

/// Declares a section: its struct, its defaults, its reader, and the comments of the written-out file, all from one list
/// so that none can say what another does not.
macro_rules! section {
    (
        $(#[doc = $about:literal])*
        $vis:vis struct $name:ident = $key:literal {
            $($(#[doc = $doc:literal])* $field:ident = $word:literal: $type:ty = $default:expr $(, within $range:expr)?;)*
        }
    ) => {
        $(#[doc = $about])*
        #[derive(Clone, Debug, PartialEq, Eq)]
        $vis struct $name { $($(#[doc = $doc])* pub $field: $type,)* }

        impl Default for $name {
            fn default() -> Self {
                Self { $($field: $default,)* }
            }
        }

        impl $crate::config::reader::Section for $name {
            const KEY: &'static str = $key;
            const ABOUT: &'static [&'static str] = &[$($about),*];

            fn read(&mut self, reader: &mut $crate::config::reader::Reader<'_, '_>) {
                $(if let Some(value) = reader.field::<$type>($word)$(.and_then(|value| reader.within($word, value, $range)))? {
                    self.$field = value;
                })*
            }

            fn fields(&self) -> Vec<$crate::config::reader::Field> {
                vec![$($crate::config::reader::Field { key: $word, about: &[$($doc),*], value: $crate::config::reader::Leaf::show(&self.$field) }),*]
            }
        }
    };
}
pub(crate) use section;

/// A part of the configuration under one key.
pub(crate) trait Section {
    /// The key.
    const KEY: &'static str;
    /// What it is about, by lines.
    const ABOUT: &'static [&'static str];
    /// Takes what is written over the defaults that are in `self`.
    fn read(&mut self, reader: &mut Reader<'_, '_>);
    /// Its fields with their values, in order.
    fn fields(&self) -> Vec<Field>;
}

/// A field as the written-out file shows it.
#[derive(Debug)]
pub(crate) struct Field {
    pub(crate) key: &'static str,
    pub(crate) about: &'static [&'static str],
    pub(crate) value: Value,
}

/// Takes the fields of one map; what it was not asked for is unknown.
pub(crate) struct Reader<'v, 'p> {
    layers: &'p Layers,
    map: Option<&'v Map<String, Value>>,
    path: String,
    asked: Vec<&'static str>,
    problems: &'p mut Problems,
}

impl<'v, 'p> Reader<'v, 'p> {
    /// Of the map at `path`. A value there that is no map is a problem, and nothing is read from it.
    pub(crate) fn new(layers: &'p Layers, value: Option<&'v Value>, path: String, problems: &'p mut Problems) -> Self {
        let map = match value {
            None | Some(Value::Null) => None, // a section all of whose lines are comments
            Some(Value::Object(map)) => Some(map),
            Some(other) => {
                let what = expected("a section of `key: value` lines", other).into();
                problems.push(Problem { origin: layers.origin(&path), path: path.as_str().into(), what, fix: None });
                None
            }
        };
        Self { layers, map, path, asked: Vec::new(), problems }
    }

    fn path_of(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }

    /// The raw value under `key`.
    pub(crate) fn raw(&mut self, key: &'static str) -> Option<&'v Value> {
        self.asked.push(key);
        self.map?.get(key)
    }

    /// The value under `key`; `None` when there is none or it is wrong, which is then among the problems.
    pub(crate) fn field<T: Leaf>(&mut self, key: &'static str) -> Option<T> {
        let value = self.raw(key)?;
        match self.read::<T>(key, value) {
            Ok(value) => Some(value),
            Err(what) => {
                self.problem(key, what);
                None
            }
        }
    }

    fn read<T: Leaf>(&self, key: &str, value: &Value) -> Result<T, String> {
        let direct = T::read(value);
        // A variable or an option is text: `12` and `true` are numbers and booleans only where one is wanted.
        match (&direct, value, self.layers.origin(&self.path_of(key))) {
            (Err(_), Value::String(text), Origin::Environment(_) | Origin::Flag(_)) => {
                parse_text(text).and_then(|value| T::read(&value).ok()).map_or(direct, Ok)
            }
            _ => direct,
        }
    }

    /// `value` when it lies in `range`.
    pub(crate) fn within<T: Leaf + PartialOrd>(&mut self, key: &'static str, value: T, range: RangeInclusive<T>) -> Option<T> {
        if range.contains(&value) {
            return Some(value);
        }
        let bare = |value: Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        let (value, start, end) = (bare(value.show()), bare(range.start().show()), bare(range.end().show()));
        self.problem(key, format!("{value} is out of range, use {start} to {end}"));
        None
    }

    /// Notes that the value under `key` is wrong.
    pub(crate) fn problem(&mut self, key: &str, what: impl Into<Box<str>>) {
        let path = self.path_of(key);
        self.problems.push(Problem { origin: self.layers.origin(&path), path: path.into(), what: what.into(), fix: None });
    }

    /// Notes every key that was not asked for.
    pub(crate) fn finish(self) {
        for key in self.map.into_iter().flat_map(Map::keys).filter(|key| !self.asked.contains(&key.as_str())) {
            let path = self.path_of(key);
            let fix = match nearest(key, self.asked.iter().copied()) {
                Some(near) => format!("did you mean {near}?"),
                None => format!("known here: {}", self.asked.join(", ")),
            };
            self.problems.push(Problem {
                origin: self.layers.origin(&path),
                path: path.chars().take(2 * MAX_SHOWN).collect(),
                what: "unknown key".into(),
                fix: Some(fix.into()),
            });
        }
    }
}
