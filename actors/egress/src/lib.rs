//! Outbound HTTP: the only way out of Horos, and a narrow one.
//!
//! Owns every connection by HTTP to anybody, a breaker and a rate for each host, and the rules of who may be reached. No actor: an
//! [`Egress`] is a value that is cloned, and whatever task sends a request drives it; only the connections have tasks of their own,
//! which end with them. `nodes` makes one for the owner's endpoints and one for what strangers name.
//!
//! What it promises:
//! - A URL is taken apart once ([`Target`]), and what it means is decided where it is connected to: **every address that a name
//!   resolves to is checked, each time, on each hop, and the one that was checked is the one that is connected to** ([`address`]).
//!   There is no second look-up to lie to. A name with one forbidden address is refused; so is one that cannot be resolved.
//! - What is inside is reached through [`Trusted`] endpoints only, each a host or a network *and* a port, and never by a redirect.
//! - Redirects are responses, unless asked for; then each hop is as new, and takes no key along to another origin.
//! - Everything ends: bodies by their size, with an error and never cut short; every wait by a timeout; all of it by a deadline.
//!   Requests, connections and hosts are counted, and more of them are refused at once. Nothing is decompressed.
//! - One host's trouble is its own: pools, breakers, rates and counts belong to an origin.
//! - An error says whether the request can have had an effect ([`EgressError::may_have_been_sent`]).
//!
//! What it leaves out: proxies (none is used, whatever the environment says), cookies, caches, retries (but of what was not sent),
//! `Alt-Svc` (over HTTP/3 goes what its caller sends over HTTP/3, and nothing because a host says so: another port is another service,
//! and the rules are about ports), a way to leave a certificate unchecked.
//!
//! # Why hyper and not reqwest
//! reqwest has a hook for its resolver, but does not ask it about hosts that are addresses already, so that literals, redirects and
//! proxies each need a check of their own, elsewhere than where the connection is made. Its pools belong to a client and not to a
//! host, and its errors do not say whether a request was written. Here one function resolves, checks and connects, on the crates
//! that are in the tree anyway.

pub mod address;
mod body;
mod breaker;
mod carrier;
mod client;
mod connect;
mod dial;
mod error;
mod head;
mod hosts;
mod http3;
mod options;
mod policy;
mod pool;
mod quic;
mod redirect;
mod resolve;
mod target;
mod tls;

pub use self::{
    address::{Forbidden, Kind, Network, NetworkError},
    body::ResponseBody,
    breaker::Circuit,
    client::{Egress, Status},
    connect::{Connect, Connecting, TcpConnector},
    error::{BodyError, Bound, BoxError, EgressError, RedirectError, RequestBodyError, RequestError},
    hosts::HostStatus,
    options::{Bounds, BreakerOptions, Limits, MAX_REDIRECTS, Options, OptionsError, Roots, Timeouts},
    policy::{PlainHttp, Refusal, Trusted, TrustedError},
    resolve::{Resolve, Resolving, SystemResolver},
    target::{Host, MAX_URL, Origin, Scheme, Target, UrlError},
};
