//! Endpoints that lead inside.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use axum::Router;
use axum::http::{StatusCode, header::LOCATION};
use axum::routing::any;
use serde_json::json;
use tokio::net::{TcpListener, TcpStream};

use super::world::{SOON, World, once, serve};
use crate::harness::poll_state;

/// Counts who connects, at every address of loopback.
struct Canary {
    port: u16,
    sang: Arc<AtomicU64>,
}

impl Canary {
    async fn perch() -> Self {
        let (listener, sang) = (TcpListener::bind("0.0.0.0:0").await.unwrap(), Arc::<AtomicU64>::default());
        let port = listener.local_addr().unwrap().port();
        let mut perches = vec![listener];
        // Where the machine has IPv6.
        perches.extend(TcpListener::bind(("::1", port)).await);
        for listener in perches {
            let sang = sang.clone();
            tokio::spawn(async move {
                while let Ok((stream, _)) = listener.accept().await {
                    sang.fetch_add(1, Ordering::SeqCst);
                    drop(stream);
                }
            });
        }
        Self { port, sang }
    }
}

#[tokio::test]
async fn an_endpoint_inside_that_is_not_trusted_is_never_connected_to_nor_by_a_redirect() {
    let canary = Canary::perch().await;
    let port = canary.port;
    let to_canary =
        move |status: u16| async move { (StatusCode::from_u16(status).unwrap(), [(LOCATION, format!("http://127.0.0.1:{port}/inside"))]) };
    let mut router = Router::new();
    for status in [301, 302, 303, 307, 308] {
        router = router.route(&format!("/{status}"), any(move || to_canary(status)));
    }
    let trusted = serve(router).await;
    let world = World::with(&[trusted], |_| ()).await;
    let inside = ["127.0.0.1", "localhost", "127.0.0.2", "[::1]", "[::ffff:127.0.0.1]", "0.0.0.0", "[::]", "2130706433", "0x7f.1", "127.1"];
    let redirects = [301, 302, 303, 307, 308].map(|status| format!("http://{trusted}/{status}"));
    let endpoints = inside.iter().map(|host| format!("http://{host}:{port}/inside")).chain(redirects);
    let mut told = Vec::new();
    for (number, endpoint) in endpoints.enumerate() {
        let service = format!("out{number}");
        world.route(&service, "http", Some(&endpoint), &json!({ "timeout_ms": 5_000 }));
        for node in world.nodes() {
            // Not before it is in force: until then the service is an actor that is not there.
            let ended = poll_state("the route is in force", SOON, async || {
                let ended = once(node, &service, json!("count"), 5_000).await;
                let text = ended["text"].as_str().unwrap();
                if text.contains(&service) && !text.contains("its route is wrong") { Err(ended.to_string()) } else { Ok(ended) }
            })
            .await;
            assert_ne!(ended["how"], "done", "{endpoint} from {}", node.name);
            if endpoint.ends_with("/inside") {
                assert_eq!(ended["how"], "no_effect", "{endpoint} from {}: {ended}", node.name);
            }
            told.push(format!("{endpoint}: {} {}", ended["how"], ended["why"]));
        }
    }
    eprintln!("{}", told.join("\n"));
    assert_eq!(canary.sang.load(Ordering::SeqCst), 0, "something was connected to");
    // It does sing.
    drop(TcpStream::connect(("127.0.0.1", port)).await.unwrap());
    poll_state("the canary sings", SOON, async || if canary.sang.load(Ordering::SeqCst) == 1 { Ok(()) } else { Err("silent".into()) })
        .await;
}
