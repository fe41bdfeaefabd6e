//! What is not published never reaches an FO, in no byte: private values are planted wherever a database can hold one, and every file
//! that an FO ever has, everything that it says, and its memory are searched for them.

use std::collections::BTreeSet;
use std::fs;
use std::io::BufRead as _;
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::world::{Beside, Published, World, database, equal, healing, sqlite3};
use crate::harness::{Process, poll_state, scale};

/// In everything that is never published; the names of a published table's columns all are, so that programs find them. Letters that appear nowhere else, so that no abbreviation by zstd hides them in memory.
const PRIVATE: &str = "PRIVATE0VALUE";
/// In what is published at first and then withdrawn.
const WITHDRAWN: &str = "WITHDRAWN0VALUE";
/// In what is published: it must be found, or the search finds nothing.
const PUBLIC: &str = "PUBLIC0VALUE";

fn schema() -> String {
    format!(
        "/* {PRIVATE} of a comment */
         CREATE TABLE customer(
            id INTEGER PRIMARY KEY, -- {PRIVATE} beside a column
            name TEXT NOT NULL DEFAULT '{PRIVATE} by default',
            city TEXT DEFAULT '{PRIVATE} as default of what is published' CHECK (city <> '{PRIVATE} in a check'),
            password TEXT DEFAULT '{PRIVATE} unpublished', consent INT NOT NULL,
            both TEXT AS (name || '{PRIVATE} generated') STORED,
            UNIQUE (name, city));
         CREATE INDEX \"{PRIVATE}_index\" ON customer(city) WHERE password <> '{PRIVATE} in an index';
         CREATE INDEX expression ON customer(city || '{PRIVATE} in an expression');
         CREATE TABLE hidden(value TEXT);
         CREATE TABLE goods(sku TEXT PRIMARY KEY, note TEXT, listed INT) WITHOUT ROWID;
         CREATE VIEW \"{PRIVATE}_view\" AS SELECT '{PRIVATE} in a view' AS v;
         CREATE TRIGGER watch AFTER INSERT ON customer BEGIN INSERT INTO hidden VALUES ('{PRIVATE} by a trigger'); END;
         CREATE TABLE numbered(id INTEGER PRIMARY KEY AUTOINCREMENT, \"{PRIVATE}_column\" TEXT);
         {}",
        rows(1, 200)
    )
}

/// Rows of all kinds, from `from` on.
fn rows(from: u32, count: u32) -> String {
    let n = format!("WITH RECURSIVE n(i) AS (SELECT {from} UNION ALL SELECT i + 1 FROM n WHERE i < {})", from + count - 1);
    format!(
        "INSERT INTO customer(id, name, city, password, consent) {n}
            SELECT i, iif(i % 2, '{PUBLIC} ', '{PRIVATE} row ') || i, iif(i % 2, 'city ', '{PRIVATE} row ') || i, '{PRIVATE} ' || i, i % 2 FROM n;
         INSERT INTO hidden {n} SELECT '{PRIVATE} hidden ' || i || hex(zeroblob(i % 700)) FROM n;
         INSERT INTO numbered(\"{PRIVATE}_column\") {n} SELECT '{PRIVATE} ' || i FROM n;
         INSERT INTO goods {n} SELECT iif(i % 3 = 0, '{PRIVATE} key ', iif(i % 3 = 1, '{WITHDRAWN} ', 'sku ')) || i,
            iif(i % 3 = 0, '{PRIVATE} ', iif(i % 3 = 1, '{WITHDRAWN} ', '')) || hex(zeroblob(i % 90)), i % 3 > 0 FROM n;"
    )
}

const FILTER: &str = r#"{
    "partial-tables": {"customer": {"columns": ["name", "city"], "where": "consent = 1"}},
    "filtered-tables": {"goods": "listed = 1"}
}"#;
const PUBLISHED: [Published; 2] = [
    Published {
        here: "SELECT id, name, city FROM customer WHERE consent = 1 ORDER BY id",
        there: "SELECT id, name, city FROM customer ORDER BY id",
    },
    Published { here: "SELECT * FROM goods WHERE listed = 1 ORDER BY sku", there: "SELECT * FROM goods ORDER BY sku" },
];

fn holds(bytes: &[u8], needle: &str) -> bool {
    find(bytes, needle).is_some()
}

/// Where `needle` is. By what the standard library brings compiled, for memory is a hundred megabytes and an unoptimised loop slow.
fn find(bytes: &[u8], needle: &str) -> Option<usize> {
    let needle = needle.as_bytes();
    let mut rest = bytes;
    while !rest.is_empty() {
        rest.skip_until(needle[0]).expect("a slice can be read");
        let at = (bytes.len() - rest.len()).saturating_sub(1);
        if bytes[at..].starts_with(needle) {
            return Some(at);
        }
    }
    None
}

/// A file as it holds content: the pages of a database without the unused middle of its b-tree pages, where SQLite leaves what it moved to
/// another page until that one is written over or the next snapshot comes. Of what was never published nothing is there either.
fn content_of(path: &Path) -> Vec<u8> {
    let mut file = fs::read(path).unwrap_or_default();
    if !file.starts_with(b"SQLite format 3\0") {
        return file;
    }
    for (number, page) in file.chunks_mut(4096).enumerate() {
        let at = if number == 0 { 100 } else { 0 };
        let head = match page[at] {
            2 | 5 => 12,
            10 | 13 => 8,
            _ => continue,
        };
        let cells = usize::from(u16::from_be_bytes([page[at + 3], page[at + 4]]));
        let content = match u16::from_be_bytes([page[at + 5], page[at + 6]]) {
            0 => 65_536,
            content => usize::from(content),
        };
        page[at + head + 2 * cells..content.min(4096)].fill(0);
    }
    file
}

/// Every file below `data`, the node's identity aside, which nobody sent it.
fn files(data: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut directories = vec![data.to_owned()];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => directories.push(entry.path()),
                Ok(kind) if kind.is_file() => found.push(entry.path()),
                _ => {}
            }
        }
    }
    found
}

/// Looks into every file of the FO again and again, and links each that is new into `keep`, so that what it removes or puts another in
/// the place of is looked into at the end too. Gives what held a private value, and the names of the files.
fn watch(data: PathBuf, keep: PathBuf) -> Beside<(BTreeSet<String>, BTreeSet<String>)> {
    use std::os::unix::fs::MetadataExt as _;
    Beside::begin(move |stop| {
        let (mut caught, mut names, mut inodes) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
        loop {
            let last = stop.load(Ordering::Relaxed);
            for path in files(&data) {
                let Ok(metadata) = fs::metadata(&path) else { continue };
                let name = path.strip_prefix(&data).unwrap().display().to_string();
                if inodes.insert(metadata.ino()) {
                    let _ = fs::hard_link(&path, keep.join(metadata.ino().to_string()));
                }
                if fs::read(&path).is_ok_and(|bytes| holds(&bytes, PRIVATE)) {
                    caught.insert(name.clone());
                }
                names.insert(name);
            }
            if last {
                return (caught, names);
            }
            std::thread::park_timeout(Duration::from_millis(2));
        }
    })
}

/// Whether `needle` is anywhere in what a process has in memory; `None` where one may not look.
fn in_memory(process: &Process, needle: &str) -> Option<bool> {
    let pid = process.pid();
    let memory = fs::File::open(format!("/proc/{pid}/mem")).ok()?;
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).ok()?;
    let mut looked = 0_usize;
    for line in maps.lines() {
        let mut words = line.split_whitespace();
        let (Some(range), Some(mode)) = (words.next(), words.next()) else { continue };
        // What it can write: neither its program nor a file that is mapped to be read.
        if !mode.starts_with("rw") {
            continue;
        }
        let (from, to) = range.split_once('-')?;
        let (from, to) = (u64::from_str_radix(from, 16).ok()?, u64::from_str_radix(to, 16).ok()?);
        let mut page = vec![0; 1 << 20];
        let mut at = from;
        while at < to {
            let wanted = page.len().min((to - at) as usize);
            // Nothing there: never touched, or gone since.
            let Ok(read) = memory.read_at(&mut page[..wanted], at) else { break };
            if read == 0 {
                break;
            }
            looked += read;
            if let Some(at) = find(&page[..read], needle) {
                eprintln!("in its memory: {:?}", String::from_utf8_lossy(&page[at.saturating_sub(80)..(at + 120).min(read)]));
                return Some(true);
            }
            // What lies across two looks is seen by one of them.
            at += if read == page.len() { (read - needle.len()) as u64 } else { read as u64 };
        }
    }
    eprintln!("{} MiB of memory searched", looked >> 20);
    (looked > 0).then_some(false)
}

#[tokio::test]
async fn no_byte_that_an_fo_ever_has_holds_what_is_not_published() {
    let mut world = World::start(&schema(), FILTER, &PUBLISHED).await;
    let file = database(&world.bo);
    // From before its first byte: another FO, whose files are watched since it was set up.
    let mut fo = world.cluster.join("fo-2", "fo", [127, 0, 0, 3], &[world.bo.address()]).await;
    super::world::say(&fo, &super::world::subscription());
    let keep = world.cluster.path().join("kept");
    fs::create_dir(&keep).unwrap();
    let watching = watch(fo.data.clone(), keep.clone());
    let rounds = scale(3, 60);
    for round in 0..rounds {
        // Killed now and then, so that what is half done is looked into; from nothing now and then.
        if round > 0 && round % 2 == 0 {
            fo.kill();
            fo.start().await;
        } else if round == 0 {
            fo.start().await;
        }
        sqlite3(&file, &rows(1_000 * (round + 1), 300));
        equal(&world.bo, &fo, &PUBLISHED, healing()).await;
        // Rows that were never published come and go, and change in their private columns; some are published without what is private.
        sqlite3(
            &file,
            &format!(
                "UPDATE customer SET password = '{PRIVATE} changed ' || id;
                 UPDATE customer SET name = '{PUBLIC} made public ' || id, city = 'now public', consent = 1 WHERE id % 10 = 4;
                 UPDATE customer SET consent = 0 WHERE id % 10 = 7;
                 UPDATE customer SET name = '{PRIVATE} after it was withdrawn ' || id, city = '{PRIVATE}' || id WHERE id % 10 = 7;
                 DELETE FROM goods WHERE listed = 0 AND abs(random()) % 2;
                 ALTER TABLE customer ADD COLUMN extra_{round} TEXT DEFAULT '{PRIVATE} added'"
            ),
        );
        equal(&world.bo, &fo, &PUBLISHED, healing()).await;
    }
    // What the publisher keeps on the way out is its own business.
    for path in [world.bo.data.join("sync"), world.bo.data.join("sync/spool")] {
        if path.exists() {
            assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o077, 0, "{}", path.display());
        }
    }
    for path in files(&world.bo.data.join("sync")) {
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o077, 0, "{}", path.display());
    }

    // Withdrawn: by the filter, by deletion and by a change.
    let replica = super::world::replica(&fo);
    assert!(files(&fo.data).iter().any(|path| holds(&fs::read(path).unwrap(), WITHDRAWN)), "planted where it is looked for");
    sqlite3(
        &file,
        &format!(
            "UPDATE goods SET listed = 0 WHERE sku LIKE '{WITHDRAWN}%' AND length(note) % 3 = 0;
             DELETE FROM goods WHERE sku LIKE '{WITHDRAWN}%' AND length(note) % 3 = 1;
             UPDATE goods SET sku = 'renamed ' || substr(sku, {}), note = 'gone' WHERE sku LIKE '{WITHDRAWN}%'",
            WITHDRAWN.len() + 1
        ),
    );
    equal(&world.bo, &fo, &PUBLISHED, healing()).await;
    poll_state("what was withdrawn is in no file", Duration::from_secs(60), async || {
        let left: Vec<_> = files(&fo.data).into_iter().filter(|path| holds(&content_of(path), WITHDRAWN)).collect();
        if left.is_empty() { Ok(()) } else { Err(format!("{left:?}")) }
    })
    .await;

    let said = fo.process().lines().join("\n");
    assert!(!holds(said.as_bytes(), PRIVATE), "{said}");
    // The search finds what is there, and does not find what is not.
    assert!(holds(&fs::read(&replica).unwrap(), PUBLIC), "planted where it is looked for");
    match in_memory(fo.process(), PRIVATE) {
        Some(found) => assert!(!found, "a private value was in the FO's memory"),
        None => eprintln!("not promised here: the FO's memory may not be read"),
    }
    let in_first = in_memory(world.fo.process(), PRIVATE);
    assert_ne!(in_first, Some(true), "a private value was in the other FO's memory");
    fo.process().terminate();
    fo.process().wait(Duration::from_secs(20)).await;
    let (caught, names) = watching.end();
    assert!(caught.is_empty(), "{caught:?}");
    assert!(names.iter().any(|name| name.contains("incoming")) || names.len() > 5, "{names:?}");
    let mut kept = 0;
    for path in files(&keep) {
        kept += 1;
        assert!(!holds(&fs::read(&path).unwrap(), PRIVATE), "{}", path.display());
    }
    eprintln!("{rounds} rounds, {kept} files ever: {names:?}");
    assert!(holds(&fs::read(&file).unwrap(), PRIVATE), "planted where it is looked for");
}
