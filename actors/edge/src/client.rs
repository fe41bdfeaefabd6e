//! Who a request really comes from, where proxies stand between.
//!
//! Only a proxy that the configuration names is believed, and each only about the hop before it: the chain is read from
//! its right end, past the proxies that are trusted, to the first address that is not. What a client wrote into the
//! header itself stands further left, and is never reached.

use std::net::{IpAddr, SocketAddr};

use http::{HeaderMap, HeaderName, HeaderValue, header::FORWARDED};

use crate::Forwarded;

/// The address that a request comes from: of the client itself, not of a trusted proxy before it. An extension of every
/// request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Client(pub IpAddr);

/// Hops that are read; a longer chain is a fault or an attack, and the address found by then is used.
const MAX_HOPS: usize = 16;

const X_FORWARDED_FOR: &str = "x-forwarded-for";

/// Which family a header belongs to that says where a request comes from, or what it was asked as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Claim {
    /// `X-Forwarded-…`, and `X-Real-IP` which goes along with it.
    XForwarded,
    Forwarded,
    /// Of one product each: nobody here reads them, so nobody is to find them.
    Other,
}

fn claim(name: &str) -> Option<Claim> {
    match name {
        "forwarded" => Some(Claim::Forwarded),
        "x-real-ip" => Some(Claim::XForwarded),
        "true-client-ip"
        | "cf-connecting-ip"
        | "fastly-client-ip"
        | "x-client-ip"
        | "x-cluster-client-ip"
        | "x-envoy-external-address"
        | "x-original-forwarded-for"
        | "x-original-host"
        | "x-original-url"
        | "x-rewrite-url" => Some(Claim::Other),
        name => name.starts_with("x-forwarded").then_some(Claim::XForwarded),
    }
}

/// Whether a header says where a request comes from or what it was asked as. From a peer that is not trusted none of them
/// goes further, so that no service believes it either.
pub(crate) fn is_claim(name: &str) -> bool {
    claim(name).is_some()
}

/// The proxies that are believed.
#[derive(Clone, Debug)]
pub(crate) struct Proxies {
    networks: Box<[Network]>,
    forwarded: Forwarded,
}

#[derive(Clone, Copy, Debug)]
struct Network {
    /// As IPv6, where an IPv4 address is mapped.
    base: u128,
    mask: u128,
}

impl Proxies {
    pub(crate) fn new(networks: &[(IpAddr, u8)], forwarded: Forwarded) -> Self {
        let network = |(address, prefix): &(IpAddr, u8)| {
            let prefix = match address {
                IpAddr::V4(_) => 96 + u32::from(*prefix).min(32),
                IpAddr::V6(_) => u32::from(*prefix).min(128),
            };
            let mask = u128::MAX.checked_shl(128 - prefix).unwrap_or(0);
            Network { base: bits(*address) & mask, mask }
        };
        Self { networks: networks.iter().map(network).collect(), forwarded }
    }

    pub(crate) fn trusts(&self, address: IpAddr) -> bool {
        self.networks.iter().any(|network| bits(address) & network.mask == network.base)
    }

    /// Who sent a request that came from the trusted `proxy`: what the one header says that it keeps. The other one it may
    /// pass on as the client wrote it.
    pub(crate) fn client(&self, proxy: IpAddr, headers: &HeaderMap) -> IpAddr {
        match self.forwarded {
            Forwarded::XForwardedFor => self.walk(proxy, headers, X_FORWARDED_FOR, plain),
            Forwarded::Forwarded => self.walk(proxy, headers, FORWARDED.as_str(), element),
        }
    }

    /// Takes out what no service is to believe: of a stranger all, of a trusted proxy what it does not write itself.
    pub(crate) fn hush(&self, is_trusted: bool, headers: &mut HeaderMap) {
        let believed = match self.forwarded {
            _ if !is_trusted => None,
            Forwarded::XForwardedFor => Some(Claim::XForwarded),
            Forwarded::Forwarded => Some(Claim::Forwarded),
        };
        let out = |name: &&HeaderName| claim(name.as_str()).is_some_and(|claim| Some(claim) != believed);
        let names: Vec<HeaderName> = headers.keys().filter(out).cloned().collect();
        for name in names {
            headers.remove(name);
        }
    }

    fn walk(&self, proxy: IpAddr, headers: &HeaderMap, name: &str, read: fn(&str) -> Option<IpAddr>) -> IpAddr {
        let mut last = proxy;
        // A field that came in several lines is one list in their order (RFC 9110 §5.3).
        let lines: Vec<&HeaderValue> = headers.get_all(name).iter().collect();
        let hops = lines.iter().rev().flat_map(|line| line.to_str().unwrap_or("").rsplit(','));
        for hop in hops.take(MAX_HOPS) {
            // What cannot be read was said by a hop that is trusted, about one that cannot be told: that hop it is.
            let Some(address) = read(hop.trim()) else { break };
            last = address;
            if !self.trusts(address) {
                break;
            }
        }
        last
    }
}

fn bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(four) => four.to_ipv6_mapped().to_bits(),
        IpAddr::V6(six) => six.to_bits(),
    }
}

/// An address as `X-Forwarded-For` has it: with or without a port, an IPv6 one with or without brackets.
fn plain(text: &str) -> Option<IpAddr> {
    let bracketed = || text.strip_prefix('[')?.strip_suffix(']')?.parse().ok();
    let address: Option<IpAddr> =
        text.parse().ok().or_else(bracketed).or_else(|| text.parse::<SocketAddr>().ok().map(|with_port| with_port.ip()));
    address.map(|address| address.to_canonical())
}

/// The `for` of one element of `Forwarded` (RFC 7239 §4): a token, or quoted where it holds a colon.
fn element(text: &str) -> Option<IpAddr> {
    let (_, value) = text.split(';').filter_map(|pair| pair.split_once('=')).find(|(name, _)| name.trim().eq_ignore_ascii_case("for"))?;
    let value = value.trim();
    plain(value.strip_prefix('"').and_then(|value| value.strip_suffix('"')).unwrap_or(value))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn proxies(forwarded: Forwarded) -> Proxies {
        Proxies::new(&[(ip("10.0.0.0"), 8), (ip("2001:db8:aa::"), 48), (ip("192.0.2.7"), 32)], forwarded)
    }

    fn headers(lines: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(*name, value.parse().unwrap());
        }
        headers
    }

    fn client(forwarded: Forwarded, lines: &[(&'static str, &str)]) -> IpAddr {
        proxies(forwarded).client(ip("10.0.0.1"), &headers(lines))
    }

    #[test]
    fn only_the_networks_that_are_named_are_trusted() {
        let proxies = proxies(Forwarded::default());
        for (address, trusted) in [
            ("10.255.0.1", true),
            ("::ffff:10.1.2.3", true),
            ("11.0.0.1", false),
            ("192.0.2.7", true),
            ("192.0.2.6", false),
            ("2001:db8:aa:ffff::1", true),
            ("2001:db8:ab::1", false),
        ] {
            assert_eq!(proxies.trusts(ip(address)), trusted, "{address}");
        }
        assert!(!Proxies::new(&[], Forwarded::default()).trusts(ip("127.0.0.1")));
        assert!(Proxies::new(&[(ip("::"), 0)], Forwarded::default()).trusts(ip("203.0.113.1")), "everybody, where it says so");
    }

    #[test]
    fn the_chain_is_read_from_the_right_and_what_the_client_wrote_is_not_reached() {
        for (chain, expected) in [
            ("203.0.113.9", "203.0.113.9"),
            ("1.2.3.4, 203.0.113.9", "203.0.113.9"),
            ("1.2.3.4,203.0.113.9 , 10.9.9.9", "203.0.113.9"),
            ("203.0.113.9:4711", "203.0.113.9"),
            ("2001:db8:1::1", "2001:db8:1::1"),
            ("[2001:db8:1::1]", "2001:db8:1::1"),
            ("[2001:db8:1::1]:443", "2001:db8:1::1"),
            ("::ffff:203.0.113.9", "203.0.113.9"),
            // All trusted: the farthest of them.
            ("10.0.0.3, 10.0.0.2", "10.0.0.3"),
            // Not to be read: the hop that said so.
            ("203.0.113.9, unknown, 10.0.0.2", "10.0.0.2"),
            ("nonsense", "10.0.0.1"),
            ("", "10.0.0.1"),
        ] {
            assert_eq!(client(Forwarded::XForwardedFor, &[("x-forwarded-for", chain)]), ip(expected), "{chain}");
        }
        let lines = [("x-forwarded-for", "1.2.3.4"), ("x-forwarded-for", "203.0.113.9"), ("x-forwarded-for", "10.0.0.2")];
        assert_eq!(client(Forwarded::XForwardedFor, &lines), ip("203.0.113.9"));
        let endless = vec!["10.0.0.2"; 1000].join(",");
        assert_eq!(client(Forwarded::XForwardedFor, &[("x-forwarded-for", &endless)]), ip("10.0.0.2"));
    }

    #[test]
    fn forwarded_is_read_as_its_standard_has_it() {
        for (chain, expected) in [
            ("for=203.0.113.9", "203.0.113.9"),
            ("proto=https;For=\"203.0.113.9:80\";by=10.0.0.1", "203.0.113.9"),
            ("for=1.2.3.4, for=\"[2001:db8:1::1]:4711\", for=10.0.0.2", "2001:db8:1::1"),
            ("for=203.0.113.9, for=_hidden", "10.0.0.1"),
            ("for=203.0.113.9, by=10.0.0.2", "10.0.0.1"),
        ] {
            assert_eq!(client(Forwarded::Forwarded, &[("forwarded", chain)]), ip(expected), "{chain}");
        }
    }

    #[test]
    fn one_header_is_believed_and_the_other_goes_no_further() {
        let lines = [
            ("x-forwarded-for", "203.0.113.9"),
            ("forwarded", "for=203.0.113.10"),
            ("x-forwarded-proto", "https"),
            ("x-real-ip", "1.2.3.4"),
            ("cf-connecting-ip", "1.2.3.4"),
            ("x-original-url", "/admin"),
            ("accept", "*/*"),
        ];
        assert_eq!(client(Forwarded::XForwardedFor, &lines), ip("203.0.113.9"));
        assert_eq!(client(Forwarded::Forwarded, &lines), ip("203.0.113.10"));
        assert_eq!(client(Forwarded::Forwarded, &lines[..1]), ip("10.0.0.1"), "what the client may have written is not read");
        for (forwarded, is_trusted, left) in [
            (Forwarded::XForwardedFor, true, &["accept", "x-forwarded-for", "x-forwarded-proto", "x-real-ip"][..]),
            (Forwarded::Forwarded, true, &["accept", "forwarded"]),
            (Forwarded::XForwardedFor, false, &["accept"]),
            (Forwarded::Forwarded, false, &["accept"]),
        ] {
            let mut headers = headers(&lines);
            proxies(forwarded).hush(is_trusted, &mut headers);
            let mut names: Vec<_> = headers.keys().map(HeaderName::as_str).collect();
            names.sort_unstable();
            assert_eq!(names, left, "{forwarded:?} {is_trusted}");
        }
    }
}
