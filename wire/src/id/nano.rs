//! Random ids of `0-9a-z`, every character equally likely.
//!
//! `byte % 36` would make `0` to `3` likelier by a seventh, since 256 is no multiple of 36. So a byte
//! from 252 up is thrown away and another drawn.

use std::{fmt, marker::PhantomData, str::FromStr};

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::{Entropy, FromText, IdError, excerpt};

/// The characters, in the order of their values.
pub const ALPHABET: &[u8; 36] = b"0123456789abcdefghijklmnopqrstuvwxyz";

/// Shortest id: 41 random bits. Even odds of a first collision come at 2 million ids, so this is for
/// names that are checked for being taken. 22 characters hold 113 bits: no check, no guessing.
pub const MIN: usize = 8;

/// Longest id.
pub const MAX: usize = 64;

/// The multiple of 36 below which a byte counts.
const ACCEPT: u8 = 252;

/// Most times [`fill`] draws anew: a true source needs ten in a row once in 10^18 ids; one that keeps
/// sending bytes over [`ACCEPT`] is broken, and must not hold its caller for ever.
const MAX_DRAWS: usize = 64;

fn fill(into: &mut [u8], entropy: &mut impl Entropy) -> Result<(), IdError> {
    let mut filled = 0;
    let mut drawn = [0; MAX];
    for _ in 0..MAX_DRAWS {
        let missing = into.len() - filled;
        if missing == 0 {
            return Ok(());
        }
        entropy.fill(&mut drawn[..missing])?;
        for byte in drawn[..missing].iter().filter(|byte| **byte < ACCEPT) {
            into[filled] = ALPHABET[usize::from(byte % 36)];
            filled += 1;
        }
    }
    if filled == into.len() {
        return Ok(());
    }
    Err(super::EntropyError("it repeats itself".into()).into())
}

fn check(length: usize) -> Result<(), IdError> {
    if (MIN..=MAX).contains(&length) { Ok(()) } else { Err(IdError::Length { found: length, min: MIN, max: MAX }) }
}

/// Makes a random id of `length` characters, [`MIN`] to [`MAX`].
///
/// # Errors
/// [`IdError::Length`] or [`IdError::Entropy`].
pub fn nano(length: usize, entropy: &mut impl Entropy) -> Result<Box<str>, IdError> {
    check(length)?;
    let mut chars = [0; MAX];
    fill(&mut chars[..length], entropy)?;
    Ok(text(&chars[..length]).into())
}

fn text(chars: &[u8]) -> &str {
    std::str::from_utf8(chars).expect("every character is of the alphabet, which is ASCII")
}

/// A random id of `N` characters, held in place. `N` outside [`MIN`] to [`MAX`] does not compile.
///
/// ```compile_fail
/// horos_wire::id::NanoId::<0>::random(&mut horos_wire::id::Seeded::new(1));
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NanoId<const N: usize>([u8; N]);

impl<const N: usize> NanoId<N> {
    const IN_BOUNDS: () = assert!(N >= MIN && N <= MAX, "a NanoId has 8 to 64 characters");

    /// Draws one.
    ///
    /// # Errors
    /// [`IdError::Entropy`].
    pub fn random(entropy: &mut impl Entropy) -> Result<Self, IdError> {
        const { Self::IN_BOUNDS };
        let mut chars = [0; N];
        fill(&mut chars, entropy)?;
        Ok(Self(chars))
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        text(&self.0)
    }
}

impl<const N: usize> FromStr for NanoId<N> {
    type Err = IdError;
    fn from_str(text: &str) -> Result<Self, IdError> {
        const { Self::IN_BOUNDS };
        let chars: [u8; N] = text.as_bytes().try_into().map_err(|_| IdError::Length { found: text.len(), min: N, max: N })?;
        if chars.iter().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit()) {
            Ok(Self(chars))
        } else {
            Err(IdError::Form { form: "id of 0-9 and a-z", found: excerpt(text) })
        }
    }
}

impl<const N: usize> fmt::Display for NanoId<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl<const N: usize> fmt::Debug for NanoId<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), f)
    }
}

impl<const N: usize> Serialize for NanoId<N> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl<'de, const N: usize> Deserialize<'de> for NanoId<N> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(FromText::<Self>(PhantomData)).map_err(de::Error::custom)
    }
}

impl<const N: usize> JsonSchema for NanoId<N> {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        format!("NanoId_{N}").into()
    }
    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({ "type": "string", "pattern": format!("^[0-9a-z]{{{N}}}$") })
    }
}
