//! MCP on an address of the public's own, and the names under which it is asked.

use serde_json::json;

use super::world::{ALPN, Client, Line, SOON, modern};
use crate::harness::http::{Ask, Session, Speaks};
use crate::harness::site::{Site, dialer};
use crate::harness::{Cluster, Node, free_address};

async fn split(prepare: impl FnOnce(&mut Node)) -> (Cluster, Node, Site) {
    let cluster = Cluster::new();
    let mut bo = cluster.first("bo-1", [127, 0, 0, 1]).await;
    let public = free_address([127, 0, 0, 9]);
    bo.set("LISTEN__PUBLIC", public.to_string());
    prepare(&mut bo);
    bo.start().await;
    let site = Site { address: public, ..bo.site() };
    (cluster, bo, site)
}

#[tokio::test]
async fn tools_are_served_on_the_publics_own_address_and_those_of_operators_are_nobodys_there() {
    let (_cluster, bo, site) = split(|_| ()).await;
    let key = bo.key(&["shop", "work", "metrics"]).await;
    super::world::sqlite3(&bo.data.join("control.db"), "INSERT INTO mcp_tool_policy (tool_name, role) VALUES ('goods_*', 'shop')");
    for speaks in Speaks::ALL {
        let mut client = Client::open_on(&site, &key, speaks, "/mcp").await;
        assert_eq!(client.names().await, Vec::<String>::new(), "{speaks:?}: those of operators are not a stranger's");
        let mut session = Session::open(&site, speaks).await.unwrap();
        for (ask, status) in [
            (Ask::get("/mcp"), 401),
            (Ask::get("/.well-known/oauth-protected-resource/mcp"), 200),
            // Administration stays on the cluster's address.
            (Ask::get("/metrics").key(&key), 404),
        ] {
            let answer = session.ask(&ask).await.unwrap();
            assert_eq!(answer.status, status, "{speaks:?} {}: {answer:?}", ask.path);
        }
        // And MCP is the public's alone.
        let mut session = Session::open(&bo.site(), speaks).await.unwrap();
        assert_eq!(session.ask(&modern(&key, "tools/list", json!({}))).await.unwrap().status, 404, "{speaks:?}");
    }
    // Over QUIC, on both: whoever shows a key is a stranger there too, and an operator is one by certificate.
    let endpoint = dialer(site.address.ip());
    let connection = site.quic(&endpoint, &site.tls(&[ALPN], None)).await.unwrap();
    let mut line = Line::on(connection, endpoint).await;
    line.greet(&key).await;
    assert_eq!(line.names().await, Vec::<String>::new());
    let mut operator = Line::open(&bo, &bo.operator).await;
    assert!(operator.names().await.iter().any(|name| name.starts_with("horos_")), "{:?}", operator.names().await);
}

#[tokio::test]
async fn a_page_of_a_name_that_only_leads_here_is_refused_and_listed_hosts_are_all_that_is_answered() {
    let (_cluster, mut bo, site) = split(|bo| {
        bo.set("LISTEN__ADVERTISE", "localhost:7400");
        bo.set("MCP__ADDRESS", "https://shop.example.org");
    })
    .await;
    let key = bo.key(&["shop"]).await;
    let port = site.address.port();
    let mut session = Session::open(&site, Speaks::Http1).await.unwrap();
    let asks = async |session: &mut Session, host: &str, origin: Option<&str>| {
        let mut ask = modern(&key, "tools/list", json!({})).header("host", host);
        if let Some(origin) = origin {
            ask = ask.header("origin", origin);
        }
        session.ask(&ask).await.unwrap().status
    };
    let rebound = format!("evil.example:{port}");
    for (host, origin, status) in [
        (&*rebound, Some(format!("https://{rebound}")), 403),
        ("shop.example.org", Some("https://shop.example.org".to_owned()), 200),
        ("shop.example.org", Some(format!("https://{rebound}")), 403),
        (&*format!("localhost:{port}"), Some(format!("https://localhost:{port}")), 200),
        // A program shows no origin, and shows a key.
        ("any.example", None, 200),
    ] {
        assert_eq!(asks(&mut session, host, origin.as_deref()).await, status, "{host} {origin:?}");
    }
    bo.process().terminate();
    bo.process().wait(SOON).await;
    bo.set("MCP__HOSTS", "shop.example.org");
    bo.start().await;
    let mut session = Session::open(&site, Speaks::Http1).await.unwrap();
    for (host, status) in [("shop.example.org", 200), ("any.example", 403), (&*site.address.to_string(), 403)] {
        assert_eq!(asks(&mut session, host, None).await, status, "{host}");
    }
}
