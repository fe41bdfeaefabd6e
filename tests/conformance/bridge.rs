//! The way from the suite to the server under test: the suite speaks HTTP/1.1 without TLS and has no key to show, so it asks a [`Bridge`]
//! on loopback, which shows one and passes everything on, both ways as it comes, over what is to be tested.
//!
//! A bridge decides nothing: it adds the key, and takes away only what belongs to one connection (RFC 9110 §7.6.1). The name under which
//! it was asked goes with the request, so that it is the server that thinks about it. What the suite gives up it gives up too.

mod far;
mod streams;

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::Result;
use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::http::{Request, Response, StatusCode};
use axum::response::IntoResponse;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use far::Far;
use streams::Streams;

use super::exceptions::Over;
use crate::harness::Site;

/// An open bridge; it goes with its owner.
pub(crate) struct Bridge {
    address: SocketAddr,
    serving: JoinHandle<()>,
}

/// The server, over HTTP or over QUIC.
enum Side {
    Http(Box<Far>),
    Quic(Box<Streams>),
}

impl Drop for Bridge {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

impl Bridge {
    /// To `site`, over `over`, showing `key`.
    pub(crate) async fn open(site: &Site, over: Over, key: &str) -> Result<Self> {
        let far = match over {
            Over::Quic => Side::Quic(Box::new(Streams::new(site, key))),
            _ => Side::Http(Box::new(Far::new(site, over, key))),
        };
        let far = Arc::new(far);
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let address = listener.local_addr()?;
        let app = Router::new().fallback(pass).with_state(far);
        let serving = tokio::spawn(async move {
            let ended = axum::serve(listener, app).await;
            ended.expect("a listener on loopback goes on");
        });
        Ok(Self { address, serving })
    }

    /// Where the suite finds `path` of the server.
    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }
}

async fn pass(State(far): State<Arc<Side>>, request: Request<Body>) -> Response<Body> {
    let asked = format!("{} {}", request.method(), request.uri());
    let answer = match &*far {
        Side::Http(far) => far.ask(request).await,
        Side::Quic(streams) => streams.ask(request).await,
    };
    match answer {
        Ok(answer) => answer,
        // Told apart from whatever the server answers itself: no scenario expects this status.
        Err(error) => (StatusCode::BAD_GATEWAY, format!("{asked}: {error:#}")).into_response(),
    }
}
