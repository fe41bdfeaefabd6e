//! Rows and keys as bytes: the one form in which they travel, are hashed and are compared, on the BO and on every FO.
//!
//! A row is its values one after the other, without a count: the table says how many. Equal values have equal bytes and different
//! ones different bytes, so that a digest over rows means the rows:
//!
//! | first byte | value | then |
//! |---|---|---|
//! | 0 | NULL | – |
//! | 1 | integer | zigzag varint (LEB128, as short as it goes) |
//! | 2 | real | 8 bytes, IEEE 754, little endian; never NaN, and zero is positive, as SQLite stores it |
//! | 3 | text | varint length, bytes, whether they are UTF-8 or not |
//! | 4 | blob | varint length, bytes |
//!
//! Encoding copies from SQLite's own memory into one buffer, without an allocation a value. Decoding borrows, trusts nothing, and
//! accepts no second form of a value.

use rusqlite::{
    Row, ToSql,
    types::{ToSqlOutput, ValueRef},
};

/// Most bytes of an encoded row: 16 MiB. Both ends hold a row in memory, some three times while it is packed.
pub(crate) const MAX_ROW: usize = 16 << 20;

/// Most bytes of an encoded key: 1 MiB. A frame may name two of them, and a page of the log holds many.
pub(crate) const MAX_KEY: usize = 1 << 20;

/// What was received is not what an encoder writes. Nothing was used; ask again, and give the sender up if it goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Malformed {
    /// It ends within a value or row.
    #[error("a value is cut off")]
    Cut,
    /// A first byte without meaning.
    #[error("a value has no known type")]
    Type,
    /// A number in a longer form than needed, or out of range; NaN or a negative zero.
    #[error("a number is not in its canonical form")]
    Number,
    /// More bytes than the values announced.
    #[error("bytes are left over after the last value")]
    LeftOver,
    /// Another number of rows than announced.
    #[error("the number of rows is not the announced one")]
    Count,
    /// A row or key is larger than its bound.
    #[error("a row or key is too large")]
    TooLarge,
}

/// A value that borrows from what was received, to be bound to a statement.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Value<'a>(pub(crate) ValueRef<'a>);

impl ToSql for Value<'_> {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(ToSqlOutput::Borrowed(self.0))
    }
}

/// Appends `value` as a varint: seven bits a byte, the lowest first.
#[inline]
pub(crate) fn put_varint(into: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        into.push(value as u8 | 0x80);
        value >>= 7;
    }
    into.push(value as u8);
}

/// Appends one value.
#[inline]
pub(crate) fn put_value(into: &mut Vec<u8>, value: ValueRef<'_>) {
    match value {
        ValueRef::Null => into.push(0),
        ValueRef::Integer(value) => {
            into.push(1);
            put_varint(into, ((value << 1) ^ (value >> 63)) as u64);
        }
        ValueRef::Real(value) => {
            // A generated column may compute -0.0; the FO stores the value, and SQLite stores no negative zero.
            let value = if value == 0.0 { 0.0 } else { value };
            into.push(2);
            into.extend_from_slice(&value.to_bits().to_le_bytes());
        }
        ValueRef::Text(bytes) => put_bytes(into, 3, bytes),
        ValueRef::Blob(bytes) => put_bytes(into, 4, bytes),
    }
}

#[inline]
fn put_bytes(into: &mut Vec<u8>, tag: u8, bytes: &[u8]) {
    into.push(tag);
    put_varint(into, bytes.len() as u64);
    into.extend_from_slice(bytes);
}

/// Appends the first `width` columns of `row`. `false`, and nothing is appended, when they are more than [`MAX_ROW`].
///
/// # Errors
/// SQLite's, when the row has fewer.
#[inline]
pub(crate) fn put_row(into: &mut Vec<u8>, row: &Row<'_>, width: usize) -> rusqlite::Result<bool> {
    let start = into.len();
    for column in 0..width {
        let value = row.get_ref(column)?;
        // Looked at before it is copied.
        let length = if let ValueRef::Text(bytes) | ValueRef::Blob(bytes) = value { bytes.len() } else { 0 };
        if length > MAX_ROW || into.len() - start + length > MAX_ROW {
            into.truncate(start);
            return Ok(false);
        }
        put_value(into, value);
    }
    // The few bytes before the last value.
    if into.len() - start > MAX_ROW {
        into.truncate(start);
        return Ok(false);
    }
    Ok(true)
}

/// Appends the columns of `row` at `positions`, in that order: the key, where `positions` are the key's.
///
/// # Errors
/// SQLite's, when the row has fewer.
#[inline]
pub(crate) fn put_key(into: &mut Vec<u8>, row: &Row<'_>, positions: &[u16]) -> rusqlite::Result<()> {
    for column in positions {
        put_value(into, row.get_ref(usize::from(*column))?);
    }
    Ok(())
}

/// Takes values off the front of bytes that nobody vouches for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reader<'a> {
    bytes: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Reader<'a> {
        Reader { bytes }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// What was not taken yet.
    pub(crate) fn rest(&self) -> &'a [u8] {
        self.bytes
    }

    pub(crate) fn take(&mut self, count: usize) -> Result<&'a [u8], Malformed> {
        let (taken, rest) = self.bytes.split_at_checked(count).ok_or(Malformed::Cut)?;
        self.bytes = rest;
        Ok(taken)
    }

    pub(crate) fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let (taken, rest) = self.bytes.split_first_chunk().ok_or(Malformed::Cut)?;
        self.bytes = rest;
        Ok(*taken)
    }

    pub(crate) fn byte(&mut self) -> Result<u8, Malformed> {
        self.array().map(|[byte]| byte)
    }

    #[inline]
    pub(crate) fn varint(&mut self) -> Result<u64, Malformed> {
        let mut value = 0_u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                // Ten bytes hold 70 bits; and a last byte of zero says what the byte before could have said.
                let fits = shift < 63 || byte <= 1;
                return if fits && (byte != 0 || shift == 0) { Ok(value) } else { Err(Malformed::Number) };
            }
        }
        Err(Malformed::Number)
    }

    /// A varint that counts bytes still to come, or things of at least a byte each: never more than are there.
    #[inline]
    pub(crate) fn length(&mut self) -> Result<usize, Malformed> {
        let length = self.varint()?;
        usize::try_from(length).ok().filter(|length| *length <= self.bytes.len()).ok_or(Malformed::Cut)
    }

    #[inline]
    pub(crate) fn value(&mut self) -> Result<ValueRef<'a>, Malformed> {
        Ok(match self.byte()? {
            0 => ValueRef::Null,
            1 => {
                let value = self.varint()?;
                ValueRef::Integer((value >> 1) as i64 ^ -((value & 1) as i64))
            }
            2 => {
                let value = f64::from_bits(u64::from_le_bytes(self.array()?));
                if value.is_nan() || (value == 0.0 && value.is_sign_negative()) {
                    return Err(Malformed::Number);
                }
                ValueRef::Real(value)
            }
            tag @ (3 | 4) => {
                let length = self.length()?;
                let bytes = self.take(length)?;
                if tag == 3 { ValueRef::Text(bytes) } else { ValueRef::Blob(bytes) }
            }
            _ => return Err(Malformed::Type),
        })
    }
}

/// The rows (or keys) of a frame, one after the other.
#[derive(Debug)]
pub(crate) struct Rows<'a> {
    reader: Reader<'a>,
    width: usize,
    left: u32,
}

impl<'a> Rows<'a> {
    /// `count` rows of `width` values in `bytes`, as a frame announces them.
    pub(crate) fn new(bytes: &'a [u8], width: usize, count: u32) -> Rows<'a> {
        Rows { reader: Reader::new(bytes), width, left: count }
    }

    /// How many rows are yet to be given.
    pub(crate) fn left(&self) -> u32 {
        self.left
    }

    /// Puts the next row's values into `row` in place of what was there; `false` once all were given.
    ///
    /// # Errors
    /// [`Malformed`]: these are not the announced rows.
    #[inline]
    pub(crate) fn next_into(&mut self, row: &mut Vec<Value<'a>>) -> Result<bool, Malformed> {
        row.clear();
        self.append_to(row)
    }

    /// Appends the next row's values to `rows`; `false` once all were given.
    ///
    /// # Errors
    /// [`Malformed`]: these are not the announced rows.
    #[inline]
    pub(crate) fn append_to(&mut self, rows: &mut Vec<Value<'a>>) -> Result<bool, Malformed> {
        if self.left == 0 {
            return if self.reader.is_empty() { Ok(false) } else { Err(Malformed::LeftOver) };
        }
        let before = self.reader.rest().len();
        for _ in 0..self.width {
            rows.push(Value(self.reader.value()?));
        }
        if before - self.reader.rest().len() > MAX_ROW {
            return Err(Malformed::TooLarge);
        }
        self.left -= 1;
        Ok(true)
    }
}

/// The values of an encoded key.
///
/// # Errors
/// [`Malformed`] unless `key` is exactly `width` values within [`MAX_KEY`].
pub(crate) fn key_values(key: &[u8], width: usize) -> Result<Vec<Value<'_>>, Malformed> {
    if key.len() > MAX_KEY {
        return Err(Malformed::TooLarge);
    }
    let mut values = Vec::with_capacity(width.min(key.len()));
    let mut rows = Rows::new(key, width, 1);
    rows.next_into(&mut values)?;
    if rows.reader.is_empty() { Ok(values) } else { Err(Malformed::LeftOver) }
}

#[cfg(test)]
mod tests;
