//! The Go system's envelope: six bytes and a payload, as its services still speak it.
//!
//! ```text
//! 0  u16 LE  format id
//! 2  u32 LE  CRC-32C of the payload alone
//! 6  …       payload
//! ```
//!
//! Pure, like everything here. [`open`] decides exactly as the Go code does, whose table has two traps:
//! anything under six bytes and anything damaged that *begins with two zero bytes* passes as raw data.
//! The result therefore says how it came to be believed ([`Integrity`]), and [`open_checked`] takes only what
//! a checksum vouches for: use it wherever the peer is known to wrap. What this envelope cannot do
//! (authenticate, cover its own header, say which call it answers) is left to the link it travels in.
//!
//! Differences from the Go code, all on the safe side:
//! - an error with an **empty code is an error** ([`Code::Unspecified`]); Go decodes it as a success with
//!   every field zero. Writing one is refused.
//! - `__error` is found by its exact name; Go ignores case, which only widens what a payload can be mistaken for.
//! - payloads are bounded by [`crate::codec::MAX_BODY`].
//! - an unexpected failure is told to a peer as `INTERNAL` with a trace id, never with its text
//!   ([`ServiceError::internal`]).

use std::{borrow::Cow, collections::BTreeMap, fmt};

use bytes::{BufMut, Bytes, BytesMut};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de, de::IgnoredAny};
use serde_json::value::RawValue;

use crate::{TraceId, codec::MAX_BODY};

/// Bytes before the payload.
pub const HEADER: usize = 6;

/// Most formats a registry holds; three are built in.
pub const MAX_FORMATS: usize = 256;

/// Longest name of a format or of its media type, in bytes.
pub const MAX_FORMAT_NAME: usize = 127;

/// The shortest error payload that Go looks at.
const SHORTEST_ERROR: usize = 12;

/// Sixteen tables (16 KiB) take sixteen bytes a step: a body of 16 MiB must not hold a runtime for 50 ms.
static CRC_32C: crc::Crc<u32, crc::Table<16>> = crc::Crc::<u32, crc::Table<16>>::new(&crc::CRC_32_ISCSI);

/// A format's number. A label: which codec wrote the payload is agreed per contract.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FormatId(pub u16);

impl FormatId {
    /// Bytes of no stated format.
    pub const RAW: Self = Self(0);
    /// JSON.
    pub const JSON: Self = Self(1);
    /// MessagePack.
    pub const MSGPACK: Self = Self(2);
}

impl fmt::Display for FormatId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// Why there is no envelope or no error payload.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum GoError {
    /// The payload was damaged on its way, or is no envelope: ask for it again.
    #[error("checksum {actual:08x} where the header of format {format} says {expected:08x}")]
    Checksum {
        /// What the header says.
        expected: u32,
        /// What the payload gives.
        actual: u32,
        /// The format in the header, which nothing vouches for either.
        format: FormatId,
    },
    /// Too short for an envelope; only [`open_checked`] minds.
    #[error("{0} bytes are no envelope, which has {HEADER} before its payload")]
    Truncated(usize),
    /// Over [`MAX_BODY`].
    #[error("{0} bytes, more than {MAX_BODY}")]
    TooLarge(usize),
    /// An error without a code would read as a success to a Go caller.
    #[error("an error needs a code")]
    NoCode,
    /// The error's details are no JSON.
    #[error("cannot encode the details: {0}")]
    Details(Box<str>),
    /// A format number that nobody registered.
    #[error("unknown format {0}")]
    UnknownFormat(FormatId),
    /// The number belongs to another name, or the name to another number.
    #[error("format {id} {name:?} collides with {held_id} {held_name:?}")]
    Taken {
        /// The number asked for.
        id: FormatId,
        /// The name asked for.
        name: Box<str>,
        /// The number that has it.
        held_id: FormatId,
        /// The name that has it.
        held_name: Box<str>,
    },
    /// A name or media type that is empty or over [`MAX_FORMAT_NAME`].
    #[error("a format's name and media type have 1 to {MAX_FORMAT_NAME} bytes")]
    FormatName,
    /// More than [`MAX_FORMATS`].
    #[error("more than {MAX_FORMATS} formats")]
    TooManyFormats,
}

/// Why a payload is believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Integrity {
    /// Its checksum fits.
    Checked,
    /// Fewer than six bytes: taken as raw data without an envelope.
    Short,
    /// The checksum does not fit, but the first two bytes are zero: raw data that was never wrapped, **or a damaged
    /// raw envelope with its header still in front**. Nothing tells which.
    Guessed,
}

/// A payload and what is known of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Envelope {
    /// The format its sender stated.
    pub format: FormatId,
    /// The payload, sharing memory with what was opened.
    pub payload: Bytes,
    /// Why it is believed.
    pub integrity: Integrity,
}

/// The six bytes before `payload`, for senders that write header and payload without copying them together.
pub fn header(format: FormatId, payload: &[u8]) -> [u8; HEADER] {
    let [a, b] = format.0.to_le_bytes();
    let [c, d, e, f] = CRC_32C.checksum(payload).to_le_bytes();
    [a, b, c, d, e, f]
}

/// Puts `payload` into an envelope.
///
/// # Errors
/// [`GoError::TooLarge`].
pub fn wrap(format: FormatId, payload: &[u8]) -> Result<Bytes, GoError> {
    check_size(payload.len())?;
    let mut bytes = BytesMut::with_capacity(HEADER + payload.len());
    bytes.put_slice(&header(format, payload));
    bytes.put_slice(payload);
    Ok(bytes.freeze())
}

const fn check_size(payload: usize) -> Result<(), GoError> {
    if payload > MAX_BODY { Err(GoError::TooLarge(payload)) } else { Ok(()) }
}

/// Opens an envelope as the Go code does: see [`Integrity`] for what it lets pass.
///
/// # Errors
/// [`GoError::Checksum`] when the checksum does not fit and the format is not 0; [`GoError::TooLarge`].
pub fn open(bytes: Bytes) -> Result<Envelope, GoError> {
    let raw = |payload, integrity| Ok(Envelope { format: FormatId::RAW, payload, integrity });
    let Some(head) = bytes.first_chunk::<HEADER>() else {
        return raw(bytes, Integrity::Short);
    };
    check_size(bytes.len() - HEADER)?;
    let [a, b, c, d, e, f] = *head;
    let format = FormatId(u16::from_le_bytes([a, b]));
    let expected = u32::from_le_bytes([c, d, e, f]);
    let actual = CRC_32C.checksum(&bytes[HEADER..]);
    match format {
        _ if actual == expected => Ok(Envelope { format, payload: bytes.slice(HEADER..), integrity: Integrity::Checked }),
        FormatId::RAW => raw(bytes, Integrity::Guessed),
        _ => Err(GoError::Checksum { expected, actual, format }),
    }
}

/// Opens an envelope whose checksum must fit and whose format must be in `formats`.
///
/// # Errors
/// [`GoError::Truncated`], [`GoError::Checksum`], [`GoError::UnknownFormat`] or [`GoError::TooLarge`].
pub fn open_checked(bytes: Bytes, formats: &Formats) -> Result<Envelope, GoError> {
    let envelope = open(bytes)?;
    match envelope.integrity {
        Integrity::Checked if formats.lookup(envelope.format).is_some() => Ok(envelope),
        Integrity::Checked => Err(GoError::UnknownFormat(envelope.format)),
        Integrity::Short => Err(GoError::Truncated(envelope.payload.len())),
        Integrity::Guessed => {
            let whole = &envelope.payload;
            let expected = u32::from_le_bytes([whole[2], whole[3], whole[4], whole[5]]);
            Err(GoError::Checksum { expected, actual: CRC_32C.checksum(&whole[HEADER..]), format: FormatId::RAW })
        }
    }
}

/// What went wrong, as Go services say it. Open: a service may send its own.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Code {
    /// `NOT_FOUND`.
    NotFound,
    /// `BAD_REQUEST`: the same request fails again.
    BadRequest,
    /// `INTERNAL`: the callee's fault; whether anything was done is unknown.
    Internal,
    /// `RATE_LIMITED`: nothing was done, try later.
    RateLimited,
    /// `FORBIDDEN`.
    Forbidden,
    /// `CONFLICT`: read again before trying again.
    Conflict,
    /// Sent without a code: what Go takes for a success. Treat as [`Code::Internal`].
    Unspecified,
    /// Any other.
    Other(Box<str>),
}

impl Code {
    /// The code on the wire; empty for [`Code::Unspecified`].
    pub fn as_str(&self) -> &str {
        match self {
            Self::NotFound => "NOT_FOUND",
            Self::BadRequest => "BAD_REQUEST",
            Self::Internal => "INTERNAL",
            Self::RateLimited => "RATE_LIMITED",
            Self::Forbidden => "FORBIDDEN",
            Self::Conflict => "CONFLICT",
            Self::Unspecified => "",
            Self::Other(code) => code,
        }
    }
}

impl From<&str> for Code {
    fn from(code: &str) -> Self {
        match code {
            "NOT_FOUND" => Self::NotFound,
            "BAD_REQUEST" => Self::BadRequest,
            "INTERNAL" => Self::Internal,
            "RATE_LIMITED" => Self::RateLimited,
            "FORBIDDEN" => Self::Forbidden,
            "CONFLICT" => Self::Conflict,
            "" => Self::Unspecified,
            other => Self::Other(other.into()),
        }
    }
}

impl Serialize for Code {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for Code {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Cow::<str>::deserialize(deserializer).map(|code| Self::from(&*code))
    }
}

/// A Go service's error, which travels where its answer would.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ServiceError {
    /// Which kind.
    #[serde(default = "unspecified")]
    pub code: Code,
    /// For people.
    #[serde(default)]
    pub message: Box<str>,
    /// Any JSON.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub details: Option<Box<RawValue>>,
    /// The service that failed.
    #[serde(default, skip_serializing_if = "str::is_empty")]
    pub service: Box<str>,
}

const fn unspecified() -> Code {
    Code::Unspecified
}

impl ServiceError {
    /// An error of `service`.
    pub fn new(service: &str, code: Code, message: &str) -> Self {
        Self { code, message: message.into(), details: None, service: service.into() }
    }

    /// What a peer is told of an unexpected failure: where to look, not what was found there. The text, which
    /// may hold paths, SQL or secrets, belongs in the log under the same trace.
    pub fn internal(service: &str, trace: TraceId) -> Self {
        Self::new(service, Code::Internal, &format!("internal error, trace {trace}"))
    }

    /// The same with details.
    ///
    /// # Errors
    /// [`GoError::Details`] when they cannot be written as JSON.
    pub fn with_details(self, details: &impl Serialize) -> Result<Self, GoError> {
        let details = serde_json::value::to_raw_value(details).map_err(|error| GoError::Details(error.to_string().into()))?;
        Ok(Self { details: Some(details), ..self })
    }

    /// The payload that carries it: JSON, whatever the envelope's format.
    ///
    /// # Errors
    /// [`GoError::NoCode`], [`GoError::Details`] or [`GoError::TooLarge`].
    pub fn encode(&self) -> Result<Bytes, GoError> {
        #[derive(Serialize)]
        struct Outer<'a> {
            __error: &'a ServiceError,
        }
        if self.code.as_str().is_empty() {
            return Err(GoError::NoCode);
        }
        let json = serde_json::to_vec(&Outer { __error: self }).map_err(|error| GoError::Details(error.to_string().into()))?;
        check_size(json.len())?;
        Ok(json.into())
    }

    /// Finds the error in a payload, if it is one: a JSON object whose `__error` is an object with a code, or
    /// whose *only* key is `__error`, code or not.
    ///
    /// The price of an error that looks like an answer is that every answer must be looked at. One without
    /// the word costs a search for it; only one that has it is parsed.
    pub fn detect(payload: &[u8]) -> Option<Self> {
        if payload.len() < SHORTEST_ERROR || payload.iter().find(|byte| !byte.is_ascii_whitespace()) != Some(&b'{') || !has_marker(payload)
        {
            return None;
        }
        // Go reads invalid UTF-8 as U+FFFD; an error must not become a success over a damaged character.
        let text = String::from_utf8_lossy(payload);
        let outer: Outer = serde_json::from_str(&text).ok()?;
        let error = serde_json::from_str::<Self>(outer.error?.get()).ok();
        match error {
            Some(error) if error.code != Code::Unspecified => Some(error),
            Some(error) if outer.alone => Some(error),
            // An object of another shape in the only place an error stands is no answer either.
            None if outer.alone && outer.error?.get().starts_with('{') => Some(Self::new("", Code::Unspecified, "")),
            _ => None,
        }
    }
}

/// Whether the key may be in there: as it is, or with a character written as `\u…`.
fn has_marker(payload: &[u8]) -> bool {
    payload.windows(2).enumerate().any(|(at, pair)| match pair {
        b"__" => payload[at..].starts_with(b"__error"),
        b"\\u" => true,
        _ => false,
    })
}

struct Outer<'a> {
    error: Option<&'a RawValue>,
    alone: bool,
}

impl<'de> Deserialize<'de> for Outer<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Keys;
        impl<'de> de::Visitor<'de> for Keys {
            type Value = Outer<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: de::MapAccess<'de>>(self, mut map: A) -> Result<Outer<'de>, A::Error> {
                let mut outer = Outer { error: None, alone: true };
                while let Some(key) = map.next_key::<String>()? {
                    if key == "__error" {
                        outer.error = Some(map.next_value()?);
                    } else {
                        outer.alone = false;
                        map.next_value::<IgnoredAny>()?;
                    }
                }
                Ok(outer)
            }
        }
        deserializer.deserialize_map(Keys)
    }
}

impl PartialEq for ServiceError {
    /// By code alone, as Go's `errors.Is` matches them.
    fn eq(&self, other: &Self) -> bool {
        self.code == other.code
    }
}

impl fmt::Display for ServiceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.service.is_empty() {
            write!(f, "{}: ", self.service)?;
        }
        write!(f, "[{}] {}", self.code.as_str(), self.message)
    }
}

impl std::error::Error for ServiceError {}

/// What came back from a Go service.
#[derive(Clone, Debug, PartialEq)]
pub enum Answer {
    /// Its answer, to be decoded.
    Payload(Envelope),
    /// Its error.
    Error(ServiceError),
}

/// Opens what came back from a Go service and tells answers from errors.
///
/// # Errors
/// As [`open`].
pub fn read_answer(bytes: Bytes) -> Result<Answer, GoError> {
    let envelope = open(bytes)?;
    Ok(ServiceError::detect(&envelope.payload).map_or(Answer::Payload(envelope), Answer::Error))
}

/// Writes what a Go caller gets back: the payload or the error, in an envelope of the contract's format.
///
/// # Errors
/// [`GoError::TooLarge`]; for an error also those of [`ServiceError::encode`].
pub fn write_answer(format: FormatId, answer: Result<&[u8], &ServiceError>) -> Result<Bytes, GoError> {
    match answer {
        Ok(payload) => wrap(format, payload),
        Err(error) => wrap(format, &error.encode()?),
    }
}

/// A format: its name and its media type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Format {
    /// Unique, as the number is: the Go system's table `horos_formats` wants both.
    pub name: Box<str>,
    /// Its media type.
    pub mime: Box<str>,
}

/// The formats that are known, by number.
#[derive(Clone, Debug)]
pub struct Formats(BTreeMap<FormatId, Format>);

impl Default for Formats {
    /// raw, json and msgpack.
    fn default() -> Self {
        let built_in = [
            (FormatId::RAW, "raw", "application/octet-stream"),
            (FormatId::JSON, "json", "application/json"),
            (FormatId::MSGPACK, "msgpack", "application/msgpack"),
        ];
        Self(built_in.into_iter().map(|(id, name, mime)| (id, Format { name: name.into(), mime: mime.into() })).collect())
    }
}

impl Formats {
    /// Adds a format; the same number and name again replaces the media type.
    ///
    /// # Errors
    /// [`GoError::Taken`], [`GoError::FormatName`] or [`GoError::TooManyFormats`]; nothing is then changed.
    pub fn register(&mut self, id: FormatId, name: &str, mime: &str) -> Result<(), GoError> {
        if [name, mime].iter().any(|text| text.is_empty() || text.len() > MAX_FORMAT_NAME) {
            return Err(GoError::FormatName);
        }
        if let Some((held_id, held)) = self.0.iter().find(|(held_id, held)| (**held_id == id) != (&*held.name == name)) {
            return Err(GoError::Taken { id, name: name.into(), held_id: *held_id, held_name: held.name.clone() });
        }
        if self.0.len() >= MAX_FORMATS && !self.0.contains_key(&id) {
            return Err(GoError::TooManyFormats);
        }
        self.0.insert(id, Format { name: name.into(), mime: mime.into() });
        Ok(())
    }

    /// The format of that number.
    pub fn lookup(&self, id: FormatId) -> Option<&Format> {
        self.0.get(&id)
    }

    /// All of them, by number.
    pub fn all(&self) -> impl ExactSizeIterator<Item = (FormatId, &Format)> {
        self.0.iter().map(|(id, format)| (*id, format))
    }
}

#[cfg(test)]
mod tests;
