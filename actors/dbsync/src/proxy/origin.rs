//! Where a node is found by HTTP, and under which path: from the configuration, never from a request.

use std::{
    fmt,
    net::{IpAddr, Ipv6Addr},
    str::FromStr,
};

/// A scheme, a host and a port (RFC 6454 §4): `https://bo.example.org` or `https://192.0.2.7:7400`. No path and no user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    secure: bool,
    /// In lower case, an IPv6 address with its brackets.
    host: Box<str>,
    port: u16,
}

/// Why a text is no [`Origin`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected an origin such as \"https://bo.example.org:7400\": a scheme, a host and perhaps a port, and nothing behind them")]
pub struct OriginError;

/// Longest host, as DNS has it.
const MAX_HOST: usize = 255;

impl Origin {
    /// Whether it is `https`.
    pub fn is_secure(&self) -> bool {
        self.secure
    }

    /// `https` or `http`.
    pub fn scheme(&self) -> &'static str {
        if self.secure { "https" } else { "http" }
    }

    /// The host, an IPv6 address without its brackets.
    pub fn host(&self) -> &str {
        self.host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(&self.host)
    }

    /// The port, the scheme's own where none was said.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// As `Host` has it: the port is left out where it is the scheme's own.
    pub fn authority(&self) -> String {
        if self.port == own_port(self.secure) { self.host.to_string() } else { format!("{}:{}", self.host, self.port) }
    }

    /// Whether it is this machine by its name.
    pub fn is_loopback(&self) -> bool {
        self.host() == "localhost" || self.host().parse().is_ok_and(|address: IpAddr| address.is_loopback())
    }

    /// Whether `authority` of an address with or without a scheme means this host and port.
    pub(super) fn is_named(&self, secure: Option<bool>, authority: &str) -> bool {
        let Ok((host, port)) = host_and_port(authority) else { return false };
        *host == *self.host && port.unwrap_or(own_port(secure.unwrap_or(self.secure))) == self.port
    }
}

fn own_port(secure: bool) -> u16 {
    if secure { 443 } else { 80 }
}

fn host_and_port(authority: &str) -> Result<(Box<str>, Option<u16>), OriginError> {
    let (host, port) = match authority.strip_prefix('[') {
        Some(rest) => {
            let (address, port) = rest.split_once(']').ok_or(OriginError)?;
            let address: Ipv6Addr = address.parse().map_err(|_| OriginError)?;
            (format!("[{address}]"), port)
        }
        None => {
            let (host, port) = authority.split_at(authority.find(':').unwrap_or(authority.len()));
            let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_');
            if host.is_empty() || host.len() > MAX_HOST || !host.bytes().all(plain) {
                return Err(OriginError);
            }
            (host.to_ascii_lowercase(), port)
        }
    };
    let port = match port.strip_prefix(':') {
        None if port.is_empty() => None,
        Some(digits) if !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit()) => {
            Some(digits.parse().ok().filter(|port| *port != 0).ok_or(OriginError)?)
        }
        _ => return Err(OriginError),
    };
    Ok((host.into(), port))
}

impl FromStr for Origin {
    type Err = OriginError;

    fn from_str(text: &str) -> Result<Self, OriginError> {
        let (secure, authority) = match (text.strip_prefix("https://"), text.strip_prefix("http://")) {
            (Some(rest), _) => (true, rest),
            (None, Some(rest)) => (false, rest),
            (None, None) => return Err(OriginError),
        };
        let (host, port) = host_and_port(authority)?;
        Ok(Self { secure, host, port: port.unwrap_or(own_port(secure)) })
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", self.scheme(), self.authority())
    }
}

/// A path that others are below: `/shop`, or `/` for all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Prefix(Box<str>); // Empty for `/`, so that a path can be put behind it.

/// Why a text is no [`Prefix`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected a path such as \"/shop\", without a slash at its end, or \"/\"")]
pub struct PrefixError;

impl FromStr for Prefix {
    type Err = PrefixError;

    fn from_str(text: &str) -> Result<Self, PrefixError> {
        let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'/' | b'-' | b'.' | b'_' | b'~');
        let path = text.starts_with('/') && !text.ends_with('/') && !text.contains("//") && text.bytes().all(plain);
        match text {
            "/" => Ok(Self::default()),
            _ if path && !text.split('/').any(|part| part == "." || part == "..") => Ok(Self(text.into())),
            _ => Err(PrefixError),
        }
    }
}

impl Prefix {
    /// `path`, which begins with a slash, below this one.
    pub(super) fn join(&self, path: &str) -> String {
        format!("{}{path}", self.0)
    }

    /// What of `path` is below this one, if it is.
    pub(super) fn rest<'a>(&self, path: &'a str) -> Option<&'a str> {
        let rest = path.strip_prefix(&*self.0)?;
        (rest.is_empty() || rest.starts_with(['/', '?', '#'])).then_some(rest)
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_empty() { "/" } else { &self.0 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_origin_is_a_scheme_a_host_and_a_port_and_no_more() {
        for (text, shown) in [
            ("https://BO.example.org", "https://bo.example.org"),
            ("https://bo.example.org:443", "https://bo.example.org"),
            ("http://127.0.0.1:7400", "http://127.0.0.1:7400"),
            ("https://[2001:DB8::0:1]:7400", "https://[2001:db8::1]:7400"),
        ] {
            assert_eq!(text.parse::<Origin>().unwrap().to_string(), shown);
        }
        for text in [
            "",
            "bo.example.org",
            "https://",
            "ftp://bo",
            "https://bo/",
            "https://bo/x",
            "https://bo?x",
            "https://bo#x",
            "https://user@bo",
            "https://bo:",
            "https://bo:0",
            "https://bo:65536",
            "https://bo:+1",
            "https://[::1",
            "https://[bo]",
            "https://bo\\x",
            "https://b o",
            "https://bo.example.org@evil.example",
        ] {
            assert_eq!(text.parse::<Origin>(), Err(OriginError), "{text}");
        }
    }

    #[test]
    fn an_authority_is_the_origins_own_however_it_is_written() {
        let origin: Origin = "https://bo.example.org".parse().unwrap();
        assert!(origin.is_named(Some(true), "BO.example.org:443") && origin.is_named(None, "bo.example.org"));
        assert!(!origin.is_named(Some(false), "bo.example.org"), "port 80 is another origin");
        assert!(origin.is_named(Some(false), "bo.example.org:443"));
        for other in ["bo.example.org:444", "bo.example.org.evil.example", "user@bo.example.org", ""] {
            assert!(!origin.is_named(None, other), "{other}");
        }
    }

    #[test]
    fn a_prefix_ends_at_a_segments_end() {
        let shop: Prefix = "/shop".parse().unwrap();
        assert_eq!((shop.rest("/shop/1"), shop.rest("/shop"), shop.rest("/shop?a")), (Some("/1"), Some(""), Some("?a")));
        assert_eq!(shop.rest("/shopping"), None);
        let root: Prefix = "/".parse().unwrap();
        assert_eq!((root.rest("/x"), root.join("/x"), root.to_string()), (Some("/x"), "/x".to_owned(), "/".to_owned()));
        for text in ["", "shop", "/shop/", "//", "/a//b", "/a/../b", "/a?b", "/a b", "/ü"] {
            assert_eq!(text.parse::<Prefix>(), Err(PrefixError), "{text}");
        }
    }
}
