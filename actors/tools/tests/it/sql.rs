//! Queries: what they give, and that they give no more.

use serde_json::json;

use super::sql_world::World;

#[tokio::test]
async fn a_query_answers_with_typed_rows() {
    let world = World::new().await;
    let tool = world
        .query(
            json!({ "query": "SELECT sku, price FROM goods WHERE price < :most ORDER BY sku", "tables": { "goods": ["sku", "price"] } }),
            json!({ "most": { "type": "integer" } }),
        )
        .unwrap();
    let found = tool.json(json!({ "most": 100 })).await;
    assert_eq!(found, json!({ "columns": ["sku", "price"], "rows": [{ "sku": "p-1", "price": 30 }, { "sku": "p-3", "price": 9 }] }));
}
