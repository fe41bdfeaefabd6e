//! Where a page begins, as a text that callers give back and do not make.
//!
//! It holds how many rows came before, and a code (HMAC-SHA256, RFC 2104, the first half of it) over that, the tool, its version and the
//! other arguments: a cursor is of no use with anything else. The code's key is made of the row's own configuration, which no caller is
//! shown. So nothing is kept: a cursor is good on every node that has the row and after any restart, until the row is edited. The code
//! guards against pages that do not follow on one another, and no secret: whoever knew the row and made one by hand would get a page that
//! turning pages leads to as well.

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use rmcp::model::JsonObject;
use sha2::{Digest as _, Sha256};

/// The argument's name.
pub(super) const ARGUMENT: &str = "cursor";
/// Bytes of the code: 128 bits are not guessed.
const CODE: usize = 16;
/// The block of SHA-256.
const BLOCK: usize = 64;

/// Makes one tool's cursors and knows them.
pub(super) struct Cursors {
    key: [u8; BLOCK],
}

impl Cursors {
    /// Those of the tool with this configuration.
    pub(super) fn new(config: &str) -> Self {
        let mut key = [0; BLOCK];
        let hash = Sha256::new_with_prefix(b"a page's cursor\0").chain_update(config).finalize();
        key[..hash.len()].copy_from_slice(&hash);
        Self { key }
    }

    /// The cursor after `rows` rows.
    pub(super) fn text(&self, rows: u64, tool: &str, version: i64, arguments: &JsonObject) -> String {
        let mut bytes = rows.to_le_bytes().to_vec();
        bytes.extend(self.code(rows, tool, version, arguments));
        BASE64_URL_SAFE_NO_PAD.encode(bytes)
    }

    /// How many rows come before it; `None` if it is not one of ours for this.
    pub(super) fn rows(&self, text: &str, tool: &str, version: i64, arguments: &JsonObject) -> Option<u64> {
        let bytes = BASE64_URL_SAFE_NO_PAD.decode(text).ok()?;
        let (rows, code) = bytes.split_first_chunk::<8>()?;
        let rows = u64::from_le_bytes(*rows);
        let right = self.code(rows, tool, version, arguments);
        // Without a hint at how much of it was right.
        let differs = code.iter().zip(right).fold(0, |differs, (one, other)| differs | (one ^ other));
        (code.len() == CODE && differs == 0).then_some(rows)
    }

    fn code(&self, rows: u64, tool: &str, version: i64, arguments: &JsonObject) -> [u8; CODE] {
        let pad = |with: u8| self.key.map(|byte| byte ^ with);
        let mut inner = Sha256::new_with_prefix(pad(0x36));
        inner.update(rows.to_le_bytes());
        inner.update(version.to_le_bytes());
        inner.update((tool.len() as u64).to_le_bytes());
        inner.update(tool);
        for (name, value) in arguments.iter().filter(|(name, _)| *name != ARGUMENT) {
            for text in [name.clone(), value.to_string()] {
                inner.update((text.len() as u64).to_le_bytes());
                inner.update(text);
            }
        }
        let whole = Sha256::new_with_prefix(pad(0x5c)).chain_update(inner.finalize()).finalize();
        whole.first_chunk().copied().expect("SHA-256 is longer")
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn arguments(value: serde_json::Value) -> JsonObject {
        value.as_object().unwrap().clone()
    }

    #[test]
    fn a_cursor_is_of_use_for_what_it_was_made_for_and_nothing_else() {
        let (cursors, with) = (Cursors::new("{}"), arguments(json!({ "most": 5 })));
        let text = cursors.text(500, "goods", 3, &with);
        let again = arguments(json!({ "most": 5, "cursor": text }));
        assert_eq!(cursors.rows(&text, "goods", 3, &again), Some(500));
        assert_eq!(cursors.rows(&text, "goods", 4, &with), None);
        assert_eq!(cursors.rows(&text, "orders", 3, &with), None);
        assert_eq!(cursors.rows(&text, "goods", 3, &arguments(json!({ "most": 6 }))), None);
        assert_eq!(Cursors::new("{}").rows(&text, "goods", 3, &with), Some(500), "nothing of it is kept");
        assert_eq!(Cursors::new("{\"page_rows\":9}").rows(&text, "goods", 3, &with), None);
    }

    #[test]
    fn no_bit_of_a_cursor_can_be_changed() {
        let (cursors, with) = (Cursors::new("{}"), JsonObject::new());
        let bytes = BASE64_URL_SAFE_NO_PAD.decode(cursors.text(500, "goods", 3, &with)).unwrap();
        for bit in 0..bytes.len() * 8 {
            let mut forged = bytes.clone();
            forged[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(cursors.rows(&BASE64_URL_SAFE_NO_PAD.encode(forged), "goods", 3, &with), None, "bit {bit}");
        }
        for length in 0..bytes.len() {
            assert_eq!(cursors.rows(&BASE64_URL_SAFE_NO_PAD.encode(&bytes[..length]), "goods", 3, &with), None, "length {length}");
        }
    }
}
