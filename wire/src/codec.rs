//! Bodies to bytes and back: bincode between programs that share types, JSON for everyone else.
//!
//! The only module that knows bincode. It is frozen upstream (RUSTSEC-2025-0141) and pinned; were it to
//! be replaced, only this module and the golden bytes change. Every decode is bounded in memory, depth and
//! work by the size of its body (`bounded`), and a body must be used up: trailing bytes are an error, so two
//! readings of one body cannot differ.

use std::marker::PhantomData;

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use self::bounded::{Bounded, Budget};

mod bounded;

/// Largest body that a message can carry, in bytes: 16 MiB. What is larger travels as a bulk stream.
pub const MAX_BODY: usize = 16 * 1024 * 1024;

/// How a body is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Format {
    /// bincode 2, standard configuration (little endian, varint).
    Bincode,
    /// JSON, UTF-8.
    Json,
}

/// Why a body could not be written or read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CodecError {
    /// The value cannot be written.
    #[error("cannot encode: {0}")]
    Encode(Box<str>),
    /// The bytes are not such a value.
    #[error("cannot decode: {0}")]
    Decode(Box<str>),
    /// Bytes are left over behind the value.
    #[error("{0} bytes left over behind the value")]
    Trailing(usize),
    /// Larger than [`MAX_BODY`].
    #[error("{0} bytes, more than {MAX_BODY}")]
    TooLarge(usize),
}

const BINCODE: bincode::config::Configuration = bincode::config::standard();

struct Append<'a>(&'a mut Vec<u8>);

impl bincode::enc::write::Writer for Append<'_> {
    fn write(&mut self, bytes: &[u8]) -> Result<(), bincode::error::EncodeError> {
        self.0.extend_from_slice(bytes);
        Ok(())
    }
}

/// Appends `value` to `into`.
///
/// # Errors
/// [`CodecError::Encode`] or [`CodecError::TooLarge`]; `into` is then as long as it was.
pub fn encode<T: Serialize>(format: Format, value: &T, into: &mut Vec<u8>) -> Result<(), CodecError> {
    let start = into.len();
    let written = match format {
        Format::Bincode => bincode::serde::encode_into_writer(value, Append(into), BINCODE).map_err(|error| error.to_string()),
        Format::Json => serde_json::to_writer(&mut *into, value).map_err(|error| error.to_string()),
    };
    let size = into.len() - start;
    match written {
        Ok(()) if size <= MAX_BODY => Ok(()),
        Ok(()) => {
            into.truncate(start);
            Err(CodecError::TooLarge(size))
        }
        Err(reason) => {
            into.truncate(start);
            Err(CodecError::Encode(reason.into()))
        }
    }
}

/// Reads a value from the whole of `bytes`.
///
/// # Errors
/// [`CodecError`] when the bytes are no such value, are too many, or go on behind it.
pub fn decode<T: DeserializeOwned>(format: Format, bytes: &[u8]) -> Result<T, CodecError> {
    if bytes.len() > MAX_BODY {
        return Err(CodecError::TooLarge(bytes.len()));
    }
    match format {
        Format::Bincode => {
            let budget = Budget::new(bytes.len());
            let whole = Bounded::new(PhantomData::<T>, &budget);
            let (value, used) = bincode::serde::seed_decode_from_slice(whole, bytes, BINCODE)
                .map_err(|error| CodecError::Decode(error.to_string().into()))?;
            if used == bytes.len() { Ok(value) } else { Err(CodecError::Trailing(bytes.len() - used)) }
        }
        Format::Json => serde_json::from_slice(bytes).map_err(|error| CodecError::Decode(error.to_string().into())),
    }
}

#[cfg(test)]
mod tests;
