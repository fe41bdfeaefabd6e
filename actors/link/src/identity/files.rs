//! Files that appear whole or not at all, with the mode they are meant to have.
//!
//! Everything here blocks on the disk (`fsync`); callers on a runtime use a blocking thread.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

/// Mode of secrets, and of everything else in these directories that only its owner needs.
pub(crate) const PRIVATE: u32 = 0o600;
/// Mode of what is meant to be handed on: requests, certificates.
pub(crate) const PUBLIC: u32 = 0o644;

/// Why a file of an identity could not be read or written. Nothing was changed unless the text says so.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FileError {
    /// There is no such file.
    #[error("{} does not exist", .0.display())]
    Missing(PathBuf),
    /// The file is there already and is one that is written once.
    #[error("{} exists already and is never overwritten; move it away if it is no longer wanted", .0.display())]
    Exists(PathBuf),
    /// Others than the owner can reach a secret.
    #[error("{} has mode {:03o}, so others can reach this secret; run: chmod {} {}", .path.display(), .mode & 0o777, fix(*.mode), .path.display())]
    Exposed {
        /// The file or directory.
        path: PathBuf,
        /// Its permission bits, and the type bit of a directory.
        mode: u32,
    },
    /// Larger than such a file can be.
    #[error("{} is larger than {limit} bytes, which no such file is", .path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// The limit that applies.
        limit: u64,
    },
    /// Not text.
    #[error("{} is not text", .0.display())]
    NotText(PathBuf),
    /// The operating system refused.
    #[error("cannot {action} {}", .path.display())]
    Io {
        /// What was being attempted.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Its answer.
        #[source]
        source: io::Error,
    },
}

impl FileError {
    /// Whether the file is simply not there.
    pub fn is_missing(&self) -> bool {
        matches!(self, Self::Missing(_))
    }
}

fn fix(mode: u32) -> &'static str {
    // A directory needs its search bit; the type bits are kept in `mode` for this.
    if mode & 0o040_000 != 0 { "700" } else { "600" }
}

fn failed<'a>(action: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> FileError + 'a {
    move |source| match source.kind() {
        io::ErrorKind::NotFound => FileError::Missing(path.to_owned()),
        _ => FileError::Io { action, path: path.to_owned(), source },
    }
}

/// Makes `path` a directory only its owner can enter, with its parents.
///
/// One that exists keeps its mode, unless others may write to it: they could swap the files inside.
pub(crate) fn private_directory(path: &Path) -> Result<(), FileError> {
    DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(failed("create directory", path))?;
    refuse_shared(path)
}

/// Refuses a directory in which others than its owner could swap the files.
pub(crate) fn refuse_shared(path: &Path) -> Result<(), FileError> {
    let mode = fs::metadata(path).map_err(failed("look at", path))?.mode();
    if mode & 0o022 != 0 {
        return Err(FileError::Exposed { path: path.to_owned(), mode: mode & 0o040_777 });
    }
    Ok(())
}

/// Reads a text of at most `limit` bytes.
pub(crate) fn read(path: &Path, limit: u64) -> Result<String, FileError> {
    let file = File::open(path).map_err(failed("open", path))?;
    read_open(file, path, limit)
}

/// Reads a secret, refusing one that others than its owner can reach.
pub(crate) fn read_secret(path: &Path, limit: u64) -> Result<String, FileError> {
    let file = File::open(path).map_err(failed("open", path))?;
    // Asked of the open file, not of the path, which could be another file by then.
    let mode = file.metadata().map_err(failed("look at", path))?.permissions().mode();
    if mode & 0o077 != 0 {
        return Err(FileError::Exposed { path: path.to_owned(), mode: mode & 0o777 });
    }
    read_open(file, path, limit)
}

fn read_open(file: File, path: &Path, limit: u64) -> Result<String, FileError> {
    let mut bytes = Vec::new();
    file.take(limit + 1).read_to_end(&mut bytes).map_err(failed("read", path))?;
    if bytes.len() as u64 > limit {
        return Err(FileError::TooLarge { path: path.to_owned(), limit });
    }
    String::from_utf8(bytes).map_err(|_| FileError::NotText(path.to_owned()))
}

/// Writes a file that must not exist yet. It is there whole and on disk, or not at all.
pub(crate) fn create(path: &Path, mode: u32, text: &str) -> Result<(), FileError> {
    let temporary = write_beside(path, mode, text)?;
    // A hard link is the one step that both publishes a finished file and fails when the name is taken.
    let linked = fs::hard_link(&temporary, path);
    let _ = fs::remove_file(&temporary); // a leftover under its temporary name harms nobody
    match linked {
        Ok(()) => sync_directory(path),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Err(FileError::Exists(path.to_owned())),
        Err(error) => Err(failed("create", path)(error)),
    }
}

/// Replaces or creates a file: a reader sees the old text or the new one.
pub(crate) fn replace(path: &Path, mode: u32, text: &str) -> Result<(), FileError> {
    let temporary = write_beside(path, mode, text)?;
    if let Err(error) = fs::rename(&temporary, path) {
        let _ = fs::remove_file(&temporary);
        return Err(failed("replace", path)(error));
    }
    sync_directory(path)
}

/// Removes a file if it is there.
pub(crate) fn remove(path: &Path) -> Result<(), FileError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("remove", path)(error)),
        _ => sync_directory(path),
    }
}

/// Holds `directory` against other processes that change several of its files together. Released on drop.
pub(crate) fn lock(directory: &Path) -> Result<File, FileError> {
    let path = directory.join(".lock");
    let file = OpenOptions::new().write(true).create(true).truncate(false).mode(PRIVATE).open(&path).map_err(failed("open", &path))?;
    file.lock().map_err(failed("lock", &path))?;
    Ok(file)
}

fn write_beside(path: &Path, mode: u32, text: &str) -> Result<PathBuf, FileError> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let temporary = path.with_file_name(format!(".{name}.{:016x}", rand::random::<u64>()));
    let write = || -> io::Result<()> {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&temporary)?;
        // The umask may have taken bits away from a public file; it never adds any to a secret.
        file.set_permissions(fs::Permissions::from_mode(mode))?;
        file.write_all(text.as_bytes())?;
        file.sync_all()
    };
    write().map_err(|source| {
        let _ = fs::remove_file(&temporary);
        failed("write", path)(source)
    })?;
    Ok(temporary)
}

/// A new name is durable only when its directory is.
fn sync_directory(path: &Path) -> Result<(), FileError> {
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    File::open(directory).and_then(|d| d.sync_all()).map_err(failed("sync directory", directory))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_written_once_is_never_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        create(&path, PRIVATE, "first").unwrap();
        assert!(matches!(create(&path, PRIVATE, "second"), Err(FileError::Exists(p)) if p == path));
        assert_eq!(read_secret(&path, 100).unwrap(), "first");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "no temporary file is left");
    }

    #[test]
    fn a_secret_others_can_reach_is_refused_with_the_command_that_mends_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        create(&path, PRIVATE, "s").unwrap();
        for mode in [0o640, 0o604, 0o620, 0o601] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            let error = read_secret(&path, 100).unwrap_err().to_string();
            assert!(error.contains(&format!("{mode:03o}")) && error.contains("chmod 600"), "{error}");
        }
    }

    #[test]
    fn a_directory_others_can_write_to_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/b");
        private_directory(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o700);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o777)).unwrap();
        let error = private_directory(&path).unwrap_err().to_string();
        assert!(error.contains("chmod 700"), "{error}");
    }

    #[test]
    fn a_file_beyond_its_limit_is_not_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("big");
        replace(&path, PUBLIC, &"x".repeat(11)).unwrap();
        assert!(matches!(read(&path, 10), Err(FileError::TooLarge { limit: 10, .. })));
        assert_eq!(read(&path, 11).unwrap().len(), 11);
        assert!(read(&dir.path().join("none"), 1).unwrap_err().is_missing());
    }
}
