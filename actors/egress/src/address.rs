//! Which addresses are the public Internet, and which are not.
//!
//! The rule is what may be reached, not what may not: an IPv4 address that IANA's registry of special-purpose addresses leaves alone,
//! an IPv6 address in the one block from which IANA allocates global unicast addresses (2000::/3) that the registry leaves alone, and
//! the well-known prefix of NAT64 around such an IPv4 address. Whatever else there is, and whatever may yet be invented outside these,
//! is refused. The tables follow the registries as of 2026-10 (<https://www.iana.org/assignments/iana-ipv4-special-registry>,
//! <https://www.iana.org/assignments/iana-ipv6-special-registry>, <https://www.iana.org/assignments/ipv6-address-space>).
//!
//! Two deviations, both towards refusing: blocks that the registries split into parts reachable and not (192.0.0.0/24, 2001::/23)
//! are refused whole, as no web server lives in either; and addresses that are public by number but answered by the machine's own
//! cloud are refused by name.
//!
//! Pure: no I/O.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    str::FromStr,
};

/// What sort of place an address is that is not the public Internet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Kind {
    /// "This network" and the unspecified address: on many systems, this very machine.
    Unspecified,
    /// This machine.
    Loopback,
    /// Networks of an organisation's own: RFC 1918, unique local addresses.
    Private,
    /// Between a provider's NAT and its customers (RFC 6598); some clouds keep their metadata there.
    Shared,
    /// This link only. Most clouds keep their metadata there.
    LinkLocal,
    /// Answers with a machine's credentials, or is its cloud's own way into it.
    Metadata,
    /// Groups, not hosts.
    Multicast,
    /// All hosts of a link.
    Broadcast,
    /// For books and examples.
    Documentation,
    /// For measuring devices in a laboratory.
    Benchmarking,
    /// For protocols, not hosts.
    Protocol,
    /// An IPv6 address that stands for an IPv4 address, which may be anything.
    Embedding,
    /// Not allocated for use.
    Reserved,
    /// The owner's configuration refuses it.
    Configured,
}

/// Why an address is not one that anybody's URL may lead to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{name} ({rule})")]
pub struct Forbidden {
    /// What sort of place it is.
    pub kind: Kind,
    name: &'static str,
    rule: &'static str,
}

impl Forbidden {
    const fn new(kind: Kind, name: &'static str, rule: &'static str) -> Self {
        Self { kind, name, rule }
    }

    /// What the block is called.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Where the rule stands.
    pub fn rule(&self) -> &'static str {
        self.rule
    }

    pub(crate) const fn configured() -> Self {
        Self::new(Kind::Configured, "refused by configuration", "`deny`")
    }
}

struct V4(Ipv4Addr, u8, Forbidden);
struct V6(Ipv6Addr, u8, Forbidden);

const fn v4(first: [u8; 4], bits: u8, kind: Kind, name: &'static str, source: &'static str) -> V4 {
    let [a, b, c, d] = first;
    V4(Ipv4Addr::new(a, b, c, d), bits, Forbidden::new(kind, name, source))
}

const fn v6(high: [u16; 4], low: [u16; 4], bits: u8, kind: Kind, name: &'static str, source: &'static str) -> V6 {
    let [a, b, c, d] = high;
    let [e, f, g, h] = low;
    V6(Ipv6Addr::new(a, b, c, d, e, f, g, h), bits, Forbidden::new(kind, name, source))
}

/// IPv4 that is not reachable globally; the first that holds an address names it.
static FORBIDDEN_V4: [V4; 20] = [
    v4([169, 254, 169, 254], 32, Kind::Metadata, "cloud metadata", "AWS, GCP, Azure, OCI and others"),
    v4([100, 100, 100, 200], 32, Kind::Metadata, "cloud metadata", "Alibaba Cloud"),
    v4([192, 0, 0, 192], 32, Kind::Metadata, "cloud metadata", "Oracle Cloud, classic"),
    // A public number, but virtual: every machine in that cloud reaches its own host under it.
    v4([168, 63, 129, 16], 32, Kind::Metadata, "cloud host agent", "Azure WireServer"),
    v4([0, 0, 0, 0], 8, Kind::Unspecified, "this network", "RFC 791 §3.2"),
    v4([10, 0, 0, 0], 8, Kind::Private, "private use", "RFC 1918"),
    v4([100, 64, 0, 0], 10, Kind::Shared, "shared address space", "RFC 6598"),
    v4([127, 0, 0, 0], 8, Kind::Loopback, "loopback", "RFC 1122 §3.2.1.3"),
    v4([169, 254, 0, 0], 16, Kind::LinkLocal, "link local", "RFC 3927"),
    v4([172, 16, 0, 0], 12, Kind::Private, "private use", "RFC 1918"),
    v4([192, 0, 0, 0], 24, Kind::Protocol, "IETF protocol assignments", "RFC 6890 §2.1"),
    v4([192, 0, 2, 0], 24, Kind::Documentation, "documentation (TEST-NET-1)", "RFC 5737"),
    v4([192, 88, 99, 0], 24, Kind::Protocol, "6to4 relay anycast", "RFC 7526"),
    v4([192, 168, 0, 0], 16, Kind::Private, "private use", "RFC 1918"),
    v4([198, 18, 0, 0], 15, Kind::Benchmarking, "benchmarking", "RFC 2544"),
    v4([198, 51, 100, 0], 24, Kind::Documentation, "documentation (TEST-NET-2)", "RFC 5737"),
    v4([203, 0, 113, 0], 24, Kind::Documentation, "documentation (TEST-NET-3)", "RFC 5737"),
    v4([224, 0, 0, 0], 4, Kind::Multicast, "multicast", "RFC 5771"),
    v4([255, 255, 255, 255], 32, Kind::Broadcast, "limited broadcast", "RFC 919 §7"),
    v4([240, 0, 0, 0], 4, Kind::Reserved, "reserved", "RFC 1112 §4"),
];

/// IPv6 that is not reachable globally. The blocks outside 2000::/3 are here for their names only: without them they would be refused
/// as [`OUTSIDE`].
static FORBIDDEN_V6: [V6; 23] = [
    v6([0xfd00, 0xec2, 0, 0], [0, 0, 0, 0x254], 128, Kind::Metadata, "cloud metadata", "AWS"),
    v6([0xfd20, 0xce, 0, 0], [0, 0, 0, 0x254], 128, Kind::Metadata, "cloud metadata", "GCP"),
    v6([0; 4], [0; 4], 128, Kind::Unspecified, "unspecified", "RFC 4291 §2.5.2"),
    v6([0; 4], [0, 0, 0, 1], 128, Kind::Loopback, "loopback", "RFC 4291 §2.5.3"),
    v6([0; 4], [0, 0xffff, 0, 0], 96, Kind::Embedding, "IPv4-mapped", "RFC 4291 §2.5.5.2"),
    v6([0; 4], [0xffff, 0, 0, 0], 96, Kind::Embedding, "IPv4-translated", "RFC 2765 §2.1"),
    v6([0; 4], [0; 4], 96, Kind::Embedding, "IPv4-compatible", "RFC 4291 §2.5.5.1"),
    v6([0x64, 0xff9b, 1, 0], [0; 4], 48, Kind::Embedding, "local-use NAT64", "RFC 8215"),
    v6([0x100, 0, 0, 0], [0; 4], 64, Kind::Protocol, "discard only", "RFC 6666"),
    v6([0x100, 0, 0, 1], [0; 4], 64, Kind::Protocol, "dummy prefix", "RFC 9780"),
    v6([0x2001, 0, 0, 0], [0; 4], 32, Kind::Embedding, "Teredo", "RFC 4380"),
    v6([0x2001, 2, 0, 0], [0; 4], 48, Kind::Benchmarking, "benchmarking", "RFC 5180"),
    v6([0x2001, 0, 0, 0], [0; 4], 23, Kind::Protocol, "IETF protocol assignments", "RFC 2928"),
    v6([0x2001, 0xdb8, 0, 0], [0; 4], 32, Kind::Documentation, "documentation", "RFC 3849"),
    v6([0x2002, 0, 0, 0], [0; 4], 16, Kind::Embedding, "6to4", "RFC 3056, RFC 7526"),
    v6([0x3ffe, 0, 0, 0], [0; 4], 16, Kind::Reserved, "6bone, returned", "RFC 3701"),
    v6([0x3fff, 0, 0, 0], [0; 4], 20, Kind::Documentation, "documentation", "RFC 9637"),
    v6([0x5f00, 0, 0, 0], [0; 4], 16, Kind::Protocol, "segment routing identifiers", "RFC 9602"),
    v6([0xfc00, 0, 0, 0], [0; 4], 7, Kind::Private, "unique local", "RFC 4193"),
    v6([0xfe80, 0, 0, 0], [0; 4], 10, Kind::LinkLocal, "link local", "RFC 4291 §2.5.6"),
    v6([0xfec0, 0, 0, 0], [0; 4], 10, Kind::Private, "site local", "RFC 3879"),
    v6([0xff00, 0, 0, 0], [0; 4], 8, Kind::Multicast, "multicast", "RFC 4291 §2.7"),
    v6([0x4000, 0, 0, 0], [0; 4], 2, Kind::Reserved, "not allocated", "RFC 4291 §2.4"),
];

const OUTSIDE: Forbidden = Forbidden::new(Kind::Reserved, "outside global unicast", "IANA IPv6 address space: 2000::/3");
const NAT64: Forbidden = Forbidden::new(Kind::Embedding, "NAT64 of an address that is not public", "RFC 6052 §3.1");
const ISATAP: Forbidden = Forbidden::new(Kind::Embedding, "ISATAP of an address that is not public", "RFC 5214 §6.1");

/// Whether `address` is one of the public Internet.
///
/// # Errors
/// [`Forbidden`] says what it is instead.
pub fn public(address: IpAddr) -> Result<(), Forbidden> {
    match address {
        IpAddr::V4(address) => public_v4(address),
        IpAddr::V6(address) => public_v6(address),
    }
}

fn public_v4(address: Ipv4Addr) -> Result<(), Forbidden> {
    match FORBIDDEN_V4.iter().find(|V4(first, bits, _)| same_v4(*first, address, *bits)) {
        Some(V4(_, _, why)) => Err(*why),
        None => Ok(()),
    }
}

fn public_v6(address: Ipv6Addr) -> Result<(), Forbidden> {
    let [high @ .., c, d] = address.segments();
    let last = Ipv4Addr::from((u32::from(c) << 16) | u32::from(d));
    if high == [0x64, 0xff9b, 0, 0, 0, 0] {
        return public_v4(last).map_err(|_| NAT64);
    }
    if let Some(V6(_, _, why)) = FORBIDDEN_V6.iter().find(|V6(first, bits, _)| same_v6(*first, address, *bits)) {
        return Err(*why);
    }
    if !same_v6(Ipv6Addr::new(0x2000, 0, 0, 0, 0, 0, 0, 0), address, 3) {
        return Err(OUTSIDE);
    }
    // The interface identifier of ISATAP, behind any prefix: a router of that kind unwraps it.
    if matches!(high, [.., 0 | 0x200, 0x5efe]) {
        return public_v4(last).map_err(|_| ISATAP);
    }
    Ok(())
}

fn same_v4(one: Ipv4Addr, other: Ipv4Addr, bits: u8) -> bool {
    let differ = one.to_bits() ^ other.to_bits();
    bits == 0 || differ >> (32 - u32::from(bits)) == 0
}

fn same_v6(one: Ipv6Addr, other: Ipv6Addr, bits: u8) -> bool {
    let differ = one.to_bits() ^ other.to_bits();
    bits == 0 || differ >> (128 - u32::from(bits)) == 0
}

/// A block of addresses: `10.1.0.0/16`, `fd00::/8`, or one address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Network {
    first: IpAddr,
    bits: u8,
}

/// Why a text is no [`Network`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected an address, or a block such as \"10.1.0.0/16\" that begins with its first address")]
pub struct NetworkError;

impl Network {
    /// Whether `address` is in it. An IPv4-mapped IPv6 address is in no block of IPv4.
    pub fn contains(&self, address: IpAddr) -> bool {
        match (self.first, address) {
            (IpAddr::V4(first), IpAddr::V4(address)) => same_v4(first, address, self.bits),
            (IpAddr::V6(first), IpAddr::V6(address)) => same_v6(first, address, self.bits),
            _ => false,
        }
    }
}

impl From<IpAddr> for Network {
    fn from(first: IpAddr) -> Self {
        Self { first, bits: if first.is_ipv4() { 32 } else { 128 } }
    }
}

impl FromStr for Network {
    type Err = NetworkError;

    fn from_str(text: &str) -> Result<Self, NetworkError> {
        let Some((first, bits)) = text.split_once('/') else {
            return text.parse::<IpAddr>().map(Self::from).map_err(|_| NetworkError);
        };
        let first: IpAddr = first.parse().map_err(|_| NetworkError)?;
        let digits = !bits.is_empty() && bits.bytes().all(|b| b.is_ascii_digit());
        let bits: u8 = bits.parse().ok().filter(|_| digits).ok_or(NetworkError)?;
        // Bits behind the prefix are a mistake in one or the other: which was meant cannot be told.
        let whole = match first {
            IpAddr::V4(first) => bits <= 32 && first.to_bits().checked_shl(bits.into()).unwrap_or(0) == 0,
            IpAddr::V6(first) => bits <= 128 && first.to_bits().checked_shl(bits.into()).unwrap_or(0) == 0,
        };
        if whole { Ok(Self { first, bits }) } else { Err(NetworkError) }
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.first, self.bits)
    }
}

#[cfg(test)]
mod tests;
