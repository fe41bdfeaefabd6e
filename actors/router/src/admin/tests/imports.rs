//! Rows of other tables.

use horos_wire::protocol::control::{ImportRoutes, Imported, ImportedRow, PAGE};

use super::*;
use crate::admin::import::{check_import, import};

fn row(service: &str, strategy: &str, endpoint: Option<&str>) -> ImportedRow {
    ImportedRow { service: service.into(), strategy: strategy.into(), endpoint: endpoint.map(Into::into), config: None }
}

fn take(tables: &Connection, rows: Vec<ImportedRow>, replace: bool) -> Imported {
    import(tables, &ImportRoutes { rows, replace, why: Some("moving".into()) }, ANA, &strategies()).unwrap()
}

#[test]
fn an_import_adds_what_is_not_there_says_what_it_left_and_replaces_only_when_told() {
    let tables = tables();
    set(&tables, &route("mail"), ANA).unwrap();
    let rows = || vec![row("mail", "noop", None), row("news", "local", None), row("unnamed:2", "http", Some("x")), row("", "noop", None)];
    let done = take(&tables, rows(), false);
    assert_eq!(done.added, ["news".into(), "unnamed:2".into()]);
    assert_eq!(done.left.iter().map(|it| &*it.service).collect::<Vec<_>>(), ["mail", ""]);
    assert_eq!(done.wrong.iter().map(|it| &*it.service).collect::<Vec<_>>(), ["unnamed:2"]);
    assert_eq!(&*all(&tables, View::Whole)[0].strategy, "http");
    let again = take(&tables, rows(), true);
    assert_eq!((again.added.len(), again.replaced, again.same.len()), (0, vec!["mail".into()], 2));
    assert_eq!(&*all(&tables, View::Whole)[0].strategy, "noop");
    // What is wrong never takes the place of what is right.
    let wrong = take(&tables, vec![row("mail", "grpc", None)], true);
    assert_eq!((wrong.replaced.len(), wrong.left.len(), wrong.wrong.len()), (0, 1, 1));
    assert_eq!(&*all(&tables, View::Whole)[0].strategy, "noop");
    let edits = history::page(&tables, None);
    assert_eq!(edits.iter().map(|edit| &*edit.what).collect::<Vec<_>>(), ["import", "import", "import", "set"]);
    assert!(edits.iter().take(3).all(|edit| &*edit.why == "moving" && &*edit.who == ANA));
}

#[test]
fn an_import_is_bounded() {
    let many = ImportRoutes { rows: vec![row("a", "noop", None); PAGE + 1], replace: false, why: None };
    assert!(matches!(check_import(&many), Err(ControlError::Invalid(_))));
    let tables = tables();
    let fill = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?1)
                INSERT INTO routes (service_name, strategy) SELECT 'r' || i, 'noop' FROM n";
    tables.execute(fill, [MAX_ROUTES - 1]).unwrap();
    let long = ImportedRow { config: Some("x".repeat(MAX_CONFIG + 1).into()), ..row("long", "noop", None) };
    let done = take(&tables, vec![long, row("a", "noop", None), row("b", "noop", None)], false);
    assert_eq!((done.added, done.left.len()), (vec!["a".into()], 2));
}
