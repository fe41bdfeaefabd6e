//! The accept loop of a UDP socket: who may begin a handshake, how many may at once, and who gets the connection.
//!
//! Its worker `accept` is a child of the link's supervisor. It never awaits a handshake; handshakes have a deadline, a cap,
//! and a cap for each address; what is left of one that failed counts until QUIC has forgotten it. QUIC cannot know an address before
//! something has come back from it, so those that have not shown that they receive at theirs (RFC 9000 §8.1) get one place
//! in [`UNSHOWN`] of all, and half of those of an address; the others are asked to show it, which costs them a round trip
//! and this node no memory. So a flood from made-up addresses shuts nobody out and keeps no core busy, and a flood that
//! bears somebody's address does not shut out that somebody.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use horos_supervision::Vitals;
use horos_wire::control::Close;
use parking_lot::Mutex;
use quinn::{Connection, ConnectionError, Incoming, ServerConfig, TransportConfig};
use tokio::{sync::Semaphore, task::JoinSet};

use crate::{
    config::Admission,
    counters::{AdmissionCounters, count},
    endpoint::ALPN,
    ration::Ration,
    served::Served,
    tls,
    transport::STRANGERS_IDLE,
};

/// One place in so many is for those that have not shown their address: 64 handshakes of the default 1,024. Handshakes take
/// a core's time, a third of a millisecond each, and everybody else's messages wait for it.
const UNSHOWN: usize = 16;
/// Connections that failed and are not forgotten, for each handshake there may be: 4,096 by default, some 250 MiB, or 1,300
/// failures a second. Beyond that they keep the places of handshakes, and of their addresses.
const FAILED: usize = 4;
/// What one that is not looked at yet may have sent beyond its first packet: a ClientHello with a post-quantum share takes
/// two packets, and early data is not taken. quinn's default is 10 MiB.
const WAITING_BYTES: u64 = 16 * 1024;
/// The same of all together; quinn's default is 100 MiB.
const ALL_WAITING_BYTES: u64 = 4 * 1024 * 1024;
/// TLS's alert `no_application_protocol` as QUIC carries it (RFC 9001 §4.8, RFC 7301 §3.2).
const NO_APPLICATION_PROTOCOL: u64 = 0x178;

/// The door of one UDP socket. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Door {
    quinn: quinn::Endpoint,
    admission: Admission,
    pub(crate) counters: Arc<AdmissionCounters>,
    pub(crate) served: Served,
    shut: Arc<AtomicBool>,
    said: Arc<Said>,
}

/// What is said of strangers, and how often.
#[derive(Debug, Default)]
struct Said {
    address_full: Ration,
    failed: Ration,
    timed_out: Ration,
}

/// The server's side with the bounds of a door.
pub(crate) fn bounded(server: &mut ServerConfig, admission: &Admission, transport: Arc<TransportConfig>) {
    server
        .transport_config(transport)
        .max_incoming(admission.handshakes)
        .incoming_buffer_size(WAITING_BYTES)
        .incoming_buffer_size_total(ALL_WAITING_BYTES);
}

impl Door {
    pub(crate) fn new(quinn: quinn::Endpoint, admission: Admission, counters: Arc<AdmissionCounters>, served: Served) -> Self {
        Self { quinn, admission, counters, served, shut: Arc::default(), said: Arc::default() }
    }

    /// Refuses whoever comes from now on, at once, so that they can look elsewhere.
    pub(crate) fn shut(&self) {
        self.shut.store(true, Ordering::Relaxed);
    }

    /// Lets in until it is stopped. `node` takes the connections of the nodes' own protocol, or says how to close them.
    pub(crate) async fn run<F, R>(self, vitals: Arc<Vitals>, node: F)
    where
        F: Fn(Connection) -> R + Clone + Send + 'static,
        R: Future<Output = Result<(), Close>> + Send,
    {
        let places = Arc::new(Semaphore::new(self.admission.handshakes));
        let unshown = Arc::new(Semaphore::new(self.admission.handshakes / UNSHOWN));
        let failed = Arc::new(Semaphore::new(self.admission.handshakes.saturating_mul(FAILED).min(Semaphore::MAX_PERMITS)));
        let by_address = ByAddress::default();
        let mut handshakes = JoinSet::new();
        loop {
            // In a flood there is always another one, and this loop would keep the runtime from everybody else.
            tokio::task::coop::consume_budget().await;
            let incoming = tokio::select! {
                incoming = self.quinn.accept() => incoming,
                Some(_) = handshakes.join_next() => continue,
            };
            let Some(incoming) = incoming else { return std::future::pending().await };
            vitals.progressed(Instant::now());
            let from = incoming.remote_address();
            let shown = incoming.remote_address_validated();
            if self.shut.load(Ordering::Relaxed) {
                count(&self.counters.stopping);
                incoming.refuse();
                continue;
            }
            let pass = if shown { None } else { unshown.clone().try_acquire_owned().ok() };
            if !shown && pass.is_none() {
                self.retry(incoming);
                continue;
            }
            let Ok(place) = places.clone().try_acquire_owned() else {
                count(&self.counters.full);
                incoming.refuse();
                continue;
            };
            let Some(turn) = by_address.enter(from.ip(), shown, self.admission.handshakes_per_address) else {
                if shown {
                    count(&self.counters.address_full);
                    if self.said.address_full.allows("too many handshakes from an address") {
                        tracing::warn!(%from, "too many handshakes at once from this address");
                    }
                    incoming.refuse();
                } else {
                    self.retry(incoming);
                }
                continue;
            };
            let (door, node, failed) = (self.clone(), node.clone(), failed.clone());
            handshakes.spawn(async move {
                let mut held = Some((place, pass, turn));
                let remains = match door.shake_hands(incoming, from).await {
                    Ok(connection) => door.enter(connection, node).await,
                    Err(remains) => remains,
                };
                // What is left costs memory, and those that fail at once would be without bound. Whoever has not shown its
                // address keeps its place meanwhile: it is one of few, and the rest are asked to show theirs.
                let spare = if shown { failed.try_acquire_owned().ok() } else { None };
                if spare.is_some() {
                    held = None;
                }
                tokio::time::sleep(remains).await;
                drop((held, spare));
            });
        }
    }

    /// Asks one that has not shown that it receives at its address to do so.
    fn retry(&self, incoming: Incoming) {
        count(&self.counters.retried);
        // It fails only for one that has shown it.
        let _ = incoming.retry();
    }

    /// A connection whose handshake ended well, or how long what is left of it costs memory.
    async fn shake_hands(&self, incoming: Incoming, from: SocketAddr) -> Result<Connection, Duration> {
        let connecting = incoming.accept().map_err(|error| {
            self.failed(&error, from);
            Duration::ZERO
        })?;
        // The accepting side gets a handle on the connection before it is established (to send early, which nobody here
        // does), and needs one to see how an unfinished handshake ended. It is never refused one.
        let Ok((connection, established)) = connecting.into_0rtt() else { return Err(Duration::ZERO) };
        if tokio::time::timeout(self.admission.handshake_timeout, established).await.is_err() {
            count(&self.counters.timed_out);
            if self.said.timed_out.allows("handshakes not finished in time") {
                tracing::warn!(%from, "handshake not finished in time");
            }
            connection.close((Close::Done as u32).into(), b"");
            return Err(remains(&connection));
        }
        match connection.close_reason() {
            None => Ok(connection),
            Some(error) => {
                self.failed(&error, from);
                Err(remains(&connection))
            }
        }
    }

    fn failed(&self, error: &ConnectionError, from: SocketAddr) {
        let unknown_protocol = matches!(error, ConnectionError::TransportError(error) if u64::from(error.code) == NO_APPLICATION_PROTOCOL);
        count(if unknown_protocol { &self.counters.unknown_protocol } else { &self.counters.failed });
        if self.said.failed.allows("handshakes failed") {
            tracing::warn!(%from, %error, "handshake failed");
        }
    }

    /// Hands a connection to who serves its protocol, and says how long what is left costs memory if it was turned away.
    async fn enter<F, R>(&self, connection: Connection, node: F) -> Duration
    where
        F: Fn(Connection) -> R,
        R: Future<Output = Result<(), Close>>,
    {
        // TLS has chosen among what is served here; without a common protocol there is no connection.
        let protocol = tls::protocol(&connection).unwrap_or_default();
        if protocol != ALPN {
            self.served.enter(&protocol, connection.clone(), &self.counters);
        } else if let Err(close) = node(connection.clone()).await {
            connection.close((close as u32).into(), close.to_string().as_bytes());
        } else {
            count(&self.counters.admitted);
        }
        if connection.close_reason().is_some() { remains(&connection) } else { Duration::ZERO }
    }
}

/// How long at most quinn remembers a connection that has ended in the door: three probe timeouts (RFC 9000
/// §10.2), which for a round trip that nobody has measured are three seconds. One that ended with its first packet is
/// remembered until its idle timeout, as [`crate::gone`] says.
fn remains(connection: &Connection) -> Duration {
    if connection.stats().udp_tx.datagrams == 0 {
        return STRANGERS_IDLE;
    }
    // RFC 9002 §6.2.1, §5.3: a probe timeout is the round trip and four times its variation, at first half of it, and an
    // acknowledgement's delay of 25 ms.
    (9 * connection.rtt() + Duration::from_millis(75)).min(STRANGERS_IDLE)
}

/// Handshakes in progress, by address.
#[derive(Clone, Default)]
struct ByAddress(Arc<Mutex<HashMap<IpAddr, Begun>>>);

#[derive(Default)]
struct Begun {
    all: usize,
    /// Of them by such as have not shown that they receive at the address: anybody's, that is.
    unshown: usize,
}

impl ByAddress {
    /// A turn for a handshake from `ip`, while there are fewer than `most`, and half of that for the unshown.
    fn enter(&self, ip: IpAddr, shown: bool, most: usize) -> Option<Turn> {
        let ip = network(ip);
        let mut begun = self.0.lock();
        let counts = begun.get(&ip);
        let (all, unshown) = counts.map_or((0, 0), |counts| (counts.all, counts.unshown));
        if all >= most || (!shown && unshown >= most / 2) {
            return None;
        }
        let counts = begun.entry(ip).or_default();
        counts.all += 1;
        counts.unshown += usize::from(!shown);
        Some(Turn { begun: self.clone(), ip, shown })
    }
}

/// Whom an address belongs to: an IPv6 host has a whole /64 of them (RFC 4291 §2.5.1).
fn network(ip: IpAddr) -> IpAddr {
    match ip.to_canonical() {
        IpAddr::V6(ip) => IpAddr::V6(Ipv6Addr::from_bits(ip.to_bits() & !u128::from(u64::MAX))),
        v4 @ IpAddr::V4(_) => v4,
    }
}

/// One handshake's place among those of its address.
struct Turn {
    begun: ByAddress,
    ip: IpAddr,
    shown: bool,
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut begun = self.begun.0.lock();
        if let Some(counts) = begun.get_mut(&self.ip) {
            counts.all -= 1;
            counts.unshown -= usize::from(!self.shown);
            if counts.all == 0 {
                begun.remove(&self.ip);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_shows_its_address_is_not_shut_out_by_those_who_only_claim_it() {
        let handshakes = ByAddress::default();
        let ip: IpAddr = "192.0.2.7".parse().unwrap();
        let claimed: Vec<_> = (0..100).map_while(|_| handshakes.enter(ip, false, 64)).collect();
        assert_eq!(claimed.len(), 32);
        let mut shown: Vec<_> = (0..100).map_while(|_| handshakes.enter(ip, true, 64)).collect();
        assert_eq!(shown.len(), 32);
        assert!(handshakes.enter("192.0.2.8".parse().unwrap(), false, 64).is_some());
        shown.pop();
        assert!(handshakes.enter(ip, false, 64).is_none(), "the other half stays theirs");
        assert!(handshakes.enter(ip, true, 64).is_some());
        drop((claimed, shown));
        assert!(handshakes.0.lock().is_empty());
    }

    #[test]
    fn the_addresses_of_one_host_count_as_one() {
        let handshakes = ByAddress::default();
        let at = |text: &str| handshakes.enter(text.parse().unwrap(), true, 1);
        let _first = at("2001:db8:1:2::1").unwrap();
        assert!(at("2001:db8:1:2:ffff::9").is_none());
        let _second = at("2001:db8:1:3::1").unwrap();
        let _third = at("192.0.2.7").unwrap();
        assert!(at("::ffff:192.0.2.7").is_none());
        assert!(handshakes.enter("192.0.2.9".parse().unwrap(), false, 1).is_none(), "with one turn, it is for who shows the address");
    }
}
