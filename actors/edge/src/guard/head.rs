//! What the guard wants to know of a request's head, read in one pass over its fields.

use http::{HeaderMap, HeaderValue};

use crate::client::is_claim;

/// How often a field that may come once was there.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) enum Once<'a> {
    #[default]
    Absent,
    Given(&'a HeaderValue),
    Repeated,
}

impl<'a> Once<'a> {
    fn see(&mut self, value: &'a HeaderValue) {
        *self = match self {
            Self::Absent => Self::Given(value),
            Self::Given(_) | Self::Repeated => Self::Repeated,
        };
    }

    /// The value, if there is exactly one.
    pub(crate) fn one(self) -> Option<&'a HeaderValue> {
        match self {
            Self::Given(value) => Some(value),
            Self::Absent | Self::Repeated => None,
        }
    }

    pub(crate) fn text(self) -> Option<&'a str> {
        self.one().and_then(|value| value.to_str().ok())
    }
}

/// The fields that matter here.
#[derive(Debug, Default)]
pub(crate) struct Head<'a> {
    /// Bytes of names and values, with what HTTP/2 and 3 count for each field (RFC 9113 §6.5.2).
    pub(crate) bytes: usize,
    pub(crate) host: Once<'a>,
    pub(crate) content_length: Once<'a>,
    pub(crate) request_id: Once<'a>,
    pub(crate) traceparent: Once<'a>,
    pub(crate) tracestate: bool,
    pub(crate) request_timeout: Once<'a>,
    pub(crate) idempotency_key: Once<'a>,
    pub(crate) origin: bool,
    /// Asks what may be asked (Fetch standard §3.2.2).
    pub(crate) preflight: bool,
    /// `X-API-Key`.
    pub(crate) key: bool,
    /// `Authorization`.
    pub(crate) bearer: bool,
    /// Something says where the request comes from: `Forwarded`, `X-Forwarded-…` and their like.
    pub(crate) forwarded: bool,
    pub(crate) gzip: bool,
    pub(crate) html: bool,
    pub(crate) json: bool,
}

/// What a field costs besides its bytes (RFC 9113 §6.5.2).
const FIELD: usize = 32;

impl<'a> Head<'a> {
    pub(crate) fn read(headers: &'a HeaderMap) -> Self {
        let mut head = Self::default();
        for (name, value) in headers {
            let name = name.as_str();
            head.bytes += name.len() + value.len() + FIELD;
            match name {
                "host" => head.host.see(value),
                "content-length" => head.content_length.see(value),
                "accept-encoding" => head.gzip |= weigh(value, &["gzip", "x-gzip", "*"]),
                "accept" => {
                    head.html |= weigh(value, &["text/html"]);
                    head.json |= weigh(value, &["application/json", "application/problem+json"]);
                }
                "authorization" => head.bearer = true,
                "x-api-key" => head.key = true,
                "origin" => head.origin = true,
                "traceparent" => head.traceparent.see(value),
                "tracestate" => head.tracestate = true,
                "x-request-id" => head.request_id.see(value),
                "request-timeout" => head.request_timeout.see(value),
                "idempotency-key" => head.idempotency_key.see(value),
                "access-control-request-method" => head.preflight = true,
                other => head.forwarded |= is_claim(other),
            }
        }
        head
    }
}

/// Whether a list such as `Accept` (RFC 9110 §12.5) takes one of `wanted`: the first of them that it names decides, and
/// a weight of zero says no.
fn weigh(list: &HeaderValue, wanted: &[&str]) -> bool {
    let Ok(list) = list.to_str() else { return false };
    wanted.iter().find_map(|wanted| weight(list, wanted)).unwrap_or(false)
}

fn weight(list: &str, wanted: &str) -> Option<bool> {
    list.split(',').find_map(|item| {
        let mut parts = item.split(';');
        if !parts.next()?.trim().eq_ignore_ascii_case(wanted) {
            return None;
        }
        let zero = |parameter: &str| {
            let (name, value) = parameter.split_once('=').unwrap_or_default();
            name.trim().eq_ignore_ascii_case("q") && value.trim().parse().is_ok_and(|q: f32| q <= 0.0)
        };
        Some(!parts.any(zero))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_client_takes_is_what_it_lists_and_does_not_refuse() {
        for (list, takes) in [
            ("gzip", true),
            ("br, GZIP;q=0.5", true),
            ("*", true),
            ("gzip;q=0, *", false),
            ("gzip; q=0.000", false),
            ("*;q=0", false),
            ("identity", false),
            ("gzippy", false),
            ("", false),
        ] {
            assert_eq!(weigh(&list.parse().unwrap(), &["gzip", "*"]), takes, "{list}");
        }
    }

    #[test]
    fn a_field_that_came_twice_is_told_from_one_that_came_once() {
        let mut headers = HeaderMap::new();
        headers.append("host", "a".parse().unwrap());
        headers.append("traceparent", "x".parse().unwrap());
        headers.append("traceparent", "x".parse().unwrap());
        headers.append("x-forwarded-proto", "https".parse().unwrap());
        let head = Head::read(&headers);
        assert_eq!(head.host.text(), Some("a"));
        assert!(matches!(head.traceparent, Once::Repeated) && head.traceparent.one().is_none());
        assert!(head.forwarded && !head.key && !head.bearer);
        assert_eq!(head.bytes, 4 + 1 + 2 * (11 + 1) + 17 + 5 + 4 * FIELD);
    }
}
