//! How names become addresses.

use std::{fmt, future::Future, io, net::IpAddr, net::ToSocketAddrs as _, pin::Pin, sync::Arc, time::Duration};

use tokio::sync::Semaphore;

/// What a look-up gives.
pub type Resolving = Pin<Box<dyn Future<Output = io::Result<Vec<IpAddr>>> + Send>>;

/// Looks names up. What it says is not believed: every address is checked, each time, before it is connected to.
pub trait Resolve: fmt::Debug + Send + Sync + 'static {
    /// All addresses of `name`, in the order in which they are to be tried.
    ///
    /// A `name` with a dot at its end is absolute: no search list applies to it. Others are the owner's own, of trusted endpoints.
    /// The future is dropped when the time to connect is over. An error, or no address, refuses the request; one of the kind
    /// [`ResourceBusy`](io::ErrorKind::ResourceBusy) is not held against the name's host.
    fn resolve(&self, name: &str) -> Resolving;
}

/// Look-ups by the operating system at once. Each holds a thread until it ends, be it wanted or not: `getaddrinfo` cannot be stopped.
const MAX_LOOKUPS: usize = 64;

/// How long a look-up waits for one of those: less than the time to connect, so that it is told what it waited for.
const PATIENCE: Duration = Duration::from_secs(1);

/// The operating system's resolver: `getaddrinfo`, so `/etc/hosts` and `/etc/resolv.conf` count.
#[derive(Clone)]
pub struct SystemResolver {
    room: Arc<Semaphore>,
}

impl Default for SystemResolver {
    fn default() -> Self {
        Self { room: Arc::new(Semaphore::new(MAX_LOOKUPS)) }
    }
}

impl fmt::Debug for SystemResolver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SystemResolver").field("room", &self.room.available_permits()).finish()
    }
}

impl Resolve for SystemResolver {
    fn resolve(&self, name: &str) -> Resolving {
        let (room, name) = (self.room.clone(), name.to_owned());
        Box::pin(async move {
            let busy = |_| io::Error::from(io::ErrorKind::ResourceBusy);
            let permit = tokio::time::timeout(PATIENCE, room.acquire_owned()).await.map_err(busy)?.map_err(io::Error::other)?;
            let looking = tokio::task::spawn_blocking(move || {
                let _permit = permit;
                // The port is another's affair.
                let found: Vec<IpAddr> = (name.as_str(), 0).to_socket_addrs()?.map(|address| address.ip()).collect();
                Ok(found)
            });
            looking.await.map_err(io::Error::other)?
        })
    }
}
