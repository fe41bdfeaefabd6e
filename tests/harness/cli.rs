//! Running the command line once and judging what it says: exit code, data, talk.

use std::process::Command;
use std::time::Duration;

use serde_json::Value;
use tokio::time::timeout;

use super::process::clean;

/// No command takes longer; one that does hangs, which is a broken promise in itself.
const LIMIT: Duration = Duration::from_secs(30);

/// How one command ended.
#[derive(Debug)]
pub(crate) struct Outcome {
    /// What was run, for failures.
    pub(crate) line: String,
    /// Its exit code; `None` when a signal ended it.
    pub(crate) code: Option<i32>,
    /// Data.
    pub(crate) stdout: String,
    /// Talk.
    pub(crate) stderr: String,
}

impl Outcome {
    /// This outcome, if the exit code is `code`.
    ///
    /// # Panics
    /// When it is another, with everything the command said.
    pub(crate) fn expect_code(self, code: i32) -> Self {
        assert_eq!(self.code, Some(code), "{}\nstdout:\n{}\nstderr:\n{}", self.line, self.stdout, self.stderr);
        self
    }

    /// Standard output as one JSON value.
    ///
    /// # Panics
    /// When it is not, with everything the command said.
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.stdout)
            .unwrap_or_else(|error| panic!("{}: {error}\nstdout:\n{}\nstderr:\n{}", self.line, self.stdout, self.stderr))
    }
}

/// Runs `horos` with `args` to its end.
///
/// # Panics
/// When it does not start, or still runs after 30 s.
pub(crate) async fn horos(args: &[&str]) -> Outcome {
    let mut command = Command::new(super::HOROS);
    command.args(args);
    run(command).await
}

/// Runs any command to its end, in the same clean environment.
///
/// # Panics
/// When it does not start, or still runs after 30 s.
pub(crate) async fn run(mut command: Command) -> Outcome {
    clean(&mut command);
    let line = format!("{command:?}");
    let mut command = tokio::process::Command::from(command);
    let output = command.stdin(std::process::Stdio::null()).kill_on_drop(true).output();
    let output = timeout(LIMIT, output).await.unwrap_or_else(|_| panic!("{line}: still running after {LIMIT:?}"));
    let output = output.unwrap_or_else(|error| panic!("{line}: does not start: {error}"));
    Outcome {
        line,
        code: output.status.code(),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}
