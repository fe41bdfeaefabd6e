//! Who may list and call what: rows of `mcp_tool_policy`, and nobody without one.
//!
//! A row means a tool by its name, or all whose names begin as it does before a `*`; and callers by a role, see [`Caller::is`]. Whoever
//! a row allows it, and none denies it, may. Operators may without a row, and no row keeps them from it: their certificate lets them
//! write the rows. Viewers may what only reads, unless a row denies it.
//!
//! What a row says is not guessed: one that cannot be read denies what it may have meant, and allows nothing.

use std::{collections::HashMap, fmt};

use horos_store::rusqlite::types::ValueRef;
use horos_wire::Role;

use crate::{Caller, Definition, Mode, Problem, Who};

/// Most rows that are taken up: with more of them nobody but operators may anything. A hundred for each of a hundred roles.
pub(crate) const MAX_RULES: usize = 10_000;
/// Problems that are told; the rest is the same mistake.
const MAX_TOLD: usize = 100;

/// The rules in force. Without any, nobody may do anything.
#[derive(Clone, Default)]
pub struct Policy {
    rules: Vec<Rule>,
    /// Of the rules that name one tool; as numbers of roles.
    named: HashMap<Box<str>, Vec<Says>>,
    /// Of those that mean all that begins so.
    begun: HashMap<Box<str>, Vec<Says>>,
    /// How long the beginnings are, each once.
    lengths: Vec<usize>,
    /// Each once.
    roles: Vec<Box<str>>,
    problems: Vec<Problem>,
}

/// One row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// A tool's name, or the beginning of names and `*`.
    pub tool: Box<str>,
    /// See [`Caller::is`].
    pub role: Box<str>,
    /// Whether it allows; a row that denies beats all that allow.
    pub allows: bool,
}

#[derive(Clone, Copy)]
struct Says {
    role: usize,
    allows: bool,
}

impl PartialEq for Policy {
    fn eq(&self, other: &Self) -> bool {
        self.rules == other.rules && self.problems == other.problems
    }
}

impl Eq for Policy {}

impl fmt::Debug for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(&self.rules).finish()
    }
}

/// A policy as far as it concerns one caller: which roles it has is found out once.
#[derive(Debug)]
pub struct View<'a> {
    policy: &'a Policy,
    holds: Vec<bool>,
    caller: &'a Caller,
}

impl Policy {
    /// The policy of these rules.
    pub fn new(rules: Vec<Rule>) -> Self {
        Self::told(rules, Vec::new())
    }

    /// Nobody may anything, but operators.
    pub(crate) fn closed() -> Self {
        Self::new(vec![Rule { tool: "*".into(), role: "*".into(), allows: false }])
    }

    /// The same as [`Policy::new`], made of rows of which some were wrong.
    pub(crate) fn told(rules: Vec<Rule>, mut problems: Vec<Problem>) -> Self {
        problems.truncate(MAX_TOLD);
        let mut policy = Self { problems, ..Self::default() };
        let mut numbers: HashMap<&str, usize> = HashMap::new();
        for rule in &rules {
            let role = *numbers.entry(&rule.role).or_insert_with(|| {
                policy.roles.push(rule.role.clone());
                policy.roles.len() - 1
            });
            let (of, name) = match rule.tool.strip_suffix('*') {
                Some(beginning) => {
                    if !policy.lengths.contains(&beginning.len()) {
                        policy.lengths.push(beginning.len());
                    }
                    (&mut policy.begun, beginning)
                }
                None => (&mut policy.named, &*rule.tool),
            };
            let said = of.entry(name.into()).or_default();
            // A role that is denied is denied, however often it is allowed.
            match said.iter_mut().find(|says| says.role == role) {
                Some(says) => says.allows &= rule.allows,
                None => said.push(Says { role, allows: rule.allows }),
            }
        }
        policy.rules = rules;
        policy
    }

    /// What is wrong with rows of it.
    pub fn problems(&self) -> &[Problem] {
        &self.problems
    }

    /// The policy as `caller` finds it, to ask it of many tools.
    pub fn of<'a>(&'a self, caller: &'a Caller) -> View<'a> {
        View { policy: self, holds: self.roles.iter().map(|role| caller.is(role)).collect(), caller }
    }

    /// Whether `caller` may list and call `tool`: as [`View::permits`], for one.
    pub fn permits(&self, caller: &Caller, tool: &Definition) -> bool {
        permits(caller, tool, || self.says(&tool.spec.name, |role| caller.is(&self.roles[role])))
    }

    /// Whether a rule allows `caller` the tool of that name, and none denies it.
    pub fn allows(&self, caller: &Caller, tool: &str) -> bool {
        self.says(tool, |role| caller.is(&self.roles[role])) == Some(true)
    }

    /// What the rules say for whoever `holds` a role; none if they say nothing.
    fn says(&self, tool: &str, holds: impl Fn(usize) -> bool) -> Option<bool> {
        let begun = self.lengths.iter().filter_map(|length| self.begun.get(tool.get(..*length)?));
        let mut allowed = None;
        for says in self.named.get(tool).into_iter().chain(begun).flatten() {
            if (!says.allows || allowed.is_none()) && holds(says.role) {
                if !says.allows {
                    return Some(false);
                }
                allowed = Some(true);
            }
        }
        allowed
    }
}

impl View<'_> {
    /// Whether the caller may list and call `tool`.
    pub fn permits(&self, tool: &Definition) -> bool {
        permits(self.caller, tool, || self.policy.says(&tool.spec.name, |role| self.holds[role]))
    }
}

fn permits(caller: &Caller, tool: &Definition, says: impl Fn() -> Option<bool>) -> bool {
    match &caller.who {
        Who::Node(node) if node.role == Role::Operator => true,
        Who::Node(node) if node.role == Role::Viewer => says().unwrap_or(tool.spec.behaviour.mode == Mode::ReadOnly),
        Who::Node(_) | Who::Principal(_) => says() == Some(true),
    }
}

impl Rule {
    /// What a row says: its tool, role and effect. One that cannot be read is told in `problems`.
    pub(crate) fn read(id: i64, [tool, role, effect]: [ValueRef<'_>; 3], problems: &mut Vec<Problem>) -> Option<Self> {
        let mut wrong = |column: &str, what: &str| problems.push(Problem::new(format!("mcp_tool_policy {id}.{column}"), what));
        let text = |value: ValueRef<'_>| match value {
            ValueRef::Text(bytes) => std::str::from_utf8(bytes).ok().map(str::to_owned),
            ValueRef::Null | ValueRef::Integer(_) | ValueRef::Real(_) | ValueRef::Blob(_) => None,
        };
        let allows = match text(effect).as_deref() {
            Some("allow") => true,
            Some("deny") => false,
            _ => {
                wrong("effect", "is neither allow nor deny; it denies");
                false
            }
        };
        let (tool, role) = (text(tool), text(role));
        if role.is_none() {
            wrong("role", "is no text");
        }
        let beginning = tool.as_deref().and_then(|tool| tool.split_once('*'));
        let tool = match (tool.as_deref(), beginning) {
            (None, _) => {
                wrong("tool_name", "is no text");
                if allows { return None } else { "*".into() }
            }
            (Some(_), Some((beginning, rest))) if !rest.is_empty() => {
                wrong("tool_name", "has a * that is not its end");
                if allows { return None } else { format!("{beginning}*").into() }
            }
            (Some(tool), _) => tool.into(),
        };
        match role {
            Some(role) => Some(Self { tool, role: role.into(), allows }),
            None if allows => None,
            None => Some(Self { tool, role: "*".into(), allows }),
        }
    }
}
