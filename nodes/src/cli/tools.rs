//! `tools …`: what language models and other clients of MCP may call. Rows and rules are edited by the owner of control.db, whichever node
//! is asked; what a node serves and who called what is asked of that node, and so is a call.

mod call;
mod import;
mod set;

use std::time::{Duration, Instant};

use clap::{Args, Subcommand};
use horos_wire::{
    Address, NodeName, Request, Scope,
    protocol::{
        control::KEPT_EDITS,
        registry::{
            DeleteTool, DropRule, Effect, Expected, GetTool, ListRules, ListTools, MAX_RULES, MAX_TOOLS, NAME, PAGE, Registry,
            RegistryError, RollbackTool, RuleEdit, RuleHistory, SetRule, ToolEdit, ToolEdited, ToolHistory, ToolRow, ToolRule, TurnTool,
        },
        tools::{self, AuditAsk, AuditEntry, ListServed, ServedTool, Tools as Protocol, ToolsError, ToolsStatus, ToolsStatusAsk},
    },
};
use serde::Serialize;
use serde_json::json;

pub use call::CallTool;
pub use import::ToolImport;
pub use set::SetTool;

use super::{
    Output, Remote, RemoteError, keys,
    run::End,
    typed::{self, ANSWER, Asked, newest, nodes_with},
};
use crate::{exit::Exit, render};

/// Edits and calls that are shown unless it is said how many.
const SHOWN: u32 = 50;
/// Between two looks of whoever follows.
const FOLLOW: Duration = Duration::from_millis(500);

/// `tools …`.
#[derive(Clone, Debug, Subcommand)]
pub enum Tools {
    /// The tools there are, by name, and what is wrong with them
    #[command(after_help = "\
Examples:
  {bin} tools list
  {bin} tools list --on fo-1                                       # what that node serves, the program's own tools among it
  {bin} tools list --json | jq -r '.[] | select(.problems != []) | .name'

As the owner of control.db has them. Every other node serves them from its replica. A row that is wrong, which any program may have
written, is shown with what is wrong; nodes serve on the last that was right.")]
    List {
        /// What this node serves, in place of the rows
        #[arg(long, value_name = "NODE")]
        on: Option<NodeName>,
    },
    /// One tool, whole
    #[command(after_help = "\
Examples:
  {bin} tools show levels
  {bin} tools show levels --json > levels.json; $EDITOR levels.json; {bin} tools set levels --file levels.json

What --json writes is what `set --file` reads; edited by somebody else meanwhile it is refused. Exit code 1 says that there is none.")]
    Show {
        /// The tool
        name: Box<str>,
    },
    /// Make a tool, or change it; on every node within a second
    #[command(after_help = "\
Examples:
  {bin} tools set levels --description 'Tells how much of an article there is.' \\
      --query 'SELECT sku, quantity FROM goods WHERE sku = :sku' --tables goods=sku,quantity
  {bin} tools set restock --description 'Adds to the stock of an article.' --param quantity:integer --tables goods \\
      --statement 'UPDATE goods SET quantity = quantity + :quantity WHERE sku = :sku' --writes goods=update
  {bin} tools set order --description 'Orders an article.' --handler actor --config '{\"service\": \"shop\", \"method\": \"order\"}' \\
      --schema '{\"type\": \"object\", \"properties\": {\"sku\": {\"type\": \"string\"}}, \"required\": [\"sku\"]}'
  {bin} tools set levels --timeout 5s --why 'it should be quick'           # the rest of it stays as it is
  {bin} tools set levels --file levels.json --expect absent

Without --schema the arguments of a tool that is SQL are its :named parameters, texts unless --param says otherwise. It is checked whole
before anything is written, and everything that is wrong with it is told with its place, with exit code 2. Who may call it rules say:
`{bin} tools allow`; without one operators alone may.")]
    Set(Box<SetTool>),
    /// Delete a tool; on every node within a second. Its history stays
    #[command(
        after_help = "Examples:\n  {bin} tools remove levels\n  {bin} tools remove levels --expect 7 --why 'nobody uses it'\n\n`{bin} tools rollback` brings it back."
    )]
    Remove(OneTool),
    /// Have a tool served again
    #[command(after_help = "Examples:\n  {bin} tools enable levels")]
    Enable(OneTool),
    /// Have a tool served no longer, and keep it
    #[command(after_help = "Examples:\n  {bin} tools disable levels --why 'it is too slow'")]
    Disable(OneTool),
    /// Who edited which tool, when and why, the newest first
    #[command(after_help = "\
Examples:
  {bin} tools history
  {bin} tools history levels --limit 5
  {bin} tools history levels --json | jq '.[] | {version, who, query: (.text.handler_config | fromjson | .query)}'

Who wrote to the table by another program, the sqlite3 shell for example, is called sql, unless it said who it is.")]
    History {
        /// The tool; without it every one
        name: Option<Box<str>>,
        /// How many at most
        #[arg(long, value_name = "N", default_value_t = SHOWN, value_parser = clap::value_parser!(u32).range(1..=i64::from(KEPT_EDITS)))]
        limit: u32,
    },
    /// Put a tool back to one of its versions; itself an edit, which can be taken back
    #[command(after_help = "\
Examples:
  {bin} tools rollback levels 3
  {bin} tools rollback levels 3 --expect absent        # it was deleted, and should still be

`{bin} tools history` has the versions.")]
    Rollback {
        /// The tool
        name: Box<str>,
        /// The version
        #[arg(value_name = "VERSION")]
        to: i64,
        /// What must be there now: a version, or absent
        #[arg(long, value_name = "VERSION", value_parser = expected)]
        expect: Option<Expected>,
        /// Why
        #[arg(long, value_name = "TEXT")]
        why: Option<Box<str>>,
    },
    /// Let somebody list and call tools
    #[command(after_help = "\
Examples:
  {bin} tools allow levels shop                # whose key or token has the scope shop
  {bin} tools allow 'stock.*' key:ana          # all tools whose names begin so; ana's keys
  {bin} tools allow levels '*'                 # whoever has a key, a token or a certificate
  {bin} tools allow restock node:bo

A role is a scope, scope:SCOPE, key:OWNER, user:USER, node:ROLE or *. A rule that denies beats all that allow. Operators need none.")]
    Allow(OneRule),
    /// Keep somebody from tools, whatever else allows them
    #[command(after_help = "Examples:\n  {bin} tools deny restock user:eve\n  {bin} tools deny 'stock.*' '*' --why 'stocktaking'")]
    Deny(OneRule),
    /// Take a rule away, whichever it is
    #[command(after_help = "Examples:\n  {bin} tools drop-rule restock user:eve\n\n`{bin} tools policy` shows the rules.")]
    DropRule(OneRule),
    /// The rules: who may list and call what
    #[command(after_help = "\
Examples:
  {bin} tools policy
  {bin} tools policy --history
  {bin} tools policy --json | jq -r '.[] | select(.effect == \"deny\")'

What no rule allows is denied, and not even listed.")]
    Policy {
        /// Who edited the rules, when and why
        #[arg(long)]
        history: bool,
    },
    /// What every node in reach makes of the rows: how many tools it serves, and what is wrong
    #[command(after_help = "Examples:\n  {bin} tools status\n  {bin} tools status --on fo-1 --json | jq '.[].status.wrong_rows'")]
    Status {
        /// This node only
        #[arg(long, value_name = "NODE")]
        on: Option<NodeName>,
    },
    /// Who called what on a node, and how it ended, the newest last
    #[command(after_help = "\
Examples:
  {bin} tools audit
  {bin} tools audit --on fo-1 --outcome denied
  {bin} tools audit --tool restock --follow
  {bin} tools audit --json --limit 1000 | jq -r '.[] | [.caller, .tool, .outcome] | @tsv'

Each node writes down what it was asked; what it passed on to another stands in both. Of arguments only a hash is kept.")]
    Audit(ToolAudit),
    /// Call a tool in your own name, on a node
    #[command(after_help = "\
Examples:
  {bin} tools call levels '{\"sku\": \"tea\"}'
  {bin} tools call levels --on fo-1 < arguments.json -
  {bin} tools call purge '{\"before\": \"2020-01-01\"}' --confirm

What cannot be undone is asked for twice: at a terminal by a question, elsewhere with --confirm. The tool's own error goes to stderr,
with exit code 1; 3 says that nothing was done, 4 that it is not known.")]
    Call(CallTool),
    /// Take in the tools and rules of a file: a database of the Go system, or another node's control.db
    #[command(after_help = "\
Examples:
  {bin} tools import /srv/old/app.db --database app.db
  {bin} tools import /srv/old/app.db --replace --why 'moving house'
  {bin} tools import tools.db --json | jq .wrong

What is not there is added; what was left, and what is wrong with rows that were added, is said. Tools of the Go system name no database:
--database does. Where nobody was named in a rule there everybody might call a tool; here nobody may, and those tools are named.
The file is only read. Exit code 1 says that something was left or is wrong.")]
    Import(ToolImport),
}

/// A tool, for `remove`, `enable` and `disable`.
#[derive(Clone, Debug, Args)]
pub struct OneTool {
    /// The tool
    pub name: Box<str>,
    /// The version that it must have
    #[arg(long, value_name = "VERSION")]
    pub expect: Option<i64>,
    /// Why, for whoever wonders later
    #[arg(long, value_name = "TEXT")]
    pub why: Option<Box<str>>,
}

/// A tool and a role, for `allow`, `deny` and `drop-rule`.
#[derive(Clone, Debug, Args)]
pub struct OneRule {
    /// The tool, or the beginning of names and *
    pub tool: Box<str>,
    /// Who: a scope, scope:SCOPE, key:OWNER, user:USER, node:ROLE, or * for all of them
    pub role: Box<str>,
    /// Why, for whoever wonders later
    #[arg(long, value_name = "TEXT")]
    pub why: Option<Box<str>>,
}

/// `tools audit`.
#[derive(Clone, Debug, Args)]
pub struct ToolAudit {
    /// Calls of this tool
    #[arg(long, value_name = "TOOL")]
    pub tool: Option<Box<str>>,
    /// Calls by this caller, as it is shown
    #[arg(long, value_name = "CALLER")]
    pub caller: Option<Box<str>>,
    /// Calls that ended so: ok, denied, failed, invalid_arguments, deadline, …
    #[arg(long, value_name = "WORD")]
    pub outcome: Option<Box<str>>,
    /// The node; without it the one asked
    #[arg(long, value_name = "NODE")]
    pub on: Option<NodeName>,
    /// How many at most
    #[arg(long, value_name = "N", default_value_t = SHOWN, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub limit: u32,
    /// Go on with what comes, until Ctrl-C
    #[arg(long)]
    pub follow: bool,
}

fn expected(text: &str) -> Result<Expected, String> {
    match text {
        "absent" => Ok(Expected::Absent),
        version => {
            version.parse().map(Expected::Version).map_err(|_| "a version is a whole number; absent means that there is none".into())
        }
    }
}

// --- what asks ---

/// Asks the owner. Its own error is told in its words.
async fn ask<R, Q>(node: &mut R, at: &Address, request: &Q, output: &Output) -> Result<Q::Reply, End>
where
    R: Remote,
    Q: Request<Protocol = Registry, Error = RegistryError>,
{
    typed::ask(node, at, request, Instant::now() + ANSWER).await.map_err(|asked| match asked {
        Asked::Own(error) => output.fail(exit(&error), &error, next(&error)).into(),
        Asked::Remote(error) => keys::or_away(error, at, "the tools").into(),
    })
}

fn exit(error: &RegistryError) -> Exit {
    match error {
        RegistryError::Invalid(_) | RegistryError::Wrong(_) => Exit::Usage,
        RegistryError::Storage(_) => Exit::NoEffect,
        RegistryError::Unknown => Exit::Unknown,
        _ => Exit::Failed,
    }
}

fn next(error: &RegistryError) -> Option<&'static str> {
    match error {
        RegistryError::Wrong(_) => {
            Some("nothing was written; `{bin} tools set --help` has examples, `{bin} tools status` the kinds there are")
        }
        RegistryError::Conflict { .. } => Some("nothing was written; `{bin} tools show` has it as it is now"),
        _ => None,
    }
}

/// One node's tools.
fn on(node: Option<&NodeName>) -> Address {
    Address {
        name: tools::NAME.parse().expect("a literal name that keeps the rules"),
        scope: node.map_or(Scope::Any, |node| Scope::Node(node.clone())),
    }
}

/// Asks one node's tools.
async fn ask_tools<R, Q>(node: &mut R, at: &Address, request: &Q) -> Result<Q::Reply, RemoteError>
where
    R: Remote,
    Q: Request<Protocol = Protocol, Error = ToolsError>,
{
    Ok(typed::ask(node, at, request, Instant::now() + ANSWER).await?)
}

/// How a node's tools are.
#[derive(Debug, Serialize)]
pub struct ToolsOn {
    /// The node.
    pub node: NodeName,
    /// What it said; none where it did not.
    pub status: Option<ToolsStatus>,
    /// Why it did not say.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

// --- what is done ---

pub(crate) async fn tools<R: Remote>(command: Tools, node: &mut R, output: &Output) -> Result<(), End> {
    match command {
        Tools::List { on: Some(name) } => return served(&name, node, output).await,
        Tools::Status { on } => return status(on, node, output).await,
        Tools::Audit(it) => return audit(it, node, output).await,
        Tools::Call(it) => return call::call(it, node, output).await,
        _ => {}
    }
    let at = &keys::owner(node, NAME).await?;
    match command {
        Tools::List { on: None } => {
            let rows = list(node, at, output).await?;
            output.data(&rows, |style| render::tools(&rows, style))?;
        }
        Tools::Show { name } => {
            let row = ask(node, at, &GetTool { name }, output).await?;
            output.data(&row, |style| render::tool(&row, style))?;
        }
        Tools::Set(it) => set::set(*it, node, at, output).await?,
        Tools::Remove(OneTool { name, expect, why }) => {
            let done = ask(node, at, &DeleteTool { name: name.clone(), expected: expect, why }, output).await?;
            output.data(&json!({ "deleted": name, "version": done.version }), |_| String::new())?;
            output.say(&format!(
                "it is gone from every node within a second; `{{bin}} tools rollback {name} {}` brings it back",
                done.version - 1
            ));
        }
        Tools::Enable(OneTool { name, expect, why }) => {
            tell(&ask(node, at, &TurnTool { name, active: true, expected: expect, why }, output).await?, output)?;
        }
        Tools::Disable(OneTool { name, expect, why }) => {
            tell(&ask(node, at, &TurnTool { name, active: false, expected: expect, why }, output).await?, output)?;
        }
        Tools::Rollback { name, to, expect, why } => {
            tell(&ask(node, at, &RollbackTool { name, to, expected: expect, why }, output).await?, output)?;
        }
        Tools::History { name, limit } => {
            let edits = history(name, limit, node, at, output).await?;
            output.data(&edits, |style| render::tool_edits(&edits, style))?;
        }
        Tools::Allow(it) => rule(it, Effect::Allow, node, at, output).await?,
        Tools::Deny(it) => rule(it, Effect::Deny, node, at, output).await?,
        Tools::DropRule(OneRule { tool, role, why }) => {
            let done = ask(node, at, &DropRule { tool: tool.clone(), role: role.clone(), why }, output).await?;
            output.data(&json!({ "dropped": { "tool": tool, "role": role }, "edit": done.edit }), |_| String::new())?;
            output.say("it holds on no node any longer, within a second");
        }
        Tools::Policy { history: true } => {
            let edits = rule_history(node, at, output).await?;
            output.data(&edits, |style| render::rule_edits(&edits, style))?;
        }
        Tools::Policy { history: false } => {
            let rules = rules(node, at, output).await?;
            output.data(&rules, |style| render::rules(&rules, style))?;
        }
        Tools::Import(it) => import::import(it, node, at, output).await?,
        Tools::List { on: Some(_) } | Tools::Status { .. } | Tools::Audit(_) | Tools::Call(_) => unreachable!("done above"),
    }
    Ok(())
}

fn tell(done: &ToolEdited, output: &Output) -> Result<(), Exit> {
    output.data(done, |style| render::tools(done.tool.as_slice(), style))?;
    output.say(&format!("version {}: it holds on every node within a second", done.version));
    Ok(())
}

async fn list<R: Remote>(node: &mut R, at: &Address, output: &Output) -> Result<Vec<ToolRow>, End> {
    let (mut rows, mut after) = (Vec::<ToolRow>::new(), None);
    // A page holds one at least, and there are so many at most, whatever is answered.
    for _ in 0..MAX_TOOLS {
        let page = ask(node, at, &ListTools { after }, output).await?;
        rows.extend(page.tools);
        after = page.next;
        if after.is_none() {
            break;
        }
    }
    Ok(rows)
}

async fn served<R: Remote>(name: &NodeName, node: &mut R, output: &Output) -> Result<(), End> {
    let at = &on(Some(name));
    let (mut served, mut after) = (Vec::<ServedTool>::new(), None);
    // The program's own tools come to those of rows.
    for _ in 0..2 * MAX_TOOLS {
        let page = ask_tools(node, at, &ListServed { after }).await?;
        served.extend(page.tools);
        after = page.next;
        if after.is_none() {
            break;
        }
    }
    output.data(&served, |style| render::served(&served, style))?;
    Ok(())
}

async fn history<R: Remote>(name: Option<Box<str>>, limit: u32, node: &mut R, at: &Address, output: &Output) -> Result<Vec<ToolEdit>, End> {
    newest(limit as usize, async |before, left| {
        let limit = u32::try_from(left).unwrap_or(u32::MAX);
        let page = ask(node, at, &ToolHistory { name: name.clone(), before, limit }, output).await?;
        Ok((page.edits, page.next))
    })
    .await
}

async fn rule<R: Remote>(it: OneRule, effect: Effect, node: &mut R, at: &Address, output: &Output) -> Result<(), End> {
    let OneRule { tool, role, why } = it;
    let done = ask(node, at, &SetRule { tool: tool.clone(), role, effect, why }, output).await?;
    output.data(&done, |style| render::rules(done.rule.as_slice(), style))?;
    let now = match done.matches {
        0 => format!("there is no row {tool} now, and it may be the program's own tool; it holds as soon as there is one"),
        1 => "it holds on every node within a second".to_owned(),
        many => format!("it holds for {many} tools, on every node within a second"),
    };
    output.say(&now);
    Ok(())
}

async fn rules<R: Remote>(node: &mut R, at: &Address, output: &Output) -> Result<Vec<ToolRule>, End> {
    let (mut rules, mut after) = (Vec::<ToolRule>::new(), None);
    // A page that is not the last is full; other programs may write more rules than there may be.
    for _ in 0..=2 * MAX_RULES as usize / PAGE {
        let page = ask(node, at, &ListRules { after }, output).await?;
        rules.extend(page.rules);
        after = page.next;
        if after.is_none() {
            break;
        }
    }
    Ok(rules)
}

async fn rule_history<R: Remote>(node: &mut R, at: &Address, output: &Output) -> Result<Vec<RuleEdit>, End> {
    Ok(ask(node, at, &RuleHistory { before: None, limit: PAGE as u32 }, output).await?.edits)
}

async fn status<R: Remote>(only: Option<NodeName>, node: &mut R, output: &Output) -> Result<(), End> {
    let nodes = match only {
        Some(only) => vec![only],
        // By its protocol and not by its name alone, which anybody's actor may have.
        None => nodes_with::<Protocol, _>(node, tools::NAME).await?,
    };
    let mut found = Vec::new();
    for name in nodes {
        // One node's silence hides nothing of the others.
        let (status, error) = match ask_tools(node, &on(Some(&name)), &ToolsStatusAsk {}).await {
            Ok(status) => (Some(status), None),
            Err(error) => (None, Some(error.to_string())),
        };
        found.push(ToolsOn { node: name, status, error });
    }
    output.data(&found, |style| render::tools_status(&found, style))?;
    if found.iter().any(|it| it.error.is_some()) { Err(Exit::Failed.into()) } else { Ok(()) }
}

async fn audit<R: Remote>(it: ToolAudit, node: &mut R, output: &Output) -> Result<(), End> {
    let at = &on(it.on.as_ref());
    let ToolAudit { tool, caller, outcome, limit, follow, .. } = it;
    let filter = AuditAsk { tool, caller, outcome, ..AuditAsk::default() };
    let mut entries = page(node, at, &filter, limit as usize).await?;
    let mut last = entries.last().map(|it| it.id);
    if !follow {
        output.data(&entries, |style| render::audit(&entries, style))?;
        return Ok(());
    }
    let mut first = true;
    while !output.is_unread() {
        if first || !entries.is_empty() {
            // As JSON one document a look, of what came since the one before.
            output.data(&entries, |style| if first { render::audit(&entries, style) } else { render::audit_more(&entries, style) })?;
            first = false;
        }
        tokio::time::sleep(FOLLOW).await;
        // Where there was nothing yet, whatever comes is new.
        entries = page(node, at, &AuditAsk { after: Some(last.unwrap_or(0)), ..filter.clone() }, usize::MAX).await?;
        last = entries.last().map(|it| it.id).or(last);
    }
    Ok(())
}

/// The newest `limit` entries, the newest last.
async fn page<R: Remote>(node: &mut R, at: &Address, filter: &AuditAsk, limit: usize) -> Result<Vec<AuditEntry>, RemoteError> {
    let mut entries = newest(limit, async |before, left| {
        let page = ask_tools(node, at, &AuditAsk { before, limit: left.min(tools::PAGE) as u32, ..filter.clone() }).await?;
        Ok::<_, RemoteError>((page.entries, page.next))
    })
    .await?;
    entries.reverse();
    Ok(entries)
}
