//! Tools of a program's own, on a node in this process.

use horos_store::rusqlite::Connection;
use serde_json::{Value, json};

use super::*;

#[tokio::test]
async fn a_function_of_the_program_is_a_tool_once_a_row_says_so_and_is_given_the_node_and_the_call() {
    let one = One::new();
    let node = one.start(&[]).await;
    let mut operator = one.operator(&node).await;
    let at = "horos.tools@bo-1".parse().unwrap();
    let ask = json!({ "call": { "tool": "where_am_i", "arguments": "{\"n\": 7}" } }).to_string();
    assert!(operator.call_json(&at, &ask, Instant::now() + SOON, None).await.is_err(), "nothing is a tool without a row");
    let control = Connection::open(one.data().join("control.db")).unwrap();
    control
        .execute_batch(
            "INSERT INTO mcp_tools_registry (tool_name, description, input_schema, handler_type, handler_config, mode) VALUES
                ('where_am_i', 'Says which node it is.', '{\"type\": \"object\", \"properties\": {\"n\": {\"type\": \"integer\"}}}', 'native',
                    '{\"function\": \"whose\"}', 'readonly'),
                ('nothing', 'x', '{\"type\": \"object\"}', 'native', '{}', 'readonly')",
        )
        .unwrap();
    let until = Instant::now() + SOON;
    let answer = loop {
        match operator.call_json(&at, &ask, until, None).await {
            Ok(answer) => break answer,
            Err(error) => assert!(Instant::now() < until, "{error}"),
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    };
    assert!(answer.contains("bo-1") && answer.contains("/operator/") && answer.contains("true"), "{answer}");
    // What no function is behind is shown as wrong, and is none.
    let status = operator.call_json(&at, &json!({ "status": {} }).to_string(), Instant::now() + SOON, None).await.unwrap();
    let status: Value = serde_json::from_str(&status).unwrap();
    assert_eq!((&status["wrong"], &status["wrong_rows"][0]["row"]["name"]), (&json!(1), &json!("nothing")), "{status}");
    operator.close().await;
    node.stop().await;
}
