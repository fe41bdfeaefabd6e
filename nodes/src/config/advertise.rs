//! Where others are told to dial a node that cannot tell by itself: it listens on every address, or behind a translation.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    str::FromStr,
};

use super::Endpoint;

/// Most of them: what gossip carries of one node.
pub const MAX_ADVERTISED: usize = 4;

/// A place to be dialled at: `192.0.2.7`, `2001:db8::7`, `192.0.2.7:7400`, `[2001:db8::7]:7400` or `bo-1.example.org:7400`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Advertised {
    /// An IP address (without brackets) or a DNS name, which is looked up when the node starts.
    pub host: Box<str>,
    /// The port; without one it is the port that the node listens on.
    pub port: Option<u16>,
}

/// Why a text is no [`Advertised`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AdvertisedError {
    /// Neither an IP address nor a host with its port.
    #[error("expected an IP address, or host:port such as \"192.0.2.7:7400\" or \"bo-1.example.org:7400\"")]
    Form,
    /// Nobody can dial it.
    #[error("{0} is nowhere that others could dial; name the address that they reach this node by")]
    Undialable(IpAddr),
}

impl FromStr for Advertised {
    type Err = AdvertisedError;
    fn from_str(text: &str) -> Result<Self, AdvertisedError> {
        let (host, port) = match text.parse::<IpAddr>() {
            Ok(address) => (address.to_string().into(), None),
            Err(_) => {
                let Endpoint { host, port } = text.parse().map_err(|_| AdvertisedError::Form)?;
                (host, Some(port))
            }
        };
        match host.parse::<IpAddr>() {
            Ok(address) if !dialable(address) => Err(AdvertisedError::Undialable(address)),
            _ => Ok(Self { host, port }),
        }
    }
}

impl fmt::Display for Advertised {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.port {
            Some(port) => Endpoint { host: self.host.clone(), port }.fmt(f),
            None => f.write_str(&self.host),
        }
    }
}

impl Advertised {
    /// The place of a node that listens on `port`, where it takes no look-up to tell.
    pub fn known(&self, port: u16) -> Option<SocketAddr> {
        Some(SocketAddr::new(self.host.parse().ok()?, self.port.unwrap_or(port)))
    }
}

/// Whether an address is one that can be dialled at all.
pub(crate) fn dialable(address: IpAddr) -> bool {
    !address.is_unspecified() && !address.is_multicast() && address != IpAddr::from([255; 4])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_an_address_or_a_host_with_its_port() {
        for (text, known) in [
            ("192.0.2.7", Some("192.0.2.7:7400")),
            ("192.0.2.7:9000", Some("192.0.2.7:9000")),
            ("2001:db8::7", Some("[2001:db8::7]:7400")),
            ("[2001:db8::7]:9000", Some("[2001:db8::7]:9000")),
            ("bo-1.example.org:7400", None),
        ] {
            let place: Advertised = text.parse().unwrap();
            assert_eq!(place.to_string(), text);
            assert_eq!(place.known(7400), known.map(|known| known.parse().unwrap()), "{text}");
        }
        for text in ["", "7400", "bo-1", ":7400", "192.0.2.7:0", "bo 1:7400", "http://a:1", "2001:db8::7:", "[2001:db8::7]"] {
            assert_eq!(text.parse::<Advertised>(), Err(AdvertisedError::Form), "{text}");
        }
        for text in ["0.0.0.0", "0.0.0.0:7400", "::", "[::]:7400", "255.255.255.255:1", "224.0.0.1:7400", "[ff02::1]:7400"] {
            assert!(matches!(text.parse::<Advertised>(), Err(AdvertisedError::Undialable(_))), "{text}");
        }
    }
}
