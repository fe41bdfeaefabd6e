//! Histories that nobody thought of, by two processes at once: after each stretch of them the replica is what is published.

use std::path::{Path, PathBuf};
use std::time::Duration;

use horos_store::rusqlite::Connection;

use super::world::{Dice, Published, Shell, World, database, healing, reader, replica, rows};
use crate::harness::{poll_state, scale, seed};

const SCHEMA: &str = "PRAGMA foreign_keys = ON;
    CREATE TABLE item(id INTEGER PRIMARY KEY, name TEXT UNIQUE, price REAL, listed INT NOT NULL DEFAULT 1, secret TEXT);
    CREATE TABLE shelf(shop TEXT COLLATE NOCASE, sku TEXT, amount, PRIMARY KEY (shop, sku)) WITHOUT ROWID;
    CREATE TABLE note(body, tag);
    CREATE TABLE owner(id INTEGER PRIMARY KEY, name TEXT);
    CREATE TABLE pet(id INTEGER PRIMARY KEY, owner INT REFERENCES owner(id) ON DELETE CASCADE ON UPDATE CASCADE, name TEXT UNIQUE);
    CREATE TABLE loose(k TEXT PRIMARY KEY, v);";
const FILTER: &str = r#"{
    "partial-tables": {"item": {"columns": ["name", "price", "listed"], "where": "listed = 1"}},
    "filtered-tables": {"shelf": "amount > 0 OR typeof(amount) = 'blob'"},
    "full-tables": ["note", "owner", "pet", "loose"]
}"#;
const PUBLISHED: [Published; 5] = [
    Published {
        here: "SELECT id, name, price, listed FROM item WHERE listed = 1 ORDER BY id",
        there: "SELECT id, name, price, listed FROM item ORDER BY id",
    },
    Published {
        here: "SELECT * FROM shelf WHERE amount > 0 OR typeof(amount) = 'blob' ORDER BY shop, sku",
        there: "SELECT * FROM shelf ORDER BY shop, sku",
    },
    Published { here: "SELECT rowid, body, tag FROM note ORDER BY rowid", there: "SELECT rowid, body, tag FROM note ORDER BY rowid" },
    Published { here: "SELECT * FROM owner ORDER BY id", there: "SELECT * FROM owner ORDER BY id" },
    Published { here: "SELECT * FROM pet ORDER BY id", there: "SELECT * FROM pet ORDER BY id" },
];
/// The table whose shape changes: its columns and its indexes follow.
const LOOSE: [&str; 3] = [
    "SELECT * FROM loose ORDER BY k",
    "SELECT name FROM pragma_table_info('loose') ORDER BY cid",
    "SELECT name FROM pragma_index_list('loose') WHERE origin = 'c' ORDER BY name",
];

/// A value, as SQL.
fn value(dice: &mut Dice) -> String {
    let n = dice.below(60);
    match dice.below(9) {
        0 => "NULL".to_owned(),
        1 => format!("-{n}"),
        2 => format!("{n}.5"),
        3 => format!("'t{n}'"),
        4 => format!("x'00{n:02x}ff'"),
        5 => "'ä\u{1F600}'".to_owned(),
        6 => format!("CAST(x'c3{n:02x}28' AS TEXT)"),
        7 => format!("zeroblob({})", n * 40),
        _ => n.to_string(),
    }
}

/// A statement that either process may do at any time; `at` names the schema: `main`, or what the file is attached as.
fn statement(dice: &mut Dice, at: &str) -> String {
    let (a, b) = (dice.below(300), 1 + dice.below(300));
    let (x, y) = (value(dice), value(dice));
    match dice.below(28) {
        0 | 1 => {
            format!("INSERT OR IGNORE INTO {at}.item(id, name, price, listed, secret) VALUES ({a}, 'n{b}', {b} / 3.0, {}, 's')", b % 2)
        }
        2 | 3 => format!("REPLACE INTO {at}.item(id, name, price) VALUES ({a}, 'n{b}', {a}), ({b}, 'n{a}', NULL)"),
        4 => format!(
            "INSERT INTO {at}.item(id, name, price) VALUES ({a}, 'n{b}', 1) ON CONFLICT(id) DO UPDATE SET price = price + 1, listed = 1 - listed"
        ),
        5 => format!("INSERT INTO {at}.item(id, name) VALUES ({a}, 'n{b}') ON CONFLICT(name) DO UPDATE SET id = {b}, listed = 1"),
        6 => format!("UPDATE OR REPLACE {at}.item SET id = id + {b} WHERE id % 17 = {}", a % 17),
        7 => format!("UPDATE OR IGNORE {at}.item SET name = 'n' || ({a} + id % 7) WHERE id % 9 = {}", a % 9),
        8 | 9 => format!("UPDATE {at}.item SET listed = 1 - listed WHERE id % 5 = {}", a % 5),
        10 => format!("DELETE FROM {at}.item WHERE id BETWEEN {a} AND {}", a + b % 20),
        11 | 12 => format!("REPLACE INTO {at}.shelf VALUES ('Shop {}', 's{}', {x}), ('shop {}', 's{}', {y})", a % 5, b % 30, b % 5, a % 30),
        13 => format!("UPDATE OR REPLACE {at}.shelf SET shop = upper(shop), sku = 's{}' WHERE sku = 's{}'", b % 30, a % 30),
        14 => format!("UPDATE {at}.shelf SET amount = -amount WHERE typeof(amount) <> 'blob' AND sku > 's{}'", a % 9),
        15 => format!("DELETE FROM {at}.shelf WHERE sku = 's{}'", a % 30),
        16 | 17 => format!("INSERT INTO {at}.note VALUES ({x}, {y}), ({y}, {a})"),
        18 => format!("UPDATE {at}.note SET body = {x}, rowid = rowid + 1000 WHERE rowid % 23 = {} AND rowid < 5000", a % 23),
        19 => format!("DELETE FROM {at}.note WHERE rowid % 7 = {}", a % 7),
        20 => format!("INSERT OR IGNORE INTO {at}.owner VALUES ({}, {x})", a % 40),
        21 => format!("INSERT OR REPLACE INTO {at}.pet VALUES ({a}, (SELECT id FROM {at}.owner WHERE id >= {}), 'p{}')", b % 40, b % 90),
        22 => format!("UPDATE OR IGNORE {at}.owner SET id = id + {} WHERE id = {}", 1 + b % 40, a % 40),
        23 => format!("DELETE FROM {at}.owner WHERE id = {}", a % 40),
        24 | 25 => format!("INSERT OR REPLACE INTO {at}.loose(k, v) VALUES ('k{}', {x})", a % 50),
        26 => format!("DELETE FROM {at}.loose WHERE k = 'k{}'", a % 50),
        _ => format!("DELETE FROM {at}.note WHERE rowid > (SELECT min(rowid) + 200 FROM {at}.note)"),
    }
}

/// What changes shapes, and what fires no trigger at all.
fn change(dice: &mut Dice) -> String {
    let column = format!("c{}", dice.below(4));
    match dice.below(12) {
        0 => format!("ALTER TABLE loose ADD COLUMN {column} DEFAULT 'd'"),
        1 => format!("ALTER TABLE loose DROP COLUMN {column}"),
        2 => format!("ALTER TABLE loose RENAME COLUMN {column} TO c{}", dice.below(4)),
        3 => format!("CREATE INDEX IF NOT EXISTS loose_{column} ON loose(v, k)"),
        4 => format!("DROP INDEX IF EXISTS loose_{column}"),
        // Of no FO's business.
        5 => "ALTER TABLE item ADD COLUMN extra TEXT DEFAULT 'x'".to_owned(),
        6 => "ALTER TABLE item DROP COLUMN extra".to_owned(),
        7 => "CREATE INDEX IF NOT EXISTS item_price ON item(price, secret)".to_owned(),
        8 => "DROP INDEX IF EXISTS item_price".to_owned(),
        9 => "BEGIN IMMEDIATE; CREATE TABLE shelf_new(shop TEXT COLLATE NOCASE, sku TEXT, amount, PRIMARY KEY (shop, sku)) WITHOUT ROWID; \
              INSERT INTO shelf_new SELECT * FROM shelf; DROP TABLE shelf; ALTER TABLE shelf_new RENAME TO shelf; COMMIT"
            .to_owned(),
        10 => "VACUUM".to_owned(),
        _ => "PRAGMA wal_checkpoint(TRUNCATE)".to_owned(),
    }
}

/// The test's own process, with one connection of its own and one that has the file attached to another.
struct Here {
    own: Connection,
    attached: Connection,
}

impl Here {
    fn open(file: &Path) -> Self {
        let connect = |connection: Connection| {
            connection.busy_timeout(Duration::from_secs(20)).unwrap();
            connection.execute_batch("PRAGMA foreign_keys = ON").unwrap();
            connection
        };
        let (own, attached) = (connect(Connection::open(file).unwrap()), connect(Connection::open_in_memory().unwrap()));
        attached.execute("ATTACH ?1 AS elsewhere", [file.to_str().unwrap()]).unwrap();
        Self { own, attached }
    }

    /// Does so many operations; what fails says why.
    fn work(&self, dice: &mut Dice, operations: u64) -> Vec<String> {
        let mut failures = Vec::new();
        for _ in 0..operations {
            let (connection, sql) = match dice.below(10) {
                0 => (&self.own, change(dice)),
                1 => (&self.attached, statement(dice, "elsewhere")),
                2 => {
                    let several: Vec<_> = (0..1 + dice.below(5)).map(|_| statement(dice, "main")).collect();
                    let end = if dice.below(4) == 0 { "ROLLBACK" } else { "COMMIT" };
                    (&self.own, format!("BEGIN IMMEDIATE; {}; {end}", several.join("; ")))
                }
                _ => (&self.own, statement(dice, "main")),
            };
            if let Err(error) = connection.execute_batch(&sql) {
                failures.push(format!("{error}: {sql}"));
            }
            if !connection.is_autocommit() {
                connection.execute_batch("ROLLBACK").unwrap();
            }
        }
        failures
    }
}

fn work(shell: &mut Shell, dice: &mut Dice, operations: u64) {
    for _ in 0..operations {
        let sql = match dice.below(12) {
            // A rebuild that fails half-way is for who can roll it back.
            0 => Some(change(dice)).filter(|sql| !sql.starts_with("BEGIN")).unwrap_or_else(|| "VACUUM".to_owned()),
            1 => format!("BEGIN IMMEDIATE; {}; {}; COMMIT", statement(dice, "main"), statement(dice, "main")),
            _ => statement(dice, "main"),
        };
        // A line each: the rest of a line in which something failed is not done, and the transaction would stay open.
        shell.run(&format!("{};", sql.replace("; ", ";\n")));
    }
}

/// As [`World::in_step`], of the table whose columns change.
async fn loose_in_step(world: &World) {
    let (here, there): (PathBuf, PathBuf) = (database(&world.bo), replica(&world.fo));
    let look = |file: &Path| -> Result<Vec<Vec<Vec<u8>>>, String> {
        let connection = reader(file).map_err(|error| error.to_string())?;
        LOOSE.iter().map(|sql| rows(&connection, sql).map_err(|error| error.to_string())).collect()
    };
    poll_state("the table whose shape changes is the same", healing(), async || {
        let (ours, theirs) = (look(&here)?, look(&there)?);
        let shown = |it: &[Vec<Vec<u8>>]| it.iter().flatten().map(|row| String::from_utf8_lossy(row).into_owned()).collect::<Vec<_>>();
        if ours == theirs { Ok(()) } else { Err(format!("here {:?}, there {:?}", shown(&ours), shown(&theirs))) }
    })
    .await;
}

#[tokio::test]
async fn whatever_two_processes_do_the_replica_is_what_is_published_byte_for_byte() {
    let seed = seed();
    let world = World::start(SCHEMA, FILTER, &PUBLISHED).await;
    let (mut ours, mut theirs) = (Dice(seed), Dice(!seed));
    let here = Here::open(&database(&world.bo));
    let mut shell = Shell::open(&database(&world.bo));
    let (mut operations, all) = (0, scale(300, 10_000));
    while operations < all {
        let stretch = 1 + ours.below(40);
        let failures = std::thread::scope(|scope| {
            let other = scope.spawn(|| work(&mut shell, &mut theirs, stretch / 2));
            let failures = here.work(&mut ours, stretch - stretch / 2);
            other.join().unwrap();
            failures
        });
        // A constraint of their own may refuse them; never anything of ours.
        for failure in failures {
            let error = failure.split_once(": ").map_or(&*failure, |(error, _)| error);
            assert!(!failure.contains("_horos") && !error.contains("locked"), "after {operations}: {failure}");
        }
        operations += stretch;
        world.in_step(&PUBLISHED, healing()).await;
        loose_in_step(&world).await;
    }
    let said = shell.end();
    let ours: Vec<_> = said.lines().filter(|line| line.contains("_horos") || line.contains("locked")).collect();
    assert!(ours.is_empty(), "{ours:?}");
    let status = world.publication().await;
    assert_eq!(status["condition"], serde_json::Value::Null, "{status}");
    eprintln!("{operations} operations; {}", status["subscribers"]);
    // A comparison of everything agrees.
    let report = world.bo.ask(&["sync", "verify", super::world::NAME]).await.expect_code(0).json();
    assert_eq!(report["nodes"][0]["mismatches"], 0, "{report}");
}
