//! Streams that nobody honest sends: refused with a reason, and nothing is changed by them.

use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};

use super::world::{Bo, Fo, encoded};
use crate::{
    apply::{ApplyError, Progress},
    capture::Position,
    frames::{Encoding, Frame, FrameWriter, Header, TableHead},
    value::put_value,
};

/// Everything that a replica holds, its own tables included.
fn everything(fo: &Fo) -> Vec<Vec<Vec<u8>>> {
    let reader = fo.reader();
    let names: Vec<String> = {
        let mut statement = reader.prepare("SELECT name FROM sqlite_schema WHERE type = 'table' ORDER BY name").unwrap();
        statement.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect()
    };
    let schema = encoded(&reader, "SELECT type, name, tbl_name, sql FROM sqlite_schema ORDER BY name");
    let tables = names.iter().map(|name| encoded(&reader, &format!("SELECT * FROM \"{name}\" ORDER BY 1, 2")));
    std::iter::once(schema).chain(tables).collect()
}

struct Forge {
    writer: FrameWriter,
    stream: Vec<u8>,
}

impl Forge {
    fn new(header: Header) -> Forge {
        let mut forge = Forge { writer: FrameWriter::new().unwrap(), stream: Vec::new() };
        forge.put(Frame::Header(header));
        forge
    }

    fn put(&mut self, frame: Frame) -> &mut Forge {
        self.stream.extend_from_slice(self.writer.frame(&frame).unwrap());
        self
    }

    fn end(&mut self) -> Vec<u8> {
        self.stream.extend_from_slice(self.writer.end().unwrap());
        std::mem::take(&mut self.stream)
    }
}

fn table(name: &str, ddl: &[&str]) -> TableHead {
    TableHead {
        name: name.into(),
        columns: vec!["a".into(), "b".into()],
        key: vec![0],
        collations: vec![None],
        ddl: ddl.iter().map(|sql| (*sql).to_owned()).collect(),
        fingerprint: [7; 16],
    }
}

fn rows(values: &[(i64, &str)]) -> bytes::Bytes {
    let mut bytes = Vec::new();
    for (a, b) in values {
        put_value(&mut bytes, rusqlite::types::ValueRef::Integer(*a));
        put_value(&mut bytes, rusqlite::types::ValueRef::Text(b.as_bytes()));
    }
    bytes.into()
}

/// A delta that follows on what the replica has.
fn header(fo: &Fo, tables: Vec<TableHead>) -> Header {
    let at = fo.state().unwrap().position.unwrap();
    let base = Position { epoch: at.epoch.to_bytes(), seq: at.seq, stamp: at.stamp };
    Header {
        publication: "shop".into(),
        base: Some(base),
        to: Position { seq: base.seq + 1, ..base },
        fingerprint: [1; 32],
        made_at: 1,
        encoding: Encoding::Utf8,
        complete: false,
        tables,
    }
}

#[test]
fn every_truncation_and_every_flipped_bit_is_refused_and_changes_nothing() {
    let bo = Bo::filled(60);
    let mut fo = Fo::of(&bo);
    bo.run("UPDATE item SET price = 3 WHERE id < 5; DELETE FROM note; INSERT INTO stock VALUES ('a', 'b', 3)");
    let before = everything(&fo);
    let delta = bo.delta(&fo);
    let snapshot = bo.snapshot();
    for (stream, places) in [(&delta, 100), (&snapshot, 25)] {
        let step = 1 + stream.len() / places;
        for at in (0..stream.len()).step_by(step) {
            let mut cut = stream.clone();
            cut.truncate(at);
            assert!(matches!(fo.take(cut).unwrap_err(), ApplyError::Stream(_)), "cut at {at}");
            let mut flipped = stream.clone();
            flipped[at] ^= 1 << (at % 8);
            let error = fo.take(flipped).unwrap_err();
            assert!(!matches!(error, ApplyError::Sqlite { .. } | ApplyError::File { .. }), "flipped at {at}: {error}");
        }
        let mut longer = stream.clone();
        longer.push(0);
        assert!(matches!(fo.take(longer).unwrap_err(), ApplyError::Stream(_)));
    }
    assert!(everything(&fo) == before);
    fo.take(delta).unwrap();
    fo.assert_equals(&bo);
}

#[test]
fn noise_in_the_place_of_a_stream_is_refused() {
    let bo = Bo::filled(20);
    let mut fo = Fo::of(&bo);
    let before = everything(&fo);
    let seed: u64 = rand::random();
    println!("seed {seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    let snapshot = bo.snapshot();
    for round in 0..90 {
        let mut stream: Vec<u8> = match round % 3 {
            0 => (0..rng.random_range(0..400)).map(|_| rng.random()).collect(),
            1 => [&b"HSY2"[..], &(0..rng.random_range(0..400)).map(|_| rng.random()).collect::<Vec<u8>>()].concat(),
            _ => snapshot.clone(),
        };
        if round % 3 == 2 {
            // Pieces of it, in another order.
            let (a, b) = (rng.random_range(0..stream.len()), rng.random_range(0..stream.len()));
            let (a, b) = (a.min(b), a.max(b));
            stream[a..b].rotate_left((b - a) / 2);
            if stream == snapshot {
                continue;
            }
        }
        fo.take(stream).unwrap_err();
    }
    assert!(everything(&fo) == before);
}

#[test]
fn a_definition_that_does_anything_else_is_refused() {
    let bo = Bo::filled(20);
    let mut fo = Fo::of(&bo);
    let before = everything(&fo);
    let outside = fo.dir.path().join("evil.db");
    let good = "CREATE TABLE t (a INTEGER PRIMARY KEY, b)";
    let attach = format!("ATTACH '{}' AS evil", outside.display());
    let copy = "CREATE TABLE t AS SELECT id AS a, name AS b FROM item";
    let evil: &[&[&str]] = &[
        &[&attach],
        &[copy],
        &["CREATE TABLE t (a INTEGER PRIMARY KEY, b); DROP TABLE item"],
        &["DROP TABLE item"],
        &["DELETE FROM item"],
        &["UPDATE item SET price = 0"],
        &["PRAGMA journal_mode = OFF"],
        &["PRAGMA writable_schema = ON"],
        &["CREATE VIEW t AS SELECT id AS a, name AS b FROM item"],
        &["CREATE TEMP TABLE t (a INTEGER PRIMARY KEY, b)"],
        &["CREATE TABLE temp.t (a INTEGER PRIMARY KEY, b)"],
        &["CREATE VIRTUAL TABLE t USING fts5(a, b)"],
        &["CREATE TABLE other (a INTEGER PRIMARY KEY, b)"],
        &["CREATE TABLE t (a INTEGER PRIMARY KEY AUTOINCREMENT, b)"],
        &["CREATE TABLE t (a INTEGER PRIMARY KEY, b GENERATED ALWAYS AS (a + 1))"],
        &["CREATE TABLE t (a INTEGER PRIMARY KEY, b DEFAULT (load_extension('x')))"],
        &["CREATE TABLE t (a INTEGER PRIMARY KEY, b CHECK (randomblob(9) IS NOT NULL))"],
        &["CREATE TABLE t (a INTEGER PRIMARY KEY, b UNIQUE)"],
        &["CREATE TABLE t (a, b)"],
        &["CREATE TABLE t (a INTEGER PRIMARY KEY)"],
        &["BEGIN"],
        &["COMMIT"],
        &["VACUUM"],
        &["SAVEPOINT x"],
        &["SELECT 1"],
        &["nonsense"],
        &[""],
        &[],
        &[good, "CREATE INDEX i ON item (price)"],
        &[good, "CREATE UNIQUE INDEX i ON t (b)"],
        &[good, "CREATE TRIGGER x AFTER INSERT ON t BEGIN DELETE FROM item; END"],
        &[good, "CREATE TRIGGER x AFTER INSERT ON item BEGIN DELETE FROM t; END"],
        &[good, "CREATE VIEW v AS SELECT * FROM item"],
        &[good, "CREATE INDEX i ON t (b); DROP TABLE item"],
        &[good, "DROP INDEX item_by_name"],
        &[good, "CREATE INDEX item_by_name ON t (b)"],
        &[good, "REINDEX"],
        &[good, "INSERT INTO item (id) VALUES (5000)"],
        &[good, "CREATE TABLE u (a)"],
    ];
    for ddl in evil {
        let head = table("t", ddl);
        let delta = Forge::new(header(&fo, vec![head.clone()])).put(Frame::Whole { table: 0 }).end();
        let error = fo.take(delta).map(|done| panic!("{ddl:?}: {done:?}")).unwrap_err();
        assert!(matches!(error, ApplyError::Nonsense(_)), "{ddl:?}: {error:?}");
        if ddl.get(1).is_some_and(|sql| sql.contains("item_by_name ON t")) {
            // In a file of its own that is its own index.
            continue;
        }
        let snapshot = Header { base: None, complete: true, ..header(&fo, vec![head]) };
        let error = fo.take(Forge::new(snapshot).put(Frame::Whole { table: 0 }).end()).map(|done| panic!("{ddl:?}: {done:?}")).unwrap_err();
        assert!(matches!(error, ApplyError::Nonsense(_)), "{ddl:?}: {error:?}");
    }
    assert!(everything(&fo) == before);
    assert!(!outside.exists());
    assert!(fo.files().iter().all(|name| !name.ends_with("incoming")), "{:?}", fo.files());
    // The same way with nothing wrong.
    let fine = Forge::new(header(&fo, vec![table("t", &[good, "CREATE INDEX i ON t (b)"])])).put(Frame::Whole { table: 0 }).end();
    fo.take(fine).unwrap();
}

#[test]
fn a_table_that_cannot_be_is_refused() {
    let bo = Bo::filled(20);
    let mut fo = Fo::of(&bo);
    let before = everything(&fo);
    let good = table("t", &["CREATE TABLE t (a INTEGER PRIMARY KEY, b)"]);
    let named = |name: &str| TableHead {
        name: name.into(),
        ddl: vec![format!("CREATE TABLE \"{name}\" (a INTEGER PRIMARY KEY, b)")],
        ..good.clone()
    };
    let wrong = [
        vec![named("_horos_replica")],
        vec![named("_HOROS_x")],
        vec![named("sqlite_sequence")],
        vec![named("")],
        vec![TableHead { columns: vec![], ..good.clone() }],
        vec![TableHead { columns: vec!["a".into(), "A".into()], ..good.clone() }],
        vec![TableHead { collations: vec![Some("x; DROP TABLE item".into())], ..good.clone() }],
        vec![TableHead { key: vec![1], ..good.clone() }],
        vec![TableHead { key: vec![0, 1], collations: vec![None, None], ..good.clone() }],
        vec![TableHead { columns: vec!["a".into(), "zz".into()], ..good.clone() }],
        vec![good.clone(), TableHead { name: "T".into(), ..good.clone() }],
        vec![TableHead { columns: (0..3_000).map(|i| format!("c{i}")).collect(), ..good.clone() }],
    ];
    for tables in wrong {
        let label = format!("{:?}", tables.iter().map(|it| (&it.name, &it.key, &it.collations)).collect::<Vec<_>>());
        let count = tables.len() as u16;
        let mut forge = Forge::new(header(&fo, tables));
        for table in 0..count {
            forge.put(Frame::Whole { table });
        }
        let error = fo.take(forge.end()).map(|_| panic!("{label}")).unwrap_err();
        assert!(matches!(error, ApplyError::Nonsense(_) | ApplyError::Stream(_)), "{label}: {error:?}");
    }
    assert!(everything(&fo) == before);
}

#[test]
fn rows_that_do_not_fit_are_refused_and_changes_to_what_is_not_here_too() {
    let bo = Bo::filled(20);
    let mut fo = Fo::of(&bo);
    let before = everything(&fo);
    let head = table("t", &["CREATE TABLE t (a INTEGER PRIMARY KEY, b)"]);
    let digest = |rows: &[u8]| <[u8; 32]>::from(<sha2::Sha256 as sha2::Digest>::digest(rows));
    let refused = |fo: &mut Fo, forge: &mut Forge, what: &str| {
        let error = fo.take(forge.end()).map(|_| panic!("{what}")).unwrap_err();
        assert!(matches!(error, ApplyError::Nonsense(_) | ApplyError::Stream(_)), "{what}: {error:?}");
    };
    let twice = rows(&[(1, "x"), (1, "y")]);
    let chunk = Frame::Chunk { table: 0, rows: 2, digest: digest(&twice) };
    let mut forge = Forge::new(header(&fo, vec![head.clone()]));
    forge.put(Frame::Whole { table: 0 }).put(Frame::Rows { table: 0, rows: twice, count: 2 }).put(chunk);
    refused(&mut fo, &mut forge, "a key twice");
    let mut text_key = Vec::new();
    put_value(&mut text_key, rusqlite::types::ValueRef::Text(b"no number"));
    put_value(&mut text_key, rusqlite::types::ValueRef::Null);
    let chunk = Frame::Chunk { table: 0, rows: 1, digest: digest(&text_key) };
    let mut forge = Forge::new(header(&fo, vec![head.clone()]));
    forge.put(Frame::Whole { table: 0 }).put(Frame::Rows { table: 0, rows: text_key.into(), count: 1 }).put(chunk);
    refused(&mut fo, &mut forge, "a text for a number");
    let mut forge = Forge::new(header(&fo, vec![head.clone()]));
    forge.put(Frame::Rows { table: 0, rows: rows(&[(1, "x")]), count: 1 });
    refused(&mut fo, &mut forge, "rows of a table that is not here");
    let mut forge = Forge::new(header(&fo, vec![head.clone()]));
    refused(&mut fo, &mut forge, "a table announced and not sent");
    let mut forge = Forge::new(header(&fo, vec![head]));
    forge.put(Frame::Whole { table: 0 }).put(Frame::Chunk { table: 0, rows: 9, digest: [9; 32] });
    refused(&mut fo, &mut forge, "a chunk that was never offered");
    let mut other = header(&fo, vec![]);
    other.publication = "other".into();
    refused(&mut fo, &mut Forge::new(other), "another publication");
    let mut back = header(&fo, vec![]);
    back.to.seq -= 5;
    refused(&mut fo, &mut Forge::new(back), "changes that go back");
    let mut epoch = header(&fo, vec![]);
    epoch.to.epoch = [9; 16];
    refused(&mut fo, &mut Forge::new(epoch), "changes into another log");
    assert!(everything(&fo) == before);
}

#[test]
fn a_body_that_is_given_up_changes_nothing() {
    let bo = Bo::filled(2_000);
    let mut fo = Fo::of(&bo);
    bo.run("DELETE FROM item WHERE id % 2");
    let before = everything(&fo);
    let delta: bytes::Bytes = bo.delta(&fo).into();
    for part in [1, 10, 100, 999] {
        let at = delta.len() * part / 1_000;
        let cut = super::world::CutOff { bytes: delta.clone(), at };
        let error = fo.applier.apply(Box::new(cut), &Progress::default()).unwrap_err();
        assert!(matches!(error, ApplyError::Cut(_)), "{error}");
    }
    assert!(everything(&fo) == before);
    fo.take(delta.to_vec()).unwrap();
    fo.assert_equals(&bo);
}
