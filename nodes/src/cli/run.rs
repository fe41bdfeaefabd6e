//! Carries out a command: the local ones here, the others through an [`App`] that knows how to run and reach nodes.

use std::{
    fs::File,
    future::Future,
    io::{self, Read as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::{Path, PathBuf},
    process::ExitCode,
    time::{Duration, Instant},
};

use horos_link::identity::authority::AuthorityError;
use horos_wire::{Address, CallError, NoEffect, Role, Scope, policy::Policy as Rules};
use jiff::Timestamp;
use tokio::signal::unix::{Signal, SignalKind};

use super::{
    Checked, Cli, Command, Common, Init, InitError, InitOptions, Node, Output, Policy, Remote, RemoteError, Turn, Up, Via, breaker,
    certificates, init, keys, mcp, routes, sync, tools, usage::usage,
};
use crate::{
    config::{self, Config, DataDir, Seed, Sources},
    exit::Exit,
    logging,
    maintenance::USUAL,
    node::ADDRESS_FILE,
    render,
};

/// Time between two looks of `tree --watch`.
const WATCH: Duration = Duration::from_secs(1);
/// For a node to be reached, where the command has no deadline of its own.
pub(crate) const REACH: Duration = Duration::from_secs(3);
/// For a connection that is being made when Ctrl-C is pressed, so that it can be ended with a word.
const LEAVE: Duration = Duration::from_millis(200);
/// For the schemas of an actor whose message was malformed: a help, not worth a long wait.
const SCHEMA: Duration = Duration::from_secs(1);

/// What the commands need of the program they are part of.
pub trait App {
    /// A connection to a live node.
    type Remote: Remote;
    /// Connects to a node, until `until` at most.
    fn connect(&self, via: &Via, until: Instant) -> impl Future<Output = Result<Self::Remote, RemoteError>>;
    /// Drives a command's future to its end on this thread.
    fn block_on<F: Future>(&self, future: F) -> F::Output;
    /// Runs a node until it is stopped; logging is set up and `data` is held.
    fn node(&self, config: Config, data: DataDir, output: &Output) -> Exit;
    /// Runs a BO and an FO as child processes until it is stopped.
    fn up(&self, up: &Up, common: &Common, output: &Output) -> Exit;
    /// Who may call what in this program.
    fn policy(&self) -> Rules;
}

/// Carries out `cli` for the program called `bin`, and says how that ended.
pub fn run<A: App>(cli: Cli, bin: &str, app: &A) -> ExitCode {
    let output = Output::new(bin, cli.common.json, cli.common.color);
    match dispatch(cli.command, &cli.common, &output, app) {
        Ok(()) => Exit::Ok.into(),
        Err(exit) => exit.into(),
    }
}

fn ended(exit: Exit) -> Result<(), Exit> {
    if exit == Exit::Ok { Ok(()) } else { Err(exit) }
}

fn dispatch<A: App>(command: Command, common: &Common, output: &Output, app: &A) -> Result<(), Exit> {
    match command {
        Command::Init(init) => initialise(init, common, output),
        Command::Identity(command) => certificates::identity(command, common, output, app),
        Command::Policy(Policy::Show) => {
            let rows = app.policy().rows();
            output.data(&rows, |style| render::policy(&rows, style))
        }
        Command::Up(up) => ended(app.up(&up, common, output)),
        Command::Bo(node) => run_node(Role::Bo, &node, common, output, app),
        Command::Fo(node) => run_node(Role::Fo, &node, common, output, app),
        Command::Doctor => doctor(common, output),
        Command::Backup(it) => {
            let data = node_data(&common.data);
            let made =
                super::backup(&data, &it.to, Timestamp::now()).map_err(|error| output.fail(error.exit(), &error, error.next_step()))?;
            output.data(&made, |_| made.text())
        }
        Command::Restore(it) => {
            let data = node_data(&common.data);
            let put = super::restore(&data, &it.from, it.replace).map_err(|error| output.fail(error.exit(), &error, error.next_step()))?;
            output.data(&put, |_| put.text())
        }
        Command::Completions { shell } => {
            let mut text = Vec::new();
            clap_complete::generate(shell, &mut Cli::command_as(output.bin()), output.bin(), &mut text);
            output.raw(&String::from_utf8_lossy(&text))
        }
        Command::Sync(it) if !it.is_remote() => sync::locally(it, common, output),
        Command::Mcp(it) => app.block_on(mcp::mcp(&it, common, output)),
        remote => remotely(remote, common, output, app),
    }
}

/// The commands that ask a live node. Ctrl-C ends any of them.
fn remotely<A: App>(command: Command, common: &Common, output: &Output, app: &A) -> Result<(), Exit> {
    let told = |error: RemoteError| match &error {
        // An answer, if not the one hoped for: it goes out whole, for a script to read.
        RemoteError::Call(CallError::Failed(body)) => output.callee(error.exit(), body),
        other => output.fail(other.exit(), other, other.next_step()),
    };
    let via = via(common).map_err(|why| output.fail_text(Exit::Usage, &why, Some("--via names a node")))?;
    // Read before the runtime runs: stdin blocks.
    let (message, timeout) = match &command {
        Command::Send(it) => (body(&it.message, &it.address, output)?, it.timeout),
        Command::Call(it) => (body(&it.message, &it.address, output)?, it.timeout),
        _ => (String::new(), REACH),
    };
    let until = Instant::now() + timeout;
    let work = async |node: &mut A::Remote| match command {
        Command::Keys(it) => keys::keys(it, node, output).await,
        Command::Tokens(it) => keys::tokens(it, node, output).await,
        Command::Routes(it) => routes::routes(it, node, output).await,
        Command::Breaker(it) => breaker::breaker(it, node, output).await,
        Command::Tools(it) => tools::tools(it, node, output).await,
        Command::Sync(it) => sync::remotely(it, node, output).await,
        other => ask(other, &message, until, node, output).await,
    };
    app.block_on(on_node(app, &via, until, work)).map_err(|end| end.unwrap_or_else(told))
}

/// Does `work` over a connection to a node, which is ended with a word however that goes. Ctrl-C ends it.
pub(crate) async fn on_node<A: App>(
    app: &A,
    via: &Via,
    until: Instant,
    work: impl AsyncFnOnce(&mut A::Remote) -> Result<(), End>,
) -> Result<(), End> {
    let interrupt = interrupted();
    tokio::pin!(interrupt);
    let connecting = app.connect(via, until);
    tokio::pin!(connecting);
    let mut node = tokio::select! {
        biased;
        node = &mut connecting => node?,
        () = &mut interrupt => {
            if let Ok(Ok(mut node)) = tokio::time::timeout(LEAVE, connecting).await {
                node.close().await;
            }
            return Err(Exit::Interrupted.into());
        }
    };
    let done = tokio::select! {
        biased;
        done = work(&mut node) => done,
        () = &mut interrupt => Err(Exit::Interrupted.into()),
    };
    node.close().await;
    done
}

/// Ends when somebody or something wants this process to end. A screen is put back then, and a connection closed.
async fn interrupted() {
    let listen = |kind| tokio::signal::unix::signal(kind).ok();
    let [mut interrupt, mut terminate, mut hangup] = [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()].map(listen);
    let received = async |signal: &mut Option<Signal>| match signal {
        Some(signal) => signal.recv().await,
        // Without a place to listen the kernel's own answer stays: it ends the process.
        None => std::future::pending().await,
    };
    tokio::select! {
        _ = received(&mut interrupt) => {}
        _ = received(&mut terminate) => {}
        _ = received(&mut hangup) => {}
    }
}

/// Why a question to a node ended early: the node's answer, or our own output.
pub(crate) enum End {
    Remote(RemoteError),
    Output(Exit),
}

impl End {
    pub(crate) fn unwrap_or_else(self, told: impl FnOnce(RemoteError) -> Exit) -> Exit {
        match self {
            Self::Remote(error) => told(error),
            Self::Output(exit) => exit,
        }
    }
}

impl From<RemoteError> for End {
    fn from(error: RemoteError) -> Self {
        Self::Remote(error)
    }
}

impl From<Exit> for End {
    fn from(exit: Exit) -> Self {
        Self::Output(exit)
    }
}

async fn ask<R: Remote>(command: Command, message: &str, until: Instant, node: &mut R, output: &Output) -> Result<(), End> {
    match command {
        Command::Tree(it) if it.watch => watch(node, !it.local, output).await?,
        Command::Tree(it) => {
            let nodes = node.tree(!it.local).await?;
            output.data(&nodes, |style| render::tree(&nodes, style))?;
        }
        Command::Nodes => {
            let nodes = node.nodes().await?;
            output.data(&nodes, |style| render::nodes(&nodes, style))?;
        }
        Command::Status => {
            let report = node.status().await?;
            let serving = node.serving().await?;
            let mut value = serde_json::to_value(&report).unwrap_or_default();
            if let (Some(value), Some(serving)) = (value.as_object_mut(), &serving) {
                value.insert("http".into(), serving.addresses.clone().into_iter().map(String::from).collect());
                value.insert("maintenance".into(), serving.maintenance.as_deref().into());
            }
            output.data(&value, |style| render::status(&report, serving.as_ref(), style))?;
            if !report.ready {
                return Err(Exit::NoEffect.into());
            }
        }
        Command::Actors => {
            let actors = node.actors(true).await?;
            output.data(&actors, |style| render::actors(&actors, style))?;
        }
        Command::Send(it) => {
            if let Err(error) = node.cast_json(&it.address, message, until).await {
                return Err(refused(error, &it.address, message, node, output).await);
            }
            output.data(&serde_json::json!({ "sent": it.address }), |_| String::new())?;
        }
        Command::Call(it) => match node.call_json(&it.address, message, until, it.idempotency_key.as_deref()).await {
            Ok(answer) => output.json(&answer)?,
            Err(error) => return Err(refused(error, &it.address, message, node, output).await),
        },
        Command::Restart(it) => {
            node.restart(&it.actor).await?;
            output.data(&serde_json::json!({ "restarted": it.actor.actor }), |_| String::new())?;
        }
        Command::Crash(it) => {
            node.crash(&it.actor).await?;
            output.data(&serde_json::json!({ "crashed": it.actor.actor }), |_| String::new())?;
        }
        Command::Maintenance(it) => {
            let message = it.message.as_deref().unwrap_or(USUAL);
            let message = (it.turn == Turn::On).then_some(message);
            if it.nodes.is_empty() {
                node.maintain(&Scope::Any, message).await?;
            }
            // One that does not answer keeps none of the others from their turn.
            let mut failed = None;
            for name in it.nodes {
                if let Err(error) = node.maintain(&Scope::Node(name.clone()), message).await {
                    output.say(&format!("{name}: {error}"));
                    failed = Some(error);
                }
            }
            if let Some(error) = failed {
                return Err(error.into());
            }
            output.data(&serde_json::json!({ "maintenance": message }), |_| String::new())?;
        }
        Command::Recorder(it) => {
            let recording = node.recorder(&it.actor).await?;
            output.data(&recording, |style| render::recording(&recording, style))?;
        }
        _ => unreachable!("`dispatch` carries out every command that asks no node"),
    }
    Ok(())
}

/// Tells of a message that was not taken; of a malformed one with what the actor takes instead, where it says so in time.
async fn refused<R: Remote>(error: RemoteError, address: &Address, message: &str, node: &mut R, output: &Output) -> End {
    if !matches!(&error, RemoteError::Call(CallError::NoEffect(NoEffect::Malformed(_)))) {
        return error.into();
    }
    let Ok(Ok(description)) = tokio::time::timeout(SCHEMA, node.describe(address)).await else { return error.into() };
    End::Output(output.fail_with_schema(error.exit(), &error, &usage(&description, message)))
}

async fn watch<R: Remote>(node: &mut R, cluster: bool, output: &Output) -> Result<(), End> {
    let mut ticks = tokio::time::interval(WATCH);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut screen = output.screen();
    while !output.is_unread() {
        ticks.tick().await;
        let nodes = node.tree(cluster).await?;
        match &mut screen {
            Some(screen) => {
                let heading = format!("{} nodes at {}, Ctrl-C ends", nodes.len(), Timestamp::now().strftime("%H:%M:%S UTC"));
                screen.draw(&[heading], &nodes, &[])?;
            }
            // A pipe gets one JSON document, or one tree, a second.
            None => output.data(&nodes, |style| render::tree(&nodes, style))?,
        }
    }
    Ok(())
}

/// The JSON body of a message, checked here so that a slip of the keyboard costs no journey.
fn body(text: &str, address: &Address, output: &Output) -> Result<String, Exit> {
    let mut read = String::new();
    let text = if text == "-" {
        // Larger than any message may be, so that the limit that counts is the node's.
        let limit = 2 * u64::from(u32::MAX >> 7);
        io::stdin()
            .lock()
            .take(limit)
            .read_to_string(&mut read)
            .map_err(|error| output.fail_text(Exit::Local, &format!("cannot read stdin: {error}"), None))?;
        read.trim()
    } else {
        text
    };
    let next = "write {\"method\": {…}}; `{bin} actors` lists methods";
    match serde_json::from_str::<serde_json::Value>(text) {
        Ok(serde_json::Value::Object(map)) if map.len() == 1 => Ok(text.to_owned()),
        Ok(_) => Err(output.fail_text(Exit::Usage, &format!("the message for {address} must be one method with its fields"), Some(next))),
        Err(error) => Err(output.fail_text(Exit::Usage, &format!("the message for {address} is no JSON: {error}"), Some(next))),
    }
}

/// The data directory of a node: `root` itself, or the BO's where `root` is that of `up`.
pub(crate) fn node_data(root: &Path) -> PathBuf {
    let bo = root.join("bo");
    if !root.join(config::FILE).exists() && bo.join(config::FILE).exists() { bo } else { root.to_owned() }
}

/// Which node to ask, and as whom.
pub(crate) fn via(common: &Common) -> Result<Via, String> {
    let identity = certificates::person(common);
    if let Some(endpoint) = &common.via {
        return Ok(Via { endpoint: endpoint.clone(), identity });
    }
    let data = node_data(&common.data);
    let config = Config::load(&Sources::of(&data)).map_err(|problems| problems.to_string())?;
    // Where a node that runs says it is: its port may be of the system's choice, or named by an option.
    let mut address = running_at(&data).unwrap_or(config.listen.cluster);
    // A node that listens on all addresses is reached here on its loopback.
    match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => address.set_ip(Ipv4Addr::LOCALHOST.into()),
        IpAddr::V6(ip) if ip.is_unspecified() => address.set_ip(Ipv6Addr::LOCALHOST.into()),
        _ => {}
    }
    if address.port() == 0 {
        return Err("the node does not run, and will listen on a port of the system's choice".into());
    }
    Ok(Via { endpoint: address.into(), identity })
}

/// What the node of this data directory wrote down when its port was open. One that was killed leaves it behind.
pub(crate) fn running_at(data: &Path) -> Option<SocketAddr> {
    // Longer than any two addresses (RFC 4291 §2.2, with a zone and a port): the cluster's, and the public's if it is another.
    const LONGEST: u64 = 256;
    let mut text = String::new();
    File::open(data.join(ADDRESS_FILE)).ok()?.take(LONGEST).read_to_string(&mut text).ok()?;
    text.lines().next()?.trim().parse().ok()
}

fn run_node<A: App>(role: Role, node: &Node, common: &Common, output: &Output, app: &A) -> Result<(), Exit> {
    let sources = Sources::of(&common.data)
        .role(role)
        .flag("listen.cluster", node.listen, "--listen")
        .flag("log.level", node.log.as_ref(), "--log")
        .flag("log.format", node.log_format.as_ref(), "--log-format");
    let config = Config::load(&sources)
        .map_err(|problems| output.fail(Exit::Usage, &problems, Some("nothing was started; `{bin} doctor` checks the rest")))?;
    let data = DataDir::hold(&config.data).map_err(|error| output.fail(Exit::Local, &error, None))?;
    logging::start(&config.log, output.log_color()).map_err(|error| output.fail(Exit::Usage, &error, None))?;
    ended(app.node(config, data, output))
}

fn initialise(it: Init, common: &Common, output: &Output) -> Result<(), Exit> {
    let owner_named = it.control_owner.is_some();
    let options = InitOptions {
        data: common.data.clone(),
        cluster: it.cluster,
        role: it.role,
        name: it.name,
        listen: it.listen,
        seeds: it.seed.into_iter().map(|address| Seed { name: None, role: None, address }).collect(),
        authority: (!it.request).then(|| it.authority.unwrap_or_else(|| init::authority_beside(&common.data))),
        control_owner: it.control_owner,
    };
    let made = super::initialise(&options, Timestamp::now()).map_err(|error| {
        let exit = match &error {
            InitError::Io { .. } | InitError::DataDir(_) | InitError::Authority(AuthorityError::File(_)) => Exit::Local,
            _ => Exit::Usage,
        };
        output.fail(exit, &error, None)
    })?;
    output.say(&format!("{} is set up in {}", made.node.to_uri(), common.data.display()));
    if let Some(path) = &made.authority {
        output.say(&format!("the cluster's authority is in {}: move it to the machine of whoever signs", path.display()));
    }
    if made.authority.is_none() && !owner_named {
        output.say("the keys' owner is taken to be bo-1: --control-owner, or control.owner in horos.yaml, names another");
    }
    let data = common.data.display();
    match &made.request {
        Some(path) => {
            output.say(&format!("next: have {} signed, then `{{bin}} identity install --data {data} CERTIFICATE`", path.display()))
        }
        None => output.say(&format!("next: `{{bin}} {} --data {data}`", made.node.role)),
    }
    let value = serde_json::json!({
        "config": made.config, "node": made.node.to_uri(), "authority": made.authority, "operator": made.operator, "request": made.request,
    });
    output.data(&value, |_| String::new())
}

fn doctor(common: &Common, output: &Output) -> Result<(), Exit> {
    let checks = super::doctor(&Sources::of(node_data(&common.data)), Timestamp::now());
    output.data(&checks, |_| checks.iter().map(|check| check.text().replace("{bin}", output.bin())).collect())?;
    if checks.iter().any(|check| check.state == Checked::Fail) { Err(Exit::Failed) } else { Ok(()) }
}
