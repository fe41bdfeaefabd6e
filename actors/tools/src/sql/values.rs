//! SQLite's values as JSON and back, losing nothing on the way.
//!
//! | SQLite | JSON |
//! |---|---|
//! | INTEGER | a whole number, exact |
//! | REAL | a number with a point or an exponent; infinities are `{"real": "Infinity"}` and `{"real": "-Infinity"}` |
//! | TEXT | a string; text that is no UTF-8 like a BLOB |
//! | BLOB | `{"base64": "…"}` |
//! | NULL | `null` |
//!
//! Arguments go the other way. What else is an array or object becomes its JSON text, so that `json_each` finds it; `true` and `false` are
//! 1 and 0, as SQLite has them.

use base64::{Engine as _, prelude::BASE64_STANDARD};
use rmcp::model::JsonObject;
use rusqlite::{
    Row,
    types::{Value as Sql, ValueRef},
};
use serde_json::{Number, Value, json};

const BASE64: &str = "base64";
const REAL: &str = "real";

/// A value of SQLite as JSON.
pub(super) fn json(value: ValueRef<'_>) -> Value {
    let bytes = |bytes: &[u8]| json!({ BASE64: BASE64_STANDARD.encode(bytes) });
    match value {
        ValueRef::Null => Value::Null,
        ValueRef::Integer(integer) => integer.into(),
        ValueRef::Real(real) => {
            Number::from_f64(real).map_or_else(|| json!({ REAL: if real > 0.0 { "Infinity" } else { "-Infinity" } }), Value::Number)
        }
        ValueRef::Text(text) => std::str::from_utf8(text).map_or_else(|_| bytes(text), Value::from),
        ValueRef::Blob(blob) => bytes(blob),
    }
}

/// What an argument is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Wanted {
    /// What its schema calls an integer: `5.0` is the integer 5, as JSON Schema says.
    Integer,
    /// As it is.
    Any,
}

/// JSON as a value of SQLite.
///
/// # Errors
/// A whole number beyond 64 bits with a sign, which SQLite has not, or base64 that is none.
pub(super) fn sql(value: &Value, wanted: Wanted) -> Result<Sql, &'static str> {
    Ok(match value {
        Value::Null => Sql::Null,
        Value::Bool(is) => Sql::Integer((*is).into()),
        Value::Number(number) => match (number.as_i64(), number.as_f64()) {
            (Some(integer), _) => Sql::Integer(integer),
            (None, _) if number.is_u64() => return Err("a whole number this large is not stored exactly"),
            (None, Some(real)) if wanted == Wanted::Integer => {
                Sql::Integer(exact(real).ok_or("a whole number this large is not stored exactly")?)
            }
            (None, Some(real)) => Sql::Real(real),
            (None, None) => return Err("not a number that can be stored"),
        },
        Value::String(text) => Sql::Text(text.clone()),
        Value::Object(object) => match special(object) {
            Some((BASE64, text)) => Sql::Blob(BASE64_STANDARD.decode(text).map_err(|_| "not base64")?),
            Some((_, "Infinity")) => Sql::Real(f64::INFINITY),
            Some((_, "-Infinity")) => Sql::Real(f64::NEG_INFINITY),
            _ => Sql::Text(value.to_string()),
        },
        Value::Array(_) => Sql::Text(value.to_string()),
    })
}

/// An object of ours.
fn special(object: &JsonObject) -> Option<(&str, &str)> {
    let mut entries = object.iter();
    let (Some((key, Value::String(text))), None) = (entries.next(), entries.next()) else { return None };
    matches!(key.as_str(), BASE64 | REAL).then_some((key, text))
}

/// The integer that a float is, if no other is the same float.
fn exact(real: f64) -> Option<i64> {
    /// Beyond it, 2^53, two integers are one float.
    const EXACT: f64 = 9_007_199_254_740_992.0;
    #[expect(clippy::cast_possible_truncation, reason = "within 2^53 and without a fraction")]
    (real.fract() == 0.0 && real.abs() <= EXACT).then_some(real as i64)
}

/// The columns of a result, each under a name of its own.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Columns(Vec<String>);

impl Columns {
    /// Names as SQLite gives them; the second `id` is `id_2`.
    pub(super) fn new<'a>(names: impl Iterator<Item = &'a str>) -> Self {
        let mut distinct: Vec<String> = Vec::new();
        for name in names {
            let mut free = name.to_owned();
            let mut number = 2;
            while distinct.contains(&free) {
                free = format!("{name}_{number}");
                number += 1;
            }
            distinct.push(free);
        }
        Self(distinct)
    }

    pub(super) fn names(&self) -> &[String] {
        &self.0
    }

    /// A row as an object.
    pub(super) fn object(&self, row: &Row<'_>) -> rusqlite::Result<JsonObject> {
        self.0.iter().enumerate().map(|(at, name)| Ok((name.clone(), json(row.get_ref(at)?)))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_sqlite_has_is_json_and_the_same_again() {
        let values = [
            Sql::Null,
            Sql::Integer(i64::MIN),
            Sql::Integer(i64::MAX),
            Sql::Real(5.0),
            Sql::Real(-0.0),
            Sql::Real(f64::MIN_POSITIVE),
            Sql::Real(f64::INFINITY),
            Sql::Real(f64::NEG_INFINITY),
            Sql::Text("a\0\u{1f600}\"".into()),
            Sql::Blob(vec![0, 255, 13]),
            Sql::Blob(Vec::new()),
        ];
        for value in values {
            let text = json(ValueRef::from(&value)).to_string();
            assert_eq!(sql(&serde_json::from_str(&text).unwrap(), Wanted::Any), Ok(value), "{text}");
        }
    }

    #[test]
    fn an_integer_is_never_rounded() {
        assert_eq!(sql(&json!(5.0), Wanted::Integer), Ok(Sql::Integer(5)));
        assert_eq!(sql(&json!(5.0), Wanted::Any), Ok(Sql::Real(5.0)));
        assert!(sql(&json!(1e300), Wanted::Integer).is_err());
        assert!(sql(&json!(u64::MAX), Wanted::Any).is_err());
        assert!(sql(&json!({ "base64": "%" }), Wanted::Any).is_err());
    }

    #[test]
    fn every_column_keeps_a_name_of_its_own() {
        assert_eq!(Columns::new(["id", "id", "id_2", "id"].into_iter()).names(), ["id", "id_2", "id_2_2", "id_3"]);
    }
}
