use proptest::prelude::*;

use super::*;

fn kind(text: &str) -> Option<Kind> {
    public(text.parse().unwrap()).err().map(|why| why.kind)
}

#[test]
fn the_public_internet_may_be_reached() {
    for text in [
        "1.1.1.1",
        "8.8.8.8",
        "9.255.255.255",
        "11.0.0.0",
        "100.63.255.255",
        "100.128.0.0",
        "126.255.255.255",
        "128.0.0.0",
        "168.63.129.15",
        "169.253.255.255",
        "169.255.0.0",
        "172.15.255.255",
        "172.32.0.0",
        "191.255.255.255",
        "192.0.1.0",
        "192.0.3.0",
        "192.167.255.255",
        "192.169.0.0",
        "198.17.255.255",
        "198.20.0.0",
        "198.51.99.255",
        "198.51.101.0",
        "203.0.112.255",
        "203.0.114.0",
        "223.255.255.255",
        "2001:200::",
        "2001:4860:4860::8888",
        "2606:4700:4700::1111",
        "2a00:1450::1",
        "2001:db7:ffff::",
        "2001:db9::",
        "2003::",
        "64:ff9b::8.8.8.8",
        "2606:4700::5efe:8.8.8.8",
        // A small number at the end is no embedded address.
        "2606:4700::7f00:1",
    ] {
        assert_eq!(kind(text), None, "{text}");
    }
}

/// First and last of every block, so that no mask is a bit off.
#[test]
fn every_block_is_refused_from_its_first_to_its_last_address() {
    for V4(first, bits, why) in &FORBIDDEN_V4 {
        let last = first.to_bits() | u32::MAX.checked_shr((*bits).into()).unwrap_or(0);
        for address in [*first, Ipv4Addr::from(last)] {
            assert!(public(address.into()).is_err(), "{address}: {why}");
        }
    }
    for V6(first, bits, why) in &FORBIDDEN_V6 {
        let last = first.to_bits() | u128::MAX.checked_shr((*bits).into()).unwrap_or(0);
        for address in [*first, Ipv6Addr::from(last)] {
            assert!(public(address.into()).is_err(), "{address}: {why}");
        }
    }
}

#[test]
fn a_refusal_names_what_the_address_is() {
    for (text, expected) in [
        ("169.254.169.254", Kind::Metadata),
        ("100.100.100.200", Kind::Metadata),
        ("168.63.129.16", Kind::Metadata),
        ("fd00:ec2::254", Kind::Metadata),
        ("0.0.0.0", Kind::Unspecified),
        ("255.255.255.255", Kind::Broadcast),
        ("254.0.0.1", Kind::Reserved),
        ("::", Kind::Unspecified),
        ("::1", Kind::Loopback),
        ("::ffff:8.8.8.8", Kind::Embedding),
        ("::8.8.8.8", Kind::Embedding),
        ("::ffff:0:8.8.8.8", Kind::Embedding),
        ("64:ff9b::10.0.0.1", Kind::Embedding),
        ("64:ff9b:1::8.8.8.8", Kind::Embedding),
        ("2002:808:808::", Kind::Embedding),
        ("2001:0:4136:e378::", Kind::Embedding),
        ("2606:4700::5efe:10.0.0.1", Kind::Embedding),
        ("2606:4700::200:5efe:127.0.0.1", Kind::Embedding),
        ("fec0::1", Kind::Private),
        ("4000::1", Kind::Reserved),
        ("8000::1", Kind::Reserved),
        ("e000::1", Kind::Reserved),
        ("1000::1", Kind::Reserved),
    ] {
        assert_eq!(kind(text), Some(expected), "{text}");
    }
    assert_eq!(public([10, 0, 0, 1].into()).unwrap_err().to_string(), "private use (RFC 1918)");
}

proptest! {
    /// The standard library's own notion is a second opinion, wherever it has one.
    #[test]
    fn nothing_that_the_standard_library_calls_local_is_public(bits: u32, wide: u128) {
        let four = Ipv4Addr::from(bits);
        let local = four.is_loopback() || four.is_private() || four.is_link_local() || four.is_multicast() || four.is_broadcast()
            || four.is_documentation() || four.is_unspecified();
        prop_assert!(!local || public(four.into()).is_err());
        let six = Ipv6Addr::from(wide);
        let local = six.is_loopback() || six.is_multicast() || six.is_unique_local() || six.is_unicast_link_local();
        prop_assert!(!local || public(six.into()).is_err());
        // What an IPv4 address is, it is behind NAT64 as well; mapped, compatible, 6to4 it is nothing at all.
        let [a, b] = [(bits >> 16) as u16, bits as u16];
        prop_assert_eq!(public(Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, a, b).into()).is_ok(), public(four.into()).is_ok());
        prop_assert!(public(four.to_ipv6_mapped().into()).is_err());
        prop_assert!(public(Ipv6Addr::new(0, 0, 0, 0, 0, 0, a, b).into()).is_err());
        prop_assert!(public(Ipv6Addr::new(0x2002, a, b, 0, 0, 0, 0, 0).into()).is_err());
    }

    #[test]
    fn a_network_holds_what_shares_its_bits(bits: u32, length in 0_u8..=32) {
        let mask = u32::MAX.checked_shl(32 - u32::from(length)).unwrap_or(0);
        let network: Network = format!("{}/{length}", Ipv4Addr::from(bits & mask)).parse().unwrap();
        prop_assert!(network.contains(Ipv4Addr::from(bits).into()));
        if length > 0 {
            prop_assert!(!network.contains(Ipv4Addr::from(bits ^ (1 << (32 - length))).into()));
        }
    }
}

#[test]
fn a_network_is_written_with_its_first_address() {
    for text in ["10.0.0.0/8", "0.0.0.0/0", "::/0", "fd00::/8", "192.168.1.1/32", "::1/128"] {
        assert_eq!(text.parse::<Network>().unwrap().to_string(), text);
    }
    assert_eq!("10.1.2.3".parse::<Network>().unwrap().to_string(), "10.1.2.3/32");
    for text in ["", "10.0.0.1/8", "10.0.0.0/33", "::/129", "fd00::1/64", "10.0.0.0/", "10.0.0.0/+8", "10/8", "10.0.0.0/08x", "/8"] {
        assert_eq!(text.parse::<Network>(), Err(NetworkError), "{text}");
    }
    let mapped: IpAddr = "::ffff:10.0.0.1".parse().unwrap();
    assert!(!"10.0.0.0/8".parse::<Network>().unwrap().contains(mapped));
    assert!(!"::/0".parse::<Network>().unwrap().contains([10, 0, 0, 1].into()));
}
