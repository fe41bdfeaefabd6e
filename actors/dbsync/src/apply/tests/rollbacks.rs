use super::world::{Bo, Fo, all};
use crate::apply::{ApplyError, Standing, position};

fn names(fo: &Fo) -> Vec<String> {
    let reader = fo.reader();
    let mut statement = reader.prepare("SELECT name FROM item ORDER BY id").unwrap();
    statement.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect()
}

#[test]
fn a_roll_back_shows_what_was_before_the_last_snapshot_but_nothing_withdrawn_since() {
    let mut bo = Bo::new();
    bo.run("INSERT INTO item (id, name) VALUES (1, 'one'), (2, 'two'), (3, 'three'), (4, 'four')");
    let mut fo = Fo::of(&bo);
    assert!(matches!(fo.roll_back(), Err(ApplyError::Nothing(_))));
    let first = position(&bo.head());
    // The bad state: everything overwritten, one withdrawn by the snapshot, one by a delta after it.
    bo.run("UPDATE item SET name = 'oops'; DELETE FROM item WHERE id = 2; INSERT INTO item (id, name) VALUES (9, 'nine')");
    fo.take(bo.snapshot()).unwrap();
    bo.run("UPDATE item SET listed = 0 WHERE id = 3");
    fo.follow(&bo);
    assert_eq!(names(&fo), ["oops", "oops", "nine"]);

    assert_eq!(fo.roll_back().unwrap(), (first, 1), "the snapshot's own withdrawal was pruned, the delta's is counted");
    assert_eq!(names(&fo), ["one", "four"]);
    assert_eq!(fo.state().unwrap().current(), None);
    // Pinned, also over a restart.
    bo.run("DELETE FROM note");
    assert!(matches!(fo.take(bo.snapshot()), Err(ApplyError::Pinned)));
    let mut fo = fo.restart();
    assert!(matches!(fo.take(bo.snapshot()), Err(ApplyError::Pinned)));
    assert!(matches!(fo.roll_back(), Err(ApplyError::Pinned)));
    assert_eq!(names(&fo), ["one", "four"]);

    fo.resume().unwrap();
    assert!(matches!(fo.resume(), Err(ApplyError::Nothing(_))));
    assert_eq!(fo.state().unwrap().standing, Standing::Broken);
    assert_eq!(fo.state().unwrap().current(), None, "only a snapshot can follow");
    fo.take(bo.snapshot()).unwrap();
    fo.assert_equals(&bo);
    // A column withdrawn comes back neither.
    bo.reload(&super::world::SPEC.replace("[name, price]", "[price]"));
    fo.take(bo.snapshot()).unwrap();
    let _ = fo.roll_back().unwrap();
    assert_eq!(all(&fo.reader(), "SELECT name FROM item WHERE name IS NOT NULL"), Vec::<Vec<rusqlite::types::Value>>::new());
}

#[test]
fn one_previous_snapshot_is_kept_and_not_more_and_nothing_withdrawn_is_in_it() {
    let bo = Bo::new();
    bo.run("INSERT INTO item (id, name) VALUES (1, 'PLANTED-NAME-ONE'), (2, 'stays')");
    let mut fo = Fo::of(&bo);
    bo.run("DELETE FROM item WHERE id = 1");
    fo.take(bo.snapshot()).unwrap();
    bo.run("UPDATE item SET name = 'changed'");
    fo.take(bo.snapshot()).unwrap();
    let files = fo.files();
    assert_eq!(files.iter().filter(|name| name.contains("previous")).count(), 1, "{files:?}");
    let bytes = std::fs::read(fo.dir.path().join("fo.db.previous")).unwrap();
    assert!(!bytes.windows(16).any(|window| window == b"PLANTED-NAME-ONE"));
    fo.roll_back().unwrap();
    assert_eq!(names(&fo), ["stays"]);
}

#[test]
fn a_row_withdrawn_by_a_delta_leaves_the_previous_snapshot_s_file_within_the_hour() {
    let bo = Bo::new();
    bo.run("INSERT INTO item (id, name) VALUES (1, 'PLANTED-NAME-ONE'), (2, 'stays')");
    let mut fo = Fo::of(&bo);
    fo.take(bo.snapshot()).unwrap();
    let holds = |fo: &Fo| {
        let bytes = std::fs::read(fo.dir.path().join("fo.db.previous")).unwrap();
        bytes.windows(16).any(|window| window == b"PLANTED-NAME-ONE")
    };
    assert!(holds(&fo));
    bo.run("UPDATE item SET name = 'changed' WHERE id = 2");
    fo.follow(&bo);
    assert!(fo.applier.withdrawn.is_none(), "nothing was withdrawn");
    bo.run("UPDATE item SET listed = 0 WHERE id = 1");
    fo.follow(&bo);
    fo.rest();
    assert!(holds(&fo), "not at once: it looks at every row");
    fo.applier.prune_after = std::time::Duration::ZERO;
    fo.rest();
    assert!(!holds(&fo));
    fo.roll_back().unwrap();
    assert_eq!(names(&fo), ["stays"]);
}
