//! What a request is called: its id, and its place in a trace (W3C Trace Context).

use std::time::{Duration, SystemTime};

use horos_wire::{
    TraceId,
    id::{Entropy, EntropyError, Kind as _, Request, UnixMillis, Uuid7s},
};
use http::HeaderValue;
use parking_lot::Mutex;
use rand::Rng;

/// Longest request id that is taken over from a proxy.
const MAX_ID: usize = 128;

/// Makes the names of requests: one for all versions, so that their ids rise together.
#[derive(Debug, Default)]
pub(crate) struct Ids(Mutex<Uuid7s>);

/// What one request needs of it, drawn at once from the thread's own generator, which the system seeds: three draws cost
/// three times as much.
pub(crate) struct Random {
    id: [u8; 16],
    trace: u128,
    span: u64,
}

impl Random {
    pub(crate) fn draw() -> Self {
        let mut bytes = [0; 40];
        rand::rng().fill_bytes(&mut bytes);
        let (id, rest) = bytes.split_first_chunk().expect("16 of 40 bytes");
        let (trace, rest) = rest.split_first_chunk().expect("16 of 24 bytes");
        let (span, _) = rest.split_first_chunk().expect("the last 8 bytes");
        Self { id: *id, trace: u128::from_le_bytes(*trace), span: u64::from_le_bytes(*span) }
    }
}

impl Entropy for Random {
    fn fill(&mut self, bytes: &mut [u8]) -> Result<(), EntropyError> {
        match self.id.get(..bytes.len()) {
            // An id takes less than this, and takes it once.
            Some(drawn) => bytes.copy_from_slice(drawn),
            None => rand::rng().fill_bytes(bytes),
        }
        Ok(())
    }
}

impl Ids {
    /// The id of the next request: `req_` and a UUIDv7.
    pub(crate) fn next(&self, now: SystemTime, random: &mut Random) -> HeaderValue {
        let made = self.0.lock().next(UnixMillis::from(now), random);
        // The clock past the year 10889 is the one failure that is left, and no reason not to serve.
        let Ok(uuid) = made else { return HeaderValue::try_from(format!("req_{:032x}", random.trace)).unwrap_or(NO_ID) };
        let mut text = [0; ID];
        text[..PREFIX.len()].copy_from_slice(PREFIX.as_bytes());
        uuid.hyphenated().encode_lower(&mut text[PREFIX.len()..]);
        HeaderValue::from_bytes(&text).unwrap_or(NO_ID)
    }
}

/// As [`horos_wire::id::Id`] shows it, without the way through a formatter.
const PREFIX: &str = Request::PREFIX.as_str();
const ID: usize = PREFIX.len() + 36;
/// Letters and digits are a header's value; this stands for what cannot be.
const NO_ID: HeaderValue = HeaderValue::from_static("req_0");

/// Whether a request's id from a proxy can be taken over: what stands in logs, headers and rows must be plain.
pub(crate) fn well_formed(id: &HeaderValue) -> bool {
    let plain = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b':');
    (1..=MAX_ID).contains(&id.len()) && id.as_bytes().iter().all(plain)
}

/// Where a request stands in a trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Trace {
    pub(crate) id: TraceId,
    /// This request's own span.
    span: u64,
    flags: u8,
    /// Whether it goes on with one that the client began.
    pub(crate) followed: bool,
}

impl Trace {
    /// Goes on with the trace of a valid `traceparent`, or begins one.
    pub(crate) fn follow(parent: Option<&str>, random: &Random) -> Self {
        // Zero means none, and is drawn once in 2^64.
        let span = random.span.max(1);
        match parent.and_then(parse) {
            Some((id, flags)) => Self { id, span, flags, followed: true },
            None => Self { id: TraceId(random.trace.max(1)), span, flags: 0, followed: false },
        }
    }

    /// `traceparent` with this request's span as the parent.
    pub(crate) fn header(self) -> HeaderValue {
        let mut text = *b"00-00000000000000000000000000000000-0000000000000000-00";
        hex(&self.id.0.to_be_bytes(), &mut text[3..35]);
        hex(&self.span.to_be_bytes(), &mut text[36..52]);
        hex(&[self.flags], &mut text[53..55]);
        HeaderValue::from_bytes(&text).unwrap_or(HeaderValue::from_static(""))
    }
}

fn hex(bytes: &[u8], into: &mut [u8]) {
    /// The two digits of each byte: one look-up for both.
    const DIGITS: [[u8; 2]; 256] = {
        let (digits, mut pairs, mut byte) = (b"0123456789abcdef", [[0; 2]; 256], 0);
        while byte < 256 {
            pairs[byte] = [digits[byte >> 4], digits[byte & 0xf]];
            byte += 1;
        }
        pairs
    };
    for (byte, pair) in bytes.iter().zip(into.as_chunks_mut().0) {
        *pair = DIGITS[usize::from(*byte)];
    }
}

/// W3C Trace Context §3.2.2: lower-case digits in their places, nothing all zero, and version 00 exactly as long as it is. A later
/// version may add fields behind a dash; ff is forbidden. Of the flags only *sampled* is known, and goes on.
fn parse(text: &str) -> Option<(TraceId, u8)> {
    let (version, rest) = text.split_once('-')?;
    let version = digits(version, 2)?;
    let (id, rest) = rest.split_at_checked(32)?;
    let (parent, rest) = rest.strip_prefix('-')?.split_at_checked(16)?;
    let (flags, more) = rest.strip_prefix('-')?.split_at_checked(2)?;
    let (id, parent, flags) = (digits(id, 32)?, digits(parent, 16)?, digits(flags, 2)?);
    let whole = if version == 0 { more.is_empty() } else { more.is_empty() || more.starts_with('-') };
    (version != 0xff && id != 0 && parent != 0 && whole).then_some((TraceId(id), (flags & 1) as u8))
}

fn digits(text: &str, count: usize) -> Option<u128> {
    let plain = text.len() == count && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    if plain { u128::from_str_radix(text, 16).ok() } else { None }
}

/// Longest time that a client may ask for itself; more is as good as nothing said.
const MAX_TIMEOUT: f64 = 3600.0;

/// `Request-Timeout`: how many seconds the client waits, such as `5` or `0.25`. What makes no sense is not heard.
pub(crate) fn patience(text: &str) -> Option<Duration> {
    let plain = !text.is_empty() && text.len() <= 10 && text.bytes().all(|b| b.is_ascii_digit() || b == b'.');
    let seconds: f64 = if plain { text.parse().ok()? } else { return None };
    (seconds > 0.0 && seconds <= MAX_TIMEOUT).then(|| Duration::from_secs_f64(seconds))
}

/// Longest idempotency key (draft-ietf-httpapi-idempotency-key-header names no bound; what keeps them does).
const MAX_KEY: usize = 255;

/// The key in `Idempotency-Key`: a quoted string by its draft, and by custom without the quotes; both are the same key.
pub(crate) fn idempotency_key(value: &HeaderValue) -> Option<&str> {
    let text = value.to_str().ok()?;
    let bare = text.strip_prefix('"').and_then(|text| text.strip_suffix('"')).unwrap_or(text);
    let visible = bare.bytes().all(|b| b.is_ascii_graphic() && b != b'"' && b != b'\\');
    ((1..=MAX_KEY).contains(&bare.len()) && visible).then_some(bare)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_valid_trace_goes_on_with_a_span_of_its_own() {
        let parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        let trace = Trace::follow(Some(parent), &Random::draw());
        assert_eq!(trace.id.to_string(), "0af7651916cd43dd8448eb211c80319c");
        let header = trace.header();
        let text = header.to_str().unwrap();
        assert_eq!((&text[..36], &text[52..]), (&parent[..36], "-01"));
        assert_ne!(&text[36..52], "b7ad6b7169203331");
        assert_eq!(parse(text), Some((trace.id, 1)));
    }

    #[test]
    fn what_is_no_trace_begins_a_new_one() {
        let id = "0af7651916cd43dd8448eb211c80319c";
        for bad in [
            "",
            "00",
            &format!("00-{id}-b7ad6b7169203331"),
            &format!("00-{id}-b7ad6b7169203331-0"),
            &format!("00-{id}-b7ad6b7169203331-01-"),
            &format!("00-{id}-b7ad6b7169203331-01-x"),
            &format!("00-{id}-0000000000000000-01"),
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            &format!("00-{}-b7ad6b7169203331-01", id.to_uppercase()),
            &format!("00-{id}-b7ad6b7169203331-0g"),
            &format!("ff-{id}-b7ad6b7169203331-01"),
            &format!("0-{id}-b7ad6b7169203331-01"),
            &format!("+1-{id}-b7ad6b7169203331-01"),
            &format!("01-{id}-b7ad6b7169203331-01x"),
            &format!("00-{id}-b7ad6b716920333é-1"),
        ] {
            assert_eq!(parse(bad), None, "{bad}");
        }
        assert!(parse(&format!("01-{id}-b7ad6b7169203331-ff-more")).is_some_and(|(_, flags)| flags == 1));
        let (one, other) = (Trace::follow(None, &Random::draw()), Trace::follow(Some("nonsense"), &Random::draw()));
        assert_ne!(one.id, other.id);
        assert!(!one.id.is_none() && parse(one.header().to_str().unwrap()).is_some());
    }

    #[test]
    fn ids_rise_and_only_plain_ones_are_taken_over() {
        let ids = Ids::default();
        let made: Vec<String> = (0..1000).map(|_| ids.next(SystemTime::now(), &mut Random::draw()).to_str().unwrap().to_owned()).collect();
        assert!(made.is_sorted() && made.iter().all(|id| id.parse::<horos_wire::id::Id<Request>>().is_ok()), "{}", made[0]);
        assert!(made.windows(2).all(|pair| pair[0] != pair[1]));
        for (id, taken) in
            [(made[0].as_str(), true), ("a", true), ("A-b_c.d:9", true), ("", false), ("a b", false), ("a\"b", false), ("a\\nb", false)]
        {
            assert_eq!(well_formed(&id.parse().unwrap()), taken, "{id}");
        }
        assert!(well_formed(&"x".repeat(MAX_ID).parse().unwrap()) && !well_formed(&"x".repeat(MAX_ID + 1).parse().unwrap()));
    }

    #[test]
    fn only_a_sane_timeout_is_heard() {
        for (text, heard) in [("5", Some(5_000)), ("0.25", Some(250)), ("3600", Some(3_600_000))] {
            assert_eq!(patience(text), heard.map(Duration::from_millis), "{text}");
        }
        for text in ["", "0", "-1", "3601", "1e3", "inf", "NaN", "1.2.3", ".", "5s", "99999999999"] {
            assert_eq!(patience(text), None, "{text}");
        }
    }

    #[test]
    fn one_key_has_one_spelling() {
        let key = |text: &str| idempotency_key(&text.parse().unwrap()).map(str::to_owned);
        assert_eq!(key("\"8e03978e\""), key("8e03978e"));
        assert_eq!(key(&"k".repeat(255)).map(|key| key.len()), Some(255));
        for bad in [&"k".repeat(256), "", "\"\"", "a b", "a\"b", "\"a"] {
            assert_eq!(key(bad), None, "{bad}");
        }
    }
}
