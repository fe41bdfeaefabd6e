//! Key after key, as cheaply as they can be sent: what is measured is who refuses them, not who makes them up.
//!
//! A request is bytes made once, of which a guess changes the stream and a few digits; of an answer only the status is read.
//! Many go in one write, and many answers come in one read.

use std::io::Write as _;
use std::ops::Range;
use std::sync::atomic::Ordering::Relaxed;

use anyhow::{Result, ensure};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::World;
use super::frames::*;

/// Guesses on their way at once on a connection: fewer than a node takes, and enough that neither end waits for the other.
const IN_FLIGHT: usize = 32;
/// A head of a frame (RFC 9113 §4.1).
const HEAD: usize = 9;
/// Digits of a guess that change, and are all the more the attacker's own: 16 of its number, 16 that count.
const DIGITS: usize = 32;
/// SETTINGS_HEADER_TABLE_SIZE and SETTINGS_INITIAL_WINDOW_SIZE: no table, so that each answer's status can be read by itself,
/// and windows that no answer fills.
const GREETING: [u8; 12] = [0, 1, 0, 0, 0, 0, 0, 4, 0x7f, 0xff, 0xff, 0xff];

/// What became of a guess; an index into the tally.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Became {
    Denied,
    ToldToWait,
    Other,
}

/// The request, to be changed a little for each guess.
struct Request {
    bytes: Vec<u8>,
    digits: Range<usize>,
}

impl Request {
    /// `fields` end with a key.
    fn new(fields: &[u8]) -> Self {
        let bytes = frame(HEADERS, END_HEADERS | END_STREAM, 0, fields);
        let digits = bytes.len() - DIGITS..bytes.len();
        Self { bytes, digits }
    }

    fn guess(&mut self, stream: u32, number: u64, guess: u64) -> &[u8] {
        self.bytes[5..HEAD].copy_from_slice(&stream.to_be_bytes());
        let mut digits = &mut self.bytes[self.digits.clone()];
        write!(digits, "{number:016x}{guess:016x}").expect("so many digits are there");
        &self.bytes
    }
}

/// The first field of an answer's block, `:status` as a literal (RFC 7541 §6.2), behind a change of the table's size, if any
/// (§6.3). The two that are expected in Huffman's code, as the node writes them.
fn became(block: &[u8]) -> Became {
    let block = block.strip_prefix(&[0x20]).unwrap_or(block);
    match block {
        // Named by any entry for `:status`, and whether or not it is to be kept in the table.
        [0x48..=0x4e | 0x08..=0x0e, 0x82, 0x68, 0x01, ..] => Became::Denied,
        [0x48..=0x4e | 0x08..=0x0e, 0x83, 0x68, 0x4f, 0xff, ..] => Became::ToldToWait,
        // 503: the owner of the keys, who is asked about what is not known here, did not answer in time. Nobody came in.
        [0x48..=0x4e | 0x08..=0x0e, 0x83, 0x6c, 0x0c, 0xff, ..] => Became::ToldToWait,
        _ => Became::Other,
    }
}

impl World {
    /// Guesses on one connection from an address of its own, until the node ends it.
    pub(super) async fn guess(&self, number: u64, first: &mut bool) -> Result<()> {
        let mut stream = self.http2(number).await?;
        stream.write_all(&frame(SETTINGS, 0, 0, &GREETING)).await?;
        stream.write_all(&frame(WINDOW_UPDATE, 0, 0, &0x7fff_0000_u32.to_be_bytes())).await?;
        self.begun(first);
        let mut request = Request::new(&self.fields(GET, "/drill/echo"));
        let (mut guess, mut id, mut on_the_way) = (0, 1, 0);
        let (mut out, mut received) = (Vec::new(), Vec::with_capacity(64 * 1024));
        loop {
            // Half of them at a time, so that there is something to gather in a write.
            if on_the_way <= IN_FLIGHT / 2 {
                while on_the_way < IN_FLIGHT {
                    out.extend_from_slice(request.guess(id, number, guess));
                    (guess, id, on_the_way) = (guess + 1, id + 2, on_the_way + 1);
                }
            }
            if !out.is_empty() {
                stream.write_all(&out).await?;
                out.clear();
            }
            ensure!(stream.read_buf(&mut received).await? > 0, "the node has ended it");
            let mut read = 0;
            while let Some((kind, flags, payload)) = next(&received[read..]) {
                read += HEAD + payload.len();
                match kind {
                    HEADERS => {
                        self.tally.answers[became(payload) as usize].fetch_add(1, Relaxed);
                        on_the_way -= usize::from(flags & END_STREAM != 0);
                    }
                    DATA => on_the_way -= usize::from(flags & END_STREAM != 0),
                    RST_STREAM => {
                        self.tally.answers[Became::Other as usize].fetch_add(1, Relaxed);
                        on_the_way -= 1;
                    }
                    SETTINGS | PING if flags & ACK == 0 => {
                        out.extend(frame(kind, ACK, 0, if kind == PING { payload } else { &[] }));
                    }
                    GOAWAY => return Ok(()),
                    _ => {}
                }
            }
            received.drain(..read);
        }
    }
}

/// The kind, flags and payload of the first frame in `bytes`, once all of it is there.
fn next(bytes: &[u8]) -> Option<(u8, u8, &[u8])> {
    let head = bytes.get(..HEAD)?;
    let length = usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2]);
    Some((head[3], head[4], bytes.get(HEAD..HEAD + length)?))
}

#[test]
fn an_answer_to_a_guess_is_told_by_its_first_field() {
    // 401, 429 and 503 in Huffman's code (RFC 7541 appendix B): 011010 00000 00001, 011010 00010 011111 and seven ones, and 011011 00000
    // 011001 and as many.
    for (block, expected) in [
        (&[0x48, 0x82, 0x68, 0x01, 0x5f][..], Became::Denied),
        (&[0x20, 0x08, 0x82, 0x68, 0x01], Became::Denied),
        (&[0x48, 0x83, 0x68, 0x4f, 0xff, 0x5f], Became::ToldToWait),
        (&[0x48, 0x83, 0x6c, 0x0c, 0xff, 0x5f], Became::ToldToWait),
        (&[0x88], Became::Other),
        (&[0x8d, 0x82, 0x68, 0x01], Became::Other),
        (&[], Became::Other),
    ] {
        assert_eq!(became(block), expected, "{block:02x?}");
    }
    let mut request = Request::new(&literal("x-api-key", &format!("hk_{}", "0".repeat(64))));
    let text = request.guess(7, 3, 0xabc).to_vec();
    assert!(text.ends_with(b"hk_0000000000000000000000000000000000000000000000030000000000000abc"), "{text:02x?}");
    assert_eq!(next(&text).map(|(kind, flags, payload)| (kind, flags, payload.len())), Some((HEADERS, 5, text.len() - HEAD)));
    assert!(next(&text[..text.len() - 1]).is_none());
}
