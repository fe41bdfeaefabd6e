//! What goes before a file.

use serde::Serialize;
use serde_json::Value;

use super::{MAX_META, MAX_SNAPSHOT};

/// What a snapshot is, in the order and form in which the Go system writes it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Meta {
    /// When it was made, in milliseconds since 1970.
    pub version: i64,
    /// SHA-256 of the file, uncompressed, in 64 lower-case digits.
    pub hash: String,
    /// The file's size in bytes, uncompressed.
    pub size: u64,
    /// When it was made, in seconds since 1970.
    pub timestamp: i64,
    /// Whether it travels as gzip.
    pub compressed: bool,
}

/// Why a meta is refused. The sender has to be mended.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MetaError {
    /// Longer than any is.
    #[error("meta too large: {0} bytes")]
    TooLong(u32),
    /// No JSON object of the fields.
    #[error("meta: {0}")]
    Form(String),
    /// Its hash is no SHA-256.
    #[error("meta: the hash is not 64 lower-case hexadecimal digits")]
    Hash,
    /// The file is larger than is taken, or no file at all.
    #[error("snapshot too large: {0} bytes")]
    Size(i64),
}

impl Meta {
    /// As it is written: compact, all five fields.
    pub fn encode(&self) -> Vec<u8> {
        // Texts and numbers, which JSON always has a form for.
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// Reads one as Go's decoder does: fields in any order and any case of letters, unknown ones passed over, `null` and a missing one as
    /// nothing. What would crash or mislead a receiver is refused: a short hash, a size below 1.
    ///
    /// # Errors
    /// [`MetaError`].
    pub fn decode(text: &[u8]) -> Result<Self, MetaError> {
        if text.len() > MAX_META as usize {
            return Err(MetaError::TooLong(u32::try_from(text.len()).unwrap_or(u32::MAX)));
        }
        let value: Value = serde_json::from_slice(text).map_err(|error| MetaError::Form(error.to_string()))?;
        let Value::Object(fields) = value else { return Err(MetaError::Form("expected an object".to_owned())) };
        let find = |name: &str| {
            let exact = fields.get(name);
            exact
                .or_else(|| fields.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value))
                .filter(|it| !it.is_null())
        };
        let number = |name: &str| match find(name) {
            None => Ok(0),
            Some(value) => value.as_i64().ok_or_else(|| MetaError::Form(format!("{name} is no whole number"))),
        };
        let hash = find("hash").and_then(Value::as_str).unwrap_or_default();
        if hash.len() != 64 || !hash.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
            return Err(MetaError::Hash);
        }
        let size = number("size")?;
        let fits = u64::try_from(size).ok().filter(|size| (1..=MAX_SNAPSHOT).contains(size));
        let compressed = match find("compressed") {
            None => false,
            Some(value) => value.as_bool().ok_or_else(|| MetaError::Form("compressed is neither true nor false".to_owned()))?,
        };
        Ok(Self {
            version: number("version")?,
            hash: hash.to_owned(),
            size: fits.ok_or(MetaError::Size(size))?,
            timestamp: number("timestamp")?,
            compressed,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn meta() -> Meta {
        Meta { version: 1_700_000_000_123, hash: "ab".repeat(32), size: 4096, timestamp: 1_700_000_000, compressed: true }
    }

    #[test]
    fn it_is_written_byte_for_byte_as_the_go_system_writes_it() {
        let wanted =
            format!(r#"{{"version":1700000000123,"hash":"{}","size":4096,"timestamp":1700000000,"compressed":true}}"#, "ab".repeat(32));
        assert_eq!(String::from_utf8(meta().encode()).unwrap(), wanted);
        assert_eq!(Meta::decode(wanted.as_bytes()).unwrap(), meta());
    }

    #[test]
    fn it_is_read_as_go_reads_it() {
        let text = format!(r#"{{"Size": 4096, "HASH": "{}", "more": [1], "compressed": null, "version": 7}}"#, "ab".repeat(32));
        let read = Meta::decode(text.as_bytes()).unwrap();
        assert_eq!((read.size, read.version, read.timestamp, read.compressed), (4096, 7, 0, false));
    }

    #[test]
    fn what_would_crash_or_mislead_is_refused() {
        let with = |hash: &str, size: &str| format!(r#"{{"hash":"{hash}","size":{size}}}"#).into_bytes();
        let good = "0f".repeat(32);
        for short in ["", "abc", &good.to_uppercase(), &"é".repeat(32)] {
            assert_eq!(Meta::decode(&with(short, "1")), Err(MetaError::Hash), "{short}");
        }
        assert!(Meta::decode(&with(&good, &MAX_SNAPSHOT.to_string())).is_ok());
        for size in ["0", "-1", &(MAX_SNAPSHOT + 1).to_string()] {
            assert!(matches!(Meta::decode(&with(&good, size)), Err(MetaError::Size(_))), "{size}");
        }
        for size in ["1e400", "1.5", "\"7\"", "99999999999999999999"] {
            assert!(matches!(Meta::decode(&with(&good, size)), Err(MetaError::Form(_))), "{size}");
        }
        assert!(matches!(Meta::decode(b"[]"), Err(MetaError::Form(_))));
        assert!(matches!(Meta::decode(&vec![b' '; MAX_META as usize + 1]), Err(MetaError::TooLong(_))));
    }
}
