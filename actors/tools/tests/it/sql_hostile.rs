//! The attempts of [`super::sql_attempts`], and what must be the same after each.

use std::{
    collections::BTreeSet,
    fs,
    time::{Duration, Instant},
};

use horos_store::StoreError;
use horos_tools::{ToolError, sql::THREADS};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::{
    sql_attempts::{Attempt, End, What, all},
    sql_world::{LIMIT, Terms, World},
};

/// What is nobody's to see, in every form in which SQLite or JSON would show it.
const SECRET: [&str; 4] = ["hunter2", "68756e74657232", "aHVudGVyMi14eXp6eQ", "7a7a79"];
/// What no error names.
const INSIDE: [&str; 8] = ["hunter2", "password", "secrets", "goods", "sqlite", "select", "app.db", "orders"];

/// The file's bytes, all that is in it, and what lies beside it.
fn picture(world: &World) -> (String, Vec<String>, BTreeSet<String>) {
    let aside = world.aside();
    let mut lines = Vec::new();
    let mut tables = aside.prepare("SELECT name, coalesce(sql, '') FROM sqlite_schema ORDER BY name").unwrap();
    let tables: Vec<(String, String)> = tables.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).unwrap().map(Result::unwrap).collect();
    for (name, sql) in &tables {
        lines.push(sql.clone());
        if sql.starts_with("CREATE TABLE") {
            let mut rows = aside.prepare(&format!("SELECT * FROM \"{name}\"")).unwrap();
            let width = rows.column_count();
            let rows = rows.query_map([], |row| (0..width).map(|at| Ok(format!("{:?}", row.get_ref(at)?))).collect::<Result<Vec<_>, _>>());
            lines.extend(rows.unwrap().map(|row| row.unwrap().join("|")));
        }
    }
    let hash = format!("{:x?}", Sha256::digest(fs::read(&world.path).unwrap()));
    let files = fs::read_dir(world.directory.path()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    (hash, lines, files.filter(|name| !name.ends_with("-wal") && !name.ends_with("-shm")).collect())
}

/// Tries one; says what is wrong with how it ended.
async fn ended(world: &World, attempt: &Attempt) -> Result<(), String> {
    let tables = json!({ "goods": ["sku", "price"], "orders": ["id", "sku", "qty"], "plain": true, "cheap": true });
    let properties = json!({ "sku": {} });
    let made = match &attempt.what {
        What::Query(sql) => world.query(json!({ "query": sql, "tables": tables }), properties),
        What::Config(config) => world.query(config.clone(), properties),
        What::Script(statements) => {
            let statements: Vec<Value> = statements.iter().map(|sql| json!({ "sql": sql })).collect();
            let writes = json!({ "orders": ["insert", "update", "delete"] });
            world.script(json!({ "statements": statements, "tables": tables, "writes": writes }), properties)
        }
    };
    // Refused when the row was read, with a reason.
    let Ok(tool) = made.map_err(|problems| assert!(!problems.is_empty())) else {
        return if attempt.end == End::Refused { Ok(()) } else { Err("refused before it was called".into()) };
    };
    let endless = attempt.name.starts_with("exhaust/") || attempt.name.contains("endless");
    let terms = Terms { within: if endless { Duration::from_millis(60) } else { LIMIT }, ..Terms::default() };
    match tool.call_on(&terms, attempt.arguments.clone()).await {
        Ok(output) if attempt.end == End::Refused => Err(format!("it was done: {:.300}", format!("{output:?}"))),
        Ok(output) => {
            let text = format!("{:?} {}", output.content, output.structured.unwrap_or_default());
            match SECRET.iter().find(|secret| text.to_lowercase().contains(&secret.to_lowercase())) {
                Some(secret) => Err(format!("{secret} came out: {text:.300}")),
                None => Ok(()),
            }
        }
        Err(error) => {
            let text = error.to_string().to_lowercase();
            let directory = world.directory.path().to_str().unwrap().to_lowercase();
            match INSIDE.iter().copied().chain([directory.as_str()]).find(|word| text.contains(word)) {
                Some(word) => Err(format!("the error names {word}: {text}")),
                None => Ok(()),
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_500_attempts_none_succeeds_and_the_file_stays_what_it_was() {
    let attempts = all();
    let names: BTreeSet<&str> = attempts.iter().map(|attempt| attempt.name.as_str()).collect();
    assert_eq!(names.len(), attempts.len(), "each has a name of its own");
    assert!(attempts.len() >= 500, "{}", attempts.len());
    let world = World::new().await;
    // The writer has opened the file, and moved into it what lay beside it.
    world.shelf.writer.transaction(Instant::now() + LIMIT, |_| Ok::<_, StoreError>(())).await.unwrap();
    let before = picture(&world);
    let ordinary =
        world.query(json!({ "query": "SELECT sku FROM goods ORDER BY sku LIMIT 1", "tables": { "goods": ["sku"] } }), json!({})).unwrap();
    let mut wrong = Vec::new();
    let mut slowest = (Duration::ZERO, "");
    for attempt in &attempts {
        let began = Instant::now();
        if let Err(what) = ended(&world, attempt).await {
            wrong.push(format!("{}: {what}", attempt.name));
        }
        // And at once the next is served.
        assert_eq!(ordinary.json(json!({})).await["rows"], json!([{ "sku": "p-1" }]), "after {}", attempt.name);
        slowest = slowest.max((began.elapsed(), attempt.name.as_str()));
    }
    eprintln!("{} attempts; the slowest took {slowest:?}", attempts.len());
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), attempts.len(), wrong.join("\n"));
    assert!(slowest.0 < Duration::from_secs(5), "{slowest:?}");
    assert_eq!(picture(&world), before);
}

#[tokio::test]
async fn endless_queries_hold_nobody_up_beyond_their_deadline() {
    let world = World::new().await;
    let endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n";
    let endless = world.query(json!({ "query": endless, "tables": {} }), json!({})).unwrap();
    let ordinary = world.query(json!({ "query": "SELECT 1 AS one", "tables": {} }), json!({})).unwrap();
    // More than there are threads; each is stopped by SQLite at its deadline, and the ordinary one is served then.
    let terms = Terms { within: Duration::from_millis(100), ..Terms::default() };
    let all = futures_util::future::join_all((0..6).map(|_| endless.call_on(&terms, json!({}))));
    let (all, one) = tokio::join!(all, ordinary.json(json!({})));
    assert_eq!(one["rows"], json!([{ "one": 1 }]));
    for ended in all {
        assert!(matches!(ended, Err(ToolError::Deadline { undone: true, .. })), "{ended:?}");
    }
}

#[tokio::test]
async fn a_tool_that_runs_for_long_as_often_as_it_can_delays_no_other() {
    let world = World::new().await;
    let endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n";
    let endless = world.query(json!({ "query": endless, "tables": {} }), json!({})).unwrap();
    let ordinary = world.query(json!({ "query": "SELECT 1 AS one", "tables": {} }), json!({})).unwrap();
    let terms = Terms { within: LIMIT, ..Terms::default() };
    let mut all = std::pin::pin!(futures_util::future::join_all((0..2 * THREADS).map(|_| endless.call_on(&terms, json!({})))));
    let others = async {
        // Each of the endless has had its turn to take what it may.
        while world.shelf.readers.stats().waiting > 0 {
            tokio::task::yield_now().await;
        }
        for _ in 0..100 {
            assert_eq!(ordinary.json(json!({})).await["rows"], json!([{ "one": 1 }]));
        }
    };
    tokio::select! {
        ended = &mut all => panic!("before their deadline: {ended:?}"),
        () = others => {}
    }
}

#[tokio::test]
async fn a_query_that_nobody_waits_for_any_more_is_stopped() {
    let world = World::new().await;
    let endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n";
    let endless = world.query(json!({ "query": endless, "tables": {} }), json!({})).unwrap();
    let ordinary = world.query(json!({ "query": "SELECT 1 AS one", "tables": {} }), json!({})).unwrap();
    for _ in 0..4 {
        // Given up long before its deadline: were they to run on, they would take all that a tool may hold until then.
        let reads = world.shelf.readers.stats().reads;
        let given_up = tokio::time::timeout(Duration::from_millis(20), endless.call(json!({}))).await;
        assert!(given_up.is_err());
        assert!(world.shelf.readers.stats().reads > reads, "it had begun");
    }
    let began = Instant::now();
    ordinary.json(json!({})).await;
    assert!(began.elapsed() < LIMIT / 2, "{:?}", began.elapsed());
}
