//! The data directory: made private, and held by one process at a time.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Seek as _, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use nix::fcntl::{Flock, FlockArg};

/// The file whose lock says that a process uses the directory.
const LOCK: &str = "node.lock";

/// Why a data directory cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DataDirError {
    /// It could not be made or opened.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was attempted.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Another process uses it.
    #[error("{} is in use by process {pid}: stop that first, or use another directory", path.display())]
    InUse {
        /// The directory.
        path: PathBuf,
        /// The process that wrote its number into the lock file, or "unknown".
        pid: Box<str>,
    },
}

/// A data directory held by this process: two nodes on one would write each other's databases.
///
/// The kernel frees the lock when the process ends, however it ends.
#[derive(Debug)]
pub struct DataDir {
    path: PathBuf,
    _lock: Flock<File>,
}

impl DataDir {
    /// Makes `path` with mode 0700 where it is not there, and takes its lock.
    ///
    /// # Errors
    /// [`DataDirError::InUse`] when another process holds it.
    pub fn hold(path: &Path) -> Result<Self, DataDirError> {
        create_private(path)?;
        let lock = path.join(LOCK);
        let failed = |action, source| DataDirError::Io { action, path: lock.clone(), source };
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&lock)
            .map_err(|source| failed("open", source))?;
        let mut held = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(held) => held,
            Err((file, nix::errno::Errno::EWOULDBLOCK)) => {
                let mut pid = String::new();
                // The number is for people only; without it the answer is the same.
                let known = (&file).take(20).read_to_string(&mut pid).is_ok() && !pid.trim().is_empty();
                let pid = if known { pid.trim().into() } else { "unknown".into() };
                return Err(DataDirError::InUse { path: path.to_owned(), pid });
            }
            Err((_, errno)) => return Err(failed("lock", errno.into())),
        };
        held.set_len(0)
            .and_then(|()| held.rewind())
            .and_then(|()| writeln!(held, "{}", std::process::id()))
            .map_err(|source| failed("write", source))?;
        Ok(Self { path: path.to_owned(), _lock: held })
    }

    /// Whether another process uses `path`. Writes nothing.
    pub(crate) fn is_held(path: &Path) -> bool {
        let Ok(file) = File::open(path.join(LOCK)) else { return false };
        matches!(Flock::lock(file, FlockArg::LockSharedNonblock), Err((_, nix::errno::Errno::EWOULDBLOCK)))
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// Makes a directory with mode 0700, and its parents; one that is there is left as it is.
///
/// # Errors
/// [`DataDirError::Io`].
pub fn create_private(path: &Path) -> Result<(), DataDirError> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(|source| DataDirError::Io {
        action: "make the directory",
        path: path.to_owned(),
        source,
    })
}

/// The mode bits of `path` that let others than its owner in; 0 is right.
pub(crate) fn open_to_others(path: &Path) -> io::Result<u32> {
    Ok(fs::metadata(path)?.permissions().mode() & 0o077)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_data_directory_is_private_and_held_by_one() {
        let base = tempfile::tempdir().unwrap();
        let path = base.path().join("a/b");
        let held = DataDir::hold(&path).unwrap();
        assert_eq!(open_to_others(&path).unwrap(), 0);
        // flock belongs to the open file, so a second open in this process is as foreign as another process.
        let Err(DataDirError::InUse { pid, .. }) = DataDir::hold(&path) else { panic!("held twice") };
        assert_eq!(&*pid, std::process::id().to_string());
        assert!(DataDir::is_held(&path));
        drop(held);
        assert!(!DataDir::is_held(&path) && !DataDir::is_held(base.path()));
        DataDir::hold(&path).unwrap();
    }
}
