//! Edits are written down whole, signed, bounded, and taken back to the byte.

use horos_wire::protocol::control::{Content, Edit, History, KEPT_EDITS, PAGE, Rollback, RollbackTo, SetStrategy};

use super::*;

pub(super) fn page(tables: &Connection, service: Option<&str>) -> Vec<Edit> {
    edits::history(tables, &History { service: service.map(Into::into), before: None, limit: u32::MAX }).unwrap().edits
}

fn rollback(tables: &Connection, service: &str, to: RollbackTo) -> Result<horos_wire::protocol::control::Edited, Fault> {
    let ask = Rollback { service: service.into(), to, expected: None, why: Some("undo".into()) };
    routes::rollback(tables, &ask, BEN, &strategies())
}

/// The row of `service` as it is stored, but for its time.
fn bytes(tables: &Connection, service: &str) -> Option<[Option<Vec<u8>>; 3]> {
    let sql = "SELECT CAST(strategy AS BLOB), CAST(endpoint AS BLOB), CAST(config AS BLOB) FROM routes WHERE service_name = ?1";
    let mut rows = tables.prepare(sql).unwrap();
    let mut rows = rows.query([service]).unwrap();
    rows.next().unwrap().map(|row| [row.get(0).unwrap(), row.get(1).unwrap(), row.get(2).unwrap()])
}

#[test]
fn who_edited_what_and_why_is_written_down_with_the_route_before_and_after() {
    let tables = tables();
    let strategies = strategies();
    set(&tables, &route("mail"), ANA).unwrap();
    let strategy = SetStrategy {
        service: "mail".into(),
        strategy: Strategy::QUIC,
        endpoint: Some("mail@bo".into()),
        expected: None,
        why: Some("nearer".into()),
    };
    routes::set_strategy(&tables, &strategy, BEN, &strategies).unwrap();
    delete(&tables, "mail", ANA).unwrap();
    let edits = page(&tables, Some("mail"));
    let said: Vec<_> = edits.iter().map(|edit| (edit.edit, &*edit.what, &*edit.who, &*edit.why)).collect();
    assert_eq!(said, [(3, "delete", ANA, ""), (2, "set-strategy", BEN, "nearer"), (1, "set", ANA, "because")]);
    let content = |strategy: &str, endpoint: &str| {
        Some(Content {
            strategy: strategy.into(),
            endpoint: Some(endpoint.into()),
            config: Some(r#"{"timeout_ms": 5}"#.into()),
            cut: false,
        })
    };
    let (first, second) = (content("http", "https://example.org/x"), content("quic", "mail@bo"));
    let states: Vec<_> = edits.iter().map(|edit| (edit.before.clone(), edit.after.clone())).collect();
    assert_eq!(states, [(second.clone(), None), (first.clone(), second), (None, first)]);
    assert!(edits.iter().all(|edit| edit.breaker.is_none() && edit.at > 1_700_000_000));
}

#[test]
fn an_edit_that_changes_nothing_is_one_all_the_same() {
    let tables = tables();
    set(&tables, &route("mail"), ANA).unwrap();
    assert_eq!(set(&tables, &route("mail"), BEN).unwrap().edit, 2);
    let edits = page(&tables, None);
    assert_eq!((&*edits[0].who, &edits[0].before), (BEN, &edits[0].after));
    assert!(edits[0].before.is_some());
    assert_eq!(rollback(&tables, "mail", RollbackTo::Before(1)).unwrap().route, None);
    assert_eq!(rollback(&tables, "mail", RollbackTo::Before(1)).unwrap().edit, 4);
    assert_eq!(page(&tables, None)[0].after, None);
}

#[test]
fn every_edit_is_taken_back_to_the_byte_whichever_it_was() {
    let tables = tables();
    let rows: [(&str, Option<&str>, Option<&str>); 6] = [
        ("http", Some("https://example.org/é"), Some("{ \"timeout_ms\":5,\n\t\"weight\": 1.0e0 }")),
        ("noop", None, None),
        ("local", Some("mail"), Some("")),
        ("quic", Some(""), Some("{}")),
        ("quic", Some("mail@bo-2"), Some(" {\"reply\": \"\\u00e9\"} ")),
        ("http", Some("http://127.0.0.1:1/"), Some("{\"content_type\": \"a/b\"}")),
    ];
    let rows = &rows.map(|(strategy, endpoint, config)| {
        (
            strategy,
            endpoint,
            if config == Some("{ \"timeout_ms\":5,\n\t\"weight\": 1.0e0 }") { Some("{ \"timeout_ms\":5 }\n") } else { config },
        )
    });
    let mut states = vec![None];
    for (n, (strategy, endpoint, config)) in rows.iter().enumerate() {
        // By turns as an update and as a shell that replaces the row; the tables write down both.
        let sql = if n % 2 == 0 {
            "INSERT OR REPLACE INTO routes (service_name, strategy, endpoint, config) VALUES ('mail', ?1, ?2, ?3)"
        } else {
            "UPDATE routes SET strategy = ?1, endpoint = ?2, config = ?3 WHERE service_name = 'mail'"
        };
        assert_eq!(tables.execute(sql, (strategy, endpoint, config)).unwrap(), 1);
        states.push(bytes(&tables, "mail"));
    }
    delete(&tables, "mail", ANA).unwrap();
    states.push(None);
    let edits = i64::try_from(rows.len()).unwrap() + 1;
    assert_eq!(page(&tables, None).len(), rows.len() + 1);
    for edit in 1..=edits {
        let place = usize::try_from(edit).unwrap();
        rollback(&tables, "mail", RollbackTo::Before(edit)).unwrap();
        assert_eq!(bytes(&tables, "mail"), states[place - 1], "before {edit}");
        rollback(&tables, "mail", RollbackTo::AsOf(edit)).unwrap();
        assert_eq!(bytes(&tables, "mail"), states[place], "as of {edit}");
        // The rollback itself is taken back.
        let undone = rollback(&tables, "mail", RollbackTo::Last).unwrap();
        assert_eq!(bytes(&tables, "mail"), states[place - 1], "before the last, {edit}");
        let last = &page(&tables, Some("mail"))[0];
        assert_eq!((last.edit, &*last.what, &*last.who, &*last.why), (undone.edit, "rollback", BEN, "undo"));
    }
}

#[test]
fn a_rollback_meets_what_it_expects_and_knows_its_edits() {
    let tables = tables();
    let first = set(&tables, &route("mail"), ANA).unwrap().route.unwrap();
    set(&tables, &route("news"), ANA).unwrap();
    let none = |edit| ControlError::NoSuchEdit { service: "mail".into(), edit };
    assert_eq!(refused(rollback(&tables, "mail", RollbackTo::Before(2))), none(2), "that is another route's");
    assert_eq!(refused(rollback(&tables, "mail", RollbackTo::Before(9))), none(9));
    assert_eq!(refused(rollback(&tables, "mail", RollbackTo::AsOf(9))), none(9));
    assert_eq!(refused(rollback(&tables, "mail", RollbackTo::AsOf(0))), none(0));
    assert_eq!(refused(rollback(&tables, "nothing", RollbackTo::Last)), ControlError::NoSuchEdit { service: "nothing".into(), edit: 0 });
    // As of an edit of another route's, when this one was not there yet, and when it was.
    rollback(&tables, "news", RollbackTo::AsOf(1)).unwrap();
    assert_eq!(all(&tables, View::Whole).len(), 1);
    rollback(&tables, "mail", RollbackTo::AsOf(2)).unwrap();
    let expecting = |expected| {
        let ask = Rollback { service: "mail".into(), to: RollbackTo::Before(1), expected: Some(expected), why: None };
        routes::rollback(&tables, &ask, ANA, &strategies())
    };
    assert!(matches!(refused(expecting(Expected::Absent)), ControlError::Conflict { .. }));
    let now = all(&tables, View::Whole)[0].version;
    assert_eq!(expecting(Expected::Version(now)).unwrap().route, None);
    assert_eq!(refused(expecting(Expected::Version(first.version))), ControlError::Conflict { service: "mail".into(), found: None });
    // What was wrong does not come back in place of what is right.
    tables.execute("INSERT INTO routes (service_name, strategy) VALUES ('mail', 'grpc')", []).unwrap();
    set(&tables, &route("mail"), ANA).unwrap();
    assert!(matches!(refused(rollback(&tables, "mail", RollbackTo::Last)), ControlError::NotImplemented { .. }));
    assert_eq!(&*all(&tables, View::Whole)[0].strategy, "http");
}

#[test]
fn the_newest_edits_are_kept_and_no_number_is_given_twice() {
    let tables = tables();
    set(&tables, &route("mail"), ANA).unwrap();
    set(&tables, &route("news"), ANA).unwrap();
    let kept = i64::from(KEPT_EDITS);
    tables.execute("UPDATE edits SET id = id + ?1 WHERE id = 2", [kept * 2]).unwrap();
    assert_eq!(set(&tables, &route("mail"), ANA).unwrap().edit, kept * 2 + 3);
    let count = || tables.query_row("SELECT count(*) FROM edits", [], |row| row.get::<_, i64>(0)).unwrap();
    assert_eq!(count(), 2);
    // A shell that writes all night.
    tables.execute_batch("PRAGMA synchronous = OFF; BEGIN").unwrap();
    for n in 0..kept + 10 {
        tables.execute("UPDATE routes SET endpoint = ?1 WHERE service_name = 'news'", [n]).unwrap();
    }
    tables.execute_batch("COMMIT").unwrap();
    assert_eq!(count(), kept);
    delete(&tables, "mail", ANA).unwrap();
    assert_eq!(set(&tables, &route("mail"), ANA).unwrap().edit, kept * 3 + 15);
    assert_eq!(count(), kept);
    // What was edited before the oldest is not known any more.
    assert!(matches!(refused(rollback(&tables, "mail", RollbackTo::AsOf(3))), ControlError::NoSuchEdit { .. }));
}

#[test]
fn history_is_told_in_pages_that_end() {
    let tables = tables();
    for n in 0..2 * PAGE + 5 {
        tables.execute("INSERT OR REPLACE INTO routes (service_name, strategy) VALUES (?1, 'noop')", [format!("r{}", n % 7)]).unwrap();
    }
    for (service, wanted) in [(None, 2 * PAGE + 5), (Some("r1"), (2 * PAGE + 5).div_ceil(7))] {
        let (mut before, mut seen) = (None, Vec::new());
        loop {
            let ask = History { service: service.map(Into::into), before, limit: 100 };
            let page = edits::history(&tables, &ask).unwrap();
            assert!(!page.edits.is_empty() && page.edits.len() <= 100);
            seen.extend(page.edits.iter().map(|edit| edit.edit));
            before = page.next;
            if before.is_none() {
                break;
            }
        }
        assert_eq!(seen.len(), wanted);
        assert!(seen.windows(2).all(|pair| pair[0] > pair[1]));
    }
    // Large ones: a page is full by its bytes.
    let large = "x".repeat(MAX_CONFIG);
    for n in 0..60 {
        tables.execute("UPDATE routes SET config = ?1, endpoint = ?2 WHERE service_name = 'r1'", (&large, n)).unwrap();
    }
    let page = edits::history(&tables, &History { service: None, before: None, limit: u32::MAX }).unwrap();
    assert!(page.edits.len() < 12 && page.next.is_some(), "{}", page.edits.len());
}
