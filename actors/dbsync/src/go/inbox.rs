//! Taking a file from a sender of the Go system, or of ours.

use std::{
    fmt,
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use flate2::write::MultiGzDecoder;
use futures_util::future::BoxFuture;
use horos_link::{AlpnHandler, tls::Tls};
use horos_wire::NodeName;
use jiff::Timestamp;
use quinn::{Connection, RecvStream, VarInt};
use sha2::{Digest as _, Sha256};
use tokio::{
    runtime::Handle,
    sync::Mutex,
    task::{JoinError, JoinHandle},
    time::timeout,
};

use super::{DONE, MAGIC, MAX_META, Meta, MetaError, REFUSED};

/// For the first stream, and for magic and meta.
const HEAD: Duration = Duration::from_secs(10);
/// For the next bytes of the file.
const STALLED: Duration = Duration::from_secs(30);
/// Connections at once, over all senders; the second one of a sender waits for nothing and is refused.
const CONNECTIONS: usize = 16;
/// Bytes of the file taken off the stream at a time.
const BLOCK: usize = 64 * 1024;
/// A peer that was admitted may have so much sent and unread: a sender of the Go system closes 200 ms after its last byte.
const WINDOW: u32 = 16 << 20;

/// What is done with a file that was checked: it is put in its place, or there is a reason why not. The file is removed afterwards.
pub type Taken = Arc<dyn Fn(PathBuf, Meta) -> BoxFuture<'static, Result<(), String>> + Send + Sync>;

/// From whom files are taken, and where they go.
#[derive(Clone)]
pub struct InboxConfig {
    /// The only nodes that may send, each with what is done with its files.
    pub senders: Vec<(NodeName, Taken)>,
    /// Where files are kept while they come.
    pub directory: PathBuf,
    /// Where files are unpacked and hashed: not where QUIC is driven.
    pub runtime: Handle,
    /// How old a snapshot may be by its own word; none is as old as it likes. One from the future is refused as well then.
    pub max_age: Option<Duration>,
}

impl fmt::Debug for InboxConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let senders: Vec<_> = self.senders.iter().map(|(node, _)| node).collect();
        write!(f, "InboxConfig({senders:?})")
    }
}

/// Takes connections of [`super::ALPN`].
#[derive(Clone, Debug)]
pub struct Inbox(Arc<Inner>);

struct Inner {
    tls: Arc<Tls>,
    config: InboxConfig,
    /// One file of a sender at a time.
    senders: Vec<Mutex<Last>>,
}

impl fmt::Debug for Inner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.config.fmt(f)
    }
}

/// The newest that was taken of a sender in this process's life; the place it went to remembers the rest.
#[derive(Debug, Default)]
struct Last(Option<Meta>);

/// Why a file was not taken, in the words of the Go system where it has some; the sender reads it.
#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error("not admitted")]
    NotListed,
    #[error("another snapshot is being received")]
    Busy,
    #[error("accept stream: {0}")]
    Stream(String),
    #[error("invalid magic: {0:?}")]
    Magic(String),
    #[error("{0}")]
    Meta(#[from] MetaError),
    #[error("snapshot too old: age {0} s exceeds max {1} s")]
    TooOld(i64, u64),
    #[error("snapshot from the future: by {0} s")]
    Future(i64),
    #[error("version {0} is older than {1}, which is there")]
    Backwards(i64, i64),
    #[error("size mismatch: got {0}, expected {1}")]
    Size(u64, u64),
    #[error("hash mismatch")]
    Hash,
    #[error("gzip reader: {0}")]
    Gzip(io::Error),
    #[error("write tmp: {0}")]
    Write(io::Error),
    #[error("{0}")]
    Place(String),
}

impl Inbox {
    /// What is left of earlier lives is removed first.
    ///
    /// # Errors
    /// When the directory cannot be made.
    pub fn open(tls: Arc<Tls>, config: InboxConfig) -> io::Result<Self> {
        fs::create_dir_all(&config.directory)?;
        for entry in fs::read_dir(&config.directory)? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == EXTENSION) {
                fs::remove_file(path)?;
            }
        }
        let senders = config.senders.iter().map(|_| Mutex::default()).collect();
        Ok(Self(Arc::new(Inner { tls, config, senders })))
    }
}

const EXTENSION: &str = "incoming";

impl AlpnHandler for Inbox {
    fn connections(&self) -> usize {
        CONNECTIONS
    }

    fn refuse(&self, connection: &Connection) {
        connection.close(VarInt::from_u32(REFUSED), Refusal::Busy.to_string().as_bytes());
    }

    fn serve(&self, connection: Connection) -> BoxFuture<'static, ()> {
        let inner = self.0.clone();
        let working = Working(inner.config.runtime.clone().spawn(async move {
            let from = connection.remote_address();
            match inner.take(&connection).await {
                Ok(meta) => {
                    tracing::info!(%from, version = meta.version, bytes = meta.size, "a snapshot of the Go system is in its place");
                    connection.close(VarInt::from_u32(DONE), b"done");
                }
                Err(refusal) => {
                    tracing::warn!(%from, %refusal, "a snapshot of the Go system is refused; the old data serve on");
                    connection.close(VarInt::from_u32(REFUSED), refusal.to_string().as_bytes());
                }
            }
        }));
        Box::pin(async move {
            // A task that fails has dropped the connection by that.
            let _ = working.wait().await;
        })
    }
}

/// A connection's task; ends with whoever waits for it.
struct Working(JoinHandle<()>);

impl Working {
    async fn wait(mut self) -> Result<(), JoinError> {
        (&mut self.0).await
    }
}

impl Drop for Working {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Inner {
    async fn take(&self, connection: &Connection) -> Result<Meta, Refusal> {
        // Before a byte of it is read.
        let peer = self.tls.admit(connection, Timestamp::now()).map_err(|refused| {
            tracing::debug!(%refused, "refused");
            Refusal::NotListed
        })?;
        let listed = |(name, _): &(NodeName, Taken)| peer.id.role.is_node() && *name == peer.id.name;
        let place = self.config.senders.iter().position(listed).ok_or(Refusal::NotListed)?;
        let (_, taken) = &self.config.senders[place];
        // Two at once would write what the other checks.
        let mut last = self.senders[place].try_lock().map_err(|_| Refusal::Busy)?;
        connection.set_receive_window(VarInt::from_u32(WINDOW));
        let (_, mut stream) = timeout(HEAD, connection.accept_bi())
            .await
            .map_err(|_| Refusal::Stream("none came".to_owned()))?
            .map_err(|error| Refusal::Stream(error.to_string()))?;
        let meta = timeout(HEAD, head(&mut stream)).await.map_err(|_| Refusal::Stream("it stalled".to_owned()))??;
        self.fresh(&meta, &last)?;
        if last.0.as_ref().is_some_and(|last| last.hash == meta.hash) {
            // There already: said again, so that the sender knows.
            return Ok(meta);
        }
        let path = self.config.directory.join(format!("{}.{EXTENSION}", peer.id.name));
        let received = Received::create(&path).map_err(Refusal::Write)?;
        receive(&mut stream, &received, &meta).await?;
        taken(path.clone(), meta.clone()).await.map_err(Refusal::Place)?;
        last.0 = Some(meta.clone());
        drop(received);
        Ok(meta)
    }

    fn fresh(&self, meta: &Meta, last: &Last) -> Result<(), Refusal> {
        if let Some(last) = &last.0
            && meta.version < last.version
        {
            return Err(Refusal::Backwards(meta.version, last.version));
        }
        let Some(max) = self.config.max_age else { return Ok(()) };
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| i64::try_from(since.as_secs()).unwrap_or(i64::MAX));
        let age = now.saturating_sub(meta.timestamp);
        if age > i64::try_from(max.as_secs()).unwrap_or(i64::MAX) {
            return Err(Refusal::TooOld(age, max.as_secs()));
        }
        // Clocks of two machines differ a little.
        if age < -60 { Err(Refusal::Future(-age)) } else { Ok(()) }
    }
}

async fn head(stream: &mut RecvStream) -> Result<Meta, Refusal> {
    let read = |error: quinn::ReadExactError| Refusal::Stream(error.to_string());
    let mut start = [0; 8];
    stream.read_exact(&mut start).await.map_err(read)?;
    let [magic @ .., l0, l1, l2, l3] = start;
    if magic != MAGIC {
        return Err(Refusal::Magic(String::from_utf8_lossy(&magic).into_owned()));
    }
    let length = u32::from_be_bytes([l0, l1, l2, l3]);
    if length > MAX_META {
        return Err(MetaError::TooLong(length).into());
    }
    let mut text = vec![0; length as usize];
    stream.read_exact(&mut text).await.map_err(read)?;
    Ok(Meta::decode(&text)?)
}

/// Reads the file off the stream: as much as its meta says, whatever comes behind that.
async fn receive(stream: &mut RecvStream, received: &Received, meta: &Meta) -> Result<(), Refusal> {
    let file = received.file.try_clone().map_err(Refusal::Write)?;
    let sink = Sink { file, hash: Sha256::new(), taken: 0, most: meta.size };
    let mut into = if meta.compressed { Into::Gzip(Box::new(MultiGzDecoder::new(sink))) } else { Into::Plain(sink) };
    while into.sink().taken < meta.size {
        let chunk = match timeout(STALLED, stream.read_chunk(BLOCK, true)).await {
            Err(_) => return Err(Refusal::Stream("it stalled".to_owned())),
            Ok(Ok(Some(chunk))) => chunk,
            Ok(Ok(None)) => break,
            // The sender's word that it is done comes while the last bytes do; without them it is cut off.
            Ok(Err(error)) => {
                tracing::debug!(%error, "the stream ended");
                break;
            }
        };
        // A moment at a time; the disk's own cache takes it.
        into.write(&chunk.bytes)?;
    }
    let sink = into.end()?;
    if sink.taken != meta.size {
        return Err(Refusal::Size(sink.taken, meta.size));
    }
    if hex::encode(sink.hash.finalize()) != meta.hash {
        return Err(Refusal::Hash);
    }
    let file = sink.file;
    tokio::task::spawn_blocking(move || file.sync_all()).await.map_err(|error| Refusal::Place(error.to_string()))?.map_err(Refusal::Write)
}

/// Writes and hashes, and takes no more than it is to.
struct Sink {
    file: File,
    hash: Sha256,
    taken: u64,
    most: u64,
}

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let room = usize::try_from(self.most - self.taken).unwrap_or(usize::MAX);
        let taken = self.file.write(&bytes[..bytes.len().min(room)])?;
        self.hash.update(&bytes[..taken]);
        self.taken += taken as u64;
        // What is beyond the end is passed over, as the Go system does: a bomb has nowhere to go.
        if room < bytes.len() && taken == room { Ok(bytes.len()) } else { Ok(taken) }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

enum Into {
    Plain(Sink),
    Gzip(Box<MultiGzDecoder<Sink>>),
}

impl Into {
    fn sink(&self) -> &Sink {
        match self {
            Self::Plain(sink) => sink,
            Self::Gzip(gzip) => gzip.get_ref(),
        }
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), Refusal> {
        match self {
            Self::Plain(sink) => sink.write_all(bytes).map_err(Refusal::Write),
            Self::Gzip(gzip) => gzip.write_all(bytes).and_then(|()| gzip.flush()).map_err(|error| match error.kind() {
                io::ErrorKind::StorageFull => Refusal::Write(error),
                _ => Refusal::Gzip(error),
            }),
        }
    }

    /// The trailer's checksum is not looked at: the hash of the whole says more.
    fn end(self) -> Result<Sink, Refusal> {
        match self {
            Self::Plain(sink) => Ok(sink),
            Self::Gzip(mut gzip) => {
                let _ = gzip.try_finish();
                let sink = gzip.get_ref();
                let file = sink.file.try_clone().map_err(Refusal::Write)?;
                Ok(Sink { file, hash: sink.hash.clone(), taken: sink.taken, most: sink.most })
            }
        }
    }
}

/// A file while it comes; gone with this.
struct Received {
    path: PathBuf,
    file: File,
}

impl Received {
    fn create(path: &Path) -> io::Result<Self> {
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
        Ok(Self { path: path.to_owned(), file })
    }
}

impl Drop for Received {
    fn drop(&mut self) {
        // One that stays is removed at the next start.
        let _ = fs::remove_file(&self.path);
    }
}
