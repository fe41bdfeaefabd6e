//! Load by other people's clients, spread over nodes as a load balancer does it: `tests/clients/python/load.py`.

use std::time::Duration;

use serde_json::{Value, json};

use crate::harness::clients::python;
use crate::harness::http::Speaks;
use crate::harness::{Process, Site, poll_state};

/// For the first answers: Python takes its time on two cores that are in use.
const BEGINS: Duration = Duration::from_secs(20);

/// What a run is to do.
pub(super) struct Plan<'a> {
    pub(super) speaks: Speaks,
    pub(super) sites: &'a [Site],
    pub(super) key: &'a str,
    pub(super) path: &'a str,
    /// Requests in hand at a time.
    pub(super) workers: u32,
    /// Requests on one connection, after which it is closed and another opened; none keeps it.
    pub(super) per_connection: Option<u32>,
}

/// Load that is under way.
pub(super) struct Load {
    process: Process,
    speaks: Speaks,
}

impl Load {
    /// Begins, and waits until answers come.
    pub(super) async fn begin(plan: Plan<'_>) -> Self {
        let Plan { speaks, sites, key, path, workers, per_connection } = plan;
        let version = match speaks {
            Speaks::Http1 => "1.1",
            Speaks::Http2 => "2",
            Speaks::Http3 => "3",
        };
        let node = |site: &Site| json!({ "name": site.name, "address": [site.address.ip().to_string(), site.address.port()], "ca": site.authority });
        let wanted = json!({
            "version": version, "nodes": sites.iter().map(node).collect::<Vec<_>>(), "path": path, "headers": { "x-api-key": key },
            "workers": workers, "per_connection": per_connection,
        });
        let mut load = python("load.py");
        load.arg(wanted.to_string());
        let mut process = Process::spawn(&format!("load over {speaks:?}"), load).unwrap();
        process.wait_for_line("under way", BEGINS, |line| line == "under way").await;
        Self { process, speaks }
    }

    /// Waits until connections have shown so many certificates, one after the other.
    pub(super) async fn sees_certificates(&mut self, count: usize) {
        let process = &self.process;
        poll_state(&format!("{:?} has seen {count} certificates", self.speaks), BEGINS, async || {
            let seen: Vec<_> = process.lines().into_iter().filter(|line| line.starts_with("certificate ")).collect();
            if seen.len() >= count { Ok(()) } else { Err(format!("{seen:?}")) }
        })
        .await;
    }

    /// Ends it, and gives the tally: `done`, `failures`, `failed`, `moved`, `by_node`, `certificates`, `slowest_ms`.
    pub(super) async fn end(mut self) -> Value {
        self.process.terminate();
        assert!(self.process.wait(Duration::from_secs(40)).await.success(), "{:?}: {:?}", self.speaks, self.process.lines());
        let said = self.process.lines();
        let tally = said.iter().rev().find_map(|line| serde_json::from_str::<Value>(line).ok().filter(Value::is_object));
        let tally = tally.unwrap_or_else(|| panic!("no tally in {said:?}"));
        eprintln!("{:?}: {} answered, {} failed, moved {}", self.speaks, tally["done"], tally["failures"], tally["moved"]);
        tally
    }
}
