//! Clients that do as they should.

use horos_tools::{Credential, quic};
use horos_wire::Role;
use rmcp::{
    RoleClient, ServiceExt as _,
    model::{CallToolRequestParams, CallToolResult},
    service::{ClientLifecycleMode, RunningService, ServiceError, serve_client_with_lifecycle},
};
use serde_json::{Value, json};
use tokio::time::timeout;

use super::world::{KEY, Node, SOON, counts, text};

async fn tool(client: &RunningService<RoleClient, ()>, name: &'static str, arguments: Value) -> Result<CallToolResult, ServiceError> {
    let params = CallToolRequestParams::new(name).with_arguments(arguments.as_object().cloned().unwrap_or_default());
    timeout(SOON, client.call_tool(params)).await.expect("an answer in time")
}

#[tokio::test]
async fn a_client_of_rmcp_lists_and_calls() {
    let node = Node::new().await;
    for streams in [true, false] {
        let client = node.client_with(quic::DialOptions { streams, ..Default::default() }).await;
        let tools = client.list_all_tools().await.unwrap();
        assert!(tools.iter().any(|tool| tool.name == "echo"));
        let result = tool(&client, "echo", json!({"sku": "a", "n": 1.5})).await.unwrap();
        assert_eq!(result.structured_content, Some(json!({"sku": "a", "n": 1.5})));
        assert_eq!(text(&tool(&client, "who", json!({})).await.unwrap()), KEY);
        let agreed = client.peer_info().unwrap().capabilities.experimental.clone().unwrap_or_default();
        assert_eq!(agreed.contains_key("horos/streams"), streams);
        client.cancel().await.unwrap();
    }
    node.stop().await;
}
