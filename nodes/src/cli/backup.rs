//! Copies of a node's databases, taken while it runs and put back while it does not.
//!
//! A backup is a directory of database files and a manifest with their digests, which is written last: a directory without
//! one is no backup. Each database is whole as of one of its commits; two of them need not be of the same moment.
//!
//! Left out: `blobs/` (content addressed, copy it as it is), `horos.yaml` (copy it as well), and every key and certificate.
//! A backup lies about in more places than a node does, and a node that is lost gets a new key by `identity request`.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use horos_store::{
    Kind,
    backup::{self as store, BackupOptions},
};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::{
    config::{DataDir, DataDirError, create_private},
    exit::Exit,
};

/// The manifest's name.
const MANIFEST: &str = "backup.json";
/// Largest manifest read, in bytes: a line a database.
const MAX_MANIFEST: u64 = 1 << 20;
/// Most databases that restores have replaced and that are kept beside one another; the next restore asks to tidy up.
const MAX_KEPT: usize = 100;

/// Why databases were not copied or put back.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BackupError {
    /// The target is there and not empty. Nothing was changed.
    #[error("{} is not empty: name a directory that does not exist", .0.display())]
    NotEmpty(PathBuf),
    /// The node has no database.
    #[error("there is no database in {}: is it a node's data directory?", .0.display())]
    NoDatabases(PathBuf),
    /// Not what `backup` wrote. Nothing was changed.
    #[error("{} is no complete backup: {reason}", path.display())]
    NotABackup {
        /// The directory or file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// There are databases already. Nothing was changed.
    #[error("{} exists already; --replace keeps it beside and puts the backup in its place", .0.display())]
    Exists(PathBuf),
    /// Too many databases were kept beside this one. Nothing was changed.
    #[error("{MAX_KEPT} databases that were replaced before are beside {}: remove those that nobody needs", .0.display())]
    Kept(PathBuf),
    /// The data directory is in use or cannot be opened. Nothing was changed.
    #[error(transparent)]
    DataDir(#[from] DataDirError),
    /// A database could not be copied or put back.
    #[error(transparent)]
    Store(#[from] store::BackupError),
    /// A file could not be read or written.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was attempted.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

impl BackupError {
    /// What it means for the shell: 3 where something must be put out of the way first.
    pub(crate) fn exit(&self) -> Exit {
        match self {
            Self::NotEmpty(_) | Self::Exists(_) | Self::Kept(_) | Self::DataDir(DataDirError::InUse { .. }) => Exit::NoEffect,
            Self::Store(store::BackupError::InUse { .. } | store::BackupError::Exists { .. }) => Exit::NoEffect,
            _ => Exit::Local,
        }
    }

    /// What the user can do next.
    pub(crate) fn next_step(&self) -> Option<&'static str> {
        match self {
            Self::DataDir(DataDirError::InUse { .. }) | Self::Store(store::BackupError::InUse { .. }) => {
                Some("nothing is put back under a running node: stop it, restore, start it")
            }
            Self::NoDatabases(_) => Some("--data names another; under the directory of `{bin} up` it is the BO's"),
            Self::NotEmpty(_) => Some("copies are never mixed: give each a directory of its own, one a day for example"),
            Self::NotABackup { .. } => Some("nothing was changed; take another copy"),
            _ => None,
        }
    }
}

fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> BackupError + use<> {
    let path = path.to_owned();
    move |source| BackupError::Io { action, path, source }
}

/// What a backup holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// When it was begun.
    pub taken: Timestamp,
    /// Its databases.
    pub databases: Vec<Database>,
}

impl Manifest {
    /// A line a database.
    pub(crate) fn text(&self) -> String {
        self.databases.iter().map(|it| format!("{}  {} bytes\n", it.file, it.bytes)).collect()
    }
}

/// A database in a backup.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Database {
    /// The file's name, in the backup as in the data directory.
    pub file: String,
    /// Its size in bytes.
    pub bytes: u64,
    /// Its SHA-256 in hexadecimal.
    pub sha256: String,
}

/// Copies every database of `data` into `to`, each as it stood at one instant. The node may be running and writing.
///
/// # Errors
/// [`BackupError`]; what was copied by then is left without a manifest, and so is no backup.
pub fn backup(data: &Path, to: &Path, now: Timestamp) -> Result<Manifest, BackupError> {
    let databases = databases_in(data)?;
    if databases.is_empty() {
        return Err(BackupError::NoDatabases(data.to_owned()));
    }
    create_private(to)?;
    if fs::read_dir(to).map_err(io_error("read", to))?.next().is_some() {
        return Err(BackupError::NotEmpty(to.to_owned()));
    }
    let mut manifest = Manifest { taken: now, databases: Vec::new() };
    for file in databases {
        let (from, copy) = (data.join(&file), to.join(&file));
        store::backup(&from, &copy, BackupOptions::default())?;
        let (bytes, sha256) = digest(&copy)?;
        manifest.databases.push(Database { file, bytes, sha256 });
    }
    let path = to.join(MANIFEST);
    let text = serde_json::to_string_pretty(&manifest).expect("strings and numbers always serialise");
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path).map_err(io_error("write", &path))?;
    file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(io_error("write", &path))?;
    sync_directory(to)?;
    Ok(manifest)
}

/// Puts a backup's databases into `data`. The node must be stopped; databases that are there stay unless `replace`, which
/// keeps them beside with the ending `.before-restore`. Each is at every instant the old one or the new one, whole; a run
/// that was cut short between two can be repeated.
///
/// # Errors
/// [`BackupError`]. Digests and names are checked before the first file is touched.
pub fn restore(data: &Path, from: &Path, replace: bool) -> Result<Manifest, BackupError> {
    let broken = |path: &Path, reason: String| BackupError::NotABackup { path: path.to_owned(), reason };
    let path = from.join(MANIFEST);
    let mut text = String::new();
    File::open(&path)
        .and_then(|file| file.take(MAX_MANIFEST).read_to_string(&mut text))
        .map_err(|error| broken(from, format!("{MANIFEST} cannot be read: {error}")))?;
    let manifest: Manifest = serde_json::from_str(&text).map_err(|error| broken(&path, error.to_string()))?;
    for database in &manifest.databases {
        // The manifest may have come from anywhere: `../../etc/x` is no database of ours.
        if !is_database_name(&database.file) {
            return Err(broken(&path, format!("{:?} is no database's name", database.file)));
        }
        let copy = from.join(&database.file);
        let (bytes, sha256) = digest(&copy)?;
        if (bytes, &sha256) != (database.bytes, &database.sha256) {
            return Err(broken(&copy, "its digest is not the manifest's: it was changed or damaged".into()));
        }
    }
    let _held = DataDir::hold(data)?;
    for database in &manifest.databases {
        let target = data.join(&database.file);
        if target.exists() && !replace {
            return Err(BackupError::Exists(target));
        }
    }
    for database in &manifest.databases {
        let target = data.join(&database.file);
        if target.exists() {
            keep(&target)?;
        }
        store::restore(&from.join(&database.file), &target)?;
    }
    sync_directory(data)?;
    Ok(manifest)
}

/// Keeps a database beside itself, with what is still in its WAL.
fn keep(target: &Path) -> Result<(), BackupError> {
    let named = |ending: &str| {
        let mut path = target.as_os_str().to_owned();
        path.push(ending);
        PathBuf::from(path)
    };
    let endings = (1..=MAX_KEPT).map(|n| if n == 1 { ".before-restore".to_owned() } else { format!(".before-restore.{n}") });
    let Some(ending) = endings.into_iter().find(|ending| !named(ending).exists()) else {
        return Err(BackupError::Kept(target.to_owned()));
    };
    match store::backup(target, &named(&ending), BackupOptions::default()) {
        Ok(_) => Ok(()),
        // A ruin is what a restore is for; it is kept as it lies, for whoever wants to save more of it.
        Err(error) if is_ruined(&error) => {
            for part in ["-wal", "-shm", ""] {
                match fs::rename(named(part), named(&format!("{ending}{part}"))) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(io_error("move aside", &named(part))(error)),
                    _ => {}
                }
            }
            Ok(())
        }
        Err(error) => Err(error.into()),
    }
}

fn is_ruined(error: &store::BackupError) -> bool {
    let kind = match error {
        store::BackupError::Source(error) | store::BackupError::Copy(error) => error.kind(),
        store::BackupError::Sqlite(error) => Some(error.kind),
        _ => None,
    };
    matches!(kind, Some(Kind::Corrupt | Kind::NotADatabase))
}

fn is_database_name(name: &str) -> bool {
    name.strip_suffix(".db").is_some_and(|stem| stem.parse::<horos_wire::ActorName>().is_ok())
}

fn databases_in(data: &Path) -> Result<Vec<String>, BackupError> {
    let mut names = Vec::new();
    for entry in fs::read_dir(data).map_err(io_error("read", data))? {
        let entry = entry.map_err(io_error("read", data))?;
        if let Some(name) = entry.file_name().to_str().filter(|name| is_database_name(name)) {
            names.push(name.to_owned());
        }
    }
    names.sort_unstable();
    Ok(names)
}

fn digest(path: &Path) -> Result<(u64, String), BackupError> {
    let mut file = File::open(path).map_err(io_error("read", path))?;
    let (mut hasher, mut bytes, mut block) = (Sha256::new(), 0, vec![0; 64 * 1024]);
    loop {
        let n = file.read(&mut block).map_err(io_error("read", path))?;
        if n == 0 {
            return Ok((bytes, hex::encode(hasher.finalize())));
        }
        hasher.update(&block[..n]);
        bytes += n as u64;
    }
}

fn sync_directory(path: &Path) -> Result<(), BackupError> {
    File::open(path).and_then(|directory| directory.sync_all()).map_err(io_error("write", path))
}

#[cfg(test)]
mod tests {
    use super::*;
    use horos_store::rusqlite::Connection;

    fn shop(data: &Path) -> Connection {
        create_private(data).unwrap();
        let db = Connection::open(data.join("app.db")).unwrap();
        db.execute_batch("PRAGMA journal_mode = WAL; CREATE TABLE t (n); INSERT INTO t VALUES (1);").unwrap();
        db
    }

    fn count(path: &Path) -> i64 {
        Connection::open(path).unwrap().query_row("SELECT count(*) FROM t", [], |row| row.get(0)).unwrap()
    }

    #[test]
    fn a_backup_of_an_open_database_is_put_back_as_it_was() {
        let base = tempfile::tempdir().unwrap();
        let (data, to) = (base.path().join("data"), base.path().join("copy"));
        let db = shop(&data);
        backup(&data, &to, Timestamp::UNIX_EPOCH).unwrap();
        db.execute("INSERT INTO t VALUES (2)", []).unwrap();
        drop(db);
        assert!(matches!(restore(&data, &to, false), Err(BackupError::Exists(_))));
        assert_eq!(count(&data.join("app.db")), 2);
        restore(&data, &to, true).unwrap();
        assert_eq!(count(&data.join("app.db")), 1);
        assert_eq!(count(&data.join("app.db.before-restore")), 2);
        restore(&data, &to, true).unwrap();
        assert_eq!(count(&data.join("app.db.before-restore.2")), 1);
    }

    #[test]
    fn commits_that_only_the_wal_has_are_in_the_backup_and_in_what_is_kept() {
        let base = tempfile::tempdir().unwrap();
        let (data, to) = (base.path().join("data"), base.path().join("copy"));
        let db = shop(&data);
        db.execute_batch("PRAGMA wal_checkpoint(TRUNCATE); PRAGMA wal_autocheckpoint = 0; INSERT INTO t VALUES (2);").unwrap();
        // As `kill -9` leaves it: the database without its last commit, and the WAL that has it.
        let killed = base.path().join("killed");
        create_private(&killed).unwrap();
        for file in ["app.db", "app.db-wal"] {
            fs::copy(data.join(file), killed.join(file)).unwrap();
        }
        drop(db);
        backup(&killed, &to, Timestamp::UNIX_EPOCH).unwrap();
        assert_eq!(count(&to.join("app.db")), 2);
        restore(&killed, &to, true).unwrap();
        assert_eq!(count(&killed.join("app.db.before-restore")), 2);
        assert_eq!(count(&killed.join("app.db")), 2);
    }

    #[test]
    fn a_ruin_is_replaced_and_kept_as_it_lies() {
        let base = tempfile::tempdir().unwrap();
        let (data, to) = (base.path().join("data"), base.path().join("copy"));
        drop(shop(&data));
        backup(&data, &to, Timestamp::UNIX_EPOCH).unwrap();
        fs::write(data.join("app.db"), "no database at all, but somebody's last hope".repeat(200)).unwrap();
        fs::write(data.join("app.db-wal"), "and its log").unwrap();
        restore(&data, &to, true).unwrap();
        assert_eq!(count(&data.join("app.db")), 1);
        assert!(fs::read_to_string(data.join("app.db.before-restore")).unwrap().starts_with("no database"));
        assert_eq!(fs::read_to_string(data.join("app.db.before-restore-wal")).unwrap(), "and its log");
    }

    #[test]
    fn a_damaged_or_foreign_backup_changes_nothing() {
        let base = tempfile::tempdir().unwrap();
        let (data, to) = (base.path().join("data"), base.path().join("copy"));
        drop(shop(&data));
        assert!(matches!(restore(&data, &base.path().join("none"), true), Err(BackupError::NotABackup { .. })));
        backup(&data, &to, Timestamp::UNIX_EPOCH).unwrap();
        let full = backup(&data, &to, Timestamp::UNIX_EPOCH).unwrap_err();
        assert!(matches!(full, BackupError::NotEmpty(_)) && full.next_step().is_some(), "{full}");
        let manifest = fs::read_to_string(to.join(MANIFEST)).unwrap();
        fs::write(to.join(MANIFEST), manifest.replace("app.db", "../x.db")).unwrap();
        assert!(matches!(restore(&data, &to, true), Err(BackupError::NotABackup { .. })));
        fs::write(to.join(MANIFEST), manifest).unwrap();
        let mut bytes = fs::read(to.join("app.db")).unwrap();
        bytes[5000] ^= 1;
        fs::write(to.join("app.db"), bytes).unwrap();
        assert!(matches!(restore(&data, &to, true), Err(BackupError::NotABackup { .. })));
        assert_eq!(count(&data.join("app.db")), 1);
    }

    #[test]
    fn nothing_is_put_back_under_a_running_node() {
        let base = tempfile::tempdir().unwrap();
        let (data, to) = (base.path().join("data"), base.path().join("copy"));
        drop(shop(&data));
        backup(&data, &to, Timestamp::UNIX_EPOCH).unwrap();
        let _node = DataDir::hold(&data).unwrap();
        assert!(matches!(restore(&data, &to, true), Err(BackupError::DataDir(DataDirError::InUse { .. }))));
    }
}
