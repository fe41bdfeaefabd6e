//! A BO that publishes a database of the test's own, FOs that keep replicas of it, and the looks into both files.
//!
//! The nodes run `horos` itself; what is replicated is said by `sync.yaml`, beside the shop that the program publishes anyway.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use horos_store::rusqlite::types::ValueRef;
use horos_store::rusqlite::{self, Connection, OpenFlags};
use serde_json::Value;

use crate::harness::{Cluster, Node, optimised, poll_state};

/// The publication's name.
pub(super) const NAME: &str = "e2e";
/// The database on the BO, and the replica on an FO.
pub(super) const DATABASE: &str = "e2e.db";
pub(super) const REPLICA: &str = "mirror.db";

/// The promise: content is equal within 5 s once nothing is in the way. An unoptimised build that shares two cores with others has
/// four times that.
pub(super) fn healing() -> Duration {
    if optimised() { Duration::from_secs(5) } else { Duration::from_secs(20) }
}

/// SplitMix64, as in the relay.
pub(super) struct Dice(pub(super) u64);

impl Dice {
    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// Below `n`.
    pub(super) fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    /// Waits up to `most`: no wait for a state, but the moment that varies.
    pub(super) async fn moment(&mut self, most: Duration) {
        tokio::time::sleep(Duration::from_micros(self.below(most.as_micros() as u64 + 1))).await;
    }
}

/// What is published, as both ends are asked for it; the answers must be the same, byte for byte.
pub(super) struct Published {
    pub(super) here: &'static str,
    pub(super) there: &'static str,
}

/// Money that is moved and never made: whoever sees another sum than [`SUM`] has seen half a transaction.
pub(super) const ACCOUNTS: &str = "CREATE TABLE account(id INTEGER PRIMARY KEY, owner TEXT, amount INT NOT NULL, secret TEXT);
    WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 200)
    INSERT INTO account SELECT i, 'owner ' || i, 100, 'never published' FROM n;
    CREATE TABLE entry(id INTEGER PRIMARY KEY, source INT, target INT, amount INT, listed INT NOT NULL, pad TEXT);";
pub(super) const ACCOUNTS_FILTER: &str =
    r#"{"partial-tables": {"account": {"columns": ["owner", "amount"]}}, "filtered-tables": {"entry": "listed = 1"}}"#;
pub(super) const ACCOUNTS_PUBLISHED: [Published; 2] = [
    Published { here: "SELECT id, owner, amount FROM account ORDER BY id", there: "SELECT id, owner, amount FROM account ORDER BY id" },
    Published { here: "SELECT * FROM entry WHERE listed = 1 ORDER BY id", there: "SELECT * FROM entry ORDER BY id" },
];
pub(super) const SUM: i64 = 20_000;

/// Moves money, in one transaction; every third entry is not published, and now and then one is published late or withdrawn.
pub(super) fn transfer(dice: &mut Dice) -> String {
    let (from, to, amount) = (1 + dice.below(200), 1 + dice.below(200), dice.below(9));
    let (listed, turn, pad) = (u64::from(dice.below(3) > 0), dice.below(40), dice.below(300));
    format!(
        "BEGIN IMMEDIATE; UPDATE account SET amount = amount - {amount} WHERE id = {from}; \
         UPDATE account SET amount = amount + {amount} WHERE id = {to}; \
         INSERT INTO entry(source, target, amount, listed, pad) VALUES ({from}, {to}, {amount}, {listed}, hex(zeroblob({pad}))); \
         UPDATE entry SET listed = 1 - listed WHERE id % 41 = {turn}; \
         DELETE FROM entry WHERE id < (SELECT max(id) FROM entry) - 3000; COMMIT;"
    )
}

pub(super) struct World {
    pub(super) cluster: Cluster,
    pub(super) bo: Node,
    pub(super) fo: Node,
}

/// Where the published file of a BO is.
pub(super) fn database(bo: &Node) -> PathBuf {
    bo.data.join(DATABASE)
}

/// Where the replica of an FO is.
pub(super) fn replica(fo: &Node) -> PathBuf {
    fo.data.join(REPLICA)
}

/// Writes the `sync.yaml` of a node.
pub(super) fn say(node: &Node, yaml: &str) {
    std::fs::write(node.data.join("sync.yaml"), yaml).unwrap();
}

pub(super) fn publication(filter: &str) -> String {
    format!("publications:\n  {NAME}:\n    database: {DATABASE}\n    to: [fo]\n    filter: {filter}\n")
}

pub(super) fn subscription() -> String {
    format!("replicas:\n  {NAME}: {{ file: {REPLICA}, from: bo }}\n")
}

impl World {
    /// A BO with `schema`, of which `filter` is published, and an FO that has caught up with it.
    pub(super) async fn start(schema: &str, filter: &str, published: &[Published]) -> Self {
        let cluster = Cluster::new();
        let bo = bo(&cluster, [127, 0, 0, 1], schema, filter).await;
        let fo = fo(&cluster, "fo-1", [127, 0, 0, 2], bo.address()).await;
        let world = Self { cluster, bo, fo };
        world.in_step(published, healing()).await;
        world
    }

    /// Another FO, which is started but may not have anything yet.
    pub(super) async fn another(&self, name: &str, host: [u8; 4]) -> Node {
        fo(&self.cluster, name, host, self.bo.address()).await
    }

    /// Waits until the FO has what is published.
    pub(super) async fn in_step(&self, published: &[Published], within: Duration) {
        equal(&self.bo, &self.fo, published, within).await;
    }

    /// What the BO says of its publication.
    pub(super) async fn publication(&self) -> Value {
        told(&self.bo, "publications").await
    }

    /// What the FO says of its replica.
    pub(super) async fn replica(&self) -> Value {
        told(&self.fo, "replicas").await
    }
}

/// What `node` says of the publication or its own replica.
pub(super) async fn told(node: &Node, kind: &str) -> Value {
    let status = node.ask(&["sync", "status", NAME]).await;
    let listed = serde_json::from_str::<Value>(&status.stdout).unwrap_or_default();
    let mine = |it: &&Value| it["node"] == *node.name;
    listed[kind].as_array().into_iter().flatten().find(mine).cloned().unwrap_or(Value::Null)
}

/// A BO that runs and publishes `filter` of a database with `schema`.
pub(super) async fn bo(cluster: &Cluster, host: [u8; 4], schema: &str, filter: &str) -> Node {
    let mut bo = cluster.first("bo-1", host).await;
    sqlite3(&database(&bo), schema);
    say(&bo, &publication(filter));
    bo.start().await;
    bo
}

/// An FO that runs and asks for a replica.
pub(super) async fn fo(cluster: &Cluster, name: &str, host: [u8; 4], seed: SocketAddr) -> Node {
    let mut fo = cluster.join(name, "fo", host, &[seed]).await;
    say(&fo, &subscription());
    fo.start().await;
    fo
}

/// Waits until the FO has, byte for byte, what is published on the BO. Nobody may be writing.
pub(super) async fn equal(bo: &Node, fo: &Node, published: &[Published], within: Duration) {
    let (here, there) = (database(bo), replica(fo));
    poll_state(&format!("{} has what is published", fo.name), within, async || {
        for it in published {
            let (ours, theirs) = (content(&here, it.here)?, content(&there, it.there)?);
            if ours != theirs {
                let first = ours.iter().zip(&theirs).position(|(a, b)| a != b).unwrap_or(ours.len().min(theirs.len()));
                let row = |rows: &[Vec<u8>]| rows.get(first).map(|row| String::from_utf8_lossy(row).into_owned());
                return Err(format!(
                    "{}: {} rows here, {} there; row {first} is {:?} here and {:?} there",
                    it.there,
                    ours.len(),
                    theirs.len(),
                    row(&ours),
                    row(&theirs)
                ));
            }
        }
        Ok(())
    })
    .await;
}

/// Every row that `sql` gives, as bytes that differ wherever a value or its type does. The file is opened for this look alone.
pub(super) fn content(file: &Path, sql: &str) -> Result<Vec<Vec<u8>>, String> {
    reader(file).and_then(|connection| rows(&connection, sql)).map_err(|error| format!("{}: {error}", file.display()))
}

/// A connection that cannot write.
pub(super) fn reader(file: &Path) -> rusqlite::Result<Connection> {
    let connection = Connection::open_with_flags(file, OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
    connection.busy_timeout(Duration::from_secs(5))?;
    Ok(connection)
}

pub(super) fn rows(connection: &Connection, sql: &str) -> rusqlite::Result<Vec<Vec<u8>>> {
    let mut statement = connection.prepare(sql)?;
    let width = statement.column_count();
    let mut rows = statement.query([])?;
    let mut all = Vec::new();
    while let Some(row) = rows.next()? {
        let mut bytes = Vec::new();
        for place in 0..width {
            let mut put = |tag: u8, value: &[u8]| {
                bytes.push(tag);
                bytes.extend_from_slice(&(value.len() as u32).to_le_bytes());
                bytes.extend_from_slice(value);
            };
            match row.get_ref(place)? {
                ValueRef::Null => put(b'N', &[]),
                ValueRef::Integer(value) => put(b'I', value.to_string().as_bytes()),
                ValueRef::Real(value) => put(b'R', &value.to_bits().to_le_bytes()),
                ValueRef::Text(value) => put(b'T', value),
                ValueRef::Blob(value) => put(b'B', value),
            }
        }
        all.push(bytes);
    }
    Ok(all)
}

/// Has SQLite's own shell do `sql`, and gives what it prints.
///
/// # Panics
/// When it fails.
pub(super) fn sqlite3(file: &Path, sql: &str) -> String {
    let output = Command::new("sqlite3").args(["-batch", "-bail", "-cmd", ".timeout 10000"]).arg(file).arg(sql).output().unwrap();
    assert!(output.status.success(), "{sql}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// The file as it lies there, the process that had it being dead, is whole. Looks at a copy: opening it would mend it.
pub(super) fn assert_whole(file: &Path) {
    if !file.exists() {
        return;
    }
    let to = crate::harness::data_dir();
    let copy = to.path().join("copy.db");
    std::fs::copy(file, &copy).unwrap();
    let beside = |file: &Path, suffix: &str| PathBuf::from(format!("{}{suffix}", file.display()));
    for suffix in ["-wal", "-journal"] {
        if beside(file, suffix).exists() {
            std::fs::copy(beside(file, suffix), beside(&copy, suffix)).unwrap();
        }
    }
    assert_eq!(sqlite3(&copy, "PRAGMA integrity_check"), "ok", "{}", file.display());
}

/// The file is whole, though other processes write on: all that is looked at is of one moment, which no copy would be.
pub(super) fn assert_whole_in_use(file: &Path) {
    let found: String = reader(file).unwrap().query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
    assert_eq!(found, "ok", "{}", file.display());
}

/// Every file of a node that SQLite would open.
pub(super) fn databases(data: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(data).unwrap().flatten().map(|entry| entry.path());
    let mut found: Vec<_> = entries.filter(|path| path.extension().is_some_and(|extension| extension == "db")).collect();
    found.sort();
    found
}

/// SQLite's own shell, kept running: another process that writes.
pub(super) struct Shell {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
    asked: u64,
}

impl Shell {
    pub(super) fn open(file: &Path) -> Self {
        let mut command = Command::new("sqlite3");
        command.arg("-batch").arg(file).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let (stdin, stdout) = (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()));
        // What it complains of comes with the rest, so that nothing is left unread.
        let mut shell = Self { child, stdin, stdout, asked: 0 };
        shell.run(".timeout 20000\nPRAGMA foreign_keys = ON;");
        shell
    }

    /// Does what `sql` says, and gives what it printed. What SQLite refuses is told on its standard error, which nobody reads here.
    pub(super) fn run(&mut self, sql: &str) -> String {
        self.asked += 1;
        let mark = format!("-- {} --", self.asked);
        writeln!(self.stdin, "{sql}\n.print '{mark}'").unwrap();
        self.stdin.flush().unwrap();
        let mut said = String::new();
        loop {
            let mut line = String::new();
            assert_ne!(self.stdout.read_line(&mut line).unwrap(), 0, "the shell ended at {sql}");
            if line.trim_end() == mark {
                return said;
            }
            said += &line;
        }
    }

    /// Ends it, and gives everything that it complained of.
    pub(super) fn end(mut self) -> String {
        use std::io::Read as _;
        let _ = writeln!(self.stdin, ".quit");
        let mut said = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
        self.child.wait().unwrap();
        said
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Something that goes on beside a test until it is ended.
pub(super) struct Beside<T> {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<T>>,
}

impl<T: Send + 'static> Beside<T> {
    pub(super) fn begin(what: impl FnOnce(&AtomicBool) -> T + Send + 'static) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let told = stop.clone();
        let thread = std::thread::spawn(move || what(&told));
        Self { stop, thread: Some(thread) }
    }

    /// Ends it, and gives what it came to.
    pub(super) fn end(mut self) -> T {
        self.stop.store(true, Ordering::Relaxed);
        let thread = self.thread.take().expect("it ends once");
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}

impl<T> Drop for Beside<T> {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Transfers at full speed by another process; ends with how many.
pub(super) fn transfers(file: &Path, seed: u64) -> Beside<u64> {
    let file = file.to_owned();
    Beside::begin(move |stop| {
        let (mut shell, mut dice, mut done) = (Shell::open(&file), Dice(seed), 0);
        while !stop.load(Ordering::Relaxed) {
            shell.run(&transfer(&mut dice));
            done += 1;
        }
        let said = shell.end();
        assert_eq!(said, "", "no writer fails because of us");
        done
    })
}

/// Reads the replica of an FO at full speed, for as long as it has one: each look sees whole transactions, and none fails. Ends with how
/// many looks there were. The connection is kept for some looks, as readers do, and made anew after.
pub(super) fn looks(fo: &Node) -> Beside<u64> {
    let file = replica(fo);
    Beside::begin(move |stop| {
        let mut looks = 0;
        while !stop.load(Ordering::Relaxed) {
            let connection = reader(&file).unwrap();
            for _ in 0..50 {
                let (sum, entries): (i64, i64) = connection
                    .query_row("SELECT sum(amount), (SELECT count(*) FROM entry WHERE listed <> 1) FROM account", [], |row| {
                        Ok((row.get(0)?, row.get(1)?))
                    })
                    .unwrap_or_else(|error| panic!("look {looks}: {error}"));
                assert_eq!((sum, entries), (SUM, 0), "look {looks}: half a transaction");
                looks += 1;
            }
        }
        looks
    })
}
