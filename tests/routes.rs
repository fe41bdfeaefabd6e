//! Routes: edited at their owner from any node, and kept by every other for its role.

use std::{path::Path, process::Command, time::Duration};

use horos_store::rusqlite::Connection;
use serde_json::{Value, json};

use crate::harness::{Cluster, outside, poll_state};

#[tokio::test]
async fn a_route_set_through_an_fo_is_listed_everywhere_and_with_the_owner_away_not_edited() {
    let (cluster, mut bo, fo) = Cluster::pair(outside::drill().await).await;
    let set = ["routes", "set", "mail", "--strategy", "http", "--endpoint", "https://mail.example.org/", "--config", r#"{"timeout_ms":5}"#];
    let made = fo.ask(&[&set[..], &["--expect", "absent", "--why", "a drill"]].concat()).await.expect_code(0).json();
    assert_eq!((&made["edit"], &made["route"]["strategy"]), (&json!(1), &json!("http")), "{made}");
    let again = fo.ask(&[&set[..], &["--expect", "absent"]].concat()).await.expect_code(1);
    assert!(again.stderr.contains("is not what was expected"), "{again:?}");
    fo.ask(&["routes", "set", "mail", "--strategy", "http", "--config", "[]"]).await.expect_code(2);
    fo.ask(&["routes", "delete", "nothing"]).await.expect_code(1);

    // Viewers look.
    let viewer = cluster.person("viewer", "vera", &[]).await;
    let listed = bo.ask_as(&viewer, &["routes", "list"]).await.expect_code(0).json();
    assert_eq!(listed, json!([made["route"]]));
    assert_eq!(bo.ask_as(&viewer, &["routes", "get", "mail"]).await.expect_code(0).json(), made["route"]);
    assert_eq!(bo.ask_as(&viewer, &["routes", "history"]).await.expect_code(0).json()[0]["why"], "a drill");
    for denied in
        [&["routes", "delete", "mail"][..], &["routes", "rollback", "mail"], &["breaker", "open", "mail"], &["breaker", "reset", "mail"]]
    {
        bo.ask_as(&viewer, denied).await.expect_code(3);
    }

    // The replica is there, and people see it.
    poll_state("the FO has a replica", Duration::from_secs(10), async || {
        let status = bo.ask(&["sync", "status"]).await.expect_code(0).json();
        let names =
            |list: &str| status[list].as_array().into_iter().flatten().filter_map(|it| it["name"].as_str()).collect::<Vec<_>>().join(" ");
        let fed = status["publications"].as_array().into_iter().flatten().any(|it| it["subscribers"][0]["state"] == "live");
        match (names("publications").contains("control-fo"), fed) {
            (true, true) => Ok(()),
            _ => Err(status.to_string()),
        }
    })
    .await;

    bo.kill();
    fo.sees("bo-1", "down").await;
    let away = fo.ask(&["routes", "delete", "mail"]).await;
    assert_eq!(away.code, Some(5), "{away:?}");
    assert!(away.stderr.contains("bo-1 owns the routes (control.owner) and cannot be asked"), "{away:?}");
    bo.start().await;
    bo.sees("fo-1", "up").await;
    assert_ne!(bo.ask(&["routes", "delete", "mail"]).await.expect_code(0).json(), Value::Null);
    assert_eq!(fo.ask(&["routes", "list"]).await.expect_code(0).json(), json!([]));
}

/// One value in a node's own `control.db`, as another program reads it.
fn value(data: &Path, sql: &str) -> Option<String> {
    let file = Connection::open(data.join("control.db")).ok()?;
    file.query_row(sql, [], |row| row.get(0)).ok().flatten()
}

/// Has SQLite's own shell, of whichever release it is, do `sql` on a node's `control.db`.
fn shell(data: &Path, sql: &str) {
    let output = Command::new("sqlite3").args(["-batch", "-bail", "-cmd", ".timeout 10000"]).arg(data.join("control.db")).arg(sql).output();
    let output = output.unwrap();
    assert!(output.status.success(), "{sql}: {}", String::from_utf8_lossy(&output.stderr));
}

async fn becomes(data: &Path, sql: &str, wanted: Option<&str>) {
    poll_state(sql, Duration::from_secs(10), async || match value(data, sql) {
        found if found.as_deref() == wanted => Ok(()),
        found => Err(format!("{found:?}")),
    })
    .await;
}

#[tokio::test]
async fn an_edit_by_whichever_program_reaches_an_fo_without_its_secrets_and_is_taken_back() {
    let (_cluster, bo, fo) = Cluster::pair(outside::drill().await).await;
    let config = r#"{"timeout_ms": 5, "authorization": {"file": "needle"}}"#;
    let set = ["routes", "set", "mail", "--strategy", "http", "--endpoint", "https://mail.example.org/", "--config", config];
    let first = fo.ask(&set).await.expect_code(0).json();
    let policy = "SELECT policy FROM routes WHERE service_name = 'mail'";
    becomes(&fo.data, policy, Some(r#"{"timeout_ms":5}"#)).await;

    // A shell changes the configuration alone, and another puts in what is no configuration.
    shell(&bo.data, "UPDATE routes SET config = json_set(config, '$.timeout_ms', 7)");
    becomes(&fo.data, policy, Some(r#"{"timeout_ms":7}"#)).await;
    shell(&bo.data, "UPDATE routes SET config = '{\"needle\": 1}', strategy = 'grpc'");
    becomes(&fo.data, policy, Some("invalid")).await;
    assert_eq!(value(&fo.data, "SELECT config FROM routes"), None);
    let listed = bo.ask(&["routes", "list"]).await.expect_code(0).json();
    assert_eq!((&listed[0]["strategy"], listed[0]["problems"].as_array().map(Vec::len)), (&json!("grpc"), Some(2)), "{listed}");
    let history = bo.ask(&["routes", "history", "mail"]).await.expect_code(0).json();
    let said: Vec<_> = history.as_array().unwrap().iter().map(|it| (it["edit"].as_i64(), it["who"].as_str().unwrap())).collect();
    assert_eq!(said.iter().map(|it| it.0).collect::<Vec<_>>(), [Some(3), Some(2), Some(1)]);
    assert_eq!((said[0].1, said[1].1), ("sql", "sql"));
    assert!(said[2].1.starts_with("operator@"), "{said:?}");

    // To the byte.
    let back = fo.ask(&["routes", "rollback", "mail", "--as-of", "1", "--why", "no grpc here"]).await.expect_code(0).json();
    assert_eq!((&back["edit"], &back["route"]["config"]), (&json!(4), &json!(config)), "{back}");
    becomes(&fo.data, policy, Some(r#"{"timeout_ms":5}"#)).await;
    fo.ask(&["routes", "rollback", "mail", "--before", "99"]).await.expect_code(1);
    let stale = ["routes", "set-strategy", "mail", "noop", "--expect", "00000000000000000000000000000001"];
    fo.ask(&stale).await.expect_code(1);
    let off = fo.ask(&["routes", "set-strategy", "mail", "noop", "--why", "off"]).await.expect_code(0).json();
    assert_eq!((&off["route"]["strategy"], &off["route"]["endpoint"]), (&json!("noop"), &json!("https://mail.example.org/")), "{off}");
    let on = fo.ask(&["routes", "rollback", "mail"]).await.expect_code(0).json();
    assert_eq!(on["route"]["strategy"], first["route"]["strategy"]);
    becomes(&fo.data, "SELECT strategy FROM routes", Some("http")).await;

    // What nobody has an implementation of, and what is wrong, is told before anything is done, all of it.
    let unknown = bo.ask(&["routes", "set", "mail", "--strategy", "grpc"]).await.expect_code(2);
    assert!(unknown.stderr.contains("grpc") && unknown.stderr.contains("local"), "{unknown:?}");
    let wrong =
        ["routes", "set", "mail", "--strategy", "http", "--endpoint", "ftp://x", "--config", r#"{"retry":{"retries":0},"weight":5000}"#];
    let wrong = bo.ask(&wrong).await.expect_code(2);
    for key in ["endpoint", "retry.retries", "weight"] {
        assert!(wrong.stderr.contains(key), "{key}: {wrong:?}");
    }

    // Breakers are forced for every node, by command and by shell.
    let forced = "SELECT forced FROM breakers WHERE service_name = 'mail'";
    let open = fo.ask(&["breaker", "open", "mail", "--why", "a drill", "--expect", "auto"]).await.expect_code(0).json();
    assert_eq!(open["breaker"]["state"], "open");
    becomes(&fo.data, forced, Some("open")).await;
    fo.ask(&["breaker", "close", "mail", "--expect", "auto"]).await.expect_code(1);
    let listed = fo.ask(&["breaker", "list"]).await.expect_code(0).json();
    assert_eq!(listed["forced"][0]["state"], "open", "{listed}");
    shell(&bo.data, "UPDATE breakers SET forced = 'closed'");
    becomes(&fo.data, forced, Some("closed")).await;
    fo.ask(&["breaker", "auto", "mail"]).await.expect_code(0);
    becomes(&fo.data, forced, None).await;
    let reset = bo.ask(&["breaker", "reset", "mail"]).await.expect_code(0).json();
    assert!(reset["breaker"]["resets"].as_i64().unwrap() > 0, "{reset}");
    assert!(bo.ask(&["routes", "inspect", "mail"]).await.expect_code(0).json()["nodes"].is_array());
    // None of the secrets' names has come to the FO, in any byte of its files.
    for entry in std::fs::read_dir(&fo.data).unwrap().map(Result::unwrap) {
        if entry.file_name().to_string_lossy().starts_with("control.db") {
            let bytes = std::fs::read(entry.path()).unwrap();
            assert!(!bytes.windows(6).any(|window| window == b"needle"), "{}", entry.path().display());
        }
    }
}

/// As the Go system makes it, with rows that it takes and nobody can serve.
const GO: &str = "
    CREATE TABLE routes (
        service_name TEXT PRIMARY KEY,
        strategy TEXT NOT NULL CHECK (strategy IN ('local', 'quic', 'http', 'mcp', 'dbsync', 'embed', 'noop')),
        endpoint TEXT, config TEXT DEFAULT '{}', updated_at INTEGER NOT NULL DEFAULT (strftime('%s', 'now')));
    CREATE INDEX idx_routes_strategy ON routes(strategy);
    CREATE TRIGGER trg_routes_updated_at AFTER UPDATE ON routes BEGIN
        UPDATE routes SET updated_at = strftime('%s', 'now') WHERE service_name = NEW.service_name;
    END;
    INSERT INTO routes (service_name, strategy, endpoint) VALUES ('mail', 'http', 'https://mail.example.org/'), ('news', 'noop', NULL);
    INSERT INTO routes (service_name, strategy, config) VALUES (NULL, 'local', '{'), ('tools', 'mcp', '{}');
";

#[tokio::test]
async fn the_routes_of_a_go_system_are_taken_in_from_its_file_and_in_place_of_ours() {
    let (cluster, mut bo, fo) = Cluster::pair(outside::drill().await).await;
    let file = cluster.person("operator", "olga", &[]).await.join("routes.db");
    Connection::open(&file).unwrap().execute_batch(GO).unwrap();
    let path = file.to_str().unwrap();
    fo.ask(&["routes", "set", "mail", "--strategy", "noop"]).await.expect_code(0);
    let taken = fo.ask(&["routes", "import", path, "--why", "moving house"]).await.expect_code(1).json();
    assert_eq!(taken["added"], json!(["unnamed:3", "news", "tools"]), "{taken}");
    assert_eq!((&taken["left"][0]["service"], taken["wrong"].as_array().map(Vec::len)), (&json!("mail"), Some(2)), "{taken}");
    let again = fo.ask(&["routes", "import", path, "--replace"]).await.expect_code(0).json();
    assert_eq!((&again["replaced"], again["same"].as_array().map(Vec::len)), (&json!(["mail"]), Some(3)), "{again}");
    fo.ask(&["routes", "import", "/nowhere/routes.db"]).await.expect_code(6);

    // In place of the owner's file, before a start.
    bo.kill();
    for ending in ["", "-wal", "-shm"] {
        let _ = std::fs::remove_file(bo.data.join(format!("control.db{ending}")));
    }
    std::fs::copy(&file, bo.data.join("control.db")).unwrap();
    bo.start().await;
    bo.sees("fo-1", "up").await;
    let listed = bo.ask(&["routes", "list"]).await.expect_code(0).json();
    let rows: Vec<_> = listed.as_array().unwrap().iter().map(|it| (it["service"].as_str().unwrap(), it["problems"] == json!([]))).collect();
    assert_eq!(rows, [("mail", true), ("news", true), ("tools", false), ("unnamed:3", false)]);
    becomes(&fo.data, "SELECT count(*) || '' FROM routes", Some("4")).await;
    bo.ask(&["routes", "delete", "unnamed:3"]).await.expect_code(0);
    becomes(&fo.data, "SELECT count(*) || '' FROM routes", Some("3")).await;
}
