//! `up`: a BO and an FO as child processes on this machine, with everything made on the spot.

use std::{
    collections::VecDeque,
    io::{BufRead as _, BufReader},
    net::SocketAddr,
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use horos_link::identity::CA_CERTIFICATE;
use horos_wire::{Role, policy::Policy, tree::NodeTree};
use jiff::Timestamp;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::mpsc,
};

use crate::{
    cli::{Common, Output, Remote, Screen, Up, UpLayout, Via, lay_out, running_at},
    exit::Exit,
    node::ADDRESS_FILE,
    remote::Operator,
    render,
};

/// For a node to say where it listens.
const START: Duration = Duration::from_secs(10);
/// For a node to stop when it was asked to; its own drain is 10 s.
const STOP: Duration = Duration::from_secs(15);
/// Between looks at the tree.
const LOOK: Duration = Duration::from_secs(1);
/// Restarts of one node's process within [`RESTARTS_WITHIN`] before `up` gives up.
const RESTARTS: usize = 5;
const RESTARTS_WITHIN: Duration = Duration::from_secs(30);

/// Marks a node's process as one of `up`'s, for [`crate::app::Horos::is_playground`].
pub(crate) const PLAYGROUND: &str = "HOROS_PLAYGROUND";
/// Its value for a child that ends with `up`, however that ends: see [`end_with_parent`].
const PLAYGROUND_TIED: &str = "tied";
/// Log lines that the live view keeps: more than the tallest screen shows.
const MAX_TOLD: usize = 200;

/// In a child of `up`: stops this node, as SIGTERM does, when `up` is gone. `kill -9` leaves `up` no time to stop its nodes,
/// and a node that nobody sees would keep its port and its data directory.
pub(crate) fn end_with_parent(marked: Option<&str>) {
    if marked == Some(PLAYGROUND_TIED) {
        // `up` holds the other end of our stdin and never writes to it: it is at its end when `up` is.
        std::thread::spawn(|| {
            let _ = std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink());
            // It fails only for a process that is not there.
            let _ = kill(Pid::this(), Signal::SIGTERM);
        });
    }
}

struct NodeProcess {
    role: Role,
    data: std::path::PathBuf,
    listen: SocketAddr,
    seeds: Option<SocketAddr>,
    child: Child,
    started: Vec<Instant>,
}

impl NodeProcess {
    fn spawn(role: Role, data: &Path, listen: SocketAddr, seeds: Option<SocketAddr>) -> std::io::Result<Child> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg(role.as_str()).arg("--data").arg(data).arg("--listen").arg(listen.to_string()).arg("--log-format").arg("text");
        command.env(PLAYGROUND, PLAYGROUND_TIED).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
        if let Some(seeds) = seeds {
            command.env("HOROS__PEERS__SEEDS", seeds.to_string());
        }
        // Its own group: Ctrl-C at the terminal is for `up`, which stops its nodes in order.
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        command.spawn()
    }

    fn start(role: Role, data: &Path, listen: SocketAddr, seeds: Option<SocketAddr>, log: &mpsc::Sender<String>) -> std::io::Result<Self> {
        let _ = std::fs::remove_file(data.join(ADDRESS_FILE));
        let mut child = Self::spawn(role, data, listen, seeds)?;
        forward(&mut child, role, log);
        Ok(Self { role, data: data.to_owned(), listen, seeds, child, started: vec![Instant::now()] })
    }

    /// Starts it again, as whoever runs a node would; false when it has ended too often.
    fn restart(&mut self, log: &mpsc::Sender<String>) -> std::io::Result<bool> {
        self.started.retain(|at| at.elapsed() < RESTARTS_WITHIN);
        if self.started.len() > RESTARTS {
            return Ok(false);
        }
        self.started.push(Instant::now());
        self.child = Self::spawn(self.role, &self.data, self.listen, self.seeds)?;
        forward(&mut self.child, self.role, log);
        Ok(true)
    }

    async fn address(&mut self) -> Result<SocketAddr, String> {
        let until = Instant::now() + START;
        let mut look = tokio::time::interval(Duration::from_millis(10));
        loop {
            look.tick().await;
            if let Some(address) = running_at(&self.data) {
                return Ok(address);
            }
            if let Ok(Some(status)) = self.child.try_wait() {
                return Err(format!("the {} ended with {status} before it was ready; its log above says why", self.role));
            }
            if Instant::now() >= until {
                return Err(format!("the {} was not ready within {} s", self.role, START.as_secs()));
            }
        }
    }

    fn signal(&self, signal: Signal) {
        // It fails only when the process has ended.
        let _ = kill(Pid::from_raw(self.child.id() as i32), signal);
    }
}

impl Drop for NodeProcess {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Carries a child's log lines on, each with its role in front. Bounded: a slow reader holds the child's pipe up, not our memory.
fn forward(child: &mut Child, role: Role, log: &mpsc::Sender<String>) {
    if let Some(stderr) = child.stderr.take() {
        let log = log.clone();
        std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                if log.blocking_send(format!("{role} | {line}")).is_err() {
                    return;
                }
            }
        });
    }
}

/// What people can try on both nodes.
#[derive(Clone, Debug)]
pub(crate) struct Examples {
    /// A command, without the program's name.
    pub(crate) command: String,
    /// A path over HTTP, and the scope that it wants, on the FO and else on the BO.
    pub(crate) http: Option<(Role, String, Option<String>)>,
}

impl Examples {
    /// As they can be typed.
    fn lines(&self, output: &Output, data: &Path, layout: &UpLayout, bo: SocketAddr, fo: SocketAddr) -> Vec<String> {
        let program = format!("{} --data {}", output.bin(), data.display());
        let mut lines = vec![format!("{program} {}", self.command)];
        let (role, path, scope) = self.http.clone().unwrap_or((Role::Fo, "/livez".to_owned(), None));
        let (address, home) = if role == Role::Fo { (fo, &layout.fo) } else { (bo, &layout.bo) };
        let mut key = "";
        if let Some(scope) = scope {
            lines.push(format!("KEY=$({program} keys create --name try --owner me --scope {scope})"));
            key = " -H \"Authorization: Bearer $KEY\"";
        }
        // By the authority's certificate and a name that is in the node's: nobody has to look away.
        let ca = home.join("identity").join(CA_CERTIFICATE);
        lines.push(format!("curl --cacert {}{key} https://localhost:{}{path}", ca.display(), address.port()));
        // What a host of MCP servers starts; over HTTP both nodes serve it too, at /mcp.
        lines.push(format!("{program} mcp    # what an MCP client starts; or https://localhost:{}/mcp with a key", fo.port()));
        lines
    }
}

/// Runs both nodes until Ctrl-C.
pub(crate) async fn run(up: &Up, common: &Common, output: &Output, policy: Policy, examples: &Examples) -> Exit {
    let layout = match lay_out(&common.data, Timestamp::now()) {
        Ok(layout) => layout,
        Err(error) => return output.fail(Exit::Local, &error, Some("choose another directory with --data")),
    };
    let mut stop = match Stop::listen() {
        Ok(stop) => stop,
        Err(error) => return output.fail(Exit::Local, &error, None),
    };
    let (log, mut lines) = mpsc::channel(1024);
    let here = |port| SocketAddr::from(([127, 0, 0, 1], port));
    let mut bo = match start(Role::Bo, &layout.bo, here(up.bo_port), None, &log, &mut lines, &mut stop, output).await {
        Ok(bo) => bo,
        Err(exit) => return exit,
    };
    let mut fo = match start(Role::Fo, &layout.fo, here(up.fo_port), Some(bo.listen), &log, &mut lines, &mut stop, output).await {
        Ok(fo) => fo,
        Err(exit) => return exit,
    };
    let addresses = serde_json::json!({ "bo": bo.listen, "fo": fo.listen, "data": common.data });
    if let Err(exit) = output.data(&addresses, |_| format!("bo-1 on {}\nfo-1 on {}\n", bo.listen, fo.listen)) {
        return exit;
    }
    let examples = examples.lines(output, &common.data, &layout, bo.listen, fo.listen);
    output.say("both nodes run, Ctrl-C stops them; in another terminal:");
    for example in &examples {
        output.say(&format!("  {example}"));
    }
    let via = Via { endpoint: bo.listen.into(), identity: layout.operator };
    let mut view = View::new(up, output, examples);
    let mut operator: Option<Operator> = None;
    let mut look = tokio::time::interval(LOOK);
    look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let ended = 'running: loop {
        tokio::select! {
            () = stop.asked() => break Ok(()),
            Some(line) = lines.recv() => { view.line(line); continue }
            _ = look.tick() => {}
        }
        for node in [&mut bo, &mut fo] {
            if let Ok(Some(status)) = node.child.try_wait() {
                view.line(format!("the {} ended with {status}; it is started again", node.role));
                match node.restart(&log) {
                    Ok(true) => {}
                    Ok(false) => {
                        break 'running Err((Exit::Broken, format!("the {} ends again and again; its log above says why", node.role)));
                    }
                    Err(error) => break 'running Err((Exit::Local, format!("cannot start the {}: {error}", node.role))),
                }
            }
        }
        if matches!(view.shown, Shown::Never) {
            if let Some(mut operator) = operator.take() {
                operator.close().await;
            }
            continue;
        }
        let looking = trees(&mut operator, &via, &policy);
        tokio::pin!(looking);
        let nodes = loop {
            tokio::select! {
                nodes = &mut looking => break nodes,
                () = stop.asked() => break 'running Ok(()),
                Some(line) = lines.recv() => view.line(line),
            }
        };
        if let Some(Err(exit)) = nodes.map(|nodes| view.nodes(&nodes)) {
            break Err((exit, "the trees cannot be shown".to_owned()));
        }
    };
    let exit = view.end(ended);
    if let Some(mut operator) = operator {
        operator.close().await;
    }
    output.say("stopping both nodes; Ctrl-C again stops them at once");
    // The FO first: it sends no more work to the BO.
    for node in [&mut fo, &mut bo] {
        end(node, &mut lines, &mut stop, output).await;
    }
    while let Ok(line) = lines.try_recv() {
        output.say(&line);
    }
    exit
}

/// What asks `up` to end: Ctrl-C, a service manager, a terminal that is closed.
struct Stop([tokio::signal::unix::Signal; 3]);

impl Stop {
    fn listen() -> std::io::Result<Self> {
        Ok(Self([signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?, signal(SignalKind::hangup())?]))
    }

    async fn asked(&mut self) {
        let [interrupt, terminate, hangup] = &mut self.0;
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
        }
    }
}

/// Starts a node and waits for its address.
#[expect(clippy::too_many_arguments, reason = "called twice, right above")]
async fn start(
    role: Role,
    data: &Path,
    listen: SocketAddr,
    seeds: Option<SocketAddr>,
    log: &mpsc::Sender<String>,
    lines: &mut mpsc::Receiver<String>,
    stop: &mut Stop,
    output: &Output,
) -> Result<NodeProcess, Exit> {
    let mut node = NodeProcess::start(role, data, listen, seeds, log).map_err(|error| output.fail(Exit::Local, &error, None))?;
    let address = tokio::select! {
        address = drained(node.address(), lines, output) => address,
        () = stop.asked() => return Err(Exit::Interrupted),
    };
    // Started again, it comes back where it was: the other one and people look for it there.
    node.listen = address
        .map_err(|why| output.fail_text(Exit::Broken, &why, Some("is the port taken? choose others with --bo-port and --fo-port")))?;
    Ok(node)
}

/// Asks a node to end, and sees that it does.
async fn end(node: &mut NodeProcess, lines: &mut mpsc::Receiver<String>, stop: &mut Stop, output: &Output) {
    node.signal(Signal::SIGTERM);
    let until = Instant::now() + STOP;
    let mut look = tokio::time::interval(Duration::from_millis(20));
    loop {
        tokio::select! {
            _ = look.tick() => {}
            Some(line) = lines.recv() => output.say(&line),
            () = stop.asked() => node.signal(Signal::SIGKILL),
        }
        match node.child.try_wait() {
            Ok(Some(_)) | Err(_) => return,
            Ok(None) if Instant::now() >= until => node.signal(Signal::SIGKILL),
            Ok(None) => {}
        }
    }
}

/// What of both nodes is shown, and where.
struct View<'a> {
    output: &'a Output,
    /// What people can try, as they can type it.
    examples: Vec<String>,
    shown: Shown<'a>,
    /// The last log lines, while a screen shows them.
    told: VecDeque<String>,
}

enum Shown<'a> {
    /// On a terminal the trees and the last log lines are redrawn each second.
    Live(Screen<'a>),
    /// Elsewhere the trees are shown once, when both are there.
    Once,
    /// Log lines only.
    Never,
}

impl<'a> View<'a> {
    fn new(up: &Up, output: &'a Output, examples: Vec<String>) -> Self {
        let shown = if up.no_tree { Shown::Never } else { output.screen().map_or(Shown::Once, Shown::Live) };
        Self { output, examples, shown, told: VecDeque::new() }
    }

    fn line(&mut self, line: String) {
        if !matches!(self.shown, Shown::Live(_)) {
            self.output.say(&line);
            return;
        }
        if self.told.len() == MAX_TOLD {
            self.told.pop_front();
        }
        self.told.push_back(line);
    }

    fn nodes(&mut self, nodes: &[NodeTree]) -> Result<(), Exit> {
        match &mut self.shown {
            Shown::Live(screen) => {
                let heading = format!("{} nodes at {}; Ctrl-C stops them", nodes.len(), Timestamp::now().strftime("%H:%M:%S UTC"));
                let examples = self.examples.iter().map(|example| format!("$ {example}"));
                let heading: Vec<_> = std::iter::once(heading).chain(examples).collect();
                screen.draw(&heading, nodes, self.told.make_contiguous())
            }
            Shown::Once if nodes.iter().filter(|node| node.tree.is_some()).count() >= 2 => {
                self.shown = Shown::Never;
                self.output.data(nodes, |style| render::tree(nodes, style))
            }
            Shown::Once | Shown::Never => Ok(()),
        }
    }

    /// Gives the terminal back; a failure is told there, after the log lines that led to it.
    fn end(self, ended: Result<(), (Exit, String)>) -> Exit {
        drop(self.shown);
        let Err((exit, why)) = ended else { return Exit::Ok };
        for line in &self.told {
            self.output.say(line);
        }
        self.output.fail_text(exit, &why, None)
    }
}

/// The trees as the BO sees them, over the connection that is there or a new one.
async fn trees(operator: &mut Option<Operator>, via: &Via, policy: &Policy) -> Option<Vec<NodeTree>> {
    let connected = match operator {
        Some(connected) => connected,
        None => operator.insert(Operator::connect(via, policy.clone(), Instant::now() + LOOK).await.ok()?),
    };
    match connected.tree(true).await {
        Ok(nodes) => Some(nodes),
        Err(_) => {
            if let Some(mut lost) = operator.take() {
                lost.close().await;
            }
            None
        }
    }
}

/// Awaits `work` while log lines go on being shown.
async fn drained<T>(work: impl Future<Output = T>, lines: &mut mpsc::Receiver<String>, output: &Output) -> T {
    tokio::pin!(work);
    loop {
        tokio::select! {
            done = &mut work => {
                while let Ok(line) = lines.try_recv() {
                    output.say(&line);
                }
                return done;
            }
            Some(line) = lines.recv() => output.say(&line),
        }
    }
}
