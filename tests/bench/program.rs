//! The node's own binary as an operator has it: set up by the documented command, started, stopped by a signal.

use std::{
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::Context as _;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

/// How long a node is left alone before its memory is read: long enough for all that starting left to do.
const IDLE: Duration = Duration::from_secs(2);

/// Sets up a BO's data directory.
pub(crate) fn set_up(data: &Path) -> anyhow::Result<()> {
    let init = Command::new(env!("CARGO_BIN_EXE_horos"))
        .args(["init", "--cluster", "bench", "--name", "bo-1", "--listen", "127.0.0.1:0", "--data"])
        .arg(data)
        .output()?;
    anyhow::ensure!(init.status.success(), "horos init: {}", String::from_utf8_lossy(&init.stderr));
    Ok(())
}

/// A node from its start until it says that it is ready.
pub(crate) struct Started {
    child: Child,
    /// From the call that starts the process.
    pub(crate) ready: Duration,
}

impl Started {
    /// Starts the node on `data`.
    pub(crate) fn start(data: &Path) -> anyhow::Result<Self> {
        let started = Instant::now();
        let mut child = Command::new(env!("CARGO_BIN_EXE_horos-bo"))
            .args(["--json", "--data"])
            .arg(data)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        let said = child.stdout.take().context("stdout is piped")?;
        let told = serde_json::Deserializer::from_reader(said).into_iter::<serde_json::Value>().next();
        let node = Self { child, ready: started.elapsed() };
        let told = told.context("the node ended before it was ready")??;
        anyhow::ensure!(told["event"] == "ready", "the node said {told} first");
        Ok(node)
    }

    /// What it holds when it has had nothing to do for a while, in bytes.
    pub(crate) fn idle_memory(&self) -> anyhow::Result<u64> {
        let started = Instant::now();
        while let Some(left) = IDLE.checked_sub(started.elapsed()) {
            std::thread::park_timeout(left);
        }
        crate::memory::of(self.child.id(), "VmRSS:")
    }

    /// Stops it in good order.
    pub(crate) fn stop(mut self) -> anyhow::Result<()> {
        kill(Pid::from_raw(self.child.id().cast_signed()), Signal::SIGTERM)?;
        let status = self.child.wait()?;
        anyhow::ensure!(status.success(), "the node ended with {status}");
        Ok(())
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        // Fails when it was stopped.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
