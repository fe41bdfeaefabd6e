//! The few requests that OAuth makes: one connection each, on loopback.

use std::fmt::Write as _;
use std::hash::{BuildHasher, RandomState};

use anyhow::{Context as _, Result, bail, ensure};
use axum::body::{Body, to_bytes};
use axum::http::{Method, Request, StatusCode, header};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpStream;
use url::Url;
use url::form_urlencoded::{Serializer, byte_serialize};

use super::Registered;

/// Largest answer.
const ANSWER: usize = 1 << 20;

/// An answer.
pub(super) struct Answered {
    pub(super) status: StatusCode,
    pub(super) location: Option<String>,
    body: Vec<u8>,
}

/// What nobody guesses, from the same as the keys of hash tables: enough for servers on loopback.
pub(super) fn random() -> String {
    let mut text = String::new();
    for part in 0..4 {
        let _ = write!(text, "{:016x}", RandomState::new().hash_one(part));
    }
    text
}

async fn send(method: Method, url: &str, headers: &[(header::HeaderName, &str)], body: String) -> Result<Answered> {
    let url = Url::parse(url)?;
    // Everything is on this machine; nothing else is asked in a test.
    ensure!(url.scheme() == "http" && url.host_str() == Some("localhost"), "{url} is elsewhere");
    let stream = TcpStream::connect(("localhost", url.port_or_known_default().context("a port")?)).await?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    let authority = &url[url::Position::BeforeHost..url::Position::AfterPort];
    let mut request = Request::builder().method(method).uri(&url[url::Position::BeforePath..url::Position::AfterQuery]);
    request = request.header(header::HOST, authority).header(header::ACCEPT, "application/json");
    for (name, value) in headers {
        request = request.header(name, *value);
    }
    let answer = sender.send_request(request.body(Body::from(body))?).await?;
    let location = answer.headers().get(header::LOCATION).and_then(|value| value.to_str().ok()).map(str::to_owned);
    let status = answer.status();
    let body = to_bytes(Body::new(answer.into_body()), ANSWER).await?.to_vec();
    Ok(Answered { status, location, body })
}

impl Answered {
    fn json(&self) -> Result<Value> {
        if !self.status.is_success() {
            bail!("{}: {}", self.status, String::from_utf8_lossy(&self.body));
        }
        Ok(serde_json::from_slice(&self.body)?)
    }
}

pub(super) async fn get(url: &str) -> Result<Answered> {
    send(Method::GET, url, &[], String::new()).await
}

pub(super) async fn get_json(url: &str) -> Result<Value> {
    get(url).await?.json()
}

pub(super) async fn post_json(url: &str, body: &Value) -> Result<Value> {
    send(Method::POST, url, &[(header::CONTENT_TYPE, "application/json")], body.to_string()).await?.json()
}

/// Asks for a token, showing who asks as the client was told to (OAuth 2.1 §2.4).
pub(super) async fn post_form(url: &str, client: &Registered, mut form: Vec<(&str, String)>) -> Result<Value> {
    let mut headers = vec![(header::CONTENT_TYPE, "application/x-www-form-urlencoded")];
    let encoded = |text: &str| byte_serialize(text.as_bytes()).collect::<String>();
    let secret = client.secret.as_deref().unwrap_or_default();
    let basic = format!("Basic {}", BASE64_STANDARD.encode(format!("{}:{}", encoded(&client.id), encoded(secret))));
    match &*client.method {
        "client_secret_basic" => headers.push((header::AUTHORIZATION, &basic)),
        "client_secret_post" => form.extend([("client_id", client.id.clone()), ("client_secret", secret.to_owned())]),
        _ => form.push(("client_id", client.id.clone())),
    }
    let body = Serializer::new(String::new()).extend_pairs(form).finish();
    send(Method::POST, url, &headers, body).await?.json()
}
