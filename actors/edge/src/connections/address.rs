//! What counts as one address.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Whom connections are counted by: an IPv4 address, or an IPv6 /64, which is the least that one household is given
/// (RFC 6177 §2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Prefix {
    V4(Ipv4Addr),
    V6(u64),
}

impl Prefix {
    /// Of an address in its canonical form: a mapped IPv4 address is an IPv4 address.
    pub(crate) fn of(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V4(address) => Self::V4(address),
            IpAddr::V6(address) => Self::V6((address.to_bits() >> 64) as u64),
        }
    }
}

/// Addresses that begin alike.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Network {
    V4 { first: u32, mask: u32 },
    V6 { first: u128, mask: u128 },
}

impl Network {
    pub(crate) fn new(address: IpAddr, bits: u8) -> Self {
        let bits = u32::from(bits);
        match address {
            IpAddr::V4(address) => {
                let mask = u32::MAX.checked_shl(32u32.saturating_sub(bits)).unwrap_or(0);
                Self::V4 { first: address.to_bits() & mask, mask }
            }
            IpAddr::V6(address) => {
                let mask = u128::MAX.checked_shl(128u32.saturating_sub(bits)).unwrap_or(0);
                Self::V6 { first: Ipv6Addr::to_bits(address) & mask, mask }
            }
        }
    }

    pub(crate) fn contains(&self, address: IpAddr) -> bool {
        match (self, address) {
            (Self::V4 { first, mask }, IpAddr::V4(address)) => address.to_bits() & mask == *first,
            (Self::V6 { first, mask }, IpAddr::V6(address)) => address.to_bits() & mask == *first,
            _ => false,
        }
    }
}
