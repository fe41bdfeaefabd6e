//! What an operator writes: the three forms in which a table is published.

use std::{collections::BTreeMap, fmt, marker::PhantomData};

use serde::{
    Deserialize, Deserializer, Serialize,
    de::{self, MapAccess, Visitor},
};

/// Which tables are published, and what of them. A table named in none of the three forms is not published.
///
/// Read from YAML or JSON; the spellings of the Go system (`FullTables`, …) are understood too. A key that is written twice is an
/// error and not the last one's win: the earlier one may have been the stricter.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct FilterSpec {
    /// Tables published with all their columns and rows.
    #[serde(alias = "FullTables", alias = "full_tables", deserialize_with = "list")]
    pub full_tables: Vec<String>,
    /// Tables published with all their columns, and the rows for which the SQL condition is true.
    #[serde(alias = "FilteredTables", alias = "filtered_tables", deserialize_with = "unique")]
    pub filtered_tables: BTreeMap<String, String>,
    /// Tables published with some of their columns.
    #[serde(alias = "PartialTables", alias = "partial_tables", deserialize_with = "unique")]
    pub partial_tables: BTreeMap<String, PartialTable>,
}

/// A table of which only some columns are published.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct PartialTable {
    /// The columns that are published; the key's columns always are, named here or not.
    #[serde(alias = "Columns", deserialize_with = "list")]
    pub columns: Vec<String>,
    /// The rows that are published: an SQL condition; nothing means all.
    #[serde(rename = "where", alias = "Where", deserialize_with = "condition", skip_serializing_if = "Option::is_none")]
    pub condition: Option<String>,
}

/// A list that may be null, as Go writes an empty one.
fn list<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// The Go system has no absence: it writes an empty condition for none.
fn condition<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    Ok(Option::<String>::deserialize(deserializer)?.filter(|text| !text.trim().is_empty()))
}

/// A map that may be null, without a key twice.
fn unique<'de, D: Deserializer<'de>, V: Deserialize<'de>>(deserializer: D) -> Result<BTreeMap<String, V>, D::Error> {
    struct Unique<V>(PhantomData<V>);

    impl<'de, V: Deserialize<'de>> Visitor<'de> for Unique<V> {
        type Value = BTreeMap<String, V>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a map with a table's name as key")
        }

        fn visit_none<E: de::Error>(self) -> Result<Self::Value, E> {
            Ok(BTreeMap::new())
        }

        fn visit_unit<E: de::Error>(self) -> Result<Self::Value, E> {
            Ok(BTreeMap::new())
        }

        fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
            deserializer.deserialize_map(self)
        }

        fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Self::Value, A::Error> {
            let mut map = BTreeMap::new();
            while let Some((table, value)) = access.next_entry::<String, V>()? {
                if map.contains_key(&table) {
                    return Err(de::Error::custom(format_args!("table {table:?} is there twice")));
                }
                map.insert(table, value);
            }
            Ok(map)
        }
    }

    deserializer.deserialize_option(Unique(PhantomData))
}
