//! Requests as bytes, and answers known by their bytes.
//!
//! A client that builds and parses messages costs as much as the server that is measured, and would be what limits
//! the floor. So requests are encoded once, by the book, and of an answer no more is parsed than tells that it is
//! the right one.

use anyhow::{Context as _, bail, ensure};

use crate::asked::{AGENT, BODY, HOST, KEY_HEADER, METHOD, PATH, UPLOAD, UPLOAD_FIELDS};

/// A request of HTTP/1.1.
pub(crate) fn http1(key: &str) -> Vec<u8> {
    let head = format!("{METHOD} {PATH} HTTP/1.1\r\nhost: {HOST}\r\nuser-agent: {AGENT}\r\n{KEY_HEADER}: {key}\r\n{UPLOAD_FIELDS}\r\n");
    [head.as_bytes(), UPLOAD].concat()
}

/// Whether `bytes` are a whole answer of HTTP/1.1.
pub(crate) fn http1_answered(bytes: &[u8]) -> anyhow::Result<bool> {
    const OK: &[u8] = b"HTTP/1.1 200 ";
    let start = &bytes[..bytes.len().min(OK.len())];
    ensure!(OK.starts_with(start), "answered {:?}", String::from_utf8_lossy(bytes));
    Ok(bytes.strip_suffix(BODY).is_some_and(|head| head.ends_with(b"\r\n\r\n")))
}

/// A frame of HTTP/2 (RFC 9113 §4.1).
fn frame2(out: &mut Vec<u8>, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
    out.extend_from_slice(&(payload.len() as u32).to_be_bytes()[1..]);
    out.extend_from_slice(&[kind, flags]);
    out.extend_from_slice(&stream.to_be_bytes());
    out.extend_from_slice(payload);
}

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;

const END_STREAM: u8 = 1;
const ACK: u8 = 1;
const END_HEADERS: u8 = 4;
const PADDED_OR_PRIORITY: u8 = 0x28;

/// What one client's connection of HTTP/2 says and hears.
#[derive(Debug)]
pub(crate) struct Http2 {
    /// The first request fills the table of HPACK, the others refer to it (RFC 7541 §6.1, §6.2.1), as clients do.
    first: Vec<u8>,
    again: Vec<u8>,
    next: u32,
    /// Of answers' bodies since the connection's window was opened.
    taken: usize,
    /// To be sent.
    pub(crate) out: Vec<u8>,
}

/// What the connection's window is opened by: as far as it goes (RFC 9113 §6.9.1).
const WINDOW: u32 = (1 << 31) - 1 - 65_535;

impl Http2 {
    pub(crate) fn new(key: &str) -> Self {
        // The static table's :method GET, :scheme https, and the names of :path, :authority and user-agent.
        let mut first = vec![0x82, 0x87];
        for (name, value) in [(4, PATH), (1, HOST), (58, AGENT)] {
            first.extend_from_slice(&[0x40 | name, value.len() as u8]);
            first.extend_from_slice(value.as_bytes());
        }
        first.extend_from_slice(&[0x40, KEY_HEADER.len() as u8]);
        first.extend_from_slice(KEY_HEADER.as_bytes());
        first.push(key.len() as u8);
        first.extend_from_slice(key.as_bytes());
        // The latest entry of the dynamic table is number 62.
        let again = vec![0x82, 0x87, 0x80 | 65, 0x80 | 64, 0x80 | 63, 0x80 | 62];
        let mut out = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
        frame2(&mut out, SETTINGS, 0, 0, &[0, 2, 0, 0, 0, 0]); // no pushes
        frame2(&mut out, WINDOW_UPDATE, 0, 0, &WINDOW.to_be_bytes());
        Self { first, again, next: 1, taken: 0, out }
    }

    /// Asks once more.
    pub(crate) fn ask(&mut self) {
        let head = if self.next == 1 { &self.first } else { &self.again };
        frame2(&mut self.out, HEADERS, END_STREAM | END_HEADERS, self.next, head);
        self.next += 2;
    }

    /// Takes the whole frames that `bytes` begins with: their length, and the answers that ended with them.
    pub(crate) fn take(&mut self, bytes: &[u8]) -> anyhow::Result<(usize, u64)> {
        let (mut rest, mut answered) = (bytes, 0);
        while let Some((head, behind)) = rest.split_first_chunk::<9>() {
            let [a, b, c, kind, flags, ..] = *head;
            let Some((payload, behind)) = behind.split_at_checked(u32::from_be_bytes([0, a, b, c]) as usize) else { break };
            rest = behind;
            match kind {
                // 0x88 is the static table's :status 200.
                HEADERS => ensure!(flags & PADDED_OR_PRIORITY == 0 && payload.first() == Some(&0x88), "answered {payload:02x?}"),
                DATA => {
                    ensure!(payload.is_empty() || payload == BODY, "another body: {:?}", String::from_utf8_lossy(payload));
                    self.taken += payload.len();
                    answered += u64::from(flags & END_STREAM != 0);
                }
                SETTINGS if flags & ACK == 0 => frame2(&mut self.out, SETTINGS, ACK, 0, &[]),
                PING if flags & ACK == 0 => frame2(&mut self.out, PING, ACK, 0, payload),
                RST_STREAM | GOAWAY => bail!("the server ended it: frame {kind}, {payload:02x?}"),
                _ => {}
            }
        }
        if self.taken > 1 << 30 {
            frame2(&mut self.out, WINDOW_UPDATE, 0, 0, &(self.taken as u32).to_be_bytes());
            self.taken = 0;
        }
        Ok((bytes.len() - rest.len(), answered))
    }
}

/// The control stream of an HTTP/3 client: its type, and SETTINGS that set nothing (RFC 9114 §6.2.1, §7.2.4).
pub(crate) const HTTP3_CONTROL: [u8; 3] = [0, 4, 0];

/// A request of HTTP/3: one HEADERS frame, with the static table of QPACK alone (RFC 9204).
pub(crate) fn http3(key: &str) -> Vec<u8> {
    // :method GET and :scheme https, then the names of :path, :authority and user-agent.
    let mut fields = vec![0, 0, 0xc0 | 17, 0xc0 | 23];
    for (name, value) in [(&[0x51][..], PATH), (&[0x50], HOST), (&[0x5f, 95 - 15], AGENT)] {
        fields.extend_from_slice(name);
        fields.push(value.len() as u8);
        fields.extend_from_slice(value.as_bytes());
    }
    fields.extend_from_slice(&[0x27, KEY_HEADER.len() as u8 - 7]);
    fields.extend_from_slice(KEY_HEADER.as_bytes());
    fields.push(key.len() as u8);
    fields.extend_from_slice(key.as_bytes());
    let length = 0x4000 | fields.len() as u16;
    let mut frame = vec![1];
    frame.extend_from_slice(&length.to_be_bytes());
    frame.append(&mut fields);
    frame
}

/// Checks a whole answer of HTTP/3.
pub(crate) fn http3_answered(mut bytes: &[u8]) -> anyhow::Result<()> {
    let (mut status, mut body) = (false, false);
    while !bytes.is_empty() {
        let kind = varint(&mut bytes).context("a frame without a kind")?;
        let length = varint(&mut bytes).context("a frame without a length")?;
        let (payload, behind) = bytes.split_at_checked(length as usize).context("a frame that is cut off")?;
        bytes = behind;
        match kind {
            // The static table's :status 200.
            1 => status = payload.get(2) == Some(&(0xc0 | 25)),
            0 => body = payload == BODY,
            // Those that mean nothing, for servers and clients to be used to them (RFC 9114 §7.2.8).
            _ => {}
        }
    }
    ensure!(status && body, "another answer");
    Ok(())
}

/// A variable-length integer (RFC 9000 §16).
fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let (first, _) = bytes.split_first()?;
    let (number, behind) = bytes.split_at_checked(1 << (first >> 6))?;
    *bytes = behind;
    Some(number.iter().skip(1).fold(u64::from(number[0] & 0x3f), |value, byte| value << 8 | u64::from(*byte)))
}
