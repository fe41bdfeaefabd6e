//! One node: its supervision tree, from start to stop.
//!
//! ```text
//! root             one for one; past its intensity the node ends
//! ├─ data          rest for one: what is below is opened anew when the store was
//! │  ├─ store      the databases' writers and readers, each file apart
//! │  ├─ keys       the replica of the keys; on the owner of control.db, horos.keys and horos.control
//! │  ├─ router     routes, breakers, calls by route
//! │  ├─ services   the users' services, on threads of their own
//! │  ├─ tools      rows that are tools, the audit of who called them
//! │  ├─ http       opens what users serve over HTTP
//! │  └─ sync       publications, with a feed for each subscriber, and replicas
//! ├─ node          horos.node and horos.cluster
//! ├─ certificates  takes up renewed certificates and deny lists
//! ├─ memory        writes down where the peers are, for the next life
//! ├─ edge          HTTP/1.1 and HTTP/2: accept loops, connections, certificate
//! └─ link          QUIC: accept loop, dialer, gossip; HTTP/3's connections
//!    └─ sessions   one for each node and command line
//! ```
//!
//! Three kinds of threads: one for QUIC, heartbeats and the node's own workings; those of HTTP; those of services.

mod doors;
mod metrics;
mod start;

use std::{
    net::SocketAddr,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use horos_edge::{Drain, Phase};
use horos_supervision::{SupervisorHandle, supervisor::Ended};
use horos_tools::client::Programs;
use horos_wire::NodeId;
use tokio::{
    runtime::Builder,
    signal::unix::{SignalKind, signal},
};

use crate::{
    app::Horos,
    config::{self, Config, DataDir},
    threads::{HttpThreads, Threads},
};
use doors::Doors;

/// What a node writes into its data directory once its port is open, for the command line on the same machine.
pub(crate) const ADDRESS_FILE: &str = "address";
/// For peers to acknowledge the last word of a node that stops.
const CLOSE_WITHIN: Duration = Duration::from_millis(500);
/// For programs that speak MCP to end: what a client gives them, 2 s for the end of their input and 2 s for `SIGTERM`, and some more.
const PROGRAMS_WITHIN: Duration = Duration::from_secs(5);

/// Why a node did not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum NodeError {
    #[error(transparent)]
    Identity(#[from] horos_link::identity::CredentialsError),
    #[error("the certificate in {} names {found}, but the configuration says {expected}: put the right one there, or correct cluster.name, node.role and node.name", path.display())]
    OtherIdentity { path: PathBuf, found: String, expected: String },
    #[error(transparent)]
    Listen(#[from] horos_edge::ListenError),
    #[error(transparent)]
    Advertise(#[from] crate::advertise::AdvertiseError),
    #[error(transparent)]
    Edge(#[from] horos_edge::EdgeError),
    #[error(transparent)]
    Mount(#[from] crate::mounts::LayError),
    #[error(transparent)]
    Endpoint(#[from] horos_link::EndpointError),
    #[error(transparent)]
    Register(#[from] horos_supervision::exchange::RegisterError),
    #[error(transparent)]
    Layout(#[from] crate::sync::LayoutError),
    #[error(transparent)]
    Sync(#[from] crate::sync::SyncError),
    #[error(transparent)]
    Owner(#[from] crate::sync::OwnerError),
    #[error(transparent)]
    Router(#[from] crate::router::RouterError),
    #[error(transparent)]
    Tools(#[from] crate::tools::ToolsError),
    #[error(transparent)]
    Control(#[from] crate::control::FilesError),
    #[error(transparent)]
    Start(#[from] horos_supervision::StartError),
    #[error(transparent)]
    Order(#[from] horos_supervision::supervisor::OrderError),
    #[error("cannot {action}: {source}")]
    Io { action: &'static str, source: std::io::Error },
}

/// How a node's life ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Finished {
    /// Asked to, and everything in hand was finished.
    Stopped,
    /// Asked twice: stopped at once.
    AtOnce,
    /// Something failed more often than its supervisors could mend.
    Broken(String),
}

/// A running node.
pub(crate) struct RunningNode {
    root: SupervisorHandle,
    doors: Doors,
    programs: Programs,
    address: SocketAddr,
    address_file: PathBuf,
    drain: Drain,
    stopping: config::Drain,
    /// Dropped last.
    _threads: (Arc<Threads>, HttpThreads),
}

/// Runs a node until it is stopped. `ready` is called with the address when it takes work.
pub(crate) fn run(
    config: Config,
    _held: DataDir,
    horos: Arc<Horos>,
    ready: impl FnOnce(&NodeId, SocketAddr),
) -> Result<Finished, NodeError> {
    let io = |action| move |source| NodeError::Io { action, source };
    raise_open_files();
    let runtime = Builder::new_current_thread().enable_all().build().map_err(io("start the runtime"))?;
    runtime.block_on(async {
        // Signals first, so that one that comes during the start is not the kernel's to answer.
        let mut interrupt = signal(SignalKind::interrupt()).map_err(io("listen for signals"))?;
        let mut terminate = signal(SignalKind::terminate()).map_err(io("listen for signals"))?;
        let node = tokio::select! {
            node = RunningNode::start(config, &horos) => node?,
            _ = interrupt.recv() => return Ok(Finished::AtOnce),
            _ = terminate.recv() => return Ok(Finished::AtOnce),
        };
        ready(node.doors.endpoint.peers().node(), node.address);
        tokio::select! {
            ended = node.root.wait() => {
                let cause = match ended {
                    Ended::Failed(cause) => cause.to_string(),
                    other => format!("{other:?}"),
                };
                node.close().await;
                return Ok(Finished::Broken(cause));
            }
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        tracing::info!("stopping: no new work is taken; a second signal stops at once");
        tokio::select! {
            () = node.stop() => Ok(Finished::Stopped),
            _ = interrupt.recv() => Ok(Finished::AtOnce),
            _ = terminate.recv() => Ok(Finished::AtOnce),
        }
    })
}

impl RunningNode {
    /// Where it listens.
    #[cfg(test)]
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Says that it is not ready, and only then takes nothing new; finishes what is in hand; stops the children in reverse
    /// order; closes.
    async fn stop(&self) {
        self.drain.go(Phase::NotReady);
        // Other nodes are told when the drain begins: who has no other of this role to turn to is served until then.
        tokio::time::sleep(self.stopping.notice).await;
        let until = Instant::now() + self.stopping.timeout;
        self.drain.go(Phase::Draining { until });
        self.doors.drain(until).await;
        self.close().await;
        self.root.stop().await;
        // Their clients are gone with the tree, and each is brought to its end since then.
        self.programs.ended(PROGRAMS_WITHIN).await;
        tracing::info!("stopped");
    }

    async fn close(&self) {
        // Whoever reads a stale address would only fail to connect.
        let _ = std::fs::remove_file(&self.address_file);
        self.doors.close(CLOSE_WITHIN).await;
    }
}

/// As many open files as this process may have: each connection takes one, and the usual soft limit is 1024.
fn raise_open_files() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(soft, hard)| if soft < hard { setrlimit(Resource::RLIMIT_NOFILE, hard, hard) } else { Ok(()) });
    if let Err(error) = raised {
        tracing::warn!(%error, "the limit of open files stays as it is");
    }
}

#[cfg(test)]
mod tests;
