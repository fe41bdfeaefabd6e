//! Heads of answers in the form of HTTP/3 (RFC 9204 §4.5): the static table, and no Huffman code.
//!
//! h3's own encoder takes an allocation and a walk over the bits for each name and value: five of the fourteen microseconds
//! that a small request cost (measured). What is not saved is a fifth of a head that fits its packet all the same.

use bytes::Bytes;
use http::{HeaderMap, StatusCode};

/// Heads up to this size, as RFC 9114 §4.2.2 counts it, are written here. Larger ones are h3's, which knows what the client
/// has said that it takes; less than this nobody does.
const SMALL: usize = 2048;
/// What a field counts besides its bytes.
const FIELD: usize = 32;
/// A frame of type HEADERS, and a length of two bytes: no head is encoded larger than it counts.
const HEADERS: u8 = 1;
const LENGTH: u16 = 0x4000;
/// Most that the header of a DATA frame takes.
const DATA_HEADER: usize = 9;

const INDEXED: u8 = 0b1100_0000;
const NAMED: u8 = 0b0101_0000;
const LITERAL: u8 = 0b0010_0000;
/// For the client's proxies: not to be indexed anywhere (RFC 9204 §7.1.3).
const NEVER_NAMED: u8 = 0b0010_0000;
const NEVER_LITERAL: u8 = 0b0001_0000;

/// The frame of a head, and behind it one of DATA with `rest` unless that is empty; `None` when the head is not small.
pub(super) fn encode(status: StatusCode, headers: &HeaderMap, rest: &[u8]) -> Option<Bytes> {
    let size = headers.iter().fold(":status200".len() + FIELD, |size, (name, value)| size + name.as_str().len() + value.len() + FIELD);
    if size > SMALL {
        return None;
    }
    let mut out = Vec::with_capacity(size + rest.len() + DATA_HEADER);
    out.extend_from_slice(&[HEADERS, 0, 0, 0, 0]); // the length is put in at the end; a block without a dynamic table begins with zeros
    match status_index(status) {
        Some(index) => integer(&mut out, INDEXED, 6, index),
        None => {
            integer(&mut out, NAMED, 4, STATUS);
            text(&mut out, status.as_str().as_bytes());
        }
    }
    for (name, value) in headers {
        let never = value.is_sensitive();
        let (name, value) = (name.as_str(), value.as_bytes());
        match named(name, value) {
            Some((index, true)) if !never => integer(&mut out, INDEXED, 6, index),
            Some((index, _)) => {
                integer(&mut out, if never { NAMED | NEVER_NAMED } else { NAMED }, 4, index);
                text(&mut out, value);
            }
            None => {
                integer(&mut out, if never { LITERAL | NEVER_LITERAL } else { LITERAL }, 3, name.len());
                out.extend_from_slice(name.as_bytes());
                text(&mut out, value);
            }
        }
    }
    let length = u16::try_from(out.len() - 3).expect("a small head") | LENGTH;
    out[1..3].copy_from_slice(&length.to_be_bytes());
    if !rest.is_empty() {
        out.extend_from_slice(&super::frames::data_header(rest.len()));
        out.extend_from_slice(rest);
    }
    Some(out.into())
}

/// An integer behind the bits of `first` (RFC 7541 §5.1).
fn integer(out: &mut Vec<u8>, first: u8, bits: u32, value: usize) {
    let most = (1 << bits) - 1;
    if value < most {
        return out.push(first | value as u8);
    }
    out.push(first | most as u8);
    let mut rest = value - most;
    while rest >= 128 {
        out.push(rest as u8 | 128);
        rest >>= 7;
    }
    out.push(rest as u8);
}

fn text(out: &mut Vec<u8>, text: &[u8]) {
    integer(out, 0, 7, text.len());
    out.extend_from_slice(text);
}

/// Any of the entries called `:status`.
const STATUS: usize = 25;

/// RFC 9204, appendix A.
fn status_index(status: StatusCode) -> Option<usize> {
    Some(match status.as_u16() {
        103 => 24,
        200 => 25,
        304 => 26,
        404 => 27,
        503 => 28,
        100 => 63,
        204 => 64,
        206 => 65,
        302 => 66,
        400 => 67,
        403 => 68,
        421 => 69,
        425 => 70,
        500 => 71,
        _ => return None,
    })
}

/// The entry of the static table that has this name, and whether it has this value too (RFC 9204, appendix A): of what
/// answers say.
fn named(name: &str, value: &[u8]) -> Option<(usize, bool)> {
    let among = |entries: &[(usize, &str)]| {
        let found = entries.iter().find(|(_, known)| known.as_bytes() == value);
        found.or(entries.first()).map(|(index, _)| (*index, found.is_some()))
    };
    match name {
        "accept-ranges" => among(&[(32, "bytes")]),
        "access-control-allow-credentials" => among(&[(74, "TRUE")]),
        "access-control-allow-headers" => among(&[(75, "*")]),
        "access-control-allow-origin" => among(&[(35, "*")]),
        "age" => among(&[(2, "0")]),
        "alt-svc" => Some((83, false)),
        "cache-control" => among(&[(39, "no-cache"), (40, "no-store"), (36, "max-age=0"), (37, "max-age=2592000"), (38, "max-age=604800")]),
        "content-disposition" => Some((3, false)),
        "content-encoding" => among(&[(43, "gzip"), (42, "br")]),
        "content-length" => among(&[(4, "0")]),
        "content-security-policy" => Some((85, false)),
        "content-type" => among(&[
            (46, "application/json"),
            (52, "text/html; charset=utf-8"),
            (53, "text/plain"),
            (45, "application/javascript"),
            (48, "image/gif"),
            (49, "image/jpeg"),
            (50, "image/png"),
            (51, "text/css"),
        ]),
        "date" => Some((6, false)),
        "etag" => Some((7, false)),
        "last-modified" => Some((10, false)),
        "link" => Some((11, false)),
        "location" => Some((12, false)),
        "server" => Some((92, false)),
        "set-cookie" => Some((14, false)),
        "strict-transport-security" => among(&[(56, "max-age=31536000")]),
        "vary" => among(&[(59, "accept-encoding"), (60, "origin")]),
        "x-content-type-options" => among(&[(61, "nosniff")]),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn a_head_is_written_as_its_standard_has_it() {
        let mut headers = HeaderMap::new();
        headers.append("content-type", HeaderValue::from_static("application/json"));
        headers.append("etag", HeaderValue::from_static("\"1\""));
        headers.append("x-long-name", HeaderValue::from_static("v"));
        let mut secret = HeaderValue::from_static("s");
        secret.set_sensitive(true);
        headers.append("set-cookie", secret);
        let frame = encode(StatusCode::OK, &headers, b"").unwrap();
        assert_eq!(encode(StatusCode::OK, &headers, b"rest").unwrap(), [&frame[..], b"\0\x04rest"].concat());
        let block = [&[0, 0, 0xc0 | 25, 0xc0 | 46, 0x57, 3][..], b"\"1\"", &[0x27, 4], b"x-long-name", &[1, b'v', 0x7e, 1, b's']].concat();
        let expected = [&[1, 0x40, block.len() as u8][..], &block].concat();
        // The map has an order of its own.
        assert_eq!(frame.len(), expected.len());
        assert_eq!(frame[..6], expected[..6]);
        let mut sorted = [frame.to_vec(), expected];
        sorted.iter_mut().for_each(|bytes| bytes.sort_unstable());
        assert_eq!(sorted[0], sorted[1]);
        assert_eq!(encode(StatusCode::IM_A_TEAPOT, &HeaderMap::new(), b"").unwrap()[3..], *b"\0\0\x5f\x0a\x03418");
    }

    #[test]
    fn integers_grow_past_their_prefix() {
        // RFC 7541, appendix C.1.
        for (bits, value, expected) in [(5, 10, &[10][..]), (5, 1337, &[31, 154, 10]), (8, 42, &[42]), (4, 15, &[15, 0])] {
            let mut out = Vec::new();
            integer(&mut out, 0, bits, value);
            assert_eq!(out, expected, "{value}");
        }
    }

    #[test]
    fn a_large_head_is_left_to_h3() {
        let mut headers = HeaderMap::new();
        headers.append("x-fill", HeaderValue::try_from("a".repeat(1900)).unwrap());
        assert_eq!(encode(StatusCode::OK, &headers, b"").unwrap().len(), 1 + 2 + 2 + 1 + 1 + 6 + 3 + 1900);
        headers.append("x-more", HeaderValue::try_from("a".repeat(100)).unwrap());
        assert_eq!(encode(StatusCode::OK, &headers, b""), None);
    }
}
