//! What a request is addressed to: its host, and a path that means the same to everybody who reads it.

use http::{HeaderValue, Method, Request, Uri, Version, header::HOST, uri::Authority};

use super::head::{Head, Once};
use crate::{Body, problem::Problem};

/// Longest path with its query, in bytes: what RFC 9110 §4.1 recommends to take at least.
const MAX_URI: usize = 8_000;

/// Refuses a target that is none, or that two readers could take for two.
pub(crate) fn check(request: &Request<Body>, head: &Head<'_>) -> Result<(), Problem> {
    let uri = request.uri();
    let length = uri.path_and_query().map_or(0, |path| path.as_str().len());
    if length > MAX_URI {
        return Err(Problem::URI_TOO_LONG);
    }
    host(request.version(), uri, head)?;
    // A tunnel, or an echo of what others must not see: neither is served (RFC 9110 §9.3.6, §9.3.8).
    if matches!(*request.method(), Method::CONNECT | Method::TRACE) {
        return Err(Problem::METHOD);
    }
    // A host alone is for tunnels (RFC 9112 §3.2.3).
    let is_host_alone = uri.authority().is_some() && uri.scheme().is_none();
    if !is_host_alone && is_plain(uri.path()) { Ok(()) } else { Err(Problem::PATH) }
}

/// RFC 9112 §3.2: HTTP/1.1 names exactly one valid host in a field; HTTP/1.0 may leave it out. RFC 9113 §8.3.1, RFC 9114 §4.3.1: HTTP/2
/// and 3 name it in `:authority`, or in `Host`, and if in both then alike.
fn host(version: Version, uri: &Uri, head: &Head<'_>) -> Result<(), Problem> {
    let named = match head.host {
        Once::Absent => None,
        Once::Given(value) => Some(value.as_bytes()),
        Once::Repeated => return Err(Problem::NO_HOST),
    };
    if named.is_some_and(|named| !is_host(named)) || uri.authority().is_some_and(|authority| !is_host(authority.as_str().as_bytes())) {
        return Err(Problem::NO_HOST);
    }
    let fits = match (version, named, uri.authority()) {
        (Version::HTTP_09 | Version::HTTP_10, ..) => true,
        // In absolute form the target decides, whatever the field says (§3.2.2); `prefer_target` makes them one.
        (Version::HTTP_11, named, _) => named.is_some(),
        (_, Some(named), Some(authority)) => named.eq_ignore_ascii_case(authority.as_str().as_bytes()),
        (_, named, authority) => named.is_some() || authority.is_some(),
    };
    if fits { Ok(()) } else { Err(Problem::NO_HOST) }
}

/// Whether the host is a name, as browsers keep what they are told of one (RFC 6797 §8.1.1): no address, and not `localhost`,
/// which is another machine for everybody (RFC 6761 §6.3).
pub(crate) fn is_name(uri: &Uri, head: &Head<'_>) -> bool {
    // As bytes: each request comes by here, and a search in text costs several times as much.
    let host = match uri.authority() {
        Some(authority) => authority.as_str().as_bytes(),
        None => head.host.one().map(HeaderValue::as_bytes).unwrap_or_default(),
    };
    if host.first() == Some(&b'[') {
        return false;
    }
    let host = host.split(|b| *b == b':').next().unwrap_or_default();
    let end = host.iter().rposition(|b| *b != b'.').map_or(0, |last| last + 1);
    let last = host[..end].rsplit(|b| *b == b'.').next().unwrap_or_default();
    // A name whose last label is a number is an address, however it is written (WHATWG URL §3.5).
    !last.is_empty() && !last.iter().all(u8::is_ascii_digit) && !last.eq_ignore_ascii_case(b"localhost")
}

/// Over HTTP/1 a target in absolute form decides the host (RFC 9112 §3.2.2): services read it from the field.
pub(crate) fn prefer_target(request: &mut Request<Body>) {
    let over_one = matches!(request.version(), Version::HTTP_09 | Version::HTTP_10 | Version::HTTP_11);
    if let Some(authority) = request.uri().authority().filter(|_| over_one).map(Authority::as_str)
        && let Ok(value) = authority.parse()
    {
        request.headers_mut().insert(HOST, value);
    }
}

/// `uri-host [":" port]` (RFC 9110 §7.2) by its characters: a name, an address, or an IPv6 address in brackets; no user.
fn is_host(text: &[u8]) -> bool {
    let plain =
        |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_' | b'~' | b'%' | b'!' | b'$' | b'&' | b'\'' | b'*' | b'+');
    let (name, rest) = if text.first() == Some(&b'[') {
        let Some(end) = text.iter().position(|b| *b == b']') else { return false };
        let inner = &text[1..end];
        if inner.is_empty() || !inner.iter().all(|b| b.is_ascii_hexdigit() || matches!(b, b':' | b'.')) {
            return false;
        }
        (inner, &text[end + 1..])
    } else {
        let end = text.iter().position(|b| *b == b':').unwrap_or(text.len());
        if !text[..end].iter().all(plain) {
            return false;
        }
        text.split_at(end)
    };
    let port = match rest {
        [] => true,
        [b':', port @ ..] => port.len() <= 5 && port.iter().all(u8::is_ascii_digit),
        _ => false,
    };
    !name.is_empty() && port
}

/// No `.` and `..` as segments, escaped or not: a client resolves them before it asks (RFC 3986 §5.2.4), so who sends them means
/// to reach what a check of the path did not see. No escaped control characters and no backslash, which some take for `/`.
fn is_plain(path: &str) -> bool {
    let bytes = path.as_bytes();
    // Nearly all paths have neither a percent sign nor a dot after a slash.
    let suspicious = |pair: &[u8]| pair[0] == b'%' || pair[0] == b'\\' || (pair[0] == b'/' && pair[1] == b'.');
    if !bytes.windows(2).any(suspicious) && bytes.last().is_none_or(|b| !matches!(b, b'%' | b'\\')) {
        return true;
    }
    path.split('/').all(|segment| {
        let mut dots = 0;
        let mut only_dots = !segment.is_empty();
        let mut rest = segment.as_bytes();
        while let Some((byte, more)) = next(rest) {
            if byte.is_ascii_control() || byte == b'\\' {
                return false;
            }
            only_dots &= byte == b'.';
            dots += usize::from(byte == b'.');
            rest = more;
        }
        !(only_dots && dots <= 2)
    })
}

/// The next byte of a segment, without its escape.
fn next(text: &[u8]) -> Option<(u8, &[u8])> {
    let digit = |b: u8| char::from(b).to_digit(16);
    match text {
        [b'%', high, low, rest @ ..] => match (digit(*high), digit(*low)) {
            (Some(high), Some(low)) => Some(((high * 16 + low) as u8, rest)),
            // No escape after all: as a control character it is refused.
            _ => Some((0, rest)),
        },
        [b'%', ..] => Some((0, &[])),
        [byte, rest @ ..] => Some((*byte, rest)),
        [] => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(version: Version, uri: &str, hosts: &[&str]) -> Result<(), Problem> {
        let mut request = Request::builder().version(version).uri(uri);
        for host in hosts {
            request = request.header("host", *host);
        }
        let request = request.body(Body::empty()).unwrap();
        check(&request, &Head::read(request.headers()))
    }

    #[test]
    fn a_request_names_exactly_one_host() {
        let good = Ok(());
        let bad = Err(Problem::NO_HOST);
        for (version, uri, hosts, expected) in [
            (Version::HTTP_11, "/", &["example.org"][..], good),
            (Version::HTTP_11, "/", &["example.org:8443"], good),
            (Version::HTTP_11, "/", &["[2001:db8::1]:443"], good),
            (Version::HTTP_11, "/", &[], bad),
            (Version::HTTP_11, "/", &[""], bad),
            (Version::HTTP_11, "/", &["a", "a"], bad),
            (Version::HTTP_11, "/", &["a/b"], bad),
            (Version::HTTP_11, "/", &["user@a"], bad),
            (Version::HTTP_11, "/", &["a:b"], bad),
            (Version::HTTP_11, "/", &["a, b"], bad),
            (Version::HTTP_11, "/", &["[::1"], bad),
            (Version::HTTP_11, "/", &[":80"], bad),
            (Version::HTTP_11, "http://example.org/", &["other"], good),
            (Version::HTTP_11, "http://example.org/", &[], bad),
            (Version::HTTP_11, "http://user@example.org/", &["example.org"], bad),
            (Version::HTTP_10, "/", &[], good),
            (Version::HTTP_10, "/", &["a", "b"], bad),
            (Version::HTTP_2, "https://example.org/", &[], good),
            (Version::HTTP_2, "https://example.org/", &["Example.org"], good),
            (Version::HTTP_2, "https://example.org/", &["other.org"], bad),
            (Version::HTTP_3, "https://example.org/", &["other.org"], bad),
            (Version::HTTP_3, "/", &["example.org"], good),
            (Version::HTTP_3, "/", &[], bad),
        ] {
            assert_eq!(verdict(version, uri, hosts), expected, "{version:?} {uri} {hosts:?}");
        }
    }

    #[test]
    fn an_address_is_no_name_and_neither_is_this_machine() {
        let name = |uri: &str, host: &'static str| {
            let request = Request::builder().uri(uri).header("host", host).body(()).unwrap();
            is_name(request.uri(), &Head::read(request.headers()))
        };
        for host in ["example.org", "example.org:8443", "a.b.example.", "10.example.org", "intranet"] {
            assert!(name("/", host), "{host}");
        }
        for host in [
            "",
            "localhost",
            "LocalHost:7400",
            "shop.localhost",
            "localhost.",
            "127.0.0.1",
            "192.0.2.1:443",
            "[::1]:7400",
            "[::1]",
            "2130706433",
        ] {
            assert!(!name("/", host), "{host}");
        }
        assert!(name("https://example.org/", "127.0.0.1") && !name("https://127.0.0.1/", "example.org"));
    }

    #[test]
    fn a_target_in_absolute_form_decides_the_host() {
        let request = Request::builder().uri("http://example.org:8080/a").header("host", "other.org");
        let mut request = request.body(Body::empty()).unwrap();
        prefer_target(&mut request);
        assert_eq!(request.headers()[HOST], "example.org:8080");
    }

    #[test]
    fn a_path_means_the_same_to_everybody() {
        for good in ["/", "/a.b/c", "/.well-known/x", "/a/...", "/a%20b", "/%C3%BC", "/a//b", "/a..b", "/%2e%2e%2e"] {
            assert_eq!(verdict(Version::HTTP_11, good, &["a"]), Ok(()), "{good}");
        }
        for bad in [
            "/..",
            "/.",
            "/a/../b",
            "/a/./b",
            "/a/..",
            "/%2e%2e/b",
            "/.%2E/b",
            "/a/%2e",
            "/a%00b",
            "/a%0d%0ab",
            "/a%5c..%5cb",
            "/a%",
            "/a%2",
            "/a%zz",
        ] {
            assert_eq!(verdict(Version::HTTP_11, bad, &["a"]), Err(Problem::PATH), "{bad}");
        }
        assert_eq!(verdict(Version::HTTP_11, "example.org:80", &["a"]), Err(Problem::PATH));
    }

    #[test]
    fn a_target_that_is_too_long_is_told_so() {
        let long = format!("/{}", "a".repeat(MAX_URI));
        assert_eq!(verdict(Version::HTTP_11, &long, &["a"]), Err(Problem::URI_TOO_LONG));
        assert_eq!(verdict(Version::HTTP_11, &long[..MAX_URI], &["a"]), Ok(()));
    }

    #[test]
    fn no_tunnels_and_no_echoes() {
        for method in [Method::CONNECT, Method::TRACE] {
            let request = Request::builder().method(method).uri("/").header("host", "a").body(Body::empty()).unwrap();
            assert_eq!(check(&request, &Head::read(request.headers())), Err(Problem::METHOD));
        }
    }
}
