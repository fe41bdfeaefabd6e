//! Defaults ← file ← environment ← flags, as one tree of plain values that remembers where each came from.

use std::{collections::BTreeMap, fmt, path::Path};

use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, SeqAccess, Visitor},
};
use serde_json::{Map, Number, Value};
use serde_saphyr::Spanned;

use super::problem::{Origin, Problem, Problems};

/// Largest configuration file read, in bytes: the written-out default takes 6 KiB.
pub const MAX_FILE: u64 = 1 << 20;

/// Most values in a file. Aliases count each time, so that ten lines cannot unfold into gigabytes.
const MAX_VALUES: usize = 20_000;

/// The environment variables that are ours begin so; each `__` after it goes one level down.
pub const PREFIX: &str = "HOROS__";

/// Values from every source, the later over the earlier.
#[derive(Clone, Debug, Default)]
pub(crate) struct Layers {
    root: Map<String, Value>,
    origins: BTreeMap<String, Origin>,
}

impl Layers {
    /// Where the value at `path` came from, else the first value in it, else the nearest value that holds it.
    pub(crate) fn origin(&self, path: &str) -> Origin {
        let inside = format!("{path}.");
        if let (false, Some((key, origin))) = (self.origins.contains_key(path), self.origins.range(inside.clone()..).next())
            && key.starts_with(&inside)
        {
            return origin.clone();
        }
        let mut path = path;
        loop {
            if let Some(origin) = self.origins.get(path) {
                return origin.clone();
            }
            match path.rsplit_once('.') {
                Some((parent, _)) => path = parent,
                None => return Origin::Default,
            }
        }
    }

    pub(crate) fn root(&self) -> &Map<String, Value> {
        &self.root
    }

    /// A value deep in the tree, where it is there.
    pub(crate) fn at(&self, path: &[&str]) -> Option<&Value> {
        let (first, rest) = path.split_first()?;
        rest.iter().try_fold(self.root.get(*first)?, |value, key| value.get(key))
    }

    /// Lays a YAML text over what is there. A text that is no YAML is one problem and changes nothing.
    pub(crate) fn file(&mut self, file: &Path, text: &str, problems: &mut Problems) {
        let name: Box<str> = file.display().to_string().into();
        let origin = |line| Origin::File { file: name.clone(), line };
        let options = serde_saphyr::options! {
            strict_booleans: true,
            with_snippet: false,
            budget: serde_saphyr::budget! { max_nodes: MAX_VALUES, max_events: 3 * MAX_VALUES, max_depth: 32, max_documents: 1 }
        };
        // A file of comments only holds no document; it changes nothing and is no mistake.
        if text.lines().all(|line| line.trim().is_empty() || line.trim_start().starts_with('#')) {
            return;
        }
        let tree: Spanned<Shape> = match serde_saphyr::from_str_with_options(text, options) {
            Ok(tree) => tree,
            Err(error) => {
                let error = error.without_snippet();
                let line = error.location().map(|at| at.line()).filter(|line| *line > 0);
                problems.push(Problem { origin: origin(line), path: "".into(), what: error.to_string().into(), fix: None });
                return;
            }
        };
        match tree.value {
            Shape::Null => {}
            Shape::Map(entries) => {
                let mut lines = Vec::new();
                let value = plain_map(entries, "", &mut lines);
                for (path, line) in lines {
                    self.origins.insert(path, origin(Some(line).filter(|line| *line > 0)));
                }
                merge(&mut self.root, value);
            }
            Shape::Seq(_) | Shape::Scalar(_) => problems.push(Problem {
                origin: origin(Some(tree.referenced.line())),
                path: "".into(),
                what: "expected sections such as `listen:` at the left margin".into(),
                fix: None,
            }),
        }
    }

    /// Lays the variables that begin with [`PREFIX`] over what is there.
    pub(crate) fn environment<'a>(&mut self, variables: impl IntoIterator<Item = (&'a str, &'a str)>) {
        let mut ours: Vec<_> = variables.into_iter().filter_map(|(name, text)| Some((name, name.strip_prefix(PREFIX)?, text))).collect();
        ours.sort_unstable(); // one order whatever the process inherited, so that problems are reported alike
        for (name, keys, text) in ours {
            let keys: Vec<String> = keys.split("__").map(|key| key.to_ascii_lowercase().replace('_', "-")).collect();
            self.set(&keys, text, Origin::Environment(name.into()));
        }
    }

    /// Lays one option of the command line over what is there.
    pub(crate) fn flag(&mut self, path: &str, text: &str, option: &str) {
        let keys: Vec<String> = path.split('.').map(str::to_owned).collect();
        self.set(&keys, text, Origin::Flag(option.into()));
    }

    fn set(&mut self, keys: &[String], text: &str, origin: Origin) {
        let Some((last, sections)) = keys.split_last() else { return };
        let mut map = &mut self.root;
        for key in sections {
            let slot = map.entry(key.clone()).or_insert_with(|| Value::Object(Map::new()));
            if !slot.is_object() {
                *slot = Value::Object(Map::new()); // a section was written as a scalar below; this is over it
            }
            let Value::Object(inner) = slot else { return };
            map = inner;
        }
        map.insert(last.clone(), Value::String(text.to_owned()));
        let path = keys.join(".");
        self.origins.retain(|known, _| !known.strip_prefix(&path).is_some_and(|rest| rest.starts_with('.')));
        self.origins.insert(path, origin);
    }
}

/// Reads a text from a variable or an option as YAML, for values that are no text: `[a, b]`, `12`, `true`.
pub(crate) fn parse_text(text: &str) -> Option<Value> {
    let options = serde_saphyr::options! {
        with_snippet: false,
        budget: serde_saphyr::budget! { max_nodes: MAX_VALUES, max_depth: 32, max_documents: 1 }
    };
    let tree: Spanned<Shape> = serde_saphyr::from_str_with_options(text, options).ok()?;
    Some(plain(tree, "", &mut Vec::new()))
}

fn merge(over: &mut Map<String, Value>, from: Map<String, Value>) {
    for (key, value) in from {
        match (over.get_mut(&key), value) {
            (Some(Value::Object(old)), Value::Object(new)) => merge(old, new),
            (_, value) => {
                over.insert(key, value);
            }
        }
    }
}

/// A YAML value with the line of each part.
enum Shape {
    Null,
    Scalar(Value),
    Seq(Vec<Spanned<Shape>>),
    Map(Vec<(String, Spanned<Shape>)>),
}

fn plain(tree: Spanned<Shape>, path: &str, lines: &mut Vec<(String, u64)>) -> Value {
    match tree.value {
        Shape::Null => Value::Null,
        Shape::Scalar(value) => value,
        Shape::Seq(items) => Value::Array(
            items
                .into_iter()
                .enumerate()
                .map(|(i, item)| {
                    let path = format!("{path}[{i}]");
                    lines.push((path.clone(), item.referenced.line()));
                    plain(item, &path, lines)
                })
                .collect(),
        ),
        Shape::Map(entries) => Value::Object(plain_map(entries, path, lines)),
    }
}

fn plain_map(entries: Vec<(String, Spanned<Shape>)>, path: &str, lines: &mut Vec<(String, u64)>) -> Map<String, Value> {
    entries
        .into_iter()
        .map(|(key, item)| {
            let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
            lines.push((path.clone(), item.referenced.line()));
            (key, plain(item, &path, lines))
        })
        .collect()
}

impl<'de> Deserialize<'de> for Shape {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any;
        impl<'de> Visitor<'de> for Any {
            type Value = Shape;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a value")
            }
            fn visit_unit<E>(self) -> Result<Shape, E> {
                Ok(Shape::Null)
            }
            fn visit_none<E>(self) -> Result<Shape, E> {
                Ok(Shape::Null)
            }
            fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Shape, D::Error> {
                deserializer.deserialize_any(self)
            }
            fn visit_bool<E>(self, it: bool) -> Result<Shape, E> {
                Ok(Shape::Scalar(it.into()))
            }
            fn visit_i64<E>(self, it: i64) -> Result<Shape, E> {
                Ok(Shape::Scalar(it.into()))
            }
            fn visit_u64<E>(self, it: u64) -> Result<Shape, E> {
                Ok(Shape::Scalar(it.into()))
            }
            fn visit_f64<E>(self, it: f64) -> Result<Shape, E> {
                Ok(Shape::Scalar(Number::from_f64(it).map_or_else(|| Value::String(it.to_string()), Value::Number)))
            }
            fn visit_str<E>(self, it: &str) -> Result<Shape, E> {
                Ok(Shape::Scalar(it.into()))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Shape, A::Error> {
                let mut items = Vec::new(); // bounded by the parser's budget
                while let Some(item) = seq.next_element()? {
                    items.push(item);
                }
                Ok(Shape::Seq(items))
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Shape, A::Error> {
                let mut entries = Vec::new(); // bounded by the parser's budget
                while let Some(entry) = map.next_entry()? {
                    entries.push(entry);
                }
                Ok(Shape::Map(entries))
            }
        }
        deserializer.deserialize_any(Any)
    }
}
