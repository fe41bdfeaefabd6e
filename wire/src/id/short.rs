//! Short ids that sort by age: 80 bits in 16 characters of Crockford's base 32.
//!
//! 48 bits of milliseconds, then 32 that are random at each new millisecond and rise by a random step
//! within one. For one generator a repetition is impossible; between generators it is as unlikely as
//! 31 random bits a millisecond make it: right for what one node numbers, wrong for what a cluster does
//! at high rates ([`super::Uuid7s`] is for that).
//!
//! The alphabet leaves out I, L, O and U (<https://www.crockford.com/base32.html>), so an id read aloud or
//! off paper survives; the optional check character finds every single wrong character and every swap of
//! two neighbours.

use std::{fmt, marker::PhantomData, str::FromStr};

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::{Entropy, FromText, IdError, UnixMillis, excerpt, no_form};

/// Characters of a short id, without the check character.
pub const LENGTH: usize = 16;

/// The first 32 are the digits; a check character may be any of the 37.
const ALPHABET: &[u8; 37] = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ*~$=U";
const FORM: &str = "short id of 16 characters 0-9 A-Z without I, L, O and U";

/// Largest step within a millisecond; random, so that the next id cannot be guessed by adding one.
const STEP_MASK: u64 = 0xffff;

/// A short id. Sorts by age, as itself, as text and as bytes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ShortId([u8; 10]);

impl ShortId {
    fn from_parts(ms: u64, tail: u32) -> Self {
        let mut bytes = [0; 10];
        bytes[..6].copy_from_slice(&ms.to_be_bytes()[2..]);
        bytes[6..].copy_from_slice(&tail.to_be_bytes());
        Self(bytes)
    }

    fn value(self) -> u128 {
        self.0.iter().fold(0, |value, byte| value << 8 | u128::from(*byte))
    }

    /// The ten bytes, most significant first.
    pub const fn to_bytes(self) -> [u8; 10] {
        self.0
    }

    /// Reads what [`ShortId::to_bytes`] gave; every ten bytes are an id.
    pub const fn from_bytes(bytes: [u8; 10]) -> Self {
        Self(bytes)
    }

    /// When it was made, by its maker's clock.
    pub fn made_at(self) -> UnixMillis {
        UnixMillis(self.0[..6].iter().fold(0, |ms, byte| ms << 8 | u64::from(*byte)))
    }

    /// The check character: the value modulo 37.
    pub fn check(self) -> char {
        char::from(ALPHABET[(self.value() % 37) as usize])
    }

    /// The 16 characters and the check character.
    pub fn with_check(self) -> String {
        format!("{self}{}", self.check())
    }

    /// Reads 16 characters and their check character, in canonical spelling.
    ///
    /// # Errors
    /// [`IdError::Check`] when it was mistyped, [`IdError::Form`] when it is no short id.
    pub fn parse_checked(text: &str) -> Result<Self, IdError> {
        let (at, check) = text.char_indices().next_back().ok_or_else(|| no_form(FORM, text))?;
        let id: Self = text[..at].parse()?;
        if id.check() == check { Ok(id) } else { Err(IdError::Check(excerpt(text))) }
    }

    /// Reads what a person typed: any case, hyphens and spaces anywhere, `O` for 0, `I` and `L` for 1, with
    /// or without the check character.
    ///
    /// # Errors
    /// [`IdError::Check`] when it was mistyped, [`IdError::Form`] when it is no short id.
    pub fn parse_lenient(text: &str) -> Result<Self, IdError> {
        let mut plain = String::with_capacity(LENGTH + 1);
        for char in text.chars().filter(|char| !matches!(char, '-' | ' ')) {
            if plain.len() > LENGTH {
                return Err(no_form(FORM, text));
            }
            plain.push(match char.to_ascii_uppercase() {
                'O' => '0',
                'I' | 'L' => '1',
                other => other,
            });
        }
        if plain.len() > LENGTH { Self::parse_checked(&plain) } else { plain.parse() }
    }
}

impl FromStr for ShortId {
    type Err = IdError;
    fn from_str(text: &str) -> Result<Self, IdError> {
        if text.len() != LENGTH {
            return Err(no_form(FORM, text));
        }
        let mut value: u128 = 0;
        for byte in text.bytes() {
            let digit = ALPHABET[..32].iter().position(|char| *char == byte).ok_or_else(|| no_form(FORM, text))?;
            value = value << 5 | digit as u128;
        }
        let mut bytes = [0; 10];
        bytes.copy_from_slice(&value.to_be_bytes()[6..]);
        Ok(Self(bytes))
    }
}

impl fmt::Display for ShortId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let value = self.value();
        let mut chars = [0; LENGTH];
        for (i, char) in chars.iter_mut().enumerate() {
            *char = ALPHABET[(value >> (5 * (LENGTH - 1 - i)) & 31) as usize];
        }
        f.pad(std::str::from_utf8(&chars).expect("the alphabet is ASCII"))
    }
}

impl fmt::Debug for ShortId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for ShortId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() { serializer.collect_str(self) } else { self.0.serialize(serializer) }
    }
}

impl<'de> Deserialize<'de> for ShortId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        if deserializer.is_human_readable() {
            deserializer.deserialize_str(FromText::<Self>(PhantomData)).map_err(de::Error::custom)
        } else {
            <[u8; 10]>::deserialize(deserializer).map(Self)
        }
    }
}

impl JsonSchema for ShortId {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "ShortId".into()
    }
    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({ "type": "string", "pattern": "^[0-9A-HJKMNP-TV-Z]{16}$" })
    }
}

/// Makes short ids, each greater than all that this generator made before.
#[derive(Clone, Debug, Default)]
pub struct Shorts {
    last: Option<(u64, u32)>,
}

impl Shorts {
    /// A generator with no memory.
    pub const fn new() -> Self {
        Self { last: None }
    }

    /// Continues behind `last`, the greatest id stored before a restart.
    pub fn resume(&mut self, last: ShortId) {
        let [.., a, b, c, d] = last.0;
        let floor = Some((last.made_at().0, u32::from_be_bytes([a, b, c, d])));
        self.last = self.last.max(floor);
    }

    /// Makes the next id.
    ///
    /// # Errors
    /// [`IdError::Entropy`] or [`IdError::Time`]; the generator is then as it was.
    pub fn next(&mut self, now: UnixMillis, entropy: &mut impl Entropy) -> Result<ShortId, IdError> {
        let mut random = [0; 8];
        entropy.fill(&mut random)?;
        let random = u64::from_le_bytes(random);
        // Truncation keeps the low 31 bits: the top one is 0, so that half the range is left to rise in.
        let seed = (random as u32) >> 1;
        let step = 1 + (random >> 32 & STEP_MASK) as u32;
        let (ms, tail) = match self.last {
            Some((ms, tail)) if now.0 <= ms => match tail.checked_add(step) {
                Some(tail) => (ms, tail),
                None => (ms.saturating_add(1), seed),
            },
            _ => (now.0, seed),
        };
        if ms > UnixMillis::MAX.0 {
            return Err(IdError::Time(ms));
        }
        self.last = Some((ms, tail));
        Ok(ShortId::from_parts(ms, tail))
    }
}
