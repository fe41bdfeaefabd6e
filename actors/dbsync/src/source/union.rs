//! What has to be captured for several publications of one file: each table once, with all the columns that any of them names.

use std::collections::BTreeMap;

use crate::{
    capture::Key,
    filter::{Filter, KeyKind, Table},
};

/// A table as capture needs it, without a number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Wanted {
    pub(super) name: String,
    /// Published by one or another.
    pub(super) columns: Vec<String>,
    pub(super) key: Key,
}

/// The tables of all `filters`, in the order of their names. The filters must have been loaded from one schema, so that a table has
/// the same key in all of them.
pub(super) fn union<'a>(filters: impl IntoIterator<Item = &'a Filter>) -> Vec<Wanted> {
    let mut tables: BTreeMap<String, Wanted> = BTreeMap::new();
    for table in filters.into_iter().flat_map(Filter::tables) {
        let wanted = tables.entry(table.name().to_ascii_lowercase()).or_insert_with(|| Wanted {
            name: table.name().to_owned(),
            columns: Vec::new(),
            key: key(table),
        });
        for column in own_columns(table) {
            if !wanted.columns.contains(column) {
                wanted.columns.push(column.clone());
            }
        }
    }
    let mut tables: Vec<Wanted> = tables.into_values().collect();
    // The order in which filters name them must not look like a change.
    tables.iter_mut().for_each(|table| table.columns.sort_unstable());
    tables
}

fn key(table: &Table) -> Key {
    match table.key().kind {
        KeyKind::Rowid => Key::Rowid,
        KeyKind::Integer | KeyKind::Declared => Key::Columns(table.key().columns.iter().map(|column| column.name.clone()).collect()),
    }
}

/// The published columns that the table itself has: a rowid that is the key is none of them.
fn own_columns(table: &Table) -> &[String] {
    match table.key().kind {
        KeyKind::Rowid => table.columns().get(table.key().columns.len()..).unwrap_or_default(),
        KeyKind::Integer | KeyKind::Declared => table.columns(),
    }
}

#[cfg(test)]
mod tests {
    use horos_store::rusqlite::Connection;

    use super::*;
    use crate::filter::FilterSpec;

    #[test]
    fn a_table_of_two_publications_is_captured_once_with_the_columns_of_both() {
        let file = Connection::open_in_memory().unwrap();
        file.execute_batch("CREATE TABLE Item(id INTEGER PRIMARY KEY, a, b, secret); CREATE TABLE log(line); CREATE TABLE other(x)")
            .unwrap();
        let load = |json: &str| Filter::load(&file, &serde_json::from_str::<FilterSpec>(json).unwrap()).unwrap();
        let first = load(r#"{"partial-tables": {"item": {"columns": ["b"]}}}"#);
        let second = load(r#"{"partial-tables": {"ITEM": {"columns": ["a"]}}, "full-tables": ["log"]}"#);
        let wanted = union([&first, &second]);
        let item = Wanted { name: "Item".into(), columns: vec!["a".into(), "b".into(), "id".into()], key: Key::Columns(vec!["id".into()]) };
        assert_eq!(wanted, [item, Wanted { name: "log".into(), columns: vec!["line".into()], key: Key::Rowid }]);
        assert_eq!(wanted, union([&second, &first]));
    }
}
