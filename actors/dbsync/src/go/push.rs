//! Sending a file to a receiver of the Go system, or of ours.

use std::{
    io,
    net::{Ipv6Addr, SocketAddr},
    path::Path,
    sync::Arc,
    time::Duration,
};

use flate2::{Compression, write::GzEncoder};
use horos_link::tls::{Expected, Tls};
use horos_wire::NodeId;
use quinn::{ClientConfig, Connection, ConnectionError, Endpoint, SendStream, TransportConfig, VarInt};
use tokio::{
    io::AsyncReadExt as _,
    time::{Instant, timeout, timeout_at},
};

use super::{ALPN, DONE, MAGIC, MAX_SNAPSHOT, Meta, REFUSED};

/// For a connection.
const DIAL: Duration = Duration::from_secs(10);
/// For the receiver to check the file and put it in its place, after its last byte was sent.
const ANSWER: Duration = Duration::from_secs(60);
/// Silence after which a connection is lost, and how often it is broken: as the Go system has it.
const IDLE: Duration = Duration::from_secs(300);
const KEEP_ALIVE: Duration = Duration::from_secs(30);
/// A receiver that takes less than this a second on the average is too slow to be fed: bytes.
const SLOWEST: u64 = 64 * 1024;
/// Bytes read from the file at a time.
const BLOCK: usize = 64 * 1024;
/// Longest reason that is kept of what the receiver says, in bytes.
const MAX_REASON: usize = 500;

/// Who is to have the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Who must answer there.
    pub node: NodeId,
    /// Where.
    pub address: SocketAddr,
}

/// Why a file may not be in its place there.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PushError {
    /// The receiver is out of reach, or is not who it must be. It has nothing of it.
    #[error("cannot reach {0}: {1}")]
    Dial(SocketAddr, String),
    /// The receiver will not have it, and has said why: what it serves is what it served before.
    #[error("refused: {0}")]
    Refused(String),
    /// It was sent, and the receiver has not said what became of it. Sending it again does no harm.
    #[error("the receiver did not say what became of it: {0}")]
    Unknown(String),
    /// The file is larger than any receiver takes. Permanent until less is published.
    #[error("the snapshot has {0} bytes, and a receiver takes {MAX_SNAPSHOT}")]
    TooLarge(u64),
    /// The file could not be read.
    #[error("the snapshot cannot be read")]
    Read(#[from] io::Error),
}

/// Sends files. Cheap to clone; on one UDP port of its own, because the Go system wants to be dialled.
#[derive(Clone, Debug)]
pub struct Pusher {
    endpoint: Endpoint,
    tls: Arc<Tls>,
}

impl Pusher {
    /// Binds the port. To be called on the runtime that is to drive it.
    ///
    /// # Errors
    /// The system's.
    pub fn open(tls: Arc<Tls>) -> io::Result<Self> {
        // Both families where there are both.
        let any = SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0));
        let endpoint = Endpoint::client(any).or_else(|_| Endpoint::client(SocketAddr::from(([0, 0, 0, 0], 0))))?;
        Ok(Self { endpoint, tls })
    }

    /// Sends the file at `path`, of which `meta` tells the truth, and waits until the receiver has it in its place.
    ///
    /// # Errors
    /// [`PushError`].
    ///
    /// # Cancel safety
    /// Dropping the future closes the connection; what the receiver made of it is unknown.
    pub async fn push(&self, target: &Target, path: &Path, meta: &Meta) -> Result<(), PushError> {
        if meta.size > MAX_SNAPSHOT {
            return Err(PushError::TooLarge(meta.size));
        }
        let connection = self.dial(target).await?;
        let sent = self.send(&connection, path, meta).await;
        let outcome = match sent {
            // Done once the receiver says so, and not before.
            Ok(()) => answer(timeout(ANSWER, connection.closed()).await.ok()),
            // Who refuses closes at once, in the middle of it.
            Err(Failed::Sending(why)) => match connection.close_reason() {
                Some(closed) => answer(Some(closed)),
                None => Err(PushError::Unknown(why)),
            },
            Err(Failed::Reading(error)) => Err(PushError::Read(error)),
        };
        let code = if outcome.is_ok() { DONE } else { REFUSED };
        connection.close(VarInt::from_u32(code), b"done");
        outcome
    }

    async fn dial(&self, target: &Target) -> Result<Connection, PushError> {
        let failed = |why: String| PushError::Dial(target.address, why);
        let mut transport = TransportConfig::default();
        transport
            .max_idle_timeout(Some(IDLE.try_into().expect("five minutes are within QUIC's range")))
            .keep_alive_interval(Some(KEEP_ALIVE));
        let mut client: ClientConfig = self.tls.client(&[ALPN], Expected::Node(target.node.clone()));
        client.transport_config(Arc::new(transport));
        // An IPv4 address on a socket of both families.
        let local = self.endpoint.local_addr()?;
        let address = match target.address {
            SocketAddr::V4(v4) if local.is_ipv6() => SocketAddr::from((v4.ip().to_ipv6_mapped(), v4.port())),
            other => other,
        };
        // The Go system's name for itself; who it is, the certificate says.
        let connecting = self.endpoint.connect_with(client, address, "dbsync").map_err(|error| failed(error.to_string()))?;
        match timeout(DIAL, connecting).await {
            Ok(connected) => connected.map_err(|error| failed(error.to_string())),
            Err(_) => Err(failed(format!("no answer within {} s", DIAL.as_secs()))),
        }
    }

    async fn send(&self, connection: &Connection, path: &Path, meta: &Meta) -> Result<(), Failed> {
        let until = Instant::now() + ANSWER + Duration::from_secs(meta.size / SLOWEST);
        let mut stream = timeout_at(until, connection.open_bi()).await.map_err(slow)?.map_err(sending)?.0;
        let text = meta.encode();
        let mut head = Vec::with_capacity(8 + text.len());
        head.extend(MAGIC);
        head.extend((text.len() as u32).to_be_bytes());
        head.extend(text);
        timeout_at(until, stream.write_all(&head)).await.map_err(slow)?.map_err(sending)?;
        let mut file = tokio::fs::File::open(path).await.map_err(Failed::Reading)?;
        let mut block = vec![0; BLOCK];
        let mut gzip = meta.compressed.then(|| GzEncoder::new(Vec::with_capacity(BLOCK), Compression::default()));
        let mut left = meta.size;
        while left > 0 {
            let wanted = BLOCK.min(usize::try_from(left).unwrap_or(BLOCK));
            let read = file.read(&mut block[..wanted]).await.map_err(Failed::Reading)?;
            if read == 0 {
                return Err(Failed::Reading(io::Error::new(io::ErrorKind::UnexpectedEof, "the file is shorter than its meta says")));
            }
            left -= read as u64;
            write(&mut stream, gzip.as_mut(), &block[..read], until).await?;
        }
        if let Some(gzip) = gzip {
            let rest = gzip.finish().map_err(Failed::Reading)?;
            timeout_at(until, stream.write_all(&rest)).await.map_err(slow)?.map_err(sending)?;
        }
        // It fails only for a stream that was reset, which the close then explains.
        stream.finish().map_err(sending)
    }
}

async fn write(stream: &mut SendStream, gzip: Option<&mut GzEncoder<Vec<u8>>>, bytes: &[u8], until: Instant) -> Result<(), Failed> {
    let Some(gzip) = gzip else {
        return timeout_at(until, stream.write_all(bytes)).await.map_err(slow)?.map_err(sending);
    };
    io::Write::write_all(gzip, bytes).map_err(Failed::Reading)?;
    let made = std::mem::take(gzip.get_mut());
    timeout_at(until, stream.write_all(&made)).await.map_err(slow)?.map_err(sending)
}

enum Failed {
    Sending(String),
    Reading(io::Error),
}

fn sending(error: impl std::fmt::Display) -> Failed {
    Failed::Sending(error.to_string())
}

fn slow(_: tokio::time::error::Elapsed) -> Failed {
    Failed::Sending("it takes too little at a time".to_owned())
}

/// What the connection's end says of the file.
fn answer(closed: Option<ConnectionError>) -> Result<(), PushError> {
    match closed {
        Some(ConnectionError::ApplicationClosed(close)) if close.error_code == VarInt::from_u32(DONE) => Ok(()),
        Some(ConnectionError::ApplicationClosed(close)) => {
            let reason = String::from_utf8_lossy(&close.reason[..close.reason.len().min(MAX_REASON)]);
            // It goes into logs and tables here.
            let reason: String = reason.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
            Err(PushError::Refused(if reason.is_empty() { format!("code {}", close.error_code) } else { reason }))
        }
        Some(other) => Err(PushError::Unknown(other.to_string())),
        None => Err(PushError::Unknown(format!("no answer within {} s", ANSWER.as_secs()))),
    }
}
