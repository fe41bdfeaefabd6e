//! Certificates by ACME, from an authority that this process plays: it checks the name at the very port that is certified.

use std::{
    convert::Infallible,
    net::SocketAddr,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
};

use base64::prelude::{BASE64_URL_SAFE_NO_PAD, Engine as _};
use horos_edge::{Access, Acme, Body, Mount, Plane, Source, Standing};
use http::{Request, Response};
use http_body_util::BodyExt as _;
use parking_lot::Mutex;
use rcgen::{CertificateParams, CertificateSigningRequestParams, Issuer, KeyPair};
use rustls_pki_types::CertificateSigningRequestDer;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::world::*;

/// The authority: one account, one order at a time.
struct Authority {
    own: OnceLock<SocketAddr>,
    /// The port that it looks at.
    certified: OnceLock<SocketAddr>,
    issuer: Issuer<'static, KeyPair>,
    status: Mutex<&'static str>,
    chain: Mutex<String>,
    orders: AtomicU32,
    proofs: AtomicU32,
}

impl Authority {
    fn new() -> Arc<Self> {
        let mut params = CertificateParams::new([]).unwrap();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let issuer = Issuer::new(params, KeyPair::generate().unwrap());
        let (own, certified, status, chain) = (OnceLock::new(), OnceLock::new(), Mutex::new("pending"), Mutex::default());
        Arc::new(Self { own, certified, issuer, status, chain, orders: AtomicU32::new(0), proofs: AtomicU32::new(0) })
    }

    fn url(&self, path: &str) -> String {
        format!("https://localhost:{}/acme{path}", self.own.get().unwrap().port())
    }

    fn order(&self) -> Value {
        let (authorization, certificate) = (self.url("/authorization"), self.url("/certificate"));
        json!({ "status": *self.status.lock(), "authorizations": [authorization], "finalize": self.url("/finalize"), "certificate": certificate })
    }

    async fn answer(&self, request: Request<Body>) -> Response<Body> {
        let path = request.uri().path().to_owned();
        let body = request.into_body().collect().await.unwrap().to_bytes();
        let jws: Value = serde_json::from_slice(&body).unwrap_or_default();
        let payload = jws["payload"].as_str().map(|text| BASE64_URL_SAFE_NO_PAD.decode(text).unwrap()).unwrap_or_default();
        let payload: Value = serde_json::from_slice(&payload).unwrap_or_default();
        let challenge = || json!({ "type": "tls-alpn-01", "url": self.url("/challenge"), "token": "token", "status": "pending" });
        let answer = match path.as_str() {
            "/directory" => {
                json!({ "newNonce": self.url("/nonce"), "newAccount": self.url("/account"), "newOrder": self.url("/order") })
            }
            "/account" => json!({ "status": "valid" }),
            "/order" if !payload.is_null() => {
                self.orders.fetch_add(1, Relaxed);
                *self.status.lock() = "pending";
                self.order()
            }
            "/order" => self.order(),
            "/authorization" => {
                let name = json!({ "type": "dns", "value": "localhost" });
                json!({ "identifier": name, "status": "pending", "challenges": [challenge()] })
            }
            "/challenge" => {
                *self.status.lock() = if self.looks().await { "ready" } else { "invalid" };
                challenge()
            }
            "/finalize" => {
                let request = BASE64_URL_SAFE_NO_PAD.decode(payload["csr"].as_str().unwrap()).unwrap();
                let mut request = CertificateSigningRequestParams::from_der(&CertificateSigningRequestDer::from(request)).unwrap();
                request.params.not_before = rcgen::date_time_ymd(2026, 1, 1);
                request.params.not_after = rcgen::date_time_ymd(2126, 1, 1);
                *self.chain.lock() = request.signed_by(&self.issuer).unwrap().pem();
                *self.status.lock() = "valid";
                self.order()
            }
            _ => Value::Null,
        };
        let body = if path == "/certificate" { Body::from(self.chain.lock().clone()) } else { Body::from(answer.to_string()) };
        let (place, nonce) = (self.url(if path == "/account" { "/account" } else { "/order" }), "nonce");
        Response::builder().header("location", place).header("replay-nonce", nonce).body(body).unwrap()
    }

    /// RFC 8737 §3: the protocol is agreed on, and the certificate has the one critical extension.
    async fn looks(&self) -> bool {
        self.proofs.fetch_add(1, Relaxed);
        let stream = tokio::net::TcpStream::connect(self.certified.get().unwrap()).await.unwrap();
        let Ok(stream) = shake(stream, &[b"acme-tls/1"]).await else { return false };
        let session = stream.get_ref().1;
        let shown = &session.peer_certificates().unwrap()[0];
        // 1.3.6.1.5.5.7.1.31, critical, and an octet string of 32 bytes in another.
        const IDENTIFIER: [u8; 17] = [6, 8, 43, 6, 1, 5, 5, 7, 1, 31, 1, 1, 255, 4, 34, 4, 32];
        session.alpn_protocol() == Some(b"acme-tls/1") && shown.windows(IDENTIFIER.len()).any(|part| part == IDENTIFIER)
    }

    /// Opens it; `trust` is who vouches for it.
    async fn open(self: &Arc<Self>) -> (Port, PathBuf) {
        let directory = TempDir::new().unwrap();
        let (chain, key, _) = certificate(directory.path(), "authority");
        let authority = self.clone();
        let service = tower::service_fn(move |request| {
            let authority = authority.clone();
            async move { Ok::<_, Infallible>(authority.answer(request).await) }
        });
        let mount = Mount::new("/acme", Access::Public, Plane::Both, service).unwrap();
        let source = Source::Files { certificate: chain.clone(), key };
        let port = Port::serving(quick(), source, directory, vec![mount]).await;
        self.own.set(port.address).unwrap();
        (port, chain)
    }
}

fn source(directory_url: String, trust: &Path, directory: &Path) -> Source {
    let domains = vec!["localhost".into()];
    Source::Acme(Acme {
        directory_url: directory_url.into(),
        contact: Some("mailto:admin@example.org".into()),
        domains,
        directory: directory.to_owned(),
        trust: Some(trust.to_owned()),
    })
}

fn standing(port: &Port) -> Option<Standing> {
    port.conditions.list().into_iter().find(|condition| &*condition.name == "certificate").map(|condition| condition.standing)
}

#[tokio::test]
async fn a_certificate_is_ordered_proved_kept_and_not_ordered_again() {
    let authority = Authority::new();
    let (theirs, trust) = authority.open().await;
    let kept = TempDir::new().unwrap();
    let place = kept.path().join("acme");
    let source = source(authority.url("/directory"), &trust, &place);
    let first = {
        let port = Port::with(quick(), source.clone(), TempDir::new().unwrap()).await;
        authority.certified.set(port.address).unwrap();
        eventually("it has a certificate", || match standing(&port) {
            Some(Standing::Fine) => Ok(()),
            other => {
                Err(format!("{other:?} {}", port.metrics.text().lines().filter(|line| line.contains("certificate")).collect::<String>()))
            }
        })
        .await;
        let mut client = port.http1().await;
        assert!(get(&mut client, "/t/hello").await.ends_with("hello"));
        assert!(shake(port.tcp().await, &[b"acme-tls/1"]).await.is_err(), "nothing is proved that nobody asked for");
        client.get_ref().1.peer_certificates().unwrap()[0].clone().into_owned()
    };
    assert_eq!((authority.orders.load(Relaxed), authority.proofs.load(Relaxed)), (1, 1));
    for file in ["acme.pem", "acme-account.json"] {
        assert_eq!(std::fs::metadata(place.join(file)).unwrap().permissions().mode() & 0o777, 0o600, "{file}");
    }
    // The authority is gone: a restart does not need it.
    theirs.close().await;
    let port = Port::with(quick(), source, kept).await;
    let client = port.http1().await;
    assert_eq!(client.get_ref().1.peer_certificates().unwrap()[0], first);
}

#[tokio::test]
async fn an_authority_that_cannot_be_had_is_shown_and_the_node_is_not_ready() {
    let authority = Authority::new();
    let (theirs, trust) = authority.open().await;
    let (kept, url) = (TempDir::new().unwrap(), authority.url("/directory"));
    theirs.close().await;
    let port = Port::with(quick(), source(url, &trust, kept.path()), TempDir::new().unwrap()).await;
    eventually("the failure is counted", || match port.metrics.text() {
        text if text.contains("horos_certificate_failures_total 1") => Ok(()),
        text => Err(text.lines().filter(|line| line.contains("certificate")).collect()),
    })
    .await;
    assert_eq!(standing(&port), Some(Standing::Failing));
    assert!(!port.conditions.ready());
    assert!(shake(port.tcp().await, &[]).await.is_err(), "there is nothing to present, and nothing is made up");
}
