use std::collections::HashSet;

use proptest::{prelude::*, test_runner::Config};
use tempfile::TempDir;

use super::*;
use crate::filter::{Filter, FilterSpec};

const SPEC: &str = "{full-tables: [t], filtered-tables: {w: 'n % 3 > 0'}}";
const SCHEMA: &str = "CREATE TABLE t(id INTEGER PRIMARY KEY, note); CREATE INDEX by_note ON t(note);
    CREATE TABLE w(name TEXT COLLATE NOCASE, n INT, note, PRIMARY KEY (n, name COLLATE BINARY)) WITHOUT ROWID;";

struct Pair {
    _dir: TempDir,
    bo: Connection,
    fo: Connection,
    published: Vec<Ordered>,
    replica: Vec<Ordered>,
}

fn head(table: &Table) -> TableHead {
    TableHead {
        name: table.name().into(),
        columns: table.columns().to_vec(),
        key: table.key_positions().iter().map(|position| *position as u16).collect(),
        collations: table.key().columns.iter().map(|key| key.explicit_collation.then(|| key.collation.clone())).collect(),
        ddl: vec![],
        fingerprint: [0; 16],
    }
}

impl Pair {
    fn new(rows: &str) -> Pair {
        let dir = tempfile::tempdir().unwrap();
        let bo = Connection::open(dir.path().join("bo.db")).unwrap();
        bo.execute_batch(&format!("PRAGMA synchronous = OFF; {SCHEMA} {rows}")).unwrap();
        let spec: FilterSpec = serde_saphyr::from_str(SPEC).unwrap();
        let filter = Filter::load(&bo, &spec).unwrap();
        let fo = Connection::open_in_memory().unwrap();
        fo.execute_batch(&filter.schema().join(";")).unwrap();
        let published = filter.tables().iter().map(Ordered::published).collect();
        let replica = filter.tables().iter().map(|table| Ordered::replica(&head(table))).collect();
        let pair = Pair { _dir: dir, bo, fo, published, replica };
        pair.copy();
        pair
    }

    fn copy(&self) {
        for (place, table) in ["t", "w"].iter().enumerate() {
            self.fo.execute_batch(&format!("DELETE FROM {table}")).unwrap();
            let width = self.published[place].width();
            let mut insert = self.fo.prepare(&format!("INSERT INTO {table} VALUES ({})", vec!["?"; width].join(", "))).unwrap();
            let mut statement = self.bo.prepare(self.published[place].sql(false, false)).unwrap();
            let mut rows = statement.query([]).unwrap();
            while let Some(row) = rows.next().unwrap() {
                for column in 0..width {
                    insert.raw_bind_parameter(column + 1, crate::value::Value(row.get_ref(column).unwrap())).unwrap();
                }
                insert.raw_execute().unwrap();
            }
        }
    }
}

fn chunks(connection: &Connection, ordered: &Ordered) -> Vec<ChunkId> {
    let scanned = scan(connection, ordered, None, usize::MAX, &AtomicBool::new(false)).unwrap();
    assert!(scanned.last);
    scanned.chunks
}

const FILL: &str =
    "WITH RECURSIVE i(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM i WHERE n < 20000) INSERT INTO t SELECT n * 2, 'note ' || n FROM i;
    INSERT INTO w SELECT char(65 + id % 26) || id, id % 100, CASE WHEN id % 5 THEN x'00ff' ELSE id * 0.5 END FROM t WHERE id % 4 = 0;";

#[test]
fn rows_have_the_same_chunks_on_both_ends() {
    let pair = Pair::new(FILL);
    for (published, replica) in pair.published.iter().zip(&pair.replica) {
        let there = chunks(&pair.bo, published);
        assert_eq!(there, chunks(&pair.fo, replica));
        assert!(there.len() > 5, "{}", there.len());
        // From the end of each chunk on, and in pages.
        for (index, chunk) in there.iter().enumerate() {
            for limit in [1, 2, 1_000] {
                let found = scan(&pair.fo, replica, Some(&chunk.through), limit, &AtomicBool::new(false)).unwrap();
                assert_eq!(found.chunks, there[index + 1..].iter().take(limit).cloned().collect::<Vec<_>>());
                assert_eq!(found.last, index + limit + 1 >= there.len());
            }
        }
        // A range of chunks is one digest.
        let (after, through) = (Some(&there[1].through[..]), Some(&there[4].through[..]));
        let digest = |connection, ordered| digest_range(connection, ordered, after, through, &AtomicBool::new(false)).unwrap();
        assert_eq!(digest(&pair.bo, published), digest(&pair.fo, replica));
        assert_eq!(digest(&pair.bo, published).rows, there[2..=4].iter().map(|chunk| u64::from(chunk.rows)).sum::<u64>());
        let one = digest_range(&pair.bo, published, after, Some(&there[2].through), &AtomicBool::new(false)).unwrap();
        assert_eq!(one, RangeDigest { rows: u64::from(there[2].rows), digest: there[2].digest });
    }
}

#[test]
fn tables_are_read_by_their_index_and_not_sorted() {
    let pair = Pair::new(FILL);
    for (connection, tables) in [(&pair.bo, &pair.published), (&pair.fo, &pair.replica)] {
        for (after, through) in [(false, false), (true, false), (false, true), (true, true)] {
            for ordered in tables {
                let sql = format!("EXPLAIN QUERY PLAN {}", ordered.sql(after, through));
                let mut statement = connection.prepare(&sql).unwrap();
                let plan: Vec<String> = statement.raw_query().mapped(|row| row.get(3)).collect::<Result<_, _>>().unwrap();
                assert!(plan.iter().all(|step| !step.contains("TEMP B-TREE")), "{sql}: {plan:?}");
                assert!(!after || plan.iter().any(|step| step.contains("SEARCH")), "{sql}: {plan:?}");
            }
        }
    }
}

#[test]
fn chunks_have_some_512_rows_or_128_kib() {
    let pair =
        Pair::new("WITH RECURSIVE i(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM i WHERE n < 200000) INSERT INTO t SELECT n, n FROM i");
    let small = chunks(&pair.bo, &pair.published[0]);
    assert!((330..450).contains(&small.len()), "{}", small.len());
    assert!(small.iter().all(|chunk| chunk.rows <= MAX_ROWS));

    let pair = Pair::new(
        "WITH RECURSIVE i(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM i WHERE n < 6000) INSERT INTO t SELECT n, zeroblob(4000) FROM i",
    );
    let large = chunks(&pair.bo, &pair.published[0]);
    assert!((140..230).contains(&large.len()), "{}", large.len());
    assert!(large.iter().all(|chunk| chunk.rows <= 263), "1 MiB is reached");

    let pair = Pair::new("INSERT INTO t VALUES (1, zeroblob(140000)), (2, 'small'), (3, zeroblob(140000)), (4, 'x')");
    assert_eq!(chunks(&pair.bo, &pair.published[0]).iter().map(|chunk| chunk.rows).collect::<Vec<_>>(), [1, 2, 1]);
}

#[test]
fn chunks_end_where_no_key_says_so() {
    let keys: Vec<i64> = (0..30_000).filter(|id| !ends_after(&encoded(*id), 10)).take(2 * MAX_ROWS as usize + 5).collect();
    let pair = Pair::new("");
    let transaction = pair.bo.unchecked_transaction().unwrap();
    for key in &keys {
        transaction.execute("INSERT INTO t VALUES (?1, NULL)", [key]).unwrap();
    }
    transaction.commit().unwrap();
    assert_eq!(chunks(&pair.bo, &pair.published[0]).iter().map(|chunk| chunk.rows).collect::<Vec<_>>(), [MAX_ROWS, MAX_ROWS, 5]);
    // Rows just below what would end a chunk by itself, of those: 1 MiB.
    pair.bo.execute_batch("DELETE FROM t").unwrap();
    let mut insert = pair.bo.prepare("INSERT INTO t VALUES (?1, zeroblob(100000))").unwrap();
    keys_without_end(100_010).take(25).for_each(|key| assert_eq!(insert.execute([key]), Ok(1)));
    assert_eq!(chunks(&pair.bo, &pair.published[0]).iter().map(|chunk| chunk.rows).collect::<Vec<_>>(), [11, 11, 3]);
}

fn encoded(id: i64) -> Vec<u8> {
    let mut key = Vec::new();
    crate::value::put_value(&mut key, ValueRef::Integer(id));
    key
}

fn keys_without_end(size: usize) -> impl Iterator<Item = i64> {
    (0..).filter(move |id| !ends_after(&encoded(*id), size))
}

#[test]
fn the_hash_is_the_same_in_every_release() {
    let hashes = [&b""[..], b"\x01\x02", b"12345678", b"123456789", b"a longer key, of several words"].map(key_hash);
    assert_eq!(
        hashes.map(|hash| format!("{hash:016x}")),
        ["a7a5eefa3ebcd921", "bcb86b4816e39ccf", "ff38824f05258c1d", "6b182e715089f837", "02cef96c9bb66253"]
    );
}

#[test]
fn a_row_too_large_is_named_and_nothing_of_it_kept() {
    let pair = Pair::new("INSERT INTO t VALUES (1, 'a'), (7, zeroblob(17000000)), (9, 'c')");
    let error = scan(&pair.bo, &pair.published[0], None, 9, &AtomicBool::new(false)).unwrap_err();
    assert!(matches!(&error, ReadError::TooLarge { key } if key == "7"), "{error}");
    let pair = Pair::new("INSERT INTO w VALUES (printf('%.*c', 1100000, 'k'), 1, 'a')");
    let error = scan(&pair.bo, &pair.published[1], None, 9, &AtomicBool::new(false)).unwrap_err();
    assert!(matches!(&error, ReadError::TooLarge { key } if key.starts_with("1, 'kkk") && key.len() < 100), "{error}");
}

#[test]
fn what_is_no_key_of_the_table_is_refused() {
    let pair = Pair::new(FILL);
    let scan = |after: &[u8]| scan(&pair.bo, &pair.published[1], Some(after), 9, &AtomicBool::new(false));
    assert!(matches!(scan(&encoded(1)), Err(ReadError::Key(Malformed::Cut))));
    assert!(matches!(scan(&[9]), Err(ReadError::Key(Malformed::Type))));
}

#[test]
fn a_scan_ends_when_it_is_cancelled() {
    let pair = Pair::new(FILL);
    assert!(matches!(scan(&pair.bo, &pair.published[0], None, 9_999, &AtomicBool::new(true)), Err(ReadError::Cancelled)));
}

proptest! {
    #![proptest_config(Config { cases: 24, failure_persistence: None, ..Config::default() })]

    #[test]
    fn a_row_more_or_less_changes_two_chunks_at_most(changes in prop::collection::vec((0..24_000_i64, any::<bool>()), 1..6)) {
        let pair = Pair::new("WITH RECURSIVE i(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM i WHERE n < 12000) INSERT INTO t SELECT n * 2, 'note ' || n FROM i");
        let ordered = &pair.published[0];
        let mut before: HashSet<[u8; 32]> = chunks(&pair.bo, ordered).iter().map(|chunk| chunk.digest).collect();
        for (key, delete) in changes {
            let sql = if delete { "DELETE FROM t WHERE id = (SELECT min(id) FROM t WHERE id >= ?1)" } else { "INSERT OR REPLACE INTO t VALUES (?1, 'another')" };
            pair.bo.execute(sql, [key]).unwrap();
            let after: HashSet<[u8; 32]> = chunks(&pair.bo, ordered).iter().map(|chunk| chunk.digest).collect();
            prop_assert!(after.difference(&before).count() <= 2 && before.difference(&after).count() <= 2);
            before = after;
        }
        pair.copy();
        prop_assert_eq!(chunks(&pair.bo, ordered), chunks(&pair.fo, &pair.replica[0]));
    }
}
