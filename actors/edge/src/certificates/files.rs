//! Files of certificates and keys: read with a bound, written whole or not at all.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Write as _},
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _},
    path::Path,
};

use super::CertificateError;

/// Longest file: a chain of ten RSA-4096 certificates has 25 KiB.
const LONGEST: u64 = 256 * 1024;
/// Only the owner.
const PRIVATE: u32 = 0o600;
/// What others may not have of a key: any access, and the group none to change it. That the group may read it is how
/// machines share certificates between services.
const FORBIDDEN: u32 = 0o027;

/// Tells a file that was replaced from one that was not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

/// `None` where there is no such file.
pub(super) fn stamp(path: &Path) -> Option<Stamp> {
    let file = fs::metadata(path).ok()?;
    Some(Stamp {
        device: file.dev(),
        inode: file.ino(),
        size: file.size(),
        modified: (file.mtime(), file.mtime_nsec()),
        changed: (file.ctime(), file.ctime_nsec()),
    })
}

pub(super) fn read(path: &Path, role: &'static str) -> Result<Vec<u8>, CertificateError> {
    read_file(open(path, role)?, path, role)
}

/// A file that only its owner, and at most its group, can read.
pub(super) fn read_secret(path: &Path, role: &'static str) -> Result<Vec<u8>, CertificateError> {
    let file = open(path, role)?;
    // Asked of the open file: a path may lead elsewhere meanwhile.
    let mode = file.metadata().map_err(CertificateError::file("look at", path))?.mode() & 0o777;
    if mode & FORBIDDEN != 0 {
        return Err(CertificateError::Exposed { path: path.to_owned(), mode });
    }
    read_file(file, path, role)
}

fn open(path: &Path, role: &'static str) -> Result<File, CertificateError> {
    File::open(path).map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => CertificateError::Missing { path: path.to_owned(), role },
        _ => CertificateError::File { action: "read", path: path.to_owned(), source },
    })
}

fn read_file(file: File, path: &Path, role: &'static str) -> Result<Vec<u8>, CertificateError> {
    let mut bytes = Vec::new();
    file.take(LONGEST + 1).read_to_end(&mut bytes).map_err(CertificateError::file("read", path))?;
    if bytes.len() as u64 > LONGEST {
        let problem = format!("it is longer than {LONGEST} bytes");
        return Err(CertificateError::Malformed { path: path.to_owned(), role, problem });
    }
    Ok(bytes)
}

/// Makes a directory that only its owner can enter.
pub(super) fn directory(path: &Path) -> Result<(), CertificateError> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(CertificateError::file("make", path))
}

/// Writes a file that only its owner can read: under another name, synced, then renamed.
pub(super) fn write(path: &Path, bytes: &[u8]) -> Result<(), CertificateError> {
    let failed = |action| CertificateError::file(action, path);
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    let new = path.with_file_name(name);
    // What a crash left there was never in use.
    let _ = fs::remove_file(&new);
    let mut file = OpenOptions::new().write(true).create_new(true).mode(PRIVATE).open(&new).map_err(failed("write"))?;
    file.write_all(bytes).and_then(|()| file.sync_all()).map_err(failed("write"))?;
    fs::rename(&new, path).map_err(failed("replace"))?;
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(parent).and_then(|parent| parent.sync_all()).map_err(failed("keep"))
}
