use proptest::{prelude::*, test_runner::Config};
use rusqlite::{Connection, params_from_iter, types::Value as Owned};

use super::*;

fn encode(values: &[ValueRef<'_>]) -> Vec<u8> {
    let mut bytes = Vec::new();
    values.iter().for_each(|value| put_value(&mut bytes, *value));
    bytes
}

fn decode(bytes: &[u8], width: usize, count: u32) -> Result<Vec<Vec<Value<'_>>>, Malformed> {
    let (mut rows, mut row, mut found) = (Rows::new(bytes, width, count), Vec::new(), Vec::new());
    while rows.next_into(&mut row)? {
        found.push(row.clone());
    }
    Ok(found)
}

#[test]
fn these_bytes_mean_these_values_in_every_release() {
    let values = [
        ValueRef::Null,
        ValueRef::Integer(0),
        ValueRef::Integer(-1),
        ValueRef::Integer(64),
        ValueRef::Integer(i64::MIN),
        ValueRef::Real(1.5),
        ValueRef::Text(b"caf\xc3\xa9"),
        ValueRef::Text(b"\xff\0"),
        ValueRef::Blob(b""),
    ];
    let bytes = encode(&values);
    assert_eq!(
        hex::encode(&bytes),
        "00 0100 0101 018001 01ffffffffffffffffff01 02000000000000f83f 0305636166c3a9 0302ff00 0400".replace(' ', "")
    );
    assert_eq!(decode(&bytes, values.len(), 1).unwrap(), [values.map(Value)]);
}

#[test]
fn a_second_form_of_a_value_is_refused() {
    for (bytes, why) in [
        ("018000", Malformed::Number),
        ("01ffffffffffffffffff02", Malformed::Number),
        ("01ffffffffffffffffffff01", Malformed::Number),
        ("0380", Malformed::Cut),
        ("038000", Malformed::Number),
        ("0302ff", Malformed::Cut),
        ("03ffffffffffffffffff01", Malformed::Cut),
        ("020000000000000080", Malformed::Number),
        ("02000000000000f87f", Malformed::Number),
        ("02000000", Malformed::Cut),
        ("05", Malformed::Type),
        ("", Malformed::Cut),
        ("0000", Malformed::LeftOver),
    ] {
        assert_eq!(decode(&hex::decode(bytes).unwrap(), 1, 1), Err(why), "{bytes}");
    }
}

#[test]
fn a_key_is_exactly_its_values() {
    let key = encode(&[ValueRef::Integer(7), ValueRef::Text(b"seven")]);
    assert_eq!(key_values(&key, 2).unwrap(), [Value(ValueRef::Integer(7)), Value(ValueRef::Text(b"seven"))]);
    assert_eq!(key_values(&key, 1), Err(Malformed::LeftOver));
    assert_eq!(key_values(&key, 3), Err(Malformed::Cut));
    assert_eq!(key_values(&vec![0; MAX_KEY + 1], MAX_KEY + 1), Err(Malformed::TooLarge));
}

#[test]
fn what_sqlite_stores_comes_back_as_the_same_bytes() {
    let connection = Connection::open_in_memory().unwrap();
    connection.execute_batch("CREATE TABLE t(a, b INT, c REAL, d TEXT, e BLOB, g AS (-1 * b * 0.0))").unwrap();
    let odd = [
        "NULL, 9223372036854775807, 3, 'x' || char(0) || 'y', x''",
        "CAST(x'ff00fe' AS TEXT), 'no number', 1e300, 12, zeroblob(3)",
        "-0.0, 1, -0.0, '', 5",
        "9e999, -9e999, 0.1, NULL, 'text'",
        "CAST('1' AS TEXT), CAST('1' AS TEXT), 1, 1, 1",
    ];
    for row in odd {
        connection.execute_batch(&format!("INSERT INTO t(a, b, c, d, e) VALUES ({row})")).unwrap();
    }
    connection.execute_batch("CREATE TABLE copy(a, b INT, c REAL, d TEXT, e BLOB, g)").unwrap();
    let bytes = |sql: &str| {
        let mut bytes = Vec::new();
        let mut statement = connection.prepare(sql).unwrap();
        let mut rows = statement.raw_query();
        while let Some(row) = rows.next().unwrap() {
            assert!(put_row(&mut bytes, row, 6).unwrap());
        }
        bytes
    };
    let sent = bytes("SELECT * FROM t");
    for row in decode(&sent, 6, 5).unwrap() {
        connection.execute("INSERT INTO copy VALUES (?, ?, ?, ?, ?, ?)", params_from_iter(row)).unwrap();
    }
    assert_eq!(hex::encode(bytes("SELECT * FROM copy")), hex::encode(sent));
}

#[test]
fn a_row_larger_than_a_row_may_be_is_not_copied() {
    let connection = Connection::open_in_memory().unwrap();
    let fits = |sql: &str| {
        let mut bytes = vec![9];
        let fits = connection.query_row(sql, [], |row| put_row(&mut bytes, row, 2)).unwrap();
        assert!(fits || bytes == [9]);
        fits
    };
    assert!(fits(&format!("SELECT 1, zeroblob({})", MAX_ROW - 7)));
    assert!(!fits(&format!("SELECT 1, zeroblob({})", MAX_ROW - 6)), "2 bytes before it, and 5 of its head");
    assert!(!fits(&format!("SELECT zeroblob({}), zeroblob(9000000)", MAX_ROW / 2)));
}

fn value() -> impl Strategy<Value = Owned> {
    prop_oneof![
        Just(Owned::Null),
        any::<i64>().prop_map(Owned::Integer),
        (-100..100_i64).prop_map(Owned::Integer),
        any::<f64>().prop_filter("SQLite stores NULL for NaN", |value| !value.is_nan()).prop_map(|value| Owned::Real(value + 0.0)),
        ".{0,20}".prop_map(Owned::Text),
        prop::collection::vec(any::<u8>(), 0..200).prop_map(Owned::Blob),
    ]
}

proptest! {
    #![proptest_config(Config { failure_persistence: None, ..Config::default() })]

    #[test]
    fn rows_come_back_as_they_were(rows in prop::collection::vec(prop::collection::vec(value(), 3), 0..20)) {
        let values: Vec<ValueRef<'_>> = rows.iter().flatten().map(ValueRef::from).collect();
        let bytes = encode(&values);
        let found = decode(&bytes, 3, u32::try_from(rows.len()).unwrap()).unwrap();
        prop_assert_eq!(found.into_iter().flatten().map(|value| value.0).collect::<Vec<_>>(), values);
    }

    #[test]
    fn whatever_is_accepted_is_what_an_encoder_writes(bytes in prop::collection::vec(prop_oneof![0..6_u8, any::<u8>()], 0..60), width in 1..5_usize) {
        for count in 0..4 {
            if let Ok(rows) = decode(&bytes, width, count) {
                let values: Vec<ValueRef<'_>> = rows.iter().flatten().map(|value| value.0).collect();
                prop_assert_eq!(&encode(&values), &bytes);
            }
        }
    }
}
