//! What proves this node elsewhere: a file whose one line is the whole `Authorization` field.
//!
//! Read anew when it changes, so a key is replaced by replacing the file. It is the node's owner's alone, or it is not used; what
//! is in it is shown to the one endpoint, and in no error, log or `Debug` text.

use std::{
    fmt, fs, io,
    io::Read as _,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use http::HeaderValue;
use parking_lot::Mutex;

/// Longest line, in bytes: servers take a head of 8 KiB, and there is more in it.
const MAX_LINE: u64 = 4096;
/// A file written so lately may be written again within the same tick of its clock, and look the same.
const SETTLED: Duration = Duration::from_secs(1);

/// A file, and what was in it when it was last read.
pub struct Secret {
    path: PathBuf,
    name: Box<str>,
    known: Mutex<Option<(Stamp, HeaderValue)>>,
}

/// What tells one version of a file from another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
    mode: u32,
}

/// Why it is not used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SecretError {
    /// There is no such file, or it cannot be read.
    #[error("secrets/{0} cannot be read: {1}")]
    Unreadable(Box<str>, io::Error),
    /// It is a directory, a pipe or a device.
    #[error("secrets/{0} is no file")]
    NotAFile(Box<str>),
    /// Others may read or write it.
    #[error("secrets/{0} may be read by others (its mode is {1:o}, and is to be 600)")]
    Exposed(Box<str>, u32),
    /// What is in it is no line.
    #[error("secrets/{0} is not one line of at most {MAX_LINE} visible characters")]
    Malformed(Box<str>),
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Secret({})", self.name)
    }
}

impl Stamp {
    fn of(file: &fs::Metadata) -> Self {
        Self {
            device: file.dev(),
            inode: file.ino(),
            size: file.size(),
            modified: (file.mtime(), file.mtime_nsec()),
            changed: (file.ctime(), file.ctime_nsec()),
            mode: file.mode(),
        }
    }
}

impl Secret {
    /// The file `name`, which is one without a path in it, in `directory`.
    pub fn new(directory: &Path, name: &str) -> Self {
        Self { path: directory.join(name), name: name.into(), known: Mutex::new(None) }
    }

    /// What is in it now. A look at the file's state costs a system call, and reading it, which blocks, is done when that differs.
    ///
    /// # Errors
    /// [`SecretError`]: it is not used, not even what was in it before.
    pub fn read(&self) -> Result<HeaderValue, SecretError> {
        let unreadable = |error| SecretError::Unreadable(self.name.clone(), error);
        let now = fs::metadata(&self.path).map_err(unreadable)?;
        // Before it is opened: a pipe would not let go.
        self.check(&now)?;
        let mut known = self.known.lock();
        if let Some((stamp, value)) = &*known
            && *stamp == Stamp::of(&now)
        {
            return Ok(value.clone());
        }
        *known = None;
        let file = fs::File::open(&self.path).map_err(unreadable)?;
        // What was opened is what counts, should the name mean another file by now.
        let opened = file.metadata().map_err(unreadable)?;
        self.check(&opened)?;
        let mut text = String::new();
        let malformed = || SecretError::Malformed(self.name.clone());
        file.take(MAX_LINE + 3).read_to_string(&mut text).map_err(|error| match error.kind() {
            io::ErrorKind::InvalidData => malformed(),
            _ => unreadable(error),
        })?;
        let line = text.strip_suffix('\n').map_or(&*text, |line| line.strip_suffix('\r').unwrap_or(line));
        let visible = line.bytes().all(|b| b == b' ' || b.is_ascii_graphic()) && line.trim() == line;
        if line.is_empty() || line.len() as u64 > MAX_LINE || !visible {
            return Err(malformed());
        }
        let mut value = HeaderValue::try_from(line).map_err(|_| malformed())?;
        value.set_sensitive(true);
        let age = opened.modified().ok().and_then(|modified| SystemTime::now().duration_since(modified).ok());
        if age.is_some_and(|age| age >= SETTLED) {
            *known = Some((Stamp::of(&opened), value.clone()));
        }
        Ok(value)
    }

    fn check(&self, file: &fs::Metadata) -> Result<(), SecretError> {
        if !file.is_file() {
            return Err(SecretError::NotAFile(self.name.clone()));
        }
        match file.mode() & 0o777 {
            mode if mode & 0o077 != 0 => Err(SecretError::Exposed(self.name.clone(), mode)),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn write(directory: &Path, text: &str, mode: u32) {
        // As keys are replaced: never half.
        let new = directory.join("new");
        fs::write(&new, text).unwrap();
        fs::set_permissions(&new, fs::Permissions::from_mode(mode)).unwrap();
        fs::rename(&new, directory.join("partner")).unwrap();
    }

    #[test]
    fn a_secret_is_read_anew_when_it_changes_and_shown_by_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let secret = Secret::new(directory.path(), "partner");
        assert!(matches!(secret.read(), Err(SecretError::Unreadable(..))));
        for text in ["Bearer one", "Bearer two\n", "Basic YTpi\r\n"] {
            write(directory.path(), text, 0o600);
            let value = secret.read().unwrap();
            assert_eq!(value.to_str().unwrap(), text.trim_end());
            assert!(value.is_sensitive() && !format!("{value:?} {secret:?}").contains("Bearer"));
        }
        let old = SystemTime::now() - 10 * SETTLED;
        fs::File::options().write(true).open(directory.path().join("partner")).unwrap().set_modified(old).unwrap();
        assert_eq!(secret.read().unwrap(), "Basic YTpi");
        assert!(secret.known.lock().is_some(), "one that is settled is kept");
        write(directory.path(), "Bearer 3", 0o400);
        assert_eq!(secret.read().unwrap(), "Bearer 3");
        fs::remove_file(directory.path().join("partner")).unwrap();
        assert!(secret.read().is_err(), "what is taken away is no longer used");
    }

    #[test]
    fn what_others_may_read_or_is_more_than_a_line_is_not_used() {
        let directory = tempfile::tempdir().unwrap();
        let secret = Secret::new(directory.path(), "partner");
        for mode in [0o640, 0o604, 0o660, 0o666, 0o601] {
            write(directory.path(), "Bearer one", mode);
            assert!(matches!(secret.read(), Err(SecretError::Exposed(..))), "{mode:o}");
        }
        for text in ["", "\n", "Bearer a\nb", "Bearer a\n\n", " Bearer a", "Bearer \u{e9}", "Bearer a\0", &"x".repeat(4097)] {
            write(directory.path(), text, 0o600);
            let error = secret.read().unwrap_err();
            assert!(matches!(error, SecretError::Malformed(_)) && !error.to_string().contains("Bearer"), "{text:?}");
        }
        fs::remove_file(directory.path().join("partner")).unwrap();
        fs::create_dir(directory.path().join("partner")).unwrap();
        assert!(matches!(secret.read(), Err(SecretError::NotAFile(_))));
    }
}
