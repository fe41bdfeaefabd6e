//! `routes …`: which service is reached in which way. Edited by the owner of control.db, whichever node is asked.

use std::time::{Duration, Instant};

use clap::Subcommand;
use horos_wire::{
    Address, CallError, Request, Unknown,
    protocol::control::{
        Control, ControlError, DeleteRoute, Expected, ListRoutes, MAX_ROUTES, NAME, Route, RouteVersion, SetRoute, Strategy,
    },
};
use serde_json::json;

use super::{Output, Remote, RemoteError, keys, run::End};
use crate::{exit::Exit, render};

/// For the owner to be reached and to answer.
const ANSWER: Duration = Duration::from_secs(5);

/// `routes …`.
#[derive(Clone, Debug, Subcommand)]
pub enum Routes {
    /// The routes there are, by name
    #[command(after_help = "\
Examples:
  {bin} routes list
  {bin} routes list --json | jq -r '.[] | select(.strategy == \"http\") | .endpoint'

As its owner has them. Every other node works on a replica of them in its control.db, an FO without configurations.")]
    List,
    /// Make a route, or replace it; on every node within a second
    #[command(after_help = "\
Examples:
  {bin} routes set mail --strategy http --endpoint https://mail.example.org/send --config '{\"timeout_ms\": 5000}'
  {bin} routes set mail --strategy noop --why 'the provider is down'
  {bin} routes set mail --strategy local --expect 5f0c…   # only if nobody has edited it meanwhile

Who edited what, and why, is written down with it.")]
    Set {
        /// The service
        service: Box<str>,
        /// local, quic, http, mcp, dbsync, embed or noop
        #[arg(long)]
        strategy: Strategy,
        /// Where it is; without any user or password
        #[arg(long, value_name = "URL")]
        endpoint: Option<Box<str>>,
        /// What else the strategy needs: a JSON object, which no FO is told
        #[arg(long, value_name = "JSON")]
        config: Option<Box<str>>,
        /// What must be there: the version that `routes list --json` shows, or absent
        #[arg(long, value_name = "VERSION", value_parser = expected)]
        expect: Option<Expected>,
        /// Why, for whoever wonders later
        #[arg(long, value_name = "TEXT")]
        why: Option<Box<str>>,
    },
    /// Delete a route; on every node within a second
    #[command(after_help = "Examples:\n  {bin} routes delete mail\n  {bin} routes delete mail --why 'moved into the shop'")]
    Delete {
        /// The service
        service: Box<str>,
        /// The version that it must have
        #[arg(long, value_name = "VERSION")]
        expect: Option<RouteVersion>,
        /// Why
        #[arg(long, value_name = "TEXT")]
        why: Option<Box<str>>,
    },
}

fn expected(text: &str) -> Result<Expected, String> {
    match text {
        "absent" => Ok(Expected::Absent),
        version => version.parse().map(Expected::Version).map_err(|error: horos_wire::hex::HexError| error.to_string()),
    }
}

/// Asks the owner. Its own error is told in its words.
async fn ask<R, Q>(node: &mut R, at: &Address, request: &Q, output: &Output) -> Result<Q::Reply, End>
where
    R: Remote,
    Q: Request<Protocol = Control, Error = ControlError>,
{
    let body = json!({ Q::NAME: request }).to_string();
    match node.call_json(at, &body, Instant::now() + ANSWER, None).await {
        Ok(answer) => serde_json::from_str(&answer)
            .map_err(|error| RemoteError::Call(CallError::Unknown(Unknown::MalformedReply(error.to_string().into()))).into()),
        Err(RemoteError::Call(CallError::Failed(body))) => Err(match serde_json::from_str::<ControlError>(&body) {
            Ok(error) => output.fail(exit(&error), &error, None).into(),
            // Of a later release: as it came.
            Err(_) => RemoteError::Call(CallError::Failed(body)).into(),
        }),
        Err(error) => Err(keys::or_away(error, at, "the routes").into()),
    }
}

fn exit(error: &ControlError) -> Exit {
    match error {
        ControlError::Invalid(_) => Exit::Usage,
        ControlError::Storage(_) => Exit::NoEffect,
        ControlError::Unknown => Exit::Unknown,
        _ => Exit::Failed,
    }
}

pub(crate) async fn routes<R: Remote>(command: Routes, node: &mut R, output: &Output) -> Result<(), End> {
    let at = &keys::owner(node, NAME).await?;
    match command {
        Routes::List => {
            let (mut routes, mut after) = (Vec::<Route>::new(), None);
            // A page holds one at least, and there are so many at most, whatever is answered.
            for _ in 0..MAX_ROUTES {
                let page = ask(node, at, &ListRoutes { after }, output).await?;
                routes.extend(page.routes);
                after = page.next;
                if after.is_none() {
                    break;
                }
            }
            output.data(&routes, |style| render::routes(&routes, style))?;
        }
        Routes::Set { service, strategy, endpoint, config, expect, why } => {
            let set = SetRoute { service, strategy, endpoint, config, expected: expect, why };
            let done = ask(node, at, &set, output).await?;
            output.data(&done, |style| render::routes(done.route.as_slice(), style))?;
            output.say("it holds on every node within a second");
        }
        Routes::Delete { service, expect, why } => {
            let done = ask(node, at, &DeleteRoute { service: service.clone(), expected: expect, why }, output).await?;
            output.data(&json!({ "deleted": service, "edit": done.edit }), |_| String::new())?;
            output.say("it is gone from every node within a second");
        }
    }
    Ok(())
}
