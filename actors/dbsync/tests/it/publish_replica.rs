//! A publisher and a replica, both real, on one node: what is committed to one file is read from the other.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use horos_dbsync::{
    filter::FilterSpec,
    publisher::{Publication, Publisher, PublisherLimits},
    replica::{Origin, Replica, ReplicaConfig},
    source::SourceConfig,
};
use horos_store::rusqlite::{self, Connection};
use horos_supervision::{Context, Exchange, Strategy, Supervisor, SupervisorHandle, SupervisorSpec};
use horos_wire::{
    Incarnation, NodeId, Request, Role,
    protocol::sync::{NodeVerify, StartVerify, Sync},
};
use tempfile::TempDir;

use super::capture_world::shell;

const LIMIT: Duration = Duration::from_secs(20);
const SCHEMA: &str = "CREATE TABLE item(id INTEGER PRIMARY KEY, name TEXT, price INTEGER, public INTEGER, secret TEXT);
    INSERT INTO item VALUES (1, 'hat', 10, 1, 'x'), (2, 'coat', 90, 0, 'y'), (3, 'shoe', 50, 1, 'z');";
const SPEC: &str = r#"{"partial-tables": {"item": {"columns": ["name", "price"], "where": "public"}}}"#;

/// One life of the node.
struct Node {
    dir: Arc<TempDir>,
    publisher: Publisher,
    replica: Replica,
    supervisor: SupervisorHandle,
    context: Context,
}

fn bo(dir: &TempDir) -> PathBuf {
    dir.path().join("shop.db")
}

fn fo(dir: &TempDir) -> PathBuf {
    dir.path().join("replica").join("shop.db")
}

fn shop() -> Arc<TempDir> {
    let dir = Arc::new(tempfile::tempdir().unwrap());
    Connection::open(bo(&dir)).unwrap().execute_batch(&format!("PRAGMA journal_mode = WAL; {SCHEMA}")).unwrap();
    dir
}

impl Node {
    async fn start(dir: &Arc<TempDir>) -> Self {
        let exchange = Exchange::new(NodeId::from_uri("spiffe://shop/bo/bo-1").unwrap(), Incarnation(1));
        let runtime = tokio::runtime::Handle::current();
        let spec: FilterSpec = serde_json::from_str(SPEC).unwrap();
        let publisher = Publisher::new(
            &exchange,
            &runtime,
            SourceConfig::new("shop", bo(dir), dir.path().join("sync")),
            vec![Publication::new("shop", spec).to(Role::Bo)],
            &PublisherLimits::default(),
            Arc::new(|_, _| {}),
        )
        .unwrap();
        let config = ReplicaConfig::new("shop", fo(dir), Origin::Node("bo-1".parse().unwrap()));
        let replica = Replica::new(config, Arc::new(|_, _| {}));
        let children = vec![publisher.child(), replica.supervisor(&exchange, &runtime).unwrap().into_child()];
        let supervisor = Supervisor::start(SupervisorSpec::new("root", Strategy::OneForOne, children), None).await.unwrap();
        let context = Context::new(exchange, "test");
        Self { dir: dir.clone(), publisher, replica, supervisor, context }
    }

    /// Waits until what was committed so far can be read, and compares all of it.
    async fn follows(&self) {
        let started = Instant::now();
        let head = loop {
            match self.publisher.source().head(Instant::now() + LIMIT).await {
                Ok(head) => break head,
                Err(error) => assert!(started.elapsed() < LIMIT, "{error}"),
            }
        };
        while let Err(error) = self.replica.wait_for(&head, Instant::now() + LIMIT).await {
            assert!(started.elapsed() < LIMIT, "{error}: {:?} {:?}", self.replica.status(), self.publisher.status());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let sql = "SELECT id, name, price FROM item ORDER BY id";
        let there = self.replica.read(Instant::now() + LIMIT, move |connection| rows(connection, sql)).await.unwrap();
        let here = rows(&Connection::open(bo(&self.dir)).unwrap(), "SELECT id, name, price FROM item WHERE public ORDER BY id").unwrap();
        assert_eq!(there, here);
        assert_eq!(self.replica.position(), Some(head));
    }

    async fn ask<R: Request<Protocol = Sync>>(&self, request: R) -> R::Reply {
        self.context.at::<Sync>("horos.sync.shop").call(request, LIMIT).await.map_err(|error| error.to_string()).unwrap()
    }

    async fn verify(&self) -> NodeVerify {
        let started = Instant::now();
        let mut report = self.ask(StartVerify { node: None, run: None }).await;
        while !report.done {
            assert!(started.elapsed() < LIMIT, "{report:?}");
            tokio::time::sleep(Duration::from_millis(5)).await;
            report = self.ask(StartVerify { node: None, run: Some(report.run) }).await;
        }
        report.nodes.remove(0)
    }

    async fn stop(self) {
        self.supervisor.stop().await;
    }
}

fn rows(connection: &Connection, sql: &str) -> rusqlite::Result<Vec<(i64, String, i64)>> {
    connection.prepare(sql)?.query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?.collect()
}

fn write(path: &Path, sql: &str) {
    let connection = Connection::open(path).unwrap();
    connection.busy_timeout(Duration::from_secs(5)).unwrap();
    connection.execute_batch(sql).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_shell_commits_is_read_from_the_replica_and_a_restart_needs_no_snapshot() {
    let dir = shop();
    let node = Node::start(&dir).await;
    node.follows().await;
    for sql in [
        "INSERT INTO item VALUES (4, 'scarf', 20, 1, 'p');",
        "UPDATE item SET public = 1 - public;",
        "DELETE FROM item WHERE id = 2;",
        "REPLACE INTO item VALUES (4, 'shawl', 25, 1, 'q');",
        "ALTER TABLE item ADD COLUMN colour TEXT; UPDATE item SET price = price + 1;",
    ] {
        assert_eq!(shell(&bo(&dir), sql), "");
        node.follows().await;
    }
    assert_eq!(node.replica.status().snapshots, 1);
    node.stop().await;
    write(&bo(&dir), "UPDATE item SET price = 7, public = 1");
    let node = Node::start(&dir).await;
    node.follows().await;
    // Counted when it was applied, which is after it can be read.
    let started = Instant::now();
    while node.replica.status().deltas == 0 && started.elapsed() < LIMIT {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    let status = node.replica.status();
    assert_eq!(status.snapshots, 0, "{status:?}");
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_too_large_for_a_message_arrives_and_what_is_broken_in_the_replica_is_healed() {
    let dir = shop();
    write(
        &bo(&dir),
        "WITH RECURSIVE n(v) AS (SELECT 1000 UNION ALL SELECT v + 1 FROM n WHERE v < 30000)
         INSERT INTO item SELECT v, hex(randomblob(20)), v, 1, '' FROM n",
    );
    let node = Node::start(&dir).await;
    node.follows().await;
    assert!(node.replica.status().received_bytes > 300_000, "{:?}", node.replica.status());
    assert_eq!(node.verify().await.mismatches, 0);
    // As a failing disk or a hand would.
    write(&fo(&dir), "UPDATE item SET price = -1 WHERE id = 2000; DELETE FROM item WHERE id = 20000");
    let report = node.verify().await;
    assert_eq!(report.mismatches, 2, "{report:?}");
    assert!(report.repaired_rows < 9_000, "{report:?}");
    node.follows().await;
    assert_eq!(node.verify().await.mismatches, 0);
    assert_eq!(node.replica.status().snapshots, 1);
    node.stop().await;
}
