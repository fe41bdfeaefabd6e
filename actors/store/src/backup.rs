//! Copying a live database into a file, and putting such a file back.
//!
//! Both write to a temporary name beside their target, sync it, and only then give it its name: at every instant the target is
//! whole, old or new or absent. Both block on the disk: call them from a thread that may (`spawn_blocking`).

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    time::Duration,
};

use rusqlite::{
    Connection, OpenFlags,
    backup::{Backup, StepResult},
};
use serde::Serialize;

use crate::{
    Kind, StoreError,
    identity::sync_directory,
    open::{Access, Check, OpenError, Options, OwnerLock, beside, check, open},
};

/// Pages copied at a step: 4 MiB, some milliseconds, between two looks at whether to go on.
const PAGES_PER_STEP: i32 = 1_000;
/// Longest a restore waits for the target's users to be gone.
const RESTORE_WAIT: Duration = Duration::from_millis(500);

/// How a backup is taken.
#[derive(Clone, Copy, Debug)]
pub struct BackupOptions {
    /// Rest after each 4 MiB, so that a backup leaves disk time to the node. Default none.
    pub rest: Duration,
    /// How the copy is checked before it gets its name. Default [`Check::Quick`].
    pub check: Check,
}

impl Default for BackupOptions {
    fn default() -> BackupOptions {
        BackupOptions { rest: Duration::ZERO, check: Check::Quick }
    }
}

/// What was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct BackupReport {
    /// Pages copied.
    pub pages: u64,
    /// Size of the file.
    pub bytes: u64,
}

/// Why nothing was written. The target is as it was.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BackupError {
    /// A file of that name is there. Backups are never overwritten.
    #[error("{} exists; choose another name or remove it", path.display())]
    Exists {
        /// The target.
        path: PathBuf,
    },
    /// The source (or, restoring, the backup) cannot be opened or is damaged.
    #[error(transparent)]
    Source(OpenError),
    /// The copy is damaged: the disk does not give back what was written.
    #[error("the copy is damaged; check the target's disk")]
    Copy(#[source] OpenError),
    /// SQLite failed while copying.
    #[error("copying failed")]
    Sqlite(#[from] StoreError),
    /// The database to be replaced is in use: stop the node that owns it and whoever else has it open.
    #[error("{} is in use; stop the node first", path.display())]
    InUse {
        /// The target.
        path: PathBuf,
    },
    /// The system failed.
    #[error("cannot {doing} {}", path.display())]
    File {
        /// What was attempted.
        doing: &'static str,
        /// On what.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
}

impl From<rusqlite::Error> for BackupError {
    fn from(error: rusqlite::Error) -> BackupError {
        BackupError::Sqlite(error.into())
    }
}

/// Copies the database at `source` into the new file `target`, while others go on writing. The copy is the state at one commit,
/// page for page, in one file without a WAL.
///
/// # Errors
/// [`BackupError`]; then there is no `target`.
pub fn backup(source: &Path, target: &Path, options: BackupOptions) -> Result<BackupReport, BackupError> {
    refuse_existing(target)?;
    let from = open(&Options::new(source, Access::ReadOnly)).map_err(BackupError::Source)?;
    let temporary = Temporary::beside(target)?;
    let report = copy(&from, &temporary.path, options)?;
    temporary.name_if_absent(target)?;
    Ok(report)
}

/// Puts the backup at `source` in place of the database at `target` (which need not exist).
///
/// # Errors
/// [`BackupError`]; then the target is as it was. A damaged backup is refused before the target is touched, a target in use by any
/// process is refused as well.
pub fn restore(source: &Path, target: &Path) -> Result<BackupReport, BackupError> {
    let from = open(&Options { check: Check::Full, ..Options::new(source, Access::ReadOnly) }).map_err(BackupError::Source)?;
    let target = &std::path::absolute(target).map_err(|e| file("find", target, e))?;
    // Held to the end: no owner starts in between.
    let _lock = OwnerLock::take(target).map_err(|error| match error {
        OpenError::Owned { path } => BackupError::InUse { path },
        other => BackupError::Source(other),
    })?;
    let temporary = Temporary::beside(target)?;
    let report = copy(&from, &temporary.path, BackupOptions::default())?;
    // Kept open until the new file has the name: whoever opens the old one meanwhile finds it locked.
    let _old = Replaced::lock(target)?;
    temporary.rename(target)?;
    Ok(report)
}

fn copy(from: &Connection, path: &Path, options: BackupOptions) -> Result<BackupReport, BackupError> {
    // A read transaction of our own: without it the copy starts over whenever somebody commits, and under steady writes
    // never ends. <https://sqlite.org/c3ref/backup_finish.html>
    from.execute_batch("BEGIN")?;
    from.query_row("SELECT count(*) FROM sqlite_schema", [], |_| Ok(()))?;
    let mut to = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
    // Synced once, at the end, by us.
    to.pragma_update(None, "synchronous", "OFF")?;
    let pages = {
        let copying = Backup::new(from, &mut to)?;
        loop {
            match copying.step(PAGES_PER_STEP)? {
                StepResult::Done => break,
                // Both files are ours alone or read-locked, so a lock is short.
                _ if options.rest.is_zero() => std::thread::yield_now(),
                _ => std::thread::park_timeout(options.rest),
            }
        }
        copying.progress().pagecount
    };
    from.execute_batch("ROLLBACK")?;
    // The copied header says WAL; as a single file it must not need one.
    let mode: String = to.pragma_update_and_check(None, "journal_mode", "delete", |row| row.get(0))?;
    debug_assert_eq!(mode, "delete");
    check(&to, options.check, path).map_err(BackupError::Copy)?;
    to.close().map_err(|(_, error)| StoreError::from(error))?;
    let handle = File::open(path).map_err(|e| file("open", path, e))?;
    handle.sync_all().map_err(|e| file("sync", path, e))?;
    let bytes = handle.metadata().map_err(|e| file("measure", path, e))?.len();
    Ok(BackupReport { pages: u64::try_from(pages).unwrap_or(0), bytes })
}

/// A file under a temporary name; removed unless it gets its own.
struct Temporary {
    path: PathBuf,
}

impl Temporary {
    fn beside(target: &Path) -> Result<Temporary, BackupError> {
        let target = std::path::absolute(target).map_err(|e| file("find", target, e))?;
        let path = beside(&target, &format!(".{:016x}.tmp", rand::random::<u64>()));
        // As private as the database itself.
        OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path).map_err(|e| file("create", &path, e))?;
        Ok(Temporary { path })
    }

    /// Gives it a name nobody has; checked by the kernel, not by us before.
    fn name_if_absent(&self, target: &Path) -> Result<(), BackupError> {
        match fs::hard_link(&self.path, target) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Err(BackupError::Exists { path: target.into() }),
            // File systems without hard links (FAT, some network ones): the check before is all there is.
            Err(_) => {
                refuse_existing(target)?;
                fs::rename(&self.path, target).map_err(|e| file("rename to", target, e))?;
            }
        }
        // The second name goes before the sync, so that one sync settles both.
        let _ = fs::remove_file(&self.path);
        self.sync(target)
    }

    fn rename(&self, target: &Path) -> Result<(), BackupError> {
        fs::rename(&self.path, target).map_err(|e| file("rename to", target, e))?;
        self.sync(target)
    }

    fn sync(&self, target: &Path) -> Result<(), BackupError> {
        let directory = self.path.parent().unwrap_or(Path::new("/"));
        sync_directory(directory).map_err(|e| file("sync the directory of", target, e))
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        for suffix in ["", "-journal", "-wal", "-shm"] {
            // Usually gone already.
            let _ = fs::remove_file(beside(&self.path, suffix));
        }
    }
}

/// The database that is about to be replaced, locked against every process and without a WAL.
struct Replaced {
    _connection: Option<Connection>,
}

impl Replaced {
    fn lock(target: &Path) -> Result<Replaced, BackupError> {
        match fs::metadata(target) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                remove_remains(target)?;
                return Ok(Replaced { _connection: None });
            }
            Err(error) => return Err(file("read", target, error)),
            Ok(_) => {}
        }
        let connection = Connection::open_with_flags(target, OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
        connection.busy_timeout(RESTORE_WAIT)?;
        match exclude(&connection) {
            Ok(()) => Ok(Replaced { _connection: Some(connection) }),
            Err(error) => match error.kind {
                Kind::Busy | Kind::Stale => Err(BackupError::InUse { path: target.into() }),
                // A ruin is what a restore is for. Nobody can be using it, and its WAL must not be applied to the new file.
                Kind::Corrupt | Kind::NotADatabase => {
                    drop(connection);
                    remove_remains(target)?;
                    Ok(Replaced { _connection: None })
                }
                _ => Err(error.into()),
            },
        }
    }
}

/// Leaving WAL mode takes every other connection's absence (SQLite sees to it) and removes -wal and -shm; the exclusive
/// transaction then keeps everybody out.
fn exclude(connection: &Connection) -> Result<(), StoreError> {
    connection.pragma_update_and_check(None, "locking_mode", "exclusive", |_| Ok(()))?;
    connection.pragma_update_and_check(None, "journal_mode", "delete", |_| Ok(()))?;
    connection.execute_batch("BEGIN EXCLUSIVE")?;
    Ok(())
}

fn remove_remains(target: &Path) -> Result<(), BackupError> {
    for suffix in ["-wal", "-shm", "-journal"] {
        let path = beside(target, suffix);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(file("remove", &path, error)),
            _ => {}
        }
    }
    Ok(())
}

fn refuse_existing(target: &Path) -> Result<(), BackupError> {
    match fs::symlink_metadata(target) {
        Ok(_) => Err(BackupError::Exists { path: target.into() }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(file("look at", target, error)),
    }
}

fn file(doing: &'static str, path: &Path, source: io::Error) -> BackupError {
    BackupError::File { doing, path: path.to_path_buf(), source }
}
