use super::world::{Bo, Fo};

fn holds(path: &std::path::Path, needle: &[u8]) -> bool {
    std::fs::read(path).unwrap().windows(needle.len()).any(|window| window == needle)
}

/// The pages of a database without the unused middle of its b-tree pages, where SQLite leaves what it moved elsewhere.
fn without_gaps(mut file: Vec<u8>) -> Vec<u8> {
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

#[test]
fn what_was_deleted_is_in_no_row_free_page_or_wal() {
    let bo = Bo::filled(2_000);
    bo.run("INSERT INTO item (id, name) SELECT 100000 + id, 'PLANTED ' || id || hex(zeroblob(id % 600)) FROM item LIMIT 800");
    bo.run("INSERT INTO note VALUES ('PLANTED ' || hex(zeroblob(40000)), 'x')");
    let mut fo = Fo::of(&bo);
    assert!(holds(&fo.path(), b"PLANTED "), "planted where it is looked for");
    bo.run("DELETE FROM item WHERE id % 2 AND id >= 100000; UPDATE item SET listed = 0 WHERE id > 100400; DELETE FROM note WHERE body LIKE 'PLANTED%'");
    fo.follow(&bo);
    bo.run("UPDATE item SET name = 'gone' WHERE id >= 100000");
    fo.follow(&bo);
    fo.rest();
    for name in fo.files() {
        let bytes = std::fs::read(fo.dir.path().join(&name)).unwrap();
        let bytes = if name == "fo.db" { without_gaps(bytes) } else { bytes };
        assert!(!bytes.windows(7).any(|window| window == b"PLANTED"), "{name}");
    }
    // And across a swap, whichever pages the new one leaves unused.
    bo.run("INSERT INTO item (id, name) SELECT 200000 + id, 'WITHDRAWN ' || hex(zeroblob(300)) FROM item LIMIT 1000");
    fo.follow(&bo);
    bo.run("DELETE FROM item WHERE id > 5");
    fo.take(bo.snapshot()).unwrap();
    fo.rest();
    for name in fo.files() {
        assert!(!holds(&fo.dir.path().join(&name), b"WITHDRAWN"), "{name}");
    }
    fo.assert_equals(&bo);
}

#[test]
fn a_table_that_is_published_no_more_leaves_nothing_behind() {
    let mut bo = Bo::filled(10);
    bo.run("INSERT INTO note SELECT 'PLANTED ' || i || hex(zeroblob(200)), i FROM (WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 500) SELECT i FROM n)");
    let mut fo = Fo::of(&bo);
    bo.reload(&super::world::SPEC.replace(", note]", "]"));
    fo.follow(&bo);
    fo.rest();
    for name in fo.files() {
        assert!(!holds(&fo.dir.path().join(&name), b"PLANTED"), "{name}");
    }
}

#[test]
fn nothing_unpublished_reaches_the_replica() {
    let bo = Bo::filled(500);
    let mut fo = Fo::of(&bo);
    bo.run("UPDATE item SET secret = 'PRIVATE ' || id, listed = id % 3; INSERT INTO item VALUES (9999, 'HIDDEN', 1, 'PRIVATE', 0)");
    fo.follow(&bo);
    fo.take(bo.snapshot()).unwrap();
    for name in fo.files() {
        let path = fo.dir.path().join(&name);
        assert!(!holds(&path, b"PRIVATE") && !holds(&path, b"private") && !holds(&path, b"HIDDEN"), "{name}");
    }
}
