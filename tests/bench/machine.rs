//! Cores, what keeps them awake, and what the kernel says of a process's time.

use std::{
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::Context as _;
use nix::{
    sched::{CpuSet, sched_setaffinity},
    unistd::Pid,
};

/// The client's core and the server's.
pub(crate) const CLIENT_CORE: usize = 0;
pub(crate) const SERVER_CORE: usize = 1;

/// Pins the process to a core; threads started later are on it too.
pub(crate) fn pin(core: usize) -> anyhow::Result<()> {
    let mut set = CpuSet::new();
    set.set(core)?;
    sched_setaffinity(Pid::from_raw(0), &set).with_context(|| format!("the benchmark needs core {core}"))
}

/// Keeps the cores from sleeping: in a virtual machine, waking one takes longer than the work that is
/// measured, and not the same each time. Runs only where nothing else would.
pub(crate) struct Awake(Vec<Child>);

impl Awake {
    pub(crate) fn keep() -> Self {
        let start = |core: usize| {
            let me = std::env::current_exe()?;
            Command::new("chrt").args(["--idle", "0"]).arg(me).args(["--spin", &core.to_string()]).stdin(Stdio::null()).spawn()
        };
        let children: Vec<_> = [CLIENT_CORE, SERVER_CORE].into_iter().filter_map(|core| start(core).ok()).collect();
        if children.is_empty() {
            eprintln!("# no chrt (util-linux): idle cores may sleep, and latencies vary");
        }
        Self(children)
    }
}

impl Drop for Awake {
    fn drop(&mut self) {
        for child in &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// The spinner's `main`. It ends with its parent.
pub(crate) fn spin(core: usize) -> anyhow::Result<()> {
    pin(core)?;
    let parent = nix::unistd::getppid();
    while nix::unistd::getppid() == parent {
        for _ in 0..10_000_000 {
            std::hint::spin_loop();
        }
    }
    Ok(())
}

/// Processor time that a process has used.
pub(crate) fn cpu(pid: u32) -> anyhow::Result<Duration> {
    let mut nanos = 0;
    for task in std::fs::read_dir(format!("/proc/{pid}/task"))? {
        let schedstat = std::fs::read_to_string(task?.path().join("schedstat"))?;
        nanos += schedstat.split_whitespace().next().context("schedstat is empty")?.parse::<u64>()?;
    }
    Ok(Duration::from_nanos(nanos))
}
