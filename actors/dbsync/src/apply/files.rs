//! The names, modes and durability of a replica's files.

use std::{
    ffi::OsString,
    fs::{self, DirBuilder, File, OpenOptions, TryLockError},
    io,
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    thread::JoinHandle,
};

use super::{ApplyError, DoingOn as _};

/// Who may read a replica's live file besides the node. Nobody else ever writes it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ReadableBy {
    /// Nobody: directory 0700, files 0600, as all of a node's files are.
    #[default]
    Owner,
    /// Programs of the file's group, without write permission on anything: file, `-wal` and `-shm` 0640, and 0750 for the directory
    /// if the replica makes it. One that exists is left as it is, so give the replica a directory of its own. The other files
    /// stay 0600.
    Group,
}

impl ReadableBy {
    fn directory(self) -> u32 {
        match self {
            ReadableBy::Owner => 0o700,
            ReadableBy::Group => 0o750,
        }
    }

    pub(super) fn file(self) -> u32 {
        match self {
            ReadableBy::Owner => 0o600,
            ReadableBy::Group => 0o640,
        }
    }
}

/// Where everything is.
#[derive(Clone, Debug)]
pub(super) struct Paths {
    pub(super) live: PathBuf,
    pub(super) incoming: PathBuf,
    pub(super) partial: PathBuf,
    pub(super) previous: PathBuf,
    /// The previous one while it is written.
    pub(super) keeping: PathBuf,
    pub(super) damaged: PathBuf,
    lock: PathBuf,
    directory: PathBuf,
}

/// What SQLite keeps beside a database.
const BESIDE: [&str; 3] = ["-journal", "-wal", "-shm"];

impl Paths {
    pub(super) fn new(live: &Path) -> Result<Paths, ApplyError> {
        // Absolute, so that SQLite cannot take a leading "file:" for a URI.
        let live = std::path::absolute(live).doing_on("find", live)?;
        Ok(Paths {
            incoming: beside(&live, ".incoming"),
            partial: beside(&live, ".partial"),
            previous: beside(&live, ".previous"),
            keeping: beside(&live, ".previous.new"),
            damaged: beside(&live, ".damaged"),
            lock: beside(&live, "-owner"),
            directory: live.parent().unwrap_or(Path::new("/")).to_path_buf(),
            live,
        })
    }

    pub(super) fn make_directory(&self, readable_by: ReadableBy) -> Result<(), ApplyError> {
        let builder = &mut DirBuilder::new();
        builder.recursive(true).mode(readable_by.directory()).create(&self.directory).doing_on("create directory", &self.directory)
    }

    /// Makes what was renamed or removed survive a power cut.
    pub(super) fn sync_directory(&self) -> Result<(), ApplyError> {
        File::open(&self.directory).and_then(|directory| directory.sync_all()).doing_on("sync directory", &self.directory)
    }

    /// An exclusive `flock` that the kernel gives back when the process dies. On a file of its own, because SQLite's own locks are on
    /// the database, and closing any descriptor of *that* drops them (`fcntl(2)`).
    pub(super) fn lock(&self) -> Result<File, ApplyError> {
        let file =
            OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&self.lock).doing_on("create", &self.lock)?;
        match file.try_lock() {
            Ok(()) => Ok(file),
            Err(TryLockError::WouldBlock) => Err(ApplyError::Owned(self.live.clone())),
            Err(TryLockError::Error(source)) => Err(source).doing_on("lock", &self.lock),
        }
    }
}

pub(super) fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name: OsString = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

/// Makes the file, empty, if it is not there, with `mode` in either case. SQLite gives the same to what it keeps beside it.
pub(super) fn create(path: &Path, mode: u32) -> Result<(), ApplyError> {
    let file = OpenOptions::new().write(true).create(true).truncate(false).mode(mode).open(path).doing_on("create", path)?;
    // The umask may have taken something away.
    file.set_permissions(fs::Permissions::from_mode(mode)).doing_on("set the mode of", path)
}

/// Gives the file, and what SQLite keeps beside it, a mode.
pub(super) fn set_mode(path: &Path, mode: u32) -> Result<(), ApplyError> {
    for path in std::iter::once(path.to_path_buf()).chain(BESIDE.map(|suffix| beside(path, suffix))) {
        if exists(&path)? {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).doing_on("set the mode of", &path)?;
        }
    }
    Ok(())
}

pub(super) fn exists(path: &Path) -> Result<bool, ApplyError> {
    path.try_exists().doing_on("look for", path)
}

/// How long the file is; 0 if there is none.
pub(super) fn length(path: &Path) -> u64 {
    fs::metadata(path).map_or(0, |metadata| metadata.len())
}

/// Removes a database that nobody has open.
pub(super) fn remove(path: &Path) -> Result<(), ApplyError> {
    // What is beside goes first: a journal without its database is harmless, a database without its journal is not.
    for path in BESIDE.map(|suffix| beside(path, suffix)).into_iter().chain(std::iter::once(path.to_path_buf())) {
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error).doing_on("remove", &path),
            _ => {}
        }
    }
    Ok(())
}

/// Renames a database that nobody has open and that needs nothing beside it.
pub(super) fn rename(from: &Path, to: &Path) -> Result<(), ApplyError> {
    fs::rename(from, to).doing_on("rename to", to)
}

/// Writes what the system still holds of the file to the disk.
pub(super) fn sync(path: &Path) -> Result<(), ApplyError> {
    File::open(path).and_then(|file| file.sync_all()).doing_on("sync", path)
}

/// A sync that goes on beside what is written meanwhile.
#[derive(Debug)]
pub(super) struct Syncing {
    thread: Option<JoinHandle<io::Result<File>>>,
}

/// Begins to write to the disk what the system holds of the file now, so that little is left for [`sync`] when it is complete.
pub(super) fn begin_sync(path: &Path) -> Syncing {
    let of_thread = path.to_path_buf();
    let run = move || {
        let file = File::open(of_thread)?;
        file.sync_data()?;
        Ok(file)
    };
    // Without a thread the sync at the end has it all to do.
    Syncing { thread: std::thread::Builder::new().name("sync".into()).spawn(run).ok() }
}

impl Syncing {
    /// Waits for its end. What could not be written is told to one who asks and perhaps to no other, so it must be this one. The
    /// file is given back, for SQLite's locks on it end when any descriptor of it is closed.
    pub(super) fn end(self, path: &Path) -> Result<Option<File>, ApplyError> {
        let Some(thread) = self.thread else { return Ok(None) };
        let synced = thread.join().unwrap_or_else(|_| Err(io::Error::other("the thread that syncs has failed")));
        synced.map(Some).doing_on("sync", path)
    }
}
