//! How much of ours may be on its way to a peer: what the path holds, and no more.
//!
//! What is sent beyond that only waits in queues, the network's or the peer's kernel's, and every small call waits
//! behind it, whatever its stream's priority: sixteen bulk bodies between two busy cores made small calls take 5 ms
//! under a window of 4 MiB, and 0.4 ms under one of 256 KiB, at the same throughput. A task of each session keeps the
//! window to the shortest round trip that the connection has seen. The shortest, because a longer one has our own
//! queue in it; a path that becomes longer for good is a new connection's.

use std::{sync::Arc, time::Duration};

use horos_wire::control::Close;

use crate::link::Link;

/// The least: some 200 µs at 10 Gbit/s, which is what a full core sends, so that neither end runs dry between two looks
/// at its socket.
const LEAST: u64 = 256 * 1024;
/// The most, for it is memory: 4 MiB, 80 MB/s at 50 ms.
pub(crate) const MOST: u64 = 4 * 1024 * 1024;
/// Bytes a second that a path is taken to carry at best: 10 Gbit/s.
const RATE: u128 = 1_250_000_000;
/// How often the round trip is looked at.
const EVERY: Duration = Duration::from_millis(250);

/// Keeps the connection's window to its round trip until the session ends.
pub(crate) async fn keep(link: Arc<Link>) -> Close {
    let mut shortest = Duration::MAX;
    loop {
        let rtt = link.quinn.rtt();
        if rtt < shortest {
            shortest = rtt;
            link.quinn.set_send_window(of(rtt));
        }
        tokio::time::sleep(EVERY).await;
    }
}

/// The window of a path with that round trip.
fn of(rtt: Duration) -> u64 {
    let holds = RATE * rtt.as_nanos() / 1_000_000_000;
    u64::try_from(holds).unwrap_or(MOST).clamp(LEAST, MOST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_near_peer_has_a_short_queue_and_a_far_one_all_there_is() {
        assert_eq!(of(Duration::from_micros(50)), LEAST);
        assert_eq!(of(Duration::from_millis(1)), 1_250_000);
        assert_eq!(of(Duration::from_millis(50)), MOST);
        assert_eq!(of(Duration::MAX), MOST);
    }
}
