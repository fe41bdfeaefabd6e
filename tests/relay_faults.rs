//! Each fault of the relay does what it says, and only that, on real sockets.

use std::collections::HashSet;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use tokio::net::UdpSocket;
use tokio::time::timeout;

use crate::harness::{poll_state, scale, seed};
use crate::relay::{CLIENTS, Counters, Direction, Faults, QUEUED_BYTES, QUEUED_DATAGRAMS, Relay, bind};

const SOON: Duration = Duration::from_secs(10);

/// A client, a relay, and the server behind it.
struct Path {
    client: UdpSocket,
    relay: Relay,
    server: UdpSocket,
}

fn socket(ip: impl Into<Ipv4Addr>) -> UdpSocket {
    UdpSocket::from_std(bind((ip.into(), 0).into()).unwrap()).unwrap()
}

impl Path {
    fn new(seed: u64) -> Self {
        let server = socket([127, 0, 0, 2]);
        let relay = Relay::start(server.local_addr().unwrap(), seed).unwrap();
        Self { client: socket([127, 0, 0, 1]), relay, server }
    }

    /// Sends numbered datagrams to the server and returns what arrived, in order of arrival, once
    /// the relay holds nothing more.
    async fn deliver(&self, numbers: std::ops::Range<u32>) -> Vec<u32> {
        let mut arrived = Vec::new();
        let before = self.relay.counters(Direction::ToUpstream);
        for number in numbers.clone() {
            self.client.send_to(&number.to_be_bytes(), self.relay.address()).await.unwrap();
            // In small groups, so that no socket buffer of the kernel overflows and loss is the relay's.
            if number % 32 == 31 {
                self.taken(before, u64::from(number + 1 - numbers.start)).await;
                self.drain(&mut arrived);
            }
        }
        self.taken(before, numbers.len() as u64).await;
        poll_state("the relay is empty", SOON, async || {
            self.drain(&mut arrived);
            let now = self.relay.counters(Direction::ToUpstream);
            let arrivals = now.forwarded - before.forwarded;
            if now.held == 0 && arrived.len() as u64 == arrivals { Ok(()) } else { Err(format!("{now:?}, {} arrived", arrived.len())) }
        })
        .await;
        arrived
    }

    async fn taken(&self, before: Counters, count: u64) {
        poll_state("the relay took what was sent", SOON, async || {
            let now = self.relay.counters(Direction::ToUpstream);
            if now.received - before.received == count { Ok(()) } else { Err(format!("{count} sent, {now:?}")) }
        })
        .await;
    }

    fn drain(&self, arrived: &mut Vec<u32>) {
        let mut buffer = [0; 64];
        while let Ok((length, _)) = self.server.try_recv_from(&mut buffer) {
            arrived.push(u32::from_be_bytes(buffer[..length].try_into().unwrap()));
        }
    }

    /// One datagram there and one back.
    async fn round_trip(&self) -> Duration {
        let start = Instant::now();
        let mut buffer = [0; 64];
        self.client.send_to(b"there", self.relay.address()).await.unwrap();
        let (length, from) = timeout(SOON, self.server.recv_from(&mut buffer)).await.unwrap().unwrap();
        assert_eq!(&buffer[..length], b"there");
        self.server.send_to(b"back", from).await.unwrap();
        let (length, from) = timeout(SOON, self.client.recv_from(&mut buffer)).await.unwrap().unwrap();
        assert_eq!((&buffer[..length], from), (&b"back"[..], self.relay.address()));
        start.elapsed()
    }
}

fn accounted(counters: Counters) {
    let Counters { received, duplicated, forwarded, dropped, silenced, overflowed, unroutable, .. } = counters;
    assert_eq!(received + duplicated, forwarded + dropped + silenced + overflowed + unroutable, "{counters:?}");
}

fn faults(change: impl FnOnce(&mut Faults)) -> Faults {
    let mut faults = Faults::default();
    change(&mut faults);
    faults
}

#[tokio::test]
async fn without_faults_everything_arrives_once_and_in_order() {
    let path = Path::new(seed());
    assert_eq!(path.deliver(0..2000).await, (0..2000).collect::<Vec<_>>());
    accounted(path.relay.counters(Direction::ToUpstream));
}

#[tokio::test]
async fn drop_loses_its_share_and_says_how_many() {
    let path = Path::new(seed());
    path.relay.set(Direction::ToUpstream, faults(|f| f.drop = 0.05));
    let count = scale(4000, 100_000);
    let arrived = path.deliver(0..count).await;
    let counters = path.relay.counters(Direction::ToUpstream);
    assert_eq!(counters.dropped, u64::from(count) - arrived.len() as u64);
    let share = counters.dropped as f64 / f64::from(count);
    // 0.05 ± 6 standard deviations of 4000 draws.
    assert!((0.029..0.071).contains(&share), "{share}");
    assert!(arrived.is_sorted(), "loss does not reorder");
    accounted(counters);
}

#[tokio::test]
async fn duplicate_sends_both_copies_and_loses_none() {
    let path = Path::new(seed());
    path.relay.set(Direction::ToUpstream, faults(|f| f.duplicate = 0.3));
    let arrived = path.deliver(0..2000).await;
    let distinct: HashSet<_> = arrived.iter().collect();
    let counters = path.relay.counters(Direction::ToUpstream);
    assert_eq!(distinct.len(), 2000);
    assert_eq!(arrived.len() as u64, 2000 + counters.duplicated);
    assert!((400..800).contains(&counters.duplicated), "{counters:?}");
    accounted(counters);
}

#[tokio::test]
async fn reorder_lets_at_most_its_window_overtake_and_loses_none() {
    let path = Path::new(seed());
    path.relay.set(
        Direction::ToUpstream,
        faults(|f| {
            f.reorder = 0.1;
            f.reorder_window = 4;
        }),
    );
    let arrived = path.deliver(0..2000).await;
    let mut sorted = arrived.clone();
    sorted.sort_unstable();
    assert_eq!(sorted, (0..2000).collect::<Vec<_>>());
    assert!(!arrived.is_sorted(), "some were overtaken");
    let counters = path.relay.counters(Direction::ToUpstream);
    assert!((100..320).contains(&counters.reordered), "{counters:?}");
    for (place, number) in arrived.iter().enumerate() {
        let overtook = arrived[..place].iter().filter(|earlier| *earlier > number).count();
        assert!(overtook <= 4, "{overtook} overtook {number}");
    }
}

#[tokio::test]
async fn a_reordered_datagram_that_nothing_follows_arrives_all_the_same() {
    let path = Path::new(seed());
    path.relay.set(Direction::ToUpstream, faults(|f| f.reorder = 1.0));
    assert_eq!(path.deliver(0..1).await, [0]);
}

#[tokio::test]
async fn corrupt_flips_exactly_one_bit() {
    let path = Path::new(seed());
    path.relay.set(Direction::ToUpstream, faults(|f| f.corrupt = 1.0));
    let arrived = path.deliver(0..200).await;
    assert_eq!(arrived.len(), 200);
    for (sent, came) in (0..).zip(arrived) {
        assert_eq!((came ^ sent).count_ones(), 1, "{sent} became {came}");
    }
}

#[tokio::test]
async fn delay_is_suffered_on_each_way_and_keeps_order() {
    let path = Path::new(seed());
    path.relay.set_both(&faults(|f| f.delay = Duration::from_millis(50)));
    let there_and_back = path.round_trip().await;
    assert!(there_and_back >= Duration::from_millis(100), "{there_and_back:?}");
    assert_eq!(path.deliver(0..500).await, (0..500).collect::<Vec<_>>());
    path.relay.set_both(&Faults::default());
    path.round_trip().await;
}

#[tokio::test]
async fn jitter_spreads_arrivals_and_loses_none() {
    let path = Path::new(seed());
    path.relay.set(Direction::ToUpstream, faults(|f| f.jitter = Duration::from_millis(30)));
    let arrived = path.deliver(0..300).await;
    assert!(!arrived.is_sorted(), "30 ms of jitter on datagrams microseconds apart");
    assert_eq!(arrived.into_iter().collect::<HashSet<_>>().len(), 300);
}

#[tokio::test]
async fn what_has_left_makes_room() {
    let path = Path::new(seed());
    let large = vec![0; 60_000];
    let mut buffer = vec![0; 65_535];
    for _ in 0..=QUEUED_BYTES / large.len() {
        path.client.send_to(&large, path.relay.address()).await.unwrap();
        timeout(SOON, path.server.recv_from(&mut buffer)).await.unwrap().unwrap();
    }
    assert_eq!(path.relay.counters(Direction::ToUpstream).overflowed, 0);
}

#[tokio::test]
async fn rate_paces_bytes_and_a_full_line_drops_newcomers() {
    let path = Path::new(seed());
    path.relay.set(Direction::ToUpstream, faults(|f| f.rate = Some(4_000)));
    let start = Instant::now();
    // 4 bytes each: a thousandth of a second on the line.
    assert_eq!(path.deliver(0..200).await.len(), 200);
    assert!(start.elapsed() >= Duration::from_millis(195), "{:?}", start.elapsed());
    path.relay.set(Direction::ToUpstream, faults(|f| f.rate = Some(1)));
    let before = path.relay.counters(Direction::ToUpstream);
    let large = vec![0; 60_000];
    let fit = (QUEUED_BYTES / large.len()) as u64;
    for sent in 1..=fit + 10 {
        path.client.send_to(&large, path.relay.address()).await.unwrap();
        path.taken(before, sent).await;
    }
    let counters = path.relay.counters(Direction::ToUpstream);
    assert_eq!((counters.held, counters.overflowed), (fit, 10), "{counters:?}");
}

#[tokio::test]
async fn what_is_held_is_bounded_in_number_too() {
    let path = Path::new(seed());
    path.relay.set(Direction::ToUpstream, faults(|f| f.delay = SOON * 10));
    let before = path.relay.counters(Direction::ToUpstream);
    let count = QUEUED_DATAGRAMS as u64 + 100;
    for sent in 1..=count {
        path.client.send_to(b"", path.relay.address()).await.unwrap();
        if sent % 64 == 0 || sent == count {
            path.taken(before, sent).await;
        }
    }
    let counters = path.relay.counters(Direction::ToUpstream);
    assert_eq!((counters.held, counters.overflowed), (QUEUED_DATAGRAMS as u64, 100), "{counters:?}");
}

#[tokio::test]
async fn silence_of_one_direction_leaves_the_other() {
    let path = Path::new(seed());
    path.round_trip().await;
    path.relay.set(Direction::ToClient, faults(|f| f.silent = true));
    assert_eq!(path.deliver(0..10).await.len(), 10);
    let mut buffer = [0; 64];
    path.client.send_to(b"who", path.relay.address()).await.unwrap();
    let (_, from) = timeout(SOON, path.server.recv_from(&mut buffer)).await.unwrap().unwrap();
    path.server.send_to(b"lost", from).await.unwrap();
    poll_state("the answer was swallowed", SOON, async || match path.relay.counters(Direction::ToClient) {
        Counters { silenced: 1, .. } => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await;
    path.relay.heal();
    path.round_trip().await;
}

#[tokio::test]
async fn a_partition_takes_what_is_on_the_way_and_healing_keeps_the_faults() {
    let path = Path::new(seed());
    let slow = faults(|f| f.delay = Duration::from_millis(100));
    path.relay.set(Direction::ToUpstream, slow.clone());
    let before = path.relay.counters(Direction::ToUpstream);
    path.client.send_to(b"on the way", path.relay.address()).await.unwrap();
    path.taken(before, 1).await;
    path.relay.partition();
    assert!(path.deliver(0..10).await.is_empty());
    assert_eq!(path.relay.counters(Direction::ToUpstream).silenced, 11);
    path.relay.heal();
    assert_eq!(path.relay.faults(Direction::ToUpstream), slow);
    assert!(path.round_trip().await >= Duration::from_millis(100));
}

#[tokio::test]
async fn a_seed_repeats_every_choice_and_one_fault_does_not_move_another() {
    let seed = seed();
    let lossy = faults(|f| f.drop = 0.2);
    let mut runs = Vec::new();
    for also_duplicate in [0.0, 0.0, 0.5] {
        let path = Path::new(seed);
        assert_eq!(path.relay.seed(), seed);
        path.relay.set(Direction::ToUpstream, Faults { duplicate: also_duplicate, ..lossy.clone() });
        let mut arrived = path.deliver(0..500).await;
        arrived.dedup();
        runs.push(arrived);
    }
    assert_eq!(runs[0], runs[1]);
    assert_eq!(runs[0], runs[2]);
}

#[tokio::test]
async fn answers_go_to_the_client_that_asked_and_strangers_are_ignored() {
    let path = Path::new(seed());
    let clients: Vec<_> = (0..8).map(|_| socket([127, 0, 0, 1])).collect();
    let mut buffer = [0; 64];
    let mut seen = HashSet::new();
    let stranger = socket([127, 0, 0, 3]);
    for (number, client) in (0u8..).zip(&clients) {
        client.send_to(&[number], path.relay.address()).await.unwrap();
        let (length, from) = timeout(SOON, path.server.recv_from(&mut buffer)).await.unwrap().unwrap();
        assert!(seen.insert(from), "each client has a socket of its own");
        stranger.send_to(b"forged", from).await.unwrap();
        path.server.send_to(&buffer[..length], from).await.unwrap();
    }
    for (number, client) in (0u8..).zip(&clients) {
        let (length, _) = timeout(SOON, client.recv_from(&mut buffer)).await.unwrap().unwrap();
        assert_eq!(buffer[..length], [number]);
    }
}

#[tokio::test]
async fn clients_are_bounded_and_the_forgotten_one_comes_back_on_another_socket() {
    let path = Path::new(seed());
    let first = socket([127, 0, 0, 1]);
    let from = asked(&first, &path).await;
    // All kept, or the kernel may give one's port to the next, which is then the same client.
    let others: Vec<_> = (0..CLIENTS).map(|_| socket([127, 0, 0, 1])).collect();
    for other in &others {
        asked(other, &path).await;
    }
    assert_ne!(asked(&first, &path).await, from);
}

async fn asked(client: &UdpSocket, path: &Path) -> SocketAddr {
    let mut buffer = [0; 64];
    client.send_to(b"who", path.relay.address()).await.unwrap();
    timeout(SOON, path.server.recv_from(&mut buffer)).await.unwrap().unwrap().1
}

#[tokio::test]
async fn a_server_that_moves_is_followed() {
    let mut path = Path::new(seed());
    path.round_trip().await;
    path.server = socket([127, 0, 0, 4]);
    path.relay.retarget(path.server.local_addr().unwrap());
    path.round_trip().await;
}

#[tokio::test]
async fn a_dropped_relay_frees_its_port() {
    let path = Path::new(seed());
    let address = path.relay.address();
    let upstream = path.server.local_addr().unwrap();
    drop(path.relay);
    let again = Relay::listen(address, upstream, 1).unwrap();
    assert_eq!(again.address(), address);
}
