//! A BO and an FO as a user's programs have them: this program again, twice, each with its data directory.

use std::{
    io::Read as _,
    path::{Path, PathBuf},
    process::{Child, Command, ExitCode, Stdio},
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::Context as _;
use horos_nodes::{
    Database, Opening,
    cli::{UpLayout, lay_out},
    store::{migrations::Migrations, rusqlite},
    supervision::{Context as Cx, Handle, OpenError, Restart, Service},
    wire::{Role, protocol},
};
use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What is published, on both nodes.
const PUBLICATION: &str = "publications: { bench: { database: app.db, to: [fo], filter: { full-tables: [rows, events] } } }\n";
const REPLICA: &str = "replicas: { bench: { file: public.db } }\n";
/// For a node to start, stop or answer.
const PATIENCE: Duration = Duration::from_secs(30);

/// Commits that wait for the disk at once: half of what the writer's queue holds.
const IN_FLIGHT: usize = 128;

/// Commits one row at a time, so many a second.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Commit {
    per_second: u32,
    seconds: u32,
}

protocol! {
    /// What the BO's own writer is asked for.
    pub(crate) Load = "bench" v1 {
        1 commit: Commit => Vec<(i64, u64)>, String;
    }
}

struct Loader(Database);

impl Service for Loader {
    type Protocol = Load;
}

impl Handle<Commit> for Loader {
    async fn handle(&mut self, commit: Commit, _: &Cx) -> Result<Vec<(i64, u64)>, String> {
        let count = commit.per_second * commit.seconds;
        let mut ticks = tokio::time::interval(Duration::from_secs(1) / commit.per_second);
        // After a pause of the disk what is late comes one by one, not all at once.
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let places = Arc::new(tokio::sync::Semaphore::new(IN_FLIGHT));
        let mut under_way = tokio::task::JoinSet::new();
        for _ in 0..count {
            ticks.tick().await;
            let place = places.clone().acquire_owned().await.map_err(|error| error.to_string())?;
            let writer = self.0.writer.clone();
            under_way.spawn(async move {
                let _place = place;
                let insert = |tx: &rusqlite::Connection| {
                    tx.execute("INSERT INTO events (body) VALUES ('a body of some forty bytes, as they come')", [])?;
                    Ok::<_, rusqlite::Error>(tx.last_insert_rowid())
                };
                let id = writer.transaction(Instant::now() + PATIENCE, insert).await.map_err(|error| error.to_string())?;
                Ok::<_, String>((id, now()))
            });
        }
        let mut committed = Vec::new();
        while let Some(done) = under_way.join_next().await {
            committed.push(done.map_err(|error| error.to_string())??);
        }
        Ok(committed)
    }
}

/// Nanoseconds since 1970: the one clock that all processes here read alike.
pub(crate) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as u64)
}

/// A node's `main`, which ends with its stdin, or the command line's.
pub(crate) fn program(is_node: bool) -> ExitCode {
    if is_node {
        std::thread::spawn(|| {
            let _ = std::io::stdin().read(&mut [0]);
            std::process::exit(0);
        });
    }
    let open = |opening: Opening| async move { Ok::<_, OpenError>(Loader(opening.database("app.db", Migrations::new(&[])).await?)) };
    horos_nodes::main(|n| {
        n.on(Role::Bo).service("bench", Restart::Permanent, open).to(&[Role::Operator]).stuck_after(Duration::from_secs(120));
    })
}

/// A node's process; gone when dropped.
#[derive(Debug)]
pub(crate) struct Node {
    child: Child,
    address: String,
}

impl Node {
    pub(crate) fn start(role: Role, data: &Path, seed: Option<&Self>) -> anyhow::Result<Self> {
        let log = data.join("node.log");
        let mut command = Command::new(std::env::current_exe()?);
        command.args([role.as_str(), "--json", "--listen", "127.0.0.1:0", "--data"]).arg(data);
        command.envs(seed.map(|seed| ("HOROS__PEERS__SEEDS", seed.address.clone())));
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(std::fs::File::create(&log)?);
        let mut child = command.spawn()?;
        let said = child.stdout.take().context("stdout is piped")?;
        let told = serde_json::Deserializer::from_reader(said).into_iter::<serde_json::Value>().next();
        let Some(Ok(told)) = told else { anyhow::bail!("the {role} did not start: {}", std::fs::read_to_string(log)?) };
        let address = told["address"].as_str().context("the node said something else first")?.to_owned();
        Ok(Self { child, address })
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // SQLite files and replicas stand this, as the tests show.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Both nodes.
#[derive(Debug)]
pub(crate) struct Cluster {
    root: PathBuf,
    layout: UpLayout,
    pub(crate) bo: Node,
    pub(crate) fo: Option<Node>,
}

impl Cluster {
    /// Sets both up in `root`, the BO with the database at `app`, and starts the BO.
    pub(crate) fn start(root: &Path, app: &Path) -> anyhow::Result<Self> {
        let layout = lay_out(root, Timestamp::now())?;
        std::fs::write(layout.bo.join("sync.yaml"), PUBLICATION)?;
        std::fs::write(layout.fo.join("sync.yaml"), REPLICA)?;
        std::fs::rename(app, layout.bo.join("app.db"))?;
        let bo = Node::start(Role::Bo, &layout.bo, None)?;
        Ok(Self { root: root.to_owned(), layout, bo, fo: None })
    }

    pub(crate) fn start_fo(&mut self) -> anyhow::Result<()> {
        self.fo = Some(Node::start(Role::Fo, &self.layout.fo, Some(&self.bo))?);
        Ok(())
    }

    /// Stops the FO and takes its replica away: its next start is its first.
    pub(crate) fn forget_fo(&mut self) -> anyhow::Result<()> {
        self.fo = None;
        for entry in std::fs::read_dir(&self.layout.fo)? {
            let entry = entry?;
            if entry.file_name().to_string_lossy().starts_with("public.db") {
                std::fs::remove_file(entry.path())?;
            }
        }
        Ok(())
    }

    pub(crate) fn app(&self) -> PathBuf {
        self.layout.bo.join("app.db")
    }

    pub(crate) fn public(&self) -> PathBuf {
        self.layout.fo.join("public.db")
    }

    /// What the BO's own writer committed, and when.
    pub(crate) fn commit(&self, per_second: u32, seconds: u32) -> anyhow::Result<Vec<(i64, u64)>> {
        let message = serde_json::json!({ "commit": Commit { per_second, seconds } }).to_string();
        Ok(serde_json::from_value(self.ask(&["call", "bench@bo", &message, "--timeout", "120s"])?)?)
    }

    /// Waits until the FO has everything.
    pub(crate) fn caught_up(&self, within: Duration) -> anyhow::Result<()> {
        let until = Instant::now() + within;
        loop {
            let status = self.ask(&["sync", "status", "bench"])?;
            let to = &status["publications"][0]["subscribers"][0];
            if to["state"] == "live" && to["lag_rows"] == 0 {
                return Ok(());
            }
            anyhow::ensure!(Instant::now() < until, "the FO did not catch up within {} s: {status}", within.as_secs());
            std::thread::park_timeout(Duration::from_millis(20));
        }
    }

    fn ask(&self, command: &[&str]) -> anyhow::Result<serde_json::Value> {
        let mut cli = Command::new(std::env::current_exe()?);
        let said = cli.args(command).arg("--json").arg("--data").arg(&self.root).stdin(Stdio::null()).output()?;
        anyhow::ensure!(said.status.success(), "{}: {}", command.join(" "), String::from_utf8_lossy(&said.stderr));
        Ok(serde_json::from_slice(&said.stdout)?)
    }
}
