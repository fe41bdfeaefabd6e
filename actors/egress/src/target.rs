//! Where a request goes: a URL, taken apart once.
//!
//! Whoever checks a URL with one parser and connects with another can be told two things by one text. Here every URL, a caller's, a
//! row's or a redirect's, goes through [`Target`], and nothing else decides which host is looked up, which name TLS asks for and which
//! path is sent. The parser is that of the URL Standard (<https://url.spec.whatwg.org>), so an IPv4 address in any of its spellings
//! (`2130706433`, `0177.1`, `0x7f.1`, `１２７.0.0.1`, `%31%32%37.0.0.1`) is an address and not a name. What that standard repairs
//! (white space, control characters, backslashes) is refused: what was meant cannot be told.
//!
//! Pure: no I/O.

use std::{fmt, net::IpAddr, str::FromStr};

use http::{HeaderValue, Uri, uri::PathAndQuery};
use url::Url;

/// Longest URL, in bytes: what RFC 9110 §4.1 asks everybody to support, and a little.
pub const MAX_URL: usize = 8 * 1024;
/// Longest name in the text form of DNS (RFC 1035 §2.3.4), without the dot at its end.
const MAX_NAME: usize = 253;
const MAX_LABEL: usize = 63;

/// `http` or `https`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Scheme {
    /// Anybody on the way may read and change it.
    Http,
    /// TLS, with a certificate that is checked.
    Https,
}

impl Scheme {
    fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
        }
    }

    fn port(self) -> u16 {
        match self {
            Self::Http => 80,
            Self::Https => 443,
        }
    }
}

impl fmt::Display for Scheme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Whom a URL names.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Host {
    /// In ASCII, lower case and without a dot at its end.
    Name(Box<str>),
    /// No name is looked up.
    Address(IpAddr),
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => f.write_str(name),
            Self::Address(IpAddr::V4(address)) => address.fmt(f),
            Self::Address(IpAddr::V6(address)) => write!(f, "[{address}]"),
        }
    }
}

/// Scheme, host and port (RFC 6454 §4): what connections, breakers and credentials belong to.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Origin {
    /// `http` or `https`.
    pub scheme: Scheme,
    /// A name or an address.
    pub host: Host,
    /// The scheme's own where the URL says none; never 0.
    pub port: u16,
}

impl Origin {
    /// As `Host` and `:authority` have it: the port is left out where it is the scheme's own (RFC 9110 §4.2.3).
    pub(crate) fn authority(&self) -> HeaderValue {
        let text = if self.port == self.scheme.port() { self.host.to_string() } else { format!("{}:{}", self.host, self.port) };
        HeaderValue::try_from(text).expect("names and addresses are ASCII without control characters")
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}:{}", self.scheme, self.host, self.port)
    }
}

/// An absolute `http` or `https` URL without a user and a fragment: the only form in which a request finds its way.
///
/// That one exists says that its text is sound, not that it may be reached: that is known when it is connected to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    pub(crate) origin: Origin,
    pub(crate) path: PathAndQuery,
}

/// Why a text is no [`Target`]. Nothing was sent, and trying again is in vain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum UrlError {
    /// Longer than [`MAX_URL`].
    #[error("the URL is longer than {MAX_URL} bytes")]
    TooLong,
    /// White space, a control character or a backslash: parsers disagree about what they mean.
    #[error("the URL holds white space, a control character or a backslash")]
    Ambiguous,
    /// No URL with a host: unparsable, relative, or an address that is none.
    #[error("the URL cannot be understood")]
    Malformed,
    /// Neither `http` nor `https`.
    #[error("the URL's scheme is neither http nor https")]
    Scheme,
    /// A user or a password: they belong in a header, and before an `@` they mislead readers about the host.
    #[error("the URL names a user")]
    User,
    /// A host that is neither an address nor a name that DNS could hold.
    #[error("the URL's host is no name of DNS")]
    Host,
    /// Port 0.
    #[error("the URL's port is 0")]
    Port,
}

impl Target {
    /// Where `location`, the field of a redirect, leads from here (RFC 9110 §10.2.2).
    ///
    /// # Errors
    /// As for a URL that a caller gives.
    pub(crate) fn join(&self, location: &str) -> Result<Self, UrlError> {
        plain(location)?;
        let base = Url::parse(&self.to_string()).map_err(|_| UrlError::Malformed)?;
        Self::of(&base.join(location).map_err(|_| UrlError::Malformed)?)
    }

    /// Where it leads.
    pub fn origin(&self) -> &Origin {
        &self.origin
    }

    /// As the `http` crate has it, for a request.
    pub fn to_uri(&self) -> Uri {
        let parts = Uri::builder().scheme(self.origin.scheme.as_str()).authority(self.origin.authority().as_bytes());
        parts.path_and_query(self.path.clone()).build().expect("every part of it was taken from a URL")
    }

    fn of(url: &Url) -> Result<Self, UrlError> {
        if url.as_str().len() > MAX_URL {
            return Err(UrlError::TooLong);
        }
        let scheme = match url.scheme() {
            "http" => Scheme::Http,
            "https" => Scheme::Https,
            _ => return Err(UrlError::Scheme),
        };
        if !url.username().is_empty() || url.password().is_some() {
            return Err(UrlError::User);
        }
        let host = match url.host().ok_or(UrlError::Malformed)? {
            url::Host::Domain(name) => Host::Name(named(name)?),
            url::Host::Ipv4(address) => Host::Address(address.into()),
            url::Host::Ipv6(address) => Host::Address(address.into()),
        };
        let port = url.port().unwrap_or(scheme.port());
        if port == 0 {
            return Err(UrlError::Port);
        }
        let path = match url.query() {
            Some(query) => PathAndQuery::try_from(format!("{}?{query}", url.path())),
            None => PathAndQuery::try_from(url.path()),
        };
        Ok(Self { origin: Origin { scheme, host, port }, path: path.map_err(|_| UrlError::Malformed)? })
    }
}

fn plain(text: &str) -> Result<(), UrlError> {
    if text.len() > MAX_URL {
        return Err(UrlError::TooLong);
    }
    let doubtful = |c: char| c == '\\' || c.is_control() || c.is_whitespace();
    if text.contains(doubtful) { Err(UrlError::Ambiguous) } else { Ok(()) }
}

/// `name` as it is compared and looked up.
pub(crate) fn named(name: &str) -> Result<Box<str>, UrlError> {
    let name = name.strip_suffix('.').unwrap_or(name);
    let sound = |label: &str| {
        let plain = label.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'));
        plain && !label.is_empty() && label.len() <= MAX_LABEL
    };
    if name.len() > MAX_NAME || !name.split('.').all(sound) {
        return Err(UrlError::Host);
    }
    Ok(name.to_ascii_lowercase().into())
}

impl FromStr for Target {
    type Err = UrlError;

    fn from_str(text: &str) -> Result<Self, UrlError> {
        plain(text)?;
        let url = Url::parse(text).map_err(|_| UrlError::Malformed)?;
        Self::of(&url)
    }
}

impl TryFrom<&Uri> for Target {
    type Error = UrlError;

    fn try_from(uri: &Uri) -> Result<Self, UrlError> {
        // Its text, and not its parts: `http` and `url` need not agree on where a host ends, so only one is asked.
        uri.to_string().parse()
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.origin, self.path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(text: &str) -> Result<String, UrlError> {
        Ok(text.parse::<Target>()?.origin.host.to_string())
    }

    #[test]
    fn an_address_is_an_address_in_every_spelling() {
        for text in [
            "http://127.0.0.1",
            "http://2130706433",
            "http://0x7f000001",
            "http://017700000001",
            "http://0177.0.0.1",
            "http://0x7f.1",
            "http://127.1",
            "http://127.0.1",
            "http://127.0.0.1.",
            "http://%31%32%37.0.0.1",
            "http://１２７.0.0.1",
            "http://127。0。0。1",
            "http://①②⑦.0.0.1",
        ] {
            assert_eq!(host(text).as_deref(), Ok("127.0.0.1"), "{text}");
        }
        assert_eq!(host("http://[0:0:0:0:0:FFFF:7f00:1]").as_deref(), Ok("[::ffff:127.0.0.1]"));
    }

    #[test]
    fn a_url_is_taken_apart_once() {
        let target: Target = "HTTPS://Shop.Example.:443/a/../b?c=d#e".parse().unwrap();
        assert_eq!(target.to_string(), "https://shop.example:443/b?c=d");
        assert_eq!(target.origin.authority(), "shop.example");
        assert_eq!(target.to_uri(), "https://shop.example/b?c=d");
        assert_eq!("http://[::1]:81".parse::<Target>().unwrap().to_uri(), "http://[::1]:81/");
        assert_eq!("http://[2001:DB8::1]:81".parse::<Target>().unwrap().origin.authority(), "[2001:db8::1]:81");
        assert_eq!(host("http://bücher.example").as_deref(), Ok("xn--bcher-kva.example"));
        assert_eq!(Target::try_from(&Uri::from_static("https://a.example/x")).unwrap().to_string(), "https://a.example:443/x");
        assert_eq!(Target::try_from(&Uri::from_static("/x")), Err(UrlError::Malformed));
    }

    #[test]
    fn what_parsers_disagree_about_is_refused() {
        let long = format!("http://a.example/{}", "x".repeat(MAX_URL));
        for (text, expected) in [
            (&*long, UrlError::TooLong),
            ("http://a.example\\@b.example", UrlError::Ambiguous),
            ("http://a.exa\tmple", UrlError::Ambiguous),
            (" http://a.example", UrlError::Ambiguous),
            ("http://a.example/\u{2028}", UrlError::Ambiguous),
            ("ftp://a.example", UrlError::Scheme),
            ("file:///etc/passwd", UrlError::Scheme),
            ("http://me@a.example", UrlError::User),
            ("http://:secret@a.example", UrlError::User),
            ("http://a.example:0", UrlError::Port),
            ("http://a.example:65536", UrlError::Malformed),
            ("http://[fe80::1%25eth0]", UrlError::Malformed),
            ("http://", UrlError::Malformed),
            ("a.example", UrlError::Malformed),
            ("http://a..example", UrlError::Host),
            ("http://a+b.example", UrlError::Host),
            ("http://.", UrlError::Host),
        ] {
            assert_eq!(host(text), Err(expected), "{text}");
        }
    }

    proptest::proptest! {
        /// What the operating system would read as an address, though it is none in dots, is never left to it as a name.
        #[test]
        fn no_name_is_a_number_to_anybody(host in "[0-9a-fxX.%１。o-]{1,20}") {
            let Ok(target) = format!("http://{host}/").parse::<Target>() else { return Ok(()) };
            if let Host::Name(name) = &target.origin.host {
                let last = name.rsplit('.').next().unwrap_or_default();
                let hexadecimal = last.strip_prefix("0x").is_some_and(|rest| rest.bytes().all(|b| b.is_ascii_hexdigit()));
                proptest::prop_assert!(!hexadecimal && !last.bytes().all(|b| b.is_ascii_digit()), "{host}: {name}");
            }
            proptest::prop_assert_eq!(Target::try_from(&target.to_uri()), Ok(target));
        }

        /// Whatever is said by whoever, it is understood the same way a second time, and nobody panics.
        #[test]
        fn a_target_means_the_same_when_it_is_read_again(text in "(https?:/{0,3})?[ -~]{0,40}", location in "\\PC{0,40}") {
            let Ok(target) = text.parse::<Target>() else { return Ok(()) };
            proptest::prop_assert_eq!(&Target::try_from(&target.to_uri()), &Ok(target.clone()), "{}", text);
            let _ = target.join(&location);
        }
    }

    #[test]
    fn a_location_leads_from_where_it_was_given() {
        let here: Target = "https://a.example/x/y?z".parse().unwrap();
        for (location, there) in [
            ("w", "https://a.example:443/x/w"),
            ("/w?v", "https://a.example:443/w?v"),
            ("//b.example/w", "https://b.example:443/w"),
            ("http://b.example", "http://b.example:80/"),
            ("", "https://a.example:443/x/y?z"),
        ] {
            assert_eq!(here.join(location).unwrap().to_string(), there, "{location}");
        }
        assert_eq!(here.join("\\\\b.example"), Err(UrlError::Ambiguous));
        assert_eq!(here.join("gopher://b.example"), Err(UrlError::Scheme));
    }
}
