//! Which file a path means *now*: a path keeps its name while the file behind it is replaced.

use std::{fs, io, os::unix::fs::MetadataExt, path::Path};

/// Device and inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FileIdentity {
    device: u64,
    inode: u64,
}

impl FileIdentity {
    pub(crate) fn of(path: &Path) -> io::Result<FileIdentity> {
        fs::metadata(path).map(|m| FileIdentity { device: m.dev(), inode: m.ino() })
    }
}

/// Makes what was done to names in `directory` durable: a rename is not on disk before its directory is (`fsync(2)`).
pub(crate) fn sync_directory(directory: &Path) -> io::Result<()> {
    fs::File::open(directory)?.sync_all()
}
