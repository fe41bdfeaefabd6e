//! Maintenance: what users are told while it is on, kept in a file of the data directory.
//!
//! It lasts over restarts, and fails closed: a file that is there and cannot be read is maintenance, too. Turned on and off
//! by an operator (`horos maintenance`), or by whoever may write into the data directory before the node starts. A key with
//! the scope `maintenance` is let through.

use std::{
    fs::{self, File},
    io::{self, Read as _, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use horos_edge::{Maintenance as Switch, Notice};
use horos_wire::protocol::node::MAX_MAINTENANCE;
use parking_lot::Mutex;

/// In the data directory.
const FILE: &str = "maintenance";
/// What users are told when nobody said what.
pub(crate) const USUAL: &str = "We are working on this service and will be back shortly.";

/// When people may try again, unless they are told otherwise.
const RETRY_AFTER: Duration = Duration::from_secs(60);
/// Whoever's key grants this is let through, to see whether the work is done.
const BYPASS: &str = "maintenance";

/// Whether maintenance is on, in the file and on the port. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Maintenance(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    file: PathBuf,
    switch: Switch,
    /// Held while both are changed, so that they say the same.
    changing: Mutex<()>,
}

impl Maintenance {
    /// As the last life left it, on `switch`.
    pub(crate) fn open(data: &Path, switch: Switch) -> Self {
        let file = data.join(FILE);
        match read(&file) {
            Ok(message) => switch.on(notice(&message)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => switch.off(),
            Err(error) => {
                tracing::error!(file = %file.display(), %error, "whether maintenance is on cannot be read, so it is on");
                switch.on(notice(USUAL));
                switch.unreadable("whether maintenance is on cannot be read, so it is on");
            }
        }
        Self(Arc::new(Inner { file, switch, changing: Mutex::new(()) }))
    }

    /// What users are told while it is on.
    pub(crate) fn message(&self) -> Option<Box<str>> {
        self.0.switch.notice().map(|notice| notice.message)
    }

    /// Turns it on or off, on disk first where it is turned off. Blocks.
    ///
    /// # Errors
    /// When it could not be written down. Turning on has taken effect in this life all the same; turning off has not.
    pub(crate) fn set(&self, message: Option<&str>) -> io::Result<()> {
        let _changing = self.0.changing.lock();
        match message {
            Some(message) => {
                self.0.switch.on(notice(message));
                write(&self.0.file, message)
            }
            None => {
                remove(&self.0.file)?;
                self.0.switch.off();
                Ok(())
            }
        }
    }
}

fn notice(message: &str) -> Notice {
    let bypass = Some(BYPASS.parse().expect("a literal scope that keeps the rules"));
    Notice { message: message.into(), retry_after: RETRY_AFTER, bypass }
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

    fn open(data: &Path) -> Maintenance {
        Maintenance::open(data, Switch::new(horos_edge::Conditions::default()))
    }

    #[test]
    fn maintenance_lasts_over_a_restart_until_it_is_turned_off() {
        let data = tempfile::tempdir().unwrap();
        let first = open(data.path());
        assert_eq!(first.message(), None);
        first.set(Some("back at noon")).unwrap();
        assert_eq!(first.message().as_deref(), Some("back at noon"));
        assert_eq!(crate::config::open_to_others(&data.path().join(FILE)).unwrap(), 0);
        let second = open(data.path());
        assert_eq!(second.message().as_deref(), Some("back at noon"));
        second.set(None).unwrap();
        second.set(None).unwrap();
        assert_eq!(second.message(), None);
        assert_eq!(open(data.path()).message(), None);
    }

    #[test]
    fn what_cannot_be_read_is_maintenance() {
        let data = tempfile::tempdir().unwrap();
        for spoil in [&b"\xff\xfe"[..], b"", b"  \n"] {
            fs::write(data.path().join(FILE), spoil).unwrap();
            assert_eq!(open(data.path()).message().as_deref(), Some(USUAL));
        }
        fs::remove_file(data.path().join(FILE)).unwrap();
        fs::create_dir(data.path().join(FILE)).unwrap();
        assert_eq!(open(data.path()).message().as_deref(), Some(USUAL));
    }

    #[test]
    fn what_cannot_be_written_down_is_on_and_never_off() {
        let data = tempfile::tempdir().unwrap();
        let it = open(data.path());
        fs::create_dir(data.path().join(FILE)).unwrap();
        fs::write(data.path().join(FILE).join("x"), "").unwrap();
        assert!(it.set(Some("now")).is_err());
        assert_eq!(it.message().as_deref(), Some("now"));
        assert!(it.set(None).is_err());
        assert_eq!(it.message().as_deref(), Some("now"));
    }
}
