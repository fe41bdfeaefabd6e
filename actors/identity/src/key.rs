//! The text of a key: `hk_` and 64 hexadecimal digits, 32 random bytes.
//!
//! Only its SHA-256 is kept. A slow hash would add nothing: nobody searches 2^256 texts, and a fast one is what lets a
//! guess be refused in microseconds.

use horos_wire::protocol::keys::{KeyHash, Secret};
use sha2::{Digest as _, Sha256};
use zeroize::{Zeroize as _, Zeroizing};

/// What a key's text begins with; a token's never does, for it begins with the base64 of a brace.
pub const KEY_PREFIX: &str = "hk_";
/// Characters of a key's text.
pub const KEY_LENGTH: usize = KEY_PREFIX.len() + 64;
/// Characters of the text that are shown to recognise a key by: 32 bits of it, which leaves 224 to guess.
pub const SHOWN: usize = KEY_PREFIX.len() + 8;

/// No randomness could be had. Nothing was made; try again.
#[derive(Clone, Debug, thiserror::Error)]
#[error("the system gives no randomness: {0}")]
pub(crate) struct NoRandomness(String);

/// Fills `bytes` from the system.
pub(crate) fn random<const N: usize>() -> Result<[u8; N], NoRandomness> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|error| NoRandomness(error.to_string()))?;
    Ok(bytes)
}

/// A new key's text.
pub(crate) fn generate() -> Result<Secret, NoRandomness> {
    let mut bytes = random::<32>()?;
    let mut digits = Zeroizing::new([0; 64]);
    let encoded = hex::encode_to_slice(bytes, digits.as_mut());
    bytes.zeroize();
    encoded.expect("64 digits hold 32 bytes");
    let digits = std::str::from_utf8(digits.as_ref()).expect("digits are ASCII");
    // One allocation of the exact size: growing it would leave a copy behind.
    let mut text = String::with_capacity(KEY_LENGTH);
    text.push_str(KEY_PREFIX);
    text.push_str(digits);
    Ok(Secret::new(text))
}

/// By which `text` is found; none when it has not the form of a key, which is told from its length before anything is
/// hashed.
pub fn hash(text: &str) -> Option<KeyHash> {
    let plain = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    if text.len() != KEY_LENGTH || !text.starts_with(KEY_PREFIX) || !text.bytes().skip(KEY_PREFIX.len()).all(plain) {
        return None;
    }
    Some(KeyHash(Sha256::digest(text).into()))
}

/// As much of `text` as may be shown and logged, whatever it is.
pub(crate) fn shown(text: &str) -> &str {
    if text.starts_with(KEY_PREFIX) { text.get(..SHOWN).unwrap_or(KEY_PREFIX) } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_hk_and_64_digits_and_no_two_are_alike() {
        let (one, two) = (generate().unwrap(), generate().unwrap());
        assert_ne!(one.reveal(), two.reveal());
        for key in [&one, &two] {
            assert_eq!(key.reveal().len(), 67);
            assert!(hash(key.reveal()).is_some());
            assert_eq!(shown(key.reveal()), &key.reveal()[..11]);
            assert!(!format!("{key:?}").contains("hk_"));
        }
    }

    #[test]
    fn what_has_not_the_form_is_not_hashed() {
        let good = format!("hk_{}", "a".repeat(64));
        assert!(hash(&good).is_some());
        let megabyte = format!("hk_{}", "a".repeat(1 << 20));
        for bad in ["", "hk_", &good[..66], &format!("{good}a"), &good.to_uppercase(), &good.replace("hk_", "sk_"), &megabyte] {
            assert_eq!(hash(bad), None);
        }
        assert_eq!(hash(&format!("hk_{}", "é".repeat(32))), None);
        assert_eq!(hash(&format!("hk_{}g", "a".repeat(63))), None);
        assert_eq!((shown("hk_é"), shown("hk_12345678ab"), shown("key_1")), ("hk_", "hk_12345678", "key_1"));
    }
}
