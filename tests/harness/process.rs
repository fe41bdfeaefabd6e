//! A real process under test: started in a group of its own, listened to, signalled, and killed
//! with everything it started, however the test ends.

use std::ffi::OsStr;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::signal::{self, Signal};
use nix::unistd::Pid;
use tokio::time::{Instant, timeout_at};

use super::output::{Line, Output, Stream};
use super::{guard, poll_state};

/// Lines of output shown when a promise is broken.
const SHOWN: usize = 40;

/// A running (or ended) process.
#[derive(Debug)]
pub(crate) struct Process {
    name: String,
    child: Child,
    group: i32,
    output: Output,
}

impl Process {
    /// Starts `program`; `name` appears in failures.
    ///
    /// The environment loses every `HOROS_*` variable, so that what is tested is what the
    /// arguments say.
    ///
    /// # Errors
    /// When the program cannot be started.
    pub(crate) fn start<S: AsRef<OsStr>>(name: &str, program: &str, args: impl IntoIterator<Item = S>) -> Result<Self> {
        let mut command = Command::new(program);
        command.args(args);
        Self::spawn(name, command)
    }

    /// Starts `command`, whose working directory and variables the caller has chosen.
    ///
    /// # Errors
    /// When the program cannot be started.
    pub(crate) fn spawn(name: &str, mut command: Command) -> Result<Self> {
        clean(&mut command);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
        let mut child = command.spawn().with_context(|| format!("{name}: cannot start {command:?}"))?;
        let group = i32::try_from(child.id()).context("a process id fits pid_t")?;
        guard::watch(group);
        let output = Output::new();
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        let process = Self { name: name.to_owned(), child, group, output };
        process.output.follow(Stream::Stdout, stdout.context("stdout was asked for")?)?;
        process.output.follow(Stream::Stderr, stderr.context("stderr was asked for")?)?;
        Ok(process)
    }

    /// What the test called it.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// The process's id.
    pub(crate) fn pid(&self) -> Pid {
        Pid::from_raw(self.group)
    }

    /// How it ended, if it did.
    pub(crate) fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("waiting for one's own child cannot fail")
    }

    /// Sends `signal` to this process, not to those it started.
    ///
    /// # Panics
    /// When it has ended already: the test would go on about a process that is not there.
    pub(crate) fn signal(&mut self, signal: Signal) {
        if let Some(status) = self.ended() {
            panic!("{}: {signal} comes too late, it ended with {status}\n{}", self.name, self.output.tail(SHOWN));
        }
        signal::kill(self.pid(), signal).expect("one's own unreaped child can be signalled");
    }

    /// SIGKILL, as by `kill -9`, to this process alone; returns once it is gone.
    pub(crate) fn kill_9(&mut self) {
        self.signal(Signal::SIGKILL);
        self.child.wait().expect("waiting for one's own child cannot fail");
    }

    /// SIGTERM: asks for a graceful stop.
    pub(crate) fn terminate(&mut self) {
        self.signal(Signal::SIGTERM);
    }

    /// SIGSTOP: there, but no longer running, like a machine that swaps; returns once it has stopped.
    pub(crate) async fn freeze(&mut self) {
        self.signal(Signal::SIGSTOP);
        let pid = self.pid();
        poll_state(&format!("{} frozen", self.name), Duration::from_secs(5), async || match field(pid, "State:").as_deref() {
            Some(state) if state.starts_with('T') => Ok(()),
            state => Err(format!("state {state:?}")),
        })
        .await;
    }

    /// SIGCONT after [`Process::freeze`].
    pub(crate) fn thaw(&mut self) {
        self.signal(Signal::SIGCONT);
    }

    /// Waits until it has ended.
    ///
    /// # Panics
    /// When `limit` is over, with its last output.
    pub(crate) async fn wait(&mut self, limit: Duration) -> ExitStatus {
        let (name, child, output) = (&self.name, &mut self.child, &self.output);
        poll_state(&format!("{name} ends"), limit, async || match child.try_wait() {
            Ok(Some(status)) => Ok(status),
            Ok(None) => Err(format!("still running, its last output:\n{}", output.tail(SHOWN))),
            Err(error) => Err(error.to_string()),
        })
        .await
    }

    /// Waits for a line among those still kept and those to come.
    ///
    /// # Panics
    /// When `limit` is over or both streams end without it, with its last output.
    pub(crate) async fn wait_for_line(&mut self, what: &str, limit: Duration, wanted: impl Fn(&str) -> bool) -> String {
        self.wait_for_line_since(0, what, limit, |line| wanted(&line.text)).await.text
    }

    /// As [`Process::wait_for_line`], but only among lines from `mark` on; says which stream it came by.
    pub(crate) async fn wait_for_line_since(&mut self, mark: u64, what: &str, limit: Duration, wanted: impl Fn(&Line) -> bool) -> Line {
        let deadline = Instant::now() + limit;
        let mut progress = self.output.subscribe();
        let mut next = mark;
        loop {
            let ended = progress.borrow_and_update().closed == 2;
            let read = self.output.mark();
            if let Some(line) = self.output.since(next).into_iter().find(|line| wanted(line)) {
                return line;
            }
            // Lines judged once are not judged again: with a busy process that would be quadratic.
            next = next.max(read);
            let shown = || self.output.tail(SHOWN);
            assert!(!ended, "{}: ended without saying “{what}”; its last output:\n{}", self.name, shown());
            let grown = timeout_at(deadline, progress.changed()).await;
            assert!(grown.is_ok(), "{}: did not say “{what}” within {limit:?}; its last output:\n{}", self.name, shown());
        }
    }

    /// The number of the next line of output, for [`Process::wait_for_line_since`].
    pub(crate) fn mark(&self) -> u64 {
        self.output.mark()
    }

    /// The lines still kept, both streams, in the order read.
    pub(crate) fn lines(&self) -> Vec<String> {
        self.output.since(0).into_iter().map(|line| line.text).collect()
    }

    /// Resident memory in bytes (`VmRSS`).
    ///
    /// # Panics
    /// When the process is gone.
    pub(crate) fn rss(&self) -> u64 {
        let rss = field(self.pid(), "VmRSS:").unwrap_or_else(|| panic!("{}: no memory: it has ended", self.name));
        kibibytes(&rss)
    }

    /// The most memory it ever had resident, in bytes (`VmHWM`): a spike between two looks counts.
    ///
    /// # Panics
    /// When the process is gone.
    pub(crate) fn peak_rss(&self) -> u64 {
        let peak = field(self.pid(), "VmHWM:").unwrap_or_else(|| panic!("{}: no memory: it has ended", self.name));
        kibibytes(&peak)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // The whole group: a node's own children too, and a frozen one as well as a running one.
        let _ = signal::killpg(self.pid(), Signal::SIGKILL);
        let _ = self.child.wait();
        guard::release(self.group);
        if std::thread::panicking() {
            let lines = self.lines();
            // A panic's backtrace is longer than what is shown, and why it panicked stands before it.
            for (at, _) in lines.iter().enumerate().filter(|(_, line)| line.contains(" panicked at ")) {
                eprintln!("{}: {}", self.name, lines[at..lines.len().min(at + 3)].join("\n  | "));
            }
            eprintln!("{}: last output:\n{}", self.name, self.output.tail(SHOWN));
        }
    }
}

/// Takes away what the developer's own shell would change about a run.
pub(super) fn clean(command: &mut Command) {
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("HOROS_") && !command.get_envs().any(|(set, _)| set == name) {
            command.env_remove(&name);
        }
    }
    // No backtraces: panics are asked for here, and a debug build takes a second to name its frames.
    command.env("NO_COLOR", "1").env("RUST_BACKTRACE", "0");
}

/// One line of `/proc/PID/status`.
fn field(pid: Pid, name: &str) -> Option<String> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix(name)).map(|value| value.trim().to_owned())
}

fn kibibytes(value: &str) -> u64 {
    let number = value.strip_suffix(" kB").and_then(|number| number.parse::<u64>().ok());
    number.unwrap_or_else(|| panic!("proc(5) promises kB, this is {value:?}")) * 1024
}
