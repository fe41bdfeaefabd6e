//! Routes: edited at their owner from any node, and kept by every other for its role.

use std::time::Duration;

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
    bo.ask_as(&viewer, &["routes", "delete", "mail"]).await.expect_code(3);

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
