//! Which file of a node is what, put right before any is opened.
//!
//! Before there was a replica of `control.db`, the keys' mirror had its own copy under that name. It is `keys.db` now: what it knew goes
//! on to count at once, and the file that had the hashes of keys is removed, so that no byte of it is in the replica that comes in its
//! place.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use horos_router::admin::{AdoptError, adopt, is_foreign};
use horos_store::{
    backup::{self, BackupError, BackupOptions},
    open::{Access, OpenError, Options, open},
    rusqlite::{self, Connection},
};

use super::{FILE, KEYS_FILE};

/// Most databases of a former owner kept beside; the next start asks to tidy up.
const MAX_KEPT: usize = 100;

/// Why a node cannot start on the files that it has. Nothing of them is lost.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum FilesError {
    /// The owner's file cannot be made of a part of it.
    #[error(
        "{} is a replica, and control.owner names this node as its owner: put the owner's own file there (`horos restore` from a backup of it), or correct control.owner",
        .0.display()
    )]
    Replica(PathBuf),
    /// It is in use or damaged.
    #[error("{} cannot be read", path.display())]
    Open { path: PathBuf, source: OpenError },
    /// Another process has it.
    #[error("another program has {} open: close that and start again", .0.display())]
    Busy(PathBuf),
    /// It is damaged, or locked.
    #[error("{} cannot be read", path.display())]
    Sql { path: PathBuf, source: rusqlite::Error },
    /// It has routes of another program.
    #[error("{} is no file of a node", path.display())]
    Foreign { path: PathBuf, source: AdoptError },
    /// There is no copy of the keys under their new name.
    #[error("{} cannot be copied to {KEYS_FILE}", path.display())]
    Copy { path: PathBuf, source: BackupError },
    /// The system failed.
    #[error("cannot {action} {}", path.display())]
    Io { action: &'static str, path: PathBuf, source: io::Error },
    /// Too many databases of a former owner are beside it.
    #[error("{MAX_KEPT} databases that this node once owned are beside {}: remove those that nobody needs", .0.display())]
    Kept(PathBuf),
}

/// What `control.db` is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Nothing,
    /// A replica of an owner's.
    Replica,
    /// What the keys' mirror wrote before it had a file of its own: a copy.
    Mirror,
    /// An owner's, of this release or of one before.
    Owned,
    /// The routes of a Go system, put in its place.
    Foreign,
    /// None of ours, or an empty one.
    Other,
}

/// Puts the files in `data` right for a node that owns `control.db`, or does not. The data directory must be held.
///
/// It may be cut short anywhere and run again.
///
/// # Errors
/// [`FilesError`].
pub(crate) fn settle(data: &Path, own: bool) -> Result<(), FilesError> {
    let path = data.join(FILE);
    match (kind(&path)?, own) {
        (Kind::Replica, true) => Err(FilesError::Replica(path)),
        (Kind::Foreign, true) => {
            let mut database = Connection::open(&path).map_err(|source| FilesError::Sql { path: path.clone(), source })?;
            adopt(&mut database).map_err(|source| FilesError::Foreign { path: path.clone(), source })?;
            tracing::info!("{FILE} has the routes of a Go system: they are taken up");
            Ok(())
        }
        (Kind::Mirror, false) => {
            let keys = data.join(KEYS_FILE);
            if !keys.exists() {
                backup::backup(&path, &keys, BackupOptions::default()).map_err(|source| FilesError::Copy { path: path.clone(), source })?;
            }
            to_one_file(&path)?;
            fs::remove_file(&path).map_err(io_error("remove", &path))?;
            sync(data)?;
            tracing::info!("the replica of the keys is {KEYS_FILE} from now on");
            Ok(())
        }
        // The owner is another now. Whatever was edited here and not there must not be lost, nor be served any more.
        (Kind::Owned | Kind::Foreign, false) => {
            to_one_file(&path)?;
            let aside = aside(&path)?;
            fs::rename(&path, &aside).map_err(io_error("move aside", &path))?;
            sync(data)?;
            tracing::warn!(kept = %aside.display(), "this node owned control.db and no longer does; the file is kept beside");
            Ok(())
        }
        _ => Ok(()),
    }
}

/// Whether the `control.db` in `data` is a replica; not where it cannot be read.
pub(crate) fn is_replica(data: &Path) -> bool {
    kind(&data.join(FILE)).is_ok_and(|kind| kind == Kind::Replica)
}

fn kind(path: &Path) -> Result<Kind, FilesError> {
    // What SQLite itself takes for a new database.
    match fs::metadata(path) {
        Ok(found) if found.len() == 0 => return Ok(Kind::Other),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Kind::Nothing),
        Ok(_) | Err(_) => {}
    }
    let database = open(&Options::new(path, Access::ReadOnly)).map_err(|source| FilesError::Open { path: path.to_owned(), source })?;
    look(&database).map_err(|source| FilesError::Sql { path: path.to_owned(), source })
}

fn look(database: &Connection) -> rusqlite::Result<Kind> {
    if database.table_exists(Some("main"), "_horos_replica")? {
        return Ok(Kind::Replica);
    }
    if is_foreign(database)? {
        return Ok(Kind::Foreign);
    }
    if database.table_exists(Some("main"), "routes")? || database.table_exists(Some("main"), "go_routes")? {
        return Ok(Kind::Owned);
    }
    if !database.table_exists(Some("main"), "key_state")? {
        return Ok(Kind::Other);
    }
    // A mirror writes down with every page whether it is whole, and an owner forgets that when it becomes one.
    let has =
        |name: &str| database.query_row("SELECT EXISTS (SELECT 1 FROM key_state WHERE name = ?1)", [name], |row| row.get::<_, bool>(0));
    Ok(if has("epoch")? && !has("whole")? { Kind::Owned } else { Kind::Mirror })
}

/// Takes what is in the WAL into the file and the WAL away: beside another file of that name it would be read as that one's.
fn to_one_file(path: &Path) -> Result<(), FilesError> {
    let sql = |source| FilesError::Sql { path: path.to_owned(), source };
    let database = Connection::open(path).map_err(sql)?;
    match database.pragma_update_and_check(None, "journal_mode", "delete", |row| row.get::<_, String>(0)) {
        Ok(mode) if mode == "delete" => {}
        Ok(_) => return Err(FilesError::Busy(path.to_owned())),
        Err(error) if error.sqlite_error_code() == Some(rusqlite::ErrorCode::DatabaseBusy) => {
            return Err(FilesError::Busy(path.to_owned()));
        }
        Err(error) => return Err(sql(error)),
    }
    database.close().map_err(|(_, source)| sql(source))
}

/// A name for the file of a former owner.
fn aside(path: &Path) -> Result<PathBuf, FilesError> {
    let named = |n: usize| {
        let mut name = path.as_os_str().to_owned();
        name.push(if n == 1 { ".owned".to_owned() } else { format!(".owned.{n}") });
        PathBuf::from(name)
    };
    (1..=MAX_KEPT).map(named).find(|path| !path.exists()).ok_or_else(|| FilesError::Kept(path.to_owned()))
}

fn sync(directory: &Path) -> Result<(), FilesError> {
    File::open(directory).and_then(|directory| directory.sync_all()).map_err(io_error("write", directory))
}

fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> FilesError + use<> {
    let path = path.to_owned();
    move |source| FilesError::Io { action, path, source }
}
