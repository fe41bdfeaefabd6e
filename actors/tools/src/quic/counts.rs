//! How many there are of each: of an address, of a principal.

use std::{
    collections::HashMap,
    hash::Hash,
    net::{IpAddr, Ipv6Addr},
    sync::Arc,
};

use parking_lot::Mutex;

/// A network of IPv6 is one place: who has an address there has them all.
pub(super) fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => address.into(),
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() >> 64 << 64).into(),
    }
}

/// How many there are of each.
pub(super) struct Counts<K>(Arc<Mutex<HashMap<K, usize>>>);

impl<K> Default for Counts<K> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<K: Clone + Eq + Hash> Counts<K> {
    /// One more, while there are fewer than `most`.
    pub(super) fn enter(&self, key: K, most: usize) -> Option<Turn<K>> {
        let mut counts = self.0.lock();
        let count = counts.entry(key.clone()).or_default();
        if *count >= most {
            return None;
        }
        *count += 1;
        Some(Turn { counts: self.0.clone(), key })
    }
}

/// One of them.
pub(super) struct Turn<K: Eq + Hash> {
    counts: Arc<Mutex<HashMap<K, usize>>>,
    key: K,
}

impl<K: Eq + Hash> Drop for Turn<K> {
    fn drop(&mut self) {
        let mut counts = self.counts.lock();
        if let Some(count) = counts.get_mut(&self.key) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_comes_back_and_a_network_is_one_place() {
        let counts = Counts::default();
        let one = counts.enter("a", 2);
        let two = counts.enter("a", 2);
        assert!(one.is_some() && two.is_some() && counts.enter("a", 2).is_none() && counts.enter("b", 2).is_some());
        drop(one);
        assert!(counts.enter("a", 2).is_some());
        drop(two);
        assert!(counts.0.lock().is_empty(), "nobody is remembered who has gone");
        let address = |text: &str| network(text.parse().unwrap());
        assert_eq!(address("2001:db8::1"), address("2001:db8::ffff:1"));
        assert_ne!(address("2001:db8:0:1::1"), address("2001:db8::1"));
        assert_eq!(address("::ffff:192.0.2.1"), address("192.0.2.1"));
        assert_ne!(address("192.0.2.2"), address("192.0.2.1"));
    }
}
