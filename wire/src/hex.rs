//! Sixteen-byte numbers as people read them: 32 hexadecimal digits in JSON, 16 bytes in bincode.

use std::fmt;

/// Not 32 lower-case hexadecimal digits. One number has one spelling, so that texts can be compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected 32 lower-case hexadecimal digits")]
pub struct HexError;

pub(crate) fn parse(text: &str) -> Result<u128, HexError> {
    let plain = text.len() == 32 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    if plain { u128::from_str_radix(text, 16).map_err(|_| HexError) } else { Err(HexError) }
}

pub(crate) struct Visitor;

impl serde::de::Visitor<'_> for Visitor {
    type Value = u128;
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("32 lower-case hexadecimal digits")
    }
    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<u128, E> {
        parse(text).map_err(E::custom)
    }
}

/// Gives a newtype over `u128` both of its forms.
macro_rules! hex_id {
    ($name:ident) => {
        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                if serializer.is_human_readable() {
                    serializer.collect_str(self)
                } else {
                    serializer.serialize_bytes(&self.0.to_le_bytes())
                }
            }
        }

        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                if deserializer.is_human_readable() {
                    return deserializer.deserialize_str(crate::hex::Visitor).map(Self);
                }
                let bytes: serde_bytes::ByteArray<16> = serde::Deserialize::deserialize(deserializer)?;
                Ok(Self(u128::from_le_bytes(*bytes)))
            }
        }

        impl schemars::JsonSchema for $name {
            fn schema_name() -> std::borrow::Cow<'static, str> {
                stringify!($name).into()
            }
            fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
                schemars::json_schema!({ "type": "string", "pattern": "^[0-9a-f]{32}$" })
            }
        }

        impl std::str::FromStr for $name {
            type Err = crate::hex::HexError;
            fn from_str(text: &str) -> Result<Self, Self::Err> {
                crate::hex::parse(text).map(Self)
            }
        }
    };
}
pub(crate) use hex_id;
