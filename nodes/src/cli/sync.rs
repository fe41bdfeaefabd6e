//! `sync …`: what is published, where its replicas are, and what is done about a difference.

use std::{
    collections::BTreeMap,
    io::IsTerminal as _,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use clap::{Args, Subcommand};
use horos_dbsync::{
    export::{self, ExportError},
    filter::{CheckError, FilterSpec, Report, check},
    source,
};
use horos_wire::{
    ActorName, Address, NodeName, Protocol as _, Request, Scope as Place,
    protocol::sync::{
        PublicationStatus, PublisherStatusAsk, REPLICA_PREFIX, Replica, ReplicaAsk, ReplicaStatus, Resume, Resumed, Rollback, RolledBack,
        SYNC_PREFIX, StartVerify, Sync as Publishing, VerifyReport, replica_name, sync_name,
    },
};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use serde_json::json;

use super::{
    Common, Output, Remote, RemoteError,
    run::End,
    typed::{self, ANSWER},
};
use crate::{
    exit::Exit,
    render,
    sync::{DIRECTORY, SyncLayout},
};

/// Between looks at a comparison that runs.
const LOOK: Duration = Duration::from_millis(200);
/// A comparison that gets no chunk further for so long is given up here; it goes on by itself.
const NO_PROGRESS: Duration = Duration::from_secs(60);

/// `sync …`.
#[derive(Clone, Debug, Subcommand)]
pub enum Sync {
    /// Publications and their replicas: how far each is, and what went wrong last
    #[command(after_help = "\
Examples:
  {bin} sync status
  {bin} sync status shop --json | jq '.publications[].subscribers[] | {node, lag_ms}'

A position is EPOCH.SEQ.STAMP, as in the header X-Sync-Position. Lag is counted in changes of rows and in time.")]
    Status {
        /// This publication only
        name: Option<String>,
    },
    /// Compare replicas with what they should hold, chunk by chunk, and send again what differs
    #[command(after_help = "\
Examples:
  {bin} sync verify shop
  {bin} sync verify shop --on fo-1 --json

Readers are not disturbed. Exit code 1 says that something differed; it is healed then.")]
    Verify {
        /// The publication
        name: String,
        /// Only the replica of this node
        #[arg(long, value_name = "NODE")]
        on: Option<NodeName>,
    },
    /// Write what a publication holds now into a SQLite file of its own, as a replica would have it
    #[command(after_help = "\
Examples:
  {bin} sync snapshot /tmp/public.db --data /srv/shop
  {bin} sync snapshot /tmp/public.db --data /srv/shop --publication shop

Reads the database in this data directory; the node may be running. The file appears whole or not at all.")]
    Snapshot {
        /// The file, which must not be there yet
        file: PathBuf,
        /// Which publication; without it the only one there is
        #[arg(long, value_name = "NAME")]
        publication: Option<String>,
    },
    /// Filters: what of a database is published
    #[command(subcommand)]
    Filter(Filter),
    /// Take the triggers and tables of ours out of a database; the node must not publish it any more
    #[command(after_help = "\
Examples:
  {bin} sync detach --data /srv/shop app.db

A publication of it begins with a snapshot afterwards.")]
    Detach {
        /// The database, in the data directory unless it is a path
        database: PathBuf,
    },
    /// Have a replica serve what it served before its last snapshot, less what has been withdrawn since; it takes no changes then
    #[command(after_help = "Examples:\n  {bin} sync rollback shop@fo-1")]
    Rollback(OneReplica),
    /// Have a replica take changes again
    #[command(after_help = "Examples:\n  {bin} sync resume shop@fo-1")]
    Resume(OneReplica),
}

/// `sync filter …`.
#[derive(Clone, Debug, Subcommand)]
pub enum Filter {
    /// Try a filter on a database: what it would publish, what not and why, and everything that is wrong with it
    #[command(after_help = "\
Examples:
  {bin} sync filter check shop.yaml --database /srv/shop/app.db
  {bin} sync filter check /srv/shop/sync.yaml --data /srv/shop

The file holds a filter, or is a sync.yaml, of which every publication is tried. Nothing is changed.")]
    Check {
        /// The filter, or a sync.yaml
        file: PathBuf,
        /// The database to try it on; without it app.db in the data directory
        #[arg(long, value_name = "FILE")]
        database: Option<PathBuf>,
    },
}

/// A replica on a node.
#[derive(Clone, Debug, Args)]
pub struct OneReplica {
    /// The publication and the node, as name@node
    #[arg(value_name = "NAME@NODE", value_parser = on_node)]
    pub replica: (String, NodeName),
}

fn on_node(text: &str) -> Result<(String, NodeName), String> {
    let (name, node) = text.split_once('@').ok_or("write NAME@NODE")?;
    replica_name(name).map_err(|error| error.to_string())?;
    Ok((name.to_owned(), node.parse().map_err(|error: horos_wire::address::AddressError| error.to_string())?))
}

impl Sync {
    /// Whether a node has to be asked.
    pub(crate) fn is_remote(&self) -> bool {
        matches!(self, Self::Status { .. } | Self::Verify { .. } | Self::Rollback(_) | Self::Resume(_))
    }
}

// --- what asks nodes ---

async fn ask<R: Request, N: Remote>(node: &mut N, at: &Address, request: &R) -> Result<R::Reply, RemoteError> {
    Ok(typed::ask(node, at, request, Instant::now() + ANSWER).await?)
}

fn at(name: ActorName, node: Place) -> Address {
    Address { name, scope: node }
}

/// A publication as `sync status` shows it.
#[derive(Debug, Serialize)]
pub struct Published {
    /// The node that publishes it.
    pub node: NodeName,
    /// How it is; none where the node did not answer.
    #[serde(flatten)]
    pub status: Option<PublicationStatus>,
    /// Why it did not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// A replica as `sync status` shows it.
#[derive(Debug, Serialize)]
pub struct Kept {
    /// The node that keeps it.
    pub node: NodeName,
    /// How it is; none where the node did not answer.
    #[serde(flatten)]
    pub status: Option<ReplicaStatus>,
    /// Why it did not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

pub(crate) async fn remotely<N: Remote>(command: Sync, node: &mut N, output: &Output) -> Result<(), End> {
    match command {
        Sync::Status { name } => status(name.as_deref(), node, output).await,
        Sync::Verify { name, on } => verify(&name, on, node, output).await,
        Sync::Rollback(OneReplica { replica: (name, on) }) => {
            let to = at(named(replica_name(&name), output)?, Place::Node(on));
            let done: RolledBack = ask(node, &to, &Rollback {}).await?;
            output.data(&done, |_| String::new())?;
            output.say(&match done.withdrawn_rows {
                0 => "it serves what it served before, and takes no changes until `{bin} sync resume`".to_owned(),
                rows => format!(
                    "it serves what it served before less {rows} rows withdrawn since, and takes no changes until `{{bin}} sync resume`"
                ),
            });
            Ok(())
        }
        Sync::Resume(OneReplica { replica: (name, on) }) => {
            let to = at(named(replica_name(&name), output)?, Place::Node(on));
            let _: Resumed = ask(node, &to, &Resume {}).await?;
            output.data(&json!({ "resumed": to }), |_| String::new())?;
            output.say("it takes changes again, beginning with a snapshot");
            Ok(())
        }
        Sync::Snapshot { .. } | Sync::Filter(_) | Sync::Detach { .. } => unreachable!("`locally` carries these out"),
    }
}

fn named(name: Result<ActorName, horos_wire::address::AddressError>, output: &Output) -> Result<ActorName, Exit> {
    name.map_err(|error| output.fail(Exit::Usage, &error, None))
}

async fn status<N: Remote>(only: Option<&str>, node: &mut N, output: &Output) -> Result<(), End> {
    let (mut publications, mut replicas) = (Vec::new(), Vec::new());
    for offered in node.actors(true).await? {
        let wanted = |prefix: &str| offered.name.as_str().strip_prefix(prefix).is_some_and(|name| only.is_none_or(|only| only == name));
        let there = at(offered.name.clone(), Place::Node(offered.node.clone()));
        // By its protocol and not by its name alone, which anybody's actor may have.
        if &*offered.protocol == Publishing::NAME && wanted(SYNC_PREFIX) {
            let (status, error) = told(ask(node, &there, &PublisherStatusAsk {}).await);
            publications.push(Published { node: offered.node, status, error });
        } else if &*offered.protocol == Replica::NAME && wanted(REPLICA_PREFIX) {
            let (status, error) = told(ask(node, &there, &ReplicaAsk {}).await);
            replicas.push(Kept { node: offered.node, status, error });
        }
    }
    if let (Some(name), true, true) = (only, publications.is_empty(), replicas.is_empty()) {
        let next = "`{bin} sync status` lists what there is";
        return Err(output.fail_text(Exit::Failed, &format!("no node in reach publishes or replicates {name:?}"), Some(next)).into());
    }
    let value = json!({ "publications": publications, "replicas": replicas });
    output.data(&value, |style| render::sync(&publications, &replicas, style))?;
    Ok(())
}

/// One node's silence hides nothing of the others.
fn told<T>(answer: Result<T, RemoteError>) -> (Option<T>, Option<String>) {
    match answer {
        Ok(status) => (Some(status), None),
        Err(error) => (None, Some(error.to_string())),
    }
}

async fn verify<N: Remote>(name: &str, on: Option<NodeName>, node: &mut N, output: &Output) -> Result<(), End> {
    let to = at(named(sync_name(name), output)?, Place::Any);
    let mut report: VerifyReport = ask(node, &to, &StartVerify { node: on.clone(), run: None }).await?;
    let bar = bar(output, "{prefix} [{wide_bar}] {pos}/{len} chunks");
    bar.set_prefix(name.to_owned());
    let sum = |report: &VerifyReport| report.nodes.iter().map(|it| it.chunks).sum::<u64>();
    let (mut seen, mut since) = (sum(&report), Instant::now());
    while !report.done {
        tokio::time::sleep(LOOK).await;
        report = ask(node, &to, &StartVerify { node: on.clone(), run: Some(report.run) }).await?;
        let chunks = sum(&report);
        bar.set_length(report.nodes.iter().map(|it| it.total_chunks.max(it.chunks)).sum());
        bar.set_position(chunks);
        if chunks != seen {
            (seen, since) = (chunks, Instant::now());
        } else if since.elapsed() > NO_PROGRESS {
            bar.finish_and_clear();
            let why = report.nodes.iter().find_map(|it| it.error.as_deref()).unwrap_or("a replica does not answer");
            let next = "`{bin} sync status` says which; the comparison goes on by itself";
            return Err(output
                .fail_text(Exit::NoEffect, &format!("no progress for {} s: {why}", NO_PROGRESS.as_secs()), Some(next))
                .into());
        }
    }
    bar.finish_and_clear();
    output.data(&report, |style| render::verified(&report, style))?;
    let differed: u64 = report.nodes.iter().map(|it| it.mismatches).sum();
    if let Some(error) = report.nodes.iter().find_map(|it| it.error.as_deref()) {
        return Err(output.fail_text(Exit::Failed, error, None).into());
    }
    if differed > 0 {
        output.say(&format!("{differed} chunks differed and were sent again"));
        return Err(Exit::Failed.into());
    }
    Ok(())
}

/// Progress for people; nothing where nobody watches.
pub(super) fn bar(output: &Output, template: &str) -> ProgressBar {
    if output.is_json() || !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(0).with_style(style.progress_chars("=> "))
}

// --- what works on files here ---

pub(crate) fn locally(command: Sync, common: &Common, output: &Output) -> Result<(), Exit> {
    let data = super::run::node_data(&common.data);
    match command {
        Sync::Snapshot { file, publication } => snapshot(&data, &file, publication.as_deref(), output),
        Sync::Filter(Filter::Check { file, database }) => filter_check(&data, &file, database, output),
        Sync::Detach { database } => detach(&data, &database, output),
        Sync::Status { .. } | Sync::Verify { .. } | Sync::Rollback(_) | Sync::Resume(_) => unreachable!("`remotely` carries these out"),
    }
}

fn snapshot(data: &Path, file: &Path, name: Option<&str>, output: &Output) -> Result<(), Exit> {
    let layout = SyncLayout::in_force(data).map_err(|error| output.fail(Exit::Usage, &error, None))?;
    let listed = || layout.publications.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
    let chosen = match name {
        Some(name) => layout.publications.get_key_value(name),
        None if layout.publications.len() == 1 => layout.publications.iter().next(),
        None => None,
    };
    let Some((name, publication)) = chosen else {
        let what = match (name, layout.publications.is_empty()) {
            (_, true) => "this node publishes nothing".to_owned(),
            (Some(name), false) => format!("there is no publication {name:?} here; there is {}", listed()),
            (None, false) => format!("name one of {} with --publication", listed()),
        };
        let next = "publications are in sync.yaml, or in the program; a node has to have been started once";
        return Err(output.fail_text(Exit::Usage, &what, Some(next)));
    };
    let bar = bar(output, "{prefix} [{wide_bar}] {human_pos}/{human_len} rows");
    bar.set_prefix(name.clone());
    let made = export::export(&data.join(publication.database.as_str()), &publication.filter, file, &mut |done, total| {
        bar.set_length(total.max(done));
        bar.set_position(done);
    });
    bar.finish_and_clear();
    let made = made.map_err(|error| {
        let exit = if matches!(error, ExportError::Problems(_)) { Exit::Usage } else { Exit::Local };
        output.fail(exit, &error, None)
    })?;
    output.data(&made, |_| String::new())?;
    output.say(&format!("{} holds {} rows of {name}, SHA-256 {}", file.display(), made.rows, made.sha256));
    Ok(())
}

fn filter_check(data: &Path, file: &Path, database: Option<PathBuf>, output: &Output) -> Result<(), Exit> {
    let text =
        std::fs::read_to_string(file).map_err(|error| output.fail_text(Exit::Local, &format!("{}: {error}", file.display()), None))?;
    // A sync.yaml says itself which database each filter is for.
    let wanted: BTreeMap<String, (PathBuf, FilterSpec)> = match SyncLayout::read(&text) {
        Ok(layout) if !layout.publications.is_empty() => layout
            .publications
            .into_iter()
            .map(|(name, it)| (name, (database.clone().unwrap_or_else(|| data.join(it.database.as_str())), it.filter)))
            .collect(),
        whole => {
            let spec: FilterSpec = serde_saphyr::from_str(&text).map_err(|error| {
                // Which of the two it was meant to be shows in what it begins with.
                let why = match whole {
                    Err(whole) if text.contains("publications:") => whole.to_string(),
                    _ => format!("{}: {error}", file.display()),
                };
                output.fail_text(Exit::Usage, &why, Some("a filter has full-tables, filtered-tables and partial-tables"))
            })?;
            BTreeMap::from([("filter".to_owned(), (database.unwrap_or_else(|| data.join("app.db")), spec))])
        }
    };
    let (mut reports, mut wrong) = (BTreeMap::<String, Report>::new(), false);
    for (name, (database, spec)) in wanted {
        match check(&database, &spec) {
            Ok(report) => drop(reports.insert(name, report)),
            Err(error) => {
                wrong = true;
                let exit = if matches!(error, CheckError::Problems(_)) { Exit::Usage } else { Exit::Local };
                output.fail(exit, &error, None);
            }
        }
    }
    if !reports.is_empty() || !wrong {
        output.data(&reports, |style| render::filter(&reports, style))?;
    }
    if wrong { Err(Exit::Failed) } else { Ok(()) }
}

fn detach(data: &Path, database: &Path, output: &Output) -> Result<(), Exit> {
    let file = data.join(database);
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    source::detach(&file, &data.join(DIRECTORY), &name)
        .map_err(|error| output.fail(Exit::Local, &error, Some("nothing was changed; try again")))?;
    output.data(&json!({ "detached": true }), |_| String::new())?;
    output.say("nothing of ours is in it any more");
    Ok(())
}
