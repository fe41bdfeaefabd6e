//! `up`: a BO and an FO as child processes on this machine, with everything made on the spot.

use std::{
    io::{BufRead as _, BufReader},
    net::SocketAddr,
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

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
    cli::{Common, Output, Remote, Up, Via, lay_out},
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
        command.env(PLAYGROUND, "1").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
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
            if let Some(address) = std::fs::read_to_string(self.data.join(ADDRESS_FILE)).ok().and_then(|text| text.trim().parse().ok()) {
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

/// Runs both nodes until Ctrl-C.
pub(crate) async fn run(up: &Up, common: &Common, output: &Output, policy: Policy) -> Exit {
    let layout = match lay_out(&common.data, Timestamp::now()) {
        Ok(layout) => layout,
        Err(error) => return output.fail(Exit::Local, &error, Some("choose another directory with --data")),
    };
    let failed = |error: std::io::Error| output.fail(Exit::Local, &error, None);
    let (mut interrupt, mut terminate) = match (signal(SignalKind::interrupt()), signal(SignalKind::terminate())) {
        (Ok(interrupt), Ok(terminate)) => (interrupt, terminate),
        (Err(error), _) | (_, Err(error)) => return failed(error),
    };
    let (log, mut lines) = mpsc::channel(1024);
    let here = |port| SocketAddr::from(([127, 0, 0, 1], port));
    let mut bo = match NodeProcess::start(Role::Bo, &layout.bo, here(up.bo_port), None, &log) {
        Ok(bo) => bo,
        Err(error) => return failed(error),
    };
    let live = !up.no_tree && !output.is_json() && Output::size().is_some();
    let bo_address = tokio::select! {
        address = drained(bo.address(), &mut lines, output) => address,
        _ = interrupt.recv() => return Exit::Interrupted,
        _ = terminate.recv() => return Exit::Ok,
    };
    let bo_address = match bo_address {
        Ok(address) => address,
        Err(why) => return output.fail_text(Exit::Broken, &why, Some("is the port taken? choose others with --bo-port and --fo-port")),
    };
    let mut fo = match NodeProcess::start(Role::Fo, &layout.fo, here(up.fo_port), Some(bo_address), &log) {
        Ok(fo) => fo,
        Err(error) => return failed(error),
    };
    let fo_address = tokio::select! {
        address = drained(fo.address(), &mut lines, output) => address,
        _ = interrupt.recv() => return Exit::Interrupted,
        _ = terminate.recv() => return Exit::Ok,
    };
    let fo_address = match fo_address {
        Ok(address) => address,
        Err(why) => return output.fail_text(Exit::Broken, &why, Some("is the port taken? choose others with --bo-port and --fo-port")),
    };
    let addresses = serde_json::json!({ "bo": bo_address, "fo": fo_address, "data": common.data });
    if output.data(&addresses, |_| format!("bo-1 on {bo_address}\nfo-1 on {fo_address}\n")).is_err() {
        return Exit::Local;
    }
    output.say(&format!(
        "both nodes run; in another terminal: `{{bin}} --data {data} call stock@bo '{{\"levels\":{{}}}}'`; Ctrl-C stops them",
        data = common.data.display()
    ));
    // Started again, a node comes back where it was: the other one and people look for it there.
    (bo.listen, fo.listen) = (bo_address, fo_address);
    let via = Via { endpoint: bo_address.into(), identity: layout.operator };
    let mut look = tokio::time::interval(LOOK);
    look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut operator: Option<Operator> = None;
    let mut drawn_once = false;
    'running: loop {
        tokio::select! {
            _ = interrupt.recv() => break,
            _ = terminate.recv() => break,
            Some(line) = lines.recv() => { output.say(&line); continue }
            _ = look.tick() => {}
        }
        for node in [&mut bo, &mut fo] {
            if let Ok(Some(status)) = node.child.try_wait() {
                output.say(&format!("the {} ended with {status}; it is started again", node.role));
                match node.restart(&log) {
                    Ok(true) => {}
                    Ok(false) => return output.fail_text(Exit::Broken, &format!("the {} ends again and again", node.role), None),
                    Err(error) => return failed(error),
                }
            }
        }
        let trees = {
            let looking = trees(&mut operator, &via, &policy);
            tokio::pin!(looking);
            loop {
                tokio::select! {
                    trees = &mut looking => break trees,
                    _ = interrupt.recv() => break 'running,
                    _ = terminate.recv() => break 'running,
                    Some(line) = lines.recv() => output.say(&line),
                }
            }
        };
        match trees {
            // On a terminal it is redrawn each second; elsewhere it is shown once, when it is whole.
            Some(nodes) if live => {
                let (_, height) = Output::size().unwrap_or((80, 50));
                let heading = format!("{} nodes at {}, Ctrl-C stops them", nodes.len(), Timestamp::now().strftime("%H:%M:%S UTC"));
                if output.raw(&render::redraw(&nodes, &heading, height, output.style())).is_err() {
                    break;
                }
            }
            Some(nodes) if !drawn_once && !up.no_tree && nodes.iter().filter(|node| node.tree.is_some()).count() >= 2 => {
                drawn_once = true;
                if output.data(&nodes, |style| render::tree(&nodes, style)).is_err() {
                    break;
                }
            }
            _ => {}
        }
    }
    if let Some(mut operator) = operator {
        operator.close().await;
    }
    output.say("stopping both nodes; Ctrl-C again stops them at once");
    // The FO first: it sends no more work to the BO.
    for node in [&mut fo, &mut bo] {
        node.signal(Signal::SIGTERM);
        let until = Instant::now() + STOP;
        let mut look = tokio::time::interval(Duration::from_millis(20));
        loop {
            tokio::select! {
                _ = look.tick() => {}
                Some(line) = lines.recv() => output.say(&line),
                _ = interrupt.recv() => { node.signal(Signal::SIGKILL); }
            }
            match node.child.try_wait() {
                Ok(Some(_)) | Err(_) => break,
                Ok(None) if Instant::now() >= until => {
                    node.signal(Signal::SIGKILL);
                }
                Ok(None) => {}
            }
        }
    }
    while let Ok(line) = lines.try_recv() {
        output.say(&line);
    }
    Exit::Ok
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
