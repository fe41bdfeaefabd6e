//! What may stand in a request's head, and what goes along to another origin.
//!
//! Pure. That no value holds a line's end or a zero byte is `http`'s own promise: none of its types can hold one.

use http::{
    HeaderMap, HeaderName, HeaderValue, Method,
    header::{
        ACCEPT, ACCEPT_LANGUAGE, CONNECTION, CONTENT_ENCODING, CONTENT_LANGUAGE, CONTENT_LENGTH, CONTENT_TYPE, EXPECT, HOST,
        PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, RANGE, TE, TRAILER, TRANSFER_ENCODING, UPGRADE, USER_AGENT,
    },
};

use super::error::RequestError;

/// Fields of a request, and their bytes with what stands between them: what common servers take.
const MAX_FIELDS: usize = 100;
const MAX_BYTES: usize = 32 * 1024;

/// Between two neighbours only (RFC 9110 §7.6.1); and `Host`, which the URL decides, `Expect`, which would hold the body back, and
/// what is for a proxy, as there is none.
const NOT_THE_CALLERS: [HeaderName; 13] = [
    CONNECTION,
    EXPECT,
    HOST,
    HeaderName::from_static("http2-settings"),
    HeaderName::from_static("keep-alive"),
    PROXY_AUTHENTICATE,
    PROXY_AUTHORIZATION,
    HeaderName::from_static("proxy-connection"),
    HeaderName::from_static("proxy-authentication-info"),
    TE,
    TRAILER,
    TRANSFER_ENCODING,
    UPGRADE,
];

/// What another origin may see. Not a list of what it may not, as keys come under any name (`X-Api-Key`, signatures, cookies).
const GOES_ANYWHERE: [HeaderName; 8] =
    [ACCEPT, ACCEPT_LANGUAGE, CONTENT_ENCODING, CONTENT_LANGUAGE, CONTENT_TYPE, RANGE, USER_AGENT, HeaderName::from_static("traceparent")];

const AGENT: HeaderValue = HeaderValue::from_static(concat!("horos/", env!("CARGO_PKG_VERSION")));

/// Checks a request's head, and leaves the body's length to the body, of which `length` is what is known.
pub(crate) fn outgoing(method: &Method, headers: &mut HeaderMap, length: Option<u64>) -> Result<(), RequestError> {
    if matches!(*method, Method::CONNECT | Method::TRACE) {
        return Err(RequestError::Method);
    }
    if let Some(name) = headers.keys().find(|name| NOT_THE_CALLERS.contains(name)) {
        return Err(RequestError::Field(name.clone()));
    }
    // Four bytes a field: a colon, a space and a line's end.
    let bytes: usize = headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 4).sum();
    if headers.len() > MAX_FIELDS || bytes > MAX_BYTES {
        return Err(RequestError::TooLarge);
    }
    let mut lengths = headers.get_all(CONTENT_LENGTH).iter();
    if let Some(said) = lengths.next() {
        let digits = said.to_str().ok().filter(|text| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()));
        let said: Option<u64> = digits.and_then(|text| text.parse().ok());
        if said.is_none() || lengths.next().is_some() || length.is_some_and(|length| said != Some(length)) {
            return Err(RequestError::Length);
        }
    }
    headers.remove(CONTENT_LENGTH);
    headers.entry(USER_AGENT).or_insert(AGENT);
    Ok(())
}

/// Keeps of `headers` what another origin may see.
pub(crate) fn strip(headers: &mut HeaderMap) {
    let before = std::mem::take(headers);
    for (name, value) in &before {
        if GOES_ANYWHERE.contains(name) && !value.is_sensitive() {
            headers.append(name.clone(), value.clone());
        }
    }
}

/// Drops what speaks of a body that is not sent.
pub(crate) fn without_body(headers: &mut HeaderMap) {
    for name in [CONTENT_ENCODING, CONTENT_LANGUAGE, CONTENT_TYPE, HeaderName::from_static("content-location")] {
        headers.remove(name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(method: Method, lines: &[(&str, &str)], length: Option<u64>) -> Result<HeaderMap, RequestError> {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(HeaderName::try_from(*name).unwrap(), value.parse().unwrap());
        }
        outgoing(&method, &mut headers, length).map(|()| headers)
    }

    #[test]
    fn what_drives_a_connection_is_not_the_callers_to_say() {
        for name in ["host", "connection", "transfer-encoding", "te", "upgrade", "expect", "proxy-authorization", "keep-alive"] {
            let refused = Err(RequestError::Field(HeaderName::try_from(name).unwrap()));
            assert_eq!(check(Method::GET, &[(name, "x")], None), refused, "{name}");
        }
        for method in [Method::CONNECT, Method::TRACE] {
            assert_eq!(check(method, &[], None), Err(RequestError::Method));
        }
        assert!(HeaderValue::try_from("a\r\nHost: b").is_err() && HeaderValue::try_from("a\0").is_err());
        assert!(HeaderName::try_from("a\r\nb").is_err());
    }

    #[test]
    fn a_length_is_the_bodys_or_refused() {
        let lines = |text| [("content-length", text)];
        assert!(!check(Method::POST, &lines("3"), Some(3)).unwrap().contains_key(CONTENT_LENGTH));
        for text in ["4", "+3", "3, 3", "0x3", "99999999999999999999"] {
            assert_eq!(check(Method::POST, &lines(text), Some(3)), Err(RequestError::Length), "{text}");
        }
        let twice = [("content-length", "3"), ("content-length", "3")];
        assert_eq!(check(Method::POST, &twice, Some(3)), Err(RequestError::Length));
    }

    #[test]
    fn a_head_has_an_end() {
        let many: Vec<_> = (0..=MAX_FIELDS).map(|n| (format!("x-{n}"), "y".to_owned())).collect();
        let many: Vec<_> = many.iter().map(|(name, value)| (&**name, &**value)).collect();
        assert_eq!(check(Method::GET, &many, None), Err(RequestError::TooLarge));
        assert_eq!(check(Method::GET, &[("x", &"y".repeat(MAX_BYTES))], None), Err(RequestError::TooLarge));
    }

    #[test]
    fn no_key_goes_to_another_origin_under_whatever_name() {
        let lines =
            [("authorization", "x"), ("cookie", "x"), ("x-api-key", "x"), ("signature", "x"), ("accept", "text/plain"), ("range", "y")];
        let mut headers = check(Method::GET, &lines, None).unwrap();
        headers.get_mut("range").unwrap().set_sensitive(true);
        strip(&mut headers);
        let mut left: Vec<_> = headers.keys().map(HeaderName::as_str).collect();
        left.sort_unstable();
        assert_eq!(left, ["accept", "user-agent"]);
    }
}
