//! What a request shows for itself: at most one key and at most one token.

use http::{
    HeaderMap, HeaderName, HeaderValue,
    header::{AUTHORIZATION, GetAll},
};

use super::visit::Asks;
use crate::Credential;

pub(crate) const X_API_KEY: HeaderName = HeaderName::from_static("x-api-key");
/// What a key begins with.
const KEY: &str = "hk_";
/// Longest key that is looked at; real ones have 67 characters.
const MAX_KEY: usize = 128;
/// Longest token that is looked at: a signed set of claims with 64 scopes is far shorter.
const MAX_TOKEN: usize = 8 * 1024;

/// What was shown. A key says what may be done; a token beside it says for whom.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Shown {
    pub(crate) key: Option<Credential>,
    pub(crate) token: Option<Credential>,
}

/// What was shown has not the form of credentials, or is two where one can hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Malformed;

impl Shown {
    /// What `headers` show, where `asks` says that they show something.
    pub(crate) fn read(headers: &HeaderMap, asks: Asks) -> Result<Self, Malformed> {
        let mut shown = Self::default();
        if asks.key
            && let Some(value) = single(headers.get_all(X_API_KEY))?
        {
            shown.key = Some(Credential::Key(text(value, MAX_KEY)?.into()));
        }
        if !asks.bearer {
            return Ok(shown);
        }
        let Some(value) = single(headers.get_all(AUTHORIZATION))? else { return Ok(shown) };
        // RFC 9110 §11.4: the scheme in any case, then spaces; RFC 6750 §2.1.
        let (scheme, rest) = value.to_str().map_err(|_| Malformed)?.split_once(' ').ok_or(Malformed)?;
        let bearer = rest.trim_start_matches(' ');
        if !scheme.eq_ignore_ascii_case("bearer") {
            return Err(Malformed);
        }
        let (place, credential) = if bearer.starts_with(KEY) {
            (&mut shown.key, Credential::Key(check(bearer, MAX_KEY)?.into()))
        } else {
            (&mut shown.token, Credential::Token(check(bearer, MAX_TOKEN)?.into()))
        };
        match place.replace(credential) {
            None => Ok(shown),
            Some(_) => Err(Malformed),
        }
    }
}

fn single(values: GetAll<'_, HeaderValue>) -> Result<Option<&HeaderValue>, Malformed> {
    let mut values = values.iter();
    let first = values.next();
    if values.next().is_some() { Err(Malformed) } else { Ok(first) }
}

fn text(value: &HeaderValue, most: usize) -> Result<&str, Malformed> {
    // Checked as bytes, the characters are all of ASCII: what `to_str` would look for, byte by byte, is known then.
    let text = std::str::from_utf8(value.as_bytes()).map_err(|_| Malformed)?;
    check(text, most)
}

/// The characters of keys and tokens, `token68` of RFC 9110 §11.2: a list of two is none.
fn check(text: &str, most: usize) -> Result<&str, Malformed> {
    /// By byte, because each request's key goes through here.
    const PLAIN: [bool; 256] = {
        let (mut plain, mut byte) = ([false; 256], 0_u8);
        while byte < 128 {
            plain[byte as usize] = byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~' | b'+' | b'/' | b'=');
            byte += 1;
        }
        plain
    };
    if (1..=most).contains(&text.len()) && text.bytes().all(|byte| PLAIN[usize::from(byte)]) { Ok(text) } else { Err(Malformed) }
}

/// Nothing shows them from here on: neither `Debug` of the head, nor a table of HTTP/2's compression.
pub(crate) fn hide(headers: &mut HeaderMap) {
    for name in [&X_API_KEY, &AUTHORIZATION] {
        if let http::header::Entry::Occupied(mut values) = headers.entry(name) {
            values.iter_mut().for_each(|value| value.set_sensitive(true));
        }
    }
}

/// They have proved what they can, and go no further.
pub(crate) fn remove(headers: &mut HeaderMap, asks: Asks) {
    if asks.key {
        headers.remove(X_API_KEY);
    }
    if asks.bearer {
        headers.remove(AUTHORIZATION);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOTH: Asks = Asks { key: true, bearer: true, gzip: false, page: false, json: false, origin: false, preflight: false };

    fn shown(lines: &[(&'static str, &str)]) -> Result<Shown, Malformed> {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(*name, value.parse().unwrap());
        }
        Shown::read(&headers, BOTH)
    }

    fn both(key: Option<&str>, token: Option<&str>) -> Result<Shown, Malformed> {
        let credential = |text: Option<&str>, kind: fn(Box<str>) -> Credential| text.map(|text| kind(text.into()));
        Ok(Shown { key: credential(key, Credential::Key), token: credential(token, Credential::Token) })
    }

    #[test]
    fn a_key_and_a_token_may_come_together_and_each_in_its_place() {
        assert_eq!(shown(&[]), both(None, None));
        assert_eq!(shown(&[("x-api-key", "hk_1")]), both(Some("hk_1"), None));
        assert_eq!(shown(&[("authorization", "Bearer hk_1")]), both(Some("hk_1"), None));
        assert_eq!(shown(&[("authorization", "bEARER  a.b.c")]), both(None, Some("a.b.c")));
        assert_eq!(shown(&[("authorization", "Bearer a.b.c"), ("x-api-key", "hk_1")]), both(Some("hk_1"), Some("a.b.c")));
    }

    #[test]
    fn two_of_a_kind_and_what_is_neither_are_nothing() {
        let long = format!("hk_{}", "0".repeat(MAX_KEY));
        for lines in [
            &[("x-api-key", "hk_1"), ("x-api-key", "hk_1")][..],
            &[("x-api-key", "hk_1"), ("authorization", "Bearer hk_2")],
            &[("authorization", "Bearer a"), ("authorization", "Bearer b")],
            &[("x-api-key", "")],
            &[("x-api-key", "hk_1, hk_2")],
            &[("x-api-key", &long)],
            &[("authorization", "Bearer")],
            &[("authorization", "Bearer ")],
            &[("authorization", "Basic YTpi")],
            &[("authorization", "Bearer a b")],
            &[("authorization", "a.b.c")],
        ] {
            assert_eq!(shown(lines), Err(Malformed), "{lines:?}");
        }
    }

    #[test]
    fn what_is_hidden_is_in_no_debug_text() {
        let mut headers = HeaderMap::new();
        headers.append("authorization", "Bearer secret".parse().unwrap());
        headers.append("authorization", "Bearer secret".parse().unwrap());
        headers.append("x-api-key", "secret".parse().unwrap());
        hide(&mut headers);
        assert!(!format!("{headers:?}").contains("secret"));
        remove(&mut headers, BOTH);
        assert!(headers.is_empty());
    }
}
