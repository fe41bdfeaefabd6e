//! The Go system's protocol between two nodes that know each other by it alone: whole snapshots, pushed.

use std::time::Duration;

use super::world::{DATABASE, NAME, Published, REPLICA, database, equal, healing, say, sqlite3};
use crate::harness::Cluster;

const SCHEMA: &str = "CREATE TABLE goods(sku TEXT PRIMARY KEY, price INT, cost INT, listed INT NOT NULL);
    INSERT INTO goods VALUES ('tea', 5, 3, 1), ('cup', 9, 4, 0), ('jug', 12, 7, 1);";
const GOODS: [Published; 1] = [Published {
    here: "SELECT sku, price, listed FROM goods WHERE listed = 1 ORDER BY sku",
    there: "SELECT sku, price, listed FROM goods ORDER BY sku",
}];

#[tokio::test]
async fn what_is_pushed_as_the_go_system_pushes_it_is_a_replica_like_any_other() {
    let cluster = Cluster::new();
    let mut bo = cluster.first("bo-1", [127, 0, 0, 1]).await;
    sqlite3(&database(&bo), SCHEMA);
    bo.start().await;
    let mut fo = cluster.join("fo-1", "fo", [127, 0, 0, 2], &[bo.address()]).await;
    say(&fo, &format!("replicas:\n  {NAME}: {{ file: {REPLICA}, pushed-by: {{ node: bo-1, tables: [goods] }} }}\n"));
    fo.start().await;
    // Nobody may subscribe: what comes, comes by that protocol.
    bo.process().terminate();
    bo.process().wait(Duration::from_secs(20)).await;
    let push = format!("push: [{{ node: fo-1, address: \"{}\", compressed: true }}]", fo.address());
    let filter = r#"{"partial-tables": {"goods": {"columns": ["price", "listed"], "where": "listed = 1"}}}"#;
    say(&bo, &format!("publications:\n  {NAME}:\n    database: {DATABASE}\n    filter: {filter}\n    {push}\n"));
    bo.start().await;
    equal(&bo, &fo, &GOODS, healing()).await;
    // Changed, withdrawn and listed; then the receiver is away while it happens.
    sqlite3(&database(&bo), "UPDATE goods SET price = 6 WHERE sku = 'tea'; UPDATE goods SET listed = 1 - listed WHERE sku <> 'tea'");
    equal(&bo, &fo, &GOODS, healing()).await;
    fo.process().terminate();
    fo.process().wait(Duration::from_secs(20)).await;
    sqlite3(&database(&bo), "INSERT INTO goods VALUES ('pot', 20, 11, 1)");
    fo.start().await;
    // A push that failed is made again by itself, after a second or two.
    equal(&bo, &fo, &GOODS, healing() + Duration::from_secs(5)).await;
}
