//! The server's process: ours or the floor, never both, so that what the kernel says of it is of one of them.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    net::SocketAddr,
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
    process::{Child, Command, Stdio},
};

use anyhow::Context as _;
use serde::{Deserialize, Serialize};
use tempfile::TempDir;

use crate::{
    asked::HOST,
    floor,
    machine::{SERVER_CORE, pin},
    ours::{self, Layout},
};

/// The certificate that both show, and its key.
pub(crate) const CERTIFICATE: &str = "https.crt";
pub(crate) const CERTIFICATE_KEY: &str = "https.key";

/// Who serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A node.
    Ours(Layout),
    /// axum on hyper and tokio-rustls, and h3 on quinn, with nothing around them.
    Floor,
}

/// What a server says when it can be asked.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Ready {
    /// HTTP/1.1 and HTTP/2.
    pub(crate) tcp: SocketAddr,
    /// HTTP/3.
    pub(crate) udp: SocketAddr,
    /// A key that grants what the answer wants; the floor does not look at it.
    pub(crate) key: String,
}

/// A server process; gone when dropped. The end of its stdin, which is the end of this process too, ends it as well.
#[derive(Debug)]
pub(crate) struct Server {
    child: Child,
    pub(crate) ready: Ready,
    /// The node's.
    _data: TempDir,
}

impl Server {
    /// Starts this program again as a server with what [`set_up`] left in `directory`.
    pub(crate) fn start(kind: Kind, directory: &Path) -> anyhow::Result<Self> {
        let data = tempfile::tempdir_in(directory)?;
        let (child, ready) = match kind {
            Kind::Ours(layout) => ours::start(directory, &data.path().join("node"), layout)?,
            Kind::Floor => start_floor(directory)?,
        };
        Ok(Self { child, ready, _data: data })
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

/// Leaves in `directory` what servers and clients need: a certificate for HTTPS.
pub(crate) fn set_up(directory: &Path) -> anyhow::Result<()> {
    let signed = rcgen::generate_simple_self_signed([HOST.to_owned()])?;
    std::fs::write(directory.join(CERTIFICATE), signed.cert.pem())?;
    let mut key = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(directory.join(CERTIFICATE_KEY))?;
    Ok(key.write_all(signed.signing_key.serialize_pem().as_bytes())?)
}

/// This program again, under the profiler that `HOROS_BENCH_UNDER` names with its arguments, if any.
pub(crate) fn again() -> anyhow::Result<Command> {
    let program = std::env::current_exe()?;
    #[expect(clippy::disallowed_methods, reason = "for whoever profiles the benchmark; no node reads it")]
    let under = std::env::var("HOROS_BENCH_UNDER").unwrap_or_default();
    let mut words = under.split_whitespace();
    let Some(first) = words.next() else { return Ok(Command::new(program)) };
    let mut command = Command::new(first);
    command.args(words).arg(program);
    Ok(command)
}

fn start_floor(directory: &Path) -> anyhow::Result<(Child, Ready)> {
    let mut child = again()?.arg("--floor").arg(directory).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    let mut line = String::new();
    BufReader::new(child.stdout.take().context("stdout is piped")?).read_line(&mut line)?;
    Ok((child, serde_json::from_str(&line).context("the floor did not start")?))
}

/// The floor's `main`: serves until its stdin is closed.
pub(crate) fn serve_floor(directory: &Path) -> anyhow::Result<()> {
    pin(SERVER_CORE)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let serving = runtime.block_on(async { floor::serve(directory) })?;
    std::thread::spawn(move || runtime.block_on(std::future::pending::<()>()));
    writeln!(std::io::stdout().lock(), "{}", serde_json::to_string(&serving)?)?;
    std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink())?;
    Ok(())
}
