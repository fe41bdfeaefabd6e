//! `routes …`: which service is reached in which way. Edited by the owner of control.db, whichever node is asked; what each node makes of it
//! is asked of that node.

mod import;

use std::{path::PathBuf, time::Instant};

use clap::Subcommand;
use horos_wire::{
    Address, NodeName, Request, Scope,
    protocol::{
        control::{
            Control, ControlError, DeleteRoute, Edit, Edited, Expected, GetRoute, History, KEPT_EDITS, ListRoutes, MAX_ROUTES, NAME,
            Rollback, RollbackTo, Route, RouteVersion, SetRoute, SetStrategy, Strategy,
        },
        router::{self, GetService, Router, ServiceDetail},
    },
};
use serde::Serialize;
use serde_json::json;

use super::{
    Output, Remote, RemoteError, keys,
    run::End,
    typed::{self, ANSWER, Asked, newest, nodes_with},
};
use crate::{exit::Exit, render};

/// Edits that `history` shows unless it is told how many.
const SHOWN: u32 = 50;

/// `routes …`.
#[derive(Clone, Debug, Subcommand)]
pub enum Routes {
    /// The routes there are, by name
    #[command(after_help = "\
Examples:
  {bin} routes list
  {bin} routes list --json | jq -r '.[] | select(.strategy == \"http\") | .endpoint'
  {bin} routes list --json | jq '.[] | select(.problems != [])'

As its owner has them. Every other node works on a replica of them in its control.db, an FO with what it needs of configurations.
A row that is wrong, which any program may have written, is shown with what is wrong; nodes serve on the last that was right.")]
    List,
    /// One route, whole
    #[command(after_help = "\
Examples:
  {bin} routes get mail
  {bin} routes get mail --json | jq -r .version

Exit code 1 says that there is none.")]
    Get {
        /// The service
        service: Box<str>,
    },
    /// Make a route, or replace it; on every node within a second
    #[command(after_help = "\
Examples:
  {bin} routes set mail --strategy http --endpoint https://mail.example.org/send --config '{\"timeout_ms\": 5000}'
  {bin} routes set mail --strategy quic --endpoint mail@bo --config '{\"retry\": {\"retries\": 2}, \"idempotent\": true}'
  {bin} routes set mail --strategy local --expect 5f0c…   # only if nobody has edited it meanwhile
  {bin} routes set mail --strategy noop --expect absent --why 'not yet'

local takes an actor's name and quic its address (name@node or name@role), by default the service's own name; http an absolute URL.
It is checked whole before anything is written, and everything that is wrong with it is told, with exit code 2. Who edited what,
and why, is written down with it.")]
    Set {
        /// The service
        service: Box<str>,
        /// local, quic, http or noop, or another that the nodes' release has
        #[arg(long)]
        strategy: Strategy,
        /// Where it is; without any user or password
        #[arg(long, value_name = "WHERE")]
        endpoint: Option<Box<str>>,
        /// The policies by which it is called: a JSON object
        #[arg(long, value_name = "JSON")]
        config: Option<Box<str>>,
        /// What must be there: the version that `routes get` shows, or absent
        #[arg(long, value_name = "VERSION", value_parser = expected)]
        expect: Option<Expected>,
        /// Why, for whoever wonders later
        #[arg(long, value_name = "TEXT")]
        why: Option<Box<str>>,
    },
    /// Change how a service is reached, and leave its policies as they are
    #[command(after_help = "\
Examples:
  {bin} routes set-strategy mail noop --why 'the provider is down'
  {bin} routes set-strategy mail http
  {bin} routes set-strategy mail quic --endpoint mail@bo-2
  {bin} routes set-strategy mail local --endpoint ''

Without --endpoint it stays where it was, so that what is switched off by noop is on again by its strategy alone.")]
    SetStrategy {
        /// The service
        service: Box<str>,
        /// local, quic, http or noop, or another that the nodes' release has
        strategy: Strategy,
        /// Where it is from now on; '' is nowhere in particular
        #[arg(long, value_name = "WHERE")]
        endpoint: Option<Box<str>>,
        /// The version that it must have
        #[arg(long, value_name = "VERSION")]
        expect: Option<RouteVersion>,
        /// Why
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
    /// What every node in reach makes of a route: the row in force, endpoints, breakers, latencies
    #[command(after_help = "\
Examples:
  {bin} routes inspect mail
  {bin} routes inspect mail --json | jq '.nodes[] | {node, policies: (.service.policies | fromjson)}'

A node is behind when the row in force there is another than the owner's; --json has the policies with all their defaults.")]
    Inspect {
        /// The service
        service: Box<str>,
        /// This node only
        #[arg(long, value_name = "NODE")]
        on: Option<NodeName>,
    },
    /// Who edited what, when and why, the newest first
    #[command(after_help = "\
Examples:
  {bin} routes history
  {bin} routes history mail --limit 5
  {bin} routes history mail --json | jq '.[] | {edit, who, before, after}'

The last edits of all routes and breakers are kept, with the route before and after. Who wrote to the table by another program, the
sqlite3 shell for example, is called sql.")]
    History {
        /// The service; without it every one
        service: Option<Box<str>>,
        /// How many at most
        #[arg(long, value_name = "N", default_value_t = SHOWN, value_parser = clap::value_parser!(u32).range(1..=i64::from(KEPT_EDITS)))]
        limit: u32,
    },
    /// Put a route back to what it was; itself an edit, which can be taken back
    #[command(after_help = "\
Examples:
  {bin} routes rollback mail                 # to what it was before its last edit
  {bin} routes rollback mail --before 17     # to what it was before edit 17
  {bin} routes rollback mail --as-of 17      # to what it was when edit 17, of whichever route, had been made

`{bin} routes history` has the numbers. A route that was not there then is deleted, one that was deleted is there again.")]
    Rollback {
        /// The service
        service: Box<str>,
        /// To before this edit of it
        #[arg(long, value_name = "EDIT", conflicts_with = "as_of")]
        before: Option<i64>,
        /// To after this edit
        #[arg(long, value_name = "EDIT")]
        as_of: Option<i64>,
        /// What must be there now: a version, or absent
        #[arg(long, value_name = "VERSION", value_parser = expected)]
        expect: Option<Expected>,
        /// Why
        #[arg(long, value_name = "TEXT")]
        why: Option<Box<str>>,
    },
    /// Take in the routes of a file: a routes.db of the Go system, or another node's control.db
    #[command(after_help = "\
Examples:
  {bin} routes import /srv/old/routes.db
  {bin} routes import /srv/old/routes.db --replace --why 'moving house'
  {bin} routes import routes.db --json | jq .left

What is not there is added; what was left, and what is wrong with rows that were added, is said. Rows without a name, which the Go
system permits, are kept as unnamed:N. The file is only read. Exit code 1 says that something was left.")]
    Import {
        /// The file
        file: PathBuf,
        /// Replace routes of the same name, by rows that are right
        #[arg(long)]
        replace: bool,
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
pub(super) async fn ask<R, Q>(node: &mut R, at: &Address, request: &Q, output: &Output) -> Result<Q::Reply, End>
where
    R: Remote,
    Q: Request<Protocol = Control, Error = ControlError>,
{
    typed::ask(node, at, request, Instant::now() + ANSWER).await.map_err(|asked| match asked {
        Asked::Own(error) => output.fail(exit(&error), &error, None).into(),
        Asked::Remote(error) => keys::or_away(error, at, "the routes").into(),
    })
}

fn exit(error: &ControlError) -> Exit {
    match error {
        ControlError::Invalid(_) | ControlError::Wrong(_) | ControlError::NotImplemented { .. } => Exit::Usage,
        ControlError::Storage(_) => Exit::NoEffect,
        ControlError::Unknown => Exit::Unknown,
        _ => Exit::Failed,
    }
}

/// The nodes in reach whose router can be asked, or the one that is named.
pub(super) async fn routers<R: Remote>(node: &mut R, on: Option<NodeName>) -> Result<Vec<NodeName>, RemoteError> {
    match on {
        Some(on) => Ok(vec![on]),
        None => nodes_with::<Router, _>(node, router::NAME).await,
    }
}

/// Asks one node's router.
pub(super) async fn ask_router<R, Q>(node: &mut R, on: &NodeName, request: &Q) -> Result<Q::Reply, RemoteError>
where
    R: Remote,
    Q: Request<Protocol = Router, Error = router::RouterError>,
{
    let at = Address { name: router::NAME.parse().expect("a literal name that keeps the rules"), scope: Scope::Node(on.clone()) };
    Ok(typed::ask(node, &at, request, Instant::now() + ANSWER).await?)
}

/// A route as one node has it.
#[derive(Debug, Serialize)]
pub struct Inspected {
    /// The node.
    pub node: NodeName,
    /// What it makes of the route; none where it did not say.
    pub service: Option<ServiceDetail>,
    /// Whether the row in force there is the owner's; none where it did not say, or the owner has none.
    pub current: Option<bool>,
    /// Why it did not say.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
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
        Routes::Get { service } => {
            let route = ask(node, at, &GetRoute { service }, output).await?;
            output.data(&route, |style| render::route(&route, style))?;
        }
        Routes::Set { service, strategy, endpoint, config, expect, why } => {
            let set = SetRoute { service, strategy, endpoint, config, expected: expect, why };
            tell(&ask(node, at, &set, output).await?, output)?;
        }
        Routes::SetStrategy { service, strategy, endpoint, expect, why } => {
            let set = SetStrategy { service, strategy, endpoint, expected: expect, why };
            tell(&ask(node, at, &set, output).await?, output)?;
        }
        Routes::Delete { service, expect, why } => {
            let done = ask(node, at, &DeleteRoute { service: service.clone(), expected: expect, why }, output).await?;
            output.data(&json!({ "deleted": service, "edit": done.edit }), |_| String::new())?;
            output.say(&format!("edit {}: it is gone from every node within a second", done.edit));
        }
        Routes::Rollback { service, before, as_of, expect, why } => {
            let to = match (before, as_of) {
                (Some(edit), _) => RollbackTo::Before(edit),
                (None, Some(edit)) => RollbackTo::AsOf(edit),
                (None, None) => RollbackTo::Last,
            };
            tell(&ask(node, at, &Rollback { service, to, expected: expect, why }, output).await?, output)?;
        }
        Routes::History { service, limit } => {
            let edits = history(service, limit, node, at, output).await?;
            output.data(&edits, |style| render::edits(&edits, style))?;
        }
        Routes::Inspect { service, on } => inspect(service, on, node, at, output).await?,
        Routes::Import { file, replace, why } => import::import(file, replace, why, node, at, output).await?,
    }
    Ok(())
}

fn tell(done: &Edited, output: &Output) -> Result<(), Exit> {
    output.data(done, |style| render::routes(done.route.as_slice(), style))?;
    output.say(&format!("edit {}: it holds on every node within a second", done.edit));
    Ok(())
}

async fn history<R: Remote>(service: Option<Box<str>>, limit: u32, node: &mut R, at: &Address, output: &Output) -> Result<Vec<Edit>, End> {
    newest(limit as usize, async |before, left| {
        let limit = u32::try_from(left).unwrap_or(u32::MAX);
        let page = ask(node, at, &History { service: service.clone(), before, limit }, output).await?;
        Ok((page.edits, page.next))
    })
    .await
}

async fn inspect<R: Remote>(service: Box<str>, on: Option<NodeName>, node: &mut R, at: &Address, output: &Output) -> Result<(), End> {
    // A service without a route may be called all the same, so that this is no error here.
    let route = match typed::ask(node, at, &GetRoute { service: service.clone() }, Instant::now() + ANSWER).await {
        Ok(route) => Some(route),
        Err(Asked::Own(_)) => None,
        Err(Asked::Remote(error)) => return Err(keys::or_away(error, at, "the routes").into()),
    };
    let mut nodes = Vec::new();
    for on in routers(node, on).await? {
        // One node's silence hides nothing of the others.
        let (service, error) = match ask_router(node, &on, &GetService { service: service.clone() }).await {
            Ok(detail) => (Some(detail), None),
            Err(error) => (None, Some(error.to_string())),
        };
        let current = match (&route, service.as_ref().map(|it| it.status.row)) {
            (Some(route), Some(row)) => Some(row.is_some_and(|row| row.version == route.version || row.version == route.version_on_fo)),
            _ => None,
        };
        nodes.push(Inspected { node: on, service, current, error });
    }
    let value = json!({ "route": route, "nodes": nodes });
    output.data(&value, |style| render::inspected(&service, route.as_ref(), &nodes, style))?;
    if route.is_none() && nodes.iter().all(|it| it.service.is_none()) {
        return Err(output.fail_text(Exit::Failed, &format!("there is no route {service:?}, and no node knows the service"), None).into());
    }
    Ok(())
}
