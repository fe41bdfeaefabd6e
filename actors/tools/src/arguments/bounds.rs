//! What a schema may be, and how much work it may be.
//!
//! A few bytes of schema can mean much work: `$ref`s to two places that each refer to two places, and so on, are 2ⁿ checks of one value.
//! So it is counted here how many subschemas apply to one value at most, all references followed.

use std::collections::HashMap;

use rmcp::model::JsonObject;
use serde_json::Value;

use crate::Problem;

/// Largest schema, in bytes of JSON.
pub(crate) const MAX_SCHEMA: usize = 64 * 1024;
/// Deepest.
const MAX_DEPTH: usize = 64;
/// Most patterns; each has up to 256 KiB when compiled, and as much for its matches.
const MAX_PATTERNS: usize = 32;
/// Most subschemas that may apply to one value.
const MAX_APPLIED: u64 = 1_000;
/// Most visits of one value while problems are looked for, which remembers no answers.
const MAX_VISITS: u64 = 10_000;
/// Deepest value that comes from outside: what `serde_json` reads.
const MAX_VALUE: usize = 128;

/// Keywords whose value is data and no schema.
const DATA: [&str; 5] = ["const", "enum", "default", "examples", "example"];
/// Whose value is an object of schemas.
const NAMED: [&str; 6] = ["properties", "patternProperties", "$defs", "definitions", "dependentSchemas", "dependencies"];
/// Of those, which apply to the value itself.
const NAMED_HERE: [&str; 2] = ["dependentSchemas", "dependencies"];
/// Schemas, or arrays of them, that apply to the value itself.
const HERE: [&str; 7] = ["allOf", "anyOf", "oneOf", "not", "if", "then", "else"];
/// Which apply to any member or item.
const BELOW: [&str; 8] = [
    "additionalProperties",
    "unevaluatedProperties",
    "propertyNames",
    "items",
    "prefixItems",
    "additionalItems",
    "unevaluatedItems",
    "contains",
];
/// Where it says which JSON Schema it is, without the scheme and an empty fragment; one that says nothing is of the last.
const DRAFTS: [&str; 5] = [
    "json-schema.org/draft-04/schema",
    "json-schema.org/draft-06/schema",
    "json-schema.org/draft-07/schema",
    "json-schema.org/draft/2019-09/schema",
    "json-schema.org/draft/2020-12/schema",
];
const REFERENCES: [&str; 3] = ["$ref", "$dynamicRef", "$recursiveRef"];

/// Checks all bounds; `Ok` says whether problems in a value may be looked for.
///
/// # Errors
/// What is wrong, as JSON Pointers into the schema.
pub(super) fn check(schema: &JsonObject) -> Result<bool, Vec<Problem>> {
    if schema.get("type").and_then(Value::as_str) != Some("object") {
        return Err(vec![Problem::new("/type", "must be \"object\"")]);
    }
    // `Value` has no bound of its own where a program made it.
    let size = serde_json::to_vec(schema).map_or(usize::MAX, |json| json.len());
    if size > MAX_SCHEMA {
        return Err(vec![Problem::new("", format!("is {size} bytes long, {MAX_SCHEMA} at most"))]);
    }
    let mut graph = Graph::default();
    graph.add(schema, &mut String::new(), 0);
    if graph.patterns > MAX_PATTERNS {
        graph.problems.push(Problem::new("", format!("has {} patterns, {MAX_PATTERNS} at most", graph.patterns)));
    }
    if !graph.problems.is_empty() {
        return Err(graph.problems);
    }
    graph.resolve()?;
    let mut applied = vec![Applied::Unknown; graph.nodes.len()];
    for node in 0..graph.nodes.len() {
        if graph.applied(node, &mut applied)? > MAX_APPLIED {
            return Err(vec![Problem::new(
                graph.nodes[node].at.as_str(),
                format!("is more than {MAX_APPLIED} schemas for one value, references followed"),
            )]);
        }
    }
    Ok(!graph.refers || graph.visits() <= MAX_VISITS)
}

/// All subschemas, and which apply where.
#[derive(Default)]
struct Graph {
    nodes: Vec<Node>,
    /// Where each is, and under what anchor.
    places: HashMap<String, usize>,
    problems: Vec<Problem>,
    patterns: usize,
    refers: bool,
}

#[derive(Default)]
struct Node {
    at: String,
    /// Apply to the same value.
    here: Vec<usize>,
    /// Apply to a member or an item, by the name of the member where only that one is meant.
    below: Vec<(Option<Box<str>>, usize)>,
    /// Still to be found.
    references: Vec<(&'static str, String)>,
}

#[derive(Clone, Copy)]
enum Applied {
    Unknown,
    Counting,
    Known(u64),
}

impl Graph {
    fn add(&mut self, schema: &JsonObject, at: &mut String, depth: usize) -> usize {
        let index = self.nodes.len();
        self.nodes.push(Node { at: at.clone(), ..Node::default() });
        self.places.insert(format!("#{at}"), index);
        if depth > MAX_DEPTH {
            self.problems.push(Problem::new(at.as_str(), format!("is deeper than {MAX_DEPTH} levels")));
            return index;
        }
        for (key, value) in schema {
            let key = key.as_str();
            if let Some(reference) = REFERENCES.into_iter().find(|name| *name == key) {
                match value.as_str() {
                    Some(target) if target.starts_with('#') => self.nodes[index].references.push((reference, target.to_owned())),
                    _ => self.wrong(at, key, "refers to something outside; \"#/$defs/NAME\" is within"),
                }
                self.refers = true;
            } else if matches!(key, "$anchor" | "$dynamicAnchor") {
                if let Some(anchor) = value.as_str() {
                    self.places.entry(format!("#{anchor}")).or_insert(index);
                }
            } else if matches!(key, "$id" | "id") && value.is_string() && index != 0 {
                self.wrong(at, key, "only the schema itself may have one");
            } else if key == "$schema" {
                if index != 0 {
                    self.wrong(at, key, "only the schema itself may have one");
                } else if !value.as_str().is_some_and(is_draft) {
                    self.wrong(at, key, "is no JSON Schema that is known here, such as https://json-schema.org/draft/2020-12/schema");
                }
            } else if key == "pattern" {
                self.patterns += 1;
            } else if NAMED.contains(&key) {
                let Some(named) = value.as_object() else { continue };
                self.patterns += if key == "patternProperties" { named.len() } else { 0 };
                for (name, value) in named {
                    let step = format!("/{key}/{}", escaped(name));
                    let Some(child) = self.child(value, at, &step, depth) else { continue };
                    let node = &mut self.nodes[index];
                    match key {
                        "properties" => node.below.push((Some(name.as_str().into()), child)),
                        "patternProperties" => node.below.push((None, child)),
                        _ if NAMED_HERE.contains(&key) => node.here.push(child),
                        _ => {}
                    }
                }
            } else if HERE.contains(&key) || BELOW.contains(&key) {
                let children: Vec<_> = match value {
                    Value::Array(items) => {
                        let steps = items.iter().enumerate();
                        steps.filter_map(|(item, value)| self.child(value, at, &format!("/{key}/{item}"), depth)).collect()
                    }
                    value => self.child(value, at, &format!("/{key}"), depth).into_iter().collect(),
                };
                let node = &mut self.nodes[index];
                if HERE.contains(&key) {
                    node.here.extend(children);
                } else {
                    node.below.extend(children.into_iter().map(|child| (None, child)));
                }
            } else if !DATA.contains(&key) {
                // What a keyword of somebody else's has may be referred to all the same.
                self.other(value, at, &format!("/{}", escaped(key)), depth);
            }
        }
        index
    }

    fn wrong(&mut self, at: &str, key: &str, what: &str) {
        self.problems.push(Problem::new(format!("{at}/{key}"), what));
    }

    fn child(&mut self, value: &Value, at: &mut String, step: &str, depth: usize) -> Option<usize> {
        let schema = value.as_object()?;
        let length = at.len();
        at.push_str(step);
        let child = self.add(schema, at, depth + 1);
        at.truncate(length);
        Some(child)
    }

    fn other(&mut self, value: &Value, at: &mut String, step: &str, depth: usize) {
        match value {
            Value::Object(_) => drop(self.child(value, at, step, depth)),
            Value::Array(items) if depth <= MAX_DEPTH => {
                for (item, value) in items.iter().enumerate() {
                    self.other(value, at, &format!("{step}/{item}"), depth + 1);
                }
            }
            _ => {}
        }
    }

    /// Follows all references.
    fn resolve(&mut self) -> Result<(), Vec<Problem>> {
        let mut problems = Vec::new();
        for index in 0..self.nodes.len() {
            for (keyword, target) in std::mem::take(&mut self.nodes[index].references) {
                let place = decoded(&target);
                match place.as_deref().and_then(|place| self.places.get(place)) {
                    Some(found) => self.nodes[index].here.push(*found),
                    None => {
                        let at = format!("{}/{keyword}", self.nodes[index].at);
                        problems.push(Problem::new(at, "refers to no schema within this one"));
                    }
                }
            }
        }
        if problems.is_empty() { Ok(()) } else { Err(problems) }
    }

    /// How many subschemas apply to a value that `node` applies to.
    fn applied(&self, node: usize, known: &mut [Applied]) -> Result<u64, Vec<Problem>> {
        match known[node] {
            Applied::Known(count) => return Ok(count),
            Applied::Counting => return Err(vec![Problem::new(self.nodes[node].at.as_str(), "refers to itself for the same value")]),
            Applied::Unknown => known[node] = Applied::Counting,
        }
        let mut count = 1_u64;
        for child in &self.nodes[node].here {
            count = count.saturating_add(self.applied(*child, known)?);
        }
        known[node] = Applied::Known(count);
        Ok(count)
    }

    /// How often one value is visited at most, in the deepest value there can be, where each schema is asked anew.
    fn visits(&self) -> u64 {
        // By depth of the value below; a schema's own value comes after those that apply to the same one.
        let order = self.order();
        let mut below = vec![1_u64; self.nodes.len()];
        let mut visits = below.clone();
        for _ in 0..MAX_VALUE {
            for node in &order {
                let Node { here, below: children, .. } = &self.nodes[*node];
                let same = here.iter().fold(1_u64, |sum, child| sum.saturating_add(visits[*child]));
                let mut any = 0_u64;
                let mut by_name: HashMap<&str, u64> = HashMap::new();
                for (name, child) in children {
                    let sum = name.as_deref().map_or(&mut any, |name| by_name.entry(name).or_default());
                    *sum = sum.saturating_add(below[*child]);
                }
                let most = by_name.into_values().max().unwrap_or_default().saturating_add(any);
                visits[*node] = same.saturating_add(most);
            }
            if visits == below || visits[0] > MAX_VISITS {
                break;
            }
            below.clone_from(&visits);
        }
        visits[0]
    }

    /// The schemas, each after all that apply to the same value; there is such an order, for none refers to itself there.
    fn order(&self) -> Vec<usize> {
        fn visit(graph: &Graph, node: usize, seen: &mut [bool], order: &mut Vec<usize>) {
            if !std::mem::replace(&mut seen[node], true) {
                graph.nodes[node].here.iter().for_each(|child| visit(graph, *child, seen, order));
                order.push(node);
            }
        }
        let (mut seen, mut order) = (vec![false; self.nodes.len()], Vec::with_capacity(self.nodes.len()));
        (0..self.nodes.len()).for_each(|node| visit(self, node, &mut seen, &mut order));
        order
    }
}

fn is_draft(url: &str) -> bool {
    let url = url.strip_prefix("https://").or_else(|| url.strip_prefix("http://"));
    url.is_some_and(|url| DRAFTS.contains(&url.strip_suffix('#').unwrap_or(url)))
}

fn escaped(key: &str) -> String {
    key.replace('~', "~0").replace('/', "~1")
}

/// A fragment without its percent signs, as it stands in [`Graph::places`]; none if it is no UTF-8.
fn decoded(target: &str) -> Option<String> {
    let (mut bytes, mut rest) = (Vec::with_capacity(target.len()), target.as_bytes());
    while let [first, tail @ ..] = rest {
        let code =
            tail.first_chunk::<2>().and_then(|code| std::str::from_utf8(code).ok()).and_then(|code| u8::from_str_radix(code, 16).ok());
        match code.filter(|_| *first == b'%') {
            Some(byte) => {
                bytes.push(byte);
                rest = &tail[2..];
            }
            None => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    String::from_utf8(bytes).ok()
}
