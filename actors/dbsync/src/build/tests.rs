use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::atomic::AtomicBool,
};

use bytes::Bytes;
use rusqlite::{Connection, params_from_iter, types::Value as Owned};
use tempfile::TempDir;

use super::*;
use crate::{
    capture::{Attached, Key, Tracked, attach},
    chunk::{RangeDigest, digest_range},
    filter::FilterSpec,
    frames::{FrameReader, MAX_CHECKS},
    value::{Rows, key_values},
};

/// A database that is published.
pub(super) struct World {
    pub(super) dir: TempDir,
    pub(super) bo: Connection,
    pub(super) published: Published,
    attached: Attached,
}

fn plan(filter: &Filter) -> Plan {
    let tracked = filter.tables().iter().map(|table| Tracked {
        // Always the same for the same name, as capture demands.
        number: table.name().bytes().fold(7, |number, byte| (number * 31 + u32::from(byte)) % 99_991),
        name: table.name().to_owned(),
        columns: table.columns().to_vec(),
        key: match table.key().kind {
            KeyKind::Rowid => Key::Rowid,
            _ => Key::Columns(table.key().columns.iter().map(|column| column.name.clone()).collect()),
        },
    });
    Plan::new(tracked.collect())
}

impl World {
    pub(super) fn new(sql: &str, spec: &str) -> World {
        let dir = tempfile::tempdir().unwrap();
        let bo = Connection::open(dir.path().join("bo.db")).unwrap();
        bo.execute_batch(&format!("PRAGMA synchronous = OFF; {sql}; PRAGMA journal_mode = WAL")).unwrap();
        let (published, attached) = load(&bo, spec, None);
        World { dir, bo, published, attached }
    }

    /// The filter and the schema may have changed.
    fn reload(&mut self, spec: &str) {
        (self.published, self.attached) = load(&self.bo, spec, Some(&self.attached));
    }

    pub(super) fn head(&self) -> Position {
        capture::head(&self.bo).unwrap()
    }

    pub(super) fn known(&self) -> BTreeMap<String, [u8; 16]> {
        self.published.heads().map(|head| (head.name.clone(), head.fingerprint)).collect()
    }

    pub(super) fn request<'a>(&self, known: &'a BTreeMap<String, [u8; 16]>, have: &'a HashSet<[u8; 16]>) -> Request<'a> {
        Request { publication: "shop", base: None, known, have, repairs: &[], sweep: None, schema: None, made_at: 1_700_000_000_000 }
    }

    fn build(&self, request: &Request<'_>) -> (Vec<u8>, Built) {
        let mut stream = Vec::new();
        let built = build(&self.bo, &self.published, request, &Job::default(), &mut |bytes| {
            stream.extend_from_slice(bytes);
            Ok(())
        });
        let built = built.unwrap();
        assert_eq!(built.bytes, stream.len() as u64);
        assert_eq!(built.to, self.head());
        (stream, built)
    }

    fn snapshot(&self) -> Vec<u8> {
        self.build(&self.request(&BTreeMap::new(), &HashSet::new())).0
    }

    /// Brings `fo` up to date, and compares everything.
    fn follow(&self, fo: &mut Fo) -> Built {
        let (known, have) = (fo.known(), HashSet::new());
        let (stream, built) = self.build(&Request { base: fo.position, ..self.request(&known, &have) });
        assert_eq!(fo.apply(&stream), Vec::<u32>::new());
        fo.assert_equals(self);
        built
    }
}

fn load(bo: &Connection, spec: &str, before: Option<&Attached>) -> (Published, Attached) {
    let spec: FilterSpec = serde_saphyr::from_str(spec).unwrap();
    let filter = Filter::load(bo, &spec).unwrap_or_else(|error| panic!("{error}"));
    let plan = plan(&filter);
    let attached = attach(bo, &plan, before.map(|before| &before.witness)).unwrap();
    (Published::new(&filter, &plan).unwrap(), attached)
}

/// The frames of a stream, fed in pieces of `piece` bytes.
fn frames(stream: &[u8], piece: usize) -> Vec<Frame> {
    let mut reader = FrameReader::new().unwrap();
    let mut found = Vec::new();
    for mut input in stream.chunks(piece) {
        while let Some(frame) = reader.feed(&mut input).unwrap() {
            found.push(frame);
        }
    }
    reader.finish().unwrap();
    found
}

/// A replica as simple as can be: the meaning of the frames, to compare with.
struct Fo {
    file: Connection,
    heads: BTreeMap<String, TableHead>,
    position: Option<Position>,
}

fn all(connection: &Connection, sql: &str) -> Vec<Vec<Owned>> {
    let mut statement = connection.prepare(sql).unwrap();
    let width = statement.column_count();
    let rows = statement.query_map([], |row| (0..width).map(|i| row.get(i)).collect()).unwrap();
    rows.collect::<rusqlite::Result<_>>().unwrap()
}

impl Fo {
    fn new() -> Fo {
        Fo { file: Connection::open_in_memory().unwrap(), heads: BTreeMap::new(), position: None }
    }

    fn of(world: &World) -> Fo {
        let mut fo = Fo::new();
        world.follow(&mut fo);
        fo
    }

    fn known(&self) -> BTreeMap<String, [u8; 16]> {
        self.heads.values().map(|head| (head.name.clone(), head.fingerprint)).collect()
    }

    fn insert(&self, head: &TableHead, bytes: &Bytes, count: u32) {
        let columns: Vec<String> = head.columns.iter().map(|name| capture::quote(name)).collect();
        let marks = vec!["?"; columns.len()].join(", ");
        let mut statement = self
            .file
            .prepare(&format!("INSERT OR REPLACE INTO {} ({}) VALUES ({marks})", capture::quote(&head.name), columns.join(", ")))
            .unwrap();
        let (mut rows, mut row) = (Rows::new(bytes, head.columns.len(), count), Vec::new());
        while rows.next_into(&mut row).unwrap() {
            statement.execute(params_from_iter(&row)).unwrap();
        }
    }

    fn digests(&self) -> HashMap<[u8; 32], (Bytes, u32)> {
        let mut found = HashMap::new();
        for head in self.heads.values() {
            walk::<ReadError>(&self.file, &Ordered::replica(head), (None, None), &AtomicBool::new(false), |chunk| {
                found.insert(chunk.digest(), (Bytes::copy_from_slice(chunk.bytes()), chunk.rows));
                Ok(ControlFlow::Continue(()))
            })
            .unwrap();
        }
        found
    }

    /// The ids of the checks that found a difference.
    fn apply(&mut self, stream: &[u8]) -> Vec<u32> {
        let before = self.digests();
        let mut tables: Vec<TableHead> = Vec::new();
        let mut mismatches = Vec::new();
        let mut rows_of_chunk = false;
        for frame in frames(stream, 1 + stream.len() % 977) {
            let head = |table: u16| tables[usize::from(table)].clone();
            match frame {
                Frame::Header(header) => {
                    assert!(header.base.is_none() || header.base == self.position, "a delta of another position");
                    self.position = Some(header.to);
                    tables = header.tables;
                    let unknown = |name: &String| header.complete && !tables.iter().any(|head| head.name == *name);
                    for name in self.heads.keys().filter(|name| unknown(name)) {
                        self.file.execute_batch(&format!("DROP TABLE {}", capture::quote(name))).unwrap();
                    }
                    self.heads.retain(|name, _| !unknown(name));
                    for head in &mut tables {
                        if head.ddl.is_empty() {
                            head.ddl = self.heads[&head.name].ddl.clone();
                            assert_eq!(*head, self.heads[&head.name]);
                            continue;
                        }
                        if self.heads.insert(head.name.clone(), head.clone()).is_some() {
                            self.file.execute_batch(&format!("DROP TABLE {}", capture::quote(&head.name))).unwrap();
                        }
                        self.file.execute_batch(&head.ddl.join(";")).unwrap();
                    }
                }
                Frame::Whole { table } => {
                    self.file.execute_batch(&format!("DELETE FROM {}", capture::quote(&head(table).name))).unwrap();
                    rows_of_chunk = false;
                }
                Frame::Rows { table, rows, count } => {
                    self.insert(&head(table), &rows, count);
                    rows_of_chunk = true;
                }
                Frame::Deletes { table, keys, count } => {
                    let head = head(table);
                    let terms: Vec<String> = head.key_terms().iter().map(|term| format!("{term} = ?")).collect();
                    let sql = format!("DELETE FROM {} WHERE {}", capture::quote(&head.name), terms.join(" AND "));
                    let (mut keys, mut key) = (Rows::new(&keys, head.key.len(), count), Vec::new());
                    while keys.next_into(&mut key).unwrap() {
                        self.file.execute(&sql, params_from_iter(&key)).unwrap();
                    }
                }
                Frame::Chunk { table, digest, .. } => {
                    if !std::mem::take(&mut rows_of_chunk) {
                        let (rows, count) = &before[&digest];
                        self.insert(&head(table), rows, *count);
                    }
                }
                Frame::Range { table, after, through } => {
                    let head = head(table);
                    let list = head.key_terms().join(", ");
                    let (mut terms, mut values) = (Vec::new(), Vec::new());
                    for (operator, key) in [(">", &after), ("<=", &through)] {
                        let Some(key) = key else { continue };
                        terms.push(format!("({list}) {operator} ({})", vec!["?"; head.key.len()].join(", ")));
                        values.extend(key_values(key, head.key.len()).unwrap());
                    }
                    let clause = if terms.is_empty() { String::new() } else { format!(" WHERE {}", terms.join(" AND ")) };
                    let sql = format!("DELETE FROM {}{clause}", capture::quote(&head.name));
                    self.file.execute(&sql, params_from_iter(&values)).unwrap();
                }
                Frame::Check { id, table, after, through, rows, digest } => {
                    let ordered = Ordered::replica(&head(table));
                    let is = digest_range(&self.file, &ordered, after.as_deref(), through.as_deref(), &AtomicBool::new(false)).unwrap();
                    if is != (RangeDigest { rows, digest }) {
                        mismatches.push(id);
                    }
                }
                Frame::End { .. } => {}
            }
        }
        mismatches
    }

    /// Byte for byte what is published, in the tables that are published.
    fn assert_equals(&self, world: &World) {
        assert_eq!(self.known(), world.known());
        for PublishedTable { head, ordered, .. } in &world.published.tables {
            let replica = Ordered::replica(head);
            assert_eq!(all(&self.file, replica.sql(false, false)), all(&world.bo, ordered.sql(false, false)), "table {}", head.name);
        }
    }
}

const SHOP: &str = "
    CREATE TABLE item(id INTEGER PRIMARY KEY, sku TEXT UNIQUE, price REAL, public INT, cost INT, note);
    CREATE INDEX item_price ON item(price);
    CREATE TABLE place(country TEXT COLLATE NOCASE, zip, name TEXT, PRIMARY KEY (country, zip)) WITHOUT ROWID;
    CREATE TABLE event(what TEXT, at INT);
    CREATE TABLE member(email TEXT COLLATE NOCASE, club INT, public INT, PRIMARY KEY (email, club));
    CREATE TABLE secret(word TEXT);
    WITH RECURSIVE i(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM i WHERE n < 3000)
        INSERT INTO item SELECT n, 'sku' || n, n / 3.0, n % 4 > 0, n, CASE n % 5 WHEN 0 THEN NULL WHEN 1 THEN x'00ff' WHEN 2 THEN n ELSE 'a note' END FROM i;
    WITH RECURSIVE i(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM i WHERE n < 2000)
        INSERT INTO place SELECT char(65 + n % 26) || char(97 + n % 7), CASE WHEN n % 2 THEN n ELSE 'z' || n END, 'place ' || n FROM i;
    INSERT INTO member SELECT 'm' || (id % 700) || '@example.org', id / 700, id % 3 FROM item;
    INSERT INTO event SELECT 'happened', id FROM item WHERE id < 1500;";
const SHOP_SPEC: &str = "{full-tables: [event, place], filtered-tables: {member: public = 1}, partial-tables: {item: {columns: [sku, price, note], where: public = 1}}}";

fn shop() -> World {
    World::new(SHOP, SHOP_SPEC)
}

#[test]
fn a_snapshot_is_what_is_published_and_nothing_else() {
    let world = shop();
    world.bo.execute_batch("INSERT INTO secret VALUES ('S3CRET'); UPDATE item SET note = 'S3CRET' WHERE public = 0; INSERT INTO item VALUES (9999, 'S3CRET', 0, NULL, 1, 2)").unwrap();
    let mut fo = Fo::new();
    let built = world.follow(&mut fo);
    assert_eq!(built.rows, 2250 + 2000 + 1499 + 1000);
    assert_eq!(built.spared, 0);
    for frame in frames(&world.snapshot(), 1 << 20) {
        let mut bytes = Vec::new();
        frame.encode(&mut bytes);
        assert!(!bytes.windows(6).any(|window| window == b"S3CRET"));
    }
}

#[test]
fn a_delta_is_what_became_of_the_rows_that_changed() {
    let world = shop();
    let mut fo = Fo::of(&world);
    for (change, rows) in [
        ("", 0),
        ("INSERT INTO item(id, sku, public) VALUES (5000, 'new', 1)", 1),
        ("UPDATE item SET price = 1 WHERE id = 5000; UPDATE item SET price = 2 WHERE id = 5000", 1),
        // In and out of the filter.
        ("UPDATE item SET public = NULL WHERE id = 5000; UPDATE item SET public = 1 WHERE id = 4", 2),
        // To another key, and to another form of the same key.
        ("UPDATE item SET id = 6000 WHERE id = 1; UPDATE place SET country = lower(country) WHERE zip = 'z2'", 4),
        // One removes another on the side.
        ("INSERT OR REPLACE INTO item(id, sku, public) VALUES (6001, 'sku2', 1)", 2),
        ("DELETE FROM event WHERE at > 1000; INSERT INTO event VALUES ('other', NULL)", 499),
        ("DELETE FROM item; DELETE FROM place", 3001 + 2000),
        ("INSERT INTO secret VALUES ('x')", 0),
    ] {
        world.bo.execute_batch(change).unwrap();
        assert_eq!(world.follow(&mut fo).rows, rows, "{change}");
    }
}

#[test]
fn the_key_of_a_row_that_is_not_published_goes_to_nobody() {
    let world = shop();
    let mut fo = Fo::of(&world);
    for change in [
        // Never published, before the first row, behind the last, in between, and many at once.
        "INSERT INTO member VALUES ('S3CRET', 1, 0), ('a S3CRET', 1, NULL), ('m200S3CRET', 1, 2), ('zS3CRET', 1, 2)",
        "UPDATE member SET club = 2 WHERE email LIKE '%s3cret%'; DELETE FROM member WHERE email LIKE 'a%'",
        "INSERT INTO member SELECT 'm' || id || 'S3CRET' || id, 5, 0 FROM item",
        // Withdrawn: what the FO had of it goes.
        "UPDATE member SET public = 0 WHERE email LIKE 'm1%'",
        "DELETE FROM member WHERE public = 1 AND club < 3; DELETE FROM member WHERE email LIKE '%S3CRET%'",
        "DELETE FROM member",
    ] {
        world.bo.execute_batch(change).unwrap();
        let (known, have) = (fo.known(), HashSet::new());
        let (stream, built) = world.build(&Request { base: fo.position, ..world.request(&known, &have) });
        assert!(built.rows < 1_001, "{change}: {}", built.rows);
        for frame in frames(&stream, 1 << 20) {
            let mut bytes = Vec::new();
            frame.encode(&mut bytes);
            assert!(!bytes.to_ascii_uppercase().windows(6).any(|window| window == b"S3CRET"), "{change}: {frame:?}");
        }
        fo.apply(&stream);
        fo.assert_equals(&world);
    }
}

#[test]
fn a_delta_of_many_pages_is_one_state() {
    let world = shop();
    let mut fo = Fo::of(&world);
    let many =
        "WITH RECURSIVE i(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM i WHERE n < 13000) INSERT INTO event SELECT 'again ' || n, n FROM i";
    world.bo.execute_batch(&format!("{many}; UPDATE event SET at = at + 1; DELETE FROM event WHERE at % 2")).unwrap();
    // What changed in several pages is sent in each, as it is now.
    let built = world.follow(&mut fo);
    assert!((14_499..3 * 14_499).contains(&built.rows), "{}", built.rows);
}

#[test]
fn what_is_committed_while_a_stream_is_made_is_in_the_next_one() {
    let world = shop();
    let mut fo = Fo::of(&world);
    world.bo.execute_batch("UPDATE item SET price = 9").unwrap();
    let other = Connection::open(world.dir.path().join("bo.db")).unwrap();
    let (known, have) = (fo.known(), HashSet::new());
    let request = Request { base: fo.position, ..world.request(&known, &have) };
    let (before, mut stream, mut meddled) = (world.head(), Vec::new(), false);
    let built = build(&world.bo, &world.published, &request, &Job::default(), &mut |bytes| {
        stream.extend_from_slice(bytes);
        if !std::mem::replace(&mut meddled, true) {
            other.execute_batch("UPDATE item SET price = 10; DELETE FROM place").unwrap();
        }
        Ok(())
    });
    assert_eq!(built.unwrap().to, before);
    fo.apply(&stream);
    assert_eq!(all(&fo.file, "SELECT DISTINCT price FROM item"), [[Owned::Real(9.0)]]);
    assert_eq!(all(&fo.file, "SELECT count(*) FROM place"), [[Owned::Integer(2000)]]);
    world.follow(&mut fo);
}

#[test]
fn one_changed_row_is_far_less_than_a_kibibyte() {
    let tables: Vec<String> =
        (0..50).map(|n| format!("CREATE TABLE table_{n}(id INTEGER PRIMARY KEY, name TEXT, note TEXT, at INT)")).collect();
    let names: Vec<String> = (0..50).map(|n| format!("table_{n}")).collect();
    let world = World::new(&tables.join(";"), &format!("full-tables: [{}]", names.join(", ")));
    let mut fo = Fo::of(&world);
    world.bo.execute_batch("INSERT INTO table_7 VALUES (1, 'a name of some length', 'and a note', 12345)").unwrap();
    let built = world.follow(&mut fo);
    assert!(built.bytes < 400, "{}", built.bytes);
}

#[test]
fn tables_that_are_new_changed_or_gone_follow() {
    let mut world = shop();
    let mut fo = Fo::of(&world);
    for (change, spec, rows) in [
        ("", "{full-tables: [event], partial-tables: {item: {columns: [sku, price, note], where: public = 1}}}", 0),
        ("UPDATE event SET at = 1 WHERE at = 2", "{full-tables: [event], filtered-tables: {item: public = 1}}", 2250 + 1),
        ("", "{full-tables: [event, place], filtered-tables: {item: public = 0}}", 750 + 2000),
        (
            "ALTER TABLE place ADD COLUMN note DEFAULT 'new'",
            "{full-tables: [event, place], filtered-tables: {item: public = 0}}",
            2000 + 1499,
        ),
        ("CREATE INDEX late ON event(at)", "{full-tables: [event, place], filtered-tables: {item: public = 0}}", 1499),
    ] {
        world.bo.execute_batch(change).unwrap();
        world.reload(spec);
        assert_eq!(world.follow(&mut fo).rows, rows, "{change} {spec}");
    }
    assert_eq!(all(&fo.file, "SELECT count(*) FROM sqlite_master WHERE name = 'late'"), [[Owned::Integer(1)]]);
}

#[test]
fn a_table_that_may_have_changed_unseen_is_sent_whole() {
    let mut world = shop();
    let mut fo = Fo::of(&world);
    let sql = "SELECT name FROM sqlite_master WHERE type = 'trigger' AND tbl_name = 'place' AND name LIKE '%_update'";
    let trigger: String = world.bo.query_row(sql, [], |row| row.get(0)).unwrap();
    let unseen = "UPDATE place SET name = 'unseen' WHERE zip = 'z2'; UPDATE event SET at = 7 WHERE at = 6";
    world.bo.execute_batch(&format!("DROP TRIGGER {trigger}; {unseen}")).unwrap();
    world.reload(SHOP_SPEC);
    // The events have no key, so that nobody knows which are the same after a change of the schema.
    assert_eq!(world.follow(&mut fo).rows, 2000 + 1499);
}

#[test]
fn chunks_that_the_subscriber_has_are_not_sent_again() {
    let world = shop();
    let fo = Fo::of(&world);
    world.bo.execute_batch("UPDATE item SET price = 7 WHERE id = 2001; DELETE FROM place WHERE zip = 'z100'").unwrap();
    let have: HashSet<[u8; 16]> = fo.digests().keys().filter_map(|digest| digest.first_chunk().copied()).collect();
    let known = BTreeMap::new();
    let (stream, built) = world.build(&world.request(&known, &have));
    assert_eq!(built.rows + built.spared, 2250 + 1999 + 1499 + 1000);
    assert!(built.spared > 2_000 && built.rows > 0, "{built:?}");
    let mut resumed = Fo { file: fo.file, heads: fo.heads, position: None };
    resumed.apply(&stream);
    resumed.assert_equals(&world);
}

#[test]
fn a_sweep_finds_each_difference_and_a_repair_costs_no_more_than_its_chunk() {
    let world = shop();
    let mut fo = Fo::of(&world);
    // What no trigger saw, on either side: a value, a row too few, one too many in the middle, behind the last and before the first.
    fo.file
        .execute_batch("UPDATE item SET price = -1 WHERE id = 777; DELETE FROM place WHERE zip = 'z100'; INSERT INTO event(rowid, what) VALUES (-5, 'ghost'), (99999, 'ghost')")
        .unwrap();
    world.bo.execute_batch("UPDATE item SET price = 5 WHERE id = 3").unwrap();
    let have = HashSet::new();
    let (mut from, mut repairs, mut sweeps, mut rows) = (None, Vec::new(), 0, 0);
    loop {
        let known = fo.known();
        let sweep = Some(Sweep { from, chunks: 3 });
        let (stream, built) = world.build(&Request { base: fo.position, sweep, ..world.request(&known, &have) });
        let swept = built.swept.unwrap();
        repairs.extend(fo.apply(&stream).into_iter().map(|id| swept.ranges[id as usize].clone()));
        assert!(swept.ranges.len() <= 3);
        sweeps += 1;
        rows += swept.rows;
        from = swept.next;
        if from.is_none() {
            break;
        }
    }
    assert_eq!(rows, 2250 + 2000 + 1499 + 1000);
    assert!((3..=4).contains(&repairs.len()), "{repairs:?}");
    assert!(sweeps > 3, "{sweeps}");
    let known = fo.known();
    let (stream, built) = world.build(&Request { base: fo.position, repairs: &repairs, ..world.request(&known, &have) });
    assert!(built.rows < 5_000, "{}", built.rows);
    assert!(fo.apply(&stream).is_empty());
    fo.assert_equals(&world);
}

#[test]
fn a_sweep_goes_on_where_its_table_was() {
    let mut world = shop();
    let fo = Fo::of(&world);
    let from = Some(Cursor { table: "item".into(), after: None });
    world.reload("{full-tables: [event, place]}");
    let (known, have) = (world.known(), HashSet::new());
    let sweep = Some(Sweep { from, chunks: 999 });
    let swept = world.build(&Request { base: fo.position, sweep, ..world.request(&known, &have) }).1.swept.unwrap();
    assert_eq!(swept.rows, 2000, "place comes behind item");
    assert_eq!(swept.next, None);
    // A cursor, or a repair, of a table that has another key by now.
    let after = Some(KeyBytes::from_static(&[1, 2]));
    let sweep = Some(Sweep { from: Some(Cursor { table: "place".into(), after: after.clone() }), chunks: 999 });
    let repairs = ["place", "nowhere"].map(|table| KeyRange { table: table.into(), after: after.clone(), through: None });
    let built = world.build(&Request { base: fo.position, sweep, repairs: &repairs, ..world.request(&known, &have) }).1;
    assert_eq!((built.rows, built.swept.unwrap().rows), (0, 2000));
}

#[test]
fn a_position_that_nothing_leads_on_from_is_told() {
    let world = shop();
    let (known, have) = (world.known(), HashSet::new());
    let head = world.head();
    for (base, gap) in [
        (Position { epoch: [0; 16], ..head }, Gap::Epoch),
        (Position { seq: head.seq + 1, ..head }, Gap::Diverged),
        (Position { stamp: head.stamp ^ 1, ..head }, Gap::Diverged),
        (Position { seq: head.seq - 9, ..head }, Gap::Pruned),
    ] {
        let request = Request { base: Some(base), ..world.request(&known, &have) };
        let error = build(&world.bo, &world.published, &request, &Job::default(), &mut |_| Ok(())).unwrap_err();
        assert!(matches!(error, BuildError::Gap(found) if found == gap), "{error:?}");
    }
}

#[test]
fn a_schema_that_the_filter_was_not_loaded_for_is_refused() {
    let world = shop();
    let (known, have) = (world.known(), HashSet::new());
    let schema = || world.bo.query_row("PRAGMA schema_version", [], |row| row.get(0)).ok();
    let request = Request { schema: schema(), ..world.request(&known, &have) };
    let run = || build(&world.bo, &world.published, &request, &Job::default(), &mut |_| Ok(()));
    run().unwrap();
    world.bo.execute_batch("CREATE TABLE other(x)").unwrap();
    assert!(matches!(run(), Err(BuildError::SchemaChanged)));
}

#[test]
fn what_is_captured_otherwise_than_published_is_refused() {
    let world = shop();
    let spec: FilterSpec = serde_saphyr::from_str(SHOP_SPEC).unwrap();
    let filter = Filter::load(&world.bo, &spec).unwrap();
    let mut plan = plan(&filter);
    plan.tables[3].key = Key::Columns(vec!["zip".into(), "country".into()]);
    assert!(matches!(Published::new(&filter, &plan), Err(BuildError::Plan { table, .. }) if table == "place"));
    plan.tables.pop();
    assert!(matches!(Published::new(&filter, &plan), Err(BuildError::Plan { table, .. }) if table == "place"));
}

#[test]
fn a_row_that_is_too_large_is_named() {
    let world = shop();
    let mut fo = Fo::of(&world);
    let named = |base: Option<Position>, key: &str| {
        let (known, have) = (world.known(), HashSet::new());
        let request = Request { base, ..world.request(&known, &have) };
        match build(&world.bo, &world.published, &request, &Job::default(), &mut |_| Ok(())) {
            Err(BuildError::RowTooLarge { table, key: found }) => assert_eq!((table.as_str(), found.as_str()), ("item", key)),
            other => panic!("{other:?}"),
        }
    };
    for (size, key) in [(16_777_210, "42"), (17_000_000, "42")] {
        world.bo.execute("UPDATE item SET note = zeroblob(?1) WHERE id = 42", [size]).unwrap();
        assert!(world.bo.limit(Limit::SQLITE_LIMIT_LENGTH).unwrap() > 100_000_000, "put back");
        named(fo.position, key);
        named(None, key);
    }
    // Beyond what SQLite itself would have in memory.
    world.bo.execute_batch("UPDATE item SET note = zeroblob(90000000) WHERE id = 42").unwrap();
    named(fo.position, "42");
    named(None, "after 41");
    // Unpublished, it is in nobody's way.
    world.bo.execute_batch("UPDATE item SET public = 0 WHERE id = 42").unwrap();
    world.follow(&mut fo);
    world.bo.execute_batch("UPDATE item SET public = 1, note = zeroblob(16777000) WHERE id = 42").unwrap();
    world.follow(&mut fo);
}

#[test]
fn a_stream_ends_when_it_is_cancelled_or_stopped() {
    let world = shop();
    let (known, have) = (BTreeMap::new(), HashSet::new());
    let request = world.request(&known, &have);
    let early = Job::default();
    early.cancel();
    let job = Job::default();
    assert!(matches!(build(&world.bo, &world.published, &request, &early, &mut |_| Ok(())), Err(BuildError::Cancelled)));
    let cancelling = &mut |_: &[u8]| {
        job.cancel();
        Ok(())
    };
    assert!(matches!(build(&world.bo, &world.published, &request, &job, cancelling), Err(BuildError::Cancelled)));
    assert!(matches!(build(&world.bo, &world.published, &request, &Job::default(), &mut |_| Err(Stop)), Err(BuildError::Stopped)));
    assert!(world.bo.is_autocommit());
    world.follow(&mut Fo::new());
}

#[test]
fn a_statement_that_finds_nothing_for_long_is_cancelled_too() {
    let rows = "WITH RECURSIVE i(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM i WHERE n < 3000) INSERT INTO t SELECT n, printf('%.*c', 30000, 'a') FROM i";
    // Nothing matches, and that takes long to find out.
    let slow = "note LIKE '%a%a%a%a%a%a%a%ab'";
    let world =
        World::new(&format!("CREATE TABLE t(id INTEGER PRIMARY KEY, note TEXT); {rows}"), &format!("filtered-tables: {{t: \"{slow}\"}}"));
    let (job, known, have) = (Job::default(), BTreeMap::new(), HashSet::new());
    std::thread::scope(|scope| {
        let (job, request) = (&job, world.request(&known, &have));
        let (began, begun) = std::sync::mpsc::channel();
        scope.spawn(move || {
            begun.recv().unwrap();
            job.cancel();
        });
        let (bo, published) = (&world.bo, &world.published);
        let result = build(bo, published, &request, job, &mut |_| {
            let _ = began.send(());
            Ok(())
        });
        assert!(matches!(result, Err(BuildError::Cancelled)), "{result:?}");
    });
}

#[test]
fn memory_does_not_grow_with_the_table() {
    if std::env::var_os("NEXTEST").is_none() {
        return; // Other tests' memory in the same process would be counted.
    }
    let resident = || {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap()
    };
    let world = World::new(
        "CREATE TABLE t(id INTEGER PRIMARY KEY, note);
         WITH RECURSIVE i(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM i WHERE n < 120000) INSERT INTO t SELECT n, randomblob(500) FROM i",
        "full-tables: [t]",
    );
    let base = world.head();
    world.bo.execute_batch("UPDATE t SET id = id + 1000000").unwrap();
    let (known, have) = (world.known(), HashSet::new());
    for base in [None, Some(base)] {
        let (before, mut most, mut bytes) = (resident(), 0, 0);
        let request = Request { base, ..world.request(&known, &have) };
        build(&world.bo, &world.published, &request, &Job::default(), &mut |piece| {
            bytes += piece.len();
            most = most.max(resident());
            Ok(())
        })
        .unwrap();
        assert!(bytes > 60_000_000);
        assert!(most.saturating_sub(before) < 20_000, "{} KiB more for {bytes} bytes", most - before);
    }
}

/// What two programs may do to the shop.
fn random_change(random: &mut impl FnMut(u64) -> u64) -> String {
    let (id, other) = (random(3_200), random(3_200));
    match random(15) {
        0 => format!("INSERT OR REPLACE INTO item VALUES ({id}, 'sku{other}', {other} / 7.0, {id} % 2, 1, x'{other:08x}')"),
        1 => format!("INSERT OR IGNORE INTO item(sku, public) VALUES ('sku{other}', 1)"),
        2 => format!("UPDATE OR REPLACE item SET sku = 'sku{other}' WHERE id = {id}"),
        3 => format!("UPDATE OR REPLACE item SET id = {other} WHERE id = {id}"),
        4 => format!("UPDATE item SET public = NOT public WHERE id BETWEEN {id} AND {id} + 20"),
        5 => format!("DELETE FROM item WHERE id BETWEEN {id} AND {id} + {}", random(15)),
        6 => format!("INSERT OR REPLACE INTO place VALUES (char(97 + {id} % 26) || 'b', {other}, 'other')"),
        7 => format!("UPDATE OR REPLACE place SET country = upper(country) WHERE zip = 'z{id}'"),
        8 => format!("UPDATE OR IGNORE place SET zip = {other} WHERE zip = {id}"),
        9 => format!("DELETE FROM place WHERE zip = 'z{id}'"),
        10 => format!("INSERT INTO event VALUES ('random', {other}); UPDATE event SET what = NULL WHERE at = {id}"),
        11 => format!("UPDATE member SET public = (public + 1) % 3 WHERE email BETWEEN 'm{id}' AND 'm{id}z'"),
        12 => format!("INSERT OR REPLACE INTO member VALUES ('M{id}@example.ORG', {other} % 5, {other} % 2)"),
        13 => format!(
            "UPDATE OR REPLACE member SET email = 'm{other}@example.org' WHERE email LIKE 'm{id}%'; DELETE FROM member WHERE club = 3 AND email > 'm{other}' AND email < 'm{other}5'"
        ),
        _ => format!("DELETE FROM event WHERE rowid = {id}; UPDATE OR REPLACE event SET rowid = {other} WHERE rowid = {id} + 1"),
    }
}

#[test]
fn after_any_history_the_replica_is_what_is_published() {
    let full = std::env::var_os("HOROS_TEST_FULL").is_some_and(|value| value == "1");
    let seed = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().subsec_nanos();
    println!("seed {seed}");
    let mut state = u64::from(seed);
    let mut random = |below: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % below
    };
    let world = shop();
    let mut fo = Fo::of(&world);
    for _ in 0..if full { 500 } else { 25 } {
        let changes: Vec<String> = (0..random(40)).map(|_| random_change(&mut random)).collect();
        world.bo.execute_batch(&format!("BEGIN; {}; COMMIT", changes.join(";"))).unwrap();
        world.follow(&mut fo);
    }
    // And the digests say so.
    let (known, have) = (fo.known(), HashSet::new());
    let sweep = Some(Sweep { from: None, chunks: MAX_CHECKS });
    let (stream, built) = world.build(&Request { base: fo.position, sweep, ..world.request(&known, &have) });
    assert!(fo.apply(&stream).is_empty());
    assert_eq!(built.swept.unwrap().next, None);
}
