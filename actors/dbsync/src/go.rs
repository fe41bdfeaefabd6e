//! The Go system's own protocol, both ways: a whole snapshot over a connection of its own (ALPN [`ALPN`]), so that a BO of the Go
//! system feeds an FO here, and the reverse, while people move from one to the other.
//!
//! | offset | bytes | content |
//! |---|---|---|
//! | 0 | 4 | `SYN1` |
//! | 4 | 4 | length of the meta, big-endian |
//! | 8 | length | the meta, JSON: version (ms), hash (SHA-256, 64 digits), size, timestamp (s), compressed |
//! | | size | a SQLite file, or one gzip member that holds it |
//!
//! The sender dials and writes that on the first stream; nobody ever writes back. What the Go system takes no notice of is used here:
//! its receiver closes the connection with 0 once the file is in its place, and with 1 and the reason when it refuses, so a
//! [push](Pusher::push) is done when the close says so, and a missing one is *unknown*. A sender of the Go system closes 200 ms after its
//! last byte whatever became of it, so what has come is read to its end before that counts, and a file shorter than its meta
//! says is cut off.
//!
//! Both ends show a certificate of this cluster (`horos identity sign` makes one for a machine of the Go system), and only those that
//! are named are talked to: the Go system itself asks nobody who they are.

mod inbox;
mod meta;
mod push;

pub use inbox::{Inbox, InboxConfig, Taken};
pub use meta::{Meta, MetaError};
pub use push::{PushError, Pusher, Target};

/// The protocol's name in TLS.
pub const ALPN: &[u8] = b"horos-dbsync-v1";
/// What every connection begins with.
const MAGIC: [u8; 4] = *b"SYN1";
/// Longest meta that a receiver reads, in bytes.
pub const MAX_META: u32 = 1 << 20;
/// Largest file that a receiver takes, in bytes. Ours says so to the sender's side before anything is sent; the Go system's sends and is
/// refused, again and again.
pub const MAX_SNAPSHOT: u64 = 512 << 20;
/// What the receiver closes with.
const DONE: u32 = 0;
const REFUSED: u32 = 1;
