//! The command line every binary of Horos has, a user's own included: what may be typed, and nothing of what it does.
//!
//! The program's name is the one it was started by, never a fixed one: `my-shop up`, `my-shop call stock@bo …`.
//! Data goes to stdout, talk to stderr, the end is an [`Exit`] code.

mod backup;
mod breaker;
mod certificates;
mod client;
mod doctor;
mod init;
mod keys;
mod mcp;
mod output;
mod routes;
mod run;
mod sync;
mod tools;
mod typed;
mod usage;

use std::{net::SocketAddr, path::PathBuf, str::FromStr, time::Duration};

use clap::{Args, CommandFactory as _, FromArgMatches as _, Parser, Subcommand, ValueEnum};
use horos_wire::{ActorName, Address, ClusterName, NodeId, NodeName, Role, Scope};

pub use backup::{BackupError, Database, Manifest, backup, restore};
pub use breaker::{Breaker, OnNode, Ordered, Silent};
pub use client::{Remote, RemoteError, Seen, Via};
pub use doctor::{Check, Checked, doctor};
pub use init::{InitError, InitOptions, Made, OPERATOR, UpLayout, authority_beside, initialise, lay_out};
pub use keys::{Keys, Tokens};
pub use mcp::Mcp;
pub use output::Output;
pub(crate) use output::Screen;
pub use routes::{Inspected, Routes};
pub(crate) use run::running_at;
pub use run::{App, run};
pub use sync::{Filter, Kept, OneReplica, Published, Sync};
pub use tools::{CallTool, OneRule, OneTool, SetTool, ToolAudit, ToolImport, Tools, ToolsOn};
pub use usage::Usage;

use crate::{config::Endpoint, exit::Exit};

/// Where data is when neither `--data` nor `HOROS_DATA` says: in the working directory, in sight.
pub const DEFAULT_DATA: &str = "horos-data";

/// Stands for the program's name in the texts below until [`Cli::parse_as`] knows it.
const BIN: &str = "{bin}";

/// Everything that may be typed.
#[derive(Debug, Parser)]
#[command(version, about = "Typed actors on SQLite, as a distributed back office and front office", after_help = Exit::HELP, propagate_version = true)]
#[command(subcommand_required = true, arg_required_else_help = true)]
pub struct Cli {
    /// What every command takes.
    #[command(flatten)]
    pub common: Common,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What every command takes.
#[derive(Clone, Debug, Args)]
pub struct Common {
    /// Data directory of the node; for `up`, of the whole small cluster
    #[arg(long, global = true, value_name = "DIR", env = "HOROS_DATA", default_value = DEFAULT_DATA)]
    pub data: PathBuf,
    /// Node to ask, as host:port; without it the one whose data directory this is
    #[arg(long, visible_alias = "node", global = true, value_name = "ADDR")]
    pub via: Option<Endpoint>,
    /// Directory with an operator's or viewer's certificate; without it `operator` in the data directory
    #[arg(long, global = true, value_name = "DIR", env = "HOROS_IDENTITY")]
    pub identity: Option<PathBuf>,
    /// Write JSON to stdout, and errors as JSON to stderr
    #[arg(long, global = true)]
    pub json: bool,
    /// Colours; auto leaves them out when NO_COLOR is set or the output is no terminal
    #[arg(long, global = true, value_name = "WHEN", default_value = "auto")]
    pub color: ColorWhen,
}

/// When to write colours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ColorWhen {
    /// To a terminal, unless `NO_COLOR` is set.
    Auto,
    /// Always, pipes included.
    Always,
    /// Never.
    Never,
}

/// The commands.
#[derive(Clone, Debug, Subcommand)]
pub enum Command {
    /// Set up a node: its configuration, its certificate, and the cluster's authority if there is none
    #[command(after_help = "\
Examples:
  {bin} init --data /srv/shop
  {bin} init --data /srv/shop --cluster shop --name bo-1 --listen 192.0.2.7:7400
  {bin} init --data /srv/front --cluster shop --role fo --name fo-1 --seed 192.0.2.7:7400 --request

The authority's key goes to a directory of its own (DIR.authority, or --authority) and no running node reads it:
move it to the machine of whoever signs. With --request no authority is made; the request is signed elsewhere.")]
    Init(Init),
    /// Certificates: request, sign, install, revoke, list
    #[command(subcommand)]
    Identity(Identity),
    /// Who may call what
    #[command(subcommand)]
    Policy(Policy),
    /// Keys for programs that come in over HTTP: create, list, revoke
    #[command(subcommand)]
    Keys(Keys),
    /// Signed tokens that prove a user: issue, revoke, and whose are believed
    #[command(subcommand)]
    Tokens(Tokens),
    /// Routes: which service is reached in which way
    #[command(subcommand)]
    Routes(Routes),
    /// Circuit breakers: how each node's are, forced open or closed, left to themselves, reset
    #[command(subcommand)]
    Breaker(Breaker),
    /// Tools that models call by MCP: rows, who may call them, who did
    #[command(subcommand)]
    Tools(Tools),
    /// Replication: publications, their replicas, filters
    #[command(subcommand)]
    Sync(Sync),
    /// Answer every HTTP request with 503 and a message, or no longer; lasts over restarts (operators)
    #[command(after_help = "\
Examples:
  {bin} maintenance on --message 'Back at noon.'
  {bin} maintenance on fo-1 fo-2
  {bin} maintenance off
  {bin} status

Of the node asked, or of those named. /livez, /readyz and /metrics answer as before, and so do nodes and the command line.")]
    Maintenance(Maintenance),
    /// Run a BO and an FO on this machine, set up on the spot, and show their trees; Ctrl-C stops both
    #[command(after_help = "\
Examples:
  {bin} up
  {bin} up --data /tmp/shop
  {bin} --data /tmp/shop call stock@bo '{\"levels\":{}}'")]
    Up(Up),
    /// Run a back-office node
    #[command(after_help = "\
Examples:
  {bin} bo --data /srv/shop
  HOROS__LOG__FORMAT=json {bin} bo --data /srv/shop --listen '[::]:7400'")]
    Bo(Node),
    /// Run a front-office node
    #[command(after_help = "\
Examples:
  {bin} fo --data /srv/front
  HOROS__PEERS__SEEDS=192.0.2.7:7400 {bin} fo --data /srv/front")]
    Fo(Node),
    /// The supervision trees of the cluster
    #[command(after_help = "\
Examples:
  {bin} tree
  {bin} tree --watch
  {bin} tree --json | jq '.[].node.name'")]
    Tree(Tree),
    /// The nodes of the cluster: how the node asked sees them, and the readiness and release they tell themselves
    #[command(
        after_help = "Examples:\n  {bin} nodes\n  {bin} nodes --via 192.0.2.7:7400 --json | jq '.[] | {name: .node.name, health, release: .status.version}'"
    )]
    Nodes,
    /// How the node asked is: ready or why not, its release, uptime and memory
    #[command(after_help = "\
Examples:
  {bin} status --data /srv/shop
  {bin} status --json | jq .ready

Exit code 0 means that the node takes work, 3 that it runs and takes none now, 5 that it cannot be reached:
the readiness probe for systemd and containers.")]
    Status,
    /// The named actors that can be called
    #[command(after_help = "Examples:\n  {bin} actors\n  {bin} actors --json | jq -r '.[].name'")]
    Actors,
    /// Send a message without waiting for an answer
    #[command(after_help = "\
Examples:
  {bin} send stock@bo '{\"restock\":{\"sku\":\"tea\",\"quantity\":12}}'
  generate | {bin} send stock@bo -

Exit code 0 says that the actor's node has it, not that it was handled.")]
    Send(Send),
    /// Call an actor and print its answer
    #[command(after_help = "\
Examples:
  {bin} call stock@bo '{\"reserve\":{\"sku\":\"tea\",\"quantity\":1}}'
  {bin} call stock@bo-1 '{\"levels\":{}}' --timeout 500ms
  {bin} call stock@bo - < request.json

The actor's own error goes to stderr as JSON, with exit code 1.")]
    Call(Call),
    /// MCP on stdin and stdout, for a program that starts this one to use the node's tools, as the operator
    #[command(after_help = "\
Examples:
  claude mcp add shop -- {bin} mcp --data /srv/shop
  {bin} mcp --via 192.0.2.7:7400 --identity ~/.horos

What a host of MCP servers has in its configuration:
  {\"mcpServers\": {\"shop\": {\"command\": \"{bin}\", \"args\": [\"mcp\", \"--data\", \"/srv/shop\"]}}}

Nothing but MCP is written to stdout. A node that restarts is dialled again; what it was asked and has not answered is answered with an
error that says whether it may have been done. With a key and without a certificate, MCP is at https://NODE/mcp.")]
    Mcp(Mcp),
    /// Stop an actor in good order and start it again (operators)
    #[command(after_help = "Examples:\n  {bin} restart stock@bo-1\n  {bin} restart root/data/services/stock@bo-1")]
    Restart(Target),
    /// Kill an actor as a bug would, for drills (operators)
    #[command(after_help = "Examples:\n  {bin} crash stock@bo-1")]
    Crash(Target),
    /// An actor's last 64 messages, and those before its last death
    #[command(after_help = "Examples:\n  {bin} recorder stock@bo-1\n  {bin} recorder root/link/sessions/fo@fo-1#0@bo-1 --json")]
    Recorder(Target),
    /// Check configuration, certificates, ports, disk and clock
    #[command(after_help = "Examples:\n  {bin} doctor --data /srv/shop\n\nChanges nothing. Exit code 1 when something is wrong.")]
    Doctor,
    /// Copy a node's databases into a directory; the node may be running
    #[command(after_help = "\
Examples:
  {bin} backup --data /srv/shop /backup/2026-11-21

Each database is copied as of one of its commits, checked, and listed with its SHA-256 in backup.json.
Keys, certificates, horos.yaml and blobs/ are not in it: a node that is lost gets a new key by `{bin} identity request`.")]
    Backup(Backup),
    /// Put a backup's databases back; the node must be stopped
    #[command(after_help = "\
Examples:
  {bin} restore --data /srv/shop /backup/2026-11-21
  {bin} restore --data /srv/shop /backup/2026-11-21 --replace")]
    Restore(Restore),
    /// Completions for a shell, to stdout
    #[command(after_help = "Examples:\n  {bin} completions bash > ~/.local/share/bash-completion/completions/{bin}")]
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
}

/// `init`.
#[derive(Clone, Debug, Args)]
pub struct Init {
    /// The cluster's name
    #[arg(long, value_name = "NAME")]
    pub cluster: Option<ClusterName>,
    /// bo (owns data) or fo (faces the public)
    #[arg(long, default_value = "bo", value_parser = node_role)]
    pub role: Role,
    /// The node's name; without it the role and -1
    #[arg(long)]
    pub name: Option<NodeName>,
    /// Address for nodes, the command line and HTTP (UDP and TCP); without it 127.0.0.1 and the role's port
    #[arg(long, value_name = "ADDR")]
    pub listen: Option<SocketAddr>,
    /// A node known from the start, as host:port; may be repeated
    #[arg(long, value_name = "ADDR")]
    pub seed: Vec<Endpoint>,
    /// Directory of the cluster's authority; without it DIR.authority beside the data directory
    #[arg(long, value_name = "DIR")]
    pub authority: Option<PathBuf>,
    /// Only make a key and a request, to be signed where the authority is
    #[arg(long, conflicts_with = "authority")]
    pub request: bool,
    /// The BO that owns the keys and the routes (control.db); without it this node where it is the cluster's first, else bo-1
    #[arg(long, value_name = "NAME")]
    pub control_owner: Option<NodeName>,
}

/// `identity …`.
#[derive(Clone, Debug, Subcommand)]
pub enum Identity {
    /// Make a key here, if there is none, and a request for its certificate; prints the request
    #[command(after_help = "\
Examples:
  {bin} identity request --data /srv/front > fo-1.pem
  {bin} identity request --dir ~/.horos --as shop/operator/alice > alice.pem")]
    Request {
        /// Who asks, as cluster/role/name; without it the node whose data directory this is
        #[arg(long = "as", value_name = "ID", value_parser = identity)]
        id: Option<NodeId>,
        /// Where the key goes; without it the node's identity directory
        #[arg(long, requires = "id")]
        dir: Option<PathBuf>,
    },
    /// Sign a request; prints the certificate followed by the authority's
    #[command(after_help = "\
Examples:
  {bin} identity sign fo-1.pem --as shop/fo/fo-1 --authority /media/key/shop > fo-1.certificate.pem

--as must name whom you mean to sign for: a request that asks for more is refused.")]
    Sign {
        /// The request's file, or - for stdin
        request: PathBuf,
        /// Whom you mean to sign for, as cluster/role/name
        #[arg(long = "as", value_name = "ID", value_parser = identity)]
        id: NodeId,
        /// Days the certificate counts: 90 for nodes and 30 for people unless said otherwise
        #[arg(long, value_parser = clap::value_parser!(u32).range(1..=3653))]
        days: Option<u32>,
        /// Directory of the cluster's authority
        #[arg(long, value_name = "DIR")]
        authority: Option<PathBuf>,
    },
    /// Put a signed certificate beside its key; a running node takes it up by itself
    #[command(after_help = "Examples:\n  {bin} identity install --data /srv/front fo-1.certificate.pem")]
    Install {
        /// What `identity sign` printed, or - for stdin
        certificate: PathBuf,
        /// Directory of the key; without it the node's identity directory
        #[arg(long)]
        dir: Option<PathBuf>,
    },
    /// Revoke certificates: signs a new deny list and sends it to the nodes
    #[command(after_help = "\
Examples:
  {bin} identity revoke shop/fo/fo-1 --authority /media/key/shop
  {bin} identity revoke 3f2a…(serial number or fingerprint, in hexadecimal)

When no node can be reached the list is still signed; send it later with --send.")]
    Revoke {
        /// Whose (cluster/role/name: every certificate in force), or one certificate by serial number or fingerprint
        #[arg(required_unless_present = "send")]
        who: Vec<String>,
        /// Only send the newest list again
        #[arg(long, conflicts_with = "who")]
        send: bool,
        /// Directory of the cluster's authority
        #[arg(long, value_name = "DIR")]
        authority: Option<PathBuf>,
    },
    /// What was signed, and what of it counts
    #[command(after_help = "Examples:\n  {bin} identity list --authority /media/key/shop")]
    List {
        /// Directory of the cluster's authority
        #[arg(long, value_name = "DIR")]
        authority: Option<PathBuf>,
    },
}

/// `policy …`.
#[derive(Clone, Copy, Debug, Subcommand)]
pub enum Policy {
    /// The table of who may call what, as this binary enforces it; what is not in it is denied
    #[command(after_help = "Examples:\n  {bin} policy show\n  {bin} policy show --json")]
    Show,
}

/// `up`.
#[derive(Clone, Debug, Args)]
pub struct Up {
    /// Print addresses and log lines only, without the live tree
    #[arg(long)]
    pub no_tree: bool,
    /// Port of the BO, UDP and TCP; 0 takes any
    #[arg(long, default_value_t = crate::config::BO_PORT)]
    pub bo_port: u16,
    /// Port of the FO, UDP and TCP; 0 takes any
    #[arg(long, default_value_t = crate::config::FO_PORT)]
    pub fo_port: u16,
}

/// `bo` and `fo`.
#[derive(Clone, Debug, Args)]
pub struct Node {
    /// Address for nodes, the command line and HTTP (UDP and TCP), over the configuration's
    #[arg(long, value_name = "ADDR")]
    pub listen: Option<SocketAddr>,
    /// Log level, over the configuration's
    #[arg(long, value_name = "LEVEL")]
    pub log: Option<String>,
    /// Log format (text or json), over the configuration's
    #[arg(long, value_name = "FORMAT")]
    pub log_format: Option<String>,
}

/// `tree`.
#[derive(Clone, Copy, Debug, Args)]
pub struct Tree {
    /// Redraw once a second until Ctrl-C
    #[arg(long)]
    pub watch: bool,
    /// Of the node asked only
    #[arg(long)]
    pub local: bool,
}

/// `send`.
#[derive(Clone, Debug, Args)]
pub struct Send {
    /// name, name@node or name@role
    pub address: Address,
    /// The message, as {"method": {…}}, or - to read it from stdin
    pub message: String,
    /// How long to wait for the node to have it
    #[arg(long, default_value = "2s", value_parser = crate::config::span)]
    pub timeout: Duration,
}

/// `call`.
#[derive(Clone, Debug, Args)]
pub struct Call {
    /// name (by its route, where the node asked has one), name@node or name@role
    pub address: Address,
    /// The request, as {"method": {…}}, or - to read it from stdin
    pub message: String,
    /// How long to wait for the answer; the deadline travels with the call
    #[arg(long, default_value = "2s", value_parser = crate::config::span)]
    pub timeout: Duration,
    /// Two calls with the same key are to have one effect, where the actor keeps keys
    #[arg(long, value_name = "KEY")]
    pub idempotency_key: Option<String>,
}

/// An actor on a node, for `restart`, `crash` and `recorder`.
#[derive(Clone, Debug, Args)]
pub struct Target {
    /// A service (stock@bo-1) or a path in the tree (root/data/store@bo-1); without @ on the node asked
    pub actor: ActorPath,
}

/// `maintenance`.
#[derive(Clone, Debug, Args)]
pub struct Maintenance {
    /// on or off
    pub turn: Turn,
    /// The nodes; without any the one asked
    pub nodes: Vec<NodeName>,
    /// What users are told
    #[arg(long, value_name = "TEXT")]
    pub message: Option<String>,
}

/// On or off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Turn {
    /// From now on.
    On,
    /// No longer.
    Off,
}

/// `backup`.
#[derive(Clone, Debug, Args)]
pub struct Backup {
    /// Where the copies go; must not exist, or be empty
    pub to: PathBuf,
}

/// `restore`.
#[derive(Clone, Debug, Args)]
pub struct Restore {
    /// What `backup` wrote
    pub from: PathBuf,
    /// Replace databases that are there; they are kept beside, with the ending .before-restore
    #[arg(long)]
    pub replace: bool,
}

/// A service's name or a path in the tree, and on which node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ActorPath {
    /// `stock`, or `root/data/services/stock`.
    pub actor: Box<str>,
    /// Where.
    pub scope: Scope,
}

impl FromStr for ActorPath {
    type Err = horos_wire::address::AddressError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let anywhere = |error| {
            // The name of a session in the tree has an @ of its own: root/link/sessions/fo@fo-1#0.
            if text.contains('/') { Ok((text, Scope::Any)) } else { Err(error) }
        };
        let (actor, scope) = match text.rsplit_once('@') {
            None => (text, Scope::Any),
            Some((actor, place)) => format!("x@{place}").parse::<Address>().map(|address| (actor, address.scope)).or_else(anywhere)?,
        };
        match actor.split_once('/') {
            None => drop(actor.parse::<ActorName>()?),
            // What stands in the tree is the node's to know: databases and sessions have names of their own form.
            Some((root, _)) => {
                root.parse::<ActorName>()?;
                let odd = actor.split('/').find(|part| part.is_empty() || part.contains(|c: char| c.is_whitespace() || c.is_control()));
                odd.map_or(Ok(()), |part| part.parse::<ActorName>().map(drop))?;
            }
        }
        Ok(Self { actor: actor.into(), scope })
    }
}

fn node_role(text: &str) -> Result<Role, String> {
    match text.parse() {
        Ok(role @ (Role::Bo | Role::Fo)) => Ok(role),
        _ => Err("a node is bo or fo".into()),
    }
}

fn identity(text: &str) -> Result<NodeId, horos_wire::address::AddressError> {
    if text.starts_with("spiffe://") { NodeId::from_uri(text) } else { NodeId::from_uri(&format!("spiffe://{text}")) }
}

impl Cli {
    /// The command line of a program called `bin`.
    pub fn command_as(bin: &str) -> clap::Command {
        renamed(Self::command(), bin).name(bin.to_owned()).bin_name(bin.to_owned())
    }

    /// Reads `arguments`, the first of which is the program's own path and gives it its name.
    ///
    /// # Errors
    /// What clap says of it: `--help` and `--version` are among its errors.
    pub fn parse_as(arguments: impl IntoIterator<Item = std::ffi::OsString>) -> Result<(Self, String), clap::Error> {
        let mut arguments = arguments.into_iter();
        let bin = program_name(arguments.next().as_ref());
        let mut command = Self::command_as(&bin);
        let matches = command.try_get_matches_from_mut(std::iter::once(std::ffi::OsString::from(&bin)).chain(arguments))?;
        Self::from_arg_matches(&matches).map(|cli| (cli, bin.clone())).map_err(|error| error.format(&mut command))
    }
}

/// Answers a command line that [`Cli::parse_as`] could not read, or that asks for help, and gives the exit code.
pub(crate) fn misused(arguments: &[std::ffi::OsString], error: &clap::Error) -> Exit {
    // Nothing has been read into the fields, so the flag is looked for where it would have been read.
    let json = arguments.iter().skip(1).take_while(|it| *it != "--").any(|it| it == "--json");
    if !error.use_stderr() || !json {
        // Nothing is left to do where even the terminal is gone.
        let _ = error.print();
        return if error.use_stderr() { Exit::Usage } else { Exit::Ok };
    }
    let (text, next) = misuse(error);
    Output::new(&program_name(arguments.first()), true, ColorWhen::Never).fail_text(Exit::Usage, &text, Some(&next))
}

/// What is wrong, and what would be right, in clap's words.
fn misuse(error: &clap::Error) -> (String, String) {
    let told = error.render().to_string();
    match told.strip_prefix("error: ").and_then(|told| told.split_once("\n\n")) {
        Some((wrong, next)) => (wrong.trim().to_owned(), next.trim().to_owned()),
        // Without any argument clap shows the help in place of an error.
        None => ("a command is missing".to_owned(), told.trim().to_owned()),
    }
}

fn program_name(path: Option<&std::ffi::OsString>) -> String {
    let name = path.and_then(|path| std::path::Path::new(path).file_name());
    name.map_or_else(|| "horos".to_owned(), |name| name.to_string_lossy().into_owned())
}

/// The program's name in every help text.
fn renamed(command: clap::Command, bin: &str) -> clap::Command {
    let help = command.get_after_help().map(|help| help.to_string().replace(BIN, bin));
    let command = if let Some(help) = help { command.after_help(help) } else { command };
    let names: Vec<String> = command.get_subcommands().map(|sub| sub.get_name().to_owned()).collect();
    names.into_iter().fold(command, |command, name| command.mut_subcommand(name, |sub| renamed(sub, bin)))
}

#[cfg(test)]
mod tests;
