//! The node's sections but those of HTTP: each field with its default, its bounds and the comment of the written-out file.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use horos_egress::Trusted;
use horos_wire::{ClusterName, NodeName, Role};

use super::{
    Advertised, BO_PORT, ByteSize, ms,
    reader::{choice, section},
    secs,
};

/// Longest `liveness.down`: the link's connections end after 5 s of silence (RFC 9000 §10.1), whatever is waited for.
const MAX_DOWN: Duration = ms(4500);

section! {
    /// The cluster this node belongs to.
    pub struct Cluster = "cluster" {
        /// Its name, as in the certificates; two clusters never talk.
        name = "name": ClusterName = "horos".parse().expect("a literal name that keeps the rules");
    }
}

section! {
    /// This node.
    pub struct Node = "node" {
        /// Its name, as in its certificate. Default: the role and -1.
        name = "name": NodeName = "bo-1".parse().expect("a literal name that keeps the rules");
        /// bo (owns data) or fo (faces the public), as in its certificate.
        role = "role": Role = Role::Bo;
    }
}

section! {
    /// Where this node is reached.
    pub struct Listen = "listen" {
        /// Address for nodes, the command line and HTTP, UDP and TCP alike. Default: port 7400 on a BO, 7401 on an FO.
        cluster = "cluster": SocketAddr = SocketAddr::from(([127, 0, 0, 1], BO_PORT));
        /// Another address for the public's HTTP, UDP and TCP alike; nodes, the command line and /metrics then stay on
        /// `cluster` alone. Without it everything is served on `cluster`.
        public = "public": Option<SocketAddr> = None;
        /// Where other nodes are told to dial this one, four places at most: an IP address, or host:port. Without it the address
        /// that `cluster` is bound to; one that listens on every address (`0.0.0.0`, `::`) then tells none, and only those find
        /// it that have it among their seeds. Behind a translation of addresses: what is seen from outside. A name is looked up
        /// when the node starts.
        advertise = "advertise": Vec<Advertised> = Vec::new();
    }
}

section! {
    /// When another node counts as gone. Each must leave room for the one before it.
    pub struct Liveness = "liveness" {
        /// Time between heartbeats.
        heartbeat = "heartbeat": Duration = ms(500), within ms(10)..=secs(1);
        /// Without a heartbeat for so long, a node is suspect: two may be lost.
        suspect = "suspect": Duration = ms(1500), within ms(20)..=secs(4);
        /// Without one for so long, it is down and calls in flight end as unknown. QUIC itself gives up after 5 s.
        down = "down": Duration = ms(2500), within ms(30)..=MAX_DOWN;
    }
}

section! {
    /// What this node takes on at most. Beyond it senders wait or are told "overloaded".
    pub struct Limits = "limits" {
        /// Messages waiting for one actor, unless the service says otherwise.
        mailbox = "mailbox": u32 = 1024, within 1..=1_000_000;
        /// Messages from one peer that are dispatched and not yet handled; further calls are refused. Eight slow actors fill it.
        in_flight_messages = "in-flight-messages": u32 = 8192, within 1..=1_000_000;
        /// Bytes of the small messages among them, and again of the large ones.
        in_flight_bytes = "in-flight-bytes": ByteSize = ByteSize::mib(8), within ByteSize::kib(64)..=ByteSize(4 << 30);
        /// Encoded bytes waiting to be written to one peer; senders wait for room until their deadline.
        out_buffer = "out-buffer": ByteSize = ByteSize::mib(1), within ByteSize::kib(64)..=ByteSize(1 << 30);
        /// Sessions open at a time, nodes and command lines together.
        connections = "connections": u32 = 1024, within 2..=65_536;
        /// Handshakes in progress at a time; whoever comes beyond is refused and may try again.
        handshakes = "handshakes": u32 = 1024, within 1..=65_536;
        /// Of those, from one address; beyond it an address must first show that it is its own (RFC 9000 §8.1.2).
        /// Many command lines at once, and nodes behind one NAT, come from one address.
        handshakes_per_address = "handshakes-per-address": u32 = 64, within 1..=65_536;
        /// A handshake takes at most so long.
        handshake_timeout = "handshake-timeout": Duration = secs(3), within ms(100)..=secs(30);
    }
}

choice! {
    /// When SQLite waits for the disk (SQLite, PRAGMA synchronous).
    pub enum Synchronous {
        /// Before a commit is answered: a reply means that it survives a power cut.
        Full = "full",
        /// At checkpoints: a power cut may lose the last commits, never damage the file.
        Normal = "normal",
    }
}

section! {
    /// How databases are opened and written.
    pub struct Store = "store" {
        /// full: a reply means that the commit is on disk; normal: a power cut may lose the last ones.
        synchronous = "synchronous": Synchronous = Synchronous::Full;
        /// Commands that share a transaction at most.
        group_commit = "group-commit": u32 = 256, within 1..=65_536;
        /// A transaction waits for more commands at most so long; 0s takes only what is already queued.
        group_wait = "group-wait": Duration = ms(0), within ms(0)..=secs(1);
        /// Commands that wait for the writer of one database.
        queue = "queue": u32 = 1024, within 1..=1_000_000;
        /// Read-only connections to each database.
        readers = "readers": u32 = 4, within 1..=64;
        /// How long a statement waits for another process's lock.
        busy_timeout = "busy-timeout": Duration = secs(5), within ms(0)..=secs(60);
    }
}

choice! {
    /// How threads share the work.
    pub enum Layout {
        /// One thread for QUIC and the node's own workings, others for services: a busy service cannot hold up heartbeats.
        Split = "split",
        /// Everything on one thread: least CPU a message, for services that never block.
        Single = "single",
    }
}

section! {
    /// Threads.
    pub struct Runtime = "runtime" {
        /// split: services run beside the thread that drives QUIC; single: all on one thread. On a single core split is
        /// right as well: the kernel shares the core, so that a service that never yields holds up no heartbeat.
        layout = "layout": Layout = Layout::Split;
        /// Threads for services when split; 0 takes one a service, eight at most. Each service stays on one, so that one
        /// which never yields holds up only those that share its thread.
        service_threads = "service-threads": u16 = 0, within 0..=1024;
        /// Threads for HTTP when split; 0 takes one a core, less the one that drives QUIC, and one at least.
        http_threads = "http-threads": u16 = 0, within 0..=1024;
    }
}

choice! {
    /// How log lines look.
    pub enum LogFormat {
        /// For people.
        Text = "text",
        /// One JSON object a line.
        Json = "json",
    }
}

section! {
    /// What is logged, to stderr.
    pub struct Log = "log" {
        /// error, warn, info, debug or trace; also by module, as in "info,horos_link=debug".
        level = "level": String = "info".to_owned();
        /// text or json.
        format = "format": LogFormat = LogFormat::Text;
    }
}

section! {
    /// The node's key and certificates.
    pub struct Identity = "identity" {
        /// Directory; a relative path starts at the data directory.
        dir = "dir": PathBuf = PathBuf::from("identity");
    }
}

section! {
    /// What this node asks for over HTTP, for routes of the strategy `http`.
    pub struct Egress = "egress" {
        /// Endpoints that may be inside, as host:port, address:port or network:port ("10.1.0.0/16:8080"). Whatever else leads to a
        /// private, loopback or link-local address is refused where it is connected to, whichever name it was asked by.
        trusted = "trusted": Vec<Trusted> = Vec::new();
        /// Files of certificates (PEM) of authorities that are believed beside the system's; a relative path starts at the data
        /// directory.
        authorities = "authorities": Vec<PathBuf> = Vec::new();
        /// Requests in flight to one host; more are refused.
        in_flight_per_host = "in-flight-per-host": u32 = 256, within 1..=65_536;
        /// Requests a second to one host; more are refused.
        rate_per_host = "rate-per-host": u32 = 1_000, within 1..=1_000_000;
    }
}

section! {
    /// A graceful stop.
    pub struct Drain = "drain" {
        /// Work in hand gets so long to end before it is cut off.
        timeout = "timeout": Duration = secs(10), within ms(0)..=secs(3600);
        /// Before that, /readyz says no for so long while all is still served. Raise it behind a load balancer, to more
        /// than the time between two of its looks: it then sends nobody here any more when connections are refused.
        notice = "notice": Duration = ms(0), within ms(0)..=secs(300);
    }
}
