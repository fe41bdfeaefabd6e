//! Tools that are rows: which there are, what each does, and who may call it. Answered under the name [`NAME`] by the owner of `control.db`
//! and by no other node; every node serves the tools from its replica of these tables.
//!
//! Operators edit; viewers look. An edit is checked whole before it is written, by what makes tools of rows, and who edited what and why is
//! written down in the transaction that makes it, so that any edit can be taken back exactly; a reply means that all of it is on disk. What
//! each node makes of the rows is asked of its own [`super::tools`].

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use super::control::Problem;

/// The name of the actor that answers this protocol.
pub const NAME: &str = "horos.registry";
/// Longest name of a tool, in bytes (MCP 2025-11-25, "Tool names").
pub const MAX_NAME: usize = 128;
/// Longest description, in bytes; the Go system's figure.
pub const MAX_DESCRIPTION: usize = 1_024;
/// Longest category, group, handler type and role, in bytes: a scope is at most 64, and a user's name at most 200.
pub const MAX_WORD: usize = 256;
/// Longest schema and longest configuration, in bytes of JSON: each is kept with each edit.
pub const MAX_JSON: usize = 64 * 1024;
/// Longest reason of an edit, in bytes.
pub const MAX_WHY: usize = 500;
/// Most rows: no node serves more.
pub const MAX_TOOLS: u32 = 10_000;
/// Most rules: every call looks through them.
pub const MAX_RULES: u32 = 10_000;
/// Most entries of a [`ToolList`], a [`ToolHistoryPage`], a [`RuleList`] and an [`ImportTools`].
pub const PAGE: usize = 500;
/// Bytes of texts from which on a page takes no further entry.
pub const PAGE_BYTES: usize = 256 * 1024;

/// What must be there for an edit to be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Expected {
    /// No tool of that name.
    Absent,
    /// The tool in this version.
    Version(i64),
}

/// What a row says of a tool.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ToolText {
    /// What it belongs to.
    pub category: Box<str>,
    /// What people call it; none is its name.
    pub title: Option<Box<str>>,
    /// What it does, for people and models. At most [`MAX_DESCRIPTION`] bytes.
    pub description: Box<str>,
    /// JSON Schema of its arguments, an object's, as JSON text.
    pub input_schema: Box<str>,
    /// JSON Schema of its result.
    pub output_schema: Option<Box<str>>,
    /// What runs it: `sql_query`, `sql_script`, `actor`, `native`, or another that the nodes' release has.
    pub handler_type: Box<str>,
    /// What that is to know: a JSON object as text.
    pub handler_config: Box<str>,
    /// `readonly` or `readwrite`.
    pub mode: Box<str>,
    /// Whether what it does cannot be taken back: it is asked for twice.
    pub destructive: bool,
    /// Whether doing it twice is doing it once.
    pub idempotent: bool,
    /// Tools of two groups are not for one session; `default` goes with all.
    pub group: Box<str>,
    /// Longest run, in milliseconds; none is the nodes' usual.
    pub timeout_ms: Option<i64>,
    /// Whether it is listed and called at all.
    pub active: bool,
}

/// Makes a tool, or replaces the one of that name.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct SetTool {
    /// Its name. 1 to [`MAX_NAME`] of `a-z`, `A-Z`, `0-9`, `_`, `-` and `.`.
    pub name: Box<str>,
    /// What it is to say.
    pub text: ToolText,
    /// What must be there; none is whatever there is.
    pub expected: Option<Expected>,
    /// Why, for whoever wonders later. At most [`MAX_WHY`] bytes.
    pub why: Option<Box<str>>,
}

/// Deletes a tool. Its history stays.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct DeleteTool {
    /// The tool.
    pub name: Box<str>,
    /// Which version it must have; none is whichever it has.
    pub expected: Option<i64>,
    /// Why. At most [`MAX_WHY`] bytes.
    pub why: Option<Box<str>>,
}

/// Lists and serves a tool again, or no longer, and leaves it as it is otherwise.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct TurnTool {
    /// The tool.
    pub name: Box<str>,
    /// Whether it is to be served.
    pub active: bool,
    /// Which version it must have; none is whichever it has.
    pub expected: Option<i64>,
    /// Why. At most [`MAX_WHY`] bytes.
    pub why: Option<Box<str>>,
}

/// Puts a tool back to what it was in one of its versions. Itself an edit, with a version of its own.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct RollbackTool {
    /// The tool. It may have been deleted since.
    pub name: Box<str>,
    /// To which version.
    pub to: i64,
    /// What must be there now; none is whatever there is.
    pub expected: Option<Expected>,
    /// Why. At most [`MAX_WHY`] bytes.
    pub why: Option<Box<str>>,
}

/// An edit was made.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ToolEdited {
    /// The version that it made. Those of one name rise, and none is given twice.
    pub version: i64,
    /// The tool as it is now; none where there is none any more.
    pub tool: Option<ToolRow>,
}

/// Asks for the rows, by name.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ListTools {
    /// Those after this one: the last of the page before.
    pub after: Option<Box<str>>,
}

/// At most [`PAGE`] rows, and about [`PAGE_BYTES`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ToolList {
    /// The rows, wrong ones and those that are turned off among them.
    pub tools: Vec<ToolRow>,
    /// What to ask for next as [`ListTools::after`]; none when there are no more.
    pub next: Option<Box<str>>,
}

/// Asks for one row.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct GetTool {
    /// The tool.
    pub name: Box<str>,
}

/// A row as it stands in the table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ToolRow {
    /// Its name.
    pub name: Box<str>,
    /// What it says.
    pub text: ToolText,
    /// Rises with each edit, whoever makes it.
    pub version: i64,
    /// Who made it, as far as that is known.
    pub created_by: Option<Box<str>>,
    /// When it was last edited, in seconds since 1970.
    pub updated_at: i64,
    /// Everything that is wrong with it, as the owner's release has it. Nodes do not serve it so; they go on with the last that was right.
    pub problems: Vec<Problem>,
}

/// Asks for edits of tools, the newest first.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ToolHistory {
    /// Of this tool; none is of all.
    pub name: Option<Box<str>>,
    /// Those before this one: [`ToolHistoryPage::next`] of the page before.
    pub before: Option<i64>,
    /// How many at most; [`PAGE`] is never exceeded.
    pub limit: u32,
}

/// At most [`PAGE`] edits, and about [`PAGE_BYTES`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ToolHistoryPage {
    /// The edits, the newest first.
    pub edits: Vec<ToolEdit>,
    /// What to ask for next as [`ToolHistory::before`]; none when there are no more.
    pub next: Option<i64>,
}

/// An edit of a tool, as it was written down.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ToolEdit {
    /// Its number among all edits of tools. Numbers rise and are never given twice.
    pub edit: i64,
    /// Of which tool.
    pub name: Box<str>,
    /// The version that it made.
    pub version: i64,
    /// When, in seconds since 1970.
    pub at: i64,
    /// Who, as the caller's certificate says; `sql` is whoever wrote to the table by another program.
    pub who: Box<str>,
    /// Why, as they said.
    pub why: Box<str>,
    /// What became of it: `created`, `updated`, `replaced` or `deleted`.
    pub what: Box<str>,
    /// What it said from then on; where it was deleted, what it had said until then.
    pub text: ToolText,
    /// Whether it was too large to be kept: texts are cut then, and it cannot be brought back.
    pub cut: bool,
}

/// Who may list and call a tool, or may not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Effect {
    /// May.
    Allow,
    /// May not, whatever else allows it.
    Deny,
}

impl Effect {
    /// As it is written.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Allow => "allow",
            Self::Deny => "deny",
        }
    }
}

impl fmt::Display for Effect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// Makes the one rule that there is for a tool and a role.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct SetRule {
    /// The tool's name, or the beginning of names and `*`. There need not be any such tool yet.
    pub tool: Box<str>,
    /// Who: `*` is everybody with a key, a token or a certificate; `node:ROLE`, `key:OWNER`, `user:USER`, `scope:SCOPE`; any other text is
    /// a scope too.
    pub role: Box<str>,
    /// May they, or not.
    pub effect: Effect,
    /// Why. At most [`MAX_WHY`] bytes.
    pub why: Option<Box<str>>,
}

/// Takes away whatever rules there are for a tool and a role.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct DropRule {
    /// The tool's name, as it stands in the rule.
    pub tool: Box<str>,
    /// Who, as it stands in the rule.
    pub role: Box<str>,
    /// Why. At most [`MAX_WHY`] bytes.
    pub why: Option<Box<str>>,
}

/// The rules were edited.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct RuleEdited {
    /// The edit's number among all edits of rules.
    pub edit: i64,
    /// What holds now for that tool and that role by name; none is what holds without any rule.
    pub rule: Option<ToolRule>,
    /// Whether there is a tool that the rule speaks of now: it may be written before the tool is.
    pub matches: u32,
}

/// A rule.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ToolRule {
    /// Its number.
    pub id: i64,
    /// The tool's name, or the beginning of names and `*`.
    pub tool: Box<str>,
    /// Who.
    pub role: Box<str>,
    /// May they, or not; none is a word that is neither, which counts as a denial.
    pub effect: Option<Effect>,
    /// When it was made, in seconds since 1970.
    pub created_at: i64,
}

/// Asks for the rules, by number.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ListRules {
    /// Those after this one: the last of the page before.
    pub after: Option<i64>,
}

/// At most [`PAGE`] rules.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct RuleList {
    /// The rules.
    pub rules: Vec<ToolRule>,
    /// What to ask for next as [`ListRules::after`]; none when there are no more.
    pub next: Option<i64>,
}

/// Asks for edits of rules, the newest first.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct RuleHistory {
    /// Those before this one: [`RuleHistoryPage::next`] of the page before.
    pub before: Option<i64>,
    /// How many at most; [`PAGE`] is never exceeded.
    pub limit: u32,
}

/// At most [`PAGE`] edits.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct RuleHistoryPage {
    /// The edits, the newest first.
    pub edits: Vec<RuleEdit>,
    /// What to ask for next as [`RuleHistory::before`]; none when there are no more.
    pub next: Option<i64>,
}

/// An edit of a rule, as it was written down.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RuleEdit {
    /// Its number. Numbers rise and are never given twice.
    pub edit: i64,
    /// When, in seconds since 1970.
    pub at: i64,
    /// Who, as the caller's certificate says; `sql` is whoever wrote to the table by another program.
    pub who: Box<str>,
    /// Why, as they said.
    pub why: Box<str>,
    /// The rule's tool.
    pub tool: Box<str>,
    /// The rule's role.
    pub role: Box<str>,
    /// Its effect before; none where there was none.
    pub before: Option<Box<str>>,
    /// Its effect after; none where there is none any more.
    pub after: Option<Box<str>>,
}

/// Takes in rows and rules of another registry. Nothing of them is lost: a row that is wrong is added all the same, and shown as wrong,
/// where there is none of its name; it never replaces one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ImportTools {
    /// The rows. At most [`PAGE`] at a time, with the rules.
    pub tools: Vec<ImportedTool>,
    /// The rules.
    pub rules: Vec<ImportedRule>,
    /// Whether rows that are right replace others of their name.
    pub replace: bool,
    /// Why. At most [`MAX_WHY`] bytes.
    pub why: Option<Box<str>>,
}

/// A row of another registry.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ImportedTool {
    /// Its name.
    pub name: Box<str>,
    /// What it says.
    pub text: ToolText,
}

/// A rule of another registry.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ImportedRule {
    /// The tool.
    pub tool: Box<str>,
    /// Who.
    pub role: Box<str>,
    /// May they.
    pub effect: Effect,
}

/// What became of imported rows.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ToolsImported {
    /// Those that were not there.
    pub added: Vec<Box<str>>,
    /// Those that replaced others.
    pub replaced: Vec<Box<str>>,
    /// Those that were there already, word for word.
    pub same: Vec<Box<str>>,
    /// Those that were not taken, and why.
    pub left: Vec<LeftTool>,
    /// What is wrong with rows that were added.
    pub wrong: Vec<WrongTool>,
    /// How many rules were added.
    pub rules: u32,
    /// Tools, of those that are there now, that no rule allows to anybody but operators.
    pub closed: Vec<Box<str>>,
}

/// A row that was not taken.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct LeftTool {
    /// Its name.
    pub name: Box<str>,
    /// Why not.
    pub why: Box<str>,
}

/// A row that makes no sense.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct WrongTool {
    /// Its name.
    pub name: Box<str>,
    /// Everything that is wrong with it.
    pub problems: Vec<Problem>,
}

/// Why it was not done. Nothing was changed, unless the text says otherwise.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema, thiserror::Error)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum RegistryError {
    /// What was asked for makes no sense.
    #[error("{0}")]
    Invalid(Box<str>),
    /// No such tool.
    #[error("there is no tool {0:?} among the rows; `horos tools list` shows them")]
    NoSuchTool(Box<str>),
    /// It is not what was expected: somebody else was faster. Look again, and decide again.
    #[error("the tool {name:?} is not what was expected: {}", .found.map_or_else(|| "there is none".to_owned(), |version| format!("it is in version {version} now")))]
    Conflict {
        /// Which.
        name: Box<str>,
        /// What it is; none where there is none.
        found: Option<i64>,
    },
    /// The tool would make no sense: everything that is wrong with it.
    #[error("the tool is wrong: {}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Wrong(Vec<Problem>),
    /// There are as many as there may be.
    #[error("there are {MAX_TOOLS} tools, and more are not taken: delete some first")]
    TooMany,
    /// There are as many as there may be.
    #[error("there are {MAX_RULES} rules, and more are not taken: `prefix*` stands for many names")]
    TooManyRules,
    /// No such version of it, or it is too old to be known.
    #[error("there is no version {version} of the tool {name:?}; `horos tools history {name}` shows those that are kept")]
    NoSuchVersion {
        /// Which tool.
        name: Box<str>,
        /// Which version.
        version: i64,
    },
    /// No such rule.
    #[error("there is no rule for {tool:?} and {role:?}; `horos tools policy` shows those that there are")]
    NoSuchRule {
        /// The tool.
        tool: Box<str>,
        /// Who.
        role: Box<str>,
    },
    /// The storage failed; try again.
    #[error("nothing was done: {0}; try again")]
    Storage(Box<str>),
    /// It may have been done or not: look before doing it again.
    #[error("whether it was done is not known; list the tools before you try again")]
    Unknown,
}

crate::protocol! {
    /// What the owner of `control.db` is asked about tools.
    pub Registry = "horos.registry" v1 {
        1 set: SetTool => ToolEdited, RegistryError;
        2 delete: DeleteTool => ToolEdited, RegistryError;
        3 turn: TurnTool => ToolEdited, RegistryError;
        4 rollback: RollbackTool => ToolEdited, RegistryError;
        5 list: ListTools => ToolList, RegistryError;
        6 get: GetTool => ToolRow, RegistryError;
        7 history: ToolHistory => ToolHistoryPage, RegistryError;
        8 set_rule: SetRule => RuleEdited, RegistryError;
        9 drop_rule: DropRule => RuleEdited, RegistryError;
        10 rules: ListRules => RuleList, RegistryError;
        11 rule_history: RuleHistory => RuleHistoryPage, RegistryError;
        12 import: ImportTools => ToolsImported, RegistryError;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_conflict_says_what_is_there() {
        let found = |found| RegistryError::Conflict { name: "stock".into(), found }.to_string();
        assert!(found(None).ends_with("there is none"));
        assert!(found(Some(7)).ends_with("it is in version 7 now"));
    }

    #[test]
    fn everything_that_is_wrong_is_told_at_once() {
        let problem = |key: &str, what: &str| Problem { key: key.into(), what: what.into() };
        let wrong = RegistryError::Wrong(vec![problem("tool_name", "none"), problem("handler_config.query", "two statements")]);
        assert_eq!(wrong.to_string(), "the tool is wrong: tool_name: none; handler_config.query: two statements");
    }
}
