//! Directories, permissions and the owner lock of database files.

use std::{
    ffi::OsString,
    fs::{self, DirBuilder, File, OpenOptions, TryLockError},
    io,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use super::OpenError;

/// Only the node's user reads what the node stores.
const DIRECTORY_MODE: u32 = 0o700;
const FILE_MODE: u32 = 0o600;
const OTHERS: u32 = 0o077;

/// Proof of owning a database file, in all processes of this machine: an exclusive `flock` on `FILE-owner`.
///
/// The lock is on a file of its own because SQLite's own locks live on the database, and closing any descriptor of *that* file
/// would drop them (`fcntl(2)`). The kernel releases it when the process dies.
#[derive(Debug)]
pub(crate) struct OwnerLock {
    _file: File,
}

impl OwnerLock {
    pub(crate) fn take(database: &Path) -> Result<OwnerLock, OpenError> {
        let path = beside(database, "-owner");
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(FILE_MODE)
            .open(&path)
            .map_err(|source| explain("create", &path, source))?;
        match file.try_lock() {
            Ok(()) => Ok(OwnerLock { _file: file }),
            Err(TryLockError::WouldBlock) => Err(OpenError::Owned { path: database.to_path_buf() }),
            Err(TryLockError::Error(source)) => Err(explain("lock", &path, source)),
        }
    }
}

/// `database` with `suffix` appended to its name, whatever bytes the name is made of.
pub(crate) fn beside(database: &Path, suffix: &str) -> PathBuf {
    let mut name: OsString = database.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

/// Makes the directory and the file, both private, and takes the lock.
pub(super) fn prepare(path: &Path) -> Result<OwnerLock, OpenError> {
    if let Some(directory) = path.parent() {
        DirBuilder::new()
            .recursive(true)
            .mode(DIRECTORY_MODE)
            .create(directory)
            .map_err(|source| explain("create directory", directory, source))?;
    }
    let lock = OwnerLock::take(path)?;
    // Created here and not by SQLite, which knows only the umask; the -wal and -shm files inherit the mode.
    match OpenOptions::new().write(true).create_new(true).mode(FILE_MODE).open(path) {
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => tighten(path)?,
        Err(source) => return Err(explain("create", path, source)),
    }
    Ok(lock)
}

fn tighten(path: &Path) -> Result<(), OpenError> {
    let metadata = fs::metadata(path).map_err(|source| explain("read", path, source))?;
    if metadata.is_dir() {
        return Err(explain("open", path, io::ErrorKind::IsADirectory.into()));
    }
    if metadata.permissions().mode() & OTHERS != 0 {
        tracing::warn!(path = %path.display(), "the database was readable by others; its mode is now 0600");
        for path in [path.to_path_buf(), beside(path, "-wal"), beside(path, "-shm")] {
            match fs::set_permissions(&path, fs::Permissions::from_mode(FILE_MODE)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(explain("make private", &path, error)),
                _ => {}
            }
        }
    }
    Ok(())
}

/// Says *before* SQLite does (which knows only "unable to open") why a file that must exist cannot be read.
pub(super) fn demand(path: &Path) -> Result<(), OpenError> {
    let metadata = fs::metadata(path).map_err(|source| explain("open", path, source))?;
    if metadata.is_dir() {
        return Err(explain("open", path, io::ErrorKind::IsADirectory.into()));
    }
    Ok(())
}

pub(super) fn explain(doing: &'static str, path: &Path, source: io::Error) -> OpenError {
    let advice = match source.kind() {
        io::ErrorKind::NotFound => "it does not exist; check the path, or let the owner create it",
        io::ErrorKind::PermissionDenied => "give the node's user access to it and to its directory",
        io::ErrorKind::IsADirectory => "it is a directory; name a file in it",
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => "free space on the disk",
        io::ErrorKind::ReadOnlyFilesystem => "the file system is mounted read-only; remount it or move the data directory",
        io::ErrorKind::NotADirectory => "a part of the path is a file; check the path",
        _ => "see the system's reason",
    };
    OpenError::File { doing, path: path.to_path_buf(), advice, source }
}
