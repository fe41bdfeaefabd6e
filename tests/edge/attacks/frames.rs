//! Frames of HTTP/2 (RFC 9113) and HTTP/3 (RFC 9114), and the fields in them, as bytes.

// --- HTTP/2, RFC 9113 §6 --------------------------------------------------------------------------

pub(super) const DATA: u8 = 0;
pub(super) const HEADERS: u8 = 1;
pub(super) const RST_STREAM: u8 = 3;
pub(super) const SETTINGS: u8 = 4;
pub(super) const PING: u8 = 6;
pub(super) const GOAWAY: u8 = 7;
pub(super) const WINDOW_UPDATE: u8 = 8;
pub(super) const CONTINUATION: u8 = 9;
pub(super) const END_STREAM: u8 = 1;
pub(super) const ACK: u8 = 1;
pub(super) const END_HEADERS: u8 = 4;
/// Entries of HPACK's static table (RFC 7541 appendix A).
pub(super) const GET: u8 = 0x82;
pub(super) const POST: u8 = 0x83;

pub(super) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("a frame of a test").to_be_bytes();
    let mut frame = vec![length[1], length[2], length[3], kind, flags];
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// RFC 7541 §5.1 with a prefix of 7 bits, and the text itself.
pub(super) fn hpack_text(text: &str) -> Vec<u8> {
    let mut bytes = prefixed(text.len(), 7, 0);
    bytes.extend(text.as_bytes());
    bytes
}

pub(super) fn prefixed(number: usize, bits: u32, flags: u8) -> Vec<u8> {
    let most = (1_usize << bits) - 1;
    if number < most {
        return vec![flags | number as u8];
    }
    let mut bytes = vec![flags | most as u8];
    let mut rest = number - most;
    while rest >= 128 {
        bytes.push((rest % 128) as u8 | 0x80);
        rest /= 128;
    }
    bytes.push(rest as u8);
    bytes
}

/// A field that goes into no table.
pub(super) fn literal(name: &str, value: &str) -> Vec<u8> {
    [vec![0x00], hpack_text(name), hpack_text(value)].concat()
}

// --- HTTP/3, RFC 9114 §7 and RFC 9204 §4.5.6 --------------------------------------------------------

pub(super) fn h3_frame(kind: u8, payload: &[u8]) -> Vec<u8> {
    let length = (u32::try_from(payload.len()).expect("a frame of a test") | 0x8000_0000).to_be_bytes();
    [&[kind], &length[..], payload].concat()
}

pub(super) fn qpack_literal(name: &str, value: &str) -> Vec<u8> {
    let mut bytes = prefixed(name.len(), 3, 0x20);
    bytes.extend(name.as_bytes());
    bytes.extend(prefixed(value.len(), 7, 0));
    bytes.extend(value.as_bytes());
    bytes
}
