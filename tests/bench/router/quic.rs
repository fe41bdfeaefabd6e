//! Calls of a service on another node, by route and without.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    net::SocketAddr,
    path::Path,
    process::{Child, ChildStdin, Command, Stdio},
    sync::Arc,
    time::Instant,
};

use anyhow::Context as _;
use horos_nodes::Routes as _;
use horos_router::{Router, breaker::Breakers, spec::Row, strategy::Strategies};
use horos_wire::Role;

use crate::{
    machine::{SERVER_CORE, pin},
    node::{self, Bench, DEADLINE, Echo, Layout, Node, Runtimes},
    report::quantile,
};

/// As for calls on one node.
const POLICIES: &str = r#"{"timeout_ms": 10000, "retry": {"retries": 2}, "breaker": {"failures": 5}, "idempotent": ["echo"]}"#;
/// Calls of one kind, before those of the other.
const TURN: usize = 50;

/// A client node in this process and a server in another.
pub(crate) struct Pair {
    server: Child,
    /// Closed with it, which is what ends the process when this one was killed.
    _stdin: Option<ChildStdin>,
    runtimes: Runtimes,
    node: Node,
}

impl Pair {
    pub(crate) fn start(directory: &Path) -> anyhow::Result<Self> {
        let mut server =
            Command::new(std::env::current_exe()?).arg("--serve").arg(directory).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let mut line = String::new();
        BufReader::new(server.stdout.take().context("stdout is piped")?).read_line(&mut line)?;
        let address: SocketAddr = line.trim().parse().context("the server did not start")?;
        let stdin = server.stdin.take();
        let runtimes = Runtimes::start(Layout::Single)?;
        let (tls, theirs) = (node::tls(directory, Role::Fo)?, runtimes.clone());
        let node = node::wait(&runtimes.link, async move {
            let node = Node::start(tls, vec![address], theirs).await?;
            node.linked().await?;
            anyhow::Ok(node)
        })??;
        let exchange = node.context().exchange().clone();
        let router = Router::new(exchange.clone(), Strategies::builtin(), Breakers::new(None, Arc::new(|_, _| {})));
        let row = Row {
            service: "routed".into(),
            strategy: "quic".into(),
            endpoint: Some("echo@bo-1".into()),
            config: Some(POLICIES.into()),
            updated_at: 0,
        };
        anyhow::ensure!(router.take_up(vec![row]).wrong == 0, "the route is wrong");
        exchange.attach(Arc::new(router));
        Ok(Self { server, _stdin: stdin, runtimes, node })
    }

    /// Medians of calls by route and of direct ones, in microseconds.
    pub(crate) fn calls(&self, calls: usize, floor: bool) -> anyhow::Result<(f64, f64)> {
        let context = self.node.context();
        let (routed, direct) = (context.routed::<Bench>("routed"), context.at::<Bench>("echo@bo-1"));
        self.runtimes.run(async move {
            let mut times = [Vec::with_capacity(calls), Vec::with_capacity(calls)];
            for turn in 0..2 * calls / TURN {
                let which = if floor { turn % 2 } else { 0 };
                for _ in 0..TURN {
                    let echo = Echo { body: vec![7; 64] };
                    let started = Instant::now();
                    if which == 0 {
                        routed.call(echo, DEADLINE).await?;
                    } else {
                        direct.call(echo, DEADLINE).await?;
                    }
                    times[which].push(started.elapsed().as_nanos() as f64 / 1e3);
                }
            }
            Ok((quantile(&times[0], 0.5), quantile(&times[usize::from(floor)], 0.5)))
        })?
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        // It holds nothing that a kill could harm.
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

/// The server's `main`: serves until its stdin is closed.
pub(crate) fn serve(directory: &Path) -> anyhow::Result<()> {
    pin(SERVER_CORE)?;
    let runtimes = Runtimes::start(Layout::Single)?;
    let (tls, theirs) = (node::tls(directory, Role::Bo)?, runtimes.clone());
    let (_node, address) = node::wait(&runtimes.link, async move {
        let node = Node::start(tls, Vec::new(), theirs).await?;
        node.serve("echo").await?;
        let address = node.address()?;
        anyhow::Ok((node, address))
    })??;
    writeln!(std::io::stdout().lock(), "{address}")?;
    std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink())?;
    Ok(())
}
