//! A user's own crate, outside the workspace and without our environment, becomes a cluster.

use serde_json::{Value, json};

use crate::harness::{Cluster, node::actor, outside};

#[tokio::test]
async fn a_crate_of_ones_own_runs_on_two_nodes_and_is_called_by_json_and_typed() {
    let (_cluster, bo, fo) = Cluster::pair(outside::drill().await).await;

    // JSON, from the command line, through either node.
    let left = bo.call("stock@bo", &json!({ "reserve": { "sku": "tea", "quantity": 2 } })).await;
    assert_eq!(left, 38);
    let left = fo.call("stock@bo-1", &json!({ "reserve": { "sku": "tea", "quantity": 1 } })).await;
    assert_eq!(left, 37);

    // Typed, from the FO's service to the BO's; the error too arrives as the type that it was.
    let receipt = fo.call("shop@fo", &json!({ "order": { "sku": "tea", "quantity": 7 } })).await;
    assert_eq!(receipt["left"], 30);
    assert_eq!(receipt["asked_by"], "operator@admin");
    let refused = fo.ask(&["call", "shop@fo", &json!({ "order": { "sku": "tea", "quantity": 31 } }).to_string()]).await.expect_code(1);
    let told: Value = serde_json::from_str(&refused.stderr).unwrap();
    assert_eq!(told["error"], json!({ "out_of_stock": { "left": 30 } }));
    assert!(refused.stdout.is_empty(), "{}", refused.stdout);

    // The whole command line is the user's own, under the user's name.
    let trees = bo.trees().await;
    for (node, service) in [("bo-1", "stock"), ("fo-1", "shop")] {
        let tree = &trees.as_array().unwrap().iter().find(|it| it["node"]["name"] == node).unwrap()["tree"];
        assert_eq!(actor(tree, service).unwrap()["state"], "running", "{tree}");
    }
    let help = bo.ask(&["call", "--help"]).await.expect_code(0);
    assert!(help.stdout.contains("drill call stock@bo"), "{}", help.stdout);
    assert!(!help.stdout.contains("horos call"), "{}", help.stdout);
    let policy = bo.ask(&["policy", "show"]).await.expect_code(0);
    assert!(policy.stdout.contains("\"stock\"") || policy.stdout.contains("stock"), "{}", policy.stdout);
}
