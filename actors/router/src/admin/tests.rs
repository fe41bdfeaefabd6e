//! Tables as the Go system, this release and other programs write them, and edits on them, without a node.

use horos_store::{migrations::Migrations, rusqlite::Connection};
use horos_wire::protocol::control::{
    ControlError, DeleteRoute, Expected, ListRoutes, MAX_CONFIG, MAX_ENDPOINT, MAX_ROUTES, MAX_SERVICE, MAX_WHY, Route, SetRoute, Strategy,
};

use super::*;
use crate::{
    config::Config,
    strategy::{KNOWN, Strategies},
};

mod breakers;
mod files;
mod history;
mod imports;
mod shell;

const ANA: &str = "operator@ana";
const BEN: &str = "operator@ben";

fn tables() -> Connection {
    let mut tables = Connection::open_in_memory().unwrap();
    Migrations::new(ROUTES_MIGRATIONS).apply(&mut tables).unwrap();
    tables
}

fn strategies() -> Strategies {
    Strategies::builtin()
}

fn route(service: &str) -> SetRoute {
    let endpoint = Some("https://example.org/x".into());
    let config = Some(r#"{"timeout_ms": 5}"#.into());
    SetRoute { service: service.into(), strategy: Strategy::HTTP, endpoint, config, expected: None, why: Some("because".into()) }
}

fn check(ask: &SetRoute) -> Result<(), ControlError> {
    check_why(ask.why.as_deref())?;
    routes::check_row(&routes::asked(ask), &strategies())
}

fn set(tables: &Connection, ask: &SetRoute, by: &str) -> Result<horos_wire::protocol::control::Edited, Fault> {
    routes::set(tables, ask, by, &strategies())
}

fn delete(tables: &Connection, service: &str, by: &str) -> Result<horos_wire::protocol::control::Edited, Fault> {
    routes::delete(tables, &DeleteRoute { service: service.into(), expected: None, why: None }, by)
}

fn all(tables: &Connection, view: View) -> Vec<Route> {
    routes::list(tables, &ListRoutes { after: None }, view, &strategies()).unwrap().routes
}

#[track_caller]
fn refused<T: std::fmt::Debug>(outcome: Result<T, Fault>) -> ControlError {
    match outcome {
        Err(Fault::Refused(error)) => error,
        other => panic!("it was not refused: {other:?}"),
    }
}

#[test]
fn an_edit_meets_what_it_expects_or_has_no_effect() {
    let tables = tables();
    let absent = SetRoute { expected: Some(Expected::Absent), ..route("mail") };
    let first = set(&tables, &absent, ANA).unwrap().route.unwrap();
    assert!(matches!(refused(set(&tables, &absent, ANA)), ControlError::Conflict { found: Some(_), .. }));
    let faster = SetRoute { strategy: Strategy::NOOP, endpoint: None, expected: Some(Expected::Version(first.version)), ..route("mail") };
    let second = set(&tables, &faster, BEN).unwrap().route.unwrap();
    assert_ne!(first.version, second.version);
    let late = ControlError::Conflict { service: "mail".into(), found: Some(second.version) };
    assert_eq!(refused(set(&tables, &faster, ANA)), late);
    let drop = |expected| routes::delete(&tables, &DeleteRoute { service: "mail".into(), expected, why: None }, ANA);
    assert_eq!(refused(drop(Some(first.version))), late);
    assert_eq!(all(&tables, View::Whole), std::slice::from_ref(&second));
    assert_eq!(drop(Some(second.version)).unwrap().edit, 3);
    assert_eq!(refused(drop(None)), ControlError::NoSuchRoute("mail".into()));
    assert_eq!(refused(drop(Some(second.version))), ControlError::Conflict { service: "mail".into(), found: None });
    // Somebody with a shell changes the version too.
    let version = set(&tables, &route("mail"), ANA).unwrap().route.unwrap().version;
    tables.execute("UPDATE routes SET endpoint = NULL", []).unwrap();
    assert_ne!(all(&tables, View::Whole)[0].version, version);
}

#[test]
fn an_fo_is_listed_what_it_needs_of_configurations_and_nothing_of_dbsync_and_pages_end() {
    let tables = tables();
    let secret = SetRoute { config: Some(r#"{"timeout_ms": 5, "authorization": {"file": "mail"}}"#.into()), ..route("mail") };
    for ask in [secret, route("dbsync:orders"), route("DBSync:shop"), route("dbsyncs")] {
        set(&tables, &ask, ANA).unwrap();
    }
    assert_eq!(all(&tables, View::Whole).len(), 4);
    assert!(all(&tables, View::Whole).iter().any(|route| route.config.as_deref().unwrap().contains("authorization")));
    let public: Vec<_> = all(&tables, View::Public).into_iter().map(|route| (route.service, route.config.unwrap())).collect();
    assert_eq!(public, [("dbsyncs".into(), r#"{"timeout_ms":5}"#.into()), ("mail".into(), r#"{"timeout_ms":5}"#.into())]);
    // Large ones: a page is full by its bytes.
    for n in 0..40 {
        let config = format!(r#"{{"content_type": "{}"}}"#, "x".repeat(MAX_CONFIG - 100));
        set(&tables, &SetRoute { config: Some(config.into()), ..route(&format!("large-{n:02}")) }, ANA).unwrap();
    }
    // One without even a name is listed too, and first.
    tables.execute("INSERT INTO routes (service_name, strategy) VALUES ('', 'noop')", []).unwrap();
    let (mut after, mut seen) = (None, Vec::new());
    loop {
        let page = routes::list(&tables, &ListRoutes { after }, View::Whole, &strategies()).unwrap();
        assert!(!page.routes.is_empty() && page.routes.len() <= 25);
        seen.extend(page.routes.into_iter().map(|route| route.service));
        after = page.next;
        if after.is_none() {
            break;
        }
    }
    assert_eq!(seen.len(), 45);
    assert!(seen.is_sorted());
}

#[test]
fn what_makes_no_sense_or_is_too_much_is_refused() {
    let fine = route("mail");
    assert_eq!(check(&fine), Ok(()));
    let with = |change: fn(&mut SetRoute)| {
        let mut changed = fine.clone();
        change(&mut changed);
        check(&changed)
    };
    for (n, bad) in [
        with(|it| it.service = "".into()),
        with(|it| it.service = "a b".into()),
        with(|it| it.service = "a\u{1b}".into()),
        with(|it| it.service = "unnamed:3".into()),
        with(|it| it.service = "x".repeat(MAX_SERVICE + 1).into()),
        with(|it| it.why = Some("a\nb".into())),
        with(|it| it.why = Some("x".repeat(MAX_WHY + 1).into())),
    ]
    .into_iter()
    .enumerate()
    {
        assert!(matches!(bad, Err(ControlError::Invalid(_))), "{n}: {bad:?}");
    }
    for (n, bad) in [
        with(|it| it.endpoint = Some("".into())),
        with(|it| it.endpoint = Some(format!("https://example.org/{}", "x".repeat(MAX_ENDPOINT)).into())),
        with(|it| it.endpoint = Some("https://ana:secret@example.org/x".into())),
        with(|it| it.endpoint = Some("ana@example.org:80".into())),
        with(|it| it.config = Some("[]".into())),
        with(|it| it.config = Some("{".into())),
        with(|it| it.config = Some(r#"{"token": "x"}"#.into())),
        with(|it| it.config = Some(format!("{{\"content_type\":\"{}\"}}", "x".repeat(MAX_CONFIG)).into())),
    ]
    .into_iter()
    .enumerate()
    {
        assert!(matches!(&bad, Err(ControlError::Wrong(problems)) if problems.len() == 1), "{n}: {bad:?}");
    }
    // All at once.
    let Err(ControlError::Wrong(problems)) = with(|it| {
        it.endpoint = Some("ftp://example.org".into());
        it.config = Some(r#"{"retry": {"retries": 0}, "rate": {"per_second": 0}}"#.into());
    }) else {
        panic!()
    };
    assert!(problems.len() >= 3, "{problems:?}");
    assert_eq!(with(|it| it.endpoint = Some("https://example.org/@ana".into())), Ok(()));
    let tables = tables();
    let many = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?1)
                INSERT INTO routes (service_name, strategy) SELECT 'r' || i, 'noop' FROM n";
    tables.execute(many, [MAX_ROUTES]).unwrap();
    assert_eq!(refused(set(&tables, &fine, ANA)), ControlError::TooMany);
    set(&tables, &route("r1"), ANA).unwrap();
}

#[test]
fn a_strategy_without_an_implementation_is_refused_by_its_name_and_with_those_there_are() {
    for name in KNOWN.iter().filter(|name| strategies().get(name).is_err()).chain(&["grpc"]) {
        let strategy: Strategy = name.parse().unwrap();
        let error = check(&SetRoute { strategy: strategy.clone(), ..route("mail") }).unwrap_err();
        let ControlError::NotImplemented { strategy: refused, available } = error else { panic!("{name}: {error:?}") };
        assert_eq!(refused, strategy);
        assert_eq!(available, ["http".into(), "local".into(), "mcp".into(), "noop".into(), "quic".into()]);
    }
}

/// Whoever adds a key decides here whether an FO is told of it: until then it is told of no configuration that has it.
#[test]
fn an_fo_is_told_of_every_key_but_authorization() {
    let every = r#"{"timeout_ms":1,"content_type":"a/b","tool_name":"t","payload":"json","gateway":"public","idempotent":true,"retry":{},
        "breaker":{},"hedge":{"after_ms":1},"fallback":"b","concurrency":{"limit":1},"rate":{"per_second":1},
        "endpoints":[{"endpoint":"https://example.org/2"}],"weight":1,"authorization":{"file":"a"},"reply":{"a":null}}"#;
    let config = Config::parse(Some(every)).unwrap();
    let written = serde_json::to_value(Config { insecure_tls: true, ..config }).unwrap();
    let tables = tables();
    // By its own word, the configuration has these keys and no other.
    let words = Config::parse(Some(r#"{"?": 1}"#)).unwrap_err()[0].what.to_string();
    let keys: Vec<&str> = words.split_once("expected").unwrap().1.split('`').skip(1).step_by(2).collect();
    assert!(keys.len() >= 17, "{words}");
    let policy = |config: &str| -> String {
        tables.execute("INSERT OR REPLACE INTO routes (service_name, strategy, config) VALUES ('a', 'http', ?1)", [config]).unwrap();
        tables.query_row("SELECT policy FROM routes WHERE service_name = 'a'", [], |row| row.get(0)).unwrap()
    };
    for key in keys {
        let told = policy(&format!(r#"{{"{key}": 1}}"#));
        assert_eq!(told, if key == "authorization" { "{}".to_owned() } else { format!(r#"{{"{key}":1}}"#) }, "{key}");
    }
    let mut wanted = written.clone();
    wanted.as_object_mut().unwrap().remove("authorization").unwrap();
    let told: serde_json::Value = serde_json::from_str(&policy(&written.to_string())).unwrap();
    assert_eq!(told, wanted, "nothing is lost, not even a null");
    assert_eq!(format!("{told:?}").matches("timeout_ms").count(), 1);
    // 2^53 + 1 and a fraction as they were written.
    assert_eq!(policy(r#"{"reply": [9007199254740993, 1.50]}"#), r#"{"reply":[9007199254740993,1.50]}"#);
    for (config, told) in [("", "{}"), (" \n", "{}"), ("{}", "{}"), (r#"{"authorization": {"file": "secret"}}"#, "{}")] {
        assert_eq!(policy(config), told, "{config:?}");
    }
    let long = format!(r#"{{"content_type": "{}"}}"#, "x".repeat(MAX_CONFIG));
    for config in [
        "{",
        "[]",
        "null",
        "7",
        "'secret'",
        "{timeout_ms: 5}",
        r#"{"token": "secret"}"#,
        r#"{"timeout_ms": 5, "token": "secret"}"#,
        r#"{"Authorization": {"file": "secret"}}"#,
        r#"{"authorization": {"file": "a"}, "authorization": {"file": "secret"}}"#,
        r#"{"authorization": {"file": "a"}, "authoriz\u0061tion": {"file": "secret"}}"#,
        &long,
    ] {
        assert_eq!(policy(config), INVALID_POLICY, "{config}");
    }
    let escaped = policy(r#"{"authoriz\u0061tion": {"file": "secret"}}"#);
    assert!(!escaped.contains("secret"), "{escaped}");
    assert!(Config::parse(Some(INVALID_POLICY)).is_err(), "an FO takes it for what it is");
}
