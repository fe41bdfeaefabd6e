//! The other process.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    net::SocketAddr,
    path::Path,
    process::{Child, ChildStdin, Command, Stdio},
};

use anyhow::Context as _;
use horos_wire::Role;

use crate::{
    floor,
    machine::{SERVER_CORE, pin},
    node::{self, Layout, Node, Runtimes, TARGETS},
};

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
