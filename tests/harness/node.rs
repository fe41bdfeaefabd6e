//! Nodes as an operator has them: set up by the documented commands, run as processes, asked through
//! the command line.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use horos_link::identity::{CA_CERTIFICATE, authority};
use horos_wire::NodeId;
use serde_json::Value;
use tempfile::TempDir;

use super::cli::{self, Outcome};
use super::{HOROS, Process, Site, data_dir, poll_state};

/// For a node to be ready: generous, as a debug build shares two cores with other tests.
pub(crate) const READY: Duration = Duration::from_secs(10);
/// For two nodes to find each other.
pub(crate) const MEET: Duration = Duration::from_secs(10);

/// A cluster's authority, its operator, and the program its nodes run.
#[derive(Debug)]
pub(crate) struct Cluster {
    dir: TempDir,
    program: PathBuf,
}

impl Cluster {
    /// Nodes that run `program`; the first [`Cluster::first`] makes the authority.
    pub(crate) fn of(program: impl Into<PathBuf>) -> Self {
        Self { dir: data_dir(), program: program.into() }
    }

    /// Nodes that run `horos`.
    pub(crate) fn new() -> Self {
        Self::of(HOROS)
    }

    /// A BO and an FO of `program`, running and linked.
    pub(crate) async fn pair(program: impl Into<PathBuf>) -> (Self, Node, Node) {
        Self::pair_with(program, |_| ()).await
    }

    /// The same, set up by `prepare` before their start.
    pub(crate) async fn pair_with(program: impl Into<PathBuf>, prepare: impl Fn(&mut Node)) -> (Self, Node, Node) {
        let cluster = Self::of(program);
        let mut bo = cluster.first("bo-1", [127, 0, 0, 1]).await;
        prepare(&mut bo);
        bo.start().await;
        let mut fo = cluster.join("fo-1", "fo", [127, 0, 0, 2], &[bo.address()]).await;
        prepare(&mut fo);
        fo.start().await;
        bo.sees("fo-1", "up").await;
        fo.sees("bo-1", "up").await;
        (cluster, bo, fo)
    }

    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn authority(&self) -> PathBuf {
        self.path().join("authority")
    }

    /// The operator's identity directory, which setting up the first node makes.
    pub(crate) fn operator(&self) -> PathBuf {
        self.path().join("bo-1/operator")
    }

    /// Runs a command of the program to its end.
    pub(crate) async fn run(&self, args: &[&str]) -> Outcome {
        let mut command = Command::new(&self.program);
        command.args(args);
        cli::run(command).await
    }

    /// Sets up the first node, with the authority and the operator: `init`.
    pub(crate) async fn first(&self, name: &str, host: [u8; 4]) -> Node {
        let data = self.path().join(name);
        let (listen, authority) = (SocketAddr::from((host, 0)).to_string(), self.authority());
        let args = ["init", "--data", text(&data), "--cluster", "shop", "--name", name, "--listen", &listen];
        self.run(&[&args[..], &["--authority", text(&authority)]].concat()).await.expect_code(0);
        self.node(name, "bo", host)
    }

    /// Sets up another node as if the authority were on another machine: `init --request`, `identity request`,
    /// `identity sign`, `identity install`.
    pub(crate) async fn join(&self, name: &str, role: &str, host: [u8; 4], seeds: &[SocketAddr]) -> Node {
        let data = self.path().join(name);
        let listen = SocketAddr::from((host, 0)).to_string();
        let seeds: Vec<String> = seeds.iter().map(ToString::to_string).collect();
        let mut args = vec!["init", "--data", text(&data), "--cluster", "shop", "--role", role, "--name", name, "--listen", &listen];
        args.push("--request");
        args.extend(seeds.iter().flat_map(|seed| ["--seed", seed]));
        self.run(&args).await.expect_code(0);
        self.enrol(name, &format!("shop/{role}/{name}"), &[]).await;
        self.node(name, role, host)
    }

    /// Has the node `name` certified as `id`; `extra` goes to `identity sign`.
    pub(crate) async fn enrol(&self, name: &str, id: &str, extra: &[&str]) {
        let data = self.path().join(name);
        let request = self.run(&["identity", "request", "--data", text(&data)]).await.expect_code(0);
        let certificate = self.sign(name, &request.stdout, id, extra).await;
        self.run(&["identity", "install", "--data", text(&data), text(&certificate)]).await.expect_code(0);
    }

    /// Certifies a person and gives the identity directory.
    pub(crate) async fn person(&self, role: &str, name: &str, extra: &[&str]) -> PathBuf {
        let (dir, id) = (self.path().join(format!("person-{name}")), format!("shop/{role}/{name}"));
        let request = self.run(&["identity", "request", "--as", &id, "--dir", text(&dir)]).await.expect_code(0);
        let certificate = self.sign(name, &request.stdout, &id, extra).await;
        self.run(&["identity", "install", "--dir", text(&dir), text(&certificate)]).await.expect_code(0);
        dir
    }

    async fn sign(&self, name: &str, request: &str, id: &str, extra: &[&str]) -> PathBuf {
        let (request_file, certificate_file) =
            (self.path().join(format!("{name}.request.pem")), self.path().join(format!("{name}.certificate.pem")));
        std::fs::write(&request_file, request).unwrap();
        let authority = self.authority();
        let args = ["identity", "sign", text(&request_file), "--as", id, "--authority", text(&authority)];
        let signed = self.run(&[&args[..], extra].concat()).await.expect_code(0);
        std::fs::write(&certificate_file, signed.stdout).unwrap();
        certificate_file
    }

    fn node(&self, name: &str, role: &str, host: [u8; 4]) -> Node {
        Node {
            name: name.to_owned(),
            role: role.to_owned(),
            data: self.path().join(name),
            operator: self.operator(),
            program: self.program.clone(),
            listen: (host, 0).into(),
            environment: Vec::new(),
            process: None,
        }
    }
}

/// One node: its directory, and its process while it runs.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) name: String,
    pub(crate) role: String,
    pub(crate) data: PathBuf,
    pub(crate) operator: PathBuf,
    program: PathBuf,
    listen: SocketAddr,
    environment: Vec<(String, String)>,
    process: Option<Process>,
}

impl Node {
    /// Configuration from the environment: `("LIVENESS__HEARTBEAT", "100ms")`.
    pub(crate) fn set(&mut self, key: &str, value: impl Into<String>) {
        self.variable(&format!("HOROS__{key}"), value);
    }

    /// Any environment variable.
    pub(crate) fn variable(&mut self, name: &str, value: impl Into<String>) {
        self.environment.push((name.to_owned(), value.into()));
    }

    /// Starts the process and returns at once. Started again, it listens where it did before.
    pub(crate) fn spawn(&mut self) -> &mut Process {
        let mut command = Command::new(&self.program);
        command.args([&self.role, "--data", text(&self.data), "--listen", &self.listen.to_string()]);
        command.envs(self.environment.iter().map(|(key, value)| (key, value)));
        // The one before is reaped first, else two would be told apart by nothing.
        self.process = None;
        self.process.insert(Process::spawn(&self.name, command).unwrap())
    }

    /// Starts it and waits until it says that it is ready.
    pub(crate) async fn start(&mut self) {
        self.spawn();
        self.ready().await;
    }

    /// Waits until it says that it is ready.
    pub(crate) async fn ready(&mut self) {
        let line = self.process().wait_for_line("ready on ADDRESS", READY, |line| line.contains(" ready on ")).await;
        self.listen = line.rsplit(' ').next().and_then(|address| address.parse().ok()).expect("the line ends with an address");
    }

    /// Where it is reached: where it listens, or on loopback if it listens on every address.
    ///
    /// # Panics
    /// Before its first start.
    pub(crate) fn address(&self) -> SocketAddr {
        assert_ne!(self.listen.port(), 0, "{} was never started", self.name);
        if self.listen.ip().is_unspecified() { (Ipv4Addr::LOCALHOST, self.listen.port()).into() } else { self.listen }
    }

    /// Where it serves HTTP, with the certificate of its cluster's authority.
    ///
    /// # Panics
    /// Before its first start.
    pub(crate) fn site(&self) -> Site {
        let id = NodeId::from_uri(&format!("spiffe://shop/{}/{}", self.role, self.name)).unwrap();
        Site { address: self.address(), name: authority::domain(&id), authority: self.data.join("identity").join(CA_CERTIFICATE) }
    }

    /// Makes a key that grants `scopes`, and gives its text.
    pub(crate) async fn key(&self, scopes: &[&str]) -> String {
        self.key_record(scopes, &[]).await["secret"].as_str().unwrap().to_owned()
    }

    /// The same with more arguments, and gives everything that is told of it.
    pub(crate) async fn key_record(&self, scopes: &[&str], more: &[&str]) -> Value {
        let scopes = scopes.iter().flat_map(|scope| ["--scope", scope]);
        let args: Vec<_> = ["keys", "create", "--name", "test", "--owner", "tests"].into_iter().chain(scopes).collect();
        self.ask(&[&args[..], more].concat()).await.expect_code(0).json()
    }

    /// Its process.
    ///
    /// # Panics
    /// When it was never started.
    pub(crate) fn process(&mut self) -> &mut Process {
        self.process.as_mut().expect("the node was started")
    }

    /// `kill -9`; returns once it is gone.
    pub(crate) fn kill(&mut self) {
        self.process().kill_9();
    }

    /// Runs a command that asks this node, as the operator, with JSON output.
    pub(crate) async fn ask(&self, args: &[&str]) -> Outcome {
        self.ask_as(&self.operator, args).await
    }

    /// The same under another certificate.
    pub(crate) async fn ask_as(&self, identity: &Path, args: &[&str]) -> Outcome {
        cli::run(self.command(identity, args)).await
    }

    /// The command of [`Node::ask`], to be run beside the test.
    pub(crate) fn command(&self, identity: &Path, args: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.args(["--json", "--via", &self.address().to_string(), "--identity", text(identity)]).args(args);
        command
    }

    /// Calls an actor and gives its answer.
    pub(crate) async fn call(&self, address: &str, message: &Value) -> Value {
        self.ask(&["call", address, &message.to_string(), "--timeout", "20s"]).await.expect_code(0).json()
    }

    /// `tree --json` of the cluster as this node tells it.
    pub(crate) async fn trees(&self) -> Value {
        self.ask(&["tree"]).await.expect_code(0).json()
    }

    /// Its own tree.
    pub(crate) async fn tree(&self) -> Value {
        self.ask(&["tree", "--local"]).await.expect_code(0).json()[0]["tree"].clone()
    }

    /// Waits until this node sees `other` in the state `health`, with its tree if that is `up`.
    pub(crate) async fn sees(&self, other: &str, health: &str) -> Value {
        poll_state(&format!("{} sees {other} {health}", self.name), MEET, async || {
            let trees = self.trees().await;
            let found = in_cluster(&trees, other).ok_or_else(|| "not in its tree".to_owned())?;
            match found["health"].as_str() {
                Some(seen) if seen == health && (health != "up" || !found["tree"].is_null()) => Ok(found.clone()),
                _ => Err(format!("{} {}", found["health"], found["missing"])),
            }
        })
        .await
    }
}

/// What is told of the node `name`.
pub(crate) fn in_cluster<'a>(trees: &'a Value, name: &str) -> Option<&'a Value> {
    trees.as_array()?.iter().find(|node| node["node"]["name"] == name)
}

/// The actor `name`, wherever it is below `tree`.
pub(crate) fn actor<'a>(tree: &'a Value, name: &str) -> Option<&'a Value> {
    if tree["name"] == name {
        return Some(tree);
    }
    tree["children"].as_array()?.iter().find_map(|child| actor(child, name))
}

/// Every actor below `tree` with its path, the root first.
pub(crate) fn walk(tree: &Value) -> Vec<(String, &Value)> {
    fn below<'a>(path: &str, tree: &'a Value, found: &mut Vec<(String, &'a Value)>) {
        for child in tree["children"].as_array().into_iter().flatten() {
            let path = format!("{path}/{}", child["name"].as_str().unwrap_or_default());
            found.push((path.clone(), child));
            below(&path, child, found);
        }
    }
    let root = tree["name"].as_str().unwrap_or_default().to_owned();
    let mut found = vec![(root.clone(), tree)];
    below(&root, tree, &mut found);
    found
}

/// A path as an argument: those of the tests are ASCII.
pub(crate) fn text(path: &Path) -> &str {
    path.to_str().expect("a path of plain letters")
}
