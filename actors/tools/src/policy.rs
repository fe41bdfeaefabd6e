//! Who may list and call what: rows of `mcp_tool_policy`, and nobody without one.

use crate::Caller;

/// The rules in force. Without any, nobody may do anything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    rules: Vec<Rule>,
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

impl Policy {
    /// The policy of these rules.
    pub fn new(rules: Vec<Rule>) -> Self {
        Self { rules }
    }

    /// Whether `caller` may list and call `tool`: a rule allows it and none denies it.
    pub fn allows(&self, caller: &Caller, tool: &str) -> bool {
        let named = |rule: &&Rule| match rule.tool.strip_suffix('*') {
            Some(beginning) => tool.starts_with(beginning),
            None => *rule.tool == *tool,
        };
        let mut allowed = false;
        for rule in self.rules.iter().filter(named).filter(|rule| caller.is(&rule.role)) {
            if !rule.allows {
                return false;
            }
            allowed = true;
        }
        allowed
    }
}
