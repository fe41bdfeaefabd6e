//! Servers that this node starts: programs that speak MCP on their standard input and output, a message a line.
//!
//! Which programs there are is for whoever starts the node to say. A route names one of them; a command it cannot name, or whoever edits
//! rows could run anything here.
//!
//! ```text
//! stdin  ◀── writer ◀── queue ◀─┐
//! stdout ──▶ reader ──▶ inbox ──┴─ rmcp
//! stderr ──▶ log
//! life    ── keeper: waits for its end, or brings it about
//! ```
//!
//! A program is started by its endpoint's actor, at the first call, and again after its end as any server is greeted again. It gets no
//! variable of the node's environment but [`INHERITED`] and those that are named for it.
//!
//! It ends as the protocol has it (MCP 2025-11-25, "Shutdown"): its input ends, which also happens when the node is killed; then
//! `SIGTERM`, then `SIGKILL`, each after [`Times::parting`](super::Times::parting). Both go to its group of processes, and what it has
//! left running there is killed when it ends. A process that leaves the group by itself is its own master.

mod lines;
mod log;
mod process;
mod transport;

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fmt, io,
    path::{Path, PathBuf},
    process::Stdio,
    sync::Arc,
    time::Duration,
};

use horos_router::strategy::{
    mcp::{Endpoint, ProgramName},
    secret::{Secret, SecretError},
};
use tokio::process::Command;
use tokio_util::task::TaskTracker;

pub(super) use self::transport::{NotSent, Transport};

/// What a program has of the node's own environment: where programs are, whose home it is, and the language and the time there.
pub const INHERITED: [&str; 8] = ["HOME", "LANG", "LC_ALL", "LOGNAME", "PATH", "TMPDIR", "TZ", "USER"];

/// How a program is started.
#[derive(Clone, Debug)]
pub struct Program {
    program: OsString,
    arguments: Vec<OsString>,
    environment: Vec<(OsString, OsString)>,
    secrets: Vec<(OsString, Arc<Secret>)>,
    directory: Option<PathBuf>,
}

impl Program {
    /// `program`, a path or a name that is looked for in `PATH`, with these arguments.
    pub fn new(program: impl Into<OsString>, arguments: impl IntoIterator<Item = impl Into<OsString>>) -> Self {
        Self {
            program: program.into(),
            arguments: arguments.into_iter().map(Into::into).collect(),
            environment: Vec::new(),
            secrets: Vec::new(),
            directory: None,
        }
    }

    /// The same, with a variable in its environment.
    #[must_use]
    pub fn with(mut self, name: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        self.environment.push((name.into(), value.into()));
        self
    }

    /// The same, with a variable that has the line of the file `file` in `secrets`, as it is when the program is started.
    #[must_use]
    pub fn with_secret(mut self, name: impl Into<OsString>, secrets: &Path, file: &str) -> Self {
        self.secrets.push((name.into(), Arc::new(Secret::new(secrets, file))));
        self
    }

    /// The same, started in `directory` and not in the node's own.
    #[must_use]
    pub fn in_directory(mut self, directory: impl Into<PathBuf>) -> Self {
        self.directory = Some(directory.into());
        self
    }

    /// What starts it. Reads files.
    fn command(&self) -> Result<Command, NotStarted> {
        let mut command = Command::new(&self.program);
        command.args(&self.arguments).env_clear();
        command.envs(INHERITED.iter().filter_map(|name| Some((name, std::env::var_os(name)?))));
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        for (name, secret) in &self.secrets {
            let value = secret.read()?;
            command.env(name, value.to_str().unwrap_or_default());
        }
        if let Some(directory) = &self.directory {
            command.current_dir(directory);
        }
        // In a group of its own: a terminal's Ctrl-C is for the node, which ends it in good order.
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0).kill_on_drop(true);
        Ok(command)
    }
}

/// Why a program does not run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(super) enum NotStarted {
    #[error("it cannot be started: {0}")]
    Spawn(#[source] io::Error),
    #[error("it is not started: {0}")]
    Secret(#[from] SecretError),
}

/// A route names a program that there is none of.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("this node has no program {0}; its configuration is to say how it is started, under mcp.programs.{0}.command")]
pub struct NoProgram(pub ProgramName);

/// The programs of a node. Cheap to clone.
#[derive(Clone, Default)]
pub struct Programs(Arc<Inner>);

#[derive(Default)]
struct Inner {
    known: BTreeMap<ProgramName, Program>,
    /// The keepers of those that run.
    running: TaskTracker,
}

impl fmt::Debug for Programs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.known.keys()).finish()
    }
}

impl Programs {
    /// These, none of which runs.
    pub fn new(known: BTreeMap<ProgramName, Program>) -> Self {
        Self(Arc::new(Inner { known, running: TaskTracker::new() }))
    }

    /// Whether `endpoint` is no program, or one of these.
    ///
    /// # Errors
    /// [`NoProgram`].
    pub fn check(&self, endpoint: &Endpoint) -> Result<(), NoProgram> {
        match endpoint {
            Endpoint::Program(name) => self.find(name).map(drop),
            _ => Ok(()),
        }
    }

    fn find(&self, name: &ProgramName) -> Result<&Program, NoProgram> {
        self.0.known.get(name).ok_or_else(|| NoProgram(name.clone()))
    }

    /// Waits until those whose clients are gone have ended, for `within` at most. What is left then is killed with this process's runtime.
    pub async fn ended(&self, within: Duration) {
        self.0.running.close();
        if tokio::time::timeout(within, self.0.running.wait()).await.is_err() {
            tracing::warn!("programs that speak mcp have not ended, and are killed");
        }
        self.0.running.reopen();
    }

    /// Starts a program, anew for each session; its end takes up to twice `parting`.
    pub(super) async fn start(&self, name: &ProgramName, parting: Duration) -> Result<Result<Transport, NotStarted>, NoProgram> {
        let program = self.find(name)?.clone();
        let started = process::start(program, name, parting, &self.0.running).await;
        Ok(started.map(Transport::new))
    }
}
