//! What each client may cost the owner with its bookmarks: so many waits at once, so many reads a second.
//!
//! A table of fixed size: an address has one place in it, under a key that nobody outside knows, and shares it with one in
//! [`PLACES`]. Nobody can fill it, and nothing in it has to be forgotten. An IPv6 /64 counts as one address, as it is one customer.
//! This machine itself is no stranger, and all clients of a proxy on it that nobody has called trusted would count as one: as at the
//! node's port it has no ration, only what all have together.

use std::{
    hash::{BuildHasher as _, RandomState},
    net::IpAddr,
    sync::Arc,
};

use parking_lot::Mutex;
use tokio::time::Instant;

/// Places in the table: 160 KiB.
const PLACES: usize = 4096;

#[derive(Debug)]
pub(super) struct Rations {
    places: Box<[Mutex<Place>]>,
    key: RandomState,
    /// Waits at once.
    waits: u32,
    /// Reads a second, and how many may come at once.
    rate: f64,
    burst: f64,
}

#[derive(Debug)]
struct Place {
    waiting: u32,
    left: f64,
    at: Instant,
}

/// A client's wait, while it lasts; of whoever has no ration, nothing.
#[derive(Debug)]
pub(super) struct Wait(Option<(Arc<Rations>, usize)>);

impl Drop for Wait {
    fn drop(&mut self) {
        if let Some((rations, place)) = &self.0 {
            rations.places[*place].lock().waiting -= 1;
        }
    }
}

fn is_here(client: Option<IpAddr>) -> bool {
    client.is_some_and(|client| client.to_canonical().is_loopback())
}

impl Rations {
    pub(super) fn new(waits: u32, per_second: u32, burst: u32) -> Self {
        let (rate, burst) = (f64::from(per_second), f64::from(burst));
        let now = Instant::now();
        let places = (0..PLACES).map(|_| Mutex::new(Place { waiting: 0, left: burst, at: now })).collect();
        Self { places, key: RandomState::new(), waits, rate, burst }
    }

    fn place(&self, client: Option<IpAddr>) -> usize {
        // Those whose address nobody knows count as one.
        let key = client.map(|client| match client.to_canonical() {
            IpAddr::V4(four) => u64::from(four.to_bits()),
            IpAddr::V6(six) => (six.to_bits() >> 64) as u64 ^ 1 << 63,
        });
        (self.key.hash_one(key) % PLACES as u64) as usize
    }

    /// Lets `client` wait, unless it does so often enough already.
    pub(super) fn wait(self: &Arc<Self>, client: Option<IpAddr>) -> Option<Wait> {
        if is_here(client) {
            return Some(Wait(None));
        }
        let place = self.place(client);
        let mut held = self.places[place].lock();
        if held.waiting >= self.waits {
            return None;
        }
        held.waiting += 1;
        Some(Wait(Some((self.clone(), place))))
    }

    /// Whether `client` may ask the owner once more.
    pub(super) fn ask(&self, client: Option<IpAddr>) -> bool {
        if is_here(client) {
            return true;
        }
        let now = Instant::now();
        let mut place = self.places[self.place(client)].lock();
        place.left = self.burst.min(place.left + now.saturating_duration_since(place.at).as_secs_f64() * self.rate);
        place.at = now;
        let may = place.left >= 1.0;
        if may {
            place.left -= 1.0;
        }
        may
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn client(text: &str) -> Option<IpAddr> {
        Some(text.parse().unwrap())
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_asks_as_often_as_it_may_and_again_when_time_has_passed() {
        let rations = Rations::new(1, 10, 3);
        let asked = |n| (0..n).filter(|_| rations.ask(client("192.0.2.1"))).count();
        assert_eq!(asked(10), 3);
        tokio::time::advance(Duration::from_millis(250)).await;
        assert_eq!(asked(10), 2);
        tokio::time::advance(Duration::from_secs(3600)).await;
        assert_eq!(asked(10), 3, "what was not used does not heap up");
    }

    #[tokio::test]
    async fn waits_are_counted_while_they_last() {
        let rations = Arc::new(Rations::new(2, 1, 1));
        let held = [rations.wait(client("192.0.2.1")), rations.wait(client("192.0.2.1"))];
        assert!(held.iter().all(Option::is_some) && rations.wait(client("192.0.2.1")).is_none());
        drop(held);
        assert!(rations.wait(client("192.0.2.1")).is_some());
    }

    #[tokio::test]
    async fn this_machine_has_no_ration_and_whoever_is_not_known_has_one() {
        let rations = Arc::new(Rations::new(1, 1, 1));
        let here: Vec<_> = (0..10).map(|_| rations.wait(client("127.0.0.1"))).collect();
        assert!(here.iter().all(Option::is_some) && (0..10).all(|_| rations.ask(client("::1"))));
        let _held = rations.wait(None);
        assert!(rations.wait(None).is_none() && rations.ask(None) && !rations.ask(None));
    }

    #[tokio::test]
    async fn a_network_of_ipv6_is_one_client_and_two_addresses_are_hardly_ever() {
        let rations = Rations::new(1, 1, 1);
        assert_eq!(rations.place(client("2001:db8::1")), rations.place(client("2001:db8::ffff:1")));
        assert_eq!(rations.place(client("192.0.2.1")), rations.place(client("::ffff:192.0.2.1")));
        let mut places: Vec<usize> = (0..=255).map(|n| rations.place(client(&format!("192.0.2.{n}")))).collect();
        places.sort_unstable();
        places.dedup();
        assert!(places.len() > 200, "{}", places.len());
    }
}
