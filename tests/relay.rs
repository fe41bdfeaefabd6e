//! A UDP relay that spoils the path between two nodes on purpose.
//!
//! A test starts one between a dialler and a listener, gives the dialler [`Relay::address`], and
//! changes the [`Faults`] of either [`Direction`] while packets flow. It runs on a thread and a
//! runtime of its own, so a test that blocks its runtime, or paces it with virtual time, does not
//! change what the relay does.
//!
//! It promises: every datagram it receives is either forwarded, or counted under the fault that
//! took it; the fate of the n-th datagram of a direction depends on the seed and on n alone, so
//! turning one fault on does not move the others; nothing it holds grows without a bound.
//! What it leaves out: it does not understand QUIC, and reorders within one client's flow only by
//! accident of timing between flows.
//!
//! The file stands alone (tokio, parking_lot, socket2) so that a crate's own tests can include it.
#![allow(dead_code, reason = "several test binaries include this file; each uses the faults its promises name")]

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::net::UdpSocket;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::Instant;

/// Client addresses with an upstream socket; past it, the one unheard from for longest is forgotten.
pub(crate) const CLIENTS: usize = 64;
/// Datagrams one direction holds (delayed, paced or reordered); past it, newcomers are dropped.
pub(crate) const QUEUED_DATAGRAMS: usize = 16_384;
/// Bytes one direction holds: at 100 MB/s, the 50 ms of delay that the project's tests use, thrice.
pub(crate) const QUEUED_BYTES: usize = 16 << 20;
/// How long a datagram chosen for reordering waits for others to overtake it.
pub(crate) const REORDER_PATIENCE: Duration = Duration::from_millis(20);
/// Datagrams read from upstream sockets and not yet judged.
const INTAKE: usize = 1024;
/// Datagrams taken from the listening socket between two looks at the clock.
const BATCH: usize = 64;
/// Asked for on every socket, so that loss comes from [`Faults`] and not from the kernel.
const SOCKET_BUFFER: usize = 4 << 20;
/// The largest UDP payload.
const DATAGRAM: usize = 65_535;

/// Which way a datagram travels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    /// From whoever dialled the relay to the relay's target.
    ToUpstream,
    /// From the target back to who dialled.
    ToClient,
}

impl Direction {
    pub(crate) const BOTH: [Self; 2] = [Self::ToUpstream, Self::ToClient];
}

/// What one direction suffers. The default forwards everything at once, untouched.
///
/// Probabilities are between 0 and 1, per datagram, drawn independently of each other.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Faults {
    /// Probability of being lost.
    pub(crate) drop: f64,
    /// Probability of arriving twice.
    pub(crate) duplicate: f64,
    /// Probability of being held until others have overtaken it, or [`REORDER_PATIENCE`] is over.
    pub(crate) reorder: f64,
    /// At most how many datagrams overtake a held one.
    pub(crate) reorder_window: u32,
    /// Probability of having one bit flipped.
    pub(crate) corrupt: f64,
    /// Added to every datagram.
    pub(crate) delay: Duration,
    /// Up to this much is added on top, evenly spread; reorders by itself.
    pub(crate) jitter: Duration,
    /// Takes everything, what is already held included, and answers nothing.
    pub(crate) silent: bool,
    /// Bytes a second of payload, one datagram after the other.
    pub(crate) rate: Option<u64>,
}

impl Default for Faults {
    fn default() -> Self {
        Self {
            drop: 0.0,
            duplicate: 0.0,
            reorder: 0.0,
            reorder_window: 8,
            corrupt: 0.0,
            delay: Duration::ZERO,
            jitter: Duration::ZERO,
            silent: false,
            rate: None,
        }
    }
}

/// What happened in one direction so far.
///
/// Once nothing is held, `received + duplicated` equals `forwarded + dropped + silenced +
/// overflowed + unroutable`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counters {
    /// Datagrams that came in.
    pub(crate) received: u64,
    /// Datagrams sent on, copies included.
    pub(crate) forwarded: u64,
    /// Lost by [`Faults::drop`].
    pub(crate) dropped: u64,
    /// Extra copies made by [`Faults::duplicate`].
    pub(crate) duplicated: u64,
    /// Held back by [`Faults::reorder`].
    pub(crate) reordered: u64,
    /// Sent on with a bit flipped.
    pub(crate) corrupted: u64,
    /// Taken by [`Faults::silent`] or a partition.
    pub(crate) silenced: u64,
    /// Refused because the direction held [`QUEUED_DATAGRAMS`] or [`QUEUED_BYTES`].
    pub(crate) overflowed: u64,
    /// Not sent: the kernel refused, or the client had been forgotten.
    pub(crate) unroutable: u64,
    /// Held at this moment.
    pub(crate) held: u64,
}

/// A running relay. Dropping it closes its sockets and joins its thread.
#[derive(Debug)]
pub(crate) struct Relay {
    address: SocketAddr,
    seed: u64,
    shared: Arc<Shared>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Relay {
    /// Starts relaying from a free port of 127.0.0.1 to `upstream`, and prints `seed`.
    ///
    /// # Errors
    /// When the kernel gives no socket or no thread.
    pub(crate) fn start(upstream: SocketAddr, seed: u64) -> io::Result<Self> {
        Self::listen((Ipv4Addr::LOCALHOST, 0).into(), upstream, seed)
    }

    /// Starts relaying from `listen` (another loopback address stands for another host).
    ///
    /// # Errors
    /// When `listen` is taken, or the kernel gives no socket or no thread.
    pub(crate) fn listen(listen: SocketAddr, upstream: SocketAddr, seed: u64) -> io::Result<Self> {
        let socket = bind(listen)?;
        let address = socket.local_addr()?;
        let shared = Arc::new(Shared {
            upstream: Mutex::new(upstream),
            partitioned: AtomicBool::new(false),
            lanes: [Mutex::new(Lane::default()), Mutex::new(Lane::default())],
        });
        let (stop, stopped) = oneshot::channel();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let engine = shared.clone();
        let thread = thread::Builder::new().name("relay".into()).spawn(move || {
            runtime.block_on(async move {
                let listen = UdpSocket::from_std(socket).expect("the socket is non-blocking and the runtime drives I/O");
                Engine::new(listen, engine, seed).run(stopped).await;
            });
        })?;
        eprintln!("relay {address} -> {upstream}, seed {seed}");
        Ok(Self { address, seed, shared, stop: Some(stop), thread: Some(thread) })
    }

    /// Where to dial instead of the upstream.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// What repeats this relay's choices.
    pub(crate) fn seed(&self) -> u64 {
        self.seed
    }

    /// Sends to `upstream` from now on: the node came back elsewhere.
    pub(crate) fn retarget(&self, upstream: SocketAddr) {
        *self.shared.upstream.lock() = upstream;
    }

    /// Replaces the faults of one direction.
    pub(crate) fn set(&self, direction: Direction, faults: Faults) {
        self.shared.lane(direction).lock().faults = faults;
    }

    /// Replaces the faults of both directions.
    pub(crate) fn set_both(&self, faults: &Faults) {
        for direction in Direction::BOTH {
            self.set(direction, faults.clone());
        }
    }

    /// What one direction suffers now.
    pub(crate) fn faults(&self, direction: Direction) -> Faults {
        self.shared.lane(direction).lock().faults.clone()
    }

    /// Cuts both directions, what is on the way included, leaving the faults as they are.
    pub(crate) fn partition(&self) {
        self.shared.partitioned.store(true, Ordering::Release);
    }

    /// Ends a partition and any [`Faults::silent`]; other faults stay.
    pub(crate) fn heal(&self) {
        for direction in Direction::BOTH {
            self.shared.lane(direction).lock().faults.silent = false;
        }
        self.shared.partitioned.store(false, Ordering::Release);
    }

    /// What happened in `direction` since the start.
    pub(crate) fn counters(&self, direction: Direction) -> Counters {
        self.shared.lane(direction).lock().counters
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
            && !thread::panicking()
        {
            panic!("the relay's thread panicked: its own message is above");
        }
    }
}

/// What the test and the relay's thread both see.
#[derive(Debug)]
struct Shared {
    upstream: Mutex<SocketAddr>,
    partitioned: AtomicBool,
    lanes: [Mutex<Lane>; 2],
}

#[derive(Debug, Default)]
struct Lane {
    faults: Faults,
    counters: Counters,
}

impl Shared {
    fn lane(&self, direction: Direction) -> &Mutex<Lane> {
        match direction {
            Direction::ToUpstream => &self.lanes[0],
            Direction::ToClient => &self.lanes[1],
        }
    }
}

/// One datagram and the client whose flow it belongs to.
#[derive(Debug)]
struct Datagram {
    client: SocketAddr,
    payload: Vec<u8>,
}

/// SplitMix64 (Steele, Lea, Flood 2014): the same numbers for a seed whatever crate is upgraded.
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// In 0..1, with 53 random bits.
    fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// Everything chance decides about one datagram. All of it is drawn for every datagram, needed or
/// not: that is what keeps one fault's setting from shifting another's choices.
struct Fate {
    drop: f64,
    duplicate: f64,
    reorder: f64,
    overtakers: u64,
    corrupt: f64,
    bit: u64,
    jitter: [f64; 2],
}

impl Fate {
    fn draw(dice: &mut Dice) -> Self {
        Self {
            drop: dice.unit(),
            duplicate: dice.unit(),
            reorder: dice.unit(),
            overtakers: dice.next(),
            corrupt: dice.unit(),
            bit: dice.next(),
            jitter: [dice.unit(), dice.unit()],
        }
    }
}

/// A datagram waiting for its time; ordered by it, then by arrival.
struct Waiting {
    due: Instant,
    arrival: u64,
    datagram: Datagram,
}

impl PartialEq for Waiting {
    fn eq(&self, other: &Self) -> bool {
        self.arrival == other.arrival
    }
}
impl Eq for Waiting {}
impl PartialOrd for Waiting {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Waiting {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.due, self.arrival).cmp(&(other.due, other.arrival))
    }
}

/// A datagram being overtaken.
struct Overtaken {
    until: Instant,
    left: u64,
    delay: Duration,
    datagram: Datagram,
}

/// One direction, without its sockets: decides fates and keeps what has to wait.
struct Pipe {
    dice: Dice,
    waiting: BinaryHeap<Reverse<Waiting>>,
    overtaken: Vec<Overtaken>,
    bytes: usize,
    arrivals: u64,
    /// When the paced line is free again.
    line_free: Option<Instant>,
}

impl Pipe {
    fn new(seed: u64) -> Self {
        Self { dice: Dice(seed), waiting: BinaryHeap::new(), overtaken: Vec::new(), bytes: 0, arrivals: 0, line_free: None }
    }

    fn held(&self) -> usize {
        self.waiting.len() + self.overtaken.len()
    }

    fn arrive(&mut self, mut datagram: Datagram, now: Instant, cut: bool, lane: &mut Lane) {
        let Lane { faults, counters } = lane;
        let fate = Fate::draw(&mut self.dice);
        counters.received += 1;
        // Arrivals push held datagrams on even when they are lost themselves: a window counts
        // what was sent, so a lossy path does not also stretch every reordering.
        let freed = self.overtake(&datagram.client);
        if cut || faults.silent {
            counters.silenced += 1;
        } else if fate.drop < faults.drop {
            counters.dropped += 1;
        } else {
            if fate.corrupt < faults.corrupt && !datagram.payload.is_empty() {
                let bit = fate.bit as usize % (datagram.payload.len() * 8);
                datagram.payload[bit / 8] ^= 1 << (bit % 8);
                counters.corrupted += 1;
            }
            if fate.duplicate < faults.duplicate {
                counters.duplicated += 1;
                let copy = Datagram { client: datagram.client, payload: datagram.payload.clone() };
                if self.admit(&copy, counters) {
                    let due = self.departure(&copy, faults, fate.jitter[1], now);
                    self.wait(copy, due);
                }
            }
            if self.admit(&datagram, counters) {
                if fate.reorder < faults.reorder && faults.reorder_window > 0 {
                    counters.reordered += 1;
                    let left = 1 + fate.overtakers % u64::from(faults.reorder_window);
                    let delay = faults.delay + faults.jitter.mul_f64(fate.jitter[0]);
                    self.overtaken.push(Overtaken { until: now + REORDER_PATIENCE, left, delay, datagram });
                } else {
                    let due = self.departure(&datagram, faults, fate.jitter[0], now);
                    self.wait(datagram, due);
                }
            }
        }
        // After the newcomer, which thereby overtakes them.
        for held in freed {
            self.wait(held.datagram, now + held.delay);
        }
    }

    fn admit(&mut self, datagram: &Datagram, counters: &mut Counters) -> bool {
        let room = self.held() < QUEUED_DATAGRAMS && self.bytes + datagram.payload.len() <= QUEUED_BYTES;
        if room {
            self.bytes += datagram.payload.len();
        } else {
            counters.overflowed += 1;
        }
        room
    }

    fn departure(&mut self, datagram: &Datagram, faults: &Faults, jitter: f64, now: Instant) -> Instant {
        let start = match faults.rate {
            Some(rate) => {
                let free = self.line_free.unwrap_or(now).max(now);
                let on_the_line = Duration::from_secs_f64(datagram.payload.len() as f64 / rate.max(1) as f64);
                *self.line_free.insert(free + on_the_line)
            }
            None => now,
        };
        start + faults.delay + faults.jitter.mul_f64(jitter)
    }

    fn wait(&mut self, datagram: Datagram, due: Instant) {
        self.arrivals += 1;
        self.waiting.push(Reverse(Waiting { due, arrival: self.arrivals, datagram }));
    }

    /// Counts one more datagram of `client`'s that went ahead; gives back those now let go.
    fn overtake(&mut self, client: &SocketAddr) -> Vec<Overtaken> {
        let overtaking = |held: &mut Overtaken| {
            if held.datagram.client == *client {
                held.left -= 1;
            }
            held.left == 0
        };
        self.overtaken.extract_if(.., overtaking).collect()
    }

    fn next_due(&self) -> Option<Instant> {
        let patience = self.overtaken.iter().map(|held| held.until).min();
        let waiting = self.waiting.peek().map(|Reverse(waiting)| waiting.due);
        [patience, waiting].into_iter().flatten().min()
    }

    fn pop_due(&mut self, now: Instant) -> Option<Datagram> {
        while let Some(at) = self.overtaken.iter().position(|held| held.until <= now) {
            let held = self.overtaken.remove(at);
            self.wait(held.datagram, held.until + held.delay);
        }
        if self.waiting.peek().is_some_and(|Reverse(waiting)| waiting.due <= now) {
            let Reverse(waiting) = self.waiting.pop()?;
            self.bytes -= waiting.datagram.payload.len();
            return Some(waiting.datagram);
        }
        None
    }
}

/// The way to the upstream for one client address.
struct Flow {
    socket: Arc<UdpSocket>,
    reader: JoinHandle<()>,
    heard: Instant,
}

impl Drop for Flow {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

struct Engine {
    listen: UdpSocket,
    shared: Arc<Shared>,
    to_upstream: Pipe,
    to_client: Pipe,
    flows: HashMap<SocketAddr, Flow>,
    intake: mpsc::Sender<Datagram>,
    replies: mpsc::Receiver<Datagram>,
}

impl Engine {
    fn new(listen: UdpSocket, shared: Arc<Shared>, seed: u64) -> Self {
        let (intake, replies) = mpsc::channel(INTAKE);
        let mut dice = Dice(seed);
        let (to_upstream, to_client) = (Pipe::new(dice.next()), Pipe::new(dice.next()));
        Self { listen, shared, to_upstream, to_client, flows: HashMap::new(), intake, replies }
    }

    async fn run(mut self, mut stopped: oneshot::Receiver<()>) {
        let mut buffer = vec![0; DATAGRAM];
        loop {
            let due = [self.to_upstream.next_due(), self.to_client.next_due()].into_iter().flatten().min();
            tokio::select! {
                biased;
                _ = &mut stopped => return,
                () = tokio::time::sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {}
                received = self.listen.recv_from(&mut buffer) => {
                    // A receive error is an ICMP report about an earlier send: of no interest.
                    if let Ok((length, client)) = received {
                        self.accept(client, &buffer[..length]);
                    }
                    for _ in 1..BATCH {
                        let Ok((length, client)) = self.listen.try_recv_from(&mut buffer) else { break };
                        self.accept(client, &buffer[..length]);
                    }
                }
                Some(datagram) = self.replies.recv() => {
                    self.judge(Direction::ToClient, datagram);
                    for _ in 1..BATCH {
                        let Ok(datagram) = self.replies.try_recv() else { break };
                        self.judge(Direction::ToClient, datagram);
                    }
                }
            }
            self.send_due().await;
        }
    }

    fn accept(&mut self, client: SocketAddr, payload: &[u8]) {
        if let Some(flow) = self.flows.get_mut(&client) {
            flow.heard = Instant::now();
        } else if let Ok(flow) = self.open(client) {
            if self.flows.len() >= CLIENTS
                && let Some(oldest) = self.flows.iter().min_by_key(|(_, flow)| flow.heard).map(|(client, _)| *client)
            {
                self.flows.remove(&oldest);
            }
            self.flows.insert(client, flow);
        }
        self.judge(Direction::ToUpstream, Datagram { client, payload: payload.to_vec() });
    }

    fn open(&self, client: SocketAddr) -> io::Result<Flow> {
        let any = match self.listen.local_addr()?.ip() {
            IpAddr::V4(ip) => SocketAddr::from((ip, 0)),
            IpAddr::V6(ip) => SocketAddr::from((ip, 0)),
        };
        let socket = Arc::new(UdpSocket::from_std(bind(any)?)?);
        let (reading, shared, intake) = (socket.clone(), self.shared.clone(), self.intake.clone());
        let reader = tokio::spawn(async move {
            let mut buffer = vec![0; DATAGRAM];
            loop {
                let Ok((length, from)) = reading.recv_from(&mut buffer).await else { continue };
                // Not connected, so that `retarget` works and a closed port reports nothing; hence
                // the check that a stranger on loopback is not taken for the upstream.
                if from == *shared.upstream.lock() && intake.send(Datagram { client, payload: buffer[..length].to_vec() }).await.is_err() {
                    return;
                }
            }
        });
        Ok(Flow { socket, reader, heard: Instant::now() })
    }

    fn judge(&mut self, direction: Direction, datagram: Datagram) {
        let cut = self.shared.partitioned.load(Ordering::Acquire);
        let pipe = match direction {
            Direction::ToUpstream => &mut self.to_upstream,
            Direction::ToClient => &mut self.to_client,
        };
        let mut lane = self.shared.lane(direction).lock();
        pipe.arrive(datagram, Instant::now(), cut, &mut lane);
        lane.counters.held = pipe.held() as u64;
    }

    async fn send_due(&mut self) {
        let now = Instant::now();
        while let Some(datagram) = self.to_upstream.pop_due(now) {
            let sent = match self.flows.get(&datagram.client) {
                _ if self.silenced(Direction::ToUpstream) => None,
                Some(flow) => {
                    let upstream = *self.shared.upstream.lock();
                    Some(flow.socket.send_to(&datagram.payload, upstream).await.is_ok())
                }
                None => Some(false),
            };
            self.count(Direction::ToUpstream, sent);
        }
        while let Some(datagram) = self.to_client.pop_due(now) {
            let sent = if self.silenced(Direction::ToClient) {
                None
            } else {
                Some(self.listen.send_to(&datagram.payload, datagram.client).await.is_ok())
            };
            self.count(Direction::ToClient, sent);
        }
    }

    fn silenced(&self, direction: Direction) -> bool {
        self.shared.partitioned.load(Ordering::Acquire) || self.shared.lane(direction).lock().faults.silent
    }

    fn count(&self, direction: Direction, sent: Option<bool>) {
        let held = match direction {
            Direction::ToUpstream => self.to_upstream.held(),
            Direction::ToClient => self.to_client.held(),
        };
        let counters = &mut self.shared.lane(direction).lock().counters;
        counters.held = held as u64;
        match sent {
            Some(true) => counters.forwarded += 1,
            Some(false) => counters.unroutable += 1,
            None => counters.silenced += 1,
        }
    }
}

/// A non-blocking UDP socket with room for a burst.
///
/// # Errors
/// When `address` is taken or not of this machine.
pub(crate) fn bind(address: SocketAddr) -> io::Result<std::net::UdpSocket> {
    let socket = socket2::Socket::new(socket2::Domain::for_address(address), socket2::Type::DGRAM, Some(socket2::Protocol::UDP))?;
    // Best effort: the kernel clamps to rmem_max.
    let _ = socket.set_recv_buffer_size(SOCKET_BUFFER);
    let _ = socket.set_send_buffer_size(SOCKET_BUFFER);
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    Ok(socket.into())
}
