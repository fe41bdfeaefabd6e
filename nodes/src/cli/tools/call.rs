//! `tools call`: a tool, called in the operator's own name.

use std::{
    io::{self, IsTerminal as _, Read as _, Write as _},
    time::{Duration, Instant},
};

use clap::Args;
use horos_wire::{
    Address, NodeName,
    protocol::tools::{CallTool as Ask, MAX_ARGUMENTS, ToolFailure},
};
use serde_json::{Map, Value, json};

use super::on;
use crate::{
    cli::{
        Output, Remote, RemoteError,
        run::End,
        typed::{self, Asked},
    },
    exit::Exit,
};

/// The argument by which what was asked for once is done.
const CONFIRM: &str = "confirm";

/// `tools call`.
#[derive(Clone, Debug, Args)]
pub struct CallTool {
    /// The tool
    pub name: Box<str>,
    /// Its arguments: a JSON object, or - to read it from stdin
    #[arg(default_value = "{}")]
    pub arguments: String,
    /// The node; without it the one asked
    #[arg(long, value_name = "NODE")]
    pub on: Option<NodeName>,
    /// Do what cannot be undone without a question
    #[arg(long)]
    pub confirm: bool,
    /// How long to wait; the deadline travels with the call
    #[arg(long, default_value = "30s", value_parser = crate::config::span)]
    pub timeout: Duration,
}

/// Reads the arguments, so that a slip of the keyboard costs no journey.
fn arguments(text: &str, output: &Output) -> Result<Map<String, Value>, Exit> {
    let mut read = String::new();
    let text = if text == "-" {
        let limit = MAX_ARGUMENTS as u64 + 1;
        let taken = io::stdin().lock().take(limit).read_to_string(&mut read);
        taken.map_err(|error| output.fail_text(Exit::Local, &format!("cannot read stdin: {error}"), None))?;
        read.trim()
    } else {
        text
    };
    let next = Some("write {\"name\": value, …}; `{bin} tools show` has the tool's schema");
    match serde_json::from_str(text) {
        Ok(Value::Object(object)) => Ok(object),
        Ok(_) => Err(output.fail_text(Exit::Usage, "the arguments are a JSON object", next)),
        Err(error) => Err(output.fail_text(Exit::Usage, &format!("the arguments are no JSON: {error}"), next)),
    }
}

async fn ask<R: Remote>(node: &mut R, at: &Address, ask: &Ask, until: Instant) -> Result<Result<Box<str>, ToolFailure>, RemoteError> {
    match typed::ask(node, at, ask, until).await {
        Ok(done) => Ok(Ok(done)),
        Err(Asked::Own(failure)) => Ok(Err(failure)),
        Err(Asked::Remote(error)) => Err(error),
    }
}

pub(super) async fn call<R: Remote>(it: CallTool, node: &mut R, output: &Output) -> Result<(), End> {
    let mut arguments = arguments(&it.arguments, output)?;
    let at = on(it.on.as_ref());
    let asked = |arguments: &Map<String, Value>| {
        let text = serde_json::to_string(arguments).unwrap_or_default().into();
        Ask { tool: it.name.clone(), arguments: text }
    };
    let mut done = ask(node, &at, &asked(&arguments), Instant::now() + it.timeout).await?;
    if let Err(ToolFailure::Confirm { what, token, .. }) = &done {
        if !it.confirm && !agreed(what, output).await {
            let next = "nothing was done; --confirm does it without a question";
            return Err(output.fail_text(Exit::Failed, &format!("it is asked for twice: {what}"), Some(next)).into());
        }
        arguments.insert(CONFIRM.to_owned(), (**token).into());
        done = ask(node, &at, &asked(&arguments), Instant::now() + it.timeout).await?;
    }
    let text = done.map_err(|failure| failed(&failure, output))?;
    output.json(&shown(&text))?;
    Ok(())
}

/// The result as it is shown: what is structured alone, where there is such.
fn shown(text: &str) -> String {
    let Ok(Value::Object(mut result)) = serde_json::from_str::<Value>(text) else { return text.to_owned() };
    let value = match (result.remove("structured"), result.remove("content")) {
        (Some(structured), None) => structured,
        (None, Some(content)) => json!({ "content": content }),
        (Some(structured), Some(content)) => json!({ "structured": structured, "content": content }),
        (None, None) => Value::Null,
    };
    serde_json::to_string_pretty(&value).unwrap_or_else(|_| text.to_owned())
}

/// Asks the person at the terminal, if there is one.
async fn agreed(what: &str, output: &Output) -> bool {
    if output.is_json() || !io::stdin().is_terminal() || !io::stderr().is_terminal() {
        return false;
    }
    output.say(what);
    // Whether anybody sees it shows in the answer.
    let _ = write!(io::stderr().lock(), "Do it? [y/N] ");
    let (told, answer) = tokio::sync::oneshot::channel();
    // A thread that nobody waits for: Ctrl-C ends the program while it reads.
    let reads = std::thread::Builder::new().name("answer".to_owned()).spawn(move || {
        let mut line = String::new();
        let read = io::stdin().read_line(&mut line).is_ok();
        // Whoever asked may have gone.
        let _ = told.send(read && matches!(line.trim(), "y" | "Y" | "yes"));
    });
    reads.is_ok() && answer.await.unwrap_or(false)
}

fn failed(failure: &ToolFailure, output: &Output) -> Exit {
    let next = match failure {
        ToolFailure::NoSuchTool(_) => Some("`{bin} tools list` shows the tools, `{bin} tools list --on NODE` what a node serves"),
        ToolFailure::Arguments(_) => Some("nothing was done; `{bin} tools show` has the tool's schema"),
        ToolFailure::Denied(_) => Some("nothing was done; `{bin} tools policy` shows who may"),
        ToolFailure::Busy { .. } | ToolFailure::Unavailable(_) => Some("nothing was done; try again"),
        ToolFailure::Unknown(_) | ToolFailure::Deadline { undone: false, .. } => Some("it may have been done: look before you try again"),
        ToolFailure::Deadline { undone: true, .. } => Some("nothing was changed; --timeout gives it longer, up to the tool's own limit"),
        ToolFailure::Internal { .. } => Some("the node's log has more under that reference"),
        _ => None,
    };
    output.fail(exit(failure), failure, next)
}

/// What it means for the shell.
pub(super) fn exit(failure: &ToolFailure) -> Exit {
    match failure {
        ToolFailure::Arguments(_) => Exit::Usage,
        ToolFailure::Busy { .. } | ToolFailure::Unavailable(_) | ToolFailure::Deadline { undone: true, .. } => Exit::NoEffect,
        ToolFailure::Unknown(_) | ToolFailure::Deadline { undone: false, .. } | ToolFailure::Internal { .. } => Exit::Unknown,
        _ => Exit::Failed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use horos_wire::{NoEffect, Unknown};

    #[test]
    fn what_a_tool_gives_is_shown_without_its_wrapping() {
        assert_eq!(shown(r#"{"structured":{"a":1}}"#), "{\n  \"a\": 1\n}");
        assert_eq!(shown(r#"{"structured":null}"#), "null");
        assert_eq!(shown("{}"), "null");
        assert!(shown(r#"{"content":[{"type":"text","text":"x"}]}"#).contains("\"content\""));
        assert_eq!(shown("no JSON"), "no JSON");
    }

    #[test]
    fn the_exit_code_says_whether_anything_was_done() {
        for (failure, code) in [
            (ToolFailure::NoSuchTool("a".into()), Exit::Failed),
            (ToolFailure::Arguments(vec![]), Exit::Usage),
            (ToolFailure::Unavailable(NoEffect::Stopping), Exit::NoEffect),
            (ToolFailure::Unknown(Unknown::NoReply), Exit::Unknown),
            (ToolFailure::Deadline { after_ms: 1, undone: true }, Exit::NoEffect),
            (ToolFailure::Deadline { after_ms: 1, undone: false }, Exit::Unknown),
            (ToolFailure::Internal { reference: "r".into() }, Exit::Unknown),
        ] {
            assert_eq!(exit(&failure), code, "{failure}");
        }
    }
}
