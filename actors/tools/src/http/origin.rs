//! What pages in browsers may ask.
//!
//! A page shows its origin with every request that it sends elsewhere, and most that it sends home (Fetch §3.2); programs show none. A site
//! whose name is made to lead to this machine (DNS rebinding) is at home here as far as the browser can tell, so besides the names that are
//! known to be this node's only addresses and `localhost` are a home: no other site's name is one of them.

use std::net::{Ipv4Addr, Ipv6Addr};

use ::http::{
    HeaderValue, Request, Uri,
    header::{HOST, ORIGIN},
    uri::Authority,
};

#[derive(Debug)]
pub(super) struct Rules {
    hosts: Vec<Place>,
    names: Vec<Place>,
    origins: Vec<(Box<str>, Place)>,
}

/// A host, and a port unless any will do.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Place {
    host: Box<str>,
    port: Option<u16>,
}

impl Rules {
    pub(super) fn new(hosts: &[String], names: &[String], origins: &[String]) -> Self {
        let places = |hosts: &[String]| hosts.iter().filter_map(|host| host.parse().ok()).map(|host: Authority| Place::of(&host)).collect();
        let origins = origins.iter().filter_map(|origin| match origin.strip_suffix(":*") {
            Some(origin) => read(origin).map(|(scheme, place)| (scheme, Place { port: None, ..place })),
            None => read(origin),
        });
        Self { hosts: places(hosts), names: places(names), origins: origins.collect() }
    }

    pub(super) fn allow<B>(&self, request: &Request<B>) -> bool {
        let host = host(request);
        if !self.hosts.is_empty() && !host.as_ref().is_some_and(|host| self.hosts.iter().any(|known| known.takes(host))) {
            return false;
        }
        let mut shown = request.headers().get_all(ORIGIN).iter();
        let Some(origin) = shown.next() else { return true };
        let Some((scheme, origin)) = origin.to_str().ok().and_then(read).filter(|_| shown.next().is_none()) else { return false };
        if self.origins.iter().any(|(known, listed)| *known == scheme && listed.takes(&origin)) {
            return true;
        }
        let usual = usual_port(&scheme);
        let is_home = |host: &Place| host.host == origin.host && host.port.or(usual) == origin.port;
        let is_own = |host: &Place| !self.hosts.is_empty() || host.is_nobodys_name() || self.names.iter().any(|known| known.takes(host));
        host.is_some_and(|host| is_home(&host) && is_own(&host))
    }
}

impl Place {
    fn of(authority: &Authority) -> Self {
        Self { host: authority.host().to_ascii_lowercase().into(), port: authority.port_u16() }
    }

    /// Whether `other` is what this one lists.
    fn takes(&self, other: &Self) -> bool {
        self.host == other.host && self.port.is_none_or(|port| other.port == Some(port))
    }

    /// An address or this machine: no name that somebody else could have lead here.
    fn is_nobodys_name(&self) -> bool {
        let host = &*self.host;
        let address = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        let is_address = host.parse::<Ipv4Addr>().is_ok() || address.is_some_and(|address| address.parse::<Ipv6Addr>().is_ok());
        // RFC 6761 §6.3.
        is_address || host == "localhost" || host.ends_with(".localhost")
    }
}

/// What the request asked for.
fn host<B>(request: &Request<B>) -> Option<Place> {
    let field = || request.headers().get(HOST).and_then(|host| host.to_str().ok()?.parse().ok());
    request.uri().authority().cloned().or_else(field).map(|host: Authority| Place::of(&host))
}

/// The same as it is written.
pub(super) fn written_host<B>(request: &Request<B>) -> Option<&str> {
    let field = || request.headers().get(HOST).map(HeaderValue::to_str).and_then(Result::ok);
    let host = request.uri().authority().map(Authority::as_str).or_else(field)?;
    // It goes into a quoted text of ours.
    host.parse::<Authority>().is_ok().then_some(host)
}

/// An origin as browsers write it (RFC 6454 §6.2), with its port.
fn read(origin: &str) -> Option<(Box<str>, Place)> {
    let uri: Uri = origin.parse().ok()?;
    let scheme: Box<str> = uri.scheme_str()?.to_ascii_lowercase().into();
    let place = Place::of(uri.authority()?);
    let port = place.port.or(usual_port(&scheme));
    Some((scheme, Place { port, ..place }))
}

fn usual_port(scheme: &str) -> Option<u16> {
    match scheme {
        "http" => Some(80),
        "https" => Some(443),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asks(rules: &Rules, host: &str, origin: Option<&str>) -> bool {
        let mut request = Request::new(());
        request.headers_mut().insert(HOST, host.parse().unwrap());
        if let Some(origin) = origin {
            request.headers_mut().insert(ORIGIN, origin.parse().unwrap());
        }
        rules.allow(&request)
    }

    #[test]
    fn a_page_asks_only_where_it_is_at_home() {
        let rules = Rules::new(&[], &[], &["https://inspector.example".into(), "http://localhost:*".into()]);
        for (host, origin) in [
            ("127.0.0.1:8443", None),
            ("shop.example", None),
            ("127.0.0.1:8443", Some("https://127.0.0.1:8443")),
            ("[::1]:8443", Some("https://[::1]:8443")),
            ("localhost", Some("http://localhost")),
            ("LOCALHOST:80", Some("http://localhost")),
            ("shop.example", Some("https://inspector.example")),
            ("shop.example", Some("https://INSPECTOR.example:443")),
            ("shop.example", Some("http://localhost:6274")),
        ] {
            assert!(asks(&rules, host, origin), "{host} {origin:?}");
        }
        for (host, origin) in [
            // Rebound: the page is at home under its own name.
            ("evil.example:8443", Some("https://evil.example:8443")),
            ("127.0.0.1.evil.example", Some("http://127.0.0.1.evil.example")),
            ("127.0.0.1:8443", Some("https://evil.example")),
            ("127.0.0.1:8443", Some("https://127.0.0.1:1")),
            ("127.0.0.1:8443", Some("null")),
            ("127.0.0.1:8443", Some("")),
            ("shop.example", Some("http://inspector.example")),
            ("shop.example", Some("https://inspector.example:8443")),
            ("shop.example", Some("https://localhost:6274")),
            ("shop.example", Some("https://inspector.example.evil.example")),
        ] {
            assert!(!asks(&rules, host, origin), "{host} {origin:?}");
        }
    }

    #[test]
    fn a_page_is_at_home_under_a_name_that_is_known_to_be_this_nodes_and_others_are_answered_still() {
        let rules = Rules::new(&[], &["shop.example".into(), "bo-1.example:7400".into()], &[]);
        for (host, origin) in [
            ("shop.example:8443", Some("https://shop.example:8443")),
            ("SHOP.example", Some("https://shop.example")),
            ("bo-1.example:7400", Some("https://bo-1.example:7400")),
            ("other.example", None),
        ] {
            assert!(asks(&rules, host, origin), "{host} {origin:?}");
        }
        for (host, origin) in [
            ("evil.example", Some("https://evil.example")),
            ("shop.example", Some("https://evil.example")),
            ("shop.example.evil.example", Some("https://shop.example.evil.example")),
            ("bo-1.example:1", Some("https://bo-1.example:1")),
        ] {
            assert!(!asks(&rules, host, origin), "{host} {origin:?}");
        }
    }

    #[test]
    fn where_names_are_listed_no_other_is_answered() {
        let rules = Rules::new(&["shop.example".into(), "localhost:8443".into()], &[], &[]);
        for (host, origin) in
            [("shop.example:1", None), ("shop.example", Some("https://shop.example")), ("localhost:8443", Some("https://localhost:8443"))]
        {
            assert!(asks(&rules, host, origin), "{host} {origin:?}");
        }
        for (host, origin) in
            [("evil.example", None), ("127.0.0.1:8443", None), ("localhost:1", None), ("shop.example", Some("https://other.example"))]
        {
            assert!(!asks(&rules, host, origin), "{host} {origin:?}");
        }
    }
}
