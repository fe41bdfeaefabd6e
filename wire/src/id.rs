//! Identifiers: time-ordered UUIDs, short ids, random ids, and the types that keep them apart.
//!
//! Owns every form of identifier and its one canonical spelling. It reads no clock and asks no system
//! for randomness: the caller passes [`UnixMillis`] and an [`Entropy`], so that a test with
//! [`Seeded`] sees the same ids every time. Generators are plain values owned by whoever makes ids (an
//! actor's state); there is no global one to swap, lock or share.
//!
//! | id | text | order | for |
//! |---|---|---|---|
//! | [`Id<K>`] over [`Uuid7s`] | `aud_01900000-…` | by creation | rows, events, requests |
//! | [`ShortId`] over [`Shorts`] | `01J0A3…` (16 characters) | by creation | what people read aloud |
//! | [`NanoId`], [`nano()`] | `0-9a-z` | none | what must not be guessed |
//! | [`stamp::timestamped`] | `20260102T030405Z_…` | by creation | file names |
//!
//! **Time-ordered ids tell when they were made.** Where that must not be public (links handed to
//! strangers, session tokens), use a [`NanoId`] of at least 22 characters: 113 random bits.
//!
//! One id has one spelling: [`parse`] takes the canonical form only, so that two spellings cannot become
//! two keys. [`parse_lenient`] is for what people paste and for ids of the Go system, and its result
//! is canonical again. Nothing here panics on what it is given.

use std::{
    cmp::Ordering,
    fmt,
    hash::{Hash, Hasher},
    marker::PhantomData,
    str::FromStr,
    time::{Duration, SystemTime},
};

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use uuid::{Uuid, Variant};

pub mod nano;
pub mod short;
pub mod stamp;
pub mod v7;

pub use nano::{NanoId, nano};
pub use short::{ShortId, Shorts};
pub use v7::Uuid7s;

/// How much of a refused text an error keeps: enough to recognise it, too little to matter.
const EXCERPT: usize = 64;

/// Why there is no id.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum IdError {
    /// The source of randomness failed. Nothing was made and the generator is as it was: try again.
    #[error("no randomness: {0}")]
    Entropy(#[from] EntropyError),
    /// The time does not fit the form: after the year 9999 in a timestamp, past 48 bits in an id.
    #[error("{0} ms since 1970 is past what this id can hold")]
    Time(u64),
    /// An id from elsewhere claims a time further ahead than clocks differ; it was not taken into account.
    #[error("the id is {ahead_ms} ms ahead of this node's clock")]
    TooFarAhead {
        /// By how much.
        ahead_ms: u64,
    },
    /// A length outside its bounds.
    #[error("length {found} is not within {min} to {max}")]
    Length {
        /// What was asked for.
        found: usize,
        /// The least allowed.
        min: usize,
        /// The most allowed.
        max: usize,
    },
    /// Not a prefix: see [`Prefix`].
    #[error("{0:?} is no prefix: a letter a-z, then up to 6 of a-z and 0-9, then '_'")]
    Prefix(Box<str>),
    /// The id is of another kind.
    #[error("{found:?} does not start with {expected:?}")]
    Kind {
        /// The prefix of the kind asked for.
        expected: Prefix,
        /// The beginning of the text.
        found: Box<str>,
    },
    /// Not the canonical spelling.
    #[error("{found:?} is no {form}")]
    Form {
        /// What it should have been.
        form: &'static str,
        /// The beginning of the text.
        found: Box<str>,
    },
    /// A UUID of another version or variant.
    #[error("a UUID of version {0}, where 7 is used")]
    Version(u8),
    /// The check character does not fit: mistyped.
    #[error("the check character of {0:?} does not fit: mistyped?")]
    Check(Box<str>),
}

fn excerpt(text: &str) -> Box<str> {
    text.chars().take(EXCERPT).collect()
}

fn no_form(form: &'static str, text: &str) -> IdError {
    IdError::Form { form, found: excerpt(text) }
}

/// The source of randomness failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct EntropyError(pub Box<str>);

/// Where randomness comes from. The one backed by the system lives with the callers.
pub trait Entropy {
    /// Fills `bytes` with random ones.
    ///
    /// # Errors
    /// [`EntropyError`]; what `bytes` holds is then meaningless.
    fn fill(&mut self, bytes: &mut [u8]) -> Result<(), EntropyError>;
}

impl<E: Entropy + ?Sized> Entropy for &mut E {
    fn fill(&mut self, bytes: &mut [u8]) -> Result<(), EntropyError> {
        (**self).fill(bytes)
    }
}

/// The same "randomness" for the same seed: SplitMix64. For tests; **anybody can guess what it makes**.
#[derive(Clone, Debug)]
pub struct Seeded(u64);

impl Seeded {
    /// Starts from `seed`.
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }
}

impl Entropy for Seeded {
    fn fill(&mut self, bytes: &mut [u8]) -> Result<(), EntropyError> {
        for chunk in bytes.chunks_mut(8) {
            self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = self.0;
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            z ^= z >> 31;
            chunk.copy_from_slice(&z.to_le_bytes()[..chunk.len()]);
        }
        Ok(())
    }
}

/// Milliseconds since 1970, UTC, without leap seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
pub struct UnixMillis(pub u64);

impl UnixMillis {
    /// The largest that fits the 48 bits of a UUIDv7 (RFC 9562 §5.7): the year 10889.
    pub const MAX: Self = Self((1 << 48) - 1);
}

impl From<SystemTime> for UnixMillis {
    /// A time before 1970 becomes 1970: generators only need it not to go back, and see to that themselves.
    fn from(time: SystemTime) -> Self {
        let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO);
        Self(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
    }
}

/// What an id's text begins with: a letter `a-z`, up to six more of `a-z` and `0-9`, then `_`.
///
/// Safe as it stands in paths, URLs, shells and SQL.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Prefix(&'static str);

impl Prefix {
    /// Longest prefix in bytes, with its `_`.
    pub const MAX: usize = 8;

    /// Makes `text` a prefix.
    ///
    /// # Panics
    /// When it is none. Meant for constants, where the panic is a compile error.
    pub const fn new(text: &'static str) -> Self {
        assert!(Self::is_valid(text.as_bytes()), "a prefix is a letter a-z, up to 6 of a-z and 0-9, and '_'");
        Self(text)
    }

    const fn is_valid(text: &[u8]) -> bool {
        if text.len() < 2 || text.len() > Self::MAX || !text[0].is_ascii_lowercase() || text[text.len() - 1] != b'_' {
            return false;
        }
        let mut i = 1;
        while i < text.len() - 1 {
            if !text[i].is_ascii_lowercase() && !text[i].is_ascii_digit() {
                return false;
            }
            i += 1;
        }
        true
    }

    /// Splits `aud_xyz` into `aud_` and `xyz`, for an id of any kind.
    ///
    /// # Errors
    /// [`IdError::Prefix`] when the text does not begin with a prefix.
    pub fn split(text: &str) -> Result<(&str, &str), IdError> {
        match text.as_bytes().iter().take(Self::MAX).position(|b| *b == b'_') {
            Some(end) if Self::is_valid(&text.as_bytes()[..=end]) => Ok(text.split_at(end + 1)),
            _ => Err(IdError::Prefix(excerpt(text))),
        }
    }

    /// The prefix with its `_`.
    pub const fn as_str(self) -> &'static str {
        self.0
    }

    /// Puts the prefix before an id of any form: `sess_` and a [`NanoId`] make a session's. [`Prefix::split`] takes it off again.
    pub fn before(self, id: impl fmt::Display) -> String {
        format!("{self}{id}")
    }

    fn strip(self, text: &str) -> Result<&str, IdError> {
        text.strip_prefix(self.0).ok_or_else(|| IdError::Kind { expected: self, found: excerpt(text) })
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.0)
    }
}

impl fmt::Debug for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.0, f)
    }
}

/// What an [`Id`] identifies. A type that is never made: it only tells ids apart at compile time.
pub trait Kind: Send + Sync + 'static {
    /// What the id's text begins with.
    const PREFIX: Prefix;
}

macro_rules! kinds {
    ($($(#[$doc:meta])* $kind:ident = $prefix:literal;)*) => {
        $(
            $(#[$doc])*
            #[derive(Clone, Copy, Debug, PartialEq, Eq)]
            pub enum $kind {}
            impl Kind for $kind {
                const PREFIX: Prefix = Prefix::new($prefix);
            }
        )*
        /// The prefixes in use across Horos; a service's own kind takes another.
        pub const PREFIXES: &[Prefix] = &[$(<$kind as Kind>::PREFIX),*];
    };
}

kinds! {
    /// An audit entry.
    Audit = "aud_";
    /// An event.
    Event = "evt_";
    /// A dossier.
    Dossier = "dos_";
    /// A request from outside.
    Request = "req_";
    /// An upload.
    Upload = "tus_";
    /// A session.
    Session = "sess_";
    /// A trace.
    Trace = "trc_";
    /// An API key's public part.
    Key = "key_";
}

/// A UUIDv7 of one kind: an `Id<Dossier>` cannot be passed where an `Id<Upload>` is asked for.
///
/// Text, JSON: the prefix and the canonical UUID (`dos_01900000-0000-7000-8000-000000000000`). Binary
/// formats and databases: the 16 bytes of [`Id::to_bytes`], which sort as the ids do.
///
/// ```compile_fail
/// use horos_wire::id::{Dossier, Id, Upload};
/// fn open(_: Id<Dossier>) {}
/// fn wrong(upload: Id<Upload>) { open(upload) }
/// ```
pub struct Id<K>(Uuid, PhantomData<fn() -> K>);

impl<K: Kind> Id<K> {
    /// Gives `uuid` a kind.
    ///
    /// # Errors
    /// [`IdError::Version`] unless it is a version 7 UUID.
    pub fn new(uuid: Uuid) -> Result<Self, IdError> {
        seven(uuid).map(|uuid| Self(uuid, PhantomData))
    }

    /// The UUID without its kind.
    pub const fn uuid(self) -> Uuid {
        self.0
    }

    /// The 16 bytes, most significant first.
    pub const fn to_bytes(self) -> [u8; 16] {
        *self.0.as_bytes()
    }

    /// Reads what [`Id::to_bytes`] gave.
    ///
    /// # Errors
    /// [`IdError::Version`] unless it is a version 7 UUID.
    pub fn from_bytes(bytes: [u8; 16]) -> Result<Self, IdError> {
        Self::new(Uuid::from_bytes(bytes))
    }

    /// When it was made, by its maker's clock.
    pub const fn made_at(self) -> UnixMillis {
        v7::millis(self.0)
    }

    /// Reads any spelling of the UUID ([`parse_lenient`]), with or without the prefix.
    ///
    /// # Errors
    /// [`IdError`] when the text is no UUID of version 7.
    pub fn parse_lenient(text: &str) -> Result<Self, IdError> {
        let text = text.trim();
        Self::new(parse_lenient(text.strip_prefix(K::PREFIX.0).unwrap_or(text))?)
    }
}

impl<K: Kind> FromStr for Id<K> {
    type Err = IdError;
    fn from_str(text: &str) -> Result<Self, IdError> {
        parse(K::PREFIX.strip(text)?).map(|uuid| Self(uuid, PhantomData))
    }
}

impl<K: Kind> fmt::Display for Id<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", K::PREFIX, self.0.as_hyphenated())
    }
}

impl<K: Kind> fmt::Debug for Id<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

// Written out, because `derive` would ask the same of `K`, which has no values.
impl<K> Clone for Id<K> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<K> Copy for Id<K> {}

impl<K> PartialEq for Id<K> {
    fn eq(&self, other: &Self) -> bool {
        self.0 == other.0
    }
}

impl<K> Eq for Id<K> {}

impl<K> PartialOrd for Id<K> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<K> Ord for Id<K> {
    fn cmp(&self, other: &Self) -> Ordering {
        self.0.cmp(&other.0)
    }
}

impl<K> Hash for Id<K> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.hash(state);
    }
}

impl<K: Kind> Serialize for Id<K> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() { serializer.collect_str(self) } else { self.0.as_bytes().serialize(serializer) }
    }
}

impl<'de, K: Kind> Deserialize<'de> for Id<K> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        if deserializer.is_human_readable() {
            deserializer.deserialize_str(FromText(PhantomData))
        } else {
            <[u8; 16]>::deserialize(deserializer).and_then(|bytes| Self::from_bytes(bytes).map_err(de::Error::custom))
        }
    }
}

impl<K: Kind> JsonSchema for Id<K> {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        format!("Id_{}", K::PREFIX.0.trim_end_matches('_')).into()
    }
    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        let hex = "[0-9a-f]";
        let pattern = format!("^{}{hex}{{8}}-{hex}{{4}}-7{hex}{{3}}-[89ab]{hex}{{3}}-{hex}{{12}}$", K::PREFIX);
        schemars::json_schema!({ "type": "string", "pattern": pattern })
    }
}

/// Reads any `FromStr` id from text without a `String` in between.
struct FromText<T>(PhantomData<T>);

impl<T: FromStr<Err = IdError>> de::Visitor<'_> for FromText<T> {
    type Value = T;
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an id in its canonical spelling")
    }
    fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
        text.parse().map_err(E::custom)
    }
}

fn seven(uuid: Uuid) -> Result<Uuid, IdError> {
    if uuid.get_version_num() == 7 && uuid.get_variant() == Variant::RFC4122 {
        Ok(uuid)
    } else {
        // Truncation: a version is four bits.
        Err(IdError::Version(uuid.get_version_num() as u8))
    }
}

/// Reads a UUIDv7 in its canonical spelling: 36 characters, lower case, four hyphens.
///
/// # Errors
/// [`IdError::Form`] for another spelling, [`IdError::Version`] for another version.
pub fn parse(text: &str) -> Result<Uuid, IdError> {
    seven(parse_any_version(text)?)
}

/// Reads a UUID of any version in its canonical spelling; for ids that others made.
///
/// # Errors
/// [`IdError::Form`] for another spelling.
pub fn parse_any_version(text: &str) -> Result<Uuid, IdError> {
    const FORM: &str = "UUID of 36 lower-case characters";
    let canonical = text.len() == 36 && !text.bytes().any(|b| b.is_ascii_uppercase());
    if !canonical {
        return Err(no_form(FORM, text));
    }
    Uuid::try_parse(text).map_err(|_| no_form(FORM, text))
}

/// Reads any form of RFC 9562 §4 and those in use beside it: upper case, without hyphens, in braces,
/// `urn:uuid:`; any version, nil included. Compare and store the result, never the text.
///
/// # Errors
/// [`IdError::Form`] when it is no UUID in any of them.
pub fn parse_lenient(text: &str) -> Result<Uuid, IdError> {
    Uuid::try_parse(text.trim()).map_err(|_| no_form("UUID", text))
}

#[cfg(test)]
mod tests;
