//! Hostile peers, as a process of their own that is given the CPU only when nobody else wants it: on a network they would
//! burn their own. Bounded in number and time; whoever started them ends them.
//!
//! HTTP/2 is written frame by frame (RFC 9113 §4.1), HTTP/3 stream by stream (RFC 9114 §7): no library would send this.

mod ends;
mod frames;
mod guessing;
mod strikes;

use std::net::IpAddr;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use quinn::Endpoint;
use rustls::ClientConfig;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::time::{Instant, sleep};

use crate::harness::http::Speaks;
use crate::harness::site::dialer;
use crate::harness::{Process, Site, open_files};

/// Between two bytes of somebody slow: often enough that no single silence is long.
const DRIP: Duration = Duration::from_millis(300);
/// Between the end of one connection and the next of the same attacker.
const AGAIN: Duration = Duration::from_millis(20);
/// For all attackers to have begun.
const GATHERS: Duration = Duration::from_secs(180);

/// How many hosts the attackers have: as many addresses of loopback's, none of them that of whom they disturb.
const HOSTS: u64 = 64;

/// The host of the attacker of this number.
fn host(number: u64) -> IpAddr {
    [127, 0, 0, 20 + (number % HOSTS) as u8].into()
}

/// What is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Attack {
    /// TLS, a byte at a time.
    SlowHandshake,
    /// The head of a request, a byte at a time.
    SlowHead(Speaks),
    /// A request's body that stops coming.
    SlowBody(Speaks),
    /// A body beyond the limit: half of them say so before it comes, half never say where it ends.
    LargeBody(Speaks),
    /// An answer of 8 MiB that nobody takes.
    SlowReader(Speaks),
    /// A connection, and nothing.
    Idle,
    /// One field of 1 MiB.
    LongField(Speaks),
    /// 100,000 fields.
    ManyFields,
    /// 16 KiB of references to one large entry of the table (HPACK bomb, CVE-2016-6581).
    HpackBomb,
    /// Requests cancelled as soon as they are made (CVE-2023-44487).
    RapidReset,
    /// A head that goes on and on (CVE-2024-27316).
    Continuation,
    /// Frames without content (CVE-2019-9518), and SETTINGS and PING whose answers nobody takes (CVE-2019-9512, 9515).
    EmptyFrames,
    /// HTTP/3 frames that announce 1 GiB, on 256 streams a connection.
    Announce(Frame),
    /// First packets of QUIC handshakes that never go on.
    HalfOpen,
    /// Keys that nobody made.
    Guesses,
}

/// Which frame of HTTP/3 announces more than anybody takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Frame {
    /// Read as a whole before any of it is understood.
    Headers,
    /// Of a type that is reserved to be ignored (RFC 9114 §7.2.8).
    Unknown,
}

/// An attack on a node.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Order {
    pub(super) attack: Attack,
    pub(super) site: Site,
    /// A key, for attacks by somebody who has one; the form of one, for who guesses.
    pub(super) key: String,
    /// How many attackers at once.
    pub(super) amount: u64,
    /// When it stops by itself.
    pub(super) seconds: u64,
}

/// An attack that is under way.
pub(super) struct Raid(Process);

impl Raid {
    /// Begins, and waits until every attacker has.
    pub(super) async fn begin(order: &Order) -> Self {
        let mut command = Command::new("nice");
        command.args(["-n", "19"]).arg(std::env::current_exe().unwrap());
        command.args(["--exact", "edge::attacks::attacker", "--ignored", "--nocapture"]);
        command.env("ATTACK", serde_json::to_string(order).unwrap());
        let mut process = Process::spawn(&format!("{:?}", order.attack), command).unwrap();
        process.wait_for_line("all have begun", GATHERS, |line| line.contains("all have begun")).await;
        Self(process)
    }

    /// The last that was said: `begun`, `done`, and by kind of attack what came back.
    pub(super) fn tally(&self) -> Value {
        let lines = self.0.lines();
        lines.iter().rev().find_map(|line| serde_json::from_str(line.strip_prefix("tally ")?).ok()).unwrap_or_default()
    }

    /// Waits until a tally is as wanted.
    pub(super) async fn until(&mut self, what: &str, limit: Duration, wanted: impl Fn(&Value) -> bool) -> Value {
        let mark = self.0.mark();
        let told = |line: &str| line.strip_prefix("tally ").and_then(|text| serde_json::from_str::<Value>(text).ok());
        let line = self.0.wait_for_line_since(mark, what, limit, |line| told(&line.text).is_some_and(|tally| wanted(&tally))).await;
        told(&line.text).unwrap()
    }
}

#[derive(Default)]
struct Tally {
    /// Attackers that are as far as they wanted to get, or were ended on the way, at least once.
    begun: AtomicU64,
    /// Attacks that were over, by whoever's doing.
    done: AtomicU64,
    /// Those that could not even begin.
    refused: AtomicU64,
    /// Guesses answered with 401, with 429, and with anything else.
    answers: [AtomicU64; 3],
}

/// Everything that attackers share.
struct World {
    order: Order,
    http1: Arc<ClientConfig>,
    http2: Arc<ClientConfig>,
    http3: Arc<ClientConfig>,
    /// One for each of [`HOSTS`].
    endpoints: Vec<Endpoint>,
    tally: Tally,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "started by the tests about hostile peers, which end it"]
async fn attacker() {
    let Some(order) = std::env::var_os("ATTACK") else { return };
    let order: Order = serde_json::from_str(order.to_str().unwrap()).unwrap();
    // A socket for each attacker, or two for each of a few; the node has raised its own limit in the same way.
    open_files(order.amount + 512);
    let (amount, until) = (order.amount, Instant::now() + Duration::from_secs(order.seconds));
    let tls = |alpn: &str| Arc::new(order.site.tls(&[alpn], None));
    let world = Arc::new(World {
        http1: tls("http/1.1"),
        http2: tls("h2"),
        http3: tls("h3"),
        endpoints: (0..HOSTS).map(|number| dialer(host(number))).collect(),
        tally: Tally::default(),
        order,
    });
    for number in 0..amount {
        let world = world.clone();
        tokio::spawn(async move {
            let mut first = true;
            loop {
                if Box::pin(world.strike(number, &mut first)).await.is_err() {
                    world.tally.refused.fetch_add(1, Relaxed);
                    // It did not even get in: to knock faster only keeps out the others who attack.
                    sleep(AGAIN * 10).await;
                }
                world.tally.done.fetch_add(1, Relaxed);
                world.begun(&mut first);
                sleep(AGAIN).await;
            }
        });
        // Gathered over a while: what is attacked is not the accept queue of this machine.
        if number % 10 == 9 {
            sleep(Duration::from_millis(10)).await;
        }
    }
    let mut said = false;
    while Instant::now() < until {
        let tally = &world.tally;
        if !said && tally.begun.load(Relaxed) >= amount {
            said = true;
            println!("all have begun");
        }
        let [denied, told_to_wait, other] = tally.answers.each_ref().map(|count| count.load(Relaxed));
        let told = serde_json::json!({
            "begun": tally.begun.load(Relaxed), "done": tally.done.load(Relaxed), "refused": tally.refused.load(Relaxed),
            "denied": denied, "told_to_wait": told_to_wait, "other": other,
        });
        println!("tally {told}");
        sleep(Duration::from_millis(100)).await;
    }
}
