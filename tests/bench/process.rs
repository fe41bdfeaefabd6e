//! The other process, both processes' cores, and what the kernel says of them.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    net::SocketAddr,
    path::Path,
    process::{Child, ChildStdin, Command, Stdio},
    time::Duration,
};

use anyhow::Context as _;
use horos_wire::Role;
use nix::{
    sched::{CpuSet, sched_setaffinity},
    unistd::Pid,
};

use crate::{
    floor,
    node::{self, Layout, Node, Runtimes, TARGETS},
};

/// The client's core and the server's.
pub(crate) const CLIENT_CORE: usize = 0;
pub(crate) const SERVER_CORE: usize = 1;

/// Pins the process to a core; threads started later are on it too.
pub(crate) fn pin(core: usize) -> anyhow::Result<()> {
    let mut set = CpuSet::new();
    set.set(core)?;
    sched_setaffinity(Pid::from_raw(0), &set).with_context(|| format!("the benchmark needs core {core}"))
}

/// Where a server listens.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Addresses {
    pub(crate) node: SocketAddr,
    pub(crate) floor: SocketAddr,
}

/// A server process; gone when dropped.
#[derive(Debug)]
pub(crate) struct Server {
    child: Child,
    /// Closed with it, which is what ends the process when this one was killed.
    _stdin: Option<ChildStdin>,
    pub(crate) addresses: Addresses,
}

impl Server {
    /// Starts this program again as a server with the identities in `directory`.
    pub(crate) fn start(directory: &Path, layout: Layout) -> anyhow::Result<Self> {
        let mut child = Command::new(std::env::current_exe()?)
            .args(["--serve", layout.name()])
            .arg(directory)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut line = String::new();
        BufReader::new(child.stdout.take().context("stdout is piped")?).read_line(&mut line)?;
        let (node, floor) = line.trim().split_once(' ').context("the server did not start")?;
        let addresses = Addresses { node: node.parse()?, floor: floor.parse()? };
        Ok(Self { _stdin: child.stdin.take(), child, addresses })
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It holds nothing that a kill could harm.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The server's `main`: serves until its stdin is closed.
pub(crate) fn serve(layout: Layout, directory: &Path) -> anyhow::Result<()> {
    pin(SERVER_CORE)?;
    let runtimes = Runtimes::start(layout)?;
    let tls = node::tls(directory, Role::Bo)?;
    let theirs = runtimes.clone();
    let (_node, addresses) = node::wait(&runtimes.link, async move {
        let floor = floor::serve(&tls)?;
        let node = Node::start(tls, Vec::new(), theirs).await?;
        for target in 0..TARGETS {
            node.serve(&format!("echo-{target}")).await?;
        }
        for name in ["count", "work"] {
            node.serve(name).await?;
        }
        // A body's reader is busy until its end, so as many readers as there are bodies at once.
        for reader in 0..16 {
            node.serve(&format!("take-{reader}")).await?;
        }
        let addresses = Addresses { node: node.address()?, floor };
        anyhow::Ok((node, addresses))
    })??;
    writeln!(std::io::stdout().lock(), "{} {}", addresses.node, addresses.floor)?;
    std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink())?;
    Ok(())
}

/// Keeps the cores from sleeping: in a virtual machine, waking one takes longer than the work that is
/// measured, and not the same each time. Runs only where nothing else would.
pub(crate) struct Awake(Vec<Child>);

impl Awake {
    pub(crate) fn keep() -> Self {
        let start = |core: usize| {
            let me = std::env::current_exe()?;
            Command::new("chrt").args(["--idle", "0"]).arg(me).args(["--spin", &core.to_string()]).stdin(Stdio::null()).spawn()
        };
        let children: Vec<_> = [CLIENT_CORE, SERVER_CORE].into_iter().filter_map(|core| start(core).ok()).collect();
        if children.is_empty() {
            eprintln!("# no chrt (util-linux): idle cores may sleep, and latencies vary");
        }
        Self(children)
    }
}

impl Drop for Awake {
    fn drop(&mut self) {
        for child in &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// The spinner's `main`. It ends with its parent.
pub(crate) fn spin(core: usize) -> anyhow::Result<()> {
    pin(core)?;
    let parent = nix::unistd::getppid();
    while nix::unistd::getppid() == parent {
        for _ in 0..10_000_000 {
            std::hint::spin_loop();
        }
    }
    Ok(())
}

/// Processor time that a process has used.
pub(crate) fn cpu(pid: u32) -> anyhow::Result<Duration> {
    let mut nanos = 0;
    for task in std::fs::read_dir(format!("/proc/{pid}/task"))? {
        let schedstat = std::fs::read_to_string(task?.path().join("schedstat"))?;
        nanos += schedstat.split_whitespace().next().context("schedstat is empty")?.parse::<u64>()?;
    }
    Ok(Duration::from_nanos(nanos))
}
