//! One process, from its start until it is reaped.

use std::{sync::Arc, time::Duration};

use horos_router::strategy::mcp::ProgramName;
use nix::{
    sys::{
        signal::{Signal, killpg},
        wait::{Id, WaitPidFlag, WaitStatus, waitid},
    },
    unistd::Pid,
};
use tokio::{
    process::{Child, ChildStdin, ChildStdout},
    signal::unix::{Signal as Signals, SignalKind, signal},
    sync::watch,
    task::{JoinHandle, spawn_blocking},
    time::timeout,
};
use tokio_util::{
    sync::{CancellationToken, DropGuard},
    task::TaskTracker,
};

use super::{NotStarted, Program, log};

/// For what the program has written last to be read.
const LAST_WORDS: Duration = Duration::from_millis(250);

/// A process that runs, and the ends of its pipes.
pub(super) struct Started {
    pub(super) name: Arc<str>,
    pub(super) stdin: ChildStdin,
    pub(super) stdout: ChildStdout,
    /// Dropped, the process is brought to its end.
    pub(super) wanted: DropGuard,
    /// How it ended, once it has and nothing is left of it.
    pub(super) ended: watch::Receiver<Option<Arc<str>>>,
}

pub(super) async fn start(program: Program, name: &ProgramName, parting: Duration, keepers: &TaskTracker) -> Result<Started, NotStarted> {
    let name: Arc<str> = name.to_string().into();
    // Before it can end.
    let signals = signal(SignalKind::child()).map_err(NotStarted::Spawn)?;
    // Secrets are files, and a program may lie on a disk that is slow. Whoever is not waited for is killed as it is dropped.
    let spawned = spawn_blocking(move || program.command()?.spawn().map_err(NotStarted::Spawn)).await;
    let mut child = spawned.map_err(|error| NotStarted::Spawn(error.into()))??;
    let missing = || NotStarted::Spawn(std::io::ErrorKind::BrokenPipe.into());
    let number = child.id().and_then(|id| id.try_into().ok()).map(Pid::from_raw).ok_or_else(missing)?;
    let group = Group { number, over: false };
    let (Some(stdin), Some(stdout), Some(stderr)) = (child.stdin.take(), child.stdout.take(), child.stderr.take()) else {
        return Err(missing());
    };
    tracing::info!(program = %name, pid = number.as_raw(), "started");
    let log = tokio::spawn(log::follow(stderr, name.clone()));
    let unwanted = CancellationToken::new();
    let (tell, ended) = watch::channel(None);
    let keeper = Keeper { child, group, name: name.clone(), signals, log, parting };
    let told = unwanted.clone();
    keepers.spawn(async move {
        let how = keeper.keep(told).await;
        tell.send_replace(Some(how));
    });
    Ok(Started { name, stdin, stdout, wanted: unwanted.drop_guard(), ended })
}

/// The program and all that it has started, for as long as its number is not another's: until it is reaped.
struct Group {
    number: Pid,
    over: bool,
}

impl Group {
    fn send(&self, signal: Signal) {
        // It fails when nobody is left.
        let _ = killpg(self.number, signal);
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if !self.over {
            self.send(Signal::SIGKILL);
        }
    }
}

/// Fields are dropped in this order, with the runtime at the latest: the group before the child is reaped.
struct Keeper {
    group: Group,
    child: Child,
    name: Arc<str>,
    signals: Signals,
    log: JoinHandle<()>,
    parting: Duration,
}

impl Keeper {
    /// Waits for its end, or brings it about when it is unwanted. How it ended.
    async fn keep(mut self, unwanted: CancellationToken) -> Arc<str> {
        let by_itself = tokio::select! {
            () = gone(self.group.number, &mut self.signals) => true,
            // Its input has ended, or does when the last line is written.
            () = unwanted.cancelled() => false,
        };
        let mut over = by_itself;
        for then in [Signal::SIGTERM, Signal::SIGKILL] {
            if !over {
                over = timeout(self.parting, gone(self.group.number, &mut self.signals)).await.is_ok();
            }
            if !over {
                tracing::warn!(program = %self.name, signal = %then, "it does not end");
                self.group.send(then);
            }
        }
        // What it has left running is not wanted either; and a program that has left its group is the only one that is not hit by that.
        self.group.send(Signal::SIGKILL);
        let _ = self.child.start_kill();
        let how: Arc<str> = match self.child.wait().await {
            Ok(status) => status.to_string().into(),
            Err(error) => error.to_string().into(),
        };
        self.group.over = true;
        // Who has left the group may hold the pipe for ever.
        if timeout(LAST_WORDS, &mut self.log).await.is_err() {
            self.log.abort();
        }
        if by_itself {
            tracing::warn!(program = %self.name, %how, "it has ended by itself");
        } else {
            tracing::info!(program = %self.name, %how, "ended");
        }
        how
    }
}

/// Resolves when the process has ended; it is not reaped by that.
///
/// # Cancel safety
/// Nothing is lost.
async fn gone(number: Pid, signals: &mut Signals) {
    loop {
        match waitid(Id::Pid(number), WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT) {
            Ok(WaitStatus::StillAlive) => {}
            Err(nix::errno::Errno::EINTR) => continue,
            // A process that cannot be waited for is none of ours any more.
            Ok(_) | Err(_) => return,
        }
        // None when there is no more to come, and then the runtime ends.
        if signals.recv().await.is_none() {
            return;
        }
    }
}
