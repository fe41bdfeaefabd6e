//! A BO and an FO, and this process, which edits a route in the BO's file as any other program may.

use std::{
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::Context as _;
use horos_nodes::{cli::lay_out, store::rusqlite::Connection, wire::Role};
use jiff::Timestamp;

use crate::{
    placed::{NAMES, ROUTED, Watched, now},
    world::{foreign, millis},
};

/// Between two changes, at least, and what may be added to it: they meet the looks of all watchers anywhere.
const BETWEEN: Duration = Duration::from_millis(180);
const SPREAD: u64 = 40;
/// A change at the end of a watch would be missed for no fault of anybody.
const MARGIN: u64 = 3_000_000_000;

struct Node {
    child: Child,
    address: String,
}

impl Node {
    fn start(role: Role, data: &Path, seed: Option<&Self>) -> anyhow::Result<Self> {
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
}

impl Drop for Node {
    fn drop(&mut self) {
        // SQLite files and replicas stand this, as the tests show.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Both nodes.
pub(crate) struct Cluster {
    root: PathBuf,
    database: Connection,
    _nodes: [Node; 2],
}

impl Cluster {
    pub(crate) fn start(root: &Path) -> anyhow::Result<Self> {
        let layout = lay_out(root, Timestamp::now())?;
        let bo = Node::start(Role::Bo, &layout.bo, None)?;
        let fo = Node::start(Role::Fo, &layout.fo, Some(&bo))?;
        let database = foreign(&layout.bo.join("control.db"))?;
        let insert = "INSERT INTO routes (service_name, strategy, endpoint) VALUES (?1, 'local', ?2)";
        database.execute(insert, (ROUTED, NAMES[0]))?;
        let cluster = Self { root: root.to_owned(), database, _nodes: [bo, fo] };
        // Until the route has come to the FO, and for the first time anything has.
        for _ in 0..100 {
            if matches!(cluster.watch("watch@fo", Duration::from_millis(10)).and_then(watched), Ok(seen) if !seen.first.is_empty()) {
                return Ok(cluster);
            }
            std::thread::park_timeout(Duration::from_millis(100));
        }
        anyhow::bail!("the route never came to the FO: {:?}", cluster.watch("watch@fo", Duration::from_millis(10)).and_then(watched))
    }

    /// Milliseconds from before an `UPDATE` by this process to the first call by the new route on the BO, on the FO, and to its commit.
    pub(crate) fn changes(&self, span: Duration) -> anyhow::Result<[Vec<f64>; 3]> {
        let mut watches = [self.watch("watch@bo", span)?, self.watch("watch@fo", span)?];
        let (mut changes, mut committed) = (Vec::new(), Vec::new());
        while watches.iter_mut().any(|watch| matches!(watch.try_wait(), Ok(None))) {
            let to = NAMES[changes.len() % 2];
            let started = Instant::now();
            changes.push((to, now()));
            self.database.execute("UPDATE routes SET endpoint = ?1 WHERE service_name = ?2", (to, ROUTED))?;
            committed.push(millis(started));
            std::thread::park_timeout(BETWEEN + Duration::from_millis(now() / 1_000 % SPREAD));
        }
        let [here, there] = watches.map(|watch| watched(watch).and_then(|watched| late(&changes, &watched)));
        Ok([here.context("on the BO")?, there.context("on the FO")?, committed])
    }

    fn watch(&self, who: &str, span: Duration) -> anyhow::Result<Child> {
        let message = format!(r#"{{"watch": {{"millis": {}}}}}"#, span.as_millis());
        let mut cli = Command::new(std::env::current_exe()?);
        cli.args(["call", who, &message, "--timeout", "120s", "--json", "--data"]).arg(&self.root);
        Ok(cli.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?)
    }
}

fn watched(watch: Child) -> anyhow::Result<Watched> {
    let said = watch.wait_with_output()?;
    anyhow::ensure!(said.status.success(), "watch: {}", String::from_utf8_lossy(&said.stderr));
    Ok(serde_json::from_slice(&said.stdout)?)
}

/// How late each change was that was made while `watched` watched.
fn late(changes: &[(&str, u64)], watched: &Watched) -> anyhow::Result<Vec<f64>> {
    let mut late = Vec::new();
    for (number, (to, at)) in changes.iter().enumerate().skip(1) {
        if *at < watched.from || *at + MARGIN > watched.until {
            continue;
        }
        let seen = watched.first.iter().find(|(who, when)| who == to && when >= at);
        let seen = seen.map(|(_, when)| *when).with_context(|| {
            let after = (watched.until - at) / 1_000_000;
            format!("change {number} had not come into force after {after} ms; {} others were seen", watched.first.len())
        })?;
        late.push((seen - at) as f64 / 1e6);
    }
    anyhow::ensure!(!late.is_empty(), "nothing was changed while it was watched");
    Ok(late)
}
