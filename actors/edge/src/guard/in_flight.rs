//! Requests in hand: how many there may be, in all and from one address.
//!
//! Owned by the guard. A [`Permit`] is taken when a request has found its service, goes with the answer as [`Held`], and is
//! given back when the answer's body has ended or was dropped: until then the request's body, the service's work and the
//! answer are held too.
//!
//! Addresses are counted without a table of them. There are two rows of counters, in each of which an address has a place
//! by a hash that nobody outside can foresee, and of its two counters the lower counts (a count-min sketch, Cormode and
//! Muthukrishnan 2005). Nothing is allocated, locked or forgotten, and no address is counted too low. One is counted too
//! high only where others that are at their limit stand in both of its places: with the fewest that fill the port, once
//! in 65,536 (see [`PLACES`]).

use std::{
    fmt,
    hash::{BuildHasher as _, RandomState},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicUsize, Ordering::Relaxed},
    },
    task::{Context, Poll},
};

use bytes::Bytes;
use http_body::{Frame, SizeHint};

use crate::{Body, rate::Key};

/// Places in a row for each address that can be at its limit while the port is not full: such a one stands in a given place
/// with a chance of 1 in 256, and in both of somebody's with 1 in 256².
const PLACES: usize = 256;
/// A row is at least 4 KiB and at most 4 MiB, whatever the limits are.
const ROW: (usize, usize) = (1 << 10, 1 << 20);

/// Counts them.
#[derive(Debug)]
pub(crate) struct InFlight {
    most: usize,
    most_an_address: u32,
    all: AtomicUsize,
    rows: [Box<[AtomicU32]>; 2],
    hasher: RandomState,
}

/// Why there is no permit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Full {
    All,
    Address,
}

impl InFlight {
    pub(crate) fn new(most: usize, most_an_address: usize) -> Arc<Self> {
        let at_their_limit = most.div_ceil(most_an_address.max(1));
        let places = at_their_limit.saturating_mul(PLACES).clamp(ROW.0, ROW.1).next_power_of_two();
        let row = || std::iter::repeat_with(AtomicU32::default).take(places).collect();
        Arc::new(Self {
            most,
            most_an_address: u32::try_from(most_an_address).unwrap_or(u32::MAX),
            all: AtomicUsize::new(0),
            rows: [row(), row()],
            hasher: RandomState::new(),
        })
    }

    /// One more in hand, from `address` where that is limited.
    pub(crate) fn take(self: &Arc<Self>, address: Option<&Key>) -> Result<Permit, Full> {
        let places = address.map(|address| self.places(address));
        let all = self.all.fetch_add(1, Relaxed);
        // From here on, dropping it gives back what was taken. Two that come at once at the limit may both be refused.
        let lower = places.map_or(0, |[one, other]| one.fetch_add(1, Relaxed).min(other.fetch_add(1, Relaxed)));
        let permit = Permit { counts: self.clone(), address: address.copied() };
        match (lower >= self.most_an_address, all >= self.most) {
            (true, _) => Err(Full::Address),
            (_, true) => Err(Full::All),
            _ => Ok(permit),
        }
    }

    fn places(&self, address: &Key) -> [&AtomicU32; 2] {
        // Both halves of one hash: it is keyed, and its bits are independent.
        let hash = self.hasher.hash_one(address);
        let place = |row: usize, bits: u32| &self.rows[row][bits as usize & (self.rows[row].len() - 1)];
        [place(0, hash as u32), place(1, (hash >> 32) as u32)]
    }
}

/// A request in hand.
pub(crate) struct Permit {
    counts: Arc<InFlight>,
    address: Option<Key>,
}

impl fmt::Debug for Permit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Permit")
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.counts.all.fetch_sub(1, Relaxed);
        if let Some(address) = &self.address {
            for place in self.counts.places(address) {
                place.fetch_sub(1, Relaxed);
            }
        }
    }
}

/// An answer's body, and the request's place among those in hand, which it gives up when it has ended or is dropped.
#[derive(Debug)]
pub struct Held {
    body: Body,
    permit: Option<Permit>,
}

impl Held {
    pub(crate) fn new(body: Body, permit: Option<Permit>) -> Self {
        Self { body, permit }
    }
}

impl From<Body> for Held {
    fn from(body: Body) -> Self {
        Self { body, permit: None }
    }
}

impl http_body::Body for Held {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let frame = Pin::new(&mut self.body).poll_frame(cx);
        if let Poll::Ready(None | Some(Err(_))) = &frame {
            self.permit = None;
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt as _;

    use super::*;
    use crate::rate::address_key;

    fn key(address: &str) -> Key {
        address_key(address.parse().unwrap())
    }

    #[test]
    fn an_address_has_so_many_and_all_together_so_many() {
        let counts = InFlight::new(5, 2);
        let (one, other) = (key("192.0.2.1"), key("2001:db8::1"));
        let first = counts.take(Some(&one)).unwrap();
        let mut held = vec![counts.take(Some(&one)).unwrap()];
        for _ in 0..10 {
            assert_eq!(counts.take(Some(&one)).unwrap_err(), Full::Address);
        }
        held.push(counts.take(Some(&key("2001:db8::2"))).unwrap());
        held.push(counts.take(Some(&other)).unwrap());
        assert_eq!(counts.take(Some(&other)).unwrap_err(), Full::Address, "a /64 is one address");
        held.push(counts.take(None).unwrap());
        assert_eq!(counts.take(None).unwrap_err(), Full::All);
        drop(first);
        held.push(counts.take(Some(&one)).unwrap());
        drop(held);
        assert_eq!(counts.all.load(Relaxed), 0);
        assert!(counts.rows.iter().flatten().all(|place| place.load(Relaxed) == 0), "nothing is left");
    }

    #[test]
    fn whoever_fills_the_port_shuts_out_hardly_any_other_address() {
        let counts = InFlight::new(16_384, 512);
        let mut held = Vec::new();
        // As many as can be at their limit, and one permit left.
        for address in 0..32_u32 {
            let address = address_key(std::net::Ipv4Addr::from_bits(address).into());
            held.extend((0..512).map_while(|_| counts.take(Some(&address)).ok()));
        }
        held.pop();
        let others = 100_000;
        let refused = (0..others).filter(|address| {
            let address = address_key(std::net::Ipv4Addr::from_bits(1 << 24 | address).into());
            counts.take(Some(&address)).is_err_and(|full| full == Full::Address)
        });
        let refused = refused.count();
        assert!(refused < 30, "{refused} of {others}, where two are to be expected");
    }

    #[tokio::test]
    async fn a_place_is_held_until_the_body_has_ended_or_is_dropped() {
        let counts = InFlight::new(1, 1);
        let held = || Held::new(Body::from("some"), Some(counts.take(None).unwrap()));
        let mut body = held();
        assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "some");
        assert_eq!(counts.take(None).unwrap_err(), Full::All);
        assert!(body.frame().await.is_none());
        let second = held();
        drop(body);
        assert_eq!(counts.take(None).unwrap_err(), Full::All);
        drop(second);
        drop(held());
    }
}
