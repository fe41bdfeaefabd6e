//! Maintenance: what users are told while it is on, kept in a file of the data directory.
//!
//! It lasts over restarts, and fails closed: a file that is there and cannot be read is maintenance, too. Turned on and off
//! by an operator (`horos maintenance`), or by whoever may write into the data directory before the node starts.

use std::{
    fs::{self, File},
    io::{self, Read as _, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use horos_wire::protocol::node::MAX_MAINTENANCE;
use parking_lot::Mutex;

/// In the data directory.
const FILE: &str = "maintenance";
/// What users are told when nobody said what.
pub(crate) const USUAL: &str = "We are working on this service and will be back shortly.";

/// Whether maintenance is on. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Maintenance(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    file: PathBuf,
    /// Held while the file is written, so that the last order is what both say.
    message: Mutex<Option<Arc<str>>>,
}

impl Maintenance {
    /// As the last life left it.
    pub(crate) fn open(data: &Path) -> Self {
        let file = data.join(FILE);
        let message = match read(&file) {
            Ok(message) => Some(message.into()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => {
                tracing::error!(file = %file.display(), %error, "whether maintenance is on cannot be read, so it is on");
                Some(USUAL.into())
            }
        };
        Self(Arc::new(Inner { file, message: Mutex::new(message) }))
    }

    /// What users are told while it is on.
    pub(crate) fn message(&self) -> Option<Arc<str>> {
        self.0.message.lock().clone()
    }

    /// Turns it on or off, on disk first. Blocks.
    ///
    /// # Errors
    /// When it could not be written down. Turning on has taken effect in this life all the same; turning off has not.
    pub(crate) fn set(&self, message: Option<&str>) -> io::Result<()> {
        let mut now = self.0.message.lock();
        match message {
            Some(message) => {
                *now = Some(message.into());
                write(&self.0.file, message)
            }
            None => {
                remove(&self.0.file)?;
                *now = None;
                Ok(())
            }
        }
    }
}

fn read(file: &Path) -> io::Result<String> {
    let mut text = String::new();
    File::open(file)?.take(MAX_MAINTENANCE as u64).read_to_string(&mut text)?;
    let text = text.trim();
    Ok(if text.is_empty() { USUAL.to_owned() } else { text.to_owned() })
}

fn write(file: &Path, message: &str) -> io::Result<()> {
    let partial = file.with_extension("partial");
    let mut to = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&partial)?;
    to.write_all(message.as_bytes())?;
    to.sync_all()?;
    fs::rename(&partial, file)?;
    sync_parent(file)
}

fn remove(file: &Path) -> io::Result<()> {
    match fs::remove_file(file) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other.and_then(|()| sync_parent(file)),
    }
}

fn sync_parent(file: &Path) -> io::Result<()> {
    File::open(file.parent().unwrap_or(Path::new(".")))?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maintenance_lasts_over_a_restart_until_it_is_turned_off() {
        let data = tempfile::tempdir().unwrap();
        let first = Maintenance::open(data.path());
        assert_eq!(first.message(), None);
        first.set(Some("back at noon")).unwrap();
        assert_eq!(first.message().as_deref(), Some("back at noon"));
        assert_eq!(crate::config::open_to_others(&data.path().join(FILE)).unwrap(), 0);
        let second = Maintenance::open(data.path());
        assert_eq!(second.message().as_deref(), Some("back at noon"));
        second.set(None).unwrap();
        second.set(None).unwrap();
        assert_eq!(second.message(), None);
        assert_eq!(Maintenance::open(data.path()).message(), None);
    }

    #[test]
    fn what_cannot_be_read_is_maintenance() {
        let data = tempfile::tempdir().unwrap();
        for spoil in [&b"\xff\xfe"[..], b"", b"  \n"] {
            fs::write(data.path().join(FILE), spoil).unwrap();
            assert_eq!(Maintenance::open(data.path()).message().as_deref(), Some(USUAL));
        }
        fs::remove_file(data.path().join(FILE)).unwrap();
        fs::create_dir(data.path().join(FILE)).unwrap();
        assert_eq!(Maintenance::open(data.path()).message().as_deref(), Some(USUAL));
    }

    #[test]
    fn what_cannot_be_written_down_is_on_and_never_off() {
        let data = tempfile::tempdir().unwrap();
        let it = Maintenance::open(data.path());
        fs::create_dir(data.path().join(FILE)).unwrap();
        fs::write(data.path().join(FILE).join("x"), "").unwrap();
        assert!(it.set(Some("now")).is_err());
        assert_eq!(it.message().as_deref(), Some("now"));
        assert!(it.set(None).is_err());
        assert_eq!(it.message().as_deref(), Some("now"));
    }
}
