//! The cluster's own signing key for users' tokens: one file in the owner's data directory, made when it is first asked for.
//!
//! The private half is in that file and in this process's memory, in no database and so in no replica and no backup of one.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Write as _},
    os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use aws_lc_rs::{
    rand::SystemRandom,
    signature::{Ed25519KeyPair, KeyPair as _},
};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use jsonwebtoken::EncodingKey;
use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

/// The file's name in the data directory.
pub const ISSUER_FILE: &str = "token-issuer.key";
/// No such file is larger.
const MAX_FILE: u64 = 1024;

/// Why there is no signing key. Nothing was signed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IssuerKeyError {
    /// Others than its owner can reach the file.
    #[error("{} has mode {mode:03o}, so others can reach this secret; run: chmod 600 {}", path.display(), path.display())]
    Exposed {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The file is no such key.
    #[error("{} holds no Ed25519 key; restore it, or move it away to have a new one made", .0.display())]
    Damaged(PathBuf),
    /// The operating system refused.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was being attempted.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Its answer.
        source: io::Error,
    },
    /// No key could be made.
    #[error("the system gives no randomness")]
    Randomness,
}

/// The cluster's own signing key. Its `Debug` shows the public half.
#[derive(Clone)]
pub(crate) struct OwnIssuer {
    pub(crate) kid: Box<str>,
    pub(crate) public_key: Box<str>,
    pub(crate) signing: EncodingKey,
}

impl std::fmt::Debug for OwnIssuer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "OwnIssuer({})", self.kid)
    }
}

fn failed<'a>(action: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> IssuerKeyError + 'a {
    move |source| IssuerKeyError::Io { action, path: path.to_owned(), source }
}

impl OwnIssuer {
    /// Reads the key from `path`, or makes it there. Blocks on the disk.
    pub(crate) fn open(path: &Path) -> Result<Self, IssuerKeyError> {
        match File::open(path) {
            Ok(file) => Self::read(file, path),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                make(path)?;
                // Read back, whoever made it: what is used is what is on disk.
                Self::read(File::open(path).map_err(failed("open", path))?, path)
            }
            Err(error) => Err(failed("open", path)(error)),
        }
    }

    fn read(file: File, path: &Path) -> Result<Self, IssuerKeyError> {
        // Asked of the open file, not of the path, which could be another file by then.
        let mode = file.metadata().map_err(failed("look at", path))?.permissions().mode();
        if mode & 0o077 != 0 {
            return Err(IssuerKeyError::Exposed { path: path.to_owned(), mode: mode & 0o777 });
        }
        let mut text = Zeroizing::new(Vec::with_capacity(MAX_FILE as usize + 1));
        file.take(MAX_FILE + 1).read_to_end(&mut text).map_err(failed("read", path))?;
        let damaged = || IssuerKeyError::Damaged(path.to_owned());
        let der = Zeroizing::new(URL_SAFE_NO_PAD.decode(text.trim_ascii()).map_err(|_| damaged())?);
        let pair = Ed25519KeyPair::from_pkcs8(&der).map_err(|_| damaged())?;
        let public = pair.public_key().as_ref();
        let kid = hex::encode(&Sha256::digest(public)[..8]).into();
        Ok(Self { kid, public_key: URL_SAFE_NO_PAD.encode(public).into(), signing: EncodingKey::from_ed_der(&der) })
    }

    /// Removes the key, so that the next one asked for is another. Blocks on the disk.
    pub(crate) fn remove(path: &Path) -> Result<(), IssuerKeyError> {
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("remove", path)(error)),
            _ => sync_directory(path),
        }
    }
}

/// Makes a key that is at `path` whole or not at all, and replaces none.
fn make(path: &Path) -> Result<(), IssuerKeyError> {
    let document = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).map_err(|_| IssuerKeyError::Randomness)?;
    let text = Zeroizing::new(URL_SAFE_NO_PAD.encode(document.as_ref()) + "\n");
    let temporary = path.with_extension("new");
    // One that was left behind was never used: it was not at its place.
    let _ = fs::remove_file(&temporary);
    let write = || -> io::Result<()> {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()
    };
    write().map_err(failed("write", &temporary))?;
    // A hard link fails where a rename would replace.
    let linked = fs::hard_link(&temporary, path);
    let _ = fs::remove_file(&temporary);
    match linked {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(failed("create", path)(error)),
        _ => sync_directory(path),
    }
}

fn sync_directory(path: &Path) -> Result<(), IssuerKeyError> {
    let directory = path.parent().unwrap_or(path);
    File::open(directory).and_then(|directory| directory.sync_all()).map_err(failed("sync directory", directory))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_is_made_once_and_only_its_owner_can_reach_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(ISSUER_FILE);
        let made = OwnIssuer::open(&path).unwrap();
        assert_eq!(OwnIssuer::open(&path).unwrap().kid, made.kid);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1, "nothing is left beside it");
        let secret = fs::read_to_string(&path).unwrap();
        assert!(!format!("{made:?}").contains(secret.trim()));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        assert!(OwnIssuer::open(&path).unwrap_err().to_string().contains("chmod 600"));
        OwnIssuer::remove(&path).unwrap();
        assert_ne!(OwnIssuer::open(&path).unwrap().kid, made.kid);
    }

    #[test]
    fn a_damaged_key_is_an_error_and_is_not_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(ISSUER_FILE);
        make(&path).unwrap();
        let good = fs::read_to_string(&path).unwrap();
        for bad in ["", "short", &good[..40], &good.repeat(40)] {
            fs::write(&path, bad).unwrap();
            assert!(matches!(OwnIssuer::open(&path), Err(IssuerKeyError::Damaged(_))), "{bad:?}");
            assert_eq!(fs::read_to_string(&path).unwrap(), bad);
        }
    }
}
