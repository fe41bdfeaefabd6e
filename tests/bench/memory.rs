//! What the kernel says of a process's memory.

use anyhow::Context as _;

/// A field of the process's status, in bytes.
pub(crate) fn of(pid: u32, field: &str) -> anyhow::Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix(field)).context("no such field")?;
    Ok(line.trim().trim_end_matches(" kB").parse::<u64>()? * 1024)
}

/// Forgets a process's peak, and returns what it has now, in bytes.
pub(crate) fn forget_peak(pid: u32) -> anyhow::Result<u64> {
    std::fs::write(format!("/proc/{pid}/clear_refs"), "5")?;
    of(pid, "VmRSS:")
}

/// A process's peak since then, in bytes.
pub(crate) fn peak(pid: u32) -> anyhow::Result<u64> {
    of(pid, "VmHWM:")
}
