//! Random schemas, specs and rows against an oracle that shares no code with the filter: conditions are decided in Rust, in
//! three-valued logic, and keys are sorted in Rust.

use std::fmt;

use proptest::{prelude::*, test_runner::Config};
use rusqlite::types::Value;

use super::filter_world::{File, holds, quote, replica, rows, scale};

/// Stands in everything that must not travel: values, defaults, checks, expressions, other tables.
const SECRET: &str = "S3CRET";

#[derive(Clone, Debug)]
enum Condition {
    Compare(usize, &'static str, i64),
    IsNull(usize),
    IsNotNull(usize),
    And(Box<Condition>, Box<Condition>),
    Or(Box<Condition>, Box<Condition>),
    Not(Box<Condition>),
}

impl fmt::Display for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Condition::Compare(column, op, literal) => write!(f, "n{column} {op} {literal}"),
            Condition::IsNull(column) => write!(f, "n{column} IS NULL"),
            Condition::IsNotNull(column) => write!(f, "\"N{column}\" IS NOT NULL"),
            Condition::And(a, b) => write!(f, "({a} AND {b})"),
            Condition::Or(a, b) => write!(f, "({a} OR {b})"),
            Condition::Not(a) => write!(f, "NOT ({a})"),
        }
    }
}

impl Condition {
    /// None is SQL's "unknown".
    fn decide(&self, numbers: &[Option<i64>]) -> Option<bool> {
        match self {
            Condition::Compare(column, op, literal) => {
                let value = numbers[*column]?;
                Some(match *op {
                    "=" => value == *literal,
                    "<>" => value != *literal,
                    "<" => value < *literal,
                    _ => value >= *literal,
                })
            }
            Condition::IsNull(column) => Some(numbers[*column].is_none()),
            Condition::IsNotNull(column) => Some(numbers[*column].is_some()),
            Condition::And(a, b) => match (a.decide(numbers), b.decide(numbers)) {
                (Some(false), _) | (_, Some(false)) => Some(false),
                (Some(true), Some(true)) => Some(true),
                _ => None,
            },
            Condition::Or(a, b) => match (a.decide(numbers), b.decide(numbers)) {
                (Some(true), _) | (_, Some(true)) => Some(true),
                (Some(false), Some(false)) => Some(false),
                _ => None,
            },
            Condition::Not(a) => a.decide(numbers).map(|it| !it),
        }
    }
}

fn condition() -> impl Strategy<Value = Condition> {
    let leaf = prop_oneof![
        (0..3usize, prop_oneof![Just("="), Just("<>"), Just("<"), Just(">=")], -2..3i64)
            .prop_map(|(column, op, literal)| Condition::Compare(column, op, literal)),
        (0..3usize).prop_map(Condition::IsNull),
        (0..3usize).prop_map(Condition::IsNotNull),
    ];
    leaf.prop_recursive(4, 16, 2, |inner| {
        prop_oneof![
            (inner.clone(), inner.clone()).prop_map(|(a, b)| Condition::And(a.into(), b.into())),
            (inner.clone(), inner.clone()).prop_map(|(a, b)| Condition::Or(a.into(), b.into())),
            inner.prop_map(|a| Condition::Not(a.into())),
        ]
    })
}

/// A text column of the table, beside its key and three numbers.
#[derive(Clone, Debug)]
struct Extra {
    kind: &'static str,
    constraint: &'static str,
    index: u8,
    kept: bool,
}

#[derive(Clone, Debug)]
struct Row {
    key: i64,
    numbers: [Option<i64>; 3],
}

#[derive(Clone, Debug)]
struct Case {
    key: &'static str,
    options: &'static str,
    numbers_kept: bool,
    extras: Vec<Extra>,
    condition: Option<Condition>,
    rows: Vec<Row>,
}

fn case() -> impl Strategy<Value = Case> {
    let key = prop_oneof![
        Just(("k INTEGER PRIMARY KEY, ", "")),
        Just(("k INT PRIMARY KEY, ", "")),
        Just(("k INTEGER PRIMARY KEY DESC, ", "")),
        Just(("k INT NOT NULL PRIMARY KEY DESC, ", "WITHOUT ROWID")),
        Just(("k INTEGER PRIMARY KEY AUTOINCREMENT, ", "STRICT")),
        Just(("", "")),
    ];
    // The type text may hold a comment, which is private too.
    let kind = prop_oneof![Just("TEXT"), Just("VARCHAR /* S3CRET */ (90)"), Just("CLOB")];
    let constraint = prop_oneof![
        Just(""),
        Just("NOT NULL"),
        Just("UNIQUE"),
        Just("NOT NULL UNIQUE COLLATE NOCASE"),
        Just("DEFAULT 'S3CRET'"),
        Just("CHECK (length(#) < 90 OR # = 'S3CRET')"),
        Just("NOT NULL DEFAULT ('S3CRET' || 'x') CHECK (# <> 'S3CRET') /* S3CRET */"),
    ];
    let extra =
        (kind, constraint, 0..5u8, any::<bool>()).prop_map(|(kind, constraint, index, kept)| Extra { kind, constraint, index, kept });
    let number = prop_oneof![Just(None), (-3..4i64).prop_map(Some)];
    let row = (any::<i16>(), [number.clone(), number.clone(), number]).prop_map(|(key, numbers)| Row { key: key.into(), numbers });
    (key, any::<bool>(), prop::collection::vec(extra, 0..5), prop::option::of(condition()), prop::collection::vec(row, 0..12)).prop_map(
        |((key, options), numbers_kept, extras, condition, mut rows)| {
            rows.sort_by_key(|row| row.key);
            rows.dedup_by_key(|row| row.key);
            Case { key, options, numbers_kept, extras, condition, rows }
        },
    )
}

impl Case {
    fn schema(&self) -> String {
        let mut sql = format!("CREATE TABLE private (x TEXT DEFAULT '{SECRET}'); INSERT INTO private VALUES ('{SECRET}');");
        sql += &format!("CREATE TABLE t (-- {SECRET}\n{}n0 INT, n1 INTEGER, n2 INT", self.key);
        for (i, extra) in self.extras.iter().enumerate() {
            sql += &format!(
                ", \"e {i}\" {} {}",
                if self.options == "STRICT" { "TEXT" } else { extra.kind },
                extra.constraint.replace('#', &format!("\"e {i}\""))
            );
        }
        sql += &format!(") {};", self.options);
        for (i, extra) in self.extras.iter().enumerate() {
            sql += &match extra.index {
                0 => format!("CREATE INDEX i{i} ON t (\"e {i}\" DESC, n0);"),
                1 => format!("CREATE UNIQUE INDEX i{i} ON t (\"e {i}\");"),
                2 => format!("CREATE INDEX i{i} ON t (\"e {i}\" || '{SECRET}');"),
                3 => format!("CREATE INDEX i{i} ON t (n0) WHERE \"e {i}\" <> '{SECRET}';"),
                _ => String::new(),
            };
        }
        sql + &format!(
            "CREATE TRIGGER g AFTER DELETE ON t BEGIN INSERT INTO private VALUES ('{SECRET}'); END; CREATE VIEW v AS SELECT '{SECRET}' AS x;"
        )
    }

    /// The value of a text column: public where it is kept in a published row, else secret. Always unique.
    fn text(&self, row: &Row, column: usize) -> String {
        let open = self.extras[column].kept && self.publishes(row);
        format!("{}{column}.{}", if open { "open" } else { SECRET }, row.key)
    }

    fn publishes(&self, row: &Row) -> bool {
        self.condition.as_ref().is_none_or(|condition| condition.decide(&row.numbers) == Some(true))
    }

    fn spec(&self) -> String {
        let mut kept: Vec<String> = self.extras.iter().enumerate().filter(|(_, it)| it.kept).map(|(i, _)| format!("\"E {i}\"")).collect();
        if self.numbers_kept {
            kept.extend(["n0", "n1", "n2"].map(str::to_owned));
        }
        if kept.is_empty() {
            kept.push("n0".to_owned());
        }
        let condition = self.condition.as_ref().map_or(String::new(), |it| format!(", where: '{it}'"));
        format!("partial-tables: {{T: {{columns: [{}]{condition}}}}}", kept.join(", "))
    }

    /// What the FO must hold, in key order.
    fn expected(&self) -> Vec<Vec<Value>> {
        let number = |it: Option<i64>| it.map_or(Value::Null, Value::Integer);
        let only_n0 = !self.numbers_kept && !self.extras.iter().any(|it| it.kept);
        let published = self.rows.iter().filter(|row| self.publishes(row));
        let values = published.map(|row| {
            let mut values = vec![Value::Integer(row.key)];
            let shown = row.numbers.iter().enumerate().filter(|(i, _)| self.numbers_kept || (only_n0 && *i == 0));
            values.extend(shown.map(|(_, it)| number(*it)));
            let texts = (0..self.extras.len()).filter(|i| self.extras[*i].kept);
            values.extend(texts.map(|i| Value::Text(self.text(row, i))));
            values
        });
        values.collect()
    }

    fn fill(&self, file: &File) {
        let key = if self.key.is_empty() { "rowid" } else { "k" };
        let mut columns = vec![key.to_owned(), "n0".to_owned(), "n1".to_owned(), "n2".to_owned()];
        columns.extend((0..self.extras.len()).map(|i| quote(&format!("e {i}"))));
        let marks = vec!["?"; columns.len()].join(", ");
        let sql = format!("INSERT INTO t ({}) VALUES ({marks})", columns.join(", "));
        for row in &self.rows {
            let mut values = vec![Value::Integer(row.key)];
            values.extend(row.numbers.iter().map(|it| it.map_or(Value::Null, Value::Integer)));
            values.extend((0..self.extras.len()).map(|i| Value::Text(self.text(row, i))));
            file.connection.execute(&sql, rusqlite::params_from_iter(values)).unwrap();
        }
    }
}

proptest! {
    // A failing case is printed with its seed, smaller and smaller.
    #![proptest_config(Config { cases: scale(150, 5_000), failure_persistence: None, ..Config::default() })]

    #[test]
    fn what_is_published_is_what_the_oracle_says_and_no_secret_is_in_any_byte(case in case()) {
        let file = File::new(&case.schema());
        case.fill(&file);
        let filter = file.load(&case.spec());
        let table = filter.table("t").unwrap();
        prop_assert_eq!(rows(&file.connection, table.select()), case.expected());
        let by_key = &mut file.connection.prepare(table.select_by_key()).unwrap();
        for row in &case.rows {
            prop_assert_eq!(by_key.exists([row.key]).unwrap(), case.publishes(row));
        }
        prop_assert!(!filter.schema().concat().contains(SECRET));
        let fo = replica(&file.connection, &filter);
        prop_assert!(!holds(&fo, SECRET));
        // Every column that the BO has, the FO has.
        let names = "SELECT name FROM pragma_table_xinfo('t') ORDER BY cid";
        prop_assert_eq!(rows(&fo, names), rows(&file.connection, names));
    }
}
