//! The node that is measured, and the rows in its `control.db`.

use std::{
    io::Write as _,
    net::SocketAddr,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::Context as _;
use horos_store::rusqlite::Connection;
use parking_lot::Mutex;

use crate::program;

/// The certificate that both show, and its key.
pub(crate) const CERTIFICATE: &str = "https.crt";
pub(crate) const CERTIFICATE_KEY: &str = "https.key";
/// The name that it is for.
pub(crate) const HOST: &str = "localhost";
/// The tool that is called.
pub(crate) const QUERY: &str = "stock_of";
/// Tools that take [`SLOW`] if they are let: one waits, the other reads all the time.
pub(crate) const WAITS: &str = "waits";
pub(crate) const READS: &str = "reads_on";
pub(crate) const SLOW: Duration = Duration::from_secs(10);
/// What [`QUERY`] is called with, and what of its answer tells that it is the right one.
pub(crate) const ARGUMENTS: &str = r#"{"sku":"coffee"}"#;
pub(crate) const ANSWERED: &str = r#""quantity":25"#;

/// Limits that one client does not meet, for it asks as often as a hundred thousand; each is counted all the same.
const SETTINGS: [(&str, &str); 4] = [
    ("HOROS__HTTP__TLS", "files"),
    ("HOROS__HTTP_LIMITS__PER_ADDRESS", "100000000"),
    ("HOROS__HTTP_LIMITS__PER_IDENTITY", "100000000"),
    ("HOROS__MCP__CALLS_PER_CALLER", "256"),
];

/// Leaves in `directory` what servers and clients need: a certificate.
pub(crate) fn set_up(directory: &Path) -> anyhow::Result<()> {
    let signed = rcgen::generate_simple_self_signed([HOST.to_owned()])?;
    std::fs::write(directory.join(CERTIFICATE), signed.cert.pem())?;
    let mut key = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(directory.join(CERTIFICATE_KEY))?;
    Ok(key.write_all(signed.signing_key.serialize_pem().as_bytes())?)
}

/// A node; gone when dropped.
pub(crate) struct Server {
    child: Child,
    pub(crate) directory: PathBuf,
    pub(crate) address: SocketAddr,
    pub(crate) key: String,
    control: Mutex<Connection>,
}

impl Server {
    pub(crate) fn start(directory: &Path) -> anyhow::Result<Self> {
        let data = directory.join("node");
        program::set_up(&data)?;
        let log = data.with_extension("log");
        let mut child = Command::new(std::env::current_exe()?)
            .args(["bo", "--json", "--data"])
            .arg(&data)
            .envs(SETTINGS)
            .env("HOROS__HTTP__CERTIFICATE", directory.join(CERTIFICATE))
            .env("HOROS__HTTP__KEY", directory.join(CERTIFICATE_KEY))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(std::fs::File::create(&log)?)
            .spawn()?;
        let said = child.stdout.take().context("stdout is piped")?;
        let told = serde_json::Deserializer::from_reader(said).into_iter::<serde_json::Value>().next();
        let Some(Ok(told)) = told else { anyhow::bail!("the node did not start: {}", std::fs::read_to_string(log)?) };
        let address = told["address"].as_str().context("the node said something else first")?.parse()?;
        let made = Command::new(env!("CARGO_BIN_EXE_horos"))
            .args(["keys", "create", "--name", "bench", "--owner", "bench", "--scope", "bench", "--json", "--data"])
            .arg(&data)
            .output()?;
        anyhow::ensure!(made.status.success(), "horos keys create: {}", String::from_utf8_lossy(&made.stderr));
        let made: serde_json::Value = serde_json::from_slice(&made.stdout)?;
        let key = made["secret"].as_str().context("no key was made")?.to_owned();
        let control = Connection::open(data.join("control.db"))?;
        control.busy_timeout(Duration::from_secs(10))?;
        control.execute_batch("PRAGMA synchronous = FULL; INSERT INTO mcp_tool_policy (tool_name, role) VALUES ('*', 'bench');")?;
        let server = Self { child, directory: directory.to_owned(), address, key, control: Mutex::new(control) };
        server.insert(&[QUERY])?;
        server.insert_slow()?;
        Ok(server)
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Inserts a tool of each name, in one transaction, as any other program may.
    pub(crate) fn insert(&self, names: &[&str]) -> anyhow::Result<()> {
        let mut control = self.control.lock();
        let transaction = control.transaction()?;
        for name in names {
            transaction.execute(
                "INSERT INTO mcp_tools_registry (tool_name, tool_category, description, input_schema, handler_type, handler_config, mode)
                 VALUES (?1, 'shop', 'How much there is of one of the goods, and what it costs: ' || ?1,
                    '{\"type\":\"object\",\"properties\":{\"sku\":{\"type\":\"string\",\"maxLength\":64}},\"required\":[\"sku\"]}', 'sql_query',
                    '{\"database\":\"app.db\",\"query\":\"SELECT sku, quantity, price FROM goods WHERE sku = ?1\",\"params\":[\"sku\"],\"tables\":{\"goods\":[\"sku\",\"quantity\",\"price\"]}}',
                    'readonly')",
                [name],
            )?;
        }
        Ok(transaction.commit()?)
    }

    fn insert_slow(&self) -> anyhow::Result<()> {
        let reads = r#"{"database":"app.db","query":"WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) AS of FROM n","tables":{"goods":["sku"]}}"#;
        for (name, handler, config) in [(WAITS, "native", "{}"), (READS, "sql_query", reads)] {
            self.control.lock().execute(
                "INSERT INTO mcp_tools_registry (tool_name, tool_category, description, input_schema, handler_type, handler_config, mode, timeout_ms)
                 VALUES (?1, 'slow', 'Takes its time', '{\"type\":\"object\"}', ?2, ?3, 'readonly', ?4)",
                (name, handler, config, i64::try_from(SLOW.as_millis())?),
            )?;
        }
        Ok(())
    }

    pub(crate) fn remove_new(&self) -> anyhow::Result<()> {
        self.control.lock().execute("DELETE FROM mcp_tools_registry WHERE tool_name LIKE 'new!_%' ESCAPE '!'", [])?;
        Ok(())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It holds nothing that a kill could harm.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
